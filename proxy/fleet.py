"""The backends as the gateway knows them: pools, who is in them, and what their servers said."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from config.backends import backend_name, is_name
from config.settings import ModelSettings, PoolSettings, Settings
from proxy.errors import NoBackend, NotServed
from proxy.shared import SharedCircuit, drop_backends, share_backend, share_pool
from proxy.team import Team
from routing.breaker import Circuit
from routing.pools import Backend, Pool, Speculation

_TEMPERATURE: float = ModelSettings.model_fields["default_temperature"].default


@dataclass(slots=True, kw_only=True, eq=False)
class Member:
    """One vLLM server of a pool.

    Attributes:
        url: Base URL without a trailing slash.
        pool: The pool it belongs to.
        load: What a policy sees of it; `load.name` is `host:port`.
        probed: Whether a first health check has told if it is there.
        up: Whether probes find it there.
        drained: Whether it is to get no new requests, by an operator's word.
        circuit: What its requests say of it.
        reached: Whether it has answered a probe since the gateway started.
        failures: Failed health checks in a row.
        models: Names it serves, adapters included.
        version: vLLM's version, or None.
        speculates: What its metrics say, or None while they have not been read.
        reports_acceptance: Whether its answers carry `metrics.speculative_decoding`; None until
            one was seen that could have.
        forces_usage: Whether it tells usage to who did not ask (`--enable-force-include-usage`);
            None until a stream has shown it.
        gauges: The last scrape, by short name (`running`, `waiting`, `kv_cache_usage`, ...).
        scraped_at: When that was (s, monotonic), or None.
    """

    url: str
    pool: Pool
    load: Backend
    probed: bool = False
    up: bool = False
    drained: bool = False
    circuit: Circuit = field(default_factory=Circuit)
    reached: bool = False
    failures: int = 0
    models: tuple[str, ...] = ()
    version: str | None = None
    speculates: bool | None = None
    reports_acceptance: bool | None = None
    forces_usage: bool | None = None
    gauges: Mapping[str, float] = field(default_factory=dict)
    scraped_at: float | None = None

    @property
    def name(self) -> str:
        """The backend's name, `host:port`."""
        return self.load.name


@dataclass(slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an update has made of the fleet.

    Attributes:
        added: Members that have come.
        removed: Members that have gone; their requests in flight finish.
        void: Pools that have gone, or whose servers are declared to be others: what was learnt of
            them holds no longer.
    """

    added: Sequence[Member] = ()
    removed: Sequence[Member] = ()
    void: Sequence[Pool] = ()


class Fleet:
    """Every pool and backend, and which model names lead where.

    Args:
        settings: The config; pools whose model or kind it leaves out are filled in by
            `proxy.discovery`.
        urls: Base URLs of the backends of each pool, by its name; those in the config by default.
        api_keys: Pool name to the key its servers want, where they want one.
        team: The workers that have them in common.

    Attributes:
        settings: As last updated.
        api_keys: As last updated.
        members: Every backend by its name.
        pools: Every pool, in the order of the config.
        version: Grows with every update.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        urls: Mapping[str, Sequence[str]] | None = None,
        api_keys: Mapping[str, str] | None = None,
        team: Team | None = None,
    ) -> None:
        self._team = None if team is None or team.alone else team
        self.members: dict[str, Member] = {}
        self.pools: list[Pool] = []
        self.version = 0
        self._declared: dict[str, PoolSettings] = {}
        if urls is None:
            urls = {p.name: [str(url).rstrip("/") for url in p.backends] for p in settings.pools}
        self.update(settings, urls=urls, api_keys=api_keys or {})

    def update(
        self,
        settings: Settings,
        *,
        urls: Mapping[str, Sequence[str]],
        api_keys: Mapping[str, str],
    ) -> Change:
        """Become what `settings` say; pools and members that stay are the same objects.

        A pool stays by its name, a member by its pool and URL. A backend that two pools hold is of
        the first. URLs with the name of many backends are passed over; they are to be resolved.

        Args:
            settings: The config.
            urls: Base URLs of the backends of each pool, by its name.
            api_keys: Pool name to the key its servers want, where they want one.
        """
        before, declared_before = self.members, self._declared
        known = {pool.name: pool for pool in self.pools}
        self.settings, self.api_keys = settings, dict(api_keys)
        self.version += 1
        self._aliases = {alias: model.name for model in settings.models for alias in model.aliases}
        self._temperatures = {each.name: each.default_temperature for each in settings.models}
        self._declared = {declared.name: declared for declared in settings.pools}
        self.members, self.pools = {}, []
        void = [pool for name, pool in known.items() if name not in self._declared]
        for name, declared in self._declared.items():
            pool = known.get(name)
            if pool is None:
                pool = _pool(declared)
                if self._team is not None:
                    share_pool(self._team, pool)
            elif _redeclare(pool, declared_before[name], declared):
                void.append(pool)
            self.pools.append(pool)
            self._settle(pool, urls.get(name, ()), before)
        for pool in void:
            if pool.name not in self._declared:
                pool.place(())
        removed = tuple(m for m in before.values() if not self.has(m))
        for member in removed:
            member.load.healthy = member.up = False
        if self._team is not None:
            drop_backends(self._team, [member.load for member in removed], self.members)
        added = tuple(m for name, m in self.members.items() if before.get(name) is not m)
        return Change(added=added, removed=removed, void=tuple(void))

    def _settle(self, pool: Pool, urls: Sequence[str], before: Mapping[str, Member]) -> None:
        """Give `pool` the members at `urls`, those it had where it had them."""
        backends = []
        for url in urls:
            name = backend_name(url)
            if is_name(url) or name in self.members:
                continue
            member = before.get(name)
            if member is None or member.pool is not pool or member.url != url:
                member = self._member(url, pool, name)
            self.members[name] = member
            backends.append(member.load)
        pool.place(backends)

    def _member(self, url: str, pool: Pool, name: str) -> Member:
        load = Backend(name=name, healthy=False)
        if self._team is None:
            return Member(url=url, pool=pool, load=load)
        share_backend(self._team, load)
        return Member(url=url, pool=pool, load=load, circuit=SharedCircuit(self._team, name))

    def declared(self, pool: Pool) -> PoolSettings:
        """Return what the config says of `pool`."""
        return self._declared[pool.name]

    def has(self, member: Member) -> bool:
        """Whether `member` is one of the fleet; one that was removed is not."""
        return self.members.get(member.name) is member

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
            return ServedModel(
                name=name,
                requested=requested,
                pools=pools,
                default_temperature=self._temperatures.get(name, _TEMPERATURE),
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
        max_in_flight=_most(declared),
    )


def _most(declared: PoolSettings) -> float:
    return declared.max_in_flight or 2 * declared.max_num_seqs


def _redeclare(pool: Pool, before: PoolSettings, declared: PoolSettings) -> bool:
    """Set what is declared of `pool`; whether its servers are declared to be others.

    What is left to its servers to tell stays until they tell otherwise, so that the pool serves
    meanwhile.
    """
    pool.max_num_seqs, pool.max_in_flight = declared.max_num_seqs, _most(declared)
    if _kind(before) == _kind(declared):
        return False
    pool.model = declared.model or pool.model
    pool.k = declared.k or pool.k
    if declared.speculation != "auto":
        pool.speculation = declared.speculation
        if not pool.speculates:
            pool.k = 0
    return True


def _kind(declared: PoolSettings) -> tuple[object, ...]:
    return declared.model, declared.speculation, declared.k
