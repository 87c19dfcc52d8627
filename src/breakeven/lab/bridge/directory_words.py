"""How a Hugging Face directory cuts text into tokens and says them again, without torch: for what runs its weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tokenizers import Tokenizer

from breakeven.engines.synthesis.write import byte_alphabet
from breakeven.errors import UserError
from breakeven.model.readers.hf import CONFIG, read_json

_BYTE = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")
_SPACE = "\u2581"
_BESIDE = """
tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt tokenizer.model
chat_template.jinja chat_template.json generation_config.json
"""
BESIDE_WEIGHTS = tuple(_BESIDE.split())
"""What lies beside weights and says nothing of them."""


def tokenizer_of(path: Path) -> Tokenizer:
    """Raises UserError for a directory without tokenizer.json."""
    try:
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the library raises its own, bare
        raise UserError(f"{path}: tokenizer.json cannot be read ({error}); give the whole directory") from error
    # What looks like a special token in a text is text, as it is to llama.cpp's tokenizer here.
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def pieces_of(tokenizer: Tokenizer) -> dict[int, bytes]:
    """What each token says in bytes: in GPT-2's stand-ins for bytes, or SentencePiece's spelling."""
    described = json.loads(tokenizer.to_str())
    by_bytes = "ByteLevel" in json.dumps([described.get("decoder"), described.get("pre_tokenizer")])
    special = {each["id"] for each in described.get("added_tokens", ()) if each["special"]}
    # The token for what has none spells nothing of it, whether or not it is called special.
    unknown = described["model"].get("unk_token")
    special |= {described["model"].get("unk_id"), None if unknown is None else tokenizer.token_to_id(unknown)} - {None}
    added = {each["id"] for each in described.get("added_tokens", ())}
    of_letter = {letter: value for value, letter in enumerate(byte_alphabet())}
    pieces: dict[int, bytes] = {}
    for word, token in tokenizer.get_vocab(with_added_tokens=True).items():
        if token in special:
            continue
        if token in added:
            pieces[token] = word.encode()
        elif by_bytes:
            pieces[token] = b"".join(
                bytes([of_letter[letter]]) if letter in of_letter else letter.encode() for letter in word
            )
        elif found := _BYTE.match(word):
            pieces[token] = bytes([int(found[1], 16)])
        else:
            pieces[token] = word.replace(_SPACE, " ").encode()
    return pieces


def end_tokens(path: Path) -> list[int]:
    """Ids that end an answer, by both files that say it, in their order."""
    return said_tokens(path, "eos_token_id")


def said_tokens(path: Path, key: str) -> list[int]:
    """What `key` is in the configuration and in that of generating: one id or several in each."""
    found: list[int] = []
    for name in (CONFIG, "generation_config.json"):
        if (path / name).is_file():
            said = read_json(path / name).get(key)
            found += [each for each in (said if isinstance(said, list) else [said]) if type(each) is int]
    return list(dict.fromkeys(found))
