"""Under which licence the weights of a catalogued model were published."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import msgspec

from breakeven.errors import UserError
from breakeven.spec.catalogue import find


@dataclass(frozen=True, slots=True)
class Licence:
    """`id`: SPDX's name in lower case, or the model card's own; `source`: the page that says so."""

    id: str
    source: str


def licence_of(model: str) -> Licence | None:
    """The licence of the catalogued model of this name or hub id; None where none is known."""
    try:
        entry = find(model)
    except UserError:
        return None
    return _licences().get(entry.name)


@lru_cache(maxsize=1)
def _licences() -> dict[str, Licence]:
    file = resources.files("breakeven.spec").joinpath("data", "licences.json")
    return msgspec.json.decode(file.read_bytes(), type=_File).licences


class _File(msgspec.Struct):
    about: str
    licences: dict[str, Licence]
