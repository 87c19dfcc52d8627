"""Traces: requests somebody recorded, in the formats they are published in. One file a format."""

from breakeven.measure.traces.read import TRACES, TraceFormat, read_trace
from breakeven.measure.traces.rows import TraceRows

__all__ = ["TRACES", "TraceFormat", "TraceRows", "read_trace"]
