"""What a simulation holds: requests as columns, the state of each, and blocks of keys and values on one replica.

A sequence's blocks are its own, except those of a prefix that the cache holds, which sequences share. What nobody uses
stays in the cache until room is needed; the longest unused goes first.
Requests are columns whichever schedule or trace they came from; their state is plain lists, read and written once an
event.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, nan

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.traffic.schedule import DEPENDS, Schedule

SESSION_CHUNK_TOKENS = 64
"""What a conversation's history is cached in."""
NS = 1e9
ROUND_TRIP_S = 1e-3
"""At least so long after an answer comes what follows it; the engine has begun its next step by then, or nearly so."""


class Blocks:
    """All blocks of a replica. `total` in blocks, infinite where nothing limits it.

    Invariant: own + cached <= total, and `idle` holds exactly those cached chunks that nobody uses.
    """

    __slots__ = ("block", "chunk", "idle", "own", "total", "users")

    def __init__(self, kv_tokens: int | None, block_tokens: int, chunk_tokens: int) -> None:
        self.block = block_tokens
        self.total: float = inf if kv_tokens is None else kv_tokens // block_tokens
        self.chunk = chunk_tokens // block_tokens
        self.own = 0
        self.users: dict[int, int] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> float:
        """Blocks that can be taken, those of idle chunks included."""
        return self.total - self.own - (len(self.users) - len(self.idle)) * self.chunk

    @property
    def used_tokens(self) -> int:
        """Tokens' worth of blocks that sequences hold; idle chunks excluded."""
        return (self.own + (len(self.users) - len(self.idle)) * self.chunk) * self.block

    def count(self, tokens: int) -> int:
        """Blocks that `tokens` tokens fill or begin."""
        return -(-tokens // self.block)

    def held(self, ids: Sequence[int], most: int) -> int:
        """How many of the first `most` ids the cache holds without a gap."""
        ids = ids[:most]
        return next((n for n, chunk in enumerate(ids) if chunk not in self.users), len(ids))

    def idle_among(self, ids: Sequence[int]) -> int:
        """Of these cached chunks, those nobody uses: using them takes room from what is available."""
        return sum(1 for chunk in ids if chunk in self.idle)

    def take(self, blocks: int) -> None:
        """A sequence's own blocks; the caller has made sure that they are available."""
        self.own += blocks
        self._make_room()

    def give(self, blocks: int) -> None:
        """Own blocks come back."""
        self.own -= blocks

    def share(self, ids: Sequence[int]) -> None:
        """One more sequence uses these cached chunks."""
        for chunk in ids:
            self.users[chunk] += 1
            self.idle.pop(chunk, None)

    def publish(self, ids: Sequence[int]) -> list[int]:
        """Turn own blocks into cached chunks, used once; returns those not cached yet, the others stay."""
        fresh = [chunk for chunk in dict.fromkeys(ids) if chunk not in self.users]
        self.own -= len(fresh) * self.chunk
        for chunk in fresh:
            self.users[chunk] = 1
        return fresh

    def leave(self, ids: Sequence[int]) -> None:
        """A sequence stops using these chunks; a chunk without users becomes idle."""
        for chunk in reversed(ids):
            self.users[chunk] -= 1
            if not self.users[chunk]:
                self.idle[chunk] = None

    def _make_room(self) -> None:
        while self.own + len(self.users) * self.chunk > self.total:
            chunk, _ = self.idle.popitem(last=False)
            del self.users[chunk]


class Crossings:
    """Decoding sequences by the step (modulo block) at which each needs its next block."""

    __slots__ = ("_due", "_n")

    def __init__(self, block_tokens: int) -> None:
        self._due = [0] * block_tokens
        self._n = 0

    def add(self, phase: int, n: int) -> None:
        """So many more sequences cross at `phase`; below 0: fewer."""
        self._due[phase] += n
        self._n += n

    def blocks(self, step: int, m: int) -> int:
        """Blocks that the sequences need for `m` steps after `step`."""
        due = self._due
        block = len(due)
        first = (step + 1) % block
        if m == 1:
            return due[first]
        rounds, rest = divmod(m, block)
        beyond = first + rest - block
        found = sum(due[first : first + rest]) if beyond <= 0 else sum(due[first:]) + sum(due[:beyond])
        return rounds * self._n + found

    def steps_within(self, step: int, most: int, available: float) -> int:
        """How many steps after `step`, up to `most`, need no more than `available` blocks; 1 at least, which has been
        made sure."""
        due, needed = self._due, 0
        for m in range(most):
            needed += due[(step + 1 + m) % len(due)]
            if needed > available:
                return max(1, m)
        return most


SIMILAR = 0.1
"""Of a prompt must be what a slot holds, or the slot unused longest is taken (llama.cpp: --slot-prompt-similarity)."""


class ReplicaSlots:
    """The slots of a replica: which request has which, and what each free one read last, the one unused longest first.

    The answer behind a prompt is kept too, but whoever goes on from it in a run of ours tells it otherwise
    (docs/traffic.md), so only prompts count. No slots at all where `n` is 0.
    """

    __slots__ = ("_free", "_slot_of")

    def __init__(self, n: int) -> None:
        self._free: list[tuple[int, tuple[int, ...]]] = [(slot, ()) for slot in range(n)]
        self._slot_of: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._free or self._slot_of)

    def best(self, ids: tuple[int, ...], target: int, chunk_tokens: int) -> tuple[int, int]:
        """The place among the free slots that a prompt of `target` tokens takes, and how many of its chunks the slot
        has read, but for the last token."""
        ids = ids[: (target - 1) // chunk_tokens]
        read = [_same(kept, ids) for _, kept in self._free] if ids else [0]
        place = max(range(len(read)), key=read.__getitem__)
        place = place if read[place] * chunk_tokens > SIMILAR * target else 0
        return place, read[place]

    def take(self, place: int, i: int) -> None:
        """Request `i` has this slot."""
        self._slot_of[i], _ = self._free.pop(place)

    def of(self, i: int) -> int:
        """The slot that request `i` has."""
        return self._slot_of[i]

    def give(self, i: int, ids: tuple[int, ...]) -> None:
        """Request `i` leaves its slot, if it has one, which has read `ids`."""
        if (slot := self._slot_of.pop(i, None)) is not None:
            self._free.append((slot, ids))

    def runs(self, requests: Iterable[int]) -> list[int]:
        """How many of these requests are in each run of adjacent slots."""
        taken = sorted(map(self._slot_of.__getitem__, requests))
        breaks = [k for k in range(1, len(taken)) if taken[k] != taken[k - 1] + 1]
        return [end - begin for begin, end in pairwise([0, *breaks, len(taken)])]

    def renumber(self, number_of: dict[int, int]) -> None:
        """Requests get other numbers."""
        self._slot_of = {number_of[i]: slot for i, slot in self._slot_of.items()}


def _same(kept: tuple[int, ...], ids: tuple[int, ...]) -> int:
    """How many ids two prompts begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(kept, ids, strict=False)) if a != b), min(len(kept), len(ids)))


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


_CARRIED = (
    "given", "target", "read", "own", "ends_at", "cached", "preempted", "shared", "first_s", "last_s", "gap_s",
    "queued_s",
)  # fmt: skip


class Jobs:
    """Columns by request.

    `prompt`, `output`, `prefix` are as asked. `given`: tokens answered when it last joined or left the running ones.
    `target`, `read`: tokens to read before it decodes, and those read. `own`, `shared`: its blocks, and the cached
    chunks it uses. `ends_at`: the step at which it ends. `gap_s`: longest wait between two of its tokens.
    """

    __slots__ = (
        "cached", "end_s", "ends_at", "first_s", "gap_s", "given", "last_s", "output", "own", "preempted", "prefix",
        "prompt", "queued_s", "read", "refused", "replica", "shared", "target",
    )  # fmt: skip

    def __init__(self, requests: Requests) -> None:
        n = len(requests)
        self.prompt: list[int] = requests.prompt_tokens_N.tolist()
        self.output: list[int] = requests.output_tokens_N.tolist()
        self.prefix = requests.prefix
        self.given, self.target, self.read = [0] * n, [0] * n, [0] * n
        self.own, self.ends_at, self.cached, self.preempted = [0] * n, [0] * n, [0] * n, [0] * n
        self.shared: list[list[int]] = [[] for _ in range(n)]
        self.replica = [NOBODY] * n
        self.refused = [False] * n
        self.queued_s = [0.0] * n
        self.first_s, self.end_s, self.last_s, self.gap_s = [nan] * n, [nan] * n, [nan] * n, [0.0] * n

    def take_over(self, other: Jobs, numbers: list[int]) -> None:
        """The first requests here are the `numbers` of `other`: their state comes along."""
        n = len(numbers)
        for name in _CARRIED:
            theirs = getattr(other, name)
            getattr(self, name)[:n] = [theirs[i] for i in numbers]


def requests_of_schedule(schedule: Schedule) -> Requests:
    """A schedule as the simulator takes it, in the schedule's order.

    A later turn's prompt counts the whole history. Prefixes are shared where the workload says that they are, or where
    conversations carry their history.
    """
    n = len(schedule)
    turn_N, prompt_N = schedule.turn_N.astype(np.int64), schedule.prompt_N.astype(np.int64)
    output_N = schedule.output_N.astype(np.int64)
    arrivals, workload = schedule.workload.arrivals, schedule.workload
    after_N = think_s_N = None
    if (turn_N > 0).any() or arrivals.is_closed:
        after_N = np.where(turn_N > 0, np.arange(n) - 1, NOBODY)
        think_s_N = np.maximum(schedule.think_ns_N / NS, ROUND_TRIP_S)
    before_N = np.concatenate([[0], np.cumsum(prompt_N + output_N)])[:-1]
    # Everything said since the conversation began, and this turn's message.
    context_N = before_N - before_N[np.arange(n) - turn_N] + prompt_N
    prefix, chunk = _prefixes(schedule, context_N + output_N)
    closes_s = np.inf
    if arrivals.is_closed and workload.duration_s is not None:
        closes_s = workload.warm_up_s + workload.duration_s
    return Requests(
        arrival_s_N=np.where(schedule.due_ns_N == DEPENDS, np.nan, schedule.due_ns_N / NS),
        prompt_tokens_N=context_N,
        output_tokens_N=output_N,
        after_N=after_N,
        think_s_N=think_s_N,
        prefix=prefix,
        prefix_tokens=chunk,
        streams=arrivals.concurrency if arrivals.is_closed else None,
        closes_s=closes_s,
    )


def _prefixes(schedule: Schedule, held_N: NDArray[np.int64]) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Ids of shared text by request, and how many tokens each stands for."""
    if (schedule.turn_N > 0).any():
        # Text of a conversation is told apart by its first row: a trace may lack names for some of them.
        heads = (np.arange(len(schedule)) - schedule.turn_N).tolist()
        longest = int(held_N.max()) // SESSION_CHUNK_TOKENS + 1
        counts = (held_N // SESSION_CHUNK_TOKENS).tolist()
        fronts = _fronts(schedule) if schedule.workload.sharing and schedule.blocks else {}
        ids = (
            (*fronts.get(head, ())[:k], *range(head * longest + len(fronts.get(head, ())[:k]), head * longest + k))
            for head, k in zip(heads, counts, strict=True)
        )
        return tuple(ids), SESSION_CHUNK_TOKENS
    if schedule.workload.sharing and schedule.blocks:
        return schedule.blocks, schedule.block_tokens
    return (), schedule.block_tokens


def _fronts(schedule: Schedule) -> dict[int, tuple[int, ...]]:
    """What conversations share with others, by their first row: ids below 0 of chunks that its blocks cover.

    Equal ids of blocks mean equal text up to there, so the block in which a chunk ends tells the chunk.
    """
    size, chunk = schedule.block_tokens, SESSION_CHUNK_TOKENS
    parts = -(-size // chunk)
    found: dict[int, tuple[int, ...]] = {}
    for head in np.flatnonzero(schedule.turn_N == 0).tolist():
        blocks = schedule.blocks[head]
        whole = min(int(schedule.prompt_N[head]), len(blocks) * size) // chunk
        ends = [(j + 1) * chunk - 1 for j in range(whole)]
        found[head] = tuple(-1 - (blocks[end // size] * parts + end % size // chunk) for end in ends)
    return found
