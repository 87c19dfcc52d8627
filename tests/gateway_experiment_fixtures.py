"""Records of made-up requests, and experiments on them."""

from __future__ import annotations

import random
from typing import Any

from breakeven.gateway.plan.model import BackendPlan, ExperimentPlan, GatewayPlan, PolicyPlan
from breakeven.gateway.seen.record import Attempt, DecisionRecord


def record(number: int, **changed: Any) -> DecisionRecord:
    """A whole answer of backend "dense" to request `r<number>`, which arrived at second `number`."""
    fields: dict[str, Any] = {
        "id": f"r{number}",
        "time_s": float(number),
        "model": "breakeven",
        "endpoint": "/v1/chat/completions",
        "policy": "breakeven",
        "reason": "cheapest_that_fits",
        "backend": "dense",
        "status": 200,
        "ttft_s": 0.1,
        "tpot_s": 0.01,
        "e2e_s": 1.0,
        "output_tokens": 90,
        "usd": 1e-4,
        "finish": "stop",
    }
    return DecisionRecord(**(fields | changed))


def experiment(**changed: Any) -> ExperimentPlan:
    """An A/B test of "moe" against "dense" on their time to the end."""
    fields: dict[str, Any] = {
        "name": "try-moe",
        "kind": "ab",
        "model": "breakeven",
        "control": "dense",
        "treatment": "moe",
    }
    return ExperimentPlan(**(fields | changed))


def gateway(*experiments: ExperimentPlan) -> GatewayPlan:
    """Two backends, one public model."""
    backends = tuple(BackendPlan(name=name, url=f"http://127.0.0.1:1/{name}/v1") for name in ("dense", "moe"))
    policy = PolicyPlan(model="breakeven", backends=("dense", "moe"))
    return GatewayPlan(path=None, backends=backends, policies=(policy,), experiments=experiments)


def arm_record(number: int, treatment: bool, **changed: Any) -> DecisionRecord:
    """A record of one arm of `experiment()`, answered by that arm's backend."""
    backend = "moe" if treatment else "dense"
    arm = {"experiment": "try-moe", "arm": "treatment" if treatment else "control", "backend": backend}
    return record(number, **(arm | changed))


def failed(number: int, treatment: bool) -> DecisionRecord:
    """The arm's backend broke down, and the other one answered."""
    own, other = ("moe", "dense") if treatment else ("dense", "moe")
    attempts = [
        Attempt(backend=own, outcome="reset", start_s=0.0, seconds=0.1),
        Attempt(backend=other, outcome="answered", start_s=0.1, seconds=1.0),
    ]
    return arm_record(number, treatment, backend=other, attempts=attempts)


def latencies(rng: random.Random, count: int, ratio: float) -> list[DecisionRecord]:
    """`count` records of random arms: long-tailed times, the treatment's `ratio` times the control's."""
    made = []
    for number in range(count):
        treatment = rng.random() < 0.5
        e2e_s = rng.lognormvariate(0.0, 0.8) * (ratio if treatment else 1.0)
        made.append(arm_record(number, treatment, e2e_s=e2e_s))
    return made
