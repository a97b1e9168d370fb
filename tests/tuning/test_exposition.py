"""Reading a gateway's metrics: known histograms, differences, and what can't be read."""

import httpx
import pytest

from routing.pools import Speculation
from turnout.tuning.exposition import Series, SpeedUp, scrape
from turnout.tuning.report import TuningError

GATEWAY = """\
# TYPE turnout_pool_info gauge
turnout_pool_info{pool="spec",model="m",speculation="eagle3",k="3"} 1
turnout_pool_info{pool="plain",model="m",speculation="none",k="0"} 1
# TYPE turnout_requests_total counter
turnout_requests_total{endpoint="e",pool="spec",reason="policy",ending="finished"} 4
# TYPE turnout_backend_preemptions_total counter
turnout_backend_preemptions_total{pool="spec",backend="a"} 7
# TYPE turnout_in_flight gauge
turnout_in_flight{pool="spec",backend="a"} 3
# TYPE turnout_tpot_seconds histogram
turnout_tpot_seconds_bucket{pool="spec",task="code",le="0.1"} 8
turnout_tpot_seconds_bucket{pool="spec",task="code",le="0.2"} 10
turnout_tpot_seconds_bucket{pool="spec",task="code",le="+Inf"} 10
turnout_tpot_seconds_sum{pool="spec",task="code"} 1.0
turnout_tpot_seconds_count{pool="spec",task="code"} 10
turnout_tpot_seconds_bucket{pool="plain",task="chat",le="0.1"} 0
turnout_tpot_seconds_bucket{pool="plain",task="chat",le="0.2"} 10
turnout_tpot_seconds_bucket{pool="plain",task="chat",le="+Inf"} 10
turnout_tpot_seconds_sum{pool="plain",task="chat"} 2.0
turnout_tpot_seconds_count{pool="plain",task="chat"} 10
# TYPE turnout_tokens_per_step histogram
turnout_tokens_per_step_bucket{pool="spec",task="code",le="1.0"} 10
turnout_tokens_per_step_bucket{pool="spec",task="code",le="+Inf"} 10
turnout_tokens_per_step_sum{pool="spec",task="code"} 10
turnout_tokens_per_step_count{pool="spec",task="code"} 10
"""
TPOT = "turnout_tpot_seconds"


def series(text: str = GATEWAY, source: str = "here") -> Series:
    return Series.of(text, source=source)


def test_pools_are_known_by_how_they_draft() -> None:
    assert series().pools == {"spec": Speculation.EAGLE3, "plain": Speculation.NONE}


def test_quantiles_are_interpolated_within_buckets() -> None:
    found = series().distribution(TPOT, ["spec"])

    assert found is not None
    assert (found.p50, found.p90, found.p99) == pytest.approx((0.0625, 0.15, 0.195))
    assert (found.mean, found.count) == pytest.approx((0.1, 10))


def test_what_is_beyond_the_last_bucket_is_taken_to_be_at_its_bound() -> None:
    text = GATEWAY.replace('task="chat",le="0.2"} 10', 'task="chat",le="0.2"} 4')

    found = series(text).distribution(TPOT, ["plain"])

    assert found is not None
    assert (found.p10, found.p99) == pytest.approx((0.125, 0.2))


def test_a_share_of_means_needs_both() -> None:
    assert series().share(TPOT, "turnout_tokens_per_step") == pytest.approx(0.15)
    assert series().share(TPOT, "turnout_request_duration_seconds") is None


def test_a_histogram_can_be_narrowed_to_labels() -> None:
    assert series().distribution(TPOT, task=["chat"]) == series().distribution(TPOT, ["plain"])
    assert series().distribution(TPOT, ["plain"], task=["code"]) is None


def test_a_histogram_by_label_has_all_under_the_empty_name() -> None:
    found = series().by_label(TPOT, "task", ["spec", "plain"])

    assert {name: each.count for name, each in found.items()} == {"code": 10, "chat": 10, "": 20}


def test_no_request_has_less_than_a_token_per_step() -> None:
    """The first bucket ends at 1; interpolated from 0 it would hold steps that never were."""
    found = series().distribution("turnout_tokens_per_step")

    assert found is not None
    assert (found.p10, found.p90) == (1.0, 1.0)


def test_speed_ups_keep_their_pools_apart() -> None:
    text = GATEWAY + "".join(
        f'turnout_causal_speed_up_ratio{{pool="spec",than="{than}",task="code",'
        f'temperature="T<=0.2",bound="{bound}"}} {value}\n'
        for than, values in (("plain", (1.4, 1.1, 1.8)), ("other", (2.0, 1.9, 2.1)))
        for bound, value in zip(("mean", "low", "high"), values, strict=True)
    )

    assert series(text).speed_ups() == [
        SpeedUp(label="code@T<=0.2", ratio=1.4, low=1.1, high=1.8, pool="spec", than="plain"),
        SpeedUp(label="code@T<=0.2", ratio=2.0, low=1.9, high=2.1, pool="spec", than="other"),
    ]


def test_what_rises_is_counted_from_an_earlier_scrape_and_what_does_not_stays() -> None:
    later = GATEWAY.replace('ending="finished"} 4', 'ending="finished"} 9')
    later = later.replace('task="chat",le="0.2"} 10', 'task="chat",le="0.2"} 14')
    later = later.replace('task="chat",le="+Inf"} 10', 'task="chat",le="+Inf"} 14')
    later = later.replace('turnout_tpot_seconds_sum{pool="plain",task="chat"} 2.0',
                          'turnout_tpot_seconds_sum{pool="plain",task="chat"} 2.4')  # fmt: skip

    found = series(later).since(series(source="before"))

    assert found.source == "here since before"
    assert found.sums("turnout_requests_total") == {(): 5.0}
    assert found.sums("turnout_in_flight") == {(): 3.0}
    assert found.distribution(TPOT, ["spec"]) is None
    plain = found.distribution(TPOT, ["plain"])
    assert plain is not None
    assert (plain.mean, plain.count) == pytest.approx((0.1, 4))


def test_a_backend_that_was_started_again_counts_from_zero() -> None:
    later = GATEWAY.replace('backend="a"} 7', 'backend="a"} 2')

    assert series(later).since(series()).sums("turnout_backend_preemptions_total") == {(): 2.0}


@pytest.mark.parametrize("later", ['ending="finished"} 3', 'ending="failed"} 9'])
def test_a_gateway_that_was_started_again_can_not_be_counted_from_before(later: str) -> None:
    text = GATEWAY.replace('ending="finished"} 4', later)

    with pytest.raises(TuningError, match="leave --since out"):
        series(text).since(series(source="before"))


@pytest.mark.parametrize(
    "url", ["http://gateway:1", "http://gateway:1/", "http://gateway:1/metrics"]
)
def test_a_gateway_is_asked_by_its_url(url: str) -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, text=GATEWAY)

    text, address = scrape(url, transport=httpx.MockTransport(answer))

    assert (text, [address]) == (GATEWAY, seen)
    assert seen == ["http://gateway:1/metrics"]


def test_what_does_not_answer_is_named() -> None:
    down = httpx.MockTransport(lambda _: httpx.Response(503))

    with pytest.raises(TuningError, match=r"no answer from http://gateway:1/metrics: .*503"):
        scrape("http://gateway:1", transport=down)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("up 1\n", "is it a Turnout gateway"),
        ("", "is it a Turnout gateway"),
        ("{not metrics", "here is no Prometheus text"),
        ('turnout_requests_total{pool="sp', "here is no Prometheus text"),
        (GATEWAY.replace("eagle3", "oracle"), "'oracle' is not a valid Speculation"),
        (
            'turnout_causal_speed_up_ratio{pool="spec",than="plain",task="code",'
            'temperature="T<=0.2",bound="mean"} 1.4\n',
            "has a series without its 'low'; was it cut",
        ),
    ],
)
def test_what_is_no_gateways_is_refused(text: str, message: str) -> None:
    with pytest.raises(TuningError, match=message):
        series(text)
