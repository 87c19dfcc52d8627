"""What a GPU adds to the lab, in under 12 minutes: four trainings of 90 s, each beside what it is measured against.

    python -m bench.lab.gpu carry SMOLLM2.gguf GUIDE --out CARRIED     on any machine: teacher's logits, 33 MB
    python -m bench.lab.gpu run CARRIED --out DIR [--for 90s] [--only book,student,ternary,experts]

`carry` runs the teacher once over three languages and leaves what a machine needs that has neither the teacher nor a
network: rows of text, the 32 likeliest tokens after each, the student's configuration and words. `run` prints a row of
docs/benchmarks.md for each part: a phone book learned by a dense model and a MoE of as many active weights (which must
know more of it by heart); a student of 20 million weights beside its twin at equal tokens; the same in two bits; LoRA
on the MoE's stacked experts. Without a GPU everything runs on the processor, and the heading says so.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import breakeven
from bench.lab.learned import Row, heading, missed, said, texts, tuned_row
from breakeven.lab.corpus import blocks_of, read_documents
from breakeven.lab.evaluate import arms_of, judge
from breakeven.lab.facts import facts_of
from breakeven.lab.training.student import ArmDone, ArmSpec, as_directory, rows_for, save_array, student_of
from breakeven.lab.training.teacher import TeacherSpec, TeacherTold
from breakeven.lab.training.texts import split
from breakeven.lab.training.work import run_job
from breakeven.model.arithmetic import total_params
from breakeven.model.readers.hf import read_hf
from breakeven.stats.estimate import Estimate

STUDENT, TOKENS, BATCH, RATE = "dense 5x512", 512, 8, 1e-3
"""20 million weights with the tokens of three languages."""
CACHED_ROWS = 504
"""Of `TOKENS`, at 128 bytes a token: 33 MB."""
SECONDS = 90.0
ENTRIES, REPEATS = 6000, 30
"""Lines of the phone book, and how often it is read out."""
BOOK = """text: {text}
vocabulary: 512
tokens: 128
batch: 64
seeds: 2
rates: [2e-3]
control: true
arms:
  - dense 4x256x512
  - moe 16/2
"""
PARTS = ("book", "student", "ternary", "experts")
Job = Callable[..., Any]


class Carried(msgspec.Struct, frozen=True):
    """What the student's machine is told."""

    teacher_nats: float
    """A token, on the text that chooses."""
    teacher_s: float
    mass: float


def phone_book(entries: int, repeats: int, seed: int = 0) -> str:
    """Names and numbers of chance, in an order of its own each time: a number is known by heart, or not at all."""
    rng = random.Random(seed)
    names = rng.sample(range(26**4), entries)
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = []
    for name in names:
        word = "".join(letters[name // 26**place % 26] for place in range(4))
        lines.append(f"{word} {rng.randrange(10**6):06d}")
    return "".join("\n".join(rng.sample(lines, len(lines))) + "\n" for _ in range(repeats))


def carry(
    model: Path,
    text: Path,
    out: Path,
    into: str = STUDENT,
    rows: int = CACHED_ROWS,
    tokens: int = TOKENS,
    job: Job = run_job,
) -> Carried:
    """Leave in `out` what `run` needs. `text`: a folder a language."""
    out.mkdir(parents=True, exist_ok=True)
    teacher = as_directory(model, out / "teacher", "the teacher")
    blocks = blocks_of(read_documents(text))
    parts = split(blocks)
    student = student_of(
        into, teacher, blocks, out, tokens=tokens, batch=BATCH, seconds=None, trimmed=True, ternary=False, fits=None
    )
    found = rows_for(student, parts, tokens)
    count = min(rows, len(found.train_NT))
    some_NT = found.train_NT[(np.arange(count) * (len(found.train_NT) / count)).astype(np.int64)]
    assert student.kept_K is not None
    kept = save_array(out / "kept.npy", student.kept_K)
    for name, array in (("some", some_NT), ("choose", found.choose_NT)):
        save_array(out / f"{name}.npy", array)
    (out / "cache").mkdir(exist_ok=True)
    measured, cached = (
        job(
            "teacher",
            TeacherSpec(directory=str(teacher), rows=str(out / f"{name}.npy"), kept=kept, **more),
            TeacherTold,
        )
        for name, more in (("choose", {}), ("some", {"cache": str(out / "cache")}))
    )
    if teacher != model:
        shutil.rmtree(teacher)  # half a gigabyte, made of the file
        teacher.with_name("teacher.json").unlink()
    told = Carried(measured.best[1], cached.seconds, cached.mass)
    (out / "carried.json").write_bytes(msgspec.json.encode(told))
    return told


class Parts:
    """The four parts. `seconds` or `steps` of each training; `job` runs one."""

    def __init__(
        self,
        carried: Path,
        text: Path,
        out: Path,
        seconds: float | None = SECONDS,
        steps: int | None = None,
        job: Job = run_job,
    ) -> None:
        self._carried, self._text, self._out = carried, text, out
        self._seconds, self._steps, self._job = seconds, steps, job
        self._told = msgspec.json.decode((carried / "carried.json").read_bytes(), type=Carried)
        self._judge = split(blocks_of(read_documents(text))).judge
        self._how = f"python -m bench.lab.gpu run {carried.name} --only"
        out.mkdir(parents=True, exist_ok=True)

    def _arm(self, name: str, *, taught: bool, ternary: bool, steps: int | None) -> ArmDone:
        spec = ArmSpec(
            name=name,
            directory=str(self._carried / "student"),
            begun=False,
            rows=str(self._carried / "some.npy"),
            choose=str(self._carried / "choose.npy"),
            cache=str(self._carried / "cache") if taught else None,
            folder=str(self._out / f"{name}.run"),
            made=str(self._out / name),
            seed=0,
            rate=RATE,
            batch=BATCH,
            seconds=self._seconds if steps is None else None,
            steps=steps,
            ternary=ternary,
        )
        done: ArmDone = self._job("distill_job", spec, ArmDone)
        return done

    def _pair(self, word: str, *, ternary: bool) -> tuple[Estimate, ArmDone, ArmDone]:
        """A twin and a student of as many steps, and how far the twin stands behind on what judges."""
        twin = self._arm(f"{word}-twin", taught=False, ternary=ternary, steps=self._steps)
        student = self._arm(word, taught=True, ternary=ternary, steps=twin.steps)
        arms, _ = arms_of([self._out / word, self._out / f"{word}-twin"])
        tallies, _ = judge(arms, None, self._judge)
        tallies[1].source = tallies[0]
        behind = tallies[1].difference()
        assert behind is not None
        return behind, student, twin

    def _student_row(self, word: str, what: str, *, ternary: bool) -> Row:
        behind, student, twin = self._pair(word, ternary=ternary)
        size = total_params(read_hf(str(self._out / word)))
        rate, nats = student.tokens / student.seconds, self._told.teacher_nats
        told = (
            f"{said(behind)} bits a byte over its twin after {student.steps:,} steps ({rate:,.0f} tokens/s); nats "
            f"a token on what chooses: teacher {nats:.3f}, student {student.best:.3f}, twin {twin.best:.3f}"
        )
        promised = "interval above 0 at equal tokens"
        languages = len({block.language for block in self._judge})
        what = f"{what} of {size / 1e6:.1f}M weights, {languages} languages, logits carried"
        return Row(what, promised, missed(behind.low is not None and behind.low > 0) + told, f"{self._how} {word}")

    def student(self) -> Row:
        """Taught by what was carried."""
        return self._student_row("student", "student", ternary=False)

    def ternary(self) -> Row:
        """The same in two bits."""
        return self._student_row("ternary", "student in two bits", ternary=True)

    def book(self, entries: int = ENTRIES, repeats: int = REPEATS, study: str = BOOK) -> Row:
        """A phone book, dense and MoE of as many active weights."""
        folder = self._out / "book-text"
        folder.mkdir(exist_ok=True)
        (folder / "book.txt").write_text(phone_book(entries, repeats))
        file = self._out / "book.yaml"
        file.write_text(study.format(text=folder.resolve()))
        found = breakeven.train(file, seconds=self._seconds, steps=self._steps)
        moe = next(arm for arm in found.arms if arm.kind == "moe")
        again = next(arm for arm in found.arms if arm.copy_of == found.reference)
        held = moe.verdict == "better" and again.verdict == "no difference"
        told = (
            f"{moe.verdict}: {said(moe.difference)} nats a token from {moe.active_params:,} active weights of "
            f"{moe.total_params:,}; A/A {again.verdict}; {found.device}"
        )
        promised = "MoE knows more by heart, A/A no difference"
        return Row(f"phone book of {entries:,} lines, {moe.shape}", promised, missed(held) + told, found.command)

    def experts(self) -> Row:
        """LoRA on the stacked experts of the phone book's MoE, on German."""
        if not (self._out / "book").exists():
            self.book()
        moe = next((self._out / "book").glob("moe-*-*/config.json")).parent
        proof = breakeven.tune(
            moe,
            self._out / "experts",
            text=self._text / "de",
            adapt="experts",
            batch=BATCH,
            seconds=self._seconds,
            steps=self._steps,
        )
        return tuned_row(f"LoRA on stacked experts ({facts_of(moe).n_experts})", proof)


def where() -> str:
    """The GPU, or that there is none. Asked in a process of its own: torch is heavy."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    name = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return name or "no GPU: on the processor, where these sizes say little"


def main() -> None:
    """Carry, or run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    given = verbs.add_parser("carry")
    given.add_argument("model", type=Path)
    given.add_argument("guide", type=Path)
    given.add_argument("--out", type=Path, required=True)
    run = verbs.add_parser("run")
    run.add_argument("carried", type=Path)
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--for", dest="seconds", type=float, default=SECONDS, help="seconds of each training")
    run.add_argument("--only", default=",".join(PARTS))
    asked = parser.parse_args()
    if asked.verb == "carry":
        _, learned = texts(asked.guide, asked.out)
        print(carry(asked.model, learned, asked.out))
        return
    names = asked.only.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--only {unknown[0]}: give some of {', '.join(PARTS)}")
    print(heading(where()))
    parts = Parts(asked.carried, asked.carried / "long", asked.out, asked.seconds)
    for name in names:
        print(getattr(parts, name)().line(), flush=True)


if __name__ == "__main__":
    main()
