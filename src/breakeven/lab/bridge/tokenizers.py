"""Tokenizers of GGUF files as Hugging Face's, and back, held to the ids that llama.cpp gives.

`write_tokenizer` turns a GGUF's `tokenizer.*` keys into tokenizer.json and its companions (`tokenizer_keys` goes back);
`same_ids` compares both on texts, token by token. What has no form in the other is refused, never approximated.

Two kinds are known, as llama.cpp names them: `gpt2`, merges by rank over bytes written as letters, and `llama`,
SentencePiece's, where any two neighbours that together are a token may join and the highest score goes first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers

from breakeven.engines.inside import child
from breakeven.engines.inside.client import Inside
from breakeven.errors import NotSupportedError, UserError, one_line
from breakeven.lab.bridge.pretokenizers import Json, as_json, cut_named
from breakeven.model.readers.gguf_header import GgufHeader, read_header, read_value
from breakeven.results.lab import LabCheck

_UNKNOWN, _UNUSED, _NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 4, 8, 16, 32
_LSTRIP, _RSTRIP = 128, 256
"""Bits of `llama_token_attr` (include/llama.h)."""
_SPACE = "\u2581"
_MOST_LETTERS = 4096
"""Of one token; runs of spaces and dashes reach some hundreds. Every place to split it is tried."""
SPECIAL_KEYS: Mapping[str, str] = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # llama.cpp's own spelling
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}

HOSTILE: tuple[str, ...] = (
    "",
    " ",
    "\n",
    "0123456789 1 22 333 4444 55555 3.14159 1,234,567.89 2026-11-29 0x1F ١٢٣ ५६७ Ⅷ ½ x²",
    "a  b   c    d     e          f" + " " * 33 + "g" + " " * 120,
    "line\r\nline\r\n\r\nline\n\n\n\nline\n \n\t\nend\r",
    "\tif x:\n\t\treturn\t\ty\n        pass  \n",
    "I'm you're he'll she'd we've it's DON'T CAN'T O'Clock 's 'S 'll 'LL ''s",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 ❤️‍🔥 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ☃️",
    "cafe\u0301 Å a\u0308o\u0308u\u0308 n\u0303 हिन्दी বাংলা தமிழ் ไทย עִבְרִית العَرَبِيَّة",
    "Größe Straße ÀÉÎÕÜ ΑΒΓ αβγ Привет мир Ёж 日本語のテキスト、漢字と仮名。 中文，标点！ 한국어 텍스트",
    "!!! ??? ... --- === ((( ))) [] {} <> << >> && || ## @@ $$ %% ^^ ~~ `` // \\\\ \"quoted\" 'single'",
    "https://example.org/a/b?c=d&e=f#g user@example.org snake_case camelCase PascalCase kebab-case",
    "\u00a0no-break\u00a0space\u2003em\u2009thin\u3000ideographic\u200bzero\ufeffmark\u0085next\u2028line",
    "\x00\x01\x1f\x7f \u00ad soft\u00adhyphen",
    "word" * 200 + " " + "x" * 700 + " " + "9" * 200 + " " + "!" * 200 + " " + "é" * 200 + " " + "漢" * 200,
)
"""Texts on which tokenizers that look alike part ways: digits, spaces, line ends, marks, joiners, long words."""


def write_tokenizer(gguf: Path, directory: Path) -> list[str]:
    """Write `gguf`'s tokenizer into `directory`: tokenizer.json, tokenizer_config.json, special_tokens_map.json.

    Returns what one should know of it, in sentences. Raises NotSupportedError for a kind of tokenizer or a
    pre-tokenizer that is not known, UserError for a damaged vocabulary, EngineError when llama.cpp cannot load it.
    """
    header = read_header(gguf)
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind not in _MODELS:
        raise NotSupportedError(
            f"{gguf}: its tokenizer is of the kind {kind!r}; those known are {', '.join(_MODELS)}; export from the "
            "directory the file was converted from"
        )
    tokens = [word or f"[EMPTY_{i}]" for i, word in enumerate(_strings(header, "tokenizer.ggml.tokens"))]
    if max(map(len, tokens)) > _MOST_LETTERS:
        raise UserError(f"{gguf}: one of its tokens has {max(map(len, tokens)):,} letters; convert the model again")
    if len(set(tokens)) != len(tokens):
        raise UserError(f"{gguf}: two of its {len(tokens):,} tokens are the same; convert the model again")
    with Inside(gguf, 1, vocab_only=True) as inside:
        seen = inside.ask(child.Vocabulary(), child.Attributes)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, tokens[i], bits) for i, bits in enumerate(seen.of) if _is_added(bits)],
        **_MODELS[str(kind)](header, tokens),
        "post_processor": _template(tokens, seen.first, seen.last),
    }
    made = _made(lambda: Tokenizer.from_str(json.dumps(tokenizer)), f"{gguf}: its vocabulary makes no tokenizer")
    directory.mkdir(parents=True, exist_ok=True)
    named = _named_tokens(header, tokens, seen)
    made.save(str(directory / "tokenizer.json"))
    _write(directory / "tokenizer_config.json", _config(header, named, seen, tokenizer["added_tokens"]))
    _write(directory / "special_tokens_map.json", named)
    return _caveats(header, tokenizer)


def _bpe(header: GgufHeader, tokens: Sequence[str]) -> Json:
    """The `gpt2` kind. Raises where a merge makes no token: what llama.cpp does then has no form here."""
    name = header.metadata.get("tokenizer.ggml.pre") or "default"
    cut = cut_named(str(name), str(header.path))
    vocabulary = {word: i for i, word in enumerate(tokens)}
    merges: dict[tuple[str, str], None] = {}
    for line in _strings(header, "tokenizer.ggml.merges"):
        at = line.find(" ", 1)
        left, right = line[:at], line[at + 1 :]
        if at < 0 or not {left, right, left + right} <= vocabulary.keys():
            raise NotSupportedError(f"{header.path}: its merge {line!r} is not one of two tokens into a third")
        merges.setdefault((left, right))
    return {
        "normalizer": None,
        "pre_tokenizer": as_json(cut),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _model(vocabulary, list(merges), ignore_merges=cut.whole_words),
    }


def _sentencepiece(header: GgufHeader, tokens: Sequence[str]) -> Json:
    """The `llama` kind: a merge for every two tokens that make a third, the highest score first."""
    scores = read_value(header, "tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < len(tokens):
        raise UserError(
            f"{header.path}: a tokenizer of the kind 'llama' needs a score for each token; convert it again"
        )
    vocabulary = {word: i for i, word in enumerate(tokens)}
    ranked: list[tuple[float, int, int, str, str]] = []
    for word, i in vocabulary.items():
        for at in range(1, len(word)):
            left, right = vocabulary.get(word[:at]), vocabulary.get(word[at:])
            if left is not None and right is not None:
                ranked.append((-float(scores[i]), left, right, word[:at], word[at:]))  # type: ignore[arg-type]
    ranked.sort()
    prefix = header.metadata.get("tokenizer.ggml.add_space_prefix", True)
    parts: list[Json] = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    back: list[Json] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        parts.insert(0, {"type": "Prepend", "prepend": _SPACE})
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = header.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    named = tokens[unknown] if isinstance(unknown, int) and 0 <= unknown < len(tokens) else None
    return {
        "normalizer": {"type": "Sequence", "normalizers": parts},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": _model(vocabulary, [(left, right) for *_, left, right in ranked], unknown=named, by_bytes=True),
    }


_MODELS = {"gpt2": _bpe, "llama": _sentencepiece}


def _model(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    unknown: str | None = None,
    by_bytes: bool = False,
    ignore_merges: bool = False,
) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": by_bytes,
        "byte_fallback": by_bytes,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary,
        "merges": merges,
    }


def _is_added(bits: int) -> bool:
    """Whether llama.cpp looks for the token in the text before anything is cut."""
    return bool(bits & (_CONTROL | _USER_DEFINED | _UNKNOWN))


def _added(token: int, word: str, bits: int) -> Json:
    return {
        "id": token,
        "content": word,
        "single_word": False,
        "lstrip": bool(bits & _LSTRIP),
        "rstrip": bool(bits & _RSTRIP),
        "normalized": False,
        "special": bool(bits & (_CONTROL | _UNKNOWN)),
    }


def _template(tokens: Sequence[str], first: int | None, last: int | None) -> Json | None:
    """What is put around every text; None for nothing."""
    if first is None and last is None:
        return None

    def special(token: int | None, kind: int) -> list[Json]:
        return [] if token is None else [{"SpecialToken": {"id": tokens[token], "type_id": kind}}]

    def around(letter: str, kind: int) -> list[Json]:
        text: Json = {"Sequence": {"id": letter, "type_id": kind}}
        return [*special(first, kind), text, *special(last, kind)]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in (first, last) if i is not None
        },
    }


def _named_tokens(header: GgufHeader, tokens: Sequence[str], seen: child.Attributes) -> dict[str, str]:
    """The tokens with a role. What llama.cpp assumes where the file names none is not the model's own."""
    roles: dict[str, str] = {}
    for role, key in SPECIAL_KEYS.items():
        token = header.metadata.get(f"tokenizer.ggml.{key}")
        if token is None:
            token = {"bos_token": seen.first, "eos_token": seen.last}.get(role)
        if isinstance(token, int) and 0 <= token < len(tokens):
            roles[role] = tokens[token]
    return roles


def _config(header: GgufHeader, named: Mapping[str, str], seen: child.Attributes, added: Iterable[Json]) -> Json:
    context = header.metadata.get(f"{header.metadata.get('general.architecture')}.context_length")
    config: Json = {
        # Not a family's own class: those build their own splits instead of reading tokenizer.json's.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": seen.first is not None,
        "add_eos_token": seen.last is not None,
        "clean_up_tokenization_spaces": False,
        **named,
        "added_tokens_decoder": {
            str(each["id"]): {key: value for key, value in each.items() if key != "id"} for each in added
        },
    }
    if isinstance(context, int):
        config["model_max_length"] = context
    template = header.metadata.get("tokenizer.chat_template")
    others = {
        key.removeprefix("tokenizer.chat_template."): value
        for key, value in header.metadata.items()
        if key.startswith("tokenizer.chat_template.")
    }
    if others:
        every = {"default": template, **others} if template is not None else others
        config["chat_template"] = [{"name": name, "template": text} for name, text in every.items()]
    elif template is not None:
        config["chat_template"] = template
    return config


def _caveats(header: GgufHeader, tokenizer: Json) -> list[str]:
    said = []
    if not header.metadata.get("tokenizer.chat_template"):
        said.append("the file has no chat template, so the directory has none")
    if tokenizer["model"]["byte_fallback"] is False and not header.metadata.get("tokenizer.ggml.pre"):
        said.append("the file names no pre-tokenizer; llama.cpp's 'default' was taken, as llama.cpp does")
    return said


def _strings(header: GgufHeader, key: str) -> list[str]:
    value = read_value(header, key)
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise UserError(f"{header.path}: it has no list of texts under {key}; convert the model again")
    return [str(each) for each in value]


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def load(directory: Path) -> Tokenizer:
    """The tokenizer in `directory`, as every engine that reads tokenizer.json has it. Raises UserError if damaged."""
    path = directory / "tokenizer.json"
    return _made(lambda: Tokenizer.from_file(str(path)), f"{path}: not a tokenizer that can be loaded")


def _made(make: Callable[[], Tokenizer], otherwise: str) -> Tokenizer:
    try:
        return make()
    except BaseException as error:  # the library raises bare Exception, and its panics are not even that
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UserError(f"{otherwise}: {one_line(str(error), 200)}") from None
        raise


def same_ids(gguf: Path, directory: Path, texts: Sequence[str] = ()) -> LabCheck:
    """Whether `directory`'s tokenizer and llama.cpp's of `gguf` give the same ids, on `texts` and on hostile ones.

    Each text is compared twice: special tokens in it read as such, and as letters. Where the tokenizer does what
    llama.cpp never does, it is held to the texts on which that changes nothing, and the detail says so.
    """
    tokenizer = load(directory)
    apart = _Apart(tokenizer)
    every = [*texts, *HOSTILE, *_with_special(tokenizer)]
    count = 0
    with Inside(gguf, 1, vocab_only=True) as inside:
        for index, each in enumerate(every):
            for special in (True, False):
                text = apart.untouched(each, special)
                if text is None:
                    continue
                tokenizer.encode_special_tokens = not special
                ours, theirs = tokenizer.encode(text).ids, inside.tokenize(text, parse_special=special)
                if ours != theirs:
                    where = f"text {index + 1} of {len(every)}, special tokens {'read' if special else 'as letters'}"
                    return _check(False, f"{where}: {_first_difference(tokenizer, ours, theirs)}")
                count += len(ours)
    return _check(True, "; ".join([f"{count:,} ids of {len(every)} texts are equal", *apart.said]))


class _Apart:
    """What a tokenizer does that llama.cpp never does, and the texts on which it makes no difference."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._compose, self._words = None, None
        self.said: list[str] = []
        if tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str("e\u0301") == "\u00e9":
            self._compose = tokenizer.normalizer.normalize_str
            self.said.append("compared on composed text (NFC), since llama.cpp does not compose")
        pre = tokenizer.pre_tokenizer
        if isinstance(pre, pre_tokenizers.Metaspace) and pre.prepend_scheme != "never":
            added = tokenizer.get_added_tokens_decoder().values()
            self._words = [(token.content, token.special) for token in added]
            self.said.append(
                "not compared on text that begins with a space or stands behind a special token, where llama.cpp puts "
                f"one space more than this tokenizer (Metaspace, prepend_scheme {pre.prepend_scheme!r})"
            )

    def untouched(self, text: str, special: bool) -> str | None:
        """`text` as it is compared; None where it is not."""
        if self._compose is not None:
            text = self._compose(text)
        if self._words is not None:
            text = text.lstrip(f" {_SPACE}")
            if any(word in text for word, is_special in self._words if special or not is_special):
                return None
        return text


def _check(passed: bool, detail: str) -> LabCheck:
    return LabCheck(name="token ids", engine="llama.cpp", passed=passed, detail=detail)


def _first_difference(tokenizer: Tokenizer, ours: list[int], theirs: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    a, b = ([tokenizer.id_to_token(i) for i in ids[max(at - 1, 0) : at + 3]] for ids in (ours, theirs))
    return f"{len(ours)} and {len(theirs)} ids, at {at} {a} and llama.cpp {b}"


_MOST_SPECIAL = 48


def _with_special(tokenizer: Tokenizer) -> list[str]:
    """The added tokens in a text: between words, side by side, cut short. Of very many, some."""
    words = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    words = words[:: max(1, len(words) // _MOST_SPECIAL)]
    if not words:
        return []
    return [
        " and ".join(words),
        "".join(words),
        "x".join(word[:-1] for word in words),
        "".join(f"{word} \n{word}  a" for word in words),
    ]
