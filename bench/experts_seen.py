"""What seeing experts while serving costs, and how near it comes to a full trace: at a real gateway with a real engine.

    python -m bench.experts_seen [--toy | --model FILE] [--requests N] [--observe SHARE] [--out FILE]

A gateway with `experts: {observe: 1%}` serves one llama.cpp of an MoE model; every request has a text of its own, in
one of ten languages or code. Printed: CPU seconds of looking over those of the engine, and how far the frequencies that
`/admin/experts` tells are from a trace of all requests, beside what as many requests drawn by chance would be off.

CPU seconds are the clocks of processes, so other work disturbs them little; run it alone all the same. The default has
the shape of granite-3.1-1b-a400m and shows the cost, of more than 1 % of the requests because it serves few; `--toy`
serves thousands and shows the frequencies. What 1 % costs is told in both: less than that where the gateway's bound
(half of `observe` times the engine's CPU time) skips requests.
A synthetic model's answers are words that read as several bytes each, and a byte is a token of its: reading an answer
takes more tokens there than writing it did. So the cost is told as it was, and for an answer read as it was written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray

from bench.gateways import Gateway, free_port, running
from breakeven.engines import cache
from breakeven.engines.inside.routed import RoutingReader
from breakeven.engines.synthesis.write import synthesise
from breakeven.gateway.experts.report import BackendExperts, ExpertsSeen
from breakeven.hardware.reader import available_threads
from breakeven.model.architecture import ModelSpec
from breakeven.model.catalogue import lookup
from breakeven.model.layouts.derive import spec_from_config
from breakeven.traffic.prompts import LANGUAGES, passages, prompt_text

SHAPE, FORMAT, TOY_FORMAT = "granite-3.1-1b-a400m", "Q4_K_M", "Q8_0"
TOY = {
    "model_type": "qwen3_moe",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "moe_intermediate_size": 128,
    "intermediate_size": 512,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
SLOTS, CONTEXT = 4, 1024
NAME = "moe"
BOUND = 0.5
"""Of `observe` times the engine's CPU time: what the gateway lets looking take."""
COST, NEAR = 0.005, 0.02
"""The targets: CPU time a token more, and the largest difference of a frequency."""
DRAWS = 200
SETTLED_S, PATIENCE_S = 6.0, 180.0
REQUEST_S = 300.0


@dataclass
class Asked:
    """One request: its text with the answer behind it, and the tokens the engine says it took and gave."""

    text: str
    tokens: int


@dataclass
class Cost:
    """CPU seconds and tokens of a run. `read`: tokens that were read; `would_read`: had answers read as written.

    `served`, `looked`: requests of the engine, and those looked at.
    """

    served: int
    looked: int
    engine_s: float
    looking_s: float
    loading_s: float
    tokens: int
    read: int
    would_read: int

    @property
    def share(self) -> float:
        """Of looking, over the engine."""
        return self.looking_s / self.engine_s

    @property
    def request_ratio(self) -> float:
        """CPU time of looking at a request, over that of serving one."""
        return (self.looking_s / self.looked) / (self.engine_s / self.served)

    @property
    def as_written(self) -> float:
        """The same for answers that are read in as many tokens as they were written in."""
        return self.request_ratio * self.would_read / self.read


@dataclass
class Near:
    """Differences from the full trace: of frequencies (shares of tokens), and total variation, mean over layers.

    `chance_*`: mean of as many requests drawn from all of them; `chance_*_95`: what 95 in 100 draws stay below.
    """

    requests: int
    tokens: int
    largest: float
    mean: float
    variation: float
    chance_largest: float
    chance_largest_95: float
    chance_mean: float
    chance_variation: float
    chance_variation_95: float


def model_file(said: argparse.Namespace) -> Path:
    """The weights that are served; synthetic ones are written first."""
    if said.model is not None:
        return Path(said.model).resolve()
    spec: ModelSpec = spec_from_config(TOY, "toy-moe", "a benchmark") if said.toy else lookup(SHAPE)
    if not said.toy:
        return cache.provide(spec, FORMAT)
    path = Path(tempfile.gettempdir()) / f"breakeven-experts-seen-{os.getuid()}.gguf"
    return synthesise(spec, TOY_FORMAT, path)


def gateway(model: Path, observe: str, work: Path, admin: int):  # type: ignore[no-untyped-def]
    """One backend of ours behind a gateway whose experts are looked at; what it keeps stays in `work`."""
    port = free_port()
    file = work / "gateway.yaml"
    local = f"{{model: {model}, slots: {SLOTS}, context: {CONTEXT}, pinned: true}}"
    file.write_text(
        f"port: {port}\nadmin: {{port: {admin}}}\nbackends:\n"
        f"  - {{name: {NAME}, kind: moe, local: {local}, experts: {{observe: {observe}}}}}\n"
    )
    return running(
        "breakeven", [sys.executable, "-m", "breakeven.cli", "serve", str(file)], f"http://127.0.0.1:{port}/ready",
        url=f"http://127.0.0.1:{port}", model=NAME, log=work / "gateway.log",
        environment={"XDG_CACHE_HOME": str(work / "cache")},
    )  # fmt: skip


async def drive(url: str, said: argparse.Namespace, first: int, last: int) -> list[Asked]:
    """Requests `first` to `last`, `SLOTS` at a time."""
    free = asyncio.Semaphore(SLOTS)
    timeout = aiohttp.ClientTimeout(total=REQUEST_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def one(number: int) -> Asked:
            language = LANGUAGES[number % len(LANGUAGES)]
            # Cut by bytes, since a byte is a token of a synthetic model, and to whole letters.
            raw = prompt_text(said.seed, f"{number}", said.prompt, passages((language,))).encode()[: said.prompt]
            prompt = raw.decode(errors="ignore")
            body = {"model": NAME, "prompt": prompt, "max_tokens": said.answer, "seed": number, "ignore_eos": True}
            headers = {"X-Breakeven-Language": language}
            async with free, session.post(f"{url}/v1/completions", json=body, headers=headers) as response:
                told = await response.json(content_type=None)
                if response.status != 200:
                    raise SystemExit(f"request {number} was refused with {response.status}: {json.dumps(told)[:300]}")
            return Asked(prompt + told["choices"][0]["text"], told["usage"]["total_tokens"])

        return await asyncio.gather(*(one(number) for number in range(first, last)))


def seen(admin: int) -> BackendExperts | None:
    """What the gateway tells of its one backend."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/admin/experts", timeout=10.0) as answer:
        told = msgspec.json.decode(answer.read(), type=ExpertsSeen)
    return next((each for each in told.backends if each.backend == NAME), None)


def cpu_of(up: Gateway, module: str) -> float:
    """CPU seconds of those of its processes that run this module."""
    total = 0.0
    for pid in up.pids():
        try:
            process = psutil.Process(pid)
            if module in " ".join(process.cmdline()):
                used = process.cpu_times()
                total += used.user + used.system
        except psutil.Error:
            continue
    return total


ENGINE, READER = "breakeven.engines.llama_cpp.child", "breakeven.engines.inside.routed"


def settled(up: Gateway, admin: int) -> BackendExperts | None:
    """What was seen once nothing is looked at any more."""
    until_s = time.monotonic() + PATIENCE_S
    before: object = None
    while time.monotonic() < until_s:
        told = seen(admin)
        now = (told and (told.requests, told.skipped, told.cpu_s), round(cpu_of(up, READER), 1))
        if now == before:
            return told
        before = now
        time.sleep(SETTLED_S)
    return seen(admin)


def compare(told: BackendExperts, counts_NLE: NDArray[np.int64], per_token: int, seed: int) -> Near:
    """Against all requests, and what drawing as many of them by chance comes to. `per_token`: experts a token takes."""
    requests = told.requests or 0

    def shares(some_NLE: NDArray[np.int64]) -> NDArray[np.float64]:
        total_LE = some_NLE.sum(axis=0)
        return np.asarray(total_LE / total_LE.sum(axis=1, keepdims=True))

    true_LE = shares(counts_NLE)
    found_LE = np.array([layer.shares for layer in told.layers])
    rng = np.random.default_rng(seed)
    drawn = [shares(counts_NLE[rng.permutation(len(counts_NLE))[:requests]]) - true_LE for _ in range(DRAWS)]
    off = np.abs(found_LE - true_LE)
    chance = np.abs(np.array(drawn))
    largest_D, variation_D = chance.max(axis=(1, 2)) * per_token, chance.sum(axis=2).mean(axis=1) / 2
    return Near(
        requests=requests,
        tokens=told.tokens,
        largest=float(off.max() * per_token),
        mean=float(off.mean() * per_token),
        variation=float(off.sum(axis=1).mean() / 2),
        chance_largest=float(largest_D.mean()),
        chance_largest_95=float(np.quantile(largest_D, 0.95)),
        chance_mean=float(chance.mean() * per_token),
        chance_variation=float(variation_D.mean()),
        chance_variation_95=float(np.quantile(variation_D, 0.95)),
    )


def run(said: argparse.Namespace) -> dict[str, Any]:
    """Serve, look, trace everything, compare."""
    model = model_file(said)
    admin = free_port()
    with tempfile.TemporaryDirectory() as directory, gateway(model, said.observe, Path(directory), admin) as up:
        asked = asyncio.run(drive(up.url, said, 0, 1))  # which loads the engine
        engine_s, began_s = cpu_of(up, ENGINE), time.monotonic()
        asked += asyncio.run(drive(up.url, said, 1, said.requests))
        took_s = time.monotonic() - began_s
        told = settled(up, admin)
        engine_s = cpu_of(up, ENGINE) - engine_s
        reader_s = cpu_of(up, READER)
    if told is None or not told.requests:
        raise SystemExit(f"none of {said.requests} requests was looked at; give more --requests or --observe: {told}")
    began_s = time.monotonic()
    with RoutingReader(model, threads=available_threads(), most_tokens=CONTEXT * 8) as reader:
        read = [reader.read(one.text) for one in asked]
    traced_s = time.monotonic() - began_s
    counts_NLE = np.stack([one.choices_LE for one in read])
    near = compare(told, counts_NLE, reader.loaded.n_experts_per_token, said.seed)
    all_read, all_tokens = sum(one.tokens for one in read), sum(one.tokens for one in asked)
    cost = Cost(
        served=len(asked) - 1,
        looked=told.requests,
        engine_s=engine_s,
        looking_s=told.cpu_s or 0.0,
        loading_s=max(0.0, reader_s - (told.cpu_s or 0.0)),
        tokens=sum(one.tokens for one in asked[1:]),
        read=told.tokens,
        would_read=round(told.tokens * all_tokens / all_read),
    )
    say(said, cost, near, told, took_s, traced_s)
    return {
        "model": model.name, "requests": said.requests, "observe": said.observe, "prompt": said.prompt,
        "answer": said.answer, "served_s": took_s, "traced_s": traced_s, "skipped": told.skipped,
        "cost": {**asdict(cost), "share": cost.share, "ratio": cost.request_ratio, "as_written": cost.as_written},
        "near": asdict(near),
    }  # fmt: skip


def say(said: argparse.Namespace, cost: Cost, near: Near, told: BackendExperts, took_s: float, traced_s: float) -> None:
    """Both targets, met or missed."""
    skipped = ", ".join(f"{count} {reason}" for reason, count in told.skipped.items()) or "none"
    per_token = 1e3 * cost.engine_s / cost.tokens
    print(f"{said.requests} requests in {took_s:.0f} s, traced in {traced_s:.0f} s; looked at {near.requests} of them "
          f"({near.tokens} tokens), skipped: {skipped}")  # fmt: skip
    print(f"\ncost: looking took {cost.looking_s:.2f} s of CPU, the engine {cost.engine_s:.2f} s: {cost.share:.2%}, "
          f"with observe: {said.observe}; loading the weights to look at them {cost.loading_s:.2f} s once")  # fmt: skip
    print(f"a token took {per_token:.3f} ms of CPU, with looking {per_token * (1 + cost.share):.3f} ms")
    print(f"looking at a request takes {cost.request_ratio:.0%} of serving it, or {cost.as_written:.0%} for answers "
          "read as they were written")  # fmt: skip
    for what, ratio in {"as it was": cost.request_ratio, "as written": cost.as_written}.items():
        looked = min(1.0, BOUND / ratio)
        print(f"so 1 % of requests, {what}: {ratio / 100:.2%} of the engine's CPU time, bounded to "
              f"{looked * ratio / 100:.2%} by looking at {looked:.0%} of them "
              f"(target {COST:.1%}: {_met(looked * ratio / 100, COST)})")  # fmt: skip
    print(f"\nfrequencies: off by {near.largest:.2%} at most and {near.mean:.2%} in the mean "
          f"(target {NEAR:.0%}: {_met(near.largest, NEAR)})")  # fmt: skip
    print(f"as many requests drawn by chance: {near.chance_largest:.2%} at most (95 in 100 draws below "
          f"{near.chance_largest_95:.2%}), {near.chance_mean:.2%} in the mean")  # fmt: skip
    needed = near.requests * (near.chance_largest / NEAR) ** 2
    print(f"for {NEAR:.0%} at most by chance about {needed:.0f} requests must be looked at")
    print(f"total variation {near.variation:.2%}, by chance {near.chance_variation:.2%} "
          f"(95 in 100 below {near.chance_variation_95:.2%})")  # fmt: skip


def _met(found: float, target: float) -> str:
    return "met" if found <= target else "missed"


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="a model of a few megabytes, 4000 requests")
    parser.add_argument("--model", help="a GGUF of your own instead")
    parser.add_argument("--requests", type=int, help="how many; 60 unless given")
    parser.add_argument("--observe", help="share of requests that are looked at; 10%%, with --toy 1%%")
    parser.add_argument("--prompt", type=int, default=240, help="bytes of a prompt")
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the numbers go as JSON")
    said = parser.parse_args()
    said.requests = said.requests or (4000 if said.toy else 60)
    said.observe = said.observe or ("1%" if said.toy else "10%")
    found = run(said)
    if said.out is not None:
        said.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
