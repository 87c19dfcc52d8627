"""The names that Hugging Face gives the modules of our tensors, and the patterns a configuration names them by."""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from breakeven.errors import UserError
from breakeven.model.architecture import LinearAttention, Mamba1, Mamba2, ModelSpec, MoeFfn, Quantization, ShortConv
from breakeven.model.tensors import Tensor

_ATTENTION = ("self_attn", "attn", "attention", "mixer")
_FFN = ("mlp", "feed_forward", "block_sparse_moe", "moe", "mixer", "ffn")
_SHARED = ("shared_experts", "shared_expert")

_LEAVES: dict[str, tuple[str, ...]] = {
    "attn_q": ("q_proj", "qkv_proj"),
    "attn_k": ("k_proj", "qkv_proj"),
    "attn_v": ("v_proj", "qkv_proj"),
    "attn_qkv": ("qkv_proj", "query_key_value", "in_proj_qkv", "in_proj_qkvz"),
    "attn_gate": ("g_proj", "gate_proj", "in_proj_z", "in_proj_qkvz"),
    "attn_output": ("o_proj", "dense", "out_proj"),
    "attn_q_a": ("q_a_proj", "wq_a"),
    "attn_q_b": ("q_b_proj", "wq_b"),
    "attn_kv_a_mqa": ("kv_a_proj_with_mqa", "kv_a_proj"),
    "attn_kv_b": ("kv_b_proj",),
    "attn_k_b": ("kv_b_proj",),
    "attn_v_b": ("kv_b_proj",),
    "attn_kv": ("kv_proj", "wkv"),
    "attn_output_a": ("o_a_proj", "wo_a"),
    "attn_output_b": ("o_b_proj", "wo_b"),
    "attn_compressor_kv": ("compressor.wkv", "compressor.kv_proj"),
    "attn_compressor_gate": ("compressor.wgate", "compressor.gate_proj"),
    "indexer.attn_q_b": ("indexer.wq_b",),
    "indexer.attn_k": ("indexer.wk",),
    "indexer.proj": ("indexer.weights_proj",),
    "indexer.q_proj": ("index_q_proj", "indexer.q_proj"),
    "indexer.k_proj": ("index_k_proj", "indexer.k_proj"),
    "indexer_compressor_kv": ("indexer.compressor.wkv",),
    "indexer_compressor_gate": ("indexer.compressor.wgate",),
    "ssm_in": ("in_proj",),
    "ssm_out": ("out_proj",),
    "ssm_x": ("x_proj",),
    "ssm_dt": ("dt_proj",),
    "ssm_ba": ("in_proj_ba", "in_proj_b", "in_proj_a"),
    "ssm_alpha": ("in_proj_a",),
    "ssm_beta": ("b_proj", "in_proj_b"),
    "ssm_f": ("f_proj",),
    "ssm_g": ("g_proj",),
    "ssm_f_a": ("f_a_proj",),
    "ssm_f_b": ("f_b_proj",),
    "ssm_g_a": ("g_a_proj",),
    "ssm_g_b": ("g_b_proj",),
    "shortconv.in_proj": ("in_proj",),
    "shortconv.out_proj": ("out_proj",),
}
_FFN_LEAVES: dict[str, tuple[str, ...]] = {
    "gate": ("gate_proj", "gate_up_proj", "w1", "input_linear"),
    "up": ("up_proj", "gate_up_proj", "w3", "input_linear"),
    "gate_up": ("gate_up_proj", "input_linear"),
    "down": ("down_proj", "w2", "output_linear"),
}
_LATENT = {"ffn_latent_down": ("fc1_latent_proj", "latent_down"), "ffn_latent_up": ("fc2_latent_proj", "latent_up")}
_OUTSIDE: dict[str, tuple[str, ...]] = {
    "token_embd": ("embed_tokens", "embeddings", "tok_embeddings"),
    "output": ("lm_head", "output"),
    "per_layer_token_embd": ("embed_tokens_per_layer",),
    "per_layer_model_proj": ("per_layer_model_projection",),
}
_NGRAMS = ("ple.ple_embedding.ngram_embedding", "ngram_embedding")
_STREAMS: dict[str, tuple[str, ...]] = {
    "inp_gate": ("per_layer_input_gate",),
    "proj": ("per_layer_projection",),
    "ple_key": ("ple.key_proj", "ple_key"),
    "ple_value": ("ple.value_proj", "ple_value"),
    "nextn.eh_proj": ("eh_proj",),
    "nextn.embed_tokens": ("embed_tokens",),
    "nextn.shared_head_head": ("shared_head.head",),
}
_OUTER = ("model", "language_model", "text_model", "transformer", "decoder", "backbone", "base_model", "thinker")
"""What stands before the part of a name that all layouts share."""


def module_names(spec: ModelSpec, tensor: Tensor) -> tuple[str, ...]:
    """The modules that hold a tensor, as families spell them, without what stands before `layers`."""
    stem = tensor.name.removesuffix(".weight")
    if tensor.layer is None:
        # llama.cpp keeps a table of n-grams in the place of per-layer embeddings.
        by_ngram = stem == "per_layer_token_embd" and spec.ngrams is not None
        return _NGRAMS if by_ngram else _OUTSIDE.get(stem, (stem,))
    stem = stem.split(".", 2)[-1]
    inside = tuple(_inside(spec, tensor.layer, stem))
    count = len(spec.layers)
    if tensor.layer < count:
        return tuple(f"layers.{tensor.layer}.{name}" for name in inside)
    return tuple(f"{block}.{name}" for block in _drafting(tensor.layer, count) for name in inside)


def _drafting(layer: int, count: int) -> tuple[str, ...]:
    return (f"layers.{layer}", f"mtp.layers.{layer - count}", f"mtp.{layer - count}", "mtp")


def _inside(spec: ModelSpec, layer: int, stem: str) -> Iterator[str]:
    if stem in _STREAMS:
        yield from _STREAMS[stem]
        return
    if stem.startswith("ffn_"):
        if stem.endswith("_shexp"):  # Granite keeps them beside its experts
            yield "shared_mlp.output_linear" if "down" in stem else "shared_mlp.input_linear"
        leaves = _ffn(stem)
        if stem.endswith(("_exps", "ffn_gate_inp")) and _beside_dense(spec, layer):
            # Where `mlp` is a dense feed-forward that runs beside them, they stand in the layer (Gemma 4).
            yield from (f"{outer}{leaf}" for outer in ("", "moe.") for leaf in leaves)
            return
        yield from (f"{parent}.{leaf}" for parent in _FFN for leaf in leaves)
        return
    leaves = _LEAVES.get(stem, (stem,))
    yield from (f"{parent}.{leaf}" for parent in _parents(spec, layer, stem) for leaf in leaves)


def _beside_dense(spec: ModelSpec, layer: int) -> bool:
    """Not those of LongCat, whose layers stand here as two, the second one dense: they are in `mlp` all the same."""
    ffns = [each.ffn for each in spec.layers[layer : layer + 2]]
    return all(isinstance(ffn, MoeFfn) for ffn in ffns) and any(getattr(ffn, "dense_width", 0) for ffn in ffns[:1])


def _ffn(stem: str) -> tuple[str, ...]:
    if stem == "ffn_gate_inp":
        return ("gate", "router")
    if stem in _LATENT:
        return _LATENT[stem]
    kind, _, place = stem.removeprefix("ffn_").partition("_")
    if stem.startswith("ffn_gate_up"):
        kind, place = "gate_up", stem.removeprefix("ffn_gate_up").lstrip("_")
    leaves = _FFN_LEAVES.get(kind, (kind,))
    if place in ("exps", "chexps"):
        return tuple(f"experts{one}.{leaf}" for one in (".0", "") for leaf in leaves)
    if place == "shexp":
        return tuple(f"{shared}.{leaf}" for shared in _SHARED for leaf in leaves)
    return leaves


def _parents(spec: ModelSpec, layer: int, stem: str) -> tuple[str, ...]:
    mixers = spec.layers[layer].mixers if layer < len(spec.layers) else ()
    if stem.startswith("shortconv"):
        return ("conv", "short_conv")
    linear = any(isinstance(mixer, LinearAttention) for mixer in mixers)
    if linear and (stem.startswith("ssm_") or stem in ("attn_qkv", "attn_gate")):
        return ("linear_attn",)
    if stem.startswith("ssm_") and any(isinstance(mixer, Mamba1 | Mamba2) for mixer in mixers):
        return ("mamba", "mixer", "ssm")
    return ("conv",) if mixers and all(isinstance(mixer, ShortConv) for mixer in mixers) else _ATTENTION


class _Patterns:
    """Patterns of module names: plain names, globs with `*`, and regular expressions after `re:`.

    A plain name means the module and all below it, wherever its parts stand in a row: `lm_head`, `gate`,
    `model.layers.3.mlp`. Globs and expressions are asked of the module and of those around it. `alike`: none of them
    has a number, so that what holds of one layer's module holds of all.
    """

    def __init__(self, patterns: Sequence[str], *, alike: bool) -> None:
        self._alike = alike
        self._plain: set[tuple[str, ...]] = set()
        self._expressions: list[_Expression] = []
        globs: dict[int | None, list[str]] = {}
        self._seen: dict[str, bool] = {}
        self._spent_s = 0.0
        for pattern in patterns:
            if pattern.startswith("re:"):
                self._expressions.append(_expression(pattern[3:]))
            elif any(sign in pattern for sign in "*?["):
                globs.setdefault(_layer_of(pattern), []).append(pattern)
            else:
                parts = pattern.strip(".").removesuffix(".weight").split(".")
                while len(parts) > 1 and parts[0] in _OUTER:
                    parts = parts[1:]
                self._plain.add(tuple(parts))
        for layer, together in globs.items():
            whole = re.compile("|".join(fnmatch.translate(pattern) for pattern in together))
            self._expressions.append(_Expression(whole, layer, _SPELLINGS, around=True))
        if len(self._expressions) > _MOST_EXPRESSIONS:
            raise UserError("quantization_config has too many patterns; name the modules instead")

    def match(self, name: str, layer: int | None) -> bool:
        if not self._plain and not self._expressions:
            return False
        name = _LAYER.sub("layers.0", name) if self._alike else name
        if name not in self._seen:
            self._seen[name] = self._plainly(name) or self._matched(name, layer)
        return self._seen[name]

    def _plainly(self, name: str) -> bool:
        parts = tuple(name.split("."))
        ends = range(len(parts) + 1)
        return bool(self._plain) and any(parts[i:j] in self._plain for i in ends for j in ends[i + 1 :])

    def _matched(self, name: str, layer: int | None) -> bool:
        started = time.thread_time()
        found = any(each.match(name) for each in self._expressions if each.layer is None or each.layer == layer)
        self._spent_s += time.thread_time() - started
        if self._spent_s > _MOST_S:
            raise UserError("the patterns in quantization_config take too long to compare; name the modules instead")
        return found


_LAYER = re.compile(r"\blayers\.\d+")
_SPELLINGS = ("", "model.", "model.language_model.", "language_model.model.", "backbone.")
_MOST_S = 1.5
_MOST_EXPRESSIONS = 1000
_LONGEST_EXPRESSION = 1000
_MOST_REPEATS = 4
"""An expression of more open repeats can take longer than anybody waits for a single name."""


@dataclass(frozen=True, slots=True)
class _Expression:
    """A pattern, and of which names it need be asked, so that models of many layers are not waited for.

    `layer`: the only one whose modules it can mean. `spellings`: beginnings of a name that differ to it. `around`: it
    can mean a module that holds the one in question.
    """

    pattern: re.Pattern[str]
    layer: int | None
    spellings: tuple[str, ...]
    around: bool

    def match(self, name: str) -> bool:
        parts = name.split(".")
        least = 0 if self.around else len(parts) - 1
        names = (".".join(parts[:n]) for n in range(len(parts), least, -1))
        return any(self.pattern.match(outer + one) for one in names for outer in self.spellings)


def _layer_of(pattern: str) -> int | None:
    """The one layer that a pattern names, so that it is asked of that layer's modules alone."""
    found = re.search(r"layers(?:\\?\.)(\d+)\\?\.", pattern)
    return int(found[1]) if found and "|" not in pattern and "mtp" not in pattern else None


def _expression(text: str) -> _Expression:
    nested = re.search(r"[*+}]\)[*+{]", text)
    if len(text) > _LONGEST_EXPRESSION or nested or len(re.findall(r"[*+{]", text)) > _MOST_REPEATS:
        raise UserError(
            f"the expression {text[:60]!r} in quantization_config is too involved; name the modules instead"
        )
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(
            f"the expression {text[:60]!r} in quantization_config is not valid: {error}; mend it"
        ) from error
    # What begins with anything does not care how a name begins, and what ends openly takes all below a module.
    spellings = ("model.",) if text.startswith(".*") else _SPELLINGS
    return _Expression(pattern, _layer_of(text), spellings, around="$" in text or "(?" in text)


class Modules:
    """What a published configuration says of a model's modules."""

    def __init__(self, spec: ModelSpec, said: Quantization) -> None:
        self._spec = spec
        self._kept = _sorted_out(said.kept)
        by_format: dict[str, list[str]] = {}
        for pattern, format_name in said.others:
            by_format.setdefault(format_name, []).append(pattern)
        self._others = {name: _sorted_out(patterns) for name, patterns in by_format.items()}

    def is_kept(self, tensor: Tensor) -> bool:
        """Whether the tensor's module stays in 16 bits."""
        return _match(self._kept, module_names(self._spec, tensor), tensor.layer)

    def other_format(self, tensor: Tensor) -> str | None:
        """The format of the tensor's module where it is another than the model's."""
        names = module_names(self._spec, tensor) if self._others else ()
        return next((found for found, parts in self._others.items() if _match(parts, names, tensor.layer)), None)


def _sorted_out(patterns: Sequence[str]) -> tuple[_Patterns, _Patterns]:
    numbered = {pattern for pattern in patterns if re.search(r"\d", pattern)}
    alike = [pattern for pattern in patterns if pattern not in numbered]
    return _Patterns(alike, alike=True), _Patterns(sorted(numbered), alike=False)


def _match(parts: tuple[_Patterns, _Patterns], names: Sequence[str], layer: int | None) -> bool:
    return any(patterns.match(name, layer) for patterns in parts for name in names)
