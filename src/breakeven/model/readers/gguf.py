"""A GGUF file's model: its layout from the tensors that are really there, its bytes from the file's own table.

Beside the blocks (`gguf_layers`): tables, residual streams, drafting blocks, and the check that all weights are
accounted for. A file's parts and what else may be in one: `gguf_file`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from breakeven.errors import NotSupportedError, UserError, printable
from breakeven.model.architecture import (
    FileTensors,
    Gqa,
    Layer,
    Mixer,
    Mla,
    ModelSpec,
    Mtp,
    NgramTable,
    PerLayerEmbedding,
    Rope,
    Scales,
    Streams,
)
from breakeven.model.layouts.registry import FAMILIES, family_of_architecture
from breakeven.model.readers.gguf_facts import DAMAGED, BlockFacts, Shapes, window_unsaid
from breakeven.model.readers.gguf_file import label, model_name, parts, refuse_others, rows
from breakeven.model.readers.gguf_layers import layer
from breakeven.model.tensors import Tensor, TensorGroup, group_of, stored_tensor, tensors

_KNOWN_KEY = re.compile(
    r"attention\.(head_count(_kv)?|(key|value)_length(_mla)?(_swa)?|(q|kv)_lora_rank(_swa)?|sliding_window(_pattern)?"
    r"|group_norm_groups|(decay|iclr|value_residual_mix|gate|output)_lora_rank|relative_buckets_count|rope_pattern"
    r"|temperature_length|indexer\.(head_count|key_length|top_k|block_size|local_blocks|types|kpool)"
    r"|output_group_count|compress_ratios|recurrent_layers|shared_kv_layers|causal|layer_indices)$"
    r"|expert_(shared|chunk)_.*|token_shift_count$|rope\.|ssm\.|shortconv\.|kda\.|wkv\.|ple\.|altup\."
)
_TELLING_KEY = re.compile(r"attention\.|window|kv|cache|share|compress|chunk|stride|sparse|cycle|repeat|recur|loop")
"""Keys whose value could change what is cached or how often a block runs, which tensors alone do not show."""


def read_gguf(path: Path, *, assume: bool = False) -> ModelSpec:
    """The model in a GGUF file or in all parts of a split one, named after the file; it carries the file's tensors.

    `assume`: read on past keys and tensors that are not known here; the model's `assumed` names them. Raises UserError
    for an unreadable, damaged or incomplete file, for what is no language model, and when the layout does not account
    for its weights.
    """
    headers = parts(path)
    first = headers[0]
    refuse_others(first)
    found = [row for header in headers for row in rows(header)]
    shapes = {row.name: row.shape for row in found}
    if len(shapes) != len(found):
        raise UserError(f"{path}: two tensors have one name; fetch it again")
    spec = spec_from_gguf(first.metadata, shapes, name=model_name(first), source=str(path), assume=assume)
    return replace(spec, stored=FileTensors(label(first, found), tuple(found)))


def spec_from_gguf(
    metadata: Mapping[str, object], shapes: Shapes, *, name: str, source: str, assume: bool = False
) -> ModelSpec:
    """The model of a header: `metadata` as llama.cpp names it, `shapes` of all tensors in numpy order.

    An architecture without a family of its own is read as `custom`. Raises UserError naming what is missing or not
    known (`assume`: only when nothing can be made of it), and when the layout misses a block's weights by over 3 %.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise UserError(f"{source}: the header does not say general.architecture; convert the model again")
    f = BlockFacts(metadata, shapes, printable(architecture)[:60], source)
    if "token_embd.weight" not in shapes:
        raise NotSupportedError(
            f"{source}: no table of tokens (token_embd) in this file of architecture {f.architecture!r}, so it is no "
            "language model; give the language model's file"
        )
    unknown = list(_unknown(f))
    if unknown and not assume:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{source}: {unknown[0]}{more} is not known here and could change the layout; --assume reads on"
        )
    spec = _model(f, name)
    wrong = _wrong(spec, shapes)
    if wrong and not assume:
        raise UserError(
            f"{source}: {wrong[0]}; the layout of architecture {f.architecture!r} is not understood: "
            "describe the model by hand as docs/models-yaml.md shows, or --assume reads on"
        )
    return replace(spec, assumed=tuple(unknown + wrong))


def _unknown(f: BlockFacts) -> Iterable[str]:
    """Tensors and keys that could change the layout and are not known here."""
    for tensor in f.shapes:
        stem = re.sub(r"^blk\.\d+\.", "", tensor)
        if group_of(stem) is None:
            yield f"tensor {tensor}"
    prefix = f"{f.architecture}."
    for key, value in f.metadata.items():
        own = key.removeprefix(prefix)
        if isinstance(value, list):
            counts = bool(value) and all(isinstance(each, int) for each in value)
        else:
            counts = isinstance(value, int) and value > 1
        if own != key and counts and _TELLING_KEY.search(own) and not _KNOWN_KEY.match(own):
            yield f"key {key}"
    if window_unsaid(f):
        yield f"which layers use {prefix}attention.sliding_window"


def _model(f: BlockFacts, name: str) -> ModelSpec:
    vocab, hidden = f.need("token_embd.weight", 2)
    f.own_blocks = own = _own_blocks(f)
    layers = tuple(layer(f, i) for i in range(own))
    drafts = tuple(layer(f, i) for i in sorted(f.blocks) if i >= own)
    family = family_of_architecture(f.architecture) or FAMILIES.get(f.architecture) or FAMILIES["custom"]
    return ModelSpec(
        name=name,
        family=family.name,
        hidden=hidden,
        vocab=vocab,
        context=f.whole("context_length"),
        tied_embeddings="output.weight" not in f.shapes,
        layers=layers,
        source=f.source,
        rope=_rope(f, layers),
        norm_epsilon=f.number("attention.layer_norm_rms_epsilon", f.number("attention.layer_norm_epsilon", 1e-5)),
        layer_norm="blk.0.attn_norm.bias" in f.shapes,
        output_bias="output.bias" in f.shapes,
        attention_softcap=f.number("attn_logit_softcapping", 0.0) or None,
        logit_softcap=f.number("final_logit_softcapping", 0.0) or None,
        scales=_scales(f),
        per_layer_embedding=_per_layer_embedding(f),
        ngrams=_ngrams(f),
        streams=_streams(f, hidden),
        mtp=_mtp(f, drafts) if drafts else None,
    )


def _own_blocks(f: BlockFacts) -> int:
    """Blocks that run for each token; those that draft further ones come last."""
    count, drafting = f.whole("block_count"), f.whole("nextn_predict_layers", 0)
    if f.drafting:
        own = min(f.drafting)
    else:
        # Announced, and left out when the file was made.
        own = count - drafting if drafting and count - drafting not in f.blocks else count
        if f.blocks and max(f.blocks) >= own:
            raise UserError(f"{f.source}: tensors of block {max(f.blocks)}, but {own} blocks are announced; {DAMAGED}")
    if own < 1:
        raise UserError(f"{f.source}: no blocks but those that draft tokens; give the language model's own file")
    return own


def _mtp(f: BlockFacts, drafts: tuple[Layer, ...]) -> Mtp:
    stems = {tensor.split(".", 2)[2] for tensor in f.shapes if ".nextn." in tensor}
    return Mtp(drafts, "nextn.embed_tokens.weight" in stems, "nextn.shared_head_head.weight" in stems)


def _rope(f: BlockFacts, layers: tuple[Layer, ...]) -> Rope:
    base, dimensions = f.number("rope.freq_base", 10000.0), f.whole("rope.dimension_count", 0) or None
    window_base = f.number("rope.freq_base_swa", base)
    usual = {_rotated(mixer) for each in layers for mixer in each.mixers}
    kind = f.get("rope.scaling.type")
    scaling = kind if isinstance(kind, str) and kind not in ("none", "") else None
    return Rope(
        base,
        None if dimensions in usual else dimensions,
        None if window_base == base else window_base,
        scaling,
        f.number("rope.scaling.factor", 1.0) if scaling else 1.0,
        f.whole("rope.scaling.original_context_length", 0) or None if scaling else None,
    )


def _rotated(a: Mixer) -> int | None:
    """How many dimensions of a head turn when nothing says otherwise; None: the layer has no positions."""
    match a:
        case Mla():
            return a.rope_dim
        case Gqa():
            return a.head_dim
        case _:
            return None


def _scales(f: BlockFacts) -> Scales | None:
    keys = ("embedding_scale", "residual_scale", "attention.scale", "logit_scale")
    scales = Scales(*(f.number(key, 1.0) for key in keys))
    return None if scales == Scales() else scales


def _first(f: BlockFacts, stem: str) -> int | None:
    """The first block with such a tensor."""
    return next((i for i in sorted(f.blocks) if f.has(i, stem)), None)


def _per_layer_embedding(f: BlockFacts) -> PerLayerEmbedding | None:
    if "per_layer_token_embd.weight" not in f.shapes or (i := _first(f, "inp_gate")) is None:
        return None
    return PerLayerEmbedding(width=f.rows(i, "inp_gate"), vocab=f.need("per_layer_token_embd.weight", 2)[0])


def _ngrams(f: BlockFacts) -> NgramTable | None:
    if "per_layer_token_embd.weight" not in f.shapes or (i := _first(f, "ple_key")) is None:
        return None
    rows, width = f.need("per_layer_token_embd.weight", 2)
    return NgramTable(
        rows=rows,
        width=width,
        joined=f.block(i, "ple_key", 2)[1],
        layers=tuple(each for each in sorted(f.blocks) if f.has(each, "ple_key")),
        kernel=f.block(i, "ple_conv1d", 2)[1] if f.has(i, "ple_conv1d") else 4,
    )


def _streams(f: BlockFacts, hidden: int) -> Streams | None:
    if "altup_proj.weight" in f.shapes:
        i = _first(f, "laurel_l")
        count = f.need("altup_proj.weight", 3)[0] + 1
        return Streams(count, altup=True, laurel_rank=0 if i is None else f.rows(i, "laurel_l"))
    for stem in ("hc_attn_fn", "hc_attn_down"):
        if (i := _first(f, stem)) is not None:
            rank, wide = f.block(i, stem, 2)
            return Streams(
                count=f.part(wide, hidden, i, "residual streams"),
                low_rank=rank if stem == "hc_attn_down" else 0,
                joins=any(tensor.startswith("output_hc_") for tensor in f.shapes),
            )
    return None


_CHECKED = {
    TensorGroup.ATTENTION: "attention",
    TensorGroup.DENSE_FFN: "feed-forward",
    TensorGroup.ROUTED_EXPERTS: "expert",
    TensorGroup.SHARED_EXPERTS: "shared expert",
    TensorGroup.TABLE: "per-layer table",
}
_TOLERANCE = 0.03


def _wrong(spec: ModelSpec, shapes: Shapes) -> list[str]:
    """The first block whose tensors hold other weights than the layout read from them."""
    theirs = _by_group(stored_tensor(name, shape, len(spec.layers)) for name, shape in shapes.items())
    ours = _by_group(tensors(spec))
    for i, group in sorted(theirs.keys() | ours.keys(), key=lambda key: (-1 if key[0] is None else key[0], key[1])):
        a, b = theirs.get((i, group), 0), ours.get((i, group), 0)
        if group in _CHECKED and abs(a - b) > _TOLERANCE * a:
            where = "the file" if i is None else f"block {i}"
            return [f"{where} has {a:,} weights in {_CHECKED[group]} tensors, its layout has {b:,}"]
    return []


def _by_group(found: Iterable[Tensor]) -> dict[tuple[int | None, TensorGroup], int]:
    sums: dict[tuple[int | None, TensorGroup], int] = {}
    for tensor in found:
        key = (tensor.layer, tensor.group)
        sums[key] = sums.get(key, 0) + tensor.params
    return sums
