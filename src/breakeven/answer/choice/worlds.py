"""What may be wrong, drawn many times: how able each model is, what its format costs, how fast it runs here.

In a world every model has one ability, every format a loss, every option a speed; who is best there among those that
keep the limits wins it. Shapes: W worlds, M models, O options (sorted by model).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from breakeven.answer.choice.machine import Site
from breakeven.answer.choice.search import Runnable
from breakeven.answer.choice.uses import Wish
from breakeven.forecast.constants import Profile, error_of
from breakeven.model.quality.ability import Ability, Joint, abilities, joint, languages, own_format
from breakeven.model.quality.curve import loss_fit
from breakeven.model.quality.loss import Loss, expected_loss
from breakeven.model.quality.own import OwnScores
from breakeven.stats.estimate import Estimate
from breakeven.traffic.prompts import rng

Floats = NDArray[np.float64]
WORLDS = 400
SEED = 17
CONFIDENT = 1.96
DOUBT_ELSEWHERE = 2.0
"""Times the band of what KL takes of a score, in areas where nobody published both: how knowledge loses stands in."""
TRANSLATED = "knowledge"
"""The area in which pairs of KL and score were published."""
ENGLISH = "en"


@dataclass(frozen=True)
class DrawnWorlds:
    """All draws, and the middles they are around. `models`: the options' models, in their order; `of_O`: which one an
    option is of; `starts_M`: the first option of each."""

    models: tuple[str, ...]
    of_O: NDArray[np.intp]
    starts_M: NDArray[np.intp]
    ability_WM: Floats
    quality_WO: Floats
    speed_WO: Floats
    ttft_WO: Floats
    quality_O: Floats
    speed_O: Floats
    ttft_O: Floats
    losses: tuple[Loss, ...]
    areas: tuple[str, ...]
    unknown: tuple[str, ...]
    told: dict[str, tuple[Ability, ...]]

    @property
    def scored_M(self) -> NDArray[np.bool_]:
        """Models of which more is known than their size."""
        known = [[each.source != "size" for each in self.told[area]] for area in self.areas]
        return np.asarray(np.all(known, axis=0))

    def keeps_O(self, wish: Wish) -> NDArray[np.bool_]:
        """Options whose middle keeps speed and time to the first token."""
        return (self.speed_O >= wish.min_speed) & (self.ttft_O <= (wish.ttft_s or np.inf))

    def scores_WM(self, wish: Wish, allowed_O: NDArray[np.bool_]) -> Floats:
        """Each model's best quality among its allowed options that keep the limits in a world; -inf: none does."""
        keeps = (self.speed_WO >= wish.min_speed) & (self.ttft_WO <= (wish.ttft_s or np.inf)) & allowed_O
        return np.asarray(np.maximum.reduceat(np.where(keeps, self.quality_WO, -np.inf), self.starts_M, axis=1))

    def quality(self, option: int) -> Estimate:
        """An option's quality with the band of its draws."""
        low, high = np.percentile(self.quality_WO[:, option], (2.5, 97.5))
        value = float(self.quality_O[option])
        return Estimate(value, min(float(low), value), max(float(high), value))

    def keeps_share(self, option: int, wish: Wish) -> float:
        """Worlds in which an option keeps speed and time to the first token."""
        keeps = (self.speed_WO[:, option] >= wish.min_speed) & (self.ttft_WO[:, option] <= (wish.ttft_s or np.inf))
        return float(keeps.mean())


def areas_of(wish: Wish) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What quality is the mean of, and the languages of which nothing is known.

    English is what the areas themselves are asked in; of `translate` the languages are all there is.
    """
    known = [code for code in wish.languages if code in languages()]
    unknown = tuple(code for code in wish.languages if code not in languages() and code != ENGLISH)
    if wish.area == "language":
        return tuple(known) or ("instruction",), unknown
    return (wish.area, *known), unknown


def worlds_of(options: tuple[Runnable, ...], place: Site, wish: Wish, seed: int = SEED) -> DrawnWorlds:
    """The draws for these options, which are at least one."""
    models = tuple(dict.fromkeys(option.name for option in options))
    index = {name: i for i, name in enumerate(models)}
    of_O = np.array([index[option.name] for option in options])
    starts_M = np.searchsorted(of_O, np.arange(len(models)))
    areas, unknown = areas_of(wish)
    told = {area: tuple(abilities(models, area, wish.own)) for area in areas}
    ability_M = np.mean([[each.value.value for each in told[area]] for area in areas], axis=0)
    # Another stream than the abilities', whose numbers the losses would repeat.
    draw = rng(seed, "losses and speeds")
    losses = tuple(_loss(option, wish) for option in options)
    asked = _asked_in(options, models, starts_M, areas, wish)
    both = losses + tuple(asked.values())
    of_both = np.concatenate([of_O, np.array([m for _, m in asked], dtype=of_O.dtype)])
    kept, kept_W = _kept(both, of_both, len(models), areas == (TRANSLATED,), draw)
    kept_O, kept_WO = kept[: len(losses)], kept_W[:, : len(losses)]
    # A model that is better than told is so in all areas: the same draws for each of them.
    drawn = {area: _joint(models, area, wish.own).draws(WORLDS, seed) for area in areas}
    for at, (area, model) in enumerate(asked, start=len(losses)):
        # What was asked is known as it is, whatever its format costs: only others of that model differ in doubt.
        drawn[area][:, model] *= kept[at] / kept_W[:, at]
    ability_WM = np.mean(list(drawn.values()), axis=0)
    speed_WO, ttft_WO = (
        np.exp(sign * _errors(options, place, phase, of_O, len(models), draw))
        for sign, phase in ((1.0, "decode"), (-1.0, "prefill"))
    )
    speed_O = np.array([option.timed.speed for option in options])
    ttft_O = np.array([option.timed.ttft_s for option in options])
    return DrawnWorlds(
        models=models, of_O=of_O, starts_M=starts_M, ability_WM=ability_WM,
        quality_WO=ability_WM[:, of_O] * kept_WO, speed_WO=speed_WO * speed_O, ttft_WO=ttft_WO * ttft_O,
        quality_O=ability_M[of_O] * kept_O, speed_O=speed_O, ttft_O=ttft_O,
        losses=losses, areas=areas, unknown=unknown, told=told,
    )  # fmt: skip


@lru_cache(maxsize=32)
def _joint(models: tuple[str, ...], area: str, own: OwnScores | None) -> Joint:
    return joint(models, area, own)


def _loss(option: Runnable, wish: Wish) -> Loss:
    shape = option.shape
    foreign = [code for code in wish.languages if code != ENGLISH]
    return _loss_of(
        option.name, option.format, round(option.bits, 3), option.kv, shape.moe,
        shape.total_params / 1e9, shape.active_params / 1e9,
        "code" if wish.area == "code" else foreign[0] if foreign else None,
    )  # fmt: skip


def _asked_in(
    options: tuple[Runnable, ...],
    models: tuple[str, ...],
    starts_M: NDArray[np.intp],
    areas: tuple[str, ...],
    wish: Wish,
) -> dict[tuple[str, int], Loss]:
    """By area and model the loss of the weights that the user's own scores are of, where they say of which."""
    found: dict[tuple[str, int], Loss] = {}
    if wish.own is None:
        return found
    for area, (m, name) in itertools.product(areas, enumerate(models)):
        if (said := own_format(name, area, wish.own)) is not None:
            own = [o for o in options[starts_M[m] :] if o.name == name]
            same, shape = next((o for o in own if o.format == said and o.kv == "f16"), None), own[0].shape
            found[area, m] = _loss(same, wish) if same is not None else _loss_of(
                name, said, None, "f16", shape.moe, shape.total_params / 1e9, shape.active_params / 1e9, None
            )  # fmt: skip
    return found


@lru_cache(maxsize=16384)
def _loss_of(
    name: str,
    method: str,
    bits: float | None,
    kv: str,
    moe: bool,
    total_b: float,
    active_b: float,
    language: str | None,
) -> Loss:
    if method == "MXFP4":
        # Only models that were trained in it are taken in it: nothing finer exists, so only the cache loses anything.
        method, bits = "BF16", 16.0
    return expected_loss(
        "moe" if moe else "dense", bits, method,
        name=name, total_b=total_b, active_b=active_b, kv=kv, language=language,
    )  # fmt: skip


def _kept(
    losses: tuple[Loss, ...], of_O: NDArray[np.intp], n_models: int, translated: bool, draw: np.random.Generator
) -> tuple[Floats, Floats]:
    """Shares of a score that are left after a format's loss: in the middle, and in each world.

    A model that loses more than expected does so in all its formats; how KL turns into points is off for all alike.
    """
    pairs = loss_fit().knowledge
    tiny = 1e-9
    middle = np.log([max(loss.kl.value, tiny) for loss in losses])
    half = np.array([np.log(max(loss.kl.most, tiny) / max(loss.kl.least, tiny)) / 2 for loss in losses])
    mine_WM, all_W = draw.standard_normal((WORLDS, n_models)), draw.standard_normal((WORLDS, 1))
    log_kl_WO = middle + mine_WM[:, of_O] * half / CONFIDENT
    shift_W = all_W * pairs.half_width * (1.0 if translated else DOUBT_ELSEWHERE) / CONFIDENT
    return (
        np.exp(-np.exp(pairs.level + pairs.slope * middle)),
        np.exp(-np.exp(pairs.level + pairs.slope * log_kl_WO + shift_W)),
    )


def _errors(
    options: tuple[Runnable, ...],
    place: Site,
    phase: str,
    of_O: NDArray[np.intp],
    n_models: int,
    draw: np.random.Generator,
) -> Floats:
    """(W, O) logarithms of how much faster than predicted: what the machine shares, and what is each model's own."""
    widths = {}
    for option in options:
        key = (option.format, option.shape.moe, option.spilled)
        if key not in widths:
            widths[key] = _widths(place.formats.get(option.format, place.profile), phase, *key[1:])
    both = np.array([widths[option.format, option.shape.moe, option.spilled] for option in options])
    shared_W1, mine_WM = draw.standard_normal((WORLDS, 1)), draw.standard_normal((WORLDS, n_models))
    return np.asarray((shared_W1 * both[:, 0] + mine_WM[:, of_O] * both[:, 1]) / CONFIDENT)


def _widths(profile: Profile, phase: str, moe: bool, spilled: bool) -> tuple[float, float]:
    """Half widths of the error that all models share, and of a model's own."""
    error = error_of(profile, phase, moe=moe, spilled=spilled)
    return float(np.sqrt(max(error.log_half_width**2 - error.between_models**2, 0.0))), error.between_models
