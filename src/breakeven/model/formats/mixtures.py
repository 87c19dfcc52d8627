"""Weight formats of llama.cpp: mixtures of number types, each with the rules that give some tensors more bits.

The rules follow `llama_tensor_get_type` in llama.cpp's src/llama-quant.cpp, quantizing a converted F16 or BF16 file
without an importance matrix. Formats that cannot be made without one (`imatrix`) follow the rules for files made with
it. Recipes that others lay on top (Unsloth's UD-*) are not described here: a file of such a recipe has its own types.

Adding a format is adding one line to `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from breakeven.model.formats.ggml import GgmlType, block_size

T = GgmlType


class Category(StrEnum):
    """The roles a tensor can have in llama.cpp's rules (`tensor_get_category`)."""

    TOKEN_EMBEDDING = "token_embd"
    OUTPUT = "output"
    ATTENTION_V = "attn_v"
    """Also the fused projections that contain values."""
    ATTENTION_Q = "attn_q"
    ATTENTION_K = "attn_k"
    ATTENTION_OUTPUT = "attn_output"
    FFN_UP = "ffn_up"
    FFN_GATE = "ffn_gate"
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
    imatrix: bool = False

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
    `imatrix`: llama.cpp refuses to write it without an importance matrix.
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
    imatrix: bool = False

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


def _middle(kind: GgmlType) -> Rule:
    return lambda place: kind if place.count // 8 <= place.index < 7 * place.count // 8 else None


def _iq2_value(place: Place) -> GgmlType:
    return T.Q4_K if place.gqa >= 4 or place.experts >= 4 else T.Q2_K


def _iq2_wide_value(place: Place) -> GgmlType:
    return T.Q4_K if place.gqa >= 4 or place.experts >= 4 else T.IQ3_S


def _few(kind: GgmlType) -> Rule:
    # This branch of llama.cpp counts tensors where all others read the layer from the name: shared experts count twice.
    return lambda place: kind if place.running < place.count // 8 else None


def _iq3_m_down(place: Place) -> GgmlType | None:
    return T.Q4_K if place.index < place.count // 8 or (place.experts == 8 and place.sensitive) else None


def _iq3_xxs_value(place: Place) -> GgmlType | None:
    return T.Q4_K if place.gqa >= 4 else None if place.imatrix else T.IQ3_S


def _iq3_xxs_down(place: Place) -> GgmlType | None:
    return None if place.imatrix else T.Q4_K if place.index < place.count // 8 else T.Q3_K


V, OUT, DOWN = Category.ATTENTION_V, Category.ATTENTION_OUTPUT, Category.FFN_DOWN
Q, K = Category.ATTENTION_Q, Category.ATTENTION_K
_EIGHT = {V: T.Q8_0, K: T.Q8_0}
_EIGHT_K = {**_EIGHT, OUT: T.Q5_K}
_EIGHT_IQ2 = {K: T.Q4_K, OUT: T.Q5_K}
_IQ1: dict[Category, Rule] = {V: _iq2_value, DOWN: _few(T.Q2_K), OUT: _always(T.IQ2_XXS)}
_IQ2: dict[Category, Rule] = {V: _iq2_value, DOWN: _few(T.Q2_K)}
_IQ2_WIDE: dict[Category, Rule] = {V: _iq2_wide_value, DOWN: _few(T.IQ3_S), OUT: _always(T.IQ3_S)}

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
        Format("Q5_1", 9, T.Q5_1, T.Q6_K, "5 bits, a scale and a minimum for every 32 weights", eight=_EIGHT),
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
        Format(
            "IQ4_NL",
            25,
            T.IQ4_NL,
            T.Q6_K,
            "4.5 bits, from a table of values",
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
            "Q3_K_L",
            13,
            T.Q3_K,
            T.Q6_K,
            "3 bits, 5 where it matters",
            {V: _always(T.Q5_K), DOWN: _always(T.Q5_K), OUT: _always(T.Q5_K)},
            {**_EIGHT, OUT: T.Q3_K},
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
        Format("Q3_K_S", 11, T.Q3_K, T.Q6_K, "3 bits", eight=_EIGHT_K),
        Format(
            "IQ3_M",
            27,
            T.IQ3_S,
            T.Q6_K,
            "3.4 bits from a table of values, 4 where it matters",
            {V: _always(T.Q4_K), DOWN: _iq3_m_down, OUT: _always(T.Q4_K)},
            _EIGHT_K,
        ),
        Format("IQ3_S", 26, T.IQ3_S, T.Q6_K, "3.4 bits, from a table of values", {V: _if_grouped(T.Q4_K)}, _EIGHT_K),
        Format(
            "IQ3_XS",
            22,
            T.IQ3_S,
            T.Q6_K,
            "3.4 and 3.06 bits, from tables of values",
            {
                V: _if_grouped(T.Q4_K),
                Q: _always(T.IQ3_XXS),
                K: _always(T.IQ3_XXS),
                Category.FFN_GATE: _middle(T.IQ3_XXS),
                Category.FFN_UP: _middle(T.IQ3_XXS),
            },
            _EIGHT_K,
            imatrix=True,
        ),
        Format(
            "IQ3_XXS",
            23,
            T.IQ3_XXS,
            T.Q5_K,
            "3.06 bits, from a table of values",
            {V: _iq3_xxs_value, DOWN: _iq3_xxs_down, Q: _always(T.IQ2_S), K: _always(T.IQ2_S), OUT: _always(T.IQ3_S)},
            _EIGHT_K,
            embedding=T.IQ3_S,
            imatrix=True,
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
            "Q2_K_S",
            21,
            T.Q2_K,
            T.Q6_K,
            "2 bits, 4 in the first layers",
            {V: _if_grouped(T.Q4_K), DOWN: _first(_eighth, T.Q4_K)},
            _EIGHT,
            imatrix=True,
        ),
        Format(
            "IQ2_M",
            29,
            T.IQ2_S,
            T.Q5_K,
            "2.56 bits from a table of values, 3.4 where it matters",
            _IQ2_WIDE,
            _EIGHT_IQ2,
            embedding=T.IQ3_S,
            values_70b=None,
            imatrix=True,
        ),
        Format(
            "IQ2_S",
            28,
            T.IQ2_XS,
            T.Q5_K,
            "2.3 bits from a table of values, 3.4 where it matters",
            _IQ2_WIDE,
            _EIGHT_IQ2,
            embedding=T.IQ3_S,
            values_70b=None,
            imatrix=True,
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
            imatrix=True,
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
            imatrix=True,
        ),
        Format(
            "IQ1_M",
            31,
            T.IQ1_M,
            T.Q5_K,
            "1.75 bits, from a table of values",
            _IQ1,
            _EIGHT_IQ2,
            embedding=T.Q2_K,
            values_70b=None,
            imatrix=True,
        ),
        Format(
            "IQ1_S",
            24,
            T.IQ1_S,
            T.Q5_K,
            "1.56 bits, from a table of values",
            _IQ1,
            _EIGHT_IQ2,
            embedding=T.Q2_K,
            values_70b=None,
            imatrix=True,
        ),
        Format(
            "TQ2_0",
            37,
            T.TQ2_0,
            T.Q6_K,
            "2.06 bits for weights of three values (BitNet, TriLM)",
            eight=_EIGHT,
            embedding=T.Q4_K,
        ),
        Format(
            "TQ1_0",
            36,
            T.TQ1_0,
            T.Q6_K,
            "1.69 bits for weights of three values (BitNet, TriLM)",
            eight=_EIGHT,
            embedding=T.Q4_K,
        ),
    )
}
