"""What must be said about how a run under load was measured, before any of its numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from breakeven.report.load_words import capital
from breakeven.spec.load import LoadPoint

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def warnings_of(points: Sequence[LoadPoint]) -> list[str]:
    """Flags of client and machine, each once with its loads; of those that differ by numbers only, the worst."""
    found: dict[str, dict[str, str]] = {}
    several_models = len({point.model for point in points}) > 1
    for point in points:
        where = f"{point.model} at {point.load}" if several_models else point.load
        for flag in [*point.client.flags, *point.flagged]:
            places = found.setdefault(_NUMBER.sub("#", flag), {})
            places[where] = max(places.get(where, flag), flag, key=_numbers)
    return [_warning(places, everywhere=len(places) == len(points)) for places in found.values()]


def _warning(places: dict[str, str], *, everywhere: bool) -> str:
    worst = capital(max(places.values(), key=_numbers)).rstrip(".")
    if len(set(places.values())) > 1:
        return f"{worst} (the worst of {'all loads' if everywhere else ', '.join(places)})."
    return f"{worst}." if everywhere else f"{worst} ({', '.join(places)})."


def _numbers(flag: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(flag)]
