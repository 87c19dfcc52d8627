"""Which experts requests reach: a part of the process that watches.

What workers hand over (`hand`) waits in a bounded line and is looked at one by one (`look`), apart from the loop. The
second process that reads weights is started for the first request, and ended when none came for a while or its engine
went, in the middle of a look too, so that hot swap has the memory. Where an engine counts by itself the poller tells.
Looking keeps to a share of the CPU time that the engine takes, and what is not looked at is counted by reason. Only
counts are kept; texts are gone with the request they came with.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from breakeven.engines.inside.routed import RoutingReader
from breakeven.errors import complain
from breakeven.gateway.experts.hand import LOST, Handed, contents, received
from breakeven.gateway.experts.look import GONE, UNREADABLE, BackendLook, NewReader, SkippedError
from breakeven.gateway.experts.report import BackendExperts
from breakeven.gateway.plan.model import GatewayPlan
from breakeven.gateway.swap.effects import EngineLoaded

MOST_WAITING, MOST_WAITING_BYTES = 32, 64 * 2**20
"""Requests in line, and what their files hold together."""
LINE_FULL = "too many wait to be looked at"
SAVE_S = 30.0
TICK_S = 5.0
REPORT_S = 1.0
"""Whoever asks again so soon hears the same."""


def _new_reader(weights: Path, tokens: int) -> RoutingReader:
    return RoutingReader(weights, most_tokens=tokens)


class ExpertsWatch:
    """All backends of a plan whose experts are seen. Make it on the loop.

    `receiving`: the end of the line from the workers. `engine_of`: an engine of ours that runs now, by its backend;
    `key_of`: what it asks for. `new_reader` and `clock` are for tests.
    """

    def __init__(
        self,
        plan: GatewayPlan,
        receiving: socket.socket,
        *,
        engine_of: Callable[[str], EngineLoaded | None] = lambda _: None,
        key_of: Callable[[str], str] = lambda _: "",
        new_reader: NewReader = _new_reader,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._receiving, self._engine_of, self._key_of = receiving, engine_of, key_of
        self._looks = {
            each.name: BackendLook(each, each.experts, new_reader, clock)
            for each in plan.backends
            if each.experts is not None
        }
        self._line: deque[tuple[Handed, int, int]] = deque()
        self._waiting_bytes = 0
        self._there = asyncio.Event()
        # A thread of its own: a process below us ends with the thread that started it, and this one lives as long.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="experts")
        self._reported_s = 0.0
        self._reports: list[BackendExperts] = []

    async def run(self) -> None:
        """Until cancelled; then what was seen is saved."""
        loop = asyncio.get_running_loop()
        number = self._receiving.fileno()
        loop.add_reader(number, self.take)
        try:
            async with asyncio.TaskGroup() as group:
                # A look takes up to minutes, and a save waits for its end; memory that hot swap needs does not.
                group.create_task(self._tend_always())
                group.create_task(self._save_always())
                while True:
                    await self._there.wait()
                    self._there.clear()
                    while self._line:
                        note, file, size = self._line.popleft()
                        self._waiting_bytes -= size
                        await self._look(note, file)
        finally:
            loop.remove_reader(number)
            self._close()

    def counted(self, backend: str, layers: Sequence[int], choices_LE: Any, tokens: int) -> None:
        """What an engine counted since the poller's last look, where nothing finer is asked for."""
        look = self._looks.get(backend)
        if look is not None and look.source == "counted":
            unseen = max(0, (look.shape.n_experts or 0) - choices_LE.shape[1])  # a page may leave out what is 0
            choices_LE = np.pad(choices_LE, ((0, 0), (0, unseen)))
            look.seen.add(layers, choices_LE, tokens=tokens, at_s=time.time())
            look.changed = True

    # What is known.

    @property
    def asked(self) -> list[str]:
        """Backends whose experts are to be seen."""
        return list(self._looks)

    def report(self, now_s: float) -> list[BackendExperts]:
        """What was seen, by backend; those of which nothing was seen are left out. `now_s`: Unix time."""
        if not self._reported_s <= now_s < self._reported_s + REPORT_S:
            found = [look.report(now_s) for look in self._looks.values()]
            self._reports = [each for each in found if each is not None]
            self._reported_s = now_s
        return self._reports

    def alarms(self) -> list[str]:
        """A line for each bound that is passed."""
        return [f"{each.backend}: {text}" for each in self.report(time.time()) for text in each.alarms]

    def troubles(self) -> list[str]:
        """A line for each backend that cannot be looked at as asked."""
        return [f"{name}: {look.trouble}" for name, look in self._looks.items() if look.trouble]

    # In, and in line.

    def take(self) -> None:
        """Everything that is there, off the workers' line."""
        with contextlib.suppress(OSError):
            while (found := received(self._receiving)) is not None:
                note, file = found
                for backend, reason, count in note.missed:
                    if (look := self._looks.get(backend)) is not None:
                        look.skip(reason, count)
                if file is not None:
                    self._queue(note, file)
                elif (look := self._looks.get(note.backend)) is not None:
                    look.skip(LOST)

    def _queue(self, note: Handed, file: int) -> None:
        look = self._looks.get(note.backend)
        size = os.fstat(file).st_size
        full = len(self._line) >= MOST_WAITING or self._waiting_bytes + size > MOST_WAITING_BYTES
        if look is None or full:
            os.close(file)
            if look is not None:
                look.skip(LINE_FULL)
            return
        self._line.append((note, file, size))
        self._waiting_bytes += size
        self._there.set()

    async def _look(self, note: Handed, file: int) -> None:
        look = self._looks[note.backend]
        try:
            asked, answer = contents(note, file)
            engine = look.check(self._engine_of(note.backend))
            work = partial(look.looked_at, note, asked, answer, engine, self._key_of(note.backend))
            found = await asyncio.get_running_loop().run_in_executor(self._thread, work)
            look.seen.add(*found[:2], tokens=found.tokens, key=note.key, language=note.language, at_s=time.time())
            look.changed = True
        except SkippedError as skipped:
            look.skip(str(skipped))
        except OSError:
            look.skip(LOST)
        except asyncio.CancelledError:
            look.skip(GONE)
            raise
        except Exception as error:  # whatever one request does to us, the next is looked at
            before = look.trouble
            # Not its text, which may hold words of the request.
            look.give_up(f"a request could not be looked at ({type(error).__name__})")
            look.skip(UNREADABLE)
            if look.trouble != before:
                complain(f"experts of {note.backend}: {look.trouble}")
        look.seen.spent(look.cpu_s, look.engine.seconds if look.plan.local is not None else None)

    # What needs no request.

    async def _tend_always(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._tend()

    def _tend(self) -> None:
        for name, look in self._looks.items():
            if look.plan.local is not None:
                look.tend(self._engine_of(name))

    async def _save_always(self) -> None:
        while True:
            await asyncio.sleep(SAVE_S)
            self._tell()
            await self._save()

    async def _save(self) -> None:
        for look in self._looks.values():
            if look.changed:
                look.changed, look.touched = False, True
                work = partial(look.save, look.copied())
                await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _tell(self) -> None:
        """An alarm is said once, when it begins; those that go on beside it are said with it."""
        for each in self.report(time.time()):
            look = self._looks[each.backend]
            passed = {what for what, is_so in each.watched.items() if is_so}
            if not passed <= look.alarmed:
                complain(f"experts of {each.backend}: {'; '.join(each.alarms)}")
            look.alarmed = passed

    def _close(self) -> None:
        for note, file, _ in self._line:
            os.close(file)
            self._looks[note.backend].skip(GONE)
        self._line.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)
        for look in self._looks.values():
            look.close()
            if look.changed or look.touched:
                look.save(look.seen)
