"""Models in part in host memory: what reading it reaches of its nominal rate, and how far predictions were off.

Four constants, one for all classes of cards: the share of host memory's rate in PCs and in servers with many channels,
the share of the link, and the cost of a handover. They are fitted by Huber's loss with judged spreads, after everything
else; then one machine at a time is left out and the rest fitted anew, in full.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.published.fitting import HUBER, MOST_SHARE, NOISE
from bench.published.local_2026 import Record, read_local
from breakeven.forecast.constants import Error, Profile
from breakeven.forecast.efficiencies import Entry
from breakeven.forecast.model import StepModel, step_model
from breakeven.forecast.profiles import beside, profile_with
from breakeven.forecast.terms import Terms
from breakeven.hardware.chips import backend_of

Floats = NDArray[np.float64]
KNOBS = (
    ("host_share", 0.6, 0.4),
    ("host_server_share", 0.4, 0.4),
    ("stream_share", 0.5, 0.5),
    ("handover_s", 3e-5, 0.7),
)
"""Name, typical value and spread in log units, logits for shares."""
COVER = 0.9
STEP = 1e-3


@dataclass(frozen=True, slots=True)
class Spilled:
    """What came of the fit: the constants, records, and ln(predicted / published) with their machine left out."""

    constants: dict[str, float]
    records: Sequence[Record]
    errors: Floats
    before: Floats
    """With the same constants fitted to all."""
    skipped: Counter[str]


def usable(directory: Path) -> list[Record]:
    """Records of models of which a step reads something in host memory."""
    return [r for r in read_local(directory)[0] if r.placement is not None]


def machine_of(r: Record) -> str:
    """Left out together: one machine, whatever was run on it."""
    return r.words


def values(theta: Floats) -> dict[str, float]:
    """The constants at a point of the fit."""
    found = {}
    for x, (name, start, _) in zip(theta, KNOBS, strict=True):
        odds = np.log(start / (MOST_SHARE - start)) + x
        found[name] = float(start * np.exp(x) if name.endswith("_s") else MOST_SHARE / (1.0 + np.exp(-odds)))
    return found


def with_constants(entry: Entry, found: dict[str, float]) -> Entry:
    """`entry` with the constants of host memory and link."""
    return msgspec.structs.replace(entry, efficiency=msgspec.structs.replace(entry.efficiency, **found))


def profile_of(r: Record, entry: Entry) -> Profile:
    """The profile of a record's machine, as a person who describes it gets it."""
    plain = profile_with(r.machine.devices[0], entry, len(r.machine.devices), r.format, "", [])
    return beside(plain, r.machine, entry.efficiency)


def by_kind(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Entries by class and backend."""
    return {f"{entry.chip_class} {entry.backend}".strip(): entry for entry in entries}


def entry_of(entries: dict[str, Entry], r: Record) -> Entry:
    """The entry of a record's card: of its class and backend, else of its class."""
    chip = r.machine.devices[0]
    own = f"{chip.chip_class} {backend_of(chip)}"
    return entries[own] if own in entries else entries[chip.chip_class]


class Predictor:
    """Predicts records again and again; where weights lie is worked out once."""

    def __init__(self, records: Sequence[Record], entries: dict[str, Entry]) -> None:
        self.records, self.entries = records, entries
        self.models = [self._model(r) for r in records]

    def _model(self, r: Record) -> StepModel:
        assert r.placement is not None
        profile = profile_of(r, entry_of(self.entries, r))
        model = step_model(r.spec, profile, r.format, placement=r.placement, kv=r.kv)
        model = model.placed(1, max(r.prompt + 128.0, 4096.0))
        return replace(model, terms=_scaled(model.terms, r.sized(model.terms)))

    def seconds(self, theta: Floats, rows: Sequence[int]) -> Floats:
        """Predicted seconds of some records."""
        found = values(theta)
        made = {c: with_constants(entry, found) for c, entry in self.entries.items()}
        return np.array([self._one(i, made) for i in rows])

    def _one(self, i: int, entries: dict[str, Entry]) -> float:
        r = self.records[i]
        model = replace(self.models[i], profile=profile_of(r, entry_of(entries, r)))
        if r.phase == "decode":
            return float(model.step_s(1.0, r.prompt + 64.0))
        steps = np.ceil(r.prompt / r.step_tokens)
        return float(steps * model.step_s(0.0, 0.0, r.prompt / steps, (r.prompt + 1.0) / 2.0))


def _scaled(terms: Terms, factor: float) -> Terms:
    """`terms` of a file of another size: a recipe of the same name that raises some tensors."""
    return replace(
        terms,
        fixed=tuple((kind, n * factor) for kind, n in terms.fixed),
        experts=tuple(replace(g, types=tuple((kind, n * factor) for kind, n in g.types)) for g in terms.experts),
    )


def fit(predictor: Predictor, rows: Sequence[int]) -> Floats:
    """Where damped Gauss-Newton steps leave the four constants on some records."""
    records = [predictor.records[i] for i in rows]
    truth = np.log([r.seconds for r in records])
    cells = Counter((machine_of(r), r.spec.name, r.phase) for r in records)
    weight = np.array([cells[machine_of(r), r.spec.name, r.phase] for r in records]) ** -0.5 / (2.0 * NOISE)
    spreads = np.array([spread for _, _, spread in KNOBS])
    theta = np.zeros(len(KNOBS))

    def residuals(at: Floats) -> Floats:
        return weight * (np.log(predictor.seconds(at, rows)) - truth)

    here = residuals(theta)
    for _ in range(6):
        columns = [(residuals(theta + STEP * unit) - here) / STEP for unit in np.eye(len(KNOBS))]
        jacobian = np.stack(columns, axis=1)
        trust = np.minimum(1.0, HUBER / np.maximum(np.abs(here), 1e-12))
        normal = jacobian.T @ (trust[:, None] * jacobian) + np.diag(1.0 / spreads**2)
        move = np.linalg.solve(normal, jacobian.T @ (trust * here) + theta / spreads**2)
        theta = theta - np.clip(move, -0.7, 0.7)
        here = residuals(theta)
        if float(np.abs(move).max()) < 0.01:
            break
    return theta


def spilled(directory: Path, entries: Sequence[Entry]) -> Spilled:
    """The fit on top of the entries of llama.cpp, and its errors with each machine left out."""
    records = usable(directory)
    predictor = Predictor(records, by_kind(entries))
    every = list(range(len(records)))
    theta = fit(predictor, every)
    truth = np.log([r.seconds for r in records])
    errors = np.zeros(len(records))
    for machine in dict.fromkeys(machine_of(r) for r in records):
        held = [i for i in every if machine_of(records[i]) == machine]
        without = fit(predictor, [i for i in every if i not in held])
        errors[held] = np.log(predictor.seconds(without, held)) - truth[held]
    before = np.log(predictor.seconds(theta, every)) - truth
    return Spilled(values(theta), records, errors, before, read_local(directory)[1])


def errors_of(found: Spilled) -> list[Error]:
    """One error a phase and kind of model, the same for all classes: no class has machines enough of its own.

    A kind with fewer than three machines takes the width of both kinds.
    """
    made = []
    for phase in ("decode", "prefill"):
        for kind in ("dense", "moe"):
            both = [i for i, r in enumerate(found.records) if r.phase == phase]
            own = [i for i in both if found.records[i].spec.is_moe == (kind == "moe")]
            some = own if len({machine_of(found.records[i]) for i in own}) > 2 else both
            half = _width([found.records[i] for i in some], found.errors[some])
            made.append(
                Error(
                    phase=phase,
                    kind=kind,
                    log_half_width=round(half, 4),
                    between_models=round(half, 4),
                    median=round(float(np.median(np.abs(np.expm1(found.errors[some])))), 4),
                    n=len({found.records[i].spec.name for i in own}),
                    coverage=round(float(np.mean(np.abs(found.errors[own]) <= half)), 3) if own else None,
                    spilled=True,
                )
            )
    return made


def inside(found: Spilled, rows: Sequence[int]) -> float:
    """Share of records within a width that was set without their machine."""
    hits: list[bool] = []
    for machine in dict.fromkeys(machine_of(found.records[i]) for i in rows):
        own = [i for i in rows if machine_of(found.records[i]) == machine]
        rest = [i for i in rows if i not in own]
        half = _width([found.records[i] for i in rest], found.errors[rest])
        hits += list(np.abs(found.errors[own]) <= half)
    return float(np.mean(hits))


def _width(records: Sequence[Record], errors: Floats) -> float:
    """The |error| that covers `COVER` of what was left out, machines counted alike (conformal)."""
    cells = Counter(machine_of(r) for r in records)
    weight = np.array([1.0 / cells[machine_of(r)] for r in records])
    order = np.argsort(np.abs(errors))
    reached = np.cumsum(weight[order]) / (weight.sum() + 1.0)
    return float(np.abs(errors)[order][min(int(np.searchsorted(reached, COVER)), len(errors) - 1)])
