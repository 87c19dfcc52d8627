"""The form of a model file written by hand: its keys and what each may hold. docs/models-yaml.md explains them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError

from breakeven.errors import UserError, one_line
from breakeven.model.architecture import Gating, Norms, OutputGate, QkNorm
from breakeven.model.readers.bounded import MOST_LAYERS, MOST_PARAMS, MOST_TYPED_BYTES, MOST_WHOLE, shown
from breakeven.model.readers.typed import missing_key, no_such_key, read_mapping, right_of, wrong_value
from breakeven.model.readers.yaml_parts import MIXERS

DOCS = "docs/models-yaml.md lists the keys"


def _or_none(value: object) -> object:
    return 0 if value == "none" else value


def _gate(value: object) -> object:
    return {True: OutputGate.TWIN, False: OutputGate.NONE}[value] if isinstance(value, bool) else value


def _mixers(value: object) -> tuple[tuple[str, Mapping[str, object]], ...]:
    """`attention` as one or several words; in a list a word may stand with keys that are its part's alone."""
    found: list[tuple[str, Mapping[str, object]]] = []
    for each in value if isinstance(value, list) else [value]:
        own = dict(each) if isinstance(each, dict) and isinstance(value, list) else {"kind": each}
        word = own.pop("kind", None)
        if not isinstance(word, str) or (word not in MIXERS and (word != "none" or isinstance(value, list))):
            raise ValueError(f"{', '.join(MIXERS)} or none, or a list of them for parts side by side")
        try:
            found.append((word, LayerKeys.model_validate(own).given()))
        except ValidationError as error:
            raise ValueError(f"right in each part: {_first(error)}") from None
    return tuple((word, own) for word, own in found if word != "none")


def _named(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


Positive = Annotated[int, Field(gt=0, le=MOST_WHOLE, strict=True)]
Whole = Annotated[int, Field(ge=0, le=MOST_WHOLE, strict=True)]
OrNone = Annotated[Whole, BeforeValidator(_or_none)]
Depth = Annotated[int, Field(gt=0, le=MOST_LAYERS, strict=True)]
Number = Annotated[float, Field(gt=0, lt=1e30, allow_inf_nan=False)]


class IndexerKeys(BaseModel):
    """The scorer that picks what attention reads; without any key (`none`) there is none."""

    model_config = ConfigDict(extra="forbid")

    heads: Positive | None = None
    head_dim: Positive | None = None
    top_k: Positive | None = None
    kv_heads: Positive | None = None
    every: Positive | None = None
    owns_weights: StrictBool | None = None
    pools: StrictBool | None = None
    weighs: StrictBool | None = None


class LayerKeys(BaseModel):
    """What a layer is made of. At the top of a file the keys hold for every layer, in a run for its layers."""

    model_config = ConfigDict(extra="forbid")

    attention: Annotated[Any, AfterValidator(_mixers)] = None
    heads: Positive | None = None
    kv_heads: Positive | None = None
    head_dim: Positive | None = None
    value_head_dim: OrNone | None = None
    window: OrNone | None = None
    qk_norm: QkNorm | None = None
    qkv_bias: StrictBool | None = None
    output_bias: StrictBool | None = None
    output_gate: Annotated[OutputGate, BeforeValidator(_gate)] | None = None
    sinks: StrictBool | None = None
    keys_are_values: StrictBool | None = None
    shares_kv: StrictBool | None = None
    kv_matrices: StrictBool | None = None
    indexer: Annotated[IndexerKeys, BeforeValidator(lambda value: {} if value == "none" else value)] | None = None
    kv_lora_rank: Positive | None = None
    caches_latent: StrictBool | None = None
    q_lora_rank: OrNone | None = None
    nope_dim: Positive | None = None
    rope_dim: Whole | None = None
    value_dim: Positive | None = None
    output_groups: Positive | None = None
    output_lora_rank: Positive | None = None
    compress_ratio: Whole | None = None
    key_heads: Positive | None = None
    value_heads: Positive | None = None
    key_dim: Positive | None = None
    linear_gate: StrictBool | None = None
    kda_heads: Positive | None = None
    kda_head_dim: Positive | None = None
    kda_gate_rank: OrNone | None = None
    lightning_heads: Positive | None = None
    lightning_kv_heads: Positive | None = None
    lightning_head_dim: Positive | None = None
    lightning_qk_norm: QkNorm | None = None
    lightning_qkv_bias: StrictBool | None = None
    lightning_gate: StrictBool | None = None
    mamba_heads: Positive | None = None
    mamba_head_dim: Positive | None = None
    mamba_state: Positive | None = None
    mamba_groups: Positive | None = None
    mamba_norm: StrictBool | None = None
    mamba_bias: StrictBool | None = None
    mamba_inner: Positive | None = None
    mamba_dt_rank: Positive | None = None
    mamba_dt_norms: StrictBool | None = None
    conv_kernel: Positive | None = None
    conv_bias: StrictBool | None = None
    kernel: Positive | None = None

    ffn: Literal["dense", "experts", "none"] | None = None
    ffn_width: Positive | None = None
    ffn_bias: StrictBool | None = None
    gated: StrictBool | None = None
    n_experts: Whole | None = None
    n_experts_per_token: Positive | None = None
    expert_width: Positive | None = None
    n_shared_experts: Whole | None = None
    shared_width: Whole | None = None
    shared_gate: StrictBool | None = None
    dense_width: Whole | None = None
    latent_width: Whole | None = None
    latent_norm: StrictBool | None = None
    zero_experts: Whole | None = None
    chunk_experts: Whole | None = None
    chunk_width: Whole | None = None
    router_bias: StrictBool | None = None
    selection_bias: StrictBool | None = None
    expert_bias: StrictBool | None = None
    gating: Gating | None = None
    normalise_weights: StrictBool | None = None
    weights_scale: Number | None = None
    n_groups: Positive | None = None
    n_groups_used: Positive | None = None

    norms: Norms | None = None
    post_norms: StrictBool | None = None

    def given(self) -> dict[str, object]:
        """The layer keys that were written, by name."""
        keys = {key: getattr(self, key) for key in LayerKeys.model_fields if getattr(self, key) is not None}
        if "post_norms" in keys:
            keys.setdefault("norms", Norms.AROUND if keys.pop("post_norms") else Norms.BEFORE)
        return keys


class LayerRun(LayerKeys):
    """`repeat` layers alike, or as often the layers of `pattern`, each with this run's keys and those of its `kind`."""

    repeat: Depth = 1
    kind: str | None = None
    pattern: list[Run] | None = Field(default=None, min_length=1)


Run = Annotated[LayerRun, BeforeValidator(_named)]
"""A run, or the bare name of its kind."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    def given(self) -> dict[str, Any]:
        """What was written, by name."""
        return {key: getattr(self, key) for key in type(self).model_fields if getattr(self, key) is not None}


class _Scales(_Part):
    embedding: Number | None = None
    residual: Number | None = None
    attention: Number | None = None
    logit: Number | None = None


class _PerLayerEmbedding(_Part):
    width: Positive
    vocab: Positive | None = None


class _Ngrams(_Part):
    rows: Positive
    width: Positive
    joined: Positive
    layers: list[Whole] = Field(min_length=1, max_length=MOST_LAYERS)
    kernel: Positive | None = None


class _Streams(_Part):
    count: Annotated[int, Field(gt=0, le=1000, strict=True)]
    low_rank: Whole | None = None
    joins: StrictBool | None = None
    altup: StrictBool | None = None
    laurel_rank: Whole | None = None


class _Mtp(_Part):
    layers: list[Run] | Depth = 1
    embedding: StrictBool | None = None
    head: StrictBool | None = None


class _Quantization(_Part):
    format: str
    kept: list[str] | None = None
    experts: str | None = None
    others: dict[str, str] | None = None


def _blocks(value: object) -> object:
    return {"layers": value} if isinstance(value, int) else value


def _format(value: object) -> object:
    return {"format": value} if isinstance(value, str) else value


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
    n_layers: Depth | None = None
    kinds: dict[str, LayerKeys] = {}
    layers: list[Run] | None = Field(default=None, min_length=1)
    pattern: list[Run] | None = Field(default=None, min_length=1)
    first: dict[Depth, Run] = {}
    last: dict[Depth, Run] = {}
    every: dict[Depth, Run] = {}
    rope_base: Number | None = None
    rope_dimensions: Positive | None = None
    rope_window_base: Number | None = None
    rope_scaling: Literal["linear", "yarn", "none"] | None = None
    rope_factor: Number | None = None
    rope_original_context: Positive | None = None
    norm_epsilon: Number | None = None
    layer_norm: StrictBool | None = None
    head_bias: StrictBool | None = None
    attention_softcap: Number | None = None
    logit_softcap: Number | None = None
    scales: _Scales | None = None
    per_layer_embedding: _PerLayerEmbedding | None = None
    ngrams: _Ngrams | None = None
    streams: _Streams | None = None
    mtp: Annotated[_Mtp, BeforeValidator(_blocks)] | None = None
    quantization: Annotated[_Quantization, BeforeValidator(_format)] | None = None
    kv_cache: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")] | None = None
    assumed: list[str] | None = None
    published_total_params: Annotated[int, Field(gt=0, le=MOST_PARAMS, strict=True)] | None = None


def read_form(path: Path) -> ModelFile:
    """The checked contents of `path`; raises UserError naming file, key, what was found and what would be right."""
    found = read_mapping(
        path, most_bytes=MOST_TYPED_BYTES, keys=f"keys such as `hidden: 2048`; {DOCS}", give="give a YAML file"
    )
    try:
        return ModelFile.model_validate(found)
    except ValidationError as error:
        raise UserError(f"{path}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    """The first complaint, as one line; a wrong key gets the nearest right one."""
    detail = error.errors(include_url=False)[0]
    place = [part if isinstance(part, str) else shown(part) for part in detail["loc"] if part != "[key]"]
    key = ".".join(one_line(part, 60) for part in place)
    if detail["type"] == "extra_forbidden":
        return no_such_key(key, _known(place[:-1]), DOCS)
    if detail["type"] == "missing":
        return missing_key(key, DOCS)
    if detail["type"] == "invalid_key":
        return f"{key}: a key must be a word; put it in quotes, or drop it"
    right = right_of(detail["msg"])
    if detail["type"] in ("model_type", "dict_type"):
        right = f"a mapping with keys such as {', '.join(_known(place)[:3])}"
    return wrong_value(key, detail["input"], right)


def _known(place: list[str]) -> list[str]:
    """The keys that may stand at `place`."""
    inner: dict[str, type[BaseModel]] = {
        "indexer": IndexerKeys,
        "scales": _Scales,
        "per_layer_embedding": _PerLayerEmbedding,
        "ngrams": _Ngrams,
    }
    inner |= {"streams": _Streams, "mtp": _Mtp, "quantization": _Quantization}
    last = next((part for part in reversed(place) if not part.isdigit()), None)
    form: type[BaseModel] = ModelFile if last is None else inner.get(last, LayerRun)
    return [*form.model_fields, *(["from"] if form is ModelFile else [])]
