"""Trace: the arrivals somebody recorded, gaps as they were, cut to a window and played faster or slower."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.measure.schedule.plan import DEPENDS
from breakeven.measure.schedule.process import NS, Arrived, Span
from breakeven.measure.traces.rows import TraceRows
from breakeven.spec.workload import Arrivals


def replay(arrivals: Arrivals, span: Span, rng: np.random.Generator, trace: TraceRows | None) -> Arrived:
    """Needs the rows of the trace. The window is in the trace's own seconds, `rate_scale` is applied after it.

    The first turn of a session is due when it was; later ones wait for the answer before them.
    """
    if trace is None:
        raise UserError(f"arrivals from the trace {arrivals.trace or ''} need its rows; give the trace file")
    if not 0 < arrivals.rate_scale < np.inf:
        raise UserError(f"a trace is scaled by a factor above 0, such as 0.5; found {arrivals.rate_scale:g}")
    start_ns = round(arrivals.start_s * NS)
    end_ns = np.iinfo(np.int64).max if arrivals.end_s is None else round(arrivals.end_s * NS)
    keep_N = np.flatnonzero((trace.at_ns >= start_ns) & (trace.at_ns < end_ns))
    if not len(keep_N):
        span_s = float(trace.at_ns[-1]) / NS if len(trace) else 0.0
        raise UserError(f"no request of {trace.name} lies in the window; the trace spans 0 s to {span_s:.1f} s")
    at_ns_N = np.rint((trace.at_ns[keep_N] - start_ns) / arrivals.rate_scale).astype(np.int64)
    due_ns_N, turn_N, think_ns_N = at_ns_N, None, None
    if trace.session is not None:
        order_N, turn_N = _by_session(trace.session[keep_N], at_ns_N, _column(trace.turn, keep_N))
        keep_N, at_ns_N = keep_N[order_N], at_ns_N[order_N]
        due_ns_N = np.where(turn_N == 0, at_ns_N, DEPENDS)
        think_ns_N = np.where(turn_N == 0, 0, np.maximum(0, np.diff(at_ns_N, prepend=at_ns_N[:1])))
        if trace.think_ns is not None:
            known_N = trace.think_ns[keep_N]
            scaled_N = np.rint(known_N / arrivals.rate_scale).astype(np.int64)
            think_ns_N = np.where((turn_N > 0) & (known_N >= 0), scaled_N, think_ns_N)
    n = _rows_inside(span, due_ns_N)
    keep_N = keep_N[:n]
    return Arrived(
        due_ns_N[:n],
        prompt_N=np.maximum(trace.prompt[keep_N], 1),
        output_N=np.maximum(trace.output[keep_N], 1),
        session_N=None if trace.session is None else trace.session[keep_N],
        turn_N=None if turn_N is None else turn_N[:n],
        think_ns_N=None if think_ns_N is None else think_ns_N[:n],
        blocks=tuple(trace.blocks[k] for k in keep_N.tolist()) if trace.blocks else (),
        block_tokens=trace.block_tokens,
    )


def _column(column_N: NDArray[np.int32] | None, keep_N: NDArray[np.int64]) -> NDArray[np.int32]:
    return np.zeros(len(keep_N), np.int32) if column_N is None else column_N[keep_N]


def _by_session(
    session_N: NDArray[np.int64], at_ns_N: NDArray[np.int64], turn_N: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Order in which turns of a session follow each other, and their numbers counted anew from 0.

    Sessions stand in the order of their first arrival; a row without one (-1) is a session of its own.
    """
    alone_N = session_N < 0
    key_N = session_N.copy()
    key_N[alone_N] = session_N.max(initial=0) + 1 + np.arange(int(alone_N.sum()))
    _, unit_N = np.unique(key_N, return_inverse=True)
    order_N = np.lexsort((at_ns_N, turn_N, unit_N))
    starts_ns_U = at_ns_N[order_N][np.flatnonzero(np.diff(unit_N[order_N], prepend=-1))]
    order_N = order_N[np.argsort(starts_ns_U[unit_N[order_N]], kind="stable")]
    sorted_N = unit_N[order_N]
    first_N = np.flatnonzero(np.diff(sorted_N, prepend=-1))
    counts_N = np.diff(np.append(first_N, len(sorted_N)))
    return order_N, (np.arange(len(sorted_N)) - np.repeat(first_N, counts_N)).astype(np.int32)


def _rows_inside(span: Span, due_ns_N: NDArray[np.int64]) -> int:
    """How many rows come before the run is over. A session that began inside is kept whole."""
    starts_N = np.flatnonzero(due_ns_N != DEPENDS)
    late_N = np.flatnonzero(due_ns_N[starts_N] >= span.end_s * NS)
    n = int(starts_N[late_N[0]]) if len(late_N) else len(due_ns_N)
    if span.requests is not None:
        measured_N = np.flatnonzero(due_ns_N[starts_N] >= span.warm_up_s * NS)
        if len(measured_N):
            n = min(n, int(starts_N[measured_N[0]]) + span.requests)
    return n
