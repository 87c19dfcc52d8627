"""Every weight of a model, by llama.cpp's name: what a GGUF file of this architecture holds.

Shapes are in numpy order, slowest axis first, so a matrix is (out, in) and stacked experts are (experts, out, in);
GGUF stores the same numbers reversed. Names and shapes follow llama.cpp's `src/models/<architecture>.cpp`. Where a
family stores a tensor under another name, fused with others or split, its entry in `layouts` says so.

A model that was read from a file has that file's own tensors; all others are listed from their layout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from breakeven.model.architecture import DenseFfn, Layer, ModelSpec, MoeFfn, NgramTable, Norms
from breakeven.model.layouts.family import Family
from breakeven.model.layouts.registry import family_of
from breakeven.model.part_tensors import Item, TensorGroup, ffn_items, mixer_items, moe_items, norm

__all__ = ["Tensor", "TensorGroup", "group_of", "stored_tensor", "tensors"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file. `layer` is None for what belongs to no block."""

    name: str
    shape: tuple[int, ...]
    group: TensorGroup
    layer: int | None

    @property
    def params(self) -> int:
        """How many weights it holds; none in a table of constants."""
        return 0 if self.group is TensorGroup.CONSTANT else math.prod(self.shape)


@lru_cache(maxsize=64)
def tensors(spec: ModelSpec) -> tuple[Tensor, ...]:
    """The model's tensors in file order: embedding, tables, blocks, final norm, output head, drafting blocks."""
    if spec.stored is not None:
        return tuple(stored_tensor(t.name, t.shape, len(spec.layers)) for t in spec.stored.tensors)
    family = family_of(spec)
    found = list(_named(_front(spec), None, family))
    for index, layer in enumerate(spec.layers):
        found += _named(_layer(spec, index, layer), index, family)
    found += _named(_tail(spec), None, family)
    if spec.mtp is not None:
        for index, layer in enumerate(spec.mtp.layers, len(spec.layers)):
            items = [*_layer(spec, index, layer, drafts=True), *_drafting(spec)]
            found += [Tensor(t.name, t.shape, TensorGroup.MTP, t.layer) for t in _named(iter(items), index, family)]
    return tuple(found)


def stored_tensor(name: str, shape: tuple[int, ...], n_layers: int) -> Tensor:
    """A tensor of a file by its name alone, where the model has `n_layers` blocks of its own.

    `group_of` says which names are known; others count as what they most resemble, a mixer's.
    """
    parts = name.split(".", 2)
    in_block = parts[0] == "blk" and len(parts) == 3 and parts[1].isdigit()
    layer = int(parts[1]) if in_block else None
    stem = parts[2] if in_block else name
    if layer is not None and layer >= n_layers:
        return Tensor(name, shape, TensorGroup.MTP, layer)
    return Tensor(name, shape, group_of(stem) or TensorGroup.ATTENTION, layer)


_GROUPS: tuple[tuple[str, TensorGroup], ...] = (
    (r"rope_freqs|rope_factors_(long|short)", TensorGroup.CONSTANT),
    (r"nextn\.", TensorGroup.MTP),
    (r"token_embd_norm|.*norm[^.]*(\.[a-z]+)?$", TensorGroup.NORM),
    (r"token_embd|token_types|position_embd", TensorGroup.EMBEDDING),
    (r"per_layer_token_embd|ple\.|ngram", TensorGroup.TABLE),
    (r"output\.|output$", TensorGroup.OUTPUT_HEAD),
    (r"ffn_(gate|up|down|gate_up)_(exps|chexps)|ffn_(gate|up|down)\.\d+", TensorGroup.ROUTED_EXPERTS),
    (r"ffn_(gate|up|down)_shexp|ffn_gate_inp_shexp", TensorGroup.SHARED_EXPERTS),
    (r"ffn_gate_inp|exp_probs_b|ffn_gate_tid2eid", TensorGroup.ROUTER),
    (r"ffn_(gate|up|down|latent_down|latent_up|act)", TensorGroup.DENSE_FFN),
    (r"attn_|ssm_|shortconv\.|indexer\.|time_mix|channel_mix|cross_attn|layer_out", TensorGroup.ATTENTION),
    (r"per_layer_model_proj|inp_gate|proj\.|altup|laurel|hc_|layer_output_scale|output_hc", TensorGroup.STREAM),
)
"""What a block's tensor, or one outside the blocks, is for: the first pattern that its name begins with."""


def group_of(stem: str) -> TensorGroup | None:
    """The group of a tensor by its name without `blk.N.`; None for a name that is not known."""
    return next((group for pattern, group in _GROUPS if re.match(pattern, stem)), None)


def _named(items: Iterable[Item], layer: int | None, family: Family) -> Iterator[Tensor]:
    """The family's own form of a block's tensors: fused, split and renamed as it stores them."""
    block = "" if layer is None else f"blk.{layer}."
    for item in _joined(items, family):
        for stem, shape in _split(item, family):
            name = f"{block}{family.tensor_names.get(stem, stem)}{'.' if item.suffix else ''}{item.suffix}"
            yield Tensor(name, shape, item.group, layer)


def _joined(items: Iterable[Item], family: Family) -> Iterator[Item]:
    """Matrices that the family stacks into one along their outputs, in the first one's place."""
    listed = list(items)
    for item in listed:
        whole = next((name for name, parts in family.joined.items() if item.stem in parts), None)
        same = [x for x in listed if whole and x.stem in family.joined[whole] and x.suffix == item.suffix]
        if whole is None or len(same) < len(family.joined[whole]):
            yield item
        elif item is same[0]:
            axis = -1 if item.suffix == "bias" else -2
            shape = list(item.shape)
            shape[axis] = sum(x.shape[axis] for x in same)
            yield Item(whole, item.suffix, tuple(shape), item.group)


def _split(item: Item, family: Family) -> Iterator[tuple[str, tuple[int, ...]]]:
    """One matrix that the family keeps as several of equal height."""
    parts = family.split.get(item.stem)
    if parts is None:
        yield item.stem, item.shape
        return
    for part in parts:
        yield part, (item.shape[0] // len(parts), *item.shape[1:])


def _front(spec: ModelSpec) -> Iterator[Item]:
    yield Item("token_embd", "weight", (spec.vocab, spec.hidden), TensorGroup.EMBEDDING)
    layers = len(spec.layers)
    if (rows := spec.per_layer_embedding) is not None:
        yield Item("per_layer_token_embd", "weight", (rows.vocab, layers * rows.width), TensorGroup.TABLE)
        yield Item("per_layer_model_proj", "weight", (layers * rows.width, spec.hidden), TensorGroup.STREAM)
        yield from norm("per_layer_proj_norm", rows.width)
    if (table := spec.ngrams) is not None:
        yield Item("ple.ngram_embd", "weight", (table.rows, table.width), TensorGroup.TABLE)
    if (streams := spec.streams) is not None and streams.altup:
        for stem in ("altup_proj", "altup_unembd_proj"):
            yield Item(stem, "weight", (streams.count - 1, spec.hidden, spec.hidden), TensorGroup.STREAM)
    elif streams is not None:
        yield from _hyper("output_hc", spec, streams.count)


def _tail(spec: ModelSpec) -> Iterator[Item]:
    yield from norm("output_norm", spec.hidden, spec.layer_norm)
    if not spec.tied_embeddings:
        yield Item("output", "weight", (spec.vocab, spec.hidden), TensorGroup.OUTPUT_HEAD)
    if spec.output_bias:
        yield Item("output", "bias", (spec.vocab,), TensorGroup.OUTPUT_HEAD)


def _drafting(spec: ModelSpec) -> Iterator[Item]:
    """What a drafting block has beside a layer: two norms, the matrix that joins both inputs, its own tables."""
    assert spec.mtp is not None
    yield Item("nextn.eh_proj", "weight", (spec.hidden, 2 * spec.hidden), TensorGroup.MTP)
    for stem in ("nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm"):
        yield Item(stem, "weight", (spec.hidden,), TensorGroup.MTP)
    if spec.mtp.embedding:
        yield Item("nextn.embed_tokens", "weight", (spec.vocab, spec.hidden), TensorGroup.MTP)
    if spec.mtp.head:
        yield Item("nextn.shared_head_head", "weight", (spec.vocab, spec.hidden), TensorGroup.MTP)


def _layer(spec: ModelSpec, index: int, layer: Layer, *, drafts: bool = False) -> Iterator[Item]:
    hidden, bias = spec.hidden, spec.layer_norm
    before, after = layer.norms is not Norms.AFTER, layer.norms in (Norms.AROUND, Norms.AFTER)
    if layer.mixers:
        if before:
            yield from norm("attn_norm", hidden, bias)
        for mixer in layer.mixers:
            yield from mixer_items(hidden, mixer)
        if after:
            yield from norm("post_attention_norm", hidden, bias)
    if layer.ffn is not None:
        # A layer of one part, and one whose parts run side by side, have a single norm.
        if before and not (layer.norms is Norms.PARALLEL and layer.mixers):
            yield from norm("ffn_norm" if layer.mixers else "attn_norm", hidden, bias)
        match layer.ffn:
            case DenseFfn() as f:
                yield from ffn_items("", TensorGroup.DENSE_FFN, hidden, f.width, bias=f.bias, gated=f.gated)
            case MoeFfn() as f:
                yield from moe_items(hidden, f, around=layer.norms is Norms.AROUND)
        if after:
            yield from norm("post_ffw_norm", hidden, bias)
    if not drafts:
        yield from _streams(spec, index)


def _streams(spec: ModelSpec, index: int) -> Iterator[Item]:
    """What a layer has to read its row of the per-layer tables, and to mix residual streams."""
    hidden = spec.hidden
    if (rows := spec.per_layer_embedding) is not None:
        yield Item("inp_gate", "weight", (rows.width, hidden), TensorGroup.STREAM)
        yield Item("proj", "weight", (hidden, rows.width), TensorGroup.STREAM)
        yield from norm("post_norm", hidden)
    if (streams := spec.streams) is not None and streams.altup:
        n, rank = streams.count, streams.laurel_rank
        yield Item("altup_correct_coef", "weight", (n, n), TensorGroup.STREAM)
        yield Item("altup_predict_coef", "weight", (n * n, n), TensorGroup.STREAM)
        yield Item("altup_correct_scale", "weight", (hidden,), TensorGroup.STREAM)
        yield Item("altup_router", "weight", (n, hidden), TensorGroup.STREAM)
        yield from norm("altup_router_norm", hidden)
        if rank:
            yield Item("laurel_l", "weight", (rank, hidden), TensorGroup.STREAM)
            yield Item("laurel_r", "weight", (hidden, rank), TensorGroup.STREAM)
            yield from norm("laurel_post_norm", hidden)
    elif streams is not None:
        # Weights of what is read in, written back and mixed among the streams.
        for stem in ("hc_attn", "hc_ffn"):
            yield from _hyper(stem, spec, (2 + streams.count) * streams.count)
    if (table := spec.ngrams) is not None and index in table.layers:
        yield from _ngram(hidden, table, spec.streams.count if spec.streams else 1)


def _hyper(stem: str, spec: ModelSpec, out: int) -> Iterator[Item]:
    streams = spec.streams
    assert streams is not None
    width = streams.count * spec.hidden
    if streams.low_rank:
        yield Item(f"{stem}_fn_a", "weight", (streams.low_rank, width), TensorGroup.STREAM)
        yield Item(f"{stem}_fn_b", "weight", (out, streams.low_rank), TensorGroup.STREAM)
    else:
        yield Item(f"{stem}_fn", "weight", (out, width), TensorGroup.STREAM)
    yield Item(f"{stem}_base", "weight", (out,), TensorGroup.STREAM)
    yield Item(f"{stem}_scale", "weight", (1 if out == streams.count else 3,), TensorGroup.STREAM)


def _ngram(hidden: int, table: NgramTable, streams: int) -> Iterator[Item]:
    yield Item("ple_key", "weight", (streams * hidden, table.joined), TensorGroup.STREAM)
    yield Item("ple_value", "weight", (hidden, table.joined), TensorGroup.STREAM)
    yield Item("ple_conv1d", "weight", (streams * hidden, table.kernel), TensorGroup.STREAM)
    for stem in ("ple_key_norm", "ple_query_norm", "ple_conv_norm"):
        yield from norm(stem, streams * hidden)
