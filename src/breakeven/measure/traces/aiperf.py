"""AIPerf's per-request records (profile_export.jsonl): the requests it sent, to be sent again.

Field names as in aiperf 0.13.0: `metadata.{benchmark_phase,credit_issued_ns,request_start_ns,request_end_ns,
conversation_id,turn_index,x_correlation_id}` and `metrics.{input_sequence_length,output_sequence_length}.value`.
"""

from __future__ import annotations

from pathlib import Path

from breakeven.errors import UserError
from breakeven.measure.traces.rows import TraceRows, new_tokens, trace_rows
from breakeven.measure.traces.text import json_lines, tokens, whole


def sniff(head: str) -> bool:
    """True when the file begins as this format does."""
    line = head.split("\n", 1)[0]
    return line.startswith("{") and '"metadata"' in line and '"request_start_ns"' in line


def read(path: Path) -> TraceRows:
    """The requests of the profiling phase; warm-up is left out, and rows without token counts are skipped and counted.

    Rows are due when AIPerf's rate limiter let them go (`credit_issued_ns`), not when they got out.
    """
    at_ns: list[int] = []
    context: list[int] = []
    output: list[int] = []
    sessions: list[object] = []
    turn: list[int] = []
    end_ns: list[int] = []
    skipped = 0
    for number, row in json_lines(path):
        meta, metrics = row.get("metadata"), row.get("metrics")
        if not isinstance(meta, dict) or not isinstance(metrics, dict):
            raise UserError(f"{path}, line {number}: has no metadata and metrics; give AIPerf's profile_export.jsonl")
        if meta.get("benchmark_phase") != "profiling":
            continue
        asked = _value(metrics, "input_sequence_length")
        asked = _value(metrics, "error_isl") if asked is None else asked
        made = _value(metrics, "output_sequence_length")
        if asked is None or made is None:
            skipped += 1
            continue
        issued = "credit_issued_ns" if meta.get("credit_issued_ns") is not None else "request_start_ns"
        at_ns.append(whole(path, number, f"metadata.{issued}", meta.get(issued)))
        end_ns.append(whole(path, number, "metadata.request_end_ns", meta.get("request_end_ns")))
        context.append(tokens(path, number, "metrics.input_sequence_length", asked))
        output.append(tokens(path, number, "metrics.output_sequence_length", made))
        # The same conversation may be played several times; the correlation id tells one playing from another.
        session = meta.get("x_correlation_id") or meta.get("conversation_id")
        sessions.append(None if session is None else str(session))
        turn.append(whole(path, number, "metadata.turn_index", meta.get("turn_index") or 0))
    prompt = new_tokens(context, output, sessions, turn)
    ends = {(session, k): end for session, k, end in zip(sessions, turn, end_ns, strict=True)}
    before = [ends.get((session, k - 1)) for session, k in zip(sessions, turn, strict=True)]
    think_ns = [-1 if end is None else max(0, at - end) for at, end in zip(at_ns, before, strict=True)]
    return trace_rows(
        path.name,
        "aiperf",
        at_ns,
        prompt,
        output,
        sessions=sessions if any(turn) else None,
        turn=turn,
        think_ns=think_ns,
        skipped=skipped,
    )


def _value(metrics: dict[str, object], name: str) -> object:
    """The value of a metric, None when it is not there."""
    metric = metrics.get(name)
    return metric.get("value") if isinstance(metric, dict) else None
