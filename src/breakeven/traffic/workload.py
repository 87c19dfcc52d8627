"""What traffic is: arrivals, lengths, sessions and the service level (`ttft=1s,tpot=80ms`). `draw` draws it."""

from __future__ import annotations

import math
import re

import msgspec

from breakeven.errors import UserError


class Slo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request must keep to be good, each from its due time, in seconds. None: not asked for.

    `itl_s` bounds the longest gap between two tokens of one request, `tpot_s` their mean, `e2e_s` the whole request.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None


class Length(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A distribution of token counts; `kind` is a name in `breakeven.traffic.draw.LENGTHS`.

    fixed: `mean`. uniform: `low` to `high`, both included. normal, lognormal: `mean` and `sd`, both of the tokens
    themselves, clipped to `low`..`high` where given.
    """

    kind: str = "fixed"
    mean: float = 0.0
    sd: float = 0.0
    low: int = 1
    high: int | None = None


class Agents(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent's session is made of. The defaults are a judgement, of nobody's traffic: say your own.

    Every session begins with the same `prefix` tokens (instructions and tools), then a task of `task` tokens on
    average. It makes `turns` requests on average: each answers with `output` tokens, a call of a tool; the tool takes
    `tool_s` seconds and brings `new` tokens. Of the turns a share of `subagents` also begins a session beside this one,
    which nobody waits for: a third of the turns, behind a prefix of half the length that all subagents share.
    """

    prefix: int = 4096
    task: float = 300.0
    new: float = 500.0
    output: float = 150.0
    turns: float = 12.0
    tool_s: float = 2.0
    subagents: float = 0.1


class Arrivals(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When requests come; `process` is a name in `breakeven.traffic.draw.ARRIVALS`.

    closed: `concurrency` streams, each waiting `think_s` after an answer. constant, poisson: `rate_per_s`.
    gamma: `rate_per_s` with coefficient of variation `cv` of the gaps. steps: Poisson through `steps`, each
    (rate in requests/s, seconds). ramp: Poisson from `rate_per_s` to `to_rate_per_s` over the run.
    agents: sessions of `agents`, Poisson at `rate_per_s` sessions/s.
    trace: the gaps of `trace`, at `rate_scale` times their speed, cut to the window `start_s`..`end_s` of the trace.
    """

    process: str
    rate_per_s: float | None = None
    to_rate_per_s: float | None = None
    cv: float = 1.0
    steps: tuple[tuple[float, float], ...] = ()
    concurrency: int | None = None
    think_s: float = 0.0
    trace: str | None = None
    """File name of the trace, without its directory."""
    rate_scale: float = 1.0
    start_s: float = 0.0
    end_s: float | None = None
    agents: Agents | None = None

    @property
    def is_closed(self) -> bool:
        """True when answers, not a clock, decide when the next request comes."""
        return self.process == "closed"


class OwnPrompts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file of a person's own prompts: its name as given, what it held, and how long its longest text is in bytes."""

    file: str
    sha256: str
    prompts: int
    most_bytes: int


class Workload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Traffic as it is asked for. A schedule is this, drawn once.

    `prompt` and `output` are None where the trace gives lengths. The run ends after `duration_s` of arrivals or
    `requests` requests, whichever comes first; `warm_up_s` of the same traffic come before and never count.
    `turns` > 1: every arrival starts a conversation whose later turns follow `turn_think_s` after each answer and
    carry the whole history. `sharing`: prompts that the trace says share a prefix really do, and caches stay on;
    otherwise every prompt starts with a salt of its own. `languages`: of the built-in passages; empty means all.
    `prompts`: texts of a file instead, of whose recorded conversations `turns` requests are asked; lengths are theirs.
    """

    arrivals: Arrivals
    prompt: Length | None = None
    output: Length | None = None
    duration_s: float | None = None
    requests: int | None = None
    warm_up_s: float = 0.0
    turns: int = 1
    turn_think_s: float = 0.0
    sharing: bool = False
    languages: tuple[str, ...] = ()
    chat: bool = False
    stream: bool = True
    seed: int = 0
    prompts: OwnPrompts | None = None

    @property
    def rate_unit(self) -> str:
        """What a rate of arrivals counts: requests, or the beginnings of conversations, or of agents' sessions."""
        return "sessions/s" if self.arrivals.agents is not None else "conversations/s" if self.turns > 1 else "req/s"

    @property
    def offered_unit(self) -> str:
        """What the rate that a point of a study was offered counts: without one rate of arrivals, requests as due."""
        return self.rate_unit if self.arrivals.process in ("constant", "poisson", "gamma") else "req/s"


TERMS = {"ttft": "ttft_s", "tpot": "tpot_s", "itl": "itl_s", "e2e": "e2e_s"}
UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

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


def length_text(length: Length) -> str:
    """`length` as it is written; `parse_length` of `breakeven.traffic.words` reads it back."""
    if length.kind == "fixed":
        return f"{length.mean:.0f}"
    if length.kind == "uniform":
        return f"uniform:{length.low}-{length.high}"
    ends = "" if length.high is None else f"[{length.low}-{length.high}]"
    return f"{length.kind}:{length.mean:.12g},{length.sd:.12g}{ends}"


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
