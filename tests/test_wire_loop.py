"""Ctrl-C while calls run: nothing is left half made, whenever it comes."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from breakeven.wire import loop as loop_module
from breakeven.wire.loop import new_loop, run_async

BOTH = pytest.mark.parametrize("factory", [asyncio.new_event_loop, new_loop], ids=["asyncio", "uvloop"])
WATCHED = {loop_module.__file__, *map(str, Path(asyncio.__file__).parent.glob("*.py"))}


@pytest.fixture(autouse=True)
def as_from_a_terminal() -> Any:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


async def _three_turns() -> str:
    for _ in range(3):
        await asyncio.sleep(0)
    return "done"


def _interrupted_at(line: int, factory: Any) -> tuple[int, str]:
    """Ctrl-C at this line of those that are run; how many there were, and what came of it."""
    lines, raised = 0, False

    def watch(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines, raised
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            lines += 1
            if lines == line:
                raised = True
                signal.raise_signal(signal.SIGINT)
        return watch

    sys.settrace(watch)
    try:
        result = run_async(_three_turns, factory)
    except KeyboardInterrupt:
        result = "interrupted"
    finally:
        sys.settrace(None)
    return lines, result if raised else "not reached"


@BOTH
@pytest.mark.filterwarnings("error")
def test_ctrl_c_at_any_line_interrupts_and_leaves_nothing(factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    lines, result = _interrupted_at(0, factory)
    assert (lines > 40, result) == (True, "not reached")
    gc.freeze()  # what was there before need not be gone through eight hundred times
    try:
        for line in range(1, lines + 1):
            _, result = _interrupted_at(line, factory)
            assert result in ("interrupted", "not reached"), line
            gc.collect()
            assert not ignored, (line, ignored)
    finally:
        gc.unfreeze()


@BOTH
def test_what_minds_ctrl_c_ends_by_itself(factory: Any) -> None:
    async def tidy() -> str:
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            return "tidied"
        return "slept"

    assert run_async(tidy, factory) == "tidied"


@BOTH
def test_a_loop_that_sleeps_hears_it_and_a_second_one_ends_at_once(factory: Any) -> None:
    tidied: list[bool] = []

    async def slow_to_end(again: bool) -> None:
        threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT]).start()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            if again:
                asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
            await asyncio.sleep(600 if again else 0)
            tidied.append(True)
            raise

    for again in (False, True):
        with pytest.raises(KeyboardInterrupt):
            run_async(lambda again=again: slow_to_end(again), factory)  # type: ignore[misc]
    assert tidied == [True]


def test_what_the_caller_does_with_ctrl_c_or_in_a_thread_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []

    async def interrupted() -> str:
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0)
        return "done"

    signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        assert run_async(interrupted) == "done"
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(run_async(_three_turns)))
    thread.start()
    thread.join(60)
    assert (heard, results) == ([signal.SIGINT], ["done"])


def test_a_cancellation_of_its_own_is_no_ctrl_c() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run_async(cancelled)
