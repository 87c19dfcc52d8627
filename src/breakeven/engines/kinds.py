"""The engines that can be started, by name: what each loads, how its server is made, and what it refuses beforehand."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from breakeven.engines import cache
from breakeven.engines.backend import LLAMA_CPP, LLAMA_SERVER, LM_STUDIO, MLX, OLLAMA, SGLANG, VLLM
from breakeven.engines.borrowed import refuse_placement
from breakeven.engines.devices import check_embedded, check_user_binary
from breakeven.engines.keeper import KeptEngine
from breakeven.engines.llama_cpp.binary import LlamaServer
from breakeven.engines.llama_cpp.server import LlamaCppServer
from breakeven.engines.lm_studio import LmStudioModel
from breakeven.engines.lm_studio import refuse as lm_studio_refuses
from breakeven.engines.memory import MemoryCheck, check_memory, check_memory_of_binary
from breakeven.engines.mlx import server as mlx_server
from breakeven.engines.ollama import OllamaModel
from breakeven.engines.ollama import refuse as ollama_refuses
from breakeven.engines.sglang import SglangServer
from breakeven.engines.source import Source
from breakeven.engines.vllm import directory as vllm_directory
from breakeven.engines.vllm.server import VllmServer
from breakeven.errors import UserError
from breakeven.hardware.placement import AUTO, Placement
from breakeven.model.arithmetic import kv_bytes
from breakeven.model.formats.named import gguf_types, kv_element_bytes
from breakeven.model.resolve import split_format

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine Breakeven can start. `formats` are the weight formats it can be given, None for all.

    `check_memory` refuses candidates that do not fit together; None where only the engine knows its device.
    `weights` finds or writes what the server loads; `server` is that server, not yet started. `check_placement` refuses
    a placement, or flags, that it cannot be given here, before anything is written.
    """

    name: str
    default_format: str
    formats: tuple[str, ...] | None
    check_memory: MemoryCheck | None
    weights: Callable[[Source, str, int, Progress | None], Path]
    server: Callable[[Source, Path, Serving], KeptEngine]
    check_placement: Callable[[Placement, Sequence[str]], None]

    @property
    def reads_gguf(self) -> bool:
        """Whether what it loads is a GGUF file, whatever its name."""
        return self.weights is _gguf


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
    share_prefixes: bool
    embeddings: bool = False
    environment: Mapping[str, str] | None = None
    kv: str = "f16"
    placement: Placement = AUTO
    arguments: tuple[str, ...] = ()


def engine_named(name: str) -> Engine:
    """The engine of this name. Raises UserError that lists those there are."""
    try:
        return ENGINES[name]
    except KeyError:
        near = difflib.get_close_matches(name.lower(), ENGINES, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"no engine is called {name!r}{hint} (there are: {', '.join(ENGINES)})") from None


def stored_in(source: Source) -> str | None:
    """The format of the directory with weights that a candidate is; None for everything else."""
    return vllm_directory.stored_format(source.text, source.spec)


def _gguf(source: Source, format_name: str, seed: int, progress: Progress | None) -> Path:
    if source.path is not None:
        return source.path
    assert source.spec is not None
    gguf_types(source.spec, format_name)  # what llama.cpp cannot read is refused before anything is written
    return cache.provide(source.spec, format_name, seed=seed, progress=progress)


def _llama_cpp(source: Source, path: Path, serving: Serving) -> KeptEngine:
    _embedded_takes_no(serving.arguments)
    return LlamaCppServer(
        path,
        context=serving.context,
        slots=serving.slots,
        log=serving.log,
        name=source.name,
        threads=serving.threads,
        prompt_cache=serving.share_prefixes,
        embeddings=serving.embeddings,
        environment=serving.environment,
        placement=serving.placement,
        kv_type=serving.kv,
        # llama.cpp reads quantised values in its flash attention alone, and left to choose it may not take that.
        flash_attention=True if kv_element_bytes(serving.kv) < 2 else None,
    )


def _embedded_takes_no(flags: Sequence[str]) -> None:
    if flags:
        raise UserError(f"{flags[0]}: the embedded llama.cpp takes no flags; give --engine {LLAMA_SERVER}")


def _check_embedded(placement: Placement, flags: Sequence[str]) -> None:
    _embedded_takes_no(flags)
    check_embedded(placement)


def _llama_server(source: Source, path: Path, serving: Serving) -> KeptEngine:
    return LlamaServer(
        path,
        context=serving.context,
        slots=serving.slots,
        log=serving.log,
        name=source.name,
        threads=serving.threads,
        prompt_cache=serving.share_prefixes,
        embeddings=serving.embeddings,
        environment=serving.environment,
        kv_type=serving.kv,
        flash_attention=True if kv_element_bytes(serving.kv) < 2 else None,
        random_weights=source.random_weights,
        placement=serving.placement,
        arguments=serving.arguments,
    )


def _directory(source: Source, format_name: str, seed: int, progress: Progress | None) -> Path:
    """vLLM draws dummy weights itself, always the same, so `seed` has no part in them."""
    return vllm_directory.provide(split_format(source.text)[0], source.spec, format_name)


def _vllm(source: Source, path: Path, serving: Serving) -> KeptEngine:
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


def _mlx_directory(source: Source, format_name: str, seed: int, progress: Progress | None) -> Path:
    return mlx_server.provide(split_format(source.text)[0], source.spec, format_name, seed, progress)


def _mlx(source: Source, path: Path, serving: Serving) -> KeptEngine:
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


def _places_itself(title: str) -> Callable[[Placement, Sequence[str]], None]:
    """The check of an engine that has no setting for where a model lies."""
    return lambda placement, flags: refuse_placement(placement, title, "it places a model by itself; leave it out")


def _tokenizer(source: Source) -> Path | None:
    """What counts the tokens of a synthetic file, where its engine does not."""
    return cache.byte_tokenizer(source.spec.vocab) if source.synthetic and source.spec else None


ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(LLAMA_CPP, "Q4_K_M", None, check_memory, _gguf, _llama_cpp, _check_embedded),
        Engine(LLAMA_SERVER, "Q4_K_M", None, check_memory_of_binary, _gguf, _llama_server, check_user_binary),
        Engine(VLLM, "BF16", tuple(vllm_directory.FORMATS), None, _directory, _vllm, _places_itself("vLLM")),
        Engine(SGLANG, "BF16", tuple(vllm_directory.FORMATS), None, _directory, _sglang, _places_itself("SGLang")),
        Engine(OLLAMA, "Q4_K_M", None, None, _gguf, _ollama, lambda placement, _: ollama_refuses(placement)),
        Engine(LM_STUDIO, "Q4_K_M", None, None, _gguf, _lm_studio, lambda placement, _: lm_studio_refuses(placement)),
        Engine(MLX, "MLX4", mlx_server.FORMATS, None, _mlx_directory, _mlx, _places_itself("MLX")),
    )
}
"""The engines that `--engine` may name."""
