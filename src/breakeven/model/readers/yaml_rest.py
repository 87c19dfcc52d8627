"""The keys of a model file that no layer has: what they make of a model, what they are of one, and what must fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from breakeven.errors import UserError
from breakeven.model.architecture import (
    CompressedAttention,
    Gqa,
    Layer,
    LinearAttention,
    Mamba2,
    ModelSpec,
    MoeFfn,
    Mtp,
    NgramTable,
    PerLayerEmbedding,
    Quantization,
    Rope,
    Scales,
    Streams,
)
from breakeven.model.layouts.registry import FAMILIES, why_not_written
from breakeven.model.readers.yaml_form import LayerRun, ModelFile

_PLAIN = {
    "hidden": "hidden",
    "vocab": "vocab",
    "context": "context",
    "tied_embeddings": "tied_embeddings",
    "norm_epsilon": "norm_epsilon",
    "layer_norm": "layer_norm",
    "head_bias": "output_bias",
    "attention_softcap": "attention_softcap",
    "logit_softcap": "logit_softcap",
    "kv_cache": "kv_cache",
    "published_total_params": "published_total_params",
}
"""Key of the file, field of the model."""
_ROPE = {
    "rope_base": "base",
    "rope_dimensions": "dimensions",
    "rope_window_base": "window_base",
    "rope_scaling": "scaling",
    "rope_factor": "factor",
    "rope_original_context": "original_context",
}


def with_rest(
    path: Path, form: ModelFile, spec: ModelSpec, drafts: Callable[[list[LayerRun] | int], tuple[Layer, ...]]
) -> ModelSpec:
    """The model-wide keys that were written, over what the spec has. `drafts` makes the layers of drafting blocks."""
    rest: dict[str, Any] = {
        field: getattr(form, key) for key, field in _PLAIN.items() if getattr(form, key) is not None
    }
    rope = {field: getattr(form, key) for key, field in _ROPE.items() if getattr(form, key) is not None}
    if rope.get("scaling") == "none":
        rope |= {"scaling": None, "factor": 1.0, "original_context": None}
    rest["rope"] = replace(spec.rope, **rope)
    if form.scales is not None:
        rest["scales"] = replace(spec.scales or Scales(), **form.scales.given())
    if form.per_layer_embedding is not None:
        vocab = form.vocab or spec.vocab
        rest["per_layer_embedding"] = PerLayerEmbedding(**{"vocab": vocab, **form.per_layer_embedding.given()})
    if (table := form.ngrams) is not None:
        rest["ngrams"] = NgramTable(**{**table.given(), "layers": tuple(table.layers)})
        if (last := max(table.layers)) >= len(spec.layers):
            raise UserError(f"{path}: ngrams.layers: found {last}, the last layer is {len(spec.layers) - 1}")
    if form.streams is not None:
        rest["streams"] = Streams(**form.streams.given())
    if form.mtp is not None:
        rest["mtp"] = Mtp(drafts(form.mtp.layers), bool(form.mtp.embedding), bool(form.mtp.head))
    if (published := form.quantization) is not None:
        rest["quantization"] = Quantization(
            published.format, tuple(published.kept or ()), published.experts, tuple((published.others or {}).items())
        )
    if form.assumed is not None:
        rest["assumed"] = tuple(form.assumed)
    return replace(spec, **rest)


def rest_of(spec: ModelSpec) -> dict[str, object]:
    """The model-wide keys, drafting blocks apart, of which `with_rest` makes the spec again; defaults are left out."""
    usual: dict[str, object] = {field.name: field.default for field in fields(ModelSpec)} | {"tied_embeddings": False}
    found: dict[str, object] = {"name": spec.name, "family": spec.family, "source": spec.source}
    found |= {key: getattr(spec, field) for key, field in _PLAIN.items() if getattr(spec, field) != usual[field]}
    found |= {key: getattr(spec.rope, f) for key, f in _ROPE.items() if getattr(spec.rope, f) != getattr(Rope(), f)}
    for key in ("scales", "per_layer_embedding", "ngrams", "streams"):
        part = getattr(spec, key)
        if part is not None:
            found[key] = {f.name: value for f in fields(part) if (value := getattr(part, f.name)) != f.default}
    if spec.ngrams is not None:
        found["ngrams"] = {**_mapping(found["ngrams"]), "layers": list(spec.ngrams.layers)}
    if (published := spec.quantization) is not None:
        kept = {"kept": list(published.kept)} if published.kept else {}
        experts = {"experts": published.experts} if published.experts else {}
        others = {"others": dict(published.others)} if published.others else {}
        found["quantization"] = {"format": published.format_name, **kept, **experts, **others}
    if spec.assumed:
        found["assumed"] = list(spec.assumed)
    return found


def _mapping(value: object) -> dict[str, object]:
    assert isinstance(value, dict)
    return value


def check(path: Path, spec: ModelSpec) -> None:
    """What no single key can say: raises UserError for numbers that cannot stand together."""
    reason = why_not_written(spec) if FAMILIES[spec.family].gguf_architecture else None
    if reason is not None:
        raise UserError(
            f"{path}: family: found {spec.family!r}, but {reason}; change the layers, or say `family: custom` to "
            "count without running"
        )
    for i, layer in enumerate((*spec.layers, *(spec.mtp.layers if spec.mtp else ()))):
        for mixer in layer.mixers:
            match mixer:
                case Gqa() as a:
                    _divides(path, i, "kv_heads", a.kv_heads, "heads", a.heads)
                case LinearAttention() as a:
                    _divides(path, i, "key_heads", a.key_heads, "value_heads", a.value_heads)
                case Mamba2() as a:
                    _divides(path, i, "mamba_groups", a.groups, "mamba_heads", a.heads)
                case CompressedAttention() as a:
                    _divides(path, i, "output_groups", a.output_groups, "heads * head_dim", a.heads * a.head_dim)
                case _:
                    pass
        if isinstance(f := layer.ffn, MoeFfn):
            if not 0 < f.n_experts_per_token <= f.n_experts:
                raise UserError(
                    f"{path}: n_experts_per_token: found {f.n_experts_per_token}, it must be 1 to {f.n_experts} "
                    f"(layer {i})"
                )
            _divides(path, i, "n_groups", f.n_groups, "n_experts", f.n_experts)
            if bool(f.chunk_experts) != bool(f.chunk_width):
                raise UserError(f"{path}: chunk_width: goes with chunk_experts; give both (layer {i})")


def _divides(path: Path, layer: int, key: str, value: int, whole: str, of: int) -> None:
    if of % value:
        raise UserError(f"{path}: {key}: found {value}, it must divide {whole}, {of} (layer {layer})")
