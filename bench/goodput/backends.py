"""Backends that are simulated: an engine with the real step model and scheduler, or a hosted model with a latency.

Both write into `Jobs.first_s` and `Jobs.end_s`; whoever reads them looks only at times that have passed.
"""

from __future__ import annotations

from copy import copy, deepcopy
from math import inf
from random import Random
from typing import Protocol

from bench.goodput.cases import Place, steps_of, true_steps
from breakeven.forecast.simulator.engine import Replica
from breakeven.forecast.simulator.run import table_for
from breakeven.forecast.simulator.state import Jobs, Requests

MOST_RUNNING = 512
"""Sequences in a step that tables are made for; engines are not sent more than they take."""


class Server(Protocol):
    """Takes requests and answers them in simulated time."""

    def send(self, i: int, now_s: float) -> None:
        """Request `i` arrives."""

    def move(self, now_s: float) -> None:
        """Everything that begins before `now_s` has begun."""

    def load(self, now_s: float) -> int:
        """Requests here, as its own metrics would say."""

    def fork(self, held: list[int], new: int, now_s: float) -> tuple[list[float], list[float]]:
        """First and last token of `held` and then `new`, were nobody else ever to come after `new`."""


class Engine:
    """`predict.simulate`'s replica, one for every model and machine."""

    def __init__(self, place: Place, asked: Requests, jobs: Jobs, truth: int) -> None:
        """`truth`: seed of how far the machine is from its step model."""
        assert place.machine is not None
        context = usual_context(asked)
        _, batching = steps_of(place.model, place.machine, context)
        steps = true_steps(place.model, place.machine, context, truth)
        self._jobs, self._table, self._batching = jobs, table_for(asked, steps, batching, MOST_RUNNING), batching
        self._replica = Replica(0, self._table, batching, jobs, 512)

    @property
    def busy_s(self) -> float:
        """Seconds it had something to do."""
        return self._replica.busy_s

    def send(self, i: int, now_s: float) -> None:
        """See `Server`."""
        self._replica.enqueue(i, now_s + self._batching.front_s)

    def move(self, now_s: float) -> None:
        """See `Server`."""
        replica = self._replica
        if replica.busy and replica.clock < now_s:
            replica.advance(now_s)

    def load(self, now_s: float) -> int:
        """See `Server`."""
        return self._replica.load(now_s)

    def fork(self, held: list[int], new: int, now_s: float) -> tuple[list[float], list[float]]:
        """See `Server`. A copy of the engine, of the requests in it alone, plays on to its end."""
        replica, jobs = self._replica, self._jobs
        inside = replica.held()
        numbers = [*inside, new]
        few = _part(jobs, numbers)
        twin = _twin(replica)
        twin.renumber(few, self._table, {i: k for k, i in enumerate(inside)})
        twin.enqueue(len(inside), now_s + self._batching.front_s)
        twin.advance(inf)
        at = {i: k for k, i in enumerate(numbers)}
        asked = [*held, new]
        # Requests that end within the step under way are known to the engine already.
        first_s = [few.first_s[at[i]] if i in at else jobs.first_s[i] for i in asked]
        return first_s, [few.end_s[at[i]] if i in at else jobs.end_s[i] for i in asked]


class Hosted:
    """A hosted model: as fast whoever else is there, but for chance."""

    SPREAD = 0.3
    """Standard deviation of ln(TTFT); of ln(TPOT) it is half of that. An assumption."""

    def __init__(self, place: Place, asked: Requests, jobs: Jobs, seed: int) -> None:
        """Draws the latency of every request, so that all rules meet the same."""
        assert place.speed is not None
        dice = Random(seed)
        off = dice.gauss(0.0, self.SPREAD)
        n = len(asked)
        self._ttft_s = [place.speed.ttft_s * 2.718281828 ** (off + dice.gauss(0.0, self.SPREAD)) for _ in range(n)]
        self._tpot_s = [2.718281828 ** dice.gauss(0.0, self.SPREAD / 2) / place.speed.tokens_per_s for _ in range(n)]
        self._jobs = jobs
        self.busy_s = 0.0

    def send(self, i: int, now_s: float) -> None:
        """See `Server`."""
        jobs = self._jobs
        jobs.first_s[i], jobs.end_s[i] = self._times(i, now_s)

    def move(self, now_s: float) -> None:
        """Nothing waits for anything."""

    def load(self, now_s: float) -> int:
        """It says nothing of its load."""
        return 0

    def fork(self, held: list[int], new: int, now_s: float) -> tuple[list[float], list[float]]:
        """See `Server`."""
        first_s, end_s = self._times(new, now_s)
        jobs = self._jobs
        return [*(jobs.first_s[i] for i in held), first_s], [*(jobs.end_s[i] for i in held), end_s]

    def _times(self, i: int, now_s: float) -> tuple[float, float]:
        first_s = now_s + self._ttft_s[i]
        return first_s, first_s + (self._jobs.output[i] - 1) * self._tpot_s[i]


def server_of(place: Place, asked: Requests, jobs: Jobs, seed: int) -> Engine | Hosted:
    """A backend of either kind; a negative `seed`: its step model is right."""
    return Hosted(place, asked, jobs, seed) if place.machine is None else Engine(place, asked, jobs, seed)


def usual_context(asked: Requests) -> float:
    """Tokens of a request, prompt and answer, rounded so that cuts of one trace share their tables."""
    mean = float((asked.prompt_tokens_N + asked.output_tokens_N).mean())
    return float(round(mean, -2) or 100.0)


def _part(jobs: Jobs, numbers: list[int]) -> Jobs:
    part = object.__new__(Jobs)
    for name in Jobs.__slots__:
        column = getattr(jobs, name)
        setattr(part, name, [column[i] for i in numbers] if column else column)
    part.shared = [list(ids) for ids in part.shared]
    return part


def _twin(replica: Replica) -> Replica:
    twin = object.__new__(Replica)
    for name in Replica.__slots__:
        value = getattr(replica, name)
        if name not in _FIXED:
            value = deepcopy(value) if name in _OF_PARTS else copy(value)
        setattr(twin, name, value)
    return twin


_FIXED = ("_jobs", "_policy", "_table", "segments")
_OF_PARTS = ("_blocks", "_cross", "_slots")
