"""One model in one format on one machine: the step model with everything filled in, on several devices too.

What a model occupies while it runs is worked out in `memory`, where it lies in `placing`, what several devices make
of it in `devices`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike

from breakeven.errors import UserError
from breakeven.forecast.constants import Constants, Error, Profile, error_of
from breakeven.forecast.devices import (
    apart,
    collectives_s,
    device_names,
    host_bytes,
    parts_evenly,
    shard,
    split_of,
    usable,
    waiting_s,
)
from breakeven.forecast.memory import (
    LLAMA_CPP_MARGIN_BYTES,
    Memory,
    Split,
    every_logit,
    kv_tokens,
    memory_of,
)
from breakeven.forecast.placing import DeviceRoom, PlacedModel, lacking, place
from breakeven.forecast.residency import ON_DEVICE, Residency, mixed, residency_of
from breakeven.forecast.routing import Routing, routing_known, skewed, with_frequencies
from breakeven.forecast.terms import (
    Floats,
    Parts,
    Terms,
    residency,
    step_parts,
    terms_of,
)
from breakeven.hardware.placement import AUTO, Placement
from breakeven.model.architecture import ModelSpec
from breakeven.model.formats.named import default_kv, format_for, format_named, kv_element_bytes, kv_for, label

PROMPT_STEP_TOKENS = {"llama.cpp": 512, "vllm": 8192, "mlx": 2048}
"""Prompt tokens of one step: llama.cpp's n_ubatch, vLLM's max_num_batched_tokens on large devices, MLX's step size."""


@dataclass(frozen=True)  # not slotted: `device_terms` is kept once computed
class StepModel:
    """Step times of `terms` under `profile`. `scale` multiplies every time: the ends of an interval are models too.

    `terms` are the whole model's; each of `devices` does its part of them. `residency`: where the weights lie. `kv`:
    the type of keys and values. `reserve`: tokens that each sequence's cache is made for, where more than are in use.
    `placement`: what llama.cpp is told on devices with memory of their own; `lies`: what came of it, None where nobody
    asked and everything fits.
    """

    spec: ModelSpec
    terms: Terms
    profile: Profile
    devices: int = 1
    scale: float = 1.0
    prompt_scale: float = 1.0
    """Times `scale`: what prompts add to a step."""
    expert_parallel: bool = False
    residency: Residency = ON_DEVICE
    asked_format: str | None = None
    kv: str = "f16"
    reserve: float = 0.0
    placement: Placement = AUTO
    lies: PlacedModel | None = None
    lies_for: tuple[float, float] | None = None
    """Batch and context that it was placed for."""

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
        return split_of(self.profile.engine, self.devices, self.expert_parallel and self.terms.moe)

    @cached_property
    def device_terms(self) -> Terms:
        """What one device does."""
        return shard(self.terms, self.devices, self.split)

    @cached_property
    def constants(self) -> Constants:
        """The profile's; of unlike devices what they make together of their shares of the layers."""
        profile = self.profile
        if not profile.others:
            return profile.constants
        shares = self.residency.by_device or (1.0 / self.devices,) * self.devices
        if len(shares) != len(profile.others) + 1 or not sum(shares):
            return profile.constants
        return mixed([profile.constants, *(other.constants for other in profile.others)], shares)

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
        constants = self.constants
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
        whole = self.parts(decoding, decode_context, prefill_tokens, prefill_context).total_s
        if self.prompt_scale != 1.0:
            alone = np.asarray(decoding, dtype=np.float64) <= 0.0
            plain = np.where(alone, 0.0, self.parts(decoding, decode_context).total_s)
            whole = plain + self.prompt_scale * (whole - plain)
        return self.scale * whole

    def prefill_s(self, prompt_tokens: ArrayLike, step_tokens: int | None = None) -> Floats:
        """Seconds to read one prompt alone, in as many equal steps as the engine's step limit asks for.

        `step_tokens`: that limit; None: the engine's own.
        """
        tokens = np.maximum(np.asarray(prompt_tokens, dtype=np.float64), 1.0)
        limit = step_tokens or PROMPT_STEP_TOKENS.get(self.profile.engine, PROMPT_STEP_TOKENS["llama.cpp"])
        steps = np.ceil(tokens / limit)
        return steps * self.step_s(0.0, 0.0, tokens / steps, (tokens + 1.0) / 2.0)

    def error(self, phase: str) -> Error:
        """How far this profile's predictions of this kind of model were off; of unlike devices the widest."""
        return error_of(self.profile, phase, moe=self.terms.moe, spilled=not self.residency.whole)

    def scaled(self, factor: float) -> StepModel:
        """The same model, every step `factor` times as long."""
        return replace(self, scale=self.scale * factor)

    def low_high(self, phase: str = "decode") -> tuple[StepModel, StepModel]:
        """The fast and the slow end of the interval of one `phase`."""
        width = self.error(phase).log_half_width
        return self._ends(width, 0.0)

    def ends(self, prompt_share: float) -> tuple[StepModel, StepModel]:
        """The fast and the slow end of work of which prompts take `prompt_share` of the time.

        Decoding's error is taken to be in every step, and what prompts are off by beyond it as independent of it. Of
        all pairs as likely together as one interval is alone, the ends are those that change the work's time the most.
        """
        decode, prefill = (self.error(phase).log_half_width for phase in ("decode", "prefill"))
        more = math.sqrt(max(prefill**2 - decode**2, 0.0))
        size = math.hypot(decode, prompt_share * more)
        return self._ends(decode**2 / size, prompt_share * more**2 / size) if size > 0.0 else self._ends(0.0, 0.0)

    def _ends(self, steps: float, prompts: float) -> tuple[StepModel, StepModel]:
        """Steps so much faster and slower, in log units, and what prompts add to them `prompts` more.

        Probes route evenly, so where routing is not known the fast end of a probed profile routes unevenly too.
        Errors of a datasheet profile come from real models and contain their routing.
        """
        fast, slow = (
            replace(
                self.scaled(math.exp(sign * steps)),
                prompt_scale=self.prompt_scale * math.exp(sign * prompts),
            )
            for sign in (-1.0, 1.0)
        )
        if self.profile.origin.how == "probes" and not routing_known(self.terms):
            fast = replace(fast, terms=skewed(self.terms))
        return fast, slow

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
        rooms = [usable(one) for one in (self.profile, *self.profile.others)]
        if any(room is None for room in rooms):
            return None
        known = [room for room in rooms if room is not None]
        # Alike devices share one profile, unlike ones have each their own.
        return known[0] * self.devices if len(known) == 1 else sum(known)

    def fits(self, batch: float, context: float) -> bool:
        """Whether the devices hold the model and this batch; True where their memory is not known.

        Of a placed model whether everything that a step reads lies on them, and has room.
        """
        usable = self.usable_bytes()
        if self.lies is not None:
            placed = self if (batch, context) == self.lies_for else self.placed(batch, context)
            return placed.residency.whole and placed.lacking() is None
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

        Only llama.cpp does that by itself; other engines refuse such a model, and it comes back as it is. Where devices
        have memory of their own it is placed as `placement` says, "auto" as llama.cpp's own fitting chooses.
        """
        usable = self.usable_bytes()
        bare = replace(self, residency=ON_DEVICE, lies=None)
        if usable is None or self.profile.engine != "llama.cpp":
            return bare
        if apart(self.profile):
            if self.placement == AUTO and self.devices == 1 and bare.fits(batch, context):
                return bare
            return self._lying(batch, context)
        if bare.fits(batch, context):
            return bare
        room = usable - (self.memory_bytes(batch, context) - self.terms.total_bytes)
        host = host_bytes(self.profile)
        return replace(bare, residency=residency(self.terms, max(room, 0.0), host))

    def _lying(self, batch: float, context: float) -> StepModel:
        length = round(max(context, self.reserve, 1))
        found = _place(
            self.spec, self.terms.format, tuple(self.rooms()), length, max(batch, 1), self.placement, self.kv,
            every_logit(self.profile),
        )  # fmt: skip
        return replace(
            self,
            residency=residency_of(found, self.spec, host_bytes(self.profile)),
            lies=found,
            lies_for=(batch, context),
        )

    def rooms(self) -> list[DeviceRoom]:
        """The devices and what is free on each, by the names that engines list them under."""
        profiles = [self.profile, *self.profile.others]
        if len(profiles) == 1:
            profiles *= self.devices
        free = [(usable(one) or 0.0) + LLAMA_CPP_MARGIN_BYTES for one in profiles]
        return [DeviceRoom(name, n) for name, n in zip(device_names(profiles), free, strict=True)]

    def lacking(self) -> str | None:
        """Why it cannot be run: the place that is too small, with the numbers, or devices that do not part it.

        None: nothing, or not known.
        """
        if self.split in ("tensor", "experts") and not parts_evenly(self.spec, self.devices):
            return f"does not part its heads among {self.devices} devices"
        return None if self.lies is None else lacking(self.lies, self.rooms(), host_bytes(self.profile))

    def placement_words(self, batch: float, context: float) -> str | None:
        """Where it lies beside a CPU, such as "65/65 layers on the GPU"; None where there is nothing to place.

        Of a model that does not fit devices which hold all or nothing: None.
        """
        if self.lies is not None:
            return self.lies.placed().words()
        usable = self.usable_bytes()
        if usable is None or not apart(self.profile) or not self.fits(batch, context):
            return None
        if self.profile.engine != "llama.cpp":
            return "wholly on the GPU" if self.devices == 1 else "wholly on the GPUs"
        layers = len(self.spec.layers) + 1
        return f"{layers}/{layers} layers on the GPU"


@lru_cache(maxsize=512)
def _place(
    spec: ModelSpec,
    format_name: str,
    rooms: tuple[DeviceRoom, ...],
    context: int,
    batch: float,
    placement: Placement,
    kv: str,
    logits: bool,
) -> PlacedModel:
    return place(spec, format_name, rooms, context=context, slots=batch, placement=placement, kv=kv, every_logit=logits)


def _placeable(profile: Profile) -> None:
    """Raises UserError where there is nothing to place."""
    if profile.engine != "llama.cpp":
        raise UserError(
            f"{profile.engine} keeps a whole model on its devices; --gpu-layers and --cpu-moe are of --engine llama.cpp"
        )
    if not apart(profile):
        raise UserError(
            f"{profile.name} has one memory for all, nothing lies beside a device; leave --gpu-layers and --cpu-moe out"
        )


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
    placement: Placement = AUTO,
) -> StepModel:
    """`spec` in a weight format under `profile`, one sequence's cache beside it. Raises UserError for what is unknown.

    `frequencies`: measured routing, a row of shares for each layer that routes; None: taken as even. `kv`: type of keys
    and values, None: as the checkpoint asks where the engine does so, else of 16 bits. `reserve`: tokens each cache is
    made for, None: those in use. `placement`: what llama.cpp is told; on a machine whose devices share its memory, and
    in another engine, a UserError.
    """
    chosen = format_named(format_name).name
    if placement != AUTO:
        _placeable(profile)
    # To GPU engines MXFP4 is another mixture than to llama.cpp, and a file of llama.cpp's nothing at all.
    stored = chosen if profile.engine == "llama.cpp" else format_for(profile.engine, chosen).name
    kept = kv_for(profile.engine, kv or default_kv(spec, profile.engine, stored), spec)
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
        placement=placement,
    )
    return model.placed(1, min(spec.context, 4096))
