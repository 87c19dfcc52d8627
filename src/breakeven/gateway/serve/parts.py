"""The parts of the watching process: each runs alone, and when it fails it alone is started again, after a while.

A part is a coroutine that never ends by itself: the poller, the followers of the log and of the file of keys, whoever
saves budgets. What goes wrong in one (a full disk, a file that is no file, a package that is missing, a defect) is said
once, is seen on the live page, and is tried again after a time that doubles. The others hear nothing of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass

from breakeven.errors import BreakevenError, complain, one_line
from breakeven.gateway.seen.metrics import PartState

FIRST_S, MOST_S = 0.5, 30.0
"""Between a failure and the next try: at first, and at most."""
HEALTHY_S = 10.0
"""A part that ran so long has recovered: its trouble is forgotten."""
STOP_S = 30.0
"""How long parts may take to end when they are told to; what hangs longer is left behind."""
MOST_TROUBLE = 300
"""Letters of a trouble that are kept."""

Work = Callable[[], Coroutine[object, object, None]]


@dataclass
class Backoff:
    """How long to wait before the next try: not at all for `free` failures, then doubled; health makes it forget."""

    first_s: float = FIRST_S
    most_s: float = MOST_S
    healthy_s: float = HEALTHY_S
    free: int = 0
    failures: int = 0

    def failed(self, lived_s: float) -> float:
        """Seconds to wait after a failure that came `lived_s` after the start."""
        if lived_s >= self.healthy_s:
            self.failures = 0
        self.failures += 1
        doubled = min(self.failures - self.free - 1, 30)
        return min(self.most_s, self.first_s * 2**doubled) if doubled >= 0 else 0.0


class _Part:
    """One part, over all its lives."""

    def __init__(self, name: str, most_s: float) -> None:
        self.name = name
        self.task: asyncio.Task[None] | None = None
        self.backoff = Backoff(most_s=most_s)
        self.began_s = 0.0
        self.next_s: float | None = None
        """When it is tried again; None: it runs."""
        self.restarts = 0
        self.trouble = ""


class PartsKeeper:
    """All parts of one process. `say` is told a trouble once; `clock` and `sleep` are for tests."""

    def __init__(
        self,
        say: Callable[[str], None] = complain,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._say, self._clock, self._sleep = say, clock, sleep
        self._parts: dict[str, _Part] = {}

    def start(self, name: str, work: Work, most_s: float = MOST_S) -> None:
        """Run `work()` from now on, and again whenever it fails. `most_s`: the longest wait before another try."""
        part = self._parts.setdefault(name, _Part(name, most_s))
        part.task = asyncio.get_running_loop().create_task(self._keep(part, work), name=name)

    def runs(self, name: str) -> bool:
        """Whether this part was started and not stopped."""
        return name in self._parts and self._parts[name].task is not None

    async def stop(self, *, but: Collection[str] = ()) -> None:
        """End all of them but those named, and wait for that within bounds."""
        tasks = []
        for part in self._parts.values():
            if part.name not in but and part.task is not None:
                part.task.cancel()
                tasks.append(part.task)
                part.task = None
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_S)

    def states(self) -> list[PartState]:
        """Each part that ought to run, as the page shows it."""
        now_s, found = self._clock(), []
        for part in self._parts.values():
            if part.task is None:
                continue
            found.append(
                PartState(
                    name=part.name,
                    state="running" if part.next_s is None else "waiting",
                    restarts=part.restarts,
                    trouble=part.trouble if self._troubled(part, now_s) else "",
                    next_try_s=None if part.next_s is None else max(0.0, part.next_s - now_s),
                )
            )
        return found

    def warnings(self) -> list[str]:
        """A line for each part that does not run as it should."""
        return [
            f"{state.name}: {state.trouble}" + ("" if state.next_try_s is None else "; it is tried again by itself")
            for state in self.states()
            if state.trouble
        ]

    def _troubled(self, part: _Part, now_s: float) -> bool:
        return part.next_s is not None or now_s - part.began_s < HEALTHY_S

    async def _keep(self, part: _Part, work: Work) -> None:
        while True:
            part.began_s, part.next_s = self._clock(), None
            trouble = "it ended by itself"
            try:
                await work()
            except asyncio.CancelledError:
                # A library may let one slip that nobody meant for us.
                if (task := asyncio.current_task()) is None or task.cancelling():
                    raise
                trouble = "it was cancelled from within"
            except BreakevenError as error:
                trouble = str(error)
            except Exception as error:
                trouble = f"it failed ({_kind(error)})"
            lived_s = self._clock() - part.began_s
            wait_s = part.backoff.failed(lived_s)
            trouble = one_line(trouble, MOST_TROUBLE)
            if trouble != part.trouble or lived_s >= HEALTHY_S:
                self._say(f"{part.name}: {trouble}; trying again in {wait_s:.3g} s")
            part.trouble, part.restarts = trouble, part.restarts + 1
            part.next_s = self._clock() + wait_s
            await self._sleep(wait_s)


def _kind(error: BaseException) -> str:
    """Name and text of what went wrong; of a group, of its first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
