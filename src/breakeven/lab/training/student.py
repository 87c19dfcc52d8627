"""What a student is made of: its directory, the words it shares with its teacher, its rows of text, and its size.

Legend: N rows, T tokens a row, K tokens kept of a vocabulary.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.lab.bridge.directory_words import said_tokens, tokenizer_of
from breakeven.lab.corpus import Block
from breakeven.lab.facts import facts_of, free_memory, is_onnx
from breakeven.lab.lockstep import kind_of_model
from breakeven.lab.training.shapes import (
    ArmShape,
    config_of,
    largest_that_fits,
    spec_of,
    student_shape,
    weight_bytes,
)
from breakeven.lab.training.texts import Ids, Split, rows_of
from breakeven.lab.training.vocabulary import Trimmed, trim
from breakeven.lab.training.work import batch_that_trains, directory_of, training_flops, write_whole
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import total_params
from breakeven.model.readers.hf import CONFIG, read_hf, read_json

Fits = Callable[[ModelSpec, float], str | None]
"""Of a description and the bytes of its file: why a device does not hold it, or is too slow; None: nothing is."""

BESIDE_WEIGHTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""Files of a directory that say how it reads and writes."""
_LONGEST = 4
"""Times the length of a row: the longest sequence that a new student is made for."""
_TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
_PASS_STEPS = 200
"""Steps that a student whose size is left open must be able to take in its time."""
_TRAINED_SHARE = 0.25
"""Of a processor's speed at large products, what a training of small matrices reaches."""


@dataclass(frozen=True, slots=True)
class Student:
    """What is trained, before it is: `directory` has its config.json and tokenizer, and weights where `begun`.

    `shape`: in words, None for a directory of the user's. `kept_K`: which of the teacher's tokens its own are; None:
    all, as they are. `same_words`: whether whole distributions compare with the teacher's.
    """

    directory: Path
    spec: ModelSpec
    begun: bool
    shape: str | None
    kept_K: NDArray[np.int64] | None
    same_words: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StudentRows:
    """The text in the student's tokens: what trains (N, T), and what chooses, in rows as long or one shorter."""

    train_NT: Ids
    choose_NT: Ids


class ArmSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A job for the process with torch: to train one model, a student or its twin.

    Paths: `directory` what it begins as, with weights where `begun`; `rows` and `choose` .npy files; `cache` the
    teacher's, None for a twin; `folder` for checkpoints; `made` where the best of them is saved. `beaten_by`: nats on
    what chooses; a model that needs no more ends the job.
    """

    name: str
    directory: str
    begun: bool
    rows: str
    choose: str
    cache: str | None
    folder: str
    made: str
    seed: int
    rate: float
    batch: int
    seconds: float | None
    steps: int | None
    ternary: bool = False
    beaten_by: float | None = None


class ArmDone(msgspec.Struct, frozen=True, kw_only=True):
    """How it went, as `loop.Trained` says it. `better`: the nats with which it ended the job; None: it was trained."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[list[float]] = []
    checks: list[list[float]] = []
    best_step: int = 0
    better: float | None = None

    @property
    def best(self) -> float:
        """Nats a token on what chooses, of the checkpoint that was kept."""
        return min(value for _, value in self.checks)


def as_directory(model: Path, place: Path, who: str) -> Path:
    """A model's directory: its own, or at `place` what its GGUF holds, in F32.

    Raises UserError for what is no model that trains or teaches, and what `bridge.to_directory` raises.
    """
    if kind_of_model(model) == "directory" and is_onnx(model):
        raise UserError(f"{model} is a graph of ONNX; give {who} as a directory with weights or a .gguf file")
    return directory_of(model, place)[0]


def student_of(
    into: str,
    teacher: Path,
    blocks: Sequence[Block],
    work: Path,
    *,
    tokens: int,
    batch: int,
    seconds: float | None,
    trimmed: bool,
    ternary: bool,
    fits: Fits | None,
) -> Student:
    """The student that `into` names: a shape, a kind of which `fits` finds the size, or a model that is there.

    `teacher`: its directory. Raises UserError for a shape that cannot be or does not fit, and for another tokenizer.
    """
    if (path := Path(into)).exists():
        return _there(path, teacher, blocks, work, trimmed=trimmed, ternary=ternary, fits=fits)
    asked = student_shape(into)
    words, kept = teacher, None
    if trimmed:
        words = work / "words"
        shutil.rmtree(words, ignore_errors=True)
        kept = trim(teacher, [block.text for block in blocks], words)
    vocab = facts_of(teacher).n_vocab if kept is None else kept.n
    positions = _LONGEST * tokens

    def device(spec: ModelSpec) -> str | None:
        return None if fits is None else fits(spec, weight_bytes(spec, ternary=ternary))

    if isinstance(asked, str):
        if fits is None:
            raise UserError(f'--into {into}: say how large, such as "{into} 4x256", or what it must fit with --fits')
        checks = [device, _memory_for(tokens)]
        checks += [_time_for(seconds, batch * tokens, tokens)] if seconds is not None else []
        shape = largest_that_fits(asked, vocab, positions, checks)
        said = shape.words
    else:
        shape, said = asked, " ".join(into.split())
        if (why := device(spec_of(shape, vocab, positions))) is not None:
            raise UserError(f"--fits: {said} {why}; give a smaller one, or the kind alone to have it sized")
    directory = work / "student"
    _written(directory, shape, vocab, positions, teacher, words, kept)
    notes = [] if kept is None else [f"{kept.said()}. The text is cut as before, which was checked."]
    kept_K = None if kept is None else kept.kept_K
    return Student(directory, spec_of(shape, vocab, positions), False, said, kept_K, kept is None, tuple(notes))


def _written(
    directory: Path, shape: ArmShape, vocab: int, positions: int, teacher: Path, words: Path, kept: Trimmed | None
) -> None:
    """The directory of a student that has no weights yet."""
    tokens: dict[str, object] = {}
    for key in _TOKEN_KEYS:
        if ids := said_tokens(teacher, key):
            tokens[key] = ids[0] if len(ids) == 1 else ids
    tokens = tokens if kept is None else kept.renumbered(tokens)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / CONFIG, _json(config_of(shape, vocab, positions, tokens)))
    for name in BESIDE_WEIGHTS:
        if (words / name).is_file():
            shutil.copyfile(words / name, directory / name)


def _there(
    path: Path, teacher: Path, blocks: Sequence[Block], work: Path, *, trimmed: bool, ternary: bool, fits: Fits | None
) -> Student:
    """A student that has weights already."""
    if trimmed:
        raise UserError(
            f"--trim-vocabulary makes a new student's tokenizer smaller, and {path} has one; leave it out, or give a "
            'shape such as --into "dense 4x256"'
        )
    directory = as_directory(path, work / "into", "the student")
    _check_words(path, directory, teacher, blocks)
    spec = read_hf(str(directory))
    if fits is not None and (why := fits(spec, weight_bytes(spec, ternary=ternary))) is not None:
        raise UserError(f"--fits: {path} {why}; give a smaller one")
    ours, theirs = facts_of(directory).n_vocab, facts_of(teacher).n_vocab
    # A teacher may have rows for tokens that the student has none for; it then tells of the student's alone.
    kept_K = np.arange(ours, dtype=np.int64) if ours < theirs else None
    return Student(directory, spec, True, None, kept_K, ours == theirs)


def _check_words(path: Path, student: Path, teacher: Path, blocks: Sequence[Block]) -> None:
    """Raise UserError unless both tokenizers cut the text alike."""
    ours, theirs = tokenizer_of(student), tokenizer_of(teacher)
    for block in blocks:
        here, there = ours.encode(block.text).ids, theirs.encode(block.text).ids
        if here != there:
            how = f"{len(here):,} against {len(there):,} tokens" if len(here) != len(there) else "other numbers"
            raise UserError(
                f"{path} cuts text otherwise than its teacher ({how} for one piece), so it cannot learn token by token "
                'what the teacher finds likely; give a shape (--into "dense 4x256"), which takes the teacher\'s '
                "tokenizer, or distill across tokenizers with TRL's GOLD trainer"
            )


def rows_for(student: Student, parts: Split, tokens: int) -> StudentRows:
    """The text that trains and the text that chooses, as rows. Each piece of text begins as the tokenizer begins one.

    Raises UserError for a text of fewer tokens than a row.
    """
    tokenizer = tokenizer_of(student.directory)
    ends = said_tokens(student.directory, "eos_token_id")

    def encode(text: str) -> Sequence[int]:
        ids: list[int] = tokenizer.encode(text).ids
        return ids

    end = ends[0] if ends else None
    train_NT = rows_of(parts.train, encode, tokens, end)
    choose = rows_of(parts.choose, encode, 1, end).reshape(-1)
    length = min(tokens, len(choose))
    count = len(choose) // length
    return StudentRows(train_NT, choose[: count * length].reshape(count, length))


def batch_for(spec: ModelSpec, tokens: int, batch: int) -> int:
    """The batch, smaller where memory asks for it. Raises UserError where not even one row fits."""
    weights = total_params(spec)
    return batch_that_trains(
        weights, weights, spec.hidden, len(spec.layers), spec.vocab, tokens, batch, free_bytes=free_memory()
    )


def _memory_for(tokens: int) -> Callable[[ModelSpec], str | None]:
    def why_not(spec: ModelSpec) -> str | None:
        try:
            batch_for(spec, tokens, 1)
        except UserError as error:
            return str(error)
        return None

    return why_not


def _time_for(seconds: float, step: int, row: int) -> Callable[[ModelSpec], str | None]:
    """Whether this machine's processor takes enough steps of `step` tokens in the time."""
    rate = _TRAINED_SHARE * _products_per_s()

    def why_not(spec: ModelSpec) -> str | None:
        takes = training_flops(spec, _PASS_STEPS * step, row) / rate
        return None if takes <= seconds else f"{_PASS_STEPS} steps of it take about {takes:.0f} s here"

    return why_not


def _products_per_s() -> float:
    """Floating-point operations a second of a product of large matrices, on all cores."""
    a = np.ones((768, 768), np.float32)
    best = min(_timed(lambda: a @ a) for _ in range(5))
    return float(2.0 * a.shape[0] ** 3 / best)


def _timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def served_config(config: dict[str, object]) -> dict[str, object]:
    """`config.json` of trained weights: in F32, the rotary base under both spellings.

    Engines that know only the older one would take a default of their own.
    """
    inner = config.get("rope_parameters")
    theta = inner.get("rope_theta") if isinstance(inner, dict) else None
    written = {**config, "torch_dtype": "float32"}
    written.pop("dtype", None)
    return written if theta is None or "rope_theta" in config else {**written, "rope_theta": theta}


def write_beside(model: Path, out: Path) -> None:
    """Configuration and tokenizer of `model` beside weights trained from it."""
    write_whole(out / CONFIG, _json(served_config(read_json(model / CONFIG))))
    for name in BESIDE_WEIGHTS:
        if (model / name).is_file():
            shutil.copyfile(model / name, out / name)


def _json(content: object) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"


def save_array(path: Path, array: NDArray[np.generic]) -> str:
    """An array as a file, whole; its path, as jobs take it."""
    held = io.BytesIO()
    np.save(held, array, allow_pickle=False)
    write_whole(path, held.getvalue())
    return str(path)


def name_in_config(directory: Path, name: str) -> None:
    """What a file made of the directory calls the model; else it would be the directory's name, a temporary one."""
    write_whole(directory / CONFIG, _json({"_name_or_path": name, **read_json(directory / CONFIG)}))
