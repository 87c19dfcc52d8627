"""`breakeven train` whole: toys of every kind trained, compared, left standing; stopped and gone on with."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import breakeven
from breakeven.errors import UserError
from breakeven.lab.corpus import sample
from breakeven.results.store import read
from breakeven.results.training import TrainStudy
from tests.cli_fixtures import run_here

pytestmark = pytest.mark.skipif(
    not (find_spec("torch") and find_spec("transformers")), reason="the extra `lab` is not installed"
)

STUDY = """
text: text
vocabulary: 512
tokens: 32
batch: 2
rates: [4e-3]
"""


def text_of(directory: Path, n_bytes: int = 42_000) -> Path:
    """Sentences of the English sample in other orders: some repeat, so there is something to learn."""
    sentences = [
        sentence
        for document in sample()
        if document.language == "en"
        for sentence in re.findall(r"[^.]+[.]", document.text)
    ]
    rng = random.Random(0)
    drawn = ""
    while len(drawn.encode()) < n_bytes:
        drawn += rng.choice(sentences)
    folder = directory / "text"
    folder.mkdir(parents=True)
    (folder / "guide.txt").write_text(drawn)
    return directory


def study_in(directory: Path, more: str) -> Path:
    path = text_of(directory) / "study.yaml"
    path.write_text(STUDY + more)
    return path


def stopped(path: Path, steps: int, after: int) -> dict[Path, int]:
    """The study in `path`, killed when so many trainings are finished; those, and when each was."""
    kept = path.with_name("study.training")
    command = [sys.executable, "-m", "breakeven.cli", "train", str(path), "--steps", str(steps), "--threads", "1"]
    with subprocess.Popen([*command, "--quiet"]) as process:
        while len(list(kept.glob("runs/*/done.json"))) < after:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    return {done: done.stat().st_mtime_ns for done in kept.glob("runs/*/done.json")}


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows trains without a process of its own for each study, and leaves out what llama.cpp says."""
    from tests.test_distill_torch import here

    monkeypatch.setattr("breakeven.lab.training.study.run_job", here)
    monkeypatch.setattr("breakeven.lab.training.study.checks_between", lambda *_, **__: ([], []))


def test_arms_of_every_kind_are_trained_compared_and_left_standing_though_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = "arms: [dense 2x256x512, moe 4/2, hybrid 4/2]\nseeds: 2\n"
    path = study_in(tmp_path / "one", arms)
    beside = study_in(tmp_path / "two", arms.replace("seeds: 2", "seeds: 1\nseed: 1"))
    finished = stopped(path, 24, after=3)
    with pytest.raises(UserError, match=r"asked otherwise \(--steps\)"):
        breakeven.train(path, steps=30, threads=1)
    told = run_here("train", str(path), "--steps", "24", "--threads", "1", "--json")
    assert told.returncode == 0, told.stderr
    study = read(path.with_suffix("") / "result.json", TrainStudy)
    assert json.loads(told.stdout)["schema"] == study.schema == "breakeven.train/1"
    assert [arm.kind for arm in study.arms] == ["dense", "moe", "hybrid"]
    dense, moe, hybrid = study.arms
    for arm in study.arms:
        assert abs(arm.off) <= 0.01
        runs = [run for run in study.runs if run.arm == arm.name]
        assert [run.seed for run in runs] == [0, 1]
        assert all(run.tokens == 24 * 2 * 32 for run in runs)
        assert all(run.checks[-1][1] < run.checks[0][1] - 0.5 for run in runs), "it learned"
        assert len({run.loss for run in runs}) == 2, "seeds differ"
        assert (Path(arm.path or "") / "tokenizer.json").is_file()
    assert (dense.difference, dense.verdict) == (None, None)
    for arm in (moe, hybrid):
        assert arm.difference is not None
        assert arm.difference.low is not None
        assert arm.difference.low < arm.difference.value < (arm.difference.high or 0)
        assert arm.verdict in ("better", "worse", "no difference")
    assert study.noise_floor is not None
    # Every predicted token of the text that judges chose `used` experts in each layer that routes.
    for run in study.runs:
        assert len(run.layers) == {"dense": 0, "moe-4-2": 2, "hybrid-4-2": 1}[run.arm]
        for layer in run.layers:
            assert sum(layer.tokens) % 2 == 0
            assert sum(layer.tokens) / 2 >= study.judged_tokens
    assert hybrid.gguf is None
    assert any("hybrid-4-2 has no file for llama.cpp: layer 0 has a dense feed-forward" in c for c in study.caveats)
    for arm in (dense, moe):
        assert {check.name for check in arm.checks} >= {"token ids", "same predictions"}
        assert all(check.passed for check in arm.checks)
        assert Path(arm.gguf or "").stat().st_size > 4 * arm.total_params
    assert (path.with_suffix("") / "result.html").is_file()
    assert not path.with_suffix(".training").exists()
    with pytest.raises(UserError, match="exists; choose another place"):
        breakeven.train(path, steps=24)

    # What was never stopped comes to the same, number for number: the seed whose turn came after the stop.
    in_this_process(monkeypatch)
    whole = breakeven.train(beside, steps=24, threads=1)
    assert len(finished) >= 3
    assert [(run.loss, run.losses, run.checks) for run in whole.runs] == [
        (run.loss, run.losses, run.checks) for run in study.runs if run.seed == 1
    ]


def test_what_is_left_is_the_model_of_the_rate_that_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a study so short that rates are tried in as many steps as models are trained in."""
    in_this_process(monkeypatch)
    path = study_in(tmp_path, "arms: [dense 1x256x512, dense 1x256x512]\nseeds: 1\n")
    path.write_text(path.read_text().replace("[4e-3]", "[4e-3, 1e-4]"))
    study = breakeven.train(path, steps=8, threads=1)
    assert len(study.arms[0].rates) > 1
    alone = tmp_path / "alone.yaml"
    alone.write_text(path.read_text().replace("[4e-3, 1e-4]", f"[{study.arms[0].rate:g}]"))
    again = breakeven.train(alone, steps=8, threads=1)
    left, same = (Path(each.arms[0].path or "") / "model.safetensors" for each in (study, again))
    assert left.read_bytes() == same.read_bytes()
