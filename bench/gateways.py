"""Starting the gateways that are compared, each in front of the same mock, each on one core with one worker."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_S = 120.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Gateway:
    """A running gateway: where it answers, what a request must carry, and the processes that serve."""

    name: str
    url: str
    model: str
    headers: tuple[str, ...]
    pid: int
    started_s: float
    """From its start to its first answer on `ready`."""

    def pids(self) -> list[int]:
        """All its processes."""
        found, waiting = [], [self.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                waiting += [int(one) for one in task.read_text().split()]
        return found

    def cpu_s(self) -> float:
        """CPU seconds of all its processes, user and system."""
        return sum(_cpu_s(pid) for pid in self.pids())

    def rss_bytes(self) -> dict[int, int]:
        """Resident memory by process."""
        return {pid: _rss(pid) for pid in self.pids()}


def _cpu_s(pid: int) -> float:
    """From the scheduler, in nanoseconds, threads that ended included: finer than the clock's ticks."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def running(
    name: str, command: list[str], ready: str, *, url: str, model: str, headers: tuple[str, ...] = (),
    core: int | None = None, log: Path, environment: dict[str, str] | None = None,
) -> Iterator[Gateway]:  # fmt: skip
    """Start a gateway, wait until `ready` answers, and stop it."""

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    began = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, preexec_fn=pin, start_new_session=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
    try:
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() - began > START_S:
                raise SystemExit(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.005)
        yield Gateway(name, url, model, headers, process.pid, time.monotonic() - began)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1.0):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def breakeven_gateway(python: str, mock: str, work: Path, core: int | None, workers: int = 1):  # type: ignore[no-untyped-def]
    """Ours with keys, limits, metrics, the decision log and the default policy between two backends on."""
    port, admin = free_port(), free_port()
    keys = work / "keys.json"
    keys.unlink(missing_ok=True)
    command = [python, "-m", "breakeven.cli"]
    limits = ["--limit", "100M requests/day", "--limit", "100000M tokens/day"]
    made = subprocess.run(
        [*command, "keys", "create", "bench", "--file", str(keys), *limits],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    secret = next(word for word in (made.stdout + made.stderr).split() if word.startswith("bek-"))
    file = work / "gateway.yaml"
    file.write_text(
        f"port: {port}\nworkers: {workers}\nadmin: {{port: {admin}}}\nkeys: {keys}\n"
        f"log: {{directory: {work / 'log'}}}\n"
        f"limits: {{streams_per_key: 100000}}\n"
        "backends:\n"
        f"  - {{name: dense, url: {mock}/v1, served_model: mock, kind: dense, model: llama-3.1-8b, machine: h100-sxm,"
        " engine: vllm, limit: 10000, price: {rented: {usd_per_hour: 2.5}}}\n"
        f"  - {{name: moe, url: {mock}/v1, served_model: mock, kind: moe, model: qwen3-30b-a3b, machine: h100-sxm,"
        " engine: vllm, limit: 10000, price: {rented: {usd_per_hour: 2.5}}}\n"
        "policies:\n  - {model: mock, slo: {ttft: 2s, tpot: 50ms}}\n"
    )
    return running(
        "breakeven", [*command, "serve", str(file)], f"http://127.0.0.1:{port}/ready",
        url=f"http://127.0.0.1:{port}", model="mock", headers=(f"Authorization: Bearer {secret}",), core=core,
        log=work / "breakeven.log",
    )  # fmt: skip


def nginx_gateway(mock: str, work: Path, core: int | None):  # type: ignore[no-untyped-def]
    """nginx as a plain reverse proxy with kept connections and without buffering of streams."""
    port = free_port()
    file = work / "nginx.conf"
    file.write_text(f"""
daemon off; worker_processes 1; pid {work}/nginx.pid; error_log {work}/nginx.err;
events {{ worker_connections 4096; }}
http {{ access_log off; client_body_temp_path {work}; proxy_temp_path {work}; fastcgi_temp_path {work};
  uwsgi_temp_path {work}; scgi_temp_path {work};
  upstream mock {{ server {mock.removeprefix("http://")}; keepalive 256; }}
  server {{ listen 127.0.0.1:{port}; keepalive_requests 1000000;
    location / {{ proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; }}
  }} }}
""")
    return running(
        "nginx", [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(file)], f"http://127.0.0.1:{port}/health",
        url=f"http://127.0.0.1:{port}", model="mock", core=core, log=work / "nginx.log",
    )  # fmt: skip


def litellm_gateway(program: str, mock: str, work: Path, core: int | None):  # type: ignore[no-untyped-def]
    """LiteLLM's proxy with one worker, a master key and no database."""
    port = free_port()
    file = work / "litellm.yaml"
    file.write_text(
        "model_list:\n  - model_name: mock\n    litellm_params: {model: openai/mock, api_base: "
        f"{mock}/v1, api_key: none}}\ngeneral_settings: {{master_key: sk-bench}}\n"
    )
    return running(
        "litellm", [program, "--config", str(file), "--port", str(port), "--host", "127.0.0.1", "--num_workers", "1"],
        f"http://127.0.0.1:{port}/health/liveliness", url=f"http://127.0.0.1:{port}", model="mock",
        headers=("Authorization: Bearer sk-bench",), core=core, log=work / "litellm.log",
        environment={"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_COLOR": "1"},
    )  # fmt: skip
