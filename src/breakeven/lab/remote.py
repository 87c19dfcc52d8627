"""A model behind a URL: what it answers, and how likely it finds a text where its server tells.

Servers of OpenAI's kind tell the log-probabilities of a prompt in one of two forms, if at all (`FORMS`). Some take the
request and leave them out, or send numbers of something else; a short text shows which, and what cannot be had is said
rather than guessed: a model whose prompts cannot be read is given tasks to answer, and no text.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.engines.openai_url import connect
from breakeven.errors import EngineError, UserError
from breakeven.lab.corpus import Block, fewest_in_turn
from breakeven.lab.lockstep import extra_space
from breakeven.lab.tally import BlockScore, Tally, bits
from breakeven.lab.tasks import OnStep, Prompt, Said
from breakeven.wire.client import GetError, HttpClient
from breakeven.wire.loop import run_async
from breakeven.wire.meaning import error_text

AT_ONCE = 4
"""Questions under way at a time: servers batch them, and one alone would wait for each."""
TIMEOUT_S = 600.0
_TRIES = 4
FIRST_WAIT_S = 1.0
"""Before a second try; twice as long before each further one."""
_ROUNDING = 1e-6
"""A likelihood this much above 1 is one that was rounded."""
_BUSY = frozenset({429, 500, 502, 503, 504})
_ANSWER_BYTES = 64 << 20
_PROBE = "The cat sat on the mat, and the dog lay by the door."
_DIFFERENT = 4
POSSIBLE = (
    "give its weights (a .gguf, read in the process), serve it with vLLM (prompt_logprobs) or another server that "
    "echoes log-probabilities, or give --tasks, which it can answer"
)


class _Logprobs(msgspec.Struct):
    """OpenAI's of completions; chat's and llama.cpp's have other fields, and none of these."""

    token_logprobs: list[float | None] | None = None
    tokens: list[str] | None = None


class _TokenLogprob(msgspec.Struct):
    logprob: float
    decoded_token: str | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _Option(msgspec.Struct):
    text: str | None = None
    message: _Message | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    prompt_logprobs: list[dict[str, _TokenLogprob] | None] | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Reply(msgspec.Struct):
    choices: list[_Option]
    usage: _Usage | None = None


Token = tuple[float | None, str | None]
"""Log-probability and text of one token; None where it is not told."""


@dataclass(frozen=True, slots=True)
class Form:
    """One way to ask for a prompt's log-probabilities: fields of the request, and who reads them of the answer."""

    fields: Mapping[str, int | bool]
    read: Callable[[_Reply], list[Token] | None]


def _echoed(reply: _Reply) -> list[Token] | None:
    told = reply.choices[0].logprobs
    count = None if reply.usage is None else reply.usage.prompt_tokens
    if told is None or told.token_logprobs is None or count is None or len(told.token_logprobs) < count:
        return None
    texts: Sequence[str | None] = told.tokens or [None] * len(told.token_logprobs)
    return list(zip(told.token_logprobs, texts, strict=False))[:count]  # behind them stands what was generated


def _prompted(reply: _Reply) -> list[Token] | None:
    told = reply.choices[0].prompt_logprobs
    if told is None or any(each is not None and len(each) != 1 for each in told):
        return None
    alone = [_TokenLogprob(math.nan) if each is None else next(iter(each.values())) for each in told]
    return [(None if math.isnan(each.logprob) else each.logprob, each.decoded_token) for each in alone]


@dataclass(frozen=True, slots=True)
class Weighed:
    """What a text's tokens cost, from the second of the text on: the first has nothing before it."""

    nats: NDArray[np.float32]
    n_bytes: int
    """Of the text that these tokens stand for."""


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        # vLLM: of each token of the prompt, and with 0 of no other.
        "prompt_logprobs": Form({"prompt_logprobs": 0}, _prompted),
        # OpenAI's own of old; vLLM, SGLang and llama-cpp-python too.
        "echo": Form({"echo": True, "logprobs": 1}, _echoed),
    }
)


class Remote:
    """A model at `http(s)://host[:port]/v1#name`, after it has answered. The key is as for every URL."""

    def __init__(self, url: str, *, at_once: int = AT_ONCE, timeout_s: float = TIMEOUT_S) -> None:
        """Raises UserError where nobody answers, lets us in or has the model."""
        self.url = url
        self.backend = connect(url)
        self.name = self.backend.model
        self._at_once, self._timeout_s = at_once, timeout_s
        self._form = None if self.backend.chat_only else self._found_form()

    @property
    def weighs(self) -> bool:
        """Its server tells how likely a prompt is."""
        return self._form is not None

    @property
    def remarks(self) -> Sequence[str]:
        """What must be said beside its answers."""
        if not self.backend.chat_only:
            return ()
        return (f"{self.name} was asked by chat messages, in its own template, where others complete the bare prompt.",)

    @property
    def why_not(self) -> str:
        """Why it cannot be given text, and what is possible instead."""
        how = "has chat alone" if self.backend.chat_only else "gives no log-probabilities of a prompt"
        return f"{self.url}: its server {how}, so no bits per byte can be had of it; {POSSIBLE}"

    def read(self, texts: Sequence[str], on_step: OnStep = lambda what, share: None) -> list[Weighed]:
        """How each text's tokens are predicted. Raises UserError where its server does not tell."""
        return [_weighed(text, tokens) for text, tokens in zip(texts, self._tokens(texts, on_step), strict=True)]

    def weigh(self, asked: Sequence[tuple[str, Sequence[str]]], on_step: OnStep) -> list[list[float]]:
        """Log-likelihood of each continuation of each prompt: of both together, less that of the prompt."""
        texts = [text for prompt, after in asked for text in (prompt, *(prompt + each for each in after))]
        sums = iter([sum(value or 0.0 for value, _ in tokens) for tokens in self._tokens(texts, on_step)])
        found = []
        for _, after in asked:
            before = next(sums)
            found.append([next(sums) - before for _ in after])
        return found

    def answer(self, asked: Sequence[Prompt], on_step: OnStep) -> list[Said]:
        """The likeliest answer to each, as a completion where there are such, else as a message."""
        replies = self._ask([self._answering(each) for each in asked], on_step)
        return [_said(reply) for reply in replies]

    def _found_form(self) -> Form | None:
        """The first form whose numbers can be those of the text."""
        for form in FORMS.values():
            try:
                (reply,) = self._ask([self._weighing(_PROBE, form)], tries=1)
                values = [value for value, _ in self._told(form, reply)[1:]]
            except (UserError, EngineError):
                continue
            # As many numbers as a text of a dozen words has tokens, that differ: some send zeros, or of the answer.
            if len(values) >= len(_PROBE.split()) - 1 and len(set(values)) >= _DIFFERENT:
                return form
        return None

    def _tokens(self, texts: Sequence[str], on_step: OnStep) -> list[list[Token]]:
        form = self._form
        if form is None:
            raise UserError(self.why_not)
        replies = self._ask([self._weighing(text, form) for text in texts], on_step)
        return [self._told(form, reply) for reply in replies]

    def _told(self, form: Form, reply: _Reply) -> list[Token]:
        """A prompt's tokens, of which the first alone may lack its number."""
        told = form.read(reply) if reply.choices else None
        if not told or any(value is None for value, _ in told[1:]):
            raise EngineError(f"{self.url}: its answer lacks log-probabilities of the prompt's tokens")
        if not all(value is None or (math.isfinite(value) and value <= _ROUNDING) for value, _ in told):
            raise EngineError(f"{self.url}: its log-probabilities of the prompt are no such numbers")
        return [(None, told[0][1]), *told[1:]]

    def _weighing(self, text: str, form: Form) -> tuple[str, bytes]:
        body = {"model": self.backend.served_model, "prompt": text, "max_tokens": 1, "temperature": 0, **form.fields}
        return "/v1/completions", msgspec.json.encode(self.backend.dialect.acted(body, chat=False))

    def _answering(self, asked: Prompt) -> tuple[str, bytes]:
        body: dict[str, object] = {
            "model": self.backend.served_model,
            "max_tokens": asked.max_tokens,
            "temperature": 0,
            "stream": False,
        }
        if asked.stop:
            body["stop"] = list(asked.stop)
        if self.backend.chat_only:
            body["messages"] = [{"role": "user", "content": asked.text}]
            return "/v1/chat/completions", msgspec.json.encode(self.backend.dialect.acted(body, chat=True))
        body["prompt"] = asked.text
        return "/v1/completions", msgspec.json.encode(self.backend.dialect.acted(body, chat=False))

    def _ask(
        self, asked: Sequence[tuple[str, bytes]], on_step: OnStep = lambda what, share: None, tries: int = _TRIES
    ) -> list[_Reply]:
        """The answers, in order. Raises UserError for a refusal, EngineError for what is no answer."""
        return run_async(lambda: self._all(asked, on_step, tries))

    async def _all(self, asked: Sequence[tuple[str, bytes]], on_step: OnStep, tries: int) -> list[_Reply]:
        dialect = self.backend.dialect
        secret = [(name.lower().encode(), value.encode()) for name, value in self.backend.headers().items()]
        client = HttpClient(
            self.backend.url,
            timeouts=_Waits(self._timeout_s),
            secret=secret,
            tls=dialect.tls_files,
            proxy=dialect.proxy or None,
            socket=dialect.socket or None,
            allow_link_local=True,
        )
        turn = asyncio.Semaphore(self._at_once)
        done = 0

        async def one(path: str, body: bytes) -> _Reply:
            nonlocal done
            async with turn:
                reply = await self._one(client, path, body, tries)
            done += 1
            on_step("asking", done / len(asked))
            return reply

        try:
            return await asyncio.gather(*(one(path, body) for path, body in asked))
        finally:
            await client.close()

    async def _one(self, client: HttpClient, path: str, body: bytes, tries: int) -> _Reply:
        where, told = f"{self.backend.url}{path}", ""
        for attempt in range(tries):
            if attempt:
                await asyncio.sleep(FIRST_WAIT_S * 2.0 ** (attempt - 1))
            try:
                status, content = await client.get(
                    self.backend.below(path), body=body, timeout_s=self._timeout_s, limit_bytes=_ANSWER_BYTES
                )
            except GetError as error:
                told = str(error)
                continue
            if status == 200:
                try:
                    return msgspec.json.decode(content, type=_Reply)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise EngineError(f"{where} answered with something else than a completion ({error})") from error
            told = f"status {status}: {error_text(content)}"
            if status not in _BUSY:
                break
        # An answer that did not come is no wrong answer, so nothing is said of the model.
        raise UserError(f"{where} did not answer ({told}); see to the server and evaluate again")


@dataclass(frozen=True, slots=True)
class _Waits:
    """An answer in one piece is silent until it is whole."""

    total_s: float
    connect_s: float = 15.0
    first_byte_s: None = None

    @property
    def idle_s(self) -> float:
        return self.total_s


def connected(urls: Sequence[str], taken: Sequence[str], *, needs_text: bool) -> list[Remote]:
    """The models behind `urls`, each with a name of its own beside those `taken`.

    Raises UserError for one that cannot be asked, or, with `needs_text`, whose server tells nothing of a prompt.
    """
    found: list[Remote] = []
    for url in urls:
        remote = Remote(url)
        if needs_text and not remote.weighs:
            raise UserError(remote.why_not)
        if remote.name in (*taken, *(other.name for other in found)):
            remote.name = url
        found.append(remote)
    return found


def tallied(
    remote: Remote,
    blocks: Sequence[Block],
    order: Sequence[int],
    source: Tally | None = None,
    budget_s: float | None = None,
    on_step: OnStep = lambda what, share: None,
) -> Tally:
    """What `remote` scores on the blocks of `order` as far as `budget_s` reaches; against `source` by bits."""
    tally, began, step = Tally(blocks, source), time.monotonic(), 4 * AT_ONCE
    for start in range(0, len(order), step):
        if budget_s is not None and start >= fewest_in_turn(blocks) and time.monotonic() - began > budget_s:
            break
        some = order[start : start + step]
        for number, read in zip(some, remote.read([blocks[number].text for number in some]), strict=True):
            if len(read.nats):
                # Its time is the server's and the way's, and of several at once.
                tally.scores[number] = BlockScore(bits(read.nats), read.n_bytes, len(read.nats), seconds=0.0)
        on_step(f"scoring {remote.name}", min(1.0, (start + step) / len(order)))
    return tally


def _weighed(text: str, tokens: Sequence[Token]) -> Weighed:
    first = 0 if _begins(text, tokens[0][1]) or len(tokens) < 2 or not _begins(text, tokens[1][1]) else 1
    nats = np.array([-(value or 0.0) for value, _ in tokens[first + 1 :]], dtype=np.float32)
    n_bytes, said = len(text.encode()), tokens[first][1]
    # A token of part of a letter has no text of its own; one of several words to a token is as long as most.
    lost = round(n_bytes / max(1, len(tokens) - first))
    if said and _begins(text, said):
        lost = len(said.encode()) - extra_space(said.encode(), text)
    return Weighed(np.maximum(nats, np.float32(0)), max(1, n_bytes - min(lost, n_bytes - 1)))


def _begins(text: str, token: str | None) -> bool:
    """Whether a text begins with what a token says; one that stands before the text says something else."""
    return token is not None and bool(token.strip()) and text.lstrip().startswith(token.strip())


def _said(reply: _Reply) -> Said:
    if not reply.choices:
        raise EngineError("a completion without choices")
    option = reply.choices[0]
    text = option.text if option.message is None else option.message.content
    count = None if reply.usage is None else reply.usage.completion_tokens
    return Said(text or "", count, option.finish_reason == "length")
