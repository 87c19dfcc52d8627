"""A training's own directory beside its place: what it is, how far it got, and that nobody else is at it.

A run that was stopped leaves it there; the same command goes on from it. What was proven needs it no longer.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import msgspec

from breakeven.engines.inside.child import Doing, Unable
from breakeven.engines.inside.client import ChildProcess, OnStep
from breakeven.errors import BreakevenError, NotSupportedError, UserError, one_line
from breakeven.hardware.reader import available_threads
from breakeven.hardware.system import locked_now
from breakeven.lab.bridge.bridge import to_directory
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import Phase, flops_per_token
from breakeven.results.lab import Training

_ASKED = "asked.json"
_LOCK = "lock"
STATE = "state.pt"
"""Where a trainer saves how far it got."""
_WORTH = (STATE, "done.json")
"""Files without which nothing was trained yet, so that there is nothing to go on with."""
_R = TypeVar("_R", bound=msgspec.Struct)


class TrainingJob(msgspec.Struct, tag="job", frozen=True, kw_only=True):
    """What a child process is to do: `module` of this room has `run(spec, say)`. Answered by `TrainingDone`."""

    module: str
    spec: msgspec.Raw
    threads: int
    parent_pid: int


class TrainingDone(msgspec.Struct, tag="job done", frozen=True):
    """What the function returned."""

    result: msgspec.Raw


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is trained. Exactly one of `seconds` and `steps`.

    The rate rises over the first `warmup` of the steps, stays, and falls to nothing over the last `decay`.
    """

    seed: int
    rate: float
    batch: int
    seconds: float | None = None
    steps: int | None = None
    warmup: float = 0.04
    decay: float = 0.4
    weight_decay: float = 0.1
    clip: float = 1.0
    checks: int = 8
    """How often the text that chooses is read; the best of them is what is kept."""


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to. Losses in nats a token."""

    steps: int
    tokens: int
    seconds: float
    """Of training, without what chose and saved."""
    losses: list[list[float]]
    """Pairs of step and the batch's loss."""
    checks: list[list[float]]
    """Pairs of step and the loss on the text that chooses, the first before any step."""
    best_step: int
    """The one of them that was kept; 0: the model as it began."""


@contextlib.contextmanager
def work_beside(out: Path, asked: Mapping[str, object]) -> Iterator[Path]:
    """The directory OUT.training, ours alone meanwhile; removed after success, and by an error before any training.

    `asked`: what makes this training this one, as plain JSON. What was trained is kept when anything is raised, and an
    error of ours says so; where nothing was, a command that asks otherwise begins anew. Raises UserError where another
    process trains there, or what lies there was asked otherwise, and for a place that cannot be written.
    """
    if not out.name:
        raise UserError(f"--out {out}: give the name of a directory to make")
    folder = out.with_name(f"{out.name}.training")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another place with --out") from error
    with lock:
        if not locked_now(lock.fileno()):
            raise UserError(f"{folder}: another run trains here; wait for it, or choose another place with --out")
        _check_asked(folder, asked)
        try:
            yield folder
        except BreakevenError as error:
            # Told before any training, the next command asks otherwise, and must not stumble over this one.
            if not _trained_in(folder):
                shutil.rmtree(folder, ignore_errors=True)
            else:
                more = f"{folder} holds what was trained: the same command goes on with it, and others want it removed"
                error.args = (f"{error}; {more}",)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _check_asked(folder: Path, asked: Mapping[str, object]) -> None:
    path = folder / _ASKED
    now = msgspec.json.decode(msgspec.json.encode(asked))
    try:
        before = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        write_whole(path, msgspec.json.encode(asked))
        return
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove {folder} to begin anew") from error
    if before == now:
        return
    if _trained_in(folder):
        other = next((key for key in now if not isinstance(before, dict) or before.get(key) != now[key]), "its text")
        raise UserError(
            f"{folder} holds a training that was stopped and was asked otherwise ({one_line(other)}); "
            "give the same command to go on, or remove it to begin anew"
        )
    for each in folder.iterdir():
        if each.is_dir():
            shutil.rmtree(each, ignore_errors=True)
        elif each.name != _LOCK:
            each.unlink()
    write_whole(path, msgspec.json.encode(asked))


def _trained_in(folder: Path) -> bool:
    """Whether there is anything to go on with."""
    return any(path.is_file() for name in _WORTH for path in folder.rglob(name))


def training_flops(spec: ModelSpec, tokens: int, row: int) -> float:
    """Of training on `tokens` in rows of `row`: forward once, and twice as much backward; attention and head counted.

    The head is computed for every token, unlike a prompt's.
    """
    head = 2.0 * spec.vocab * spec.hidden * (1 - 1 / row)
    return 3.0 * tokens * (flops_per_token(spec, row, Phase.PREFILL) + head)


def training_of(trained: Trained, seed: int, flops: float) -> Training:
    """A run as its proof tells it."""
    return Training(
        tokens=trained.tokens,
        seconds=trained.seconds,
        seed=seed,
        flops=flops,
        losses=trained.losses,
        chosen=trained.checks,
        best_step=trained.best_step,
    )


ADAM_BYTES = 16
"""Of each weight that trains, in single precision: itself, its gradient, and two moments."""
_HELD = 24
"""Numbers a layer keeps for the way back, for each token and each of its hidden width; measured 17 to 22."""


def batch_that_trains(
    weights: int, trained: int, hidden: int, layers: int, vocab: int, tokens: int, batch: int, *, free_bytes: int
) -> int:
    """The largest batch, halved from `batch` down to 1, whose training fits into `free_bytes`.

    `weights`, `trained`: of the model, and how many of them train. `tokens`: a row. Raises UserError where none fits,
    with the gigabytes that would be needed.
    """
    while True:
        logits = 3 * vocab * tokens * batch
        needed = 4 * weights + (ADAM_BYTES - 4) * trained + 4 * (logits + _HELD * hidden * layers * tokens * batch)
        if needed <= free_bytes:
            return batch
        if batch == 1:
            raise UserError(
                f"training it needs {needed / 1e9:.1f} GB even one row at a time, and {free_bytes / 1e9:.1f} GB are "
                "free; give a smaller model or shorter rows"
            )
        batch //= 2


def left_out(before: Collection[str], after: Collection[str]) -> list[str]:
    """What to say of tensors of a source that are not in what was made of it; a tied head is its embedding."""
    computed = ("lm_head.weight", "inv_freq")
    gone = sorted(name for name in before if name not in after and not name.endswith(computed))
    more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    return [f"left out, because transformers does not load it: {gone[0]}{more}"] if gone else []


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """A file whole or not at all. Raises UserError where the disk is full."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; free some space and give it again") from error


def directory_of(model: Path, place: Path, on_step: OnStep = lambda what, share: None) -> tuple[Path, list[str]]:
    """The model as a directory: itself, or at `place` a GGUF's numbers in F32; and what a proof says of that.

    Made once for a training, however often that goes on. Raises what `bridge.to_directory` raises.
    """
    if model.is_dir():
        return model, []
    begun, said = (place.with_name(f"{place.name}.{word}") for word in ("partial", "json"))
    if not said.is_file():
        on_step("writing it as a directory first", 0.0)
        for folder in (place, begun):
            shutil.rmtree(folder, ignore_errors=True)
        notes = to_directory(model, begun, dtype="f32").notes
        begun.rename(place)
        write_whole(said, msgspec.json.encode(notes))
    return place, msgspec.json.decode(said.read_bytes(), type=list[str])


def run_job(
    module: str,
    spec: msgspec.Struct,
    result: type[_R],
    *,
    threads: int | None = None,
    on_step: OnStep = lambda what, share: None,
) -> _R:
    """Have `module` of this room do `spec` in a child process with torch, and give what it returned.

    Raises NotSupportedError where torch is not installed or the child cannot do it, EngineError when it dies.
    """
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise NotSupportedError(
            f"training needs {' and '.join(missing)}, not installed here: install the extra `lab` (1.5 GB; how: "
            "docs/lab.md)"
        )
    job = TrainingJob(
        module=module,
        spec=msgspec.Raw(msgspec.json.encode(spec)),
        threads=threads or available_threads(),
        parent_pid=os.getpid(),
    )
    with ChildProcess("breakeven.lab.training.child", module, TrainingDone | Unable | Doing, on_step=on_step) as child:
        done = child.ask(job, TrainingDone)
    return msgspec.json.decode(done.result, type=result)
