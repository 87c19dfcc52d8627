"""Which of several equal replicas a request goes to: the rule of the gateway, which simulated fleets follow too.

Power of two choices (Mitzenmacher, "The power of two choices in randomized load balancing", IEEE Transactions on
Parallel and Distributed Systems 12(10), 2001) keeps the longest line within a constant of the best possible, without
looking at everybody; two balancers that look at the same old numbers do not all pick the same replica.

Requests of one conversation keep to one replica, where their prefix is cached, while it is not much fuller than the
other one drawn.

Plain Python: the gateway's workers ask this for every request and load no numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

Replica = TypeVar("Replica")

STICKY = 2.0
"""A conversation leaves its replica when that one is this many times as loaded as the other one drawn."""
_MIX, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1
"""Fibonacci hashing: 2^64 over the golden ratio."""


def home_of(session: int, members: int) -> int:
    """Which of `members` replicas a conversation belongs to; among all of them, so that it stays the same one while
    others come and go."""
    return ((session * _MIX) & _MASK) * members >> 64


def of_two(
    there: Sequence[Replica], home: Replica | None, load: Callable[[Replica], float], dice: Random
) -> tuple[Replica, bool]:
    """The replica that takes a request, of those that are `there`, one at least; True if the conversation kept to it.

    `home`: where its conversation belongs; None: there is none. `load`: above 0, this request included.
    """
    n = len(there)
    if home is not None:
        other = there[int(dice.random() * n)]
        if home in there and load(home) <= STICKY * load(other):
            return home, True
    if n == 1:
        return there[0], False
    first = int(dice.random() * n)
    second = int(dice.random() * (n - 1))
    if second >= first:
        second += 1
    a, b = there[first], there[second]
    return (a, False) if load(a) <= load(b) else (b, False)
