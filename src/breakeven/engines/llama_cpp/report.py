"""What llama.cpp's log tells of a model that was loaded: what lies where, and why it failed.

Builds differ in the words; the patterns here read those of llama.cpp from 2024 on and of ik_llama.cpp. Memory is what
the buffers say: a mapped file counts the whole range of it that host memory stands for.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from pathlib import Path

from breakeven.engines.keeper import log_lines
from breakeven.hardware.placement import HOST, MemoryAt, Placed, Placement

_EXPERTS = r"ffn_(up|down|gate_up|gate)_(ch|)exps"
"""Routed experts among a layer's tensors, as llama.cpp's `--n-cpu-moe` names them (common/common.h)."""

_BUFFER = re.compile(r"\s(\S+?(?:\[[^\]]*\])?) +(?:(model|KV|RS|compute|output) )?buffer size *= *([\d.]+) MiB")
_HOST = re.compile(r"^(CPU|BLAS|AMX|Host\b)|_Host$|_Host_")
_KIND_OF_MEMORY = re.compile(r"(_Mapped|_Private|_Split|\[.*\])$")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_LOADING = "loading model tensors"
_LOADED = re.compile(r"model loaded|all slots are idle|stop processing")
_LOG_LAG_S, _LOG_POLL_S = 10.0, 0.02
_FITTED = "fitting params to free memory took"
_FIT_ROW = re.compile(r" - (\S+).*?: +(\d+) layers(?: \( *(\d+) overflowing\))?, +-?\d+ MiB used")
_EXPERT_COUNT = re.compile(r"\bn_expert += (\d+)")
_DENSE_LEAD = re.compile(r"\bn_layer_dense_lead += (\d+)")
_LOG_LINES = 6
_LOG_TAIL_BYTES = 65_536
_TIMESTAMP = re.compile(r"^\d+(\.\d+)+ [A-Z] ")
_MIB = 2**20

_OUT_OF_MEMORY = re.compile(
    r"ErrorOutOfDeviceMemory|(cuda|hip|musa)Malloc failed|CUDA error: out of memory|failed to allocate|"
    r"unable to allocate|kIOGPUCommandBufferCallbackErrorOutOfMemory|UR_RESULT_ERROR_OUT_OF_(DEVICE|HOST)_MEMORY"
)
_ERROR = re.compile(
    r"^(GGML_ASSERT|terminate called|error\b|\S*error:|CUDA error|llama_model_load: error|AMX is not ready)"
)


def experts_pattern(layers: int) -> str:
    """The routed experts of the first `layers` layers, as a pattern of tensor names."""
    return rf"blk\.({'|'.join(map(str, range(layers)))})\.{_EXPERTS}"


def read_placed(log: Path, asked: Placement) -> Placed | None:
    """`placed_of` that engine's log, as soon as that tells that the model is loaded.

    llama.cpp writes its log in a thread of its own, which on a busy disk comes after the first answer: what is not yet
    there is not what was not said. A build that says no such thing is waited for 10 s.
    """
    deadline = time.monotonic() + _LOG_LAG_S
    while True:
        said = log.read_text(errors="replace") if log.is_file() else ""
        if _LOADED.search(said) or time.monotonic() > deadline:
            return placed_of(said, asked)
        time.sleep(_LOG_POLL_S)


def placed_of(log: str, asked: Placement) -> Placed | None:
    """Where the model lies, read from the log of its loading; None when that tells neither layers nor buffers."""
    head, found, _ = log.partition(_FITTED)
    fit = head if found else ""
    start = log.find(_LOADING, len(fit))
    loaded = log[max(start, 0) :]
    memory = _memory(loaded)
    offloaded = _OFFLOADED.search(loaded)
    if offloaded is None and not memory:
        return None
    gpu_layers, layers = (int(offloaded[1]), int(offloaded[2])) if offloaded else (0, None)
    return Placed(
        how="fitted" if asked.fitted else "asked",
        gpu_layers=gpu_layers,
        layers=layers,
        cpu_moe=_layers_with_experts_in_host_memory(log, fit, asked, gpu_layers, layers),
        memory=memory,
    )


def _memory(loaded: str) -> list[MemoryAt]:
    """By place, devices in the order of their buffers and the host last."""
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, kind, mib in _BUFFER.findall(loaded):
        place = HOST if _HOST.search(name) else _KIND_OF_MEMORY.sub("", name)
        sums[place][kind or "model"] += float(mib) * _MIB
    return [
        MemoryAt(
            place=place,
            weights_bytes=round(found["model"]),
            kv_bytes=round(found["KV"] + found["RS"]),
            compute_bytes=round(found["compute"] + found["output"]),
        )
        for place, found in sorted(sums.items(), key=lambda item: item[0] == HOST)
    ]


def _layers_with_experts_in_host_memory(
    log: str, fit: str, asked: Placement, gpu_layers: int, layers: int | None
) -> int | None:
    """Those in whole or in part; None of a model without experts, or when it cannot be told."""
    experts = _EXPERT_COUNT.search(log)
    if experts is None or int(experts[1]) == 0 or layers is None:
        return None
    lead = _DENSE_LEAD.search(log)
    # The output head counts as a layer, and the last layers go to the devices first.
    with_experts = set(range(int(lead[1]) if lead else 0, layers - 1))
    on_host = set(range(layers - gpu_layers))
    if asked.fitted:
        rows = {row[1]: (int(row[2]), row[3]) for row in _FIT_ROW.finditer(fit)}
        if not rows:  # "no changes needed"
            return len(on_host & with_experts)
        if any(part is None for _, part in rows.values()):  # not even all dense parts went to the devices
            return len(with_experts)
        parts = sum(int(part or 0) for _, part in rows.values())
        return min(len(with_experts), len(on_host & with_experts) + parts)
    if isinstance(asked.cpu_moe, int):
        on_host |= set(range(asked.cpu_moe))
    host_patterns = [pattern for pattern, _, place in (o.rpartition("=") for o in asked.overrides) if place == "CPU"]
    for layer in with_experts:
        names = [f"blk.{layer}.ffn_{part}_exps.weight" for part in ("up", "down", "gate", "gate_up")]
        if any(re.search(pattern, name) for pattern in host_patterns for name in names):
            on_host.add(layer)
    return len(on_host & with_experts)


def log_tail(log: Path, lines: int = _LOG_LINES) -> list[str]:
    """The last `lines` lines of an engine's log, those that llama.cpp marks as errors when there are any."""
    found = log_lines(log, _LOG_TAIL_BYTES)
    errors = [line for line in found if " E " in line[:16] or _ERROR.match(line)]
    return [_TIMESTAMP.sub("", line) for line in (errors or found)[-lines:]]


def last_words(log: Path) -> str:
    """The last log lines that matter, as the tail of an error's one line, and what to do where they tell it."""
    lines = log_tail(log)
    if not lines:
        return f"; its log {log} is empty"
    full = any(_OUT_OF_MEMORY.search(line) for line in log_lines(log, _LOG_TAIL_BYTES))
    advice = (
        "; the device ran out of memory: give fewer --gpu-layers, a larger --cpu-moe, fewer sequences at once or a "
        "shorter context"
        if full
        else ""
    )
    return f"; its log {log} ends: {' | '.join(lines)}{advice}"
