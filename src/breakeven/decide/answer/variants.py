"""The study's workload with another context length, for flips and maps along it."""

from __future__ import annotations

import msgspec
import numpy as np

from breakeven.measure.traces import TraceRows
from breakeven.spec.workload import Arrivals, Length, Workload

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Prompt lengths looked at, over the study's own."""


def lengths_of(workload: Workload, trace: TraceRows | None) -> tuple[Length, Length]:
    """Prompt and output lengths as distributions; a trace's as lognormals of its mean and spread."""
    found = []
    for given, column in ((workload.prompt, "prompt"), (workload.output, "output")):
        if given is not None:
            found.append(given)
            continue
        if trace is None:
            raise ValueError(f"a workload without {column} lengths needs a trace")
        values = np.asarray(trace.prompt if column == "prompt" else trace.output, dtype=np.float64)
        found.append(Length(kind="lognormal", mean=float(values.mean()), sd=float(values.std()), low=1))
    return found[0], found[1]


def with_prompt(workload: Workload, trace: TraceRows | None, factor: float, load_per_s: float) -> Workload:
    """The workload with prompts `factor` times as long. A trace gives way to its lengths, arriving as Poisson does."""
    prompt, output = lengths_of(workload, trace)
    longer = msgspec.structs.replace(
        prompt,
        mean=prompt.mean * factor,
        sd=prompt.sd * factor,
        low=max(1, round(prompt.low * factor)),
        high=None if prompt.high is None else round(prompt.high * factor),
    )
    arrivals = workload.arrivals
    if arrivals.process == "trace":
        arrivals = Arrivals(process="poisson", rate_per_s=load_per_s)
    return msgspec.structs.replace(workload, arrivals=arrivals, prompt=longer, output=output)
