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

from breakeven.errors import UserError  # noqa: E402
from breakeven.lab.bridge import to_directory, to_gguf  # noqa: E402
from breakeven.lab.lockstep import Lockstep, Scored  # noqa: E402
from breakeven.lab.torch_scorer import load_model  # noqa: E402

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


def apart(gguf: Path, directory: Path) -> tuple[float, float]:
    """Mean KL(llama.cpp || transformers) in nats, and the share of equal likeliest tokens."""
    with Lockstep([Scored(gguf), Scored(directory)]) as lock:
        tokens = lock.tokenize(0, TEXT * 3)
        assert tokens == lock.tokenize(1, TEXT * 3)
        scores = lock.score(tokens[:300], [(0, 1)])
    assert np.std(scores.nats[0]) > 0.1
    return float(scores.kl.mean()), float(scores.agree.mean())


CASES = [
    *((model_type, {}) for model_type in CONFIGS),
    ("llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 1024, "attention_bias": False}),
    ("qwen3", {"rope_parameters": YARN}),
]


@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_both_engines_predict_the_same(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    source = made_by_transformers(model_type, tmp_path / "source", **changes)
    to_gguf(source, tmp_path / "there.gguf")
    kl, top1 = apart(tmp_path / "there.gguf", source)
    print(f"{model_type} {changes and changes['rope_parameters']['rope_type']}: {kl:.1e} {top1:.4f}")
    assert kl <= 1e-6
    assert top1 == 1.0
    to_directory(tmp_path / "there.gguf", tmp_path / "back")
    ours, theirs = load_model(tmp_path / "back").state_dict(), load_model(source).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for model in (tmp_path / "back", source):
        config = transformers.AutoConfig.from_pretrained(model)
        assert config.rope_parameters == transformers.AutoConfig.from_pretrained(source).rope_parameters


def test_what_transformers_would_fill_in_is_refused(tmp_path: Path) -> None:
    source = made_by_transformers("llama", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match="is missing; transformers would fill it"):
        load_model(source)
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(UserError, match="has no place for tensor"):
        load_model(source)
