"""A coverage-guided fuzzer on everything that reads bytes from outside.

`python -m tests.chaos.fuzz body` or `... stream`, with libFuzzer's own options after it.
"""

import sys

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["proxy", "routing"]):
    from proxy.dialects import DIALECTS, read_json
    from proxy.errors import InvalidRequest
    from proxy.parsing import parse, with_model, with_usage
    from proxy.sse import EventSplitter, payload
    from routing.features import Route, extract
    from routing.tasks import classify


def body(data: bytes) -> None:
    """Read a request as the pipeline does: an error names what is wrong, or it can be decided."""
    try:
        request = parse(data)
        for route in (Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.MESSAGES):
            classify(extract(route, request.body))
        if "model" in request.body:
            assert parse(with_model(data, "other")).model == "other"
        if request.body and request.options is not None:
            asked = with_usage(request, data, continuous=True)
            assert parse(asked).wants_continuous_usage
    except InvalidRequest as error:
        assert error.message  # noqa: PT017 - no pytest here
        error.body()


def stream(data: bytes) -> None:
    """Read an answer as the relay does, in pieces of any size: nothing is lost, nothing raised."""
    provider, splitter, seen = atheris.FuzzedDataProvider(data), EventSplitter(), []
    sent = b""
    while provider.remaining_bytes():
        piece = provider.ConsumeBytes(provider.ConsumeIntInRange(1, 40))
        sent += piece
        seen += splitter.feed(piece)
    assert b"".join(seen) + splitter.rest == sent
    for raw in seen:
        read = read_json(payload(raw))
        for dialect in DIALECTS.values():
            dialect.is_prelude(read)
            dialect.has_tokens(raw)
            dialect.is_end(raw)
            dialect.aborted(read)
            dialect.cut_short(read)
            dialect.failed(raw)
            dialect.usage(read)
            dialect.response_id(read)


if __name__ == "__main__":
    target = {"body": body, "stream": stream}[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
