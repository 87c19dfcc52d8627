"""Property 4: keys are kept as digests, compared in constant time, shown once; unknown and revoked answer alike.

The file, the comparison and every command: test_gateway_keys.py. Here: the same through a running gateway.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from chaos_server import ChaosServer
from gateway_property_fixtures import Gateway, backend, gateway, until

from breakeven.gateway.keys import store

ADMIN = {"BREAKEVEN_ADMIN_SECRET": "the-secret-of-this-page"}
CLI = [sys.executable, "-c", "import sys; from breakeven.cli.main import main; sys.exit(main())", "keys"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("keys")
    for name in ("kept", "going", "loose"):
        (directory / name).write_text(store.create(directory / "keys.json", name))
    (directory / "boss").write_text(store.create(directory / "keys.json", "boss", admin=True))
    (directory / "old").write_text(store.create(directory / "keys.json", "old", expires=time.time() - 1))
    with ChaosServer() as server:
        plan = {"backends": [backend("b", server.url)], "keys": "keys.json", "workers": 2}
        with gateway(directory, plan, environ=ADMIN) as found:
            yield found


def key(running: Gateway, name: str) -> str:
    return (running.directory / name).read_text()


def everything_but_the_date(running: Gateway, credential: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    status, headers, body = running.ask({"model": "b"}, credential)
    headers.pop("date")
    return status, headers, body


def test_a_secret_is_shown_once(tmp_path: Path) -> None:
    made = subprocess.run(
        [*CLI, "create", "anna", "--file", "keys.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    secret = next(word for line in made.stdout.splitlines() for word in line.split() if word.startswith("bek-"))
    assert made.stdout.count(secret) == 1
    assert secret not in made.stderr
    listed = subprocess.run(
        [*CLI, "list", "--json", "--file", "keys.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(listed.stdout)["keys"][0]["name"] == "anna"
    shown = listed.stdout + (tmp_path / "keys.json").read_text()
    assert secret not in shown
    assert secret.removeprefix("bek-")[:12] not in shown


def test_wrong_keys_cannot_be_told_apart(running: Gateway) -> None:
    """By status, headers or a byte of the body."""
    kept = key(running, "kept")
    answers = [
        everything_but_the_date(running, credential)
        for credential in (
            {},
            {"authorization": "Bearer bek-unknown"},
            {"authorization": "Bearer " + "x" * 5000},
            {"authorization": f"Bearer {key(running, 'old')}"},
            {"authorization": f"Basic {kept}"},
            {"authorization": f"Bearer {kept[:-1]}"},
            {"authorization": f"Bearer {kept.upper()}"},
            {"x-api-key": "bek-unknown"},
            {"x-api-key": ""},
        )
    ]
    assert all(answer == answers[0] for answer in answers)
    assert answers[0][0] == 401
    assert kept.encode() not in answers[0][2]


def test_a_revoked_key_ends_while_the_gateway_runs(running: Gateway) -> None:
    """In every worker, without a reload, and with the answer of an unknown one."""
    going = {"authorization": f"Bearer {key(running, 'going')}"}
    assert everything_but_the_date(running, going)[0] == 200
    store.revoke(running.directory / "keys.json", "going")
    until(lambda: all(everything_but_the_date(running, going)[0] == 401 for _ in range(32)), "the end of a revoked key")
    assert everything_but_the_date(running, going) == everything_but_the_date(running, {"x-api-key": "bek-unknown"})
    assert everything_but_the_date(running, {"authorization": f"Bearer {key(running, 'kept')}"})[0] == 200


def test_a_revoked_key_does_not_open_the_page_either(running: Gateway) -> None:
    boss = {"authorization": f"Bearer {key(running, 'boss')}"}
    assert running.admin(headers=boss)[0] == 200
    store.revoke(running.directory / "keys.json", "boss")
    until(lambda: running.admin(headers=boss)[0] == 401, "the end of a revoked key on the admin page")
    assert running.admin(headers={"authorization": f"Bearer {ADMIN['BREAKEVEN_ADMIN_SECRET']}"})[0] == 200


def test_a_file_that_others_may_write_is_told_at_once_and_what_it_revokes_is_revoked(running: Gateway) -> None:
    path, secret = running.directory / "keys.json", {"authorization": f"Bearer {ADMIN['BREAKEVEN_ADMIN_SECRET']}"}
    loose = {"authorization": f"Bearer {key(running, 'loose')}"}
    assert running.ask({"model": "b"}, loose)[0] == 200

    def seen() -> tuple[bool, bytes]:
        page = json.loads(running.admin(headers=secret)[2])
        metrics = running.admin("/metrics", headers=secret)[2].splitlines()
        value = next(line for line in metrics if line.startswith(b"breakeven_gateway_key_file_unusable "))
        return any("chmod 600" in warning for warning in page["warnings"]), value.split()[1]

    assert seen() == (False, b"0.0")
    file = json.loads(path.read_text())
    for entry in file["keys"]:
        if entry["name"] == "loose":
            entry["revoked_s"] = time.time()
    edited = path.with_name("edited.json")
    edited.write_text(json.dumps(file))
    edited.chmod(0o664)
    edited.replace(path)
    until(lambda: all(running.ask({"model": "b"}, loose)[0] == 401 for _ in range(8)), "the end of a revoked key")
    until(lambda: seen() == (True, b"1.0"), "a word on the page and in the metrics")
    assert "can be written by other users" in running.complaints
    assert running.ask({"model": "b"}, key=key(running, "kept"))[0] == 200
    path.chmod(0o600)
    until(lambda: seen() == (False, b"0.0"), "an end of the warning")


def test_an_expired_key_does_not_open_the_page(running: Gateway) -> None:
    assert running.admin(headers={"authorization": f"Bearer {key(running, 'old')}"})[0] == 401


def test_a_worker_that_takes_anothers_place_knows_what_was_revoked(running: Gateway) -> None:
    """It is given the keys as they were read at the start."""
    before = running.workers()
    for pid in before:
        psutil.Process(pid).kill()
    until(lambda: len(running.workers() - before) == len(before), "new processes in their place")
    gone = {"authorization": f"Bearer {key(running, 'going')}"}
    for _ in range(50):
        assert everything_but_the_date(running, gone)[0] == 401
    assert everything_but_the_date(running, {"authorization": f"Bearer {key(running, 'kept')}"})[0] == 200
