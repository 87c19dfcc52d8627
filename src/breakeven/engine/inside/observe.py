"""What is read from the nodes of a running graph: routed experts, or time by kind. Child process only.

Legend: T tokens of a batch, K experts a token.
"""

from __future__ import annotations

import ctypes as c
import time

import numpy as np
from numpy.typing import NDArray

from breakeven.engine.inside.layout import Tensor
from breakeven.engine.inside.library import Library
from breakeven.engine.inside.nodes import REST, kind_of
from breakeven.errors import EngineError

_ROUTED = b"ffn_moe_topk-"
_NAME_OFFSET = Tensor.name.offset
_INT32 = 26
_INT32_BYTES = 4


class RoutingObserver:
    """Keeps the ids of the experts chosen, layer by layer, batch by batch."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self.batches: dict[int, list[NDArray[np.int32]]] = {}

    def __call__(self, node: int, ask: bool) -> bool:
        """Observe the nodes `ffn_moe_topk-<layer>` and no other."""
        wanted = c.string_at(node + _NAME_OFFSET, len(_ROUTED)) == _ROUTED
        if wanted and not ask:
            tensor = Tensor.from_address(node)
            self.batches.setdefault(int(tensor.name[len(_ROUTED) :]), []).append(read_ids(self._library, node))
        return True if not ask else wanted


def read_ids(library: Library, node: int) -> NDArray[np.int32]:
    """The int32 matrix (T, K) in a node, which is usually a view: rows of K within rows of all experts."""
    tensor = Tensor.from_address(node)
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
        tensor = Tensor.from_address(node)
        sources = [Tensor.from_address(address).name.decode(errors="replace") for address in tensor.src[:3] if address]
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
