"""Every metric that results speak of: one registry, which verdicts, checks and pages read.

How each is computed stands in docs/metrics.md, under the heading that `computed` names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What one metric is called and which way is good. `key` is its name in results; `scale` makes the unit shown.

    `title` stands in tables, `words` in sentences about it, `short` in sentences about who has more or less of it.
    """

    key: str
    title: str
    words: str
    short: str
    unit: str
    scale: float = 1.0
    more_is_better: bool = False
    computed: str = ""

    @property
    def direction(self) -> str:
        """Which way is good, in words."""
        return "more is better" if self.more_is_better else "less is better"

    @property
    def advantage(self) -> str:
        """What a winner has: "the lower TTFT"."""
        return f"the {'higher' if self.more_is_better else 'lower'} {self.short}"


def _delay(key: str, title: str, words: str, short: str | None = None, computed: str = "Delays") -> Metric:
    return Metric(key=key, title=title, words=words, short=short or title, unit="ms", scale=1e3, computed=computed)


def _rate(key: str, title: str, words: str, unit: str, computed: str = "Rates", short: str | None = None) -> Metric:
    return Metric(
        key=key, title=title, words=words, short=short or words, unit=unit, more_is_better=True, computed=computed
    )


_STREAMS, _SIMULATED = "Streams side by side", "Predicted and simulated"

METRICS = {
    metric.key: metric
    for metric in (
        _rate("decode_tokens_per_s", "Decode", "decode rate", "tok/s", _STREAMS),
        _rate("prefill_tokens_per_s", "Prefill", "prefill rate", "tok/s", _STREAMS),
        _delay("ttft_s", "TTFT", "time to first token"),
        _delay("tpot_s", "TPOT", "time per output token"),
        _delay("itl_s", "ITL", "gap between tokens"),
        _delay("e2e_s", "E2E", "time to the whole answer", "time to the whole answer"),
        _delay("service_ttft_s", "TTFT from sent", "time to first token from when it was sent"),
        _delay("service_e2e_s", "E2E from sent", "time to the whole answer from when it was sent"),
        _delay("gap_s", "Longest gap", "longest gap between tokens", computed=_SIMULATED),
        _delay("step_s", "Step", "time of a decode step", computed=_SIMULATED),
        _delay("prefill_s", "Prefill time", "time to read a prompt", computed=_SIMULATED),
        _rate("prefill_speed", "Prefill speed", "prompt tokens read a second", "tok/s", _SIMULATED),
        _rate("requests_per_s", "Answered", "requests answered per second", "req/s"),
        _rate("output_tokens_per_s", "Output", "output tokens per second", "tok/s"),
        _rate("input_tokens_per_s", "Input", "input tokens per second", "tok/s"),
        _rate("goodput_per_s", "Goodput", "goodput", "req/s"),
        _rate("good_share", "Good", "share of requests that meet the SLO", "%", _SIMULATED),
        Metric(key="error_share", title="Failed", words="share of failed requests", short="share of failed requests",
               unit="", computed="A run against a saved one"),
        _rate("capacity_per_s", "Capacity", "traffic within the service level", "req/s", "Two candidates"),
        Metric(key="joules_per_token", title="Energy", words="energy per token", short="energy per token",
               unit="J/tok", computed="Rates"),
    )
}  # fmt: skip
"""By key, in the order in which reports list them."""

COMPARED = ("decode_tokens_per_s", "prefill_tokens_per_s", "ttft_s", "itl_s")
"""`Pair.metric`: what is compared where streams run side by side."""
LATENCIES = ("ttft_s", "service_ttft_s", "tpot_s", "itl_s", "e2e_s", "service_e2e_s")
"""`Latency.metric`. Without `service_` counted from the due time, with it from when the request was sent."""
SIMULATED = ("ttft_s", "tpot_s", "e2e_s", "gap_s")
"""Delays of a request from its arrival: to its first token, a token after it, to its last one, longest wait between."""


def metric_of(key: str) -> Metric:
    """The metric called `key`; one this version does not know is shown under its own name, unscaled."""
    return METRICS.get(key) or Metric(key=key, title=key, words=key, short=key, unit="", more_is_better=True)
