"""Requests that another tool sent, to be sent again: result files of AIPerf, GuideLLM, vLLM and inference-perf.

AIPerf's per-request records (profile_export.jsonl), field names as in aiperf 0.13.0: `metadata.{benchmark_phase,
credit_issued_ns,request_start_ns,request_end_ns,conversation_id,turn_index,x_correlation_id}` and
`metrics.{input_sequence_length,output_sequence_length}.value`. GuideLLM's benchmarks.json (schema version 2), field
names as in guidellm 0.8.1: `benchmarks[].requests.{successful,incomplete,errored}[]` with `prompt_tokens`,
`output_tokens` and `info.timings` in seconds of Unix time; until 0.3 without `info`, times standing in `start_time` and
`scheduler_info.targeted_start_time`. vLLM (`vllm bench serve --save-detailed`): one document with `input_lens`,
`output_lens` and `start_times` in seconds, a value a request. inference-perf (per_request_lifecycle_metrics.json): a
list of `start_time` and `end_time` in seconds, `session_id` where there are sessions, and `info`, which counts
`input_tokens` and `output_tokens`, or `response_metrics.output_tokens`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from math import inf
from pathlib import Path
from typing import TypeVar

import msgspec

from breakeven.errors import UserError
from breakeven.traffic.traces.cells import MOST_TOKENS, json_lines, lines_of, seconds_ns, tokens, whole
from breakeven.traffic.traces.rows import TraceRows, trace_rows, turns_of


def aiperf_read(path: Path) -> TraceRows:
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
        turn.append(whole(path, number, "metadata.turn_index", meta.get("turn_index") or 0, MOST_TOKENS))
    told = turns_of(context, output, sessions, turn)
    think_ns = [-1 if j < 0 else max(0, at - end_ns[j]) for at, j in zip(at_ns, told.before, strict=True)]
    return trace_rows(
        path.name,
        "aiperf",
        at_ns,
        told.prompt,
        output,
        sessions=told.session if any(turn) else None,
        turn=turn,
        think_ns=think_ns,
        skipped=skipped,
        anew=told.anew,
        unit="nanoseconds",
    )


def _value(metrics: dict[str, object], name: str) -> object:
    """The value of a metric, None when it is not there."""
    metric = metrics.get(name)
    return metric.get("value") if isinstance(metric, dict) else None


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


class _Requests(msgspec.Struct):
    successful: list[_Request] | None = None
    incomplete: list[_Request] | None = None
    errored: list[_Request] | None = None


class _Benchmark(msgspec.Struct):
    requests: _Requests


class _Report(msgspec.Struct):
    benchmarks: list[_Benchmark]


_report = msgspec.json.Decoder(_Report)


def guidellm_read(path: Path) -> TraceRows:
    """The requests of the only benchmark in `path`. Raises UserError naming the field."""
    return guidellm_read_one(path, None)


def guidellm_read_one(path: Path, which: int | None) -> TraceRows:
    """The requests of benchmark `which`, from 1; None: the only one there is.

    Rows are due when GuideLLM wanted them sent (`targeted_start`), so a late client does not become part of the
    traffic. Those without a prompt or output count are skipped and counted.
    """
    report = _decoded(path, _report, "a GuideLLM result, benchmarks.json")
    count = len(report.benchmarks)
    if which is None and count != 1:
        raise UserError(f"{path}: holds {count} benchmarks; say which as guidellm:1 to guidellm:{count}")
    if which is not None and not 1 <= which <= count:
        raise UserError(f"{path}: has no benchmark {which}; it holds {count}")
    groups = report.benchmarks[(which or 1) - 1].requests
    kinds = (("successful", groups.successful), ("incomplete", groups.incomplete), ("errored", groups.errored))
    found = [(f"requests.{kind}[{k}]", row) for kind, rows in kinds for k, row in enumerate(rows or [])]
    at_ns: list[int] = []
    context: list[int] = []
    output: list[int] = []
    sessions: list[object] = []
    turn: list[int] = []
    rows: list[_Request] = []
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


class _VllmResult(msgspec.Struct):
    input_lens: list[int]
    output_lens: list[int]
    start_times: list[float] | None = None


_vllm = msgspec.json.Decoder(_VllmResult)


def vllm_read(path: Path) -> TraceRows:
    """The requests of a vLLM benchmark. Raises UserError naming the key, also where nothing says when they were sent.

    Failed requests were sent too; vLLM writes 0 as the length of their answers.
    """
    try:
        result = _decoded(path, _vllm, "a result of vllm bench serve --save-detailed")
    except UserError:
        if (number := _second_result(path)) is not None:
            raise UserError(
                f"{path}, line {number}: a second result begins, as --append-result writes them; keep one line"
            ) from None
        raise
    if result.start_times is None:
        raise UserError(
            f"{path}, key start_times: is missing, so nothing says when requests were sent; save the result again with "
            "--save-detailed of a vLLM that writes it"
        )
    lengths = {"output_lens": len(result.output_lens), "start_times": len(result.start_times)}
    for key, length in lengths.items():
        if length != len(result.input_lens):
            raise UserError(
                f"{path}, key {key}: expected {len(result.input_lens)} values, one for each of input_lens, "
                f"found {length}; the file may be cut off or edited"
            )
    at_ns = [seconds_ns(path, 1, f"start_times[{k}]", at) for k, at in enumerate(result.start_times)]
    prompt = [tokens(path, 1, f"input_lens[{k}]", count) for k, count in enumerate(result.input_lens)]
    output = [tokens(path, 1, f"output_lens[{k}]", count) for k, count in enumerate(result.output_lens)]
    return trace_rows(path.name, "vllm", at_ns, prompt, output, unit="seconds")


def _second_result(path: Path) -> int | None:
    """The line on which another result begins, where each stands on a line of its own; None for other files."""
    first_two = list(islice(lines_of(path), 2))
    try:
        for _, line in first_two:
            _vllm.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return None
    return first_two[1][0] if len(first_two) == 2 else None


class _Made(msgspec.Struct):
    output_tokens: int | None = None


class _Lived(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    response_metrics: _Made | None = None


class _Lifecycle(msgspec.Struct):
    start_time: float
    end_time: float | None = None
    scheduled_time: float | None = None
    session_id: str | int | None = None
    info: _Lived | None = None


_lifecycles = msgspec.json.Decoder(list[_Lifecycle])


def inference_perf_read(path: Path) -> TraceRows:
    """The requests of inference-perf, due when it wanted to send them where it says so.

    Those of one `session_id` are turns, in the order in which they started; one that started before the last had ended
    runs beside them, on its own. Those without token counts are skipped and counted. Raises UserError naming the key.
    """
    at_ns: list[int] = []
    context: list[int] = []
    output: list[int] = []
    rows: list[_Lifecycle] = []
    found = _decoded(path, _lifecycles, "inference-perf's per_request_lifecycle_metrics.json")
    for k, row in enumerate(found):
        info = row.info or _Lived()
        made = info.output_tokens
        if made is None and info.response_metrics is not None:
            made = info.response_metrics.output_tokens
        if info.input_tokens is None or made is None:
            continue
        start = row.start_time if row.scheduled_time is None else row.scheduled_time
        at_ns.append(seconds_ns(path, 1, f"[{k}].start_time", start))
        context.append(tokens(path, 1, f"[{k}].info.input_tokens", info.input_tokens))
        output.append(tokens(path, 1, f"[{k}].info.output_tokens", made))
        rows.append(row)
    sessions: list[object] = [None] * len(rows)
    turn = [0] * len(rows)
    last: dict[object, tuple[int, float]] = {}
    """Session -> how many turns it has so far, and when the last of them ended."""
    for k in sorted(range(len(rows)), key=lambda k: rows[k].start_time):
        row = rows[k]
        count, ended = last.get(row.session_id, (0, -inf))
        if row.session_id in (None, "") or row.start_time < ended:
            continue
        sessions[k], turn[k] = row.session_id, count
        last[row.session_id] = count + 1, row.start_time if row.end_time is None else row.end_time
    told = turns_of(context, output, sessions, turn)
    ends = [None if j < 0 else rows[j].end_time for j in told.before]
    pauses = [-1.0 if end is None else row.start_time - end for row, end in zip(rows, ends, strict=True)]
    return trace_rows(
        path.name,
        "inference-perf",
        at_ns,
        told.prompt,
        output,
        sessions=told.session if any(turn) else None,
        turn=turn,
        think_ns=[-1 if pause < 0 else round(pause * 1e9) for pause in pauses],
        skipped=len(found) - len(rows),
        anew=told.anew,
        unit="seconds",
    )


_Document = TypeVar("_Document")


def _decoded(path: Path, decoder: msgspec.json.Decoder[_Document], what: str) -> _Document:
    """The document at `path`. Raises UserError, which names the key, for another."""
    try:
        return decoder.decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: is not {what}, as read here ({error}); docs/traffic.md shows its fields") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: is not {what} ({error}); give it whole") from error
