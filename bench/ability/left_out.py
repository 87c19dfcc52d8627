"""How right the scale is about a harness that it has not seen: which of two models is better, and how sure it was."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.ability.areas import FITTED
from bench.ability.mixed import Data, Fitted, Floats, Points, data_of, refined, start
from bench.ability.rows import Score
from breakeven.model.quality.ability import APART, chance_of
from breakeven.model.quality.posterior import size_features

LEAST_MODELS = 3
MOST_PAIRS = 600
"""Of one benchmark, drawn from all."""
BINS = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0001])


@dataclass(frozen=True)
class Pairs:
    """P pairs of models that a left-out benchmark finds apart. `difference` of their logits as found from the rest,
    better less worse; `deviation` of it; `middle` of their shares. `known`: what both have elsewhere: 3 scores in
    this area and language in one harness, 2 in whatever harnesses, 1 scores in others, 0 not both of them any.
    `others`: of the harnesses that have both, the share that orders them so."""

    harness: NDArray[np.str_]
    benchmark: NDArray[np.str_]
    difference: Floats
    deviation: Floats
    middle: Floats
    known: NDArray[np.int64]
    others: Floats

    @staticmethod
    def of(parts: Sequence[Pairs]) -> Pairs:
        """All together."""
        return Pairs(*(np.concatenate([getattr(p, n) for p in parts]) for n in Pairs.__dataclass_fields__))

    def chosen(self, mask: NDArray[np.bool_]) -> Pairs:
        """Those of `mask`."""
        return Pairs(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))

    def stated(self) -> Floats:
        """(P,) the chance given to the model that came out better."""
        some = zip(self.difference, self.deviation, self.middle, strict=True)
        return np.array([chance_of(d, s, m) for d, s, m in some])

    def weight(self) -> Floats:
        """Each benchmark counts alike within its harness, and each harness as the root of its benchmarks' pairs."""
        _, index, count = np.unique(self.benchmark, return_inverse=True, return_counts=True)
        return np.asarray(1 / np.sqrt(count[index]))


def targets_of(data: Data, wanted: Sequence[tuple[Score, str | None]]) -> Points:
    """Points for models, in the areas and languages of the scores; what the data do not know gets a number of its own.

    The second of each is the language asked for.
    """

    def numbers(known: list[str], names: Sequence[str]) -> NDArray[np.int64]:
        at = {name: i for i, name in enumerate([*known, *sorted(set(names) - set(known))])}
        return np.array([at[name] for name in names])

    scores = [score for score, _ in wanted]
    languages = {name: i for i, name in enumerate(data.languages)}
    return Points(
        entity=numbers(data.entities, [s.kin.key for s in scores]),
        weights=numbers(data.weights, [s.kin.weights for s in scores]),
        series=numbers(data.series, [s.kin.series for s in scores]),
        harness=np.full(len(scores), -1),
        language=np.array([-1 if lang is None else languages.get(lang, -2) for _, lang in wanted]),
        area_NA=np.array([[dict(s.areas).get(area, 0.0) for area in FITTED] for s in scores]),
        x_NF=np.array([size_features(s.total_b, s.active_b, s.year, s.kin.mode) for s in scores]),
        scale=np.ones(len(scores)),
    )


def again_of(fit: Fitted) -> float:
    """Variance that one more harness adds for a model: its own effect, and the noise of a benchmark."""
    return fit.sd["harness"] ** 2 + fit.sd["harness_area"] ** 2 + float(np.median(fit.noise_B)) ** 2


def pairs_without(harness: str, scores: Sequence[Score], sd: dict[str, float]) -> Pairs | None:
    """Pairs of models in `harness`, by area and language, judged by a fit on all the others; None where too few.

    The score of a pair in an area: the mean over the benchmarks that both were given.
    """
    rest = [s for s in scores if s.harness != harness]
    asked = [s for s in scores if s.harness == harness]
    if len({s.kin.key for s in asked}) < LEAST_MODELS:
        return None
    fit = refined(start(data_of(rest), sd), 2)
    ones = list({(s.areas, s.language, s.kin.key): s for s in asked}.values())
    targets = targets_of(fit.data, [(s, s.language) for s in ones])
    mean, shared, own = fit.effects(targets)
    z = shared @ np.linalg.cholesky(fit.cov_PP)
    cov = z @ z.T
    for index, block in own:
        cov[np.ix_(index, index)] += block
    var = np.diag(cov) + again_of(fit) + (targets.language == -2) * fit.sd["weights_language"] ** 2
    elsewhere = {s.kin.key for s in rest}
    there = {(s.kin.key, area, s.language) for s in rest for area, _ in s.areas}
    known = np.array([
        2 if any((s.kin.key, area, s.language) in there for area, _ in s.areas) else int(s.kin.key in elsewhere)
        for s in ones
    ])  # fmt: skip
    groups = [(s.areas, s.language) for s in ones]
    parts = []
    for group in dict.fromkeys(groups):
        rows = np.array([i for i, each in enumerate(groups) if each == group])
        mine = [s for s in asked if (s.areas, s.language) == group]
        keys = [ones[row].kin.key for row in rows]
        i, j, middle = _apart(keys, mine)
        told, asked_of = _others(keys, i, j, [s for s in rest if (s.areas, s.language) == group])
        i, j = rows[i], rows[j]
        both = np.where(asked_of > 0, 3, np.minimum(known[i], known[j]))
        name = f"{harness}: {'+'.join(area for area, _ in group[0])} {group[1] or ''}"
        parts.append(Pairs(
            np.full(len(i), harness), np.full(len(i), name), mean[i] - mean[j],
            np.sqrt(np.maximum(var[i] + var[j] - 2 * cov[i, j], 1e-9)), middle, both,
            told / np.maximum(asked_of, 1),
        ))  # fmt: skip
    return Pairs.of(parts)


def _others(
    keys: list[str], i: NDArray[np.int64], j: NDArray[np.int64], scores: Sequence[Score]
) -> tuple[Floats, Floats]:
    """How many of the harnesses in `scores` say of each pair that the first is better, and how many say which is."""
    better, told = np.zeros(len(i)), np.zeros(len(i))
    for harness in dict.fromkeys(s.harness for s in scores):
        first = _shares(keys, [s for s in scores if s.harness == harness])
        difference = np.nan_to_num(first - first.T)[i, j]
        better, told = better + (difference > 0), told + (difference != 0)
    return better, told


def halves(scores: Sequence[Score], seed: int = 0) -> tuple[float, int]:
    """How often one half of a harness' benchmarks in an area orders two models as the other half does.

    Of pairs that the other half finds apart, each group of benchmarks weighed as in `judged`: how far a harness agrees
    with itself, and so what nothing can much exceed that is judged by it.
    """
    held: dict[tuple[object, ...], list[Score]] = defaultdict(list)
    for s in scores:
        held[s.harness, s.areas, s.language].append(s)
    same = whole = 0.0
    pairs = 0
    for mine in held.values():
        names = sorted({s.benchmark for s in mine})
        if len(names) < 2:
            continue
        order = np.random.default_rng(seed).permutation(len(names))
        first = {names[i] for i in order[: len(names) // 2]}
        parts = [s for s in mine if s.benchmark in first], [s for s in mine if s.benchmark not in first]
        for one, other in (parts, parts[::-1]):
            keys = list(dict.fromkeys(s.kin.key for s in one))
            i, j, _ = _apart(keys, one)
            shares = _shares(keys, other)
            told = np.nan_to_num(shares - shares.T)[i, j]
            told = told[told != 0]
            if len(told):
                weight = 1 / math.sqrt(len(told))
                same, whole = same + weight * float(np.sum(told > 0)), whole + weight * len(told)
                pairs += len(told)
    return same / whole, pairs


def _apart(
    keys: list[str], scores: Sequence[Score], most: int | None = MOST_PAIRS
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Pairs of `keys` whose mean over common benchmarks is apart, the better one first, and the middle of their shares.

    More than `most` are drawn from.
    """
    first = _shares(keys, scores)
    i, j = np.nonzero(np.nan_to_num(first - first.T) > APART)
    some = np.random.default_rng(0).permutation(len(i))[:most]
    i, j = i[some], j[some]
    return i, j, (first[i, j] + first[j, i]) / 2


def _confidence(stated: Floats) -> Floats:
    return np.maximum(stated, 1 - stated)


def judged(pairs: Pairs) -> dict[str, float]:
    """Share right, and how far stated confidence is from it: on average over bins, each as it is filled."""
    stated, weight = pairs.stated(), pairs.weight()
    right, sure = pairs.difference > 0, _confidence(stated)
    bins = np.digitize(sure, BINS) - 1
    gap = 0.0
    for b in np.unique(bins):
        here = bins == b
        off = np.average(sure[here], weights=weight[here]) - np.average(right[here], weights=weight[here])
        gap += abs(float(off)) * weight[here].sum() / weight.sum()
    by = [float(np.mean(right[pairs.harness == name])) for name in np.unique(pairs.harness)]
    clear = sure >= 0.9
    return {
        "pairs": float(len(right)), "right": float(np.average(right, weights=weight)),
        "right_pooled": float(np.mean(right)), "right_by_harness": float(np.mean(by)), "calibration_gap": gap,
        "right_where_90_sure": float(np.average(right[clear], weights=weight[clear])) if clear.any() else math.nan,
        "share_90_sure": float(weight[clear].sum() / weight.sum()),
    }  # fmt: skip


def reliability(pairs: Pairs) -> list[tuple[float, float, int]]:
    """By bin of confidence: stated, came true, pairs."""
    sure, right, weight = _confidence(pairs.stated()), pairs.difference > 0, pairs.weight()
    bins = np.digitize(sure, BINS) - 1
    return [
        (float(np.average(sure[bins == b], weights=weight[bins == b])),
         float(np.average(right[bins == b], weights=weight[bins == b])), int(np.sum(bins == b)))
        for b in np.unique(bins)
    ]  # fmt: skip


def agreement(scores: Sequence[Score]) -> tuple[float, int]:
    """Where one harness finds two models apart in an area that another scored too: how often both say the same, and of
    how many. What a perfect account of one other harness would reach."""
    held: dict[tuple[object, str | None], dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
    for s in scores:
        held[s.areas, s.language][s.harness].append(s)
    same, pairs = 0, 0
    for harnesses in held.values():
        for one, mine in harnesses.items():
            keys = list(dict.fromkeys(s.kin.key for s in mine))
            i, j, _ = _apart(keys, mine, most=None)
            for other, theirs in harnesses.items():
                if other != one:
                    first = _shares(keys, theirs)
                    told = np.nan_to_num(first - first.T)[i, j]
                    same, pairs = same + int(np.sum(told > 0)), pairs + int(np.sum(told != 0))
    return same / max(pairs, 1), pairs


def _shares(keys: list[str], scores: Sequence[Score]) -> Floats:
    """By pair of `keys` the first's mean share over the benchmarks that both have; nan without any."""
    names = list(dict.fromkeys(s.benchmark for s in scores))
    share, there = np.zeros((len(keys), len(names))), np.zeros((len(keys), len(names)))
    for s in scores:
        if s.kin.key in keys:
            at = keys.index(s.kin.key), names.index(s.benchmark)
            share[at], there[at] = s.share, 1.0
    common = there @ there.T
    return np.asarray(np.where(common > 0, share @ there.T / np.maximum(common, 1e-9), np.nan))
