"""A day's bill: machines that follow the load, candidates that take turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from breakeven.answer.candidates import Reasons
from breakeven.answer.day import busiest_text, day_of
from breakeven.answer.decide import _day, decide
from breakeven.answer.study.load import read_study
from breakeven.answer.study.plan import START_S, Scaling
from breakeven.answer.words import turns_text
from breakeven.answer.worlds import Contender, Doubt
from breakeven.errors import UserError
from breakeven.price.pricing import HOURS_PER_YEAR, Power, PricedTraffic
from breakeven.price.staircase import in_proportion
from breakeven.results.cost import Api, Own, Pricing, Rented
from breakeven.results.decision import DayHour, Kind, LatencyPoint
from breakeven.stats.estimate import Estimate

TRAFFIC = PricedTraffic(prompt_tokens=1000, output_tokens=500)
NIGHT, DAY = [2.0] * 12, [60.0] * 12
HOURS = NIGHT + DAY


def one(
    name: str, pricing: Pricing, capacity: float, kind: Kind = "dense", power: Power | None = None, **more: object
) -> Contender:
    fleet = in_proportion(Estimate(capacity, capacity, capacity))
    doubt = Doubt(name, name, 0.0, 0.0)
    return Contender(name, kind, pricing, fleet, TRAFFIC, doubt, [], power, **more)  # type: ignore[arg-type]


def test_a_rented_fleet_pays_for_hours_in_use_and_for_starting() -> None:
    day, here = day_of([one("dense", Rented(usd_per_hour=2.0), 10.0)], HOURS, 0)
    (bill,) = day.bills
    assert bill.machines == [1] * 12 + [6] * 12
    assert bill.starts == 5
    assert bill.usd_per_day.value == pytest.approx(2.0 * (12 + 72 + 5 * START_S / 3600))
    assert bill.utilisation == pytest.approx((24 + 720) / (84 * 10))
    assert bill.off_peak_hours == 12
    assert here.winner == "dense"


@pytest.mark.parametrize(
    ("hours", "start_s", "paid", "starts"),
    [
        # Needed every other hour, and two hours to start: it is never worth stopping.
        ([10.0, 0.0] * 12, 7200.0, 24.0, 0),
        ([10.0, 0.0] * 12, 1800.0, 18.0, 12),
        ([10.0, 0.0] * 12, 3600.0, 24.0, 0),
        ([0.0] * 23 + [10.0], 7200.0, 3.0, 1),
        ([0.0] * 23 + [10.0], 5400.0, 2.5, 1),
        # Two hours apart: of an hour and a half only one half is not paid for.
        ([10.0, 0.0, 0.0] * 8, 5400.0, 20.0, 8),
        ([0.0] * 23 + [10.0], 40 * 3600.0, 24.0, 0),
        ([0.0] * 22 + [10.0, 20.0], 7200.0, 4.0 + 3.0, 2),
    ],
)
def test_no_machine_is_paid_for_twice_at_one_moment(
    hours: list[float], start_s: float, paid: float, starts: int
) -> None:
    scale = Scaling(least=0, start_s=start_s)
    (bill,) = day_of([one("a", Rented(usd_per_hour=1.0), 10.0, scale=scale)], hours, 0)[0].bills
    assert bill.usd_per_day.value == pytest.approx(paid)
    assert bill.starts == starts


def test_a_bought_fleet_is_as_large_as_the_busiest_hour_needs() -> None:
    own = Own(usd=HOURS_PER_YEAR, life_years=1, usd_per_kwh=0.5, idle_w=100, busy_w=300)
    power = Power(idle_w=100, busy_w=300)
    always, sleeps = (
        day_of([one("own", own, 10.0, power=power, scale=scale)], HOURS, 0)[0].bills[0].usd_per_day.value
        for scale in (None, Scaling(least=1, start_s=0.0))
    )
    # Six machines at a dollar an hour; 200 W above idle for 744 of 10-an-hour hours.
    busy = 744 / 10 * 0.2 * 0.5
    assert always == pytest.approx(24 * 6 * 1.0 + 24 * 6 * 0.1 * 0.5 + busy)
    assert sleeps == pytest.approx(24 * 6 * 1.0 + 84 * 0.1 * 0.5 + busy)


def test_nothing_runs_in_an_empty_hour_where_none_must() -> None:
    hours = [0.0] * 12 + [5.0] * 12
    for least, usd in ((0, 12.0), (1, 24.0)):
        scale = Scaling(least=least, start_s=0.0)
        (bill,) = day_of([one("a", Rented(usd_per_hour=1.0), 10.0, scale=scale)], hours, 0)[0].bills
        assert bill.usd_per_day.value == pytest.approx(usd)


def test_dense_at_night_and_moe_by_day_are_cheaper_than_either() -> None:
    dense = one("dense", Rented(usd_per_hour=1.0), 10.0, scale=Scaling(start_s=0.0))
    moe = one("moe", Rented(usd_per_hour=3.0), 100.0, "moe", scale=Scaling(start_s=0.0))
    day, here = day_of([dense, moe], HOURS, 0)
    assert [(each.candidate, each.usd_per_day.value) for each in day.bills] == [("moe", 72.0), ("dense", 84.0)]
    assert day.by_hour == ["dense"] * 12 + ["moe"] * 12
    assert day.by_hour_usd_per_day is not None
    assert day.by_hour_usd_per_day.value == pytest.approx(12 + 36)
    assert day.single_over_by_hour is not None
    assert day.single_over_by_hour.value == pytest.approx(72 / 48)
    assert here.winner == "moe"
    told = " ".join(day.sentences)
    assert "dense 0-12 h, moe 12-24 h" in told
    assert "moe is below 30% utilisation in 12 of 24 hours" in told
    assert "dense would cost 0.33 times as much" in told
    assert day.hours[0] == DayHour(cheapest="dense", usd=1.0, machines=1, used=0.2)
    assert day.hours[23] == DayHour(cheapest="moe", usd=3.0, machines=1, used=0.6)
    assert [day.bills[0].used[h] for h in (0, 23)] == [0.02, 0.6]


def test_of_days_that_cost_the_same_the_faster_wins_in_any_order() -> None:
    def answers(e2e_s: float) -> list[LatencyPoint]:
        flat = Estimate(e2e_s, e2e_s, e2e_s)
        names = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "e2e_p50_s", "e2e_p99_s", "good_share")
        delays = dict.fromkeys(names, flat)
        return [LatencyPoint(rate_per_s=rate, **delays, utilisation=0.5, tokens_per_s=1.0) for rate in (0.1, 99.0)]

    slow = replace(one("a", Rented(usd_per_hour=1.0), 10.0), latency=answers(2.0))
    fast = replace(one("b", Rented(usd_per_hour=1.005), 10.0), latency=answers(1.0))
    unknown = one("c", Rented(usd_per_hour=1.0), 10.0)
    for order in ([slow, fast, unknown], [unknown, fast, slow]):
        day, here = day_of(order, HOURS, 0)
        assert here.winner == day.bills[0].candidate == "b"
        assert day.sentences[0].startswith("Over the day b alone is cheapest")
    day, here = day_of([slow, replace(fast, pricing=Rented(usd_per_hour=1.05))], HOURS, 0)
    assert here.winner == "a"


def test_nobody_changes_over_for_an_hour_in_which_nothing_is_asked() -> None:
    dense = one("dense", Rented(usd_per_hour=1.0), 10.0, scale=Scaling(start_s=0.0))
    moe = one("moe", Rented(usd_per_hour=3.0), 100.0, "moe", scale=Scaling(start_s=0.0))
    day, _ = day_of([dense, moe], [0.0] * 4 + [2.0] * 8 + [60.0] * 12, 0)
    # The day repeats: whoever serves its last hour stays for the first ones.
    assert day.by_hour == ["moe"] * 4 + ["dense"] * 8 + ["moe"] * 12
    assert day.by_hour_usd_per_day is not None
    assert day.by_hour_usd_per_day.value == pytest.approx(8 + 36)
    assert day.hours[0] == DayHour()
    assert day.hours[4].cheapest == "dense"


def test_who_may_not_stand_aside_is_never_the_cheapest_of_an_hour() -> None:
    own = Own(usd=20_000.0, life_years=1, usd_per_kwh=0.2, idle_w=50, busy_w=100)
    box = one("box", own, 10.0, power=Power(idle_w=50, busy_w=100))
    day, _ = day_of([box], HOURS, 0)
    assert set(day.hours) == {DayHour()}
    assert day.bills[0].machines == [6] * 24
    assert day.bills[0].used == pytest.approx([2 / 60] * 12 + [1.0] * 12)


def test_hours_are_said_by_the_clock_and_counted_where_there_are_many_stretches() -> None:
    names = ["a"] * 7 + ["b"] * 15 + ["a"] * 2
    assert turns_text(names) == "a 0-7 and 22-24 h, b 7-22 h"
    assert turns_text(names, {"a": "dense", "b": "moe"}) == "a (dense) 0-7 and 22-24 h, b (MoE) 7-22 h"
    assert turns_text(["a", "b"] * 12) == "a in 12 of 24 hours, b in 12 of 24 hours"
    assert turns_text(names * 7) == "a in 63 of 168 hours, b in 105 of 168 hours"


def test_bought_machines_take_no_turns_but_those_there_already_do() -> None:
    moe = one("moe", Rented(usd_per_hour=3.0), 100.0, "moe", scale=Scaling(start_s=0.0))
    for usd, turns in ((20_000.0, False), (0.0, True)):
        own = Own(usd=usd, life_years=1, usd_per_kwh=0.2, idle_w=50, busy_w=100)
        box = one("box", own, 10.0, power=Power(idle_w=50, busy_w=100), max_replicas=1, scale=Scaling(least=0))
        day, _ = day_of([box, moe], HOURS, 0)
        assert bool(day.by_hour) is turns


def test_an_api_costs_the_same_at_any_hour() -> None:
    api = Contender("api", "moe", Api(usd_per_mtok_input=1.0, usd_per_mtok_output=2.0), None, TRAFFIC, None, [])
    (bill,) = day_of([api], HOURS, 0)[0].bills
    assert bill.usd_per_day.value == pytest.approx(2e-3 * sum(HOURS) * 3600)
    assert bill.machines == [0] * 24


@pytest.mark.parametrize("seed", range(5))
def test_the_best_by_the_hour_never_costs_more_than_it_says_it_saves(seed: int) -> None:
    generator = np.random.default_rng(seed)
    hours = (generator.lognormal(2, 1.5, 24) * (generator.random(24) > 0.2)).tolist()
    many = [
        one(f"c{i}", Rented(usd_per_hour=float(generator.uniform(0.5, 5))), float(generator.uniform(2, 80)))
        for i in range(4)
    ]
    day, here = day_of(many, hours, seed)
    assert [b.usd_per_day.value for b in day.bills] == sorted(b.usd_per_day.value for b in day.bills)
    assert here.winner == day.bills[0].candidate
    if day.by_hour_usd_per_day is not None:
        assert day.by_hour_usd_per_day.value < day.bills[0].usd_per_day.value


HEAD = """
load: {{day: {day}, prompt: 200, output: 50, requests: 300}}
slo: {{ttft: 3s, tpot: 100ms, share: 95%}}
contexts: [250, 1000]
formats: [Q4_K_M, Q8_0]
candidates:
  - {{name: a, model: llama-3.2-1b, machine: rtx-4090, format: Q4_K_M, price: {{rented: {{usd_per_hour: 0.6}}}}}}
"""


def study(tmp_path: Path, day: str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(HEAD.format(day=day), encoding="utf-8")
    return path


def test_a_day_is_decided_by_its_whole_bill(tmp_path: Path) -> None:
    (tmp_path / "loads.csv").write_text("hour,rate\n" + "\n".join(f"{h},{60 if h > 8 else 0}/min" for h in range(24)))
    plan = read_study(study(tmp_path, "loads.csv"))
    assert plan.hours_per_s == (0.0,) * 9 + (1.0,) * 15
    assert plan.load_per_s == 1.0
    found = decide(plan)
    assert found.day is not None
    assert "over the day" in found.verdict.sentence
    assert found.verdict.winner == "a"
    assert found.day.bills[0].usd_per_day.value == pytest.approx(24 * 0.6)


@pytest.mark.parametrize(
    ("day", "right"),
    [
        ("[1, 2]", "24 hours .*found 2"),
        (str([0] * 24), "an hour in which something comes in"),
        (str([1] * 23 + ["often"]), "a rate above 0 .*load 24 of 24 is 'often'"),
        (str([1, -1] + [1] * 22), "load 2 of 24 is -1"),
        ("nowhere.csv", "does not exist"),
    ],
)
def test_what_is_no_day_is_refused(tmp_path: Path, day: str, right: str) -> None:
    with pytest.raises(UserError, match=right):
        read_study(study(tmp_path, day))


def test_a_spreadsheet_s_mark_is_no_load_and_no_load_is_taken_for_a_head(tmp_path: Path) -> None:
    loads = "\n".join(f"{hour + 1}/min" for hour in range(24))
    (tmp_path / "marked.csv").write_text("\ufeff" + loads, encoding="utf-8")
    assert read_study(study(tmp_path, "marked.csv")).hours_per_s[0] == pytest.approx(1 / 60)
    (tmp_path / "long.csv").write_text("9/min\n" + loads, encoding="utf-8")
    with pytest.raises(UserError, match=r"long\.csv: .*found 25"):
        read_study(study(tmp_path, "long.csv"))
    (tmp_path / "sheet.xls").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="it is no text"):
        read_study(study(tmp_path, "sheet.xls"))


def test_worlds_in_which_nobody_carries_the_day_are_nobodys() -> None:
    doubt = Doubt("edge", "gpu", 0.2, 0.2)
    edge = replace(one("edge", Rented(usd_per_hour=1.0), 10.0), doubt=doubt, only_just=True)
    day, here = day_of([edge], HOURS, 0)
    assert here.winner == "edge"
    assert 0.35 < here.sure < 0.65
    assert any("of the cases" in each and "edge does not carry every hour" in each for each in day.sentences)
    sure, _ = day_of([one("edge", Rented(usd_per_hour=1.0), 10.0)], HOURS, 0)
    assert not any("does not carry" in each for each in sure.sentences)


def test_an_hour_of_a_machine_that_runs_all_day_costs_what_its_requests_add() -> None:
    own = Own(usd=0.0, life_years=1, usd_per_kwh=0.5, idle_w=100, busy_w=300)
    day, _ = day_of([one("box", own, 100.0, power=Power(idle_w=100, busy_w=300))], HOURS, 0)
    # Of 200 W above idle a fiftieth, and idle power in any case.
    assert day.hours[0].usd == pytest.approx(0.2 / 50 * 0.5)
    assert day.bills[0].usd_per_day.value == pytest.approx((24 * 0.1 + 744 / 100 * 0.2) * 0.5)


def test_what_idle_hours_would_cost_elsewhere_is_no_negative_number() -> None:
    own = Own(usd=0.0, life_years=1, usd_per_kwh=0.5, idle_w=100, busy_w=300, yearly_upkeep_usd=HOURS_PER_YEAR)
    box = one("box", own, 100.0, power=Power(idle_w=100, busy_w=300), scale=Scaling(start_s=0.0))
    moe = one("moe", Rented(usd_per_hour=3.0), 100.0, "moe", scale=Scaling(start_s=0.0))
    day, here = day_of([box, moe], HOURS, 0)
    assert here.winner == "box"
    # Twelve hours of 3 dollars; of the box, which is there, 100 W and a fiftieth of 200 W.
    times = 12 * 3.0 / (12 * (0.1 + 0.2 / 50) * 0.5)
    assert any(f"moe would cost {times:.2g} times as much in these" in each for each in day.sentences)


@pytest.mark.parametrize(("hours", "called"), [(24, "day"), (30, "30 hours"), (168, "week")])
def test_a_recorded_time_is_called_what_it_is(hours: int, called: str) -> None:
    day, _ = day_of([one("a", Rented(usd_per_hour=1.0), 10.0)], [2.0] * hours, 0)
    assert day.sentences[0].startswith(f"Over the {called} a alone is cheapest")
    assert busiest_text([2.0] * hours) == f"2 requests/s over the {called}, 2 requests/s in its busiest hour"


@pytest.mark.parametrize(("budget", "winner"), [(100, "a"), (10, None)])
def test_the_budget_is_held_against_the_bill_of_the_day(tmp_path: Path, budget: int, winner: str | None) -> None:
    """One hour of 0.60 a day is 18 a month, though the busiest hour all month long would be 438."""
    path = study(tmp_path, str([0] * 23 + [1]))
    scaled = path.read_text(encoding="utf-8").replace("price:", "scale: {least: 0, start: 0s}, price:")
    path.write_text(f"{scaled}budget_usd_per_month: {budget}\n", encoding="utf-8")
    found = decide(read_study(path))
    assert found.verdict.winner == winner
    (one_of,) = found.candidates
    assert one_of.ruled_out == ([] if winner else ["costs $18 a month; the budget is $10"])
    as_if = "The hours are told as if there were no budget."
    assert (as_if in found.verdict.because) is (winner is None)


@pytest.mark.parametrize(
    ("budget", "billed", "said"),
    [
        (3000, ["moe", "dense"], []),
        # 72, 84 and, taking turns, 48 a day are 2,191, 2,557 and 1,461 a month.
        (2300, ["moe"], ["With dense, alone beyond the budget, taking turns by the hour is within the budget: $48.00"]),
        (1500, ["moe", "dense"], ["Taking turns by the hour is within the budget: $48.00 a day (dense 0-12 h"]),
        (1400, ["moe", "dense"], ["The hours are told as if there were no budget."]),
    ],
)
def test_turns_within_the_budget_are_said(tmp_path: Path, budget: int, billed: list[str], said: list[str]) -> None:
    dense = one("dense", Rented(usd_per_hour=1.0), 10.0, scale=Scaling(start_s=0.0))
    moe = one("moe", Rented(usd_per_hour=3.0), 100.0, "moe", scale=Scaling(start_s=0.0))
    asked = read_study(study(tmp_path, str(HOURS)))
    ruled = {name: Reasons([], [], []) for name in ("dense", "moe")}
    day, here, told = _day(replace(asked, budget_usd_per_month=budget), [dense, moe], ruled)
    assert [bill.candidate for bill in day.bills] == billed
    assert here.winner == ("moe" if budget > 2191 else None)
    assert len(told) == len(said)
    assert all(text.startswith(begin) for text, begin in zip(told, said, strict=True))


def test_of_more_than_a_week_the_last_is_decided_and_that_is_said(tmp_path: Path) -> None:
    """Two days of five requests an hour, then a week of one, as a service that was tried out and left."""
    at_s = [3600 * hour + 600 * k for hour in range(48) for k in range(5)]
    at_s += [3600 * hour for hour in range(48, 48 + 168)] + [3600 * (48 + 168) - 1]
    rows = "\n".join(f"{each},100,20" for each in at_s)
    (tmp_path / "trace.csv").write_text(f"at_s,prompt_tokens,output_tokens\n{rows}\n", encoding="utf-8")
    path = tmp_path / "study.yaml"
    path.write_text(
        "load: {trace: trace.csv, requests: 200}\nslo: {ttft: 2s, tpot: 100ms, share: 95%}\ncandidates: "
        "[{name: a, price: {api: {input: 1, output: 2}}, speed: {ttft: 0.3s, tokens_per_s: 99, source: x}}]\n",
        encoding="utf-8",
    )
    plan = read_study(path)
    assert plan.hours_per_s == pytest.approx([1 / 3600] * 167 + [2 / 3600])
    found = decide(plan)
    assert "Of the 216 hours of the trace the last 168 count, a week." in found.verdict.because
    start = "Hours count from 48 hours after the first request of the trace, not from midnight."
    assert start in found.verdict.because
    # The same from the third day on is a week, of which nothing is left out.
    text = "\n".join(f"{each - 48 * 3600},100,20" for each in at_s if each >= 48 * 3600)
    (tmp_path / "trace.csv").write_text(f"at_s,prompt_tokens,output_tokens\n{text}\n", encoding="utf-8")
    week = decide(read_study(path))
    assert week.day is not None
    assert found.day is not None
    assert week.day.bills == found.day.bills
    assert not any("of the trace the last" in why for why in week.verdict.because)


@pytest.mark.parametrize("both", [False, True])
def test_what_costs_nothing_is_cheapest_without_being_times_as_cheap(both: bool) -> None:
    free = one("free", Rented(usd_per_hour=0.0), 10.0)
    other = one("other", Rented(usd_per_hour=0.0 if both else 1.0), 10.0)
    with np.errstate(divide="raise", invalid="raise"):
        day, here = day_of([other, free], HOURS, 0)
    assert here.winner == ("other" if both else "free")
    assert day.bills[0].usd_per_day.value == 0.0
    assert (here.margin is None) != both
    assert day.by_hour == []


def test_the_price_flip_of_a_day_is_of_the_day(tmp_path: Path) -> None:
    """In the busy hour a machine is cheaper, over the day the tokens are."""
    path = tmp_path / "study.yaml"
    path.write_text(
        f"load: {{day: {['0/s'] * 8 + ['0.05/s'] * 4 + ['20/s'] * 12}, prompt: 200, output: 50, requests: 300}}\n"
        "slo: {ttft: 3s, tpot: 100ms, share: 95%}\ncandidates:\n"
        "  - {name: own, model: llama-3.2-1b, machine: rtx-4090, price: {rented: {usd_per_hour: 0.6}}}\n"
        "  - {name: hosted, model: llama-3.1-8b, price: {api: {input: 0.05, output: 0.08}},\n"
        "     speed: {ttft: 0.3s, tokens_per_s: 200, source: a guess}}\n",
        encoding="utf-8",
    )
    found = decide(read_study(path))
    assert found.verdict.winner == "hosted"
    assert found.day is not None
    first, second = found.day.bills
    (flip,) = (each for each in found.flips if each.quantity == "price")
    assert (flip.from_, flip.to) == ("hosted", "own")
    assert flip.at is not None
    assert flip.at.value == pytest.approx(second.usd_per_day.value / first.usd_per_day.value)
