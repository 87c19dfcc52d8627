"""Will it fit? Decided from shapes, before anything is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

from breakeven.engines.backend import LLAMA_CPP
from breakeven.engines.devices import EngineDevice, embedded_devices, find_llama_server, read_binary
from breakeven.engines.source import Source, weight_format
from breakeven.errors import UserError
from breakeven.hardware.placement import AUTO, Placement
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import KV_ELEMENT_BYTES, file_bytes, state_bytes, total_params
from breakeven.model.catalogue import by_size, lookup
from breakeven.model.formats.gguf import FORMATS
from breakeven.model.formats.named import kv_element_bytes
from breakeven.model.reserved import CONTEXT_STEP, compute_bytes, output_bytes, reserved_kv_bytes, whole_context

__all__ = [
    "CONTEXT_STEP",
    "RESERVE",
    "MemoryCheck",
    "check_memory",
    "check_memory_of_binary",
    "need_of",
    "needed_bytes",
    "whole_context",
]

ENGINE_BYTES = 100e6
ENGINE_TOKEN_BYTES = 250
"""A llama.cpp server beside its buffers: the process, and what it keeps of each word of its vocabulary. Build 11549
holds 25 MB and 200 bytes a word."""
UNKNOWN_BYTES = 600e6
"""The same and all buffers of a model whose shapes are not known: a cautious allowance, not a measurement."""
REPACKED_SHARE = 1.1
"""Anonymous memory over file size: on CPUs llama.cpp keeps a re-ordered copy beside the mapped file, whose own pages
the system may drop again."""
RESERVE = 0.92
"""Share of the available memory that may be planned with."""


class MemoryCheck(Protocol):
    """Raises UserError unless all candidates fit side by side in what is available to host and devices."""

    def __call__(
        self,
        sources: Sequence[Source],
        format_name: str | None,
        context: int,
        slots: int,
        available_bytes: int,
        kv: str = "f16",
        placement: Placement = AUTO,
    ) -> None: ...


def needed_bytes(
    spec: ModelSpec, format_name: str, context: int, slots: int, kv: str = "f16", *, repacked: float = REPACKED_SHARE
) -> int:
    """Memory one backend must have, in bytes: repacked weights, caches and states of every slot, buffers, process."""
    beside = beside_weights_bytes(spec, context, slots, kv_element_bytes(kv))
    return round(repacked * file_bytes(spec, format_name) + beside)


def beside_weights_bytes(spec: ModelSpec, context: int, slots: int, element_bytes: float = KV_ELEMENT_BYTES) -> float:
    """What one llama.cpp server on CPUs takes beside its weights, with `slots` sequences of `context` tokens.

    `element_bytes`: of keys and values.
    """
    caches = slots * (reserved_kv_bytes(spec, context, element_bytes) + state_bytes(spec))
    buffers = compute_bytes(spec, context, slots, gpu=False, every_logit=False) + output_bytes(spec, slots)
    return caches + buffers + ENGINE_BYTES + ENGINE_TOKEN_BYTES * spec.vocab


def check_memory(
    sources: Sequence[Source],
    format_name: str | None,
    context: int,
    slots: int,
    available_bytes: int,
    kv: str = "f16",
    placement: Placement = AUTO,
    devices: Callable[[], Sequence[EngineDevice]] = embedded_devices,
) -> None:
    """Raise UserError, with the numbers and the nearest thing that fits, unless all candidates fit side by side.

    In host memory and on the devices that `devices` lists, together: what lies where is the engine's to fit, unless
    all is asked for on them. `format_name`: of those that name none; None: each one's own. `kv`: the type of keys and
    values.
    """
    needs = {s.name: need_of(s, format_name, context, slots, kv) for s in sources}
    total, room = sum(needs.values()), RESERVE * available_bytes
    whole = placement.gpu_layers == "all" and placement.cpu_moe is None and not placement.overrides
    if total <= room and not whole:
        return
    gpus: list[EngineDevice] = []
    if placement.gpu_layers != 0:
        with contextlib.suppress(UserError):
            gpus = [device for device in devices() if device.is_gpu and _meant(device, placement)]
    if any(gpu.free_bytes is None for gpu in gpus):
        return
    own = sum(gpu.free_bytes or 0 for gpu in gpus if gpu.kind == "gpu")
    if whole and gpus:
        _check_devices_hold(sources, format_name, context, slots, kv, gpus)
        return
    if gpus:
        room += own
    if total <= room:
        return
    parts = ", ".join(f"{name} {need / 1e9:.1f} GB" for name, need in needs.items())
    beside = f", {own / 1e9:.1f} GB of it free on {', '.join(gpu.place for gpu in gpus)}" if own else ""
    raise UserError(
        f"this needs {total / 1e9:.1f} GB of memory ({parts}) and {(available_bytes + own) / 1e9:.1f} GB is available"
        f"{beside}; {_advice(sources, format_name, context, slots, room, kv)}"
    )


def check_memory_of_binary(
    sources: Sequence[Source],
    format_name: str | None,
    context: int,
    slots: int,
    available_bytes: int,
    kv: str = "f16",
    placement: Placement = AUTO,
) -> None:
    """`check_memory` with the devices of the user's llama-server. Raises UserError when there is none, too."""
    devices = read_binary(find_llama_server()).devices
    check_memory(sources, format_name, context, slots, available_bytes, kv, placement, lambda: devices)


def _meant(device: EngineDevice, placement: Placement) -> bool:
    return not placement.devices or device.place.lower() in (place.lower() for place in placement.devices)


def _check_devices_hold(
    sources: Sequence[Source], format_name: str | None, context: int, slots: int, kv: str, gpus: Sequence[EngineDevice]
) -> None:
    """Raise UserError unless the devices hold everything at once; memory in use by others is not theirs to give."""
    needs = {s.name: need_of(s, format_name, context, slots, kv, repacked=1.0) for s in sources}
    free = sum(gpu.free_bytes or 0 for gpu in gpus)
    if sum(needs.values()) <= free:
        return
    parts = ", ".join(f"{name} {need / 1e9:.1f} GB" for name, need in needs.items())
    auto = " or --cpu-moe auto, which keeps experts in host memory" if any(s.is_moe for s in sources) else ""
    raise UserError(
        f"--gpu-layers all needs {sum(needs.values()) / 1e9:.1f} GB on the GPU ({parts}) and "
        f"{', '.join(f'{gpu.place} has {(gpu.free_bytes or 0) / 1e9:.1f} GB free' for gpu in gpus)}; "
        f"leave it out, so that as many layers as fit go there{auto}"
    )


def need_of(
    source: Source,
    format_name: str | None,
    context: int,
    slots: int,
    kv: str = "f16",
    *,
    repacked: float = REPACKED_SHARE,
) -> int:
    """Bytes that one candidate must have: 0 behind a URL; for a file of an unknown family, without its KV cache."""
    if source.url is not None:
        return 0
    if source.path is not None:
        size = source.path.stat().st_size
        each = kv_element_bytes(kv)
        beside = beside_weights_bytes(source.spec, context, slots, each) if source.spec else UNKNOWN_BYTES
        return round(repacked * size + beside)
    assert source.spec is not None
    weights = weight_format(source, format_name, LLAMA_CPP)
    return needed_bytes(source.spec, weights, context, slots, kv, repacked=repacked)


def _advice(sources: Sequence[Source], format_name: str | None, context: int, slots: int, room: float, kv: str) -> str:
    smaller = sorted(
        FORMATS, key=lambda name: -sum(file_bytes(s.spec, name) for s in sources if s.synthetic and s.spec)
    )
    for name in smaller:
        total = sum(need_of(s, name, context, slots, kv) for s in sources)
        if name != format_name and total <= room:
            return f"--format {name} fits ({total / 1e9:.1f} GB)"
    largest = max(sources, key=lambda s: need_of(s, format_name, context, slots, kv))
    rest = sum(need_of(s, format_name, context, slots, kv) for s in sources if s is not largest)
    moe = largest.spec.is_moe if largest.spec else False
    weights = format_name or "Q4_K_M"
    # What cannot fit by its parameters alone is not looked into, which takes its time; mixtures differ by less.
    each = 0.5 * file_bytes(largest.spec, weights) / total_params(largest.spec) if largest.spec else 0.0
    for n, name in by_size(moe=moe):
        if rest + n * each < room and rest + needed_bytes(lookup(name), weights, context, slots, kv) <= room:
            return f"in place of {largest.name}, {name} would fit"
    return "fewer --streams, a shorter --prompt or a larger machine would help"
