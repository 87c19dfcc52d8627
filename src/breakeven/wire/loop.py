"""The loop that calls run on, and Ctrl-C while they do."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop: uvloop's where it is installed, else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def run_async(
    start: Callable[[], Coroutine[Any, Any, T]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> T:
    """What the coroutine of `start` returns, run on a loop of its own.

    As `asyncio.run`, Ctrl-C cancels it and raises KeyboardInterrupt, unless it ends without minding that; a second one
    raises at once. But one that comes while the loop is made or closed waits for that: `asyncio.run` leaves half a loop
    then, which prints a traceback as it is collected.
    """
    interrupt = _Interrupt()
    takes = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if takes:
        signal.signal(signal.SIGINT, interrupt.hear)
    try:
        result = _run(interrupt.run(start), loop_factory)
    except asyncio.CancelledError:
        if interrupt.heard:
            raise KeyboardInterrupt from None
        raise
    finally:
        if takes:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupt.unminded:
        raise KeyboardInterrupt
    return result


def _run(main: Coroutine[Any, Any, T], loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> T:
    """What `main` returns; its loop is closed and collected by then."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(main)


class _Interrupt:
    """Ctrl-C: `unminded` when there was nothing left, or nothing yet, to cancel."""

    def __init__(self) -> None:
        self.heard = self.unminded = False
        self._task: asyncio.Task[Any] | None = None

    def hear(self, _number: int, _frame: object) -> None:
        if self.heard:
            raise KeyboardInterrupt
        self.heard = True
        if self._task is None:
            self.unminded = True
        else:
            self._task.cancel()
            self._task.get_loop().call_soon_threadsafe(lambda: None)  # it may be asleep

    async def run(self, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self._task = asyncio.current_task()
        try:
            if self.heard:
                raise asyncio.CancelledError
            return await start()
        finally:
            self._task = None
