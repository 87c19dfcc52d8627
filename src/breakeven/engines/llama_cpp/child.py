"""The child process that runs llama.cpp's server: `python -m breakeven.engines.llama_cpp.child URL_FD`.

`ServerSettings` arrive as one line of JSON on standard input, which then stays open: its end means the parent is gone.
`ServerReady` leaves through file descriptor URL_FD. Standard output and error are the log, because llama.cpp writes
there from C.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from typing import Any

import msgspec

from breakeven.engines.devices import EngineDevice, devices_of_library
from breakeven.engines.family import die_with_parent
from breakeven.engines.llama_cpp.report import experts_pattern
from breakeven.hardware.placement import AUTO, Placement
from breakeven.hardware.system import open_inherited

KvType = str
"""A type of ggml's that llama.cpp keeps keys and values in, such as f16 or q8_0."""
ALL_LAYERS = 9999
"""More than any model has: all of them and the output head."""
VERBOSE = 4
"""llama.cpp's log level that tells what model and context are made of; its server's own is 3."""


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides how the engine runs; nothing is left to a default that could differ by machine.

    `name` is what `/v1/models` calls the model. `context` is in tokens per slot; `slots` is how many sequences decode
    at once. `batch` and `micro_batch` are in tokens. `flash_attention` None lets llama.cpp decide. `prompt_cache` keeps
    a slot's last prompt for requests that do not say themselves. `embeddings` answers `/v1/embeddings` too, for a
    larger output buffer. `verbose` logs what is loaded and reserved, as is done anyway where there is a GPU. `key`:
    what whoever asks it must know; it comes with these settings, so that no command line and no environment holds it.
    """

    model: str
    name: str
    threads: int
    context: int
    slots: int
    batch: int = 2048
    micro_batch: int = 512
    flash_attention: bool | None = None
    kv_type: KvType = "f16"
    placement: Placement = AUTO
    repack: bool = True
    prompt_cache: bool = False
    embeddings: bool = False
    verbose: bool = False
    key: str | None = None
    parent_pid: int = 0

    def as_strings(self) -> dict[str, str]:
        """The settings as a report shows them."""
        flash = {None: "auto", True: "on", False: "off"}[self.flash_attention]
        return {
            "threads": str(self.threads),
            "context_per_slot": str(self.context),
            "slots": str(self.slots),
            "batch": str(self.batch),
            "micro_batch": str(self.micro_batch),
            "flash_attention": flash,
            "kv_type": self.kv_type,
            "gpu_layers": str(self.placement.gpu_layers),
            "repack": "on" if self.repack else "off",
            "prompt_cache": "on" if self.prompt_cache else "off",
        }


class ServerReady(msgspec.Struct, frozen=True, kw_only=True):
    """The child's one message: where it listens and what it is built from."""

    url: str
    engine_version: str
    ggml_version: str
    ggml_commit: str
    kernels: str
    devices: tuple[EngineDevice, ...] = ()


def main() -> None:
    """Serve until the parent dies or kills us."""
    url_fd = open_inherited(sys.argv[1])
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=ServerSettings)
    die_with_parent(settings.parent_pid, watch_input=True)
    server, ready = _start(settings)
    with os.fdopen(url_fd, "wb") as pipe:
        pipe.write(msgspec.json.encode(ready))
    # The main thread keeps `server` alive; the engine runs in threads of its own.
    threading.Event().wait()
    del server


def _start(settings: ServerSettings) -> tuple[Any, ServerReady]:
    """Load the model and listen on a free loopback port. Raises RuntimeError when llama.cpp refuses."""
    import xllamacpp as engine

    params = engine.CommonParams()
    params.model.path = settings.model
    params.model_alias = {settings.name}  # not its path, which is nobody's business
    params.n_ctx = settings.context * settings.slots
    params.n_parallel = settings.slots
    params.n_batch = settings.batch
    params.n_ubatch = settings.micro_batch
    params.cpuparams.n_threads = settings.threads
    params.cpuparams_batch.n_threads = settings.threads
    params.no_extra_bufts = not settings.repack
    kv_type = getattr(engine.ggml_type, f"GGML_TYPE_{settings.kv_type.upper()}")
    params.cache_type_k = kv_type
    params.cache_type_v = kv_type
    flash = {None: "AUTO", True: "ENABLED", False: "DISABLED"}[settings.flash_attention]
    params.flash_attn_type = getattr(engine.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
    # Unless asked for, every request starts cold: nothing of an earlier prompt is kept, matched or copied aside.
    params.cache_prompt = settings.prompt_cache
    params.cache_idle_slots = False
    params.cache_ram_mib = 0
    params.n_ctx_checkpoints = 0
    params.endpoint_metrics = True
    params.embedding = settings.embeddings
    params.ui = False
    devices = devices_of_library()
    gpus = [device for device in devices if device.is_gpu]
    _place(engine, params, settings.placement, gpus)
    if settings.verbose or gpus:  # where a model lies is only told with what is loaded and reserved
        params.verbosity = VERBOSE
    if settings.key:
        params.api_keys = [settings.key]
    params.hostnames = ["127.0.0.1"]
    params.port = 0

    server = engine.Server(params)
    library = ctypes.CDLL(engine.xllamacpp.__file__)
    kernels = re.findall(r"(\w+) = 1", engine.get_system_info())
    return server, ServerReady(
        url=server.listening_address,
        engine_version=engine.__version__,
        ggml_version=_c_string(library, "ggml_version"),
        ggml_commit=_c_string(library, "ggml_commit"),
        kernels=" ".join(kernels),
        devices=devices,
    )


def _place(engine: Any, params: Any, placement: Placement, gpus: list[EngineDevice]) -> None:
    """Put the model where it was asked to lie; what this build cannot do was refused before."""
    # What ran must be what was asked: no silent refitting to the memory found free.
    params.fit_params = bool(gpus) and placement.fitted
    if not gpus:
        params.n_gpu_layers = 0
        return
    if not placement.fitted:
        whole = placement.gpu_layers in ("auto", "all")
        params.n_gpu_layers = ALL_LAYERS if whole else placement.gpu_layers
    overrides = list(placement.overrides)
    if isinstance(placement.cpu_moe, int) and placement.cpu_moe > 0:
        overrides.append(experts_pattern(placement.cpu_moe) + "=CPU")
    if overrides:
        params.tensor_buft_overrides = ",".join(overrides)
    wanted = [place.lower() for place in placement.devices]
    used = [i for i, gpu in enumerate(gpus) if not wanted or gpu.place.lower() in wanted]
    if len(used) == 1 and len(gpus) > 1:
        params.split_mode = engine.llama_split_mode.LLAMA_SPLIT_MODE_NONE
        params.main_gpu = used[0]
    elif placement.tensor_split or len(used) < len(gpus):
        given = iter(placement.tensor_split or [1.0] * len(used))
        shares = [next(given, 0.0) if i in used else 0.0 for i in range(len(gpus))]
        params.tensor_split = shares + [0.0] * (len(params.tensor_split) - len(shares))


def _c_string(library: ctypes.CDLL, name: str) -> str:
    try:
        function = getattr(library, name)
    except AttributeError:
        return "unknown"
    function.restype = ctypes.c_char_p
    return (function() or b"unknown").decode(errors="replace")


if __name__ == "__main__":
    main()
