"""What an engine tells of itself on its `/metrics` page, by whichever names of `dialects.json` it uses."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache

import msgspec

from breakeven.wire.dialects import dialects

_LINE = re.compile(r'([A-Za-z_:][\w:]*)(?:\{(?:[^"}]|"(?:\\.|[^"\\])*")*\})?[ \t]+(\S+)')
MOST_LINES, MOST_LINE = 20_000, 4_096
"""Of a `/metrics` page, what is read: vLLM's longest pages have a few thousand lines of some hundred letters."""


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
    """The samples of a Prometheus text page, a line each, within bounds: no page costs more than some milliseconds."""
    return (line for line in text.split("\n", MOST_LINES)[:MOST_LINES] if 2 < len(line) <= MOST_LINE and line[0] != "#")


def parse_metrics(text: str) -> dict[str, list[float]]:
    """Every sample of a Prometheus text page by name, whatever its labels.

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
