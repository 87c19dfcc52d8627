"""The decision log as traffic: arrivals, lengths and conversations of what clients asked for.

A request counts when somebody wanted it answered: answered, cut, given up by the client, failed by a backend, or shed
because nobody would have been in time. Refused ones (no key, a limit, a body nobody takes), shadow copies, second
answers to one prompt, and endpoints that generate nothing do not count.

Lengths are the engine's own counts where it gave them, else what the router expected; `estimated` says how many.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from breakeven.errors import UserError
from breakeven.gateway.seen.record import DecisionRecord
from breakeven.traffic.traces.rows import TraceRows, trace_rows

GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
LEFT = 499
"""Status of a request whose client went away before its end."""
CONTINUES = 0.9
"""A request goes on with a conversation when its prompt holds at least this share of the tokens there were before it:
templates add some and clients trim some, but a new question alone is far below."""


@dataclass(frozen=True, slots=True)
class Logged:
    """A period of real traffic. `rows` is what a study replays; the rest is what was seen of it.

    `usd` is what it cost as the gateway counted it; `cached_share` of prompt tokens, None where no backend reported it.
    `backends` and `models`: requests by who answered ("" nobody) and by the public name asked for.
    """

    rows: TraceRows
    left_out: int
    estimated: int
    usd: float
    cached_share: float | None
    backends: Mapping[str, int]
    models: Mapping[str, int]
    first_s: float
    """Unix time of the first request."""

    @property
    def rate_per_s(self) -> float:
        """Mean requests a second."""
        return len(self.rows) / self.rows.span_s


@dataclass(slots=True)
class _Last:
    """The end of a conversation so far."""

    id: int
    turn: int
    end_s: float
    tokens: int


def workload_of_log(directories: Sequence[Path]) -> Logged:
    """The traffic in the decision logs of one gateway or of several machines.

    Raises UserError where there is no log or fewer than two requests that count.
    """
    from breakeven.gateway.seen.read_log import records

    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"{directory}: no such directory; give the `log: directory:` of a gateway")
    merged = heapq.merge(*(records(each) for each in directories), key=lambda record: record.time_s)
    return traffic_of(merged, " + ".join(str(each) for each in directories))


def traffic_of(log: Iterable[DecisionRecord], name: str = "log") -> Logged:
    """The traffic of `log`, whose records are in order of arrival. Raises UserError for fewer than two that count."""
    at_ns: list[int] = []
    prompt: list[int] = []
    output: list[int] = []
    session: list[int | None] = []
    turn: list[int] = []
    think_ns: list[int] = []
    open_ones: dict[int, _Last] = {}
    backends: Counter[str] = Counter()
    models: Counter[str] = Counter()
    left_out = estimated = told_prompt = told_cached = conversations = 0
    told = False
    usd = first_s = 0.0
    for record in log:
        if not counts(record):
            left_out += 1
            continue
        first_s = record.time_s if not at_ns else first_s
        asked, answered, guessed = _lengths(record)
        estimated += guessed
        usd += record.usd or 0.0
        backends[record.backend] += 1
        models[record.model] += 1
        if record.cached_tokens is not None and record.prompt_tokens:
            told, told_cached = True, told_cached + record.cached_tokens
            told_prompt += record.prompt_tokens
        last = open_ones.get(record.session) if record.session else None
        goes_on = last is not None and record.time_s >= last.end_s and asked >= CONTINUES * last.tokens
        at_ns.append(round((record.time_s - first_s) * 1e9))
        output.append(answered)
        if last is not None and goes_on:
            session.append(last.id)
            turn.append(last.turn + 1)
            think_ns.append(round((record.time_s - last.end_s) * 1e9))
            prompt.append(max(1, asked - last.tokens))
        else:
            session.append(conversations if record.session else None)
            turn.append(0)
            think_ns.append(-1)
            prompt.append(asked)
            conversations += 1
        if record.session:
            end_s = record.time_s + (record.e2e_s or 0.0)
            open_ones[record.session] = _Last(session[-1] or 0, turn[-1], end_s, asked + answered)
    if len(at_ns) < 2 or at_ns[-1] <= 0:
        raise UserError(
            f"{name}: holds {len(at_ns)} requests that count; serve some traffic first, with a log directory"
        )
    talks = Counter(each for each in session if each is not None)
    # A session of one request is a request like any other.
    names = [each if each is not None and talks[each] > 1 else None for each in session]
    rows = trace_rows(name, "simple", at_ns, prompt, output, sessions=names, turn=turn, think_ns=think_ns)
    share = told_cached / told_prompt if told and told_prompt else None
    return Logged(rows, left_out, estimated, usd, share, backends, models, first_s)


def counts(record: DecisionRecord) -> bool:
    """Whether a record is traffic that any fleet would have had to serve."""
    if record.endpoint not in GENERATING or record.shadow_of or record.group:
        return False
    if record.reason == "shed":
        return True
    refused = 400 <= record.status < 500 and record.status != LEFT
    return not refused and record.status != 0


def write_trace(rows: TraceRows, path: Path) -> Path:
    """`rows` as a trace file that `read_trace` reads back. Raises UserError when it cannot be written."""
    talks = rows.session is not None
    lines = ["at_s,prompt_tokens,output_tokens" + (",session,turn,think_s" if talks else "")]
    for i in range(len(rows)):
        at_ns = int(rows.at_ns[i])
        line = f"{at_ns // 10**9}.{at_ns % 10**9:09d},{rows.prompt[i]},{rows.output[i]}"
        if rows.session is not None and rows.turn is not None and rows.think_ns is not None:
            alone = rows.session[i] < 0
            pause_ns = int(rows.think_ns[i])
            pause = "" if pause_ns < 0 else f"{pause_ns // 10**9}.{pause_ns % 10**9:09d}"
            line += ",,," if alone else f",{rows.session[i]},{rows.turn[i]},{pause}"
        lines.append(line)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place with --out") from error
    return path


def _lengths(record: DecisionRecord) -> tuple[int, int, bool]:
    """Prompt and answer in tokens, and whether either is the router's estimate.

    What the client did not wait for was asked for all the same, so an answer it left is taken at its expected length
    where that is longer.
    """
    whole = record.status < 400 and record.finish != "cut"
    asked, answered = record.prompt_tokens, record.output_tokens
    expected = max(1, round(record.predicted_output_tokens))
    length = answered if answered is not None and whole else max(answered or 0, expected)
    return (
        max(1, asked if asked is not None else round(record.predicted_prompt_tokens)),
        max(1, length),
        asked is None or answered is None or not whole,
    )
