"""Put the result together: what the log says, what the models are, and what a look inside them shows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from breakeven.engines.source import SYNTHETIC, Source, assumed_caveats
from breakeven.engines.start import Running
from breakeven.errors import BreakevenError, UserError
from breakeven.hardware.machine import MachineSpec
from breakeven.measure import events, noise
from breakeven.measure.paired.blocks import blocks_of, pairs, points, self_checks
from breakeven.measure.paired.plan import Plan
from breakeven.model.arithmetic import active_params, decode_bytes, total_params
from breakeven.model.formats.named import OWN, label
from breakeven.results.comparison import Comparison, ModelResult, NodeProfile, NoiseRecord, Routing
from breakeven.results.store import RESULT, write
from breakeven.runs.verdict import decide
from breakeven.traffic import prompts

DECODE_STEPS, PREFILL_STEPS = 16, 2
TRACE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class InsideViews:
    """What looking inside the candidates showed; empty where it could not, with the reason as a caveat."""

    profiles: list[NodeProfile] = field(default_factory=list)
    routings: list[Routing] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)


def look_inside(
    running: Sequence[Running], plan: Plan, threads: int | None, show: Callable[[str, str], None]
) -> InsideViews:
    """Profile every candidate that has a weight file, and trace the routing of those that route."""
    from breakeven.engines.inside.client import profile, trace

    found = InsideViews()
    for candidate in running:
        name, path = candidate.source.name, candidate.path
        if path is None:
            continue
        show("looking inside", name)
        try:
            for phase in ("decode", "prefill"):
                steps = DECODE_STEPS if phase == "decode" else PREFILL_STEPS
                found.profiles.append(
                    profile(
                        path, phase=phase, prompt_tokens=plan.prompt_tokens, steps=steps, threads=threads, name=name
                    )
                )
            if candidate.source.is_moe:
                text = _trace_text(candidate, plan)
                found.routings.append(trace(path, {"trace": text}, threads=threads, name=name).routing())
        except BreakevenError as error:
            found.caveats.append(f"{name} could not be looked into: {error}")
    return found


def _trace_text(candidate: Running, plan: Plan) -> str | list[int]:
    """Text for real weights. Synthetic ones know only bytes, so they get tokens from all over their vocabulary."""
    spec = candidate.source.spec
    if candidate.source.synthetic and spec is not None:
        draw = prompts.rng(plan.seed, "trace")
        return [int(token) for token in draw.integers(0, spec.vocab, TRACE_TOKENS)]
    return prompts.prompt_text(plan.seed, "trace", 4 * TRACE_TOKENS)


def facts(
    plan: Plan,
    formats: Sequence[str],
    machine: MachineSpec,
    running: Sequence[Running],
    peaks: Sequence[int | None],
    inside: InsideViews,
    notice: str | None = None,
) -> events.StudyFacts:
    """What the log must also hold, so that the whole result can be computed from it.

    `formats`: of the weights, by candidate. `notice`: what must be said of the engine.
    """
    models = [_model(r, weights, peak) for r, weights, peak in zip(running, formats, peaks, strict=True)]
    return events.StudyFacts(
        streams=list(plan.streams),
        prompt_tokens=plan.prompt_tokens,
        output_tokens=plan.output_tokens,
        precision=plan.precision,
        machine=machine,
        models=models,
        profiles=inside.profiles,
        routings=inside.routings,
        caveats=[*([] if notice is None else [notice]), *_caveats(running, models), *inside.caveats],
    )


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
        caveats=told.caveats,
    )


def save_partial(result: Comparison, directory: Path) -> None:
    """Save what an interrupted study has."""
    with contextlib.suppress(BreakevenError):  # the log has it all; a full disk must not hide why the run ended
        write(result, directory / RESULT)


def _model(running: Running, weights: str, peak: int | None) -> ModelResult:
    source, spec = running.source, running.source.spec
    return ModelResult(
        name=source.name,
        source=spec.source if spec else source.text.partition("#")[0],
        synthetic=source.synthetic,
        format=weights if source.synthetic else _file_format(source),
        moe=spec.is_moe if spec else None,
        total_params=total_params(spec) if spec else None,
        active_params=active_params(spec) if spec else None,
        file_bytes=running.path.stat().st_size if running.path else None,
        peak_rss_bytes=peak,
        load_s=running.backend.load_s,
        decode_bytes_per_token=_decode_bytes(source, weights),
        settings=running.backend.settings,
        placed=running.backend.placed,
    )


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


def _caveats(running: Sequence[Running], models: Sequence[ModelResult]) -> list[str]:
    found = []
    names = [m.name for m in models if m.synthetic]
    if names:
        found.append(SYNTHETIC)
    if len({repr(r.source.question) for r in running}) < len(running):
        found.append("A/A run: a model against itself; any difference found here is an error of the measurement.")
    if any(r.source.url for r in running):
        found.append("An engine behind a URL may share its machine with others; its noise cannot be seen from here.")
    return [*found, *assumed_caveats(r.source for r in running)]
