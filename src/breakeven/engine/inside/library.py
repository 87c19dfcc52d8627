"""llama.cpp's C functions, taken from the shared library that the xllamacpp wheel brings. Child process only."""

from __future__ import annotations

import ctypes as c
import importlib.util
import sys
from pathlib import Path

from breakeven.engine.inside.layout import (
    CONTEXT_DEFAULTS,
    MODEL_DEFAULTS,
    Batch,
    ContextParams,
    GgmlInitParams,
    ModelParams,
    Tensor,
    unknown_layout,
    verify,
)
from breakeven.errors import NotSupportedError

LOG_CALLBACK = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
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
    "llama_batch_get_one": (Batch, [c.POINTER(_I), _I]),
    "llama_decode": (_I, [_P, Batch]),
    "llama_synchronize": (None, [_P]),
    "llama_get_logits_ith": (c.POINTER(c.c_float), [_P, _I]),
    "llama_get_memory": (_P, [_P]),
    "llama_memory_clear": (None, [_P, c.c_bool]),
    "llama_model_get_vocab": (_P, [_P]),
    "llama_vocab_n_tokens": (_I, [_P]),
    "llama_model_n_layer": (_I, [_P]),
    "llama_model_meta_val_str": (_I, [_P, c.c_char_p, c.c_char_p, c.c_size_t]),
    "llama_tokenize": (_I, [_P, c.c_char_p, _I, c.POINTER(_I), _I, c.c_bool, c.c_bool]),
    "ggml_get_name": (_P, [_P]),
    "ggml_op_name": (c.c_char_p, [_I]),
    "ggml_nbytes": (c.c_size_t, [_P]),
    "ggml_backend_tensor_get": (None, [_P, _P, c.c_size_t, c.c_size_t]),
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
            t_weight, t_view, t_product = (Tensor.from_address(a) for a in (weight, view, product))
            facts = (
                tuple(t_weight.ne) == (7, 3, 1, 1),
                tuple(t_weight.nb) == (4, 28, 84, 84),
                (t_view.view_src, t_view.view_offs, t_view.nb[1]) == (weight, 8, 28),
                t_product.src[0] == weight,
                self._c.ggml_op_name(t_product.op) == b"MUL_MAT",
                self._c.ggml_get_name(weight) - weight == Tensor.name.offset,
            )
        finally:
            self._c.ggml_free(context)
        if not all(facts):
            raise unknown_layout(f"ggml_tensor, check {facts.index(False)}")


def _log_problems(level: int, text: bytes, _user_data: int) -> None:
    """Warnings and errors go to stderr, where the parent keeps the last lines; the rest is dropped."""
    if level in (_LOG_LEVEL_WARN, _LOG_LEVEL_ERROR):
        sys.stderr.write(text.decode(errors="replace"))
