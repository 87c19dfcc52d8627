"""The form of a model file written by hand: its keys and what each may hold. docs/models-yaml.md explains them."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from breakeven.errors import UserError
from breakeven.model.architecture import Gating, QkNorm

Positive = Annotated[int, Field(gt=0, strict=True)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Number = Annotated[float, Field(gt=0)]

DOCS = "docs/models-yaml.md lists the keys"


class LayerKeys(BaseModel):
    """What a layer is made of. At the top of a file the keys hold for every layer, in a run for its layers."""

    model_config = ConfigDict(extra="forbid")

    attention: Literal["gqa", "mla", "linear", "conv"] | None = None
    heads: Positive | None = None
    kv_heads: Positive | None = None
    head_dim: Positive | None = None
    value_head_dim: Positive | None = None
    window: Positive | None = None
    qk_norm: QkNorm | None = None
    qkv_bias: StrictBool | None = None
    output_bias: StrictBool | None = None
    output_gate: StrictBool | None = None
    sinks: StrictBool | None = None
    kv_lora_rank: Positive | None = None
    q_lora_rank: Positive | None = None
    nope_dim: Positive | None = None
    rope_dim: Positive | None = None
    key_heads: Positive | None = None
    value_heads: Positive | None = None
    key_dim: Positive | None = None
    value_dim: Positive | None = None
    conv_kernel: Positive | None = None
    kernel: Positive | None = None

    ffn: Literal["dense", "experts"] | None = None
    ffn_width: Positive | None = None
    ffn_bias: StrictBool | None = None
    n_experts: Whole | None = None
    n_experts_per_token: Positive | None = None
    expert_width: Positive | None = None
    n_shared_experts: Whole | None = None
    shared_width: Whole | None = None
    shared_gate: StrictBool | None = None
    dense_width: Whole | None = None
    router_bias: StrictBool | None = None
    selection_bias: StrictBool | None = None
    expert_bias: StrictBool | None = None
    gating: Gating | None = None
    normalise_weights: StrictBool | None = None
    weights_scale: Number | None = None
    n_groups: Positive | None = None
    n_groups_used: Positive | None = None

    post_norms: StrictBool | None = None

    def given(self) -> dict[str, object]:
        """The layer keys that were written, by name."""
        return {key: getattr(self, key) for key in LayerKeys.model_fields if getattr(self, key) is not None}


class LayerRun(LayerKeys):
    """`repeat` layers alike."""

    repeat: Positive = 1


class ModelFile(LayerKeys):
    """A whole file: a model of its own, or one that starts `from` another."""

    name: str | None = None
    base: str | None = Field(default=None, alias="from")
    family: str | None = None
    source: str | None = None
    hidden: Positive | None = None
    vocab: Positive | None = None
    context: Positive | None = None
    tied_embeddings: StrictBool | None = None
    n_layers: Positive | None = None
    layers: list[LayerRun] | None = Field(default=None, min_length=1)
    rope_base: Number | None = None
    rope_dimensions: Positive | None = None
    norm_epsilon: Number | None = None
    layer_norm: StrictBool | None = None
    head_bias: StrictBool | None = None
    attention_softcap: Number | None = None
    logit_softcap: Number | None = None
    published_total_params: Positive | None = None


def read_form(path: Path) -> ModelFile:
    """The checked contents of `path`; raises UserError naming file, key, what was found and what would be right."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a YAML file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds {_shown(found)}, it must hold keys such as `hidden: 2048`; {DOCS}")
    try:
        return ModelFile.model_validate(found)
    except ValidationError as error:
        raise UserError(f"{path}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    """The first complaint, as one line; a wrong key gets the nearest right one."""
    detail = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = [*LayerRun.model_fields] if len(detail["loc"]) > 1 else [*ModelFile.model_fields, "from"]
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        return f"{key}: no such key{f', did you mean {near[0]}?' if near else ''}; {DOCS}"
    right = detail["msg"].removeprefix("Input should be ")
    return f"{key}: found {_shown(detail['input'])}, it must be {right}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
