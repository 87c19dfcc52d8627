"""A GGUF file's model: sizes from its metadata, layout from the tensors it really has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from breakeven.errors import NotSupportedError, UserError
from breakeven.model.architecture import (
    DenseFfn,
    FeedForward,
    Gating,
    Gqa,
    Layer,
    LinearAttention,
    Mixer,
    Mla,
    ModelSpec,
    MoeFfn,
    Norms,
    OutputGate,
    QkNorm,
    Rope,
    Scales,
    ShortConv,
)
from breakeven.model.arithmetic import check_count
from breakeven.model.layouts.family import Family
from breakeven.model.layouts.gguf_keys import GATING_CODES
from breakeven.model.layouts.registry import FAMILIES, family_of_architecture
from breakeven.model.readers.gguf_header import read_header

Shapes = Mapping[str, tuple[int, ...]]
_GATINGS = {code: gating for gating, code in GATING_CODES.items()}
_BESIDE = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")
"""Tables that travel with the weights but are none."""


def read_gguf(path: Path) -> ModelSpec:
    """The model in a GGUF file, named after the file.

    Raises UserError for an unreadable, damaged or split file, and when the layout does not account for its weights.
    """
    header = read_header(path)
    parts = header.metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise NotSupportedError(
            f"{path}: one of {parts} parts; join them first with `llama-gguf-split --merge FIRST-PART OUT.gguf`"
        )
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    return spec_from_gguf(header.metadata, shapes, name=path.stem, source=str(path))


def spec_from_gguf(metadata: Mapping[str, object], shapes: Shapes, *, name: str, source: str) -> ModelSpec:
    """The model of a header: `metadata` as llama.cpp names it, `shapes` of all tensors in numpy order.

    An architecture without a family of its own is read as `custom`. Raises UserError naming what is missing, and
    when the layout misses the file's weights by over 3 %.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise UserError(f"{source}: the header does not say general.architecture; convert the model again")
    family = family_of_architecture(architecture) or FAMILIES.get(architecture) or FAMILIES["custom"]
    read = _Read(metadata, shapes, architecture, family, source)
    spec = read.model(name)
    own = [shape for key, shape in shapes.items() if not key.startswith(_BESIDE) and read.runs(key, len(spec.layers))]
    check_count(spec, sum(_product(shape) for shape in own))
    return spec


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


class _Read:
    """One header being read."""

    def __init__(
        self, metadata: Mapping[str, object], shapes: Shapes, architecture: str, family: Family, source: str
    ) -> None:
        self.metadata, self.shapes, self.architecture = metadata, shapes, architecture
        self.family, self.source = family, source

    def model(self, name: str) -> ModelSpec:
        # Next-token-prediction blocks come last and do not run when decoding.
        count = self.whole("block_count") - self.whole("nextn_predict_layers", 0)
        layers = tuple(self.layer(i) for i in range(count))
        vocab, hidden = self.need("token_embd.weight", 2)
        dimensions = self.whole("rope.dimension_count", 0) or None
        usual = {_rotated(layer.mixers[0]) for layer in layers}
        return ModelSpec(
            name=name,
            family=self.family.name,
            hidden=hidden,
            vocab=vocab,
            context=self.whole("context_length"),
            tied_embeddings="output.weight" not in self.shapes,
            layers=layers,
            source=self.source,
            rope=Rope(self.number("rope.freq_base", 10000.0), None if dimensions in usual else dimensions),
            norm_epsilon=self.number(
                "attention.layer_norm_rms_epsilon", self.number("attention.layer_norm_epsilon", 1e-5)
            ),
            layer_norm="blk.0.attn_norm.bias" in self.shapes,
            output_bias="output.bias" in self.shapes,
            attention_softcap=self.number("attn_logit_softcapping", 0.0) or None,
            logit_softcap=self.number("final_logit_softcapping", 0.0) or None,
            scales=self.scales(),
        )

    def runs(self, tensor: str, layers: int) -> bool:
        """False for tensors of blocks that come after the model's own."""
        if not tensor.startswith("blk."):
            return True
        index = tensor.split(".", 2)[1]
        return index.isdigit() and int(index) < layers

    def layer(self, i: int) -> Layer:
        norms = Norms.AROUND if self.has(i, "post_ffw_norm") else Norms.BEFORE
        return Layer((self.attention(i),), self.feed_forward(i), norms)

    def attention(self, i: int) -> Mixer:
        if self.has(i, "attn_kv_a_mqa"):
            return self.mla(i)
        if self.has(i, "shortconv.conv"):
            return ShortConv(kernel=self.block(i, "shortconv.conv", 2)[1])
        if self.has(i, "ssm_conv1d"):
            return self.linear_attention(i)
        return self.gqa(i)

    def gqa(self, i: int) -> Gqa:
        heads, kv_heads = self.at("attention.head_count", i), self.at("attention.head_count_kv", i)
        if heads < 1 or kv_heads < 1:
            raise UserError(f"{self.source}: block {i} has {heads} heads and {kv_heads} key-value heads; {_DAMAGED}")
        if self.has(i, "attn_qkv"):
            head_dim = value_dim = self.block(i, "attn_qkv", 2)[0] // (heads + 2 * kv_heads)
            queries = heads * head_dim
        else:
            queries = self.block(i, "attn_q", 2)[0]
            head_dim = self.block(i, "attn_k", 2)[0] // kv_heads
            value_dim = (self.block(i, "attn_v", 2)[0] if self.has(i, "attn_v") else head_dim * kv_heads) // kv_heads
        norm = QkNorm.NONE
        if self.has(i, "attn_q_norm"):
            norm = QkNorm.HEAD if self.block(i, "attn_q_norm", 1)[0] == head_dim else QkNorm.FULL
        return Gqa(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            window=self.window(i),
            qk_norm=norm,
            qkv_bias=self.has(i, "attn_q", "bias") or self.has(i, "attn_qkv", "bias"),
            output_bias=self.has(i, "attn_output", "bias"),
            output_gate=OutputGate.TWIN if queries == 2 * heads * head_dim else OutputGate.NONE,
            sinks=self.has(i, "attn_sinks"),
            value_head_dim=None if value_dim == head_dim else value_dim,
        )

    def window(self, i: int) -> int | None:
        period = self.family.window_period
        if period is None:
            return None
        size = self.whole("attention.sliding_window", self.family.window_default or 0)
        pattern = self.metadata.get(f"{self.architecture}.attention.sliding_window_pattern")
        if isinstance(pattern, list) and i < len(pattern):
            slides = bool(pattern[i])
        else:
            period = pattern if isinstance(pattern, int) and pattern > 0 else period
            slides = (i + 1) % period != 0
        return size if slides and size else None

    def mla(self, i: int) -> Mla:
        kv_lora_rank = self.block(i, "attn_kv_a_norm", 1)[0]
        rope_dim = self.block(i, "attn_kv_a_mqa", 2)[0] - kv_lora_rank
        if self.has(i, "attn_k_b"):
            heads, _, nope_dim = self.block(i, "attn_k_b", 3)
            value_dim = self.block(i, "attn_v_b", 3)[1]
        else:  # files from before the key and value halves were split
            heads = self.at("attention.head_count", i)
            nope_dim = self.whole("attention.key_length") - rope_dim
            value_dim = self.whole("attention.value_length")
        q_lora_rank = self.block(i, "attn_q_a", 2)[0] if self.has(i, "attn_q_a") else None
        return Mla(heads, kv_lora_rank, nope_dim, rope_dim, value_dim, q_lora_rank)

    def linear_attention(self, i: int) -> LinearAttention:
        value_heads, value_dim = self.block(i, "ssm_dt", 1, "bias")[0], self.block(i, "ssm_norm", 1)[0]
        channels, kernel = self.block(i, "ssm_conv1d", 2)
        key_dim = self.whole("ssm.state_size")
        return LinearAttention(
            key_heads=(channels - value_heads * value_dim) // (2 * key_dim) if key_dim else 0,
            value_heads=value_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            conv_kernel=kernel,
        )

    def feed_forward(self, i: int) -> FeedForward:
        if not self.has(i, "ffn_down_exps"):
            return DenseFfn(self.block(i, "ffn_down", 2)[1], bias=self.has(i, "ffn_down", "bias"))
        n_experts, _, width = self.block(i, "ffn_down_exps", 3)
        shared = self.block(i, "ffn_down_shexp", 2)[1] if self.has(i, "ffn_down_shexp") else 0
        return MoeFfn(
            n_experts=n_experts,
            n_experts_per_token=self.whole("expert_used_count"),
            expert_width=width,
            n_shared_experts=self.whole("expert_shared_count", 1 if shared else 0) if shared else 0,
            shared_width=shared,
            shared_gate=self.has(i, "ffn_gate_inp_shexp"),
            dense_width=self.block(i, "ffn_down", 2)[1] if self.has(i, "ffn_down") else 0,
            router_bias=self.has(i, "ffn_gate_inp", "bias"),
            selection_bias=self.has(i, "exp_probs_b", "bias"),
            expert_bias=self.has(i, "ffn_down_exps", "bias"),
            gating=_GATINGS.get(self.whole("expert_gating_func", 0), Gating.SOFTMAX),
            normalise_weights=self.metadata.get(f"{self.architecture}.expert_weights_norm") is not False,
            weights_scale=self.number("expert_weights_scale", 1.0),
            n_groups=self.whole("expert_group_count", 1) or 1,
            n_groups_used=self.whole("expert_group_used_count", 1) or 1,
        )

    def scales(self) -> Scales | None:
        keys = ("embedding_scale", "residual_scale", "attention.scale", "logit_scale")
        if not any(f"{self.architecture}.{key}" in self.metadata for key in keys):
            return None
        return Scales(*(self.number(key, 1.0) for key in keys))

    def has(self, i: int, stem: str, suffix: str = "weight") -> bool:
        return self.tensor(i, stem, suffix) in self.shapes

    def tensor(self, i: int, stem: str, suffix: str) -> str:
        return f"blk.{i}.{self.family.tensor_names.get(stem, stem)}.{suffix}"

    def block(self, i: int, stem: str, dims: int, suffix: str = "weight") -> tuple[int, ...]:
        return self.need(self.tensor(i, stem, suffix), dims)

    def need(self, tensor: str, dims: int) -> tuple[int, ...]:
        shape = self.shapes.get(tensor)
        if shape is None or len(shape) != dims:
            found = "missing" if shape is None else f"of shape {shape}"
            raise UserError(
                f"{self.source}: tensor {tensor} is {found}, so the layout of architecture {self.architecture!r} "
                "is not known here; describe the model by hand as docs/models-yaml.md shows"
            )
        return shape

    def at(self, key: str, i: int) -> int:
        """A value that is one number for all blocks, or a list with one each."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, list) and i < len(value) and isinstance(value[i], int):
            return int(value[i])
        return self.whole(key)

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            found = "is missing" if value is None else f"is {value!r}"
            raise UserError(f"{self.source}: {self.architecture}.{key} {found}, it must be a whole number; {_DAMAGED}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        # Files hold float32: six digits give back the number that was meant.
        return float(f"{value:.6g}") if isinstance(value, int | float) else default


_DAMAGED = "convert the model again with a current llama.cpp"


def _rotated(a: Mixer) -> int | None:
    """How many dimensions of a head turn when nothing says otherwise; None: the layer has no positions."""
    match a:
        case Mla():
            return a.rope_dim
        case Gqa():
            return a.head_dim
        case _:
            return None
