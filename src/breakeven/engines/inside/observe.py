"""What is read from the nodes of a running graph: routed experts, or time by part of the model. Child process only.

A node is placed by the weight it multiplies, else by its name, else by its operation; one that has neither a known
name nor a weight (llama.cpp names such nodes `node_<n>`) goes with the node before it, because llama.cpp builds a
graph part by part. Norms, residual additions, the embedding look-up and anything unknown are "rest".
Names as llama.cpp gives them in `build_moe_ffn`, `build_ffn`, `build_attn` (src/llama-graph.cpp) and in src/models/
for the architectures of `model.layouts.registry`.

Legend: T tokens of a batch, K experts a token.
"""

from __future__ import annotations

import ctypes as c
import re
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from breakeven.engines.inside.layout import GgmlTensor
from breakeven.engines.inside.library import Library
from breakeven.errors import EngineError

ATTENTION = "attention"
ROUTER = "router"
EXPERTS = "expert products"
COMBINATION = "combination"
DENSE = "dense feed-forward"
HEAD = "head"
REST = "rest"
KINDS = (ATTENTION, ROUTER, EXPERTS, COMBINATION, DENSE, HEAD, REST)
MOE_KINDS = (ROUTER, EXPERTS, COMBINATION)

# These only describe other nodes' memory; nothing is computed.
NO_WORK = frozenset({"NONE", "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"})

# First match wins. Shared experts count as expert products: they are part of the MoE block.
WEIGHTS: tuple[tuple[str, str], ...] = (
    (r".*_norm(\.|$)", REST),
    (r".*_shexp\b", EXPERTS),
    (r"blk\.\d+\.ffn_gate_inp\b", ROUTER),
    (r"blk\.\d+\.exp_probs_b\b", ROUTER),
    (r"blk\.\d+\.ffn_\w+_exps\b", EXPERTS),
    (r"blk\.\d+\.ffn_(gate|up|down)\b", DENSE),
    (r"blk\.\d+\.(attn|ssm|shortconv|time_mix)_?", ATTENTION),
    (r"(output|token_embd)\.", HEAD),
)

NAMES: tuple[tuple[str, str], ...] = (
    (r"ffn_moe_(logits|probs|argsort|topk|group_topk)", ROUTER),
    (r"ffn_moe_(weights|weighted|out)", COMBINATION),
    (r"ffn_moe_|ffn_shexp|shared_expert_gate", EXPERTS),
    (r".*norm$|ffn_inp|sa_out|l_out|inp_|embd|attn_residual|post_moe", REST),
    (r"ffn_", DENSE),
    (r"[QKV]cur|kqv?|fattn|__fattn__|cache_[kv]_|attn_out|attn_|linear_attn|conv_|state_", ATTENTION),
    (r"(q|k|v|kv)(_\w+)?$", ATTENTION),
    (r"result_output", HEAD),
)

OPERATIONS: dict[str, str] = {
    "RMS_NORM": REST,
    "NORM": REST,
    "FLASH_ATTN_EXT": ATTENTION,
    "ROPE": ATTENTION,
    "SSM_CONV": ATTENTION,
    "SSM_SCAN": ATTENTION,
    "GATED_DELTA_NET": ATTENTION,
    "MUL_MAT_ID": EXPERTS,
}

_WEIGHTS = [(re.compile(pattern), kind) for pattern, kind in WEIGHTS]
_NAMES = [(re.compile(pattern), kind) for pattern, kind in NAMES]
_PRODUCTS = frozenset({"MUL_MAT", "MUL_MAT_ID", "ADD", "ADD_ID", "MUL"})


def kind_of(name: str, operation: str, sources: Sequence[str], previous: str) -> str | None:
    """The kind of one node, None for a node that computes nothing.

    name, operation: as `ggml_get_name` and `ggml_op_name` give them; sources: names of its inputs;
    previous: kind of the last node that computed something.
    """
    if operation in NO_WORK:
        return None
    if operation in _PRODUCTS:
        for source in sources:
            if not source.endswith((".weight", ".bias")):
                continue
            for pattern, kind in _WEIGHTS:
                if pattern.match(source):
                    return kind
    base = re.sub(r"( \(.*\))+$", "", name)
    base = re.sub(r"-\d+$", "", base)
    if base == "ffn_out" and operation == "ADD":
        # The sum of routed and shared experts bears the name of a dense layer's result.
        return COMBINATION if previous in MOE_KINDS else REST
    if operation in OPERATIONS:
        return OPERATIONS[operation]
    for pattern, kind in _NAMES:
        if pattern.match(base):
            # Shared experts are built like a dense feed-forward and name their activations so.
            return EXPERTS if kind == DENSE and previous == EXPERTS else kind
    return previous


_ROUTED = b"ffn_moe_topk-"
_NAME_OFFSET = GgmlTensor.name.offset
_INT32 = 26
_INT32_BYTES = 4


def routed_layer(node: int) -> int | None:
    """The layer whose choice of experts a node is, by its name `ffn_moe_topk-<layer>`; None for any other node."""
    if c.string_at(node + _NAME_OFFSET, len(_ROUTED)) != _ROUTED:
        return None
    number = c.string_at(node + _NAME_OFFSET)[len(_ROUTED) :]
    return int(number) if number.isdigit() else None


class RoutingObserver:
    """Keeps the ids of the experts chosen, layer by layer, batch by batch.

    A block that runs two sets of experts on one choice (GroveMoE) names it twice: the first of a batch counts.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._seen: set[int] = set()
        self.batches: dict[int, list[NDArray[np.int32]]] = {}

    def begin_batch(self) -> None:
        """Expect every layer's choice again."""
        self._seen.clear()

    def __call__(self, node: int, ask: bool) -> bool:
        """Observe the nodes that choose and no other."""
        layer = routed_layer(node)
        if layer is None or layer in self._seen:
            return not ask
        if not ask:
            self._seen.add(layer)
            self.batches.setdefault(layer, []).append(read_ids(self._library, node))
        return True


def read_ids(library: Library, node: int) -> NDArray[np.int32]:
    """The int32 matrix (T, K) in a node, which is usually a view: rows of K within rows of all experts."""
    tensor = GgmlTensor.from_address(node)
    if tensor.type != _INT32 or tensor.ne[2] != 1 or tensor.ne[3] != 1:
        raise EngineError(f"{tensor.name.decode()} is not a matrix of int32 (type {tensor.type}): unknown build")
    # ggml_nbytes of a view spans from its first to its last element, gaps included.
    span = np.empty(library.ggml_nbytes(node), dtype=np.uint8)
    library.ggml_backend_tensor_get(node, span.ctypes.data, 0, span.nbytes)
    shape, strides = (tensor.ne[1], tensor.ne[0]), (tensor.nb[1], tensor.nb[0])
    return np.ndarray(shape, np.int32, span.data, strides=strides).copy()


class TimeObserver:
    """Times each run of neighbouring nodes of one kind.

    The first step after `begin_step(learn=True)` observes every node to learn the graph. Later steps observe only the
    last node of each run, so that llama.cpp computes a run in one go, as it would unobserved, and waits less often.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._kinds: list[str | None] = []
        self._run_ends: list[str | None] = []
        self._learning = True
        self._index = 0
        self._started_ns = 0
        self._pending: str | None = None
        self.spent_ns: dict[str, int] = {}

    def begin_step(self, *, learn: bool = False) -> None:
        """Start a step with clean counters."""
        if learn:
            self._kinds, self._run_ends = [], []
        elif self._learning:
            self._run_ends = run_ends(self._kinds)
        self._learning = learn
        self._index = 0
        self.spent_ns = {}

    def complete(self) -> bool:
        """Whether the step just run had the graph that was learned."""
        return self._learning or self._index == len(self._run_ends)

    def __call__(self, node: int, ask: bool) -> bool:
        """Time from the end of the question about a run's last node to its being computed."""
        if not ask:
            ended_ns = time.perf_counter_ns()
            if self._pending is not None:
                self.spent_ns[self._pending] = self.spent_ns.get(self._pending, 0) + ended_ns - self._started_ns
            return True
        if self._learning:
            self._kinds.append(self._kind(node))
            return False
        self._pending = self._run_ends[self._index] if self._index < len(self._run_ends) else None
        self._index += 1
        self._started_ns = time.perf_counter_ns()
        return self._pending is not None

    def _kind(self, node: int) -> str | None:
        tensor = GgmlTensor.from_address(node)
        sources = [
            GgmlTensor.from_address(address).name.decode(errors="replace") for address in tensor.src[:3] if address
        ]
        operation = self._library.ggml_op_name(tensor.op).decode()
        previous = next((kind for kind in reversed(self._kinds) if kind), REST)
        return kind_of(tensor.name.decode(errors="replace"), operation, sources, previous)


def run_ends(kinds: list[str | None]) -> list[str | None]:
    """For each node its kind if it is the last working node before the kind changes, else None."""
    ends: list[str | None] = [None] * len(kinds)
    following: str | None = None
    for index in range(len(kinds) - 1, -1, -1):
        if kinds[index] is not None:
            if kinds[index] != following:
                ends[index] = kinds[index]
            following = kinds[index]
    return ends
