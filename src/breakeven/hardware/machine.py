"""What a machine is: as an engine sees this one, and as a person describes another."""

from __future__ import annotations

import msgspec

from breakeven.hardware.chips import Chip


class Gpu(msgspec.Struct, frozen=True):
    """One accelerator, as its driver or the engine names it. None: it does not tell."""

    name: str
    memory_bytes: int
    driver: str
    unified: bool = False
    """Whether its memory is the machine's own."""
    place: str | None = None
    """What an engine calls it, such as CUDA0, Vulkan0 or Metal."""


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
