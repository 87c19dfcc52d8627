"""What an engine gets from its keeper: any program is an engine in a few lines, and nothing of it is left."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from breakeven.engines.backend import Backend
from breakeven.engines.keeper import KeptEngine, free_port, log_lines, telling_words
from breakeven.errors import EngineError

PROGRAM = """
import http.server, subprocess, sys, time
port, how = int(sys.argv[1]), sys.argv[2]
print("first", flush=True)
if how == "refuses":
    sys.exit("no such model")
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("helper", helper.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if how == "never ready" else 200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class Tiny(KeptEngine):
    """All that an engine which is started by a command line needs."""

    title = "tiny"

    def __init__(self, log: Path, how: str = "", ready_timeout_s: float = 60.0) -> None:
        super().__init__("model", log, ready_timeout_s)
        self.how = how

    def last_words(self) -> str:
        return f"; it said {' | '.join(log_lines(self.log, 10_000))}"

    def _bring_up(self) -> Backend:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        self._spawn_family([sys.executable, "-c", PROGRAM, str(port), self.how], os.environ)
        load_s = self._wait_healthy(url, "tiny is late")
        return Backend(url, self.name, None, {"engine": "tiny"}, self._pid, load_s)


def helper_of(log: Path) -> int:
    return int(next(line for line in log_lines(log, 10_000) if line.startswith("helper")).split()[1])


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while running(pid):
        assert time.monotonic() < deadline, "something was left running"
        time.sleep(0.02)


def test_a_program_is_an_engine_in_a_few_lines_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    engine = Tiny(tmp_path / "deep" / "log")
    assert engine.memory() is None
    with engine as backend:
        engine.check_alive()
        assert backend.load_s is not None
        assert backend.load_s > 0
        assert backend.pid is not None
        helper, program = helper_of(engine.log), backend.pid
        assert running(program)
        assert running(helper)
        assert engine.memory() is not None
    wait_gone(program)
    wait_gone(helper)
    assert engine.memory() is not None, "as it was when it was stopped"


def test_one_that_ends_is_told_with_how_and_with_its_last_words(tmp_path: Path) -> None:
    said = r"tiny ended while running model \(exit status 1\); it said first \| no such model"
    with pytest.raises(EngineError, match=said):
        Tiny(tmp_path / "log", "refuses").__enter__()


def test_one_that_is_killed_names_the_signal(tmp_path: Path) -> None:
    engine = Tiny(tmp_path / "log")
    with engine as backend:
        assert backend.pid is not None
        os.kill(backend.pid, signal.SIGKILL)
        wait_gone(helper_of(engine.log))
        with pytest.raises(EngineError, match=r"tiny ended while running model \(killed by signal 9\); it said first"):
            engine.check_alive()


def test_one_that_never_answers_is_given_up_and_ended(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="tiny is late; it said first"):
        Tiny(tmp_path / "log", "never ready", ready_timeout_s=8.0).__enter__()
    wait_gone(helper_of(tmp_path / "log"))


def test_one_that_is_not_there_could_not_be_started(tmp_path: Path) -> None:
    class Missing(Tiny):
        def _bring_up(self) -> Backend:
            self._spawn_family([str(tmp_path / "none")], os.environ)
            raise AssertionError

    with pytest.raises(EngineError, match=r"tiny could not be started with .*none"):
        Missing(tmp_path / "log").__enter__()


def test_last_words_are_the_lines_that_tell(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("[10:00] loading\n[10:01] ValueError: first\n[10:01] ValueError: first\n[10:02] KeyError: last\n")
    telling, prefix = re.compile(r"^\w+Error: "), re.compile(r"^\[[\d:]+\] ")
    assert telling_words(log, telling, prefix=prefix).endswith("says: ValueError: first | KeyError: last")
    assert telling_words(log, telling, prefix=prefix, most=1).endswith("says: ValueError: first")
    assert telling_words(log, telling, prefix=prefix, most=1, latest=True).endswith("says: KeyError: last")
    assert telling_words(log, re.compile("nothing"), most=1).endswith("says: [10:02] KeyError: last")
