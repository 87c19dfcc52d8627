"""Traffic through a simulated engine: from a schedule to requests, from simulations to a result with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from breakeven.forecast.asked import assumed_notes, origin_text
from breakeven.forecast.model import StepModel
from breakeven.forecast.simulator.policy import Fleet, Policy
from breakeven.forecast.simulator.results import Simulation
from breakeven.forecast.simulator.run import policy_of, simulate
from breakeven.forecast.simulator.state import requests_of_schedule
from breakeven.results.metrics import SIMULATED
from breakeven.results.predicted import OverTime, SimulatedLatency, SimulatedPercentile, SimulatedPoint, SimulationStudy
from breakeven.stats.estimate import around
from breakeven.traffic.draw import draw
from breakeven.traffic.schedule import Schedule
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Slo, Workload
from breakeven.version import __version__

NS = 1e9
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
LEAST_BEYOND = 5
"""A percentile needs as many requests beyond it, or it is one request's luck."""
GROWN = 1.5
"""A queue so many times as long as it was before keeps growing; in balance it varies about one length."""
_BINS = 400
_RATED = frozenset({"constant", "poisson", "gamma"})

Bools = NDArray[np.bool_]


def simulate_schedule(schedule: Schedule, model: StepModel, policy: Policy, fleet: Fleet) -> tuple[Simulation, Bools]:
    """The schedule served, and which requests count: those that are not of the warm-up.

    A closed loop that outlives its rows starts over, as the real client does.
    """
    times = 1
    while True:
        rows = schedule if times == 1 else _again(schedule, times)
        run = simulate(requests_of_schedule(rows), model, policy, fleet)
        if not (schedule.workload.arrivals.is_closed and schedule.workload.requests is None and run.issued_N.all()):
            break
        times *= 4
    counted_N = ~rows.warm_N
    warm_s = schedule.workload.warm_up_s
    if schedule.workload.arrivals.is_closed and warm_s > 0:
        counted_N = counted_N & (np.nan_to_num(run.arrival_s_N, nan=np.inf) >= warm_s)
    return run, counted_N & run.issued_N


def _again(schedule: Schedule, times: int) -> Schedule:
    """The rows `times` times over."""
    return replace(
        schedule,
        due_ns_N=np.tile(schedule.due_ns_N, times),
        prompt_N=np.tile(schedule.prompt_N, times),
        output_N=np.tile(schedule.output_N, times),
        warm_N=np.tile(schedule.warm_N, times),
        session_N=np.tile(schedule.session_N, times),
        turn_N=np.tile(schedule.turn_N, times),
        think_ns_N=np.tile(schedule.think_ns_N, times),
        blocks=schedule.blocks * times,
    )


def simulate_traffic(
    model: StepModel,
    workloads: Sequence[Workload],
    *,
    trace: TraceRows | None = None,
    slo: Slo | None = None,
    policy: Policy | None = None,
    fleet: Fleet | None = None,
    over_time: bool = True,
    machine: str | None = None,
) -> SimulationStudy:
    """Every workload drawn once and served; see `simulate_schedules`. Raises UserError for what makes no sense."""
    schedules = [draw(workload, trace) for workload in workloads]
    return simulate_schedules(
        model, schedules, slo=slo, policy=policy, fleet=fleet, over_time=over_time, machine=machine
    )


def simulate_schedules(
    model: StepModel,
    schedules: Sequence[Schedule],
    *,
    slo: Slo | None = None,
    policy: Policy | None = None,
    fleet: Fleet | None = None,
    over_time: bool = True,
    machine: str | None = None,
) -> SimulationStudy:
    """Every schedule served by `fleet`, and again at both ends of the step model's interval.

    `policy` None: that of the engine the profile is of. `machine`: its name for the reader. Raises UserError for a
    model that leaves no room for keys and values.
    """
    fleet = fleet or Fleet()
    if policy is None:
        lengths = [float((s.prompt_N + s.output_N).mean()) for s in schedules]
        policy = policy_of(model, max(lengths, default=None))
    points = [_point(schedule, model, policy, fleet, slo, over_time) for schedule in schedules]
    workload = schedules[0].workload
    return study_of(model, points, policy=policy, fleet=fleet, slo=slo, workload=workload, machine=machine)


def study_of(
    model: StepModel,
    points: list[SimulatedPoint],
    *,
    policy: Policy,
    fleet: Fleet,
    slo: Slo | None,
    workload: Workload,
    machine: str | None,
) -> SimulationStudy:
    """Points with everything they rest on."""
    return SimulationStudy(
        version=__version__,
        model=model.terms.name,
        machine=machine or model.profile.name,
        engine=model.profile.engine,
        devices=model.devices,
        format=model.format_label,
        policy={name: value for name, value in asdict(policy).items() if name != "name"},
        replicas=_fleet_text(fleet),
        workload=workload,
        slo=slo,
        points=points,
        profile=origin_text(model.profile),
        notes=_notes(model, points),
        seed=workload.seed,
        kv=model.kv,
    )


def _point(
    schedule: Schedule, model: StepModel, policy: Policy, fleet: Fleet, slo: Slo | None, over_time: bool
) -> SimulatedPoint:
    # Decoding fills most of the time, so its error is that of everything but the wait for a prompt to be read.
    runs = [simulate_schedule(schedule, which, policy, fleet) for which in (model, *model.low_high("decode"))]
    reading = runs
    if widest_phase(model) == "prefill":
        reading = [runs[0], *(simulate_schedule(schedule, which, policy, fleet) for which in model.low_high("prefill"))]
    run, counted_N = runs[0]
    arrivals = schedule.workload.arrivals
    asked = run.requests.prompt_tokens_N[run.issued_N].sum()
    good = goodput = None
    if slo is not None:
        good = around([each.good_share(slo, counted) for each, counted in runs])
        goodput = around([each.goodput_per_s(slo) for each, _ in runs])
    return SimulatedPoint(
        load=load_name(schedule),
        rate_per_s=arrivals.rate_per_s if arrivals.process in _RATED else None,
        concurrency=arrivals.concurrency if arrivals.is_closed else None,
        requests=int(counted_N.sum()),
        refused=int((run.refused_N & counted_N).sum()),
        latencies=[_latency(metric, reading if metric == "ttft_s" else runs) for metric in SIMULATED],
        good_share=good,
        goodput_per_s=goodput,
        requests_per_s=around([each.requests_per_s for each, _ in runs]),
        output_tokens_per_s=around([each.output_tokens_per_s for each, _ in runs]),
        utilisation=run.utilisation,
        replicas_mean=run.replica_seconds / run.end_s if run.end_s > 0 else float(fleet.replicas),
        in_flight_mean=float(np.nansum(run.e2e_s)) / run.end_s if run.end_s > 0 else 0.0,
        steps=run.steps.total,
        preemptions=run.preemptions,
        cached_prompt_share=float(run.cached_tokens_N.sum() / asked) if asked else 0.0,
        queue_grows=queue_grows(run),
        over_time=_over_time(run) if over_time else None,
    )


def widest_phase(model: StepModel) -> str:
    """Which of its errors is the larger one: that of first tokens, which wait for both."""
    return max(("decode", "prefill"), key=lambda phase: model.error(phase).log_half_width)


def queue_grows(run: Simulation) -> bool:
    """True when more is coming in than goes out: who waits in the last quarter of arrivals against the second one."""
    if run.requests.streams is not None or not run.issued_N.any():
        return False
    last_s = float(np.nanmax(run.arrival_s_N))
    series = run.over_time(_BINS)
    time_s, waiting = series["time_s"], series["waiting"]
    early, late = ((time_s >= low * last_s) & (time_s < high * last_s) for low, high in ((0.25, 0.5), (0.75, 1.0)))
    if not (early.any() and late.any()):
        return False
    return has_grown(float(waiting[early].mean()), float(waiting[late].mean()))


def has_grown(early: float, late: float) -> bool:
    """Whether so many who wait, on average, are a queue that keeps growing."""
    return late > GROWN * early + 1.0


def load_name(schedule: Schedule) -> str:
    """A load as people say it: "2 req/s", "2 conversations/s", "8 streams", "trace x0.5"."""
    arrivals, unit = schedule.workload.arrivals, schedule.workload.rate_unit
    if arrivals.is_closed:
        return f"{arrivals.concurrency} stream{'s' if arrivals.concurrency != 1 else ''}"
    if (arrivals.process in _RATED and arrivals.rate_per_s is not None) or arrivals.agents is not None:
        return f"{arrivals.rate_per_s:g} {unit}"
    return f"trace x{arrivals.rate_scale:g}" if arrivals.process == "trace" else arrivals.process


def _latency(metric: str, runs: Sequence[tuple[Simulation, Bools]]) -> SimulatedLatency:
    found = [run.percentiles(metric.removesuffix("_s"), PERCENTILES, counted) for run, counted in runs]
    n = int(runs[0][1].sum())
    return SimulatedLatency(
        metric=metric,
        percentiles=[
            SimulatedPercentile(
                p=p,
                seconds=around([float(values[k]) for values in found])
                if n * (1 - p / 100) >= (LEAST_BEYOND if p > 50 else 0) and np.isfinite([v[k] for v in found]).all()
                else None,
            )
            for k, p in enumerate(PERCENTILES)
        ],
    )


def _over_time(run: Simulation) -> OverTime:
    series = {name: [float(f"{value:.6g}") for value in values] for name, values in run.over_time().items()}
    return OverTime(**series)


def _fleet_text(fleet: Fleet) -> str:
    rule = fleet.balancing.replace("_", " ")
    if fleet.autoscale is None:
        return "1 replica" if fleet.replicas == 1 else f"{fleet.replicas} replicas, {rule}"
    scale = fleet.autoscale
    return (
        f"{scale.least} to {scale.most} replicas, {rule}, one for every {scale.per_replica} requests in flight; "
        f"starting takes {scale.start_s:g} s, one goes after {scale.calm_s:g} s of less"
    )


def _notes(model: StepModel, points: Sequence[SimulatedPoint]) -> list[str]:
    notes = assumed_notes(model.spec)
    refused = sum(point.refused for point in points)
    if refused:
        notes.append(
            f"{refused} requests are longer than the context or one replica's keys and values and were refused"
        )
    late = [point.load for point in points if point.queue_grows]
    if late:
        notes.append(
            f"at {', '.join(late)} the queue grows as long as requests come: delays depend on the run's length"
        )
    n = min(model.error(phase).n for phase in ("decode", "prefill"))
    if n == 0:
        notes.append("the step model's error is a judgement here, nothing was left out to check it")
    return notes
