"""What a distillation came to: the student beside its twins, and llama.cpp computing what transformers does of it."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from breakeven.engines.inside.client import OnStep
from breakeven.errors import NotSupportedError
from breakeven.lab.bits.exact import served, write_ternary_gguf
from breakeven.lab.bridge.bridge import to_gguf
from breakeven.lab.corpus import blocks_of
from breakeven.lab.evaluate import arms_of, judge
from breakeven.lab.export import checks_between
from breakeven.lab.proof import prove
from breakeven.lab.training.student import ArmDone, Student, name_in_config
from breakeven.lab.training.teacher import TOP, TeacherTold
from breakeven.lab.training.texts import Split
from breakeven.lab.training.work import training_flops
from breakeven.model.readers.hf import read_hf
from breakeven.results.lab import LabCheck, Proof, Training, Twin
from breakeven.stats.estimate import Estimate

TOKENS, BATCH = 512, 4
"""Of a row, and rows of a batch, unless said: the pieces of text that judge are some 450 tokens of English."""
_SERVED_BLOCKS = 8


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """How a student is trained. `seconds` or `steps`: of the student. None of the others: found.

    `twin_steps`: of the twin that trains as long as teacher and student take together. `teacher_tokens`: of the text
    that the teacher is run over; found: as many as it reads in `seconds`, all of them where steps are given.
    """

    seconds: float | None = 180.0
    steps: int | None = None
    twin_steps: int | None = None
    teacher_tokens: int | None = None
    seed: int = 0
    batch: int = BATCH
    rate: float | None = None
    tokens: int = TOKENS
    threads: int | None = None
    trim_vocabulary: bool = False
    ternary: bool = False


class DistillPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured and decided before training, kept so that a run that goes on does the same."""

    shape: str | None
    batch: int
    told: TeacherTold


@dataclass(frozen=True, slots=True)
class Distilled:
    """What came out: directories of the student and its twins, and how each was trained.

    `reads`: tokens in the cache, of `offered` that the steps took theirs from. `twins`: at equal tokens, and at equal
    seconds where those are more steps.
    """

    student: ArmDone
    cached: TeacherTold
    reads: int
    offered: int
    made: Path
    twins: list[tuple[Path, ArmDone]]


def proven(
    source: Path,
    taught: Path,
    student: Student,
    plan: DistillPlan,
    trained: Distilled,
    parts: Split,
    out: Path,
    work: Path,
    words: Sequence[str],
    options: DistillOptions,
    on_step: OnStep,
) -> Proof:
    """The student at its place, with its proof: what it gained over its twins, and that llama.cpp serves it."""
    made = out.with_name(f".{out.name}.{os.getpid()}.made")
    shutil.copytree(trained.made, made)
    try:
        name_in_config(made, out.name)
        behind = _behind(trained, parts, options.threads, on_step)
        checks, said = _served(made, out.name, work, parts, options, on_step)
        cached, done = trained.cached, trained.student
        flops = training_flops(student.spec, done.tokens, options.tokens)
        flops += training_flops(read_hf(str(taught)), trained.reads, options.tokens) / 3  # forward alone
        longest = trained.twins[-1][1]
        repeated = {"--steps": done.steps, "--twin-steps": longest.steps, "--teacher-tokens": trained.offered}
        if plan.batch != BATCH:
            repeated["--batch"] = plan.batch
        command = shlex.join([*words, *(str(part) for pair in repeated.items() for part in pair)])
        return prove(
            "distill",
            command,
            source,
            made,
            out,
            format="hf",
            text=parts.judged(),
            checks=checks,
            same_words=student.same_words,
            training=Training(
                tokens=done.tokens,
                seconds=cached.seconds + done.seconds,
                seed=options.seed,
                flops=flops,
                losses=done.losses,
                chosen=done.checks,
                best_step=done.best_step,
            ),
            twin=Twin(equal_tokens=behind[0], equal_seconds=behind[-1]),
            caveats=[*_told(student, plan, trained, behind, options), *parts.notes(), *said],
            threads=options.threads,
            on_step=on_step,
        )
    finally:
        shutil.rmtree(made, ignore_errors=True)  # what was proven has its own name by now


def _behind(trained: Distilled, parts: Split, threads: int | None, on_step: OnStep) -> list[Estimate]:
    """Bits per byte that each twin stands behind the student on the text that judges."""
    arms, _ = arms_of([trained.made, *(path for path, _ in trained.twins)])
    tallies, _ = judge(arms, None, parts.judge, threads=threads, on_step=on_step)
    found = []
    for tally in tallies[1:]:
        tally.source = tallies[0]
        difference = tally.difference()
        assert difference is not None
        found.append(difference)
    return found


def _served(
    made: Path, name: str, work: Path, parts: Split, options: DistillOptions, on_step: OnStep
) -> tuple[list[LabCheck], list[str]]:
    """A GGUF beside the directory's weights, where its family is carried, held against transformers."""
    gguf = made / f"{name}.gguf"
    exact = work / "exact.gguf" if options.ternary else gguf
    exact.unlink(missing_ok=True)
    try:
        notes = to_gguf(made, exact, dtype="f32").notes
    except NotSupportedError as error:
        return [], [f"No GGUF of it was written: {error}."]
    checks, said = checks_between(exact, made, work / "again.gguf", of_gguf=False, dtype="F32", on_step=on_step)
    said = [*notes, *said]
    if options.ternary and all(check.passed for check in checks):
        packed = write_ternary_gguf(made, gguf)
        blocks = blocks_of(parts.judged())[:_SERVED_BLOCKS]
        checks.append(served(made, gguf, blocks, threads=options.threads, on_step=on_step))
        said.append(f"{gguf.name}: {packed.said()}.")
    return checks, said


def _told(
    student: Student, plan: DistillPlan, trained: Distilled, behind: Sequence[Estimate], options: DistillOptions
) -> list[str]:
    """Sentences that must stand beside the figures."""
    used, nats = plan.told.best
    cached, done, twin = trained.cached, trained.student, trained.twins[0][1]
    said = [_verdict(behind[-1], "seconds, the teacher's counted"), *student.notes]
    if len(plan.told.nats) > 1:
        usual, (experts, every) = plan.told.nats[0][1], plan.told.nats[1]
        how = f"all {experts} experts on" if used else "its own number of experts a token"
        said.append(
            f"The teacher was run with {how}: it needs {usual:.3f} nats a token as it is, {every:.3f} with all on."
        )
    said.append(
        f"Nats a token on the text that chose: teacher {nats:.3f}, student {done.best:.3f} (step {done.best_step} of "
        f"{done.steps}), twin {twin.best:.3f} (step {twin.best_step})."
    )
    said.append(
        f"The teacher read {trained.reads:,} tokens in {cached.seconds:.0f} s; its {TOP} likeliest hold "
        f"{cached.mass:.0%} of the probability."
    )
    if plan.batch < options.batch:
        said.append(f"Trained {plan.batch} rows at a time instead of {options.batch}, for memory or for want of text.")
    return said


def _verdict(behind: Estimate, equal: str) -> str:
    if behind.low is None or behind.high is None:
        return f"Against its twin at equal {equal}: no interval, the text that judges is too short."
    if behind.low > 0:
        return f"The teacher won {behind.value:.3f} bits a byte over a twin without it at equal {equal}."
    if behind.high < 0:
        return f"A twin without teacher is {-behind.value:.3f} bits a byte better at equal {equal}."
    return f"No difference to a twin without teacher was found at equal {equal}."
