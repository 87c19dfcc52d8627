"""Which experts a text reaches, from the running model.

Legend: L layers that route, T tokens, K experts a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from breakeven.engine.inside import messages as m
from breakeven.engine.inside.client import Inside
from breakeven.engine.inside.routing import frequencies
from breakeven.errors import NotSupportedError, UserError
from breakeven.spec.study import Routing

MAX_TOKENS = 2048
_BATCH = 64


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


def trace(
    model: Path,
    texts: Mapping[str, str | Sequence[int]],
    *,
    threads: int | None = None,
    max_tokens: int = MAX_TOKENS,
    name: str | None = None,
) -> Traced:
    """Run each text through a GGUF and keep the experts every layer chose for every token.

    texts: label to text, or to token ids. Each runs as its own sequence, cut at `max_tokens`.
    Raises NotSupportedError for a dense model, UserError for an empty text.
    """
    if not texts:
        raise UserError("no text to trace: give at least one with --text FILE")
    with Inside(model, threads) as inside:
        loaded = inside.loaded
        if loaded.n_experts == 0:
            raise NotSupportedError(
                f"{model.name} is a dense model ({loaded.architecture}, no experts), so nothing is routed; "
                "`breakeven profile` shows where its time goes"
            )
        sequences: list[list[int]] = []
        truncated: list[str] = []
        for label, text in texts.items():
            tokens = inside.tokenize(text) if isinstance(text, str) else list(text)
            if not tokens:
                raise UserError(f"{label}: the text has no tokens")
            if len(tokens) > max_tokens:
                truncated.append(label)
            sequences.append(tokens[:max_tokens])
        routed = inside.ask(m.Trace(sequences=sequences, batch=_BATCH), m.Routed)
        ids = {label: np.load(inside.folder / f"ids-{index}.npy") for index, label in enumerate(texts)}
    return Traced(
        model=name or model.stem,
        layers=tuple(routed.layers),
        n_experts=loaded.n_experts,
        n_experts_per_token=next(iter(ids.values())).shape[2],
        ids=ids,
        truncated=tuple(truncated),
        observing_overhead=routed.observing_overhead,
    )
