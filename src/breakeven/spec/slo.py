"""The service level as people write it: `ttft=1s,tpot=80ms`."""

from __future__ import annotations

import math
import re

from breakeven.errors import UserError
from breakeven.spec.workload import Slo

TERMS = {"ttft": "ttft_s", "tpot": "tpot_s", "itl": "itl_s", "e2e": "e2e_s"}
UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}

_TERM = re.compile(r"\s*(?P<name>[^=,\s]*)\s*(?P<equals>=?)\s*(?P<number>[0-9.eE+-]*)\s*(?P<unit>[^\s,]*)\s*")


def parse_slo(text: str) -> Slo:
    """The service level in `text`: terms such as `ttft=1s`, separated by commas.

    Raises UserError naming the column, from 1, and what could stand there.
    """
    found: dict[str, float] = {}
    column = 1
    for part in text.split(","):
        match = _TERM.fullmatch(part)
        if match is None or not match["name"] or not match["equals"]:
            raise _wrong(text, column, f"expected a term such as ttft=1s, found {part.strip()!r}")
        name, number, unit = match["name"], match["number"], match["unit"]
        if name not in TERMS:
            raise _wrong(text, column + match.start("name"), f"{name!r} is no term; there are {', '.join(TERMS)}")
        if name in found:
            raise _wrong(text, column + match.start("name"), f"{name} stands here for the second time")
        try:
            value = float(number)
        except ValueError as error:
            raise _wrong(
                text, column + match.start("number"), f"expected a number such as 80ms, found {number + unit!r}"
            ) from error
        if unit not in UNITS_S:
            raise _wrong(text, column + match.start("unit"), f"{unit!r} is no unit; there are {', '.join(UNITS_S)}")
        seconds = _scaled(value, unit)
        if not 0 < seconds < math.inf:
            raise _wrong(text, column + match.start("number"), f"{name} must be above 0, found {number + unit}")
        found[name] = seconds
        column += len(part) + 1
    return Slo(**{TERMS[name]: seconds for name, seconds in found.items()})


def slo_text(slo: Slo) -> str:
    """`slo` as it is written; `parse_slo` reads it back exactly. Empty for a service level without terms."""
    values = ((name, getattr(slo, attribute)) for name, attribute in TERMS.items())
    return ",".join(f"{name}={_duration(value)}" for name, value in values if value is not None)


def _scaled(value: float, unit: str) -> float:
    # Divided where the factor is below 1: 80 / 1000 is exactly the float 0.08, 80 * 0.001 need not be.
    return value / round(1 / UNITS_S[unit]) if UNITS_S[unit] < 1 else value * UNITS_S[unit]


def _duration(seconds: float) -> str:
    """The shortest spelling that means exactly `seconds`."""
    spellings = [f"{seconds / UNITS_S[unit]:.12g}{unit}" for unit in ("s", "ms", "us")]
    exact = [text for text, unit in zip(spellings, ("s", "ms", "us"), strict=True) if _reads(text, unit) == seconds]
    return min(exact, key=lambda text: ("e" in text, text.startswith("0."), len(text)), default=f"{seconds!r}s")


def _reads(text: str, unit: str) -> float:
    return _scaled(float(text.removesuffix(unit)), unit)


def _wrong(text: str, column: int, what: str) -> UserError:
    return UserError(f"SLO {text!r}, column {column}: {what}")
