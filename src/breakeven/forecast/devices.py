"""Devices: what each does of a model that several share, what they send each other, and what they hold.

Several devices are a first approximation, and every prediction that uses it says so:

Tensor parallel (vLLM): every device holds 1/N of each matrix and of the key heads; two all-reduces a layer, each moving
2 (N - 1) / N of the activations over the link (the bound of a ring; Patarasuk & Yuan, JPDC 2009). A latent cache (MLA)
is copied to every device, and so are key heads when there are fewer of them than devices.
Expert parallel (vLLM, attention still parted): every device holds E/N whole experts, runs all tokens through those of
them that are chosen, and the same all-reduce adds up; the device with the most experts touched is waited for.
By layers (llama.cpp): devices work one after the other, which adds memory and no speed.

Not in it: overlap of communication with arithmetic, several machines, attention replicated by request and the
all-to-alls that come with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from breakeven.forecast.constants import Constants, Profile
from breakeven.forecast.memory import LLAMA_CPP_MARGIN_BYTES, USABLE, Split, kv_ways
from breakeven.forecast.terms import Floats, Terms, experts_s, occupancies
from breakeven.hardware.chips import backend_of
from breakeven.model.architecture import ModelSpec
from breakeven.model.parts import CompressedAttention, Gqa, Mla

LINK_BYTES_PER_S = 25e9
"""One direction between two devices on PCIe 4.0 x16, where neither profile nor chip says. A judgement."""
LINK_S = 10e-6
"""Latency of one collective, where a profile does not say. A judgement."""
ACTIVATION_BYTES = 2.0


def split_of(engine: str, devices: int, expert_parallel: bool = False) -> Split:
    """How an engine spreads a model over devices by default."""
    if devices == 1:
        return "none"
    if engine == "llama.cpp":
        return "layers"
    return "experts" if expert_parallel else "tensor"


def parts_evenly(spec: ModelSpec, devices: int) -> bool:
    """Whether each device gets as many heads of attention: vLLM refuses to start otherwise."""
    kinds = (Gqa, Mla, CompressedAttention)
    heads = {mixer.heads for layer in spec.layers for mixer in layer.mixers if isinstance(mixer, kinds)}
    return all(each % devices == 0 for each in heads)


def shard(terms: Terms, devices: int, split: Split) -> Terms:
    """What one device does of `terms`, in bytes and operations."""
    if split in ("none", "layers"):
        return terms
    return replace(
        terms,
        fixed=tuple((kind, nbytes / devices) for kind, nbytes in terms.fixed),
        head_bytes=terms.head_bytes / devices,
        total_bytes=terms.total_bytes / devices,
        state_bytes=terms.state_bytes / devices,
        token_flops=terms.token_flops / devices,
        head_flops=terms.head_flops / devices,
        experts=tuple(
            replace(group, types=tuple((kind, nbytes / devices) for kind, nbytes in group.types))
            for group in terms.experts
        ),
        attention=tuple(
            replace(
                group,
                kv_bytes=group.kv_bytes / kv_ways(group, devices),
                read_bytes=group.read_bytes / kv_ways(group, devices),
                flops=group.flops / devices,
                rows=group.rows / kv_ways(group, devices),
            )
            for group in terms.attention
        ),
    )


def collectives_s(
    terms: Terms, constants: Constants, tokens: ArrayLike, devices: int, split: Split, link: float | None
) -> Floats:
    """Seconds that a step of `tokens` spends between devices. `link`: the chip's bytes/s in one direction, if known."""
    n = np.asarray(tokens, dtype=np.float64)
    if split == "none":
        return np.zeros_like(n)
    rate = constants.link_bytes_per_s or link or LINK_BYTES_PER_S
    latency = constants.link_s or LINK_S
    moved_s = n * terms.hidden * ACTIVATION_BYTES / rate
    if split == "layers":
        return (devices - 1) * (moved_s + latency)
    return 2.0 * terms.layers * (2.0 * (devices - 1) / devices * moved_s + latency)


def waiting_s(sharded: Terms, constants: Constants, tokens: ArrayLike, devices: int) -> Floats:
    """Seconds of an expert-parallel step in which devices wait for the one that reads the most experts.

    Experts touched on a device are about binomial with mean m = E u / N and variance m (1 - u); the largest of N such
    lies about sqrt(2 ln N) standard deviations up.
    """
    total = np.zeros_like(np.asarray(tokens, dtype=np.float64))
    for group, share in zip(sharded.experts, occupancies(sharded, tokens, constants.routing_alpha), strict=True):
        mean = np.maximum(group.n_experts / devices * share, 1e-9)
        excess = math.sqrt(2.0 * math.log(devices)) * np.sqrt((1.0 - share) / mean)
        most = np.minimum(excess, 1.0 / np.maximum(share, 1e-9) - 1.0)  # no device touches more than all it has
        total = total + experts_s(group, constants) * share * most
    return total


SEPARATE_MEMORY = ("datacenter", "workstation", "consumer")
"""Chips whose memory is not the host's."""


BACKENDS = {"cuda": "CUDA", "amd": "ROCm", "intel": "SYCL"}
"""What llama.cpp calls devices by whose kernels run on them (`backend_of`), in the build that its users have."""


def device_names(profiles: Sequence[Profile]) -> list[str]:
    """CUDA0, CUDA1, ...: devices as llama.cpp lists them; Vulkan where the maker is not known."""
    if (first := profiles[0].device) is not None and first.place and len(profiles) == 1:
        return [first.place]
    kinds = [BACKENDS.get(backend_of(p.chip) if p.chip else "", "Vulkan") for p in profiles]
    return [f"{kind}{kinds[:i].count(kind)}" for i, kind in enumerate(kinds)]


def apart(profile: Profile) -> bool:
    """Whether the devices have memory of their own, beside the host's."""
    if profile.device is not None:
        return not profile.device.unified
    if profile.chip is not None:
        return profile.chip.chip_class in SEPARATE_MEMORY
    return bool(profile.machine and any(not gpu.unified for gpu in profile.machine.gpus))


def usable(profile: Profile) -> float | None:
    """Memory of one device that a model may take; None: the profile does not say."""
    if profile.memory_bytes is None:
        return None
    one = float(profile.memory_bytes)
    if profile.chip is None:
        margin = profile.engine == "llama.cpp" and profile.device is not None
        return max(one - LLAMA_CPP_MARGIN_BYTES, 0.0) if margin else one * USABLE
    if profile.chip.chip_class in SEPARATE_MEMORY:
        return max(one - LLAMA_CPP_MARGIN_BYTES, 0.0) if profile.engine == "llama.cpp" else USABLE * one
    # Of a chip that shares its memory with the system, the data-sheet profile has taken the system's part off.
    return one


def host_bytes(profile: Profile) -> float | None:
    """Memory beside the device's own that weights may lie in; None: not known, taken as enough."""
    if not apart(profile):
        return 0.0
    return None if profile.host_memory_bytes is None else USABLE * profile.host_memory_bytes
