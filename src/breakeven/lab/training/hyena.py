"""An experiment: a student whose attention is replaced by long convolutions, and what it then still can do.

Attention costs T times T for a text of T tokens; a convolution as long as the text costs T log T by FFT (the Hyena
operator: Poli and others 2023). Here each attention of a student that is trained already gives way to such an operator,
layer by layer first, then together (as Ralambomihanta and others 2024 did with Pythia 70M, where most tasks fell). What
is told is where they part: by task, by length, and in speed. No engine runs such a model, so it is never exported.

Legend: N rows, T tokens a row.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np

from breakeven.engines.inside.client import OnStep
from breakeven.errors import UserError
from breakeven.lab.training.texts import Ids
from breakeven.lab.training.work import run_job, write_whole
from breakeven.stats.estimate import Estimate

ROWS = "hyena-rows.npz"
TOLD = "hyena.json"
WEIGHTS = "hyena.safetensors"
LEFT = (TOLD, WEIGHTS)
"""What stays of it, in the folder `HYENA` beside the attention model's files."""
HYENA = "hyena"
LENGTHS = (64, 128, 256, 512, 1024)
"""Of texts and tasks; those longer than the rows trained on say how it goes on from there."""
SPEED_LENGTHS = (256, 1024, 4096)
_NAMED = re.compile(r"hyena\s+(\d+\s*x\s*\d+(?:\s*x\s*\d+)?)", re.IGNORECASE)


class HyenaAsked(msgspec.Struct, frozen=True, kw_only=True):
    """The job of `hyena_job`. Exactly one of `seconds` and `steps`; a third of it is for the layers one by one."""

    directory: str
    """The attention model: a Hugging Face directory, dense."""
    folder: str
    """Where `ROWS` lies, where it is saved meanwhile, and where the operators' weights are left."""
    seed: int
    rate: float
    batch: int
    seconds: float | None = None
    steps: int | None = None
    lengths: tuple[int, ...] = LENGTHS
    speed_lengths: tuple[int, ...] = SPEED_LENGTHS


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """Both on one task at one length.

    "text": nats a token of text never trained on. "copy": share of tokens told right where a sequence of chance tokens
    comes a second time. "recall": share told right of values whose keys stood before them once.
    """

    task: str
    length: int
    attention: float
    hyena: float
    difference: Estimate
    """hyena's less attention's, paired by row."""


class LengthSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens a second of one forward pass over so many."""

    length: int
    attention: float
    hyena: float


class HyenaTold(msgspec.Struct, frozen=True, kw_only=True):
    """What the experiment came to."""

    layers: int
    trained_tokens: int
    row_tokens: int
    layer_errors: list[float]
    """Of each layer alone, before all were trained together: squared error over the variance of what attention gave."""
    parity: list[Parity]
    speeds: list[LengthSpeed]
    steps: int
    seconds: float
    losses: list[list[float]]
    """Of training together: pairs of step and KL from the attention model, nats a token."""


def asked_for(into: str) -> str | None:
    """The attention student that `--into "hyena 4x256"` starts from ("dense 4x256"); None for other shapes."""
    found = _NAMED.fullmatch(into.strip())
    if found is None and into.strip().lower().startswith("hyena"):
        raise UserError(f'--into {into!r}: give layers and width, such as "hyena 4x256"')
    return None if found is None else f"dense {found[1]}"


def without_attention(
    directory: Path,
    train_NT: Ids,
    choose_NT: Ids,
    judge_NT: Ids,
    folder: Path,
    *,
    seed: int,
    rate: float,
    batch: int,
    seconds: float | None = None,
    steps: int | None = None,
    lengths: tuple[int, ...] = LENGTHS,
    speed_lengths: tuple[int, ...] = SPEED_LENGTHS,
    threads: int | None = None,
    on_step: OnStep = lambda what, share: None,
) -> HyenaTold:
    """Replace the attention of the trained model in `directory`, and tell where both part; `TOLD` is left in `folder`.

    Rows are of the model's own tokens. A run that was stopped goes on in the same `folder`. Raises UserError for a time
    too short, NotSupportedError for a model whose layers have no attention of their own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / ROWS, train=train_NT, choose=choose_NT, judge=judge_NT)
    asked = HyenaAsked(
        directory=str(directory),
        folder=str(folder),
        seed=seed,
        rate=rate,
        batch=batch,
        seconds=seconds,
        steps=steps,
        lengths=lengths,
        speed_lengths=speed_lengths,
    )
    told = run_job("hyena_job", asked, HyenaTold, threads=threads, on_step=on_step)
    write_whole(folder / TOLD, msgspec.json.format(msgspec.json.encode(told), indent=2))
    return told


def table(told: HyenaTold) -> list[str]:
    """The parity table and the speeds, a line each; lengths beyond the rows trained on are marked."""
    lines = [
        "Experiment: long convolutions in place of attention. No engine runs it, so it is not exported.",
        f"{'task':<8}{'length':>8}{'attention':>12}{'hyena':>10}   difference (95 %)",
    ]
    for each in told.parity:
        one = each.difference
        ends = "" if one.low is None or one.high is None else f" ({one.low:+.3f} to {one.high:+.3f})"
        mark = "*" if each.length > told.row_tokens else " "
        lines.append(
            f"{each.task:<8}{each.length:>7,}{mark}{each.attention:>12.3f}{each.hyena:>10.3f}   {one.value:+.3f}{ends}"
        )
    lines.append(
        f"text: nats a token, less is better; copy, recall: share right. * longer than rows of {told.row_tokens}"
    )
    for speed in told.speeds:
        ratio = speed.hyena / speed.attention
        lines.append(
            f"one pass over {speed.length:>5,} tokens: attention {speed.attention:,.0f} tokens/s, hyena "
            f"{speed.hyena:,.0f} ({ratio:.2f} times)"
        )
    return lines
