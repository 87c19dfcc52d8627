"""A MoE with experts in host memory against a dense model, through a real llama-server that has a second device."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from vulkan_fixtures import lent_device, llama_server

import breakeven
from breakeven.engines.devices import EngineDevice
from breakeven.errors import EngineError
from breakeven.measure.events import StudyStopped, read_events
from breakeven.measure.paired.blocks import blocks_of
from breakeven.measure.progress import ProgressState
from breakeven.results.comparison import Comparison
from breakeven.results.store import read
from tests.cli_fixtures import is_alive
from tests.test_compare import write_config

__all__ = ["lent_device", "llama_server"]

BRIEF = {"streams": (1, 2), "prompt_tokens": 16, "output_tokens": 8, "budget_s": 15.0, "precision": 0.9}


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return [write_config(tmp_path, "olmoe"), write_config(tmp_path, "llama")]


def small_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is said to hold less than both; the lender serves one engine at a time anyway."""
    device = EngineDevice(engine="llama-server", place="RPC0", description="lent", memory_bytes=1, free_bytes=1)
    monkeypatch.setattr("breakeven.runs.served.listed", lambda: [device])


def test_verdict_page_and_result_name_placement_and_device_memory(
    pair: Sequence[str], lent_device: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_device(monkeypatch)
    out = tmp_path / "out"
    moe, dense = pair
    result = breakeven.compare(
        [f"{moe}@cpu-moe=2", dense],
        engine="llama-server",
        gpu_layers="all",
        engine_flags=lent_device,
        out=out,
        **BRIEF,  # type: ignore[arg-type]
    )
    assert read(out / "result.json", Comparison) == result
    assert result.loaded == "in turns"
    first, second = result.models
    assert first.settings["engine"] == second.settings["engine"] == "llama-server"
    assert first.placed is not None
    assert second.placed is not None
    assert (first.placed.gpu_layers, first.placed.cpu_moe) == (5, 2)
    assert second.placed.gpu_layers == 5
    assert not second.placed.cpu_moe
    for model in (first, second):
        assert model.placed is not None
        held = {at.place: at.weights_bytes for at in model.placed.memory}
        assert held["RPC0"]
        assert "on RPC0" in next(line for line in result.verdict.memory if line.startswith(f"{model.name}:"))
    assert "experts of 2 in host memory" in result.verdict.reasons[0]
    assert any("not looked into" in caveat for caveat in result.caveats)
    page = (out / "report.html").read_text()
    assert "experts of 2 in host memory" in page
    assert "Where each model lay" in page
    assert "The candidates took turns" in page


def test_auto_places_the_experts_and_the_result_says_what_it_chose(
    pair: Sequence[str], lent_device: tuple[str, str], tmp_path: Path
) -> None:
    result = breakeven.compare(
        pair,
        engine="llama-server",
        cpu_moe="auto",
        engine_flags=lent_device,
        out=tmp_path / "out",
        look_inside=False,
        **BRIEF,  # type: ignore[arg-type]
    )
    # A lender serves one engine at a time, whatever room it has.
    assert result.loaded == "in turns"
    for model in result.models:
        assert model.placed is not None
        assert model.placed.how == "fitted"
        assert model.placed.gpu_layers is not None


def test_a_server_that_dies_is_reported_with_its_last_words_and_its_blocks_are_kept(
    pair: Sequence[str], llama_server: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def kill(state: ProgressState) -> None:
        if state.rows and len(blocks_of(read_events(out / "events.jsonl"))) >= 4:
            for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
                below = Path(f"/proc/{child}/task/{child}/children").read_text().split()
                for pid in [*below, child]:
                    if b"llama-server" in Path(f"/proc/{pid}/cmdline").read_bytes() and below:
                        killed = psutil.Process(int(below[0]))
                        killed.kill()
                        while is_alive(killed):
                            time.sleep(0.01)
                        return

    with pytest.raises(EngineError, match=r"llama-server ended .*killed by signal 9.*its log .* ends: ") as died:
        breakeven.compare(
            pair, engine="llama-server", out=out, on_progress=kill, **{**BRIEF, "precision": 0.001, "budget_s": 60.0}
        )
    assert "\n" not in str(died.value)
    log = read_events(out / "events.jsonl")
    assert isinstance(log[-1], StudyStopped)
    assert log[-1].because == "failed"
    assert len(blocks_of(log)) >= 4
    assert read(out / "result.json", Comparison).points
