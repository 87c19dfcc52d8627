"""Chaos with a known truth: clients that read, dawdle and leave, backends that fail by seeded shares, and a reckoning.

Every request has a number of its own that stands in every piece of its answer and, as its session, in its record. So
each answer, each record and each question that a backend saw can be laid at the door of exactly one request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import signal
import time
import urllib.request
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from zlib import crc32

import httptools
import msgspec
from chaos_server import ScriptedRequest, chaos_process, document, events
from gateway_serve_fixtures import Gateway, serving, wait

from breakeven.gateway.keys.store import create

SHARES = {
    "ok": 0.567, "slow": 0.03, "closes_after": 0.03, "no_length": 0.02, "no_usage": 0.02, "no_done": 0.02,
    "no_finish": 0.02, "interim": 0.02, "trailers": 0.02, "odd_headers": 0.02, "second_answer": 0.01,
    "reset_before_head": 0.025, "close_before_head": 0.025, "reset_mid_body": 0.02, "close_mid_body": 0.02,
    "stall": 0.006, "stall_after_head": 0.004, "stall_mid_body": 0.006, "truncate": 0.015, "garbage": 0.01,
    "garbage_mid_body": 0.01, "429": 0.003, "400": 0.01, "500": 0.02, "502": 0.01, "503": 0.02, "529": 0.01,
    "huge_body": 0.004, "huge_headers": 0.004, "endless_header": 0.003, "die": 0.001, "die_mid_body": 0.001,
    "redirect": 0.002, "switching": 0.002,
}  # fmt: skip
"""Of what a backend does to a question: three quarters are good answers of every shape, the rest goes wrong."""
PATHS = {
    "/v1/chat/completions": 0.6, "/v1/completions": 0.15, "/v1/embeddings": 0.1, "/v1/responses": 0.08,
    "/v1/messages": 0.07,
}  # fmt: skip
LEAVING, DAWDLING = 0.12, 0.06
ATTEMPTS = 3
STALL_S = 3.0
"""A gap as long as this is a fault: longer than a busy machine makes one by itself."""
HUGE_BYTES, MOST_BYTES = 3 * 2**20, 2 * 2**20
PATIENCE_S = 60.0
_NUMBER = re.compile(rb"\bq[0-9]+\b")

Ending = Literal["whole", "error", "cut", "left", "lost", "mixed", "wrong"]


@dataclass(slots=True)
class Told:
    """How one request ended for its client. `id`: the gateway's, where an answer's head came."""

    number: str
    ending: Ending
    status: int = 0
    id: str = ""
    detail: str = ""


class _Client(asyncio.Protocol):
    """One connection that asks one question after the other and believes nothing."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.parser = httptools.HttpResponseParser(self)
        self.open = False
        self.stray = b""
        self._reset()
        self.done: asyncio.Future[None] | None = None

    def _reset(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.body: list[bytes] = []
        self.status = 0
        self.whole = False
        self.failed = ""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.open = transport, True

    def data_received(self, data: bytes) -> None:
        if self.done is None:
            self.stray += data
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.failed = f"{type(error).__name__}: {error}"
            self._over()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        if self.whole:
            self.failed = "two answers to one question"
        self.whole = True
        self._over()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._over()

    def _over(self) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(None)

    def over(self) -> bool:
        """Whether the next question needs another connection."""
        return not self.open or bool(self.failed) or self.headers.get(b"connection") == b"close"

    def ask(self, data: bytes) -> asyncio.Future[None]:
        """Send a question; the future is done when its answer is over, however it is."""
        self._reset()
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return self.done


@dataclass
class Chaos:
    """What came of it all."""

    told: list[Told]
    strays: int
    seconds: float
    state: dict[str, Any]
    records: list[Any]
    seen: Counter[str]
    behaviours: Counter[str]
    rss_bytes: list[list[int]]
    """Of the workers, in the order of their process ids, at each tenth of the requests."""
    descriptors: list[int]
    """Open files of each worker, when nothing was under way any more."""
    said: str
    faults: list[str] = field(default_factory=list)

    @property
    def endings(self) -> Counter[str]:
        """How often each ending came."""
        return Counter(one.ending for one in self.told)

    def problems(self) -> list[str]:
        """Everything that must not be; empty when all is well."""
        found = list(self.faults)
        for ending in ("lost", "mixed", "wrong"):
            found += [f"{ending}: {one}" for one in self.told if one.ending == ending]
        if self.strays:
            found.append(f"{self.strays} connections got bytes that nobody had asked for")
        found += self._in_the_log()
        for one in self.state["backends"]:
            if one["in_flight"] or one["queued"]:
                found.append(f"{one['name']} still has {one['in_flight']} in flight and {one['queued']} queued")
        if self.state["log_dropped"]:
            found.append(f"{self.state['log_dropped']} records were dropped")
        charged = _charged(self.state)
        if charged != len(self.records):
            found.append(f"{charged} requests were charged to keys, {len(self.records)} were logged")
        if "Traceback" in self.said or "ended with status" in self.said:
            found.append(f"it said: {self.said[-2000:]}")
        return found

    def _in_the_log(self) -> list[str]:
        found: list[str] = []
        sent_again = 0
        by_session = Counter(record.session for record in self.records)
        if len({record.id for record in self.records}) != len(self.records):
            found.append("two records have one id")
        records = {record.session: record for record in self.records}
        for one in self.told:
            session = crc32(one.number.encode())
            record = records.get(session)
            count = by_session[session]
            # Whoever leaves before the gateway has read its question is in no log, and no backend has heard of it.
            least = 0 if one.ending == "left" and not one.id and not self.seen[one.number] else 1
            if not least <= count <= 1:
                found.append(f"{count} records of {one}")
            if record is None:
                continue
            if one.ending in ("whole", "cut", "error") and record.status != one.status:
                found.append(f"logged with status {record.status}: {one}")
            if one.id and record.id != one.id:
                found.append(f"logged as {record.id}: {one}")
            cut = bool(record.error) and record.status == 200
            if one.ending != "left" and cut != (one.ending == "cut"):
                found.append(f"logged with error {record.error!r}: {one}")
            # One that a kept connection swallowed is sent again on a fresh one: docs/upstream.md.
            again = max(0, self.seen[one.number] - len(record.attempts))
            sent_again += again
            if again > len(record.attempts):
                found.append(f"asked {self.seen[one.number]} times, logged {len(record.attempts)}: {one}")
            if len([leg for leg in record.attempts if not leg.hedge]) > ATTEMPTS:
                found.append(f"{len(record.attempts)} attempts: {one}")
        swallowed = sum(
            self.behaviours[name] for name in ("reset_before_head", "close_before_head", "die", "die_mid_body")
        )
        if sent_again > swallowed:
            found.append(f"{sent_again} questions were sent again, {swallowed} were swallowed")
        return found


def plan_of(urls: list[str], workers: int) -> dict[str, Any]:
    """Dense and MoE behind these URLs; every means of reliability in use."""
    backends = [
        {
            "name": f"{'moe' if k % 2 else 'dense'}-{k}",
            "kind": "moe" if k % 2 else "dense",
            "url": f"{url}/v1",
            "served_model": "real",
            "endpoints": list(PATHS),
            "price": {"api": {"input": 1 + k, "output": 2 + k}},
            "speed": {"ttft": "50ms", "tokens_per_s": 200, "source": "made up"},
            "timeouts": {"connect": "2s", "first_byte": f"{STALL_S}s", "idle": f"{STALL_S}s", "total": "30s"},
            "limit": 16,
        }
        for k, url in enumerate(urls)
    ]
    names = [one["name"] for one in backends]
    hedge = {"share": 0.03}
    return {
        "backends": backends,
        "policies": [
            {"model": "best", "backends": names, "slo": {"ttft": "2s"}, "hedge": hedge, "attempts": ATTEMPTS},
            {"model": "even", "backends": names, "policy": "weighted", "attempts": ATTEMPTS, "queue": "5s"},
        ],
        "workers": workers,
        "keys": "keys.json",
        "limits": {"response": MOST_BYTES},
    }


def run_chaos(
    directory: Path, requests: int, *, at_once: int = 48, seed: int = 1, workers: int = 2, hangups: int = 0
) -> Chaos:
    """Start backends and a gateway, ask `requests` questions, and gather what all of them say of it.

    `hangups`: how often the gateway reads its file again meanwhile, which replaces its workers.
    """
    with ExitStack() as stack:
        more = ("--huge-bytes", str(HUGE_BYTES), "--chunk-s", "0.001")
        urls = [stack.enter_context(chaos_process(SHARES, "--seed", str(seed + k), *more)) for k in range(3)]
        directory.mkdir(parents=True, exist_ok=True)
        secrets = [create(directory / "keys.json", name) for name in ("anna", "ben")]
        gateway = stack.enter_context(serving(directory, plan_of(urls, workers)))
        started_s = time.monotonic()
        party = _Party(gateway, secrets, requests, seed, hangups)
        asyncio.run(party.run(at_once))
        seconds = time.monotonic() - started_s
        faults = []
        try:
            wait(gateway.idle, "something is still counted as under way")
        except AssertionError as error:
            faults.append(str(error))
        seen: Counter[str] = Counter()
        behaviours: Counter[str] = Counter()
        for url in urls:
            with urllib.request.urlopen(f"{url}/scripted/seen", timeout=20) as answer:
                told = json.load(answer)
            seen.update(told["ids"])
            behaviours.update(told["behaviours"])
        least = len([one for one in party.told if one.ending != "left"])
        if hangups:
            with contextlib.suppress(AssertionError):
                wait(lambda: len(gateway.workers()) == workers == len(gateway.children()) - 1, "old workers stay")
            party.workers = sorted(gateway.workers())
        with contextlib.suppress(AssertionError):
            wait(lambda: _charged(gateway.state()) == len(gateway.logged()) >= least, "records are missing")
        time.sleep(0.6)  # the workers tell how many records they dropped twice a second
        return Chaos(
            told=party.told,
            strays=party.strays,
            seconds=seconds,
            state=gateway.state(),
            records=gateway.logged(),
            seen=seen,
            behaviours=behaviours,
            rss_bytes=party.rss_bytes,
            descriptors=_descriptors(gateway),
            said=gateway.said,
            faults=faults,
        )


def _descriptors(gateway: Gateway) -> list[int]:
    """Open files of each worker that stays: a reload that was still under way takes others away meanwhile."""
    found: list[int] = []

    def counted() -> bool:
        with contextlib.suppress(FileNotFoundError):
            found[:] = [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in sorted(gateway.workers())]
        return bool(found)

    wait(counted, "its workers never stay")
    return found


def _charged(state: dict[str, Any]) -> int:
    """Requests that were charged to keys."""
    return sum(key["requests"] for key in state["keys"])


class _Party:
    """All clients together."""

    def __init__(self, gateway: Gateway, secrets: list[str], requests: int, seed: int, hangups: int) -> None:
        self.secrets, self.requests = secrets, requests
        self.hangup_every = requests // (hangups + 1) if hangups else 0
        self.hang_up = partial(gateway.signal, signal.SIGHUP)
        self.told: list[Told] = []
        self.strays = 0
        self.rss_bytes: list[list[int]] = []
        self._dice = random.Random(seed)
        self._numbers = iter(_numbers(requests))
        self._at = urlsplit(gateway.url)
        wait(lambda: len(gateway.workers()) == gateway.state()["workers"], "not every worker accepts")
        self.workers = sorted(gateway.workers())

    async def run(self, at_once: int) -> None:
        """Until every question has its ending."""
        async with asyncio.TaskGroup() as group:
            for k in range(at_once):
                group.create_task(self._one(random.Random(self._dice.random() + k)))

    async def _one(self, dice: random.Random) -> None:
        client: _Client | None = None
        for number in self._numbers:
            if client is None or client.over() or dice.random() < 0.05:
                if client is not None:
                    self._close(client)
                loop = asyncio.get_running_loop()
                _, client = await loop.create_connection(_Client, self._at.hostname, self._at.port)
            self.told.append(await self._ask(client, number, dice))
            if self.hangup_every and len(self.told) % self.hangup_every == 0 and len(self.told) < self.requests:
                self.hang_up()
            if len(self.told) % max(1, self.requests // 10) == 0:
                self.rss_bytes.append([_rss(pid) for pid in self.workers])
        if client is not None:
            await asyncio.sleep(0.05)
            self._close(client)

    def _close(self, client: _Client) -> None:
        self.strays += bool(client.stray)
        client.transport.abort() if len(self.told) % 2 else client.transport.close()

    async def _ask(self, client: _Client, number: str, dice: random.Random) -> Told:
        path = dice.choices(list(PATHS), list(PATHS.values()))[0]
        stream = path != "/v1/embeddings" and dice.random() < 0.6
        chunks = dice.randint(1, 24)
        body = {
            "model": dice.choice(("best", "even")),
            "messages": [{"role": "user", "content": "x" * int(dice.paretovariate(0.9) * 20 % 60_000)}],
            "max_tokens": chunks,
            "chaos_id": number,
        }
        if stream:
            body["stream"] = True
        wants_usage = stream and dice.random() < 0.3
        if wants_usage:
            body["stream_options"] = {"include_usage": True}
        data = msgspec.json.encode(body)
        lines = [
            f"POST {path} HTTP/1.1", "host: gateway", f"content-length: {len(data)}",
            f"authorization: Bearer {dice.choice(self.secrets)}", f"x-breakeven-session: {number}",
        ]  # fmt: skip
        if dice.random() < 0.2:
            lines.append("x-breakeven-ttft-ms: 300")
        over = client.ask("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        mood = dice.random()
        if mood < LEAVING:
            await asyncio.wait([over], timeout=dice.expovariate(1 / 0.03))
            if not over.done():
                ident = client.headers.get(b"x-breakeven-request-id", b"").decode()
                client.transport.abort() if dice.random() < 0.5 else client.transport.close()
                client.open, client.done = False, None
                return Told(number, "left", client.status, ident)
        elif mood < LEAVING + DAWDLING:
            client.transport.pause_reading()
            await asyncio.sleep(dice.expovariate(1 / 0.1))
            with contextlib.suppress(RuntimeError):
                client.transport.resume_reading()
        await asyncio.wait([over], timeout=PATIENCE_S)
        client.done = None if over.done() else client.done
        asked = ScriptedRequest(path, number, "real", stream, wants_usage, chunks=chunks)
        return _judged(client, number, over.done(), path, asked)


def _judged(client: _Client, number: str, over: bool, path: str, question: ScriptedRequest) -> Told:
    """What kind of ending that was."""
    ident = client.headers.get(b"x-breakeven-request-id", b"").decode()
    body = b"".join(client.body)

    def told(ending: Ending, detail: str = "") -> Told:
        return Told(number, ending, client.status, ident, detail)

    # A cut may go through the number itself.
    found = [one.group() for one in _NUMBER.finditer(body) if one.end() < len(body)]
    if any(one != number.encode() for one in found):
        return told("mixed", repr(body[:300]))
    if not over:
        client.transport.abort()
        client.open = False
        return told("lost", f"no ending within {PATIENCE_S} s")
    if client.failed:
        return told("wrong", client.failed)
    if not client.status:
        return told("lost", "closed without an answer")
    if client.status >= 400:
        if not client.whole:
            return told("cut")
        return told("error") if b'"error"' in body else told("wrong", repr(body[:300]))
    if not client.whole:
        return told("cut")
    return told("whole") if body in _right(question, path) else told("wrong", repr(body[-400:]))


def _right(question: ScriptedRequest, path: str) -> list[bytes]:
    """Every body that a good backend gives to this question."""
    if not question.stream:
        # One behaviour streams whatever it is asked.
        return [document(question), b"".join(events(question))]
    found = [{}, {"finish": False}, {"done": False}, {"usage": False}]
    return [b"".join(events(question, **left)) for left in found]


def _numbers(count: int) -> list[str]:
    """Names of requests whose sessions differ."""
    taken: set[int] = set()
    found: list[str] = []
    k = 0
    while len(found) < count:
        k += 1
        if (session := crc32(b"q%d" % k)) not in taken:
            taken.add(session)
            found.append(f"q{k}")
    return found


def _rss(pid: int) -> int:
    with contextlib.suppress(FileNotFoundError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0
