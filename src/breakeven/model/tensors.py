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

from breakeven.model.architecture import DenseFfn, Gqa, Layer, ModelSpec, MoeFfn, NgramTable, Norms
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
    (r"rope_freqs|rope_factors_(long|short)|attn_rot_embd|ffn_gate_tid2eid", TensorGroup.CONSTANT),
    (r"nextn\.", TensorGroup.MTP),
    (r"([a-z0-9]+[._])*norm(_[a-z0-9]+)?\b", TensorGroup.NORM),
    (r"token_embd|token_types|position_embd", TensorGroup.EMBEDDING),
    (r"per_layer_token_embd|ngram|engram_embd", TensorGroup.TABLE),
    (r"output\.|output$|cls\b|dense_[23]\b", TensorGroup.OUTPUT_HEAD),
    (r"ffn_(gate|up|down|gate_up)_(exps|chexps)|ffn_(gate|up|down)\.\d+", TensorGroup.ROUTED_EXPERTS),
    (r"ffn_(gate|up|down|gate_up)_shexp|ffn_gate_inp_shexp", TensorGroup.SHARED_EXPERTS),
    (r"ffn_gate_inp|exp_probs_b", TensorGroup.ROUTER),
    (r"ffn_(gate|up|down|latent_down|latent_up|routed_down|routed_up|act)\b|ffn\b", TensorGroup.DENSE_FFN),
    (r"vis_(gate|up|down)\b", TensorGroup.DENSE_FFN),
    (r"attn_res_score|ffn_res_score|output_res_score", TensorGroup.STREAM),
    (r"(vis_)?attn_|ssm_|shortconv\.|indexer[._]|time_mix|channel_mix|cross_attn", TensorGroup.ATTENTION),
    (
        r"per_layer_model_proj|inp_gate\b|proj\b|altup_|laurel_|(output_)?hc_|layer_output_scale|ple_",
        TensorGroup.STREAM,
    ),
)
"""What a block's tensor, or one outside the blocks, is for: the first pattern that its name begins with.

Every name of llama.cpp's language models (gguf-py's constants, and what newer files add) has its group.
"""


_ANY_GROUP = re.compile("|".join(f"(?P<g{i}>{pattern})" for i, (pattern, _) in enumerate(_GROUPS)))


@lru_cache(maxsize=4096)
def group_of(stem: str) -> TensorGroup | None:
    """The group of a tensor by its name without `blk.N.`; None for a name that is not known."""
    found = _ANY_GROUP.match(stem)
    return _GROUPS[int(found.lastgroup[1:])][1] if found is not None and found.lastgroup else None


def _named(items: Iterable[Item], layer: int | None, family: Family) -> Iterator[Tensor]:
    """The family's own form of a block's tensors: fused, split and renamed as it stores them."""
    block = "" if layer is None else f"blk.{layer}."
    for item in _joined(items, family):
        for stem, shape in _split(item, family):
            suffix = "" if stem in family.bare else item.suffix
            shape = (math.prod(shape),) if stem in family.flat else shape
            name = f"{block}{family.tensor_names.get(stem, stem)}{'.' if suffix else ''}{suffix}"
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
    yield from _rotary(spec)
    layers = len(spec.layers)
    if (rows := spec.per_layer_embedding) is not None:
        yield Item("per_layer_token_embd", "weight", (rows.vocab, layers * rows.width), TensorGroup.TABLE)
        yield Item("per_layer_model_proj", "weight", (layers * rows.width, spec.hidden), TensorGroup.STREAM)
        yield from norm("per_layer_proj_norm", rows.width)
    if (table := spec.ngrams) is not None:
        yield Item("per_layer_token_embd", "weight", (table.rows, table.width), TensorGroup.TABLE)
    if (streams := spec.streams) is not None and streams.altup:
        for stem in ("altup_proj", "altup_unembd_proj"):
            yield Item(stem, "weight", (streams.count - 1, spec.hidden, spec.hidden), TensorGroup.STREAM)
    elif streams is not None and streams.joins:
        yield from _hyper("output_hc", spec, streams.count)


def _rotary(spec: ModelSpec) -> Iterator[Item]:
    """Tables of factors that stretch rotary frequencies, one for each pair of dimensions that turn."""
    family = family_of(spec)
    full = next(
        (a for layer in spec.layers for a in layer.mixers if isinstance(a, Gqa) and a.window is None),
        None,
    )
    if full is None:
        return
    if family.rope_table == "always":
        yield Item("rope_freqs", "weight", (full.head_dim // 2,), TensorGroup.CONSTANT)
    elif family.rope_table and spec.rope.scaling == "llama3":
        yield Item("rope_freqs", "weight", ((spec.rope.dimensions or full.head_dim) // 2,), TensorGroup.CONSTANT)


def _tail(spec: ModelSpec) -> Iterator[Item]:
    if spec.streams is None or not spec.streams.low_rank:
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
    # Streams that are mixed through a low rank are normed there, before each part.
    mixed = spec.streams is not None and spec.streams.low_rank > 0 and not drafts
    before = layer.norms is not Norms.AFTER and not mixed
    after = layer.norms in (Norms.AROUND, Norms.AFTER)
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
                if family_of(spec).token_routed and not f.selection_bias:
                    table = (spec.vocab, f.n_experts_per_token)
                    yield Item("ffn_gate_tid2eid", "weight", table, TensorGroup.CONSTANT)
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
    width, head = streams.count * spec.hidden, out == streams.count
    if rank := streams.low_rank:
        yield from norm(f"{stem}_norm", width)
        yield Item(f"{stem}_down", "weight", (rank, width), TensorGroup.STREAM)
        yield Item(f"{stem}_up", "weight", (width, rank), TensorGroup.STREAM)
        if not head:
            yield Item(f"{stem}_inject", "weight", (streams.count, width), TensorGroup.STREAM)
        return
    yield Item(f"{stem}_fn", "weight", (out, width), TensorGroup.STREAM)
    yield Item(f"{stem}_base", "weight", (out,), TensorGroup.STREAM)
    yield Item(f"{stem}_scale", "weight", (1 if head else 3,), TensorGroup.STREAM)


def _ngram(hidden: int, table: NgramTable, streams: int) -> Iterator[Item]:
    yield Item("ple_key", "weight", (streams * hidden, table.joined), TensorGroup.STREAM)
    yield Item("ple_value", "weight", (hidden, table.joined), TensorGroup.STREAM)
    yield Item("ple_conv1d", "weight", (streams * hidden, table.kernel), TensorGroup.STREAM)
    for stem in ("ple_norm_key", "ple_norm_query", "ple_norm_conv"):
        yield from norm(stem, streams * hidden)
