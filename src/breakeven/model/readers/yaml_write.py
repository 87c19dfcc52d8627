"""A model as the YAML file that describes it: `read_yaml` makes the same model of it again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from enum import StrEnum

import yaml

from breakeven.model.architecture import Gqa, Indexer, Layer, Mixer, ModelSpec, MoeFfn, Norms
from breakeven.model.readers.yaml_parts import MIXERS, key_of, keys_of
from breakeven.model.readers.yaml_rest import rest_of

Keys = dict[str, object]

_FOLLOWS = {
    "kv_heads",
    "head_dim",
    "shared_width",
    "kda_heads",
    "kda_head_dim",
    "lightning_heads",
    "lightning_kv_heads",
    "lightning_head_dim",
    "mamba_heads",
    "mamba_head_dim",
    "mamba_state",
    "mamba_inner",
    "mamba_dt_rank",
}
"""Keys that follow from others where they are not written, so they always are."""


def to_yaml(spec: ModelSpec) -> str:
    """The text of a model file. Tensors of a file that the model was read from are not part of a description."""
    drafts = spec.mtp.layers if spec.mtp else ()
    kinds = {layer: _keys(layer) for layer in (*spec.layers, *drafts)}
    alike = {key for keys in kinds.values() for key in keys if _agree(key, list(kinds.values()))}
    shared = {key: keys[key] for keys in kinds.values() for key in keys if key in alike}
    named = _names(list(kinds))
    usual = _defaults(kinds)

    def told(keys: Keys) -> Keys:
        return {key: _plain(value) for key, value in keys.items() if key not in usual or usual[key] != value}

    # What all layers have is said once. A default that others override at the top must be said.
    own = {named[layer]: {k: v for k, v in keys.items() if k not in alike} for layer, keys in kinds.items()}
    content: Keys = rest_of(spec) | told(shared)
    if len(kinds) == 1 and not drafts:
        content["n_layers"] = len(spec.layers)
    else:
        content["kinds"] = {name: told(keys) for name, keys in own.items()}
        content["layers"] = _runs([named[layer] for layer in spec.layers])
    if spec.mtp is not None:
        tables = {key: True for key in ("embedding", "head") if getattr(spec.mtp, key)}
        content["mtp"] = {"layers": _runs([named[layer] for layer in drafts]), **tables}
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _agree(key: str, kinds: Sequence[Keys]) -> bool:
    """Whether a key may be said once for all: every layer that has it gives it one value."""
    values = [keys[key] for keys in kinds if key in keys]
    return all(value == values[0] for value in values) and (
        key not in ("attention", "ffn") or len(values) == len(kinds)
    )


def _keys(layer: Layer) -> Keys:
    """All keys of a layer, defaults too; where two mixers would share one, each has its own beside its name."""
    words = [next(word for word, kind in MIXERS.items() if kind is type(mixer)) for mixer in layer.mixers]
    parts = [keys_of(mixer) for mixer in layer.mixers]
    clash = {key for i, keys in enumerate(parts) for key in keys if any(key in other for other in parts[:i])}
    named = [
        {"kind": word, **{key: _plain(keys[key]) for key in keys if key in clash}} if clash & keys.keys() else word
        for word, keys in zip(words, parts, strict=True)
    ]
    found: Keys = {"attention": (named[0] if isinstance(named[0], str) else named) if len(named) == 1 else named}
    if not named:
        found = {"attention": "none"}
    for keys in parts:
        found |= {key: value for key, value in keys.items() if key not in clash}
    found["ffn"] = "none" if layer.ffn is None else "experts" if isinstance(layer.ffn, MoeFfn) else "dense"
    if layer.ffn is not None:
        found |= keys_of(layer.ffn)
    return found | {"norms": layer.norms}


def _defaults(layers: Iterable[Layer]) -> Keys:
    """What a key means when it is not written. A key of several parts with several defaults is always written."""
    parts = {type(part) for layer in layers for part in (*layer.mixers, layer.ffn) if part is not None}
    found: Keys = {"norms": Norms.BEFORE}
    several = set(_FOLLOWS)
    for kind in parts:
        for field in fields(kind):
            key = key_of(kind, field.name)
            if field.default is MISSING or found.get(key, field.default) != field.default:
                several.add(key)
            else:
                found[key] = field.default
    return {key: value for key, value in found.items() if key not in several}


def _names(layers: Sequence[Layer]) -> dict[Layer, str]:
    """A name for each kind of layer, from its mixers and, where these do not tell, its feed-forward."""
    found: dict[Layer, str] = {}
    for layer in layers:
        mixer = "-".join(_word(each) for each in layer.mixers)
        ffn = "experts" if isinstance(layer.ffn, MoeFfn) else "dense" if layer.ffn else ""
        name = "-".join(part for part in (mixer, ffn) if part)
        taken = sum(known == name or known.startswith(f"{name}-no") for known in found.values())
        found[layer] = name if not taken else f"{name}-no{taken + 1}"
    return found


def _word(mixer: Mixer) -> str:
    if isinstance(mixer, Gqa):
        return "full" if mixer.window is None else "sliding"
    return next(word for word, kind in MIXERS.items() if kind is type(mixer))


def _runs(names: Sequence[str]) -> list[object]:
    """The order of layers, in runs and in cycles of up to 16."""
    found: list[object] = []
    at = 0
    while at < len(names):
        best, covered = 1, 1
        for period in range(1, 17):
            cycle = names[at : at + period]
            times = 1
            while names[at + times * period : at + (times + 1) * period] == cycle:
                times += 1
            if times > 1 and times * period > covered:
                best, covered = period, times * period
        cycle, times = list(names[at : at + best]), covered // best
        one = {"kind": cycle[0]} if best == 1 else {"pattern": cycle}
        found.append(cycle[0] if covered == 1 else {"repeat": times, **one})
        at += covered
    return found


def _plain(value: object) -> object:
    if isinstance(value, Indexer):
        return {f.name: v for f in fields(value) if (v := getattr(value, f.name)) != f.default}
    return str(value) if isinstance(value, StrEnum) else "none" if value is None else value


class _Dumper(yaml.SafeDumper):
    """Blocks at the top, one line for what stands inside."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _mapping(dumper: _Dumper, data: dict[str, object]) -> yaml.MappingNode:
    nests = any(isinstance(value, dict | list) and key != "pattern" for key, value in data.items())
    flat = "name" not in data and not nests
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=flat)


def _list(dumper: _Dumper, data: list[object]) -> yaml.SequenceNode:
    flat = all(isinstance(each, str | int) for each in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


_Dumper.add_representer(dict, _mapping)
_Dumper.add_representer(list, _list)
