"""Records of 2025 and 2026 of single machines: which of them tell about CPUs, and which about models in two places.

Reads `local_2026.tsv` of a directory of published records: bare facts, each with its source. Placements and host
memory are sentences there; what cannot be said in Breakeven's own words is left out and counted by reason.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.published.names import model_of
from breakeven.errors import UserError
from breakeven.forecast.terms import Terms
from breakeven.hardware.chips import Chip, chip_named
from breakeven.hardware.machine import HostMemory, Machine
from breakeven.hardware.placement import Placement
from breakeven.model.architecture import ModelSpec
from breakeven.model.catalogue import lookup
from breakeven.model.formats.named import format_named

FILE = "local_2026.tsv"
GIB = 2**30
BRIEF_PROMPT = 64.0
"""Tokens in the cache where a record says "short"."""
DEFAULT_OUTPUT = 128.0
ASSUMED = (("threadripper pro 5975wx", 204.8e9), ("threadripper pro 24-core", 307.2e9), ("am5|7950x", 83.2e9))
"""Nominal host bandwidth by the machine's words where the record leaves the memory's speed out: eight channels of
DDR4-3200 and of DDR5-4800 (the processors' own limits), two channels of DDR5-5200."""
DOUBTS = (
    ("rented", "rented: how much of the CPU was had is not known"),
    ("pages from disk|paging|larger than ram", "pages from disk"),
    ("-ser ", "fewer experts than the model's own"),
    (r"\b2 threads", "two threads"),
    ("flow z13", "CPU cores behind a bus that a GPU shares: they cannot fill it"),
    ("numa not bound", "two sockets, memory not bound"),
    ("collapses", "attention of one build on CPUs"),
    ("second-hand", "second-hand"),
)
FORMATS = (
    (r"ud-q4_k_xl|q4_k_m|default 4-bit", "Q4_K_M"), (r"ud-q2_k_xl|q2_k_xl", "Q2_K"), (r"ud-iq3_xxs", "IQ3_XXS"),
    (r"mix-iq3_k", "IQ3_M"), (r"iq4_xs", "IQ4_XS"), (r"mix-iq6_k|q6_k", "Q6_K"), (r"mxfp4", "MXFP4"),
    (r"q5_k_s", "Q5_K_M"), (r"q4_0", "Q4_0"), (r"q8_0", "Q8_0"), (r"bf16", "BF16"),
)  # fmt: skip
"""Start of a format's words, "gguf" and "about" taken off; the nearest in bits where there is none by the name."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row in Breakeven's words. `told_bytes`: the file's size where it was said."""

    id: str
    machine: Machine
    words: str
    engine: str
    spec: ModelSpec
    format: str
    told_bytes: float | None
    placement: Placement | None
    """None: on the CPU alone."""
    kv: str
    prompt: float
    phase: str
    step_tokens: int
    """Of a prompt's step (ubatch)."""
    seconds: float

    def sized(self, terms: Terms) -> float:
        """Bytes of the file over those of `terms`; 1 where its size was not said."""
        return 1.0 if self.told_bytes is None else self.told_bytes / terms.total_bytes


def rows(directory: Path) -> Iterator[dict[str, str]]:
    """All rows by column; none where the directory has no such file."""
    path = directory / FILE
    if path.is_file():
        with path.open(newline="") as file:
            yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def read_local(directory: Path) -> tuple[list[Record], Counter[str]]:
    """Records on CPUs and of models in two places, and how many others of either were left out, by reason."""
    found: list[Record] = []
    skipped: Counter[str] = Counter()
    for row in rows(directory):
        if row["placement"].startswith("all on device"):
            continue
        made = _record(row)
        if isinstance(made, str):
            skipped[made] += 1
        else:
            found.append(made)
    return found, skipped


def _record(row: dict[str, str]) -> Record | str:
    about = f"{row['note']} {row['machine']}".lower()
    for pattern, reason in DOUBTS:
        if re.search(pattern, about) and not (reason == "pages from disk" and "26 ran out of memory" in about):
            return reason
    if row["metric"] not in ("decode_tok_s", "prefill_tok_s"):
        return f"metric not used: {row['metric']}"
    engine = row["engine"].split(" ")[0].lower()
    if engine not in ("llama.cpp", "ik_llama.cpp", "ollama"):
        return f"another engine: {row['engine']}"
    prefill = row["metric"] == "prefill_tok_s"
    if prefill and (engine == "ik_llama.cpp" or "depth" in row["prompt_or_depth_tokens"]):
        return "a prompt behind a context, or in ik_llama.cpp's own kernels"
    told = re.match(r"\d+", row["prompt_or_depth_tokens"])
    if prefill and not told:
        return "prompt's length not published"
    if "long (" in row["prompt_or_depth_tokens"]:
        return "context's length not published"
    spec, name = model_from(row["model"]), _format(row["format"])
    if spec is None or name is None:
        return f"model or format not known: {row['model']} {row['format']}"
    on_cpu = row["placement"].startswith("cpu")
    machine = _machine(row, on_cpu)
    if isinstance(machine, str):
        return machine
    placement = None if on_cpu else _placement(row["placement"], spec)
    if isinstance(placement, str):
        return placement
    length = float(told[0]) if told else BRIEF_PROMPT
    size = re.search(r"\((\d+(?:\.\d+)?) (GiB|GB)\)", row["format"])
    ubatch = re.search(r"ubatch (\d+)", row["note"] + row["placement"])
    return Record(
        id=row["id"],
        machine=machine,
        words=row["machine"],
        engine=engine,
        spec=spec,
        format=name,
        told_bytes=float(size[1]) * (GIB if size[2] == "GiB" else 1e9) if size else None,
        placement=placement,
        kv="q8_0" if "q8_0" in row["kv_type"] else "q4_0" if "q4_0" in row["kv_type"] else "f16",
        prompt=length,
        phase="prefill" if prefill else "decode",
        step_tokens=int(ubatch[1]) if ubatch else 512,
        seconds=length / float(row["value"]) if prefill else 1.0 / float(row["value"]),
    )


def model_from(name: str) -> ModelSpec | None:
    """The architecture of a model's name, or of an Ollama tag or file of it; None when it is not known."""
    bare = name.rpartition("/")[2].lower().replace("deepseek-coder-v2-lite", "deepseek-v2-lite")
    bare = re.sub(r":(?=\d)", "-", bare).partition(":")[0].replace("qwen3.6-35b", "qwen3.6-35b-a3b")
    bare = re.sub(r"-(\d+bit|mxfp4-q8|qat|gguf|mlx|chat)\b", "", bare).replace("a3b-a3b", "a3b").removeprefix("meta-")
    bare = re.sub(r"-(instruct|it)(-25\d\d)?$|-17b-16e-instruct$", "", bare)
    for known in (bare, f"{bare}-17b-16e"):
        try:
            return lookup(known)
        except UserError:
            continue
    return model_of(name)


def _format(words: str) -> str | None:
    text = re.sub(r"^(gguf|about) ", "", words.lower())
    found = next((name for pattern, name in FORMATS if re.search(pattern, text)), None)
    try:
        return found and format_named(found).name
    except UserError:
        return None


def _machine(row: dict[str, str], on_cpu: bool) -> Machine | str:
    host = _host(row)
    try:
        chip = chip_named(row["chip_slug"]) if row["chip_slug"] else None
    except UserError:
        chip = None
    if on_cpu:
        if chip is None or chip.chip_class not in ("cpu", "sbc"):
            if host is None or host.bandwidth_bytes_per_s is None:
                return "a CPU whose memory's rate is not known"
            rate = host.bandwidth_bytes_per_s
            slug = "cpu of " + row["machine"][:40]
            chip = Chip(slug=slug, name="CPU", chip_class="cpu", bandwidth_bytes_per_s=rate, source="as described")
        return Machine(name=chip.slug, devices=(chip,))
    if chip is None or "mixed rig" in row["machine"]:
        return f"device not known: {row['machine']}"
    if host is not None and host.bandwidth_bytes_per_s is None:
        return "host memory whose rate is not told"
    count = int(row["n_devices"] or 1)
    return Machine(name=f"{chip.slug} {row['host_memory']}", devices=(chip,) * count, host=host)


def _host(row: dict[str, str]) -> HostMemory | None:
    """Host memory of a record; its nominal rate as said, else of the memory's kind, else as the processor allows."""
    text = row["host_memory"].lower()
    size = re.search(r"(\d+) gb", text)
    stated = re.search(r"\(?(?:about |~)?(\d+) gb/s", text)
    kind = re.search(r"ddr\d-(\d{4})", text)
    rate: float | None = None
    if stated:
        rate = float(stated[1]) * 1e9
    elif kind:
        channels = re.search(r"(\d+) channels", text)
        rate = int(kind[1]) * 8e6 * (int(channels[1]) if channels else 2)
    else:
        words = row["machine"].lower()
        rate = next((found for pattern, found in ASSUMED if re.search(pattern, words)), None)
    if rate is None and size is None:
        return None
    return HostMemory(memory_bytes=int(size[1]) * GIB if size else None, bandwidth_bytes_per_s=rate)


def _placement(words: str, spec: ModelSpec) -> Placement | str:
    """A placement from its sentence; a text says why not."""
    layers = len(spec.layers)
    text = words.lower()
    if text.startswith("--fit"):
        return Placement()
    if found := re.match(r"ngl=(\d+)", text):
        return Placement(gpu_layers=int(found[1]))
    if found := re.match(r"n-cpu-moe=(\d+|all)", text):
        return Placement(gpu_layers="all", cpu_moe=layers if found[1] == "all" else int(found[1]))
    if text.startswith(("ot=exps=cpu", "all experts on cpu")):
        return Placement(gpu_layers="all", cpu_moe=layers)
    if found := re.search(r"experts of the last (\d+) of", text):
        return _experts_of(range(layers - int(found[1]), layers))
    if found := re.search(r"(?:ffn|experts) of (?:about )?layers (\d+)-(\d+) on cpu", text):
        return _experts_of(range(int(found[1]), int(found[2]) + 1))
    if found := re.search(r"ffn of layers (\d+)-(\d+) of \d+ on the gpu", text):
        kept = range(int(found[1]), int(found[2]) + 1)
        return _experts_of([i for i in range(layers) if i not in kept])
    if found := re.search(r"ffn of (\d+) layers on gpu", text):
        return Placement(gpu_layers="all", cpu_moe=layers - int(found[1]))
    if found := re.search(r"ffn_up and ffn_gate of layers (\d+)-(\d+) on gpu", text):
        kept = range(int(found[1]), int(found[2]) + 1)
        away = [i for i in range(layers) if i not in kept]
        return Placement(gpu_layers="all", overrides=(_pattern(away, "ffn_.*_exps"), _pattern(kept, "ffn_down_exps")))
    return f"placement not known: {words}"


def _experts_of(away: range | list[int]) -> Placement:
    return Placement(gpu_layers="all", overrides=(_pattern(away, "ffn_.*_exps"),))


def _pattern(of: range | list[int], name: str) -> str:
    return rf"blk\.({'|'.join(str(i) for i in of)})\.{name}=CPU"
