"""`breakeven distill`: a small student of a large teacher, beside a twin that learned from the same text alone.

In this order, so that nothing is spent in vain: the teacher is measured; the twin is trained, and the moment that it
predicts the text as well as the teacher does, the teacher is refused; then the teacher is run once over the text and
the student learns from that cache, in as many steps as the twin; last a second twin is trained for as long as cache and
student took together. Each is its best checkpoint by a text that neither trains nor judges.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import numpy as np

from breakeven.engines.inside.client import OnStep
from breakeven.engines.openai_url import is_url
from breakeven.engines.synthesis.write import check_room
from breakeven.errors import UserError, expanded
from breakeven.lab.bridge.weights import PLACE
from breakeven.lab.corpus import Block, Document, blocks_of
from breakeven.lab.facts import batch_that_fits, facts_of, sha256_of
from breakeven.lab.lockstep import kind_of_model
from breakeven.lab.proof import sweep
from breakeven.lab.training.distill_proof import Distilled, DistillOptions, DistillPlan, proven
from breakeven.lab.training.hyena import HYENA, LEFT, asked_for, table, without_attention
from breakeven.lab.training.shapes import student_shape
from breakeven.lab.training.student import (
    ArmDone,
    ArmSpec,
    Fits,
    Student,
    StudentRows,
    as_directory,
    batch_for,
    rows_for,
    save_array,
    student_of,
)
from breakeven.lab.training.teacher import TeacherSpec, TeacherTold, cache_bytes
from breakeven.lab.training.texts import Batches, Split, split
from breakeven.lab.training.work import run_job, work_beside, write_whole
from breakeven.results.lab import Proof

_RATE_NEW, _RATE_BEGUN = 2e-3, 3e-4
_RATE_WIDTH = 256
"""The width whose rate of a new student that is; wider ones take proportionally less."""
_LEAST_ROWS = 4


def distill(
    teacher: Path | str,
    into: str,
    documents: Sequence[Document],
    out: Path,
    *,
    words: Sequence[str],
    options: DistillOptions,
    fits: Fits | None = None,
    on_step: OnStep = lambda what, share: None,
) -> Proof:
    """Train the student `into` of `teacher` at `out`, and prove what it gained over its twin.

    `words`: the command, but for sizes and steps, which a repetition is told. `fits`: what the student's device allows.
    Raises UserError for what cannot be distilled so, among it a teacher no better than a plain student; then nothing is
    left.
    A run that is stopped leaves OUT.training, and goes on from there when it is given again.
    """
    source = _source(teacher)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists; choose another place with --out, or remove it")
    sweep(out.parent)
    blocks = blocks_of(documents)
    parts = split(blocks)
    dense = asked_for(into)
    if dense is not None and options.ternary:
        raise UserError("--ternary trains no hyena student: leave it out, or give a shape such as dense 4x256")
    if not Path(into).exists():
        student_shape(dense or into)
    with work_beside(out, _asked(source, into, blocks, options, words)) as work:
        taught = as_directory(source, work / "teacher", "the teacher")
        student, plan, rows = _prepared(dense or into, taught, blocks, parts, work, options, fits, on_step)
        trained = _trained(taught, student, plan, rows, work, options, on_step)
        if dense is not None:
            student = _beside_attention(student, plan, trained, rows, parts, work, options, on_step)
        again = [*words, "--into", into if dense is not None else student.shape or into]
        return proven(source, taught, student, plan, trained, parts, out, work, again, options, on_step)


def _source(teacher: Path | str) -> Path:
    if is_url(str(teacher)):
        raise UserError(
            f"{teacher}: a student learns from a teacher's whole distributions, and a server tells only the likeliest "
            "few of tokens it wrote itself; give its weights, a .gguf file or a directory, or have it write answers "
            "and train on those as text (breakeven tune --chat)"
        )
    path = expanded(teacher)
    kind_of_model(path)
    return path


def _asked(
    source: Path, into: str, blocks: Sequence[Block], options: DistillOptions, words: Sequence[str]
) -> Mapping[str, object]:
    """What makes this training this one."""
    text = hashlib.sha256()
    for block in blocks:
        text.update(f"{block.language}/{block.domain}/{block.document}\n{block.text}".encode())
    chosen = {key: value for key, value in asdict(options).items() if key != "threads"}
    begun = sha256_of(Path(into)) if Path(into).exists() else into
    given = dict(itertools.pairwise(words))
    device = {option: given.get(option) for option in ("--fits", "--machine", "--latency")}
    what = {"verb": "distill", "teacher": sha256_of(source), "into": begun, "text": text.hexdigest()}
    return {**what, **device, **chosen}


def _prepared(
    into: str,
    taught: Path,
    blocks: Sequence[Block],
    parts: Split,
    work: Path,
    options: DistillOptions,
    fits: Fits | None,
    on_step: OnStep,
) -> tuple[Student, DistillPlan, StudentRows]:
    """The student before it is trained, the text as rows, and the teacher measured on the text that chooses."""
    path = work / "plan.json"
    plan = msgspec.json.decode(path.read_bytes(), type=DistillPlan) if path.is_file() else None
    on_step("preparing the student", 0.0)
    student = student_of(
        plan.shape if plan is not None and plan.shape is not None else into,
        taught,
        blocks,
        work,
        tokens=options.tokens,
        batch=options.batch,
        seconds=options.seconds,
        trimmed=options.trim_vocabulary,
        ternary=options.ternary,
        fits=fits,
    )
    rows = rows_for(student, parts, options.tokens)
    save_array(work / "rows.npy", rows.train_NT)
    save_array(work / "choose.npy", rows.choose_NT)
    if student.kept_K is not None:
        save_array(work / "kept.npy", student.kept_K)
    if plan is None:
        facts = facts_of(taught)
        batch_that_fits([facts], options.tokens, options.tokens, small=False)
        told = run_job(
            "teacher",
            TeacherSpec(
                directory=str(taught),
                rows=str(work / "choose.npy"),
                kept=_kept(student, work),
                experts=facts.n_experts if facts.n_experts != facts.n_experts_per_token else 0,
            ),
            TeacherTold,
            threads=options.threads,
            on_step=on_step,
        )
        batch = batch_for(student.spec, options.tokens, min(options.batch, len(rows.train_NT)))
        plan = DistillPlan(shape=student.shape, batch=batch, told=told)
        write_whole(path, msgspec.json.encode(plan))
    return student, plan, rows


def _beside_attention(
    student: Student,
    plan: DistillPlan,
    trained: Distilled,
    rows: StudentRows,
    parts: Split,
    work: Path,
    options: DistillOptions,
    on_step: OnStep,
) -> Student:
    """The experiment: the same student with its attention replaced, in a folder beside it, and told in its notes."""
    judged = rows_for(student, replace(parts, train=parts.judge), options.tokens)
    told = without_attention(
        trained.made,
        rows.train_NT,
        rows.choose_NT,
        judged.train_NT,
        work / HYENA,
        seed=options.seed,
        rate=options.rate or _RATE_NEW / 2,
        batch=plan.batch,
        steps=trained.student.steps,
        threads=options.threads,
        on_step=on_step,
    )
    (trained.made / HYENA).mkdir(exist_ok=True)
    for name in LEFT:
        shutil.copyfile(work / HYENA / name, trained.made / HYENA / name)
    return replace(student, notes=(*student.notes, *table(told)))


def _kept(student: Student, work: Path) -> str | None:
    return None if student.kept_K is None else str(work / "kept.npy")


def _trained(
    taught: Path,
    student: Student,
    plan: DistillPlan,
    rows: StudentRows,
    work: Path,
    options: DistillOptions,
    on_step: OnStep,
) -> Distilled:
    """The twin, the cache, the student, and the twin that trains as long."""
    used, nats = plan.told.best
    count = _rows_to_read(plan, options, len(rows.train_NT))
    # Evenly over the text, and so over its languages.
    numbers = (np.arange(count) * (len(rows.train_NT) / count)).astype(np.int64)
    read_NT = rows.train_NT[numbers]
    some = save_array(work / "some.npy", read_NT)
    rate = options.rate or (_RATE_BEGUN if student.begun else _RATE_NEW * min(1.0, _RATE_WIDTH / student.spec.hidden))

    def arm(
        name: str, folder: str, on: str, steps: int | None, cache: Path | None = None, least: bool = False
    ) -> ArmDone:
        spec = ArmSpec(
            name=name,
            directory=str(student.directory),
            begun=student.begun,
            rows=on,
            choose=str(work / "choose.npy"),
            cache=None if cache is None else str(cache),
            folder=str(work / f"{folder}.run"),
            made=str(work / folder),
            seed=options.seed,
            rate=rate,
            batch=plan.batch,
            seconds=None if steps is not None else options.seconds,
            steps=steps,
            ternary=options.ternary,
            beaten_by=nats if least else None,
        )
        return run_job("distill_job", spec, ArmDone, threads=options.threads, on_step=on_step)

    twin = arm("the twin, without teacher", "twin", some, options.steps, least=True)
    if twin.better is not None:
        shutil.rmtree(work, ignore_errors=True)
        raise UserError(
            f"the teacher is no better on this text than a plain student: {nats:.3f} nats a token, and a student that "
            f"never saw it needs {twin.better:.3f} on the text that chooses; what it teaches would make a student "
            "worse. Give a better teacher, or text of the kind it knows"
        )
    cache = work / "cache"
    batches = Batches(count, plan.batch, options.seed)
    seen = np.unique(
        np.concatenate([batches.rows(step) for step in range(min(twin.steps, -(-count // plan.batch) + 1))])
    )
    check_room(cache, cache_bytes(seen.size * options.tokens, student.spec.vocab), PLACE)
    cache.mkdir(exist_ok=True)
    save_array(cache / "read.npy", seen)
    cached = run_job(
        "teacher",
        TeacherSpec(
            directory=str(taught),
            rows=save_array(work / "read.npy", read_NT[seen]),
            kept=_kept(student, work),
            cache=str(cache),
            used=used or None,
        ),
        TeacherTold,
        threads=options.threads,
        on_step=on_step,
    )
    taught_one = arm("the student", "made", some, twin.steps, cache)
    longer = options.twin_steps or round((cached.seconds + taught_one.seconds) / twin.seconds * twin.steps)
    twins = [(work / "twin", twin)]
    if longer > twin.steps:
        done = arm("the twin, for as long", "twin-longer", str(work / "rows.npy"), longer)
        twins.append((work / "twin-longer", done))
    return Distilled(taught_one, cached, seen.size * options.tokens, count * options.tokens, work / "made", twins)


def _rows_to_read(plan: DistillPlan, options: DistillOptions, n_rows: int) -> int:
    """Of the text, by the teacher; all students at equal tokens read the same."""
    if options.teacher_tokens is not None:
        wanted = math.ceil(options.teacher_tokens / options.tokens)
    elif options.seconds is not None:
        wanted = math.ceil(plan.told.tokens_per_s * options.seconds / options.tokens)
    else:
        wanted = n_rows
    return min(n_rows, max(wanted, _LEAST_ROWS))
