"""What each tensor of a synthetic model is filled with, so that activations stay finite and routing stays known.

Embeddings dominate the hidden state: every block adds only `RESIDUAL` of their size, so the state's size is known at
every depth and routing depends on the token, not on numerical accidents. Its first element is the same for all tokens
(no block writes there), which gives routers a constant to hang a bias on. The final norm has random signs: with tied
embeddings a token would otherwise always predict itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from breakeven.model.architecture import ModelSpec
from breakeven.model.layouts.registry import family_of
from breakeven.model.tensors import Group, Tensor

RESIDUAL = 0.03
"""Size of what one attention or feed-forward adds, relative to the embedding."""
LOGIT_STD = 1.5
"""Spread of output logits: wide enough to look like text, flat enough that sampling visits the vocabulary."""
GATED_LOSS = 2.5
"""A gated feed-forward on unit inputs comes out this much smaller: 1 / rms(silu(a) * b) for unit normals a, b."""

RESIDUAL_WRITERS = ("attn_output.weight", "out_proj.weight", "ssm_out.weight")


class Fill(StrEnum):
    """How a tensor gets its values."""

    ZEROS = "zeros"
    ONES = "ones"
    SMALL = "small"
    """The gain of a norm on what a block adds (Gemma)."""
    SIGNS = "signs"
    ROUTER = "router"
    RANDOM = "random"
    EMBEDDING = "embedding"
    """Random, first element of each row constant."""
    RESIDUAL = "residual"
    """Random, first row zero."""


@dataclass(frozen=True, slots=True)
class Values:
    """`std` is the standard deviation of random values, and the value itself for SMALL."""

    fill: Fill
    std: float = 0.0


def embedding_std(spec: ModelSpec) -> float:
    """Spread of embedding values, such that a tied output head gives logits of `LOGIT_STD`."""
    return float(LOGIT_STD / spec.hidden**0.5)


def values_of(spec: ModelSpec, tensor: Tensor) -> Values:
    """What to write into `tensor` of `spec`."""
    short = tensor.name.split(".", 2)[-1] if tensor.layer is not None else tensor.name
    size = embedding_std(spec) * (spec.hidden**0.5 if family_of(spec).scales_embeddings else 1.0)
    if tensor.group is Group.ROUTER and len(tensor.shape) == 2 and tensor.shape[0] > 1:
        return Values(Fill.ROUTER)
    if short.endswith("bias") or "sinks" in short or "exp_probs_b" in short:
        return Values(Fill.ZEROS)
    if tensor.layer is None and tensor.name.endswith("norm.weight"):
        return Values(Fill.SIGNS)
    if len(tensor.shape) == 1:
        post = tensor.layer is not None and spec.layers[tensor.layer].post_norms and short.startswith("post_")
        return Values(Fill.SMALL, RESIDUAL * size) if post else Values(Fill.ONES)
    if tensor.group is Group.EMBEDDING:
        return Values(Fill.EMBEDDING, embedding_std(spec))
    unit = float(tensor.shape[-1] ** -0.5)
    if tensor.group is Group.OUTPUT_HEAD:
        return Values(Fill.RANDOM, LOGIT_STD * unit)
    if short.endswith(RESIDUAL_WRITERS):
        return Values(Fill.RESIDUAL, RESIDUAL * size * unit)
    if short.startswith("ffn_down"):
        return Values(Fill.RESIDUAL, RESIDUAL * size * unit * GATED_LOSS)
    return Values(Fill.RANDOM, unit)
