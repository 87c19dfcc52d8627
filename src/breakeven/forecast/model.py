"""One model in one format on one machine: the step model with everything filled in, on several devices too.

What a model occupies while it runs is worked out in `memory`. Several devices are a first approximation, and every
prediction that uses it says so:

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
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from breakeven.forecast.constants import Constants, Error, Profile
from breakeven.forecast.memory import LLAMA_CPP_MARGIN_BYTES, USABLE, Memory, Split, kv_tokens, kv_ways, memory_of
from breakeven.forecast.routing import Routing, routing_known, skewed, with_frequencies
from breakeven.forecast.terms import (
    ON_DEVICE,
    Floats,
    Parts,
    Residency,
    Terms,
    experts_s,
    occupancies,
    residency,
    step_parts,
    terms_of,
)
from breakeven.model.architecture import ModelSpec
from breakeven.model.formats.named import format_for, format_named, kv_element_bytes, kv_for, label

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


PROMPT_STEP_TOKENS = {"llama.cpp": 512, "vllm": 8192}
"""Prompt tokens of one step: llama.cpp's n_ubatch, vLLM's max_num_batched_tokens on large devices."""
SEPARATE_MEMORY = ("datacenter", "workstation", "consumer")
"""Chips whose memory is not the host's."""


@dataclass(frozen=True)  # not slotted: `device_terms` is kept once computed
class StepModel:
    """Step times of `terms` under `profile`. `scale` multiplies every time: the ends of an interval are models too.

    `terms` are the whole model's; each of `devices` does its part of them. `residency`: where the weights lie. `kv`:
    the type of keys and values. `reserve`: tokens that each sequence's cache is made for, where more than are in use.
    """

    spec: ModelSpec
    terms: Terms
    profile: Profile
    devices: int = 1
    scale: float = 1.0
    expert_parallel: bool = False
    residency: Residency = ON_DEVICE
    asked_format: str | None = None
    kv: str = "f16"
    reserve: float = 0.0

    @property
    def format(self) -> str:
        """The weight format by the name people use; `terms.format` names what the engine means by it."""
        return self.asked_format or self.terms.format

    @property
    def format_label(self) -> str:
        """The weight format for a reader: of a file in its own types, what it calls its mixture."""
        return label(self.spec, self.format)

    @property
    def split(self) -> Split:
        """How the model is spread over its devices."""
        return split_of(self.profile.engine, self.devices, self.expert_parallel)

    @cached_property
    def device_terms(self) -> Terms:
        """What one device does."""
        return shard(self.terms, self.devices, self.split)

    def parts(
        self,
        decoding: ArrayLike,
        decode_context: ArrayLike,
        prefill_tokens: ArrayLike = 0.0,
        prefill_context: ArrayLike = 0.0,
    ) -> Parts:
        """See `breakeven.forecast.terms.step_parts`; arguments broadcast, `scale` is not applied to the parts.

        Bytes are those of all devices together.
        """
        constants = self.profile.constants
        parts = step_parts(
            self.device_terms, constants, decoding, decode_context, prefill_tokens, prefill_context, self.residency
        )
        split = self.split
        if split == "none":
            return parts
        tokens = np.asarray(decoding, dtype=np.float64) + np.asarray(prefill_tokens, dtype=np.float64)
        chip_link = self.profile.chip.link_bytes_per_s if self.profile.chip else None
        link_s = collectives_s(self.terms, constants, tokens, self.devices, split, chip_link)
        if split == "experts":
            link_s = link_s + waiting_s(self.device_terms, constants, tokens, self.devices)
        readers = 1 if split == "layers" else self.devices
        return replace(
            parts,
            link_s=parts.link_s + link_s,
            total_s=parts.total_s + link_s,
            weight_bytes=parts.weight_bytes * readers,
            kv_bytes=parts.kv_bytes * readers,
        )

    def step_s(
        self,
        decoding: ArrayLike,
        decode_context: ArrayLike,
        prefill_tokens: ArrayLike = 0.0,
        prefill_context: ArrayLike = 0.0,
    ) -> Floats:
        """Seconds of steps; arguments broadcast."""
        return self.scale * self.parts(decoding, decode_context, prefill_tokens, prefill_context).total_s

    def prefill_s(self, prompt_tokens: ArrayLike) -> Floats:
        """Seconds to read one prompt alone, in as many equal steps as the engine's step limit asks for."""
        tokens = np.maximum(np.asarray(prompt_tokens, dtype=np.float64), 1.0)
        steps = np.ceil(tokens / PROMPT_STEP_TOKENS.get(self.profile.engine, PROMPT_STEP_TOKENS["llama.cpp"]))
        return steps * self.step_s(0.0, 0.0, tokens / steps, (tokens + 1.0) / 2.0)

    def error(self, phase: str) -> Error:
        """How far this profile's predictions of this kind of model were off."""
        kind = "moe" if self.terms.moe else "dense"
        return next(e for e in self.profile.errors if e.phase == phase and e.kind == kind)

    def scaled(self, factor: float) -> StepModel:
        """The same model, every step `factor` times as long."""
        return replace(self, scale=self.scale * factor)

    def low_high(self, phase: str = "decode") -> tuple[StepModel, StepModel]:
        """The fast and the slow end of the interval of one `phase`.

        Probes route evenly, so where routing is not known the fast end of a probed profile routes unevenly too.
        Errors of a datasheet profile come from real models and contain their routing.
        """
        width = self.error(phase).log_half_width
        fast = self.scaled(float(np.exp(-width)))
        if self.profile.origin.how == "probes" and not routing_known(self.terms):
            fast = replace(fast, terms=skewed(self.terms))
        return fast, self.scaled(float(np.exp(width)))

    def memory(self, batch: float, context: float) -> Memory:
        """What `batch` sequences of `context` tokens take on all devices, by what takes it.

        A cache made for more tokens than are in use takes the room of them all.
        """
        length = max(context, self.reserve)
        return memory_of(self.spec, self.terms, self.profile, batch, length, self.devices, self.split)

    def memory_bytes(self, batch: float, context: float) -> float:
        """Weights, keys and values of `batch` sequences of `context` tokens, and buffers, on all devices."""
        return self.memory(batch, context).total

    def usable_bytes(self) -> float | None:
        """Memory of all devices that a model may take; None: the profile does not say."""
        profile = self.profile
        if profile.memory_bytes is None:
            return None
        one = float(profile.memory_bytes)
        if profile.chip is None:
            one *= USABLE
        elif profile.chip.chip_class in SEPARATE_MEMORY:
            one = max(one - LLAMA_CPP_MARGIN_BYTES, 0.0) if profile.engine == "llama.cpp" else USABLE * one
        # Of a chip that shares its memory with the system, the data-sheet profile has taken the system's part off.
        return one * self.devices

    def fits(self, batch: float, context: float) -> bool:
        """Whether the devices hold the model and this batch; True where their memory is not known."""
        usable = self.usable_bytes()
        return usable is None or self.memory_bytes(batch, context) <= usable

    def kv_tokens(self, context: float | None = None) -> int | None:
        """Tokens of keys and values that fit beside the weights; 0: not even the weights do; None: no limit is known.

        `context`: length of the sequences, where sliding windows save memory.
        """
        usable = self.usable_bytes()
        if usable is None:
            return None
        room = usable - self.memory_bytes(0, 0) + self.residency.away_bytes
        return kv_tokens(self.terms, max(room, 0.0), context, self.devices, self.split)

    def placed(self, batch: float, context: float) -> StepModel:
        """The same model with what does not fit beside this batch's cache moved to host memory and disk.

        Only llama.cpp does that by itself; other engines refuse such a model, and it comes back as it is.
        """
        usable = self.usable_bytes()
        if usable is None or self.profile.engine != "llama.cpp" or self.fits(batch, context):
            return replace(self, residency=ON_DEVICE)
        room = usable - (self.memory_bytes(batch, context) - self.terms.total_bytes)
        host = _host_bytes(self.profile)
        return replace(self, residency=residency(self.terms, max(room, 0.0), host))


def _host_bytes(profile: Profile) -> float | None:
    """Memory beside the device's own that weights may lie in; None: not known, taken as enough."""
    chip_class = profile.chip.chip_class if profile.chip else None
    cards = [gpu for gpu in profile.machine.gpus if not gpu.unified] if profile.machine else []
    has_own = bool(cards) if chip_class is None else chip_class in SEPARATE_MEMORY
    if not has_own:
        return 0.0
    return None if profile.host_memory_bytes is None else USABLE * profile.host_memory_bytes


def step_model(
    spec: ModelSpec,
    profile: Profile,
    format_name: str,
    devices: int | None = None,
    *,
    frequencies: Routing | None = None,
    expert_parallel: bool = False,
    kv: str | None = None,
    reserve: float | None = None,
) -> StepModel:
    """`spec` in a weight format under `profile`, one sequence's cache beside it. Raises UserError for what is unknown.

    `frequencies`: measured routing, a row of shares for each layer that routes; None: taken as even. `kv`: type of keys
    and values, None: of 16 bits. `reserve`: tokens each cache is made for, None: those in use.
    """
    chosen = format_named(format_name).name
    # To GPU engines MXFP4 is another mixture than to llama.cpp, and a file of llama.cpp's nothing at all.
    stored = chosen if profile.engine == "llama.cpp" else format_for(profile.engine, chosen).name
    kept = kv_for(profile.engine, kv or "f16", spec)
    terms = terms_of(spec, stored, kv_element_bytes(kept))
    if frequencies is not None:
        terms = with_frequencies(terms, spec, frequencies)
    devices = devices or profile.devices
    model = StepModel(
        spec,
        terms,
        profile,
        devices,
        expert_parallel=expert_parallel,
        asked_format=chosen,
        kv=kept,
        reserve=reserve or 0.0,
    )
    return model.placed(1, min(spec.context, 4096))
