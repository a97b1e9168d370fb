"""What a server answers to one request that it is asked again and again.

A greedy answer is one where the two likeliest tokens are not as likely as each other. Where they
are, to the last bit of a bfloat16, vLLM takes the one or the other by what else is in the batch:
two prompts of one request meet in their first step, or do not. Both answers are the server's own.
"""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
REPEATS = 40
"""An answer that a server gives once in eight times is missed by this many once in 200 times."""


def own_answers(
    first: T, again: Callable[[], T], *, wanted: T, most: int = REPEATS
) -> tuple[T, ...]:
    """Return the different answers of a server, asked again until one of them is `wanted`.

    Args:
        first: The answer that it gave already; no more is asked where it is `wanted`.
        again: Asks the server once more.
        wanted: What another gave in its place. It differs from the server's answers if it is
            not among what is returned.
        most: How often it is asked at most.
    """
    found = [first]
    for _ in range(most):
        if wanted in found:
            break
        answer = again()
        if answer not in found:
            found.append(answer)
    return tuple(found)
