"""The backends as the gateway knows them: pools, who is in them, and what their servers said."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from config.settings import ModelSettings, PoolSettings, Settings
from proxy.errors import NoBackend, NotServed
from routing.breaker import Circuit
from routing.pools import Backend, Pool, Speculation


@dataclass(slots=True, kw_only=True, eq=False)
class Member:
    """One vLLM server of a pool.

    Attributes:
        url: Base URL without a trailing slash.
        pool: The pool it belongs to.
        load: What a policy sees of it; `load.name` is `host:port`.
        up: Whether probes find it there.
        circuit: What its requests say of it.
        reached: Whether it has answered a probe since the gateway started.
        failures: Failed health checks in a row.
        models: Names it serves, adapters included.
        version: vLLM's version, or None.
        speculates: What its metrics say, or None while they have not been read.
        reports_acceptance: Whether its answers carry `metrics.speculative_decoding`; None until
            one was seen that could have.
        gauges: The last scrape, by short name (`running`, `waiting`, `kv_cache_usage`, ...).
        scraped_at: When that was (s, monotonic), or None.
    """

    url: str
    pool: Pool
    load: Backend
    up: bool = False
    circuit: Circuit = field(default_factory=Circuit)
    reached: bool = False
    failures: int = 0
    models: tuple[str, ...] = ()
    version: str | None = None
    speculates: bool | None = None
    reports_acceptance: bool | None = None
    gauges: Mapping[str, float] = field(default_factory=dict)
    scraped_at: float | None = None

    @property
    def name(self) -> str:
        """The backend's name, `host:port`."""
        return self.load.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model name resolved.

    Attributes:
        name: The name its servers know.
        requested: The name the client used; differs for an alias.
        pools: Every pool that serves it.
        default_temperature: Of a request that names none.
    """

    name: str
    requested: str
    pools: Sequence[Pool]
    default_temperature: float


class Fleet:
    """Every pool and backend, and which model names lead where.

    Args:
        settings: The config; pools whose model or kind it leaves out are filled in by
            `proxy.discovery`.
        api_keys: Pool name to the key its servers want, where they want one.
    """

    def __init__(self, settings: Settings, *, api_keys: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self.api_keys = dict(api_keys or {})
        self.members: dict[str, Member] = {}
        self.pools: list[Pool] = []
        for declared in settings.pools:
            pool = _pool(declared)
            self.pools.append(pool)
            for url in declared.backends:
                load = Backend(name=f"{url.host}:{url.port}", healthy=False)
                pool.backends.append(load)
                self.members[load.name] = Member(url=str(url).rstrip("/"), pool=pool, load=load)
        self._aliases = {alias: model.name for model in settings.models for alias in model.aliases}
        self._models = {model.name: model for model in settings.models}

    def declared(self, pool: Pool) -> PoolSettings:
        """Return what the config says of `pool`."""
        return next(p for p in self.settings.pools if p.name == pool.name)

    def members_of(self, pool: Pool) -> Iterator[Member]:
        """Yield the members of `pool`."""
        return (member for member in self.members.values() if member.pool is pool)

    def model_names(self) -> list[str]:
        """Return every name a client may use: models, adapters, aliases."""
        served = {name for member in self.members.values() for name in member.models}
        served |= {pool.model for pool in self.pools if pool.model}
        served |= {alias for alias, name in self._aliases.items() if name in served}
        return sorted(served)

    def resolve(self, requested: str) -> ServedModel:
        """Return the model that `requested` names.

        An empty name is the only model there is, as vLLM itself has it.

        Raises:
            NotServed: If no pool serves it, or it is empty and several models are served.
            NoBackend: If a pool that might serve it has not answered yet.
        """
        name = self._aliases.get(requested, requested)
        pools = [pool for pool in self.pools if self._serves(pool, name)]
        if name and pools:
            model = self._models.get(name) or ModelSettings(name=name)
            return ServedModel(
                name=name,
                requested=requested,
                pools=pools,
                default_temperature=model.default_temperature,
            )
        unknown = [pool.name for pool in self.pools if not pool.model]
        if unknown:
            msg = f"pool {unknown[0]!r} has not answered yet, so its model is not known"
            raise NoBackend(msg)
        models = {pool.model for pool in self.pools}
        if not name and len(models) == 1:
            return self.resolve(models.pop())
        names = ", ".join(self.model_names())
        if not name:
            msg = f"'model' is missing; it must be one of: {names}"
        else:
            msg = f"model {requested!r} is not served here; models: {names}"
        raise NotServed(msg, param="model")

    def _serves(self, pool: Pool, name: str) -> bool:
        return pool.model == name or any(name in m.models for m in self.members_of(pool))


def _pool(declared: PoolSettings) -> Pool:
    speculation = declared.speculation
    return Pool(
        name=declared.name,
        model=declared.model or "",
        speculation=Speculation.NONE if speculation == "auto" else speculation,
        k=declared.k or 0,
        max_num_seqs=declared.max_num_seqs,
        max_in_flight=declared.max_in_flight or 2 * declared.max_num_seqs,
    )
