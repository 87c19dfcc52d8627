"""A decision as files, the data and the page beside it, and the summary that points to them.

A decision made again on logged traffic: its file, and what the terminal says of it.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from breakeven.pages.decision_html import write_decision_report
from breakeven.pages.decision_terminal import print_decision
from breakeven.pages.decision_words import usd, usd_span
from breakeven.pages.studies import PAGE
from breakeven.results.decision import Decision, Fleet, LogDecision
from breakeven.results.store import RESULT, encode, write
from breakeven.stats.estimate import Estimate


def save_decision(decision: Decision, directory: Path) -> Path:
    """Write `result.json` and `report.html` into `directory`, which is returned.

    Raises `UserError` when the directory cannot be written, `BreakevenError` when a number is not finite.
    """
    write(decision, directory / RESULT)
    write_decision_report(decision, directory / PAGE)
    return directory


def summary(decision: Decision, directory: Path) -> str:
    """What `print_decision` says about what was saved in `directory`: in colour and as wide as the terminal, if any."""
    console = Console(highlight=False)
    with console.capture() as captured:
        print_decision(decision, console, directory / PAGE)
    return captured.get().rstrip("\n")


FILE = "from-log.json"
_HOUR_S, _DAY_S = 3600.0, 86_400.0


def encode_log_decision(result: LogDecision) -> bytes:
    """`result` as indented UTF-8 JSON. Raises `BreakevenError` when a number in it is not finite."""
    return encode(result)


def save_log_decision(result: LogDecision, directory: Path) -> Path:
    """Write `from-log.json`, and the decision with its page, into `directory`, which is returned."""
    write(result, directory / FILE)
    return save_decision(result.decision, directory)


def log_summary(result: LogDecision, directory: Path) -> str:
    """What the log held, whether the verdict stands, and what each fleet would have cost."""
    traffic = result.traffic
    lines = [
        f"{traffic.requests:,} requests in {_period(traffic.span_s)}, {traffic.rate_per_s:.3g}/s on average; "
        f"{traffic.left_out:,} records were no traffic."
    ]
    if traffic.estimated:
        lines.append(f"Lengths of {traffic.estimated:,} of them are estimates: nobody counted their tokens to the end.")
    lines += ["", result.sentence, "", f"This period cost {usd(traffic.usd)} as the gateway counted it. Alone:"]
    width = max(len(fleet.candidate) for fleet in result.fleets)
    lines += [f"  {fleet.candidate:<{width}}  {_cost(fleet)}" for fleet in result.fleets]
    if result.left_out_backends:
        lines.append(f"Left out, as neither machine nor price is known: {', '.join(result.left_out_backends)}.")
    return "\n".join([*lines, "", f"Details: {directory / PAGE}; the traffic as a trace: {traffic.trace}"])


def _cost(fleet: Fleet) -> str:
    if fleet.usd is None:
        return f"cannot: {fleet.ruled_out[0]}" if fleet.ruled_out else "no price known"
    machines = "" if fleet.replicas is None else f", {_between(fleet.replicas, '{:.0f}')} replicas"
    why = f"; ruled out: {fleet.ruled_out[0]}" if fleet.ruled_out else ""
    return f"{usd_span(fleet.usd)}{machines}{why}"


def _between(span: Estimate, form: str) -> str:
    value, low, high = (form.format(each) for each in (span.value, span.low, span.high))
    return value if low == high else f"{value} ({low} to {high})"


def _period(seconds: float) -> str:
    if seconds >= 2 * _DAY_S:
        return f"{seconds / _DAY_S:.1f} days"
    return f"{seconds / _HOUR_S:.1f} hours" if seconds >= _HOUR_S else f"{seconds / 60:.1f} minutes"
