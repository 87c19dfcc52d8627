"""Backends as a router sees them, made of plain numbers; and two real step models' tables."""

from __future__ import annotations

from functools import lru_cache

from breakeven.gateway.plan.model import BackendPlan, PolicyPlan
from breakeven.gateway.route.build import table_of
from breakeven.gateway.route.speed import SpeedTable
from breakeven.gateway.route.view import Ask, Score, View
from breakeven.gateway.seen.record import Attempt, DecisionRecord
from breakeven.traffic.workload import Slo

CHAT = "/v1/chat/completions"


class Line:
    """A `Speed` of straight lines: everything rises with what is there."""

    def __init__(self, ttft_s: float = 0.1, tpot_s: float = 0.01, per_running: float = 0.1) -> None:
        self.first_s, self.token_s, self.per_running = ttft_s, tpot_s, per_running

    def ttft_s(
        self, prompt_tokens: float, running: float, context: float, ahead_tokens: float, waiting: float
    ) -> float:
        return self.first_s * (1 + self.per_running * (running + waiting)) + 1e-5 * (prompt_tokens + ahead_tokens)

    def tpot_s(self, running: float, context: float) -> float:
        return self.token_s * (1 + self.per_running * running)

    def added_s(self, prompt_tokens: float, output_tokens: float, running: float, context: float) -> float:
        return output_tokens * self.token_s / (1 + running)


def view(index: int, name: str, **said: object) -> View:
    """A view with a `Line`; `ttft`, `tpot` are its own, the rest attributes of the view."""
    made = View(index, name, Line(float(said.pop("ttft", 0.1)), float(said.pop("tpot", 0.01))))  # type: ignore[arg-type]
    made.endpoints = frozenset((CHAT,))
    for key, value in said.items():
        setattr(made, key, value)
    return made


def ask(**said: object) -> Ask:
    """A chat request of 500 tokens that expects 200."""
    return Ask(**{"endpoint": CHAT, "prompt_tokens": 500.0, "output_tokens": 200.0, **said})  # type: ignore[arg-type]


def policy(name: str = "breakeven", **said: object) -> PolicyPlan:
    """A policy that explores nothing unless told."""
    return PolicyPlan(**{"model": "m", "backends": (), "policy": name, "explore": 0.0, "slo": Slo(), **said})  # type: ignore[arg-type]


@lru_cache(maxsize=8)
def real_table(model: str, machine: str = "h100-sxm") -> SpeedTable:
    """The table of a catalogued model on a catalogued chip."""
    return table_of(BackendPlan(name=model, url="http://localhost/v1", model=model, machine=machine))


def record(**said: object) -> DecisionRecord:
    """A logged request that went to the cheaper of two."""
    usual: dict[str, object] = {
        "id": "r1",
        "time_s": 1_700_000_000.0,
        "model": "chat",
        "endpoint": CHAT,
        "policy": "breakeven",
        "reason": "cheapest_that_fits",
        "backend": "moe",
        "status": 200,
        "stream": True,
        "asked_ttft_s": 0.3,
        "asked_tpot_s": 0.05,
        "predicted_prompt_tokens": 500.0,
        "predicted_output_tokens": 200.0,
        "predicted_ttft_s": 0.1,
        "predicted_tpot_s": 0.02,
        "alternative": "dense",
        "scores": [
            Score(backend="dense", ttft_s=0.9, tpot_s=0.02, usd=0.001, headroom=0.33, running=7),
            Score(backend="moe", ttft_s=0.1, tpot_s=0.02, usd=0.002, headroom=2.5, running=3),
        ],
        "attempts": [Attempt(backend="moe", outcome="answered", start_s=0.0, seconds=4.0)],
        "ttft_s": 0.12,
        "tpot_s": 0.019,
        "e2e_s": 4.0,
        "output_tokens": 205,
        "prompt_tokens": 498,
        "usd": 0.0021,
        "usd_elsewhere": 0.001,
    }
    return DecisionRecord(**{**usual, **said})  # type: ignore[arg-type]
