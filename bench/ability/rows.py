"""Published scores as records of one form: which model, which harness and benchmark, which area and language."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.ability.areas import ALIASES, BENCHMARKS, DATES, SKIPPED
from breakeven.errors import UserError
from breakeven.model.arithmetic import active_params, total_params
from breakeven.model.catalogue import entries, lookup
from breakeven.model.quality.kin import Kin, kin_of
from breakeven.model.quality.posterior import year_of

QUANTIZED = ("GGUF q4_0",)
"""Formats whose scores are not of the model as published."""
LEAST, MOST = 0.02, 0.98
"""Shares of what guessing leaves are taken no nearer to nothing and all than this."""


@dataclass(frozen=True, slots=True)
class Score:
    """One score: a mean where a harness gives several of one model on one benchmark.

    `benchmark`: harness and benchmark, whose scores alone compare. `areas`: weights of areas, which sum to 1.
    `language` None: English or no matter. `share` of tasks solved; `chance` of it is had by guessing. `items`: tasks.
    """

    kin: Kin
    total_b: float
    active_b: float
    year: float | None
    harness: str
    benchmark: str
    areas: tuple[tuple[str, float], ...]
    language: str | None
    share: float
    chance: float
    items: int
    licence: str
    link: str


@dataclass(frozen=True, slots=True)
class AnswerLength:
    """Mean tokens of one model's answers to one benchmark."""

    key: str
    benchmark: str
    area: str
    tokens: float


@dataclass(frozen=True, slots=True)
class _Rule:
    area: str
    chance: float
    items: int


def read(tsv: Path, older: Path | None) -> tuple[list[Score], list[AnswerLength]]:
    """All scores of models with known size: the table of 2026, and the older collection (JSON) beside it."""
    sizes = _sizes()
    rows = [*_of_table(tsv), *(() if older is None else _of_collection(older))]
    found: dict[tuple[str, str], list[Score]] = defaultdict(list)
    lengths: dict[tuple[str, str], list[AnswerLength]] = defaultdict(list)
    for row in rows:
        kin = kin_of(_alias(row["model"]))
        total, active, year = sizes.get(kin.release) or sizes.get(kin.weights) or (None, None, None)
        total = total or _number(row["total_b"])
        active = active or _number(row["active_b"]) or (total if "moe" not in row["kind"] else None)
        rule = _rule(row["source"], row["benchmark"])
        said = row["language"] != "all" and row["format"] not in QUANTIZED
        if total is None or active is None or rule is None or not kin.release or not said:
            continue
        share = float(row["value"]) / (
            1 if 0 < float(row["value"]) <= 1 and "pct" not in row["metric"] else _scale(row)
        )
        name = f"{row['source']}: {row['benchmark']}" + (f" [{_release(row)}]" if _release(row) else "")
        language = None if row["language"] in ("en", "code") else row["language"]
        name += f" {language}" if language else ""
        score = Score(
            kin, total, active, kin.year or year or DATES.get(kin.series), row["source"], name, _areas(rule.area),
            language, share, rule.chance, rule.items, row["licence"], row["link"],
        )  # fmt: skip
        found[kin.key, name].append(score)
        if row["n_tokens_per_answer"] and "words" not in row["note"]:
            length = AnswerLength(kin.key, row["benchmark"], rule.area, float(row["n_tokens_per_answer"]))
            lengths[kin.key, name].append(length)
    return [_mean(group) for group in found.values()], [_mean_length(group) for group in lengths.values()]


def _mean(group: list[Score]) -> Score:
    share = sum(each.share for each in group) / len(group)
    first = group[0]
    return Score(
        first.kin, first.total_b, first.active_b, first.year, first.harness, first.benchmark, first.areas,
        first.language, share, first.chance, first.items * len(group), first.licence, first.link,
    )  # fmt: skip


def _mean_length(group: list[AnswerLength]) -> AnswerLength:
    # A table twice over is no second measurement; a mean of the ways to ask is what is known.
    return AnswerLength(group[0].key, group[0].benchmark, group[0].area, sum(e.tokens for e in group) / len(group))


def _scale(row: dict[str, str]) -> float:
    return 1.0 if float(row["value"]) == 0 else 100.0


def _release(row: dict[str, str]) -> str:
    """Of a benchmark that changes under one name."""
    found = re.search(r"release (\S+)", row["shots_mode"])
    return found[1] if found else ""


def _areas(area: str) -> tuple[tuple[str, float], ...]:
    parts = area.split("+")
    return tuple((part, 1 / len(parts)) for part in parts)


def _rule(source: str, benchmark: str) -> _Rule | None:
    if any(re.search(pattern, f"{source}: {benchmark}") for pattern in SKIPPED):
        return None
    for pattern, area, chance, items in BENCHMARKS:
        if re.search(pattern, f"{source}: {benchmark}"):
            return _Rule(area, chance, items)
    raise UserError(f"no area is known for {benchmark!r} of {source}; add it to bench/ability/areas.py")


def _alias(name: str) -> str:
    for pattern, meant in ALIASES:
        if re.search(pattern, name, re.IGNORECASE):
            return meant
    return name


def _number(text: str) -> float | None:
    return float(text) or None if text else None


def _of_table(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader((line for line in lines if line[0] != "#"), delimiter="\t", quoting=csv.QUOTE_NONE)


def _of_collection(path: Path) -> Iterator[dict[str, str]]:
    """The rows of scores to early 2025, as rows of the table."""
    held = json.loads(path.read_text(encoding="utf-8"))
    about = {"model", "src", "kind", "total_b", "active_b", "helm_mean"}
    for row in held["rows"]:
        if row["src"] not in ("hf2", "helm", "qwen3tr", "cards") or row["kind"] == "closed":
            continue
        source = held["sources"][row["src"]]
        model = row["model"] + ("#plain" if row["src"] == "helm" and "qwen3" in row["model"] else "")
        for benchmark, value in row.items():
            if benchmark not in about and isinstance(value, float):
                yield {
                    "source": row["src"], "benchmark": benchmark, "shots_mode": "", "model": model,
                    "kind": row["kind"], "total_b": str(row["total_b"]),
                    "active_b": str(row.get("active_b", "" if "moe" in row["kind"] else row["total_b"])),
                    "format": "", "language": "en", "metric": "share", "value": str(value),
                    "n_tokens_per_answer": "", "licence": source["license"], "link": source["via"], "note": "",
                }  # fmt: skip


def _sizes() -> dict[str, tuple[float, float, float | None]]:
    """Billions of parameters, total and active, and year of release, of every catalogued model under its names."""
    found: dict[str, tuple[float, float, float | None]] = {}
    for entry in entries():
        spec = lookup(entry.name)
        date = entry.facts.date
        year = None if date is None else year_of(date)
        value = (total_params(spec) / 1e9, active_params(spec) / 1e9, year)
        for name in (entry.name, entry.hub_id, *entry.facts.also):
            found.setdefault(kin_of(name).release, value)
    return found
