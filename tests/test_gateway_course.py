"""What becomes of one request, without a socket or a clock: events in, effects written down."""

from __future__ import annotations

import json
import random
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.gateway.serve.course import CLIENT_LEFT, Course, Judgement
from breakeven.gateway.serve.opening import First, Opening, error_status, names_something, trouble_is_broken
from breakeven.gateway.shared.layout import Count, UnderWay
from breakeven.wire.meaning import standing


class Lane:
    """A backend with places: `free` at once, else `line` says what happens to who enters."""

    def __init__(self, name: str, free: int = 9, line: str = "full", away: bool = False, comes: bool = True) -> None:
        self.name, self.free, self.line, self.away, self.comes = name, free, line, away, comes
        self.queued = 0
        self.counts: dict[int, int] = {}

    def add(self, column: int, by: int) -> None:
        assert column == UnderWay.QUEUED
        self.queued += by

    def counted(self, column: int, by: int = 1) -> None:
        self.counts[column] = self.counts.get(column, 0) + by


class One:
    """One backend asked."""

    def __init__(self, world: World, lane: Lane, hedge: bool) -> None:
        self.world, self.lane, self.hedge = world, lane, hedge
        self.outcome, self.status = "", 0
        self.judged = ""
        self.retry_s: float | None = None

    def send(self) -> None:
        self.world.did.append(f"send {self.lane.name}")

    def judge(self, what: Judgement) -> None:
        self.judged = self.judged or what

    def settle(self, outcome: str) -> None:
        self.outcome = self.outcome or outcome

    def drop(self, outcome: str) -> None:
        self.world.did.append(f"drop {self.lane.name}")
        self.settle(outcome)

    def finish(self) -> None:
        self.world.did.append("finish")

    def cut(self) -> None:
        self.world.did.append("cut")


class World:
    """`RequestEffects` that are only written down."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.ends: list[tuple[str, int, str]] = []
        self.told = ""
        self.retry_s: float | None = None
        self.hedge_to: Lane | None = None
        self.timer = False

    def now_s(self) -> float:
        return 0.0

    def ready(self, lane: Lane) -> bool:
        return not lane.away

    def take(self, course: Course[Lane, One], lane: Lane, now_s: float) -> bool:
        if lane.away or not lane.free:
            return False
        lane.free -= 1
        return True

    def enter(self, course: Course[Lane, One], lane: Lane, now_s: float) -> Literal["go", "wait", "full"]:
        assert lane.line in ("go", "wait", "full")
        return lane.line  # type: ignore[return-value]

    def leave(self, course: Course[Lane, One], lane: Lane) -> None:
        self.did.append(f"leave {lane.name}")

    def want(self, course: Course[Lane, One], lane: Lane, now_s: float) -> bool:
        return lane.comes

    def unwant(self, course: Course[Lane, One], lane: Lane) -> None:
        self.did.append(f"unwant {lane.name}")

    def prepare(self, course: Course[Lane, One], lane: Lane, *, hedge: bool) -> One:
        return One(self, lane, hedge)

    def hedge_later(self, course: Course[Lane, One], one: One) -> None:
        self.timer = True

    def stop_hedge(self) -> None:
        self.timer = False

    def second(self, course: Course[Lane, One]) -> Lane | None:
        return self.hedge_to

    def tell_progress(self, lane: Lane, progress: float) -> None:
        self.did.append(f"{lane.name} {progress:g}")

    def refuse(self, status: int, message: str, code: str, retry_s: float | None) -> None:
        self.did.append(f"refuse {status} {code}")
        self.told, self.retry_s = message, retry_s

    def over(self, course: Course[Lane, One], one: One | None, status: int, error: str) -> None:
        self.ends.append(("" if one is None else one.lane.name, status, error))


def begun(*lanes: Lane, attempts: int = 3, hedges: bool = False) -> tuple[Course[Lane, One], World]:
    world = World()
    course: Course[Lane, One] = Course(world, list(lanes), attempts, hedges=hedges)
    course.begin()
    return course, world


def test_the_best_backend_answers() -> None:
    a, b = Lane("a"), Lane("b")
    course, world = begun(a, b)
    one = course.asked[0]
    one.status = 200
    assert course.first_byte(one)
    course.whole(one)
    assert world.did == ["send a", "finish"]
    assert world.ends == [("a", 200, "")]
    assert (one.judged, one.outcome) == ("good", "answered")
    assert course.ended
    assert not course.asked


def test_a_free_place_elsewhere_comes_before_a_line() -> None:
    _, world = begun(Lane("a", free=0, line="wait"), Lane("b"))
    assert world.did == ["send b"]


def test_who_waits_in_line_goes_when_a_place_is_free() -> None:
    a = Lane("a", free=0, line="wait")
    course, world = begun(a)
    assert (a.queued, world.did) == (1, [])
    course.go(a)
    assert (a.queued, world.did) == (0, ["send a"])


def test_who_loses_its_place_in_line_is_told() -> None:
    a = Lane("a", free=0, line="wait")
    course, world = begun(a)
    course.no_place(a, "it waited too long for a place")
    assert a.queued == 0
    assert a.counts[Count.SHED] == 1
    assert world.did == ["refuse 503 overloaded"]
    assert world.ends == [("", 503, "no place became free: it waited too long for a place")]


def test_nobody_has_a_place() -> None:
    a, b = Lane("a", free=0), Lane("b", free=0)
    _, world = begun(a, b)
    assert a.counts[Count.SHED] == b.counts[Count.SHED] == 1
    assert world.did == ["refuse 503 overloaded"]


def fail(course: Course[Lane, One], one: One, status: int) -> bool:
    """A head with this status."""
    one.status = status
    return course.failed_with(one, status, standing(status))


@pytest.mark.parametrize(
    ("status", "judged"),
    [(429, "busy"), (501, "")] + [(s, "broken") for s in (401, 402, 403, 404, 407, 408, 409, 425, 500, 503, 520, 529)],
)
def test_a_failing_status_sends_it_to_the_next_backend(status: int, judged: str) -> None:
    a, b = Lane("a"), Lane("b")
    course, world = begun(a, b)
    one = course.asked[0]
    assert not fail(course, one, status)
    assert world.did == ["send a", "drop a", "send b"]
    assert (one.judged, one.outcome) == (judged, f"status_{status}")
    assert b.counts[Count.RETRIED] == 1
    assert a.counts.get(Count.SERVER_ERRORS, 0) == (judged == "broken")


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503, 522])
def test_nobody_is_left_and_the_client_hears_why_but_never_the_backends_own_status(status: int) -> None:
    course, world = begun(Lane("a"), Lane("b"))
    course.trouble(course.asked[0], "refused", "nobody listens at 10.0.0.7:8000")
    one = course.asked[1]
    assert fail(course, one, status)
    one.retry_s = 7.0
    course.came_to_nothing(one, "it said so" if status >= 500 else "your key sk-1... is wrong")
    assert world.did == ["send a", "send b", "refuse 502 upstream_failed"]
    assert f"status {status}" in world.told
    assert ("it said so" in world.told) is (status >= 500)
    assert "sk-1" not in world.told
    assert "a: nobody listens" in world.told
    assert "10.0.0.7" not in world.told
    assert world.retry_s == 7.0
    assert (one.judged, one.outcome) == ("broken", f"status_{status}")
    assert world.ends[0][:2] == ("", 502)


def test_the_last_backend_that_is_busy_answers_for_itself() -> None:
    course, world = begun(Lane("a"))
    one = course.asked[0]
    assert fail(course, one, 429)
    assert course.first_byte(one)
    course.whole(one)
    assert (one.judged, one.outcome) == ("busy", "status_429")
    assert world.ends == [("a", 429, "")]


def test_an_error_for_an_answer_fails_over_and_teaches_the_breaker() -> None:
    a, b = Lane("a"), Lane("b")
    course, world = begun(a, b)
    first = course.asked[0]
    first.status = 200
    course.said_error(first, 500, "broken", "out of memory")
    assert (first.judged, first.outcome, a.counts[Count.TROUBLES]) == ("broken", "error_500", 1)
    second = course.asked[1]
    course.said_error(second, 429, "busy", "too many")
    assert second.judged == "busy"
    assert world.did == ["send a", "drop a", "send b", "drop b", "refuse 429 rate_limit_exceeded"]


def test_an_error_within_an_answer_counts_though_it_cannot_be_taken_back() -> None:
    course, world = begun(Lane("a"), Lane("b"))
    one = course.asked[0]
    one.status = 200
    course.first_byte(one)
    course.whole(one, failing="out of memory")
    assert (one.judged, one.outcome) == ("broken", "error")
    assert world.ends == [("a", 200, "error: out of memory")]


def test_an_empty_answer_is_asked_once_more_and_counts_where_another_has_content() -> None:
    a, b, c = Lane("a"), Lane("b"), Lane("c")
    course, world = begun(a, b, c)
    first = course.asked[0]
    assert course.says_nothing(first)
    second = course.asked[1]
    second.status = 200
    course.first_byte(second)
    course.whole(second)
    assert (first.judged, first.outcome, second.judged) == ("broken", "empty", "good")
    # Where the other one has nothing to say either, that is the answer, and neither is to blame.
    course, world = begun(a, b, c)
    first = course.asked[0]
    assert course.says_nothing(first)
    second = course.asked[1]
    second.status = 200
    assert not course.says_nothing(second)
    course.first_byte(second)
    course.whole(second, nothing="empty")
    assert (first.judged, second.judged) == ("", "")
    assert world.ends == [("b", 200, "an answer that says nothing")]
    assert world.did == ["send a", "drop a", "send b", "finish"]


def test_attempts_are_bounded() -> None:
    course, world = begun(Lane("a"), Lane("b"), Lane("c"), attempts=2)
    course.trouble(course.asked[0], "refused", "nobody listens")
    course.trouble(course.asked[1], "timeout", "no head")
    assert world.did == ["send a", "send b", "refuse 504 upstream_timeout"]
    assert world.ends == [("", 504, "a refused: nobody listens; b timeout: no head")]


def test_nothing_is_tried_again_once_the_client_has_a_byte() -> None:
    a, b = Lane("a"), Lane("b")
    course, world = begun(a, b)
    one = course.asked[0]
    one.status = 200
    course.first_byte(one)
    course.trouble(one, "cut", "closed")
    assert world.did == ["send a", "cut"]
    assert world.ends == [("a", 200, "cut: closed")]
    assert a.counts[Count.CUT] == 1


def test_an_answer_above_our_own_limit_does_not_speak_against_a_backend() -> None:
    course, _ = begun(Lane("a"))
    one = course.asked[0]
    course.trouble(one, "too_large", "")
    assert one.judged == ""


def test_a_hedge_that_answers_first_wins_and_the_other_is_dropped() -> None:
    a, b = Lane("a"), Lane("b")
    course, world = begun(a, b, hedges=True)
    assert world.timer
    world.hedge_to = b
    course.hedge_due()
    first, second = course.asked
    assert course.first_byte(second)
    assert not world.timer
    assert first.outcome == "hedge_lost"
    assert not course.first_byte(first)
    assert (b.counts[Count.HEDGED], b.counts[Count.HEDGE_WON]) == (1, 1)
    assert Count.RETRIED not in b.counts
    assert world.did == ["send a", "send b", "drop a", "drop a"]


def test_a_failure_beside_a_hedge_waits_for_the_hedge() -> None:
    a, b, c = Lane("a"), Lane("b"), Lane("c")
    course, world = begun(a, b, c, hedges=True)
    world.hedge_to = b
    course.hedge_due()
    course.trouble(course.asked[0], "reset", "")
    assert world.did == ["send a", "send b"]
    course.trouble(course.asked[1], "reset", "")
    assert world.did == ["send a", "send b", "send c"]


def test_nobody_is_asked_as_well_after_the_first_byte() -> None:
    course, world = begun(Lane("a"), Lane("b"), hedges=True)
    world.hedge_to = Lane("c")
    course.first_byte(course.asked[0])
    course.hedge_due()
    assert world.did == ["send a"]


def test_an_engine_that_loads_is_waited_for() -> None:
    a, b = Lane("a", away=True), Lane("b")
    course, world = begun(a, b)
    assert course.wanted is a
    course.tell_progress(a, 0.5)
    a.away = False
    course.loaded(a)
    assert world.did == ["a 0.5", "send a"]


def test_an_engine_that_does_not_come_leaves_it_to_the_next() -> None:
    a, b = Lane("a", away=True), Lane("b")
    course, world = begun(a, b)
    course.not_loaded(a, "it was not loaded in time")
    assert world.did == ["send b"]
    course.trouble(course.asked[0], "reset", "closed")
    assert world.ends == [("", 502, "a: it was not loaded in time; b reset: closed")]


def test_a_client_that_leaves_ends_everything_once() -> None:
    a, b = Lane("a"), Lane("b")
    course, world = begun(a, b, hedges=True)
    world.hedge_to = b
    course.hedge_due()
    course.gone()
    course.gone()
    assert world.did == ["send a", "send b", "drop a", "drop b"]
    assert world.ends == [("", CLIENT_LEFT, "the client left")]
    assert a.counts[Count.CANCELLED] == b.counts[Count.CANCELLED] == 1
    assert not world.timer


def test_a_client_that_leaves_a_line_or_an_engine_gives_its_place_up() -> None:
    a = Lane("a", free=0, line="wait")
    course, world = begun(a)
    course.gone()
    assert (a.queued, world.did) == (0, ["leave a"])
    course, world = begun(Lane("b", away=True))
    course.gone()
    assert world.did == ["unwant b"]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.booleans())
def test_whatever_happens_it_ends_once_and_leaves_nothing_under_way(seed: int, attempts: int, hedges: bool) -> None:
    dice = random.Random(seed)
    lanes = [
        Lane(name, dice.choice((0, 9)), dice.choice(("go", "wait", "full")), dice.random() < 0.2, dice.random() < 0.7)
        for name in "abcd"
    ]
    course, world = begun(*lanes, attempts=attempts, hedges=hedges)
    everybody: list[One] = []
    for _ in range(60):
        everybody += [one for one in course.asked if one not in everybody]
        if course.ended:
            break
        live = [one for one in course.asked if not one.outcome]
        if course.waits_at is not None and not live:
            lane = course.waits_at
            if (event := dice.randrange(3)) == 0:
                course.gone()
            elif event == 1:
                course.no_place(lane, "late")
            else:
                course.go(lane)
        elif course.wanted is not None and not live:
            lane = course.wanted
            lane.away, lane.comes = dice.random() < 0.5, False
            if (event := dice.randrange(3)) == 0:
                course.gone()
            elif event == 1:
                course.not_loaded(lane, "late")
            else:
                course.loaded(lane)
        elif live:
            one = dice.choice(live)
            event = dice.randrange(5)
            if event == 0 and not one.status:
                one.status = dice.choice((200, 400, 429, 500))
                if one.status in (429, 500) and fail(course, one, one.status) and dice.random() < 0.5:
                    course.came_to_nothing(one, "")
            elif event == 1 and one.status and (course.winner is one or course.first_byte(one)):
                if dice.random() < 0.7:
                    course.whole(one)
            elif event == 2 and one.status == 200 and course.winner is None and dice.random() < 0.5:
                if dice.random() < 0.5:
                    course.said_error(one, 500, "broken", "")
                elif not course.says_nothing(one) and course.first_byte(one):
                    course.whole(one, nothing="empty")
            elif event == 2:
                course.trouble(one, dice.choice(("timeout", "reset", "too_large")), "")
            elif event == 3 and world.timer:
                world.hedge_to = dice.choice([None, *course.order])
                course.hedge_due()
            elif event == 4 and dice.random() < 0.3:
                course.gone()
    if not course.ended:
        course.gone()
    assert len(world.ends) == 1
    assert all(one.outcome for one in everybody)
    assert sum(not one.hedge for one in everybody) <= attempts
    assert all(lane.queued == 0 for lane in lanes)
    assert sum(did.split()[0] in ("finish", "cut", "refuse") for did in world.did) <= 1
    assert not world.timer


# How an answer begins.


def chat(**delta: object) -> bytes:
    """An event of a chat."""
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}).encode() + b"\n\n"


ROLE, HELLO = chat(role="assistant", content=""), chat(content="Hello")
STOP = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 0}}\n\n'
DONE = b"data: [DONE]\n\n"


def test_a_forms_refusal_says_nothing_of_the_gateways_key() -> None:
    """What a client calls its file may have such words, and a form is not looked through."""
    said = b'{"error": {"message": "cannot read Incorrect API key.wav"}}'
    for form, first in ((True, "content"), (False, "error")):
        opening = Opening({}, streams=False, form=form)
        assert opening.feed(said) == ""
        assert opening.end(400) == first


def opens(*pieces: bytes, streams: bool = True, length: int = -1) -> tuple[First, int, Opening]:
    """What the pieces say first, after how many of them, and the opening; a further one is the end."""
    opening = Opening({}, streams=streams, length=length)
    for k, piece in enumerate(pieces):
        if first := opening.feed(piece):
            return first, k + 1, opening
    return opening.end(), len(pieces) + 1, opening


@pytest.mark.parametrize(
    ("pieces", "first", "after"),
    [
        ([HELLO], "content", 1),
        ([b": PROCESSING\n\n", b": PROCESSING\n\n", ROLE, b"data: null\n\n", HELLO, HELLO], "content", 5),
        ([ROLE + HELLO], "content", 1),
        ([ROLE, chat(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": ""}}])], "content", 2),
        ([HELLO[:9], HELLO[9:30], HELLO[30:]], "content", 3),
        ([HELLO.rstrip()], "content", 2),
        ([b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error"}}\n\n'], "error", 1),
        ([b": hm\n\n", ROLE, b'data: {"error": {"message": "no memory", "code": 500}}\r\n\r\n'], "error", 3),
        ([b'data: {"error": {"message": "too long", "code": 400}}\n\n'], "declined", 1),
        ([ROLE, STOP, USAGE, DONE], "empty", 2),
        ([STOP.replace(b"stop", b"content_filter")], "declined", 1),
        ([STOP.replace(b"stop", b"sensitive")], "declined", 1),
        ([b'data: {"type": "message_delta", "delta": {"stop_reason": "refusal"}}\n\n'], "declined", 1),
        ([STOP.replace(b"{}", b'{"refusal": null}')], "empty", 1),
        ([ROLE, STOP.replace(b"stop", b"abort")], "error", 2),
        ([ROLE, b'data: [{"error": {"code": 503, "message": "m"}}]\n\n'], "error", 2),
        ([ROLE, DONE], "none", 2),
        ([b'{"choices": [{"message": {"content": "hi"}}]}'], "content", 2),
        ([b' {"error": {"message": "no memory", "code": 500}}'], "error", 2),
        ([b": hm\n\n", ROLE, USAGE], "none", 4),
        ([], "none", 1),
        ([b": " + b"x" * 300_000], "content", 1),
    ],
)
def test_a_stream_is_held_until_it_says_something(pieces: list[bytes], first: First, after: int) -> None:
    found, count, opening = opens(*pieces)
    assert (found, count) == (first, after)
    assert opening.data() == b"".join(pieces[:count])
    # However it is cut.
    every = b"".join(pieces)
    cut = [every[k : k + 1] for k in range(len(every))] if len(every) < 10_000 else pieces
    assert opens(*cut)[0] == first


def test_an_answer_in_one_piece_is_held_while_it_is_short_enough_for_an_error() -> None:
    good = b'{"choices": [{"message": {"content": "the \\"error\\": you made"}}]}'
    assert opens(good[:10], good[10:], streams=False)[:2] == ("content", 3)
    found, _, opening = opens(b'{"error": {"message": "Provider returned', b' error", "code": 502}}', streams=False)
    assert (found, opening.status, opening.message) == ("error", 502, "Provider returned error")
    assert opens(b"", streams=False)[0] == "none"
    assert opens(b"x" * 20_000, b"y", streams=False)[:2] == ("content", 1)
    # What came at once goes at once, when its end is known to be good.
    assert opens(b"x" * 20_000, streams=False, length=20_000)[:2] == ("content", 2)
    # An error that repeats all that was sent is one, however long.
    long = json.dumps({"error": {"message": "no memory", "code": 503, "input": "x" * 40_000}}).encode()
    for pieces, length in (([long[:30_000], long[30_000:]], -1), ([long], len(long))):
        found, _, opening = opens(*pieces, streams=False, length=length)
        assert (found, opening.status, opening.message) == ("error", 503, "no memory")
    good = json.dumps({"error": None, "choices": [{"message": {"content": "x" * 40_000}}]}).encode()
    assert opens(good[:30_000], good[30_000:], streams=False)[:2] == ("content", 1)
    # A web page is none, however long, and whatever its type says.
    page = b"\n<!doctype html>" + b"x" * 20_000
    assert opens(page[:9], page[9:], streams=False)[:2] == ("none", 2)
    assert opens(page, streams=False, length=len(page))[:2] == ("none", 2)


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({"error": {"code": 429}}, 429),
        ({"error": {"code": "503"}}, 503),
        ({"error": {"type": "invalid_request_error", "code": "context_length_exceeded"}}, 400),
        ({"type": "error", "error": {"type": "overloaded_error"}}, 529),
        ({"type": "response.failed", "response": {"error": {"code": "rate_limit_exceeded"}}}, 429),
        ({"object": "error", "type": "BadRequestError", "code": 400}, 400),
        ({"error": "CUDA out of memory"}, 500),
        ({"error": {"code": True, "type": 7}}, 500),
        ([{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}], 429),
        ({"choices": [{"finish_reason": None, "error": {"code": 400, "message": "m"}}]}, 400),
    ],
)
def test_what_an_error_under_a_good_status_amounts_to(told: object, status: int) -> None:
    assert error_status(json.dumps(told).encode()) == status
    assert error_status(b"no json") == 500


def test_what_a_request_names_may_be_missing_by_its_own_fault() -> None:
    assert names_something({"previous_response_id": b'"resp_1"'})
    assert names_something({"input": b'[{"content": [{"type": "input_file", "file_id": "file-1"}]}]'})
    assert not names_something({"previous_response_id": b"null", "messages": b'[{"content": "hi"}]'})


def test_which_troubles_speak_against_a_backend() -> None:
    for trouble in ("refused", "unreachable", "reset", "timeout", "garbage", "forbidden", "cut", "too_large", "empty"):
        assert trouble_is_broken(trouble) is (trouble != "too_large")
