"""The simulation: arrivals in order of time, replicas moved on to each of them.

Traces longer than memory are played a part at a time, and only requests in flight are carried from part to part. The
parts give what the whole would: replicas keep their state, requests change their numbers and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import overload

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.forecast.balancing import home_of
from breakeven.forecast.memory import on_gpu
from breakeven.forecast.model import StepModel
from breakeven.forecast.simulator.engine import Replica
from breakeven.forecast.simulator.policy import (
    BALANCING,
    POLICIES,
    Fleet,
    Policy,
    Scaler,
    StepTable,
    gateway,
    policy_by_device,
    policy_named,
    table_of,
)
from breakeven.forecast.simulator.results import Simulation, simulation_of
from breakeven.forecast.simulator.state import NOBODY, Jobs, Requests
from breakeven.traffic.workload import Slo

_LEAST_CONTEXT = 8192
BETWEEN_STOPS = 256


def simulate(
    requests: Requests, model: StepModel, policy: Policy | None = None, fleet: Fleet | None = None
) -> Simulation:
    """Serve `requests` with replicas of `model`; the same arguments give the same result, to the last bit.

    `policy` None: that of the engine the profile is of, with the keys and values that fit beside the weights.
    Raises UserError for an engine without a known policy.
    """
    if policy is None:
        lengths_N = requests.prompt_tokens_N + requests.output_tokens_N
        policy = policy_of(model, float(lengths_N.mean()) if len(requests) else None)
    return Run(requests, model, policy, fleet or Fleet()).result()


def table_for(requests: Requests, model: StepModel, policy: Policy, sequences: int | None = None) -> StepTable:
    """Step times for these requests; `sequences` None: as many as they are, if that is fewer than the policy's."""
    longest = int((requests.prompt_tokens_N + requests.output_tokens_N).max()) if len(requests) else 1
    most = min(policy.max_sequences, max(1, len(requests) if sequences is None else sequences))
    tokens = policy.micro_batch or policy.max_step_tokens
    return table_of(model, most, tokens, 1 << max(_LEAST_CONTEXT, longest).bit_length())


def policy_of(model: StepModel, context: float | None = None) -> Policy:
    """The policy of the engine that `model`'s profile is of, with the keys and values that fit beside the weights.

    `context`: usual length of a sequence in tokens, where sliding windows save memory. Raises UserError for an engine
    without a known policy, and for a model that leaves no room.
    """
    profile, policy = model.profile, policy_named(model.profile.engine)
    on_cpu = POLICIES.get(f"{policy.name}-cpu")
    if on_cpu is not None and (profile.chip or profile.machine) and not on_gpu(profile):
        policy = on_cpu
    else:
        policy = policy_by_device(policy, profile.memory_bytes or 0, profile.chip.slug if profile.chip else "")
    room = model.kv_tokens(context)
    if room is not None and room < 1:
        raise UserError(
            f"{model.terms.name} in {model.format_label} leaves no room for keys and values on {model.profile.name}; "
            "give a smaller format, more devices or another machine"
        )
    return replace(policy, kv_tokens=room)


class Run:
    """One simulation in progress."""

    def __init__(self, requests: Requests, model: StepModel, policy: Policy, fleet: Fleet) -> None:
        self.requests, self.policy = requests, policy
        self.jobs = Jobs(requests)
        table = table_for(requests, model, policy)
        self.replicas = [Replica(k, table, policy, self.jobs, requests.prefix_tokens) for k in range(fleet.most)]
        self.scaler = Scaler(fleet)
        self.pick = BALANCING[fleet.balancing]
        self.rng = Random(fleet.seed)
        self.seed = fleet.seed
        self.fixed_size = fleet.autoscale is None
        self.arrival_s: list[float] = requests.arrival_s_N.tolist()
        self.sent = 0
        self.reached = 0
        """The last request that came at a time of its own."""
        fixed_N = np.flatnonzero(np.isfinite(requests.arrival_s_N))
        self.fixed: list[int] = fixed_N[np.argsort(requests.arrival_s_N[fixed_N], kind="stable")].tolist()
        self.due: list[tuple[float, int]] = []
        self._dependants(requests)

    def _dependants(self, requests: Requests) -> None:
        """Who waits for whom, and the first requests of a closed loop."""
        n = len(requests)
        self.next_turn = [NOBODY] * n
        self.think_s = [0.0] * n if requests.think_s_N is None else requests.think_s_N.tolist()
        if requests.after_N is not None:
            for i, before in enumerate(requests.after_N.tolist()):
                if before != NOBODY:
                    self.next_turn[before] = i
        self.closed: deque[int] = deque()
        if requests.streams is not None:
            self.closed.extend(np.flatnonzero(requests.heads & np.isnan(requests.arrival_s_N)).tolist())
            for _ in range(min(requests.streams, len(self.closed))):
                heappush(self.due, (0.0, self.closed.popleft()))
        self.watched: frozenset[int] = frozenset()
        if requests.streams is not None:
            self.watched = frozenset(range(n))
        elif requests.after_N is not None:
            self.watched = frozenset(requests.after_N[requests.after_N != NOBODY].tolist())
        self.least_think_s = min(self.think_s, default=0.0)
        """The least time from an answer to what follows it; of turns where only these follow."""
        if requests.streams is None and requests.after_N is not None:
            follow = [self.think_s[i] for i in np.flatnonzero(requests.after_N != NOBODY).tolist()]
            self.least_think_s = min(follow, default=0.0)
        # Only the gateway's rule looks at two replicas; the others need every one as it stands.
        self.drawn = self.pick is gateway and self.fixed_size and not self.watched
        self.sessions = self._sessions(requests)

    def _sessions(self, requests: Requests) -> list[int]:
        """A number by request that its conversation has and no other; 0: a request of its own."""
        found = [0] * len(requests)
        if requests.after_N is None:
            return found
        rng = Random(f"sessions {self.seed}")
        for i, before in enumerate(requests.after_N.tolist()):
            if before != NOBODY:
                found[i] = found[before]
            elif self.next_turn[i] != NOBODY:
                found[i] = rng.getrandbits(63) | 1
        return found

    def result(self) -> Simulation:
        """Play to the end."""
        self.play(to_end=True)
        return self.outcome()

    def outcome(self) -> Simulation:
        """What has been simulated so far, as arrays."""
        end_s = max((r.clock for r in self.replicas), default=0.0)
        return simulation_of(self.requests, self.jobs, self.arrival_s, self.replicas, self.policy, self.scaler, end_s)

    def late(self, slo: Slo) -> NDArray[np.bool_]:
        """Requests of which it is known by now that they miss `slo`, whatever comes; gaps are not looked at."""
        arrival_s_N = np.asarray(self.arrival_s)
        first_s_N, end_s_N = np.asarray(self.jobs.first_s), np.asarray(self.jobs.end_s)
        found_N = np.asarray(self.jobs.refused, np.bool_)
        with np.errstate(invalid="ignore", divide="ignore"):
            if slo.ttft_s is not None:
                found_N |= first_s_N - arrival_s_N > slo.ttft_s
            if slo.e2e_s is not None:
                found_N |= end_s_N - arrival_s_N > slo.e2e_s
            if slo.tpot_s is not None:
                output_N = self.requests.output_tokens_N
                found_N |= (output_N > 1) & ((end_s_N - first_s_N) / np.maximum(output_N - 1, 1) > slo.tpot_s)
        return found_N

    def play(self, to_end: bool, stop: Callable[[Run], bool] | None = None) -> None:
        """Serve every arrival; `to_end` False: leave in the replicas what is there when the last one has come.

        `stop` is asked every `BETWEEN_STOPS` arrivals whether to leave it at that.
        """
        move = self._move_drawn if self.drawn else self._move_together if self.watched else self._move_alone
        at = 0
        while True:
            fixed_s = self.arrival_s[self.fixed[at]] if at < len(self.fixed) else inf
            due_s = self.due[0][0] if self.due else inf
            now_s = min(fixed_s, due_s)
            if now_s == inf and not to_end:
                if self.fixed:
                    self._move_alone(self.arrival_s[self.fixed[-1]] + self.policy.front_s)
                return
            if not move(now_s + self.policy.front_s):
                continue
            if now_s == inf:
                return
            if due_s < fixed_s:
                _, i = heappop(self.due)
                self.arrival_s[i] = now_s
            else:
                i = self.fixed[at]
                at += 1
                self.reached = i
                if stop is not None and at % BETWEEN_STOPS == 0 and stop(self):
                    return
            self._arrive(i, now_s)

    def _move_alone(self, until_s: float) -> bool:
        """No request waits for another: replicas do not meet between arrivals."""
        for replica in self.replicas:
            if replica.clock < until_s and replica.busy:
                replica.advance(until_s)
        return True

    def _move_drawn(self, until_s: float) -> bool:
        """A replica stands where it was last looked at, until it is looked at again or the run ends."""
        return until_s < inf or self._move_alone(until_s)

    def _move_together(self, until_s: float) -> bool:
        """Move replicas on, none further than where what another one ends first may bring it a request.

        Who ends nothing before `until_s` stays behind until it takes a request. False when a request became due, which
        may be before `until_s`.
        """
        while True:
            ends = [
                (end_s, r)
                for r in self.replicas
                if r.busy and r.clock < until_s and (end_s := r.next_end_s()) < until_s
            ]
            if not ends:
                return True
            first_s, first = min(ends, key=lambda found: found[0])
            if self.least_think_s > 0:
                # Nothing can follow before someone has thought about what ends first.
                to_s = min(until_s, first_s + self.least_think_s)
                moved = [(r, len(r.ended)) for end_s, r in ends if end_s < to_s]
                for r, _ in moved:
                    r.advance(to_s)
            else:
                to_s = min((end_s for end_s, r in ends if r is not first), default=until_s)
                moved = [(first, len(first.ended))]
                first.advance(to_s, self.watched)
            if self._answered(moved):
                return False

    def _answered(self, moved: list[tuple[Replica, int]]) -> bool:
        """Requests that wait for those that replicas ended since `seen` become due; whether there are any."""
        ended = [i for replica, seen in moved for i in replica.ended[seen:]]
        if len(moved) > 1:
            ended.sort(key=self.jobs.end_s.__getitem__)
        found = False
        for i in ended:
            found |= self._follows(i, self.jobs.end_s[i])
        return found

    def _follows(self, i: int, now_s: float) -> bool:
        """What waits for request `i`, which ended now, becomes due."""
        follower = self.next_turn[i]
        if follower == NOBODY:
            if not self.closed:
                return False
            follower = self.closed.popleft()
            now_s += self.think_s[i]
        else:
            now_s += self.think_s[follower]
        if now_s > self.requests.closes_s:
            return False
        heappush(self.due, (now_s, follower))
        return True

    def _arrive(self, i: int, now_s: float) -> None:
        present = self.replicas
        if present[0].refuses(i):
            self.jobs.refused[i] = True
            self._follows(i, now_s)
            return
        at_s = now_s + self.policy.front_s
        if len(present) == 1 and self.fixed_size:
            self._give(i, present[0], at_s)
            return
        if self.drawn:
            k = self.pick(_LoadsWhenAsked(present, at_s), self.sent, None, self.rng)
        else:
            loads = [replica.load(at_s) for replica in present]
            takers = self.scaler.decide(
                now_s, sum(loads) + 1, lambda k: max(present[k].clock, now_s) if loads[k] else present[k].clock
            )
            home = home_of(session, len(self.scaler.ready_s)) if (session := self.sessions[i]) else None
            place = takers.index(home) if home is not None and home in takers else None
            k = takers[self.pick([loads[k] for k in takers], self.sent, place, self.rng)]
            # Where none has started yet, it waits for the one it goes to.
            at_s = max(at_s, self.scaler.ready_s[k] + self.policy.front_s)
        self.sent += 1
        self._give(i, present[k], at_s)

    def _give(self, i: int, replica: Replica, at_s: float) -> None:
        if replica.clock < at_s and replica.busy:
            seen = len(replica.ended)
            # Its last step may go on past `at_s`, and end something then.
            replica.advance(at_s)
            self._answered([(replica, seen)])
        replica.enqueue(i, at_s)


class _LoadsWhenAsked(Sequence[int]):
    """Requests in flight by replica at a time; whoever is looked at is moved on to it first."""

    __slots__ = ("_at_s", "_replicas")

    def __init__(self, replicas: list[Replica], at_s: float) -> None:
        self._replicas, self._at_s = replicas, at_s

    def __len__(self) -> int:
        return len(self._replicas)

    @overload
    def __getitem__(self, k: int) -> int: ...

    @overload
    def __getitem__(self, k: slice) -> Sequence[int]: ...

    def __getitem__(self, k: int | slice) -> int | Sequence[int]:
        if isinstance(k, slice):
            return [self[j] for j in range(*k.indices(len(self)))]
        replica = self._replicas[k]
        if replica.clock < self._at_s and replica.busy:
            replica.advance(self._at_s)
        return replica.load(self._at_s)


def simulate_parts(
    parts: Iterable[Requests], model: StepModel, policy: Policy, fleet: Fleet | None = None
) -> Iterator[Simulation]:
    """What each part brought to its end, as a Simulation in which the others are missing: `served` or `refused_N` tell.

    `parts` follow each other in time. Times, busy and replica seconds count from the start of the first part. Raises
    UserError for requests that wait for answers, or that come before those of the part before.
    """
    run: Run | None = None
    last_s = 0.0
    for part in parts:
        if part.depends:
            raise UserError("a trace of conversations cannot be read in parts; cut it to a window that fits in memory")
        if not len(part):
            continue
        if float(part.arrival_s_N.min()) < last_s:
            raise UserError("a trace read in parts must be in order of time; sort it first")
        last_s = float(part.arrival_s_N.max())
        if run is None:
            run = Run(part, model, policy, fleet or Fleet())
            # Later parts may be larger than the first one.
            _enter(run, part, model, [])
        else:
            kept = sorted(i for replica in run.replicas for i in replica.held())
            _enter(run, _joined(run.requests, kept, part), model, kept)
        run.play(to_end=False)
        yield run.outcome()
    if run is not None:
        kept = sorted(i for replica in run.replicas for i in replica.held())
        _enter(run, _joined(run.requests, kept, None), model, kept)
        run.play(to_end=True)
        yield run.outcome()


def _enter(run: Run, requests: Requests, model: StepModel, kept: list[int]) -> None:
    """`run` goes on with `requests`, of which the first are the `kept` ones of those before."""
    jobs = Jobs(requests)
    jobs.take_over(run.jobs, kept)
    table = table_for(requests, model, run.policy, run.policy.max_sequences)
    numbers = {old: new for new, old in enumerate(kept)}
    for replica in run.replicas:
        replica.renumber(jobs, table, numbers)
    run.requests, run.jobs = requests, jobs
    run.arrival_s = requests.arrival_s_N.tolist()
    fresh_N = np.arange(len(kept), len(requests))
    run.fixed = fresh_N[np.argsort(requests.arrival_s_N[fresh_N], kind="stable")].tolist()
    run.next_turn, run.sessions = [NOBODY] * len(requests), [0] * len(requests)


def _joined(before: Requests, kept: list[int], part: Requests | None) -> Requests:
    """The `kept` requests of before, then the new part."""
    rows = np.asarray(kept, np.int64)
    arrival_s_N, prompt_N, output_N = (
        before.arrival_s_N[rows],
        before.prompt_tokens_N[rows],
        before.output_tokens_N[rows],
    )
    prefix = tuple(before.prefix[i] for i in kept) if before.prefix else ((),) * len(kept)
    shares = bool(before.prefix)
    if part is not None:
        arrival_s_N = np.concatenate([arrival_s_N, part.arrival_s_N])
        prompt_N = np.concatenate([prompt_N, part.prompt_tokens_N])
        output_N = np.concatenate([output_N, part.output_tokens_N])
        prefix += part.prefix or ((),) * len(part)
        shares |= bool(part.prefix)
    return Requests(
        arrival_s_N, prompt_N, output_N, prefix=prefix if shares else (), prefix_tokens=before.prefix_tokens
    )
