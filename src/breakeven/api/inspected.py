"""Verbs that look at models, machines and weight files, or make the latter.

Each imports what it needs when it is called: describing this machine needs no engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from breakeven.errors import UserError

if TYPE_CHECKING:
    from breakeven.engines.cache import CachedFile
    from breakeven.engines.inside.summary import ProfileSummary, TraceSummary
    from breakeven.hardware.chips import Chip
    from breakeven.hardware.machine import Gpu, Machine, MachineSpec
    from breakeven.measure.progress import ProgressState
    from breakeven.model.summary import Detail, Summary


@overload
def models(name: None = None, *, like: str | None = None) -> list[Summary]: ...
@overload
def models(name: str, *, kv: str = "f16", assume: bool = False) -> Detail: ...
def models(
    name: str | None = None, *, like: str | None = None, kv: str = "f16", assume: bool = False
) -> list[Summary] | Detail:
    """The models known by name; or one (a name, a hub id, a file) in numbers: counts, bytes by format, KV, experts.

    `like`: only those with these words in their names. `kv`: type of keys and values of the one. `assume`: read a
    configuration on past keys that are not known and could change the layout. Raises UserError for a model that cannot
    be found or read, and an unknown type.
    """
    from breakeven.model.catalogue import entries, find, lookup, matching, names
    from breakeven.model.resolve import resolve_spec, split_format
    from breakeven.model.summary import detail, summarise

    if name is None:
        known = names() if like is None else matching(like)
        return [summarise(each, lookup(each), find(each).facts) for each in known]
    spec = resolve_spec(name, assume=assume)
    # A file may carry a catalogued model's name and other shapes; only the very same model gets the short name.
    same = (entry for entry in entries() if entry.hub_id == spec.name and lookup(entry.name) == spec)
    entry = next(same, None)
    return detail(entry.name if entry else spec.name, spec, entry, kv, split_format(name)[1])


@overload
def machines(name: None = None) -> Sequence[Chip]: ...
@overload
def machines(name: str) -> Chip | Machine: ...
def machines(name: str | None = None) -> Sequence[Chip] | Chip | Machine:
    """The chips known by name; or one, by name or from a YAML or JSON file that describes it; or a whole machine.

    Parts joined by "+", and files that say more than a chip, are machines: `rtx-3090+ddr4-3200x2:64GB`. Raises
    UserError for a name that is not known and a file that makes no sense.
    """
    from breakeven.hardware.chips import chips
    from breakeven.hardware.described import machine_named
    from breakeven.hardware.machine import Machine

    if name is None:
        return chips()
    found = machine_named(name)
    chip = found.devices[0]
    return chip if found == Machine(name=found.name, devices=(chip,)) else found


def machine(measure: bool = False, listed: Sequence[Gpu] | None = None) -> MachineSpec:
    """This machine as an engine sees it: CPU, cores and memory this process may use, caches, GPUs.

    `measure`: also the rate at which all those cores read the memory, in about two seconds. `listed`: devices as an
    engine names them, which are joined to what the drivers tell; None: the engines here are asked, in a second or two.
    Raises BreakevenError where there is too little free memory to measure in.
    """
    from breakeven.hardware.memory import measured
    from breakeven.hardware.reader import read_machine

    here = read_machine(_of_engines() if listed is None else listed)
    return measured(here) if measure else here


def _of_engines() -> list[Gpu]:
    """GPUs as engines here name them; what two engines call by one name is one device."""
    from breakeven.engines.devices import listed
    from breakeven.hardware.machine import Gpu

    found: dict[str, Gpu] = {}
    for device in listed():
        if device.is_gpu:
            told = device.memory_bytes is not None
            gpu = Gpu(
                device.description, device.memory_bytes or 0, device.engine, device.kind == "igpu", device.place, told
            )
            found.setdefault(device.place, gpu)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Synthesised:
    """A weight file that `synth` wrote: of which model, how large, and how long it took."""

    path: Path
    model: str
    format: str
    size_bytes: int
    seconds: float


def synth(
    model: str,
    out: Path | str,
    *,
    format: str | None = None,
    routing: str = "uniform",
    seed: int = 0,
    mtp: bool = False,
    engine: str = "llama.cpp",
) -> Synthesised:
    """Write a GGUF with the exact tensors of `model` and random weights: good for speed and memory only.

    `engine`: of which it is for. For "mlx" and "vllm" `out` becomes a Hugging Face directory; mlx-lm must be installed
    to say what it loads, and vLLM draws the weights itself (`--load-format dummy`), so its directory holds none.

    `format`: where the model names none (`NAME:FORMAT`); None: the one it is published in, else Q4_K_M.
    `routing`: "uniform", or "zipf:S" for a skew with exponent S. The same seed gives the same bytes. `mtp`: with
    the model's drafting blocks. Raises UserError for what is unknown, NotSupportedError for a layout that llama.cpp
    does not load.
    """
    if engine != "llama.cpp":
        return _synth_directory(model, Path(out), format, engine, seed, plain=routing == "uniform" and not mtp)
    from breakeven.engines.backend import LLAMA_CPP
    from breakeven.engines.source import Source, weight_format
    from breakeven.engines.synthesis.routing import parse_routing
    from breakeven.engines.synthesis.write import synthesise
    from breakeven.model.readers.gguf_file import first_part
    from breakeven.model.resolve import path_of, resolve_spec, split_format, weight_file

    spec, path, (named, own_format) = resolve_spec(model), Path(out), split_format(model)
    if path.is_dir():
        name = spec.name.rsplit("/", 1)[-1]  # of a hub id what comes last: the rest is no directory of this one
        raise UserError(f"--out {path} is a directory; give the file to write, such as {path / name}.gguf")
    place, weights_in = path_of(named), weight_file(named)
    given = [file for file in (place, weights_in) if file is not None and file.exists()]
    inside = place.is_dir() and path.parent.resolve() == place.resolve()
    a_part = weights_in is not None and first_part(path.resolve()) == first_part(weights_in.resolve())
    if path.exists() and (inside or a_part or any(path.samefile(file) for file in given)):
        raise UserError(f"--out {path} is the model itself, whose weights would be lost; choose another name")
    source = Source(model, spec.name, spec, format_name=own_format)
    weights = weight_format(source, format, LLAMA_CPP)
    started = time.monotonic()
    synthesise(spec, weights, path, routing=parse_routing(routing), seed=seed, mtp=mtp)
    return Synthesised(path, spec.name, weights, path.stat().st_size, time.monotonic() - started)


def _synth_directory(
    model: str, out: Path, format_name: str | None, engine: str, seed: int, *, plain: bool
) -> Synthesised:
    from breakeven.engines.synthesis.directory import synthesise_mlx, write_without_weights
    from breakeven.engines.vllm.directory import FORMATS, configuration_of
    from breakeven.errors import NotSupportedError, UserError
    from breakeven.model.resolve import resolve_spec, split_format

    if engine not in ("mlx", "vllm"):
        raise UserError(f"no file is written for engine {engine!r}; choose llama.cpp, mlx or vllm")
    if not plain:
        raise NotSupportedError(f"--routing and --mtp are for llama.cpp's files; leave them out with --engine {engine}")
    spec, started = resolve_spec(model), time.monotonic()
    chosen = (split_format(model)[1] or format_name or ("MLX4" if engine == "mlx" else "BF16")).upper()
    config, size = configuration_of(model, spec), 0
    if engine == "mlx":
        size = synthesise_mlx(config, spec, chosen, out, seed=seed)
    elif chosen not in FORMATS:
        raise NotSupportedError(f"{chosen} cannot be drawn as dummy weights; with vllm choose {' or '.join(FORMATS)}")
    else:
        write_without_weights(config, out, name=spec.name, dtype=FORMATS[chosen])
    return Synthesised(out, spec.name, chosen, size, time.monotonic() - started)


class CacheVerbs:
    """`breakeven cache`: its verbs; never made."""

    @staticmethod
    def directory() -> Path:
        """Where synthetic weight files are kept."""
        from breakeven.engines.cache import cache_directory

        return cache_directory()

    @staticmethod
    def prune(unused_days: float = 0.0) -> Sequence[CachedFile]:
        """Delete weight files not used for so many days; they are written again when needed. The files deleted."""
        from breakeven.engines.cache import prune

        return prune(unused_days * 86400)

    @staticmethod
    def list() -> Sequence[CachedFile]:
        """The weight files kept, most recently used first."""
        from breakeven.engines.cache import entries

        return entries()


def trace(
    model: str,
    texts: Mapping[str, str] | Sequence[Path | str] = (),
    *,
    prompts: Path | str | None = None,
    threads: int | None = None,
    max_tokens: int = 2048,
    engine: str | None = None,
    gpu_layers: str | int | None = None,
    cpu_moe: str | int | None = None,
    device: str | None = None,
    tensor_split: str | None = None,
    on_progress: Callable[[ProgressState], None] = lambda state: None,
) -> TraceSummary:
    """Run texts through a model and tell how its experts are used: balance, dead experts, experts per step.

    `model`: a .gguf file, or a model to synthesise, in Q4_K_M unless it names or has another format. `texts`: by label,
    or files that hold them; `prompts`: a file of one's own prompts, each a sequence, told together. Each text, and
    that file, is cut at `max_tokens`. `gpu_layers`: as for `compare`, "auto" being all where the built-in llama.cpp has
    a GPU; the other words of a placement and other engines are refused. Raises UserError for them and for an empty or
    unreadable text, NotSupportedError for a dense model.
    """
    from breakeven.engines.inside.client import trace as run
    from breakeven.engines.inside.summary import summarise

    given = texts if isinstance(texts, Mapping) else _texts([Path(text) for text in texts])
    labelled: dict[str, str | list[str]] = dict(given)
    if prompts is not None:
        from breakeven.traffic.prompt_file import read_prompts

        if Path(prompts).name in labelled:
            raise UserError(f"{prompts} and a text share a name; rename one of them")
        labelled[Path(prompts).name] = [request.plain for request in read_prompts(prompts).requests]
    words = {"gpu_layers": gpu_layers, "cpu_moe": cpu_moe, "device": device, "tensor_split": tensor_split}
    look = _Look(model, engine, words, on_progress)
    return summarise(
        run(
            look.path,
            labelled,
            threads=threads,
            max_tokens=max_tokens,
            gpu_layers=look.gpu_layers,
            on_step=look.on_step,
        )
    )


class _Look:
    """What is looked into: its file, written first if need be, how much of it lies on a GPU, and who is told."""

    def __init__(
        self,
        model: str,
        engine: str | None,
        words: Mapping[str, str | int | None],
        on_progress: Callable[[ProgressState], None],
    ) -> None:
        from breakeven.engines.borrowed import refuse_placement
        from breakeven.engines.devices import check_embedded
        from breakeven.engines.inside.client import ALL_LAYERS
        from breakeven.engines.kinds import engine_named
        from breakeven.engines.source import parse_source
        from breakeven.engines.start import gguf_of
        from breakeven.hardware.placement import placement_of
        from breakeven.measure.progress import ProgressState

        source = parse_source(model)
        began, name = time.monotonic(), source.name
        named = source.engine or engine
        if named is not None and engine_named(named).name != "llama.cpp":
            raise UserError(f"--engine {named}: only the built-in llama.cpp can be looked into; leave --engine out")
        asked = placement_of(**{**words, **source.words})  # type: ignore[arg-type]
        takes_no = "it takes --gpu-layers alone; leave the other out"
        refuse_placement(asked, "the look inside", takes_no, taken=("--gpu-layers",))
        if asked.cpu_moe is not None:
            raise UserError(f"--cpu-moe: the look inside has no such setting; {takes_no}")
        check_embedded(asked)
        self.gpu_layers = asked.gpu_layers if isinstance(asked.gpu_layers, int) else ALL_LAYERS

        def writing(done: int, total: int) -> None:
            spent_s = time.monotonic() - began
            on_progress(ProgressState("writing weights", spent_s, done_bytes=done, total_bytes=total, subject=name))

        def step(what: str, share: float) -> None:
            on_progress(ProgressState(what, time.monotonic() - began, subject=name, share=share))

        self.on_step = step
        self.path = gguf_of(source, writing)


def _texts(paths: Sequence[Path]) -> dict[str, str]:
    """Label to text; a label is the file's name, or its whole path where two files share a name."""
    names = [path.name for path in paths]
    texts: dict[str, str] = {}
    for path in paths:
        label = path.name if names.count(path.name) == 1 else str(path)
        if label in texts:
            raise UserError(f"{path} is given twice; give each text once")
        try:
            texts[label] = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); give a text file") from None
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8 text; convert it or give another") from None
    return texts


def profile(
    model: str,
    *,
    prompt_tokens: int = 128,
    steps: int | None = None,
    threads: int | None = None,
    engine: str | None = None,
    gpu_layers: str | int | None = None,
    cpu_moe: str | int | None = None,
    device: str | None = None,
    tensor_split: str | None = None,
    on_progress: Callable[[ProgressState], None] = lambda state: None,
) -> ProfileSummary:
    """Time the parts of a model's decode and prefill steps: attention, router, experts, head and the rest.

    `model`, engine and placement as for `trace`. `steps` None: 32 decode and 4 prefill. Raises UserError for numbers
    below 1, and as `trace` does.
    """
    from breakeven.engines.inside.client import Phase
    from breakeven.engines.inside.client import profile as run
    from breakeven.engines.inside.summary import ProfileSummary

    phases: tuple[Phase, ...] = ("decode", "prefill")
    words = {"gpu_layers": gpu_layers, "cpu_moe": cpu_moe, "device": device, "tensor_split": tensor_split}
    look = _Look(model, engine, words, on_progress)
    return ProfileSummary(
        profiles=[
            run(
                look.path,
                phase=each,
                prompt_tokens=prompt_tokens,
                steps=steps,
                threads=threads,
                gpu_layers=look.gpu_layers,
                on_step=look.on_step,
            )
            for each in phases
        ]
    )
