"""How many layers llama.cpp's `--fit` gives each device: common/fit.cpp, steps 3 and 4, over bytes that are foretold.

It fills from the back, with all experts in host memory where a model routes; then turns such layers into whole ones
from the front. Between two bounds it guesses by false position, so the same bytes lead to the same layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from breakeven.hardware.placement import HOST

Keeps = Literal["experts", "gate", "up", "attention"]
"""The last of the first parted layer that stays: all but experts; up to its gate, its up matrix, its attention."""


EXPERTS = r"ffn_(up|down|gate_up|gate)_(ch|)exps"
_OVERFLOW: Mapping[Keeps, str] = {
    "attention": r"ffn_(gate|up|gate_up|down).*",
    "up": r"ffn_(gate|gate_up|down).*",
    "gate": r"ffn_down.*",
    "experts": EXPERTS,
}
"""What of a layer goes elsewhere, by the last part that stays (common/fit.cpp: get_overflow_pattern)."""


@dataclass(frozen=True, slots=True)
class Told:
    """What llama.cpp is told: `-ngl`, `-ts`, and what goes elsewhere: a pattern and its place, by layer (None: all)."""

    gpu_layers: int
    shares: tuple[float, ...]
    rules: tuple[tuple[int | None, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Take:
    """Layers of one device, from the front: `layers`, the last `part` of them without their experts.

    Of the first of these only what comes after `keeps` goes elsewhere: to host memory, or the next device (`onward`).
    """

    layers: int = 0
    part: int = 0
    keeps: Keeps = "experts"
    onward: bool = False

    @property
    def full(self) -> int:
        """Those that lie on it whole."""
        return self.layers - self.part


Needs = Callable[[Sequence[Take]], list[float]]
"""Bytes by device when each takes so much."""


def dense_from_the_back(blocks: int, targets: Sequence[float], routed: bool, needs: Needs) -> list[Take]:
    """As many layers as fit, without their experts where the model routes; the last device has the output head.

    `blocks`: layers and the head; `targets`: bytes that each device may hold.
    """
    takes = [Take() for _ in targets]
    memory = needs(takes)
    last = len(targets) - 1
    for i in range(last, -1, -1):
        left = blocks - sum(take.layers for take in takes[i + 1 :])
        high = _with(takes, i, Take(left, (left if i < last else left - 1) if routed else 0))
        if not left:
            continue
        most = needs(high)
        if most[i] <= targets[i]:
            takes, memory = high, most
            continue
        while (gap := high[i].layers - takes[i].layers) > 1:
            step = _step(gap, targets[i], memory[i], most[i])
            # The head, which comes first from the back, is never parted.
            part = (step - 1 if i == last and not takes[i].part else step) if routed else 0
            test = _with(takes, i, Take(takes[i].layers + step, takes[i].part + part))
            found = needs(test)
            if found[i] <= targets[i]:
                takes, memory = test, found
            else:
                high, most = test, found
    return takes


def whole_from_the_front(takes: list[Take], targets: Sequence[float], needs: Needs) -> list[Take]:
    """Turn layers without their experts into whole ones, front to back, and try a part of one more on each device."""
    last = len(targets) - 1
    memory = needs(takes)
    if not takes[last].layers:
        return takes
    start = last
    while start > 0 and takes[start - 1].layers:
        start -= 1
    i = 0
    while i <= start <= last:
        high, start_high = _all_whole(takes, i, start), last
        most = needs(high)
        if most[i] > targets[i]:
            while (gap := high[i].full - takes[i].full) > 1:
                test, start_test = _moved(takes, i, start, _step(gap, targets[i], memory[i], most[i]))
                found = needs(test)
                if found[i] <= targets[i]:
                    takes, memory, start = test, found, start_test
                else:
                    high, most, start_high = test, found, start_test
        else:
            takes, memory, start = high, most, start_high
        if start <= last and takes[start].layers > (0 if i < last else 1):
            takes, memory, start = _one_more(takes, i, start, targets, memory, needs)
        i += 1
    return takes


def _one_more(
    takes: list[Take], i: int, start: int, targets: Sequence[float], memory: list[float], needs: Needs
) -> tuple[list[Take], list[float], int]:
    """A part of one more layer on device `i`, if any fits."""
    last = len(targets) - 1
    test = _with(takes, start, replace(takes[start], layers=takes[start].layers - 1, part=takes[start].part - 1))
    start_test = start + 1 if test[start].part == 0 else start
    grown = replace(test[i], layers=test[i].layers + 1, part=test[i].part + 1)

    def attempt(keeps: Keeps) -> tuple[list[Take], list[float]] | None:
        tried = _with(test, i, replace(grown, keeps=keeps, onward=i < last))
        found = needs(tried)
        fits = found[i] < targets[i] and (i == last or found[i + 1] < targets[i + 1])
        return (tried, found) if fits else None

    best = attempt("gate") or best if (best := attempt("up")) else attempt("attention")
    return (*best, start_test) if best else (takes, memory, start)


def _all_whole(takes: list[Take], i: int, start: int) -> list[Take]:
    """Device `i` takes all that devices from `start` on have, but the head."""
    high = list(takes)
    for j in range(start, len(high)):
        moved = high[j].layers - (1 if j == len(high) - 1 else 0)
        high[i] = replace(high[i], layers=high[i].layers + moved)
        high[j] = replace(high[j], layers=high[j].layers - moved, part=0)
    return high


def _moved(takes: list[Take], i: int, start: int, step: int) -> tuple[list[Take], int]:
    """`step` layers of devices from `start` on made whole on device `i`; and where those that are left begin."""
    test, done = list(takes), 0
    while start < len(test):
        taken = min(step - done, test[start].part)
        test[start] = replace(test[start], layers=test[start].layers - taken, part=test[start].part - taken)
        test[i] = replace(test[i], layers=test[i].layers + taken)
        done += taken
        if test[start].part > 0:
            break
        start += 1
    return test, start


def _step(gap: int, target: float, low: float, high: float) -> int:
    """Layers to add to the lower bound: where a line between both bounds meets the target."""
    return min(max(int(gap * (target - low) / (high - low)), 1), gap - 1)


def _with(takes: Sequence[Take], i: int, take: Take) -> list[Take]:
    return [*takes[:i], take, *takes[i + 1 :]]


def plan_of(takes: Sequence[Take], blocks: int, places: Sequence[str]) -> Told:
    """What llama.cpp is told for these takes, devices named by `places`."""
    layers = sum(take.layers for take in takes)
    at, rules = blocks - layers, []
    for i, take in enumerate(takes):
        at += take.full
        for layer in range(at, at + take.part):
            first = layer == at
            pattern = _OVERFLOW[take.keeps if first else "experts"]
            to = places[i + 1] if first and take.onward else HOST
            rules.append((layer, rf"blk\.{layer}\.{pattern}", to))
        at += take.part
    return Told(layers, tuple(float(take.layers) for take in takes), tuple(rules))
