"""How well models predict a text, by language and domain, and how far each stands from a source.

All models run in lock-step over the same blocks, a block of each language in turn, so that a budget of time that ends
early has read the same share of each. A block starts afresh: its first token is context and not scored, and its bytes
are not counted. Bits per byte do not depend on how a tokenizer cuts words; KL compares whole distributions, so it needs
one tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from breakeven.engines.inside.client import OnStep
from breakeven.engines.openai_url import is_url
from breakeven.errors import NotSupportedError, UserError, expanded
from breakeven.lab.corpus import Block, Document, blocks_of, by_slice, check_enough, fewest_in_turn, in_turn
from breakeven.lab.facts import FileFacts, batch_that_fits, facts_of, is_onnx, sha256_of
from breakeven.lab.lockstep import BATCH, SMALL_BATCH, Lockstep, Scored, Scores, Tokenized, kind_of_model
from breakeven.lab.remote import connected, tallied
from breakeven.lab.tally import LEAST_SPELLED, BlockScore, Tally, bits, left_out, unread
from breakeven.lab.tasks import Task, ask_all
from breakeven.model.readers.gguf_file import first_part
from breakeven.results.lab import Evaluated, Evaluation, Slice, TaskScore

FLOOR_BLOCKS = 5
"""Of each language and domain on which a model is compared with itself."""
FLOOR_TOKENS = 10 * SMALL_BATCH
"""Of each of these blocks."""
_LONG_S = 900.0
_BLOCKS_TO_TELL = 5
_BESIDE_TEXT = 2
"""Tokens that a tokenizer puts before a text; the text itself takes one a byte at most."""


class TokenizersDifferError(NotSupportedError):
    """Predictions of two models cannot be compared token by token. `how` they differ."""

    def __init__(self, name: str, source: str, how: str) -> None:
        super().__init__(
            f"{name} and {source} have different tokenizers ({how}), so their predictions cannot be compared token by "
            "token: leave --against out and compare bits per byte (to distill across tokenizers: TRL's GOLD trainer)"
        )
        self.how = how


@dataclass(frozen=True, slots=True)
class Arm:
    """A model as it is evaluated: `used` experts a token, None for its own number."""

    name: str
    facts: FileFacts
    used: int | None = None

    @property
    def path(self) -> Path:
        """Its file or directory."""
        return self.facts.path

    @property
    def n_experts_per_token(self) -> int | None:
        """As it runs."""
        return self.facts.n_experts_per_token if self.used is None else self.used


def evaluate(
    models: Sequence[Path | str],
    documents: Sequence[Document],
    *,
    against: Path | str | None = None,
    used: Sequence[int] = (),
    budget_s: float | None = None,
    tasks: Sequence[Task] = (),
    floor: bool = True,
    threads: int | None = None,
    text: str | None = None,
    command: str,
    on_step: OnStep = lambda what, share: None,
) -> Evaluation:
    """Score `models` on `documents`, put `tasks` to them, or both; with `against` also how far each is from it.

    Models behind URLs come last. One whose server tells nothing of a prompt is given the tasks alone.

    `used`: MoE models run with these experts a token, each, and compared with the model as it is where no other source
    is named. `budget_s`: of scoring; what it leaves unread is said. `floor`: compare models with themselves too. Raises
    UserError for what cannot be evaluated so, before anything is loaded where that can be known.
    """
    began = time.monotonic()
    if not documents and not tasks:
        raise UserError("nothing to evaluate by: give a text (--text), tasks (--tasks), or both")
    blocks = blocks_of(documents)
    if documents:
        check_enough(blocks)
    urls = [str(model) for model in models if is_url(str(model))]
    files = [model for model in models if not is_url(str(model))]
    if against is not None and is_url(str(against)):
        raise UserError(f"--against {against}: a server tells no whole distributions; give a file or a directory")
    arms, source = ([], None) if urls and not files and against is None else arms_of(files, against, used)
    if used and not arms:
        raise UserError("--used: the server of a URL has its experts a token from its own start; give a .gguf file")
    remotes = connected(urls, [arm.name for arm in arms], needs_text=not tasks)
    tallies, caveats = [Tally(blocks) for _ in arms], list[str]()
    if documents and arms:
        tallies, caveats = judge(arms, source, blocks, budget_s=budget_s, floor=floor, threads=threads, on_step=on_step)
    order = list(tallies[0].scores) if arms else in_turn(blocks)
    far = [Tally(blocks) for _ in remotes]
    for i, remote in enumerate(remotes if documents else ()):
        if remote.weighs:
            far[i] = tallied(remote, blocks, order, None if source is None else tallies[source], budget_s, on_step)
        else:
            caveats.append(remote.why_not)
    solved: list[list[TaskScore]] = [[] for _ in (*arms, *remotes)]
    if tasks:
        loaded = {arm.name: Scored(arm.path, arm.used) for arm in arms}
        solved, said = ask_all(tasks, loaded, remotes, threads, on_step)
        caveats += said
    digests = {arm.path: sha256_of(arm.path) for arm in arms}

    def slices_of(tally: Tally) -> list[Slice]:
        return [found for key in by_slice(blocks) if (found := tally.slice_of(*key)) is not None]

    return Evaluation(
        command=command,
        text=text,
        against=None if source is None else arms[source].name,
        models=[
            Evaluated(
                name=arm.name,
                path=str(arm.path),
                sha256=digests[arm.path],
                format=arm.facts.format,
                bits_per_weight=arm.facts.bits_per_weight,
                experts_per_token=arm.n_experts_per_token,
                slices=slices_of(tally),
                tasks=scores,
                bytes=arm.facts.bytes,
                tokens_per_s=tally.tokens_per_s() if tally.scores else None,
            )
            for arm, tally, scores in zip(arms, tallies, solved, strict=False)
        ]
        + [
            Evaluated(
                name=remote.name,
                path=remote.url,
                sha256=None,
                format=None,
                bits_per_weight=None,
                experts_per_token=None,
                slices=slices_of(tally),
                tasks=scores,
            )
            for remote, tally, scores in zip(remotes, far, solved[len(arms) :], strict=True)
        ],
        seconds=time.monotonic() - began,
        caveats=caveats,
    )


def arms_of(
    models: Sequence[Path | str], against: Path | str | None = None, used: Sequence[int] = ()
) -> tuple[list[Arm], int | None]:
    """What runs, and which of it is the source; a source that is none of `models` comes first.

    Raises UserError for what is no model, is given twice, or has not so many experts.
    """
    paths = [_path(model) for model in models]
    if not paths and against is None:
        raise UserError("no model to evaluate; give one or more .gguf files or Hugging Face directories")
    twice = next((path for i, path in enumerate(paths) if path in paths[:i]), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice; give each model once")
    source = None if against is None else _path(against)
    if source is not None and source not in paths:
        paths.insert(0, source)
    for path in paths:
        kind_of_model(path)
    plain = [Arm(name, facts_of(path)) for name, path in zip(_names(paths), paths, strict=True)]
    if used and not any(arm.facts.n_experts for arm in plain):
        raise UserError(f"--used: {plain[0].name} is dense, it has no experts to use fewer of; leave --used out")
    arms = [each for arm in plain for each in _with_used(arm, used, own=arm.path == source or len(plain) == 1)]
    if source is not None:
        return arms, next(i for i, arm in enumerate(arms) if arm.path == source and arm.used is None)
    return arms, 0 if used and len(plain) == 1 and len(arms) > 1 else None


def _path(model: Path | str) -> Path:
    path = expanded(model)
    return path if path.is_dir() else first_part(path)


def _names(paths: Sequence[Path]) -> list[str]:
    """The files' names; whole paths where two share one."""
    names = [path.name.removesuffix(".gguf") or path.name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _with_used(arm: Arm, used: Sequence[int], *, own: bool) -> Iterator[Arm]:
    """The model with each number of experts; with its `own` first where it is compared with that."""
    n_experts, usual = arm.facts.n_experts, arm.facts.n_experts_per_token
    if not used or not n_experts:
        yield arm
        return
    if is_onnx(arm.path):
        raise UserError(
            f"--used: {arm.name} is an ONNX graph, which fixes its experts a token; give the directory or .gguf file "
            "it was made from, or leave --used out"
        )
    for k in used:
        if not 1 <= k <= n_experts:
            raise UserError(f"--used {k}: {arm.name} has {n_experts} experts; give numbers from 1 to {n_experts}")
    if own or usual in used:
        yield arm
    for k in dict.fromkeys(used):
        if k != usual:
            yield replace(arm, name=f"{arm.name} ({k} of {n_experts})", used=k)


def judge(
    arms: Sequence[Arm],
    source: int | None,
    blocks: Sequence[Block],
    *,
    budget_s: float | None = None,
    floor: bool = True,
    threads: int | None = None,
    exact: bool = False,
    on_step: OnStep = lambda what, share: None,
) -> tuple[list[Tally], list[str]]:
    """Score `blocks` with all `arms`: a tally each, in their order, and what must be said beside the figures.

    `exact`: as of `Lockstep`.
    """
    floor = floor and source is not None
    longest = max(block.n_bytes for block in blocks)
    positions = longest + _BESIDE_TEXT
    batch = batch_that_fits([arm.facts for arm in arms], positions, BATCH, small=floor)
    tallies = [Tally(blocks) for _ in arms]
    if source is not None:
        for i, tally in enumerate(tallies):
            tally.source = None if i == source else tallies[source]
    models = [Scored(arm.path, arm.used) for arm in arms]
    order = in_turn(blocks)
    sampled = _floor_sample(blocks, order) if floor else set[int]()
    unspelled: dict[int, tuple[str, float]] = {}
    with Lockstep(models, threads, on_step, batch=batch, exact=exact) as lock:
        if source is not None:
            _check_vocabularies(lock, arms, source)
        began = time.monotonic()
        done, least = 0, fewest_in_turn(blocks)
        for done, number in enumerate(order):
            if budget_s is not None and done >= least and time.monotonic() - began > budget_s:
                break
            share = done / len(order)
            if budget_s is not None and done:
                spent = time.monotonic() - began
                share = max(share, spent / max(budget_s, spent / done * least))
            on_step("scoring", min(1.0, share))
            if done == _BLOCKS_TO_TELL and budget_s is None:
                _tell_if_long((time.monotonic() - began) / done * len(order), on_step)
            lost = _score_block(lock, arms, source, tallies, number, number in sampled)
            if lost is not None:
                unspelled[number] = lost
        else:
            done = len(order)
    return tallies, unread(blocks, order[:done]) + left_out(tallies, order[:done], unspelled)


def _tell_if_long(seconds: float, on_step: OnStep) -> None:
    if seconds > _LONG_S:
        on_step(f"All of the text takes about {seconds / 60:.0f} minutes; --budget 10m reads an even part of it.", 0.0)


def _floor_sample(blocks: Sequence[Block], order: Sequence[int]) -> set[int]:
    taken: dict[tuple[str, str], list[int]] = {}
    for number in order:
        held = taken.setdefault((blocks[number].language, blocks[number].domain), [])
        if len(held) < FLOOR_BLOCKS:
            held.append(number)
    return {number for held in taken.values() for number in held}


def _check_vocabularies(lock: Lockstep, arms: Sequence[Arm], source: int) -> None:
    for arm, loaded in zip(arms, lock.loaded, strict=True):
        if loaded.n_vocab != lock.loaded[source].n_vocab:
            how = f"{loaded.n_vocab:,} against {lock.loaded[source].n_vocab:,} words"
            raise TokenizersDifferError(arm.name, arms[source].name, how)


def _score_block(
    lock: Lockstep, arms: Sequence[Arm], source: int | None, tallies: Sequence[Tally], number: int, with_floor: bool
) -> tuple[str, float] | None:
    """None, or who cannot spell the block, and which share it can: then nobody is scored on it."""
    block = tallies[0].blocks[number]
    by_path = {arm.path: i for i, arm in enumerate(arms)}
    found = {path: lock.tokens_of(i, block.text) for path, i in by_path.items()}
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, arm in enumerate(arms):
        groups.setdefault(tuple(found[arm.path].ids), []).append(i)
    if source is not None and len(groups) > 1:
        other = next(i for i, arm in enumerate(arms) if found[arm.path].ids != found[arms[source].path].ids)
        theirs, ours = len(found[arms[other].path].ids), len(found[arms[source].path].ids)
        how = f"{theirs:,} against {ours:,} tokens of one text"
        if theirs == ours:
            how = f"other ids for the same {ours:,} tokens"
        raise TokenizersDifferError(arms[other].name, arms[source].name, how)
    worst = min(arms, key=lambda arm: found[arm.path].spelled_bytes)
    share = found[worst.path].spelled_bytes / block.n_bytes
    if share < LEAST_SPELLED:
        return worst.name, share
    if any(len(ids) - found[arms[members[0]].path].lead < 2 for ids, members in groups.items()):
        return None  # One token has nothing before it to be predicted from.
    for ids, members in groups.items():
        cut = found[arms[members[0]].path]
        pairs = [] if source is None else [(source, i) for i in members if i != source]
        scores = lock.score_all(ids, pairs, with_floor, lead=cut.lead, only=members, small_tokens=FLOOR_TOKENS)
        _keep(scores, cut, block, members, pairs, tallies, number)
        for row, i in enumerate(members) if scores.floor is not None else ():
            assert scores.floor is not None
            known = scores.floor[row][~np.isnan(scores.floor[row])]
            if len(known):
                tallies[i].floors[number] = known
    return None


def _keep(
    scores: Scores,
    cut: Tokenized,
    block: Block,
    members: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    tallies: Sequence[Tally],
    number: int,
) -> None:
    """Each model's sums; the text's first token is left out of them with its bytes, and so is what stands before it."""
    new = slice(cut.lead, None)
    rows = {model: row for row, (_, model) in enumerate(pairs)}
    for row, i in enumerate(members):
        pair = rows.get(i)
        tallies[i].scores[number] = BlockScore(
            bits=bits(scores.nats[row, new]),
            n_bytes=max(1, block.n_bytes - cut.first_bytes),
            tokens=scores.nats.shape[1] - cut.lead,
            seconds=scores.seconds[row],
            kl_T=None if pair is None else scores.kl[pair, new],
            agreed=None if pair is None else int(scores.agree[pair, new].sum()),
        )
