"""SGLang: where it is, how its server is started, and what it reports of itself.

It loads the directories that vLLM does, dummy weights included. The settings of a run are read from `/server_info`,
because a flag that was asked for may not be what ran: it sizes its cache by the memory it finds.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

from breakeven.engines.backend import SGLANG, Backend, open_url
from breakeven.engines.keeper import (
    READY_TIMEOUT_S,
    KeptEngine,
    free_port,
    further_flags,
    private,
    python_command,
    telling_words,
)
from breakeven.errors import UserError

VARIABLE = "BREAKEVEN_SGLANG"
"""Environment variable that may name a Python interpreter that has SGLang, or an `sglang` executable."""
ARGUMENTS = "BREAKEVEN_SGLANG_ARGS"
"""Environment variable with further flags for its server; the last of a repeated flag counts."""

_MODULE = ("-m", "sglang.launch_server")
_TIMEOUT_S = 10.0
_PREFIX = re.compile(r"^\[\d{4}-\d\d-\d\d [\d:.]+[^\]]*\]\s*")
_TELLING = re.compile(r"^(Fatal Python error|(\w+\.)*\w*(Error|Exception): |(\S+: )?error: )")
_REPORTED = {
    "device": "device",
    "dtype": "dtype",
    "max_model_len": "context_length",
    "quantization": "quantization",
    "mem_fraction_static": "mem_fraction_static",
    "kv_cache_tokens": "max_total_num_tokens",
    "attention_backend": "attention_backend",
    "tensor_parallel": "tp_size",
}
"""Our names for what `/server_info` says."""


def find_sglang() -> list[str]:
    """The command line that starts its server; see `python_command`. Raises UserError when there is none."""
    return python_command("SGLang", VARIABLE, _MODULE, ("serve",))


class SglangServer(KeptEngine):
    """Context manager: starts SGLang on one model directory and gives its `Backend`.

    `context` is tokens a sequence (--context-length), `slots` sequences at once (--max-running-requests). `load_format`
    "dummy" needs no weights in `model`. `prefix_caching` keeps the keys and values of earlier prompts; off, every
    request starts cold. `kv_dtype` None: that of the model. `arguments` come after ours and those in
    BREAKEVEN_SGLANG_ARGS after all.

    Raises UserError for settings that cannot be or no SGLang, EngineError (with the log's last words that matter) when
    it does not start or cannot complete one token.
    """

    title = "SGLang"

    def __init__(
        self,
        model: Path,
        *,
        context: int,
        slots: int,
        log: Path,
        dtype: str = "auto",
        load_format: Literal["auto", "dummy"] = "auto",
        prefix_caching: bool = False,
        kv_dtype: str | None = None,
        name: str | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        for what, number in {"context": context, "slots": slots}.items():
            if number < 1:
                raise UserError(f"{what} is {number}; give 1 or more")
        super().__init__(name or model.name, log, ready_timeout_s)
        self.model = model
        self.flags = [
            *("--context-length", str(context), "--max-running-requests", str(slots), "--dtype", dtype),
            *("--load-format", load_format, "--enable-metrics", "--enable-cache-report", "--log-level", "warning"),
            *(() if prefix_caching else ("--disable-radix-cache",)),
            *(() if kv_dtype is None else ("--kv-cache-dtype", kv_dtype)),
            *arguments,
        ]
        self._inherited = environment
        self._slots, self._context, self._caches = slots, context, prefix_caching

    def last_words(self) -> str:
        """The last log lines that matter, as the tail of an error's one line."""
        return telling_words(self.log, _TELLING, prefix=_PREFIX)

    def _bring_up(self) -> Backend:
        if not self.model.exists():
            raise UserError(f"{self.model} does not exist; give the directory of a Hugging Face model")
        command = find_sglang()
        flags = [*self.flags, *further_flags(ARGUMENTS)]
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        address = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", self.name]
        environment = {**(os.environ if self._inherited is None else self._inherited), "PYTHONFAULTHANDLER": "1"}
        settings_file = self.log.with_name(f"{self.log.name}.yaml")
        if self.key:  # an argument would stand in the list of processes, and it reads none from the environment
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with open(settings_file, "w", encoding="utf-8", opener=private) as file:
                json.dump({"api-key": self.key}, file)  # which is YAML as well
            address += ["--config", str(settings_file)]
        try:
            self._spawn_family([*command, "--model-path", str(self.model), *address, *flags], environment)
            waited = f"within {self._ready_timeout_s:.0f} s"
            load_s = self._wait_healthy(url, f"SGLang did not load {self.model} {waited}")
        finally:
            if self.key:
                settings_file.unlink(missing_ok=True)
        self._complete_one(url)
        info = _server_info(url, self._key_header())
        settings = {
            "engine": SGLANG,
            "build": f"sglang {info.get('version', 'unknown')}",
            "command": " ".join([Path(command[0]).name, *command[1:]]),
            "flags": shlex.join(flags),
            "served_model": self.name,
            "slots": str(self._slots),
            "context_per_slot": str(self._context),
            "prompt_cache": "on" if self._caches else "off",
            **{ours: str(info[theirs]) for ours, theirs in _REPORTED.items() if info.get(theirs) is not None},
        }
        return Backend(url, self.name, None, settings, self._pid, load_s)


def _server_info(url: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """What it says of itself, at the address of newer versions or of older ones; nothing where it does not."""
    for path in ("/server_info", "/get_server_info"):
        try:
            with open_url(urllib.request.Request(f"{url}{path}", headers=headers), timeout_s=_TIMEOUT_S) as response:
                found = json.load(response)
        except (OSError, HTTPException, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return {}
