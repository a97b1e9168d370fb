"""Every setting of the gateway, with its default, its unit and what it does."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    UrlConstraints,
    model_validator,
)

from routing.adaptive import AdaptiveKnobs, Objective
from routing.policies import PolicyName
from routing.pools import DEFAULT_MAX_NUM_SEQS, Speculation
from routing.priors import TASK_RULES, TaskRule
from routing.shedding import Band
from routing.tasks import TaskType
from routing.thresholds import Thresholds

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Seconds = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
ExtraRoute = Annotated[str, Field(pattern=r"^(GET|POST|PUT|PATCH|DELETE) /[^\s?#]*$")]
_SHIPPED = Thresholds()
_ADAPTIVE = AdaptiveKnobs()


DNS = "dns+"
"""Before a URL whose name stands for as many backends as it has addresses."""


def _base_url(url: AnyUrl) -> AnyUrl:
    """Return `url`, unless endpoint paths cannot be put after it.

    A password in it is not used, and would stand in messages that name the URL.
    """
    if url.username is not None or url.password is not None:
        msg = f"the URL of {url.host}:{url.port} must not hold a user; api_key_env names a key"
        raise ValueError(msg)
    if url.query is not None or url.fragment is not None:
        msg = f"'{url}' must end with its path; leave out what follows '?' or '#'"
        raise ValueError(msg)
    if (url.path or "").rstrip("/").endswith("/v1"):
        msg = f"'{url}' must be the server's root; leave out '/v1'"
        raise ValueError(msg)
    if url.port is None:
        msg = f"'{url}' must name a port"
        raise ValueError(msg)
    return url


BackendUrl = Annotated[
    AnyUrl,
    UrlConstraints(
        max_length=2083, host_required=True, allowed_schemes=["http", "https", f"{DNS}http"]
    ),
    AfterValidator(_base_url),
]


class Section(BaseModel):
    """A part of the config: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, data: object) -> object:
        """Read a heading with nothing under it, which is null in YAML, as an empty section."""
        return {} if data is None else data


class Tls(Section):
    """What the gateway shows of itself to clients, and asks of them."""

    certificate: Path = Field(description="PEM file with the certificate and what it stands on.")
    key: Path = Field(description="PEM file with its private key, without a passphrase.")
    client_ca: Path | None = Field(
        default=None,
        description="PEM file with authorities; clients must show a certificate of one of them.",
    )


class Listen(Section):
    """Where the gateway listens, and what it accepts."""

    host: str = Field(default="127.0.0.1", description="Address to bind.")
    port: int = Field(default=8080, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Processes that serve, about one for each core; they decide like one.",
    )
    max_body_bytes: int = Field(
        default=32 * 2**20, gt=0, description="Largest request body; a larger one is a 413."
    )
    max_head_bytes: int = Field(
        default=64 * 2**10, gt=0, description="Longest request line with headers; beyond it a 431."
    )
    head_s: Seconds = Field(
        default=10.0, description="Seconds in which a request's head must have come."
    )
    body_s: Seconds = Field(
        default=30.0, description="Longest wait for the next piece of a request's body."
    )
    tls: Tls | None = Field(
        default=None,
        description="Serve HTTPS, the admin API too; the files are read again when they change.",
    )
    connections_per_client: int = Field(
        default=2000, ge=1, description="Open connections from one address; more are refused."
    )
    grace_s: Seconds = Field(
        default=30.0, description="Seconds that streams may take to finish after SIGTERM."
    )


class ModelSettings(Section):
    """What the gateway should know of a model that its servers do not tell."""

    name: str = Field(min_length=1, description="Name as the servers serve it.")
    aliases: tuple[str, ...] = Field(
        default=(), description="Further names that clients may use; rewritten to `name`."
    )
    default_temperature: float = Field(
        default=1.0,
        ge=0,
        description="Temperature of a request that names none. vLLM takes it from the model's "
        "generation_config.json, else 1.0.",
    )


class PoolSettings(Section):
    """Backends that serve one model with one speculation setting."""

    name: Name = Field(
        description="Unique name of letters, digits, `_`, `.` and `-`; label in metrics, value of "
        "`x-turnout-pool`."
    )
    backends: tuple[BackendUrl, ...] = Field(
        default=(),
        description="Base URLs of its servers, such as http://127.0.0.1:8001; "
        "dns+http://name:8001 is a server at each address of the name.",
    )
    backends_file: Path | None = Field(
        default=None,
        description="File with further base URLs, one a line; read again when it changes.",
    )
    model: str | None = Field(
        default=None, description="Model served; asked from the servers when absent."
    )
    speculation: Speculation | Literal["auto"] = Field(
        default="auto",
        description="How its servers draft; `auto` is found out when the gateway starts.",
    )
    k: int | None = Field(
        default=None, ge=1, description="num_speculative_tokens; asked from the servers if absent."
    )
    max_num_seqs: int = Field(
        default=DEFAULT_MAX_NUM_SEQS, ge=1, description="The servers' --max-num-seqs."
    )
    max_in_flight: int | None = Field(
        default=None,
        ge=1,
        description="Requests one server is given at a time, more wait in the gateway; twice "
        "max_num_seqs if absent.",
    )
    api_key_env: str | None = Field(
        default=None,
        description="Environment variable with the servers' API key; without it the client's "
        "Authorization header is passed on.",
    )

    @model_validator(mode="after")
    def _has_backends(self) -> Self:
        if not self.backends and self.backends_file is None:
            msg = f"pool {self.name!r} has no backends; give backends, backends_file or both"
            raise ValueError(msg)
        return self


class Marks(Section):
    """The high and low mark of a load signal; `high: null` turns the mark off."""

    high: float | None = Field(default=None, gt=0, description="Above it a request may move.")
    low: float | None = Field(default=None, gt=0, description="Below it the mark is left again.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if (self.high is None) != (self.low is None):
            msg = "high and low are set together, or neither is"
            raise ValueError(msg)
        if self.high is not None and self.low is not None and not self.low < self.high:
            msg = f"low ({self.low:g}) must be below high ({self.high:g}), or the mark would flap"
            raise ValueError(msg)
        return self

    def band(self, dwell_s: float) -> Band | None:
        """Return the marks as `routing` takes them, or None when off."""
        if self.high is None or self.low is None:
            return None
        return Band(high=self.high, low=self.low, dwell_s=dwell_s)


class ThresholdSettings(Section):
    """The rules of practice.

    What is written here binds every policy; what is left out binds only `policy: threshold`, with
    the default shown.
    """

    max_temperature: float = Field(
        default=_SHIPPED.max_temperature, ge=0, description="Above it a request goes plain."
    )
    cool_temperature: float = Field(
        default=_SHIPPED.cool_temperature,
        ge=0,
        description="At or below it tasks whose verdict is `cool` may speculate.",
    )
    tasks: dict[Speculation, dict[TaskType, TaskRule]] = Field(
        default_factory=dict,
        description="Verdicts that replace the shipped ones, per speculation method and task: "
        "always | cool | never.",
    )
    min_acceptance: Fraction = Field(
        default=_SHIPPED.min_acceptance,
        description="A class whose measured accepted / drafted is under it leaves a pool that "
        "drafts every step (draft_model, eagle3, mtp).",
    )
    unloaded_acceptance: Fraction = Field(
        default=_SHIPPED.unloaded_acceptance,
        description="Under it such a class stays only while the pool is under its low in-flight "
        "mark.",
    )
    in_flight: Marks = Field(
        default=Marks(high=32, low=24),
        description="Marks on the mean requests in flight per backend of a speculating pool.",
    )
    qps: Marks = Field(
        default=Marks(), description="Marks on the requests per second for the model; off if null."
    )
    kv_usage: Marks = Field(
        default=Marks(high=0.9, low=0.75),
        description="Marks on the KV-cache usage, in [0, 1], of a speculating pool's fullest "
        "backend; as shipped they bind `adaptive` too.",
    )
    dwell_s: Seconds = Field(default=5.0, description="Seconds a mark holds before it may change.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        cool, highest = self.cool_temperature, self.max_temperature
        if cool > highest and "cool_temperature" in self.model_fields_set:
            msg = (
                f"cool_temperature ({cool:g}) must not be above max_temperature ({highest:g}); "
                "lower it, or raise max_temperature"
            )
            raise ValueError(msg)
        if Speculation.NONE in self.tasks:
            msg = "tasks.none has no effect, as a plain pool drafts nothing; remove it"
            raise ValueError(msg)
        return self

    def thresholds(self) -> Thresholds:
        """Return the rules' knobs, with the keys that the user wrote."""
        written = set(self.model_fields_set)
        merged = {method: dict(table) for method, table in TASK_RULES.items()}
        for method, table in self.tasks.items():
            for task, rule in table.items():
                merged[method][task] = rule
                written.add(f"tasks.{method}.{task}")
        return Thresholds(
            max_temperature=self.max_temperature,
            cool_temperature=min(self.cool_temperature, self.max_temperature),
            tasks=merged,
            min_acceptance=self.min_acceptance,
            unloaded_acceptance=self.unloaded_acceptance,
            in_flight=self.in_flight.band(self.dwell_s),
            qps=self.qps.band(self.dwell_s),
            kv_usage=self.kv_usage.band(self.dwell_s),
            written=frozenset(written),
        )


class AdaptiveSettings(Section):
    """How `policy: adaptive` weighs its choices."""

    altruism: Fraction = Field(
        default=_ADAPTIVE.altruism,
        description="How much the time of requests already in flight counts, which a request "
        "slows down.",
    )
    margin: Fraction = Field(
        default=_ADAPTIVE.margin,
        lt=1,
        description="A class stays on its pool unless another is expected to cost less by this "
        "share.",
    )
    holdout: Fraction = Field(
        default=_ADAPTIVE.holdout,
        description="Share of requests that chance sends to any pool, so that each stays measured "
        "and what moving a request does can be told; 0 turns it off.",
    )
    exploration: Fraction = Field(
        default=_ADAPTIVE.exploration,
        description="Largest share of requests that look at a pool where their class was not "
        "seen for two minutes; 0 turns it off.",
    )
    objectives: dict[TaskType, Objective] = Field(
        default_factory=dict,
        description="What a task wants, where it is not the whole answer soon (tpot): ttft, its "
        "first token soon; throughput, to take as little of the servers' time as it can.",
    )

    def knobs(self) -> AdaptiveKnobs:
        """Return the policy's knobs."""
        return AdaptiveKnobs(**dict(self))


class Learning(Section):
    """Where what was learnt from traffic is kept."""

    state_file: Path | None = Field(
        default=None,
        description="File that it is loaded from at start and saved to; null forgets it at stop.",
    )
    save_interval_s: Seconds = Field(
        default=60.0, description="Between two saves, so that a crash loses little."
    )


class ApiKey(Section):
    """A client's key and what it may do."""

    name: Name = Field(description="Whose it is; label in logs and metrics.")
    sha256: str = Field(
        pattern="^[0-9a-f]{64}$", description="Digest of the key, as `turnout key` prints it."
    )
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="More are answered 429; no limit if absent."
    )
    max_in_flight: int | None = Field(
        default=None, ge=1, description="Requests under way at a time; no limit if absent."
    )
    models: tuple[str, ...] | None = Field(
        default=None, description="Models that it may name; all if absent."
    )
    pools: tuple[Name, ...] | None = Field(
        default=None, description="Pools that its requests may go to; all if absent."
    )
    priority: int = Field(
        default=0, ge=0, le=9, description="Of its requests in the queue; higher is served first."
    )


class Auth(Section):
    """Who may use the gateway: holders of a key, or everybody who can reach it."""

    open: bool = Field(default=False, description="Serve everybody, without keys.")
    keys: tuple[ApiKey, ...] = Field(default=(), description="The keys that there are.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.open and self.keys:
            msg = "open: true serves everybody, so keys have no effect; remove one of the two"
            raise ValueError(msg)
        for what, values in (
            ("name", [key.name for key in self.keys]),
            ("sha256", [key.sha256 for key in self.keys]),
        ):
            if len(set(values)) < len(values):
                msg = f"two keys have the same {what}; each must be unique"
                raise ValueError(msg)
        return self


class Timeouts(Section):
    """How long the gateway waits on a backend, each with its own error."""

    connect_s: Seconds = Field(default=2.0, description="To open a connection.")
    first_byte_s: Seconds = Field(
        default=300.0, description="From the request sent to the first byte of the answer."
    )
    prompt_token_s: float = Field(
        default=0.01, ge=0, description="Added to `first_byte_s` for each token of the prompt."
    )
    between_chunks_s: Seconds = Field(
        default=120.0, description="Between two pieces of an answer."
    )
    total_s: Seconds = Field(
        default=3600.0,
        description="From the request received to the end of the answer, further tries included.",
    )


class Queue(Section):
    """Where requests wait while every backend that may serve them is full."""

    size: int = Field(
        default=1000, ge=0, description="Most that wait; more are answered 429, 0 queues none."
    )
    wait_s: Seconds = Field(
        default=10.0, description="How long one waits before it is answered 429."
    )


class Retries(Section):
    """How often a request is tried again, before a byte of an answer has gone to its client."""

    error_answers: Fraction = Field(
        default=0.2,
        description="Further tries after error answers (500 and above), as a share of requests, "
        "so that they cannot multiply an overload. Lost connections do not count.",
    )


class Probes(Section):
    """How the gateway looks after its backends."""

    health_interval_s: Seconds = Field(default=1.0, description="Between two health checks.")
    scrape_interval_s: Seconds = Field(
        default=2.0,
        description="Between two reads of a backend's /metrics, jittered by a tenth; reading "
        "them often is known to slow vLLM down.",
    )
    timeout_s: Seconds = Field(default=2.0, description="For one probe.")
    failures: int = Field(
        default=2, ge=1, description="Failed health checks in a row that take a backend out."
    )
    warm_up_s: float = Field(
        default=10.0,
        ge=0,
        description="Seconds over which a backend that came back is given ever more requests, "
        "while others serve; 0 gives it all at once.",
    )
    resolve_interval_s: Seconds = Field(
        default=5.0, description="Between two looks at the addresses of a dns+http:// URL's name."
    )


class DecisionLog(Section):
    """Where decisions are kept, with what each was made from and what came of it."""

    file: Path = Field(
        description="File that lines go to; with several workers, worker n has one of its own "
        "with -n before the suffix."
    )
    max_bytes: int = Field(
        default=100_000_000, ge=1_000_000, description="Size from which a new file is begun."
    )
    keep: int = Field(
        default=5, ge=1, le=1000, description="Older files that are kept, as FILE.1, FILE.2, ..."
    )

    def of_worker(self, seat: int) -> Path:
        """Return the file of the worker with this number, from 0."""
        name = f"{self.file.stem}-{seat}{self.file.suffix}" if seat else self.file.name
        return self.file.with_name(name)


class Observation(Section):
    """What is measured and written down."""

    continuous_usage_share: Fraction = Field(
        default=0.05,
        description="Share of streams for which token counts per chunk are asked, on speculating "
        "servers that do not report acceptance themselves.",
    )
    counterfactual_share: Fraction = Field(
        default=0.05,
        description="Share of finished requests whose text is looked up once, in memory, for what "
        "an n-gram pool of their model would have accepted; 0 turns it off.",
    )
    log_requests: bool = Field(default=True, description="One structured line per request.")
    decision_log: DecisionLog | None = Field(
        default=None,
        description="A file with what each decision was made from and what came of it, for "
        "`turnout replay`; off if null. `decision_log: {file: decisions.jsonl}` turns it on.",
    )


class Admin(Section):
    """Where the gateway is looked after while it runs: a port of its own, behind a token."""

    host: str = Field(default="127.0.0.1", description="Address to bind.")
    port: int = Field(default=8081, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    token_env: str = Field(
        default="TURNOUT_ADMIN_TOKEN",
        description="Environment variable with the token that every request must bear.",
    )


class Settings(Section):
    """The whole config."""

    listen: Listen = Field(default=Listen())
    policy: PolicyName = Field(default="adaptive", description="How a pool is chosen.")
    shadow: PolicyName | None = Field(
        default=None,
        description="A policy that decides too, for metrics and logs, and does not act: how to "
        "try one on live traffic.",
    )
    models: tuple[ModelSettings, ...] = Field(
        default=(), description="A list of models, each with `name` and what differs for it."
    )
    pools: tuple[PoolSettings, ...] = Field(
        min_length=1,
        description="A list of pools, each with at least `name` and `backends` or "
        "`backends_file`.",
    )
    thresholds: ThresholdSettings = Field(default=ThresholdSettings())
    adaptive: AdaptiveSettings = Field(default=AdaptiveSettings())
    learning: Learning = Field(default=Learning())
    allow_pinning: bool = Field(
        default=True, description="Whether `x-turnout-pool` may name the pool."
    )
    auth: Auth = Field(default=Auth())
    timeouts: Timeouts = Field(default=Timeouts())
    retries: Retries = Field(default=Retries())
    queue: Queue = Field(default=Queue())
    probes: Probes = Field(default=Probes())
    observation: Observation = Field(default=Observation())
    admin: Admin | None = Field(
        default=None, description="The admin API; off if null. `admin: {port: 8081}` turns it on."
    )
    extra_routes: tuple[ExtraRoute, ...] = Field(
        default=(),
        description="Further paths of vLLM to pass through, as `METHOD /path`; management routes "
        "cannot be reached unless listed.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.auth.open and not self.auth.keys:
            msg = (
                "auth is missing: list keys under auth.keys (`turnout key NAME` makes one), or "
                "write 'auth: {open: true}' to serve everybody who can reach the port"
            )
            raise ValueError(msg)
        pools = [pool.name for pool in self.pools]
        hosts = [f"{url.host}:{url.port}" for pool in self.pools for url in pool.backends]
        names = [name for model in self.models for name in (model.name, *model.aliases)]
        for what, values in (("pool name", pools), ("backend", hosts), ("model name", names)):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                msg = f"{what} {twice[0]!r} appears twice; each must be unique"
                raise ValueError(msg)
        return self
