"""What the tests of translation share: an answer written as a stream and read again, and what hypothesis draws."""

from __future__ import annotations

import json

import msgspec
from hypothesis import strategies as st

from breakeven.gateway.translate.said import AnswerFacts, AnswerPart, AnswerSaid, Counts, Json, Writer
from breakeven.wire.sse import events_of

FACTS = AnswerFacts("id1", 1_700_000_000, 11)
COUNTS = Counts(20, 4, 9)


def written(writer: Writer, said: AnswerSaid, counts: Counts = COUNTS) -> bytes:
    """An answer as a stream."""
    return b"".join([writer.begin(said), *map(writer.part, said.parts), writer.end(said, counts)])


def data_of(stream: bytes) -> list[Json]:
    """The objects of its events."""
    return [json.loads(data) for data in events_of(stream) if data != b"[DONE]"]


def joined(parts: list[AnswerPart]) -> list[AnswerPart]:
    """Pieces of one block, or one call, as one part; calls by order instead of by number."""
    found: list[AnswerPart] = []
    for part in parts:
        last = found[-1] if found else None
        same = next((one for one in found if one.kind == part.kind == "call" and one.at == part.at), None)
        if same is None and last is not None and last.kind == part.kind != "call":
            same = last
        if same is None:
            found.append(AnswerPart(part.kind, part.text, part.id, part.name, part.at))
        else:
            same.text += part.text
    return found


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
names = st.text("abcxyz_", min_size=1, max_size=6)
arguments = st.dictionaries(names, st.integers(-9, 9) | texts, max_size=3)

HI, YES = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def raw(fields: Json) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in fields.items()}
