"""Routing policies by name: one file each, pure functions. A page each in docs/policies."""

from __future__ import annotations

from breakeven.gateway.route.policies.breakeven import breakeven
from breakeven.gateway.route.policies.cheapest import cheapest
from breakeven.gateway.route.policies.edge_first import edge_first
from breakeven.gateway.route.policies.fastest import fastest
from breakeven.gateway.route.policies.rule import Rule
from breakeven.gateway.route.policies.spill import spill
from breakeven.gateway.route.policies.weighted import weighted

POLICIES: dict[str, Rule] = {
    "breakeven": breakeven,
    "fastest": fastest,
    "cheapest": cheapest,
    "spill": spill,
    "weighted": weighted,
    "edge-first": edge_first,
}
