"""Adapters made elsewhere: loaded whole or not at all, and stacked experts' read as they were packed.

PEFT adapts a stack of experts with two matrices for all of them. Its rows of A stand expert by expert, its columns of B
rank by rank; other trainers write B expert by expert, and PEFT 0.18 had A on the outputs. Shapes do not always tell, no
file says, and what is read wrongly loads without a word and merges into noise. So each way that fits is tried on text.

Legend: N rows, T tokens a row, E experts, r rank; A (E r, in), B (out, E r).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora.layer import ParamWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from breakeven.engines.inside.child import Say
from breakeven.errors import NotSupportedError, UserError, one_line
from breakeven.lab.training.loop import mean_nats
from breakeven.lab.training.texts import Ids
from breakeven.lab.training.tune import ADAPTER_WEIGHTS
from breakeven.lab.training.tune_proof import WITHOUT

NAME = "default"
"""What PEFT calls the one adapter of a model."""
_TIE = 0.02
"""Nats a token: a packing that predicts better by less is not told from PEFT's own."""

Tensors = dict[str, torch.Tensor]


def attach_made(model: nn.Module, folder: Path, text_NT: Ids, say: Say) -> tuple[Any, dict[str, float]]:
    """The model with an adapter made elsewhere; and nats a token of each way to read its packing, and without it."""
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        state: Tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: is no whole adapter ({one_line(str(error))[:200]}); fetch it again") from error
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        raise NotSupportedError(f"{folder}: an adapter of the kind {config.peft_type}; LoRA is what is merged here")
    config.inference_mode = True
    try:
        wrapped = peft.get_peft_model(model, config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder}: does not fit this model ({one_line(str(error))[:300]})") from error
    fused = {
        f"base_model.model.{name}": module
        for name, module in wrapped.base_model.model.named_modules()
        if isinstance(module, ParamWrapper) and module.num_experts > 1
    }
    tried: dict[str, float] = {}
    kept: dict[str, Tensors] = {}
    for words, read in _PACKINGS.items():
        packed = read(state, fused)
        if packed is None or any(_equal(packed, other) for other in kept.values()):
            continue
        kept[words] = packed
    if not kept:
        name = next(name for name, module in fused.items() if not _fits(state, name, module))
        raise UserError(f"{folder}: {name}.lora_A has another shape than this model's experts; give the adapter's base")
    for words, packed in kept.items():
        _put(wrapped, packed, folder)
        if len(kept) > 1:
            say("how its experts are packed", len(tried) / len(kept))
            tried[words] = mean_nats(wrapped, text_NT, 1)
    without: dict[str, float] = {}
    if tried:
        with wrapped.disable_adapter():
            without[WITHOUT] = mean_nats(wrapped, text_NT, 1)
    usual = next(iter(kept))
    best = min(tried, key=lambda words: tried[words]) if tried else usual
    if tried and tried[usual] - tried[best] < _TIE:
        best = usual
    _put(wrapped, kept[best], folder)
    # The one that was taken comes first, and last what shows a packing that nothing here reads: the model as it was.
    return wrapped, {best: tried[best], **tried, **without} if tried else {}


def _put(wrapped: Any, state: Tensors, folder: Path) -> None:
    try:
        told = peft.set_peft_model_state_dict(wrapped, dict(state), adapter_name=NAME)
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"{folder}: does not fit this model ({one_line(str(error))[:300]})") from error
    if over := sorted(told.unexpected_keys):
        raise UserError(
            f"{folder}: {over[0]} has no place in this model and would be passed over; give the model it was made for"
        )
    if lost := sorted(key for key in told.missing_keys if ".lora_" in key or ".modules_to_save." in key):
        raise UserError(f"{folder}: lacks {lost[0]}, which its configuration names; fetch the whole adapter")


def _fits(state: Tensors, name: str, module: ParamWrapper) -> bool:
    a, b = state.get(f"{name}.lora_A.weight"), state.get(f"{name}.lora_B.weight")
    if a is None or b is None:
        return True  # other names, of single experts: PEFT packs them itself
    return bool(a.shape == module.lora_A[NAME].weight.shape and b.shape == module.lora_B[NAME].weight.shape)


def _as_peft(state: Tensors, fused: Mapping[str, ParamWrapper]) -> Tensors | None:
    return state if all(_fits(state, name, module) for name, module in fused.items()) else None


def _of_each(change: Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """A way to read a packing: `change` of each A, B and number of experts; None where the shapes do not fit then."""

    def read(state: Tensors, fused: Mapping[str, ParamWrapper]) -> Tensors | None:
        changed = dict(state)
        for name, module in fused.items():
            a, b = (state.get(f"{name}.lora_{side}.weight") for side in "AB")
            if a is None or b is None or a.shape[0] % module.num_experts or b.shape[1] != a.shape[0]:
                continue
            pair = change(a, b, module.num_experts)
            for side, tensor in zip("AB", pair, strict=True):
                changed[f"{name}.lora_{side}.weight"] = tensor.contiguous()
        return _as_peft(changed, fused)

    return read


def _by_expert(a: torch.Tensor, b: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """B's columns expert by expert, as A's rows are; PEFT has them rank by rank."""
    return a, b.reshape(b.shape[0], n, -1).transpose(1, 2).reshape(b.shape)


def _swapped(a: torch.Tensor, b: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A on the outputs and B on the inputs, as PEFT 0.18 had them for stacks of (E, out, in)."""
    rank = a.shape[0] // n
    new_a = b.reshape(b.shape[0], rank, n).permute(2, 1, 0).reshape(n * rank, -1)
    new_b = a.reshape(n, rank, -1).permute(2, 1, 0).reshape(-1, rank * n)
    return new_a, new_b


_PACKINGS: dict[str, Callable[[Tensors, Mapping[str, ParamWrapper]], Tensors | None]] = {
    "as PEFT packs": _as_peft,
    "expert by expert": _of_each(_by_expert),
    "sides swapped, as PEFT 0.18": _of_each(_swapped),
    "sides swapped, expert by expert": _of_each(lambda a, b, n: _swapped(*_by_expert(a, b, n), n)),
}


def _equal(one: Tensors, other: Tensors) -> bool:
    return all(one[name].shape == other[name].shape and torch.equal(one[name], other[name]) for name in one)
