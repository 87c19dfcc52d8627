"""What came of a study's trainings: from losses by block to differences with intervals, loads and sentences.

Pure: the same trainings give the same result. Shapes: S seeds, B blocks of text, L layers that route, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.engines.inside.summary import entropy, max_over_mean
from breakeven.lab.corpus import LEAST_BLOCKS, Block
from breakeven.lab.training.contrast import Contrast, contrast, mean_of_seeds, seed_noise, speed_up
from breakeven.lab.training.matching import TOLERANCE
from breakeven.lab.training.shapes import spec_of
from breakeven.lab.training.study_file import ShapedArm, TrainingStudy
from breakeven.lab.training.work import training_flops
from breakeven.model.arithmetic import active_params, total_params
from breakeven.results.lab import LabCheck, ScoredLayer
from breakeven.results.training import MatchedArm, TrainedRun, TrainStudy, TriedRate
from breakeven.stats.estimate import Estimate
from breakeven.stats.robust import level

Floats = NDArray[np.float64]

_FAR = 2.0
"""A speed-up beyond it says what the reference would do after more tokens than it was ever given."""


class PlannedSteps(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of each arm's trainings, whole and short, and the seconds they rest on."""

    steps: list[int]
    short: list[int]
    step_s: list[float]
    read_s: list[float]


class RunDone(msgspec.Struct, frozen=True, kw_only=True):
    """What one training came to. `nats` of each block that judges; `counts` of each routing layer's experts there."""

    arm: str
    seed: int
    rate: float
    steps: int
    tokens: int
    seconds: float
    losses: list[list[float]]
    checks: list[list[float]]
    best_step: int
    chosen: float
    nats: list[float]
    counts: list[list[int]]


class StudyDone(msgspec.Struct, frozen=True, kw_only=True):
    """What all came to. `short`: the reference's short trainings; `tried`: of each arm, rates and the loss of each."""

    runs: list[RunDone]
    short: list[RunDone]
    rates: list[float]
    tried: list[dict[str, float | None]]
    plan: PlannedSteps
    device: str


@dataclass(frozen=True, slots=True)
class StudyText:
    """A text as a study reads it: `tokens_B` and `bytes_B` of each block that judges, as far as they are predicted."""

    judge: Sequence[Block]
    tokens_B: Sequence[int]
    bytes_B: Sequence[int]
    train_tokens: int
    vocabulary: int
    end: int | None
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Left:
    """A model left standing: its directory, its file for llama.cpp and what was checked, or why there is none."""

    path: Path
    gguf: Path | None
    checks: Sequence[LabCheck]
    why_not: str | None


@dataclass(frozen=True, slots=True)
class _Losses:
    """Nats of every training on every block."""

    arms: Mapping[str, Floats]
    """(S, B) by arm."""
    reference: str
    tokens_B: Floats
    blocks: Sequence[Block]

    def of(self, name: str, numbers: Sequence[int] | None = None) -> Floats:
        """Nats a token of each seed (S), on all blocks or these."""
        at = slice(None) if numbers is None else list(numbers)
        found: Floats = self.arms[name][:, at].sum(axis=1) / self.tokens_B[at].sum()
        return found

    def contrast(self, name: str, numbers: Sequence[int] | None = None) -> Contrast:
        """The arm against the reference, on all blocks or these."""
        chosen = list(range(len(self.blocks))) if numbers is None else list(numbers)
        noise = seed_noise(np.stack([self.of(each, numbers) for each in self.arms]))
        blocks = [self.blocks[number] for number in chosen]
        mine, theirs = self.arms[name][:, chosen], self.arms[self.reference][:, chosen]
        return contrast(mine, theirs, self.tokens_B[chosen], blocks, noise)


def result_of(
    study: TrainingStudy,
    arms: Sequence[ShapedArm],
    text: StudyText,
    done: StudyDone,
    left: Sequence[Left | None],
    *,
    batch: int,
    command: str,
    seconds: float,
) -> TrainStudy:
    """The study's result."""
    reference = arms[study.reference].name
    runs = {arm.name: [run for run in done.runs if run.arm == arm.name] for arm in arms}
    losses = _Losses(
        {name: np.array([run.nats for run in each]) for name, each in runs.items()},
        reference,
        np.array(text.tokens_B, np.float64),
        text.judge,
    )
    noise = seed_noise(np.stack([losses.of(arm.name) for arm in arms]))
    short_S = np.array([sum(run.nats) for run in done.short]) / losses.tokens_B.sum() if done.short else None
    told = [
        _arm(study, number, arms, text, done, left[number], runs, losses, short_S) for number, arm in enumerate(arms)
    ]
    return TrainStudy(
        command=command,
        name=study.name,
        text=study.file.text,
        match=study.file.match,
        reference=reference,
        seeds=sorted({run.seed for run in done.runs}),
        steps=done.plan.steps[study.reference],
        short_steps=done.plan.short[study.reference],
        batch=batch,
        row_tokens=study.file.tokens,
        vocabulary=text.vocabulary,
        train_tokens=text.train_tokens,
        judged_bytes=sum(text.bytes_B),
        judged_blocks=len(text.judge),
        judged_tokens=sum(text.tokens_B),
        noise_floor=noise.floor,
        noise_freedom=noise.freedom,
        arms=told,
        runs=[_run(run, arms, text) for run in done.runs],
        device=done.device,
        seconds=seconds,
        caveats=_caveats(
            study, told, text, batch, [None if each is None else each.why_not for each in left], short=bool(done.short)
        ),
    )


def _arm(
    study: TrainingStudy,
    number: int,
    arms: Sequence[ShapedArm],
    text: StudyText,
    done: StudyDone,
    left: Left | None,
    runs: Mapping[str, Sequence[RunDone]],
    losses: _Losses,
    short_S: Floats | None,
) -> MatchedArm:
    arm, shape, reference = arms[number], arms[number].shape, losses.reference
    mine, theirs = runs[arm.name], runs[reference]
    spec = spec_of(shape, text.vocabulary, study.file.tokens)
    loss_S = losses.of(arm.name)
    flops = training_flops(spec, 1, study.file.tokens)
    found = None if arm.name == reference else losses.contrast(arm.name)
    fast = clock = None
    if found is not None and short_S is not None:
        ratio = done.plan.steps[study.reference] / done.plan.short[study.reference]
        tokens_S = np.array([one.tokens / other.tokens for one, other in zip(theirs, mine, strict=True)])
        seconds_S = np.array([one.seconds / other.seconds for one, other in zip(theirs, mine, strict=True)])
        fast, clock = (
            speed_up(loss_S, losses.of(reference), short_S, ratio, each_S) for each_S in (tokens_S, seconds_S)
        )
    layers = [_layers(run, arm) for run in mine]
    seconds = [run.seconds for run in mine], [run.seconds for run in theirs]
    per_byte = sum(text.tokens_B) / sum(text.bytes_B) / math.log(2)
    return MatchedArm(
        name=arm.name,
        kind=shape.kind,
        shape=shape.words,
        layers=shape.layers,
        hidden=shape.hidden,
        width=None if shape.kind == "moe" else shape.width,
        experts=shape.experts,
        used=shape.used,
        expert_width=shape.expert_width or None,
        routed_layers=list(shape.routed),
        total_params=total_params(spec),
        active_params=active_params(spec),
        flops_per_token=flops,
        off=sum(seconds[0]) / sum(seconds[1]) - 1 if study.file.match == "seconds" else arm.off,
        copy_of=None if arm.copy_of is None else arms[arm.copy_of].name,
        rate=done.rates[number],
        rates=[TriedRate(rate=float(rate), loss=loss) for rate, loss in done.tried[number].items()]
        if len(study.file.rates) > 1
        else [],
        steps=mine[0].steps,
        tokens=mine[0].tokens,
        flops=flops * mine[0].tokens,
        loss=mean_of_seeds(loss_S),
        bits_per_byte=mean_of_seeds(loss_S * per_byte),
        tokens_per_s=level([run.tokens / run.seconds for run in mine]),
        difference=None if found is None else found.difference,
        verdict=None if found is None else found.verdict,
        by_language={} if found is None else _by_language(arm.name, losses),
        speed_up=fast,
        speed_up_on_clock=clock,
        max_over_mean=mean_of_seeds(np.array([max(layer.max_over_mean for layer in each) for each in layers]))
        if shape.experts
        else None,
        dead_experts=sum(len(layer.dead) for each in layers for layer in each) if shape.experts else None,
        path=None if left is None else str(left.path),
        gguf=None if left is None or left.gguf is None else str(left.gguf),
        checks=[] if left is None else list(left.checks),
    )


def _by_language(name: str, losses: _Losses) -> dict[str, Estimate]:
    """The difference on each language that has text enough; nothing where there is one alone."""
    numbers: dict[str, list[int]] = {}
    for number, block in enumerate(losses.blocks):
        numbers.setdefault(block.language, []).append(number)
    if len(numbers) < 2:
        return {}
    return {
        language: losses.contrast(name, chosen).difference
        for language, chosen in numbers.items()
        if len(chosen) >= LEAST_BLOCKS
    }


def _run(run: RunDone, arms: Sequence[ShapedArm], text: StudyText) -> TrainedRun:
    nats = sum(run.nats)
    return TrainedRun(
        arm=run.arm,
        seed=run.seed,
        rate=run.rate,
        steps=run.steps,
        tokens=run.tokens,
        seconds=run.seconds,
        loss=nats / sum(text.tokens_B),
        bits_per_byte=nats / math.log(2) / sum(text.bytes_B),
        best_step=run.best_step,
        checks=run.checks,
        losses=run.losses,
        layers=_layers(run, next(arm for arm in arms if arm.name == run.arm)),
    )


def _layers(run: RunDone, arm: ShapedArm) -> list[ScoredLayer]:
    """How the text that judges was routed."""
    if not run.counts:
        return []
    counts_LE = np.array(run.counts, np.float64)
    busiest, even = max_over_mean(counts_LE), entropy(counts_LE)
    return [
        ScoredLayer(
            layer=layer,
            tokens=run.counts[row],
            max_over_mean=float(busiest[row]),
            entropy=float(even[row]),
            dead=np.flatnonzero(counts_LE[row] == 0).tolist(),
        )
        for row, layer in enumerate(arm.shape.routed)
    ]


def _caveats(
    study: TrainingStudy,
    arms: Sequence[MatchedArm],
    text: StudyText,
    batch: int,
    why_not: Sequence[str | None],
    *,
    short: bool,
) -> list[str]:
    """Sentences that must stand beside the numbers."""
    said = [*text.notes]
    others = [arm for arm in arms if arm.difference is not None]
    for arm in others:
        if arm.shape == arms[study.reference].shape and arm.verdict in ("better", "worse"):
            said.append(
                f"{arm.name} has the reference's shape and is surely {arm.verdict} than it: trust no verdict of this "
                "study; give it more seeds"
            )
    if any(arm.verdict is None for arm in others):
        said.append("Too few trainings to tell noise from a difference: give 3 seeds or more")
    reads = max(arm.tokens for arm in arms) / text.train_tokens
    if reads > 2:
        said.append(f"Each training read the text {reads:.1f} times: what it learned is partly that text by heart")
    if batch < study.file.batch:
        said.append(f"Batches of {batch} rows, not {study.file.batch}, for want of memory, in every arm")
    if study.file.match == "seconds":
        off = [arm for arm in others if abs(arm.off) > TOLERANCE]
        said += [f"{arm.name} trained {arm.off:+.1%} of the reference's time: the machine was not quiet" for arm in off]
    if others and not short:
        said.append("Trainings were too short to tell what more tokens are worth, so speed-ups are not known")
    elif others and all(arm.speed_up is None for arm in others):
        said.append("The reference learned nothing from more tokens, so speed-ups are not known")
    far = [arm.name for arm in others if arm.speed_up is not None and not 1 / _FAR <= arm.speed_up.value <= _FAR]
    if far:
        said.append(f"Speed-ups beyond {_FAR:g} are extrapolated from the reference's own curve: {', '.join(far)}")
    for arm in arms:
        order = sorted(each.rate for each in arm.rates)
        if order and arm.rate in (order[0], order[-1]):
            said.append(f"{arm.name}: the best rate, {arm.rate:g}, is the last that was tried; give others in `rates:`")
        if arm.dead_experts:
            said.append(f"{arm.name}: {arm.dead_experts} experts were reached by no token; a higher `balance:` helps")
    for arm, why in zip(arms, why_not, strict=True):
        if why is not None:
            said.append(f"{arm.name}: {why}" if arm.gguf else f"{arm.name} has no file for llama.cpp: {why}")
    return said
