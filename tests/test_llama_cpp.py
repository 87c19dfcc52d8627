"""llama.cpp itself, on a real small model: it starts, answers, agrees with our clock, and never outlives us."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from breakeven.engines.backend import Backend
from breakeven.engines.llama_cpp.report import log_tail
from breakeven.engines.llama_cpp.server import LlamaCppServer
from breakeven.engines.openai_url import connect
from breakeven.errors import EngineError, UserError
from breakeven.hardware.reader import available_threads
from breakeven.measure.paired.blocks import block_metrics
from breakeven.measure.runner import CompletionRequest, run_block
from tests.cli_fixtures import is_alive

PROMPT, OUTPUT = 64, 32


def requests_of(streams: int, seed: int) -> list[CompletionRequest]:
    rng = random.Random(seed)
    return [
        CompletionRequest(
            block=f"{seed}",
            stream=i,
            prompt=[rng.randrange(1000, 20_000) for _ in range(PROMPT)],
            prompt_tokens=PROMPT,
            max_tokens=OUTPUT,
            stall_timeout_s=120.0,
        )
        for i in range(streams)
    ]


@pytest.fixture(scope="module")
def running(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LlamaCppServer, Backend]]:
    server = LlamaCppServer(
        smollm2_gguf,
        context=256,
        slots=2,
        log=tmp_path_factory.mktemp("engine") / "log" / "llama.log",
        name="smol",
    )
    with server as backend:
        yield server, backend


def test_it_says_how_it_runs(running: tuple[LlamaCppServer, Backend]) -> None:
    server, backend = running
    assert backend.url.startswith("http://127.0.0.1:")
    assert backend.load_s is not None
    assert backend.load_s > 0
    expected = {"engine": "llama.cpp", "threads": str(available_threads()), "slots": "2", "context_per_slot": "256"}
    assert expected.items() <= backend.settings.items()
    assert backend.settings["build"].startswith("xllamacpp 20")
    assert backend.settings["wait_policy"] == "GOMP_SPINCOUNT=10000"
    assert "listening on" in server.log.read_text(errors="replace")


def test_memory_is_of_the_engines_process(running: tuple[LlamaCppServer, Backend], smollm2_gguf: Path) -> None:
    server, backend = running
    memory = backend.memory()
    assert memory is not None
    assert backend.pid is not None
    assert memory.peak_rss_bytes >= psutil.Process(backend.pid).memory_info().rss * 0.9
    assert memory.peak_rss_bytes > smollm2_gguf.stat().st_size
    assert server.memory() is not None


def test_it_tokenizes(running: tuple[LlamaCppServer, Backend]) -> None:
    _, backend = running
    tokens = backend.tokenize("Hello world, how?")
    assert tokens == [19556, 905, 28, 638, 47]
    assert backend.tokenize("") == []


@pytest.mark.alone
async def test_one_stream_agrees_with_the_engines_own_clock(running: tuple[LlamaCppServer, Backend]) -> None:
    """Whatever else runs here delays one clock or the other at times: of many tries, one must be left alone."""
    _, backend = running
    apart = []
    for seed in range(1, 41):
        (done,) = await run_block(backend, requests_of(1, seed=seed))
        assert (done.error, done.anomalies) == (None, [])
        assert (done.output_tokens, done.prompt_tokens) == (OUTPUT, PROMPT)
        assert done.chunk_tokens is not None
        assert sum(done.chunk_tokens) == OUTPUT
        metrics = block_metrics([done])
        assert metrics.exact
        # The engine's prefill leaves out the way there and back, so ours can only be slower.
        timings = done.server_timings
        assert timings is not None
        theirs = timings.prompt_n * 1e3 / timings.prompt_ms
        assert metrics.prefill_tokens_per_s is not None
        assert 0 < metrics.prefill_tokens_per_s <= theirs * 1.01
        assert metrics.decode_tokens_per_s is not None
        assert metrics.server_decode_tokens_per_s is not None
        apart.append(abs(metrics.decode_tokens_per_s / metrics.server_decode_tokens_per_s - 1))
        if apart[-1] <= 0.05:
            return
    raise AssertionError(f"the two never agreed: {apart}")


async def test_every_request_starts_cold_and_streams_share_the_engine(
    running: tuple[LlamaCppServer, Backend],
) -> None:
    _, backend = running
    again = requests_of(2, seed=2)
    for _ in range(2):
        done = await run_block(backend, again)
        assert [d.error for d in done] == [None, None]
        assert [d.server_timings.cache_n if d.server_timings else None for d in done] == [0, 0]
        assert [d.server_timings.prompt_n if d.server_timings else None for d in done] == [PROMPT, PROMPT]
    metrics = block_metrics(done)
    assert metrics.streams == 2
    assert metrics.decode_tokens_per_s is not None
    assert metrics.decode_tokens_per_s > 0


async def test_text_and_chat_work_too(running: tuple[LlamaCppServer, Backend]) -> None:
    _, backend = running
    for chat in (False, True):
        request = CompletionRequest(block="t", stream=0, prompt="Say hi.", prompt_tokens=4, max_tokens=8, chat=chat)
        (done,) = await run_block(backend, [request])
        assert (done.error, done.output_tokens) == (None, 8)


async def test_a_prompt_that_does_not_fit_is_refused_in_words(running: tuple[LlamaCppServer, Backend]) -> None:
    _, backend = running
    request = CompletionRequest(block="t", stream=0, prompt=[1000] * 300, prompt_tokens=300, max_tokens=8)
    (done,) = await run_block(backend, [request])
    assert done.error == "http_400"
    assert "context" in (done.detail or "")


def test_its_url_can_be_named_like_any_other(running: tuple[LlamaCppServer, Backend]) -> None:
    _, backend = running
    other = connect(f"{backend.url}/v1#{backend.model}")
    assert (other.engine, other.takes_token_ids, other.pid) == ("llama.cpp", True, None)


@pytest.mark.alone
def test_idle_it_leaves_the_cpu_alone(running: tuple[LlamaCppServer, Backend]) -> None:
    _, backend = running
    process = psutil.Process(backend.pid)
    used_s = []
    for _ in range(10):  # threads that have just worked may still wait for more
        before = process.cpu_times()
        time.sleep(1.0)
        after = process.cpu_times()
        used_s.append(after.user + after.system - before.user - before.system)
        if used_s[-1] < 0.2:
            return
    raise AssertionError(f"CPU seconds in seconds of idleness: {used_s}")


def test_a_broken_file_gives_the_engines_reason(tmp_path: Path, smollm2_gguf: Path) -> None:
    garbage, cut = tmp_path / "garbage.gguf", tmp_path / "cut.gguf"
    garbage.write_bytes(b"garbage")
    with smollm2_gguf.open("rb") as file:
        cut.write_bytes(file.read(4_000_000))
    for broken, reason in ((garbage, "magic"), (cut, "bounds|truncated|corrupt")):
        log = tmp_path / "log"
        with pytest.raises(EngineError, match=rf"could not load .*({reason})") as caught:
            LlamaCppServer(broken, context=64, slots=1, log=log).__enter__()
        assert "\n" not in str(caught.value)


def test_impossible_settings_are_refused(tmp_path: Path, smollm2_gguf: Path) -> None:
    with pytest.raises(UserError, match="threads is 0"):
        LlamaCppServer(smollm2_gguf, context=64, slots=1, threads=0, log=tmp_path / "log")
    with pytest.raises(UserError, match="does not exist"):
        LlamaCppServer(tmp_path / "none.gguf", context=64, slots=1, log=tmp_path / "log").__enter__()


async def test_a_killed_engine_is_reported_with_what_was_measured(smollm2_gguf: Path, tmp_path: Path) -> None:
    server = LlamaCppServer(smollm2_gguf, context=4096, slots=1, log=tmp_path / "log")
    with server as backend:
        server.check_alive()
        assert backend.pid is not None
        pid = backend.pid
        used = server.memory()
        request = CompletionRequest(block="k", stream=0, prompt=[1000] * 4, prompt_tokens=4, max_tokens=4000)

        asyncio.get_running_loop().call_later(1.0, os.kill, pid, signal.SIGKILL)
        (done,) = await run_block(backend, [request])
        # On a busy machine it may die before it took the request.
        assert done.error in ("reset", "unreachable")
        with pytest.raises(EngineError, match=r"killed by signal 9.*memory runs out"):
            server.check_alive()
    assert server.memory() == used, "the last reading before its death is kept"


_PARENT = """
import sys, time
from pathlib import Path
from breakeven.engines.llama_cpp.server import LlamaCppServer
with LlamaCppServer(Path(sys.argv[1]), context=64, slots=1, log=Path(sys.argv[2])) as backend:
    print(backend.pid, flush=True)
    time.sleep(120)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_never_outlives_its_parent(ending: signal.Signals, smollm2_gguf: Path, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(smollm2_gguf), str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # A suite that runs in the background of a shell has Ctrl-C switched off, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert parent.stdout is not None
    engine = psutil.Process(int(parent.stdout.readline()))
    assert engine.is_running()
    parent.send_signal(ending)
    parent.wait(30)
    parent.stdout.close()
    _wait_gone(engine)


def test_it_dies_with_a_parent_killed_while_it_loads(smollm2_gguf: Path, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(smollm2_gguf), str(tmp_path / "log")], stdout=subprocess.DEVNULL
    )
    watched = psutil.Process(parent.pid)
    children: list[psutil.Process] = []
    while not children and parent.poll() is None:
        children = watched.children()
        time.sleep(0.005)
    assert children
    parent.kill()
    parent.wait(30)
    _wait_gone(children[0])


def _wait_gone(process: psutil.Process) -> None:
    """Wait until a process that is not ours to reap has ended."""
    deadline = time.monotonic() + 20
    while is_alive(process):
        assert time.monotonic() < deadline, "the engine outlived its parent"
        time.sleep(0.02)


def test_the_logs_tail_prefers_errors(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert log_tail(log) == []
    log.write_text("0.01.000.000 I fine\n\n0.02.000.000 E first: bad\n0.03.000.000 I after\n")
    assert log_tail(log) == ["first: bad"]
    log.write_text("one\ntwo\nthree\n")
    assert log_tail(log, lines=2) == ["two", "three"]
