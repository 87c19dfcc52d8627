"""Runs LangChain's standard tests (`langchain_tests_chat.py`) directly and through the gateway."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from found import Found
from openai_python import read_junit
from places import HERE, PUBLIC, Engine


def outcomes(url: str, model: str, other: str) -> dict[str, str]:
    """passed, failure, error or skipped, by test."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(HERE / "langchain_tests_chat.py"), f"--junitxml={report}", "-q"]
        command += ["-p", "no:cacheprovider", "-c", os.devnull, "-o", "asyncio_mode=auto", "--tb=no"]
        environment = {**os.environ, "JUDGED_URL": f"{url}/v1", "JUDGED_MODEL": model, "JUDGED_OTHER_MODEL": other}
        environment["LANGSMITH_TRACING"] = "false"
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=900)
        if not report.is_file():
            raise RuntimeError(f"langchain-tests did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return read_junit(report)


def judge(engine: Engine, through_url: str) -> list[Found]:
    """One row."""
    direct = outcomes(engine.url, engine.model, engine.model)
    through = outcomes(through_url, PUBLIC, engine.model)
    return [Found(f"langchain-tests {version('langchain-tests')}: ChatOpenAI", engine.what, direct, through)]
