"""A decision told again from its record: what was asked, what each backend was predicted to give, why, what happened.

The record holds the scores as they were when the request came, so the policy's rules can be applied to them again.
Where chance or things outside the scores decide (weights, free places, experiments), only the reason can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import inf

from breakeven.errors import printable
from breakeven.gateway.route.choose import BROKEN
from breakeven.gateway.route.policies import most_headroom, near_cheapest, near_fastest, sure, under_pressure
from breakeven.gateway.route.view import REASONS, Ask, Score
from breakeven.gateway.seen.record import DecisionRecord

Rule = Callable[[DecisionRecord, Sequence[int]], list[int]]
BARELY = 1.2
"""Headroom below which what is kept is barely kept."""
LONGEST_LINE = 1000
OUTSIDE = ("explored", "experiment", "named", "sticky")
"""Reasons that override the policy."""


def could_choose(record: DecisionRecord) -> list[str] | None:
    """Backends that the policy's rules allow on the logged scores; None where the scores alone do not say.

    More than one: they were near-equal, and chance chose.
    """
    if record.reason in OUTSIDE or not record.scores:
        return None
    scores, output = record.scores, record.predicted_output_tokens
    usable = [k for k, found in enumerate(scores) if not found.why_not]
    if record.reason in ("shed", "none"):
        return []
    if not usable:
        usable = [k for k, found in enumerate(scores) if found.why_not == BROKEN]
        return [scores[most_headroom(scores, usable, output)].backend] if usable else []
    rule = _RULES.get(record.policy)
    if rule is None:
        return [scores[usable[0]].backend] if len(usable) == 1 else None
    return [scores[k].backend for k in rule(record, usable)]


def chosen(record: DecisionRecord) -> str:
    """Whom the policy chose: the first backend asked. Failover or a hedge may have answered in its place."""
    if record.attempts:
        return record.attempts[0].backend
    return record.backend


def explain(record: DecisionRecord) -> str:
    """The whole story in words, a line each; a table of what was predicted in the middle."""
    lines = [_what(record), _asked(record), _why(record)]
    if record.scores:
        lines += ["", *_table(record), ""]
    again = _again(record)
    if again:
        lines.append(again)
    lines += _attempts(record)
    lines.append(_happened(record))
    if compared := _compared(record):
        lines.append(compared)
    # Clients and backends chose some of these words, and a log of an earlier version holds them as they came.
    return "\n".join(_line(line) for line in lines)


def _line(text: str) -> str:
    """As a terminal may show it: cut, and nothing in it that drives one."""
    return printable(text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 3]}...")


def _breakeven(record: DecisionRecord, usable: Sequence[int]) -> list[int]:
    scores = record.scores
    if able := sure(scores, usable):
        return near_cheapest(scores, able, record.predicted_output_tokens)
    ask = Ask(
        endpoint=record.endpoint,
        prompt_tokens=record.predicted_prompt_tokens,
        output_tokens=record.predicted_output_tokens,
        ttft_s=record.asked_ttft_s,
        tpot_s=record.asked_tpot_s,
        usd=record.asked_usd,
    )
    return [under_pressure(ask, scores, usable)[0]]


def _fastest(record: DecisionRecord, usable: Sequence[int]) -> list[int]:
    return near_fastest(record.scores, usable, record.predicted_output_tokens)


def _cheapest(record: DecisionRecord, usable: Sequence[int]) -> list[int]:
    return near_cheapest(record.scores, usable, record.predicted_output_tokens)


_RULES: dict[str, Rule] = {"breakeven": _breakeven, "fastest": _fastest, "cheapest": _cheapest}
"""Of policies that look at nothing but scores, whom they could choose."""


def _what(record: DecisionRecord) -> str:
    when = datetime.fromtimestamp(record.time_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    stream = ", streamed" if record.stream else ""
    copy = f", a copy of {record.shadow_of}" if record.shadow_of else ""
    if record.translated_to:
        copy = f", translated to {record.translated_to}{copy}"
    return f"{record.id}: {record.endpoint} for {record.model!r} at {when}{stream}{copy}"


def _asked(record: DecisionRecord) -> str:
    asked = [
        f"{name} {text}"
        for name, text in (
            ("TTFT", _time(record.asked_ttft_s)),
            ("TPOT", _time(record.asked_tpot_s)),
            ("at most", _usd(record.asked_usd)),
        )
        if text
    ]
    tokens = f"about {record.predicted_prompt_tokens:.0f} tokens in, {record.predicted_output_tokens:.0f} expected out"
    return f"Asked for: {', '.join(asked) or 'no time or cost'}; {tokens}."


def _why(record: DecisionRecord) -> str:
    reason = REASONS.get(record.reason, record.reason)
    first = chosen(record)
    if record.experiment:
        reason += f" ({record.experiment}, {record.arm})"
    if not first:
        return f"Sent nowhere (policy {record.policy}): {reason}."
    best = f" {record.alternative} was the best of the others." if record.alternative else ""
    return f"Sent to {first} (policy {record.policy}): {reason}.{best}"


def _table(record: DecisionRecord) -> list[str]:
    first = chosen(record)
    rows = [("", "backend", "TTFT", "TPOT", "cost", "running", "")]
    for found in record.scores:
        mark = "*" if found.backend == first else ""
        cost = _usd(found.usd) if found.usd else "-"
        rows.append(
            (
                mark,
                found.backend,
                _time(found.ttft_s),
                _time(found.tpot_s),
                cost,
                f"{found.running:.0f}",
                _verdict(record, found),
            )
        )
    wide = [max(len(row[i]) for row in rows) for i in range(6)]
    return [
        "  ".join(
            [cell.ljust(wide[i]) if i < 2 else cell.rjust(wide[i]) for i, cell in enumerate(row[:6])] + [row[6]]
        ).rstrip()
        for row in rows
    ]


def _verdict(record: DecisionRecord, found: Score) -> str:
    """How a backend stands to what was asked."""
    if found.why_not:
        return f"cannot: {found.why_not}"
    if found.headroom == inf:
        return "can serve it"
    if found.headroom >= 1.0:
        sure = "" if found.headroom >= BARELY else ", barely"
        return f"keeps it{sure} ({found.headroom:.2f} times what is needed)"
    missed = [
        f"{name} {_ratio(predicted, asked)} over"
        for name, predicted, asked in (
            ("TTFT", found.ttft_s, record.asked_ttft_s),
            ("TPOT", found.tpot_s, record.asked_tpot_s),
            ("cost", found.usd, record.asked_usd),
        )
        if asked is not None and predicted > asked
    ]
    return "misses: " + (", ".join(missed) or f"headroom {found.headroom:.2f}")


def _again(record: DecisionRecord) -> str:
    could = could_choose(record)
    first = chosen(record)
    if could is None or not could:
        return ""
    if first not in could:
        return (
            f"The rules on these numbers give {' or '.join(could)}, not {first}: it was full, away or taken between "
            "the choice and the sending."
        )
    if len(could) == 1:
        return f"The rules on these numbers give {first} again."
    return f"The rules on these numbers allow {', '.join(could)}: near-equals, and chance chose."


def _attempts(record: DecisionRecord) -> list[str]:
    if len(record.attempts) < 2 and all(one.outcome == "answered" for one in record.attempts):
        return []
    return [
        f"Tried {one.backend}{' as a hedge' if one.hedge else ''} after {_time(one.start_s)}: {one.outcome}, "
        f"{_time(one.seconds)}."
        for one in record.attempts
    ]


def _happened(record: DecisionRecord) -> str:
    parts = [f"status {record.status}"]
    if record.backend:
        parts.append(f"answered by {record.backend}")
    if record.queue_s > 0:
        parts.append(f"{_time(record.queue_s)} in line")
    parts += [
        _against("first token after", record.ttft_s, record.predicted_ttft_s),
        _against("then a token every", record.tpot_s, record.predicted_tpot_s),
    ]
    if record.e2e_s is not None:
        parts.append(f"{_time(record.e2e_s)} in all")
    if record.output_tokens is not None:
        tokens_in = "" if record.prompt_tokens is None else f"{record.prompt_tokens} tokens in, "
        parts.append(f"{tokens_in}{record.output_tokens} out")
    if record.charged_prompt_tokens is not None or record.charged_output_tokens is not None:
        paid_in = record.prompt_tokens if record.charged_prompt_tokens is None else record.charged_prompt_tokens
        paid_out = record.output_tokens if record.charged_output_tokens is None else record.charged_output_tokens
        parts.append(f"charged as {paid_in or 0} tokens in, {paid_out or 0} out")
    if record.finish:
        parts.append(f"finish {record.finish}")
    if record.error:
        parts.append(record.error)
    return "What happened: " + ", ".join(part for part in parts if part) + "."


def _compared(record: DecisionRecord) -> str:
    """Whether what was asked for was kept, and what it cost here and would have cost elsewhere."""
    parts = []
    for name, got, asked in (
        ("TTFT", record.ttft_s, record.asked_ttft_s),
        ("TPOT", record.tpot_s, record.asked_tpot_s),
        ("cost", record.usd, record.asked_usd),
    ):
        if got is not None and asked is not None:
            parts.append(f"{name} kept" if got <= asked else f"{name} missed by {_ratio(got, asked)}")
    if record.usd:
        parts.append(f"it cost {_usd(record.usd)}")
        if record.usd_elsewhere is not None:
            parts.append(f"{_usd(record.usd_elsewhere)} at the best of the other architecture")
    return f"Against what was asked: {', '.join(parts)}." if parts else ""


def _against(what: str, got: float | None, predicted: float | None) -> str:
    if got is None:
        return ""
    if not predicted:
        return f"{what} {_time(got)}"
    return f"{what} {_time(got)} (predicted {_time(predicted)}, actual / predicted {got / predicted:.2f})"


def _ratio(got: float, asked: float) -> str:
    return f"{100.0 * (got / asked - 1.0):.0f} %" if asked > 0.0 else "everything"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds >= 10.0:
        return f"{seconds:.0f} s"
    return f"{seconds:.2f} s" if seconds >= 1.0 else f"{1000.0 * seconds:.3g} ms"


def _usd(usd: float | None) -> str:
    return "" if usd is None else f"${usd:.3g}"
