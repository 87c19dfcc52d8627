"""What a machine is, as the engine sees it."""

from __future__ import annotations

import msgspec


class Gpu(msgspec.Struct, frozen=True):
    """One accelerator, as its driver names it."""

    name: str
    memory_bytes: int
    driver: str


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
