"""How good models are, by the best source that covers all candidates: own evaluation, one published harness, or size.

Two harnesses are never mixed: the same model moves by up to eleven points between them. Published scores are of 16-bit
weights; what a weight format costs in quality is not in them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Literal

import msgspec

from breakeven.errors import UserError
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import active_params, total_params

DENSE_EQUIVALENT = (0.72, 0.90, 1.60)
"""Least, median and most of measured over predicted, where sqrt(total * active) predicts how many parameters a dense
model needs to be as good: seven Mixture-of-Experts models in one harness (docs/quality.md)."""
SIZE_SOURCE = (
    "dense-equivalent size: 0.90 (0.72 to 1.60) * sqrt(total * active) parameters; dense models count as they are"
)
CONFIDENT = 1.96
"""Standard errors each way: 95 % of a normal distribution."""

How = Literal["own", "published", "size"]


class QualityScore(msgspec.Struct, frozen=True, kw_only=True):
    """How good a model is, by the best source there is. `how` in order of trust: own, bits_per_byte, published, size.

    own: tasks of the user's. bits_per_byte: how well it predicts the user's text, less is better. published: one
    harness for all candidates. size: dense-equivalent parameters sqrt(total * active), a guess with its band.
    `value` is a share of tasks solved (own, published), bits per byte, or parameters.
    """

    how: Literal["own", "bits_per_byte", "published", "size", "none"]
    value: float | None = None
    low: float | None = None
    high: float | None = None
    benchmark: str | None = None
    source: str | None = None
    loss: float | None = None
    """Bits per byte more than those of the model `loss_against`, over the latter, in the language where it is most."""
    loss_low: float | None = None
    loss_high: float | None = None
    loss_language: str | None = None
    loss_against: str | None = None


class ScoreSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where published scores come from, and by which harness."""

    name: str
    harness: str
    date: str
    """Of retrieval, or of the report."""
    via: str
    licence: str
    evaluator: str


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of one model: shares of tasks solved, by benchmark. Base and instruction-tuned models do not compare."""

    model: str
    source: str
    stage: Literal["base", "instruct"]
    scores: dict[str, float]


class _Published(msgspec.Struct, frozen=True, kw_only=True):
    """The data file. `items`: questions in a benchmark."""

    about: str
    items: dict[str, int]
    sources: dict[str, ScoreSource]
    rows: list[Row]


def quality_of(
    candidates: Mapping[str, ModelSpec],
    source: How | None = None,
    own: Mapping[str, float] | None = None,
    benchmark: str | None = None,
) -> dict[str, QualityScore]:
    """Quality by candidate, all from one source, so that they compare.

    `candidates`: model by the candidate's name. `source` None: own scores if they cover all, else published ones of one
    source, benchmark and stage that cover all, else size. `own`: share of tasks solved by candidate; names without a
    model (an API) get theirs, too. Raises UserError when a source asked for does not cover every candidate, or no
    source knows the benchmark.
    """
    if benchmark is not None and benchmark not in benchmarks():
        raise UserError(f"no scores of {benchmark!r} are known; there are {', '.join(sorted(benchmarks()))}")
    missing = [name for name in candidates if name not in (own or {})]
    if own and not missing and source in (None, "own"):
        return {name: QualityScore(how="own", value=share, source="your evaluation") for name, share in own.items()}
    if source == "own":
        raise UserError(f"your scores are missing for {', '.join(missing)}; give one for every candidate")
    if source in (None, "published") and candidates and (found := _published(candidates, benchmark)):
        return found
    if source == "published":
        raise UserError(
            f"no one source of published scores covers {', '.join(candidates)}; give your own, or take size "
            "(docs/quality.md lists what is known)"
        )
    return {name: _by_size(spec) for name, spec in candidates.items()}


def benchmarks() -> set[str]:
    """Names of all benchmarks with a published score."""
    return {name for row in _data().rows for name in row.scores}


def published() -> tuple[Row, ...]:
    """All published scores that are shipped."""
    return tuple(_data().rows)


def sources() -> Mapping[str, ScoreSource]:
    """The sources that `published` rows name."""
    return _data().sources


def _published(candidates: Mapping[str, ModelSpec], benchmark: str | None) -> dict[str, QualityScore] | None:
    data = _data()
    wanted = {name: plain_name(spec.name) for name, spec in candidates.items()}
    for name in [benchmark] if benchmark else list(dict.fromkeys(n for row in data.rows for n in row.scores)):
        for origin in data.sources:
            for stage in ("instruct", "base"):
                rows = {
                    plain_name(row.model): row
                    for row in data.rows
                    if row.source == origin and row.stage == stage and name in row.scores
                }
                if all(key in rows for key in wanted.values()):
                    return {
                        candidate: _score(rows[key].scores[name], name, stage, data.sources[origin], data.items)
                        for candidate, key in wanted.items()
                    }
    return None


def _score(share: float, benchmark: str, stage: str, source: ScoreSource, items: Mapping[str, int]) -> QualityScore:
    low = high = None
    if benchmark in items:
        # Wilson's interval of a share: how far another draw of as many questions could have come out.
        n, z = items[benchmark], CONFIDENT
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        low, high = centre - half, centre + half
    return QualityScore(
        how="published",
        value=share,
        low=low,
        high=high,
        benchmark=benchmark,
        source=f"{source.name} ({source.date}, {source.evaluator}), {stage} models",
    )


def _by_size(spec: ModelSpec) -> QualityScore:
    if not spec.is_moe:
        size = float(total_params(spec))
        return QualityScore(how="size", value=size, low=size, high=size, source=SIZE_SOURCE)
    low, median, high = (share * math.sqrt(total_params(spec) * active_params(spec)) for share in DENSE_EQUIVALENT)
    return QualityScore(how="size", value=median, low=low, high=high, source=SIZE_SOURCE)


_STAGE = re.compile(r"-(instruct|chat|base|it|hf)(?=-|$)")
_PREFIX = re.compile(r"^meta-(?=llama)")


def plain_name(name: str) -> str:
    """A model's name without owner and stage, so that a base model and its tuned one are of one kin."""
    return _PREFIX.sub("", _STAGE.sub("", name.lower().rpartition("/")[2]))


@lru_cache(maxsize=1)
def _data() -> _Published:
    data = resources.files("breakeven.model").joinpath("data", "quality.json").read_bytes()
    return msgspec.json.decode(data, type=_Published)
