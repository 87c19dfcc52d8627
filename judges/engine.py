"""Keep one engine running for the judges: its address and name on the first line, until standard input closes.

Runs with the project's own Python, which has the engine; everything else here runs with the judges'.

    python judges/engine.py llama.cpp MODEL
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from breakeven.engines.source import parse_source
from breakeven.engines.start import engine_named, start, weights_of

NAME = "judged"
"""What the engine calls its model."""
SLOTS = 2
CONTEXT = 2048


def main() -> None:
    """Start it, say where it is, wait."""
    engine, model = sys.argv[1:]
    source = parse_source(model)
    path = weights_of(source, engine_named(engine).default_format, 0, None, engine=engine)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as directory:
        running = start(
            stack,
            replace(source, name=NAME),
            path,
            context=CONTEXT,
            slots=SLOTS,
            log=Path(directory) / "log",
            threads=None,
            wait_policy="passive",
            engine=engine,
        )
        told = {"url": running.backend.url, "model": running.backend.model, "settings": running.backend.settings}
        print(json.dumps(told), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
