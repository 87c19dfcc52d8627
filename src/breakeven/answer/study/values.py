"""Quantities as people write them in a study: `2/s`, `40%`, `24GB`, `350W`, `90ms`. Each is one annotated type."""

from __future__ import annotations

import datetime
import math
import re
from typing import Annotated

from pydantic import BeforeValidator, Field, StrictBool

from breakeven.errors import UserError
from breakeven.traffic.words import parse_arrivals, parse_duration, parse_length
from breakeven.traffic.workload import TERMS, Arrivals, Length, parse_slo

_DAY_S = 86_400.0
_PERIODS_S = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "m": 60.0, "h": 3600.0, "hour": 3600.0}
_PERIODS_S |= {"d": _DAY_S, "day": _DAY_S, "week": 7 * _DAY_S, "month": 30.4375 * _DAY_S}
_RATE = re.compile(r"(?P<count>[0-9.eE+_-]+)\s*(?:req(?:uests)?)?\s*(?:/|per|a)\s*(?P<period>[0-9.]*\s*[a-z]+)")
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_BYTES |= {"tib": 2**40}
_WITH_UNIT = re.compile(r"(?P<number>[0-9.eE+_-]+)\s*(?P<unit>[A-Za-z]+|%)?")

RATE = "a rate above 0 such as 2/s, 40/min, 5000/day or 200000/8h"
DURATION = "a duration such as 90ms, 2s, 10min or 8h"
SHARE = "a share such as 95% or 0.95"
MEMORY = "a size such as 24GB or 24GiB"
POWER = "a power such as 25W or 1.2kW"
TOKENS = "tokens as 128, uniform:64-512, normal:512,128 or lognormal:1155,900[16-8192]"


def parse_rate(text: str) -> float:
    """Requests a second in `2/s`, `40/min`, `200000/8h` or plain `2`. Raises UserError for anything else."""
    match = _RATE.fullmatch(text.strip().lower())
    count = _number(match["count"] if match else text)
    period_s = _period_s(match["period"]) if match else 1.0
    if count is None or count <= 0 or not period_s:
        raise UserError(f"{text!r} is not {RATE}")
    return count / period_s


def parse_bytes(text: str) -> int:
    """Bytes in `24GB` (10^9 each), `24GiB` (2^30) or a plain number. Raises UserError for anything else."""
    match = _WITH_UNIT.fullmatch(text.strip())
    number = _number(match["number"]) if match else None
    scale = _BYTES.get((match["unit"] or "b").lower()) if match else None
    if number is None or scale is None or number <= 0:
        raise UserError(f"{text!r} is not {MEMORY}")
    return round(number * scale)


def _period_s(text: str) -> float | None:
    match = re.fullmatch(r"([0-9.]*)\s*([a-z]+)", text)
    if match is None:
        return None
    unit_s = _PERIODS_S.get(match[2]) or _PERIODS_S.get(match[2].removesuffix("s"))
    count = _number(match[1] or "1")
    return count * unit_s if count and unit_s else None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _plain(value: object) -> float | None:
    """A number as YAML reads it; None for text, and for true and false, which Python counts as numbers."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _rate(value: object) -> object:
    number = _plain(value)
    try:
        return parse_rate(str(value) if number is None else repr(number))
    except UserError:
        raise ValueError(RATE) from None


def _duration(value: object) -> object:
    number = _plain(value)
    try:
        seconds = parse_duration(value) if isinstance(value, str) else number
    except UserError:
        seconds = None
    if seconds is None or not 0 <= seconds < math.inf:
        raise ValueError(DURATION)
    return seconds


def _above_0_s(value: object) -> object:
    seconds = _duration(value)
    if not seconds:
        raise ValueError(f"{DURATION}, above 0")
    return seconds


def _share(value: object) -> object:
    number = _plain(value)
    if isinstance(value, str) and value.strip().endswith("%"):
        percent = _number(value.strip()[:-1])
        number = None if percent is None else percent / 100
    if number is None or not 0 <= number <= 1:
        raise ValueError(SHARE)
    return number


def _growth(value: object) -> object:
    number = _plain(value)
    if isinstance(value, str) and value.strip().endswith("%"):
        percent = _number(value.strip()[:-1])
        number = None if percent is None else percent / 100
    if number is None or not -1 < number <= 1000:
        raise ValueError("growth a year such as 40%, 1.5 (150 % more) or -20%")
    return number


def _memory(value: object) -> object:
    number = _plain(value)
    try:
        return parse_bytes(str(value) if number is None else repr(number))
    except UserError:
        raise ValueError(MEMORY) from None


def _power(value: object) -> object:
    number = _plain(value)
    if isinstance(value, str) and (match := _WITH_UNIT.fullmatch(value.strip())):
        scale = {"w": 1.0, "kw": 1000.0}.get((match["unit"] or "w").lower())
        count = _number(match["number"])
        number = None if scale is None or count is None else count * scale
    if number is None or not 0 < number < math.inf:
        raise ValueError(POWER)
    return number


def _length(value: object) -> object:
    number = _plain(value)
    try:
        return parse_length(str(value) if number is None else f"{number:g}")
    except UserError:
        raise ValueError(TOKENS) from None


def _arrivals(value: object) -> object:
    try:
        found = parse_arrivals(str(value), 1.0)
    except UserError:
        raise ValueError("poisson, constant or gamma:2.5 (coefficient of variation of the gaps)") from None
    return found


def _slo(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        slo = parse_slo(value)
    except UserError as error:
        raise ValueError(f"terms such as ttft=2s,tpot=100ms ({error})") from None
    return {term: seconds for term, name in TERMS.items() if (seconds := getattr(slo, name)) is not None}


def _date(value: object) -> object:
    # YAML reads 2026-04-01 as a date and 2026-04 as text.
    text = value.isoformat() if isinstance(value, datetime.date) else value
    if not isinstance(text, str) or not re.fullmatch(r"20\d\d(-(0[1-9]|1[0-2])(-\d\d)?)?", text):
        raise ValueError("a date such as 2026-04 or 2026-04-15")
    return text


def _language(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError('a language code; YAML reads a bare "no" as false, so write "no" in quotes')
    if not isinstance(value, str) or not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]+)*", value):
        raise ValueError("a language code such as en, de or zh")
    return value


def _usd(value: object) -> object:
    number = _plain(value)
    if number is None or not 0 <= number < math.inf:
        raise ValueError("US dollars, 0 or more, as a plain number")
    return number


Rate = Annotated[float, BeforeValidator(_rate)]
Seconds = Annotated[float, BeforeValidator(_duration)]
SecondsAbove0 = Annotated[float, BeforeValidator(_above_0_s)]
Share = Annotated[float, BeforeValidator(_share)]
Growth = Annotated[float, BeforeValidator(_growth)]
Memory = Annotated[int, BeforeValidator(_memory)]
Power = Annotated[float, BeforeValidator(_power)]
Usd = Annotated[float, BeforeValidator(_usd)]
Date = Annotated[str, BeforeValidator(_date)]
Language = Annotated[str, BeforeValidator(_language)]
TokenLength = Annotated[Length, BeforeValidator(_length)]
ArrivalWords = Annotated[Arrivals, BeforeValidator(_arrivals)]
SLO_WORDS = BeforeValidator(_slo)
"""`ttft=2s,tpot=100ms` as well as a mapping of the same."""
Flag = StrictBool
Count = Annotated[int, Field(ge=0, strict=True)]
CountAbove0 = Annotated[int, Field(ge=1, strict=True)]
Above0 = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
AtLeast0 = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
AtLeast1 = Annotated[float, Field(ge=1, strict=True, allow_inf_nan=False)]
