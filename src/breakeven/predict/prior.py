"""A profile without probes: what a chip's data sheet says, times the efficiencies its class of machine reaches.

The efficiencies stand in `data/efficiencies.json`, by engine family and class of chip, with where each came from and
how far predictions were off when a model, or a machine, was left out of the fit. The script `bench/fit_prior.py`
writes that file from public measurements. A class that nobody measured borrows from its neighbours, and its interval
says so.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

import msgspec

from breakeven.errors import UserError
from breakeven.spec.chip import Chip
from breakeven.spec.formats import format_named
from breakeven.spec.profile import Constants, Error, Origin, Profile, Range
from breakeven.version import __version__

ENGINES = ("llama.cpp", "vllm")


class Efficiency(msgspec.Struct, frozen=True, kw_only=True):
    """What one class of machine makes of its data sheet under one engine.

    Shares are of the published figure. `flops_per_byte` stands in for a peak rate that the maker does not publish:
    peak operations a second over bytes a second. `usable_memory` is the share of memory an engine may fill.
    """

    weight_share: float
    kv_share: float
    decode_flops_share: float
    prefill_flops_share: float
    flops_per_byte: float
    step_s: float
    layer_s: float
    moe_layer_s: float
    sequence_s: float
    overlap: float = 1.0
    expert_s: float = 0.0
    prefill_token_s: float = 0.0
    routing_alpha: float = 1.0
    usable_memory: float = 1.0
    host_bytes_per_s: float | None = None
    disk_bytes_per_s: float | None = None
    link_share: float = 0.7
    link_bytes_per_s: float | None = None
    link_s: float = 0.0
    type_cost: dict[str, float] = {}
    idle_share: float = 0.1
    busy_share: float = 0.7


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One class of machine under one engine: its efficiency, its errors, and where both come from."""

    engine: str
    chip_class: str
    efficiency: Efficiency
    errors: list[Error]
    ranges: list[Range] = []
    basis: str
    """In words: fitted on what, or judged by what."""
    points: int = 0
    at_prior: list[str] = []


class Efficiencies(msgspec.Struct, frozen=True, kw_only=True):
    """The file `data/efficiencies.json`."""

    date: str
    sources: list[str]
    entries: list[Entry]


@lru_cache(maxsize=1)
def efficiencies() -> Efficiencies:
    """The shipped file."""
    raw = files("breakeven.predict").joinpath("data/efficiencies.json").read_bytes()
    return msgspec.json.decode(raw, type=Efficiencies)


def efficiency_of(chip_class: str, engine: str) -> Entry:
    """The entry for a class of chip. Raises UserError for an engine that has none."""
    if engine not in ENGINES:
        raise UserError(f"no data-sheet profile for engine {engine!r}: there is one for {' and '.join(ENGINES)}")
    return next(e for e in efficiencies().entries if e.engine == engine and e.chip_class == chip_class)


def profile_of_chip(chip: Chip, engine: str, devices: int = 1, format_name: str | None = None) -> Profile:
    """What `engine` should reach on `devices` of `chip`, from its data sheet alone.

    `format_name` chooses the peak rate of arithmetic (fp8 tensors run on the fp8 units); None: 16-bit. Raises UserError
    for an unknown engine or format, and for fewer than one device.
    """
    if devices < 1:
        raise UserError(f"{devices} devices of {chip.slug}: give at least 1")
    entry = efficiency_of(chip.chip_class, engine)
    return profile_with(chip, entry, devices, format_name, efficiencies().date, efficiencies().sources)


def profile_with(
    chip: Chip, entry: Entry, devices: int, format_name: str | None, date: str, sources: list[str]
) -> Profile:
    """`profile_of_chip` with the efficiencies given: what the fit calls."""
    found = entry.efficiency
    bandwidth = chip.bandwidth_bytes_per_s
    peak = peak_flops(chip, found, engine=entry.engine, format_name=format_name)
    link = chip.link_bytes_per_s * found.link_share if chip.link_bytes_per_s else found.link_bytes_per_s
    return Profile(
        name=chip.slug,
        engine=entry.engine,
        devices=devices,
        constants=Constants(
            weight_bytes_per_s=bandwidth * found.weight_share,
            kv_bytes_per_s=bandwidth * found.kv_share,
            decode_flops_per_s=peak * found.decode_flops_share,
            prefill_flops_per_s=peak * found.prefill_flops_share,
            overlap=found.overlap,
            step_s=found.step_s,
            layer_s=found.layer_s,
            moe_layer_s=found.moe_layer_s,
            expert_s=found.expert_s,
            sequence_s=found.sequence_s,
            prefill_token_s=found.prefill_token_s,
            routing_alpha=found.routing_alpha,
            host_bytes_per_s=found.host_bytes_per_s,
            disk_bytes_per_s=found.disk_bytes_per_s,
            link_bytes_per_s=link,
            link_s=found.link_s,
            type_cost=found.type_cost,
        ),
        errors=entry.errors,
        ranges=entry.ranges,
        origin=Origin(
            how="datasheet",
            engine=entry.engine,
            engine_version=None,
            date=date,
            version=__version__,
            format=format_name,
            points=entry.points,
            at_prior=entry.at_prior,
            sources=[f"data sheet: {chip.source}", entry.basis, *sources],
        ),
        memory_bytes=None if chip.memory_bytes is None else int(chip.memory_bytes * found.usable_memory),
        chip=chip,
        idle_w=None if chip.tdp_w is None else chip.tdp_w * found.idle_share,
        busy_w=None if chip.tdp_w is None else chip.tdp_w * found.busy_share,
    )


def peak_flops(chip: Chip, found: Efficiency, *, engine: str, format_name: str | None) -> float:
    """Peak operations a second that the engine's matrix products draw on.

    vLLM multiplies FP8 and FP4 weights on units of that width where the chip has them; other formats, and llama.cpp's
    all, are charged against the 16-bit peak.
    """
    sixteen = (
        chip.peak_flops.get("bf16")
        or chip.peak_flops.get("fp16")
        or found.flops_per_byte * (chip.bandwidth_bytes_per_s)
    )
    if engine != "vllm" or format_name is None:
        return sixteen
    wanted = {"fp8": ("fp8",), "int8": ("int8", "fp8"), "nvfp4": ("fp4", "fp8")}.get(_plain(format_name), ())
    return max([sixteen, *(chip.peak_flops[kind] for kind in wanted if kind in chip.peak_flops)])


def _plain(format_name: str) -> str:
    return format_named(format_name).name.lower()
