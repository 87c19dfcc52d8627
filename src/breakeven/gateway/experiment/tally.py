"""What an experiment's records add up to: one `ArmTally` that a record changes in constant time and memory.

It is what the watching process saves, so a restart goes on where it was.
"""

from __future__ import annotations

import msgspec

from breakeven.gateway.experiment.assign import backend_of, distinct_share, length_spread, place
from breakeven.gateway.plan.model import ExperimentPlan
from breakeven.gateway.route.choose import BROKEN
from breakeven.gateway.seen.record import DecisionRecord
from breakeven.stats.moments import NOTHING, Cluster, Moments

MEANS = ("ttft", "tpot", "e2e", "usd", "output_tokens")
SHARES = ("errors", "refusals")
VARIETY = ("distinct_answers", "length_spread")
ALONE = (*MEANS, *SHARES)
"""What one request has a value of."""
METRICS = (*ALONE, *VARIETY)
BUCKETS = 1024
"""Users are put together in this many clusters by a hash, so that memory stays bounded; independent users make
independent clusters, and a variance over a thousand of them is as good as known."""
WAITING = 10_000
"""Requests whose copy, or copies whose request, has not ended yet; older ones are forgotten."""
GROUPS = 2000
"""Prompts asked several times over whose answers are still added to."""
CLIENT_LEFT = 499

Values = list[float | None]
"""By place in `ALONE`; None: does not count for this metric."""


def values_of(record: DecisionRecord, backend: str) -> Values | None:
    """What a record says of the backend of its arm; None when it says nothing.

    Judged by what the arm's own backend did, not by what a failover saved: a request that another backend had to
    answer is an error of the arm, and so is one that was not sent to it because its breaker is open: else a backend
    that is down would look as if nobody had wanted it. Nothing is said where it was not asked for another reason (too
    long for it, no place), or was outrun by a hedge. Of a client that left nothing is counted; times, tokens and
    dollars count for whole answers only.
    """
    asked = record.backend == backend or any(attempt.backend == backend for attempt in record.attempts)
    asked = asked or any(score.backend == backend and score.why_not == BROKEN for score in record.scores)
    outrun = record.backend != backend and any(attempt.hedge for attempt in record.attempts)
    if not asked or outrun or record.status == CLIENT_LEFT:
        return None
    if record.backend != backend or not 200 <= record.status < 400 or record.finish == "cut" or record.error:
        return [None, None, None, None, None, 1.0, None]
    tokens = None if record.output_tokens is None else float(record.output_tokens)
    times = [record.ttft_s, record.tpot_s, record.e2e_s, record.usd, tokens]
    return [*times, 0.0, float(record.refusal)]


def cluster_unit(plan: ExperimentPlan, record: DecisionRecord) -> str:
    """Who must be counted together: the key, or the conversation or user. Empty: the request stands alone."""
    if plan.sticky_by == "key":
        return record.key
    return str(record.session) if record.session else ""


class PromptGroup(msgspec.Struct):
    """Answers of one arm to one prompt."""

    digests: list[str] = []
    lengths: list[float] = []
    counted: list[Cluster] = []
    """By place in VARIETY: what of it is in the sums."""


class ArmTally(msgspec.Struct):
    """Everything known of two arms. Arm 0 is the control, 1 the treatment."""

    requests: list[int] = msgspec.field(default_factory=lambda: [0, 0])
    moments: dict[str, Moments] = msgspec.field(default_factory=lambda: {name: Moments() for name in METRICS})
    hits: dict[str, list[int]] = msgspec.field(default_factory=lambda: {name: [0, 0, 0, 0] for name in SHARES})
    """Of a share: control's hits and count, treatment's hits and count."""
    clustered: bool = False
    """Some requests came from users that may come again."""
    buckets: dict[int, list[Cluster]] = {}
    """By bucket of users, what of each metric is in the sums."""
    waiting: dict[str, tuple[int, Values]] = {}
    """A shadow's half pairs by the request's id: arm and values."""
    groups: dict[str, PromptGroup] = {}

    def add(self, plan: ExperimentPlan, record: DecisionRecord) -> None:
        """One record of this experiment."""
        if record.arm not in ("control", "treatment"):
            return
        arm = 1 if record.arm == "treatment" else 0
        values = values_of(record, backend_of(plan, record.arm))  # type: ignore[arg-type]
        if record.group and values is not None and record.answer_hash:
            self._add_answer(arm, record, plan.treatment if arm else plan.control)
        if record.group and record.shadow_of:
            return  # A repetition says how answers vary; counted as a request it would count its prompt twice.
        self.requests[arm] += 1
        if values is None:
            return
        for place_, name in enumerate(SHARES, len(MEANS)):
            if (value := values[place_]) is not None:
                self.hits[name][2 * arm] += int(value)
                self.hits[name][2 * arm + 1] += 1
        unit = cluster_unit(plan, record)
        if plan.kind != "shadow":
            if unit:
                self._put(unit, [_cluster(arm, value) for value in values])
                return
            for name, value in zip(ALONE, values, strict=True):
                if value is not None:
                    self.moments[name].one(arm, value)
            return
        pair = record.shadow_of or record.id
        other = self.waiting.pop(pair, None)
        if other is None or other[0] == arm:
            self.waiting[pair] = (arm, values)
            if len(self.waiting) > WAITING:
                del self.waiting[next(iter(self.waiting))]
            return
        both = zip(values, other[1], strict=True)
        self._put(unit, [_pair(arm, mine, theirs) for mine, theirs in both])

    def count(self, metric: str, arm: int) -> int:
        """Observations of one metric in one arm."""
        return self.hits[metric][2 * arm + 1] if metric in self.hits else round(self.moments[metric].count(arm))

    def control_only(self) -> ArmTally:
        """A new tally that knows this one's control and no treatment."""
        moments = {name: one.control_only() for name, one in self.moments.items()}
        hits = {name: [*counts[:2], 0, 0] for name, counts in self.hits.items()}
        return ArmTally(requests=[self.requests[0], 0], moments=moments, hits=hits, clustered=self.clustered)

    def _put(self, unit: str, clusters: list[Cluster]) -> None:
        if not unit:
            for name, cluster in zip(ALONE, clusters, strict=True):
                if cluster is not NOTHING:
                    self.moments[name].add(cluster)
            return
        self.clustered = True
        bucket = int(place("clusters", unit) * BUCKETS)
        old = self.buckets.get(bucket)
        if old is None:
            old = [NOTHING] * len(ALONE)
        new = [_sum(a, b) for a, b in zip(old, clusters, strict=True)]
        for name, before, after in zip(ALONE, old, new, strict=True):
            if before is not after:
                self.moments[name].replace(before, after)
        self.buckets[bucket] = new

    def _add_answer(self, arm: int, record: DecisionRecord, backend: str) -> None:
        name = f"{arm} {record.group}"
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = PromptGroup(counted=[NOTHING] * len(VARIETY))
            if len(self.groups) > GROUPS:
                del self.groups[next(iter(self.groups))]
        group.digests.append(record.answer_hash)
        group.lengths.append(float(record.output_tokens or 0))
        found = (distinct_share(group.digests), length_spread(group.lengths))
        for i, (metric, value) in enumerate(zip(VARIETY, found, strict=True)):
            new = _cluster(arm, value)
            self.moments[metric].replace(group.counted[i], new)
            group.counted[i] = new


def _cluster(arm: int, value: float | None) -> Cluster:
    if value is None:
        return NOTHING
    return (0.0, 0.0, 1.0, value) if arm else (1.0, value, 0.0, 0.0)


def _pair(arm: int, mine: float | None, theirs: float | None) -> Cluster:
    if mine is None or theirs is None:
        return NOTHING
    return (1.0, theirs, 1.0, mine) if arm else (1.0, mine, 1.0, theirs)


def _sum(a: Cluster, b: Cluster) -> Cluster:
    return a if b is NOTHING else (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])
