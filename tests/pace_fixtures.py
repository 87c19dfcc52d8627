"""Bounds of processor time that mean the same on a slow machine: they grow with what a fixed piece of work takes."""

from __future__ import annotations

import json
import time
from functools import cache

USUAL_S = 0.15
"""Processor time of the piece of work on the machine that the bounds were set on, with nothing beside it."""


def _piece_s() -> float:
    """Numbers, texts and dicts made, sorted, written and read: what the work that is bounded is made of, too."""
    began_s = time.process_time()
    rows = [{"name": f"n{k}", "at": k % 97, "of": [k, k + 1, k + 2]} for k in range(40_000)]
    again = json.loads(json.dumps(rows))
    again.sort(key=lambda row: (row["at"], row["name"]))
    assert sum(value * row["at"] % 7 for row in again for value in row["of"])
    return time.process_time() - began_s


@cache
def _pace() -> float:
    """How many times as long this machine takes, at least 1; the slowest of three, as what is bounded has one try."""
    return max(1.0, max(_piece_s() for _ in range(3)) / USUAL_S)


def paced(bound_s: float) -> float:
    """A bound of processor time as this machine may take it: neighbours in its caches and its clock count."""
    return bound_s * _pace()
