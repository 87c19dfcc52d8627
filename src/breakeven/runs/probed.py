"""What a calibration measures: probes started here, some with their experts elsewhere, or models served at URLs.

A server's shape is taken from whoever names it, and refused where the server's own words contradict it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from breakeven.engines.backend import LLAMA_CPP, LLAMA_SERVER, VLLM, Backend
from breakeven.engines.devices import EngineDevice, devices_with, find_llama_server, listed, read_binary, usual_engine
from breakeven.engines.kinds import Engine, engine_named
from breakeven.engines.openai_url import connect, is_url, parse_url
from breakeven.engines.source import Source
from breakeven.engines.start import kv_type
from breakeven.errors import NotSupportedError, UserError
from breakeven.forecast.calibration.probes import ProbeLoad, loads_for, probes_for
from breakeven.forecast.constants import step_engine
from breakeven.forecast.memory import LLAMA_CPP_MARGIN_BYTES
from breakeven.forecast.profiles import engine_of_format
from breakeven.hardware.machine import MachineSpec
from breakeven.hardware.placement import AUTO, Placement
from breakeven.model.architecture import ModelSpec, MoeFfn
from breakeven.model.arithmetic import file_bytes, total_params
from breakeven.model.formats.named import default_format, format_named
from breakeven.model.resolve import resolve_spec, split_format
from breakeven.runs.served import EngineWords

PLACED_MODELS = 3
"""Models that route and are probed with none, half and all of their experts in host memory."""
PLACING = (LLAMA_CPP, LLAMA_SERVER)
"""Engines that keep experts in host memory when they are told to."""
NEAR_PARAMS, NEAR_BYTES = 0.03, 0.10
"""How far a server's count may be from ours: of parameters as everywhere; of bytes more, for files differ by recipe."""
_ASK_TIMEOUT_S = 15.0
BUDGET_S = 600.0
MIN_PROBES = 2
LARGE_FROM_BYTES = 6e9
"""A device with so much room gets the probes of GPUs, smaller ones and those that share the host's memory the CPU's."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One model in one place. `name` as the log calls it; several subjects may be one `spec`."""

    name: str
    spec: ModelSpec
    format_name: str
    placement: Placement = AUTO
    url: str | None = None

    @property
    def source(self) -> Source:
        """What an engine is given."""
        return Source(self.url or self.spec.name, self.name, None if self.url else self.spec, url=self.url)


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """The fields are those of `breakeven calibrate`. `format_name` None: what the engine usually runs.

    `probes` and `loads` empty: chosen for this machine. `out`: the profile's file; its log is kept beside it.
    `engine` None: the one that suits this machine. `gpu_layers`, `cpu_moe`, `device`, `tensor_split`: where the probes'
    weights are to lie; `engine_flags`: the engine's own flags; `kv`: type of keys and values. `urls`: servers to
    measure instead, each of one of `shapes`.
    """

    engine: str | None = None
    format_name: str | None = None
    budget_s: float = BUDGET_S
    out: Path | str | None = None
    resume: bool = False
    threads: int | None = None
    probes: tuple[ModelSpec, ...] = ()
    loads: tuple[ProbeLoad, ...] = ()
    gpu_layers: str | int | None = None
    cpu_moe: str | int | None = None
    device: str | None = None
    tensor_split: str | None = None
    engine_flags: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    kv: str | None = None

    @property
    def asked(self) -> EngineWords:
        """How the engine is to be started."""
        return EngineWords(
            engine=self.engine,
            gpu_layers=self.gpu_layers,
            cpu_moe=self.cpu_moe,
            device=self.device,
            tensor_split=self.tensor_split,
            flags=self.engine_flags,
        )


class ProbePlan(NamedTuple):
    """What a calibration would run. `gpu`: weights lie on one; `engine` None: servers that run elsewhere."""

    engine_name: str
    format_name: str
    gpu: bool
    probes: tuple[ModelSpec, ...]
    loads: tuple[ProbeLoad, ...]
    subjects: tuple[Subject, ...] = ()
    kv: str = "f16"
    devices: tuple[EngineDevice, ...] = ()
    engine: Engine | None = None
    notice: str | None = None


def plan(options: CalibrateOptions, machine: MachineSpec) -> ProbePlan:
    """The probes and loads for `machine`. Raises UserError for an engine, format, machine or URL that cannot be."""
    placement = options.asked.placement()  # refused now rather than after the probes were written
    if options.urls or options.shapes:
        return _plan_served(options)
    usual, notice = usual_engine(options.engine, machine)
    engine = engine_named(usual)
    engine.check_placement(placement, options.engine_flags)
    format_name = format_for(engine, options.format_name)
    devices = devices_of(engine.name, placement, options.engine_flags)
    gpu = bool(devices) or (bool(machine.gpus) and engine.name == VLLM)
    memory, large = float(machine.available_memory_bytes), gpu
    if devices:
        rooms = [device.free_bytes or device.memory_bytes for device in devices]
        free = sum(room or 0 for room in rooms) - LLAMA_CPP_MARGIN_BYTES
        memory = min(memory, max(float(free), 0.0)) if all(rooms) else memory
        large = memory >= LARGE_FROM_BYTES and all(device.kind == "gpu" for device in devices)
    elif gpu:
        memory = float(machine.gpus[0].memory_bytes)
    probes = options.probes or probes_for(format_name, gpu=large, memory_bytes=memory)
    if len(probes) < MIN_PROBES:
        where = f"{devices[0].place} has" if devices else "this machine has"
        raise UserError(f"{where} too little free memory for the probes; close other programs and try again")
    own = any(device.kind == "gpu" for device in devices)
    subjects = probes_placed(probes, format_name, placement, beside_a_device=own)
    loads = options.loads or loads_for(gpu=gpu and engine.name == VLLM)
    kv = kv_type([subject.source for subject in subjects], engine.name, options.kv)
    return ProbePlan(engine.name, format_name, gpu, tuple(probes), loads, subjects, kv, tuple(devices), engine, notice)


def _plan_served(options: CalibrateOptions) -> ProbePlan:
    beside = options.engine_flags or options.engine or options.threads or options.kv
    if beside or options.asked.placement() != AUTO:
        raise UserError(
            "a server runs as it was started; leave --engine, --threads, --kv, placement and engine flags out"
        )
    subjects, engine = served_shapes(options.urls, options.shapes, options.format_name)
    formats = "+".join(dict.fromkeys(subject.format_name for subject in subjects))
    specs = tuple(subject.spec for subject in subjects)
    return ProbePlan(engine, formats, False, specs, options.loads or loads_for(gpu=False), tuple(subjects))


def devices_of(engine: str, asked: Placement, flags: Sequence[str] = ()) -> list[EngineDevice]:
    """The GPUs on which an engine of llama.cpp's may place probes; none where it is told to leave them alone.

    `flags`: the user's own, which may name servers that lend theirs.
    """
    if engine not in PLACING or asked.gpu_layers == 0:
        return []
    wanted = [name.lower() for name in asked.devices]
    known = devices_with(read_binary(find_llama_server()), flags) if engine == LLAMA_SERVER else listed()
    return [
        device
        for device in known
        if device.engine == engine and device.is_gpu and (not wanted or device.place.lower() in wanted)
    ]


def format_for(engine: Engine, asked: str | None) -> str:
    """The weight format of probes in `engine`: as asked, else its usual one. Raises NotSupportedError for another's."""
    name = format_named(asked or engine.default_format).name
    if engine.formats is not None and name not in engine.formats:
        raise NotSupportedError(
            f"{engine.name} gets no {name} from Breakeven; give one of --format {', '.join(engine.formats)}"
        )
    return name


def probes_placed(
    probes: Sequence[ModelSpec], format_name: str, asked: Placement, *, beside_a_device: bool
) -> tuple[Subject, ...]:
    """The probes as asked; beside a device of its own memory the first that route also with experts moved to the host.

    Where the placement asked for names experts or layers already, it is left as it is.
    """
    found: list[Subject] = []
    left = PLACED_MODELS if beside_a_device and asked.cpu_moe is None and asked.gpu_layers in ("auto", "all") else 0
    for spec in probes:
        found.append(Subject(spec.name, spec, format_name, asked))
        routing = sum(isinstance(layer.ffn, MoeFfn) for layer in spec.layers)
        if not routing or not left:
            continue
        left -= 1
        for away in dict.fromkeys((len(spec.layers) // 2, len(spec.layers))):
            there = Placement(gpu_layers="all", cpu_moe=away, devices=asked.devices, tensor_split=asked.tensor_split)
            found.append(Subject(f"{spec.name}@cpu-moe={away}", spec, format_name, there))
    return tuple(found)


def served_shapes(urls: Sequence[str], shapes: Sequence[str], format_name: str | None) -> tuple[list[Subject], str]:
    """The models served at `urls`, one of `shapes` each, and the engine that serves them.

    Raises UserError for a URL or a shape that cannot be, for a server that is not there, and for one that says it
    serves something else.
    """
    for text in urls:
        if not is_url(text):
            raise UserError(f"{text} is no URL; give http://host/v1#model and its shape with --shape, or no argument")
    if len(shapes) != len(urls):
        raise UserError(
            f"URLs given: {len(urls)}, shapes: {len(shapes)}; give one --shape MODEL for each URL, in their order"
        )
    found: list[Subject] = []
    engines: dict[str, None] = {}
    for url, shape in zip(urls, shapes, strict=True):
        spec, (bare, behind) = resolve_spec(shape), split_format(shape)
        backend = connect(url)
        told = backend.engine if backend.engine != "unknown" else None
        chosen = format_named(behind or format_name or default_format(spec, told or LLAMA_CPP)).name
        check_shape(backend, spec, chosen, said=behind is not None or format_name is not None)
        engines[told or engine_of_format(chosen) or "vllm"] = None
        name = bare if all(subject.name != bare for subject in found) else f"{bare}#{len(found) + 1}"
        found.append(Subject(name, spec, chosen, url=url))
    if len(engines) > 1:
        raise UserError(f"the servers run {' and '.join(engines)}; a profile is of one engine, so calibrate one by one")
    return found, next(iter(engines))


def host_of_urls(urls: Sequence[str]) -> str:
    """The hosts of these URLs, as a profile's name."""
    return "+".join(dict.fromkeys(parse_url(url).url.partition("://")[2].partition("/")[0] for url in urls))


def check_shape(backend: Backend, spec: ModelSpec, format_name: str, *, said: bool) -> None:
    """Raise UserError where a server tells other numbers than a shape has. llama.cpp's tells some, most tell none.

    `said`: somebody named the format.
    """
    told = _told(backend)
    where = f"{backend.url} serves"
    again = "give what it serves with --shape"
    for key, ours, what in (("n_vocab", spec.vocab, "tokens in its vocabulary"), ("n_embd", spec.hidden, "wide")):
        theirs = told.get(key)
        # A vocabulary may be padded to a round number; a width never is.
        if theirs and abs(theirs - ours) > (NEAR_PARAMS * ours if key == "n_vocab" else 0):
            raise UserError(f"{where} a model {theirs:,.0f} {what} and {spec.name} has {ours:,}; {again}")
    params, counted = told.get("n_params"), total_params(spec)
    if params and abs(params - counted) > NEAR_PARAMS * counted:
        raise UserError(
            f"{where} {params / 1e9:.3g} billion parameters and {spec.name} has {counted / 1e9:.3g} billion; {again}"
        )
    size = told.get("size")
    if size and step_engine(backend.engine) == LLAMA_CPP:
        ours = file_bytes(spec, format_name)
        if abs(size - ours) > NEAR_BYTES * ours:
            other = "another" if said else "its"
            raise UserError(
                f"{where} {size / 1e9:.3g} GB of weights and {spec.name} in {format_name} has {ours / 1e9:.3g} GB;"
                f" give {other} format with --format"
            )


def _told(backend: Backend) -> dict[str, float]:
    """Numbers that the server says of its model, by llama.cpp's names; empty where it says none."""
    found: dict[str, float] = {}
    try:
        with backend.ask("/v1/models", None, timeout_s=_ASK_TIMEOUT_S) as response:
            listing: Any = json.load(response)
    except (OSError, HTTPException, ValueError):
        return found
    entries = listing.get("data") if isinstance(listing, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or backend.model not in (entry.get("id"), *(entry.get("aliases") or ())):
            continue
        meta = entry.get("meta")
        for key, value in meta.items() if isinstance(meta, dict) else ():
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                found[key] = float(value)
    return found
