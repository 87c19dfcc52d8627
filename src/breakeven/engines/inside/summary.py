"""What `breakeven trace` and `breakeven profile` tell: public results, fields are only ever added."""

from __future__ import annotations

import msgspec
import numpy as np

from breakeven.engines.inside import routing
from breakeven.engines.inside.client import Traced
from breakeven.results.comparison import Profile

BATCHES = (1, 2, 4, 8, 16, 32)
_DRAWS = 200


class LayerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How evenly one layer's experts are used. `frequencies` sums to n_experts_per_token."""

    layer: int
    max_over_mean: float
    coefficient_of_variation: float
    entropy: float
    """Normalised: 1 is perfect balance."""
    dead_experts: list[int]
    frequencies: list[float]


class StepExperts(msgspec.Struct, frozen=True, kw_only=True):
    """Distinct experts a layer's decode step reaches with this many sequences: mean over layers and draws."""

    sequences: int
    distinct: float
    uniform: float
    """E(1-(1-k/E)^B)."""


class TextTraced(msgspec.Struct, frozen=True, kw_only=True):
    """One text. `specialisation[layer][expert]`: its frequency less the texts' mean; None for a single text."""

    label: str
    tokens: int
    truncated: bool
    specialisation: list[list[float]] | None


class TraceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `trace` tells, without the token-by-token ids."""

    schema: str = "breakeven.trace/1"
    model: str
    n_experts: int
    n_experts_per_token: int
    tokens: int
    texts: list[TextTraced]
    layers: list[LayerLoad]
    steps: list[StepExperts]
    sampling_error: float
    """Standard error of one expert's frequency at perfect balance: differences below it are chance."""
    observing_overhead: float

    @property
    def headline(self) -> str:
        """One sentence in plain words."""
        busiest = max(self.layers, key=lambda layer: layer.max_over_mean)
        dead = sum(len(layer.dead_experts) for layer in self.layers)
        evenness = float(np.mean([layer.coefficient_of_variation for layer in self.layers]))
        return (
            f"{self.model} routed {self.tokens} tokens to {self.n_experts_per_token} of {self.n_experts} experts in "
            f"{len(self.layers)} layers: loads vary by {evenness:.0%} of their mean, the busiest expert takes "
            f"{busiest.max_over_mean:.1f} times the mean (layer {busiest.layer}), {dead} of "
            f"{self.n_experts * len(self.layers)} experts took nothing."
        )


class ProfileSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Where time goes, by phase."""

    schema: str = "breakeven.profile/1"
    profiles: list[Profile]

    @property
    def headline(self) -> str:
        """One sentence in plain words."""
        said = []
        for profile in self.profiles:
            total = sum(node.seconds for node in profile.nodes)
            largest = max(profile.nodes, key=lambda node: node.seconds)
            said.append(f"{profile.phase} spends {largest.seconds / total:.0%} of its time in {largest.kind}")
            if profile.router_share_of_moe_block is not None:
                said[-1] += f" and {profile.router_share_of_moe_block:.1%} of the MoE block's time in the router"
        return f"{self.profiles[0].model}: " + "; ".join(said) + "."


def summarise(traced: Traced, seed: int = 0) -> TraceSummary:
    """The statistics of a trace. Steps are drawn with the given seed; ones larger than the text are left out."""
    everything = traced.all_ids()
    tokens, k = everything.shape[1], everything.shape[2]
    loads = routing.frequencies(everything, traced.n_experts)
    dead = routing.dead_experts(loads)
    columns = (routing.max_over_mean(loads), routing.variation(loads), routing.entropy(loads))
    by_text = [routing.frequencies(ids, traced.n_experts) for ids in traced.ids.values()]
    special = routing.specialisation(by_text).tolist() if len(by_text) > 1 else [None] * len(by_text)
    rng = np.random.default_rng([seed, 0])
    return TraceSummary(
        model=traced.model,
        n_experts=traced.n_experts,
        n_experts_per_token=k,
        tokens=tokens,
        texts=[
            TextTraced(label=label, tokens=ids.shape[1], truncated=label in traced.truncated, specialisation=each)
            for (label, ids), each in zip(traced.ids.items(), special, strict=True)
        ],
        layers=[
            LayerLoad(
                layer=layer,
                max_over_mean=float(columns[0][row]),
                coefficient_of_variation=float(columns[1][row]),
                entropy=float(columns[2][row]),
                dead_experts=[expert for r, expert in dead if r == row],
                frequencies=loads[row].tolist(),
            )
            for row, layer in enumerate(traced.layers)
        ],
        steps=[
            StepExperts(
                sequences=batch,
                distinct=float(routing.distinct(everything, batch, _DRAWS, rng).mean()),
                uniform=routing.uniform_distinct(traced.n_experts, k, batch),
            )
            for batch in BATCHES
            if batch <= tokens
        ],
        sampling_error=routing.sampling_noise(k / traced.n_experts, tokens),
        observing_overhead=traced.observing_overhead,
    )
