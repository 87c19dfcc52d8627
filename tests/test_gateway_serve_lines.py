"""Who waits, who goes first, who is refused, who is asked twice or in secret: one running gateway with one worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from chaos_server import ChaosServer
from gateway_serve_fixtures import Gateway, Listener, Reply, ask, question, serving, wait

from breakeven.gateway.keys.store import create

ENDLESS = 1_000_000
FIRST_S = 0.3
"""How long the slow backend thinks before its first byte."""
USERS = 24


@dataclass
class House:
    """A gateway, its keys' headers by name, and the servers behind it."""

    gateway: Gateway
    keys: dict[str, dict[str, str]]
    narrow: ChaosServer
    slow: ChaosServer
    quick: ChaosServer

    def ask(self, ident: str, model: str, key: str = "plain", **fields: Any) -> Reply:
        """Ask with a key."""
        return ask(self.gateway.url, question(ident, model, **fields), headers=self.keys[key])

    def hold(self, ident: str) -> Listener:
        """Take a place at the narrow backend until the client leaves."""
        body = question(ident, "narrow", stream=True, max_tokens=ENDLESS)
        client = Listener(self.gateway.url, body, self.keys["plain"])
        client.until(f'"{ident} "'.encode())
        return client

    def waiting(self, count: int) -> None:
        """Until so many wait at the narrow backend."""
        wait(lambda: self.gateway.backend("narrow")["queued"] == count, f"not {count} in line")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The one gateway of this file."""
    directory = tmp_path_factory.mktemp("lines")
    priorities = {"low": -1, "plain": 0, "other": 0, "high": 5}
    keys = {name: create(directory / "keys.json", name, priority=p) for name, p in priorities.items()}
    dear = {"api": {"input": 9, "output": 9}}
    speed = {"ttft": "10ms", "tokens_per_s": 1000, "source": "made up"}
    with ChaosServer("ok", chunk_s=0.005) as narrow, ChaosServer("ok", first_s=FIRST_S) as slow, ChaosServer() as quick:
        plan = {
            "backends": [
                {"name": "narrow", "url": f"{narrow.url}/v1", "limit": 2, "poll": False},
                {"name": "four", "url": f"{narrow.url}/v1", "limit": 4, "poll": False},
                {"name": "slow", "url": f"{slow.url}/v1", "speed": speed, "kind": "dense"},
                {"name": "quick", "url": f"{quick.url}/v1", "speed": speed, "kind": "moe", "price": dear},
                {"name": "spare", "url": f"{quick.url}/v1", "price": dear},
            ],
            "policies": [
                {"model": "line", "backends": ["narrow"], "queue": "20s", "queue_size": 2},
                {"model": "hasty", "backends": ["narrow"], "queue": "150ms", "queue_size": 2},
                {"model": "shared", "backends": ["four"], "queue": "20s", "queue_size": 2},
                {"model": "wide", "backends": ["narrow", "spare"], "policy": "cheapest", "explore": 0, "queue_size": 2},
                {"model": "hedged", "backends": ["slow", "quick"], "policy": "cheapest", "explore": 0,
                 "hedge": {"share": 0.25}},
                {"model": "strict", "backends": ["quick"], "slo": {"ttft": "1ms"}, "shed": True},
                {"model": "split", "backends": ["quick", "spare"], "explore": 0},
                {"model": "copied", "backends": ["quick", "spare"], "policy": "cheapest", "explore": 0},
                {"model": "again", "backends": ["quick", "spare"], "policy": "cheapest", "explore": 0},
            ],
            "experiments": [
                {"name": "halves", "kind": "ab", "model": "split", "control": "quick", "treatment": "spare",
                 "sticky_by": "x-user"},
                {"name": "secret", "kind": "shadow", "model": "copied", "control": "quick", "treatment": "narrow",
                 "share": "100%"},
                {"name": "echoes", "kind": "ab", "model": "again", "control": "quick", "treatment": "spare",
                 "repeats": 1000},
            ],
            "keys": "keys.json",
        }  # fmt: skip
        with serving(directory, plan) as gateway:
            headers = {name: {"authorization": f"Bearer {secret}"} for name, secret in keys.items()}
            yield House(gateway, headers, narrow, slow, quick)


@pytest.fixture
def full(house: House) -> Iterator[list[Listener]]:
    """Both places of the narrow backend are taken."""
    holders = [house.hold("first"), house.hold("second")]
    yield holders
    for one in holders:
        one.leave()
    wait(house.gateway.idle, "something is still counted")


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    """Clients beside each other."""
    with ThreadPoolExecutor(12) as pool:
        yield pool


# Lines.


def test_beyond_its_limit_requests_wait_and_go_when_a_place_is_free(
    house: House, full: list[Listener], clients: ThreadPoolExecutor
) -> None:
    waits = clients.submit(house.ask, "waits", "line", max_tokens=2)
    house.waiting(1)
    assert house.narrow.seen.ids["waits"] == 0
    assert house.gateway.backend("narrow")["in_flight"] == 2
    full[0].leave()
    reply = waits.result(60)
    assert (reply.status, reply.backend) == (200, "narrow")
    record = house.gateway.record(reply.id)
    assert record.queue_s > 0
    assert house.narrow.seen.most_under_way == 2


@pytest.mark.usefixtures("full")
def test_a_request_past_its_deadline_never_goes(house: House) -> None:
    reply = house.ask("late", "hasty")
    assert (reply.status, reply.json["error"]["code"]) == (503, "overloaded")
    assert int(reply.headers["retry-after"]) >= 1
    record = house.gateway.record(reply.id)
    assert (record.status, record.attempts, record.backend) == (503, [], "")
    assert house.narrow.seen.ids["late"] == 0


def test_a_full_line_drops_the_newest_of_the_lowest_priority_and_the_highest_goes_first(
    house: House, full: list[Listener], clients: ThreadPoolExecutor
) -> None:
    def later(ident: str, key: str, in_line: int) -> Future[Reply]:
        asked = clients.submit(house.ask, ident, "line", key, max_tokens=2)
        house.waiting(in_line)
        return asked

    low, newer = later("low", "low", 1), later("newer", "low", 2)
    # Two wait, which is all there is room for: an equal newcomer is refused, a higher one takes the newer one's place.
    assert house.ask("third", "line", "low").status == 503
    high = later("high", "high", 2)
    assert newer.result(60).status == 503
    assert house.narrow.seen.ids["newer"] == house.narrow.seen.ids["third"] == 0
    full[0].leave()
    assert high.result(60).status == low.result(60).status == 200
    order = [ident for ident in house.narrow.seen.ids if ident in ("high", "low")]
    assert order == ["high", "low"]


def test_who_leaves_the_line_is_never_asked_for(house: House, full: list[Listener]) -> None:
    client = Listener(house.gateway.url, question("gone", "line"), house.keys["plain"])
    house.waiting(1)
    client.leave()
    house.waiting(0)
    full[0].leave()
    wait(lambda: house.narrow.seen.under_way == 1, "the holder did not leave")
    assert house.ask("next", "line", max_tokens=2).status == 200
    assert house.narrow.seen.ids["gone"] == 0


def test_one_key_s_endless_streams_leave_a_place_and_a_turn_for_another(
    house: House, clients: ThreadPoolExecutor
) -> None:
    def counts(in_flight: int, queued: int) -> None:
        def now() -> tuple[int, int]:
            four = house.gateway.backend("four")
            return four["in_flight"], four["queued"]

        wait(lambda: now() == (in_flight, queued), f"not {in_flight} under way and {queued} in line")

    def hold(ident: str, key: str) -> Listener:
        body = question(ident, "shared", stream=True, max_tokens=ENDLESS)
        return Listener(house.gateway.url, body, house.keys[key])

    plain = [hold(f"plain{k}", "plain") for k in range(5)]
    counts(3, 2)
    assert house.ask("first of other", "shared", "other", max_tokens=2).status == 200
    other = hold("other", "other")
    counts(4, 2)
    # Its second request takes a place in line from the key that has most here, and goes before the one that is left.
    second = clients.submit(house.ask, "second of other", "shared", "other", max_tokens=2)
    wait(lambda: house.gateway.backend("four")["shed"] == 1, "nobody lost a place in line")
    for one in plain:
        if one.started():
            one.leave()
    assert second.result(60).status == 200
    for one in (*plain, other):
        one.leave()
    wait(house.gateway.idle, "something is still counted")


@pytest.mark.usefixtures("full")
def test_another_backend_with_a_free_place_goes_before_a_line(house: House) -> None:
    reply = house.ask("round", "wide")
    assert (reply.status, reply.backend) == (200, "spare")
    assert house.gateway.backend("narrow")["queued"] == 0


def test_what_would_be_late_everywhere_is_refused_where_that_was_asked_for(house: House) -> None:
    reply = house.ask("strict", "strict")
    assert (reply.status, reply.json["error"]["code"]) == (429, "shed")
    assert house.gateway.record(reply.id).reason == "shed"
    assert house.quick.seen.ids["strict"] == 0


# Hedges.


def test_hedges_help_within_their_budget(house: House, clients: ThreadPoolExecutor) -> None:
    before = house.gateway.backend("quick")["hedged"]
    replies = list(clients.map(lambda k: house.ask(f"hedge{k}", "hedged", stream=True), range(40)))
    assert {reply.status for reply in replies} == {200}
    hedged = house.gateway.backend("quick")["hedged"] - before
    assert 1 <= hedged <= 0.25 * len(replies)
    won = [house.gateway.record(reply.id) for reply in replies if reply.backend == "quick"]
    assert won
    for record in won:
        # The first one was cancelled, and the answer is the second one's alone.
        assert [(one.backend, one.outcome, one.hedge) for one in record.attempts] == [
            ("slow", "hedge_lost", False),
            ("quick", "answered", True),
        ]
    for k, reply in enumerate(replies):
        assert reply.body.count(f'"hedge{k} "'.encode()) == 8
    wait(house.gateway.idle, "something is still counted")


def test_nobody_else_is_asked_after_the_first_byte(house: House) -> None:
    client = Listener(
        house.gateway.url, question("begun", "hedged", stream=True, chaos="stall_mid_body"), house.keys["plain"]
    )
    client.until(b'"begun "')
    asked = house.slow.seen.ids["begun"] + house.quick.seen.ids["begun"]
    hedged = house.gateway.backend("quick")["hedged"]
    # These four fill the budget by one; it is silent for longer than any of them was before it was hedged.
    for k in range(4):
        house.ask(f"other{k}", "hedged")
    wait(lambda: house.gateway.backend("quick")["hedged"] > hedged or not house.ask("more", "hedged"), "no budget")
    client.leave()
    assert house.slow.seen.ids["begun"] + house.quick.seen.ids["begun"] == asked


# Experiments.


def test_a_user_stays_in_one_arm_and_both_arms_are_used(house: House) -> None:
    arms: dict[str, set[str | None]] = {}
    for k in range(2 * USERS):
        user = f"user{k % USERS}"
        headers = {**house.keys["plain"], "x-user": user}
        reply = ask(house.gateway.url, question(f"ab{k}", "split"), headers=headers)
        assert (reply.status, reply.headers["x-breakeven-reason"]) == (200, "experiment")
        arms.setdefault(user, set()).add(reply.backend)
    assert all(len(found) == 1 for found in arms.values())
    used = Counter(next(iter(found)) for found in arms.values())
    # 24 users, each by a hash: none in one arm would be 1 in 8 million, and the hash does not change.
    assert set(used) == {"quick", "spare"}
    wait(lambda: sum(one.experiment == "halves" for one in house.gateway.logged()) == 2 * USERS, "records are missing")
    of = {one.arm: one.backend for one in house.gateway.logged() if one.experiment == "halves"}
    assert of == {"control": "quick", "treatment": "spare"}


def test_a_shadow_copies_in_secret_and_bills_nobody(house: House) -> None:
    before = _requests(house, "plain")
    replies = []
    for k in range(5):
        replies.append(house.ask(f"shadow{k}", "copied", max_tokens=2))
        # One after the other: a copy that finds the line full is left out.
        wait(lambda: house.narrow.seen.ids[f"shadow{len(replies) - 1}"] == 1, "a copy is missing")
    assert {(reply.status, reply.backend) for reply in replies} == {(200, "quick")}
    ids = {reply.id for reply in replies}
    wait(lambda: {one.shadow_of for one in house.gateway.logged() if one.shadow_of} >= ids, "a copy is in no log")
    copies = [one for one in house.gateway.logged() if one.shadow_of in ids]
    assert {(one.backend, one.arm, one.status) for one in copies} == {("narrow", "treatment", 200)}
    assert {house.gateway.record(ident).arm for ident in ids} == {"control"}
    assert _requests(house, "plain") == before + 5


def test_a_full_shadow_is_nobodys_trouble(house: House, full: list[Listener]) -> None:
    # Both places of the shadow's backend are taken: copies wait, or are not sent, and clients notice nothing.
    assert len(full) == 2
    replies = [house.ask(f"busy{k}", "copied") for k in range(5)]
    assert {(reply.status, reply.backend) for reply in replies} == {(200, "quick")}


def test_repeats_ask_both_arms_again_unseen(house: House) -> None:
    reply = house.ask("echo", "again")
    assert reply.status == 200
    wait(lambda: house.quick.seen.ids["echo"] == 7, "not asked six times more")
    wait(lambda: sum(one.group == reply.id for one in house.gateway.logged()) == 7, "records are missing")
    group = [one for one in house.gateway.logged() if one.group == reply.id]
    assert Counter(one.arm for one in group if one.shadow_of) == {"control": 3, "treatment": 3}
    assert all(one.answer_hash for one in group)
    assert reply.body.count(b"chaos-echo") == 1


def _requests(house: House, key: str) -> int:
    found: int = next(one["requests"] for one in house.gateway.state()["keys"] if one["name"] == key)
    return found


def test_in_the_end_nothing_is_counted_as_under_way(house: House) -> None:
    wait(house.gateway.idle, "something is still counted")
    records = house.gateway.logged()
    assert len({one.id for one in records}) == len(records)
    assert house.gateway.state()["log_dropped"] == 0
    assert "Traceback" not in house.gateway.said
