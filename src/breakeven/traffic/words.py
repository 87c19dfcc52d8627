"""Quantities and traffic as people write them: `90ms`, `40%`, `2/s`, `24GB`, `uniform:64-512`, `gamma:2.5`.

The one reading of each, for command lines and files alike; and from the words of a command line to the traffic they
mean, for every verb that makes load.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from breakeven.errors import UserError
from breakeven.traffic.workload import UNITS_S, Agents, Arrivals, Length, Slo, Workload, parse_slo

if TYPE_CHECKING:  # traces need numpy, which whoever only reads a duration does without
    from breakeven.traffic.prompt_file import PromptFile
    from breakeven.traffic.traces.rows import TraceRows

_DURATION = re.compile(r"([0-9.]+(?:[eE][+-]?\d+)?)\s*(us|ms|s|min|m|h)?")
_MOST = 1e9
_DAY_S = 86_400.0
_PERIODS_S = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "m": 60.0, "h": 3600.0, "hour": 3600.0}
_PERIODS_S |= {"d": _DAY_S, "day": _DAY_S, "week": 7 * _DAY_S, "month": 30.4375 * _DAY_S}
_RATE = re.compile(r"(?P<count>[0-9.eE+_-]+)\s*(?:req(?:uests)?)?\s*(?:/|per|a)\s*(?P<period>[0-9.]*\s*[a-z]+)")
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_BYTES |= {"tib": 2**40}
_WATTS = {"w": 1.0, "kw": 1000.0}
_WITH_UNIT = re.compile(r"(?P<number>[0-9.eE+_-]+)\s*(?P<unit>[A-Za-z]+|%)?")

RATE = "a rate above 0 such as 2/s, 40/min, 5000/day or 200000/8h"
SHARE = "a share such as 95% or 0.95"
MEMORY = "a size such as 24GB or 24GiB"
POWER = "a power such as 25W or 1.2kW"


def parse_duration(text: str) -> float:
    """Seconds in `60s`, `500ms`, `10m`, `10min`, `1h` or plain `60`. Raises UserError for anything else."""
    match = _DURATION.fullmatch(text.strip())
    seconds = _number(match[1]) if match else None
    if match is None or seconds is None:
        raise UserError(f"{text!r} is no duration; write 60s, 500ms, 10m or 1h")
    return seconds * UNITS_S[match[2] or "s"]


def parse_share(text: str) -> float:
    """A ratio in `90%` or `0.9`, whatever its size: who asks knows the bounds. Raises UserError for anything else."""
    number = _finite(text.strip().removesuffix("%"))
    if number is None:
        raise UserError(f"{text!r} is not {SHARE}")
    return number / 100 if text.strip().endswith("%") else number


def option_seconds(option: str, text: str, right: str | None = None) -> float:
    """What `option` of a command line says in `text`. Raises UserError naming it, with `right` as what to give."""
    try:
        return parse_duration(text)
    except UserError as error:
        raise UserError(f"{option}: {error}" if right is None else f"{option} {text!r}: give {right}") from None


def option_share(option: str, text: str, right: str, most: float = math.inf) -> float:
    """The same for a ratio from 0 to `most`."""
    try:
        share = parse_share(text)
    except UserError:
        share = -1.0
    if not 0 <= share <= most:
        raise UserError(f"{option} {text!r}: give {right}")
    return share


def parse_rate(text: str) -> float:
    """Requests a second in `2/s`, `40/min`, `200000/8h` or plain `2`. Raises UserError for anything else."""
    match = _RATE.fullmatch(text.strip().lower())
    count = _finite(match["count"] if match else text)
    period_s = _period_s(match["period"]) if match else 1.0
    if count is None or count <= 0 or not period_s:
        raise UserError(f"{text!r} is not {RATE}")
    return count / period_s


def parse_bytes(text: str) -> int:
    """Bytes in `24GB` (10^9 each), `24GiB` (2^30) or a plain number. Raises UserError for anything else."""
    return round(_with_unit(text, _BYTES, "b", MEMORY))


def parse_power(text: str) -> float:
    """Watts in `25W`, `1.2kW` or a plain number. Raises UserError for anything else."""
    return _with_unit(text, _WATTS, "w", POWER)


def _with_unit(text: str, scales: Mapping[str, float], usual: str, right: str) -> float:
    match = _WITH_UNIT.fullmatch(text.strip())
    number = _finite(match["number"]) if match else None
    scale = scales.get((match["unit"] or usual).lower()) if match else None
    if number is None or scale is None or not 0 < number * scale < math.inf:
        raise UserError(f"{text!r} is not {right}")
    return number * scale


def _period_s(text: str) -> float | None:
    match = re.fullmatch(r"([0-9.]*)\s*([a-z]+)", text)
    if match is None:
        return None
    unit_s = _PERIODS_S.get(match[2]) or _PERIODS_S.get(match[2].removesuffix("s"))
    count = _finite(match[1] or "1")
    return count * unit_s if count and unit_s else None


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


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
    """When requests come: `constant`, `poisson`, `gamma:2.5`, `agents:turns=8`, `steps:2x30s,5x30s` or `ramp:1-10`.

    `rate_per_s` is the rate of the first four; steps and ramp bring their own. Raises UserError for anything else.
    """
    kind, _, rest = text.strip().partition(":")
    if kind in ("constant", "poisson") and not rest:
        return Arrivals(process=kind, rate_per_s=rate_per_s)
    if kind == "gamma" and (cv := _number(rest)):
        return Arrivals(process="gamma", rate_per_s=rate_per_s, cv=cv)
    if kind == "agents":
        return Arrivals(process="agents", rate_per_s=rate_per_s, agents=_agents(text, rest))
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
        f"{text!r} are no arrivals; write constant, poisson, gamma:2.5 (coefficient of variation), agents, "
        "steps:2x30s,5x30s (requests/s x how long) or ramp:1-10 (requests/s)"
    )


def _agents(text: str, rest: str) -> Agents:
    """The shape of sessions in `prefix=6000,turns=20,tool=3s,subagents=20%`; what is not said keeps its default."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        name, _, value = part.partition("=")
        number: float | None
        if name == "tool":
            name, number = "tool_s", parse_duration(value)
        elif name == "subagents":
            number = parse_share(value)
        else:
            number = _number(value)
        least = 1 if name in ("task", "new", "output", "turns") else 0
        if name not in Agents.__struct_fields__ or number is None or number < least or name in found:
            raise UserError(
                f"{text!r}: {part!r} is nothing a session has; there are prefix, task, new, output (tokens), turns, "
                "tool (2s) and subagents (10%), each once"
            )
        found[name] = number
    if found.get("subagents", 0) > 1:
        raise UserError(f"{text!r}: subagents is a share of the turns, at most 100%")
    return msgspec.convert(found | ({"prefix": round(found["prefix"])} if "prefix" in found else {}), Agents)


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
    number = _finite(text)
    return number if number is not None and 0 <= number <= _MOST else None


DEFAULT_DURATION_S = 60.0
DEFAULT_PROMPT, DEFAULT_OUTPUT = "512", "128"
DEFAULT_CONCURRENCY = "4"
WARM_UP_SHARE, MOST_WARM_UP_S = 0.2, 10.0
"""Warm-up where none is asked for: a fifth of the measured time, at most ten seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Traffic as typed; None: not said. Each is an option of `breakeven bench` of the same name."""

    rate: str | None = None
    concurrency: str | None = None
    trace: Path | str | None = None
    trace_format: str | None = None
    prompts: Path | str | None = None
    arrivals: str = "poisson"
    speed: float = 1.0
    window: str | None = None
    duration: str | None = None
    requests: int | None = None
    warm_up: str | None = None
    prompt: str | None = None
    output: str | None = None
    turns: int = 1
    think: str = "0s"
    sharing: bool = False
    languages: str = ""
    chat: bool = False
    stream: bool = True
    slo: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the words mean: a workload a load, the trace they replay, the service level, how files were understood."""

    workloads: tuple[Workload, ...]
    trace: TraceRows | None
    slo: Slo | None
    notes: tuple[str, ...] = ()


def traffic_of(words: Words, default_duration_s: float = DEFAULT_DURATION_S) -> Traffic:
    """Check and translate. Raises UserError naming the option that is wrong."""
    from breakeven.traffic.traces.read import read_trace

    given = [name for name in ("rate", "concurrency", "trace") if getattr(words, name) is not None]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} are different kinds of load; give one of them")
    for name, number, least in (("seed", words.seed, 0), ("requests", words.requests, 1), ("turns", words.turns, 1)):
        if number is not None and number < least:
            raise UserError(f"--{name} {number}: give {least} or more")
    if words.trace_format is not None and words.trace is None:
        raise UserError("--trace-format says how to read a --trace; give one, or leave it out")
    trace = read_trace(Path(words.trace), words.trace_format) if words.trace is not None else None
    own = _own_prompts(words, trace)
    duration_s = None if words.duration is None else option_seconds("--duration", words.duration)
    # A count alone ends a run, and so does a trace; only a rate or a number of streams would go on for ever.
    if duration_s is None and words.requests is None and trace is None and not words.arrivals.startswith("steps"):
        duration_s = default_duration_s
    usual_s = 0.0 if trace is not None else min(MOST_WARM_UP_S, WARM_UP_SHARE * (duration_s or MOST_WARM_UP_S))
    warm_up_s = usual_s if words.warm_up is None else option_seconds("--warm-up", words.warm_up)
    lengths = (words.prompt, words.output)
    talks = words.arrivals.partition(":")[0] == "agents"
    if talks:
        if words.rate is None:
            raise UserError("--arrivals agents needs a --rate, of sessions a second, such as 0.2")
        own_words = ("prompt", "output", "turns", "think", "prompts")
        _refuse(words, own_words, ": agents bring their own; write --arrivals agents:new=400,output=80,turns=9")
    elif trace is None and own is None:
        lengths = (words.prompt or DEFAULT_PROMPT, words.output or DEFAULT_OUTPUT)
    prompt, output = (None if text is None else parse_length(text) for text in lengths)
    think_s = option_seconds("--think", words.think)
    workloads = tuple(
        Workload(
            arrivals=arrivals,
            prompt=prompt,
            output=output,
            duration_s=duration_s,
            requests=words.requests,
            warm_up_s=warm_up_s,
            turns=words.turns,
            turn_think_s=think_s,
            sharing=words.sharing or talks,
            languages=tuple(part.strip() for part in words.languages.split(",") if part.strip()),
            chat=words.chat or (own is not None and own.chat),
            stream=words.stream,
            seed=words.seed,
            prompts=None if own is None else own.source,
        )
        for arrivals in _arrivals(words, trace, think_s)
    )
    notes = [] if trace is None else [trace.reading]
    notes += [] if own is None else [own.said(words.output is not None)]
    if trace is not None and trace.blocks and not (words.sharing or words.prompt or words.prompts):
        notes.append(f"{trace.name} says which prompts begin alike, and none does here: --sharing of bench lets them")
    return Traffic(workloads, trace, parse_slo(words.slo) if words.slo else None, tuple(notes))


def _refuse(words: Words, names: tuple[str, ...], why: str) -> None:
    """Raises UserError for the first of these options that was given."""
    for name in names:
        if getattr(words, name) != Words.__dataclass_fields__[name].default:
            raise UserError(f"--{name}{why}")


def _own_prompts(words: Words, trace: TraceRows | None) -> PromptFile | None:
    """The file of --prompts. Raises UserError for what does not go with it."""
    from breakeven.traffic.prompt_file import read_prompts

    if words.prompts is None:
        return None
    _refuse(words, ("prompt", "languages"), " makes prompts up, and --prompts brings them; leave one out")
    if trace is not None and trace.session is not None:
        raise UserError("a trace of conversations brings its own; give --prompts a --rate or --concurrency instead")
    return read_prompts(words.prompts, words.turns)


def _arrivals(words: Words, trace: TraceRows | None, think_s: float) -> list[Arrivals]:
    kind = words.arrivals.partition(":")[0]
    timed = words.rate is not None or (kind in ("steps", "ramp") and trace is None and words.concurrency is None)
    if not timed and words.arrivals != "poisson":
        raise UserError(f"--arrivals {words.arrivals} goes with --rate; a trace and streams know when to ask")
    if think_s and words.turns == 1 and (timed or trace is not None):
        raise UserError("--think is the pause of somebody who asks again; it goes with --turns, or with --concurrency")
    if trace is not None:
        if not 0 < words.speed <= 1e6:
            raise UserError(f"--speed {words.speed:g}: give how many times as fast as recorded, such as 0.5")
        start_s, end_s = _window(words.window)
        return [Arrivals(process="trace", trace=trace.name, rate_scale=words.speed, start_s=start_s, end_s=end_s)]
    if words.window is not None or words.speed != 1.0:
        raise UserError("--window and --speed belong to --trace; leave them out")
    if timed:
        rates: Sequence[float | None] = (None,) if words.rate is None else parse_rates(words.rate)
        return [parse_arrivals(words.arrivals, rate) for rate in rates]
    text = words.concurrency or DEFAULT_CONCURRENCY
    if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", text):
        raise UserError(f"--concurrency {text!r}: give whole numbers separated by commas, such as 1,4,16")
    numbers = [int(part) for part in text.split(",")]
    if len(set(numbers)) < len(numbers):
        raise UserError("--concurrency names a load twice")
    # Conversations think between their turns; a stream of single requests thinks between requests.
    between_s = 0.0 if words.turns > 1 else think_s
    return [Arrivals(process="closed", concurrency=n, think_s=between_s) for n in numbers]


def _window(text: str | None) -> tuple[float, float | None]:
    """Start and end in seconds of the trace: "0s-10m", "10m-"."""
    if text is None:
        return 0.0, None
    start, dash, end = text.partition("-")
    if not dash:
        raise UserError(f"--window {text!r}: give start and end in the trace's own time, such as 0s-10m")
    start_s = parse_duration(start) if start.strip() else 0.0
    end_s = parse_duration(end) if end.strip() else None
    if end_s is not None and end_s <= start_s:
        raise UserError(f"--window {text!r}: the end must come after the start")
    return start_s, end_s
