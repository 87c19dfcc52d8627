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
from typed_backend import Asked, typed_backend

VERSION = "2.54.0"
FILES = {
    "chat": "chat/test_completions.py",
    "completions": "test_completions.py",
    "embeddings": "test_embeddings.py",
    "models": "test_models.py",
    "responses": "test_responses.py",
}
"""Test file under tests/api_resources, by what it tests."""
WHICH = "create or parse or (test_models and (retrieve or list))"
"""The tests of requests that a gateway forwards, and of its list of models."""
WITHOUT_MODEL = "as said below: 400 without a model"
"""OpenAI lets a stored prompt name the model; a gateway has none to choose by."""
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
    texts = [(sources / "tests" / "api_resources" / file).read_text() for file in FILES.values()]
    # Models are retrieved by a bare first argument.
    asked = re.compile(r'(?:model=|models\.(?:with_raw_response\.|with_streaming_response\.)?retrieve\(\s*)"([^"]+)"')
    return sorted({name for text in texts for name in asked.findall(text)})


def outcomes(sources: Path, base_url: str) -> dict[str, str]:
    """passed, failure, error or skipped, by test."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        files = [f"tests/api_resources/{file}" for file in FILES.values()]
        # The package's settings ask for a plugin that spreads tests over processors; they fit into one.
        options = ["-k", WHICH, f"--junitxml={report}", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
        environment = {**os.environ, "TEST_API_BASE_URL": base_url, "PYTHONPATH": str(sources / "src")}
        command = [sys.executable, "-m", "pytest", *files, *options]
        done = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, timeout=900)
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


def _group(test: str) -> str:
    module, _, name = test.partition("::")
    group = "chat" if ".chat." in module else module.split(".")[2].removeprefix("test_")
    model = group != "responses" or "all_params" in name or "create_overload" not in name
    return group if model else "responses, no model named"


def judge(cache: Path) -> list[Found]:
    """One row a group: outcomes equal, and what the backend was asked equal."""
    sources = tests(cache)
    with (
        typed_backend() as (url, asked),
        gateway(Engine(url, "mock", "mock"), names(sources), ENDPOINTS) as through_url,
    ):
        direct = outcomes(sources, f"{url}/v1")
        asked_directly = _with_model(asked())
        through = outcomes(sources, f"{through_url}/v1")
        note = "" if _with_model(asked()) == asked_directly else "what the backend was asked differs"
    rows = []
    for group in sorted({*map(_group, direct)}):
        sides = [{test: side[test] for test in side if _group(test) == group} for side in (direct, through)]
        refused = group not in FILES and {*sides[1].values()} == {"failure"}
        rows.append(Found(f"openai-python {VERSION}: {group}", "mock", *sides, WITHOUT_MODEL if refused else note))
    return rows


def _with_model(asked: list[Asked]) -> Counter[Asked]:
    return Counter(one for one in asked if one.model)
