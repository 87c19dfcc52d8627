"""What traffic is: arrivals, lengths, sessions and the service level asked for. `measure/schedule` draws it."""

from __future__ import annotations

import msgspec


class Slo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request must keep to be good, each from its due time, in seconds. None: not asked for.

    `itl_s` bounds the longest gap between two tokens of one request, `tpot_s` their mean, `e2e_s` the whole request.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None


class Length(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A distribution of token counts; `kind` is a name in `breakeven.measure.schedule.LENGTHS`.

    fixed: `mean`. uniform: `low` to `high`, both included. normal, lognormal: `mean` and `sd`, both of the tokens
    themselves, clipped to `low`..`high` where given.
    """

    kind: str = "fixed"
    mean: float = 0.0
    sd: float = 0.0
    low: int = 1
    high: int | None = None


class Arrivals(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When requests come; `process` is a name in `breakeven.measure.schedule.ARRIVALS`.

    closed: `concurrency` streams, each waiting `think_s` after an answer. constant, poisson: `rate_per_s`.
    gamma: `rate_per_s` with coefficient of variation `cv` of the gaps. steps: Poisson through `steps`, each
    (rate in requests/s, seconds). ramp: Poisson from `rate_per_s` to `to_rate_per_s` over the run.
    trace: the gaps of `trace`, at `rate_scale` times their speed, cut to the window `start_s`..`end_s` of the trace.
    """

    process: str
    rate_per_s: float | None = None
    to_rate_per_s: float | None = None
    cv: float = 1.0
    steps: tuple[tuple[float, float], ...] = ()
    concurrency: int | None = None
    think_s: float = 0.0
    trace: str | None = None
    """File name of the trace, without its directory."""
    rate_scale: float = 1.0
    start_s: float = 0.0
    end_s: float | None = None

    @property
    def is_closed(self) -> bool:
        """True when answers, not a clock, decide when the next request comes."""
        return self.process == "closed"


class Workload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Traffic as it is asked for. A schedule is this, drawn once.

    `prompt` and `output` are None where the trace gives lengths. The run ends after `duration_s` of arrivals or
    `requests` requests, whichever comes first; `warm_up_s` of the same traffic come before and never count.
    `turns` > 1: every arrival starts a conversation whose later turns follow `turn_think_s` after each answer and
    carry the whole history. `sharing`: prompts that the trace says share a prefix really do, and caches stay on;
    otherwise every prompt starts with a salt of its own. `languages`: of the built-in passages; empty means all.
    """

    arrivals: Arrivals
    prompt: Length | None = None
    output: Length | None = None
    duration_s: float | None = None
    requests: int | None = None
    warm_up_s: float = 0.0
    turns: int = 1
    turn_think_s: float = 0.0
    sharing: bool = False
    languages: tuple[str, ...] = ()
    chat: bool = False
    stream: bool = True
    seed: int = 0
