"""The hot path from bytes to events and pieces of output: the fast way gives what the careful way gives."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.wire.reply import BrokenStreamError, Reply
from breakeven.wire.sse import SseParser

_bits = st.sampled_from(
    [b"data: ", b"data:", b"\n", b"\n\n", b"\r\n", b"\r", b"{}", b"[DONE]", b": note", b" ", b"id: 1"]
)
_streams = st.lists(_bits, max_size=30).map(b"".join)


def careful(stream: bytes) -> tuple[list[bytes], bool]:
    """Events of a stream that comes byte by byte, which never takes the fast way."""
    parser = SseParser()
    events = [event for i in range(len(stream)) for event in parser.feed(stream[i : i + 1])]
    return events, parser.unfinished


@given(_streams, st.data())
def test_any_stream_gives_the_same_events_in_one_read_and_in_many(stream: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(stream)))
    parser = SseParser()
    events = [*parser.feed(stream[:cut]), *parser.feed(stream[cut:])]
    assert (events, parser.unfinished) == careful(stream)


@given(st.lists(st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b"")), min_size=1))
def test_whole_events_in_one_read(payloads: list[bytes]) -> None:
    stream = b"".join(b"data: " + payload + b"\n\n" for payload in payloads)
    assert SseParser().feed(stream) == payloads
    assert careful(stream) == (payloads, False)


def event(**fields: object) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def text(word: str, finish: str | None = None) -> dict[str, object]:
    return {"choices": [{"text": word, "finish_reason": finish}]}


def test_several_events_of_one_read_share_its_time() -> None:
    reply = Reply()
    assert not reply.feed(event(**text("a")) + event(**text("b")), 5)
    assert not reply.feed(event(**text("c", "length")), 9)
    assert reply.feed(b"data: [DONE]\n\n", 11)
    assert (reply.chunk_ns, reply.done_ns, reply.output_tokens) == ([5, 5, 9], 11, 3)
    assert reply.anomalies(3, several_usages_expected=False) == ["no_usage"]


def test_a_running_count_tells_pieces_from_tokens() -> None:
    reply = Reply()
    for now, (word, count) in enumerate([("a", 1), ("", 2), ("bc", 5), ("", 5)]):
        reply.feed(event(**text(word), usage={"prompt_tokens": 3, "completion_tokens": count}), now)
    assert reply.chunk_ns == [0, 1, 2]
    assert reply.tokens_by_chunk() == [1, 1, 3]


@pytest.mark.parametrize("key", ["content", "reasoning_content", "reasoning"])
def test_words_of_a_chat_come_under_several_names(key: str) -> None:
    reply = Reply()
    reply.feed(event(choices=[{"delta": {"role": "assistant", "content": ""}}]), 1)
    reply.feed(event(choices=[{"delta": {key: "word"}}]), 2)
    reply.feed(event(choices=[{"delta": {}, "finish_reason": "stop"}]), 3)
    assert reply.chunk_ns == [2]


def test_a_stream_that_ends_without_a_word_has_none() -> None:
    reply = Reply()
    reply.feed(event(**text("", "stop")) + b"data: [DONE]\n\n", 1)
    assert (reply.chunk_ns, reply.output_tokens, reply.counted) == ([], 0, True)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"data: {\n\n", "broken_stream"),
        (b"data: \n\n", "broken_stream"),
        (b"data: [1]\n\n", "broken_stream"),
        (b'data: {"choices": {}}\n\n', "broken_stream"),
        (b'data: {"choices": [{"text": "\xff"}]}\n\n', "broken_stream"),
        (b'data: {"error": "out of memory"}\n\n', "refused"),
        (b'event: error\ndata: {"error": {"message": "out of memory"}}\n\n', "refused"),
    ],
)
def test_what_is_no_piece_of_a_completion(data: bytes, kind: str) -> None:
    with pytest.raises(BrokenStreamError) as caught:
        Reply().feed(data, 1)
    assert caught.value.kind == kind


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fall_over(junk: bytes) -> None:
    for take in (lambda reply: reply.feed(junk, 1), lambda reply: reply.take_whole(junk, 1)):
        with contextlib.suppress(BrokenStreamError):
            take(Reply())
