"""What a simulation found: times of every request, and the steps that served them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from breakeven.forecast.simulator.engine import Replica
from breakeven.forecast.simulator.policy import Policy, Scaler
from breakeven.forecast.simulator.state import Jobs, Requests
from breakeven.traffic.workload import Slo

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Steps:
    """Runs of equal steps of all replicas, in order of start; M runs.

    `start_s_M`, `step_s_M` seconds, `steps_M` how many, `decoding_M` sequences, `prompt_tokens_M`, `waiting_M`
    requests, `kv_tokens_M` in use, `replica_M`.
    """

    start_s_M: Floats
    step_s_M: Floats
    steps_M: Ints
    decoding_M: Ints
    prompt_tokens_M: Ints
    waiting_M: Ints
    kv_tokens_M: Ints
    replica_M: Ints

    @property
    def total(self) -> int:
        """Steps, counted one by one."""
        return int(self.steps_M.sum())


@dataclass(frozen=True, slots=True)
class Simulation:
    """Columns by request, N of them; NaN where it never came to that.

    `arrival_s_N`, `first_s_N` (first token), `end_s_N`, `gap_s_N` (longest wait between two of its tokens) seconds;
    `output_tokens_N` answered; `cached_tokens_N` of prompt not read again; `preempted_N` times; `replica_N` (-1: none).
    `refused_N`: could not be served even alone. `issued_N`: arrived at all; a closed loop leaves rows over.
    """

    requests: Requests
    policy: Policy
    arrival_s_N: Floats
    first_s_N: Floats
    end_s_N: Floats
    gap_s_N: Floats
    output_tokens_N: Ints
    cached_tokens_N: Ints
    preempted_N: Ints
    replica_N: Ints
    refused_N: Bools
    issued_N: Bools
    steps: Steps
    busy_s: float
    """Time that replicas spent in steps, all of them together."""
    replica_seconds: float
    """Time that replicas were there, starting up included."""
    end_s: float

    def __len__(self) -> int:
        return len(self.arrival_s_N)

    @property
    def served(self) -> Bools:
        """True for requests that were answered to the end."""
        return np.isfinite(self.end_s_N)

    @property
    def ttft_s(self) -> Floats:
        """From arrival to first token."""
        return self.first_s_N - self.arrival_s_N

    @property
    def e2e_s(self) -> Floats:
        """From arrival to last token."""
        return self.end_s_N - self.arrival_s_N

    @property
    def tpot_s(self) -> Floats:
        """Mean time a token after the first; NaN for answers of one token."""
        after_first_N = np.where(self.output_tokens_N > 1, self.output_tokens_N - 1, np.nan)
        return (self.end_s_N - self.first_s_N) / after_first_N

    @property
    def preemptions(self) -> int:
        """How often a sequence had to give its keys and values back."""
        return int(self.preempted_N.sum())

    @property
    def utilisation(self) -> float:
        """Share of the replicas' time spent in steps."""
        return self.busy_s / self.replica_seconds if self.replica_seconds > 0 else 0.0

    @property
    def output_tokens_per_s(self) -> float:
        """Tokens answered over the time from first arrival to last token."""
        return self._per_s(float(self.output_tokens_N.sum()))

    @property
    def requests_per_s(self) -> float:
        """Requests answered over the same time."""
        return self._per_s(float(self.served.sum()))

    def percentiles(self, metric: str, p: ArrayLike, counted_N: Bools | None = None) -> Floats:
        """Percentiles of "ttft", "tpot", "e2e" or "gap", in seconds; refused requests count as infinitely late.

        Nearest rank, as the measured ones. `counted_N`: which requests count; None: all that were issued.
        """
        values_N = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s, "gap": self.gap_s_N}[metric]
        kept_N = self.issued_N if counted_N is None else counted_N & self.issued_N
        late_N = np.where(self.refused_N, np.inf, values_N)[kept_N]
        values = np.sort(late_N[~np.isnan(late_N)])
        if not len(values):
            return np.full(np.shape(p), np.nan)
        ranks = np.ceil(np.asarray(p, np.float64) / 100.0 * len(values)).astype(np.int64)
        return np.asarray(values[np.clip(ranks - 1, 0, len(values) - 1)], np.float64)

    def good(self, slo: Slo) -> Bools:
        """Requests that keep every term of `slo`; a term on gaps counts for answers of more than one token."""
        found_N = self.served.copy()
        several_N = self.output_tokens_N > 1
        for limit, values_N, applies_N in (
            (slo.ttft_s, self.ttft_s, True),
            (slo.tpot_s, self.tpot_s, several_N),
            (slo.itl_s, self.gap_s_N, several_N),
            (slo.e2e_s, self.e2e_s, True),
        ):
            if limit is not None:
                with np.errstate(invalid="ignore"):
                    found_N &= (values_N <= limit) | ~np.asarray(applies_N)
        return found_N

    def good_share(self, slo: Slo, counted_N: Bools | None = None) -> float:
        """Share of issued requests that keep `slo`; NaN without any."""
        kept_N = self.issued_N if counted_N is None else counted_N & self.issued_N
        return float(self.good(slo)[kept_N].mean()) if kept_N.any() else float("nan")

    def goodput_per_s(self, slo: Slo) -> float:
        """Good requests over the time from first arrival to last token."""
        return self._per_s(float(self.good(slo).sum()))

    def over_time(self, bins: int = 120) -> dict[str, Floats]:
        """Means over `bins` equal spans of time: "time_s" (middle), "decoding", "waiting", "kv_tokens", "busy" share.

        Sums over replicas; while a replica stands still it counts as empty.
        """
        edges = np.linspace(0.0, self.end_s, bins + 1) if self.end_s > 0 else np.linspace(0.0, 1.0, bins + 1)
        width = edges[1] - edges[0]
        steps = self.steps
        starts_M, ends_M = steps.start_s_M, steps.start_s_M + steps.step_s_M * steps.steps_M
        columns = {
            "decoding": steps.decoding_M.astype(np.float64),
            "waiting": steps.waiting_M.astype(np.float64),
            "kv_tokens": steps.kv_tokens_M.astype(np.float64),
            "busy": np.ones(len(starts_M)),
        }
        found = {"time_s": edges[:-1] + 0.5 * width}
        for name, value_M in columns.items():
            # The integral of a piecewise constant, from its jumps: sum of value * (t - start)+ - value * (t - end)+.
            rises = _ramps(edges, starts_M, value_M) - _ramps(edges, ends_M, value_M)
            found[name] = np.diff(rises) / width
        return found

    def _per_s(self, count: float) -> float:
        first_s = float(np.nanmin(self.arrival_s_N)) if self.issued_N.any() else 0.0
        last_s = float(np.nanmax(self.end_s_N)) if self.served.any() else first_s
        return count / (last_s - first_s) if last_s > first_s else 0.0


def simulation_of(
    requests: Requests,
    jobs: Jobs,
    arrival_s: Sequence[float],
    replicas: Sequence[Replica],
    policy: Policy,
    scaler: Scaler,
    end_s: float,
) -> Simulation:
    """The finished run as arrays."""
    arrival_s_N = np.asarray(arrival_s, np.float64)
    end_s_N = np.asarray(jobs.end_s, np.float64)
    segments = np.array(
        sorted((*segment, replica.number) for replica in replicas for segment in replica.segments), np.float64
    ).reshape(-1, 8)
    counts = [segments[:, k].astype(np.int64) for k in range(2, 8)]
    return Simulation(
        requests=requests,
        policy=policy,
        arrival_s_N=arrival_s_N,
        first_s_N=np.asarray(jobs.first_s, np.float64),
        end_s_N=end_s_N,
        gap_s_N=np.where(np.isfinite(end_s_N), np.asarray(jobs.gap_s, np.float64), np.nan),
        output_tokens_N=np.where(np.isfinite(end_s_N), requests.output_tokens_N, 0),
        cached_tokens_N=np.asarray(jobs.cached, np.int64),
        preempted_N=np.asarray(jobs.preempted, np.int64),
        replica_N=np.asarray(jobs.replica, np.int64),
        refused_N=np.asarray(jobs.refused, np.bool_),
        issued_N=np.isfinite(arrival_s_N),
        steps=Steps(segments[:, 0], segments[:, 1], *counts),
        busy_s=sum(replica.busy_s for replica in replicas),
        replica_seconds=scaler.replica_seconds(end_s),
        end_s=end_s,
    )


def _ramps(at: Floats, knees: Floats, slopes: Floats) -> Floats:
    """sum over k of slopes[k] * max(0, at - knees[k]), for every entry of `at`."""
    order = np.argsort(knees, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(slopes[order])])
    moments = np.concatenate([[0.0], np.cumsum((slopes * knees)[order])])
    k = np.searchsorted(knees[order], at, side="right")
    return np.asarray(at * sums[k] - moments[k])
