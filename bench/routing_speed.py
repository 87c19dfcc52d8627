"""Microseconds of one routing decision among 2 to 64 backends with real step models, by policy.

    python bench/routing_speed.py [--json]

Loads change between decisions as they do in a gateway: the chosen backend has one request more, another one less. The
best of many short runs is told (who else uses the machine makes the others longer), and the median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from random import Random

from breakeven.gateway.plan.model import BackendPlan, PolicyPlan
from breakeven.gateway.route.build import table_of
from breakeven.gateway.route.choose import choose
from breakeven.gateway.route.policies import POLICIES
from breakeven.gateway.route.view import Ask, View
from breakeven.traffic.workload import Slo

KINDS = (
    ("llama-3.1-8b", "h100-sxm", "dense"),
    ("qwen3-30b-a3b", "h100-sxm", "moe"),
    ("llama-3.2-1b", "apple-m2-pro", "dense"),
    ("olmoe-1b-7b", "apple-m2-pro", "moe"),
)
DECISIONS, RUNS = 20, 400


def views(count: int) -> list[View]:
    """`count` backends, each with a table of its own and some load."""
    found = []
    for i in range(count):
        model, machine, kind = KINDS[i % len(KINDS)]
        plan = BackendPlan(name=f"b{i}", url="http://localhost/v1", model=model, machine=machine)
        made = View(i, plan.name, table_of(plan))
        made.kind, made.usd_per_s, made.context = kind, 0.001 * (1 + i % 3), 700.0
        made.endpoints, made.running = frozenset(("/v1/chat/completions",)), float(i % 7)
        found.append(made)
    return found


def decisions_us(name: str, count: int) -> list[float]:
    """Microseconds a decision, by run."""
    there, dice = views(count), Random(1)
    policy = PolicyPlan(model="m", backends=tuple(v.name for v in there), policy=name, slo=Slo(ttft_s=0.5, tpot_s=0.05))
    asks = [
        Ask(
            endpoint="/v1/chat/completions",
            prompt_tokens=float(dice.randint(50, 3000)),
            output_tokens=float(dice.randint(20, 600)),
            ttft_s=0.5,
            tpot_s=0.05,
        )
        for _ in range(DECISIONS)
    ]
    taken = []
    for _ in range(RUNS):
        spent = 0
        for ask in asks:
            start_ns = time.perf_counter_ns()
            choice = choose(policy, ask, there, dice)
            spent += time.perf_counter_ns() - start_ns
            there[choice.order[0]].running += 1.0
            other = there[dice.randrange(count)]
            other.running = max(0.0, other.running - 1.0)
        taken.append(spent / DECISIONS / 1000)
    return taken


def main() -> None:
    """Print a row a policy and number of backends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    as_json = parser.parse_args().json
    rows = []
    for name in POLICIES:
        for count in (2, 8, 64) if name == "breakeven" else (8,):
            taken = decisions_us(name, count)
            rows.append(
                {"policy": name, "backends": count, "best_us": min(taken), "median_us": statistics.median(taken)}
            )
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'policy':<12}{'backends':>9}{'best us':>10}{'median us':>11}")
    for row in rows:
        print(f"{row['policy']:<12}{row['backends']:>9}{row['best_us']:>10.1f}{row['median_us']:>11.1f}")


if __name__ == "__main__":
    main()
