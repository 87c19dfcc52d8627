"""What each expert is chosen for and gives while a text runs, and what is lost without it. Child process only.

Everything is read from, or written into, the nodes of llama.cpp's `build_moe_ffn` (src/llama-graph.cpp).

Legend: T tokens of a batch, K experts a token, E experts, D hidden width.
"""

from __future__ import annotations

import ctypes as c
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from breakeven.engines.family import die_with_parent
from breakeven.engines.inside.child import Answer, LoadedFile, LoadFile, Say, Tokenize, Tokens, serve
from breakeven.engines.inside.layout import GgmlTensor
from breakeven.engines.inside.library import Context, Library, Model, library_path
from breakeven.engines.inside.observe import read_ids
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

BATCH = 128
_PASSES_FOR_COST = 3
_EVEN = 1e-5
"""Gate weights of a token that differ by less, relative to their mean, are equal."""
_NAME_OFFSET = GgmlTensor.name.offset
_MOE = b"ffn_moe_"
_F32 = 0


def _part_of(node: int) -> tuple[str, int] | None:
    """("logits", 3) for the node `ffn_moe_logits-3`; None for any that is not of a routed block."""
    if c.string_at(node + _NAME_OFFSET, len(_MOE)) != _MOE:
        return None
    base, _, number = c.string_at(node + _NAME_OFFSET)[len(_MOE) :].decode(errors="replace").rpartition("-")
    return (base, int(number)) if number.isdigit() else None


@dataclass(slots=True)
class _Block:
    """What one layer's nodes said of one batch."""

    ids_TK: Ids | None = None
    gate_TK: Floats | None = None
    norm_TK: Floats | None = None


class WorthObserver:
    """Reads which experts each layer chose and, when it weighs, with what weight and how large their outputs were.

    `ids` and `given` hold one array a batch for every layer, until `begin_sequence`.
    """

    # The last of these that a graph has is what multiplies the outputs; a scale common to all is divided away.
    _GATES = frozenset({"weights", "weights_softmax", "weights_norm"})
    OUTPUTS = frozenset({"down", "down_biased", "down_scaled"})

    def __init__(self, library: Library, *, weigh: bool) -> None:
        self._library, self._weigh = library, weigh
        self._seen: set[tuple[str, int]] = set()
        self._blocks: dict[int, _Block] = {}
        self.equal_gates = True
        self.begin_sequence()

    def begin_sequence(self) -> None:
        """Forget the batches so far."""
        self.ids: dict[int, list[Ids]] = defaultdict(list)
        self.given: dict[int, list[Floats]] = defaultdict(list)

    def begin_batch(self) -> None:
        """Expect every layer's nodes again."""
        self._seen.clear()
        self._blocks.clear()

    def __call__(self, node: int, ask: bool) -> bool:
        """Observe these nodes and no other; the first counts of a block with two sets of experts."""
        part = _part_of(node)
        if part is None or part in self._seen:
            return not ask
        base, layer = part
        if base != "topk" and not (self._weigh and (base in self._GATES or base in self.OUTPUTS)):
            return not ask
        if not ask:
            self._seen.add(part)
            block = self._blocks.setdefault(layer, _Block())
            if base == "topk":
                block.ids_TK = read_ids(self._library, node)
            elif base in self._GATES:
                block.gate_TK = read_floats(self._library, node)
            else:
                values_TKD = read_floats(self._library, node)[0]
                block.norm_TK = np.sqrt(np.einsum("tkd,tkd->tk", values_TKD, values_TKD))
        return True

    def end_batch(self) -> None:
        """Keep what the batch said: ids, and gate weight (those of a token's experts sum to 1) times output norm.

        Raises NotSupportedError where a layer's nodes do not say it.
        """
        for layer, block in self._blocks.items():
            if block.ids_TK is None:
                continue
            self.ids[layer].append(block.ids_TK)
            if not self._weigh:
                continue
            if block.gate_TK is None or block.norm_TK is None:
                raise NotSupportedError(f"layer {layer} of this graph does not show its experts' gate or output")
            gate_TK = block.gate_TK.reshape(block.ids_TK.shape)
            mean_T1 = gate_TK.mean(axis=1, keepdims=True)
            self.equal_gates &= bool((np.abs(gate_TK - mean_T1) <= _EVEN * mean_T1).all())
            share_TK = (
                np.divide(gate_TK, mean_T1, out=np.zeros_like(gate_TK), where=mean_T1 != 0) / block.ids_TK.shape[-1]
            )
            self.given[layer].append(share_TK * block.norm_TK)


class LeaveOut:
    """Keeps one expert of one layer from being chosen: its score is minus infinity before the best are taken.

    `expert` None leaves all in. `silent` instead lets it be chosen and makes its output zero, as a file whose `down` is
    zero for it would.
    """

    _SCORES = frozenset({"logits", "logits_biased", "probs_biased"})
    # Where softmax comes after the choice llama.cpp gives the logits this name; elsewhere they were met before.
    _ELSE = "probs"

    def __init__(self, library: Library) -> None:
        self._library = library
        self.layer, self.silent = 0, False
        self.expert: int | None = None
        self._ids_TK: Ids | None = None
        self._changed = False

    def begin_batch(self) -> None:
        """Expect the layer's nodes again."""
        self._ids_TK, self._changed = None, False

    def __call__(self, node: int, ask: bool) -> bool:
        """Observe the layer's scores, or its choice and outputs, and change them before anything reads them."""
        part = _part_of(node) if self.expert is not None else None
        if part is None or part[1] != self.layer:
            return not ask
        base = part[0]
        if self.silent:
            wanted = base == "topk" or base in WorthObserver.OUTPUTS
        else:
            wanted = base in self._SCORES or (base == self._ELSE and not self._changed)
        if not wanted:
            return not ask
        if not ask and base == "topk":
            self._ids_TK = read_ids(self._library, node)
        elif not ask:
            values = read_floats(self._library, node)
            if self.silent:
                values[0][self._ids_TK == self.expert] = 0
            else:
                values[..., self.expert] = -np.inf
            self._library.ggml_backend_tensor_set(node, values.ctypes.data, 0, values.nbytes)
            self._changed = True
        return True

    def end_batch(self) -> None:
        """Raises NotSupportedError where the layer showed nothing to take the expert out of."""
        if self.expert is not None and not self._changed:
            raise NotSupportedError(f"layer {self.layer} of this model's graph does not show the scores of its experts")


def read_floats(library: Library, node: int) -> Floats:
    """A float32 node as an array of four axes, the slowest first: (1, T, K, D), (1, T, K, 1) or (1, 1, T, E).

    Raises EngineError when it is of another type or has gaps.
    """
    tensor = GgmlTensor.from_address(node)
    values = np.empty([int(n) for n in reversed(tensor.ne)], np.float32)
    if tensor.type != _F32 or library.ggml_nbytes(node) != values.nbytes:
        raise EngineError(f"{tensor.name.decode()} is no plain array of float32 (type {tensor.type}): unknown build")
    library.ggml_backend_tensor_get(node, values.ctypes.data, 0, values.nbytes)
    return values


class WorthWorker:
    """One loaded GGUF and the requests it answers."""

    def __init__(self, load: LoadFile, say: Say) -> None:
        self._library = Library(library_path())
        self._model = Model(
            self._library,
            Path(load.model),
            load.threads,
            gpu_layers=load.gpu_layers,
            on_share=lambda share: say("loading", share),
        )
        self._folder, self._say = Path(load.folder), say
        self._hook = LeaveOut(self._library)
        self._kept: Context | None = None
        self._n_ctx = 0

    def loaded(self) -> LoadedFile:
        """What the file says of itself."""
        return LoadedFile(
            architecture=self._model.meta("general.architecture") or "unknown",
            n_vocab=self._model.n_vocab,
            n_experts=self._model.architecture_number("expert_count"),
            n_experts_per_token=self._model.architecture_number("expert_used_count"),
            n_positions=self._model.n_positions,
        )

    def answer(self, request: WatchRequest) -> Tokens | ExpertsWatched | Nats:
        """Do what is asked. Raises BreakevenError when it cannot be done."""
        match request:
            case Tokenize():
                return Tokens(ids=self._model.tokenize(request.text))
            case WatchExperts():
                return self._watch(request)
            case LeaveExpert():
                return self._leave(request)
            case LoadFile():
                raise NotSupportedError("this process has its model already")

    def _watch(self, request: WatchExperts) -> ExpertsWatched:
        observer = WorthObserver(self._library, weigh=request.weigh)
        context = Context(self._model, max(map(len, request.sequences)), BATCH, observer)
        tally: ExpertTally | None = None
        used, done, whole = 0, 0, sum(map(len, request.sequences))
        for group, tokens in zip(request.groups, request.sequences, strict=True):
            observer.begin_sequence()
            _run(context, tokens, observer)
            layers = sorted(observer.ids)
            if not layers:
                raise NotSupportedError("no node of this model's graph chooses experts, so there is nothing to watch")
            widths = {each[0].shape[1] for each in observer.ids.values()}
            if len(widths) > 1:
                raise NotSupportedError(f"its layers use {min(widths)} to {max(widths)} experts a token")
            used = widths.pop()
            tally = tally or ExpertTally(layers, self.loaded().n_experts, max(request.groups) + 1)
            ids_LTK = np.stack([np.concatenate(observer.ids[layer]) for layer in layers])
            given_LTK = None
            if request.weigh:
                given_LTK = np.stack([np.concatenate(observer.given[layer]) for layer in layers])
            tally.add(group, ids_LTK, given_LTK)
            done += len(tokens)
            self._say("routing", done / whole)
        assert tally is not None
        tally.save(self._folder / TALLY)
        overhead = self._cost(context, request.sequences[0][:BATCH], observer)
        context.close()
        equal = observer.equal_gates if request.weigh else None
        return ExpertsWatched(
            layers=tally.layers, n_experts_per_token=used, observing_overhead=overhead, equal_gates=equal
        )

    def _cost(self, observed: Context, tokens: Sequence[int], observer: WorthObserver) -> float:
        """Fastest of a few alternating passes over one batch, watched over unwatched, minus one."""
        plain = Context(self._model, BATCH, BATCH)
        seconds: dict[Context, list[float]] = {observed: [], plain: []}
        for _ in range(_PASSES_FOR_COST):
            for context in (plain, observed):
                observer.begin_batch()
                context.clear()
                began = time.perf_counter()
                context.decode(tokens, 0)
                seconds[context].append(time.perf_counter() - began)
        plain.close()
        return min(seconds[observed]) / min(seconds[plain]) - 1

    def _leave(self, request: LeaveExpert) -> Nats:
        needed = max(map(len, request.sequences))
        if self._kept is None or needed > self._n_ctx:
            if self._kept is not None:
                self._kept.close()
            self._kept, self._n_ctx = Context(self._model, needed, BATCH, self._hook), needed
        self._hook.layer, self._hook.expert, self._hook.silent = request.layer, request.expert, request.silent
        return Nats(nats=[_run(self._kept, tokens, self._hook) for tokens in request.sequences])


def _run(context: Context, tokens: Sequence[int], hook: WorthObserver | LeaveOut) -> float:
    """Run one sequence, batch by batch. Returns its nats from the second token on, for a hook that changes them."""
    context.clear()
    nats = 0.0
    for start in range(0, len(tokens), BATCH):
        batch = tokens[start : start + BATCH]
        hook.begin_batch()
        # Outputs for every token: the last layer drops the tokens whose output nobody asked for.
        context.decode(batch, start, outputs=True)
        hook.end_batch()
        targets = tokens[start + 1 : start + 1 + len(batch)]
        if targets and isinstance(hook, LeaveOut):
            nats += nats_of(context.logits_in_place(len(targets)), targets)
    return nats


def _begin(request: WatchRequest, say: Say) -> tuple[LoadedFile, Answer]:
    if not isinstance(request, LoadFile):
        raise BreakevenError("no model is loaded")
    die_with_parent(request.parent_pid)
    worker = WorthWorker(request, say)
    return worker.loaded(), worker.answer


if __name__ == "__main__":
    serve(WatchRequest, _begin)
