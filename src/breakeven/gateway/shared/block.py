"""One block of memory that the gateway's processes inherit: no name, no file, gone with the last of them.

Rows of a `SharedGrid` belong to workers (0 is for what dead workers counted) and entities: backends, keys, models.
Aligned words of 8 bytes are read and written whole, so a reader never sees half a number.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from breakeven.errors import UserError
from breakeven.gateway.shared.layout import (
    COUNT_COLUMNS,
    WINDOW_COLUMNS,
    Global,
    Known,
    Process,
    Treatment,
    UnderWay,
    Used,
)

WORD = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """How many of each there can be. `workers` counts row 0 as well."""

    workers: int
    backends: int
    keys: int
    models: int
    experiments: int
    windows: int = 8
    """Limits a key can have."""


class SharedGrid:
    """Cells by worker, entity and column; `cells` is flat. A grid without workers has one row of entities."""

    __slots__ = ("cells", "columns", "entities", "workers")

    def __init__(self, cells: Any, workers: int, entities: int, columns: int) -> None:
        self.cells, self.workers, self.entities, self.columns = cells, workers, entities, columns

    def mine(self, worker: int) -> Any:
        """All cells of one worker: entity e's column c is `[e * columns + c]`."""
        size = self.entities * self.columns
        return self.cells[worker * size : (worker + 1) * size]

    def get(self, worker: int, entity: int, column: int) -> float:
        """One cell."""
        value: float = self.cells[(worker * self.entities + entity) * self.columns + column]
        return value

    def put(self, worker: int, entity: int, column: int, value: float) -> None:
        """Set one cell."""
        self.cells[(worker * self.entities + entity) * self.columns + column] = value

    def total(self, entity: int, column: int) -> float:
        """Over all workers."""
        step = self.entities * self.columns
        value: float = sum(self.cells[entity * self.columns + column :: step])
        return value

    def totals(self, entity: int) -> list[float]:
        """Every column over all workers."""
        return [self.total(entity, column) for column in range(self.columns)]

    def retire(self, worker: int, *, keep: bool) -> None:
        """Clear a dead worker's row; with `keep` what it counted goes on in row 0."""
        size = self.entities * self.columns
        mine, kept = self.mine(worker), self.mine(0)
        for i in range(size):
            if value := mine[i]:
                if keep:
                    kept[i] += value
                mine[i] = 0


class SharedBlock:
    """The shared grids. Made once, before any process is forked."""

    def __init__(self, shape: Shape) -> None:
        """All cells 0."""
        w, b = shape.workers, shape.backends
        grids: Mapping[str, tuple[str, int, int, int]] = {
            "load": ("q", w, b, len(UnderWay)),
            "count": ("q", w, b, COUNT_COLUMNS),
            "key_usage": ("q", w, shape.keys, len(Used)),
            "model_usage": ("q", w, shape.models, len(Used)),
            "windows": ("q", w + 1, shape.keys * shape.windows, WINDOW_COLUMNS),
            "worker": ("q", w, 1, len(Process)),
            "known": ("d", 1, b, len(Known)),
            "share": ("d", 1, shape.experiments, len(Treatment)),
            "everywhere": ("d", 1, 1, len(Global)),
        }
        words = sum(w * e * c for _, w, e, c in grids.values())
        self.shape = shape
        self._engines = os.urandom(32)
        self._memory = mmap.mmap(-1, max(1, words) * WORD)
        whole = memoryview(self._memory)
        made: dict[str, SharedGrid] = {}
        at = 0
        for name, (kind, workers, entities, columns) in grids.items():
            size = workers * entities * columns * WORD
            part = whole[at : at + size]
            cells: Any = part.cast("q") if kind == "q" else part.cast("d")
            made[name] = SharedGrid(cells, workers, entities, columns)
            at += size
        self.load = made["load"]
        self.count = made["count"]
        self.key_usage = made["key_usage"]
        self.model_usage = made["model_usage"]
        self.windows = made["windows"]
        """Entity `key * shape.windows + limit`; columns as in `Window`. One row more than workers: other machines'."""
        self.worker = made["worker"]
        self.known = made["known"]
        self.share = made["share"]
        self.everywhere = made["everywhere"]

    def engine_key(self, backend: str) -> str:
        """What an engine of ours asks of whoever asks it: known to the processes that inherit this, and to no other."""
        return hashlib.blake2b(backend.encode(), key=self._engines, digest_size=24).hexdigest()

    def retire(self, worker: int) -> None:
        """A worker died or ended: nothing of it is under way any more, and its counts are kept."""
        for grid in (self.count, self.key_usage, self.model_usage, self.windows):
            grid.retire(worker, keep=grid is not self.windows)
        for grid in (self.load, self.worker):
            grid.retire(worker, keep=False)


class Slots:
    """Names to rows that stay the same over reloads: a name that went keeps its row until a new one needs it."""

    def __init__(self, what: str, size: int) -> None:
        """Nothing named yet."""
        self.what, self.size = what, size
        self.of: dict[str, int] = {}

    def name(self, names: Sequence[str]) -> dict[str, int]:
        """Rows of `names`. Raises UserError when there are too many for what was set aside at the start."""
        gone = [name for name in self.of if name not in names]
        for name in names:
            if name in self.of:
                continue
            if len(self.of) < self.size:
                taken = set(self.of.values())
                self.of[name] = next(i for i in range(self.size) if i not in taken)
            elif gone:
                raise UserError(
                    f"{len(self.of) + 1} {self.what} were named since the start and there is room for {self.size}; "
                    "restart to change so many"
                )
            else:
                raise UserError(f"there is room for {self.size} {self.what}; restart to have more")
        return {name: self.of[name] for name in names}
