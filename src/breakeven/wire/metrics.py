"""What an engine tells of itself on its `/metrics` page, by whichever names of `dialects.json` it uses."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import islice
from typing import NamedTuple

import msgspec

from breakeven.wire.dialects import dialects

_LINE = re.compile(r'([A-Za-z_:][\w:]*)(?:\{(?:[^"}]|"(?:\\.|[^"\\])*")*\})?[ \t]+(\S+)')
MOST_LINES, MOST_LINE = 20_000, 4_096
"""Of a `/metrics` page, what is read: vLLM's longest pages have a few thousand lines of some hundred letters."""
MOST_EXPERT_LINES = 65_536
"""Of those by expert, which are read apart: four engines of 61 layers of 256 experts."""
EXPERT_COUNTER = "breakeven:expert_tokens_total"
"""Tokens by expert since the start, by `layer` where it says so."""
EXPERT_GAUGE = "vllm:eplb_tokens_routed_to_expert"
"""Tokens by `layer_idx` and `logical_expert_id` in the current step: some builds of vLLM have it, 0.32 does not."""
_BY_EXPERT = (EXPERT_COUNTER, EXPERT_GAUGE)
_EXPERT_HEAD = re.compile(rf'({"|".join(_BY_EXPERT)})\{{((?:[^"}}]|"(?:\\.|[^"\\])*")*)')
_LAYER = re.compile(r'(?:^|,) ?(?:layer|layer_idx)="([^"]*)"')
_EXPERT = re.compile(r'(?:^|,) ?(?:expert|logical_expert_id)="([^"]*)"')
MOST_LAYERS, MOST_EXPERTS = 512, 4_096
MOST_TOKENS = 2.0**53
"""Of one expert; beyond it a count is none."""

Cells = dict[tuple[int, int], float]
"""Tokens by layer and expert."""


class ExpertTokens(NamedTuple):
    """What a page says by expert.

    `by_engine`: by the labels that tell one engine behind it from another, as they stand.
    `of_step`: of the step that is running, or the last one; else since that engine started.
    """

    by_engine: dict[str, Cells]
    of_step: bool


class EngineNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """One look at an engine. None: it does not tell.

    `running` and `waiting` are requests, `kv_share` the share of the KV cache in use, 0 to 1; the last two are totals
    since the engine started.
    """

    running: float | None = None
    waiting: float | None = None
    kv_share: float | None = None
    preemptions: float | None = None
    cached_prompt_tokens: float | None = None


FIELDS = EngineNumbers.__struct_fields__
_AVERAGED = frozenset({"kv_share"})
"""Averaged over the parts of an engine that report it (vLLM: one a data-parallel rank); the others are added up."""


@cache
def metric_names() -> dict[str, dict[str, tuple[str, ...]]]:
    """Engine -> field of `EngineNumbers` -> names, newest first; one that speaks as another does is not repeated."""
    return {
        engine: {field: tuple(dialect.metrics.get(field, ())) for field in FIELDS}
        for engine, dialect in dialects().items()
        if not dialect.like
    }


def lines_of(text: str) -> Iterator[str]:
    """The samples of a Prometheus text page, a line each, within bounds: no page costs more than some milliseconds.

    Those by expert are left out: see `expert_tokens`.
    """
    return islice((line for line in _lines(text) if not line.startswith(_BY_EXPERT)), MOST_LINES)


def _lines(text: str) -> Iterator[str]:
    most = MOST_LINES + MOST_EXPERT_LINES
    return (line for line in text.split("\n", most)[:most] if 2 < len(line) <= MOST_LINE and line[0] != "#")


def parse_metrics(text: str) -> dict[str, list[float]]:
    """Every sample of a Prometheus text page by name, whatever its labels, but for those by expert.

    Lines that are none, and values that are no finite number, are skipped.
    """
    found: dict[str, list[float]] = {}
    for line in lines_of(text):
        match = _LINE.match(line)
        if match is None:
            continue
        try:
            value = float(match[2])
        except ValueError:
            continue
        if math.isfinite(value):
            found.setdefault(match[1], []).append(value)
    return found


def engine_numbers(text: str) -> EngineNumbers | None:
    """What a `/metrics` page says, whichever known engine wrote it; None when it has none of their names."""
    samples = parse_metrics(text)
    values: dict[str, float] = {}
    for names in metric_names().values():
        for field in FIELDS:
            if (name := next((name for name in names[field] if name in samples), None)) is not None:
                found = samples[name]
                values[field] = sum(found) / len(found) if field in _AVERAGED else sum(found)
    return EngineNumbers(**values) if values else None


def expert_tokens(text: str) -> ExpertTokens | None:
    """Tokens by layer and expert on a `/metrics` page, of layer 0 where none is named; None where it does not say.

    Where both are there the counter is taken. Labels that are no number of a layer or an expert, and values that are
    no count, are skipped. Raises ValueError where there are more lines than are read: a part would count some experts.
    """
    if EXPERT_COUNTER not in text and EXPERT_GAUGE not in text:
        return None
    if text.count("\n") > MOST_LINES + MOST_EXPERT_LINES:
        raise ValueError(f"more than {MOST_LINES + MOST_EXPERT_LINES} lines")
    found: dict[str, dict[str, Cells]] = {name: {} for name in _BY_EXPERT}
    for line in _lines(text):
        if not line.startswith(_BY_EXPERT):
            continue
        head, _, rest = line.rpartition("}")
        place = _place(head)
        if place is not None and (value := _count(rest)) is not None:
            name, engine, cell = place
            cells = found[name].setdefault(engine, {})
            cells[cell] = cells.get(cell, 0.0) + value
    for name in _BY_EXPERT:
        if found[name]:
            return ExpertTokens(found[name], of_step=name == EXPERT_GAUGE)
    return None


@lru_cache(maxsize=MOST_EXPERT_LINES)
def _place(head: str) -> tuple[str, str, tuple[int, int]] | None:
    """Name, engine, layer and expert of a line up to its closing brace. Each look brings the same thousands."""
    match = _EXPERT_HEAD.fullmatch(head)
    labels = "" if match is None else match[2]
    layer, expert = _LAYER.search(labels), _EXPERT.search(labels)
    if match is None or expert is None:
        return None
    row = 0 if layer is None else _number(layer[1], MOST_LAYERS)
    at = _number(expert[1], MOST_EXPERTS)
    if row is None or at is None:
        return None
    return match[1], _EXPERT.sub("", _LAYER.sub("", labels)).strip(", "), (row, at)


def _number(text: str, most: int) -> int | None:
    """A whole number below `most`, as it is written by hand."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 6 and int(text) < most else None


def _count(text: str) -> float | None:
    """The number that follows the labels; a moment may stand behind it."""
    try:
        value = float(text.split(None, 1)[0])
    except (ValueError, IndexError):
        return None
    return value if 0 <= value <= MOST_TOKENS else None
