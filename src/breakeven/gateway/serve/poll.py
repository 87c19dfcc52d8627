"""Asks every backend that has a `/metrics` page for its own numbers: what it does beyond what we sent it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time

from breakeven.errors import BreakevenError, one_line
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan
from breakeven.gateway.serve.lane import secret_of
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import Count, Known, State, UnderWay
from breakeven.wire.client import HttpClient
from breakeven.wire.metrics import engine_numbers, lines_of
from breakeven.wire.target import split_base

EXPERT_TOKENS = re.compile(r"breakeven:expert_tokens_total\{([^{}]*)\} +(\S+)")
"""How a backend reports the load of its experts. No engine does by itself (vLLM 0.32, llama.cpp b11434)."""
_EXPERT = re.compile(r'(?:^|,)expert="(\d{1,4})"')
POLL_S = 1.0
HEAL_S = 5.0
SILENT = 3
"""Answers without any number of an engine after which its page is asked for only every `RETRY_S`."""
RETRY_S = 30.0
MOST_REQUESTS = 1e6
"""In one engine; more is a broken page, and would overflow what is predicted from it."""


class Poller:
    """One task a backend. It opens connections of its own, apart from the workers'."""

    def __init__(self, plan: GatewayPlan, slots: dict[str, int], block: SharedBlock) -> None:
        self.plan, self.slots, self.block = plan, slots, block
        self.expert_load: dict[str, list[float]] = {}
        """Tokens routed to each expert, by backends that report it."""
        self.troubles: dict[str, str] = {}
        """What went wrong here with a backend's page, by backend; gone with the next look that goes well."""
        self.renewals = 0
        """Raised when certificates changed: from then on other connections are made."""

    async def run(self) -> None:
        """Until cancelled."""
        polled = [backend for backend in self.plan.backends if backend.poll]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._heal())
            for backend in polled:
                group.create_task(self._poll(backend, self.slots[backend.name]))

    async def _poll(self, backend: BackendPlan, slot: int) -> None:
        client: HttpClient | None = None
        at: tuple[str | None, int] = (None, self.renewals)
        silent = 0
        known = self.block.known
        try:
            while True:
                url = self._url(backend, slot)
                if (url, self.renewals) != at:
                    if client is not None:
                        await client.close()
                    client = None if url is None else _client(url, backend, self.block)
                    at, silent = (url, self.renewals), 0
                if client is not None:
                    numbers = await self._try(client, slot, backend.name)
                    silent = 0 if numbers else silent + 1
                else:
                    known.put(0, slot, Known.POLLED_S, 0.0)
                await asyncio.sleep(POLL_S if silent < SILENT else RETRY_S)
        finally:
            if client is not None:
                await client.close()

    def _url(self, backend: BackendPlan, slot: int) -> str | None:
        if backend.local is None:
            return backend.url
        known = self.block.known
        port = int(known.get(0, slot, Known.PORT))
        if known.get(0, slot, Known.STATE) != State.READY or port <= 0:
            return None
        return f"http://127.0.0.1:{port}/v1"

    async def _try(self, client: HttpClient, slot: int, name: str) -> bool:
        """`_look`; whatever one backend's page does to us, the others are asked."""
        try:
            numbers = await self._look(client, slot, name)
        except Exception as error:
            self.block.known.put(0, slot, Known.POLLED_S, 0.0)
            self.troubles[name] = one_line(f"{name}: its numbers cannot be read ({type(error).__name__}: {error})", 300)
            return False
        self.troubles.pop(name, None)
        return numbers

    async def _look(self, client: HttpClient, slot: int, name: str) -> bool:
        """One look; False when the page says nothing of an engine."""
        known = self.block.known
        ours = self.block.load.total(slot, UnderWay.IN_FLIGHT)
        try:
            status, body = await client.get("/metrics")
        except BreakevenError:
            known.put(0, slot, Known.UP, 0.0)
            return True
        known.put(0, slot, Known.UP, 1.0)
        page = body.decode(errors="replace") if status == 200 else ""
        if load := expert_load(page):
            self.expert_load[name] = load
        numbers = engine_numbers(page)
        if numbers is None or numbers.running is None:
            known.put(0, slot, Known.POLLED_S, 0.0)
            return False
        known.put(0, slot, Known.RUNNING, _believable(numbers.running))
        known.put(0, slot, Known.WAITING, _believable(numbers.waiting or 0.0))
        known.put(0, slot, Known.KV_SHARE, -1.0 if numbers.kv_share is None else numbers.kv_share)
        # Requests begin and end while the page is on its way: the larger count takes none of ours for a stranger's.
        known.put(0, slot, Known.OURS_AT_POLL, max(ours, self.block.load.total(slot, UnderWay.IN_FLIGHT)))
        known.put(0, slot, Known.POLLED_S, time.monotonic())
        return True

    async def _heal(self) -> None:
        """Corrections of backends that nobody hears of fade: see `route.speed`."""
        from breakeven.gateway.route.speed import healed

        seen: dict[int, float] = {}
        known = self.block.known
        while True:
            for slot in self.slots.values():
                answers = self.block.count.total(slot, Count.TTFT_COUNT) + self.block.count.total(
                    slot, Count.TPOT_COUNT
                )
                if seen.get(slot) == answers:
                    for column in (Known.TTFT_LOG, Known.TPOT_LOG):
                        known.put(0, slot, column, healed(known.get(0, slot, column), HEAL_S))
                seen[slot] = answers
            await asyncio.sleep(HEAL_S)


def expert_load(page: str) -> list[float]:
    """Tokens routed to each expert since the start, added up over layers; empty where the page does not say."""
    tokens: dict[int, float] = {}
    for line in lines_of(page):
        if (found := EXPERT_TOKENS.match(line)) is None or (expert := _EXPERT.search(found[1])) is None:
            continue
        with contextlib.suppress(ValueError):
            value = float(found[2])
            if math.isfinite(value):
                tokens[int(expert[1])] = tokens.get(int(expert[1]), 0.0) + max(0.0, value)
    return [tokens.get(expert, 0.0) for expert in range(max(tokens) + 1)] if tokens else []


def _client(url: str, backend: BackendPlan, block: SharedBlock) -> HttpClient:
    return HttpClient(
        split_base(url)[0],
        timeouts=backend.timeouts,
        secret=secret_of(backend, block),
        tls=backend.tls_files,
        proxy=backend.proxy,
        socket=None if backend.socket is None else str(backend.socket),
        allow_link_local=backend.allow_link_local,
    )


def _believable(requests: float) -> float:
    """A count of requests as routing can compute with it, whatever an engine's page says."""
    return min(max(requests, 0.0), MOST_REQUESTS)
