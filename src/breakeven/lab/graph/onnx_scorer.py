"""An ONNX directory as one of the models in lock-step: ONNX Runtime on the CPU, keys and values kept between pieces.

Imported only in the child process that scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from breakeven.errors import NotSupportedError
from breakeven.lab.bridge.directory_words import end_tokens, pieces_of, tokenizer_of
from breakeven.lab.facts import GRAPH
from breakeven.model.readers.hf import CONFIG, read_json

Floats = NDArray[np.float32]

_IDS, _POSITIONS, _MASK, _LOGITS = "input_ids", "position_ids", "attention_mask", "logits"
_BEFORE, _AFTER = "input.", "output."
"""What the exporter puts before the name of a tensor that goes in and comes out."""


class OnnxScorer:
    """One directory's graph with room for one sequence."""

    engine = "onnxruntime"

    def __init__(self, path: Path, threads: int) -> None:
        """Load it. Raises NotSupportedError for a graph that is not what `export --to onnx` writes."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path / GRAPH), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library raises its own, bare
            raise NotSupportedError(
                f"{path.name}: ONNX Runtime cannot load {GRAPH} ({' '.join(str(error).split())[:200]})"
            ) from error
        inputs = {each.name: each for each in self._session.get_inputs()}
        outputs = [each.name for each in self._session.get_outputs()]
        self._takes = [name for name in (_IDS, _POSITIONS, _MASK) if name in inputs]
        self._kept = [name for name in inputs if name not in self._takes]
        self._wanted = [_LOGITS, *(name.replace(_BEFORE, _AFTER, 1) for name in self._kept)]
        if _IDS not in inputs or not set(self._wanted) <= set(outputs):
            raise NotSupportedError(
                f"{path.name}: {GRAPH} does not take token ids and give logits, as language models do"
            )
        self._empty = {name: _empty(inputs[name].shape) for name in self._kept}
        self._tokenizer = tokenizer_of(path)
        self._pieces, self._ends = pieces_of(self._tokenizer), end_tokens(path)
        config = read_json(path / CONFIG)
        self.n_vocab, self.n_positions = (
            value if isinstance(value := config.get(key), int) else 0
            for key in ("vocab_size", "max_position_embeddings")
        )
        self._memory: dict[str, Any] = {}
        self._read: list[int] = []

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """As `Scorer` says."""
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def piece(self, token: int) -> bytes:
        """As `Scorer` says."""
        return self._pieces.get(token, b"")

    def ends(self, token: int) -> bool:
        """As `Scorer` says."""
        return token in self._ends

    def begin(self, positions: int) -> None:
        """As `Scorer` says."""
        self._memory, self._read = dict(self._empty), []

    def logits_TV(self, tokens: Sequence[int], position: int) -> Floats:
        """As `Scorer` says. A graph that keeps nothing reads all again."""
        self._read[position:] = tokens
        start = position if self._kept else 0
        ids = np.asarray([self._read[start:]], np.int64)
        fed = {
            _IDS: ids,
            _POSITIONS: np.arange(start, len(self._read), dtype=np.int64)[None],
            _MASK: np.ones((1, len(self._read)), np.int64),
        }
        found = self._session.run(self._wanted, {name: fed[name] for name in self._takes} | self._memory)
        self._memory = dict(zip(self._kept, found[1:], strict=True))
        logits: Floats = np.ascontiguousarray(found[0][0, position - start :], dtype=np.float32)
        return logits

    def beside(self, batch: int) -> None:
        """None: products of single precision do not depend on the batch beyond their last bits."""
        return

    def close(self) -> None:
        """Free what it holds."""
        self._session, self._memory = None, {}


def _empty(shape: Sequence[Any]) -> Floats:
    """Keys or values of nothing yet: one sequence, heads, no position, width. Fixed sizes come as numbers or digits."""
    sizes = [int(each) if str(each).isdigit() else 0 for each in shape]
    return np.zeros([1, *sizes[1:]], np.float32)
