"""Shapes that are equal in one number: dense, MoE and hybrid models of the same active or total weights or operations.

Everything is counted on the exact model, as `model.arithmetic` counts any other: attention, routers, norms and head.
Widths are multiples of 256, so that every weight format divides them; a width that would have to lie between two of
them is refused and named, never rounded silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

from breakeven.errors import UserError, printable
from breakeven.lab.bridge.families import of_config
from breakeven.lab.bridge.rotary import Rotary
from breakeven.lab.training.work import training_flops
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import active_params, total_params
from breakeven.model.layouts.derive import spec_from_config

STEP = 256
"""Every width is a multiple of it: the largest block of llama.cpp's formats."""
TOLERANCE = 0.01
KINDS = ("dense", "moe", "hybrid")
MEASURES = {
    "active": "active weights",
    "total": "weights in all",
    "flops": "operations of training a token",
    "seconds": "seconds of training",
}
"""What arms may be equal in. Seconds are no matter of shape: such arms have equal active weights, and steps differ."""
_HEAD_DIM = 64
_THETA = 10_000.0
_LEAST_CONTEXT = 2048
"""Whatever a row has, so that blocks of text which judge models fit."""
_USUAL_WIDTH = 4
"""Times the hidden width, where nobody says."""
_MOST_LAYERS, _MOST_HIDDEN, _MOST_EXPERTS = 64, 8192, 512
_MOST_SIZES = 64
"""Layers and hidden widths that are tried for an arm that does not name them."""
_WIDEST = 32
"""Times the hidden width, of a feed-forward."""
_DENSE_WIDTHS = 3
"""Steps either way that a hybrid's dense feed-forwards may take from the usual width, where experts alone find none."""
_WORDS = re.compile(
    r"(?P<kind>dense|moe|hybrid)(?: (?P<layers>\d+)x(?P<hidden>\d+)(?:x(?P<width>\d+))?)?"
    r"(?: (?P<experts>\d+)/(?P<used>\d+))?(?: every (?P<every>\d+))?"
)
HELP = "such as dense 4x256, moe 8/2 or hybrid 4x256x512 8/2"


@dataclass(frozen=True, slots=True)
class ArmWish:
    """An arm as it was asked for; None: whatever makes it match.

    `width` of dense feed-forwards, `expert_width` of one expert; every `every`-th layer of a hybrid routes.
    """

    kind: str
    layers: int | None = None
    hidden: int | None = None
    width: int | None = None
    experts: int = 0
    used: int = 0
    expert_width: int | None = None
    every: int = 2


@dataclass(frozen=True, slots=True)
class ArmShape:
    """A whole model but its vocabulary. `experts` 0: dense; `every`: which layers route (1: all)."""

    layers: int
    hidden: int
    width: int
    experts: int = 0
    used: int = 0
    expert_width: int = 0
    every: int = 1

    @property
    def heads(self) -> int:
        """Of queries; half as many of keys."""
        return self.hidden // _HEAD_DIM

    @property
    def routed(self) -> tuple[int, ...]:
        """Layers that route, from 0."""
        return tuple(i for i in range(self.layers) if self.experts and (i + 1) % self.every == 0)

    @property
    def kind(self) -> Literal["dense", "moe", "hybrid"]:
        """dense, moe or hybrid."""
        return "dense" if not self.experts else "moe" if self.every == 1 else "hybrid"

    @property
    def words(self) -> str:
        """As a study names it: "moe 4x256x512 8/2"."""
        said = f"{self.kind} {self.layers}x{self.hidden}x{self.expert_width or self.width}"
        said += f" {self.experts}/{self.used}" if self.experts else ""
        return f"{said} every {self.every}" if self.every > 2 else said


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


def wish_of(words: str, place: str) -> ArmWish:
    """An arm from words: KIND, LAYERSxHIDDEN or LAYERSxHIDDENxWIDTH, EXPERTS/USED, "every N" of a hybrid.

    WIDTH is that of an expert where there are any. Raises UserError that begins with `place`.
    """
    found = _WORDS.fullmatch(" ".join(words.split()))
    if found is None:
        raise UserError(f"{place}: found {printable(words)!r}, it must be KIND LAYERSxHIDDEN EXPERTS/USED, {HELP}")
    if found["every"] is not None and found["kind"] != "hybrid":
        raise UserError(f"{place}: every: it must be left out; say hybrid where not all layers route")
    number = {key: int(value) for key, value in found.groupdict().items() if key != "kind" and value is not None}
    routes = found["kind"] != "dense"
    return checked(
        ArmWish(
            kind=found["kind"],
            layers=number.get("layers"),
            hidden=number.get("hidden"),
            width=None if routes else number.get("width"),
            experts=number.get("experts", 0),
            used=number.get("used", 0),
            expert_width=number.get("width") if routes else None,
            every=number.get("every", 2),
        ),
        place,
    )


def checked(wish: ArmWish, place: str) -> ArmWish:
    """`wish`, where a model can be so at all. Raises UserError that begins with `place`."""

    def wrong(key: str, found: object, right: str) -> UserError:
        return UserError(f"{place}: {key}: found {found}, it must be {right}")

    if wish.kind not in KINDS:
        raise wrong("kind", repr(printable(wish.kind)), f"one of {', '.join(KINDS)}")
    for key, value, most in (
        ("hidden", wish.hidden, _MOST_HIDDEN),
        ("width", wish.width, _WIDEST * _MOST_HIDDEN),
        ("expert_width", wish.expert_width, _WIDEST * _MOST_HIDDEN),
    ):
        if value is not None and (value % STEP or not STEP <= value <= most):
            near = max(STEP, min(most, round(value / STEP) * STEP))
            raise wrong(key, value, f"a multiple of {STEP}, such as {near}: no weight format with blocks fits others")
    if wish.layers is not None and not 1 <= wish.layers <= _MOST_LAYERS:
        raise wrong("layers", wish.layers, f"1 to {_MOST_LAYERS}")
    if wish.kind == "dense":
        if found := wish.experts or wish.used or wish.expert_width:
            raise wrong("experts", found, "left out: a dense model has none; or say moe")
        return wish
    if not 2 <= wish.experts <= _MOST_EXPERTS:
        raise wrong("experts", wish.experts, f"2 to {_MOST_EXPERTS}, with how many a token uses: 8/2")
    if not 2 <= wish.used <= wish.experts:
        # Weights of the chosen sum to one: that of one alone is always one, whatever its router says.
        raise wrong("used", wish.used, f"2 to its {wish.experts} experts; with one, its router learns nothing")
    if wish.kind == "moe" and wish.width is not None:
        raise wrong("width", wish.width, "left out where every layer routes; expert_width is that of an expert")
    if wish.kind == "hybrid" and not 2 <= wish.every <= (wish.layers or _MOST_LAYERS):
        raise wrong("every", wish.every, "2 or more, and at most the layers: every second layer routes")
    return wish


def whole(wish: ArmWish, place: str) -> ArmShape:
    """The shape of an arm that others are matched to; what is not said of its widths is as usual.

    Raises UserError that begins with `place` where it lacks layers or hidden.
    """
    if wish.layers is None or wish.hidden is None:
        raise UserError(
            f"{place}: the arm that others are matched to needs its size, LAYERSxHIDDEN, such as {wish.kind} 4x256"
        )
    usual = _USUAL_WIDTH * wish.hidden
    expert = wish.expert_width or max(STEP, usual // max(1, wish.used) // STEP * STEP)
    return _shape(wish, wish.layers, wish.hidden, wish.width or usual, expert)


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


def config_of(shape: ArmShape, vocabulary: int, tokens: int, end: int | None = None) -> dict[str, object]:
    """`config.json`: qwen3 where nothing routes, else qwen3_moe; embedding and head are one matrix.

    `end`: the token between documents.
    """
    bridge = of_config({"model_type": "qwen3_moe" if shape.experts else "qwen3"})
    config: dict[str, object] = {
        "architectures": [bridge.class_name],
        "model_type": bridge.model_type,
        "vocab_size": vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": max(1, shape.heads // 2),
        "head_dim": _HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": max(_LEAST_CONTEXT, tokens),
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "attention_bias": False,
        **bridge.written,
        **Rotary(_THETA).written(),
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": None,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    if shape.experts:
        config |= {
            "num_experts": shape.experts,
            "num_experts_per_tok": shape.used,
            "moe_intermediate_size": shape.expert_width,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [i for i in range(shape.layers) if i not in shape.routed],
        }
    return config


@lru_cache(maxsize=4096)
def spec_of(shape: ArmShape, vocabulary: int, tokens: int) -> ModelSpec:
    """The model that is counted."""
    return spec_from_config(config_of(shape, vocabulary, tokens), shape.words, shape.words)


def _shape(wish: ArmWish, layers: int, hidden: int, width: int, expert_width: int) -> ArmShape:
    if wish.kind == "dense":
        return ArmShape(layers, hidden, width)
    every = 1 if wish.kind == "moe" else wish.every
    # What no layer has counts nothing; the configuration wants a number all the same.
    width = expert_width if wish.kind == "moe" else width
    return ArmShape(layers, hidden, width, wish.experts, wish.used, expert_width, every)


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
    usual = wish.width or (reference.width if reference.kind != "moe" else _USUAL_WIDTH * hidden)
    ways = [0] if wish.width or wish.kind == "moe" else sorted(range(-_DENSE_WIDTHS, _DENSE_WIDTHS + 1), key=abs)
    for way in ways:
        width = usual + way * STEP
        if width < STEP:
            continue
        if wish.expert_width is not None:
            yield _shape(wish, layers, hidden, width, wish.expert_width)
            continue
        found = _fitted(partial(_shape, wish, layers, hidden, width), goal, counted, hidden)
        yield found
        if abs(amount(found, counted) / goal - 1) <= TOLERANCE:
            return


def _fitted(of_width: _OfWidth, goal: float, counted: CountedAs, hidden: int) -> ArmShape:
    """The shape whose width is the nearest multiple of `STEP`: every count is linear in one width."""
    steps = round(_exact(of_width, goal, counted) / STEP)
    return of_width(STEP * max(1, min(_WIDEST * hidden // STEP, steps)))


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
        usual = wish.width or (reference.width if reference.kind != "moe" else _USUAL_WIDTH * hidden)

        def of_width(width: int) -> ArmShape:
            return _shape(wish, layers, hidden, usual if wish.kind == "hybrid" else width, width)

        exact = _exact(of_width, goal, counted)
        what = "its feed-forward" if wish.kind == "dense" else "each of its experts"
        said += f". At {layers}x{hidden} {what} would be {exact:,.0f} wide, and widths are multiples of {STEP}"
        if exact < STEP and wish.kind != "dense":
            fewer = "have fewer experts" if counted.measure == "total" else "have fewer experts, use fewer"
            return f"{said}: let it {fewer}, or make {reference.words} wider"
    return f"{said}: give another number of experts or used, another width of {reference.words}, or leave sizes free"
