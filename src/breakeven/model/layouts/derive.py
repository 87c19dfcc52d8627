"""From a Hugging Face configuration to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from breakeven.errors import UserError
from breakeven.model.architecture import ModelSpec
from breakeven.model.layouts import llama, mixed, windowed
from breakeven.model.layouts.config import HELP

_qwen3next = mixed.qwen3next_from_config
_deepseek = mixed.deepseek_from_config

READERS: dict[str, Callable[[Mapping[str, object], str, str], ModelSpec]] = {
    "llama": llama.llama_from_config,
    "mistral": llama.llama_from_config,
    "mixtral": llama.llama_from_config,
    "mistral3": llama.llama_from_config,
    "ministral3": llama.llama_from_config,
    "qwen2": llama.qwen2_from_config,
    "qwen3": llama.qwen3_from_config,
    "qwen3_moe": llama.qwen3moe_from_config,
    "olmoe": llama.olmoe_from_config,
    "phimoe": llama.phimoe_from_config,
    "granite": llama.granite_from_config,
    "granitemoe": llama.granitemoe_from_config,
    "granitemoeshared": llama.granitemoe_from_config,
    "gemma2": windowed.gemma2_from_config,
    "gemma3": windowed.gemma3_from_config,
    "gemma3_text": windowed.gemma3_from_config,
    "gemma4": windowed.gemma4_from_config,
    "gemma4_text": windowed.gemma4_from_config,
    "gpt_oss": windowed.gpt_oss_from_config,
    "llama4": windowed.llama4_from_config,
    "llama4_text": windowed.llama4_from_config,
    "deepseek_v2": partial(_deepseek, "deepseek2"),
    "deepseek_v3": partial(_deepseek, "deepseek2"),
    "kimi_k2": partial(_deepseek, "deepseek2"),
    "kimi_k25": partial(_deepseek, "deepseek2"),
    "deepseek_v32": partial(_deepseek, "deepseek32"),
    "glm_moe_dsa": partial(_deepseek, "glm-dsa"),
    "mistral4": partial(_deepseek, "mistral4"),
    "lfm2_moe": mixed.lfm2_from_config,
    "glm4_moe": mixed.glm4moe_from_config,
    "minimax_m2": mixed.minimax_m2_from_config,
    "mimo_v2_flash": mixed.mimo2_from_config,
    "qwen3_next": partial(_qwen3next, "qwen3next"),
    "qwen3_5": partial(_qwen3next, "qwen35"),
    "qwen3_5_text": partial(_qwen3next, "qwen35"),
    "qwen3_5_moe": partial(_qwen3next, "qwen35"),
    "qwen3_5_moe_text": partial(_qwen3next, "qwen35"),
}


def spec_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a Hugging Face configuration by its `model_type`, or that of its `text_config`.

    Raises UserError for a family Breakeven does not know and for a missing or malformed fact.
    """
    nested = config.get("text_config")
    inner = nested.get("model_type") if isinstance(nested, Mapping) else None
    outer = config.get("model_type")
    if outer is None and inner is None:
        raise UserError(f"{source}: {name} does not say model_type, so its layout is unknown; add it, or {HELP}")
    for model_type in (inner, outer):
        if isinstance(model_type, str) and model_type in READERS:
            return READERS[model_type](config, name, source)
    raise UserError(f"{source}: {name}: the tensor layout of model_type {inner or outer!r} is not known here; {HELP}")
