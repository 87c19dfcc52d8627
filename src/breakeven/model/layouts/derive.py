"""From a configuration to a model: layers derived from what its keys announce, the tables and drafting beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

from breakeven.errors import UserError
from breakeven.model.architecture import (
    CompressedAttention,
    DenseFfn,
    FeedForward,
    Gqa,
    Layer,
    Mixer,
    Mla,
    ModelSpec,
    MoeFfn,
    Mtp,
    NgramTable,
    Norms,
    PerLayerEmbedding,
    Quantization,
    Rope,
    Scales,
    Streams,
)
from breakeven.model.formats.caches import published_kv
from breakeven.model.formats.published import quantization_of
from breakeven.model.layouts.classes import CLASSES, REFUSED
from breakeven.model.layouts.config import (
    CONTEXT,
    DENSE_WIDTH,
    EPSILON,
    HELP,
    HIDDEN,
    LAYERS,
    TIED,
    WIDTH,
    Config,
    text_parts,
)
from breakeven.model.layouts.ffns import ffns_of
from breakeven.model.layouts.kinds import ONE_PART, kinds_in_letters, kinds_of
from breakeven.model.layouts.mixers import mixers_of
from breakeven.model.layouts.model_class import UNKNOWN, ModelClass
from breakeven.model.layouts.registry import FAMILIES

MAX_LAYERS = 4096
"""More than any model has; a file that says more is damaged or hostile."""

_NO_TEXT = re.compile(r"For(MaskedLM|(Sequence|Token)Classification|QuestionAnswering)$|BidirectionalModel$")
"""Classes without a head that writes, or whose tokens see those after them."""

_DRAFT = re.compile(r"ForCausalLMEagle\d?$|^Eagle\d?\w*ForCausalLM\w*$|DraftModel$|Speculator$")
"""Classes of draft heads; Eagle is the name of models that see, too."""

_ASSUME: ContextVar[bool] = ContextVar("assume", default=False)


@contextmanager
def assuming(yes: bool = True) -> Iterator[None]:
    """While this holds, configurations are read on past keys that are not known; the models say which."""
    token = _ASSUME.set(yes)
    try:
        yield
    finally:
        _ASSUME.reset(token)


def assumes() -> bool:
    """Whether `assuming` holds."""
    return _ASSUME.get()


def spec_from_config(config: Mapping[str, object], name: str, source: str, *, assume: bool | None = None) -> ModelSpec:
    """Read a Hugging Face configuration, or Mistral's `params.json`, by its keys and what its class decides.

    `assume`: read on past keys that are not known and could change the layout; they are listed in `assumed`. None: as
    `assuming` says. Raises UserError for such a key, for a layout that cannot be described, and for a missing or
    malformed fact.
    """
    c = Config(config, name, source)
    c.assume = _ASSUME.get() if assume is None else assume
    cls = _class_of(c, config)
    c.fill(cls.defaults)
    c.touch(*cls.idle)
    c.assumed.extend(key for key in cls.left_out if c.has(key))
    layers, kinds = _layers(c, cls)
    spec = _model(c, cls, layers, kinds, config)
    strange = c.unknown(len(layers))
    if strange and not c.assume:
        raise UserError(_not_known(c, strange))
    return replace(spec, assumed=(*c.assumed, *strange)) if strange or c.assumed else spec


def _not_known(c: Config, strange: Sequence[str]) -> str:
    shown = ", ".join(f"`{key[:60]}`" for key in strange[:3]) + (f" and {len(strange) - 3} more" if strange[3:] else "")
    many = len(strange) > 1
    return (
        f"{c.source}: {c.name}: {'keys' if many else 'key'} {shown} {'are' if many else 'is'} not known and could "
        "change the layout; `--assume` reads on without, and the result says so"
    )


def _class_of(c: Config, config: Mapping[str, object]) -> ModelClass:
    """The class of the inner or the outer `model_type`; keys alone describe one that is not in the table."""
    types = [part.get("model_type") for part in reversed(text_parts(config))]
    _refuse_others(c, config, types)
    for model_type in types:
        if isinstance(model_type, str) and model_type in CLASSES:
            return CLASSES[model_type]
    known = next((str(found) for found in types if isinstance(found, str)), None)
    if known is None and not c.has("dim"):
        raise UserError(f"{c.source}: {c.name} does not say model_type, so its layout is unknown; add it, or {HELP}")
    if known is None:
        return CLASSES["mistral_large_3" if c.has("kv_lora_rank") else "mistral"]
    if c.flag_or(False, "is_encoder_decoder") or c.has("encoder_layers", "num_encoder_layers", "encoder"):
        raise UserError(
            f"{c.source}: {c.name}: model_type {known!r} has an encoder beside its decoder; Breakeven describes "
            "decoders alone"
        )
    c.stranger = known
    c.assumed.append("model_type")
    return UNKNOWN


def _refuse_others(c: Config, config: Mapping[str, object], types: Sequence[object]) -> None:
    """Raises UserError for what is not read, saying why, and for what writes no text though its layers are known."""
    for known in types:
        if isinstance(known, str) and known in REFUSED:
            raise UserError(f"{c.source}: {c.name}: model_type {known!r} is not read: {REFUSED[known]}; {HELP}")
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    if _DRAFT.search(architecture):
        raise UserError(
            f"{c.source}: {c.name}: architecture {architecture[:60]!r} is a draft head for speculative decoding; "
            "give the model it drafts for"
        )
    sorts = _NO_TEXT.search(architecture) is not None
    if sorts or c.get("use_bidirectional_attention") in (True, "all"):
        why = f"architecture {architecture[:60]!r}" if sorts else "use_bidirectional_attention"
        raise UserError(
            f"{c.source}: {c.name}: {why} says that it embeds or sorts texts and writes none; give a language model"
        )


def _layers(c: Config, cls: ModelClass) -> tuple[list[Layer], list[str]]:
    count = _count(c)
    kinds = kinds_of(c, cls, count)
    mixers = mixers_of(c, cls, kinds)
    ffns = ffns_of(c, cls, kinds)
    norms = _norms(c, cls)
    if cls.double:
        return _doubled(c, mixers, ffns, norms), [*kinds, *kinds]
    layers = []
    for kind, mixer, ffn in zip(kinds, mixers, ffns, strict=True):
        own = cls.own_norms if cls.own_norms is not None and kind in ("linear", "mamba", "conv") else norms
        layers.append(Layer(mixer, ffn, own))
    return layers, kinds


def _doubled(
    c: Config, mixers: Sequence[tuple[Mixer, ...]], ffns: Sequence[FeedForward | None], norms: Norms
) -> list[Layer]:
    """LongCat's layers hold two of everything and experts beside the first feed-forward: as two layers each."""
    dense = DenseFfn(c.whole(*WIDTH))
    layers = []
    for mixer, ffn in zip(mixers, ffns, strict=True):
        beside = replace(ffn, dense_width=dense.width) if isinstance(ffn, MoeFfn) else ffn
        layers += [Layer(mixer, beside, norms), Layer(mixer, dense, norms)]
    return layers


def _count(c: Config) -> int:
    """How many blocks; drafting blocks beyond them are apart."""
    if not c.has(*LAYERS):
        for key in ("layer_types", "layers_block_type", "hybrid_override_pattern"):
            found = c.get(key)
            if isinstance(found, list | str) and found:
                return len(found)
    count = c.whole(*LAYERS)
    if count > MAX_LAYERS:
        raise UserError(f"{c.source}: {c.name}: num_hidden_layers is {count:,}, no model has over {MAX_LAYERS:,}")
    return count


def _norms(c: Config, cls: ModelClass) -> Norms:
    keys = ("use_parallel_block", "parallel_attn", "use_parallel_residual")
    if c.flag_or(cls.norms is Norms.PARALLEL, *(key for key in keys if key not in cls.idle)):
        return Norms.PARALLEL
    if c.flag_or(False, "use_sandwich_norm", "sandwich_norm", "use_post_norm"):
        return Norms.AROUND
    return Norms.BEFORE if cls.norms is Norms.PARALLEL else cls.norms


def _model(
    c: Config, cls: ModelClass, layers: list[Layer], kinds: Sequence[str], config: Mapping[str, object]
) -> ModelSpec:
    hidden, vocab = c.whole(*HIDDEN), c.whole("vocab_size")
    routes = any(isinstance(layer.ffn, MoeFfn) for layer in layers)
    names = (cls.routed if routes else None, cls.family)
    family = next((name for name in names if name in FAMILIES), "custom")
    alone = FAMILIES[family].attention_as
    if alone is not None and all(isinstance(a, Gqa) for layer in layers for a in layer.mixers):
        family = alone[routes]
    narrowed = any(isinstance(layer.ffn, MoeFfn) and layer.ffn.latent_width for layer in layers)
    if narrowed and not FAMILIES[family].limits.latent:
        family = "custom"  # Kimi K3: llama.cpp's kimi-linear has no experts on a narrower state
    tied = c.first(TIED)
    if tied is None and cls.tied is None:
        raise c.missing(*TIED)
    quantization, kv_cache = _stored(c, config)
    return ModelSpec(
        name=c.name,
        family=family,
        hidden=hidden,
        vocab=vocab,
        context=c.whole(*CONTEXT),
        tied_embeddings=c.flag_or(bool(cls.tied), *TIED),
        layers=tuple(layers),
        source=c.source,
        rope=_rope(c, cls, layers),
        norm_epsilon=c.number_or(1e-5, *EPSILON),
        layer_norm=cls.layer_norm,
        output_bias=c.flag_or(cls.lm_head_bias, "lm_head_bias"),
        attention_softcap=_cap(c, cls.attention_softcap, "attn_logit_softcapping"),
        logit_softcap=_cap(c, cls.logit_softcap, "final_logit_softcapping"),
        scales=_scales(c, layers) if cls.scaled else None,
        per_layer_embedding=_per_layer(c, vocab),
        ngrams=_ngrams(c, hidden),
        streams=_streams(c, cls),
        quantization=quantization,
        kv_cache=kv_cache,
        mtp=_mtp(c, cls, layers, kinds),
    )


def _rope(c: Config, cls: ModelClass, layers: Sequence[Layer]) -> Rope:
    """Rotary embedding; newer files keep it inside `rope_parameters`, one for each kind of attention."""
    full = c.inside("rope_parameters.full_attention") or c.inside("rope_parameters") or {}
    near = c.inside("rope_parameters.sliding_attention") or {}
    old = c.inside("rope_scaling") or {}
    share = full.get("partial_rotary_factor", c.get("partial_rotary_factor"))
    head_dim = next((m.head_dim for layer in layers for m in layer.mixers if isinstance(m, Gqa)), 0)
    turned = c.whole_or(0, "rotary_dim")
    if not turned and isinstance(share, float) and 0 < share < 1:
        turned = int(head_dim * share)
    window_base = c.number_or(0.0, "rope_local_base_freq", "swa_rope_theta") or _number(near.get("rope_theta"))
    kind = next((w for f in (full, old) for k in ("rope_type", "type") if (w := f.get(k)) in ("yarn", "linear")), None)
    found = Rope(
        base=_number(full.get("rope_theta")) or _theta(c, cls),
        dimensions=turned if 0 < turned < head_dim else None,
        window_base=window_base if any(_slides(layer) for layer in layers) else None,
    )
    if kind is None:
        return found
    facts = full if full.get("factor") is not None else old
    original = facts.get("original_max_position_embeddings")
    return replace(
        found,
        scaling=str(kind),
        factor=_number(facts.get("factor")) or 1.0,
        original_context=original if isinstance(original, int) and original > 0 else None,
    )


def _theta(c: Config, cls: ModelClass) -> float:
    """`rope_theta`; of a list with one a layer, that of full attention, which is the largest."""
    value = c.get("rope_theta")
    if isinstance(value, list):
        return max((n for x in value if (n := _number(x)) is not None), default=cls.rope_base)
    return c.number_or(cls.rope_base, "rope_theta")


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _slides(layer: Layer) -> bool:
    return any(isinstance(m, Gqa) and m.window is not None for m in layer.mixers)


def _stored(c: Config, config: Mapping[str, object]) -> tuple[Quantization | None, str | None]:
    """How its weights are stored, and the type of keys and values that it asks for."""
    try:
        return quantization_of(config), published_kv(config)
    except UserError as error:
        raise UserError(f"{c.source}: {c.name}: {error}") from error


def _cap(c: Config, default: float | None, key: str) -> float | None:
    """A cap on logits, only where the class has one."""
    return None if default is None else c.number_or(default, key)


def _scales(c: Config, layers: Sequence[Layer]) -> Scales:
    head_dim = next((getattr(m, "head_dim", 0) for layer in layers for m in layer.mixers if hasattr(m, "kv_heads")), 0)
    return Scales(
        embedding=c.number_or(1.0, "embedding_multiplier"),
        residual=c.number_or(1.0, "residual_multiplier"),
        attention=c.number_or((head_dim or 1) ** -0.5, "attention_multiplier"),
        logit=c.number_or(1.0, "logits_scaling"),
    )


def _per_layer(c: Config, vocab: int) -> PerLayerEmbedding | None:
    rows = c.whole_or(vocab, "vocab_size_per_layer_input")
    width = c.whole_or(0, "hidden_size_per_layer_input")
    return PerLayerEmbedding(width, rows) if width else None


def _streams(c: Config, cls: ModelClass) -> Streams | None:
    altup = c.whole_or(0, "altup_num_inputs")
    if altup:
        c.touch("altup_active_idx", "altup_correct_scale")
        return Streams(altup, altup=True, laurel_rank=c.whole_or(0, "laurel_rank"))
    count = c.whole_or(0, "hc_mult", "hc_count")
    return Streams(count, low_rank=c.whole_or(0, "hc_lowrank"), joins=cls.joins) if count else None


def _ngrams(c: Config, hidden: int) -> NgramTable | None:
    """Hashed n-grams: each head of each order has its own prime number of rows, all padded together."""
    c.touch("split_ngram_parts", "seed")
    ids = c.indices("ple_layer_ids")
    if not ids:
        if c.has("ngram_size", "heads_per_ngram") and c.has("ple_embed_dim"):
            raise c.missing("ple_layer_ids")
        if ids is not None:
            c.touch_all("ple_|ngram_(size|vocab_size_base)$|heads_per_ngram")
        return None
    heads = c.whole("heads_per_ngram") * (c.whole("ngram_size") - 1)
    joined = c.whole_or(hidden, "ple_embed_dim")
    rows, prime = 0, c.whole("ngram_vocab_size_base")
    if heads > 256:
        raise c.wrong("heads_per_ngram", "a number of heads of which no table has more than 256")
    for _ in range(heads):
        prime = _next_prime(prime)
        rows += prime
    step = max(1, c.whole_or(1, "make_ngram_vocab_size_divisible_by"))
    return NgramTable(
        rows=-(-rows // step) * step,
        width=joined // heads,
        joined=joined,
        layers=tuple(i - 1 for i in ids),
        kernel=c.whole_or(4, "ple_conv_kernel_size"),
    )


def _next_prime(after: int) -> int:
    found = after + 1
    while any(found % n == 0 for n in range(2, int(found**0.5) + 1)):
        found += 1
    return found


_DRAFTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "mtp.num_hidden_layers")


def _mtp(c: Config, cls: ModelClass, layers: Sequence[Layer], kinds: Sequence[str]) -> Mtp | None:
    """Blocks that draft, each as the last layer of the model unless a pattern says otherwise."""
    count = c.whole_or(0, *_DRAFTS)
    tables = c.flag_or(cls.mtp_tables, "mtp_use_dedicated_embeddings")
    pattern = kinds_in_letters(c, "mtp_hybrid_override_pattern")
    c.touch("mtp_layers_block_type", "mtp_layer_types")
    words = c.list_of("mtp_mlp_layer_types")
    dense = cls.mtp_dense if not words else str(words[0]) == "dense"
    c.touch_all(r"mtp\.")
    if not count:
        return None
    if any(kind in ONE_PART for kind in kinds):
        wanted = pattern or ["full", "experts"]
        mixer = next((x.mixers for x, kind in zip(layers, kinds, strict=True) if kind in wanted and x.mixers), ())
        ffn = next((x.ffn for x, kind in zip(layers, kinds, strict=True) if kind in wanted and x.ffn), None)
        block = Layer(mixer, ffn)
    else:
        attends = [x for x, kind in zip(layers, kinds, strict=True) if kind in ("full", "sliding", "chunked")]
        block = replace(layers[-1], mixers=(attends or layers)[-1].mixers)
        if isinstance(near := block.mixer, CompressedAttention):
            block = replace(block, mixers=(replace(near, ratio=0, indexer=None),))
        if isinstance(last := block.mixer, Mla | Gqa) and last.indexer is not None:
            # It has an indexer of its own where layers share theirs.
            block = replace(block, mixers=(replace(last, indexer=replace(last.indexer, owns_weights=True)),))
        if dense:
            block = replace(block, ffn=DenseFfn(c.whole(*DENSE_WIDTH, *WIDTH)))
    return Mtp((block,) * min(count, 64), embedding=tables, head=tables)
