"""The self-test of the client: the instant server answers what it should, and the count is of what came."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest

from breakeven.engines.backend import Backend
from breakeven.errors import BreakevenError
from breakeven.measure import ceiling
from breakeven.measure.runner import CompletionRequest, run_block
from breakeven.wire.instant import ANSWER_BYTES, instant_server
from tests.cli_fixtures import is_alive


def test_the_instant_server_speaks_the_protocol() -> None:
    with instant_server() as url:
        backend = Backend(url, "instant", None, {"engine": "unknown"}, None, None)
        requests = [
            CompletionRequest(block="b", stream=i, prompt="word " * 4000, prompt_tokens=16, max_tokens=1 + 30 * i)
            for i in range(4)
        ]
        done = asyncio.run(run_block(backend, requests))
        body = json.dumps({"prompt": "a", "max_tokens": 5}).encode()
        with urllib.request.urlopen(f"{url}/v1/completions", data=body, timeout=20) as response:
            whole = response.read()
    assert [(d.error, d.anomalies) for d in done] == [(None, [])] * 4
    assert [(d.output_tokens, len(d.chunk_ns)) for d in done] == [(1 + 30 * i, 1 + 30 * i) for i in range(4)]
    assert len(whole) == ANSWER_BYTES
    assert json.loads(whole)["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("processes", [1, 2])
def test_a_ceiling_is_found(processes: int) -> None:
    found = ceiling.measure_ceiling(processes, seconds=1.0)
    assert found.processes == processes
    assert found.requests_per_s > 0
    assert found.stream_events_per_s > 0


@pytest.mark.parametrize("kind", ["flood", "paced"])
def test_only_what_came_while_counting_counts(kind: ceiling.Kind) -> None:
    with instant_server() as url:
        found = ceiling.count_for(kind, url, 0.3)
    # Streams that began before, or had not ended by the end, are counted by their events alone.
    under_way = 2 * ceiling.STREAMS * ceiling.STREAM_TOKENS
    assert abs(found.events - found.requests * ceiling.STREAM_TOKENS) < under_way
    assert found.seconds > 0.29  # uvloop's timers count from a clock of whole milliseconds, up to one tick early
    assert 0 < found.cpu_s < found.seconds * 1.05


def test_a_server_that_is_not_there_is_an_error() -> None:
    with instant_server() as url:
        pass
    with pytest.raises(BreakevenError, match="self-test failed"):
        ceiling.count_for("whole", url, 0.1)
    with pytest.raises(BreakevenError, match="process of the client's self-test failed"):
        ceiling._together("whole", [url, url], 0.1)


def test_the_server_does_not_outlive_whoever_started_it() -> None:
    code = (
        "import os; from breakeven.wire.instant import instant_server\n"
        "import psutil\n"
        "with instant_server(): print(psutil.Process().children()[0].pid, flush=True); os._exit(1)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ
    ).stdout
    deadline = time.monotonic() + 20
    while _runs(int(out)):
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False
