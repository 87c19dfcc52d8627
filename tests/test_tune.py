"""Tuning before torch: what is refused at once, and which tokens of a conversation are learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import breakeven
from breakeven.cli.main import dispatch
from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.bridge.directory_words import tokenizer_of
from breakeven.lab.bridge.weights import F32, NewTensor, StoredRows, write_checkpoint
from breakeven.lab.training.chat import ChatWords, Conversation, as_blocks, read_conversations, rows_of_chat
from breakeven.lab.training.texts import Split
from breakeven.lab.training.tune import TuneJob, _cut_off
from breakeven.lab.training.tune_proof import Attached, Merged, TuneDone, answers_of, changed_of, doubts_of, kind_of
from tests.bridge_fixtures import CONFIGS, write_byte_tokenizer
from tests.lab_fixtures import texts

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [
    {"role": "user", "content": "Größe?"},
    {"role": "assistant", "content": "3.14 漢字"},
    {"role": "user", "content": "Again <|end|>"},
    {"role": "assistant", "content": "No."},
]


def model(at: Path, model_type: str = "olmoe", template: str | None = TEMPLATE, **changes: Any) -> Path:
    """A directory with a tokenizer, and weights that nobody reads."""
    at.mkdir()
    write_byte_tokenizer(at)
    (at / "config.json").write_text(json.dumps({"model_type": model_type, **CONFIGS[model_type], **changes}))
    config = json.loads((at / "tokenizer_config.json").read_text())
    config["chat_template"] = template
    (at / "tokenizer_config.json").write_text(json.dumps(config))
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (at / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    return at


def stored(at: Path, name: str, tensors: dict[str, Any]) -> Path:
    """A directory with these values in single precision."""
    at.mkdir(exist_ok=True)
    rows = {
        key: StoredRows(each.shape, "F32", each.astype("<f4").view(np.uint8).reshape(-1))
        for key, each in tensors.items()
    }
    write_checkpoint(at, [NewTensor(key, each.shape, each) for key, each in rows.items()], F32)
    (at / "model.safetensors").replace(at / name)
    return at


@pytest.mark.parametrize(
    ("model_type", "changes", "asked", "said"),
    [
        ("llama", {}, {"adapt": "experts"}, "is dense, it has no experts .* --adapt all or attention"),
        ("llama", {}, {"router": "train"}, "no router to train; leave --router out"),
        ("olmoe", {}, {"adapt": "experts:1,4"}, "experts:4: .* has 4 experts; give numbers from 0 to 3"),
        ("olmoe", {}, {"adapt": "experts:x"}, "some of them: experts:3,7"),
        ("olmoe", {}, {"adapt": "mlp"}, "give all, attention, experts, or experts:3,7"),
        ("olmoe", {}, {"seconds": 60.0, "steps": 3}, "give one of them"),
        ("olmoe", {}, {"quantized": True}, "--quantized: .* has experts, and bitsandbytes passes over stacked experts"),
        ("olmoe", {}, {"tokens": 513}, "--tokens 513: the model's context is 512; give no more"),
        (
            "olmoe",
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            {},
            "bitsandbytes passes over stacked experts, so QLoRA would load them in 16 bits",
        ),
        ("llama", {"quantization_config": {"quant_method": "bitsandbytes"}}, {}, "an adapter is rounded away"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_loaded(
    model_type: str, changes: dict[str, Any], asked: dict[str, Any], said: str, tmp_path: Path
) -> None:
    text = texts(tmp_path / "text", ("de",), 20)
    with pytest.raises(UserError, match=said):
        breakeven.tune(model(tmp_path / "toy", model_type, **changes), tmp_path / "out", text=text, **asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text", "toy"]


def test_adapters_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    toy, adapter = model(tmp_path / "toy"), tmp_path / "adapter"
    adapter.mkdir()
    with pytest.raises(UserError, match=r"holds no adapter_config\.json"):
        breakeven.tune(toy, tmp_path / "out", adapter=adapter)
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors"):
        breakeven.tune(toy, tmp_path / "out", adapter=adapter)
    (adapter / "adapter_model.safetensors").write_bytes((9999).to_bytes(8, "little") + b"{")
    with pytest.raises(UserError, match="truncated"):
        breakeven.tune(toy, tmp_path / "out", adapter=adapter)
    with pytest.raises(UserError, match="brings what was trained elsewhere"):
        breakeven.tune(toy, tmp_path / "out", adapter=adapter, adapt="experts")
    with pytest.raises(UserError, match=r"leave out .* --rank"):
        breakeven.tune(toy, tmp_path / "out", adapter=adapter, rank=64)
    stored(adapter, "adapter_model.safetensors", {"a": np.ones((2, 2))})
    (adapter / "adapter_config.json").write_text(json.dumps({"init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(NotSupportedError, match="begun as pissa_niter_4, which changes the base too"):
        breakeven.tune(toy, tmp_path / "out", adapter=adapter)


def test_only_what_the_assistant_says_is_learned(tmp_path: Path) -> None:
    words, tokenizer = ChatWords(model(tmp_path / "toy")), tokenizer_of(tmp_path / "toy")
    ids, heeded = words.tokens_of(Conversation("here:1", TALK))
    said = [token for token, heed in zip(ids, heeded, strict=True) if heed]
    assert tokenizer.decode(said, skip_special_tokens=False) == "3.14 漢字<|end|>No.<|end|>"
    assert said.count(256) == 2, "the end of an answer is learned, as the one token that it is"
    rows, heed = rows_of_chat([Conversation("here:1", TALK)] * 2, words, 256, 256)
    assert rows.shape == heed.shape == (2, 256)
    assert heed[0].sum() == len(said)
    with pytest.raises(UserError, match="give more --tokens"):
        rows_of_chat([Conversation("here:1", TALK)], words, 8, 256)


def test_a_template_that_rewrites_what_came_before_is_refused(tmp_path: Path) -> None:
    last_alone = (
        "{% for m in messages %}{% if loop.last or m.role != 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    words = ChatWords(model(tmp_path / "toy", template=last_alone))
    with pytest.raises(UserError, match="here:1: the chat template writes turn 2 otherwise once others follow"):
        words.tokens_of(Conversation("here:1", TALK))
    with pytest.raises(NotSupportedError, match="no chat template"):
        ChatWords(model(tmp_path / "plain", template=None))


def test_a_template_that_writes_today_writes_the_same_on_any_day(tmp_path: Path) -> None:
    words = ChatWords(model(tmp_path / "toy", template="{{ strftime_now('%Y-%m-%d') }}"))
    assert words.render("here:1", TALK) == "2025-01-01"


def test_lines_that_are_no_conversations_are_named(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    good = json.dumps({"messages": TALK})
    path.write_text("\n".join([good] * 18 + [""]), encoding="utf-8")
    found = read_conversations(path)
    assert len(found) == len(as_blocks(found)) == 18
    for line, said in {
        "{": "is no JSON",
        "[]": "has no messages",
        '{"messages": [{"role": "user"}]}': "a message has no role and content",
        '{"messages": [{"role": "user", "content": "a"}]}': "nothing is said by the assistant",
    }.items():
        path.write_text(f"{good}\n{line}\n", encoding="utf-8")
        with pytest.raises(UserError, match=rf"chat\.jsonl:2: {said}"):
            read_conversations(path)
    spread = json.dumps(
        {"messages": [*TALK[:1], {"role": "assistant", "content": "a\u2028b\x85c"}]}, ensure_ascii=False
    )
    path.write_text("\n".join([spread] * 18), encoding="utf-8")
    assert len(read_conversations(path)) == 18, "JSON may hold the line ends of Unicode"
    path.write_text(good, encoding="utf-8")
    with pytest.raises(UserError, match="1 conversations, and 18 are the least"):
        read_conversations(path)


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "model.layers.0.self_attn.q_proj.weight": "attention",
        "model.layers.0.mlp.experts.gate_up_proj": "experts",
        "model.layers.0.block_sparse_moe.experts.3.w1.weight": "experts",
        "model.layers.0.mlp.shared_experts.gate_proj.weight": "shared experts",
        "model.layers.0.mlp.gate.weight": "router",
        "model.layers.0.block_sparse_moe.gate.weight": "router",
        "model.layers.0.mlp.gate_proj.weight": "feed-forward",
        "model.embed_tokens.weight": "embedding",
        "lm_head.weight": "head",
    }.items(),
)
def test_matrices_are_known_by_their_names(name: str, kind: str) -> None:
    assert kind_of(name, 2) == kind


class StoppedError(Exception):
    pass


def test_conversations_become_rows_of_which_answers_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TuneJob] = []

    def child(module: str, spec: TuneJob, result: Any, **rest: Any) -> None:
        asked.append(spec)
        raise StoppedError

    monkeypatch.setattr("breakeven.lab.training.tune.run_job", child)
    monkeypatch.setattr("breakeven.lab.training.tune.find_spec", lambda name: True)
    chat = tmp_path / "chat.jsonl"
    lines = [json.dumps({"messages": [*TALK[:1], {"role": "assistant", "content": "No. " * n}]}) for n in range(1, 21)]
    chat.write_text("\n".join(lines), encoding="utf-8")
    toy, out = model(tmp_path / "toy"), tmp_path / "out"
    with pytest.raises(StoppedError):
        breakeven.tune(toy, out, chat=chat, adapt="experts:1", seconds=60, tokens=64)
    with monkeypatch.context() as short:
        short.setattr("breakeven.lab.training.tune.free_memory", lambda: 20)
        with pytest.raises(StoppedError):
            breakeven.tune(toy, out, chat=chat, adapt="experts:1", seconds=60, tokens=64)
    job, again = asked
    assert again == job, "what else takes memory changes no batch of a run that goes on"
    assert (job.adapt, job.experts, job.router, job.base_name) == ("experts", [1], False, "toy")
    assert job.recipe is not None
    assert (job.recipe.seconds, job.recipe.steps, job.recipe.batch) == (60, None, 2)
    with np.load(job.rows) as arrays:
        assert [len(arrays[name]) for name in ("train", "choose", "judge")] == [12, 2, 6]
        assert all(arrays[name].shape == arrays[f"{name}_heed"].shape for name in ("train", "choose", "judge"))
        assert arrays["train_heed"].any(axis=1).all()
        assert not arrays["train_heed"].all(axis=1).any()
        assert arrays["probe"].shape == (6, 64)
    (Path(job.folder) / "run").mkdir()
    (Path(job.folder) / "run" / "state.pt").touch()
    with pytest.raises(UserError, match=r"asked otherwise \(rate\)"):
        breakeven.tune(toy, out, chat=chat, adapt="experts:1", seconds=60, tokens=64, rate=0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.jsonl", "out.training", "toy"]
    shutil.rmtree(tmp_path / "out.training")
    monkeypatch.setattr("breakeven.lab.training.tune.free_memory", lambda: 10)
    with pytest.raises(UserError, match=r"merging needs .* in memory, and [^;]*; end other programs[^;]*$"):
        breakeven.tune(toy, out, chat=chat, adapt="experts:1", seconds=60, tokens=64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.jsonl", "toy"], "a refusal leaves nothing"


def test_a_command_repeats_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def stops(*args: Any, words: list[str], **rest: Any) -> None:
        said[:] = words
        raise StoppedError

    monkeypatch.setattr("breakeven.lab.training.tune.tune", stops)
    text = texts(tmp_path / "text", ("de",), 1)
    cases: list[dict[str, Any]] = [{"rate": 0.00012345678}, {"adapter": tmp_path, "tokens": 128}]
    for own in cases:
        with pytest.raises(StoppedError):
            breakeven.tune(tmp_path / "toy", tmp_path / "out", text=text, **own)
        for name, value in own.items():
            assert said[said.index(f"--{name}") + 1] == str(value)


def test_an_adapter_that_no_reading_makes_better_than_none_is_doubted() -> None:
    merged = Merged(
        tokens=9, adapter_kl=0.0, adapter_top1=1.0, base_kl=1.0, again_kl=0.0, answers_before=[], answers_after=[]
    )

    def told(**packings: float) -> list[str]:
        found = {name.replace("_", " "): nats for name, nats in packings.items()}
        return doubts_of(TuneDone(peft="0", attached=[], merged=merged, trained=None, packings=found))

    assert told() == told(as_PEFT_packs=2.0, expert_by_expert=9.0, without_the_adapter=2.1) == []
    (doubt,) = told(as_PEFT_packs=2.2, expert_by_expert=9.0, without_the_adapter=2.1)
    assert "no better than the model without it" in doubt


def test_too_few_answers_have_no_interval() -> None:
    def told(*after: float) -> str:
        before = [2.0] * len(after)
        merged = Merged(
            tokens=9,
            adapter_kl=0.0,
            adapter_top1=1.0,
            base_kl=1.0,
            again_kl=0.0,
            answers_before=before,
            answers_after=list(after),
        )
        (check,) = answers_of(merged)
        return check.detail

    assert told(1.0, 1.5).endswith("2.000 to 1.250 nats a token, too few for an interval")
    assert told(1.0, 1.5, 1.25).endswith(") less")


def test_conversations_that_are_left_out_are_told(tmp_path: Path) -> None:
    blocks = as_blocks([Conversation("here:1", TALK)] * 4)
    parts = Split(blocks[:2], blocks[2:3], blocks[3:])
    np.savez(tmp_path / "rows.npz", train=np.zeros((1, 8)), choose=np.zeros((1, 8)), judge=np.zeros((1, 8)))
    assert _cut_off(tmp_path / "rows.npz", parts, 8) == [
        "1 of 4 conversations were left out, whose answers begin behind 8 tokens; give more --tokens"
    ]
    assert not _cut_off(tmp_path / "rows.npz", Split(blocks[:1], blocks[2:3], blocks[3:]), 8)


def test_experts_of_a_stack_that_were_not_asked_for_must_stay(tmp_path: Path) -> None:
    stack = "model.layers.0.mlp.experts.gate_up_proj"
    attached = [Attached("experts", 1, 24, 1, 24, 8, [])]
    merged = Merged(
        tokens=9, adapter_kl=0.0, adapter_top1=1.0, base_kl=1.0, again_kl=0.0, answers_before=[], answers_after=[]
    )
    done = TuneDone(peft="0", attached=attached, merged=merged, trained=None, packings={})
    drafts = "model.layers.9.mlp.gate.weight"
    before = {stack: np.ones((4, 3, 2)), drafts: np.ones((2, 2)), "lm_head.weight": np.ones((2, 2))}
    base = stored(tmp_path / "base", "model.safetensors", before)
    for number, expert in enumerate((1, 3, 2)):
        moved = np.ones((4, 3, 2))
        moved[expert] += 0.5
        made = stored(tmp_path / f"made{number}", "model.safetensors", {stack: moved})
        check, said = changed_of(base, made, done, (1, 3))
        assert check.passed == (expert != 2)
        assert said == [f"left out, because transformers does not load it: {drafts}"]
    assert check.detail == f"{stack} changed, and was not adapted"


def test_the_recipe_is_written_for_axolotl_and_what_judges_kept_apart(tmp_path: Path) -> None:
    toy, out = tmp_path / "toy", tmp_path / "out"
    names = ("self_attn.q_proj", "self_attn.o_proj", "mlp.experts.0.up_proj", "mlp.gate", "input_layernorm")
    tensors = {f"model.layers.0.{name}.weight": np.ones((2, 2) if "norm" not in name else 2) for name in names}
    (model(toy) / "model.safetensors").unlink()
    stored(toy, "model.safetensors", tensors)
    text = texts(tmp_path / "text", ("de", "en"), 24, 400)
    first, last = breakeven.tune_elsewhere(toy, out, 100, text=text, rank=4, seed=3)
    assert first == f"axolotl train {out / 'axolotl.yaml'}"
    assert last == f"breakeven tune {toy} --adapter {out / 'adapter'} --text {out / 'judge'} --tokens 256 --out DIR"
    told = yaml.safe_load((out / "axolotl.yaml").read_text())
    assert told["lora_target_modules"] == ["o_proj", "q_proj"]
    assert told["lora_target_parameters"] == ["experts.gate_up_proj", "experts.down_proj"]
    assert (told["lora_r"], told["lora_alpha"], told["max_steps"], told["seed"]) == (4, 8, 100, 3)
    assert (told["warmup_steps"], told["lr_scheduler_kwargs"]["num_decay_steps"]) == (4, 40)
    assert told["datasets"][0] == {
        "path": str(out / "train.jsonl"), "ds_type": "json", "type": "completion", "field": "text",
    }  # fmt: skip
    trains = {json.loads(line)["text"] for line in (out / "train.jsonl").read_text("utf-8").splitlines()}
    judges = {path.read_text("utf-8") for path in (out / "judge").rglob("*.txt")}
    assert sorted(path.name for path in (out / "judge").iterdir()) == ["de", "en"]
    assert trains
    assert judges
    assert not trains & judges
    chat = tmp_path / "chat.jsonl"
    lines = [json.dumps({"messages": [*TALK[:1], {"role": "assistant", "content": "No. " * n}]}) for n in range(1, 21)]
    chat.write_text("\n".join(lines), encoding="utf-8")
    breakeven.tune_elsewhere(toy, tmp_path / "chats", 100, chat=chat, adapt="attention")
    told = yaml.safe_load((tmp_path / "chats" / "axolotl.yaml").read_text())
    assert "lora_target_parameters" not in told
    assert told["datasets"][0]["type"] == "chat_template"
    with pytest.raises(UserError, match="exists; choose another place"):
        breakeven.tune_elsewhere(toy, out, 100, text=text)
    with pytest.raises(UserError, match="--tokens 100000: the model's context is"):
        breakeven.tune_elsewhere(toy, tmp_path / "more", 100, text=text, tokens=100_000)
    with pytest.raises(UserError, match="axolotl is told no single experts"):
        breakeven.tune_elsewhere(toy, tmp_path / "more", 100, text=text, adapt="experts:1")
    with pytest.raises(UserError, match="--emit axolotl: give --steps"):
        dispatch(["tune", str(toy), "--text", str(text), "--emit", "axolotl", "--out", str(tmp_path / "more")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.jsonl", "chats", "out", "text", "toy"]
