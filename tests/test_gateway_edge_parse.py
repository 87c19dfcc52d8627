"""From bytes to requests: what is refused, what smuggles nothing, what arbitrary bytes do."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.gateway.plan.limits import Limits
from breakeven.wire.bounds import SMALL_BODY, HeldBodies, JsonLine, json_refusal, neighbours
from breakeven.wire.listen import open_sockets, sent_from_here
from breakeven.wire.message import Refused, Request, Responder
from breakeven.wire.reader import Reader
from tests.gateway_edge_fixtures import TEXT, on, replies, serving, talk

TIMES = int(os.environ.get("BREAKEVEN_FUZZ", "1"))
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /first HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def read(*pieces: bytes, **limits: int) -> tuple[list[Request], int | None]:
    """The requests that the pieces hold, and the status of the refusal at their end."""
    reader = Reader(Limits(**limits), "peer")
    taken: list[Request] = []
    for piece in pieces:
        if piece:
            reader.feed(piece)
        taken += [request for request, _, _ in reader.ahead]
        reader.ahead.clear()
    return taken, None if reader.failure is None else reader.failure.status


def facts(requests: list[Request]) -> list[tuple[object, ...]]:
    return [(r.method, r.path, r.query, list(r.headers), r.body, r.peer) for r in requests]


REFUSED = {
    "two lengths": (POST + b"Content-Length: 0\r\nContent-Length: 35\r\n\r\n", 400),
    "two equal lengths": (POST + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n", 400),
    "list of lengths": (POST + b"Content-Length: 0, 0\r\n\r\n", 400),
    "signed length": (POST + b"Content-Length: +0\r\n\r\n", 400),
    "hexadecimal length": (POST + b"Content-Length: 0x0\r\n\r\n", 400),
    "empty length": (POST + b"Content-Length:\r\n\r\n", 400),
    "endless length": (POST + b"Content-Length: 99999999999999999999\r\n\r\n", 400),
    "length and coding": (POST + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n", 400),
    "coding and length": (POST + CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n", 400),
    "coding of another name": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "coding before chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "identity": (POST + b"Transfer-Encoding: identity\r\n\r\n", 400),
    "chunked twice": (POST + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n", 400),
    "coding after a vertical tab": (POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "coding in HTTP/1.0": (b"POST / HTTP/1.0\r\nHost: x\r\n" + CHUNKED + b"\r\n0\r\n\r\n", 400),
    "space before a colon": (POST + b"Content-Length : 0\r\n\r\n", 400),
    "folded header": (POST + b"A: b\r\n c\r\n\r\n", 400),
    "folded coding": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    "NUL in a header": (POST + b"A: b\0c\r\n\r\n", 400),
    "bare CR in a header": (POST + b"A: b\rc: d\r\n\r\n", 400),
    "bare LF in a header": (POST + b"A: b\nC: d\r\n\r\n", 400),
    "bare LF as line end": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "control character in a header": (POST + b"A: b\x7f\r\n\r\n", 400),
    "nameless header": (POST + b": b\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
    "two hosts in HTTP/1.0": (b"GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    "host with a path": (b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", 400),
    "host with a user": (b"GET / HTTP/1.1\r\nHost: me@x\r\n\r\n", 400),
    "host with a space": (b"GET / HTTP/1.1\r\nHost: x y\r\n\r\n", 400),
    "chunk of negative size": (POST + CHUNKED + b"\r\n-1\r\n", 400),
    "chunk of prefixed size": (POST + CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk of endless size": (POST + CHUNKED + b"\r\nfffffffffffffffff\r\n", 400),
    "chunk longer than said": (POST + CHUNKED + b"\r\n1\r\nxy\r\n0\r\n\r\n", 400),
    "chunk size ended by LF": (POST + CHUNKED + b"\r\n1\nx\r\n0\r\n\r\n", 400),
    "chunk extension ended by LF": (POST + CHUNKED + b"\r\n1;a\nx\r\n0\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 505),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 400),
    "another protocol": (b"DESCRIBE / RTSP/1.0\r\nHost: x\r\n\r\n", 501),
    "CONNECT": (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 501),
    "unknown method": (b"FOO / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "path not in ASCII": (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_two_servers_could_read_differently_is_refused(name: str) -> None:
    sent, status = REFUSED[name]
    assert read(sent + SMUGGLED) == ([], status)
    good = b"GET /before HTTP/1.1\r\nHost: x\r\n\r\n"
    before, after = read(good + sent + SMUGGLED)
    assert ([request.path for request in before], after) == (["/before"], status)
    assert read(*(bytes([byte]) for byte in sent + SMUGGLED)) == ([], status)


def test_a_refused_request_gets_one_answer_after_those_before_it() -> None:
    seen: list[str] = []

    def handler(request: Request, responder: Responder) -> None:
        seen.append(request.path)
        responder.respond(200, TEXT, b"")

    async def work() -> None:
        async with serving(handler) as (_, port):
            good = b"GET /before HTTP/1.1\r\nHost: x\r\n\r\n"
            for sent, status in REFUSED.values():
                found = replies(await talk(port, good + sent + SMUGGLED))
                assert [reply.status for reply in found] == [200, status]
                assert all(reply.whole for reply in found)

    on(asyncio.new_event_loop, work)
    assert set(seen) == {"/before"}


WHOLE = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/chat/completions?a=b?c HTTP/1.1\r\nHost: [::1]:80\r\n"
    b"Content-Length: 5\r\nEmpty:\r\nA: b \t\r\n\r\nhello",
    POST + CHUNKED + b"\r\n5;name=value\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: dropped\r\nLast:\r\n\r\n",
    b"GET http://evil/v1/models?x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET //v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\r\n\r\nGET /v1%2fmodels HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /up HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"
    b"Content-Length: 3\r\n\r\nabc",
    b"POST /up HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n" + CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\r\n",
]


def test_requests_come_out_as_they_were_sent() -> None:
    requests, failure = read(b"".join(WHOLE))
    assert failure is None
    assert [(r.method, r.path, r.query, r.body) for r in requests] == [
        ("GET", "/", "", b""),
        ("POST", "/v1/chat/completions", "a=b?c", b"hello"),
        ("POST", "/first", "", b"hello world"),
        ("GET", "/v1/models", "x", b""),
        ("GET", "//v1/models", "", b""),
        ("GET", "/v1%2fmodels", "", b""),
        ("POST", "/up", "", b"abc"),
        ("POST", "/up", "", b"abc"),
    ]
    assert requests[1].header(b"a") == b"b"
    assert requests[1].header(b"empty") == b""
    assert requests[2].headers == [(b"host", b"x"), (b"transfer-encoding", b"chunked")]
    # The trailers before it are nobody's headers; the target's host goes before `Host`.
    assert requests[3].headers == [(b"host", b"evil")]
    assert requests[6].header(b"upgrade") is None


@pytest.mark.parametrize("index", range(len(WHOLE)))
def test_every_place_to_split_gives_the_same_request(index: int) -> None:
    sent = WHOLE[index] + WHOLE[1]
    whole = facts(read(sent)[0])
    assert len(whole) == 2
    for at in range(1, len(sent)):
        assert facts(read(sent[:at], sent[at:])[0]) == whole
    assert facts(read(*(bytes([byte]) for byte in sent))[0]) == whole


def test_bytes_that_belong_to_no_body_are_bounded() -> None:
    start = POST + CHUNKED + b"\r\n"
    assert read(start, b"1;", *[b"a" * 500] * 9, header_bytes=2000) == ([], 431)
    assert read(start + b"0\r\nT: ", *[b"a" * 500] * 9, header_bytes=2000) == ([], 431)
    assert read(start + b"0\r\n", *[b"t: v\r\n"] * 900, header_bytes=2000) == ([], 431)
    assert read(start + b"2000\r\n" + b"x" * 8192 + b"\r\n0\r\nT: " + b"a" * 2000 + b"\r\n\r\n", header_bytes=2000) == (
        [],
        431,
    )
    small = [b"1\r\nx\r\n"] * 5000
    (request,), failure = read(start, *small, b"0\r\n\r\n", header_bytes=2000)
    assert (len(request.body), failure) == (5000, None)
    # Many small pieces before them save nothing up for long trailers or extensions after them.
    assert read(start, *small, b"0\r\nT: ", *[b"a" * 500] * 9, header_bytes=2000) == ([], 431)
    assert read(start, *[b"1;" + b"a" * 1500 + b"\r\nx\r\n"] * 9, header_bytes=2000) == ([], 431)


@pytest.mark.parametrize("upgrade", [b"", b"Connection: upgrade\r\nUpgrade: h\r\n"])
def test_a_flood_in_one_read_is_taken_up_to_a_bound(upgrade: bytes) -> None:
    one = b"GET /x HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n"
    reader = Reader(Limits(), "peer")
    began = time.process_time()
    reader.feed(one * 40_000)
    assert time.process_time() - began < 1.0
    assert len(reader.ahead) == 64
    assert [keep for _, keep, _ in reader.ahead] == [True] * 63 + [False]
    assert reader.full
    reader.feed(one)
    assert len(reader.ahead) == 64


def test_a_large_body_before_leaves_room_for_the_next_head() -> None:
    post = POST + b"Content-Length: 5000\r\n\r\n" + b"x" * 5000
    requests, failure = read(post + b"GET / HT", b"TP/1.1\r\nHost: x\r\n\r\n", header_bytes=200)
    assert ([len(request.body) for request in requests], failure) == ([5000, 0], None)
    large = b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 300 + b"\r\n\r\n"
    requests, failure = read(post + large[:-2], large[-2:], header_bytes=200)
    assert ([len(request.body) for request in requests], failure) == ([5000], 431)


PARTS = [
    *WHOLE,
    *(sent for sent, _ in REFUSED.values()),
    *(POST, CHUNKED, b"GET / HTTP/1.1\r\n", b"Host: x\r\n", b"\r\n", b"\r\n\r\n"),
    *(b"Content-Length: 3\r\n", b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n"),
    *(b"Expect: 100-continue\r\n", b"Connection: close\r\n"),
]
mixed = st.lists(st.one_of(st.sampled_from(PARTS), st.binary(max_size=20)), max_size=6).map(b"".join)


BODIES = [
    b"POST /%b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n" % (path, line, size) + b"x" * sent
    for path in (b"keep", b"drop")
    for line in (b"", b"Expect: 100-continue\r\n", b"Connection: upgrade\r\nUpgrade: h\r\n", b"Connection: close\r\n")
    for size, sent in ((0, 0), (3, 3), (90_000, 90_000), (70_000, 60_000), (150_000, 150_000))
]
CHUNKS = [
    b"POST /%b HTTP/1.1\r\nHost: x\r\n" % path + CHUNKED + b"\r\n" + b"%x\r\n%b\r\n" % (size, b"y" * size) * 2 + end
    for path in (b"keep", b"drop")
    for size in (1, 50_000, 80_000)
    for end in (b"0\r\n\r\n", b"0\r\nT: " + b"t" * 3000 + b"\r\n\r\n", b"")
]
MOST = 200_000
larger = st.lists(st.sampled_from([*BODIES, *CHUNKS, *WHOLE, b"x" * 40_000]), max_size=5).map(b"".join)


@settings(max_examples=60 * TIMES, deadline=None)
@given(sent=larger, data=st.data())
def test_what_is_kept_stays_within_its_bounds_and_is_let_go(sent: bytes, data: st.DataObject) -> None:
    """Two clients of one server, in any pieces: what nobody asked to keep is not, and everything kept is counted."""
    held = HeldBodies(MOST)
    limits = Limits(header_bytes=2000, body_bytes=160_000)
    readers = [Reader(limits, peer, held, lambda request: request.path == "/keep") for peer in ("a", "b")]
    under_way: list[Request] = []
    at = [0, 0]
    sizes = st.lists(st.tuples(st.integers(0, 1), st.sampled_from([1, 700, 30_000, 65_536, 200_000])), max_size=12)
    for turn, size in [*data.draw(sizes), (0, len(sent)), (1, len(sent))]:
        piece, at[turn] = sent[at[turn] : at[turn] + size], at[turn] + size
        reader = readers[turn]
        if piece:
            reader.feed(piece)
        assert 0 <= held.held <= MOST
        while reader.ahead:
            request, keep, _ = reader.ahead.popleft()
            assert not request.body or request.path != "/drop"
            if request.share is not None:
                assert request.share.held == len(request.body) > SMALL_BODY
            under_way.append(request)
            if not keep:
                break
        assert len(reader._body) <= (limits.body_bytes if reader.failure is None else 0)
        counted = sum(len(each.body) for each in under_way if each.share is not None)
        arriving = sum(len(each._body) for each in readers if len(each._body) > SMALL_BODY)
        waiting = sum(len(each.body) for reader in readers for each, _, _ in reader.ahead if each.share is not None)
        assert held.held == counted + arriving + waiting
    for reader in readers:
        reader.forget()
        reader.release()
    for request in under_way:
        if request.share is not None:
            request.share.free()
            request.share.free()
    assert (held.held, held._of) == (0, {})


@settings(max_examples=400, deadline=None)
@given(sent=mixed, data=st.data())
def test_how_bytes_are_split_changes_nothing(sent: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    pieces = [sent[a:b] for a, b in pairwise([0, *cuts, len(sent)])]
    requests, failure = read(*pieces)
    together, failure_together = read(sent)
    assert facts(requests) == facts(together)
    assert failure == failure_together


@settings(max_examples=12, deadline=None)
@given(batch=st.lists(st.tuples(mixed, mixed), min_size=1, max_size=12), late=st.booleans())
def test_whatever_is_sent_each_request_has_one_answer_and_the_connection_ends(
    batch: list[tuple[bytes, bytes]], late: bool
) -> None:
    calls = 0

    def handler(request: Request, responder: Responder) -> None:
        nonlocal calls
        calls += 1
        if late:
            asyncio.get_running_loop().call_soon(responder.respond, 200, TEXT, b"ok")
        else:
            responder.respond(200, TEXT, b"ok")

    async def work() -> None:
        nonlocal calls
        async with serving(handler, read_s=0.2, idle_s=0.2) as (_, port):
            answered = 0
            for data in await asyncio.gather(*(talk(port, pieces, pause_s=0.01) for pieces in batch)):
                statuses = []
                for reply in replies(data):
                    assert reply.status in (100, 200, 400, 408, 413, 417, 431, 501, 505)
                    assert reply.whole or reply.status == 100
                    if reply.status != 100:
                        statuses.append(reply.status)
                assert all(status == 200 for status in statuses[:-1])
                answered += statuses.count(200)
            assert answered == calls

    on(asyncio.new_event_loop, work)


def test_who_counts_as_one_client() -> None:
    assert neighbours("192.0.2.7") == neighbours("::ffff:192.0.2.7") == "192.0.2.7"
    assert neighbours("2001:db8::1") == neighbours("2001:db8::ffff:0:1") != neighbours("2001:db8:0:1::1")
    assert neighbours("fe80::1%eth0") == neighbours("fe80::2%eth0")
    assert neighbours("") == ""


@pytest.mark.parametrize(
    ("origin", "named", "expected"),
    [
        (None, (), True),
        (b"http://localhost:3000", (), True),
        (b"HTTPS://127.0.0.1", (), True),
        (b"http://[::1]:5173", (), True),
        (b"", (), False),
        (b"null", (), False),
        (b"null", (b"http://null",), False),
        (b"file://", (), False),
        (b"file://", (b"file://",), True),
        (b"ftp://localhost", (), False),
        (b"chrome-extension://abc", (), False),
        (b"Chrome-Extension://abc", (b"chrome-extension://abc",), True),
        (b"chrome-extension://abcd", (b"chrome-extension://abc",), False),
        (b"vscode-webview://abc", (), False),
        (b"data:text/html,x", (), False),
        (b"http://localhost@evil.example", (), False),
        (b"http://evil.example", (b"https://evil.example",), False),
        (b"localhost", (), False),
    ],
)
def test_only_named_origins_and_this_machines_pages_pass(
    origin: bytes | None, named: tuple[bytes, ...], expected: bool
) -> None:
    assert sent_from_here(origin, frozenset(named)) is expected


# How JSON is built.


def json_too_deep(body: bytes, depth: int) -> bool:
    found = json_refusal(body, depth, 10**9)
    return found is not None and found.code == "json_too_deep"


def too_many_keys(body: bytes, keys: int) -> bool:
    found = json_refusal(body, 10**9, keys)
    return found is not None and found.code == "too_many_keys"


def naive_depth(text: str) -> int:
    level = deepest = 0
    in_string = escaped = False
    for c in text:
        if in_string:
            escaped, in_string = (c == "\\" and not escaped), not (c == '"' and not escaped)
        elif c == '"':
            in_string = True
        elif c in "[{":
            level += 1
            deepest = max(deepest, level)
        elif c in "]}":
            level -= 1
    return deepest


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='\\"[]{}ab\n', max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='\\"[{x', max_size=4), inner, max_size=4)
    ),
    max_leaves=30,
)


@settings(max_examples=300, deadline=None)
@given(value=values, wrap=st.integers(0, 12))
def test_depth_is_what_counting_by_hand_gives(value: object, wrap: int) -> None:
    text = "[" * wrap + json.dumps(value) + "]" * wrap
    deepest = naive_depth(text)
    for depth in {0, deepest - 1, deepest, deepest + 1} - {-1}:
        assert json_too_deep(text.encode(), depth) is (deepest > depth)


@settings(max_examples=50, deadline=None)
@given(value=st.dictionaries(st.text(alphabet='\\":[{x', max_size=4), values, max_size=6), start=st.integers(-40, 3))
def test_keys_are_those_of_the_outermost_object(value: dict[str, object], start: int) -> None:
    text = " " * ((1 << 16) + start) + json.dumps(value)  # across the parts that it is looked at in
    for keys in range(len(value) + 1):
        assert too_many_keys(text.encode(), keys) is (len(value) > keys)
    assert too_many_keys(b'{"a":1' + b',"a":1' * 1024 + b"}", 1024)
    assert not too_many_keys(b'{"a":[' + b'{"b":1},' * 2000 + b"0]}", 1024)


@pytest.mark.parametrize(
    "body",
    [
        b'{"x":[' + b"[]," * 500_000 + b"0]}",
        b'{"x":"' + b"\\\\" * 3_000_000 + b'"}',
        b'{"x":"' + b'\\"' * 3_000_000 + b'"}',
        b'{"x":"' + b"a" * 30_000_000 + b'"}',
        b'{"x":{' + b'"y":1,' * 800_000 + b'"z":0}}',
        b'{"x":[' + b"100257," * 1_000_000 + b"0]}",
    ],
    ids=["brackets", "backslashes", "quotes", "text", "keys", "numbers"],
)
def test_a_large_body_is_looked_at_between_other_work(body: bytes) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        line = JsonLine(loop, 64, 1024)
        told: list[Refused | None] = []
        rounds = longest = 0.0
        for _ in range(2):
            line.add(body, lambda: False, told.append)
        line.add(body, lambda: True, told.append)
        before = time.process_time()
        while len(told) < 2:
            await asyncio.sleep(0)
            now = time.process_time()
            rounds, longest, before = rounds + 1, max(longest, now - before), now
        assert told == [None, None]
        assert rounds > 10
        assert longest < 0.1

    on(asyncio.new_event_loop, work)


@pytest.mark.parametrize("piece", [b"[],", b"1,", b'"":"",', b"{},", b"[[[]]],", b" " * 9])
def test_values_of_a_body_are_bounded_and_those_in_its_text_are_not(piece: bytes) -> None:
    found = json_refusal(b'{"x":[' + piece * 2_100_000, 64, 1024)
    assert found is not None
    assert found.code in ("too_many_values", "too_many_keys")
    assert json_refusal(b'{"x":"' + piece.replace(b'"', b"'") * 2_100_000 + b'"}', 64, 1024) is None


@pytest.mark.parametrize("at", range(-4, 5))
def test_depth_across_the_parts_a_body_is_looked_at_in(at: int) -> None:
    start = b'["' + b"a" * (65536 - 2 + at)
    escapes = b'\\\\\\"[[[[\\\\'
    assert not json_too_deep(start + escapes + b'",' + b"[1]," * 9 + b"2]", 2)
    assert json_too_deep(start + escapes + b'",' + b"[1]," * 9 + b"[[2]]]", 2)


def test_a_million_brackets_are_too_deep() -> None:
    assert json_too_deep(b"[" * 1_000_000, 64)
    assert not json_too_deep(b"[" + b"[]," * 300_000 + b"[]]", 2)
    assert not json_too_deep(b'"' + b"[" * 1_000_000 + b'"', 2)


# Sockets.


def test_sockets_share_one_port_that_nobody_else_gets() -> None:
    sockets = open_sockets("127.0.0.1", 0, 3)
    try:
        ports = {one.getsockname()[1] for one in sockets}
        assert len(ports) == 1
        assert all(not one.getblocking() for one in sockets)
        with pytest.raises(UserError, match="taken: stop what listens there, or choose another port"):
            open_sockets("127.0.0.1", ports.pop(), 1)
    finally:
        for one in sockets:
            one.close()


def test_a_port_held_by_another_program_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(UserError, match="is taken"):
        open_sockets("127.0.0.1", other.getsockname()[1], 2)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("203.0.113.7", 0, "no address of this machine"),
        ("no such host", 0, "the name has no address here"),
        ("127.0.0.1", 70000, "a port is a number"),
    ],
)
def test_what_cannot_be_listened_on_is_said(host: str, port: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_sockets(host, port, 1)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6(host: str) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    (one,) = open_sockets(host, 0, 1)
    assert one.family == socket.AF_INET6
    one.close()
