"""Public measurements as observations the step model can be held against: one decode step time each, or one prompt.

Reads the JSON files of published records (values as published, every record with its source). What cannot be said
with certainty is left out and counted by reason: an unknown chip, model or format; attention replicated over devices;
more than eight devices (several machines); a graphics card on a board computer's bus; weights split with the host.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.published.local_2026 import Record, read_local
from bench.published.names import chip_of, format_of, model_of
from bench.published.served_2026 import Served, read_served
from bench.published.whole_2026 import Whole, read_whole, steps
from breakeven.hardware.chips import Chip
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import active_params

Phase = Literal["decode", "prefill"]
MOST_DEVICES = 8
FILES = (
    "local_edge_hardware.json",
    "inferencex_silicon_sample.json",
    "cost_meter_h100_vllm.json",
    "llmservingsim_vllm_rtx.json",
)
STEADY_RATES = (1.0, 5.0, 10.0)
"""Requests a second of the H100 sweep that its 500 requests hold long enough to call a steady state."""
BURST_RATE = 200.0
"""Of the same sweep: all 500 requests are there at once."""
MOST_OF_PEAK = 0.7
"""No server is known to multiply a prompt faster than this share of what a data sheet says."""
MOSTLY_WAITING = 0.5
"""Below this share of time spent decoding, what is published is a queue."""
SMALL_HOSTS = re.compile(r"^(pi |raspberry|radxa|minisforum ms-r1|hifive|system76 thelio astra)", re.I)
"""Arm and RISC-V boards with a graphics card attached: the host, not the card, sets much of their speed."""
FIRST_OF_2026 = 7580
"""llama.cpp's build at the turn of the year."""
BRIEF_PROMPT = 64
"""Tokens taken for a prompt whose length was not published; a short question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One published figure. `concurrency`: closed-loop streams, or `rate` open-loop requests a second.

    `seconds` is the time of a decode step (or between tokens of a request), or of reading the whole prompt.
    """

    source: str
    family: Literal["local", "serving"]
    engine: str
    spec: ModelSpec
    format: str
    chip: Chip
    prompt: float
    output: float
    phase: Phase
    seconds: float
    devices: int = 1
    experts_apart: bool = False
    concurrency: float = 1.0
    rate: float | None = None
    old: bool = False
    """A record of 2024, whose prompt is not told apart from the context."""
    year: int = 2026
    """Of the engine's build, where it was told or can be guessed."""
    step_tokens: int | None = None
    """Prompt tokens of a step, where a record says so."""
    wall: bool = False
    """Tokens were counted over wall-clock time: the prompts between them are in `seconds`."""
    decoding: float | None = None
    """Sequences that decode at a time, where a record tells how long the others wait for their first token."""
    batched: bool = False
    """The server sends twenty tokens at a time (`--stream-interval 20`), which spares its host most of the work."""

    @property
    def kind(self) -> str:
        """dense or moe."""
        return "moe" if self.spec.is_moe else "dense"

    @property
    def model_group(self) -> str:
        """Models of one shape, whatever their training: left out together."""
        name = self.spec.name.lower().replace("qwen3.6", "qwen3.5").replace("coder-30b", "30b")
        return re.sub(r"-(instruct|thinking|coder|base|it|chat|2507).*$", "", name)

    @property
    def chip_group(self) -> str:
        """Machines left out together: one chip, whatever its number of devices."""
        return self.chip.slug


def read(directory: Path) -> tuple[list[Observation], Counter[str]]:
    """All usable observations of a directory of published records, and how many were left out, by reason."""
    found: list[Observation] = []
    skipped: Counter[str] = Counter()
    for name in FILES:
        records = json.loads((directory / name).read_text())["records"]
        waits = {r["id"]: r["value"] / 1e3 for r in records if r["metric"] == "ttft" and "id" in r}
        for record in records:
            made = _observation(name, record, waits.get(record.get("id")))
            if isinstance(made, str):
                skipped[made] += 1
            else:
                found.append(made)
    on_cpu, left = read_local(directory)
    # Reading caches of other types is not what is fitted.
    plain = [r for r in on_cpu if r.kv == "f16" or r.prompt == 0 or r.phase == "prefill"]
    found += [_on_cpu(r) for r in plain if r.placement is None]
    whole, aside = read_whole(directory)
    found += [_on_device(r) for r in whole]
    served, unserved = read_served(directory)
    found += [_served(r) for r in served]
    cached = [o for o in found if _cached(o)]
    found = [o for o in found if o not in cached]
    skipped["prompts read faster than the chip multiplies"] += len(cached)
    return _without_repeats(found), skipped + left + aside + unserved


def of_threads() -> list[Observation]:
    """Steps and prompts that llama.cpp's own threads tell (`whole_2026.STEPS`), which no directory holds."""
    return [_on_device(r) for r in steps()]


def _on_cpu(r: Record) -> Observation:
    return Observation(
        source=f"local_2026.tsv:{r.id}",
        family="local",
        engine=r.engine,
        spec=r.spec,
        format=r.format,
        chip=r.machine.devices[0],
        prompt=r.prompt,
        output=128.0,
        phase="prefill" if r.phase == "prefill" else "decode",
        seconds=r.seconds,
    )


def _on_device(r: Whole) -> Observation:
    return Observation(
        source=r.id if " " in r.id else f"local_2026.tsv:{r.id}",
        family="local",
        engine=r.engine,
        spec=r.spec,
        format=r.format,
        chip=r.chip,
        devices=r.devices,
        concurrency=r.streams,
        prompt=r.prompt,
        output=r.output,
        phase="prefill" if r.phase == "prefill" else "decode",
        seconds=r.seconds,
        year=r.year,
        step_tokens=r.step_tokens,
        wall=r.wall,
    )


def _served(r: Served) -> Observation:
    return Observation(
        source=f"local_2026.tsv:{r.id}",
        family="serving",
        engine=r.engine,
        spec=r.spec,
        format=r.format,
        chip=r.chip,
        devices=r.devices,
        concurrency=r.streams,
        rate=r.rate,
        prompt=r.prompt,
        output=r.output,
        phase="decode",
        seconds=r.seconds,
        decoding=r.decoding,
    )


def _cached(o: Observation) -> bool:
    """Whether prompts cannot have been read in the time between tokens: something was cached, or fewer were there."""
    peaks = o.chip.peak_flops
    if o.family != "serving" or o.rate or not peaks:
        return False
    tokens = (o.decoding or o.concurrency) / o.output * o.prompt
    peak = peaks.get("fp8" if o.format == "FP8" else "fp4" if o.format == "NVFP4" else "bf16") or max(peaks.values())
    return tokens * 2.0 * active_params(o.spec) > MOST_OF_PEAK * peak * o.devices * o.seconds


def _without_repeats(observations: list[Observation]) -> list[Observation]:
    """One observation a configuration: the same run is often listed twice."""
    kept: dict[tuple[object, ...], Observation] = {}
    for o in observations:
        key = (
            o.source, o.engine.split()[0], o.model_group, o.format, o.chip.slug, o.devices, o.experts_apart,
            o.concurrency, o.rate, o.prompt, o.output, o.phase, o.seconds,
        )  # fmt: skip
        kept.setdefault(key, o)
    return list(kept.values())


def _observation(file: str, r: dict[str, Any], wait_s: float | None = None) -> Observation | str:
    spec = model_of(r["model"])
    if spec is None:
        return f"model not known: {r['model']}"
    if "speculative" in str(r.get("engine")) or "MTP on" in str(r.get("engine")):
        return "speculative decoding"
    if SMALL_HOSTS.match(r["hardware"]) and r["hw_class"] not in ("cpu", "sbc_cpu"):
        return "graphics card on a board computer"
    if r["hw_class"] == "mixed":
        return "weights split between card and host"
    if re.search("trtllm|sglang", str(r["engine"]).lower()):
        return "another engine"
    if re.search("RISC-V", r["hardware"]):
        return "a processor without vector kernels in llama.cpp"
    chip = chip_of(r["hardware"])
    if chip is None:
        return f"chip not known: {r['hardware']}"
    if chip.slug.startswith("gtx-"):
        return "a card without tensor cores"  # what later cards multiply on, and shares of a peak are of
    name = format_of(r.get("quant"), r["model"])
    if name is None:
        return f"format not known: {r.get('quant')}"
    base = Observation(
        source=f"{file}:{r['source']}",
        family="local",
        engine=str(r["engine"]).strip(),
        old="2024" in str(r["engine"]),
        spec=spec,
        format=name,
        chip=chip,
        devices=int(r.get("n_dev") or 1),
        prompt=float(r.get("prompt_len") or BRIEF_PROMPT),
        output=float(r.get("gen_len") or 128),
        phase="decode",
        seconds=0.0,
        year=_year(str(r["engine"])),
    )
    if file.startswith("local"):
        return _local(base, r)
    return _inferencex(base, r, wait_s) if file.startswith("inferencex") else _loaded(base, r)


def _year(engine: str) -> int:
    """When a build was made; records that do not say it were published through 2025."""
    if found := re.search(r"20\d\d", engine):
        return int(found[0])
    build = re.search(r"\bb(\d{4,5})\b", engine)
    return 2026 if build and int(build[1]) > FIRST_OF_2026 else 2025


def _local(base: Observation, r: dict[str, Any]) -> Observation | str:
    metric = r["metric"]
    if metric not in ("decode", "prefill", "tpot"):
        return f"metric not used: {metric}"
    if re.search(r"cluster|\bx ?\d|\d+ nodes", r["hardware"], re.I) or "distributed" in base.engine:
        return "several machines"
    streams = float(r.get("concurrency") or r.get("batch") or 1)
    depth = float(r.get("context_depth") or 0)
    if metric == "prefill":
        length = float(r.get("prompt_len") or 0)
        if not length or depth or streams > 1:
            return "prompt's length not published, or read behind a context"
        if base.devices > 1:
            return "prompt pipelined over several cards"
        return replace(base, phase="prefill", prompt=length, seconds=length / r["value"], concurrency=1.0)
    family: Literal["local", "serving"] = "serving" if base.engine.lower().startswith("vllm") else "local"
    # llama-bench generates from an empty cache: its prompt test is a separate run.
    told = 0.0 if base.old else float(r.get("prompt_len") or 0)
    prompt = depth or told or (0.0 if base.old or "context_depth" in r else BRIEF_PROMPT)
    seconds = r["value"] / 1e3 if metric == "tpot" else streams / r["value"]
    return replace(base, family=family, concurrency=streams, prompt=prompt, seconds=seconds)


def _inferencex(base: Observation, r: dict[str, Any], wait_s: float | None) -> Observation | str:
    if r["metric"] != "tpot":
        return "TTFT of a served model"
    if str(r.get("attention_dp") or "1") not in ("0", "1"):
        return "attention replicated over devices"
    told = re.search(r"_tp(\d+)_", r["id"])
    devices = int(told.group(1)) if told else max(1, int(r["tp"]))
    moe_tp, moe_ep = (int(r.get(key) or 1) for key in ("moe_tp", "moe_ep"))
    if not told and base.spec.is_moe and moe_tp * moe_ep > 0:
        devices = moe_tp * moe_ep
    if devices > MOST_DEVICES:
        return "more than eight devices"
    if r.get("concurrency") is None:
        return "concurrency not published"
    apart = base.spec.is_moe and moe_ep > 1
    if base.chip.slug.startswith("gb200") and r["concurrency"] > r["batch"]:
        return "several replicas"
    seconds = r["value"] / 1e3
    # Little's law: of those in the loop, the share of their time that they decode. Some servers let 100 of 512 in.
    share = base.output * seconds / (base.output * seconds + wait_s) if wait_s else 1.0
    if share < MOSTLY_WAITING:
        return "load that mostly waits"
    # InferenceX serves with this flag (benchmarks/*.sh of its repository).
    tuned = bool(re.match("2026_|[a-z]+[0-9_]*_b[23]00_", r["id"]))
    return replace(
        base,
        family="serving",
        devices=devices,
        experts_apart=apart,
        concurrency=float(r["concurrency"]),
        seconds=seconds,
        decoding=max(1.0, share * r["concurrency"]) if wait_s else None,
        batched=tuned,
    )


def _loaded(base: Observation, r: dict[str, Any]) -> Observation | str:
    if r["metric"] == "e2e_p99" and r["rps"] == BURST_RATE:
        # All come within 2.5 s, nobody waits for room, and the last one has seen every prompt and every token.
        requests, n = 500.0, base.output
        if base.format == "F16" and base.spec.is_moe:
            return "load that waits for room"
        return replace(base, family="serving", concurrency=requests, decoding=requests, seconds=r["value"] / 1e3 / n)
    if r["metric"] == "tpot_p50":
        if r["rps"] not in STEADY_RATES:
            return "load that never settles"
        return replace(base, family="serving", rate=float(r["rps"]), seconds=r["value"] / 1e3, concurrency=0.0)
    if r["metric"] == "tpot_mean" and "PRO 6000" in r["hardware"]:
        # 300 requests at 10/s soon fill the 128 places that this engine was given.
        return replace(base, family="serving", concurrency=float(r["max_num_seqs"]), seconds=r["value"] / 1e3)
    return f"metric not used: {r['metric']}"
