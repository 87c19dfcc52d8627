"""Weight formats of llama.cpp: which number type it gives each tensor of a model.

A format such as Q4_K_M is a mixture: a default type, and rules that give some tensors more bits. The rules follow
`llama_tensor_get_type` and `tensor_type_fallback` in llama.cpp's src/llama-quant.cpp, quantizing a converted F16 or
BF16 file without an importance matrix, and the rules of conversion/base.py for what stays F32. Recipes that others
lay on top of it (Unsloth's UD-*, files made with an importance matrix) are not described here.

Adding a format is adding one line to `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from breakeven.model.architecture import Gqa, Mla, ModelSpec, MoeFfn, ShortConv
from breakeven.model.formats.ggml import FALLBACKS, GgmlType, block_size
from breakeven.model.layouts.registry import family_of
from breakeven.model.tensors import Tensor, tensors

T = GgmlType


class Category(StrEnum):
    """The roles a tensor can have in llama.cpp's rules (`tensor_get_category`)."""

    TOKEN_EMBEDDING = "token_embd"
    OUTPUT = "output"
    ATTENTION_V = "attn_v"
    """Also the fused projections that contain values."""
    ATTENTION_K = "attn_k"
    ATTENTION_OUTPUT = "attn_output"
    FFN_DOWN = "ffn_down"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands, as far as the rules care.

    `index` of `count` tensors of its category: for feed-forwards the layer, for attention values the running number.
    `running` counts tensors of the category from the start, whatever their layer.
    """

    category: Category
    index: int
    count: int
    running: int
    gqa: int
    experts: int

    @property
    def sensitive(self) -> bool:
        """First eighth, last eighth and every third between: llama.cpp's `use_more_bits`."""
        eighth = self.count // 8
        return self.index < eighth or self.index >= 7 * self.count // 8 or (self.index - eighth) % 3 == 2


Rule = Callable[[Place], GgmlType | None]
"""The type a tensor at this place gets, None for the format's default."""


@dataclass(frozen=True, slots=True)
class Format:
    """A weight format that a whole model can be stored in.

    `default` is the type where no rule speaks; `stacked` replaces it for stacked experts (MXFP4). `head` is the type
    of the output matrix, or of the embedding table when that is tied to it. `file_type` is the number that a GGUF
    header gives it (`general.file_type`). `eight` holds the rules that replace `rules` in models of exactly 8 experts.
    """

    name: str
    file_type: int
    default: GgmlType
    head: GgmlType
    summary: str
    rules: Mapping[Category, Rule] = field(default_factory=dict)
    eight: Mapping[Category, GgmlType] = field(default_factory=dict)
    embedding: GgmlType | None = None
    stacked: GgmlType | None = None
    values_70b: GgmlType | None = GgmlType.Q5_K
    """The least an attention value gets in what llama.cpp calls a 70B model."""

    @property
    def quantized(self) -> bool:
        """Whether rows are stored in blocks."""
        return block_size(self.default) > 1


def _always(kind: GgmlType) -> Rule:
    return lambda place: kind


def _sensitive(kind: GgmlType) -> Rule:
    return lambda place: kind if place.sensitive else None


def _first(layers: Callable[[Place], int], kind: GgmlType, then: GgmlType | None = None) -> Rule:
    return lambda place: kind if place.index < layers(place) else then


def _if_grouped(kind: GgmlType, otherwise: GgmlType | None = None) -> Rule:
    return lambda place: kind if place.gqa >= 4 else otherwise


def _eighth(place: Place) -> int:
    return place.count // 8


def _sixteenth(place: Place) -> int:
    return place.count // 16


def _iq2_value(place: Place) -> GgmlType:
    return T.Q4_K if place.gqa >= 4 or place.experts >= 4 else T.Q2_K


def _iq2_down(place: Place) -> GgmlType | None:
    # This branch of llama.cpp counts tensors where all others read the layer from the name: shared experts count twice.
    return T.Q2_K if place.running < place.count // 8 else None


V, OUT, DOWN = Category.ATTENTION_V, Category.ATTENTION_OUTPUT, Category.FFN_DOWN
_EIGHT = {V: T.Q8_0, Category.ATTENTION_K: T.Q8_0}
_EIGHT_K = {**_EIGHT, OUT: T.Q5_K}
_EIGHT_IQ2 = {Category.ATTENTION_K: T.Q4_K, OUT: T.Q5_K}
_IQ2: dict[Category, Rule] = {V: _iq2_value, DOWN: _iq2_down}

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("F16", 1, T.F16, T.F16, "16-bit floats"),
        Format("BF16", 32, T.BF16, T.BF16, "16-bit floats with the range of 32-bit ones"),
        Format("Q8_0", 7, T.Q8_0, T.Q8_0, "8 bits and a scale for every 32 weights", eight=_EIGHT),
        Format("Q6_K", 18, T.Q6_K, T.Q6_K, "6 bits", eight=_EIGHT),
        Format(
            "Q5_K_M",
            17,
            T.Q5_K,
            T.Q6_K,
            "5 bits, 6 where it matters",
            {V: _sensitive(T.Q6_K), DOWN: _sensitive(T.Q6_K)},
            _EIGHT,
        ),
        Format("Q5_K_S", 16, T.Q5_K, T.Q6_K, "5 bits", eight=_EIGHT),
        Format("Q5_0", 8, T.Q5_0, T.Q6_K, "5 bits and a scale for every 32 weights", eight=_EIGHT),
        Format(
            "Q4_K_M",
            15,
            T.Q4_K,
            T.Q6_K,
            "4 bits, 6 where it matters: the usual choice",
            {V: _sensitive(T.Q6_K), DOWN: _sensitive(T.Q6_K)},
            _EIGHT_K,
        ),
        Format(
            "Q4_K_S",
            14,
            T.Q4_K,
            T.Q6_K,
            "4 bits, 5 in the first layers",
            {V: _first(lambda place: 4, T.Q5_K), DOWN: _first(_eighth, T.Q5_K)},
            _EIGHT_K,
        ),
        Format(
            "IQ4_XS",
            30,
            T.IQ4_XS,
            T.Q6_K,
            "4.25 bits, from a table of values",
            {V: _if_grouped(T.Q5_K), DOWN: _first(_eighth, T.Q5_K)},
            _EIGHT_K,
        ),
        Format("Q4_0", 2, T.Q4_0, T.Q6_K, "4 bits and a scale for every 32 weights", eight=_EIGHT),
        Format("Q4_1", 3, T.Q4_1, T.Q6_K, "4 bits, a scale and a minimum for every 32 weights", eight=_EIGHT),
        Format(
            "MXFP4",
            38,
            T.Q8_0,
            T.Q8_0,
            "experts in 4-bit floats, the rest in Q8_0: as gpt-oss is published",
            stacked=T.MXFP4,
        ),
        Format(
            "Q3_K_M",
            12,
            T.Q3_K,
            T.Q6_K,
            "3 bits, 4 or 5 where it matters",
            {
                V: _first(lambda place: 2, T.Q5_K, T.Q4_K),
                DOWN: _first(_sixteenth, T.Q5_K, T.Q4_K),
                OUT: _always(T.Q4_K),
            },
            _EIGHT_K,
        ),
        Format(
            "Q2_K",
            10,
            T.Q2_K,
            T.Q6_K,
            "2 bits, 3 or 4 where it matters",
            {V: _if_grouped(T.Q4_K, T.Q3_K), DOWN: _always(T.Q3_K), OUT: _always(T.Q3_K)},
            _EIGHT_K,
        ),
        Format(
            "IQ2_XS",
            20,
            T.IQ2_XS,
            T.Q5_K,
            "2.3 bits, from a table of values",
            _IQ2,
            _EIGHT_IQ2,
            embedding=T.Q2_K,
            values_70b=None,
        ),
        Format(
            "IQ2_XXS",
            19,
            T.IQ2_XXS,
            T.Q5_K,
            "2.06 bits, from a table of values",
            _IQ2,
            _EIGHT_IQ2,
            embedding=T.Q2_K,
            values_70b=None,
        ),
    )
}

# llama.cpp calls a model "70B" by architecture and depth alone, and then never gives attention values fewer than 5 bits
# (src/models/llama.cpp, src/models/qwen2.cpp: load_arch_hparams; src/llama-quant.cpp: LLM_TYPE_70B).
_DEPTH_OF_70B = {"llama": 80, "qwen2": 80}

_KEPT_F32 = (
    "ffn_gate_inp.weight",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "_norm.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
)


def types_in(spec: ModelSpec, chosen: Format) -> dict[str, GgmlType]:
    """The type of every tensor of a model, by name, when llama.cpp stores it in a format.

    Source: src/llama-quant.cpp, `llama_tensor_get_type`.
    """
    everything = tensors(spec)
    tied = not any(tensor.name == "output.weight" for tensor in everything)
    experts = max((layer.ffn.n_experts for layer in spec.layers if isinstance(layer.ffn, MoeFfn)), default=0)
    gqa, is_70b = _gqa(spec), _is_70b(spec)
    roles = {tensor.name: category(tensor.name) for tensor in everything if _is_matrix(tensor)}
    n_values = sum(1 for role in roles.values() if role is V)
    seen = dict.fromkeys(Category, 0)
    kinds: dict[str, GgmlType] = {}
    # llama.cpp walks a file by layer and then by name, and some rules count on the way.
    for tensor in sorted(everything, key=lambda t: (-1 if t.layer is None else t.layer, t.name)):
        if not _is_matrix(tensor):
            kinds[tensor.name] = T.F32
            continue
        role = roles[tensor.name]
        running = seen[role]
        seen[role] += 1
        by_layer = role is DOWN and experts > 1 and tensor.layer is not None
        index = tensor.layer if by_layer and tensor.layer is not None else running
        count = n_values if role is V else len(spec.layers)
        place = Place(role, index, count, running, gqa, experts)
        kinds[tensor.name] = _kind(chosen, tensor, place, tied=tied, is_70b=is_70b)
    return {tensor.name: kinds[tensor.name] for tensor in everything}


def category(name: str) -> Category:
    """The role llama.cpp reads out of a tensor's name (`tensor_get_category`)."""
    if name == "output.weight":
        return Category.OUTPUT
    if name == "token_embd.weight":
        return Category.TOKEN_EMBEDDING
    for part, role in (
        ("attn_qkv.weight", V),
        ("attn_kv_b.weight", V),
        ("attn_v.weight", V),
        ("attn_k.weight", Category.ATTENTION_K),
        ("attn_output.weight", OUT),
        ("ffn_down", DOWN),
    ):
        if part in name:
            return role
    return Category.OTHER


def _kind(chosen: Format, tensor: Tensor, place: Place, *, tied: bool, is_70b: bool) -> GgmlType:
    if not chosen.quantized:
        return chosen.default
    row = tensor.shape[-1]
    head = place.category is Category.OUTPUT or (tied and place.category is Category.TOKEN_EMBEDDING)
    if head:
        kind = chosen.head if row % block_size(chosen.default) == 0 else T.Q8_0
    elif place.category is Category.TOKEN_EMBEDDING:
        kind = chosen.embedding or chosen.default
    elif chosen.stacked is not None and len(tensor.shape) == 3 and tensor.shape[0] > 1:
        kind = chosen.stacked
    else:
        rule = chosen.rules.get(place.category)
        kind = (rule(place) if rule else None) or chosen.default
        if is_70b and place.category is V and kind in (T.Q3_K, T.Q4_K):
            kind = chosen.values_70b or kind
        if place.experts == 8:
            kind = chosen.eight.get(place.category, kind)
    return _fitting(kind, row)


def _fitting(kind: GgmlType, row: int) -> GgmlType:
    if row % block_size(kind) == 0:
        return kind
    smaller = FALLBACKS.get(kind, kind)
    return smaller if row % block_size(smaller) == 0 else T.F16


def _is_matrix(tensor: Tensor) -> bool:
    """Whether the tensor is stored in the format at all: vectors, biases, routers and small convolutions stay F32."""
    shape = tensor.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return len(shape) > 1 and tensor.name.endswith("weight") and not any(part in tensor.name for part in _KEPT_F32)


def _is_70b(spec: ModelSpec) -> bool:
    architecture = family_of(spec).gguf_architecture
    return len(spec.layers) == _DEPTH_OF_70B.get(architecture or "") and _gqa(spec) > 1


def _gqa(spec: ModelSpec) -> int:
    """Query heads that share a key, as `llama_hparams::n_gqa` reads them off the first layer."""
    first = spec.layers[0].mixer
    if isinstance(first, ShortConv):
        return 0  # its file says 0 key heads there
    if isinstance(first, Mla):
        return first.heads  # one latent serves all heads
    softmax = (mixer for layer in spec.layers for mixer in layer.mixers if isinstance(mixer, Gqa))
    # A linear-attention layer carries the head counts of the softmax layers of its model.
    found = next(softmax, None)
    return found.heads // found.kv_heads if found else 0
