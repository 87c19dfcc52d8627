"""The teacher: how well it predicts the text, and a cache of what it finds likely. Torch is imported only to run it.

Of each token's distribution the cache keeps the `TOP` likeliest tokens and their probabilities, 128 bytes; what they
leave of one is the rest's mass. So a teacher is run once, however often its student reads the text.

Legend: N rows, B rows of a batch, T tokens a row, V vocabulary, K tokens kept of it, C likeliest of them in the cache.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.engines.inside.child import Say
from breakeven.errors import UserError
from breakeven.lab.training.work import write_whole

TOP = 32
_SAVE_EVERY_S = 10.0
_WIDE = 1 << 16


class TeacherSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A job for the process with torch: to measure the teacher, or with `cache` to run it over `rows`.

    Paths are those of .npy files: `rows` (N, T) of the student's tokens, `kept` (K) the teacher's number of each.
    `used`: experts a token, None for its own number; `experts`: also measured with all of them, where it has any.
    """

    directory: str
    rows: str
    kept: str | None
    cache: str | None = None
    used: int | None = None
    experts: int = 0


class TeacherTold(msgspec.Struct, frozen=True, kw_only=True):
    """Nats a token by experts used (0: its own number), tokens a second; of a cache the seconds it took, and the mean
    mass of what it keeps."""

    nats: list[tuple[int, float]] = []
    tokens_per_s: float
    seconds: float = 0.0
    mass: float = 0.0

    @property
    def best(self) -> tuple[int, float]:
        """With how many experts (0: its own number) it predicts best, and how well."""
        return min(self.nats, key=lambda each: each[1])


class _Done(msgspec.Struct, frozen=True):
    """How far a cache got: rows, the seconds and the sum of masses of their tokens."""

    rows: int = 0
    seconds: float = 0.0
    mass: float = 0.0


class Cache:
    """What a teacher finds likely after each token of N rows. Written row by row, gone on with where it stopped.

    Where `read.npy` lies beside it, these are the numbers of its rows; else 0 to N-1.
    """

    def __init__(self, folder: Path) -> None:
        """Open what lies in `folder`. Raises UserError where it is damaged."""
        self._done = folder / "done.json"
        try:
            read = folder / "read.npy"
            self._read: NDArray[np.int64] | None = np.load(read) if read.is_file() else None
            self.tokens_NTC: NDArray[np.generic] = np.load(folder / "tokens.npy", mmap_mode="r+")
            self.logs_NTC: NDArray[np.float16] = np.load(folder / "logs.npy", mmap_mode="r+")
            self.done = msgspec.json.decode(self._done.read_bytes(), type=_Done)
        except (OSError, ValueError, msgspec.DecodeError) as error:
            raise UserError(f"{folder}: damaged; remove {folder} to run the teacher again") from error

    @staticmethod
    def begin(folder: Path, rows: int, tokens: int, vocab: int) -> Cache:
        """Make room for so many rows, or find what was made of it before."""
        if not (folder / "done.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            shape = (rows, tokens, min(TOP, vocab))
            kind = np.uint16 if vocab <= _WIDE else np.uint32
            for name, dtype in (("tokens.npy", kind), ("logs.npy", np.float16)):
                np.lib.format.open_memmap(folder / name, "w+", dtype, shape).flush()
            write_whole(folder / "done.json", msgspec.json.encode(_Done()))
        return Cache(folder)

    def put(self, tokens_BTC: NDArray[np.generic], logs_BTC: NDArray[np.floating], seconds: float) -> None:
        """The next rows: tokens, and the logarithms of their probabilities."""
        at = slice(self.done.rows, self.done.rows + len(tokens_BTC))
        self.tokens_NTC[at], self.logs_NTC[at] = tokens_BTC, logs_BTC
        mass = float(np.exp(self.logs_NTC[at].astype(np.float32)).sum(-1).sum())
        self.done = _Done(at.stop, self.done.seconds + seconds, self.done.mass + mass)

    def save(self) -> None:
        """What was put is there after a stop."""
        for array in (self.tokens_NTC, self.logs_NTC):
            assert isinstance(array, np.memmap)
            array.flush()
        write_whole(self._done, msgspec.json.encode(self.done))

    def rows(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Of some rows the likeliest tokens (B, T, C) and the logarithms of their probabilities."""
        at = numbers if self._read is None else np.searchsorted(self._read, numbers)
        return self.tokens_NTC[at].astype(np.int64), self.logs_NTC[at].astype(np.float32)


def cache_bytes(tokens: int, vocab: int) -> int:
    """On disk."""
    return tokens * min(TOP, vocab) * (4 if vocab <= _WIDE else 6)


def run(content: bytes, say: Say) -> TeacherTold:
    """The job, in the process with torch."""
    spec = msgspec.json.decode(content, type=TeacherSpec)
    rows_NT = np.load(spec.rows).astype(np.int64)
    kept_K = None if spec.kept is None else np.load(spec.kept)
    # A teacher reads its own numbers of the tokens.
    theirs_NT = rows_NT if kept_K is None else kept_K[rows_NT]
    if spec.cache is None:
        return _measured(spec, theirs_NT, say)
    return _cached(spec, theirs_NT, kept_K, say)


def _measured(spec: TeacherSpec, theirs_NT: NDArray[np.int64], say: Say) -> TeacherTold:
    from breakeven.lab.training.loop import mean_nats

    nats: list[tuple[int, float]] = []
    rate = 0.0
    for used in [None, spec.experts] if spec.experts else [None]:
        say("measuring the teacher" + (f", all {used} experts on" if used else ""), 0.0)
        model = _loaded(spec.directory, used)
        began = time.perf_counter()
        found = mean_nats(model, theirs_NT.astype(np.int32), _batch())
        if all(found < other for _, other in nats):  # the way that teaches, as `best` finds it
            rate = theirs_NT.size / (time.perf_counter() - began)
        nats.append((used or 0, found))
        del model
    return TeacherTold(nats=nats, tokens_per_s=rate)


def _cached(spec: TeacherSpec, theirs_NT: NDArray[np.int64], kept_K: NDArray[np.int64] | None, say: Say) -> TeacherTold:
    import torch

    assert spec.cache is not None
    say("the teacher: loading", 0.0)
    model = _loaded(spec.directory, spec.used)
    where = next(model.parameters()).device
    kept = None if kept_K is None else torch.from_numpy(kept_K).to(where)
    n_rows, row = theirs_NT.shape
    vocab = len(kept_K) if kept_K is not None else int(model.get_output_embeddings().weight.shape[0])
    cache = Cache.begin(Path(spec.cache), n_rows, row, vocab)
    first, saved_at, began_all = cache.done.rows, time.monotonic(), time.perf_counter()
    while cache.done.rows < n_rows:
        began = time.perf_counter()
        ids_BT = torch.from_numpy(theirs_NT[cache.done.rows : cache.done.rows + _batch()]).to(where)
        with torch.inference_mode():
            logits_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
            all_BT1 = logits_BTV.logsumexp(-1, keepdim=True)
            top = (logits_BTV if kept is None else logits_BTV[..., kept]).topk(cache.tokens_NTC.shape[-1])
            logs_BTC = (top.values - all_BT1).cpu().numpy()
        tokens_BTC = top.indices.cpu().numpy()
        cache.put(tokens_BTC, logs_BTC, time.perf_counter() - began)
        if time.monotonic() - saved_at > _SAVE_EVERY_S or cache.done.rows == n_rows:
            cache.save()
            saved_at = time.monotonic()
        rate = (cache.done.rows - first) * row / (time.perf_counter() - began_all)
        left = (n_rows - cache.done.rows) * row / rate
        told = f"the teacher: {rate:,.0f} tokens/s, {left // 60:.0f}:{left % 60:02.0f} left"
        say(told, cache.done.rows / n_rows)
    done = cache.done
    tokens = n_rows * row
    return TeacherTold(tokens_per_s=tokens / max(done.seconds, 1e-9), seconds=done.seconds, mass=done.mass / tokens)


def _loaded(directory: str, used: int | None) -> Any:
    from breakeven.lab.torch_scorer import load_model
    from breakeven.lab.training.loop import device

    return load_model(Path(directory), used).to(device())


def _batch() -> int:
    """Rows at once: a processor is as fast with one, and its logits take V times 4 bytes a token."""
    from breakeven.lab.training.loop import device

    return 8 if device().type == "cuda" else 1
