"""What keys spent, beyond the processes that count it: in a file over restarts, and told to other machines.

The file stands beside the file of keys. The watching process saves it every few seconds and at the end, so that a
machine that loses its power forgets only what was spent since. It is read before the first worker starts.

Within a machine buckets are numbered by a clock that nobody sets. The file and Redis have the wall clock's numbers,
which mean the same after a restart and on another machine: `wall_shift` is what lies between the two.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from breakeven.errors import UserError
from breakeven.gateway.keys.entry import KeyEntry, KeyLimit
from breakeven.gateway.keys.store import replace_file
from breakeven.gateway.keys.windows import number, put_row, row_buckets, width_s
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import TOLD_COLUMNS, WINDOW_COLUMNS, Window
from breakeven.hardware.system import regular

SCHEMA = "breakeven.key_budgets/1"
MOST = 4 * 10**15
"""In one bucket or counter: above any limit, and exact in Lua's numbers."""
STEPPED_S = 0.5
"""The wall clock was set when it differs from the windows' by more than this."""


class _Spent(msgspec.Struct, kw_only=True):
    stamp: int
    buckets: list[tuple[int, int]]
    """Number and amount."""
    born: int = 0
    told: list[tuple[int, int]] = []
    """Of `buckets`, what the counters in Redis with this birth mark hold already."""


class _File(msgspec.Struct, kw_only=True):
    schema: str
    saved_s: float
    machine: str
    """Names this machine to others that share its limits; random, made once."""
    spent: list[_Spent]


def budget_path(keys: Path, budgets: Path | None = None) -> Path:
    """Where spending is saved: in the file `budgets`, else in the one that belongs to a file of keys."""
    return budgets or keys.with_name(f"{keys.stem}.budgets.json")


def load_budgets(path: Path, block: SharedBlock, entries: Iterable[KeyEntry], slots: Mapping[str, int]) -> str:
    """Put what was saved into row 0 and return this machine's name for others. `slots`: rows by key's name.

    Without a file everything starts at 0. Call it before workers exist. Raises UserError for a file that is damaged.
    """
    try:
        with open(path, "rb", opener=regular) as opened:
            data = opened.read()
    except FileNotFoundError:
        return secrets.token_hex(8)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); it must belong to who runs the gateway") from None
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; delete it to count keys' spending from 0") from None
    if file.schema != SCHEMA:
        raise UserError(
            f"{path}: schema is {file.schema!r} and this version reads {SCHEMA!r}; delete it to start from 0"
        )
    known = {one.stamp: one for one in file.spent}
    # Saved by a clock that was ahead: how long ago is not known, so it counts as just now.
    late_s = file.saved_s - time.time()
    for limit, at in limit_cells(block, entries, slots):
        if (one := known.get(limit.stamp)) is None:
            continue
        shift = wall_shift(block, limit.window_s)
        back = shift + (math.floor(late_s / width_s(limit.window_s)) if late_s > STEPPED_S else 0)
        last = number(block.now_s(), limit.window_s)
        buckets: dict[int, int] = {}
        for n, amount in _believable(one.buckets):
            # What lies ahead, by rounding or by a clock, counts as now.
            buckets[min(n - back, last)] = buckets.get(min(n - back, last), 0) + amount
        put_row(block.windows.cells, at, limit.stamp, last, buckets)
        if 0 < one.born < 2**63:
            told = dict(_believable(one.told))
            put_told(block, at, limit.stamp, max((last + shift, *told)), one.born, told)
    return file.machine


def _believable(buckets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Less what no gateway saves: a negative amount would free a budget."""
    return [(n, amount) for n, amount in buckets if 0 < amount <= MOST and 0 <= n < MOST]


def save_budgets(
    path: Path, block: SharedBlock, entries: Iterable[KeyEntry], slots: Mapping[str, int], machine: str
) -> None:
    """Write what the windows hold now, of all this machine's workers. Raises UserError when it cannot be written."""
    spent = []
    for limit, at in limit_cells(block, entries, slots):
        # Before what was spent, which is never less.
        born, told = get_told(block, at, limit.stamp)
        if buckets := ours(block, at, limit):
            one = _Spent(stamp=limit.stamp, buckets=sorted(buckets.items()), born=born, told=sorted(told.items()))
            spent.append(one)
    file = _File(schema=SCHEMA, saved_s=round(time.time(), 3), machine=machine, spent=spent)
    replace_file(path, msgspec.json.encode(file) + b"\n")


def limit_cells(
    block: SharedBlock, entries: Iterable[KeyEntry], slots: Mapping[str, int]
) -> Iterator[tuple[KeyLimit, int]]:
    """Every limit with the place of its cells in row 0 of the grid."""
    windows = block.shape.windows
    for entry in entries:
        slot = slots.get(entry.name)
        if slot is None:
            continue
        for i, limit in enumerate(entry.limits[:windows]):
            yield limit, (slot * windows + i) * WINDOW_COLUMNS


def ours(block: SharedBlock, at: int, limit: KeyLimit) -> dict[int, int]:
    """What this machine's workers spent, by the wall clock's bucket; `at`: as `limit_cells` gives it."""
    grid = block.windows
    last, shift = number(block.now_s(), limit.window_s), wall_shift(block, limit.window_s)
    found: dict[int, int] = {}
    # The last row is other machines'.
    for worker in range(grid.workers - 1):
        place = at + worker * grid.entities * WINDOW_COLUMNS
        for n, amount in row_buckets(grid.cells, place, limit.stamp, last).items():
            found[n + shift] = found.get(n + shift, 0) + amount
    return found


def wall_shift(block: SharedBlock, window_s: float) -> int:
    """What a bucket's number is more by the wall clock than by the windows': 0 unless that was set."""
    ahead_s = time.time() - block.now_s()
    # Upwards: what was spent counts rather too long.
    return 0 if abs(ahead_s) < STEPPED_S else math.ceil(ahead_s / width_s(window_s))


def put_told(block: SharedBlock, at: int, stamp: int, last: int, born: int, told: dict[int, int]) -> None:
    """Remember what the counters born as `born` hold of ours, beyond the process that tells them."""
    place = at // WINDOW_COLUMNS * TOLD_COLUMNS
    block.told.cells[place + Window.STAMP] = 0
    block.told.cells[place + WINDOW_COLUMNS] = born
    put_row(block.told.cells, place, stamp, last, told)


def get_told(block: SharedBlock, at: int, stamp: int) -> tuple[int, dict[int, int]]:
    """What `put_told` put; (0, {}) where nobody did."""
    cells, place = block.told.cells, at // WINDOW_COLUMNS * TOLD_COLUMNS
    last = int(cells[place + Window.LAST])
    told = row_buckets(cells, place, stamp, last)
    return (int(cells[place + WINDOW_COLUMNS]), told) if cells[place + Window.STAMP] == stamp else (0, {})
