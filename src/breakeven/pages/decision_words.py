"""Verdicts, prices, flips and bands as people read them; the page and the terminal both speak through here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from breakeven.model.quality.scores import QualityScore
from breakeven.pages.load_words import ended, unit_of, workload_rows
from breakeven.pages.words import NOT_AVAILABLE, bytes_text, count_text, decimals_of, number, percent_text
from breakeven.results.cost import ENDLESS, Api, CostPoint, Own, Pricing
from breakeven.results.decision import (
    CandidateResult,
    Day,
    Decision,
    Flip,
    Kind,
    LatencyPoint,
    NextMeasurement,
    Region,
    TrafficShare,
)
from breakeven.stats.estimate import Estimate, exactly

MONTH_HOURS = 365.25 * 24 / 12
"""A twelfth of a year: bills are read by the month."""
FEW_PER_S = 0.1
EXACT = 1e-9
"""Of a value: ends that differ by less are one number, computed twice."""
# A band this many times its value wide has ends of different size, each with digits of its own.
WIDE = 0.5
ALL = 0.9995
"""Of the requests: shown as all of them."""
NO_WINNER = "no difference worth your time"
NOT_SEEN = "not in the range seen"
NOTHING = "-"
# Two loads this far apart are not the same load, and the numbers of one do not stand for the other.
SAME_LOAD = 1.25


def value_of(span: Estimate | None, scale: float = 1.0) -> str:
    """The value alone, with places that suit its interval."""
    return NOT_AVAILABLE if span is None else number(span.value * scale, _places(span, scale))


def interval_of(span: Estimate | None, scale: float = 1.0) -> str:
    """The interval alone, as "33.2-33.6"; empty where the value is exact or not known."""
    if span is None or span.low == span.high:
        return ""
    low, high = (number(end * scale, _end_places(span, end, scale)) for end in (span.least, span.most))
    return "" if low == high else f"{low}-{high}"


def span_text(span: Estimate | None, scale: float = 1.0) -> str:
    """Value and interval in one: "33.4 (33.2-33.6)"; an exact value stands alone."""
    interval = interval_of(span, scale)
    return value_of(span, scale) + (f" ({interval})" if interval else "")


def _places(span: Estimate, scale: float) -> int:
    if all(end * scale == round(end * scale) for end in (span.value, span.least, span.most)):
        return 0
    if span.most - span.least <= EXACT * abs(span.value):
        return decimals_of(span.value * scale)
    return decimals_of(span.value * scale, (span.most - span.least) / 2 * abs(scale))


def _end_places(span: Estimate, end: float, scale: float) -> int:
    """Places of one end: as many as the value's, but no more than three digits need where the band is wide."""
    places = _places(span, scale)
    return min(places, decimals_of(end * scale)) if span.most - span.least > WIDE * abs(span.value) else places


def usd(amount: float | None) -> str:
    """Money to three significant digits: "$6.98", "$0.000412", "$12,300"."""
    return NOT_AVAILABLE if amount is None else _dollars(amount, decimals_of(amount))


def usd_span(span: Estimate | None, scale: float = 1.0) -> str:
    """Money with its interval: "$412 (380-455)"."""
    if span is None:
        return NOT_AVAILABLE
    interval = usd_interval(span, scale)
    return _dollars(span.value * scale, _cents(_places(span, scale), span.value * scale)) + (
        f" ({interval})" if interval else ""
    )


def usd_interval(span: Estimate, scale: float = 1.0) -> str:
    """The interval of an amount without its sign: "1,250-1,310"; empty where it is exact."""
    if span.low == span.high:
        return ""
    places = [_cents(_end_places(span, end, scale), end * scale) for end in (span.least, span.most)]
    low, high = (f"{end * scale:,.{digits}f}" for end, digits in zip((span.least, span.most), places, strict=True))
    return "" if low == high else f"{low}-{high}"


def is_endless(candidate: CandidateResult) -> bool:
    """Whether its bill has no upper end."""
    return any(note.startswith(ENDLESS) for note in candidate.notes)


def month_text(candidate: CandidateResult, span: Estimate) -> str:
    """A month of an hourly bill; of one without an upper end, from where on it lies: "$412 (from 380)"."""
    told, interval = usd_span(span, MONTH_HOURS), usd_interval(span, MONTH_HOURS)
    if not interval or not is_endless(candidate):
        return told
    return told.replace(interval, f"from {interval.partition('-')[0]}")


def _cents(places: int, amount: float) -> int:
    """No fractions of a cent from a dollar on, however narrow the interval."""
    return min(places, 2) if abs(amount) >= 1 else places


def _dollars(amount: float, places: int) -> str:
    # Whole cents are written as prices are, fractions of a cent without zeros after them.
    if 0.1 <= abs(amount) < 100:
        whole_cents = abs(amount * 100 - round(amount * 100)) < 1e-6
        return f"${amount:.{2 if whole_cents else max(places, 2)}f}".removesuffix(".00")
    text = f"{amount:,.{places}f}"
    return "$" + (text.rstrip("0").rstrip(".") if "." in text else text)


def load_text(rate_per_s: float) -> str:
    """A load as people type it, to three significant digits: "0.1", "12.5", "1,200"."""
    return f"{float(f'{rate_per_s:.3g}'):,g}"


def load_words(rate_per_s: float) -> str:
    """A load with its unit, and by the day where nobody thinks of it by the second: "0.0139 req/s (1,200 a day)"."""
    day = f" ({load_text(rate_per_s * 86_400)} a day)" if rate_per_s < FEW_PER_S else ""
    return f"{load_text(rate_per_s)} req/s{day}"


def at_load(decision: Decision) -> str:
    """The load that the table of candidates is of: "At 5 req/s", "In the busiest hour, at 5 req/s"."""
    peak = "In the busiest hour, at" if decision.day is not None else "At"
    return f"{peak} {load_words(decision.load_per_s)}"


def kind_words(kind: Kind | None) -> str:
    """MoE, dense, or not known."""
    return {"moe": "MoE", "dense": "dense"}.get(kind or "", "not known")


def runs_on(candidate: CandidateResult) -> str:
    """Where a candidate runs, and where in it the weights lie: "2 x h100-sxm, vllm, fp8, wholly on the GPUs, cloud".

    A hosted model has only its place.
    """
    devices = f"{candidate.devices} x " if candidate.devices > 1 and candidate.machine else ""
    parts = [devices + candidate.machine, candidate.engine, candidate.format, candidate.placement, candidate.location]
    if isinstance(candidate.pricing, Api):
        parts = ["hosted, paid by the token"]
    return ", ".join(dict.fromkeys(part for part in parts if part))


def notes_of(candidate: CandidateResult) -> list[str]:
    """What must be known beside a candidate; where it lies stands with what it runs on."""
    return [note for note in candidate.notes if note != candidate.placement]


def pricing_text(pricing: Pricing | None) -> str:
    """A price as it was given."""
    if pricing is None:
        return "no price given"
    if isinstance(pricing, Own):
        power = ""
        if pricing.busy_w is not None:
            idle = "" if pricing.idle_w is None else f"{number(pricing.idle_w)} W idle, "
            power = f", {idle}{number(pricing.busy_w)} W busy at {usd(pricing.usd_per_kwh)}/kWh"
        building = f", building adds {percent_text(pricing.power_overhead - 1)}" if pricing.power_overhead > 1 else ""
        upkeep = f", upkeep {usd(pricing.yearly_upkeep_usd)} a year" if pricing.yearly_upkeep_usd else ""
        years = f"{pricing.life_years:g} year{'' if pricing.life_years == 1 else 's'}"
        return f"bought for {usd(pricing.usd)}, used {years}{power}{building}{upkeep}"
    dated = f" ({pricing.date})" if pricing.date else ""
    if isinstance(pricing, Api):
        cached = pricing.usd_per_mtok_cached_input
        read = f", {usd(cached)} cached" if cached is not None else ""
        return (
            f"{usd(pricing.usd_per_mtok_input)} in{read} and {usd(pricing.usd_per_mtok_output)} out "
            f"per million tokens{dated}"
        )
    return f"{usd(pricing.usd_per_hour)} an hour{dated}"


def quality_text(score: QualityScore) -> str:
    """How good a model is, and who says so."""
    if score.how == "none" or score.value is None:
        return "quality not known"
    if score.how == "size":
        band = f" ({count_text(score.low)} to {count_text(score.high)})" if score.low and score.high else ""
        band = "" if score.low == score.high else band
        return f"by size like a dense model of {count_text(score.value)}{band}"
    lost = _loss_text(score)
    if score.how == "bits_per_byte":
        ends = f" ({score.low:.3f}-{score.high:.3f})" if score.low is not None and score.high is not None else ""
        return f"{score.value:.3f}{ends} bits per byte of {score.benchmark or 'text'}{lost}, own evaluation"
    band = ""
    if score.low is not None and score.high is not None:
        band = f" ({number(score.low * 100)}-{number(score.high * 100)})"
    on = f" on {score.benchmark}" if score.benchmark else ""
    by = "own evaluation" if score.how == "own" else f"published: {score.source or 'source not named'}"
    return f"{percent_text(score.value)}{band}{on}{lost}, {by}"


def _loss_text(score: QualityScore) -> str:
    """What is lost against another: ", 9.1 % (8.2-10.0) more than q8 in de"; empty where not known or none."""
    if not score.loss or score.loss_against is None:
        return ""
    ends = ""
    if score.loss > 0 and score.loss_low is not None and score.loss_high is not None:
        ends = f" ({score.loss_low * 100:.1f}-{score.loss_high * 100:.1f})"
    unit = "" if score.how == "bits_per_byte" else " bits per byte"
    where = "" if score.loss_language in (None, "all") else f" in {score.loss_language}"
    more = "more" if score.loss > 0 else "fewer"
    return f", {abs(score.loss) * 100:.1f} %{ends}{unit} {more} than {score.loss_against}{where}"


def memory_text(candidate: CandidateResult) -> str:
    """What a candidate needs of what there is: "18.2 GB of 24.0 GB"."""
    if candidate.memory_bytes is None:
        return NOT_AVAILABLE
    there = f" of {bytes_text(candidate.memory_available_bytes)}" if candidate.memory_available_bytes else ""
    return f"{bytes_text(candidate.memory_bytes)}{there}"


def kept_line(candidate: CandidateResult) -> str:
    """Shares kept by machines: "overloaded with 1, keeps 89.9 % (85-94) with 2, 99 % alone; missed most: TTFT"."""
    parts, full = [], False
    over = max((kept.machines for kept in candidate.shares if kept.machines and kept.overloaded), default=0)
    for kept in candidate.shares:
        if kept.overloaded or (full and kept.machines is not None):
            continue  # more machines keep all of them too
        full = kept.share.value >= ALL
        few = "alone" if kept.machines is None else f"with {kept.machines}"
        parts.append(f"{share_text(kept.share)} {few}" + (" machine" if kept.machines == 1 else ""))
    worst = next((kept.worst for kept in reversed(candidate.shares) if kept.worst), None)
    borderline = f"{candidate.borderline}; " if candidate.borderline else ""
    few = "1 machine" if over == 1 else f"up to {over} machines"
    overloaded = f"overloaded with {few}, " if over else ""
    return f"{borderline}{overloaded}keeps {', '.join(parts)}" + (f"; missed most: {worst}" if worst else "")


def kept_cell(candidate: CandidateResult) -> str:
    """Percent kept with 1, 2 and 3 machines and alone, rounded down: "52/82/90/98"; empty where nobody knows.

    "over" where so many are overloaded: their share falls for as long as the load lasts.
    """
    return "/".join(
        "over" if kept.overloaded else f"{math.floor(kept.share.value * 100 + 1e-9):.0f}" for kept in candidate.shares
    )


def share_text(share: Estimate) -> str:
    """A share with its interval, rounded down: what misses 90 % by a hair must not read as 90 %."""
    low, high = (math.floor(each * 1000 + 1e-9) / 10 for each in (share.least, share.most))
    return share_value(share) + ("" if low == high else f" ({low:g}-{high:g})")


def share_value(share: Estimate) -> str:
    """A share without its interval, rounded down."""
    return f"{math.floor(share.value * 1000 + 1e-9) / 10:g} %"


def flip_at(flip: Flip) -> str:
    """Where an answer changes: "47.0 (40.1-55.3) req/s", "fp8", "not in the range seen"."""
    if flip.at_label:
        return flip.at_label
    return NOT_SEEN if flip.at is None else f"{span_text(flip.at)} {flip.unit}".rstrip()


def flip_line(flip: Flip) -> str:
    """One flip in a line: the quantity, where, and what it means."""
    return f"{flip.quantity}, {flip_at(flip)}: {ended(flip.meaning)}"


def region_loads(region: Region) -> str:
    """The loads of a region: "2 to 12.5 req/s", "above 12.5 req/s"."""
    if region.high_per_s is None:
        return f"above {load_text(region.low_per_s)} req/s"
    return f"{load_text(region.low_per_s)} to {load_text(region.high_per_s)} req/s"


def region_line(region: Region) -> str:
    """Who is best over the loads of a region, by how much, and whether that is sure."""
    if region.winner is None:
        return f"{region_loads(region)}: {NO_WINNER}"
    against = "" if region.runner_up is None else f"; {region.runner_up} {margin_text(region)}"
    return f"{region_loads(region)}: {region.winner}{against}{'' if region.certain else '; not sure'}"


def margin_text(region: Region) -> str:
    """By how much the runner-up is dearer: "costs 1.21 (0.60-1.21) times as much", "costs the same"."""
    if region.margin is None:
        return "comes next"
    same = region.margin == exactly(1.0)
    return "costs the same" if same else f"costs {span_text(region.margin)} times as much"


def share_line(share: TrafficShare) -> str:
    """Which traffic goes to whom when the answer is both."""
    price = "" if share.usd_per_hour is None else f", {usd_span(share.usd_per_hour, MONTH_HOURS)} a month"
    return f"{share.candidate}: {share.traffic} ({percent_text(share.share)} of requests{price})"


def band_line(measurement: NextMeasurement) -> str:
    """What a measurement would do to the band: "narrows the band from 1.80-fold to 1.15-fold"."""
    return (
        f"narrows the band from {number(measurement.band_before)}-fold to {number(measurement.band_after)}-fold"
        if math.isfinite(measurement.band_before)
        else f"gives a band of {number(measurement.band_after)}-fold"
    )


def rests_on(candidates: Sequence[CandidateResult]) -> str:
    """How many candidates were measured, predicted or published: "2 predicted, 1 published"."""
    counts = Counter(candidate.provenance for candidate in candidates)
    return ", ".join(f"{counts[how]} {how}" for how in ("measured", "predicted", "published") if counts[how])


def cost_at(candidate: CandidateResult, rate_per_s: float) -> CostPoint | None:
    """What a candidate costs at the load nearest to `rate_per_s`; None where none is near."""
    near = min(candidate.cost, key=lambda point: _apart(point.rate_per_s, rate_per_s), default=None)
    return near if near is not None and _apart(near.rate_per_s, rate_per_s) <= SAME_LOAD else None


def latency_at(candidate: CandidateResult, rate_per_s: float) -> LatencyPoint | None:
    """Delays when `rate_per_s` is spread over the replicas it needs.

    Of the loads looked at, the nearest that is not below each replica's part, so that no delay is flattered; None where
    all are well below.
    """
    cost = cost_at(candidate, rate_per_s)
    replicas = 1.0 if cost is None or cost.replicas is None else max(1.0, cost.replicas.value)
    part = rate_per_s / replicas
    points = sorted(candidate.latency, key=lambda point: point.rate_per_s)
    above = next((point for point in points if point.rate_per_s >= part * (1 - 1e-6)), None)
    if above is None and points and _apart(points[-1].rate_per_s, part) <= SAME_LOAD:
        return points[-1]
    return above


def _apart(a: float, b: float) -> float:
    """How many times the larger of two loads is the smaller one."""
    if a == b:
        return 1.0
    return max(a, b) / min(a, b) if min(a, b) > 0 else math.inf


def delay_span(span: Estimate | None) -> str:
    """A delay with its interval in the unit that suits it: "412 ms (380-455)"."""
    if span is None:
        return NOT_AVAILABLE
    unit = unit_of([span.value, span.high])
    interval = interval_of(span, unit.scale)
    return f"{value_of(span, unit.scale)} {unit.name}" + (f" ({interval})" if interval else "")


def traffic_rows(decision: Decision) -> list[tuple[str, str]]:
    """Name and value of everything about the traffic and the service level asked for."""
    rows = workload_rows(decision.workload, decision.slo, played=False)
    keep = ("Share to keep it", f"at least {percent_text(decision.good_share)} of requests")
    at = next((index for index, (name, _) in enumerate(rows) if name == "Service level"), len(rows) - 1)
    return [("Load now", load_words(decision.load_per_s)), *rows[: at + 1], keep, *rows[at + 1 :]]


def day_words(day: Day) -> str:
    """What the table of the hours holds."""
    first = day.bills[0] if day.bills and day.bills[0].used else None
    whole = "" if first is None else f"; all day: machines of {first.candidate}, the cheapest over all hours"
    who = "Who is cheapest in each hour alone, of those that may stand aside in others"
    return f"{who}{whole}; as predicted, starts apart"


def day_rows(day: Day | None) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a day by the hour: its load, who is cheapest in it alone, and the cheapest over the whole day.

    No rows without a day, and of one that holds nothing by the hour.
    """
    if day is None or not day.hours:
        return [], []
    whole = day.bills[0] if day.bills and day.bills[0].used else None
    rows = []
    for h, (per_s, hour) in enumerate(zip(day.hours_per_s, day.hours, strict=True)):
        before = f"day {h // 24 + 1}, " if len(day.hours) > 24 else ""
        row = [f"{before}{h % 24}-{h % 24 + 1} h", load_text(per_s), hour.cheapest or NOTHING]
        row += [str(hour.machines) if hour.machines else NOTHING, _share(hour.used)]
        row += [NOTHING if hour.usd is None else usd(hour.usd)]
        rows.append([*row, *([] if whole is None else [str(whole.machines[h]), _share(whole.used[h])])])
    heads = ["hour", "req/s", "cheapest", "machines", "used", "$"]
    return heads + ([] if whole is None else ["all day", "used"]), rows


def _share(share: float | None) -> str:
    return NOTHING if share is None else percent_text(share)
