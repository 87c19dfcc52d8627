"""One scale for scores of many harnesses: a linear mixed model of logits, solved series by series.

A score of entity e (a model in one mode) on benchmark b, corrected for guessing, has the logit

    y = alpha_b + lambda_b * (x_e . beta + effects_e) + noise,

where the effects are normal: of the series, the weights and the entity, each also by area and by language, and of the
entity in that harness (what a harness does to one model is no ability). Entities of different series share only
alpha and beta, so the covariance of scores is a block a series. Latent item-response models with many benchmarks come
to the same scale; this one has its posterior in closed form.

Shapes: N scores, B benchmarks, F features, A areas, P = B + coefficients, T targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from bench.ability.areas import FITTED
from bench.ability.rows import LEAST, MOST, Score
from breakeven.model.quality.posterior import size_features

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEATURES = ("total", "active", "year", "thinking", "base")
"""total, active: log2 of billions of parameters over 3, so that 1 is eightfold. year: since 2025. thinking: 0 to 1."""
EFFECTS = {
    "series": 0.40, "series_area": 0.20, "series_foreign": 0.20, "weights": 0.30, "weights_area": 0.20,
    "weights_foreign": 0.20, "weights_language": 0.20, "entity": 0.20, "entity_area": 0.20, "harness": 0.25,
    "harness_area": 0.20,
}  # fmt: skip
"""Standard deviations in logits, from which the fit begins."""
PRIOR_ALPHA, PRIOR_COMMON, PRIOR_AREA = 2.0, 1.0, 0.4
"""Standard deviations of intercepts, of coefficients, and of how these differ by area and abroad."""
NOISE = 0.15
"""Of a benchmark beyond drawing its tasks, to begin with."""
STRANGE = 4.0
"""Degrees of freedom of Student's t: a score far off counts less, and so does a model in a harness that it fails."""


@dataclass(frozen=True)
class Points:
    """N points of the model: scores, or targets (harness -1). `language` -1: English; -2: some other, unnamed."""

    entity: Ints
    weights: Ints
    series: Ints
    harness: Ints
    language: Ints
    area_NA: Floats
    x_NF: Floats
    scale: Floats

    def rows(self, index: Ints) -> Points:
        """Those of `index`."""
        return Points(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    @property
    def foreign(self) -> Floats:
        """1 where the language is not English."""
        return np.asarray(self.language != -1, dtype=np.float64)


@dataclass
class Data:
    """Scores as arrays, and the names of what their numbers stand for."""

    points: Points
    y: Floats
    drawn: Floats
    """Variance from drawing the tasks."""
    benchmark: Ints
    entities: list[str]
    weights: list[str]
    series: list[str]
    harnesses: list[str]
    languages: list[str]
    benchmarks: list[str]


def data_of(scores: Sequence[Score]) -> Data:
    """Arrays of the scores."""
    names: dict[str, list[str]] = {
        "entity": sorted({s.kin.key for s in scores}),
        "weights": sorted({s.kin.weights for s in scores}),
        "series": sorted({s.kin.series for s in scores}),
        "harness": sorted({s.harness for s in scores}),
        "language": sorted({s.language for s in scores if s.language}),
        "benchmark": sorted({s.benchmark for s in scores}),
    }
    at = {kind: {name: i for i, name in enumerate(each)} for kind, each in names.items()}
    guessed = np.array([(s.share - s.chance) / (1 - s.chance) for s in scores])
    solved = np.clip(guessed, LEAST, MOST)
    share = np.clip([s.share for s in scores], 0.01, 0.99)
    spread = share * (1 - share) / np.array([s.items for s in scores])
    slope = 1 / ((1 - np.array([s.chance for s in scores])) * solved * (1 - solved))
    points = Points(
        entity=np.array([at["entity"][s.kin.key] for s in scores]),
        weights=np.array([at["weights"][s.kin.weights] for s in scores]),
        series=np.array([at["series"][s.kin.series] for s in scores]),
        harness=np.array([at["harness"][s.harness] for s in scores]),
        language=np.array([at["language"][s.language] if s.language else -1 for s in scores]),
        area_NA=np.array([[dict(s.areas).get(area, 0.0) for area in FITTED] for s in scores]),
        x_NF=np.array([size_features(s.total_b, s.active_b, s.year, s.kin.mode) for s in scores]),
        scale=np.ones(len(scores)),
    )
    benchmark = np.array([at["benchmark"][s.benchmark] for s in scores])
    return Data(
        points, np.log(solved / (1 - solved)), spread * slope**2, benchmark,
        *(names[kind] for kind in ("entity", "weights", "series", "harness", "language", "benchmark")),
    )  # fmt: skip


def kernel(a: Points, b: Points, sd: dict[str, float], strange: Floats | None = None) -> Floats:
    """Covariance of effects between the points. `strange`: factor of the harness' variance by row, for a == b."""

    def same(name: str) -> Floats:
        left, right = getattr(a, name)[:, None], getattr(b, name)[None, :]
        return np.asarray((left == right) & (left >= 0), dtype=np.float64)

    area = a.area_NA @ b.area_NA.T
    foreign = np.outer(a.foreign, b.foreign)
    series, weights, entity = same("series"), same("weights"), same("entity")
    var = {name: value**2 for name, value in sd.items()}
    k = series * (var["series"] + var["series_area"] * area + var["series_foreign"] * foreign)
    k += weights * (var["weights"] + var["weights_area"] * area + var["weights_foreign"] * foreign)
    k += weights * same("language") * var["weights_language"]
    k += entity * (var["entity"] + var["entity_area"] * area)
    there = entity * same("harness") * (var["harness"] + var["harness_area"] * area)
    k += there if strange is None else there * strange[:, None]
    return k * np.outer(a.scale, b.scale)


def design(points: Points) -> Floats:
    """The (N, F * (2 + A)) columns of coefficients: common, by area, abroad."""
    n = len(points.entity)
    by_area = (points.area_NA[:, :, None] * points.x_NF[:, None, :]).reshape(n, -1)
    columns = np.concatenate([points.x_NF, by_area, points.foreign[:, None] * points.x_NF], axis=1)
    return np.asarray(columns * points.scale[:, None])


def _prior(n_benchmarks: int) -> Floats:
    """Variances of the P linear unknowns."""
    n_features = len(FEATURES)
    dev = n_features * (len(FITTED) + 1)
    return np.concatenate([
        np.full(n_benchmarks, PRIOR_ALPHA**2), np.full(n_features, PRIOR_COMMON**2), np.full(dev, PRIOR_AREA**2)
    ])  # fmt: skip


@dataclass
class Block:
    """One series: which scores, and what solves with their covariance."""

    rows: Ints
    kernel_NN: Floats
    solved_x_NP: Floats
    """K^-1 X over the columns in use."""
    solved_y: Floats


@dataclass
class Fitted:
    """The model with its unknowns found; `scale` of a score is its benchmark's lambda."""

    data: Data
    sd: dict[str, float]
    slope_B: Floats
    noise_B: Floats
    light: Floats
    """Weights of Student's t by score."""
    strange: Floats
    """Factor on the harness effect's variance by score."""
    mean_P: Floats = field(default_factory=lambda: np.zeros(0))
    cov_PP: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    blocks: dict[int, Block] = field(default_factory=dict)
    likelihood: float = 0.0

    def solve(self) -> Fitted:
        """The posterior of intercepts and coefficients, and the marginal likelihood."""
        data = self.data
        points = replace(data.points, scale=self.slope_B[data.benchmark])
        n_bench = len(data.benchmarks)
        x_NP = np.zeros((len(data.y), n_bench + len(FEATURES) * (len(FITTED) + 2)))
        x_NP[np.arange(len(data.y)), data.benchmark] = 1
        x_NP[:, n_bench:] = design(points)
        noise = (data.drawn + self.noise_B[data.benchmark] ** 2) / self.light
        prior = _prior(n_bench)
        precision, pull = np.diag(1 / prior), np.zeros(len(prior))
        logs, fit = float(np.sum(np.log(prior))), 0.0
        for series in np.unique(points.series):
            rows = np.flatnonzero(points.series == series)
            here = points.rows(rows)
            k = kernel(here, here, self.sd, self.strange[rows]) + np.diag(noise[rows])
            used = np.flatnonzero(np.any(x_NP[rows] != 0, axis=0))
            x, y = x_NP[np.ix_(rows, used)], data.y[rows]
            solved = np.linalg.solve(k, np.concatenate([x, y[:, None]], axis=1))
            logs += float(np.linalg.slogdet(k)[1])
            fit += float(y @ solved[:, -1])
            precision[np.ix_(used, used)] += x.T @ solved[:, :-1]
            pull[used] += x.T @ solved[:, -1]
            wide = np.zeros((len(rows), len(prior)))
            wide[:, used] = solved[:, :-1]
            self.blocks[int(series)] = Block(rows, k, wide, solved[:, -1])
        self.cov_PP = np.asarray(np.linalg.inv(precision), dtype=np.float64)
        self.mean_P = self.cov_PP @ pull
        logs += float(np.linalg.slogdet(precision)[1])
        self.likelihood = -0.5 * (logs + fit - float(pull @ self.mean_P))
        return self

    def effects(self, targets: Points) -> tuple[Floats, Floats, list[tuple[Ints, Floats]]]:
        """Mean of each target, (T, P) its share in the doubt of alpha and beta, and by series the rest's covariance."""
        n_bench = len(self.data.benchmarks)
        mean = np.zeros(len(targets.entity))
        shared = np.zeros((len(mean), len(self.mean_P)))
        shared[:, n_bench:] = design(targets)
        points = replace(self.data.points, scale=self.slope_B[self.data.benchmark])
        own: list[tuple[Ints, Floats]] = []
        for series in np.unique(targets.series):
            index = np.flatnonzero(targets.series == series)
            some = targets.rows(index)
            cov = kernel(some, some, self.sd)
            if (block := self.blocks.get(int(series))) is not None:
                k_TN = kernel(some, points.rows(block.rows), self.sd)
                mean[index] = k_TN @ (block.solved_y - block.solved_x_NP @ self.mean_P)
                shared[index] -= k_TN @ block.solved_x_NP
                cov = cov - k_TN @ np.linalg.solve(block.kernel_NN, k_TN.T)
            own.append((index, cov))
        mean += design(targets) @ self.mean_P[n_bench:]
        return mean, shared, own

    def residuals(self) -> tuple[Floats, Floats, Floats]:
        """By score: what is left of y after all effects, the latent ability in its harness, and the harness' part."""
        data = self.data
        n_bench = len(data.benchmarks)
        points = replace(data.points, scale=self.slope_B[data.benchmark])
        latent, left, there = np.zeros(len(data.y)), np.zeros(len(data.y)), np.zeros(len(data.y))
        noise = (data.drawn + self.noise_B[data.benchmark] ** 2) / self.light
        for block in self.blocks.values():
            weight = block.solved_y - block.solved_x_NP @ self.mean_P
            left[block.rows] = noise[block.rows] * weight
            here = points.rows(block.rows)
            only = {name: sd if name.startswith("harness") else 0.0 for name, sd in self.sd.items()}
            there[block.rows] = kernel(here, here, only, self.strange[block.rows]) @ weight
        latent = (data.y - self.mean_P[data.benchmark] - left) / points.scale
        assert n_bench == len(self.slope_B)
        return left, latent, there / points.scale


def start(data: Data, sd: dict[str, float] | None = None) -> Fitted:
    """Slopes of 1, noise and effects as guessed."""
    n = len(data.y)
    bench = len(data.benchmarks)
    return Fitted(data, dict(sd or EFFECTS), np.ones(bench), np.full(bench, NOISE), np.ones(n), np.ones(n)).solve()


def refined(fit: Fitted, rounds: int = 3) -> Fitted:
    """Slopes and noise of benchmarks, and the weights of strange scores, by turns with the rest."""
    data = fit.data
    for _ in range(rounds):
        left, latent, there = fit.residuals()
        slope, noise = fit.slope_B.copy(), fit.noise_B.copy()
        for b in range(len(data.benchmarks)):
            rows = np.flatnonzero(data.benchmark == b)
            z, y, w = latent[rows], data.y[rows], fit.light[rows] / (data.drawn[rows] + fit.noise_B[b] ** 2)
            zc, yc = z - np.average(z, weights=w), y - np.average(y, weights=w)
            # A normal prior of the slope around 1 with a deviation of 0.3: few scores say little of it.
            slope[b] = np.clip((w @ (zc * yc) + 1 / 0.09) / (w @ zc**2 + 1 / 0.09), 0.4, 2.2)
            spare = max(0.0, float(np.sum(fit.light[rows] * left[rows] ** 2)) / max(1, len(rows)))
            # Residuals are smaller than noise, as effects took some; counted as eight scores of the usual noise.
            noise[b] = math.sqrt((len(rows) * spare + 8 * NOISE**2) / (len(rows) + 8))
        fit.slope_B = slope / np.exp(np.mean(np.log(slope)))
        fit.noise_B = noise
        sigma = data.drawn + noise[data.benchmark] ** 2
        fit.light = (STRANGE + 1) / (STRANGE + left**2 / sigma)
        of_harness = fit.sd["harness"] ** 2 + fit.sd["harness_area"] ** 2
        fit.strange = _mean_by(there**2, data) / of_harness
        fit.strange = np.maximum(1.0, (1 + fit.strange) * STRANGE / (STRANGE + 1))
        fit.solve()
    return fit


def _mean_by(values: Floats, data: Data) -> Floats:
    """Mean over the scores of one entity in one harness."""
    key = data.points.entity * len(data.harnesses) + data.points.harness
    _, index = np.unique(key, return_inverse=True)
    return np.asarray((np.bincount(index, values) / np.bincount(index))[index])


def tuned(fit: Fitted, sweeps: int = 1, step: float = 1.35) -> Fitted:
    """Standard deviations of the effects by turns, each to where the marginal likelihood is highest."""
    for _ in range(sweeps):
        for name in EFFECTS:
            for factor in (step, 1 / step):
                while True:
                    sd = fit.sd | {name: fit.sd[name] * factor}
                    tried = replace(fit, sd=sd, blocks={}).solve()
                    if tried.likelihood <= fit.likelihood + 0.1 or not 0.02 < sd[name] < 1.5:
                        break
                    fit = tried
        fit = refined(fit, 1)
    return fit
