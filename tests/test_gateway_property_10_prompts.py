"""Property 10: prompts are not stored unless asked for; labels of metrics are bounded.

The log, metrics and spans by themselves: test_gateway_log.py, test_gateway_seen.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_server import ChaosServer
from gateway_property_fixtures import Gateway, backend, gateway, until

from breakeven.gateway.plan.reach import ENDPOINTS

PROMPT = "canary-of-the-prompt-3f81"
ANSWER = "canary-of-the-answer-77d0"


def bodies(model: str) -> Iterator[dict[str, object]]:
    for stream in (False, True):
        common = {"model": model, "stream": stream, "chaos_id": ANSWER}
        yield {**common, "messages": [{"role": "user", "content": PROMPT}], "prompt": PROMPT, "input": PROMPT}
        yield {
            **common,
            "messages": [],
            "system": PROMPT,
            "tools": [{"name": PROMPT}],
            "user": PROMPT,
            "metadata": PROMPT,
        }


def asked(running: Gateway) -> int:
    """Everything a client can get, good and bad; returns how many of them leave a record."""
    count = 0
    for path in ENDPOINTS:
        for model in ("b", "gone"):
            for body in bodies(model):
                running.ask(body, {"x-breakeven-session": PROMPT, "x-whatever": PROMPT}, path=path)
                count += 1
    for fault in ("500", "400", "reset_mid_body", "garbage_mid_body", "truncate"):
        for body in bodies("b"):
            body_bytes = json.dumps({**body, "chaos": fault}).encode()
            sent = f"POST {ENDPOINTS[0]} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            running.raw(f"{sent}content-length: {len(body_bytes)}\r\n\r\n".encode() + body_bytes)
            count += 1
    running.ask({"model": PROMPT})
    running.ask(json.dumps({"x": PROMPT}).encode())
    running.ask(PROMPT.encode())
    running.ask(None, path=f"/{PROMPT}")
    return count


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Path]]:
    directory = tmp_path_factory.mktemp("prompts")
    with ChaosServer() as server:
        plan = {
            "backends": [backend("b", server.url), backend("gone", "http://127.0.0.1:1")],
            "experiments": [{"name": "e", "kind": "ab", "model": "both", "control": "b", "treatment": "gone"}],
            "policies": [{"model": "both"}],
        }
        with gateway(directory, plan) as running:
            count = asked(running)
            until(lambda: len(running.records()) == count, "the decision log")
            yield running, directory


def test_no_prompt_and_no_answer_is_kept_anywhere(world: tuple[Gateway, Path]) -> None:
    running, directory = world
    running.stop()
    assert len(running.log) > 1000
    for path in directory.rglob("*"):
        if path.is_file():
            kept = path.read_bytes()
            assert PROMPT.encode() not in kept, path
            assert ANSWER.encode() not in kept, path


def test_no_prompt_is_shown_on_the_admin_pages(tmp_path: Path) -> None:
    with ChaosServer() as server:
        plan = {"backends": [backend("b", server.url), backend("gone", "http://127.0.0.1:1")]}
        with gateway(tmp_path, plan) as running:
            count = asked(running)
            until(lambda: len(running.state()["recent"]) == min(50, count), "recent decisions")
            for page in ("/", "/admin/state", "/admin/experiments", "/metrics"):
                shown = running.admin(page)[2]
                assert PROMPT.encode() not in shown, page
                assert ANSWER.encode() not in shown, page


def test_who_asks_for_it_has_prompts_in_the_log_alone(tmp_path: Path) -> None:
    with ChaosServer() as server:
        plan = {"backends": [backend("b", server.url)], "log": {"directory": "log", "prompts": True}}
        with gateway(tmp_path, plan) as running:
            running.ask(next(bodies("b")))
            until(lambda: bool(running.records()), "the decision log")
            assert PROMPT in running.records()[0]["request_body"]
            assert ANSWER in running.records()[0]["response_body"]
            until(lambda: len(running.state()["recent"]) == 1, "a recent decision")
            assert PROMPT.encode() not in running.admin()[2] + running.admin("/metrics")[2]
        modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "log").rglob("*.jsonl")}
        assert modes == {0}, "prompts are for nobody else to read"


def labels(page: bytes) -> set[bytes]:
    return set(re.findall(rb"^(\w+\{[^}]*\})", page, re.MULTILINE))


def test_no_client_can_make_a_label(tmp_path: Path) -> None:
    """Models, users, sessions and paths are the client's words; a metric for each would fill any memory."""
    with ChaosServer() as server, gateway(tmp_path, {"backends": [backend("b", server.url)]}) as running:
        running.ask({"model": "b", "user": "u"})
        until(lambda: b"breakeven" in running.admin("/metrics")[2], "metrics")
        before = labels(running.admin("/metrics")[2])
        for k in range(60):
            running.ask({"model": "b", "user": f"u{k}"}, {"x-breakeven-session": f"s{k}"})
            running.ask({"model": f"model-{k}"})
            running.ask(None, path=f"/path-{k}")
            running.ask(None, path=f"/v1/models/m{k}")
        assert labels(running.admin("/metrics")[2]) == before
