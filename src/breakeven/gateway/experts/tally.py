"""What is seen of one backend's experts, said: load by layer, drift since last week, who is apart, alarms.

Pure but for `save` and `resume`: no clock and no socket.

Legend: L layers that route, E experts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from breakeven.gateway.experts.gathered import (
    DAY_S,
    DAYS,
    LEAST_REQUESTS,
    LEAST_TOKENS,
    Floats,
    Gathered,
    Group,
    Sums,
    apart_L,
    by_chance_L,
    shares_of,
)
from breakeven.gateway.experts.kept import keep, read_kept, unpacked
from breakeven.gateway.experts.report import BackendExperts, GroupSeen, LayerSeen, Source

DEAD_FROM = 20
"""Choices that an even spread would have sent to an expert before one without any is called dead; and see `enough`."""
HOT = 2.0
"""Times the mean; an expert surely above is hot."""
SURE = 1.96
"""Standard errors on one side of a 95 % interval."""
UNSURE = 0.05
"""Of alarms of imbalance, as many as chance alone may raise where nothing is above the bound."""
BEFORE = 7
"""Days that the last one is held against."""
MINUTE_S = 60
ALARM_FROM = 2.0
"""Times what chance makes of it, below which a drift is no alarm."""


class SeenExperts:
    """What is seen of one backend. `observe`: share that is looked at; `imbalance`, `drift`: bounds of alarms."""

    def __init__(
        self,
        backend: str,
        model: str | None,
        source: Source,
        *,
        observe: float | None = None,
        imbalance: float | None = None,
        drift: float | None = None,
    ) -> None:
        """Nothing seen yet."""
        self.backend, self.model, self.source = backend, model, source
        self.observe, self.imbalance, self.drift = observe, imbalance, drift
        self.skipped: dict[str, int] = {}
        self._seen: Gathered | None = None
        self._cpu_s: float | None = None
        self._engine_cpu_s: float | None = None
        self._minute: tuple[int, Floats] | None = None
        """The last minute of an engine that counts by itself, and what it counted in it."""
        self._note = ""
        """Why counting began anew."""
        self._busy: tuple[int, int] | None = None
        """Row and expert of an alarm of imbalance that has not ended."""
        self._drifted = False
        """An alarm of drift has not ended."""

    def add(
        self,
        layers: Sequence[int],
        choices_LE: ArrayLike,
        *,
        tokens: int,
        key: str = "",
        language: str = "",
        at_s: float,
    ) -> None:
        """One request, or what an engine counted between two looks. `at_s`: Unix time.

        A request is many looks long, so looks of one minute are taken as one: what is independent must be apart.

        What is no matrix of counts for these layers is left out. Another model's shape begins everything anew.
        """
        counts_LE = np.asarray(choices_LE, dtype=np.float64)
        if counts_LE.ndim != 2 or len(counts_LE) != len(layers) or not counts_LE.size:
            return
        if not np.isfinite(counts_LE).all() or counts_LE.min() < 0 or not counts_LE.any():
            return
        seen = self._of_shape(tuple(layers), counts_LE.shape[1], at_s)
        if seen.n_experts > counts_LE.shape[1]:
            counts_LE = np.pad(counts_LE, ((0, 0), (0, seen.n_experts - counts_LE.shape[1])))
        minute, joined_LE = int(at_s // MINUTE_S), None
        if self.source == "counted":
            if self._minute is not None and self._minute[0] == minute and self._minute[1].shape == counts_LE.shape:
                joined_LE = self._minute[1]
            self._minute = (minute, counts_LE if joined_LE is None else joined_LE + counts_LE)
        seen.add(counts_LE, tokens, key, language, at_s, joined_LE)

    def _of_shape(self, layers: tuple[int, ...], n_experts: int, at_s: float) -> Gathered:
        seen = self._seen
        if seen is not None and seen.layers == layers:
            if self.source != "observed":
                # Where nobody says how many experts there are, the highest number seen tells.
                seen.widen(n_experts)
                return seen
            if seen.n_experts == n_experts:
                return seen
        if seen is not None:
            self._note, self._minute = "Another model's routing came, so counting began anew.", None
            self._busy, self._drifted = None, False
        self._seen = Gathered.of(layers, n_experts, at_s)
        return self._seen

    def skip(self, reason: str) -> None:
        """A request that was to be looked at and was not."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def spent(self, cpu_s: float, engine_cpu_s: float | None) -> None:
        """CPU seconds that looking and the engine took since this process started; totals, not differences."""
        self._cpu_s, self._engine_cpu_s = cpu_s, engine_cpu_s

    # What it says.

    def report(self, now_s: float) -> BackendExperts | None:
        """All of it; `now_s` in Unix time. None: nothing was seen and nothing skipped."""
        seen = self._seen
        if seen is None:
            return self._nothing() if self.skipped else None
        whole = seen.whole
        per_token = self._per_token(whole)
        drift_L, chance_L = self._drift_L(seen, now_s)
        layers = _layers(seen, per_token, drift_L, chance_L)
        worst = max(layers, key=lambda layer: layer.imbalance)
        drift = None if drift_L is None else float(np.nanmean(drift_L))
        chance = None if chance_L is None else float(np.nanmean(chance_L))
        alarms, watched = self._alarms(seen, now_s, drift, chance)
        return BackendExperts(
            backend=self.backend,
            model=self.model,
            source=self.source,
            observe=self.observe,
            n_experts=seen.n_experts,
            n_experts_per_token=per_token,
            requests=None if self.source == "counted" else whole.requests,
            tokens=whole.tokens,
            since_s=seen.since_s,
            until_s=seen.until_s,
            skipped=dict(self.skipped),
            cpu_s=self._cpu_s,
            engine_cpu_s=self._engine_cpu_s,
            layers=layers,
            keys=_told(seen.keys, whole),
            languages=_told(seen.languages, whole),
            imbalance=worst.imbalance,
            worst_layer=worst.layer,
            entropy=float(np.mean([layer.entropy for layer in layers])),
            dead=sum(len(layer.dead) for layer in layers),
            hot=sum(len(layer.hot) for layer in layers),
            drift=drift,
            drift_by_chance=chance,
            alarms=alarms,
            caveats=self._caveats(seen),
            watched=watched,
        )

    def _nothing(self) -> BackendExperts:
        return BackendExperts(
            backend=self.backend,
            model=self.model,
            source=self.source,
            observe=self.observe,
            n_experts=0,
            n_experts_per_token=None,
            requests=0,
            tokens=0,
            since_s=0.0,
            until_s=0.0,
            skipped=dict(self.skipped),
            cpu_s=self._cpu_s,
            engine_cpu_s=self._engine_cpu_s,
            layers=[],
            keys=[],
            languages=[],
            imbalance=1.0,
            worst_layer=0,
            entropy=1.0,
            dead=0,
            hot=0,
            drift=None,
            drift_by_chance=None,
            alarms=[],
            caveats=["No request could be looked at yet: see what was skipped and why."],
        )

    def _per_token(self, whole: Sums) -> int | None:
        """Experts a token; None where tokens are not known apart from choices."""
        if self.source == "counted" or not whole.tokens:
            return None
        each = float(whole.all_L.max()) / whole.tokens
        return round(each) if abs(each - round(each)) < 1e-3 and round(each) > 0 else None

    def _lately(self, seen: Gathered, now_s: float, most: int = 2) -> tuple[Sums | None, int]:
        """The last days that together are enough, `most` of them at most, and the first of them; None: too little."""
        today = int(now_s // DAY_S)
        last: Sums | None = None
        for day in range(today, today - most, -1):
            if (one := seen.days.get(day)) is not None:
                last = one if last is None else last.plus(one)
                if last.enough():
                    return last, day
        return None, today - most + 1

    def _drift_L(self, seen: Gathered, now_s: float) -> tuple[Floats | None, Floats | None]:
        """By layer: the last day against the week before it, and what chance makes of that."""
        last, first = self._lately(seen, now_s)
        week: Sums | None = None
        for day in range(first - BEFORE, first):
            if (one := seen.days.get(day)) is not None:
                week = one if week is None else week.plus(one)
        if last is None or week is None or not week.enough():
            return None, None
        drift_L = apart_L(last.shares_LE(), week.shares_LE())
        return drift_L, by_chance_L(last.variance_LE(), week.variance_LE())

    def _alarms(
        self, seen: Gathered, now_s: float, drift: float | None, chance: float | None
    ) -> tuple[list[str], dict[str, bool]]:
        alarms: list[str] = []
        watched: dict[str, bool] = {}
        if self.imbalance is not None:
            told = self._imbalanced(seen, now_s, self.imbalance)
            self._busy = None if told is None else told[:2]
            watched["imbalance"] = told is not None
            if told is not None:
                row, busiest, times = told
                alarms.append(
                    f"layer {seen.layers[row]}'s expert {busiest} takes {times:.3g} times the mean "
                    f"(bound {self.imbalance:g})"
                )
        if self.drift is not None:
            # A day that has just begun says little: chance is large in it. It ends no alarm that it could not raise.
            times_chance = 1.0 if self._drifted else ALARM_FROM
            passed = drift is not None and chance is not None and drift > max(self.drift, times_chance * chance)
            watched["drift"] = self._drifted = passed
            if passed and drift is not None and chance is not None:
                alarms.append(
                    f"{drift:.1%} of choices go elsewhere than in the week before (bound {self.drift:.3g}; "
                    f"{chance:.1%} by chance)"
                )
        return alarms, watched

    def _imbalanced(self, seen: Gathered, now_s: float, bound: float) -> tuple[int, int, float] | None:
        """Layer, expert and times the mean of an alarm of imbalance; None: there is none.

        It tells of the last days that are enough, for an alarm ends when what it tells of has ended. One that was
        raised goes on until those are surely below, or are not above with the day before them: a day that has just
        begun is too short to raise it, which is no reason to end it.
        """
        last, first = self._lately(seen, now_s, DAYS)
        if last is None:
            return None
        told = _surely_above(last, bound)
        if told is not None or self._busy is None:
            return told
        row, expert = self._busy
        before = seen.days.get(first - 1)
        longer = last if before is None else last.plus(before)
        times, longer_times = (float(each.shares_LE()[row, expert]) * seen.n_experts for each in (last, longer))
        margin = SURE * seen.n_experts * float(np.sqrt(last.variance_LE()[row, expert]))
        return (row, expert, longer_times) if times + margin > bound and longer_times > bound else None

    def _caveats(self, seen: Gathered) -> list[str]:
        told = [self._note] if self._note else []
        if not seen.whole.enough():
            what = "minute" if self.source == "counted" else "request"
            many = "" if seen.whole.requests == 1 else "s"
            told.append(
                f"Only {seen.whole.requests:,} {what}{many} and {seen.whole.tokens:,} tokens were seen, which tell as "
                f"much as {seen.whole.like:.0f} of equal length, so shares are rough: {LEAST_REQUESTS} of equal length "
                f"and {LEAST_TOKENS:,} tokens are needed for dead and hot experts, drift and alarms."
            )
        if self.source == "counted":
            told.append(
                "Counted by the engine: a token counts once for each of its experts, and nobody tells whose. What "
                "chance makes of drift is told from minutes; requests that take longer make it more."
            )
        return told

    # What is kept.

    def save(self, path: Path) -> None:
        """Write it whole or not at all; nothing where nothing was seen. Raises UserError."""
        if (seen := self._seen) is not None:
            keep(
                path,
                seen,
                backend=self.backend,
                model=self.model,
                source=self.source,
                per_token=self._per_token(seen.whole),
                skipped=self.skipped,
            )

    def resume(self, path: Path) -> Self:
        """Go on from what was kept there of this backend; of another model, or broken, it is left, and that is said."""
        try:
            kept = read_kept(path)
            if kept is None:
                return self
            if (kept.backend, kept.model, kept.source) == (self.backend, self.model, self.source):
                self._seen, self.skipped = unpacked(kept), kept.skipped
            else:
                self._note = (
                    f"What {path.name} kept is of {kept.model or 'a model without a name'} at {kept.backend}, "
                    f"{kept.source}, so counting began anew."
                )
        except (OSError, ValueError):
            self._note = f"What was seen before could not be read from {path.name}, so counting began anew."
        return self


def _layers(seen: Gathered, per_token: int | None, drift_L: Floats | None, chance_L: Floats | None) -> list[LayerSeen]:
    whole, n_experts = seen.whole, seen.n_experts
    shares_LE = np.nan_to_num(whole.shares_LE())
    error_LE = np.sqrt(whole.variance_LE())
    with np.errstate(divide="ignore", invalid="ignore"):
        bits_LE = np.where(shares_LE > 0, shares_LE * np.log(shares_LE), 0.0)
    sure = whole.enough()
    entropy_L = -bits_LE.sum(axis=1) / np.log(n_experts) if n_experts > 1 else np.ones(len(shares_LE))
    found = []
    for row, layer in enumerate(seen.layers):
        shares_E = shares_LE[row]
        due = sure and whole.all_L[row] / n_experts >= DEAD_FROM
        dead = np.flatnonzero(shares_E == 0) if due else np.array([], np.intp)
        hot = np.flatnonzero(shares_E - SURE * error_LE[row] > HOT / n_experts) if sure else np.array([], np.intp)
        drift = None if drift_L is None or np.isnan(drift_L[row]) else float(drift_L[row])
        chance = None if drift is None or chance_L is None else float(chance_L[row])
        found.append(
            LayerSeen(
                layer=layer,
                shares=shares_E.tolist(),
                frequencies=np.clip(shares_E * per_token, 0.0, 1.0).tolist() if per_token else [],
                imbalance=max(1.0, float(shares_E.max()) * n_experts),
                entropy=float(np.clip(entropy_L[row], 0.0, 1.0)),
                dead=[int(expert) for expert in dead],
                hot=[int(expert) for expert in hot],
                drift=drift,
                drift_by_chance=chance,
            )
        )
    return found


def _surely_above(sums: Sums, bound: float) -> tuple[int, int, float] | None:
    """Layer, expert and times the mean of the busiest of those that chance does not lift above `bound`; None: none.

    Among all experts of all layers one looks busy by chance alone: the margin is that of all of them together
    (Bonferroni).
    """
    if not sums.enough():
        return None
    n_cells, n_experts = sums.choices_LE.size, sums.choices_LE.shape[1]
    margin = NormalDist().inv_cdf(1 - UNSURE / 2 / n_cells)
    times_LE = np.nan_to_num(sums.shares_LE()) * n_experts
    surely_LE = times_LE - margin * n_experts * np.sqrt(np.nan_to_num(sums.variance_LE(), nan=np.inf))
    passed_LE = np.where(surely_LE > bound, times_LE, 0.0)
    row, expert = divmod(int(passed_LE.argmax()), n_experts)
    return (row, expert, float(times_LE[row, expert])) if passed_LE[row, expert] else None


def _told(groups: Mapping[str, Group], whole: Sums) -> list[GroupSeen]:
    """By tokens, most first, each against all others."""
    found = []
    for name, group in groups.items():
        rest = whole.requests - group.requests
        apart = chance = None
        if min(rest, group.requests) * whole.like >= LEAST_REQUESTS * whole.requests and group.tokens >= LEAST_TOKENS:
            others_LE = whole.choices_LE - group.choices_LE
            apart = float(np.nanmean(apart_L(shares_of(group.choices_LE), shares_of(others_LE))))
            of_group = whole.part_variance_LE(group.choices_LE, group.requests)
            of_rest = whole.part_variance_LE(others_LE, rest)
            chance = float(np.nanmean(by_chance_L(of_group, of_rest)))
        found.append(
            GroupSeen(name=name, requests=group.requests, tokens=group.tokens, apart=apart, apart_by_chance=chance)
        )
    return sorted(found, key=lambda group: (-group.tokens, group.name))
