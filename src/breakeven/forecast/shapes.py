"""Catalogued models in their usual formats, reduced to `Terms` beforehand, so that all of them are weighed in a second.

Working a model's terms out means naming every tensor; for the whole catalogue that takes a minute. The data file holds
the outcome; `scripts/make_shapes.py` writes it, and a test holds it against the code.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from importlib import resources

import msgspec

from breakeven.forecast.terms import AttentionGroup, ExpertGroup, Terms, terms_of
from breakeven.model.architecture import Gqa, ModelSpec
from breakeven.model.arithmetic import KV_ELEMENT_BYTES, active_params, attends, total_params
from breakeven.model.catalogue import lookup
from breakeven.model.formats.named import kv_element_bytes
from breakeven.model.reserved import cells, compute_bytes

GGUF = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K", "IQ2_XXS")
"""Formats of llama.cpp that people step down by, one at about every size."""
SERVED = ("BF16", "FP8", "INT4", "NVFP4")
"""Formats that GPU engines serve."""
TRAINED_IN = "MXFP4"
"""Read by both: what a few models were published in."""
BUFFER_CONTEXT = 4096
MASK_TOKENS = 512
MASK_BYTES = 2.0
KV_BLOCK = 32
"""Elements of a block of llama.cpp's quantized caches, in which a head must be whole."""


class Held(msgspec.Struct, frozen=True, array_like=True):
    """One model in one format: bytes by number type, and shares of the work. As in `Terms`."""

    fixed: tuple[tuple[str, int], ...]
    experts: tuple[tuple[tuple[str, int], ...], ...]
    head_bytes: int
    head_type: str
    total_bytes: int
    work: tuple[tuple[str, float], ...]
    expert_work: tuple[tuple[str, float], ...]


class ModelShape(msgspec.Struct, frozen=True, array_like=True):
    """One catalogued model, whatever its format. `experts`: how many, how many a token uses, and in how many layers.

    `attention`: window, bytes kept and operations of an entry, key heads, every so many, top, bytes and rows read.
    `buffers`: what llama.cpp reserves to compute in on a GPU, and on a CPU, attention masks apart; then the same where
    it reserves every logit of a micro-batch.
    """

    moe: bool
    hidden: int
    layers: int
    blocks: int
    """Of the configuration, as llama.cpp counts what it places."""
    moe_layers: int
    mixer_layers: int
    state_bytes: float
    token_flops: float
    head_flops: float
    latent_kv: bool
    vocab: int
    context: int
    total_params: int
    active_params: int
    experts: tuple[tuple[int, int, int], ...]
    attention: tuple[tuple[int | None, float, float, int, int, int | None, float, float], ...]
    whole_heads: bool
    """Whether quantized caches can hold its heads."""
    buffers: tuple[float, float, float, float]
    formats: dict[str, Held]


class Shapes(msgspec.Struct):
    """The data file. `catalogue`: digest of the catalogue that it was made of."""

    about: str
    catalogue: str
    models: dict[str, ModelShape]


@lru_cache(maxsize=1)
def shapes() -> dict[str, ModelShape]:
    """All of the file, by short name."""
    raw = resources.files("breakeven.forecast").joinpath("data", "shapes.json").read_bytes()
    return msgspec.json.decode(raw, type=Shapes).models


def shape_of(name: str) -> ModelShape:
    """The shape of the catalogued model of this short name."""
    found = shapes().get(name)
    return found if found is not None else made_of(lookup(name))


def made_of(spec: ModelSpec, formats: tuple[str, ...] = (*GGUF, *SERVED, TRAINED_IN)) -> ModelShape:
    """What the file holds of a model. Formats that cannot hold it are left out."""
    held: dict[str, Held] = {}
    terms = None
    for name in formats:
        try:
            terms = terms_of(spec, "MXFP4_BF16" if name == TRAINED_IN and not spec.is_moe else name)
        except ValueError:
            continue  # rows that are no whole blocks
        held[name] = Held(
            fixed=tuple((kind, round(n)) for kind, n in terms.fixed),
            experts=tuple(tuple((kind, round(n)) for kind, n in group.types) for group in terms.experts),
            head_bytes=round(terms.head_bytes),
            head_type=terms.head_type,
            total_bytes=round(terms.total_bytes),
            work=tuple((kind, round(n, 6)) for kind, n in terms.work),
            expert_work=tuple((kind, round(n, 6)) for kind, n in terms.expert_work),
        )
    assert terms is not None
    heads = [mixer for layer in spec.layers for mixer in layer.mixers if isinstance(mixer, Gqa)]
    windows = {a.window for layer in spec.layers for a in attends(layer)}
    mask = sum(MASK_BYTES * MASK_TOKENS * cells(BUFFER_CONTEXT, window) for window in windows)
    buffers = [
        max(compute_bytes(spec, BUFFER_CONTEXT, 1, gpu=gpu, every_logit=every) - mask, 0.0)
        for every in (False, True)
        for gpu in (True, False)
    ]
    return ModelShape(
        moe=terms.moe,
        hidden=terms.hidden,
        layers=terms.layers,
        blocks=len(spec.layers),
        moe_layers=terms.moe_layers,
        mixer_layers=terms.mixer_layers,
        state_bytes=terms.state_bytes,
        token_flops=terms.token_flops,
        head_flops=terms.head_flops,
        latent_kv=terms.latent_kv,
        vocab=terms.vocab,
        context=spec.context,
        total_params=total_params(spec),
        active_params=active_params(spec),
        experts=tuple((g.n_experts, g.per_token, g.layers) for g in terms.experts),
        attention=tuple(
            (a.window, a.kv_bytes, a.flops, a.kv_heads, a.every, a.top, a.read_bytes, a.rows) for a in terms.attention
        ),
        whole_heads=not any(width % KV_BLOCK for a in heads for width in (a.head_dim, a.value_dim)),
        buffers=(buffers[0], buffers[1], buffers[2], buffers[3]),
        formats=held,
    )


def terms_from(name: str, shape: ModelShape, format_name: str) -> Terms:
    """`terms_of` as the file has it, with keys and values of 16 bits."""
    held = shape.formats[format_name]
    return Terms(
        name=name,
        moe=shape.moe,
        format=format_name,
        hidden=shape.hidden,
        layers=shape.layers,
        moe_layers=shape.moe_layers,
        fixed=tuple((kind, float(n)) for kind, n in held.fixed),
        head_bytes=float(held.head_bytes),
        total_bytes=float(held.total_bytes),
        state_bytes=shape.state_bytes,
        token_flops=shape.token_flops,
        head_flops=shape.head_flops,
        experts=tuple(
            ExpertGroup(n, per_token, layers, tuple((kind, float(nbytes)) for kind, nbytes in types))
            for (n, per_token, layers), types in zip(shape.experts, held.experts, strict=True)
        ),
        attention=tuple(
            AttentionGroup(window, kept, flops, heads, every, top, read, rows)
            for window, kept, flops, heads, every, top, read, rows in shape.attention
        ),
        latent_kv=shape.latent_kv,
        work=held.work,
        expert_work=held.expert_work,
        head_type=held.head_type,
        mixer_layers=shape.mixer_layers,
        vocab=shape.vocab,
    )


def with_kv(terms: Terms, kv: str) -> Terms:
    """`terms` with keys and values of another type than 16 bits."""
    factor = kv_element_bytes(kv) / KV_ELEMENT_BYTES
    if factor == 1.0:
        return terms
    return replace(
        terms,
        attention=tuple(
            replace(a, kv_bytes=a.kv_bytes * factor, read_bytes=a.read_bytes * factor) for a in terms.attention
        ),
    )


def buffer_bytes(shape: ModelShape, context: float, sequences: float, *, gpu: bool, every_logit: bool) -> float:
    """About what llama.cpp reserves to compute in: `compute_bytes` without the layers, for the many of a search."""
    mask = sum(MASK_BYTES * MASK_TOKENS * cells(context, window) for window in {a[0] for a in shape.attention})
    held = shape.buffers[2 * every_logit + (not gpu)] + mask
    return held if every_logit else held + 4.0 * shape.vocab * (sequences - 1)
