"""What a calibration fits, constants, and what it fits them to, times of single steps.

Of each constant: where it starts, how far it may go, and how strongly it is held there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from breakeven.forecast.constants import Constants
from breakeven.forecast.residency import OFFLOAD_TOKENS, ON_DEVICE, Residency
from breakeven.forecast.terms import Floats, Terms, step_parts

Phase = Literal["decode", "prefill"]


@dataclass(frozen=True, slots=True)
class Observation:
    """One measured step. Decode: `sequences` of `tokens` context each got a token; prefill: `tokens` were read at once.

    `seconds` is the Hodges-Lehmann estimate over repetitions, `n` how many there were. `visits`: the same of each time
    that the probe was loaded and measured. `where`: where the weights lay meanwhile.
    """

    model: str
    terms: Terms
    phase: Phase
    sequences: int
    tokens: float
    seconds: float
    n: int = 1
    where: Residency = ON_DEVICE
    visits: tuple[float, ...] = ()

    @property
    def kind(self) -> Literal["dense", "moe"]:
        """Whether its model routes."""
        return "moe" if self.terms.moe else "dense"


@dataclass(frozen=True, slots=True)
class ParameterTable:
    """Observations by model and place as arrays, so that one pass through the step equation serves all of them."""

    observations: tuple[Observation, ...]
    groups: tuple[tuple[Terms, Residency, Floats, Floats], ...]
    """Terms, where they lie; rows of (D, C, P, C_P), as in `step_parts`; indices of the observations."""
    log_seconds: Floats

    def log_predicted(self, constants: Constants) -> Floats:
        """ln(seconds) of every observation's step under `constants`, in their order."""
        found = np.empty(len(self.observations))
        for terms, lies, (d, c, p, pc), where in self.groups:
            found[where.astype(np.intp)] = np.log(step_parts(terms, constants, d, c, p, pc, lies).total_s)
        return found


def table(observations: Sequence[Observation]) -> ParameterTable:
    """Observations grouped by model and place."""
    grouped: dict[tuple[int, Residency], tuple[Terms, list[tuple[float, float, float, float]], list[int]]] = {}
    for i, seen in enumerate(observations):
        _, rows, where = grouped.setdefault((id(seen.terms), seen.where), (seen.terms, [], []))
        rows.append(arguments(seen))
        where.append(i)
    groups = tuple(
        (terms, lies, np.array(rows).T, np.array(where)) for (_, lies), (terms, rows, where) in grouped.items()
    )
    return ParameterTable(tuple(observations), groups, np.log([seen.seconds for seen in observations]))


def arguments(seen: Observation) -> tuple[float, float, float, float]:
    """D, C, P and C_P of `breakeven.forecast.terms.step_parts`. A prompt's token attends to half of it on average."""
    if seen.phase == "decode":
        return float(seen.sequences), seen.tokens, 0.0, 0.0
    return 0.0, 0.0, seen.sequences * seen.tokens, (seen.tokens + 1.0) / 2.0


@dataclass(frozen=True, slots=True)
class Parameter:
    """A field of `Constants`, or one key of a field that is a dict; fitted as a logarithm, or a logit if `share`.

    `spread` is the prior's standard deviation on that scale: 1 means "within a factor e". `low` and `high` are what
    physics allows; nothing measured moves a constant beyond them.
    """

    field: str
    prior: float
    spread: float
    low: float
    high: float
    key: str | None = None
    share: bool = False

    @property
    def name(self) -> str:
        """As it is told: weight_bytes_per_s, type_cost[Q6_K]."""
        return self.field if self.key is None else f"{self.field}[{self.key}]"

    def to_scale(self, value: float) -> float:
        """The number the fit moves."""
        value = min(max(value, self.low), self.high)
        return float(np.log(value / (1.0 - value))) if self.share else float(np.log(value))

    def from_scale(self, x: float) -> float:
        """The constant, inside its bounds."""
        value = 1.0 / (1.0 + np.exp(-x)) if self.share else np.exp(x)
        return float(min(max(value, self.low), self.high))


COSTS = {
    "step_s": (1e-4, 1e-8, 0.1),
    "layer_s": (2e-5, 1e-9, 1e-2),
    "moe_layer_s": (2e-5, 1e-9, 1e-2),
    "expert_s": (2e-6, 1e-10, 1e-3),
    "sequence_s": (1e-4, 1e-9, 1e-1),
    "prefill_token_s": (1e-6, 1e-10, 1e-2),
    "element_s": (1e-9, 1e-13, 1e-6),
}
"""Prior, least and most of the costs in seconds. The priors are what kernel launches (microseconds) and a token's
sampling and sending (0.1 ms) take, as orders of magnitude; the spread of a factor e^2 makes them say no more."""
KV_ROW = (3e-8, 1e-11, 1e-5)
"""The same of a row of the cache, which attention on a CPU reads by itself: a third of a fetch from memory."""
HANDOVER = (5e-5, 1e-8, 1e-1)
"""The same of passing between the CPU and a device once: a synchronisation and a launch."""
HOST_RATES = ("host_bytes_per_s", "host_flops_per_s", "stream_bytes_per_s")
COST_SPREAD = 2.0
RATE_SPREAD = 1.5
"""Rates start at what the data themselves suggest, within a factor of e^1.5."""
TYPE_SPREAD = 0.5
"""Number types of one machine differ by tens of percent, seldom by more than a factor of two."""
TILE_PRIOR = 0.8
CPU_TILE = 4
"""llama.cpp multiplies four tokens at once by weights it has repacked, and the rest one by one (ggml-cpu, repack.cpp:
forward_mul_mat_one_chunk); experts go one by one always (forward_mul_mat_id). On x86 it repacks Q4_0, Q4_K, IQ4_NL."""
TILED = frozenset({"F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "IQ4_NL"})
"""Number types that it has not repacked and multiplies several tokens at once by all the same (llamafile/sgemm.cpp)."""
DECODE_SHARE = 0.7
"""Of the prompts' rate of arithmetic, what decoding reaches when nothing else limits it: the units are the same, the
matrices narrower. A judgement; where memory hides arithmetic at every batch probed, it keeps large batches sane."""
BYTES_PER_S = (1e7, 2e13)
FLOPS_PER_S = (1e8, 1e16)


def parameters(observations: Sequence[Observation], start: Constants) -> list[Parameter]:
    """The constants to fit to `observations`, with rates around those of `start`."""
    found = [
        Parameter(name, getattr(start, name), RATE_SPREAD, *bounds)
        for name, bounds in (
            ("weight_bytes_per_s", BYTES_PER_S),
            ("kv_bytes_per_s", BYTES_PER_S),
            ("decode_flops_per_s", FLOPS_PER_S),
            ("prefill_flops_per_s", FLOPS_PER_S),
        )
    ]
    found.append(Parameter("overlap", 0.5, 1.5, 0.01, 0.99, share=True))
    moe = any(seen.terms.moe for seen in observations)
    prefill = any(seen.phase == "prefill" for seen in observations)
    for name, (value, low, high) in COSTS.items():
        if (moe or name not in ("moe_layer_s", "expert_s")) and (prefill or name != "prefill_token_s"):
            found.append(Parameter(name, value, COST_SPREAD, low, high))
    if moe:
        found.append(Parameter("expert_compute", 1.0, TYPE_SPREAD, 0.1, 10.0))
    base, *others = _types(observations)
    found += [Parameter("type_cost", 1.0, TYPE_SPREAD, 0.2, 5.0, key=kind) for kind in others]
    found += [Parameter("type_compute", 1.0, TYPE_SPREAD, 0.2, 5.0, key=kind) for kind in others]
    if start.tile > 1:
        tiled = (base, *(kind for kind in others if kind in TILED))
        found += [Parameter("tile_cost", TILE_PRIOR, TYPE_SPREAD, 0.1, 1.0, key=kind) for kind in tiled]
        found.append(Parameter("kv_row_s", KV_ROW[0], COST_SPREAD, *KV_ROW[1:]))
    for name in HOST_RATES:
        if (prior := getattr(start, name)) is not None:
            bounds = FLOPS_PER_S if name == "host_flops_per_s" else BYTES_PER_S
            found.append(Parameter(name, prior, RATE_SPREAD, *bounds))
    if any(seen.where.handovers for seen in observations):
        value, low, high = HANDOVER
        found.append(Parameter("handover_s", value, COST_SPREAD, low, high))
    return found


def suggested(observations: Sequence[Observation], tile: int = 1) -> Constants:
    """Rates from the data: the fastest tenth of what single steps would reach if one term took all their time.

    `tile`: see `Constants.tile`; what the engine is known to do, not fitted.
    """
    weights, decode, prefill, kv = [], [], [], []
    here = [seen for seen in observations if seen.where.whole]
    for seen in here or observations:
        bytes_read = sum(n for _, n in seen.terms.fixed) + sum(
            n * group.per_token / group.n_experts for group in seen.terms.experts for _, n in group.types
        )
        if seen.phase == "prefill":
            prefill.append(seen.terms.token_flops * seen.sequences * seen.tokens / seen.seconds)
        else:
            weights.append(bytes_read / seen.seconds)
            decode.append(seen.terms.token_flops * seen.sequences / seen.seconds)
            kv.append(seen.terms.kv_bytes(seen.tokens) * seen.sequences / seen.seconds)
    most = [float(np.quantile(found, 0.9)) if found else None for found in (weights, decode, prefill, kv)]
    by_weights = most[0] or 1e10
    decode_flops = max(most[1] or 0.0, DECODE_SHARE * (most[2] or 0.0)) or 1e11
    beside = _beside(observations)
    return Constants(
        weight_bytes_per_s=by_weights,
        kv_bytes_per_s=max(most[3] or 0.0, 0.3 * by_weights),
        decode_flops_per_s=decode_flops,
        prefill_flops_per_s=most[2] or decode_flops,
        tile=tile,
        host_bytes_per_s=beside.get("host_bytes_per_s"),
        host_flops_per_s=beside.get("host_flops_per_s"),
        stream_bytes_per_s=beside.get("stream_bytes_per_s"),
    )


def _beside(observations: Sequence[Observation]) -> dict[str, float]:
    """`HOST_RATES` as the data suggest them: the fastest tenth of what lay in host memory, had it taken all the time.

    Empty where nothing lay there; without a prompt long enough to be copied over the link that rate lacks.
    """
    found: dict[str, list[float]] = {name: [] for name in HOST_RATES}
    for seen in observations:
        if seen.where.whole:
            continue
        outside = sum(share for _, share in seen.terms.work)
        flops = seen.terms.token_flops * (outside * seen.where.fixed_host + (1 - outside) * seen.where.experts_host)
        fixed = sum(n for _, n in seen.terms.fixed) * seen.where.fixed_host
        experts = [sum(n for _, n in group.types) for group in seen.terms.experts]
        if seen.phase == "decode":
            read = [
                n * min(seen.sequences * group.per_token / group.n_experts, 1.0)
                for n, group in zip(experts, seen.terms.experts, strict=True)
            ]
            found["host_bytes_per_s"].append((fixed + sum(read) * seen.where.experts_host) / seen.seconds)
            found["host_flops_per_s"].append(flops * seen.sequences / seen.seconds)
        elif seen.sequences * seen.tokens >= OFFLOAD_TOKENS:
            found["stream_bytes_per_s"].append((fixed + sum(experts) * seen.where.experts_host) / seen.seconds)
    return {name: float(np.quantile(rates, 0.9)) for name, rates in found.items() if rates and max(rates) > 0}


def with_values(constants: Constants, parameters: Sequence[Parameter], values: Sequence[float]) -> Constants:
    """`constants` with each parameter at its value (not on the fit's scale)."""
    plain: dict[str, object] = {}
    for parameter, value in zip(parameters, values, strict=True):
        if parameter.key is None:
            plain[parameter.field] = value
        else:
            held = plain.setdefault(parameter.field, dict(getattr(constants, parameter.field)))
            assert isinstance(held, dict)
            held[parameter.key] = value
    return msgspec.structs.replace(constants, **plain)


def _types(observations: Sequence[Observation]) -> list[str]:
    """Number types of the probes' weights, the one with most bytes first: the others are measured by it.

    A type that is less than a hundredth of every model's weights shows nothing and is left out.
    """
    seen: dict[str, float] = {}
    matters: set[str] = set()
    for terms in {id(o.terms): o.terms for o in observations}.values():
        mine: dict[str, float] = {}
        for types in (terms.fixed, *(group.types for group in terms.experts)):
            for kind, nbytes in types:
                mine[kind] = mine.get(kind, 0.0) + nbytes
        total = sum(mine.values())
        for kind, nbytes in mine.items():
            seen[kind] = seen.get(kind, 0.0) + nbytes
            if nbytes > 0.01 * total:
                matters.add(kind)
    return sorted(matters, key=lambda kind: -seen[kind])
