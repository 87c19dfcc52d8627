"""A model described by hand, or as a change to a known one: "what if it had 64 experts?"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from breakeven.errors import UserError
from breakeven.model.architecture import (
    DenseFfn,
    FeedForward,
    Gqa,
    Indexer,
    Layer,
    Mixer,
    Mla,
    ModelSpec,
    MoeFfn,
    Norms,
    OutputGate,
)
from breakeven.model.arithmetic import check_count
from breakeven.model.layouts.registry import FAMILIES, why_not_written
from breakeven.model.readers.bounded import MOST_LAYERS, shown
from breakeven.model.readers.yaml_form import DOCS, IndexerKeys, LayerRun, ModelFile, read_form
from breakeven.model.readers.yaml_parts import MIXERS, NAMES, OPTIONAL, key_of, keys_of, usual
from breakeven.model.readers.yaml_rest import check, with_rest

_Part = TypeVar("_Part", bound=Mixer | FeedForward | Indexer)
Keys = Mapping[str, object]

_READING: ContextVar[tuple[Path, ...]] = ContextVar("files being read, each `from` the next", default=())
_LONGEST = 20


def read_yaml(path: Path, resolve: Callable[[str], ModelSpec]) -> ModelSpec:
    """The model that `path` describes. `resolve` finds the model named by `from`.

    Raises UserError naming file, key, what was found and what would be right.
    """
    form = read_form(path)
    if form.family is not None and form.family not in FAMILIES:
        raise UserError(f"{path}: family: found {shown(form.family)}, it must be one of {', '.join(sorted(FAMILIES))}")
    spec = _alone(path, form) if form.base is None else _changed(path, form, _base(path, form.base, resolve))
    check(path, spec)
    check_count(spec, spec.published_total_params)
    return spec


def _base(path: Path, name: str, resolve: Callable[[str], ModelSpec]) -> ModelSpec:
    here, before = path.resolve(), _READING.get()
    if here in before:
        raise UserError(f"{path}: from: found {shown(name)}, which leads back to this file; name a model that does not")
    if len(before) > _LONGEST:
        raise UserError(f"{path}: from: the {len(before)}th file in a row that starts from another; start nearer")
    token = _READING.set((*before, here))
    try:
        return resolve(name)
    finally:
        _READING.reset(token)


class _Entry(NamedTuple):
    """What the file says of one layer beside the keys that hold for all, and where it says so."""

    where: str
    keys: Keys


def _alone(path: Path, form: ModelFile) -> ModelSpec:
    missing = [key for key in ("hidden", "vocab", "context") if getattr(form, key) is None]
    if form.n_layers is None and form.layers is None:
        missing.append("n_layers (or layers)")
    if missing:
        raise UserError(f"{path}: {missing[0]}: missing; add it, or start `from` a model that has it; {DOCS}")
    hidden, shared = form.hidden or 0, form.given()
    layers = tuple(_layer(each.where, {**shared, **each.keys}, hidden) for each in _entries(path, form, form.n_layers))
    spec = ModelSpec(
        name=form.name or path.stem,
        family=form.family or "custom",
        hidden=hidden,
        vocab=form.vocab or 0,
        context=form.context or 0,
        tied_embeddings=bool(form.tied_embeddings),
        layers=layers,
        source=form.source or str(path),
    )
    return with_rest(path, form, spec, lambda runs: _drafts(path, form, spec, runs))


def _drafts(path: Path, form: ModelFile, spec: ModelSpec, runs: list[LayerRun] | int) -> tuple[Layer, ...]:
    """The layers of drafting blocks: so many as the model's last, or as described."""
    if isinstance(runs, int):
        return spec.layers[-1:] * runs
    seen = _seen(spec.layers) if form.base else {}
    entries = _expanded(path, form, "mtp.layers", runs)
    return tuple(_layer(each.where, {**form.given(), **each.keys}, spec.hidden, seen) for each in entries)


def _entries(path: Path, form: ModelFile, depth: int | None) -> list[_Entry]:
    """What is said of each layer: by `layers` or `pattern`, then `every`, `first` and `last` over that."""
    if form.layers is not None and form.pattern is not None:
        raise UserError(f"{path}: pattern: stands beside layers; drop one of them")
    if form.layers is not None:
        entries = _expanded(path, form, "layers", form.layers)
        if form.n_layers not in (None, len(entries)):
            raise UserError(
                f"{path}: n_layers: found {form.n_layers}, but layers add up to {len(entries)}; drop n_layers"
            )
    else:
        cycle = [_Entry(str(path), {})]
        if form.pattern is not None:
            cycle = _expanded(path, form, "pattern", form.pattern)
        entries = [cycle[i % len(cycle)] for i in range(depth or 0)]
    count = len(entries)
    for key, said in (("every", form.every), ("first", form.first), ("last", form.last)):
        for number, run in said.items():
            if number > count:
                raise UserError(f"{path}: {key}.{number}: the model has {count} layers; give a smaller number")
            found = _expanded(path, form, f"{key}.{number}", [run])
            if len(found) != 1:
                raise UserError(f"{path}: {key}.{number}: it must be one layer, without repeat or pattern")
            where, keys = found[0]
            at = {"first": range(number), "last": range(count - number, count)}.get(
                key, range(number - 1, count, number)
            )
            for i in at:
                entries[i] = _Entry(where, {**entries[i].keys, **keys})
    return entries


def _expanded(path: Path, form: ModelFile, key: str, runs: Sequence[LayerRun]) -> list[_Entry]:
    """One entry a layer of runs, groups repeated. Raises UserError past what any model has."""
    found: list[_Entry] = []
    for i, run in enumerate(runs):
        where = f"{path}: {key}.{i}" if len(runs) > 1 or key in ("layers", "pattern") else f"{path}: {key}"
        keys = {**_kind(where, form, run.kind), **run.given()}
        group = [_Entry(where, keys)]
        if run.pattern is not None:
            inner = _expanded(path, form, f"{key}.{i}.pattern", run.pattern)
            group = [_Entry(each.where, {**keys, **each.keys}) for each in inner]
        if len(found) + len(group) * run.repeat > MOST_LAYERS:
            raise UserError(f"{where}: repeat: makes more than {MOST_LAYERS:,} layers; no model has so many")
        found += group * run.repeat
    return found


def _kind(where: str, form: ModelFile, name: str | None) -> Keys:
    """The keys that a name stands for: one of the file's `kinds`, or a kind of attention."""
    if name is None:
        return {}
    if name in form.kinds:
        return form.kinds[name].given()
    if name not in MIXERS:
        known = ", ".join([*form.kinds, *MIXERS])
        raise UserError(f"{where}: found {shown(name)}, it must be a name from `kinds` or one of {known}")
    return {"attention": ((name, {}),)}


def _layer(where: str, keys: Keys, hidden: int, seen: Mapping[str, Keys] = {}) -> Layer:
    """A layer from its keys; `seen`: those of a known model's parts, which fill what is not said."""
    word = "mla" if "kv_lora_rank" in keys else "gqa"
    mixers = _mixers(where, {"attention": ((word, {}),), **keys}, hidden, seen)
    ffn = _ffn(where, keys, seen)
    if not mixers and ffn is None:
        raise UserError(f"{where}: attention and ffn: both are none, so the layer is empty; drop the layer")
    norms = keys.get("norms")
    return Layer(mixers, ffn, norms if isinstance(norms, Norms) else Norms.BEFORE)


def _mixers(where: str, keys: Keys, hidden: int, seen: Mapping[str, Keys]) -> tuple[Mixer, ...]:
    words: Any = keys["attention"]
    return tuple(_mixer(where, word, {**seen.get(word, {}), **keys, **own}, hidden) for word, own in words)


def _mixer(where: str, word: str, given: Keys, hidden: int) -> Mixer:
    kind, keys = MIXERS[word], dict(given)
    if word == "full":
        keys["window"] = 0
    elif word == "sliding" and not keys.get("window"):
        raise UserError(f"{where}: window: missing, a sliding layer needs it; {DOCS}")
    if kind is Mla and keys.get("output_gate") is OutputGate.TWIN:
        keys["output_gate"] = OutputGate.FULL  # queries pass a low rank, so the gate has a matrix of its own
    for key, value in usual(kind, keys, hidden):
        if value is not None:
            keys.setdefault(key, value)
    return _part(where, kind, keys)


def _ffn(where: str, keys: Keys, seen: Mapping[str, Keys]) -> FeedForward | None:
    word = keys.get("ffn", "experts" if keys.get("n_experts") else "dense")
    if word == "none":
        return None
    if word == "dense":
        return _part(where, DenseFfn, {**seen.get("dense", {}), **keys})
    keys = {**seen.get("experts", {}), **keys}
    # Shared experts are as wide as the routed unless `shared_width` says otherwise.
    n_shared, width = keys.get("n_shared_experts", 0), keys.get("expert_width", 0)
    shared_width = n_shared * width if isinstance(n_shared, int) and isinstance(width, int) else 0
    return _part(where, MoeFfn, {"shared_width": shared_width, **keys})


def _part(where: str, kind: type[_Part], keys: Keys) -> _Part:
    """One part of a layer from the keys it has fields for; raises UserError naming the first it lacks."""
    values: dict[str, Any] = {}
    for field in fields(kind):
        key = key_of(kind, field.name)
        if key in keys:
            values[field.name] = _value(where, field.name, keys[key], None)
        elif field.default is MISSING:
            raise UserError(f"{where}: {key}: missing, {NAMES[kind]} needs it; {DOCS}")
    return kind(**values)


def _value(where: str, field: str, value: object, before: object) -> object:
    """What a field gets from what the form holds; an indexer keeps of `before` what is not said."""
    if isinstance(value, IndexerKeys):
        own = value.model_dump(exclude_none=True)
        known = {each.name: getattr(before, each.name) for each in fields(Indexer)} if before else {}
        return _part(f"{where}: indexer", Indexer, {**known, **own}) if own else None
    return None if field in OPTIONAL and value == 0 else value


def _changed(path: Path, form: ModelFile, base: ModelSpec) -> ModelSpec:
    given, seen = form.given(), _seen(base.layers)
    hidden = form.hidden or base.hidden
    layers = _as_long(path, form, base)
    family = form.family or base.family
    shared = dict(given)
    if given.get("n_experts") == 0:
        shared.pop("n_experts")
        width = {"ffn_width": form.ffn_width} if form.ffn_width else {}
        layers = tuple(
            replace(layer, ffn=_part(str(path), DenseFfn, width)) if isinstance(layer.ffn, MoeFfn) else layer
            for layer in layers
        )
        family = form.family or FAMILIES[base.family].dense_as or "custom"
    elif given.get("n_experts") and not base.is_moe and form.ffn is None:
        experts = _ffn(str(path), given, {})
        layers = tuple(layer if layer.ffn is None else replace(layer, ffn=experts) for layer in layers)
        family = form.family or FAMILIES[base.family].routed_as or "custom"
    kinds: dict[str, object] = {key: shared.pop(key) for key in ("attention", "ffn") if key in shared}
    for key, value in shared.items():
        # Where some layers slide, a new window is theirs; the others stay full.
        spare = key == "window" and any(_slides(layer) for layer in layers)
        layers = tuple(
            layer if spare and not _slides(layer) else _set(str(path), layer, key, value) for layer in layers
        )
    entries = [_Entry(each.where, {**kinds, **each.keys}) for each in _entries(path, form, len(layers))]
    layers = tuple(_revised(each, layer, given, hidden, seen) for each, layer in zip(entries, layers, strict=True))
    for key in shared:
        if not any(_takes(layer, key) for layer in layers):
            raise UserError(f"{path}: {key}: {base.name} has no layer with it, so it changes nothing; drop it")
    changed = replace(
        base,
        name=form.name or path.stem,
        family=family,
        layers=layers,
        source=form.source or f"{path}, from {base.name} ({base.source})",
        published_total_params=None,
        stored=None,
    )
    changed = with_rest(path, form, changed, lambda runs: _drafts(path, form, changed, runs))
    # What llama.cpp's code of a family does with layers that none of its models has is not known.
    strange = {_kind_of(layer) for layer in layers} - {_kind_of(layer) for layer in base.layers}
    if form.family is None and any(each.keys for each in entries) and (strange or why_not_written(changed)):
        changed = replace(changed, family="custom")
    return changed


def _kind_of(layer: Layer) -> tuple[object, ...]:
    ffn = layer.ffn
    return (*map(type, layer.mixers), type(ffn), ffn is None or ffn.gated, layer.norms)


def _as_long(path: Path, form: ModelFile, base: ModelSpec) -> tuple[Layer, ...]:
    """The first `n_layers` of the base; more than it has only when they are all alike, or are described."""
    wanted = form.n_layers or len(base.layers)
    if form.layers is not None:
        wanted = len(_expanded(path, form, "layers", form.layers))
    if wanted > len(base.layers) and len(set(base.layers)) > 1 and not (form.layers or form.pattern):
        raise UserError(
            f"{path}: n_layers: found {wanted}, {base.name} has {len(base.layers)} of several kinds, so the further "
            "ones are not known; describe them with `pattern` or `layers`"
        )
    return (base.layers + base.layers[-1:] * (wanted - len(base.layers)))[:wanted]


def _seen(layers: Sequence[Layer]) -> dict[str, Keys]:
    """The keys of the first part of each kind, by the kind's words."""
    found: dict[str, Keys] = {}
    for layer in layers:
        for mixer in layer.mixers:
            keys = keys_of(mixer)
            for word in (word for word, kind in MIXERS.items() if kind is type(mixer)):
                found.setdefault(word, keys)
            if isinstance(mixer, Gqa):
                own = "full" if mixer.window is None else "sliding"
                if bool(found[own].get("window")) != (own == "sliding"):
                    found[own] = keys
        if layer.ffn is not None:
            found.setdefault("experts" if isinstance(layer.ffn, MoeFfn) else "dense", keys_of(layer.ffn))
    return found


def _revised(entry: _Entry, layer: Layer, given: Keys, hidden: int, seen: Mapping[str, Keys]) -> Layer:
    """`layer` with what an entry says of it: parts of another kind, or other sizes. `given`: what holds for all."""
    where, keys = entry
    if "attention" in keys:
        layer = replace(layer, mixers=_mixers(where, {**given, **keys}, hidden, seen))
    if "ffn" in keys or (keys.get("n_experts") and not isinstance(layer.ffn, MoeFfn)):
        layer = replace(layer, ffn=_ffn(where, {**given, **keys}, seen))
    for key, value in keys.items():
        if key in ("attention", "ffn"):
            continue
        if not _takes(layer, key):
            raise UserError(f"{where}: {key}: the layer has no part with it, so it changes nothing; drop it")
        layer = _set(where, layer, key, value)
    if not layer.mixers and layer.ffn is None:
        raise UserError(f"{where}: attention and ffn: both are none, so the layer is empty; drop the layer")
    return layer


def _slides(layer: Layer) -> bool:
    return any(isinstance(mixer, Gqa | Mla) and mixer.window is not None for mixer in layer.mixers)


def _takes(layer: Layer, key: str) -> bool:
    return key == "norms" or any(_field(part, key) for part in (*layer.mixers, layer.ffn))


def _field(part: Mixer | FeedForward | None, key: str) -> str | None:
    if part is None:
        return None
    return next((f.name for f in fields(part) if key_of(type(part), f.name) == key), None)


def _set(where: str, layer: Layer, key: str, value: object) -> Layer:
    if isinstance(value, Norms):
        return replace(layer, norms=value)
    return replace(
        layer,
        mixers=tuple(_with(where, mixer, key, value) for mixer in layer.mixers),
        ffn=layer.ffn and _with(where, layer.ffn, key, value),
    )


def _with(where: str, part: _Part, key: str, value: object) -> _Part:
    name = _field(part, key)  # type: ignore[arg-type]
    if name is None:
        return part
    if isinstance(part, MoeFfn) and key == "n_shared_experts" and isinstance(value, int):
        # What is computed is their width together, which a later `shared_width` may say.
        each = part.shared_width // part.n_shared_experts if part.n_shared_experts else part.expert_width
        part = replace(part, shared_width=value * each)
    return replace(part, **{name: _value(where, name, value, getattr(part, name))})  # type: ignore[arg-type]
