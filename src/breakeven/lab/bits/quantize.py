"""Write a GGUF's weights in fewer bits, and prove what that cost.

Which tensor takes which format is planned by `formats`; here the plan is carried out, streamed, in several threads.
Experts are quantized each for themselves, with their own importance. llama.cpp's quantizer of whole files is not in the
library that we ship; the loop over `ggml_quantize_chunk` is ours.
"""

from __future__ import annotations

import math
import os
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from breakeven.engines.inside.client import OnStep
from breakeven.engines.synthesis.write import check_room
from breakeven.errors import BreakevenError, NotSupportedError, UserError, word_of
from breakeven.hardware.reader import available_threads
from breakeven.lab.bits.formats import FormatPlan, known, listed, planned, refuse_excess, refuse_starved
from breakeven.lab.bits.ggml import Bytes, Floats, Ggml, WeightType
from breakeven.lab.bits.importance import FEWEST_TOKENS, MOST_TOKENS, Importance, apart, measure
from breakeven.lab.corpus import Block, Document, blocks_of, check_enough
from breakeven.lab.proof import prove, sweep
from breakeven.lab.surgery.container import DenseFile, OutTensor, SourceTensor, open_gguf, rewrite
from breakeven.model.readers.gguf_file import FILE_TYPES
from breakeven.results.lab import Proof
from breakeven.results.store import UnreadError, read

PIECE_WEIGHTS = 1 << 18
_QUANTIZED_VERSION = 2  # GGML_QNT_VERSION


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """How to quantize."""

    allow_fallback: bool = False
    """Make a file of more bits than its name says, or with experts that the text did not reach."""
    tokens: int | None = None
    """Of the text, that importance is measured on at most; None: `MOST_TOKENS`."""
    threads: int | None = None
    budget_s: float | None = None
    """For judging each file."""


def quantize(
    source: Path,
    formats: Sequence[str],
    out: Path,
    *,
    documents: Sequence[Document] = (),
    options: QuantizeOptions | None = None,
    words: Sequence[str] = (),
    on_step: OnStep = lambda what, share: None,
) -> list[Proof]:
    """Write one file a format into the directory `out`, each beside its proof.

    `documents`: what importance and loss are measured on; without any, importance is not, and a built-in text only
    shows that the file works. `words`: options as the command line has them, for the command that a proof repeats. All
    formats are planned, and room found for all of them, before the first is written. Raises UserError for what cannot
    be made or would not be what its name says, BreakevenError for a file that failed its proof and is gone again.
    """
    options = options or QuantizeOptions()
    allowed = options.allow_fallback
    file = _opened(source)
    with Ggml() as ggml:
        kinds = list(dict.fromkeys(known(ggml.types, name) for name in formats))
        if not documents and (needy := [kind.name for kind in kinds if kind.needs_importance]):
            raise UserError(f"{', '.join(needy)} cannot be made without importance; give a text with --text")
        # Refused for shapes, place and text before minutes are spent on importance.
        plans = [planned(file, kind, ggml.types) for kind in kinds]
        for plan in plans:
            refuse_excess(plan, file, ggml.types, allowed)
        blocks: list[Block] = []
        judged: list[Document] | None = None
        if documents:
            blocks, judged = apart(documents)
            _check_judged(judged)
        _places(out, file, plans)
        with _Directory(out) as directory:
            sweep(out)
            check_room(
                out / plans[0].file_name(file),
                sum(plan.n_bytes for plan in plans),
                "free some space or choose another --out",
            )
            importance = None
            if blocks:
                most = options.tokens or MOST_TOKENS
                importance = measure(source, blocks, most_tokens=most, threads=options.threads, on_step=on_step)
                plans = [planned(file, kind, ggml.types, importance) for kind in kinds]
            for plan in plans:
                refuse_starved(plan, importance, allowed)
                refuse_excess(plan, file, ggml.types, allowed)
            places = _places(out, file, plans)
            proofs = []
            for plan, place in zip(plans, places, strict=True):
                written = place.with_name(f".{place.stem}.{os.getpid()}.made.gguf")
                target = ["--to", plan.asked.name, *words, "--out", word_of(out)]
                try:
                    _write(file, written, plan, ggml, importance, options.threads, on_step)
                    proof = prove(
                        "quantize",
                        shlex.join(["breakeven", "quantize", word_of(source), *target]),
                        source,
                        written,
                        place,
                        format=plan.name,
                        text=judged,
                        substituted=plan.substituted,
                        experts=None if importance is None else importance.experts(),
                        caveats=_caveats(file, plan, importance),
                        budget_s=options.budget_s,
                        threads=options.threads,
                        on_step=on_step,
                    )
                finally:
                    with suppress(OSError):
                        written.unlink(missing_ok=True)
                directory.kept = True
                proofs.append(proof)
    return proofs


def _places(out: Path, file: DenseFile, plans: Sequence[FormatPlan]) -> list[Path]:
    """Where each file goes: a name of our making, so nothing there is replaced but what we made.

    Raises UserError for a place that is the source, and for one that holds a file which no proof says we made.
    """
    places = [out / plan.file_name(file) for plan in plans]
    for place in places:
        if place.exists() and place.samefile(file.header.path):
            raise UserError(f"{place} is the source itself; choose another directory with --out")
        beside = place.with_name(f"{place.stem}.proof.json")
        if not _is_ours(place, beside):
            there = place if os.path.lexists(place) else beside
            raise UserError(f"{there} exists, and no proof says it was made here; move it, or choose another --out")
    return places


def _is_ours(place: Path, beside: Path) -> bool:
    """Whether nothing is there, or a file and our proof of it."""
    if not os.path.lexists(place) and not os.path.lexists(beside):
        return True
    try:
        proof = read(beside, Proof)
        return not os.path.lexists(place) or (place.is_file() and place.stat().st_size == proof.artefact.bytes)
    except (UnreadError, OSError):
        return False


def _check_judged(judged: Sequence[Document]) -> None:
    try:
        check_enough(blocks_of(list(judged)))
    except UserError as error:
        raise UserError(f"{error}, and half as much again for importance") from None


class _Directory:
    """The directory, made if need be, and gone again unless something was `kept` in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.kept = path, path.is_dir()

    def __enter__(self) -> _Directory:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be made ({error.strerror}); choose another --out") from error
        return self

    def __exit__(self, *_error: object) -> None:
        if not self.kept:
            with suppress(OSError):
                self.path.rmdir()


def _opened(source: Path) -> DenseFile:
    if source.is_dir():
        quoted = shlex.quote(word_of(source))
        raise UserError(f"{source} is a directory; make a GGUF of it first: breakeven export {quoted} --to gguf")
    file = open_gguf(source)
    count = file.header.metadata.get("split.count", 1)
    if isinstance(count, int) and count > 1:
        raise NotSupportedError(f"{source} is one of {count} parts; join them first with llama-gguf-split --merge")
    return file


def _caveats(file: DenseFile, plan: FormatPlan, importance: Importance | None) -> list[str]:
    """What is to be said of a file beside its numbers."""
    said = []
    rounded = {
        tensor.kind.name for tensor in file.tensors if plan.kinds[tensor.name] and tensor.kind.name not in _WHOLE
    }
    if rounded:
        said.append(
            f"the source was quantized already ({', '.join(sorted(rounded))}): the loss told is added to that of the "
            "source; quantize from F32, F16 or BF16 where there is one"
        )
    if importance is None and any(plan.kinds.values()) and plan.asked.is_quantized:
        said.append("made without importance: --text FILE|DIR measures it, which at few bits loses less")
    if importance is not None:
        said.append(
            f"importance was measured on {importance.text_tokens:,} tokens, and the loss on other blocks of the text"
        )
        said += importance.caveats()
        starved = [
            f"{name.removesuffix('.weight')}: {listed(importance.starved(name))}"
            for name, kind in plan.kinds.items()
            if kind is not None and name in importance.tokens and importance.starved(name)
        ]
        if starved:
            told = "; ".join(starved[:3]) + (f"; and {len(starved) - 3} more stacks" if len(starved) > 3 else "")
            said.append(
                f"experts that saw fewer than {FEWEST_TOKENS} tokens were quantized without importance ({told}): more "
                "text, or one that is closer to what will be asked, reaches them"
            )
    return said


_WHOLE = frozenset({"F32", "F16", "BF16"})


def _write(
    file: DenseFile,
    out: Path,
    plan: FormatPlan,
    ggml: Ggml,
    importance: Importance | None,
    threads: int | None,
    on_step: OnStep,
) -> None:
    """Write the planned file, streamed, whole or not at all."""
    n = threads or available_threads()
    total = sum(math.prod(tensor.dims) for tensor in file.tensors)
    done = [0]

    def told(pieces: Callable[[], Iterator[Bytes]], weights: int) -> Iterator[Bytes]:
        yield from pieces()
        done[0] += weights
        on_step(f"quantizing to {plan.asked.name}", done[0] / total)

    pool = ThreadPoolExecutor(n, thread_name_prefix="quantize")
    try:
        tensors = []
        for tensor in file.tensors:
            kind, weights = plan.kinds[tensor.name], math.prod(tensor.dims)
            if kind is None:
                code, size = int(tensor.kind), tensor.data.nbytes
                pieces = _copied(tensor)
            else:
                code, size = kind.code, kind.n_bytes(weights)
                pieces = _encoded(tensor, kind, ggml, importance, pool, 2 * n)
            tensors.append(OutTensor(tensor.name, tensor.dims, code, size, partial(told, pieces, weights)))
        rewrite(file, out, _numbers(plan.asked), tensors)
    finally:
        pool.shutdown(cancel_futures=True)


def _numbers(asked: WeightType) -> dict[str, int]:
    """What the header says of the weights. llama.cpp numbers mixtures, of which the plain one is called small (S)."""
    codes = {name: code for code, name in FILE_TYPES.items()}
    code = codes.get(asked.name, codes.get(f"{asked.name}_S"))
    numbers = {"general.quantization_version": _QUANTIZED_VERSION}
    return numbers if code is None else {**numbers, "general.file_type": code}


def _copied(tensor: SourceTensor) -> Callable[[], Iterator[Bytes]]:
    step = PIECE_WEIGHTS * 4
    return lambda: (tensor.data[start : start + step] for start in range(0, tensor.data.size, step))


def _encoded(
    tensor: SourceTensor,
    kind: WeightType,
    ggml: Ggml,
    importance: Importance | None,
    pool: ThreadPoolExecutor,
    ahead: int,
) -> Callable[[], Iterator[Bytes]]:
    """The tensor's weights in another format, matrix by matrix, some rows at a time in several threads."""
    own = ggml.types[tensor.kind.name]
    columns, rows = tensor.dims[0], tensor.dims[1]
    matrices = math.prod(tensor.dims[2:])
    data = tensor.data.reshape(matrices, rows, own.n_bytes(columns))
    counts = _counts(tensor, matrices, importance)
    step = max(1, PIECE_WEIGHTS // columns)

    def encoded(matrix: int, start: int) -> Bytes:
        values = ggml.decode(own, data[matrix, start : start + step]).reshape(-1, columns)
        try:
            return ggml.encode(kind, values, counts[matrix])
        except BreakevenError as error:
            raise BreakevenError(f"{tensor.name} {error}; the source is damaged, fetch it again") from None

    def pieces() -> Iterator[Bytes]:
        waiting: deque[Future[Bytes]] = deque()
        for matrix in range(matrices):
            for start in range(0, rows, step):
                waiting.append(pool.submit(encoded, matrix, start))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    return pieces


def _counts(tensor: SourceTensor, matrices: int, importance: Importance | None) -> list[Floats | None]:
    """What each matrix of a stack is weighed with; None where too few tokens say, or none."""
    if importance is None or tensor.name not in importance.mean_squares:
        return [None] * matrices
    means = importance.mean_squares[tensor.name]
    if means.shape != (matrices, tensor.dims[0]):
        raise BreakevenError(f"{tensor.name} was seen as {means.shape}, which is not its shape: unknown build")
    few = set(importance.starved(tensor.name))
    return [None if index in few else np.ascontiguousarray(means[index]) for index in range(matrices)]
