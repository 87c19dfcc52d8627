"""Turn a dense GGUF into a Mixture-of-Experts one whose weights keep their values.

The `llama` architecture of llama.cpp is also Mixtral's: given `expert_count` it runs
sum over the k chosen experts of w_e down_e(silu(gate_e x) * up_e x), with weights w_e that sum to one.

*split* cuts a feed-forward of width F into E experts of width F/E: rows of gate and up, columns of down. The dense
result is the sum over all parts, so with k = E, a router of zeros (every w_e = 1/k) and down times k, the sum is the
dense model's. Neurons may be sorted first, so that the last expert is the one that matters least. *copy* repeats the
whole feed-forward E times: any weights that sum to one give the dense result.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.bits.ggml import Ggml
from breakeven.lab.surgery.container import DenseFile, OutTensor, SourceTensor, rewrite
from breakeven.lab.surgery.scaling import PLAIN, Bytes, check_scalable, scaled
from breakeven.lab.surgery.stacks import MAX_EXPERTS, open_whole
from breakeven.model.readers.gguf_header import TYPES
from breakeven.results.lab import Proof

DEFAULT_COPIES_USED = 2
_PIECE_BYTES = 8 << 20

Pieces = Callable[[], Iterator[Bytes]]
Squares = Mapping[str, NDArray[np.float32]]
"""By the name of a matrix: mean square of each column's input over the tokens of a text, one row (`importance`)."""


@dataclass(frozen=True, slots=True)
class Surgery:
    """What was written."""

    out: Path
    experts: int
    used: int
    expert_width: int
    file_bytes: int
    same_function: bool
    """Whether the result computes what its source does, up to rounding and the order of sums."""
    scale_error: float
    """Largest relative error that rounding made in a down block's scale; 0: every one is exact."""
    requantized: float | None = None
    """Root mean square error of weights that were encoded anew, over that of the weights; None: none was."""
    kept: tuple[tuple[int, ...], ...] | None = None
    """For each layer that routes, the source's expert in each place; -1 for a new one. None: the source had none."""
    caveats: tuple[str, ...] = ()
    proof: Proof | None = None
    """What it cost, by language, as it lies beside the file; None where none was made."""


def split(
    source: Path,
    out: Path,
    experts: int,
    used: int | None = None,
    *,
    seed: int = 0,
    squares: Squares | None = None,
    down: str | None = None,
) -> Surgery:
    """Cut every feed-forward of a dense GGUF into `experts` parts, of which `used` (None: all) run per token.

    With fewer than all, the router is random so that every expert sees tokens, and the result is another function.
    `squares`: of every `down`; neurons are then sorted, the most important first, which encodes `down` anew where its
    format has blocks, in the format `down` (None: its own). Raises NotSupportedError for an architecture other than
    dense llama or a format that cannot be multiplied, UserError when the width cannot be cut so, naming the expert
    counts that can.
    """
    reader, width, k, kinds = check_split(source, experts, used, None if squares is None else down)
    errors = [0.0]
    router_seed = None if k == experts else seed
    with contextlib.ExitStack() as stack:
        sorting = None if squares is None else _Sorting(reader, stack.enter_context(Ggml()), squares, kinds)

        def pieces(tensor: SourceTensor) -> Pieces:
            if _part(tensor) == "down":
                return lambda: _columns_by_expert(sorting.columns(tensor) if sorting else tensor, experts, k, errors)
            if sorting:
                return lambda: sorting.rows(tensor)
            # Rows of gate and up are in expert order already: the stack is the same bytes under other dimensions.
            return lambda: _whole(tensor, 1)

        n_bytes = _write(reader, out, experts, k, width // experts, pieces, router_seed, kinds)
    requantized = sorting.error if sorting else None
    same = k == experts and not requantized
    caveats: tuple[str, ...] = ()
    if requantized is not None:
        caveats = (
            "sorting neurons puts other columns of down into one block, so down was encoded anew: its weights moved by "
            f"{100 * requantized:.2g} % (root mean square)",
        )
    return Surgery(
        out,
        experts,
        k,
        width // experts,
        n_bytes,
        same,
        max(errors),
        requantized=requantized,
        caveats=caveats,
    )


def check_split(
    source: Path, experts: int, used: int | None, down: str | None
) -> tuple[DenseFile, int, int, dict[str, GGMLQuantizationType]]:
    """The source, its width, the experts a token, and what every `down` will be; raises what `split` does, at once."""
    reader, width = _dense_llama(source)
    k = _checked_used(experts, experts if used is None else used)
    kinds = {tensor.name: tensor.kind for tensor in reader.tensors if _part(tensor) == "down"}
    if down is not None:
        kinds = dict.fromkeys(kinds, _kind_named(down))
    for name, kind in kinds.items():
        check_scalable(kind, name)
    _check_divisible(width, experts, max(GGML_QUANT_SIZES[kind][0] for kind in kinds.values()))
    return reader, width, k, kinds


def copy(source: Path, out: Path, experts: int, used: int | None = None, *, seed: int = 0) -> Surgery:
    """Repeat every feed-forward of a dense GGUF `experts` times, of which `used` (None: 2) run per token.

    A seeded random router spreads tokens over equal experts. Raises NotSupportedError for an architecture other than
    dense llama, UserError for impossible numbers.
    """
    reader, width = _dense_llama(source)
    k = _checked_used(experts, min(DEFAULT_COPIES_USED, experts) if used is None else used)
    n_bytes = _write(reader, out, experts, k, width, lambda tensor: lambda: _whole(tensor, experts), seed)
    return Surgery(out, experts, k, width, n_bytes, True, 0.0)


def _dense_llama(source: Path) -> tuple[DenseFile, int]:
    """The source and the width of its feed-forward, if this can be done to it."""
    reader = open_whole(source)
    architecture = reader.header.architecture
    if architecture != "llama":
        raise NotSupportedError(
            f"{source.name} is of architecture {architecture}; only llama's dense form (Llama, Mistral, SmolLM, ...) "
            "has an MoE form in llama.cpp that computes the same"
        )
    if any("_exps." in tensor.name for tensor in reader.tensors):
        raise NotSupportedError(f"{source.name} is a Mixture-of-Experts already; give a dense model")
    bias = next((t.name for t in reader.tensors if ".ffn_" in t.name and t.name.endswith(".bias")), None)
    if bias:
        raise NotSupportedError(f"{source.name} has feed-forward biases ({bias}), which cannot be cut into experts")
    widths = {tensor.dims[0] for tensor in reader.tensors if _part(tensor) == "down"}
    gates = sum(_part(tensor) == "gate" for tensor in reader.tensors)
    downs = sum(_part(tensor) == "down" for tensor in reader.tensors)
    if len(widths) != 1 or gates != downs:
        raise NotSupportedError(
            f"{source.name} has no gated feed-forward of one width in every layer ({sorted(widths)})"
        )
    return reader, widths.pop()


def _checked_used(experts: int, used: int) -> int:
    if not 2 <= experts <= MAX_EXPERTS:
        raise UserError(f"--experts {experts}: give a number from 2 to {MAX_EXPERTS}, llama.cpp's limit")
    if not 1 <= used <= experts:
        raise UserError(f"--used {used}: give a number from 1 to {experts}, the number of experts")
    return used


def _check_divisible(width: int, experts: int, block: int) -> None:
    if width % (experts * block) == 0:
        return
    blocks = width // block if width % block == 0 else 0
    able = [str(e) for e in range(2, min(blocks, MAX_EXPERTS) + 1) if blocks % e == 0]
    raise UserError(
        f"a feed-forward {width} wide in blocks of {block} cannot be cut into {experts} experts; "
        + (f"these counts work: {', '.join(able)}" if able else "no count works in this format")
    )


def _part(tensor: SourceTensor) -> str | None:
    """gate, up or down for a dense feed-forward's weight."""
    pieces = tensor.name.split(".")
    if len(pieces) == 4 and pieces[0] == "blk" and pieces[3] == "weight" and pieces[2].startswith("ffn_"):
        part = pieces[2].removeprefix("ffn_")
        return part if part in ("gate", "up", "down") else None
    return None


def _write(
    source: DenseFile,
    out: Path,
    experts: int,
    used: int,
    width: int,
    pieces: Callable[[SourceTensor], Pieces],
    router_seed: int | None,
    kinds: Mapping[str, GGMLQuantizationType] | None = None,
) -> int:
    """Write the result; `width` of one expert, `router_seed` None for a router of zeros. Returns its bytes.

    `kinds`: of tensors that `pieces` may give in another type than they have.
    """
    tensors: list[OutTensor] = []
    for tensor in source.tensors:
        dims = tensor.dims
        part = _part(tensor)
        if part is None:
            tensors.append(OutTensor(tensor.name, dims, tensor.kind, tensor.data.nbytes, _kept(tensor)))
            continue
        hidden = dims[1] if part == "down" else dims[0]
        inner = (width, hidden) if part == "down" else (hidden, width)
        kind = (kinds or {}).get(tensor.name, tensor.kind)
        _, block, block_bytes = TYPES[int(kind)]
        n_bytes = width * hidden * experts // block * block_bytes
        name = tensor.name.replace(f"ffn_{part}.", f"ffn_{part}_exps.")
        tensors.append(OutTensor(name, (*inner, experts), kind, n_bytes, pieces(tensor)))
        if part == "gate":
            name = tensor.name.replace("ffn_gate.", "ffn_gate_inp.")
            router = _router(name, hidden, experts, router_seed)
            tensors.append(OutTensor(name, (hidden, experts), GGMLQuantizationType.F32, router.nbytes, _once(router)))
    numbers = {
        "llama.feed_forward_length": width,
        "llama.expert_count": experts,
        "llama.expert_used_count": used,
    }
    return rewrite(source, out, numbers, tensors)


def _router(name: str, hidden: int, experts: int, seed: int | None) -> Bytes:
    """Router rows as bytes: zeros, or normals such that a normalised hidden state gives logits of about 1."""
    if seed is None:
        return np.zeros(experts * hidden * 4, np.uint8)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    rows = rng.standard_normal((experts, hidden), dtype=np.float32) / np.float32(np.sqrt(hidden))
    return rows.ravel().view(np.uint8)


def _once(data: Bytes) -> Pieces:
    return lambda: iter((data,))


def _kept(tensor: SourceTensor) -> Pieces:
    return lambda: _whole(tensor, 1)


def _whole(tensor: SourceTensor, times: int) -> Iterator[Bytes]:
    """The tensor's bytes, `times` over."""
    for _ in range(times):
        for start in range(0, tensor.data.size, _PIECE_BYTES):
            yield tensor.data[start : start + _PIECE_BYTES]


def _columns_by_expert(tensor: SourceTensor, experts: int, k: int, errors: list[float]) -> Iterator[Bytes]:
    """Each expert's columns of a down projection, all rows, times k; rounding errors are added to `errors`."""
    rows = tensor.data.reshape(tensor.dims[1], -1)
    row_bytes = rows.shape[1] // experts
    step = max(1, _PIECE_BYTES // row_bytes)
    for expert in range(experts):
        columns = slice(expert * row_bytes, (expert + 1) * row_bytes)
        for start in range(0, rows.shape[0], step):
            result = scaled(np.ascontiguousarray(rows[start : start + step, columns]), tensor.kind, float(k))
            errors.append(result.relative_error)
            yield result.data


def _kind_named(name: str) -> GGMLQuantizationType:
    found = GGMLQuantizationType.__members__.get(name.upper())
    if found is None:
        raise UserError(f"--down {name}: no such format; give one such as Q8_0, in which down moves by half a percent")
    return found


class _Sorting:
    """The order of each layer's neurons, the most important first, and its matrices in that order.

    Importance of a neuron: mean square of its activation times the norm of the column of down that it feeds.
    """

    def __init__(
        self, source: DenseFile, ggml: Ggml, squares: Squares, kinds: Mapping[str, GGMLQuantizationType]
    ) -> None:
        """`kinds` every down gets. Raises UserError where `squares` lack a layer or were taken from another model."""
        self._ggml, self._squares, self._kinds = ggml, squares, kinds
        self._orders: dict[str, NDArray[np.intp]] = {}
        self._sums = np.zeros(2)
        for tensor in source.tensors:
            if _part(tensor) != "down":
                continue
            seen = squares.get(tensor.name)
            if seen is None or seen.shape != (1, tensor.dims[0]) or not np.isfinite(seen).all():
                raise UserError(f"{tensor.name}: its inputs were not seen whole; measure importance on this very file")
            norms = np.sqrt(np.square(self._values(tensor)).sum(axis=0))
            # Ties keep their order, so the same text gives the same bytes.
            self._orders[tensor.name.split(".ffn_")[0]] = np.argsort(-seen[0] * norms, kind="stable")

    @property
    def error(self) -> float | None:
        """Root mean square of what encoding anew moved, over that of the weights; None: nothing was encoded."""
        return float(np.sqrt(self._sums[0] / self._sums[1])) if self._sums[1] else None

    def rows(self, tensor: SourceTensor) -> Iterator[Bytes]:
        """The bytes of gate or up, a neuron a row, in order."""
        order = self._order(tensor)
        rows = tensor.data.reshape(tensor.dims[1], -1)
        step = max(1, _PIECE_BYTES // rows.shape[1])
        for start in range(0, len(order), step):
            yield rows[order[start : start + step]]

    def columns(self, tensor: SourceTensor) -> SourceTensor:
        """Down with its columns in order; formats of blocks are decoded and encoded, each column as it counts."""
        order, made = self._order(tensor), self._kinds[tensor.name]
        if tensor.kind == made and made in PLAIN:
            columns = tensor.data.reshape(tensor.dims[1], tensor.dims[0], -1)[:, order]
            return replace(tensor, data=np.ascontiguousarray(columns).reshape(-1))
        values = self._values(tensor)[:, order]
        kind = self._ggml.types[made.name]
        data = self._ggml.encode(kind, values, self._squares[tensor.name][0, order])
        moved = self._ggml.decode(kind, data).reshape(values.shape) - values
        self._sums += np.square(moved, dtype=np.float64).sum(), np.square(values, dtype=np.float64).sum()
        return replace(tensor, kind=made, data=data)

    def _order(self, tensor: SourceTensor) -> NDArray[np.intp]:
        return self._orders[tensor.name.split(".ffn_")[0]]

    def _values(self, tensor: SourceTensor) -> NDArray[np.float32]:
        """Weights (hidden, F)."""
        kind = self._ggml.types[tensor.kind.name]
        return self._ggml.decode(kind, tensor.data).reshape(tensor.dims[1], tensor.dims[0])
