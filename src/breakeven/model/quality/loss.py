"""What fewer bits cost: expected KL divergence, top-1 agreement and perplexity ratio of a model in a weight format.

What was published of that very model and format comes first. Else a curve over the bits (`curve.py`), fitted on all
that was published by `bench/fit_loss.py`; its errors on whole models left out are the interval (docs/quality.md).
KL is in nats a token on mixed text, against the same model in 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import msgspec

from breakeven.errors import UserError
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import active_params, file_bytes, total_params
from breakeven.model.formats.caches import kv_element_bytes
from breakeven.model.formats.named import FORMATS, OWN, label, only_format
from breakeven.model.quality.curve import LossRow, ModelSize, kin_of, log_kl, loss_fit, losses, sixteen_bits
from breakeven.model.quality.methods import EXACT, Method, method_of
from breakeven.model.quality.scores import plain_name
from breakeven.stats.estimate import Estimate, exactly

Basis = Literal["exact", "measured", "formats", "kin", "maker", "prior"]
"""exact: nothing is lost. measured: this model in this format. formats: other formats of this model. kin: models of its
maker, kind and size. maker: others of its maker. prior: its kind and size alone."""

ZERO = exactly(0.0)
KV_KL: Mapping[str, tuple[float, float, float]] = {
    "f32": (0.0, 0.0, 0.0),
    "f16": (0.0, 0.0, 0.0),
    "bf16": (0.0, 0.0, 0.0),
    # Llama-3-8B: 0.0008 over the floor of the run (llama.cpp, pull 7412); gemma-4-31B: +0.01 % of perplexity.
    "q8_0": (0.0008, 0.0001, 0.0016),
    # Qwen3.8-27B: 0.0017 at 98k tokens, cut to 20 tokens; +0 to +4 % of perplexity without scales (exllamav2).
    "fp8": (0.0015, 0.0005, 0.03),
    # Llama-3-8B: 0.0016 for values alone, and keys lose 1.4 times as much as values.
    "q5_1": (0.0038, 0.0016, 0.01),
    "q5_0": (0.004, 0.0016, 0.012),
    # gemma-4-31B: +0.8 % of perplexity; exllamav2: +0 to +1.5 %; Qwen3.8-27B: 0.006 at 98k tokens; latent: 0.036.
    "q4_1": (0.006, 0.001, 0.04),
    "q4_0": (0.006, 0.001, 0.04),
    "iq4_nl": (0.006, 0.001, 0.04),
}
"""KL that a type of cached keys and values adds, and the least and most published, from few models each
(docs/quality.md). It adds to that of the weights (Llama-3-8B with both: no more than the sum)."""

LANGUAGE_FACTOR: Mapping[str, tuple[float, float, float]] = {
    "en": (1.0, 0.85, 1.2),
    "code": (1.2, 1.0, 2.6),
    "other": (1.4, 1.0, 2.4),
}
"""KL in a text of one kind over that in mixed text: Qwen3.8-27B in six kinds of text and LFM2.5-2.6B in five languages
(English, Spanish, French, Italian, Chinese). No other language was measured; each counts as `other`."""
MEASURED_IN = frozenset({"en", "code", "es", "fr", "it", "zh"})

OTHER_TEXT = 0.45
"""95 % of measurements of one file lie within exp of this of each other's middle, text by text (Qwen3.8-27B)."""
MOST_KL = 13.0
"""Nats a token, the most that was published: of a model that says nothing any more."""
NEAR_BITS = 0.3
"""Files of one name this near in bits are one format."""


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """What a format costs against 16 bits. `source`: what that rests on; `basis`: the same for people.

    `kl`: nats a token. `top1`: share of tokens for which both versions think the same token likeliest. `ppl_ratio`:
    perplexity over that of 16 bits.
    """

    kl: Estimate
    top1: Estimate
    ppl_ratio: Estimate
    source: Basis
    basis: str


def expected_loss(
    model: ModelSpec | str,
    bits: float | None,
    method: str,
    *,
    name: str = "",
    total_b: float | None = None,
    active_b: float | None = None,
    importance: bool | None = None,
    kv: str = "f16",
    language: str | None = None,
) -> Loss:
    """What weights in `method` at `bits` a weight cost `model`, and keys and values of type `kv` with them.

    `model`: a spec, or a kind such as `dense` and `moe` (anything that ends in moe routes); then `total_b`, `active_b`
    and, where known, `name` say which. `bits` None: what the format takes in that model, else its nominal ones.
    `importance`: whether an importance matrix was used; None: nobody said. `language`: a code such as `en`, or `code`;
    None: mixed text. Raises UserError for a method without known bits and for a kind without a size.
    """
    form = method_of(_label(model, method))
    shape = _shape(model, name, total_b, active_b)
    if importance is not None:
        form = Method(form.family, form.kind, form.bits, float(importance))
    called = model.name if isinstance(model, ModelSpec) else name
    if form.family == EXACT or _native(called, shape.moe, method):
        return _loss(ZERO, kv, language, "exact", "the format that the model was published in")
    if bits is None:
        bits = _bits_of(model, method, form)
    if bits is None:
        raise UserError(f"how many bits {method!r} takes a weight is not known; give them")
    if not 1 <= bits <= 32:
        raise UserError(f"{bits:g} bits a weight: a weight takes 1 to 32")
    if published := _measured(shape.name, form, bits):
        return _loss(published[0], kv, language, "measured", published[1])
    source, words = _known(shape)
    middle = math.exp(log_kl(form, bits, shape))
    low, high = loss_fit().spread[source]
    half = low if (form.bits or bits) < 6 else high
    return _loss(_around(middle, half), kv, language, source, words)


def kept_share(kl: float) -> float:
    """The share of a score above guessing that is left after a loss of `kl`, as in `score_lost`."""
    return math.exp(-loss_fit().knowledge.of(kl))


def score_lost(kl: Estimate, area: str) -> Estimate | None:
    """The share of a score above guessing that a loss of `kl` takes; None where no pairs of both were published.

    Only for `knowledge`: one model, Llama-3-8B, in 20 formats. Add to its interval that other models may differ.
    """
    if area != "knowledge":
        return None
    pairs = loss_fit().knowledge

    def lost(nats: float, shift: float) -> float:
        return 1 - math.exp(-pairs.of(nats) * math.exp(shift))

    return Estimate(lost(kl.value, 0), lost(kl.least, -pairs.half_width), lost(kl.most, pairs.half_width))


def _known(shape: ModelSize) -> tuple[Basis, str]:
    fit = loss_fit()
    if shape.name in fit.models:
        return "formats", f"other formats of {shape.name}"
    if kin := kin_of(shape):
        return "kin", f"{kin} and its kin"
    if any(kin.maker == shape.maker for kin in fit.kin):
        return "maker", f"other models of {shape.maker}'s maker"
    return "prior", f"{'Mixture-of-Experts' if shape.moe else 'dense'} models of like size"


def _measured(name: str, form: Method, bits: float) -> tuple[Estimate, str] | None:
    """The middle of what was published of this model in this format, over texts."""
    found = [
        row
        for row in _kl_by_model().get(name, ())
        if (its := method_of(row.method, row.calibration)).kind == form.kind
        and abs(its.importance - form.importance) < 1
        and (row.bits is None or abs(row.bits - bits) <= NEAR_BITS)
    ]
    if not found:
        return None
    middle = math.exp(sum(math.log(row.value) for row in found) / len(found))
    links = dict.fromkeys(losses().sources[row.source].link for row in found)
    kl = _around(middle, OTHER_TEXT)
    return Estimate(kl.value, kl.low, kl.high, len(found), "published"), next(iter(links))


def _loss(kl: Estimate, kv: str, language: str | None, source: Basis, basis: str) -> Loss:
    kv_element_bytes(kv)  # Refuses a type that is none.
    added, least, most = KV_KL[kv.strip().lower()]
    factor, low, high = LANGUAGE_FACTOR.get(language or "", LANGUAGE_FACTOR["other"]) if language else (1.0, 1.0, 1.0)
    if language and language not in MEASURED_IN:
        basis += f"; no loss was ever published for {language}, it counts as a language that is not English"
    value = (kl.value + added) * factor
    if value == 0:
        return Loss(kl=ZERO, top1=exactly(1.0), ppl_ratio=exactly(1.0), source=source, basis=basis)
    # Independent doubts: the width of the sum is that of their squares, in logarithms.
    lower = math.hypot(math.log(value / ((kl.least + least) * factor or value)), math.log(factor / low))
    upper = math.hypot(math.log((kl.most + most) * factor / value), math.log(high / factor))
    whole = Estimate(value, value * math.exp(-lower), value * math.exp(upper), kl.n, kl.provenance)
    return Loss(kl=whole, top1=_agreement(whole), ppl_ratio=_perplexity(whole), source=source, basis=basis)


def _agreement(kl: Estimate) -> Estimate:
    pairs = loss_fit().top1
    ends = [pairs.of(kl.least) * math.exp(-pairs.half_width), pairs.of(kl.most) * math.exp(pairs.half_width)]
    return Estimate(1 - min(pairs.of(kl.value), 1.0), 1 - min(ends[1], 1.0), 1 - min(ends[0], 1.0))


def _perplexity(kl: Estimate) -> Estimate:
    pairs = loss_fit().perplexity
    low = pairs.of(kl.least) * math.exp(-pairs.half_width) - PERPLEXITY_NOISE
    high = pairs.of(kl.most) * math.exp(pairs.half_width) + PERPLEXITY_NOISE
    return Estimate(math.exp(pairs.of(kl.value)), math.exp(low), math.exp(high))


PERPLEXITY_NOISE = 0.005
"""How far perplexity moves either way without KL to speak of: at 8 bits up to half a per cent, up and down."""


def _around(middle: float, half: float) -> Estimate:
    return Estimate(middle, middle * math.exp(-half), min(middle * math.exp(half), max(MOST_KL, middle)))


def _label(model: ModelSpec | str, method: str) -> str:
    own = isinstance(model, ModelSpec) and method.strip().lower() == OWN
    return label(model, OWN) if own and isinstance(model, ModelSpec) else method


def _native(name: str, moe: bool, method: str) -> bool:
    """Whether the model was trained for this format, so that nothing finer of it exists."""
    only = only_format(name, moe)
    return only is not None and only.partition("_")[0] == method.strip().upper().partition("_")[0]


def _shape(model: ModelSpec | str, name: str, total_b: float | None, active_b: float | None) -> ModelSize:
    if isinstance(model, ModelSpec):
        return _shape_of(model)
    if total_b is None or not total_b > 0:
        raise UserError(f"{name or model}: give the size in billions of parameters, total_b")
    moe = model.endswith("moe")
    return ModelSize(plain_name(name), moe, total_b, min(active_b or total_b, total_b) if moe else total_b)


@lru_cache(maxsize=1024)
def _shape_of(spec: ModelSpec) -> ModelSize:
    total = total_params(spec) / 1e9
    return ModelSize(plain_name(spec.name), spec.is_moe, total, active_params(spec) / 1e9 if spec.is_moe else total)


@lru_cache(maxsize=4096)
def _bits_of(model: ModelSpec | str, method: str, form: Method) -> float | None:
    asked = method.strip().upper()
    if isinstance(model, ModelSpec) and (asked in FORMATS or asked == OWN.upper()):
        return file_bytes(model, method) * 8 / total_params(model)
    return form.bits


@lru_cache(maxsize=1)
def _kl_by_model() -> Mapping[str, list[LossRow]]:
    found: dict[str, list[LossRow]] = {}
    for row in losses().rows:
        whole_text = not row.text.startswith("stratum")
        if row.metric == "kld_mean" and whole_text and sixteen_bits(row.baseline) and "KV" not in row.method:
            found.setdefault(plain_name(row.model), []).append(row)
    return found
