"""One model in one format on one machine: the step model with everything filled in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from breakeven.predict.memory import USABLE, buffer_bytes, cache_bytes, cache_tokens
from breakeven.predict.parallel import Split, collectives_s, shard, split_of, waiting_s
from breakeven.predict.residency import ON_DEVICE, Residency, residency
from breakeven.predict.routing import Routing, routing_known, skewed, with_frequencies
from breakeven.predict.step import Floats, Parts, step_parts
from breakeven.predict.terms import Terms, terms_of
from breakeven.spec.formats import format_for, format_named
from breakeven.spec.model import ModelSpec
from breakeven.spec.profile import Error, Profile

PROMPT_STEP_TOKENS = {"llama.cpp": 512, "vllm": 8192}
"""Prompt tokens of one step: llama.cpp's n_ubatch, vLLM's max_num_batched_tokens on large devices."""
SEPARATE_MEMORY = ("datacenter", "workstation", "consumer")
"""Chips whose memory is not the host's."""


@dataclass(frozen=True)  # not slotted: `device_terms` is kept once computed
class StepModel:
    """Step times of `terms` under `profile`. `scale` multiplies every time: the ends of an interval are models too.

    `terms` are the whole model's; each of `devices` does its part of them. `residency`: where the weights lie.
    """

    spec: ModelSpec
    terms: Terms
    profile: Profile
    devices: int = 1
    scale: float = 1.0
    expert_parallel: bool = False
    residency: Residency = ON_DEVICE
    asked_format: str | None = None

    @property
    def format(self) -> str:
        """The weight format by the name people use; `terms.format` names what the engine means by it."""
        return self.asked_format or self.terms.format

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
        """See `breakeven.predict.step.step_parts`; arguments broadcast, `scale` is not applied to the parts.

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

    def memory_bytes(self, batch: float, context: float) -> float:
        """Weights, keys and values of `batch` sequences of `context` tokens, and buffers, on all devices."""
        held = 1 if self.split in ("none", "layers") else self.devices
        buffers = buffer_bytes(self.terms, self.profile.engine, held)
        return self.terms.total_bytes + cache_bytes(self.terms, batch, context, self.devices, self.split) + buffers

    def usable_bytes(self) -> float | None:
        """Memory of all devices that a model may take; None: the profile does not say."""
        profile = self.profile
        if profile.memory_bytes is None:
            return None
        # Of a chip that shares its memory with the system, the data-sheet profile has taken the system's part off.
        shared = profile.chip is not None and profile.chip.chip_class not in SEPARATE_MEMORY
        return (1.0 if shared else USABLE) * profile.memory_bytes * self.devices

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
        return cache_tokens(self.terms, max(room, 0.0), context, self.devices, self.split)

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
    has_own = bool(profile.machine and profile.machine.gpus) if chip_class is None else chip_class in SEPARATE_MEMORY
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
) -> StepModel:
    """`spec` in a weight format under `profile`, one sequence's cache beside it. Raises UserError for what is unknown.

    `frequencies`: measured routing, a row of shares for each layer that routes; None: taken as even.
    """
    chosen = format_named(format_name).name
    # To GPU engines MXFP4 is another mixture than to llama.cpp.
    stored = chosen if profile.engine == "llama.cpp" else format_for(profile.engine, chosen).name
    terms = terms_of(spec, stored)
    if frequencies is not None:
        terms = with_frequencies(terms, spec, frequencies)
    devices = devices or profile.devices
    model = StepModel(spec, terms, profile, devices, expert_parallel=expert_parallel, asked_format=chosen)
    return model.placed(1, min(spec.context, 4096))
