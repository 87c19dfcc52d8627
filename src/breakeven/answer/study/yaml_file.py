"""A YAML file that people type as records: the first complaint of one, told by its key."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from breakeven.answer.study.values import HIDDEN, FilePart, keys_of
from breakeven.errors import UserError, one_line
from breakeven.model.readers.bounded import shown
from breakeven.model.readers.typed import missing_key, no_such_key, right_of, wrong_value

_Part = TypeVar("_Part", bound=FilePart)


def record_of(part: type[_Part], found: Mapping[Any, Any], where: str, docs: str, missing: Mapping[str, str]) -> _Part:
    """`found` as a record, as typed: what follows from its keys is not worked out yet.

    Raises UserError that begins with `where` and names the key; `docs` says where keys are explained, `missing` what to
    write for a key that is not there.
    """
    try:
        return cast(_Part, _adapter(part).validate_python(found))  # type: ignore[arg-type]
    except ValidationError as error:
        # Without a cause: its text would hold what was typed, which may be a secret.
        raise UserError(f"{where}: {_complaint(error, part, docs, missing)}") from None


@cache
def _adapter(part: type[FilePart]) -> TypeAdapter[Any]:
    return TypeAdapter(part)


def _complaint(error: ValidationError, part: type[FilePart], docs: str, missing: Mapping[str, str]) -> str:
    """The first complaint, as one line; a wrong key gets the nearest right one."""
    details = error.errors(include_url=False)
    # A key that is missing is often there, misspelt.
    detail = next((each for each in details if each["type"] == "unexpected_keyword_argument"), details[0])
    parts = [str(each) for each in detail["loc"]]
    key = one_line(".".join(parts))
    if detail["type"] == "unexpected_keyword_argument":
        return no_such_key(key, keys_of(_part_at(part, parts[:-1])), docs)
    if detail["type"] == "missing":
        return missing_key(key, docs, missing.get(parts[-1], "add it"))
    if detail["type"] == HIDDEN:
        return f"{key}: it must be {detail['msg']}"
    if detail["type"] == "dataclass_type":
        there = ", ".join([*keys_of(_part_at(part, parts))][:4])
        return f"{key}: found {shown(detail['input'])}, it must be a mapping with keys such as {there}; {docs}"
    right = right_of(detail["msg"])
    if isinstance(detail["input"], dict | list) and detail["input"]:
        return f"{key}: it must give {right}" if key else f"it must give {right}"
    return wrong_value(key, detail["input"], right)


def _part_at(part: type[FilePart], parts: list[str]) -> type[FilePart]:
    """The record that stands at `parts`, or around it."""
    for key in parts:
        name = keys_of(part).get(key)
        if name is not None:
            part = _part_in(_hints(part)[name]) or part  # type: ignore[arg-type]
    return part


@cache
def _hints(part: type[FilePart]) -> dict[str, Any]:
    return get_type_hints(part, include_extras=True)


def _part_in(annotation: Any) -> type[FilePart] | None:
    """The record inside `X`, `X | None`, `tuple[X, ...]` and the like, or that stands in the file for it."""
    if isinstance(annotation, type) and issubclass(annotation, FilePart):
        return annotation
    said = (*get_args(annotation), *(getattr(each, "part", None) for each in getattr(annotation, "__metadata__", ())))
    return next((part for each in said if (part := _part_in(each))), None)


def parts_in(part: type[FilePart]) -> set[type[FilePart]]:
    """`part` and every record inside it."""
    inner = (_part_in(_hints(part)[name]) for name in keys_of(part).values())  # type: ignore[arg-type]
    return {part}.union(*(parts_in(each) for each in inner if each is not None))
