"""One run: a cut of a trace, two backends, one rule of routing; what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np

from bench.goodput.backends import server_of
from bench.goodput.cases import Case, Cut
from bench.goodput.oracle import ORACLES, Oracle, room
from bench.goodput.routing import Known, estimated_prompts
from breakeven.forecast.simulator.state import Jobs
from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route.choose import choose, score_of
from breakeven.gateway.route.view import Ask, Score

RIVALS = ("round robin", "least busy", "random")
ALONE = ("dense alone", "moe alone")
PAIRS = ("dense twice", "moe twice")
"""The same machine money on two of one kind, least busy first."""
LEAST_RATE, MOST_RATE = 0.02, 1000.0
"""Requests a second between which capacities are searched."""
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`good` of `requests` kept every promise; `refused` were told so at once. `usd`: rent of the time, and tokens."""

    requests: int
    good: int
    refused: int
    seconds: float
    dense_share: float
    usd: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    corrections: tuple[tuple[float, float], ...]

    @property
    def good_share(self) -> float:
        """Of all requests, refused ones among them."""
        return self.good / self.requests

    @property
    def good_per_s(self) -> float:
        """Goodput."""
        return self.good / self.seconds


def play(case: Case, rule: str, cut: Cut, rate_per_s: float, seed: int, *, true_model: bool = False) -> Outcome:
    """Route `cut` at `rate_per_s` by `rule`: a rival's name, `PAIRS`, `ORACLES` or a policy's (", shed" refuses).

    `seed` draws how far machines are from their step models (not with `true_model`), what prompts are estimated at, and
    every choice by chance; all rules meet the same machines.
    """
    asked = cut.at(rate_per_s)
    jobs, dice = Jobs(asked), Random(seed)
    kinds = ("dense", "moe")
    if rule in PAIRS:
        kinds = (kinds[PAIRS.index(rule)],) * 2
    offers = [case.dense if kind == "dense" else case.moe for kind in kinds]
    truth = -1 if true_model else seed
    places = [
        Known(k, place, kind, server_of(place, asked, jobs, truth), asked, jobs)
        for k, (place, kind) in enumerate(zip(offers, kinds, strict=True))
    ]
    oracle = Oracle(case, rule, asked) if rule in ORACLES else None
    name, _, option = rule.partition(", ")
    policy = PolicyPlan(
        model="m",
        backends=tuple(place.model for place in offers),
        policy=name if name in case.policies else "breakeven",
        slo=case.slo,
        shed=option == "shed",
    )
    views = [place.view for place in places]
    prompts = estimated_prompts(asked, seed)
    answers = asked.output_tokens_N.tolist()
    sent = np.zeros(len(asked), bool)
    for i, now_s in enumerate(asked.arrival_s_N.tolist()):
        for place in places:
            place.look(now_s)
        known = answers[i] if option == "true lengths" else places[0].output_tokens
        ask = Ask(
            endpoint=CHAT,
            prompt_tokens=prompts[i],
            output_tokens=float(known),
            ttft_s=case.slo.ttft_s,
            tpot_s=case.slo.tpot_s,
            streams=True,
        )
        score: Score | None = None
        if oracle is not None:
            k = oracle.choose(i, now_s, places)
        elif name in case.policies:
            choice = choose(policy, ask, views, dice)
            if not choice.order:
                continue
            k = choice.order[0]
            score = score_of(choice, views[k].name)
        else:
            k = _blind(rule, i, places, dice)
        sent[i] = True
        places[k].send(i, now_s, prompts[i], ask.output_tokens, score)
    for place in places:
        place.server.move(float("inf"))
    return _outcome(case, asked.arrival_s_N, jobs, sent, places, rule)


def saturation(case: Case, cut: Cut, seed: int, keep: float = 0.9) -> float:
    """Requests a second at which the dense backend alone keeps `keep` of its promises, plus the same of the MoE one.

    A hosted model has no such rate; only the other one counts. Bisected to 4 %.
    """
    return sum(
        _capacity(case, rule, cut, seed, keep)
        for rule, place in zip(ALONE, case.places, strict=True)
        if place.machine is not None
    )


def _capacity(case: Case, rule: str, cut: Cut, seed: int, keep: float) -> float:
    low, high = LEAST_RATE, LEAST_RATE
    while high < MOST_RATE and play(case, rule, cut, high, seed).good_share >= keep:
        low, high = high, 4.0 * high
    while high - low > 0.04 * high:
        middle = (low + high) / 2.0
        low, high = (middle, high) if play(case, rule, cut, middle, seed).good_share >= keep else (low, middle)
    return low


def _blind(rule: str, i: int, places: list[Known], dice: Random) -> int:
    """Rules that know nothing of speeds."""
    if rule in ALONE:
        return ALONE.index(rule)
    if rule == "round robin":
        return i % 2
    if rule == "random":
        return dice.randrange(2)
    first, second = (len(place.held) for place in places)
    return i % 2 if first == second else int(second < first)


def _outcome(
    case: Case, arrival_s_N: np.ndarray, jobs: Jobs, sent_N: np.ndarray, places: list[Known], rule: str
) -> Outcome:
    sent = np.flatnonzero(sent_N).tolist()
    good = 0
    ttft_s, tpot_s = [], []
    for i in sent:
        first_s, end_s, tokens = jobs.first_s[i], jobs.end_s[i], jobs.output[i]
        ttft_s.append(first_s - arrival_s_N[i])
        tpot_s.append((end_s - first_s) / max(tokens - 1, 1))
        good += room(case.slo, ttft_s[-1], end_s - first_s, tokens) >= 1.0
    seconds = float(arrival_s_N[-1] - arrival_s_N[0])
    rented = places if rule not in ALONE else [places[ALONE.index(rule)]]
    usd = 0.0
    for place in rented:
        usd += place.view.usd_per_s * seconds
        usd += sum(
            jobs.prompt[i] * place.view.usd_per_input + jobs.output[i] * place.view.usd_per_output for i in place.served
        )
    return Outcome(
        requests=len(arrival_s_N),
        good=int(good),
        refused=len(arrival_s_N) - len(sent),
        seconds=seconds,
        dense_share=sum(len(p.served) for p in places if p.view.kind == "dense") / max(1, len(sent)),
        usd=usd,
        ttft_p50_s=float(np.percentile(ttft_s, 50)) if ttft_s else float("nan"),
        ttft_p99_s=float(np.percentile(ttft_s, 99)) if ttft_s else float("nan"),
        tpot_p50_s=float(np.percentile(tpot_s, 50)) if tpot_s else float("nan"),
        corrections=tuple(place.corrections for place in places),
    )
