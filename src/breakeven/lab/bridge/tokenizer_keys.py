"""From a Hugging Face directory's tokenizer to the `tokenizer.*` keys of a GGUF file.

The kind and the pre-tokenizer are found by what tokenizer.json is made of; what llama.cpp has no form of is refused.
What comes out stands only after `tokenizers.same_ids` found llama.cpp to give the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gguf import GGUFValueType as Kind

from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.bridge.directory_words import end_tokens, said_tokens
from breakeven.lab.bridge.pretokenizers import Json, cut_of
from breakeven.lab.bridge.tokenizers import SPECIAL_KEYS, load
from breakeven.model.readers.bounded import read_bounded, shown

_TYPE_NORMAL, _TYPE_UNKNOWN, _TYPE_CONTROL, _TYPE_USER_DEFINED, _TYPE_UNUSED, _TYPE_BYTE = 1, 2, 3, 4, 5, 6
"""`tokenizer.ggml.token_type` (`llama_token_type`, another numbering)."""
_ABSENT_SCORE = -1000.0
"""Of tokens that no merge makes, as llama.cpp's converter writes it."""

MORE_ENDS = ("eot_token_id", "eom_token_id")
"""Keys of a second and a third token that end an answer; a GGUF has no more."""
_MOST_TOKENS = 1 << 20
_MOST_BYTES = 1 << 28
"""Ids, and bytes of a tokenizer.json: four times what the largest has, so that a damaged one asks for no more."""


@dataclass(frozen=True, slots=True)
class GgufKey:
    """One metadata entry of a GGUF file: the arguments of `gguf.GGUFWriter.add_key_value`. `of`: a list's elements."""

    key: str
    value: str | bool | int | list[str] | list[int] | list[float]
    kind: Kind
    of: Kind | None = None


def gguf_keys(directory: Path, n_tokens: int | None = None) -> list[GgufKey]:
    """The `tokenizer.*` entries of a GGUF file for the tokenizer in `directory`, in the order to write them.

    n_tokens: rows of the model's embedding; the vocabulary is filled up to it with unused tokens. Raises UserError for
    files that are missing, damaged or contradict each other, NotSupportedError for what llama.cpp has no form of.
    """
    try:
        keys = _keys(directory, n_tokens)
        for entry in keys:
            if entry.kind is Kind.STRING or entry.of is Kind.STRING:
                "".join(cast(list[str], entry.value)).encode()
    except RecursionError:
        raise UserError(f"{directory}/tokenizer.json: nested too deeply for a tokenizer; fetch it again") from None
    except UnicodeEncodeError:
        raise UserError(
            f"{directory}: a token, merge or chat template is no text (half a letter); fetch it again"
        ) from None
    return keys


def _keys(directory: Path, n_tokens: int | None) -> list[GgufKey]:
    source = directory / "tokenizer.json"
    content = _read(source)
    config = _beside(directory, "tokenizer_config.json")
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise NotSupportedError(f"{source}: a tokenizer of the kind {shown(kind)}; only BPE becomes a GGUF")
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise NotSupportedError(f"{source}: llama.cpp has nothing like {setting}={shown(model[setting])}")
    pieces = _is_sentencepiece(content)
    tokens, types = _vocabulary(content, source, n_tokens, pieces=pieces)
    merges = _merges(model, source)
    keys = [GgufKey("tokenizer.ggml.model", "llama" if pieces else "gpt2", Kind.STRING)]
    if pieces:
        keys += _pieces(content, tokens, merges, source)
    else:
        _refuse_normalizer(content.get("normalizer"), source)
        cut = cut_of(content.get("pre_tokenizer"), bool(model.get("ignore_merges")), str(source))
        keys.append(GgufKey("tokenizer.ggml.pre", cut.names[0], Kind.STRING))
    keys.append(GgufKey("tokenizer.ggml.tokens", tokens, Kind.ARRAY, Kind.STRING))
    keys.append(GgufKey("tokenizer.ggml.token_type", types, Kind.ARRAY, Kind.INT32))
    if not pieces:
        if not merges:
            raise NotSupportedError(f"{source}: a byte-level BPE without a merge, which a GGUF cannot say")
        joined = [f"{left} {right}" for left, right in merges]
        keys.append(GgufKey("tokenizer.ggml.merges", joined, Kind.ARRAY, Kind.STRING))
    keys += _ends(directory, source, config, tokens)
    return keys + _templates(directory, config)


def _read(path: Path) -> Json:
    try:
        content = json.loads(read_bounded(path, _MOST_BYTES))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; transformers' AutoTokenizer writes it with save_pretrained, from tokenizer.model too"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not the JSON of a tokenizer; fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not the JSON of a tokenizer; fetch it again")
    return content


def _beside(directory: Path, name: str) -> Json:
    return _read(directory / name) if (directory / name).is_file() else {}


def _is_sentencepiece(content: Json) -> bool:
    return bool(content["model"].get("byte_fallback"))


def _vocabulary(content: Json, source: Path, n_tokens: int | None, *, pieces: bool) -> tuple[list[str], list[int]]:
    """Words and `llama_token_type` by id; ids that no word has are unused ones, as llama.cpp's converter names them."""
    words = content["model"].get("vocab")
    added = content.get("added_tokens") or []
    if not isinstance(words, dict) or not words or not isinstance(added, list):
        raise UserError(f"{source}: it has no vocabulary; fetch it again")
    by_id: dict[int, tuple[str, int]] = {}
    unknown = content["model"].get("unk_token")
    for word, token in words.items():
        kind = _TYPE_NORMAL
        if pieces and len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
            kind = _TYPE_BYTE
        elif pieces and word == unknown:
            kind = _TYPE_UNKNOWN
        by_id[_id(token, source)] = (word, kind)
    for each in added:
        if not isinstance(each, dict) or not isinstance(each.get("content"), str):
            raise UserError(f"{source}: an added token without content; fetch it again")
        token, word = _id(each.get("id"), source), each["content"]
        kind = _TYPE_CONTROL if each.get("special") else _TYPE_USER_DEFINED
        if not (pieces and word == unknown):
            by_id[token] = (word, kind)
        if each.get("lstrip") or each.get("rstrip") or each.get("single_word"):
            raise NotSupportedError(f"{source}: llama.cpp has no key for the spaces stripped around {shown(word)}")
    count = max(by_id) + 1
    if n_tokens is not None and not count <= n_tokens <= _MOST_TOKENS:
        raise UserError(f"{source}: {count:,} tokens for a model of {n_tokens:,}; the directory is of two models")
    listed = [by_id.get(i, (f"[PAD{i}]", _TYPE_UNUSED)) for i in range(n_tokens or count)]
    tokens = [word for word, _ in listed]
    if len(set(tokens)) != len(tokens):
        raise NotSupportedError(f"{source}: one word has two ids, which llama.cpp refuses")
    return tokens, [kind for _, kind in listed]


def _id(token: object, source: Path) -> int:
    if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < _MOST_TOKENS:
        raise UserError(f"{source}: {shown(token)} is no token's id; fetch it again")
    return token


def _merges(model: Json, source: Path) -> list[tuple[str, str]]:
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise UserError(f"{source}: it has no merges; fetch it again")
    pairs: list[tuple[str, str]] = []
    for each in merges:
        parts = each.split(" ") if isinstance(each, str) else each
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
            raise UserError(f"{source}: {shown(each)} is no merge of two tokens; fetch it again")
        pairs.append((parts[0], parts[1]))
    return pairs


def _pieces(content: Json, tokens: Sequence[str], merges: Sequence[tuple[str, str]], source: Path) -> list[GgufKey]:
    """Scores that make llama.cpp join in the order of the merges, and whether a text begins with a space."""
    scores = dict.fromkeys(tokens, _ABSENT_SCORE)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    scores.update({word: -float(rank) for word, rank in ranks.items() if word in scores})
    prefix = _space_prefix(content, source)
    return [
        GgufKey("tokenizer.ggml.pre", "default", Kind.STRING),
        GgufKey("tokenizer.ggml.scores", [scores[word] for word in tokens], Kind.ARRAY, Kind.FLOAT32),
        GgufKey("tokenizer.ggml.add_space_prefix", prefix, Kind.BOOL),
    ]


def _space_prefix(content: Json, source: Path) -> bool:
    """Whether a text gets a space before it. Raises for a normalizer or pre-tokenizer of another kind."""
    parts = [*_flat(content.get("normalizer"), "normalizers"), *_flat(content.get("pre_tokenizer"), "pretokenizers")]
    prefix = escaped = False
    for part in parts:
        match part:
            case {"type": "Prepend", "prepend": "\u2581"}:
                prefix = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
                escaped = True
            case {"type": "Metaspace"} if not part.get("split", True):
                escaped = True
                prefix = part.get("prepend_scheme", "always") != "never" and part.get("add_prefix_space", True)
            case {"type": "Split", "pattern": {"String": " "}} if escaped:
                pass  # nothing is left to split: spaces are underlines by now
            case _:
                kind = part.get("type") if isinstance(part, dict) else part
                raise NotSupportedError(f"{source}: llama.cpp's SentencePiece tokenizer has nothing like {shown(kind)}")
    if not escaped:
        raise NotSupportedError(f"{source}: a byte-fallback tokenizer that keeps spaces; llama.cpp has none")
    return bool(prefix)


def _flat(part: object, inside: str) -> list[Any]:
    if part is None:
        return []
    if isinstance(part, dict) and part.get("type") == "Sequence" and isinstance(part.get(inside), list):
        return [each for inner in part[inside] for each in _flat(inner, inside)]
    return [part]


def _refuse_normalizer(normalizer: object, source: Path) -> None:
    """Only composing is let through: it changes nothing in text as people type it, and the proof says it."""
    for part in _flat(normalizer, "normalizers"):
        if not (isinstance(part, dict) and part.get("type") == "NFC"):
            kind = part.get("type") if isinstance(part, dict) else part
            raise NotSupportedError(f"{source}: its normalizer {shown(kind)} changes the text, and llama.cpp has none")


def _ends(directory: Path, source: Path, config: Json, tokens: Sequence[str]) -> list[GgufKey]:
    """Tokens with a role, and which of them stand around every text, as the tokenizer itself puts them.

    Where the tokenizer's files name no first or last token, the model's do; these also name more that end an answer.
    """
    others = _beside(directory, "special_tokens_map.json")
    ids = {word: i for i, word in enumerate(tokens)}
    roles: dict[str, int] = {}
    for role in SPECIAL_KEYS:
        named = config.get(role, others.get(role))
        word = named.get("content") if isinstance(named, dict) else named
        if isinstance(word, str) and word in ids:
            roles[role] = ids[word]
    tokenizer = load(directory)
    around, bare = (tokenizer.encode("a", add_special_tokens=special).ids for special in (True, False))
    before, _, after = _around(around, bare)
    if len(before) > 1 or len(after) > 1:
        raise NotSupportedError(f"{source}: it puts {len(before)} and {len(after)} tokens around a text, llama.cpp one")
    for role, found in (("bos_token", before), ("eos_token", after)):
        said = [each for each in said_tokens(directory, f"{role}_id") if 0 <= each < len(tokens)]
        if found or (role not in roles and said):
            roles[role] = (found or said)[0]
    named = {SPECIAL_KEYS[role]: token for role, token in roles.items()}
    more = [each for each in end_tokens(directory) if 0 <= each < len(tokens) and each != roles.get("eos_token")]
    named |= dict(zip(MORE_ENDS, more, strict=False))
    keys = [GgufKey(f"tokenizer.ggml.{key}", token, Kind.UINT32) for key, token in named.items()]
    keys.append(GgufKey("tokenizer.ggml.add_bos_token", bool(before), Kind.BOOL))
    keys.append(GgufKey("tokenizer.ggml.add_eos_token", bool(after), Kind.BOOL))
    return keys


def _around(whole: list[int], bare: list[int]) -> tuple[list[int], list[int], list[int]]:
    for at in range(len(whole) - len(bare) + 1):
        if whole[at : at + len(bare)] == bare:
            return whole[:at], bare, whole[at + len(bare) :]
    return whole, bare, []


def _templates(directory: Path, config: Json) -> list[GgufKey]:
    template = config.get("chat_template")
    beside = directory / "chat_template.jinja"
    if beside.is_file():
        try:
            template = read_bounded(beside, _MOST_BYTES).decode("utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{beside}: cannot be read as UTF-8 text: {error}") from None
    if isinstance(template, str):
        return [GgufKey("tokenizer.chat_template", template, Kind.STRING)]
    keys, names = [], []
    for each in template if isinstance(template, list) else []:
        match each:
            case {"name": "default", "template": str(text)}:
                keys.append(GgufKey("tokenizer.chat_template", text, Kind.STRING))
            case {"name": str(name), "template": str(text)}:
                names.append(name)
                keys.append(GgufKey(f"tokenizer.chat_template.{name}", text, Kind.STRING))
            case _:
                raise UserError(f"{directory}/tokenizer_config.json: {shown(each)} is no named chat template")
    if names:
        keys.append(GgufKey("tokenizer.chat_templates", names, Kind.ARRAY, Kind.STRING))
    return keys
