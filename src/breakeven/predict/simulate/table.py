"""Step times looked up: the step model on a grid once, interpolated many thousand times.

The step model is piecewise smooth and rises along every axis, so linear interpolation between points a quarter of an
octave apart (half of one along contexts) keeps its order. It stays within a few per mille, and within 8 % where memory
and arithmetic change places.

Axes: D decoding sequences, C their mean context, P prompt tokens, Q mean context of a prompt token.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from breakeven.predict.model import StepModel

Floats = NDArray[np.float64]

_FEWEST_CONTEXT = 64
_CACHE: list[tuple[StepModel, int, int, int, StepTable]] = []
_CACHED = 8


class StepTable:
    """Seconds of steps of one model. Look-ups take plain numbers and cost about a microsecond or four."""

    __slots__ = ("_c", "_d_at", "_d_share", "_decode", "_mixed", "_n_c", "_n_p", "_n_q", "_p_at", "_p_share", "_q")

    def __init__(self, model: StepModel, sequences: int, tokens: int, context: int) -> None:
        d_D = _grid(0, sequences, 4)
        p_P = _grid(1, tokens, 4)
        self._c = _grid(_FEWEST_CONTEXT, context, 2).tolist()
        self._q = _grid(_FEWEST_CONTEXT, context, 2).tolist()
        self._n_c, self._n_p, self._n_q = len(self._c), len(p_P), len(self._q)
        self._decode: list[list[float]] = model.step_s(
            np.arange(sequences + 1, dtype=np.float64)[:, None], np.asarray(self._c)[None, :]
        ).tolist()
        self._mixed: list[float] = (
            model.step_s(
                d_D[:, None, None, None],
                np.asarray(self._c)[None, :, None, None],
                p_P[None, None, :, None],
                np.asarray(self._q)[None, None, None, :],
            )
            .ravel()
            .tolist()
        )
        self._d_at, self._d_share = _places(d_D, sequences)
        self._p_at, self._p_share = _places(p_P, tokens)

    def decode_s(self, d: int, c: float) -> float:
        """A step of `d` sequences of mean context `c` tokens."""
        # As `_place` does, without a call: this is the innermost line of a simulation.
        grid, row = self._c, self._decode[d]
        i = bisect_right(grid, c, 1, self._n_c - 1) - 1
        share: float = (c - grid[i]) / (grid[i + 1] - grid[i])
        return row[i] + share * (row[i + 1] - row[i])

    def mixed_s(self, d: int, c: float, p: int, q: float) -> float:
        """A step of `d` decoding sequences and `p` >= 1 prompt tokens that attend to `q` tokens each on average."""
        table = self._mixed
        n_q = self._n_q
        n_pq = self._n_p * n_q
        i_c, s_c = _place(self._c, c)
        i_q, s_q = _place(self._q, q)
        s_d, s_p = self._d_share[d], self._p_share[p]
        at = (self._d_at[d] * self._n_c + i_c) * n_pq + self._p_at[p] * n_q + i_q
        found = 0.0
        for start, weight in ((at, 1.0 - s_d), (at + self._n_c * n_pq, s_d)):
            if weight:
                for k, w in ((start, weight * (1.0 - s_c)), (start + n_pq, weight * s_c)):
                    low = table[k] + s_q * (table[k + 1] - table[k])
                    if s_p:
                        j = k + n_q
                        low += s_p * (table[j] + s_q * (table[j + 1] - table[j]) - low)
                    found += w * low
        return found


def table_of(model: StepModel, sequences: int, tokens: int, context: int) -> StepTable:
    """The table for steps of up to `sequences` sequences and `tokens` prompt tokens, contexts up to `context`.

    The latest few are kept: a search over loads asks for the same one again and again.
    """
    for known, s, t, c, table in _CACHE:
        if (s, t, c) == (sequences, tokens, context) and known == model:
            return table
    table = StepTable(model, sequences, tokens, context)
    _CACHE.append((model, sequences, tokens, context, table))
    del _CACHE[:-_CACHED]
    return table


def _place(grid: list[float], x: float) -> tuple[int, float]:
    """The interval of the grid that `x` lies in, the first or last one beyond its ends, and where in it."""
    i = bisect_right(grid, x, 1, len(grid) - 1) - 1
    return i, (x - grid[i]) / (grid[i + 1] - grid[i])


def _grid(low: int, high: int, per_octave: int) -> Floats:
    """Whole numbers from `low` to at least `high`, `per_octave` to a doubling; at least two of them."""
    points = [float(low)]
    while points[-1] < high or len(points) < 2:
        points.append(max(points[-1] + 1.0, float(round(points[-1] * 2.0 ** (1.0 / per_octave)))))
    return np.asarray(points)


def _places(grid: Floats, most: int) -> tuple[list[int], list[float]]:
    """For every whole number up to `most`: the grid point at or below it, and how far it is to the next."""
    numbers = np.maximum(np.arange(most + 1, dtype=np.float64), grid[0])
    at = np.clip(np.searchsorted(grid, numbers, side="right") - 1, 0, len(grid) - 2)
    return at.tolist(), ((numbers - grid[at]) / (grid[at + 1] - grid[at])).tolist()
