"""`experts:` of a backend: what of its experts is looked at while it serves, and which engines show it.

A llama.cpp that the gateway starts is looked into by reading a request again from the same weights; vLLM and SGLang say
with an answer which experts it took, where they were started so; who counts by expert on its `/metrics` is believed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from breakeven.answer.study.values import FilePart, ShareAbove0, number, whole
from breakeven.errors import BreakevenError
from breakeven.gateway.experts.report import Source
from breakeven.model.architecture import ModelSpec, MoeFfn

LOOKED_INTO = frozenset(("llama.cpp", "llama-server"))
"""Engines whose weights can be read a second time, where the gateway starts them."""
RETURNING = frozenset(("vllm", "sglang"))
"""Engines that return the experts of an answer with it, as documented by vLLM 0.21 and SGLang's pull request 17434."""
RETURN_FLAG = "--enable-return-routed-experts"
"""How both are told to."""
SILENT = frozenset(("mlx", "ollama", "lmstudio"))
"""Engines that say nothing of their experts: no weights that can be read beside them, no answer, no counter."""
MOST_TOKENS = 65_536
"""Of a request that is read again; each takes memory for its keys and values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsPlan(FilePart):
    """Which experts its requests reach.

    `observe`: share of requests that are looked at; None: none, and the engine's own counters are all there is.
    `imbalance`: an alarm where the busiest expert of a layer takes more than this many times the mean; `drift`: where
    more than this share of choices would have to go elsewhere to make the last day the week before. None: no alarm.
    `tokens`: most tokens of a request that are read again, from its beginning.
    """

    observe: ShareAbove0 | None = None
    imbalance: Annotated[float, number(gt=1)] | None = None
    drift: ShareAbove0 | None = None
    tokens: Annotated[int, whole(1, MOST_TOKENS)] = 4096


def seen_by(engine: str, experts: ExpertsPlan) -> Source:
    """How the experts of such an engine are seen."""
    if experts.observe is None:
        return "counted"
    return "observed" if engine in LOOKED_INTO else "returned"


def known_spec(model: str | None) -> ModelSpec | None:
    """A model's shape where a file here or the catalogue tells it, so that no network is asked; else None."""
    from breakeven.model.resolve import is_catalogued, resolve_spec, split_format

    name = "" if model is None else split_format(model)[0]
    if model is None or ("/" in name and not Path(name).exists() and not is_catalogued(name)):
        return None
    try:
        return resolve_spec(model)
    except BreakevenError:
        return None


def routing_layers(spec: ModelSpec | None) -> list[MoeFfn]:
    """The feed-forwards of its layers that route; none of a model that is not known."""
    return [] if spec is None else [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeFfn)]


class RoutedShape(NamedTuple):
    """Numbers of the layers that route, experts a token, experts, and layers in all of a model; None: not known."""

    layers: tuple[int, ...] | None = None
    per_token: int | None = None
    n_experts: int | None = None
    all_layers: int | None = None


def shape_of(model: str | None) -> RoutedShape:
    """Of a model whose shape is known without a network."""
    spec = known_spec(model)
    routing = routing_layers(spec)
    if spec is None or not routing:
        return RoutedShape()
    layers = tuple(number for number, layer in enumerate(spec.layers) if isinstance(layer.ffn, MoeFfn))
    return RoutedShape(layers, routing[0].n_experts_per_token, routing[0].n_experts, len(spec.layers))
