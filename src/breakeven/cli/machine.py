"""`breakeven machine`: this machine as an engine sees it."""

from __future__ import annotations

from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import print_json

SCHEMA = "breakeven.machine/1"

app = typer.Typer()


@app.command()
def machine(
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure how fast all cores read the memory: two seconds.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON (breakeven.machine/1).")] = False,
) -> None:
    """Describe this machine: CPU, cores and memory this process may use, caches, instruction sets, GPUs."""
    spec = breakeven.machine(measure=measure)
    if json:
        import msgspec

        print_json({"schema": SCHEMA, **msgspec.to_builtins(spec)})
        return
    typer.echo("\n".join(_lines(spec)))


def _size(n_bytes: int) -> str:
    """Binary units, because memory and caches come in them."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes / 1024:.0f} KiB"


def _rate(machine: breakeven.MachineSpec) -> str:
    if machine.memory_bytes_per_s is None:
        return "not measured (--measure)"
    text = f"{machine.memory_bytes_per_s / 1e9:.1f} GB/s read by all cores"
    if machine.memory_bytes_per_s_range is None:
        return text
    low, high = (rate / 1e9 for rate in machine.memory_bytes_per_s_range)
    return f"{text} ({low:.1f} to {high:.1f})"


def _gpu(gpu: breakeven.Gpu) -> str:
    memory = _size(gpu.memory_bytes)
    if not gpu.memory_bytes:
        memory = "memory not available"
    elif gpu.unified:
        memory += " of the machine's own"
    elif not gpu.memory_told:
        memory += " as sold (no driver tells it; for NVIDIA install the extra gpu)"
    link = "" if gpu.link_bytes_per_s is None else f", link {gpu.link_bytes_per_s / 1e9:.1f} GB/s"
    place = "" if gpu.place is None else f", {gpu.place}"
    return f"{gpu.name}, {memory}{link}, driver {gpu.driver}{place}"


def _lines(machine: breakeven.MachineSpec) -> list[str]:
    """What `breakeven machine` prints."""
    cores = f"{machine.logical_cores} logical"
    if machine.physical_cores is not None:
        cores = f"{machine.physical_cores} physical, {cores}"
    caches = ", ".join(f"{level} {_size(size)}" for level, size in machine.cache_bytes.items())
    rows = [
        ("CPU", machine.cpu),
        ("Cores", cores),
        ("Instructions", " ".join(machine.instruction_sets) or "not available"),
        ("Caches", caches or "not available"),
        ("Memory", f"{_size(machine.memory_bytes)}, {_size(machine.available_memory_bytes)} free"),
        ("Memory kind", machine.memory_kind or "not available"),
        ("Memory rate", _rate(machine)),
        ("OS", machine.os),
        ("Virtualised", machine.virtualised or "not available"),
        *(("GPU", _gpu(gpu)) for gpu in machine.gpus),
        *([] if machine.gpus else [("GPU", "none found")]),
    ]
    return [f"{label:<13}{text}" for label, text in rows]
