"""The child process that runs llama.cpp's server: `python -m breakeven.engines.llama_cpp.child URL_FD`.

Settings arrive as one line of JSON on standard input, which then stays open: its end means the parent is gone. The
URL leaves through file descriptor URL_FD. Standard output and error are the log, because llama.cpp writes there from C.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
from typing import Any

import msgspec

from breakeven.engines.llama_cpp.settings import ServerReady, ServerSettings

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main() -> None:
    """Serve until the parent dies or kills us."""
    url_fd = int(sys.argv[1])
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=ServerSettings)
    _die_with_parent(settings.parent_pid)
    server, ready = _start(settings)
    with os.fdopen(url_fd, "wb") as pipe:
        pipe.write(msgspec.json.encode(ready))
    # The main thread keeps `server` alive; the engine runs in threads of its own.
    threading.Event().wait()
    del server


def _die_with_parent(parent_pid: int) -> None:
    """Arrange to be killed when the parent ends, however it ends.

    On Linux the kernel does it even while the engine holds this process busy loading. Elsewhere, and for a parent
    whose starting thread has ended, the end of standard input does.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above took effect
        os._exit(1)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
    params.n_gpu_layers = settings.gpu_layers
    params.no_extra_bufts = not settings.repack
    kv_type = getattr(engine.ggml_type, f"GGML_TYPE_{settings.kv_type.upper()}")
    params.cache_type_k = kv_type
    params.cache_type_v = kv_type
    flash = {None: "AUTO", True: "ENABLED", False: "DISABLED"}[settings.flash_attention]
    params.flash_attn_type = getattr(engine.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
    # What ran must be what was asked: no silent refitting to the memory found free.
    params.fit_params = False
    # Unless asked for, every request starts cold: nothing of an earlier prompt is kept, matched or copied aside.
    params.cache_prompt = settings.prompt_cache
    params.cache_idle_slots = False
    params.cache_ram_mib = 0
    params.n_ctx_checkpoints = 0
    params.endpoint_metrics = True
    params.embedding = settings.embeddings
    params.ui = False
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
    )


def _c_string(library: ctypes.CDLL, name: str) -> str:
    try:
        function = getattr(library, name)
    except AttributeError:
        return "unknown"
    function.restype = ctypes.c_char_p
    return (function() or b"unknown").decode(errors="replace")


if __name__ == "__main__":
    main()
