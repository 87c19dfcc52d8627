"""The result of a comparison: what `breakeven.compare` returns, `result.json` holds and every report reads.

The JSON of `Comparison` is a public contract (`docs/json.md`): fields are only ever added.
"""

from __future__ import annotations

import msgspec

from breakeven.hardware.machine import MachineSpec
from breakeven.hardware.placement import Placed
from breakeven.stats.estimate import Estimate

SCHEMA = "breakeven.compare/1"


class ModelResult(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate as it ran. None: not available (an URL tells neither its size nor its memory)."""

    name: str
    source: str
    synthetic: bool
    format: str | None
    moe: bool | None
    total_params: int | None
    active_params: int | None
    file_bytes: int | None
    peak_rss_bytes: int | None
    load_s: float | None
    decode_bytes_per_token: int | None
    """Weight bytes one stream's decode step reads, output head included."""
    settings: dict[str, str] = {}
    """Engine, build and flags: everything needed to run it again."""
    placed: Placed | None = None
    """Which layers and experts lay where, with bytes by device; None: the engine does not tell."""


class ComparedPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate at one load. None: not available here."""

    model: str
    streams: int
    prompt_tokens: int
    output_tokens: int
    decode_tokens_per_s: Estimate | None
    """All streams together, over the part of a block in which every stream decodes."""
    prefill_tokens_per_s: Estimate | None
    ttft_s: Estimate | None
    itl_s: Estimate | None
    joules_per_token: Estimate | None = None


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """`a` over `b` for one metric at one load. `winner` is None for "no difference found"."""

    a: str
    b: str
    metric: str
    """decode_tokens_per_s, prefill_tokens_per_s, ttft_s or itl_s."""
    streams: int
    ratio: Estimate
    winner: str | None
    left_out: int = 0
    """Rounds with a flagged block that did not enter, because enough quiet ones stood."""
    disturbed: int = 0
    """Rounds with a flagged block that did enter, for want of quiet ones."""


class NodeTime(msgspec.Struct, frozen=True):
    """Time spent in one kind of node of the compute graph, per step."""

    kind: str
    """attention, router, expert products, combination, dense feed-forward, head or rest."""
    seconds: float


class NodeProfile(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model's time goes. `phase` is decode or prefill."""

    model: str
    phase: str
    tokens: int
    nodes: list[NodeTime]
    router_share_of_moe_block: float | None
    observing_overhead: float
    """How much slower the observed run was than the same run unobserved: 0.16 is 16 %."""


class Routing(msgspec.Struct, frozen=True, kw_only=True):
    """Routed experts of one model over one text. `frequencies[layer][expert]` sums to n_experts_per_token."""

    model: str
    layers: list[int]
    n_experts: int
    n_experts_per_token: int
    tokens: int
    frequencies: list[list[float]]


class SelfCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Decode rate with one prompt in every stream over the rate with distinct prompts.

    Above 1 for a Mixture-of-Experts model: streams that say the same touch the same experts. That is how a benchmark
    with repeated prompts flatters it; here every stream has a prompt of its own. A dense model must come out at 1.
    """

    model: str
    streams: int
    same_over_distinct: Estimate


class NoiseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How quiet the machine was. None: this machine does not tell."""

    blocks: int
    repeated: int
    flagged: int
    other_cpu_share: float | None
    """Largest share of all cores that processes other than ours used during a block."""
    steal_share: float | None
    swap_bytes: int | None
    clock_mhz_low: float | None
    clock_mhz_high: float | None
    temperature_c_high: float | None
    reasons: list[str] = []
    device_clock_mhz_low: float | None = None
    """Of accelerators while blocks ran."""
    device_clock_mhz_high: float | None = None
    device_temperature_c_high: float | None = None


class ComparisonVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Which to run. `winner` is None when no difference was found or it depends on the load."""

    headline: str
    """One sentence in plain words."""
    winner: str | None
    reasons: list[str]
    memory: list[str]
    would_change: list[str]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A finished study."""

    schema: str = SCHEMA
    breakeven_version: str
    started_at: str
    """ISO 8601, UTC."""
    measured_s: float
    stopped_because: str
    """precision, budget or interrupted."""
    precision: float
    seed: int
    command: str
    machine: MachineSpec
    models: list[ModelResult]
    points: list[ComparedPoint]
    pairs: list[Pair]
    noise: NoiseRecord
    verdict: ComparisonVerdict
    profiles: list[NodeProfile] = []
    routings: list[Routing] = []
    self_checks: list[SelfCheck] = []
    loaded: str = "together"
    """together: all candidates were up at once. in turns: each was loaded for its turn and unloaded after it, because
    they do not fit side by side; a pair is then one turn of each."""
    caveats: list[str] = []
    """Sentences that must stand beside the verdict, such as "synthetic weights: speed and memory only"."""
