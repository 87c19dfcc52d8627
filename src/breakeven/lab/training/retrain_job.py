"""Some experts of a model trained on while all else is held still. Child process only: torch is imported here.

Experts lie in stacks, one tensor a matrix for all of a layer; a mask keeps the gradient of every other expert, and of
every other expert's row of the router, at zero, and without weight decay what has no gradient does not move by a bit.

Legend: B rows a batch, T tokens a row, E experts, K experts a token, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn

from breakeven.engines.inside.child import Say
from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.torch_scorer import load_model
from breakeven.lab.training.loop import Trainer, device, mean_nats, next_token_loss
from breakeven.lab.training.retrain import Retrained, RetrainJob
from breakeven.lab.training.texts import Ids
from breakeven.lab.usage.torch_watch import ExpertsHook, router_of

AUX_SHARE = 0.01
"""Of the auxiliary loss where the configuration names none: Switch Transformer's (arXiv 2101.03961)."""
BIAS_STEP = 0.001
"""By which a step moves a selection bias against its expert's load: DeepSeek-V3's (arXiv 2412.19437)."""
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer, some of whose experts train. `stacks` and `router`: parameters of one row an expert."""

    number: int
    experts: nn.Module
    stacks: list[nn.Parameter]
    router: list[nn.Parameter]
    biases: list[torch.Tensor]
    """Those that select experts and weigh none."""
    chosen: list[int]

    def masks(self) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Of every parameter that trains, the rows that may move."""
        found = []
        for parameter in (*self.stacks, *self.router):
            mask = torch.zeros(parameter.shape[0], device=parameter.device)
            mask[self.chosen] = 1.0
            found.append((parameter, mask.view(-1, *[1] * (parameter.ndim - 1))))
        return found


def run(spec: bytes, say: Say) -> Retrained:
    """Train what the job names, and leave the model in its place if it got better on the text that chooses."""
    job = msgspec.json.decode(spec, type=RetrainJob)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    say("loading", 0.0)
    model = load_model(Path(job.directory)).to(device())
    layers = chosen_layers(model, job.only)
    model.requires_grad_(False)
    masks = [each for layer in layers for each in layer.masks()]
    for parameter, _ in masks:
        parameter.requires_grad_(True)
    with np.load(job.rows) as held:
        rows = {name: held[name] for name in held.files}
    loss, steered = _loss(model, layers, job.balance, rows["train"])
    trained = Trainer(
        model,
        job.recipe,
        rows["train"],
        loss,
        lambda: sum(mean_nats(model, each, job.recipe.batch) for each in _choosing(rows)) / len(_choosing(rows)),
        Path(job.folder),
        say,
        name="retraining",
        trained=[parameter for parameter, _ in masks],
        masks=masks,
        steered=steered,
    ).run()
    if trained.best_step:
        say("writing", 1.0)
        _save(model, Path(job.made), _DTYPES[job.dtype])
    return Retrained(
        trained=trained,
        layers=[layer.number for layer in layers],
        chosen=[layer.chosen for layer in layers],
        weights=sum(int(mask.sum()) * parameter[0].numel() for parameter, mask in masks),
        batch=job.recipe.batch,
    )


def _choosing(rows: dict[str, Ids]) -> list[Ids]:
    """The text that chooses, and that of the replay: each counts as much, however long."""
    return [rows[name] for name in ("choose", "replay") if name in rows]


def chosen_layers(model: Any, only: Sequence[tuple[int | None, int]]) -> list[_Layer]:
    """The layers of the experts named, each (layer, expert); layer None: every one that routes.

    Raises UserError for a layer that does not route or an expert that it does not have, NotSupportedError for experts
    or a router that are kept in a way not known.
    """
    found = ExpertsHook(model).experts
    if not found:
        raise NotSupportedError("its experts are kept in a way that is not known here; they are not trained one by one")
    layers = []
    absent = sorted({layer for layer, _ in only if layer is not None} - found.keys())
    if absent:
        raise UserError(f"--only: layer {absent[0]} does not route; those that do: {_ranges(sorted(found))}")
    for number in sorted(found):
        name, experts = found[number]
        count = int(experts.num_experts)
        chosen = sorted({expert for layer, expert in only if layer in (None, number)})
        if not chosen:
            continue
        if chosen[-1] >= count:
            raise UserError(f"--only: layer {number} has experts 0 to {count - 1}, no {chosen[-1]}")
        stacks = list(experts.parameters())
        if any(parameter.shape[0] != count for parameter in stacks):
            raise NotSupportedError(f"layer {number}: its experts are not kept one a row, so none can be held still")
        matrix, biases = router_of(model.get_submodule(name.rpartition(".")[0]), experts, number)
        layers.append(_Layer(number, experts, stacks, matrix, biases, chosen))
    return layers


def _ranges(numbers: Sequence[int]) -> str:
    whole = numbers[-1] - numbers[0] + 1 == len(numbers) > 1
    return f"{numbers[0]} to {numbers[-1]}" if whole else ", ".join(map(str, numbers))


def _loss(
    model: Any, layers: Sequence[_Layer], balance: str | None, rows: Ids
) -> tuple[Callable[[torch.Tensor, NDArray[np.int64]], torch.Tensor], list[torch.Tensor]]:
    """What a step makes smaller, and the tensors that it moves by itself meanwhile."""
    if balance == "bias":
        if not all(len(layer.biases) == 1 for layer in layers):
            raise NotSupportedError(
                "--balance bias: this family has no bias that selects experts when it is served, so what training "
                "balances would be lost; give --balance aux, or leave it out"
            )
        return _steering(model, layers), [layer.biases[0] for layer in layers]
    if balance == "aux":
        share = float(getattr(model.config, "router_aux_loss_coef", 0.0) or AUX_SHARE)
        with torch.no_grad():
            said = model(
                input_ids=torch.from_numpy(rows[:1].astype(np.int64)).to(device()),
                use_cache=False,
                output_router_logits=True,
            )
        if getattr(said, "aux_loss", None) is None:
            raise NotSupportedError(
                "--balance aux: transformers gives no auxiliary loss for this family; give --balance bias if its "
                "router has a bias that selects, or leave it out"
            )

        def balanced(ids_BT: torch.Tensor, numbers: NDArray[np.int64]) -> torch.Tensor:
            found = model(input_ids=ids_BT, use_cache=False, output_router_logits=True)
            whole: torch.Tensor = next_token_loss(found.logits, ids_BT) + share * found.aux_loss
            return whole

        return balanced, []

    def plain(ids_BT: torch.Tensor, numbers: NDArray[np.int64]) -> torch.Tensor:
        return next_token_loss(model(input_ids=ids_BT, use_cache=False).logits, ids_BT)

    return plain, []


def _steering(model: Any, layers: Sequence[_Layer]) -> Callable[[torch.Tensor, NDArray[np.int64]], torch.Tensor]:
    """The plain loss, after which each chosen expert's bias goes up where it was chosen too rarely, else down."""
    seen: dict[int, torch.Tensor] = {}

    def note(number: int) -> Callable[..., None]:
        def keep(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            seen[number] = given[1].detach()

        return keep

    for layer in layers:
        layer.experts.register_forward_pre_hook(note(layer.number))

    def loss(ids_BT: torch.Tensor, numbers: NDArray[np.int64]) -> torch.Tensor:
        found = next_token_loss(model(input_ids=ids_BT, use_cache=False).logits, ids_BT)
        with torch.no_grad():
            for layer in layers:
                bias_E = layer.biases[0].view(-1)
                load_E = torch.bincount(seen[layer.number].flatten(), minlength=len(bias_E)).to(bias_E)
                bias_E[layer.chosen] += BIAS_STEP * torch.sign(load_E.mean() - load_E)[layer.chosen]
        return found

    return loss


def _save(model: Any, made: Path, dtype: torch.dtype) -> None:
    """The weights alone; what lies beside them is the source's."""
    try:
        model.to(dtype).save_pretrained(made, max_shard_size="4GB")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {made.name}: {' '.join(str(error).split())[:200]}; free some space") from error
