"""The pure core: plain data in, a decision out.

Calls return at once; nothing here does I/O, reads a clock, or draws a random number. Time
arrives as `now` (seconds, monotonic), chance as `Draws` (floats in [0, 1)), load as `Pool` records
that the caller keeps current. The same code therefore runs in the gateway, in a simulator a
million requests at a time, and inside other proxies.

    parsed body -> features -> task and traffic class -> decision (pool, backend, reason)
"""
