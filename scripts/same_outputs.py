"""Run two checkouts of Breakeven on the same inputs and say what a user would see changed.

    python scripts/same_outputs.py BEFORE AFTER [--quick | --all] [--only NAME ...] [--out DIR] [--keep DIR] [--list]

BEFORE and AFTER are `breakeven` commands, such as `.venv/bin/breakeven`; Python cases use the interpreter beside them.
Every case runs in both, each in a directory of its own with copies of the same inputs. What they print, their exit
status and every file they write must be equal, but for what `hide` blanks in both: versions, paths of the two
checkouts, and, in cases that say so, times, secrets and ports. One line a case; exit status 1 when one differs.

A case is a line of the tables below: its name, then command lines. `--quick` runs those that take a second, `--all` also
those that take a minute. `--only` takes the names of cases or of groups (`errors`, `decide/`). Event logs and decision
logs that cases read are made once, the measured ones by BEFORE. `--keep DIR` keeps them, and what BEFORE gave, for the
next run against the same BEFORE. `--fresh` starts a process for every command; else each side forks them off one
process that has imported the libraries (not Breakeven), which takes a fifth of the time.
"""

# ruff: noqa: E501 -- one case, or one request, a line.

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import http.client
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 300.0
"""For one command on a busy machine."""
SHOWN_LINES, SHOWN_WIDTH = 12, 170
Seen = dict[str, str]
"""What one side gave, by what it is: `1 stdout`, `1 status`, or the name of a file it wrote."""
Hide = tuple[tuple[str, str], ...]

STAMPS: Hide = (
    (r"20\d\d-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?", "<moment>"),
    (r'("[a-z_]*(?:created|expires|revoked|time|at|_s)(?:_s|_at)?": ?)1[0-9]{9}(\.\d+)?', r"\1<moment>"),
)
SECRETS: Hide = (
    (r"bek-[\w-]{20,}", "<secret>"),
    (r"sha256:[0-9a-f]{64}", "<digest>"),
    (r'("id": ?)"[0-9a-f]{16}"', r"\1<id>"),
)
NUMBERS: Hide = ((r"\d+(\.\d+)?(e-?\d+)?( ?%)?", "#"), (r"[─━┈┉]{2,}", "--"), (r" *# *", "#"), (r" {2,}", "  "))
"""Of what was timed: shapes, names and keys stay."""
MACHINE: Hide = ((r'("available_memory_bytes": ?)\d+', r"\1<free>"), (r"[\d.]+ [GM]iB free", "<free> free"))


@dataclass(frozen=True)
class Case:
    """Command lines run one after another in one directory. `inputs`: what is put there (see `make_inputs`).

    `code`: Python instead. `live`: a function of this file instead. `files`: also compare what is written.
    `tier`: 0 quick, 1 usual, 2 only with --all.
    """

    name: str
    commands: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ("examples",)
    hide: Hide = ()
    code: str = ""
    live: str = ""
    files: bool = True
    tier: int = 0
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: str = ""
    limit_s: float = LIMIT_S
    sorted: bool = False
    """Lines come in an order that was measured."""
    may_add: bool = False
    """AFTER may have lines that BEFORE has not."""


VERBS = (
    "compare; bench; capacity; predict; cost; decide; serve; simulate; explain; calibrate; keys; keys create; keys list;"
    "keys revoke; check; experiment; experiment status; report; models; machines; machine; synth; cache; cache list;"
    "cache prune; experts; experts split; experts copy; trace; profile"
)

WRONG = """
compair | qqq | --verbose | machine --nope | models lama-3.2-1b | models no-such.gguf | models examples/gateway.yaml
machines h100 | machines no.yaml | machines broken.yaml | predict | predict nothing-like-it | predict olmoe-1b-7b --machine h101
predict olmoe-1b-7b --machine h100-sxm --batch 0 | predict olmoe-1b-7b --machine h100-sxm --batch a,b
predict olmoe-1b-7b --machine h100-sxm --format Q9_Z | predict olmoe-1b-7b --machine h100-sxm --engine sglang
predict olmoe-1b-7b --machine h100-sxm --devices 0 | predict olmoe-1b-7b --machine h100-sxm --routing olmoe-1b-7b=no.json
cost | cost olmoe-1b-7b --machine rpi-5-8gb | cost olmoe-1b-7b --machine h100-sxm --slo ttft=1parsec
cost olmoe-1b-7b --machine h100-sxm --api hosted=1 | cost olmoe-1b-7b --machine h100-sxm --own 1
cost olmoe-1b-7b --machine h100-sxm --rate -1 | cost olmoe-1b-7b olmoe-1b-7b --machine h100-sxm
cost olmoe-1b-7b --machine h100-sxm --score x=0.1 | cost olmoe-1b-7b --machine h100-sxm --prompt lognormal:1
cost olmoe-1b-7b --machine h100-sxm --share 120% | cost olmoe-1b-7b --machine h100-sxm --benchmark nope
simulate olmoe-1b-7b --machine h100-sxm --rate 1 --concurrency 2
simulate olmoe-1b-7b --machine h100-sxm --rate 1 --arrivals gamma:x | simulate olmoe-1b-7b --machine h100-sxm --trace no.csv
simulate olmoe-1b-7b --machine h100-sxm --rate 1 --duration 5parsecs | simulate olmoe-1b-7b --machine h100-sxm --schedule no
simulate olmoe-1b-7b --machine h100-sxm --rate 1 --balancing dice | simulate olmoe-1b-7b --machine h100-sxm --rate 1 --autoscale 4
simulate olmoe-1b-7b --machine h100-sxm --trace examples/tiny-moe.yaml
decide | decide no.yaml | decide broken.yaml | decide study-key.yaml | decide study-unit.yaml | decide study-model.yaml
decide study-empty.yaml | decide examples/gateway.yaml | decide examples/tiny-moe.yaml | decide mini.yaml --from-log no
compare | compare olmoe-1b-7b | compare nothing-like-it olmoe-1b-7b | compare a.gguf b.gguf | compare TINY --format Q9
compare TINY --budget 6parsecs | compare TINY --streams 0 | compare TINY --streams x | compare TINY --rate x
compare TINY --trace no.csv | compare TINY --rate 1 --rounds 0 | compare TINY --resume --out nothing
bench | bench http://127.0.0.1:9/v1 --rate 1 | bench http://127.0.0.1:9/v1#a --rate 1 --duration 1s
bench ONE --rate 1 --model x | bench ONE --rate 1 --rounds 0 | bench ONE --rate 1 --arrivals dice
bench ONE --rate 1 --engine sglang | bench ONE --trace no.csv | bench ONE --rate 1 --concurrency 1
capacity ONE | capacity ONE --slo ttft=1parsec | capacity ONE --slo ttft=1s --only both | capacity ONE --slo ttft=1s --share 120%
report nothing | report examples | report broken-log | check nothing | check examples | check examples --tolerance x
serve | serve no.yaml | serve mini.yaml | serve --from nothing | serve nothing-like-it | serve examples/gateway.yaml llama-3.2-1b
serve gateway-key.yaml --check | serve gateway-backend.yaml --check | serve gateway-open.yaml --check
serve gateway-env.yaml --check | serve gateway-unit.yaml --check | serve gateway-policy.yaml --check
serve gateway-twice.yaml --check | serve gateway-experiment.yaml --check | serve broken.yaml --check
keys create | keys create a --limit 5 | keys create a --limit '5 stones/min' | keys create a --usd 5 | keys create a --slo e2e=1s
keys create a --expires yesterday | keys create a --expires 2001-01-31 | keys list --file broken.yaml | keys revoke nobody
explain | explain r1 | explain r1 --log nothing | explain nobody --log log | experiment status | experiment status --log nothing
experts split no.gguf --out x.gguf | experts copy broken.yaml --out x.gguf | synth nothing-like-it --out x.gguf
synth examples/tiny-moe.yaml --out x.gguf --format Q9 | synth examples/tiny-moe.yaml --out x.gguf --routing zipf
trace no.gguf --text mini.yaml | trace examples/tiny-dense.yaml --text mini.yaml | trace examples/tiny-moe.yaml --text no.txt
profile no.gguf | cache prune --unused-days -1 | calibrate --format Q9 | calibrate --engine sglang
"""

TABLE = """
models | models ; models --json
models/one | models olmoe-1b-7b ; models qwen3-30b-a3b --json ; models llama-3.2-1b ; models openai/gpt-oss-120b
models/more | models deepseek-v3 ; models gemma-3-12b --json ; models llama-4-scout ; models granite-3.1-1b-a400m --json
models/file | models examples/tiny-moe.yaml ; models examples/tiny-dense.yaml --json
machines | machines ; machines --json
machines/one | machines h100-sxm ; machines apple-m2-pro --json ; machines rtx-4090 ; machines chip.yaml ; machines chip.yaml --json
predict | predict olmoe-1b-7b llama-3.2-1b --machine apple-m2-pro ; predict olmoe-1b-7b --machine apple-m2-pro --json
predict/gpu | predict qwen3-30b-a3b qwen3-14b --machine h100-sxm --batch 1,8,32 --format fp8 ; predict gpt-oss-120b --machine h200-sxm --format mxfp4 --batch 1,64 --context 512,8192 --json
predict/parallel | predict qwen3-30b-a3b --machine h100-sxm --machine l40s --devices 2 --expert-parallel --batch 16 ; predict llama-3.3-70b --machine rtx-4090 --devices 4 --format int4 --json
predict/engines | predict llama-3.1-8b --machine rtx-4090 --engine llama.cpp --format Q8_0 ; predict llama-3.1-8b --machine chip.yaml --context 512,4096
cost | cost olmoe-1b-7b llama-3.2-1b --machine apple-m2-pro --own 1400,4,0.30 --rate 0.1,1
cost/api | cost qwen3-14b@rtx-4090 --usd-per-hour 0.45 --api hosted=0.10,0.40,0.02 --cached 30% --prompt 2000 --output 300 --json
cost/rented | cost llama-3.1-8b qwen3-30b-a3b --machine h100-sxm --format fp8 --rate 1,10 --slo ttft=1s,tpot=50ms
cost/scores | cost gemma-3-12b qwen3-14b --machine rtx-5090 --own 4000,3,0.30,80,500 --score gemma-3-12b=0.62 --score qwen3-14b=0.7 --answer qwen3-14b=400
simulate | simulate olmoe-1b-7b --machine apple-m2-pro --rate 1,2 --requests 100 ; simulate olmoe-1b-7b --machine apple-m2-pro --concurrency 1,4 --requests 60 --json
simulate/fleet | simulate llama-3.1-8b --machine l40s --rate 20 --requests 300 --replicas 2 --balancing round_robin --slo ttft=1s,tpot=80ms ; simulate llama-3.1-8b --machine h100-sxm --rate 50 --requests 400 --autoscale 1-4 --start-up 2s --json
simulate/turns | simulate qwen3-30b-a3b --machine h100-sxm --format fp8 --rate 2 --arrivals gamma:3 --turns 3 --think 2s --requests 90 --prompt lognormal:300,200 --output uniform:16-64
synth | synth examples/tiny-moe.yaml --out m.gguf --routing zipf:1.2 ; models m.gguf ; synth examples/tiny-dense.yaml --out d.gguf --format Q4_0 --seed 3 ; models d.gguf --json
experts | experts split llama.gguf --experts 2 --out s.gguf ; models s.gguf ; experts copy llama.gguf --experts 2 --used 1 --out c.gguf ; models c.gguf --json ; experts split llama.gguf --experts 7 --out x.gguf ; experts split llama.gguf --experts 2 --out s.gguf
calibrate | calibrate --list ; calibrate --list --format Q8_0
keys/wide | keys list --file keys.json ; keys list --file keys.json --json
serve/check | serve examples/gateway.yaml --check ; serve gateway-good.yaml --check --port 0 --workers 2 ; serve llama-3.2-1b olmoe-1b-7b --check
explain | explain r7 --log log ; explain r7 --log log --json ; explain r8 --gateway gateway-experiment-good.yaml ; explain r9 --log log ; explain r10 --log log --json
experiment | experiment status --gateway gateway-experiment-good.yaml ; experiment status --gateway gateway-experiment-good.yaml --json ; experiment status --log log
init | decide --init ; decide --init other.yaml ; decide --init other.yaml ; decide --init nowhere/other.yaml
report/bench | report bench ; report bench --json --out again ; report bench --charts
report/compare | report compare --charts ; report compare --json --out again
report/rate | report rate ; report rate --json --out again
report/capacity | report capacity ; report capacity --json --out again
check | check bench again ; check bench bench --json ; check bench/result.json again --tolerance 1% ; check compare bench ; check bench capacity
"""

USUAL = """
simulate/trace | simulate llama-3.1-8b --machine l40s --trace examples/traces/azure-conversations-5min.csv --window 0s-2m --json
cost/what-if | cost gemma-3-12b --machine rtx-5090 --own 4000,3,0.30,80,500 --score gemma-3-12b=0.62 --what-if --json
decide/mini | decide mini.yaml --out out ; serve --from out ; serve --from out/result.json --check
decide/small-json | decide small-internal-workflow-bot.yaml --json
decide/small-agents | decide small-multilingual-agents.yaml --out out --quiet
decide/small-shop | decide small-bursty-small-business.yaml
decide/edge-voice | decide examples/edge-voice-assistant.yaml
decide/log | decide gateway-good.yaml --from-log log --out out ; explain r7 --log log
"""

LONG = """
decide/batch | decide examples/batch-analytics.yaml
decide/shop | decide examples/bursty-small-business.yaml --json
decide/bot | decide examples/internal-workflow-bot.yaml --out out
decide/rag | decide examples/long-context-rag.yaml
decide/agents | decide examples/multilingual-agents.yaml
decide/public | decide examples/public-api-service.yaml
decide/study-log | decide mini.yaml --from-log log --json
"""

API = {
    "names": "print('\\n'.join(sorted({*dir(breakeven), *breakeven.__all__} - {'TYPE_CHECKING', 'Any', 'annotations'})))",
    "signatures": """
import inspect
for name in sorted(breakeven.__all__):
    found = getattr(breakeven, name)
    if callable(found):
        for p in inspect.signature(found).parameters.values():
            print(name, p.name, p.kind.name, '' if p.default is p.empty else repr(p.default))
""",
    "predict": "show(breakeven.predict_models(['olmoe-1b-7b', 'llama-3.2-1b'], ['h100-sxm'], batches=(1, 8)))",
    "cost": """
import dataclasses
print(dataclasses.asdict(breakeven.Traffic(rate='2', prompt='300', output='50', slo='ttft=1s')))
print([each.name for each in dataclasses.fields(breakeven.LoadOptions)])
print([each.name for each in dataclasses.fields(breakeven.CalibrateOptions)])
options = breakeven.CostOptions(workload=workload(), machine='h100-sxm', rates=(1.0, 5.0))
show(breakeven.cost(['olmoe-1b-7b', 'llama-3.2-1b'], options))
""",
    "recompute": "for name in ('compare', 'bench', 'rate', 'capacity'): show(breakeven.recompute(name))",
    "explain": "print(breakeven.explain('r7', 'log'))\nprint(breakeven.explain('r9', 'log'))",
    "errors": """
for ask in (lambda: breakeven.recompute('nothing'), lambda: breakeven.predict_models(['x'], ['h100-sxm']),
            lambda: breakeven.explain('x', 'log'), lambda: breakeven.decide_study('no.yaml'), lambda: breakeven.nothing,
            lambda: breakeven.experiment_status('nothing'), lambda: breakeven.bench('x', breakeven.Traffic())):
    try:
        ask()
    except Exception as error:
        print([each.__name__ for each in type(error).__mro__], error)
""",
    "decide": "show(breakeven.decide_study('mini.yaml', 'out'))",
}
API_HEAD = """
import json, msgspec, breakeven
def plain(found):
    if isinstance(found, dict):
        return {key: plain(each) for key, each in found.items() if key != 'description'}
    return [plain(each) for each in found] if isinstance(found, list) else found
def show(found):
    print(type(found).__name__)
    print(json.dumps(plain(msgspec.json.schema(type(found))), indent=1))
    print(msgspec.json.format(msgspec.json.encode(found)).decode())
def workload():
    from typing import get_type_hints
    words = {"arrivals": {"process": "poisson", "rate_per_s": 2.0}, "prompt": {"mean": 300}, "output": {"mean": 50}}
    return msgspec.convert({**words, "requests": 200}, get_type_hints(breakeven.CostOptions)["workload"])
"""


def cases() -> list[Case]:
    """Every case, in the order in which they run."""
    found = [Case("help", ("", "--help", "--version", "help", *(f"{each} --help" for each in parted(VERBS, ";"))))]
    found += [Case("help/narrow", ("compare --help", "serve --help", "keys create --help"), env={"COLUMNS": "60"})]
    wrong: dict[str, list[str]] = {}
    short = (("TINY", "examples/tiny-dense.yaml examples/tiny-moe.yaml"), ("ONE", "examples/tiny-moe.yaml"))
    for line in parted(WRONG.replace("\n", "|"), "|"):
        for word, meaning in short:
            line = line.replace(word, meaning)
        wrong.setdefault(line.split()[0], []).append(line)
    found += [
        Case(f"errors/{verb}", tuple(lines), ("examples", "bad", "log"), limit_s=40.0) for verb, lines in wrong.items()
    ]
    found += rows(TABLE, 0)
    found += [
        Case("machine", ("machine", "machine --json"), hide=MACHINE),
        Case("narrow", ("models olmoe-1b-7b", "report bench", "report compare"), ("bench", "compare"),
             env={"COLUMNS": "60"}),
        Case("colour", ("models olmoe-1b-7b", "machines h100-sxm"), env={"NO_COLOR": "", "FORCE_COLOR": "1"}),
        Case("cache", ("cache list", "profile examples/tiny-moe.yaml --prompt 16 --steps 2 --json",
                       "profile examples/tiny-dense.yaml --prompt 16 --steps 2 --json", "cache list", "cache list --json",
                       "cache prune --unused-days 3", "cache prune"), hide=(*STAMPS, *NUMBERS), files=False, sorted=True),
        Case("trace", ("trace examples/tiny-moe.yaml --text examples/tiny-dense.yaml --max-tokens 64",
                       "trace examples/tiny-moe.yaml --text mini.yaml --max-tokens 64 --json"),
             ("examples", "mini.yaml"), hide=((r"Watching [^.]*\.", "Watching."), (r'("observing_overhead": ?)[\d.e-]+', r"\1#"),
             (r'("[a-z_]*seconds[a-z_]*": ?)[\d.e-]+', r"\1#")), files=False),
        Case("keys", ("keys list", "keys create alice", "keys create bob --json --limit '5 requests/min' --usd 2/day",
                      "keys create carol --models chat,other --slo ttft=1s,tpot=50ms --priority 3 --expires 30d --admin",
                      "keys create alice", "keys list", "keys list --json", "keys revoke bob", "keys revoke bob --json",
                      "keys list", "keys revoke carol --json"), (), hide=(*STAMPS, *SECRETS)),
    ]  # fmt: skip
    found += [
        Case(f"api/{name}", code=code, inputs=("examples", "log", "mini.yaml", "bench", "compare", "rate", "capacity"),
             tier=1 if name == "decide" else 0, may_add=name in ("names", "signatures"))
        for name, code in API.items()
    ]  # fmt: skip
    found += [
        Case("gateway", live="gateway", inputs=(), tier=0, hide=(*STAMPS, (r"try again in \d+ s", "try again in # s")))
    ]
    return [*found, *rows(USUAL, 1), *rows(LONG, 2)]


def parted(text: str, mark: str) -> list[str]:
    """The parts between marks, without those that are blank."""
    return [part.strip() for part in text.split(mark) if part.strip()]


def rows(table: str, tier: int) -> Iterator[Case]:
    """Cases from lines `name | command ; command`; the inputs are those whose names stand in the commands."""
    known = [*BAD, *GOOD, "bench", "compare", "rate", "capacity", "again", "log", "llama.gguf", *SMALL]
    for line in parted(table, "\n"):
        name, _, commands = line.partition("|")
        words = {word.split("/")[0] for word in shlex.split(commands.replace(";", " "))}
        more = {"log"} if words & {"gateway-experiment-good.yaml"} else set()
        yield Case(
            name.strip(), tuple(parted(commands, ";")), ("examples", *sorted((words | more) & set(known))), tier=tier
        )


# Inputs. Every name that a case asks for is a file or directory below `inputs`; cases get copies.

CANDIDATES = """candidates:
  - {name: A, model: qwen3-30b-a3b, machine: h100-sxm, format: fp8, price: {rented: {usd_per_hour: 1.69, date: 2026-04}, source: x}}
  - {name: B, model: llama-3.1-8b, machine: l40s, format: fp8, price: {rented: {usd_per_hour: 1.4, date: 2026-03}, source: y}}
"""
STUDY = (
    "name: mini\nquestion: Which of two?\n"
    'load: {rate: 2/s, prompt: "512", output: "64", low: 1/s, high: 10/s}\n'
    "slo: {ttft: 2s, tpot: 100ms, share: 90%}\ncontexts: [1000, 4000]\nformats: [fp8]\n"
)
BACKENDS = """backends:
  - {name: A, url: "http://127.0.0.1:1/v1", model: qwen3-30b-a3b, machine: h100-sxm, format: fp8, price: {rented: {usd_per_hour: 1.69}}}
  - {name: B, url: "http://127.0.0.1:2/v1", model: llama-3.1-8b, machine: l40s, format: fp8, price: {rented: {usd_per_hour: 1.4}}}
"""
POLICIES = "policies:\n  - {model: chat, backends: [A, B], slo: {ttft: 2s, tpot: 100ms}}\n"
TRIAL = "experiments:\n  - {name: try-b, kind: ab, model: chat, control: A, treatment: B"
GOOD = {
    "mini.yaml": STUDY + CANDIDATES,
    "gateway-good.yaml": BACKENDS + POLICIES,
    "gateway-experiment-good.yaml": BACKENDS + POLICIES + TRIAL + "}\nlog: {directory: log}\n",
    "chip.yaml": "name: My board\nclass: sbc\nbandwidth_gb_per_s: 34.1\n",
    "keys.json": json.dumps(
        {
            "schema": "breakeven.key_file/1",
            "keys": [
                {"name": f"key-{n}", "id": f"{n:016x}", "digest": f"sha256:{n:064x}", "created_s": 1790000000.0 + n,
                 "limits": ["5 requests/min", "2 usd/day"][: n % 3], "models": ["chat", "other"][: n % 2]}
                for n in range(4)
            ],
        }
    ),
}  # fmt: skip
BAD = {
    "broken.yaml": "a: [1,\nb: {",
    "study-key.yaml": STUDY.replace("slo:", "sloo:") + CANDIDATES,
    "study-unit.yaml": STUDY.replace("ttft: 2s", "ttft: 2parsecs") + CANDIDATES,
    "study-model.yaml": STUDY + CANDIDATES.replace("llama-3.1-8b", "lama-3.1-8b"),
    "study-empty.yaml": STUDY + "candidates: []\n",
    "gateway-key.yaml": BACKENDS.replace("format: fp8, ", "frmat: fp8, ") + POLICIES,
    "gateway-backend.yaml": BACKENDS + POLICIES.replace("[A, B]", "[A, C]"),
    "gateway-open.yaml": BACKENDS + POLICIES + "host: 0.0.0.0\n",
    "gateway-env.yaml": BACKENDS.replace("price:", "api_key_env: NOT_SET_ANYWHERE, price:") + POLICIES,
    "gateway-unit.yaml": BACKENDS + POLICIES + "minimum_dwell: 20 moons\n",
    "gateway-policy.yaml": BACKENDS + POLICIES.replace("slo:", "policy: luck, slo:"),
    "gateway-twice.yaml": BACKENDS + POLICIES + "port: 1\nport: 2\n",
    "gateway-experiment.yaml": BACKENDS + POLICIES + TRIAL.replace("ab", "dice") + "}\n",
    "broken-log/events.jsonl": '{"kind": "nothing"}\nnot json\n',
}
SMALL = {
    f"small-{name}.yaml": (name, kept)
    for name, kept in {
        "internal-workflow-bot": (0, 3),
        "multilingual-agents": (0, 2),
        "bursty-small-business": (0, 4),
    }.items()
}
"""Examples with two of their candidates."""
MEASURED = {
    "compare": "compare examples/tiny-dense.yaml examples/tiny-moe.yaml --streams 1,2 --prompt 32 --output 8 --budget 8s",
    "bench": "bench examples/tiny-moe.yaml --rate 4,8 --duration 3s --prompt 32 --output 8 --slo ttft=1s,tpot=100ms",
    "again": "bench examples/tiny-moe.yaml --rate 4,8 --duration 3s --prompt 32 --output 8 --slo ttft=1s,tpot=100ms",
    "rate": "compare examples/tiny-dense.yaml examples/tiny-moe.yaml --rate 3 --rounds 1 --duration 3s --warm-up 1s "
    "--prompt 32 --output 8 --slo ttft=1s",
    "capacity": "capacity examples/tiny-dense.yaml --slo ttft=1s,tpot=200ms --only rate --prompt 32 --output 8 "
    "--budget 8s --max-rate 4 --precision 50%",
}
LLAMA = "name: small-llama\nfamily: llama\nhidden: 256\nn_layers: 2\nheads: 4\nkv_heads: 2\nhead_dim: 64\nffn_width: 512\nvocab: 512\ncontext: 2048\n"


def make_inputs(place: Path, before: Side) -> None:
    """Write every input below `place` that is not there yet; the logs of measurements by running BEFORE."""
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "examples").exists():
        shutil.copytree(ROOT / "examples", place / "examples")
    for name, text in {**GOOD, **BAD, "llama.yaml": LLAMA}.items():
        (place / "bad" / name if name in BAD else place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "bad" / name if name in BAD else place / name).write_text(text)
    (place / "bad" / "mini.yaml").write_text(GOOD["mini.yaml"])
    for name, (example, kept) in SMALL.items():
        (place / name).write_text(shrunk((place / "examples" / f"{example}.yaml").read_text(), kept))
    write_log(place / "log")
    for name, words in {**MEASURED, "llama.gguf": "synth llama.yaml --format Q4_0"}.items():
        if not (place / name).exists():
            print(f"making {name}: breakeven {words}", flush=True)
            status, _, errors = before.run([*shlex.split(words), "--out", f"part-{name}"], place, {})
            if status:
                sys.exit(f"{before.executable} could not make {name}: {errors}")
            (place / f"part-{name}").rename(place / name)


def shrunk(study: str, kept: Sequence[int]) -> str:
    """An example with few of its candidates; the first always stays, as others refer to its price."""
    head, _, tail = study.partition("\ncandidates:\n")
    items = tail.split("  - name:")[1:]
    text = head + "\ncandidates:\n" + "".join("  - name:" + items[n] for n in kept)
    return text.replace("trace: traces/", "trace: examples/traces/")


def write_log(place: Path) -> None:
    """A made-up decision log of twenty minutes: two backends in an experiment, failures, a hedge, refusals."""
    dice, lines, at_s = random.Random(7), [], 0.0
    for number in range(600):
        at_s += dice.expovariate(0.5)
        arm = dice.random() < 0.5
        name, other = ("B", "A") if arm else ("A", "B")
        e2e_s = round(dice.lognormvariate(0.0, 0.8) * (0.6 if arm else 1.0), 6)
        made: dict[str, Any] = {
            "id": f"r{number}", "time_s": round(1790000000 + at_s, 6), "model": "chat", "endpoint": "/v1/chat/completions",
            "policy": "breakeven", "reason": "cheapest_that_fits", "backend": name, "status": 200, "stream": True,
            "asked_ttft_s": 2.0, "asked_tpot_s": 0.1, "predicted_prompt_tokens": 500.0, "predicted_output_tokens": 200.0,
            "predicted_ttft_s": 0.1, "predicted_tpot_s": 0.012, "predicted_usd": 1e-4, "alternative": other,
            "scores": [["A", 0.1, 0.012, 1e-4, 8.3, 2.0, ""], ["B", 0.2, 0.02, 2e-4, None, 1.0, ""]],
            "attempts": [{"backend": name, "outcome": "answered", "start_s": 0.0, "seconds": e2e_s}],
            "ttft_s": 0.12, "tpot_s": 0.011, "e2e_s": e2e_s, "prompt_tokens": 1 + int(dice.lognormvariate(5.0, 0.5)),
            "output_tokens": 1 + int(dice.lognormvariate(4.0, 0.5)), "finish": "stop", "usd": 1e-4, "usd_elsewhere": 2e-4,
        }  # fmt: skip
        if number % 4:
            made |= {"experiment": "try-b", "arm": "treatment" if arm else "control", "reason": "experiment"}
        if number % 10 == 9:
            lost = {"backend": other, "outcome": "reset", "start_s": 0.0, "seconds": 0.01}
            made["attempts"] = [lost, {**made["attempts"][0], "start_s": 0.01, "hedge": True}]
        if number % 10 == 0 and number:
            gone = (
                "reason",
                "backend",
                "status",
                "ttft_s",
                "tpot_s",
                "output_tokens",
                "finish",
                "usd",
                "usd_elsewhere",
            )
            made = {key: each for key, each in made.items() if key not in gone}
            made |= {"reason": "shed", "status": 429, "attempts": [], "error": "nobody would serve it in time"}
        lines.append(json.dumps(made, separators=(",", ":")))
    place.mkdir(exist_ok=True)
    (place / "decisions-0-0.jsonl").write_text("\n".join(lines) + "\n")


# The two sides.

RUNNER = r"""
import json, os, runpy, signal, sys, time
for name in ("typer", "typer.main", "rich.console", "rich.table", "msgspec", "numpy", "pydantic", "yaml", "psutil", "jinja2"):
    try:
        __import__(name)
    except ImportError:
        pass
executable, jobs = sys.argv[1], os.fdopen(os.dup(0))
while line := jobs.readline():
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(job["cwd"])
        os.environ.clear()
        os.environ.update(job["env"])
        for number, path, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_WRONLY), (2, "stderr", os.O_WRONLY)):
            opened = os.open(job[path], flags)
            os.dup2(opened, number)
            os.close(opened)
        sys.stdin = os.fdopen(0, closefd=False)
        if job["code"]:
            sys.path.insert(0, "")
            exec(compile(job["code"], "<case>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [executable, *job["words"]]
            runpy.run_path(executable, run_name="__main__")
        sys.exit(0)
    until = time.monotonic() + job["limit_s"]
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            # Politely first: engines in sessions of their own are ended by whoever started them.
            os.kill(child, signal.SIGINT if time.monotonic() < until + 10 else signal.SIGKILL)
            time.sleep(1)
        time.sleep(0.005)
    print(os.waitstatus_to_exitcode(ended[1]), flush=True)
"""


class Side:
    """One checkout: its command, where its cases run, and what in its output names itself."""

    def __init__(self, name: str, executable: Path, place: Path, fresh: bool) -> None:
        self.name, self.executable, self.place, self.fresh = name, executable.absolute(), place, fresh
        self.python = self.executable.parent / "python"
        self.scratch = place.parent / f"{name}-scratch"
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.runner: subprocess.Popen[str] | None = None
        for path in (self.executable, self.python):
            if not path.exists():
                sys.exit(f"{path} does not exist; give a breakeven command of a virtual environment")
        told = subprocess.run([self.executable, "--version"], capture_output=True, text=True, check=False).stdout
        self.version = told.split()[-1] if told else "none"

    def environment(self, cwd: Path, more: Mapping[str, str]) -> dict[str, str]:
        """Nothing of the user's, so that runs are alike."""
        usual = {
            "PATH": f"{self.executable.parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "LANG": "C.UTF-8",
            "TZ": "UTC",
        }
        usual |= {
            "HOME": str(cwd),
            "XDG_CACHE_HOME": str(cwd / ".cache"),
            "COLUMNS": "100",
            "TERM": "dumb",
            "NO_COLOR": "1",
        }
        usual |= {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", **more}
        return {key: value for key, value in usual.items() if value}

    def run(
        self,
        words: Sequence[str],
        cwd: Path,
        more: Mapping[str, str],
        *,
        code: str = "",
        stdin: str = "",
        limit_s: float = LIMIT_S,
    ) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of one command, or of Python code."""
        paths = {name: self.scratch / name for name in ("stdin", "stdout", "stderr")}
        for name, path in paths.items():
            path.write_text(stdin if name == "stdin" else "")
        environment = self.environment(cwd, more)
        if self.fresh:
            command: list[str | Path] = [self.python, "-c", code] if code else [self.executable, *words]
            with paths["stdin"].open() as given, paths["stdout"].open("w") as out, paths["stderr"].open("w") as errors:
                status = subprocess.run(
                    command,
                    cwd=cwd,
                    env=environment,
                    stdin=given,
                    stdout=out,
                    stderr=errors,
                    timeout=limit_s,
                    check=False,
                ).returncode
        else:
            job = {"words": list(words), "code": code, "cwd": str(cwd), "env": environment, "limit_s": limit_s}
            status = self.ask(json.dumps(job | {name: str(path) for name, path in paths.items()}))
        return status, paths["stdout"].read_text(errors="replace"), paths["stderr"].read_text(errors="replace")

    def ask(self, job: str) -> int:
        """Let the process that has the libraries fork one off."""
        if self.runner is None or self.runner.poll() is not None:
            self.runner = subprocess.Popen(
                [self.python, "-c", RUNNER, self.executable], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                cwd=self.scratch, env=self.environment(self.scratch, {}),
            )  # fmt: skip
        assert self.runner.stdin is not None
        assert self.runner.stdout is not None
        self.runner.stdin.write(job + "\n")
        self.runner.stdin.flush()
        told = self.runner.stdout.readline()
        if not told:
            raise RuntimeError(f"the process that forks for {self.name} ended with {self.runner.wait(10)}")
        return int(told)

    def close(self) -> None:
        """End the process that forks."""
        if self.runner is not None and self.runner.stdin is not None:
            self.runner.stdin.close()
            self.runner.wait(10)

    def seen(self, case: Case, inputs: Path) -> Seen:
        """Run a case; what it gave, with what names this side or the moment blanked."""
        cwd = self.place / case.name.replace("/", "-")
        shutil.rmtree(cwd, ignore_errors=True)
        cwd.mkdir(parents=True)
        for name in case.inputs:
            if name == "bad":
                shutil.copytree(inputs / name, cwd, dirs_exist_ok=True)
            elif (inputs / name).is_dir():
                shutil.copytree(inputs / name, cwd / name)
            else:
                shutil.copy2(inputs / name, cwd / name)
        were = {path: path.read_bytes() for path in written(cwd)}
        found: Seen = {}
        if case.live:
            found = LIVE[case.live](self, cwd)
        for number, command in enumerate(case.commands or ("",) if not case.live else (), 1):
            code = API_HEAD + case.code if case.code else ""
            status, out, errors = self.run(
                shlex.split(command), cwd, case.env, code=code, stdin=case.stdin, limit_s=case.limit_s
            )
            told = f"breakeven {command}" if not code else "python"
            found |= {f"{told} (status)": str(status), f"{told} (stdout)": out, f"{told} (stderr)": errors}
            if len(case.commands) != len(set(case.commands)):
                found = {key if key.startswith("#") else f"#{number} {key}": each for key, each in found.items()}
        if case.files:
            for path in written(cwd):
                if were.get(path) != path.read_bytes():
                    data = path.read_bytes()
                    binary = b"\0" in data or path.suffix in (".gguf", ".png")
                    text = f"{len(data)} bytes {hashlib.sha256(data).hexdigest()}" if binary else data.decode()
                    found[path.relative_to(cwd).as_posix()] = text
        found = {key: self.blanked(each, case.hide) for key, each in found.items()}
        return {key: "\n".join(sorted(each.split("\n"))) if case.sorted else each for key, each in found.items()}

    def blanked(self, text: str, hide: Hide) -> str:
        """`text` without what must differ."""
        venv = self.executable.parent.parent
        for path, name in (
            (self.place, "<work>"),
            (venv.resolve(), "<venv>"),
            (venv, "<venv>"),
            (venv.parent, "<checkout>"),
        ):
            text = text.replace(str(path), name)
        text = re.sub(r"(?<= at )0x[0-9a-f]{8,}", "<address>", text)
        text = re.sub(rf"(?<![\w.]){re.escape(self.version)}(?![\w.])", "<version>", text)
        text = re.sub(r"(?<= GB in )[\d.]+(?= s; synthetic)", "#", text)
        for pattern, name in hide:
            text = re.sub(pattern, name, text)
        return text


def written(cwd: Path) -> list[Path]:
    """Files below a case's directory that are its own, not a cache's or an engine's log."""
    return sorted(
        path
        for path in cwd.rglob("*")
        if path.is_file() and ".cache" not in path.parts and not (path.suffix == ".log" and path.parent != cwd)
    )


# A gateway in front of a small scripted server.


class Scripted(BaseHTTPRequestHandler):
    """An upstream that answers every question the same, streamed where asked."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        """Nothing but the list of models."""
        self.tell(200 if self.path == "/v1/models" else 404, b'{"object":"list","data":[{"id":"a","object":"model"}]}')

    def do_POST(self) -> None:
        """One answer, or an error where the prompt asks for it."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        if "fail" in json.dumps(body):
            self.tell(400, b'{"error":{"message":"as asked","type":"invalid_request_error"}}')
        elif body.get("stream"):
            pieces = [{"choices": [{"index": 0, "delta": {"content": f"word{n} "}}]} for n in range(3)]
            pieces += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
            if (body.get("stream_options") or {}).get("include_usage"):
                pieces += [{"choices": [], "usage": usage}]
            told = [{"id": "c-1", "object": "chat.completion.chunk", "model": body["model"], **each} for each in pieces]
            data = "".join(f"data: {json.dumps(each)}\n\n" for each in told) + "data: [DONE]\n\n"
            self.tell(200, data.encode(), "text/event-stream")
        else:
            names = {"saw": sorted(body), "credential": self.headers.get("authorization"), "path": self.path}
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": "three words here"},
                "finish_reason": "stop",
            }
            made = {
                "id": "c-1",
                "object": "chat.completion",
                "model": body["model"],
                "choices": [choice],
                "usage": usage,
            }
            self.tell(200, json.dumps(made | names).encode())

    def tell(self, status: int, data: bytes, kind: str = "application/json") -> None:
        """Send one whole answer."""
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


SAY = {"messages": [{"role": "user", "content": "hello there"}]}
ASKED: tuple[tuple[str, str, Any, dict[str, str]], ...] = (
    ("GET", "/health", None, {}), ("GET", "/ready", None, {}), ("GET", "/v1/models", None, {}),
    ("GET", "/v1/models", None, {"authorization": "Bearer wrong"}), ("GET", "/v1/models", None, {"authorization": ""}),
    ("GET", "/v1/models/chat", None, {}), ("GET", "/v1/models/nothing", None, {}), ("GET", "/", None, {}),
    ("GET", "/v1/nothing", None, {}), ("GET", "/v1/chat/completions", None, {}), ("POST", "/v1/models", {}, {}),
    ("OPTIONS", "/v1/chat/completions", None, {}), ("HEAD", "/health", None, {}),
    ("POST", "/v1/chat/completions", {"model": "chat", **SAY}, {}),
    ("POST", "/v1/chat/completions", {"model": "chat", "stream": True, **SAY}, {}),
    ("POST", "/v1/chat/completions", {"model": "chat", "stream": True, "stream_options": {"include_usage": True}, **SAY}, {}),
    ("POST", "/v1/chat/completions", {"model": "a", "max_tokens": 5, "unknown": [1, 2.50], **SAY}, {}),
    ("POST", "/v1/chat/completions", {"model": "b", **SAY}, {}),
    ("POST", "/v1/chat/completions", {"model": "down", **SAY}, {}),
    ("POST", "/v1/chat/completions", {"model": "nothing", **SAY}, {}),
    ("POST", "/v1/chat/completions", {"model": "chat", "messages": [{"role": "user", "content": "fail"}]}, {}),
    ("POST", "/v1/chat/completions", SAY, {}), ("POST", "/v1/chat/completions", b"{broken", {}),
    ("POST", "/v1/chat/completions", b"[" * 100 + b"]" * 100, {}), ("POST", "/v1/chat/completions", {"model": 5, **SAY}, {}),
    ("POST", "/v1/chat/completions", {"model": "chat", "stream": "yes", **SAY}, {}),
    ("POST", "/v1/chat/completions", {"model": "chat", **SAY}, {"authorization": "Bearer wrong"}),
    ("POST", "/v1/chat/completions", {"model": "chat", **SAY}, {"authorization": "Basic eDp5"}),
    ("POST", "/v1/chat/completions", {"model": "chat", **SAY}, {"x-breakeven-ttft-ms": "soon"}),
    ("POST", "/v1/chat/completions", {"model": "chat", **SAY}, {"x-breakeven-max-usd": "0.0000000001"}),
    ("POST", "/v1/chat/completions", {"model": "chat", **SAY}, {"x-breakeven-session": "one", "content-type": "text/plain"}),
    ("POST", "/v1/completions", {"model": "chat", "prompt": "hello"}, {}),
    ("POST", "/v1/embeddings", {"model": "chat", "input": "hello"}, {}), ("POST", "/v1/embeddings", {"model": "b", "input": "x"}, {}),
    ("POST", "/v1/responses", {"model": "chat", "input": "hello"}, {}), ("POST", "/v1/messages", {"model": "chat", **SAY}, {}),
    ("POST", "/v1/chat/completions", {"model": "chat", **SAY}, {"authorization": "Bearer {second}"}),
    ("POST", "/v1/chat/completions", {"model": "chat", **SAY}, {"authorization": "Bearer {second}"}),
    ("POST", "/v1/chat/completions", {"model": "a", **SAY}, {"authorization": "Bearer {second}"}),
)  # fmt: skip
ADMIN = ("/health", "/", "/admin/nothing", "/login", "/admin/experiments")
GATEWAY = """backends:
  - {{name: a, url: "http://127.0.0.1:{port}/v1", kind: moe, price: {{api: {{input: 0.1, output: 0.2}}}}, speed: {{ttft: 0.2s, tokens_per_s: 100, source: x}}, endpoints: [/v1/chat/completions, /v1/completions]}}
  - {{name: b, url: "http://127.0.0.1:{port}/v1", kind: dense, served_model: other, api_key_env: THE_KEY, price: {{api: {{input: 1, output: 2}}}}, speed: {{ttft: 0.2s, tokens_per_s: 100, source: x}}, endpoints: [/v1/chat/completions, /v1/embeddings]}}
  - {{name: down, url: "http://127.0.0.1:1/v1", kind: dense, price: {{api: {{input: 1, output: 2}}}}}}
policies:
  - {{model: chat, policy: cheapest, backends: [a, b], explore: 0%, slo: {{ttft: 9s, tpot: 900ms}}}}
experiments:
  - {{name: try, kind: shadow, model: chat, control: a, treatment: b, share: 1%}}
port: 0
keys: keys.json
admin: {{port: 0}}
log: {{directory: log}}
"""


def gateway(side: Side, cwd: Path) -> Seen:
    """What clients and whoever runs it see of a gateway that answers `ASKED` and ends."""
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    (cwd / "gateway.yaml").write_text(GATEWAY.format(port=upstream.server_port))
    _, first, _ = side.run(["keys", "create", "first"], cwd, {})
    _, second, _ = side.run(["keys", "create", "second", "--limit", "1 request/hour", "--models", "chat"], cwd, {})
    found: Seen = {}
    environment = side.environment(cwd, {"THE_KEY": "the-key-of-b"})
    with (cwd / "stderr.txt").open("w") as errors:
        process = subprocess.Popen(
            [side.executable, "serve", "gateway.yaml"], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        if " at http" not in lines[1]:
            return {"never served": "".join(lines) + (cwd / "stderr.txt").read_text()}
        url, admin = (line.split(" at ")[1].strip() for line in lines)
        for number, (method, path, body, headers) in enumerate(ASKED):
            given = {"authorization": f"Bearer {first.strip()}", **headers}
            given = {key: each.replace("{second}", second.strip()) for key, each in given.items() if each}
            told = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            found[f"{number:02} {method} {path} {str(body)[:70]} {headers or ''}"] = answer(
                url, method, path, told, given
            )
        time.sleep(1.5)
        for path in ADMIN:
            found[f"admin {path}"] = answer(admin, "GET", path, None, {})
        _, _, metrics = answer(admin, "GET", "/metrics", None, {}).partition("\n\n")
        found["admin /metrics"] = "\n".join(
            line if line.startswith("#") else line.rpartition(" ")[0] for line in metrics.splitlines()
        )
        _, _, state = answer(admin, "GET", "/admin/state", None, {}).partition("\n\n")
        found["admin /admin/state"] = "\n".join(sorted(set(keys_of(json.loads(state)))))
        process.send_signal(signal.SIGTERM)
        found["printed"] = "".join(lines) + process.stdout.read()
        found["exit status"] = str(process.wait(30))
    finally:
        if process.poll() is None:
            process.kill()
        upstream.shutdown()
    found["log"] = "\n".join(
        json.dumps({k: v if k in STEADY else "..." for k, v in json.loads(line).items()})
        for path in sorted((cwd / "log").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    )
    found["stderr"] = (cwd / "stderr.txt").read_text()
    shutil.rmtree(cwd)
    cwd.mkdir()
    ports = ((rf":{upstream.server_port}\b", ":<upstream>"), (r"127\.0\.0\.1:\d{4,5}", "127.0.0.1:<port>"))
    for pattern, name in ports:
        found = {key: re.sub(pattern, name, each) for key, each in found.items()}
    return found


STEADY = ("model", "endpoint", "policy", "reason", "key", "backend", "status", "stream", "alternative", "prompt_tokens",
          "output_tokens", "finish", "usd", "error", "refusal", "experiment", "arm")  # fmt: skip
MOVES = ("date", "x-breakeven-request-id", "x-breakeven-ttft-ms", "retry-after", "etag")
LIVE: dict[str, Callable[[Side, Path], Seen]] = {"gateway": gateway}


def answer(url: str, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> str:
    """Status, headers in their order, and body, as text."""
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"content-type": "application/json", **headers})
        got = connection.getresponse()
        told = [f"{key}: {'...' if key.lower() in MOVES else value}" for key, value in got.getheaders()]
        return "\n".join([f"{got.status} {got.reason}", *told, "", got.read().decode(errors="replace")])


def keys_of(found: Any, at: str = "") -> Iterator[str]:
    """Every path of keys in some JSON, lists without their numbers."""
    if isinstance(found, dict):
        for key, each in found.items():
            yield f"{at}.{key}"
            yield from keys_of(each, f"{at}.{key}")
    elif isinstance(found, list):
        for each in found:
            yield from keys_of(each, f"{at}[]")


# Comparing.


def differences(before: Seen, after: Seen, may_add: bool) -> list[str]:
    """What differs, a few lines each."""
    told = []
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) == after.get(key):
            continue
        if key not in before or key not in after:
            told.append(f"{key}: only {'BEFORE' if key in before else 'AFTER'} has it")
            continue
        if may_add and key.endswith("(stdout)"):
            missing = [line for line in before[key].splitlines() if line not in after[key].splitlines()]
            told += [f"{key}: AFTER lacks {line}" for line in missing]
            continue
        lines = list(difflib.unified_diff(broken(before[key]), broken(after[key]), "before", "after", n=1, lineterm=""))
        told.append(f"{key}:" if lines else f"{key}: equal values, other bytes")
        told += [line if len(line) <= SHOWN_WIDTH else line[:SHOWN_WIDTH] + " ..." for line in lines[2:]]
    return told


def broken(text: str) -> list[str]:
    """Lines; those of JSON and HTML without line breaks are broken where it helps."""
    with contextlib.suppress(ValueError):
        return json.dumps(json.loads(text), indent=1, ensure_ascii=False).splitlines()
    if max(map(len, text.splitlines()), default=0) > 1000:
        text = re.sub(r"(?<=>)(?=<)|(?<=,)(?=[\[{\"])", "\n", text)
    return text.splitlines()


def kept_seen(keep: Path | None, before: Side, case: Case, inputs: Path) -> Seen:
    """What BEFORE gives: as kept from an earlier run of the same case, else by running it."""
    if keep is None:
        return before.seen(case, inputs)
    said = repr(
        (case, ASKED, GOOD, BAD, API_HEAD, str(before.executable), Path(__file__).read_text() if case.live else "")
    )
    path = keep / f"{case.name.replace('/', '-')}-{hashlib.sha256(said.encode()).hexdigest()[:12]}.json"
    if path.exists():
        kept: Seen = json.loads(path.read_text())
        return kept
    found = before.seen(case, inputs)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(found))
    part.replace(path)
    return found


def chosen(arguments: argparse.Namespace) -> list[Case]:
    """The cases asked for, by name or by tier."""
    found = cases()
    if arguments.only:
        known = [
            case
            for case in found
            if any(case.name == w or case.name.startswith(f"{w.rstrip('/')}/") for w in arguments.only)
        ]
        return known or sys.exit("no case has such a name; --list tells them")
    most = 0 if arguments.quick else 2 if arguments.all else 1
    return [case for case in found if case.tier <= most]


def main() -> int:
    """Run what was asked for; 1 when something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, nargs="?")
    parser.add_argument("after", type=Path, nargs="?")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--keep", type=Path, metavar="DIR")
    for flag in ("--list", "--quick", "--all", "--fresh"):
        parser.add_argument(flag, action="store_true")
    arguments = parser.parse_args()
    asked = chosen(arguments)
    if arguments.list:
        print(
            "\n".join(
                f"{case.name:28} {('quick', 'usual', 'all')[case.tier]:6} {len(case.commands)} commands"
                for case in asked
            )
        )
        return 0
    if arguments.before is None or arguments.after is None:
        parser.error("give two breakeven commands")
    out = Path(arguments.out or tempfile.mkdtemp(prefix="same-outputs-")).absolute()
    keep = arguments.keep.absolute() if arguments.keep else None
    # Names of one length: terminals wrap lines by it.
    before = Side("before", arguments.before, out / "1st", arguments.fresh)
    after = Side("after", arguments.after, out / "2nd", arguments.fresh)
    inputs = (keep or out) / "inputs"
    make_inputs(inputs, before)
    began, different = time.monotonic(), []
    with ThreadPoolExecutor(2) as pool:
        for case in asked:
            start = time.monotonic()
            first = pool.submit(kept_seen, keep, before, case, inputs)
            second = pool.submit(after.seen, case, inputs)
            try:
                told = differences(first.result(), second.result(), case.may_add)
            except Exception as error:
                told = [f"failed: {type(error).__name__}: {error}"]
            if told:
                different.append(case.name)
            print(f"{'DIFFERENT' if told else 'same':10}{case.name:28} {time.monotonic() - start:5.1f} s", flush=True)
            for line in told[:SHOWN_LINES]:
                print(f"    {line}")
            if told[SHOWN_LINES:]:
                (out / f"{case.name.replace('/', '-')}.diff").write_text("\n".join(told) + "\n")
                print(f"    ... {len(told) - SHOWN_LINES} more lines in {out / case.name.replace('/', '-')}.diff")
    before.close()
    after.close()
    print(f"{len(asked) - len(different)} of {len(asked)} cases are the same, {time.monotonic() - began:.0f} s; {out}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
