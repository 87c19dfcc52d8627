"""What the client of backends tells whoever asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case; hop-by-hop ones removed."""
Trouble = Literal["refused", "unreachable", "reset", "timeout", "garbage", "cut", "too_large", "forbidden"]
"""Why an exchange ended badly. refused: nobody listens. reset: closed before the answer was whole, no body byte seen.
cut: closed in the middle of the body. forbidden: an address that may not be asked. timeout: see the detail."""


class Sink(Protocol):
    """Who receives an answer. Calls come on the loop, in order; exactly one of `on_end` and `on_trouble` comes last."""

    def on_head(self, status: int, headers: Headers) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_trouble(self, trouble: Trouble, detail: str) -> None: ...


class Exchange(Protocol):
    """One request under way."""

    def cancel(self) -> None:
        """Close its connection now; the sink hears nothing more."""

    def pause(self) -> None:
        """Take no more bytes from the backend until `resume`; the idle timeout does not run meanwhile."""

    def resume(self) -> None: ...
