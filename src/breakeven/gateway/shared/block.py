"""One block of memory that the gateway's processes inherit: no name, no file, gone with the last of them.

Rows of a `SharedGrid` belong to workers (0 is for what dead workers counted) and entities: backends, keys, models.
Aligned words of 8 bytes are read and written whole, so a reader never sees half a number.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from breakeven.errors import UserError
from breakeven.gateway.shared.layout import (
    COUNT_COLUMNS,
    KEY_COLUMNS,
    TOLD_COLUMNS,
    WINDOW_COLUMNS,
    Global,
    Known,
    Process,
    Treatment,
    UnderWay,
    Used,
)
from breakeven.hardware.system import steady_s

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
        mine, kept = self.mine(worker), self.mine(0)
        for i, value in enumerate(mine.tolist()):
            if value:
                if keep:
                    kept[i] += value
                mine[i] = 0

    def clear(self, first: int, count: int = 1) -> None:
        """Make entities as new, in every worker's row."""
        size = count * self.columns
        for worker in range(self.workers):
            at = (worker * self.entities + first) * self.columns
            for i in range(at, at + size):
                self.cells[i] = 0


class SharedBlock:
    """The shared grids. Made once, before any process is forked."""

    def __init__(self, shape: Shape) -> None:
        """All cells 0, and `now_s` is the wall clock's."""
        w, b = shape.workers, shape.backends
        grids: Mapping[str, tuple[str, int, int, int]] = {
            "load": ("q", w, b, len(UnderWay)),
            "count": ("q", w, b, COUNT_COLUMNS),
            "key_usage": ("q", w, shape.keys, len(Used)),
            "model_usage": ("q", w, shape.models, len(Used)),
            "windows": ("q", w + 1, shape.keys * shape.windows, WINDOW_COLUMNS),
            "told": ("q", 1, shape.keys * shape.windows, TOLD_COLUMNS),
            "held": ("q", w, b, min(shape.keys, KEY_COLUMNS)),
            "worker": ("q", w, 1, len(Process)),
            "known": ("d", 1, b, len(Known)),
            "share": ("d", 1, shape.experiments, len(Treatment)),
            "everywhere": ("d", 1, 1, len(Global)),
        }
        words = sum(w * e * c for _, w, e, c in grids.values())
        self.shape = shape
        self._began_s = time.time() - steady_s()
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
        self.told = made["told"]
        """By limit as `windows`, without workers: what Redis was told, for whoever tells it next."""
        self.held = made["held"]
        """Places by worker, backend and key (`key % columns`)."""
        self.worker = made["worker"]
        self.known = made["known"]
        self.share = made["share"]
        self.everywhere = made["everywhere"]

    def now_s(self) -> float:
        """Unix time as it was when the block was made, and from then on by a clock that nobody sets.

        Windows of keys are numbered by it: setting the machine's clock neither frees nor locks anybody.
        """
        return self._began_s + steady_s()

    def engine_key(self, backend: str) -> str:
        """What an engine of ours asks of whoever asks it: known to the processes that inherit this, and to no other."""
        return hashlib.blake2b(backend.encode(), key=self._engines, digest_size=24).hexdigest()

    def retire(self, worker: int) -> None:
        """A worker died or ended: nothing of it is under way any more, and its counts are kept."""
        for grid in (self.count, self.key_usage, self.model_usage, self.windows):
            grid.retire(worker, keep=grid is not self.windows)
        for grid in (self.load, self.worker, self.held):
            grid.retire(worker, keep=False)

    def clear_backend(self, row: int) -> None:
        """For another backend in its row."""
        for grid in (self.load, self.count, self.known, self.held):
            grid.clear(row)

    def clear_key(self, row: int) -> None:
        """For another key in its row."""
        self.key_usage.clear(row)
        for grid in (self.windows, self.told):
            grid.clear(row * self.shape.windows, self.shape.windows)


class Slots:
    """Names to rows that stay the same over reloads: a name that went keeps its row until a new one needs it."""

    def __init__(self, what: str, size: int, clear: Callable[[int], None] | None = None) -> None:
        """Nothing named yet. `clear` makes a row as new before another name gets it."""
        self.what, self.size, self._clear = what, size, clear
        self.of: dict[str, int] = {}
        """Those that went first, the longest gone at the beginning."""

    def name(self, names: Sequence[str], in_use: Collection[str] = ()) -> dict[str, int]:
        """Rows of `names`. `in_use`: names that went, whose rows somebody still writes.

        Raises UserError, and changes nothing, when there are too many for what was set aside at the start.
        """
        wanted = dict.fromkeys(names)
        fresh = [name for name in wanted if name not in self.of]
        gone = [name for name in self.of if name not in wanted and name not in in_use]
        room = self.size - len(self.of)
        if len(fresh) > room + len(gone):
            if len(wanted) <= self.size:
                raise UserError(
                    f"{len(fresh)} {self.what} are new and there is room for {room + len(gone)} until requests to "
                    "those that went have ended; reload again then"
                )
            raise UserError(f"there is room for {self.size} {self.what}; restart to have more")
        rows = sorted(set(range(self.size)) - set(self.of.values()))[: len(fresh)]
        for name in gone[: len(fresh) - len(rows)]:
            row = self.of.pop(name)
            if self._clear is not None:
                self._clear(row)
            rows.append(row)
        mine = {name: self.of.pop(name) for name in wanted if name in self.of} | dict(zip(fresh, rows, strict=True))
        self.of.update(mine)
        return {name: mine[name] for name in names}
