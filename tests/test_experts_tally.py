"""What is seen of experts, added up: shares, drift and its chance, groups, alarms, and the file it is kept in."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.forecast.routing import MIN_TOKENS, read_routing
from breakeven.gateway.experts.gathered import DAY_S, DAYS, MOST_NAMES, OTHER
from breakeven.gateway.experts.kept import path_of, read_kept
from breakeven.gateway.experts.report import BackendExperts, Source
from breakeven.gateway.experts.tally import DEAD_FROM, SeenExperts

NOON = 20_000 * DAY_S + DAY_S / 2
LAYERS, EXPERTS, PER_TOKEN = 3, 8, 2

counts = st.lists(
    st.lists(st.integers(0, 50), min_size=LAYERS * EXPERTS, max_size=LAYERS * EXPERTS), min_size=1, max_size=12
)


def seen(**more: Any) -> SeenExperts:
    return SeenExperts("moe", "toy", "observed", **more)


def told(one: SeenExperts, now_s: float = NOON) -> BackendExperts:
    found = one.report(now_s)
    assert found is not None
    return found


def request(rng: np.random.Generator, p_LE: NDArray[np.float64], tokens: int = 60) -> NDArray[np.int64]:
    """Choices of one request, whose tokens choose alike: its own leaning is drawn around the traffic's."""
    leaning_LE = np.stack([rng.dirichlet(30 * p_E) for p_E in p_LE])
    return np.stack([rng.multinomial(tokens * PER_TOKEN, p_E / p_E.sum()) for p_E in leaning_LE])


def day_of(one: SeenExperts, rng: np.random.Generator, p_LE: NDArray[np.float64], day: int, n: int = 60) -> None:
    for _ in range(n):
        one.add(range(LAYERS), request(rng, p_LE), tokens=60, at_s=NOON + day * DAY_S)


def even() -> NDArray[np.float64]:
    return np.full((LAYERS, EXPERTS), 1 / EXPERTS)


@given(counts)
def test_every_number_is_where_it_must_be(requests: list[list[int]]) -> None:
    one = seen()
    for flat in requests:
        one.add(range(LAYERS), np.reshape(flat, (LAYERS, EXPERTS)), tokens=10, at_s=NOON)
    found = one.report(NOON)
    if not any(any(flat) for flat in requests):
        assert found is None
        return
    assert found is not None
    for layer in found.layers:
        assert sum(layer.shares) == pytest.approx(1) or not any(layer.shares)
        assert 0 <= layer.entropy <= 1 <= layer.imbalance <= EXPERTS + 1e-9
    assert found.imbalance == max(layer.imbalance for layer in found.layers)


@given(counts, st.randoms())
def test_the_order_in_which_they_come_changes_nothing(requests: list[list[int]], dice: Any) -> None:
    one, other = seen(), seen()
    for flat in requests:
        one.add(range(LAYERS), np.reshape(flat, (LAYERS, EXPERTS)), tokens=10, key="a", at_s=NOON)
    dice.shuffle(requests)
    for flat in requests:
        other.add(range(LAYERS), np.reshape(flat, (LAYERS, EXPERTS)), tokens=10, key="a", at_s=NOON)
    assert one.report(NOON) == other.report(NOON)


@settings(deadline=None)
@given(counts)
def test_what_is_kept_is_what_was_seen(tmp_path_factory: pytest.TempPathFactory, requests: list[list[int]]) -> None:
    one = seen(observe=0.01)
    for index, flat in enumerate(requests):
        one.add(
            range(LAYERS),
            np.reshape(flat, (LAYERS, EXPERTS)),
            tokens=10,
            key=f"k{index % 3}",
            language="de",
            at_s=NOON - index * DAY_S,
        )
    one.skip("too large")
    path = tmp_path_factory.mktemp("kept") / "experts.json"
    one.save(path)
    if one.report(NOON) is None or not path.exists():
        return
    again = SeenExperts("moe", "toy", "observed", observe=0.01).resume(path)
    assert again.report(NOON) == one.report(NOON)


def test_known_numbers() -> None:
    one = seen()
    one.add([4, 5], [[6, 2, 0, 0], [2, 2, 2, 2]], tokens=4, at_s=NOON)
    found = told(one)
    first, second = found.layers
    assert (first.layer, second.layer) == (4, 5)
    assert first.shares == [0.75, 0.25, 0, 0]
    assert first.frequencies == [1.0, 0.5, 0, 0]
    assert first.imbalance == 3
    assert first.entropy == pytest.approx((0.75 * np.log(4 / 3) + 0.25 * np.log(4)) / np.log(4))
    assert (second.imbalance, second.entropy) == (1, pytest.approx(1))
    assert (found.n_experts, found.n_experts_per_token, found.worst_layer) == (4, 2, 4)
    assert found.caveats


def test_an_expert_is_dead_only_where_it_should_have_been_reached() -> None:
    one, n_experts = seen(), 64
    choices_E = [[60, *[0] * (n_experts - 1)]]
    for requests in range(1, 23):
        one.add([0], choices_E, tokens=60, at_s=NOON)
        enough = 60 * requests >= DEAD_FROM * n_experts
        assert told(one).layers[0].dead == (list(range(1, n_experts)) if enough else [])
    assert 60 * 21 < DEAD_FROM * n_experts <= 60 * 22


def test_what_one_request_leaves_out_is_not_dead() -> None:
    one = seen()
    one.add([0], [[9000, 0, 0, 0]], tokens=9000, at_s=NOON)
    assert told(one).dead == 0
    assert any("dead and hot experts" in text for text in told(one).caveats)
    for _ in range(20):
        one.add([0], [[9000, 0, 0, 0]], tokens=9000, at_s=NOON)
    assert told(one).layers[0].dead == [1, 2, 3]


def test_an_expert_is_hot_only_beyond_chance() -> None:
    one, rng = seen(), np.random.default_rng(1)
    p_E = np.array([[0.5, *[0.5 / 7] * 7]] * LAYERS)
    one.add(range(LAYERS), request(rng, p_E), tokens=60, at_s=NOON)
    assert told(one).hot == 0  # one request has no variance
    day_of(one, rng, p_E, 0)
    assert [layer.hot for layer in told(one).layers] == [[0]] * LAYERS


@pytest.mark.parametrize("uneven", [False, True])
def test_unchanged_traffic_drifts_by_chance_and_raises_no_alarm(uneven: bool) -> None:
    alarms, ratios = 0, []
    for study in range(200):
        one, rng = seen(drift=0.001, imbalance=1.3), np.random.default_rng(study)
        p_LE = np.stack([rng.dirichlet(np.full(EXPERTS, 3.0)) for _ in range(LAYERS)]) if not uneven else even()
        for day in (-3, -2, -1, 0):
            # Most requests are short and some very long: those decide, and are few.
            lengths = np.exp(rng.normal(4, 1.3, 60)).clip(5, 4096).astype(int) if uneven else [60] * 60
            for tokens in lengths:
                one.add(range(LAYERS), request(rng, p_LE, tokens), tokens=tokens, at_s=NOON + day * DAY_S)
        found = told(one)
        alarms += found.watched["drift"] or (uneven and found.watched["imbalance"])
        if found.drift is not None and found.drift_by_chance is not None:
            ratios.append(found.drift / found.drift_by_chance)
    assert alarms <= 10
    assert len(ratios) == 200 if not uneven else len(ratios) > 20
    assert np.mean(ratios) == pytest.approx(1, abs=0.15)


def test_a_few_long_requests_among_short_ones_tell_little() -> None:
    one, rng = seen(), np.random.default_rng(1)
    for tokens in [10] * 100 + [4000] * 3:
        one.add(range(LAYERS), request(rng, even(), tokens), tokens=tokens, key="a", at_s=NOON)
    found = told(one)
    assert (found.requests, found.hot) == (103, 0)
    assert any("as much as 4 of equal length" in text for text in found.caveats)


def test_what_chance_makes_of_short_requests_is_more() -> None:
    ratios = []
    for study in range(60):
        one, rng = seen(), np.random.default_rng(study)
        for index in range(240):
            tokens = 15 if index % 3 == 0 else 300
            one.add(
                range(LAYERS), request(rng, even(), tokens), tokens=tokens, key="b" if index % 3 else "a", at_s=NOON
            )
        for group in told(one).keys:
            assert group.apart is not None
            assert group.apart_by_chance is not None
            ratios.append(group.apart / group.apart_by_chance)
    assert np.mean(ratios) == pytest.approx(1, abs=0.2)


def test_traffic_that_changed_is_seen() -> None:
    one, rng = seen(drift=0.1), np.random.default_rng(7)
    for day in (-3, -2, -1):
        day_of(one, rng, even(), day)
    moved = np.array([[0.45, *[0.55 / 7] * 7]] * LAYERS)
    day_of(one, rng, moved, 0)
    found = told(one)
    assert found.drift == pytest.approx(0.325, abs=0.05)
    assert found.watched == {"drift": True}
    assert "go elsewhere than in the week before" in found.alarms[0]


def test_a_day_with_little_takes_the_one_before_with_it() -> None:
    one, rng = seen(), np.random.default_rng(3)
    for day in (-4, -3, -1):
        day_of(one, rng, even(), day)
    day_of(one, rng, even(), 0, n=3)
    assert told(one).drift is not None


def test_without_a_week_before_there_is_no_drift() -> None:
    one, rng = seen(drift=0.1), np.random.default_rng(3)
    day_of(one, rng, even(), 0)
    found = told(one)
    assert found.drift is None
    assert found.watched == {"drift": False}


def test_days_go_and_the_clock_is_believed(tmp_path: Path) -> None:
    one = seen()
    for day in range(40):
        one.add([0], [[3, 1]], tokens=2, at_s=NOON + day * DAY_S)
    path = tmp_path / "experts.json"

    def days() -> set[int]:
        one.save(path)
        kept = read_kept(path)
        assert kept is not None
        return set(map(int, kept.days))

    assert len(days()) == DAYS
    one.add([0], [[3, 1]], tokens=2, at_s=NOON)  # it was 39 days fast
    assert days() == {20_000}
    assert told(one).until_s == NOON
    assert told(one).tokens == 82


def test_names_beyond_the_bound_are_one_and_nothing_is_lost() -> None:
    one = seen()
    for index in range(MOST_NAMES + 9):
        one.add([0], [[3, 1]], tokens=2, key=f"key {index}\n\N{SNOWMAN}", at_s=NOON)
    found = told(one)
    assert len(found.keys) == MOST_NAMES + 1
    assert sum(group.requests for group in found.keys) == MOST_NAMES + 9
    assert next(group.requests for group in found.keys if group.name == OTHER) == 9


def test_names_that_a_client_makes_up_hide_none_for_ever() -> None:
    one = seen()
    for index in range(MOST_NAMES):
        one.add([0], [[30, 10]], tokens=20, language=f"x{index}", at_s=NOON)
    for _ in range(MOST_NAMES * 2 + 2):
        one.add([0], [[30, 10]], tokens=20, language="de", at_s=NOON)
    languages = {each.name: each for each in told(one).languages}
    assert len(languages) == MOST_NAMES + 1
    german = languages["de"].requests
    assert german >= MOST_NAMES
    for index in range(500):
        one.add([0], [[30, 10]], tokens=20, language=f"y{index}", at_s=NOON)
    found = told(one).languages
    assert next(each.requests for each in found if each.name == "de") == german, "who is much asked for stays"
    assert sum(each.requests for each in found) == MOST_NAMES * 3 + 2 + 500, "and nothing is lost"
    assert one._seen is not None
    assert sum(group.choices_LE.sum() for group in one._seen.languages.values()) == one._seen.whole.choices_LE.sum()


def test_who_is_apart_is_told_with_what_chance_makes_of_it() -> None:
    one, rng = seen(), np.random.default_rng(5)
    moved = np.array([[0.45, *[0.55 / 7] * 7]] * LAYERS)
    for index in range(120):
        p_LE = moved if index % 3 == 0 else even()
        one.add(
            range(LAYERS), request(rng, p_LE), tokens=60, language="de" if index % 3 == 0 else "en",
            key=f"k{index % 2}", at_s=NOON,
        )  # fmt: skip
    found = told(one)
    german = next(group for group in found.languages if group.name == "de")
    assert german.apart == pytest.approx(0.325, abs=0.06)
    assert german.apart_by_chance is not None
    assert german.apart > 2 * german.apart_by_chance
    for key in found.keys:
        assert key.apart is not None
        assert key.apart_by_chance is not None
        assert key.apart < 2 * key.apart_by_chance


def test_an_alarm_of_imbalance_asks_for_more_than_chance() -> None:
    rng = np.random.default_rng(2)
    moved = np.array([[0.5, *[0.5 / 7] * 7]] * LAYERS)
    one = seen(imbalance=3.0)
    one.add(range(LAYERS), request(rng, moved), tokens=60, at_s=NOON)
    assert told(one).watched == {"imbalance": False}
    day_of(one, rng, moved, 0)
    found = told(one)
    assert found.watched == {"imbalance": True}
    assert "expert 0 takes" in found.alarms[0]


def test_an_alarm_of_imbalance_ends_with_what_it_tells_of() -> None:
    rng = np.random.default_rng(2)
    moved = np.array([[0.5, *[0.5 / 7] * 7]] * LAYERS)
    one = seen(imbalance=3.0)
    day_of(one, rng, moved, 0, n=300)
    assert told(one).watched == {"imbalance": True}
    day_of(one, rng, even(), 1)
    found = told(one, NOON + DAY_S)
    assert found.imbalance > 3.0  # of all days
    assert found.watched == {"imbalance": False}


def alarms_of(one: SeenExperts, rng: np.random.Generator, p_LE: NDArray[np.float64], what: str) -> list[bool]:
    """Whether there is an alarm of `what`, as it changes over five days of the same traffic."""
    found = [False]
    for day in range(5):
        for k in range(80):
            at_s = (20_000 + day + (k + 0.5) / 80) * DAY_S
            one.add(range(LAYERS), request(rng, p_LE), tokens=60, at_s=at_s)
            if (passed := told(one, at_s).watched[what]) != found[-1]:
                found.append(passed)
    return found


def test_an_alarm_of_imbalance_does_not_end_and_begin_with_every_day() -> None:
    busy = np.array([[0.43, *[0.57 / 7] * 7]] * LAYERS)
    for study in range(4):
        assert alarms_of(seen(imbalance=3.0), np.random.default_rng(study), busy, "imbalance") == [False, True]


def test_an_alarm_of_drift_does_not_end_and_begin_with_every_day() -> None:
    moved = np.array([[0.34, *[0.66 / 7] * 7]] * LAYERS)
    for study in range(4):
        one, rng = seen(drift=0.05), np.random.default_rng(study)
        for day in range(-9, 0):
            day_of(one, rng, even(), day)
        assert alarms_of(one, rng, moved, "drift") == [False, True]


def test_an_alarm_of_drift_ends_with_what_it_tells_of() -> None:
    moved = np.array([[0.45, *[0.55 / 7] * 7]] * LAYERS)
    one, rng = seen(drift=0.1), np.random.default_rng(1)
    for day in (-3, -2, -1):
        day_of(one, rng, even(), day)
    day_of(one, rng, moved, 0)
    assert told(one).watched == {"drift": True}
    day_of(one, rng, even(), 1)
    assert told(one, NOON + DAY_S).watched == {"drift": False}


def test_where_little_comes_an_alarm_of_imbalance_ends_too() -> None:
    moved = np.array([[0.5, *[0.5 / 7] * 7]] * LAYERS)
    one, rng = seen(imbalance=3.0), np.random.default_rng(1)
    day_of(one, rng, moved, -20, n=300)
    assert told(one, NOON - 20 * DAY_S).watched == {"imbalance": True}
    for day in range(-14, 1):
        day_of(one, rng, even(), day, n=4)
    found = told(one)
    assert found.imbalance > 3.0  # of all days
    assert found.watched == {"imbalance": False}


def test_another_model_begins_anew_and_says_so() -> None:
    one = seen()
    one.add([0], [[3, 1]], tokens=2, at_s=NOON)
    one.add([0, 1], [[3, 1], [2, 2]], tokens=2, at_s=NOON)
    found = told(one)
    assert (found.requests, len(found.layers)) == (1, 2)
    assert any("anew" in text for text in found.caveats)


def test_engines_that_do_not_say_how_many_experts_there_are() -> None:
    one = SeenExperts("moe", None, "returned")
    one.add([0], [[3, 1]], tokens=2, key="a", at_s=NOON)
    one.add([0], [[0, 0, 0, 4]], tokens=2, key="a", at_s=NOON)
    one.add([0], [[4, 0]], tokens=2, key="a", at_s=NOON)
    found = told(one)
    assert found.layers[0].shares == [7 / 12, 1 / 12, 0, 4 / 12]
    assert found.requests == 3


def test_counters_know_no_requests_and_no_tokens_apart_from_choices() -> None:
    one = SeenExperts("moe", None, "counted")
    one.add([0], [[3, 1]], tokens=4, at_s=NOON)
    found = told(one)
    assert (found.requests, found.n_experts_per_token, found.layers[0].frequencies) == (None, None, [])


def test_looks_at_a_counter_are_not_as_many_requests() -> None:
    ratios, alarms = [], 0
    for study in range(40):
        one, rng = SeenExperts("moe", None, "counted", drift=0.001), np.random.default_rng(study)
        for day in (-1, 0):
            for second in range(0, 2400, 5):
                if second % 30 == 0:  # so long an answer takes, and its tokens choose alike
                    leaning_LE = np.stack([rng.dirichlet(30 * p_E) for p_E in even()])
                counts_LE = np.stack([rng.multinomial(60, p_E) for p_E in leaning_LE])
                one.add(range(LAYERS), counts_LE, tokens=60, at_s=NOON + day * DAY_S + second)
        found = told(one)
        assert found.drift is not None
        assert found.drift_by_chance is not None
        ratios.append(found.drift / found.drift_by_chance)
        alarms += bool(found.alarms)
    assert np.mean(ratios) == pytest.approx(1, abs=0.15)
    assert alarms <= 2


@given(st.lists(st.lists(st.integers(0, 30), min_size=6, max_size=6), min_size=1, max_size=5))
def test_looks_of_one_minute_are_as_one(looks: list[list[int]]) -> None:
    apart, whole = (SeenExperts("moe", None, "counted") for _ in range(2))
    for index, flat in enumerate(looks):
        apart.add([0, 1], np.reshape(flat, (2, 3)), tokens=5, at_s=NOON + index)
    whole.add([0, 1], np.reshape(np.sum(looks, axis=0), (2, 3)), tokens=0, at_s=NOON)
    for one in (apart, whole):
        one.add([0, 1], [[3, 2, 1], [1, 2, 3]], tokens=5, at_s=NOON + 120)
    found, expected = told(apart, NOON + 120), told(whole, NOON + 120)
    assert [layer.shares for layer in found.layers] == [layer.shares for layer in expected.layers]
    assert apart._seen is not None
    assert whole._seen is not None
    for mine, theirs in zip(apart._seen.whole.arrays(), whole._seen.whole.arrays(), strict=True):
        assert mine.tolist() == theirs.tolist()


@pytest.mark.parametrize("wrong", [[[1, -1]], [[0, 0]], [1, 2], [[1, np.nan]], [[1, 2], [3, 4]], [[]]])
def test_what_is_no_count_is_left_out(wrong: Any) -> None:
    one = seen()
    one.add([0], wrong, tokens=2, at_s=NOON)
    assert one.report(NOON) is None


def test_skipped_requests_alone_are_told() -> None:
    one = seen()
    one.skip("too large")
    found = told(one)
    assert (found.skipped, found.requests, found.layers) == ({"too large": 1}, 0, [])


def test_predict_reads_what_is_kept(tmp_path: Path) -> None:
    one = seen()
    path = tmp_path / "experts.json"
    choices_LE = np.array([[6, 2, 0, 0], [2, 2, 2, 2]]) * (MIN_TOKENS // 4)
    one.add([4, 5], choices_LE - [[3, 1, 0, 0], [1, 1, 1, 1]], tokens=MIN_TOKENS - 2, at_s=NOON)
    one.save(path)
    with pytest.raises(UserError, match="9,998 tokens that a gateway saw"):
        read_routing(path)
    one.add([4, 5], [[3, 1, 0, 0], [1, 1, 1, 1]], tokens=2, at_s=NOON)
    one.save(path)
    assert read_routing(path) == [[1.0, 0.5, 0, 0], [0.5] * 4]


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"schema": "x"}', "cut", "sums", "shape", "version"])
def test_a_broken_file_begins_anew(tmp_path: Path, broken: str) -> None:
    one, path = seen(), tmp_path / "experts.json"
    one.add([0], [[3, 1]], tokens=2, at_s=NOON)
    one.save(path)
    whole = path.read_text()
    if broken == "sums":
        broken = json.dumps({**json.loads(whole), "sums": "AAAA"})
    elif broken == "shape":
        kept = json.loads(whole)
        broken = json.dumps({**kept, "layers": [*kept["layers"], {"layer": 9, "frequencies": []}]})
    elif broken == "version":
        broken = json.dumps({**json.loads(whole), "schema": "breakeven.experts-kept/2"})
    path.write_text(whole[: len(whole) // 2] if broken == "cut" else broken)
    again = SeenExperts("moe", "toy", "observed").resume(path)
    assert again.report(NOON) is None
    again.add([0], [[3, 1]], tokens=2, at_s=NOON)
    assert any("could not be read" in text for text in told(again).caveats)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_file_in_which_one_byte_changed_is_read_or_left(
    tmp_path_factory: pytest.TempPathFactory, at: int, change: int
) -> None:
    one, path = seen(), tmp_path_factory.mktemp("kept") / "experts.json"
    one.add([0], [[3, 1]], tokens=2, at_s=NOON)
    one.save(path)
    kept = json.loads(path.read_bytes())
    packed = bytearray(base64.b64decode(kept["sums"]))
    packed[at % len(packed)] ^= change
    path.write_text(json.dumps({**kept, "sums": base64.b64encode(packed).decode()}))
    again = SeenExperts("moe", "toy", "observed").resume(path)
    again.add([0], [[3, 1]], tokens=2, at_s=NOON)
    assert told(again).layers[0].shares


def test_another_model_s_file_is_left(tmp_path: Path) -> None:
    one, path = seen(), tmp_path / "experts.json"
    one.add([0], [[3, 1]], tokens=2, at_s=NOON)
    one.save(path)
    others: tuple[tuple[str, str, Source], ...] = (
        ("moe", "other", "observed"),
        ("dense", "toy", "observed"),
        ("moe", "toy", "returned"),
    )
    for name, model, source in others:
        again = SeenExperts(name, model, source).resume(path)
        assert again.report(NOON) is None
        again.add([0], [[3, 1]], tokens=2, at_s=NOON)
        assert any("is of toy at moe, observed, so counting began anew" in text for text in told(again).caveats)
    assert SeenExperts("moe", "toy", "observed").resume(tmp_path / "none.json").report(NOON) is None


@given(st.text(min_size=1, max_size=400))
def test_any_name_has_a_file_of_its_own_place(name: str) -> None:
    found = path_of(name)
    assert found.name == Path(found.name).name
    assert len(found.name) < 255
    assert found.parent == path_of("moe").parent
