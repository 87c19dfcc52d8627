"""The trainer itself: stopped and gone on it ends where it would have; the best checkpoint stays; masks hold still."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from breakeven.errors import BreakevenError, UserError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from breakeven.lab.training.loop import Trainer, next_token_loss  # noqa: E402
from breakeven.lab.training.work import Recipe, Trained  # noqa: E402

torch.set_num_threads(1)
ROWS = np.random.default_rng(0).integers(0, 12, (40, 16)).astype(np.int32)
ROWS[:, 1::2] = ROWS[:, ::2]  # each second token repeats the one before: something to learn


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(12, 24)
        self.mix = nn.GRU(24, 24, batch_first=True)
        self.head = nn.Linear(24, 12)

    def forward(self, input_ids: Any, use_cache: bool = False) -> Any:
        return self.head(self.mix(self.table(input_ids))[0])


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Any) -> Any:
        return self.drop(x), None


class StoppedError(Exception):
    pass


def train(folder: Path, stop_at: int | None = None, model: Toy | None = None, **changes: Any) -> tuple[Toy, Trained]:
    model = model or Toy()
    counted = torch.zeros(1)
    recipe = Recipe(**{"seed": 3, "rate": 0.02, "batch": 4, "steps": 60, **changes})
    steps = 0

    def loss(ids: Any, numbers: Any) -> Any:
        nonlocal steps
        steps += 1
        counted.add_(1.0)
        if stop_at is not None and steps > stop_at:
            raise StoppedError
        assert (ROWS[numbers] == ids.numpy()).all()
        return next_token_loss(model(ids), ids)

    def choose() -> float:
        with torch.inference_mode():
            ids = torch.from_numpy(ROWS.astype(np.int64))
            return float(next_token_loss(model(ids), ids))

    masks = [(model.table.weight, (torch.arange(12) != 5).float()[:, None])]
    trainer = Trainer(
        model, recipe, ROWS, loss, choose, folder, lambda what, share: None, masks=masks, steered=[counted]
    )
    told = trainer.run()
    assert counted.tolist() == [told.best_step], "what a loss moves itself is kept, gone on with and undone as weights"
    return model, told


def test_a_run_that_was_stopped_ends_where_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("breakeven.lab.training.loop._SAVE_EVERY_S", 0.0)
    whole, told = train(tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(tmp_path / "stopped", stop_at=31)
    again, resumed = train(tmp_path / "stopped")
    assert resumed.losses == told.losses
    assert resumed.checks == told.checks
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert told.checks[-1][1] < 0.8 * told.checks[0][1]
    assert (told.steps, told.tokens) == (60, 60 * 4 * 16)
    assert torch.equal(whole.table.weight[5], Toy().table.weight[5]), "a masked row stays bit for bit"
    assert not torch.equal(whole.table.weight[4], Toy().table.weight[4])


def test_a_run_that_makes_a_model_worse_leaves_it_as_it_was(tmp_path: Path) -> None:
    good, _ = train(tmp_path / "good")
    before = [p.detach().clone() for p in good.parameters()]
    _, told = train(tmp_path / "worse", model=good, rate=5.0, steps=20)
    assert told.best_step == 0
    for ours, theirs in zip(good.parameters(), before, strict=True):
        assert torch.equal(ours, theirs)


def test_a_time_becomes_steps_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) * 0.01, monotonic=lambda: 0.0)
    monkeypatch.setattr("breakeven.lab.training.loop.time", clock)
    _, told = train(tmp_path / "a", steps=None, seconds=1.0)
    assert told.steps == 91, "of 0.01 s each, nine readings of what chooses taken off"
    assert told.seconds == pytest.approx(0.91)
    with pytest.raises(UserError, match=r"is 1 steps of 0\.01 s here.* give --for 1s"):
        train(tmp_path / "b", steps=None, seconds=0.1001)


def test_a_loss_that_is_no_number_ends_it_and_leaves_nothing_to_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("breakeven.lab.training.loop._SAVE_EVERY_S", 0.0)
    model = Toy()
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(BreakevenError, match="no number at step 0; the model is damaged"):
        train(tmp_path / "a", model=model)
    with pytest.raises(BreakevenError, match=r"no number at step \d+; give a lower --rate"):
        train(tmp_path / "b", rate=1e25)
    assert not list(tmp_path.glob("*/*.pt"))


def test_a_best_that_was_written_after_the_last_state_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on with other threads, or on a GPU, need not come to the same checkpoint a second time."""
    monkeypatch.setattr("breakeven.lab.training.loop._SAVE_EVERY_S", 0.0)
    with pytest.raises(StoppedError):
        train(tmp_path, stop_at=31)
    kept = {path.name for path in tmp_path.iterdir()}
    assert "state.pt" in kept
    assert len(kept) == 2, "older checkpoints are gone"
    never = tmp_path / "best-33.pt"
    never.write_bytes(b"of a step that is never read here")
    _, told = train(tmp_path)
    assert told.best_step not in (0, 33)
    assert not never.exists()
    (tmp_path / "state.pt").write_bytes(b"no pickle")
    with pytest.raises(UserError, match=r"state\.pt: damaged; remove"):
        train(tmp_path)


def test_a_run_in_steps_repeats_a_run_in_time_though_it_drops_at_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) * 0.01, monotonic=lambda: 0.0)
    monkeypatch.setattr("breakeven.lab.training.loop.time", clock)

    def dropping() -> Toy:
        model = Toy()
        model.register_module("mix", Drops())
        torch.manual_seed(5)
        return model

    _, timed = train(tmp_path / "a", steps=None, seconds=0.4, model=dropping())
    _, again = train(tmp_path / "b", steps=timed.steps, model=dropping())
    assert again.losses == timed.losses
