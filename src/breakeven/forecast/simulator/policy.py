"""How an engine fills its steps, how a fleet shares requests and grows, and step times looked up in a table.

vLLM (V1 scheduler, `vllm/v1/core/sched/scheduler.py`): every step first gives one token to each running sequence, then
what is left of `max_num_batched_tokens` to prompts, in order of arrival, cut into chunks. Blocks of keys and values are
taken as they are needed; when none is left, the sequence admitted last gives its own back and starts over. Scheduling
is asynchronous (`async_scheduling`, on by default but on CPUs): a step is put together while the one before it runs.

llama.cpp (`tools/server/server-context.cpp`, `update_slots`): a request waits for a free slot, whose context is its
own. With the prompt cache on, a slot keeps the last prompt it read; a request takes the free slot that shares most of
its prompt, if that is more than a tenth, else the one unused longest, and reads what is new to it. Slots share nothing
with each other. A step takes one token of every generating slot and prompt tokens up to `n_batch`, and runs as several
passes of up to `n_ubatch` tokens; nobody gets a token before all of them are done, so prompts hold up everyone's
answers. With a cache for each slot a pass takes equally many tokens of sequences in adjacent slots (`split_equal` in
`src/llama-batch.cpp`): generating slots with idle ones between them take a pass for each run, and prompts their own.
The one token of a prompt that goes along with a run's is not simulated.

mlx_lm.server (0.32: `BatchGenerator._next` in `mlx_lm/generate.py`): a step gives one token to every generating
sequence in a pass of its own, then runs one more over up to 2048 tokens of each of up to eight prompts. Answers of both
are sent together, so prompts hold up everyone's. The token behind a prompt comes with the next step's first pass, which
is not simulated, nor is the padding of prompts to the longest of them.

The table: the step model on a grid once, interpolated many thousand times. The step model is piecewise smooth and rises
along every axis, so linear interpolation between points a quarter of an octave apart (half of one along contexts) keeps
its order. It stays within a few per mille, and within 8 % where memory and arithmetic change places.

Axes: D decoding sequences, C their mean context, P prompt tokens, Q mean context of a prompt token.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from random import Random

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.forecast.balancing import of_two
from breakeven.forecast.model import StepModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One engine's way of batching.

    `max_sequences` in a step; `max_step_tokens`, prompts and answers together. `micro_batch`: a step of more tokens
    than this runs as several passes; None: one pass. `chunked` False: a prompt runs whole or waits. `kv_tokens`: tokens
    of keys and values on one replica; None: what fits beside the weights. `slot_tokens`: context of one sequence; None:
    only `kv_tokens` limits it. `block_tokens`: what keys and values are taken in. `prefix_caching`: all prompts share
    what they have in common; `slot_caching`: each slot keeps its last prompt, alone. `front_s`: from a request's
    arrival to the engine's queue and back (HTTP, tokenizer), beside the steps. `ahead`: a step is planned when the one
    before it starts, so who arrives meanwhile joins the step after. `prompts`: how many are read at once, and
    `prompt_tokens` of one in a step; None: as many as the step has room for. `apart`: what decodes has its own pass.
    `adjacent`: the same, and a pass for each run of adjacent slots among them.
    """

    name: str
    max_sequences: int
    max_step_tokens: int
    micro_batch: int | None = None
    chunked: bool = True
    kv_tokens: int | None = None
    slot_tokens: int | None = None
    block_tokens: int = 16
    prefix_caching: bool = False
    slot_caching: bool = False
    front_s: float = 0.0
    ahead: bool = False
    prompts: int | None = None
    prompt_tokens: int | None = None
    apart: bool = False
    adjacent: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for settings under which no step could run."""
        least = {
            "max_sequences": self.max_sequences,
            "max_step_tokens": self.max_step_tokens,
            "block_tokens": self.block_tokens,
            "micro_batch": self.micro_batch,
            "kv_tokens": self.kv_tokens,
            "slot_tokens": self.slot_tokens,
            "prompts": self.prompts,
            "prompt_tokens": self.prompt_tokens,
        }
        for name, value in least.items():
            if value is not None and value < 1:
                raise UserError(f"policy {self.name}: {name} must be 1 or more; found {value}")
        if self.max_step_tokens < self.max_sequences:
            raise UserError(
                f"policy {self.name}: a step of {self.max_step_tokens} tokens cannot give one to each of "
                f"{self.max_sequences} sequences; raise max_step_tokens"
            )
        if self.front_s < 0:
            raise UserError(f"policy {self.name}: front_s must be 0 or more; found {self.front_s}")


POLICIES: dict[str, Policy] = {
    # vllm serve on a data-centre GPU: EngineArgs.get_batch_defaults, usage OPENAI_API_SERVER, 70 GiB or more.
    "vllm": Policy(name="vllm", max_sequences=1024, max_step_tokens=8192, prefix_caching=True, ahead=True),
    # The same from 160 GiB on (B200, MI300X).
    "vllm-large": Policy(name="vllm-large", max_sequences=1024, max_step_tokens=16384, prefix_caching=True, ahead=True),
    # The same on smaller GPUs, and on every A100, which larger steps slow down (vLLM's pull request 17885).
    "vllm-small": Policy(name="vllm-small", max_sequences=256, max_step_tokens=2048, prefix_caching=True, ahead=True),
    # And on CPUs, where vllm/platforms/cpu.py turns asynchronous scheduling off and makes blocks of 128 tokens.
    "vllm-cpu": Policy(name="vllm-cpu", max_sequences=128, max_step_tokens=2048, block_tokens=128, prefix_caching=True),
    # As Breakeven starts it: nothing is kept of a prompt but where prompts share their beginnings or go on.
    "llama.cpp": Policy(
        name="llama.cpp",
        max_sequences=4,
        max_step_tokens=2048,
        micro_batch=512,
        block_tokens=1,
        slot_caching=True,
        adjacent=True,
    ),
    # mlx_lm/server.py's defaults: --decode-concurrency 32, --prompt-concurrency 8, --prefill-step-size 2048; caches
    # grow by 256 tokens (mlx_lm/models/cache.py: KVCache.step). The prompt cache is off, as Breakeven starts it.
    "mlx": Policy(
        name="mlx",
        max_sequences=32,
        max_step_tokens=8 * 2048 + 32,
        block_tokens=256,
        prompts=8,
        prompt_tokens=2048,
        apart=True,
    ),
}


LARGE_DEVICE_BYTES, LARGEST_DEVICE_BYTES = 70 * 2**30, 160 * 2**30
"""From here on, and from there on again, vLLM takes larger steps by default (`EngineArgs.get_batch_defaults`, 0.32)."""
SMALL_ALL_THE_SAME = "a100"


def policy_by_device(policy: Policy, memory_bytes: float, slug: str) -> Policy:
    """What the engine of `policy` takes by default on a device of so much memory; itself where it asks for none."""
    if memory_bytes >= LARGEST_DEVICE_BYTES:
        return POLICIES.get(f"{policy.name}-large", policy)
    if memory_bytes < LARGE_DEVICE_BYTES or SMALL_ALL_THE_SAME in slug:
        return POLICIES.get(f"{policy.name}-small", policy)
    return policy


def policy_named(name: str) -> Policy:
    """The policy of an engine. Raises UserError for one that is not known."""
    if name not in POLICIES:
        raise UserError(f"no batching policy is known for the engine {name!r}; there is {', '.join(POLICIES)}")
    return POLICIES[name]


Floats = NDArray[np.float64]

_FEWEST_CONTEXT = 64
_CACHE: list[tuple[StepModel, int, int, int, StepTable]] = []
_CACHED = 8


class StepTable:
    """Seconds of steps of one model. Look-ups take plain numbers and cost about a microsecond or four."""

    __slots__ = ("_c", "_d_at", "_d_share", "_decode", "_mixed", "_n_c", "_n_p", "_n_q", "_p_at", "_p_share", "_q")

    def __init__(self, model: StepModel, sequences: int, tokens: int, context: int) -> None:
        d_D = _grid(0, sequences, 4)
        costs = model.constants
        edge = costs.graph_tokens if costs.launch_layer_s or costs.launch_moe_layer_s else None
        p_P = _grid(1, tokens, 4, edge)
        self._c = _grid(_FEWEST_CONTEXT, context, 2).tolist()
        self._q = _grid(_FEWEST_CONTEXT, context, 2).tolist()
        self._n_c, self._n_p, self._n_q = len(self._c), len(p_P), len(self._q)
        self._decode: list[list[float]] = model.step_s(
            np.arange(sequences + 1, dtype=np.float64)[:, None], np.asarray(self._c)[None, :]
        ).tolist()
        self._mixed: list[float] = (
            model.step_s(
                d_D[:, None, None, None],
                np.asarray(self._c)[None, :, None, None],
                p_P[None, None, :, None],
                np.asarray(self._q)[None, None, None, :],
            )
            .ravel()
            .tolist()
        )
        self._d_at, self._d_share = _places(d_D, sequences)
        self._p_at, self._p_share = _places(p_P, tokens)

    def decode_s(self, d: int, c: float) -> float:
        """A step of `d` sequences of mean context `c` tokens."""
        # As `_place` does, without a call: this is the innermost line of a simulation.
        grid, row = self._c, self._decode[d]
        i = bisect_right(grid, c, 1, self._n_c - 1) - 1
        share: float = (c - grid[i]) / (grid[i + 1] - grid[i])
        return row[i] + share * (row[i + 1] - row[i])

    def mixed_s(self, d: int, c: float, p: int, q: float) -> float:
        """A step of `d` decoding sequences and `p` >= 1 prompt tokens that attend to `q` tokens each on average."""
        table = self._mixed
        n_q = self._n_q
        n_pq = self._n_p * n_q
        i_c, s_c = _place(self._c, c)
        i_q, s_q = _place(self._q, q)
        s_d, s_p = self._d_share[d], self._p_share[p]
        at = (self._d_at[d] * self._n_c + i_c) * n_pq + self._p_at[p] * n_q + i_q
        found = 0.0
        for start, weight in ((at, 1.0 - s_d), (at + self._n_c * n_pq, s_d)):
            if weight:
                for k, w in ((start, weight * (1.0 - s_c)), (start + n_pq, weight * s_c)):
                    low = table[k] + s_q * (table[k + 1] - table[k])
                    if s_p:
                        j = k + n_q
                        low += s_p * (table[j] + s_q * (table[j + 1] - table[j]) - low)
                    found += w * low
        return found


def table_of(model: StepModel, sequences: int, tokens: int, context: int) -> StepTable:
    """The table for steps of up to `sequences` sequences and `tokens` prompt tokens, contexts up to `context`.

    The latest few are kept: a search over loads asks for the same one again and again.
    """
    for known, s, t, c, table in _CACHE:
        if (s, t, c) == (sequences, tokens, context) and known == model:
            return table
    table = StepTable(model, sequences, tokens, context)
    _CACHE.append((model, sequences, tokens, context, table))
    del _CACHE[:-_CACHED]
    return table


def _place(grid: list[float], x: float) -> tuple[int, float]:
    """The interval of the grid that `x` lies in, the first or last one beyond its ends, and where in it."""
    i = bisect_right(grid, x, 1, len(grid) - 1) - 1
    return i, (x - grid[i]) / (grid[i + 1] - grid[i])


def _grid(low: int, high: int, per_octave: int, edge: int | None = None) -> Floats:
    """Whole numbers from `low` to at least `high`, `per_octave` to a doubling; at least two of them.

    `edge`: beyond it steps are of another kind, so that it and the next one are among them.
    """
    points = [float(low)]
    while points[-1] < high or len(points) < 2:
        points.append(max(points[-1] + 1.0, float(round(points[-1] * 2.0 ** (1.0 / per_octave)))))
    if edge is not None and low <= edge < high:
        points = sorted({*points, float(edge), edge + 1.0})
    return np.asarray(points)


def _places(grid: Floats, most: int) -> tuple[list[int], list[float]]:
    """For every whole number up to `most`: the grid point at or below it, and how far it is to the next."""
    numbers = np.maximum(np.arange(most + 1, dtype=np.float64), grid[0])
    at = np.clip(np.searchsorted(grid, numbers, side="right") - 1, 0, len(grid) - 2)
    return at.tolist(), ((numbers - grid[at]) / (grid[at + 1] - grid[at])).tolist()


Pick = Callable[[Sequence[int], int, int | None, Random], int]
"""From requests in flight by replica that takes new ones, the number of this request, where among them its conversation
belongs, and a random stream: which."""


def round_robin(in_flight: Sequence[int], i: int, home: int | None, rng: Random) -> int:
    """One after the other."""
    return i % len(in_flight)


def least_loaded(in_flight: Sequence[int], i: int, home: int | None, rng: Random) -> int:
    """The one with the fewest requests, the first of several."""
    return min(range(len(in_flight)), key=in_flight.__getitem__)


def random(in_flight: Sequence[int], i: int, home: int | None, rng: Random) -> int:
    """Any one."""
    return rng.randrange(len(in_flight))


def gateway(in_flight: Sequence[int], i: int, home: int | None, rng: Random) -> int:
    """As Breakeven's gateway: the less loaded of two drawn, and a conversation where it was."""
    return of_two(range(len(in_flight)), home, lambda k: in_flight[k] + 1.0, rng)[0]


BALANCING: dict[str, Pick] = {
    "round_robin": round_robin,
    "least_loaded": least_loaded,
    "random": random,
    "gateway": gateway,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscale:
    """Replicas come and go with the requests in flight: ceil(in flight / `per_replica`) of them, `least` to `most`.

    A new one takes requests `start_s` after it was asked for. One goes when fewer were enough for `calm_s`; it ends
    what it has. Decided whenever a request arrives. With `least` 0 the last one goes too, `calm_s` after its answer;
    who comes then waits until one has started.
    """

    least: int = 1
    most: int = 8
    per_replica: int = 16
    start_s: float = 60.0
    calm_s: float = 300.0

    def __post_init__(self) -> None:
        """Raises UserError for numbers that make no sense."""
        if not (
            0 <= self.least <= self.most
            and self.most >= 1
            and self.per_replica >= 1
            and self.start_s >= 0
            and self.calm_s >= 0
        ):
            raise UserError(
                "autoscaling needs 0 <= least <= most replicas, 1 at most or more, 1 request per replica or more, and "
                f"times of 0 s or more; found {self.least} to {self.most} replicas, one for every {self.per_replica} "
                f"requests, {self.start_s:g} s to start and {self.calm_s:g} s to stop"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Replicas and how requests are spread over them. `autoscale` replaces `replicas`."""

    replicas: int = 1
    balancing: str = "least_loaded"
    autoscale: Autoscale | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for an unknown rule or no replica."""
        if self.balancing not in BALANCING:
            raise UserError(f"balancing {self.balancing!r} is not known; one of {', '.join(BALANCING)}")
        if self.replicas < 1:
            raise UserError(f"a fleet has 1 replica or more; found {self.replicas}")

    @property
    def most(self) -> int:
        """Replicas there may be at once."""
        return self.replicas if self.autoscale is None else self.autoscale.most


class Scaler:
    """Which replicas take requests, as time goes on. Replica numbers are reused: 0 is the last to go."""

    __slots__ = ("_fleet", "_peaks", "_rule", "from_s", "paid_s", "ready_s")

    def __init__(self, fleet: Fleet) -> None:
        self._fleet, self._rule = fleet, fleet.autoscale
        n = fleet.replicas if self._rule is None else self._rule.least
        self.ready_s = [0.0] * n
        """When each of the present replicas takes requests."""
        self.from_s = [0.0] * n
        """Since when it is paid for."""
        self.paid_s = 0.0
        """Replica seconds of those that went."""
        self._peaks: deque[tuple[float, int]] = deque()
        """Replicas wanted within the last `calm_s`: falling, each the largest since its time."""

    def decide(self, now_s: float, in_flight: int, drained_s: Callable[[int], float]) -> list[int]:
        """The replicas that take a request arriving now; all of them where none has started yet.

        `drained_s(k)`: when replica k ends what it has. `in_flight` counts the new request.
        """
        rule = self._rule
        if rule is None:
            return list(range(len(self.ready_s)))
        wanted = min(rule.most, max(rule.least, ceil(in_flight / rule.per_replica)))
        while self._peaks and self._peaks[-1][1] <= wanted:
            self._peaks.pop()
        self._peaks.append((now_s, wanted))
        last_peak_s = now_s
        while self._peaks[0][0] < now_s - rule.calm_s and len(self._peaks) > 1:
            last_peak_s, _ = self._peaks.popleft()
        for _ in range(len(self.ready_s), wanted):
            self.ready_s.append(now_s + rule.start_s)
            self.from_s.append(now_s)
        for k in range(len(self.ready_s) - 1, self._peaks[0][1] - 1, -1):
            went_s = max(min(now_s, last_peak_s + rule.calm_s), drained_s(k), self.from_s[k])
            self.paid_s += went_s - self.from_s[k]
            self.ready_s.pop()
            self.from_s.pop()
        if rule.least == 0 and in_flight == 1 and len(self.ready_s) == 1:
            went_s = max(drained_s(0), self.ready_s[0]) + rule.calm_s
            if went_s < now_s:
                # Nobody was here: the last one had gone, and starts again.
                self.paid_s += went_s - self.from_s[0]
                self.ready_s[0], self.from_s[0] = now_s + rule.start_s, now_s
        return [k for k, ready in enumerate(self.ready_s) if ready <= now_s] or list(range(len(self.ready_s)))

    def replica_seconds(self, end_s: float) -> float:
        """Of all replicas, from the start of the run to its end, starting up included."""
        return self.paid_s + sum(max(0.0, end_s - since) for since in self.from_s)
