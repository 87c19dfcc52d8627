"""Predicted placement against what llama.cpp does: layers and experts by device, and memory by place.

    BREAKEVEN_LLAMA_SERVER=PATH python bench/placement.py [--only PART] [--golden FILE] [--keep DIR]

Each case is a catalogued model cut to a few layers and experts, at its own widths, written with synthetic weights and
loaded by a llama-server that has a device. Prints the table that stands in docs/accuracy.md; `--golden` writes what the
tests check without a device.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from breakeven.engines.synthesis.write import synthesise
from breakeven.forecast.placing import DeviceRoom, PlacedModel, place
from breakeven.hardware.placement import HOST, Placement
from breakeven.model.architecture import ModelSpec, MoeFfn
from breakeven.model.catalogue import lookup

MIB = 2.0**20
BUFFER = re.compile(r": +(\S+) +(model|KV|RS|output|compute) buffer size = +([\d.]+) MiB")
DEVICE = re.compile(r"using device (\S+) .* (\d+) MiB free")
OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers")
ASSIGNED = re.compile(r"layer +(\d+) assigned to device (\w+)")
OVERRIDDEN = re.compile(r"tensor blk\.(\d+)\.ffn_\w+_exps\.weight .* overridden to (\S+)")
LOADING = "loading model tensors"
FITTED = "fitting params to free memory took"
RESERVED = "reserve took"
HOST_BUFFERS = ("CPU", "CPU_Mapped", "CPU_REPACK", "Vulkan_Host")
NO_LIMIT_S = 150.0
LLVMPIPE_LARGEST_BYTES = 2**27
"""llvmpipe's maxStorageBufferRange: it multiplies by no larger tensor."""


@dataclass(frozen=True, slots=True)
class Case:
    """A catalogued model, cut, and how it is placed. `room_mib`: what the fitting may fill of the device."""

    model: str
    layers: int
    experts: int = 16
    format_name: str = "Q4_K_M"
    context: int = 4096
    slots: int = 1
    kv: str = "f16"
    room_mib: int | None = None
    asked: Placement = field(default_factory=Placement)
    vocab: int = 32768

    def spec(self) -> ModelSpec:
        """The model as it is written; every width is the catalogued one's, but the vocabulary."""
        whole = lookup(self.model)
        layers = tuple(
            replace(layer, ffn=replace(layer.ffn, n_experts=min(layer.ffn.n_experts, self.experts)))
            if isinstance(layer.ffn, MoeFfn)
            else layer
            for layer in whole.layers[: self.layers]
        )
        vocab = min(whole.vocab, self.vocab)
        return replace(whole, name="cut", vocab=vocab, layers=layers, published_total_params=None, mtp=None)

    def margin_mib(self, free_mib: int) -> int:
        """What is left free, of a device with so much."""
        return 1024 if self.room_mib is None else free_mib - self.room_mib

    def told(self, free_mib: int) -> list[str]:
        """What llama-server is told."""
        words = ["-c", str(self.context * self.slots), "-np", str(self.slots), "-ctk", self.kv, "-ctv", self.kv]
        if self.asked.fitted:
            words += ["--fit-target", str(self.margin_mib(free_mib))]
        else:
            words += ["--fit", "off", "-ngl", "999" if self.asked.gpu_layers == "all" else str(self.asked.gpu_layers)]
        if isinstance(self.asked.cpu_moe, int):
            words += ["--n-cpu-moe", str(self.asked.cpu_moe)]
        for override in self.asked.overrides:
            words += ["-ot", override]
        return words

    def words(self) -> str:
        """How it was placed, in a table."""
        if self.asked.fitted:
            return "fitted, margin 1024" if self.room_mib is None else f"fitted into {self.room_mib}"
        parts = [f"-ngl {self.asked.gpu_layers}"]
        parts += [f"--n-cpu-moe {self.asked.cpu_moe}"] if self.asked.cpu_moe is not None else []
        parts += [f"-ot {override}" for override in self.asked.overrides]
        return " ".join(parts).replace("|", "\\|")


ALL = "all"
CASES = (
    Case("qwen3-30b-a3b", 10, room_mib=450),
    Case("qwen3-30b-a3b", 10, room_mib=250, context=8192, slots=2),
    Case("qwen3-30b-a3b", 10, asked=Placement(gpu_layers=ALL, cpu_moe=6)),
    Case("qwen3-30b-a3b", 10, asked=Placement(gpu_layers=7, cpu_moe=5), kv="q8_0"),
    Case("gpt-oss-20b", 12, 8, "MXFP4", context=8192, room_mib=1100),
    Case("gpt-oss-20b", 12, 8, "MXFP4", context=16384, slots=4, room_mib=1500),
    Case("olmoe-1b-7b", 12, 16, room_mib=400),
    Case("olmoe-1b-7b", 12, 16, context=1024, slots=8, room_mib=300),
    Case("deepseek-v2-lite", 10, 16, room_mib=500),
    Case("deepseek-v2-lite", 10, 16, asked=Placement(gpu_layers=ALL, cpu_moe=4)),
    Case("granite-3.1-1b-a400m", 12, 16, room_mib=200),
    Case("glm-4.5-air", 5, 8, room_mib=550),
    Case("gemma-4-26b-a4b", 8, 8, context=8192, room_mib=500),
    Case("llama-4-scout-17b-16e", 3, 2, room_mib=750),
    Case("lfm2-8b-a1b", 8, 8, context=8192, slots=4, room_mib=400),
    Case("qwen3-next-80b-a3b", 8, 16, room_mib=330),
    Case("llama-3.2-1b", 16, context=8192, room_mib=550),
    Case("llama-3.1-8b", 6, format_name="F16"),
    Case("llama-3.1-8b", 8, format_name="Q4_0", asked=Placement(gpu_layers=5)),
    Case("qwen2.5-1.5b", 14, context=16384, kv="q8_0", room_mib=400),
    Case("gemma-3-1b", 20, context=32768, room_mib=400),
    Case("smollm2-360m", 32, format_name="Q8_0", context=2048, slots=4, asked=Placement(gpu_layers=0)),
    Case("qwen3-4b", 8, context=8192, room_mib=600),
    Case("qwen3-30b-a3b", 6, 8, asked=Placement(gpu_layers=ALL), vocab=200000),
    Case("olmoe-1b-7b", 12, 16, asked=Placement(gpu_layers=ALL, overrides=(r"blk\.[0-5]\.ffn_(up|down)_exps=CPU",))),
    # From here on: chosen and run after the coefficients of model/reserved.py were read off the ones above.
    Case("moonlight-16b-a3b", 6, 8, room_mib=350),
    Case("gpt-oss-120b", 6, 8, "MXFP4", context=4096, slots=2, room_mib=500),
    Case("phi-3.5-moe", 3, 4, room_mib=450),
    Case("mistral-7b", 5, format_name="Q4_0", context=8192, room_mib=600),
    Case("qwen3-0.6b", 20, context=8192, slots=2, room_mib=400),
    Case("gemma-2-2b", 8, room_mib=400),
    Case("olmoe-1b-7b", 6, 16, "Q8_0", context=2048, slots=4, asked=Placement(gpu_layers=4)),
    Case("qwen3.5-27b", 4, context=8192, room_mib=700),
)


@dataclass(frozen=True, slots=True)
class Found:
    """Where a model lies, and bytes by place."""

    gpu_layers: int
    cpu_moe: int
    bytes_at: dict[str, dict[str, float]]

    def total(self, place_name: str) -> float:
        """Bytes in a place."""
        return sum(self.bytes_at.get(place_name, {}).values())


def predicted(case: Case, devices: Sequence[DeviceRoom], free_mib: int) -> Found:
    """From shapes alone."""
    return found_of(
        place(
            case.spec(),
            case.format_name,
            devices,
            context=case.context,
            slots=case.slots,
            placement=case.asked,
            kv=case.kv,
            margin_bytes=case.margin_mib(free_mib) * MIB,
        )
    )


def found_of(model: PlacedModel) -> Found:
    """A prediction in the words of a log."""
    sizes = {
        at: {"model": b.weights, "kv": b.kv, "compute": b.compute, "output": b.output} for at, b in model.memory.items()
    }
    return Found(model.gpu_layers, model.cpu_moe, sizes)


def reported(log: str, spec: ModelSpec) -> Found:
    """What llama.cpp wrote into its log about the model that it loaded last."""
    last = log[log.rindex(LOADING) :]
    sizes: dict[str, dict[str, float]] = {}
    for buffer, kind, mebibytes in BUFFER.findall(last):
        if "_REPACK" in buffer and kind != "model":
            continue
        at = sizes.setdefault(HOST if buffer in HOST_BUFFERS else buffer, {})
        name = {"KV": "kv", "RS": "kv"}.get(kind, kind)
        at[name] = at.get(name, 0.0) + float(mebibytes) * MIB
    layers = OFFLOADED.search(last)
    assert layers is not None, log[-2000:]
    routed = {i for i, layer in enumerate(spec.layers) if isinstance(layer.ffn, MoeFfn)}
    away = {int(i) for i, device in ASSIGNED.findall(last) if device == "CPU"}
    away |= {int(i) for i, buffer in OVERRIDDEN.findall(last) if buffer in HOST_BUFFERS}
    return Found(int(layers[1]), len(away & routed), sizes)


def listed(executable: str) -> list[tuple[str, int]]:
    """Devices that it has, and MiB free on each."""
    said = subprocess.run([executable, "--list-devices"], capture_output=True, text=True, timeout=60, check=True)
    return [(name, int(free)) for name, free in re.findall(r"^ +(\w+): .*, (\d+) MiB free", said.stdout, re.MULTILINE)]


def _whole(log: str, case: Case) -> bool:
    """Whether the model is loaded and its buffers reserved, so that nothing more is waited for."""
    last = log.rpartition(FITTED if case.asked.fitted else LOADING)
    return bool(last[1]) and RESERVED in last[2]


def loaded_log(executable: str, path: Path, case: Case, free_mib: int, log: Path) -> str:
    """The log of a server that has loaded the case and was stopped."""
    words = [
        executable,
        "-m",
        str(path),
        "-lv",
        "5",
        "--no-warmup",
        "--no-mmap",
        "--port",
        "18099",
        *case.told(free_mib),
    ]
    with log.open("w") as out, subprocess.Popen(words, stdout=out, stderr=out) as server:
        until = time.monotonic() + NO_LIMIT_S
        while server.poll() is None and time.monotonic() < until:
            if _whole(log.read_text(errors="replace"), case):
                break
            time.sleep(0.3)
        server.kill()
    return log.read_text(errors="replace")


def rows(executable: str, cases: Sequence[Case], *, keep: Path | None) -> Iterator[tuple[Case, Found, Found, str]]:
    """Case, prediction, report and log."""
    devices = listed(executable)
    rooms = [DeviceRoom(name, free * MIB, largest_bytes=LLVMPIPE_LARGEST_BYTES) for name, free in devices]
    free_mib = devices[0][1]
    with tempfile.TemporaryDirectory(dir=".") as directory:
        written: tuple[Any, ...] = ()
        path = Path(directory) / "cut.gguf"
        for case in cases:
            log = (keep or Path(directory)) / f"{CASES.index(case):02d}.log"
            text = log.read_text(errors="replace") if log.exists() else ""
            if _whole(text, case):
                yield case, predicted(case, rooms, free_mib), reported(text, case.spec()), text
                continue
            if written != (what := (case.model, case.layers, case.experts, case.format_name, case.vocab)):
                synthesise(case.spec(), case.format_name, path)
                written = what
            text = loaded_log(executable, path, case, free_mib, log)
            if LOADING not in text:
                print(f"{case.model}: not loaded: {text[-300:]}", file=sys.stderr)
                continue
            yield case, predicted(case, rooms, free_mib), reported(text, case.spec()), text


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="Part of a model's name.")
    parser.add_argument("--golden", type=Path, help="Write what the device reported there.")
    parser.add_argument("--keep", type=Path, help="Keep logs there; those that are there are not made again.")
    asked = parser.parse_args()
    executable = os.environ["BREAKEVEN_LLAMA_SERVER"]
    cases = [c for c in CASES if asked.only in c.model]
    golden, same, close = [], 0, 0
    build = "unknown build"
    print(
        "| model, layers kept | format | context x slots | placed | layers | experts in host memory "
        "| device MiB | off | host MiB | off |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case, ours, said, log in rows(executable, cases, keep=asked.keep):
        build = (re.search(r"build: (.+?) with|build (\d+ \(\w+\))", log) or [build])[0]
        device = next((at for at in ours.bytes_at if at != HOST), HOST)
        offs = [ours.total(at) / said.total(at) - 1 if said.total(at) else 0.0 for at in (device, HOST)]
        same += (ours.gpu_layers, ours.cpu_moe) == (said.gpu_layers, said.cpu_moe)
        close += max(map(abs, offs)) <= 0.05
        print(
            f"| {case.model}, {case.layers} | {case.format_name} | {case.context:,} x {case.slots} | {case.words()} "
            f"| {ours.gpu_layers} / {said.gpu_layers} | {ours.cpu_moe} / {said.cpu_moe} "
            f"| {ours.total(device) / MIB:,.1f} / {said.total(device) / MIB:,.1f} | {offs[0]:+.1%} "
            f"| {ours.total(HOST) / MIB:,.1f} / {said.total(HOST) / MIB:,.1f} | {offs[1]:+.1%} |",
            flush=True,
        )
        golden.append({"case": CASES.index(case), "model": case.model, "layers": case.layers, **asdict(said)})
    print(f"{datetime.date.today()}, {build}: placement alike in {same} of {len(golden)}, memory within 5 % in {close}")
    if asked.golden:
        asked.golden.write_text("[\n" + ",\n".join(map(json.dumps, golden)) + "\n]\n")


if __name__ == "__main__":
    main()
