"""`breakeven train`: models equal in one number, trained on the same tokens in the same order, and what each learned.

Everything that is drawn or counted before the first step is done here and written into the study's work folder: the
tokenizer, rows of tokens, shapes. `study_job` trains in a child process; `study_result` says what came of it. The first
seed's models are left as directories, and as files for llama.cpp where those can hold them, checked against each other.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from breakeven.engines.inside.client import OnStep
from breakeven.errors import BreakevenError, NotSupportedError, UserError
from breakeven.lab.bridge.bridge import to_gguf
from breakeven.lab.bridge.directory_words import end_tokens, pieces_of, tokenizer_of
from breakeven.lab.corpus import Document, blocks_of, read_documents
from breakeven.lab.export import checks_between
from breakeven.lab.facts import free_memory
from breakeven.lab.training.shapes import config_of, spec_of
from breakeven.lab.training.study_file import ShapedArm, TrainingStudy, read_study_file
from breakeven.lab.training.study_result import Left, StudyDone, StudyText, result_of
from breakeven.lab.training.texts import Ids, rows_of, split
from breakeven.lab.training.work import batch_that_trains, run_job, work_beside, write_whole
from breakeven.model.arithmetic import total_params
from breakeven.model.readers.hf import CONFIG
from breakeven.results import store
from breakeven.results.training import TrainStudy

PLAN, ROWS = "plan.json", "rows"
CHECKS = 4
"""How often a training reads the text that chooses."""
_END = "<|endoftext|>"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_BATCH = "batch.json"
_LEAST_CONTEXT = 2048
"""Positions of a model, whatever a row has, so that blocks of text which judge models fit."""


class ArmJob(msgspec.Struct, frozen=True, kw_only=True):
    """An arm for the process that trains. `folder` holds its config.json; `stream`: of its random numbers."""

    name: str
    folder: str
    total_params: int
    experts: int
    used: int
    routed_layers: int
    copy_of: int | None
    stream: int


class StudyJob(msgspec.Struct, frozen=True, kw_only=True):
    """All trainings of a study. Exactly one of `seconds` (for all together) and `steps` (of the reference)."""

    folder: str
    arms: list[ArmJob]
    reference: int
    seeds: list[int]
    rates: list[float]
    batch: int
    balance: float
    by_time: bool
    seconds: float | None
    steps: int | None


def train(
    path: Path,
    out: Path,
    *,
    words: Sequence[str],
    seconds: float | None = None,
    steps: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
    on_step: OnStep = lambda what, share: None,
) -> TrainStudy:
    """Do the study in the file `path` and leave its models and result.json in the directory `out`.

    `seconds` for all trainings together, or `steps` of each of the reference's. `words`: of the command, without the
    time. Raises UserError for a study that cannot be, NotSupportedError without torch.
    """
    began = time.monotonic()
    study = read_study_file(path, seed)
    if out.exists():
        raise UserError(f"{out} exists; choose another place with --out, or remove it")
    documents = read_documents(study.text, study.file.encoding)
    file = study.file
    asked = {
        "text": _digest(documents),
        "study": msgspec.to_builtins(msgspec.structs.replace(file, text="")),
        "tokenizer": None if study.tokenizer is None else _tokenizer_digest(study.tokenizer),
        "--for": seconds,
        "--steps": steps,
    }
    with work_beside(out, asked) as folder:
        text = _prepared(study, documents, folder, on_step)
        arms = study.arms(text.vocabulary)
        batch = _batch(file.batch, arms, text.vocabulary, file.tokens, folder)
        for arm in arms:
            positions = max(_LEAST_CONTEXT, file.tokens)
            config = config_of(arm.shape, text.vocabulary, positions, {"eos_token_id": text.end})
            (folder / "arms" / arm.name).mkdir(parents=True, exist_ok=True)
            write_whole(folder / "arms" / arm.name / CONFIG, _json(config))
        job = StudyJob(
            folder=str(folder),
            arms=[
                _job(number, arm, folder, total_params(spec_of(arm.shape, text.vocabulary, file.tokens)))
                for number, arm in enumerate(arms)
            ],
            reference=study.reference,
            seeds=[file.seed + number for number in range(file.seeds)],
            rates=list(file.rates),
            batch=batch,
            balance=file.balance,
            by_time=file.match == "seconds",
            seconds=seconds,
            steps=steps,
        )
        done = run_job("study_job", job, StudyDone, threads=threads, on_step=on_step)
        made = folder / "made"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        left = [
            None if arm.control else _left(arm, rate, folder, made, out, on_step)
            for arm, rate in zip(arms, done.rates, strict=True)
        ]
        result = result_of(
            study,
            arms,
            text,
            done,
            left,
            batch=batch,
            command=shlex.join([*words, "--steps", str(done.plan.steps[study.reference])]),
            seconds=time.monotonic() - began,
        )
        store.write(result, made / store.RESULT)
        try:
            made.rename(out)
        except OSError as error:
            raise UserError(f"cannot write {out}: {error.strerror}; choose another place with --out") from error
    return result


def _job(number: int, arm: ShapedArm, folder: Path, weights: int) -> ArmJob:
    return ArmJob(
        name=arm.name,
        folder=str(folder / "arms" / arm.name),
        total_params=weights,
        experts=arm.shape.experts,
        used=arm.shape.used,
        routed_layers=len(arm.shape.routed),
        copy_of=arm.copy_of,
        stream=number,
    )


def _digest(documents: Sequence[Document]) -> str:
    found = hashlib.sha256()
    for each in documents:
        found.update(f"{each.language}\0{each.domain}\0{each.text}\0".encode())
    return found.hexdigest()


def _json(content: object) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"


def _prepared(study: TrainingStudy, documents: Sequence[Document], folder: Path, on_step: OnStep) -> StudyText:
    """The tokenizer, and rows of tokens for the process that trains, in `folder`."""
    file, parts = study.file, split(blocks_of(documents))
    words = folder / "tokenizer"
    on_step("cutting the text into tokens", 0.0)
    if study.tokenizer is None:
        # A study that goes on reads the rows it began with, whatever learns its words by then.
        if not (words / _TOKENIZER_FILES[1]).is_file():
            learn_tokenizer([block.text for block in parts.train], file.vocabulary, words)
        end: int | None = 0
    else:
        _copy_tokenizer(study.tokenizer, words)
        end = next(iter(end_tokens(study.tokenizer)), None)
    tokenizer = tokenizer_of(words)

    def encode(text: str) -> Sequence[int]:
        ids: Sequence[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    train_NT = rows_of(parts.train, encode, file.tokens, end)
    rows = folder / ROWS
    rows.mkdir(exist_ok=True)
    np.save(rows / "train.npy", train_NT)
    np.save(rows / "choose.npy", rows_of(parts.choose, encode, file.tokens, end))
    pieces = pieces_of(tokenizer)
    judge, lengths, numbers = list[Sequence[int]](), list[int](), list[int]()
    tokens_B, bytes_B = [0] * len(parts.judge), [0] * len(parts.judge)
    for number, block in enumerate(parts.judge):
        ids = encode(block.text)
        for begin in range(0, len(ids), file.tokens):
            row = ids[begin : begin + file.tokens]
            if len(row) < 2:
                continue
            judge.append(row)
            lengths.append(len(row))
            numbers.append(number)
            tokens_B[number] += len(row) - 1
            bytes_B[number] += sum(len(pieces.get(token, b"")) for token in row[1:])
    judge_MT: Ids = np.zeros((len(judge), file.tokens), np.int32)
    for at, row in enumerate(judge):
        judge_MT[at, : len(row)] = row
    np.save(rows / "judge.npy", judge_MT)
    np.save(rows / "judge-blocks.npy", np.array([lengths, numbers], np.int64))
    return StudyText(
        judge=parts.judge,
        tokens_B=tokens_B,
        bytes_B=bytes_B,
        train_tokens=int(train_NT.size),
        vocabulary=max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        end=end,
        notes=parts.notes(),
    )


def learn_tokenizer(texts: Sequence[str], vocabulary: int, directory: Path) -> None:
    """Byte-level BPE of at most so many tokens, learned from `texts`, into a directory.

    Digits stand alone, as llama.cpp's `smollm` cuts: a cut it does not know could not become a GGUF.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    directory.mkdir(exist_ok=True)
    write_whole(directory / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    beside = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _END, "clean_up_tokenization_spaces": False}
    write_whole(directory / "tokenizer_config.json", _json(beside))


def _tokenizer_digest(source: Path) -> str:
    if not (source / _TOKENIZER_FILES[0]).is_file():
        raise UserError(
            f"{source}: holds no tokenizer.json; give a Hugging Face directory (of a GGUF: breakeven export --to hf)"
        )
    return hashlib.sha256((source / _TOKENIZER_FILES[0]).read_bytes()).hexdigest()


def _copy_tokenizer(source: Path, directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            write_whole(directory / name, (source / name).read_bytes())


def _batch(asked: int, arms: Sequence[ShapedArm], vocabulary: int, tokens: int, folder: Path) -> int:
    """The batch that every arm can train with: one for all, or they would not read the same."""
    kept = folder / _BATCH
    if kept.is_file():
        return int(msgspec.json.decode(kept.read_bytes()))
    free = free_memory()
    batch = asked
    for arm in arms:
        weights = total_params(spec_of(arm.shape, vocabulary, tokens))
        try:
            batch = batch_that_trains(
                weights, weights, arm.shape.hidden, arm.shape.layers, vocabulary, tokens, batch, free_bytes=free
            )
        except UserError as error:
            raise UserError(f"{arm.name} ({arm.shape.words}): {error}") from error
    write_whole(kept, msgspec.json.encode(batch))
    return batch


def _left(arm: ShapedArm, rate: float, folder: Path, made: Path, out: Path, on_step: OnStep) -> Left:
    """The first seed's model of an arm in `made`, which becomes `out`; as a GGUF too where there can be one."""
    directory = made / arm.name
    shutil.copytree(folder / "models" / f"{arm.name}-rate{rate:g}", directory)
    for source in ((folder / "arms" / arm.name / CONFIG), *(folder / "tokenizer").iterdir()):
        shutil.copyfile(source, directory / source.name)
    path, gguf = out / arm.name, made / f"{arm.name}.gguf"
    try:
        on_step(f"{arm.name} for llama.cpp", 1.0)
        done = to_gguf(directory, gguf, dtype="f32")
    except NotSupportedError as error:
        gguf.unlink(missing_ok=True)
        return Left(path, None, [], str(error))
    checks, said = checks_between(
        gguf, directory, made / f".{arm.name}.again", of_gguf=False, dtype=done.dtype, on_step=on_step
    )
    failed = next((check for check in checks if not check.passed), None)
    if failed is not None:
        raise BreakevenError(
            f"{arm.name}.gguf does not compute what its directory does: {failed.name} by {failed.engine}: "
            + failed.detail
        )
    return Left(path, out / gguf.name, checks, "; ".join(said) or None)
