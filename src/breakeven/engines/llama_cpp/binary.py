"""The user's own `llama-server`, or ik_llama.cpp's: how it is started and what its log says of where things lie.

What a build does not know is left out after its help was read, so that one three years old starts as well as one from
today; what cannot be left out without running something else than was asked is refused.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from breakeven.engines.backend import LLAMA_SERVER, Backend
from breakeven.engines.devices import (
    Binary,
    EngineDevice,
    check_devices,
    devices_with,
    find_llama_server,
    read_binary,
    spelled,
)
from breakeven.engines.keeper import READY_TIMEOUT_S, KeptEngine, free_port, spin_said, with_spin
from breakeven.engines.llama_cpp.child import ALL_LAYERS
from breakeven.engines.llama_cpp.report import experts_pattern, last_words, read_placed
from breakeven.errors import EngineError, UserError
from breakeven.hardware.placement import AUTO, Placement
from breakeven.hardware.reader import available_threads

OURS = ("--host", "--port", "--model", "-m", "--alias", "-a", "--api-key", "--api-key-file", "--ssl-key-file", "--path")
"""Flags of what Breakeven itself decides; given by the user they would make it ask the wrong server."""
BYTES_BUT_ASCII = range(128, 256)
"""Tokens of synthetic weights that stand for one byte which alone is no UTF-8 (`byte_alphabet`)."""
_PORT_TRIES = 3
_TAKEN = "couldn't bind"


class LlamaServer(KeptEngine):
    """Context manager: starts the user's `llama-server` on one GGUF and gives its `Backend`, with what lies where.

    `context` is tokens a slot, `slots` sequences at once. `placement`: fitted unless it says otherwise. `arguments`
    come after ours. `random_weights`: it generates no bytes that are no text, because builds of mid-2026 answer 500 to
    those (llama.cpp issue 27543). `environment` is all that it gets to see; None: what this process has. What else
    there is: as in `LlamaCppServer`.

    Raises UserError for settings or a placement that cannot be and when there is no llama-server, EngineError (with
    the log's last words) when the model does not load or no token can be computed.
    """

    title = LLAMA_SERVER

    def __init__(
        self,
        model: Path,
        *,
        context: int,
        slots: int,
        log: Path,
        threads: int | None = None,
        batch: int = 2048,
        micro_batch: int = 512,
        flash_attention: bool | None = None,
        kv_type: str = "f16",
        name: str | None = None,
        prompt_cache: bool = False,
        embeddings: bool = False,
        random_weights: bool = False,
        placement: Placement = AUTO,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        threads = available_threads() if threads is None else threads
        for what, number in {"threads": threads, "context": context, "slots": slots, "batch": batch}.items():
            if number < 1:
                raise UserError(f"{what} is {number}; give 1 or more")
        for argument in arguments:
            if (flag := argument.partition("=")[0]) in OURS:
                raise UserError(f"{flag} is for Breakeven to set; leave it out of the flags for {LLAMA_SERVER}")
        super().__init__(name or model.stem, log, ready_timeout_s)
        self.model, self.placement, self.arguments = model, placement, tuple(arguments)
        self._asked: dict[str, str] = {
            "threads": str(threads),
            "context_per_slot": str(context),
            "slots": str(slots),
            "batch": str(batch),
            "micro_batch": str(micro_batch),
            "flash_attention": {None: "auto", True: "on", False: "off"}[flash_attention],
            "kv_type": kv_type,
            "prompt_cache": "on" if prompt_cache else "off",
        }
        self._embeddings = embeddings
        self._random_weights = random_weights
        self._environment = with_spin(os.environ if environment is None else environment)

    def last_words(self) -> str:
        """The last log lines that matter, as the tail of an error's one line."""
        words = last_words(self.log)
        if self._signal() == signal.SIGILL:
            words += "; this build uses instructions this processor does not run: install one made for it"
        return words

    def _bring_up(self) -> Backend:
        if not self.model.is_file():
            raise UserError(f"{self.model} does not exist or is not a file; give the path of a GGUF file")
        environment = dict(self._environment)
        binary = read_binary(find_llama_server(environment))
        devices = devices_with(binary, self.arguments)
        flags = [*self._flags(binary), *placement_flags(binary, devices, self.placement), *self.arguments]
        if self.key:
            environment["LLAMA_API_KEY"] = self.key  # an argument would stand in the list of processes
        barred: list[str] = []
        if self._random_weights and (flag := binary.flag("--logit-bias")) is not None:
            barred = [word for token in BYTES_BUT_ASCII for word in (flag, f"{token}-1000")]
        url, load_s = self._load(binary, [*barred, *flags], environment)
        self._complete_one(url)
        placed = read_placed(self.log, self.placement)
        settings = {
            "engine": LLAMA_SERVER,
            "build": binary.build(),
            **({"built_with": binary.built_with} if binary.built_with else {}),
            "devices": ", ".join(f"{d.place} ({d.description})" for d in devices if d.is_gpu) or "none",
            **self._asked,
            "gpu_layers": str(placed.gpu_layers) if placed and placed.gpu_layers is not None else "unknown",
            "flags": shlex.join(flags),
            **({"generates": "ASCII only"} if barred else {}),
            "wait_policy": spin_said(environment),
        }
        return Backend(url, self.name, None, settings, self._pid, load_s, placed)

    def _load(self, binary: Binary, flags: Sequence[str], environment: Mapping[str, str]) -> tuple[str, float]:
        """Start it and wait until it answers; on another port when somebody took the one found free meanwhile."""
        for left in reversed(range(_PORT_TRIES)):
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            address = ["--host", "127.0.0.1", "--port", str(port), "--model", str(self.model)]
            self._spawn_family([str(binary.path), *address, *flags], environment)
            waited = f"within {self._ready_timeout_s:.0f} s"
            try:
                return url, self._wait_healthy(url, f"{LLAMA_SERVER} did not load {self.model} {waited}")
            except EngineError:
                taken = _TAKEN in self.log.read_text(errors="replace") if self.log.is_file() else False
                if not taken or not left:
                    raise
                self._stop()
        raise AssertionError("the last try returns or raises")

    def _flags(self, binary: Binary) -> list[str]:
        """All but the placement, in this build's words."""
        asked = self._asked
        slots, context = int(asked["slots"]), int(asked["context_per_slot"])
        pairs: list[tuple[tuple[str, ...], str | None]] = [
            (("--alias",), self.name),
            (("--ctx-size",), str(context * slots)),
            (("--parallel",), asked["slots"]),
            (("--batch-size",), asked["batch"]),
            (("--ubatch-size",), asked["micro_batch"]),
            (("--threads",), asked["threads"]),
            (("--threads-batch",), asked["threads"]),
            (("--cache-type-k",), asked["kv_type"]),
            (("--cache-type-v",), asked["kv_type"]),
            (("--metrics",), None),
            (("--no-ui", "--no-webui"), None),
            (("--no-kv-unified",), None),
            # What an earlier prompt left is not kept aside for a later one.
            (("--cache-ram", "-cram"), "0"),
            (("--ctx-checkpoints", "--swa-checkpoints"), "0"),
            (("--no-cache-idle-slots",), None),
        ]
        if asked["prompt_cache"] == "off":
            pairs.append((("--no-cache-prompt",), None))
        if self._embeddings:
            pairs.append((("--embeddings", "--embedding"), None))
        flags: list[str] = []
        for names, value in pairs:
            if (flag := binary.flag(*names)) is not None:
                flags += [flag] if value is None else [flag, value]
            elif names[0].startswith("--cache-type") and value != "f16":
                raise UserError(f"{binary.path} has no {names[0]}; leave --kv out or install a newer llama.cpp")
        return [*flags, *_flash(binary, asked["flash_attention"]), *_telling(binary)]


def _flash(binary: Binary, asked: str) -> list[str]:
    """Newer builds take a word, older ones a bare flag for "on"."""
    flag = binary.flag("--flash-attn")
    if flag is None:
        return []
    if "auto" in binary.options[flag]:
        return [flag, asked]
    return [flag] if asked == "on" else []


def _telling(binary: Binary) -> list[str]:
    """The least verbosity at which buffers are named; where there is no such level they are always named."""
    flag = binary.flag("--log-verbosity", "--verbosity", "-lv")
    return [flag, "4"] if flag is not None and "4: trace" in binary.options[flag] else []


def placement_flags(binary: Binary, devices: Sequence[EngineDevice], placement: Placement) -> list[str]:
    """What makes this build put the model there. Raises UserError for what it or this machine cannot do."""
    gpus = [device for device in devices if device.is_gpu]
    check_devices(placement, gpus, LLAMA_SERVER, binary.build())
    layers_flag = binary.flag("--gpu-layers", "--n-gpu-layers", "-ngl")
    fit_flag = binary.flag("--fit")
    never_fit = [fit_flag, "off"] if fit_flag else []
    if not gpus or layers_flag is None:
        return [*never_fit, *([layers_flag, "0"] if layers_flag else [])]
    flags: list[str] = []
    if placement.devices and len(placement.devices) < len(gpus):
        flags += ["--device", ",".join(spelled(placement.devices, gpus))] if binary.flag("--device") else []
    if placement.tensor_split:
        flags += ["--tensor-split", ",".join(f"{share:g}" for share in placement.tensor_split)]
    if placement.fitted:
        if fit_flag is not None:
            return [*flags, fit_flag, "on"]
        if placement.cpu_moe == "auto":
            raise UserError(f"{binary.build()} has no --fit, so it cannot choose; say --cpu-moe with a number")
        return [*flags, layers_flag, str(ALL_LAYERS)]
    whole = placement.gpu_layers in ("auto", "all")
    flags += [*never_fit, layers_flag, str(ALL_LAYERS if whole else placement.gpu_layers)]
    for override in placement.overrides:
        flags += ["--override-tensor", override]
    if isinstance(placement.cpu_moe, int) and placement.cpu_moe > 0:
        if (flag := binary.flag("--n-cpu-moe", "-ncmoe")) is not None:
            return [*flags, flag, str(placement.cpu_moe)]
        if binary.flag("--override-tensor") is None:
            raise UserError(f"{binary.build()} cannot keep experts in host memory; install a newer llama.cpp")
        flags += ["--override-tensor", experts_pattern(placement.cpu_moe) + "=CPU"]
    return flags
