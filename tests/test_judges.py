"""The judges themselves: what they send is varied and always the same, and they tell a difference when there is one."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

JUDGES = Path(__file__).resolve().parent.parent / "judges"
sys.path.insert(0, str(JUDGES))

import chat_server  # noqa: E402
import places  # noqa: E402
import replay  # noqa: E402
from chat_cases import APIS, CASES, Body, Case  # noqa: E402
from found import Found  # noqa: E402
from table import BEGIN, END, HEAD, write  # noqa: E402

from breakeven.gateway.translate.messages_asked import messages_to_chat  # noqa: E402
from breakeven.gateway.translate.responses_asked import responses_to_chat  # noqa: E402
from breakeven.wire.behaviours import whole  # noqa: E402
from breakeven.wire.completions import ScriptedRequest  # noqa: E402
from breakeven.wire.scripted import ScriptedServer, Step  # noqa: E402

PATHS = ("/v1/chat/completions", "/v1/completions")
DONE = b"data: [DONE]\n\n"


def test_requests_are_varied_and_always_the_same() -> None:
    first, again = (list(replay.requests(1000, "m", PATHS)) for _ in range(2))
    assert first == again
    kinds = Counter(ask.kind for ask in first)
    assert len(kinds) >= 15
    assert min(kinds.values()) >= 10
    assert len({ask.body for ask in first}) > 950
    assert all(json.loads(ask.body)["model"] == "m" for ask in first if ask.kind != "not JSON")
    streams = sum(b'"stream":true' in ask.body.replace(b" ", b"") for ask in first)
    assert 300 < streams < 700


def _piece(text: str, reason: str = "null", more: str = "") -> bytes:
    delta = f'{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":{reason}}}'
    return f'data: {{"id":"*","choices":[{delta}]{more}}}\n\n'.encode()


def _stream(*pieces: bytes) -> replay.Answer:
    return replay.Answer(200, "text/event-stream", b"".join(pieces), False)


STOP = '"stop"'
WHOLE = _stream(_piece("a"), _piece("b"), _piece("c", STOP, ',"system_fingerprint":"z"'), DONE)


@pytest.mark.parametrize(
    ("other", "likeness"),
    [
        (WHOLE, replay.SAME),
        (_stream(_piece("a"), _piece("b"), _piece("c", STOP), DONE), replay.TOLD_LESS),
        (_stream(_piece("ab"), _piece("c", STOP), DONE), replay.CUT_ELSEWHERE),
        (_stream(_piece("a"), _piece("bc", STOP), DONE), replay.CUT_ELSEWHERE),
        (_stream(_piece(""), _piece("abc"), _piece("", STOP), DONE), replay.CUT_ELSEWHERE),
        (_stream(_piece("b"), _piece("a"), _piece("c", STOP), DONE), replay.DIFFERS),
        (_stream(_piece("a"), _piece("c", STOP), DONE), replay.DIFFERS),
        (_stream(_piece("a"), _piece("b"), _piece("c", '"length"'), DONE), replay.DIFFERS),
        (_stream(_piece("ab"), _piece("c", STOP)), replay.DIFFERS),
        (_stream(_piece("a"), _piece("b"), _piece("c", STOP), DONE, DONE), replay.DIFFERS),
        (replay.Answer(502, WHOLE.content_type, WHOLE.body, False), replay.DIFFERS),
        (replay.Answer(200, "application/json", WHOLE.body, False), replay.DIFFERS),
        (replay.Answer(200, WHOLE.content_type, WHOLE.body, True), replay.DIFFERS),
    ],
)
def test_what_two_streams_have_in_common(other: replay.Answer, likeness: str) -> None:
    assert replay.likeness(WHOLE, other) == likeness


def test_of_two_answers_in_one_stream_each_is_compared_by_itself() -> None:
    def of(index: int, text: str) -> bytes:
        return f'data: {{"choices":[{{"index":{index},"delta":{{"content":"{text}"}}}}]}}\n\n'.encode()

    one, other = of(0, "a") + of(1, "x") + of(0, "b") + DONE, of(1, "x") + of(0, "a") + of(0, "b") + DONE
    assert replay._by_choice(one) == replay._by_choice(other)
    assert replay._by_choice(one) != replay._by_choice(of(0, "b") + of(0, "a") + of(1, "x") + DONE)


def test_a_row_says_what_got_worse_and_what_better() -> None:
    equal = Found("j", "b", {"x": "passed", "y": "failure"}, {"x": "passed", "y": "failure"})
    assert equal.equal
    assert equal.row() == "| j | b | 2 | 1 | 1 | equal |"
    worse = Found("j", "b", {"x": "passed"}, {"x": "failure"})
    assert not worse.equal
    assert "**1 differ**" in worse.row()
    better = Found("j", "b", {"x": "failed HTTP 200"}, {"x": "passed"})
    assert better.equal
    assert "1 better through" in better.row()
    assert not Found("j", "b", {}, {}).equal
    assert not Found("j", "b", {"x": "ok"}, {}).equal
    assert not Found("j", "b", {"x": "ok"}, {"x": "ok"}, note="asked otherwise").equal


def test_rows_replace_those_of_the_same_judge_and_backend(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    write(page, [Found("j", "b", {"x": "ok"}, {"x": "ok"}), Found("k", "b", {"x": "ok"}, {"x": "ok"})])
    write(page, [Found("j", "b", {"x": "ok", "y": "ok"}, {"x": "ok", "y": "ok"})])
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n{HEAD}\n| j | b | 2 |")
    assert text.endswith(f"{END}\nafter\n")
    assert text.count("| j |") == text.count("| k |") == 1


def _echo(question: ScriptedRequest) -> Step:
    """Answers with what it was asked, the name of the model aside, as a stream where it was asked to."""
    asked = question.fields
    stream, usage = asked.get("stream"), (asked.pop("stream_options", None) or {}).get("include_usage")
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    if not stream:
        return whole(json.dumps({"text": digest}).encode())
    last = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n' if usage else b""
    pieces = [_piece(digest[:32]), _piece(digest[32:], STOP), last, DONE]
    return whole(b"".join(pieces), kind="text/event-stream")


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    with ScriptedServer(_echo) as server:
        yield server.url


def test_replay_through_a_gateway_is_equal_and_another_backend_is_not(
    echo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "BIN", Path(sys.executable).parent)
    with places.gateway(places.Engine(echo, "judged", "echo"), endpoints=PATHS) as url:
        done = replay.replay(echo, url, "judged", places.PUBLIC, 200, PATHS)
        assert [replay.told(*one) for one in done.differences] == []
        assert done.found("echo").equal
        assert {*done.statuses} == {200, 400}
        assert done.events > 100
        # A gateway that changed one field of each request would be told.
        other = replay.replay(echo, url, "other", places.PUBLIC, 5, PATHS)
        assert not other.found("echo").equal


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_question_in_the_words_of_three_apis_is_one_question(case: Case) -> None:
    chat = APIS["chat"](case, "m", 64)
    others = [
        messages_to_chat(APIS["messages"](case, "m", 64), []),
        responses_to_chat(APIS["responses"](case, "m", 64), []),
    ]
    for other in others:
        assert [*map(chat_server.told, other["messages"])] == [*map(chat_server.told, chat["messages"])]
        assert chat_server.message_of(other) == chat_server.message_of(chat)


def test_the_chat_servers_pieces_are_its_answer() -> None:
    asked: Body = APIS["chat"](CASES["two calls"], "m", 64)
    message, why = chat_server.message_of(asked)
    assert why == "tool_calls"
    arguments = ["", ""]
    for delta in chat_server.deltas({**message, "reasoning_content": "abcd"}):
        for call in delta.get("tool_calls", ()):
            arguments[call["index"]] += call["function"]["arguments"]
    assert arguments == [call["function"]["arguments"] for call in message["tool_calls"]]
    assert [json.loads(text) for text in arguments] == [{"city": chat_server.ARGUMENT}] * 2
    used = chat_server.message_of({"messages": [{"role": "user", "content": 'use Bash {"command": "date"}'}]})
    assert used[0]["tool_calls"][0]["function"] == {"name": "Bash", "arguments": '{"command": "date"}'}
