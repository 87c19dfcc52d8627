"""Gateways that nobody wrote a file for: one made of a decision, one of a command line's models.

A decision as a running gateway: its candidates become backends, its verdict the policy.

What a decision does not know is where a server listens. Candidates on this machine are started here; for the others a
gateway file is written beside the decision, with the URLs left to be filled in.

The gateway of one command, `breakeven serve MODEL MODEL`: every model on this machine, behind one public name.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import msgspec

from breakeven.answer.study.load import model_named
from breakeven.answer.study.price import ApiSpeed
from breakeven.engines.kinds import engine_named
from breakeven.engines.openai_url import split_dialect
from breakeven.engines.source import Source, parse_source
from breakeven.engines.start import format_of
from breakeven.errors import UserError
from breakeven.forecast.profiles import THIS, profile_named
from breakeven.gateway.plan.load import PUBLIC_NAME, read_gateway
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan, LocalPlan, PolicyPlan
from breakeven.gateway.plan.reach import LOCAL_ENDPOINTS, USUAL_ENDPOINTS
from breakeven.gateway.plan.verdict import candidates_of, policies_of
from breakeven.gateway.plan.write import write_gateway
from breakeven.gateway.swap.needs import check_local
from breakeven.hardware.placement import AUTO, placement_of
from breakeven.model.catalogue import base_words
from breakeven.model.resolve import is_weight_file, split_format
from breakeven.results.cost import Api
from breakeven.results.decision import DECISION_SCHEMA, CandidateResult, Decision, Kind
from breakeven.results.store import RESULT
from breakeven.traffic.workload import Slo, Workload
from breakeven.wire.dialects import dialects

FILE = "gateway.yaml"
LEAST_CONTEXT, MOST_CONTEXT = 4096, 131_072
"""Of a model started here: room for the workload's longest requests, within reason."""
SLOTS = 4
"""Sequences that llama.cpp runs at once here, which is what its step model assumes."""


def plan_of_decision(path: Path, environ: Mapping[str, str] = os.environ) -> GatewayPlan:
    """The gateway of a saved decision: its `result.json`, or the directory that holds it.

    Where a file `gateway.yaml` stands beside it, that is the gateway. Otherwise one is written, and read where every
    backend can be started here. Raises UserError naming the file and the URLs to fill in where some run elsewhere.
    """
    result = path / RESULT if path.is_dir() else path
    file = result.with_name(FILE)
    if file.exists():
        return read_gateway(file, environ)
    decision = read_decision(result)
    chosen = candidates_of(decision)
    plan, notes = _plan(decision, chosen)
    write_gateway(plan, file, head=_head(decision), notes=_notes(plan, chosen) | notes)
    missing = [backend.name for backend in plan.backends if backend.url is None and backend.local is None]
    if missing:
        raise UserError(
            f"{file}: written from the decision; fill in the url of {', '.join(missing)} (where each "
            f"listens), then run: breakeven serve {file}"
        )
    return read_gateway(file, environ)


def read_decision(path: Path) -> Decision:
    """The decision in a `result.json`. Raises UserError for a file that is none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the result.json that breakeven decide wrote"
        ) from error
    try:
        decision = msgspec.json.decode(content, type=Decision)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: is no decision ({error}); give the result.json that breakeven decide wrote") from None
    if decision.schema != DECISION_SCHEMA:
        raise UserError(f"{path}: has schema {decision.schema!r}, this version reads {DECISION_SCHEMA!r}; decide again")
    return decision


def _plan(decision: Decision, chosen: Sequence[CandidateResult]) -> tuple[GatewayPlan, dict[str, str]]:
    """The gateway, and comments on its public models."""
    names = _names([each.name for each in chosen])
    backends = tuple(backend_of(name, each, decision) for name, each in zip(names, chosen, strict=True))
    by_candidate = dict(zip((each.name for each in chosen), names, strict=True))
    whole = _policy(decision, chosen, by_candidate)
    each_alone = {candidate: (name,) for candidate, name in by_candidate.items()}
    policies, notes = policies_of(decision, chosen, each_alone, whole)
    return GatewayPlan(path=None, backends=backends, policies=policies), notes


def _policy(decision: Decision, chosen: Sequence[CandidateResult], names: Mapping[str, str]) -> PolicyPlan:
    """`spill` where the cheapest changes once with the load, from the one below to the one above; else `breakeven`."""
    winners: list[str] = []
    for region in sorted(decision.regions, key=lambda each: each.low_per_s):
        name = names.get(region.winner or "")
        if name is not None and (not winners or winners[-1] != name):
            winners.append(name)
    # A hosted model has no knee to be filled up to, so only machines are filled first.
    flips = len(winners) == 2 and all(
        not isinstance(each.pricing, Api) for each in chosen if names[each.name] == winners[0]
    )
    slo = Slo(ttft_s=decision.slo.ttft_s, tpot_s=decision.slo.tpot_s)
    everybody = tuple(names[each.name] for each in chosen)
    if flips:
        order = (*winners, *(name for name in everybody if name not in winners))
        return PolicyPlan(model=PUBLIC_NAME, policy="spill", first=winners[0], backends=order, slo=slo)
    return PolicyPlan(model=PUBLIC_NAME, backends=everybody, slo=slo)


def backend_of(name: str, found: CandidateResult, decision: Decision, *, elsewhere: bool = False) -> BackendPlan:
    """A candidate as a backend, started here where its machine is this one, unless it is to stand `elsewhere`."""
    hosted = isinstance(found.pricing, Api)
    here = not (hosted or elsewhere) and found.location != "cloud" and _is_this(found.machine)
    slots, context = SLOTS, context_of(decision.workload)
    # A file has types of its own, and a name that says its format says it once.
    bare, behind = split_format(found.model)
    told = found.format not in ("as hosted", "as measured")
    named = None if hosted or behind or is_weight_file(bare) or not told else found.format
    kv = None if found.kv in (None, "f16") else found.kv
    local = None
    if here:
        local = LocalPlan(model=found.model, engine=found.engine, format=named, kv=kv, context=context, slots=slots)
    quality = found.quality.value if found.quality.how in ("own", "published") else None
    model = _known_model(found.model)
    machine = None if hosted or model is None else _slug_of(found, named)
    return BackendPlan(
        name=name,
        local=local,
        kind=found.kind,
        place=found.location,  # type: ignore[arg-type]  # the three words of a study
        model=model,
        machine=_machine(found.engine, found.format) if here else machine,
        engine=None if hosted else found.engine,
        format=named,
        kv=kv,
        devices=found.devices,
        slots=slots if here else None,
        context=context if here else None,
        speed=told_speed(found) if hosted else None,
        price=found.pricing,
        endpoints=LOCAL_ENDPOINTS if here else USUAL_ENDPOINTS,
        quality=quality,
        poll=not hosted,
    )


def told_speed(found: CandidateResult) -> ApiSpeed | None:
    """How fast it answers at the least load that was looked at; a hosted model, at every one."""
    if not found.latency:
        return None
    ttft, tpot = found.latency[0].ttft_p50_s, found.latency[0].tpot_p50_s
    if ttft is None or tpot is None:
        return None
    return ApiSpeed(ttft_s=ttft.value, tokens_per_s=1.0 / tpot.value, source="the study of this decision")


def _is_this(machine: str) -> bool:
    """Whether a candidate's machine is the one that this runs on: its profile was fitted here, or it was measured."""
    from breakeven.forecast.profiles import profiles_here
    from breakeven.hardware.machine import machine_text
    from breakeven.hardware.reader import read_machine

    here = read_machine()
    return machine == machine_text(here) or any(each.name == machine for each in profiles_here(here))


def _known_model(text: str) -> str | None:
    """A model that files can name; None for a name that a study gave to what it only measured or buys."""
    try:
        return model_named("", text, Path.cwd())
    except UserError:
        return None


def _slug_of(found: CandidateResult, format_name: str | None) -> str | None:
    """The machine, where it is one that files can name, with a step model of the engine there."""
    from breakeven.hardware.described import machine_named

    try:
        machine_named(found.machine)
        profile_named(found.machine, found.engine, found.devices, format_name)
    except UserError:
        return None
    return found.machine


def context_of(workload: Workload, most: int = MOST_CONTEXT) -> int:
    """Tokens a sequence: the longest prompt and answer that the workload draws, as a power of two up to `most`."""
    longest = 0.0
    for length in (workload.prompt, workload.output):
        if length is not None:
            longest += length.high if length.high is not None else length.mean + 4 * length.sd
    needed: int = 1 << math.ceil(math.log2(max(1.0, longest * workload.turns)))
    return min(most, max(LEAST_CONTEXT, needed))


def _names(shown: Sequence[str]) -> list[str]:
    """Names that headers and metric labels can carry, each once."""
    found: list[str] = []
    for text in shown:
        name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "backend"
        stem, number = name[:90], 2
        name = stem
        while name in found or name == PUBLIC_NAME:
            name, number = f"{stem}-{number}", number + 1
        found.append(name)
    return found


def _head(decision: Decision) -> str:
    return (
        f"A gateway for `breakeven serve`, from the decision {decision.name!r}.\n"
        f"{' '.join(decision.verdict.sentence.split())}\n"
        "docs/gateway-yaml.md explains every key; what is not here has its default."
    )


def _notes(plan: GatewayPlan, chosen: Sequence[CandidateResult]) -> dict[str, str]:
    notes = {}
    for backend, found in zip(plan.backends, chosen, strict=True):
        hosted = isinstance(found.pricing, Api)
        where = "is hosted" if hosted else f"was decided on {found.machine} with {found.engine}"
        text = f"{found.name}: {where}."
        if backend.url is None and backend.local is None:
            text += " Fill in where it listens, such as http://10.0.0.5:8000/v1."
            if hosted:
                text += "\nIts key goes into an environment variable: api_key_env: PROVIDER_API_KEY, and served_model"
                text += " is its\nprovider's name for the model."
        if not hosted and (said := base_words(split_format(found.model)[0])) is not None:
            text += f"\n{said}."
        notes[backend.name] = text
    return notes


READER_SLO = Slo(ttft_s=2.0, tpot_s=0.15)
"""What one reader is content with: a start without doubt, and tokens faster than reading. Judgement, not measured."""


def plan_of_models(
    models: Sequence[str],
    *,
    engine: str = "llama.cpp",
    placement: Mapping[str, str | int | None] | None = None,
    format_name: str | None = None,
    kv: str | None = None,
    context: int = 4096,
    slots: int = 4,
    slo: Slo = READER_SLO,
    memory_bytes: int | None = None,
) -> GatewayPlan:
    """A gateway of MODEL arguments as `breakeven compare` takes them; a URL is a backend that already runs.

    `engine` and `placement`, arguments of `placement_of`: what a model does not say behind its own `@`. `kv`: type of
    keys and values. `context` is tokens a sequence, `slots` sequences at once, of each. Each model
    answers to its own name, and all together to "breakeven" by the policy of that name, dense ones first. Engines that
    do not fit together take turns. Raises UserError for a model that cannot be, or does not fit even alone.
    """
    if not models:
        raise UserError("name the models to serve, such as: breakeven serve llama-3.2-1b olmoe-1b-7b")
    typed = placement_of(**(placement or {}))  # type: ignore[arg-type]
    machines: dict[str, str | None] = {}
    backends: list[BackendPlan] = []
    for text in models:
        source = parse_source(text)
        name = source.name
        if name == PUBLIC_NAME or any(backend.name == name for backend in backends):
            raise UserError(f"two things would be called {name}; write a gateway file to give them names of their own")
        if source.url:
            backends.append(_url(name, source))
            continue
        kind = engine_named(source.engine or engine)
        lies = placement_of(**{**(placement or {}), **source.words})  # type: ignore[arg-type]
        kind.check_placement(lies, ())
        asked = None if lies == AUTO else lies
        local = LocalPlan(
            model="",
            engine=kind.name,
            format=format_name,
            kv=kv,
            placement=asked,
            context=context,
            slots=slots,
        )
        if kind.name not in machines:
            machines[kind.name] = _machine(kind.name, format_name or kind.default_format)
        backends.append(_local(name, source, local, machines[kind.name]))
    if typed != AUTO and all(backend.local is None for backend in backends):
        raise UserError("a server that runs keeps its weights where they lie; leave placement out")
    backends.sort(key=lambda backend: backend.kind != "dense")  # stable: otherwise as they were named
    policy = PolicyPlan(model=PUBLIC_NAME, backends=tuple(backend.name for backend in backends), slo=slo)
    plan = GatewayPlan(path=None, backends=tuple(backends), policies=(policy,), memory_bytes=memory_bytes)
    check_local(plan)
    return plan


def _local(name: str, source: Source, local: LocalPlan, machine: str | None) -> BackendPlan:
    context = min(local.context, source.spec.context) if source.spec else local.context
    weights = format_of(source, local.format, engine_named(local.engine)) if source.synthetic else None
    behind = source.format_name is not None
    return BackendPlan(
        name=name,
        local=replace(local, model=source.text, context=context, format=None if behind else weights),
        kind=_kind(source),
        place="edge",
        model=source.text if source.spec is not None else None,
        machine=machine if source.spec is not None else None,
        engine=local.engine,
        format=None if behind else weights,
        kv=local.kv,
        slots=local.slots,
        context=context,
        endpoints=LOCAL_ENDPOINTS,
    )


def _url(name: str, source: Source) -> BackendPlan:
    address, _, fragment = (source.url or "").partition("#")
    base, _, query = address.partition("?")
    served, dialect = split_dialect(fragment)
    if not served:
        raise UserError(f"{source.text} does not name a model; give http(s)://host[:port]/v1#model-name")
    if dialect and dialect not in dialects():
        raise UserError(f"{source.text}: {dialect} is for measuring; a gateway's file says the same beside the url")
    asked = dict(parse_qsl(query, keep_blank_values=True))
    return BackendPlan(name=name, url=base.rstrip("/"), served_model=served, dialect=dialect or None, query=asked)


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
