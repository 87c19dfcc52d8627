"""Runs `npm_client.mjs` directly and through the gateway."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from found import Found
from places import HERE, PUBLIC, Engine

SCRIPT = "npm_client.mjs"


def installed(directory: Path, script: str | None = SCRIPT, package: str = "package.json") -> Path:
    """`directory` with `script` and what `package` names. Raises RuntimeError where node or npm is missing."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise RuntimeError("node and npm are not installed")
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / package, directory / "package.json")
    if script is not None:
        shutil.copy(HERE / script, directory / script)
    wanted = wanted_of(package)
    if any(_has(directory / "node_modules" / name / "package.json") != of for name, of in wanted.items()):
        npm = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        done = subprocess.run(npm, cwd=directory, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(f"npm install failed: {done.stderr.strip()[-500:]}")
    return directory


def wanted_of(package: str = "package.json") -> dict[str, str]:
    """Versions by name."""
    found: dict[str, str] = json.loads((HERE / package).read_text())["dependencies"]
    return found


def _has(package: Path) -> str | None:
    return str(json.loads(package.read_text())["version"]) if package.is_file() else None


def node_version() -> str:
    """As node says it."""
    return subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def outcomes(directory: Path, url: str, model: str) -> dict[str, str]:
    """Result by call."""
    command = ["node", SCRIPT, url, model]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=600)
    found: dict[str, str] = dict(json.loads(line) for line in done.stdout.splitlines())
    if not found:
        raise RuntimeError(f"the npm client did not run: {done.stderr[-2000:]}")
    return found


def judge(engine: Engine, through_url: str, cache: Path) -> list[Found]:
    """One row; a call that raises counts by its exception."""
    directory = installed(cache / "npm")
    version = wanted_of()["openai"]
    direct, through = outcomes(directory, engine.url, engine.model), outcomes(directory, through_url, PUBLIC)
    return [Found(f"openai {version} of npm, node {node_version()}", engine.what, direct, through)]
