"""What is compared: pairs of backends, the promises asked of them, and the traffic that is cut from a trace."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from breakeven.answer.study.price import ApiSpeed
from breakeven.forecast.model import StepModel, step_model
from breakeven.forecast.profiles import profile_named
from breakeven.forecast.simulator.policy import Policy
from breakeven.forecast.simulator.run import policy_of
from breakeven.forecast.simulator.state import Requests
from breakeven.model.formats.named import default_format
from breakeven.model.resolve import resolve_spec
from breakeven.results.cost import Api, Own, Rented
from breakeven.traffic.traces.read import read_trace
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Slo

LONGEST_PROMPT, LONGEST_ANSWER = 7500, 1500
"""Tokens; the Azure traces end there, and both models of every pair take as many."""
COVERED = 1.645
"""Half widths of intervals that hold nine of ten are this many standard deviations."""


@dataclass(frozen=True, slots=True)
class Place:
    """One backend. `machine` None: a hosted model of which nothing but `speed` is known."""

    model: str
    machine: str | None
    price: Own | Rented | Api
    speed: ApiSpeed | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A dense and an MoE backend, and what is promised."""

    name: str
    dense: Place
    moe: Place
    slo: Slo
    policies: tuple[str, ...] = ("breakeven", "fastest", "spill")

    @property
    def places(self) -> tuple[Place, Place]:
        """The dense one first."""
        return self.dense, self.moe


# Where each comes from, and which have no source: docs/gateway-goodput.md.
H100 = Rented(usd_per_hour=1.69, date="2026-04")
L40S = Rented(usd_per_hour=0.86)
MAC = Own(usd=1299.0, life_years=4.0, usd_per_kwh=0.1437, idle_w=7.0, busy_w=60.0)
HOSTED = Api(usd_per_mtok_input=0.10, usd_per_mtok_output=0.40)
HOSTED_SPEED = ApiSpeed(ttft_s=0.45, tokens_per_s=110.0, source="assumed for this bench")

_GPU = (Place("llama-3.1-8b", "h100-sxm", H100), Place("qwen3-30b-a3b", "h100-sxm", H100))
_SMALL = (Place("qwen3-8b", "l40s", L40S), Place("moonlight-16b-a3b", "l40s", L40S))
_DESK = (Place("llama-3.2-1b", "apple-m2-pro", MAC), Place("granite-3.1-3b-a800m", "apple-m2-pro", MAC))
_EDGE = (Place("llama-3.2-1b", "apple-m2-pro", MAC), Place("hosted-moe", None, HOSTED, HOSTED_SPEED))

CASES = {
    case.name: case
    for case in (
        Case("gpu", *_GPU, Slo(ttft_s=0.5, tpot_s=0.03)),
        Case("gpu-strict", *_GPU, Slo(ttft_s=0.25, tpot_s=0.015)),
        Case("gpu-loose", *_GPU, Slo(ttft_s=2.0, tpot_s=0.06)),
        Case("small-gpu", *_SMALL, Slo(ttft_s=1.0, tpot_s=0.04)),
        Case("desk", *_DESK, Slo(ttft_s=5.0, tpot_s=0.05)),
        Case("edge", *_EDGE, Slo(ttft_s=5.0, tpot_s=0.05), ("breakeven", "fastest", "spill", "edge-first")),
    )
}


@lru_cache(maxsize=64)
def steps_of(model: str, machine: str, context: float) -> tuple[StepModel, Policy]:
    """A model on a machine and its engine's batching, for sequences of `context` tokens usually."""
    spec, profile = resolve_spec(model), profile_named(machine)
    steps = step_model(spec, profile, profile.origin.format or default_format(spec, profile.engine))
    return steps, policy_of(steps, context)


@lru_cache(maxsize=64)
def true_steps(model: str, machine: str, context: float, seed: int) -> StepModel:
    """The machine as it is: slower or faster than its step model says, as far as its profile says it may be.

    Pass a negative seed for a step model that is right.
    """
    steps, _ = steps_of(model, machine, context)
    if seed < 0:
        return steps
    deviation = steps.error("decode").log_half_width / COVERED
    draw = np.random.default_rng([seed, *model.encode(), *machine.encode()])
    return steps.scaled(float(np.exp(draw.normal(0.0, deviation))))


@dataclass(frozen=True, slots=True)
class Cut:
    """Part of a trace: lengths as they are, times to be stretched to a rate. `name` is the file's."""

    name: str
    arrival_s_N: NDArray[np.float64]
    prompt_N: NDArray[np.int64]
    output_N: NDArray[np.int64]

    def at(self, rate_per_s: float) -> Requests:
        """The same bursts at another mean rate."""
        stretch = len(self.arrival_s_N) / float(self.arrival_s_N[-1]) / rate_per_s
        return Requests(self.arrival_s_N * stretch, self.prompt_N, self.output_N)

    @property
    def gaps_cv(self) -> float:
        """Standard deviation over mean of the gaps: 1 for independent arrivals, more for bursts."""
        gaps = np.diff(self.arrival_s_N)
        return float(np.std(gaps) / np.mean(gaps))


def cuts(path: Path, requests: int, among: int, numbers: tuple[int, ...]) -> list[Cut]:
    """`numbers` of `among` cuts of `requests` consecutive requests, evenly spread over a trace.

    They share requests where the trace is shorter than all of them together.
    """
    rows = _rows(path)
    n = min(requests, len(rows))
    found = []
    for number in numbers:
        at = round(number * (len(rows) - n) / max(1, among - 1))
        part = slice(at, at + n)
        arrival_s = (rows.at_ns[part] - rows.at_ns[at]) / 1e9
        prompt = np.clip(rows.prompt[part], 1, LONGEST_PROMPT).astype(np.int64)
        output = np.clip(rows.output[part], 1, LONGEST_ANSWER).astype(np.int64)
        found.append(Cut(path.stem, arrival_s, prompt, output))
    return found


@lru_cache(maxsize=8)
def _rows(path: Path) -> TraceRows:
    return read_trace(path)
