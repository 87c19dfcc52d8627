"""Counting tokens before a run: with the backend's own tokenizer, a tokenizer file, or its `usage`."""

from __future__ import annotations

import json
import re
import urllib.error
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from string import ascii_lowercase

from breakeven.engines.backend import Backend
from breakeven.errors import EngineError, UserError
from breakeven.traffic.prompts import Corpus, bare, make_corpus, mix, passages, rng
from breakeven.wire.lessons import LEAST_TOKENS, NO_ROOM, refusal_text, wants_more

Encode = Callable[[str], list[int] | None]

SHUFFLES = 32
"""Orders of the passages that a corpus is made of: more than 100,000 tokens, so that slices seldom meet."""
ENGLISH_TOKENS_PER_BYTE = 0.25
"""About four characters a token: the first guess where nothing counts tokens, and marked as one."""
_ANCHOR = "the"
_CLAUSE_BYTES = 28
"""Fewer counts to ask for than one a word, and still at most a few words of filling at the end of a prompt."""
_CANDIDATES = 240
_PROBES = (3, 17, 60, 150, 311, 700)
"""Lengths in tokens of the samples that must come out exact."""
_THREADS = 8
_TIMEOUT_S = 600.0
_PLAIN = re.compile(r"[A-Za-z]{2,12}")
_BREAK_AFTER = re.compile(r"(?<=[、。，；：！？])")


def encoder(backend: Backend, tokenizer: Path | None) -> Encode | None:
    """What turns text into token ids without special ones: the backend, the file, what its model has, or nothing.

    Raises UserError for a tokenizer file that is none.
    """
    if backend.tokenize(_ANCHOR) is not None:
        return backend.tokenize
    if tokenizer is None and "tokenizer" in backend.settings:
        tokenizer = Path(backend.settings["tokenizer"])
    if tokenizer is None:
        return None
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{tokenizer} is no tokenizer ({error}); give the model's tokenizer.json") from error
    return lambda text: list(loaded.encode(text, add_special_tokens=False).ids)


def token_corpus(encode: Encode, languages: tuple[str, ...], seed: int) -> Corpus:
    """The passages as token ids, in `SHUFFLES` orders. Raises EngineError when the tokenizer stops answering."""
    ids = [_ids(encode, passage + "\n") for passage in passages(languages)]
    pieces = [[b",%d" % token for token in passage] for passage in ids]
    singles = sorted({piece for passage in pieces for piece in passage})
    return make_corpus([piece for k in _orders(len(pieces), seed) for piece in pieces[k]], None, singles)


def word_corpus(encode: Encode, languages: tuple[str, ...], seed: int) -> tuple[Corpus, bool]:
    """The passages as clauses of a few words with their token counts, and whether samples came out exact.

    A clause counts what it adds to the text before it. Where such counts do not add up with this tokenizer, only
    words of one token are used.
    """
    texts = [_clauses(passage) for passage in passages(languages)]
    plain = sorted({word for passage in passages(("en",)) for word in passage.split() if _PLAIN.fullmatch(word)})
    plain = sorted(rng(seed, "singles").permutation(plain)[:_CANDIDATES].tolist())
    every = sorted({*plain, *(clause for text in texts for clause in text)})
    anchor = len(_ids(encode, _ANCHOR))
    with ThreadPoolExecutor(_THREADS) as threads:
        added = threads.map(lambda clause: max(1, len(_ids(encode, f"{_ANCHOR} {clause}")) - anchor), every)
        counts = dict(zip(every, added, strict=True))
        ones = [word for word in plain if counts[word] == 1]
        alone = threads.map(lambda word: len(_ids(encode, word)) == 1, ones)
        singles = [_led(word) for word, one in zip(ones, alone, strict=True) if one]
    if len(singles) < 2:  # a tokenizer of single bytes, as synthetic models have, counts the space as well
        singles = [letter.encode() for letter in ascii_lowercase if len(_ids(encode, _ANCHOR + letter)) == anchor + 1]
    if len(singles) < 2:
        text = " ".join(every)
        return guessed_corpus(languages, seed, len(_ids(encode, text)) / len(text.encode())), False
    corpus = _from_words(texts, counts, singles, seed)
    if _adds_up(encode, corpus):
        return corpus, True
    corpus = make_corpus(singles, [1] * len(singles), singles)
    return corpus, _adds_up(encode, corpus)


def guessed_corpus(languages: tuple[str, ...], seed: int, tokens_per_byte: float = ENGLISH_TOKENS_PER_BYTE) -> Corpus:
    """The passages as words, their tokens guessed from their length in bytes."""
    texts = [_clauses(passage) for passage in passages(languages)]
    counts = {clause: max(1, round(tokens_per_byte * (len(clause.encode()) + 1))) for text in texts for clause in text}
    singles = sorted(
        {word for passage in passages(("en",)) for word in passage.split() if re.fullmatch("[a-z]{3,5}", word)}
    )
    return _from_words(texts, counts, [_led(word) for word in singles], seed)


def plain_text(pieces: bytes) -> str:
    """The text that pieces of words stand for."""
    text: str = json.loads(b'"' + bare(pieces) + b'"')
    return text


def asked_usage(backend: Backend, path: str, prompt: dict[str, object], most: int = 1) -> int | None:
    """Prompt tokens the engine counts for a request of `most` tokens, of 16 where it gives no fewer; None: untold.

    Raises EngineError when the request fails.
    """
    fields = {"model": backend.served_model, "max_tokens": most, "stream": False, **prompt}
    try:
        asked = backend.dialect.acted(fields, chat="chat" in path)
        with backend.ask(path, asked, timeout_s=_TIMEOUT_S) as response:
            answer = json.load(response)
    except (OSError, HTTPException, ValueError) as error:
        status, said = 0, ""
        if isinstance(error, urllib.error.HTTPError):
            status, said = error.code, refusal_text(error.read())
        if NO_ROOM in said:
            return None
        if most < LEAST_TOKENS and wants_more(status, said):
            return asked_usage(backend, path, prompt, LEAST_TOKENS)
        why = f"{error}: {said}".replace(backend.key or "\0", "***") if said else error
        raise EngineError(
            f"{backend.url}{path} did not answer a request of few tokens ({why}); check that it is up, serves "
            f"{backend.served_model!r} and takes the key"
        ) from error
    usage = answer.get("usage") if isinstance(answer, dict) else None
    counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return counted if isinstance(counted, int) and counted >= 0 else None


def _ids(encode: Encode, text: str) -> list[int]:
    ids = encode(text)
    if ids is None:
        raise EngineError("the engine tokenized one text and not another; see its log, or give a tokenizer file")
    return ids


def _clauses(passage: str) -> list[str]:
    """A text in stretches of a few words; scripts without spaces are cut after punctuation."""
    clauses: list[str] = []
    for word in _BREAK_AFTER.sub(" ", passage).split():
        if clauses and len(f"{clauses[-1]} {word}".encode()) <= _CLAUSE_BYTES:
            clauses[-1] += f" {word}"
        else:
            clauses.append(word)
    return clauses


def _orders(n: int, seed: int) -> list[int]:
    draw = rng(seed, "corpus")
    return [k for _ in range(SHUFFLES) for k in draw.permutation(n).tolist()]


def _from_words(texts: Sequence[Sequence[str]], counts: dict[str, int], singles: Sequence[bytes], seed: int) -> Corpus:
    order = _orders(len(texts), seed)
    led = {word: _led(word) for text in texts for word in text}
    return make_corpus(
        [led[word] for k in order for word in texts[k]],
        [counts[word] for k in order for word in texts[k]],
        singles,
    )


def _led(word: str) -> bytes:
    return b" " + json.dumps(word, ensure_ascii=False)[1:-1].encode()


def _adds_up(encode: Encode, corpus: Corpus) -> bool:
    """True when samples made the way prompts are have as many tokens as they should."""
    for n in _PROBES:
        for key in (n, n + 1):
            salt = corpus.salt(key, n, 0)
            text = salt + corpus.fill(mix(key), max(0, n - corpus.salt_tokens))
            if len(_ids(encode, plain_text(text))) != n:
                return False
    return True
