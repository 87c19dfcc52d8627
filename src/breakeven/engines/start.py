"""Bring candidates up: write or find their weights, start their servers, or connect to the one they name."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from breakeven.engines import openai_url
from breakeven.engines.backend import LLAMA_CPP, LLAMA_SERVER, Backend
from breakeven.engines.keeper import KeptEngine
from breakeven.engines.kinds import Engine, Progress, Serving, engine_named, stored_in
from breakeven.engines.source import Source, weight_format
from breakeven.errors import EngineError, UserError
from breakeven.hardware.placement import AUTO, Placement
from breakeven.model.formats.named import default_kv, kv_for
from breakeven.model.resolve import path_of, split_format


@dataclass(frozen=True, slots=True)
class Running:
    """A candidate that answers. `path` is its weight file, None behind a URL or where weights are a directory."""

    source: Source
    backend: Backend
    path: Path | None
    alive: Callable[[], None]

    @property
    def name(self) -> str:
        """The candidate's name in every table."""
        return self.source.name


def weights_of(
    source: Source, format_name: str | None, seed: int, progress: Progress | None, *, engine: str = LLAMA_CPP
) -> Path | None:
    """What `engine` loads for a candidate, written into the cache if need be; None for a URL.

    A GGUF for llama.cpp, the directory of a Hugging Face model for vLLM. `format_name`: where the candidate names none;
    None: its own, else the engine's usual one. Raises UserError for a format or a family that the engine cannot be
    given.
    """
    if source.url is not None:
        return None
    kind = engine_named(engine)
    return kind.weights(source, format_of(source, format_name, kind), seed, progress)


def format_of(source: Source, asked: str | None, engine: Engine) -> str:
    """The weight format a candidate gets: what `weight_format` says, where the engine can be given it unasked.

    A directory with weights has the format it has. Raises UserError for one that this engine cannot read: made-up
    weights of its shape would be measured in its place.
    """
    _refuse_unread(source, engine)
    if not engine.reads_gguf and (stored := stored_in(source)):
        return stored
    reader = LLAMA_CPP if engine.reads_gguf else engine.name  # whatever its name, llama.cpp reads the file
    found = weight_format(source, asked, reader, engine.default_format)
    unasked = source.format_name is None and asked is None
    return engine.default_format if unasked and engine.formats is not None and found not in engine.formats else found


def _refuse_unread(source: Source, engine: Engine) -> None:
    """Raise UserError for a directory whose own weights `engine` would not run."""
    given = Path(split_format(source.text)[0])
    if not source.synthetic or not path_of(str(given)).is_dir():
        return
    if stored_in(source) is not None:
        if engine.reads_gguf:
            raise UserError(
                f"{source.text} holds weights, which {engine.name} takes as GGUF: `breakeven export {given} --to gguf "
                f"--out {given.name or 'model'}.gguf`; or name an engine that takes directories (--engine mlx, vllm, "
                f"sglang), or give {given / 'config.json'} for made-up weights of its shape"
            )
        return
    graph = next((each.name for kind in ("*.onnx", "*.tflite") for each in path_of(str(given)).glob(kind)), None)
    if graph is not None:
        kind = "an ONNX" if graph.endswith(".onnx") else "a LiteRT"
        raise UserError(
            f"{source.text} holds {kind} graph ({graph}), which no engine here serves; give the model that it was made "
            "of (its proof.json says how fast both ran)"
        )


def kv_type(sources: Sequence[Source], engine: str, asked: str | None) -> str:
    """The type of keys and values that `engine` starts these candidates with; `asked` None: 16 bits.

    But for directories with weights that all ask for another, in an engine that does as they say. Raises UserError for
    what an engine that runs already, or the engine named, cannot be told.
    """
    if asked is None:
        own = {
            default_kv(source.spec, engine, stored) if source.spec and (stored := stored_in(source)) else "f16"
            for source in sources
        }
        return own.pop() if len(own) == 1 else "f16"
    if any(source.url is not None for source in sources):
        raise UserError("--kv: a server keeps keys and values in the type it was started with; leave --kv out")
    reads = LLAMA_CPP if engine == LLAMA_SERVER else engine
    found = {kv_for(reads, asked, source.spec) for source in sources}
    return found.pop() if found else "f16"


def gguf_of(source: Source, progress: Progress | None = None) -> Path:
    """The weight file that MODEL means: itself, or synthetic weights of its shape. Raises UserError for a URL."""
    path = weights_of(source, None, 0, progress)
    if path is None:
        raise UserError(
            f"{source.text}: what runs behind a URL cannot be looked into; give a .gguf file or a model's name"
        )
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
    engine: str = LLAMA_CPP,
    share_prefixes: bool = False,
    embeddings: bool = False,
    environment: Mapping[str, str] | None = None,
    kv: str = "f16",
    placement: Placement = AUTO,
    arguments: tuple[str, ...] = (),
    key: str | None = None,
    chat: bool = False,
) -> Running:
    """Start or connect to a candidate; the engine stops when `stack` closes.

    `path` is what `weights_of` gave for this `engine`. `share_prefixes` keeps the keys and values of earlier prompts;
    without, every request starts cold unless it says otherwise. `key`: what whoever asks it must know, where it is an
    engine that can be told one. `chat`: a server is asked for chat alone. What else there is: as in `Serving`.
    """
    if source.url is not None:
        return Running(source, openai_url.connect(source.url, chat=chat), None, lambda: None)
    assert path is not None
    kind = engine_named(engine)
    kind.check_placement(placement, arguments)
    serving = Serving(context, slots, log, threads, share_prefixes, embeddings, environment, kv, placement, arguments)
    server = kind.server(source, path, serving)
    server.key = key if server.ours else None
    backend = stack.enter_context(server)
    return Running(source, backend, path if path.is_file() else None, lambda: _check(kind.name, server))


def _check(engine: str, server: KeptEngine) -> None:
    """A request can fail a moment before the process is seen to have ended."""
    server.check_alive()
    if server.ours and server.memory() is None:
        time.sleep(0.2)
        server.check_alive()
        raise EngineError(f"{engine} stopped answering; run again with --resume")
