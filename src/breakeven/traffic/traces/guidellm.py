"""Requests that GuideLLM sent, to be sent again: its benchmarks.json.

Schema version 2, field names as in guidellm 0.8.1: `benchmarks[].requests.{successful,incomplete,errored}[]` with
`prompt_tokens`, `output_tokens` and `info.timings` in seconds of Unix time, and `metrics.request_totals`, which says
how many requests there were; until 0.3 without `info`, times standing in `start_time` and
`scheduler_info.targeted_start_time`, and the totals beside the requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from breakeven.errors import UserError
from breakeven.traffic.traces.cells import document, seconds_ns, tokens
from breakeven.traffic.traces.rows import TraceRows, trace_rows, turns_of


class _Timings(msgspec.Struct):
    targeted_start: float | None = None
    request_start: float | None = None
    resolve_start: float | None = None
    predecessor_completed: float | None = None
    request_end: float | None = None


class _Info(msgspec.Struct):
    timings: _Timings = msgspec.field(default_factory=_Timings)
    conversation_id: str | None = None
    turn_index: int = 0
    history_len: int = 0
    node_id: str | None = None
    agent_id: str | None = None
    parent_node_ids: list[str] | None = None


class _Usage(msgspec.Struct):
    text_tokens: int | None = None


class _Scheduled(msgspec.Struct):
    targeted_start_time: float | None = None


class _Request(msgspec.Struct):
    info: _Info = msgspec.field(default_factory=_Info)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    input_metrics: _Usage = msgspec.field(default_factory=_Usage)
    output_metrics: _Usage = msgspec.field(default_factory=_Usage)
    # Until 0.3:
    start_time: float | None = None
    scheduler_info: _Scheduled = msgspec.field(default_factory=_Scheduled)

    @property
    def due_s(self) -> float | None:
        """When it was to be sent, else when it was; None where nothing says so (-1 until 0.3)."""
        times, scheduled = self.info.timings, self.scheduler_info.targeted_start_time
        found = (times.targeted_start, times.request_start, times.resolve_start, scheduled, self.start_time)
        return next((t for t in found if t is not None and t > 0), None)


class _Totals(msgspec.Struct):
    successful: int | None = None
    incomplete: int | None = None
    errored: int | None = None


class _Measured(msgspec.Struct):
    request_totals: _Totals | None = None


class _Requests(msgspec.Struct):
    successful: list[_Request] | None = None
    incomplete: list[_Request] | None = None
    errored: list[_Request] | None = None


class _Benchmark(msgspec.Struct):
    requests: _Requests
    metrics: _Measured | None = None
    request_totals: _Totals | None = None
    """Until 0.3."""

    def totals(self) -> _Totals:
        """How many requests there were; those that are listed may be a sample of them."""
        found = self.request_totals
        if found is None and self.metrics is not None:
            found = self.metrics.request_totals
        return found or _Totals()


class _Report(msgspec.Struct):
    benchmarks: list[_Benchmark]


_report = msgspec.json.Decoder(_Report)


def guidellm_read(path: Path) -> TraceRows:
    """The requests of the only benchmark in `path`. Raises UserError naming the field."""
    return guidellm_read_one(path, None)


def guidellm_read_one(path: Path, which: int | None) -> TraceRows:
    """The requests of benchmark `which`, from 1; None: the only one there is.

    Rows are due when GuideLLM wanted them sent (`targeted_start`), so a late client does not become part of the
    traffic. Those without a prompt or output count are skipped and counted, those that were cut off are counted. Raises
    UserError also where the file holds a sample of its requests, for that has not the gaps of the traffic.
    """
    report = document(path, _report, "a GuideLLM result, benchmarks.json")
    count = len(report.benchmarks)
    if which is None and count != 1:
        raise UserError(f"{path}: holds {count} benchmarks; say which as guidellm:1 to guidellm:{count}")
    if which is not None and not 1 <= which <= count:
        raise UserError(f"{path}: has no benchmark {which}; it holds {count}")
    benchmark = report.benchmarks[(which or 1) - 1]
    groups, totals = benchmark.requests, benchmark.totals()
    kinds = (("successful", groups.successful), ("incomplete", groups.incomplete), ("errored", groups.errored))
    for kind, listed in kinds:
        kept, all_of_them = len(listed or ()), getattr(totals, kind) or 0
        if kept < all_of_them:
            raise UserError(
                f"{path}, key requests.{kind}: holds {kept:,} of {all_of_them:,} requests, a sample without the gaps "
                "of the traffic; run GuideLLM again without --sample-requests (sample_size in --metrics)"
            )
    found = [(f"requests.{kind}[{k}]", row) for kind, rows in kinds for k, row in enumerate(rows or [])]
    at_ns: list[int] = []
    context: list[int] = []
    output: list[int] = []
    sessions: list[object] = []
    turn: list[int] = []
    rows: list[_Request] = []
    cut = 0
    for (where, row), (session, number) in zip(found, _conversations([row.info for _, row in found]), strict=True):
        start = row.due_s
        asked = row.prompt_tokens if row.prompt_tokens is not None else row.input_metrics.text_tokens
        made = row.output_tokens if row.output_tokens is not None else row.output_metrics.text_tokens
        if start is None or asked is None or made is None:
            continue
        at_ns.append(seconds_ns(path, 1, f"{where}.info.timings", start))
        context.append(tokens(path, 1, f"{where}.prompt_tokens", asked))
        output.append(tokens(path, 1, f"{where}.output_tokens", made))
        sessions.append(session)
        turn.append(number)
        rows.append(row)
        cut += made > 0 and where.startswith("requests.incomplete")
    told = turns_of(context, output, sessions, turn)
    pauses = [-1.0 if j < 0 else _paused_s(rows[j], rows[k], turn[k] - turn[j]) for k, j in enumerate(told.before)]
    return trace_rows(
        path.name,
        "guidellm",
        at_ns,
        told.prompt,
        output,
        sessions=told.session if any(turn) else None,
        turn=turn,
        think_ns=[-1 if pause < 0 else round(pause * 1e9) for pause in pauses],
        skipped=len(found) - len(at_ns),
        anew=told.anew,
        cut=cut,
        unit="seconds",
    )


def _conversations(infos: Sequence[_Info]) -> list[tuple[object, int]]:
    """Conversation and turn of every request, those without token counts included.

    Requests of a `conversation_id` are the nodes of a graph: beside the main agent's run those of subagents, whose
    `turn_index` begins at 0 again. One that carries a history goes on with the parent that its own agent asked; whoever
    forks a conversation begins another. Where no request names a parent, `conversation_id` and `turn_index` say it all.
    """
    if not any(info.parent_node_ids for info in infos):
        return [(info.conversation_id, info.turn_index) for info in infos]
    nodes = {(info.conversation_id, info.node_id): k for k, info in enumerate(infos)}
    after: dict[int, int] = {}
    begins = [True] * len(infos)
    for k, info in enumerate(infos):
        if not info.history_len or info.conversation_id is None:
            continue
        parents = (nodes.get((info.conversation_id, name), k) for name in info.parent_node_ids or ())
        own = [j for j in parents if j != k and j not in after and infos[j].agent_id == info.agent_id]
        if own:
            # An answer that is merged in may be of the same agent: the longer history is the conversation.
            after[max(own, key=lambda j: infos[j].turn_index)] = k
            begins[k] = False
    told: list[tuple[object, int]] = [(None if info.conversation_id is None else k, 0) for k, info in enumerate(infos)]
    for first in (k for k, is_first in enumerate(begins) if is_first):
        k, number = first, 0
        while (follows := after.get(k)) is not None:
            k, number = follows, number + 1
            told[k] = first, number
    return told


def _paused_s(before: _Request, row: _Request, apart: int) -> float:
    """Seconds from the answer to `before` until `row`, `apart` turns later, was asked; -1 where nothing says so.

    Of several parents the last to end is timed (`predecessor_completed`), and it may be another agent's.
    """
    only = apart == 1 and len(row.info.parent_node_ids or ()) < 2
    ended = row.info.timings.predecessor_completed if only else before.info.timings.request_end
    return -1.0 if row.due_s is None or ended is None else max(0.0, row.due_s - ended)
