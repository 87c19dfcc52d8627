"""The recipe of `tune` for a trainer that needs CUDA: axolotl's configuration, and the text that it may read.

What judges is written apart, so that the adapter which comes back is proven (`tune --adapter`) on what it never read.
The program is not run here: its keys are those of its own schema, and the proof says what came of it. (unsloth's
configuration names modules alone, and so no stacked experts.)
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.bridge.weights import Checkpoint
from breakeven.lab.corpus import Document, blocks_of
from breakeven.lab.facts import facts_of
from breakeven.lab.lockstep import kind_of_model
from breakeven.lab.proof import sweep
from breakeven.lab.training.chat import Conversation, as_blocks
from breakeven.lab.training.texts import Split, split
from breakeven.lab.training.tune import check_precision
from breakeven.lab.training.tune_proof import KINDS_OF, kind_of
from breakeven.lab.training.work import Recipe

CONFIGURATION, TRAIN, JUDGE, ADAPTER = "axolotl.yaml", "train.jsonl", "judge", "adapter"
_STACKS = ["experts.gate_up_proj", "experts.down_proj"]
"""Ends of the names by which transformers 5 keeps a layer's experts."""


def write_for_axolotl(
    model: Path,
    out: Path,
    text: Sequence[Document] | Sequence[Conversation],
    *,
    adapt: str,
    rank: int,
    recipe: Recipe,
    tokens: int,
) -> list[str]:
    """Write the configuration, what it may read and what judges into the directory `out`; the commands, in turn.

    `recipe` in steps. Raises UserError for a model that is no directory, experts by number and a text too short,
    NotSupportedError for experts of a dense model.
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another place with --out, or remove it")
    if kind_of_model(model) != "directory":
        raise UserError(f"{model.name}: axolotl reads directories; make one with breakeven export --to hf")
    check_precision(model)
    if tokens > (positions := facts_of(model).n_positions) > 0:
        raise UserError(f"--tokens {tokens}: the model's context is {positions}; give no more")
    if adapt not in KINDS_OF:
        raise UserError(f"--adapt {adapt}: axolotl is told no single experts; give all, attention or experts")
    modules, stacks = _named(model, adapt)
    if adapt == "experts" and not stacks:
        raise NotSupportedError(f"{model.name} is dense, it has no experts to adapt; give --adapt all or attention")
    conversations = [each for each in text if isinstance(each, Conversation)]
    blocks = as_blocks(conversations) if conversations else blocks_of(d for d in text if isinstance(d, Document))
    parts = split(blocks)
    assert recipe.steps is not None
    kind: dict[str, object] = {"type": "completion", "field": "text"}
    if conversations:
        kind = {"type": "chat_template", "field_messages": "messages", "roles_to_train": ["assistant"]}
    content = {
        "base_model": str(model),
        "datasets": [{"path": str(out / TRAIN), "ds_type": "json", **kind}],
        "val_set_size": 0,
        "sequence_len": tokens,
        "sample_packing": False,
        "adapter": "lora",
        "lora_r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        **({"lora_target_modules": modules} if modules else {}),
        **({"lora_target_parameters": stacks} if stacks else {}),
        "micro_batch_size": recipe.batch,
        "gradient_accumulation_steps": 1,
        "max_steps": recipe.steps,
        "optimizer": "adamw_torch",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.clip,
        "learning_rate": recipe.rate,
        "lr_scheduler": "warmup_stable_decay",
        "lr_scheduler_kwargs": {
            "num_decay_steps": max(1, round(recipe.decay * recipe.steps)),
            "decay_type": "linear",
        },
        "warmup_steps": max(1, round(recipe.warmup * recipe.steps)),
        "seed": recipe.seed,
        "bf16": "auto",
        "output_dir": str(out / ADAPTER),
    }
    sweep(out.parent)
    made = out.with_name(f".{out.name}.{os.getpid()}.made")
    try:
        made.mkdir(parents=True)
        (made / CONFIGURATION).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")
        _write_text(parts, conversations, made)
        made.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; free some space, or choose another place") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    proven = ["breakeven", "tune", str(model), "--adapter", str(out / ADAPTER), "--text", str(out / JUDGE)]
    proven += ["--tokens", str(tokens)]
    return [shlex.join(["axolotl", "train", str(out / CONFIGURATION)]), f"{shlex.join(proven)} --out DIR"]


def _named(model: Path, adapt: str) -> tuple[list[str], list[str]]:
    """Ends of the names of what is adapted, in transformers: modules, and stacks of experts."""
    kinds, experts = {*KINDS_OF[adapt]}, facts_of(model).n_experts > 0
    if experts:
        # PEFT takes matrices of dense feed-forwards and shared experts beside experts for the experts' own.
        kinds &= {"attention", "experts"}
    found = {
        name.removesuffix(".weight").rpartition(".")[2]
        for name, tensor in Checkpoint(model).tensors.items()
        if kind_of(name, len(tensor.shape)) in kinds - {"experts"}
    }
    return sorted(found), _STACKS if experts and "experts" in kinds else []


def _write_text(parts: Split, conversations: Sequence[Conversation], folder: Path) -> None:
    lines = [
        {"messages": list(conversations[int(block.document)].messages)} if conversations else {"text": block.text}
        for block in parts.train
    ]
    (folder / TRAIN).write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines), "utf-8")
    for number, block in enumerate(parts.judge):
        place = folder / JUDGE / block.language
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03d}.txt").write_text(block.text, "utf-8")
