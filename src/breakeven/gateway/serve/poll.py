"""Asks every backend that has a `/metrics` page for its own numbers: what it does beyond what we sent it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from breakeven.errors import BreakevenError, one_line
from breakeven.gateway.plan.experts import RETURN_FLAG
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan
from breakeven.gateway.serve.lane import agent_of, secret_of
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import Count, Known, State, UnderWay
from breakeven.wire.client import HttpClient
from breakeven.wire.metrics import EXPERT_COUNTER, EXPERT_GAUGE, Cells, ExpertTokens, engine_numbers, expert_tokens
from breakeven.wire.target import split_base

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OnExperts = Callable[[str, Sequence[int], "NDArray[np.int64]", int], None]
"""Told what a backend's engines counted since the last look: its name, the layers, choices (L, E), and tokens.

How many experts a token takes no counter tells, so that a token counts once for each: the choices of the busiest layer.
"""
MOST_PAGE_BYTES = 8 << 20
"""vLLM's page by expert: some 100 bytes for each of 61 layers and 256 experts, and each of its engines."""
POLL_S = 1.0
HEAL_S = 5.0
SILENT = 3
"""Answers without any number of an engine after which its page is asked for only every `RETRY_S`."""
RETRY_S = 30.0
UNNAMED = 10
"""Answers without a counter of experts, where nothing else shows them, after which that is said."""
MOST_ENGINES = 64
"""Behind one backend whose counts are kept to be compared with."""
MOST_REQUESTS = 1e6
"""In one engine; more is a broken page, and would overflow what is predicted from it."""


class Poller:
    """One task a backend. It opens connections of its own, apart from the workers'.

    `on_experts` is told what was counted of backends whose plan has `experts` and no share of requests to observe.
    """

    def __init__(
        self, plan: GatewayPlan, slots: dict[str, int], block: SharedBlock, *, on_experts: OnExperts | None = None
    ) -> None:
        self.plan, self.slots, self.block = plan, slots, block
        self._on_experts = on_experts
        self._counted = {
            backend.name: ExpertCounter()
            for backend in plan.backends
            if on_experts is not None and backend.experts is not None and backend.experts.observe is None
        }
        self._unnamed: dict[str, int] = {}
        """Answers in a row without such a counter, by backend."""
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
        return numbers

    async def _look(self, client: HttpClient, slot: int, name: str) -> bool:
        """One look; False when the page says nothing of an engine."""
        known = self.block.known
        ours = self.block.load.total(slot, UnderWay.IN_FLIGHT)
        try:
            status, body = await client.get("/metrics", limit_bytes=MOST_PAGE_BYTES)
        except BreakevenError:
            known.put(0, slot, Known.UP, 0.0)
            self.troubles.pop(name, None)
            return True
        known.put(0, slot, Known.UP, 1.0)
        page = body.decode(errors="replace") if status == 200 else ""
        self._look_at_experts(page, name)
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

    def _look_at_experts(self, page: str, name: str) -> None:
        try:
            # Of thousands of lines no more is read than somebody wants.
            told = expert_tokens(page) if name in self._counted or EXPERT_COUNTER in page else None
        except ValueError as error:
            self.troubles[name] = f"{name}: its page of numbers has {error}, so its experts are not counted"
            return
        self.troubles.pop(name, None)
        if name in self._counted:
            self._look_for_counters(page, name)
        self.expert_load.pop(name, None)  # of an engine that does not tell any more it would stand for ever
        if told is None:
            return
        if load := expert_load(told):
            self.expert_load[name] = load
        counter = self._counted.get(name)
        if counter is not None and self._on_experts is not None and (found := counter.since(told)) is not None:
            self._on_experts(name, *found)

    def _look_for_counters(self, page: str, name: str) -> None:
        """Say it where they do not come. A page names what it counts before there is anything to count."""
        named = EXPERT_COUNTER in page or EXPERT_GAUGE in page
        self._unnamed[name] = 0 if named else self._unnamed.get(name, 0) + 1
        if self._unnamed[name] >= UNNAMED:
            self.troubles[name] = (
                f"{name}: its page of numbers counts nothing by expert, so none of its experts is seen; start a vLLM "
                f"or SGLang with {RETURN_FLAG} and give its experts `observe: 1%`"
            )

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


def expert_load(told: ExpertTokens) -> list[float]:
    """Tokens routed to each expert since the start, over layers and engines; empty where only a step is told."""
    tokens: dict[int, float] = {}
    for cells in () if told.of_step else told.by_engine.values():
        for (_, expert), value in cells.items():
            tokens[expert] = tokens.get(expert, 0.0) + value
    return [tokens.get(expert, 0.0) for expert in range(max(tokens) + 1)] if tokens else []


class ExpertCounter:
    """What one backend's engines counted by layer and expert between two looks.

    Of counters the differences are taken; where one of an engine's went back the engine has started anew, and counts
    from zero. Of what stands for one step alone each look is a sample, weighted by its tokens: an estimate. An engine
    that shows the same step as before has run none, and is left out. The first look counts nothing: what was before may
    have been counted before. Layers and experts that were once told stay, so that the shape only grows. So do counts of
    engines and cells that a page leaves out, as one of several behind a balancer does: those are not counted anew when
    they come back.
    """

    def __init__(self) -> None:
        self._last: dict[str, Cells] = {}
        """By engine, the one not heard of for longest first."""
        self._of_step: bool | None = None
        self._layers: set[int] = set()
        self._n_experts = 0

    def since(self, told: ExpertTokens) -> tuple[list[int], NDArray[np.int64], int] | None:
        """Layers, choices (L, E) and the choices of the busiest layer since the last look; None: there were none."""
        import numpy as np

        for layer, expert in (place for cells in told.by_engine.values() for place in cells):
            self._layers.add(layer)
            self._n_experts = max(self._n_experts, expert + 1)
        if self._of_step is not told.of_step:
            self._last, self._of_step = dict(told.by_engine), told.of_step
            return None
        layers = sorted(self._layers)
        row_of = {layer: row for row, layer in enumerate(layers)}
        more_LE = np.zeros((len(layers), self._n_experts))
        for engine, cells in told.by_engine.items():
            before = self._last.pop(engine, {})
            more = _more(before, cells, told.of_step)
            self._last[engine] = cells if more is cells else {**before, **cells}
            for (layer, expert), value in more.items():
                more_LE[row_of[layer], expert] += value
        for engine in list(self._last)[: -max(MOST_ENGINES, len(told.by_engine))]:
            del self._last[engine]
        choices_LE = np.rint(more_LE).astype(np.int64)
        most = int(choices_LE.sum(axis=1).max())
        return (layers, choices_LE, most) if most else None


def _more(before: Cells, now: Cells, of_step: bool) -> Cells:
    """What one engine counted since."""
    if before == now:
        return {}
    if of_step or any(value < before.get(place, 0.0) for place, value in now.items()):
        return now
    return {place: value - before.get(place, 0.0) for place, value in now.items()}


def _client(url: str, backend: BackendPlan, block: SharedBlock) -> HttpClient:
    return HttpClient(
        split_base(url)[0],
        timeouts=backend.timeouts,
        secret=(*secret_of(backend, block), *agent_of(backend)),
        tls=backend.tls_files,
        proxy=backend.proxy,
        socket=None if backend.socket is None else str(backend.socket),
        allow_link_local=backend.allow_link_local,
    )


def _believable(requests: float) -> float:
    """A count of requests as routing can compute with it, whatever an engine's page says."""
    return min(max(requests, 0.0), MOST_REQUESTS)
