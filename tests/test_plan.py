"""The order of measuring, as a pure function: fair to every load, bounded by the budget, blind to who is winning."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from breakeven.measure.paired.plan import SETTLED_ROUNDS, SURE_ROUNDS, Enough, LoadSoFar, Plan, next_load, order


def fresh(streams: tuple[int, ...] = (1, 2, 4)) -> list[LoadSoFar]:
    return [LoadSoFar(s, 0, math.inf, None) for s in streams]


def test_the_first_round_runs_whatever_the_budget() -> None:
    assert next_load(Plan(budget_s=0.001), fresh(), 0.0) == 1


def test_a_load_that_would_pass_the_budget_is_left_out() -> None:
    loads = [LoadSoFar(1, 1, math.inf, 5.0), LoadSoFar(8, 0, math.inf, None)]
    assert next_load(Plan(budget_s=20.0), loads, 10.0) == 1
    assert next_load(Plan(budget_s=20.0), loads, 16.0) == Enough("budget")


def test_every_load_gets_an_interval_before_any_gets_a_better_one() -> None:
    loads = [LoadSoFar(1, 3, 0.5, 1.0), LoadSoFar(2, 2, math.inf, 1.0), LoadSoFar(4, 3, 0.5, 1.0)]
    assert next_load(Plan(), loads, 0.0) == 2


def test_precise_loads_are_left_alone_and_end_the_run() -> None:
    done = LoadSoFar(1, SURE_ROUNDS, 0.01, 1.0)
    assert next_load(Plan(), [done, LoadSoFar(2, 4, 0.03, 1.0)], 0.0) == 2
    assert next_load(Plan(), [done], 0.0) == Enough("precision")
    assert next_load(Plan(), [LoadSoFar(1, SURE_ROUNDS - 1, 0.01, 1.0)], 0.0) == 1, "five are narrow by accident"
    assert next_load(Plan(), [LoadSoFar(1, SETTLED_ROUNDS, 0.006, 1.0)], 0.0) == Enough("precision"), "not that narrow"
    early = LoadSoFar(1, SETTLED_ROUNDS - 1, 0.001, 1.0)
    assert next_load(Plan(), [early], 0.0) == 1, "three values agree by accident too often"


def test_the_widest_interval_is_narrowed_first_and_no_load_falls_behind() -> None:
    wide, narrow = LoadSoFar(1, 8, 0.08, 1.0), LoadSoFar(4, 8, 0.03, 1.0)
    assert next_load(Plan(), [wide, narrow], 0.0) == 1
    assert next_load(Plan(), [wide, LoadSoFar(4, 8, 0.03, 1.0, widest=0.2)], 0.0) == 4, "prefill's is wider"
    assert next_load(Plan(), [wide, LoadSoFar(4, SURE_ROUNDS - 1, 0.03, 1.0)], 0.0) == 4, "widths of few say little"
    assert next_load(Plan(), [LoadSoFar(1, 17, 0.08, 1.0), narrow], 0.0) == 4
    assert next_load(Plan(), [wide, LoadSoFar(4, 8, 0.08, 1.0)], 0.0) == 1, "the cheaper of two alike"


@given(
    st.lists(st.sampled_from([1, 2, 4, 8, 16]), min_size=1, max_size=5, unique=True),
    st.floats(1.0, 500.0),
    st.floats(0.05, 5.0),
)
def test_a_run_ends_and_never_starts_a_round_it_cannot_afford(
    streams: list[int], budget_s: float, round_s: float
) -> None:
    plan = Plan(tuple(streams), budget_s=budget_s)
    rounds = dict.fromkeys(streams, 0)
    elapsed = 0.0
    for _ in range(20_000):
        loads = [LoadSoFar(s, n, math.inf if n < 3 else 1.0, round_s * s if n else None) for s, n in rounds.items()]
        choice = next_load(plan, loads, elapsed)
        if isinstance(choice, Enough):
            assert choice.because == "budget"
            break
        if sum(rounds.values()):
            assert elapsed + round_s * choice <= budget_s + 1e-9
        rounds[choice] += 1
        elapsed += round_s * choice
    else:
        raise AssertionError("it never ends")


@given(st.integers(0, 100), st.integers(2, 6))
def test_neighbouring_rounds_mirror_each_other(number: int, candidates: int) -> None:
    assert order(number, candidates) == order(number + 1, candidates)[::-1]
    assert sorted(order(number, candidates)) == list(range(candidates))
