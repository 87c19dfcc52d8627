"""What is asked of a llama.cpp server, and what it reports back: the two messages between parent and child."""

from __future__ import annotations

import os
from typing import Literal

import msgspec

KvType = Literal["f16", "bf16", "f32", "q8_0", "q4_0"]


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides how the engine runs; nothing is left to a default that could differ by machine.

    `name` is what `/v1/models` calls the model. `context` is in tokens per slot; `slots` is how many sequences decode
    at once. `batch` and `micro_batch` are in tokens. `flash_attention` None lets llama.cpp decide. `gpu_layers` -1
    offloads every layer. `prompt_cache` keeps a slot's last prompt for requests that do not say themselves.
    `embeddings` answers `/v1/embeddings` too, for a larger output buffer.
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
    gpu_layers: int = 0
    repack: bool = True
    prompt_cache: bool = False
    embeddings: bool = False
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
            "gpu_layers": str(self.gpu_layers),
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


def available_threads() -> int:
    """CPUs this process may run on, which a container or `taskset` can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
