"""What a look inside says: routed expert ids as pure functions on arrays, and what `trace` and `profile` tell of them.

Summaries are public results, whose fields are only ever added.

Legend: L layers that route, T tokens, K experts a token, E experts, B sequences in a step, S texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.results.comparison import NodeProfile, Routing

Ids = NDArray[np.int32]
Floats = NDArray[np.float64]

BATCHES = (1, 2, 4, 8, 16, 32)
_DRAWS = 200


def frequencies(ids_LTK: Ids, n_experts: int) -> Floats:
    """Share of tokens that reach each expert; every row sums to K. Raises ValueError for an id outside 0..E-1."""
    if ids_LTK.size and not 0 <= int(ids_LTK.min()) <= int(ids_LTK.max()) < n_experts:
        raise ValueError(f"expert ids {ids_LTK.min()}..{ids_LTK.max()} in a model of {n_experts} experts")
    tokens = ids_LTK.shape[1]
    return np.stack([np.bincount(layer.ravel(), minlength=n_experts) / tokens for layer in ids_LTK])


def max_over_mean(loads_LE: Floats) -> Floats:
    """Load of the busiest expert over the mean load; 1 is perfect balance, E/K the worst."""
    return np.asarray(loads_LE.max(axis=1) / loads_LE.mean(axis=1))


def variation(loads_LE: Floats) -> Floats:
    """Coefficient of variation of the experts' loads: standard deviation over mean; 0 is perfect balance."""
    return np.asarray(loads_LE.std(axis=1) / loads_LE.mean(axis=1))


def entropy(loads_LE: Floats) -> Floats:
    """Shannon entropy of the experts' shares over log E; 1 is perfect balance, 0 one alone; 1 where a layer has one."""
    if loads_LE.shape[1] == 1:
        return np.ones(len(loads_LE))
    shares_LE = loads_LE / loads_LE.sum(axis=1, keepdims=True)
    logs = np.log(shares_LE, out=np.zeros_like(shares_LE), where=shares_LE > 0)
    return np.asarray(-(shares_LE * logs).sum(axis=1) / np.log(loads_LE.shape[1]))


def dead_experts(loads_LE: Floats) -> list[tuple[int, int]]:
    """(row, expert) of every expert that no token reached. Short texts leave experts unreached by chance."""
    return [(int(row), int(expert)) for row, expert in np.argwhere(loads_LE == 0)]


def uniform_distinct(n_experts: int, k: int, batch: int) -> float:
    """Distinct experts B tokens are expected to reach in a layer when each picks k of E evenly: E(1-(1-k/E)^B)."""
    return float(n_experts * (1 - (1 - k / n_experts) ** batch))


def distinct(ids_LTK: Ids, batch: int, draws: int, rng: np.random.Generator) -> Floats:
    """Mean number of distinct experts a decode step of B sequences reaches in each layer.

    A step is B tokens drawn from the text without replacement: sequences at unrelated places of it. Raises ValueError
    when the text has fewer tokens than B.
    """
    layers, tokens, _ = ids_LTK.shape
    if not 0 < batch <= tokens:
        raise ValueError(f"a step of {batch} sequences from a text of {tokens} tokens")
    totals = np.zeros(layers)
    for _ in range(draws):
        chosen_LX = ids_LTK[:, rng.choice(tokens, batch, replace=False)].reshape(layers, -1)
        ordered_LX = np.sort(chosen_LX, axis=1)
        totals += 1 + (np.diff(ordered_LX, axis=1) != 0).sum(axis=1)
    return totals / draws


def specialisation(loads_of_texts: list[Floats]) -> Floats:
    """For each text, how much more often it reaches each expert than the texts' mean does (as a difference of shares).

    Rows sum to 0. Zero everywhere: no expert prefers a text.
    """
    stacked_SLE = np.stack(loads_of_texts)
    return np.asarray(stacked_SLE - stacked_SLE.mean(axis=0))


def sampling_noise(frequency: float, tokens: int) -> float:
    """Standard error of a frequency seen over so many tokens, had tokens chosen independently (binomial)."""
    return float(np.sqrt(max(frequency * (1 - frequency), 0.0) / tokens))


@dataclass(frozen=True, slots=True)
class Traced:
    """Routed experts of one model over one or more texts, token by token."""

    model: str
    layers: tuple[int, ...]
    """Numbers of the layers that route; the first axis of every array follows them."""
    n_experts: int
    n_experts_per_token: int
    ids: Mapping[str, NDArray[np.int32]]
    """Text label to ids (L, T, K)."""
    truncated: tuple[str, ...]
    """Labels of texts cut at the limit of tokens."""
    observing_overhead: float
    """How much slower watching made a batch: 0.05 is 5 %."""

    def all_ids(self) -> NDArray[np.int32]:
        """Every text's ids one after the other (L, T, K)."""
        return np.concatenate(list(self.ids.values()), axis=1)

    def routing(self) -> Routing:
        """All texts together, as a study keeps it."""
        ids_LTK = self.all_ids()
        return Routing(
            model=self.model,
            layers=list(self.layers),
            n_experts=self.n_experts,
            n_experts_per_token=ids_LTK.shape[2],
            tokens=ids_LTK.shape[1],
            frequencies=frequencies(ids_LTK, self.n_experts).tolist(),
        )


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
    profiles: list[NodeProfile]

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
    loads = frequencies(everything, traced.n_experts)
    dead = dead_experts(loads)
    columns = (max_over_mean(loads), variation(loads), entropy(loads))
    by_text = [frequencies(ids, traced.n_experts) for ids in traced.ids.values()]
    special = specialisation(by_text).tolist() if len(by_text) > 1 else [None] * len(by_text)
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
                distinct=float(distinct(everything, batch, _DRAWS, rng).mean()),
                uniform=uniform_distinct(traced.n_experts, k, batch),
            )
            for batch in BATCHES
            if batch <= tokens
        ],
        sampling_error=sampling_noise(k / traced.n_experts, tokens),
        observing_overhead=traced.observing_overhead,
    )
