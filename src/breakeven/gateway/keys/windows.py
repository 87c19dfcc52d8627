"""What every key has spent lately, limit by limit, and whether it may spend more.

One limit's spending lately, as rows of the shared grid keep it: buckets of a fifteenth of the window.

The newest sixteen buckets always cover the whole window, so their sum is never less than what the window holds, and
spending that stays below a limit by their sum is below it in every window wherever it begins. The price: what was spent
counts for up to a fifteenth of the window too long.

Buckets are numbered by `SharedBlock.now_s`, so that rows of other workers line up: Unix time as it was at the start,
and from then on a clock that nobody sets. Where numbers leave the machine or its run, `budgets` puts them into the wall
clock's.

What each key has spent lately, and whether it may spend more: a look at shared memory, nothing leaves the process.

A request is counted when it starts, with the tokens and dollars it is expected to take, and corrected to what it took
when it ends: a hundred at once cannot each believe that the budget is still free.

Other workers' rows are read for every request. Nothing is locked: workers together overstep a limit by at most the
requests that they check in the same microseconds, one each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from breakeven.gateway.keys.entry import NANO, KeyLimit, What, limit_text
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import WINDOW_COLUMNS, WINDOW_RING, Used, Window

BUCKETS = WINDOW_RING - 1
"""In one window."""
# Plain numbers: adding to a member of an enumeration takes several times as long, and each request does it often.
_STAMP, _LAST, _TOTAL, _FIRST = (int(column) for column in (Window.STAMP, Window.LAST, Window.TOTAL, Window.FIRST))


_EARLY = 1.0 - 1e-12


def width_s(window_s: float) -> float:
    """Of one bucket."""
    return window_s / BUCKETS


def number(unix_s: float, window_s: float) -> int:
    """Of the bucket that this moment falls into, by the clock that it was read from."""
    return int(unix_s / (window_s / BUCKETS))


def row_sum(cells: Any, at: int, stamp: int, last: int) -> int:
    """What the row at `at` of a flat grid holds of the buckets `last - 15` to `last`; 0 when it counts another limit.

    A row that is ahead of `last` (its worker's clock read later) is summed whole.
    """
    if cells[at + _STAMP] != stamp:
        return 0
    if cells[at + _LAST] == last:
        total: int = cells[at + _TOTAL]
        return total
    row: list[int] = cells[at : at + WINDOW_COLUMNS].tolist()
    behind = last - row[_LAST]
    if behind <= 0:
        return sum(row[_FIRST:])
    if behind >= WINDOW_RING:
        return 0
    newest = row[_LAST]
    return sum(row[_FIRST + n % WINDOW_RING] for n in range(newest - BUCKETS + behind, newest + 1))


def row_buckets(cells: Any, at: int, stamp: int, last: int) -> dict[int, int]:
    """The same by bucket's number, empty ones left out; what is ahead of `last` counts as `last`."""
    found: dict[int, int] = {}
    if cells[at + _STAMP] != stamp:
        return found
    row: list[int] = cells[at : at + WINDOW_COLUMNS].tolist()
    newest = row[_LAST]
    for n in range(max(newest, last) - BUCKETS, newest + 1):
        if amount := row[_FIRST + n % WINDOW_RING]:
            found[min(n, last)] = found.get(min(n, last), 0) + amount
    return found


def put_row(cells: Any, at: int, stamp: int, last: int, buckets: dict[int, int]) -> None:
    """Write a row whole; buckets outside the ring are left out. Only the row's own writer may."""
    if cells[at + _STAMP] != stamp:
        cells[at + _STAMP] = 0
    for n in range(last - BUCKETS, last + 1):
        cells[at + _FIRST + n % WINDOW_RING] = buckets.get(n, 0)
    cells[at + _TOTAL] = sum(cells[at + _FIRST : at + WINDOW_COLUMNS].tolist())
    cells[at + _LAST] = last
    # Last of all, so that no reader takes a row that is half written for this limit's.
    cells[at + _STAMP] = stamp


class OwnRow:
    """The row of one limit that this process writes. `total`: what its ring holds.

    `until_s`: before this time there is nothing to `advance`; a little early, so that no rounding makes it late.
    """

    __slots__ = ("_at", "_cells", "_width_s", "last", "total", "until_s")

    def __init__(self, cells: Any, at: int, stamp: int, window_s: float, unix_s: float) -> None:
        """Takes the row over; what it counted stays when it was this limit's."""
        self._cells, self._at = cells, at
        self._width_s = window_s / BUCKETS
        last = int(unix_s / self._width_s)
        if cells[at + _STAMP] != stamp:
            put_row(cells, at, stamp, last, {})
        self.last = int(cells[at + _LAST])
        self.until_s = 0.0
        self._sum()
        self.advance(unix_s)

    def advance(self, unix_s: float) -> None:
        """Let buckets that are older than the window go. A clock that was set back changes nothing."""
        last = int(unix_s / self._width_s)
        if last <= self.last:
            self.until_s = (self.last + 1) * self._width_s * _EARLY
            return
        cells, first = self._cells, self._at + _FIRST
        # Cleared before they are named: a reader in between misses only what goes now anyway.
        for n in range(max(self.last + 1, last - BUCKETS), last + 1):
            cells[first + n % WINDOW_RING] = 0
        # The total before the number, for the same reason.
        self.last = last
        self._sum()
        cells[self._at + _LAST] = last

    def add(self, amount: int) -> None:
        """Count it in the newest bucket."""
        self._cells[self._at + _FIRST + self.last % WINDOW_RING] += amount
        self.total += amount
        self._cells[self._at + _TOTAL] = self.total

    def correct(self, n: int, amount: int) -> None:
        """Change what was counted in bucket `n`. When that has gone, only more is counted, and in the newest."""
        if n <= self.last - WINDOW_RING:
            if amount <= 0:
                return
            n = self.last
        self._cells[self._at + _FIRST + n % WINDOW_RING] += amount
        self.total += amount
        self._cells[self._at + _TOTAL] = self.total

    def _sum(self) -> None:
        first = self._at + _FIRST
        self.total = sum(self._cells[first : first + WINDOW_RING].tolist())
        self._cells[self._at + _TOTAL] = self.total


_KIND: dict[What, int] = {"requests": 0, "tokens": 1, "usd": 2}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not taken now. `retry_after_s`: when it would be, were nothing else spent until then.

    None: never, since it is above the limit all by itself.
    `used`, in the limit's own unit, is what the window holds without this request.
    """

    limit: KeyLimit
    used: int
    retry_after_s: float | None

    @property
    def text(self) -> str:
        """For the client, in one line."""
        allowed = limit_text(self.limit)
        if self.retry_after_s is None:
            return f"this request alone is above the key's limit of {allowed}; ask for less, or for a higher limit"
        used = f"{self.used / NANO:.4g}" if self.limit.what == "usd" else str(self.used)
        return (
            f"the key's limit of {allowed} is reached ({used} used); try again in {max(1, ceil(self.retry_after_s))} s"
        )


class _Counted:
    """One limit of one key in this worker."""

    __slots__ = ("at", "kind", "limit", "row")

    def __init__(self, limit: KeyLimit, row: OwnRow, at: tuple[int, ...]) -> None:
        self.limit, self.row, self.at = limit, row, at
        self.kind = _KIND[limit.what]


class Spent:
    """A request that is counted and has not ended. Handed to `Windows.settle` once."""

    __slots__ = ("counted", "nano_usd", "numbers", "tokens")

    def __init__(self, counted: Sequence[_Counted], tokens: int, nano_usd: int) -> None:
        self.counted, self.tokens, self.nano_usd = counted, tokens, nano_usd
        self.numbers = [one.row.last for one in counted]


class Windows:
    """One worker's side of all keys' limits. `unix_s`: as `now_s` tells it; a key's `slot` is its row in `Slots`."""

    __slots__ = ("_block", "_cells", "_keys", "_slots", "_usage", "_usage_step", "_worker", "now_s")

    def __init__(self, block: SharedBlock, worker: int) -> None:
        """`worker`: the row that this process writes."""
        self._block, self._worker, self._slots = block, worker, block.shape.windows
        self._cells: Any = block.windows.cells
        self._keys: dict[int, tuple[Sequence[KeyLimit], list[_Counted]]] = {}
        self._usage: Any = block.key_usage.cells
        self._usage_step = block.key_usage.entities * block.key_usage.columns
        self.now_s = block.now_s
        """Time as windows count it."""

    def refused(
        self, slot: int, limits: Sequence[KeyLimit], unix_s: float, tokens: float = 0.0, usd: float = 0.0
    ) -> Refusal | None:
        """The first limit that one more request, expected to take so much, would overstep; None: none."""
        if not limits:
            return None
        asked = (1, max(1, int(tokens)), max(1, int(usd * NANO)))
        for one in self._counted(slot, limits, unix_s):
            row, most = one.row, one.limit.amount
            if unix_s >= row.until_s:
                row.advance(unix_s)
            more = asked[one.kind]
            stamp, last, cells = one.limit.stamp, row.last, self._cells
            used = row.total
            for at in one.at:
                # One read of the stamp leaves most rows out: dead workers' and those of workers this key has not met.
                if cells[at] == stamp:
                    used += row_sum(cells, at, stamp, last)
            if used + more > most:
                wait_s = None if more > most else self._wait_s(one, used + more - most, unix_s)
                return Refusal(one.limit, used, wait_s)
        return None

    def spend(
        self, slot: int, limits: Sequence[KeyLimit], unix_s: float, tokens: float = 0.0, usd: float = 0.0
    ) -> Spent | None:
        """Count one request and what it is expected to take; None for a key without limits."""
        if not limits:
            return None
        counted = self._counted(slot, limits, unix_s)
        amounts = (1, int(tokens), int(usd * NANO))
        for one in counted:
            row = one.row
            if unix_s >= row.until_s:
                row.advance(unix_s)
            row.add(amounts[one.kind])
        return Spent(counted, amounts[1], amounts[2])

    def settle(
        self, spent: Spent | None, unix_s: float, tokens: float = 0.0, usd: float = 0.0, *, requests: int = 1
    ) -> None:
        """It ended and took this much. `requests` 0: it was never sent, and is not counted at all.

        What it took is counted at its start; where that bucket has gone, only what it took above the estimate counts.
        """
        if spent is None:
            return
        changes = (requests - 1, int(tokens) - spent.tokens, int(usd * NANO) - spent.nano_usd)
        for one, n in zip(spent.counted, spent.numbers, strict=True):
            if change := changes[one.kind]:
                one.row.advance(unix_s)
                one.row.correct(n, change)
        spent.counted, spent.numbers = (), []

    def open_stream(self, slot: int, most: int) -> bool:
        """Take one of a key's places for answers under way, over all workers; False when all are taken."""
        at = slot * self._block.key_usage.columns + Used.STREAMS
        if sum(self._usage[at :: self._usage_step].tolist()) >= most:
            return False
        self._usage[self._worker * self._usage_step + at] += 1
        return True

    def close_stream(self, slot: int) -> None:
        """Give it back."""
        at = slot * self._block.key_usage.columns + Used.STREAMS
        self._usage[self._worker * self._usage_step + at] -= 1

    def _counted(self, slot: int, limits: Sequence[KeyLimit], unix_s: float) -> list[_Counted]:
        found = self._keys.get(slot)
        if found is not None and found[0] is limits:
            return found[1]
        grid = self._block.windows
        step = grid.entities * WINDOW_COLUMNS
        made = []
        for i, limit in enumerate(limits[: self._slots]):
            at = (slot * self._slots + i) * WINDOW_COLUMNS
            row = OwnRow(self._cells, at + self._worker * step, limit.stamp, limit.window_s, unix_s)
            made.append(_Counted(limit, row, tuple(at + w * step for w in range(grid.workers) if w != self._worker)))
        self._keys[slot] = (limits, made)
        return made

    def _wait_s(self, one: _Counted, over: int, unix_s: float) -> float:
        """Seconds until buckets with at least `over` in them have gone, at most the whole window."""
        window_s, last = one.limit.window_s, one.row.last
        step = self._block.windows.entities * WINDOW_COLUMNS
        mine = one.at[0] % step + self._worker * step
        by_number: dict[int, int] = {}
        for at in (mine, *one.at):
            for n, amount in row_buckets(self._cells, at, one.limit.stamp, last).items():
                by_number[n] = by_number.get(n, 0) + amount
        for n in sorted(by_number):
            over -= by_number[n]
            if over <= 0:
                return max(0.001, (n + WINDOW_RING) * width_s(window_s) - unix_s)
        return window_s


def retire(block: SharedBlock, worker: int) -> None:
    """Keep what a dead worker's keys spent (in row 0) and free their streams. Call it before `SharedBlock.retire`.

    Only the supervisor may, since row 0 is its own.
    """
    grid = block.windows
    cells = grid.cells
    step = grid.entities * WINDOW_COLUMNS
    for kept in range(0, step, WINDOW_COLUMNS):
        at = worker * step + kept
        stamp = cells[at + Window.STAMP]
        if stamp == 0:
            continue
        last = int(cells[at + Window.LAST])
        buckets = row_buckets(cells, at, stamp, last)
        if cells[kept + Window.STAMP] == stamp:
            last = max(last, int(cells[kept + Window.LAST]))
            for n, amount in row_buckets(cells, kept, stamp, last).items():
                buckets[n] = buckets.get(n, 0) + amount
        # Taken out first: for an instant it is missing rather than there twice, which would refuse somebody.
        cells[at + Window.STAMP] = 0
        put_row(cells, kept, stamp, last, buckets)
    usage = block.key_usage.mine(worker)
    for at in range(Used.STREAMS, len(usage), block.key_usage.columns):
        usage[at] = 0
