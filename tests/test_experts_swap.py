"""Experts come and go at run time: a gateway swaps a file for its pruned one under load, and no request is lost."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from gateway_serve_fixtures import Gateway, Reply, ask, serving, wait, write_plan

from breakeven.engines.synthesis.write import synthesise
from breakeven.gateway.plan.model import BackendPlan, LocalPlan
from breakeven.gateway.swap.needs import needs_of
from breakeven.lab.prune import prune
from tests.small_layouts import LAYOUTS

REQUESTS, CLIENTS = 24, 8
OUTPUT_TOKENS = 8
PATIENCE_S = 90.0


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
        "memory": f"{needed / 1e9 + 0.01:.3f}GB",  # of one at a time
        "minimum_dwell": "0s",
    }
    most = 0
    done = threading.Event()
    with serving(tmp_path / "gateway", plan) as gateway, ThreadPoolExecutor(CLIENTS + 1) as pool:

        def watch() -> None:
            nonlocal most
            while not done.wait(0.05):
                most = max(most, len(engines_of(gateway)))

        watching = pool.submit(watch)

        def request(number: int, model: str) -> tuple[str, Reply]:
            body = {"model": model, "prompt": [number + 1, 2, 3], "max_tokens": OUTPUT_TOKENS, "temperature": 0}
            return model, ask(gateway.url, body, "/v1/completions")

        turns = itertools.cycle(names)
        try:
            answered = list(pool.map(request, range(REQUESTS), [next(turns) for _ in range(REQUESTS)]))
        finally:
            done.set()
        watching.result()
        for model, reply in answered:
            assert reply.status == 200, reply.body
            assert (reply.backend, reply.json["usage"]["completion_tokens"]) == (model, OUTPUT_TOKENS)
        assert most == 1, "memory held more than one engine"

        # The same name, and another file behind it.
        plan["backends"] = [backend("eight", files[1]), backend("six", files[0])]
        with ThreadPoolExecutor(4) as clients:
            running = [clients.submit(request, number, "eight") for number in range(8)]
            write_plan(gateway.directory / "gateway.yaml", plan)
            gateway.signal(1)  # SIGHUP: read the file again
            running += [clients.submit(request, number, "eight") for number in range(8)]
            for each in running:
                assert each.result(PATIENCE_S)[1].status == 200
        wait(lambda: gateway.idle(), "something is still under way")
