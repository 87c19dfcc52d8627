"""Some experts trained on: what was named moves, everything else stays bit for bit, and the proof says by language."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from lab_fixtures import texts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file  # noqa: E402

import breakeven  # noqa: E402
from breakeven.cli.main import dispatch  # noqa: E402
from breakeven.errors import BreakevenError, NotSupportedError, UserError  # noqa: E402
from breakeven.lab.corpus import Block  # noqa: E402
from breakeven.lab.training import retrain_job  # noqa: E402
from breakeven.lab.training.retrain import Retrained, RetrainJob, _beside, untouched  # noqa: E402
from breakeven.lab.training.texts import Split  # noqa: E402
from breakeven.lab.training.work import Recipe, Trained  # noqa: E402
from breakeven.results.lab import Proof  # noqa: E402
from breakeven.results.store import read  # noqa: E402
from tests.test_bridge_torch import made_by_transformers  # noqa: E402

torch.set_num_threads(1)


def tensors(directory: Path) -> dict[str, Any]:
    return dict(load_file(directory / "model.safetensors"))


def moved(before: Path, after: Path) -> dict[str, list[int]]:
    """Of every tensor that is another: its rows that are."""
    old, new = tensors(before), tensors(after)
    assert old.keys() == new.keys()
    rows = {name: (old[name] != new[name]).reshape(len(old[name]), -1).any(axis=1) for name in old}
    return {name: np.flatnonzero(each).tolist() for name, each in rows.items() if each.any()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return made_by_transformers("olmoe", tmp_path / "olmoe")


def text(tmp_path: Path, *languages: str) -> Path:
    """Twenty-four blocks of each language."""
    return texts(tmp_path / "-".join(languages), languages, files=24, n_bytes=220)


def test_the_verb_trains_what_was_named_and_says_by_language_what_that_moved(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("breakeven.lab.training.retrain.run_job", lambda module, spec, result, **rest: run(spec))
    out = tmp_path / "out"
    args = ["--only", "1,0:3", "--text", str(text(tmp_path, "de") / "de"), "--replay", str(text(tmp_path, "en"))]
    args += ["--steps", "40", "--batch", "4", "--rate", "0.01", "--tokens", "64", "--threads", "1", "--quiet"]
    assert dispatch(["experts", "retrain", str(source), *args, "--out", str(out)]) == 0
    proof = read(out / "proof.json", Proof)
    assert [(check.name, check.passed) for check in proof.checks] == [
        ("all else as it was", True),
        ("token ids", True),
        ("same predictions", True),
        ("loads and predicts", True),
    ]
    assert {name.replace("model.layers.", "") for name in moved(source, out)} == {
        *(f"{layer}.mlp.experts.1.{part}_proj.weight" for layer in (0, 1) for part in ("gate", "up", "down")),
        *(f"0.mlp.experts.3.{part}_proj.weight" for part in ("gate", "up", "down")),
        *(f"{layer}.mlp.gate.weight" for layer in (0, 1)),
    }
    assert moved(source, out)["model.layers.0.mlp.gate.weight"] == [1, 3]
    assert moved(source, out)["model.layers.1.mlp.gate.weight"] == [1]
    german, english = proof.slices
    assert (german.language, english.language) == ("de", "en")
    assert german.difference is not None
    assert german.difference.most < 0, "the text they were trained on got better"
    assert proof.training is not None
    assert (proof.training.tokens, proof.training.seed) == (40 * 4 * 64, 0)
    assert proof.training.best_step
    assert proof.training.flops > 0
    assert proof.experts is not None
    assert proof.experts_after is not None
    assert proof.experts_after.retrained == [[1, 3], [1]]
    assert proof.experts_after.layers[0].by_language.keys() == {"de", "en"}
    assert "Loss while it was trained" in (out / "proof.html").read_text()
    assert json.loads((out / "config.json").read_text())["rope_theta"] == 10000.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["de", "en", "olmoe", "out"]
    words = shlex.split(proof.command)
    assert words[-4:] == ["--steps", "40", "--batch", "4"]


def job(source: Path, folder: Path, only: list[tuple[int | None, int]], **changes: Any) -> RetrainJob:
    folder.mkdir(exist_ok=True)
    rows = np.random.default_rng(0).integers(0, 24, (24, 32)).astype(np.int32)
    rows[:, 1::2] = rows[:, ::2]  # each second token repeats the one before
    np.savez(folder / "rows.npz", train=rows[:18], choose=rows[18:])
    fields: dict[str, Any] = {
        "directory": str(source),
        "made": str(folder / "made"),
        "folder": str(folder / "run"),
        "rows": str(folder / "rows.npz"),
        "only": only,
        "recipe": Recipe(seed=0, rate=0.01, batch=6, steps=24),
        "balance": None,
        "dtype": "F32",
    }
    return RetrainJob(**{**fields, **changes})


def run(given: RetrainJob) -> Retrained:
    return retrain_job.run(msgspec.json.encode(given), lambda what, share: None)


def test_a_bias_that_selects_is_moved_for_those_that_train_alone(tmp_path: Path, source: Path) -> None:
    ernie = made_by_transformers("ernie4_5_moe", tmp_path / "ernie")
    done = run(job(ernie, tmp_path / "work", [(None, 2)], balance="bias"))
    assert (done.layers, done.chosen) == ([1, 2], [[2], [2]])
    made = tmp_path / "work" / "made"
    run(job(ernie, tmp_path / "again", [(None, 2)], balance="bias"))
    assert (tmp_path / "again/made/model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    bias = "model.layers.{}.mlp.moe_statics.e_score_correction_bias"
    old, new = tensors(ernie), tensors(made)
    for layer in (1, 2):
        change = (new[bias.format(layer)] - old[bias.format(layer)]).reshape(-1)
        assert change[[0, 1, 3]].tolist() == [0, 0, 0]
        assert 0 < abs(change[2]) <= 24 * retrain_job.BIAS_STEP * 1.01
    assert untouched(ernie, made, {1: [2], 2: [2]}).passed
    assert not untouched(ernie, made, {1: [2]}).passed
    with pytest.raises(NotSupportedError, match="no bias that selects"):
        run(job(source, tmp_path / "other", [(None, 2)], balance="bias"))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_auxiliary_loss_and_stored_types(family: str, tmp_path: Path) -> None:
    given = made_by_transformers(family, tmp_path / family, dtype="bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(given, dtype=torch.bfloat16)
    model.save_pretrained(given)
    done = run(job(given, tmp_path / "work", [(1, 0), (1, 3)], balance="aux", dtype="BF16"))
    assert done.chosen == [[0, 3]]
    made = tmp_path / "work" / "made"
    shutil.copyfile(given / "config.json", made / "config.json")
    assert untouched(given, made, {1: [0, 3]}).passed
    assert not untouched(given, made, {1: [0]}).passed


def test_what_moved_and_should_not_have_is_named(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    for name, row in (
        ("model.layers.0.mlp.experts.2.up_proj.weight", 0),
        ("model.layers.0.mlp.gate.weight", 2),
        ("model.layers.1.mlp.gate.weight", 1),
        ("model.norm.weight", 5),
    ):
        shutil.copytree(source, made, dirs_exist_ok=True)
        held = tensors(source)
        held[name] = held[name].copy()
        held[name][row] += 1e-3
        save_file(held, made / "model.safetensors", {"format": "pt"})
        check = untouched(source, made, {0: [1]})
        assert not check.passed
        assert check.detail.startswith(name)
    save_file(
        {key: each for key, each in tensors(source).items() if key != "model.norm.weight"}, made / "model.safetensors"
    )
    check = untouched(source, made, {0: [1]})
    assert not check.passed, "nothing moved"
    assert "what they learned was lost in rounding; give a higher --rate" in check.detail
    assert check.detail.endswith("transformers does not load it: model.norm.weight")


def test_a_replay_in_the_languages_of_the_text_is_told_apart() -> None:
    def block(language: str) -> Block:
        return Block(language, "all", "a", "text")

    texts = Split([block("de"), block("all")], [], [])
    beside = _beside(texts, [block("de"), block("en"), block("all")])
    assert [each.language for each in beside] == ["de/replay", "en", "replay"]


def test_what_cannot_be_trained_so_is_refused_before_a_step(source: Path, tmp_path: Path) -> None:
    german = text(tmp_path, "de")
    retrain = breakeven.experts.retrain
    with pytest.raises(UserError, match="has experts 0 to 3"):
        retrain(source, [4], german, tmp_path / "out")
    with pytest.raises(UserError, match="give one of aux, bias"):
        retrain(source, [1], german, tmp_path / "out", balance="even")
    with pytest.raises(UserError, match="--for and --steps both say how long"):
        retrain(source, [1], german, tmp_path / "out", seconds=9.0, steps=3)
    with pytest.raises(UserError, match="the model's context is 512"):
        retrain(source, [1], german, tmp_path / "out", tokens=1024)
    dense = made_by_transformers("llama", tmp_path / "dense")
    with pytest.raises(UserError, match="is dense, it has no experts"):
        retrain(dense, [1], german, tmp_path / "out")
    with pytest.raises(UserError, match="layer 7 does not route; those that do: 0 to 1"):
        run(job(source, tmp_path / "work", [(7, 1)]))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="--only 3-7: give experts such as 3,7"):
        dispatch(["experts", "retrain", str(source), "--only", "3-7", "--text", str(german), "--out", "x"])


def test_what_got_no_better_is_not_kept(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worse = Trained(
        steps=20, tokens=640, seconds=1.0, losses=[[1.0, 3.0]], checks=[[0.0, 2.0], [20.0, 2.1]], best_step=0
    )
    done = Retrained(trained=worse, layers=[0, 1], chosen=[[1], [1]], weights=9, batch=8)
    monkeypatch.setattr("breakeven.lab.training.retrain.run_job", lambda *given, **named: done)
    with pytest.raises(BreakevenError, match="nothing was kept: no checkpoint of 20 steps predicts the text better"):
        breakeven.experts.retrain(source, [1], text(tmp_path, "de"), tmp_path / "out", steps=20, tokens=32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["de", "olmoe"]
