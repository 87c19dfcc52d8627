"""The trainer: steps fixed before the first, checkpoints, the best of them by a text apart. Child process only: torch.

A run is a function of its seed, its steps and its rows. `--for 3m` becomes a number of steps, by timing a few that do
not count; that number is kept, so that a run which was stopped goes on to the same curve and ends at the same place.

Legend: B rows a batch, T tokens a row, V vocabulary.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from breakeven.engines.inside.child import Say
from breakeven.errors import BreakevenError, UserError
from breakeven.lab.training.texts import Batches, Ids
from breakeven.lab.training.work import STATE, Recipe, Trained, write_whole

Loss = Callable[[torch.Tensor, NDArray[np.int64]], torch.Tensor]
"""Of token ids (B, T) and the numbers of their rows (B): what a step makes smaller, a scalar."""

_TIMED_STEPS = 3
_SAVE_EVERY_S = 30.0
_LEAST_STEPS = 20
_SMOOTH = 0.95
_MOST_LOSSES = 400
"""Of a curve, evenly thinned."""


def device() -> torch.device:
    """Where training runs: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def next_token_loss(logits_BTV: torch.Tensor, ids_BT: torch.Tensor) -> torch.Tensor:
    """Mean nats of each token after those before it."""
    return functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten())


def mean_nats(model: nn.Module, rows_NT: Ids, batch: int) -> float:
    """Mean nats a token of `rows_NT`, in evaluation mode."""
    training, where = model.training, next(model.parameters()).device
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for begin in range(0, len(rows_NT), batch):
            ids_BT = torch.from_numpy(rows_NT[begin : begin + batch].astype(np.int64)).to(where)
            loss = next_token_loss(model(input_ids=ids_BT, use_cache=False).logits, ids_BT)
            total += float(loss) * len(ids_BT)
    model.train(training)
    return total / len(rows_NT)


class Trainer:
    """One run of one model."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        rows_NT: Ids,
        loss: Loss,
        choose: Callable[[], float],
        folder: Path,
        say: Say,
        *,
        name: str = "training",
        trained: Iterable[nn.Parameter] | None = None,
        masks: Sequence[tuple[nn.Parameter, torch.Tensor]] = (),
        steered: Sequence[torch.Tensor] = (),
    ) -> None:
        """`choose`: loss on the text that chooses. `folder`: this run's own, where it is saved and goes on from.

        `trained`: parameters that train, None for all that require gradients. `masks`: of a parameter of those, where
        its gradient counts (1) and where it stays bit for bit (0), broadcast to its shape. `steered`: what `loss`
        itself changes in training, kept and gone on with as parameters are. Raises UserError if the time is too short.
        """
        self._model, self._recipe, self._rows_NT, self._loss, self._choose = model, recipe, rows_NT, loss, choose
        self._folder, self._say, self._name = folder, say, name
        self._masks, self._steered = list(masks), list(steered)
        self._parameters = [p for p in (model.parameters() if trained is None else trained) if p.requires_grad]
        if not self._parameters:
            raise BreakevenError(f"{name}: nothing in this model trains")
        masked = {id(p) for p, _ in self._masks}
        # Decay would move what a mask holds still, and norms have nothing to decay to.
        decayed = [p for p in self._parameters if p.ndim > 1 and id(p) not in masked]
        rest = [p for p in self._parameters if p.ndim <= 1 or id(p) in masked]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.rate, betas=(0.9, 0.95))
        self._batches = Batches(len(rows_NT), recipe.batch, recipe.seed)
        self._device = self._parameters[0].device
        folder.mkdir(parents=True, exist_ok=True)
        self._step, self._seconds = 0, 0.0
        self._losses: list[list[float]] = []
        self._checks: list[list[float]] = []
        self._n_steps = 0
        if not self._restore():
            self._n_steps = self._planned()

    def run(self) -> Trained:
        """Train to the end, from where it was stopped if it was, and leave the best checkpoint in the model."""
        recipe, n_steps = self._recipe, self._n_steps
        every = max(1, math.ceil(n_steps / recipe.checks))
        if not self._checks:
            self._check()
        self._model.train()
        saved_at, smooth = time.monotonic(), self._losses[-1][1] if self._losses else 0.0
        while self._step < n_steps:
            began = time.perf_counter()
            for group in self._optimizer.param_groups:
                group["lr"] = recipe.rate * self._share_of_rate(self._step)
            value = self._one()
            nn.utils.clip_grad_norm_(self._parameters, recipe.clip)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self._seconds += time.perf_counter() - began
            self._step += 1
            if not math.isfinite(value):
                self._no_number()
            self._losses.append([self._step, value])
            smooth = value if self._step == 1 else _SMOOTH * smooth + (1 - _SMOOTH) * value
            self._tell(smooth)
            if self._step % every == 0 or self._step == n_steps:
                self._check()
                self._model.train()
            if self._step == n_steps or time.monotonic() - saved_at > _SAVE_EVERY_S:
                self._save()
                saved_at = time.monotonic()
        best = self._best_step()
        self._put(self._read(_best(best)))
        self._model.eval()
        thin = max(1, math.ceil(len(self._losses) / _MOST_LOSSES))
        return Trained(
            steps=self._step,
            tokens=self._step * self._recipe.batch * self._rows_NT.shape[1],
            seconds=self._seconds,
            losses=self._losses[::thin],
            checks=self._checks,
            best_step=best,
        )

    def _one(self) -> float:
        """Gradients of the present step's batch; its loss."""
        numbers = self._batches.rows(self._step)
        ids_BT = torch.from_numpy(self._rows_NT[numbers].astype(np.int64)).to(self._device)
        with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
            loss = self._loss(ids_BT, numbers)
        loss.backward()
        for parameter, mask in self._masks:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)
        return float(loss.detach())

    def _share_of_rate(self, step: int) -> float:
        warm = max(1, round(self._recipe.warmup * self._n_steps))
        fall = max(1, round(self._recipe.decay * self._n_steps))
        return min(1.0, (step + 1) / warm, (self._n_steps - step) / fall)

    def _planned(self) -> int:
        """Steps that the time allows, by a few that are timed and undone."""
        recipe = self._recipe
        if recipe.steps is not None:
            return recipe.steps
        assert recipe.seconds is not None
        self._model.train()
        timed, before = [], [each.detach().clone() for each in self._steered]
        # What is dropped at random in training must not depend on whether steps were timed: `--steps` repeats a run.
        with torch.random.fork_rng():
            for _ in range(_TIMED_STEPS):
                began = time.perf_counter()
                self._one()
                timed.append(time.perf_counter() - began)
                self._optimizer.zero_grad(set_to_none=True)
            began = time.perf_counter()
            self._choose()
            choosing = time.perf_counter() - began
        with torch.no_grad():
            for each, value in zip(self._steered, before, strict=True):
                each.copy_(value)
        apart = (recipe.checks + 1) * choosing
        n_steps = int((recipe.seconds - apart) / min(timed))
        if n_steps < _LEAST_STEPS:
            least = math.ceil(apart + _LEAST_STEPS * min(timed))
            raise UserError(
                f"--for {recipe.seconds:g}s is {max(0, n_steps)} steps of {min(timed):.2g} s here, and "
                f"{_LEAST_STEPS} are the least that teach anything; give --for {least}s, or a smaller model"
            )
        return n_steps

    def _tell(self, smooth: float) -> None:
        rate = self._step * self._recipe.batch * self._rows_NT.shape[1] / self._seconds
        left = (self._n_steps - self._step) * self._seconds / self._step
        self._say(
            f"{self._name}: loss {smooth:.3f}, {rate:,.0f} tokens/s, {left // 60:.0f}:{left % 60:02.0f} left",
            self._step / self._n_steps,
        )

    def _check(self) -> None:
        """Read the text that chooses, and keep the model if it never was better."""
        found = self._choose()
        if not math.isfinite(found):
            self._no_number()
        if not self._checks or found < min(check[1] for check in self._checks):
            self._write(_best(self._step), self._taken())
        self._checks.append([self._step, found])

    def _best_step(self) -> int:
        return int(min(self._checks, key=lambda check: check[1])[0])

    def _no_number(self) -> NoReturn:
        # What was saved would only end here again.
        for path in (self._folder / STATE, *self._folder.glob(_best("*"))):
            path.unlink(missing_ok=True)
        do = "give a lower --rate" if self._step else "the model is damaged; fetch it again"
        raise BreakevenError(f"{self._name}: the loss is no number at step {self._step}; {do}")

    def _taken(self) -> list[torch.Tensor]:
        return [each.detach() for each in (*self._parameters, *self._steered)]

    def _put(self, values: Sequence[torch.Tensor]) -> None:
        with torch.no_grad():
            for each, value in zip((*self._parameters, *self._steered), values, strict=True):
                each.copy_(value)

    def _save(self) -> None:
        self._write(
            STATE,
            {
                "parameters": self._taken(),
                "optimizer": self._optimizer.state_dict(),
                "random": torch.get_rng_state(),
                "n_steps": self._n_steps,
                "step": self._step,
                "seconds": self._seconds,
                "losses": self._losses,
                "checks": self._checks,
            },
        )
        # Not before: a run that is killed in between goes on from a state whose best is an older one.
        for path in set(self._folder.glob(_best("*"))) - {self._folder / _best(self._best_step())}:
            path.unlink()

    def _restore(self) -> bool:
        """Go on from what was saved; whether there was any."""
        if not (self._folder / STATE).is_file():
            return False
        state: dict[str, Any] = self._read(STATE)
        try:
            self._put(state["parameters"])
            self._optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["random"].cpu())
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise self._damaged(STATE) from error
        self._n_steps, self._step, self._seconds = state["n_steps"], state["step"], state["seconds"]
        self._losses, self._checks = state["losses"], state["checks"]
        return True

    def _read(self, name: str) -> Any:
        try:
            return torch.load(self._folder / name, weights_only=True, map_location=self._device)
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, UnpicklingError) as error:
            raise self._damaged(name) from error

    def _damaged(self, name: str) -> UserError:
        return UserError(f"{self._folder / name}: damaged; remove {self._folder} to begin anew")

    def _write(self, name: str, content: object) -> None:
        held = io.BytesIO()
        torch.save(content, held)
        write_whole(self._folder / name, held.getbuffer())


def _best(step: int | str) -> str:
    """The file of the best checkpoint, by its step: one that was written after the last state is not taken for it."""
    return f"best-{step}.pt"
