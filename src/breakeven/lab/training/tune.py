"""`breakeven tune`: adapters trained or brought along, merged, and proven to be what an engine serves.

A child process with PEFT attaches, trains and merges (`tune_job`). What it leaves is then held against the adapter it
came from, the base it must not be, and llama.cpp: of an adapter that was never attached, merged as zeros or packed in
another order, engines say nothing.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from importlib.util import find_spec
from os import getpid
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from breakeven.engines.inside.client import OnStep
from breakeven.engines.synthesis.write import check_room
from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.bridge.directory_words import BESIDE_WEIGHTS, end_tokens, tokenizer_of
from breakeven.lab.bridge.weights import PLACE
from breakeven.lab.corpus import Document, blocks_of, check_enough, sample
from breakeven.lab.facts import FileFacts, facts_of, free_memory, sha256_of
from breakeven.lab.lockstep import kind_of_model
from breakeven.lab.proof import prove, sweep
from breakeven.lab.training.chat import ChatWords, Conversation, as_blocks, rows_of_chat
from breakeven.lab.training.texts import Ids, Split, rows_of, split
from breakeven.lab.training.tune_proof import (
    KINDS_OF,
    TuneDone,
    TuneJob,
    TuneOptions,
    answers_of,
    changed_of,
    doubts_of,
    served_of,
    told_of,
)
from breakeven.lab.training.work import (
    Recipe,
    batch_that_trains,
    directory_of,
    run_job,
    training_flops,
    training_of,
    work_beside,
    write_whole,
)
from breakeven.model.readers.hf import CONFIG, read_hf, read_json, safetensors_rows
from breakeven.results.lab import Proof

ADAPTER, ADAPTER_WEIGHTS = "adapter", "adapter_model.safetensors"
"""The directory of the adapter within what was made, and its file."""
_ADAPTER_CONFIG = "adapter_config.json"
_BEGUN_ON_OTHERS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of an adapter (`init_lora_weights`) after which PEFT gives the base other weights."""
_IN_FOUR_BITS = (
    "trained beside a base of 4 bits (NF4, bitsandbytes), and put into the weights as they were before rounding"
)
_CHOOSE_ROWS = 8
_OVER_FOUR_BITS = 4
"""Times the memory that single precision takes of what four bits do; embedding and head stay as they are."""
_PROBE_TOKENS, _PROBE_BYTES = 64, 128_000_000


def tune(
    model: Path,
    out: Path,
    text: Sequence[Document] | Sequence[Conversation],
    options: TuneOptions,
    *,
    words: Sequence[str],
    on_step: OnStep = lambda what, share: None,
) -> Proof:
    """Write `model` tuned on `text`, or with an adapter merged, as the directory `out`, its proof in it.

    `words`: the command without its steps and batch. `text` may be empty with an adapter: then nothing is told of it.
    Raises UserError for what cannot be tuned so, NotSupportedError where this machine lacks something, BreakevenError
    naming the check that failed. What was stopped goes on when it is asked again.
    """
    facts = _check(model, out, options)
    sweep(out.parent)
    conversations = [each for each in text if isinstance(each, Conversation)]
    documents = [each for each in text if isinstance(each, Document)]
    parts = _parts(documents, conversations, trains=options.adapter is None)
    made = out.with_name(f".{out.name}.{getpid()}.made")
    with work_beside(out, _asked(model, facts, text, options)) as work:
        served = work / "served.gguf"
        try:
            base, notes = directory_of(model, work / "base", on_step)
            recipe = _recipe(base, work, options)
            rows = _rows(base, work, parts, conversations, options.tokens)
            if conversations:
                notes = [*notes, *_cut_off(rows, parts, options.tokens)]
            job = TuneJob(
                base=str(base),
                base_name=model.name.removesuffix(".gguf"),
                folder=str(work),
                made=str(made),
                rows=str(rows),
                adapt=options.adapt,
                experts=list(options.experts),
                router=options.router,
                rank=options.rank,
                recipe=recipe,
                quantized=options.quantized,
                adapter=None if options.adapter is None else str(options.adapter),
            )
            done = run_job("tune_job", job, TuneDone, threads=options.threads, on_step=on_step)
            _finish(base, made)
            changed, said = changed_of(base, made, done, options.experts)
            said += [*doubts_of(done), *([_IN_FOUR_BITS] if options.quantized else [])]
            checks = [*told_of(done, options.experts), changed, *answers_of(done.merged)]
            if all(check.passed for check in checks):
                with np.load(rows) as arrays:
                    more, why = served_of(made, served, arrays["probe"], on_step)
                checks += more
                said += why
            trained = done.trained
            command, training = [*words], None
            if trained is not None and recipe is not None:
                command += ["--steps", str(trained.steps), "--batch", str(recipe.batch)]
                training = training_of(trained, recipe.seed, _flops(base, facts, trained.tokens, options.tokens))
            return prove(
                "tune",
                shlex.join(command),
                model,
                made,
                out,
                format="F32",
                text=parts.judged() if parts.judge else None,
                checks=checks,
                training=training,
                caveats=[*notes, *parts.notes(), *said],
                threads=options.threads,
                on_step=on_step,
            )
        finally:
            shutil.rmtree(made, ignore_errors=True)
            with suppress(OSError):
                served.unlink(missing_ok=True)


def _check(model: Path, out: Path, options: TuneOptions) -> FileFacts:
    """Whatever can be refused before anything is loaded."""
    if out.exists():
        raise UserError(f"{out} exists; choose another place with --out, or remove it")
    if kind_of_model(model) == "directory":
        check_precision(model)
    facts = facts_of(model)
    if options.adapt not in KINDS_OF:
        raise UserError(f"--adapt {options.adapt}: give all, attention, experts, or experts:3,7")
    if options.adapt == "experts" and options.adapter is None and not facts.n_experts:
        raise NotSupportedError(f"{model.name} is dense, it has no experts to adapt; give --adapt all or attention")
    if options.quantized:
        _check_quantized(model, facts)
    if options.router and not facts.n_experts:
        raise NotSupportedError(f"{model.name} is dense, it has no router to train; leave --router out")
    over = [number for number in options.experts if not 0 <= number < facts.n_experts]
    if over:
        raise UserError(
            f"--adapt experts:{over[0]}: {model.name} has {facts.n_experts} experts; give numbers from 0 to "
            f"{facts.n_experts - 1}"
        )
    if options.tokens > facts.n_positions > 0:
        raise UserError(f"--tokens {options.tokens}: the model's context is {facts.n_positions}; give no more")
    if options.adapter is not None:
        _check_adapter(options.adapter)
    weights = round(facts.bytes * 8 / facts.bits_per_weight)
    if find_spec("peft") is None:
        raise NotSupportedError(
            "tune needs peft, not installed here: install the extra `lab` (1.5 GB; how: docs/lab.md)"
        )
    # As a directory first where it is a file, what is made, and the same for llama.cpp.
    check_room(out, 4 * weights * (2 if model.is_dir() else 3) + (64 << 20), PLACE)
    return facts


def _check_quantized(model: Path, facts: FileFacts) -> None:
    if facts.n_experts:
        raise NotSupportedError(
            f"--quantized: {model.name} has experts, and bitsandbytes passes over stacked experts: they would be "
            "loaded in 16 bits all the same; leave --quantized out"
        )
    if find_spec("bitsandbytes") is None:
        raise NotSupportedError(
            "--quantized needs bitsandbytes, not installed here: pip install bitsandbytes (docs/tune.md), or leave "
            "it out"
        )


def check_precision(model: Path) -> None:
    """Raises UserError for a directory whose weights are quantized."""
    config = _flat(read_json(model / CONFIG))
    packed = config.get("quantization_config")
    if packed is None:
        return
    method = packed.get("quant_method", "packed") if isinstance(packed, dict) else "packed"
    if any(key.endswith(("num_experts", "num_local_experts", "n_routed_experts")) for key in config):
        raise NotSupportedError(
            f"{model.name} is quantized ({method}) and has experts: bitsandbytes passes over stacked experts, so QLoRA "
            "would load them in 16 bits all the same; give the model before it was quantized, or its GGUF"
        )
    raise NotSupportedError(
        f"{model.name} is quantized ({method}): merged into rounded weights an adapter is rounded away; give the model "
        "before it was quantized, and what QLoRA trained on it with --adapter"
    )


def _check_adapter(folder: Path) -> None:
    """Raise UserError for a directory that is no whole adapter."""
    if not (folder / _ADAPTER_CONFIG).is_file():
        raise UserError(f"{folder}: holds no {_ADAPTER_CONFIG}; give the directory that PEFT saved an adapter in")
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder}: holds no {ADAPTER_WEIGHTS}; fetch it, or convert the adapter's .bin to it")
    if not list(safetensors_rows(path)):
        raise UserError(f"{path}: holds no tensors; save the adapter again")
    begun = str(read_json(folder / _ADAPTER_CONFIG).get("init_lora_weights")).lower()
    if begun.startswith(_BEGUN_ON_OTHERS):
        raise NotSupportedError(
            f"{folder}: begun as {begun}, which changes the base too, so nothing can be held against "
            "that; save it as plain LoRA (PEFT: path_initial_model_for_weight_conversion), or merge it where it "
            "was trained"
        )


def _parts(documents: Sequence[Document], conversations: Sequence[Conversation], *, trains: bool) -> Split:
    blocks = as_blocks(conversations) if conversations else blocks_of(documents)
    if trains:
        if not blocks:
            raise UserError("nothing to tune on; give a text (--text) or conversations (--chat)")
        return split(blocks)
    if blocks:
        check_enough(blocks)
    return Split([], [], blocks)


def _asked(
    model: Path, facts: FileFacts, text: Sequence[Document] | Sequence[Conversation], options: TuneOptions
) -> dict[str, object]:
    digest = sha256(repr(list(text)).encode()).hexdigest()
    own = {key: getattr(options, key) for key in TuneOptions.__slots__ if key not in ("threads", "adapter")}
    adapter = None if options.adapter is None else str(options.adapter)
    return {"model": sha256_of(facts.path), "text": digest, **own, "adapter": adapter}


def _recipe(base: Path, work: Path, options: TuneOptions) -> Recipe | None:
    facts, config = facts_of(base), _flat(read_json(base / CONFIG))
    # What is merged is loaded again beside itself, and then beside its base.
    if 2 * facts.in_memory_bytes > free_memory():
        raise UserError(
            f"merging needs {2 * facts.in_memory_bytes / 1e9:.1f} GB in memory, and {free_memory() / 1e9:.1f} GB "
            "are free; end other programs, or take a smaller model"
        )
    if options.adapter is not None:
        return None
    # A run that goes on must read the batches it would have, whatever else takes memory now.
    kept = work / "batch.json"
    if not kept.is_file():
        weights = facts.in_memory_bytes // 4
        # Stacked experts are added up with their adapters, so that they stand in memory twice.
        stacked = facts.n_experts > 0 and options.adapt != "attention"
        batch = batch_that_trains(
            weights * (2 if stacked else 1) // (_OVER_FOUR_BITS if options.quantized else 1),
            weights // 50,
            _number(config, "hidden_size"),
            _number(config, "num_hidden_layers"),
            facts.n_vocab,
            options.tokens,
            options.batch,
            free_bytes=free_memory(),
        )
        write_whole(kept, str(batch).encode())
    return Recipe(
        seed=options.seed,
        rate=options.rate,
        batch=int(kept.read_bytes()),
        seconds=options.seconds,
        steps=options.steps,
        weight_decay=0.0,
        checks=4,
    )


def _flat(config: Mapping[str, object]) -> dict[str, object]:
    inner = config.get("text_config")
    return {**config, **(inner if isinstance(inner, dict) else {})}


def _number(config: Mapping[str, object], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{CONFIG}: {key} is {value}, a whole number is needed; fetch it again")
    return value


def _rows(base: Path, work: Path, parts: Split, conversations: Sequence[Conversation], tokens: int) -> Path:
    """A file of what the child reads: rows to train on, to choose by, to compare on; of conversations, what counts."""
    tokenizer = tokenizer_of(base)
    ends = end_tokens(base)
    end = ends[0] if ends else None

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    arrays: dict[str, NDArray[Any]] = {"probe": _probe(encode, facts_of(base).n_vocab, tokens)}
    if conversations:
        words = ChatWords(base)
        for name, blocks in (("train", parts.train), ("choose", parts.choose), ("judge", parts.judge)):
            chosen = [conversations[int(block.document)] for block in blocks]
            if chosen:
                arrays[name], arrays[f"{name}_heed"] = rows_of_chat(chosen, words, tokens, end)
    elif parts.train:
        arrays["train"] = rows_of(parts.train, encode, tokens, end)
        arrays["choose"] = _spread(rows_of(parts.choose, encode, tokens, end))
    elif parts.judge:
        arrays["choose"] = _spread(rows_of(parts.judge, encode, tokens, end))
    # What packings are tried on, where nothing trains.
    arrays.setdefault("choose", arrays.get("judge", arrays["probe"])[:_CHOOSE_ROWS])
    path = work / "rows.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def _cut_off(rows: Path, parts: Split, tokens: int) -> list[str]:
    """What to say of conversations that have no row, because none of their answers begins within one."""
    blocks = {"train": parts.train, "choose": parts.choose, "judge": parts.judge}
    with np.load(rows) as arrays:
        lost = sum(len(each) - len(arrays[name]) for name, each in blocks.items() if each)
    of = sum(map(len, blocks.values()))
    told = f"{lost} of {of} conversations were left out, whose answers begin behind {tokens} tokens; give more --tokens"
    return [told] if lost else []


def _probe(encode: Any, n_vocab: int, tokens: int) -> Ids:
    """Beginnings of the sample, of one length: what merged, reloaded and served models are compared on."""
    coded = [encode(each.text) for each in sample()]
    most = max(8, _PROBE_BYTES // (4 * len(coded) * max(1, n_vocab)))
    length = min(_PROBE_TOKENS, most, tokens, *map(len, coded))
    return np.array([ids[:length] for ids in coded], np.int32)


def _spread(rows: Ids) -> Ids:
    """Some of many rows, evenly: what is read at every check must not take the time that trains."""
    kept: Ids = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _CHOOSE_ROWS)).astype(int))]
    return kept


def _finish(base: Path, made: Path) -> None:
    """Give what was merged its base's configuration and tokenizer; rotary keys in both spellings, for all engines."""
    config = dict(read_json(base / CONFIG))
    config.pop("dtype", None)
    config["torch_dtype"] = "float32"
    rotary = config.get("rope_parameters")
    if isinstance(rotary, dict) and "rope_theta" in rotary:
        config.setdefault("rope_theta", rotary["rope_theta"])
        if rotary.get("rope_type", "default") != "default" and config.get("rope_scaling") is None:
            config["rope_scaling"] = {key: value for key, value in rotary.items() if key != "rope_theta"}
    (made / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    for name in BESIDE_WEIGHTS:
        if (base / name).is_file():
            shutil.copyfile(base / name, made / name)


def _flops(base: Path, facts: FileFacts, tokens: int, row: int) -> float:
    """Operations, as if all weights had trained: those that are frozen need a third less."""
    try:
        return training_flops(read_hf(str(base)), tokens, row)
    except UserError:  # a family whose shapes are not known here
        return 6.0 * tokens * facts.bytes * 8 / facts.bits_per_weight
