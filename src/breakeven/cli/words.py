"""From words on a command line to arguments of the API: the options that several verbs share, and how they are read.

Nothing heavy is imported here, so that `breakeven VERB --help` stays quick.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from breakeven.errors import UserError

if TYPE_CHECKING:
    from breakeven.pages.progress import LoadProgress

# Options that say the same wherever they stand.
Rate = Annotated[str | None, typer.Option(help="Open loop: requests/s, comma-separated.")]
Concurrency = Annotated[str | None, typer.Option(help="Closed loop: requests at once, comma-separated.")]
Arrivals = Annotated[str, typer.Option(help="constant, poisson, gamma:CV, agents, steps:2x30s,5x30s or ramp:1-10.")]
Trace = Annotated[Path | None, typer.Option(help="Replay what somebody recorded (docs/traffic.md#traces).")]
TraceFormat = Annotated[
    str | None, typer.Option(help="Of --trace: azure, mooncake, mooncake:s:16, ...", show_default="told by its rows")
]
Prompts = Annotated[Path | None, typer.Option(help="Ask your own prompts: JSON lines, ShareGPT, a prompt a line.")]
Speed = Annotated[float, typer.Option(help="Of the trace: 0.5 stretches its gaps to twice the time.")]
Window = Annotated[str | None, typer.Option(help="Part of the trace, in its own time: 0s-10m.")]
WarmUp = Annotated[str | None, typer.Option(help="Same traffic before, never counted.")]
Prompt = Annotated[str | None, typer.Option(help="Tokens: 512, uniform:64-512, lognormal:1155,900.")]
Output = Annotated[str | None, typer.Option(help="Tokens, as for --prompt.")]
Turns = Annotated[int, typer.Option(help="Turns of a conversation; the context grows.")]
Think = Annotated[str, typer.Option(help="Pause before the next turn, or of a stream.")]
Chat = Annotated[bool, typer.Option("--chat", help="Use /v1/chat/completions.")]
SloOption = Annotated[str | None, typer.Option(help="What a good request keeps: ttft=1s,tpot=80ms,itl=,e2e=.")]
ModelName = Annotated[str | None, typer.Option("--model", help="The model's name at the server.")]
Processes = Annotated[int | None, typer.Option(help="Client processes.", show_default="as needed")]
Ray = Annotated[str | None, typer.Option("--ray", help="Make the load on a Ray cluster: its address.")]
Engine = Annotated[
    str | None,
    typer.Option(help="Starts models: llama.cpp, llama-server, vllm, mlx, ollama, ...", show_default="what suits here"),
]
EngineFlags = Annotated[
    list[str] | None,
    typer.Option("--engine-flag", help="One more flag for the engine; or give all of them behind --.", metavar="FLAG"),
]
SyntheticFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Weight format of a synthetic model that names none (MODEL:FORMAT).",
        show_default="its own, else Q4_K_M, BF16",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Weight format of models that name none (MODEL:FORMAT).",
        show_default="a file's or checkpoint's own, else Q4_K_M, or BF16 with vllm",
    ),
]
Kv = Annotated[
    str | None,
    typer.Option("--kv", help="Type of keys and values: f16, q8_0, q4_0, fp8, ...", show_default="f16"),
]
Assume = Annotated[bool, typer.Option("--assume", help="Read models on past what is not known in their files.")]
EngineByMachine = Annotated[str | None, typer.Option(help="llama.cpp or vllm.", show_default="by machine")]
Devices = Annotated[int | None, typer.Option(min=1, help="Devices that share a model.", show_default="1")]
GpuLayers = Annotated[
    str | None,
    typer.Option("--gpu-layers", help="Layers on the GPU: auto, all or how many.", show_default="auto"),
]
CpuMoe = Annotated[
    str | None,
    typer.Option("--cpu-moe", help="Layers whose experts stay in host memory: auto or how many.", show_default="auto"),
]
Device = Annotated[str | None, typer.Option("--device", help="Devices by the engine's names: CUDA0,CUDA1.")]
TensorSplit = Annotated[str | None, typer.Option("--tensor-split", help="Shares of the layers by device: 3,1.")]
# What the look inside does not know and refuses in a sentence of its own; its help leaves them out.
InsideEngine = Annotated[str | None, typer.Option("--engine", hidden=True)]
InsideCpuMoe = Annotated[str | None, typer.Option("--cpu-moe", hidden=True)]
InsideDevice = Annotated[str | None, typer.Option("--device", hidden=True)]
InsideTensorSplit = Annotated[str | None, typer.Option("--tensor-split", hidden=True)]
Slots = Annotated[int | None, typer.Option(help="Requests an engine started here works on at once.")]
Threads = Annotated[int | None, typer.Option(help="Engine threads.", show_default="all CPUs")]
Tokenizer = Annotated[Path | None, typer.Option(help="tokenizer.json, where the server cannot be asked.")]
Full = Annotated[bool, typer.Option("--full", help="All of the summary, not one screen of it.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Log = Annotated[Path | None, typer.Option("--log", help="The decision log's directory.", metavar="DIR")]


def target(text: str, model: str | None) -> str:
    """TARGET and --model as one source. Raises UserError when they do not go together."""
    if not text.lower().startswith(("http://", "https://")):
        if model is not None:
            raise UserError("--model names a model at a server; TARGET is a model itself, so leave it out")
        return text
    if model is not None and "#" in text and text.partition("#")[2] != model:
        raise UserError(f"TARGET names another model than --model {model}; give one of them")
    return text if model is None or "#" in text else f"{text}#{model}"


def percent(option: str, text: str, example: str = "5%") -> float:
    """A share from "90%" or "0.9". Raises UserError naming `option`."""
    from breakeven.traffic.words import option_share

    return option_share(option, text, f"a percentage such as {example}")


def duration(text: str, option: str = "--budget") -> float:
    """Seconds of an option. Raises UserError."""
    from breakeven.traffic.words import option_seconds

    return option_seconds(option, text, "a time such as 90s, 3m or 1h")


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers from "8,6,4". Raises UserError naming `option`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text!r}: give whole numbers such as 8,6,4") from None


def command() -> str:
    """This command line, as results record it."""
    return "breakeven " + shlex.join(sys.argv[1:])


def load_progress(*, quiet: bool) -> LoadProgress:
    """The view of a run under load, on standard error."""
    from rich.console import Console

    from breakeven.pages.progress import LoadProgress

    return LoadProgress(Console(stderr=True, highlight=False), quiet=quiet)


@contextmanager
def resumable(kept: str) -> Iterator[None]:
    """What is run can be interrupted and gone on with; `kept` says what of it is not lost."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{kept}; run the same command with --resume to go on", file=sys.stderr)
        raise


def print_json(content: object) -> None:
    """Print a result, indented."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
    # JSON may hold DEL and the C1 controls as they are; a terminal obeys them.
    typer.echo(re.sub(r"[\x7f-\x9f\u2028-\u202e\u2066-\u2069]", lambda found: f"\\u{ord(found[0]):04x}", text))
