"""Claude Code and Codex before a gateway that has a server of chat alone behind it.

Each is asked for a text, and for a command: the server calls the program's own tool for it, the program runs the
command, and says what the server makes of its result. Both come by npm (800 MB), ask no other address, and have a home
and a directory of their own.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from found import Found
from npm_client import installed, wanted_of
from places import PUBLIC, Engine, gateway

PACKAGE = "programs.json"
COMMAND = "echo breakeven-$((40+2))"
"""Its output stands in no question, so who tells it has run it."""
EXPECTED = {"text": "say breakeven-41", "a tool": "breakeven-42"}
"""What stands in the answer, which is the server's (`chat_server.py`)."""
Program = Callable[[Path, str, str], tuple[list[str], dict[str, str]]]


def claude(where: Path, url: str, question: str) -> tuple[list[str], dict[str, str]]:
    """The command and what it needs of the environment."""
    found = next(where.glob("node_modules/@anthropic-ai/claude-code-*/claude"), None)
    if found is None:
        raise RuntimeError("npm brought no Claude Code for this machine")
    settings = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_MODEL": PUBLIC,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": PUBLIC,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    return [str(found), "-p", question, "--allowedTools", "Bash"], settings


def codex(where: Path, url: str, question: str) -> tuple[list[str], dict[str, str]]:
    """The same of Codex. It is not to shut the command off, which needs rights that a container lacks."""
    provider = f'model_providers.b={{name="b",base_url="{url}/v1",wire_api="responses",env_key="KEY"}}'
    command = ["node", str(where / "node_modules" / "@openai" / "codex" / "bin" / "codex.js"), "exec"]
    command += ["--skip-git-repo-check", "-s", "danger-full-access", "-m", PUBLIC]
    return [*command, "-c", 'model_provider="b"', "-c", provider, question], {"KEY": "none"}


PROGRAMS: dict[str, tuple[str, Program, str]] = {
    "Claude Code": ("@anthropic-ai/claude-code", claude, f'use Bash {{"command": "{COMMAND}", "description": "x"}}'),
    "Codex": ("@openai/codex", codex, f'use exec_command {{"cmd": "{COMMAND}"}}'),
}


def outcome(program: Program, where: Path, url: str, question: str, expected: str) -> str:
    """Whether what was expected stands in what the program says."""
    with tempfile.TemporaryDirectory() as home:
        command, settings = program(where, url, question)
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": home, "CODEX_HOME": home, **settings}
        try:
            done = subprocess.run(
                command,
                cwd=home,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=120,
            )
        except subprocess.TimeoutExpired:
            return "failed: no answer in 120 s"
    if done.returncode or expected not in done.stdout:
        return f"failed with {done.returncode}: {done.stdout[-500:]} {done.stderr[-500:]}"
    return f"ok {expected}"


def judge(behind: Engine, cache: Path) -> list[Found]:
    """A row for each; what they should say stands for what they say directly, as neither speaks chat."""
    where = installed(cache / "programs", None, PACKAGE)
    rows = []
    with gateway(behind, endpoints=("/v1/chat/completions",)) as url:
        for name, (package, program, use) in PROGRAMS.items():
            questions = {"text": "say breakeven-41", "a tool": use}
            direct = {case: f"ok {expected}" for case, expected in EXPECTED.items()}
            through = {case: outcome(program, where, url, questions[case], direct[case][3:]) for case in direct}
            rows.append(Found(f"{name} {wanted_of(PACKAGE)[package]}", behind.what, direct, through))
    return rows
