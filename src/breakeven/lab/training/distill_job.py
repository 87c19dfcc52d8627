"""One student, or its twin, in the process with torch: trained on text alone, or on what its teacher finds likely too.

Legend: B rows of a batch, T tokens a row, V vocabulary, C likeliest tokens in the teacher's cache.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from breakeven.engines.inside.child import Say
from breakeven.lab.torch_scorer import EXPERTS, load_model
from breakeven.lab.training.loop import Trainer, device, mean_nats, next_token_loss
from breakeven.lab.training.student import ArmDone, ArmSpec, write_beside
from breakeven.lab.training.teacher import Cache
from breakeven.lab.training.ternary import leave_ternary, make_ternary
from breakeven.lab.training.work import Recipe

TEACHER_SHARE = 0.7
"""Of a student's loss; the rest is the text's own next token."""
_BALANCE = 0.01
"""Of the loss that spreads tokens over experts."""
_LEAST_REST = 1e-6


class _BetterError(Exception):
    """The model predicts the text that chooses as well as the teacher does. `nats`: a token."""

    def __init__(self, nats: float) -> None:
        super().__init__(nats)
        self.nats = nats


def run(content: bytes, say: Say) -> ArmDone:
    """Train, keep the best checkpoint, and save it as a directory that engines read."""
    spec = msgspec.json.decode(content, type=ArmSpec)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = _begun(spec).to(device())
    if spec.ternary:
        make_ternary(model)
    choose_NT = np.load(spec.choose)

    def choose() -> float:
        found = mean_nats(model, choose_NT, spec.batch)
        if spec.beaten_by is not None and found <= spec.beaten_by:
            raise _BetterError(found)
        return found

    recipe = Recipe(seed=spec.seed, rate=spec.rate, batch=spec.batch, seconds=spec.seconds, steps=spec.steps)
    folder, rows_NT = Path(spec.folder), np.load(spec.rows)
    try:
        trained = Trainer(model, recipe, rows_NT, _loss(model, spec), choose, folder, say, name=spec.name).run()
    except _BetterError as error:
        return ArmDone(better=error.nats)
    if spec.ternary:
        leave_ternary(model)
        model.tie_weights()
    _save(model, spec)
    return msgspec.convert(msgspec.to_builtins(trained), type=ArmDone)


def _begun(spec: ArmSpec) -> Any:
    """The model before its training: as it was given, or drawn by the seed."""
    if spec.begun:
        return load_model(Path(spec.directory))
    config = transformers.AutoConfig.from_pretrained(spec.directory, local_files_only=True, trust_remote_code=False)
    torch.manual_seed(spec.seed)
    model: Any = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False).float()
    if model._can_set_experts_implementation():
        model.set_experts_implementation(EXPERTS)
    return model


def _loss(model: Any, spec: ArmSpec) -> Callable[[torch.Tensor, NDArray[np.int64]], torch.Tensor]:
    cache = None if spec.cache is None else Cache(Path(spec.cache))
    routed: dict[str, bool] = {"output_router_logits": True} if hasattr(model, "router_aux_loss_coef") else {}

    def loss(ids_BT: torch.Tensor, numbers: NDArray[np.int64]) -> torch.Tensor:
        found = model(input_ids=ids_BT, use_cache=False, **routed)
        if cache is None:
            value = next_token_loss(found.logits, ids_BT)
        else:
            tokens_BTC, logs_BTC = (torch.from_numpy(each).to(ids_BT.device) for each in cache.rows(numbers))
            value = taught_loss(found.logits, ids_BT, tokens_BTC, logs_BTC)
        return value + _BALANCE * found.aux_loss if routed else value

    return loss


def taught_loss(
    logits_BTV: torch.Tensor, ids_BT: torch.Tensor, tokens_BTC: torch.Tensor, logs_BTC: torch.Tensor
) -> torch.Tensor:
    """Nats a token: of the teacher's distribution (its likeliest tokens, and the rest as one) and of the text itself.

    The first is smallest where the student's distribution is the teacher's.
    """
    mine_BTV = logits_BTV.float().log_softmax(-1)
    mine_BTC = mine_BTV.gather(-1, tokens_BTC)
    p_BTC = logs_BTC.exp()
    rest_BT = (1 - p_BTC.sum(-1)).clamp_min(0.0)
    my_rest_BT = (1 - mine_BTC.exp().sum(-1)).clamp_min(_LEAST_REST).log()
    taught = -((p_BTC * mine_BTC).sum(-1) + rest_BT * my_rest_BT).mean()
    came = -mine_BTV[:, :-1].gather(-1, ids_BT[:, 1:, None]).mean()
    return TEACHER_SHARE * taught + (1 - TEACHER_SHARE) * came


def _save(model: Any, spec: ArmSpec) -> None:
    made = Path(spec.made)
    partial = made.with_name(f"{made.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.cpu().save_pretrained(partial)
    write_beside(Path(spec.directory), partial)
    shutil.rmtree(made, ignore_errors=True)
    partial.replace(made)
