"""From the event log of a comparison to numbers: what each block says, and which of several attempts at it counts.

Pure functions over events. A chunk is not a token: where the engine tells how many tokens each piece of output carried,
that is used; where it does not, the tokens of a stream are shared out evenly over its pieces, and `exact` is False.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from breakeven.measure import events
from breakeven.measure.events import RequestDone
from breakeven.results.comparison import SelfCheck
from breakeven.stats import intervals

_NS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMetrics:
    """One block. None: its requests do not give that number (a single token has no decode rate).

    `decode_tokens_per_s` is of all streams together over `window_s`, in which every stream decodes.
    `prefill_tokens_per_s` is prompt tokens of all streams over the time from the first request sent to the last first
    token, so it contains one sampling of a token and the HTTP way. `ttft_s` is the mean over streams from the due
    time, `service_ttft_s` from the time sent. `itl_s` and `itl_median_s` are over all gaps between consecutive tokens
    of a stream; tokens that arrived in one piece share the gap before it equally. `server_decode_tokens_per_s` is the
    engine's own account, the sum over streams; with several it is lower than ours, because the engine counts the time
    a stream waits for the prompts of others. `exact`: tokens of every piece were told by the engine.
    """

    streams: int
    prompt_tokens: int
    output_tokens: int
    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float | None
    ttft_s: float | None
    service_ttft_s: float | None
    itl_s: float | None
    itl_median_s: float | None
    window_s: float | None
    server_decode_tokens_per_s: float | None
    exact: bool


def block_metrics(requests: Sequence[RequestDone]) -> BlockMetrics:
    """Metrics of the requests of one block, issued together. Raises ValueError for none, or for a failed one."""
    if not requests:
        raise ValueError("a block without requests has no metrics")
    failed = next((request for request in requests if request.error), None)
    if failed is not None:
        raise ValueError(f"request {failed.stream} of block {failed.block} failed: {failed.error}")
    window = decode_window_ns(requests)
    gaps = [gap for request in requests for gap in token_gaps_s(request)]
    first = [request.first_ns for request in requests if request.first_ns is not None]
    all_answered = len(first) == len(requests)
    server = [server_decode_tokens_per_s(request) for request in requests]
    told = [rate for rate in server if rate is not None]
    return BlockMetrics(
        streams=len(requests),
        prompt_tokens=sum(request.prompt_tokens for request in requests),
        output_tokens=sum(request.output_tokens for request in requests),
        decode_tokens_per_s=decode_tokens_per_s(requests),
        prefill_tokens_per_s=prefill_tokens_per_s(requests),
        ttft_s=_mean_delay_s(first, [request.due_ns for request in requests]) if all_answered else None,
        service_ttft_s=_mean_delay_s(first, [request.sent_ns for request in requests]) if all_answered else None,
        itl_s=statistics.fmean(gaps) if gaps else None,
        itl_median_s=statistics.median(gaps) if gaps else None,
        window_s=(window[1] - window[0]) / _NS if window else None,
        server_decode_tokens_per_s=sum(told) if len(told) == len(requests) else None,
        exact=all(request.chunk_tokens is not None for request in requests),
    )


def decode_window_ns(requests: Sequence[RequestDone]) -> tuple[int, int] | None:
    """From the latest first token to the earliest last token of all streams; None when they never all decode."""
    first = [request.first_ns for request in requests if request.first_ns is not None]
    last = [request.last_ns for request in requests if request.last_ns is not None]
    if not requests or len(first) < len(requests) or len(last) < len(requests):
        return None
    start, end = max(first), min(last)
    return (start, end) if end > start else None


def decode_tokens_per_s(requests: Sequence[RequestDone]) -> float | None:
    """Tokens per second of all streams together while every one of them decodes; None without such a time.

    The tokens of each stream at the edges of the window are interpolated between its arrivals: streams that step
    together arrive microseconds apart, and counting whole tokens would gain or lose one a stream by chance. For one
    stream this is (tokens - 1) / (last - first) when the first piece carried one token.
    """
    window = decode_window_ns(requests)
    if window is None:
        return None
    start, end = window
    tokens = math.fsum(_tokens_until(request, end) - _tokens_until(request, start) for request in requests)
    return tokens * _NS / (end - start)


def prefill_tokens_per_s(requests: Sequence[RequestDone]) -> float | None:
    """Prompt tokens of all streams over the time from the earliest request sent to the latest first token."""
    first = [request.first_ns for request in requests if request.first_ns is not None]
    if not requests or len(first) < len(requests):
        return None
    duration = max(first) - min(request.sent_ns for request in requests)
    return sum(request.prompt_tokens for request in requests) * _NS / duration if duration > 0 else None


def server_decode_tokens_per_s(request: RequestDone) -> float | None:
    """llama.cpp's own decode rate of one request: decode steps over the time they took.

    `predicted_ms` starts when the first token is there, which came from the prompt's last batch, so it covers
    `predicted_n - 1` tokens (tools/server, `server_slot_stats::n_gen_steps`). None without timings or steps.
    """
    timings = request.server_timings
    if timings is None or timings.predicted_n < 2 or timings.predicted_ms <= 0:
        return None
    return (timings.predicted_n - 1) * 1e3 / timings.predicted_ms


def token_gaps_s(request: RequestDone) -> list[float]:
    """Gaps between consecutive tokens of one stream in seconds, one for each token after the first piece.

    A piece of k tokens gives k equal gaps that add up to the time since the piece before; a piece of none gives none,
    and its time goes to the next.
    """
    gaps: list[float] = []
    times, counts = request.chunk_ns, _counts(request)
    if not times:
        return gaps
    before = times[0]
    for now, count in zip(times[1:], counts[1:], strict=True):
        whole = int(count) if request.chunk_tokens is not None else 1
        if whole > 0:
            gaps.extend([(now - before) / whole / _NS] * whole)
            before = now
    return gaps


def _counts(request: RequestDone) -> Sequence[float]:
    """Tokens of each piece: as told, else the stream's tokens shared evenly."""
    if request.chunk_tokens is not None:
        return request.chunk_tokens
    pieces = len(request.chunk_ns)
    return [request.output_tokens / pieces] * pieces if pieces else []


def _tokens_until(request: RequestDone, at_ns: int) -> float:
    """Tokens received up to `at_ns`, linear between two arrivals."""
    times, total = request.chunk_ns, list(accumulate(_counts(request)))
    # The last arrival at or before the time: pieces that came together count together.
    here = -1
    for i, time in enumerate(times):
        if time > at_ns:
            break
        here = i
    if here < 0:
        return 0.0
    if here == len(times) - 1:
        return total[here]
    share = (at_ns - times[here]) / (times[here + 1] - times[here])
    return total[here] + share * (total[here + 1] - total[here])


def _mean_delay_s(ends: Sequence[int], starts: Sequence[int]) -> float:
    return statistics.fmean(end - start for end, start in zip(ends, starts, strict=True)) / _NS


@dataclass(frozen=True, slots=True)
class FinishedBlock:
    """One finished block that counts."""

    model: str
    streams: int
    round: int
    seconds: float
    """From its start to its end."""
    metrics: BlockMetrics
    flagged: tuple[str, ...]
    joules: float | None
    turn: int | None = None
    """Of candidates that take turns."""

    def value(self, metric: str) -> float | None:
        """One of `COMPARED`; None when this block's requests do not give it."""
        found = {
            "decode_tokens_per_s": self.metrics.decode_tokens_per_s,
            "prefill_tokens_per_s": self.metrics.prefill_tokens_per_s,
            "ttft_s": self.metrics.ttft_s,
            "itl_s": self.metrics.itl_s,
        }[metric]
        return found if found and found > 0 else None


def blocks_of(log: Sequence[events.Event]) -> list[FinishedBlock]:
    """Blocks that ended well, in order; of several attempts at one only the last."""
    started: dict[str, events.BlockStarted] = {}
    requests: dict[str, list[events.RequestDone]] = {}
    found: dict[tuple[str, int, int], FinishedBlock] = {}
    for event in log:
        match event:
            case events.BlockStarted(check=None):
                started[event.block] = event
                requests[event.block] = []
            case events.RequestDone() if event.block in requests:
                requests[event.block].append(event)
            # A log that others wrote, or a run that was killed, may end a block that has no whole answer.
            case events.BlockDone(ok=True) if _answered(requests.get(event.block, ())):
                start = started[event.block]
                found[start.model, start.streams, start.round] = FinishedBlock(
                    start.model,
                    start.streams,
                    start.round,
                    (event.at_ns - start.at_ns) / 1e9,
                    block_metrics(requests[event.block]),
                    tuple(event.flagged),
                    event.joules,
                    start.turn,
                )
    return list(found.values())


def _answered(requests: Sequence[events.RequestDone]) -> bool:
    return bool(requests) and not any(request.error for request in requests)


def self_checks(log: Sequence[events.Event], seed: int) -> list[SelfCheck]:
    """Decode with one prompt in all streams over decode with distinct ones, for every model that was checked.

    A run that goes on with a study checks again under the same names: the latest start of a block counts.
    """
    started: dict[str, events.BlockStarted] = {}
    requests: dict[str, list[events.RequestDone]] = {}
    rates: dict[str, dict[tuple[int, str], float]] = {}
    for event in log:
        match event:
            case events.BlockStarted() if event.check:
                started[event.block], requests[event.block] = event, []
                mine = rates.setdefault(event.model, {})
                if (event.round, event.check) in mine:
                    # Both blocks of a round are of one run.
                    for kind in ("same", "distinct"):
                        mine.pop((event.round, kind), None)
            case events.RequestDone() if event.block in requests:
                requests[event.block].append(event)
            case events.BlockDone(ok=True) if _answered(requests.get(event.block, ())):
                start = started[event.block]
                if rate := block_metrics(requests[event.block]).decode_tokens_per_s:
                    rates[start.model][start.round, start.check or ""] = rate
    streams = {e.model: e.streams for e in started.values()}
    found = []
    for model, mine in rates.items():
        rounds = sorted(r for r, kind in mine if kind == "same" and (r, "distinct") in mine)
        if rounds:
            estimate = intervals.ratio([mine[r, "same"] / mine[r, "distinct"] for r in rounds], seed)
            found.append(SelfCheck(model=model, streams=streams[model], same_over_distinct=estimate))
    return found
