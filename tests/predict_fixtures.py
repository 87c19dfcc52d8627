"""Profiles with known constants, for tests of the step model and what stands on it."""

from __future__ import annotations

from breakeven.forecast.constants import Constants, Error, Profile, ProfileOrigin, Range
from breakeven.hardware.machine import MachineSpec

CONSTANTS = Constants(
    weight_bytes_per_s=50e9,
    kv_bytes_per_s=40e9,
    decode_flops_per_s=1e12,
    prefill_flops_per_s=2e12,
    overlap=0.8,
    step_s=1e-4,
    layer_s=1e-5,
    moe_layer_s=2e-5,
    expert_s=1e-6,
    sequence_s=1e-5,
    prefill_token_s=1e-6,
)
MACHINE = MachineSpec(
    cpu="Test CPU",
    physical_cores=4,
    logical_cores=8,
    instruction_sets=["avx2"],
    cache_bytes={},
    memory_bytes=16 * 10**9,
    available_memory_bytes=12 * 10**9,
    os="Linux",
    virtualised="no",
    gpus=[],
)


def errors(width: float = 0.2, between: float = 0.1) -> list[Error]:
    """The same error for every phase and kind."""
    return [
        Error(phase=phase, kind=kind, log_half_width=width, between_models=between, median=0.05, n=8, coverage=0.9)
        for phase in ("decode", "prefill")
        for kind in ("dense", "moe")
    ]


def profile(
    constants: Constants = CONSTANTS,
    *,
    engine: str = "llama.cpp",
    devices: int = 1,
    memory_bytes: int | None = 16 * 10**9,
    host_memory_bytes: int | None = None,
    ranges: list[Range] | None = None,
    how: str = "probes",
    date: str = "2026-01-01",
    format_name: str | None = "Q4_K_M",
    machine: MachineSpec | None = MACHINE,
) -> Profile:
    """A profile of a machine that does not exist."""
    return Profile(
        name="test machine",
        engine=engine,
        devices=devices,
        constants=constants,
        errors=errors(),
        ranges=ranges or [],
        origin=ProfileOrigin(
            how="probes" if how == "probes" else "datasheet",
            engine=engine,
            engine_version="1",
            date=date,
            version="0",
            format=format_name,
            points=10,
            seconds=120.0,
        ),
        memory_bytes=memory_bytes,
        host_memory_bytes=host_memory_bytes,
        machine=machine,
    )
