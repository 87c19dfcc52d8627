"""One replica as a pure state machine: requests in, steps taken, nothing but arithmetic in between.

Steps that change nothing but contexts are taken in one go: m steps of D sequences take m times the step at the middle
context, and the last is the longest; exact where the step model is linear in context. So the work grows with arrivals,
prompts and ends, not with time. The state of a decoding sequence is implied by a counter of steps: it stands in a heap
under the step at which it ends.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from heapq import heapify, heappop, heappush
from math import ceil, gcd, inf

from breakeven.forecast.simulator.policy import Policy, StepTable
from breakeven.forecast.simulator.state import Blocks, Crossings, Jobs, ReplicaSlots

Segment = tuple[float, float, int, int, int, int, int]
"""start_s, step_s (mean), steps, decoding, prompt tokens, waiting, tokens of keys and values in use."""


class Replica:
    """One engine. `clock` is when its last step ended; it stands still while there is nothing to do."""

    __slots__ = (
        "_blocks", "_context", "_cross", "_ends_s", "_heap", "_jobs", "_keeps", "_peaks_at", "_peaks_s", "_planned_s",
        "_policy", "_prefill", "_running", "_runs", "_slots", "_step", "_table", "_waiting", "busy_s", "clock", "ended",
        "number", "preemptions", "segments",
    )  # fmt: skip

    def __init__(self, number: int, table: StepTable, policy: Policy, jobs: Jobs, chunk_tokens: int) -> None:
        block = gcd(policy.block_tokens, chunk_tokens) if jobs.prefix else policy.block_tokens
        self.number = number
        self.clock = 0.0
        self.busy_s = 0.0
        self.preemptions = 0
        self.ended: list[int] = []
        """Requests that ended, in order."""
        self.segments: list[Segment] = []
        self._table, self._policy, self._jobs = table, policy, jobs
        self._blocks = Blocks(policy.kv_tokens, block, chunk_tokens)
        keeps = policy.slot_caching and not policy.prefix_caching and bool(jobs.prefix)
        self._slots = ReplicaSlots(policy.max_sequences if keeps or policy.adjacent else 0)
        self._keeps = keeps
        self._runs: list[int] = []
        """The running ones by pass: together, or apart by runs of adjacent slots. Empty: to be looked at again."""
        self._ends_s: list[float] = []
        self._planned_s = 0.0
        """When the next step is put together, where that is ahead of its start: at the start of the one before."""
        self._waiting: deque[int] = deque()
        self._prefill: deque[int] = deque()
        """Admitted, prompt not read to the end; in order of admission."""
        self._running: dict[int, int] = {}
        """Decoding: the step after which its prompt was read, in order of admission."""
        self._heap: list[tuple[int, int]] = []
        self._step = 0
        self._context = 0
        """Tokens that the decoding sequences attend to, all of them together."""
        self._cross = Crossings(block)
        self._peaks_at: list[int] = []
        self._peaks_s: list[float] = []
        """Steps longer than every later one: the longest gap since any step is the first one after it."""

    @property
    def busy(self) -> bool:
        """True while any request is here."""
        return bool(self._running or self._prefill or self._waiting)

    @property
    def in_flight(self) -> int:
        """Requests here, waiting or not."""
        return len(self._running) + len(self._prefill) + len(self._waiting)

    def load(self, now_s: float) -> int:
        """Requests in flight at a time that lies before the end of the last step or after it."""
        found = self.in_flight
        if self.clock > now_s:
            for end_s in reversed(self._ends_s):
                if end_s <= now_s:
                    break
                found += 1
        return found

    def held(self) -> list[int]:
        """Requests here, in order of their numbers."""
        return sorted([*self._waiting, *self._prefill, *self._running])

    def renumber(self, jobs: Jobs, table: StepTable, number_of: dict[int, int]) -> None:
        """Requests here get other numbers, in the same order, and `jobs` holds their state; what ended is forgotten."""
        self._jobs, self._table = jobs, table
        self._waiting = deque(number_of[i] for i in self._waiting)
        self._prefill = deque(number_of[i] for i in self._prefill)
        # Entries of requests that were preempted mean nothing any more, and some are of requests that are gone.
        kept = [(at, i) for at, i in self._heap if i in self._running]
        self._heap = [(at, number_of[i]) for at, i in kept]
        self._slots.renumber(number_of)
        heapify(self._heap)
        self._running = {number_of[i]: begun for i, begun in self._running.items()}
        self.ended, self.segments = [], []
        self._ends_s = self._ends_s[-self._policy.max_sequences :]

    def refuses(self, i: int) -> bool:
        """True for a request that could not be served even alone."""
        tokens = self._jobs.prompt[i] + self._jobs.output[i] - 1
        if self._policy.slot_tokens is not None and tokens + 1 > self._policy.slot_tokens:
            return True
        if not self._policy.chunked and self._jobs.prompt[i] > self._policy.max_step_tokens:
            return True
        return self._blocks.count(tokens) > self._blocks.total

    def enqueue(self, i: int, at_s: float) -> None:
        """Request `i` arrives."""
        if not self.busy:
            self.clock = self._planned_s = max(self.clock, at_s)
        self._jobs.queued_s[i] = at_s
        self._waiting.append(i)

    def next_end_s(self) -> float:
        """No request here ends before this. Where room runs out some leave, and the others' steps are shorter then."""
        if self._prefill or self._waiting or not self._running:
            return self.clock
        d = len(self._running)
        m, available = max(1, self._heap[0][0] - self._step), self._blocks.available
        if d * ceil(m / self._blocks.block) > available:
            if self._cross.blocks(self._step, 1) > available:
                return self.clock
            m = self._cross.steps_within(self._step, m, available)
        return self.clock + m * self._step_s(self._context / d)

    def advance(self, until_s: float, stop_at: frozenset[int] = frozenset()) -> None:
        """Take every step that starts before `until_s`; stop after one in which a request of `stop_at` ended.

        Takes one step at least when there is anything to do.
        """
        while self.busy:
            n = len(self.ended)
            squeezed = self._make_room()
            prompts = self._plan(may_admit=not squeezed)
            if prompts:
                self._mixed(prompts)
            else:
                self._decode(self.clock if squeezed else until_s)
            if self.clock >= until_s or (stop_at and any(i in stop_at for i in self.ended[n:])):
                return

    # Admission

    def _plan(self, may_admit: bool) -> list[tuple[int, int]]:
        """Prompt tokens of the next step, by request; admits whom there is room for."""
        if not (self._prefill or self._waiting):
            return []
        policy, jobs = self._policy, self._jobs
        budget = policy.max_step_tokens - len(self._running)
        most = policy.prompt_tokens or policy.max_step_tokens
        plan: list[tuple[int, int]] = []
        for i in self._prefill:
            if budget <= 0:
                return plan
            n = min(jobs.target[i] - jobs.read[i], budget, most)
            plan.append((i, n))
            budget -= n
        if not (may_admit and self._waiting):
            return plan
        reserved = self._cross.blocks(self._step, 1)
        planned_s = self._planned_s if policy.ahead and (self._running or self._prefill) else inf
        while self._waiting and budget > 0 and len(self._running) + len(self._prefill) < policy.max_sequences:
            i = self._waiting[0]
            if policy.prompts is not None and len(self._prefill) >= policy.prompts:
                break
            if jobs.queued_s[i] > planned_s or not self._admit(i, budget, reserved, first=not plan):
                break
            self._waiting.popleft()
            self._prefill.append(i)
            n = min(jobs.target[i] - jobs.read[i], budget, most)
            plan.append((i, n))
            budget -= n
        return plan

    def _admit(self, i: int, budget: int, reserved: int, first: bool) -> bool:
        """Take the blocks of request `i`'s whole prompt, if there are enough beside those `reserved` for this step."""
        jobs, blocks = self._jobs, self._blocks
        target = jobs.prompt[i] + jobs.given[i]
        chunk_tokens = blocks.chunk * blocks.block
        ids: tuple[int, ...] = ()
        place = 0
        if jobs.prefix and self._policy.prefix_caching:
            # The last token of a prompt is always read: its output is what comes next.
            ids = jobs.prefix[i][: blocks.held(jobs.prefix[i], (target - 1) // chunk_tokens)]
            hit = len(ids) * chunk_tokens
        elif self._slots:
            place, chunks = self._slots.best(jobs.prefix[i] if self._keeps else (), target, chunk_tokens)
            hit = chunks * chunk_tokens
        else:
            hit = 0
        if not self._policy.chunked and target - hit > budget and not (first and not self._running):
            return False
        own = blocks.count(target) - len(ids) * blocks.chunk
        if own + blocks.idle_among(ids) * blocks.chunk > blocks.available - reserved:
            return False
        blocks.share(ids)
        blocks.take(own)
        if self._slots:
            self._slots.take(place, i)
        jobs.shared[i], jobs.own[i] = list(ids), own
        jobs.read[i], jobs.target[i] = hit, target
        jobs.cached[i] += hit
        return True

    # Steps

    def _mixed(self, prompts: list[tuple[int, int]]) -> None:
        """One step with prompt tokens in it."""
        jobs, d = self._jobs, len(self._running)
        tokens = sum(n for _, n in prompts)
        spans = sum(n * (jobs.read[i] + 0.5 * n) for i, n in prompts)
        context = self._context / d if d else 0.0
        seconds = self._seconds(d, context, tokens, spans / tokens)
        for i, n in prompts:
            jobs.read[i] += n
        self._pass(seconds, 1, tokens, seconds)
        for i, _ in prompts:
            if jobs.read[i] == jobs.target[i]:
                self._prefill.remove(i)
                self._begin(i)

    def _seconds(self, d: int, context: float, tokens: int, span: float) -> float:
        """A step, in one pass or as many as the policy needs."""
        if d and (self._policy.apart or self._policy.adjacent):
            return self._step_s(context) + self._seconds(0, 0.0, tokens, span)
        micro = self._policy.micro_batch
        if micro is None or d + tokens <= micro:
            return self._table.mixed_s(d, context, tokens, span)
        seconds, left = 0.0, tokens
        while left:
            n = min(left, micro - d)
            seconds += self._table.mixed_s(d, context, n, span)
            left, d = left - n, 0
        return seconds

    def _step_s(self, context: float) -> float:
        """A step of the running sequences alone: one pass of them all, or one for each run of adjacent slots."""
        if not self._policy.adjacent:
            return self._table.decode_s(len(self._running), context)
        if not self._runs:
            self._runs = self._slots.runs(self._running)
        return sum(self._table.decode_s(n, context) for n in self._runs)

    def _decode(self, until_s: float) -> None:
        """Steps of the running sequences alone, until one ends, someone else may join or room runs out."""
        d, step_s = len(self._running), self._step_s
        m = self._heap[0][0] - self._step
        if self._waiting and self._policy.ahead and self._jobs.queued_s[self._waiting[0]] > self._planned_s:
            m = 1  # it came after this step was put together, and may join the next
        context, left_s = self._context / d, until_s - self.clock
        seconds = longest_s = step_s(context)
        if m * seconds > left_s:
            m = max(1, ceil(left_s / seconds))
        if m > 1 and m * (mean_s := step_s(context + 0.5 * (m - 1))) > left_s:
            # Steps grow with their contexts, so that fewer may start before `until_s` than the first one says.
            least = ceil(left_s / mean_s)
            m = least + bisect_left(range(least, m), left_s, key=lambda k: k * step_s(context + 0.5 * (k - 1)))
        available = self._blocks.available
        if d * ceil(m / self._blocks.block) > available:
            m = self._cross.steps_within(self._step, m, available)
        if m > 1:
            seconds, longest_s = step_s(context + 0.5 * (m - 1)), step_s(context + m - 1)
        self._pass(seconds, m, 0, longest_s)

    def _pass(self, seconds: float, m: int, prompt_tokens: int, longest_s: float) -> None:
        """`m` steps of `seconds` on average have run, the longest last: clock, contexts, blocks, and who ends."""
        d = len(self._running)
        if d:
            self._blocks.take(self._cross.blocks(self._step, m))
        self.segments.append((self.clock, seconds, m, d, prompt_tokens, len(self._waiting), self._blocks.used_tokens))
        self.clock += m * seconds
        self._planned_s = self.clock - longest_s
        self.busy_s += m * seconds
        self._step += m
        self._context += m * d
        peaks_s, peaks_at = self._peaks_s, self._peaks_at
        while peaks_s and peaks_s[-1] <= longest_s:
            peaks_s.pop()
            peaks_at.pop()
        peaks_s.append(longest_s)
        peaks_at.append(self._step)
        heap, ended = self._heap, []
        while heap and heap[0][0] <= self._step:
            at, i = heappop(heap)
            # What was preempted meanwhile has left its entry behind.
            if i in self._running and self._jobs.ends_at[i] == at and i not in ended:
                ended.append(i)
        if len(ended) > 1 and self._slots:
            ended.sort(key=self._slots.of)  # as an engine goes through its slots
        for i in ended:
            self._end(i)
        self._sweep()

    # One request

    def _begin(self, i: int) -> None:
        """The prompt of `i` is read, which gives one token."""
        jobs, blocks = self._jobs, self._blocks
        if jobs.prefix and self._policy.prefix_caching:
            done = len(jobs.shared[i])
            whole = jobs.target[i] // (blocks.chunk * blocks.block)
            fresh = blocks.publish(jobs.prefix[i][done:whole])
            jobs.shared[i] += fresh
            jobs.own[i] -= len(fresh) * blocks.chunk
        if jobs.given[i] == 0:
            jobs.first_s[i] = self.clock
        else:
            jobs.gap_s[i] = max(jobs.gap_s[i], self.clock - jobs.last_s[i])
        jobs.given[i] += 1
        if jobs.given[i] == jobs.output[i]:
            self._release(i, 0)
            self._finish(i)
            return
        ends_at = self._step + jobs.output[i] - jobs.given[i]
        jobs.ends_at[i] = ends_at
        self._running[i] = self._step
        self._runs = []
        heappush(self._heap, (ends_at, i))
        self._context += jobs.target[i]
        self._cross.add(self._phase(i, self._step), 1)

    def _phase(self, i: int, begun: int) -> int:
        """The step (modulo block) at which a sequence needs a new block: when its context grows past a whole one."""
        return (begun + 1 - self._jobs.target[i]) % self._blocks.block

    def _end(self, i: int) -> None:
        steps = self._step - self._running[i]
        self._stop(i, steps)
        self._jobs.given[i] = self._jobs.output[i]
        self._finish(i)

    def _stop(self, i: int, steps: int) -> None:
        """Take a decoding sequence out after `steps` steps and give its blocks back."""
        jobs = self._jobs
        begun = self._running.pop(i)
        self._runs = []
        self._cross.add(self._phase(i, begun), -1)
        self._context -= jobs.target[i] + steps
        if steps:
            at = bisect_right(self._peaks_at, begun)
            jobs.gap_s[i] = max(jobs.gap_s[i], self._peaks_s[at])
        self._release(i, steps)

    def _release(self, i: int, steps: int) -> None:
        """Give back the blocks of a sequence that has decoded `steps` steps; what may be shared stays cached."""
        jobs, blocks = self._jobs, self._blocks
        read, held = jobs.target[i], jobs.target[i] + steps
        own = jobs.own[i] + blocks.count(held) - blocks.count(read)
        if jobs.prefix and self._policy.prefix_caching:
            chunk_tokens = blocks.chunk * blocks.block
            fresh = blocks.publish(jobs.prefix[i][read // chunk_tokens : held // chunk_tokens])
            jobs.shared[i] += fresh
            own -= len(fresh) * blocks.chunk
        self._slots.give(i, jobs.prefix[i][: read // (blocks.chunk * blocks.block)] if jobs.prefix else ())
        blocks.give(own)
        blocks.leave(jobs.shared[i])
        jobs.shared[i], jobs.own[i] = [], 0

    def _finish(self, i: int) -> None:
        self._jobs.end_s[i] = self.clock
        self._jobs.replica[i] = self.number
        self._ends_s.append(self.clock)
        self.ended.append(i)

    # Room

    def _make_room(self) -> bool:
        """Preempt until every running sequence can take one more step, the one admitted last first; whether any was."""
        if len(self._running) <= self._blocks.available:
            return False
        before = self.preemptions
        while self._running and self._cross.blocks(self._step, 1) > self._blocks.available:
            if self._prefill:
                i = self._prefill.pop()
                self._slots.give(i, ())
                self._blocks.give(self._jobs.own[i])
                self._blocks.leave(self._jobs.shared[i])
                self._jobs.shared[i], self._jobs.own[i] = [], 0
            else:
                i = next(reversed(self._running))
                steps = self._step - self._running[i]
                self._stop(i, steps)
                self._jobs.given[i] += steps
                self._jobs.last_s[i] = self.clock
            self._jobs.preempted[i] += 1
            self.preemptions += 1
            self._waiting.appendleft(i)
            self._sweep()
        return self.preemptions > before

    def _sweep(self) -> None:
        """Drop heap entries of sequences that were preempted, so that the first one is true."""
        heap, jobs = self._heap, self._jobs
        while heap and not (heap[0][1] in self._running and jobs.ends_at[heap[0][1]] == heap[0][0]):
            heappop(heap)
