"""llm-comply: does an endpoint answer as the published specifications of three APIs say?

Directly and through the gateway. What a small local model cannot do (see an image, think, call a tool) fails on both
sides alike.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from found import Found
from places import PUBLIC, Engine

FORMATS = {"openai-chat": "/v1/chat/completions", "open-responses": "/v1/responses", "anthropic": "/v1/messages"}
LEFT_OUT = ("compact-response", "compact-missing-model")
"""/v1/responses/compact is none of the gateway's endpoints."""


def outcomes(form: str, url: str, model: str) -> dict[str, str]:
    """Outcome by test, with what was wrong."""
    command = [str(Path(sys.executable).parent / "llm-comply"), "--format", form, "-u", f"{url}/v1", "-m", model]
    done = subprocess.run([*command, "-k", "none", "--json"], capture_output=True, text=True, timeout=600)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"llm-comply did not run: {done.stdout[-1000:]}{done.stderr[-1000:]}") from None
    return {test["id"]: _outcome(test) for test in told["results"] if test["id"] not in LEFT_OUT}


def _outcome(test: dict[str, Any]) -> str:
    """Status and complaints, each once, without what varies because models sample: texts, numbers, why they ended."""
    quoted = re.compile(r"[{\[].*[}\]]|[0-9]+", re.DOTALL)
    complaints = [one for one in test.get("errors") or () if not one.startswith(("finish_reason:", "stop_reason:"))]
    wrong = {quoted.sub("*", one) for one in complaints}
    return f"{test['status']} {'; '.join(sorted(wrong))}".strip()


def judge(engine: Engine, through_url: str, endpoints: tuple[str, ...]) -> list[Found]:
    """A row for each API that the engine has."""
    rows = []
    for form, path in FORMATS.items():
        if path in endpoints:
            direct = outcomes(form, engine.url, engine.model)
            through = outcomes(form, through_url, PUBLIC)
            rows.append(Found(f"llm-comply {version('llm-comply')}: {form}", engine.what, direct, through))
    return rows
