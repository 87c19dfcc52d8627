"""`breakeven experts retrain`: some experts of a model trained on, every other weight as it was, and what that moved.

An expert that lags, or that a language needs and has not, is trained on the text it should serve, with its row of the
router. The rest of the model is the source's bit for bit, and that is checked on the files. What it gained and what the
others lost is told by language, on blocks of both texts that trained nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from breakeven.engines.inside.client import OnStep
from breakeven.errors import BreakevenError, NotSupportedError, UserError
from breakeven.lab.bridge.bridge import to_gguf
from breakeven.lab.bridge.directory_words import BESIDE_WEIGHTS, end_tokens, tokenizer_of
from breakeven.lab.bridge.weights import Checkpoint, StoredRows
from breakeven.lab.corpus import ALL, Block, blocks_of, read_documents
from breakeven.lab.export import checks_between
from breakeven.lab.facts import facts_of, free_memory, sha256_of
from breakeven.lab.lockstep import kind_of_model
from breakeven.lab.proof import prove, sweep
from breakeven.lab.training.texts import Ids, Split, apart_from_each_other, rows_of, split
from breakeven.lab.training.work import (
    Recipe,
    Trained,
    batch_that_trains,
    directory_of,
    left_out,
    run_job,
    training_flops,
    training_of,
    work_beside,
    write_whole,
)
from breakeven.lab.usage.watch import loads_of
from breakeven.model.arithmetic import params_by_group, total_params
from breakeven.model.readers.hf import CONFIG, read_hf, read_json
from breakeven.model.tensors import TensorGroup
from breakeven.results.lab import Experts, LabCheck, Proof

BALANCES = ("aux", "bias")
Only = Sequence[tuple[int | None, int]]
"""Experts, each with its layer; None: in every layer that routes."""
_ROUTES = re.compile(r"(?:^|\.)(?:gate|router|moe_statics)\.|correction_bias$|expert_bias$")
_IN_STACK = re.compile(r"(?<!shared_)experts\.")
_LAYER, _EXPERT = re.compile(r"\.layers\.(\d+)\."), re.compile(r"(?<!shared_)experts\.(\d+)\.")


class RetrainJob(msgspec.Struct, frozen=True, kw_only=True):
    """What the child process does: `only` of `directory`'s experts, on `rows`, and the weights to `made`."""

    directory: str
    made: str
    folder: str
    rows: str
    only: list[tuple[int | None, int]]
    recipe: Recipe
    balance: str | None
    dtype: str


class Retrained(msgspec.Struct, frozen=True, kw_only=True):
    """What it did: layer for layer the experts that trained, and how many weights that are."""

    trained: Trained
    layers: list[int]
    chosen: list[list[int]]
    weights: int
    batch: int


@dataclass(frozen=True, slots=True)
class RetrainOptions:
    """How it is trained. One of `seconds` and `steps`; `tokens` a row, `batch` rows a step."""

    seconds: float | None = None
    steps: int | None = None
    balance: str | None = None
    seed: int = 0
    batch: int = 8
    rate: float = 3e-4
    tokens: int = 256
    threads: int | None = None


def retrain(
    model: Path,
    only: Only,
    text: Path,
    out: Path,
    *,
    words: Sequence[str],
    options: RetrainOptions,
    replay: Path | None = None,
    encoding: str | None = None,
    on_step: OnStep = lambda what, share: None,
) -> Proof:
    """Train the experts `only` of a GGUF or a directory on a text, into a directory at `out`, beside its proof.

    `replay`: text of what must not be lost; as much of it is read as of `text`, and it is judged too. `words`: the
    command's, without steps and batch. Raises UserError for what cannot be trained so, BreakevenError naming the check
    that failed or where nothing got better: then nothing is left.
    """
    _check(model, only, out, options)
    texts, kept = split(_blocks(text, encoding)), None
    if replay is not None:
        texts, kept = apart_from_each_other([texts, split(_beside(texts, _blocks(replay, encoding)))])
    sweep(out.parent)
    made = out.with_name(f".{out.name}.{os.getpid()}.made")
    gguf, again = (made.with_name(f".{out.name}.{os.getpid()}.{word}") for word in ("carried", "again"))
    asked = {
        "the model": sha256_of(model),
        "--only": list(only),
        "--text": _digest(texts),
        "--replay": None if kept is None else _digest(kept),
        "--for": options.seconds,
        **{f"--{name}": getattr(options, name) for name in ("steps", "balance", "seed", "batch", "rate", "tokens")},
    }
    proof = None
    try:
        with work_beside(out, asked) as folder:
            directory, notes = directory_of(model, folder / "source", on_step)
            done = _trained(directory, only, texts, kept, folder, made, options, on_step)
            if done.trained.best_step:
                parts = [each for each in (texts, kept) if each is not None]
                judged = [document for each in parts for document in each.judged()]
                notes += [note for each in parts for note in each.notes()]
                _finish(directory, made)
                chosen = dict(zip(done.layers, done.chosen, strict=True))
                checks = [untouched(directory, made, chosen)]
                served, said = _served(made, gguf, again, on_step) if checks[0].passed else ([], [])
                before, after = (
                    loads_of(each, judged, threads=options.threads, on_step=on_step) for each in (directory, made)
                )
                flops = training_flops(read_hf(str(directory)), done.trained.tokens, options.tokens)
                proof = prove(
                    "experts retrain",
                    shlex.join([*words, "--steps", str(done.trained.steps), "--batch", str(done.batch)]),
                    model,
                    made,
                    out,
                    format=facts_of(made).format,
                    text=judged,
                    checks=[*checks, *served],
                    experts=before,
                    experts_after=msgspec.structs.replace(
                        after, retrained=[list(chosen.get(each.layer, ())) for each in after.layers]
                    ),
                    training=training_of(done.trained, options.seed, flops),
                    caveats=[*notes, *said, *_unreached(after, chosen)],
                    threads=options.threads,
                    on_step=on_step,
                )
    finally:
        shutil.rmtree(made, ignore_errors=True)
        gguf.unlink(missing_ok=True)
    if proof is None:
        raise BreakevenError(
            f"nothing was kept: no checkpoint of {done.trained.steps} steps predicts the text better than {model.name} "
            "does; give another --rate, more text, or other experts"
        )
    return proof


def _check(model: Path, only: Only, out: Path, options: RetrainOptions) -> None:
    """Raise UserError for what can be refused before anything is read."""
    kind_of_model(model)
    facts = facts_of(model)
    count = facts.n_experts
    if not count:
        raise UserError(f"{model.name} is dense, it has no experts; `breakeven tune` trains it on a text")
    if not only:
        raise UserError("--only: give the experts to train, such as 3,7, or 1:3 for expert 3 of layer 1")
    over = next((expert for _, expert in only if not 0 <= expert < count), None)
    if over is not None:
        raise UserError(f"--only {over}: {model.name} has experts 0 to {count - 1}")
    if options.balance not in (None, *BALANCES):
        raise UserError(f"--balance {options.balance}: give one of {', '.join(BALANCES)}")
    if options.tokens > facts.n_positions > 0:
        raise UserError(f"--tokens {options.tokens}: the model's context is {facts.n_positions}; give no more")
    if out.exists():
        raise UserError(f"{out} exists; choose another place with --out, or remove it")


def _blocks(path: Path, encoding: str | None) -> list[Block]:
    """A text's blocks; files that lie in one folder alone are of the language that it is named after."""
    name = path.resolve().name if path.is_dir() else ALL
    blocks = blocks_of(read_documents(path, encoding))
    return [replace(each, language=name) if each.language == ALL else each for each in blocks]


def _beside(texts: Split, blocks: Sequence[Block]) -> list[Block]:
    """Blocks of the replay; a language of the text gets another name, by which losses and loads are told apart."""
    taken = {block.language for block in texts.train}
    names = {each: "replay" if each == ALL else f"{each}/replay" for each in taken}
    return [replace(block, language=names.get(block.language, block.language)) for block in blocks]


def _digest(texts: Split) -> str:
    parts = [[b.language, b.domain, b.document, b.text] for b in (*texts.train, *texts.choose, *texts.judge)]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _trained(
    directory: Path,
    only: Only,
    texts: Split,
    kept: Split | None,
    folder: Path,
    made: Path,
    options: RetrainOptions,
    on_step: OnStep,
) -> Retrained:
    rows = _rows(directory, texts, kept, options.tokens)
    write_whole(folder / "rows.npz", _packed(rows))
    # A run that goes on must read the batches it would have, whatever else takes memory now.
    batch = folder / "batch.json"
    if not batch.is_file():
        write_whole(batch, str(_batch(directory, options)).encode())
    dtypes = {tensor.dtype for tensor in Checkpoint(directory).tensors.values()}
    job = RetrainJob(
        directory=str(directory),
        made=str(made),
        folder=str(folder / "run"),
        rows=str(folder / "rows.npz"),
        only=list(only),
        recipe=Recipe(
            seed=options.seed,
            rate=options.rate,
            batch=int(batch.read_bytes()),
            seconds=options.seconds,
            steps=options.steps,
        ),
        balance=options.balance,
        dtype=dtypes.pop() if len(dtypes) == 1 else "F32",
    )
    return run_job("retrain_job", job, Retrained, threads=options.threads, on_step=on_step)


def _rows(directory: Path, texts: Split, kept: Split | None, tokens: int) -> dict[str, Ids]:
    """Rows that train, of both texts as many, and those that choose, of each apart."""
    tokenizer = tokenizer_of(directory)
    end = next(iter(end_tokens(directory)), None)

    def encoded(blocks: Sequence[Block]) -> Ids:
        return rows_of(blocks, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, tokens, end)

    rows = {"train": encoded(texts.train), "choose": encoded(texts.choose)}
    if kept is not None:
        more = encoded(kept.train)
        # Evenly over its languages and documents.
        places = np.linspace(0, len(more) - 1, min(len(more), len(rows["train"]))).round().astype(np.int64)
        rows |= {"train": np.concatenate([rows["train"], more[places]]), "replay": encoded(kept.choose)}
    return rows


def _packed(rows: Mapping[str, Ids]) -> bytes:
    held = io.BytesIO()
    np.savez(held, allow_pickle=False, **rows)
    return held.getvalue()


def _batch(directory: Path, options: RetrainOptions) -> int:
    """The batch that fits. Gradients are kept of whole stacks of experts, also of those that stay."""
    spec = read_hf(str(directory))
    groups = params_by_group(spec)
    return batch_that_trains(
        total_params(spec),
        groups.get(TensorGroup.ROUTED_EXPERTS, 0) + groups.get(TensorGroup.ROUTER, 0),
        spec.hidden,
        len(spec.layers),
        spec.vocab,
        options.tokens,
        options.batch,
        free_bytes=free_memory(),
    )


def _finish(source: Path, made: Path) -> None:
    """What lies beside the weights: the source's tokenizer and configuration, in the type that was written."""
    for name in BESIDE_WEIGHTS:
        if (source / name).is_file():
            shutil.copyfile(source / name, made / name)
    config = dict(read_json(source / CONFIG))
    stored = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[facts_of(made).format]
    config |= {key: stored for key in ("torch_dtype", "dtype") if key in config or key == "torch_dtype"}
    rope = config.get("rope_parameters")
    if isinstance(rope, Mapping) and "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])  # where engines other than transformers 5 look for it
    (made / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def untouched(source: Path, made: Path, chosen: Mapping[int, Sequence[int]]) -> LabCheck:
    """Whether every weight but those of the `chosen` experts of each layer, and their rows of its router, is as it was.

    Told from the files alone, by their names and shapes.
    """
    count = facts_of(source).n_experts
    before, after = Checkpoint(source).tensors, Checkpoint(made).tensors
    same, moved, wrong = 0, 0, list[str]()
    for name, new in after.items():
        old = before.get(name)
        if old is None or old.shape != new.shape:
            wrong.append(name)
            continue
        axis, free = _may_move(name, new.shape, chosen, count)
        moved += bool(free) and not _equal(old, new, None, [])
        if axis is not None and len(free) == new.shape[axis]:
            continue
        if not free:
            same += 1
        wrong += [] if _equal(old, new, axis, free) else [name]
    experts = ", ".join(map(str, sorted({expert for each in chosen.values() for expert in each})))
    if wrong:
        detail = f"{wrong[0]} is another and should not be"
    elif not moved:
        detail = f"so are the experts {experts}: what they learned was lost in rounding; give a higher --rate"
    else:
        detail = (
            f"{same} tensors bit for bit, and every other expert and its row of the router; trained were the experts "
            f"{experts} of {len(chosen)} layers"
        )
    detail = "; ".join([detail, *left_out(before, after)])
    return LabCheck(name="all else as it was", engine="breakeven", passed=not wrong and moved > 0, detail=detail)


def _may_move(
    name: str, shape: tuple[int, ...], chosen: Mapping[int, Sequence[int]], count: int
) -> tuple[int | None, list[int]]:
    """The axis along which a tensor has its experts, None for one that has none, and which of them may have moved."""
    layer = _LAYER.search(name)
    mine = chosen.get(int(layer[1]), ()) if layer else ()
    if (alone := _EXPERT.search(name)) is not None:
        return (0, list(range(shape[0]))) if int(alone[1]) in mine else (None, [])
    if not mine or not (_IN_STACK.search(name) or _ROUTES.search(name)) or count not in shape[:2]:
        return None, []
    return shape.index(count), list(mine)


def _equal(old: StoredRows, new: StoredRows, axis: int | None, free: Sequence[int]) -> bool:
    if not free and old.dtype == new.dtype:
        return bool(np.array_equal(old.data, new.data))
    values = [each.take(np.arange(each.shape[0])).reshape(each.shape) for each in (old, new)]
    if axis is not None and free:
        values = [np.delete(each, free, axis) for each in values]
    return values[0].tobytes() == values[1].tobytes()


def _served(made: Path, gguf: Path, again: Path, on_step: OnStep) -> tuple[list[LabCheck], list[str]]:
    """That llama.cpp, given it as a GGUF, predicts what transformers does; a sentence where it cannot be given it."""
    on_step("as a GGUF, to compare engines", 0.0)
    try:
        done = to_gguf(made, gguf, dtype="f32")
    except NotSupportedError as error:
        return [], [f"not compared in llama.cpp: {error}"]
    return checks_between(gguf, made, again, of_gguf=False, dtype=done.dtype, on_step=on_step)


def _unreached(after: Experts, chosen: Mapping[int, Sequence[int]]) -> list[str]:
    """Experts that were trained and that no token of the text reaches all the same."""
    dead = [
        f"{each.layer}:{expert}"
        for each in after.layers
        for expert in each.dead
        if expert in chosen.get(each.layer, ())
    ]
    if not dead:
        return []
    return [
        f"no token of what judges reaches {len(dead)} of the experts that trained (layer:expert {', '.join(dead[:8])});"
        " --balance aux or bias makes their router choose them"
    ]
