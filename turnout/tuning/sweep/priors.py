"""What a sweep teaches a gateway before its first request: the same as traffic would."""

from collections.abc import Sequence
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
from turnout.tuning.sample import Job
from turnout.tuning.sweep.measuring import SPEC, Trial
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


def learn(trials: Sequence[Trial], spec: Pool, plain: Pool) -> Learner:
    """Return what a gateway would have learnt of these requests, one at a time on each pool.

    Which of the two served one was no matter of what it asked, so each counts as chance-assigned.
    How much is asked for is not learnt: a sweep is no traffic.
    """
    learner = Learner()
    for trial in trials:
        sample, pool = trial.sample, spec if trial.pool == SPEC else plain
        if sample.outcome != "ok" or sample.tokens is None:
            continue
        (backend,) = pool.backends
        learner.observe(
            Outcome(
                pool=pool,
                traffic_class=class_of(sample.job, pool.model),
                tokens=sample.tokens,
                accepted=trial.accepted,
                drafted=trial.drafted or 0,
                ttft_s=sample.ttft_s,
                tpot_s=sample.tpot_s,
                backend=backend,
                in_flight=1,
                randomised=True,
            ),
            now=sample.ended_s,
        )
        for gap_s in sample.gaps_s or ():
            learner.stepped(pool, backend, gap_s, in_flight=1, now=sample.ended_s)
    return learner


def write_priors(
    folder: Path, trials: Sequence[Trial], spec: Target, plain: Target, *, config: bool
) -> list[Path]:
    """Write what the sweep teaches, and a gateway's config that starts from it; return the files.

    Args:
        folder: Where; it is there.
        trials: The sweep's requests; one at least.
        spec: The server that speculates.
        plain: The one that does not.
        config: Whether a config is to be written: there is none yet.
    """
    pools = pool_of(spec), pool_of(plain)
    now = max(trial.sample.ended_s for trial in trials)
    learnt = folder / LEARNT
    write_learnt(learnt, learn(trials, *pools), pools, now=now)
    if not config:
        return [learnt]
    declared = {
        "auth": {"open": True},
        "policy": "adaptive",
        "pools": [
            {
                "name": target.name,
                "backends": [target.url],
                "model": target.model,
                "speculation": pool.speculation.value,
                **({"k": pool.k} if pool.speculates and pool.k else {}),
                "max_num_seqs": pool.max_num_seqs,
            }
            for target, pool in zip((spec, plain), pools, strict=True)
        ],
        "learning": {"state_file": str(learnt.resolve())},
    }
    written = folder / CONFIG
    written.write_text(yaml.safe_dump(declared, sort_keys=False), encoding="utf-8")
    return [learnt, written]
