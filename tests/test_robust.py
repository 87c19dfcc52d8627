"""Pairs of which a neighbour spoils some: what is promised must hold, in a world of simulated noise."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.noise import spells, summary
from breakeven.measure.paired.blocks import BlockMetrics, FinishedBlock
from breakeven.measure.paired.pairs import LEAST_QUIET, PROCESS_FLOOR, load_states, pair_rows, paired, pairs, points
from breakeven.measure.paired.plan import Plan
from breakeven.stats import intervals, robust

ratios_drawn = st.lists(st.floats(0.5, 2.0), min_size=3, max_size=20)


@given(ratios_drawn)
def test_ratio_of_swapped_candidates_is_the_reciprocal(ratios: list[float]) -> None:
    forward, backward = robust.ratio(ratios), robust.ratio([1 / r for r in ratios])
    assert math.isclose(forward.value, 1 / backward.value, rel_tol=1e-9)
    assert forward.low is not None
    assert forward.high is not None
    assert forward.low <= forward.value * (1 + 1e-12)
    assert forward.value <= forward.high * (1 + 1e-12)
    assert robust.differs(ratios) == robust.differs([1 / r for r in ratios])


@given(ratios_drawn, st.floats(0.001, 0.1))
def test_a_floor_only_widens_and_a_winner_has_an_interval_beyond_one(ratios: list[float], floor: float) -> None:
    plain, widened = robust.ratio(ratios), robust.ratio(ratios, floor)
    assert widened.value == plain.value
    assert intervals.relative_half_width(widened) >= intervals.relative_half_width(plain) - 1e-12
    if robust.differs(ratios, floor):
        assert widened.low is not None
        assert widened.high is not None
        assert not widened.low <= 1 <= widened.high


def test_ranks_are_those_of_the_tables() -> None:
    """Hollander, Wolfe and Chicken, table A.4: two-sided 95 % from the sixth value on, 99 % from the eighth."""
    found = {n: robust.least_rank(n, 0.025) for n in (5, 6, 7, 8, 10, 15, 20)}
    assert found == {5: 0, 6: 1, 7: 3, 8: 4, 10: 9, 15: 26, 20: 53}
    assert [robust.least_rank(n, 0.005) for n in (7, 8, 10)] == [0, 1, 4]
    # Every assignment of signs, counted out.
    for n in (6, 9):
        sums = [sum(r * s for r, s in enumerate(signs, 1)) for signs in itertools.product((0, 1), repeat=n)]
        rank = robust.least_rank(n, 0.025)
        assert sum(total <= rank - 1 for total in sums) <= 0.025 * 2**n < sum(total <= rank for total in sums)


def test_few_values_and_many_have_an_answer_too() -> None:
    assert robust.ratio([1.1, 1.2]).low is None
    assert not robust.differs([1.1, 1.2])
    assert robust.level([]) is None
    assert robust.centre([1.0, 1.0, 1.0, 1.0, 30.0]) == 1.0
    many = np.exp(np.random.default_rng(0).normal(0.1, 0.02, robust.MOST_RANKED + 100)).tolist()
    assert robust.ratio(many).value == pytest.approx(math.exp(0.1), rel=0.005)
    assert robust.differs(many)


@pytest.mark.parametrize(("n", "spread"), [(4, "normal"), (6, "normal"), (8, "heavy"), (12, "normal"), (20, "heavy")])
def test_the_interval_covers_and_a_winner_is_seldom_named_by_chance(n: int, spread: str) -> None:
    rng = np.random.default_rng(n)
    draws = rng.normal(0, 0.02, (1200, n)) if spread == "normal" else 0.02 * rng.standard_t(3, (1200, n))
    covered = wrong = 0
    for logs in draws:
        estimate = robust.ratio(np.exp(logs + 0.1).tolist())
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= math.exp(0.1) <= estimate.high
        wrong += robust.differs(np.exp(logs).tolist())
    assert covered / 1200 >= 0.935, "95 % less three standard errors"
    assert wrong <= 24


def test_one_disturbed_pair_of_twelve_neither_carries_the_ratio_away_nor_blows_up_its_interval() -> None:
    logs = np.random.default_rng(3).normal(math.log(1.02), 0.02, 12)
    quiet = robust.ratio(np.exp(logs).tolist())
    logs[4] += 1.2
    spoiled, mean = robust.ratio(np.exp(logs).tolist()), intervals.ratio(np.exp(logs).tolist())
    assert spoiled.value == pytest.approx(quiet.value, rel=0.01)
    assert mean.value > 1.1
    assert intervals.relative_half_width(spoiled) < 0.05
    assert intervals.relative_half_width(mean) > 0.2
    logs[[2, 9]] += [0.9, 0.6]
    assert robust.ratio(np.exp(logs).tolist()).value == pytest.approx(quiet.value, rel=0.05)


def block(model: str, number: int, rate: float, noisy: bool = False, turn: int | None = None) -> FinishedBlock:
    metrics = BlockMetrics(
        streams=1,
        prompt_tokens=8,
        output_tokens=8,
        decode_tokens_per_s=rate,
        prefill_tokens_per_s=10 * rate,
        ttft_s=None,
        service_ttft_s=None,
        itl_s=None,
        itl_median_s=None,
        window_s=1.0,
        server_decode_tokens_per_s=None,
        exact=True,
    )
    return FinishedBlock(model, 1, number, 1.0, metrics, ("others",) if noisy else (), None, turn)


DECODE = "decode_tokens_per_s"


def study(quiet: int, noisy: int) -> list[FinishedBlock]:
    """`quiet` pairs at 2, then pairs whose second block a neighbour slowed to a fifth."""
    return [
        *(block(m, r, rate) for r in range(quiet) for m, rate in (("a", 20.0), ("b", 10.0))),
        *(block("a", quiet + r, 20.0) for r in range(noisy)),
        *(block("b", quiet + r, 2.0, noisy=True) for r in range(noisy)),
    ]


def test_pairs_with_a_flagged_block_stay_out_while_five_quiet_ones_stand() -> None:
    found = paired(study(LEAST_QUIET, 4), "a", "b", DECODE, 1)
    assert (found.values, found.left_out, found.disturbed) == ([2.0] * LEAST_QUIET, 4, 0)
    few = paired(study(LEAST_QUIET - 1, 4), "a", "b", DECODE, 1)
    assert (len(few.values), few.left_out, few.disturbed) == (LEAST_QUIET + 3, 0, 4)


def test_what_was_left_out_is_in_the_result_the_rows_and_the_levels() -> None:
    plan, blocks = Plan(streams=(1,)), study(6, 3)
    pair = pairs(blocks, plan, ["a", "b"])[0]
    assert (pair.ratio.value, pair.ratio.n, pair.left_out, pair.disturbed) == (pytest.approx(2.0), 6, 3, 0)
    assert pair.winner == "a"
    level = points(blocks, plan, ["a", "b"])[1].decode_tokens_per_s
    assert level is not None
    assert (level.value, level.n) == (pytest.approx(10.0), 6)
    assert [(row.pairs, row.left_out) for row in pair_rows(blocks, ["a", "b"])] == [(6, 3)]
    state = load_states(blocks, plan, ["a", "b"])[0]
    assert state.rounds == 9, "what was measured was measured"
    assert state.half_width == 0, "but the width is of what counts, without what no round can narrow"
    assert pair.ratio.high == pytest.approx(2 * math.exp(PROCESS_FLOOR))
    assert state.round_s == 2.0
    assert load_states(blocks, plan, ["a", "b"], 36.0)[0].round_s == 4.0, "noise had every second block repeated"


def test_joules_of_a_block_beside_a_neighbour_stay_out_like_its_speed() -> None:
    """A package's counter counts what the neighbour draws: three times the energy a token in the flagged blocks."""
    blocks = [replace(b, joules=24.0 if b.flagged else 8.0) for b in study(LEAST_QUIET, LEAST_QUIET + 1)]
    found = points(blocks, Plan(streams=(1,)), ["a", "b"])[1].joules_per_token
    assert found is not None
    assert (found.value, found.n) == (pytest.approx(1.0), LEAST_QUIET)


def test_a_turn_is_its_quiet_rounds() -> None:
    blocks = [
        block(m, 2 * t + i, rate * (0.2 if (i, m) == (1, "b") else 1.0), noisy=(i, m) == (1, "b"), turn=t)
        for t in range(3)
        for i in range(2)
        for m, rate in (("a", 20.0), ("b", 10.0))
    ]
    found = paired(blocks, "a", "b", DECODE, 1)
    assert (found.values, found.left_out, found.disturbed) == (pytest.approx([2.0, 2.0, 2.0]), 3, 0)
    loud = [replace(b, flagged=("others",)) if b.turn == 2 else b for b in blocks]
    worse = paired(loud, "a", "b", DECODE, 1)
    assert (len(worse.values), worse.left_out, worse.disturbed) == (3, 2, 2), "three quiet turns are too few"


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_neighbour_at_random_leaves_the_ratio_and_names_no_winner_of_a_model_against_itself(share: float) -> None:
    """Blocks it touches run at 30 to 70 % of their speed; nine in ten of them are flagged."""
    wrong = far = uncovered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        blocks = []
        for number, model in itertools.product(range(14), "ab"):
            hit = rng.random() < share
            rate = 10 * math.exp(rng.normal(0, 0.02)) * (rng.uniform(0.3, 0.7) if hit else 1.0)
            blocks.append(block(model, number, rate, noisy=hit and rng.random() < 0.9))
        pair = next(p for p in pairs(blocks, Plan(streams=(1,)), ["a", "b"]) if p.metric == DECODE)
        assert pair.ratio.low is not None
        assert pair.ratio.high is not None
        wrong += pair.winner is not None
        far += abs(math.log(pair.ratio.value)) > 0.05
        uncovered += not pair.ratio.low <= 1 <= pair.ratio.high
    assert wrong <= 10, "5 %"
    assert uncovered <= 14, "5 %, and the chance of 200 draws"
    assert far <= 10, "within 5 % of the quiet ratio in 19 of 20"


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_the_scripted_neighbour_takes_the_share_that_was_asked(share: float) -> None:
    taken = whole = 0.0
    for rest, length, wanted in itertools.islice(spells(share, 2, seed=1), 4000):
        taken, whole = taken + wanted / 2 * length, whole + rest + length
    assert taken / whole == pytest.approx(share, rel=0.06)
    assert next(spells(share, 2, seed=1)) == next(spells(share, 2, seed=1)), "every hand follows the same spells"


def test_runs_beside_a_neighbour_are_judged_by_the_quiet_ones() -> None:
    def line(mode: str, share: float, value: float, half: float, winner: str | None) -> dict[str, object]:
        told = [value, value * (1 - half), value * (1 + half), 9, 2, 0]
        return {"mode": mode, "share": share, "winners": [winner], "wall_s": 40.0, "loads": {"1": told}}

    said = summary(
        [
            line("aa", 0.0, 1.0, 0.02, None),
            line("aa", 0.3, 1.1, 0.02, "a"),
            line("ratio", 0.0, 2.0, 0.02, "a"),
            line("ratio", 0.3, 2.05, 0.04, "a"),
            line("ratio", 0.3, 2.3, 0.04, "a"),
        ]
    )
    assert "A/A, neighbour 0%: 0 of 1" in said[0]
    assert "A/A, neighbour 30%: 1 of 1" in said[1]
    assert "1 of 2 within 5 %, the interval holds the quiet ratio in 1" in said[3]
