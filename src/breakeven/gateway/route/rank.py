"""Orders that policies share. All of them work on indexes into one list of scores."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from breakeven.gateway.route.view import Score

SURE = 1.2
"""Headroom from which a backend is taken to keep what was asked. Below it, who joins next can break the promise."""
USD_TIE = 0.05
"""Costs closer than this are the same: no step model knows better."""
SPEED_TIE = 0.05
"""Predicted ends closer than this are the same."""


def e2e_s(score: Score, output_tokens: float) -> float:
    """Predicted seconds to the end of the answer."""
    return score.ttft_s + output_tokens * score.tpot_s


def most_headroom(scores: Sequence[Score], among: Sequence[int], output_tokens: float) -> int:
    """Who misses least; where nothing was asked, who ends first."""
    return max(among, key=lambda k: (scores[k].headroom, -e2e_s(scores[k], output_tokens)))


def fastest(scores: Sequence[Score], among: Sequence[int], output_tokens: float, dice: Random) -> int:
    """Who is predicted to end first; by chance among near-equals, the faster the likelier."""
    if len(among) == 1:
        return among[0]
    ends = [scores[k].ttft_s + output_tokens * scores[k].tpot_s for k in among]
    limit = min(ends) * (1.0 + SPEED_TIE)
    near = [(k, 1.0 / end if end > 0.0 else 1e9) for k, end in zip(among, ends, strict=True) if end <= limit]
    return _drawn(near, dice)


def cheapest(scores: Sequence[Score], among: Sequence[int], output_tokens: float, dice: Random) -> int:
    """Who costs least; among near-equals the least headroom is the likelier, which keeps room for stricter requests.

    Where nothing costs anything, price says nothing and `fastest` decides.
    """
    if len(among) == 1:
        return among[0]
    least = min([scores[k].usd for k in among])
    limit = least * (1.0 + USD_TIE)
    near = [k for k in among if scores[k].usd <= limit]
    if len(near) == 1:
        return near[0]
    if least <= 0.0 or scores[near[0]].headroom == float("inf"):
        return fastest(scores, near, output_tokens, dice)
    return _drawn([(k, 1.0 / max(scores[k].headroom, 1e-9)) for k in near], dice)


def cheapest_that_fits(
    scores: Sequence[Score], among: Sequence[int], output_tokens: float, dice: Random
) -> tuple[int, str]:
    """The cheapest with `SURE` headroom, else the one with most headroom; with the reason. `among` is not empty."""
    sure = [k for k in among if scores[k].headroom >= SURE]
    if sure:
        return cheapest(scores, sure, output_tokens, dice), "cheapest_that_fits"
    best = most_headroom(scores, among, output_tokens)
    return best, "cheapest_that_fits" if scores[best].headroom >= 1.0 else "least_late"


def behind(scores: Sequence[Score], among: Sequence[int], first: int, output_tokens: float) -> list[int]:
    """The others in the order in which they are tried when `first` fails: who fits by cost, then by headroom."""
    if len(among) < 2:
        return []

    def key(k: int) -> tuple[bool, float, float]:
        score = scores[k]
        fits = score.headroom >= 1.0
        return not fits, score.usd if fits else -score.headroom, score.ttft_s + output_tokens * score.tpot_s

    return sorted([k for k in among if k != first], key=key)


def _drawn(weights: Sequence[tuple[int, float]], dice: Random) -> int:
    """One of them by weight."""
    if len(weights) == 1:
        return weights[0][0]
    left = dice.random() * sum(weight for _, weight in weights)
    for k, weight in weights:
        left -= weight
        if left < 0.0:
            return k
    return weights[-1][0]
