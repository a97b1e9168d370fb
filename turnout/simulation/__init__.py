"""The engine model: what a vLLM server does with its time, as a pure step machine.

Nothing here sleeps, reads a clock or opens a socket. `Engine.step` says how long a step takes and
what comes out of it; whoever owns the engine decides what that time is: the emulated server waits
it out, the simulator adds it up. Chance comes from each request's own seed, so that the same
requests give the same steps.
"""
