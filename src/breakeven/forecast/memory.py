"""What a model occupies while it runs: weights, keys and values, states and buffers, on all devices together.

llama.cpp's caches and buffers are what it reserves before it answers (`breakeven.model.reserved`); of vLLM's buffers
no more than a judgement is known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from breakeven.errors import UserError
from breakeven.forecast.constants import Profile
from breakeven.forecast.placing import DeviceRoom, PlacedModel, lacking, place
from breakeven.forecast.terms import AttentionGroup, Terms
from breakeven.hardware.placement import AUTO, Placement
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import file_bytes, total_params
from breakeven.model.catalogue import by_size, lookup
from breakeven.model.formats.named import label
from breakeven.model.reserved import ONE_LOGIT_BUILD, cells, compute_bytes, output_bytes

Split = Literal["none", "tensor", "experts", "layers"]
"""How an engine spreads a model over devices."""

USABLE = 0.9
"""Share of a device's memory that weights, keys, values and buffers may take: vLLM's gpu_memory_utilization default.
The tenth left over stands for the system, the display and fragmentation on other machines too."""
LLAMA_CPP_MARGIN_BYTES = 2**30
"""What llama.cpp's own fitting leaves free on a device (common/common.h: fit_params_target, 1024 MiB)."""
VLLM_BUFFER_TOKENS = 8192
"""vLLM's max_num_batched_tokens on large devices."""
VLLM_BUFFER_WIDTHS = 18
"""Activations of one token that live at once, in hidden widths of 2 bytes: the gated feed-forward's, mostly. A
judgement, near vLLM's own "activation peak" of 1.2 GB for an 8 B model."""
VLLM_RUNTIME_BYTES = 1e9
"""CUDA context and captured graphs, a device. A judgement."""
LADDER = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ2_XXS")
"""Formats that people step down by, largest first."""
ON_CPU = ("cpu", "sbc")
"""Classes of chips on which llama.cpp computes with the CPU."""
_BUILD = re.compile(r"[.b](\d{4,6})\b")
"""llama.cpp's build number at the end of `xllamacpp 2026.10.11549`, or in `b9530`."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by what takes them. `output`: llama.cpp's copy of logits in host memory, where that is the device's own."""

    weights: float
    kv: float
    state: float
    compute: float
    output: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.kv + self.state + self.compute + self.output

    def rows(self) -> dict[str, float]:
        """Those that there are, by name."""
        found = {name: getattr(self, name) for name in ("weights", "kv", "state", "compute", "output")}
        return {name: nbytes for name, nbytes in found.items() if nbytes}


def memory_of(
    spec: ModelSpec, terms: Terms, profile: Profile, batch: float, context: float, devices: int, split: Split
) -> Memory:
    """What `batch` sequences of `context` tokens take. llama.cpp reserves all of it beforehand, rounded up."""
    reserved = profile.engine != "vllm"
    kv = kv_bytes(terms, batch, context, devices, split, reserved=reserved)
    state = batch * terms.state_bytes / 2.0  # the terms count a read and a write
    if not reserved:
        activations = VLLM_BUFFER_TOKENS * VLLM_BUFFER_WIDTHS * 2.0 * terms.hidden
        held = 1 if split in ("none", "layers") else devices
        return Memory(terms.total_bytes, kv, state, held * (activations + VLLM_RUNTIME_BYTES))
    gpu = on_gpu(profile)
    last = compute_bytes(spec, context, batch, gpu=gpu, every_logit=every_logit(profile))
    # Every device has a buffer for its layers; the output head is on the last one.
    before = compute_bytes(spec, context, batch, gpu=gpu, every_logit=False) if devices > 1 else 0.0
    output = 0.0 if gpu else output_bytes(spec, batch)
    return Memory(terms.total_bytes, kv, state, last + (devices - 1) * before, output)


def on_gpu(profile: Profile) -> bool:
    """Whether the device is a GPU: as its class says, of a machine that was probed whether it has one."""
    if profile.chip is not None:
        return profile.chip.chip_class not in ON_CPU
    return bool(profile.machine and profile.machine.gpus)


def every_logit(profile: Profile) -> bool:
    """Whether llama.cpp reserves the logits of a whole micro-batch: it does not where a newer build is known to run."""
    found = _BUILD.findall(profile.origin.engine_version or "")
    return not found or int(found[-1]) < ONE_LOGIT_BUILD


def kv_ways(group: AttentionGroup, devices: int) -> int:
    """Devices that a group's keys and values are parted among; the others keep copies."""
    return min(devices, group.kv_heads)


def kv_bytes(
    terms: Terms, batch: float, context: float, devices: int, split: Split, *, reserved: bool = False
) -> float:
    """Keys and values of `batch` sequences of `context` tokens, copies on several devices included.

    `reserved`: in the cells that llama.cpp gives them, else to the token.
    """
    total = 0.0
    for group in terms.attention:
        copies = devices / kv_ways(group, devices) if split in ("tensor", "experts") else 1.0
        entries = cells(context, group.window) / group.every if reserved else group.kept(context)
        total += copies * group.kv_bytes * entries
    return batch * total


def kv_tokens(terms: Terms, room_bytes: float, context: float | None, devices: int, split: Split) -> int | None:
    """Tokens whose keys and values fit into `room_bytes`; None when tokens take none.

    `context`: length of the sequences, where sliding windows save memory; None: as if no window were full.
    """
    length = 1.0 if context is None else max(context, 1.0)
    per_sequence = kv_bytes(terms, 1, length, devices, split)
    if per_sequence <= 0:
        return None
    return max(0, math.floor(room_bytes / (per_sequence / length)))


def check_room(
    spec: ModelSpec,
    format_name: str,
    devices: Sequence[DeviceRoom],
    host_bytes: float | None,
    *,
    context: float,
    slots: float = 1,
    placement: Placement = AUTO,
    kv: str = "f16",
) -> PlacedModel:
    """The model placed; UserError with the numbers, and the nearest thing that fits, where it fits nowhere.

    `host_bytes`: of RAM that may be filled; None: not known, so not asked for.
    """

    def tried(model: ModelSpec, in_format: str, how: Placement = placement) -> tuple[PlacedModel, str | None]:
        found = place(model, in_format, devices, context=context, slots=slots, placement=how, kv=kv)
        return found, lacking(found, devices, host_bytes)

    placed, missing = tried(spec, format_name)
    if missing is None:
        return placed
    advice = "a shorter context, fewer slots or a larger machine would help"
    left = LLAMA_CPP_MARGIN_BYTES if placement.fitted else 0.0
    room = sum(max(d.free_bytes - left, 0.0) for d in devices if not d.unified) + (host_bytes or 0.0)
    if placement != AUTO and tried(spec, format_name, AUTO)[1] is None:
        advice = "--gpu-layers auto fits"
    elif smaller := _smaller_format(spec, format_name, room, lambda other: tried(spec, other)[1] is None):
        advice = f"--format {smaller} fits"
    else:
        # Never a model of the other kind: which of the two kinds it should be is what is asked.
        nearest = "Q4_K_M" if spec.stored is not None else format_name
        each = file_bytes(spec, format_name) / total_params(spec)
        small = (name for n, name in by_size(moe=spec.is_moe) if n * each < room)
        found = next((name for name in small if tried(lookup(name), nearest)[1] is None), None)
        advice = f"{found} would fit" if found is not None else advice
    raise UserError(f"{spec.name} in {label(spec, format_name)} {missing}; {advice}")


def _smaller_format(spec: ModelSpec, format_name: str, room: float, fits: Callable[[str], bool]) -> str | None:
    """The largest of llama.cpp's usual formats below this one that fits; none for a file, which has its own types."""
    if spec.stored is not None:
        return None
    now = file_bytes(spec, format_name)
    for name in LADDER:
        if file_bytes(spec, name) < min(now, room) and fits(name):
            return name
    return None
