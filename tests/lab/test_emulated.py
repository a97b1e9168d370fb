"""The emulated server beyond vLLM's shapes: determinism, limits, faults, shutdown, its clock."""

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.lab.emulated_servers import Emulated, emulated
from tests.running import eventually

CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": "Say something."}]}
BUSY = (
    "The engine is currently busy and cannot accept new requests. "
    "Please try again later or on a different instance."
)
TOOL = {
    "type": "function",
    "function": {
        "name": "couple",
        "parameters": {
            "type": "object",
            "properties": {"wagon": {"type": "integer"}, "side": {"enum": ["front", "rear"]}},
            "required": ["wagon", "side"],
        },
    },
}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30.0, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with emulated("--speculation", "ngram", "--time-scale", "inf", at=tmp_path_factory) as server:
        yield server.url


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two thousand tokens of this one take a minute."""
    with emulated("--max-num-queued-reqs", "2", at=tmp_path_factory) as server:
        yield server.url


def chat(client: httpx.Client, url: str, **fields: Any) -> httpx.Response:
    return client.post(f"{url}/v1/chat/completions", json=CHAT | fields)


@contextmanager
def endless(client: httpx.Client, url: str) -> Iterator[Iterator[str]]:
    """A stream that has begun, and does not end by itself in a test's time."""
    body = CHAT | {"stream": True, "max_tokens": 2000, "ignore_eos": True}
    with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        yield lines


@contextmanager
def fault(client: httpx.Client, url: str, **fields: Any) -> Iterator[None]:
    client.post(f"{url}/emulated/faults", json=fields).raise_for_status()
    try:
        yield
    finally:
        client.delete(f"{url}/emulated/faults").raise_for_status()


def test_the_same_seed_says_the_same_and_another_something_else(
    client: httpx.Client, fast: str
) -> None:
    texts = [
        chat(client, fast, seed=seed, max_tokens=30).json()["choices"][0]["message"]["content"]
        for seed in (1, 1, 2)
    ]

    assert texts[0] == texts[1] != texts[2]


def test_the_true_task_decides_how_much_is_accepted(client: httpx.Client, fast: str) -> None:
    def accepted(task: str) -> int:
        told = {"true_task": task, "output_tokens": 400}
        answers = [
            chat(client, fast, seed=seed, temperature=0, vllm_xargs=told) for seed in range(8)
        ]
        reports = [a.json()["metrics"]["speculative_decoding"] for a in answers]
        return sum(report["num_accepted_draft_tokens"] for report in reports)

    assert accepted("code_edit") > 3 * accepted("qa")


def test_a_schedule_limits_the_drafts_of_a_step(
    client: httpx.Client, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arguments = ("--speculation", "ngram", "--schedule", "1:2,16:0", "--time-scale", "inf")
    told = {"true_task": "extraction", "acceptance": 0.9}

    with emulated(*arguments, at=tmp_path_factory) as server:
        answer = chat(client, server.url, vllm_xargs=told, max_tokens=100, ignore_eos=True)

    found = answer.json()["metrics"]["speculative_decoding"]
    assert found["num_spec_steps"] > 0
    assert found["num_draft_tokens"] == 2 * found["num_spec_steps"]
    assert found["acceptance_histogram"][2] > 0
    assert sum(found["acceptance_histogram"][3:]) == 0


def test_a_required_tool_is_called_with_arguments_that_fit(
    client: httpx.Client, fast: str
) -> None:
    answer = chat(client, fast, tools=[TOOL], tool_choice="required").json()["choices"][0]

    function = answer["message"]["tool_calls"][0]["function"]
    arguments = json.loads(function["arguments"])
    assert function["name"] == "couple"
    assert isinstance(arguments["wagon"], int)
    assert arguments["side"] in ("front", "rear")
    assert answer["finish_reason"] == "tool_calls"


def test_a_streamed_tool_call_joins_to_the_same_arguments(client: httpx.Client, fast: str) -> None:
    fields = {"tools": [TOOL], "tool_choice": "required", "seed": 4}

    whole = chat(client, fast, **fields).json()["choices"][0]["message"]["tool_calls"][0]
    streamed = chat(client, fast, stream=True, **fields).text

    deltas = [
        json.loads(line[6:]) for line in streamed.split("\n\n") if line.startswith("data: {")
    ]
    calls = [c for d in deltas for c in d["choices"][0]["delta"].get("tool_calls", [])]
    joined = "".join(c["function"].get("arguments", "") for c in calls)
    assert joined == whole["function"]["arguments"]
    assert calls[0]["function"]["name"] == "couple"


def test_a_json_schema_is_answered_with_json_that_has_its_keys(
    client: httpx.Client, fast: str
) -> None:
    schema = TOOL["function"]["parameters"]  # type: ignore[index]  # a nested literal
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}

    answer = chat(client, fast, response_format=form).json()["choices"][0]["message"]["content"]

    assert set(json.loads(answer)) == {"wagon", "side"}


def test_a_capped_queue_answers_503_before_any_stream_begins(
    client: httpx.Client, slow: str
) -> None:
    with endless(client, slow), endless(client, slow):
        refused = [chat(client, slow, stream=stream) for stream in (False, True)]
        state = client.get(f"{slow}/emulated/state").json()
        metrics = client.get(f"{slow}/metrics").text

    error = {"message": BUSY, "type": "Service Unavailable", "param": None, "code": 503}
    assert [(r.status_code, r.json()) for r in refused] == [(503, {"error": error})] * 2
    assert state["running"] == 2
    assert 'admission_rejections_total{model_name="smollm2",reason="max_num_queued_reqs"} 2.0' in (
        metrics
    )


def test_a_client_that_leaves_an_unstreamed_answer_frees_its_place(
    client: httpx.Client, slow: str
) -> None:
    with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=0.5, trust_env=False) as hasty:
        chat(hasty, slow, max_tokens=2000, ignore_eos=True)

    eventually(
        lambda: client.get(f"{slow}/emulated/state").json()["running"] == 0,
        within_s=20,
        what="no request runs",
    )


def test_a_background_response_can_be_cancelled(client: httpx.Client, slow: str) -> None:
    url = f"{slow}/v1/responses"
    body = {"input": "Go on.", "background": True, "max_output_tokens": 2000, "ignore_eos": True}

    queued = client.post(url, json=body).json()
    cancelled = client.post(f"{url}/{queued['id']}/cancel").json()

    assert (queued["status"], cancelled["status"]) == ("queued", "cancelled")
    assert client.get(f"{url}/{queued['id']}").json()["status"] == "cancelled"
    assert client.get(f"{slow}/emulated/state").json()["running"] == 0


def test_a_status_fault_hits_as_many_requests_as_asked(client: httpx.Client, fast: str) -> None:
    with fault(client, fast, fault="status", status=502, count=2):
        statuses = [chat(client, fast, max_tokens=2).status_code for _ in range(3)]

    assert statuses == [502, 502, 200]


@pytest.mark.parametrize("after_chunks", [0, 2])
def test_a_reset_fault_drops_the_connection(
    client: httpx.Client, fast: str, after_chunks: int
) -> None:
    with (
        fault(client, fast, fault="reset", after_chunks=after_chunks),
        pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)),
    ):
        chat(client, fast, stream=True)


def test_a_half_stream_ends_in_the_middle_of_an_event(client: httpx.Client, fast: str) -> None:
    with fault(client, fast, fault="half_stream", after_chunks=1):
        text = chat(client, fast, stream=True).text

    whole, half = text.split("\n\n")
    assert json.loads(whole[6:])["choices"][0]["delta"]["role"] == "assistant"
    with pytest.raises(json.JSONDecodeError):
        json.loads(half[6:])


def test_garbage_is_as_long_as_the_answer_and_no_json(client: httpx.Client, fast: str) -> None:
    with fault(client, fast, fault="garbage"):
        answer = chat(client, fast)

    assert answer.status_code == 200
    with pytest.raises(ValueError, match=r"decode|Expecting"):
        answer.json()


def test_a_stall_lasts_until_it_is_cleared(client: httpx.Client, fast: str) -> None:
    with ThreadPoolExecutor(1) as thread:
        with fault(client, fast, fault="stall"):
            waiting = thread.submit(chat, client, fast, max_tokens=2)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)

        assert waiting.result(timeout=60).status_code == 200


def test_a_frozen_engine_answers_probes_and_does_nothing_until_it_is_cleared(
    client: httpx.Client, fast: str
) -> None:
    def counted() -> list[str]:
        text = client.get(f"{fast}/metrics").text
        return [line for line in text.splitlines() if line.startswith("vllm:generation_tokens")]

    with ThreadPoolExecutor(1) as thread:
        with fault(client, fast, fault="freeze"):
            before = counted()
            waiting = thread.submit(chat, client, fast, max_tokens=2)
            with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=0.3) as hasty:
                chat(hasty, fast, max_tokens=2)

            assert client.get(f"{fast}/health").status_code == 200
            assert counted() == before
            assert client.get(f"{fast}/emulated/state").json()["waiting"] == 2  # nobody leaves

        assert waiting.result(timeout=10).status_code == 200
        assert counted() != before


def test_a_slow_fault_delays_every_chunk(client: httpx.Client, fast: str) -> None:
    with fault(client, fast, fault="slow", delay_s=0.1):
        answer = chat(client, fast, max_tokens=3, ignore_eos=True, stream=True)

    assert answer.elapsed.total_seconds() > 0.3


@pytest.mark.parametrize("after_chunks", [0, 3])
def test_an_abort_fault_ends_the_answer_as_a_dying_engine_does(
    client: httpx.Client, slow: str, after_chunks: int
) -> None:
    with fault(client, slow, fault="abort", after_chunks=after_chunks):
        answer = chat(client, slow, max_tokens=2000, ignore_eos=True)

    assert answer.status_code == 200
    assert answer.json()["choices"][0]["finish_reason"] == "abort"
    assert answer.json()["usage"]["completion_tokens"] == after_chunks


@pytest.fixture
def mortal(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Emulated]:
    with emulated(*request.param, at=tmp_path_factory) as server:
        yield server


@pytest.mark.parametrize("mortal", [()], indirect=True)
def test_sigterm_aborts_what_runs_with_status_200(client: httpx.Client, mortal: Emulated) -> None:
    with endless(client, mortal.url) as lines:
        mortal.process.send_signal(signal.SIGTERM)
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    assert events[-1]["choices"][0]["finish_reason"] == "abort"
    assert mortal.process.wait(timeout=60) == 0


@pytest.mark.parametrize("mortal", [("--shutdown-timeout", "60")], indirect=True)
def test_a_draining_server_aborts_what_is_new_and_finishes_what_runs(
    client: httpx.Client, mortal: Emulated
) -> None:
    body = CHAT | {"stream": True, "max_tokens": 80, "ignore_eos": True}
    with client.stream("POST", f"{mortal.url}/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        mortal.process.send_signal(signal.SIGTERM)
        state = f"{mortal.url}/emulated/state"
        eventually(lambda: client.get(state).json()["draining"], within_s=60, what="it drains")
        late = chat(client, mortal.url).json()
        healthy = client.get(f"{mortal.url}/health").status_code
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    assert late["choices"][0]["finish_reason"] == "abort"
    assert late["usage"]["completion_tokens"] == 0
    assert healthy == 200
    assert events[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "mortal", [("--shutdown-timeout", "2", "--shutdown-answer", "error")], indirect=True
)
def test_a_server_told_to_dies_with_errors_as_vllm_on_a_cpu_does(
    client: httpx.Client, mortal: Emulated
) -> None:
    with endless(client, mortal.url) as lines:
        mortal.process.send_signal(signal.SIGTERM)
        state = f"{mortal.url}/emulated/state"
        eventually(lambda: client.get(state).json()["draining"], within_s=60, what="it drains")
        late = chat(client, mortal.url)
        *_, last, done = [line for line in lines if line]

    assert late.status_code == 500
    assert json.loads(last[6:])["error"]["code"] == 500
    assert done == "data: [DONE]"


@pytest.mark.parametrize("mortal", [("--time-scale", "100000")], indirect=True)
def test_a_server_that_cannot_keep_its_own_time_says_so(
    client: httpx.Client, mortal: Emulated
) -> None:
    with endless(client, mortal.url):
        behind_s = eventually(
            lambda: client.get(f"{mortal.url}/emulated/state").json()["behind_s"],
            within_s=60,
            what="it falls behind",
        )

    assert behind_s > 0
    assert "emulated_behind_seconds" in client.get(f"{mortal.url}/metrics").text
