"""The same question on this machine: two llama.cpp engines behind a running gateway, driven by a client of our own.

The blind rules are played by the client, which asks for a backend by its own name; the policies by the gateway. Both
engines share this machine's processors, so the pair is slower together than each alone.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np

from bench.goodput.cases import Cut, cuts
from bench.goodput.oracle import room
from breakeven.traffic.workload import Slo
from breakeven.wire.meaning import event_kind
from breakeven.wire.sse import SseParser

TINY = (Path("examples/tiny-dense.yaml"), Path("examples/tiny-moe.yaml"))
NAMES = ("dense", "moe")
RULES = ("round robin", "least busy", "random", "dense alone", "moe alone", "breakeven", "breakeven, shed", "fastest")
SLO = Slo(ttft_s=2.0, tpot_s=0.1)
PROMPT_SHARE, LONGEST_PROMPT, LONGEST_ANSWER = 0.125, 600, 48
"""Prompts are cut to an eighth and answers to 48 tokens: a small machine answers in seconds what a GPU does."""
WORDS = ["load", "route", "batch", "token", "expert", "dense", "cache", "queue", "step", "line"]
READY_S = 120.0


@dataclass(slots=True)
class Answer:
    """What the client saw; `backend` is what the gateway says served it, empty where nobody did."""

    backend: str = ""
    ttft_s: float = float("inf")
    decode_s: float = 0.0
    tokens: int = 0
    status: int = 0


def real(trace: Path, seconds: float, rates: list[float], models: tuple[Path, Path] = TINY) -> None:
    """Play every rule at every rate on the same cut, and print a line for each."""
    with tempfile.TemporaryDirectory() as directory:
        process, url = _serve(Path(directory), models)
        try:
            asyncio.run(_play_all(trace, seconds, rates, url))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _serve(directory: Path, models: tuple[Path, Path]) -> tuple[subprocess.Popen[str], str]:
    slo = f"{{ttft: {SLO.ttft_s}s, tpot: {SLO.tpot_s}s}}"
    lines = ["backends:"]
    for name, model in zip(NAMES, models, strict=True):
        local = f"{{model: {model.resolve()}, slots: 4, pinned: true}}"
        lines += [f"  - {{name: {name}, kind: {name}, local: {local}}}"]
    lines += ["policies:"]
    for rule in RULES:
        policy, _, option = rule.partition(", ")
        if policy in ("breakeven", "fastest"):
            shed = "true" if option else "false"
            lines += [f"  - {{model: '{public(rule)}', policy: {policy}, slo: {slo}, shed: {shed}}}"]
    lines += ["port: 0", "admin: false"]
    path = directory / "gateway.yaml"
    path.write_text("\n".join(lines) + "\n")
    start = "from breakeven.cli.main import main; main()"
    command = [sys.executable, "-c", start, "serve", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    said = process.stdout.readline()
    if " at http" not in said:
        process.wait(10)
        raise SystemExit(f"the gateway did not start: {said.strip()}")
    return process, said.rsplit(" at ", 1)[1].strip()


def public(rule: str) -> str:
    """The public model name of a policy's rule."""
    return rule.replace(", ", "-")


async def _play_all(trace: Path, seconds: float, rates: list[float], url: str) -> None:
    timeout = aiohttp.ClientTimeout(total=READY_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        for name in NAMES:
            warm = await _ask(session, url, name, 8, 4)
            if warm.status != 200:
                raise SystemExit(f"{name} did not answer a first request (status {warm.status})")
        print(f"{'rate':>6} {'rule':<20} {'kept':>6} {'kept/s':>7} {'dense':>6} {'ttft p50':>9} {'p99':>7} {'tpot':>8}")
        for rate in rates:
            cut = cuts(trace, max(2, round(rate * seconds)), 1, (0,))[0]
            for rule in RULES:
                began_s = time.monotonic()
                found = await _play(session, url, cut, rate, rule)
                print(_line(rate, rule, found, time.monotonic() - began_s), flush=True)


async def _play(session: aiohttp.ClientSession, url: str, cut: Cut, rate: float, rule: str) -> list[Answer]:
    """One rule: requests at their times, whatever becomes of those before."""
    asked = cut.at(rate)
    prompts = np.clip(asked.prompt_tokens_N * PROMPT_SHARE, 4, LONGEST_PROMPT).astype(int).tolist()
    answers = np.clip(asked.output_tokens_N, 2, LONGEST_ANSWER).tolist()
    in_flight = [0, 0]
    dice = random.Random(0)
    start_s = time.monotonic()

    async def one(i: int, due_s: float) -> Answer:
        await asyncio.sleep(max(0.0, start_s + due_s - time.monotonic()))
        k = _pick(rule, i, in_flight, dice)
        if k is None:
            return await _ask(session, url, public(rule), prompts[i], answers[i])
        in_flight[k] += 1
        try:
            return await _ask(session, url, NAMES[k], prompts[i], answers[i])
        finally:
            in_flight[k] -= 1

    return await asyncio.gather(*(one(i, due_s) for i, due_s in enumerate(asked.arrival_s_N.tolist())))


def _pick(rule: str, i: int, in_flight: list[int], dice: random.Random) -> int | None:
    """The client's choice; None: the gateway's."""
    if rule == "round robin":
        return i % 2
    if rule == "random":
        return dice.randrange(2)
    if rule == "least busy":
        return i % 2 if in_flight[0] == in_flight[1] else int(in_flight[1] < in_flight[0])
    return NAMES.index(rule.split()[0]) if rule.endswith(" alone") else None


async def _ask(session: aiohttp.ClientSession, url: str, model: str, prompt: int, tokens: int) -> Answer:
    text = " ".join(WORDS[(i * 7) % len(WORDS)] for i in range(prompt))
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    found = Answer()
    began_s = time.monotonic()
    last_s = began_s
    try:
        async with session.post(f"{url}/chat/completions", json=body) as response:
            found.status = response.status
            if response.status != 200:
                return found
            found.backend = response.headers.get("x-breakeven-backend", "")
            parser = SseParser()
            async for piece in response.content.iter_any():
                brought = sum(event_kind(data) == "content" for data in parser.feed(piece))
                if brought:
                    last_s = time.monotonic()
                    if not found.tokens:
                        found.ttft_s = last_s - began_s
                    found.tokens += brought
            found.decode_s = last_s - began_s - found.ttft_s if found.tokens else 0.0
    except (aiohttp.ClientError, TimeoutError):
        found.status = found.status or -1
    return found


def _line(rate: float, rule: str, found: list[Answer], seconds: float) -> str:
    good = sum(one.tokens > 0 and room(SLO, one.ttft_s, one.decode_s, one.tokens) >= 1.0 for one in found)
    served = [one for one in found if one.tokens]
    dense = sum(one.backend == "dense" for one in served) / max(1, len(served))
    ttft = [one.ttft_s for one in served] or [float("nan")]
    tpot = [one.decode_s / (one.tokens - 1) for one in served if one.tokens > 1] or [float("nan")]
    low, high = np.percentile(ttft, [50, 99])
    share = good / len(found)
    told = f"{rate:>6g} {rule:<20} {share:>6.3f} {good / seconds:>7.2f} {dense:>6.2f}"
    return f"{told} {low:>9.3f} {high:>7.3f} {np.median(tpot):>8.4f}"
