"""Verbs of the lab that train. Each imports what it needs when it is called; torch only in a child process."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from breakeven.api.lab import options_said, paged, steps_for
from breakeven.errors import UserError, expanded, word_of

if TYPE_CHECKING:
    from breakeven.lab.corpus import Document
    from breakeven.lab.training.chat import Conversation
    from breakeven.measure.progress import ProgressState
    from breakeven.results.lab import Proof
    from breakeven.results.training import TrainStudy

TRAINING_S = 180.0
"""How long a training goes on that says neither its time nor its steps."""
STUDY_S = 600.0
"""Of all trainings of a study together, where nobody says."""


def time_or_steps(
    seconds: float | None, steps: int | None, usual_s: float = TRAINING_S
) -> tuple[float | None, int | None]:
    """Exactly one of both; `usual_s` where neither is given. Raises UserError for both, and for none of either."""
    if seconds is not None and steps is not None:
        raise UserError("--for and --steps both say how long; give one of them")
    if steps is not None and steps < 1:
        raise UserError(f"--steps {steps}: give 1 or more")
    if seconds is not None and not 0 < seconds < math.inf:
        raise UserError(f"--for {seconds:g}s: give a time such as 3m")
    return (usual_s if seconds is None and steps is None else seconds), steps


def check_sizes(*, rate: float | None, tokens: int | None, least_tokens: int = 2, **counts: int | None) -> None:
    """Raise UserError for numbers that no training can have; None is one that is not given."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"--{name.replace('_', '-')} {count}: give 1 or more")
    if tokens is not None and tokens < least_tokens:
        raise UserError(
            f"--tokens {tokens}: give {least_tokens} or more, for each token is predicted from those before it"
        )
    if rate is not None and not 0 < rate < math.inf:
        raise UserError(f"--rate {rate:g}: give a number above 0")


@paged
def tune(
    model: Path | str,
    out: Path | str,
    *,
    text: Path | str | None = None,
    chat: Path | str | None = None,
    adapt: str = "all",
    router: str = "frozen",
    adapter: Path | str | None = None,
    rank: int = 8,
    quantized: bool = False,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch: int = 2,
    rate: float = 5e-4,
    tokens: int = 256,
    encoding: str | None = None,
    threads: int | None = None,
    on_progress: Callable[[ProgressState], None] = lambda state: None,
) -> Proof:
    """Train adapters on a text or on conversations, merge them, and write the directory `out` with its proof.

    `model`: a .gguf file or a Hugging Face directory. `text`: a file or directory; `chat`: JSON lines of messages, of
    which the answers are learned. `adapt`: "all" matrices of attention and feed-forwards, "attention", "experts", or
    some of them in every layer, "experts:3,7". `router`: "frozen" or "train". `adapter`: a directory made elsewhere,
    merged and proven instead of training one. `quantized`: train beside the base in 4 bits, of a dense model. `seconds`
    or `steps` of training; three minutes where neither is given. `batch` rows of `tokens`, fewer where memory is short.
    Raises UserError for what cannot be tuned so, BreakevenError naming the check that failed; then nothing is left at
    `out`. What was stopped goes on when the same is asked again.
    """
    from breakeven.lab.training.tune import tune as made
    from breakeven.lab.training.tune_proof import TuneOptions

    learned = _learned(text, chat, encoding, needed=adapter is None)
    if router not in ("frozen", "train"):
        raise UserError(f"--router {router}: give frozen or train")
    check_sizes(rank=rank, batch=batch, rate=rate, tokens=tokens)
    kinds, experts = _adapted(adapt)
    usual = TuneOptions()
    own = (kinds, experts, router, rank, quantized, seconds, steps, seed, batch, rate)
    nothing = ("all", (), "frozen", usual.rank, False, None, None, usual.seed, usual.batch, usual.rate)
    if adapter is not None and own != nothing:
        raise UserError(
            "--adapter brings what was trained elsewhere: leave out --for, --steps, --adapt, --router, --rank, "
            "--quantized, --seed, --batch and --rate"
        )
    if adapter is None:
        seconds, steps = time_or_steps(seconds, steps)
    words = ["breakeven", "tune", word_of(model)]
    words += options_said(out=out, text=text, chat=chat, encoding=encoding, adapter=adapter, threads=threads)
    if adapter is None:
        words += options_said(adapt=adapt, router=router, rank=rank, quantized=quantized, seed=seed, rate=rate)
    words += options_said(tokens=tokens)
    return made(
        expanded(model),
        expanded(out),
        learned,
        TuneOptions(
            adapt=kinds,
            experts=experts,
            router=router == "train",
            rank=rank,
            quantized=quantized,
            seconds=seconds,
            steps=steps,
            seed=seed,
            batch=batch,
            rate=rate,
            tokens=tokens,
            threads=threads,
            adapter=None if adapter is None else expanded(adapter),
        ),
        words=words,
        on_step=steps_for(on_progress),
    )


def tune_elsewhere(
    model: Path | str,
    out: Path | str,
    steps: int,
    *,
    text: Path | str | None = None,
    chat: Path | str | None = None,
    adapt: str = "all",
    rank: int = 8,
    seed: int = 0,
    batch: int = 2,
    rate: float = 5e-4,
    tokens: int = 256,
    encoding: str | None = None,
) -> Sequence[str]:
    """Write what `tune` would do as axolotl's configuration, beside the text that trains and the text that judges.

    `model`: a Hugging Face directory; all else as in `tune`. The commands to give, in turn: the last proves what was
    trained. Raises UserError for what cannot be said there; then nothing is left at `out`.
    """
    from breakeven.lab.training.elsewhere import write_for_axolotl
    from breakeven.lab.training.work import Recipe

    check_sizes(rank=rank, batch=batch, rate=rate, tokens=tokens, steps=steps)
    return write_for_axolotl(
        expanded(model),
        expanded(out),
        _learned(text, chat, encoding),
        adapt=adapt,
        rank=rank,
        recipe=Recipe(seed=seed, rate=rate, batch=batch, steps=steps, weight_decay=0.0),
        tokens=tokens,
    )


def _learned(
    text: Path | str | None, chat: Path | str | None, encoding: str | None, *, needed: bool = True
) -> Sequence[Document] | Sequence[Conversation]:
    """What there is to learn. Raises UserError for both, and for neither where it is needed."""
    from breakeven.lab.corpus import read_documents
    from breakeven.lab.training.chat import read_conversations

    if text is not None and chat is not None:
        raise UserError("--text and --chat both say what to learn; give one of them")
    if chat is not None:
        return read_conversations(expanded(chat))
    if text is not None:
        return read_documents(expanded(text), encoding)
    if needed:
        raise UserError("nothing to tune on; give a text (--text), conversations (--chat) or an adapter (--adapter)")
    return []


def _adapted(adapt: str) -> tuple[str, tuple[int, ...]]:
    """ "experts:3,7" in two. Raises UserError for numbers that are none."""
    kinds, colon, numbers = adapt.partition(":")
    if not colon:
        return kinds, ()
    if kinds != "experts" or not re.fullmatch(r"\d+(,\d+)*", numbers):
        raise UserError(f"--adapt {adapt}: give all, attention, experts, or some of them: experts:3,7")
    return kinds, tuple(sorted({int(number) for number in numbers.split(",")}))


@paged
def retrain(
    model: Path | str,
    only: Sequence[int | tuple[int, int]],
    text: Path | str,
    out: Path | str,
    *,
    replay: Path | str | None = None,
    balance: str | None = None,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    rate: float | None = None,
    tokens: int | None = None,
    encoding: str | None = None,
    threads: int | None = None,
    on_progress: Callable[[ProgressState], None] = lambda state: None,
) -> Proof:
    """Train some experts of a Mixture-of-Experts GGUF or directory, with their rows of the router, and nothing else.

    `only`: an expert of every layer that routes, or (layer, expert). `replay`: text of what must not be lost meanwhile.
    `balance`: "aux" or "bias" keeps the router's choices even. `seconds` (180 unless `steps` is given) of training;
    `steps` of `batch` rows of `tokens`. `out`: a directory. Raises UserError for what cannot be trained so,
    BreakevenError naming the check that failed or where nothing got better; then nothing is left. What is stopped
    leaves OUT.training, and the same call goes on.
    """
    from breakeven.lab.training.retrain import RetrainOptions
    from breakeven.lab.training.retrain import retrain as retrained

    check_sizes(batch=batch, rate=rate, tokens=tokens, least_tokens=8)
    seconds, steps = time_or_steps(seconds, steps)
    usual = RetrainOptions()
    options = RetrainOptions(
        seconds=seconds,
        steps=steps,
        balance=balance,
        seed=seed,
        batch=usual.batch if batch is None else batch,
        rate=usual.rate if rate is None else rate,
        tokens=usual.tokens if tokens is None else tokens,
        threads=threads,
    )
    pairs = [(None, each) if isinstance(each, int) else each for each in only]
    words = ["breakeven", "experts", "retrain", word_of(model)]
    words += options_said(
        only=",".join(f"{expert}" if layer is None else f"{layer}:{expert}" for layer, expert in pairs),
        text=text,
        replay=replay,
        encoding=encoding,
        balance=balance,
        seed=seed or None,
        rate=rate,
        tokens=tokens,
        threads=threads,
        out=out,
    )
    return retrained(
        expanded(model),
        pairs,
        expanded(text),
        expanded(out),
        words=words,
        options=options,
        replay=None if replay is None else expanded(replay),
        encoding=encoding,
        on_step=steps_for(on_progress),
    )


def train(
    study: Path | str,
    *,
    out: Path | str | None = None,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
    on_progress: Callable[[ProgressState], None] = lambda state: None,
) -> TrainStudy:
    """Train the models of a study, equal in one number, on the same text, and say what each learned of it.

    `out`: a directory for models and result; None: named as the study, beside it. `seconds` for all trainings together
    (None: ten minutes) or `steps` of each. `seed`: the first, in place of the study's own. A study that was stopped
    goes on when it is given again. Raises UserError for a study that cannot be, NotSupportedError without torch.
    """
    from breakeven.lab.training.study import train
    from breakeven.pages.training import write_study_page

    seconds, steps = time_or_steps(seconds, steps, STUDY_S)
    path = expanded(study)
    place = expanded(out) if out is not None else path.with_suffix("")
    words = ["breakeven", "train", word_of(study), *options_said(out=out, seed=seed, threads=threads)]
    result = train(
        path,
        place,
        words=words,
        seconds=seconds,
        steps=steps,
        seed=seed,
        threads=threads,
        on_step=steps_for(on_progress),
    )
    write_study_page(result, place)
    return result
