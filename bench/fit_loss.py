"""Fits the curve of loss over bits on the published figures that are shipped, and leaves whole models out of it.

python bench/fit_loss.py [--out src/breakeven/model/data/loss_fit.json]

A linear model of log KL with normal priors whose widths are found with it (EM for variance components), and residuals
of Student's t with 4 degrees of freedom (reweighted least squares), since published figures have gross outliers.
Perplexities on plain text tell of KL, too, up to a factor that is fitted. A model is left out with its own effects:
what is predicted rests on its kind, size, kin and maker. Errors of that are the intervals.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.model.quality.curve import (
    SAME_SIZE,
    LossFit,
    LossKin,
    LossRow,
    ModelSize,
    Translation,
    curve,
    effects,
    losses,
    sixteen_bits,
)
from breakeven.model.quality.methods import EXACT, Method, method_of
from breakeven.model.quality.scores import plain_name
from breakeven.stats.intervals import T_975, student

Floats = NDArray[np.float64]
TARGET = Path(__file__).parent.parent / "src" / "breakeven" / "model" / "data" / "loss_fit.json"
DATE = "2026-11"
FREEDOM = 4.0
ROUNDS = 30
WIDE = 4.0
"""Prior standard deviation of the curve's own coefficients: no prior to speak of."""
LEAST_RATIO = 0.02
"""Perplexity that rose by less says nothing of KL: noise moves it as much, down as well."""
PERPLEXITY_NOISE = 0.005
HIGH_BITS = 6.0
APART = 0.5
"""Formats must rank right where they differ by this many bits."""
SUITE, WIKI, PILE = "mixed suite", "wikitext", "The Pile"
REFERENCE_BITS = {"iq4_nl": 4.5, "q4_0": 4.5, "iq5_k": 5.5, "iq6_k": 6.6, "q8_0": 8.5, "pure q6_k": 6.56}
NEAR_REFERENCE = 0.75
"""Rows this near in bits to a quantized reference are left out: both err alike there."""


@dataclass(frozen=True)
class Seen:
    """One figure. `bits` of the file, `terms` the features, `y` log KL or log of the perplexity's logarithm."""

    row: LossRow
    shape: ModelSize
    form: Method
    bits: float
    y: float
    direct: bool
    kin: str


def shapes() -> dict[str, ModelSize]:
    """ModelSize by the name that the table uses."""
    return {
        name: ModelSize(plain_name(name), model.kind.endswith("moe"), model.total_b, model.active_b)
        for name, model in losses().models.items()
    }


def kin_by_name(found: Sequence[ModelSize]) -> dict[str, str]:
    """Models of one maker, kind and size under the name of the first of them."""
    heads: list[ModelSize] = []
    named: dict[str, str] = {}
    for shape in sorted(found, key=lambda s: (s.maker, s.moe, s.total_b, s.name)):
        head = next(
            (h for h in heads if h.maker == shape.maker and h.moe == shape.moe and _apart(h, shape) <= SAME_SIZE), None
        )
        if head is None:
            heads.append(shape)
        named[shape.name] = (head or shape).name
    return named


def _apart(one: ModelSize, other: ModelSize) -> float:
    return abs(math.log(one.total_b / other.total_b))


def observations() -> list[Seen]:
    """KL in whole texts, and perplexities on plain text that rose enough."""
    by_name = shapes()
    kin = kin_by_name(list(by_name.values()))
    seen = []
    for row in losses().rows:
        shape, form = by_name[row.model], method_of(row.method, row.calibration)
        bits = row.bits or form.bits
        if bits is None or form.family == EXACT or "KV" in row.method or "qat" in row.model.lower():
            continue
        y = log_loss(row)
        if y is None or (not sixteen_bits(row.baseline) and bits > _reference_bits(row) - NEAR_REFERENCE):
            continue
        seen.append(Seen(row, shape, form, bits, y, row.metric == "kld_mean", kin[shape.name]))
    return seen


def log_loss(row: LossRow) -> float | None:
    """Log KL, or what perplexity tells of it; None where a row tells neither."""
    if row.metric == "kld_mean":
        return None if row.text.startswith("stratum") or row.value <= 0 else math.log(row.value)
    plain = row.metric in ("ppl", "ppl_ratio") and row.baseline_value and row.text.startswith((WIKI, PILE))
    if not plain or "train" in row.calibration:
        return None
    ratio = math.log(row.value / (row.baseline_value or 1.0))
    return math.log(ratio) if ratio >= LEAST_RATIO else None


def _reference_bits(row: LossRow) -> float:
    return REFERENCE_BITS.get(row.baseline.lower(), 16.0)


def terms(one: Seen) -> dict[str, float]:
    """All that a figure is the sum of: the curve, the effects, and what belongs to its text and reference alone."""
    found = curve(one.form, one.bits, one.shape)
    for key, value in effects(one.form, one.bits, one.shape, one.kin):
        found[key] = found.get(key, 0.0) + value
    text = next((name for name in (SUITE, WIKI, PILE, "ubergarm-kld") if one.row.text.startswith(name)), "")
    if not one.direct:
        found[f"text ppl {text}"] = 1.0
        found["text ppl low"] = min(0.0, (one.form.bits or one.bits) - 4.5)
    elif text:
        found[f"text {text}"] = 1.0
    if not sixteen_bits(one.row.baseline):
        found["text reference"] = math.log1p(4 ** ((one.form.bits or one.bits) - _reference_bits(one.row)))
    found[f"set {one.row.model} {one.row.text[:20]} {one.row.baseline}"] = 1.0
    return found


def group_of(key: str) -> str:
    """Coefficients that share a prior: effects of one group and tilt; empty for the curve's own."""
    first, *rest = key.split(" ")
    if first in ("family", "method", "set"):
        return first
    if first in ("maker", "kin", "model"):
        return f"{first} {rest[0]}" if rest[0] in ("low", "high") and len(rest) > 1 else first
    return ""


@dataclass
class Fitted:
    """The design, the solution and what it rests on."""

    seen: list[Seen]
    names: list[str]
    x: Floats
    y: Floats
    weights: Floats
    prior: Floats
    solution: Floats
    leverage: Floats


def fitted(seen: list[Seen]) -> Fitted:
    """Coefficients, the widths of their priors and the weights of rows, found together."""
    rows = [terms(one) for one in seen]
    names = sorted({key for row in rows for key in row})
    place = {name: i for i, name in enumerate(names)}
    x = np.zeros((len(rows), len(names)))
    for i, row in enumerate(rows):
        for key, value in row.items():
            x[i, place[key]] = value
    y = np.array([one.y for one in seen])
    direct = np.array([one.direct for one in seen])
    noise = np.array([0.0 if one.direct else (PERPLEXITY_NOISE / math.exp(one.y)) ** 2 for one in seen])
    groups: dict[str, list[int]] = defaultdict(list)
    for name in names:
        groups[group_of(name)].append(place[name])
    prior = np.full(len(names), WIDE**2)
    for group, members in groups.items():
        if group:
            prior[members] = 0.1
    variance = {True: 0.05, False: 0.1}
    t_weights = np.ones(len(y))
    for _ in range(ROUNDS):
        each = np.where(direct, variance[True], variance[False]) + noise
        weights = t_weights / each
        covariance = np.linalg.inv((x.T * weights) @ x + np.diag(1 / prior))
        solution = covariance @ (x.T @ (weights * y))
        leverage = np.einsum("ij,jk,ik->i", x, covariance, x, optimize=True)
        error = y - x @ solution
        for group, members in groups.items():
            if group:
                prior[members] = max(1e-4, float(np.mean(solution[members] ** 2 + np.diag(covariance)[members])))
        for kind in (True, False):
            some = direct == kind
            variance[kind] = max(1e-3, float(np.mean(t_weights[some] * (error[some] ** 2 + leverage[some]))))
        t_weights = (FREEDOM + 1) / (FREEDOM + error**2 / each)
    return Fitted(seen, names, x, y, weights, prior, solution, leverage)


@dataclass(frozen=True)
class Left:
    """A figure of KL, predicted without what was left out: `error` is predicted less published log KL."""

    one: Seen
    predicted: float

    @property
    def error(self) -> float:
        """Log of predicted over published."""
        return self.predicted - self.one.y


def left_out(fit: Fitted, by: Callable[[Seen], str]) -> list[Left]:
    """KL of every model, predicted by a fit without all rows that share `by`, on text in general."""
    general = np.array([not name.startswith(("text ", "set ")) for name in fit.names])
    x_general = fit.x * general
    found = []
    gram, right = (fit.x.T * fit.weights) @ fit.x + np.diag(1 / fit.prior), fit.x.T @ (fit.weights * fit.y)
    for key in sorted({by(one) for one in fit.seen if one.direct}):
        gone = np.array([by(one) == key for one in fit.seen])
        x, weights = fit.x[gone], fit.weights[gone]
        solution = np.linalg.solve(gram - (x.T * weights) @ x, right - x.T @ (weights * fit.y[gone]))
        for i in np.flatnonzero(gone):
            if fit.seen[i].direct:
                found.append(Left(fit.seen[i], float(x_general[i] @ solution)))
    return found


def rank_share(left: Sequence[Left]) -> tuple[float, int]:
    """The share of pairs of formats of one model and run, half a bit apart, that rank right; how many pairs."""
    runs: dict[tuple[str, str, str], list[Left]] = defaultdict(list)
    for one in left:
        runs[one.one.row.model, one.one.row.text, one.one.row.baseline].append(one)
    right = n = 0
    for members in runs.values():
        for a, b in combinations(members, 2):
            if abs(a.one.bits - b.one.bits) >= APART and a.one.y != b.one.y:
                n += 1
                right += (a.predicted < b.predicted) == (a.one.y < b.one.y)
    return right / n, n


def judged(left: Sequence[Left]) -> dict[str, float]:
    """The figures that the targets are about."""
    errors = np.array([one.error for one in left])
    right, pairs = rank_share(left)
    return {
        "rows": len(left),
        "models": len({one.one.row.model for one in left}),
        "within_factor_2": float(np.mean(np.abs(errors) <= math.log(2))),
        "bias": float(np.exp(np.median(errors)) - 1),
        "mean_bias": float(np.exp(np.mean(errors)) - 1),
        "ranked_right": right,
        "pairs": pairs,
    }


def half_widths(errors: Sequence[Left]) -> tuple[float, float]:
    """What 95 % of errors stay within, each model counting alike: under and over 6 bits."""

    def at(some: list[Left]) -> float:
        share = defaultdict(int)
        for one in some:
            share[one.one.shape.name] += 1
        order = sorted(some, key=lambda one: abs(one.error))
        weights = np.cumsum([1 / share[one.one.shape.name] for one in order])
        return abs(order[int(np.searchsorted(weights, 0.95 * weights[-1]))].error)

    low = [one for one in errors if (one.one.form.bits or one.one.bits) < HIGH_BITS]
    high = [one for one in errors if (one.one.form.bits or one.one.bits) >= HIGH_BITS]
    return round(at(low), 3), round(at(high), 3)


def is_high(one: Left) -> bool:
    """Whether the figure is of a format of over `HIGH_BITS`."""
    return (one.one.form.bits or one.one.bits) >= HIGH_BITS


def for_new_makers(errors: Sequence[Left]) -> tuple[float, float]:
    """Half widths of 95 % intervals for a model of a maker that nobody measured, under and over 6 bits.

    Errors of one maker's models go together, so it is makers that count, and they are few: their spread is as
    doubtful as five numbers make it (Student's t). Never narrower than what 95 % of the errors stay within.
    """
    by_model: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in errors:
        by_model[one.one.shape.maker, one.one.shape.name].append(one.error)
    models: dict[str, list[float]] = defaultdict(list)
    for (maker, _), mine in by_model.items():
        models[maker].append(float(np.mean(mine)))
    means = {maker: float(np.mean(each)) for maker, each in models.items()}
    # No mean is taken off: that makers are off on average is in it, too.
    between = float(np.mean([mean**2 for mean in means.values()])) * (1 + 1 / len(means))
    widths = []
    for held, high in zip(half_widths(errors), (False, True), strict=True):
        # Around its maker's mean: what is a model's own, and a format's.
        own = [(one.error - means[one.one.shape.maker]) ** 2 for one in errors if is_high(one) == high]
        widths.append(max(held, round(student(T_975, len(means)) * math.sqrt(between + float(np.mean(own))), 3)))
    return widths[0], widths[1]


def kept_by_others(errors: Sequence[Left]) -> float:
    """The share of each maker's rows, makers alike, within the interval that the others alone would have given."""
    makers = sorted({one.one.shape.maker for one in errors})
    shares = []
    for maker in makers:
        widths = for_new_makers([one for one in errors if one.one.shape.maker != maker])
        mine = [one for one in errors if one.one.shape.maker == maker]
        shares.append(float(np.mean([abs(one.error) <= widths[is_high(one)] for one in mine])))
    return float(np.mean(shares))


def translated(pairs: Sequence[tuple[float, float]]) -> Translation:
    """A straight line through the logarithms of (KL, figure), and what 95 % of pairs stay within."""
    kl, figure = np.log(np.array(pairs)).T
    slope, level = np.polyfit(kl, figure, 1)
    off = np.abs(figure - level - slope * kl)
    level, slope, width = (round(float(each), 4) for each in (level, slope, np.quantile(off, 0.95)))
    return Translation(level, slope, width, len(pairs))


def pairs_with_kl(metric: str, figure: Callable[[LossRow], float]) -> list[tuple[float, float]]:
    """KL and another figure of the same file in the same text."""
    kl = {_file(row): row.value for row in losses().rows if row.metric == "kld_mean"}
    both = [(kl[_file(row)], figure(row)) for row in losses().rows if row.metric == metric and _file(row) in kl]
    return [(a, b) for a, b in both if a > 0 and b > 0]


def _file(row: LossRow) -> tuple[object, ...]:
    # Llama-3-8B's agreement was published without its file's bits.
    bits = None if row.model == "Llama-3-8B" else row.bits
    return row.model, row.method, bits, row.calibration, row.text, row.baseline


def knowledge() -> list[tuple[float, float]]:
    """KL of Llama-3-8B, and -log of the share of MMLU above guessing that its tuned version keeps, by format."""
    kl: dict[str, list[float]] = defaultdict(list)
    for row in losses().rows:
        if row.model == "Llama-3-8B" and row.metric == "kld_mean" and "KV" not in row.method:
            kl[method_of(row.method).kind].append(row.value)
    found = []
    for row in losses().rows:
        kind = method_of(row.method).kind
        if row.model == "Llama-3-8B-Instruct" and "(GGUF)" in row.method and kind in kl and row.baseline_value:
            kept = (row.value - 25) / (row.baseline_value - 25)
            if kept < 0.995:
                found.append((float(np.median(kl[kind])), -math.log(kept)))
    return found


def ppl_noise_free(row: LossRow) -> float:
    """Log of perplexity over its baseline where it rose enough to tell, else 0."""
    ratio = math.log(row.value / (row.baseline_value or row.value))
    return ratio if ratio >= LEAST_RATIO else 0.0


def made() -> LossFit:
    """Everything that is shipped."""
    seen = observations()
    fit = fitted(seen)
    by_model = left_out(fit, lambda one: one.shape.name)
    by_kin = left_out(fit, lambda one: one.kin)
    by_maker = left_out(fit, lambda one: one.shape.maker)
    kin = kin_by_name(list(shapes().values()))
    shared = {name for name, head in kin.items() if list(kin.values()).count(head) > 1}
    reached = {
        **{f"model_{key}": value for key, value in judged(by_model).items()},
        **{f"kin_{key}": value for key, value in judged(by_kin).items()},
        **{f"maker_{key}": value for key, value in judged(by_maker).items()},
        "maker_kept_by_others": kept_by_others(by_maker),
    }
    known = {one.shape.name for one in seen}
    heads = {one.kin: one.shape for one in sorted(seen, key=lambda one: one.shape.name == one.kin)}
    return LossFit(
        about="The curve of loss over bits (docs/quality.md), written by bench/fit_loss.py from losses.json.",
        date=DATE,
        coefficients={
            name: round(float(value), 4)
            for name, value in zip(fit.names, fit.solution, strict=True)
            if not name.startswith(("text ", "set ")) and abs(value) > 5e-5
        },
        models={name: kin[name] for name in sorted(known)},
        kin=[LossKin(name, shape.maker, shape.moe, shape.total_b) for name, shape in sorted(heads.items())],
        spread={
            "formats": half_widths(left_out(fit, lambda one: f"{one.shape.name} {one.form.kind}")),
            "kin": half_widths([one for one in by_model if one.one.shape.name in shared]),
            "maker": half_widths(by_kin),
            "prior": for_new_makers(by_maker),
        },
        top1=translated(pairs_with_kl("same_top1_pct", lambda row: 1 - row.value / 100)),
        perplexity=translated(pairs_with_kl("ppl", ppl_noise_free)),
        knowledge=translated(knowledge()),
        reached={key: round(value, 4) for key, value in reached.items()},
    )


def main() -> None:
    """Write the file and say what was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TARGET)
    args = parser.parse_args()
    found = made()
    args.out.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    for key, value in found.reached.items():
        print(f"{key:28} {value:g}")
    print("spread", found.spread)
    print(found.top1, found.perplexity, found.knowledge, sep="\n")


if __name__ == "__main__":
    main()
