"""A run under load as it happens: traffic, delays so far, failures, how much room the client has left, and the queue.

On a terminal one block of lines is redrawn in place; anywhere else one plain line appears, seconds apart, so that a
log stays short.
"""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size

from breakeven.measure.progress import LoadState
from breakeven.report.load_words import counts_text, unit_of
from breakeven.report.progress import filled_bar
from breakeven.report.screen import Screen
from breakeven.report.words import number, percent_text, seconds_text

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
        text = _printable(f"{what} {subject}".rstrip())
        if not self._redrawn(lambda: [_fitted(text, self._console.width)]):
            self._say([text])

    def update(self, state: LoadState) -> None:
        """Show `state`. Cheap enough to call several times a second."""
        if self._quiet:
            return
        if not self._redrawn(lambda: live_lines(state, self._console.width)) and self._may_say(state.model, state.load):
            self._say([plain_line(state)])


def plain_line(state: LoadState) -> str:
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
    return _printable("; ".join(parts))


def live_lines(state: LoadState, width: int) -> list[str]:
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
    lines = [_with_bar(_head(state), _share(state), width)]
    lines += [f"  {name:<8}  {text}" for name, text in rows]
    return [_fitted(_printable(line), width) for line in lines]


def _head(state: LoadState) -> str:
    spent = _elapsed(state.elapsed_s)
    if state.of_s is not None:
        spent += f" of {_elapsed(state.of_s)}"
    return f"{state.model}, {state.load}, {spent}"


def _elapsed(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else seconds_text(seconds)


def _share(state: LoadState) -> float | None:
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


def _printable(text: str) -> str:
    # A name is free text: an escape sequence in it must not reach the terminal.
    return "".join(char if char.isprintable() else "?" for char in text)
