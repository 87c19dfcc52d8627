"""The router predicts a backend with the routing that was seen of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from breakeven.forecast.routing import MIN_TOKENS
from breakeven.gateway.experts.kept import path_of
from breakeven.gateway.experts.report import Source
from breakeven.gateway.experts.tally import SeenExperts
from breakeven.gateway.plan.experts import ExpertsPlan
from breakeven.gateway.plan.model import BackendPlan
from breakeven.gateway.route.build import table_of
from breakeven.gateway.route.speed import SpeedTable

MODEL, LAYERS, EXPERTS, PER_TOKEN = "qwen3-30b-a3b", 48, 128, 8
BATCH, CONTEXT = 16, 1000

Choices = NDArray[np.int64]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def backend(model: str = MODEL, *, experts: bool = True) -> BackendPlan:
    plan = ExpertsPlan(observe=0.01) if experts else None
    return BackendPlan(name="moe/1", url="http://localhost/v1", model=model, machine="h100-sxm", experts=plan)


def step_s(table: SpeedTable) -> float:
    """A decode step of a batch, which nobody's prompt interrupts."""
    table.output_tokens = 1e9
    return table.tpot_s(BATCH, CONTEXT)


def uneven(tokens: int = MIN_TOKENS, layers: int = LAYERS, experts: int = EXPERTS) -> Choices:
    """Choices (L, E) of which the first 16 experts take nine in ten."""
    share_E = np.where(np.arange(experts) < 16, 0.9 / 16, 0.1 / (experts - 16))
    return np.tile(np.rint(share_E * tokens * PER_TOKEN).astype(np.int64), (layers, 1))


def even(tokens: int = MIN_TOKENS) -> Choices:
    return np.full((LAYERS, EXPERTS), tokens * PER_TOKEN // EXPERTS)


def keep(
    choices_LE: Choices, tokens: int = MIN_TOKENS, *, model: str | None = MODEL, source: Source = "returned"
) -> Path:
    """As the process that watches keeps it, of one request."""
    seen = SeenExperts("moe/1", model, source)
    seen.add(range(len(choices_LE)), choices_LE, tokens=tokens, at_s=1e9)
    path = path_of("moe/1")
    seen.save(path)
    return path


def exact(choices_LE: Choices, per_token: int = PER_TOKEN) -> Choices:
    """With as many choices as its tokens make, so that experts a token can be told."""
    choices_LE[:, 0] += MIN_TOKENS * per_token - choices_LE.sum(axis=1)
    return choices_LE


def test_without_a_file_it_is_as_it_was() -> None:
    assert step_s(table_of(backend())) == step_s(table_of(backend(experts=False)))


@pytest.mark.parametrize("source", ["observed", "returned", "counted"])
def test_uneven_routing_makes_a_step_of_a_batch_faster(source: Source) -> None:
    before_s = step_s(table_of(backend()))
    tokens = MIN_TOKENS * PER_TOKEN if source == "counted" else MIN_TOKENS
    keep(exact(uneven()), tokens, source=source)
    assert step_s(table_of(backend())) < 0.8 * before_s
    assert step_s(table_of(backend(experts=False))) == before_s  # nobody asked


def test_even_routing_is_predicted_as_before_and_a_reload_sees_what_changed() -> None:
    before_s = step_s(table_of(backend()))
    keep(even())
    assert step_s(table_of(backend())) == pytest.approx(before_s, rel=1e-3)
    keep(exact(uneven()))
    assert step_s(table_of(backend())) < 0.8 * before_s
    path_of("moe/1").unlink()
    assert step_s(table_of(backend())) == before_s


def test_too_few_tokens_are_not_believed(capsys: pytest.CaptureFixture[str]) -> None:
    before_s = step_s(table_of(backend()))
    keep(uneven(MIN_TOKENS - 1), MIN_TOKENS - 1)
    assert step_s(table_of(backend())) == before_s
    keep(exact(uneven()), MIN_TOKENS * PER_TOKEN - 1, source="counted")
    assert step_s(table_of(backend())) == before_s
    assert capsys.readouterr().err == ""


def test_a_layer_and_experts_that_nothing_reached_are_none_of_the_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    before_s = step_s(table_of(backend()))
    choices_LE = exact(uneven(experts=100))  # the highest that was seen is 99
    choices_LE[3] = 0
    keep(choices_LE)
    assert step_s(table_of(backend())) < 0.85 * before_s
    assert capsys.readouterr().err == ""


def other_model() -> None:
    keep(exact(uneven()), model="another-model")


def other_layers() -> None:
    keep(exact(uneven(layers=LAYERS - 1)))


def more_experts() -> None:
    keep(exact(uneven(experts=EXPERTS + 1)))


def other_experts_a_token() -> None:
    keep(exact(uneven(MIN_TOKENS // 2), PER_TOKEN // 2))


def broken() -> None:
    keep(exact(uneven())).write_bytes(b'{"schema": "breakeven.experts-kept/1", ')


def other_version() -> None:
    path = keep(exact(uneven()))
    path.write_bytes(path.read_bytes().replace(b"breakeven.experts-kept/1", b"breakeven.experts-kept/2"))


def no_shares() -> None:
    path = keep(exact(uneven()))
    file = json.loads(path.read_bytes())
    file["layers"][5]["frequencies"][0] = 2.0
    path.write_bytes(msgspec.json.encode(file))


def a_directory() -> None:
    path_of("moe/1").mkdir(parents=True)


@pytest.mark.parametrize(
    "spoil",
    [other_model, other_layers, more_experts, other_experts_a_token, broken, other_version, no_shares, a_directory],
)
def test_a_file_that_does_not_fit_is_said_in_one_line_and_left(
    spoil: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before_s = step_s(table_of(backend()))
    spoil()
    assert step_s(table_of(backend())) == before_s
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "backend moe/1: what was seen of its experts is not predicted with" in said


def test_dense_models_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    keep(exact(uneven()), model="llama-3.1-8b")
    found = [step_s(table_of(backend("llama-3.1-8b", experts=experts))) for experts in (True, False)]
    assert found[0] == found[1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("n_experts", "per_token"), [(8, 2), (128, 8), (256, 8)])
def test_as_many_tokens_as_are_asked_for_tell_how_many_experts_are_touched(n_experts: int, per_token: int) -> None:
    rng = np.random.default_rng(0)
    share = per_token / n_experts
    batch_B = np.array([[1], [4], [16], [48], [64], [256]])
    truth_B = 1 - (1 - share) ** batch_B[:, 0]
    for alike, most in ((1, 0.002), (20, 0.025)):  # tokens worth one
        worth = MIN_TOKENS // alike
        told_B = np.mean(
            [(1 - (1 - rng.binomial(worth, share, n_experts) / worth) ** batch_B).mean(axis=1) for _ in range(400)],
            axis=0,
        )
        assert np.abs(told_B / truth_B - 1).max() < most
