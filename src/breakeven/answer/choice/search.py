"""Everything that could run: the catalogue times formats, types of keys and values and where it lies, with speed and
memory of each by the step model.

A search is quick and a little coarse: weights that do not fit the devices are moved as `terms.residency` does, buffers
are those of one context. The few that are shown are placed and timed again as `predict` does it (`rows.exact`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from breakeven.answer.choice.machine import Site
from breakeven.answer.choice.uses import Wish
from breakeven.forecast.constants import Profile
from breakeven.forecast.devices import collectives_s, shard, split_of
from breakeven.forecast.memory import (
    VLLM_BUFFER_TOKENS,
    VLLM_BUFFER_WIDTHS,
    VLLM_RUNTIME_BYTES,
    every_logit,
    kv_bytes,
    on_gpu,
)
from breakeven.forecast.model import PROMPT_STEP_TOKENS
from breakeven.forecast.residency import ON_DEVICE, Residency
from breakeven.forecast.shapes import SERVED, TRAINED_IN, ModelShape, buffer_bytes, shape_of, terms_from, with_kv
from breakeven.forecast.terms import Terms, residency, step_parts
from breakeven.model.catalogue import CatalogueEntry, entries, find
from breakeven.model.formats.named import only_format

Floats = NDArray[np.float64]
KV_OF_ENGINES = {"llama.cpp": ("f16", "q8_0", "q4_0"), "vllm": ("f16", "fp8")}
LAST_RESORT = "q4_0"
"""Taken only where nothing else keeps the model on its devices."""
SMALL_CACHE = 0.1
"""A cache of less of the memory than this is not worth losing anything in it."""
_FORMAT_IN_NAME = re.compile(r"-(fp8|nvfp4|mxfp4|int4|awq)$")
TRAINED = ("gpt-oss",)
"""Beginnings of the names of mixtures that exist in MXFP4 alone."""


class RunTimes(NamedTuple):
    """Tokens/s of one user, seconds to the first token, and memory in all places and beside the devices."""

    speed: float
    ttft_s: float
    memory_bytes: float
    host_bytes: float


@dataclass(frozen=True, slots=True)
class Runnable:
    """One model in one format with one type of keys and values, as it would run here."""

    entry: CatalogueEntry
    shape: ModelShape
    format: str
    kv: str
    timed: RunTimes
    spilled: bool

    @property
    def name(self) -> str:
        """The model's short name."""
        return self.entry.name

    @property
    def download_bytes(self) -> int:
        """Of its weights."""
        return self.shape.formats[self.format].total_bytes

    @property
    def bits(self) -> float:
        """A weight, over all of them."""
        return 8.0 * self.download_bytes / self.shape.total_params


@dataclass(frozen=True, slots=True)
class Searched:
    """What was found. `too_big`: models of which nothing fits, with the bytes of their smallest. `short`: models whose
    context is too short. `considered`: how many were weighed."""

    options: tuple[Runnable, ...]
    too_big: dict[str, float]
    short: dict[str, int]
    considered: int


def search(place: Site, wish: Wish) -> Searched:
    """Every option that fits the machine's memory, the catalogue's models in alphabetical order."""
    options: list[Runnable] = []
    too_big: dict[str, float] = {}
    short: dict[str, int] = {}
    considered = 0
    for entry in entries():
        if format_of_another(entry.name) is not None:
            continue
        shape = shape_of(entry.name)
        if shape.context < wish.reserve:
            short[entry.name] = shape.context
            continue
        fitting, least = [], np.inf
        for format_name, profile in _formats(entry, shape, place):
            found, weighed, need = _in_format(entry, shape, format_name, profile, place, wish)
            fitting += found
            considered += weighed
            least = min(least, need)
        options += fitting
        if not fitting:
            too_big[entry.name] = float(least)
    return Searched(tuple(options), too_big, short, considered)


@lru_cache(maxsize=1)
def _known() -> frozenset[str]:
    return frozenset(entry.name for entry in entries())


def format_of_another(name: str) -> str | None:
    """The row of the same model, where a row is that model published in fewer bits once more."""
    plain = _FORMAT_IN_NAME.sub("", name)
    return plain if plain != name and plain in _known() else None


def weighed_formats(name: str, place: Site) -> list[str]:
    """The formats that a model is weighed in on a machine."""
    return [format_name for format_name, _ in _formats(find(name), shape_of(name), place)]


def _formats(entry: CatalogueEntry, shape: ModelShape, place: Site) -> list[tuple[str, Profile]]:
    if entry.name.startswith(TRAINED) and shape.moe:
        return [(TRAINED_IN, place.profile)]
    finest = 0
    if place.engine == "vllm" and (only := only_format(entry.name, shape.moe)) is not None:
        # Nothing finer was published than what it was trained in.
        finest = SERVED.index(only.partition("_")[0])
    return [
        (name, profile)
        for name, profile in place.formats.items()
        if name in shape.formats and (name not in SERVED or SERVED.index(name) >= finest)
    ]


def _in_format(
    entry: CatalogueEntry, shape: ModelShape, format_name: str, profile: Profile, place: Site, wish: Wish
) -> tuple[list[Runnable], int, float]:
    terms = terms_from(entry.name, shape, format_name)
    room = place.device_room + (place.host_room or 0.0)
    if wish.memory_bytes is not None:
        room = min(room, wish.memory_bytes)
    found: list[Runnable] = []
    small = False
    kinds = KV_OF_ENGINES.get(profile.engine, ("f16",))
    need = np.inf
    for kv in kinds:
        if kv != "f16" and profile.engine == "llama.cpp" and not shape.whole_heads:
            continue
        if any(not other.spilled for other in found) and (kv == LAST_RESORT or small):
            continue
        held = with_kv(terms, kv)
        cache, buffers = _beside(held, shape, profile, place, wish)
        memory = terms.total_bytes + cache + buffers
        small = cache <= SMALL_CACHE * memory
        need = min(need, memory)
        if memory > room:
            continue
        where = ON_DEVICE
        if memory > place.device_room:
            if profile.engine != "llama.cpp" or not place.apart:
                continue
            where = residency(held, max(place.device_room - cache - buffers, 0.0), place.host_room)
            handed = 2 * round(shape.moe_layers * min(where.experts_host, 1.0)) or 2
            where = replace(where, handovers=handed)
        speed, ttft = times(held, profile, place.devices, where, wish)
        timed = RunTimes(speed, ttft, memory, where.away_bytes)
        found.append(Runnable(entry, shape, format_name, kv, timed, not where.whole))
    return found, len(kinds), need


def _beside(terms: Terms, shape: ModelShape, profile: Profile, place: Site, wish: Wish) -> tuple[float, float]:
    """Bytes of all users' caches and states, and of buffers."""
    split = split_of(profile.engine, place.devices)
    reserved = profile.engine != "vllm"
    cache = kv_bytes(terms, wish.users, wish.reserve, place.devices, split, reserved=reserved)
    cache += wish.users * terms.state_bytes / 2.0
    if not reserved:
        activations = VLLM_BUFFER_TOKENS * VLLM_BUFFER_WIDTHS * 2.0 * terms.hidden
        return cache, (1 if split in ("none", "layers") else place.devices) * (activations + VLLM_RUNTIME_BYTES)
    return cache, place.devices * buffer_bytes(
        shape, wish.reserve, wish.users, gpu=on_gpu(profile), every_logit=every_logit(profile)
    )


def times(terms: Terms, profile: Profile, devices: int, where: Residency, wish: Wish) -> tuple[float, float]:
    """Tokens/s of one user and seconds to the first token, while all users ask one thing after another.

    In a cycle of T seconds every user has a prompt read, P seconds each, one after the other, and gets its answer, one
    step a token: T = U P + output step. While one answers, the others' prompts come between.
    """
    split = split_of(profile.engine, devices)
    part = shard(terms, devices, split)

    def step_s(decoding: float, context: float, prompt: float, prompt_context: float) -> float:
        total = float(step_parts(part, profile.constants, decoding, context, prompt, prompt_context, where).total_s)
        if split == "none":
            return total
        chip_link = profile.chip.link_bytes_per_s if profile.chip else None
        return total + float(collectives_s(terms, profile.constants, decoding + prompt, devices, split, chip_link))

    limit = PROMPT_STEP_TOKENS.get(profile.engine, PROMPT_STEP_TOKENS["llama.cpp"])
    steps = -(-wish.prompt // limit)
    read_s = steps * step_s(0.0, 0.0, wish.prompt / steps, max((wish.prompt + 1) / 2, wish.context - wish.output))
    return under_users(step_s(float(wish.users), float(wish.context), 0.0, 0.0), read_s, wish)


def under_users(step_s: float, read_s: float, wish: Wish) -> tuple[float, float]:
    """Tokens/s of one user and seconds to the first token; see `times`."""
    others = wish.users - 1
    writing_s = wish.output * step_s + others * read_s
    cycle_s = read_s + writing_s
    return wish.output / writing_s, read_s * (1.0 + others * read_s / cycle_s) + step_s
