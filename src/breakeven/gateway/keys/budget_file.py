"""What keys spent in their windows, kept over restarts: one small file beside the file of keys.

The watching process saves it every few seconds and at the end, so that a machine that loses its power forgets only what
was spent since. It is read before the first worker starts.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from breakeven.errors import UserError
from breakeven.gateway.keys.entry import KeyEntry, KeyLimit
from breakeven.gateway.keys.store import replace_file
from breakeven.gateway.keys.windows import number, put_row, row_buckets
from breakeven.gateway.shared.block import Block
from breakeven.gateway.shared.layout import WINDOW_COLUMNS

SCHEMA = "breakeven.key_budgets/1"


class _Spent(msgspec.Struct, kw_only=True):
    stamp: int
    buckets: list[tuple[int, int]]
    """Number and amount."""


class _File(msgspec.Struct, kw_only=True):
    schema: str
    saved_s: float
    machine: str
    """Names this machine to others that share its limits; random, made once."""
    spent: list[_Spent]


def budget_path(keys: Path) -> Path:
    """The file that belongs to a file of keys."""
    return keys.with_name(f"{keys.stem}.budgets.json")


def load_budgets(path: Path, block: Block, entries: Iterable[KeyEntry], slots: Mapping[str, int]) -> str:
    """Put what was saved into row 0 and return this machine's name for others. `slots`: rows by key's name.

    Without a file everything starts at 0. Call it before workers exist. Raises UserError for a file that is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return secrets.token_hex(8)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); it must belong to who runs the gateway") from None
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {error}; delete it to count keys' spending from 0") from None
    if file.schema != SCHEMA:
        raise UserError(
            f"{path}: schema is {file.schema!r} and this version reads {SCHEMA!r}; delete it to start from 0"
        )
    known = {one.stamp: one.buckets for one in file.spent}
    now_s = time.time()
    for limit, at in limit_cells(block, entries, slots):
        if limit.stamp in known:
            put_row(block.windows.cells, at, limit.stamp, number(now_s, limit.window_s), dict(known[limit.stamp]))
    return file.machine


def save_budgets(path: Path, block: Block, entries: Iterable[KeyEntry], slots: Mapping[str, int], machine: str) -> None:
    """Write what the windows hold now, of all this machine's workers. Raises UserError when it cannot be written."""
    now_s = time.time()
    spent = []
    for limit, at in limit_cells(block, entries, slots):
        if buckets := ours(block, at, limit, number(now_s, limit.window_s)):
            spent.append(_Spent(stamp=limit.stamp, buckets=sorted(buckets.items())))
    file = _File(schema=SCHEMA, saved_s=round(now_s, 3), machine=machine, spent=spent)
    replace_file(path, msgspec.json.encode(file) + b"\n")


def limit_cells(block: Block, entries: Iterable[KeyEntry], slots: Mapping[str, int]) -> Iterator[tuple[KeyLimit, int]]:
    """Every limit with the place of its cells in row 0 of the grid."""
    windows = block.shape.windows
    for entry in entries:
        slot = slots.get(entry.name)
        if slot is None:
            continue
        for i, limit in enumerate(entry.limits[:windows]):
            yield limit, (slot * windows + i) * WINDOW_COLUMNS


def ours(block: Block, at: int, limit: KeyLimit, last: int) -> dict[int, int]:
    """What this machine's workers spent, by bucket up to `last`; `at`: as `limit_cells` gives it."""
    grid = block.windows
    found: dict[int, int] = {}
    # The last row is other machines'.
    for worker in range(grid.workers - 1):
        place = at + worker * grid.entities * WINDOW_COLUMNS
        for n, amount in row_buckets(grid.cells, place, limit.stamp, last).items():
            found[n] = found.get(n, 0) + amount
    return found
