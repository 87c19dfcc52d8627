"""Replicas of one model: of each group two are looked at, and the less loaded one stands for the group.

Power of two choices (Mitzenmacher, 2001) keeps the longest line within a constant of the best possible, without
looking at everybody; two gateways that look at the same old numbers do not all pick the same replica. The load is that
of peak-EWMA (Finagle, Linkerd): requests held, times the latency seen lately, which jumps up at once and sinks slowly.

Requests of one conversation keep to one replica, where their prefix is cached, while it is not much fuller than the
other one drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from breakeven.gateway.route.view import Ask, View

STICKY = 2.0
"""A conversation leaves its replica when that one is this many times as loaded as the other one drawn."""
_MIX, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1
"""Fibonacci hashing: 2^64 over the golden ratio."""


def considered(ask: Ask, views: Sequence[View], dice: Random) -> tuple[Sequence[View], Sequence[View], View | None]:
    """(those to be scored, replicas left out, the one that a conversation kept to).

    Without groups all of `views` are scored.
    """
    groups: dict[str, list[View]] | None = None
    for view in views:
        if view.group is not None:
            if groups is None:
                groups = {}
            groups.setdefault(view.group, []).append(view)
    if groups is None:
        return views, (), None
    left_out: set[int] = set()
    kept: View | None = None
    for members in groups.values():
        if len(members) < 2:
            continue
        # A second draw only where enough are there to draw from: what is away is not worth one of the two.
        there = [v for v in members if v.open and v.ready and v.free > 0] or [v for v in members if v.open] or members
        taken, sticky = _one(ask, members, there, dice)
        kept = kept or sticky
        left_out.update(v.index for v in members if v is not taken)
    seen = [v for v in views if v.index not in left_out]
    return seen, [v for v in views if v.index in left_out], kept


def peak_load(view: View) -> float:
    """What peak-EWMA compares: requests held and waiting, this one included, times how slow it was lately."""
    slow = view.peak if view.peak > view.ttft_factor else view.ttft_factor
    return (view.running + view.queued + 1.0) * slow


def _one(ask: Ask, members: Sequence[View], there: Sequence[View], dice: Random) -> tuple[View, View | None]:
    """The replica that stands for its group, and again if the conversation kept to it."""
    n = len(there)
    if ask.session:
        # Among all members, so that it is the same one while others come and go.
        home = members[((ask.session * _MIX) & _MASK) * len(members) >> 64]
        other = there[int(dice.random() * n)]
        if home in there and peak_load(home) <= STICKY * peak_load(other):
            return home, home
    if n == 1:
        return there[0], None
    first = int(dice.random() * n)
    second = int(dice.random() * (n - 1))
    if second >= first:
        second += 1
    a, b = there[first], there[second]
    return (a, None) if peak_load(a) <= peak_load(b) else (b, None)
