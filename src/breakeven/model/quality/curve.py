"""The curve of loss over bits: what it is made of, the files of published figures and of the fit, and its middle.

log KL is a sum: straight pieces over the nominal bits, bent by a model's kind, size and sparsity, and what its method,
maker, kin (models of one maker, kind and size) and the model itself add. `bench/fit_loss.py` finds the numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import msgspec

from breakeven.model.quality.methods import Method


class LossModel(msgspec.Struct, frozen=True):
    """A model that losses were published of; sizes in billions."""

    kind: str
    total_b: float
    active_b: float


class LossSource(msgspec.Struct, frozen=True):
    """Where figures stand, and on what terms."""

    link: str
    licence: str


class LossRow(msgspec.Struct, frozen=True, array_like=True):
    """One published figure; `source` is its place among the sources."""

    model: str
    method: str
    bits: float | None
    calibration: str
    metric: str
    value: float
    baseline: str
    baseline_value: float | None
    text: str
    language: str
    source: int


class Losses(msgspec.Struct, frozen=True):
    """The file of published figures."""

    about: str
    sources: list[LossSource]
    models: dict[str, LossModel]
    rows: list[LossRow]


class Translation(msgspec.Struct, frozen=True):
    """Another figure from KL: its logarithm is `level + slope * log(kl)`, in 95 % of pairs within `half_width`."""

    level: float
    slope: float
    half_width: float
    n: int

    def of(self, kl: float) -> float:
        """The figure at this KL."""
        return math.exp(self.level + self.slope * math.log(kl)) if kl > 0 else 0.0


class LossKin(msgspec.Struct, frozen=True):
    """Models of one maker, kind and size, by the name of one of them."""

    name: str
    maker: str
    moe: bool
    total_b: float


class LossFit(msgspec.Struct, frozen=True):
    """The file of the fit. `spread`: by basis, half the width of 95 % intervals of log KL under and over 6 bits."""

    about: str
    date: str
    coefficients: dict[str, float]
    models: dict[str, str]
    """Kin by the plain name of a model with figures of its own."""
    kin: list[LossKin]
    spread: dict[str, tuple[float, float]]
    top1: Translation
    perplexity: Translation
    knowledge: Translation
    reached: dict[str, float]


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What of a model the curve knows. `name` plain, and empty where only a kind is asked about."""

    name: str
    moe: bool
    total_b: float
    active_b: float

    @property
    def maker(self) -> str:
        """The beginning of the name: `qwen` of `qwen3.5-27b`."""
        found = re.match(r"[a-z]+", self.name)
        word = found[0] if found else ""
        return _SAME_MAKER.get(word, word)


_SAME_MAKER = dict.fromkeys(("mixtral", "ministral", "devstral", "magistral"), "mistral") | {"qwq": "qwen"}
SAME_SIZE = 0.15
"""Kin are no further apart than this in the logarithm of total parameters."""


def log_kl(form: Method, bits: float, shape: ModelSize) -> float:
    """The middle of what is expected: the logarithm of KL."""
    coefficients = loss_fit().coefficients
    terms = (*curve(form, bits, shape).items(), *effects(form, bits, shape, kin_of(shape)))
    return sum(coefficients.get(key, 0.0) * value for key, value in terms)


def curve(form: Method, bits: float, shape: ModelSize) -> dict[str, float]:
    """What the curve is made of, by coefficient: straight pieces over nominal bits, bent by kind, size and sparsity."""
    x, low, high = _places(form, bits)
    moe, top = float(shape.moe), max(0.0, x - 6.3)
    size, sparse = math.log(shape.total_b / 30), math.log(shape.active_b / shape.total_b)
    return {
        **{"level": 1.0, "low": low, "lower": max(0.0, 3 - x), "lowest": max(0.0, 2.2 - x)},
        **{"up": max(0.0, x - 4.5), "high": high, "top": top},
        # What a file has beyond its nominal bits is spent on tables and a few sensitive matrices.
        "over": min(max(bits - x, -0.6), 1.5),
        # Rounding to nearest is as good as any where there are levels enough.
        "plain": (1 - form.importance) * max(0.0, 6.5 - x),
        **{"moe": moe, "moe low": moe * low, "moe high": moe * high, "moe top": moe * top},
        **{"size": size, "size low": size * low, "size high": size * high},
        **{"sparse": sparse, "sparse high": sparse * high},
    }


def effects(form: Method, bits: float, shape: ModelSize, kin: str) -> Iterable[tuple[str, float]]:
    """What single methods, makers, kin and models add: each a level, and two tilts towards few and many bits."""
    _, low, high = _places(form, bits)
    yield f"family {form.family}", 1.0
    yield f"method {form.kind}", 1.0
    for group, key in (("maker", shape.maker), ("kin", kin), ("model", shape.name)):
        if key:
            yield f"{group} {key}", 1.0
            yield f"{group} low {key}", low
            yield f"{group} high {key}", high


def _places(form: Method, bits: float) -> tuple[float, float, float]:
    """Nominal bits, how far they are under 4.5, and over 5."""
    x = min(max(bits if form.bits is None else form.bits, 1.5), 8.5)
    return x, min(0.0, x - 4.5), max(0.0, x - 5)


def kin_of(shape: ModelSize) -> str:
    """The kin that a model belongs to, empty where there is none."""
    if shape.name in loss_fit().models:
        return loss_fit().models[shape.name]
    near = [
        (abs(math.log(kin.total_b / shape.total_b)), kin.name)
        for kin in loss_fit().kin
        if kin.maker == shape.maker and kin.moe == shape.moe
    ]
    found = min(near, default=None)
    return found[1] if found is not None and found[0] <= SAME_SIZE else ""


def sixteen_bits(baseline: str) -> bool:
    """Whether figures with this baseline are against weights of 16 bits."""
    return baseline.lower().startswith(("bf16", "f16", "fp16", "16-bit"))


@lru_cache(maxsize=1)
def losses() -> Losses:
    """All published figures that are shipped."""
    data = resources.files("breakeven.model").joinpath("data", "losses.json").read_bytes()
    return msgspec.json.decode(data, type=Losses)


@lru_cache(maxsize=1)
def loss_fit() -> LossFit:
    """The fit that is shipped."""
    data = resources.files("breakeven.model").joinpath("data", "loss_fit.json").read_bytes()
    return msgspec.json.decode(data, type=LossFit)
