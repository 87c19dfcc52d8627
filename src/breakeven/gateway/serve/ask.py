"""What a client's body asks for, as far as routing and accounting need it; every other byte is passed on as it came.

The body is taken apart once, at its top level only: values stay the bytes they were. Putting it together again with
another `model` keeps their order and bytes, and keeps one of each key, so that no backend reads another than we did.
A form with a file in it (`multipart/form-data`) keeps every byte but those of `model`.
"""

from __future__ import annotations

from email.message import Message
from email.parser import BytesHeaderParser
from zlib import crc32

import msgspec

from breakeven.gateway.keys.entry import KeyEntry
from breakeven.gateway.route.view import Ask
from breakeven.gateway.translate.table import Fields, Turned
from breakeven.wire.message import parameter

_DECODER = msgspec.json.Decoder(Fields)
_ENCODER = msgspec.json.Encoder()
_TEXT = msgspec.json.Decoder(str)
_WHOLE = msgspec.json.Decoder(int, strict=False)
"""Text of digits as well: backends that read fields with pydantic take `"4000"` for 4000."""
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_TRUE = b"true"
_SWITCH = {_TRUE: True, b"false": False, b"null": False}
_LIMIT_FIELDS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_CHOICE_FIELDS = ("n", "best_of")
_MOST = 10**9
"""Numbers beyond are as good as this one: no backend writes so many tokens."""
_PROMPT_FIELDS = (
    "messages", "prompt", "input", "system", "instructions", "tools", "functions", "suffix", "documents",
)  # fmt: skip
_SESSION_FIELDS = ("prompt_cache_key", "user")
_EMBEDDED = b";base64,"
_NO_BASE64 = (b" ", b"\\", b",", b".", b":")
"""What stands in any text, and in no picture. Looked for instead of looking at each byte of a large picture."""
_MOST_PICTURES = 1024
_LONGEST_NAME = 1 << 16
"""Bytes of a model or a user."""
_EMBEDDED_FROM = 16_384
"""Prompts shorter than this are not searched for pictures: they could not hold one worth the search."""
PICTURE_TOKENS = 800
"""What a picture is taken to cost: between the 85 to 1,100 tokens of OpenAI's tiles; engines differ by model."""
_PICTURE = b'"image_url":'
"""Stands once a picture in OpenAI's bodies, be it embedded or an address."""
_FORM = b"multipart/form-data"
_MOST_PARTS, _LONGEST_PART_HEAD = 64, 4096
"""Of a form; its files are a few."""
FREE = frozenset(("/v1/messages/count_tokens",))
"""Endpoints that do no work worth charging."""
WORDLESS = FREE | {
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/images/variations",
}
"""Endpoints whose answers have no text: of output they take what their backend counts."""
WANTS_USAGE = ("/v1/chat/completions", "/v1/completions")
"""Endpoints whose streams tell their usage only when asked to (`stream_options.include_usage`)."""


class Client:
    """Whoever asks: a key's name, its row, and what it is promised. Without keys there is one client for all."""

    __slots__ = ("counts_usd", "entry", "name", "priority", "slo", "slot")

    def __init__(self, entry: KeyEntry | None, slot: int) -> None:
        self.entry, self.slot = entry, slot
        self.name = "" if entry is None else entry.name
        self.priority = 0 if entry is None else entry.priority
        self.slo = None if entry is None else entry.slo
        self.counts_usd = entry is not None and any(limit.what == "usd" for limit in entry.limits)


class BadAskError(Exception):
    """The body is not what an endpoint takes; the text tells the client."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Asked:
    """A body taken apart. `prompt_bytes` is the text of the prompt as JSON, without pictures.

    `most_output`: tokens that one answer may have, None where nothing is said; of several limits the greatest, since
    backends differ in which one they keep. `choices`: answers that are written for it (`n`, `best_of`, prompts).
    """

    __slots__ = (
        "choices",
        "fields",
        "form",
        "model",
        "most_output",
        "pictures",
        "prompt_bytes",
        "session",
        "streams",
        "turned",
        "user",
        "wants_usage",
    )

    def __init__(self, fields: Fields, form: SentForm | None = None) -> None:
        """`form`: what it was read from where that is no JSON.

        Raises BadAskError for a model that is none, and for a `stream` that backends would read in several ways.
        """
        self.fields, self.form = fields, form
        self.turned: dict[str, Turned] = {}
        """What is asked of backends that speak another API, by that."""
        self.model = _text(fields, "model")
        self.streams = _switch(fields["stream"]) if "stream" in fields else False
        self.wants_usage = False
        if self.streams and "stream_options" in fields:
            self.wants_usage = _asks_for_usage(fields["stream_options"])
        self.most_output: int | None = None
        for name in _LIMIT_FIELDS:
            if name in fields and (most := _count(fields[name])) is not None:
                self.most_output = most if self.most_output is None else max(most, self.most_output)
        self.choices = 1
        for name in _CHOICE_FIELDS:
            if name in fields:
                self.choices = max(self.choices, _count(fields[name]) or 1)
        if "prompt" in fields:
            self.choices *= _prompts(fields["prompt"])
        self.user = ""
        self.session = 0
        for name in _SESSION_FIELDS:
            if name in fields and bytes(memoryview(fields[name])[:1]) == b'"':
                self.user = _text(fields, name)
                self.session = crc32(self.user.encode()) or 1
                break
        self.prompt_bytes = self.pictures = 0
        for name in _PROMPT_FIELDS:
            if name in fields:
                self._measure(bytes(fields[name]))

    def _measure(self, raw: bytes) -> None:
        size = len(raw)
        # One byte is found by C's memchr, thirty times as fast as several: most texts lack the mark's rarest one.
        pictures = raw.count(_PICTURE) if b"_" in raw else 0
        if size >= _EMBEDDED_FROM and b";" in raw:
            found, their_bytes = _embedded(raw)
            pictures = max(pictures, found)
            size -= their_bytes
        self.pictures += pictures
        self.prompt_bytes += size

    def prompt_tokens(self, bytes_per_token: float) -> float:
        """An estimate, from what this backend's answers said of earlier prompts."""
        return self.prompt_bytes / bytes_per_token + self.pictures * PICTURE_TOKENS

    def turn(self, endpoint: str, way: str) -> Turned | None:
        """The same in the words of another endpoint; None: as it is. Raises CannotTranslateError."""
        if way in ("", endpoint):
            return None
        if way not in self.turned:
            self.turned[way] = Turned(endpoint, way, self.fields)
        return self.turned[way]

    def held_output(self, endpoint: str, usual: float) -> float:
        """Tokens that a key must still be allowed to spend on answers: as many as it may get, else `usual` ones."""
        if endpoint in WORDLESS:
            return 0.0
        return self.choices * (usual if self.most_output is None else float(self.most_output))


def _embedded(raw: bytes) -> tuple[int, int]:
    """How many pictures stand in a prompt, each to the end of its string, and their bytes. Beyond many all is text."""
    found = size = at = 0
    while found < _MOST_PICTURES and (at := raw.find(_EMBEDDED, at)) >= 0:
        begin = at + len(_EMBEDDED)
        end = raw.find(b'"', begin)
        end = len(raw) if end < 0 else end
        if end > begin and all(raw.find(other, begin, end) < 0 for other in _NO_BASE64):
            found, size = found + 1, size + end - at
        at = end
    return found, size


def read_body(body: bytes, deployment: str | None = None) -> Asked:
    """Take a body apart. Raises BadAskError for what is not a JSON object or names no model."""
    return Asked(fields_of(body, deployment))


def fields_of(body: bytes, deployment: str | None = None) -> Fields:
    """The first half of that, for bodies so large that each half takes its time.

    `deployment`: the model as the path names it, which goes before the body's, as it does at Azure.
    """
    try:
        fields = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadAskError(f"the body is not a JSON object: {error}") from None
    if deployment is not None:
        fields["model"] = msgspec.Raw(_ENCODER.encode(deployment))
    if "model" not in fields:
        raise BadAskError("the body names no model; GET /v1/models lists them", "model")
    return fields


class SentForm(msgspec.Struct, frozen=True):
    """A form, but for its model: what comes before that name, and what after."""

    before: bytes
    after: bytes


def is_form(content_type: bytes | None) -> bool:
    """Whether a body of this type is a form with files."""
    return content_type is not None and content_type[: len(_FORM)].lower() == _FORM


def read_form(body: bytes, content_type: bytes, deployment: str | None = None) -> Asked:
    """Take a form apart (RFC 7578): its texts are its fields, its files are nobody's business here.

    Raises BadAskError for what is no form, or names no model or several; Refused for what can be read in two ways.
    """
    mark = b"\r\n--" + _boundary(content_type)
    pieces = (b"\r\n" + body).split(mark, _MOST_PARTS + 1)
    if len(pieces) < 2 or pieces[-1][:2] != b"--":
        raise BadAskError(f"the body is not a form of at most {_MOST_PARTS} parts that ends with its boundary")
    fields: Fields = {}
    at = len(pieces[0])
    found: SentForm | None = None
    for piece in pieces[1:-1]:
        at += len(mark)
        head, blank, value = piece.partition(b"\r\n\r\n")
        told = _part_head(head)
        name = parameter(told, "content-disposition", "name")
        if not blank or name is None or not piece.startswith(b"\r\n"):
            raise BadAskError("a part of the form has no name")
        is_file = parameter(told, "content-disposition", "filename") is not None
        if (name in fields and not name.endswith("[]")) or (is_file and name == "model"):
            # Backends would differ in which one they read; a list is named once for each of its values.
            raise BadAskError(f"the form names {name[:100]!r} more than once, or as a file", name[:100])
        if not is_file:
            fields[name] = _part_value(name, value)
        if name == "model":
            start = at + len(head) + len(blank) - 2  # less the line end that was put before the first boundary
            found = SentForm(body[:start], body[start + len(value) :])
        at += len(piece)
    if deployment is not None:
        fields["model"] = msgspec.Raw(_ENCODER.encode(deployment))
        part = mark[2:] + b'\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
        found = found or SentForm(part, b"\r\n" + body)
    if found is None:
        raise BadAskError("the form names no model; GET /v1/models lists them", "model")
    return Asked(fields, found)


def _boundary(content_type: bytes) -> bytes:
    told = Message()
    told["content-type"] = content_type.decode("latin-1")
    boundary = parameter(told, "content-type", "boundary")
    if not boundary or len(boundary) > 70 or not boundary.isascii():
        raise BadAskError("the form's Content-Type names no boundary of at most 70 characters")
    return boundary.encode()


def _part_head(head: bytes) -> Message:
    if len(head) > _LONGEST_PART_HEAD:
        raise BadAskError(f"a part of the form has more than {_LONGEST_PART_HEAD} bytes of headers")
    return BytesHeaderParser().parsebytes(head.removeprefix(b"\r\n"))


def _part_value(name: str, value: bytes) -> msgspec.Raw:
    """As JSON: what switches something is a switch there."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise BadAskError(f"{name[:100]} in the form is no text", name[:100]) from None
    if name == "stream" and text.lower() in ("true", "false"):
        return msgspec.Raw(text.lower().encode())
    return msgspec.Raw(_ENCODER.encode(text))


def form_for(form: SentForm, served_model: msgspec.Raw) -> bytes:
    """The form for a backend, with its own name of the model."""
    return form.before + _TEXT.decode(served_model).encode() + form.after


def fields_for(asked: Asked, served_model: msgspec.Raw, *, tell_usage: bool) -> Fields:
    """What a backend's body holds: its own name of the model; with `tell_usage` its stream ends with its usage."""
    fields = asked.fields
    fields["model"] = served_model
    if tell_usage:
        fields = {**fields, "stream_options": _with_usage(fields.get("stream_options"))}
    return fields


def body_of(fields: Fields) -> bytes:
    """Put together again."""
    return _ENCODER.encode(fields)


def raw(value: object) -> msgspec.Raw:
    """A value among those of a body."""
    return msgspec.Raw(_ENCODER.encode(value))


def asks(name: bytes, value: bytes | None) -> float | None:
    """A request header's positive number. Raises BadAskError for anything else."""
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0.0 < number < 1e9:
        raise BadAskError(f"the header {name.decode()} must be a positive number")
    return number


def new_ask(endpoint: str, asked: Asked, output_tokens: float) -> Ask:
    """For routing; the service level is filled in by whoever knows the policy and the key."""
    most = asked.most_output
    return Ask(
        endpoint=endpoint,
        prompt_tokens=0.0,
        output_tokens=output_tokens if most is None else min(output_tokens, most),
        most_output=most,
        session=asked.session,
        streams=asked.streams,
    )


def _text(fields: Fields, name: str) -> str:
    if len(memoryview(fields[name])) > _LONGEST_NAME:
        raise BadAskError(f"{name} is longer than {_LONGEST_NAME} bytes", name)
    try:
        return _TEXT.decode(fields[name])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadAskError(f"{name} must be a string", name) from None


def _count(raw: msgspec.Raw) -> int | None:
    """None where the backend is to say what is wrong with it."""
    try:
        value = _WHOLE.decode(raw)
    except msgspec.DecodeError:
        return None
    return min(value, _MOST) if value > 0 else None


def _switch(raw: msgspec.Raw) -> bool:
    """Whether `stream` is on. A backend that takes 1 or "yes" for true would stream what we take for a document."""
    value = _SWITCH.get(bytes(raw))
    if value is None:
        raise BadAskError("stream must be true or false", "stream")
    return value


def _prompts(raw: msgspec.Raw) -> int:
    """How many texts `prompt` holds: one, unless it is a list of them. A list of numbers is one text."""
    data = bytes(raw)
    if data[:1] != b"[" or data[1:64].lstrip()[:1] not in (b'"', b"["):
        return 1
    try:
        return max(1, len(_ITEMS.decode(data)))
    except msgspec.DecodeError:
        return 1


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


_OPTIONS = msgspec.json.Decoder(_StreamOptions)
_USAGE_ONLY = msgspec.Raw(b'{"include_usage":true}')


def _asks_for_usage(raw: msgspec.Raw) -> bool:
    try:
        return _OPTIONS.decode(raw).include_usage
    except msgspec.DecodeError:
        return False


def _with_usage(raw: msgspec.Raw | None) -> msgspec.Raw:
    """The client's options with `include_usage` on; what is not an object is left for the backend to refuse."""
    if raw is None or bytes(raw) == b"null":
        return _USAGE_ONLY
    try:
        options = _DECODER.decode(raw)
    except msgspec.DecodeError:
        return raw
    options["include_usage"] = msgspec.Raw(_TRUE)
    return msgspec.Raw(_ENCODER.encode(options))
