"""A model described by hand, or as a change to a known one: "what if it had 64 experts?"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from breakeven.errors import UserError
from breakeven.model.architecture import (
    DenseFfn,
    FeedForward,
    Gqa,
    Layer,
    LinearAttention,
    Mixer,
    Mla,
    ModelSpec,
    MoeFfn,
    Norms,
    Rope,
    ShortConv,
)
from breakeven.model.arithmetic import check_count
from breakeven.model.layouts.registry import FAMILIES, why_not_written
from breakeven.model.readers.yaml_form import DOCS, ModelFile, read_form

_Part = TypeVar("_Part", bound=Mixer | FeedForward)

_ATTENTIONS: dict[str, type[Gqa] | type[Mla] | type[LinearAttention] | type[ShortConv]] = {
    "gqa": Gqa,
    "mla": Mla,
    "linear": LinearAttention,
    "conv": ShortConv,
}
_NAMES: dict[type, str] = {
    Gqa: "attention",
    Mla: "latent attention",
    LinearAttention: "linear attention",
    ShortConv: "a short convolution",
    DenseFfn: "a dense feed-forward",
    MoeFfn: "a layer with experts",
}
_KEYS = {"width": "ffn_width", "bias": "ffn_bias"}
"""Fields of a part whose key in the file is another."""


def read_yaml(path: Path, resolve: Callable[[str], ModelSpec]) -> ModelSpec:
    """The model that `path` describes. `resolve` finds the model named by `from`.

    Raises UserError naming file, key, what was found and what would be right.
    """
    form = read_form(path)
    if form.family is not None and form.family not in FAMILIES:
        raise UserError(f"{path}: family: found {form.family!r}, it must be one of {', '.join(sorted(FAMILIES))}")
    spec = _alone(path, form) if form.base is None else _changed(path, form, _base(path, form.base, resolve))
    _check(path, spec)
    check_count(spec, spec.published_total_params)
    return spec


def _base(path: Path, name: str, resolve: Callable[[str], ModelSpec]) -> ModelSpec:
    try:
        return resolve(name)
    except RecursionError:
        raise UserError(
            f"{path}: from: found {name!r}, which leads back to this file; name a model that does not"
        ) from None


def _alone(path: Path, form: ModelFile) -> ModelSpec:
    missing = [key for key in ("hidden", "vocab", "context") if getattr(form, key) is None]
    if form.n_layers is None and form.layers is None:
        missing.append("n_layers (or layers)")
    if missing:
        raise UserError(f"{path}: {missing[0]}: missing; add it, or start `from` a model that has it; {DOCS}")
    hidden, vocab, context = form.hidden or 0, form.vocab or 0, form.context or 0
    return _with_rest(
        form,
        ModelSpec(
            name=form.name or path.stem,
            family=form.family or "custom",
            hidden=hidden,
            vocab=vocab,
            context=context,
            tied_embeddings=bool(form.tied_embeddings),
            layers=_layers(path, form, hidden),
            source=form.source or str(path),
        ),
    )


def _layers(path: Path, form: ModelFile, hidden: int) -> tuple[Layer, ...]:
    shared = form.given()
    if form.layers is None:
        return (_layer(str(path), shared, hidden),) * (form.n_layers or 0)
    layers = tuple(
        layer
        for i, run in enumerate(form.layers)
        for layer in (_layer(f"{path}: layers.{i}", shared | run.given(), hidden),) * run.repeat
    )
    if form.n_layers not in (None, len(layers)):
        raise UserError(f"{path}: n_layers: found {form.n_layers}, but layers add up to {len(layers)}; drop n_layers")
    return layers


def _layer(where: str, keys: Mapping[str, object], hidden: int) -> Layer:
    keys = dict(keys)
    usual = "mla" if "kv_lora_rank" in keys else "gqa"
    kind = _ATTENTIONS[str(keys.get("attention", usual))]
    heads = keys.get("heads")
    if kind is Gqa and isinstance(heads, int):
        keys.setdefault("kv_heads", heads)
        if hidden % heads == 0:
            keys.setdefault("head_dim", hidden // heads)
    attention: Mixer = _part(where, kind, keys)
    ffn: FeedForward
    if keys.get("ffn", "experts" if keys.get("n_experts") else "dense") == "experts":
        ffn = _experts(where, keys)
    else:
        ffn = _part(where, DenseFfn, keys)
    return Layer((attention,), ffn, Norms.AROUND if keys.get("post_norms") else Norms.BEFORE)


def _experts(where: str, keys: Mapping[str, object]) -> MoeFfn:
    """Routed experts; shared ones are as wide as the routed unless `shared_width` says otherwise."""
    n_shared, width = keys.get("n_shared_experts", 0), keys.get("expert_width", 0)
    shared_width = n_shared * width if isinstance(n_shared, int) and isinstance(width, int) else 0
    return _part(where, MoeFfn, {"shared_width": shared_width, **keys})


def _part(where: str, kind: type[_Part], keys: Mapping[str, object]) -> _Part:
    """One part of a layer from the keys it has fields for; raises UserError naming the first it lacks."""
    values: dict[str, Any] = {}
    for field in fields(kind):
        key = _KEYS.get(field.name, field.name)
        if key in keys:
            values[field.name] = keys[key]
        elif field.default is MISSING:
            raise UserError(f"{where}: {key}: missing, {_NAMES[kind]} needs it; {DOCS}")
    return kind(**values)


def _changed(path: Path, form: ModelFile, base: ModelSpec) -> ModelSpec:
    for key in ("layers", "attention", "ffn"):
        if getattr(form, key) is not None:
            raise UserError(f"{path}: {key}: cannot be changed in a model taken `from` another; describe it whole")
    given, layers = form.given(), _cut(path, form, base)
    family = form.family or base.family
    n_experts = given.get("n_experts")
    if n_experts == 0:
        width = {"ffn_width": form.ffn_width} if form.ffn_width else {}
        layers = tuple(replace(layer, ffn=_part(str(path), DenseFfn, width)) for layer in layers)
        family = form.family or FAMILIES[base.family].dense_as or "custom"
        given = {key: value for key, value in given.items() if key not in ("n_experts", "ffn_width")}
    elif n_experts and not base.is_moe:
        layers = tuple(replace(layer, ffn=_experts(str(path), given)) for layer in layers)
        family = form.family or FAMILIES[base.family].routed_as or "custom"
    for key, value in given.items():
        if not any(_takes(layer, key) for layer in layers):
            raise UserError(f"{path}: {key}: {base.name} has no layer with it, so it changes nothing; drop it")
        # Where some layers slide, a new window is theirs; the others stay full.
        spare = key == "window" and any(_slides(layer) for layer in layers)
        layers = tuple(layer if spare and not _slides(layer) else _set(layer, key, value) for layer in layers)
    return _with_rest(
        form,
        replace(
            base,
            name=form.name or path.stem,
            family=family,
            layers=layers,
            source=form.source or f"{path}, from {base.name} ({base.source})",
            published_total_params=None,
        ),
    )


def _cut(path: Path, form: ModelFile, base: ModelSpec) -> tuple[Layer, ...]:
    """The first `n_layers` of the base; more than it has only when they are all alike."""
    wanted = form.n_layers or len(base.layers)
    if wanted > len(base.layers) and len(set(base.layers)) > 1:
        raise UserError(
            f"{path}: n_layers: found {wanted}, {base.name} has {len(base.layers)} of several kinds, so the further "
            "ones are not known; describe the layers whole"
        )
    return (base.layers + base.layers[-1:] * (wanted - len(base.layers)))[:wanted]


def _slides(layer: Layer) -> bool:
    return isinstance(layer.mixer, Gqa) and layer.mixer.window is not None


def _takes(layer: Layer, key: str) -> bool:
    return key == "post_norms" or any(_field(part, key) for part in (*layer.mixers, layer.ffn))


def _field(part: Mixer | FeedForward | None, key: str) -> str | None:
    if part is None:
        return None
    return next((f.name for f in fields(part) if _KEYS.get(f.name, f.name) == key), None)


def _set(layer: Layer, key: str, value: object) -> Layer:
    if key == "post_norms":
        return replace(layer, norms=Norms.AROUND if value else Norms.BEFORE)
    return replace(
        layer,
        mixers=tuple(_with(mixer, key, value) for mixer in layer.mixers),
        ffn=layer.ffn and _with(layer.ffn, key, value),
    )


def _with(part: _Part, key: str, value: object) -> _Part:
    name = _field(part, key)
    return part if name is None else replace(part, **{name: value})  # type: ignore[arg-type]


def _with_rest(form: ModelFile, spec: ModelSpec) -> ModelSpec:
    """The model-wide keys that were written, over what the spec has."""
    rest: dict[str, Any] = {
        "hidden": form.hidden,
        "vocab": form.vocab,
        "context": form.context,
        "tied_embeddings": form.tied_embeddings,
        "norm_epsilon": form.norm_epsilon,
        "layer_norm": form.layer_norm,
        "output_bias": form.head_bias,
        "attention_softcap": form.attention_softcap,
        "logit_softcap": form.logit_softcap,
        "published_total_params": form.published_total_params,
    }
    rope = Rope(form.rope_base or spec.rope.base, form.rope_dimensions or spec.rope.dimensions)
    return replace(spec, rope=rope, **{key: value for key, value in rest.items() if value is not None})


def _check(path: Path, spec: ModelSpec) -> None:
    """What no single key can say: raises UserError for numbers that cannot stand together."""
    reason = why_not_written(spec) if FAMILIES[spec.family].gguf_architecture else None
    if reason is not None:
        raise UserError(
            f"{path}: family: found {spec.family!r}, but {reason}; change the layers, or say `family: custom` to "
            "count without running"
        )
    for i, layer in enumerate(spec.layers):
        a, f = layer.mixer, layer.ffn
        if isinstance(a, Gqa) and a.heads % a.kv_heads:
            raise UserError(f"{path}: kv_heads: found {a.kv_heads}, it must divide heads, {a.heads} (layer {i})")
        if isinstance(f, MoeFfn) and not 0 < f.n_experts_per_token <= f.n_experts:
            raise UserError(
                f"{path}: n_experts_per_token: found {f.n_experts_per_token}, it must be 1 to {f.n_experts} (layer {i})"
            )
