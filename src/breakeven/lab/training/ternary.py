"""Weights that are trained in {-1, 0, 1}, times a scale for every 256 of a row: two bits by training, not by rounding.

Child process only: torch. What is trained are weights as usual; whenever the model reads one, it reads it rounded to
what a file can hold, and the gradient passes that rounding as if it were not there (straight-through: Bengio, Leonard
and Courville 2013; for language models, Ma and others 2024). So the loss that is made smaller is the small file's, and
`bits.exact` then packs the weights without changing any: matrices as `TQ2_0`, the embedding and the output matrix,
which tell the likeliest tokens apart, as `Q8_0`. Norms, biases and routers stay in single precision.

An engine multiplies such matrices with activations that it rounds to 8 bits. How far that alone moves predictions is
told by `run`, for what `bits.exact` holds the served file to.

Legend: R rows (of all experts), C columns, G groups of a row that share a scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from breakeven.engines.inside.child import Say
from breakeven.errors import UserError
from breakeven.lab.bits.exact import RoundingAsked, RoundingTold
from breakeven.lab.torch_scorer import load_model

GROUP = 256
"""Weights that share a scale in `TQ2_0`."""
_GROUP_8 = 32
"""In `Q8_0`."""
_STEPS_8 = 127
_LEAST_SCALE_8 = 2.0**-16
"""Below it, half precision tells scales apart too coarsely for the largest of a group to stay 127 of them."""
_ZERO_BELOW = 0.7
"""Of a group's mean size: weights smaller than that become 0, which of normal weights leaves nearly the least squared
error (Li, Zhang and Liu 2016, ternary weight networks)."""
_EXPERTS = ("gate_up_proj", "down_proj")
"""What transformers calls the fused matrices of all experts."""

Rounding = Callable[[torch.Tensor], torch.Tensor]


class TernaryCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many weights are trained in which form."""

    ternary: int
    eight_bits: int
    single: int


def ternary(w_RC: torch.Tensor) -> torch.Tensor:
    """The nearest that `TQ2_0` holds: in every group -s, 0 or s, with s the mean size of those that are not 0."""
    w_RGc = w_RC.unflatten(-1, (-1, GROUP))
    size_RGc = w_RGc.abs()
    kept_RGc = size_RGc > _ZERO_BELOW * size_RGc.mean(-1, keepdim=True)
    scale_RG1 = (size_RGc * kept_RGc).sum(-1, keepdim=True) / kept_RGc.sum(-1, keepdim=True).clamp(min=1)
    return (w_RGc.sign() * kept_RGc * _half(scale_RG1)).flatten(-2)


def eight_bits(w_RC: torch.Tensor) -> torch.Tensor:
    """The nearest that `Q8_0` holds: in every group of 32 whole numbers from -127 to 127 times a scale."""
    w_RGc = w_RC.unflatten(-1, (-1, _GROUP_8))
    scale_RG1 = _half(w_RGc.abs().amax(-1, keepdim=True) / _STEPS_8)
    scale_RG1 = torch.where(scale_RG1 < _LEAST_SCALE_8, 0.0, scale_RG1)
    steps_RGc = (w_RGc / scale_RG1.clamp(min=_LEAST_SCALE_8)).round().clamp(-_STEPS_8, _STEPS_8)
    return (steps_RGc * scale_RG1).flatten(-2)


def _half(scale: torch.Tensor) -> torch.Tensor:
    """As a file holds a scale."""
    return scale.half().to(scale.dtype)


class _Read(nn.Module):
    """A weight as the model reads it: rounded forward, itself backward."""

    def __init__(self, rounding: Rounding) -> None:
        super().__init__()
        self._rounding = rounding

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        rounded = self._rounding(weight.detach())
        # The difference is exactly nothing, and carries the gradient; w + (rounded - w) would not be exactly rounded.
        return rounded + (weight - weight.detach())


def make_ternary(model: nn.Module) -> TernaryCounts:
    """Have every matrix of a model in transformers read in the form it will be stored in, from now on.

    Its parameters train as before, the same in number and order. Raises UserError for rows that 256 does not divide.
    """
    counts: dict[Rounding, int] = {ternary: 0, eight_bits: 0}
    seen: set[int] = set()
    for module, name, rounding in list(_rounded(model)):
        weight = getattr(module, name)
        parametrize.register_parametrization(module, name, _Read(rounding))
        # An embedding that is the output matrix too is one weight, read in two places.
        if id(weight) not in seen:
            counts[rounding] += weight.numel()
        seen.add(id(weight))
    n = sum(parameter.numel() for parameter in model.parameters())
    return TernaryCounts(ternary=counts[ternary], eight_bits=counts[eight_bits], single=n - sum(counts.values()))


def leave_ternary(model: nn.Module) -> None:
    """End it: the model's weights are from now on what it read, ready to be saved."""
    for module in model.modules():
        for name in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _rounded(model: nn.Module) -> Iterator[tuple[nn.Module, str, Rounding]]:
    """Each matrix: where it is, under what name, and how it is rounded."""
    around = [model.get_input_embeddings(), model.get_output_embeddings()]
    for path, module in model.named_modules():
        if any(module is each for each in around):
            yield module, "weight", eight_bits
        elif isinstance(module, nn.Linear):
            if not _routes(path):
                _check_width(f"{path}.weight", module.weight)
                yield module, "weight", ternary
        else:
            for name, weight in module.named_parameters(recurse=False):
                if name in _EXPERTS and weight.ndim == 3:
                    _check_width(f"{path}.{name}", weight)
                    yield module, name, ternary


def _routes(path: str) -> bool:
    last = path.rpartition(".")[2]
    return last in ("gate", "router") or last.endswith("_gate")


def _check_width(name: str, weight: torch.Tensor) -> None:
    if weight.shape[-1] % GROUP:
        raise UserError(
            f"{name} has rows of {weight.shape[-1]:,}, and TQ2_0 holds groups of {GROUP}: --ternary needs hidden and "
            f"feed-forward widths, and heads times their width, that are multiples of {GROUP}"
        )


class _Rounded(TorchFunctionMode):
    """Meanwhile every product with a matrix has its activations rounded to 8 bits, as llama.cpp's kernels do."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._output = model.get_output_embeddings().weight.data_ptr()
        self._kept = {
            module.weight.data_ptr()
            for path, module in model.named_modules()
            if isinstance(getattr(module, "weight", None), nn.Parameter)
            and (_routes(path) or "Router" in type(module).__name__)
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and (at := args[1].data_ptr()) not in self._kept:
            # Scales are per 32 for Q8_0, in half precision; per 256 for TQ2_0, in single.
            given = eight_bits(args[0]) if at == self._output else _eight_bits_wide(args[0])
            args = (given, *args[1:])
        return func(*args, **(kwargs or {}))


def _eight_bits_wide(x_RC: torch.Tensor) -> torch.Tensor:
    x_RGc = x_RC.unflatten(-1, (-1, GROUP))
    scale_RG1 = x_RGc.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(x_RC.dtype).tiny) / _STEPS_8
    return ((x_RGc / scale_RG1).round() * scale_RG1).flatten(-2)


def run(spec: bytes, say: Say) -> RoundingTold:
    """Carry out `RoundingAsked`: mean KL from a directory's predictions to the same with activations rounded."""
    asked = msgspec.json.decode(spec, type=RoundingAsked)
    model = load_model(Path(asked.directory))
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # one product an expert, each seen
    nats, count = 0.0, 0
    with torch.inference_mode():
        for done, ids in enumerate(asked.sequences):
            say("rounding activations", done / len(asked.sequences))
            ids_1T = torch.tensor([ids])
            plain = model(input_ids=ids_1T, use_cache=False).logits[0].log_softmax(-1)
            with _Rounded(model):
                rounded = model(input_ids=ids_1T, use_cache=False).logits[0].log_softmax(-1)
            nats += float(functional.kl_div(rounded[:-1], plain[:-1], log_target=True, reduction="sum"))
            count += len(ids) - 1
    return RoundingTold(kl=nats / count)
