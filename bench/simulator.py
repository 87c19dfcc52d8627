"""The simulator held against published load sweeps, and timed on a production trace.

    python -m bench.simulator [--data DIRECTORY] [--trace FILE] [--only speed|sweep] [--protocol P] [--json FILE]

Sweep: three models in two precisions on H100 under vLLM 0.19, 500 requests of 512 in and 256 out at 1 to 200 a second
(`vllm bench serve`: Poisson gaps, scaled so that the last request comes at 500 / rate). The constants of that machine
are fitted through the simulator, every figure is judged by constants that never saw it or its model, and the answer to
"dense or MoE" at each rate comes from those predictions. Which chip it was follows from what ran: the price
of $6.98 an hour and Qwen3-30B in FP16 with 200,000 tokens beside it both mean the 94 GB one.

Speed: one hour of the Azure conversation trace on one core; the target is a second. Fleets of up to 16 before the same
hour, with the ends of their intervals; the target is four seconds a candidate.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.published.names import model_of
from breakeven.forecast.constants import Constants, Profile, ProfileOrigin
from breakeven.forecast.model import StepModel, step_model
from breakeven.forecast.pooled import fleet_capacity_of
from breakeven.forecast.profiles import profile_of_chip
from breakeven.forecast.serving import capacity_of
from breakeven.forecast.simulator.policy import Policy, policy_named
from breakeven.forecast.simulator.results import Simulation
from breakeven.forecast.simulator.run import policy_of, simulate
from breakeven.forecast.simulator.state import Requests, requests_of
from breakeven.hardware.chips import chip_named
from breakeven.model.resolve import resolve_spec
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Arrivals, Slo, Workload

Floats = NDArray[np.float64]

SWEEP = "cost_meter_h100_vllm.json"
FORMATS = {"float16": "F16", "fp8": "FP8"}
RATES = (1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0)
LIGHT, HEAVY, FULL = RATES[:3], RATES[3:], RATES[4:]
FITTED_RATES = (1.0, 10.0, 25.0, 50.0, 100.0)
REQUESTS, PROMPT, OUTPUT = 500, 512, 256
SEEDS = (0, 1, 2)
USD_PER_HOUR = 6.98
PROTOCOLS = ("models", "loads")
TIE = 0.01
"""Costs this near to each other are alike; the faster answer wins."""
FLEET_SLO = Slo(ttft_s=1.0, tpot_s=0.08)
METRICS = ("output_throughput", "tpot_p50", "ttft_p50", "ttft_p99", "e2e_p99")
NOISE = {"output_throughput": 0.05, "tpot_p50": 0.08, "ttft_p50": 0.15, "ttft_p99": 0.3, "e2e_p99": 0.08}
"""What is left of a measured figure once the model is right, in log units: a judgement that weighs them."""
HUBER = 1.5
SETTLED = 0.01
"""A descent that gains no more than this share of what is left is the last one."""

ROUTING_ALPHA = 0.9
"""Where the fits of served models start (`bench.published.fitting`). Not fitted: two models cannot tell it."""

# Name, start, spread in log units. Rates are shares of the chip's data sheet; seconds are of one step.
KNOBS = (
    ("weight_share", 0.75, 0.2),
    ("kv_share", 0.6, 0.4),
    ("flops_share", 0.55, 0.3),
    ("fp8_gain", 1.5, 0.2),
    ("step_s", 1.0e-3, 1.0),
    ("layer_s", 2.0e-5, 1.0),
    ("moe_layer_s", 3.0e-5, 1.0),
    ("sequence_s", 1.5e-5, 1.0),
    ("prefill_token_s", 5.0e-6, 1.0),
    ("expert_compute", 1.3, 0.25),
    ("fp8_cost", 1.1, 0.15),
    ("serial", 0.3, 0.5),
    ("front_s", 1.0e-2, 0.7),
    ("link_share", 0.5, 0.7),
    ("launch_layer_s", 3.0e-4, 0.7),
    ("launch_moe_layer_s", 3.0e-4, 0.7),
)
START = {name: start for name, start, _ in KNOBS}
SPREAD = np.array([spread for _, _, spread in KNOBS])


@dataclass(frozen=True, slots=True)
class Config:
    """One model in one precision and what was measured of it: metric by rate, milliseconds as seconds."""

    name: str
    model: str
    precision: str
    devices: int
    measured: dict[tuple[float, str], float]


def configs_of(directory: Path) -> list[Config]:
    """The sweep by configuration."""
    found: dict[str, Config] = {}
    for r in json.loads((directory / SWEEP).read_text())["records"]:
        config = found.setdefault(r["config"], Config(r["config"], r["model"], r["quant"], int(r["n_dev"]), {}))
        if r["metric"] in METRICS:
            scale = 1e-3 if r["unit"] == "ms" else 1.0
            config.measured[r["rps"], r["metric"]] = r["value"] * scale
    return [found[name] for name in sorted(found)]


def requests_at(rate: float, seed: int) -> Requests:
    """500 requests as the load generator makes them."""
    gaps = np.random.default_rng(seed).exponential(size=REQUESTS)
    at_s = np.cumsum(gaps)
    return requests_of(at_s * (REQUESTS / rate) / at_s[-1], np.full(REQUESTS, PROMPT), np.full(REQUESTS, OUTPUT))


def model_under(config: Config, knobs: dict[str, float]) -> StepModel:
    """The step model of a configuration under the constants that a fit tries."""
    chip = chip_named("h100-nvl")
    bandwidth, peak = chip.bandwidth_bytes_per_s, chip.peak_flops["bf16"]
    flops = peak * knobs["flops_share"] * (knobs["fp8_gain"] if config.precision == "fp8" else 1.0)
    link = chip.link_bytes_per_s or 0.0
    profile = Profile(
        name=chip.slug,
        engine="vllm",
        devices=config.devices,
        constants=Constants(
            weight_bytes_per_s=bandwidth * min(0.98, knobs["weight_share"]),
            kv_bytes_per_s=bandwidth * min(0.98, knobs["kv_share"]),
            decode_flops_per_s=flops,
            prefill_flops_per_s=flops,
            overlap=1.0 - min(1.0, knobs["serial"]),
            step_s=knobs["step_s"],
            layer_s=knobs["layer_s"],
            moe_layer_s=knobs["moe_layer_s"],
            sequence_s=knobs["sequence_s"],
            prefill_token_s=knobs["prefill_token_s"],
            expert_compute=knobs["expert_compute"],
            type_cost={"FP8": knobs["fp8_cost"]},
            link_bytes_per_s=knobs["link_share"] * link if link else None,
            link_s=1e-5,
            routing_alpha=ROUTING_ALPHA,
            launch_layer_s=knobs["launch_layer_s"],
            launch_moe_layer_s=knobs["launch_moe_layer_s"],
        ),
        errors=[],
        ranges=[],
        origin=ProfileOrigin(how="datasheet", engine="vllm", engine_version="0.19.0", date="", version=""),
        memory_bytes=chip.memory_bytes,
        chip=chip,
    )
    spec = model_of(config.model)
    assert spec is not None, config.model
    return step_model(spec, profile, FORMATS[config.precision], config.devices)


def figures(run: Simulation) -> dict[str, float]:
    """The metrics of the sweep, of a simulation."""
    ttft, e2e = run.percentiles("ttft", [50, 99]), run.percentiles("e2e", [99])
    return {
        "output_throughput": float(run.output_tokens_N.sum() / run.end_s),
        "tpot_p50": float(run.percentiles("tpot", 50)),
        "ttft_p50": float(ttft[0]),
        "ttft_p99": float(ttft[1]),
        "e2e_p99": float(e2e[0]),
    }


def simulated(
    config: Config, knobs: dict[str, float], rates: Sequence[float], seeds: Sequence[int]
) -> dict[tuple[float, str], float]:
    """Every metric at every rate: geometric means over seeds."""
    model = model_under(config, knobs)
    policy = policy_for(model, knobs)
    found = {}
    for rate in rates:
        runs = [figures(simulate(requests_at(rate, seed), model, policy)) for seed in seeds]
        for metric in METRICS:
            found[rate, metric] = float(np.exp(np.mean([np.log(run[metric]) for run in runs])))
    return found


def policy_for(model: StepModel, knobs: dict[str, float]) -> Policy:
    """vLLM's defaults on a large GPU."""
    kv_tokens = model.kv_tokens(PROMPT + OUTPUT)
    return replace(policy_named("vllm"), kv_tokens=kv_tokens, front_s=knobs["front_s"], prefix_caching=False)


def fit(configs: Sequence[Config], rates: Sequence[float] = FITTED_RATES) -> dict[str, float]:
    """Constants that explain these configurations, gone on with until another descent gains no more than `SETTLED`."""
    knobs, before = descent(configs, rates, None)
    while True:
        again, loss = descent(configs, rates, knobs)
        print(f"  {before:.2f} -> {loss:.2f}", flush=True)
        if loss > (1.0 - SETTLED) * before:
            return again
        knobs, before = again, loss


def descent(
    configs: Sequence[Config], rates: Sequence[float], near: dict[str, float] | None, rounds: int = 6
) -> tuple[dict[str, float], float]:
    """Damped least squares on log residuals with Huber weights, for a few rounds; constants, and what is left over.

    Simulated percentiles step where the step model glides, so that a descent may stop on a step: from another start, or
    with its damping anew, it goes on.
    """
    x = np.zeros(len(KNOBS)) if near is None else np.array([np.log(near[name] / START[name]) for name, _, _ in KNOBS])

    def knobs_at(x: Floats) -> dict[str, float]:
        return {name: START[name] * float(np.exp(value)) for (name, _, _), value in zip(KNOBS, x, strict=True)}

    def residuals(x: Floats) -> Floats:
        found = []
        for config in configs:
            model = simulated(config, knobs_at(x), rates, SEEDS[:1])
            for (rate, metric), value in model.items():
                found.append(np.log(value / config.measured[rate, metric]) / NOISE[metric])
        return np.asarray(found)

    def loss(r: Floats, x: Floats) -> float:
        size = np.abs(r)
        return float(np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER)).sum()) + 0.5 * float(
            np.sum((x / SPREAD) ** 2)
        )

    here, damping = residuals(x), 0.1
    for _ in range(rounds):
        jacobian = np.stack([(residuals(x + step) - here) / 0.05 for step in 0.05 * np.eye(len(x))], axis=1)
        trust = np.minimum(1.0, HUBER / np.maximum(np.abs(here), 1e-9))
        normal = jacobian.T @ (trust[:, None] * jacobian) + np.diag(1 / SPREAD**2)
        slope = jacobian.T @ (trust * here) + x / SPREAD**2
        for _ in range(5):
            trial = x - np.linalg.solve(normal + damping * np.diag(np.diag(normal)), slope)
            there = residuals(trial)
            if loss(there, trial) < loss(here, x):
                moved, x, here, damping = float(np.abs(trial - x).max()), trial, there, damping / 4
                break
            damping *= 4
        else:
            break
        if moved < 0.02:
            break
    return knobs_at(x), loss(here, x)


def sweep(directory: Path, protocol: str) -> dict[str, object]:
    """Every figure judged by constants that never saw it; errors, and who wins where.

    `protocol` "models": a model is judged by constants fitted to the other two. "loads": heavy loads of all models are
    judged by constants fitted to light ones, as when a machine has been measured and the future is asked for.
    """
    configs = configs_of(directory)
    predicted: dict[str, dict[tuple[float, str], float]] = {}
    constants = {}
    judged = RATES if protocol == "models" else HEAVY
    for model in dict.fromkeys(config.model for config in configs) if protocol == "models" else ("heavy loads",):
        knobs = fit([c for c in configs if c.model != model], FITTED_RATES if protocol == "models" else LIGHT)
        constants[model] = knobs
        print(f"without {model}: " + ", ".join(f"{k} {v:.3g}" for k, v in knobs.items()), flush=True)
        for config in configs:
            if protocol == "loads" or config.model == model:
                predicted[config.name] = simulated(config, knobs, judged, SEEDS)
    errors = report(configs, predicted, judged)
    first = first_tokens(configs, predicted, judged)
    winning = winners(configs, predicted, judged)
    return {"constants": constants, "errors": errors, "first_tokens": first, "winners": winning}


def report(
    configs: Sequence[Config], predicted: dict[str, dict[tuple[float, str], float]], judged: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Print and return median |predicted / measured - 1| by metric, by kind of load and of model."""
    rows: dict[str, dict[str, float]] = {}
    for config in configs:
        print(f"\n{config.name} {config.model.split('/')[-1]} {config.precision} x{config.devices}")
        for rate in judged:
            line = [f"{rate:5g}/s"]
            for metric in METRICS:
                ours, theirs = predicted[config.name][rate, metric], config.measured[rate, metric]
                line.append(f"{metric} {ours:8.4g} / {theirs:8.4g} ({ours / theirs - 1:+.0%})")
            print("  " + "  ".join(line))
    print("\nmedian error of models left out of the fit")
    parts = {"1-10 req/s": LIGHT, "25-200 req/s": HEAVY, "all": RATES}
    for label, rates in parts.items():
        if not set(rates) <= set(judged):
            continue
        for kind in ("dense", "moe", "all"):
            row = {}
            for metric in METRICS:
                off = [
                    abs(predicted[c.name][rate, metric] / c.measured[rate, metric] - 1)
                    for c in configs
                    for rate in rates
                    if kind in ("all", "dense" if "Llama" in c.model else "moe")
                ]
                row[metric] = float(np.median(off))
            rows[f"{label}, {kind}"] = row
            print(f"  {label:13} {kind:6}" + "".join(f"  {metric} {value:6.1%}" for metric, value in row.items()))
    return rows


def first_tokens(
    configs: Sequence[Config], predicted: dict[str, dict[tuple[float, str], float]], judged: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Print and return, of first tokens by load: which way they are off, and where they queue, how far their pace is.

    A wait in a queue is what service takes beyond arrivals: the last of N requests comes at N / rate and gets its first
    token a p99 later, so that all prompts are read in N / rate + p99. `pace`: how far that sum is off; `enlarged`: how
    many times as long it is as the wait that is judged.
    """
    rows: dict[str, dict[str, float]] = {}
    print("\nfirst tokens: median of predicted / measured - 1; at full load, of the time in which all prompts are read")
    for rate in judged:
        row = {}
        for metric in ("ttft_p50", "ttft_p99"):
            off = [predicted[c.name][rate, metric] / c.measured[rate, metric] - 1 for c in configs]
            row[metric] = float(np.median(off))
        if rate in FULL:
            ours, theirs = (
                np.array([REQUESTS / rate + times[rate, "ttft_p99"] for times in found])
                for found in ([predicted[c.name] for c in configs], [c.measured for c in configs])
            )
            row["pace"] = float(np.median(np.abs(ours / theirs - 1)))
            row["enlarged"] = float(np.median(theirs / (theirs - REQUESTS / rate)))
        rows[f"{rate:g}"] = row
        print(f"  {rate:5g}/s" + "".join(f"  {name} {value:+8.2f}" for name, value in row.items()))
    return rows


def winners(
    configs: Sequence[Config], predicted: dict[str, dict[tuple[float, str], float]], judged: Sequence[float]
) -> dict[str, list[dict[str, object]]]:
    """Llama-3.1-8B against Qwen3-30B-A3B by precision and rate, measured and predicted."""
    by_key = {(config.model, config.precision): config for config in configs}
    dense_name = next(c.model for c in configs if "Llama" in c.model)
    moe_name = next(c.model for c in configs if "Qwen" in c.model)
    found: dict[str, list[dict[str, object]]] = {}
    for precision in FORMATS:
        dense, moe = by_key[dense_name, precision], by_key[moe_name, precision]
        print(f"\n{precision}: $/Mtok dense, MoE, winner; measured | predicted")
        found[precision] = []
        for rate in judged:
            truth = _winner(dense.measured, moe.measured, rate)
            told = _winner(predicted[dense.name], predicted[moe.name], rate)
            shown = " | ".join(f"{costs[0]:7.3f} {costs[1]:7.3f} {costs[2]:5}" for costs in (truth, told))
            print(f"  {rate:5g}/s  {shown}")
            found[precision].append({"rate": rate, "measured": truth[2], "predicted": told[2]})
    return found


def _winner(
    dense: dict[tuple[float, str], float], moe: dict[tuple[float, str], float], rate: float
) -> tuple[float, float, str]:
    costs = [USD_PER_HOUR / (3600 * each[rate, "output_throughput"]) * 1e6 for each in (dense, moe)]
    if abs(costs[0] / costs[1] - 1) > TIE:
        return costs[0], costs[1], "dense" if costs[0] < costs[1] else "moe"
    return costs[0], costs[1], "dense" if dense[rate, "tpot_p50"] < moe[rate, "tpot_p50"] else "moe"


def speed(trace_file: Path) -> dict[str, object]:
    """Seconds of one core for the hour of conversations, by model and machine; the best of three."""
    from breakeven.traffic.traces.read import read_trace

    trace = read_trace(trace_file)
    requests = requests_of(trace.at_ns / 1e9, trace.prompt.astype(np.int64), trace.output.astype(np.int64))
    found: dict[str, object] = {}
    for name, chip, format_name in (
        ("llama-3.1-8b", "h100-sxm", "bf16"),
        ("qwen3-30b-a3b", "h100-sxm", "fp8"),
        ("llama-3.1-8b", "l40s", "bf16"),
    ):
        model = step_model(resolve_spec(name), profile_of_chip(chip_named(chip), "vllm"), format_name)
        seconds, run = [], None
        for _ in range(3):
            started = time.process_time()
            run = simulate(requests, model)
            seconds.append(time.process_time() - started)
        assert run is not None
        print(
            f"{len(requests):,} requests, {name} {format_name} on {chip}: {min(seconds):.2f} s of one core, "
            f"{run.steps.total:,} steps in {len(run.steps.start_s_M):,} runs, {run.preemptions} preemptions"
        )
        found[f"{name} {format_name} {chip}"] = {"seconds": min(seconds), "steps": run.steps.total}
        found[f"{name} {format_name} {chip}, fleets"] = fleets(trace, model)
    return found


def fleets(trace: TraceRows, model: StepModel) -> dict[str, object]:
    """Seconds of one core for what fleets carry of the hour, ends of the interval included, as for one candidate."""
    asked = Workload(arrivals=Arrivals(process="trace"))
    mean = float(np.mean(trace.prompt.astype(np.float64) + trace.output))
    policy = policy_of(model, mean)
    started = time.process_time()
    capacity = fleet_capacity_of(model, policy, asked, FLEET_SLO, 0.9, trace)
    seconds = time.process_time() - started
    started = time.process_time()
    capacity_of(model, policy, asked, FLEET_SLO, 0.9, trace)
    one_s = time.process_time() - started
    assert capacity is not None
    each = {n: e.value / n for n, e in zip(capacity.sizes_K, capacity.per_s_K, strict=True)}
    told = ", ".join(f"{n}: {value:.2f}" for n, value in each.items())
    print(f"  fleets in {seconds:.2f} s, of which one replica {one_s:.2f} s; requests/s a replica by size: {told}")
    return {"seconds": seconds, "one_replica_seconds": one_s, "per_replica": each}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory of published records")
    parser.add_argument("--trace", type=Path, help="AzureLLMInferenceTrace_conv.csv")
    parser.add_argument("--only", choices=("speed", "sweep"))
    parser.add_argument("--protocol", choices=PROTOCOLS, help="what is left out of the fit; both unless given")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, object] = {}
    if given.only != "sweep" and given.trace is not None:
        found["speed"] = speed(given.trace)
    if given.only != "speed" and given.data is not None:
        for protocol in PROTOCOLS if given.protocol is None else (given.protocol,):
            found[protocol] = sweep(given.data, protocol)
    if not found:
        parser.error("nothing to do: give --trace for speed, --data for the sweep")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
