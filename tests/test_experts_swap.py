"""Experts come and go at run time: a gateway swaps a file for its pruned one under load, and no request is lost."""

from __future__ import annotations

import itertools
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from gateway_serve_fixtures import Gateway, serving, wait, write_plan

from breakeven.engines.synthesis.write import synthesise
from breakeven.gateway.plan.model import BackendPlan, LocalPlan
from breakeven.gateway.swap.needs import needs_of
from breakeven.lab.surgery.prune import prune
from tests.gateway_swap_fixtures import ask
from tests.small_layouts import LAYOUTS

REQUESTS, CLIENTS, OUTPUT_TOKENS = 16, 6, 8
PATIENCE_S = 60.0


def backend(name: str, model: Path) -> dict[str, Any]:
    return {"name": name, "local": {"model": str(model), "context": 256, "slots": 4, "threads": 1}}


def engines_of(gateway: Gateway) -> list[psutil.Process]:
    below = psutil.Process(gateway.process.pid).children(recursive=True)
    return [child for child in below if "breakeven.engines.llama_cpp.child" in " ".join(_line(child))]


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("files")
    whole = synthesise(LAYOUTS["qwen3vlmoe"], "Q8_0", directory / "eight.gguf")
    prune(whole, directory / "six.gguf", 6, None)
    return whole, directory / "six.gguf"


def test_a_pruned_file_takes_turns_with_its_source_and_no_request_is_lost(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    names = ("eight", "six")
    plans = [
        BackendPlan(name=name, local=LocalPlan(model=str(file), context=256, slots=4, threads=1))
        for name, file in zip(names, files, strict=True)
    ]
    needed = max(need.bytes for need in needs_of(plans))
    plan = {
        "backends": [backend(name, file) for name, file in zip(names, files, strict=True)],
        "workers": 1,
        "memory": f"{1.8 * needed / 1e9:.3f}GB",  # of one at a time; what is measured may be above what was computed
        "minimum_dwell": "1s",
    }
    most = 0
    done = threading.Event()
    with serving(tmp_path / "gateway", plan) as gateway, ThreadPoolExecutor(CLIENTS + 1) as pool:

        def watch() -> None:
            nonlocal most
            while not done.wait(0.05):
                most = max(most, len(engines_of(gateway)))

        watching = pool.submit(watch)

        def request(number: int, model: str) -> None:
            body = {"model": model, "prompt": [number + 1, 2, 3], "max_tokens": OUTPUT_TOKENS, "temperature": 0}
            status, said = ask(f"{gateway.url}/v1/completions", body)
            assert status == 200, said
            assert said["usage"]["completion_tokens"] == OUTPUT_TOKENS

        turns = itertools.cycle(names)
        try:
            list(pool.map(request, range(REQUESTS), [next(turns) for _ in range(REQUESTS)]))
        finally:
            done.set()
        watching.result()
        assert most == 1, "memory held more than one engine"
        wait(lambda: len(gateway.logged()) == REQUESTS, "requests are missing in the log")
        assert Counter(record.backend for record in gateway.logged()) == dict.fromkeys(names, REQUESTS // 2)

        # The same name, and another file behind it, while requests are under way all the time.
        plan["backends"] = [backend("eight", files[1]), backend("six", files[0])]
        swapped = threading.Event()

        def keep_asking(number: int) -> int:
            for count in itertools.count(1):
                request(number, "eight")
                if swapped.is_set():
                    return count
            return 0

        log = gateway.directory / "log" / "engines" / "eight.log"
        with ThreadPoolExecutor(CLIENTS) as clients:
            asking = [clients.submit(keep_asking, number) for number in range(CLIENTS)]
            try:
                write_plan(gateway.directory / "gateway.yaml", plan)
                gateway.signal(signal.SIGHUP)
                wait(lambda: str(files[1]) in log.read_text(), "the other file was not loaded", PATIENCE_S)
            finally:
                swapped.set()
            asked = sum(each.result() for each in asking)
        wait(lambda: len(gateway.logged()) == REQUESTS + asked, "requests are missing in the log")
        assert {(record.status, record.backend) for record in gateway.logged()[REQUESTS:]} == {(200, "eight")}
