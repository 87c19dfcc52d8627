"""llama.cpp's own server, embedded: one GGUF in a child process of ours."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from breakeven.engines.backend import LLAMA_CPP, Backend
from breakeven.engines.devices import check_embedded
from breakeven.engines.keeper import READY_TIMEOUT_S, KeptEngine, spin_said, with_spin
from breakeven.engines.llama_cpp.child import KvType, ServerReady, ServerSettings
from breakeven.engines.llama_cpp.report import last_words, read_placed
from breakeven.errors import EngineError, UserError
from breakeven.hardware.placement import AUTO, Placement
from breakeven.hardware.reader import available_threads


class LlamaCppServer(KeptEngine):
    """Context manager: starts llama.cpp on one GGUF in a child process and gives its `Backend`.

    `placement`: as llama.cpp fits it to the GPUs that this build lists, on the CPU where it lists none. `environment`
    is all that the child gets to see, beside how its threads wait (`keeper.SPIN`); None: what this process has.
    `verbose` puts into the log what llama.cpp loads and reserves.

    Raises UserError for settings that cannot be, EngineError (with the last log lines) when the model does not load.
    """

    title = "llama.cpp"
    poll_s = 0.02
    end_timeout_s = 2.0

    def __init__(
        self,
        model: Path,
        *,
        context: int,
        slots: int,
        log: Path,
        threads: int | None = None,
        batch: int = 2048,
        flash_attention: bool | None = None,
        kv_type: KvType = "f16",
        placement: Placement = AUTO,
        repack: bool = True,
        name: str | None = None,
        prompt_cache: bool = False,
        embeddings: bool = False,
        verbose: bool = False,
        environment: Mapping[str, str] | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        threads = available_threads() if threads is None else threads
        for what, number in {"threads": threads, "context": context, "slots": slots, "batch": batch}.items():
            if number < 1:
                raise UserError(f"{what} is {number}; give 1 or more")
        super().__init__(name or model.stem, log, ready_timeout_s)
        self.settings = ServerSettings(
            model=str(model),
            name=self.name,
            threads=threads,
            context=context,
            slots=slots,
            batch=batch,
            flash_attention=flash_attention,
            kv_type=kv_type,
            placement=placement,
            repack=repack,
            prompt_cache=prompt_cache,
            embeddings=embeddings,
            verbose=verbose,
        )
        self._environment = with_spin(os.environ if environment is None else environment)

    def last_words(self) -> str:
        """The last log lines that matter, as the tail of an error's one line."""
        return last_words(self.log)

    def _bring_up(self) -> Backend:
        if importlib.util.find_spec("xllamacpp") is None:
            raise UserError("the package xllamacpp (llama.cpp) is missing; install it with: pip install xllamacpp")
        model = Path(self.settings.model)
        if not model.is_file():
            raise UserError(f"{model} does not exist or is not a file; give the path of a GGUF file")
        asked = self.settings.placement
        check_embedded(asked)
        ready = self._load()
        load_s = self._wait_healthy(ready.url, f"llama.cpp loaded the model but does not answer at {ready.url}")
        gpus = [device for device in ready.devices if device.is_gpu]
        placed = read_placed(self.log, asked) if gpus else None
        settings = {
            "engine": LLAMA_CPP,
            "build": f"xllamacpp {ready.engine_version}",
            "ggml": f"{ready.ggml_version} ({ready.ggml_commit})",
            "kernels": ready.kernels,
            **self.settings.as_strings(),
            **({"devices": ", ".join(f"{gpu.place} ({gpu.description})" for gpu in gpus)} if gpus else {}),
            "gpu_layers": str(placed.gpu_layers) if placed else "0",
            "wait_policy": spin_said(self._environment),
        }
        return Backend(ready.url, self.name, None, settings, self._pid, load_s, placed)

    def _load(self) -> ServerReady:
        """Start the child and wait for its one message."""
        settings = msgspec.structs.replace(self.settings, key=self.key, parent_pid=os.getpid())
        hello = msgspec.json.encode(settings) + b"\n"
        message = self._spawn("breakeven.engines.llama_cpp.child", hello, self._environment)
        if message is None:
            waited = f"within {self._ready_timeout_s:.0f} s"
            raise EngineError(f"llama.cpp did not load {self.settings.model} {waited}{self.last_words()}")
        try:
            return msgspec.json.decode(message, type=ServerReady)
        except msgspec.DecodeError:
            self._await_end()
        # An exit status only says that Python stopped on llama.cpp's refusal, which the log explains.
        how = f" ({self._how_it_ended()})" if self._signal() is not None else ""
        raise EngineError(f"llama.cpp could not load {self.settings.model}{how}{self.last_words()}")
