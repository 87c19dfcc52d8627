"""`breakeven capacity`: how many requests a second one backend carries, and how many people can talk to it at once.

First one request at a time, which says how long an answer takes when nobody else is there, and whether there is any
hope. Then the search for the highest rate (open loop, Poisson), then for the most users (closed loop, each thinking
before the next request). `capacity_search` decides what to try, `load.Session` tries it, `capacity_study` reads the
log; this file only knows the clock.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from breakeven.engines.source import parse_source
from breakeven.errors import BreakevenError, UserError
from breakeven.measure.events import ClientCeiling, RequestDone, iter_events
from breakeven.measure.progress import LoadState
from breakeven.model.layouts.derive import assuming
from breakeven.results.load import CapacityStudy
from breakeven.results.store import RESULT, write
from breakeven.runs.capacity_search import Finished, Search, SearchPlan, Wanted, bracket, next_trial, told
from breakeven.runs.capacity_study import PROBE, RATE, USERS, Outcome, capacity_study, name_of, outcomes
from breakeven.runs.load import DEFAULT_SLOTS, USEFUL_SHARE, LoadOptions, Session
from breakeven.stats.sequential import decide
from breakeven.traffic.draw import draw
from breakeven.traffic.prompt_file import read_prompts
from breakeven.traffic.schedule import context_of
from breakeven.traffic.workload import Arrivals, Length, Slo, Workload

PROBE_REQUESTS = 12
"""One at a time. Enough to tell a hopeless case (3 bad of 3 do at 90 %) and to know the mean time within some 10 %."""
LOWEST = 1 / 16
"""Of the rate of one request at a time: the lowest tried. Below it, next to no two requests meet."""
MOST_USERS = 4096
USERS_STEP = 1.3
"""Of the bracket in users when the rate is known, because then the start is near the answer."""
GROWTH = 2.0
"""A run lasts this many times SLO / precision; see `run_s`."""
LONGEST_SHARE = 0.1
"""Of the budget, that one run may last because of `GROWTH`."""
LENGTH_SAMPLE = 20_000
"""Requests drawn to see how long they get, before the engine is told how much context to keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityOptions:
    """What a capacity search may be told beside its target and SLO.

    `think_s`: what a user waits after an answer before the next request. `axes`: what to search, of RATE and USERS.
    `prompts`: a file of one's own, whose lengths count instead of `prompt`, and, where `output` is None, of it.
    """

    prompt: Length = field(default_factory=lambda: Length(mean=512))
    output: Length | None = field(default_factory=lambda: Length(mean=128))
    prompts: Path | str | None = None
    chat: bool = False
    think_s: float = 10.0
    target_share: float = 0.9
    confidence: float = 0.95
    precision: float = 0.1
    budget_s: float = 600.0
    axes: tuple[str, ...] = (RATE, USERS)
    most_users: int = MOST_USERS
    highest_rate: float | None = None
    seed: int = 0

    @staticmethod
    def axes_of(only: str | None) -> tuple[str, ...]:
        """What `--only rate`, `--only users` or neither searches. Raises UserError for any other word."""
        axes = {None: (RATE, USERS), "rate": (RATE,), "users": (USERS,)}
        if only not in axes:
            raise UserError(f"--only {only!r}: give rate or users, or leave it out for both")
        return axes[only]

    def check(self) -> None:
        """Raise UserError for numbers that mean nothing."""
        if not self.axes or not {RATE, USERS}.issuperset(self.axes):
            raise UserError(f"axes {self.axes!r}: give those of CapacityOptions.axes_of, for rate, users or both")
        if self.budget_s <= 0:
            raise UserError("--budget must be above zero, such as 10m")
        if self.think_s < 0:
            raise UserError("--think must not be negative")
        if self.most_users < 1:
            raise UserError("--max-users must be 1 or more")
        if self.highest_rate is not None and self.highest_rate <= 0:
            raise UserError("--max-rate must be above zero requests/s")
        self.plan(start=1, lowest=1, highest=1).check()

    def plan(self, *, start: float, lowest: float, highest: float, whole: bool = False) -> SearchPlan:
        """The search these options ask for."""
        return SearchPlan(
            start=start,
            lowest=min(lowest, highest),
            highest=highest,
            target_share=self.target_share,
            confidence=self.confidence,
            precision=self.precision,
            whole=whole,
        )

    def workload(self, arrivals: Arrivals, requests: int, warm_up_s: float, seed: int) -> Workload:
        """The traffic of one run."""
        own = None if self.prompts is None else read_prompts(self.prompts)
        return Workload(
            arrivals=arrivals,
            prompt=self.prompt if own is None else None,
            output=self.output,
            prompts=None if own is None else own.source,
            requests=requests,
            warm_up_s=warm_up_s,
            chat=self.chat or (own is not None and own.chat),
            seed=seed,
        )


def capacity(
    target: str,
    slo: Slo,
    search: CapacityOptions | None = None,
    options: LoadOptions | None = None,
    *,
    on_state: Callable[[LoadState], None] = lambda state: None,
    on_phase: Callable[[str, str], None] = lambda phase, subject: None,
) -> tuple[CapacityStudy, Path]:
    """Find what `target` (a URL with #model, or a model to start here) carries within `slo`; result and its directory.

    Raises UserError for what cannot be asked, EngineError when an engine of ours fails, and KeyboardInterrupt when
    interrupted; the log and what was found by then are saved first.
    """
    search, options = search or CapacityOptions(), options or LoadOptions()
    search.check()
    if slo == Slo():
        raise UserError("capacity means nothing without a service level; give --slo, such as ttft=1s,tpot=80ms")
    with assuming(options.assume):
        source = parse_source(target)
    alone = search.workload(Arrivals(process="closed", concurrency=1), PROBE_REQUESTS, 0.0, search.seed)
    lengths = draw(msgspec.structs.replace(alone, requests=LENGTH_SAMPLE))
    # The budget is left out of what identifies the study: a search may be resumed with a longer one.
    question = (replace(search, budget_s=1.0),)
    session = Session(
        "capacity",
        [source],
        alone,
        slo,
        options,
        context_tokens=context_of([lengths], of_bytes=source.random_weights),
        slots=DEFAULT_SLOTS,
        question=question,
        notes=[] if search.prompts is None else [read_prompts(search.prompts).said(search.output is not None)],
        target_share=search.target_share,
        confidence=search.confidence,
        on_state=on_state,
        on_phase=on_phase,
    )
    with session:
        try:
            session.because = _Run(session, slo, search, float(lengths.output_N.mean())).all(alone)
        except (KeyboardInterrupt, BreakevenError) as error:
            because = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(BreakevenError):  # a full disk must not hide why the run ended
                write(capacity_study(session.log_path, because), session.directory / RESULT)
            raise
    study = capacity_study(session.log_path)
    write(study, session.directory / RESULT)
    return study, session.directory


class _Run:
    """Plays what the search asks for, as long as the budget lasts."""

    def __init__(self, session: Session, slo: Slo, options: CapacityOptions, output_tokens: float) -> None:
        """`output_tokens`: of an answer, on average."""
        self._session, self._slo, self._options = session, slo, options
        self._output_tokens = output_tokens
        self._began = time.monotonic()

    def all(self, alone: Workload) -> str:
        """The probe and both searches; returns why it ended: finished or budget."""
        options = self._options
        self._session.play(0, alone, load=PROBE)
        probe = self._outcome(PROBE)
        if probe is None or probe.seconds is None or probe.per_s is None:
            raise BreakevenError(f"not one request was answered{self._first_failure()}; events.jsonl has them all")
        error = options.plan(start=1, lowest=1, highest=1).error
        bad = probe.requests - probe.good
        if decide(probe.good / probe.spread, bad / probe.spread, options.target_share, error) is False:
            return "finished"
        done = "finished"
        carried: float | None = None
        if RATE in options.axes:
            share = 0.5 if USERS in options.axes else 1.0
            highest = min(self._client_limit(), options.highest_rate or math.inf)
            plan = options.plan(start=probe.per_s, lowest=probe.per_s * LOWEST, highest=highest)
            search, in_time = self._search(RATE, plan, probe, self._began + share * options.budget_s)
            carried = bracket(search)[0]
            done = done if in_time else "budget"
        if USERS in options.axes:
            cycle_s = options.think_s + probe.seconds
            # Users who think for Z and wait for R ask N / (R + Z) times a second (Denning, Buzen 1978, "The
            # operational analysis of queueing network models"): at the rate that is carried, N is this.
            start = max(1, round((carried or probe.per_s) * cycle_s))
            plan = options.plan(start=start, lowest=1, highest=options.most_users, whole=True)
            if carried is not None:
                plan = replace(plan, step=USERS_STEP)
            _, in_time = self._search(USERS, plan, probe, self._began + options.budget_s)
            done = done if in_time else "budget"
        return done

    def _search(self, axis: str, plan: SearchPlan, probe: Outcome, until: float) -> tuple[Search, bool]:
        plan.check()
        search = Search(plan)
        while not isinstance(wanted := next_trial(search), Finished):
            name = name_of(axis, wanted.load, wanted.attempt)
            workload, seconds = self._workload(axis, wanted, plan, probe)
            if time.monotonic() + seconds > until and search.tried:
                return search, False
            self._session.play(0, workload, load=name, round=wanted.look)
            outcome = self._outcome(name)
            if outcome is None:
                raise BreakevenError(f"no request of {name} counts; events.jsonl says why")
            search = told(search, wanted, requests=outcome.requests, good=outcome.good, spread=outcome.spread)
        return search, True

    def _workload(self, axis: str, wanted: Wanted, plan: SearchPlan, probe: Outcome) -> tuple[Workload, float]:
        """One run of a trial, and about how many seconds it takes."""
        options = self._options
        seed = options.seed + 1000 * wanted.attempt + wanted.look
        assert probe.seconds is not None
        if axis == RATE:
            rate = wanted.load
            least_s = run_s(self._slo, plan.precision, options.budget_s)
            requests = max(wanted.requests, math.ceil(rate * least_s))
            warm_s = max(2 * probe.seconds, 0.1 * requests / rate)
            arrivals = Arrivals(process="poisson", rate_per_s=rate)
            return options.workload(arrivals, requests, warm_s, seed), warm_s + requests / rate
        users = int(wanted.load)
        cycle_s = options.think_s + probe.seconds
        # Everybody asks twice at least, and once before anything counts, when all begin at the same moment.
        requests = max(wanted.requests, 2 * users)
        arrivals = Arrivals(process="closed", concurrency=users, think_s=options.think_s)
        return options.workload(arrivals, requests, cycle_s, seed), (1 + requests / users) * cycle_s

    def _client_limit(self) -> float:
        """The highest rate the client drives without adding delays of its own, requests/s."""
        # From the log, because a resumed search does not play the probe again.
        tested = [e for e in iter_events(self._session.log_path) if isinstance(e, ClientCeiling)]
        ceiling = max(tested, key=lambda e: e.requests_per_s, default=None)
        if ceiling is None:
            raise BreakevenError("the client was not tested; events.jsonl says why")
        by_tokens = ceiling.stream_events_per_s / max(1.0, self._output_tokens)
        return USEFUL_SHARE * min(ceiling.requests_per_s, by_tokens)

    def _first_failure(self) -> str:
        """How the first request that failed did, in the server's own words where it had some."""
        log = iter_events(self._session.log_path)
        first = next((e for e in log if isinstance(e, RequestDone) and e.error), None)
        return "" if first is None else f"; the first one: {first.error}, {first.detail or 'without a word'}"

    def _outcome(self, name: str) -> Outcome | None:
        return next((o for o in outcomes(iter_events(self._session.log_path), self._slo) if o.name == name), None)


def run_s(slo: Slo, precision: float, budget_s: float) -> float:
    """Seconds that one run at a fixed rate lasts at least.

    At a rate above what is carried by a factor 1 + precision, whoever comes after t seconds waits precision x t
    longer. Over GROWTH x SLO / precision seconds half of all requests then wait longer than the SLO, so such a rate
    cannot pass for carried because its queue had no time to grow.
    """
    waits = [limit for limit in (slo.ttft_s, slo.e2e_s) if limit is not None]
    return min(GROWTH * min(waits) / precision, LONGEST_SHARE * budget_s) if waits else 0.0
