"""The text of an answer, whatever endpoint and however it came."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.gateway.experiment.answer import Kept, read
from breakeven.gateway.experiment.assign import answer_digest

PIECES = ["I'm sorry, ", "but I can't ", "help \u2603."]
TEXT = "".join(PIECES)


def events(objects: list[dict[str, Any]], end: str = "\n\n") -> bytes:
    lines = [f"event: {one.get('type', 'x')}{end[: len(end) // 2]}data: {json.dumps(one)}" for one in objects]
    return (end.join([": a comment", *lines, "data: [DONE]"]) + end).encode()


CHAT = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in PIECES]
COMPLETIONS = [{"choices": [{"index": 0, "text": piece}]} for piece in PIECES]
MESSAGES = [
    {"type": "message_start", "message": {"content": []}},
    *({"type": "content_block_delta", "delta": {"type": "text_delta", "text": piece}} for piece in PIECES),
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
]
RESPONSES = [
    *({"type": "response.output_text.delta", "delta": piece} for piece in PIECES),
    {"type": "response.function_call_arguments.delta", "delta": "{}"},
    {"type": "response.completed", "response": {"output": [{"content": [{"type": "output_text", "text": TEXT}]}]}},
]
WHOLE = [
    {"choices": [{"index": 0, "message": {"content": TEXT}}, {"index": 1, "message": {"content": "another"}}]},
    {"choices": [{"index": 0, "message": {"content": [{"type": "text", "text": TEXT}]}}]},
    {"choices": [{"index": 0, "text": TEXT}]},
    {"type": "message", "content": [{"type": "text", "text": TEXT}], "stop_reason": "end_turn"},
    {"output": [{"type": "reasoning"}, {"content": [{"type": "output_text", "text": TEXT}]}]},
]


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("made", [CHAT, COMPLETIONS, MESSAGES, RESPONSES])
def test_a_stream_says_the_same_as_a_whole_answer(made: list[dict[str, Any]], end: str) -> None:
    found = read(events(made, end))
    assert (found.text, found.refusal, found.digest) == (TEXT, True, answer_digest(TEXT))


@pytest.mark.parametrize("made", WHOLE)
def test_whole_answers(made: dict[str, Any]) -> None:
    found = read(json.dumps(made).encode())
    assert (found.text, found.refusal, found.digest) == (TEXT, True, answer_digest(TEXT))


@pytest.mark.parametrize(
    "made",
    [
        {"choices": [{"message": {"content": None, "refusal": "No."}}]},
        {"choices": [{"message": {"content": "Hm"}, "finish_reason": "content_filter"}]},
        {"content": [{"type": "text", "text": "Hm"}], "stop_reason": "refusal"},
        {"output": [{"content": [{"type": "refusal", "refusal": "No."}]}]},
    ],
)
def test_what_the_api_calls_a_refusal(made: dict[str, Any]) -> None:
    assert read(json.dumps(made).encode()).refusal


def test_a_refusal_that_is_streamed() -> None:
    assert read(events([{"type": "response.refusal.delta", "delta": "No."}])).refusal
    assert read(events([{"choices": [{"delta": {"refusal": "No."}}]}])).refusal
    assert read(events([{"choices": [{"delta": {}, "finish_reason": "content_filter"}]}])).refusal
    assert not read(events([{"choices": [{"delta": {"content": "Yes."}, "finish_reason": "stop"}]}])).refusal


def test_what_has_no_text_has_no_digest() -> None:
    for raw in (b"", b"{}", b'{"data":[{"embedding":[0.1]}]}', b'{"choices":[{"message":{"tool_calls":[]}}]}', b"\xff"):
        assert read(raw).digest == ""


@given(st.integers(0, 2000))
def test_only_the_beginning_is_kept(most: int) -> None:
    raw = events(CHAT)
    kept = Kept(most)
    for at in range(0, len(raw), 7):
        kept.add(raw[at : at + 7])
    found = kept.answer()
    assert TEXT.startswith(found.text)
    if most >= len(raw):
        assert found.text == TEXT


@given(st.binary(max_size=300))
def test_anything_can_be_read(raw: bytes) -> None:
    assert isinstance(read(raw).text, str)
    assert isinstance(read(b"data: " + raw).text, str)
    assert isinstance(read(b'{"choices":[' + raw).text, str)
