"""What the gateway reads of a body, and what it passes on."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.gateway.serve.ask import PICTURE_TOKENS, BadAskError, asks, body_of, fields_for, new_ask, read_body

SERVED = msgspec.Raw(b'"served"')
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
read_by_us = {"model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens", "user",
              "prompt_cache_key", "n", "best_of", "prompt"}  # fmt: skip
fields = st.dictionaries(st.text(max_size=12).filter(lambda name: name not in read_by_us), values, max_size=6)


def body(**asked: Any) -> bytes:
    return json.dumps({"model": "chat", **asked}).encode()


@given(fields, st.booleans(), st.integers(0, 4))
def test_everything_but_the_model_reaches_the_backend_as_the_bytes_it_was(
    others: dict[str, Any], ascii_only: bool, indent: int
) -> None:
    sent = json.dumps({"a": others, **others, "model": "chat"}, ensure_ascii=ascii_only, indent=indent or None)
    passed = body_of(fields_for(read_body(sent.encode()), SERVED, tell_usage=False))
    expected = {**json.loads(sent), "model": "served"}
    assert json.loads(passed) == expected
    assert list(json.loads(passed)) == list(expected)
    raw = msgspec.json.decode(sent.encode(), type=dict[str, msgspec.Raw])
    again = msgspec.json.decode(passed, type=dict[str, msgspec.Raw])
    assert all(bytes(again[name]) == bytes(value) for name, value in raw.items() if name != "model")


def test_of_a_key_that_stands_twice_the_last_is_read_and_the_only_one_passed_on() -> None:
    sent = b'{"model": "cheap", "temperature": 1, "model": "dear", "temperature": 2}'
    asked = read_body(sent)
    assert asked.model == "dear"
    passed = body_of(fields_for(asked, SERVED, tell_usage=False))
    assert passed.count(b'"model"') == 1
    assert passed.count(b"temperature") == 1
    assert json.loads(passed) == {"model": "served", "temperature": 2}


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b'{"model": "a"', "not a JSON object"),
        (b'{"model": "a"} x', "not a JSON object"),
        (b'{"model": "\xff"}', "model must be a string"),
        (b"{}", "names no model"),
        (b'{"model": 7}', "model must be a string"),
        (b'{"model": null}', "model must be a string"),
    ],
)
def test_what_is_no_request_is_told_why(sent: bytes, told: str) -> None:
    with pytest.raises(BadAskError, match=told):
        read_body(sent)


def test_odd_values_are_left_for_the_backend_to_refuse() -> None:
    asked = read_body(body(max_tokens="many", user=7, stream_options=3))
    assert (asked.streams, asked.most_output, asked.user) == (False, None, "")
    assert json.loads(body_of(fields_for(asked, SERVED, tell_usage=False)))["max_tokens"] == "many"


@pytest.mark.parametrize(
    ("options", "wants", "passed"),
    [
        (None, False, {"include_usage": True}),
        ({"include_usage": False}, False, {"include_usage": True}),
        ({"include_usage": True}, True, {"include_usage": True}),
        ({"chunk_size": 4}, False, {"chunk_size": 4, "include_usage": True}),
    ],
)
def test_usage_is_asked_for_and_it_is_known_whether_the_client_did(
    options: dict[str, Any] | None, wants: bool, passed: dict[str, Any]
) -> None:
    asked = read_body(body(stream=True, **({} if options is None else {"stream_options": options})))
    assert asked.wants_usage is wants
    assert json.loads(body_of(fields_for(asked, SERVED, tell_usage=True)))["stream_options"] == passed
    # A second attempt elsewhere starts from what the client sent.
    assert json.loads(body_of(fields_for(asked, SERVED, tell_usage=False))).get("stream_options") == options


def test_a_prompt_is_measured_without_its_pictures() -> None:
    text = "word " * 100
    plain = read_body(body(messages=[{"role": "user", "content": text}]))
    picture = "data:image/png;base64," + "A" * 50_000
    seen = read_body(
        body(messages=[{"role": "user", "content": [{"type": "text", "text": text}, {"image_url": {"url": picture}}]}])
    )
    assert plain.prompt_tokens(4.0) == pytest.approx(len(text) / 4, rel=0.15)
    assert seen.pictures == 1
    assert seen.prompt_tokens(4.0) == pytest.approx(plain.prompt_tokens(4.0) + PICTURE_TOKENS, abs=40)


def test_a_picture_by_its_address_is_one() -> None:
    url = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    asked = read_body(body(messages=[{"role": "user", "content": [{"type": "text", "text": "what"}, url, url]}]))
    assert asked.pictures == 2


def test_stream_is_true_or_false_and_nothing_that_is_taken_for_it() -> None:
    assert read_body(body(stream=True)).streams
    assert not read_body(body(stream=None)).streams
    assert not read_body(body(stream=False)).streams
    for odd in (1, 0, "true", "yes", 1.0, [True], {}):
        with pytest.raises(BadAskError, match="stream must be true or false"):
            read_body(body(stream=odd))


def test_an_answer_is_expected_no_longer_than_allowed() -> None:
    assert new_ask("/v1/completions", read_body(body(max_tokens=10)), 200.0).output_tokens == 10
    assert new_ask("/v1/completions", read_body(body(max_completion_tokens=900)), 200.0).output_tokens == 200.0


@pytest.mark.parametrize("value", [b"", b"abc", b"-1", b"0", b"nan", b"inf", b"1e30"])
def test_a_header_that_is_no_positive_number_is_refused(value: bytes) -> None:
    with pytest.raises(BadAskError, match="x-breakeven-ttft-ms must be a positive number"):
        asks(b"x-breakeven-ttft-ms", value)


def test_sessions_are_equal_for_equal_users_only() -> None:
    one, same, other = (read_body(body(user=user)).session for user in ("ann", "ann", "bob"))
    assert one == same != 0
    assert one != other
    assert read_body(body()).session == 0
