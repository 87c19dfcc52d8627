"""What a simulation is asked to serve: requests as columns, whichever schedule or trace they came from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NOBODY = -1


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests as columns of equal length N.

    `arrival_s_N` float64, seconds; NaN where something decides it during the run: the end of request `after_N[i]`
    (NOBODY: none), or, in a closed loop, a free one of `streams`. `think_s_N` passes in between. `prompt_tokens_N`
    counts everything the engine reads, earlier turns included; `output_tokens_N` what it writes.

    `prefix[i]` are ids of `prefix_tokens` tokens each, from the start of request i's text: equal ids are equal text up
    to there. They may go on into the answer, which a later turn carries. Empty: nothing is shared.
    A closed loop starts no request after `closes_s`.
    """

    arrival_s_N: Floats
    prompt_tokens_N: Ints
    output_tokens_N: Ints
    after_N: Ints | None = None
    think_s_N: Floats | None = None
    prefix: tuple[tuple[int, ...], ...] = ()
    prefix_tokens: int = 512
    streams: int | None = None
    closes_s: float = np.inf

    def __post_init__(self) -> None:
        """Raises UserError for columns that are no requests."""
        n = len(self)
        columns = (self.prompt_tokens_N, self.output_tokens_N, self.after_N, self.think_s_N)
        if any(column is not None and len(column) != n for column in columns) or (
            self.prefix and len(self.prefix) != n
        ):
            raise UserError("columns of requests differ in length; give every request one value in each")
        if n and (self.prompt_tokens_N.min() < 1 or self.output_tokens_N.min() < 1):
            raise UserError("a request has 1 token of prompt and 1 of output or more; remove those that have none")
        if np.isinf(self.arrival_s_N).any() or (self.arrival_s_N < 0).any():
            raise UserError("a request arrives at 0 s or later; move the first one to 0 s")
        if self.after_N is not None:
            waits_N = self.after_N != NOBODY
            if (self.after_N[waits_N] >= np.flatnonzero(waits_N)).any() or (self.after_N < NOBODY).any():
                raise UserError("a request waits for an earlier one; put turns of a conversation in order")
            if np.isfinite(self.arrival_s_N[waits_N]).any():
                raise UserError("a request that waits for another has no arrival of its own; give NaN")
        if self.streams is None and np.isnan(self.arrival_s_N[self.heads]).any():
            raise UserError("a request without an arrival waits for another or for a stream; give one of them")
        if self.streams is not None and self.streams < 1:
            raise UserError(f"a closed loop has 1 stream or more; found {self.streams}")

    def __len__(self) -> int:
        return len(self.arrival_s_N)

    @property
    def heads(self) -> NDArray[np.bool_]:
        """True where a request waits for no other one."""
        return np.ones(len(self), np.bool_) if self.after_N is None else self.after_N == NOBODY

    @property
    def depends(self) -> bool:
        """True when answers decide some arrivals."""
        return self.streams is not None or not bool(self.heads.all())


def requests_of(arrival_s: Floats, prompt_tokens: Ints, output_tokens: Ints) -> Requests:
    """Independent requests, nothing shared between them, in order of arrival."""
    order_N = np.argsort(arrival_s, kind="stable")
    return Requests(
        np.asarray(arrival_s, np.float64)[order_N],
        np.asarray(prompt_tokens, np.int64)[order_N],
        np.asarray(output_tokens, np.int64)[order_N],
    )
