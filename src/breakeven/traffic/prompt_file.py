"""A person's own prompts: what to ask, as it was asked, from the files in which people keep such things.

JSON lines of `messages` (with `tools` and `images`), of `prompt` or `text`, and of batch requests of OpenAI or Azure
(`body`); ShareGPT's `conversations`, as a list or a line each, with LLaMA-Factory's calls of tools; and plain text, a
prompt a line. A row may say how long its answer shall be (`output_tokens`, `max_tokens`, `max_completion_tokens`).

Experts are chosen by the text, so what a Mixture-of-Experts model does with these prompts is what it will do with
those that come. Nothing is cut, salted or translated: the bytes that were given are the bytes that are sent.

Nothing here counts tokens exactly, because that depends on the model: lengths are told from bytes until an engine is
there to ask (`measure/bodies.py`).
"""

from __future__ import annotations

import base64
import hashlib
import mimetypes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import msgspec

from breakeven.errors import UserError
from breakeven.traffic.traces.cells import MOST_TOKENS, lines_of
from breakeven.traffic.traces.read import format_of
from breakeven.traffic.workload import OwnPrompts

BYTES_PER_TOKEN = 4.0
"""Of English text, about: a guess, and called one, until an engine counts."""
UNSAID_OUTPUT = 128
"""Tokens of answers that nothing says the length of."""
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_OUTPUTS = ("output_tokens", "max_completion_tokens", "max_tokens")
_TALKS = ("conversations", "conversation")
_ASKS = ("conversations", "messages", "prompt", "text", "conversation")
"""Keys of what is asked; of several the first counts."""
_KNOWN = frozenset({*_ASKS, "body", "tools", "images", "id", *_OUTPUTS})
_IGNORED = frozenset({"custom_id", "method", "url", "model", "stream", "n", "stream_options"})
"""Who serves it and how it is sent are the run's to say."""
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_SPEAKERS |= {"chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "tool": "tool"}
# LLaMA-Factory's calls and results have no ids, by which a server tells which belong together: both are sent as text.
_SPEAKERS |= {"function_call": "assistant", "observation": "user"}

Message = dict[str, object]


@dataclass(frozen=True, slots=True)
class OwnRequest:
    """One request. `members` are the JSON members of a chat's body; `text`: of a completion's, None where only a chat
    can say it. `new_bytes`: of text that the request before it in its conversation did not hold; `output`: tokens of
    its answer, None where nothing says so, estimated from the recorded answer where `guessed`.
    """

    place: str
    """File, line and key, for errors."""
    members: bytes
    text: str | None
    plain: str
    """All its text, for counting."""
    new_bytes: int
    output: int | None
    guessed: bool = False
    images: int = 0


@dataclass(frozen=True, slots=True)
class PromptFile:
    """Conversations in the order of the file, each of one request or more, whose contexts grow.

    `requests`: of all of them; conversation c has those from `starts[c]` to `starts[c + 1]`. `unasked`: how many
    conversations of the file were left out, because nobody asks anything in them.
    """

    source: OwnPrompts
    requests: tuple[OwnRequest, ...]
    starts: tuple[int, ...]
    unused: tuple[str, ...] = field(default=())
    unasked: int = 0

    @property
    def chat(self) -> bool:
        """True when some of it can only be said as a chat."""
        return any(request.text is None for request in self.requests)

    def turns(self, c: int) -> int:
        """Requests of conversation `c`."""
        return self.starts[c + 1] - self.starts[c]

    def said(self, output: bool) -> str:
        """How the file was understood, in one sentence. `output`: whether the length of answers was asked for."""
        n = len(self.starts) - 1
        parts = [f"{self.source.file}: {n:,} prompt{'' if n == 1 else 's'}, sent as they are"]
        unsaid = sum(request.output is None for request in self.requests)
        guessed = sum(request.guessed for request in self.requests)
        images = sum(request.images for request in self.requests)
        if unsaid and not output:
            parts.append(f"{unsaid:,} do not say how long their answers are: {UNSAID_OUTPUT} tokens each")
        if guessed and not output:
            parts.append(f"{guessed:,} answers are as long as the recorded ones, at {BYTES_PER_TOKEN:g} bytes a token")
        if images:
            parts.append(f"{images:,} images, whose tokens only the engine counts")
        if self.unasked:
            parts.append(f"{self.unasked:,} conversations without a question, left out")
        if self.unused:
            parts.append(f"not used: {', '.join(self.unused)}")
        return "; ".join(parts)


def read_prompts(path: Path | str, turns: int = 1) -> PromptFile:
    """The prompts in `path`; of a conversation that was recorded the first `turns` requests.

    A row of `messages` is one request unless `turns` is more: then every recorded answer ends a request of its own.
    Raises UserError naming file, line and key.
    """
    place = Path(path)
    try:
        stamp = place.stat()
    except OSError as error:
        raise UserError(f"cannot read {place}: {error.strerror}; give --prompts a file") from error
    return _read(place, turns, stamp.st_mtime_ns, stamp.st_size)


def prompts_of(source: OwnPrompts, turns: int) -> PromptFile:
    """The file a workload names. Raises UserError when it is not the one that was used."""
    found = read_prompts(source.file, turns)
    if found.source.sha256 != source.sha256:
        raise UserError(f"{source.file}: has changed since this run was drawn; put the old file back or run anew")
    return found


@lru_cache(maxsize=4)
def _read(path: Path, turns: int, stamp_ns: int, size: int) -> PromptFile:
    requests: list[OwnRequest] = []
    starts = [0]
    unused: set[str] = set()
    unasked = 0
    for place, told in _rows(path):
        # Rows that were once a table's have every column of it.
        row = {key: value for key, value in told.items() if value is not None}
        found = _requests(path, place, row, turns)
        if not found and _key_of(row) in _TALKS:
            unasked += 1  # the published files of ShareGPT hold some
            continue
        if not found:
            raise UserError(f"{place}: asks nothing; remove it or give it a prompt")
        requests += found
        starts.append(len(requests))
        inner = row.get("body")
        keys = {*row, *(inner if isinstance(inner, dict) else {})}
        unused |= keys - _KNOWN - _IGNORED
    if not requests:
        but = f" in its {unasked:,} conversations" if unasked else ""
        raise UserError(f"{path}: holds no prompt{but}; give one a line")
    source = OwnPrompts(
        file=str(path),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        prompts=len(starts) - 1,
        most_bytes=max(len(request.plain.encode()) for request in requests),
    )
    return PromptFile(source, tuple(requests), tuple(starts), tuple(sorted(unused)), unasked)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Where each stands, and what it says. Plain lines count as prompts; a file is one thing or the other."""
    number, first = next(lines_of(path))
    first = first.strip()
    # "[INST] How tall", "[[wiki]] pages" and "{{name}}, hello" are text: only what may be JSON, even broken, is not.
    after = first[1:].lstrip()[:1]
    whole = path.read_bytes().removeprefix(b"\xef\xbb\xbf") if first.startswith("[") else b""
    if whole and (after in ("", "{", '"', "'") or _is_list(first) or _is_list(whole)):
        try:
            items = msgspec.json.decode(whole, type=list[object])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path}: is no whole JSON list ({error}); the file may be cut off") from error
        for k, item in enumerate(items):
            if not isinstance(item, dict):
                raise UserError(f"{path}, item {k + 1}: expected an object with messages, prompt or conversations")
            yield f"{path}, item {k + 1}", item
        return
    as_json = first.startswith("{") and after in ("", "}", '"', "'")
    if not as_json:
        _refuse_trace(f"{path}, line {number}", [cell.strip(' "') for cell in first.split(",")])
    for number, line in lines_of(path):
        if not as_json:
            yield f"{path}, line {number}", {"prompt": line}
            continue
        try:
            yield f"{path}, line {number}", msgspec.json.decode(line, type=dict[str, object])
        except (msgspec.DecodeError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}: is not a JSON object ({error}); write each prompt on a line of its own"
            ) from error


def _is_list(text: str | bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), list)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _requests(path: Path, place: str, row: dict[str, object], turns: int) -> list[OwnRequest]:
    """The requests of one row, at most `turns`, in order."""
    if isinstance(body := row.get("body"), dict):
        url = row.get("url")
        # Azure's have no /v1, and some name the whole address. Those of embeddings and responses end otherwise.
        if url is not None and not str(url).partition("?")[0].endswith("/completions"):
            raise UserError(f"{place}, key url: expected /v1/chat/completions or /v1/completions, found {url!r}")
        row, place = {key: value for key, value in body.items() if value is not None}, f"{place}, key body"
    output = _output(place, row)
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = _tools_in(tools)
    if tools is not None and not isinstance(tools, list):
        raise UserError(f"{place}, key tools: expected a list of tools, found {str(tools)[:60]}")
    key = _key_of(row)
    text: str | None = None
    if key in _TALKS:
        messages = _speeches(place, key, row[key])
    elif key == "messages":
        messages = _messages(place, key, row[key])
    else:
        given = row.get(key)
        if not isinstance(given, str) or not given.strip():
            _refuse_trace(place, row)
            found = "nothing" if given is None else repr(given)[:60]
            raise UserError(f"{place}, key {key}: expected text (or messages, or conversations), found {found}")
        text = given
        messages = [{"role": "user", "content": text}]
    if "images" in row:
        _add_images(path, place, messages, row["images"])
    if tools or "images" in row:
        text = None
    ends = [k for k in range(1, len(messages) + 1) if k == len(messages) or messages[k]["role"] == "assistant"]
    ends = [k for k in ends if messages[k - 1]["role"] not in ("assistant", "system", "developer")]
    # A row of messages is a request as it was sent; a conversation is a record of several.
    ends = ends[-1:] if key == "messages" and turns == 1 else ends[:turns]
    listed = msgspec.json.encode(tools).decode() if tools else ""
    said = 0
    found_ones = []
    for k in ends:
        plain = "\n".join(filter(None, [listed, *map(_text_of, messages[:k])]))
        answer = _text_of(messages[k]) if k < len(messages) else None
        size = len(plain.encode())
        found_ones.append(
            OwnRequest(
                place=f"{place}, key {key}",
                members=_members(messages[:k], tools),
                text=text,
                plain=plain,
                new_bytes=max(1, size - said),
                output=output if output is not None or answer is None else tokens_of(len(answer.encode())),
                guessed=output is None and answer is not None,
                images=sum(map(_images_in, messages[:k])),
            )
        )
        said = size + len((answer or "").encode())
    return found_ones


def _key_of(row: dict[str, object]) -> str:
    return next((key for key in _ASKS if key in row), "prompt")


def _refuse_trace(place: str, keys: Iterable[str]) -> None:
    """Raises UserError where `keys` are those of a trace, whose rows would be sent as text or refused as no prompt."""
    if (known := format_of(frozenset(keys))) is not None:
        raise UserError(f"{place}: is a trace ({known}) and holds no text; give it as --trace")


def tokens_of(n_bytes: int) -> int:
    """Tokens that so many bytes of text are, about; 1 at least."""
    return max(1, round(n_bytes / BYTES_PER_TOKEN))


def _members(messages: list[Message], tools: list[object] | None) -> bytes:
    members: dict[str, object] = {"messages": messages} | ({"tools": tools} if tools else {})
    return msgspec.json.encode(members)[1:-1]


def _output(place: str, row: dict[str, object]) -> int | None:
    for key in _OUTPUTS:
        if (value := row.get(key)) is not None:
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_TOKENS:
                raise UserError(f"{place}, key {key}: expected 1 to {MOST_TOKENS:,} tokens, found {str(value)[:60]!r}")
            return value
    return None


def _messages(place: str, key: str, found: object) -> list[Message]:
    """Messages of a chat, checked as far as a server would refuse them. Raises UserError naming the key."""
    if not isinstance(found, list) or not found:
        raise UserError(f"{place}, key {key}: expected a list of messages, found {str(found)[:60]!r}")
    for k, message in enumerate(found):
        where = f"{place}, key {key}[{k}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise UserError(f"{where}.role: expected one of {', '.join(ROLES)}, found {str(role)[:60]!r}")
        content = message.get("content")
        parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
        if not (isinstance(content, str) or parts or (content is None and message["role"] == "assistant")):
            raise UserError(f"{where}.content: expected text or a list of parts, found {str(content)[:60]!r}")
    return [dict(message) for message in found]


def _speeches(place: str, key: str, found: object) -> list[Message]:
    """ShareGPT's turns as messages, whether of from and value or of role and content.

    Answers before the first question, which some hold, are left out.
    """
    if not isinstance(found, list):
        raise UserError(f"{place}, key {key}: expected a list of turns, found {str(found)[:60]!r}")
    if found and all(isinstance(turn, dict) and "role" in turn and "from" not in turn for turn in found):
        messages = _messages(place, key, [turn | {"role": _role_of(turn["role"])} for turn in found])
    else:
        messages = []
        for k, turn in enumerate(found):
            speaker = turn.get("from") if isinstance(turn, dict) else None
            text = turn.get("value") if isinstance(turn, dict) else None
            if not isinstance(speaker, str) or speaker not in _SPEAKERS or not isinstance(text, str):
                raise UserError(
                    f"{place}, key {key}[{k}]: expected from (one of {', '.join(_SPEAKERS)}) and value (text), "
                    f"found {str(turn)[:60]!r}"
                )
            messages.append({"role": _SPEAKERS[speaker], "content": text})
    first = next((k for k, message in enumerate(messages) if message["role"] != "assistant"), len(messages))
    return messages[first:]


def _role_of(speaker: object) -> object:
    return _SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker


def _tools_in(text: str) -> object:
    """The tools that a row holds as text, as LLaMA-Factory writes them; the text itself where it holds none.

    Its functions stand bare in the list; a chat wants them wrapped.
    """
    try:
        found: object = msgspec.json.decode(text) if text.strip() else []
    except (msgspec.DecodeError, RecursionError):
        return text
    if not isinstance(found, list):
        return text

    def wrapped(tool: object) -> object:
        bare = isinstance(tool, dict) and "name" in tool and "type" not in tool
        return {"type": "function", "function": tool} if bare else tool

    return [wrapped(tool) for tool in found]


def _add_images(path: Path, place: str, messages: list[Message], found: object) -> None:
    """Pictures, as addresses or files beside `path`, behind the text of the last question."""
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise UserError(f"{place}, key images: expected a list of addresses or files, found {str(found)[:60]!r}")
    asking = [message for message in messages if message["role"] == "user"]
    if not asking:
        raise UserError(f"{place}, key images: there is no question they could belong to; add a message of the user")
    content = asking[-1]["content"]
    parts: list[object] = [{"type": "text", "text": content}] if isinstance(content, str) else list(_parts(content))
    for k, each in enumerate(found):
        address = each
        if not each.startswith(("http://", "https://", "data:")):
            kind = mimetypes.guess_type(each)[0] or "image/png"
            try:
                data = (path.parent / each).read_bytes()
            except (OSError, ValueError) as error:  # ValueError: no name of a file can be this
                why = getattr(error, "strerror", None) or error
                raise UserError(f"{place}, key images[{k}]: cannot read {each!r} ({why})") from error
            address = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": address}})
    asking[-1]["content"] = parts


def _parts(content: object) -> list[Message]:
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _text_of(message: Message) -> str:
    """What a tokenizer sees of a message: its text, and the calls of tools it makes."""
    content = message.get("content")
    texts = [content] if isinstance(content, str) else [str(part.get("text") or "") for part in _parts(content)]
    if calls := message.get("tool_calls"):
        texts.append(msgspec.json.encode(calls).decode())
    return "\n".join(filter(None, texts))


def _images_in(message: Message) -> int:
    return sum(part.get("type") in ("image_url", "input_image", "image") for part in _parts(message.get("content")))
