"""MLX: where `mlx_lm.server` is, the directory it loads, and how it is started.

What it cannot be asked is arranged here: it knows no `ignore_eos`, so synthetic directories have no token that ends a
text, and the end tokens of real ones are barred by each request (`wire/dialects.json`); a request with a seed leaves
its batch, so none is sent; its `/health` answers before the weights are loaded, so loading ends with a first token.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from breakeven.engines.backend import MLX, Backend
from breakeven.engines.cache import cache_directory
from breakeven.engines.keeper import READY_TIMEOUT_S, KeptEngine, free_port, further_flags, telling_words
from breakeven.engines.synthesis.directory import CONFIG, synthesise_mlx
from breakeven.engines.synthesis.write import Progress
from breakeven.engines.vllm.directory import configuration_of, has_weights
from breakeven.errors import NotSupportedError, UserError, expanded
from breakeven.model.architecture import ModelSpec
from breakeven.model.resolve import weight_file

VARIABLE = "BREAKEVEN_MLX_SERVER"
"""Environment variable that may name the executable."""
ARGUMENTS = "BREAKEVEN_MLX_ARGS"
"""Environment variable with further flags for it; the last of a repeated flag counts."""
NAME = "mlx_lm.server"
MODEL = "default_model"
"""What it calls the model it was started with; any other name it would look for on a hub."""
PROMPTS_AT_ONCE = 8
"""mlx-lm's own `--prompt-concurrency`."""
FORMATS = ("MLX4", "MLX8", "MLX3", "MLX5", "MLX6", "MLX2", "MLX4_G32", "MLX8_G32", "BF16", "F16")
"""Weight formats that a synthetic directory can have."""

_RECIPE = 1
"""Goes up when the same model would be written otherwise."""
_SHEBANG = re.compile(r"(/\S*/python[\d.]*)")
_TELLING = re.compile(r"(generation thread died|^(\w+\.)*\w*(Error|Exception): |: error: )")


def find_mlx() -> str:
    """The executable: what BREAKEVEN_MLX_SERVER names, that beside this interpreter, that on the PATH.

    Raises UserError when there is none.
    """
    if named := os.environ.get(VARIABLE):
        found = shutil.which(str(expanded(named)))
        if found is None:
            raise UserError(f"{VARIABLE} is {named}, which is no executable; name an {NAME}")
        return found
    beside = Path(sys.executable).with_name(NAME)
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(NAME)
    if found is None:
        raise UserError(
            f"{NAME} is not here; run `pip install mlx-lm` (on Linux with `mlx[cpu]` beside it), "
            f"or name the executable in {VARIABLE}"
        )
    return found


def interpreter_of(executable: str) -> str | None:
    """The Python that runs an installed script, as its first lines say; None where they do not."""
    try:
        with Path(executable).open("rb") as file:
            head = file.read(512).decode(errors="replace")
    except OSError:
        return None
    # Installers write a shell's `exec` on the second line where the path is long.
    found = _SHEBANG.search("\n".join(head.splitlines()[:2])) if head.startswith("#!") else None
    return found[1] if found else None


def provide(
    text: str, spec: ModelSpec | None, format_name: str, seed: int = 0, progress: Progress | None = None
) -> Path:
    """The directory that mlx-lm loads for the model that `text` names and `spec` describes.

    A directory with weights is itself, in the format it has; anything else is written with random weights into the
    cache, as the mlx-lm of the server found would store it. Raises NotSupportedError for a GGUF and for what that
    mlx-lm cannot build.
    """
    path = expanded(text)
    if path.suffix == ".gguf" or weight_file(text) is not None:
        raise NotSupportedError(f"{text}: MLX gets no GGUF from Breakeven; give a name or a directory in MLX's layout")
    if path.is_dir() and has_weights(path):
        return path
    assert spec is not None  # only a GGUF can be without
    config = configuration_of(text, spec)
    content = msgspec.json.encode((_RECIPE, config, str(spec), format_name, seed))
    safe = "".join(c if c.isalnum() or c in ".-_" else "-" for c in spec.name.split("/")[-1].lower())
    key = hashlib.sha256(content).hexdigest()[:12]
    target = cache_directory().parent / "mlx" / f"{safe}-{format_name.lower()}-{key}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {target.parent}: {error.strerror}; set XDG_CACHE_HOME to a writable place"
        ) from error
    python = interpreter_of(find_mlx())
    synthesise_mlx(config, spec, format_name, target, seed=seed, progress=progress, python=python, endless=True)
    return target


def end_tokens(directory: Path) -> list[int]:
    """Tokens at which mlx-lm ends a text of this model: of its configurations and of its tokenizer."""
    found: set[int] = set()
    for name in (CONFIG, "generation_config.json"):
        ends = _read(directory / name).get("eos_token_id")
        found.update(end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int))
    token = _read(directory / "tokenizer_config.json").get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    added = _read(directory / "tokenizer.json").get("added_tokens") if content else None
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, dict) and entry.get("content") == content and isinstance(entry.get("id"), int):
            found.add(entry["id"])
    return sorted(found)


class MlxServer(KeptEngine):
    """Context manager: starts `mlx_lm.server` on one model directory and gives its `Backend`.

    `slots` sequences are decoded at once (--decode-concurrency), where the model's caches can be batched; it keeps no
    limit to a context. `prompt_cache` keeps the keys and values of earlier prompts; off, every request starts cold.
    `arguments` come after ours and those in BREAKEVEN_MLX_ARGS after all.

    Raises UserError for settings that cannot be or no mlx-lm, EngineError (with the log's last words that matter) when
    it does not start or cannot complete one token.
    """

    title = "MLX"

    def __init__(
        self,
        model: Path,
        *,
        context: int,
        slots: int,
        log: Path,
        prompt_cache: bool = False,
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
            *("--decode-concurrency", str(slots), "--prompt-concurrency", str(min(slots, PROMPTS_AT_ONCE))),
            # Kept prompts are whole conversations; its own number is ten.
            *("--prompt-cache-size", str(max(10, 2 * slots) if prompt_cache else 0), "--log-level", "WARNING"),
            *arguments,
        ]
        self._inherited = environment
        self._slots, self._context, self._caches = slots, context, prompt_cache

    def last_words(self) -> str:
        """The last log lines that matter, as the tail of an error's one line."""
        return telling_words(self.log, _TELLING, most=3, latest=True)

    def _bring_up(self) -> Backend:
        if not self.model.is_dir():
            raise UserError(f"{self.model} is no directory; give that of a model in MLX's layout")
        command, flags = find_mlx(), [*self.flags, *further_flags(ARGUMENTS)]
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        address = ["--host", "127.0.0.1", "--port", str(port), "--model", str(self.model)]
        # It would ask a hub about a model's other files; all of them are in the directory.
        environment = {**(os.environ if self._inherited is None else self._inherited), "HF_HUB_OFFLINE": "1"}
        self._spawn_family([command, *address, *flags], environment)
        waited = f"within {self._ready_timeout_s:.0f} s"
        self._wait_healthy(url, f"MLX did not start {waited}")
        left = max(1.0, self._ready_timeout_s - (time.monotonic() - self._started_s))
        self._complete_one(url, model=MODEL, prompt="a b c", timeout_s=left)
        load_s = time.monotonic() - self._started_s
        settings = {
            "engine": MLX,
            "build": _build(command),
            "command": NAME,
            "flags": shlex.join(flags),
            "served_model": MODEL,
            "slots": str(self._slots),
            "context_per_slot": str(self._context),
            "prompt_cache": "on" if self._caches else "off",
            "threads": "its own",
            "end_tokens": " ".join(map(str, end_tokens(self.model))),
        }
        tokenizer = self.model / "tokenizer.json"
        if tokenizer.is_file():
            settings["tokenizer"] = str(tokenizer)
        return Backend(url, self.name, None, settings, self._pid, load_s)


def _build(command: str) -> str:
    """Versions of the mlx-lm and the MLX that run, by the folders they are installed in."""
    python = interpreter_of(command)
    places = Path(python).parent.parent.glob("lib/python*/site-packages/*.dist-info") if python else []
    names = [place.name.removesuffix(".dist-info").split("-") for place in places]
    versions = {name.replace("_", "-"): version for name, version, *_ in names if name in ("mlx_lm", "mlx")}
    return ", ".join(f"{name} {versions[name]}" for name in ("mlx-lm", "mlx") if name in versions) or "unknown"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
