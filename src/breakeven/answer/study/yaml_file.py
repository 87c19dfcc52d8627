"""What every YAML file that people type shares: how it is read, and how a wrong key or value is told."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from breakeven.errors import UserError

MOST_BYTES = 1_000_000
"""Such a file is typed by hand; a larger one is something else."""


HIDDEN = "hidden"
"""Type of a complaint about what may be a secret: the value is not repeated."""
STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True, populate_by_name=False)
"""Of every mapping in such a file: a key that it does not know is refused."""


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice, of which the usual loader keeps the last without a word."""


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = str(key_node.value)
        if key_node.tag != "tag:yaml.org,2002:merge" and key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is written twice", key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_mapping(path: Path, *, too_large: str, give: str, keys: str) -> dict[Any, Any]:
    """The top of the file, a mapping.

    `too_large`: what to do about a file that nobody typed; `give`: what to give instead of a file that cannot be read;
    `keys`: which keys it must hold, and where they are explained. Raises UserError naming the file.
    """
    try:
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: is {path.stat().st_size / 1e6:.0f} MB; {too_large}")
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise UserError(f"{path}: cannot be read ({why}); {give}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds {shown(found)}, it must hold {keys}")
    return found


def complaint(error: ValidationError, form: type[BaseModel], docs: str, missing: Mapping[str, str]) -> str:
    """The first complaint, as one line; a wrong key gets the nearest right one.

    `docs` says where the keys are explained, `missing` what to write for a key that is not there.
    """
    details = error.errors(include_url=False)
    # A key that is missing is often there, misspelt.
    detail = next((each for each in details if each["type"] == "extra_forbidden"), details[0])
    parts = [str(part) for part in detail["loc"]]
    key = ".".join(parts)
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(parts[-1], _form_at(form, parts[:-1]).model_fields, n=1)
        return f"{key}: no such key{f', did you mean {near[0]}?' if near else ''}; {docs}"
    if detail["type"] == "missing":
        return f"{key}: missing; {missing.get(parts[-1], 'add it')}; {docs}"
    if detail["type"] == HIDDEN:
        return f"{key}: it must be {detail['msg']}"
    if detail["type"] == "model_type":
        there = ", ".join([*_form_at(form, parts).model_fields][:4])
        return f"{key}: found {shown(detail['input'])}, it must be a mapping with keys such as {there}; {docs}"
    right = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if isinstance(detail["input"], dict | list) and detail["input"]:
        return f"{key}: it must give {right}" if key else f"it must give {right}"
    return f"{key}: found {shown(detail['input'])}, it must be {right}"


def _form_at(form: type[BaseModel], parts: list[str]) -> type[BaseModel]:
    """The form that stands at `parts`, or around it."""
    for part in parts:
        field = form.model_fields.get(part)
        if field is not None:
            form = _form_in(field.annotation) or form
    return form


def _form_in(annotation: Any) -> type[BaseModel] | None:
    """The form inside `X`, `X | None`, `list[X]` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((form for each in get_args(annotation) if (form := _form_in(each))), None)


def forms_in(form: type[BaseModel]) -> set[type[BaseModel]]:
    """`form` and every form inside it."""
    inner = (_form_in(field.annotation) for field in form.model_fields.values())
    return {form}.union(*(forms_in(each) for each in inner if each is not None))


def shown(value: object) -> str:
    """`value` as an error shows it, cut to 60 letters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
