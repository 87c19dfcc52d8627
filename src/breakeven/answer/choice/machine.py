"""The machine that a model is chosen for: its profiles, and this one's from data sheets where it is not calibrated."""

from __future__ import annotations

import time
from dataclasses import dataclass

from breakeven.errors import BreakevenError, UserError
from breakeven.forecast.constants import Profile
from breakeven.forecast.devices import apart, host_bytes, usable
from breakeven.forecast.profiles import THIS, default_engine, profile_named, profile_of_machine
from breakeven.forecast.shapes import GGUF, SERVED
from breakeven.hardware.chips import Chip, chip_or_none
from breakeven.hardware.machine import HostMemory, Machine, MachineSpec, assembled
from breakeven.hardware.memory import measured
from breakeven.hardware.reader import read_machine

MEASURED_S = 0.5
"""Of reading memory, on a machine without a profile."""
BUSY = 0.7
"""Share of the CPUs under which this machine was busy while its memory was read."""
LEAST_SHARE = 0.1
MONTH_HOURS = 730.0


@dataclass(frozen=True, slots=True)
class Site:
    """A machine with one engine. `formats`: those the engine reads, each with the profile that has its peaks.

    `rooms`: bytes of all devices, and of host memory beside them (None: not said). `usd_per_month`: the least rent that
    is known, with where it is from.
    """

    name: str
    engine: str
    devices: int
    formats: dict[str, Profile]
    device_room: float
    host_room: float | None
    apart: bool
    notes: tuple[str, ...]
    usd_per_month: float | None = None
    price_source: str | None = None

    @property
    def profile(self) -> Profile:
        """Any of them, for what they have in common."""
        return next(iter(self.formats.values()))


def place_of(machine: str, engine: str | None = None, devices: int | None = None) -> Site:
    """The machine as `profile_named` knows it, with its engine's usual formats.

    Raises UserError for an unknown machine, and for this one where neither a profile nor a data sheet is known.
    """
    notes: list[str] = []
    described: Machine | None = None
    try:
        first = profile_named(machine, engine, devices)
    except UserError:
        if machine != THIS:
            raise
        described = _here(notes)
        first = _of(described, engine, devices, None)
    usual = SERVED if first.engine == "vllm" else GGUF
    formats = {}
    for name in usual:
        if first.engine != "vllm":
            formats[name] = first
        elif described is not None:
            formats[name] = _of(described, first.engine, devices, name)
        else:
            formats[name] = profile_named(machine, first.engine, devices, name)
    each = [usable(one) for one in (first, *first.others)]
    known = [room for room in each if room is not None]
    if len(known) < len(each):
        raise UserError(
            f"{machine}: how much memory it has is not known; describe it in full, such as ddr5-5600x2:32GB"
        )
    room = known[0] * first.devices if len(known) == 1 else sum(known)
    own = apart(first)
    host = host_bytes(first) if own else 0.0
    if own and host is None:
        notes.append(
            f"how much RAM {machine} has was not said, so models that need more than the devices are left out; "
            f"say it as {machine}+ddr5-5600x2:64GB"
        )
    if first.chip is not None and first.chip.chip_class == "cpu" and first.host is not None and first.host.cores:
        notes.append(
            "a CPU's cores are not counted: prompts are timed by what such machines reach at their memory's rate"
        )
    usd, source = _rent(first)
    return Site(machine, first.engine, first.devices, formats, room, host, own, tuple(notes), usd, source)


def _of(machine: Machine, engine: str | None, devices: int | None, format_name: str | None) -> Profile:
    chosen = engine or default_engine(machine.devices[0], format_name)
    return profile_of_machine(machine, chosen, devices, format_name)


def _here(notes: list[str]) -> Machine:
    """This machine by what it tells of itself."""
    spec = read_machine()
    chips: list[Chip] = []
    for gpu in spec.gpus:
        chip = chip_or_none(gpu.name)
        if chip is None:
            raise UserError(
                f"{gpu.name} is not in the catalogue of chips; run `breakeven calibrate` first, or name a chip with "
                "--machine"
            )
        chips.append(chip)
    if chips:
        notes.append(
            "this machine was not calibrated: its chip's data sheet stands for it; `breakeven calibrate` narrows"
        )
        shared = any(gpu.unified for gpu in spec.gpus)
        host = HostMemory(memory_bytes=spec.memory_bytes, cores=None if shared else spec.physical_cores)
        link = next((gpu.link_bytes_per_s for gpu in spec.gpus if gpu.link_bytes_per_s), None)
        return assembled(THIS, chips, host, None if shared else link, None)
    return _cpu_here(spec, notes)


def _cpu_here(spec: MachineSpec, notes: list[str]) -> Machine:
    wall, cpu = time.monotonic(), time.process_time()
    try:
        rate = measured(spec, MEASURED_S).memory_bytes_per_s
    except BreakevenError:
        rate = None
    # Other programs take turns with the reading; what it would reach alone is in proportion to its share.
    share = (time.process_time() - cpu) / (time.monotonic() - wall) / spec.logical_cores
    if rate is None:
        raise UserError("this machine's memory could not be measured; run `breakeven calibrate`, or name it in words")
    notes.append(
        f"this machine was not calibrated: {spec.cpu}, whose memory was just read at {rate / 1e9:.3g} GB/s, with what "
        "such machines reach; `breakeven calibrate` narrows the bands"
    )
    if share < BUSY:
        rate /= max(share, LEAST_SHARE)
        notes.append(f"other programs left it {share:.0%} of the CPUs meanwhile, and the rate is scaled up for that")
    host = HostMemory(memory_bytes=spec.memory_bytes, bandwidth_bytes_per_s=rate, cores=spec.physical_cores)
    return assembled(THIS, [], host, None, None)


def _rent(profile: Profile) -> tuple[float | None, str | None]:
    """The least rent an hour of its chips, by the month, all devices; else what an hour costs its owner."""
    chips = [one.chip for one in (profile, *profile.others)]
    total, said = 0.0, ""
    for chip in chips:
        hourly = [price for price in chip.prices if price.kind == "hour"] if chip is not None else []
        if not hourly:
            return None, None
        # Other prices by the hour are what a chip costs those who own it.
        rents = [price for price in hourly if "rental" in price.what]
        least = min(rents or hourly, key=lambda price: price.usd)
        total += least.usd * MONTH_HOURS
        said = f"{least.what}, {least.date}"
    return total * (profile.devices if len(chips) == 1 else 1), said
