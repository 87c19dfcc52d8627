"""Distributions of token counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.spec.workload import Length

Sample = Callable[[Length, int, np.random.Generator], NDArray[np.float64]]


def fixed(length: Length, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """`mean` every time."""
    return np.full(n, length.mean)


def uniform(length: Length, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Every count from `low` to `high` alike, both included."""
    if length.high is None:
        raise UserError("a uniform length needs two ends, such as uniform:64-512")
    return np.floor(length.low + rng.random(n) * (length.high - length.low + 1))


def normal(length: Length, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Normal with `mean` and `sd`; what falls outside `low`..`high` is moved to the nearer end."""
    return length.mean + length.sd * rng.standard_normal(n)


def lognormal(length: Length, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Log-normal with `mean` and `sd` of the tokens themselves: s^2 = ln(1 + sd^2/mean^2), m = ln(mean) - s^2/2."""
    if length.mean <= 0:
        raise UserError(f"a lognormal length needs a mean above 0, such as lognormal:1155,900; found {length.mean:g}")
    variance = np.log1p((length.sd / length.mean) ** 2)
    return np.asarray(np.exp(np.log(length.mean) - variance / 2 + np.sqrt(variance) * rng.standard_normal(n)))


LENGTHS: dict[str, Sample] = {"fixed": fixed, "uniform": uniform, "normal": normal, "lognormal": lognormal}


def draw_lengths(length: Length, n: int, rng: np.random.Generator, what: str) -> NDArray[np.int32]:
    """`n` token counts of 1 or more. Raises UserError, naming `what`, for a distribution that makes no sense."""
    if length.kind not in LENGTHS:
        raise UserError(f"{what} length {length.kind!r} is not known; one of {', '.join(LENGTHS)}")
    high = np.iinfo(np.int32).max if length.high is None else length.high
    if length.sd < 0 or not np.isfinite([length.mean, length.sd]).all() or not 1 <= length.low <= high:
        raise UserError(f"{what} length needs 1 <= low <= high and a spread of 0 or more; found {length}")
    if length.kind != "uniform" and length.mean < 1:
        raise UserError(f"{what} length needs a mean of 1 token or more; found {length.mean:g}")
    return np.clip(np.rint(LENGTHS[length.kind](length, n, rng)), length.low, high).astype(np.int32)
