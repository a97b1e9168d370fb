import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.vllm_metrics import (
    SPEC_ACCEPTED,
    SPEC_ACCEPTED_PER_POS,
    SPEC_DRAFT_TOKENS,
    SPEC_DRAFTS,
    Exposition,
    SpecKey,
    UnreadableMetrics,
    parse,
)
from tests.proxy.scripted import SPEC, Server


def server(**facts: float) -> Exposition:
    return parse(Server(SPEC, **facts).metrics())  # type: ignore[arg-type]  # numbers only


def test_gauges_and_counters_are_read_and_their_near_namesakes_are_not() -> None:
    read = server()

    assert read.values == {
        "running": 2.0,
        "waiting": 1.0,
        "kv_cache_usage": 0.25,
        "preemptions": 3.0,
        "prefix_cache_queries": 1602.0,
        "prefix_cache_hits": 801.0,
        "prompt_tokens": 1567.0,
        "generation_tokens": 205.0,
        "requests": 31.0,
    }
    assert read.started_at == 1795476705.37


def test_a_plain_server_does_not_speculate() -> None:
    read = server()

    assert read.speculates is False
    assert read.positions == 0


def test_a_speculating_server_tells_k_by_its_positions() -> None:
    read = server(k=5, drafts=29.0, accepted=81.0)

    assert read.speculates is True
    assert read.positions == 5
    assert read.total(SPEC_DRAFTS) == 29.0
    assert read.total(SPEC_DRAFT_TOKENS) == 145.0
    assert read.total(SPEC_ACCEPTED) == 81.0
    assert read.speculation[SpecKey(SPEC_ACCEPTED_PER_POS, "m", "0")] == 81.0


def test_a_server_without_statistics_tells_nothing_of_speculation() -> None:
    read = parse('process_start_time_seconds 1.7e+09\npython_info{version="3.11"} 1.0\n')

    assert read.speculates is None
    assert read.values == {}


def test_engines_add_up_but_for_the_kv_cache_whose_fullest_counts() -> None:
    text = (
        'vllm:num_requests_running{engine="0",model_name="m"} 3.0\n'
        'vllm:num_requests_running{engine="1",model_name="m"} 4.0\n'
        'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.9\n'
        'vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.1\n'
        'vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 5.0\n'
        'vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 6.0\n'
    )

    read = parse(text)

    assert read.values == {"running": 7.0, "kv_cache_usage": 0.9}
    assert read.speculation == {SpecKey(SPEC_DRAFTS, "m"): 11.0}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"a\"b", 'a"b'),
        (r"a\\nb", r"a\nb"),
        (r"a\nb", "a\nb"),
        ("a}b{c", "a}b{c"),
        ('a b",x="1', "a b"),
    ],
)
def test_model_names_are_unescaped(written: str, meant: str) -> None:
    text = f'vllm:spec_decode_num_drafts_total{{engine="0",model_name="{written}"}} 1.0\n'

    assert list(parse(text).speculation) == [SpecKey(SPEC_DRAFTS, meant)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html><body>502 Bad Gateway</body></html>",
        '{"error": "Unauthorized"}',
        "\x00\x01\x02",
        'vllm:num_requests_running{engine="0"} many\n',
        'vllm:num_requests_running{engine="0"} NaN\n',
        'vllm:num_requests_running{engine="0"} +Inf\n',
        'vllm:num_requests_running{engine="0"} 0x10\n',
    ],
)
def test_garbage_is_one_clear_error(text: str) -> None:
    with pytest.raises(UnreadableMetrics):
        parse(text)


@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    for candidate in (text, f"vllm:num_requests_running{text}", f'vllm:x{{a="{text}"}} 1'):
        try:
            parse(candidate)
        except UnreadableMetrics:
            continue


def test_another_start_time_is_a_restart_whatever_the_counters_say() -> None:
    assert server(started=2.0, generated=300.0).restarted_since(server(started=1.0))
    assert not server(started=1.0).restarted_since(server(started=1.0))


def test_a_counter_that_fell_is_a_restart_where_no_start_time_is_told() -> None:
    def untimed(generated: float) -> Exposition:
        text = Server(SPEC, generated=generated).metrics()
        return parse(text.replace("process_start_time_seconds", "process_other_seconds"))

    assert untimed(10.0).restarted_since(untimed(205.0))
    assert not untimed(205.0).restarted_since(untimed(205.0))
    assert not untimed(206.0).restarted_since(untimed(205.0))
