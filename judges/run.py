"""`make judges`: tests and clients that are not ours, against backends directly and through the gateway.

    python judges/run.py [--engine llama.cpp] [--model MODEL] [--only replay] [--write docs/conformance.md]

Runs in the judges' own environment; the project's is named by BREAKEVEN_BIN (by default .venv/bin). Exit status 1 when
something that a backend does gets lost through the gateway.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import chat_alone
import chat_model
import litellm_client
import llm_comply
import npm_client
import openai_python
import programs
import replay
import translated
from found import Found
from places import PUBLIC, ROOT, Engine, engine, gateway
from table import write
from typed_backend import typed_backend

CACHE = ROOT / "results" / "judges"
MODEL = str(ROOT / "examples" / "tiny-dense.yaml")
Judge = Callable[[Engine, str, tuple[str, ...], int], list[Found]]


def _replay(behind: Engine, through_url: str, endpoints: tuple[str, ...], count: int) -> list[Found]:
    done = replay.replay(behind.url, through_url, behind.model, PUBLIC, count, endpoints)
    for difference in done.differences[:5]:
        print(replay.told(*difference), flush=True)
    statuses = ", ".join(f"{status}: {number}" for status, number in sorted(done.statuses.items()))
    print(f"  replay: {len(endpoints)} endpoints, {done.events} events of streams, statuses {statuses}", flush=True)
    return [done.found(behind.what)]


JUDGES: dict[str, Judge] = {
    "replay": _replay,
    "litellm": lambda behind, through, endpoints, count: litellm_client.judge(behind, through),
    "npm": lambda behind, through, endpoints, count: npm_client.judge(behind, through, CACHE),
    "langchain": lambda behind, through, endpoints, count: chat_model.judge(behind, through),
    "llm-comply": lambda behind, through, endpoints, count: llm_comply.judge(behind, through, endpoints),
    "translated": lambda behind, through, endpoints, count: translated.judge(behind),
    "chat-alone": lambda behind, through, endpoints, count: chat_alone.judge(behind, CACHE, plain=True),
}
"""What is asked of every engine. OpenAI's own tests need answers that are valid by OpenAI's types: the mock's."""


def by_openai_types() -> Iterator[Found]:
    """The judges that the mock is for."""
    yield from openai_python.judge(CACHE)
    with typed_backend() as (url, _):
        behind = Engine(url, "mock", "mock")
        endpoints = ("/v1/chat/completions", "/v1/responses")
        with gateway(behind, endpoints=endpoints) as through_url:
            yield from llm_comply.judge(behind, through_url, endpoints)


def of_scripted_chat() -> Iterator[Found]:
    """Clients of three APIs before a server of chat alone that uses its tools, which small models do not."""
    with chat_alone.chat_server() as behind:
        yield from chat_alone.judge(behind, CACHE)


def of_programs() -> Iterator[Found]:
    """Claude Code and Codex before the same server."""
    with chat_alone.chat_server() as behind:
        yield from programs.judge(behind, CACHE)


SCRIPTED = {"mock": by_openai_types, "chat": of_scripted_chat, "programs": of_programs}
"""Backends of no engine's, each with judges of its own; the last one's are 800 MB, and asked for by name."""


def of_engine(kind: str, model: str, names: list[str], count: int) -> Iterator[Found]:
    """Every judge named, on one real engine."""
    with engine(kind, model) as behind:
        endpoints = replay.supported(behind.url, behind.model)
        behind = Engine(behind.url, behind.model, f"{behind.what}, {Path(model).stem}")
        with gateway(behind, endpoints=endpoints) as through_url:
            for name in names:
                started = time.monotonic()
                try:
                    found = JUDGES[name](behind, through_url, endpoints, count)
                except RuntimeError as error:
                    print(f"{name}: not available here: {error}", flush=True)
                    found = [Found(name, behind.what, {}, {}, "not available here")]
                yield from found
                print(f"  {name}: {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    """Run them, print the table, and say whether all is equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engine", action="append", help="mock, chat, llama.cpp, vllm, programs; by default the first three"
    )
    parser.add_argument("--model", default=MODEL, help="as `breakeven compare` takes it")
    parser.add_argument("--only", action="append", choices=[*JUDGES], help="of the judges of an engine")
    parser.add_argument("--requests", type=int, default=1000, help="of the replay")
    parser.add_argument("--write", type=Path, help="put the table into this page")
    given = parser.parse_args()
    # Ended from outside, it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows: list[Found] = []
    names = given.only or [*JUDGES]
    for kind in given.engine or ["mock", "chat", "llama.cpp"]:
        found = SCRIPTED[kind]() if kind in SCRIPTED else of_engine(kind, given.model, names, given.requests)
        for row in found:
            print(row.row())
            for case in row.different:
                print(f"  {case}\n    direct  {row.direct.get(case)}\n    through {row.through.get(case)}")
            sys.stdout.flush()
            rows.append(row)
            if given.write:
                write(given.write, [row])
    raise SystemExit(not all(row.equal or row.note.startswith("as said") for row in rows))


if __name__ == "__main__":
    main()
