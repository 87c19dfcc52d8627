"""Who plays the schedule: this process, several processes here, or workers on other machines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

from breakeven.measure.events import LoadWorker
from breakeven.measure.player.dispatch import Player
from breakeven.measure.player.job import Job
from breakeven.measure.player.tally import Batch, Recorder
from breakeven.measure.pool import Pool


class Crew(Protocol):
    """One run's players. `ready`, then `play`, then `finished`; `close` in any case."""

    lead_s: float
    """From the order to start to the start itself."""
    pids: list[int]
    """Processes of ours on this machine beside this one."""
    flags: list[str]
    """What a reader of the result must know: lost workers, clocks that moved."""

    async def ready(self) -> list[LoadWorker]:
        """Get everything in place; who plays. Raises BreakevenError when that cannot be."""

    def play(self, start_ns: int) -> None:
        """Start at this moment of this process's monotonic clock."""

    def cancel(self, detail: str) -> None:
        """End everything in flight; `finished` follows soon."""

    async def finished(self) -> None:
        """Wait until every request is over. Raises what went wrong in a player."""

    async def close(self) -> None:
        """Let go of processes and connections."""


class LocalCrew:
    """Plays on this process's own loop."""

    def __init__(self, job: Job, take: Callable[[Batch], None]) -> None:
        self.lead_s = 0.02
        self.pids: list[int] = []
        self.flags: list[str] = []
        self._job, self._take = job, take
        self._pool: Pool | None = None
        self._player: Player | None = None
        self._task: asyncio.Task[None] | None = None

    async def ready(self) -> list[LoadWorker]:
        """Nothing to wait for."""
        self._pool = Pool(self._job.backend)
        self._player = Player(self._job, self._pool, Recorder(self._take))
        return []

    def play(self, start_ns: int) -> None:
        """Start at this moment."""
        assert self._player is not None
        self._task = asyncio.ensure_future(self._player.play(start_ns))

    def cancel(self, detail: str) -> None:
        """End everything in flight."""
        if self._player is not None:
            self._player.cancel(detail)

    async def finished(self) -> None:
        """Wait until every request is over."""
        assert self._task is not None
        # Whoever stops waiting, as Ctrl-C does, still wants what is in flight to be recorded.
        await asyncio.shield(self._task)

    async def close(self) -> None:
        """Close the connections."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._pool is not None:
            await self._pool.close()
