"""The gateway of one command, `breakeven serve MODEL MODEL`: every model on this machine, behind one public name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from breakeven.engine.source import Source, parse_source
from breakeven.engine.start import engine_named
from breakeven.errors import UserError
from breakeven.gateway.plan.model import LOCAL_ENDPOINTS, BackendPlan, GatewayPlan, LocalPlan, PolicyPlan
from breakeven.gateway.swap.needs import check_local
from breakeven.predict.profiles import THIS, profile_named
from breakeven.spec.decision import Kind
from breakeven.spec.workload import Slo

PUBLIC_NAME = "breakeven"
READER_SLO = Slo(ttft_s=2.0, tpot_s=0.15)
"""What one reader is content with: a start without doubt, and tokens faster than reading. Judgement, not measured."""


def plan_of_models(
    models: Sequence[str],
    *,
    engine: str = "llama.cpp",
    format_name: str | None = None,
    context: int = 4096,
    slots: int = 4,
    slo: Slo = READER_SLO,
    memory_bytes: int | None = None,
) -> GatewayPlan:
    """A gateway of MODEL arguments as `breakeven compare` takes them; a URL is a backend that already runs.

    `context` is tokens a sequence, `slots` sequences at once, of each. Each model answers to its own name, and all
    together to "breakeven" by the policy of that name, dense ones first. Engines that do not fit together take turns.
    Raises UserError for a model that cannot be, or does not fit even alone.
    """
    if not models:
        raise UserError("name the models to serve, such as: breakeven serve llama-3.2-1b olmoe-1b-7b")
    chosen_format = format_name or engine_named(engine).default_format
    machine = _machine(engine, chosen_format)
    local = LocalPlan(model="", engine=engine, format=chosen_format, context=context, slots=slots)
    backends: list[BackendPlan] = []
    for text in models:
        source = parse_source(text)
        name = source.name
        if name == PUBLIC_NAME or any(backend.name == name for backend in backends):
            raise UserError(f"two things would be called {name}; write a gateway file to give them names of their own")
        backends.append(_url(name, source) if source.url else _local(name, source, local, machine))
    backends.sort(key=lambda backend: backend.kind != "dense")  # stable: otherwise as they were named
    policy = PolicyPlan(model=PUBLIC_NAME, backends=tuple(backend.name for backend in backends), slo=slo)
    plan = GatewayPlan(path=None, backends=tuple(backends), policies=(policy,), memory_bytes=memory_bytes)
    check_local(plan)
    return plan


def _local(name: str, source: Source, local: LocalPlan, machine: str | None) -> BackendPlan:
    context = min(local.context, source.spec.context) if source.spec else local.context
    return BackendPlan(
        name=name,
        local=replace(local, model=source.text, context=context),
        kind=_kind(source),
        place="edge",
        model=source.text if source.spec is not None else None,
        machine=machine if source.spec is not None else None,
        engine=local.engine,
        format=local.format if source.synthetic else None,
        slots=local.slots,
        context=context,
        endpoints=LOCAL_ENDPOINTS,
    )


def _url(name: str, source: Source) -> BackendPlan:
    address, _, served = (source.url or "").partition("#")
    if not served or not address.rstrip("/").endswith("/v1"):
        raise UserError(f"{source.text} does not name a model; give http(s)://host[:port]/v1#model-name")
    return BackendPlan(name=name, url=address.rstrip("/"), served_model=served)


def _kind(source: Source) -> Kind:
    if source.spec is None:
        return "unknown"
    return "moe" if source.is_moe else "dense"


def _machine(engine: str, format_name: str) -> str | None:
    """ "this" once the machine was calibrated for this engine; else speeds are learned from what is observed."""
    try:
        profile_named(THIS, engine, None, format_name)
    except UserError:
        return None
    return THIS
