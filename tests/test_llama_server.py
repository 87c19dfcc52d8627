"""A user's own llama-server: a real one with a second device, scripts that only look like one, and what logs say."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import xllamacpp
from vulkan_fixtures import lend, lent_device, llama_server, moe_gguf, vulkan

from breakeven.engines import devices
from breakeven.engines.backend import Backend
from breakeven.engines.devices import VARIABLE, EngineDevice, read_binary, read_devices, read_options, usual_engine
from breakeven.engines.llama_cpp.binary import LlamaServer, placement_flags
from breakeven.engines.llama_cpp.child import _place
from breakeven.engines.llama_cpp.report import last_words, placed_of, read_placed
from breakeven.engines.memory import check_memory
from breakeven.engines.source import parse_source
from breakeven.engines.start import kv_type
from breakeven.errors import EngineError, UserError
from breakeven.hardware.machine import Gpu, MachineSpec
from breakeven.hardware.placement import AUTO, HOST, Placement
from breakeven.measure.runner import CompletionRequest, run_block

__all__ = ["lent_device", "llama_server", "moe_gguf", "vulkan"]

MIB = 2**20


def machine(*gpus: Gpu) -> MachineSpec:
    return MachineSpec(
        cpu="a CPU",
        physical_cores=2,
        logical_cores=2,
        instruction_sets=[],
        cache_bytes={},
        memory_bytes=8 * 10**9,
        available_memory_bytes=8 * 10**9,
        os="an OS",
        virtualised="no",
        gpus=list(gpus),
    )


@pytest.fixture(scope="module")
def running(
    llama_server: Path, moe_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LlamaServer, Backend]]:
    server = LlamaServer(
        moe_gguf,
        context=256,
        slots=2,
        threads=1,
        log=tmp_path_factory.mktemp("engine") / "log",
        name="small",
        random_weights=True,
        placement=Placement(gpu_layers="all", cpu_moe=2),
    )
    with lend() as server.arguments, server as backend:
        yield server, backend


def test_what_was_asked_for_is_where_it_lies(running: tuple[LlamaServer, Backend], moe_gguf: Path) -> None:
    _, backend = running
    placed = backend.placed
    assert placed is not None
    assert (placed.how, placed.gpu_layers, placed.layers, placed.cpu_moe) == ("asked", 5, 5, 2)
    device, host = placed.memory
    assert (device.place, host.place) == ("RPC0", HOST)
    assert None not in (device.weights_bytes, device.kv_bytes, device.compute_bytes, host.weights_bytes)
    assert device.kv_bytes == 2 * 256 * 4 * 2 * 2 * 64 * 2  # tokens, layers, keys and values, heads, width, bytes
    # All but the header, and each tensor once.
    assert device.weights_bytes + host.weights_bytes == pytest.approx(moe_gguf.stat().st_size, rel=0.02)
    assert backend.settings["engine"] == "llama-server"
    assert backend.settings["build"].startswith("llama-server 1 (")
    assert backend.settings["devices"].startswith("RPC0 (127.0.0.1:")
    assert (backend.settings["slots"], backend.settings["context_per_slot"]) == ("2", "256")
    assert "--n-cpu-moe 2" in backend.settings["flags"]
    assert str(moe_gguf.parent) not in json.dumps(backend.settings)


async def test_it_is_measured_as_the_embedded_one_is(running: tuple[LlamaServer, Backend]) -> None:
    _, backend = running
    assert backend.takes_token_ids
    assert backend.tokenize("Hey") == [72, 101, 121]
    rng = random.Random(1)
    asked = [
        CompletionRequest(
            block="1",
            stream=stream,
            prompt=[rng.randrange(300, 1000) for _ in range(16)],
            prompt_tokens=16,
            max_tokens=12,
            stall_timeout_s=120.0,
        )
        for stream in range(2)
    ]
    for _ in range(2):  # a second time as cold as the first
        for done in await run_block(backend, asked):
            assert (done.error, done.anomalies) == (None, [])
            assert (done.prompt_tokens, done.output_tokens) == (16, 12)
            assert done.server_timings is not None
            assert done.server_timings.cache_n == 0
    with urllib.request.urlopen(f"{backend.url}/metrics") as page:
        assert b"llamacpp:requests_processing" in page.read()


def test_what_fitting_chose_is_read_back(
    llama_server: Path, lent_device: tuple[str, str], moe_gguf: Path, tmp_path: Path
) -> None:
    """Room for the dense parts and some of the experts: what is left free is said so large that no more fits."""
    listed = devices.devices_with(read_binary(llama_server), lent_device)
    assert listed[0].free_bytes is not None
    target = listed[0].free_bytes // MIB - 5
    log = tmp_path / "log"
    server = LlamaServer(
        moe_gguf,
        context=256,
        slots=1,
        threads=1,
        log=log,
        random_weights=True,
        arguments=(*lent_device, "--fit-target", str(target)),
    )
    with server as backend:
        assert backend.placed is not None
        assert backend.placed.how == "fitted"
        assert backend.placed.layers == 5
        assert backend.placed.gpu_layers is not None
        assert backend.placed.gpu_layers < 5 or backend.placed.cpu_moe
        assert "--gpu-layers" not in backend.settings["flags"]
        pid = backend.pid
        assert pid is not None
        (serving,) = [p for p in (psutil.Process(pid), *psutil.Process(pid).children()) if p.name() == "llama-server"]
        serving.send_signal(signal.SIGKILL)
        with pytest.raises(EngineError, match=r"llama-server (ended while running|no longer answers for) small-moe"):
            server.check_alive()


def test_a_real_device_is_listed_and_makes_its_engine_the_usual_one(vulkan: Path) -> None:
    (device,) = read_binary(vulkan).devices
    assert (device.place, device.kind) == ("Vulkan0", "gpu")
    assert device.memory_bytes is not None
    assert device.memory_bytes >= 1 << 30
    assert usual_engine(None, machine())[0] == "llama-server"


@pytest.mark.skipif("BREAKEVEN_TEST_VULKAN" not in os.environ, reason="compiling shaders for a CPU takes a minute")
def test_a_real_device_takes_what_fits(vulkan: Path, moe_gguf: Path, tmp_path: Path) -> None:
    # Its warming up has the rasteriser compile what one token never needs.
    options = {"random_weights": True, "arguments": ("--no-warmup",)}
    server = LlamaServer(moe_gguf, context=128, slots=1, threads=2, log=tmp_path / "log", **options)
    with server as backend:
        assert backend.placed is not None
        assert backend.placed.words() == "5/5 layers on the GPU"
        assert [at.place for at in backend.placed.memory] == ["Vulkan0", HOST]


def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    llama_server: Path, lent_device: tuple[str, str], moe_gguf: Path, tmp_path: Path
) -> None:
    def starts(placement: Placement, arguments: tuple[str, ...]) -> None:
        options = {"placement": placement, "arguments": arguments}
        LlamaServer(moe_gguf, context=64, slots=1, log=tmp_path / "log", **options).__enter__()

    with pytest.raises(UserError, match=r"--device CUDA7: the engine has no such device \(it lists: RPC0 "):
        starts(Placement(devices=("CUDA7",)), lent_device)
    with pytest.raises(UserError, match="lists no GPU, so nothing can be placed on one"):
        starts(Placement(gpu_layers=3), ())
    with pytest.raises(UserError, match="gives 3 shares and llama-server lists RPC0"):
        starts(Placement(tensor_split=(1, 2, 3)), lent_device)
    with pytest.raises(UserError, match="leave --gpu-layers out, or give --cpu-moe a number"):
        starts(Placement(gpu_layers=3, cpu_moe="auto"), lent_device)
    with pytest.raises(UserError, match="--port is for Breakeven to set"):
        starts(AUTO, ("--port", "80"))
    with pytest.raises(EngineError, match=r"llama-server .*ends: .*--no-such-flag"):
        starts(AUTO, ("--no-such-flag",))


HELP = """\
usage: ./llama-server [options]

general:

  -h,    --help, --usage          print usage and exit
  -m,    --model FNAME            model path
  -c,    --ctx-size N             size of the prompt context (default: 0)
  -b,    --batch-size N           logical maximum batch size (default: 2048)
  -np,   --parallel N             number of parallel sequences to decode (default: 1)
  -fa,   --flash-attn             enable Flash Attention (default: disabled)
  -ngl,  --gpu-layers N           number of layers to store in VRAM
  -ot,   --override-tensor P=T    override where tensors are stored
  -fmoe, --fused-moe              enable fused MoE (see --no-fused-moe)
         --port PORT              port to listen (default: 8080)
"""
"""As ik_llama.cpp and llama.cpp before 2025 print it."""


def script(path: Path, help_text: str, listed: str = "", version: str = "version: 3999 (abc)") -> Path:
    """An executable that answers as a llama-server does, and ends."""
    path.parent.mkdir(exist_ok=True)
    for name, text in {"help": help_text, "devices": listed, "version": version}.items():
        path.with_suffix(f".{name}").write_text(text)
    path.write_text(
        f"#!/bin/sh\ncase $1 in\n--help) cat {path}.help >&2;;\n--version) cat {path}.version >&2;;\n"
        f"--list-devices) cat {path}.devices;;\n*) cat {path}.log; exit 1;;\nesac\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_what_a_build_lacks_is_left_out(tmp_path: Path) -> None:
    binary = read_binary(script(tmp_path / "bin" / "llama-server", HELP))
    assert binary.version == "3999 (abc)"
    assert "--no-fused-moe" not in binary.options
    gpu = EngineDevice(engine="llama-server", place="CUDA0", description="a card")
    flags = placement_flags(binary, [gpu], Placement(gpu_layers=20, cpu_moe=2))
    assert flags[:2] == ["--gpu-layers", "20"]
    assert flags[2:] == ["--override-tensor", r"blk\.(0|1)\.ffn_(up|down|gate_up|gate)_(ch|)exps=CPU"]
    # It cannot fit by itself: all layers, and it says so when they do not go in.
    assert placement_flags(binary, [gpu], AUTO) == ["--gpu-layers", "9999"]
    with pytest.raises(UserError, match="has no --fit, so it cannot choose"):
        placement_flags(binary, [gpu], Placement(cpu_moe="auto"))
    assert placement_flags(binary, [], AUTO) == ["--gpu-layers", "0"]


def test_what_is_no_llama_server_is_said_to_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"is no llama-server .its --help says 'usage: grep'"):
        read_binary(script(tmp_path / "bin" / "grep", "usage: grep\n  -m, --max-count\n"))
    old = "\n".join(line for line in HELP.splitlines() if "--parallel" not in line)
    with pytest.raises(UserError, match="is too old: its --help lacks --parallel; install a newer"):
        read_binary(script(tmp_path / "bin" / "old", old))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=f"{VARIABLE} is .*nowhere, which is no executable"):
        devices.find_llama_server()
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(devices, "HOMEBREW", ())
    with pytest.raises(UserError, match=r"llama-server is not here; install llama\.cpp"):
        devices.find_llama_server()
    found = script(tmp_path / "bin" / "llama-server", HELP)
    assert devices.find_llama_server() == found


@pytest.mark.skipif(os.name == "nt", reason="a script of Unix's")
def test_what_hangs_or_never_stops_writing_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrapper(name: str, line: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{line}\nexit 0\n")  # no exec: the program is a child of the script
        path.chmod(0o755)
        return path

    monkeypatch.setattr(devices, "_ASK_TIMEOUT_S", 0.5)
    with pytest.raises(UserError, match="hanging --help did not answer within"):
        read_binary(wrapper("hanging", "sleep 98765"))
    monkeypatch.setattr(devices, "_ASK_TIMEOUT_S", 60.0)
    monkeypatch.setattr(devices, "_MOST_SAID_BYTES", 10**6)
    with pytest.raises(UserError, match="writing --help writes without end"):
        read_binary(wrapper("writing", "yes breakeven-never-ends"))

    def left() -> list[str]:
        commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
        return [command for command in commands if command in ("sleep 98765", "yes breakeven-never-ends")]

    deadline = time.monotonic() + 60
    while left() and time.monotonic() < deadline:  # who is killed needs the CPU once more to die
        time.sleep(0.05)
    assert left() == []


def test_what_a_build_says_does_not_drive_the_terminal(tmp_path: Path) -> None:
    help_text = HELP if "--list-devices" in HELP else f"{HELP}\n  --list-devices\n"
    listed = "Available devices:\n  GPU\x1b[31m0: a card\x1b]0;x\x07 (100 MiB, 90 MiB free)\n"
    binary = read_binary(script(tmp_path / "llama-server", help_text, listed, "version: \x1b[31m9\x07 (abc)"))
    assert binary.version == "?[31m9? (abc)"
    (device,) = binary.devices
    assert (device.place, device.description) == ("GPU?[31m0", "a card?]0;x?")


def test_a_device_that_runs_out_of_memory_is_said_to_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moe_gguf: Path
) -> None:
    executable = script(tmp_path / "bin" / "llama-server", HELP)
    Path(f"{executable}.log").write_text(
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9000.00 MiB on device 0: cudaMalloc failed: out of "
        "memory\nllama_model_load: error loading model: unable to allocate CUDA0 buffer\n"
    )
    monkeypatch.setenv(VARIABLE, str(executable))
    server = LlamaServer(moe_gguf, context=64, slots=1, log=tmp_path / "log")
    with pytest.raises(EngineError, match="unable to allocate CUDA0 buffer; the device ran out of memory: give fewer"):
        server.__enter__()
    assert "ran out of memory" in last_words(tmp_path / "log")


LISTED = """\
Available devices:
  CUDA0: NVIDIA GeForce RTX 3090 (24126 MiB, 23800 MiB free)
  Vulkan1: AMD Radeon 8060S (RADV GFX1151) (98304 MiB, 97000 MiB free)
  Metal: Apple M3 Max (49152 MiB, 49151 MiB free)
  BLAS: Accelerate (0 MiB, 0 MiB free)
"""


def test_devices_are_read_as_they_are_listed() -> None:
    found = read_devices(LISTED)
    assert [(each.place, each.kind) for each in found] == [
        ("CUDA0", "gpu"),
        ("Vulkan1", "igpu"),
        ("Metal", "igpu"),
        ("BLAS", "accel"),
    ]
    assert (found[0].memory_bytes, found[0].free_bytes) == (24126 * MIB, 23800 * MIB)
    assert (found[3].memory_bytes, found[3].free_bytes) == (None, None)
    said = "ggml_cuda_init: found 1 CUDA devices:\n  Device 0: Tesla T4, compute capability 7.5, VMM: yes\n"
    (old,) = read_devices(said)
    assert (old.place, old.description, old.memory_bytes) == ("CUDA0", "Tesla T4", None)
    assert "--gpu-layers" in read_options(HELP)


def test_the_engine_that_has_the_gpu_is_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = script(tmp_path / "bin" / "llama-server", HELP + "--list-devices   list\n", LISTED)
    monkeypatch.setenv(VARIABLE, str(here))
    monkeypatch.setattr(devices, "embedded_devices", lambda: ())
    name, notice = usual_engine(None, machine())
    assert name == "llama-server"
    assert notice is not None
    assert "NVIDIA GeForce RTX 3090" in notice
    name, notice = usual_engine("llama.cpp", machine())
    assert name == "llama.cpp"
    assert notice is not None
    assert "cannot use it: this measures the CPU; --engine llama-server uses it" in notice
    card = EngineDevice(engine="llama.cpp", place="CUDA0", description="a card")
    monkeypatch.setattr(devices, "embedded_devices", lambda: (card,))
    assert usual_engine(None, machine()) == ("llama.cpp", None)
    assert usual_engine("vllm", machine(Gpu("a card", 1, "1"))) == ("vllm", None)
    monkeypatch.setattr(devices, "embedded_devices", lambda: ())
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    assert usual_engine(None, machine()) == ("llama.cpp", None)
    name, notice = usual_engine(None, machine(Gpu("a card", 1, "1")))
    assert name == "llama.cpp"
    assert notice is not None
    assert notice.startswith("a card stands here and this build of llama.cpp cannot use it")


NEW = """\
0.00.1 I common_params_fit_impl:   - CUDA0 (NVIDIA GeForce RTX 3090): 28 layers,   9000 MiB used,  14000 MiB free
0.00.1 I common_params_fit_impl:   - CUDA0 (a card): 49 layers (21 overflowing),  22000 MiB used,   1030 MiB free
0.00.2 I common_fit_params: fitting params to free memory took 0.30 seconds
0.00.3 I print_info: n_expert              = 128
0.00.3 I load_tensors: loading model tensors, this can take a while... (load_mode = none)
0.00.4 I load_tensors: offloaded 49/49 layers to GPU
0.00.4 I load_tensors:   CPU_Mapped model buffer size =  7000.50 MiB
0.00.4 I load_tensors:        CUDA0 model buffer size = 10000.00 MiB
0.00.5 I llama_kv_cache:      CUDA0 KV buffer size =   384.00 MiB
0.00.5 I llama_kv_cache:      CUDA0 KV buffer size =    16.00 MiB
0.00.6 I sched_reserve:      CUDA0 compute buffer size =   300.00 MiB
0.00.6 I sched_reserve:  CUDA_Host compute buffer size =    12.00 MiB
"""
OLD = """\
llm_load_print_meta: n_expert         = 0
llm_load_tensors: offloaded 20/33 layers to GPU
llm_load_tensors:        CPU buffer size =  1000.00 MiB
llm_load_tensors:      CUDA0 buffer size =  2000.00 MiB
llama_kv_cache_init:  CUDA_Host KV buffer size =    96.00 MiB
llama_kv_cache_init:      CUDA0 KV buffer size =   160.00 MiB
llama_new_context_with_model:  CUDA_Host  output buffer size =     0.50 MiB
llama_new_context_with_model:      CUDA0 compute buffer size =   100.00 MiB
"""
TWO = """\
print_info: n_expert              = 64
print_info: n_layer_dense_lead    = 1
load_tensors: loading model tensors, this can take a while... (mmap = true)
load_tensors: offloaded 20/28 layers to GPU
load_tensors: MTL0_Mapped model buffer size =  100.00 MiB
load_tensors: RPC0[10.0.0.2:50052] model buffer size =  200.00 MiB
"""


def test_logs_of_several_builds_are_read() -> None:
    found = placed_of(NEW, AUTO)
    assert found is not None
    assert (found.how, found.gpu_layers, found.layers, found.cpu_moe) == ("fitted", 49, 49, 21)
    card, host = found.memory
    assert (card.weights_bytes, card.kv_bytes, card.compute_bytes) == (10000 * MIB, 400 * MIB, 300 * MIB)
    assert (host.weights_bytes, host.kv_bytes, host.compute_bytes) == (7000.5 * MIB, 0, 12 * MIB)
    found = placed_of(OLD, Placement(gpu_layers=20))
    assert found is not None
    assert (found.how, found.gpu_layers, found.layers, found.cpu_moe) == ("asked", 20, 33, None)
    assert [(at.place, at.weights_bytes, at.kv_bytes) for at in found.memory] == [
        ("CUDA0", 2000 * MIB, 160 * MIB),
        (HOST, 1000 * MIB, 96 * MIB),
    ]
    found = placed_of(TWO, Placement(gpu_layers=20, cpu_moe=12))
    assert found is not None
    assert found.cpu_moe == 11  # the first layer has none
    assert [at.place for at in found.memory] == ["MTL0", "RPC0"]
    found = placed_of(TWO, Placement(overrides=(r"blk\.(3|4)\.ffn_.*_exps.*=CPU",), gpu_layers="all"))
    assert found is not None
    assert found.cpu_moe == 7  # seven of the eight layers that stayed behind, the two among them
    assert placed_of("nothing of the kind", AUTO) is None


def test_a_log_that_lags_behind_the_answer_is_waited_for(tmp_path: Path) -> None:
    """llama.cpp writes it in a thread of its own: the model may have answered before a line of it is there."""
    log = tmp_path / "log"
    said = ["load_tensors: offloaded 5/5 layers to GPU", "load_tensors: CUDA0 model buffer size = 8.00 MiB", ""]
    log.write_text("starting\n")
    until_asked = threading.Event()

    def write() -> None:
        until_asked.wait()
        for line in [*said, "srv init: model loaded\n"]:
            time.sleep(0.05)
            with log.open("a") as file:
                file.write(f"{line}\n")

    writer = threading.Thread(target=write)
    writer.start()
    assert placed_of(log.read_text(), AUTO) is None
    until_asked.set()
    placed = read_placed(log, AUTO)
    writer.join()
    assert placed == placed_of("\n".join(said), AUTO)
    assert placed is not None
    assert placed.memory[0].weights_bytes == 8 * MIB


def test_the_embedded_one_is_told_the_same() -> None:
    gpus = [EngineDevice(engine="llama.cpp", place=f"CUDA{i}", description="a card") for i in range(3)]

    def told(placement: Placement, gpus: list[EngineDevice] = gpus) -> xllamacpp.CommonParams:
        params = xllamacpp.CommonParams()
        _place(xllamacpp, params, placement, gpus)
        return params

    assert (told(AUTO, []).n_gpu_layers, told(AUTO, []).fit_params) == (0, False)
    assert (told(AUTO).n_gpu_layers, told(AUTO).fit_params) == (-1, True)
    params = told(Placement(gpu_layers="all", cpu_moe=2, overrides=("output=CPU",)))
    assert (params.n_gpu_layers, params.fit_params) == (9999, False)
    assert params.tensor_buft_overrides == r"output=CPU,blk\.(0|1)\.ffn_(up|down|gate_up|gate)_(ch|)exps=CPU"
    params = told(Placement(gpu_layers=4, devices=("cuda1",)))
    assert (params.n_gpu_layers, params.main_gpu) == (4, 1)
    assert params.split_mode == xllamacpp.llama_split_mode.LLAMA_SPLIT_MODE_NONE
    params = told(Placement(gpu_layers="all", devices=("CUDA0", "CUDA2"), tensor_split=(3, 1)))
    assert params.tensor_split[:4] == [3, 0, 1, 0]


def test_a_model_may_lie_in_both_memories_and_must_fit_in_them() -> None:
    sources = [parse_source("qwen3-8b:Q8_0")]  # 8.7 GB, and more of it repacked
    card = EngineDevice(engine="llama.cpp", place="CUDA0", description="a card", free_bytes=8 * 10**9)

    def check(available: float, placement: Placement = AUTO, *listed: EngineDevice) -> None:
        check_memory(sources, None, 512, 1, int(available), "f16", placement, lambda: listed)

    check(12e9)
    check(4e9, AUTO, card)
    with pytest.raises(UserError, match=r"and 4.0 GB is available; "):
        check(4e9, Placement(gpu_layers=0), card)
    with pytest.raises(UserError, match=r"and 9.0 GB is available, 8.0 GB of it free on CUDA0; "):
        check(1e9, AUTO, card)
    with pytest.raises(UserError, match=r"--gpu-layers all needs 9.0 GB on the GPU .* CUDA0 has 8.0 GB free; leave it"):
        check(64e9, Placement(gpu_layers="all"), card)
    assert kv_type(sources, "llama-server", "q8_0") == "q8_0"


def test_devices_are_asked_in_a_process_of_its_own() -> None:
    code = (
        "import sys; from breakeven.engines.devices import listed; "
        "assert any(d.kind == 'cpu' for d in listed()); assert 'xllamacpp' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
