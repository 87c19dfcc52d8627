"""What a backend's own page tells of its experts."""

from __future__ import annotations

import pytest

from breakeven.gateway.serve.poll import expert_load


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
