"""The models Breakeven knows by name: package data, each with source and licence, checked against its published total.

A row holds the keys of the published config.json, read as such a file is, and what its publisher says of the model.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Literal

import msgspec

from breakeven.errors import UserError
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import active_params, total_params
from breakeven.model.layouts.derive import spec_from_config
from breakeven.model.quality.scores import DENSE_EQUIVALENT

Kind = Literal["dense", "moe", "hybrid-dense", "hybrid-moe"]


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row: what was published of a model.

    `hub_id`: the id whose files these are. `also`: further names of the same shapes, such as the base model's id.
    `base`: those of both that are known to be base models; of an id that is not there nothing is known.
    `kind`: hybrid where some layers mix tokens without softmax attention. `date`: of creation on the hub. `towers`:
    for other senses, published beside the language model and not counted. `total`: parameters of the language model,
    drafting blocks and towers apart (docs/models.md says which figure). `source`: where the configuration comes from.
    """

    hub_id: str
    also: tuple[str, ...] = ()
    base: tuple[str, ...] = ()
    kind: Kind
    date: str | None = None
    licence: str | None = None
    licence_source: str | None = None
    languages: tuple[str, ...] = ()
    towers: tuple[str, ...] = ()
    total: int | None = None
    total_source: str | None = None
    active: int | None = None
    active_source: str | None = None
    source: str
    note: str | None = None
    config: dict[str, object]

    @property
    def is_moe(self) -> bool:
        """Whether it routes."""
        return self.kind.endswith("moe")

    @property
    def answers(self) -> str:
        """Whose weights are asked: of a model's checkpoints one that was taught to answer, where there is one."""
        taught = [each for each in (self.hub_id, *self.also) if "/" in each and each not in self.base]
        named = (each for each in taught if re.search(r"instruct|chat|-it$", each, re.IGNORECASE))
        return next(named, taught[0] if taught else self.hub_id)


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One catalogued model: its short name, and the facts as published."""

    name: str
    facts: ModelFacts

    @property
    def hub_id(self) -> str:
        """The id whose files were described."""
        return self.facts.hub_id


class CatalogueFile(msgspec.Struct):
    """The data file."""

    about: str
    models: dict[str, ModelFacts]


def names() -> list[str]:
    """Short names of all models, in alphabetical order."""
    return [entry.name for entry in entries()]


def lookup(name: str) -> ModelSpec:
    """The model of this short name, hub id, or hub id without its owner, in any case.

    Raises UserError that offers the nearest names.
    """
    return _spec(find(name).name)


def find(name: str) -> CatalogueEntry:
    """The catalogue's entry of this name, matched as in `lookup`; raises UserError that offers the nearest names."""
    asked = name.strip().lower()
    if (found := _by_key().get(asked)) is not None:
        return found
    raise UserError(
        f"no model is called {name!r}; nearest: {', '.join(_nearest(asked))} (`breakeven models` lists all)"
    )


def matching(text: str) -> list[str]:
    """Short names of the models in whose names a part begins with each word of `text`, in any case and order."""
    words = [re.compile(rf"(?<![a-z0-9]){re.escape(word)}") for word in text.lower().split()]
    keys = {entry.name: " ".join(_keys(entry)) for entry in entries()} if words else {}
    return [name for name, key in keys.items() if all(word.search(key) for word in words)]


@lru_cache(maxsize=1)
def entries() -> tuple[CatalogueEntry, ...]:
    """All of the catalogue, by short name."""
    data = resources.files("breakeven.model").joinpath("data", "models.json").read_bytes()
    models = msgspec.json.decode(data, type=CatalogueFile).models
    return tuple(CatalogueEntry(name, models[name]) for name in sorted(models))


@lru_cache(maxsize=2)
def by_size(*, moe: bool) -> tuple[tuple[int, str], ...]:
    """Parameters as published and short name of every model that routes, or of every other, the largest first."""
    alike = [entry for entry in entries() if entry.facts.is_moe == moe]
    return tuple(sorted(((total_of(entry), entry.name) for entry in alike), reverse=True))


@lru_cache(maxsize=256)
def _spec(short: str) -> ModelSpec:
    return spec_from_facts(next(entry.facts for entry in entries() if entry.name == short))


@lru_cache(maxsize=1)
def _by_key() -> Mapping[str, CatalogueEntry]:
    # A short name wins over another model's hub id without its owner.
    found = {key: entry for entry in entries() for key in _keys(entry)}
    return found | {entry.name: entry for entry in entries()}


def _keys(entry: CatalogueEntry) -> tuple[str, ...]:
    ids = [name.lower() for name in (entry.hub_id, *entry.facts.also)]
    return entry.name, *ids, *(each.rpartition("/")[2] for each in ids)


def _nearest(asked: str) -> list[str]:
    owners = {key: entry.name for key, entry in _by_key().items()}
    # Several keys a model, so several times as many matches as names wanted.
    found = difflib.get_close_matches(asked, owners, n=12, cutoff=0.3) or sorted(owners)
    return list(dict.fromkeys(owners[key] for key in found))[:3]


def spec_from_facts(facts: ModelFacts) -> ModelSpec:
    """The model of one row, with its published total when the row has one.

    Raises UserError for a configuration that cannot be read. Whether the count agrees with the published total is for
    `arithmetic.check_count` to say.
    """
    config = {key: unpacked(value) for key, value in facts.config.items()}
    return replace(spec_from_config(config, facts.hub_id, facts.source), published_total_params=facts.total)


def published_config(spec: ModelSpec) -> dict[str, object] | None:
    """The configuration of the catalogued model that `spec` is, as published; None for a model that is none of them."""
    entry = _by_key().get(spec.name.lower())
    if entry is None or _spec(entry.name) != spec:
        return None
    return {key: unpacked(value) for key, value in entry.facts.config.items()}


RUNS = frozenset({"length", "runs"})
"""The keys of a list in short: `runs` of `[times, value]`, over again until `length` values stand there."""


def unpacked(value: object) -> object:
    """A configuration's value with the lists that are written in short as they were published."""
    if isinstance(value, list):
        return [unpacked(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != RUNS:
        return {key: unpacked(each) for key, each in value.items()}
    once = [each for times, each in value["runs"] for _ in range(times)]
    return [unpacked(once[i % len(once)]) for i in range(value["length"])]


def packed(value: object) -> object:
    """The inverse of `unpacked`: lists of numbers or words written in short where half as many parts say it."""
    if isinstance(value, dict):
        return {key: packed(each) for key, each in value.items()}
    if not isinstance(value, list) or len(value) < 8 or not all(isinstance(v, int | float | str) for v in value):
        return value
    periods = (p for p in range(1, len(value)) if all(value[i] == value[i % p] for i in range(len(value))))
    runs: list[list[object]] = []
    for each in value[: next(periods, len(value))]:
        if runs and runs[-1][1] == each:
            runs[-1][0] = int(str(runs[-1][0])) + 1
        else:
            runs.append([1, each])
    return {"length": len(value), "runs": runs} if 2 * len(runs) < len(value) else value


@dataclass(frozen=True, slots=True)
class Licence:
    """`id`: SPDX's name in lower case, or the model card's own; `source`: the page that says so."""

    id: str
    source: str


def licence_of(model: str) -> Licence | None:
    """The licence of the catalogued model of this name or hub id; None where none is known."""
    entry = _by_key().get(model.strip().lower())
    if entry is None or entry.facts.licence is None:
        return None
    card = f"https://huggingface.co/{entry.hub_id}"
    return Licence(entry.facts.licence, entry.facts.licence_source or card)


def base_words(model: str) -> str | None:
    """What a person who serves `model` (short name or hub id) to people who chat has to know: that it is a base model.

    None for one that was taught to answer, and for one of which neither is known: beside the catalogue's `base` only a
    hub id says so that ends in -Base. Whether a base model has a chat template differs (Qwen's have one).
    """
    asked = model.strip()
    entry = _by_key().get(asked.lower())
    if entry is None:
        is_base, hub_id, taught = bool(re.fullmatch(r"[\w.-]+/[\w.-]+-base", asked, re.IGNORECASE)), asked, asked
    else:
        ids = [] if asked.lower() == entry.name else [entry.hub_id, *entry.facts.also]
        alike = (each for each in ids if asked.lower() in (each.lower(), each.lower().rpartition("/")[2]))
        hub_id, taught = next(alike, entry.hub_id), entry.facts.answers
        is_base = hub_id in entry.facts.base
    if not is_base:
        return None
    said = f"{hub_id} is a base model, which was not taught to chat and may have no chat template"
    return f"{said}; " + (f"take {taught}" if taught != hub_id else "no checkpoint of it that was is known here")


@dataclass(frozen=True, slots=True)
class Counterpart:
    """A model of the other kind to compare with, and why: how near it is in which size."""

    name: str
    why: str


_SERIES = re.compile(r"[a-z.]+(-[a-z]+)*?-?v?\d+(\.\d+)?(?![.\dbmtx])")
FAR = 2.0
"""Sizes further apart than this do not make a pair while another family has a nearer model."""


def counterparts(entry: CatalogueEntry) -> tuple[Counterpart, ...]:
    """For a MoE the dense models to compare it with, for a dense model the MoE: at most one by each size.

    The sizes: total parameters (as much memory), dense-equivalent ones, sqrt(total * active) times what `quality` found
    (as good, by size), and active ones (as fast, by size). The same family first, then the same owner, then any.
    """
    others = [other for other in entries() if other.facts.is_moe != entry.facts.is_moe]
    found: dict[str, Counterpart] = {}
    for why, size in (
        ("total parameters", total_of),
        ("dense-equivalent size", _equivalent),
        ("active parameters", _active),
    ):
        near = _near(entry, others, {other.name: size(other) for other in (entry, *others)})
        if near is not None:
            found.setdefault(near[0], Counterpart(near[0], f"{near[1]}, nearest in {why}"))
    return tuple(found.values())


def _near(entry: CatalogueEntry, others: list[CatalogueEntry], sizes: Mapping[str, float]) -> tuple[str, str] | None:
    def far(other: CatalogueEntry) -> float:
        return abs(math.log(sizes[other.name] / sizes[entry.name]))

    for kin, group in _kin(entry, others):
        # Of models as near as each other to 1 %, the one that sees what this one sees, then the plainest name.
        best = min(
            group,
            key=lambda other: (round(far(other), 2), other.facts.towers != entry.facts.towers, len(other.name)),
            default=None,
        )
        if best is not None and far(best) <= math.log(FAR):
            return best.name, kin
    return None


def _kin(entry: CatalogueEntry, others: list[CatalogueEntry]) -> Iterator[tuple[str, list[CatalogueEntry]]]:
    owner = entry.hub_id.partition("/")[0]
    yield "same family", [other for other in others if series(other.name) == series(entry.name)]
    yield "same owner", [other for other in others if other.hub_id.partition("/")[0] == owner]
    yield "other family", others


def series(name: str) -> str:
    """The family and generation in a short name: `qwen3.5` of `qwen3.5-35b-a3b`, `mixtral` of `mixtral-8x7b`."""
    found = _SERIES.match(name)
    return found[0] if found else re.split(r"-\d", name)[0]


def _active(entry: CatalogueEntry) -> float:
    facts = entry.facts
    if facts.active is None and facts.is_moe:
        return float(active_params(_spec(entry.name)))
    return float(facts.active or total_of(entry))


def _equivalent(entry: CatalogueEntry) -> float:
    total = float(total_of(entry))
    return DENSE_EQUIVALENT[1] * math.sqrt(total * _active(entry)) if entry.facts.is_moe else total


def total_of(entry: CatalogueEntry) -> int:
    """Parameters of the language model as published; as counted where no total was."""
    if entry.facts.total is not None:
        return entry.facts.total
    return total_params(_spec(entry.name))
