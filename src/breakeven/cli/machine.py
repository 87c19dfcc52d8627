"""`breakeven machine`: this machine as an engine sees it."""

from __future__ import annotations

from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import print_json

SCHEMA = "breakeven.machine/1"

app = typer.Typer()


@app.command()
def machine(json: Annotated[bool, typer.Option("--json", help="Print JSON (breakeven.machine/1).")] = False) -> None:
    """Describe this machine: CPU, cores and memory this process may use, caches, instruction sets, GPUs."""
    spec = breakeven.machine()
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


def _lines(machine: breakeven.MachineSpec) -> list[str]:
    """What `breakeven machine` prints."""
    cores = f"{machine.logical_cores} logical"
    if machine.physical_cores is not None:
        cores = f"{machine.physical_cores} physical, {cores}"
    caches = ", ".join(f"{level} {_size(size)}" for level, size in machine.cache_bytes.items())
    gpus = [f"{gpu.name}, {_size(gpu.memory_bytes)}, driver {gpu.driver}" for gpu in machine.gpus]
    rows = [
        ("CPU", machine.cpu),
        ("Cores", cores),
        ("Instructions", " ".join(machine.instruction_sets) or "not available"),
        ("Caches", caches or "not available"),
        ("Memory", f"{_size(machine.memory_bytes)}, {_size(machine.available_memory_bytes)} free"),
        ("OS", machine.os),
        ("Virtualised", machine.virtualised or "not available"),
        *(("GPU", text) for text in gpus or ["none found"]),
    ]
    return [f"{label:<13}{text}" for label, text in rows]
