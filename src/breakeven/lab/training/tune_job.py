"""Adapters in PEFT: attached, trained, merged, and held against each other. Child process only: torch.

transformers 5 keeps a layer's experts in two stacks, which no adapter for modules reaches: PEFT adapts them as
parameters (`target_parameters`). So are dense feed-forwards of a model with experts, since PEFT takes the name of one
for an expert's. What is adapted afterwards is read from the model itself, never from what was asked.

Legend: P rows, T tokens a row, V vocabulary, E experts, r rank; A and B: an adapter's two matrices.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # PEFT asks the hub about a base's name
import peft
import torch
from numpy.typing import NDArray
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig

from breakeven.engines.inside.child import Say
from breakeven.errors import BreakevenError, NotSupportedError, UserError, one_line
from breakeven.lab.torch_scorer import load_model
from breakeven.lab.training.loop import Trainer, device, mean_nats, next_token_loss
from breakeven.lab.training.packings import NAME, attach_made
from breakeven.lab.training.texts import Ids
from breakeven.lab.training.tune import ADAPTER, ADAPTER_WEIGHTS
from breakeven.lab.training.tune_proof import BASE_LOGITS, KINDS_OF, Attached, Merged, TuneDone, TuneJob, kind_of
from breakeven.lab.training.work import Trained

_AUXILIARY = 0.001
"""Weight of the loss that keeps loads even while routers train, where the configuration names none."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One matrix or vector of the model, by the name of its parameter. `linear`: a module that PEFT adapts as such."""

    name: str
    kind: str
    weights: int
    linear: bool


def run(spec: bytes, say: Say) -> TuneDone:
    """Attach and train, or attach what was made elsewhere; then merge into a new directory and compare."""
    warnings.filterwarnings("ignore", module="peft")
    try:
        return _tuned(msgspec.json.decode(spec, type=TuneJob), say)
    except OSError as error:
        where = error.filename or "what is made"
        raise UserError(
            f"cannot write {where}: {error.strerror or error}; free some space and give it again"
        ) from error


def _tuned(job: TuneJob, say: Say) -> TuneDone:
    with np.load(job.rows) as arrays:
        rows = {name: arrays[name] for name in arrays.files}
    trained: Trained | None = None
    packings, learned = dict[str, float](), dict[str, torch.Tensor]()
    if job.quantized:
        trained, learned = _in_four_bits(job, rows, say)
    # What fits beside nothing but four bits is merged and held against itself where there is room.
    model = load_model(Path(job.base)).to("cpu" if job.quantized else device())
    parts = _parts(model)
    if job.quantized:
        wrapped = _attach(model, parts, job)
        peft.set_peft_model_state_dict(wrapped, learned)
    elif job.adapter is None:
        wrapped = _attach(model, parts, job)
        say(_trains(wrapped, parts), 0.0)
        trained = _train(wrapped, job, rows, say)
    else:
        wrapped, packings = attach_made(model, Path(job.adapter), rows["choose"], say)
    told = _told(wrapped, parts, job.experts)
    _save_adapter(wrapped, Path(job.folder) / ADAPTER, job.base_name)
    merged = _merge(wrapped, Path(job.made), Path(job.folder), rows, say)
    shutil.copytree(Path(job.folder) / ADAPTER, Path(job.made) / ADAPTER)
    return TuneDone(peft=peft.__version__, attached=told, merged=merged, trained=trained, packings=packings)


def _in_four_bits(job: TuneJob, rows: Mapping[str, NDArray[Any]], say: Say) -> tuple[Trained, dict[str, torch.Tensor]]:
    """Adapters trained beside the base in NF4 (QLoRA, arXiv 2305.14314), and what they came to."""
    kind = torch.bfloat16 if device().type == "cuda" else torch.float32
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=kind)
    model = AutoModelForCausalLM.from_pretrained(
        job.base, quantization_config=four, device_map={"": device()}, dtype=torch.float32, local_files_only=True
    )
    for module in model.modules():
        # A reading of what chooses would repack the base, with scales in fewer bits, and training go on beside another.
        module.support_avx512bf16_for_cpu = False
    parts = _parts(model)
    wrapped = _attach(model, parts, job)
    say(_trains(wrapped, parts), 0.0)
    trained = _train(wrapped, job, rows, say)
    state = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    return trained, {name: tensor.detach().float().cpu() for name, tensor in state.items()}


def _parts(model: nn.Module) -> list[_Part]:
    """Every parameter and what it is, before anything is attached."""
    routers = _routers(model)
    head = model.get_output_embeddings()
    parts = []
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        kind = "router" if name in routers else "head" if module is head else kind_of(name, parameter.ndim)
        parts.append(_Part(name, kind, parameter.numel(), isinstance(module, nn.Linear) and leaf == "weight"))
    return parts


def _routers(model: nn.Module) -> set[str]:
    """Names of the matrices that score experts: a row an expert, beside the experts themselves."""
    found = set()
    for name, module in model.named_modules():
        if not (hasattr(module, "_apply_gate") and hasattr(module, "num_experts")):
            continue
        block = name.rpartition(".")[0]
        for label, parameter in model.get_submodule(block).named_parameters():
            inside = f"{block}.{label}".startswith(f"{name}.")
            if not inside and parameter.ndim == 2 and parameter.shape[0] == module.num_experts:
                found.add(f"{block}.{label}")
    return found


def _attach(model: nn.Module, parts: Sequence[_Part], job: TuneJob) -> Any:
    """The model with fresh adapters on what was asked, and on nothing else."""
    kinds = {*KINDS_OF[job.adapt], *(("router",) if job.router else ())}
    wanted = [part for part in parts if part.kind in kinds]
    routed = any(part.kind in ("experts", "router") for part in parts)
    for kind in ("experts",) if job.adapt == "experts" else ():
        if not any(part.kind == kind for part in wanted):
            raise NotSupportedError(f"{job.base_name} has no experts to adapt; give --adapt all or attention")
    if job.router and not any(part.kind == "router" for part in wanted):
        raise NotSupportedError(f"{job.base_name} has no router to train; leave --router out")
    # A matrix of a dense feed-forward beside experts must be named as a parameter: PEFT makes an expert of its module.
    as_module = [part for part in wanted if part.linear and not (routed and part.kind != "attention")]
    as_parameter = [part for part in wanted if part not in as_module]
    torch.manual_seed(job.recipe.seed if job.recipe else 0)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=job.rank,
        lora_alpha=2 * job.rank,
        # Of a parameter nothing can be dropped: x stands outside of (W + BA).
        lora_dropout=0.0,
        target_modules=[part.name.removesuffix(".weight") for part in as_module],
        target_parameters=[part.name for part in as_parameter] or None,
    )
    try:
        wrapped = peft.get_peft_model(model, config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise NotSupportedError(f"PEFT {peft.__version__} cannot adapt it: {one_line(str(error))[:300]}") from error
    found = {name for name, _ in _adapted(wrapped)}
    asked = {part.name for part in wanted}
    if found != asked:
        off = sorted(found ^ asked)
        raise BreakevenError(
            f"PEFT {peft.__version__} {'left out' if off[0] in asked else 'adapted, unasked,'} {off[0]}"
            + (f" and {len(off) - 1} more" if len(off) > 1 else "")
            + "; give --adapt attention, or another version of it"
        )
    return wrapped


def _adapted(wrapped: Any) -> Iterator[tuple[str, LoraLayer]]:
    """Every parameter that has an adapter, by the name it had before, and its adapter."""
    for name, module in wrapped.base_model.model.named_modules():
        plain = name.replace(".base_layer", "")
        if isinstance(module, ParamWrapper):
            yield f"{plain}.{module.parameter_name}", module
        elif isinstance(module, LoraLayer):
            yield f"{plain}.weight", module


def _train(wrapped: Any, job: TuneJob, rows: Mapping[str, NDArray[Any]], say: Say) -> Trained:
    recipe = job.recipe
    assert recipe is not None
    heed = rows.get("train_heed")
    masks = list(_masks(wrapped, job.experts)) if job.experts else []
    coefficient = float(getattr(wrapped.config, "router_aux_loss_coef", None) or _AUXILIARY)
    extra = {"output_router_logits": True} if job.router else {}
    if job.router:
        with torch.no_grad():
            first = torch.from_numpy(rows["train"][:1].astype(np.int64)).to(device())
            if getattr(wrapped(input_ids=first, use_cache=False, **extra), "aux_loss", None) is None:
                raise NotSupportedError(
                    "--router train: transformers gives no auxiliary loss for this family, so nothing would keep loads "
                    "even; leave --router out"
                )

    def loss(ids_BT: torch.Tensor, numbers: NDArray[np.int64]) -> torch.Tensor:
        said = wrapped(input_ids=ids_BT, use_cache=False, **extra)
        found = next_token_loss(said.logits, ids_BT) if heed is None else _heeded(said.logits, ids_BT, heed[numbers])
        auxiliary = getattr(said, "aux_loss", None) if job.router else None
        return found if auxiliary is None else found + coefficient * auxiliary.to(found.device)

    def choose() -> float:
        if "choose_heed" not in rows:
            return mean_nats(wrapped, rows["choose"], recipe.batch)
        nats, counts = _nats(wrapped, rows["choose"], rows["choose_heed"])
        return float(np.average(nats, weights=counts))

    folder = Path(job.folder) / "run"
    trainer = Trainer(wrapped, recipe, rows["train"], loss, choose, folder, say, name="tuning", masks=masks)
    trained = trainer.run()
    if not trained.best_step:
        # Going on would end here again.
        shutil.rmtree(folder, ignore_errors=True)
        raise BreakevenError(
            "the adapter changes nothing: the tuned model was worse at every check than the model as it was; give a "
            "lower --rate, more text or time"
        )
    return trained


def _trains(wrapped: Any, parts: Sequence[_Part]) -> str:
    """What will train and what will not, before it does."""
    names = {name for name, _ in _adapted(wrapped)}
    adapted, frozen = Counter[str](), Counter[str]()
    for part in parts:
        (adapted if part.name in names else frozen)[part.kind] += 1
    lists = (", ".join(f"{count} of {kind}" for kind, count in each.items()) for each in (adapted, frozen))
    return "adapting {}; frozen {}".format(*lists)


def _masks(wrapped: Any, experts: Sequence[int]) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    """Where gradients of stacked experts' adapters count: in rows of A and columns of B of the experts asked for.

    PEFT packs A expert by expert and B rank by rank.
    """
    for name, layer in _adapted(wrapped):
        if not isinstance(layer, ParamWrapper) or layer.num_experts == 1:
            continue
        if (most := max(experts)) >= layer.num_experts:
            raise UserError(f"--adapt experts:{most}: {name} has {layer.num_experts}, numbered from 0")
        a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        kept_E = torch.tensor([float(number in experts) for number in range(layer.num_experts)], device=a.device)
        rank = layer.r[NAME]
        yield a, kept_E.repeat_interleave(rank)[:, None]
        yield b, kept_E.repeat(rank)[None, :]


def _heeded(logits_BTV: torch.Tensor, ids_BT: torch.Tensor, heed_BT: NDArray[np.bool_]) -> torch.Tensor:
    """Mean nats of the tokens that count."""
    counts = torch.from_numpy(heed_BT[:, 1:]).to(ids_BT.device)
    nats = nn.functional.cross_entropy(logits_BTV[:, :-1].float().transpose(1, 2), ids_BT[:, 1:], reduction="none")
    return nats[counts].mean()


def _nats(model: Any, rows_NT: Ids, heed_NT: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nats a token of each row's answers, and how many tokens they have."""
    training = model.training
    model.eval()
    found = []
    with torch.no_grad():
        for row_T, heed_T in zip(rows_NT, heed_NT, strict=True):
            ids_1T = torch.from_numpy(row_T[None].astype(np.int64)).to(next(model.parameters()).device)
            logits_1TV = model(input_ids=ids_1T, use_cache=False).logits
            found.append(float(_heeded(logits_1TV, ids_1T, heed_T[None])))
    model.train(training)
    return np.array(found), heed_NT[:, 1:].sum(axis=1).astype(np.float64)


def _told(wrapped: Any, parts: Sequence[_Part], experts: Sequence[int]) -> list[Attached]:
    """Of each kind of parameter, how many there are and how many have an adapter that does something.

    `experts`: those of a stack that trained alone, empty for all.
    """
    layers = dict(_adapted(wrapped))
    # Whole copies that an adapter brings along.
    saved = {
        name.partition(".modules_to_save.")[0]
        for name, _ in wrapped.base_model.model.named_parameters()
        if ".modules_to_save." in name
    }
    counts: dict[str, list[int]] = {}
    idle: dict[str, list[str]] = {}
    for part in parts:
        row = counts.setdefault(part.kind, [0, 0, 0, 0, 0])
        row[0] += 1
        row[1] += part.weights
        layer = layers.get(part.name)
        if layer is not None:
            row[2] += 1
            row[3] += part.weights
            own = sum(side[NAME].weight.numel() for side in (layer.lora_A, layer.lora_B) if NAME in side)
            if experts and isinstance(layer, ParamWrapper) and layer.num_experts > 1:
                own = own * len(experts) // layer.num_experts
            row[4] += own
            if NAME in layer.lora_B and not bool(layer.lora_B[NAME].weight.any()):
                idle.setdefault(part.kind, []).append(part.name)
        elif part.name.rpartition(".")[0] in saved:
            row[2] += 1
            row[3] += part.weights
    if layers and sum(map(len, idle.values())) == len(layers):
        raise BreakevenError(
            "the adapter changes nothing: every B of it is zero, as before a training; give one that was trained"
        )
    return [
        Attached(kind, tensors, weights, adapted, adapted_weights, trained, idle.get(kind, []))
        for kind, (tensors, weights, adapted, adapted_weights, trained) in counts.items()
    ]


def _save_adapter(wrapped: Any, folder: Path, base_name: str) -> None:
    """As PEFT saves it, without what it would ask the hub, and without this machine's paths."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    state = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {folder}: {one_line(str(error))}; free some space and give it again") from error
    config = wrapped.peft_config[NAME]
    config.base_model_name_or_path, config.inference_mode = base_name, True
    config.save_pretrained(str(folder))


def _merge(wrapped: Any, made: Path, folder: Path, rows: Mapping[str, NDArray[Any]], say: Say) -> Merged:
    """The adapter put into the weights, saved and loaded again; and how far all stand from each other.

    What the base says of the probe is left in `folder`, for whoever serves the merged model to be held against.
    """
    say("merging", 0.0)
    wrapped.eval()
    where = next(wrapped.parameters()).device
    probe = rows["probe"]

    def answers(model: Any) -> list[float]:
        if "judge_heed" not in rows:
            return []
        nats: list[float] = _nats(model, rows["judge"], rows["judge_heed"])[0].tolist()
        return nats

    with wrapped.disable_adapter():
        base, answers_before = _logits(wrapped, probe), answers(wrapped)
    np.save(folder / BASE_LOGITS, np.stack([each.numpy() for each in base]))
    adapter = _logits(wrapped, probe)
    try:
        model = wrapped.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise BreakevenError(f"the adapter cannot be merged: {one_line(str(error))[:200]}") from error
    merged, answers_after = _logits(model, probe), answers(model)
    # Its base has one already, and what is not valid in it is refused here.
    model.generation_config = GenerationConfig()
    try:
        model.save_pretrained(made)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {made.name}: {one_line(str(error))}; free some space") from error
    del model, wrapped
    say("loading what was merged", 0.0)
    again = _logits(load_model(made).to(where), probe)
    (to_adapter, alike), (to_base, _), (to_again, _) = (_apart(each, merged) for each in (adapter, base, again))
    return Merged(
        tokens=probe.size,
        adapter_kl=to_adapter,
        adapter_top1=alike,
        base_kl=to_base,
        again_kl=to_again,
        answers_before=answers_before,
        answers_after=answers_after,
    )


def _logits(model: Any, rows_PT: Ids) -> list[torch.Tensor]:
    """Logits (T, V) of each row, in single precision."""
    found = []
    with torch.no_grad():
        for row_T in rows_PT:
            ids_1T = torch.from_numpy(row_T[None].astype(np.int64)).to(next(model.parameters()).device)
            logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0].float().cpu()
            if not bool(torch.isfinite(logits_TV).all()):
                raise BreakevenError("it predicts what is no number; the adapter is damaged or was trained too fast")
            found.append(logits_TV)
    return found


def _apart(source: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Mean KL(source || other) in nats a token, and the share of tokens after which both find the same likeliest."""
    kl, same = [], []
    for one_TV, two_TV in zip(source, other, strict=True):
        p_TV, q_TV = (each.double().log_softmax(-1) for each in (one_TV, two_TV))
        kl.append((p_TV.exp() * (p_TV - q_TV)).sum(-1))
        same.append((one_TV.argmax(-1) == two_TV.argmax(-1)).double())
    return max(0.0, float(torch.cat(kl).mean())), float(torch.cat(same).mean())
