"""Do we agree with other load generators on a real server at the same load?

    python bench/client_agreement.py --gguf FILE [--runs 3] [--requests 64] [--streams 8] [--prompt-chars 300]
        [--tokens 32] [--load 0.6] [--json FILE] [--vllm PYTHON] [--guidellm PYTHON] [--aiperf PYTHON]

One llama.cpp server, all tools in turn, the order reversed every time: a closed loop of `--streams`, then an open one
at `--load` of the rate the closed one reached, with constant gaps, because three draws of a Poisson process are three
different loads. Every request has a text of its own, so that no prefix is shared. Ours is taken from its log over the
whole run and from sent, as the others count: Breakeven's own report counts from due and leaves the ramp out. What is
left of a difference is judged against the spread between runs of one tool.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from driving import Job, Run
from rivals import NAMES, TITLES, add_options, given, make_tokenizer, run

from breakeven.engines.llama_cpp.server import LlamaCppServer
from breakeven.measure.events import RequestDone, iter_events
from breakeven.traffic.prompts import prompt_text

METRICS = {
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "itl_s": "ITL",
    "e2e_s": "E2E",
    "output_tokens_per_s": "output tokens/s",
    "requests_per_s": "requests/s",
}
RECOUNTED = "vllm, recounted"


def whole_run(log: Path) -> dict[str, float]:
    """Means over every answered request of the log, from sent; rates from the first sent to the last output."""
    events = [event for event in iter_events(log) if isinstance(event, RequestDone) and event.error is None]
    ttft, tpot, gaps, e2e = [], [], [], []
    tokens = 0
    for event in events:
        if event.first_ns is None or event.last_ns is None:
            continue
        ttft.append((event.first_ns - event.sent_ns) / 1e9)
        e2e.append((event.last_ns - event.sent_ns) / 1e9)
        tokens += event.output_tokens
        if event.output_tokens > 1:
            tpot.append((event.last_ns - event.first_ns) / 1e9 / (event.output_tokens - 1))
        gaps += [(b - a) / 1e9 for a, b in itertools.pairwise(event.chunk_ns)]
    span = (max(e.last_ns or 0 for e in events) - min(e.sent_ns for e in events)) / 1e9
    return {
        "ttft_s": statistics.fmean(ttft), "tpot_s": statistics.fmean(tpot), "itl_s": statistics.fmean(gaps),
        "e2e_s": statistics.fmean(e2e), "output_tokens_per_s": tokens / span, "requests_per_s": len(events) / span,
        "answered": float(len(events)),
    }  # fmt: skip


class Texts:
    """Prompts that nobody has sent before."""

    def __init__(self, chars: int) -> None:
        self._chars, self._served = chars, 0

    def next(self, number: int) -> list[str]:
        """`number` new ones, each one line of about the same length."""
        first, self._served = self._served, self._served + number
        return [" ".join(prompt_text(0, str(first + i), self._chars).split())[: self._chars] for i in range(number)]


def recounted(done: Run, tokens: int) -> dict[str, float]:
    """vLLM's own stamps, with the number of tokens asked for and without the empty event that ends a stream.

    llama.cpp sends its usage in that last event, beside a choice, where `vllm bench serve` does not look: it counts
    the tokens of the text with its tokenizer instead, and takes the empty event for one more of them.
    """
    streams = [(start, stamps[:-1]) for _, start, stamps in done.chunks if len(stamps) > 2]
    return done.figures | {
        "tpot_s": statistics.fmean((stamps[-1] - stamps[0]) / 1e9 / (tokens - 1) for _, stamps in streams),
        "itl_s": statistics.fmean((b - a) / 1e9 for _, stamps in streams for a, b in itertools.pairwise(stamps)),
        "e2e_s": statistics.fmean((stamps[-1] - start) / 1e9 for start, stamps in streams),
        "output_tokens_per_s": done.figures["requests_per_s"] * tokens,
    }


def measure(tool: str, python: str, job: Job, work: Path) -> Run:
    """One run of one tool; ours with the figures of the whole run."""
    done = run(tool, python, replace(job, chunks=tool == "vllm"), work)
    if tool == "ours" and done.error is None:
        done.figures = whole_run(work / "events.jsonl")
    if done.error is None and done.figures.get("answered") != job.requests:
        done.error = f"{done.figures.get('answered', 0):.0f} of {job.requests} requests were answered"
    return done


def compare(
    tools: dict[str, str], job: Job, texts: Texts, work: Path, runs: int, load: str
) -> dict[str, list[dict[str, float]]]:
    """All tools in turn; figures of every run by tool."""
    found: dict[str, list[dict[str, float]]] = {tool: [] for tool in tools}
    for turn in range(runs):
        for tool in tools if turn % 2 == 0 else reversed(tools):
            asked = replace(job, prompts=texts.next(job.requests))
            done = measure(tool, tools[tool], asked, work / f"{tool}-{load}-{turn}")
            if done.error:
                print(f"{load}, {TITLES[tool]}: {done.error}", flush=True)
                continue
            found[tool].append(done.figures)
            if tool == "vllm":
                found.setdefault(RECOUNTED, []).append(recounted(done, job.tokens))
            told = ", ".join(f"{name} {done.figures[key]:.4g}" for key, name in METRICS.items() if key in done.figures)
            print(f"{load}, run {turn + 1}, {TITLES[tool]}: {told}", flush=True)
    return found


def table(found: dict[str, list[dict[str, float]]], load: str) -> str:
    """Ours over each rival, by metric: ratio of the means over runs, and the spread of one tool's runs beside."""
    rows = [f"| {load}: ours over | " + " | ".join(METRICS.values()) + " |", "|---" * (len(METRICS) + 1) + "|"]
    mine = found["ours"]
    titles = TITLES | {RECOUNTED: "the same, with the server's token count"}
    for tool in (NAMES[0], RECOUNTED, *NAMES[1:]):
        if tool == RECOUNTED and tool not in found:
            continue
        theirs = found.get(tool)
        if not theirs or not mine:
            rows.append(f"| {titles[tool]} | not available" + " |" * len(METRICS))
            continue
        cells = []
        for key in METRICS:
            got = [figures[key] for figures in theirs if key in figures]
            ratio = statistics.fmean(f[key] for f in mine) / statistics.fmean(got) if got else None
            cells.append("not kept" if ratio is None else f"{ratio:.3f} ({_spread(got):.1%})")
        rows.append(f"| {titles[tool]} (its runs differed by) | " + " | ".join(cells) + " |")
    if mine:
        spreads = [_spread([figures[key] for figures in mine]) for key in METRICS]
        rows.append("| our runs differed by | " + " | ".join(f"{spread:.1%}" for spread in spreads) + " |")
    return "\n".join(rows)


def _spread(values: list[float]) -> float:
    """Largest less smallest, over the mean."""
    return (max(values) - min(values)) / statistics.fmean(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, help="the model to serve")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt-chars", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--load", type=float, default=0.6)
    parser.add_argument("--json", type=Path)
    add_options(parser)
    asked = parser.parse_args()
    tools = {"ours": sys.executable} | given(asked)
    texts = Texts(asked.prompt_chars)
    with (
        tempfile.TemporaryDirectory() as directory,
        LlamaCppServer(
            asked.gguf, context=asked.prompt_chars + asked.tokens + 16, slots=asked.streams,
            log=Path(directory) / "server.log",
        ) as backend,
    ):  # fmt: skip
        work = Path(directory)
        job = Job(
            url=backend.url, requests=asked.requests, prompts=[], tokens=asked.tokens, model=backend.served_model,
            tokenizer=make_tokenizer(work / "tokenizer"), concurrency=asked.streams, engine="llama.cpp",
            timeout_s=600,
        )  # fmt: skip
        warm = replace(job, requests=2 * asked.streams, prompts=texts.next(2 * asked.streams))
        measure("ours", tools["ours"], warm, work / "warm-up")
        closed = compare(tools, job, texts, work, asked.runs, f"{asked.streams} streams")
        if not closed["ours"]:
            sys.exit("our own runs failed")
        rate = round(asked.load * statistics.fmean(f["requests_per_s"] for f in closed["ours"]), 3)
        steady = replace(job, concurrency=None, rate=rate, arrivals="constant")
        opened = compare(tools, steady, texts, work, asked.runs, f"{rate:g} req/s")
    print("\n" + table(closed, f"{asked.streams} streams") + "\n\n" + table(opened, f"{rate:g} requests/s, constant"))
    if asked.json:
        asked.json.write_text(json.dumps({"closed": closed, "open": opened, "rate": rate}, indent=1))


if __name__ == "__main__":
    main()
