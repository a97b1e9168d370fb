"""What measured requests teach a gateway before its first one: the same as traffic would."""

from pathlib import Path

import yaml

from config.backends import backend_name
from routing.decision import Outcome
from routing.features import Route, extract
from routing.learner import Learner
from routing.pools import Backend, Pool, Speculation
from routing.tasks import classify
from routing.traffic import TemperatureBucket, TrafficClass
from turnout.tuning.learnt import write_learnt
from turnout.tuning.sample import Job, Sample
from turnout.tuning.targets import Target

LEARNT, CONFIG = "learnt.json", "turnout.yaml"


def pool_of(target: Target) -> Pool:
    """Return the pool that a gateway would have of one server."""
    return Pool(
        name=target.name,
        model=target.model,
        speculation=target.speculation or Speculation.NONE,
        k=target.k,
        max_num_seqs=target.max_num_seqs,
        backends=[Backend(name=backend_name(target.url))],
    )


def class_of(job: Job, model: str) -> TrafficClass:
    """Return the class that a gateway would see a job in."""
    features = extract(Route.CHAT, {**job.body, "messages": list(job.messages)})
    bucket = TemperatureBucket.of(features.temperature)
    return TrafficClass(model, classify(features).task, bucket)


def teach(
    learner: Learner,
    pool: Pool,
    sample: Sample,
    *,
    in_flight: int,
    accepted: int | None = None,
    drafted: int | None = None,
) -> None:
    """Have a learner see a measured request as a gateway's own.

    What is learnt is what a class accepts, how long a step takes with so many in flight, and how
    long answers are. Not how much is asked for, nor what speculation gained: both are of the
    traffic, at its loads, and a measurement has loads of its own.

    Args:
        learner: Who learns; its clock is that of the samples.
        pool: Of one backend, where it was sent.
        sample: What came of it; nothing is learnt of a failed one.
        in_flight: Requests there meanwhile, itself included.
        accepted: Draft tokens accepted; the answer's own figure by default.
        drafted: Draft tokens proposed; likewise.
    """
    if sample.outcome != "ok" or sample.tokens is None:
        return
    (backend,) = pool.backends
    learner.observe(
        Outcome(
            pool=pool,
            traffic_class=class_of(sample.job, pool.model),
            tokens=sample.tokens,
            accepted=sample.accepted if accepted is None else accepted,
            drafted=(sample.drafted if drafted is None else drafted) or 0,
            ttft_s=sample.ttft_s,
            tpot_s=sample.tpot_s,
            backend=backend,
            in_flight=in_flight,
        ),
        now=sample.ended_s,
    )
    for gap_s in sample.gaps_s or ():
        if gap_s > 0.0:
            learner.stepped(pool, backend, gap_s, in_flight=in_flight, now=sample.ended_s)


def write_lesson(
    folder: Path, learner: Learner, spec: Target, plain: Target, *, now: float, config: bool
) -> str:
    """Write what was learnt, and a gateway's config that starts from it; say what is next.

    Args:
        folder: Where; it is there.
        learner: What was learnt.
        spec: The server that speculates.
        plain: The one that does not.
        now: Seconds, on the clock of what was learnt.
        config: Whether a config is to be written: there is none yet.
    """
    learnt = folder / LEARNT
    write_learnt(learnt, learner, (pool_of(spec), pool_of(plain)), now=now)
    if not config:
        return f"Learnt: {learnt}, for `learning.state_file` of the gateway's config"
    declared = {
        "auth": {"open": True},
        "policy": "adaptive",
        "pools": [_declared(spec), _declared(plain)],
        "learning": {"state_file": str(learnt.resolve())},
    }
    written = folder / CONFIG
    written.write_text(yaml.safe_dump(declared, sort_keys=False), encoding="utf-8")
    return f"Next: turnout serve --config {written}, which starts from {learnt}"


def _declared(target: Target) -> dict[str, object]:
    pool = pool_of(target)
    return {
        "name": target.name,
        "backends": [target.url],
        "model": target.model,
        "speculation": pool.speculation.value,
        **({"k": pool.k} if pool.speculates and pool.k else {}),
        "max_num_seqs": pool.max_num_seqs,
        **({"api_key_env": target.api_key_env} if target.api_key_env else {}),
    }
