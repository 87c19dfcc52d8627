"""What the tests of looking at experts share: a line between worker and watcher, and an answer."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from breakeven.gateway.experts.hand import LINE_BYTES, Handing
from breakeven.hardware.system import message_line

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
FILES = Path("/proc/self/fd")
COUNTED = pytest.mark.skipif(not FILES.is_dir(), reason="descriptors are counted as Linux lists them")

Line = tuple[Handing, socket.socket, socket.socket]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen is kept there: each test begins with nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def files() -> int:
    """Descriptors that this process has open."""
    return len(list(FILES.iterdir()))


@pytest.fixture
def line() -> Iterator[Line]:
    """The worker's end, its socket, and the other end; afterwards no descriptor may be left."""
    before = files()
    sending, receiving = message_line(LINE_BYTES)
    yield Handing(sending), sending, receiving
    sending.close()
    receiving.close()
    assert files() == before


def document(content: str = "Yes.", **more: Any) -> bytes:
    """An answer as it came."""
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}], **more}).encode()
