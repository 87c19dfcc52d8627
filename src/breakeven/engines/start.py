"""Bring candidates up: write or find their weights, start their servers, or connect to the one they name."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from breakeven.engines import cache, openai_url
from breakeven.engines.backend import LLAMA_CPP, LLAMA_SERVER, LM_STUDIO, MLX, OLLAMA, SGLANG, VLLM, Backend
from breakeven.engines.borrowed import refuse_placement
from breakeven.engines.keeper import KeptEngine
from breakeven.engines.llama_cpp.binary import LlamaServer
from breakeven.engines.llama_cpp.server import LlamaCppServer
from breakeven.engines.lm_studio import LmStudioModel
from breakeven.engines.memory import MemoryCheck, check_memory, check_memory_of_binary
from breakeven.engines.mlx import server as mlx_server
from breakeven.engines.ollama import OllamaModel
from breakeven.engines.sglang import SglangServer
from breakeven.engines.source import Source, parse_source, weight_format
from breakeven.engines.vllm import directory as vllm_directory
from breakeven.engines.vllm.server import VllmServer
from breakeven.errors import EngineError, UserError
from breakeven.hardware.placement import AUTO, Placement
from breakeven.model.arithmetic import kv_bytes
from breakeven.model.formats.named import default_kv, gguf_types, kv_element_bytes, kv_for
from breakeven.model.resolve import split_format

Progress = Callable[[int, int], None]
WaitPolicy = Literal["passive"] | None


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


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine Breakeven can start. `formats` are the weight formats it can be given, None for all.

    `check_memory` refuses candidates that do not fit together; None where only the engine knows its device.
    `weights` finds or writes what the server loads; `server` is that server, not yet started.
    """

    name: str
    default_format: str
    formats: tuple[str, ...] | None
    check_memory: MemoryCheck | None
    weights: Callable[[Source, str, int, Progress | None], Path]
    server: Callable[[Source, Path, Serving], KeptEngine]


@dataclass(frozen=True, slots=True)
class Serving:
    """How a candidate is served: tokens a sequence, sequences at once, the engine's log, its threads, its caches.

    `kv`: the type of keys and values. `embeddings`: it answers `/v1/embeddings` too. `environment`: all it gets to see;
    None: what this process has. `placement`: what is to lie where. `arguments`: further flags of the user's.
    """

    context: int
    slots: int
    log: Path
    threads: int | None
    wait_policy: WaitPolicy
    share_prefixes: bool
    embeddings: bool = False
    environment: Mapping[str, str] | None = None
    kv: str = "f16"
    placement: Placement = AUTO
    arguments: tuple[str, ...] = ()


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

    A directory with weights has the format it has.
    """
    if engine.weights is not _gguf and (stored := vllm_directory.stored_format(source.text, source.spec)):
        return stored
    reader = LLAMA_CPP if engine.weights is _gguf else engine.name  # whatever its name, llama.cpp reads the file
    found = weight_format(source, asked, reader, engine.default_format)
    unasked = source.format_name is None and asked is None
    return engine.default_format if unasked and engine.formats is not None and found not in engine.formats else found


def stored_in(source: Source) -> str | None:
    """The format of the directory with weights that a candidate is; None for everything else."""
    return vllm_directory.stored_format(source.text, source.spec)


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


def gguf_of(text: str, format_name: str | None = None) -> Path:
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
    wait_policy: WaitPolicy = None,
    engine: str = LLAMA_CPP,
    share_prefixes: bool = False,
    embeddings: bool = False,
    environment: Mapping[str, str] | None = None,
    kv: str = "f16",
    placement: Placement = AUTO,
    arguments: tuple[str, ...] = (),
) -> Running:
    """Start or connect to a candidate; the engine stops when `stack` closes.

    `path` is what `weights_of` gave for this `engine`. `wait_policy` "passive" lets the engine's threads sleep at
    barriers, for a machine that has other work. `share_prefixes` keeps the keys and values of earlier prompts; without,
    every request starts cold unless it says otherwise. What else there is: as in `Serving`.
    """
    if source.url is not None:
        return Running(source, openai_url.connect(source.url), None, lambda: None)
    assert path is not None
    kind = engine_named(engine)
    serving = Serving(
        context, slots, log, threads, wait_policy, share_prefixes, embeddings, environment, kv, placement, arguments
    )
    server = kind.server(source, path, serving)
    backend = stack.enter_context(server)
    return Running(source, backend, path if path.is_file() else None, lambda: _check(kind.name, server))


def engine_named(name: str) -> Engine:
    """The engine of this name. Raises UserError that lists those there are."""
    try:
        return ENGINES[name]
    except KeyError:
        near = difflib.get_close_matches(name.lower(), ENGINES, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"no engine is called {name!r}{hint} (there are: {', '.join(ENGINES)})") from None


def _check(engine: str, server: KeptEngine) -> None:
    """A request can fail a moment before the process is seen to have ended."""
    server.check_alive()
    if server.ours and server.memory() is None:
        time.sleep(0.2)
        server.check_alive()
        raise EngineError(f"{engine} stopped answering; run again with --resume")


def _gguf(source: Source, format_name: str, seed: int, progress: Progress | None) -> Path:
    if source.path is not None:
        return source.path
    assert source.spec is not None
    gguf_types(source.spec, format_name)  # what llama.cpp cannot read is refused before anything is written
    return cache.provide(source.spec, format_name, seed=seed, progress=progress)


def _llama_cpp(source: Source, path: Path, serving: Serving) -> KeptEngine:
    if serving.arguments:
        raise UserError(f"{serving.arguments[0]}: the embedded llama.cpp takes no flags; give --engine {LLAMA_SERVER}")
    return LlamaCppServer(
        path,
        context=serving.context,
        slots=serving.slots,
        log=serving.log,
        name=source.name,
        threads=serving.threads,
        wait_policy=serving.wait_policy,
        prompt_cache=serving.share_prefixes,
        embeddings=serving.embeddings,
        environment=serving.environment,
        placement=serving.placement,
        kv_type=serving.kv,
        # llama.cpp reads quantised values in its flash attention alone, and left to choose it may not take that.
        flash_attention=True if kv_element_bytes(serving.kv) < 2 else None,
    )


def _llama_server(source: Source, path: Path, serving: Serving) -> KeptEngine:
    return LlamaServer(
        path,
        context=serving.context,
        slots=serving.slots,
        log=serving.log,
        name=source.name,
        threads=serving.threads,
        wait_policy=serving.wait_policy,
        prompt_cache=serving.share_prefixes,
        embeddings=serving.embeddings,
        environment=serving.environment,
        kv_type=serving.kv,
        flash_attention=True if kv_element_bytes(serving.kv) < 2 else None,
        random_weights=source.synthetic,
        placement=serving.placement,
        arguments=serving.arguments,
    )


def _directory(source: Source, format_name: str, seed: int, progress: Progress | None) -> Path:
    """vLLM draws dummy weights itself, always the same, so `seed` has no part in them."""
    return vllm_directory.provide(split_format(source.text)[0], source.spec, format_name)


def _vllm(source: Source, path: Path, serving: Serving) -> KeptEngine:
    refuse_placement(serving.placement, "vLLM", _BY_ITSELF)
    real = vllm_directory.has_weights(path)
    dtype = "auto" if real else vllm_directory.dtype_of(path)
    # Four bytes an element is the most that a flag of the user's can make of it.
    cache_bytes = kv_bytes(source.spec, serving.context, 4) * serving.slots if source.spec else 0
    return VllmServer(
        path,
        context=serving.context,
        slots=serving.slots,
        log=serving.log,
        name=source.name,
        threads=serving.threads,
        wait_policy=serving.wait_policy,
        dtype=dtype,
        prefix_caching=serving.share_prefixes,
        environment=serving.environment,
        load_format="auto" if real else "dummy",
        # A quarter more, because vLLM hands out its cache in blocks.
        kv_cache_gib=max(1, math.ceil(1.25 * cache_bytes / 2**30)),
        arguments=(*_vllm_kv(serving.kv, source), *serving.arguments),
    )


def _vllm_kv(kv: str, source: Source) -> tuple[str, ...]:
    return ("--kv-cache-dtype", _VLLM_KV.get(kv, kv)) if _said_of(kv, source) else ()


def _said_of(kv: str, source: Source) -> bool:
    """Whether a type must be said: 16 bits are what an engine takes unasked, unless a checkpoint asks for less."""
    asks = source.spec is not None and source.spec.kv_cache is not None
    return kv != "f16" or (asks and stored_in(source) is not None)


_VLLM_KV = {"bf16": "bfloat16", "f16": "bfloat16"}
"""vLLM's word where it is another."""
_BY_ITSELF = "it places a model by itself; leave it out"


def _mlx_directory(source: Source, format_name: str, seed: int, progress: Progress | None) -> Path:
    return mlx_server.provide(split_format(source.text)[0], source.spec, format_name, seed, progress)


def _mlx(source: Source, path: Path, serving: Serving) -> KeptEngine:
    refuse_placement(serving.placement, "MLX", _BY_ITSELF)
    return mlx_server.MlxServer(
        path,
        context=serving.context,
        slots=serving.slots,
        log=serving.log,
        name=source.name,
        prompt_cache=serving.share_prefixes,
        environment=serving.environment,
        arguments=serving.arguments,
    )


def _sglang(source: Source, path: Path, serving: Serving) -> KeptEngine:
    refuse_placement(serving.placement, "SGLang", _BY_ITSELF)
    real = vllm_directory.has_weights(path)
    return SglangServer(
        path,
        context=serving.context,
        slots=serving.slots,
        log=serving.log,
        name=source.name,
        dtype="auto" if real else vllm_directory.dtype_of(path),
        load_format="auto" if real else "dummy",
        prefix_caching=serving.share_prefixes,
        kv_dtype=_SGLANG_KV.get(serving.kv) if _said_of(serving.kv, source) else None,
        environment=serving.environment,
        arguments=serving.arguments,
    )


_SGLANG_KV = {"bf16": "bfloat16", "f16": "bfloat16", "fp8": "fp8_e4m3"}
"""SGLang's words for what is not the model's own type."""


def _ollama(source: Source, path: Path, serving: Serving) -> KeptEngine:
    _refuse_flags(serving, "Ollama")
    return OllamaModel(
        path,
        context=serving.context,
        slots=serving.slots,
        log=serving.log,
        threads=serving.threads,
        name=source.name,
        tokenizer=_tokenizer(source),
        placement=serving.placement,
        layers=len(source.spec.layers) + 1 if source.spec else None,
    )


def _lm_studio(source: Source, path: Path, serving: Serving) -> KeptEngine:
    _refuse_flags(serving, "LM Studio")
    return LmStudioModel(
        path,
        context=serving.context,
        slots=serving.slots,
        log=serving.log,
        name=source.name,
        tokenizer=_tokenizer(source),
        placement=serving.placement,
    )


def _refuse_flags(serving: Serving, title: str) -> None:
    if serving.arguments:
        raise UserError(f"{' '.join(serving.arguments)}: {title} runs already and takes no flags; leave them out")


def _tokenizer(source: Source) -> Path | None:
    """What counts the tokens of a synthetic file, where its engine does not."""
    return cache.byte_tokenizer(source.spec.vocab) if source.synthetic and source.spec else None


ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(LLAMA_CPP, "Q4_K_M", None, check_memory, _gguf, _llama_cpp),
        Engine(LLAMA_SERVER, "Q4_K_M", None, check_memory_of_binary, _gguf, _llama_server),
        Engine(VLLM, "BF16", tuple(vllm_directory.FORMATS), None, _directory, _vllm),
        Engine(SGLANG, "BF16", tuple(vllm_directory.FORMATS), None, _directory, _sglang),
        Engine(OLLAMA, "Q4_K_M", None, None, _gguf, _ollama),
        Engine(LM_STUDIO, "Q4_K_M", None, None, _gguf, _lm_studio),
        Engine(MLX, "MLX4", mlx_server.FORMATS, None, _mlx_directory, _mlx),
    )
}
"""The engines that `--engine` may name."""
