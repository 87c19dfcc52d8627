"""Orders that policies share. All of them work on indexes into one list of scores."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from random import Random

from breakeven.gateway.route.view import Ask, Score

SURE = 3.0
"""Headroom from which a backend is taken to keep what was asked. Below it, who joins next can break the promise.

Of 1.2, 1.5, 2, 3, 4 and no such margin it kept most promises over all loads (docs/gateway-goodput.md).
"""
LOST = 1.5
"""Seconds a token over what is promised from which those who run there have broken promises already."""
USD_TIE = 0.05
"""Costs closer than this are the same: no step model knows better."""
SPEED_TIE = 0.05
"""Predicted ends closer than this are the same."""

TINY_USD, LATE_USD = 1e-12, 1e9
"""Below and above what any request costs."""


def e2e_s(score: Score, output_tokens: float) -> float:
    """Predicted seconds to the end of the answer."""
    return score.ttft_s + output_tokens * score.tpot_s


def most_headroom(scores: Sequence[Score], among: Sequence[int], output_tokens: float) -> int:
    """Who misses least; where nothing was asked, who ends first."""
    return max(among, key=lambda k: (scores[k].headroom, -e2e_s(scores[k], output_tokens)))


def roomiest(ask: Ask, scores: Sequence[Score], among: Sequence[int]) -> int:
    """Who uses least of everything that was asked for, taken together: the sum of predicted / asked.

    The smallest headroom alone says nothing of the other promises: a line of prompts builds up unseen behind a TPOT.
    """
    a = 0.0 if ask.ttft_s is None else 1.0 / ask.ttft_s
    b = 0.0 if ask.tpot_s is None else 1.0 / ask.tpot_s
    c = 0.0 if ask.usd is None else 1.0 / ask.usd
    return min(among, key=lambda k: a * scores[k].ttft_s + b * scores[k].tpot_s + c * scores[k].usd)


def under_pressure(ask: Ask, scores: Sequence[Score], among: Sequence[int]) -> tuple[int, str]:
    """Where nobody is `sure`: the roomiest of those that fit, else where a late request does least harm."""
    if fitting := [k for k in among if scores[k].headroom >= 1.0]:
        return roomiest(ask, scores, fitting), "roomiest"
    return least_harm(ask, scores, among)


def least_harm(ask: Ask, scores: Sequence[Score], among: Sequence[int]) -> tuple[int, str]:
    """For a request that is late everywhere: where it slows down the fewest who are still in time; with the reason.

    Those who run are taken to be promised the same time a token; where none was asked nobody is harmed. Who waits for
    a first token slows down nobody. Among equals the one with most headroom.
    """
    best = most_headroom(scores, among, ask.output_tokens)
    asked_s = ask.tpot_s
    if asked_s is None:
        return best, "least_late"
    harm = {k: scores[k].running if 1.0 <= scores[k].tpot_s / asked_s < LOST else 0.0 for k in among}
    least = min(harm.values())
    if harm[best] <= least:
        return best, "least_late"
    return most_headroom(scores, [k for k in among if harm[k] <= least], ask.output_tokens), "least_harm"


def near_fastest(scores: Sequence[Score], among: Sequence[int], output_tokens: float) -> list[int]:
    """Those who are predicted to end first, within `SPEED_TIE`."""
    ends = [scores[k].ttft_s + output_tokens * scores[k].tpot_s for k in among]
    limit = min(ends) * (1.0 + SPEED_TIE)
    return [k for k, end in zip(among, ends, strict=True) if end <= limit]


def near_cheapest(scores: Sequence[Score], among: Sequence[int], output_tokens: float) -> list[int]:
    """Those who cost least, within `USD_TIE`. Where nothing costs anything the price says nothing: the near-fastest."""
    costs = [scores[k].usd for k in among]
    least = min(costs)
    if least <= 0.0:
        return near_fastest(scores, [k for k in among if scores[k].usd <= 0.0], output_tokens)
    limit = least * (1.0 + USD_TIE)
    return [k for k, usd in zip(among, costs, strict=True) if usd <= limit]


def fastest(scores: Sequence[Score], among: Sequence[int], output_tokens: float, dice: Random) -> int:
    """Who is predicted to end first; by chance among near-equals, the faster the likelier."""
    near = near_fastest(scores, among, output_tokens)
    if len(near) == 1:
        return near[0]
    return drawn(near, [1.0 / (e2e_s(scores[k], output_tokens) + 1e-9) for k in near], dice)


def cheapest(scores: Sequence[Score], among: Sequence[int], output_tokens: float, dice: Random) -> int:
    """Who costs least; among near-equals the least headroom is the likelier, which keeps room for stricter requests."""
    near = near_cheapest(scores, among, output_tokens)
    if len(near) == 1:
        return near[0]
    if scores[near[0]].usd <= 0.0 or scores[near[0]].headroom == inf:
        return fastest(scores, near, output_tokens, dice)
    return drawn(near, [1.0 / (scores[k].headroom + 1e-9) for k in near], dice)


def sure(scores: Sequence[Score], among: Sequence[int]) -> list[int]:
    """Those who are predicted to keep what was asked with `SURE` headroom."""
    return [k for k in among if scores[k].headroom >= SURE]


def cheapest_that_fits(
    scores: Sequence[Score], among: Sequence[int], output_tokens: float, dice: Random
) -> tuple[int, str]:
    """The cheapest with `SURE` headroom, else the one with most headroom; with the reason. `among` is not empty."""
    able = sure(scores, among)
    if able:
        return cheapest(scores, able, output_tokens, dice), "cheapest_that_fits"
    best = most_headroom(scores, among, output_tokens)
    return best, "cheapest_that_fits" if scores[best].headroom >= 1.0 else "least_late"


def behind(scores: Sequence[Score], among: Sequence[int], first: int, output_tokens: float) -> list[int]:
    """The others in the order in which they are tried when `first` fails: who fits by cost, then by headroom."""
    if len(among) < 2:
        return []
    keys: dict[int, float] = {}
    for k in among:
        if k != first:
            score = scores[k]
            if score.headroom >= 1.0:
                # Where costs are equal, or nothing costs anything, the earlier end comes first.
                keys[k] = score.usd + TINY_USD * (score.ttft_s + output_tokens * score.tpot_s)
            else:
                keys[k] = LATE_USD / (score.headroom + 1e-9)
    return sorted(keys, key=keys.__getitem__)


def drawn(among: Sequence[int], weights: Sequence[float], dice: Random) -> int:
    """One of `among` by weight; the weights are not negative, and one of them at least is above 0."""
    left = dice.random() * sum(weights)
    for k, weight in zip(among, weights, strict=True):
        left -= weight
        if left < 0.0:
            return k
    # Rounding: the draw fell on the very end.
    return next(k for k, weight in zip(reversed(among), reversed(weights), strict=True) if weight > 0.0)
