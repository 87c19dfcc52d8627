"""The experiment without attention: operators that look back only, learn what attention gave, and are compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from breakeven.errors import UserError
from breakeven.lab.training import hyena

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from breakeven.lab.training.hyena_job import LongConvolution  # noqa: E402
from tests.test_ternary import saved, toy  # noqa: E402

torch.set_num_threads(1)


def test_a_place_sees_itself_and_those_before_it_as_far_as_a_text_goes() -> None:
    torch.manual_seed(0)
    operator = LongConvolution(32, tokens=16)
    x = torch.randn(2, 48, 32)
    other = x.clone()
    other[:, 20:] = torch.randn(2, 28, 32)
    with torch.no_grad():
        ours, theirs = operator(x), operator(other)
        assert torch.allclose(ours[:, :20], theirs[:, :20], atol=1e-5), "nothing comes from behind"
        assert not torch.allclose(ours[:, 20:], theirs[:, 20:], atol=1e-3)
        first = x.clone()
        first[:, 0] += 5
        assert float((operator(first)[:, 15] - ours[:, 15]).abs().max()) > 1e-4, (
            "a row's first place is seen at its last"
        )
        assert torch.allclose(operator(x[:, :10]), ours[:, :10], atol=1e-5), "a longer text changes nothing before it"


def test_names_of_the_shape() -> None:
    assert hyena.asked_for("hyena 4x256") == "dense 4x256"
    assert hyena.asked_for("dense 4x256") is None
    with pytest.raises(UserError, match='give layers and width, such as "hyena 4x256"'):
        hyena.asked_for("hyena big")


def test_attention_gives_way_and_what_that_cost_is_told(tmp_path: Path) -> None:
    directory = saved(toy("qwen3", num_hidden_layers=1), tmp_path / "hf")
    rows = np.random.default_rng(0).integers(0, 40, (40, 32)).astype(np.int32)
    rows[:, 1::2] = rows[:, ::2]

    def run(folder: Path) -> hyena.HyenaTold:
        return hyena.without_attention(
            directory,
            rows[:24],
            rows[24:32],
            rows[24:],
            folder,
            seed=1,
            rate=2e-3,
            batch=4,
            steps=45,
            lengths=(32, 64),
            speed_lengths=(64,),
            threads=1,
        )

    told = run(tmp_path / "work")
    assert (told.layers, told.steps, told.row_tokens) == (1, 45, 32)
    assert told.layer_errors[0] < 0.99, "it learned something of its attention"
    assert np.mean([loss for _, loss in told.losses[-5:]]) < np.mean([loss for _, loss in told.losses[:3]])
    tasks = [("text", 32), ("text", 64), ("copy", 32), ("copy", 64), ("recall", 32), ("recall", 64)]
    assert [(each.task, each.length) for each in told.parity] == tasks
    for each in told.parity:
        assert each.difference.value == pytest.approx(each.hyena - each.attention)
    assert [speed.length for speed in told.speeds] == [64]
    lines = "\n".join(hyena.table(told))
    assert "not exported" in lines
    assert "64*" in lines, "lengths beyond the rows are marked"
    assert "32*" not in lines
    assert json.loads((tmp_path / "work" / hyena.TOLD).read_text())["layers"] == 1
    # The same folder again: nothing is trained twice, the same is told.
    again = run(tmp_path / "work")
    assert (again.losses, again.layer_errors, again.parity) == (told.losses, told.layer_errors, told.parity)
