"""The schedule: requests with due times, fixed before a run, played alike for every candidate, cut among workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.traffic.workload import Workload

DEPENDS = -1
"""`due_ns` of a request that waits for something: a free stream (closed loop) or the answer before it."""


class Planned(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request to make, one line of a schedule file.

    `prompt` counts the new tokens of this turn's message; the history before it is what the earlier turns of the
    session planned, messages and answers alike (`Schedule.context_tokens`). `due_ns` counts from the start of the run
    (warm-up included); None: `think_ns` after the answer of the turn before, or when a stream of the closed loop is
    free. `blocks`: ids of `Schedule.block_tokens` tokens of prompt each; equal ids are equal text. `asked`: which
    request of the workload's own prompts it is; `prompt` is then an estimate.
    """

    i: int
    prompt: int
    output: int
    due_ns: int | None = None
    warm: bool = False
    session: int | None = None
    turn: int = 0
    think_ns: int = 0
    blocks: tuple[int, ...] = ()
    asked: int | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """All requests as columns of equal length n, in the order they are due; turns of a session follow each other.

    `due_ns_N`, `think_ns_N` int64 (DEPENDS for None), `prompt_N` and `output_N` int32 tokens, `warm_N` bool,
    `session_N` int64 (-1: none), `turn_N` int32. A closed loop that outlives its rows starts over at row 0 with fresh
    prompts: request i takes the lengths of row i mod n.
    """

    workload: Workload
    due_ns_N: NDArray[np.int64]
    prompt_N: NDArray[np.int32]
    output_N: NDArray[np.int32]
    warm_N: NDArray[np.bool_]
    session_N: NDArray[np.int64]
    turn_N: NDArray[np.int32]
    think_ns_N: NDArray[np.int64]
    blocks: tuple[tuple[int, ...], ...] = field(default=())
    """One tuple a request, or empty."""
    block_tokens: int = 512
    asked_N: NDArray[np.int32] | None = None
    """Where prompts are a person's own: which request of their file each is; token counts of prompts are estimates."""

    def __len__(self) -> int:
        return len(self.due_ns_N)

    def context_tokens(self, i: int) -> int:
        """Prompt tokens of request `i` as the engine sees it: the whole history of its session and the new message."""
        k = i % len(self)
        first = k - int(self.turn_N[k])
        return int(self.prompt_N[first : k + 1].sum()) + int(self.output_N[first:k].sum())

    def row(self, i: int) -> Planned:
        """Request `i`; beyond the last row the lengths repeat and nothing else does."""
        k = i % len(self)
        due = int(self.due_ns_N[k])
        session = int(self.session_N[k])
        return Planned(
            i=i,
            prompt=int(self.prompt_N[k]),
            output=int(self.output_N[k]),
            due_ns=None if due == DEPENDS else due,
            warm=bool(self.warm_N[k]),
            session=None if session < 0 else session,
            turn=int(self.turn_N[k]),
            think_ns=int(self.think_ns_N[k]),
            blocks=self.blocks[k] if self.blocks else (),
            asked=None if self.asked_N is None else int(self.asked_N[k]),
        )


def part(schedule: Schedule, worker: int, workers: int) -> NDArray[np.int64]:
    """Row indices, ascending, that belong to `worker` of `workers`.

    Requests are dealt out in turn, whole conversations to one worker; the parts share no row and together are all.
    Raises ValueError unless 0 <= worker < workers.
    """
    if not 0 <= worker < workers:
        raise ValueError(f"worker {worker} of {workers}")
    session_N = schedule.session_N
    opens_N = np.ones(len(schedule), np.bool_)
    opens_N[1:] = (session_N[1:] < 0) | (session_N[1:] != session_N[:-1])
    unit_N = np.cumsum(opens_N) - 1
    return np.flatnonzero(unit_N % workers == worker)


TEMPLATE_TOKENS = 256
"""Room for what a chat template adds to prompts that are sent as they are: some ten tokens a message."""
LONG_PROMPTS = 2.0
"""Bytes of a token where there are few: Chinese, digits, code. Room is kept for prompts that nobody has counted yet."""


def context_of(schedules: Sequence[Schedule], *, of_bytes: bool = False) -> int:
    """Tokens the longest request of all schedules needs, history and answer included.

    Of prompts that nobody has counted, as many as their bytes may be. `of_bytes`: a byte is a token, as it is to
    engines with made-up weights.
    """
    most = 0
    for schedule in schedules:
        # Turns of a session stand together, so a session's history is a difference of running sums.
        sums_N = np.cumsum(schedule.prompt_N.astype(np.int64) + schedule.output_N)
        first_N = np.arange(len(schedule)) - schedule.turn_N
        before_N = np.where(first_N > 0, sums_N[first_N - 1], 0)
        most = max(most, int((sums_N - before_N).max()))
        if (own := schedule.workload.prompts) is not None:
            longest = int(own.most_bytes / (1.0 if of_bytes else LONG_PROMPTS)) + TEMPLATE_TOKENS
            most = max(most, longest + int(schedule.output_N.max()))
    return most
