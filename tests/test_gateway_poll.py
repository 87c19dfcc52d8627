"""What a backend's own page tells of its experts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from breakeven.gateway.plan.experts import ExpertsPlan
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan
from breakeven.gateway.serve.poll import MOST_ENGINES, UNNAMED, ExpertCounter, Poller, expert_load
from breakeven.gateway.shared.block import Shape, SharedBlock
from breakeven.gateway.shared.layout import Known
from breakeven.wire.client import HttpClient
from breakeven.wire.metrics import (
    MOST_EXPERT_LINES,
    MOST_LINE,
    MOST_LINES,
    ExpertTokens,
    engine_numbers,
    expert_tokens,
    parse_metrics,
)


def load_of(page: str) -> list[float]:
    told = expert_tokens(page)
    return [] if told is None else expert_load(told)


@pytest.mark.parametrize(
    ("page", "load"),
    [
        ("", []),
        ("vllm:num_requests_running 3\n", []),
        (
            'breakeven:expert_tokens_total{expert="0"} 5\nbreakeven:expert_tokens_total{expert="2"} 7.0\n',
            [5.0, 0.0, 7.0],
        ),
        (
            'breakeven:expert_tokens_total{layer="0",expert="1"} 5\n'
            'breakeven:expert_tokens_total{layer="1",expert="1",model="m"} 4\n',
            [0.0, 9.0],
        ),
        ('breakeven:expert_tokens_total{expert="0"} many\nbreakeven:expert_tokens_total{expert="99999"} 1\n', []),
    ],
)
def test_tokens_by_expert_are_added_up_over_layers(page: str, load: list[float]) -> None:
    assert load_of(page) == load


NAME = "breakeven:expert_tokens_total"


@pytest.mark.parametrize(
    "line",
    [
        NAME + "{a,",
        NAME + '{expert="1",' * 300,
        NAME + "{" + 'a="b",' * 600,
        NAME + '{a="' + "x" * (MOST_LINE - 60),
        "vllm:num_requests_running{" + '"' * 4001,
        "vllm:num_requests_running" + "{" * 4000,
        "a" * (1 << 20),
        "",
    ],
)
def test_no_page_holds_up_the_process_that_watches(line: str) -> None:
    page = (line + "\n") * ((1 << 20) // (len(line) + 1)) if len(line) < 1 << 20 else line
    began_s = time.process_time()
    engine_numbers(page)
    load_of(page)
    assert time.process_time() - began_s < 1.0


def test_what_is_beyond_all_bounds_is_left_out_and_the_rest_is_read() -> None:
    page = f'x{"y" * MOST_LINE} 1\n# HELP x 1\nvllm:num_requests_running{{a="b"}} 3\n{NAME}{{expert="0"}} 2'
    assert parse_metrics(page)["vllm:num_requests_running"] == [3.0]
    assert load_of(page) == [2.0]
    assert load_of(f'{NAME}{{expert="0"}} inf\n{NAME}{{expert="1"}} nan') == []


STEP = "vllm:eplb_tokens_routed_to_expert"


def page_of(tokens_LE: Sequence[Sequence[float]], name: str = STEP, engine: int = 0) -> str:
    """As each names its labels."""
    layer, expert = ("layer_idx", "logical_expert_id") if name == STEP else ("layer", "expert")
    return "".join(
        f'{name}{{engine="{engine}",{layer}="{row}",model_name="a}},b",{expert}="{at}"}} {value}\n'
        for row, tokens_E in enumerate(tokens_LE)
        for at, value in enumerate(tokens_E)
    )


def told(page: str) -> ExpertTokens:
    found = expert_tokens(page)
    assert found is not None
    return found


@pytest.mark.parametrize("name", [NAME, STEP])
def test_tokens_are_told_by_engine_layer_and_expert(name: str) -> None:
    found = told(page_of([[1, 2], [3, 0]], name) + page_of([[5, 5], [5, 5]], name, engine=1))
    assert found.of_step == (name == STEP)
    one, two = found.by_engine.values()
    assert one == {(0, 0): 1, (0, 1): 2, (1, 0): 3, (1, 1): 0}
    assert set(two.values()) == {5}


@pytest.mark.parametrize(
    "labels",
    [
        'layer="0"',
        'layer="512",expert="0"',
        'layer="x",expert="0"',
        'layer="-1",expert="0"',
        'layer="0",expert="4096"',
        'layer="0",expert=""',
        'layer="0",expert="\u0663"',
        'xexpert="1"',
        "",
    ],
)
def test_labels_that_are_no_layer_or_expert_are_skipped(labels: str) -> None:
    assert expert_tokens(f"{NAME}{{{labels}}} 3\n") is None
    assert expert_tokens(f'{NAME}{{{labels}}} 3\n{NAME}{{layer="1",expert="1"}} 3\n') is not None


def test_values_that_are_no_count_are_skipped() -> None:
    page = "".join(
        f'{NAME}{{expert="{at}"}} {value}\n' for at, value in enumerate(["nan", "inf", "-1", "1e300", "x", 2])
    )
    assert told(page).by_engine == {"": {(0, 5): 2.0}}


def test_a_moment_may_stand_behind_a_value() -> None:
    assert told(f'{NAME}{{expert="1"}}  3\t1700000000000').by_engine == {"": {(0, 1): 3.0}}


def test_counters_count_by_their_differences_and_an_engine_that_starts_anew_from_zero() -> None:
    counter = ExpertCounter()

    def since(*pages: str) -> tuple[list[list[int]], int] | None:
        found = counter.since(told("".join(pages)))
        return None if found is None else (found[1].tolist(), found[2])

    assert since(page_of([[5, 5], [9, 1]], NAME)) is None  # what was before may have been counted before
    assert since(page_of([[5, 5], [9, 1]], NAME)) is None
    assert since(page_of([[6, 7], [9, 4]], NAME)) == ([[1, 2], [0, 3]], 3)
    assert since(page_of([[8, 2], [9, 4]], NAME)) == ([[8, 2], [9, 4]], 13)
    # A second engine's counts stand beside it, and only the one that started anew is counted from zero.
    assert since(page_of([[8, 2], [9, 4]], NAME), page_of([[1, 0], [0, 1]], NAME, 1)) == ([[1, 0], [0, 1]], 1)
    assert since(page_of([[8, 3], [9, 4]], NAME), page_of([[0, 2], [2, 0]], NAME, 1)) == ([[0, 3], [2, 0]], 3)


def test_an_engine_that_a_page_leaves_out_is_not_counted_twice() -> None:
    counter = ExpertCounter()

    def since(*pages: str) -> list[list[int]] | None:
        found = counter.since(told("".join(pages)))
        return None if found is None else found[1].tolist()

    one, two = page_of([[900, 100]], NAME), page_of([[70, 30]], NAME, 1)
    assert since(one, two) is None
    for _ in range(3):  # a balancer shows now the one, now the other
        assert since(one) is None
        assert since(two) is None
    assert since(page_of([[901, 100]], NAME)) == [[1, 0]]
    assert since(page_of([[70, 32]], NAME, 1)) == [[0, 2]]
    # One that started anew meanwhile is counted from zero.
    assert since(page_of([[2, 1]], NAME)) == [[2, 1]]


def test_a_cell_that_a_page_leaves_out_is_not_counted_twice() -> None:
    counter = ExpertCounter()
    both, one = page_of([[50, 40]], NAME), page_of([[50]], NAME)
    assert told(both).by_engine.keys() == told(one).by_engine.keys()
    for page in (both, one, both):
        assert counter.since(told(page)) is None


def test_engines_that_never_come_back_are_forgotten() -> None:
    counter = ExpertCounter()
    counter.since(told(page_of([[1, 1]], NAME)))
    for engine in range(1, MOST_ENGINES + 1):
        counter.since(told(page_of([[1, 1]], NAME, engine)))
    found = counter.since(told(page_of([[1, 1]], NAME)))
    assert found is not None
    assert found[1].tolist() == [[1, 1]]


def test_a_step_is_a_sample_and_one_that_still_stands_is_none() -> None:
    counter = ExpertCounter()
    assert counter.since(told(page_of([[4, 4]]))) is None
    assert counter.since(told(page_of([[4, 4]]))) is None
    found = counter.since(told(page_of([[1, 7]]) + page_of([[2, 2]], engine=1)))
    assert found is not None
    assert (found[0], found[1].tolist(), found[2]) == ([0], [[3, 9]], 12)
    found = counter.since(told(page_of([[1, 7]]) + page_of([[3, 1]], engine=1)))
    assert found is not None
    assert found[1].tolist() == [[3, 1]]


def test_the_shape_only_grows() -> None:
    counter = ExpertCounter()
    counter.since(told(f'{NAME}{{layer="2",expert="3"}} 1'))
    found = counter.since(told(f'{NAME}{{layer="0",expert="1"}} 5'))
    assert found is not None
    assert found[0] == [0, 2]
    assert found[1].tolist() == [[0, 5, 0, 0], [0, 0, 0, 0]]


def test_a_step_is_no_load_since_the_start() -> None:
    assert load_of(page_of([[1, 2]])) == []
    assert load_of(page_of([[1, 2], [3, 4]], NAME)) == [4.0, 6.0]
    assert not told(page_of([[9, 9]]) + page_of([[1, 2]], NAME)).of_step


def test_many_experts_do_not_hide_what_the_engine_says() -> None:
    page = page_of([[1.0] * 256] * 61) + page_of([[1.0] * 256] * 61, engine=1) + "vllm:num_requests_running 3\n"
    assert page.count("\n") > MOST_LINES
    numbers = engine_numbers(page)
    assert numbers is not None
    assert numbers.running == 3.0
    assert [len(cells) for cells in told(page).by_engine.values()] == [61 * 256] * 2


def test_a_page_that_is_longer_than_is_read_counts_nothing() -> None:
    with pytest.raises(ValueError, match="lines"):
        expert_tokens((NAME + '{expert="1"} 1\n') * (MOST_LINES + MOST_EXPERT_LINES + 1))


class Pages:
    """A client that is given one page after another."""

    def __init__(self, *pages: str) -> None:
        self.pages = list(pages)

    async def get(self, path: str, **_: object) -> tuple[int, bytes]:
        assert path == "/metrics"
        return 200, self.pages.pop(0).encode()


Heard = list[tuple[str, list[int], list[list[int]], int]]


@pytest.fixture
def poller() -> tuple[Poller, Heard]:
    """Of a backend whose experts are seen, `moe`, and one whose are not."""
    plan = GatewayPlan(
        path=None,
        backends=(
            BackendPlan(name="moe", url="http://localhost/v1", experts=ExpertsPlan()),
            BackendPlan(name="other", url="http://localhost/v1"),
        ),
    )
    heard: Heard = []

    def hear(name: str, layers: Sequence[int], choices_LE: NDArray[np.int64], tokens: int) -> None:
        heard.append((name, list(layers), choices_LE.tolist(), tokens))

    block = SharedBlock(Shape(workers=1, backends=2, keys=1, models=1, experiments=1))
    return Poller(plan, {"moe": 0, "other": 1}, block, on_experts=hear), heard


async def look(poller: Poller, name: str, *pages: str) -> None:
    client = Pages(*pages)
    while client.pages:
        await poller._try(cast(HttpClient, client), poller.slots[name], name)


def test_who_wants_to_hear_of_experts_does(poller: tuple[Poller, Heard]) -> None:
    made, heard = poller
    pages = [page_of([[5, 5]], NAME), page_of([[6, 8]], NAME)]
    asyncio.run(look(made, "moe", *pages))
    asyncio.run(look(made, "other", *pages))
    assert heard == [("moe", [0], [[1, 3]], 4)]
    assert made.expert_load == {"moe": [6.0, 8.0], "other": [6.0, 8.0]}


def test_an_engine_that_does_not_tell_any_more_has_no_load(poller: tuple[Poller, Heard]) -> None:
    made, _ = poller
    asyncio.run(look(made, "other", page_of([[5, 5]], NAME)))
    assert made.expert_load == {"other": [5.0, 5.0]}
    asyncio.run(look(made, "other", "vllm:num_requests_running 2\n"))
    assert made.expert_load == {}


def test_a_page_too_long_for_experts_is_said_until_it_is_not(poller: tuple[Poller, Heard]) -> None:
    made, heard = poller
    long = "vllm:num_requests_running 2\n" + (NAME + '{expert="1"} 1\n') * (MOST_LINES + MOST_EXPERT_LINES + 1)
    asyncio.run(look(made, "moe", long))
    assert "experts are not counted" in made.troubles["moe"]
    assert made.block.known.get(0, 0, Known.RUNNING) == 2.0
    asyncio.run(look(made, "moe", "vllm:num_requests_running 2\n"))
    assert made.troubles == {}
    assert heard == []


def test_a_counter_that_never_comes_is_said_with_what_to_do(poller: tuple[Poller, Heard]) -> None:
    made, _ = poller
    silent = "vllm:num_requests_running 2\n"
    asyncio.run(look(made, "moe", *[silent] * (UNNAMED - 1)))
    asyncio.run(look(made, "other", *[silent] * (UNNAMED + 1)))
    assert made.troubles == {}
    asyncio.run(look(made, "moe", silent, silent))
    assert list(made.troubles) == ["moe"]
    assert "start a vLLM or SGLang with --enable-return-routed-experts" in made.troubles["moe"]
    asyncio.run(look(made, "moe", f"# TYPE {NAME} counter\n{silent}", silent))
    assert made.troubles == {}, "it is named before there is anything to count"
