"""Shapes that are equal in one number: dense, MoE and hybrid models of the same active or total weights or operations.

Everything is counted on the exact model, as `model.arithmetic` counts any other: attention, routers, norms and head.
Widths are multiples of 256, so that every weight format divides them; a width that would have to lie between two of
them is refused and named, never rounded silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from breakeven.errors import UserError
from breakeven.lab.training.shapes import STEP, WIDEST, ArmShape, ArmWish, shape_of, spec_of, usual_width
from breakeven.lab.training.work import training_flops
from breakeven.model.arithmetic import active_params, total_params

TOLERANCE = 0.01
MEASURES = {
    "active": "active weights",
    "total": "weights in all",
    "flops": "operations of training a token",
    "seconds": "seconds of training",
}
"""What arms may be equal in. Seconds are no matter of shape: such arms have equal active weights, and steps differ."""
_MOST_SIZES = 64
"""Layers and hidden widths that are tried for an arm that does not name them."""
_DENSE_WIDTHS = 3
"""Steps either way that a hybrid's dense feed-forwards may take from the usual width, where experts alone find none."""

_OfWidth = Callable[[int], ArmShape]


@dataclass(frozen=True, slots=True)
class CountedAs:
    """What a study says of how models are counted: rows of the embedding, tokens a row of text, and equal in what."""

    vocabulary: int
    tokens: int
    measure: str


@dataclass(frozen=True, slots=True)
class Matched:
    """A shape that was found, and by what share of the reference's number it is off."""

    shape: ArmShape
    off: float


def match(wish: ArmWish, reference: ArmShape, counted: CountedAs, name: str) -> Matched:
    """The shape of `wish` that is nearest to `reference` in what counts, within `TOLERANCE`.

    Layers and hidden width stay the reference's where they can; then the nearest others are tried. Raises UserError
    that names the arm, the nearest that there is, and what to change.
    """
    goal = amount(reference, counted)
    nearest: Matched | None = None
    for layers, hidden in _sizes(wish, reference):
        found = [
            Matched(shape, amount(shape, counted) / goal - 1)
            for shape in _shapes(wish, layers, hidden, reference, goal, counted)
        ]
        best = min(found, key=lambda each: abs(each.off), default=None)
        if best is None:
            continue
        if abs(best.off) <= TOLERANCE:
            return best
        if nearest is None or abs(best.off) < abs(nearest.off):
            nearest = best
    raise UserError(_refusal(wish, reference, counted, name, nearest))


def amount(shape: ArmShape, counted: CountedAs) -> float:
    """What a shape has of what counts."""
    spec = spec_of(shape, counted.vocabulary, counted.tokens)
    if counted.measure == "total":
        return float(total_params(spec))
    if counted.measure == "flops":
        return training_flops(spec, 1, counted.tokens)
    return float(active_params(spec))


def _sizes(wish: ArmWish, reference: ArmShape) -> list[tuple[int, int]]:
    """Layers and hidden widths to try, those nearest to the reference's first."""
    least = wish.every if wish.kind == "hybrid" else 1
    deep = [wish.layers] if wish.layers else list(range(least, max(least, 2 * reference.layers) + 1))
    wide = [wish.hidden] if wish.hidden else list(range(STEP, 2 * reference.hidden + 1, STEP))

    def far(size: tuple[int, int]) -> tuple[float, int]:
        layers, hidden = size
        return abs(layers / reference.layers - 1) + abs(hidden / reference.hidden - 1), -layers

    return sorted(((layers, hidden) for layers in deep for hidden in wide), key=far)[:_MOST_SIZES]


def _shapes(
    wish: ArmWish, layers: int, hidden: int, reference: ArmShape, goal: float, counted: CountedAs
) -> Iterator[ArmShape]:
    """Shapes of that size whose free width brings them nearest to `goal`."""
    if wish.kind == "dense":
        of_width = partial(ArmShape, layers, hidden)
        yield of_width(wish.width) if wish.width else _fitted(of_width, goal, counted, hidden)
        return
    usual = wish.width or (reference.width if reference.kind != "moe" else usual_width(hidden))
    ways = [0] if wish.width or wish.kind == "moe" else sorted(range(-_DENSE_WIDTHS, _DENSE_WIDTHS + 1), key=abs)
    for way in ways:
        width = usual + way * STEP
        if width < STEP:
            continue
        if wish.expert_width is not None:
            yield shape_of(wish, layers, hidden, width, wish.expert_width)
            continue
        found = _fitted(partial(shape_of, wish, layers, hidden, width), goal, counted, hidden)
        yield found
        if abs(amount(found, counted) / goal - 1) <= TOLERANCE:
            return


def _fitted(of_width: _OfWidth, goal: float, counted: CountedAs, hidden: int) -> ArmShape:
    """The shape whose width is the nearest multiple of `STEP`: every count is linear in one width."""
    steps = round(_exact(of_width, goal, counted) / STEP)
    return of_width(STEP * max(1, min(WIDEST * hidden // STEP, steps)))


def _exact(of_width: _OfWidth, goal: float, counted: CountedAs) -> float:
    """The width that would match to the last weight."""
    first, second = (amount(of_width(width), counted) for width in (STEP, 2 * STEP))
    return STEP + STEP * (goal - first) / (second - first)


def _refusal(wish: ArmWish, reference: ArmShape, counted: CountedAs, name: str, nearest: Matched | None) -> str:
    """Why no shape matches, and what would help."""
    goal = amount(reference, counted)
    measure = MEASURES["active" if counted.measure == "seconds" else counted.measure]
    said = f"{name}: no {wish.kind} model is within {TOLERANCE:.0%} of {reference.words} in {measure} ({goal:,.0f})"
    if nearest is not None:
        said += f"; the nearest, {nearest.shape.words}, has {amount(nearest.shape, counted):,.0f} ({nearest.off:+.1%})"
    layers, hidden = wish.layers or reference.layers, wish.hidden or reference.hidden
    free = wish.width if wish.kind == "dense" else wish.expert_width
    if free is None and not (wish.kind == "hybrid" and layers < wish.every):
        usual = wish.width or (reference.width if reference.kind != "moe" else usual_width(hidden))

        def of_width(width: int) -> ArmShape:
            return shape_of(wish, layers, hidden, usual if wish.kind == "hybrid" else width, width)

        exact = _exact(of_width, goal, counted)
        what = "its feed-forward" if wish.kind == "dense" else "each of its experts"
        said += f". At {layers}x{hidden} {what} would be {exact:,.0f} wide, and widths are multiples of {STEP}"
        if exact < STEP and wish.kind != "dense":
            fewer = "have fewer experts" if counted.measure == "total" else "have fewer experts, use fewer"
            return f"{said}: let it {fewer}, or make {reference.words} wider"
    return f"{said}: give another number of experts or used, another width of {reference.words}, or leave sizes free"
