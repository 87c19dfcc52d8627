"""From counts to what is said of experts: shares, pairs, what each gives, what is lost without one, which to name.

Blocks of text are what is independent here, not tokens: neighbours choose alike. Every error and interval is the spread
between blocks (of a ratio of sums, linearised: Cochran 1977, "Sampling techniques", section 6.3).

Legend: S blocks, G languages, L layers that route, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from breakeven.engines.inside.summary import entropy, max_over_mean, sampling_noise
from breakeven.results.lab import ExpertFinding, ExpertPair, ScoredLayer, WatchedText, WithoutExpert
from breakeven.stats.estimate import Estimate, measured
from breakeven.stats.intervals import MIN_PAIRS, mean_interval

Floats = NDArray[np.float64]
_T = TypeVar("_T")

SURE = 3.0
"""Standard errors that a difference must exceed before an expert is named for it: thousands are looked at."""
PAIR_SURE = 4.0
"""The same for pairs, of which there are more. The blocks' own spread divides, so 16 blocks just reach it, and fewer
name no pair."""
PAIR_OVER_CHANCE = 1.2
PAIRS_SHOWN = 5
FINDINGS_SHOWN = 50
ONE_LANGUAGE_LEAST = 1.0
"""An expert that one language needs has there at least its even part of the layer, and elsewhere hardly any of that."""
ELSEWHERE_MOST = 0.25
LAGGING_MOST = 0.5
"""A lagging expert has at least its even part of the load, and gives at most this share of what its load would."""

NOTHING_NATS = 0.01
"""A loss that is surely below this in every language is none to speak of."""


@dataclass(frozen=True, slots=True)
class WatchedExperts:
    """What watching a text gave. `given`: gate weight times output norm, summed; None when only loads were asked."""

    layers: tuple[int, ...]
    n_experts: int
    n_experts_per_token: int
    equal_gates: bool
    """Whether a token's experts always weighed the same; false when nothing was weighed."""
    languages: tuple[str, ...]
    groups_S: tuple[int, ...]
    """Each block's language, a number."""
    choices_SLE: NDArray[np.int64]
    given_SLE: Floats | None
    together: NDArray[np.float32]
    """(G or 1, L, E, E) tokens that chose both, those expected by chance, and the sum over blocks of the difference's
    square."""
    expected: NDArray[np.float32]
    squares: NDArray[np.float32]
    tokens_S: tuple[int, ...]
    observing_overhead: float

    def rows(self, language: int) -> NDArray[np.intp]:
        """The blocks of a language."""
        return np.flatnonzero(np.asarray(self.groups_S) == language)


def _ratio(over_SX: Floats, under_S1: Floats) -> tuple[Floats, Floats]:
    """Sum over sum along the first axis, and its standard error from the spread between blocks (NaN for one block)."""
    n, whole = len(over_SX), under_S1.sum(axis=0)
    value = np.divide(over_SX.sum(axis=0), whole, out=np.full(over_SX.shape[1:], np.nan), where=whole > 0)
    if n < 2:
        return value, np.full_like(value, np.nan)
    off = over_SX - np.where(np.isnan(value), 0, value) * under_S1
    error = np.sqrt(n / (n - 1) * (off**2).sum(axis=0))
    return value, np.divide(error, whole, out=np.full_like(value, np.nan), where=whole > 0)


def shares(seen: WatchedExperts, language: int) -> tuple[Floats, Floats]:
    """Share of each layer's choices (L, E) in a language, and its standard error."""
    choices_SLE = seen.choices_SLE[seen.rows(language)].astype(np.float64)
    return _ratio(choices_SLE, choices_SLE.sum(axis=2, keepdims=True))


def contributions(seen: WatchedExperts, language: int) -> tuple[Floats, Floats]:
    """Share (L, E) of gate weight times output norm, summed over tokens, in a language, and its standard error."""
    assert seen.given_SLE is not None
    given_SLE = seen.given_SLE[seen.rows(language)]
    return _ratio(given_SLE, given_SLE.sum(axis=2, keepdims=True))


def reap(seen: WatchedExperts, blocks: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """REAP (arXiv 2510.13999): gate weight times output norm, mean over the tokens that chose the expert (L, E).

    NaN for an expert that none did. Its standard error beside it.
    """
    assert seen.given_SLE is not None
    return _ratio(seen.given_SLE[blocks], seen.choices_SLE[blocks].astype(np.float64))


def texts_of(seen: WatchedExperts, bytes_S: Sequence[int]) -> list[WatchedText]:
    """Each language's text, and how large chance makes the error of a share there."""
    told = []
    for at, language in enumerate(seen.languages):
        blocks = seen.rows(at)
        tokens = sum(seen.tokens_S[block] for block in blocks)
        k, n = seen.n_experts_per_token, seen.n_experts
        independent = sampling_noise(k / n, tokens) / k
        errors = shares(seen, at)[1]
        spread = 0.0 if np.isnan(errors).all() else float(np.sqrt(np.nanmean(errors**2)))
        told.append(
            WatchedText(
                language=language,
                bytes=sum(bytes_S[block] for block in blocks),
                blocks=len(blocks),
                tokens=tokens,
                sampling_error=max(independent, spread),
            )
        )
    return told


def layers_of(seen: WatchedExperts, without: Mapping[int, Sequence[WithoutExpert]]) -> list[ScoredLayer]:
    """What is told of every layer; `without` by number of the layer."""
    everything = np.arange(len(seen.groups_S))
    tokens_LE = seen.choices_SLE.sum(axis=0)
    loads_LE = tokens_LE.astype(np.float64)
    busiest, even = max_over_mean(loads_LE), entropy(loads_LE)
    share_GLE = [shares(seen, at)[0] for at in range(len(seen.languages))]
    weighed = seen.given_SLE is not None
    score, error = reap(seen, everything) if weighed else (loads_LE, loads_LE)
    score_GLE = [reap(seen, seen.rows(at))[0] for at in range(len(seen.languages))] if weighed else []
    given_GLE = [contributions(seen, at)[0] for at in range(len(seen.languages))] if weighed else []
    told = []
    for row, layer in enumerate(seen.layers):
        told.append(
            ScoredLayer(
                layer=layer,
                tokens=tokens_LE[row].tolist(),
                max_over_mean=float(busiest[row]),
                entropy=float(even[row]),
                dead=np.flatnonzero(tokens_LE[row] == 0).tolist(),
                by_language=_by(seen, [share[row].tolist() for share in share_GLE]),
                tokens_by_language=_by(
                    seen, [seen.choices_SLE[seen.rows(at), row].sum(axis=0).tolist() for at in range(len(share_GLE))]
                ),
                pairs=pairs_of(seen, row),
                score=_or_none(score[row]) if weighed else None,
                score_error=_or_none(error[row]) if weighed else None,
                score_by_language=_by(seen, [_or_none(each[row]) for each in score_GLE]) if weighed else {},
                contribution_by_language=_by(seen, [_or_none(each[row]) for each in given_GLE]) if weighed else {},
                without=list(without.get(layer, ())),
            )
        )
    return told


def _by(seen: WatchedExperts, values_G: Sequence[_T]) -> dict[str, _T]:
    return dict(zip(seen.languages, values_G, strict=True))


def _or_none(values_E: Floats) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values_E]


def pairs_of(seen: WatchedExperts, row: int) -> list[ExpertPair]:
    """The surest pairs of a layer that are chosen together more than chance would, by blocks.

    Chance keeps what each expert does in each block, so that a topic which two of them like makes no pair of them.
    """
    if seen.n_experts_per_token in (1, seen.n_experts):
        return []
    counts = (seen.together, seen.expected, seen.squares)
    together, expected, squares = (each[:, row].astype(np.float64) for each in counts)
    sure_G = _sureness(together - expected, squares)
    over = together.sum(axis=0) - expected.sum(axis=0)
    sure = _sureness(over, squares.sum(axis=0))
    found = []
    above = np.triu_indices(seen.n_experts, 1)
    for at in np.argsort(-sure[above])[: PAIRS_SHOWN * 4]:
        first, second = int(above[0][at]), int(above[1][at])
        chance = float(expected[:, first, second].sum())
        both = float(together[:, first, second].sum())
        if sure[first, second] < PAIR_SURE or chance <= 0 or both / chance < PAIR_OVER_CHANCE:
            continue
        apart = len(sure_G) == len(seen.languages)
        where = [name for at, name in enumerate(seen.languages) if apart and sure_G[at, first, second] >= PAIR_SURE]
        found.append(
            ExpertPair(experts=[first, second], tokens=round(both), over_chance=both / chance, languages=where)
        )
    return found[:PAIRS_SHOWN]


def _sureness(over: Floats, squares: Floats) -> Floats:
    """A difference over its standard error from the spread between blocks; 0 where nothing was seen."""
    return np.divide(over, np.sqrt(squares), out=np.zeros_like(over), where=squares > 0)


def lost(delta_S: Sequence[float], sizes_S: Sequence[int]) -> Estimate:
    """Sum of differences over sum of sizes, paired by block; without an interval for fewer than three blocks."""
    delta, size = np.asarray(delta_S, dtype=np.float64), np.asarray(sizes_S, dtype=np.float64)
    value = float(delta.sum() / size.sum())
    if len(delta) < MIN_PAIRS:
        return measured(value, None, None, len(delta))
    _, low, high = mean_interval((value + (delta - value * size) / size.mean()).tolist())
    return measured(value, low, high, len(delta))


def findings_of(seen: WatchedExperts, layers: Sequence[ScoredLayer]) -> list[ExpertFinding]:
    """Experts worth naming, the most striking first. Where one was switched off, what was surely lost overrules."""
    named = [*(_one_language(seen, layers) if len(seen.languages) > 1 else []), *_lagging(seen, layers)]
    return [finding for _, finding in sorted(named, key=lambda each: -each[0])]


def _one_language(seen: WatchedExperts, layers: Sequence[ScoredLayer]) -> list[tuple[float, ExpertFinding]]:
    """Experts that one language needs and no other, each with how striking it is."""
    weighed = seen.given_SLE is not None
    parts = [contributions(seen, at) if weighed else shares(seen, at) for at in range(len(seen.languages))]
    value_GLE = np.nan_to_num(np.stack([value for value, _ in parts]) * seen.n_experts)
    error_GLE = np.stack([error for _, error in parts]) * seen.n_experts
    what = "contribution" if weighed else "choices"
    named = []
    for row, layer in enumerate(layers):
        tried = {each.expert: each for each in layer.without}
        for expert in range(seen.n_experts):
            value_G, error_G = value_GLE[:, row, expert], error_GLE[:, row, expert]
            first, second = (int(each) for each in np.argsort(-value_G)[:2])
            language = seen.languages[first]
            apart = value_G[first] - value_G[second]
            if value_G[first] < ONE_LANGUAGE_LEAST or value_G[second] > ELSEWHERE_MOST * value_G[first]:
                continue
            # A single block has no error of its own (NaN), and then nobody is named.
            if not apart > SURE * math.hypot(error_G[first], error_G[second]):
                continue
            text = (
                f"layer {layer.layer}, expert {expert}: serves {language} alone, "
                f"{value_G[first] / seen.n_experts:.1%} of the layer's {what} there, at most "
                f"{value_G[second] / seen.n_experts:.1%} elsewhere"
            )
            if expert in tried:
                loss = tried[expert].nats_per_token
                others = [loss[name] for name in seen.languages if name != language]
                # What is not sure, on little text, contradicts nothing.
                spared = loss[language].high is not None and loss[language].most <= 0
                if spared or any(_surely(other) and other.value >= loss[language].value for other in others):
                    continue
                if _surely(loss[language]):
                    text += f"; needed: without it {language} loses {loss[language].value:.3f} nats a token"
            finding = ExpertFinding(layer=layer.layer, expert=expert, kind="one language", language=language, text=text)
            named.append((float(apart), finding))
    return named


def _surely(loss: Estimate) -> bool:
    """Whether something was lost, with its interval above zero."""
    return loss.low is not None and loss.low > 0


def _lagging(seen: WatchedExperts, layers: Sequence[ScoredLayer]) -> list[tuple[float, ExpertFinding]]:
    """Experts with much load and little contribution, each with how striking it is."""
    if seen.given_SLE is None:
        return []
    choices_SLE = seen.choices_SLE.astype(np.float64)
    load_LE, _ = _ratio(choices_SLE, choices_SLE.sum(axis=2, keepdims=True))
    given_LE, error_LE = _ratio(seen.given_SLE, seen.given_SLE.sum(axis=2, keepdims=True))
    named = []
    for row, layer in enumerate(layers):
        tried = {each.expert: each for each in layer.without}
        for expert in range(seen.n_experts):
            load, given = load_LE[row, expert], given_LE[row, expert]
            # Equal loads, as where every expert is always chosen, differ from the mean by rounding alone.
            if load * seen.n_experts < 1 - 1e-9:
                continue
            small = given + SURE * error_LE[row, expert] <= LAGGING_MOST * load
            text = (
                f"layer {layer.layer}, expert {expert}: lags, {load:.1%} of the layer's choices and {given:.1%} of its "
                "contribution"
            )
            if expert in tried:
                loss = tried[expert].nats_per_token
                largest = max(loss.values(), key=lambda each: each.most)
                if any(_surely(each) for each in loss.values()):
                    small = False
                elif largest.high is not None and largest.most <= NOTHING_NATS:
                    small = True
                    text += f"; without it no language loses more than {largest.most:.3f} nats a token"
            if small:
                finding = ExpertFinding(layer=layer.layer, expert=expert, kind="lagging", language=None, text=text)
                named.append((float(load - given) * seen.n_experts, finding))
    return named
