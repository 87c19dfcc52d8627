"""Which reader a trace file needs: told by the keys of its rows, or said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from breakeven.errors import UserError
from breakeven.traffic.traces import guidellm, lines, results
from breakeven.traffic.traces.cells import keys_of, lines_of
from breakeven.traffic.traces.lines import LINES, LineFormat
from breakeven.traffic.traces.rows import TraceRows


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """One format: the keys it is told by, and what reads all of a file; `knows` None: its files hold much else."""

    needs: frozenset[str]
    read: Callable[[Path], TraceRows]
    knows: frozenset[str] | None = None


TRACES: dict[str, TraceFormat] = {
    "guidellm": TraceFormat(frozenset({"benchmarks"}), guidellm.guidellm_read),
    "aiperf": TraceFormat(frozenset({"metadata.request_start_ns"}), results.aiperf_read),
    "vllm": TraceFormat(frozenset({"input_lens", "output_lens"}), results.vllm_read),
    "inference-perf": TraceFormat(frozenset({"start_time", "end_time", "info"}), results.inference_perf_read),
    **{
        name: TraceFormat(form.needs, partial(lines.read_lines, name=name, form=form), form.knows)
        for name, form in LINES.items()
    },
}
"""In the order in which files are held against them."""

PROMPT_KEYS = frozenset({"messages", "prompt", "conversations", "conversation", "body"})
"""Files of these hold what to ask and not when."""


def read_trace(path: Path, format: str | None = None) -> TraceRows:
    """The requests recorded in `path`; its format is told from the keys of its first rows when it is not given.

    "guidellm:2" means the second benchmark of such a file, "mooncake:s:16" Mooncake's keys with times in seconds and
    blocks of 16 tokens. Raises UserError naming file, line and column, and what would be right.
    """
    if format is None:
        keys = keys_of(path)
        format = format_of(keys)
        if format is None:
            raise UserError(_unknown(path, keys))
        rows = TRACES[format].read(path)
        knows = TRACES[format].knows
        return rows if knows is None else replace(rows, unused=tuple(sorted(k for k in keys - knows if "." not in k)))
    return reader_named(format)(path)


def format_of(keys: frozenset[str]) -> str | None:
    """The format that files of these keys have; None where none is told by them."""
    return next((name for name, known in TRACES.items() if known.needs <= keys), None)


def reader_named(format: str) -> Callable[[Path], TraceRows]:
    """What reads traces of `format`, as --trace-format says it. Raises UserError for one that is not known."""
    name, _, words = format.partition(":")
    if name == "guidellm" and words.isdecimal():
        return partial(guidellm.guidellm_read_one, which=int(words))
    if name == "mooncake" and words and (form := line_format(format)) is not None:
        return partial(lines.read_lines, name=name, form=form)
    if format not in TRACES:
        raise UserError(
            f"trace format {format!r} is not known; one of {', '.join(TRACES)}, guidellm:2 for its second benchmark, "
            "mooncake:s:16 for its keys in seconds and blocks of 16 tokens"
        )
    return TRACES[format].read


def line_format(format: str) -> LineFormat | None:
    """A format that can be read in parts, by its name; None for others."""
    name, _, words = format.partition(":")
    if name == "mooncake" and words:
        unit, _, block = words.partition(":")
        return lines.mooncake_in(unit, block or str(lines.BLOCK_TOKENS))
    return LINES.get(format)


def _unknown(path: Path, keys: frozenset[str]) -> str:
    number, first = next(lines_of(path))
    if keys & PROMPT_KEYS:
        key = min(keys & PROMPT_KEYS)
        return (
            f"{path}, line {number}, key {key}: holds prompts and no times; give it as --prompts, with --rate, "
            "--concurrency or a --trace"
        )
    return (
        f"{path}, line {number}: is no trace format known here ({', '.join(TRACES)}); the simplest is CSV with "
        f"the header {','.join(lines.SIMPLE_COLUMNS)}; found {first[:60]!r}"
    )
