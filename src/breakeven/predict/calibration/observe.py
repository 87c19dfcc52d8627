"""What a calibration fits to: times of single steps, each with the model that took them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from breakeven.predict.step import Floats, step_s
from breakeven.predict.terms import Terms
from breakeven.spec.profile import Constants

Phase = Literal["decode", "prefill"]


@dataclass(frozen=True, slots=True)
class Observation:
    """One measured step. Decode: `sequences` of `tokens` context each got a token; prefill: `tokens` were read at once.

    `seconds` is the median over repetitions, `n` how many there were.
    """

    model: str
    terms: Terms
    phase: Phase
    sequences: int
    tokens: float
    seconds: float
    n: int = 1

    @property
    def kind(self) -> Literal["dense", "moe"]:
        """Whether its model routes."""
        return "moe" if self.terms.moe else "dense"


@dataclass(frozen=True, slots=True)
class Table:
    """Observations by model as arrays, so that one pass through the step equation serves all of a model's."""

    observations: tuple[Observation, ...]
    groups: tuple[tuple[Terms, Floats, Floats], ...]
    """Terms; rows of (D, C, P, C_P), the arguments of `step_s`; indices of the observations."""
    log_seconds: Floats

    def log_predicted(self, constants: Constants) -> Floats:
        """ln(seconds) of every observation's step under `constants`, in their order."""
        found = np.empty(len(self.observations))
        for terms, (d, c, p, pc), where in self.groups:
            found[where.astype(np.intp)] = np.log(step_s(terms, constants, d, c, p, pc))
        return found


def table(observations: Sequence[Observation]) -> Table:
    """Observations grouped by model."""
    by_terms: dict[int, tuple[Terms, list[tuple[float, float, float, float]], list[int]]] = {}
    for i, seen in enumerate(observations):
        _, rows, where = by_terms.setdefault(id(seen.terms), (seen.terms, [], []))
        rows.append(arguments(seen))
        where.append(i)
    groups = tuple((terms, np.array(rows).T, np.array(where)) for terms, rows, where in by_terms.values())
    return Table(tuple(observations), groups, np.log([seen.seconds for seen in observations]))


def arguments(seen: Observation) -> tuple[float, float, float, float]:
    """D, C, P and C_P of `breakeven.predict.step.step_s`. A prompt's token attends to half of it on average."""
    if seen.phase == "decode":
        return float(seen.sequences), seen.tokens, 0.0, 0.0
    return 0.0, 0.0, seen.sequences * seen.tokens, (seen.tokens + 1.0) / 2.0
