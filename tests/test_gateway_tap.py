"""What is read of an answer as it passes, and what of it reaches the client."""

from __future__ import annotations

import gzip
import json
import zlib
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.gateway.serve.account import tpot_of
from breakeven.gateway.serve.opening import Opening
from breakeven.gateway.serve.tap import StreamTap, WholeTap, tap_for
from breakeven.gateway.serve.usage import Counted, UsageScan
from breakeven.wire.sse import BOM

CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 5}}


def chunk(text: str, finish: str | None = None, spaces: bool = False) -> bytes:
    event = {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}
    return b"data: " + json.dumps(event, separators=None if spaces else (",", ":")).encode()


def usage(spaces: bool = False) -> bytes:
    event = {"id": "c", "choices": [], "usage": USAGE}
    return b"data: " + json.dumps(event, separators=None if spaces else (",", ":")).encode()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places})
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True) if a < b]


def through(tap: StreamTap, pieces: list[bytes]) -> bytes:
    return b"".join([*(tap.feed(piece) for piece in pieces), tap.rest()])


words = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=8), min_size=1, max_size=6)


@given(words, st.lists(st.integers(0, 10_000), max_size=12), st.sampled_from([b"\n\n", b"\r\n\r\n"]), st.booleans())
def test_only_the_event_we_asked_for_is_taken_out_however_the_stream_is_cut(
    texts: list[str], places: list[int], end: bytes, spaces: bool
) -> None:
    before = [chunk(text, spaces=spaces) for text in texts] + [chunk("", "stop", spaces)]
    told, done = usage(spaces), b"data: [DONE]"
    stream = end.join([*before, told, done]) + end
    pieces = cut(stream, places)
    dropping = StreamTap(CHAT, drop_usage=True)
    assert through(dropping, pieces) == end.join([*before, done]) + end
    keeping = StreamTap(CHAT, drop_usage=False)
    assert through(keeping, pieces) == stream
    whole = StreamTap(CHAT, drop_usage=False)
    through(whole, [stream])
    for tap in (dropping, keeping, whole):
        assert tap.counted.prompt_tokens == 11
        assert tap.counted.output_tokens == 3
        assert tap.counted.cached_tokens == 5
        assert tap.finish == "stop"


def test_a_stream_that_ends_without_a_reason_says_none() -> None:
    tap = StreamTap(CHAT, drop_usage=True)
    through(tap, [chunk("a") + b"\n\n", chunk("b") + b"\n\n"])
    assert tap.finish == ""
    assert tap.counted.output_tokens is None
    assert tap.events == 2


def test_usage_beside_text_is_read_and_stays() -> None:
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}], "usage": USAGE}
    event = b"data: " + json.dumps(last, separators=(",", ":")).encode() + b"\n\n"
    tap = StreamTap(CHAT, drop_usage=True)
    assert through(tap, [event]) == event
    assert tap.counted.output_tokens == 3
    assert tap.finish == "length"


def test_text_that_looks_like_usage_is_passed_on() -> None:
    event = chunk('"usage":{"prompt_tokens":9}') + b"\n\n"
    tap = StreamTap(CHAT, drop_usage=True)
    assert through(tap, [event]) == event
    assert tap.counted.prompt_tokens is None


def test_half_an_event_at_the_end_still_reaches_the_client() -> None:
    tap = StreamTap(CHAT, drop_usage=True)
    assert through(tap, [chunk("a") + b"\n\n", b"data: {half"]) == chunk("a") + b"\n\ndata: {half"


@pytest.mark.parametrize(
    ("endpoint", "events", "prompt", "output"),
    [
        (
            "/v1/messages",
            [
                {"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 1}}},
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}},
                {"type": "message_stop"},
            ],
            7,
            4,
        ),
        (
            "/v1/responses",
            [
                {"type": "response.output_text.delta", "delta": "a"},
                {"type": "response.completed", "response": {"usage": {"input_tokens": 7, "output_tokens": 4}}},
            ],
            7,
            4,
        ),
    ],
)
def test_other_endpoints_tell_their_usage_in_their_own_way(
    endpoint: str, events: list[dict[str, object]], prompt: int, output: int
) -> None:
    stream = b"".join(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n" for event in events)
    tap = StreamTap(endpoint, drop_usage=False)
    assert through(tap, [stream[:50], stream[50:]]) == stream
    assert (tap.counted.prompt_tokens, tap.counted.output_tokens) == (prompt, output)
    assert tap.finish


@given(st.lists(st.integers(0, 300), max_size=4))
def test_a_whole_answer_is_read_at_its_end(places: list[int]) -> None:
    answer = json.dumps({"choices": [{"finish_reason": "stop", "message": {"content": "é"}}], "usage": USAGE}).encode()
    tap = WholeTap()
    assert b"".join(tap.feed(piece) for piece in cut(answer, places)) == answer
    assert tap.rest() == b""
    assert (tap.counted.prompt_tokens, tap.counted.output_tokens, tap.finish) == (11, 3, "stop")


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_break_a_tap_or_are_lost(data: bytes, drop: bool) -> None:
    tap = StreamTap(CHAT, drop_usage=drop)
    assert through(tap, [data]) == (data.removeprefix(BOM) if drop else data)
    whole = WholeTap()
    assert whole.feed(data) == data
    whole.rest()
    UsageScan(Counted()).feed(data)
    for coding in (b"gzip", b"deflate", b"zstd"):
        coded = tap_for(CHAT, coding, streams=drop, drop_usage=drop)
        assert coded.feed(data) + coded.rest() == data
        assert coded.output_tokens >= 0


ERRORS = [
    b'data: {"error":{"message":"away"}}',
    b'data: {"error":"away"}',
    b'data: {"error":{"message":"away"},"choices":{}}',
    b'data: {"object":"error","message":"away"}',
    b'data: {"detail":"away"}',
    b'data: {"message":"away","code":500}',
    b"event: error\ndata: away",
    b'event: error\ndata: {"type":"error","error":{"message":"away"}}',
    b'error: {"code":500,"message":"away"}',
]


@given(st.sampled_from(ERRORS), st.integers(0, 9), st.booleans(), st.lists(st.integers(0, 10_000), max_size=9))
def test_an_error_among_events_is_seen_however_it_is_told_and_cut(
    error: bytes, texts: int, null: bool, places: list[int]
) -> None:
    text = chunk("abcdefgh") if null else chunk("abcdefgh").replace(b',"finish_reason":null', b"")
    tap = StreamTap(CHAT, drop_usage=False)
    through(tap, cut((text + b"\n\n") * texts, places))
    assert tap.error is None
    tap = StreamTap(CHAT, drop_usage=False)
    stream = (text + b"\n\n") * texts + error + b"\n\n"
    assert through(tap, cut(stream, places)) == stream
    assert tap.error is not None
    assert b"away" in tap.error
    assert not tap.half


@given(st.integers(1, 200), st.booleans(), st.booleans())
def test_a_stream_that_ends_within_an_event_is_known(left: int, ended: bool, drop: bool) -> None:
    last = chunk("b")
    tap = StreamTap(CHAT, drop_usage=drop)
    through(tap, [chunk("a", "stop" if ended else None) + b"\n\n" + last[: min(left, len(last))]])
    assert tap.half == (not ended and len(b"data: ") < left < len(last))


@pytest.mark.parametrize(
    ("endpoint", "last", "done"),
    [
        (CHAT, b"", False),
        (CHAT, b"data: [DONE]\n\n", True),
        (CHAT, b"data:[DONE]", True),
        (CHAT, chunk("", "stop") + b"\n\n", True),
        (CHAT, b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\n', False),
        (CHAT, b'data: {"error": {"message": "away"}}\n\n', True),
        ("/v1/messages", b'data: {"type": "content_block_stop", "index": 0}\n\n', False),
        ("/v1/messages", b'event: message_stop\ndata: {"type": "message_stop"}\n\n', True),
        ("/v1/responses", b'data: {"type": "response.cancelled", "response": {"status": "cancelled"}}\n\n', True),
        ("/v1/audio/speech", b"", True),
    ],
)
def test_whether_a_stream_says_that_it_ends(endpoint: str, last: bytes, done: bool) -> None:
    """How those of other endpoints end is not known."""
    tap = StreamTap(endpoint, drop_usage=False)
    through(tap, [(chunk("a") + b"\n\n") * 9, last])
    assert tap.done is done
    packed = tap_for(endpoint, b"gzip", streams=True, drop_usage=False)
    packed.feed(gzip.compress((chunk("a") + b"\n\n") * 9 + last))
    packed.rest()
    assert packed.done is done


def test_what_comes_with_the_word_that_it_is_broken_off_is_counted_too() -> None:
    tap = StreamTap(CHAT, drop_usage=False)
    through(tap, [chunk("a", "abort") + b"\n\n"])
    assert (tap.error is not None, tap.events, tap.output_tokens) == (True, 1, 1)
    tap = StreamTap(CHAT, drop_usage=False)
    through(tap, [b'data: {"choices":[{"delta":{},"finish_reason":"abort"}]}\n\n', b'data: {"error":"away"}\n\n'])
    assert (tap.error is not None, tap.events, tap.output_tokens) == (True, 0, 0)


@pytest.mark.parametrize("drop", [False, True])
def test_a_document_in_the_place_of_a_stream_ends_with_its_last_bracket(drop: bool) -> None:
    """Of servers that do not stream, and do not say what they send."""
    line = b'{"choices": [{"message": {"content": "a"}}]}'
    for made in (line, line.replace(b": ", b":\n  ") + b"\n\n"):
        for body, done in ((made, True), (made.rstrip()[:-1], False)):
            tap = StreamTap(CHAT, drop_usage=drop)
            assert through(tap, [body]) == body
            assert tap.done is done
    tap = StreamTap(CHAT, drop_usage=drop)
    through(tap, [b'{"choices":[{"message":{"content":"', *[b"a" * 2**15] * 4])
    assert tap.done, "too long to be looked at"


def test_the_end_of_a_long_response_is_known_by_its_events_name() -> None:
    """vLLM says its type behind the response."""
    last = b'event: response.completed\ndata: {"response":{"output":"'
    tap = StreamTap("/v1/responses", drop_usage=False)
    through(tap, [last, *[b"a" * 2**15] * 4, b'"},"type":"response.completed"}\n\n'])
    assert (tap.finish, tap.done) == ("response.completed", True)


@pytest.mark.parametrize(
    ("endpoint", "body", "done"),
    [
        (CHAT, b'{"choices":[{"message":{"content":"a"}}]}', True),
        (CHAT, b'{"choices":[{"logprobs":{"token_logprobs":[-Infinity]},"text":"\xff"}],"id":NaN}', True),
        (CHAT, b'{"choices":[{"logprobs":{"token_logprobs":[-Infinity]', False),
        (CHAT, b'{"choices":[{"message":{"content":"a"}', False),
        (CHAT, b"", False),
        ("/v1/rerank", b'[{"index":0,"score":0.5}]', True),
        ("/v1/rerank", b'[{"index":0,"score":0.5}', False),
        ("/v1/audio/speech", b"\xff\xfb\x90", True),
        (CHAT, b'{"choices":[{"message":{"content":"' + b"a" * 2**21, True),  # too long to be looked at
    ],
)
def test_whether_a_document_is_one_to_its_end(endpoint: str, body: bytes, done: bool) -> None:
    tap = tap_for(endpoint, b"identity", streams=False, drop_usage=False)
    tap.feed(body)
    tap.rest()
    assert tap.done is done


@pytest.mark.parametrize(
    "bomb",
    [
        gzip.compress((chunk("a") + b"\n\n") * 500_000),
        gzip.compress(b"\r" * 2**25),
        gzip.compress(b": a\n\n" * 2**22),
        gzip.compress(chunk("a") + b"\n\n") * 50_000,
    ],
    ids=["events", "empty lines", "comments", "parts"],
)
def test_what_is_packed_to_keep_us_busy_is_left(bomb: bytes) -> None:
    tap = tap_for(CHAT, b"gzip", streams=True, drop_usage=False)
    for at in range(0, len(bomb), 2**16):
        tap.feed(bomb[at : at + 2**16])
    tap.rest()
    assert tap.events < 100_000
    assert tap.output_tokens >= len(bomb), "what is not read costs what came"


@pytest.mark.parametrize("bare", [False, True])
def test_what_unpacks_to_very_much_is_not_unpacked(bare: bool) -> None:
    packer = zlib.compressobj(9, wbits=-15 if bare else 15)
    bomb = packer.compress(b'{"usage": "' + bytes(100 * 2**20)) + packer.flush()
    tap = tap_for(CHAT, b"deflate", streams=False, drop_usage=False)
    assert tap.feed(bomb) == bomb
    tap.rest()
    assert tap.output_tokens >= len(bomb)


KEYS = st.sampled_from(["usage", "response", "message", "x", 'a"usage', "usage\\"]) | st.text(max_size=5)
NUMBERS = st.fixed_dictionaries({"prompt_tokens": st.integers(1, 99), "completion_tokens": st.integers(1, 99)})
VALUES = st.recursive(
    st.none()
    | st.integers()
    | st.text(max_size=20)
    | st.sampled_from(['"usage":{"prompt_tokens":7}', "\\\\", '\\"', "{["]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@given(
    st.dictionaries(KEYS.filter(lambda key: key not in ("usage", "response", "message")), VALUES, max_size=4),
    NUMBERS,
    st.sampled_from(["usage", "response", "message", "elsewhere"]),
    st.lists(st.integers(0, 2000), max_size=30),
    st.sampled_from([None, 2]),
    st.booleans(),
)
def test_usage_is_found_in_a_document_however_it_is_cut(
    other: dict[str, object], told: dict[str, int], where: str, places: list[int], indent: int | None, first: bool
) -> None:
    """Only where it stands as itself: within a text, or deeper, are words of the model's."""
    usage = {"usage": {**told, "prompt_tokens_details": {"cached_tokens": 1}}}
    mine = usage if where == "usage" else {where: usage}
    document = json.dumps({**mine, **other} if first else {**other, **mine}, indent=indent).encode()
    counted = Counted()
    scan = UsageScan(counted)
    for piece in cut(document, places):
        scan.feed(piece)
    expected = (None, None, None) if where == "elsewhere" else (told["prompt_tokens"], told["completion_tokens"], 1)
    assert (counted.prompt_tokens, counted.output_tokens, counted.cached_tokens) == expected
    assert scan.told is (where != "elsewhere")


@pytest.mark.parametrize("spaces", [False, True])
@pytest.mark.parametrize("null", [False, True])
def test_events_made_alike_are_measured_by_their_length(spaces: bool, null: bool) -> None:
    texts = [f"word{k} " * (1 + k % 40) for k in range(300)]
    tap = StreamTap(CHAT, drop_usage=True)
    for text in texts:
        event = chunk(text, spaces=spaces)
        tap.feed((event[:-1] + b',"usage":null}' if null else event) + b"\n\n")
        tap.feed(b": ping\n\n")
        tap.feed(chunk("", spaces=spaces) + b"\n\n")
    assert tap.events == len(texts)
    assert tap.output_tokens == pytest.approx(sum(map(len, texts)) / 2, rel=0.02)
    assert tap.output_tokens >= sum(len(text.split()) for text in texts)
    tap.feed(chunk("", "length", spaces) + b"\n\n")
    assert tap.finish == "length"
    tap.feed(usage(spaces) + b"\n\n")
    assert tap.counted.output_tokens == 3
    assert tap.output_tokens == len(texts), "a count of fewer tokens than events is not believed"


THOUGHTS = {**USAGE, "completion_tokens": 1124, "total_tokens": 1135}
THOUGHTS["completion_tokens_details"] = {"reasoning_tokens": 1024}


@pytest.mark.parametrize(("thoughts", "texts", "tokens"), [(0, 100, 100), (10, 90, 1124), (0, 1124, 1124)])
def test_thoughts_that_never_came_make_no_stream_fast(thoughts: int, texts: int, tokens: int) -> None:
    """Charged they are all the same."""
    thought = {"id": "c", "choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}]}
    tap = StreamTap(CHAT, drop_usage=True)
    for event in [b"data: " + json.dumps(thought).encode()] * thoughts + [chunk("word ")] * texts:
        tap.feed(event + b"\n\n")
    tap.feed(chunk("", "stop") + b"\n\n")
    tap.feed(b"data: " + json.dumps({"choices": [], "usage": THOUGHTS}).encode() + b"\n\n")
    assert (tap.events, tap.output_tokens) == (thoughts + texts, 1124)
    leg = SimpleNamespace(tap=tap, first_ns=10**9, said_ns=3 * 10**9)
    assert tpot_of(leg) == pytest.approx(2.0 / (tokens - 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("shown", [True, False])
def test_thoughts_of_anthropics_models_are_of_the_time_in_which_they_are_shown(shown: bool) -> None:
    """Where they are left out they took their time before the first token."""
    said = [("text_delta", "text")] * 50
    said = [*([("thinking_delta", "thinking")] * 20 if shown else []), *said]
    events: list[dict[str, object]] = [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "s"}},
        *({"type": "content_block_delta", "index": 1, "delta": {"type": kind, name: "word "}} for kind, name in said),
        {
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens"},
            "usage": {"output_tokens": 1050, "output_tokens_details": {"thinking_tokens": 1000}},
        },
        {"type": "message_stop"},
    ]
    tap = StreamTap("/v1/messages", drop_usage=False)
    through(tap, [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events])
    assert (tap.counted.thoughts, tap.counted.thinks_aloud, tap.finish) == (1000, shown, "max_tokens")
    leg = SimpleNamespace(tap=tap, first_ns=10**9, said_ns=3 * 10**9)
    assert tpot_of(leg) == pytest.approx(2.0 / ((1050 if shown else 50) - 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("usage", "output", "thoughts"),
    [
        (THOUGHTS, 1124, 1024),
        ({"input_tokens": 5, "output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 4}}, 9, 4),
        # Thoughts that are counted beside the rest: xAI, and Gemini, which does not name them.
        (
            {
                "prompt_tokens": 10120,
                "completion_tokens": 1499,
                "total_tokens": 14428,
                "completion_tokens_details": {"reasoning_tokens": 2809},
            },
            4308,
            2809,
        ),
        ({"prompt_tokens": 3379, "completion_tokens": 12, "total_tokens": 3459}, 80, 68),
        # SGLang's words, and Anthropic's.
        ({"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14, "reasoning_tokens": 4}, 9, 4),
        ({"input_tokens": 5, "output_tokens": 9, "output_tokens_details": {"thinking_tokens": 4}}, 9, 4),
        # What is not told in full is taken as it stands.
        ({"prompt_tokens": 0, "completion_tokens": 3, "total_tokens": 15}, 3, 0),
        ({"completion_tokens": 3, "total_tokens": 15}, 3, 0),
        ({"prompt_tokens": 12, "total_tokens": 15}, None, 0),
        ({"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": "many"}, 3, 0),
    ],
)
def test_what_a_usage_says_of_thoughts(usage: dict[str, object], output: int | None, thoughts: int) -> None:
    counted = Counted()
    counted.add(usage)
    assert (counted.output_tokens, counted.thoughts) == (output, thoughts)


def test_events_that_say_nothing_are_no_output_however_many_and_hide_nothing() -> None:
    idle = [
        b"data: {}\n\n",
        b": wait\n\n",
        b"\n\n",
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n',
    ]
    said = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    for quiet in idle:
        tap = tap_for("/v1/chat/completions", b"identity", streams=True, drop_usage=True)
        given = quiet * 1000 + said + quiet * 1000 + said + end + usage + quiet * 3 + b"data: [DONE]\n\n"
        got = b"".join(tap.feed(given[i : i + 997]) for i in range(0, len(given), 997)) + tap.rest()
        assert got == given.replace(usage, b"")
        assert (tap.events, tap.finish, tap.counted.prompt_tokens, tap.output_tokens) == (2, "stop", 3, 2)
        opening = Opening({}, streams=True)
        assert opening.feed(quiet * 1000) == ""
        assert opening.feed(quiet * 1000 + said) == "content"
