"""Property 12: commands that start engines come from the operator's file alone; no shell; a scrubbed environment.

What is kept of the environment, and engines' lives: test_gateway_swap_engines.py. The admin listener has its own port
and secret: test_gateway_property_02_routes.py.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from gateway_property_fixtures import CHAT, Gateway, gateway, refused, until

ROOT = Path(__file__).resolve().parent.parent
CANARY = "canary-of-the-environment-61d4"
SHELLS = {("os", "system"), ("os", "popen"), ("subprocess", "getoutput"), ("subprocess", "getstatusoutput")}
SECRETS = {
    "OPENAI_API_KEY": CANARY,
    "THE_KEY": CANARY,
    "BREAKEVEN_ADMIN_SECRET": CANARY,
    "BREAKEVEN_REDIS_URL": f"redis://:{CANARY}@127.0.0.1:1/0",
    "HF_TOKEN": CANARY,
    "AWS_SECRET_ACCESS_KEY": CANARY,
    "VLLM_API_KEY": CANARY,
    "DATABASE_URL": f"postgres://u:{CANARY}@h/d",
    "ANYTHING_ELSE": CANARY,
}


def sources() -> list[Path]:
    return sorted((ROOT / "src" / "breakeven").rglob("*.py"))


def test_no_source_uses_a_shell() -> None:
    """Neither by name nor by option, nor runs what it made up."""
    assert len(sources()) > 100
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            assert not any(word.arg == "shell" for word in node.keywords), f"{path}:{node.lineno}"
            made = node.func
            if isinstance(made, ast.Attribute) and isinstance(made.value, ast.Name):
                assert (made.value.id, made.attr) not in SHELLS, f"{path}:{node.lineno}"
            if isinstance(made, ast.Name):
                assert made.id not in ("eval", "exec"), f"{path}:{node.lineno}"


def test_no_process_is_started_where_requests_are_served() -> None:
    """Only the room that swaps engines starts any, through the engine package; the supervisor forks."""
    for path in sources():
        inside = path.relative_to(ROOT / "src" / "breakeven").parts
        if inside[0] != "gateway":
            continue
        words = {node.attr for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute)}
        assert not words & {"Popen", "check_output", "create_subprocess_exec", "create_subprocess_shell", "execve"}, (
            path
        )
        if "fork" in words:
            assert inside[1:] in (("serve", "supervisor.py"), ("serve", "children.py"), ("serve", "loading.py")), path


@pytest.mark.parametrize("model", ["$(touch {made}).gguf", "; touch {made}", "`touch {made}`", "| touch {made}.yaml"])
def test_a_models_name_is_no_command(tmp_path: Path, model: str) -> None:
    made = tmp_path / "made-by-a-shell"
    said = refused(tmp_path / "g", {"backends": [{"name": "b", "local": {"model": model.format(made=made)}}]})
    assert "backends" in said or "b" in said
    assert not made.exists()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with one engine of its own, which has answered."""
    directory = tmp_path_factory.mktemp("engines")
    model = str(ROOT / "examples" / "tiny-dense.yaml")
    plan = {"backends": [{"name": "b", "local": {"model": model, "slots": 1, "context": 512, "threads": 1}}]}
    with gateway(directory, plan, environ=SECRETS) as found:
        body = {"model": "b", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        headers = {"x-command": "touch /tmp/x"}
        until(lambda: found.ask(body, headers)[0] == 200, "an answer of the engine")
        yield found


def engines(running: Gateway) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(running.process.pid).children(recursive=True)
        if "breakeven.engines.llama_cpp.child" in " ".join(child.cmdline())
    ]


def test_an_engine_sees_no_secret(running: Gateway) -> None:
    assert len(engines(running)) == 1
    for engine in engines(running):
        environment = engine.environ()
        assert environment.get("PATH")
        assert CANARY not in str(environment)
        assert not {name for name in SECRETS if name in environment}
        assert CANARY not in " ".join(engine.cmdline())


def test_an_engine_is_started_by_no_shell(running: Gateway) -> None:
    for engine in engines(running):
        names = {psutil.Process(engine.pid).name(), *(parent.name() for parent in engine.parents()[:2])}
        assert not names & {"sh", "bash", "dash", "zsh"}


def test_an_engine_holds_no_socket_and_no_memory_of_ours(running: Gateway) -> None:
    """It could else answer clients in our name, or write our counters."""
    for engine in engines(running):
        ports = {one.laddr.port for one in engine.net_connections("inet") if one.status == psutil.CONN_LISTEN}
        assert ports
        assert not ports & {running.port, running.admin_port}
        assert all(one.laddr.ip == "127.0.0.1" for one in engine.net_connections("inet") if one.laddr)
        maps = Path(f"/proc/{engine.pid}/maps").read_text()
        assert "/dev/zero" not in maps, "shared anonymous memory is the gateway's block"
        assert "/dev/zero" in Path(f"/proc/{running.process.pid}/maps").read_text(), "which looks like this"


def test_an_engine_answers_the_gateway_and_nobody_else(running: Gateway) -> None:
    """Not a page of the web that points its name here, and not whoever reads the list of processes or a log."""
    body = {"model": "b", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    for engine in engines(running):
        (port,) = {one.laddr.port for one in engine.net_connections("inet") if one.status == psutil.CONN_LISTEN}
        for path, asked in ((CHAT, body), ("/completion", {"prompt": "x"}), ("/props", None), ("/slots", None)):
            headers = {"origin": "https://page.example", "host": "page.example"}
            assert running.ask(asked, headers, path=path, port=port)[0] == 401, path
    assert running.ask(body)[0] == 200

    def polled() -> bool:
        state = json.loads(running.admin(headers={"authorization": f"Bearer {CANARY}"})[2])
        return state["backends"][0]["engine_running"] is not None

    until(polled, "its own numbers")
    logs = [path for path in (running.directory / "log").rglob("*.log") if path.is_file()]
    assert [oct(path.stat().st_mode & 0o777) for path in logs] == ["0o600"] * len(logs)
    assert logs


def test_no_request_starts_anything(running: Gateway) -> None:
    before = running.workers()
    for path in ("/v1/load", "/v1/models/b/load", "/admin/load", "/v1/engines", "/admin/state", "/v1/reload"):
        for method in ("POST", "PUT", "DELETE"):
            for port in (running.port, running.admin_port):
                status = running.ask(
                    {"local": {"model": "/bin/sh"}, "command": "sh"}, path=path, method=method, port=port
                )[0]
                assert status in (401, 403, 404, 405), (method, path)
    assert running.workers() == before
