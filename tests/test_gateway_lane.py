"""What a worker makes of one backend: its view at the moment of a decision, its price, its secret."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from math import log
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.gateway.keys.entry import KeyLimit
from breakeven.gateway.plan.limits import Limits
from breakeven.gateway.plan.model import BackendPlan
from breakeven.gateway.route.learned import MOST_KEYS, held, measured
from breakeven.gateway.route.speed import Observed
from breakeven.gateway.route.view import usd_per_s
from breakeven.gateway.serve.account import usd_of
from breakeven.gateway.serve.ask import Client, new_ask, read_body
from breakeven.gateway.serve.lane import REFRESH_S, STALE_S, Lane, agent_of, secret_of
from breakeven.gateway.serve.leg import KEEP_ALIVE_NS, Leg
from breakeven.gateway.serve.waiting import WaitingLine
from breakeven.gateway.shared.block import Shape, SharedBlock
from breakeven.gateway.shared.layout import Known, State, UnderWay
from breakeven.results.cost import Api, Own, Rented

SHAPE = Shape(workers=4, backends=3, keys=1, models=1, experiments=1)
SLOT = 2
CHAT = "/v1/chat/completions"


def lane_of(block: SharedBlock, worker: int = 1, keys: int = 0, **fields: object) -> Lane:
    plan = BackendPlan(name="b", url="http://127.0.0.1:1/v1", **fields)  # type: ignore[arg-type]
    return Lane(0, plan, SLOT, block, worker, Observed(), Limits(), 10, keys)


@given(st.lists(st.integers(0, 50), min_size=3, max_size=3), st.integers(0, 50), st.integers(0, 200))
def test_running_is_ours_everywhere_and_what_others_sent_by_themselves(
    in_flight: list[int], at_poll: int, told: int
) -> None:
    block = SharedBlock(SHAPE)
    lane = lane_of(block, slots=16, limit=100)
    for worker, count in enumerate(in_flight, start=1):
        block.load.put(worker, SLOT, UnderWay.IN_FLIGHT, count)
        block.load.put(worker, 0, UnderWay.IN_FLIGHT, 999)
    now_s = time.monotonic()
    block.known.put(0, SLOT, Known.POLLED_S, now_s)
    block.known.put(0, SLOT, Known.RUNNING, float(told))
    block.known.put(0, SLOT, Known.OURS_AT_POLL, float(at_poll))
    view = lane.refresh(now_s)
    ours = sum(in_flight)
    assert view.running == ours + max(0, told - at_poll)
    assert view.waiting == max(0.0, view.running - 16)
    assert view.free == 100 - ours
    assert not view.stale


def test_numbers_that_nobody_renewed_are_stale_and_those_never_told_are_not() -> None:
    block = SharedBlock(SHAPE)
    lane = lane_of(block)
    now_s = time.monotonic()
    assert not lane.refresh(now_s).stale
    block.known.put(0, SLOT, Known.POLLED_S, now_s - STALE_S - 1.0)
    assert lane.refresh(now_s).stale


def test_who_is_asked_for_numbers_and_does_not_answer_is_away() -> None:
    block = SharedBlock(SHAPE)
    asked, not_asked = lane_of(block), lane_of(block, poll=False)
    for up, away in ((-1.0, True), (1.0, False), (0.0, True)):
        block.known.put(0, SLOT, Known.UP, up)
        assert asked.refresh(time.monotonic()).away is away
        assert not not_asked.refresh(time.monotonic()).away, "a hosted one says nothing by silence"


def test_other_workers_are_looked_at_again_after_a_moment() -> None:
    block = SharedBlock(SHAPE)
    lane = lane_of(block)
    now_s = time.monotonic()
    assert lane.refresh(now_s).running == 0
    block.load.put(2, SLOT, UnderWay.IN_FLIGHT, 3)
    assert lane.refresh(now_s + 2 * REFRESH_S).running == 3


def test_an_engine_that_is_not_loaded_says_how_long_it_would_take() -> None:
    block = SharedBlock(SHAPE)
    lane = lane_of(block)
    now_s = time.monotonic()
    for state, ready, load_s in ((State.READY, True, 0.0), (State.LOADING, False, 7.0), (State.FAILED, False, None)):
        block.known.put(0, SLOT, Known.STATE, state)
        block.known.put(0, SLOT, Known.LOAD_S, 7.0)
        view = lane.refresh(now_s)
        assert (view.ready, view.load_s) == (ready, load_s)


def test_what_was_learned_is_in_the_view() -> None:
    block = SharedBlock(SHAPE)
    lane = lane_of(block)
    block.known.put(0, SLOT, Known.TTFT_LOG, log(2.0))
    block.known.put(0, SLOT, Known.TPOT_LOG, log(0.5))
    view = lane.refresh(time.monotonic())
    assert view.ttft_factor == pytest.approx(2.0)
    assert view.tpot_factor == pytest.approx(0.5)


def test_means_start_with_the_first_value_and_move_slowly() -> None:
    lengths = lane_of(SharedBlock(SHAPE)).lengths
    usual = lengths.output_tokens("")
    lengths.learn_output("", 100)
    assert lengths.output_tokens("") == 100.0 != usual
    lengths.learn_output("", 200)
    assert 100.0 < lengths.output_tokens("") < 120.0


def test_one_key_cannot_move_another_keys_means_and_those_of_all_only_little() -> None:
    block = SharedBlock(SHAPE)
    lengths = lane_of(block).lengths
    for k in range(20):
        lengths.learn_output("ab"[k % 2], 100)
        lengths.learn_bytes("ab"[k % 2], 400, 100)
    for _ in range(1000):
        lengths.learn_output("a", 10**7)
        lengths.learn_bytes("a", 7, 20_000)
    assert (lengths.output_tokens("b"), lengths.bytes_per_token("b")) == (100.0, 4.0)
    assert (lengths.output_tokens("a"), lengths.bytes_per_token("a")) == (pytest.approx(16_384), pytest.approx(1.0))
    # Whoever was not seen yet is taken for one of all.
    assert 100.0 < lengths.output_tokens("c") < 0.4 * 16_384
    assert lengths.bytes_per_token("c") > 2.5
    # Another worker knows those of all at once, and of nobody alone.
    assert lane_of(block, worker=2).lengths.output_tokens("b") == lengths.output_tokens("c")


def test_keys_with_means_of_their_own_are_bounded() -> None:
    lengths = lane_of(SharedBlock(SHAPE)).lengths
    for k in range(MOST_KEYS + 10):
        lengths.learn_output(f"k{k}", 10)
    lengths.learn_output(f"k{MOST_KEYS + 9}", 10)
    assert len(lengths._by_key) == MOST_KEYS
    assert "k0" not in lengths._by_key


@pytest.mark.parametrize(
    ("fields", "whole"),
    [
        ({"messages": '[{"role": "user", "content": "hi"}]', "temperature": "0.5", "user": '"' + "u" * 90 + '"'}, True),
        ({"input": '"go on"', "previous_response_id": '"r"'}, False),
        ({"input": '"go on"', "previous_response_id": "null"}, True),
        ({"messages": "[]", "documents": '[{"text": "x"}]'}, False),
        ({"messages": "[]", "unknown": '"' + "x" * 100 + '"'}, False),
        ({"messages": '[{"content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]'}, False),
        ({"messages": '[{"content": [{"type": "text", "text": "hi"}]}]'}, True),
        ({"prompt": '{"id": "pmpt_1"}'}, False),
    ],
)
def test_a_prompt_teaches_only_where_all_of_it_was_measured(fields: dict[str, str], whole: bool) -> None:
    assert measured({name: value.encode() for name, value in fields.items()}) is whole


@given(st.floats(0, 1e7), st.floats(0, 1e7), st.floats(0, 1e3), st.integers(1, 10**6), st.integers(1, 10**12))
def test_a_guess_alone_never_shuts_a_key_out(least: float, more: float, usd: float, most: int, nano_usd: int) -> None:
    limits = (KeyLimit("tokens", most, 60.0), KeyLimit("usd", nano_usd, 60.0))
    tokens, dollars = held(limits, least, least + more, usd)
    assert tokens <= max(most, least + more)
    if least <= most:
        assert tokens <= most
    else:
        assert tokens == least + more
    assert dollars <= usd


def test_an_api_is_paid_by_the_token_and_cached_ones_cost_less() -> None:
    price = Api(usd_per_mtok_input=1.0, usd_per_mtok_output=10.0, usd_per_mtok_cached_input=0.1)
    lane = lane_of(SharedBlock(SHAPE), price=price)
    assert usd_of(lane, 1000, 0, 100, 3) == pytest.approx(1000e-6 + 1000e-6)
    assert usd_of(lane, 1000, 400, 100, 3) == pytest.approx(600e-6 + 40e-6 + 1000e-6)


def test_a_machine_is_paid_by_the_second_it_is_held_up() -> None:
    lane = lane_of(SharedBlock(SHAPE), price=Rented(usd_per_hour=3.6))
    alone = usd_of(lane, 100, 0, 10, 0)
    assert alone == pytest.approx(0.001 * lane.view.speed.added_s(100, 10, 0, 105))
    assert usd_of(lane, 100, 0, 10, 9) < alone
    assert usd_of(lane_of(SharedBlock(SHAPE)), 100, 0, 10, 0) == 0.0


def test_a_bought_machine_costs_its_purchase_its_upkeep_and_its_power() -> None:
    price = Own(usd=36_525.0, life_years=1.0, usd_per_kwh=0.5, busy_w=1000.0, power_overhead=1.2, yearly_upkeep_usd=0.0)
    assert usd_per_s(price) * 86_400 == pytest.approx(100.0 + 1.2 * 24 * 0.5)


def test_a_key_that_is_missing_or_unprintable_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = BackendPlan(name="b", url="http://127.0.0.1:1/v1", api_key_env="SOME_KEY")
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(UserError, match="SOME_KEY holds no key"):
        secret_of(plan)
    monkeypatch.setenv("SOME_KEY", "sk-canary\r\nx: y")
    with pytest.raises(UserError, match="unprintable") as error:
        secret_of(plan)
    assert "canary" not in str(error.value)
    monkeypatch.setenv("SOME_KEY", "sk-canary")
    assert secret_of(plan) == ((b"authorization", b"Bearer sk-canary"),)
    assert secret_of(replace(plan, key_header="x-api-key")) == ((b"x-api-key", b"sk-canary"),)


def test_an_agent_of_a_backends_own_goes_once_and_in_the_place_of_ours() -> None:
    lane = lane_of(SharedBlock(SHAPE), headers={"User-Agent": "mine/1", "x-team": "a"})
    assert lane.upstream is not None
    assert lane.upstream._fixed.lower().count(b"user-agent: ") == lane.upstream._fixed.count(b"user-agent: mine/1") == 1
    assert lane.speech.sent(CHAT, [(b"accept", b"*/*")], {}).headers == [(b"accept", b"*/*"), (b"x-team", b"a")]
    assert agent_of(BackendPlan(name="b", url="http://127.0.0.1:1/v1")) == ()


class Sender:
    """The request of one leg, and everything that is done for it."""

    def __init__(self) -> None:
        self.asked = read_body(b'{"model": "b", "stream": true, "messages": "hi"}')
        self.ask, self.client = new_ask(CHAT, self.asked, 10.0), Client(None, 0)
        self.endpoint, self.headers, self.query, self.early, self.answer = CHAT, (), "", False, None
        self.responder = self.exchange = self
        self.waiting_body = self.by_close = False
        self.did: list[object] = []

    def told(self, lane: Lane | None) -> list[tuple[bytes, bytes]]:
        return []

    def tell_waiting(self, lane: Lane) -> None:
        self.did.append("waiting")

    def start(self, status: int, headers: object) -> None:
        self.did.append(status)

    def write(self, data: bytes) -> None:
        self.did.append(data)

    def first_byte(self, one: Leg) -> bool:
        return True


def test_signs_of_life_leave_the_first_byte_s_time_running_and_are_told_now_and_then() -> None:
    sender: Any = Sender()
    lane = lane_of(SharedBlock(SHAPE))
    leg = Leg(sender, sender, lane, sender, keep=False, hedge=False)
    leg.exchange = sender
    leg.on_head(200, [(b"content-type", b"text/event-stream")])
    for late_ns, waits in ((0, 0), (KEEP_ALIVE_NS, 1), (0, 1), (KEEP_ALIVE_NS, 2)):
        sender.waiting_body = False
        leg._alive_ns -= late_ns
        leg.on_body(b": PROCESSING\n\n")
        assert sender.did == ["waiting"] * waits
        assert sender.waiting_body
        assert leg.first_ns == 0
    content = b'data: {"choices": [{"delta": {"content": "Hello"}}]}\n\n'
    leg.on_body(content)
    assert sender.did[2:] == [200, b": PROCESSING\n\n" * 4 + content]
    assert leg.first_ns == leg.said_ns > 0
    leg.on_body(b": PROCESSING\n\n")
    assert sender.did[4:] == [b": PROCESSING\n\n"]
    assert leg.said_ns == leg.first_ns < leg.last_ns


@pytest.mark.parametrize(("endpoint", "state"), [(CHAT, "open"), ("/v1/messages/count_tokens", "closed")])
def test_counts_that_fail_close_no_backend(endpoint: str, state: str) -> None:
    """llama.cpp answers 500 where a model's template takes no system text behind the beginning, and is well."""
    sender: Any = Sender()
    sender.endpoint = endpoint
    lane = lane_of(SharedBlock(SHAPE))
    for _ in range(5):
        Leg(sender, sender, lane, sender, keep=False, hedge=False).judge("broken")
    assert lane.breaker.state == state


class Standing:
    """A request in line at the backend of a worker, for a key."""

    def __init__(self, lane: Lane, line: WaitingLine, key: int, *, queue_s: float = 60.0) -> None:
        self.lane, self.line, self.lost = lane, line, ""
        self.goes = False
        now_s = time.monotonic()
        if line.enter(lane, self, 0, now_s + queue_s, now_s, key) == "go":
            self.go(lane)

    def go(self, lane: Lane) -> None:
        self.goes = True
        lane.add(UnderWay.IN_FLIGHT, 1)

    def end(self) -> None:
        """As a leg does it."""
        self.lane.add(UnderWay.IN_FLIGHT, -1)
        self.line.left(self.lane, self)

    def no_place(self, lane: Lane, why: str) -> None:
        self.lost = why

    def loaded(self, lane: Lane) -> None:
        raise AssertionError("it waits for no engine")

    not_loaded = tell_progress = loaded  # type: ignore[assignment]


async def test_workers_share_the_places_of_a_backend_between_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    # A claim of a worker that is held up holds all the same.
    monkeypatch.setattr("breakeven.gateway.serve.lane.CLAIM_HOLDS_NS", 60 * 10**9)
    block = SharedBlock(Shape(workers=3, backends=3, keys=3, models=1, experiments=1))
    loop, anna, bert = asyncio.get_running_loop(), 1, 2
    lanes = [lane_of(block, worker, keys=3, limit=6) for worker in (1, 2)]
    lines = [WaitingLine(loop, Limits(), 60.0) for _ in lanes]

    async def stands(worker: int, key: int) -> Standing:
        await asyncio.sleep(2 * REFRESH_S)  # so that the other worker's cells are looked at again
        one = Standing(lanes[worker], lines[worker], key)
        if not one.goes:
            lanes[worker].add(UnderWay.QUEUED, 1)
        return one

    first = [await stands(worker, anna) for worker in (0, 1, 0, 1, 0, 1)]
    assert [one.goes for one in first] == [True] * 5 + [False], "the last place is kept in every worker"
    long = await stands(1, bert)
    assert long.goes
    waits = [await stands(0, anna), await stands(1, bert)]
    assert not any(one.goes for one in waits)
    # Anna is left three here and Bert has one: what worker 0 frees is not its own Anna's, though nobody tells worker 1.
    await asyncio.sleep(2 * REFRESH_S)
    for one in (first[0], first[2]):
        one.end()
    assert not waits[0].goes
    end_s = time.monotonic() + 60.0
    while not (waits[1].goes or time.monotonic() > end_s):
        await asyncio.sleep(0.002)
    assert waits[1].goes
    assert (lanes[0].gate.held(anna), lanes[0].gate.held(bert)) == (3, 2)
    for lane, line, late in ((lanes[0], lines[0], waits[0]), (lanes[1], lines[1], first[5])):
        lane.gate.remove(late)
        line._look()
    for one in (first[1], first[3], first[4], long, waits[1]):
        one.end()
    assert not any(block.held.cells)
    claims = (UnderWay.CLAIM_PRIORITY, UnderWay.CLAIM_FEWER, UnderWay.CLAIM_NS)
    assert [block.load.total(SLOT, column) for column in claims] == [0, 0, 0]


async def test_a_worker_that_was_away_itself_takes_that_time_from_nobody_in_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is awaited, so that no timer of the loop looks as well."""
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    monkeypatch.setattr(time, "monotonic_ns", lambda: round(now_s * 1e9))
    lane = lane_of(SharedBlock(SHAPE), limit=1)
    line = WaitingLine(asyncio.get_running_loop(), Limits(), 60.0)
    first, second, third = (Standing(lane, line, 0, queue_s=30.0) for _ in range(3))
    assert [one.goes for one in (first, second, third)] == [True, False, False]
    now_s += 100.0
    line._look()
    assert [one.lost for one in (second, third)] == ["", ""], "the answer before them may be here, unread"
    first.end()
    assert second.goes
    for _ in range(58):
        now_s += 0.5
        line._look()
    assert not third.lost
    for _ in range(4):
        now_s += 0.5
        line._look()
    assert third.lost
    second.end()
