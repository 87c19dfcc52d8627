"""Models of made-up speed for the simulator's tests, and the simulator's rules once more without any skipping."""

from __future__ import annotations

from itertools import count

import numpy as np
from numpy.typing import NDArray

from breakeven.forecast.constants import Constants, Error, Profile, ProfileOrigin
from breakeven.forecast.model import StepModel, step_model
from breakeven.forecast.simulator.policy import Policy
from breakeven.forecast.simulator.run import table_for
from breakeven.forecast.simulator.state import Requests
from breakeven.model.resolve import resolve_spec

TINY_POLICY = Policy(name="tiny", max_sequences=16, max_step_tokens=1024)


def profile(engine: str = "vllm") -> Profile:
    """A small GPU: 300 GB/s, 40 TFLOP/s, with every kind of fixed cost."""
    return Profile(
        name="made-up",
        engine=engine,
        constants=Constants(
            weight_bytes_per_s=3e11,
            kv_bytes_per_s=2e11,
            decode_flops_per_s=3e13,
            prefill_flops_per_s=4e13,
            overlap=0.9,
            step_s=2e-4,
            layer_s=1e-5,
            moe_layer_s=2e-5,
            sequence_s=2e-5,
            prefill_token_s=1e-6,
        ),
        errors=[
            Error(phase=phase, kind=kind, log_half_width=0.2, between_models=0.1, median=0.1, n=3)
            for phase in ("decode", "prefill")
            for kind in ("dense", "moe")
        ],
        ranges=[],
        origin=ProfileOrigin(how="probes", engine=engine, engine_version=None, date="2026-01-01", version="0"),
        memory_bytes=24 * 10**9,
    )


def model(name: str, engine: str = "vllm") -> StepModel:
    """A catalogue model on that GPU."""
    return step_model(resolve_spec(name), profile(engine), "bf16")


def naive_simulation(
    requests: Requests, model: StepModel, policy: Policy
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """First token, last token and longest gap of every request on one replica with memory enough, step by step."""
    n = len(requests)
    table = table_for(requests, model, policy)  # how near it is to the model has a test of its own
    prompt, output = requests.prompt_tokens_N.tolist(), requests.output_tokens_N.tolist()
    arrival = [a + policy.front_s for a in requests.arrival_s_N.tolist()]
    first, end, gap = np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan)
    fits = [policy.slot_tokens is None or prompt[i] + output[i] <= policy.slot_tokens for i in range(n)]
    fits = [ok and (policy.chunked or prompt[i] <= policy.max_step_tokens) for i, ok in enumerate(fits)]
    todo = [i for i in range(n) if fits[i]]
    here: list[int] = []
    read, given, clock = [0] * n, [0] * n, 0.0
    free, slot_of = list(range(policy.max_sequences)), dict[int, int]()
    while todo or here:
        if not here:
            clock = max(clock, arrival[todo[0]])
        decoding = [i for i in here if read[i] == prompt[i]]
        budget = policy.max_step_tokens - len(decoding)
        plan: list[tuple[int, int]] = []
        for i in [i for i in here if read[i] < prompt[i]]:
            plan.append((i, min(budget, prompt[i] - read[i])))
            budget -= plan[-1][1]
        while todo and arrival[todo[0]] <= clock and budget > 0 and len(here) < policy.max_sequences:
            i = todo[0]
            if not policy.chunked and prompt[i] > budget:
                break
            here.append(todo.pop(0))
            slot_of[i] = free.pop(0)
            plan.append((i, min(budget, prompt[i])))
            budget -= plan[-1][1]
        plan = [(i, k) for i, k in plan if k]
        context = float(np.mean([prompt[i] + given[i] - 1 for i in decoding])) if decoding else 0.0
        tokens = sum(k for _, k in plan)
        span = sum(k * (read[i] + k / 2) for i, k in plan) / tokens if tokens else 0.0
        d, left, passes = len(decoding), tokens, list[tuple[int, int]]()
        if policy.adjacent:
            taken = {slot_of[i] for i in decoding}
            runs = [next(k for k in count(1) if slot + k not in taken) for slot in taken if slot - 1 not in taken]
            passes, d = [(n, 0) for n in runs], 0
        elif policy.apart:
            passes, d = [(d, 0)] * bool(d), 0
        while d or left:
            k = left if policy.micro_batch is None else min(left, policy.micro_batch - d)
            passes.append((d, k))
            left, d = left - k, 0
        step_s = sum(table.mixed_s(d, context, k, span) if k else table.decode_s(d, context) for d, k in passes)
        clock += step_s
        for i in decoding:
            given[i] += 1
            gap[i] = max(gap[i], step_s)
        for i, k in plan:
            read[i] += k
            if read[i] == prompt[i]:
                given[i], first[i], gap[i] = 1, clock, 0.0
        ended = [i for i in sorted(decoding, key=slot_of.__getitem__) if given[i] == output[i]]
        for i in ended + [i for i, _ in plan if given[i] == output[i]]:
            end[i] = clock
            here.remove(i)
            free.append(slot_of[i])
    return first, end, gap
