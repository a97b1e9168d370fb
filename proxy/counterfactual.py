"""What an n-gram pool would have accepted of answers that another pool wrote.

A share of requests is sampled when its answer begins, and only where some pool of the model
speculates by n-grams. The text is kept until the answer is whole, looked up in a thread, one
sample at a time, and dropped: it is never logged, counted or exported. Requests that are not
sampled pay for one draw. A sample that cannot be looked up is lost, and no request with it.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from proxy.dialects import Json, read_json
from proxy.exchange import Exchange
from proxy.sse import payload
from proxy.texts import answer_text, event_text, prompt_text
from routing.decision import Outcome
from routing.lookup import Lookup, look_up
from routing.pools import Pool, Speculation
from routing.traffic import TrafficClass

log = logging.getLogger(__name__)

KEPT_BYTES = 256 * 2**10
"""Events of a stream that are kept: the first 1,300 tokens or so, at 200 bytes a chunk."""
LONGEST_PROMPT_CHARS = 2**20
"""No longer prompt is sampled; the lookup reads less than a tenth of it, but it would be held."""
WAITING = 8
"""Samples that may wait, two seconds at most."""
PAUSE_S = 0.2
"""Between two lookups, so that they hold up the loop rarely however many requests are sampled: a
thread shares the interpreter with it. One takes 2 ms of a 2,000-token prompt and 27 ms of the
longest; five a second made the loop 1 ms and 9 ms later in its 99th percentile."""

OnLookup = Callable[[TrafficClass, Pool, Lookup, Outcome | None], None]
"""Told the class of a request, an n-gram pool of its model, what that pool would have accepted,
and, where that pool served the request itself, what came of it."""


@dataclass(slots=True, kw_only=True, eq=False)
class Sample:
    """A request whose texts are kept until they have been looked up.

    Attributes:
        traffic_class: Its class.
        pools: The n-gram pools of its model.
        prompt: The request's body.
        answer: The answer's body, of one that does not stream.
        outcome: What came of it; None until it has finished.
    """

    traffic_class: TrafficClass
    pools: tuple[Pool, ...]
    prompt: Json = field(repr=False)
    answer: Json = field(default_factory=dict, repr=False)
    outcome: Outcome | None = None
    _events: list[bytes] = field(default_factory=list, init=False, repr=False)
    _room: int = field(default=KEPT_BYTES, init=False)

    def keep(self, events: list[bytes]) -> None:
        """Keep events of a stream, up to the first for which there is no room."""
        for raw in events:
            self._room -= len(raw)
            if self._room < 0:
                return
            self._events.append(raw)

    def look_up(self) -> list[tuple[Pool, Lookup]]:
        """Return what each pool would have accepted; nothing where there is no text to read."""
        prompt = prompt_text(self.prompt)
        said = "".join(event_text(read_json(payload(raw))) for raw in self._events)
        answer = said or answer_text(self.answer)
        found = [(pool, look_up(prompt, answer, k=pool.k)) for pool in self.pools]
        return [(pool, lookup) for pool, lookup in found if prompt and lookup.steps]


class Counterfactual:
    """Samples requests and looks their answers up.

    Args:
        on_lookup: Told what was found, on the loop.
        share: Fraction of requests to sample, in [0, 1].
        chance: Floats in [0, 1).
        pause_s: Seconds between two lookups.

    Attributes:
        dropped: Samples for which the queue had no room.
    """

    def __init__(
        self,
        on_lookup: OnLookup,
        *,
        share: float,
        chance: Callable[[], float] = random.random,
        pause_s: float = PAUSE_S,
    ) -> None:
        self.dropped = 0
        self._on_lookup = on_lookup
        self._share = share
        self._chance = chance
        self._pause_s = pause_s
        self._waiting: asyncio.Queue[Sample] = asyncio.Queue(WAITING)

    def configure(self, *, share: float) -> None:
        """Sample another share of requests."""
        self._share = share

    def sample(self, exchange: Exchange) -> Sample | None:
        """Return where to keep the texts of `exchange`, if it is sampled."""
        if self._chance() >= self._share:
            return None
        parsed, served = exchange.parsed, exchange.served
        features, traffic_class = exchange.request.features, exchange.request.traffic_class
        if parsed is None or served is None or traffic_class is None:
            return None
        pools = tuple(p for p in served.pools if p.speculation is Speculation.NGRAM and p.k)
        if (
            not pools
            or features.choices != 1
            or features.prompt_chars > LONGEST_PROMPT_CHARS
            or parsed.body.get("echo")  # the answer would begin with the prompt
        ):
            return None
        return Sample(traffic_class=traffic_class, pools=pools, prompt=parsed.body)

    def offer(self, sample: Sample, outcome: Outcome | None) -> None:
        """Have `sample` looked up, if its request finished and there is room."""
        if outcome is None:
            return
        sample.outcome = outcome
        try:
            self._waiting.put_nowait(sample)
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self) -> None:
        """Look samples up for ever."""
        while True:
            await self._look_up_next()
            await asyncio.sleep(self._pause_s)

    async def _look_up_next(self) -> None:
        """Look the next sample up; on return nothing refers to its texts."""
        sample = await self._waiting.get()
        try:
            for pool, lookup in await asyncio.to_thread(sample.look_up):
                outcome = sample.outcome
                served = outcome is not None and outcome.pool is pool
                self._on_lookup(sample.traffic_class, pool, lookup, outcome if served else None)
        except Exception:
            log.exception("a finished answer could not be looked up")
