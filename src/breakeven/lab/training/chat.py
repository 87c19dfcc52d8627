"""Conversations to tune on: a line of JSON each, in the words of the model's own chat template.

Only what the assistant says is learned. Which of a conversation's tokens those are is found by rendering it up to each
answer: the text that is there before one is context, the text that an answer adds is what counts.

Legend: N rows, T tokens a row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray
from tokenizers import Tokenizer

from breakeven.errors import NotSupportedError, UserError, one_line
from breakeven.lab.bridge.directory_words import tokenizer_of
from breakeven.lab.corpus import ALL, LEAST_BLOCKS, Block
from breakeven.lab.training.texts import LEAST_TRAINING, Ids
from breakeven.model.readers.bounded import bounded_json
from breakeven.model.readers.hf import read_json

Message = Mapping[str, object]

_DAY = datetime(2025, 1, 1)
"""What templates that write today write: the same command makes the same rows on any day."""
_LEAST = LEAST_BLOCKS + 2 + LEAST_TRAINING
"""Conversations: those that judge, those that choose, those that train."""
_MARKED = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""Marks around answers that some templates have for trainers; they render to nothing."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in turn; `place` in its file, for errors."""

    place: str
    messages: Sequence[Message]

    def plain(self) -> str:
        """What is said in it, without a template: text that any model can be judged on."""
        return "\n\n".join(str(message["content"]) for message in self.messages) + "\n"


def read_conversations(path: Path) -> list[Conversation]:
    """Of a file with `{"messages": [{"role": ..., "content": ...}, ...]}` on each line.

    Raises UserError naming the line that is no conversation with an answer, and for too few of them.
    """
    try:
        # JSON may hold the line ends of Unicode as they are.
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is not UTF-8"
        raise UserError(f"{path}: cannot be read ({why}); give a file of JSON lines") from None
    found = [_conversation(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if len(found) < _LEAST:
        raise UserError(
            f"{path}: {len(found)} conversations, and {_LEAST} are the least: {LEAST_TRAINING} to train on, 2 to "
            f"choose by, {LEAST_BLOCKS} to judge by"
        )
    return found


def _conversation(place: str, line: str) -> Conversation:
    try:
        read = bounded_json(line.encode())
    except ValueError as error:
        raise UserError(f"{place}: is no JSON ({one_line(str(error))}); give one conversation a line") from None
    messages = read.get("messages") if isinstance(read, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UserError(f'{place}: has no messages; give {{"messages": [{{"role": "user", "content": "..."}}, ...]}}')
    for message in messages:
        whole = isinstance(message, dict) and isinstance(message.get("role"), str)
        if not whole or not isinstance(message.get("content"), str):
            raise UserError(f"{place}: a message has no role and content that are text; give both")
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        raise UserError(f"{place}: nothing is said by the assistant, so there is nothing to learn; leave the line out")
    return Conversation(place, messages)


def as_blocks(conversations: Sequence[Conversation]) -> list[Block]:
    """A block each, to be split as texts are; its document is its number."""
    return [Block(ALL, ALL, str(number), each.plain()) for number, each in enumerate(conversations)]


class ChatWords:
    """A model's chat template and tokenizer."""

    def __init__(self, directory: Path) -> None:
        """Raises NotSupportedError for a model without a template, UserError for one that cannot be read."""
        config = _optional(directory / "tokenizer_config.json")
        source = _template(directory, config)
        if source is None:
            raise NotSupportedError(f"{directory.name} has no chat template, so it knows no conversations; give --text")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _DAY.strftime}
        self._special = {
            key: value.get("content") if isinstance(value, dict) else value
            for key, value in config.items()
            if key.endswith("_token") and isinstance(value, str | dict)
        }
        try:
            self._template = environment.from_string(_MARKED.sub("", source))
        except TemplateError as error:
            raise UserError(f"{directory.name}: its chat template cannot be read ({one_line(str(error))})") from error
        self._tokenizer: Tokenizer = tokenizer_of(directory)
        # A template's own marks are special tokens; what people wrote cannot be told from them here, as in servers.
        self._tokenizer.encode_special_tokens = False

    def render(self, place: str, messages: Sequence[Message], *, answer: bool = False) -> str:
        """The text of a conversation; `answer`: up to where the assistant begins to speak."""
        try:
            return self._template.render(messages=messages, add_generation_prompt=answer, **self._special)
        except (TemplateError, TypeError) as error:
            raise UserError(f"{place}: the chat template does not take it ({one_line(str(error))})") from error

    def tokens_of(self, conversation: Conversation) -> tuple[list[int], list[bool]]:
        """Its ids, and which of them an answer adds. Raises UserError where the template rewrites what came before."""
        place, messages = conversation.place, conversation.messages
        text = self.render(place, messages)
        spans: list[tuple[int, int]] = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            whole = self.render(place, messages[: turn + 1])
            before = self.render(place, messages[:turn], answer=True) if turn else ""
            if not whole.startswith(before):
                before = self.render(place, messages[:turn])
            if not text.startswith(whole) or not whole.startswith(before):
                raise UserError(
                    f"{place}: the chat template writes turn {turn + 1} otherwise once others follow, so what is "
                    "learned would not be what is asked; give conversations of one answer"
                )
            spans.append((len(before), len(whole)))
        coded = self._tokenizer.encode(text, add_special_tokens=False)
        heeded = [any(begin <= at < end for begin, end in spans) for at, _ in coded.offsets]
        return list(coded.ids), heeded


def rows_of_chat(
    conversations: Sequence[Conversation], words: ChatWords, tokens: int, end: int | None
) -> tuple[Ids, NDArray[np.bool_]]:
    """A row (N, T) a conversation, cut or filled to `tokens`, and which tokens count; one whose answers were cut off is
    left out. Raises UserError where none is left."""
    rows, heed = [], []
    for each in conversations:
        ids, answers = (one[:tokens] for one in words.tokens_of(each))
        if not any(answers[1:]):
            continue
        rest = tokens - len(ids)
        rows.append(ids + [end or 0] * rest)
        heed.append(answers + [False] * rest)
    if not rows:
        raise UserError(f"no answer begins within the first {tokens} tokens of its conversation; give more --tokens")
    return np.array(rows, np.int32), np.array(heed, np.bool_)


def _template(directory: Path, config: Mapping[str, object]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    said = config.get("chat_template")
    if isinstance(said, list):
        named = {each.get("name"): each.get("template") for each in said if isinstance(each, dict)}
        said = named.get("default")
    return said if isinstance(said, str) else None


def _optional(path: Path) -> Mapping[str, object]:
    return read_json(path) if path.is_file() else {}


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # Jinja's own filter writes for web pages.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(reason: str) -> str:
    raise TemplateError(reason)
