"""Running any load generator as a process of its own, watched from outside: what is asked, and what came of it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

QUIET = {"DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"}


@dataclass(frozen=True)
class Job:
    """One load. Closed loop with `concurrency`, or `arrivals` (poisson, constant) at `rate`; `tokens` of every request.

    `prompts` has at least `requests` lines. `chunks`: the stamp of every chunk is wanted back, `cpu`: CPU time
    as it goes, which disturbs delays a little. `core`: pin to it.
    """

    url: str
    requests: int
    prompts: list[str]
    tokens: int
    tokenizer: Path
    concurrency: int | None = None
    rate: float | None = None
    arrivals: str = "poisson"
    stream: bool = True
    model: str = "mock"
    chunks: bool = False
    cpu: bool = False
    core: int | None = None
    timeout_s: float = 300.0
    seed: int = 0
    engine: str = "mock"
    processes: int = 1
    ray: str | None = None
    figures: bool = True
    """The last four are for ours only: processes to use, where Ray is, and whether to work out the statistics."""


@dataclass
class Run:
    """What one tool did. `cpu`: (monotonic ns, CPU seconds of all its processes so far) twice a second.

    `figures`: its own results, in requests/s and seconds; absent: it does not say. `chunks`: (request as the mock
    numbered it, request started ns, ns of each chunk), monotonic clock, where the tool keeps them. `error`: why there
    are no results.
    """

    tool: str
    figures: dict[str, float] = field(default_factory=dict)
    chunks: list[tuple[int, int, list[int]]] = field(default_factory=list)
    cpu: list[tuple[int, float]] = field(default_factory=list)
    streamed: bool = True
    error: str | None = None

    def cpu_between(self, start_ns: int, end_ns: int) -> float | None:
        """CPU seconds used between two moments, interpolated; None where they could not be read."""
        used = self._cpu_at(end_ns) - self._cpu_at(start_ns)
        return used if used > 0 else None

    def _cpu_at(self, at_ns: int) -> float:
        before = (0, 0.0)
        for sample in self.cpu:
            if sample[0] >= at_ns:
                share = (at_ns - before[0]) / (sample[0] - before[0]) if before[0] else 1.0
                return before[1] + share * (sample[1] - before[1])
            before = sample
        return before[1]


def watch(command: list[str], environment: dict[str, str], job: Job, work: Path, done: Run) -> None:
    """Run to the end, sampling CPU time; a run that fails or takes too long leaves `done.error`."""
    core = job.core

    def pin() -> None:
        os.setsid()
        if core is not None:
            os.sched_setaffinity(0, {core})

    with (work / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=work,
            env={**os.environ, **QUIET, **environment}, preexec_fn=pin,
        )  # fmt: skip
        stop = threading.Event()
        sampler = threading.Thread(target=_sample_cpu, args=(process.pid, done, stop))
        if job.cpu:
            sampler.start()
        try:
            status = process.wait(job.timeout_s)
            if status:
                done.error = f"exit {status}: {_last_line(work / 'output.txt')}"
        except subprocess.TimeoutExpired:
            done.error = f"not done after {job.timeout_s:.0f} s"
        finally:
            stop.set()
            if job.cpu:
                sampler.join()
            _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the session this process leads."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


SAMPLE_S = 0.5
"""Reading all of /proc costs milliseconds, which are the client's or the server's core too."""


def _sample_cpu(pid: int, done: Run, stop: threading.Event) -> None:
    """CPU seconds of the session `pid` leads, ended members included by never letting the sum fall."""
    tick = os.sysconf("SC_CLK_TCK")
    seen: dict[int, int] = {}
    while True:
        now = time.monotonic_ns()
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                words = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(words[3]) == pid:  # session
                seen[int(entry.name)] = int(words[11]) + int(words[12])
        done.cpu.append((now, sum(seen.values()) / tick))
        if stop.wait(SAMPLE_S):
            return


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "no output"
