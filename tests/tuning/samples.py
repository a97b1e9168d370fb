"""Samples and jobs in short."""

from typing import Any

from turnout.tuning.sample import Job, Sample


def job(kind: str = "echo", **fields: Any) -> Job:
    messages = ({"role": "user", "content": "Hello"},)
    return Job(kind=kind, true_task="chat", messages=messages, **fields)


def sample(**fields: Any) -> Sample:
    """A good answer, unless the fields say otherwise."""
    good: dict[str, Any] = {"sent_s": 0.0, "ended_s": 1.0, "begun": True, "complete": True}
    kind = fields.pop("kind", "echo")
    return Sample(job=job(kind), **(good | fields))
