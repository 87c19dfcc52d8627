"""The command line without a process of its own, half a second less each time; and whether a process still runs.

That a process of its own says the same is tested in test_cli_main.py, and wherever signals, engines or crashes matter.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import psutil

from breakeven.cli.main import main


def run_here(*words: str, cwd: Path | None = None, columns: int = 80) -> subprocess.CompletedProcess[str]:
    """`breakeven WORDS`, in this process; what it wrote and its exit status, as `subprocess.run` would give them."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["breakeven", *words]),
        mock.patch.dict(os.environ, {"COLUMNS": str(columns), "NO_COLOR": "1"}),
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status: object = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code
    assert isinstance(status, int)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs; one that ended and whose status nobody collected does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
