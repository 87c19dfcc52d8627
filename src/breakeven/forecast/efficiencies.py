"""What classes of machine make of their data sheets: the file `data/efficiencies.json`.

An entry is of a class of chip under one engine, and under llama.cpp of whose kernels run there too: efficiencies fitted
to public measurements (`bench/fit_prior.py` writes them), how far predictions were off when a model, or a machine, was
left out, and which records stand behind both. A class that nobody measured borrows from its neighbours, and its
interval says so.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

import msgspec

from breakeven.errors import UserError
from breakeven.forecast.constants import Constants, Error, Range

ENGINES = ("llama.cpp", "vllm")


class Efficiency(msgspec.Struct, frozen=True, kw_only=True):
    """What one class of machine makes of its data sheet under one engine.

    Shares are of the published figure. `flops_per_byte`: peak operations over bytes, where none is published.
    `usable_memory`: the share of memory an engine may fill.
    """

    weight_share: float
    kv_share: float
    decode_flops_share: float
    prefill_flops_share: float
    flops_per_byte: float
    step_s: float
    layer_s: float
    moe_layer_s: float
    mixer_layer_s: float = 0.0
    sequence_s: float
    overlap: float = 1.0
    expert_s: float = 0.0
    prefill_token_s: float = 0.0
    element_bytes: float = 0.0  # moved of each element of a token's hidden state in a layer, at the nominal bandwidth
    logit_bytes: float = 0.0
    routing_alpha: float = 1.0
    expert_compute: float = 1.0
    vector_rows: int | None = None
    expert_tile: float = 1.0
    usable_memory: float = 1.0
    host_bytes_per_s: float | None = None
    disk_bytes_per_s: float | None = None
    host_share: float = 0.6  # of host memory's nominal rate, read by the CPU beside a device: a PC's few channels
    host_server_share: float = 0.4  # the same of a server's many channels
    stream_share: float = 0.5  # of the nominal link between host memory and a device
    handover_s: float = 5e-5
    link_share: float = 0.7
    link_bytes_per_s: float | None = None
    link_s: float = 0.0
    type_cost: dict[str, float] = {}
    idle_share: float = 0.1
    busy_share: float = 0.7


AS_THEY_ARE = sorted({*Efficiency.__struct_fields__} & {*Constants.__struct_fields__} - {"link_bytes_per_s"})
"""Constants that no data sheet scales."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One class of machine under one engine: its efficiency, its errors, and where both come from."""

    engine: str
    chip_class: str
    backend: str = ""
    """Whose kernels the engine runs on such chips (`backend_of`); empty: no matter whose."""
    efficiency: Efficiency
    errors: list[Error]
    ranges: list[Range] = []
    basis: str
    """In words: fitted on what, or judged by what."""
    points: int = 0
    at_prior: list[str] = []
    kernels: dict[str, int] = {}
    """The records by whose kernels ran (`backend_of`)."""
    types: dict[str, int] = {}
    """The records by number type of weights, where it has at least a twentieth of a model's bytes."""


class Efficiencies(msgspec.Struct, frozen=True, kw_only=True):
    """The file `data/efficiencies.json`."""

    date: str
    sources: list[str]
    entries: list[Entry]


@lru_cache(maxsize=1)
def efficiencies() -> Efficiencies:
    """The shipped file."""
    raw = files("breakeven.forecast").joinpath("data/efficiencies.json").read_bytes()
    return msgspec.json.decode(raw, type=Efficiencies)


def efficiency_of(chip_class: str, engine: str, backend: str = "") -> Entry:
    """The entry for a class of chip, of this backend where there is one. Raises UserError for an engine without any.

    Where the class's records are all of other makers' chips their efficiencies are borrowed, none of them its own.
    """
    if engine not in ENGINES:
        raise UserError(f"no data-sheet profile for engine {engine!r}: there is one for {' and '.join(ENGINES)}")
    alike = [e for e in efficiencies().entries if (e.engine, e.chip_class) == (engine, chip_class)]
    if own := next((e for e in alike if e.backend == backend), None) if backend else None:
        return own
    found = next((e for e in alike if not e.backend), alike[0])
    if not backend or not found.kernels or backend in found.kernels:
        return found
    return msgspec.structs.replace(
        found,
        errors=[error if error.spilled else error.of_others() for error in found.errors],
        basis=f"no published measurement on chips like it was used; {found.basis}, of other makers",
        points=0,
        kernels={},
        types={},
    )
