"""Class efficiencies from published observations: a robust fit in which classes with little data lean on the others.

Every knob has a typical value with a spread (a judgement, stated here), and a deviation for each class of machine with
its own, smaller spread. Both are penalised as in a hierarchical model, so a class with three records moves a little and
one with a hundred moves freely. Residuals are ln(predicted / published) under Huber's loss; the many records of one
model on one chip weigh like few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.published.predicting import groups_of, predict
from bench.published.records import Observation
from breakeven.forecast.efficiencies import Efficiency, Entry
from breakeven.hardware.chips import backend_of

Floats = NDArray[np.float64]

MOST_SHARE = 0.98
HUBER = 1.345
"""In standard deviations: 95 % as efficient as least squares on normal errors (Huber 1964)."""
NOISE = 0.12
"""What is left of a record once the model is right: builds, clocks, settings. In log units."""
ROUNDS = 30


@dataclass(frozen=True, slots=True)
class Knob:
    """One constant. `spread`: of the typical value; `between`: of a class's deviation from it, None: one for all.

    `across`: of a backend's deviation, None: the same for all backends. All in log units; in logits for a `share`,
    which cannot pass `MOST_SHARE`.
    """

    name: str
    start: float
    spread: float
    between: float | None = None
    across: float | None = None
    share: bool = False

    def value(self, x: float) -> float:
        """The constant at `x` spreads from its start."""
        if not self.share:
            return self.start * float(np.exp(x))
        p = self.start / MOST_SHARE
        return MOST_SHARE / (1.0 + float(np.exp(-(np.log(p / (1.0 - p)) + x))))


LOCAL = (
    Knob("weight_share", 0.8, 0.5, 0.4, 0.3, share=True),
    Knob("kv_share", 0.65, 0.5, 0.3, 0.3, share=True),
    Knob("layer_s", 5e-5, 0.6, 0.4, 0.4),
    Knob("moe_layer_s", 8e-5, 0.7, 0.4, 0.4),
    Knob("mixer_layer_s", 8e-5, 0.7, None, 0.4),
    Knob("quantized_cost", 1.15, 0.2, 0.2, 0.2),
    Knob("decode_flops_share", 0.1, 0.6, 0.8, 0.4, share=True),
    Knob("routing_alpha", 0.9, 0.1),
    Knob("prefill_flops_share", 0.3, 0.6, 0.4, 0.5, share=True),
    Knob("element_bytes", 100.0, 0.6, None, 0.4),
    Knob("expert_tile", 64.0, 0.3, None, 0.5),
    Knob("layer_s 2024", 1.5, 0.4, None, 0.4),
    Knob("layer_s 2025", 1.2, 0.3, None, 0.3),
    Knob("moe_layer_s 2025", 1.2, 0.3),
    Knob("layer_s ollama", 1.2, 0.3, None, 0.3),
    Knob("layer_s mlx", 1.0, 0.4),
    Knob("moe_layer_s mlx", 1.0, 0.4),
    Knob("prefill_flops_share mlx", 1.0, 0.3),
)
SERVING = (
    Knob("weight_share", 0.75, 0.4, 0.3, share=True),
    Knob("kv_share", 0.7, 0.5, share=True),
    Knob("decode_flops_share", 0.5, 0.4, share=True),
    Knob("prefill_flops_share", 0.45, 0.5, 0.3, share=True),
    Knob("step_s", 1e-3, 0.7, 0.4),
    Knob("layer_s", 2e-5, 0.7, 0.4),
    Knob("moe_layer_s", 3e-5, 0.7, 0.4),
    Knob("sequence_s", 3e-5, 0.7),
    Knob("sequence_s batched", 0.3, 0.5),
    Knob("routing_alpha", 0.9, 0.7, share=True),
    Knob("prefill_token_s", 5e-6, 0.7),
    Knob("link_s", 1e-5, 0.5),
    Knob("link_share", 0.6, 0.5, share=True),
    Knob("fp8_cost", 1.1, 0.15),
    Knob("fp4_cost", 1.1, 0.15),
    Knob("int4_cost", 1.2, 0.2, 0.3),
)
KNOBS = {"local": LOCAL, "serving": SERVING}
QUANTIZED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_XS", "IQ4_NL", "MXFP4")
FLOAT4 = ("NVFP4", "MXFP4")
EIGHT_BIT = ("FP8", "INT8")
NEWEST = 2026


def dialect(o: Observation) -> tuple[str, ...]:
    """The era and kind of engine, where they differ from what we predict: a build of this year, llama.cpp's own."""
    if o.family != "local":
        return ("batched",) if o.batched else ()
    era = () if o.year >= NEWEST else (str(max(o.year, 2024)),)
    others = tuple(name for name in ("mlx", "ollama") if name in o.engine.lower())
    return (*era, *others[:1])


def backend(o: Observation) -> str:
    """Whose kernels ran; under vLLM one for all."""
    return backend_of(o.chip) if o.family == "local" else ""


class Fit:
    """Knobs of one family and where a fit left them. `theta`: typical values, deviations by class, by backend."""

    def __init__(
        self, family: str, classes: Sequence[str], judged: dict[str, Entry], backends: Sequence[str] = ()
    ) -> None:
        self.family, self.classes, self.judged = family, list(classes), judged
        self.knobs = KNOBS[family]
        slots = [(k.name, "", k.spread) for k in self.knobs]
        slots += [(k.name, c, k.between) for k in self.knobs if k.between is not None for c in self.classes]
        slots += [(k.name, b, k.across) for k in self.knobs if k.across is not None for b in backends if b]
        self.slots = [(name, of) for name, of, _ in slots]
        self.spreads = np.array([spread for _, _, spread in slots])
        self.theta: Floats = np.zeros(len(self.slots))

    def values(self, chip_class: str, theta: Floats | None = None, kernels: str = "") -> dict[str, float]:
        """The constants of a class and backend; one that the fit has not seen gets the typical values."""
        x = dict(zip(self.slots, self.theta if theta is None else theta, strict=True))
        own = {chip_class, kernels} - {""}
        return {k.name: k.value(x[k.name, ""] + sum(x.get((k.name, of), 0.0) for of in own)) for k in self.knobs}

    def efficiency(
        self, chip_class: str, spoken: tuple[str, ...] = (), theta: Floats | None = None, kernels: str = ""
    ) -> Efficiency:
        """The constants as an `Efficiency`; what no knob sets is as judged."""
        v = self.values(chip_class, theta, kernels)
        own = self.judged[chip_class].efficiency
        made = {name: getattr(own, name) for name in Efficiency.__struct_fields__}
        made |= {name: value for name, value in v.items() if name in made}
        for name, value in v.items():
            constant, _, era = name.partition(" ")
            if era in spoken:
                made[constant] = made[constant] * value
        costs = dict.fromkeys(QUANTIZED, v["quantized_cost"]) if self.family == "local" else {}
        if self.family == "serving":
            costs = dict.fromkeys(EIGHT_BIT, v["fp8_cost"]) | dict.fromkeys(FLOAT4, v["fp4_cost"])
            costs["INT4"] = v["int4_cost"]
        made["type_cost"] = costs
        return Efficiency(**made)

    def entry(
        self, chip_class: str, spoken: tuple[str, ...] = (), theta: Floats | None = None, kernels: str = ""
    ) -> Entry:
        """The same with the judged entry's errors and words."""
        own = self.judged[chip_class]
        return Entry(
            engine=own.engine, chip_class=chip_class, backend=kernels, errors=own.errors, basis=own.basis,
            efficiency=self.efficiency(chip_class, spoken, theta, kernels),
        )  # fmt: skip

    def predict(
        self, observations: Sequence[Observation], theta: Floats | None = None, groups: list[list[int]] | None = None
    ) -> Floats:
        """Seconds of every observation."""
        made: dict[tuple[str, tuple[str, ...], str], Entry] = {}

        def entry_for(o: Observation) -> Entry:
            key = (o.chip.chip_class, dialect(o), backend(o))
            if key not in made:
                made[key] = self.entry(key[0], key[1], theta, key[2])
            return made[key]

        return predict(observations, entry_for, groups)


@dataclass(frozen=True, slots=True)
class Problem:
    """One family's observations, ready to be fitted: ln of the truth, weights, and which rows each class moves."""

    observations: Sequence[Observation]
    truth: Floats
    weight: Floats
    groups: list[list[int]]
    parts: dict[str, tuple[list[int], list[list[int]]]]

    def residuals(self, fit: Fit, theta: Floats) -> Floats:
        """Weighted ln(predicted / published)."""
        return self.weight * (np.log(fit.predict(self.observations, theta, self.groups)) - self.truth)

    def jacobian(self, fit: Fit, theta: Floats, here: Floats) -> Floats:
        """Of the residuals, by forward differences.

        A deviation adds to its typical value, so it moves the rows of its class or backend as the typical value does.
        """
        found = np.zeros((len(here), len(theta)))
        whole = {name: j for j, (name, of) in enumerate(fit.slots) if not of}
        for name, j in whole.items():
            step = np.zeros_like(theta)
            step[j] = 1e-3
            rows, mine = self.parts[name.partition(" ")[2]]
            if rows:
                there = np.log(fit.predict([self.observations[i] for i in rows], theta + step, mine)) - self.truth[rows]
                found[rows, j] = (self.weight[rows] * there - here[rows]) / 1e-3
        for j, (name, of) in enumerate(fit.slots):
            if of:
                rows = self.parts[of][0]
                found[rows, j] = found[rows, whole[name]]
        return found


def problem(observations: Sequence[Observation]) -> Problem:
    """The fitting problem of one family's observations."""
    marks = [{"", o.chip.chip_class, backend(o), *dialect(o)} for o in observations]
    eras = {knob.name.partition(" ")[2] for knob in KNOBS[observations[0].family]}
    parts = {}
    for mark in sorted(set().union(eras, *marks)):
        rows = [i for i, own in enumerate(marks) if mark in own]
        parts[mark] = (rows, groups_of([observations[i] for i in rows]))
    cells = Counter((o.model_group, o.chip.slug, o.phase) for o in observations)
    # n records of one model on one chip count as sqrt(n): they share its error.
    count = np.array([cells[o.model_group, o.chip.slug, o.phase] for o in observations])
    truth = np.log([o.seconds for o in observations])
    return Problem(observations, truth, count**-0.25 / NOISE, groups_of(observations), parts)


def fitted(asked: Problem, judged: dict[str, Entry], start: Fit | None = None, rounds: int = ROUNDS) -> Fit:
    """The fit of one family's observations: damped Gauss-Newton steps on Huber's loss and the knobs' spreads."""
    observations = asked.observations
    classes, kernels = ({of(o) for o in observations} for of in (lambda o: o.chip.chip_class, backend))
    fit = Fit(observations[0].family, sorted(classes), judged, sorted(kernels))
    if start is not None:
        fit.theta = start.theta.copy()
    theta, damping = fit.theta.copy(), 1e-2
    here = asked.residuals(fit, theta)
    for _ in range(rounds):
        jacobian = asked.jacobian(fit, theta, here)
        trust = np.minimum(1.0, HUBER / np.maximum(np.abs(here), 1e-12))
        normal = jacobian.T @ (trust[:, None] * jacobian) + np.diag(1.0 / fit.spreads**2)
        slope = jacobian.T @ (trust * here) + theta / fit.spreads**2
        loss, move = _loss(here, theta, fit.spreads), np.zeros_like(theta)
        for _ in range(6):
            move = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), slope)
            there = asked.residuals(fit, theta - move)
            if _loss(there, theta - move, fit.spreads) < loss:
                damping /= 5
                break
            damping *= 5
        else:
            break
        theta, here = theta - move, there
        if loss - _loss(here, theta, fit.spreads) < 1e-4 * loss:
            break
    fit.theta = theta
    return fit


def refitted(theta: Floats, here: Floats, jacobian: Floats, spreads: Floats, rows: NDArray[np.bool_]) -> Floats:
    """The fit to some `rows` alone, with the model linear around the fit `theta` to all: no new predictions."""
    r, j, moved = here[rows], jacobian[rows], np.zeros_like(theta)
    for _ in range(12):
        now = r + j @ moved
        trust = np.minimum(1.0, HUBER / np.maximum(np.abs(now), 1e-12))
        normal = j.T @ (trust[:, None] * j) + np.diag(1.0 / spreads**2)
        before, moved = moved, np.linalg.solve(normal, -(j.T @ (trust * r)) - theta / spreads**2)
        if float(np.abs(moved - before).max()) < 2e-3:
            break
    return theta + moved


def _loss(r: Floats, theta: Floats, spreads: Floats) -> float:
    size = np.abs(r)
    huber = np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER))
    return float(huber.sum() + 0.5 * np.sum((theta / spreads) ** 2))
