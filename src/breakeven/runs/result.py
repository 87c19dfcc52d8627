"""Put the result together: what the log says, what the models are, and what a look inside them shows."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import msgspec

from breakeven.engines.backend import LLAMA_CPP
from breakeven.engines.source import SYNTHETIC, Source, assumed_caveats
from breakeven.errors import BreakevenError, UserError
from breakeven.hardware.machine import MachineSpec
from breakeven.hardware.placement import Placed
from breakeven.measure import events, noise
from breakeven.measure.paired.blocks import blocks_of, self_checks
from breakeven.measure.paired.pairs import pairs, points
from breakeven.measure.paired.plan import Plan
from breakeven.model.arithmetic import active_params, decode_bytes, total_params
from breakeven.model.formats.named import OWN, label
from breakeven.results.comparison import Comparison, ModelResult, NodeProfile, NoiseRecord, Routing
from breakeven.results.store import RESULT, write
from breakeven.runs.verdict import decide
from breakeven.traffic import prompts

DECODE_STEPS, PREFILL_STEPS = 16, 2
INSIDE_S = 120.0
"""What looking inside all candidates may take; each gets an even share of what is left."""
TRACE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class InsideViews:
    """What looking inside the candidates showed; empty where it could not, with the reason as a caveat."""

    profiles: list[NodeProfile] = field(default_factory=list)
    routings: list[Routing] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CompareFacts:
    """What a comparison knows before it measures. `formats` and `paths` are of the candidates' weights.

    `said`: what must be said of how they are run.
    """

    plan: Plan
    sources: Sequence[Source]
    formats: Sequence[str]
    paths: Sequence[Path | None]
    machine: MachineSpec
    in_turns: bool
    said: Sequence[str]


def look_inside(
    asked: CompareFacts,
    history: Sequence[events.Event],
    threads: int | None,
    show: Callable[[str, str, float | None], None],
) -> InsideViews:
    """Profile every candidate that has a weight file, and trace the routing of those that route, in `INSIDE_S`."""
    from breakeven.engines.inside.client import TooLongError, profile, trace

    found, plan = InsideViews(), asked.plan
    files: list[tuple[Source, Path]] = []
    for source, path in zip(asked.sources, asked.paths, strict=True):
        if path is None or not path.is_file():
            continue
        if (why := _not_looked_into(_ready(history, source.name))) is not None:
            found.caveats.append(f"{source.name} was not looked into: {why}.")
        else:
            files.append((source, path))
    left_s = INSIDE_S
    for index, (source, path) in enumerate(files):
        name, began, share_s = source.name, time.monotonic(), left_s / (len(files) - index)
        show("looking inside", name, None)
        look = functools.partial(_look, path, name, threads, began + share_s, show)
        try:
            for phase in ("decode", "prefill"):
                steps = DECODE_STEPS if phase == "decode" else PREFILL_STEPS
                found.profiles.append(profile(**look(), phase=phase, prompt_tokens=plan.prompt_tokens, steps=steps))
            if source.is_moe:
                found.routings.append(trace(**look(), texts={"trace": _trace_text(source, plan)}).routing())
        except TooLongError:
            found.caveats.append(
                f"Looking inside {name} took too long (more than {share_s:.0f} s); run `breakeven profile` for it."
            )
            show(found.caveats[-1], "", None)
        except BreakevenError as error:
            found.caveats.append(f"{name} could not be looked into: {error}")
        left_s = max(left_s - (time.monotonic() - began), 0.0)
    return found


class _Look(TypedDict):
    model: Path
    name: str
    threads: int | None
    gpu_layers: int
    limit_s: float
    on_step: Callable[[str, float], None]


def _look(
    path: Path, name: str, threads: int | None, until_s: float, show: Callable[[str, str, float | None], None]
) -> _Look:
    """What every look at one candidate is given: on the CPU, as it was measured, and until then."""
    return {
        "model": path,
        "name": name,
        "threads": threads,
        "gpu_layers": 0,
        "limit_s": max(until_s - time.monotonic(), 0.0),
        "on_step": lambda what, share: show(f"looking inside ({what})", name, share),
    }


def _not_looked_into(ready: events.BackendReady | None) -> str | None:
    """Why times by node would be of another run than the one measured: they are taken embedded, on the CPU."""
    if ready is None:
        return "it did not run"
    if ready.placed is not None and ready.placed.gpu_layers:
        return "times by node are taken on the CPU, and it ran on a device"
    engine = ready.settings.get("engine", "unknown")
    return None if engine == LLAMA_CPP else f"times by node are taken in the embedded llama.cpp, and it ran in {engine}"


def _ready(history: Sequence[events.Event], name: str) -> events.BackendReady | None:
    """How a candidate last came up."""
    return next((e for e in reversed(history) if isinstance(e, events.BackendReady) and e.model == name), None)


def _trace_text(source: Source, plan: Plan) -> str | list[int]:
    """Text for real weights. Synthetic ones know only bytes, so they get tokens from all over their vocabulary."""
    spec = source.spec
    if source.synthetic and spec is not None:
        draw = prompts.rng(plan.seed, "trace")
        return [int(token) for token in draw.integers(0, spec.vocab, TRACE_TOKENS)]
    return prompts.prompt_text(plan.seed, "trace", 4 * TRACE_TOKENS)


def facts(asked: CompareFacts, history: Sequence[events.Event], inside: InsideViews) -> events.StudyFacts:
    """What the log must also hold, so that the whole result can be computed from it."""
    models = [
        _model(source, weights, path, history)
        for source, weights, path in zip(asked.sources, asked.formats, asked.paths, strict=True)
    ]
    plan = asked.plan
    return events.StudyFacts(
        streams=list(plan.streams),
        prompt_tokens=plan.prompt_tokens,
        output_tokens=plan.output_tokens,
        precision=plan.precision,
        machine=asked.machine,
        models=models,
        loaded="in turns" if asked.in_turns else "together",
        profiles=inside.profiles,
        routings=inside.routings,
        caveats=[*asked.said, *_turns_said(asked, history), *_caveats(asked.sources), *inside.caveats],
    )


def _turns_said(asked: CompareFacts, history: Sequence[events.Event]) -> list[str]:
    loads = [e.load_s for e in history if isinstance(e, events.BackendReady) and e.load_s is not None]
    if not asked.in_turns or not loads:
        return []
    turns = len({e.turn for e in history if isinstance(e, events.TurnStarted)})
    times = f"{turns} time{'' if turns == 1 else 's'}"
    return [f"The candidates took turns, {times}: {len(loads)} loads took {sum(loads):.0f} s beside the measuring."]


def comparison_of(history: Sequence[events.Event]) -> Comparison:
    """The result of a study from its log, which is all it reads. Raises UserError when the study was not finished."""
    opening = next((event for event in history if isinstance(event, events.StudyStarted)), None)
    known = [event for event in history if isinstance(event, events.StudyFacts)]
    if opening is None or not known:
        raise UserError("this log holds no finished comparison; run the same command with --resume first")
    told = known[-1]
    blocks = blocks_of(history)
    because = [event.because for event in history if isinstance(event, events.StudyStopped)]
    names = [model.name for model in told.models]
    plan = Plan(
        tuple(told.streams), told.prompt_tokens, told.output_tokens, precision=told.precision, seed=opening.seed
    )
    checks = self_checks(history, opening.seed)
    found_points, found_pairs = points(blocks, plan, names), pairs(blocks, plan, names)
    return Comparison(
        breakeven_version=opening.version,
        started_at=opening.started_at,
        measured_s=sum(block.seconds for block in blocks),
        stopped_because=because[-1] if because else "interrupted",
        precision=told.precision,
        seed=opening.seed,
        command=opening.command,
        machine=told.machine,
        models=told.models,
        points=found_points,
        pairs=found_pairs,
        noise=noise_record(history),
        verdict=decide(told.models, found_points, found_pairs, told.profiles, checks),
        profiles=told.profiles,
        routings=told.routings,
        self_checks=checks,
        loaded=told.loaded,
        caveats=told.caveats,
    )


def save_partial(result: Comparison, directory: Path) -> None:
    """Save what an interrupted study has."""
    with contextlib.suppress(BreakevenError):  # the log has it all; a full disk must not hide why the run ended
        write(result, directory / RESULT)


def _model(source: Source, weights: str, path: Path | None, history: Sequence[events.Event]) -> ModelResult:
    spec, ready = source.spec, _ready(history, source.name)
    ended = [e for e in history if isinstance(e, events.BackendStopped) and e.model == source.name]
    return ModelResult(
        name=source.name,
        source=spec.source if spec else source.text.partition("#")[0],
        synthetic=source.synthetic,
        format=weights if source.synthetic else _file_format(source),
        moe=spec.is_moe if spec else None,
        total_params=total_params(spec) if spec else None,
        active_params=active_params(spec) if spec else None,
        file_bytes=path.stat().st_size if path is not None and path.is_file() else None,
        peak_rss_bytes=max((e.peak_rss_bytes for e in ended if e.peak_rss_bytes is not None), default=None),
        load_s=ready.load_s if ready else None,
        decode_bytes_per_token=_decode_bytes(source, weights),
        settings=ready.settings if ready else {},
        placed=placed_with_peaks(ready, ended),
    )


def placed_with_peaks(ready: events.BackendReady | None, ended: Sequence[events.BackendStopped]) -> Placed | None:
    """Where a candidate lay, with the highest peak of each place over its turns."""
    placed = ready.placed if ready else None
    if placed is None:
        return None
    peaks: dict[str, int] = {}
    for at in (at for event in ended if event.placed is not None for at in event.placed.memory):
        if at.peak_bytes is not None:
            peaks[at.place] = max(peaks.get(at.place, 0), at.peak_bytes)
    memory = [msgspec.structs.replace(at, peak_bytes=peaks.get(at.place, at.peak_bytes)) for at in placed.memory]
    return msgspec.structs.replace(placed, memory=memory)


def _file_format(source: Source) -> str | None:
    """What a weight file calls its mixture of types."""
    return label(source.spec, OWN) if source.spec is not None and source.spec.stored is not None else None


def _decode_bytes(source: Source, weights: str) -> int | None:
    spec = source.spec
    if spec is None or source.url is not None:
        return None
    if source.synthetic:
        return round(decode_bytes(spec, weights, 1))
    return round(decode_bytes(spec, OWN, 1)) if spec.stored is not None else None


def noise_record(history: Sequence[events.Event]) -> NoiseRecord:
    """The noise of every block, with those that were repeated."""
    ended = {e.block: e for e in history if isinstance(e, events.BlockDone)}
    heard = [
        noise.BlockNoise(
            other_cpu_share=e.other_cpu_share,
            steal_share=e.steal_share,
            swap_bytes=e.swap_bytes,
            clock_mhz_low=e.clock_mhz_low,
            clock_mhz_high=e.clock_mhz_high,
            temperature_c_high=e.temperature_c_high,
            reasons=ended[e.block].flagged,
            device_clock_mhz_low=e.device_clock_mhz_low,
            device_clock_mhz_high=e.device_clock_mhz_high,
            device_temperature_c_high=e.device_temperature_c_high,
        )
        for e in history
        if isinstance(e, events.NoiseSample) and e.block in ended and ended[e.block].ok
    ]
    return noise.summarise(heard, repeated=sum(not e.ok for e in ended.values()))


def _caveats(sources: Sequence[Source]) -> list[str]:
    found = []
    if any(source.random_weights for source in sources):
        found.append(SYNTHETIC)
    if len({repr(source.question) for source in sources}) < len(sources):
        found.append("A/A run: a model against itself; any difference found here is an error of the measurement.")
    if any(source.url for source in sources):
        found.append("An engine behind a URL may share its machine with others; its noise cannot be seen from here.")
    return [*found, *assumed_caveats(sources)]
