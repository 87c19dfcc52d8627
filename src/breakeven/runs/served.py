"""Which engine each candidate is started with, and where its weights are to lie: for all alike, or its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from breakeven.engines.backend import LLAMA_CPP
from breakeven.engines.source import Source
from breakeven.engines.start import Engine, engine_named, kv_type
from breakeven.errors import UserError
from breakeven.hardware.machine import MachineSpec
from breakeven.hardware.placement import AUTO, Placement, placement_of


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
    format_name: str | None,
    context: int,
    slots: int,
    machine: MachineSpec,
    kv: str,
) -> None:
    """Raise UserError unless all candidates fit side by side, as far as their engines leave that to be told."""
    for engine in {way.engine.name: way.engine for way in ways}.values():
        mine = [s for s, way in zip(sources, ways, strict=True) if way.engine.name == engine.name]
        if engine.check_memory is not None:
            engine.check_memory(mine, format_name, context, slots, machine.available_memory_bytes, kv)


def usual_engine(asked: str | None, machine: MachineSpec) -> tuple[str, str | None]:
    """The engine that is used, and what must be said of that choice."""
    return asked or LLAMA_CPP, None
