"""A loaded model and its contexts, over llama.cpp's C functions. Child process only.

The functions come from the shared library that the xllamacpp wheel brings; `layout` proves that it is the known one.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import ctypes as c
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from breakeven.engines.inside.layout import (
    CONTEXT_DEFAULTS,
    EVAL_CALLBACK,
    FLASH_ATTENTION_OFF,
    GGML_TYPE_F32,
    KV_INT,
    MODEL_DEFAULTS,
    ContextParams,
    GgmlInitParams,
    GgmlTensor,
    KvOverride,
    LlamaBatch,
    ModelParams,
    unknown_layout,
    verify,
)
from breakeven.errors import EngineError, NotSupportedError

LOG_CALLBACK = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
LOAD_CALLBACK = c.CFUNCTYPE(c.c_bool, c.c_float, c.c_void_p)
"""`llama_progress_callback`: share, user data; false ends the loading."""
_LOG_LEVEL_WARN = 3
_LOG_LEVEL_ERROR = 4

_P = c.c_void_p
_I = c.c_int32
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [LOG_CALLBACK, _P]),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (_P, [c.c_char_p, ModelParams]),
    "llama_model_free": (None, [_P]),
    "llama_init_from_model": (_P, [_P, ContextParams]),
    "llama_free": (None, [_P]),
    "llama_batch_get_one": (LlamaBatch, [c.POINTER(_I), _I]),
    "llama_decode": (_I, [_P, LlamaBatch]),
    "llama_synchronize": (None, [_P]),
    "llama_get_logits_ith": (c.POINTER(c.c_float), [_P, _I]),
    "llama_get_memory": (_P, [_P]),
    "llama_memory_clear": (None, [_P, c.c_bool]),
    "llama_model_get_vocab": (_P, [_P]),
    "llama_vocab_n_tokens": (_I, [_P]),
    "llama_vocab_is_eog": (c.c_bool, [_P, _I]),
    "llama_token_to_piece": (_I, [_P, _I, c.c_char_p, _I, _I, c.c_bool]),
    "llama_model_n_layer": (_I, [_P]),
    "llama_model_n_ctx_train": (_I, [_P]),
    "llama_model_meta_val_str": (_I, [_P, c.c_char_p, c.c_char_p, c.c_size_t]),
    "llama_tokenize": (_I, [_P, c.c_char_p, _I, c.POINTER(_I), _I, c.c_bool, c.c_bool]),
    "llama_vocab_get_attr": (c.c_int, [_P, _I]),
    "llama_vocab_bos": (_I, [_P]),
    "llama_vocab_eos": (_I, [_P]),
    "llama_vocab_get_add_bos": (c.c_bool, [_P]),
    "llama_vocab_get_add_eos": (c.c_bool, [_P]),
    "ggml_get_name": (_P, [_P]),
    "ggml_op_name": (c.c_char_p, [_I]),
    "ggml_nbytes": (c.c_size_t, [_P]),
    "ggml_backend_tensor_get": (None, [_P, _P, c.c_size_t, c.c_size_t]),
    "ggml_backend_tensor_set": (None, [_P, _P, c.c_size_t, c.c_size_t]),
    "ggml_tensor_overhead": (c.c_size_t, []),
    "ggml_init": (_P, [GgmlInitParams]),
    "ggml_free": (None, [_P]),
    "ggml_new_tensor_2d": (_P, [_P, c.c_int, c.c_int64, c.c_int64]),
    "ggml_view_2d": (_P, [_P, _P, c.c_int64, c.c_int64, c.c_size_t, c.c_size_t]),
    "ggml_mul_mat": (_P, [_P, _P, _P]),
}


def library_path() -> Path:
    """The shared library inside the installed xllamacpp. Raises NotSupportedError when there is none."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise NotSupportedError("xllamacpp is not installed: `pip install xllamacpp`")
    found = sorted(Path(spec.origin).parent.glob("xllamacpp*.so"))
    if not found:
        raise NotSupportedError(f"no shared library beside {spec.origin}: reinstall xllamacpp from its wheel")
    return found[0]


class Library:
    """The loaded library with its functions typed and its layouts verified."""

    def __init__(self, path: Path) -> None:
        """Load and verify. Raises NotSupportedError when a symbol is missing or a layout is not the known one."""
        self._c = c.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            try:
                function = getattr(self._c, name)
            except AttributeError:
                raise NotSupportedError(f"{path.name} does not export {name}: trace and profile cannot run") from None
            function.restype = result
            function.argtypes = arguments
        # Kept on self: the library calls it as long as it lives.
        self._log = LOG_CALLBACK(_log_problems)
        self._c.llama_log_set(self._log, None)
        self._c.llama_backend_init()
        self._verify()

    def __getattr__(self, name: str) -> c._FuncPointer:
        function: c._FuncPointer = getattr(self._c, name)
        return function

    def _verify(self) -> None:
        verify(self._c.llama_model_default_params(), MODEL_DEFAULTS)
        verify(self._c.llama_context_default_params(), CONTEXT_DEFAULTS)
        self._verify_batch()
        self._verify_tensor()

    def _verify_batch(self) -> None:
        tokens = (c.c_int32 * 3)(5, 6, 7)
        batch = self._c.llama_batch_get_one(tokens, 3)
        if batch.n_tokens != 3 or batch.token[2] != 7 or any((batch.embd, batch.pos, batch.seq_id, batch.logits)):
            raise unknown_layout("llama_batch_get_one does not return the tokens given")

    def _verify_tensor(self) -> None:
        """Build three tensors without computing anything and find their numbers where the layout says they are."""
        context = self._c.ggml_init(GgmlInitParams(1 << 20, None, True))
        try:
            weight = self._c.ggml_new_tensor_2d(context, 0, 7, 3)
            view = self._c.ggml_view_2d(context, weight, 5, 3, 28, 8)
            product = self._c.ggml_mul_mat(context, weight, self._c.ggml_new_tensor_2d(context, 0, 7, 2))
            t_weight, t_view, t_product = (GgmlTensor.from_address(a) for a in (weight, view, product))
            facts = (
                tuple(t_weight.ne) == (7, 3, 1, 1),
                tuple(t_weight.nb) == (4, 28, 84, 84),
                (t_view.view_src, t_view.view_offs, t_view.nb[1]) == (weight, 8, 28),
                t_product.src[0] == weight,
                self._c.ggml_op_name(t_product.op) == b"MUL_MAT",
                self._c.ggml_get_name(weight) - weight == GgmlTensor.name.offset,
            )
        finally:
            self._c.ggml_free(context)
        if not all(facts):
            raise unknown_layout(f"ggml_tensor, check {facts.index(False)}")


def _log_problems(level: int, text: bytes, _user_data: int) -> None:
    """Warnings and errors go to stderr, where the parent keeps the last lines; the rest is dropped."""
    if level in (_LOG_LEVEL_WARN, _LOG_LEVEL_ERROR):
        sys.stderr.write(text.decode(errors="replace"))


_META_BYTES = 1024
_PIECE_BYTES = 256

NodeCallback = Callable[[int, bool], bool]
"""Called with the address of a node and whether llama.cpp asks (true) or tells that it is computed (false)."""


class Model:
    """A GGUF in memory. Threads: how many one step may use."""

    def __init__(
        self,
        library: Library,
        path: Path,
        threads: int,
        *,
        mtp: bool = False,
        gpu_layers: int = -1,
        numbers: Mapping[str, int] | None = None,
        vocab_only: bool = False,
        repack: bool = True,
        on_share: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Load with llama.cpp's defaults (mapped file, repacking), drafting blocks only if asked for.

        `gpu_layers`: -1 for all; 0 leaves a GPU alone altogether. `numbers`: metadata read as these whole numbers, not
        as the file has it. `vocab_only`: no weights, so nothing can be computed. `repack` false: weights stay where
        they are mapped, shared with whoever reads the file; products are slower. `on_share` is told how much is loaded.
        Raises EngineError when it cannot be loaded.
        """
        self.library = library
        self.threads = threads
        self.path = path
        params = library.llama_model_default_params()
        params.load_mtp = mtp
        params.vocab_only = vocab_only
        params.use_extra_bufts = repack
        params.n_gpu_layers = gpu_layers
        # A list that ends at once, as for `--device none`: else a GPU without layers still multiplies long prompts.
        nothing = (c.c_void_p * 1)(None)
        if gpu_layers == 0:
            params.devices = c.cast(nothing, c.c_void_p)
        overrides = (KvOverride * (len(numbers or {}) + 1))()
        for override, (key, number) in zip(overrides, (numbers or {}).items(), strict=False):
            override.tag, override.key, override.number = KV_INT, key.encode(), number
        if numbers:
            params.kv_overrides = c.cast(overrides, c.c_void_p)

        def loading(share: float, _user_data: int) -> bool:
            on_share(share)
            return True

        told = LOAD_CALLBACK(loading)
        params.progress_callback = c.cast(told, c.c_void_p)
        self.address = library.llama_model_load_from_file(str(path).encode(), params)
        if not self.address:
            raise EngineError(f"llama.cpp cannot load {path}")
        self._vocab = library.llama_model_get_vocab(self.address)
        self.n_vocab: int = library.llama_vocab_n_tokens(self._vocab)
        self.n_positions: int = library.llama_model_n_ctx_train(self.address)

    def meta(self, key: str) -> str | None:
        """A metadata value as text, None when the file does not have it."""
        buffer = c.create_string_buffer(_META_BYTES)
        length = self.library.llama_model_meta_val_str(self.address, key.encode(), buffer, _META_BYTES)
        return None if length < 0 else buffer.value.decode(errors="replace")

    def architecture_number(self, key: str) -> int:
        """`<architecture>.<key>` as a whole number, 0 when absent; the largest when it differs by layer."""
        text = self.meta(f"{self.meta('general.architecture')}.{key}") or "0"
        return max(int(part) for part in text.strip("[]").split(","))

    def tokenize(self, text: str, *, special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text in the model's own vocabulary; `special`: with its special first token if it wants one.

        What looks like a special token in the text is text, unless `parse_special`.
        """
        raw = text.encode()
        room = len(raw) + 8
        ids = (c.c_int32 * room)()
        count = self.library.llama_tokenize(self._vocab, raw, len(raw), ids, room, special, parse_special)
        if count < 0:
            raise EngineError(f"{self.path.name}: its tokenizer refused the text")
        return list(ids[:count])

    def piece(self, token: int) -> bytes:
        """What one token adds to a text; nothing for a special token."""
        buffer = c.create_string_buffer(_PIECE_BYTES)
        length = self.library.llama_token_to_piece(self._vocab, token, buffer, _PIECE_BYTES, 0, False)
        if length < 0:
            buffer = c.create_string_buffer(-length)
            length = self.library.llama_token_to_piece(self._vocab, token, buffer, -length, 0, False)
        return buffer.raw[: max(0, length)]

    def ends(self, token: int) -> bool:
        """Whether the token ends an answer."""
        return bool(self.library.llama_vocab_is_eog(self._vocab, token))

    def attributes(self) -> list[int]:
        """`llama_token_attr` of each token, after all that llama.cpp corrects on loading."""
        attribute = self.library.llama_vocab_get_attr
        return [attribute(self._vocab, token) for token in range(self.n_vocab)]

    def added(self) -> tuple[int | None, int | None]:
        """The token put before every text, and the one put behind it; None where there is none."""
        library, vocab = self.library, self._vocab
        first = library.llama_vocab_bos(vocab) if library.llama_vocab_get_add_bos(vocab) else None
        return first, library.llama_vocab_eos(vocab) if library.llama_vocab_get_add_eos(vocab) else None

    def close(self) -> None:
        """Free the weights; contexts must be gone."""
        self.library.llama_model_free(self.address)


class Context:
    """One sequence's memory, observed or not."""

    def __init__(
        self, model: Model, n_ctx: int, n_batch: int, observe: NodeCallback | None = None, *, exact: bool = False
    ) -> None:
        """A context of `n_ctx` positions and batches of up to `n_batch` tokens, each computed as one graph.

        `exact`: attention in single precision, which llama.cpp otherwise computes in half. Raises EngineError when
        llama.cpp cannot make it.
        """
        self._library = model.library
        self._model = model
        params = self._library.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_batch, n_batch
        params.n_outputs_max_per_seq = n_batch
        params.n_threads = params.n_threads_batch = model.threads
        if exact:
            params.type_k = params.type_v = GGML_TYPE_F32
            params.flash_attn_type = FLASH_ATTENTION_OFF
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
        batch = LlamaBatch(n, self._token, None, self._pos, self._n_seq_id, self._seq_id, self._wanted)
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

    def logits_in_place(self, n: int) -> NDArray[np.float32]:
        """The logits (n, V) of the last batch, whose `n` outputs were all asked for: valid until the next one."""
        pointer = self._library.llama_get_logits_ith(self.address, 0)
        return np.ctypeslib.as_array(pointer, (n, self._model.n_vocab))

    def clear(self, *, wipe: bool = True) -> None:
        """Forget every position; `wipe`: overwrite what was kept of them too, which takes time and changes nothing."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self.address), wipe)

    def close(self) -> None:
        """Free the context."""
        self._library.llama_free(self.address)
