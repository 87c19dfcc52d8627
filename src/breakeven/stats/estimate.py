"""A number with its interval: the one way in which Breakeven says how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Provenance = Literal["measured", "predicted", "published"]


class Estimate(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value, its 95 % interval, how many independent blocks it rests on, and where it comes from.

    `low` and `high` are None when the sample is too small to give an interval. `n` None: no sample, but a model of what
    would happen. JSON leaves `n` and `provenance` out where they are those of a prediction (`docs/json.md`).
    """

    value: float
    low: float | None
    high: float | None
    n: int | None = None
    provenance: Provenance = "predicted"

    @property
    def least(self) -> float:
        """The low end; the value itself where there is no interval."""
        return self.value if self.low is None else self.low

    @property
    def most(self) -> float:
        """The high end; the value itself where there is no interval."""
        return self.value if self.high is None else self.high

    def scaled(self, factor: float) -> Estimate:
        """All three times a positive number, as sure as before."""
        low = None if self.low is None else self.low * factor
        high = None if self.high is None else self.high * factor
        return Estimate(self.value * factor, low, high, self.n, self.provenance)

    def inverse(self) -> Estimate:
        """One over it; an end at 0 has no inverse and is None."""
        low = 1 / self.high if self.high else None
        high = 1 / self.low if self.low else None
        return Estimate(1 / self.value, low, high, self.n, self.provenance)

    def plain(self) -> Estimate:
        """Value and ends alone, for a result that says once where all of its numbers come from."""
        return Estimate(self.value, self.low, self.high)


def measured(value: float, low: float | None, high: float | None, n: int) -> Estimate:
    """What `n` independent blocks or requests gave."""
    return Estimate(value, low, high, n, "measured")


def exactly(value: float) -> Estimate:
    """A number without doubt, such as what a price list says."""
    return Estimate(value, value, value)


def bracketed(value: float, low: float, high: float) -> Estimate:
    """`value` between `low` and `high`, or with itself as the end that leaves it out."""
    return Estimate(value, min(low, value), max(high, value))


def around(value_and_ends: Sequence[float]) -> Estimate:
    """The first value, and the range of all: what a model says as it is and at its ends."""
    return Estimate(value_and_ends[0], min(value_and_ends), max(value_and_ends))
