"""The hot path from bytes to events and pieces of output, and what they mean."""

from __future__ import annotations

import contextlib
import json
import re

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from breakeven.wire.meaning import (
    AGAINST,
    BEGINS,
    ELSEWHERE,
    body_kind,
    error_text,
    event_kind,
    raw_kind,
    standing,
)
from breakeven.wire.message import asked_wait_s
from breakeven.wire.reply import BrokenStreamError, Reply
from breakeven.wire.sse import _ODD, BOM, SseCutter, SseParser, fields_of, mended, split_events

_bits = st.sampled_from(
    [b"data: ", b"data:", b"data", b"event: x", b"\n", b"\n\n", b"\r\n", b"\r", b"{}", b"[DONE]", b": note", b" ",
     b"id: 1", b"\xe2\x98\x83", BOM]
)  # fmt: skip
_streams = st.lists(_bits, max_size=30).map(b"".join)
_places = st.lists(st.integers(0, 200), max_size=8)


def pieces_of(stream: bytes, places: list[int]) -> list[bytes]:
    cuts = sorted(min(place, len(stream)) for place in places)
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True) if start < end]


def by_the_standard(stream: bytes) -> list[tuple[bytes, bytes]]:
    """Data and name of every event, as the HTML standard's text reads, line after line."""
    *lines, _ = re.split(rb"\r\n|\n|\r", stream.removeprefix(BOM))
    found: list[tuple[bytes, bytes]] = []
    data, name = b"", b""
    for line in lines:
        field, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if not line:
            if data:
                found.append((data[:-1], name))
            data = name = b""
        elif field == b"data":
            data += value + b"\n"
        elif field == b"event":
            name = value
    return found


def careful(stream: bytes) -> tuple[list[bytes], bool]:
    """Events of a stream that comes byte by byte, which never takes the fast way."""
    parser = SseParser()
    events = [event for i in range(len(stream)) for event in parser.feed(stream[i : i + 1])]
    return events, parser.unfinished


@given(_streams, _places)
@example(BOM + b"data: a\r\ndata:b\rdata\n\r\n: note\n\n\r\rdata: c\r\r", [1, 12, 13])
@example(b"data: a\n\ndata: b\n\n" + BOM + b"data: c\n\n", [])
def test_any_stream_is_read_as_the_standard_says_however_it_is_cut(stream: bytes, places: list[int]) -> None:
    parser = SseParser()
    found: list[tuple[bytes, bytes]] = []
    for piece in pieces_of(stream, places):
        events = parser.feed(piece)
        found += zip(events, parser.names or [b""] * len(events), strict=True)
    assert found == by_the_standard(stream)
    assert ([data for data, _ in found], parser.unfinished) == careful(stream)


@given(_streams, _places, st.integers(1, 40))
def test_the_cutter_loses_nothing_and_holds_little(stream: bytes, places: list[int], most: int) -> None:
    cutter = SseCutter(most)
    out, events = b"", []
    for piece in pieces_of(stream, places):
        found = cutter.feed(piece)
        assert len(cutter.held) <= most + max(len(piece), len(BOM))
        assert cutter.resting <= (not cutter.held)
        out += cutter.loose + b"".join(found)
        events += found
    assert out + cutter.rest() == stream.removeprefix(BOM)
    # Empty lines alone are no event, however many come at once.
    assert all(split_events(event) == [event] for event in events if event.strip(b"\r\n"))
    whole = [(data, name) for data, name in map(fields_of, events) if data is not None]
    standard = by_the_standard(stream)
    assert whole == standard or cutter.long
    assert len(whole) <= len(standard)


def test_an_event_of_any_length_passes_without_being_held() -> None:
    cutter = SseCutter(1000)
    passed = 0
    for piece in [b"data: ", *[b"x" * 500] * 4000]:
        assert cutter.feed(piece) == []
        passed += len(cutter.loose)
        assert len(cutter.held) <= 1500
    assert passed > 4000 * 500 - 1500
    assert cutter.feed(b"\r\n\rdata: next\r\r") == [b"data: next\r\r"]
    assert (cutter.loose, cutter.long, cutter.held) == (b"\r\n\r", 1, b"")
    assert cutter.feed(b"data: a\n\n") == [b"data: a\n\n"]
    assert cutter.loose == b""


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


USAGE = {"prompt_tokens": 3, "completion_tokens": 2}
NOTHING = {
    "done alone": b"data: [DONE]\n\n",
    "a finish": event(**text("", "stop")) + b"data: [DONE]\n\n",
    "a role": event(choices=[{"delta": {"role": "assistant", "content": ""}}])
    + event(choices=[{"delta": {}, "finish_reason": "stop"}]),
    "counts at the end": event(**text("", "stop"), usage=USAGE) + b"data: [DONE]\n\n",
    "counts alone": event(**text("", "stop")) + event(choices=[], usage=USAGE) + b"data: [DONE]\n\n",
    "comments": b": wait\n\n" * 3 + b"data: [DONE]\n\n",
}


@pytest.mark.parametrize("stream", NOTHING.values(), ids=NOTHING)
def test_a_stream_without_a_word_is_no_answer(stream: bytes) -> None:
    reply = Reply()
    reply.feed(stream, 1)
    with pytest.raises(BrokenStreamError, match="without any output") as caught:
        reply.end()
    assert (caught.value.kind, reply.chunk_ns) == ("empty", [])


@pytest.mark.parametrize(
    ("rest", "kind", "words"),
    [
        (b'{"error": {"message": "out of memory"}}', "refused", "out of memory"),
        (b'{"choices": [{"text": "a"}]}\n\n', "broken_stream", "without any output"),
        (b'{"choices": [{"message": {"content": "a"}}]}', "broken_stream", "in one piece"),
        (b"data: {", "broken_stream", "inside an event"),
        (b": a comment", "broken_stream", "without any output"),
    ],
)
def test_what_is_no_stream_is_told_from_one_that_breaks_off(rest: bytes, kind: str, words: str) -> None:
    reply = Reply()
    reply.feed(rest, 1)
    with pytest.raises(BrokenStreamError, match=words) as caught:
        reply.end()
    assert caught.value.kind == kind


def test_a_token_without_text_counts_where_the_engine_counts_aloud() -> None:
    """llama.cpp, vLLM and MLX, asked for one token that is half a character: its count comes with the end."""
    timings = {"prompt_n": 1, "prompt_ms": 1.0, "predicted_n": 1, "predicted_ms": 1.0}
    for reply, told in ((Reply(), {"timings": timings}), (Reply(counts_believed=True), {"usage": USAGE})):
        reply.feed(event(**text("", "length"), **told) + b"data: [DONE]\n\n", 1)
        reply.end()
        assert reply.chunk_ns == [1]
    reply = Reply(counts_believed=True)
    reply.feed(event(**text("", "length")), 1)
    reply.feed(event(choices=[], usage=USAGE) + b"data: [DONE]\n\n", 2)
    reply.end()
    assert reply.chunk_ns == [1]


ODD = {
    "null": (b"data: null\n\n", ["empty_event"]),
    "no data": (b"data:\n\ndata\n\n", ["empty_event"]),
    "a named ping": (b'event: ping\ndata: {"type": "ping"}\n\n', []),
    "comments": (b": wait\r\n\r\n:\n\n", []),
    "no choices": (b'data: {"choices": null, "prompt_filter_results": []}\n\n', []),
    "counts that are none": (b'data: {"choices": null, "usage": {"prompt_tokens": null}}\n\n', []),
    "several lines": (b'data: {"choices":\rdata: []}\n\r\n', []),
}


@pytest.mark.parametrize(("odd", "notes"), ODD.values(), ids=ODD)
@given(places=_places)
def test_what_keeps_a_stream_alive_is_no_output(odd: bytes, notes: list[str], places: list[int]) -> None:
    reply = Reply()
    reply.feed(BOM + odd + odd, 1)
    for now, piece in enumerate(pieces_of(event(**text("a")) + odd + event(**text("b", "stop")) + odd, places), 2):
        reply.feed(piece, now)
    reply.feed(b'data: {"choices": null, "usage": {"prompt_tokens": 3, "completion_tokens": 2.0}}\r\r', 300)
    reply.feed(b"data: [DONE]", 301)
    reply.end()
    assert len(reply.chunk_ns) == 2
    assert reply.chunk_ns[0] > 1
    assert reply.output_tokens == 2
    told = reply.anomalies(2, several_usages_expected=False)
    assert told == [*notes, "no_blank_line_after_done"]


def test_counts_of_nothing_beside_text_do_not_hide_it() -> None:
    reply = Reply()
    for now, word in enumerate("abc"):
        reply.feed(event(**text(word), usage={"prompt_tokens": 3, "completion_tokens": 0}), now)
    assert (reply.chunk_ns, reply.tokens_by_chunk()) == ([0, 1, 2], None)


def test_what_is_no_utf8_is_read_as_the_grammar_says() -> None:
    reply = Reply()
    reply.feed(b'data: {"choices": [{"text": "\xff", "finish_reason": "stop"}]}\n\n', 1)
    assert reply.chunk_ns == [1]
    assert reply.anomalies(1, several_usages_expected=False) == ["bad_utf8", "no_usage"]


@pytest.mark.parametrize(
    "odd",
    [
        {"usage": []},
        {"usage": "none"},
        {"usage": {"prompt_tokens": "3"}},
        {"timings": {"prompt_n": 1}},
        {"choices": [None, {"delta": [], "index": 0}]},
    ],
    ids=str,
)
def test_a_part_of_an_odd_form_is_left_out_and_said(odd: dict[str, object]) -> None:
    reply = Reply()
    reply.feed(event(**text("a")) + event(**odd) + event(**text("b", "stop")), 1)
    reply.feed(b"data: [DONE]\n\n", 2)
    reply.end()
    assert reply.output_tokens == 2
    assert reply.anomalies(2, several_usages_expected=False) == ["odd_event", "no_usage"]


def test_counts_that_come_in_parts_are_put_together_and_the_last_ones_hold() -> None:
    reply = Reply()
    reply.feed(event(choices=[], usage={"prompt_tokens": 5}) + event(**text("a"), usage={}), 1)
    reply.feed(event(**text("b"), usage={"completion_tokens": 1}) + event(**text("c", "stop")), 2)
    reply.feed(event(choices=[], usage={"completion_tokens": 3}) + b"data: [DONE]\n\n", 3)
    reply.end()
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (5, 3)
    assert reply.output_tokens == 3


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"data: {\n\n", "broken_stream"),
        (b"data: [1]\n\n", "broken_stream"),
        (b'data: {"choices": {}}\n\n', "broken_stream"),
        (b'data: {"choices": [{"delta": "perhaps output"}]}\n\n', "broken_stream"),
        (b'data: {"error": "out of memory"}\n\n', "refused"),
        (b'event: error\ndata: {"error": {"message": "out of memory"}}\n\n', "refused"),
        (b"event: error\ndata: out of memory\n\n", "refused"),
        (b'data: {"object": "error", "message": "out of memory", "code": 500}\n\n', "refused"),
        (b'data: {"detail": "out of memory"}\n\n', "refused"),
        (b'error: {"code": 500, "message": "out of memory"}\n\n', "refused"),
    ],
)
def test_what_is_no_piece_of_a_completion(data: bytes, kind: str) -> None:
    with pytest.raises(BrokenStreamError) as caught:
        Reply().feed(data, 1)
    assert caught.value.kind == kind
    assert kind == "broken_stream" or "out of memory" in str(caught.value)


def said(**fields: object) -> bytes:
    return event(**fields)


def chat(finish: str | None = None, **delta: object) -> bytes:
    return event(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])


OPENAI = {
    "prompt_tokens": 10,
    "completion_tokens": 1124,
    "total_tokens": 1134,
    "completion_tokens_details": {"reasoning_tokens": 1024},
}
XAI = {
    "prompt_tokens": 10120,
    "completion_tokens": 1499,
    "total_tokens": 14428,
    "completion_tokens_details": {"reasoning_tokens": 2809},
}
GEMINI = {"prompt_tokens": 3379, "completion_tokens": 12, "total_tokens": 3459}
SUMMARY = {"reasoning": "a", "reasoning_details": [{"type": "reasoning.summary", "summary": "a"}]}


@pytest.mark.parametrize(
    ("usage", "before", "pieces", "came", "made", "anomalies"),
    [
        (OPENAI, [], 100, 100, 1124, ["hidden_thoughts"]),
        (OPENAI, [{"reasoning_content": "a"}], 99, 1124, 1124, []),
        (OPENAI, [{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}]}], 9, 1124, 1124, []),
        (OPENAI, [{"reasoning": "a", "reasoning_details": [{"text": "a"}]}], 9, 1124, 1124, []),
        # A summary is none of the thoughts that were counted.
        (OPENAI, [SUMMARY, SUMMARY], 8, 100, 1124, ["hidden_thoughts"]),
        # Thoughts that come as text are tokens that came.
        (OPENAI, [], 1124, 1124, 1124, []),
        (XAI, [], 50, 1499, 4308, ["hidden_thoughts"]),
        (XAI, [{"reasoning_content": "a"}], 50, 4308, 4308, []),
        (GEMINI, [], 6, 12, 80, ["hidden_thoughts"]),
        ({**OPENAI, "total_tokens": "many", "completion_tokens_details": []}, [], 5, 1124, 1124, []),
        ({**OPENAI, "prompt_tokens": 0, "completion_tokens_details": None}, [], 5, 1124, 1124, []),
    ],
)
def test_thoughts_that_never_came_are_counted_and_are_no_part_of_speed(
    usage: dict[str, object], before: list[dict[str, object]], pieces: int, came: int, made: int, anomalies: list[str]
) -> None:
    reply = Reply()
    for delta in before:
        reply.feed(chat(**delta), 0)
    for now in range(pieces):
        reply.feed(chat(content="a"), now * 20_000_000)
    reply.feed(chat("stop") + event(choices=[], usage=usage) + b"data: [DONE]\n\n", pieces * 20_000_000)
    reply.end()
    assert len(reply.chunk_ns) == len(before) + pieces
    assert reply.usage is not None
    assert (reply.output_tokens, reply.usage.completion_tokens) == (came, made)
    assert reply.output_tokens + reply.hidden_tokens == made
    assert reply.anomalies(made, several_usages_expected=False) == anomalies
    assert reply.anomalies(made - 1, several_usages_expected=False) == [*anomalies, "more_than_asked"]
    if (pieces, came) == (100, 100):
        assert (reply.chunk_ns[-1] - reply.chunk_ns[0]) / (reply.output_tokens - 1) == 20_000_000


def test_an_answer_in_one_piece_has_hidden_thoughts_too() -> None:
    for message, came in (({"content": "a b"}, 100), ({"content": "a b", "reasoning_content": "hm"}, 1124)):
        reply = Reply()
        whole = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": OPENAI}
        reply.take_whole(msgspec.json.encode(whole), 5)
        assert (reply.output_tokens, reply.output_tokens + reply.hidden_tokens) == (came, 1124)


def test_a_byte_order_mark_before_an_answer_in_one_piece_is_passed_over() -> None:
    reply = Reply()
    whole = {"choices": [{"message": {"content": "a b"}, "finish_reason": "stop"}], "usage": OPENAI}
    reply.take_whole(BOM + msgspec.json.encode(whole), 5)
    assert (reply.output_tokens, reply.output_tokens + reply.hidden_tokens) == (100, 1124)


def test_counts_of_nothing_at_all_beside_output_are_none() -> None:
    reply = Reply()
    reply.feed(event(**text("a", "stop")), 1)
    reply.feed(event(choices=[], usage={"prompt_tokens": 0, "completion_tokens": 0}) + b"data: [DONE]\n\n", 2)
    reply.end()
    assert (reply.usage, reply.output_tokens) == (None, 1)


def test_a_count_of_nothing_beside_output_was_not_told() -> None:
    none = {"prompt_tokens": 3, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 2}}
    reply = Reply()
    for now, word in enumerate("abc"):
        reply.feed(event(**text(word, "stop" if word == "c" else None)), now)
    reply.feed(event(choices=[], usage=none) + b"data: [DONE]\n\n", 9)
    reply.end()
    assert (reply.counts_output, reply.output_tokens) == (False, 3)
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.cached_tokens) == (3, 2), "what it says of the prompt stays"
    assert reply.anomalies(3, several_usages_expected=False) == ["no_usage", "prompt_cached"]
    whole = Reply()
    answer = {"choices": [{"message": {"content": "a b c"}, "finish_reason": "stop"}], "usage": none}
    whole.take_whole(msgspec.json.encode(answer), 5)
    assert (whole.usage, whole.counts_output, whole.counted) == (reply.usage, False, False)
    silent = {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}], "usage": none}
    with pytest.raises(BrokenStreamError) as caught:
        Reply().take_whole(msgspec.json.encode(silent), 5)
    assert caught.value.kind == "empty"


@pytest.mark.parametrize("words", [0, 1, 3])
def test_a_count_after_the_finish_is_no_piece_though_a_choice_stands_beside_it(words: int) -> None:
    """OpenRouter's last event: without it an empty answer came with its end."""
    reply = Reply()
    for now in range(words):
        reply.feed(chat(content="a"), now)
    reply.feed(chat("stop", role="assistant", content=""), 50)
    beside = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    reply.feed(event(choices=[beside], usage={"prompt_tokens": 3, "completion_tokens": 128}), 60)
    reply.feed(b"data: [DONE]\n\n", 61)
    assert reply.chunk_ns == list(range(words))
    if words:
        reply.end()
        assert reply.output_tokens == 128
    else:
        with pytest.raises(BrokenStreamError) as caught:
            reply.end()
        assert caught.value.kind == "empty"


ITEM = {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "a"}]}
CALL = {"type": "function_call", "id": "c", "name": "f", "arguments": ""}
KINDS = {
    "content": [
        chat(content="a"),
        chat(content=" "),
        chat("stop", content="a"),
        chat(reasoning_content="a"),
        chat(reasoning="a"),
        chat(reasoning_text="a"),  # GitHub Copilot
        chat(thinking_blocks=[{"type": "thinking", "thinking": "a", "signature": ""}]),  # LiteLLM
        chat(refusal="No."),
        chat(content=[{"type": "text", "text": "a"}]),
        chat(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}]),
        chat(tool_calls=[{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]),
        said(**text("a")),
        said(choices=[{"message": {"role": "assistant", "content": "a"}}]),
        said(type="content_block_delta", index=0, delta={"type": "text_delta", "text": "a"}),
        said(type="content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": "{"}),
        said(type="content_block_start", index=0, content_block={"type": "tool_use", "name": "f", "input": {}}),
        said(type="response.output_text.delta", delta="a"),
        said(type="response.function_call_arguments.delta", delta="{"),
        said(type="response.output_item.added", item=CALL),
        said(type="response.completed", response={"status": "completed", "output": [ITEM]}),
    ],
    "error": [
        said(error={"message": "Worker limit reached", "code": 502}),
        said(error="out of memory"),
        said(error={"message": "m"}, choices=[{"delta": {"content": ""}, "finish_reason": "error"}]),
        chat("error", content=""),
        chat("abort"),  # vLLM and SGLang
        chat("network_error", content="a"),  # z.ai
        chat("insufficient_system_resource", content=""),  # DeepSeek
        said(object="error", message="Engine failed", code=500),
        said(type="error", error={"type": "overloaded_error", "message": "Overloaded"}),
        said(type="error", code="server_error", message="m"),
        said(type="response.failed", response={"status": "failed", "error": {"message": "m"}}),
        said(message="Internal error", code=500),
        said(choices=[{"delta": {"content": ""}, "finish_reason": None, "error": {"code": 502, "message": "m"}}]),
        b'data: [{"error": {"code": 503, "message": "m"}}]\n\n',
        b"event: error\ndata: upstream is gone\n\n",
        b'error: {"code": 500}\r\n\r\n',
    ],
    "finish": [
        chat("stop"),
        said(**text("", "length")),
        said(choices=[{"delta": {}, "finish_reason": "stop"}], usage=USAGE),
        said(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 1}),
        said(type="message_stop"),
        said(type="response.completed", response={"status": "completed", "output": []}),
        said(type="response.incomplete", response={"status": "incomplete"}),
    ],
    "usage": [said(choices=[], usage=USAGE), said(choices=None, usage=USAGE), said(usage=USAGE)],
    "done": [b"data: [DONE]\n\n", b"data:[DONE]\r\r"],
    "ping": [
        b": OPENROUTER PROCESSING\n\n",
        b"\n",
        b"data: null\n\n",
        b"data\n\n",
        b"event: ping\ndata: {}\n\n",
        b"event: x\n\n",
        b"id: 1\nretry: 5\n\n",
        said(type="ping"),
    ],
    "empty": [
        chat(role="assistant"),
        chat(role="assistant", content=""),
        chat(content=None, tool_calls=[]),
        chat(content=[{"type": "text", "text": ""}]),
        said(choices=[], prompt_filter_results=[]),
        said(choices=[{"delta": None, "finish_reason": None}], error=None),
        said(type="message_start", message={"role": "assistant", "content": [], "usage": {"input_tokens": 1}}),
        said(type="content_block_start", index=0, content_block={"type": "text", "text": ""}),
        said(type="content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
        said(type="content_block_stop", index=0),
        said(type="response.created", response={"status": "in_progress", "output": [], "error": None}),
        said(type="response.output_item.added", item={"type": "message", "role": "assistant", "content": []}),
        said(type="response.content_part.added", part={"type": "output_text", "text": ""}),
        said(type="response.output_text.delta", delta=""),
    ],
    "unread": [b"data: hello\n\n", b"data: [1]\n\n", b'data: {"choices": {}}\n\n', b"data: {\n\n"],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_event_is(kind: str) -> None:
    assert [raw_kind(raw) for raw in KINDS[kind]] == [kind] * len(KINDS[kind])
    if kind not in BEGINS:
        reply = Reply()
        with contextlib.suppress(BrokenStreamError):
            reply.feed(b"".join(KINDS[kind]), 1)
        assert reply.chunk_ns == []


def test_what_a_status_says() -> None:
    told = {status: standing(status) for status in range(100, 1000)}
    assert {s for s, says in told.items() if says == "answer"} == set(range(100, 300))
    assert {s for s, says in told.items() if says == "busy"} == {429, 498}
    assert {s for s, says in told.items() if says == "unable"} == {501, 505}
    for status in (401, 402, 403, 404, 407, 408, 409, 425, 426, 464, *range(500, 531)):
        assert told[status] in ELSEWHERE, status
        assert (told[status] in AGAINST) is (status not in (501, 505)), status
    for status in (400, 406, 411, 413, 415, 422, 431, 451):
        assert told[status] == "client", status
    assert [standing(status, named=True) for status in (404, 409, 401, 408)] == [
        "client",
        "client",
        "operator",
        "broken",
    ]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"choices":[{"message":{"content":"the \\"error\\" was"}}]}', "content"),
        (b'{"object":"response","status":"completed","error":null,"output":[{"type":"message"}]}', "content"),
        (b'{"type":"message","content":[{"type":"text","text":"a"}]}', "content"),
        (b'{"object":"list","data":[{"embedding":[0.5]}]}', "content"),
        (b'{"choices":[{"text":"a"}],"error":null}', "content"),
        (b'{"error":{"message":"out of memory"}}', "error"),
        (b'{"error":{"message":"out of memory"},"choices":[]}', "error"),
        (b'{"object":"error","message":"out of memory"}', "error"),
        (b'{"type": "error", "error": {"type": "overloaded_error"}}', "error"),
        (b'{"detail":"Not Found"}', "error"),
        (b'{"choices":[{"message":{"content":"a"},"finish_reason":"error","error":{"code":502}}]}', "error"),
        (b'{"choices":[{"message":{"content":"half"},"finish_reason":"abort"}]}', "error"),
        (b'{"choices":[{"message":{"content":"say \\"abort\\""},"finish_reason":"stop"}]}', "content"),
        (b'{"choices":[{"message":{"content":"a"},"finish_reason":{"type":"abort"}}]}', "content"),
        (b'{"choices":[{"message":{"content":""},"error":{"code":502,"message":"m"}}]}', "error"),
        (b'{"choices":[{"message":{"content":"a"},"error":null}]}', "content"),
        (b'{"code":500,"msg":"Internal error","data":null}', "error"),
        (b'{"success": false, "message": "no", "data": null, "text": {}}', "error"),
        (b'{"code":0,"msg":"ok","data":{"embedding":[0.5]}}', "content"),
        (b'{"object":"list","data":[],"message":"nothing was asked"}', "content"),
        (b'{"object":"response","status":"failed","output":[],"error":null}', "error"),
        (b'{"object":"response","status":"completed","error":null,"output":[{"type":"message"}],"text":{}}', "content"),
        (b'[{"index":0,"score":0.9}]', "content"),
        (b'[{"index":0,"embedding":[[0.5]]}]', "content"),
        (b'{"scores":[0.9]}', "content"),
        (b'[{"error":{"code":503,"message":"m"}}]', "error"),
        (b"[]", "unread"),
        (b'{"type":"message","content":[{"type":"text","text":"a"}],"logprob":NaN}', "content"),
        (b'{"type":"message","content":[{"type":"text","text":"a"}],"stop_reason":1e}', "content"),
        (b'{"error":null,"choices": [\n{"message":{"content":"a"},"logprob":NaN}]}', "content"),
        (b'\xef\xbb\xbf{"choices":[{"message":{"content":"a"}}]}', "content"),
        (b'{"choices": [], "usage": {"prompt_tokens": 1}}', "empty"),
        (b'{"success":false,"errors":[{"code":1}],"result":null}', "empty"),
        (b"{}", "empty"),
        (b"null", "unread"),
        (b" ", "empty"),
        (b"<html>", "unread"),
    ],
)
def test_what_an_answer_in_one_piece_is(body: bytes, kind: str) -> None:
    assert body_kind(body) == kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, 30.0),
        ({"retry-after": "Wednesday, 21-Oct-15 07:28:30 GMT"}, 30.0),
        ({"retry-after": "Wed Oct 21 07:28:30 2015"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:20 GMT"}, 10.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:27:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "9" * 40}, None),
        ({}, None),
    ],
)
def test_how_long_a_busy_backend_is_left_alone(headers: dict[str, str], seconds: float | None) -> None:
    told = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert asked_wait_s(told, 1_445_412_480.0) == seconds


@pytest.mark.parametrize("wrapped", ["{}", "[{}]", " [\n{}]\n"])
def test_an_error_is_read_bare_or_as_a_list_of_one(wrapped: str) -> None:
    told = '{"error": {"code": 400, "message": "Unknown name \\"seed\\"", "status": "INVALID_ARGUMENT"}}'
    assert error_text(wrapped.replace("{}", told).encode()) == 'Unknown name "seed"'


@given(st.binary(max_size=200), st.binary(max_size=8))
def test_no_bytes_make_the_table_fall_over(junk: bytes, name: bytes) -> None:
    event_kind(junk, name)
    raw_kind(junk)
    body_kind(junk)
    assert error_text(junk).isprintable()


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fall_over(junk: bytes) -> None:
    for take in (lambda reply: reply.feed(junk, 1), lambda reply: reply.take_whole(junk, 1)):
        with contextlib.suppress(BrokenStreamError):
            take(Reply())


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (b'"\\ud83d"', "\ufffd"),
        (b'"\\ude00x"', "\ufffdx"),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\ud83d\\ud83d\\ude00"', "\ufffd\U0001f600"),
        (b'"\\\\ud83d"', "\\ud83d"),
        (b'"a NaN and \\" -Infinity"', 'a NaN and " -Infinity'),
        (b'"\xff"', "\ufffd"),
        (b"[NaN, -Infinity, Infinity, 1]", [None, None, None, 1]),
        (b'{"NaN":NaN}', {"NaN": None}),
    ],
)
def test_what_servers_write_that_is_no_json_is_mended(sent: bytes, read: object) -> None:
    assert msgspec.json.decode(mended(sent)) == read


def test_a_text_without_an_end_is_looked_at_once() -> None:
    """Else each quote in it is a beginning that is looked for to the end: twelve seconds for one event of 64 KiB."""
    sent = b'N"' + b'\\"' * 20_000
    assert mended(sent) == sent
    assert len(_ODD.findall(sent)) == 1


@pytest.mark.parametrize("odd", [b'"\\ud83d"', b'"a","logprobs":NaN'])
def test_an_event_with_half_a_character_or_no_number_is_output(odd: bytes) -> None:
    reply = Reply()
    reply.feed(b'data: {"choices":[{"index":0,"delta":{"content":%b}}]}\n\n' % odd * 3, 1)
    reply.feed(event(choices=[{"delta": {}, "finish_reason": "stop"}]) + b"data: [DONE]\n\n", 2)
    reply.end()
    assert len(reply.chunk_ns) == 3
    assert "odd_event" in reply.anomalies(3, several_usages_expected=False)


@given(st.text(max_size=30), st.booleans())
def test_mending_changes_no_json(text: str, ascii_only: bool) -> None:
    sent = json.dumps({"a": text, "b": [1, None]}, ensure_ascii=ascii_only).encode(errors="replace")
    try:
        read = msgspec.json.decode(sent)
    except msgspec.DecodeError:
        return
    assert msgspec.json.decode(mended(sent)) == read
