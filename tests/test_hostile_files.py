"""Files that mean harm: one line, exit 2, within seconds and little memory, and no control character on a terminal.

Each runs in a process of its own, under a limit on memory. Time is the processor's, so that a busy machine does not
count against it.
"""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

MOST_CPU_S = 5.0
"""Of which Python, typer and the readers' imports take one."""
MOST_BYTES = 300_000_000
_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in what `getrusage` counts memory in."""


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))


def run(*words: str | Path) -> Ended:
    """`breakeven WORDS`, and that it took little of the machine."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        command = [sys.executable, "-m", "breakeven.cli", *map(str, words)]
        process = subprocess.Popen(command, stdout=out, stderr=err, preexec_fn=_limit)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        ended = Ended(process.returncode, out.read().decode(), err.read().decode())
    assert used.ru_utime + used.ru_stime < MOST_CPU_S, ended
    assert used.ru_maxrss * _UNIT < MOST_BYTES, ended
    return ended


def refused(*words: str | Path) -> str:
    """The one plain line with which `breakeven WORDS` ends."""
    ended = run(*words)
    assert (ended.status, ended.out) == (2, ""), ended
    assert ended.err.startswith("breakeven: ")
    assert ended.err.count("\n") == 1
    assert ended.err.rstrip("\n").isprintable()
    return ended.err


def _gguf(keys: int, tensors: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _key(name: bytes, kind: int, value: bytes) -> bytes:
    return _text(name) + struct.pack("<I", kind) + value


_LLAMA = _key(b"general.architecture", 8, _text(b"llama"))
_GGUF = {
    "counts of 2^63": (_gguf(2**63, 2**63), 0, "truncated"),
    "a string of 2^62": (_gguf(1, 0, struct.pack("<Q", 2**62) + b"x"), 0, "truncated"),
    "a string of 3 GB": (_gguf(1, 0, struct.pack("<Q", 3 * 10**9)), 4 * 10**9, "goes on past 64 MiB"),
    "a list of 3e9 numbers": (_gguf(1, 0, _key(b"k", 9, struct.pack("<IQ", 0, 3 * 10**9))), 4 * 10**9, "a list of 3,0"),
    "a list of 2^61 numbers": (_gguf(1, 0, _key(b"k", 9, struct.pack("<IQ", 12, 2**61))), 0, "truncated"),
    "3e8 empty strings": (_gguf(1, 0, _key(b"k", 9, struct.pack("<IQ", 8, 3 * 10**8))), 4 * 10**9, "a list of 300,0"),
    "lists in lists": (_gguf(1, 0, _key(b"k", 9, struct.pack("<IQ", 9, 1) * 100)), 0, "a value of type 9"),
    "2^20 lists of lists": (_gguf(1, 0, _key(b"k", 9, struct.pack("<IQ", 9, 1 << 20))), 10**8, "a list of 1,0"),
    "2^15 lists of lists": (_gguf(1, 0, _key(b"k", 9, struct.pack("<IQ", 9, 1 << 15))), 10**8, "m.gguf"),
    "2^21 strings": (_gguf(1, 0, _key(b"k", 9, struct.pack("<IQ", 8, 1 << 21))), 10**8, "m.gguf"),
    "1e8 keys": (_gguf(10**8, 0), 4 * 10**9, "100,000,000 keys"),
    "1e8 tensors": (_gguf(0, 10**8), 4 * 10**9, "100,000,000 tensors"),
    "alignment of 2^60": (_gguf(1, 0, _key(b"general.alignment", 10, struct.pack("<Q", 2**60))), 200, "truncated"),
    "escapes in an architecture": (
        _gguf(1, 0, _key(b"general.architecture", 8, _text(b"\x1b[31mZ\x9b0m\x07"))),
        200,
        "m.gguf",
    ),
    "escapes in a tensor": (_gguf(1, 1, _LLAMA + _text(b"\x1b]0;t\x07") + struct.pack("<I", 9)), 200, "9 dimensions"),
    "2^31 layers": (_gguf(2, 0, _LLAMA + _key(b"llama.block_count", 4, struct.pack("<I", 2**31))), 200, "m.gguf"),
    "sizes of 2^64": (
        _gguf(1, 1, _LLAMA + _text(b"x") + struct.pack("<I", 4) + b"\xff" * 32 + struct.pack("<IQ", 0, 2**64 - 1)),
        300,
        "truncated",
    ),
}


@pytest.mark.parametrize("name", _GGUF)
def test_a_hostile_gguf_is_refused(name: str, tmp_path: Path) -> None:
    """Padded with a hole to so many bytes, which takes no room on the disk."""
    head, size, told = _GGUF[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(head)
    os.truncate(path, max(size, len(head)))
    assert told in refused("models", path)
