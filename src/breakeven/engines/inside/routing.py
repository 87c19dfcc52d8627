"""What routed expert ids say: pure functions on arrays.

Legend: L layers that route, T tokens, K experts a token, E experts, B sequences in a step, S texts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Floats = NDArray[np.float64]


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
    """Shannon entropy of the experts' shares over log E; 1 is perfect balance, 0 one expert alone."""
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
