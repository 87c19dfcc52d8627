"""What the gateway's verbs show: experiments, the verdict first and then each metric of both arms, and keys."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from breakeven.errors import one_line, printable
from breakeven.gateway.keys.entry import KeyEntry, limit_text
from breakeven.gateway.seen.snapshot import Difference, ExperimentState
from breakeven.pages.words import number
from breakeven.traffic.workload import slo_text

LONGEST_LINE = 2000
SHARES = {"errors", "refusals", "distinct_answers"}
SECONDS = {"ttft", "tpot", "e2e"}
NAMES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "e2e": "E2E",
    "usd": "$ a request",
    "output_tokens": "output tokens",
    "errors": "errors",
    "refusals": "refusals",
    "distinct_answers": "distinct answers",
    "length_spread": "length spread",
}
STATES = {
    "running": "running",
    "stopped": "stopped: a difference was found",
    "stepped_back": "stepped back: the treatment gets nothing",
    "done": "done",
}


def print_experiments(states: Sequence[ExperimentState], console: Console) -> None:
    """Print every experiment with its arms."""
    for index, state in enumerate(states):
        if index:
            console.print()

        def say(text: str, style: str | None = None) -> None:
            # Names and reasons come from files, which may hold what drives a terminal.
            console.print(one_line(text, LONGEST_LINE), style=style, highlight=False, markup=False)

        say(f"{state.name} ({state.kind} on {state.model}): {STATES.get(state.state, state.state)}", "bold")
        if state.winner:
            say(f"Better: {state.winner}")
        say(state.reason)
        control, treatment = state.arms
        say(
            f"Control {control.backend}: {control.requests:,} requests. Treatment {treatment.backend}: "
            f"{treatment.requests:,} requests, share now {100 * state.share:.3g} %."
        )
        if state.differences:
            console.print(_table(state))
    console.print(
        "\nIntervals hold at every look together, each metric for itself. Shares: difference in percentage points.",
        highlight=False,
    )


def _table(state: ExperimentState) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("Metric", "Control", "Treatment", "Treatment / control"):
        table.add_column(heading, justify="left" if heading == "Metric" else "right")
    control, treatment = state.arms
    for one in state.differences:
        table.add_row(
            NAMES.get(one.metric) or Text(one_line(one.metric, 40)),
            _value(one.metric, control.means.get(one.metric)),
            _value(one.metric, treatment.means.get(one.metric)),
            _points(one) if one.metric in SHARES else _ratio(one),
        )
    return table


def _value(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    if metric in SHARES:
        return f"{100 * value:.2f} %"
    if metric in SECONDS:
        return f"{number(value)} s" if abs(value) >= 1 else f"{number(1000 * value)} ms"
    return f"${value:.3g}" if metric == "usd" else number(value)


def _ratio(one: Difference) -> str:
    value = "-" if one.ratio is None else f"{one.ratio:.3g}"
    if one.low is None:
        return value
    high = "no limit" if one.high is None else f"{one.high:.3g}"
    return f"{value} ({one.low:.3g} to {high})"


def _points(one: Difference) -> str:
    """A ratio of two small shares says little; their difference in percentage points does."""
    if one.difference is None:
        return "-"
    value = f"{100 * one.difference:+.2f} points"
    if one.difference_low is None or one.difference_high is None:
        return value
    return f"{value} ({100 * one.difference_low:+.2f} to {100 * one.difference_high:+.2f})"


def key_row(entry: KeyEntry) -> dict[str, object]:
    """A key as JSON shows it; neither secret nor digest."""
    return {
        "name": entry.name,
        "id": entry.id,
        "state": _state_of(entry),
        "models": list(entry.models),
        "admin": entry.admin,
        "limits": [limit_text(limit) for limit in entry.limits],
        "slo": None if entry.slo is None else slo_text(entry.slo),
        "priority": entry.priority,
        "created_s": entry.created_s,
        "expires_s": entry.expires_s,
        "revoked_s": entry.revoked_s,
    }


def _state_of(entry: KeyEntry) -> str:
    """live, expired or revoked."""
    if entry.revoked_s is not None:
        return "revoked"
    return "live" if entry.live(time.time()) else "expired"


def keys_table(entries: Sequence[KeyEntry]) -> str:
    """A line a key."""
    if not entries:
        return "no keys; make one with: breakeven keys create NAME"
    rows = [("name", "state", "made", "ends", "models", "limits")]
    for entry in entries:
        models = printable(",".join(entry.models)) or "all"
        rows.append(
            (
                entry.name,
                _state_of(entry) + (" admin" if entry.admin else ""),
                _day(entry.created_s),
                "-" if entry.expires_s is None else _day(entry.expires_s),
                models,
                "; ".join(limit_text(limit) for limit in entry.limits) or "none",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _day(unix_s: float) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).strftime("%Y-%m-%d")
