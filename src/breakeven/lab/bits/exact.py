"""A directory whose weights lie on a format's grid already, as a GGUF of that format: packed, not one changed.

That is what training in two bits leaves (`training.ternary`). Each tensor is encoded by the running llama.cpp's own
ggml and decoded again before it is written; what does not come back as it was is refused. What an engine then computes
still differs from the directory's by its rounding of activations, so that is measured too, beside what such rounding
makes of the directory itself.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from breakeven.engines.inside.client import OnStep
from breakeven.errors import UserError
from breakeven.lab.bits.ggml import Bytes, Ggml, WeightType
from breakeven.lab.bridge.bridge import to_gguf
from breakeven.lab.bridge.directory_words import tokenizer_of
from breakeven.lab.corpus import Block
from breakeven.lab.evaluate import arms_of, judge
from breakeven.lab.proof import EXACT_KL, ROUNDING_FLOORS
from breakeven.lab.surgery.container import OutTensor, SourceTensor, open_gguf, rewrite
from breakeven.model.formats.gguf import category, takes_format
from breakeven.model.formats.mixtures import Category
from breakeven.results.lab import LabCheck

MATRICES = "TQ2_0"
AROUND = "Q8_0"
"""Of the embedding and the output matrix."""
_FILE_TYPE = 37  # LLAMA_FTYPE_MOSTLY_TQ2_0
_QUANTIZED_VERSION = 2  # GGML_QNT_VERSION
_PIECE_WEIGHTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written. Bits a weight of its matrices, and of the whole file's weights."""

    n_bytes: int
    matrix_bits: float
    matrix_bytes: int
    around_bytes: int
    """Of the embedding and of the output matrix, where there is one."""
    around_format: str
    notes: tuple[str, ...]

    def said(self) -> str:
        """One line of it."""
        return (
            f"its matrices hold {self.matrix_bits:.2f} bits a weight, exactly as trained ({self.matrix_bytes / 1e6:.2f}"
            f" MB); the embedding, {self.around_format}, is {self.around_bytes / self.n_bytes:.0%} of the file's "
            f"{self.n_bytes / 1e6:.2f} MB"
        )


def write_ternary_gguf(directory: Path, out: Path) -> Packed:
    """Write the model in `directory`, trained in two bits, as one GGUF, whole or not at all.

    Raises UserError for a directory whose matrices `TQ2_0` does not hold exactly, and what `bridge.to_gguf` raises.
    """
    carried = out.with_name(f".{out.name}.{os.getpid()}.carried")
    try:
        notes = to_gguf(directory, carried, dtype="f32").notes
        file = open_gguf(carried)
        with Ggml() as ggml:
            # The least of both that holds all of it; the embedding may be in two bits too.
            kinds = [ggml.types[MATRICES], ggml.types[AROUND]]
            family = file.header.architecture
            chosen: dict[str, WeightType] = {}
            for tensor in file.tensors:
                if not takes_format(tensor.name, tensor.dims[::-1], family):
                    continue
                found = next((kind for kind in kinds if _holds(ggml, kind, tensor)), None)
                if found is not None:
                    chosen[tensor.name] = found
                if not _is_around(tensor.name) and (found is None or found.name != MATRICES):
                    raise UserError(
                        f"{directory}: {tensor.name} is not -1, 0 and 1 times a scale for every {kinds[0].block} of a "
                        "row, so TQ2_0 would change it; train with --ternary, or give quantize --to TQ2_0"
                    )
            outs = [_out(ggml, tensor, chosen.get(tensor.name)) for tensor in file.tensors]
            numbers = {"general.quantization_version": _QUANTIZED_VERSION, "general.file_type": _FILE_TYPE}
            n_bytes = rewrite(file, out, numbers, outs)
        return _packed(file.tensors, chosen, n_bytes, notes)
    finally:
        with contextlib.suppress(OSError):
            carried.unlink(missing_ok=True)


def _is_around(name: str) -> bool:
    return category(name) in (Category.OUTPUT, Category.TOKEN_EMBEDDING)


def _pieces(tensor: SourceTensor) -> Iterator[Bytes]:
    """Its bytes, whole rows at a time."""
    row = 4 * tensor.dims[0]
    step = max(1, 4 * _PIECE_WEIGHTS // row) * row
    return (tensor.data[begin : begin + step] for begin in range(0, tensor.data.size, step))


def _encoded(ggml: Ggml, kind: WeightType, tensor: SourceTensor) -> Iterator[Bytes]:
    for piece in _pieces(tensor):
        yield ggml.encode(kind, piece.view(np.float32).reshape(-1, tensor.dims[0]))


def _holds(ggml: Ggml, kind: WeightType, tensor: SourceTensor) -> bool:
    """Whether every weight comes back as it was."""
    if tensor.dims[0] % kind.block:
        return False
    pairs = zip(_pieces(tensor), _encoded(ggml, kind, tensor), strict=True)
    return all(np.array_equal(ggml.decode(kind, there), piece.view(np.float32)) for piece, there in pairs)


def _out(ggml: Ggml, tensor: SourceTensor, kind: WeightType | None) -> OutTensor:
    if kind is None:
        return OutTensor(tensor.name, tensor.dims, tensor.kind, tensor.data.nbytes, partial(_pieces, tensor))
    size = kind.n_bytes(math.prod(tensor.dims))
    return OutTensor(tensor.name, tensor.dims, kind.code, size, partial(_encoded, ggml, kind, tensor))


def _packed(
    tensors: Sequence[SourceTensor], chosen: Mapping[str, WeightType], n_bytes: int, notes: tuple[str, ...]
) -> Packed:
    weights = matrix_bytes = around_bytes = 0
    formats: set[str] = set()
    for tensor in tensors:
        kind, count = chosen.get(tensor.name), math.prod(tensor.dims)
        size = tensor.data.nbytes if kind is None else kind.n_bytes(count)
        if _is_around(tensor.name):
            around_bytes += size
            formats.add("F32" if kind is None else kind.name)
        elif kind is not None:
            weights, matrix_bytes = weights + count, matrix_bytes + size
    return Packed(n_bytes, 8 * matrix_bytes / weights, matrix_bytes, around_bytes, " and ".join(sorted(formats)), notes)


class RoundingAsked(msgspec.Struct, frozen=True, kw_only=True):
    """The job of `training.ternary`: how far rounding activations moves what `directory` predicts of token ids."""

    directory: str
    sequences: list[list[int]]


class RoundingTold(msgspec.Struct, frozen=True, kw_only=True):
    """Nats a token."""

    kl: float


def served(
    directory: Path,
    gguf: Path,
    blocks: Sequence[Block],
    *,
    threads: int | None = None,
    on_step: OnStep = lambda what, share: None,
) -> LabCheck:
    """Whether llama.cpp, running the packed file, predicts what transformers does of the directory it was packed from.

    Its kernels for two bits round activations to 8 bits, the same in batches of any size, so that a file's KL to itself
    says nothing of it. The floor here is what that rounding makes of the directory itself, carried out in transformers.
    """
    from breakeven.lab.training.work import run_job

    arms, first = arms_of([gguf], directory)
    assert first is not None
    tallies, _ = judge(arms, first, blocks, threads=threads, on_step=on_step)
    tally = tallies[1 - first]
    kl, batches = tally.kl(), tally.floor()
    assert kl is not None
    words = tokenizer_of(directory)
    sequences = [list(words.encode(block.text).ids) for block in blocks]
    asked = RoundingAsked(directory=str(directory), sequences=[ids for ids in sequences if len(ids) > 1])
    rounding = run_job("ternary", asked, RoundingTold, threads=threads, on_step=on_step).kl
    floor = rounding + max(EXACT_KL, 0.0 if batches is None else batches.value)
    limit = ROUNDING_FLOORS * floor
    return LabCheck(
        name="served as trained",
        engine="llama.cpp",
        passed=kl.value <= limit,
        kl=kl,
        top1=tally.top1(),
        detail=f"KL to the directory {kl.value:.2g} nats a token, at most {limit:.2g} ({ROUNDING_FLOORS:g} times the "
        f"floor of {floor:.2g} that rounding activations to 8 bits makes)",
    )
