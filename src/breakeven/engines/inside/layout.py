"""The C structures that looking inside needs, written down once, with the defaults that prove the layout.

llama.cpp passes its parameters by value and changes their order between builds. A layout is believed only when the
running library's own defaults, read through it, are the known ones; a wrong one would crash far from the cause.
Source: `include/llama.h`, `ggml/include/ggml.h` and the `*_default_params` functions of llama.cpp, read at build 11434
and checked against the running build 11549, which is the one written down here.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Mapping

from breakeven.errors import NotSupportedError

EVAL_CALLBACK = c.CFUNCTYPE(c.c_bool, c.c_void_p, c.c_bool, c.c_void_p)
"""`ggml_backend_sched_eval_callback`: node, ask, user data."""

GGML_TYPE_F32, GGML_TYPE_F16 = 0, 1
FLASH_ATTENTION_OFF = 0
"""Of `llama_flash_attn_type`; where it is on, keys and values are computed with in half precision."""
MAX_DIMS = 4
MAX_SRC = 10
MAX_OP_PARAMS_BYTES = 64
MAX_NAME_BYTES = 64

# A newer build may append fields. Room behind the known ones keeps the callee's writes inside our memory and hands
# the appended defaults back unchanged.
_SPARE_BYTES = 256


class ModelParams(c.Structure):
    """`llama_model_params`."""

    _fields_ = (
        ("devices", c.c_void_p),
        ("tensor_buft_overrides", c.c_void_p),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int32),
        ("load_mode", c.c_int32),
        ("lazy_mode", c.c_int32),
        ("main_gpu", c.c_int32),
        ("tensor_split", c.c_void_p),
        ("progress_callback", c.c_void_p),
        ("progress_callback_user_data", c.c_void_p),
        ("kv_overrides", c.c_void_p),
        ("vocab_only", c.c_bool),
        ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool),
        ("no_host", c.c_bool),
        ("no_alloc", c.c_bool),
        ("load_mtp", c.c_bool),
        ("spare", c.c_uint8 * _SPARE_BYTES),
    )


MODEL_DEFAULTS: Mapping[str, object] = {
    "devices": None,
    "tensor_buft_overrides": None,
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "main_gpu": 0,
    "tensor_split": None,
    "progress_callback": None,
    "progress_callback_user_data": None,
    "kv_overrides": None,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
    "no_alloc": False,
    "load_mtp": False,
}


class ContextParams(c.Structure):
    """`llama_context_params`."""

    _fields_ = (
        ("n_ctx", c.c_uint32),
        ("n_batch", c.c_uint32),
        ("n_ubatch", c.c_uint32),
        ("n_seq_max", c.c_uint32),
        ("n_rs_seq", c.c_uint32),
        ("n_outputs_max", c.c_uint32),
        ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32),
        ("n_threads_batch", c.c_int32),
        ("ctx_type", c.c_int32),
        ("rope_scaling_type", c.c_int32),
        ("pooling_type", c.c_int32),
        ("attention_type", c.c_int32),
        ("flash_attn_type", c.c_int32),
        ("rope_freq_base", c.c_float),
        ("rope_freq_scale", c.c_float),
        ("yarn_ext_factor", c.c_float),
        ("yarn_attn_factor", c.c_float),
        ("yarn_beta_fast", c.c_float),
        ("yarn_beta_slow", c.c_float),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p),
        ("cb_eval_user_data", c.c_void_p),
        ("type_k", c.c_int32),
        ("type_v", c.c_int32),
        # Two pointers of the abort callback and, new since build 11434, a third field of the same size. All are null by
        # default and none is set here, so which of the three is new does not matter.
        ("callback_a", c.c_void_p),
        ("callback_b", c.c_void_p),
        ("callback_c", c.c_void_p),
        ("embeddings", c.c_bool),
        ("offload_kqv", c.c_bool),
        ("no_perf", c.c_bool),
        ("op_offload", c.c_bool),
        ("swa_full", c.c_bool),
        ("kv_unified", c.c_bool),
        ("samplers", c.c_void_p),
        ("n_samplers", c.c_size_t),
        ("ctx_other", c.c_void_p),
        ("spare", c.c_uint8 * _SPARE_BYTES),
    )


CONTEXT_DEFAULTS: Mapping[str, object] = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_rs_seq": 0,
    "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "ctx_type": 0,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0,
    "yarn_beta_slow": -1.0,
    "yarn_orig_ctx": 0,
    "defrag_thold": -1.0,
    "cb_eval": None,
    "cb_eval_user_data": None,
    "type_k": GGML_TYPE_F16,
    "type_v": GGML_TYPE_F16,
    "callback_a": None,
    "callback_b": None,
    "callback_c": None,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "samplers": None,
    "n_samplers": 0,
    "ctx_other": None,
}


class KvOverride(c.Structure):
    """`llama_model_kv_override` holding a whole number; a list of them ends with an empty key."""

    _fields_ = (
        ("tag", c.c_int32),
        ("key", c.c_char * 128),
        ("number", c.c_int64),
        ("rest_of_union", c.c_uint8 * 120),
    )


KV_INT = 0
"""Tag of a whole number."""


class LlamaBatch(c.Structure):
    """`llama_batch`."""

    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.POINTER(c.c_float)),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    )


class GgmlInitParams(c.Structure):
    """`ggml_init_params`."""

    _fields_ = (("mem_size", c.c_size_t), ("mem_buffer", c.c_void_p), ("no_alloc", c.c_bool))


class GgmlTensor(c.Structure):
    """`ggml_tensor`."""

    _fields_ = (
        ("type", c.c_int32),
        ("buffer", c.c_void_p),
        ("ne", c.c_int64 * MAX_DIMS),
        ("nb", c.c_size_t * MAX_DIMS),
        ("op", c.c_int32),
        ("op_params", c.c_int32 * (MAX_OP_PARAMS_BYTES // 4)),
        ("flags", c.c_int32),
        ("src", c.c_void_p * MAX_SRC),
        ("view_src", c.c_void_p),
        ("view_offs", c.c_size_t),
        ("data", c.c_void_p),
        ("name", c.c_char * MAX_NAME_BYTES),
        ("extra", c.c_void_p),
    )


def verify(read: c.Structure, defaults: Mapping[str, object]) -> None:
    """Check that a structure read from the library carries the known defaults.

    Raises NotSupportedError naming the first field that does not.
    """
    for field, expected in defaults.items():
        found = getattr(read, field)
        if found != expected:
            raise unknown_layout(f"{type(read).__name__}.{field} reads {found!r} where {expected!r} was expected")


def unknown_layout(detail: str) -> NotSupportedError:
    """The error for a library whose structures are not the known ones."""
    return NotSupportedError(
        f"this llama.cpp build's memory layout is not the one known ({detail}); trace and profile need "
        "xllamacpp 2026.10.11549: `pip install xllamacpp==2026.10.11549`. Comparing still works."
    )
