"""The store: writes every result directory and reads it again. No other module writes a `result.json`.

A directory holds the log of what happened, if something was run, and the result computed from it. Results are public
contracts (docs/json.md, docs/decision-json.md, docs/lab-json.md): fields are only ever added, and each file names the
schema it follows, which `KINDS` maps to a type. Files are written whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, overload

import msgspec

from breakeven.errors import BreakevenError, UserError
from breakeven.results.choose import CHOOSE_SCHEMA, ModelChoice
from breakeven.results.comparison import SCHEMA, Comparison
from breakeven.results.decision import DECIDE_LOG_SCHEMA, DECISION_SCHEMA, Decision, LogDecision
from breakeven.results.lab import EVALUATE_SCHEMA, EXPERTS_SCHEMA, PROOF_SCHEMA, Evaluation, ExpertScores, Proof
from breakeven.results.load import CAPACITY_SCHEMA, CHECK_SCHEMA, LOAD_SCHEMA, CapacityStudy, Check, LoadStudy
from breakeven.results.training import TRAIN_SCHEMA, TrainStudy

RESULT, LOG = "result.json", "events.jsonl"

A = TypeVar("A", bound=msgspec.Struct)
B = TypeVar("B", bound=msgspec.Struct)
C = TypeVar("C", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of result: the schema that names it in the file, and what people call it."""

    schema: str
    noun: str


KINDS: dict[type[msgspec.Struct], Kind] = {
    Comparison: Kind(SCHEMA, "comparison"),
    LoadStudy: Kind(LOAD_SCHEMA, "run under load"),
    CapacityStudy: Kind(CAPACITY_SCHEMA, "capacity search"),
    Check: Kind(CHECK_SCHEMA, "check"),
    Decision: Kind(DECISION_SCHEMA, "decision"),
    LogDecision: Kind(DECIDE_LOG_SCHEMA, "decision on a log"),
    Evaluation: Kind(EVALUATE_SCHEMA, "evaluation"),
    Proof: Kind(PROOF_SCHEMA, "proof"),
    ModelChoice: Kind(CHOOSE_SCHEMA, "choice"),
    ExpertScores: Kind(EXPERTS_SCHEMA, "look at experts"),
    TrainStudy: Kind(TRAIN_SCHEMA, "study of trainings"),
}
"""Everything that can be read again. A new schema of an old kind is one more line, with its own type."""


class UnreadError(UserError):
    """A file is no result of the kinds that were asked for. `schema`: what it names, None if it did not come so far."""

    def __init__(self, text: str, detail: str, schema: str | None = None) -> None:
        super().__init__(text)
        self.detail, self.schema = detail, schema


class _Head(msgspec.Struct):
    """What must be read first: which schema the rest follows."""

    schema: str | None = None


def encode(result: msgspec.Struct) -> bytes:
    """`result` as indented UTF-8 JSON.

    Raises `BreakevenError` when it holds a number JSON cannot carry (infinite or not a number): such a file could be
    written but never read again.
    """
    encoded = msgspec.json.encode(result)
    try:
        msgspec.json.decode(encoded, type=type(result))
    except msgspec.ValidationError as error:
        raise BreakevenError(
            f"The result holds a number that is not finite, so it was not written: {error}."
        ) from error
    return msgspec.json.format(encoded, indent=2) + b"\n"


def write(result: msgspec.Struct, path: Path) -> Path:
    """Write `result` to `path`, whole or not at all. Raises `UserError` when the place cannot be written."""
    return write_whole(path, encode(result))


def write_whole(path: Path, content: bytes) -> Path:
    """Write beside `path`, then rename over it, so that a reader never meets half a file."""
    # The process id keeps two runs that write the same file from sharing one temporary.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"Cannot write {path}: {error.strerror}. Choose another directory with --out, or make room."
        ) from error
    return path


@overload
def read(path: Path, one: type[A], /) -> A: ...
@overload
def read(path: Path, one: type[A], two: type[B], /) -> A | B: ...
@overload
def read(path: Path, one: type[A], two: type[B], three: type[C], /) -> A | B | C: ...
def read(path: Path, *types: type[msgspec.Struct]) -> msgspec.Struct:
    """The result in the file `path`, of the one of `types` whose schema it names. Fields added since are ignored.

    Raises `UnreadError` when the file is missing, not JSON, of a schema that is none of these, or lacks a field.
    """
    kinds = {KINDS[each].schema: each for each in types}
    noun = KINDS[types[0]].noun if len(types) == 1 else "run"
    try:
        content = path.read_bytes()
    except OSError as error:
        why = error.strerror or str(error)
        raise UnreadError(f"Cannot read {path}: {why}. Give the result.json of a finished {noun}.", why) from error
    try:
        schema = msgspec.json.decode(content, type=_Head).schema
    except msgspec.ValidationError as error:
        raise UnreadError(f"{path} is not the result of a {noun}: {error}.", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadError(
            f"{path} is not JSON: {error}. Give the result.json of a finished {noun}.", str(error)
        ) from error
    if schema not in kinds:
        has = "no schema" if schema is None else f'schema "{schema}"'
        known = ", ".join(f'"{each}"' for each in kinds)
        ours = f"this version reads {known}. Run the {noun} again or update."
        if len(types) > 1:
            ours = f"this version shows {known}. Give the result.json of such a run."
        raise UnreadError(f"{path} has {has}, {ours}", has, schema or "")
    try:
        return msgspec.json.decode(content, type=kinds[schema])
    except (msgspec.ValidationError, RecursionError) as error:
        noun = KINDS[kinds[schema]].noun
        raise UnreadError(f"{path} is not a whole result: {error}. Run the {noun} again.", str(error)) from error


def fingerprint(parts: tuple[object, ...]) -> str:
    """Identifies a configuration: equal questions give equal fingerprints. Precision and budget may differ."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def open_directory(
    asked: Path | None, default: Path, wanted: str, resume: bool, study_of: Callable[[Path], str | None]
) -> tuple[Path, bool]:
    """The directory to write to, and whether it already holds the study `wanted`, a fingerprint.

    `study_of` tells the fingerprint of the study a log is of. Without `asked` the first free name after `default` is
    taken, or with `resume` the latest one that holds this study. Raises UserError for a directory that holds another
    study, or this one when `resume` is not said.
    """

    def held_in(directory: Path) -> str | None:
        return study_of(directory / LOG) if (directory / LOG).is_file() else None

    if asked is None:
        numbered = [default, *(default.with_name(f"{default.name}-{i}") for i in range(2, 1000))]
        taken = [path for path in numbered if (path / LOG).exists()]
        same = [path for path in taken if held_in(path) == wanted]
        if resume and not same:
            raise UserError(f"nothing to resume under {default.parent}: no study there asks the same question")
        asked = same[-1] if resume else next(path for path in numbered if path not in taken)
    held = held_in(asked)
    if held is None:
        if resume:
            raise UserError(f"nothing to resume in {asked}: it holds no study; leave --resume out")
    elif held != wanted:
        raise UserError(f"{asked} holds another study; give another --out, or delete it")
    elif not resume:
        raise UserError(f"{asked} already holds this study; add --resume to go on with it, or give another --out")
    _make_writable(asked)
    return asked, held is not None


def _make_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {directory}: {error.strerror}; give another --out") from error
    if not os.access(directory, os.W_OK):
        raise UserError(f"{directory} is read-only; give another --out")
