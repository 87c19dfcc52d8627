"""What the numbers behind a sentence are of: cases, published numbers, and the commands that print computed ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from breakeven.errors import UserError
from breakeven.stats.estimate import Estimate

PUBLISHED_SPREAD = 0.10
"""Either way, of a published number that came without an interval: what repeats on one quiet machine differ by."""


class ClaimCase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one number is of. `over...`: of the other model, where it differs. Prices: dollars an hour of a replica."""

    label: str
    of: str | None = None
    over: str | None = None
    machine: str | None = None
    over_machine: str | None = None
    engine: str | None = None
    devices: int | None = None
    format: str | None = None
    batch: int = 1
    context: int = 512
    prompt: int = 512
    output: int = 256
    turns: int = 1
    rate: float | None = None
    utilisation: float = 0.5
    skew: float = 0.0
    value: float | None = None
    low: float | None = None
    high: float | None = None
    over_value: float | None = None
    record: str | None = None
    url: str | None = None

    @property
    def published(self) -> bool:
        """Whether somebody else's number stands in the data, and nothing is computed."""
        return self.value is not None


@dataclass(frozen=True, slots=True)
class Quantity:
    """`numbers`: estimates of cases that differ in one field alone. `commands` print them; none where no verb does."""

    words: str
    unit: str
    numbers: Callable[[Sequence[ClaimCase]], list[Estimate]]
    commands: Callable[[Sequence[ClaimCase]], list[str]]


def numbers_of(quantity: Quantity, cases: Sequence[ClaimCase]) -> list[Estimate | str]:
    """Computed or, of published cases, as they stand; a text says why there is no number of a case."""
    if all(case.published for case in cases):
        return [published_number(case) for case in cases]
    try:
        return list(quantity.numbers(cases))
    except UserError as error:
        # One case that cannot be told must not hide the others.
        return [str(error)] if len(cases) == 1 else [each for case in cases for each in numbers_of(quantity, [case])]


def published_number(case: ClaimCase) -> Estimate:
    """`value`, over `over_value` where there is one, with its own interval or `PUBLISHED_SPREAD`."""
    assert case.value is not None
    if case.low is not None and case.high is not None:
        return Estimate(case.value, case.low, case.high, provenance="published")
    two = case.over_value is not None
    spread = 1 + PUBLISHED_SPREAD * (math.sqrt(2) if two else 1.0)
    value = case.value / (case.over_value or 1.0)
    return Estimate(value, value / spread, value * spread, provenance="published")


def ratio_of(a: Estimate, b: Estimate, own_share: float = 1.0) -> Estimate:
    """`a` over `b`: their errors, as logarithms, add in squares. `own_share`: of each that the other does not share."""

    def away(value: float, end: float) -> float:
        return own_share * abs(math.log(end / value)) if end > 0 else math.inf

    value = a.value / b.value
    down = math.hypot(away(a.value, a.least), away(b.value, b.most))
    up = math.hypot(away(a.value, a.most), away(b.value, b.least))
    return Estimate(value, value * math.exp(-down), value * math.exp(up))


def listed(cases: Sequence[ClaimCase], field: str) -> str:
    return ",".join(_number(value) for value in dict.fromkeys(getattr(case, field) for case in cases))


def _number(value: float) -> str:
    # A million in six digits is 1e+06, which options of whole numbers refuse.
    return f"{value:.0f}" if float(value).is_integer() else f"{value:g}"


def case_options(case: ClaimCase) -> list[str]:
    said = [f"--engine {case.engine}"] if case.engine else []
    said += [f"--devices {case.devices}"] if case.devices else []
    return [*said, f"--format {case.format}"] if case.format else said


def said(*words: str | None) -> str:
    return " ".join(word for word in words if word)


def predict_commands(cases: Sequence[ClaimCase]) -> list[str]:
    first = cases[0]
    machines = [f"--machine {name}" for name in dict.fromkeys(case.machine for case in cases)]
    steps = f"--batch {listed(cases, 'batch')} --context {listed(cases, 'context')}"
    formats = {case.format: case for case in cases}
    return [
        said("breakeven predict", first.over, first.of, *machines, *case_options(case), steps)
        for case in formats.values()
    ]


def traffic_options(case: ClaimCase) -> str:
    return f"--prompt {case.prompt} --output {case.output}" + (f" --turns {case.turns}" if case.turns > 1 else "")


def capacity_commands(cases: Sequence[ClaimCase]) -> list[str]:
    first = cases[0]
    where = f"--machine {first.machine}"
    return [
        said(
            "breakeven cost",
            first.of,
            first.over,
            where,
            *case_options(first),
            "--usd-per-hour 1",
            traffic_options(first),
        )
    ]


def no_commands(cases: Sequence[ClaimCase]) -> list[str]:
    return []
