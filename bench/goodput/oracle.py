"""An oracle: it knows every length and the true state of every engine, and plays each choice to its end.

For each backend the engine is copied, the request added, and the copy run until it is empty. The request goes where
most promises are kept, everybody's who is there counted; who comes next it does not know. Among equals: the rule
`cheapest` takes the least machine time or money, `roomiest` the place where the request has most room.
"""

from __future__ import annotations

from math import inf

from bench.goodput.cases import Case
from bench.goodput.routing import Known
from breakeven.forecast.simulator.state import Requests
from breakeven.traffic.workload import Slo

ORACLES = ("oracle, cheapest", "oracle, roomiest")


class Oracle:
    """Keeps what each engine's last play said, which stays true until somebody joins it."""

    def __init__(self, case: Case, rule: str, asked: Requests) -> None:
        """`rule`: one of `ORACLES`."""
        self._slo, self._roomiest = case.slo, rule == "oracle, roomiest"
        self._arrival_s: list[float] = asked.arrival_s_N.tolist()
        self._prompt: list[int] = asked.prompt_tokens_N.tolist()
        self._output: list[int] = asked.output_tokens_N.tolist()
        self._good: dict[int, bool] = {}
        self._last_s = [0.0, 0.0]

    def choose(self, i: int, now_s: float, places: list[Known]) -> int:
        """Where request `i` goes."""
        best: tuple[float, float, float] = (-inf, -inf, -inf)
        chosen, kept, last = 0, dict[int, bool](), 0.0
        for k, place in enumerate(places):
            held = place.held
            first_s, end_s = place.server.fork(held, i, now_s)
            headroom = [
                room(self._slo, first - self._arrival_s[j], end - first, self._output[j])
                for j, first, end in zip([*held, i], first_s, end_s, strict=True)
            ]
            now_good = {j: found >= 1.0 for j, found in zip([*held, i], headroom, strict=True)}
            gain = float(sum(now_good.values()) - sum(self._good[j] for j in held))
            longest = max(end_s)
            view = place.view
            busy_s = longest - max(self._last_s[k], now_s)
            usd = view.usd_per_s * busy_s + self._asked_usd(place, i)
            rank = (gain, min(headroom[-1], 10.0) if self._roomiest else -usd, headroom[-1])
            if rank > best:
                best, chosen, kept, last = rank, k, now_good, longest
        self._good.update(kept)
        self._last_s[chosen] = last
        return chosen

    def _asked_usd(self, place: Known, i: int) -> float:
        view = place.view
        return self._prompt[i] * view.usd_per_input + self._output[i] * view.usd_per_output


def room(slo: Slo, ttft_s: float, decode_s: float, tokens: int) -> float:
    """Smallest of asked / got; below 1 a promise is broken."""
    found = inf
    if slo.ttft_s is not None:
        found = slo.ttft_s / max(ttft_s, 1e-9)
    if slo.tpot_s is not None and tokens > 1:
        found = min(found, slo.tpot_s * (tokens - 1) / max(decode_s, 1e-9))
    return found
