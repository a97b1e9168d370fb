"""The id of a request: in its log line, its answer, and what its backend gets."""

import os
import re

from proxy.credentials import Credentials
from proxy.downstream import Headers, first_of

_USABLE = re.compile("[!-~]{1,256}")
"""vLLM makes `chatcmpl-<id>` of it and may echo it: a long one would make the answer's head
unreadable, and no blank or byte beyond ASCII belongs into a line of a log."""
CLIENTS_OWN = b"x-client-request-id"
"""Where an id goes on that is none of these, as proxies make them: two joined, or quoted."""


def identify(headers: Headers, credentials: Credentials) -> str:
    """Return the first `x-request-id` among a request's fields, or one made in its place.

    One that can't be used goes on to the backend in a field of its own, which is added. One that
    shows a key is no id: it would stand in the log.
    """
    given = first_of(headers, b"x-request-id")
    if given:
        came = given.encode("latin-1")
        is_key = came in credentials.keys or credentials.shown_by(came)
        if _USABLE.fullmatch(given) and not is_key:
            return given
        headers.append((CLIENTS_OWN, came))
    return os.urandom(16).hex()
