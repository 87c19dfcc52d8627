"""Traffic as people write it on a command line: durations, rates, lengths and arrivals."""

from __future__ import annotations

import math
import re

from breakeven.errors import UserError
from breakeven.spec.workload import Arrivals, Length

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([0-9.]+(?:[eE][+-]?\d+)?)\s*(ms|s|min|m|h)?")
_MOST = 1e9


def parse_duration(text: str) -> float:
    """Seconds in `60s`, `500ms`, `10m`, `1h` or plain `60`. Raises UserError for anything else."""
    match = _DURATION.fullmatch(text.strip())
    seconds = _number(match[1]) if match else None
    if match is None or seconds is None:
        raise UserError(f"{text!r} is no duration; write 60s, 500ms, 10m or 1h")
    return seconds * _UNITS_S[match[2] or "s"]


def parse_rates(text: str) -> tuple[float, ...]:
    """Requests per second in `2,5,10`, in the order written. Raises UserError for anything but numbers above 0."""
    rates = []
    for part in text.split(","):
        rate = _number(part)
        if rate is None or rate == 0:
            raise UserError(f"rates {text!r}: {part.strip()!r} is no rate above 0; write requests per second as 2,5,10")
        rates.append(rate)
    if len(set(rates)) < len(rates):
        raise UserError(f"rates {text!r}: write every rate once")
    return tuple(rates)


def parse_length(text: str) -> Length:
    """Token counts: `128`, `uniform:64-512`, `normal:512±128` or `normal:512,128`, `lognormal:1155,900`.

    `normal` and `lognormal` may end in `[LOW-HIGH]` to clip them: `lognormal:1155,900[16-8192]`.
    """
    kind, _, rest = text.strip().partition(":")
    if not rest and kind.isdecimal() and int(kind) >= 1:
        return Length(mean=float(kind))
    if kind == "uniform" and (ends := _range(rest)):
        return Length(kind="uniform", low=ends[0], high=ends[1])
    if kind in ("normal", "lognormal"):
        values, bracket, clip = rest.partition("[")
        mean, _, sd = values.replace("±", ",").partition(",")
        numbers, ends = (_number(mean), _number(sd)), _range(clip.removesuffix("]"))
        clipped = bool(bracket)
        if numbers[0] and numbers[1] is not None and numbers[0] >= 1 and (not clipped or (ends and clip[-1] == "]")):
            low, high = ends if clipped and ends else (1, None)
            return Length(kind=kind, mean=numbers[0], sd=numbers[1], low=low, high=high)
    raise UserError(
        f"{text!r} is no length in tokens; write 128, uniform:64-512, normal:512±128 (or normal:512,128) or "
        "lognormal:1155,900, the last two with [16-8192] to clip them"
    )


def parse_arrivals(text: str, rate_per_s: float | None = None) -> Arrivals:
    """When requests come: `constant`, `poisson`, `gamma:2.5`, `steps:2x30s,5x30s` or `ramp:1-10`.

    `rate_per_s` is the rate of the first three; steps and ramp bring their own. Raises UserError for anything else.
    """
    kind, _, rest = text.strip().partition(":")
    if kind in ("constant", "poisson") and not rest:
        return Arrivals(process=kind, rate_per_s=rate_per_s)
    if kind == "gamma" and (cv := _number(rest)):
        return Arrivals(process="gamma", rate_per_s=rate_per_s, cv=cv)
    if kind == "steps" and rest:
        _refuse_rate(kind, rate_per_s)
        return Arrivals(process="steps", steps=tuple(_step(text, part) for part in rest.split(",")))
    if kind == "ramp":
        low, _, high = rest.partition("-")
        ends = (_number(low), _number(high))
        if ends[0] is not None and ends[1] is not None and max(ends[0], ends[1]) > 0:
            _refuse_rate(kind, rate_per_s)
            return Arrivals(process="ramp", rate_per_s=ends[0], to_rate_per_s=ends[1])
    raise UserError(
        f"{text!r} are no arrivals; write constant, poisson, gamma:2.5 (coefficient of variation), steps:2x30s,5x30s "
        "(requests/s x how long) or ramp:1-10 (requests/s)"
    )


def _step(text: str, part: str) -> tuple[float, float]:
    rate_text, _, seconds_text = part.partition("x")
    rate = _number(rate_text)
    if rate is None or not seconds_text:
        raise UserError(f"{text!r}: {part.strip()!r} is no step; write requests/s x how long, as 2x30s")
    return rate, parse_duration(seconds_text)


def _refuse_rate(kind: str, rate_per_s: float | None) -> None:
    if rate_per_s is not None:
        raise UserError(f"{kind} brings its own rates; leave out the rate of {rate_per_s:g}")


def _range(text: str) -> tuple[int, int] | None:
    """Both ends of `64-512`, None unless 1 <= low <= high."""
    low, _, high = text.partition("-")
    if not (low.strip().isdecimal() and high.strip().isdecimal()):
        return None
    ends = int(low), int(high)
    return ends if 1 <= ends[0] <= ends[1] <= _MOST else None


def _number(text: str) -> float | None:
    """A number from 0 to a thousand million, None for anything else."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and 0 <= number <= _MOST else None
