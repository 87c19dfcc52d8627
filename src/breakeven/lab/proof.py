"""What a change to a model cost, proven before the result may stand: checks, losses by language, one JSON beside it.

`prove` takes what was made under a temporary name. It is loaded and run beside its source; when every check passes it
gets its name and its proof, else it is removed. Nothing half is ever left.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from breakeven.engines.inside.client import OnStep
from breakeven.errors import BreakevenError, UserError
from breakeven.lab.corpus import Block, Document, blocks_of, by_slice, check_enough, sample
from breakeven.lab.evaluate import Arm, TokenizersDifferError, arms_of, judge
from breakeven.lab.facts import FileFacts, facts_of, is_onnx, sha256_of
from breakeven.lab.tally import Tally
from breakeven.results import store
from breakeven.results.lab import (
    Artefact,
    Experts,
    LabCheck,
    LabSpeed,
    Origin,
    Proof,
    Slice,
    Substituted,
    Training,
    Twin,
)

EXACT_KL = 1e-6
"""Nats between two files of single precision that compute one function."""
ROUNDING_FLOORS = 1.5
"""Floors between two files of lower precision that do: activations are rounded, so one function is not one number."""
_UNFINISHED = re.compile(r"\..+\.([1-9]\d{0,8})\.(?:made(?:\.gguf)?(?:\.proof\.json)?|again|carried|partial)")
"""Names of what is being made, with the process that makes it; each is hidden."""
_GLANCE_LETTERS = 320
"""Of each of the sample's languages."""


def prove(
    verb: str,
    command: str,
    source: Path,
    made: Path,
    out: Path,
    *,
    format: str,
    text: Sequence[Document] | None = None,
    checks: Sequence[LabCheck] = (),
    same_function: bool = False,
    substituted: Sequence[Substituted] = (),
    experts: Experts | None = None,
    experts_after: Experts | None = None,
    training: Training | None = None,
    twin: Twin | None = None,
    same_words: bool = True,
    speeds: Sequence[LabSpeed] = (),
    caveats: Sequence[str] = (),
    budget_s: float | None = None,
    threads: int | None = None,
    on_step: OnStep = lambda what, share: None,
) -> Proof:
    """Check `made`, a temporary file or directory beside `out`, against `source`, give it its name and write its proof.

    `text`: what losses by language are measured on, within `budget_s`; None: a built-in sample of six languages, for
    the checks alone. `checks`: what was checked already. `same_function`: it must compute what its source does.
    `same_words`: both predict the same tokens; else they are compared by bits per byte alone. Raises BreakevenError
    naming the check that failed, having removed `made`, and UserError for what cannot be evaluated.
    """
    began = time.monotonic()
    try:
        _check_passed(checks, out)
        blocks = _glance() if text is None else blocks_of(text)
        if text is not None:
            check_enough(blocks)
        arms, first = arms_of([made], source)
        assert first is not None
        try:
            tallies, said = judge(
                arms,
                first if same_words else None,
                blocks,
                budget_s=None if text is None else budget_s,
                threads=threads,
                # Half precision in attention is enough to turn a nearly tied choice of experts.
                exact=same_function and _single(arms),
                on_step=on_step,
            )
        except TokenizersDifferError as error:
            raise BreakevenError(f"{out.name} was not kept: its tokenizer is not its source's ({error.how})") from error
        if not same_words:
            tallies[1 - first].source = tallies[first]
        before, after = (arms[first], tallies[first]), (arms[1 - first], tallies[1 - first])
        done = [*checks, _predicts(after), *([_same(before, after)] if same_function else [])]
        _check_passed(done, out)
        slices = [] if text is None else _slices(after[1])
        facts = facts_of(made)
        proof = Proof(
            verb=verb,
            command=command,
            source=_origin(before[0].facts, source),
            artefact=Artefact(
                path=str(out),
                sha256=sha256_of(made),
                bytes=facts.bytes,
                format=format,
                bits_per_weight=facts.bits_per_weight,
                substituted=list(substituted),
            ),
            slices=slices,
            checks=done,
            experts=experts,
            experts_after=experts_after,
            training=training,
            twin=twin,
            speeds=list(speeds),
            caveats=[*caveats, *said, *_unusable(before, after)],
            seconds=time.monotonic() - began,
        )
        stand(made, out, proof)
    finally:
        _remove(made)
    return proof


def _glance() -> list[Block]:
    """The beginnings of the sample: enough to check that a model is what it should be, not what it lost."""
    return [
        Block(document.language, document.domain, document.name, document.text[:_GLANCE_LETTERS])
        for document in sample()
    ]


def _check_passed(checks: Sequence[LabCheck], out: Path) -> None:
    failed = next((check for check in checks if not check.passed), None)
    if failed is not None:
        detail = f": {failed.detail}" if failed.detail else ""
        raise BreakevenError(f"{out.name} was not kept: the check {failed.name!r} by {failed.engine} failed{detail}")


def _slices(tally: Tally) -> list[Slice]:
    return [found for key in by_slice(tally.blocks) if (found := tally.slice_of(*key)) is not None]


def _origin(facts: FileFacts, source: Path) -> Origin:
    return Origin(
        path=str(source),
        sha256=sha256_of(source),
        bytes=facts.bytes,
        format=facts.format,
        bits_per_weight=facts.bits_per_weight,
    )


def _engine(arm: Arm) -> str:
    return "onnxruntime" if is_onnx(arm.path) else "transformers" if arm.path.is_dir() else "llama.cpp"


def _predicts(made: tuple[Arm, Tally]) -> LabCheck:
    """That it loads and predicts the text; what is no number stopped it before."""
    arm, tally = made
    found = tally.bits_per_byte()
    return LabCheck(
        name="loads and predicts",
        engine=_engine(arm),
        passed=math.isfinite(found.value),
        kl=tally.kl(),
        top1=tally.top1(),
        detail=f"{found.value:.3f} bits a byte on {sum(s.tokens for s in tally.scores.values()):,} tokens",
    )


def _same(before: tuple[Arm, Tally], after: tuple[Arm, Tally]) -> LabCheck:
    """That it computes what its source does, as near as the engine's own rounding lets see."""
    kl = after[1].kl()
    assert kl is not None
    exact = _single([before[0], after[0]])
    floors = [found.value for _, tally in (before, after) if (found := tally.floor()) is not None]
    limit = EXACT_KL if exact or not floors else max(EXACT_KL, ROUNDING_FLOORS * max(floors))
    why = "single precision" if limit == EXACT_KL else f"{ROUNDING_FLOORS:g} times its floor of {max(floors):.2g}"
    return LabCheck(
        name="same function",
        engine=_engine(after[0]),
        passed=kl.value <= limit,
        kl=kl,
        top1=after[1].top1(),
        detail=f"KL to {before[0].name} {kl.value:.2g} nats a token, at most {limit:.2g} ({why})",
    )


def _single(arms: Sequence[Arm]) -> bool:
    return all(arm.facts.format == "F32" for arm in arms)


def _unusable(before: tuple[Arm, Tally], after: tuple[Arm, Tally]) -> list[str]:
    """A sentence for a model that no longer predicts better than one that finds every token as likely."""

    def knows(one: tuple[Arm, Tally]) -> bool:
        arm, tally = one
        blind = sum(score.tokens for score in tally.scores.values()) * math.log2(max(2, arm.facts.n_vocab))
        return sum(score.bits for score in tally.scores.values()) < blind

    lost = knows(before) and not knows(after)
    return ["It predicts text no better than chance: it is of no use."] if lost else []


def stand(made: Path, out: Path, proof: Proof) -> None:
    """Give `made` its name and write the proof; both, or neither."""
    if made.is_dir():
        store.write(proof, made / "proof.json")
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        _rename(made, out)
        return
    # Written before either has its name, so that a full disk costs neither the new file nor an older one its proof.
    beside = out.with_name(f"{out.stem}.proof.json")
    if beside.is_dir():
        raise UserError(f"Cannot write {beside}: it is a directory. Choose another place with --out.")
    written = store.write(proof, made.with_name(f"{made.name}.proof.json"))
    try:
        _rename(made, out)
        _rename(written, beside)
    finally:
        with contextlib.suppress(OSError):
            written.unlink(missing_ok=True)


def _rename(made: Path, out: Path) -> None:
    try:
        made.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another place with --out") from error


def _remove(made: Path) -> None:
    """What is left under the temporary name."""
    if made.is_dir():
        shutil.rmtree(made, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove from `folder` what processes that are gone (killed, or by a power cut) were making there."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            found = _UNFINISHED.fullmatch(path.name)
            if found is not None and not psutil.pid_exists(int(found[1])):
                _remove(path)
