"""Bodies and headers that nobody should send: none of them is an error of the gateway's making."""

import json
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.chaos.world import MODEL, World

pytestmark = pytest.mark.chaos

EXAMPLES = 8 * settings().max_examples
JSON = b"content-type: application/json"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=40),
    st.sampled_from(["1e999", "\ud800", "\x00", "{", "data: [DONE]\n\n", "🚂" * 20]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
members = st.sampled_from(
    [*CHAT, "temperature", "stream", "stream_options", "n", "tools", "response_format", "prompt",
     "input", "logprobs", "min_p", "logit_bias", "seed", "stop", "top_p", "user", "x", ""]
)  # fmt: skip
messages = st.lists(
    st.fixed_dictionaries({}, optional={"role": scalars, "content": values, "tool_calls": values})
    | values,
    max_size=4,
)
chats = st.builds(
    lambda changed, told: {**CHAT, **changed, **told},
    st.dictionaries(members, values, max_size=4),
    st.fixed_dictionaries({}, optional={"messages": messages}),
)
texts = st.one_of(
    chats.map(lambda chat: json.dumps(chat).encode()),
    st.tuples(chats, values).map(  # a member twice, and what follows the end
        lambda both: b"%b%b" % (json.dumps(both[0]).encode()[:-1] + b',"model":"x"}', b" " * 3)
    ),
    st.tuples(st.integers(1, 3000), st.sampled_from(["[", '{"a":'])).map(
        lambda deep: (deep[1] * deep[0]).encode()
    ),
    st.tuples(chats, st.integers(0, 400)).map(lambda cut: json.dumps(cut[0]).encode()[: cut[1]]),
    st.binary(max_size=200),
)
"""Bodies: chats with wrong members, members twice, nesting, halves, noise."""

names = st.sampled_from(
    [b"x-turnout-pool", b"x-turnout-task", b"authorization", b"content-type", b"x-request-id",
     b"accept-encoding", b"accept", b"cookie", b"te", b"trailer", b"connection", b"upgrade",
     b"expect", b"via", b"forwarded", b"x-forwarded-for", b"host", b"range", b"traceparent"]
) | st.binary(min_size=1, max_size=12)  # fmt: skip
fields = st.lists(
    st.tuples(names, st.binary(max_size=60) | st.just(b"a" * 9000)).filter(
        lambda field: (
            not set(b"\r\n") & set(field[0] + field[1])
            and field[0].lower() not in (b"content-length", b"transfer-encoding")
        )
    ),
    max_size=5,
)
paths = st.sampled_from(
    [b"/v1/chat/completions"] * 3
    + [b"/v1/completions", b"/v1/responses", b"/v1/messages", b"/tokenize", b"/explain"]
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, three_ports: list[int]) -> Iterator[World]:
    engine = ("--time-scale", "100")
    with World(tmp_path_factory.mktemp("hostile"), three_ports, engine=engine) as found:
        yield found


def answer(port: int, request: bytes) -> bytes:
    """Return what comes back on a connection of its own; it may be closed without an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        try:
            client.sendall(request)
            parts = [client.recv(2**16)]
            while parts[-1]:
                parts.append(client.recv(2**16))
        except ConnectionError:
            return b""
    return b"".join(parts)


def test_no_body_and_no_header_is_an_error_of_our_own(world: World) -> None:
    port, seen = int(world.url.rpartition(":")[2]), Counter[bytes]()

    @given(path=paths, extra=fields, body=texts)
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    def is_answered(path: bytes, extra: list[tuple[bytes, bytes]], body: bytes) -> None:
        lines = [b"POST %b HTTP/1.1" % path, b"host: x", b"connection: close"]
        lines += [JSON, b"content-length: %d" % len(body), *(b"%b: %b" % field for field in extra)]
        head, _, told = answer(port, b"\r\n".join([*lines, b"", body])).partition(b"\r\n\r\n")
        status = head[9:12]
        seen[status] += 1
        assert status < b"500", (head, told)

    before = world.open_files
    is_answered()

    log = world.log
    print(f"{seen.total()} hostile requests: {dict(seen)}")
    assert seen.total() >= EXAMPLES
    assert seen[b"200"] > EXAMPLES / 50  # some of them are good
    assert "Traceback" not in log
    assert "met a defect" not in log
    assert world.figure("turnout_in_flight") == 0.0
    assert world.open_files <= before + 8


def test_what_comes_last_is_served(world: World) -> None:
    """A good request after all of those."""
    body: dict[str, Any] = CHAT
    sent = json.dumps(body).encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n%b\r\n" % JSON
    )
    told = answer(
        int(world.url.rpartition(":")[2]),
        request + b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(sent), sent),
    )
    assert told.startswith(b"HTTP/1.1 200")
