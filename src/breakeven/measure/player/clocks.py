"""Time as a player needs it: an alarm to the nanosecond, a loop that nothing holds up, clocks of other machines.

epoll and libuv round waiting times to whole milliseconds, which would pin arrivals to a grid. The kernel's timerfd
counts nanoseconds and wakes epoll like any other file, so no spinning is needed: the engine may share our cores. Where
there is no timerfd (not Linux) the loop's own timer is used.

Another machine's clock is compared by pings: each asks the other side for its time and brackets the answer with two
readings here, so the offset is known to half the bracket. The shortest of many brackets says most (Cristian,
"Probabilistic clock synchronization", 1989).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from breakeven.errors import BreakevenError
from breakeven.wire.loop import new_loop, run_async

T = TypeVar("T")

_S = 1_000_000_000

# Linux: include/uapi/linux/time.h, include/linux/timerfd.h
_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_TFD_NONBLOCK = os.O_NONBLOCK if hasattr(os, "O_NONBLOCK") else 0
_TFD_CLOEXEC = getattr(os, "O_CLOEXEC", 0)


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """Calls `ring` on `loop` at a moment of `time.monotonic_ns`. Setting it anew forgets the moment before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop, self._ring = loop, ring
        self._handle: asyncio.TimerHandle | None = None
        self._libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
        self._fd = -1
        if self._libc is not None and hasattr(self._libc, "timerfd_create"):
            self._fd = int(self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC))
        if self._fd >= 0:
            loop.add_reader(self._fd, self._read)

    @property
    def exact(self) -> bool:
        """True when it rings to the nanosecond the kernel can do, False when to the loop's millisecond."""
        return self._fd >= 0

    def set(self, at_ns: int) -> None:
        """Ring at `at_ns`, at once if that is past."""
        if self._fd < 0 or self._libc is None:
            if self._handle is not None:
                self._handle.cancel()
            delay_s = max(0, at_ns - time.monotonic_ns()) / _S
            self._handle = self._loop.call_later(delay_s, self._ring)
            return
        # A value of zero would disarm it.
        at_ns = max(1, at_ns)
        value = _Itimerspec(_Timespec(0, 0), _Timespec(at_ns // _S, at_ns % _S))
        if self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(value), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Never ring again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd, self._libc = -1, None

    def _read(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # set anew between waking and reading
            return
        self._ring()


PINGS = 20
MOST_UNCERTAIN_NS = 5_000_000
"""A delay is told to the millisecond; a clock that may be 5 ms off would make it a guess."""


@dataclass(frozen=True, slots=True)
class Offset:
    """Their clock plus `offset_ns` is ours, to +- `uncertainty_ns`."""

    offset_ns: int
    uncertainty_ns: int


def offset_of(pings: Sequence[tuple[int, int, int]]) -> Offset:
    """From (ours before, theirs, ours after), nanoseconds each. Raises ValueError for no pings. Pure."""
    before_ns, theirs_ns, after_ns = min(pings, key=lambda ping: ping[2] - ping[0])
    half_ns = (after_ns - before_ns) // 2
    return Offset(before_ns + half_ns - theirs_ns, (after_ns - before_ns + 1) // 2)


def measure_offset(ask: Callable[[], int], who: str, pings: int = PINGS) -> Offset:
    """Ping `ask`, which reads the other clock. Raises BreakevenError when that does not tell the offset well enough."""
    found = []
    for _ in range(pings):
        before_ns = time.monotonic_ns()
        found.append((before_ns, ask(), time.monotonic_ns()))
    offset = offset_of(found)
    if offset.uncertainty_ns > MOST_UNCERTAIN_NS:
        raise BreakevenError(
            f"the clock of {who} is known only to +-{offset.uncertainty_ns / 1e6:.1f} ms, which is worse than "
            f"{MOST_UNCERTAIN_NS / 1e6:g} ms; use workers nearer to this machine, or a less busy cluster"
        )
    return offset


SWITCH_S = 0.0005
"""Longest a drawing or writing thread may keep the interpreter from the loop. Python's own 5 ms would be seen."""


@contextlib.contextmanager
def quiet_gc() -> Iterator[None]:
    """Keep the garbage collector out of a measurement: what exists is set aside, and nothing is collected inside."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


@contextlib.contextmanager
def quick_switches() -> Iterator[None]:
    """Let no other thread of this process keep the interpreter for long."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)


def run_quietly(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """`run_async` to play: no garbage collector, and no other thread for long."""
    with quiet_gc(), quick_switches():
        return run_async(start, new_loop)
