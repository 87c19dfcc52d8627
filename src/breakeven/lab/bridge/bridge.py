"""From a GGUF to a Hugging Face directory and back: the same numbers under other names.

A plan pairs every tensor of one side with those of the other, so that nothing is missing and nothing is left over;
then rows are streamed through it, decoded, put into order and stored. Configurations are carried key by key
(`families`, `configs`, `rotary`); what would change the function is refused. transformers' own GGUF loader is not used:
of a `llama` file with experts it makes a dense model with random feed-forwards.

Rotary order: llama.cpp turns neighbouring rows of a head in the `llama` architecture, transformers turns row i with
row i + d/2, so rows of queries and keys change places (llama.cpp's `conversion/llama.py`, `permute`).
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from breakeven.engines.synthesis.write import add_value, check_room
from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.bridge.configs import ROPE_FREQS, complete, config_of_gguf, gguf_numbers, hub_config, whole
from breakeven.lab.bridge.families import Bridge, of_config
from breakeven.lab.bridge.rotary import rotary_of_config
from breakeven.lab.bridge.weights import (
    F32,
    FLOAT_TYPES,
    PLACE,
    Checkpoint,
    FloatType,
    NewGgufTensor,
    NewTensor,
    Order,
    TensorRows,
    decode,
    gguf_rows,
    pieces,
    unwritten,
    write_checkpoint,
    write_gguf,
)
from breakeven.lab.surgery.container import Bytes, DenseFile, OutTensor, SourceTensor, open_gguf, rewrite
from breakeven.model.readers.bounded import shown
from breakeven.model.readers.hf import CONFIG, read_json

if TYPE_CHECKING:
    from breakeven.lab.bridge.tokenizer_keys import GgufKey

_FFN = ("gate", "up", "down")
_BIASED = [*(f"attn_{part}.bias" for part in ("q", "k", "v", "output")), *(f"ffn_{part}.bias" for part in _FFN)]
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
_DRAFTS = re.compile(r"^(model\.)?mtp_|^mtp\.|rotary_emb\.inv_freq$")
"""Tensors that no token passes: blocks that draft, and tables that older directories store."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What was written: `dtype` of its matrices, `notes` that a proof repeats."""

    family: str
    dtype: str
    tensors: int
    file_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorPair:
    """One tensor of a GGUF and what it is called in a directory: one name, or one an expert.

    `shape` of each of these; `heads` of queries or keys whose rows are kept in another order, else 0; `zeros`: a file
    without it computes as with zeros.
    """

    gguf: str
    hub: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool = False
    heads: int = 0
    zeros: bool = False

    @property
    def gguf_shape(self) -> tuple[int, ...]:
        """In numpy order, slowest first."""
        return (len(self.hub), *self.shape) if self.stacked else tuple(n for n in self.shape if n != 1) or (1,)

    @property
    def single(self) -> bool:
        """Whether llama.cpp wants it in F32 whatever the other weights are: norms, biases, routers."""
        return len(self.gguf_shape) == 1 or "ffn_gate_inp." in self.gguf


@dataclass(frozen=True, slots=True)
class _Zeros:
    """Rows that hold nothing."""

    shape: tuple[int, ...]

    def take(self, rows: Order) -> NDArray[np.float32]:
        return np.zeros((len(rows), math.prod(self.shape[1:])), np.float32)


def plan(bridge: Bridge, config: Mapping[str, object]) -> list[TensorPair]:
    """All tensors of a model of a completed configuration, in the order of a GGUF."""
    hidden, heads, kv, size = (
        whole(config, key) for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    q, k = heads * size, kv * size
    wide, vocab = whole(config, "intermediate_size"), whole(config, "vocab_size")
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,),
        "attn_q.weight": (q, hidden),
        "attn_k.weight": (k, hidden),
        "attn_v.weight": (k, hidden),
        "attn_output.weight": (hidden, q),
        "attn_q.bias": (q,),
        "attn_k.bias": (k,),
        "attn_v.bias": (k,),
        "attn_output.bias": (hidden,),
        "attn_q_norm.weight": (q if bridge.wide_norms else size,),
        "attn_k_norm.weight": (k if bridge.wide_norms else size,),
        **_ffn_shapes("", wide, hidden),
        "ffn_gate.bias": (wide,),
        "ffn_up.bias": (wide,),
        "ffn_down.bias": (hidden,),
    }
    experts = shared = leading = 0
    if bridge.norms_chosen is not None:
        experts, width = whole(config, bridge.expert_count), whole(config, bridge.expert_width)
        shared = whole(config, "moe_num_shared_experts") if "moe_num_shared_experts" in config else 0
        leading = whole(config, "moe_layer_start_index") if "moe_layer_start_index" in config else 0
        shapes |= {"ffn_gate_inp.weight": (experts, hidden), "exp_probs_b.bias": (1, experts)}
        shapes |= {**_ffn_shapes("_exps", width, hidden), **_ffn_shapes("_shexp", width * shared, hidden)}
    turned = {"attn_q": heads, "attn_k": kv} if bridge.interleaved else {}
    table = TensorPair("token_embd.weight", ("model.embed_tokens.weight",), (vocab, hidden))
    pairs = [table, TensorPair("output_norm.weight", ("model.norm.weight",), (hidden,))]
    if not config["tie_word_embeddings"]:
        pairs.append(TensorPair("output.weight", ("lm_head.weight",), table.shape))
    elif bridge.needs_output:
        pairs.append(replace(table, gguf="output.weight"))
    for layer in range(whole(config, "num_hidden_layers")):
        stems = {**bridge.layer, **(bridge.moe if experts and layer >= leading else bridge.dense)}
        for stem, name in stems.items():
            absent = stem in _BIASED and not config["attention_bias" if stem.startswith("attn") else "mlp_bias"]
            if absent or ("_shexp" in stem and not shared):
                continue
            stacked = "{}" in name
            names = [name.format(expert) for expert in range(experts)] if stacked else [name]
            hub = tuple(f"model.layers.{layer}.{each}" for each in names)
            rotated = turned.get(stem.partition(".")[0], 0)
            pairs.append(
                TensorPair(f"blk.{layer}.{stem}", hub, shapes[stem], stacked, rotated, stem == "exp_probs_b.bias")
            )
    return pairs


def _ffn_shapes(suffix: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    across, back = (width, hidden), (hidden, width)
    return {f"ffn_{part}{suffix}.weight": back if part == "down" else across for part in _FFN}


def rotated_order(rows: int, heads: int, *, to_gguf: bool) -> Order | None:
    """Which row of the source comes first, second, ...; None: as they are."""
    if not heads:
        return None
    parts = (heads, 2, -1) if to_gguf else (heads, -1, 2)
    return np.arange(rows).reshape(parts).swapaxes(1, 2).reshape(-1)


def to_gguf(directory: Path, out: Path, *, dtype: str | None = None, assume: bool = False) -> Carried:
    """Write a directory's model as one GGUF, whole or not at all.

    `dtype`: f32, f16 or bf16 of the matrices; None: as they are stored. Norms and routers are always F32, as llama.cpp
    wants them. Raises UserError for a directory that is not whole, NotSupportedError for a model that is not carried.
    """
    from breakeven.lab.bridge.directory_words import end_tokens
    from breakeven.lab.bridge.tokenizer_keys import gguf_keys

    raw = read_json(directory / CONFIG)
    bridge = of_config(raw)
    config = complete(raw, bridge, assume=assume)
    rotary = rotary_of_config(config, bridge.defaults["rope_theta"], stretched=bridge.stretched)
    checkpoint = Checkpoint(directory)
    config.setdefault("vocab_size", next((t.shape[0] for n, t in checkpoint.tensors.items() if "embed_tok" in n), 0))
    pairs = plan(bridge, config)
    left_out = _match(directory, pairs, checkpoint, config)
    into = FLOAT_TYPES[dtype] if dtype else _usual_type(pairs, checkpoint)
    jobs = [_job(pair, checkpoint, into) for pair in pairs]
    factors = rotary.factors(whole(config, "head_dim") // 2)
    if factors is not None:
        jobs.insert(1, NewGgufTensor(ROPE_FREQS, factors.shape, F32, lambda: iter((F32.encode(factors, ROPE_FREQS),))))
    writer = GGUFWriter(None, bridge.architecture)
    writer.add_name(Path(str(raw.get("_name_or_path") or directory.resolve())).name)
    writer.add_file_type(_FILE_TYPES[into.dtype])
    for key, value in gguf_numbers(bridge, config, rotary).items():
        add_value(writer, f"{bridge.architecture}.{key}", value)
    keys = gguf_keys(directory, whole(config, "vocab_size"))
    for each in keys:
        writer.add_key_value(each.key, each.value, each.kind, each.of)
    n_bytes = write_gguf(out, writer, jobs)
    notes = [f"left out: {', '.join(left_out)}"] if left_out else []
    left_out_ends = _ends_unsaid(end_tokens(directory), keys)
    return Carried(bridge.model_type, into.dtype, len(jobs), n_bytes, (*notes, *left_out_ends))


def _ends_unsaid(ends: Sequence[int], keys: Sequence[GgufKey]) -> list[str]:
    """What is not as the directory says of the tokens that end an answer."""
    named = [each.value for each in keys if each.key.removeprefix("tokenizer.ggml.") in _ENDS]
    left = [str(token) for token in ends if token not in named]
    if not named:
        return ["its files name no token that ends an answer; llama.cpp takes one of its own choice"]
    return [f"tokens that end an answer too, for which a GGUF has no key: {', '.join(left)}"] if left else []


def _usual_type(pairs: list[TensorPair], checkpoint: Checkpoint) -> FloatType:
    """The one type of all that may be written in another than F32; F32 where they are of several."""
    dtypes = {checkpoint.tensors[name].dtype for pair in pairs if not pair.single for name in pair.hub}
    return FLOAT_TYPES[dtypes.pop().lower()] if len(dtypes) == 1 else F32


def _match(directory: Path, pairs: list[TensorPair], checkpoint: Checkpoint, config: Mapping[str, object]) -> list[str]:
    """Raise UserError unless exactly the planned tensors are there. Returns what is rightly left out."""
    wanted = {name: pair.shape for pair in pairs for name in pair.hub}
    missing = [name for name in wanted if name not in checkpoint.tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{directory}: tensor {missing[0]}{more} is missing; fetch the whole model")
    for name, shape in wanted.items():
        found = checkpoint.tensors[name].shape
        if found != shape:
            raise UserError(f"{directory}: {name} is {list(found)}, {CONFIG} makes it {list(shape)}; fetch both again")
    over = [name for name in checkpoint.tensors if name not in wanted]
    tied = config["tie_word_embeddings"]
    known = sorted(name for name in over if _DRAFTS.search(name) or (tied and name == "lm_head.weight"))
    unknown = sorted(set(over) - set(known))
    if unknown:
        raise NotSupportedError(
            f"{directory}: tensor {shown(unknown[0])} is not known in this family, and engines that know it compute "
            "something else; the model is not carried"
        )
    return known


def _job(pair: TensorPair, checkpoint: Checkpoint, into: FloatType) -> NewGgufTensor:
    chosen = F32 if pair.single else into
    order = rotated_order(pair.shape[0], pair.heads, to_gguf=True)

    def data() -> Iterator[NDArray[np.uint8]]:
        for name in pair.hub:
            yield from pieces(checkpoint.tensors[name], order, chosen, name)

    return NewGgufTensor(pair.gguf, pair.gguf_shape, chosen, data)


def to_directory(source: Path, out: Path, *, dtype: str | None = None, assume: bool = False) -> Carried:
    """Write a GGUF's model as a Hugging Face directory, with its tokenizer; `out` must not exist.

    `dtype`: f32, f16 or bf16 of all weights; None: the one 16-bit type that holds every value, else F32, to which
    quantized weights are decoded. Raises UserError and NotSupportedError as `to_gguf`; nothing is left of a failure.
    """
    from breakeven.lab.bridge.tokenizers import write_tokenizer

    file = open_gguf(source)
    if file.header.metadata.get("split.count", 1) not in (0, 1):
        raise NotSupportedError(
            f"{source} is one part of a split file; join the parts (llama-gguf-split --merge) first"
        )
    bridge, config, rotary = config_of_gguf(file, assume=assume)
    pairs = plan(bridge, config)
    _match_gguf(file, pairs)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    into = FLOAT_TYPES[dtype] if dtype else _holding(file.tensors)
    quantized = sorted({t.kind.name for t in file.tensors} - {each.dtype for each in FLOAT_TYPES.values()})
    new = [each for pair in pairs for each in _hub_tensors(pair, tensors)]
    if out.exists():
        raise UserError(f"{out} exists; choose another place with --out, or remove it")
    check_room(out, sum(math.prod(each.shape) * into.n_bytes for each in new) + (16 << 20), PLACE)
    try:
        out.mkdir()
        n_bytes = write_checkpoint(out, new, into)
        written = hub_config(bridge, config, rotary, into, file.header.metadata)
        (out / CONFIG).write_text(json.dumps(written, indent=2) + "\n")
        (out / "generation_config.json").write_text(json.dumps(_ends(file.header.metadata), indent=2) + "\n")
        said = write_tokenizer(source, out)
    except BaseException as error:
        shutil.rmtree(out, ignore_errors=True)
        if isinstance(error, OSError):
            raise unwritten(out, error) from error
        raise
    if quantized:
        said = [
            f"{', '.join(quantized)} decoded to {into.dtype}: larger, and computed without the engine's rounding",
            *said,
        ]
    return Carried(bridge.model_type, into.dtype, len(new), n_bytes, tuple(said))


def _ends(metadata: Mapping[str, object]) -> dict[str, object]:
    """generation_config.json: the tokens that end an answer, one or several."""
    ids = [metadata.get(f"tokenizer.ggml.{key}") for key in _ENDS]
    ends = list(dict.fromkeys(each for each in ids if isinstance(each, int)))
    first = metadata.get("tokenizer.ggml.bos_token_id")
    return {"bos_token_id": first, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}


def _match_gguf(file: DenseFile, pairs: list[TensorPair]) -> None:
    found = {tensor.name: tensor.dims[::-1] for tensor in file.tensors}
    wanted = {pair.gguf: pair for pair in pairs}
    path = file.header.path
    for name, pair in wanted.items():
        if name not in found and not pair.zeros:
            raise UserError(f"{path}: tensor {name} is missing; fetch it again")
        if name in found and found[name] != pair.gguf_shape:
            raise UserError(f"{path}: {name} is {list(found[name])}, its keys make it {list(pair.gguf_shape)}")
    over = sorted(found.keys() - wanted.keys() - {ROPE_FREQS})
    if over:
        raise NotSupportedError(
            f"{path}: tensor {shown(over[0])} is not known in this family, and engines that know it compute something "
            "else; the model is not carried"
        )


def _hub_tensors(pair: TensorPair, tensors: Mapping[str, SourceTensor]) -> Iterator[NewTensor]:
    order = rotated_order(pair.shape[0], pair.heads, to_gguf=False)
    source = tensors.get(pair.gguf)
    if pair.gguf == "output.weight" and pair.hub[0] != "lm_head.weight":
        return  # the embedding again
    for expert, name in enumerate(pair.hub):
        rows: TensorRows = _Zeros(pair.shape)
        if source is not None:
            rows = replace(gguf_rows(source, expert if pair.stacked else None), shape=pair.shape)
        yield NewTensor(name, pair.shape, rows, order)


def _holding(tensors: tuple[SourceTensor, ...]) -> FloatType:
    """The 16-bit type of all matrices, if every other weight is held by it too; else F32."""
    kinds = {t.kind.name for t in tensors if len(t.dims) > 1 and "ffn_gate_inp." not in t.name}
    into = FLOAT_TYPES.get(kinds.pop().lower(), F32) if len(kinds) == 1 else F32
    others = [t for t in tensors if t.kind.name != into.dtype and t.name != ROPE_FREQS]
    exact = all(into.holds(gguf_rows(t).take(np.arange(t.dims[-1]))) for t in others) if into is not F32 else True
    return into if exact else F32


def write_single(file: DenseFile, out: Path, rounded: FloatType) -> None:
    """Write a GGUF again with all its weights in F32, having rounded them to what `rounded` holds; its keys as they
    are. Raises UserError where there is no room."""
    tensors = []
    for tensor in file.tensors:
        rows = replace(gguf_rows(tensor), shape=(math.prod(tensor.dims[1:]), tensor.dims[0]))
        # The factors of rotary frequencies are told by keys in a directory, and not rounded there.
        into = F32 if tensor.name == ROPE_FREQS else rounded

        def data(rows: TensorRows = rows, into: FloatType = into, name: str = tensor.name) -> Iterator[Bytes]:
            for piece in pieces(rows, None, into, name):
                yield F32.encode(decode(piece, into.dtype), name)

        tensors.append(OutTensor(tensor.name, tensor.dims, F32.kind, 4 * math.prod(tensor.dims), data))
    rewrite(file, out, {"general.file_type": _FILE_TYPES["F32"]}, tensors)
