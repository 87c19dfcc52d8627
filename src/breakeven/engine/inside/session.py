"""A loaded model and its contexts, over the C functions. Child process only.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from breakeven.engine.inside.layout import EVAL_CALLBACK, Batch
from breakeven.engine.inside.library import Library
from breakeven.errors import EngineError

_META_BYTES = 1024

NodeCallback = Callable[[int, bool], bool]
"""Called with the address of a node and whether llama.cpp asks (true) or tells that it is computed (false)."""


class Model:
    """A GGUF in memory. Threads: how many one step may use."""

    def __init__(self, library: Library, path: Path, threads: int) -> None:
        """Load with llama.cpp's defaults (mapped file, repacking). Raises EngineError when it cannot be loaded."""
        self.library = library
        self.threads = threads
        self.path = path
        self.address = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
        if not self.address:
            raise EngineError(f"llama.cpp cannot load {path}")
        self._vocab = library.llama_model_get_vocab(self.address)
        self.n_vocab: int = library.llama_vocab_n_tokens(self._vocab)

    def meta(self, key: str) -> str | None:
        """A metadata value as text, None when the file does not have it."""
        buffer = c.create_string_buffer(_META_BYTES)
        length = self.library.llama_model_meta_val_str(self.address, key.encode(), buffer, _META_BYTES)
        return None if length < 0 else buffer.value.decode(errors="replace")

    def architecture_number(self, key: str) -> int:
        """`<architecture>.<key>` as a whole number, 0 when absent; the largest when it differs by layer."""
        text = self.meta(f"{self.meta('general.architecture')}.{key}") or "0"
        return max(int(part) for part in text.strip("[]").split(","))

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text in the model's own vocabulary, with its special first token if it wants one."""
        raw = text.encode()
        room = len(raw) + 8
        ids = (c.c_int32 * room)()
        count = self.library.llama_tokenize(self._vocab, raw, len(raw), ids, room, True, False)
        if count < 0:
            raise EngineError(f"{self.path.name}: its tokenizer refused the text")
        return list(ids[:count])

    def close(self) -> None:
        """Free the weights; contexts must be gone."""
        self.library.llama_model_free(self.address)


class Context:
    """One sequence's memory, observed or not."""

    def __init__(self, model: Model, n_ctx: int, n_batch: int, observe: NodeCallback | None = None) -> None:
        """A context of `n_ctx` positions and batches of up to `n_batch` tokens, each computed as one graph.

        Raises EngineError when llama.cpp cannot make it.
        """
        self._library = model.library
        self._model = model
        params = self._library.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_batch, n_batch
        params.n_outputs_max_per_seq = n_batch
        params.n_threads = params.n_threads_batch = model.threads
        self.failure: BaseException | None = None
        self._callback = EVAL_CALLBACK(self._guarded(observe)) if observe else None
        if self._callback:
            params.cb_eval = c.cast(self._callback, c.c_void_p)
        self.address = self._library.llama_init_from_model(model.address, params)
        if not self.address:
            raise EngineError(f"llama.cpp cannot make a context of {n_ctx} positions for {model.path.name}")
        self._room = n_batch
        self._token = (c.c_int32 * n_batch)()
        self._pos = (c.c_int32 * n_batch)()
        self._n_seq_id = (c.c_int32 * n_batch)(*([1] * n_batch))
        self._sequence_zero = (c.c_int32 * 1)(0)
        to_zero = c.cast(self._sequence_zero, c.POINTER(c.c_int32))
        self._seq_id = (c.POINTER(c.c_int32) * n_batch)(*([to_zero] * n_batch))
        self._wanted = (c.c_int8 * n_batch)()

    def _guarded(self, observe: NodeCallback) -> Callable[[int, bool, int], bool]:
        def call(node: int, ask: bool, _user_data: int) -> bool:
            # An exception must not cross C; it is kept and raised by the decode that caused it.
            try:
                return observe(node, ask)
            except Exception as error:
                self.failure = error
                return not ask

        return call

    def decode(self, tokens: Sequence[int], position: int, *, outputs: bool = False) -> None:
        """Run one batch whose first token stands at `position`, and wait for it.

        outputs: compute logits for every token, not the last alone. Raises EngineError when llama.cpp refuses.
        """
        n = len(tokens)
        if not 0 < n <= self._room:
            raise ValueError(f"a batch of {n} tokens in a context made for {self._room}")
        for index, token in enumerate(tokens):
            self._token[index] = token
            self._pos[index] = position + index
            self._wanted[index] = outputs or index == n - 1
        batch = Batch(n, self._token, None, self._pos, self._n_seq_id, self._seq_id, self._wanted)
        status = self._library.llama_decode(self.address, batch)
        self._library.llama_synchronize(self.address)
        if self.failure:
            raise EngineError(f"observing {self._model.path.name} failed: {self.failure}") from self.failure
        if status != 0:
            raise EngineError(f"llama_decode returned {status} for {n} tokens at position {position}")

    def logits(self, index: int) -> NDArray[np.float32]:
        """Copy of the logits (V,) of the last batch's token `index`; -1 is the last one."""
        pointer = self._library.llama_get_logits_ith(self.address, index)
        return np.ctypeslib.as_array(pointer, (self._model.n_vocab,)).copy()

    def clear(self) -> None:
        """Forget every position."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self.address), True)

    def close(self) -> None:
        """Free the context."""
        self._library.llama_free(self.address)
