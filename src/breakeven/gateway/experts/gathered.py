"""What the requests of one backend chose, added up by layer and expert: in all, by day, by key, by language.

Tokens of one request choose alike, so requests and not tokens are taken to be independent: of every cell the sums are
kept that give a share its clustered variance. With c the choices of an expert by one request, n its choices in the
layer, N = sum n and p = sum c / N:

    variance of p = m / (m - 1) * (sum c^2 - 2 p sum cn + p^2 sum n^2) / N^2        m = N^2 / sum n^2

(the ratio estimator of cluster sampling: Cochran, Sampling Techniques, 3rd edition, section 6.4; m, the requests of
equal length that would tell as much, is in place of their number, for among many short ones a few long ones decide).
Two sets of requests are apart by their total variation distance, half the sum over experts of |p1 - p2|, mean over
layers: the share of choices that would have to go elsewhere to make one the other. By chance it would be half the sum
of sqrt(2 / pi) * sqrt(variance 1 + variance 2), the mean of a normal number's size.

Of a key, or a language, choices alone are kept, which is a third of the memory. What chance makes of its R requests and
N choices follows from all requests together, with q = 1 - p:

    variance of p = p q / N + max(0, r) / (R m / all requests)        r = (sum (c - p n)^2 - N p q) / sum n^2

that is the multinomial part of its own size and the part r that tokens of one request have in common.

Pure: no clock, no socket, no file. Memory: three numbers a cell in all and for each of 15 days, one for each of 33 keys
and 33 languages; of 128 layers of 512 experts 60 MB, of 48 of 128 6 MB.

Legend: L layers that route, E experts
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_REQUESTS = 20
"""Of equal length. Fewer give no variance worth the name: neither drift nor who is apart is told."""
LEAST_TOKENS = 1000
DAYS = 15
"""Days that are kept."""
DAY_S = 86_400
MOST_NAMES = 32
"""Keys, and languages, with sums of their own."""
OTHER = "other"
LONGEST_NAME = 100
_SIZE_OF_NORMAL = np.sqrt(2 / np.pi)


@dataclass(slots=True)
class Sums:
    """Of some requests: choices, their squares and products by cell; choices and their squares by layer."""

    choices_LE: Floats
    squares_LE: Floats
    products_LE: Floats
    all_L: Floats
    all_squares_L: Floats
    requests: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, n_layers: int, n_experts: int) -> Self:
        """None so far."""
        one, two, three = (np.zeros((n_layers, n_experts)) for _ in range(3))
        return cls(one, two, three, np.zeros(n_layers), np.zeros(n_layers))

    def add(self, choices_LE: Floats, tokens: int, joined_LE: Floats | None = None) -> None:
        """One request. `joined_LE`: more of the one that was added last, which had chosen these."""
        all_L = choices_LE.sum(axis=1)
        self.choices_LE += choices_LE
        self.squares_LE += choices_LE**2
        self.products_LE += choices_LE * all_L[:, None]
        self.all_L += all_L
        self.all_squares_L += all_L**2
        self.tokens += tokens
        if joined_LE is None:
            self.requests += 1
            return
        before_L = joined_LE.sum(axis=1)
        self.squares_LE += 2 * choices_LE * joined_LE
        self.products_LE += choices_LE * before_L[:, None] + joined_LE * all_L[:, None]
        self.all_squares_L += 2 * all_L * before_L

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        both = [a + b for a, b in zip(self.arrays(), other.arrays(), strict=True)]
        requests, tokens = self.requests + other.requests, self.tokens + other.tokens
        return Sums(both[0], both[1], both[2], both[3], both[4], requests, tokens)

    def arrays(self) -> list[Floats]:
        """All of them, in the order in which they are made."""
        return [self.choices_LE, self.squares_LE, self.products_LE, self.all_L, self.all_squares_L]

    def shares_LE(self) -> Floats:
        """Of each layer's choices; NaN for a layer without any."""
        return shares_of(self.choices_LE)

    def spread_LE(self) -> Floats:
        """Sum over requests of (c - p n)^2."""
        p_LE = self.shares_LE()
        spread_LE = self.squares_LE - 2 * p_LE * self.products_LE + p_LE**2 * self.all_squares_L[:, None]
        found: Floats = np.maximum(spread_LE, 0.0)
        return found

    def like_L(self) -> Floats:
        """By layer, how many requests of equal length would tell as much; NaN for a layer without any."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Floats = self.all_L**2 / self.all_squares_L
        return found

    @property
    def like(self) -> float:
        """The same of all layers; 0 for none."""
        like_L = self.like_L()
        return float(np.nanmean(like_L)) if np.isfinite(like_L).any() else 0.0

    def variance_LE(self) -> Floats:
        """Of the shares, requests being independent; NaN below two requests."""
        if self.requests < 2:
            return np.full_like(self.choices_LE, np.nan)
        m_L1, all_L1 = self.like_L()[:, None], self.all_L[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            variance: Floats = self.spread_LE() / all_L1**2 * np.where(m_L1 > 1, m_L1 / (m_L1 - 1), np.inf)
        return variance

    def part_variance_LE(self, choices_LE: Floats, requests: int) -> Floats:
        """Of the shares of some of the requests, or of others like them; `requests` as many as tell as much."""
        p_LE = self.shares_LE()
        chance_LE = p_LE * (1 - p_LE)
        with np.errstate(divide="ignore", invalid="ignore"):
            common_LE = (self.spread_LE() - self.all_L[:, None] * chance_LE) / self.all_squares_L[:, None]
            variance: Floats = chance_LE / choices_LE.sum(axis=1, keepdims=True)
        return variance + np.maximum(common_LE, 0.0) / (requests * self.like / self.requests)

    def enough(self) -> bool:
        """Whether it can be held against others."""
        return self.like >= LEAST_REQUESTS - 1e-6 and self.tokens >= LEAST_TOKENS


def shares_of(choices_LE: Floats) -> Floats:
    """Shares of each row; NaN for a row of zeros."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = choices_LE / choices_LE.sum(axis=1, keepdims=True)
    return found


def apart_L(one_LE: Floats, two_LE: Floats) -> Floats:
    """Total variation distance of the shares of two, by layer."""
    found: Floats = 0.5 * np.abs(one_LE - two_LE).sum(axis=1)
    return found


def by_chance_L(variance_one_LE: Floats, variance_two_LE: Floats) -> Floats:
    """What it would be on average, were both drawn from the same requests."""
    found: Floats = 0.5 * _SIZE_OF_NORMAL * np.sqrt(variance_one_LE + variance_two_LE).sum(axis=1)
    return found


@dataclass(slots=True)
class Group:
    """Requests under one name."""

    choices_LE: Floats
    requests: int = 0
    tokens: int = 0


@dataclass(slots=True)
class Gathered:
    """All requests of one shape: which layers route, as their source numbers them, and among how many experts."""

    layers: tuple[int, ...]
    n_experts: int
    whole: Sums
    days: dict[int, Sums] = field(default_factory=dict)
    keys: dict[str, Group] = field(default_factory=dict)
    languages: dict[str, Group] = field(default_factory=dict)
    since_s: float = 0.0
    until_s: float = 0.0

    @classmethod
    def of(cls, layers: tuple[int, ...], n_experts: int, at_s: float) -> Self:
        """None so far."""
        return cls(layers, n_experts, Sums.of(len(layers), n_experts), since_s=at_s, until_s=at_s)

    def add(
        self,
        choices_LE: Floats,
        tokens: int,
        key: str,
        language: str,
        at_s: float,
        joined_LE: Floats | None = None,
    ) -> None:
        """One request, or more of the last one, which had chosen `joined_LE` on this day.

        The clock is believed as it is now: days long gone by it, or yet to come, are dropped, and the last request is
        the last that came.
        """
        today = int(at_s // DAY_S)
        for day in [day for day in self.days if not today - DAYS < day <= today + 1]:
            del self.days[day]
        shape = (len(self.layers), self.n_experts)
        for sums in (self.whole, self.days.setdefault(today, Sums.of(*shape))):
            sums.add(choices_LE, tokens, joined_LE)
        for groups, name in ((self.keys, key), (self.languages, language)):
            if name:
                group = _group(groups, name, shape, self.whole.tokens)
                group.choices_LE += choices_LE
                group.requests += 1
                group.tokens += tokens
        self.since_s = min(self.since_s, at_s)
        self.until_s = at_s

    def widen(self, n_experts: int) -> None:
        """Room for more experts, where only the highest number seen tells how many there are."""
        more = n_experts - self.n_experts
        if more <= 0:
            return
        room = ((0, 0), (0, more))
        for sums in (self.whole, *self.days.values()):
            sums.choices_LE = np.pad(sums.choices_LE, room)
            sums.squares_LE = np.pad(sums.squares_LE, room)
            sums.products_LE = np.pad(sums.products_LE, room)
        for group in (*self.keys.values(), *self.languages.values()):
            group.choices_LE = np.pad(group.choices_LE, room)
        self.n_experts = n_experts


def _group(groups: dict[str, Group], name: str, shape: tuple[int, int], tokens: int) -> Group:
    """The one of that name; beyond `MOST_NAMES` all are one.

    Clients make up names, so none keeps its place for having come first: the one with the fewest tokens makes room,
    unless it has half of an even share of all `tokens`.
    """
    name = name[:LONGEST_NAME]
    if name not in groups and len(named := groups.keys() - {OTHER}) >= MOST_NAMES:
        least = min(sorted(named), key=lambda each: groups[each].tokens)
        if 2 * MOST_NAMES * groups[least].tokens >= tokens:
            name = OTHER
        else:
            gone, other = groups.pop(least), groups.setdefault(OTHER, Group(np.zeros(shape)))
            other.choices_LE += gone.choices_LE
            other.requests += gone.requests
            other.tokens += gone.tokens
    return groups.setdefault(name, Group(np.zeros(shape)))
