"""The verdict in words: one sentence, the reasons behind it, and its numbers as people read them.

Pure: the same numbers give the same words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from types import MappingProxyType

import msgspec

from breakeven.answer.mixes import Mix
from breakeven.answer.promise import SHORT
from breakeven.answer.regions import Standing
from breakeven.answer.worlds import COST_TIE
from breakeven.price.pricing import NOT_BILLED
from breakeven.results.cost import ENDLESS
from breakeven.results.decision import CandidateResult, Day, Flip, Outcome, Verdict
from breakeven.stats.estimate import Estimate

MOST_DIGITS = 12
"""Behind the point of a sum: smaller ones are nothing."""


def span_text(span: Estimate) -> str:
    return f"{span.value:.3g} ({span.low:.3g} to {span.high:.3g})"


def usd_text(span: Estimate) -> str:
    """Dollars to the cent, below ten cents to a hundredth of one, and smaller sums to two digits."""
    small = 0 < span.value < 0.1
    digits = min(max(4, 1 - math.floor(math.log10(span.value))), MOST_DIGITS) if small else 2
    if span.most - span.least < 10**-digits:
        return f"${span.value:,.{digits}f}"
    return f"${span.value:,.{digits}f} (${span.low:,.{digits}f} to ${span.high:,.{digits}f})"


def rate_text(per_s: float) -> str:
    if per_s >= 999.5:  # 1e+03 is nothing to read
        return f"{per_s:,.0f} requests/s"
    if per_s >= 0.1:
        return f"{per_s:.3g} requests/s"
    if per_s * 60 >= 0.1:
        return f"{per_s * 60:.3g} requests a minute"
    return f"{per_s * 3600:.3g} requests an hour"


def part_text(share: float) -> str:
    """A share that is in use, in whole per cent: what is not nothing is not 0%."""
    return "under 1%" if 0 < share < 0.005 else f"{share:.0%}"


MOST_STRETCHES = 3
"""Of hours that one candidate serves, each said by the clock; of more the hours are counted."""
PROBABLE = 0.9
KIND_WORDS = {"moe": " (MoE)", "dense": " (dense)"}
DAY_HOURS = 24


def period_text(hours: int) -> str:
    """What so many hours of load are called: "day", "week", "30 hours"."""
    if hours <= DAY_HOURS:
        return "day"
    return "week" if hours == 7 * DAY_HOURS else f"{hours} hours"


def turns_text(by_hour: Sequence[str], kinds: Mapping[str, str] = MappingProxyType({})) -> str:
    """Who serves when, as people say it: "dense 0-7 and 22-24 h, moe 7-22 h"; of a week in how many hours."""
    return ", ".join(
        f"{name}{KIND_WORDS.get(kinds.get(name, ''), '')} {_clock([each == name for each in by_hour])}"
        for name in dict.fromkeys(by_hour)
    )


def _clock(mine: Sequence[bool]) -> str:
    stretches, at = [], 0
    for serves, run in groupby(mine):
        end = at + len(list(run))
        if serves:
            stretches.append(f"{at}-{end}")
        at = end
    if len(mine) != DAY_HOURS or len(stretches) > MOST_STRETCHES:
        return f"in {sum(mine)} of {len(mine)} hours"
    return " and ".join(stretches) + " h"


def verdict_of(
    candidates: Sequence[CandidateResult],
    flips: Sequence[Flip],
    mix: Mix | None,
    here: Standing,
    load_per_s: float,
    needed: Sequence[str],
    day: Day | None = None,
    settles: Mapping[str, str] = MappingProxyType({}),
    aside: Sequence[str] = (),
    barred: Sequence[str] = (),
) -> Verdict:
    """The answer. No winner `here`: nobody can serve this, and `needed` says what it would take.

    With a `day`, `here` is who is cheapest over its hours. `settles`: by candidate, the command that would settle a
    borderline promise. `aside`: what must be said beside any answer. `barred`: who may not serve all of the traffic,
    which is said where one candidate does, or nobody.
    """
    by_name = {c.name: c for c in candidates}
    kinds = {c.name: c.kind for c in candidates}
    if mix is not None:
        both = _both(mix, kinds)
        named = [*(share.candidate for share in mix.shares), *([mix.single] if mix.single is not None else [])]
        return msgspec.structs.replace(both, because=[*both.because, *_unbilled(by_name, named), *aside])
    if here.winner is None:
        sentence = "None of these candidates can serve this workload."
        return Verdict(outcome="none", winner=None, sentence=sentence, because=[*needed, *barred, *aside])
    winner, sure = here.winner, here.sure
    best = by_name[winner]
    carries = _capacity(best, load_per_s, "this load" if day is None else "the busiest hour")
    because = [*(day.sentences if day is not None else []), carries]
    if day is None and here.runner_up is not None and here.margin is not None:
        because.append(_margin(here.runner_up, here.margin, here))
    if sure < PROBABLE:
        who = "one of the two wins" if here.same else "it wins"
        because.append(
            f"Not certain: {who} in {sure:.0%} of the cases that the predictions' errors leave open; measure as said "
            "below before you buy."
        )
    because += [flip.meaning[0].upper() + flip.meaning[1:] + "." for flip in flips if flip.quantity == "load"][:3]
    because += _ranked(candidates)
    ruled = [c for c in candidates if c.ruled_out]
    edges = [c for c in candidates if c.borderline and not c.ruled_out]
    turns = day.by_hour if day is not None and day.by_hour_usd_per_day is not None else []
    because[1:1] = _unbilled(by_name, [winner, *([here.runner_up] if here.same and here.runner_up else []), *turns])
    # Right behind what the winner carries: who only just keeps a promise may be the answer.
    because[1:1] = [
        f"{c.name} is {c.borderline}" + (f"; `{settles[c.name]}` would settle it." if c.name in settles else ".")
        for c in edges
    ]
    # Before all else: whoever looks cheaper in the table may not be asked.
    behind = because.index(carries) + 1
    because[behind:behind] = barred
    because += [f"{c.name} is ruled out: {c.ruled_out[0]}" for c in ruled]
    because += aside
    if here.same:
        pair = f"{winner} and {here.runner_up}"
        sentence = f"No difference worth your time at {rate_text(load_per_s)}: {pair} cost the same and answer as fast."
        return Verdict(outcome="no_difference", winner=None, sentence=sentence, because=because)
    outcome: Outcome = "api" if best.capacity_per_s is None else "moe" if best.kind == "moe" else "dense"
    kind = {"moe": "MoE", "dense": "dense", "unknown": "hosted"}[best.kind]
    cost = next((p for p in best.cost if abs(p.rate_per_s - load_per_s) <= 1e-6 * load_per_s), None)
    bill = f": {_bill_text(best, cost.usd_per_hour)} an hour" if cost is not None else ""
    when = f"at {rate_text(load_per_s)}{bill}"
    if day is not None:
        spent = next(each.usd_per_day for each in day.bills if each.candidate == winner)
        when = f"over the {period_text(len(day.hours_per_s))}: {usd_text(spent)} a day"
    probably = "" if sure >= PROBABLE else "Probably "
    verb = "run" if best.capacity_per_s is not None else "use"
    # Where somebody's weights lie in host memory, where the winner's lie is part of the answer.
    lies = f", {best.placement}" if best.placement and any(c.placed is not None for c in candidates) else ""
    sentence = f"{probably}{verb if probably else verb.capitalize()} {winner} ({kind}{lies}) {when}."
    if day is not None and day.by_hour_usd_per_day is not None:
        who = turns_text(day.by_hour, kinds)
        sentence += f" Taking turns by the hour costs {usd_text(day.by_hour_usd_per_day)}: {who}."
    return Verdict(outcome=outcome, winner=winner, sentence=sentence, because=because)


def _bill_text(candidate: CandidateResult, span: Estimate) -> str:
    """Dollars; of a bill without an upper end, from where on it lies: what stands in its place is nobody's."""
    text = usd_text(span)
    if not any(note.startswith(ENDLESS) for note in candidate.notes) or " (" not in text:
        return text
    return f"{text.partition(' to ')[0].replace('(', '(from ')})"


def _unbilled(by_name: Mapping[str, CandidateResult], names: Sequence[str]) -> list[str]:
    """Of those that the answer names, whose bill lacks its electricity, or machines that a short run did not miss."""
    return [
        f"{name}: {note}."
        for name in dict.fromkeys(names)
        for note in by_name[name].notes
        if note.startswith((NOT_BILLED, SHORT))
    ]


def _ranked(candidates: Sequence[CandidateResult]) -> list[str]:
    """Who predicts the study's text best, where nothing but that is known of their quality."""
    known = [(c.quality.value, c.name) for c in candidates if c.quality.how == "bits_per_byte" and c.quality.value]
    if len(known) < 2:
        return []
    return [f"In bits per byte of text, fewer is better: {', '.join(f'{n} {v:.3f}' for v, n in sorted(known))}."]


def _both(mix: Mix, kinds: Mapping[str, str]) -> Verdict:
    parts = "; ".join(
        f"{s.share:.0%} ({s.traffic}) to {s.candidate}{KIND_WORDS.get(kinds[s.candidate], '')}" for s in mix.shares
    )
    because = [f"Together they cost {usd_text(mix.usd_per_hour)} an hour."]
    if mix.single is not None and mix.single_over_mix is not None:
        saved = 1.0 - 1.0 / mix.single_over_mix.value
        because.append(
            f"The best that can serve all of it alone, {mix.single}, costs {span_text(mix.single_over_mix)} times as "
            f"much; the pair saves {saved:.0%}."
        )
    elif mix.single is not None:
        because.append(f"The best that can serve all of it alone, {mix.single}, costs something; the pair does not.")
    else:
        because.append("No candidate can serve all of it alone.")
    return Verdict(outcome="both", winner=None, sentence=f"Use both: {parts}.", because=because, shares=mix.shares)


def _capacity(best: CandidateResult, load_per_s: float, load: str) -> str:
    if best.capacity_per_s is None:
        unseen = "" if best.latency else " How fast it answers was not given, so the service level was not checked."
        return f"{best.name} is paid by the token: it costs nothing when nobody asks, and never fills up.{unseen}"
    span = best.capacity_per_s
    n = next((p for p in best.cost if abs(p.rate_per_s - load_per_s) <= 1e-6 * load_per_s), None)
    replicas = f"; {load} takes {n.replicas.value:.0f} of them" if n is not None and n.replicas is not None else ""
    used = f", {part_text(n.utilisation)} used" if n is not None and n.utilisation is not None else ""
    carries = f"One replica of {best.name} carries {span_text(span)} requests/s within the SLO ({best.provenance})"
    return f"{carries}{replicas}{used}."


def _margin(runner_up: str, margin: Estimate, here: Standing) -> str:
    if abs(margin.value - 1.0) < COST_TIE:
        if here.same:
            return f"{runner_up} costs the same here, and answers as fast."
        if here.slower is None:
            return f"{runner_up} costs the same here; which of the two answers faster is not known."
        faster = "answers faster as predicted, but wins in fewer of the cases that the predictions' errors leave open"
        return f"{runner_up} costs the same here, and {'answers slower' if here.slower else faster}."
    said = f"The next best, {runner_up}, costs {span_text(margin)} times as much"
    fewer = "; it wins in fewer of the cases that the predictions' errors leave open" if margin.value < 1.0 else ""
    return f"{said}{fewer}."
