"""Goodput of routing policies on a bursty trace, by simulation: engines are `predict.simulate`'s, nothing is served.

    python bench/routing_goodput.py [--requests 1000] [--seeds 3] [--json]

A dense and an MoE backend get requests whose gaps, prompts and answers vary widely. Each policy sees what a gateway
sees: requests in flight, prompts not read yet, and the mean answer, not this one's. Compared with round robin,
least-busy, each backend alone, and the same policy told the true lengths. Predictions are those of the very step model
that is simulated, so nothing here says how far a step model is from a real machine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from statistics import fmean

import numpy as np

from breakeven.forecast.model import StepModel, step_model
from breakeven.forecast.profiles import profile_named
from breakeven.forecast.simulator.engine import Replica
from breakeven.forecast.simulator.policy import Policy
from breakeven.forecast.simulator.run import policy_of, table_for
from breakeven.forecast.simulator.state import Jobs, Requests
from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route.build import table_from
from breakeven.gateway.route.choose import choose
from breakeven.gateway.route.view import Ask, View
from breakeven.model.formats.named import default_format
from breakeven.model.resolve import resolve_spec
from breakeven.traffic.workload import Slo

CHAT = "/v1/chat/completions"
GAPS_CV = 3.0
LONGEST = 16384


@dataclass(frozen=True, slots=True)
class Scenario:
    """A dense and an MoE model on one kind of machine, an SLO, and the rates they are asked at."""

    name: str
    machine: str
    models: tuple[str, str]
    slo: Slo
    rates: tuple[float, ...]


SCENARIOS = (
    Scenario("gpu", "h100-sxm", ("llama-3.1-8b", "qwen3-30b-a3b"), Slo(ttft_s=0.3, tpot_s=0.03), (20, 30, 36, 60)),
    Scenario("laptop", "apple-m2-pro", ("llama-3.2-1b", "olmoe-1b-7b"), Slo(ttft_s=2.0, tpot_s=0.03), (0.4, 0.7)),
)
RIVALS = ("round robin", "least busy", "dense alone", "moe alone")
POLICIES = ("breakeven", "breakeven, true lengths", "breakeven, shedding", "fastest", "spill")


@lru_cache(maxsize=8)
def engine(model: str, machine: str) -> tuple[StepModel, Policy]:
    """A model on a machine, as its engine batches it."""
    spec, profile = resolve_spec(model), profile_named(machine)
    steps = step_model(spec, profile, profile.origin.format or default_format(spec, profile.engine))
    return steps, policy_of(steps, 1500)


def traffic(rate: float, n: int, seed: int) -> Requests:
    """Gamma gaps, lognormal prompts (median 490) and answers (median 150)."""
    draw = np.random.default_rng(seed)
    shape = 1 / GAPS_CV**2
    return Requests(
        np.cumsum(draw.gamma(shape, 1 / (shape * rate), n)),
        np.clip(draw.lognormal(6.2, 1.0, n), 10, 12_000).astype(np.int64),
        np.clip(draw.lognormal(5.0, 0.8, n), 2, 3_000).astype(np.int64),
    )


def good_share(scenario: Scenario, rule: str, rate: float, n: int, seed: int) -> float:
    """Share of requests, refused ones among them, that keep the SLO when `rule` routes them."""
    engines = [engine(model, scenario.machine) for model in scenario.models]
    asked = traffic(rate, n, seed)
    jobs, dice = Jobs(asked), Random(seed)
    replicas = [Replica(k, table_for(asked, s, p), p, jobs, 512) for k, (s, p) in enumerate(engines)]
    mean = float(np.mean(asked.output_tokens_N))
    views = []
    for k, (steps, batching) in enumerate(engines):
        views.append(view := View(k, scenario.models[k], table := table_from(steps, batching, LONGEST)))
        view.kind, view.slots = "moe" if steps.terms.moe else "dense", batching.max_sequences
        table.output_tokens = mean
    policy = PolicyPlan(
        model="m",
        backends=scenario.models,
        policy=rule.partition(",")[0] if rule in POLICIES else "breakeven",
        slo=scenario.slo,
        shed=rule.endswith("shedding"),
    )
    held: list[list[int]] = [[], []]
    sent = []
    prompts, answers = asked.prompt_tokens_N.tolist(), asked.output_tokens_N.tolist()
    for i, now_s in enumerate(asked.arrival_s_N.tolist()):
        for replica in replicas:
            if replica.busy and replica.clock < now_s:
                replica.advance(now_s)
        for k, view in enumerate(views):
            held[k] = [j for j in held[k] if not jobs.end_s[j] <= now_s]
            view.running = float(len(held[k]))
            view.waiting = max(0.0, view.running - view.slots)
            view.ahead_tokens = float(sum(prompts[j] for j in held[k] if not jobs.first_s[j] <= now_s))
            view.context = fmean(prompts[j] + mean / 2 for j in held[k]) if held[k] else 0.0
        ask = Ask(
            endpoint=CHAT,
            prompt_tokens=float(prompts[i]),
            output_tokens=float(answers[i]) if rule.endswith("true lengths") else mean,
            ttft_s=scenario.slo.ttft_s,
            tpot_s=scenario.slo.tpot_s,
        )
        if rule in RIVALS:
            order = [[i % 2], [int(views[1].running < views[0].running)], [0], [1]][RIVALS.index(rule)]
        else:
            order = list(choose(policy, ask, views, dice).order)
        if order:
            held[order[0]].append(i)
            replicas[order[0]].enqueue(i, now_s)
            sent.append(i)
    for replica in replicas:
        while replica.busy:
            replica.advance(float("inf"))
    first_s, end_s = np.asarray(jobs.first_s)[sent], np.asarray(jobs.end_s)[sent]
    ttft_s = first_s - asked.arrival_s_N[sent]
    tpot_s = (end_s - first_s) / np.maximum(asked.output_tokens_N[sent] - 1, 1)
    return float(np.sum((ttft_s <= (scenario.slo.ttft_s or np.inf)) & (tpot_s <= (scenario.slo.tpot_s or np.inf)))) / n


def main() -> None:
    """Print the share of good requests by scenario, rate and rule, means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")
    said = parser.parse_args()
    rows = []
    for scenario in SCENARIOS:
        for rate in scenario.rates:
            for rule in (*RIVALS, *POLICIES):
                shares = [good_share(scenario, rule, rate, said.requests, seed) for seed in range(said.seeds)]
                rows.append({"scenario": scenario.name, "rate_per_s": rate, "rule": rule, "good": shares})
                if not said.json:
                    print(f"{scenario.name:<8}{rate:>6}/s  {rule:<24}{fmean(shares):.3f}", flush=True)
    if said.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
