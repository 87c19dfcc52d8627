"""What a record of a file that people write is made of: its base, how a key is called, and how each value is read.

Such a record is a plain frozen dataclass, and the only place that names a key, its type and its default. pydantic reads
it (`yaml_file.py`), but only where a file is read: what serves imports the same records without pydantic, and gets them
from the process that read the file. `docs/decisions/006-one-record-a-file.md` says why.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from breakeven.errors import UserError
from breakeven.traffic.words import (
    MEMORY,
    POWER,
    RATE,
    SHARE,
    parse_arrivals,
    parse_bytes,
    parse_duration,
    parse_length,
    parse_power,
    parse_rate,
    parse_share,
)
from breakeven.traffic.workload import TERMS, Arrivals, Length, parse_slo

DURATION = "a duration such as 90ms, 2s, 10min or 8h"
TOKENS = "tokens as 128, uniform:64-512, normal:512,128 or lognormal:1155,900[16-8192]"
HIDDEN = "hidden"
"""Type of a complaint about what may be a secret: the value is not repeated."""
FACT: Mapping[str, bool] = {"fact": True}
"""Of a field that is worked out, and no key: `field(metadata=FACT)`."""


def key_of(name: str) -> str:
    """The key of a field that names no other: units are written beside the number, not in the key."""
    return name if name.endswith("_per_s") else re.sub(r"_(s|w|bytes)$", "", name)


class FilePart:
    """A mapping in a file. A key that its fields do not know is refused; a field's `metadata["alias"]` is its key."""

    __slots__ = ()
    __pydantic_config__: ClassVar = {"extra": "forbid", "arbitrary_types_allowed": True, "alias_generator": key_of}

    def as_typed(self) -> Self:
        """Itself, where what was typed agrees; raises ValueError saying what would be right.

        Asked of what stands in a file only: a record that code makes or completes may hold more than people may say.
        """
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        schema = handler(source)
        facts = {each.name: each.default for each in fields(cls) if each.metadata.get("fact")}  # type: ignore[arg-type]
        inner = handler.resolve_ref_schema(schema)["schema"]
        inner["fields"] = [each for each in inner["fields"] if each["name"] not in facts]

        def complete(found: Self) -> Self:
            for name, default in facts.items():
                object.__setattr__(found, name, default)
            return found.as_typed()

        return core_schema.no_info_after_validator_function(complete, schema)


def keys_of(part: type[FilePart]) -> dict[str, str]:
    """The field behind each key of `part`."""
    return {
        each.metadata.get("alias", key_of(each.name)): each.name
        for each in fields(part)  # type: ignore[arg-type]
        if not each.metadata.get("fact")
    }


@dataclass(frozen=True, slots=True)
class As:
    """How values of an annotated type are read: from pydantic's schemas, the bare type and its handler, the schema."""

    schema: Callable[[Any, Any, Any], Any]
    part: type[FilePart] | None = None
    """The record that stands in the file for it, where one does."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return self.schema(core_schema, source, handler)


def read_by(read: Callable[[object], object]) -> As:
    """Whatever stands there goes through `read` first, which raises ValueError saying what would be right."""
    return As(lambda core, source, handler: core.no_info_before_validator_function(read, handler(source)))


def read_as(part: type[FilePart], made: Callable[[Any], object]) -> As:
    """It stands there as `part`, of which `made` makes the value."""
    return As(lambda core, _, handler: core.no_info_after_validator_function(made, handler.generate_schema(part)), part)


def text(least: int = 0, most: int | None = None, pattern: str | None = None) -> As:
    """Text of some length."""
    return As(lambda core, *_: core.str_schema(min_length=least or None, max_length=most, pattern=pattern))


def whole(least: int, most: int | None = None) -> As:
    """A whole number, and no text that could be read as one."""
    return As(lambda core, *_: core.int_schema(strict=True, ge=least, le=most))


def number(*, gt: float | None = None, ge: float | None = None, lt: float | None = None) -> As:
    """A finite number within these bounds; one with an end says itself what is beyond it."""
    return As(lambda core, *_: core.float_schema(strict=True, allow_inf_nan=lt is not None, gt=gt, ge=ge, lt=lt))


def one_of(*words: str) -> As:
    """One of these words."""
    return As(lambda core, *_: core.literal_schema([*words]))


def listed(least: int = 0) -> As:
    """A list, kept as a tuple."""

    def schema(core: Any, source: Any, handler: Any) -> Any:
        items = core.list_schema(handler(source)["items_schema"][0], min_length=least or None)
        return core.no_info_after_validator_function(tuple, items)

    return As(schema)


LIST = listed()
OPEN = As(lambda core, source, handler: core.nullable_schema(handler(source)))
"""May be left empty in the file. Whoever completes the record works it out from the rest."""
PLACE = As(lambda core, *_: core.no_info_after_validator_function(Path, core.str_schema()))
"""A path, as typed until whoever completes the record places it."""


def _plain(value: object) -> float | None:
    """A number as YAML reads it; None for text, and for true and false, which Python counts as numbers."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _parsed(parse: Callable[[str], Any], value: object, right: str) -> Any:
    """What `parse` makes of text, or of a plain number as if it were typed."""
    plain = _plain(value)
    try:
        return parse(str(value) if plain is None else repr(plain))
    except UserError:
        raise ValueError(right) from None


def _quantity(parse: Callable[[str], float], value: object) -> float | None:
    """A plain number as it is, text as `parse` reads it; None for anything else."""
    if not isinstance(value, str):
        return _plain(value)
    try:
        return parse(value)
    except UserError:
        return None


def _duration(value: object) -> object:
    seconds = _quantity(parse_duration, value)
    if seconds is None or not 0 <= seconds < math.inf:
        raise ValueError(DURATION)
    return seconds


def _above_0_s(value: object) -> object:
    seconds = _duration(value)
    if not seconds:
        raise ValueError(f"{DURATION}, above 0")
    return seconds


def _share(value: object) -> object:
    share = _quantity(parse_share, value)
    if share is None or not 0 <= share <= 1:
        raise ValueError(SHARE)
    return share


def _share_above_0(value: object) -> object:
    share = _share(value)
    if not share:
        raise ValueError(f"{SHARE}, above 0")
    return share


def _floor(value: object) -> object:
    return _share(value) if isinstance(value, str) else value


def _growth(value: object) -> object:
    growth = _quantity(parse_share, value)
    if growth is None or not -1 < growth <= 1000:
        raise ValueError("growth a year such as 40%, 1.5 (150 % more) or -20%")
    return growth


def _power(value: object) -> object:
    watts = _quantity(parse_power, value)
    if watts is None or not 0 < watts < math.inf:
        raise ValueError(POWER)
    return watts


def _length(value: object) -> object:
    plain = _plain(value)
    return _parsed(parse_length, value if plain is None else f"{plain:g}", TOKENS)


def _arrivals(value: object) -> object:
    try:
        found = parse_arrivals(str(value), 1.0)
        if found.agents is not None:  # their lengths are theirs, and a study gives its own
            raise UserError("agents are no arrivals of a study")
        return found
    except UserError:
        raise ValueError("poisson, constant or gamma:2.5 (coefficient of variation of the gaps)") from None


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
    found = value.isoformat() if isinstance(value, datetime.date) else value
    if not isinstance(found, str) or not re.fullmatch(r"20\d\d(-(0[1-9]|1[0-2])(-\d\d)?)?", found):
        raise ValueError("a date such as 2026-04 or 2026-04-15")
    return found


def _language(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError('a language code; YAML reads a bare "no" as false, so write "no" in quotes')
    if not isinstance(value, str) or not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]+)*", value):
        raise ValueError("a language code such as en, de or zh")
    return value


def _usd(value: object) -> object:
    usd = _plain(value)
    if usd is None or not 0 <= usd < math.inf:
        raise ValueError("US dollars, 0 or more, as a plain number")
    return usd


_NOTHING = re.compile(r"0+(\.0*)?(\s*/.*)?")
"""No load, with a unit or without: a rate is above 0."""


def hourly(value: object) -> tuple[float, ...]:
    """Rates of a day's or a week's hours as requests/s; raises ValueError saying what would be right."""
    right = f"{HOURS}, each 0 or {RATE}"
    if not isinstance(value, list | tuple):
        raise ValueError(right)
    if len(value) not in (DAY_HOURS, WEEK_HOURS):
        raise ValueError(f"{HOURS}; found {len(value)}")
    found = tuple(
        0.0
        if _NOTHING.fullmatch(str(each))
        else float(_parsed(parse_rate, each, f"{right}; load {i} of {len(value)} is {each!r}"))
        for i, each in enumerate(value, start=1)
    )
    if not max(found) > 0:
        raise ValueError("an hour in which something comes in")
    return found


def _day(value: object) -> object:
    return value if isinstance(value, str) and value.strip() else hourly(value)


DAY_HOURS, WEEK_HOURS = 24, 168
HOURS = "the loads of 24 hours (or of the 168 of a week), or a file of them"
Day = Annotated[tuple[float, ...] | str, read_by(_day)]
Rate = Annotated[float, read_by(lambda value: _parsed(parse_rate, value, RATE))]
Seconds = Annotated[float, read_by(_duration)]
SecondsAbove0 = Annotated[float, read_by(_above_0_s)]
Share = Annotated[float, read_by(_share)]
ShareAbove0 = Annotated[float, read_by(_share_above_0)]
Growth = Annotated[float, read_by(_growth)]
Memory = Annotated[int, read_by(lambda value: _parsed(parse_bytes, value, MEMORY))]
Power = Annotated[float, read_by(_power)]
Usd = Annotated[float, read_by(_usd)]
Date = Annotated[str, read_by(_date)]
Language = Annotated[str, read_by(_language)]
TokenLength = Annotated[Length, read_by(_length)]
ArrivalWords = Annotated[Arrivals, read_by(_arrivals)]
SLO_WORDS = read_by(_slo)
"""`ttft=2s,tpot=100ms` as well as a mapping of the same."""
Flag = Annotated[bool, As(lambda core, *_: core.bool_schema(strict=True))]
Count = Annotated[int, whole(0)]
CountAbove0 = Annotated[int, whole(1)]
Above0 = Annotated[float, number(gt=0)]
AtLeast0 = Annotated[float, number(ge=0)]
Floor = Annotated[float, number(ge=0), read_by(_floor)]
"""A share of tasks, in either form, or a plain number of billions of parameters."""
AtLeast1 = Annotated[float, number(ge=1)]
