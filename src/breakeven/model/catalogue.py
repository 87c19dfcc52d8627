"""The models Breakeven knows by name: package data, each with source and licence, checked against its published total.

A row of the table holds published facts under keys of its own; it is turned into the configuration it was taken from
and read by its family, as a file would be.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources

import msgspec

from breakeven.errors import UserError
from breakeven.model.architecture import ModelSpec
from breakeven.model.layouts.derive import spec_from_config


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
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


def find(name: str) -> CatalogueEntry:
    """The catalogue's entry of this name, matched as in `lookup`; raises UserError that offers the nearest names."""
    asked = name.strip().lower()
    for entry in entries():
        if asked in _keys(entry):
            return entry
    raise UserError(
        f"no model is called {name!r}; nearest: {', '.join(_nearest(asked))} (`breakeven models` lists all)"
    )


@lru_cache(maxsize=1)
def entries() -> tuple[CatalogueEntry, ...]:
    """All of the catalogue, by short name."""
    text = resources.files("breakeven.model").joinpath("data", "models.json").read_text(encoding="utf-8")
    return tuple(
        CatalogueEntry(short, str(facts["name"]), facts) for short, facts in json.loads(text)["models"].items()
    )


@lru_cache(maxsize=128)
def _spec(short: str) -> ModelSpec:
    return spec_from_facts(next(entry.facts for entry in entries() if entry.name == short))


def _keys(entry: CatalogueEntry) -> tuple[str, str, str]:
    hub_id = entry.hub_id.lower()
    return entry.name, hub_id, hub_id.rpartition("/")[2]


def _nearest(asked: str) -> list[str]:
    owners = {key: entry.name for entry in entries() for key in _keys(entry)}
    # Three keys a model, so three times as many matches as names wanted.
    found = difflib.get_close_matches(asked, owners, n=9, cutoff=0.3) or sorted(owners)
    return list(dict.fromkeys(owners[key] for key in found))[:3]


_KEYS = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate": "intermediate_size",
    "vocab": "vocab_size",
    "tied_embeddings": "tie_word_embeddings",
    "context": "max_position_embeddings",
    "sliding_window": "sliding_window",
    "n_experts": "num_experts",
    "top_k": "num_experts_per_tok",
    "expert_intermediate": "moe_intermediate_size",
    "shared_expert_intermediate": "shared_expert_intermediate_size",
    "n_shared_experts": "n_shared_experts",
    "first_dense_layers": "first_k_dense_replace",
}
"""The table's key for each fact, and Hugging Face's."""

_SAME = (
    "model_type",
    "interleave_moe_layer_step",
    "intermediate_size_mlp",
    "decoder_sparse_step",
    "full_attention_interval",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "attn_output_gate",
    "num_global_key_value_heads",
    "global_head_dim",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
)
"""Keys the table takes over unchanged."""


def spec_from_facts(row: Mapping[str, object]) -> ModelSpec:
    """The model of one row, with its published total when the row has one.

    Raises UserError naming the fact that a row lacks. Whether the count agrees with the published total is for
    `arithmetic.check_count` to say.
    """
    name, source = str(row.get("name", "unnamed")), str(row.get("source", "facts"))
    config: dict[str, object] = {theirs: row[ours] for ours, theirs in _KEYS.items() if ours in row}
    config |= {key: row[key] for key in _SAME if key in row}
    if "first_dense_layers" in row:
        config["num_dense_layers"] = row["first_dense_layers"]
    if isinstance(row.get("layer_types"), Mapping):
        config["layer_types"] = _in_turn(row["layer_types"], name)  # type: ignore[arg-type]
    spec = spec_from_config(config, name, source)
    published = row.get("published_total_b")
    return replace(spec, published_total_params=round(published * 1e9) if isinstance(published, int | float) else None)


def _in_turn(counts: Mapping[str, int], name: str) -> list[str]:
    """Layers of two kinds when only their numbers are known: the rarer kind ends each run of the other.

    That is the released order of every family in the table but LFM2, whose six attention layers stand within one
    place of it.
    """
    if len(counts) == 1:
        return [kind for kind, count in counts.items() for _ in range(count)]
    if len(counts) != 2:
        raise UserError(f"{name}: layer_types counts {len(counts)} kinds, the table's form knows two")
    # Where both are equally many, the one that attends to everything comes second.
    rare, common = sorted(counts, key=lambda kind: (counts[kind], kind != "full_attention"))
    total = sum(counts.values())
    ends = {(i + 1) * total // counts[rare] - 1 for i in range(counts[rare])}
    return [rare if i in ends else common for i in range(total)]


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
    file = resources.files("breakeven.model").joinpath("data", "licences.json")
    return msgspec.json.decode(file.read_bytes(), type=_File).licences


class _File(msgspec.Struct):
    about: str
    licences: dict[str, Licence]
