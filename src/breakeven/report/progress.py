"""A running comparison as it happens: the ratio and its interval, tightening.

On a terminal one block of lines is redrawn in place; anywhere else plain lines appear, seconds apart, so that a log
stays short.
"""

from __future__ import annotations

import math

from breakeven.measure.progress import ProgressState, RatioRow
from breakeven.report.screen import Screen
from breakeven.report.words import bytes_text, number, seconds_text, streams_text

BAR_WIDTH = 25
# The scale never spans less than a ratio of 1.1 either side, so that noise on an A/A run does not look like a gap, nor
# more than 4, so that one early outlier does not flatten all that follows.
SCALE_LOW, SCALE_HIGH = math.log(1.1), math.log(4.0)


class Progress(Screen):
    """Shows each `ProgressState` it is given."""

    _scale = SCALE_LOW

    def update(self, state: ProgressState) -> None:
        """Show `state`. Cheap enough to call for every block or megabyte."""
        if self._quiet:
            return
        self._scale = min(SCALE_HIGH, max(self._scale, widest(state.rows)))
        if not self._redrawn(lambda: live_lines(state, self._scale)) and self._may_say(state.phase, state.subject):
            self._say(plain_lines(state))


def widest(rows: tuple[RatioRow, ...]) -> float:
    """The largest |log| that any ratio or interval end of `rows` reaches; 0 without rows."""
    ends = [end for row in rows for end in (row.ratio, row.low, row.high) if end is not None and end > 0]
    return max((abs(math.log(end)) for end in ends), default=0.0)


def plain_lines(state: ProgressState) -> list[str]:
    """`state` as lines for a log."""
    lines = [_headline(state)]
    return lines + [f"  {_label(row)}: {_ratio(row)} from {_pairs(row)}" for row in state.rows]


def live_lines(state: ProgressState, scale: float) -> list[str]:
    """`state` as lines for a terminal; bars reach from exp(-scale) to exp(scale)."""
    share = _share(state)
    lines = [_headline(state) if share is None else f"{_headline(state)}  {filled_bar(share)}"]
    lines += [f"  {ratio_bar(row, scale)}  {_ratio(row)}  {_label(row)}, {_pairs(row)}" for row in state.rows]
    return lines


def filled_bar(share: float, width: int = 20) -> str:
    """How much is done, as text: [#####-----]."""
    full = round(min(1.0, max(0.0, share)) * width)
    return "[" + "#" * full + "-" * (width - full) + "]"


def ratio_bar(row: RatioRow, scale: float, width: int = BAR_WIDTH) -> str:
    """The ratio on a log axis: `|` is 1 (no difference), `=` the interval, `o` the ratio. `width` is odd."""
    cells = ["."] * width

    def cell(ratio: float) -> int:
        position = (math.log(ratio) / scale + 1) / 2 if ratio > 0 else 0.0
        return min(width - 1, max(0, round(position * (width - 1))))

    if row.low is not None and row.high is not None:
        for index in range(cell(row.low), cell(row.high) + 1):
            cells[index] = "="
    cells[width // 2] = "|"
    cells[cell(row.ratio)] = "o"
    return "".join(cells)


def _headline(state: ProgressState) -> str:
    phase = f"{state.phase} {state.subject}".rstrip()
    spent = f"{state.elapsed_s:.0f} s" if state.elapsed_s < 100 else seconds_text(state.elapsed_s)
    if state.budget_s is not None:
        spent += f" of at most {seconds_text(state.budget_s)}"
    if state.done_bytes is not None and state.total_bytes is not None:
        return f"{phase}: {bytes_text(state.done_bytes)} of {bytes_text(state.total_bytes)}, {spent}"
    return f"{phase}: {spent}"


def _share(state: ProgressState) -> float | None:
    if state.done_bytes is not None and state.total_bytes:
        return state.done_bytes / state.total_bytes
    return state.elapsed_s / state.budget_s if state.budget_s else None


def _label(row: RatioRow) -> str:
    return f"{row.label}, {streams_text(row.streams)}" if row.label else streams_text(row.streams)


def _pairs(row: RatioRow) -> str:
    return f"{row.pairs} pair{'' if row.pairs == 1 else 's'}"


def _ratio(row: RatioRow) -> str:
    if row.low is None or row.high is None:
        return f"{number(row.ratio, 3)} (no interval yet)"
    return f"{number(row.ratio, 3)} ({number(row.low, 3)}-{number(row.high, 3)})"
