"""The models Breakeven knows by name: package data, each with its source, each checked against its published total."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from breakeven.errors import UserError
from breakeven.spec.families.facts import spec_from_facts
from breakeven.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Entry:
    """One catalogued model: its short name, its hub id, and the facts as published."""

    name: str
    hub_id: str
    facts: Mapping[str, object]


def names() -> list[str]:
    """Short names of all models, in alphabetical order."""
    return [entry.name for entry in entries()]


def lookup(name: str) -> ModelSpec:
    """The model of this short name, hub id, or hub id without its owner, in any case.

    Raises UserError that offers the nearest names.
    """
    return _spec(find(name).name)


def find(name: str) -> Entry:
    """The catalogue's entry of this name, matched as in `lookup`; raises UserError that offers the nearest names."""
    asked = name.strip().lower()
    for entry in entries():
        if asked in _keys(entry):
            return entry
    raise UserError(
        f"no model is called {name!r}; nearest: {', '.join(_nearest(asked))} (`breakeven models` lists all)"
    )


@lru_cache(maxsize=1)
def entries() -> tuple[Entry, ...]:
    """All of the catalogue, by short name."""
    text = resources.files("breakeven.spec").joinpath("data", "models.json").read_text(encoding="utf-8")
    return tuple(Entry(short, str(facts["name"]), facts) for short, facts in json.loads(text)["models"].items())


@lru_cache(maxsize=128)
def _spec(short: str) -> ModelSpec:
    return spec_from_facts(next(entry.facts for entry in entries() if entry.name == short))


def _keys(entry: Entry) -> tuple[str, str, str]:
    hub_id = entry.hub_id.lower()
    return entry.name, hub_id, hub_id.rpartition("/")[2]


def _nearest(asked: str) -> list[str]:
    owners = {key: entry.name for entry in entries() for key in _keys(entry)}
    # Three keys a model, so three times as many matches as names wanted.
    found = difflib.get_close_matches(asked, owners, n=9, cutoff=0.3) or sorted(owners)
    return list(dict.fromkeys(owners[key] for key in found))[:3]
