"""The shell around `routing`: HTTP in, HTTP out, timers, sockets, metrics.

One request walks one straight line, in `pipeline`:

    receive -> admit -> parse -> features -> classify -> decide and pick -> forward -> relay
    -> observe

Bytes pass through unchanged unless a docstring says what is rewritten. Until the first byte of an
answer has gone to the client a failure moves to another backend; after it, never. The shell holds
no opinion about speculation: that is `routing`'s.
"""
