"""From the names in published measurements to models, weight formats and chips of the catalogue.

Files of measurements spell one model a dozen ways and state formats that no catalogue holds. What cannot be told stays
None; what is only near says so in `NEAREST`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from breakeven.errors import UserError
from breakeven.hardware.chips import Chip, chip_named, slug_of
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import check_count
from breakeven.model.catalogue import lookup
from breakeven.model.layouts.derive import spec_from_config

_LLAMA = {
    "model_type": "llama",
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
}
_OTHERS: dict[str, tuple[dict[str, object], float, str]] = {
    "llama-2-7b": (
        {
            **_LLAMA,
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "intermediate_size": 11008,
            "max_position_embeddings": 4096,
        },
        6.738e9,
        "meta-llama/Llama-2-7b-hf config.json",
    ),
    "tinyllama-1.1b": (
        {
            **_LLAMA,
            "hidden_size": 2048,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "intermediate_size": 5632,
            "max_position_embeddings": 2048,
        },
        1.1e9,
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0 config.json",
    ),
    "ministral-3-14b": (
        {
            **_LLAMA,
            "vocab_size": 131072,
            "hidden_size": 5120,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 16384,
            "max_position_embeddings": 262144,
        },
        13.51e9,
        "mistralai/Ministral-3-14B-Instruct-2512 config.json, text model",
    ),
    "deepseek-r1-distill-qwen-14b": (
        {
            "model_type": "qwen2",
            "vocab_size": 152064,
            "tie_word_embeddings": False,
            "hidden_size": 5120,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "intermediate_size": 13824,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
        },
        14.77e9,
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B config.json",
    ),
}
"""Models that were measured and are not in the catalogue: configuration, published total, source."""

_MODELS: tuple[tuple[str, str], ...] = (
    (r"deepseek-r1-distill-qwen-14b", "deepseek-r1-distill-qwen-14b"),
    (r"deepseek-(r1|v3|v3\.1)(-671b)?", "deepseek-v3"),
    (r"(meta-)?llama-?3(\.[13])?:?-?(8b|70b|405b)", r"llama-3.1-\3"),
    (r"llama-?3\.2:?-?([13]b)", r"llama-3.2-\1"),
    (r"llama-2-7b", "llama-2-7b"),
    (r"tinyllama-1\.1b", "tinyllama-1.1b"),
    (r"ministral-3-14b", "ministral-3-14b"),
    (r"minimax-m2\.[57]", "minimax-m2.5"),  # M2.7 keeps the shapes of M2.5
    (r"mistral-7b", "mistral-7b"),
    (r"mixtral-8x(7|22)b", r"mixtral-8x\1b"),
    (r"olmoe-1b-7b", "olmoe-1b-7b"),
    (r"qwen2\.5(-coder)?-7b", "qwen2.5-7b"),
    (r"qwen3-?next[- ]80b[-.]a3b", "qwen3-next-80b-a3b"),
    (r"qwen3\.[56]-(27b|35b-a3b|122b-a10b|397b-a17b)", r"qwen3.5-\1"),  # 3.6 keeps the shapes of 3.5
    (r"qwen3[:-](0\.6b|1\.7b|4b|8b|14b|32b|30b-a3b|235b-a22b)", r"qwen3-\1"),
    (r"gemma-4-(26b-a4b|31b)", r"gemma-4-\1"),
    (r"gemma-3-1b", "gemma-3-1b"),
    (r"gpt-oss[:-](20b|120b)", r"gpt-oss-\1"),
    (r"kimi-k2\.5", "kimi-k2.5"),
    (r"glm-5", "glm-5"),
)
"""Start of a name (its owner taken off) to a name of the catalogue or of `_OTHERS`. The first that matches holds."""

NEAREST: dict[str, str] = {
    "q2_k_xl": "Q2_K",  # Unsloth's UD recipes raise some tensors of the plain format
    "q3_k_s": "Q3_K_M",
    "q4_k_xl": "Q4_K_M",
    "q5_k_xl": "Q5_K_M",
    "q8_k_xl": "Q8_0",
    "mlx 4bit": "Q4_0",  # MLX: groups of 64 with a scale and a bias in 16 bits, 4.5 bits a weight; Q4_0 the same
    "mlx q4": "Q4_0",
    "mlx q4 g32": "Q4_1",  # 5 bits a weight, as Q4_1
    "mlx q5": "Q5_0",  # 5.5 and 5.5
    "mlx q5 g32": "Q5_K_M",  # 6.0 and about 5.7
    "mlx q6": "Q6_K",  # 6.5 and 6.56
    "mlx q8": "Q8_0",  # 8.5 and 8.5
    "mlx 8bit": "Q8_0",
}
"""Formats that Breakeven does not describe, and the one nearest in bits a weight."""

_FORMATS: dict[str, str] = {
    "float16": "F16",
    "f16": "F16",
    "bf16": "BF16",
    "mlx bf16": "BF16",
    "fp8": "FP8",
    "fp8_block": "FP8",
    "fp8/fp8_block": "FP8",
    "nvfp4": "NVFP4",
    "int4_wo": "INT4",
    "int4": "INT4",
    "q40": "Q4_0",
    "q4_0": "Q4_0",
    "q4_k_m": "Q4_K_M",
    "mxfp4": "MXFP4",
    "provider default": "Q4_K_M",  # Ollama's default tag
}

_CHIPS: tuple[tuple[str, str], ...] = (
    # A host with a discrete GPU in brackets or after its name: the GPU did the work.
    (r"arc pro b(50|60|70)", r"arc-pro-b\1"),
    (r"arc b580", "arc-b580"),
    (r"arc a310", "arc-a310"),
    (r"(amd )?(radeon )?ai pro r9700", "radeon-ai-pro-r9700"),
    (r"pro w7700", "radeon-pro-w7700"),
    (r"rx 580", "rx-580"),
    (r"(?:rx )?(9070 xt|7900 xtx|7900 xt|7600|6900 xt|6700 xt|6500 xt)", r"rx-\1"),
    (r"rtx pro 6000", "rtx-pro-6000-blackwell"),
    (r"rtx ([456]000) ada", r"rtx-\1-ada"),
    (r"(?:rtx )?\b(a6000|a4000|a2000|a400)\b", r"rtx-\1"),
    (r"gtx 1050 ti", "gtx-1050-ti"),
    (r"\b(2070 super|2080 ti|2080|30[5-9]0 ti|30[5-9]0|40[6-9]0 ti super|40[6-9]0 ti|40[6-9]0|50[6-9]0)\b", r"rtx-\1"),
    (r"\b(b200|b300|h100|h200)_sxm", r"\1-sxm"),
    (r"gb200", "gb200"),
    (r"h100 pcie", "h100-pcie"),
    (r"a100 pcie 80gb", "a100-80gb-pcie"),
    (r"a100 sxm 80gb", "a100-80gb-sxm"),
    (r"nvidia a100$", "a100-80gb-sxm"),
    (r"nvidia h100$", "h100-nvl"),  # the load sweep: its price an hour is that of a cloud machine with one H100 NVL
    (r"l40s", "l40s"),
    (r"\ba40\b", "a40"),
    (r"jetson agx thor", "jetson-agx-thor"),
    (r"strix halo|ai max\+? 395|395\+|framework (mainboard|desktop mainboard|mainboard cluster)", "ryzen-ai-max-395"),
    (r"ryzen ai 5 340|840m", "radeon-840m"),
    (r"130v/140v", "intel-arc-140v"),
    (r"\bm([1-5]) (max|ultra|pro)", r"apple-m\1-\2"),
    (r"\bm([1-5])\b", r"apple-m\1"),
    (r"pi 400\b", "raspberry-pi-4"),
    (r"\bpi (5|500\+|cm5)|raspberry pi (5|cm5)", "raspberry-pi-5"),
    (r"orion o6|minisforum ms-r1|cix cp8180", "cix-p1"),
    (r"n150", "intel-n150"),
    (r"n100", "intel-n100"),
    (r"p550", "hifive-premier-p550"),
    (r"ampereone", "ampereone-a192-32x"),
    (r"i3-1315u", "core-i3-1315u"),
    (r"i5-4278u", "core-i5-4278u"),
    (r"q8400", "core-2-quad-q8400"),
)
"""Anywhere in the hardware's name, in lower case. The first that matches holds."""


@lru_cache(maxsize=256)
def model_of(name: str) -> ModelSpec | None:
    """The architecture a published model name stands for, None when it is not known."""
    bare = name.lower().rpartition("/")[2].removeprefix("google_")
    for pattern, known in _MODELS:
        if found := re.match(pattern, bare):
            return _spec(found.expand(known))
    return None


def format_of(quant: str | None, model: str) -> str | None:
    """The weight format of Breakeven that a published one is, or is nearest to (`NEAREST`); None when not stated.

    gpt-oss is published in MXFP4, whatever the record calls it.
    """
    text = re.sub(r"\s*\(.*\)|,.*| or ollama.*| mixed.*", "", (quant or "bf16").lower()).strip()
    named = _FORMATS.get(text) or NEAREST.get(text)
    if "gpt-oss" in model.lower() and named is not None:
        return "MXFP4_BF16" if named in ("FP8", "NVFP4", "BF16") else "MXFP4"
    return named


def devices_of(hardware: str) -> int | None:
    """How many devices a published machine has: "NVIDIA 3090 24GB * 4". None for a cluster of machines."""
    text = hardware.lower()
    if "cluster" in text or re.search(r"\bx\d+$", text):
        return None
    found = re.search(r"\* (\d+)$", text)
    return int(found.group(1)) if found else 1


def chip_of(hardware: str) -> Chip | None:
    """The chip that did the work in a published measurement, None when it is not known or not catalogued."""
    text = hardware.lower().replace("‑", "-")
    for pattern, slug in _CHIPS:
        if found := re.search(pattern, text):
            try:
                return chip_named(slug_of(found.expand(slug)))
            except UserError:
                return None
    return None


def _spec(name: str) -> ModelSpec:
    if name not in _OTHERS:
        return lookup(name)
    config, published, source = _OTHERS[name]
    spec = spec_from_config(config, name, source)
    check_count(spec, round(published))
    return spec
