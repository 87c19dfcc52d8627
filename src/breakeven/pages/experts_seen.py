"""What is seen of a running gateway's experts, on a terminal: alarms first, a line a backend, then layers, worst first.

A layer's experts stand in one line of blocks: as many cells as fit, each as high as the busiest of its experts.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from functools import partial

from rich.console import Console
from rich.live import Live
from rich.text import Text

from breakeven.errors import one_line
from breakeven.gateway.experts.asked import NoAnswerError
from breakeven.gateway.experts.report import BackendExperts, ExpertsSeen, GroupSeen, LayerSeen
from breakeven.pages.terminal import (
    SCREEN_LINES,
    Passage,
    Say,
    columns,
    listed_parts,
    packed,
    print_parts,
    say_tables,
    shortened,
)
from breakeven.pages.words import number, seconds_text

EVERY_S = 5.0
FIRST_LAYERS, MOST_LAYERS = 5, 12
"""Of the first screen: always, and where there is room."""
MOST_GROUPS = 4
MOST_CELLS = 128
LONGEST_TEXT = 400
NARROW = 72
"""Columns below which entropy and drift of layers leave their room to the blocks."""
BLOCKS, PLAIN_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
FULL_AT = 4
"""Times the mean at which a cell is full."""
SOURCES = {
    "observed": "looked at by the gateway",
    "returned": "told by the engine with its answers",
    "counted": "counted by the engine",
}
NOTHING = (
    "Nothing is seen of any expert yet: put `experts: {observe: 1%}` under a backend in the gateway's file, or wait "
    "for requests to come (docs/experts-serving.md)."
)


def watch(look: Callable[[], ExpertsSeen], console: Console, *, backend: str | None, once: bool, full: bool) -> None:
    """Show what `look` sees, on a terminal anew every five seconds until Ctrl-C, else once. Raises as `look` does.

    With `full` once as well: what does not fit a screen cannot be redrawn on it. A gateway that goes away while it is
    watched is asked again, and what was seen last stays.
    """
    seen, at_s = look(), time.monotonic()
    if once or full or not console.is_terminal:
        print_seen(seen, console, backend=backend, full=full)
        return
    trouble = ""
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                live.update(_screen(seen, console, backend, trouble), refresh=True)
                time.sleep(EVERY_S)
                try:
                    seen, trouble, at_s = look(), "", time.monotonic()
                except NoAnswerError as error:
                    ago = seconds_text(round(time.monotonic() - at_s))
                    trouble = f"{error}; below is how it was {ago} ago"
    except KeyboardInterrupt:
        return


def _screen(seen: ExpertsSeen, console: Console, backend: str | None, trouble: str) -> Text:
    """One screen of it, no higher than the terminal."""
    drawn = io.StringIO()
    inner = Console(
        file=drawn,
        width=console.width,
        force_terminal=True,
        color_system="truecolor" if console.color_system else None,
        no_color=console.no_color,
        legacy_windows=False,
    )
    most = max(12, min(SCREEN_LINES, console.height - 1))
    print_seen(seen, inner, backend=backend, full=False, trouble=trouble, most=most, plain=console.options.ascii_only)
    return Text.from_ansi(drawn.getvalue().rstrip("\n"), no_wrap=True, overflow="crop")


def print_seen(
    seen: ExpertsSeen,
    console: Console,
    *,
    backend: str | None = None,
    full: bool = False,
    trouble: str = "",
    most: int = SCREEN_LINES,
    plain: bool | None = None,
) -> None:
    """Print one look: alarms, a line a backend, the layers of each, keys and languages. Readable from 60 columns on.

    `backend`: the one that was asked for. `plain`: blocks of ASCII alone; None: where the console knows no others.
    """
    plain = console.options.ascii_only if plain is None else plain
    told = [each for each in seen.backends if each.layers]
    known = sorted(told, key=lambda each: (not each.alarms, -each.imbalance, each.backend))

    def answer(say: Say) -> None:
        if trouble:
            say(one_line(trouble, LONGEST_TEXT), "yellow")
        alarms = [f"{each.backend}: {text}" for each in known for text in each.alarms]
        for text in alarms:
            say(f"Alarm: {one_line(text, LONGEST_TEXT)}", "bold red")
        if known:
            worst = known[0]
            say(f"{_name(worst)}: {headline(worst)}", "bold")
            _backends(known, console.width, say)
        for text in _waiting(seen, backend):
            say(text)

    parts = [Passage(answer)]
    for rank, each in enumerate(known):
        parts += _of_backend(each, console.width, plain, len(known) > 1, min(4, rank), full=full)
    print_parts(parts, console, full=full, most=most)


def headline(each: BackendExperts) -> str:
    """What it means, in one sentence."""
    worst = next((layer for layer in each.layers if layer.layer == each.worst_layer), each.layers[0])
    return f"layer {worst.layer}'s busiest expert has {number(worst.imbalance)} times the mean"


def sentences(each: BackendExperts) -> list[str]:
    """What the numbers rest on, a sentence each."""
    of_all = f"of {len(each.layers) * each.n_experts:,} experts"
    found = [f"{each.dead:,} {of_all} have seen nothing, {each.hot:,} are above twice the mean by more than chance."]
    if each.drift is None:
        found.append("Drift is not told yet: it takes a day, and days before it.")
    else:
        chance = "" if each.drift_by_chance is None else f" ({_share(each.drift_by_chance)} by chance)"
        found.append(f"Drift since last week: {_share(each.drift)}{chance}.")
    told = f"{each.tokens:,} tokens"
    if each.requests is not None:
        told = f"{each.requests:,} request{'' if each.requests == 1 else 's'}, {told}"
    asked = "" if each.observe is None else f"; {_share(each.observe)} of the requests are to be"
    cost = "" if each.cpu_share is None else f" Looking took {_share(each.cpu_share)} of the engine's CPU time."
    source = SOURCES.get(each.source, each.source)
    found.append(f"{source[0].upper()}{source[1:]}: {told} in {_span(each.until_s - each.since_s)}{asked}.{cost}")
    skipped = [f"{one_line(reason, 80)} ({count:,})" for reason, count in sorted(each.skipped.items()) if count]
    return [*found, *([f"Not looked at: {'; '.join(skipped)}."] if skipped else [])]


def _waiting(seen: ExpertsSeen, backend: str | None) -> list[str]:
    """Of whom nothing is seen yet, and what to do about it."""
    silent = {each.backend: each for each in seen.backends if not each.layers}
    told = []
    for name in sorted({*silent, *seen.asked} - {each.backend for each in seen.backends if each.layers}):
        skipped = silent[name].skipped if name in silent else {}
        why = "; ".join(f"{one_line(reason, 80)} ({count:,})" for reason, count in sorted(skipped.items()) if count)
        rest = f"not looked at: {why}" if why else "only a part of the requests is looked at, so wait for more of them"
        told.append(f"{shortened(one_line(name))}: nothing is seen of its experts yet; {rest}.")
    if told or any(each.layers for each in seen.backends):
        return told
    return [NOTHING if backend is None else f"{shortened(one_line(backend))}: {NOTHING[0].lower()}{NOTHING[1:]}"]


def _backends(known: Sequence[BackendExperts], width: int, say: Say) -> None:
    """A line a backend."""
    say()
    heads: list[tuple[str, Callable[[BackendExperts], str]]] = [
        ("busiest", lambda each: f"{number(each.imbalance)}x"),
        ("entropy", lambda each: f"{each.entropy:.3f}"),
        ("dead", lambda each: f"{each.dead:,}"),
        ("hot", lambda each: f"{each.hot:,}"),
        ("drift", lambda each: _share(each.drift)),
        ("requests", lambda each: "-" if each.requests is None else f"{each.requests:,}"),
        ("tokens", lambda each: f"{each.tokens:,}"),
        ("CPU", lambda each: _share(each.cpu_share)),
    ]
    heads = heads if width >= NARROW else heads[:5]  # the rest stands in sentences below
    groups = [[[head, *(cell(each) for each in known)]] for head, cell in heads]
    say_tables(packed(["backend", *(_name(each, 16) for each in known)], groups, width - 2), say)


def _of_backend(each: BackendExperts, width: int, plain: bool, many: bool, rank: int, *, full: bool) -> list[Passage]:
    """Its layers, what they rest on, and whose requests are routed apart. `rank`: of the first of these."""
    layers = sorted(each.layers, key=lambda layer: (-layer.imbalance, layer.layer))
    texts, room = _layers(layers, width)
    a_cell = -(-each.n_experts // room)
    scale = PLAIN_BLOCKS if plain else BLOCKS

    def about(say: Say) -> None:
        say()
        experts = f"{len(layers)} layers of {each.n_experts} experts"
        used = "" if each.n_experts_per_token is None else f", {each.n_experts_per_token} a token"
        model = "" if each.model is None else f", {shortened(one_line(each.model), 40)}"
        say(f"{_name(each)}{model}: {experts}{used}", "bold")
        for sentence in sentences(each):
            say(sentence)

    def rows(first: int, last: int, say: Say) -> None:
        if not first:
            cell = "an expert" if a_cell == 1 else f"the busiest of {a_cell} experts"
            say()
            key = f"{scale[2]} the mean, {scale[8]} {FULL_AT} times, blank nothing"
            say(f"Layers, worst first. A cell is {cell}: {key}.", "dim")
            say(f"{texts[0]}experts 0 to {each.n_experts - 1}", indent=2)
        for text, layer in zip(texts[1 + first : 1 + last], layers[first:last], strict=True):
            say(text + blocks(layer.shares, a_cell, plain), indent=2)

    name = _name(each)
    shown = len(layers) if full else min(MOST_LAYERS, len(layers))
    parts = [
        Passage(about, rank, name),
        Passage(partial(rows, 0, FIRST_LAYERS), rank, f"layers of {name}"),
        Passage(partial(rows, FIRST_LAYERS, shown), 5, f"more layers of {name}"),
    ]
    if len(layers) > shown:
        parts.append(Passage(lambda say: say(f"{len(layers) - shown} more layers: --full", "dim", 2), 5))
    for title, groups in (("By key", each.keys), ("By language", each.languages)):
        if len(groups) > 1:
            shown_as = f"{title}, {name}" if many else title
            parts.append(Passage(partial(_groups, shown_as, groups, full), 3, shown_as.lower()))
    caveats = [one_line(text, LONGEST_TEXT) for text in each.caveats]
    return [*parts, *listed_parts(f"To know of {name}", caveats, most=2, rank=4)]


def _layers(layers: Sequence[LayerSeen], width: int) -> tuple[list[str], int]:
    """Head and a line a layer, without the blocks, and how many columns are left for these."""
    wide = width >= NARROW
    drift = wide and any(layer.drift is not None for layer in layers)
    rows = [["layer", "busiest", "dead", "hot", *(["entropy"] if wide else []), *(["drift"] if drift else [])]]
    for layer in layers:
        busiest = max(range(len(layer.shares)), key=layer.shares.__getitem__)
        rows.append(
            [
                str(layer.layer),
                f"{number(layer.imbalance)}x by {busiest}",
                str(len(layer.dead)),
                str(len(layer.hot)),
                *([f"{layer.entropy:.3f}"] if wide else []),
                *([_share(layer.drift)] if drift else []),
            ]
        )
    texts = columns(rows)
    room = max(map(len, texts))
    return [f"{text.ljust(room)}  " for text in texts], max(8, min(MOST_CELLS, width - room - 4))


def blocks(shares: Sequence[float], a_cell: int, plain: bool = False) -> str:
    """`shares` as a line of cells of `a_cell` experts, each as high as its busiest; blank where nothing reached any."""
    scale = PLAIN_BLOCKS if plain else BLOCKS
    line = ""
    for first in range(0, len(shares), a_cell):
        ratio = max(shares[first : first + a_cell]) * len(shares)
        line += scale[0] if ratio <= 0 else scale[max(1, min(8, round(8 * ratio / FULL_AT)))]
    return line


def _groups(title: str, groups: Sequence[GroupSeen], full: bool, say: Say) -> None:
    """Whose requests differ most from all others'; first those that do so by more than chance."""
    ranked = sorted(groups, key=lambda one: (one.apart is None, -((one.apart or 0) - (one.apart_by_chance or 0))))
    shown = ranked if full else ranked[:MOST_GROUPS]
    say()
    say(f"{title}: share of choices apart from all others", "bold")
    rows = [["", "apart", "by chance", "requests", "tokens"]]
    for one in shown:
        name = shortened(one_line(one.name), 20) if one.name else "not told"
        rows.append([name, _share(one.apart), _share(one.apart_by_chance), f"{one.requests:,}", f"{one.tokens:,}"])
    for line in columns(rows):
        say(line, indent=2)
    if len(ranked) > len(shown):
        say(f"{len(ranked) - len(shown)} more: --full", "dim", 2)


def _share(share: float | None) -> str:
    """A share, short; small ones are not nothing."""
    if share is None:
        return "-"
    return f"{100 * share:.3g} %"


def _name(each: BackendExperts, longest: int = 24) -> str:
    return shortened(one_line(each.backend), longest)


def _span(seconds: float) -> str:
    """How long, in the unit that suits it."""
    return seconds_text(max(0.0, seconds)) if seconds < 48 * 3600 else f"{seconds / 86400:.3g} days"
