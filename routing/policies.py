"""Policies by name."""

from typing import Literal, get_args

from routing.adaptive import Adaptive, AdaptiveKnobs
from routing.affinity import PrefixMap
from routing.learner import Learner
from routing.static import LeastLoaded, OneKind, Policy, RoundRobin, Threshold
from routing.thresholds import Rules

PolicyName = Literal[
    "adaptive", "threshold", "round_robin", "least_loaded", "spec_only", "plain_only"
]
POLICY_NAMES: tuple[PolicyName, ...] = get_args(PolicyName)


def make_policy(
    name: str, *, rules: Rules, learner: Learner, knobs: AdaptiveKnobs, prefixes: PrefixMap
) -> Policy:
    """Return the policy called `name`.

    Raises:
        ValueError: If no policy has that name.
    """
    match name:
        case "adaptive":
            return Adaptive(learner, knobs, prefixes=prefixes, fallback=Threshold(rules))
        case "threshold":
            return Threshold(rules)
        case "round_robin":
            return RoundRobin()
        case "least_loaded":
            return LeastLoaded()
        case "spec_only" | "plain_only":
            return OneKind(speculates=name == "spec_only")
        case _:
            msg = f"policy {name!r} is not one of {', '.join(POLICY_NAMES)}"
            raise ValueError(msg)
