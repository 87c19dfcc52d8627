"""One limit's spending lately, as rows of the shared grid keep it: buckets of a fifteenth of the window.

The newest sixteen buckets always cover the whole window, so their sum is never less than what the window holds, and
spending that stays below a limit by their sum is below it in every window wherever it begins. The price: what was spent
counts for up to a fifteenth of the window too long.

Buckets are numbered by Unix time, so that rows of other workers, of a file, and of other machines line up.
"""

from __future__ import annotations

from typing import Any

from breakeven.gateway.shared.layout import WINDOW_COLUMNS, WINDOW_RING, Window

BUCKETS = WINDOW_RING - 1
"""In one window."""
# Plain numbers: adding to a member of an enumeration takes several times as long, and each request does it often.
_STAMP, _LAST, _TOTAL, _FIRST = (int(column) for column in (Window.STAMP, Window.LAST, Window.TOTAL, Window.FIRST))


def width_s(window_s: float) -> float:
    """Of one bucket."""
    return window_s / BUCKETS


def number(unix_s: float, window_s: float) -> int:
    """Of the bucket that this moment falls into."""
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
    """The row of one limit that this process writes. `total`: what its ring holds."""

    __slots__ = ("_at", "_cells", "_width_s", "last", "total")

    def __init__(self, cells: Any, at: int, stamp: int, window_s: float, unix_s: float) -> None:
        """Takes the row over; what it counted stays when it was this limit's."""
        self._cells, self._at = cells, at
        self._width_s = window_s / BUCKETS
        last = int(unix_s / self._width_s)
        if cells[at + _STAMP] != stamp:
            put_row(cells, at, stamp, last, {})
        self.last = int(cells[at + _LAST])
        self._sum()
        self.advance(unix_s)

    def advance(self, unix_s: float) -> None:
        """Let buckets that are older than the window go. A clock that was set back changes nothing."""
        last = int(unix_s / self._width_s)
        if last <= self.last:
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
