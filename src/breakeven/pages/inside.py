"""How a trace and a profile look in a terminal."""

from __future__ import annotations

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from breakeven.engines.inside.summary import ProfileSummary, TextTraced, TraceSummary
from breakeven.results.comparison import NodeProfile

# Darker is more of the layer's mean load; a space is an expert no token reached.
_SHADES = "·░▒▓█"
_SHADE_EDGES = (0.5, 0.9, 1.1, 1.5)
_PICKED = 3


def show_trace(summary: TraceSummary, console: Console) -> None:
    """The sentence, then loads by layer, distinct experts by batch, and what separates texts."""
    parts: list[Text | Table] = [Text(summary.headline), _loads(summary), _steps(summary)]
    if len(summary.texts) > 1:
        parts.append(_specialists(summary))
    parts.extend(
        Text(f"{text.label} was cut at {text.tokens} tokens.", style="yellow")
        for text in summary.texts
        if text.truncated
    )
    parts.append(
        Text(
            f"An expert's share is known to about ±{summary.sampling_error:.3f} from {summary.tokens} tokens. "
            + _cost("Watching", summary.observing_overhead),
            style="dim",
        )
    )
    console.print(Group(*parts))


def show_profile(summary: ProfileSummary, console: Console) -> None:
    """The sentence, then a table a phase."""
    console.print(Text(summary.headline))
    for profile in summary.profiles:
        console.print(_times(profile))
        console.print(
            Text(
                _cost("Timing the parts", profile.observing_overhead) + " Times are of the watched step.",
                style="dim",
            )
        )


def _cost(what: str, overhead: float) -> str:
    if overhead <= 0:
        return f"{what} cost less than this run could measure."
    return f"{what} made a step {overhead:.0%} slower than it is unwatched."


def _loads(summary: TraceSummary) -> Table:
    table = Table(title="Load by layer (one mark an expert: · below half the mean, █ above 1.5 times, blank none)")
    for heading in ("layer", "max/mean", "variation", "entropy", "dead"):
        table.add_column(heading, justify="right")
    table.add_column("experts", overflow="fold")
    for layer in summary.layers:
        mean = sum(layer.frequencies) / len(layer.frequencies)
        marks = "".join(mark(frequency / mean) for frequency in layer.frequencies)
        table.add_row(
            str(layer.layer),
            f"{layer.max_over_mean:.2f}",
            f"{layer.coefficient_of_variation:.2f}",
            f"{layer.entropy:.3f}",
            str(len(layer.dead_experts)),
            marks,
        )
    return table


def mark(over_mean: float) -> str:
    """One character for an expert's load over its layer's mean."""
    return " " if over_mean == 0 else _SHADES[sum(over_mean > edge for edge in _SHADE_EDGES)]


def _steps(summary: TraceSummary) -> Table:
    table = Table(title="Distinct experts a layer's decode step reads")
    for heading in ("sequences", "in this text", "if uniform", "of all experts"):
        table.add_column(heading, justify="right")
    for step in summary.steps:
        table.add_row(
            str(step.sequences),
            f"{step.distinct:.1f}",
            f"{step.uniform:.1f}",
            f"{step.distinct / summary.n_experts:.0%}",
        )
    return table


def _specialists(summary: TraceSummary) -> Table:
    table = Table(title="Experts a text uses more than the others do (share of tokens above the texts' mean)")
    table.add_column("text")
    table.add_column("tokens", justify="right")
    table.add_column("layer/expert", overflow="fold")
    for text in summary.texts:
        table.add_row(text.label, str(text.tokens), _favourites(summary, text))
    return table


def _favourites(summary: TraceSummary, text: TextTraced) -> str:
    ranked = sorted(
        (
            (difference, layer.layer, expert)
            for layer, row in zip(summary.layers, text.specialisation or [], strict=True)
            for expert, difference in enumerate(row)
        ),
        reverse=True,
    )
    return ", ".join(f"{layer}/{expert} +{difference:.2f}" for difference, layer, expert in ranked[:_PICKED])


def _times(profile: NodeProfile) -> Table:
    tokens = "1 token" if profile.tokens == 1 else f"{profile.tokens} tokens"
    table = Table(title=f"{profile.phase}: one step of {tokens}")
    table.add_column("part")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    total = sum(node.seconds for node in profile.nodes)
    for node in sorted(profile.nodes, key=lambda node: -node.seconds):
        table.add_row(node.kind, f"{node.seconds * 1e3:.2f}", f"{node.seconds / total:.1%}")
    table.add_row("all", f"{total * 1e3:.2f}", "", style="bold")
    return table
