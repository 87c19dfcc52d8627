"""What the gateway costs, against LiteLLM's proxy and nginx in the same run, on the same mock.

    python bench/gateway.py [--litellm PROGRAM] [--parts cpu,latency,stream,memory,start] [--requests 20000]

CPU per request is the CPU time of all of a gateway's processes over the requests of a run, by the scheduler's account.
The gateway has one core, mock and load have the other. Every part runs in turns over the gateways, three rounds, and
the median is printed; ratios are within one round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from gateways import Gateway, breakeven_gateway, litellm_gateway, nginx_gateway
from mock_control import Mock, mock_server

ROUNDS = 3
PARTS = ("cpu", "latency", "stream", "memory", "start")
GATEWAY_CORE, LOAD_CORE = 1, 0


def body(path: Path, *, stream: bool, tokens: int = 16) -> Path:
    """A request of about 2 kB."""
    text = "word " * 350
    asked = {"model": "mock", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "stream": stream}
    path.write_text(json.dumps(asked))
    return path


def hammer(gateway: Gateway, file: Path, requests: int, connections: int, rate: float | None = None) -> dict:
    """One load through a gateway."""
    program, url = Path(__file__).with_name("hammer.py"), f"{gateway.url}/v1/chat/completions"
    command = [sys.executable, str(program), url, str(file)]
    command += ["--requests", str(requests), "--connections", str(connections)]
    for header in gateway.headers:
        command += ["--header", header]
    if rate is not None:
        command += ["--rate", str(rate)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {LOAD_CORE})
    )
    found: dict = json.loads(done.stdout)
    if found["bad"]:
        raise SystemExit(f"{gateway.name}: {found['bad']} of {requests} requests failed")
    return found


def cpu_part(gateways: list[Gateway], mock: Mock, work: Path, requests: int) -> dict[str, float]:
    """CPU milliseconds a request at 32 concurrent ones, by gateway."""
    file = body(work / "plain.json", stream=False)
    mock.script(reply_bytes=2048)
    found: dict[str, list[float]] = {gateway.name: [] for gateway in gateways}
    for gateway in gateways:
        hammer(gateway, file, 500, 32)
    for _ in range(ROUNDS):
        for gateway in gateways:
            n = requests if gateway.name != "litellm" else max(200, requests // 20)
            before = gateway.cpu_s()
            hammer(gateway, file, n, 32)
            found[gateway.name].append((gateway.cpu_s() - before) / n * 1e3)
    print("CPU ms a request:", json.dumps(found))
    return {name: statistics.median(values) for name, values in found.items()}


def latency_part(gateways: list[Gateway], direct: Gateway, mock: Mock, work: Path, cpu_ms: dict[str, float]) -> None:
    """Added latency at half of what one core carries."""
    file = body(work / "plain.json", stream=False)
    mock.script(reply_bytes=2048)
    for gateway in gateways:
        rate = min(2500.0, 0.5 * 1000.0 / cpu_ms[gateway.name])
        n = max(300, int(rate * 6))
        added: dict[str, list[float]] = {"p50": [], "p99": []}
        for _ in range(ROUNDS):
            alone = hammer(direct, file, n, 64, rate)["whole_ms"]
            through = hammer(gateway, file, n, 64, rate)["whole_ms"]
            for q in added:
                added[q].append(through[q] - alone[q])
        medians = {q: statistics.median(values) for q, values in added.items()}
        words = ", ".join(f"{q} {value:.3f} ms" for q, value in medians.items())
        print(f"{gateway.name}: at {rate:.0f} requests/s adds {words}; rounds: {added}")


PACES = {"each chunk alone (every 10 ms in 64 streams)": (64, 0.01), "as fast as they come": (16, None)}


def stream_part(gateways: list[Gateway], mock: Mock, work: Path) -> None:
    """Chunks of streams a second of CPU: paced, so that each is read and written alone, and unthrottled."""
    for pace, (concurrent, itl_s) in PACES.items():
        chunks = 200
        file = body(work / "stream.json", stream=True, tokens=chunks)
        found: dict[str, list[float]] = {gateway.name: [] for gateway in gateways}
        for _ in range(ROUNDS):
            for gateway in gateways:
                slow = gateway.name == "litellm"
                n, at_once = (8, 2) if slow else (2 * concurrent, concurrent)
                mock.script(ttft_s=None if itl_s is None else 0.02, itl_s=itl_s or 0.0, chunks=chunks)
                before = gateway.cpu_s()
                hammer(gateway, file, n, at_once)
                found[gateway.name].append(n * chunks / (gateway.cpu_s() - before))
        print(f"chunks a second of CPU, {pace}:", {name: round(statistics.median(v)) for name, v in found.items()})
        print("   rounds:", {name: [round(one) for one in v] for name, v in found.items()})


def memory_part(gateway: Gateway, mock: Mock, work: Path, requests: int) -> None:
    """Resident memory by process while many requests pass."""
    file = body(work / "plain.json", stream=False)
    mock.script(reply_bytes=2048)
    step = max(1, requests // 10)
    for done in range(0, requests + 1, step):
        sizes = [round(size / 2**20, 1) for size in gateway.rss_bytes().values()]
        print(f"{gateway.name}: after {done} requests, MB by process: {sizes}", flush=True)
        if done < requests:
            hammer(gateway, file, step, 32)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--litellm", default=os.environ.get("BREAKEVEN_BENCH_LITELLM"))
    parser.add_argument("--parts", default="cpu,latency,stream,start")
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--memory-requests", type=int, default=1_000_000)
    asked = parser.parse_args()
    parts = asked.parts.split(",")
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        mock = stack.enter_context(mock_server(LOAD_CORE))
        direct = Gateway("direct", mock.url, "mock", (), mock.pid, 0.0)
        ours = stack.enter_context(breakeven_gateway(sys.executable, mock.url, work, GATEWAY_CORE))
        gateways = [ours, stack.enter_context(nginx_gateway(mock.url, work, GATEWAY_CORE))]
        if asked.litellm and set(parts) & {"cpu", "latency", "stream"}:
            gateways.append(stack.enter_context(litellm_gateway(asked.litellm, mock.url, work, GATEWAY_CORE)))
        print("to the first answer, s:", {gateway.name: round(gateway.started_s, 3) for gateway in gateways})
        cpu_ms: dict[str, float] = {}
        if "cpu" in parts or "latency" in parts:
            cpu_ms = cpu_part(gateways, mock, work, asked.requests)
            print("median:", {name: round(value, 4) for name, value in cpu_ms.items()})
            for name in ("nginx", "litellm"):
                if name in cpu_ms:
                    print(f"ours over {name}: {cpu_ms['breakeven'] / cpu_ms[name]:.4f}")
        if "latency" in parts:
            latency_part(gateways, direct, mock, work, cpu_ms)
        if "stream" in parts:
            stream_part(gateways, mock, work)
        if "memory" in parts:
            memory_part(ours, mock, work, asked.memory_requests)
    if "start" in parts:
        starts_part()


def starts_part() -> None:
    """Time from start to ready, five times, nothing else running."""
    seconds = []
    with tempfile.TemporaryDirectory() as place, mock_server(LOAD_CORE) as mock:
        for _ in range(5):
            with breakeven_gateway(sys.executable, mock.url, Path(place), None) as gateway:
                seconds.append(gateway.started_s)
            time.sleep(0.5)
    print(f"cold start to ready: median {statistics.median(seconds):.2f} s of {[round(s, 2) for s in seconds]}")


if __name__ == "__main__":
    main()
