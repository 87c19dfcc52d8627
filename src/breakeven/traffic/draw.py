"""Drawing a schedule: every random choice of a run, arrivals and token counts alike, made once, before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.traffic.arrivals import (
    MOST_ROWS,
    NS,
    Arrived,
    Process,
    Span,
    agents,
    closed,
    constant,
    gamma,
    poisson,
    ramp,
    replay,
    steps,
)
from breakeven.traffic.prompt_file import UNSAID_OUTPUT, PromptFile, prompts_of, tokens_of
from breakeven.traffic.prompts import rng
from breakeven.traffic.schedule import DEPENDS, Schedule
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Length, Workload

Sample = Callable[[Length, int, np.random.Generator], NDArray[np.float64]]


def fixed(length: Length, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """`mean` every time."""
    return np.full(n, length.mean)


def uniform(length: Length, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Every count from `low` to `high` alike, both included."""
    if length.high is None:
        raise UserError("a uniform length needs two ends, such as uniform:64-512")
    return np.floor(length.low + rng.random(n) * (length.high - length.low + 1))


def normal(length: Length, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Normal with `mean` and `sd`; what falls outside `low`..`high` is moved to the nearer end."""
    return length.mean + length.sd * rng.standard_normal(n)


def lognormal(length: Length, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Log-normal with `mean` and `sd` of the tokens themselves: s^2 = ln(1 + sd^2/mean^2), m = ln(mean) - s^2/2."""
    if length.mean <= 0:
        raise UserError(f"a lognormal length needs a mean above 0, such as lognormal:1155,900; found {length.mean:g}")
    variance = np.log1p((length.sd / length.mean) ** 2)
    return np.asarray(np.exp(np.log(length.mean) - variance / 2 + np.sqrt(variance) * rng.standard_normal(n)))


LENGTHS: dict[str, Sample] = {"fixed": fixed, "uniform": uniform, "normal": normal, "lognormal": lognormal}


def draw_lengths(length: Length, n: int, rng: np.random.Generator, what: str) -> NDArray[np.int32]:
    """`n` token counts of 1 or more. Raises UserError, naming `what`, for a distribution that makes no sense."""
    if length.kind not in LENGTHS:
        raise UserError(f"{what} length {length.kind!r} is not known; one of {', '.join(LENGTHS)}")
    high = np.iinfo(np.int32).max if length.high is None else length.high
    if length.sd < 0 or not np.isfinite([length.mean, length.sd]).all() or not 1 <= length.low <= high:
        raise UserError(f"{what} length needs 1 <= low <= high and a spread of 0 or more; found {length}")
    if length.kind != "uniform" and length.mean < 1:
        raise UserError(f"{what} length needs a mean of 1 token or more; found {length.mean:g}")
    return np.clip(np.rint(LENGTHS[length.kind](length, n, rng)), length.low, high).astype(np.int32)


ARRIVALS: dict[str, Process] = {
    "closed": closed,
    "constant": constant,
    "poisson": poisson,
    "gamma": gamma,
    "steps": steps,
    "ramp": ramp,
    "agents": agents,
    "trace": replay,
}


def draw(workload: Workload, trace: TraceRows | None = None) -> Schedule:
    """The schedule of `workload`; the same one for the same workload and trace, on every machine.

    Arrivals, prompt lengths and output lengths come from random streams of their own, so changing one leaves the
    others as they were. Raises UserError for a workload that makes no sense or asks for nothing.
    """
    process = ARRIVALS.get(workload.arrivals.process)
    if process is None:
        raise UserError(f"arrivals {workload.arrivals.process!r} are not known; one of {', '.join(ARRIVALS)}")
    _check(workload, trace)
    turns = workload.turns
    own = None if workload.prompts is None else prompts_of(workload.prompts, turns)
    # A recorded conversation may be shorter than it may be long.
    starts = None if workload.requests is None else -(-workload.requests // (1 if own is not None else turns))
    span = Span(workload.warm_up_s, workload.duration_s, starts)
    arrived = process(workload.arrivals, span, rng(workload.seed, "arrivals"), trace)
    asked_N = None
    if own is not None:
        arrived, asked_N = _with_prompts(arrived, own, workload)
    elif turns > 1:
        arrived = _with_turns(arrived, np.full(len(arrived.due_ns_N), turns), workload.turn_think_s)
    due_ns_N = arrived.due_ns_N
    turn_N = arrived.turn_N if arrived.turn_N is not None else np.zeros(len(due_ns_N), np.int32)
    warm_N = _warm(due_ns_N, turn_N, workload.warm_up_s)
    n = _rows(workload, warm_N)
    if n == 0 or warm_N[:n].all():
        raise UserError("no request falls into the measured part of the run; give a longer duration or a higher rate")
    prompt_N = _lengths(workload, "prompt", n, arrived.prompt_N)
    asked_N = None if asked_N is None else asked_N[:n]
    keeps_blocks = bool(arrived.blocks) and workload.prompt is None and own is None
    return Schedule(
        workload=workload,
        due_ns_N=due_ns_N[:n],
        prompt_N=prompt_N,
        output_N=_lengths(workload, "output", n, arrived.output_N),
        warm_N=warm_N[:n],
        session_N=arrived.session_N[:n] if arrived.session_N is not None else np.full(n, -1, np.int64),
        turn_N=turn_N[:n],
        think_ns_N=arrived.think_ns_N[:n] if arrived.think_ns_N is not None else np.zeros(n, np.int64),
        blocks=arrived.blocks[:n] if keeps_blocks else (),
        block_tokens=arrived.block_tokens,
        asked_N=asked_N,
    )


def _check(workload: Workload, trace: TraceRows | None) -> None:
    """Raises UserError for options that do not go together."""
    if workload.warm_up_s < 0 or (workload.duration_s is not None and workload.duration_s <= 0):
        raise UserError("a run needs a duration above 0 s and a warm-up of 0 s or more")
    if workload.requests is not None and workload.requests < 1:
        raise UserError(f"a run needs 1 request or more; found {workload.requests}")
    if workload.seed < 0:
        raise UserError(f"a seed is a whole number of 0 or more; found {workload.seed}")
    if workload.turns < 1:
        raise UserError(f"a conversation needs 1 turn or more; found {workload.turns}")
    if trace is not None and workload.arrivals.process != "trace":
        raise UserError(f"a trace brings its own arrivals; leave out {workload.arrivals.process!r}")
    if workload.arrivals.process == "agents" and (workload.turns > 1 or workload.prompts is not None):
        raise UserError("agents bring their own turns and text; leave out --turns and --prompts")
    if trace is not None and workload.turns > 1:
        raise UserError("a trace brings its own conversations; leave out the number of turns")


def _with_turns(arrived: Arrived, turns_S: NDArray[np.int64], think_s: float) -> Arrived:
    """Arrival s starts a conversation of `turns_S[s]` rows; all but the first wait for the answer before."""
    n = int(turns_S.sum())
    if n > MOST_ROWS:
        raise UserError(f"{len(turns_S):,} conversations of {n:,} turns are more than fit in one run; give fewer")
    first_S = np.cumsum(turns_S) - turns_S
    turn_N = (np.arange(n) - np.repeat(first_S, turns_S)).astype(np.int32)
    think_ns_N = np.full(n, round(max(0.0, think_s) * NS), np.int64)
    think_ns_N[first_S] = 0 if arrived.think_ns_N is None else arrived.think_ns_N
    due_ns_N = np.full(n, DEPENDS, np.int64)
    due_ns_N[first_S] = arrived.due_ns_N
    session_N = np.repeat(np.arange(len(turns_S), dtype=np.int64), turns_S)
    return Arrived(due_ns_N, session_N=session_N, turn_N=turn_N, think_ns_N=think_ns_N)


def _with_prompts(arrived: Arrived, own: PromptFile, workload: Workload) -> tuple[Arrived, NDArray[np.int32]]:
    """Every arrival asks the next of somebody's own prompts, in an order of the seed; and which request each row is.

    Lengths are those of the file, prompts at so many bytes a token, until an engine counts them.
    """
    if arrived.turn_N is not None and arrived.turn_N.any():
        raise UserError("a trace of conversations brings its own; give --prompts a --rate or --concurrency instead")
    n = len(arrived.due_ns_N)
    starts_C = np.asarray(own.starts, np.int64)
    order_S = np.resize(rng(workload.seed, "prompts").permutation(len(starts_C) - 1), n)
    turns_S = np.diff(starts_C)[order_S]
    if turns_S.max(initial=1) > 1:
        arrived = _with_turns(arrived, turns_S, workload.turn_think_s)
    first_S = np.cumsum(turns_S) - turns_S
    asked_N = (np.repeat(starts_C[order_S] - first_S, turns_S) + np.arange(int(turns_S.sum()))).astype(np.int32)
    prompt_K = np.array([tokens_of(request.new_bytes) for request in own.requests], np.int32)
    output_K = np.array([request.output or UNSAID_OUTPUT for request in own.requests], np.int32)
    return replace(arrived, prompt_N=prompt_K[asked_N], output_N=output_K[asked_N]), asked_N


def _warm(due_ns_N: NDArray[np.int64], turn_N: NDArray[np.int32], warm_up_s: float) -> NDArray[np.bool_]:
    """True where a request, or the conversation it belongs to, began before the warm-up was over."""
    if warm_up_s <= 0:
        return np.zeros(len(due_ns_N), np.bool_)
    first_N = np.arange(len(due_ns_N)) - turn_N
    began_ns_N = due_ns_N[first_N]
    return np.asarray((began_ns_N != DEPENDS) & (began_ns_N < warm_up_s * NS))


def _rows(workload: Workload, warm_N: NDArray[np.bool_]) -> int:
    """Rows to keep so that at most `requests` of them are measured, turns counted one by one."""
    if workload.requests is None:
        return len(warm_N)
    return min(len(warm_N), int(warm_N.sum()) + workload.requests)


def _lengths(workload: Workload, what: str, n: int, traced_N: NDArray[np.int32] | None) -> NDArray[np.int32]:
    """The column `what`: as asked for, else as the trace has it."""
    asked = workload.prompt if what == "prompt" else workload.output
    if asked is not None:
        return draw_lengths(asked, n, rng(workload.seed, "lengths", what), what)
    if traced_N is None:
        raise UserError(f"how long is the {what}? Give its length in tokens, such as 128")
    return traced_N[:n]
