"""Request bodies of a schedule: exact in tokens, distinct, and cheap to make while the run goes on; or as given.

Everything that asks a tokenizer happens in `prepare_bodies`, before the run; a body is then a slice of bytes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.engines.backend import Backend
from breakeven.errors import UserError
from breakeven.measure.token_counts import asked_usage, encoder, guessed_corpus, plain_text, token_corpus, word_corpus
from breakeven.traffic.prompt_file import OwnRequest, prompts_of, tokens_of
from breakeven.traffic.prompts import Corpus, bare, mix, rng
from breakeven.traffic.schedule import Schedule
from breakeven.wire.dialects import completion_fields

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
TEMPERATURE = 1.0
TOP_K = 40
"""As in the comparison without load: sampled text keeps experts as busy as real use does."""

_USER, _REPLY, _SEED = 1, 2, 3


@dataclass(frozen=True, slots=True)
class _Source:
    """Text for one engine, and what was found out about its counting."""

    corpus: Corpus
    exact: bool
    as_text: bool
    overhead: int = 0
    turn_overhead: int = 0


@dataclass(frozen=True, slots=True)
class OwnBodies:
    """A person's own prompts: `members[r]` of the JSON body, and `tokens[r]` of prompt as far as they can be counted.

    `asked_N`: which of them each row of the schedule asks.
    """

    members: tuple[bytes, ...]
    tokens: tuple[int, ...]
    asked_N: NDArray[np.int64]

    def of(self, i: int) -> int:
        """Which of them request `i` is."""
        return int(self.asked_N[i % len(self.asked_N)])


_KEPT = 4
_kept: dict[tuple[object, ...], _Source] = {}


@dataclass(frozen=True, slots=True)
class Bodies:
    """The bodies of all requests of one schedule for one backend; beyond the last row lengths repeat, texts do not.

    `exact`: every prompt has the tokens the schedule asks for, by the backend's tokenizer. `overhead` are tokens that a
    chat template (or a beginning-of-text token) adds to the first message, `turn_overhead` to each later one; texts are
    shorter by so much, one token at least. `own`: these instead of texts made here.
    """

    path: str
    exact: bool
    ignore_eos: bool
    overhead: int
    turn_overhead: int
    seed: int
    salt: int
    as_text: bool
    corpus: Corpus
    tail: bytes
    limit: bytes
    """How the backend calls `max_tokens`."""
    seeds: bytes | None
    """How it calls `seed`; None: it is sent none."""
    prompt_N: NDArray[np.int32]
    output_N: NDArray[np.int32]
    turn_N: NDArray[np.int32]
    blocks: tuple[tuple[int, ...], ...]
    block_tokens: int
    own: OwnBodies | None = None

    def body(self, i: int) -> bytes:
        """JSON of request `i`, the same bytes every time."""
        texts = self._texts(i) if self.own is None else []
        if self.own is not None:
            prompt = self.own.members[self.own.of(i)]
        elif self.path == CHAT:
            roles = (b"user", b"assistant")
            messages = [b'{"role":"%b","content":"%b"}' % (roles[j % 2], bare(text)) for j, text in enumerate(texts)]
            prompt = b'"messages":[%b]' % b",".join(messages)
        else:
            prompt = (b'"prompt":"%b"' if self.as_text else b'"prompt":[%b]') % bare(b"".join(texts))
        head = b'{%b,"%b":%d,' % (prompt, self.limit, self.max_tokens(i))
        if self.seeds is None:
            return head + self.tail
        return b'%b"%b":%d,%b' % (head, self.seeds, mix(i * 4 + _SEED, self.seed) & 0x7FFFFFFF, self.tail)

    def max_tokens(self, i: int) -> int:
        """Output tokens asked for."""
        return int(self.output_N[i % len(self.output_N)])

    def prompt_tokens(self, i: int) -> int:
        """Prompt tokens asked for, history included, as the engine should count them."""
        if self.own is not None:
            return self.own.tokens[self.own.of(i)]
        k = i % len(self.prompt_N)
        first = k - int(self.turn_N[k])
        return int(self.prompt_N[first : k + 1].sum()) + int(self.output_N[first:k].sum())

    def _texts(self, i: int) -> list[bytes]:
        """The messages of request `i`, questions and answers in turn, each led by one separator byte."""
        k = i % len(self.prompt_N)
        turns = int(self.turn_N[k])
        texts = []
        for j in range(turns + 1):
            row, at = k - turns + j, i - turns + j
            if j == 0 and self.blocks and self.blocks[row]:
                texts.append(self._shared(at, row))
            elif j == 0:
                texts.append(self._salted(at, max(1, int(self.prompt_N[row]) - self.overhead)))
            else:
                n = max(1, int(self.prompt_N[row]) - self.turn_overhead)
                texts.append(self._message(mix(at * 4 + _USER, self.seed), n))
            if j < turns:
                texts.append(self._message(mix(at * 4 + _REPLY, self.seed), int(self.output_N[row])))
        return texts

    def _salted(self, at: int, n: int) -> bytes:
        """`n` tokens with a salt of their own in front."""
        salt = self.corpus.salt(at, n, self.salt)
        return salt + self.corpus.fill(mix(at * 4 + _USER, self.seed), n - self.corpus.salt_tokens)

    def _message(self, key: int, n: int) -> bytes:
        """`n` tokens of a later message. Its first word has no space before it in a chat, so it must be a single."""
        singles = self.corpus.singles
        return singles[key % len(singles)] + self.corpus.fill(key >> 8, n - 1)

    def _shared(self, i: int, k: int) -> bytes:
        """A prompt of blocks: equal ids give equal text in every request of this run."""
        left = max(1, int(self.prompt_N[k]) - self.overhead)
        parts = [self.corpus.salt(0, left, self.salt)]
        left -= self.corpus.salt_tokens
        for block in self.blocks[k]:
            if left <= 0:
                break
            n = min(left, self.block_tokens)
            parts.append(self.corpus.salt(block, n, self.seed))
            parts.append(self.corpus.fill(mix(block * 4, self.seed), n - self.corpus.salt_tokens))
            left -= n
        if left > 0:
            parts.append(self._salted(i, left))
        return b"".join(parts)


def prepare_bodies(backend: Backend, schedule: Schedule, *, tokenizer: Path | None = None, salt: str = "") -> Bodies:
    """Bodies of `schedule` for `backend`; `salt` names the run, so that another one meets no cache this one filled.

    Token ids where the backend takes them and a tokenizer is at hand (its own, else the file `tokenizer`); else text,
    counted with that tokenizer and corrected by what the chat template adds; else text of about the right length,
    guessed from `usage`. Asks the backend for up to four completions of one token. A person's own prompts go out as
    they are, and are only counted. Raises UserError for a tokenizer file or language that is not there, and for a
    prompt longer than the engine keeps; EngineError when the backend does not answer.
    """
    workload = schedule.workload
    languages, seed = workload.languages, workload.seed
    chat = workload.chat or backend.chat_only
    own = None
    if workload.prompts is not None:
        file = prompts_of(workload.prompts, workload.turns)
        chat = chat or file.chat
        own = _own(backend, tokenizer, schedule, file.requests, chat)
    path = CHAT if chat else COMPLETIONS
    if own is not None:
        source = _Source(guessed_corpus(languages, seed), exact=False, as_text=True)
    else:
        turns = int(schedule.turn_N.max(initial=0)) if chat else 0
        source = _source(backend, tokenizer, path, languages, seed, turns)
    fields = completion_fields(
        backend,
        max_tokens=0,
        seed=0,
        temperature=TEMPERATURE,
        stream=workload.stream,
        ignore_eos=True,
        top_k=TOP_K,
        cache_prompt=workload.sharing or bool((schedule.turn_N > 0).any()),
        chat=chat,
    )
    limit, seeds = (backend.dialect.name_of(name, chat=chat) for name in ("max_tokens", "seed"))
    if limit is None:
        raise UserError(f"{backend.url} is asked without max_tokens, so its answers have no end; let body keep it")
    del fields[limit]
    if seeds is not None and fields.pop(seeds, None) is None:
        seeds = None  # it keeps requests with a seed out of its batch
    return Bodies(
        path=path,
        exact=source.exact,
        ignore_eos=backend.takes_extra_fields,
        overhead=source.overhead,
        turn_overhead=source.turn_overhead,
        seed=mix(seed),
        salt=int(rng(seed, "salt", salt).integers(1 << 62)),
        as_text=source.as_text,
        corpus=source.corpus,
        tail=msgspec.json.encode(fields)[1:],
        limit=limit.encode(),
        seeds=None if seeds is None else seeds.encode(),
        prompt_N=schedule.prompt_N,
        output_N=schedule.output_N,
        turn_N=schedule.turn_N,
        blocks=schedule.blocks if workload.sharing else (),
        block_tokens=schedule.block_tokens,
        own=own,
    )


_COUNTERS = 8


def _own(
    backend: Backend, tokenizer: Path | None, schedule: Schedule, requests: tuple[OwnRequest, ...], chat: bool
) -> OwnBodies:
    """The requests of the schedule, counted where something counts. Raises UserError for one that is too long."""
    assert schedule.asked_N is not None
    if int(schedule.asked_N.max()) >= len(requests):
        raise UserError("the schedule asks for prompts that their file does not hold; draw it anew")
    used, asked_N = np.unique(schedule.asked_N, return_inverse=True)
    chosen = [requests[k] for k in used.tolist()]
    encode = encoder(backend, tokenizer)

    def counted(request: OwnRequest) -> int:
        ids = None if encode is None else encode(request.plain)
        return tokens_of(len(request.plain.encode())) if ids is None else len(ids)

    with ThreadPoolExecutor(_COUNTERS) as threads:
        counts = list(threads.map(counted, chosen))
    most = int(backend.settings.get("context_per_slot", 0))
    outputs = np.zeros(len(chosen), np.int64)
    np.maximum.at(outputs, asked_N, schedule.output_N)
    for request, tokens, output in zip(chosen, counts, outputs.tolist(), strict=True):
        if most and tokens + output > most:
            raise UserError(
                f"{request.place}: {tokens:,} tokens and {output:,} of answer are more than the {most:,} that "
                f"{backend.model} keeps of one request; shorten the prompt, or its answer with --output"
            )
    members = (
        request.members if chat or request.text is None else msgspec.json.encode({"prompt": request.text})[1:-1]
        for request in chosen
    )
    return OwnBodies(tuple(members), tuple(counts), np.asarray(asked_N, np.int64))


def _source(
    backend: Backend, tokenizer: Path | None, path: str, languages: tuple[str, ...], seed: int, turns: int
) -> _Source:
    """The text for one engine, kept for as long as it runs: a search for capacity prepares many schedules."""
    key = (backend.url, backend.pid, backend.load_s, backend.served_model, tokenizer, path, languages, seed, turns > 0)
    if key not in _kept:
        encode = encoder(backend, tokenizer)
        if encode is None:
            source = _Source(_guess(backend, path, languages, seed), exact=False, as_text=True)
        elif path == COMPLETIONS and backend.takes_token_ids:
            source = _Source(token_corpus(encode, languages, seed), exact=True, as_text=False)
        else:
            corpus, exact = word_corpus(encode, languages, seed)
            overhead, turn_overhead, agrees = _overheads(backend, path, corpus, turns)
            source = _Source(corpus, exact and agrees, as_text=True, overhead=overhead, turn_overhead=turn_overhead)
        if len(_kept) >= _KEPT:
            _kept.pop(next(iter(_kept)))
        _kept[key] = source
    return _kept[key]


def _prompt(path: str, messages: list[bytes]) -> dict[str, object]:
    """The prompt field of a request for these messages, questions and answers in turn."""
    texts = [plain_text(message) for message in messages]
    if path == COMPLETIONS:
        return {"prompt": " ".join(texts)}
    return {"messages": [{"role": ("user", "assistant")[j % 2], "content": text} for j, text in enumerate(texts)]}


def _overheads(backend: Backend, path: str, corpus: Corpus, turns: int) -> tuple[int, int, bool]:
    """Tokens the template adds to the first message and to each later question with the answer before it.

    Also whether all probes agree; False as well when the engine does not count.
    """
    n = 24
    texts = [corpus.salt(k, n, 0) + corpus.fill(mix(k), n - corpus.salt_tokens) for k in range(5)]
    long = corpus.salt(9, 3 * n, 0) + corpus.fill(mix(9), 3 * n - corpus.salt_tokens)
    first = asked_usage(backend, path, _prompt(path, texts[:1]))
    other = asked_usage(backend, path, _prompt(path, [long]))
    if first is None or other is None:
        return 0, 0, False
    overhead = first - n
    agrees = overhead >= 0 and other - 3 * n == overhead
    if turns == 0:
        return max(0, overhead), 0, agrees
    two = asked_usage(backend, path, _prompt(path, texts[:3]))
    three = asked_usage(backend, path, _prompt(path, texts[:5]))
    if two is None or three is None:
        return max(0, overhead), 0, False
    each = two - 3 * n - overhead
    return max(0, overhead), max(0, each), agrees and each >= 0 and three - 5 * n - overhead == 2 * each


def _guess(backend: Backend, path: str, languages: tuple[str, ...], seed: int) -> Corpus:
    """A corpus whose tokens per byte come from two answers of the engine; without them, those of English text."""
    corpus = guessed_corpus(languages, seed)
    short, long = corpus.fill(7, 20), corpus.fill(7, 300)
    few = asked_usage(backend, path, _prompt(path, [short]))
    many = asked_usage(backend, path, _prompt(path, [long]))
    if few is None or many is None or many <= few:
        return corpus
    return guessed_corpus(languages, seed, (many - few) / (len(long) - len(short)))
