"""From the log of a study under load to its result: nothing else is read, so any number can be computed again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from breakeven.errors import UserError
from breakeven.measure.events import (
    BackendReady,
    Event,
    LoadDone,
    LoadStarted,
    LoadStudyStarted,
    RequestDone,
    StudyStopped,
    iter_events,
)
from breakeven.measure.load.differences import crossings, differences
from breakeven.measure.load.points import load_points
from breakeven.results.load import NOTHING_ANSWERED, Crossing, LoadDifference, LoadModel, LoadPoint, LoadStudy
from breakeven.results.metrics import metric_of
from breakeven.results.point import of_load
from breakeven.stats.percentiles import wilson
from breakeven.traffic.workload import Slo, Workload, slo_text

HEADLINE_METRICS = ("capacity_per_s", "goodput_per_s", "tpot_s", "ttft_s")
"""What a verdict under load rests on, the first that tells the candidates apart."""
FEW = 0.01
"""Shares of failures no further apart than this leave what was answered comparable."""
LITTLE = 0.01
"""A smaller share of prompts kept from before changes no number."""
LONGER = 1.1
"""Mean lengths of answers that differ by more than this factor are not the same work."""
CLOCK_STEP = "The wall clock was moved by {step:.3g} s during the run; no time here is taken from it."


def load_study(log: Path) -> LoadStudy:
    """The result of a bench or a comparison under load. Raises UserError when `log` is of neither."""
    opening, because, notes, refused = _frame(iter_events(log))
    if opening is None:
        raise UserError(f"{log} holds no study under load; `breakeven bench` and `breakeven compare --rate` write one")
    points = load_points(iter_events(log), opening.slo)
    several = len(opening.models) > 1
    found = differences(iter_events(log), opening.slo) if several else []
    crossed = crossings(iter_events(log), opening.slo) if several else []
    return LoadStudy(
        breakeven_version=opening.version,
        started_at=opening.started_at,
        command=opening.command,
        seed=opening.seed,
        stopped_because=because,
        machine=opening.machine,
        models=opening.models,
        workload=opening.workload,
        slo=opening.slo,
        points=points,
        differences=found,
        crossings=crossed,
        headline=headline(points, found, crossed, opening.slo),
        caveats=[
            *opening.caveats,
            *notes,
            *_without(opening.models),
            *_asked_again(opening.workload, points),
            *_unlike(points),
            *_shortened(points),
            *_unanswered(points, refused),
        ],
    )


def _frame(log: Iterator[Event]) -> tuple[LoadStudyStarted | None, str, list[str], dict[str, RequestDone]]:
    """The opening of a study, why it ended, what must be said about the whole run, and each model's first failure."""
    opening: LoadStudyStarted | None = None
    because = "killed"
    notes: list[str] = []
    refused: dict[str, RequestDone] = {}
    started: dict[str, LoadStarted] = {}
    for event in log:
        match event:
            case LoadStudyStarted():
                opening, because = opening or event, "killed"
            case BackendReady() if opening is not None:
                opening = _ready(opening, event)
            case StudyStopped():
                because = event.because
            case LoadStarted():
                started[event.block] = event
            case RequestDone() if event.error not in (None, "cancelled"):
                refused.setdefault(event.model, event)
            case LoadDone():
                if event.wall_step_s is not None:
                    notes.append(CLOCK_STEP.format(step=event.wall_step_s))
    return opening, because, list(dict.fromkeys(notes)), refused


def _without(models: Sequence[LoadModel]) -> list[str]:
    """What servers were asked otherwise than the others, for they refuse it."""
    return [
        f"{model.name} was asked with {model.settings['learned']}, for its server refused it otherwise."
        for model in models
        if model.settings.get("learned")
    ]


def _unanswered(points: Sequence[LoadPoint], refused: Mapping[str, RequestDone]) -> list[str]:
    """For each model of which requests failed, how the first one did, in its server's own words."""
    found = []
    for name in dict.fromkeys(point.model for point in points):
        mine = [point for point in points if point.model == name]
        first = refused.get(name)
        why = f"; the first one: {first.error}, {first.detail or 'without a word'}" if first is not None else ""
        failed, of = sum(point.requests - point.answered for point in mine), sum(point.requests for point in mine)
        if not any(point.answered or not point.requests for point in mine):
            found.append(f"{name}: {NOTHING_ANSWERED}{why}")
        elif failed and first is not None and first.error != "short":  # which is told in whole sentences
            found.append(f"{name}: {failed:,} of {of:,} requests failed{why}")
    return found


def _unlike(points: Sequence[LoadPoint]) -> list[str]:
    """Loads at which one candidate wrote longer answers than another: whoever writes less is done sooner."""
    found = []
    for load in dict.fromkeys(point.load for point in points):
        lengths = {point.model: point.output_tokens_mean for point in points if point.load == load}
        told = {name: mean for name, mean in lengths.items() if mean}
        if told and max(told.values()) > LONGER * min(told.values()):
            words = ", ".join(f"{name} {mean:.4g}" for name, mean in told.items())
            found.append(
                f"At {load} answers had different lengths, in tokens on average {words}: whole answers, requests/s and "
                "goodput are of different work."
            )
    return found


def asked_again(name: str, workload: Workload, requests: int, kept: float | None) -> list[str]:
    """That own prompts were asked more than once, unless nothing was kept. `kept`: share of tokens; None: untold."""
    own = workload.prompts
    if own is None or workload.turns > 1 or requests <= own.prompts or (kept is not None and kept < LITTLE):
        return []
    told = f"{kept:.0%} of their tokens had been kept" if kept is not None else "what was kept of them is not told"
    return [
        f"{name} was asked the {own.prompts:,} prompts of {own.file} {requests:,} times in all, and {told}: where "
        "prefixes are kept, prompts that are new take longer."
    ]


def _asked_again(workload: Workload, points: Sequence[LoadPoint]) -> list[str]:
    found = []
    for name in dict.fromkeys(point.model for point in points):
        mine = [point for point in points if point.model == name]
        told = [(p.cached_prompt_share, p.answered * (p.prompt_tokens_mean or 0.0)) for p in mine]
        known = [(share, tokens) for share, tokens in told if share is not None]
        tokens = sum(each for _, each in known)
        kept = sum(share * each for share, each in known) / tokens if tokens else None
        found += asked_again(name, workload, sum(point.requests for point in mine), kept)
    return found


def _shortened(points: Sequence[LoadPoint]) -> list[str]:
    """Models whose answers ended where the model ended them, though they were asked to go on."""
    found = []
    for name in dict.fromkeys(point.model for point in points if point.errors.get("short")):
        mine = [point for point in points if point.model == name]
        short, of = sum(point.errors.get("short", 0) for point in mine), sum(point.requests for point in mine)
        found.append(
            f"{name}: {short} of {of} answers had fewer tokens than asked for and count as failed, as if its server "
            "passed over ignore_eos; where it does, a dialect with `extra_fields: false` lets answers end as they like "
            "(docs/engines.md)."
        )
    return found


def _ready(opening: LoadStudyStarted, ready: BackendReady) -> LoadStudyStarted:
    """The opening with what was known only when a candidate came up."""
    told = {"settings": ready.settings, "placed": ready.placed}
    models = [msgspec.structs.replace(m, **told) if m.name == ready.model else m for m in opening.models]
    return msgspec.structs.replace(opening, models=models)


def headline(
    points: Sequence[LoadPoint], found: Sequence[LoadDifference], crossed: Sequence[Crossing], slo: Slo | None
) -> str:
    """One sentence in plain words."""
    if not points:
        return "No load was measured to its end."
    if len({point.model for point in points}) == 1:
        return _one(points[-1], slo) if len(points) == 1 else _several(points, slo)
    if not any(point.answered for point in points):
        return "No request was answered by any candidate."
    # Both count what failed; delays are of what both answered, and say nothing of a candidate that answers little.
    judged = any(one.winner for one in found if one.metric in ("capacity_per_s", "goodput_per_s"))
    if not judged and (failing := _failing(points)):
        return f"The candidates did not do the same work: {failing}."
    for metric in HEADLINE_METRICS:
        mine = [difference for difference in found if difference.metric == metric]
        won = [difference for difference in mine if difference.winner]
        if not won:
            continue
        crossing = next((one for one in crossed if one.metric == metric), None)
        if crossing is not None and (crossing.rate_per_s is not None or len({one.winner for one in won}) > 1):
            return f"{crossing.sentence}."
        return _won(won[-1], everywhere=len(won) == len(mine) > 1)
    return "No difference found between the candidates at any load measured."


def _failing(points: Sequence[LoadPoint]) -> str:
    """Loads at which one candidate surely failed a larger share of its requests than another; empty: none."""
    found = []
    for load in dict.fromkeys(point.load for point in points):
        mine = [point for point in points if point.load == load and point.requests]
        lost = {point.model: wilson(point.requests - point.answered, point.requests) for point in mine}
        if lost and max(one.low for one in lost.values()) > min(one.high for one in lost.values()) + FEW:
            told = (f"{name} failed {one.hits} of {one.n} requests" for name, one in lost.items())
            found.append(f"at {load} {', '.join(told)}")
    return "; ".join(found)


def _one(point: LoadPoint, slo: Slo | None) -> str:
    ttft, tpot = _typical(point, "ttft_s"), _typical(point, "tpot_s")
    text = f"{point.model} at {point.load}: "
    text += "no request was answered" if not point.answered else f"{point.requests_per_s:.3g} requests/s answered"
    if ttft is not None:
        text += f", first token after {_delay(ttft)}"
    if tpot is not None:
        text += f", then {_delay(tpot)} a token (means)"
    if point.good is not None and slo is not None:
        text += f"; {point.good.share:.0%} of requests met {slo_text(slo)}"
    return text + "."


def _delay(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _several(points: Sequence[LoadPoint], slo: Slo | None) -> str:
    best = max(points, key=lambda p: p.goodput_per_s if p.goodput_per_s is not None else p.requests_per_s)
    what = "requests/s" if slo is None else f"requests/s that meet {slo_text(slo)}"
    rate = best.goodput_per_s if best.goodput_per_s is not None else best.requests_per_s
    return f"{best.model} gave most at {best.load}: {rate:.3g} {what}."


def _won(difference: LoadDifference, *, everywhere: bool) -> str:
    winner = difference.winner
    loser = difference.b if winner == difference.a else difference.a
    ratio = difference.ratio if winner == difference.a else difference.ratio.inverse()
    value, low, high = ratio.value, ratio.low, ratio.high
    interval = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
    what = metric_of(difference.metric).words
    also = ", and is ahead at every load measured" if everywhere else ""
    return f"{winner} has {value:.3g} times{interval} the {what} of {loser} at {difference.load}{also}."


def _typical(point: LoadPoint, metric: str) -> float | None:
    found = of_load(point).metrics.get(metric)
    return None if found is None else found.value
