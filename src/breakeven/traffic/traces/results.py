"""Requests that another tool sent, to be sent again: result files of AIPerf, vLLM and inference-perf.

AIPerf's per-request records (profile_export.jsonl), field names as in aiperf 0.13.0: `metadata.{benchmark_phase,
credit_issued_ns,request_start_ns,request_end_ns,conversation_id,turn_index,x_correlation_id}` and
`metrics.{input_sequence_length,output_sequence_length}.value`. vLLM (`vllm bench serve --save-detailed`): one document
with `input_lens`, `output_lens` and `start_times` in seconds, a value a request. inference-perf
(per_request_lifecycle_metrics.json): a list of `start_time` and `end_time` in seconds, `session_id` where there are
sessions, and `info`, which counts `input_tokens` and `output_tokens`, or `request_metrics.text.input_tokens` and
`response_metrics.output_tokens`.
"""

from __future__ import annotations

from itertools import islice
from math import inf
from pathlib import Path

import msgspec

from breakeven.errors import UserError
from breakeven.traffic.traces.cells import MOST_TOKENS, document, json_lines, lines_of, seconds_ns, tokens, whole
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
        result = document(path, _vllm, "a result of vllm bench serve --save-detailed")
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


class _Text(msgspec.Struct):
    input_tokens: int | None = None


class _Asked(msgspec.Struct):
    text: _Text = msgspec.field(default_factory=_Text)


class _Lived(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    request_metrics: _Asked | None = None
    response_metrics: _Made | None = None

    def asked(self) -> int | None:
        """Tokens of the prompt, wherever they stand."""
        found = self.request_metrics
        return found.text.input_tokens if self.input_tokens is None and found is not None else self.input_tokens


class _Lifecycle(msgspec.Struct):
    start_time: float
    end_time: float | None = None
    scheduled_time: float | None = None
    session_id: str | int | None = None
    info: _Lived | None = None
    error: object = None


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
    found = document(path, _lifecycles, "inference-perf's per_request_lifecycle_metrics.json")
    for k, row in enumerate(found):
        info = row.info or _Lived()
        asked, made = info.asked(), info.output_tokens
        if made is None and info.response_metrics is not None:
            made = info.response_metrics.output_tokens
        if asked is None or made is None:
            continue
        start = row.start_time if row.scheduled_time is None else row.scheduled_time
        at_ns.append(seconds_ns(path, 1, f"[{k}].start_time", start))
        context.append(tokens(path, 1, f"[{k}].info.input_tokens", asked))
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
        cut=sum(row.error is not None and made > 0 for row, made in zip(rows, output, strict=True)),
        unit="seconds",
    )
