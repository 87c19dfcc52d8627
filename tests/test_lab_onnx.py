"""A model as an ONNX graph: the same predictions at any length, one token after the other, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import lab_fixtures
import numpy as np
import pytest

from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.corpus import read_documents
from breakeven.lab.facts import facts_of
from breakeven.lab.graph import litert, onnx
from breakeven.lab.lockstep import Lockstep, Scored
from breakeven.results.lab import Proof
from breakeven.results.store import read

for package in onnx.NEEDED:
    pytest.importorskip(package)


def directory(path: Path) -> Path:
    """A Hugging Face directory of a llama of two layers that cuts text into bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    config = LlamaConfig(
        vocab_size=257, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, eos_token_id=256, bos_token_id=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return directory(tmp_path_factory.mktemp("onnx") / "toy")


@pytest.fixture(scope="module")
def made(source: Path) -> tuple[Path, Proof]:
    """The graph and its proof; tracing takes long enough to do it once."""
    out = source.with_name("graph")
    text = read_documents(lab_fixtures.texts(source.with_name("texts"), ("de",), files=7))
    return out, onnx.export(source, "onnx", out, command="breakeven export toy --to onnx --out graph", text=text)


def test_the_graph_computes_what_transformers_does(made: tuple[Path, Proof], source: Path) -> None:
    out, proof = made
    assert read(out / "proof.json", Proof) == proof
    assert {check.name for check in proof.checks} >= {"any length", "loads and predicts"}
    assert all(check.passed and check.engine == "onnxruntime" for check in proof.checks)
    (german,) = proof.slices
    assert german.kl is not None
    assert german.kl.value < onnx.MOST_KL
    assert german.difference is not None
    assert abs(german.difference.value) < 1e-5
    assert {(each.of, each.engine, each.what) for each in proof.speeds} == {
        (of, engine, what)
        for of, engine in (("source", "transformers"), ("artefact", "onnxruntime"))
        for what in ("prompt", "answer")
    }
    assert proof.artefact.bits_per_weight == pytest.approx(32, rel=0.5)
    assert not any("reads the whole text" in each for each in proof.caveats)
    assert sorted(path.name for path in out.parent.iterdir()) == ["graph", "texts", "toy"]


def test_any_sequence_of_pieces_gives_the_same_predictions(made: tuple[Path, Proof]) -> None:
    """With a memory of what was read before, in pieces of any length."""
    out, _ = made
    with Lockstep([Scored(out)]) as lock:
        tokens = lock.tokenize(0, "Wie viele Bits hat ein Byte? Acht, sagte sie, und ging.")
        whole = lock.score(tokens).nats[0]
        assert lock.text_of(0, tokens) == "Wie viele Bits hat ein Byte? Acht, sagte sie, und ging."
    assert facts_of(out).format == "onnx"
    with Lockstep([Scored(out)], batch=5) as lock:
        np.testing.assert_allclose(lock.score(tokens).nats[0], whole, rtol=1e-4, atol=1e-5)


def test_a_damaged_graph_is_not_taken_for_the_model(made: tuple[Path, Proof], source: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(made[0], tmp_path / "broken"))
    data = broken / "model.onnx.data"
    weights = np.fromfile(data, np.float32)
    weights[len(weights) // 2 :] *= 1.01
    weights.tofile(data)
    check, speeds = onnx.held_against(source, source, broken)
    assert not check.passed
    assert check.kl is not None
    assert check.kl.value > onnx.MOST_KL
    assert speeds == []


def test_what_cannot_be_exported_is_refused_with_the_reason(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no config"):
        onnx.export(tmp_path / "empty", "onnx", tmp_path / "out", command="")
    monkeypatch.setattr(litert, "find_spec", lambda name: None if name == "litert_torch" else object())
    with pytest.raises(NotSupportedError, match="litert_torch is not installed"):
        onnx.export(source, "litert", tmp_path / "out", command="")
    monkeypatch.setattr(litert, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="takes a Hugging Face directory"):
        onnx.export(tmp_path / "empty", "litert", tmp_path / "out", command="")
    sparse = Path(shutil.copytree(source, tmp_path / "sparse"))
    config = json.loads((sparse / "config.json").read_text()) | {"num_local_experts": 4, "num_experts_per_tok": 2}
    (sparse / "config.json").write_text(json.dumps(config))
    with pytest.raises(NotSupportedError, match="has experts"):
        onnx.export(sparse, "litert", tmp_path / "out", command="")
    found = importlib.util.find_spec
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(NotSupportedError, match="needs onnxruntime"):
        onnx.export(source, "onnx", tmp_path / "out", command="")
    assert not (tmp_path / "out").exists()


def test_room_on_the_disk_is_asked_for_before_the_start(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    monkeypatch.setattr(litert, "find_spec", lambda name: object())
    for to in ("onnx", "litert"):
        with pytest.raises(UserError, match=r"out needs .* has 1\.0 MB free; free some space"):
            onnx.export(source, to, tmp_path / "out", command="")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("litert_torch") is None, reason="LiteRT's converter is not installed")
def test_a_litert_window_predicts_what_transformers_does(source: Path, tmp_path: Path) -> None:
    proof = onnx.export(source, "litert", tmp_path / "out", command="breakeven export toy --to litert --out out")
    assert read(tmp_path / "out" / "proof.json", Proof) == proof
    (check,) = proof.checks
    assert check.passed
    assert {each.engine for each in proof.speeds} == {"transformers", "litert"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
