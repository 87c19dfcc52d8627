"""Which engine each candidate is started with, and where its weights are to lie: for all alike, or its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from breakeven.engines.backend import LLAMA_CPP
from breakeven.engines.memory import RESERVE, need_of
from breakeven.engines.source import Source, slug
from breakeven.engines.start import Engine, Running, engine_named, kv_type, start
from breakeven.errors import UserError
from breakeven.hardware.machine import MachineSpec
from breakeven.hardware.placement import AUTO, Placement, placement_of
from breakeven.measure import noise
from breakeven.measure.events import BackendReady, BackendStopped
from breakeven.measure.paired.plan import MIN_ROUNDS

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


def served(asked: EngineWords, sources: Sequence[Source], machine: MachineSpec) -> tuple[list[ServedAs], str | None]:
    """How each of `sources` is started, and what must be said of the engine that was chosen.

    Raises UserError for an engine or a placement that cannot be, or that no candidate could be given.
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
    chosen = {each.engine.name for source, each in zip(sources, found, strict=True) if source.url is None}
    return found, notice if usual in chosen else None


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
    for source, way, weights in zip(sources, ways, formats, strict=True):
        if way.engine.check_memory is not None and source.url is None:
            way.engine.check_memory([source], weights, context, slots, free, kv)
            needs[source.name] = need_of(source, weights, context, slots, kv)
    if sum(needs.values()) <= RESERVE * free:
        return None
    parts = ", ".join(f"{name} {need / 1e9:.1f} GB" for name, need in needs.items())
    extra_s = MIN_ROUNDS * sum(needs.values()) / READ_BYTES_PER_S
    return (
        f"the candidates do not fit side by side ({parts}; {free / 1e9:.1f} GB is free), so they take turns: each is"
        f" loaded {MIN_ROUNDS} times or more, about {_time(extra_s)} beside the budget at 1 GB/s"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Brings candidates up, and records it. `share_prefixes`: engines keep what earlier prompts left."""

    sources: Sequence[Source] = field(kw_only=False)
    ways: Sequence[ServedAs] = field(kw_only=False)
    paths: Sequence[Path | None] = field(kw_only=False)
    directory: Path = field(kw_only=False)
    context: int
    slots: int
    kv: str
    threads: int | None
    share_prefixes: bool = False
    passive: bool = False
    """Their threads sleep rather than spin; on a busy machine they do so anyway."""
    on_phase: Callable[[str, str], None]
    record: Callable[[BackendReady | BackendStopped], None] = lambda event: None

    def up(self, stack: ExitStack, index: int) -> Running:
        """Start a candidate, until `stack` closes."""
        source, way = self.sources[index], self.ways[index]
        self.on_phase("loading", source.name)
        running = start(
            stack,
            source,
            self.paths[index],
            context=self.context,
            slots=self.slots,
            log=self.directory / f"{slug(source.name)}.log",
            threads=self.threads,
            wait_policy="passive" if self.passive or noise.busy() else None,
            engine=way.engine.name,
            share_prefixes=self.share_prefixes,
            kv=self.kv,
            placement=way.placement,
            arguments=way.arguments,
        )
        backend = running.backend
        self.record(
            BackendReady(model=source.name, settings=backend.settings, load_s=backend.load_s, placed=backend.placed)
        )
        return running

    def stopped(self, running: Running) -> None:
        """Record the memory that a candidate took, just before it stops."""
        self.record(BackendStopped(model=running.name, peak_rss_bytes=running.backend.peak_rss_bytes()))


def usual_engine(asked: str | None, machine: MachineSpec) -> tuple[str, str | None]:
    """The engine that is used, and what must be said of that choice."""
    return asked or LLAMA_CPP, None
