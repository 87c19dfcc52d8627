"""What models that learn come to on a real model: a row of docs/benchmarks.md for each verb that trains.

    python -m bench.lab.learned SMOLLM2.gguf GUIDE --out DIR [--only tune,experts,distill,ternary,train,retrain]

GUIDE: the Debian installation guide, unpacked (`dpkg -x`): a folder a language with install.LANG.txt.gz. A row is what
the verb's own proof or result says, beside what was promised, and ends with the command that repeats it. All rows
together take an hour on two cores; what a row needs of another one is made if it is not there.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import breakeven
from breakeven.hardware.reader import available_threads, read_cpu_name
from breakeven.results import store
from breakeven.results.lab import Evaluation, Proof
from breakeven.results.training import TrainStudy
from breakeven.stats.estimate import Estimate

LANGUAGES = ("en", "de", "fr")
HEAD_LINES = 420
"""Of each guide: what judges between verbs; the rest is learned from, as in docs/lab.md."""
SERVED_KL = 1e-6
EQUAL = """text: {text}
tokens: 128
arms:
  - dense 2x256x512
  - moe 8/2
control: true
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    promised: str
    measured: str
    how: str

    def line(self) -> str:
        """As the page has it."""
        return f"| {self.what} | {self.promised} | {self.measured} | `{self.how}` |"


def heading(where: str | None = None) -> str:
    """The date, the machine, and the head of the table."""
    machine = where or f"{read_cpu_name()}, {available_threads()} threads"
    return f"**{date.today()}**, {machine}.\n\n| what | promised | measured | how |\n|---|---|---|---|"


def said(found: Estimate | None, form: str = "+.3f") -> str:
    """A figure and its interval."""
    if found is None:
        return "not measured"
    ends = "" if found.low is None or found.high is None else f" ({found.low:{form}} to {found.high:{form}})"
    return f"{found.value:{form}}{ends}"


def missed(held: bool) -> str:
    """What stands before a figure that is not what was promised."""
    return "" if held else "**missed**: "


def kl_of(proof: Proof, name: str, engine: str) -> float | None:
    """What a check of a proof found, in nats a token."""
    found = next((each.kl for each in proof.checks if (each.name, each.engine.split()[0]) == (name, engine)), None)
    return None if found is None else found.value


def tuned_row(what: str, proof: Proof) -> Row:
    """A tuned model: what its text gained, and that it is served."""
    part = proof.slices[0]
    served = kl_of(proof, "same predictions", "transformers")
    base = kl_of(proof, "not the base", "llama.cpp")
    gain = part.difference
    held = gain is not None and gain.high is not None and gain.high < 0 and served is not None and served <= SERVED_KL
    before = part.source_bits_per_byte
    told = f"{0.0 if before is None else before.value:.3f} to {part.bits_per_byte.value:.3f} bits a byte, {said(gain)}"
    told += "" if served is None else f"; served KL {served:.1g}"
    told += "" if base is None else f", the base {base:.2f} away"
    seconds = 0.0 if proof.training is None else proof.training.seconds
    promised = f"improves, interval without 0; served KL at most {SERVED_KL:g}"
    return Row(f"{what}, {seconds:.0f} s of training", promised, missed(held) + told, proof.command)


def distilled_row(proof: Proof, took_s: float | None) -> Row:
    """A student beside its twins."""
    twin = proof.twin
    seconds = None if twin is None else twin.equal_seconds
    held = seconds is not None and seconds.low is not None and seconds.low > 0 and (took_s or 0.0) <= 600
    told = f"{said(seconds)} bits a byte over the twin at equal seconds, "
    told += f"{said(None if twin is None else twin.equal_tokens)} at equal tokens"
    told += "; made before, time not measured" if took_s is None else f"; {took_s / 60:.1f} min in all"
    return Row(
        "distill SmolLM2 for English, vocabulary trimmed",
        "10 min, interval above 0",
        missed(held) + told,
        proof.command,
    )


def ternary_row(evaluation: Evaluation, proof: Proof) -> Row:
    """Two bits by training beside two bits by rounding: `evaluation` of the student, the rounded and the trained."""
    plain, rounded, trained = (model.slices[0].bits_per_byte for model in evaluation.models)
    check = next(each for each in proof.checks if each.name == "served as trained")
    told = f"{trained.value:.3f} bits a byte trained, {rounded.value:.3f} rounded, {plain.value:.3f} in F32"
    promised = "trained no worse than rounded; export KL within the floor"
    return Row(
        "two bits by training against rounding (TQ2_0)",
        promised,
        f"{missed(trained.value <= rounded.value)}{told}; {check.detail}",
        proof.command,
    )


def trained_row(study: TrainStudy) -> Row:
    """A matched study: each arm against the reference."""
    others = [arm for arm in study.arms if arm.difference is not None]
    again = next((arm for arm in others if arm.copy_of == study.reference), None)
    held = again is None or again.verdict == "no difference"
    told = "; ".join(f"{arm.name} {arm.verdict}: {said(arm.difference)} nats a token" for arm in others)
    loads = [
        f"{arm.name}'s busiest expert {said(arm.max_over_mean, '.2f')} of the mean, {arm.dead_experts} dead"
        for arm in others
        if arm.max_over_mean is not None
    ]
    what = f"{' and '.join(arm.shape for arm in study.arms if not arm.copy_of)}, {len(study.seeds)} seeds"
    promised = "intervals on paired differences, A/A no difference, loads told"
    told = f"{missed(held)}{'; '.join([told, *loads])}; {study.seconds / 60:.1f} min"
    return Row(what, promised, told, study.command)


def retrained_row(proof: Proof, language: str) -> Row:
    """Experts trained on: what their language gained and the others lost."""
    checks = {check.name: check for check in proof.checks}
    target = next(each for each in proof.slices if each.language == language)
    gain = target.difference
    rest = [part for part in proof.slices if part.language != language]
    worse = [part for part in rest if part.difference is not None and part.difference.least > 0]
    held = gain is not None and gain.most < 0 and not worse and checks["all else as it was"].passed
    told = "; ".join(f"{part.language} {said(part.difference)} bits a byte" for part in (target, *rest))
    promised = "others bit for bit; the target improves, the rest within noise"
    told = f"{missed(held)}{told}; {checks['all else as it was'].detail}"
    return Row("two experts of a toy trained on German", promised, told, proof.command)


def texts(guide: Path, out: Path) -> tuple[Path, Path]:
    """What judges between verbs, and what is learned from, as folders a language."""
    judged, learned = out / "text", out / "long"
    for language in LANGUAGES:
        with gzip.open(guide / language / f"install.{language}.txt.gz", "rt", encoding="utf-8") as file:
            lines = file.readlines()
        for folder, part in ((judged, lines[:HEAD_LINES]), (learned, lines[HEAD_LINES:])):
            (folder / language).mkdir(parents=True, exist_ok=True)
            (folder / language / "guide.txt").write_text("".join(part), encoding="utf-8")
    return judged, learned


class Bench:
    """The rows, each with what it needs made in `out` where it is not there yet."""

    def __init__(self, model: Path, guide: Path, out: Path) -> None:
        self._model, self._out = model, out
        self._judged, self._learned = texts(guide, out)

    def _proof(self, name: str, make: Callable[[Path], Proof]) -> Proof:
        """The proof beside what `make` writes at its place, or of what lies there."""
        place = self._out / name
        return store.read(place / "proof.json", Proof) if place.exists() else make(place)

    def _student(self) -> tuple[Proof, float | None]:
        there = (self._out / "student").exists()
        began = time.monotonic()
        proof = self._proof(
            "student",
            lambda out: breakeven.distill(
                self._model, "dense 4x256", self._learned / "en", out, seconds=90, trim_vocabulary=True
            ),
        )
        return proof, None if there else time.monotonic() - began

    def _study(self) -> TrainStudy:
        file = self._out / "equal.yaml"
        file.write_text(EQUAL.format(text=self._learned.resolve()))
        done = file.with_suffix("") / store.RESULT
        return store.read(done, TrainStudy) if done.exists() else breakeven.train(file, seconds=300)

    def tune(self) -> Row:
        """LoRA on a dense model."""
        german = self._learned / "de"
        proof = self._proof("german", lambda out: breakeven.tune(self._model, out, text=german, seconds=120))
        return tuned_row("LoRA on SmolLM2, German", proof)

    def experts(self) -> Row:
        """LoRA on stacked experts: of the same model, split into eight."""
        moe = self._out / "moe.gguf"
        if not moe.exists():
            breakeven.experts.split(self._model, moe)
        german = self._learned / "de"
        proof = self._proof(
            "moe-german", lambda out: breakeven.tune(moe, out, text=german, adapt="experts", seconds=150)
        )
        return tuned_row("LoRA on stacked experts, German", proof)

    def distill(self) -> Row:
        """A small student of one language."""
        proof, took_s = self._student()
        return distilled_row(proof, took_s)

    def ternary(self) -> Row:
        """Two bits by training, beside the same student rounded."""
        self._student()
        proof = self._proof(
            "ternary",
            lambda out: breakeven.distill(
                self._model, "dense 4x256", self._learned / "en", out, seconds=90, trim_vocabulary=True, ternary=True
            ),
        )
        student = self._out / "student" / "student.gguf"
        rounded = self._out / "rounded"
        if not rounded.exists():
            breakeven.quantize(student, ["TQ2_0"], rounded, allow_fallback=True)
        files = [student, next(rounded.glob("*.gguf")), self._out / "ternary" / "ternary.gguf"]
        return ternary_row(breakeven.evaluate(files, self._judged / "en"), proof)

    def train(self) -> Row:
        """Dense beside MoE on equal terms, and an A/A control."""
        return trained_row(self._study())

    def retrain(self) -> Row:
        """Two experts of the study's own MoE."""
        self._study()
        moe = self._out / "equal" / "moe-8-2"
        proof = self._proof(
            "moe-retrained",
            lambda out: breakeven.experts.retrain(
                moe, [0, 1], self._learned / "de", out, replay=self._learned / "en", seconds=90
            ),
        )
        return retrained_row(proof, "de")


ROWS = ("tune", "experts", "distill", "ternary", "train", "retrain")


def rows_of(bench: Bench, names: Iterable[str]) -> Iterable[Row]:
    """Each as it is done."""
    for name in names:
        yield getattr(bench, name)()


def main() -> None:
    """Make, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("guide", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(ROWS))
    asked = parser.parse_args()
    names = asked.only.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"--only {unknown[0]}: give some of {', '.join(ROWS)}")
    print(heading())
    for row in rows_of(Bench(asked.model, asked.guide, asked.out), names):
        print(row.line(), flush=True)


if __name__ == "__main__":
    main()
