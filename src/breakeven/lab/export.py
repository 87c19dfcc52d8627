"""`breakeven export`: a model in another form, left standing only if engines compute the same with it.

Between GGUF and a Hugging Face directory the bridge carries every number. What is made is then held against its source
three times: both tokenizers must cut texts alike; the same numbers, as an F32 GGUF in llama.cpp and as a directory in
transformers (and in mlx-lm where that is installed), must predict alike to 1e-6; and the proof says what the form
itself changes, such as the rounding that llama.cpp does with quantized weights and transformers does not.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from breakeven.engines.inside.client import Inside, OnStep
from breakeven.engines.mlx.layout import ask_there
from breakeven.engines.mlx.server import find_mlx, interpreter_of
from breakeven.engines.vllm.server import find_vllm
from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.bridge.bridge import Carried, to_directory, to_gguf, write_single
from breakeven.lab.bridge.tokenizers import same_ids
from breakeven.lab.bridge.weights import F32, FLOAT_TYPES, Checkpoint
from breakeven.lab.corpus import Document, sample
from breakeven.lab.facts import batch_that_fits, facts_of
from breakeven.lab.lockstep import Lockstep, Scored
from breakeven.lab.proof import prove, sweep
from breakeven.lab.surgery.container import open_gguf
from breakeven.model.readers.hf import CONFIG, read_json
from breakeven.results.lab import LabCheck, Proof
from breakeven.stats.estimate import Estimate

Logits = NDArray[np.float32]

TARGETS = ("gguf", "hf", "onnx", "litert")
MOST_KL = 1e-6
"""Mean nats a token between engines in single precision: the five families stand 6e-9 to 3.3e-7 apart."""
_TOKENS_EACH = 128
"""Of each language of the sample, run through both engines."""
_NEEDED = ("torch", "transformers")
_ELSEWHERE = {"onnx": "breakeven.lab.graph.onnx", "litert": "breakeven.lab.graph.onnx"}


def export(
    model: Path,
    to: str,
    out: Path,
    *,
    command: str,
    dtype: str | None = None,
    text: Sequence[Document] | None = None,
    budget_s: float | None = None,
    assume: bool = False,
    on_step: OnStep = lambda what, share: None,
) -> Proof:
    """Write `model` in another form at `out`, and the proof beside it.

    `to`: gguf, of a Hugging Face directory; hf, a directory, of a GGUF; onnx, of both; litert, of a directory. `dtype`:
    f32, f16 or bf16. `text`: what quality is compared on within `budget_s`, else a sample of six languages is.
    `assume`: go on past keys that are not known. Raises UserError for what cannot be exported so, NotSupportedError for
    a model that is not carried, BreakevenError naming the check that failed: then nothing is left at `out`.
    """
    if to not in TARGETS:
        raise UserError(f"--to {to}: give one of {', '.join(TARGETS)}")
    if dtype is not None and dtype not in FLOAT_TYPES:
        raise UserError(f"--dtype {dtype}: give one of {', '.join(FLOAT_TYPES)}")
    if out.exists():
        raise UserError(f"{out} exists; choose another place with --out, or remove it")
    sweep(out.parent)
    if to in _ELSEWHERE:
        if dtype is not None or assume:
            raise UserError(f"--to {to} writes single precision of models it knows: leave out --dtype and --assume")

        def carry_first(directory: Path) -> tuple[list[LabCheck], list[str]]:
            return _carried(model, directory, on_step)

        made_elsewhere: Callable[..., Proof] = import_module(_ELSEWHERE[to]).export
        return made_elsewhere(
            model, to, out, command=command, text=text, budget_s=budget_s, carry=carry_first, on_step=on_step
        )
    _check_kind(model, to)
    if to == "gguf" and out.suffix != ".gguf":
        raise UserError(f"--out {out}: a GGUF is found by its name; give one that ends in .gguf")
    _need_torch(to)
    made, again = (out.with_name(f".{out.name}.{os.getpid()}.{word}") for word in ("made", "again"))
    on_step(f"writing {out.name}", 0.0)
    carry: Callable[..., Carried] = to_gguf if to == "gguf" else to_directory
    try:
        done = carry(model, made, dtype=dtype, assume=assume)
        gguf, directory = (made, model) if to == "gguf" else (model, made)
        checks, said = checks_between(
            gguf, directory, again, of_gguf=to == "hf", dtype=done.dtype, assume=assume, on_step=on_step
        )
        return prove(
            "export",
            command,
            model,
            made,
            out,
            format=done.dtype,
            text=text,
            checks=[_tensors(done), *checks],
            caveats=[*done.notes, *said],
            budget_s=budget_s,
            on_step=on_step,
        )
    finally:
        _remove(made)  # what was proven has its own name by now


def checks_between(
    gguf: Path,
    directory: Path,
    again: Path,
    *,
    of_gguf: bool,
    dtype: str,
    assume: bool = False,
    on_step: OnStep = lambda what, share: None,
) -> tuple[list[LabCheck], list[str]]:
    """Whether a GGUF and a directory, one made of the other, are the same model; and sentences for a proof.

    Token ids, then predictions in each engine, until a check fails. `of_gguf`: the directory was made. `dtype`: what
    the matrices of the one made are in. `again`: a place for the GGUF's numbers in F32, which is removed.
    """
    checks = [_ids(gguf, directory)]
    caveats: list[str] = []
    try:
        if checks[-1].passed:
            exact = _exact(gguf, directory, again, of_gguf=of_gguf, dtype=dtype, assume=assume, on_step=on_step)
            checks.append(_predictions(exact, directory, on_step))
        if checks[-1].passed:
            beside = _mlx(exact, directory, on_step)
            caveats += [beside] if isinstance(beside, str) else []
            checks += [beside] if isinstance(beside, LabCheck) else []
            caveats += _unasked()
    finally:
        again.unlink(missing_ok=True)
    return checks, caveats


def _carried(model: Path, directory: Path, on_step: OnStep) -> tuple[list[LabCheck], list[str]]:
    """A GGUF as a directory in F32, for what is made of directories; its checks and what a proof says of it."""
    on_step("writing it as a directory first", 0.0)
    done = to_directory(model, directory, dtype="f32")
    again = directory.with_name(f"{directory.name}.again")
    checks, said = checks_between(model, directory, again, of_gguf=True, dtype=done.dtype, on_step=on_step)
    return [_tensors(done), *checks], [*done.notes, *said]


def _exact(
    gguf: Path, directory: Path, again: Path, *, of_gguf: bool, dtype: str, assume: bool, on_step: OnStep
) -> Path:
    """A GGUF in F32 of the directory's numbers: the file itself, or `again`, written from what the file holds.

    Rounding is the one thing that may stand between both, and is done to it too. Only where a GGUF was rounded can that
    not be undone: then it is written from the directory.
    """
    file = open_gguf(gguf)
    if dtype == "F32" and all(tensor.kind.name == "F32" for tensor in file.tensors):
        return gguf
    on_step("writing it again in F32, to compare engines", 0.0)
    stored = {tensor.dtype for tensor in Checkpoint(directory).tensors.values() if len(tensor.shape) > 1}
    if of_gguf or stored <= {dtype}:
        write_single(file, again, FLOAT_TYPES[dtype.lower()] if of_gguf else F32)
    else:
        to_gguf(directory, again, dtype="f32", assume=assume)
    return again


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _check_kind(model: Path, to: str) -> None:
    """Raise UserError unless `model` is what is exported so."""
    directory = model.is_dir()
    if directory and not (model / CONFIG).is_file():
        raise UserError(f"{model}: holds no {CONFIG}; give a Hugging Face model's directory or a .gguf file")
    if not directory and not model.is_file():
        raise UserError(f"{model}: no such file; give a .gguf file or a Hugging Face model's directory")
    if to == "gguf" and not directory:
        raise UserError(f"{model} is a file already; --to gguf takes a Hugging Face model's directory")
    if to == "hf" and directory:
        raise UserError(f"{model} is a directory already; --to hf takes a .gguf file")


def _need_torch(to: str) -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise NotSupportedError(
            f"export --to {to} compares what it writes in transformers, and {' and '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} not installed: install the extra `lab` (1.5 GB; how: docs/lab.md)"
        )


def _tensors(done: Carried) -> LabCheck:
    return LabCheck(
        name="tensors",
        engine="breakeven",
        passed=True,
        detail=f"{done.tensors} tensors of the family {done.family}: none missing, none left over, shapes as announced",
    )


def _ids(gguf: Path, directory: Path) -> LabCheck:
    """Whether both tokenizers cut the sample and hostile texts alike."""
    return same_ids(gguf, directory, [each.text for each in sample()])


def _predictions(exact: Path, directory: Path, on_step: OnStep) -> LabCheck:
    """Whether llama.cpp of an F32 file and transformers of the directory predict the same."""
    kl: list[float] = []
    same: list[float] = []
    batch = batch_that_fits([facts_of(exact), facts_of(directory)], _TOKENS_EACH, _TOKENS_EACH, small=False)
    with Lockstep([Scored(exact), Scored(directory)], on_step=on_step, batch=batch, exact=True) as lock:
        for document in sample():
            scores = lock.score(lock.tokenize(0, document.text)[:_TOKENS_EACH], [(0, 1)])
            kl += scores.kl[0].tolist()
            same += scores.agree[0].tolist()
    return _alike("transformers", kl, same)


def _alike(engine: str, kl: Sequence[float], same: Sequence[float]) -> LabCheck:
    # Single precision: what is nothing can come out below it.
    mean, agreed = max(0.0, float(np.mean(kl))), float(np.mean(same))
    # Where two tokens are as likely as each other to the last bit, either may come first.
    return LabCheck(
        name="same predictions",
        engine=engine,
        passed=mean <= MOST_KL and agreed >= 0.999,
        kl=Estimate(mean, None, None, len(kl), "measured"),
        top1=Estimate(agreed, None, None, len(same), "measured"),
        detail=f"against llama.cpp of the same numbers in F32, {len(kl)} tokens; at most {MOST_KL:g} nats a token",
    )


def _mlx(exact: Path, directory: Path, on_step: OnStep) -> LabCheck | str | None:
    """Whether mlx-lm predicts the same of the directory; None where it is not installed.

    A sentence where it cannot be asked: a model that it is known to compute otherwise, or does not know.
    """
    try:
        python = interpreter_of(find_mlx())
    except UserError:
        return None
    if python is None:
        return None
    if read_json(directory / CONFIG)["model_type"] == "ernie4_5_moe":
        return "not compared in mlx-lm, which leaves out the selection bias of this family's router"
    on_step("mlx-lm", 0.0)
    with Inside(exact) as inside:
        tokens = inside.tokenize(" ".join(each.text[:200] for each in sample()))[: 2 * _TOKENS_EACH]
        source_TV = inside.logits(tokens, exact=True)
    with tempfile.TemporaryDirectory(prefix="breakeven-mlx-") as folder:
        file = Path(folder) / "logits.npy"
        answer = ask_there({"model": str(directory.resolve()), "tokens": tokens, "file": str(file)}, python)
        if "version" not in answer:
            return f"not compared in mlx-lm: {answer.get('refused') or answer.get('missing')}"
        kl_T, same_T = kl_and_top1(source_TV, np.load(file))
    return _alike(f"mlx-lm {answer['version']}", kl_T.tolist(), same_T.tolist())


def _unasked() -> list[str]:
    """A sentence for an engine that reads directories, is installed here, and takes minutes to start."""
    try:
        find_vllm()
    except UserError:
        return []
    return ["not compared in vLLM, which is installed here: `breakeven compare DIR --engine vllm` runs it there"]


def kl_and_top1(source_TV: Logits, other_TV: Logits) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """KL(source || other) in nats, and whether the likeliest token is the same, after each of T tokens."""
    p, q = (each.astype(np.float64) - each.max(axis=1, keepdims=True) for each in (source_TV, other_TV))
    log_p, log_q = (each - np.log(np.exp(each).sum(axis=1, keepdims=True)) for each in (p, q))
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1), p.argmax(axis=1) == q.argmax(axis=1)
