"""Tuning with PEFT: what is attached is what was asked, its merge is the adapter, engines serve it and not the base."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
from safetensors.torch import load_file, save_file  # noqa: E402

import breakeven  # noqa: E402
from breakeven.errors import BreakevenError, UserError  # noqa: E402
from breakeven.lab.bridge.bridge import to_gguf  # noqa: E402
from breakeven.lab.bridge.weights import Checkpoint  # noqa: E402
from breakeven.lab.training import loop, tune_job  # noqa: E402
from breakeven.lab.training.tune import TuneJob  # noqa: E402
from breakeven.lab.training.tune_proof import TuneDone  # noqa: E402
from breakeven.lab.training.work import Recipe, directory_of  # noqa: E402
from breakeven.results.lab import Proof  # noqa: E402
from tests.bridge_fixtures import CONFIGS, VOCAB  # noqa: E402
from tests.lab_fixtures import texts  # noqa: E402
from tests.test_bridge_torch import made_by_transformers  # noqa: E402

torch.set_num_threads(1)
STEPS = 60


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts(tmp_path_factory.mktemp("text"), ("de",), 24, 400)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_by_transformers("olmoe", tmp_path_factory.mktemp("base") / "toy")


@pytest.fixture(scope="module")
def tuned(base: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Proof]:
    """The whole verb: two of four experts of every layer."""
    out = tmp_path_factory.mktemp("tuned") / "german"
    proof = breakeven.tune(
        base, out, text=text, adapt="experts:1,3", steps=STEPS, batch=4, rate=0.02, tokens=64, threads=1
    )
    return out, proof


def test_experts_asked_for_are_tuned_and_served_and_nothing_else_changes(
    base: Path, text: Path, tuned: tuple[Path, Proof]
) -> None:
    out, proof = tuned
    names = [(check.name, check.engine.split()[0]) for check in proof.checks]
    assert names[:5] == [
        ("adapted", "PEFT"),
        ("merged is the adapter", "transformers"),
        ("loads as merged", "transformers"),
        ("not the base", "transformers"),
        ("what changed", "breakeven"),
    ]
    assert ("same predictions", "transformers") in names
    assert ("not the base", "llama.cpp") in names
    assert all(check.passed for check in proof.checks)
    assert "adapted experts (4 tensors, " in proof.checks[0].detail
    trained = sum(each.numel() for each in load_file(out / "adapter" / "adapter_model.safetensors").values())
    assert f" by {trained // 2:,}, experts 1, 3 alone; frozen" in proof.checks[0].detail, (
        "half of four experts' weights"
    )
    before, after = Checkpoint(base).tensors, Checkpoint(out).tensors
    changed = {name for name, tensor in after.items() if not np.array_equal(tensor.data, before[name].data)}
    assert changed == {name for name in after if ".experts.1." in name or ".experts.3." in name}
    (german,) = proof.slices
    assert german.difference is not None
    assert german.difference.high is not None
    assert german.difference.high < 0, "it predicts the text better, surely"
    assert proof.training is not None
    assert proof.training.tokens == STEPS * 4 * 64
    assert proof.training.flops > 0
    assert f"--steps {STEPS} --batch 4" in proof.command
    config = json.loads((out / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert (out / "proof.json").is_file()
    assert not out.with_name("german.training").exists()
    adapter = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "toy"
    with pytest.raises(UserError, match="exists"):
        breakeven.tune(base, out, text=text)


def by_expert(state: dict[str, Any], n: int) -> dict[str, Any]:
    """As other trainers pack: columns of B expert by expert."""
    return {
        name: t.reshape(t.shape[0], -1, n).transpose(1, 2).reshape(t.shape).contiguous() if "lora_B" in name else t
        for name, t in state.items()
    }


def swapped(state: dict[str, Any], n: int) -> dict[str, Any]:
    """As PEFT 0.18 packed: A on the outputs, B on the inputs."""
    out = {}
    for name, a in state.items():
        if "lora_A" not in name:
            continue
        b, r = state[name.replace("lora_A", "lora_B")], a.shape[0] // n
        out[name] = b.reshape(-1, r, n).permute(2, 1, 0).reshape(n * r, -1).contiguous()
        out[name.replace("lora_A", "lora_B")] = a.reshape(n, r, -1).permute(2, 1, 0).reshape(-1, r * n).contiguous()
    return out


def repacked(adapter: Path, to: Path, pack: Callable[[dict[str, Any], int], dict[str, Any]]) -> Path:
    to.mkdir()
    (to / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    save_file(pack(load_file(adapter / "adapter_model.safetensors"), 4), to / "adapter_model.safetensors")
    return to


def test_an_adapter_packed_by_others_passes_the_same_proof(
    base: Path, text: Path, tuned: tuple[Path, Proof], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the first test ran in processes of their own.
    monkeypatch.setattr("breakeven.lab.training.tune.run_job", lambda module, spec, result, **rest: run(spec))
    monkeypatch.setattr("breakeven.lab.training.tune.served_of", lambda *args: ([], []))
    adapter = repacked(tuned[0] / "adapter", tmp_path / "adapter", by_expert)
    proof = breakeven.tune(base, tmp_path / "out", adapter=adapter, text=text, threads=1)
    packing = proof.checks[1]
    assert packing.name == "experts' packing"
    assert packing.detail.startswith("expert by expert: ")
    assert "as PEFT packs " in packing.detail
    assert "without the adapter " in packing.detail
    assert "--tokens 256" in proof.command
    assert all(check.passed for check in proof.checks)
    ours, theirs = Checkpoint(tmp_path / "out").tensors, Checkpoint(tuned[0]).tensors
    assert all(np.array_equal(ours[name].data, theirs[name].data) for name in theirs)
    assert proof.training is None
    assert proof.slices[0].bits_per_byte.value < tuned[1].slices[0].source_bits_per_byte.value  # type: ignore[union-attr]


def job(base: Path, folder: Path, rows: dict[str, Any], **changes: Any) -> TuneJob:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "rows.npz", **rows)
    recipe = Recipe(seed=0, rate=0.02, batch=4, steps=12, checks=2, weight_decay=0.0)
    asked: dict[str, Any] = {
        "base": str(base),
        "base_name": "toy",
        "folder": str(folder),
        "made": str(folder / "made"),
        "rows": str(folder / "rows.npz"),
        "adapt": "all",
        "experts": [],
        "router": False,
        "rank": 4,
        "recipe": recipe,
        "adapter": None,
    }
    return TuneJob(**(asked | changes))


def some_rows() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.integers(0, VOCAB, (24, 16)), 2, axis=1).astype(np.int32)  # each token twice: to be learned
    return {"train": rows, "choose": rows[:4], "probe": rng.integers(0, VOCAB, (2, 24)).astype(np.int32)}


def run(asked: TuneJob) -> TuneDone:
    return tune_job.run(msgspec.json.encode(asked), lambda what, share: None)


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "ernie4_5_moe"])
def test_every_family_is_adapted_as_asked_and_merges(model_type: str, tmp_path: Path) -> None:
    """Dense layers beside experts, shared experts, routers: PEFT itself takes some of them for experts."""
    base = made_by_transformers(model_type, tmp_path / "toy")
    routes = "num_experts_per_tok" in CONFIGS[model_type] or "moe_k" in CONFIGS[model_type]
    done = run(job(base, tmp_path / "work", some_rows(), router=routes))
    adapted = {each.kind: each for each in done.attached if each.adapted}
    wanted = {"attention"} | ({"experts", "router"} if routes else {"feed-forward"})
    wanted |= {"shared experts", "feed-forward"} if model_type == "ernie4_5_moe" else set()
    assert adapted.keys() == wanted
    assert all(each.adapted == each.tensors and not each.idle for each in adapted.values())
    assert done.merged.adapter_kl < 1e-6
    assert done.merged.again_kl < 1e-9
    assert done.merged.base_kl > 1e-4
    assert done.trained is not None
    assert done.trained.checks[-1][1] < done.trained.checks[0][1]


@pytest.mark.parametrize("quantized", [False, True])
def test_a_run_that_was_stopped_goes_on_to_the_same_curve(
    quantized: bool, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quantized:
        pytest.importorskip("bitsandbytes")
        base = made_by_transformers("llama", tmp_path / "dense")
    monkeypatch.setattr(loop, "_SAVE_EVERY_S", 0.0)
    rows = some_rows()
    whole = run(job(base, tmp_path / "whole", rows, quantized=quantized))
    left = 7
    usual = tune_job.next_token_loss

    def stops(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return usual(*args)

    monkeypatch.setattr(tune_job, "next_token_loss", stops)
    with pytest.raises(KeyboardInterrupt):
        run(job(base, tmp_path / "stopped", rows, quantized=quantized))
    monkeypatch.setattr(tune_job, "next_token_loss", usual)
    again = run(job(base, tmp_path / "stopped", rows, quantized=quantized))
    assert again.trained is not None
    assert whole.trained is not None
    assert again.trained.losses == whole.trained.losses
    assert again.trained.checks == whole.trained.checks


def test_a_run_that_makes_it_worse_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worse = itertools.count()
    monkeypatch.setattr(tune_job, "mean_nats", lambda *args: float(next(worse)))
    with pytest.raises(BreakevenError, match="the adapter changes nothing: the tuned model was worse at every check"):
        run(job(base, tmp_path / "work", some_rows()))
    assert not (tmp_path / "work" / "run").exists(), "the advice, a lower rate, can be followed"


def test_of_conversations_only_answers_count(base: Path, tmp_path: Path) -> None:
    rows = some_rows()
    heed = np.zeros(rows["train"].shape, np.bool_)
    heed[:, 20:] = True
    rows |= {"train_heed": heed, "choose_heed": heed[:4], "judge": rows["train"][4:8], "judge_heed": heed[4:8]}
    done = run(job(base, tmp_path / "work", rows))
    assert len(done.merged.answers_before) == len(done.merged.answers_after) == 4
    assert sum(done.merged.answers_after) < sum(done.merged.answers_before)


@pytest.mark.parametrize(
    ("pack", "said"),
    [(by_expert, "expert by expert"), (swapped, "sides swapped, as PEFT 0.18"), (dict, "as PEFT packs")],
)
def test_packings_are_told_by_what_they_predict(
    pack: Any, said: str, base: Path, text: Path, tuned: tuple[Path, Proof], tmp_path: Path
) -> None:
    adapter = repacked(
        tuned[0] / "adapter", tmp_path / "adapter", lambda state, n: pack(state, n) if pack is not dict else state
    )
    rows = some_rows()
    learned = "".join(path.read_text("utf-8") for path in sorted(text.rglob("*.txt"))[:3])
    from breakeven.lab.bridge.directory_words import tokenizer_of

    ids = tokenizer_of(base).encode(learned).ids
    rows["choose"] = np.array(ids[: len(ids) // 64 * 64], np.int32).reshape(-1, 64)
    done = run(job(base, tmp_path / "work", rows, recipe=None, adapter=str(adapter)))
    assert next(iter(done.packings)) == said
    ours, theirs = Checkpoint(tmp_path / "work" / "made").tensors, Checkpoint(tuned[0]).tensors
    assert all(np.array_equal(ours[name].data, theirs[name].data) for name in theirs)


def test_adapters_that_do_not_fit_are_refused(base: Path, tuned: tuple[Path, Proof], tmp_path: Path) -> None:
    def refused(pack: Any, said: str) -> None:
        adapter = repacked(tuned[0] / "adapter", tmp_path / said.split()[0], lambda state, n: pack(state))
        with pytest.raises(UserError, match=said):
            run(job(base, tmp_path / "work", some_rows(), recipe=None, adapter=str(adapter)))

    refused(lambda state: dict(list(state.items())[:-1]), "lacks .*, which its configuration names")
    refused(
        lambda state: {**state, "base_model.model.head.lora_A.weight": torch.ones(1)}, "head.* has no place in this"
    )
    refused(lambda state: {name: t[:, :-4].contiguous() for name, t in state.items()}, "another shape|does not fit")
    (tmp_path / "cut").mkdir()
    adapter = repacked(tuned[0] / "adapter", tmp_path / "cut" / "adapter", lambda state, n: state)
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="is no whole adapter"):
        run(job(base, tmp_path / "work", some_rows(), recipe=None, adapter=str(adapter)))


def test_a_full_disk_leaves_nothing_half(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device", "base.npy")

    monkeypatch.setattr(tune_job.np, "save", full)
    with pytest.raises(UserError, match=r"cannot write base\.npy: No space left on device; free some space"):
        run(job(base, tmp_path / "work", some_rows()))
    assert not (tmp_path / "work" / "made").exists()


def test_adapters_of_a_dense_model_are_trained_beside_four_bits_and_put_into_the_whole(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = made_by_transformers("llama", tmp_path / "toy")
    rows = some_rows()
    done = run(job(base, tmp_path / "work", rows, quantized=True))
    plain = run(job(base, tmp_path / "plain", rows))
    assert done.trained is not None
    assert plain.trained is not None
    assert done.trained.checks[-1][1] < done.trained.checks[0][1]
    assert done.trained.losses != plain.trained.losses, "the base beside it was rounded"
    assert done.attached == plain.attached, "what is told is of the whole model"
    assert done.merged.adapter_kl < 1e-6
    assert done.merged.again_kl < 1e-9
    assert done.merged.base_kl > 1e-4


def test_a_gguf_becomes_a_directory_to_train_on_once(base: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "toy.gguf"
    to_gguf(base, gguf, dtype="f32")
    told: list[str] = []
    place, notes = directory_of(gguf, tmp_path / "base", lambda what, share: told.append(what))
    config = place / "config.json"
    was = config.stat().st_mtime_ns
    assert directory_of(gguf, tmp_path / "base", lambda what, share: told.append(what)) == (place, notes)
    assert config.stat().st_mtime_ns == was
    assert told == ["writing it as a directory first"]
    (tmp_path / "base.json").unlink()  # as a stop between both would leave it
    assert directory_of(gguf, tmp_path / "base")[0] == place
    assert config.stat().st_mtime_ns != was
    assert directory_of(base, tmp_path / "other") == (base, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "base.json", "toy.gguf"]
