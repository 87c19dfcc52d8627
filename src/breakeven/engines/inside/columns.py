"""What weight matrices multiply while texts run through a model: squares summed by column, for quantizing well.

The request, what reads the graph for it, and the loop over the texts. Child process only, but for the request.

Shapes: T tokens of a batch, K experts a token, E matrices in a stack (experts, heads; 1 for a plain matrix), C columns.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.engines.inside.layout import GgmlTensor
from breakeven.engines.inside.library import Context, Library, Model
from breakeven.engines.inside.observe import read_ids
from breakeven.errors import EngineError


class Weigh(msgspec.Struct, tag="weigh", frozen=True, kw_only=True):
    """What weight matrices multiply in these sequences. Answered by `Done`; squares.npz and tokens.npz by matrix."""

    sequences: list[list[int]]
    batch: int


def weigh(model: Model, request: Weigh, folder: Path, say: Callable[[str, float], None]) -> None:
    """Run every sequence from its beginning and save what was summed."""
    observer = ColumnObserver(model.library)
    longest = max(len(sequence) for sequence in request.sequences)
    context = Context(model, longest, min(request.batch, longest), observer)
    done, whole = 0, sum(len(sequence) for sequence in request.sequences)
    for sequence in request.sequences:
        context.clear()
        for start in range(0, len(sequence), request.batch):
            observer.begin_batch()
            batch = sequence[start : start + request.batch]
            # Outputs for every token: the last layer drops the tokens whose output nobody asked for.
            context.decode(batch, start, outputs=True)
            done += len(batch)
            say("weighing", done / whole)
    context.close()
    np.savez(folder / "squares.npz", **observer.squares)  # type: ignore[arg-type]
    np.savez(folder / "tokens.npz", **observer.tokens)  # type: ignore[arg-type]


_WEIGHT = b".weight"
_FLOATS: dict[int, type[np.floating]] = {0: np.float32, 1: np.float16}
"""ggml's numbers of the types that activations have."""


class ColumnObserver:
    """Sums the squares of what each weight matrix multiplies, column by column, and counts the tokens it saw.

    The matrices of a stack (experts, heads) get a row each; an expert's holds only the tokens that were routed to it.
    Inputs are read where they lie, so the model must be in this machine's own memory.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._operations: dict[int, str] = {}
        self._batch: dict[tuple[int, int, int], tuple[NDArray[np.float64], NDArray[np.int64]]] = {}
        self.squares: dict[str, NDArray[np.float64]] = {}
        self.tokens: dict[str, NDArray[np.int64]] = {}

    def begin_batch(self) -> None:
        """Forget this batch's inputs: the next one's lie at the same addresses."""
        self._batch.clear()

    def __call__(self, node: int, ask: bool) -> bool:
        """Observe products of a weight matrix whose input no other matrix of this batch had before it."""
        tensor = GgmlTensor.from_address(node)
        operation = self._operations.get(tensor.op)
        if operation is None:
            operation = self._operations[tensor.op] = self._library.ggml_op_name(tensor.op).decode()
        if operation not in ("MUL_MAT", "MUL_MAT_ID"):
            return not ask
        weight = GgmlTensor.from_address(tensor.src[0])
        if not weight.name.endswith(_WEIGHT):
            return not ask
        chosen = tensor.src[2] if operation == "MUL_MAT_ID" else None
        key = (tensor.src[1], chosen or 0, weight.ne[2])
        if ask and key not in self._batch:
            return True
        if key not in self._batch:
            self._batch[key] = self._summed(tensor.src[1], chosen, weight.ne[2])
        elif not ask:
            return True
        squares_EC, tokens_E = self._batch[key]
        name = weight.name.decode()
        if name in self.squares:
            self.squares[name] += squares_EC
            self.tokens[name] += tokens_E
        else:
            self.squares[name], self.tokens[name] = squares_EC.copy(), tokens_E.copy()
        return not ask

    def _summed(self, address: int, chosen: int | None, matrices: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Sums of squares (E, C) of an input by the matrix it meets, and how many tokens each met (E)."""
        values = self._values(address)
        _, heads, tokens, columns = values.shape
        if chosen is not None:
            # Here the third axis holds the tokens, and the second one input for all experts or one for each.
            return squares_by_expert(values[0], read_ids(self._library, chosen), matrices)
        squares = np.einsum("shtc,shtc->hc", values, values, dtype=np.float64)
        each = heads // matrices  # heads that share a matrix
        counts = np.full(matrices, values.shape[0] * tokens * each, np.int64)
        return squares.reshape(matrices, each, columns).sum(axis=1), counts

    def _values(self, address: int) -> NDArray[np.floating]:
        """A node's result, slowest axis first, where it lies."""
        tensor = GgmlTensor.from_address(address)
        if tensor.type not in _FLOATS or not tensor.data:
            raise EngineError(f"{tensor.name.decode()} holds no numbers in memory (type {tensor.type}): unknown build")
        span = (c.c_uint8 * self._library.ggml_nbytes(address)).from_address(tensor.data)
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        return np.ndarray(shape, _FLOATS[tensor.type], span, strides=strides)


def squares_by_expert(
    values_TUC: NDArray[np.floating], ids_TK: NDArray[np.int32], experts: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sums of squares (E, C) of what each expert was given, and how many tokens were routed to it (E).

    `values_TUC`: one input a token for all its experts (U = 1), or one for each of them (U = K).
    """
    ids = ids_TK.reshape(-1)
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < experts:
        raise EngineError(f"expert ids {ids.min()}..{ids.max()} in a stack of {experts}")
    order = np.argsort(ids, kind="stable")
    token, place = np.divmod(order, ids_TK.shape[1])
    given = values_TUC[token, place % values_TUC.shape[1]].astype(np.float64)
    counts = np.bincount(ids, minlength=experts)
    starts = np.cumsum(counts) - counts
    squares_EC = np.zeros((experts, values_TUC.shape[2]))
    seen = counts > 0
    squares_EC[seen] = np.add.reduceat(given * given, starts[seen], axis=0)
    return squares_EC, counts.astype(np.int64)
