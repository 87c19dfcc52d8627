"""A row of the answer: one option placed and timed as `predict` does it, in words, with the lines that start it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from breakeven.answer.choice.machine import Site
from breakeven.answer.choice.search import Runnable, under_users
from breakeven.answer.choice.uses import Wish
from breakeven.answer.choice.worlds import DrawnWorlds
from breakeven.errors import BreakevenError
from breakeven.forecast.devices import parts_evenly
from breakeven.forecast.model import step_model
from breakeven.forecast.predict import points_of
from breakeven.model.catalogue import base_words, lookup
from breakeven.model.formats.named import default_format
from breakeven.model.parts import MoeFfn
from breakeven.model.quality.ability import answer_tokens
from breakeven.results.choose import ChoiceRow, CommandLine, Role
from breakeven.results.predicted import PredictedPoint
from breakeven.stats.estimate import Estimate, bracketed

SURE = 0.975
STREAMS = 8
"""The most that a comparison here is asked to run at once."""


@dataclass(frozen=True, slots=True)
class Exact:
    """An option as `predict` has it."""

    point: PredictedPoint
    tokens_per_s: Estimate
    ttft_s: Estimate

    @property
    def fits(self) -> bool:
        """Whether everything has room."""
        return self.point.lacking is None


def exact(option: Runnable, place: Site, wish: Wish) -> Exact | None:
    """The option placed as its engine places it; None where the engine does not run it so."""
    profile, spec = place.formats.get(option.format, place.profile), lookup(option.name)
    if place.engine == "vllm" and not parts_evenly(spec, place.devices):
        return None
    try:
        model = step_model(spec, profile, option.format, place.devices, kv=option.kv, reserve=wish.reserve)
        (point,) = points_of(model, option.name, place.name, [wish.users], [wish.context], wish.prompt)
    except BreakevenError:
        return None
    steps, prefill = point.step_s, point.prefill_s
    middle, fast, slow = (
        under_users(step, read, wish)
        for step, read in (
            (steps.value, prefill.value),
            (steps.least, prefill.least),
            (steps.most, prefill.most),
        )
    )
    return Exact(point, bracketed(middle[0], slow[0], fast[0]), bracketed(middle[1], fast[1], slow[1]))


def row_of(
    number: int,
    option: Runnable,
    found: Exact,
    worlds: DrawnWorlds,
    place: Site,
    wish: Wish,
    *,
    role: Role,
    on_front: bool,
    wins: float,
    why: str,
    gives_up: list[str],
) -> ChoiceRow:
    """The row of one option. `number`: its place among the worlds' options."""
    loss = worlds.losses[number]
    at = int(worlds.of_O[number])
    told = [worlds.told[area][at] for area in worlds.areas]
    sources = [each.source for each in told]
    answer = next((a for area in worlds.areas if (a := answer_tokens(option.name, area, wish.own)) is not None), None)
    tokens = None if answer is None else answer.value
    return ChoiceRow(
        model=option.name,
        hub_id=option.entry.facts.answers,
        kind="moe" if option.shape.moe else "dense",
        format=option.format,
        kv=option.kv,
        role=role,
        on_front=on_front,
        wins=wins,
        quality=worlds.quality(number),
        quality_basis="own" if "own" in sources else "size" if set(sources) == {"size"} else "scores",
        quality_note="; ".join(f"{each.area}: {each.note}" for each in told),
        loss_kl=loss.kl,
        loss_top1=loss.top1,
        loss_basis=loss.basis,
        tokens_per_s=found.tokens_per_s,
        ttft_s=found.ttft_s,
        memory_bytes=found.point.memory_bytes,
        host_bytes=found.point.host_bytes,
        placement=found.point.placement,
        download_bytes=option.download_bytes,
        answer_tokens=tokens,
        answer_s=None if tokens is None else _answer_s(tokens, found),
        licence=option.entry.facts.licence,
        why=why,
        gives_up=gives_up,
        start=start_lines(option, found.point, place, wish),
        notes=[
            *_kept(worlds.keeps_share(number, wish)),
            *_notes(option, answer.source if answer else None, wish),
            *found.point.notes,
        ],
    )


def _kept(share: float) -> list[str]:
    return [f"keeps the speeds that are asked in {share:.0%} of worlds"] if share < SURE else []


def _answer_s(tokens: Estimate, found: Exact) -> Estimate:
    speed, first = found.tokens_per_s, found.ttft_s
    return Estimate(
        first.value + tokens.value / speed.value,
        first.least + tokens.least / speed.most,
        first.most + tokens.most / speed.least,
    )


def _notes(option: Runnable, length_source: str | None, wish: Wish) -> list[str]:
    notes = [f"answer length: {length_source}"] if length_source else []
    if not length_source:
        notes.append("nobody published how long its answers are, so the time of an answer is not known")
    if option.entry.facts.licence is None:
        notes.append("its licence is not known here; read it before use")
    if (base := base_words(option.entry.facts.answers)) is not None:
        notes.append(base)
    said = option.entry.facts.languages
    missing = [code for code in wish.languages if said and code not in said]
    if missing:
        notes.append(f"its publisher does not name {', '.join(missing)} among its languages")
    return notes


def blocks_with(name: str, away: int) -> int:
    """How many blocks from the first hold the experts of `away` layers: llama.cpp counts blocks without any, too."""
    routed = [i for i, layer in enumerate(lookup(name).layers) if isinstance(layer.ffn, MoeFfn)]
    held = min(away, len(routed))
    return routed[held - 1] + 1 + away - held if held else away


def compare_word(option: Runnable, point: PredictedPoint) -> str:
    """The option as `breakeven compare` takes it: with its format, and where its experts or layers lie."""
    placed = point.placed
    words = []
    if placed is not None and placed.cpu_moe:
        words.append(f"cpu-moe={blocks_with(option.name, placed.cpu_moe)}")
    if placed is not None and placed.gpu_layers is not None and placed.gpu_layers != placed.layers:
        words.append(f"gpu-layers={placed.gpu_layers}")
    return f"{option.name}:{option.format}" + (f"@{','.join(words)}" if words else "")


def measure_line(pairs: list[tuple[Runnable, Exact]], wish: Wish, place: Site) -> str | None:
    """The command that measures options here side by side, with weights made up of their shapes; None: it cannot be.

    vLLM makes up weights of 16 bits alone. A comparison has one type of keys and values: the smallest of theirs.
    """
    kinds = {option.kv for option, _ in pairs}
    kept = next((kv for kv in ("q4_0", "q8_0", "fp8") if kv in kinds), "f16")
    whole = all(option.shape.whole_heads for option, _ in pairs)
    if place.engine == "vllm" and any(option.format != "BF16" for option, _ in pairs):
        return None
    if place.engine != "vllm" and kept != "f16" and not whole:
        return None
    streams = sorted({1, min(wish.users, STREAMS)})
    words = ["breakeven", "compare", *(compare_word(option, found.point) for option, found in pairs)]
    words += ["--streams", ",".join(map(str, streams)), "--prompt", str(wish.prompt), "--output", str(wish.output)]
    if kept != "f16":
        words += ["--kv", kept]
    if place.engine == "vllm":
        words += ["--engine", "vllm"]
        if place.devices > 1:
            words.append(f"--engine-flag=--tensor-parallel-size={place.devices}")
    return shlex.join(words)


def start_lines(option: Runnable, point: PredictedPoint, place: Site, wish: Wish) -> list[CommandLine]:
    """How each engine that runs it is started."""
    if place.engine == "vllm":
        return [_vllm(option, place, wish)]
    file = f"{option.name}-{option.format}.gguf"
    note = _of_base(option, f"{file}: a GGUF of {option.entry.facts.answers} in {option.format}")
    words = ["llama-server", "-m", file, "-c", str(wish.reserve * wish.users), "-np", str(wish.users)]
    placed = point.placed
    if placed is not None and placed.gpu_layers is not None:
        words += ["-ngl", str(placed.gpu_layers)]
        if placed.cpu_moe:
            words += ["--n-cpu-moe", str(blocks_with(option.name, placed.cpu_moe))]
    elif place.apart:
        words += ["-ngl", "999"]
    if option.kv != "f16":
        words += ["-fa", "on", "-ctk", option.kv, "-ctv", option.kv]
    lines = [CommandLine(engine="llama-server", line=shlex.join(words), note=note)]
    if placed is None or not placed.cpu_moe:
        made = f"FROM ./{file}\\nPARAMETER num_ctx {wish.reserve}\\n"
        if placed is not None and placed.gpu_layers is not None and placed.gpu_layers != placed.layers:
            made += f"PARAMETER num_gpu {placed.gpu_layers}\\n"
        server = [f"OLLAMA_NUM_PARALLEL={wish.users}"] if wish.users > 1 else []
        server += ["OLLAMA_FLASH_ATTENTION=1", f"OLLAMA_KV_CACHE_TYPE={option.kv}"] if option.kv != "f16" else []
        asked = f"{note}; start Ollama's server with {' '.join(server)}" if server else note
        ollama = f"printf {shlex.quote(made)} > Modelfile && ollama create {option.name} -f Modelfile"
        ollama += f" && ollama run {option.name}"
        lines.append(CommandLine(engine="ollama", line=ollama, note=asked))
    chip = place.profile.chip
    if chip is not None and chip.chip_class == "apple" and option.format == "Q4_K_M":
        made_by = f"mlx_lm.convert --hf-path {option.entry.facts.answers} -q --mlx-path {option.name}-4bit"
        note = f"{option.name}-4bit: a directory in MLX's 4 bits, whose loss is another; {made_by} makes it"
        line = f"mlx_lm.server --model {option.name}-4bit"
        lines.append(CommandLine(engine="mlx", line=line, note=_of_base(option, note)))
    return lines


def _of_base(option: Runnable, note: str | None) -> str | None:
    """`note`, and behind it that what is started is a base model, where no checkpoint of it is known to be more."""
    said = base_words(option.entry.facts.answers)
    return note if said is None else "; ".join(each for each in (note, said) if each)


def _vllm(option: Runnable, place: Site, wish: Wish) -> CommandLine:
    """vLLM reads a checkpoint as its configuration says, and makes FP8 of one in 16 bits alone while it loads."""
    spec = lookup(option.name)
    published = default_format(spec, "vllm").partition("_")[0]
    made = option.format == "FP8" and published == "BF16"
    at_hub = made or published == option.format
    model = option.entry.facts.answers if at_hub else f"{option.name}-{option.format}"
    words = ["vllm", "serve", model, "--max-model-len", str(wish.reserve), "--max-num-seqs", str(wish.users)]
    if place.devices > 1:
        words += ["--tensor-parallel-size", str(place.devices)]
    if made:
        words += ["--quantization", "fp8"]
    if option.kv != "f16":
        words += ["--kv-cache-dtype", option.kv]
    note = None if at_hub else f"{model}: a checkpoint of {option.entry.facts.answers} in {option.format}"
    return CommandLine(engine="vllm", line=shlex.join(words), note=_of_base(option, note))
