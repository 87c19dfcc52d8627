"""Where a step's time goes, and how fast a bare decode loop runs."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from breakeven.engine.inside import messages as m
from breakeven.engine.inside.client import Inside
from breakeven.engine.inside.nodes import COMBINATION, EXPERTS, KINDS, ROUTER
from breakeven.errors import UserError
from breakeven.spec.study import NodeTime, Profile

Phase = Literal["decode", "prefill"]

# Decode needs many short steps for a steady median; one prefill step is long and steady.
DECODE_STEPS = 32
PREFILL_STEPS = 4
_UNTIMED_STEPS = 2


def profile(
    model: Path,
    *,
    phase: Phase = "decode",
    prompt_tokens: int = 128,
    steps: int | None = None,
    threads: int | None = None,
    name: str | None = None,
    seed: int = 0,
) -> Profile:
    """Median time of each kind of node in one step, of one stream decoding or of a prompt being read.

    The tokens are drawn evenly from the vocabulary: speed does not depend on what they say, and distinct ones reach
    as many experts as a text can. Raises UserError for numbers below 1.
    """
    steps = (DECODE_STEPS if phase == "decode" else PREFILL_STEPS) if steps is None else steps
    if prompt_tokens < 1 or steps < 1:
        raise UserError(f"a profile needs at least 1 prompt token and 1 step, not {prompt_tokens} and {steps}")
    with Inside(model, threads) as inside:
        n = prompt_tokens + (steps + _UNTIMED_STEPS if phase == "decode" else 0)
        tokens = random_tokens(inside.loaded.n_vocab, n, seed)
        timed = inside.ask(m.Time(phase=phase, tokens=tokens, steps=steps), m.Timed)
    return Profile(
        model=name or model.stem,
        phase=phase,
        tokens=1 if phase == "decode" else prompt_tokens,
        nodes=[NodeTime(kind, timed.seconds[kind]) for kind in KINDS if kind in timed.seconds],
        router_share_of_moe_block=router_share(timed.seconds),
        observing_overhead=timed.observed_step_s / timed.plain_step_s - 1,
    )


def router_share(seconds: Mapping[str, float]) -> float | None:
    """The router's part of the MoE block's time; None for a dense model.

    router / (router + expert products + combination), shared experts counted with the expert products: the quantity
    of section 5.6 of arXiv 2606.21428.
    """
    block = sum(seconds.get(kind, 0.0) for kind in (ROUTER, EXPERTS, COMBINATION))
    return seconds.get(ROUTER, 0.0) / block if block else None


def bare_decode_rate(
    model: Path,
    *,
    prompt_tokens: int = 128,
    output_tokens: int = 64,
    threads: int | None = None,
    environment: Mapping[str, str] | None = None,
    seed: int = 0,
) -> float:
    """Tokens per second of a loop that only calls `llama_decode`: no sampling, no server, one stream.

    `environment` is added to the child's, to run it with the same OpenMP settings as what it is compared with.
    """
    if prompt_tokens < 1 or output_tokens < 1:
        raise UserError(f"a rate needs at least 1 prompt and 1 output token, not {prompt_tokens} and {output_tokens}")
    with Inside(model, threads, environment) as inside:
        tokens = random_tokens(inside.loaded.n_vocab, prompt_tokens + output_tokens, seed)
        rated = inside.ask(m.Rate(prompt=tokens[:prompt_tokens], tokens=tokens[prompt_tokens:]), m.Rated)
    return len(rated.steps_s) / sum(rated.steps_s)


def random_tokens(n_vocab: int, n: int, seed: int) -> list[int]:
    """`n` token ids drawn evenly, the same for the same seed."""
    rng = random.Random(f"profile-tokens-{seed}")
    return [rng.randrange(n_vocab) for _ in range(n)]
