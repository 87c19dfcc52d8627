"""Where vLLM is: the command that runs it, from what the user named or what the environment has."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from breakeven.errors import UserError

VARIABLE = "BREAKEVEN_VLLM"
"""Environment variable that may name a Python interpreter that has vLLM, or a `vllm` executable."""

_MODULE = ("-m", "vllm.entrypoints.cli.main")


def find_vllm() -> list[str]:
    """The command line that stands for `vllm`.

    In this order: what BREAKEVEN_VLLM names, the module `vllm` of this interpreter, the executable `vllm` on the
    PATH. Raises UserError when there is none.
    """
    if named := os.environ.get(VARIABLE):
        found = shutil.which(str(Path(named).expanduser()))
        if found is None:
            raise UserError(f"{VARIABLE} is {named}, which is no executable; name a Python interpreter or a vllm")
        return [found, *_MODULE] if Path(named).name.startswith("python") else [found]
    spec = importlib.util.find_spec("vllm")
    if spec is not None and spec.origin is not None:  # a mere folder called vllm has no origin
        return [sys.executable, *_MODULE]
    if executable := shutil.which("vllm"):
        return [executable]
    raise UserError(
        "vLLM is not here; install it into this environment (pip install vllm), put vllm on the PATH, "
        f"or name its Python interpreter in {VARIABLE}"
    )
