"""One function in transformers' table sees every family's experts, and changes nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import watch_fixtures

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import breakeven  # noqa: E402
from breakeven.engines.inside.child import LoadFile  # noqa: E402
from breakeven.engines.inside.tally import TALLY, ExpertsWatched, LeaveExpert, WatchExperts  # noqa: E402
from breakeven.errors import UserError  # noqa: E402
from breakeven.lab.bridge.bridge import to_directory  # noqa: E402
from breakeven.lab.usage.torch_watch import TorchWatcher  # noqa: E402
from breakeven.lab.usage.watch import Watched  # noqa: E402

EXPERTS, USED = 6, 2
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": USED,
    "max_position_embeddings": 256,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "olmoe": {"intermediate_size": 24, "num_experts": EXPERTS, "num_key_value_heads": 4},
    "mixtral": {"intermediate_size": 24, "num_local_experts": EXPERTS},
    "qwen2_moe": {
        "intermediate_size": 24,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
        "num_experts": EXPERTS,
    },
    "qwen3_moe": {"intermediate_size": 24, "moe_intermediate_size": 24, "num_experts": EXPERTS, "head_dim": 8},
    "gpt_oss": {"intermediate_size": 24, "num_local_experts": EXPERTS, "head_dim": 8},
    "granitemoe": {"intermediate_size": 24, "num_local_experts": EXPERTS},
    "deepseek_v3": {
        "intermediate_size": 24,
        "moe_intermediate_size": 24,
        "n_routed_experts": EXPERTS,
        "num_key_value_heads": 4,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
}


def toy(family: str, folder: Path, **changes: Any) -> Path:
    """A model of two small layers with random weights, saved."""
    torch.manual_seed(5)
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            # Routers that choose, and biases that matter.
            if "inv_freq" not in name and "norm" not in name:
                tensor.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


def watcher_of(path: Path, folder: Path) -> TorchWatcher:
    load = LoadFile(model=str(path), threads=2, folder=str(folder), parent_pid=os.getpid())
    return TorchWatcher(load, lambda what, share: None)


@pytest.mark.parametrize("family", FAMILIES)
def test_watching_changes_no_bit_and_counts_what_the_router_chose(family: str, tmp_path: Path) -> None:
    path = toy(family, tmp_path / family)
    watcher = watcher_of(path, tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, experts_implementation="grouped_mm"
    ).eval()
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, 96, n).tolist() for n in (24, 12)]
    said = watcher.answer(WatchExperts(sequences=sequences, groups=[0, 1], weigh=True))
    layers = [1] if family == "deepseek_v3" else [0, 1]
    assert (said.layers, said.n_experts_per_token, said.equal_gates) == (layers, USED, False)
    assert watcher.loaded().n_experts == EXPERTS
    arrays = np.load(tmp_path / TALLY)
    for row, tokens in enumerate(sequences):
        calls = _calls(plain, tokens)
        with torch.inference_mode():
            logits = plain(torch.tensor([tokens]), use_cache=False).logits[0]
        watcher.hook.on = True
        np.testing.assert_array_equal(watcher.logits(tokens), logits.numpy())
        watcher.hook.on = False
        losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]), reduction="sum")
        assert watcher.answer(LeaveExpert(sequences=[tokens])).nats == pytest.approx([float(losses)], rel=1e-5)
        for at, (module, hidden, ids, gates) in enumerate(calls):
            np.testing.assert_array_equal(
                arrays["choices"][row, at], np.bincount(ids.numpy().ravel(), minlength=EXPERTS)
            )
            given = np.zeros(EXPERTS)
            through = transformers.integrations.moe.batched_mm_experts_forward
            for place in range(USED):
                chosen = ids[:, place : place + 1]
                with torch.inference_mode():
                    norms = through(module, hidden, chosen, torch.ones(len(ids), 1)).norm(dim=-1)
                share = gates[:, place] / gates.sum(dim=-1)
                given += np.bincount(chosen.numpy().ravel(), (share * norms).numpy(), EXPERTS)
            np.testing.assert_allclose(arrays["given"][row, at], given, rtol=1e-4)


def _calls(model: Any, tokens: list[int]) -> list[tuple[Any, ...]]:
    """What each layer's experts were called with."""
    calls: list[tuple[Any, ...]] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, given: calls.append((module, *given)))
        for module in model.modules()
        if hasattr(module, "_apply_gate")
    ]
    with torch.inference_mode():
        model(torch.tensor([tokens]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return calls


@pytest.mark.parametrize("family", FAMILIES)
def test_an_expert_left_out_costs_what_it_costs_in_a_model_without_it(family: str, tmp_path: Path) -> None:
    path = toy(family, tmp_path / family)
    watcher = watcher_of(path, tmp_path)
    tokens = np.random.default_rng(2).integers(0, 96, 40).tolist()
    whole = watcher.answer(LeaveExpert(sequences=[tokens])).nats
    left = watcher.answer(LeaveExpert(sequences=[tokens], layer=1, expert=2)).nats
    assert watcher.answer(LeaveExpert(sequences=[tokens])).nats == whole
    smaller = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    block = smaller.model.layers[1]
    keep = [expert for expert in range(EXPERTS) if expert != 2]
    for module in block.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None and tensor.ndim and tensor.shape[0] == EXPERTS:
                    kept = tensor.detach()[keep]
                    store[name] = torch.nn.Parameter(kept) if store is module._parameters else kept
        if hasattr(module, "num_experts"):
            module.num_experts = EXPERTS - 1
    with torch.inference_mode():
        logits = smaller(torch.tensor([tokens]), use_cache=False).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]), reduction="sum")
    assert left == pytest.approx([float(losses)], rel=1e-5)
    assert left[0] != pytest.approx(whole[0], rel=1e-4)


def test_a_directory_says_what_its_gguf_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A synthetic vocabulary has no merges that a tokenizer of transformers takes; ids are given here.
    monkeypatch.setattr("breakeven.lab.bridge.tokenizers.write_tokenizer", lambda source, out: [])
    gguf, directory = watch_fixtures.toy("mixtral", tmp_path / "toy.gguf"), tmp_path / "toy"
    to_directory(gguf, directory)
    sequences = [np.random.default_rng(4).integers(100, 900, 90).tolist()]
    tallies, nats = [], []
    for path in (gguf, directory):
        with Watched(path) as watched:
            assert (watched.loaded.n_experts, watched.loaded.n_vocab) == (8, 1024)
            said = watched.ask(WatchExperts(sequences=sequences, groups=[0], weigh=True), ExpertsWatched)
            assert (said.layers, said.n_experts_per_token) == ([0, 1], 2)
            tallies.append(dict(np.load(watched.folder / TALLY)))
            nats.append(
                [
                    watched.nats_without(sequences, 1, expert, silent=silent)[0]
                    for expert, silent in ((None, False), (2, False), (2, True))
                ]
            )
    # llama.cpp keeps keys and values in 16 bits, so a choice or two may fall otherwise.
    assert np.abs(tallies[0]["choices"] - tallies[1]["choices"]).sum() <= 4
    np.testing.assert_allclose(tallies[0]["given"].sum(axis=2), tallies[1]["given"].sum(axis=2), rtol=5e-3)
    assert nats[0] == pytest.approx(nats[1], rel=1e-3)
    assert len(set(nats[1])) == 3


def test_a_directory_is_scored_from_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("breakeven.lab.corpus.BLOCK_BYTES", 256)
    path = toy("qwen3_moe", tmp_path / "toy", vocab_size=256)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    (tmp_path / "text.txt").write_text("".join(f"The {n} lighthouses stood dark in autumn.\n" for n in range(60)))
    scores = breakeven.experts.score(path, tmp_path / "text.txt", budget_s=0.1)
    assert (scores.format, scores.architecture, scores.n_experts) == ("hf", "qwen3_moe", EXPERTS)
    assert [text.language for text in scores.languages] == ["all"]
    # A token a byte here.
    assert scores.languages[0].tokens == scores.languages[0].bytes
    assert sum(scores.layers[0].tokens) == scores.languages[0].tokens * USED
    assert scores.tried >= 1
    assert scores.switched_off is not None
    longest: list[int] = []
    monkeypatch.setattr("breakeven.lab.usage.watch.batch_that_fits", lambda *_, **__: 40)
    nats_without = Watched.nats_without

    def noted(self: Watched, sequences: list[list[int]], *rest: Any, **named: Any) -> list[float]:
        longest.append(max(map(len, sequences)))
        return nats_without(self, sequences, *rest, **named)

    monkeypatch.setattr(Watched, "nats_without", noted)
    breakeven.experts.score(path, tmp_path / "text.txt", budget_s=0.1)
    assert set(longest) == {40}
    rows: list[int] = []
    watcher = watcher_of(path, tmp_path)
    watcher.model.register_forward_hook(lambda module, given, said: rows.append(said.logits.shape[1]))
    watcher.answer(WatchExperts(sequences=[list(range(100))], groups=[0], weigh=True))
    assert set(rows) == {1}
    (path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        breakeven.experts.load(path, tmp_path / "text.txt")


def test_weights_that_are_missing_are_refused_not_made_up(tmp_path: Path) -> None:
    path = toy("mixtral", tmp_path / "mixtral")
    from safetensors.torch import load_file, save_file

    file = path / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(file).items() if "layers.1.self_attn.q_proj" not in name}
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match="q_proj"):
        watcher_of(path, tmp_path)
