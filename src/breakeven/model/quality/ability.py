"""How able models are in one area, on one scale with an error: own evaluation, scores of many harnesses, or size.

Scores compare within a harness only. A model of all scores (docs/quality.md, "One scale") finds what harnesses agree
on: a latent ability by area and language whose doubt grows where few harnesses share models. Abilities are shown in
points: the share that a model would solve of tasks of which the middle one of the scored models solves half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec
import numpy as np

from breakeven.errors import UserError
from breakeven.model.architecture import ModelSpec
from breakeven.model.catalogue import find, lookup
from breakeven.model.quality.kin import THOUGHT, kin_of
from breakeven.model.quality.loss import expected_loss, kept_share
from breakeven.model.quality.own import OwnScore, OwnScores
from breakeven.model.quality.posterior import (
    AREAS,
    ELSEWHERE,
    Floats,
    Found,
    Source,
    ability_data,
    covariance,
    found,
    is_language,
    languages,
    names_of,
    scored_key,
)
from breakeven.stats.estimate import Estimate, Provenance, measured

__all__ = [
    "AREAS", "Ability", "AnswerTokens", "Joint", "ability", "answer_tokens", "better", "chance_of", "joint",
    "languages", "left_out", "own_format", "scored",
]  # fmt: skip
APART = 0.03
"""Shares of tasks nearer than this are called equal."""
_CONFIDENT = 1.96
_PROVENANCE: dict[Source, Provenance] = {"own": "measured", "scores": "published", "size": "predicted"}
LEAST_ALIKE = 3
"""So many models must have published lengths before others are taken to answer so: one is no range."""
_ANYTHING = 3.0
"""Deviation, in logits, of a model of which nothing but own scores is known."""


class Ability(msgspec.Struct, frozen=True, kw_only=True):
    """How able a model is in an area, in points of 0 to 100, `value` with its 95 % interval.

    `source`: own, scores, or size: the last resort, a guess from parameters, date and series. `n_scores`: scores in
    this very area; 0 with scores in others alone. `of`: the model and mode whose scores these are.
    """

    model: str
    area: str
    value: Estimate
    source: Source
    n_scores: int
    n_harnesses: int
    of: str
    note: str


class AnswerTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens an answer, thinking included: geometric mean and range over `value.n` sets of tasks."""

    value: Estimate
    source: str


@dataclass(frozen=True)
class Joint:
    """Abilities of M models in one area, in logits with their M x M covariance: what draws and comparisons rest on."""

    area: str
    models: tuple[str, ...]
    value_M: Floats
    cov_MM: Floats
    found: tuple[Found, ...]
    sources: tuple[Source, ...]

    def points(self, logits: Floats) -> Floats:
        """Logits as points of 0 to 100."""
        zero = ability_data().zero
        return np.asarray(100 / (1 + np.exp(-(logits - zero[self.area if self.area in zero else ELSEWHERE]))))

    def draws(self, worlds: int, seed: int) -> Floats:
        """(worlds, M) abilities in points, each row one world that the scores allow."""
        eigen, vectors = np.linalg.eigh(self.cov_MM)
        z = np.random.default_rng(seed).standard_normal((worlds, len(self.models)))
        # The symmetric root, so that a model's own draw is the same in every area.
        return self.points(self.value_M + z @ (vectors * np.sqrt(np.maximum(eigen, 0))) @ vectors.T)

    def better(self, i: int, j: int) -> float:
        """Chance that model i does better than j on tasks that find them apart by over 3 points.

        Tasks nobody has seen yet, so that what a harness does to one model counts as doubt; of own tasks there are no
        others.
        """
        data = ability_data()
        var = self.cov_MM[i, i] + self.cov_MM[j, j] - 2 * self.cov_MM[i, j]
        var += data.again * sum(self.sources[k] != "own" for k in (i, j))
        middle = float(np.mean(self.points(self.value_M[[i, j]])) / 100)
        return chance_of(float(self.value_M[i] - self.value_M[j]), math.sqrt(max(var, 1e-9)), middle)


def chance_of(difference: float, deviation: float, middle: float) -> float:
    """Of two shares around `middle` that turn out apart by over `APART`: chance that the first is the larger.

    `difference` of their logits, with its standard deviation.
    """
    middle = min(max(middle, 0.1), 0.9)
    apart = APART / (middle * (1 - middle))
    first, second = (0.5 * math.erfc((apart - sign * difference) / deviation / math.sqrt(2)) for sign in (1, -1))
    return first / (first + second) if first + second > 0 else float(difference > 0)


def ability(model: str | ModelSpec, area: str, own: OwnScores | None = None) -> Ability:
    """How able `model` is in `area`, one of `AREAS` or a language's code.

    `model`: NAME, NAME#MODE, a hub id, or a spec of any name. `own`: the user's scores, which come before all others.
    Raises UserError for an area without scores, and for a name of which neither score nor size is known.
    """
    return abilities([model], area, own)[0]


def abilities(models: Sequence[str | ModelSpec], area: str, own: OwnScores | None = None) -> list[Ability]:
    """`ability` of each; own scores put all on the scale of these tasks at once."""
    both = joint(models, area, own)
    half = _CONFIDENT * np.sqrt(np.maximum(np.diag(both.cov_MM), 0))
    values, lows, highs = (both.points(both.value_M + sign * half) for sign in (0, -1, 1))
    mine = () if own is None else own.of_area(area, is_language=is_language(area))
    out = []
    for i, (name, each, source) in enumerate(zip(both.models, both.found, both.sources, strict=True)):
        scores, harnesses, note = each.n_scores, each.n_harnesses, each.note
        if own is not None and source == "own":
            scores, harnesses = sum(_same(s.model, name) for s in mine), 1
            note = f"your scores in {own.source}; their level by what is published of these models"
        out.append(Ability(
            model=name, area=area, source=source, n_scores=scores, n_harnesses=harnesses, of=each.key, note=note,
            value=Estimate(float(values[i]), float(lows[i]), float(highs[i]), scores or None, _PROVENANCE[source]),
        ))  # fmt: skip
    return out


def better(a: str | ModelSpec, b: str | ModelSpec, area: str, own: OwnScores | None = None) -> float:
    """Chance that `a` does better than `b` on tasks of `area` that tell the two apart (`Joint.better`)."""
    return joint([a, b], area, own).better(0, 1)


def scored(model: str) -> tuple[str, ...]:
    """NAME#MODE of what has scores of this very release: base, plain, thinking, or an effort."""
    releases = {kin.release for kin in names_of(model)}
    return tuple(key for key in ability_data().models if key.partition("#")[0] in releases)


def left_out() -> dict[str, float]:
    """How well the fit did on harnesses that it had not seen (docs/quality.md says what the figures are)."""
    return dict(ability_data().left_out)


def joint(models: Sequence[str | ModelSpec], area: str, own: OwnScores | None = None) -> Joint:
    """Abilities of all `models` together, with what their errors have in common."""
    scores = () if own is None else own.of_area(area, is_language=is_language(area))
    names = [model if isinstance(model, str) else model.name for model in models]
    asked = [_found(model, name, area, scores) for model, name in zip(models, names, strict=True)]
    # Own scores of models that nobody asked for say how hard the tasks are.
    for score in scores:
        if not any(_same(score.model, name) for name in names):
            names.append(score.model)
            asked.append(_found(score.model, score.model, area, scores))
    value, cov = np.array([each.value for each in asked]), covariance(asked, area)
    sources: list[Source] = [each.source for each in asked]
    if scores:
        value, cov, sources = _overridden(names, value, cov, sources, scores)
    n = len(models)
    return Joint(area, tuple(names[:n]), value[:n], cov[:n, :n], tuple(asked[:n]), tuple(sources[:n]))


def _found(model: str | ModelSpec, name: str, area: str, scores: Sequence[OwnScore]) -> Found:
    """What is known; of a model with own scores nothing else need be known."""
    try:
        return found(model, area)
    except UserError:
        if not any(_same(score.model, name) for score in scores):
            raise
        zero = ability_data().zero
        middle = zero[area if area in zero else ELSEWHERE]
        return Found(name, name, middle, _ANYTHING, (), "size", 0, 0, "nothing but your scores is known of it")


def _same(one: str, other: str) -> bool:
    return one.lower() == other.lower() or kin_of(one) == kin_of(other)


def own_format(model: str, area: str, own: OwnScores) -> str | None:
    """The weight format that the user's scores of a model in an area are of; None: 16 bits, or nobody said."""
    scores = own.of_area(area, is_language=is_language(area))
    return next((score.format for score in scores if _same(score.model, model)), None)


@lru_cache(maxsize=256)
def _kept_in(model: str, format_name: str | None) -> float:
    """What is expected to be left of a score in 16 bits; 1 where no format is said or the model's size is not known."""
    if format_name is None:
        return 1.0
    try:
        return kept_share(expected_loss(lookup(find(model).name), None, format_name).kl.value)
    except (UserError, ValueError):
        return 1.0


def _overridden(
    names: Sequence[str], value: Floats, cov: Floats, sources: Sequence[Source], scores: Sequence[OwnScore]
) -> tuple[Floats, Floats, list[Source]]:
    """Own tasks on the common scale. Which of the models in them is better, and by how much, own scores alone decide;
    their level is where other knowledge of these models puts it on average.

    Shapes: M models, T sets of tasks.
    """
    tasks = list(dict.fromkeys(score.task for score in scores))
    y_MT, w_MT = np.zeros((len(names), len(tasks))), np.zeros((len(names), len(tasks)))
    for score in scores:
        i = next(i for i, name in enumerate(names) if _same(score.model, name))
        solved = (score.score * score.n + 0.5) / (score.n + 1)
        # What the weights in 16 bits would have solved: a format's loss is taken off once, where an option has it.
        solved = min(solved / _kept_in(score.model, score.format), 1 - 0.5 / (score.n + 1))
        y_MT[i, tasks.index(score.task)] = math.log(solved / (1 - solved))
        w_MT[i, tasks.index(score.task)] = (score.n + 1) * solved * (1 - solved)
    there = w_MT > 0
    doubt_MT = np.diag(cov)[:, None] + ability_data().again + 1 / np.where(there, w_MT, 1.0)
    q_MT = np.where(there, 1 / doubt_MT, 0.0)
    level_T, level_var_T = ((y_MT - value[:, None]) * q_MT).sum(0) / q_MT.sum(0), 1 / q_MT.sum(0)
    mine = np.asarray(there.any(1))
    weight_M = np.where(mine, w_MT.sum(1), 1.0)
    r_MT = w_MT / weight_M[:, None]
    told = np.where(mine, (r_MT * (y_MT - level_T)).sum(1), value)
    own_cov = (r_MT * level_var_T) @ r_MT.T + np.diag(1 / weight_M)
    mixed = r_MT @ (q_MT / q_MT.sum(0)).T @ cov
    out = np.where(np.outer(mine, mine), own_cov, cov)
    out = np.where(np.outer(mine, ~mine), mixed, np.where(np.outer(~mine, mine), mixed.T, out))
    return told, out, ["own" if is_own else source for is_own, source in zip(mine, sources, strict=True)]


def answer_tokens(model: str, area: str, own: OwnScores | None = None) -> AnswerTokens | None:
    """Tokens of an answer in `area`: the user's own, that model's published mean, or the range of
    `LEAST_ALIKE` models or more that answer as it does, thinking or not.

    None where nothing of the kind was published: a length is never made up.
    """
    mine = [] if own is None else [s for s in own.scores if s.answer_tokens is not None and _same(s.model, model)]
    if own is not None and mine:
        lengths = [s.answer_tokens or 0.0 for s in mine]
        mean = sum(s.n * length for s, length in zip(mine, lengths, strict=True)) / sum(s.n for s in mine)
        return AnswerTokens(value=measured(mean, min(lengths), max(lengths), len(mine)), source=f"your {own.source}")
    key = scored_key(names_of(model))
    mode = key.partition("#")[2] if key else kin_of(model).mode
    rows = [each for each in ability_data().answers if each.area == area]
    this = [each for each in rows if each.model == key]
    alike = [each for each in rows if (THOUGHT[each.model.partition("#")[2]] > 0) == (THOUGHT[mode] > 0)]
    others = "published for other models that answer so"
    for some, least, what in ((this, 1, f"published for {key}"), (alike, LEAST_ALIKE, others)):
        if len({each.model for each in some}) >= least:
            logs = np.log([each.tokens for each in some])
            names = ", ".join(dict.fromkeys(each.benchmark for each in some))
            value, low, high = (float(np.exp(each)) for each in (logs.mean(), logs.min(), logs.max()))
            provenance: Provenance = "published" if some is this else "predicted"
            one = len(some) == 1
            told = Estimate(value, None if one else low, None if one else high, len(some), provenance)
            return AnswerTokens(value=told, source=f"{what}: {names}")
    return None
