"""The bridge against transformers and llama.cpp: classes of the families, random weights, equal predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bridge_fixtures import CLASSES, CONFIGS, write_byte_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import breakeven  # noqa: E402
from breakeven.errors import BreakevenError, UserError  # noqa: E402
from breakeven.lab.bridge import bridge, configs  # noqa: E402
from breakeven.lab.bridge.bridge import to_directory, to_gguf  # noqa: E402
from breakeven.lab.bridge.families import BRIDGES, MISTRAL  # noqa: E402
from breakeven.lab.lockstep import Lockstep, Scored  # noqa: E402
from breakeven.lab.torch_scorer import load_model  # noqa: E402
from tests.inside_fixtures import decoded_shallow_copy  # noqa: E402

TEXT = "The lighthouse keeper climbed the stairs every evening; Größe, 3.14 und \u6f22\u5b57, в конце осени.\n"
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "attention_factor": 1.3,
}


def made_by_transformers(model_type: str, at: Path, **changes: Any) -> Path:
    """A directory as `save_pretrained` leaves it, with weights large enough that tokens and experts differ."""
    at.mkdir()
    kind = getattr(transformers, CLASSES[model_type])
    torch.manual_seed(1)
    model = kind(kind.config_class(**{**CONFIGS[model_type], **changes}))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            scale = 0.1 if "norm" in name else 0.02 if "correction" in name else weights.shape[-1] ** -0.5
            weights.copy_(torch.randn_like(weights) * scale + (1.0 if "norm" in name else 0.0))
            if "embed" in name:
                weights.mul_(4)
    model.save_pretrained(at)
    write_byte_tokenizer(at)
    return at


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{model_type: (model_type, {}) for model_type in CONFIGS},
    "llama3": ("llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 1024, "attention_bias": False}),
    "yarn": ("qwen3", {"rope_parameters": YARN}),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case as transformers saves it, and as our GGUF of that."""
    folder = tmp_path_factory.mktemp("families")
    for name, (model_type, changes) in CASES.items():
        made_by_transformers(model_type, folder / name, **changes)
        to_gguf(folder / name, folder / f"{name}.gguf")
    return folder


def test_both_engines_predict_the_same(places: Path) -> None:
    models = [Scored(places / f"{name}{suffix}") for name in CASES for suffix in (".gguf", "")]
    with Lockstep(models, exact=True) as lock:
        tokens = lock.tokenize(0, TEXT * 3)
        assert all(lock.tokenize(i, TEXT * 3) == tokens for i in range(len(models)))
        scores = lock.score(tokens[:300], [(2 * i, 2 * i + 1) for i in range(len(CASES))])
    assert {each.engine for each in lock.loaded} == {"llama.cpp", "transformers"}
    for i, name in enumerate(CASES):
        print(f"{name}: KL {scores.kl[i].mean():.1e}, top-1 {scores.agree[i].mean():.4f}")
        assert np.std(scores.nats[2 * i]) > 0.1
        assert scores.kl[i].mean() <= 1e-6, name
        assert scores.agree[i].all(), name


@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_what_comes_back(name: str, places: Path, tmp_path: Path) -> None:
    to_directory(places / f"{name}.gguf", tmp_path / "back")
    ours, theirs = load_model(tmp_path / "back").state_dict(), load_model(places / name).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    read = transformers.AutoConfig.from_pretrained
    assert read(tmp_path / "back").rope_parameters == read(places / name).rope_parameters


def test_what_transformers_would_fill_in_is_refused(tmp_path: Path) -> None:
    source = made_by_transformers("llama", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match="is missing; transformers would fill it"):
        load_model(source)
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(UserError, match="has no place for tensor"):
        load_model(source)


def test_the_verb_leaves_a_directory_and_its_proof(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Two layers of SmolLM2, with its own tokenizer, to a directory. (The way back is in test_bridge.)"""
    source = decoded_shallow_copy(smollm2_gguf, tmp_path / "shallow.gguf", 2)
    proof = breakeven.export(source, "hf", tmp_path / "hf")
    assert [check.name for check in proof.checks[:3]] == ["tensors", "token ids", "same predictions"]
    assert all(check.passed for check in proof.checks)
    kl = proof.checks[2].kl
    assert kl is not None
    assert kl.value <= 1e-6
    assert proof.artefact.format == "F32"
    assert json.loads((tmp_path / "hf" / "proof.json").read_text())["schema"] == "breakeven.proof/1"
    assert not list(tmp_path.glob(".*"))


def test_a_check_that_fails_leaves_nothing(smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = decoded_shallow_copy(smollm2_gguf, tmp_path / "shallow.gguf", 1)
    # A rotary order that is wrong, as many converters had it.
    monkeypatch.setattr(bridge, "rotated_order", lambda rows, heads, *, to_gguf: None)
    with pytest.raises(BreakevenError, match=r"'same predictions' by transformers failed.*at most 1e-06"):
        breakeven.export(source, "hf", tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["shallow.gguf"]


def test_defaults_are_those_of_the_classes() -> None:
    for each in (*BRIDGES, MISTRAL):
        theirs = getattr(transformers, each.class_name).config_class
        for key in {*each.defaults, "max_position_embeddings", "sliding_window", "use_sliding_window"}:
            said = theirs.default_theta if key == "rope_theta" else getattr(theirs, key, "absent")
            assert said in ("absent", each.defaults.get(key)), f"{each.model_type} {key}: {said}"


@pytest.mark.parametrize("to", ["hf", "onnx"])
def test_a_key_that_the_directory_lost_shows(
    to: str, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of half precision is compared as it is, not as the directory made of it would have it."""
    if to == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    to_gguf(places / "qwen3", tmp_path / "half.gguf", dtype="bf16")
    monkeypatch.setattr(configs, "_epsilon", lambda value: 0.5)
    with pytest.raises(BreakevenError, match=r"'same predictions' by transformers failed"):
        breakeven.export(tmp_path / "half.gguf", to, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["half.gguf"]


def test_what_is_rounded_on_the_way_is_compared_as_rounded(places: Path, tmp_path: Path) -> None:
    proof = breakeven.export(places / "mixtral.gguf", "hf", tmp_path / "made", dtype="bf16")
    assert [check.name for check in proof.checks[:3]] == ["tensors", "token ids", "same predictions"]
    assert proof.artefact.format == "BF16"
    assert not list(tmp_path.glob(".*"))
