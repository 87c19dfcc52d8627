"""What watching experts counts, whatever runs the model: choices, contributions and pairs; and its messages.

Nothing is kept token by token: `ExpertTally` adds up by sequence.

Legend: S sequences, G groups of them (languages), L layers that route, T tokens, K experts a token, E experts, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.engines.inside.child import Doing, LoadedFile, LoadFile, Tokenize, Tokens, Unable
from breakeven.errors import EngineError

MOST_PAIR_CELLS = 16_000_000
"""Groups times layers times experts squared; above, pairs are counted for all groups together."""
_FITS = 40

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]


class WatchExperts(msgspec.Struct, tag="watch", frozen=True, kw_only=True):
    """Count choices of these sequences; `groups` are their languages' numbers. Answered by `ExpertsWatched`.

    The tally stands in worth.npz. `weigh`: what each expert gave too.
    """

    sequences: list[list[int]]
    groups: list[int]
    weigh: bool


class LeaveExpert(msgspec.Struct, tag="leave", frozen=True, kw_only=True):
    """The loss of these sequences with one expert left out, None: with all. Answered by `Nats`.

    Left out: it is never chosen. `silent`: it may be chosen, and gives nothing.
    """

    sequences: list[list[int]]
    layer: int = 0
    expert: int | None = None
    silent: bool = False


class ExpertsWatched(msgspec.Struct, tag="watched", frozen=True, kw_only=True):
    """Which layers route, to how many experts a token, and what watching cost: 0.05 is 5 %.

    `equal_gates`: a token's experts always weighed the same; None when nothing was weighed.
    """

    layers: list[int]
    n_experts_per_token: int
    observing_overhead: float
    equal_gates: bool | None


class Nats(msgspec.Struct, tag="nats", frozen=True, kw_only=True):
    """Nats of each sequence from its second token on."""

    nats: list[float]


WatchRequest = LoadFile | Tokenize | WatchExperts | LeaveExpert
WatchReply = LoadedFile | Tokens | ExpertsWatched | Nats | Unable | Doing
TALLY = "worth.npz"


class ExpertTally:
    """Choices, contributions and pairs of sequences, added up; one row a sequence, pairs by group."""

    def __init__(self, layers: Sequence[int], n_experts: int, n_groups: int) -> None:
        self.layers, self._n_experts = list(layers), n_experts
        n_layers = len(layers)
        self.pair_groups = n_groups if n_groups * n_layers * n_experts**2 <= MOST_PAIR_CELLS else 1
        shape = (self.pair_groups, n_layers, n_experts, n_experts)
        self._together, self._expected, self._squares = (np.zeros(shape, np.float32) for _ in range(3))
        self._choices_LE: list[NDArray[np.int64]] = []
        self._given_LE: list[NDArray[np.float64]] = []

    def add(self, group: int, ids_LTK: Ids, given_LTK: Floats | None) -> None:
        """One sequence. `given_LTK`: gate weight times output norm of each choice.

        Raises EngineError for an expert that the model does not have.
        """
        if ids_LTK.min() < 0 or ids_LTK.max() >= self._n_experts:
            raise EngineError(f"expert {ids_LTK.max()} was chosen in a model of {self._n_experts} experts")
        at = group if self.pair_groups > 1 else 0
        choices, given = [], []
        for layer, ids_TK in enumerate(ids_LTK):
            flat = ids_TK.ravel()
            choices.append(np.bincount(flat, minlength=self._n_experts))
            if given_LTK is not None:
                given.append(np.bincount(flat, given_LTK[layer].ravel(), self._n_experts))
            together, expected = pairs(ids_TK, self._n_experts)
            self._together[at, layer] += together
            self._expected[at, layer] += expected
            self._squares[at, layer] += (together - expected) ** 2
        self._choices_LE.append(np.stack(choices))
        if given:
            self._given_LE.append(np.stack(given))

    def save(self, path: Path) -> None:
        """All of it as one .npz."""
        arrays: dict[str, NDArray[np.generic]] = {
            "choices": np.stack(self._choices_LE),
            "together": self._together,
            "expected": self._expected,
            "squares": self._squares,
        }
        if self._given_LE:
            arrays["given"] = np.stack(self._given_LE)
        np.savez(path, **arrays)  # type: ignore[arg-type]


def pairs(ids_TK: Ids, n_experts: int) -> tuple[Floats, Floats]:
    """Tokens that chose both of two experts (E, E), and how many would by chance. The diagonals are zero.

    Chance: weights w such that w_i w_j over the others gives every expert the pairs it has (quasi-independence of a
    table without diagonal). A product of shares would not do: a token's experts differ, so busy ones meet more rarely.
    """
    chosen_TE = np.zeros((len(ids_TK), n_experts), np.float32)
    np.put_along_axis(chosen_TE, ids_TK.astype(np.intp), 1, axis=1)
    together_EE = chosen_TE.T @ chosen_TE
    np.fill_diagonal(together_EE, 0)
    paired_E = together_EE.sum(axis=1, dtype=np.float64)
    weight_E = np.sqrt(paired_E)
    for _ in range(_FITS):
        others_E = weight_E.sum() - weight_E
        fitted_E = np.divide(paired_E, others_E, out=np.zeros_like(paired_E), where=others_E > 0)
        # Half a step on the logarithm: whole ones can swing.
        weight_E = np.sqrt(weight_E * fitted_E)
    expected_EE = np.outer(weight_E, weight_E).astype(np.float32)
    np.fill_diagonal(expected_EE, 0)
    return together_EE, expected_EE


def nats_of(logits_TV: Floats, targets: Sequence[int]) -> float:
    """Sum over tokens of minus the log of the probability that the logits give to the target."""
    highest_T = logits_TV.max(axis=1)
    total_T = np.exp(logits_TV - highest_T[:, None]).sum(axis=1)
    aimed_T = logits_TV[np.arange(len(targets)), np.asarray(targets)]
    return float((np.log(total_T) + highest_T - aimed_T).sum(dtype=np.float64))
