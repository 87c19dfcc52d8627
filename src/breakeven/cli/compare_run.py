"""What `breakeven compare` does with the words it was given."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from breakeven.errors import UserError
from breakeven.measure.paired.plan import Plan
from breakeven.pages.figures.comparison import export_charts
from breakeven.pages.html import write_report
from breakeven.pages.progress import Progress
from breakeven.pages.terminal import print_comparison
from breakeven.results.store import encode_result, write_result
from breakeven.runs.compare import Options, compare, demo_pair

DEFAULTS = Plan()
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


@dataclass(frozen=True, slots=True)
class Words:
    """The options as typed."""

    format_name: str
    streams: str
    prompt: str | None
    output: str | None
    precision: str
    budget: str
    out: Path | None
    resume: bool
    seed: int
    threads: int | None
    inside: bool


def run(models: list[str], words: Words, *, charts: bool, quiet: bool, as_json: bool, demo: bool) -> None:
    """Compare, write the files, print the verdict."""
    options = options_of(words)
    if demo:
        if models:
            raise UserError("--demo chooses its own models; leave either it or them out")
        models, options = demo_pair(options)
    console = Console(stderr=as_json, highlight=False)
    try:
        with Progress(Console(stderr=True, highlight=False), quiet=quiet or as_json) as progress:
            result, directory = compare(models, options, progress.update)
    except KeyboardInterrupt:
        print("\nfinished blocks are kept; run the same command with --resume to go on", file=sys.stderr)
        raise
    write_result(result, directory / "result.json")
    page = directory / "report.html"
    write_report(result, page)
    if charts:
        export_charts(result, directory / "charts")
    if as_json:
        sys.stdout.write(encode_result(result).decode() + "\n")
    else:
        print_comparison(result, console, page)


def options_of(words: Words) -> Options:
    """Check and translate the options. Raises UserError naming the one that is wrong."""
    if not re.fullmatch(r"\d+(,\d+)*", words.streams):
        raise UserError(f"--streams {words.streams!r}: give whole numbers separated by commas, such as 1,2,4,8")
    if words.seed < 0:
        raise UserError(f"--seed {words.seed}: give 0 or more")
    plan = Plan(
        streams=tuple(int(part) for part in words.streams.split(",")),
        prompt_tokens=tokens("--prompt", words.prompt, DEFAULTS.prompt_tokens),
        output_tokens=tokens("--output", words.output, DEFAULTS.output_tokens),
        precision=percent(words.precision),
        budget_s=duration(words.budget),
        seed=words.seed,
    )
    options = Options(plan, words.format_name, words.out, words.resume, words.threads, words.inside)
    return replace(options, command="breakeven " + shlex.join(sys.argv[1:]))


def tokens(option: str, text: str | None, default: int) -> int:
    """A fixed number of tokens; distributions belong to loads. Raises UserError."""
    if text is None:
        return default
    if not re.fullmatch(r"-?\d+", text.strip()):
        raise UserError(f"{option} {text!r}: give a whole number; distributions go with --rate")
    return int(text)


def percent(text: str) -> float:
    """A share from "2%" or "0.02". Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(%?)", text.strip())
    if not match:
        raise UserError(f"--precision {text!r}: give a percentage such as 2%")
    return float(match[1]) / (100 if match[2] else 1)


def duration(text: str) -> float:
    """Seconds from "90s", "3m", "1h" or a plain number of seconds. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not match:
        raise UserError(f"--budget {text!r}: give a time such as 90s, 3m or 1h")
    return float(match[1]) * UNITS[match[2]]
