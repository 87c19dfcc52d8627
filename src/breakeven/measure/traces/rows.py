"""The requests of a trace, whichever file they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError


@dataclass(frozen=True, slots=True)
class TraceRows:
    """Columns of equal length n, sorted by time; rows of one time keep the order of the file.

    `at_ns` int64, nanoseconds since the first request. `prompt`, `output` int32 tokens; in a session `prompt` counts
    the new tokens of that turn. `session` int64 (-1: none) and `turn` int32 are None where the trace has no sessions;
    turns of a session follow each other by `turn`, then by time. `think_ns` int64 is the pause between the answer
    before and this turn (-1: not recorded). `blocks[i]` are ids of `block_tokens` tokens of prompt i each.
    `out_of_order` rows came later in the file than their time; `skipped` rows hold no request that could be replayed.
    """

    name: str
    format: str
    at_ns: NDArray[np.int64]
    prompt: NDArray[np.int32]
    output: NDArray[np.int32]
    session: NDArray[np.int64] | None = None
    turn: NDArray[np.int32] | None = None
    think_ns: NDArray[np.int64] | None = None
    blocks: tuple[tuple[int, ...], ...] = field(default=())
    block_tokens: int = 512
    out_of_order: int = 0
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.at_ns)

    @property
    def span_s(self) -> float:
        """Seconds from the first request to just after the last."""
        return float(self.at_ns[-1] + 1) / 1e9


def trace_rows(
    name: str,
    format: str,
    at_ns: Sequence[int],
    prompt: Sequence[int],
    output: Sequence[int],
    *,
    sessions: Sequence[object] | None = None,
    turn: Sequence[int] | None = None,
    think_ns: Sequence[int] | None = None,
    blocks: Sequence[tuple[int, ...]] = (),
    block_tokens: int = 512,
    skipped: int = 0,
) -> TraceRows:
    """Columns in file order, made into TraceRows. `sessions` may be any names, None for a row without one.

    Raises UserError when there is no row.
    """
    if not at_ns:
        raise UserError(f"{name}: holds no request; give a trace with at least one")
    times_N = np.asarray(at_ns, np.int64)
    order_N = np.argsort(times_N, kind="stable")
    ids: dict[object, int] = {}
    session_N = turn_N = think_N = None
    if sessions is not None and any(session is not None for session in sessions):
        session_N = np.array([-1 if s is None else ids.setdefault(s, len(ids)) for s in sessions], np.int64)[order_N]
        turn_N = np.asarray([0] * len(times_N) if turn is None else turn, np.int32)[order_N]
        think_N = None if think_ns is None else np.asarray(think_ns, np.int64)[order_N]
    return TraceRows(
        name=name,
        format=format,
        at_ns=times_N[order_N] - times_N.min(),
        prompt=np.asarray(prompt, np.int32)[order_N],
        output=np.asarray(output, np.int32)[order_N],
        session=session_N,
        turn=turn_N,
        think_ns=think_N,
        blocks=tuple(blocks[k] for k in order_N.tolist()) if blocks else (),
        block_tokens=block_tokens,
        out_of_order=int((times_N < np.maximum.accumulate(times_N)).sum()),
        skipped=skipped,
    )


def new_tokens(
    contexts: Sequence[int], outputs: Sequence[int], sessions: Sequence[object], turns: Sequence[int]
) -> list[int]:
    """New prompt tokens of each row, where a file counts the whole context of a conversation.

    new(k) = context(k) - context(k - 1) - output(k - 1), at least 1; the context itself where turn k - 1 is missing.
    """
    totals = {
        (session, turn): context + output
        for context, output, session, turn in zip(contexts, outputs, sessions, turns, strict=True)
    }
    return [
        context if session is None or turn == 0 else max(1, context - totals.get((session, turn - 1), 0))
        for context, session, turn in zip(contexts, sessions, turns, strict=True)
    ]
