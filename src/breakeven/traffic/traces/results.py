"""Requests that another tool sent, to be sent again: result files of AIPerf, GuideLLM, vLLM and inference-perf.

AIPerf's per-request records (profile_export.jsonl), field names as in aiperf 0.13.0: `metadata.{benchmark_phase,
credit_issued_ns,request_start_ns,request_end_ns,conversation_id,turn_index,x_correlation_id}` and
`metrics.{input_sequence_length,output_sequence_length}.value`. GuideLLM's benchmarks.json (schema version 2), field
names as in guidellm 0.8.1: `benchmarks[].requests.{successful,incomplete,errored}[]` with `prompt_tokens`,
`output_tokens` and `info.timings` in seconds of Unix time. vLLM (`vllm bench serve
--save-detailed`): one document with `input_lens`, `output_lens` and `start_times` in seconds, a value a request.
inference-perf (per_request_lifecycle_metrics.json): a list of `start_time` in seconds and `info`, which counts
`input_tokens` and `output_tokens`, or `response_metrics.output_tokens`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from breakeven.errors import UserError
from breakeven.traffic.traces.rows import (
    MOST_TOKENS,
    TraceRows,
    json_lines,
    new_tokens,
    seconds_ns,
    tokens,
    trace_rows,
    whole,
)


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


class _Info(msgspec.Struct):
    timings: _Timings = msgspec.field(default_factory=_Timings)
    conversation_id: str | None = None
    turn_index: int = 0
    history_len: int = 0


class _Usage(msgspec.Struct):
    text_tokens: int | None = None


class _Request(msgspec.Struct):
    info: _Info
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    input_metrics: _Usage = msgspec.field(default_factory=_Usage)
    output_metrics: _Usage = msgspec.field(default_factory=_Usage)


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
    at_ns: list[int] = []
    context: list[int] = []
    output: list[int] = []
    sessions: list[object] = []
    turn: list[int] = []
    think_ns: list[int] = []
    skipped = 0
    for kind, rows in (
        ("successful", groups.successful),
        ("incomplete", groups.incomplete),
        ("errored", groups.errored),
    ):
        for index, row in enumerate(rows or []):
            times = row.info.timings
            start = next((t for t in (times.targeted_start, times.request_start, times.resolve_start) if t), None)
            asked = row.prompt_tokens if row.prompt_tokens is not None else row.input_metrics.text_tokens
            made = row.output_tokens if row.output_tokens is not None else row.output_metrics.text_tokens
            if start is None or asked is None or made is None:
                skipped += 1
                continue
            where = f"requests.{kind}[{index}]"
            at_ns.append(seconds_ns(path, 1, f"{where}.info.timings", start))
            context.append(tokens(path, 1, f"{where}.prompt_tokens", asked))
            output.append(tokens(path, 1, f"{where}.output_tokens", made))
            follows = row.info.turn_index > 0 and row.info.conversation_id is not None
            sessions.append(row.info.conversation_id)
            turn.append(row.info.turn_index)
            before = times.predecessor_completed
            think_ns.append(round(max(0.0, start - before) * 1e9) if follows and before is not None else -1)
    prompt = new_tokens(context, output, sessions, turn)
    if not any(turn):
        sessions = [None] * len(sessions)
    return trace_rows(
        path.name,
        "guidellm",
        at_ns,
        prompt,
        output,
        sessions=sessions,
        turn=turn,
        think_ns=think_ns,
        skipped=skipped,
        unit="seconds",
    )


class _VllmResult(msgspec.Struct):
    input_lens: list[int]
    output_lens: list[int]
    start_times: list[float] | None = None


_vllm = msgspec.json.Decoder(_VllmResult)


def vllm_read(path: Path) -> TraceRows:
    """The requests of a vLLM benchmark. Raises UserError naming the key, also where nothing says when they were sent.

    Failed requests were sent too; vLLM writes 0 as the length of their answers.
    """
    result = _decoded(path, _vllm, "a result of vllm bench serve --save-detailed")
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


class _Made(msgspec.Struct):
    output_tokens: int | None = None


class _Lived(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    response_metrics: _Made | None = None


class _Lifecycle(msgspec.Struct):
    start_time: float
    scheduled_time: float | None = None
    info: _Lived | None = None


_lifecycles = msgspec.json.Decoder(list[_Lifecycle])


def inference_perf_read(path: Path) -> TraceRows:
    """The requests of inference-perf, due when it wanted to send them where it says so.

    Those without token counts are skipped and counted. Raises UserError naming the key.
    """
    at_ns: list[int] = []
    prompt: list[int] = []
    output: list[int] = []
    skipped = 0
    found = _decoded(path, _lifecycles, "inference-perf's per_request_lifecycle_metrics.json")
    for k, row in enumerate(found):
        info = row.info or _Lived()
        made = info.output_tokens
        if made is None and info.response_metrics is not None:
            made = info.response_metrics.output_tokens
        if info.input_tokens is None or made is None:
            skipped += 1
            continue
        start = row.start_time if row.scheduled_time is None else row.scheduled_time
        at_ns.append(seconds_ns(path, 1, f"[{k}].start_time", start))
        prompt.append(tokens(path, 1, f"[{k}].info.input_tokens", info.input_tokens))
        output.append(tokens(path, 1, f"[{k}].info.output_tokens", made))
    return trace_rows(path.name, "inference-perf", at_ns, prompt, output, skipped=skipped, unit="seconds")


_Document = TypeVar("_Document")


def _decoded(path: Path, decoder: msgspec.json.Decoder[_Document], what: str) -> _Document:
    """The document at `path`. Raises UserError, which names the key, for another."""
    try:
        return decoder.decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: is not {what} ({error}); give it whole") from error
