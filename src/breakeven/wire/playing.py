"""How an answer with a script is played: bytes at their times, on one clock for all of a server's answers."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from breakeven.wire.answer import HttpAnswer

_S = 1_000_000_000

Then = Literal["keep", "close", "reset", "hang", "die"]
"""After the last piece: wait for the next question, close, send RST, say nothing more, or take the server down."""
Piece = bytes | Callable[[int], bytes]
TURN = -1.0


@dataclass(slots=True)
class Scene:
    """An answer: pieces with the seconds to wait before each, and what happens to the connection then.

    A piece may be made when it is written, from the time, in nanoseconds. A wait of TURN lets every other answer have
    its turn first.
    """

    pieces: list[Piece]
    waits_s: list[float] = field(default_factory=list)
    then: Then = "keep"


class Clock:
    """When the next piece of each answer is due: one heap, one timer, and turns for those that wait for no time.

    `spin_s`: so long before a piece is due the loop spins, since its timers are whole milliseconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, spin_s: float) -> None:
        self._loop, self._spin_ns = loop, round(spin_s * _S)
        self._timed: list[tuple[int, int, Play]] = []
        self._turns: deque[Play] = deque()
        self._serial = 0
        self._timer: asyncio.TimerHandle | None = None
        self._spinning = False

    def at(self, due_ns: int, play: Play) -> None:
        """Go on with it then."""
        self._serial += 1
        heapq.heappush(self._timed, (due_ns, self._serial, play))
        if not self._spinning and self._timed[0][1] == self._serial:
            self._arm()

    def next_turn(self, play: Play) -> None:
        """Go on with it when all others have had their turn."""
        self._turns.append(play)
        if not self._spinning:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left_ns = self._timed[0][0] - time.monotonic_ns() if self._timed else 0
        self._spinning = bool(self._turns) or (bool(self._timed) and left_ns < max(1, self._spin_ns))
        if self._spinning:
            self._loop.call_soon(self._tick)
        elif self._timed:
            self._timer = self._loop.call_later((left_ns - self._spin_ns) / _S, self._tick)

    def _tick(self) -> None:
        timed, self._spinning = self._timed, True
        now_ns = time.monotonic_ns()
        while timed and timed[0][0] <= now_ns:
            due_ns, _, play = heapq.heappop(timed)
            play.go(due_ns)
            now_ns = time.monotonic_ns()
        for _ in range(len(self._turns)):
            play = self._turns.popleft()
            if play.answer.paused:
                self._turns.append(play)
            else:
                play.go(0)
        self._arm()


class Stage(Protocol):
    """Where answers are played. `exact`: waits count from when a piece was due, not from when it was written."""

    clock: Clock
    exact: bool

    def gone(self) -> None:
        """A client left before its answer was whole."""

    def ended(self, then: Then, answer: HttpAnswer) -> None:
        """An answer is over."""


class Play:
    """One answer under way. `wrote_ns` gets the time of each piece."""

    __slots__ = ("_stage", "_step", "_wrote_ns", "answer", "scene")

    def __init__(self, stage: Stage, answer: HttpAnswer, scene: Scene, wrote_ns: list[int]) -> None:
        self._stage, self.answer, self.scene, self._wrote_ns = stage, answer, scene, wrote_ns
        self._step = 0

    def begin(self) -> None:
        """The first piece, when its time has come."""
        self.answer.on_gone = self._stage.gone
        self._wait(time.monotonic_ns())

    def go(self, due_ns: int) -> None:
        """Write what is due."""
        answer, pieces, waits = self.answer, self.scene.pieces, self.scene.waits_s
        if answer.gone:
            return
        while self._step < len(pieces):
            piece = pieces[self._step]
            now_ns = time.monotonic_ns()
            self._wrote_ns.append(now_ns)
            answer.raw(piece if isinstance(piece, bytes) else piece(now_ns))
            self._step += 1
            if self._step < len(waits) and self._step < len(pieces) and waits[self._step]:
                self._wait(due_ns if self._stage.exact else now_ns)
                return
        if self.scene.then != "hang":
            self._stage.ended(self.scene.then, answer)

    def _wait(self, from_ns: int) -> None:
        wait_s = self.scene.waits_s[self._step] if self._step < len(self.scene.waits_s) else 0.0
        if wait_s > 0:
            self._stage.clock.at(from_ns + round(wait_s * _S), self)
        elif wait_s < 0:
            self._stage.clock.next_turn(self)
        else:
            self.go(from_ns)
