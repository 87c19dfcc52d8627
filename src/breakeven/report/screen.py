"""Where a running study is shown: a block redrawn in place on a terminal, else plain lines, seconds apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_EVERY_S = 5.0


class Screen:
    """What every progress view stands on. Use as a context manager; silent when `quiet`.

    `clock` gives seconds, monotonic.
    """

    def __init__(
        self,
        console: Console,
        quiet: bool = False,
        plain_every_s: float = PLAIN_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._quiet = quiet
        self._every_s = plain_every_s
        self._clock = clock
        self._live: Live | None = None
        self._last_said: tuple[float, str, str] | None = None

    def __enter__(self) -> Self:
        if not self._quiet and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _redrawn(self, lines: Callable[[], list[str]]) -> bool:
        """Draw `lines` in place; False where nothing can be redrawn."""
        if self._live is None:
            return False
        self._live.update(Text("\n".join(lines()), no_wrap=True, overflow="crop"), refresh=True)
        return True

    def _may_say(self, what: str, subject: str) -> bool:
        """Whether a plain line is due: at once about something new, else after a while."""
        now = self._clock()
        if self._last_said is not None:
            said_at, *said = self._last_said
            if said == [what, subject] and now - said_at < self._every_s:
                return False
        self._last_said = (now, what, subject)
        return True

    def _say(self, lines: list[str]) -> None:
        for line in lines:
            self._console.print(Text(line), soft_wrap=True)
