"""The directory vLLM loads a model from: the user's own, or one of shapes without weights, written into the cache.

Its `config.json` is written by one function a family, for the families that are plain in both forms. Each is the
inverse of its family's reader, and is held to it: what was written is read back and must be the same model.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from breakeven.engines.cache import cache_directory
from breakeven.engines.synthesis.directory import vocabulary, write_tokenizer
from breakeven.engines.synthesis.write import BOS, EOS, PAD
from breakeven.errors import NotSupportedError, UserError, expanded
from breakeven.model.architecture import DenseFfn, Gqa, ModelSpec, MoeFfn
from breakeven.model.catalogue import published_config
from breakeven.model.formats.gpu import GPU_FORMATS
from breakeven.model.layouts.derive import spec_from_config
from breakeven.model.resolve import bare_name, split_format, weight_file

_Config = dict[str, Any]


def _llama(spec: ModelSpec) -> _Config:
    if not spec.is_moe:
        bias = _attention(spec).output_bias
        return {**_base(spec, "llama", "LlamaForCausalLM"), "attention_bias": bias, "mlp_bias": _ffn(spec).bias}
    moe = _moe(spec)
    base = _base(spec, "mixtral", "MixtralForCausalLM")
    experts = {"num_local_experts": moe.n_experts, "num_experts_per_tok": moe.n_experts_per_token}
    return {**base, **experts, "intermediate_size": moe.expert_width, "sliding_window": None}


def _qwen2(spec: ModelSpec) -> _Config:
    return {**_base(spec, "qwen2", "Qwen2ForCausalLM"), "use_sliding_window": False}


def _qwen3(spec: ModelSpec) -> _Config:
    return {**_base(spec, "qwen3", "Qwen3ForCausalLM"), "attention_bias": False, "use_sliding_window": False}


def _qwen3moe(spec: ModelSpec) -> _Config:
    moe = _moe(spec)
    dense = [i for i, layer in enumerate(spec.layers) if isinstance(layer.ffn, DenseFfn)]
    width = next((layer.ffn.width for layer in spec.layers if isinstance(layer.ffn, DenseFfn)), moe.expert_width)
    return {
        **_base(spec, "qwen3_moe", "Qwen3MoeForCausalLM"),
        "attention_bias": False,
        "intermediate_size": width,
        "moe_intermediate_size": moe.expert_width,
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_experts_per_token,
        "norm_topk_prob": moe.normalise_weights,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
    }


def _olmoe(spec: ModelSpec) -> _Config:
    moe = _moe(spec)
    return {
        **_base(spec, "olmoe", "OlmoeForCausalLM"),
        "attention_bias": False,
        "intermediate_size": moe.expert_width,
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_experts_per_token,
        "norm_topk_prob": moe.normalise_weights,
    }


WRITERS: dict[str, Callable[[ModelSpec], _Config]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "olmoe": _olmoe,
}
"""Families whose models can be written, by their names in `breakeven.model.layouts.registry`."""


def config_of(spec: ModelSpec) -> _Config:
    """The Hugging Face configuration of a model. Raises NotSupportedError for a family or a layout vLLM is not given.

    The result has no dtype and no special tokens; those belong to whoever writes it down.
    """
    writer = WRITERS.get(spec.family)
    if writer is None:
        raise NotSupportedError(
            f"{spec.name}: Breakeven writes no {spec.family} model for vLLM, only {', '.join(WRITERS)}; "
            "give the directory of its config.json instead"
        )
    if not _plain(spec):
        raise NotSupportedError(_unsayable(spec))
    config = writer(spec)
    again = spec_from_config(config, spec.name, spec.source)
    # Dummy weights have 16 bits, whatever a model was published in.
    if again != replace(spec, published_total_params=None, quantization=None):
        raise NotSupportedError(_unsayable(spec))
    return config


def _unsayable(spec: ModelSpec) -> str:
    return (
        f"{spec.name}: its layers cannot be said in vLLM's form of {spec.family}; "
        "give the directory of its config.json instead"
    )


def _plain(spec: ModelSpec) -> bool:
    """True when every layer attends alike and at most two kinds of feed-forward occur."""
    return all(isinstance(layer.mixer, Gqa) for layer in spec.layers) and len({x.ffn for x in spec.layers}) <= 2


def _base(spec: ModelSpec, model_type: str, architecture: str) -> _Config:
    attention, ffn = _attention(spec), spec.layers[0].ffn
    assert ffn is not None
    scaling = {
        "rope_type": spec.rope.scaling,
        "factor": spec.rope.factor,
        "original_max_position_embeddings": spec.rope.original_context,
    }
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": spec.hidden,
        "intermediate_size": ffn.width if isinstance(ffn, DenseFfn) else ffn.expert_width,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.norm_epsilon,
        "rope_theta": spec.rope.base,
        **({"rope_scaling": scaling} if spec.rope.scaling else {}),
        "hidden_act": "silu",
        "tie_word_embeddings": spec.tied_embeddings,
    }


def _attention(spec: ModelSpec) -> Gqa:
    attention = spec.layers[0].mixer
    assert isinstance(attention, Gqa)
    return attention


def _ffn(spec: ModelSpec) -> DenseFfn:
    ffn = spec.layers[0].ffn
    assert isinstance(ffn, DenseFfn)
    return ffn


def _moe(spec: ModelSpec) -> MoeFfn:
    moe = next((layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeFfn)), None)
    if moe is None:
        raise NotSupportedError(_unsayable(spec))
    return moe


FORMATS: Mapping[str, str] = {"BF16": "bfloat16", "F16": "float16"}
"""Weight formats a model without weights can have in vLLM, and vLLM's names for them."""

_RECIPE = 1
"""Goes up when the same model would be written otherwise."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_CONFIG = "config.json"


def has_weights(directory: Path) -> bool:
    """True when `directory` holds weights in a form vLLM loads."""
    return any(next(directory.glob(pattern), None) for pattern in ("*.safetensors", "pytorch_model*.bin"))


def provide(text: str, spec: ModelSpec | None, format_name: str) -> Path:
    """The directory from which vLLM loads the model that `text` names and `spec` describes.

    A directory with weights is itself. A `config.json`, or a directory of one, goes to vLLM as it is, and a name as
    the configuration of its `spec`; both with a byte tokenizer where there is none, and to be loaded as dummy weights
    of `format_name`. Raises NotSupportedError for a GGUF, a format vLLM is not given, or a family not written here.
    """
    path = expanded(text)
    if path.suffix == ".gguf" or weight_file(text) is not None:
        raise NotSupportedError(
            f"{text}: vLLM gets no GGUF from Breakeven, nor does SGLang; give a name or a Hugging Face directory"
        )
    if path.is_dir() and has_weights(path):
        return path
    dtype = FORMATS.get(format_name)
    if dtype is None:
        raise NotSupportedError(
            f"{format_name} {_not_drawn(format_name)}; give a directory with quantized weights, "
            f"or with vLLM one of --format {', '.join(FORMATS)}"
        )
    given = path / _CONFIG if path.is_dir() else path
    if given.suffix == ".json" and given.is_file():
        name = spec.name if spec else given.parent.name
        return _write(name, json.loads(given.read_text(encoding="utf-8")), dtype, given.parent)
    assert spec is not None  # only a GGUF can be without
    return _write(spec.name, configuration_of(text, spec), dtype, None)


def configuration_of(text: str, spec: ModelSpec) -> _Config:
    """The configuration of `spec`, which `text` names: its own file's, one written from its layout, or as published.

    Without its quantization, since weights that are drawn have the format they are asked for in. Raises
    NotSupportedError for a model that is neither catalogued nor of a family that is written.
    """
    path = expanded(bare_name(text))
    given = path / _CONFIG if path.is_dir() else path
    if given.suffix == ".json" and given.is_file():
        config = json.loads(given.read_text(encoding="utf-8"))
    else:
        try:
            return config_of(spec)
        except NotSupportedError:
            published = published_config(spec)
            if published is None:
                raise
            config = published
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    return config if "architectures" in config else {**config, **_architectures(config)}


def _architectures(config: Mapping[str, Any]) -> _Config:
    """The class that vLLM looks for, as transformers calls that of a `model_type`; nothing without transformers."""
    try:
        names = importlib.import_module("transformers.models.auto.modeling_auto")
    except ImportError:
        return {}
    for table in ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"):
        found = getattr(names, table, {}).get(config.get("model_type"))
        if isinstance(found, str):
            return {"architectures": [found]}
    return {}


def _not_drawn(format_name: str) -> str:
    return "cannot be drawn as dummy weights" if format_name in GPU_FORMATS else "is a format of llama.cpp"


def dtype_of(directory: Path) -> str:
    """The dtype that the configuration in `directory` names, "auto" when it names none."""
    try:
        config = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "auto"
    dtype = config.get("dtype") or config.get("torch_dtype") if isinstance(config, dict) else None
    return dtype if isinstance(dtype, str) else "auto"


def stored_format(text: str, spec: ModelSpec | None) -> str | None:
    """The format of a directory with weights that `text` names; None for everything else."""
    given = expanded(split_format(text)[0])
    if not given.is_dir() or not has_weights(given):
        return None
    if spec is not None and spec.quantization is not None:
        return spec.quantization.format_name
    return "F16" if dtype_of(given) == "float16" else "BF16"


def _write(name: str, config: dict[str, Any], dtype: str, beside: Path | None) -> Path:
    """Write the directory unless it is there; `beside` is where the configuration's own tokenizer would be."""
    own = [beside / file for file in _TOKENIZER_FILES if (beside / file).is_file()] if beside else []
    if not any(file.name == "tokenizer.json" for file in own):
        own = []
    # Without a tokenizer of its own, the model ends and begins texts with the byte tokenizer's tokens.
    special = {} if own else {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    config = {**config, **special, "torch_dtype": dtype}
    config.pop("dtype", None)
    content = msgspec.json.encode((_RECIPE, config, [file.read_bytes().hex() for file in own]))
    safe = "".join(c if c.isalnum() or c in ".-_" else "-" for c in name.split("/")[-1].lower())
    target = cache_directory().parent / "vllm" / f"{safe}-{dtype}-{hashlib.sha256(content).hexdigest()[:12]}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
    except OSError as error:
        raise UserError(
            f"cannot write to {target.parent}: {error.strerror}; set XDG_CACHE_HOME to a writable place"
        ) from error
    try:
        (scratch / _CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        for file in own:
            shutil.copy(file, scratch / file.name)
        if not own:
            write_tokenizer(scratch, vocabulary(config, name))
        scratch.chmod(0o755)
        scratch.rename(target)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        if not target.is_dir():  # another process may have been first
            raise
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return target
