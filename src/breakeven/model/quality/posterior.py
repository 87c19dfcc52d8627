"""What is known of models' abilities: the posterior of the fit over all harnesses, and which entry a name means.

All is in logits. The data (`data/ability.json`) hold no scores, only what `bench/fit_ability.py` found from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import active_params, total_params
from breakeven.model.catalogue import CatalogueEntry, find, lookup
from breakeven.model.quality.kin import THOUGHT, Kin, kin_of

Floats = NDArray[np.float64]
Source = Literal["own", "scores", "size"]
AREAS = ("knowledge", "reasoning", "code", "tools", "instruction")
"""Beside these, each language of `languages()` is an area."""
ELSEWHERE = "language"
"""In the data: a language in which a model has no scores."""
UNKNOWN_YEAR = 0.4
"""Years since 2025 of the middle of what is scored."""
YEARS_SD = 0.7


class Posterior(msgspec.Struct):
    """One model in one mode. `at`: by area value, deviation, and shares in the doubts that all models have in common.
    `n`: scores by area."""

    harnesses: list[str]
    n: dict[str, int]
    at: dict[str, list[float]]


class BySize(msgspec.Struct):
    """Logits by feature with their covariance; deviations of a series, weights and a release that has no scores;
    by series its effect and the deviation that is left."""

    coefficients: list[float]
    covariance: list[list[float]]
    series_sd: float
    release_sd: float
    series: dict[str, tuple[float, float]]


class PublishedLength(msgspec.Struct, frozen=True):
    """Mean tokens of one model's answers in one benchmark."""

    model: str
    benchmark: str
    area: str
    tokens: float


class ScoreOrigin(msgspec.Struct, frozen=True):
    """A source of scores that the fit read. `rows`: how many."""

    rows: int
    models: int
    licence: str
    link: str


class AbilityData(msgspec.Struct):
    """The data file. `again`: variance that a harness adds for one model. `zero`: by area the middle model.
    `series`: its models in order; `kin`: by series and area, the covariances of these beyond what all have in common,
    the lower triangle without its diagonal."""

    about: str
    again: float
    zero: dict[str, float]
    sizes: dict[str, BySize]
    models: dict[str, Posterior]
    series: dict[str, list[str]]
    kin: dict[str, dict[str, list[float]]]
    sources: dict[str, ScoreOrigin]
    answers: list[PublishedLength]
    left_out: dict[str, float]


@lru_cache(maxsize=1)
def ability_data() -> AbilityData:
    """The posterior that is shipped."""
    data = resources.files("breakeven.model").joinpath("data", "ability.json").read_bytes()
    return msgspec.json.decode(data, type=AbilityData)


@lru_cache(maxsize=1)
def languages() -> tuple[str, ...]:
    """Codes of the languages in which some model has scores."""
    known = {area for model in ability_data().models.values() for area in model.at}
    return tuple(sorted(known - {*AREAS, ELSEWHERE}))


def is_language(area: str) -> bool:
    """Whether it is one of `languages()`. Raises UserError for what is no area either."""
    if area not in AREAS and area not in languages():
        raise UserError(
            f"no scores in {area!r} are known; areas are {', '.join(AREAS)}, languages {', '.join(languages())}"
        )
    return area not in AREAS


@dataclass(frozen=True, slots=True)
class Found:
    """A model's posterior in one area. `key`: NAME#MODE of whose scores these are. `shared`: its part in the doubts
    in common, those of scored models and then those of guesses by size."""

    key: str
    series: str
    value: float
    sd: float
    shared: tuple[float, ...]
    source: Source
    n_scores: int
    n_harnesses: int
    note: str


def found(model: str | ModelSpec, area: str) -> Found:
    """What is known of `model` in `area`. Raises UserError for a name with neither scores nor a known size."""
    foreign = is_language(area)
    kins = names_of(model)
    key = scored_key(kins)
    if key is None:
        return _by_size(model, kins, area)
    held = ability_data().models[key]
    at = held.at.get(area) or held.at[ELSEWHERE if foreign else area]
    n = held.n.get(area, 0)
    told = f"{n} score{'s' * (n != 1)} in {area}" if n else f"no score in {area} itself"
    note = f"{told}, {sum(held.n.values())} in all; harnesses: {', '.join(held.harnesses)}"
    return Found(key, kin_of(key).series, at[0], at[1], tuple(at[2:]), "scores", n, len(held.harnesses), note)


def names_of(model: str | ModelSpec) -> list[Kin]:
    """What a name may mean, in order: itself, then the hub ids of the catalogued model."""
    name, _, said = (model if isinstance(model, str) else model.name).partition("#")
    entry = _entry(name)
    ids = () if entry is None else (entry.hub_id, *entry.facts.also)
    return [kin_of(f"{each}#{said}" if said else each) for each in (name, *ids)]


def _entry(name: str) -> CatalogueEntry | None:
    try:
        return find(name)
    except UserError:
        return None


def scored_key(kins: Sequence[Kin]) -> str | None:
    """The scored model that is meant: where no mode was said, one that answers before a base model."""
    models = ability_data().models
    # A hub id that says how its model answers comes before what the family does.
    for kin in sorted(kins, key=lambda each: not each.told):
        if kin.key in models and (kin.mode != "base" or kins[0].told):
            return kin.key
    for kin in kins:
        same = [key for key in models if key.partition("#")[0] == kin.release]
        if same and not kins[0].told:
            return max(same, key=lambda key: (not key.endswith("#base"), sum(models[key].n.values())))
    return None


def _by_size(model: str | ModelSpec, kins: Sequence[Kin], area: str) -> Found:
    name = model if isinstance(model, str) else model.name
    entry = _entry(name.partition("#")[0])
    if isinstance(model, str) and entry is None:
        raise UserError(f"nothing is known of {name!r}: no scores, no size; `breakeven models` lists names")
    spec = model if isinstance(model, ModelSpec) else lookup(name.partition("#")[0])
    kin = next((each for each in kins if each.told), kins[-1])
    mode = kin.mode if kin.told or kin.mode != "base" else "plain"
    date = None if entry is None else entry.facts.date
    year = kin.year or (None if date is None else year_of(date))
    sizes = ability_data().sizes
    size = sizes[area if area in sizes else ELSEWHERE]
    x = size_features(total_params(spec) / 1e9, active_params(spec) / 1e9, year, mode)
    known = kin.series in size.series
    effect, series_sd = size.series.get(kin.series, (0.0, size.series_sd))
    var = float(x @ np.array(size.covariance) @ x) + series_sd**2 + size.release_sd**2
    if year is None:
        var += (size.coefficients[2] * YEARS_SD) ** 2
    note = "no scores: a guess from parameters, total and active, and date" + (
        f"; others of the {kin.series} series have scores" if known else ""
    )
    eigen, vectors = np.linalg.eigh(np.array(size.covariance))
    rank = len(next(iter(ability_data().models.values())).at[AREAS[0]]) - 2
    # Behind the doubts that scored models share, those in the rule by size, which all guesses have in common.
    shared = (*[0.0] * rank, *(float(part) for part in x @ (vectors * np.sqrt(np.maximum(eigen, 0)))))
    value = float(x @ np.array(size.coefficients)) + effect
    return Found(f"{kin.release}#{mode}", kin.series, value, math.sqrt(var), shared, "size", 0, 0, note)


def year_of(date: str) -> float:
    """The middle of the month of a date as `2025-07-21`, in years."""
    return int(date[:4]) + (int(date[5:7]) - 0.5) / 12


def size_features(total_b: float, active_b: float, year: float | None, mode: str) -> Floats:
    """What the fit knows of a model without scores: log2 of billions of parameters over 3, total and active; years
    since 2025; how much it thinks; whether it is a base model. An eightfold size is one unit."""
    when = UNKNOWN_YEAR if year is None else year - 2025
    return np.array([math.log2(total_b) / 3, math.log2(active_b) / 3, when, THOUGHT[mode], float(mode == "base")])


def covariance(models: Sequence[Found], area: str) -> Floats:
    """M x M: what their doubts have in common, and on the diagonal the whole of each."""
    rank = max((len(each.shared) for each in models), default=0)
    u = np.zeros((len(models), rank))
    for i, each in enumerate(models):
        u[i, : len(each.shared)] = each.shared
    cov = u @ u.T
    for i, one in enumerate(models):
        cov[i, i] = one.sd**2
        for j, other in enumerate(models[:i]):
            if one.key == other.key:
                cov[i, j] = cov[j, i] = one.sd * other.sd
            elif one.series == other.series:
                cov[i, j] = cov[j, i] = cov[i, j] + _of_kin(one, other, area)
    return np.asarray(cov)


def _of_kin(one: Found, other: Found, area: str) -> float:
    data = ability_data()
    order = data.series.get(one.series, [])
    if one.key not in order or other.key not in order:
        # One of them is known by its size: it has the series in common with the other, and no more.
        size = data.sizes[area if area in data.sizes else ELSEWHERE]
        if one.series in size.series:
            return size.series[one.series][1] ** 2
        return size.series_sd**2 if one.source == other.source == "size" else 0.0
    i, j = sorted((order.index(one.key), order.index(other.key)), reverse=True)
    triangles = data.kin[one.series]
    return triangles[area if area in triangles else ELSEWHERE][i * (i - 1) // 2 + j]
