"""The numbers that sentences are judged by: one function a quantity, from cases to estimates.

A new quantity is one entry of `QUANTITIES`. Nothing here knows what a sentence says; `claims` compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import msgspec
import numpy as np

from breakeven.answer.claim_cases import (
    ClaimCase,
    Quantity,
    capacity_commands,
    case_options,
    no_commands,
    predict_commands,
    ratio_of,
    said,
    traffic_options,
)
from breakeven.answer.cost import CostOptions, Served, served_as
from breakeven.errors import UserError
from breakeven.forecast.asked import asked_model, model_on, profiles_for
from breakeven.forecast.model import StepModel
from breakeven.forecast.predict import speed_ratio
from breakeven.forecast.routing import skewed
from breakeven.forecast.simulated import simulate_schedule
from breakeven.forecast.simulator.policy import Fleet
from breakeven.forecast.simulator.run import policy_of
from breakeven.forecast.terms import Terms
from breakeven.price.sensitivity import DRAFT_COST, DRAFTED_TOKENS, speculative_speedup
from breakeven.results.cost import Rented
from breakeven.stats.estimate import Estimate, around, bracketed, exactly
from breakeven.traffic.draw import draw
from breakeven.traffic.workload import Arrivals, Length, Workload

ACCEPTANCES = (0.5, 0.7, 0.9)
"""Shares of drafted tokens accepted, over which a speculative speed-up is banded: it depends on the text."""
SKEWS = (0.0, 1.2)
"""Exponents of a power law over experts: even routing, and one whose busiest experts take nearly every token."""
P99_NORMAL = 2.326
"""Standard deviations from the middle to the 99th percentile of a normal distribution."""
SHAPE_SPREAD = 0.20
"""Either way, of how a step grows with its batch: what ratios of two batches are held to (a judgement)."""
MOST_SEQUENCES = 256
"""At once, as vLLM starts with."""
CLAIM_REQUESTS, CLAIM_SEEDS = 1000, 3
"""Simulated at a load for its 99th percentile, and how many draws of them tell what of it is luck."""


@lru_cache(maxsize=256)
def _steps(
    names: tuple[str, ...], machine: str, engine: str | None, devices: int | None, format_name: str | None
) -> tuple[StepModel, ...]:
    asked = [asked_model(name, format_name) for name in names]
    profiles = profiles_for(asked, machine, engine, devices)
    return tuple(model_on(model, profile, devices) for model, profile in zip(asked, profiles, strict=True))


def _two(case: ClaimCase) -> tuple[StepModel, StepModel]:
    if case.of is None or case.over is None or case.machine is None:
        raise UserError(f"claim case {case.label!r}: name the models under of and over, and the machine")
    of, over = _steps((case.of, case.over), case.machine, case.engine, case.devices, case.format)
    return of, over


def _one(case: ClaimCase) -> StepModel:
    if case.of is None or case.machine is None:
        raise UserError(f"claim case {case.label!r}: name the model under of, and the machine")
    (model,) = _steps((case.of,), case.machine, case.engine, case.devices, case.format)
    return model


def _placed(model: StepModel, case: ClaimCase) -> StepModel:
    """With what does not fit beside this case's cache in host memory."""
    return model.placed(case.batch, case.context)


def _each(number: Callable[[ClaimCase], Estimate]) -> Callable[[Sequence[ClaimCase]], list[Estimate]]:
    return lambda cases: [number(case) for case in cases]


def _decode_ratio(case: ClaimCase) -> Estimate:
    of, over = (_placed(model, case) for model in _two(case))
    return speed_ratio(of, over, case.batch, case.context)


def _full_ratio(case: ClaimCase) -> Estimate:
    """Decode speed over decode speed, each with as many sequences of the context as fit beside its weights."""
    of, over = _two(case)
    full = [int(min(MOST_SEQUENCES, (model.kv_tokens(case.context) or 0.0) // case.context)) for model in (of, over)]
    if not all(full):
        raise UserError(
            f"claim case {case.label!r}: not one sequence of {case.context} tokens fits; name another machine"
        )
    rates = [batch / float(model.step_s(batch, case.context)) for batch, model in zip(full, (of, over), strict=True)]
    value, known = rates[0] / rates[1], speed_ratio(of, over, full[1], case.context)
    return Estimate(value, value * known.least / known.value, value * known.most / known.value)


def _token_ms(case: ClaimCase) -> Estimate:
    model = _placed(_one(case), case)
    fast, slow = model.low_high("decode")
    return around([1e3 * float(each.step_s(case.batch, case.context)) for each in (model, fast, slow)])


def _tokens_per_s(case: ClaimCase) -> Estimate:
    return _token_ms(case).inverse().scaled(1e3 * case.batch)


def _memory_ratio(case: ClaimCase) -> Estimate:
    of, over = (model.memory_bytes(case.batch, case.context) for model in _two(case))
    return exactly(float(of / over))


def _memory_share(case: ClaimCase) -> Estimate:
    model = _one(case)
    usable = model.usable_bytes()
    if usable is None:
        raise UserError(f"claim case {case.label!r}: how much memory {case.machine} has is not known; name another")
    return exactly(float(model.memory_bytes(case.batch, case.context) / usable))


def _workload(case: ClaimCase, rate_per_s: float = 1.0) -> Workload:
    return Workload(
        arrivals=Arrivals(process="poisson", rate_per_s=rate_per_s),
        prompt=Length(kind="fixed", mean=float(case.prompt)),
        output=Length(kind="fixed", mean=float(case.output)),
        turns=case.turns,
        requests=CLAIM_REQUESTS,
    )


def _cost_options(case: ClaimCase) -> CostOptions:
    return CostOptions(
        workload=_workload(case),
        machine=case.machine or "this",
        engine=case.engine,
        devices=case.devices,
        format_name=case.format,
    )


@lru_cache(maxsize=64)
def _served(name: str, key: ClaimCase) -> Served:
    try:
        return served_as(name, _cost_options(key))
    except UserError:
        # Where the catalogue has no rent, capacities can still be told.
        return served_as(name, replace(_cost_options(key), pricing=Rented(usd_per_hour=1.0)))


def _serving(name: str, case: ClaimCase, machine: str | None) -> Served:
    """A model at its saturation; cases that differ in what does not change it share one simulation."""
    plain = ClaimCase(label="", machine=machine, engine=case.engine, devices=case.devices, format=case.format)
    return _served(name, msgspec.structs.replace(plain, prompt=case.prompt, output=case.output, turns=case.turns))


def _capacity_ratio(case: ClaimCase) -> Estimate:
    """Requests/s at saturation on one machine, and so at one price."""
    if case.of is None or case.over is None:
        raise UserError(f"claim case {case.label!r}: name the models under of and over")
    of, over = (_serving(name, case, case.machine).offer for name in (case.of, case.over))
    if of.capacity_per_s is None or over.capacity_per_s is None or not over.serves:
        raise UserError(f"claim case {case.label!r}: {case.over} serves nothing on {case.machine}; name another")
    same = of.machine == over.machine
    return ratio_of(of.capacity_per_s, over.capacity_per_s, max(of.own_share, over.own_share) if same else 1.0)


def _cost_ratio(case: ClaimCase) -> Estimate:
    """What an hour costs, `of` over `over`: as many machines as a load needs, each at its catalogued rent."""
    if case.of is None or case.over is None:
        raise UserError(f"claim case {case.label!r}: name the models under of and over")
    rate = _rate(case)
    bills = [
        around([float(offer.stairs(at).usd_per_hour(rate)) for at in (0.0, -1.0, 1.0)])
        for offer in (
            _serving(case.of, case, case.machine).offer,
            _serving(case.over, case, case.over_machine or case.machine).offer,
        )
    ]
    return Estimate(bills[0].value / bills[1].value, bills[0].least / bills[1].most, bills[0].most / bills[1].least)


def _rate(case: ClaimCase) -> float:
    """The load of a case: as it says, or a share of what one replica of `of` carries."""
    if case.rate is not None:
        return case.rate
    assert case.of is not None
    capacity = _serving(case.of, case, case.machine).offer.capacity_per_s
    assert capacity is not None
    return float(f"{case.utilisation * capacity.value:.3g}")


def _tail_ratio(case: ClaimCase) -> Estimate:
    """P99 over P50 of whole answers, `of` over `over`, each at one share of its own saturation.

    At one share of saturation a slower machine is the same run in slow motion: what is left to be unsure of is luck.
    `of` over itself compares skewed routing with even.
    """
    plain = msgspec.structs.replace(case, label="", over=None, skew=0.0)
    over = msgspec.structs.replace(plain, of=case.over)
    return ratio_of(_answer_spread(msgspec.structs.replace(plain, skew=case.skew)), _answer_spread(over))


@lru_cache(maxsize=64)
def _answer_spread(case: ClaimCase) -> Estimate:
    """P99 over P50 of whole answers of `of`, over several draws of the arrivals."""
    model = _one(case)
    capacity = _serving(case.of or "", case, case.machine).offer.capacity_per_s
    assert capacity is not None
    if case.skew and model.terms.moe:
        model = replace(model, terms=skewed(model.terms, case.skew))
    workload = _workload(case, case.utilisation * capacity.value)
    found = []
    for seed in range(CLAIM_SEEDS):
        schedule = draw(msgspec.structs.replace(workload, seed=seed))
        policy = policy_of(model, float((schedule.prompt_N + schedule.output_N).mean()))
        run, counted_N = simulate_schedule(schedule, model, policy, Fleet())
        found.append(float(run.percentiles("e2e", 99, counted_N) / run.percentiles("e2e", 50, counted_N)))
    return bracketed(float(np.median(found)), min(found), max(found))


def _routing_spread(case: ClaimCase) -> Estimate:
    """P99 of a decode step over its mean, from nothing but which experts its tokens happen to choose.

    Of every layer's touched experts the variance is at most sum q (1 - q), q = (1 - p)^B being the chance that B
    sequences miss one; layers choose independently. The step's time follows its bytes. The value is the most it can be.
    """
    model = _one(case)
    terms = skewed(model.terms, case.skew) if case.skew else model.terms
    spread = _touched_deviation(terms, case.batch)
    parts = model.parts(case.batch, case.context)
    expert_bytes = sum(
        float(nbytes) * (1 - (1 - group.per_token / group.n_experts) ** case.batch)
        for group in terms.experts
        for _, nbytes in group.types
    )
    share = min(1.0, expert_bytes / float(parts.weight_bytes + parts.kv_bytes))
    most = 1 + P99_NORMAL * spread * share
    return Estimate(most, 1.0, most)


def _touched_deviation(terms: Terms, batch: int) -> float:
    """Standard deviation over mean of the experts touched, all layers together; an upper bound."""
    mean = variance = 0.0
    for group in terms.experts:
        levels = group.frequencies or (group.per_token / group.n_experts,)
        miss = (1 - np.minimum(np.array(levels), 1.0)) ** batch
        each = group.layers * group.n_experts / len(levels)
        mean += each * float(np.sum(1 - miss))
        # A single token touches as many experts as it is sent to, always.
        variance += each * float(np.sum(miss * (1 - miss))) if batch > 1 else 0.0
    return math.sqrt(variance) / mean if mean else 0.0


def _speculation_ratio(case: ClaimCase) -> Estimate:
    """Speed-up by speculative decoding, `of` over `over`; banded over acceptance and over routing, even or skewed."""
    of, over = _two(case)
    found = [_speculated(of, over, case, acceptance) for acceptance in (0.7, *ACCEPTANCES)]
    for skew in SKEWS[1:]:
        uneven = [replace(m, terms=skewed(m.terms, skew)) if m.terms.moe else m for m in (of, over)]
        found += [_speculated(uneven[0], uneven[1], case, acceptance) for acceptance in ACCEPTANCES]
    banded = around(found)
    return Estimate(banded.value, banded.least / (1 + SHAPE_SPREAD), banded.most * (1 + SHAPE_SPREAD))


def _speculated(of: StepModel, over: StepModel, case: ClaimCase, acceptance: float) -> float:
    up, over_up = (
        speculative_speedup(m, case.batch, case.context, DRAFTED_TOKENS, acceptance, DRAFT_COST) for m in (of, over)
    )
    return up / over_up


def _cost_commands(cases: Sequence[ClaimCase]) -> list[str]:
    first = cases[0]
    names = f"{first.of}@{first.machine} {first.over}@{first.over_machine or first.machine}"
    rates = ",".join(f"{rate:g}" for rate in dict.fromkeys(_rate(case) for case in cases))
    return [said("breakeven cost", names, *case_options(first), f"--rate {rates}", traffic_options(first))]


def _tail_commands(cases: Sequence[ClaimCase]) -> list[str]:
    """Either model at the loads that are its own shares of its saturation."""
    first = cases[0]
    if first.skew:
        return []
    found = []
    for name in (first.of, first.over):
        rates = ",".join(f"{_rate(msgspec.structs.replace(case, of=name)):g}" for case in cases)
        where = f"--machine {first.machine}"
        found.append(
            said("breakeven simulate", name, where, *case_options(first), f"--rate {rates}", traffic_options(first))
        )
    return found


def _not_computed(cases: Sequence[ClaimCase]) -> list[Estimate]:
    raise UserError(f"claim case {cases[0].label!r}: only published numbers are known of this; give its value")


QUANTITIES: dict[str, Quantity] = {
    "decode-ratio": Quantity("decode speed over decode speed", "times", _each(_decode_ratio), predict_commands),
    "full-ratio": Quantity(
        "decode speed over decode speed, each as full as it gets", "times", _each(_full_ratio), no_commands
    ),
    "token-time": Quantity("time of one token", "ms", _each(_token_ms), predict_commands),
    "decode-speed": Quantity("decode speed", "tok/s", _each(_tokens_per_s), predict_commands),
    "memory-ratio": Quantity("memory over memory", "times", _each(_memory_ratio), predict_commands),
    "memory-share": Quantity("memory needed over memory there", "times", _each(_memory_share), predict_commands),
    "capacity-ratio": Quantity(
        "saturated requests/s over requests/s", "times", _each(_capacity_ratio), capacity_commands
    ),
    "cost-ratio": Quantity("dollars an hour over dollars an hour", "times", _each(_cost_ratio), _cost_commands),
    "tail-ratio": Quantity("P99/P50 of answers over P99/P50", "times", _each(_tail_ratio), _tail_commands),
    "routing-spread": Quantity(
        "P99 of a step over its mean, by routing alone", "times", _each(_routing_spread), no_commands
    ),
    "speculation-ratio": Quantity(
        "speculative speed-up over speed-up", "times", _each(_speculation_ratio), no_commands
    ),
    "energy-ratio": Quantity("energy a token over energy a token", "times", _not_computed, no_commands),
    "power-ratio": Quantity("watts over watts", "times", _not_computed, no_commands),
    "time-share": Quantity("share of the time of MoE blocks", "times", _not_computed, no_commands),
    "gap-share": Quantity("share of the gap in speed", "times", _not_computed, no_commands),
}
"""Every quantity by the name that the data gives it."""
