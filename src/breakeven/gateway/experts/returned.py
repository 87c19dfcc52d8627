"""The experts that an engine returned with an answer, counted: vLLM and SGLang under `--enable-return-routed-experts`.

Packings, told apart by what they are:

    [[[e, ..], ..], ..]             tokens, layers, experts a token: vLLM 0.21; those of the prompt are apart, in
                                    `prompt_routed_experts` at the top of the answer
    base64 of an .npy               the same of prompt and answer together, but for the last token: vLLM from 0.22 on
    {encoding, dtype, shape, data}  base64 of the bare numbers
    base64 of int32                 SGLang, of the shape that nobody tells: a place for each of the model's layers

(docs.vllm.ai/en/latest/training/routed_experts and /en/v0.21.0/training/routed_experts_replay; SGLang's
`routed_experts_capturer.py`.) Both engines keep a place for every layer of the model, and where a layer is dense or
nothing was kept zeros stay in it, which are no choice of expert 0: a token takes an expert once. Those are left out.
With one expert a token they look like one, and are left out only where a model tells which layers route: of no other
model such routing is counted. Layers bear the model's own numbers, dense ones counted too, as those of a llama.cpp do.

Of several answers the first is counted, to several prompts too. In a stream what comes last holds all of it.

Legend: T tokens, L layers, K experts a token, E experts
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import tokenize
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError, one_line
from breakeven.wire.sse import events_of

Ids = NDArray[np.integer[Any]]

MOST_BYTES = 16 * 2**20
"""Of an answer, and of what is packed in it."""
MOST_LAYERS, MOST_EXPERTS, MOST_PER_TOKEN = 512, 4096, 256
UNSURE_TOKENS = 16
"""By which routing and usage may differ: an engine that guesses ahead may have routed more than it kept."""
_MARK = b"routed_experts"
_NPY = b"\x93NUMPY"
_TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Returned(NamedTuple):
    """What one request chose: layers that route, as the model numbers them; choices (L, E); tokens that were routed."""

    layers: list[int]
    choices_LE: NDArray[np.int64]
    tokens: int


class _Packed(msgspec.Struct):
    encoding: str
    dtype: str
    shape: list[int]
    data: str


class _Meta(msgspec.Struct):
    routed_experts: msgspec.Raw = msgspec.Raw()


class _Choice(msgspec.Struct):
    index: int = 0
    routed_experts: msgspec.Raw = msgspec.Raw()
    meta_info: _Meta | None = None
    sglext: _Meta | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Answer(msgspec.Struct):
    prompt_routed_experts: msgspec.Raw = msgspec.Raw()
    routed_experts: msgspec.Raw = msgspec.Raw()
    meta_info: _Meta | None = None
    sglext: _Meta | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Answer).decode
_unpack = msgspec.json.Decoder(str | _Packed | list[list[list[int]]] | None).decode


def choices_of(
    body: bytes,
    *,
    layers: Sequence[int] | None = None,
    per_token: int | None = None,
    n_experts: int | None = None,
    all_layers: int | None = None,
    most_tokens: int | None = None,
) -> Returned | None:
    """What the answer in `body`, one JSON object or a stream of events, says it chose; None where it says nothing.

    The numbers of the `layers` that route, experts a token, experts, and how many `all_layers` are with those that do
    not route, are the model's, None where they are not known: then E is the largest number seen and one more. Of
    `most_tokens` from the beginning choices are counted; None: of all. Without a token that was routed nothing is
    counted, and no layer told. Raises UserError for what cannot be read, or is not of such a model.
    """
    if _MARK not in body:
        return None
    if len(body) > MOST_BYTES:
        _refuse(f"the answer is longer than {MOST_BYTES >> 20} MiB")
    prompt, told, tokens = _found(body)
    places = all_layers or (None if layers is None else len(layers))
    parts = [
        ids_TLK
        for packed in (prompt, told)
        if packed is not None and (ids_TLK := _ids_of(packed, places, per_token, tokens)) is not None
    ]
    if not parts:
        if prompt is None and told is None:
            return None
        return Returned([], np.zeros((0, 0), np.int64), 0)
    if len({part.shape[1:] for part in parts}) > 1:
        _refuse("prompt and answer are of different shapes")
    if per_token not in (None, parts[0].shape[2]):
        _refuse(f"it has {parts[0].shape[2]} experts a token where the model has {per_token}")
    return _counted(_first(parts, most_tokens), layers, n_experts)


def _first(parts: list[Ids], most_tokens: int | None) -> list[Ids]:
    """So many tokens of both together, from the beginning; those of which nothing was kept are none."""
    if most_tokens is None:
        return parts
    found: list[Ids] = []
    for part in parts:
        kept = part[part.any(axis=(1, 2))] if part.shape[2] > 1 else part
        found.append(kept[: most_tokens - sum(map(len, found))])
    return found


def _refuse(why: str) -> NoReturn:
    raise UserError(f"the routing returned cannot be read: {one_line(why, 200)}")


Packed = str | _Packed | list[list[list[int]]]


def _found(body: bytes) -> tuple[Packed | None, Packed | None, int | None]:
    """What is packed of the prompt where that is apart, of the answer, and how many tokens both have.

    None of several answers, whose tokens are told together.
    """
    streamed = body.lstrip()[:1] != b"{"
    prompt: Packed | None = None
    told: Packed | None = None
    tokens: int | None = None
    several = False
    for piece in events_of(body) if streamed else [body]:
        if _MARK not in piece and b'"usage"' not in piece:
            continue
        try:
            answer = _decode(piece)
            prompt = _later(prompt, answer.prompt_routed_experts)
            several = several or any(choice.index for choice in answer.choices or ())
            for place in _places(answer):
                told = _later(told, place)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if _MARK in piece:
                _refuse(str(error))
            continue
        if (usage := answer.usage) is not None and None not in (usage.prompt_tokens, usage.completion_tokens):
            tokens = (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)
    return prompt, told, None if several else tokens


def _places(answer: _Answer) -> list[msgspec.Raw]:
    """Where the routing of an answer may stand."""
    first = [choice for choice in answer.choices or () if choice.index == 0][:1]
    inside = [answer.meta_info, answer.sglext]
    for choice in first:
        inside += [choice.meta_info, choice.sglext]
    return [
        answer.routed_experts,
        *(each.routed_experts for each in inside if each is not None),
        *(choice.routed_experts for choice in first),
    ]


def _later(before: Packed | None, raw: msgspec.Raw) -> Packed | None:
    """What stands there; where that is nothing, what stood there before."""
    data = bytes(raw)
    found = _unpack(data) if data else None
    return found if found or before is None else before


def _ids_of(packed: Packed, layers: int | None, per_token: int | None, tokens: int | None) -> Ids | None:
    """Experts (T, L, K); None where there is no token."""
    if not packed:
        return None
    if isinstance(packed, list):
        try:
            ids = np.asarray(packed)
        except (ValueError, OverflowError):
            _refuse("its rows are of different lengths")
    elif isinstance(packed, _Packed):
        if packed.encoding != "base64" or packed.dtype not in _TYPES:
            _refuse(f"{packed.dtype} in {packed.encoding} is no packing that is known")
        ids = _shaped(_bytes_of(packed.data), np.dtype(packed.dtype).newbyteorder("<"), tuple(packed.shape), "C")
    else:
        data = _bytes_of(packed)
        ids = _from_npy(data) if data.startswith(_NPY) else _flat(data, layers, per_token, tokens)
    if ids.ndim and not len(ids):
        return None
    if ids.ndim != 3 or ids.dtype.kind not in "iu" or not ids.size:
        _refuse(f"it is not whole numbers by token, layer and place, but {ids.dtype} of shape {ids.shape}")
    if ids.shape[1] > MOST_LAYERS or ids.shape[2] > MOST_PER_TOKEN:
        _refuse(f"shape {ids.shape} is beyond {MOST_LAYERS} layers and {MOST_PER_TOKEN} experts a token")
    return ids


def _bytes_of(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        _refuse("its base64 is broken or cut short")


def _shaped(data: bytes | memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], order: str) -> Ids:
    """The numbers in `data`, which must hold exactly those of the shape. Copies nothing."""
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        _refuse(f"shape {shape} of {dtype} is not what {len(data)} bytes hold")
    found: Ids = np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")
    return found


def _from_npy(data: bytes) -> Ids:
    """An .npy whose header promises no more than comes; one of objects, which would run what it holds, is refused."""
    file = io.BytesIO(data)
    try:
        shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    except (ValueError, TypeError, KeyError, SyntaxError, EOFError, RecursionError, MemoryError, tokenize.TokenError):
        _refuse("its .npy has no header that is known")
    if dtype.hasobject or dtype.kind not in "iu":
        _refuse(f"its .npy holds {dtype}, no whole numbers")
    return _shaped(memoryview(data)[file.tell() :], dtype, shape, "F" if fortran else "C")


def _flat(data: bytes, layers: int | None, per_token: int | None, tokens: int | None) -> Ids:
    """SGLang's: all tokens but the last, each with a place for every layer of the model, dense ones too.

    `tokens`: of prompt and answer by its usage, which is not the shape but may contradict it.
    """
    if layers is None or per_token is None:
        _refuse("its shape is not told; name the backend's `model:`, one that is known here")
    if len(data) % 4:
        _refuse(f"{len(data)} bytes are no whole number of int32")
    size = len(data) // 4
    if size % (layers * per_token):
        _refuse(f"{size} numbers are no whole tokens of {layers} layers and {per_token} experts a token")
    found = size // (layers * per_token)
    if tokens is not None and abs(found - (tokens - 1)) > UNSURE_TOKENS:
        _refuse(f"it holds {found} tokens of {layers} layers where its usage tells of {tokens}; is `model:` another?")
    return _shaped(data, np.dtype("<i4"), (found, layers, per_token), "C")


def _counted(parts: list[Ids], layers: Sequence[int] | None, n_experts: int | None) -> Returned:
    """Choices by layer and expert; `parts` with a token. Raises UserError for numbers that are no experts."""
    parts = [part for part in parts if len(part)]
    if not parts:
        _refuse("nothing was kept of its layers")
    n_layers, per_token = parts[0].shape[1:]
    if per_token == 1 and layers is None:
        _refuse("of one expert a token a dense layer looks like expert 0; name the backend's `model:`, one known here")
    low, high = min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)
    most = n_experts or MOST_EXPERTS
    if low < 0 or high >= most:
        _refuse(f"it names expert {low if low < 0 else high}, and there are {'' if n_experts else 'at most '}{most}")
    experts = n_experts or high + 1
    choices_LE = np.zeros((n_layers, experts), np.int64)
    tokens_L = np.zeros(n_layers, np.int64)
    for layer in range(n_layers):
        for part in parts:
            ids_TK = part[:, layer]
            if per_token > 1:
                ids_TK = np.sort(ids_TK[ids_TK.any(axis=1)], axis=1)
                if (ids_TK[:, 1:] == ids_TK[:, :-1]).any():
                    _refuse(f"a token has one expert twice in layer {layer}, so its shape or its model is another")
            choices_LE[layer] += np.bincount(ids_TK.ravel().astype(np.int64), minlength=experts)
            tokens_L[layer] += len(ids_TK)
    routed = np.flatnonzero(tokens_L)
    if per_token == 1 and layers is not None and n_layers > max(layers):
        routed = np.asarray(layers)  # which are dense their zeros do not tell
    if not len(routed):
        _refuse("nothing was kept of its layers")
    if layers is not None and len(routed) != len(layers):
        _refuse(f"{len(routed)} of its layers route where the model has {len(layers)}")
    # A place for each layer that routes, and none for others, tells their order alone.
    names = layers if layers is not None and n_layers == len(layers) else routed.tolist()
    return Returned(list(names), choices_LE[routed], int(tokens_L[routed].max()))
