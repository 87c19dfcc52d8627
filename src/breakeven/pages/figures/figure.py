"""What a figure is, the look that all of them share, and how a chart becomes an SVG that knows light from dark.

Charts are drawn in sentinel colours, one for each role. Afterwards a role becomes a CSS variable (inside the page,
where the reader's theme sets it) or a concrete colour (in a file of its own).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

from breakeven.errors import printable

if TYPE_CHECKING:
    import altair as alt

    Drawing = alt.Chart | alt.LayerChart | alt.FacetChart | alt.VConcatChart | alt.HConcatChart

# No quotes in here: it stands inside an SVG attribute as it is.
FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Liberation Sans, Arial, sans-serif"


@dataclass(frozen=True, slots=True)
class Role:
    """What a colour is for: the sentinel it is drawn in, its CSS variable, and its value in light and dark."""

    sentinel: str
    variable: str
    light: str
    dark: str


INK = Role("#000011", "--ink", "#1b1b1a", "#e9e7e2")
MUTED = Role("#000012", "--muted", "#62605b", "#a5a29b")
RULE = Role("#000013", "--rule", "#dcd9d2", "#3a3935")
LEVEL = Role("#000014", "--level", "#8a877f", "#8d8a83")
"""No difference found."""
PAPER = Role("#000015", "--paper", "#fdfcf9", "#171715")

# Okabe and Ito, "Color Universal Design" (2008), told apart with every common colour blindness. Order and lightness are
# changed so that each stands out from the paper in both themes; models also differ in shape, parts in order.
SERIES = (
    Role("#000021", "--s1", "#0072b2", "#5ab4e8"),
    Role("#000022", "--s2", "#c8500a", "#f08a4b"),
    Role("#000023", "--s3", "#00805f", "#34c79a"),
    Role("#000024", "--s4", "#a84b86", "#dd93bf"),
    Role("#000025", "--s5", "#946a00", "#e0b13a"),
    Role("#000026", "--s6", "#3f4f9e", "#9aa8f0"),
)
PARTS = (
    Role("#000031", "--p1", "#0072b2", "#3f95cf"),
    Role("#000032", "--p2", "#d55e00", "#e5772a"),
    Role("#000033", "--p3", "#e69f00", "#e6a82a"),
    Role("#000034", "--p4", "#f0e08a", "#f0e6a0"),
    Role("#000035", "--p5", "#009e73", "#22b187"),
    Role("#000036", "--p6", "#cc79a7", "#d28ab3"),
    Role("#000037", "--p7", "#a9a69e", "#77746d"),
)
ROLES = (INK, MUTED, RULE, LEVEL, PAPER, *SERIES, *PARTS)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")

_NOISE = re.compile(r' (?:aria-[a-z]+|role|pointer-events|class|font-style)="[^"]*"')
_EMPTY = re.compile(
    r'<path(?: (?:transform|opacity)="[^"]*")* d=""[^>]*/>|<path d="M0(?:\.5)?,0(?:\.5)?h0v0h0Z"[^>]*/>'
)
_LONG = re.compile(r"(?<=[\d])\.(\d{2})\d+")
_OPENING = re.compile(r"^<svg[^>]*?width=\"([\d.]+)\" height=\"([\d.]+)\"[^>]*>")


def draw(chart: Drawing) -> str:
    """Render `chart` to SVG in sentinel colours. Needs no network and no browser."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(_drawable(chart.to_dict(validate=False))))


def _drawable(value: Any) -> Any:
    """A chart's description without control characters in its texts: on one the renderer ends the whole process."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _drawable(one) for key, one in value.items()}
    return [_drawable(one) for one in value] if isinstance(value, list) else value


def inline(svg: str, label: str) -> str:
    """`svg` for the inside of a page: colours from the page's variables, one label for those who cannot see it."""
    return _opened(_painted(svg, lambda role: f"var({role.variable})"), label, "")


def standalone(svg: str, label: str) -> str:
    """`svg` as a file of its own, in light colours on paper."""
    painted = _opened(
        _painted(svg, lambda role: role.light), label, f'<rect width="100%" height="100%" fill="{PAPER.light}"/>'
    )
    return painted + "\n"


def _painted(svg: str, colour_of: Callable[[Role], str]) -> str:
    # Only whole attribute values are replaced: a label that happens to read "#000011" is text and stays.
    for role in ROLES:
        svg = re.sub(rf'(fill|stroke)="{role.sentinel}"', rf'\1="{colour_of(role)}"', svg)
    return svg


def _opened(svg: str, label: str, behind: str) -> str:
    """Replace the opening tag, drop what only Vega reads, and shorten numbers."""
    found = _OPENING.match(svg)
    assert found is not None, "vl-convert always writes width and height"
    width, height = found.groups()
    tags = re.split(r"(<[^>]*>)", svg[found.end() :])
    # Between tags stands text, which belongs to the user and is not touched.
    body = "".join(_slim(part) if part.startswith("<") else part for part in tags)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(label)}">'
    )
    return opening + behind + body


def _slim(tag: str) -> str:
    return _EMPTY.sub("", _LONG.sub(r".\1", _NOISE.sub("", tag)))


# Widths in CSS pixels of the whole drawing: a column of text, and a phone of 360 less its margins.
WIDE, NARROW = 640, 326
WIDE_TEXT, NARROW_TEXT = 12, 11


@dataclass(frozen=True)
class Figure:
    """A chart with everything that must stand beside it.

    `alt` says in words what the picture shows. `narrow` is drawn for a phone; None when the wide one can shrink.
    """

    name: str
    """File name without suffix."""
    title: str
    alt: str
    caption: str
    wide: Drawing
    narrow: Drawing | None


@dataclass(frozen=True, slots=True)
class Missing:
    """A figure that was left out, and the sentence that says why."""

    title: str
    why: str


class Named(Protocol):
    """Anything with a name, such as a model."""

    @property
    def name(self) -> str:
        """What it is called in the study."""


class Study(Protocol):
    """Any result that is about models: a comparison, or a run under load."""

    @property
    def models(self) -> Sequence[Named]:
        """The candidates, in the order given."""


def series_of(result: Study) -> dict[str, Role]:
    """The colour of each model, the same in every figure of a page."""
    names = dict.fromkeys(model.name for model in result.models)
    return {name: SERIES[index % len(SERIES)] for index, name in enumerate(names)}


def shapes_of(result: Study) -> dict[str, str]:
    """The mark of each model, for print and for those who do not see the colour."""
    names = dict.fromkeys(model.name for model in result.models)
    return {name: SHAPES[index % len(SHAPES)] for index, name in enumerate(names)}


@dataclass(frozen=True, slots=True)
class Cast:
    """The models of a study, in its order: everyone keeps colour and mark through the whole page."""

    models: Sequence[Named]

    def colours(self, names: Sequence[str]) -> alt.Scale:
        """The colours of `names` for Altair."""
        import altair as alt

        return alt.Scale(domain=list(names), range=[series_of(self)[name].sentinel for name in names])

    def marks(self, names: Sequence[str]) -> alt.Scale:
        """The marks of `names` for Altair."""
        import altair as alt

        return alt.Scale(domain=list(names), range=[shapes_of(self)[name] for name in names])

    def known(self, names: Iterable[str]) -> list[str]:
        """Those of the models that stand among `names`, in the study's order."""
        wanted = set(names)
        return [name for name in series_of(self) if name in wanted]


def legend(narrow: bool, columns: int = 0) -> alt.Legend:
    """A legend above the plot, without title. `columns` 0: one row (one column when narrow)."""
    import altair as alt

    return alt.Legend(
        title=None,
        orient="top",
        direction="vertical" if narrow and not columns else "horizontal",
        columns=columns or (1 if narrow else 0),
        labelLimit=NARROW - 90 if narrow else 260,
        symbolStrokeWidth=0,
        symbolOpacity=1,
        columnPadding=30,
        symbolSize=90,
        offset=14,
        padding=0,
    )


def data_of(rows: list[dict[str, Any]]) -> alt.InlineData:
    """Rows as data that Altair does not touch."""
    import altair as alt

    return alt.InlineData(values=rows)


def slack(words: Iterable[str], narrow: bool) -> float:
    """Pixels to add at the right of labels: the reader's font may be wider than the one they were measured in."""
    return 0.17 * (NARROW_TEXT if narrow else WIDE_TEXT) * max((len(word) for word in words), default=0)


def styled(chart: Drawing, narrow: bool, right: float = 2) -> Drawing:
    """Apply the common look: system font, quiet axes, no frame, transparent ground. `right`: padding in pixels."""
    size = NARROW_TEXT if narrow else WIDE_TEXT
    axis = {
        "labelFont": FONT,
        "titleFont": FONT,
        "labelFontSize": size,
        "titleFontSize": size,
        "titleFontWeight": "normal",
        "labelColor": MUTED.sentinel,
        "titleColor": MUTED.sentinel,
        "gridColor": RULE.sentinel,
        "domainColor": LEVEL.sentinel,
        "tickColor": LEVEL.sentinel,
    }
    words = {"labelFont": FONT, "labelFontSize": size, "labelColor": INK.sentinel}
    configured: Drawing = chart.configure(
        background="transparent",
        font=FONT,
        padding={"left": 2, "right": right, "top": 4, "bottom": 4},
        axis=axis,
        legend=words,
        header={**words, "labelFontWeight": 600, "labelPadding": -8},
        text={"font": FONT, "fontSize": size, "color": INK.sentinel},
        view={"stroke": None},
        facet={"spacing": 14},
        aria=False,
    )
    return configured
