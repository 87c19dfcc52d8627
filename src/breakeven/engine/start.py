"""Bring candidates up: write or find their weights, start their servers, or connect to the one they name."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from breakeven.engine import cache, openai_url
from breakeven.engine.backend import Backend
from breakeven.engine.llama_cpp import LlamaCppServer
from breakeven.engine.source import Source, parse_source
from breakeven.errors import EngineError, UserError
from breakeven.spec.formats import tensor_types


@dataclass(frozen=True, slots=True)
class Running:
    """A candidate that answers. `path` is its weight file, None behind a URL."""

    source: Source
    backend: Backend
    path: Path | None
    alive: Callable[[], None]

    @property
    def name(self) -> str:
        """The candidate's name in every table."""
        return self.source.name


def weights_of(source: Source, format_name: str, seed: int, progress: Callable[[int, int], None] | None) -> Path | None:
    """The weight file of a candidate, synthesised into the cache if need be; None for a URL."""
    if source.path is not None or source.url is not None:
        return source.path
    assert source.spec is not None
    tensor_types(source.spec, format_name)  # an unknown format is refused before anything is written
    return cache.provide(source.spec, format_name, seed=seed, progress=progress)


def gguf_of(text: str, format_name: str = "Q4_K_M") -> Path:
    """The weight file that MODEL means: itself, or synthetic weights of its shape. Raises UserError for a URL."""
    source = parse_source(text)
    path = weights_of(source, format_name, 0, None)
    if path is None:
        raise UserError(f"{text}: what runs behind a URL cannot be looked into; give a .gguf file or a model's name")
    return path


def start(
    stack: ExitStack,
    source: Source,
    path: Path | None,
    *,
    context: int,
    slots: int,
    log: Path,
    threads: int | None,
    wait_policy: Literal["passive"] | None = None,
) -> Running:
    """Start or connect to a candidate; the engine stops when `stack` closes.

    `wait_policy` "passive" lets the engine's threads sleep at barriers, for a machine that has other work.
    """
    if source.url is not None:
        return Running(source, openai_url.connect(source.url), None, lambda: None)
    assert path is not None
    server = LlamaCppServer(
        path, context=context, slots=slots, log=log, name=source.name, threads=threads, wait_policy=wait_policy
    )
    backend = stack.enter_context(server)
    return Running(source, backend, path, lambda: _check(server))


def _check(server: LlamaCppServer) -> None:
    """A request can fail a moment before the process is seen to have ended."""
    server.check_alive()
    if server.memory() is None:
        time.sleep(0.2)
        server.check_alive()
        raise EngineError("llama.cpp stopped answering; run again with --resume")
