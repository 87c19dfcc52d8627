"""Traces longer than memory: a part of the requests at a time, and only those in flight carried from part to part.

The parts give what the whole would: replicas keep their state, requests change their numbers and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from breakeven.errors import UserError
from breakeven.predict.model import StepModel
from breakeven.predict.simulate.fleet import Fleet
from breakeven.predict.simulate.jobs import Jobs
from breakeven.predict.simulate.policy import Policy
from breakeven.predict.simulate.requests import Requests
from breakeven.predict.simulate.results import Simulation
from breakeven.predict.simulate.run import Run, table_for


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
    run.next_turn = [-1] * len(requests)


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
