"""What Breakeven knows of one machine and engine: constants of the step model, and how far they were off.

A profile is a file. It is fitted to probes (`breakeven calibrate`) or comes from a data sheet and the efficiencies of
the machine's class; everything predicted with it carries its error.
"""

from __future__ import annotations

import re
from itertools import product
from math import exp, isfinite, log
from typing import Literal, get_args

import msgspec

from breakeven.hardware.chips import Chip
from breakeven.hardware.machine import Gpu, HostMemory, MachineSpec

PROFILE_SCHEMA = "breakeven.calibration/1"
STEP_ENGINES = {"llama-server": "llama.cpp", "ollama": "llama.cpp", "lmstudio": "llama.cpp", "sglang": "vllm"}
"""Engines that step, place and reserve as another does: whose model of a step stands for them."""


def step_engine(name: str) -> str:
    """The engine whose model of a step stands for this one."""
    return STEP_ENGINES.get(name, name)


Phase = Literal["decode", "prefill"]
Kind = Literal["dense", "moe"]


_KIN = (
    (re.compile(r"IQ[123]_\w+|TQ\d_\d|Q1_0"), "Q4_K"),
    (re.compile(r"NVFP4|MXFP4_LINEAR"), "MXFP4"),
    (re.compile(r"(INT|GPTQ|AWQ)[234]?(_G(64|128|256|512|1024)|_ROW)?|NF4(_DQ)?"), "INT4"),
    (re.compile(r"(INT|GPTQ|AWQ)8\w*"), "INT8"),
    (re.compile(r"FP8_\w+|MXFP8"), "FP8"),
)


def kin_of(kind: str) -> str | None:
    """The number type that stands in for one which nobody published a speed of; None: none is like it."""
    return next((kin for pattern, kin in _KIN if kin != kind and pattern.fullmatch(kind)), None)


class Constants(msgspec.Struct, frozen=True, kw_only=True):
    """The step model's constants; `breakeven.forecast.terms` gives the equation. Rates are achieved ones, not nominal.

    The costs in seconds are those the bytes and operations do not explain.
    """

    weight_bytes_per_s: float
    kv_bytes_per_s: float
    decode_flops_per_s: float
    """Matrix products of decoding sequences."""
    prefill_flops_per_s: float
    """Matrix products of prompt tokens."""
    overlap: float = 1.0
    """1: memory and arithmetic overlap fully (their maximum counts), 0: not at all (their sum)."""
    step_s: float = 0.0
    layer_s: float = 0.0
    moe_layer_s: float = 0.0
    """Beyond `layer_s`, of a layer that routes."""
    mixer_layer_s: float = 0.0
    """Beyond `layer_s`, of a layer that mixes tokens by a state (delta nets, state spaces) or a latent (MLA)."""
    launch_layer_s: float = 0.0
    """Of launching a layer's kernels one by one: the least a layer takes in a step of more than `graph_tokens`."""
    launch_moe_layer_s: float = 0.0
    """Beyond `launch_layer_s`, of a layer that routes."""
    graph_tokens: int = 512
    """Tokens of the largest step whose kernels were captured in a graph and are launched together. vLLM's default
    (`max_cudagraph_capture_size`); without launch costs it says nothing."""
    expert_s: float = 0.0
    """Of each expert that a layer touches in a step."""
    sequence_s: float = 0.0
    kv_row_s: float = 0.0
    """Of each row of the cache that a decoding token reads: an entry's keys and values of one head. A CPU fetches short
    rows that lie apart more slowly than their bytes say."""
    logit_bytes: float = 0.0
    """Moved of each logit of a decoding sequence, by an engine that samples on its device."""
    prefill_token_s: float = 0.0
    element_s: float = 0.0
    """Of each element of a token's hidden state in each layer: norms, sums and conversions, no matrix products."""
    routing_alpha: float = 1.0
    """Tokens of one request are routed alike: B sequences touch the experts that B^alpha independent ones would."""
    host_bytes_per_s: float | None = None
    """Weights that do not fit the device and lie in host memory."""
    disk_bytes_per_s: float | None = None
    """Weights that fit neither."""
    host_flops_per_s: float | None = None
    """Matrix products on the CPU beside a device. None: as fast as host memory delivers."""
    stream_bytes_per_s: float | None = None
    """Between host memory and a device: weights that a large step copies, and tokens. None: nothing is copied."""
    handover_s: float = 0.0
    """Each time that a step passes between the CPU and a device."""
    link_bytes_per_s: float | None = None
    link_s: float = 0.0
    """Latency of one collective between devices."""
    type_cost: dict[str, float] = {}
    """By number type (Q4_K, Q8_0, BF16, ...): seconds of reading and unpacking a byte, over those of the type that
    `weight_bytes_per_s` was fitted on; 1 where none is given. A format is a mixture of types."""
    type_compute: dict[str, float] = {}
    """By number type: seconds of an operation on weights of it, over those of the type the rates were fitted on; 1
    where none is given. A CPU unpacks as it multiplies, and some types it multiplies faster than others."""
    expert_compute: float = 1.0
    """Seconds of an operation in routed experts over those of one elsewhere: few tokens each multiply slowly."""
    vector_rows: int | None = None
    """Sequences that a decode step multiplies one by one, at `decode_flops_per_s`; those beyond go in tiles, as prompts
    do, at `prefill_flops_per_s`. None: all at `decode_flops_per_s`."""
    expert_tile: float = 1.0
    """Tokens that a tile of an expert's product holds: beyond `vector_rows`, every expert touched multiplies as many,
    or all of the step where that has fewer, however few are its own. 1: its own alone."""
    tile: int = 1
    """Sequences that a decode step's matrix products take at once. What is left over goes one by one."""
    tile_cost: dict[str, float] = {}
    """By number type: seconds of an operation in a full tile, over those of one left over; 1 where none is given.
    Routed experts are not tiled."""

    def byte_cost(self, kind: str) -> float:
        """`type_cost` of a number type; where it was not measured that of its kin, which is unpacked in a like way."""
        found = self.type_cost.get(kind)
        return self.type_cost.get(kin_of(kind) or "", 1.0) if found is None else found


UNSEEN = 1.25
"""How much wider than its neighbours' an interval is where nobody measured. A judgement."""


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """How far predictions of one sort were off, left out of the fit: |ln(predicted / measured)|.

    A prediction's interval is value * exp(-+ `log_half_width`), which covered `coverage` of what was left out.
    `between_models` is the part that does not cancel when two models on this machine are compared.
    """

    phase: Phase
    kind: Kind
    log_half_width: float
    between_models: float
    median: float
    """Median |predicted / measured - 1| of what was left out."""
    n: int
    """Models left out, one at a time; 0: nothing to check against, the width is a judgement."""
    coverage: float | None = None
    records: int = 0
    """Published records of this class and backend behind it."""
    machines: int = 0
    spilled: bool = False
    """Of models that lie in part in host memory."""
    repeat: float | None = None
    """The part of `median` that is the machine's own: what the measurements it was held against are off by, from how
    far they differ when they are repeated. None: nothing was measured twice."""
    of_model: float | None = None
    """What of `median` that does not explain."""

    def of_others(self, least: float = 0.0) -> Error:
        """What stands in where nobody measured: this error of the nearest kind, a quarter wider, with no record.

        `least`: the half width of what is known to be off by more than that.
        """
        half = max(UNSEEN * self.log_half_width, least)
        return msgspec.structs.replace(
            self,
            log_half_width=half,
            between_models=min(max(UNSEEN * self.between_models, least), half),
            n=0,
            coverage=None,
            records=0,
            machines=0,
            repeat=None,
            of_model=None,
        )

    def words(self) -> str:
        """How many records stand behind it, and how far off they were."""
        if not self.n:
            return f"no record of its own, typical of others; off by up to a factor {exp(self.log_half_width):.1f}"
        counted = f"{_some(self.records, 'record')} of " if self.records else ""
        machines = f" on {_some(self.machines, 'machine')}" if self.machines else ""
        inside = "" if self.coverage is None else f", {self.coverage:.0%} inside the band"
        off = f"left out of the fit, median {self.median:.0%} off{inside}"
        return f"{counted}{_some(self.n, 'model')}{machines}; {off}"


def _some(count: int, of: str) -> str:
    return f"{count} {of}" if count == 1 else f"{count} {of}s"


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """What the fit has seen of one quantity. Beyond it a prediction is an extrapolation, and says so."""

    quantity: str
    """batch, context, bytes_read or active_params."""
    low: float
    high: float


class ProfileOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """How a profile came about. `how` "probes": fitted here; "datasheet": class efficiencies on a published chip."""

    how: Literal["probes", "datasheet"]
    engine: str
    engine_version: str | None
    date: str
    version: str
    """Of Breakeven."""
    format: str | None = None
    points: int = 0
    """Measured steps that were fitted."""
    seconds: float | None = None
    at_prior: list[str] = []
    """Constants that the data could not identify and that stand at their prior."""
    spread: dict[str, float] = {}
    """By fitted constant: how far it may be off, as the standard deviation of its logarithm."""
    unknown: list[str] = []
    """In words: what was measured cannot tell this."""
    kv: str | None = None
    """Type of keys and values while it was measured; None: not told."""
    placements: list[str] = []
    """In words: where the probes' weights lay."""
    sources: list[str] = []
    kernels: list[str] = []
    """Of a data sheet: whose kernels ran the published records behind it."""
    types: dict[str, int] = {}
    """Of a data sheet: those records by number type of weights, of at least a twentieth of a model's bytes."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One machine and engine build. `chip` where it is a catalogued device, `machine` where it was probed.

    `engine` is the one whose model of a step it is (`step_engine`); `origin.engine` the one that ran.
    """

    schema: str = PROFILE_SCHEMA
    name: str
    engine: str
    devices: int = 1
    constants: Constants
    errors: list[Error]
    ranges: list[Range]
    origin: ProfileOrigin
    memory_bytes: int | None
    """Of one device; what a model must fit into."""
    host_memory_bytes: int | None = None
    host: HostMemory | None = None
    """What stands beside the devices, where it was described."""
    others: list[Profile] = []
    """Further devices where they are unlike; `devices` counts all of them."""
    chip: Chip | None = None
    device: Gpu | None = None
    """The device that the probes lay on, as their engine lists it."""
    machine: MachineSpec | None = None
    idle_w: float | None = None
    busy_w: float | None = None


PAGED_LOG_HALF_WIDTH = log(3.0)
"""Least half width of a model that is read from disk in part: how fast disks are is not asked. A judgement."""


def error_of(profile: Profile, phase: str, *, moe: bool, spilled: bool) -> Error:
    """How far a profile's predictions of a kind of model were off; of unlike devices the widest.

    `spilled`: it lies in part in host memory or on disk. Where no model that lies like it was measured, the error of
    the others is no more than a hint, and `n` is 0.
    """
    found = [_error_of(one, phase, moe=moe, spilled=spilled) for one in (profile, *profile.others)]
    return max(found, key=lambda error: error.log_half_width)


def _error_of(profile: Profile, phase: str, *, moe: bool, spilled: bool) -> Error:
    alike = [e for e in profile.errors if e.phase == phase and e.kind == ("moe" if moe else "dense")]
    own = next((e for e in alike if e.spilled == spilled), None)
    return own or alike[0].of_others(PAGED_LOG_HALF_WIDTH if spilled else 0.0)


RATES = ("weight_bytes_per_s", "kv_bytes_per_s", "decode_flops_per_s", "prefill_flops_per_s", "routing_alpha")
FURTHER_RATES = ("host_bytes_per_s", "disk_bytes_per_s", "host_flops_per_s", "stream_bytes_per_s", "link_bytes_per_s")
BY_TYPE = ("type_cost", "type_compute", "tile_cost")
WIDEST = 100.0
"""Of an interval's half width, in log units: beyond it there is no arithmetic."""


def fault_of(profile: Profile) -> str | None:
    """What no fit can have written: the key, what was found and what is right; None: nothing.

    Such a file was edited by hand or cut; it would give times below 0, none at all, or intervals beside their value.
    """
    own = profile.constants
    for name in RATES + FURTHER_RATES:
        value = getattr(own, name)
        if value is not None and not (isfinite(value) and value > 0):
            return f"constants.{name}: found {value:g}; right is a number above 0"
    for name in BY_TYPE:
        for kind, value in getattr(own, name).items():
            if not (isfinite(value) and value > 0):
                return f"constants.{name}.{kind}: found {value:g}; right is a number above 0"
    costs = [n for n in Constants.__struct_fields__ if n not in (*RATES, *FURTHER_RATES, *BY_TYPE, "overlap")]
    least = {"expert_tile": 1.0, "tile": 1.0, "vector_rows": 1.0}
    for name in costs:
        value = getattr(own, name)
        if value is not None and not (isfinite(value) and value >= least.get(name, 0.0)):
            return f"constants.{name}: found {value:g}; right is a number from {least.get(name, 0.0):g}"
    if not 0.0 <= own.overlap <= 1.0:
        return f"constants.overlap: found {own.overlap:g}; right is a number from 0 to 1"
    for index, error in enumerate(profile.errors):
        if not 0.0 <= error.log_half_width <= WIDEST or not 0.0 <= error.between_models <= WIDEST:
            widths = f"{error.log_half_width:g} and {error.between_models:g}"
            return f"errors.{index}: its widths are {widths}; right is 0 to {WIDEST:g}"
    found = {(error.phase, error.kind) for error in profile.errors}
    for phase, kind in product(get_args(Phase), get_args(Kind)):
        if (phase, kind) not in found:
            return f"errors: none is of {phase} and {kind}; right is one for each phase and kind"
    if profile.devices < 1 or (profile.others and len(profile.others) + 1 != profile.devices):
        return f"devices: found {profile.devices} beside {len(profile.others)} others; right is how many there are"
    if (profile.memory_bytes or 0) < 0 or (profile.host_memory_bytes or 0) < 0:
        return "memory_bytes or host_memory_bytes is below 0; right is a size in bytes, or null"
    if (profile.idle_w or 0.0) < 0 or (profile.busy_w or 0.0) < 0:
        return "idle_w or busy_w is below 0; right is watts, or null"
    for index, other in enumerate(profile.others):
        if said := fault_of(other):
            return f"others.{index}.{said}"
    return None
