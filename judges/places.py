"""Where the judges ask: an engine of the project's, and a gateway in front of it, each a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BIN = Path(os.environ.get("BREAKEVEN_BIN", ROOT / ".venv" / "bin"))
"""The project's environment: its `python` and `breakeven`."""
PUBLIC = "breakeven"
"""A public model name of the gateway, beside the backend's own."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A server at `url` (without /v1) that calls its model `model`; `what` it is, with its version."""

    url: str
    model: str
    what: str


@contextlib.contextmanager
def engine(kind: str, model: str) -> Iterator[Engine]:
    """One engine on `model`, as `breakeven compare` takes it. Raises RuntimeError when it does not start."""
    command = [str(BIN / "python"), str(HERE / "engine.py"), kind, model]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{kind} did not start on {model}; run: {' '.join(command)}")
            told = json.loads(line)
            yield Engine(told["url"].removesuffix("/v1"), told["model"], told["settings"].get("build", kind))
        finally:
            process.stdin.close()
            process.wait(60)


@contextlib.contextmanager
def gateway(behind: Engine, public: Sequence[str] = (PUBLIC,), endpoints: Sequence[str] = ()) -> Iterator[str]:
    """The address, without /v1, of a gateway in front of one engine; every name in `public` is served by it."""
    backend = {"name": behind.model, "url": f"{behind.url}/v1", "served_model": behind.model}
    if endpoints:
        backend["endpoints"] = list(endpoints)
    plan = {
        "backends": [backend],
        "policies": [{"model": name, "backends": [behind.model]} for name in public],
        "port": 0,
        "admin": False,
    }
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "gateway.yaml"
        path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in plan.items()))  # JSON is YAML
        command = [str(BIN / "breakeven"), "serve", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                line = process.stdout.readline()
                found = re.search(r"http://\S+?(?=/v1)", line)
                if found is None:
                    raise RuntimeError(f"the gateway did not start: {line or 'see what it said above'}")
                yield found.group()
            finally:
                process.terminate()
                process.wait(60)
