"""The weight format a checkpoint is published in, read from its configuration.

`quantization_config` of config.json as vLLM, transformers and SGLang read it, `hf_quant_config.json` of ModelOpt, and
`quantization` of mlx-lm. One reader a method, in a table; what is not known is refused by name, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from breakeven.errors import UserError
from breakeven.model.architecture import Quantization
from breakeven.model.formats.gpu import gpu_format, integer_family, integers
from breakeven.model.layouts.config import text_parts

_Facts = Mapping[str, object]

_KEPT_KEYS = (
    "modules_to_not_convert",
    "ignore",
    "ignored_layers",
    "exclude_modules",
    "exclude",
    "llm_int8_skip_modules",
)
SAID_IN = ("quantization_config", "compression_config", "quantization")
HELP = "leave quantization_config out and name a format with --format"
EVERYTHING = "*"


def quantization_of(config: Mapping[str, object]) -> Quantization | None:
    """How the checkpoint of this configuration is stored; None where it is not quantized.

    `config`: the contents of config.json, or of hf_quant_config.json. Raises UserError for a method that is not known
    and for facts that are missing, saying what to do.
    """
    for holder in text_parts(config):
        for key in SAID_IN:
            facts = holder.get(key)
            if isinstance(facts, Mapping) and facts:
                return _with_experts(_read(cast(_Facts, facts)), config)
            if facts is not None and not isinstance(facts, Mapping):
                raise UserError(f"{key} is {facts!r:.60}, it must be a mapping; mend it, or {HELP}")
    return _with_experts(None, config)


def _with_experts(found: Quantization | None, config: _Facts) -> Quantization | None:
    """What `expert_dtype` says of the routed experts, also where nothing else is quantized."""
    kind = next((h["expert_dtype"] for h in text_parts(config) if h.get("expert_dtype") is not None), None)
    if kind is None:
        return found
    asked = str(kind).lower()
    if asked in _WIDE:
        return found if found is None else replace(found, kept=(*found.kept, "experts"))
    if asked not in _EXPERTS:
        raise UserError(f"expert_dtype {kind!r:.40} is not known here; it can be fp4, nvfp4, fp8 or bf16, or {HELP}")
    name = _EXPERTS[asked]
    if found is None:
        # The experts alone: MXFP4 with everything else in 16 bits has a name of its own.
        if name == "MXFP4_LINEAR":
            return Quantization("MXFP4_BF16")
        return Quantization(name, (EVERYTHING,), others=(("experts", name),))
    if asked == "fp8":
        name = found.format_name if "FP8" in found.format_name else name
    return replace(found, experts=None if name == found.format_name else name)


_EXPERTS = {"fp4": "MXFP4_LINEAR", "mxfp4": "MXFP4_LINEAR", "nvfp4": "NVFP4", "fp8": "FP8"}
_WIDE = ("bf16", "bfloat16", "fp16", "float16")


def _read(facts: _Facts) -> Quantization | None:
    method = facts.get("quant_method")
    if method is None:
        method = next((name for key, name in _TOLD_BY.items() if key in facts), None)
    if method is None:
        raise UserError(f"quantization_config does not say quant_method; add it, or {HELP}")
    word = str(method).lower().replace("_", "-")
    # vLLM's names of ModelOpt's algorithms: what they are, quant_algo says.
    reader = _modelopt if word.startswith("modelopt-") else _METHODS.get(word)
    if reader is None:
        known = ", ".join(sorted({*_METHODS} - {"auto-round", "intel/auto-round"}))
        raise UserError(f"quantization method {str(method)!r:.60} is not known here (known: {known}); {HELP}")
    return reader(facts)


_TOLD_BY = {
    "quant_algo": "modelopt",
    "quantized_layers": "modelopt",
    "config_groups": "compressed-tensors",
    "load_in_4bit": "bitsandbytes",
    "_load_in_4bit": "bitsandbytes",
    "load_in_8bit": "bitsandbytes",
    "qformat_weight": "mistral",
    "bits": "mlx",
    "mode": "mlx",
}
"""Older files, and MLX's, name no method; a key that only one of them has tells."""


def _fp8(facts: _Facts) -> Quantization:
    block = facts.get("weight_block_size")
    name = "FP8_TENSOR"
    if isinstance(block, Sequence) and not isinstance(block, str) and len(block) == 2:
        # One scale for 32 in a row is the micro-scaled form; all larger blocks cost next to nothing.
        name = "MXFP8" if list(block) == [1, 32] else "FP8_BLOCK"
    others = tuple((pattern, name) for pattern in _names(facts, "modules_to_convert"))
    return _quantization(name, facts, others)


def _mistral(facts: _Facts) -> Quantization:
    """Of Mistral's params.json."""
    kind = facts.get("qformat_weight")
    if kind != "fp8_e4m3":
        raise UserError(f"qformat_weight {kind!r:.40} is not known here (known: fp8_e4m3); {HELP}")
    return _quantization("FP8_TENSOR", facts)


def _awq(facts: _Facts) -> Quantization:
    bits, group = _whole(facts, "bits", "w_bit"), _group(facts)
    zeros = facts.get("zero_point", True) is not False
    return _quantization(integers(bits, group, integer_family(bits, zeros)), facts)


def _gptq(facts: _Facts) -> Quantization:
    kept, others = [], []
    bits, group = _whole(facts, "bits"), _group(facts)
    dynamic = facts.get("dynamic")
    for pattern, change in dynamic.items() if isinstance(dynamic, Mapping) else ():
        if str(pattern).startswith("-:"):
            kept.append("re:" + str(pattern)[2:])
        elif isinstance(change, Mapping):
            name = _changed(bits, group, cast(_Facts, change))
            others.append(("re:" + str(pattern).removeprefix("+:"), name))
    base = integers(bits, group, "GPTQ")
    inside = facts.get("modules_in_block_to_quantize")
    if isinstance(inside, list) and inside:
        # Where the modules are listed, what is not among them is not quantized.
        listed = [name for part in inside for name in (part if isinstance(part, list) else [part])]
        others += [(str(name), base) for name in listed]
        kept.append(EVERYTHING)
    if facts.get("lm_head") is True:
        others.append(("lm_head", base))
    return _quantization(base, facts, tuple(others), kept)


def _changed(bits: int, group: int | None, change: _Facts) -> str:
    """The format of a module that differs from the others in some facts."""
    mine = _whole(change, "bits") if change.get("bits") is not None else bits
    return integers(mine, _group(change) if change.get("group_size") is not None else group, "GPTQ")


def _auto_round(facts: _Facts) -> Quantization:
    kind = str(facts.get("data_type", "int")).lower()
    bits, group = _whole(facts, "bits"), _group(facts)
    if kind.startswith("mx_fp"):
        base = "MXFP4_LINEAR" if bits == 4 else "MXFP8"
    elif kind.startswith("nv_fp"):
        base = "NVFP4"
    else:
        base = integers(bits, group, "GPTQ")
    kept, others = [], []
    extra = facts.get("extra_config")
    for name, change in extra.items() if isinstance(extra, Mapping) else ():
        facts_of = cast(_Facts, change) if isinstance(change, Mapping) else {}
        # A name with signs of an expression in it is one, to be found anywhere.
        pattern = f"re:.*{str(name).removeprefix('.*')}" if re.search(r"[*+?^$()\[\]{}|\\]", str(name)) else str(name)
        if facts_of.get("bits") is not None and _whole(facts_of, "bits") >= 16:
            kept.append(pattern)
        elif facts_of:
            others.append((pattern, _changed(bits, group, facts_of)))
    return _quantization(base, facts, tuple(others), kept)


def _compressed_tensors(facts: _Facts) -> Quantization | None:
    groups = facts.get("config_groups")
    sparse = facts.get("sparsity_config")
    if isinstance(sparse, Mapping) and sparse.get("format", "dense") != "dense":
        raise UserError(f"weights stored as {sparse['format']!r:.40} (without their zeros) are not known here; {HELP}")
    if not groups and (sparse or facts.get("kv_cache_scheme")):
        return None  # of the weights nothing is said: zeros among them, or a key-value cache in fewer bits
    if not isinstance(groups, Mapping) or not groups:
        raise UserError(f"quantization_config of compressed-tensors has no config_groups; add them, or {HELP}")
    stored: list[tuple[str, tuple[str, ...]]] = []
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            stored.append((_weights(cast(_Facts, weights)), _names(cast(_Facts, group), "targets")))
    return _grouped(stored, facts) if stored else None


def _grouped(stored: Sequence[tuple[str, tuple[str, ...]]], facts: _Facts) -> Quantization:
    """Groups of modules, each in a format; one of them may be all linear layers."""
    classes = ("Linear", "FusedMoE", "MoE", "ParallelLMHead")
    base = next((name for name, targets in stored if not targets or any(t in classes for t in targets)), None)
    listed = tuple((t, name) for name, targets in stored for t in targets if t not in classes)
    strange = next((t for t, _ in listed if re.fullmatch(r"[A-Z]\w+", t)), None)
    if strange is not None:
        raise UserError(f"config_groups names modules of class {strange[:60]!r}, which is not known here; {HELP}")
    if base is not None:
        return _quantization(base, facts, tuple((t, name) for t, name in listed if name != base))
    # Modules are all listed: what is not among them is not quantized. The experts' format is what the file is called.
    base = next((name for name, targets in stored if any("expert" in t for t in targets)), stored[0][0])
    return _quantization(base, facts, listed, [EVERYTHING])


def _weights(weights: _Facts) -> str:
    bits, group = _whole(weights, "num_bits"), _group(weights)
    strategy = str(weights.get("strategy") or ("group" if group else "tensor"))
    if str(weights.get("type", "int")) == "float":
        if bits == 4:
            return "MXFP4_LINEAR" if group == 32 else "NVFP4"
        if bits == 8:
            wide = {"tensor": "FP8_TENSOR", "channel": "FP8", "block": "FP8_BLOCK", "group": "FP8_BLOCK"}
            return "MXFP8" if group == 32 else wide.get(strategy, "FP8")
        raise UserError(f"floats of {bits} bits in quantization_config are not known here; {HELP}")
    if bits == 8 and strategy in ("tensor", "channel"):
        return "INT8"
    family = integer_family(bits, weights.get("symmetric") is False)
    return integers(bits, None if strategy in ("tensor", "channel") else group, family)


_ALGORITHMS = {
    "FP8": "FP8_TENSOR",
    "FP8_PER_CHANNEL_PER_TOKEN": "FP8",
    "FP8_PB_WO": "FP8_BLOCK",
    "FP8_PB_REAL": "FP8_BLOCK",
    "MXFP8": "MXFP8",
    "NVFP4": "NVFP4",
    "NVFP4_AWQ": "NVFP4",
    "W4A8_NVFP4_FP8": "NVFP4",
    "W4A16_NVFP4": "NVFP4",
    "MXFP4": "MXFP4_LINEAR",
    "W4A8_MXFP4_FP8": "MXFP4_LINEAR",
    "INT8_SQ": "INT8",
    "W8A8_SQ_PER_CHANNEL": "INT8",
    "W8A16": "INT8",
    "INT4_AWQ": "INT4",
    "W4A16_AWQ": "INT4",
    "W4A8_AWQ": "INT4",
    "W4A16": "INT4",
}
"""ModelOpt's algorithms (modelopt/torch/export/model_config.py), by how they store weights."""


def _modelopt(facts: _Facts) -> Quantization | None:
    inner = facts.get("quantization")
    facts = cast(_Facts, inner) if isinstance(inner, Mapping) else facts
    algorithm = facts.get("quant_algo")
    if algorithm is None:
        # A key-value cache in 8 bits alone leaves the weights as they are.
        if not {"quant_algo", "config_groups", "kv_cache_quant_algo", "kv_cache_scheme"} & facts.keys():
            raise UserError(f"quantization_config of modelopt does not say quant_algo; add it, or {HELP}")
        return _compressed_tensors(facts) if facts.get("config_groups") else None
    listed = facts.get("quantized_layers")
    if str(algorithm) == "MIXED_PRECISION":
        if isinstance(listed, Mapping) and listed:
            by_format: dict[str, list[str]] = {}
            for name, layer in listed.items():
                own = cast(_Facts, layer) if isinstance(layer, Mapping) else {}
                by_format.setdefault(_algorithm(own.get("quant_algo"), _group(own)), []).append(str(name))
            return _grouped([(name, tuple(targets)) for name, targets in by_format.items()], facts)
        if facts.get("config_groups"):
            return _compressed_tensors(facts)
        raise UserError(
            "quant_algo MIXED_PRECISION does not say which module is stored how (no quantized_layers); "
            f"take the configuration that lists them, or {HELP}"
        )
    return _quantization(_algorithm(algorithm, _group(facts)), facts)


def _algorithm(algorithm: object, group: int | None = None) -> str:
    name = _ALGORITHMS.get(str(algorithm).upper())
    if name is None:
        raise UserError(
            f"quant_algo {str(algorithm)!r:.40} is not known here (known: {', '.join(_ALGORITHMS)}); {HELP}"
        )
    return integers(4, group, "INT") if name == "INT4" and group else name


def _mxfp4(facts: _Facts) -> Quantization:
    return _quantization("MXFP4_BF16", facts)


def _bitsandbytes(facts: _Facts) -> Quantization | None:
    if facts.get("load_in_4bit") or facts.get("_load_in_4bit"):
        name = "NF4_DQ" if facts.get("bnb_4bit_use_double_quant") else "NF4"
        return _quantization(name, facts)
    eight = facts.get("load_in_8bit") or facts.get("_load_in_8bit")
    return _quantization("INT8", facts) if eight else None


def _quark(facts: _Facts) -> Quantization:
    whole = facts.get("global_quant_config")
    base = _quark_weight(whole)
    if base is None:
        raise UserError(f"quantization_config of quark has no global_quant_config.weight; add it, or {HELP}")
    layers = facts.get("layer_quant_config")
    changes = layers.items() if isinstance(layers, Mapping) else ()
    named = [(str(name), _quark_weight(change)) for name, change in changes]
    others = tuple((name, found) for name, found in named if found is not None)
    return _quantization(base, facts, others, [name for name, found in named if found is None])


def _quark_weight(said: object) -> str | None:
    weight = said.get("weight") if isinstance(said, Mapping) else None
    # Of several steps the last is what is stored.
    weight = weight[-1] if isinstance(weight, list) and weight else weight
    if not isinstance(weight, Mapping):
        return None
    kind, scheme = str(weight.get("dtype")), str(weight.get("qscheme"))
    names = {
        "fp4": "MXFP4_LINEAR",
        "fp8_e4m3": "FP8" if scheme == "per_channel" else "FP8_TENSOR",
        "int8": "INT8",
        "int4": integers(4, _group(cast(_Facts, weight)), integer_family(4, weight.get("symmetric") is False)),
    }
    if kind not in names:
        raise UserError(f"quark's number type {kind!r:.40} is not known here (known: {', '.join(names)}); {HELP}")
    return names[kind]


def _mlx(facts: _Facts) -> Quantization:
    kept = [name for name, change in facts.items() if change is False]
    others = [(n, _mlx_name(cast(_Facts, c))) for n, c in facts.items() if isinstance(c, Mapping) and "bits" in c]
    return _quantization(_mlx_name(facts), facts, tuple(others), kept)


def _mlx_name(facts: _Facts) -> str:
    mode = str(facts.get("mode", "affine"))
    if mode == "affine":
        bits, group = _whole(facts, "bits"), _group(facts) or 64
        return f"MLX{bits}" if group == 64 else f"MLX{bits}_G{group}"
    return f"MLX_{mode.upper()}"


_METHODS: dict[str, Callable[[_Facts], Quantization | None]] = {
    "fp8": _fp8,
    **dict.fromkeys(("fbgemm-fp8", "ptpc-fp8", "w8a8-fp8"), lambda facts: _quantization("FP8", facts)),
    "w8a8-int8": lambda facts: _quantization("INT8", facts),
    "awq": _awq,
    "awq-marlin": _awq,
    "gptq": _gptq,
    "gptq-marlin": _gptq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "compressed-tensors": _compressed_tensors,
    "mistral": _mistral,
    "modelopt": _modelopt,
    "mxfp4": _mxfp4,
    "bitsandbytes": _bitsandbytes,
    "quark": _quark,
    "mlx": _mlx,
}


def _quantization(
    name: str, facts: _Facts, others: tuple[tuple[str, str], ...] = (), kept: Sequence[str] = ()
) -> Quantization:
    unknown = next((one for one in (name, *(other for _, other in others)) if gpu_format(one) is None), None)
    if unknown is not None:
        raise UserError(f"weights stored as {unknown!r:.60} are not known here; {HELP}")
    found = gpu_format(name)
    assert found is not None
    left = (*kept, *(pattern for key in _KEPT_KEYS for pattern in _names(facts, key)))
    expressions = (f"re:{pattern}" for pattern in _names(facts, "modules_to_not_convert_with_regex"))
    return Quantization(found.name, tuple(dict.fromkeys((*left, *expressions))), None, others)


def _names(facts: _Facts, key: str) -> tuple[str, ...]:
    listed = facts.get(key)
    if listed is None:
        return ()
    if isinstance(listed, str):
        return (listed,)
    if not isinstance(listed, list | tuple) or not all(isinstance(name, str) for name in listed):
        raise UserError(f"{key} in quantization_config must be a list of names; mend it, or {HELP}")
    return tuple(listed)


def _whole(facts: _Facts, *keys: str) -> int:
    found = next((facts[key] for key in keys if facts.get(key) is not None), None)
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= 16:
        what = "does not say" if found is None else f"says {found!r:.40} for"
        raise UserError(f"quantization_config {what} {keys[0]}; it must be a number of bits, or {HELP}")
    return found


def _group(facts: _Facts) -> int | None:
    """Weights that share a scale; None for a whole row."""
    found = next((facts[key] for key in ("group_size", "q_group_size") if facts.get(key) is not None), None)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int):
        raise UserError(f"group_size in quantization_config is {found!r:.40}, it must be a whole number; or {HELP}")
    return found if found > 0 else None
