"""How fast a backend answers at a load, and how that corrects itself from what happened.

How predictions correct themselves from what happened. Pure functions; a worker keeps the numbers.

    x        = ln(actual / predicted), predicted without any correction
    log_factor += GAIN (clip(x - log_factor, -SURPRISE, SURPRISE)), kept within +-bound
    width    : the 95th percentile of x - log_factor, by the stochastic approximation of Robbins and Monro (1951)

A factor forgets: half of what an answer taught is gone after `HALF_LIFE` further answers. Between answers it heals:
half of it is gone after `HEAL_S` seconds without one, so a backend that was slow once is not avoided for ever; the
exploration of `choose` brings it answers meanwhile.

How fast a backend answers at a load: its step model as a small table, or what is said and seen of it.

With D sequences decoding (S places at most), contexts of c tokens, A prompt tokens of others not read yet, W in line,
o tokens in a usual answer:

    ttft  = front + r step(D, c) + A rate(D) + k step(D, c) + extra(D, I) + line
    line  = (W + max(0, D - S + 1)) o tpot / S                one place comes free every o tpot / S seconds
    tpot  = step(D, c) + (D - 1)/o extra(D - 1, c - o/2)      others' prompts ride in the steps between
    added = extra(D, I) + o (step(D+1, c) - step(D, c)); on a full one extra(S, I) + o step(S, c) / S

step: a decode step of the step model. A prompt of I tokens is read in k steps, which take `extra` longer than they
would without it. rate: seconds that one more prompt token adds to a step that has prompts in it. r: the part of a step
that passes before one can join, a half, and one more where the engine plans a step ahead. On an idle engine step(0) is
nothing, and `extra` all of the reading. The sources are `forecast.model`, `forecast.serving` and `forecast.simulator`.

numpy is needed to build a table and not to read it: a look-up is a few dozen operations on floats.
"""

from __future__ import annotations

from bisect import bisect_right
from math import exp2, log

from breakeven.answer.study.price import ApiSpeed
from breakeven.gateway.route.view import Speed

BOUND = log(4.0)
"""A step model that is off by more than four is wrong, not to be corrected: the page shows the factor at its bound."""
OBSERVED_BOUND = log(64.0)
"""Where nothing but a guess stands behind a prediction, what happens is all there is to know."""
HALF_LIFE = 20
"""Answers."""
GAIN: float = 1.0 - exp2(-1.0 / HALF_LIFE)
SURPRISE: float = log(8.0)
"""One answer that took minutes teaches no more than one that took eight times as long."""
HEAL_S = 300.0
P = 0.95
WIDTH_STEP = 0.05
WIDTH_LEAST, WIDTH_MOST = 0.05, log(16.0)
PEAK_HALF_LIFE_S = 5.0


def corrected(log_factor: float, predicted_s: float, actual_s: float, bound: float = BOUND) -> float:
    """The natural logarithm of a backend's factor after one more answer.

    `predicted_s`: without correction, so a score's divided by the factor it was made with. Times that are not
    positive teach nothing.
    """
    if not (predicted_s > 0.0 and actual_s > 0.0):
        return log_factor
    surprise = log(actual_s / predicted_s) - log_factor
    surprise = min(max(surprise, -SURPRISE), SURPRISE)
    return min(max(log_factor + GAIN * surprise, -bound), bound)


def healed(log_factor: float, idle_s: float) -> float:
    """The same factor after `idle_s` seconds without an answer."""
    return log_factor * exp2(-idle_s / HEAL_S) if idle_s > 0.0 else log_factor


def widened(width: float, log_factor: float, predicted_s: float, actual_s: float) -> float:
    """Half width of the interval of ln(actual / corrected) after one more answer; arguments as in `corrected`.

    p95 of the time is about predicted * exp(log_factor + width).
    """
    if not (predicted_s > 0.0 and actual_s > 0.0):
        return width
    beyond = log(actual_s / predicted_s) - log_factor > width
    return min(max(width + WIDTH_STEP * (P if beyond else P - 1.0), WIDTH_LEAST), WIDTH_MOST)


def peaked(peak: float, predicted_s: float, actual_s: float, idle_s: float) -> float:
    """Peak-EWMA of actual / uncorrected predicted: up at once, down by half in `PEAK_HALF_LIFE_S`."""
    if not (predicted_s > 0.0 and actual_s > 0.0):
        return peak
    ratio = actual_s / predicted_s
    if ratio >= peak:
        return ratio
    return ratio + (peak - ratio) * exp2(-max(idle_s, 0.0) / PEAK_HALF_LIFE_S)


def bound_of(speed: Speed) -> float:
    """How far this speed's answers may be corrected, as a logarithm."""
    bound: float = getattr(speed, "bound", BOUND)
    return bound


USUAL_OUTPUT = 200.0
"""Tokens of an answer until some have been seen; the mean of the Azure conversation trace is 211."""
UNKNOWN_TTFT_S, UNKNOWN_TPOT_S = 0.5, 0.03
"""Where nobody says anything: a judgement, to be corrected by the first answers."""

GRAIN = 16
"""Tokens between two points of a grid are a multiple of this."""
Cell = tuple[float, float, float, float]
"""a, b, c, d of a + x (b + y d) + y c within one cell of a grid."""


class SpeedTable:
    """A `Speed` from a step model. Made by `breakeven.gateway.route.build`; plain numbers, so it can be pickled.

    `output_tokens`: of a usual answer; whoever knows better sets it. `width`: half width of the interval of
    ln(actual / predicted) that the profile states.
    """

    __slots__ = (
        "_decode", "_extra", "_front_s", "_kv_tokens", "_lag", "_places", "_rate", "_running", "_running_at",
        "_step_tokens", "_tokens", "_tokens_at", "_top", "output_tokens", "width",
    )  # fmt: skip
    bound = BOUND

    def __init__(
        self,
        *,
        running: list[float],
        tokens: list[float],
        decode: list[list[tuple[float, ...]]],
        extra: list[list[Cell]],
        rate: list[tuple[float, float]],
        places: int,
        kv_tokens: int | None,
        step_tokens: int,
        lag: float,
        front_s: float,
        width: float,
    ) -> None:
        """Grids in rising order: `running` whole numbers from 0 to `places`, `tokens` multiples of `GRAIN` from 0.

        `decode` by cell of running and context: a step's `Cell`, and that of what one more sequence adds to it.
        `extra` by cell of running and prompt, `rate` by cell of running: its value and slope.
        """
        self._running, self._tokens = running, tokens
        # Which cell a whole number is in: one look instead of a search.
        self._running_at = [bisect_right(running, d, 1, len(running) - 1) - 1 for d in range(places + 2)]
        self._top = int(tokens[-1]) // GRAIN
        self._tokens_at = [bisect_right(tokens, t * GRAIN, 1, len(tokens) - 1) - 1 for t in range(self._top + 1)]
        self._decode, self._extra, self._rate = decode, extra, rate
        self._places, self._kv_tokens, self._step_tokens = float(places), kv_tokens, float(step_tokens)
        self._lag, self._front_s, self.width = lag, front_s, width
        self.output_tokens = USUAL_OUTPUT

    def places(self, context: float) -> float:
        """Sequences of `context` tokens that run at once; the rest wait."""
        places = self._places
        if self._kv_tokens is not None and context * places > self._kv_tokens:
            return max(1.0, self._kv_tokens / context)
        return places

    def ttft_s(
        self, prompt_tokens: float, running: float, context: float, ahead_tokens: float, waiting: float
    ) -> float:
        """See `Speed.ttft_s`."""
        return self.together(prompt_tokens, 0.0, running, context, ahead_tokens, waiting)[0]

    def tpot_s(self, running: float, context: float) -> float:
        """See `Speed.tpot_s`."""
        return self.together(1.0, 0.0, max(running - 1.0, 0.0), context, 0.0, 0.0)[1]

    def added_s(self, prompt_tokens: float, output_tokens: float, running: float, context: float) -> float:
        """See `Speed.added_s`."""
        return self.together(prompt_tokens, output_tokens, running, context, 0.0, 0.0)[2]

    def together(
        self,
        prompt_tokens: float,
        output_tokens: float,
        running: float,
        context: float,
        ahead_tokens: float,
        waiting: float,
    ) -> tuple[float, float, float]:
        """`ttft_s` joining `running`, `tpot_s` of `running` + 1, and `added_s`, for one look at the grids.

        All three are asked for of every backend and request, so the interpolation is written out.
        """
        places = self._places
        if self._kv_tokens is not None and context * places > self._kv_tokens:
            places = self._kv_tokens / context
            if places < 1.0:
                places = 1.0
        full = running > places - 1.0
        if full:
            waiting += running - places + 1.0
            # It takes the place of one that ended.
            running = places - 1.0
        i = self._running_at[int(running)]
        x = running - self._running[i]
        tokens, tokens_at, top = self._tokens, self._tokens_at, self._top
        n = int(context) // GRAIN
        j = tokens_at[n if n < top else top]
        y = context - tokens[j]
        a, b, c, d, e, f, g, h = self._decode[i][j]
        before = a + x * (b + y * d) + y * c
        longer = e + x * (f + y * h) + y * g
        extras = self._extra[i]
        n = int(prompt_tokens) // GRAIN
        j = tokens_at[n if n < top else top]
        y = prompt_tokens - tokens[j]
        a, b, c, d = extras[j]
        extra = a + x * (b + y * d) + y * c
        output = self.output_tokens
        tpot = step = before + longer
        others = context - 0.5 * output
        if running > 0.0 and others > 0.0:
            n = int(others) // GRAIN
            j = tokens_at[n if n < top else top]
            y = others - tokens[j]
            a, b, c, d = extras[j]
            tpot += running / output * (a + x * (b + y * d) + y * c)
        rate, slope = self._rate[i]
        steps = 1 + prompt_tokens // self._step_tokens
        ttft = self._front_s + (self._lag + steps) * before + ahead_tokens * (rate + x * slope) + extra
        if waiting > 0.0:
            ttft += waiting * output * tpot / places
        if full:
            return ttft, tpot, extra + output_tokens * step / places
        return ttft, tpot, extra + output_tokens * longer


class Observed:
    """A `Speed` without a step model: a hosted API, or a server on hardware nobody described.

    The same whatever the load, but for a line once `places` are taken (None: it scales by itself); the online
    correction moves it to what is seen.
    """

    __slots__ = ("_places", "_tpot_s", "_ttft_s", "output_tokens", "width")
    bound = OBSERVED_BOUND

    def __init__(
        self, ttft_s: float = UNKNOWN_TTFT_S, tpot_s: float = UNKNOWN_TPOT_S, places: int | None = None
    ) -> None:
        """Seconds to the first token, and of every further one."""
        self._ttft_s, self._tpot_s, self._places = ttft_s, tpot_s, places
        self.output_tokens = USUAL_OUTPUT
        self.width = 0.5

    @classmethod
    def of(cls, speed: ApiSpeed | None, places: int | None = None) -> Observed:
        """What somebody says of it; None: nothing is known."""
        if speed is None:
            return cls(places=places)
        return cls(speed.ttft_s, 1.0 / speed.tokens_per_s, places)

    def ttft_s(
        self, prompt_tokens: float, running: float, context: float, ahead_tokens: float, waiting: float
    ) -> float:
        """See `Speed.ttft_s`."""
        if self._places is None:
            return self._ttft_s
        line = waiting + max(0.0, running - self._places + 1.0)
        return self._ttft_s + line * self.output_tokens * self._tpot_s / self._places

    def tpot_s(self, running: float, context: float) -> float:
        """See `Speed.tpot_s`."""
        return self._tpot_s

    def added_s(self, prompt_tokens: float, output_tokens: float, running: float, context: float) -> float:
        """Its share of the time it is there: whoever else runs has the rest."""
        return (self._ttft_s + output_tokens * self._tpot_s) / (running + 1.0)
