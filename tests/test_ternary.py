"""Two bits by training: what the model reads is what TQ2_0 and Q8_0 hold, so the file is the model, bit for bit."""

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
from breakeven.lab.bits.exact import served, write_ternary_gguf  # noqa: E402
from breakeven.lab.bits.ggml import Ggml  # noqa: E402
from breakeven.lab.bridge.directory_words import tokenizer_of  # noqa: E402
from breakeven.lab.corpus import blocks_of, sample  # noqa: E402
from breakeven.lab.surgery.container import open_gguf  # noqa: E402
from breakeven.lab.torch_scorer import load_model  # noqa: E402
from breakeven.lab.training.loop import Recipe, Trainer, mean_nats, next_token_loss  # noqa: E402
from breakeven.lab.training.ternary import eight_bits, leave_ternary, make_ternary, ternary  # noqa: E402
from breakeven.lab.training.texts import rows_of  # noqa: E402
from breakeven.lab.training.vocabulary import trim, trim_weights  # noqa: E402

torch.set_num_threads(1)
WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
BLOCKS = blocks_of([document for document in sample() if document.language in ("en", "de")])
"""A kilobyte of each."""


def toy(family: str, **changes: Any) -> Any:
    kind = getattr(transformers, CLASSES[family])
    torch.manual_seed(5)
    return kind(kind.config_class(**{**CONFIGS[family], **WIDE, **changes}))


def saved(model: Any, at: Path) -> Path:
    model.save_pretrained(at)
    write_byte_tokenizer(at)
    return at


def trained(model: Any, at: Path, steps: int) -> float:
    """Nats a token on the text after some steps of training on it."""
    at.mkdir()
    write_byte_tokenizer(at)
    tokenizer = tokenizer_of(at)
    rows = rows_of(BLOCKS, lambda text: tokenizer.encode(text).ids, 32, 256)
    recipe = Recipe(seed=1, rate=3e-3, batch=4, steps=steps, checks=2)
    Trainer(
        model,
        recipe,
        rows,
        lambda ids, numbers: next_token_loss(model(input_ids=ids, use_cache=False).logits, ids),
        lambda: mean_nats(model, rows[:8], 8),
        at / "work",
        lambda what, share: None,
    ).run()
    return mean_nats(model, rows, 8)


@pytest.mark.parametrize("size", [1.0, 3e-2, 1e-4, 1e-6, 0.0])
def test_what_is_read_is_what_a_file_holds(size: float) -> None:
    torch.manual_seed(2)
    weights = torch.randn(6, 512) * size
    weights[0, :256] = 0  # a group of nothing
    weights[1, 5] = 40 * size  # one that dwarfs its group
    with Ggml() as ggml:
        for rounding, name in ((ternary, "TQ2_0"), (eight_bits, "Q8_0")):
            read = rounding(weights)
            kind = ggml.types[name]
            back = ggml.decode(kind, ggml.encode(kind, read.numpy())).reshape(6, 512)
            assert np.array_equal(back, read.numpy()), name
    if size == 1.0:
        assert float((eight_bits(weights) - weights).abs().max()) < 0.2
        groups = ternary(weights).unflatten(-1, (-1, 256)).abs()
        assert all(len(group[group > 0].unique()) <= 1 for group in groups.flatten(0, 1))
        # Nearer than the file of the same size that rounding makes, which takes the largest weight for the scale.
        plain = weights[2:]
        with Ggml() as ggml:
            kind = ggml.types["TQ2_0"]
            rounded = ggml.decode(kind, ggml.encode(kind, plain.numpy())).reshape(4, 512)
        errors = [float(((torch.as_tensor(each) - plain) ** 2).mean()) for each in (ternary(plain), rounded)]
        assert errors[0] < 0.25 < 0.5 < errors[1]


def test_gradients_pass_the_rounding() -> None:
    model = toy("qwen3")
    counts = make_ternary(model)
    n = sum(p.numel() for p in model.parameters())
    assert counts.ternary + counts.eight_bits + counts.single == n
    assert counts.eight_bits == 320 * 256, "the embedding that is the output matrix too counts once"
    ids = torch.arange(64)[None]
    next_token_loss(model(input_ids=ids).logits, ids).backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in model.parameters())


def test_a_model_trained_in_two_bits_is_its_file(tmp_path: Path) -> None:
    model = toy("qwen3")
    make_ternary(model)
    nats = trained(model, tmp_path / "work", 30)
    leave_ternary(model)
    assert not any("parametrizations" in name for name, _ in model.named_parameters())
    directory = saved(model, tmp_path / "hf")
    rows = rows_of(BLOCKS, lambda text: tokenizer_of(directory).encode(text).ids, 32, 256)
    assert mean_nats(load_model(directory), rows, 8) == pytest.approx(nats, abs=1e-6), "saved is what was trained"
    assert nats < 0.7 * mean_nats(toy("qwen3"), rows, 8)
    packed = write_ternary_gguf(directory, tmp_path / "m.gguf")
    assert packed.matrix_bits == 2.0625
    assert packed.around_format == "Q8_0"
    assert packed.n_bytes == (tmp_path / "m.gguf").stat().st_size
    assert "2.06 bits a weight" in packed.said()
    assert not list(tmp_path.glob(".*"))
    kinds = {tensor.name: tensor.kind.name for tensor in open_gguf(tmp_path / "m.gguf").tensors}
    assert {kind for name, kind in kinds.items() if "blk" in name and "norm" not in name} == {"TQ2_0"}
    assert kinds["token_embd.weight"] == "Q8_0"
    check = served(directory, tmp_path / "m.gguf", BLOCKS, threads=1)
    assert check.passed, check.detail

    with pytest.raises(UserError, match=r"is not -1, 0 and 1 times a scale .* train with --ternary"):
        write_ternary_gguf(saved(toy("qwen3"), tmp_path / "plain-hf"), tmp_path / "plain.gguf")
    assert not (tmp_path / "plain.gguf").exists()


def test_experts_are_trained_in_two_bits_and_routers_are_not(tmp_path: Path) -> None:
    model = toy("mixtral", num_hidden_layers=1)
    make_ternary(model)
    trained(model, tmp_path / "work", 4)
    leave_ternary(model)
    packed = write_ternary_gguf(saved(model, tmp_path / "hf"), tmp_path / "m.gguf")
    kinds = {tensor.name: tensor.kind.name for tensor in open_gguf(tmp_path / "m.gguf").tensors}
    assert {kinds[f"blk.0.ffn_{part}_exps.weight"] for part in ("gate", "up", "down")} == {"TQ2_0"}
    assert kinds["blk.0.ffn_gate_inp.weight"] == "F32"
    assert packed.matrix_bits == 2.0625
    check = served(tmp_path / "hf", tmp_path / "m.gguf", BLOCKS, threads=1)
    assert check.passed, check.detail


def test_rows_that_two_bits_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match=r"has rows of 96, .* multiples of 256"):
        make_ternary(toy("qwen3", intermediate_size=96))


def test_a_model_with_a_trimmed_vocabulary_says_the_same_of_what_is_left(tmp_path: Path) -> None:
    directory = saved(toy("qwen3", tie_word_embeddings=False), tmp_path / "hf")
    trimmed = trim(directory, [block.text for block in BLOCKS], tmp_path / "out")
    assert trimmed.n < 320 == trimmed.n_before
    trim_weights(directory, trimmed, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == trimmed.n
    before, after = load_model(directory), load_model(tmp_path / "out")
    ids = tokenizer_of(tmp_path / "out").encode(BLOCKS[0].text).ids
    with torch.inference_mode():
        theirs = before(input_ids=torch.from_numpy(trimmed.kept_K[ids])[None]).logits[0][:, trimmed.kept_K]
        ours = after(input_ids=torch.tensor([ids])).logits[0]
    assert torch.allclose(ours, theirs, atol=1e-5)
