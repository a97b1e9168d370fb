"""What a valid config amounts to: its pools, what binds, and what its author may not intend."""

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address

from config.settings import PoolSettings, Settings, ThresholdSettings
from routing.pools import Speculation

_MARKS = ("in_flight", "qps", "kv_usage")


def summary(settings: Settings) -> Iterator[str]:
    """Yield lines that say what the gateway would do."""
    listen = settings.listen
    scheme = "http" if listen.tls is None else "https"
    yield f"listens on {scheme}://{listen.host}:{listen.port}, policy {settings.policy}"
    yield f"serves {_clients(settings)}"
    if settings.cors.origins:
        yield f"web pages of {', '.join(settings.cors.origins)} may use it"
    if settings.admin is not None:
        yield f"admin API on {settings.admin.host}:{settings.admin.port}"
    yield "pools:"
    width = max(len(pool.name) for pool in settings.pools)
    for pool in settings.pools:
        yield f"  {pool.name:<{width}}  {_pool(pool)}"
    thresholds = settings.thresholds
    written = list(_rules(thresholds, written=True))
    yield "binds every policy, as it is written:"
    yield from written or ["  nothing"]
    if settings.policy == "threshold":
        yield "binds policy threshold, as shipped:"
    elif settings.policy == "adaptive":
        yield "binds policy adaptive until it has measured its pools, as shipped:"
    else:
        yield f"shipped for policy threshold, does not bind {settings.policy}:"
    yield from _rules(thresholds, written=False)


def _clients(settings: Settings) -> str:
    keys = settings.auth.keys
    return f"holders of a key: {', '.join(key.name for key in keys)}" if keys else "everybody"


def warnings(settings: Settings) -> Iterator[str]:
    """Yield what is allowed but probably not meant."""
    if settings.auth.open and not _is_loopback(settings.listen.host):
        yield (
            f"everybody who reaches {settings.listen.host}:{settings.listen.port} may use it: "
            "auth.open is true and the address is not of this machine alone"
        )
    if settings.auth.open and "*" in settings.cors.origins:
        yield (
            "every web page that somebody who reaches the gateway opens may use it: cors.origins "
            "has '*' and auth.open is true"
        )
    for pool in settings.pools:
        if pool.speculation is Speculation.NONE and pool.k is not None:
            yield f"pool {pool.name!r} does not speculate, so its k ({pool.k}) has no effect"
        yield from _late_marks(settings, pool)
    for model, pools in _by_model(settings.pools).items():
        yield from _one_kind(settings.thresholds, model, pools)
    yield from _idle_aliases(settings)


def _pool(pool: PoolSettings) -> str:
    k = f" k={pool.k}" if pool.k and pool.speculation is not Speculation.NONE else ""
    kind = "kind asked from the servers" if pool.speculation == "auto" else str(pool.speculation)
    model = pool.model or "model asked from the servers"
    backends = ", ".join(str(url).rstrip("/") for url in pool.backends)
    if pool.backends_file is not None:
        backends += f"{', ' * bool(backends)}those in {pool.backends_file}"
    return f"{kind}{k}; {model}; at most {pool.max_num_seqs} running each; {backends}"


def _rules(thresholds: ThresholdSettings, *, written: bool) -> Iterator[str]:
    """Yield the rules that the user wrote, or the others, each with its value."""
    knobs = thresholds.thresholds()
    for name in type(thresholds).model_fields:
        if (name in thresholds.model_fields_set) is not written:
            continue
        value = getattr(
            knobs if name in _MARKS or name == "cool_temperature" else thresholds, name
        )
        if name in _MARKS:
            yield f"  {name}: " + ("off" if value is None else f"{value.high:g} / {value.low:g}")
        elif name == "tasks":
            table = [f"{m}.{t}: {rule}" for m, row in value.items() for t, rule in row.items()]
            yield f"  tasks: {', '.join(table) or 'a verdict per speculation method and task'}"
        else:
            yield f"  {name}: {value:g}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _late_marks(settings: Settings, pool: PoolSettings) -> Iterator[str]:
    thresholds = settings.thresholds
    binds = settings.policy == "threshold" or "in_flight" in thresholds.model_fields_set
    high = thresholds.in_flight.high
    if binds and high is not None and _speculates(pool) is not False and high > pool.max_num_seqs:
        yield (
            f"thresholds.in_flight.high ({high:g}) is above max_num_seqs ({pool.max_num_seqs}) "
            f"of pool {pool.name!r}: its servers queue before any request moves"
        )


def _speculates(pool: PoolSettings) -> bool | None:
    """Return whether the pool speculates; None when only its servers know."""
    return None if pool.speculation == "auto" else pool.speculation is not Speculation.NONE


def _by_model(pools: Sequence[PoolSettings]) -> Mapping[str | None, list[PoolSettings]]:
    """Group pools that may serve one model; one of unknown model may serve any."""
    named = {pool.model for pool in pools if pool.model}
    models: set[str | None] = {*named} if named else {None}
    return {
        model: [pool for pool in pools if pool.model in (model, None)]
        for model in sorted(models, key=str)
    }


def _one_kind(
    thresholds: ThresholdSettings, model: str | None, pools: Sequence[PoolSettings]
) -> Iterator[str]:
    kinds = {_speculates(pool) for pool in pools}
    what = f"model {model!r}" if model else "the model"
    limits = sorted(thresholds.model_fields_set - {"dwell_s"})
    if kinds == {False}:
        yield f"{what} has only plain pools: no request will speculate"
    elif kinds == {True} or (kinds == {None} and len(pools) == 1):
        yield f"{what} has only one kind of pool, so there is nothing to choose"
        if limits:
            yield (
                f"{what} has no plain pool, so the limits written ({', '.join(limits)}) "
                "have nowhere to send a request"
            )


def _idle_aliases(settings: Settings) -> Iterator[str]:
    served = {pool.model for pool in settings.pools}
    if None in served:
        return
    for model in settings.models:
        if model.aliases and model.name not in served:
            yield f"model {model.name!r} has aliases, but no pool declares it"
