"""A run as it happens: a comparison's ratios tightening, or traffic, delays, failures and queue under load.

On a terminal one block of lines is redrawn in place; anywhere else plain lines appear, seconds apart, so that a log
stays short.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.live import Live
from rich.text import Text

from breakeven.errors import printable
from breakeven.measure.progress import LoadState, ProgressState, RatioRow
from breakeven.pages.load_words import counts_text, unit_of
from breakeven.pages.words import bytes_text, number, percent_text, seconds_text, streams_text

PLAIN_EVERY_S = 5.0


class Screen:
    """What every progress view stands on. Use as a context manager; silent when `quiet`.

    `clock` gives seconds, monotonic.
    """

    def __init__(
        self,
        console: Console,
        quiet: bool = False,
        plain_every_s: float = PLAIN_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._quiet = quiet
        self._every_s = plain_every_s
        self._clock = clock
        self._live: Live | None = None
        self._last_said: tuple[float, str, str] | None = None

    def __enter__(self) -> Self:
        if not self._quiet and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _redrawn(self, lines: Callable[[], list[str]]) -> bool:
        """Draw `lines` in place; False where nothing can be redrawn."""
        if self._live is None:
            return False
        self._live.update(Text("\n".join(lines()), no_wrap=True, overflow="crop"), refresh=True)
        return True

    def _told(self, text: str) -> bool:
        """A whole sentence is something to know, not something under way: it stays, and nothing is drawn over it."""
        if not text.endswith("."):
            return False
        if self._may_say(text, ""):
            self._say([text])
        return True

    def _may_say(self, what: str, subject: str) -> bool:
        """Whether a plain line is due: at once about something new, else after a while."""
        now = self._clock()
        if self._last_said is not None:
            said_at, *said = self._last_said
            if said == [what, subject] and now - said_at < self._every_s:
                return False
        self._last_said = (now, what, subject)
        return True

    def _say(self, lines: list[str]) -> None:
        for line in lines:
            self._console.print(Text(line), soft_wrap=True)


BAR_WIDTH = 25
# The scale never spans less than a ratio of 1.1 either side, so that noise on an A/A run does not look like a gap, nor
# more than 4, so that one early outlier does not flatten all that follows.
SCALE_LOW, SCALE_HIGH = math.log(1.1), math.log(4.0)


class Progress(Screen):
    """Shows each `ProgressState` it is given."""

    _scale = SCALE_LOW

    def tell(self, sentence: str) -> None:
        """Say what stays, above what is drawn."""
        if not self._quiet:
            self._told(printable(sentence))

    def update(self, state: ProgressState) -> None:
        """Show `state`. Cheap enough to call for every block or megabyte."""
        if self._quiet:
            return
        if not state.subject and self._told(printable(state.phase)):
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
    phase = printable(f"{state.phase} {state.subject}".rstrip())
    spent = f"{state.elapsed_s:.0f} s" if state.elapsed_s < 100 else seconds_text(state.elapsed_s)
    if state.budget_s is not None:
        spent += f" of at most {seconds_text(state.budget_s)}"
    if state.done_bytes is not None and state.total_bytes is not None:
        return f"{phase}: {bytes_text(state.done_bytes)} of {bytes_text(state.total_bytes)}, {spent}"
    return f"{phase}: {spent}" if state.share is None else f"{phase}: {percent_text(state.share)}, {spent}"


def _share(state: ProgressState) -> float | None:
    if state.done_bytes is not None and state.total_bytes:
        return state.done_bytes / state.total_bytes
    if state.share is not None:
        return state.share
    return state.elapsed_s / state.budget_s if state.budget_s else None


def _label(row: RatioRow) -> str:
    return f"{row.label}, {streams_text(row.streams)}" if row.label else streams_text(row.streams)


def _pairs(row: RatioRow) -> str:
    beside = f", {row.left_out} left out" if row.left_out else ""
    return f"{row.pairs} pair{'' if row.pairs == 1 else 's'}{beside}"


def _ratio(row: RatioRow) -> str:
    if row.low is None or row.high is None:
        return f"{number(row.ratio, 3)} (no interval yet)"
    return f"{number(row.ratio, 3)} ({number(row.low, 3)}-{number(row.high, 3)})"


NOTHING_YET = "-"
# A bar shorter than this tells nothing that its number does not.
SHORTEST_BAR, LONGEST_BAR = 6, 20
INDENT = 12


class LoadProgress(Screen):
    """Shows each `LoadState` it is given, and what happens between loads."""

    def phase(self, what: str, subject: str) -> None:
        """Say what happens between loads, such as "loading" and the model's name."""
        if self._quiet:
            return
        text = printable(f"{what} {subject}".rstrip())
        if not self._told(text) and not self._redrawn(lambda: [_fitted(text, self._console.width)]):
            self._say([text])

    def update(self, state: LoadState) -> None:
        """Show `state`. Cheap enough to call several times a second."""
        if self._quiet:
            return
        if not self._redrawn(lambda: load_live_lines(state, self._console.width)) and self._may_say(
            state.model, state.load
        ):
            self._say([load_plain_line(state)])


def load_plain_line(state: LoadState) -> str:
    """`state` as one line for a log."""
    parts = [
        f"{_head(state)}: {_rates(state)}",
        f"{state.answered} of {state.issued} answered",
        f"{state.in_flight} in flight",
        f"TTFT {_delays(state.ttft_p50_s, state.ttft_p99_s)}",
        f"TPOT {_delays(state.tpot_p50_s, state.tpot_p99_s)}",
    ]
    if any(state.errors.values()):
        parts.append(f"failed: {counts_text(state.errors)}")
    if state.headroom is not None:
        parts.append(f"client at {percent_text(state.headroom)} of its ceiling")
    if (queue := _queue(state)) is not None:
        parts.append(f"engine {queue}")
    return printable("; ".join(parts))


def load_live_lines(state: LoadState, width: int) -> list[str]:
    """`state` as lines for a terminal of `width` columns; none is wider."""
    rows = [
        ("rate", _rates(state)),
        ("answered", f"{state.answered} of {state.issued}, {state.in_flight} in flight"),
        ("TTFT", _delays(state.ttft_p50_s, state.ttft_p99_s)),
        ("TPOT", _delays(state.tpot_p50_s, state.tpot_p99_s)),
        ("failed", counts_text(state.errors)),
        ("client", _client(state, width)),
        ("engine", _queue(state) or "does not tell its queue"),
    ]
    lines = [_with_bar(_head(state), _load_share(state), width)]
    lines += [f"  {name:<8}  {text}" for name, text in rows]
    return [_fitted(printable(line), width) for line in lines]


def _head(state: LoadState) -> str:
    spent = _elapsed(state.elapsed_s)
    if state.of_s is not None:
        spent += f" of {_elapsed(state.of_s)}"
    return f"{state.model}, {state.load}, {spent}"


def _elapsed(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else seconds_text(seconds)


def _load_share(state: LoadState) -> float | None:
    return state.elapsed_s / state.of_s if state.of_s else None


def _rates(state: LoadState) -> str:
    achieved = NOTHING_YET if state.achieved_per_s is None else number(state.achieved_per_s)
    if state.offered_per_s is None:
        return f"{achieved} req/s"
    return f"{achieved} of {number(state.offered_per_s)} req/s"


def _delays(median_s: float | None, p99_s: float | None) -> str:
    unit = unit_of((median_s, p99_s))
    median, p99 = (NOTHING_YET if s is None else number(s * unit.scale) for s in (median_s, p99_s))
    return f"p50 {median}, p99 {p99} {unit.name}"


def _client(state: LoadState, width: int) -> str:
    lag = "" if state.lag_p99_s is None else f", {seconds_text(state.lag_p99_s)} late at p99"
    if state.headroom is None:
        return f"ceiling not measured{lag}"
    used = f"{percent_text(state.headroom)} of its ceiling"
    room = min(LONGEST_BAR, width - len(used + lag) - INDENT - 4)
    return used + lag if room < SHORTEST_BAR else f"{filled_bar(state.headroom, room)}  {used}{lag}"


def _queue(state: LoadState) -> str | None:
    parts = []
    if state.engine_running is not None:
        parts.append(f"{number(state.engine_running, 0)} running")
    if state.engine_waiting is not None:
        parts.append(f"{number(state.engine_waiting, 0)} waiting")
    return ", ".join(parts) or None


def _with_bar(text: str, share: float | None, width: int) -> str:
    """`text`, and behind it a bar as long as `width` leaves room for; none where that is too short."""
    room = min(LONGEST_BAR, width - len(text) - 4)
    if share is None or room < SHORTEST_BAR:
        return text
    return f"{text}  {filled_bar(share, room)}"


def _fitted(line: str, width: int) -> str:
    """`line`, cut to `width` cells; a wide character takes two."""
    return line if cell_len(line) <= width else set_cell_size(line, max(0, width - 2)) + ".."[: max(0, width)]
