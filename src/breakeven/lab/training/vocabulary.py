"""A tokenizer with the tokens that a text uses, cutting that text as it did before: a vocabulary for one language.

Merging pairs by rank reaches a token through smaller ones. With those kept too, every merge that the text went through
is still there and none is new, so the text goes the same way; a text that was not looked at is cut into more pieces,
in the last resort bytes, which all stay. In a small model most weights are its vocabulary's, so that this is where a
model of one language becomes small.

Legend: N tokens before, K kept.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from breakeven.engines.synthesis.write import byte_alphabet
from breakeven.errors import BreakevenError, NotSupportedError, UserError
from breakeven.lab.bridge.directory_words import said_tokens, tokenizer_of
from breakeven.lab.bridge.pretokenizers import Json
from breakeven.lab.bridge.tokenizers import SPECIAL_KEYS
from breakeven.lab.bridge.weights import F32, FLOAT_TYPES, Checkpoint, NewTensor, StoredRows, write_checkpoint
from breakeven.model.readers.bounded import read_bounded, shown
from breakeven.model.readers.hf import CONFIG, read_json

_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_GENERATION = "generation_config.json"
_AS_THEY_ARE = ("special_tokens_map.json", "chat_template.jinja")
"""Files beside it that name tokens by what they say, not by number."""
_MOST_BYTES = 1 << 28
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_BY_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")
"""Tensors with a row for each token."""
_TEXTS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Trimmed:
    """Which tokens stayed. Entry i of `kept_K` is the number that token i had."""

    kept_K: NDArray[np.int64]
    n_before: int
    n_seen: int
    """Tokens that the text uses; the others are those they are merged from, bytes and special tokens."""

    @property
    def n(self) -> int:
        """Tokens now."""
        return len(self.kept_K)

    @property
    def new_N(self) -> NDArray[np.int64]:
        """What each token is now, by its old number; -1: gone."""
        new_N = np.full(self.n_before, -1, np.int64)
        new_N[self.kept_K] = np.arange(self.n)
        return new_N

    def renumbered(self, config: Mapping[str, object]) -> dict[str, object]:
        """A configuration (of a model, or of generating) for the new numbers: size and tokens that it names."""
        new_N = self.new_N

        def one(value: object) -> object:
            if isinstance(value, list):
                return [new for each in value if (new := one(each)) is not None]
            if type(value) is not int or not 0 <= value < self.n_before:
                return value
            return int(new_N[value]) if new_N[value] >= 0 else None

        found = {key: one(value) if key.endswith("_token_id") else value for key, value in config.items()}
        return {**found, "vocab_size": self.n} if "vocab_size" in found else found

    def said(self) -> str:
        """One line of it."""
        return (
            f"vocabulary of {self.n:,} of {self.n_before:,} tokens: {self.n_seen:,} that the text uses, the others "
            "those they are merged from, bytes and special tokens"
        )


def trim(directory_in: Path, texts: Sequence[str], directory_out: Path) -> Trimmed:
    """Write a directory's tokenizer, with what `texts` use of it, into `directory_out`, and check that it cuts them
    as before.

    Raises NotSupportedError for a tokenizer that does not merge pairs over bytes, UserError for one that is damaged
    and for texts of no token, BreakevenError where a text would be cut otherwise: then nothing is written.
    """
    content = _read(directory_in / _TOKENIZER)
    vocabulary, ranks = _checked(content, directory_in / _TOKENIZER)
    tokenizer = tokenizer_of(directory_in)
    seen = {token for ids in _cut(tokenizer, texts) for token in ids}
    if not seen:
        raise UserError("the text has no tokens to trim a vocabulary to; give a longer one with --text")
    added = {each["id"] for each in content.get("added_tokens") or ()}
    word_of = {token: word for word, token in vocabulary.items()}
    words = {word_of[token] for token in seen if token in word_of}
    kept = seen | added | {vocabulary[word] for word in _merged_from(words, ranks) if word in vocabulary}
    kept |= {vocabulary[word] for word in _always(content, vocabulary)}
    # What the tokenizer puts around a text, and what the configurations give a role.
    kept |= {*tokenizer.encode("", add_special_tokens=True).ids, *(_named(directory_in) & word_of.keys())}
    # The embedding may have rows for tokens that its tokenizer does not know.
    n_before = max(max(word_of), max(added, default=0), _rows(directory_in) - 1) + 1
    trimmed = Trimmed(np.array(sorted(kept), np.int64), n_before, len(seen))
    made = _trimmed(content, trimmed)
    _check_same(tokenizer, made, texts, trimmed)
    _write(directory_in, directory_out, made, trimmed)
    return trimmed


def trim_weights(directory_in: Path, trimmed: Trimmed, directory_out: Path) -> None:
    """Write a directory's weights and configuration with the rows of the tokens kept, beside the trimmed tokenizer.

    Of the tokens kept it then computes the same logits. Raises UserError for a directory that is not whole.
    """
    checkpoint = Checkpoint(directory_in)
    dtypes = {stored.dtype.lower() for stored in checkpoint.tensors.values()}
    into = FLOAT_TYPES[dtypes.pop()] if len(dtypes) == 1 else F32
    tensors = []
    for name, stored in checkpoint.tensors.items():
        by_token = name in _BY_TOKEN
        if by_token and stored.shape[0] != trimmed.n_before:
            raise UserError(
                f"{directory_in}: {name} has {stored.shape[0]:,} rows for {trimmed.n_before:,} tokens; fetch it again"
            )
        shape = (trimmed.n, *stored.shape[1:]) if by_token else stored.shape
        tensors.append(NewTensor(name, shape, _Picked(shape, stored), trimmed.kept_K if by_token else None))
    directory_out.mkdir(parents=True, exist_ok=True)
    write_checkpoint(directory_out, tensors, into)
    _dump(directory_out / CONFIG, trimmed.renumbered(read_json(directory_in / CONFIG)))


@dataclass(frozen=True, slots=True)
class _Picked:
    """Some rows of a stored tensor, asked for by their old numbers."""

    shape: tuple[int, ...]
    stored: StoredRows

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.stored.take(rows)


def _checked(content: Json, source: Path) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Words with their numbers, and merges with their ranks. Raises for what is no byte-level merging of pairs."""
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise NotSupportedError(
            f"{source}: a tokenizer of the kind {shown(kind)} does not merge pairs (BPE), and a smaller one would cut "
            "the text otherwise; go on without --trim-vocabulary"
        )
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise NotSupportedError(f"{source}: cannot be trimmed with {setting}={shown(model[setting])}")
    if not (model.get("byte_fallback") or _over_bytes(content)):
        raise NotSupportedError(f"{source}: has no tokens for bytes, so a smaller one could not spell every text")
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not vocabulary or not isinstance(merges, list):
        raise UserError(f"{source}: it has no vocabulary or no merges; fetch it again")
    ranks: dict[tuple[str, str], int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(_pair(merge, source), rank)
    return vocabulary, ranks


def _pair(merge: object, source: Path) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise UserError(f"{source}: {shown(merge)} is no merge of two tokens; fetch it again")
    return parts[0], parts[1]


def _over_bytes(content: Json) -> bool:
    return "ByteLevel" in json.dumps([content.get("pre_tokenizer"), content.get("decoder")])


def _merged_from(words: Iterable[str], ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """All that merging goes through on its way to `words`.

    Within one token it merges as it would were the token the whole text: a merge across its edge would have taken the
    token apart. What no merges reach (a byte, a special token, a word taken whole) needs nothing.
    """
    found: set[str] = set()
    for word in words:
        parts, through = list(word), set(word)
        while len(parts) > 1:
            pairs = [ranks.get(pair, math.inf) for pair in pairwise(parts)]
            best = min(pairs)
            if best == math.inf:
                break
            at = pairs.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            through.add(parts[at])
        if len(parts) == 1:
            found |= through
    return found


def _always(content: Json, vocabulary: Mapping[str, int]) -> list[str]:
    """Words that stay whatever the text: bytes, and what stands for the unknown."""
    model = content["model"]
    kept = [word for word in vocabulary if _BYTE.fullmatch(word)] if model.get("byte_fallback") else []
    if _over_bytes(content):
        kept += [letter for letter in byte_alphabet() if letter in vocabulary]
    unknown = model.get("unk_token")
    return [*kept, unknown] if unknown in vocabulary else kept


def _named(directory: Path) -> set[int]:
    """Tokens that the configurations give a role."""
    return {token for key in SPECIAL_KEYS for token in said_tokens(directory, f"{key}_id")}


def _rows(directory: Path) -> int:
    said = read_json(directory / CONFIG).get("vocab_size") if (directory / CONFIG).is_file() else None
    return said if type(said) is int else 0


def _cut(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterable[list[int]]:
    for begin in range(0, len(texts), _TEXTS_AT_ONCE):
        for each in tokenizer.encode_batch(list(texts[begin : begin + _TEXTS_AT_ONCE]), add_special_tokens=False):
            yield each.ids


def _trimmed(content: Json, trimmed: Trimmed) -> Json:
    """tokenizer.json with the tokens kept, under their new numbers."""
    new_N, model = trimmed.new_N, content["model"]
    words = {word: int(new_N[token]) for word, token in model["vocab"].items() if new_N[token] >= 0}
    merges = []
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if left in words and right in words and left + right in words:
            merges.append(merge)
    return {
        **content,
        "added_tokens": [{**each, "id": int(new_N[each["id"]])} for each in content.get("added_tokens") or ()],
        "post_processor": _renumbered(content.get("post_processor"), new_N),
        "model": {**model, "vocab": dict(sorted(words.items(), key=lambda each: each[1])), "merges": merges},
    }


def _renumbered(part: object, new_N: NDArray[np.int64]) -> object:
    """What is put around a text, under the new numbers: templates, and pairs of a word and its number."""
    match part:
        case {"ids": list(ids), **rest}:
            return {**rest, "ids": [int(new_N[token]) for token in ids]}
        case dict():
            return {key: _renumbered(value, new_N) for key, value in part.items()}
        case [str(word), int(token)]:
            return [word, int(new_N[token])]
        case list():
            return [_renumbered(each, new_N) for each in part]
    return part


def _check_same(tokenizer: Tokenizer, made: Json, texts: Sequence[str], trimmed: Trimmed) -> None:
    """Raise BreakevenError unless both cut every text alike, special tokens in it read as text and as such."""
    again = Tokenizer.from_str(json.dumps(made))
    again.no_truncation()
    again.no_padding()
    new_N = trimmed.new_N
    for special in (True, False):
        tokenizer.encode_special_tokens = again.encode_special_tokens = not special
        pairs = zip(_cut(tokenizer, texts), _cut(again, texts), texts, strict=True)
        for before, after, text in pairs:
            # Read as such, a special token parts its neighbours, which may then be cut in ways the text never was.
            if new_N[before].tolist() != after and (not special or (new_N[before] >= 0).all()):
                raise BreakevenError(
                    f"trimmed to {trimmed.n:,} tokens, the tokenizer cuts {text[:60]!r} otherwise than before; go on "
                    "without --trim-vocabulary"
                )
    tokenizer.encode_special_tokens = True


def _write(directory_in: Path, directory_out: Path, made: Json, trimmed: Trimmed) -> None:
    directory_out.mkdir(parents=True, exist_ok=True)
    _dump(directory_out / _TOKENIZER, made)
    if (directory_in / _TOKENIZER_CONFIG).is_file():
        config = _read(directory_in / _TOKENIZER_CONFIG)
        if isinstance(added := config.get("added_tokens_decoder"), dict):
            new_N = trimmed.new_N
            config["added_tokens_decoder"] = {
                str(new_N[int(token)]): each for token, each in added.items() if new_N[int(token)] >= 0
            }
        _dump(directory_out / _TOKENIZER_CONFIG, config)
    if (directory_in / _GENERATION).is_file():
        _dump(directory_out / _GENERATION, trimmed.renumbered(read_json(directory_in / _GENERATION)))
    for name in _AS_THEY_ARE:
        if (directory_in / name).is_file():
            shutil.copyfile(directory_in / name, directory_out / name)


def _read(path: Path) -> Json:
    try:
        content = json.loads(read_bounded(path, _MOST_BYTES))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; give the whole directory") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not the JSON of a tokenizer; fetch it again")
    return content


def _dump(path: Path, content: object) -> None:
    try:
        path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place with --out") from error
