"""Which number type llama.cpp gives each tensor of a model in one of its formats.

The walk follows `llama_tensor_get_type` and `tensor_type_fallback` in llama.cpp's src/llama-quant.cpp, and the rules
of conversion/base.py for what stays F32; the formats and their rules are in `mixtures`. A model read from a file is
walked by that file's own tensors, so fused ones and drafting blocks are where they are.
"""

from __future__ import annotations

from functools import lru_cache

from breakeven.model.architecture import CompressedAttention, Gqa, Lightning, LinearAttention, Mla, ModelSpec, MoeFfn
from breakeven.model.formats.ggml import FALLBACKS, GgmlType, OwnType, block_size, own_type
from breakeven.model.formats.mixtures import FORMATS, Category, Format, Place
from breakeven.model.layouts.registry import family_of
from breakeven.model.tensors import Tensor, tensors

__all__ = ["FORMATS", "Format", "category", "own_types", "types_in"]

T = GgmlType
V = Category.ATTENTION_V
_FEED_FORWARD = (Category.FFN_DOWN, Category.FFN_GATE, Category.FFN_UP)

# llama.cpp calls a model "70B" by architecture and depth alone, and then never gives attention values fewer than 5 bits
# (src/models/llama.cpp, src/models/qwen2.cpp: load_arch_hparams; src/llama-quant.cpp: LLM_TYPE_70B).
_DEPTH_OF_70B = {"llama": 80, "qwen2": 80}

_KEPT_F32 = ("ffn_gate_inp.weight", "ffn_gate_tid2eid", "ssm_conv1d", "shortconv.conv.weight", "_norm.weight")
_COEFFICIENTS = ("altup_correct_coef", "altup_predict_coef")
_KEPT_F16 = ("altup", "laurel", "per_layer_model_proj", "indexer.k_proj.weight", "indexer.q_proj.weight")
"""Small matrices that stay as they were converted."""
_ALSO_F32 = {"glm5-next": ("hc_", "indexer_compressor_")}
_ALSO_F16 = {
    "glm5-next": (
        *("indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "ssm_f_a", "ssm_f_b", "ssm_g_a", "ssm_g_b"),
        *("ssm_beta", "attn_kv_a_mqa", "attn_k_b", "attn_v_b"),
    )
}
"""The same, of one architecture."""


def types_in(spec: ModelSpec, chosen: Format) -> dict[str, GgmlType]:
    """The type of every tensor of a model, by name, when llama.cpp stores it in a format.

    Source: src/llama-quant.cpp, `llama_tensor_get_type`. What is not quantized keeps the type its file has.
    """
    everything = tensors(spec)
    tied = not any(tensor.name == "output.weight" for tensor in everything)
    is_70b = _is_70b(spec)
    kinds = {
        tensor.name: _kind(chosen, tensor, found, tied=tied, is_70b=is_70b) if isinstance(found, Place) else found
        for tensor, found in _walk(spec, chosen.imatrix)
    }
    return {tensor.name: kinds[tensor.name] for tensor in everything}


@lru_cache(maxsize=8)
def _walk(spec: ModelSpec, imatrix: bool) -> tuple[tuple[Tensor, Place | GgmlType], ...]:
    """Every tensor with its place in the walk, or with the type it keeps in any format: the same for all of them."""
    everything = tensors(spec)
    own = own_types(spec)
    experts = max((layer.ffn.n_experts for layer in spec.layers if isinstance(layer.ffn, MoeFfn)), default=0)
    gqa = _gqa(spec)
    architecture = family_of(spec).gguf_architecture or ""
    kept_f32, kept_f16 = _ALSO_F32.get(architecture, ()), (*_KEPT_F16, *_ALSO_F16.get(architecture, ()))
    roles = {
        tensor.name: category(tensor.name) for tensor in everything if _is_matrix(tensor.name, tensor.shape, kept_f32)
    }
    n_values = sum(1 for role in roles.values() if role is V)
    # Drafting blocks count as layers here.
    n_layers = max((tensor.layer for tensor in everything if tensor.layer is not None), default=-1) + 1
    seen = dict.fromkeys(Category, 0)
    found: list[tuple[Tensor, Place | GgmlType]] = []
    # llama.cpp walks a file by layer and then by name, and some rules count on the way.
    for tensor in sorted(everything, key=lambda t: (-1 if t.layer is None else t.layer, t.name)):
        stays = T.F32 if tensor.name not in roles else T.F16
        if tensor.name not in roles or any(part in tensor.name for part in kept_f16):
            kept = own.get(tensor.name, stays)
            found.append((tensor, kept if isinstance(kept, GgmlType) else stays))
            continue
        role = roles[tensor.name]
        running = seen[role]
        seen[role] += 1
        by_layer = role in _FEED_FORWARD and experts > 1 and tensor.layer is not None
        index = tensor.layer if by_layer and tensor.layer is not None else running
        count = n_values if role is V else n_layers
        found.append((tensor, Place(role, index, count, running, gqa, experts, imatrix)))
    return tuple(found)


def own_types(spec: ModelSpec) -> dict[str, GgmlType | OwnType]:
    """The type of every tensor of the file a model was read from, by name; none where it was read from no file."""
    stored = () if spec.stored is None else spec.stored.tensors
    return {t.name: own_type(t.type_name, t.shape, t.n_bytes) for t in stored}


def category(name: str) -> Category:
    """The role llama.cpp reads out of a tensor's name (`tensor_get_category`)."""
    if name == "output.weight":
        return Category.OUTPUT
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return Category.TOKEN_EMBEDDING
    for part, role in (
        ("attn_qkv.weight", V),
        ("attn_kv_b.weight", V),
        ("attn_v.weight", V),
        ("attn_k.weight", Category.ATTENTION_K),
        ("attn_q.weight", Category.ATTENTION_Q),
        ("attn_output.weight", Category.ATTENTION_OUTPUT),
        ("ffn_up", Category.FFN_UP),
        ("ffn_gate", Category.FFN_GATE),
        ("ffn_down", Category.FFN_DOWN),
    ):
        if part in name:
            return role
    return Category.OTHER


def _kind(chosen: Format, tensor: Tensor, place: Place, *, tied: bool, is_70b: bool) -> GgmlType:
    if not chosen.quantized:
        return chosen.default
    row = tensor.shape[-1]
    head = place.category is Category.OUTPUT or (tied and place.category is Category.TOKEN_EMBEDDING)
    if head:
        kind = chosen.head if row % block_size(chosen.default) == 0 else T.Q8_0
    elif place.category is Category.TOKEN_EMBEDDING:
        kind = chosen.embedding or chosen.default
    elif chosen.stacked is not None and len(tensor.shape) == 3 and tensor.shape[0] > 1:
        kind = chosen.stacked
    else:
        rule = chosen.rules.get(place.category)
        kind = (rule(place) if rule else None) or chosen.default
        if is_70b and place.category is V and kind in (T.Q3_K, T.Q4_K):
            kind = chosen.values_70b or kind
        if place.experts == 8:
            kind = chosen.eight.get(place.category, kind)
    return _fitting(kind, row)


def _fitting(kind: GgmlType, row: int) -> GgmlType:
    if row % block_size(kind) == 0:
        return kind
    smaller = FALLBACKS.get(kind, kind)
    return smaller if row % block_size(smaller) == 0 else T.F16


def _is_matrix(name: str, shape: tuple[int, ...], also_kept: tuple[str, ...] = ()) -> bool:
    """Whether the tensor is stored in the format at all: vectors, biases, routers and small convolutions stay F32."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    kept = any(part in name for part in (*_KEPT_F32, *_COEFFICIENTS, *also_kept))
    return len(shape) > 1 and name.endswith("weight") and not kept


def takes_format(name: str, shape: tuple[int, ...], architecture: str) -> bool:
    """Whether a quantizer may change the tensor's type, or leaves it as the model was converted."""
    kept = (*_KEPT_F16, *_ALSO_F16.get(architecture, ()))
    return _is_matrix(name, shape, _ALSO_F32.get(architecture, ())) and not any(part in name for part in kept)


def _is_70b(spec: ModelSpec) -> bool:
    architecture = family_of(spec).gguf_architecture
    return len(spec.layers) == _DEPTH_OF_70B.get(architecture or "") and _gqa(spec) > 1


def _gqa(spec: ModelSpec) -> int:
    """Query heads that share a key, as `llama_hparams::n_gqa` reads them off the first layer.

    0 where that layer caches nothing: files of layers that differ say 0 key heads for it.
    """
    for mixer in spec.layers[0].mixers if spec.layers else ():
        match mixer:
            case Gqa() | Lightning():
                return mixer.heads // mixer.kv_heads
            case Mla() | CompressedAttention():
                return mixer.heads  # one latent serves all heads
            case LinearAttention():
                # It carries the head counts of the softmax layers of its model.
                softmax = (m for layer in spec.layers for m in layer.mixers if isinstance(m, Gqa))
                found = next(softmax, None)
                return found.heads // found.kv_heads if found else 0
    return 0
