"""The id of a request: in its log line, its answer, and what its backend gets."""

import os
import re

from proxy.downstream import Headers, first_of

_USABLE = re.compile("[!-~]{1,256}")
"""vLLM makes `chatcmpl-<id>` of it and may echo it: a long one would make the answer's head
unreadable, and no blank or byte beyond ASCII belongs into a line of a log."""
CLIENTS_OWN = b"x-client-request-id"
"""Where an id goes on that is none of these, as proxies make them: two joined, or quoted."""


def identify(headers: Headers) -> str:
    """Return the first `x-request-id` among a request's fields, or one made in its place.

    One that can't be used goes on to the backend in a field of its own, which is added.
    """
    given = first_of(headers, b"x-request-id")
    if given and _USABLE.fullmatch(given):
        return given
    if given:
        headers.append((CLIENTS_OWN, given.encode("latin-1")))
    return os.urandom(16).hex()
