"""vLLM: where it is, how `vllm serve` is started, and what its log says.

The command is what the user named or the environment has; the settings of a run are read from the log, as the engine
core reports them, because a flag that was asked for may not be what ran.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Literal

from breakeven.engines.backend import VLLM, Backend, open_url
from breakeven.engines.keeper import (
    READY_TIMEOUT_S,
    TAIL_BYTES,
    KeptEngine,
    free_port,
    further_flags,
    log_lines,
    python_command,
    telling_words,
)
from breakeven.errors import UserError

VARIABLE = "BREAKEVEN_VLLM"
"""Environment variable that may name a Python interpreter that has vLLM, or a `vllm` executable."""

ARGUMENTS = "BREAKEVEN_VLLM_ARGS"
"""Environment variable with further flags for `vllm serve`; the last of a repeated flag counts."""

_MODULE = ("-m", "vllm.entrypoints.cli.main")
_VERSION_TIMEOUT_S = 10.0


def find_vllm() -> list[str]:
    """The command line that stands for `vllm`; see `python_command`. Raises UserError when there is none."""
    return python_command("vLLM", VARIABLE, _MODULE)


_PREFIX = re.compile(r"^(\(\w[\w-]* pid=\d+\)\s*)?([A-Z]+ \d\d-\d\d [\d:]+ )?(\[[\w.]+:\d+\] ?)?\s*")
_TELLING = re.compile(r"^(Fatal Python error|Value error,|(\w+\.)*\w*(Error|Exception): |error: |vllm: error)")
_NEXT_STEP = {
    "Illegal instruction": "this build uses instructions this processor does not run; "
    "give other settings in BREAKEVEN_VLLM_ARGS, such as --dtype float32",
    "No package metadata was found for vllm": "the build has no package metadata under the name vllm; "
    "install one that has",
    "Failed to infer device type": "the build finds no device it is made for; install a build for this machine",
}
"""What to do about errors whose own text does not tell."""

_REPORTED = {
    "device": re.compile(r"\bdevice_config=(\w+)"),
    "dtype": re.compile(r"\bdtype=(?:torch\.)?(\w+)"),
    "max_model_len": re.compile(r"\bmax_seq_len=(\d+)"),
    "prompt_cache": re.compile(r"\benable_prefix_caching=(\w+)"),
    "quantization": re.compile(r"\bquantization=(\w+)"),
    "enforce_eager": re.compile(r"\benforce_eager=(\w+)"),
}
_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")


def last_words(log: Path) -> str:
    """The last log lines that matter, as the tail of an error's one line."""
    text = "\n".join(log_lines(log, TAIL_BYTES))
    advice = next((f"; {advice}" for words, advice in _NEXT_STEP.items() if words in text), "")
    return telling_words(log, _TELLING, prefix=_PREFIX) + advice


def reported(log: Path) -> dict[str, str]:
    """Settings as the engine core reports them in its first line, and how many tokens its KV cache holds.

    A setting that the version does not report is left out.
    """
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return {}
    line = next((line for line in text.splitlines() if "Initializing a V1 LLM engine" in line), "")
    words = {"True": "on", "False": "off"}
    matches = {name: pattern.search(line) for name, pattern in _REPORTED.items()}
    found = {name: words.get(match[1], match[1]) for name, match in matches.items() if match}
    if tokens := _KV_TOKENS.search(text):
        found["kv_cache_tokens"] = tokens[1].replace(",", "")
    return found


class VllmServer(KeptEngine):
    """Context manager: starts `vllm serve` on one model directory and gives its `Backend`.

    `context` is tokens a sequence (--max-model-len), `slots` sequences at once (--max-num-seqs). `load_format` "dummy"
    needs no weights in `model`. `prefix_caching` keeps the keys and values of earlier prompts; off, every request
    starts cold. `kv_cache_gib` is the size of the cache of a CPU build, which takes VLLM_CPU_KVCACHE_SPACE first.
    `threads`: OpenMP threads of a CPU build; None leaves vLLM's own binding, which keeps one core for the API server.
    `arguments` come after ours and those in BREAKEVEN_VLLM_ARGS after all. `environment` replaces what this process
    would hand down.

    Raises UserError for settings that cannot be or no vLLM, EngineError (with the log's last words that matter) when
    it does not start or cannot complete one token.
    """

    title = "vLLM"

    def __init__(
        self,
        model: Path,
        *,
        context: int,
        slots: int,
        log: Path,
        threads: int | None = None,
        dtype: str = "auto",
        load_format: Literal["auto", "dummy"] = "auto",
        prefix_caching: bool = False,
        kv_cache_gib: int = 1,
        name: str | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        for what, number in {"context": context, "slots": slots, "kv_cache_gib": kv_cache_gib}.items():
            if number < 1:
                raise UserError(f"{what} is {number}; give 1 or more")
        if threads is not None and threads < 1:
            raise UserError(f"threads is {threads}; give 1 or more")
        super().__init__(name or model.name, log, ready_timeout_s)
        self.model = model
        caching = "--enable-prefix-caching" if prefix_caching else "--no-enable-prefix-caching"
        self.flags: list[str] = [
            *("--max-model-len", str(context), "--max-num-seqs", str(slots), "--dtype", dtype),
            *("--load-format", load_format, caching, "--disable-uvicorn-access-log"),
            *arguments,
        ]
        self.environment = {"PYTHONFAULTHANDLER": "1", "VLLM_NO_USAGE_STATS": "1"}
        self.environment["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get("VLLM_CPU_KVCACHE_SPACE", str(kv_cache_gib))
        if threads is not None:
            self.environment |= {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        self._inherited = environment
        self._slots, self._context = slots, context

    def last_words(self) -> str:
        """The last log lines that matter, as the tail of an error's one line."""
        return last_words(self.log)

    def _bring_up(self) -> Backend:
        if not self.model.exists():
            raise UserError(f"{self.model} does not exist; give the directory of a Hugging Face model")
        command = find_vllm()
        flags = [*self.flags, *further_flags(ARGUMENTS)]
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        address = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", self.name]
        inherited = os.environ if self._inherited is None else self._inherited
        # An argument would stand in the list of processes, and our own settings in the result.
        environment = {**inherited, **self.environment, **({"VLLM_API_KEY": self.key} if self.key else {})}
        self._spawn_family([*command, "serve", str(self.model), *address, *flags], environment)
        waited = f"within {self._ready_timeout_s:.0f} s"
        load_s = self._wait_healthy(url, f"vLLM did not load {self.model} {waited}")
        self._complete_one(url)
        return Backend(url, self.name, None, self._settings(url, command, flags), self._pid, load_s)

    def _settings(self, url: str, command: Sequence[str], flags: Sequence[str]) -> dict[str, str]:
        """What repeats the run. Dtype, device and length are as vLLM reports them, not as they were asked for."""
        return {
            "engine": VLLM,
            "build": f"vllm {_version(url)}",
            "command": " ".join([Path(command[0]).name, *command[1:], "serve"]),
            "flags": shlex.join(flags),
            "environment": " ".join(f"{key}={value}" for key, value in sorted(self.environment.items())),
            "served_model": self.name,
            "slots": str(self._slots),
            "context_per_slot": str(self._context),
            **reported(self.log),
        }


def _version(url: str) -> str:
    try:
        with open_url(f"{url}/version", timeout_s=_VERSION_TIMEOUT_S) as response:
            version = json.load(response).get("version")
    except (OSError, HTTPException, ValueError, AttributeError):
        return "unknown"
    return version if isinstance(version, str) and re.fullmatch(r"[\w.+-]+", version) else "unknown"
