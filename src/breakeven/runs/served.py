"""Which engine each candidate is started with, and where its weights are to lie: for all alike, or its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from breakeven.engines.devices import EngineDevice, listed, usual_engine
from breakeven.engines.kinds import Engine, engine_named
from breakeven.engines.memory import ENGINE_BYTES, ENGINE_TOKEN_BYTES, REPACKED_SHARE, RESERVE, need_of
from breakeven.engines.source import Source, slug
from breakeven.engines.start import Running, kv_type, start
from breakeven.errors import UserError
from breakeven.forecast.placing import MARGIN_BYTES, DeviceRoom, place
from breakeven.hardware.machine import Gpu, MachineSpec
from breakeven.hardware.placement import AUTO, HOST, Placement, placement_of
from breakeven.measure.devices import DeviceMemory, device_memory, with_peaks
from breakeven.measure.events import BackendReady, BackendStopped
from breakeven.measure.paired.plan import MIN_ROUNDS
from breakeven.model.formats.named import OWN
from breakeven.model.readers.gguf_file import parts

READ_PIECE_BYTES = 2**23
READ_BYTES_PER_S = 1e9
"""How fast weights are taken to be read, to say how long loading takes before it was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineWords:
    """Engine, placement and further flags for all candidates, as people type them; None: as is usual here.

    What a candidate names behind its `@` goes before.
    """

    engine: str | None = None
    gpu_layers: str | int | None = None
    cpu_moe: str | int | None = None
    device: str | None = None
    tensor_split: str | None = None
    flags: tuple[str, ...] = ()

    def placement(self, source: Source | None = None) -> Placement:
        """Where the weights of `source` are to lie. Raises UserError that names the option."""
        words: dict[str, str | int | None] = {
            "gpu_layers": self.gpu_layers,
            "cpu_moe": self.cpu_moe,
            "device": self.device,
            "tensor_split": self.tensor_split,
            **({} if source is None else source.words),
        }
        return placement_of(**words)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class ServedAs:
    """How one candidate is started. `arguments`: further flags of the engine."""

    engine: Engine
    placement: Placement = AUTO
    arguments: tuple[str, ...] = ()


def served(asked: EngineWords, sources: Sequence[Source], machine: MachineSpec) -> tuple[list[ServedAs], list[str]]:
    """How each of `sources` is started, and what must be said of it.

    Raises UserError for an engine, a device or a placement that cannot be here, or that no candidate could be given.
    """
    usual, notice = usual_engine(asked.engine, machine)
    here = [source for source in sources if source.url is None]
    if not here and (asked.placement() != AUTO or asked.flags):
        raise UserError("a server that runs keeps its weights where they lie; leave placement and engine flags out")
    found = [
        ServedAs(
            engine_named(source.engine or usual), asked.placement(source), asked.flags if source.url is None else ()
        )
        for source in sources
    ]
    started = [(source, way) for source, way in zip(sources, found, strict=True) if source.url is None]
    for _, way in started:
        way.engine.check_placement(way.placement, way.arguments)
    said = [notice] if notice is not None and usual in {way.engine.name for _, way in started} else []
    idle = [source.name for source, way in started if way.placement.cpu_moe is not None and _is_dense(source)]
    said += [f"{name} has no experts; --cpu-moe does nothing for it." for name in dict.fromkeys(idle)]
    return found, said


def _is_dense(source: Source) -> bool:
    return source.spec is not None and not source.is_moe


def kv_of(sources: Sequence[Source], ways: Sequence[ServedAs], asked: str | None) -> str:
    """The type of keys and values, one that every engine in use has. Raises UserError where one has not."""
    kinds = dict.fromkeys(way.engine.name for way in ways)
    found = {kv_type(sources, name, asked) for name in kinds}
    return found.pop() if len(found) == 1 else asked or "f16"


def check_fit(
    sources: Sequence[Source],
    ways: Sequence[ServedAs],
    formats: Sequence[str],
    context: int,
    slots: int,
    machine: MachineSpec,
    kv: str,
) -> str | None:
    """None where all candidates fit side by side, else why they must take turns.

    Raises UserError, with the numbers and the nearest thing that fits, for one that does not fit even alone. Engines
    that only know their memory themselves are not asked.
    """
    free = machine.available_memory_bytes
    needs: dict[str, int] = {}
    held: dict[str, float] = {}
    """By place, all candidates together: side by side each must lie as it would alone, or whoever comes second would be
    fitted into what is left."""
    rooms: dict[str, float] = {}
    unified: set[str] = set()
    engines: set[str] = set()
    for source, way, weights in zip(sources, ways, formats, strict=True):
        if way.engine.check_memory is None or source.url is not None:
            continue
        way.engine.check_memory([source], weights, context, slots, free, kv, way.placement)
        needs[source.name] = need_of(source, weights, context, slots, kv)
        gpus = _gpus(way)
        engines |= {way.engine.name for _ in gpus}
        unified |= {gpu.place for gpu in gpus if gpu.kind == "igpu"}
        for gpu in gpus:
            # One that does not tell how much is free is never shared.
            rooms[gpu.place] = -1.0 if gpu.free_bytes is None else max(0.0, gpu.free_bytes - MARGIN_BYTES)
        for at, n_bytes in _by_place(source, way, weights, context, slots, kv, gpus).items():
            held[at] = held.get(at, 0.0) + n_bytes
    host_bytes = sum(n_bytes for at, n_bytes in held.items() if at == HOST or at in unified)
    fits = all(held.get(at, 0.0) <= room for at, room in rooms.items())
    together = len(needs) < 2 or (host_bytes <= RESERVE * free and fits)
    lent = sum("--rpc" in way.arguments and source.url is None for source, way in zip(sources, ways, strict=True)) > 1
    if together and len(engines) < 2 and not lent:
        return None
    parts = ", ".join(f"{name} {need / 1e9:.1f} GB" for name, need in needs.items())
    extra_s = MIN_ROUNDS * sum(needs.values()) / READ_BYTES_PER_S
    where = "on the device" if host_bytes <= RESERVE * free else f"in the {free / 1e9:.1f} GB that are free"
    why = f"the candidates do not fit side by side {where} ({parts})"
    if lent and together:
        why = "what --rpc lends serves one engine at a time"
    return (
        f"{why}, so they take turns: each is"
        f" loaded {MIN_ROUNDS} times or more, about {_time(extra_s)} beside the budget at 1 GB/s."
    )


def _by_place(
    source: Source, way: ServedAs, weights: str, context: int, slots: int, kv: str, gpus: Sequence[EngineDevice]
) -> dict[str, float]:
    """Bytes that one candidate holds in each place, lying as it would alone; of an unknown family, all on devices."""
    if not gpus:
        return {HOST: float(need_of(source, weights, context, slots, kv))}
    if source.spec is None:
        whole = need_of(source, weights, context, slots, kv, repacked=1.0)
        free = [gpu.free_bytes or 1 for gpu in gpus]
        return {gpu.place: whole * part / sum(free) for gpu, part in zip(gpus, free, strict=True)}
    devices = [DeviceRoom(gpu.place, gpu.free_bytes or 0, gpu.kind == "igpu") for gpu in gpus]
    own = source.path is not None and source.spec.stored is not None
    placed = place(
        source.spec, OWN if own else weights, devices, context=context, slots=slots, placement=way.placement, kv=kv
    )
    found = {at: memory.total for at, memory in placed.memory.items()}
    # What a CPU reads is kept re-ordered, and the process is there wherever the model lies.
    found[HOST] += (REPACKED_SHARE - 1) * placed.memory[HOST].weights + ENGINE_BYTES
    found[HOST] += ENGINE_TOKEN_BYTES * source.spec.vocab
    return found


def read_through(path: Path | None) -> float:
    """Read weights, each part of a file or a directory, into the page cache before an engine maps them; seconds taken.

    So that every candidate starts alike: of two processes of one file the one that read it from the disk was the slower
    one by some per cent for as long as it lived (docs/noise.md). What does not fit in the memory that is free is left
    alone, and what cannot be read is left to the engine to name.
    """
    if path is None:
        return 0.0
    began = time.monotonic()
    files = [part.path for part in parts(path)] if path.is_file() else sorted(path.glob("*.safetensors"))
    if sum(file.stat().st_size for file in files) > RESERVE * psutil.virtual_memory().available:
        return 0.0
    for each in files:
        with suppress(OSError), each.open("rb", buffering=0) as file:
            while file.read(READ_PIECE_BYTES):
                pass
    return time.monotonic() - began


def _gpus(way: ServedAs) -> list[EngineDevice]:
    """The devices on which an engine of llama.cpp's may place a candidate."""
    if way.placement.gpu_layers == 0:
        return []
    found = [device for device in listed() if device.engine == way.engine.name and device.is_gpu]
    asked = [name.lower() for name in way.placement.devices]
    return [device for device in found if not asked or device.place.lower() in asked]


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Brings candidates up, and records it. `share_prefixes`: engines keep what earlier prompts left. `chat`: a server
    is asked for chat alone."""

    sources: Sequence[Source] = field(kw_only=False)
    ways: Sequence[ServedAs] = field(kw_only=False)
    paths: Sequence[Path | None] = field(kw_only=False)
    directory: Path = field(kw_only=False)
    context: int
    slots: int
    kv: str
    threads: int | None
    share_prefixes: bool = False
    chat: bool = False
    gpus: Sequence[Gpu] = ()
    """The machine's, whose memory is watched while a candidate is up."""
    watches: dict[str, DeviceMemory] = field(default_factory=dict)
    on_phase: Callable[[str, str], None]
    record: Callable[[BackendReady | BackendStopped], None] = lambda event: None

    def up(self, stack: ExitStack, index: int) -> Running:
        """Start a candidate, until `stack` closes."""
        source, way = self.sources[index], self.ways[index]
        self.on_phase("loading", source.name)
        read_s = read_through(self.paths[index])
        running = start(
            stack,
            source,
            self.paths[index],
            context=self.context,
            slots=self.slots,
            log=self.directory / f"{slug(source.name)}.log",
            threads=self.threads,
            engine=way.engine.name,
            share_prefixes=self.share_prefixes,
            chat=self.chat,
            kv=self.kv,
            placement=way.placement,
            arguments=way.arguments,
        )
        backend = running.backend
        if backend.placed is not None and self.gpus:
            self.watches[running.name] = stack.enter_context(device_memory())
        load_s = None if backend.load_s is None else read_s + backend.load_s
        self.record(BackendReady(model=source.name, settings=backend.settings, load_s=load_s, placed=backend.placed))
        return running

    def stopped(self, running: Running) -> None:
        """Record the memory that a candidate took, just before it stops."""
        peak, placed = running.backend.peak_rss_bytes(), running.backend.placed
        watch = self.watches.pop(running.name, None)
        if placed is not None and watch is not None:
            placed = with_peaks(placed, watch.peaks(), self.gpus)
        self.record(BackendStopped(model=running.name, peak_rss_bytes=peak, placed=placed))
