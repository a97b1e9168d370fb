"""The emulated server answers as a real vLLM does: the same assertions on both.

`vllm_shapes.json` was recorded from vLLM 0.32.0; a newer vLLM that answers differently fails the
`real` half, and `exchanges.py` says how to record it anew.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.exchanges import (
    CHAT,
    CLIENT,
    CONTINUOUS,
    EXCHANGES,
    RESPONSES,
    describe,
    send,
)
from tests.lab.emulated_servers import emulated
from tests.running import eventually

SHAPES = json.loads((Path(__file__).parent / "vllm_shapes.json").read_text())
CHAT_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Base URLs of a speculating (n-gram, k = 5) and a plain server."""

    spec: str
    plain: str


@pytest.fixture(scope="module")
def emulated_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with ExitStack() as servers:
        spec = emulated("--speculation", "ngram", "--time-scale", "20", at=tmp_path_factory)
        plain = emulated("--time-scale", "20", at=tmp_path_factory)
        yield Pair(spec=servers.enter_context(spec).url, plain=servers.enter_context(plain).url)


@pytest.fixture(params=["emulated", pytest.param("real", marks=pytest.mark.integration)])
def servers(request: pytest.FixtureRequest) -> Pair:
    if request.param == "emulated":
        pair: Pair = request.getfixturevalue("emulated_pair")
        return pair
    spec, plain = (request.getfixturevalue(f"real_{name}") for name in ("spec", "plain"))
    return Pair(spec=spec.url, plain=plain.url)


def test_every_exchange_was_recorded() -> None:
    assert set(SHAPES) == set(EXCHANGES)


@pytest.mark.parametrize("name", EXCHANGES)
def test_an_answer_has_the_recorded_status_shape_and_error(servers: Pair, name: str) -> None:
    exchange = EXCHANGES[name]

    answer = send(getattr(servers, exchange.pool), exchange)

    assert describe(answer) == SHAPES[name]


def test_a_speculating_server_puts_several_tokens_in_a_chunk(servers: Pair) -> None:
    used = [e["usage"]["completion_tokens"] for e in stream(servers.spec, {"max_tokens": 40})[:-1]]

    steps = [after - before for before, after in pairwise(used)]
    assert used == sorted(used)
    assert max(steps) > 1


def test_usage_adds_up_and_the_last_chunk_repeats_it(servers: Pair) -> None:
    events = stream(servers.spec, {"max_tokens": 12})

    *chunks, last = events
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == sum(
        last["usage"][f"{part}_tokens"] for part in ("prompt", "completion")
    )
    assert chunks[-1]["usage"]["completion_tokens"] == last["usage"]["completion_tokens"] == 12


def test_the_first_chat_chunk_carries_the_role_and_no_text(servers: Pair) -> None:
    first = stream(servers.plain, {"max_tokens": 2})[0]

    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["usage"]["completion_tokens"] == 0


def test_counters_grow_by_what_the_answer_reports(servers: Pair) -> None:
    before = counters(servers.spec)

    answer = CLIENT.post(
        servers.spec + CHAT_PATH, json=CHAT | {"max_tokens": 40}, timeout=120
    ).json()

    report = answer["metrics"]["speculative_decoding"]
    assert report["num_accepted_draft_tokens"] == sum(
        accepted * steps for accepted, steps in enumerate(report["acceptance_histogram"])
    )
    expected = {
        "vllm:generation_tokens_total": answer["usage"]["completion_tokens"],
        "vllm:prompt_tokens_total": answer["usage"]["prompt_tokens"],
        "vllm:spec_decode_num_drafts_total": report["num_spec_steps"],
        "vllm:spec_decode_num_draft_tokens_total": report["num_draft_tokens"],
        "vllm:spec_decode_num_accepted_tokens_total": report["num_accepted_draft_tokens"],
        "vllm:spec_decode_num_accepted_tokens_per_pos_total": report["num_accepted_draft_tokens"],
        "vllm:request_success_total": 1,
        "vllm:time_to_first_token_seconds_count": 1,
        "vllm:request_time_per_output_token_seconds_count": 1,
    }
    eventually(
        lambda: growth(before, counters(servers.spec), expected) == expected,
        within_s=60,
        what=f"the counters grow by {expected}",
    )


def test_a_request_id_is_kept_and_one_is_made_where_there_is_none(servers: Pair) -> None:
    body = CHAT | {"max_tokens": 1}

    named = CLIENT.post(servers.plain + CHAT_PATH, json=body, headers={"x-request-id": "abc"})
    unnamed = CLIENT.post(servers.plain + CHAT_PATH, json=body)

    assert named.headers["x-request-id"] == "abc"
    assert named.json()["id"] == "chatcmpl-abc"
    assert unnamed.headers["x-request-id"]
    assert unnamed.json()["id"].startswith("chatcmpl-")


def test_a_client_that_leaves_frees_its_place_in_the_engine(servers: Pair) -> None:
    body = CHAT | {"stream": True, "max_tokens": 1900, "ignore_eos": True}

    with CLIENT.stream("POST", servers.plain + CHAT_PATH, json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert counters(servers.plain)["vllm:num_requests_running"] == 1

    eventually(
        lambda: counters(servers.plain)["vllm:num_requests_running"] == 0,
        within_s=20,
        what="no request runs",
    )


def test_a_response_can_be_read_again_and_continued(servers: Pair) -> None:
    url = f"{servers.plain}/v1/responses"

    made = CLIENT.post(url, json=RESPONSES).json()
    read = CLIENT.get(f"{url}/{made['id']}").json()
    following = RESPONSES | {"previous_response_id": made["id"], "input": "And again."}
    followed = CLIENT.post(url, json=following).json()
    cancelled = CLIENT.post(f"{url}/{made['id']}/cancel")

    assert read == made
    assert followed["previous_response_id"] == made["id"]
    assert followed["usage"]["input_tokens"] > made["usage"]["input_tokens"]
    assert cancelled.status_code == 400


def test_tokens_turn_back_into_their_text(servers: Pair) -> None:
    text = "Zürich, 12 rails & 3 turnouts"

    tokens = CLIENT.post(
        f"{servers.plain}/tokenize", json={"prompt": text, "add_special_tokens": False}
    ).json()
    back = CLIENT.post(f"{servers.plain}/detokenize", json={"tokens": tokens["tokens"]}).json()

    assert tokens["count"] == len(tokens["tokens"])
    assert back == {"prompt": text}


def stream(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the events of a chat stream with continuous usage, without the closing [DONE]."""
    body = CHAT | CONTINUOUS | {"ignore_eos": True} | body
    with CLIENT.stream("POST", url + CHAT_PATH, json=body) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def counters(url: str) -> dict[str, float]:
    """Return each sample's sum over its labels."""
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(CLIENT.get(f"{url}/metrics").text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


def growth(
    before: dict[str, float], after: dict[str, float], names: dict[str, Any]
) -> dict[str, float]:
    return {name: after[name] - before[name] for name in names}
