"""OpenAI's own tests of its Python package, against a backend directly and through the gateway.

The tests stand in the package's source distribution. They ask a server that answers by OpenAI's types, which is what
`typed_backend.py` does, and check that each answer is valid, strictly. Of the five groups named here only requests
that a gateway forwards are run; stored answers (retrieve, list, update, delete, cancel) are OpenAI's own database.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from found import Found
from places import Engine, gateway
from typed_backend import typed_backend

VERSION = "2.54.0"
GROUPS = {
    "chat": ("chat/test_completions.py", "create or parse"),
    "completions": ("test_completions.py", "create"),
    "embeddings": ("test_embeddings.py", "create"),
    "models": ("test_models.py", "retrieve or list"),
    "responses": ("test_responses.py", "all_params_overload or parse"),
    "responses, no model named": ("test_responses.py", "create_overload"),
}
"""Test file under tests/api_resources, and which of its tests."""
REFUSED = {"responses, no model named": "as said below: 400 without a model"}
"""Groups that a gateway cannot serve, and why: every one of their tests has to fail."""
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")


def tests(directory: Path) -> Path:
    """The unpacked source distribution, fetched by pip on first use."""
    found = directory / f"openai-{VERSION}"
    if not found.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "openai"]
        subprocess.run([*pip, "-d", str(directory), f"openai=={VERSION}"], check=True)
        with tarfile.open(directory / f"openai-{VERSION}.tar.gz") as archive:
            archive.extractall(directory, filter="data")
    return found


def names(sources: Path) -> list[str]:
    """Every model that the groups' tests ask for: the gateway's public names."""
    texts = [(sources / "tests" / "api_resources" / file).read_text() for file, _ in GROUPS.values()]
    # Models are retrieved by a bare first argument.
    asked = re.compile(r'(?:model=|models\.(?:with_raw_response\.|with_streaming_response\.)?retrieve\(\s*)"([^"]+)"')
    return sorted({name for text in texts for name in asked.findall(text)})


def outcomes(sources: Path, group: str, base_url: str) -> dict[str, str]:
    """passed, failed, error or skipped, by test."""
    file, which = GROUPS[group]
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"tests/api_resources/{file}", "-k", which, f"--junitxml={report}"]
        # The package's settings ask for a plugin that spreads tests over processors; they fit into one.
        command += ["-q", "-o", "addopts=", "-p", "no:cacheprovider"]
        environment = {**os.environ, "TEST_API_BASE_URL": base_url, "PYTHONPATH": str(sources / "src")}
        done = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, timeout=600)
        if not report.is_file():
            raise RuntimeError(f"openai's tests did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return read_junit(report)


def read_junit(report: Path) -> dict[str, str]:
    """Outcome by test of a JUnit file."""
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        bad = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        found[f"{case.get('classname')}::{case.get('name')}"] = bad
    return found


def judge(cache: Path) -> list[Found]:
    """One row a group: outcomes equal, and what the backend was asked equal."""
    sources = tests(cache)
    rows = []
    with (
        typed_backend() as (url, asked),
        gateway(Engine(url, "mock", "mock"), names(sources), ENDPOINTS) as through_url,
    ):
        for group in GROUPS:
            del asked[:]
            direct = outcomes(sources, group, f"{url}/v1")
            asked_directly = Counter(asked)
            del asked[:]
            through = outcomes(sources, group, f"{through_url}/v1")
            note = ""
            if group in REFUSED and set(through.values()) == {"failure"}:
                note = REFUSED[group]
            elif Counter(asked) != asked_directly:
                note = "what the backend was asked differs"
            rows.append(Found(f"openai-python {VERSION}: {group}", "mock", direct, through, note))
    return rows
