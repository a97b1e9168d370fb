"""The expected cost of a request on a pool, and the bar that its class must exceed.

    J = wait + prefill + L s(b + 1) / tau + altruism * b * ((L / tau) (s(b + 1) - s(b)) + prefill)

with `b` requests in flight, `L` output tokens and `s` the step time. All but `tau` is load, so
J = fixed + decode / tau, and the bar is the tau at which two pools cost the same. With equal
queues it is s_spec(b + 1) / s_plain(b + 1): about 1 on idle servers, rising as they fill.
"""

from math import inf
from typing import NamedTuple


class Cost(NamedTuple):
    """What a request costs on a pool, in seconds, as a function of its tokens per step.

    Attributes:
        fixed_s: What it costs however much is accepted: waiting, prefill, stalling others.
        decode_s: What its decoding would cost at one token per step, slowing others included.
    """

    fixed_s: float
    decode_s: float

    def at(self, tau: float) -> float:
        """Return J in seconds at `tau` tokens per step, >= 1."""
        return self.fixed_s + self.decode_s / tau

    def bar(self, rival_s: float) -> float:
        """Return the tau above which this costs less than `rival_s`; infinite if none does."""
        room = rival_s - self.fixed_s
        return self.decode_s / room if room > 0.0 else inf


def cost(
    *,
    length: float,
    step_s: float,
    added_s: float,
    others: float,
    wait_s: float,
    prefill_s: float,
    altruism: float,
    share: float = 1.0,
) -> Cost:
    """Return the cost of one more request on a pool.

    Args:
        length: Output tokens expected, L.
        step_s: Step time with this request in, s(b + 1).
        added_s: What it adds to a step, s(b + 1) - s(b).
        others: Requests in flight beside it, b.
        wait_s: Time in the server's queue.
        prefill_s: Time to compute its prompt, which stalls the others too.
        altruism: How much the others' time counts, in [0, 1].
        share: Of all that, how much is to count.
    """
    burdened = altruism * others
    return Cost(
        share * (wait_s + prefill_s * (1.0 + burdened)),
        share * length * (step_s + burdened * added_s),
    )
