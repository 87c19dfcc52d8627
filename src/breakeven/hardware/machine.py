"""What a machine is: as an engine sees this one, and as a person describes another, of parts in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

import msgspec

from breakeven.errors import UserError
from breakeven.hardware.chips import Chip, rate_of, rate_words, size_of, size_words

CHANNEL_BYTES = 8
"""What a channel moves at a time: 64 bits. LPDDR is counted in 64-bit channels too, DDR5's halves as one."""
USUAL_CHANNELS = 2
"""Of desktops and laptops; taken, and said, where a description gives none."""

OWN_MEMORY = ("apple", "unified", "jetson", "sbc", "integrated", "cpu")
"""Classes of chips that compute out of the machine's own memory."""

PCIE_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
"""One direction, after the line code (PCI Express base specifications)."""

_HOST = "ddr4-3200x2:64GB (kind, MT/s, channels, size), ram:64GB or host:64GB@50GB/s, and :16cores behind any of them"
_KIND = re.compile(r"((?:lp)?ddr[1-6]x?)-(\d{3,5})(?:[x*](\d{1,3}))?")
_PCIE = re.compile(r"pcie-?([1-6])(?:\.0)?[-x ]{1,2}(1|2|4|8|16)")


class Gpu(msgspec.Struct, frozen=True):
    """One accelerator, as its driver or the engine names it. None: it does not tell."""

    name: str
    memory_bytes: int
    driver: str
    unified: bool = False
    """Whether its memory is the machine's own."""
    place: str | None = None
    """What an engine calls it, such as CUDA0, Vulkan0 or Metal."""
    memory_told: bool = True
    """False: no driver here tells its memory; it is that of the catalogue's card of this name."""
    link_bytes_per_s: float | None = None
    """To host memory over PCI Express, one direction, nominal."""


class MachineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A machine. None: it does not tell."""

    cpu: str
    physical_cores: int | None
    logical_cores: int
    instruction_sets: list[str]
    cache_bytes: dict[str, int]
    """Bytes by level: "L1d", "L2", "L3"; all instances together."""
    memory_bytes: int
    available_memory_bytes: int
    os: str
    virtualised: str | None
    """Name of the hypervisor or container, "no", or None when it cannot be told."""
    gpus: list[Gpu]
    memory_bytes_per_s: float | None = None
    """What reading memory with all cores reached; None: not measured."""
    memory_bytes_per_s_range: tuple[float, float] | None = None
    """The slowest and the fastest pass of that measurement."""
    memory_kind: str | None = None
    """As the firmware says it, such as "ddr4-3200, 2 modules"; None: not told to this user."""


def machine_text(spec: MachineSpec) -> str:
    """A machine in a few words, the same whenever it is read: what is free or how fast memory is does not matter."""
    parts = [spec.cpu, f"{spec.logical_cores} cores", f"{spec.memory_bytes / 1e9:.0f} GB"]
    return ", ".join([*parts, *(gpu.name for gpu in spec.gpus)])


class HostMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside the devices of a machine that is described. None: not said."""

    memory_bytes: int | None = None
    bandwidth_bytes_per_s: float | None = None
    """Nominal: transfers a second times bytes a transfer times channels."""
    cores: int | None = None
    words: str | None = None
    """As it was described, such as ddr4-3200x2."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that is described and need not be here: devices, which may be unlike, host memory, disk and links."""

    name: str
    devices: tuple[Chip, ...]
    host: HostMemory | None = None
    link_bytes_per_s: float | None = None
    """Between host memory and a device, one direction."""
    disk_bytes_per_s: float | None = None


def assembled(
    name: str | None, devices: Sequence[Chip], host: HostMemory | None, link: float | None, disk: float | None
) -> Machine:
    """A machine of its parts; `name` None: its words, which `machine_named` reads again.

    CPUs beside other devices are the host. Devices that compute out of the machine's own memory take the size and the
    rate that is said of it. Without a device it is a CPU, whose memory's rate must be known. Raises UserError.
    """
    name = name or _words(devices, host, link, disk)
    cpus = [chip for chip in devices if chip.chip_class == "cpu"]
    if cpus and len(cpus) < len(devices):
        rate = sum(cpu.bandwidth_bytes_per_s for cpu in cpus)
        given = host or HostMemory()
        host = msgspec.structs.replace(
            given,
            bandwidth_bytes_per_s=given.bandwidth_bytes_per_s or rate,
            memory_bytes=given.memory_bytes or _sum([cpu.memory_bytes for cpu in cpus]),
            words=" ".join([*(cpu.slug for cpu in cpus), *([given.words] if given.words else [])]),
        )
        devices = [chip for chip in devices if chip.chip_class != "cpu"]
    if host and not devices:
        devices = [_cpu_of(name, host)]
    elif host and all(chip.chip_class in OWN_MEMORY for chip in devices):
        devices = [_sharing(chip, host, len(devices)) for chip in devices]
    if not devices:
        raise UserError(f"{name or 'a machine'}: no device is named; give one, such as rtx-3090+ddr4-3200x2:64GB")
    return Machine(name=name, devices=tuple(devices), host=host, link_bytes_per_s=link, disk_bytes_per_s=disk)


def _sum(sizes: Sequence[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _cpu_of(name: str, host: HostMemory) -> Chip:
    if host.bandwidth_bytes_per_s is None:
        raise UserError(f"{name}: say how fast the memory is, such as ddr4-3200x2:64GB, or name a device before it")
    return Chip(
        slug="cpu",
        name="CPU",
        chip_class="cpu",
        bandwidth_bytes_per_s=host.bandwidth_bytes_per_s,
        memory_bytes=host.memory_bytes,
        source="as described",
    )


def _sharing(chip: Chip, host: HostMemory, devices: int) -> Chip:
    """`chip` with its share of a memory that is described."""
    memory, rate = host.memory_bytes, host.bandwidth_bytes_per_s
    return msgspec.structs.replace(
        chip,
        memory_bytes=chip.memory_bytes if memory is None else memory // devices,
        bandwidth_bytes_per_s=chip.bandwidth_bytes_per_s if rate is None else rate / devices,
    )


def host_of(text: str) -> HostMemory:
    """Host memory in words: its kind, "ram", "host" or a size; then sizes, rates and cores behind ":" and "@".

    Raises UserError that says what was found and what is right.
    """
    lowered = "".join(text.split()).lower()
    head, items = re.split(r"[:@]", lowered)[0], re.findall(r"([:@])([^:@]*)", lowered)
    size = rate = cores = words = None
    if found := _KIND.fullmatch(head):
        transfers, channels = int(found[2]), int(found[3] or USUAL_CHANNELS)
        if not 200 <= transfers <= 20_000 or not 1 <= channels <= 64:
            raise UserError(f"{text!r}: found {transfers} MT/s in {channels} channels; right is such as ddr4-3200x2")
        rate = transfers * 1e6 * CHANNEL_BYTES * channels
        words = f"{found[1]}-{transfers}x{channels}" + ("" if found[3] else ", two channels assumed")
    elif re.match(r"(?:lp)?ddr", head):
        raise UserError(f"{text!r}: found {head!r}; right is {_HOST}")
    elif head not in ("ram", "host", "memory", "mem"):
        items.insert(0, (":", head))
    for sign, item in items:
        try:
            if counted := re.fullmatch(r"(\d{1,5})-?(?:cores?|c)", item):
                if cores is not None or not 1 <= int(counted[1]) <= 4096:
                    raise ValueError("cores once, such as 16cores")
                cores = int(counted[1])
            elif sign == "@" or item.endswith(("/s", "ps")):
                if rate is not None:
                    raise ValueError("one rate: the memory's kind, or @50GB/s")
                rate = rate_of(item)
            else:
                if size is not None:
                    raise ValueError("one size, such as 64GB")
                size = size_of(item)
        except ValueError as error:
            raise UserError(f"{text!r}: found {item!r}; right is {error}: {_HOST}") from None
    if (size, rate, cores) == (None, None, None):
        raise UserError(f"{text!r} says nothing of the host memory; right is {_HOST}")
    return HostMemory(memory_bytes=size, bandwidth_bytes_per_s=rate, cores=cores, words=words)


def moved_of(text: str) -> float:
    """Bytes a second of "16GB/s" or "pcie4x16", one direction. Raises ValueError that says what is right."""
    if found := _PCIE.fullmatch(text.strip().lower()):
        return PCIE_LANE_BYTES_PER_S[int(found[1])] * int(found[2])
    return rate_of(text)


def _words(devices: Sequence[Chip], host: HostMemory | None, link: float | None, disk: float | None) -> str:
    runs = [(slug, len(list(alike))) for slug, alike in groupby(chip.slug for chip in devices)]
    parts = [slug if count == 1 else f"{count}x{slug}" for slug, count in runs]
    if host:
        parts.append(host_words(host))
    parts += [f"{kind}@{rate_words(rate)}" for kind, rate in (("link", link), ("disk", disk)) if rate is not None]
    return "+".join(parts)


def host_words(host: HostMemory) -> str:
    """Host memory as `host_of` reads it."""
    kind = (host.words or "").partition(", two channels assumed")
    head = (kind[0].removesuffix(f"x{USUAL_CHANNELS}") if kind[1] else kind[0]) or "host"
    size = "" if host.memory_bytes is None else f":{size_words(host.memory_bytes)}"
    rate = f"@{rate_words(host.bandwidth_bytes_per_s)}" if host.bandwidth_bytes_per_s and head == "host" else ""
    return head + size + rate + ("" if host.cores is None else f":{host.cores}cores")
