"""Predicted memory against what llama.cpp says it reserved: weights, caches and states, compute and output buffers.

    python bench/memory.py [--only PART] [--json FILE]

Each case is a catalogued model cut to a few layers and experts, at its own widths, written with synthetic weights and
loaded by the engine. Prints the table that stands in docs/accuracy.md. Sizes do not depend on the machine's speed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from breakeven.engines.llama_cpp.child import KvType
from breakeven.engines.llama_cpp.server import LlamaCppServer
from breakeven.engines.synthesis.write import synthesise
from breakeven.errors import BreakevenError
from breakeven.model.architecture import ModelSpec, MoeFfn
from breakeven.model.arithmetic import KV_ELEMENT_BYTES, file_bytes, state_bytes
from breakeven.model.catalogue import lookup
from breakeven.model.reserved import compute_bytes, output_bytes, reserved_kv_bytes

MIB = 2.0**20
KV_BYTES: dict[KvType, float] = {"f16": KV_ELEMENT_BYTES, "q8_0": 34 / 32}
LINE = re.compile(r" (\S+) +(model|KV|RS|compute|output) buffer size = +([\d.]+) MiB")
SECOND_COPY = "_REPACK"
"""Weights that llama.cpp re-orders for CPUs it copies; pages of the first copy may leave memory."""


@dataclass(frozen=True, slots=True)
class Case:
    """A catalogued model, cut to `layers` and at most `experts`, and how it is run."""

    model: str
    layers: int
    experts: int = 16
    context: int = 4096
    slots: int = 1
    kv_type: KvType = "f16"
    format_name: str = "Q4_K_M"
    every_logit: bool = False
    """The engine answers embeddings too, and reserves the logits of a whole micro-batch."""
    flash: bool = True

    def spec(self) -> ModelSpec:
        """The model as it is written; every width is the catalogued one's."""
        whole = lookup(self.model)
        layers = tuple(
            replace(layer, ffn=replace(layer.ffn, n_experts=min(layer.ffn.n_experts, self.experts)))
            if isinstance(layer.ffn, MoeFfn)
            else layer
            for layer in whole.layers[: self.layers]
        )
        return replace(whole, name="cut", layers=layers, published_total_params=None, mtp=None)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes by what takes them; `kv` with the states."""

    weights: float
    kv: float
    compute: float
    output: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))


CASES = (
    Case("smollm2-135m", 30),
    Case("smollm2-360m", 32, context=512, slots=4, format_name="Q8_0"),
    Case("llama-3.2-1b", 6, context=8192, slots=4),
    Case("llama-3.1-8b", 2, context=16384),
    Case("mistral-7b", 3, context=2048, format_name="Q4_0"),
    Case("qwen2.5-1.5b", 6, context=512),
    Case("qwen3-0.6b", 8, context=65536),
    Case("qwen3-4b", 4, context=8192, kv_type="q8_0"),
    Case("gemma-2-2b", 4, context=8192),
    Case("gemma-3-1b", 8, context=32768),
    Case("gemma-3-1b", 8, context=2048, slots=4),
    Case("gpt-oss-20b", 4, 8, context=16384, format_name="MXFP4"),
    Case("olmoe-1b-7b", 4, context=4096, slots=4),
    Case("qwen3-30b-a3b", 4, context=32768),
    Case("granite-3.1-1b-a400m", 8, 32, context=4096, kv_type="q8_0"),
    Case("phi-3.5-moe", 2, 4, context=4096),
    Case("deepseek-v2-lite", 4, context=16384),
    Case("moonlight-16b-a3b", 4, context=2048, slots=4),
    Case("llama-4-scout-17b-16e", 4, 2, context=16384),
    Case("lfm2-8b-a1b", 8, context=8192, slots=4),
    Case("gemma-4-26b-a4b", 6, context=8192),
    Case("glm-4.5-air", 3, context=4096),
    Case("qwen3.5-27b", 4, context=8192, slots=4),
    Case("qwen3-next-80b-a3b", 4, context=16384),
)

READINGS = 3


def predicted(case: Case) -> Sizes:
    """From shapes alone."""
    spec = case.spec()
    kept = reserved_kv_bytes(spec, case.context, KV_BYTES[case.kv_type]) + state_bytes(spec)
    return Sizes(
        float(file_bytes(spec, case.format_name)),
        case.slots * kept,
        compute_bytes(spec, case.context, case.slots, gpu=False, every_logit=case.every_logit, flash=case.flash),
        output_bytes(spec, case.slots),
    )


def reported(log: str) -> Sizes:
    """What llama.cpp wrote into its log."""
    found = dict.fromkeys(("model", "KV", "RS", "compute", "output"), 0.0)
    for place, kind, mebibytes in LINE.findall(log):
        if not place.endswith(SECOND_COPY):
            found[kind] += float(mebibytes) * MIB
    return Sizes(found["model"], found["KV"] + found["RS"], found["compute"], found["output"])


def measured(case: Case, directory: Path) -> tuple[Sizes, str]:
    """Load the case in the engine; its report, and the engine's build. The file is deleted again.

    Lines of its threads may be written into one another: a report without weights was not read, and is asked again.
    """
    path, log = directory / f"{case.model}.gguf", directory / "llama.log"
    synthesise(case.spec(), case.format_name, path)
    try:
        for _ in range(READINGS):
            server = LlamaCppServer(
                path,
                context=case.context,
                slots=case.slots,
                log=log,
                kv_type=case.kv_type,
                flash_attention=None if case.flash else False,
                embeddings=case.every_logit,
                verbose=True,
            )
            with server as backend:
                build = backend.settings["build"]
            found = reported(log.read_text(errors="replace"))
            log.unlink()
            if found.weights:
                return found, build
        raise BreakevenError(f"its log told no weights, {READINGS} times")
    finally:
        path.unlink()
        log.unlink(missing_ok=True)


def off(found: Sizes, said: Sizes) -> float:
    """Predicted over reported, less one."""
    return found.total / said.total - 1.0


def rows(cases: list[Case]) -> Iterator[tuple[Case, Sizes, Sizes, str]]:
    """Case, prediction, report and build, of every case that this version can write."""
    with tempfile.TemporaryDirectory(dir=".") as directory:
        for case in cases:
            try:
                said, build = measured(case, Path(directory))
            except BreakevenError as error:
                print(f"{case.model}: left out: {error}", flush=True)
                continue
            yield case, predicted(case), said, build


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="Part of a model's name.")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = []
    print(f"{datetime.date.today()}; predicted / reported, MiB")
    print("| model, layers kept | format | context | slots | KV | weights | caches, states | compute | total off |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case, ours, said, build in rows([c for c in CASES if asked.only in c.model]):
        pairs = ((ours.weights, said.weights), (ours.kv, said.kv), (ours.compute, said.compute))
        sizes = " | ".join(f"{a / MIB:,.1f} / {b / MIB:,.1f}" for a, b in pairs)
        print(
            f"| {case.model}, {case.layers} | {case.format_name} | {case.context:,} | {case.slots} | {case.kv_type} "
            f"| {sizes} | {off(ours, said):+.1%} |",
            flush=True,
        )
        found.append({"case": case.model, "off": off(ours, said), "build": build})
    if found:
        worst = max(abs(one["off"]) for one in found)
        within = sum(abs(one["off"]) <= 0.03 for one in found)
        print(f"{found[-1]['build']}: {within} of {len(found)} within 3 %, the worst {worst:.1%} off")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
