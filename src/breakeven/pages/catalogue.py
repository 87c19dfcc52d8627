"""Models known by name, in a terminal.

Readable from 40 columns on, because columns give way by importance.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from breakeven.errors import UserError
from breakeven.model.catalogue import CatalogueEntry, entries, find, matching, total_of
from breakeven.model.resolve import path_of
from breakeven.model.summary import (
    LARGEST,
    LISTED_FORMAT,
    SIZE_CLASSES,
    Detail,
    ExpertCounts,
    Stored,
    Summary,
    size_class,
)
from breakeven.model.tensors import TensorGroup
from breakeven.pages.words import bytes_text, count_text, grouped, number

LIST_COLUMNS = (
    ("Model", "left", 0),
    ("Kind", "left", 46),
    ("Total", "right", 0),
    ("Active", "right", 58),
    (LISTED_FORMAT, "right", 68),
    ("KV/token", "right", 80),
)
"""Heading, alignment, and the terminal width from which the column is shown."""

FORMAT_COLUMNS = (
    ("Format", "left", 0),
    ("Weights", "right", 0),
    ("Read/token", "right", 0),
    ("Experts", "right", 46),
    ("Shared", "right", 68),
    ("Embedding", "right", 78),
    ("Head", "right", 56),
)


_CLASSES = (*(name for name, _ in SIZE_CLASSES), LARGEST)

APART_COLUMNS = (("Tables", "right", 92), ("Drafting", "right", 84))
"""Shown of models that have them."""
_APART = {"Tables": TensorGroup.TABLE, "Drafting": TensorGroup.MTP}


def is_part(text: str) -> bool:
    """Whether this is no model's name and no path, but a part of catalogued names: a list is what was asked for."""
    path = path_of(text)
    if path.suffix.lower() in (".gguf", ".json", ".yaml", ".yml") or path.exists():
        return False
    try:
        find(text)
    except UserError:
        return bool(matching(text))
    return False


def print_groups(console: Console) -> None:
    """Print the names of all models by size and kind: what stands before the first dash only once."""
    known = entries()
    by_class = grouped(known, lambda entry: size_class(total_of(entry)))
    kinds = sum(entry.facts.is_moe for entry in known)
    console.print(f"{len(known)} models by total parameters: {len(known) - kinds} dense, {kinds} MoE", style="bold")
    console.print(
        "`breakeven models NAME` shows one, `models qwen3.5` all with that name.\n"
        "gemma-3-1b -3-270m: gemma-3-1b, gemma-3-270m. * hybrid: layers with a state",
        highlight=False,
    )
    for name in _CLASSES:
        for moe, kind in ((False, "dense"), (True, "MoE")):
            group = [entry for entry in by_class.get(name, []) if entry.facts.is_moe == moe]
            if group:
                _print_group(f"{name}, {len(group)} {kind}:", _shortened(group), console)


def _print_group(heading: str, names: str, console: Console) -> None:
    lines = textwrap.wrap(f"{heading} {names}", console.width, subsequent_indent="  ", break_on_hyphens=False)
    shown = Text("\n".join(lines))
    shown.stylize("bold", 0, len(heading))
    console.print(shown, highlight=False, soft_wrap=True)


def _shortened(group: Sequence[CatalogueEntry]) -> str:
    words = []
    for family, members in grouped(group, lambda entry: entry.name.partition("-")[0]).items():
        marked = [entry.name + "*" * entry.facts.kind.startswith("hybrid") for entry in members]
        words.append(" ".join([marked[0], *(name.removeprefix(family) for name in marked[1:])]))
    return ", ".join(words)


def print_list(models: Sequence[Summary], console: Console) -> None:
    """Print one line a model, by size class and within one by kind."""
    by_class = grouped(models, lambda model: model.size_class)
    rows: list[list[str]] = []
    for name in _CLASSES:
        if group := by_class.get(name):
            rows.append([name, *[""] * (len(LIST_COLUMNS) - 1)])
            rows += [_list_row(model) for model in sorted(group, key=lambda model: (model.kind != "dense", model.name))]
    console.print(table_within(LIST_COLUMNS, rows, console.width))
    console.print(
        "`breakeven models NAME` shows one. Counts and sizes are computed from shapes; no weights are loaded."
    )


def print_detail(model: Detail, console: Console, full: bool = False) -> None:
    """Print one model; `full`: in every weight format, not only those that most people use."""
    for index, line in enumerate(_head(model)):
        console.print(line, style="bold" if index == 0 else None, highlight=False, markup=False)
    console.print()
    columns = (*FORMAT_COLUMNS, *(row for row in APART_COLUMNS if _APART[row[0]] in model.params_by_group))
    shown = [stored for stored in model.formats if full or _is_common(stored)]
    console.print(table_within(columns, [_format_row(stored, columns) for stored in shown], console.width))
    console.print(
        "Read/token: weight bytes one decode step of one sequence touches."
        + (
            "" if len(shown) == len(model.formats) else f" `--full` has {len(model.formats) - len(shown)} more formats."
        ),
        highlight=False,
    )
    console.print()
    kv = "KV" if model.kv_type == "f16" else f"KV in {model.kv_type}"
    for at in model.contexts:
        console.print(
            f"{kv} at {at.context:>7,} tokens: {bytes_text(at.kv_bytes)}; "
            f"{number(at.decode_flops / 1e9)} GFLOP a decoded token, {number(at.prefill_flops / 1e9)} a prompt token",
            highlight=False,
        )
    if (asked := model.summary.native_kv) is not None:
        console.print(
            f"Its checkpoint asks for {asked} keys and values; vLLM, SGLang and TensorRT-LLM do so unless told not to.",
            highlight=False,
            markup=False,
        )
    if model.state_bytes:
        console.print(f"State of a sequence, at any length: {bytes_text(model.state_bytes)}", highlight=False)
    for line in _published(model):
        console.print(line, highlight=False, markup=False)
    if model.compare_with:
        pair = f"{model.summary.name} {model.compare_with[0].name}"
        console.print(f"Compare with (`breakeven predict {pair}`):", highlight=False, markup=False)
    for other in model.compare_with:
        console.print(f"  {other.name}: {other.why}", highlight=False, markup=False)
    console.print(f"Source: {model.summary.source}", highlight=False, markup=False)


def _published(model: Detail) -> list[str]:
    """Lines on what the publisher says of a catalogued model."""
    facts = model.facts
    if facts is None:
        return []
    active = "" if facts.active_params is None else f", active {count_text(facts.active_params)}"
    total = model.summary.published_total_params
    # Where a figure was read in a repository, its address would fill lines; `--json` has it.
    source = model.summary.published_source or ""
    said_by = "" if source.startswith("github:") else f" ({source})"
    lines = [] if total is None else [f"Published: {count_text(total)}{said_by}{active}"]
    said = [
        f"licence {model.summary.licence}" if model.summary.licence else "",
        f"weights in {model.summary.native_format}" if model.summary.native_format else "",
        f"of {facts.date}" if facts.date else "",
    ]
    if any(said):
        words = ", ".join(each for each in said if each)
        lines.append(words[0].upper() + words[1:])
    if facts.languages:
        lines.append(f"Languages: {' '.join(facts.languages)}")
    if facts.towers:
        lines.append(f"Beside it, not counted: {' and '.join(facts.towers)} tower")
    if facts.also:
        lines.append(f"The same shapes: {', '.join(facts.also)}")
    if facts.base:
        lines.append(f"Base models, not taught to chat: {', '.join(facts.base)}")
    if facts.note:
        lines.append(f"Note: {facts.note}")
    return lines


def table_within(columns: Sequence[tuple[str, str, int]], rows: Sequence[Sequence[str]], width: int) -> Table:
    """The columns that `width` has room for: heading, alignment, and the width from which each is shown."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    shown = [i for i, (_, _, least) in enumerate(columns) if width >= least]
    for i in shown:
        heading, side, _ = columns[i]
        table.add_column(heading, justify="right" if side == "right" else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(row[i] for i in shown))
    return table


def _list_row(model: Summary) -> list[str]:
    return [
        f" {model.name}",
        model.kind if model.experts is None else f"{model.kind} {_of(model.experts)}",
        count_text(model.total_params),
        count_text(model.active_params),
        bytes_text(model.listed_bytes),
        bytes_text(model.kv_bytes_per_token),
    ]


def _of(experts: ExpertCounts) -> str:
    return f"{experts.n_experts_per_token}/{experts.n_experts}"


def _head(model: Detail) -> list[str]:
    known = model.summary
    published = known.published_total_params
    checked = "not checked: no published total" if published is None else f"published {count_text(published)}"
    kind = f"hybrid {known.kind}" if known.hybrid else known.kind
    lines = [
        known.name if known.name == known.hub_id else f"{known.name} ({known.hub_id})",
        f"{kind}, {count_text(known.total_params)} total ({checked}), {count_text(known.active_params)} active",
        *_beside(model),
        f"Context {known.context:,} tokens, {known.n_layers} layers:",
        *(f"  {kind.layers} x {kind.attention}; {kind.ffn}" for kind in model.layer_kinds),
    ]
    if known.experts is not None:
        half, ninety = number(known.experts.batch_half), number(known.experts.batch_ninety)
        lines.append(f"Uniform routing touches 50 % of the experts at a batch of {half}, 90 % at {ninety}")
    if known.llama_cpp is None:
        lines.append("llama.cpp: counted only, no file of this family can be written yet")
    else:
        lines.append(f"llama.cpp: {known.llama_cpp}")
    return lines


def _beside(model: Detail) -> list[str]:
    """What is counted apart: drafting blocks, and tables of which a token reads a row."""
    tables = model.params_by_group.get(TensorGroup.TABLE, 0)
    lines = []
    if model.summary.mtp_params:
        lines.append(f"+ {count_text(model.summary.mtp_params)} drafting blocks, beside the total")
    if tables:
        lines.append(f"of the total, {count_text(tables)} in tables read by row, not active")
    return lines


COMMON_FORMATS = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "MXFP4", "FP8", "INT4", "NVFP4")
"""Formats that are shown of every model, beside the file's own and the one asked for; the rest is for `--full`."""


def _is_common(stored: Stored) -> bool:
    return stored.format in COMMON_FORMATS or stored.label != stored.format


def _format_row(stored: Stored, columns: Sequence[tuple[str, str, int]]) -> list[str]:

    def of(group: TensorGroup) -> str:
        return bytes_text(stored.by_group[group]) if group in stored.by_group else "-"

    return [
        stored.label,
        bytes_text(stored.total_bytes),
        bytes_text(stored.decode_bytes),
        of(TensorGroup.ROUTED_EXPERTS),
        of(TensorGroup.SHARED_EXPERTS),
        of(TensorGroup.EMBEDDING),
        of(TensorGroup.OUTPUT_HEAD) if TensorGroup.OUTPUT_HEAD in stored.by_group else "tied",
        *(of(_APART[heading]) for heading, _, _ in columns if heading in _APART),
    ]
