"""Decision logs, read: each line as the request that the router was asked about."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

import orjson

from proxy.decisions import FEATURES, VERSION
from proxy.parsing import ROUTES
from routing.decision import Draws, Reason, RoutingRequest
from routing.features import RequestFeatures, Route
from routing.pools import Backend, Pool, Speculation
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass
from turnout.tuning.report import TuningError

FINISHED = "finished"
TRIED_BEFORE = frozenset({"a backend that failed it"})
"""Stands for what a request must not go to: such backends are not counted in its loads."""


class LoggedPool(NamedTuple):
    """A pool as a decision saw it; in flight and pending tokens are of all healthy backends."""

    name: str
    speculation: Speculation
    k: int
    max_num_seqs: int
    max_in_flight: float
    healthy: int
    in_flight: int
    pending_tokens: float
    kv_usage: float

    def pool(self, model: str) -> Pool:
        """Return it for the router, its load spread evenly over its backends."""
        up = max(1, self.healthy)
        each, over = divmod(self.in_flight, up)
        backends = [
            Backend(
                name=f"{self.name}/{number}",
                in_flight=each + (number < over),
                pending_tokens=self.pending_tokens / up,
                kv_usage=self.kv_usage,
                healthy=self.healthy > 0,
            )
            for number in range(up)
        ]
        return Pool(
            name=self.name,
            model=model,
            speculation=self.speculation,
            k=self.k,
            max_num_seqs=self.max_num_seqs,
            max_in_flight=self.max_in_flight,
            backends=backends,
        )


class Came(NamedTuple):
    """What came of a request, by the log's own names; times are seconds."""

    ending: str
    tokens: int | None
    accepted: int | None
    drafted: int | None
    prompt_tokens: int | None
    in_flight: int
    pending_tokens: float
    ttft_s: float | None
    tpot_s: float | None
    duration_s: float
    decided_after_s: float
    sent_after_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A request that was decided and has ended.

    Attributes:
        request_id: Its id.
        decided_at: When it was decided, seconds since 1970.
        ended_at: When it ended.
        model: Its model.
        request: As the router is asked.
        pools: Those it could go to.
        draws: Chance; None where nothing was left to decide.
        pool: The pool it had.
        backend: The backend there.
        policy: The policy that acted.
        reason: Why.
        probabilities: Chance of each pool; those left out had none.
        came: What came of it.
    """

    request_id: str
    decided_at: float
    ended_at: float
    model: str
    request: RoutingRequest
    pools: Sequence[LoggedPool]
    draws: Draws | None
    pool: str
    backend: str
    policy: str
    reason: Reason
    probabilities: Mapping[str, float]
    came: Came

    @property
    def label(self) -> str:
        """Its class; `other` where nothing is decoded."""
        return self.request.traffic_class.label if self.request.traffic_class else "other"


class Log(NamedTuple):
    """What was read.

    Attributes:
        lines: By the moment of the decision.
        notes: What was passed over.
    """

    lines: Sequence[Line]
    notes: Sequence[str]


def read_log(files: Sequence[Path], *, on_bytes: Callable[[int], object] = lambda _: None) -> Log:
    """Return the lines of `files`, in whatever order they are given.

    Args:
        files: Decision logs of one gateway, those of its workers and older ones too.
        on_bytes: Told of each line's length as it has been read.

    Raises:
        TuningError: If one can't be read, is no such log or of another version, or none has a
            line.
    """
    lines, notes = list[Line](), list[str]()
    for file in files:
        before = len(lines)
        try:
            with file.open("rb") as opened:
                for number, raw in enumerate(opened, start=1):
                    on_bytes(len(raw))
                    if raw.endswith(b"\n") or _is_whole(raw):
                        lines.append(_line(raw, f"{file}:{number}"))
                    else:
                        notes.append(f"{file}:{number} is half written, as the last of its file.")
        except OSError as error:
            raise TuningError(
                f"{file} can't be read: {error.strerror}; name what the gateway writes to "
                "observation.decision_log.file"
            ) from None
        if len(lines) == before:
            notes.append(f"{file} has no line.")
    if not lines:
        names = ", ".join(map(str, files))
        raise TuningError(
            f"there is no whole line in {names}; has the gateway served a request since "
            "observation.decision_log was set?"
        )
    return Log(sorted(lines, key=lambda line: line.decided_at), notes)


def _is_whole(raw: bytes) -> bool:
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    return True


def _line(raw: bytes, where: str) -> Line:
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise TuningError(
            f"{where} is not JSON ({error}); remove that line if it was cut while written"
        ) from None
    version = found.get("version") if isinstance(found, dict) else None
    if version is None:
        raise TuningError(
            f"{where} is not of a decision log; name what observation.decision_log.file names"
        )
    if version != VERSION:
        raise TuningError(
            f"{where} is of version {version!r} and this is for version {VERSION}; replay it "
            "with the turnout that wrote it"
        )
    try:
        return _read(found)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TuningError(
            f"{where} is not as this turnout writes it ({error!r}); was it edited?"
        ) from None


def _read(found: Mapping[str, Any]) -> Line:
    decision, came, draws = found["decision"], Came(**found["outcome"]), found["draws"]
    ended_at = datetime.fromisoformat(found["time"]).timestamp()
    return Line(
        request_id=found["request_id"],
        decided_at=ended_at - came.duration_s + came.decided_after_s,
        ended_at=ended_at,
        model=intern(found["model"]),
        request=_request(found),
        pools=tuple(_pool(name, each) for name, each in found["pools"].items()),
        draws=draws and Draws(**{**draws, "pools": tuple(draws["pools"])}),
        pool=intern(decision["pool"]),
        backend=intern(decision["backend"]),
        policy=intern(decision["policy"]),
        reason=Reason(decision["reason"]),
        probabilities=decision["probabilities"],
        came=came._replace(ending=intern(came.ending)),
    )


def _request(found: Mapping[str, Any]) -> RoutingRequest:
    features, named = found["features"], found["class"]
    known = {name: features[name] for name in FEATURES}
    return RoutingRequest(
        features=RequestFeatures(
            route=ROUTES.get(found["endpoint"], Route.OTHER),
            model=found["model"],
            user_text="",
            system_text="",
            **{**known, "unsupported": tuple(known["unsupported"])},
        ),
        traffic_class=named
        and TrafficClass(
            found["model"], TaskType(named["task"]), TemperatureBucket(named["temperature"])
        ),
        pin=features["pin"],
        excluded=TRIED_BEFORE if found["tried_before"] else frozenset(),
    )


def _pool(name: str, found: Mapping[str, Any]) -> LoggedPool:
    most = found["max_in_flight"]
    return LoggedPool(
        **{
            **found,
            "name": name,
            "speculation": Speculation(found["speculation"]),
            "max_in_flight": float("inf") if most is None else most,
            "in_flight": int(found["in_flight"]),
        }
    )
