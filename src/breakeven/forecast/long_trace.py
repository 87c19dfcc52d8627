"""A trace longer than memory through a simulated engine: delays kept as counts by size, requests forgotten."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.forecast.model import StepModel
from breakeven.forecast.simulated import LEAST_BEYOND, PERCENTILES, has_grown, study_of, widest_phase
from breakeven.forecast.simulator.policy import Fleet, Policy
from breakeven.forecast.simulator.results import Simulation
from breakeven.forecast.simulator.run import policy_of, simulate_parts
from breakeven.forecast.simulator.state import Requests
from breakeven.results.metrics import SIMULATED
from breakeven.results.predicted import SimulatedLatency, SimulatedPercentile, SimulatedPoint, SimulationStudy
from breakeven.stats.estimate import around
from breakeven.traffic.traces.lines import ROWS, LineFormat, trace_parts
from breakeven.traffic.traces.read import line_format
from breakeven.traffic.traces.rows import told_apart
from breakeven.traffic.workload import Arrivals, Slo, Workload

WHOLE_BYTES = 256 * 2**20
"""Longer trace files are read in parts: read whole, a row takes some thirty times its size in the file."""
WIDTH = 0.005
"""Delays within half a per cent of each other are counted as one."""
SHORTEST_S, LONGEST_S = 1e-6, 1e9
SPAN_S = 10.0
"""Who waits is summed up over spans of so long."""


def simulate_long_trace(
    model: StepModel,
    path: Path,
    *,
    format: str | None = None,
    speed: float = 1.0,
    sharing: bool = False,
    slo: Slo | None = None,
    policy: Policy | None = None,
    fleet: Fleet | None = None,
    machine: str | None = None,
    rows: int = ROWS,
) -> SimulationStudy:
    """As `simulate_traffic` on the whole trace; memory holds `rows` requests and those in flight.

    `format`: as for `read_trace`. Percentiles are exact to half a per cent; nothing is told over time. Raises
    UserError as `trace_parts`, and for a format that cannot be read in parts.
    """
    form = None if format is None else line_format(format)
    if format is not None and form is None:
        raise UserError(f"{path} is too long to be read whole, and {format} traces cannot be read in parts; cut it")

    fleet = fleet or Fleet()
    policy = policy or policy_of(model)
    found: Counter[str] = Counter()

    def tallied(which: StepModel) -> TraceTally:
        tally = TraceTally()
        for run in simulate_parts(_requests(path, form, speed, sharing, rows, found), which, policy, fleet):
            tally.add(run, slo)
        return tally

    tallies = [tallied(which) for which in (model, *model.low_high("decode"))]
    reading = tallies
    if widest_phase(model) == "prefill":
        reading = [tallies[0], *(tallied(which) for which in model.low_high("prefill"))]
    workload = Workload(arrivals=Arrivals(process="trace", trace=path.name, rate_scale=speed), sharing=sharing)
    point = _point(tallies, reading, speed, slo)
    study = study_of(model, [point], policy=policy, fleet=fleet, slo=slo, workload=workload, machine=machine)
    unit = next(trace_parts(path, 1, form)).unit
    said = told_apart(**found)
    note = "; ".join([f"{path.name} is read in parts; its numbers: {unit}", *said])
    return msgspec.structs.replace(study, notes=[note, *study.notes])


def _requests(
    path: Path, form: LineFormat | None, speed: float, sharing: bool, rows: int, found: Counter[str]
) -> Iterator[Requests]:
    """The requests of every part; `found` counts, from 0, what `told_apart` tells of them."""
    found.clear()
    for part in trace_parts(path, rows, form):
        found["anew"] += part.anew
        found["blank"] += int((part.prompt == 0).sum())
        found["empty"] += int((part.output == 0).sum())
        if part.images is not None:
            found["images"] += int(part.images.sum())
            found["pictured"] += int((part.images > 0).sum())
        yield Requests(
            part.at_ns / 1e9 / speed,
            np.maximum(part.prompt, 1).astype(np.int64),
            np.maximum(part.output, 1).astype(np.int64),
            prefix=part.blocks if sharing else (),
            prefix_tokens=part.block_tokens,
        )


@dataclass(slots=True)
class TraceTally:
    """Sums over the parts of one run."""

    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    requests: int = 0
    served: int = 0
    refused: int = 0
    good: int = 0
    output_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    in_system_s: float = 0.0
    busy_s: float = 0.0
    replica_seconds: float = 0.0
    first_s: float = math.inf
    last_s: float = 0.0
    last_arrival_s: float = 0.0
    waiting_s_W: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """Seconds that requests waited for a place in a step, all of them together, in each `SPAN_S` from the start on."""

    def add(self, run: Simulation, slo: Slo | None) -> None:
        """Count what ended in this part."""
        over_N = run.served | run.refused_N
        self.requests += int(over_N.sum())
        self.served += int(run.served.sum())
        self.refused += int(run.refused_N.sum())
        self.output_tokens += int(run.output_tokens_N.sum())
        self.prompt_tokens += int(run.requests.prompt_tokens_N[over_N].sum())
        self.cached_tokens += int(run.cached_tokens_N[over_N].sum())
        self.preemptions += int(run.preempted_N[over_N].sum())
        self.good += 0 if slo is None else int(run.good(slo).sum())
        self.steps += run.steps.total
        self.in_system_s += float(np.nansum(run.e2e_s))
        self.busy_s, self.replica_seconds = run.busy_s, run.replica_seconds
        if over_N.any():
            self.first_s = min(self.first_s, float(run.arrival_s_N[over_N].min()))
        if run.served.any():
            self.last_s = max(self.last_s, float(run.end_s_N[run.served].max()))
        self.last_arrival_s = max(self.last_arrival_s, float(run.arrival_s_N.max(initial=0.0)))
        steps = run.steps
        waited_s_M = steps.waiting_M * steps.step_s_M * steps.steps_M
        at_M = (steps.start_s_M / SPAN_S).astype(np.int64)
        spent_s_W = np.bincount(at_M, waited_s_M, len(self.waiting_s_W)).astype(np.float64)
        spent_s_W[: len(self.waiting_s_W)] += self.waiting_s_W
        self.waiting_s_W = spent_s_W
        for metric in SIMULATED:
            values = {"ttft_s": run.ttft_s, "tpot_s": run.tpot_s, "e2e_s": run.e2e_s, "gap_s": run.gap_s_N}[metric]
            values = values[run.served & np.isfinite(values)]
            places = np.log(np.clip(values, SHORTEST_S, LONGEST_S) / SHORTEST_S) / WIDTH
            found = np.bincount(places.astype(np.int64), minlength=_BINS)
            self.counts[metric] = self.counts.get(metric, 0) + found

    def percentile(self, metric: str, p: float) -> float:
        """Seconds, by nearest rank; refused requests are infinitely late. NaN where there is none."""
        below = np.cumsum(self.counts[metric])
        n = int(below[-1]) + self.refused
        if n == 0:
            return math.nan
        rank = max(1, math.ceil(p / 100 * n))
        if rank > below[-1]:
            return math.inf
        return SHORTEST_S * math.exp((int(np.searchsorted(below, rank)) + 0.5) * WIDTH)

    @property
    def queue_grows(self) -> bool:
        """As `simulated.queue_grows`: who waits in the last quarter of arrivals against the second one."""
        middle_s_W = SPAN_S * (np.arange(len(self.waiting_s_W)) + 0.5)
        early, late = (
            self.waiting_s_W[(middle_s_W >= low * self.last_arrival_s) & (middle_s_W < high * self.last_arrival_s)]
            for low, high in ((0.25, 0.5), (0.75, 1.0))
        )
        return bool(len(early) and len(late)) and has_grown(float(early.mean()) / SPAN_S, float(late.mean()) / SPAN_S)

    @property
    def seconds(self) -> float:
        """From the first arrival to the last token."""
        return max(self.last_s - self.first_s, 1e-9)


_BINS = int(math.log(LONGEST_S / SHORTEST_S) / WIDTH) + 2


def _point(
    tallies: Sequence[TraceTally], reading: Sequence[TraceTally], speed: float, slo: Slo | None
) -> SimulatedPoint:
    """`tallies`: with the step model as it is, its fast and its slow end; `reading`: the same for first tokens."""
    middle = tallies[0]
    return SimulatedPoint(
        load=f"trace x{speed:g}",
        rate_per_s=None,
        concurrency=None,
        requests=middle.requests,
        refused=middle.refused,
        latencies=[_latency(metric, reading if metric == "ttft_s" else tallies) for metric in SIMULATED],
        good_share=None if slo is None else around([t.good / max(1, t.requests) for t in tallies]),
        goodput_per_s=None if slo is None else around([t.good / t.seconds for t in tallies]),
        requests_per_s=around([t.served / t.seconds for t in tallies]),
        output_tokens_per_s=around([t.output_tokens / t.seconds for t in tallies]),
        utilisation=middle.busy_s / middle.replica_seconds if middle.replica_seconds else 0.0,
        replicas_mean=middle.replica_seconds / middle.last_s if middle.last_s else 0.0,
        in_flight_mean=middle.in_system_s / middle.last_s if middle.last_s else 0.0,
        steps=middle.steps,
        preemptions=middle.preemptions,
        cached_prompt_share=middle.cached_tokens / max(1, middle.prompt_tokens),
        queue_grows=middle.queue_grows,
        over_time=None,
    )


def _latency(metric: str, tallies: Sequence[TraceTally]) -> SimulatedLatency:
    percentiles = []
    for p in PERCENTILES:
        values = [tally.percentile(metric, p) for tally in tallies]
        enough = tallies[0].requests * (1 - p / 100) >= LEAST_BEYOND
        seconds = around(values) if enough and all(map(math.isfinite, values)) else None
        percentiles.append(SimulatedPercentile(p=p, seconds=seconds))
    return SimulatedLatency(metric=metric, percentiles=percentiles)
