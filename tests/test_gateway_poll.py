"""What a backend's own page tells of its experts."""

from __future__ import annotations

import time

import pytest

from breakeven.gateway.serve.poll import expert_load
from breakeven.wire.metrics import MOST_LINE, engine_numbers, parse_metrics


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
    assert expert_load(page) == load


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
    expert_load(page)
    assert time.process_time() - began_s < 1.0


def test_what_is_beyond_all_bounds_is_left_out_and_the_rest_is_read() -> None:
    page = f'x{"y" * MOST_LINE} 1\n# HELP x 1\nvllm:num_requests_running{{a="b"}} 3\n{NAME}{{expert="0"}} 2'
    assert parse_metrics(page)["vllm:num_requests_running"] == [3.0]
    assert expert_load(page) == [2.0]
    assert expert_load(f'{NAME}{{expert="0"}} inf\n{NAME}{{expert="1"}} nan') == []
