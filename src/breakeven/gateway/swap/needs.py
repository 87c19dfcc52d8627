"""What the local engines of a plan need of this machine: memory, time to load, threads. Checked before any starts."""

from __future__ import annotations

from collections.abc import Sequence

from breakeven.engines.kinds import engine_named
from breakeven.engines.memory import RESERVE, need_of
from breakeven.engines.source import Source, parse_source
from breakeven.engines.start import format_of, kv_type
from breakeven.engines.vllm.directory import stored_format
from breakeven.errors import UserError
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan
from breakeven.gateway.swap.types import EngineNeed, check_budget
from breakeven.hardware.reader import available_threads, read_machine

START_S = 1.0
"""Guess of an engine's start without its weights, until it is measured."""
READ_BYTES_PER_S = 1e9
"""Guess of how fast weights are read and re-ordered, until it is measured."""


def local_backends(plan: GatewayPlan) -> list[BackendPlan]:
    """The backends whose engines the gateway starts itself."""
    return [backend for backend in plan.backends if backend.local is not None]


def needs_of(backends: Sequence[BackendPlan]) -> list[EngineNeed]:
    """What each local backend takes. Raises UserError for a model, engine or format that cannot be."""
    return [_need(backend) for backend in backends]


def budget_of(plan: GatewayPlan, held_bytes: int = 0) -> int:
    """Bytes that local engines may use together: as planned, else what this machine has free less a reserve.

    `held_bytes` are in their hands already, and so not free.
    """
    if plan.memory_bytes is not None:
        return plan.memory_bytes
    return int(RESERVE * (read_machine().available_memory_bytes + held_bytes))


def is_synthetic(backend: BackendPlan) -> bool:
    """Its weights are made up from a description, in whichever engine, so it answers at the right speed with noise."""
    plan = backend.local
    if plan is None:
        return False
    source = parse_source(plan.model)
    # A directory with weights is a description to llama.cpp, which reads none but a file's.
    held = engine_named(plan.engine).formats is not None and stored_format(source.text, source.spec) is not None
    return source.synthetic and not held


def check_local(plan: GatewayPlan) -> None:
    """Raise UserError unless every local engine can be started here, alone or beside what is pinned."""
    if backends := local_backends(plan):
        check_budget(needs_of(backends), budget_of(plan))


def threads_of(backends: Sequence[BackendPlan], needs: Sequence[EngineNeed], budget_bytes: int) -> dict[str, int]:
    """Engine threads by backend: as planned, else the CPUs shared among as many as fit into memory at once."""
    together, left = 0, budget_bytes
    for need in sorted(needs, key=lambda need: (not need.pinned, need.bytes)):
        left -= need.bytes
        together += left >= 0
    share = max(1, available_threads() // max(1, together))
    return {b.name: b.local.threads or share for b in backends if b.local is not None}


def _need(backend: BackendPlan) -> EngineNeed:
    plan = backend.local
    assert plan is not None
    source = _source(backend.name, plan.model)
    kv = kv_type([source], plan.engine, plan.kv)
    size = need_of(source, format_of(source, plan.format, engine_named(plan.engine)), plan.context, plan.slots, kv)
    return EngineNeed(backend.name, size, START_S + size / READ_BYTES_PER_S, plan.pinned)


def _source(name: str, model: str) -> Source:
    source = parse_source(model)
    if source.url is not None:
        raise UserError(f"backend {name}: local is a model to start, not a server; write url: {source.url}")
    return source
