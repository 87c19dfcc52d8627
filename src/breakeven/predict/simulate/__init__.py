"""Continuous batching, simulated on top of the step model: every percentile of a load nobody has run."""

from breakeven.predict.simulate.fleet import BALANCING, Autoscale, Fleet
from breakeven.predict.simulate.policy import POLICIES, Policy, policy_named
from breakeven.predict.simulate.requests import NOBODY, Requests, requests_of
from breakeven.predict.simulate.results import Simulation, Steps
from breakeven.predict.simulate.run import policy_of, simulate
from breakeven.predict.simulate.stream import simulate_parts

__all__ = [
    "BALANCING",
    "NOBODY",
    "POLICIES",
    "Autoscale",
    "Fleet",
    "Policy",
    "Requests",
    "Simulation",
    "Steps",
    "policy_named",
    "policy_of",
    "requests_of",
    "simulate",
    "simulate_parts",
]
