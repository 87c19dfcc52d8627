"""Types of cached keys and values: what they weigh, which engine keeps which, and which one a checkpoint asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping

from breakeven.errors import NotSupportedError, UserError
from breakeven.model.architecture import Gqa, ModelSpec
from breakeven.model.formats.ggml import BLOCKS, GgmlType
from breakeven.model.layouts.config import text_parts

_T = GgmlType
_KV: dict[str, GgmlType | float] = {
    "f32": _T.F32,
    "f16": _T.F16,
    "bf16": _T.BF16,
    "q8_0": _T.Q8_0,
    "q5_1": _T.Q5_1,
    "q5_0": _T.Q5_0,
    "q4_1": _T.Q4_1,
    "q4_0": _T.Q4_0,
    "iq4_nl": _T.IQ4_NL,
    "fp8": 1.0,
}

KV_TYPES: tuple[str, ...] = tuple(_KV)
"""Types of cached keys and values: llama.cpp's (`--cache-type-k`), and `fp8` of GPU engines (`--kv-cache-dtype`)."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
KV_BLOCK = 32
"""Elements of one block of every quantised type of keys and values (src/llama-context.cpp refuses a part of one)."""

_KV_OF_ENGINES = {
    "llama.cpp": tuple(name for name in KV_TYPES if name != "fp8"),
    "vllm": ("f16", "bf16", "fp8"),
    "sglang": ("f16", "bf16", "fp8"),
    "mlx": ("f16",),
    "ollama": ("f16",),
    "lmstudio": ("f16",),
}

DO_AS_ASKED = ("vllm", "sglang", "tensorrt-llm")
"""Engines that keep keys and values as the checkpoint asks where nobody says (vllm/utils/torch_utils.py:
resolve_kv_cache_dtype_string; sglang/srt/mem_cache/kv_cache_dtype.py: configure_kv_cache_dtype)."""


def kv_element_bytes(name: str) -> float:
    """Bytes of one cached element, scales included; raises UserError that names the types there are."""
    found = _KV.get(name.strip().lower())
    if found is None:
        raise UserError(f"no type of key-value cache is called {name!r}; choose one of {', '.join(KV_TYPES)}")
    return found if isinstance(found, float) else BLOCKS[found][1] / BLOCKS[found][0]


def kv_for(engine: str, name: str, spec: ModelSpec | None = None) -> str:
    """The type of keys and values that an engine is asked for, by its own name.

    Raises UserError for an unknown type, NotSupportedError for one that the engine does not keep, or not of `spec`.
    """
    size = kv_element_bytes(name)
    asked = name.strip().lower()
    able = _KV_OF_ENGINES.get(engine)
    if able is not None and asked not in able:
        others = [other for other, names in _KV_OF_ENGINES.items() if asked in names]
        elsewhere = f", or give --engine {others[0]}" if others else ""
        raise NotSupportedError(f"{engine} keeps no {asked} keys and values; give one of {', '.join(able)}{elsewhere}")
    if engine == "llama.cpp" and size < 2 and spec is not None:
        heads = [mixer for layer in spec.layers for mixer in layer.mixers if isinstance(mixer, Gqa)]
        odd = [width for a in heads for width in (a.head_dim, a.value_dim) if width % KV_BLOCK]
        if odd:
            raise NotSupportedError(
                f"{spec.name}: llama.cpp cannot keep heads of {odd[0]} elements in {asked}, whose blocks are of "
                f"{KV_BLOCK}; give --kv f16"
            )
    return asked


def published_kv(config: Mapping[str, object]) -> str | None:
    """The type of keys and values that a configuration asks for, in lower case; None where it asks for none.

    `kv_cache_scheme` of compressed-tensors and ModelOpt, `kv_cache_quant_algo` of ModelOpt's hf_quant_config.json.
    Types that are not among `KV_TYPES` come by the name they have (nvfp4, int8). Raises UserError for what is neither
    a mapping that is known nor a name.
    """
    for holder in text_parts(config):
        for key in ("quantization_config", "compression_config"):
            facts = holder.get(key)
            inner = facts.get("quantization") if isinstance(facts, Mapping) else None
            for one in (inner, facts):
                if isinstance(one, Mapping) and (found := _asked(one)) is not None:
                    return found
    return None


def _asked(facts: Mapping[str, object]) -> str | None:
    for key in ("kv_cache_scheme", "kv_cache_quant_algo"):
        said = facts.get(key)
        if isinstance(said, Mapping):
            kind, bits = str(said.get("type", "int")).lower(), said.get("num_bits")
            known: dict[tuple[str, object], str] = {("float", 8): "fp8", ("float", 4): "nvfp4", ("int", 8): "int8"}
            if (kind, bits) in known:
                return known[kind, bits]
        if isinstance(said, str):
            name = said.strip().lower()
            if name in ("", "none", "auto"):
                return None
            if _NAME.fullmatch(name):
                return name
        if said is not None:
            raise UserError(
                f"{key} is {said!r:.60}, which is not known here; it can be FP8, or float of 8 num_bits; "
                "mend it, or leave it out"
            )
    return None
