"""A study of trainings as people write it: which arms, equal in what, on which text; and the shapes that follow.

Read with msgspec and not as the other study files are: what reads those lies in rooms that this one must not know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from breakeven.errors import UserError, expanded, one_line
from breakeven.lab.training.matching import MEASURES, CountedAs, amount, match
from breakeven.lab.training.shapes import HELP, ArmShape, ArmWish, checked, whole, wish_of
from breakeven.model.readers.bounded import MOST_TYPED_BYTES, shown
from breakeven.model.readers.typed import missing_key, no_such_key, read_mapping, wrong_value

DOCS = "docs/train.md lists the keys"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_POWER = re.compile(r"\d+(\.\d*)?[eE][-+]?\d{1,3}")
_MOST_ARMS, _MOST_SEEDS, _MOST_ROW, _MOST_BATCH = 12, 32, 8192, 4096
_VOCABULARY = (512, 65536)
_SLOWEST, _FASTEST = 1e-6, 1.0
"""Learning rates."""
_RIGHT = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
}
"""What msgspec expects, in words."""


class ArmRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An arm with its keys, where words alone do not say it."""

    kind: str
    name: str | None = None
    layers: int | None = None
    hidden: int | None = None
    width: int | None = None
    experts: int = 0
    used: int = 0
    expert_width: int | None = None
    every: int = 2


class StudyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of a study, and what holds where one is left out. The first arm is the one others are matched to."""

    text: str
    arms: list[str | ArmRecord]
    match: Literal["active", "total", "flops", "seconds"] = "active"
    reference: str | None = None
    control: bool = False
    """A copy of the reference with other random numbers: what it differs by is noise."""
    seeds: int = 3
    seed: int = 0
    tokens: int = 256
    batch: int = 8
    vocabulary: int = 2048
    """Tokens to learn from the text."""
    tokenizer: str | None = None
    """Of a directory, in place of one that is learned."""
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    """Learning rates tried for each arm; one alone is taken as it is."""
    balance: float = 0.01
    """Weight of the loss that spreads tokens over experts."""
    encoding: str | None = None


@dataclass(frozen=True, slots=True)
class ShapedArm:
    """One model of a study. `copy_of`: the arm with the same shape before it, whose learning rate it takes."""

    name: str
    shape: ArmShape
    amount: float
    off: float
    copy_of: int | None
    control: bool = False
    """Made to show what chance does, and not left standing."""


@dataclass(frozen=True, slots=True)
class TrainingStudy:
    """A study file with its paths made absolute. `wishes`: an arm's name and what was asked of it, in order."""

    name: str
    file: StudyFile
    text: Path
    tokenizer: Path | None
    wishes: tuple[tuple[str, ArmWish], ...]
    reference: int
    where: str

    def arms(self, vocabulary: int) -> list[ShapedArm]:
        """The shapes, in the file's order. Raises UserError where one does not match."""
        counted = CountedAs(vocabulary, self.file.tokens, self.file.match)
        place = f"{self.where}: arms.{self.reference}"
        reference = whole(self.wishes[self.reference][1], place)
        goal = amount(reference, counted)
        found: list[ShapedArm] = []
        for number, (name, wish) in enumerate(self.wishes):
            shape, off = reference, 0.0
            if number != self.reference:
                matched = match(wish, reference, counted, f"{self.where}: arms.{number}")
                shape, off = matched.shape, matched.off
            found.append(ShapedArm(name, shape, goal * (1 + off), off, _first(found, shape)))
        if self.file.control:
            name = found[self.reference].name
            found.append(ShapedArm(f"{name}-again", reference, goal, 0.0, _first(found, reference), control=True))
        return found


def _first(arms: Sequence[ShapedArm], shape: ArmShape) -> int | None:
    return next((number for number, arm in enumerate(arms) if arm.shape == shape), None)


def read_study_file(path: Path, seed: int | None = None) -> TrainingStudy:
    """The study in `path`; relative paths in it count from its directory. `seed`: in place of the file's own.

    Raises UserError naming file, key, what was found and what would be right.
    """
    where = str(path)
    path = expanded(path)
    found = read_mapping(
        path,
        most_bytes=MOST_TYPED_BYTES,
        keys=f"keys such as `text:` and `arms:`; {DOCS}",
        give="give a study, as docs/train.md shows",
        where=where,
    )
    found = {key: _read_number(value) for key, value in found.items()}
    try:
        file = msgspec.convert(found, StudyFile)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {_complaint(str(error), found)}") from None
    if seed is not None:
        file = msgspec.structs.replace(file, seed=seed)
    _check(file, where)
    wishes = _wishes(file, where)
    names = [name for name, _ in wishes]
    if file.reference is not None and file.reference not in names:
        raise UserError(f"{where}: reference: found {shown(file.reference)}, it must be one of {', '.join(names)}")
    return TrainingStudy(
        name=path.stem,
        file=file,
        text=_existing(f"{where}: text", path.parent, file.text),
        tokenizer=None if file.tokenizer is None else _existing(f"{where}: tokenizer", path.parent, file.tokenizer),
        wishes=wishes,
        reference=0 if file.reference is None else names.index(file.reference),
        where=where,
    )


def _wishes(file: StudyFile, where: str) -> tuple[tuple[str, ArmWish], ...]:
    """Arms with names of their own: as given, else after what they are, numbered where two are the same."""
    found: list[tuple[str, ArmWish]] = []
    for number, each in enumerate(file.arms):
        place = f"{where}: arms.{number}"
        said = None
        if isinstance(each, str):
            wish = wish_of(each, place)
        else:
            said = each.name
            wish = checked(
                ArmWish(
                    kind=each.kind,
                    layers=each.layers,
                    hidden=each.hidden,
                    width=each.width,
                    experts=each.experts,
                    used=each.used,
                    expert_width=each.expert_width,
                    every=each.every,
                ),
                place,
            )
        if said is not None and (not _NAME.fullmatch(said) or said in [name for name, _ in found]):
            raise UserError(f"{place}.name: found {shown(said)}, it must be a name of its own of letters, digits and -")
        usual = f"{wish.kind}-{wish.experts}-{wish.used}" if wish.experts else wish.kind
        taken = sum(name == usual or name.startswith(f"{usual}-no") for name, _ in found)
        found.append((said or (f"{usual}-no{taken + 1}" if taken else usual), wish))
    return tuple(found)


def _check(file: StudyFile, where: str) -> None:
    """What is out of bounds."""

    def within(key: str, value: float, least: float, most: float) -> None:
        if not least <= value <= most:
            raise UserError(f"{where}: {key}: found {value:g}, it must be {least:g} to {most:g}")

    within("seeds", file.seeds, 1, _MOST_SEEDS)
    within("seed", file.seed, 0, 2**31)
    within("tokens", file.tokens, 16, _MOST_ROW)
    within("batch", file.batch, 1, _MOST_BATCH)
    within("vocabulary", file.vocabulary, *_VOCABULARY)
    within("balance", file.balance, 0, 10)
    for rate in file.rates:
        within("rates", rate, _SLOWEST, _FASTEST)
    if not file.rates:
        raise UserError(f"{where}: rates: found none, give learning rates such as [1e-3, 2e-3, 4e-3]")
    if not 1 <= len(file.arms) <= _MOST_ARMS or len(file.arms) + file.control < 2:
        raise UserError(
            f"{where}: arms: found {len(file.arms)}, give 2 to {_MOST_ARMS} (or one, with `control: true`), {HELP}"
        )


def _read_number(value: object) -> object:
    """YAML takes 1e-3 for text, because it has no point."""
    if isinstance(value, list):
        return [_read_number(each) for each in value]
    return float(value) if isinstance(value, str) and _POWER.fullmatch(value) else value


def _complaint(text: str, found: Mapping[object, object]) -> str:
    """What msgspec says, in the words of every file that people type."""
    what, _, at = text.partition(" - at `$")
    key = re.sub(r"\[(\d+)\]", r".\1", at.rstrip("`").replace("[...]", "")).lstrip(".")

    def inside(name: str) -> str:
        return f"{key}.{name}" if key else name

    if unknown := re.search(r"unknown field `(.*)`", what):
        known = (ArmRecord if key else StudyFile).__struct_fields__
        return no_such_key(inside(one_line(unknown[1], 60)), known, DOCS)
    if missing := re.search(r"missing required field `(.*)`", what):
        return missing_key(inside(missing[1]), DOCS)
    if not key:  # a key that is no text
        return f"{what}; {DOCS}"
    value: object = found
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value.get(part) if isinstance(value, dict) else value
    expected = re.match(r"Expected `(.*?)`", what)
    right = f"one of {', '.join(MEASURES)}"
    if expected is not None:
        right = " or ".join(_RIGHT.get(each, each) for each in expected[1].split(" | ") if each != "null")
    return f"{wrong_value(key, value, right)}; {DOCS}"


def _existing(place: str, directory: Path, text: str) -> Path:
    path = directory / expanded(text)
    if not path.exists():
        raise UserError(f"{place}: found {shown(text)}, which does not exist; paths count from the file's directory")
    return path.resolve()
