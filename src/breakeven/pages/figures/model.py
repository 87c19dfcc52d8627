"""What a model is made of: memory, time by kind of node, and where its router sends tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from breakeven.pages.figures.figure import (
    INK,
    NARROW,
    PAPER,
    PARTS,
    SERIES,
    WIDE,
    Figure,
    Missing,
    data_of,
    legend,
    series_of,
    slack,
    styled,
)
from breakeven.pages.words import bytes_text, number, percent_text, seconds_text
from breakeven.results.comparison import Comparison, NodeProfile, Routing

if TYPE_CHECKING:
    import altair as alt

    from breakeven.pages.figures.figure import Drawing

KINDS = ("attention", "router", "expert products", "combination", "dense feed-forward", "head", "rest")
# Above this many cells a second drawing for phones costs more bytes than it is worth: the wide one shrinks.
CELLS_DRAWN_TWICE = 2048


def memory(result: Comparison) -> Figure | Missing:
    """Bars of file size and peak resident memory."""
    rows = [
        {"model": model.name, "what": what, "gigabytes": count / 1e9, "words": bytes_text(count)}
        for model in result.models
        for what, count in (("file", model.file_bytes), ("peak resident", model.peak_rss_bytes))
        if count is not None
    ]
    if not rows:
        return Missing("Memory", "No model tells its size or its memory (a server behind an URL does not).")
    said = "; ".join(f"{row['model']} {row['what']}: {row['words']}" for row in rows)
    return Figure(
        name="memory",
        title="File and peak resident memory",
        alt=f"Memory. {said}.",
        caption="Weight file, and the most memory the engine's process held resident. This machine has "
        f"{bytes_text(result.machine.memory_bytes)}.".replace(" ", "\u00a0"),
        wide=_memory_chart(result, rows, narrow=False),
        narrow=_memory_chart(result, rows, narrow=True),
    )


def _memory_chart(result: Comparison, rows: list[dict[str, Any]], narrow: bool) -> Drawing:
    import altair as alt

    series = series_of(result)
    width = NARROW - 172 if narrow else WIDE - 190
    names = list(dict.fromkeys(row["model"] for row in rows))
    colour = alt.Color(
        "model:N", scale=alt.Scale(domain=names, range=[series[name].sentinel for name in names]), legend=None
    )
    base = alt.Chart().encode(
        x=alt.X("gigabytes:Q", axis=None, scale=alt.Scale(domainMin=0)),
        y=alt.Y(
            "what:N",
            sort=None,
            axis=alt.Axis(title=None, domain=False, ticks=False, labelPadding=8, minExtent=88 if narrow else 96),
        ),
    )
    drawn = (
        alt.layer(
            base.mark_bar(height=13).encode(
                color=colour, opacity=alt.condition("datum.what == 'file'", alt.value(0.55), alt.value(1))
            ),
            base.mark_text(align="left", dx=6).encode(text="words:N"),
        )
        .properties(width=width, height=alt.Step(21))
        .facet(row=_rows("model", names), data=data_of(rows))
        .resolve_scale(y="independent")
    )
    return styled(drawn, narrow, slack((row["words"] for row in rows), narrow))


def _rows(field: str, order: list[str]) -> alt.Row:
    import altair as alt

    return alt.Row(
        f"{field}:N",
        sort=order,
        title=None,
        header=alt.Header(labelOrient="top", labelAnchor="start", labelAngle=0, labelAlign="left", labelLimit=NARROW),
    )


def node_times(result: Comparison) -> Figure | Missing:
    """Stacked bars of time by kind of node, one for each model and phase."""
    profiles = [profile for profile in result.profiles if profile.nodes]
    if not profiles:
        return Missing("Time by node", "No model was profiled in this run, so where the time goes is not shown.")
    title = "Where the time goes"
    models = dict.fromkeys(profile.model for profile in profiles)
    return Figure(
        name="time-by-node",
        title=title,
        alt=f"{title}. " + " ".join(_profile_alt(profile) for profile in profiles),
        caption="Time of one step by kind of node of the compute graph, while observed. "
        + " ".join(_overhead(model, [each for each in profiles if each.model == model]) for model in models),
        wide=_node_chart(profiles, narrow=False),
        narrow=_node_chart(profiles, narrow=True),
    )


def _overhead(model: str, profiles: list[NodeProfile]) -> str:
    """What observing cost a model, and its router's share, by phase."""
    said = " and ".join(f"{percent_text(profile.observing_overhead)} in {profile.phase}" for profile in profiles)
    routers = [
        f"{percent_text(profile.router_share_of_moe_block)} in {profile.phase}"
        for profile in profiles
        if profile.router_share_of_moe_block is not None
    ]
    router = f"; its router takes {' and '.join(routers)} of the MoE blocks' time" if routers else ""
    return f"Observing slowed {model} by {said}{router}."


def _profile_alt(profile: NodeProfile) -> str:
    parts = ", ".join(f"{node.kind} {seconds_text(node.seconds)}" for node in profile.nodes)
    return f"{profile.model}, {profile.phase}: {parts}."


def _node_chart(profiles: list[NodeProfile], narrow: bool) -> Drawing:
    import altair as alt

    found = {node.kind for profile in profiles for node in profile.nodes}
    kinds = [kind for kind in KINDS if kind in found] + sorted(found - set(KINDS))
    colours = [PARTS[_part(kind)].sentinel for kind in kinds]
    colour = alt.Color(
        "kind:N",
        scale=alt.Scale(domain=kinds, range=colours),
        legend=legend(narrow, columns=2 if narrow else 4),
    )
    # A prefill step takes many times a decode step, so each phase has an axis of its own, which its models share.
    phases = [
        _phase_chart([profile for profile in profiles if profile.phase == phase], kinds, colour, narrow)
        for phase in dict.fromkeys(profile.phase for profile in profiles)
    ]
    return styled(alt.vconcat(*phases, spacing=18).resolve_scale(x="independent"), narrow, right=12)


def _phase_chart(profiles: list[NodeProfile], kinds: list[str], colour: alt.Color, narrow: bool) -> alt.FacetChart:
    import altair as alt

    rows = [
        {
            "bar": f"{profile.model}, {profile.phase}, {profile.tokens} tokens"
            if profile.phase != "decode"
            else f"{profile.model}, decode",
            "kind": node.kind,
            "ms": node.seconds * 1e3,
            "order": kinds.index(node.kind),
        }
        for profile in profiles
        for node in profile.nodes
    ]
    axis = alt.Axis(title=None, grid=False, tickCount=3 if narrow else 6, labelExpr="datum.label + ' ms'")
    drawn: alt.FacetChart = (
        alt.Chart()
        .mark_bar(height=22, stroke=PAPER.sentinel, strokeWidth=1)
        .encode(x=alt.X("sum(ms):Q", stack="zero", axis=axis), color=colour, order="order:Q")
        .properties(width=(NARROW if narrow else WIDE) - 24, height=24)
        .facet(row=_rows("bar", list(dict.fromkeys(str(row["bar"]) for row in rows))), data=data_of(rows))
    )
    return drawn


def _part(kind: str) -> int:
    return KINDS.index(kind) if kind in KINDS else len(PARTS) - 1


def routing_maps(result: Comparison) -> list[Figure | Missing]:
    """A heat map of routed experts for each model that was traced."""
    if not result.routings:
        routed = any(model.moe for model in result.models)
        why = "No model's routing was traced in this run." if routed else "No model here is known to route tokens."
        return [Missing("Routing", why)]
    series = series_of(result)
    return [
        _routing(routing, series.get(routing.model, SERIES[0]).sentinel, i) for i, routing in enumerate(result.routings)
    ]


def _routing(routing: Routing, colour: str, index: int) -> Figure:
    top = max((share for row in routing.frequencies for share in row), default=0.0)
    uniform = routing.n_experts_per_token / routing.n_experts
    rows = [
        {"layer": layer, "expert": expert, "share": share}
        for layer, shares in zip(routing.layers, routing.frequencies, strict=True)
        for expert, share in enumerate(shares)
    ]
    never = sum(share == 0 for row in routing.frequencies for share in row)
    scale = f"Even routing would give {percent_text(uniform)}; the darkest cell is {percent_text(top)}"
    return Figure(
        name=f"routing-{index + 1}",
        title=f"{routing.model}: experts chosen, by layer",
        alt=f"How often each of {routing.n_experts} experts was chosen, in {len(routing.layers)} layers of "
        f"{routing.model}. "
        f"{scale}. {never} of {len(rows)} were never chosen.",
        caption=f"Share of {number(routing.tokens, 0)} tokens sent to each expert; "
        f"{routing.n_experts_per_token} are chosen for a token. "
        f"{scale}; blank was never chosen ({never} of {len(rows)}).",
        wide=heat(rows, routing.layers, routing.n_experts, top, colour, narrow=False),
        narrow=heat(rows, routing.layers, routing.n_experts, top, colour, narrow=True)
        if len(rows) <= CELLS_DRAWN_TWICE
        else None,
    )


def heat(
    rows: list[dict[str, Any]], layers: Sequence[int], n_experts: int, top: float, colour: str, narrow: bool
) -> Drawing:
    """A cell an expert and layer, as dark as its share of `top`. `rows`: layer, expert and share of each."""
    import altair as alt

    # One colour whose opacity carries the share: the paper shows through, whatever the theme.
    width = NARROW - 44 if narrow else WIDE - 48
    height = min(300, max(80, 14 * len(layers)))
    every = max(1, n_experts // 8)
    layer_step = max(1, len(layers) // 8)
    drawn = (
        alt.Chart(data_of(rows))
        .mark_rect(color=colour, stroke=None)
        .encode(
            x=alt.X(
                "expert:O",
                axis=alt.Axis(
                    title="expert",
                    values=list(range(0, n_experts, every)),
                    labelAngle=0,
                    ticks=False,
                    domain=False,
                ),
            ),
            y=alt.Y(
                "layer:O", axis=alt.Axis(title="layer", values=list(layers)[::layer_step], ticks=False, domain=False)
            ),
            fillOpacity=alt.FillOpacity("share:Q", scale=alt.Scale(domain=[0, top or 1], range=[0, 1]), legend=None),
        )
        .properties(width=width, height=height)
    )
    frame = alt.Chart(data_of([{}])).mark_rect(fillOpacity=0, stroke=INK.sentinel, strokeOpacity=0.3)
    return styled(alt.layer(drawn, frame).properties(width=width, height=height), narrow)
