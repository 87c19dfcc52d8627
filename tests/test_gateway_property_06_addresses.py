"""Property 6: redirects are not followed; link-local and metadata addresses are refused unless they are named.

That names are looked up once and kept, that no proxy of the environment is used, and every guise of an address:
test_gateway_upstream_security.py. Here: the file, and a whole gateway.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from chaos_server import ChaosServer
from gateway_property_fixtures import COMMAND, backend, gateway, refused, until, write_plan

METADATA = [
    "http://169.254.169.254/v1",
    "http://[fd00:ec2::254]/v1",
    "http://[fe80::1]/v1",
    "http://169.254.0.7:8000/v1",
    "http://100.100.100.200/v1",
    "http://[::ffff:169.254.169.254]/v1",
]
IN_DISGUISE = [
    "http://2852039166/v1",
    "http://0xa9fea9fe/v1",
    "http://0251.0376.0251.0376/v1",
    "http://169.254.43518/v1",
]


def entry(name: str, url: str, **settings: object) -> dict[str, object]:
    return {**backend(name, "http://x", **settings), "url": url}


@pytest.mark.parametrize("url", METADATA)
def test_a_file_that_points_there_is_refused(tmp_path: Path, url: str) -> None:
    assert "allow_link_local" in refused(tmp_path, {"backends": [entry("b", url)]})


def test_who_names_it_means_it(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, {"backends": [entry("b", METADATA[0], allow_link_local=True)]})
    done = subprocess.run([*COMMAND, str(plan), "--check"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_disguise_is_refused_when_it_is_to_be_asked(tmp_path: Path) -> None:
    """Spellings that a resolver takes for an address; no byte is sent there, and polling does not go there either."""
    entries = [entry(f"b{k}", url, poll=True, timeouts={"connect": "5s"}) for k, url in enumerate(IN_DISGUISE)]
    with gateway(tmp_path, {"backends": entries}) as running:
        for k in range(len(IN_DISGUISE)):
            status, headers, body = running.ask({"model": f"b{k}", "messages": []})
            assert status == 502
            assert b"169.254" not in body + str(headers).encode()
        until(lambda: len(running.records()) == len(IN_DISGUISE), "the decision log")
        for record in running.records():
            assert [attempt["outcome"] for attempt in record["attempts"]] == ["forbidden"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_redirect_is_not_followed_and_not_passed_on(tmp_path: Path, stream: bool) -> None:
    with (
        ChaosServer() as elsewhere,
        ChaosServer("redirect", location=f"{elsewhere.url}/v1/chat/completions?secret=1") as server,
        ChaosServer() as good,
    ):
        plan = {
            "backends": [backend("moved", server.url), backend("good", good.url)],
            "policies": [{"model": "both", "policy": "weighted", "weights": {"moved": 1, "good": 0}, "explore": 0}],
        }
        with gateway(tmp_path, plan) as running:
            status, headers, body = running.ask({"model": "moved", "stream": stream})
            assert status == 502
            assert "location" not in headers
            assert b"secret" not in body
            for _ in range(4):
                status, headers, _ = running.ask({"model": "both", "stream": stream})
                assert (status, headers["x-breakeven-backend"]) == (200, "good")
            assert server.seen.requests > 0
            assert elsewhere.seen.connections == 0
