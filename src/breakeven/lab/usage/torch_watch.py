"""Watch the experts of a Hugging Face directory, in transformers. Child process only: torch is imported here.

transformers 5 calls every family's experts through the table `ALL_EXPERTS_FUNCTIONS`, with hidden states, the experts
chosen and their weights. One function in it sees them all, and hands on to `grouped_mm`, whose result stays as it is
(`batched_mm` gathers every expert's weights for every token, 40 times slower on a CPU).

Legend: T tokens, K experts a token, E experts, D hidden width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from breakeven.engines.family import die_with_parent
from breakeven.engines.inside.child import Answer, LoadedFile, LoadFile, Say, Tokenize, Tokens, serve
from breakeven.engines.inside.tally import (
    TALLY,
    ExpertsWatched,
    ExpertTally,
    Floats,
    Ids,
    LeaveExpert,
    Nats,
    WatchExperts,
    WatchRequest,
    nats_of,
)
from breakeven.errors import BreakevenError, EngineError, NotSupportedError
from breakeven.lab.torch_scorer import load_model

_NAME = "breakeven_watched"
_WITHIN = "grouped_mm"
_PASSES_FOR_COST = 3
_COST_TOKENS = 128
_EVEN = 1e-5
_SELECTION_BIAS = re.compile(r"correction_bias|expert_bias")


class ExpertsHook:
    """The function in the table: notes what each layer chose and gave while `on`, and changes nothing.

    But for `silent`, a layer and an expert, whose output then counts for nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        self.on = self.weigh = False
        self.silent: tuple[int, int] | None = None
        self.equal_gates = True
        self.experts: dict[int, tuple[str, nn.Module]] = {}
        """By number of the layer, the module that holds its experts and its name."""
        for name, module in model.named_modules():
            numbers = re.findall(r"\.(\d+)\.", name)
            if numbers and hasattr(module, "_apply_gate") and hasattr(module, "num_experts"):
                self.experts[int(numbers[0])] = (name, module)
        self._layers = {id(module): layer for layer, (_, module) in self.experts.items()}
        self._through = ALL_EXPERTS_FUNCTIONS[_WITHIN]
        self.begin_sequence()

    def begin_sequence(self) -> None:
        """Forget what was noted."""
        self.ids: dict[int, Ids] = {}
        self.given: dict[int, Floats] = {}

    def __call__(
        self, module: nn.Module, hidden_TD: torch.Tensor, ids_TK: torch.Tensor, gate_TK: torch.Tensor
    ) -> torch.Tensor:
        """What `grouped_mm` gives."""
        if self.silent is not None and self.silent[0] == self._layers[id(module)]:
            gate_TK = gate_TK.masked_fill(ids_TK == self.silent[1], 0.0)
        result_TD: torch.Tensor = self._through(module, hidden_TD, ids_TK, gate_TK)
        if self.on:
            layer = self._layers[id(module)]
            self.ids[layer] = ids_TK.numpy().astype(np.int32)
            if self.weigh:
                self.given[layer] = self._given(module, hidden_TD, ids_TK, gate_TK)
        return result_TD

    def _given(self, module: nn.Module, hidden_TD: torch.Tensor, ids_TK: torch.Tensor, gate_TK: torch.Tensor) -> Floats:
        """Gate weight (those of a token's experts sum to 1) times output norm.

        Each choice as a token of its own with one expert at weight 1, through the same function: so every family's
        biases, layouts and norms are its own.
        """
        k = ids_TK.shape[1]
        alone = gate_TK.new_ones((ids_TK.numel(), 1))
        out_XD = self._through(module, hidden_TD.repeat_interleave(k, dim=0), ids_TK.reshape(-1, 1), alone)
        norm_TK = out_XD.float().norm(dim=-1).view_as(ids_TK).numpy()
        gate = gate_TK.float().numpy()
        mean_T1 = gate.mean(axis=1, keepdims=True)
        self.equal_gates &= bool((np.abs(gate - mean_T1) <= _EVEN * mean_T1).all())
        share_TK = np.divide(gate, mean_T1, out=np.zeros_like(gate), where=mean_T1 != 0) / k
        given_TK: Floats = share_TK * norm_TK
        return given_TK


class _Never(TorchFunctionMode):
    """While on, one row of a router's product is minus infinity."""

    def __init__(self, weight_ED: torch.Tensor, expert: int) -> None:
        super().__init__()
        self._at, self._expert = weight_ED.data_ptr(), expert
        self.applied = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is nn.functional.linear and args[1].data_ptr() == self._at:
            self.applied = True
            result = result.clone()
            result[..., self._expert] = -torch.inf
        return result


def router_of(block: nn.Module, experts: nn.Module, layer: int) -> tuple[list[nn.Parameter], list[torch.Tensor]]:
    """What of a layer's `block` routes to its `experts`: the matrix of one row an expert, with its bias if it has one,
    and biases that select experts without weighing them. Raises NotSupportedError for a router that is not known."""
    own, count = {id(each) for each in experts.parameters()}, int(experts.num_experts)  # type: ignore[arg-type]
    matrices: dict[str, nn.Parameter] = {}
    biases: list[torch.Tensor] = []
    named = {label: each for label, each in block.named_parameters() if id(each) not in own}
    for label, tensor in [*named.items(), *block.named_buffers()]:
        if _SELECTION_BIAS.search(label) and tensor.numel() == count:
            biases.append(tensor)
        elif isinstance(tensor, nn.Parameter) and tensor.shape[:-1] == (count,) and label.endswith("weight"):
            matrices[label] = tensor
    if len(matrices) != 1:
        raise NotSupportedError(f"layer {layer}: its router is no matrix of one row an expert that is known")
    [(label, matrix)] = matrices.items()
    bias = named.get(f"{label.removesuffix('weight')}bias")
    return [matrix] if bias is None or bias.shape != (count,) else [matrix, bias], biases


class TorchWatcher:
    """One loaded directory and the requests it answers."""

    def __init__(self, load: LoadFile, say: Say) -> None:
        torch.set_num_threads(load.threads)
        say("loading", 0.0)
        self._path, self._folder, self._say = Path(load.model), Path(load.folder), say
        self.model = load_model(self._path)
        self.hook = ExpertsHook(self.model)
        ALL_EXPERTS_FUNCTIONS.register(_NAME, self.hook)
        self._use(_NAME)

    def _use(self, name: str) -> None:
        for _, module in self.hook.experts.values():
            module.config._experts_implementation = name

    def loaded(self) -> LoadedFile:
        """What the directory says of itself."""
        config = self.model.config.get_text_config()
        counts = {int(module.num_experts) for _, module in self.hook.experts.values()}
        if len(counts) > 1:
            raise NotSupportedError(f"{self._path.name}: its layers have {min(counts)} to {max(counts)} experts")
        return LoadedFile(
            architecture=str(config.model_type),
            n_vocab=int(config.vocab_size),
            n_experts=max(counts, default=0),
            n_experts_per_token=int(getattr(config, "num_experts_per_tok", None) or 0),
            n_positions=int(getattr(config, "max_position_embeddings", None) or 0),
        )

    def answer(self, request: WatchRequest) -> Tokens | ExpertsWatched | Nats:
        """Do what is asked. Raises BreakevenError when it cannot be done."""
        match request:
            case Tokenize():
                raise NotSupportedError("a directory's text is cut by the parent: no torch is needed for it")
            case WatchExperts():
                return self._watch(request)
            case LeaveExpert():
                return self._leave(request)
            case LoadFile():
                raise NotSupportedError("this process has its model already")

    def _watch(self, request: WatchExperts) -> ExpertsWatched:
        hook = self.hook
        hook.weigh, hook.equal_gates = request.weigh, True
        tally: ExpertTally | None = None
        used, done, whole = 0, 0, sum(map(len, request.sequences))
        for group, tokens in zip(request.groups, request.sequences, strict=True):
            hook.begin_sequence()
            hook.on = True
            self.logits(tokens, last=1)
            hook.on = False
            layers = sorted(hook.ids)
            if not layers:
                raise NotSupportedError(
                    f"{self._path.name}: its experts do not go through transformers' table of experts' functions"
                )
            widths = {each.shape[1] for each in hook.ids.values()}
            if len(widths) > 1:
                raise NotSupportedError(f"its layers use {min(widths)} to {max(widths)} experts a token")
            used = widths.pop()
            tally = tally or ExpertTally(layers, self.loaded().n_experts, max(request.groups) + 1)
            given_LTK = np.stack([hook.given[layer] for layer in layers]) if request.weigh else None
            tally.add(group, np.stack([hook.ids[layer] for layer in layers]), given_LTK)
            done += len(tokens)
            self._say("routing", done / whole)
        assert tally is not None
        tally.save(self._folder / TALLY)
        return ExpertsWatched(
            layers=tally.layers,
            n_experts_per_token=used,
            observing_overhead=self._cost(request.sequences[0][:_COST_TOKENS]),
            equal_gates=hook.equal_gates if request.weigh else None,
        )

    def _cost(self, tokens: Sequence[int]) -> float:
        """Fastest of a few alternating passes, watched over unwatched, minus one."""
        seconds: dict[str, list[float]] = defaultdict(list)
        for _ in range(_PASSES_FOR_COST):
            for name in (_WITHIN, _NAME):
                self._use(name)
                self.hook.on = name == _NAME
                began = time.perf_counter()
                self.logits(tokens, last=1)
                seconds[name].append(time.perf_counter() - began)
        self.hook.on = False
        return min(seconds[_NAME]) / min(seconds[_WITHIN]) - 1

    def _leave(self, request: LeaveExpert) -> Nats:
        if request.expert is None or request.silent:
            self.hook.silent = None if request.expert is None else (request.layer, request.expert)
            nats = [self._nats(tokens) for tokens in request.sequences]
            self.hook.silent = None
            return Nats(nats=nats)
        with self._without(request.layer, request.expert) as never:
            nats = [self._nats(tokens) for tokens in request.sequences]
        if not never.applied:
            raise NotSupportedError(f"layer {request.layer}: its router does not show the scores of its experts")
        return Nats(nats=nats)

    @contextlib.contextmanager
    def _without(self, layer: int, expert: int) -> Iterator[_Never]:
        """One expert of a layer is never chosen meanwhile."""
        name, experts = self.hook.experts[layer]
        router, biases = router_of(self.model.get_submodule(name.rpartition(".")[0]), experts, layer)
        kept = [bias.detach().clone() for bias in biases]
        try:
            with torch.no_grad():
                for bias in biases:
                    bias.view(-1)[expert] = -torch.inf
            with _Never(router[0], expert) as never:
                yield never
        finally:
            with torch.no_grad():
                for bias, value in zip(biases, kept, strict=True):
                    bias.copy_(value)

    def _nats(self, tokens: Sequence[int]) -> float:
        """Nats of a sequence from its second token on."""
        return nats_of(self.logits(tokens)[:-1], tokens[1:]) if len(tokens) > 1 else 0.0

    def logits(self, tokens: Sequence[int], last: int = 0) -> Floats:
        """Logits (T, V) after each token, or after the `last` ones. Raises EngineError for ones that are no numbers."""
        with torch.inference_mode():
            said = self.model(torch.tensor([list(tokens)]), use_cache=False, logits_to_keep=last)
            logits_TV: Floats = said.logits[0].float().numpy()
        if not np.isfinite(logits_TV).all():
            raise EngineError(f"{self._path.name} predicts what is no number; its weights are damaged")
        return logits_TV


def _begin(request: WatchRequest, say: Say) -> tuple[LoadedFile, Answer]:
    if not isinstance(request, LoadFile):
        raise BreakevenError("no model is loaded")
    die_with_parent(request.parent_pid)
    watcher = TorchWatcher(request, say)
    return watcher.loaded(), watcher.answer


if __name__ == "__main__":
    serve(WatchRequest, _begin)
