"""The experiment's work: operators that learn what attention gives, layer by layer, then together. Child process only.

Legend: B sequences, T tokens, H hidden width, F features of a place, N rows, V vocabulary.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from breakeven.engines.inside.child import Say
from breakeven.errors import NotSupportedError
from breakeven.lab.torch_scorer import load_model
from breakeven.lab.training.hyena import ROWS, WEIGHTS, HyenaAsked, HyenaTold, LengthSpeed, Parity
from breakeven.lab.training.loop import Trainer, device, mean_nats
from breakeven.lab.training.texts import Ids
from breakeven.lab.training.work import Recipe
from breakeven.stats.estimate import measured
from breakeven.stats.intervals import MIN_PAIRS, mean_interval

_SHORT = 3
"""Places that the short convolution before gating reads."""
_BANDS = 8
_FILTER_WIDTH = 64
_SINE = 10.0
"""How fast the filter's features turn: what lets a small network draw a jagged filter (Poli and others, 3.3)."""
_FALLS = (1.0, 12.0)
"""e-folds of the slowest and the fastest channel's filter over a row, so that some see far and some near."""
_GATED = 0.1
"""Of the usual size, what gates and outputs begin with."""
_ALONE = 1 / 3
"""Of the time, for layers one by one."""
_TASK_ROWS = 24
_TIMED = 3


class LongConvolution(nn.Module):
    """The Hyena operator of order 2: q times a long convolution of k times v, each first seen through a short one."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, 3 * width)
        self.short = nn.Conv1d(3 * width, 3 * width, _SHORT, groups=3 * width, padding=_SHORT - 1)
        self.filter = nn.Sequential(
            nn.Linear(1 + 2 * _BANDS, _FILTER_WIDTH), _Sine(), nn.Linear(_FILTER_WIDTH, _FILTER_WIDTH), _Sine(),
            nn.Linear(_FILTER_WIDTH, width, bias=False),
        )  # fmt: skip
        self.skip = nn.Parameter(torch.ones(width))
        self.out = nn.Linear(width, width)
        self.falls_H: torch.Tensor
        self.register_buffer("falls_H", torch.logspace(*(math.log10(each) for each in _FALLS), width))
        self._tokens = tokens
        # It begins as a fading mean of values that nothing gates, which is near to what attention begins as.
        with torch.no_grad():
            self.short.weight.zero_()
            self.short.weight[..., -1] = 1.0
            self.short.bias.zero_()
            self.into.weight[: 2 * width] *= _GATED
            self.into.bias[: 2 * width] = 1.0
            self.out.weight *= _GATED

    def forward(self, x_BTH: torch.Tensor) -> torch.Tensor:
        """What stands at a place depends on it and those before alone."""
        n = x_BTH.shape[1]
        q_BHT, k_BHT, v_BHT = self.short(self.into(x_BTH).mT)[..., :n].chunk(3, dim=1)
        gated_BHT = k_BHT * v_BHT
        # Twice as long, so that the end does not run into the beginning.
        seen = torch.fft.irfft(torch.fft.rfft(gated_BHT, 2 * n) * torch.fft.rfft(self._filter_HT(n), 2 * n), 2 * n)
        mixed: torch.Tensor = self.out((q_BHT * (seen[..., :n] + self.skip[:, None] * gated_BHT)).mT)
        return mixed

    def _filter_HT(self, n: int) -> torch.Tensor:
        """A function of the distance, told in rows as trained on, so that it goes on beyond them."""
        t_T1 = torch.arange(n, device=self.skip.device)[:, None] / self._tokens
        turns = 2 * math.pi * t_T1 * torch.arange(1, _BANDS + 1, device=t_T1.device)
        features_TF = torch.cat([t_T1, turns.sin(), turns.cos()], -1)
        fallen_TH = torch.exp(-t_T1 * self.falls_H)
        drawn: torch.Tensor = ((1 + self.filter(features_TF)) * fallen_TH / math.sqrt(self._tokens)).mT
        return drawn


class _Sine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(_SINE * x)


class _InPlace(nn.Module):
    """An operator where transformers calls attention."""

    def __init__(self, operator: LongConvolution) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, hidden_states: torch.Tensor, **_others: object) -> tuple[torch.Tensor, None]:
        return self.operator(hidden_states), None


def run(spec: bytes, say: Say) -> HyenaTold:
    """Carry out `HyenaAsked`."""
    asked = msgspec.json.decode(spec, type=HyenaAsked)
    folder = Path(asked.folder)
    began = time.monotonic()
    with np.load(folder / ROWS) as arrays:
        train_NT, choose_NT, judge_NT = (arrays[name] for name in ("train", "choose", "judge"))
    tokens = train_NT.shape[1]
    attention: Any = load_model(Path(asked.directory)).to(device()).requires_grad_(False)
    layers = _layers(attention)
    torch.manual_seed(asked.seed)
    width = int(attention.config.hidden_size)
    operators = nn.ModuleList(LongConvolution(width, tokens) for _ in layers).to(device())

    def part(share: float) -> Recipe:
        seconds = None if asked.seconds is None else share * asked.seconds
        steps = None if asked.steps is None else max(1, round(share * asked.steps))
        return Recipe(seed=asked.seed, rate=asked.rate, batch=asked.batch, seconds=seconds, steps=steps)

    errors_L: list[float] = []

    def apart(ids_BT: torch.Tensor) -> torch.Tensor:
        """Squared error of each operator on what attention in its place was given, over that attention's variance."""
        pairs = _seen(attention, layers, ids_BT)
        return torch.stack(
            [functional.mse_loss(op(x), y) / y.var() for op, (x, y) in zip(operators, pairs, strict=True)]
        )

    def chosen() -> float:
        with torch.inference_mode():
            errors_L[:] = _over_rows(choose_NT, asked.batch, apart).tolist()
        return sum(errors_L)

    first = Trainer(
        operators, part(_ALONE), train_NT, lambda ids, rows: apart(ids).sum(), chosen, folder / "layers", say,
        name="layer by layer",
    ).run()  # fmt: skip
    chosen()  # of the best, which is what goes on

    student: Any = copy.deepcopy(attention).requires_grad_(True)
    for layer, operator in zip(_layers(student), operators, strict=True):
        layer.self_attn = _InPlace(operator)

    def together(ids_BT: torch.Tensor, _rows: object) -> torch.Tensor:
        with torch.no_grad():
            target = attention(input_ids=ids_BT, use_cache=False).logits.log_softmax(-1)
        ours = student(input_ids=ids_BT, use_cache=False).logits.log_softmax(-1)
        return functional.kl_div(ours.flatten(0, 1), target.flatten(0, 1), log_target=True, reduction="batchmean")

    second = Trainer(
        student, part(1 - _ALONE), train_NT, together, lambda: mean_nats(student, choose_NT, asked.batch),
        folder / "together", say, name="together",
    ).run()  # fmt: skip
    save_file({name: p.detach().cpu().contiguous() for name, p in student.named_parameters()}, folder / WEIGHTS)
    say("comparing", 1.0)
    return HyenaTold(
        layers=len(layers),
        trained_tokens=first.tokens + second.tokens,
        row_tokens=tokens,
        layer_errors=list(errors_L),
        parity=_parity(attention, student, judge_NT, asked.lengths, asked.seed),
        speeds=[_speed(attention, student, length) for length in asked.speed_lengths],
        steps=first.steps + second.steps,
        seconds=time.monotonic() - began,
        losses=second.losses,
    )


def _layers(model: Any) -> list[Any]:
    layers = list(getattr(getattr(model, "model", None), "layers", []))
    if not layers or not all(hasattr(layer, "self_attn") for layer in layers):
        raise NotSupportedError("its layers have no attention of their own that an operator could replace")
    return layers


def _seen(model: Any, layers: list[Any], ids_BT: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What each attention was given and gave."""
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(_module: object, _args: object, given: dict[str, Any], gave: Any) -> None:
        pairs.append((given["hidden_states"], gave[0]))

    hooks = [layer.self_attn.register_forward_hook(keep, with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            model(input_ids=ids_BT, use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


def _over_rows(rows_NT: Ids, batch: int, of: Any) -> torch.Tensor:
    found = [of(_ids(rows_NT[at : at + batch])) for at in range(0, len(rows_NT), batch)]
    return torch.stack(found).mean(0)


def _ids(rows_NT: Ids) -> torch.Tensor:
    return torch.from_numpy(rows_NT.astype(np.int64)).to(device())


def _parity(attention: Any, student: Any, judge_NT: Ids, lengths: Sequence[int], seed: int) -> list[Parity]:
    rng = np.random.default_rng([seed, 7])
    flat = judge_NT.reshape(-1)
    known = np.unique(flat)
    found = []
    for length in lengths:
        rows_NT = flat[: flat.size // length * length].reshape(-1, length)[: 4 * _TASK_ROWS]
        if len(rows_NT) >= MIN_PAIRS:
            found.append(_both("text", length, attention, student, rows_NT, _nats))
    for length in lengths:
        half_NT = rng.choice(known, (_TASK_ROWS, length // 2))
        found.append(_both("copy", length, attention, student, np.concatenate([half_NT, half_NT], 1), _right_again))
    for length in lengths:
        found.append(_both("recall", length, attention, student, _phone_book(known, length, rng), _right_last))
    return found


def _phone_book(known: Ids, length: int, rng: np.random.Generator) -> Ids:
    """Keys, each with its value behind it, then one of the keys and its value again."""
    rows = []
    for _ in range(_TASK_ROWS):
        entries = rng.choice(known, min(length - 2, len(known)) // 2 * 2, replace=False)
        at = 2 * int(rng.integers(len(entries) // 2))
        rows.append(np.concatenate([entries, entries[at : at + 2]]))
    return np.stack(rows)


def _both(task: str, length: int, attention: Any, student: Any, rows_NT: Ids, of: Any) -> Parity:
    values = []
    for model in (attention, student):
        model.eval()
        with torch.inference_mode():
            values.append([of(model(input_ids=_ids(row[None]), use_cache=False).logits[0], row) for row in rows_NT])
    value, low, high = mean_interval([ours - theirs for theirs, ours in zip(*values, strict=True)])
    means = [float(np.mean(each)) for each in values]
    return Parity(
        task=task,
        length=length,
        attention=means[0],
        hyena=means[1],
        difference=measured(value, low, high, len(rows_NT)),
    )


def _nats(logits_TV: torch.Tensor, row: Ids) -> float:
    return float(functional.cross_entropy(logits_TV[:-1].float(), _ids(row)[1:]))


def _right_again(logits_TV: torch.Tensor, row: Ids) -> float:
    half = len(row) // 2
    return float((logits_TV[half:-1].argmax(-1) == _ids(row)[half + 1 :]).float().mean())


def _right_last(logits_TV: torch.Tensor, row: Ids) -> float:
    return float(int(logits_TV[-2].argmax()) == int(row[-1]))


def _speed(attention: Any, student: Any, length: int) -> LengthSpeed:
    ids_BT = torch.zeros((1, length), dtype=torch.int64, device=device())
    rates = []
    for model in (attention, student):
        taken = []
        for _ in range(_TIMED):
            began = time.perf_counter()
            with torch.inference_mode():
                float(model(input_ids=ids_BT, use_cache=False, logits_to_keep=1).logits[0, 0, 0])
            taken.append(time.perf_counter() - began)
        rates.append(length / min(taken))
    return LengthSpeed(length=length, attention=rates[0], hyena=rates[1])
