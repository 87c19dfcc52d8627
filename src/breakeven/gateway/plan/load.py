"""From a gateway file to a `GatewayPlan`: defaults, paths, names looked up. `check.py` holds what must agree."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from breakeven.answer.study.load import check_format, existing, machine_named, model_named, pricing_of
from breakeven.answer.study.plan import ApiSpeed, Location
from breakeven.answer.study.yaml_file import complaint, read_mapping
from breakeven.errors import NotSupportedError, UserError
from breakeven.gateway.plan.check import check_plan
from breakeven.gateway.plan.form import DOCS, MISSING, BackendForm, ExperimentForm, GatewayForm, LocalForm, PolicyForm
from breakeven.gateway.plan.model import (
    LOCAL_ENDPOINTS,
    USUAL_ENDPOINTS,
    BackendPlan,
    ExperimentPlan,
    GatewayPlan,
    HedgePlan,
    Limits,
    LocalPlan,
    LogPlan,
    PolicyPlan,
    Redis,
    Timeouts,
)
from breakeven.results.cost import Api, Rented
from breakeven.results.decision import Kind
from breakeven.traffic.workload import Slo

PUBLIC_NAME = "breakeven"
"""The model that clients ask for where the file names none: every backend, by the default policy."""


_SPEC_FILES = (".yaml", ".yml", ".json", ".gguf")


def read_gateway(path: Path, environ: Mapping[str, str] = os.environ) -> GatewayPlan:
    """The gateway in `path`, checked as a whole. Relative paths in it count from its directory.

    Variables that it names must be set in `environ`; their values are looked at and not kept. Raises UserError naming
    file, key, what was found and what would be right.
    """
    path = path.expanduser()
    found = read_mapping(
        path,
        too_large="give a gateway file, not a log",
        give="give a gateway file such as examples/gateway.yaml",
        keys=f"keys such as `backends:`; {DOCS}",
    )
    return plan_of_form(gateway_form(str(path), found), path.resolve(), str(path), environ)


def gateway_form(where: str, found: dict[Any, Any]) -> GatewayForm:
    """`found` as a form; raises UserError that begins with `where`."""
    try:
        return GatewayForm.model_validate(found)
    except ValidationError as error:
        # Without a cause: its text would hold what was typed, which may be a secret.
        raise UserError(f"{where}: {complaint(error, GatewayForm, DOCS, MISSING)}") from None


def plan_of_form(form: GatewayForm, path: Path, where: str, environ: Mapping[str, str] = os.environ) -> GatewayPlan:
    """`form`, read from `path` and called `where` in errors, as a plan."""
    directory = path.parent
    backends = tuple(_backend(f"{where}: backends.{i}", each, directory) for i, each in enumerate(form.backends))
    policies = tuple(_policy(each, backends) for each in form.policies)
    plan = GatewayPlan(
        path=path,
        backends=backends,
        policies=policies or (PolicyPlan(model=PUBLIC_NAME, backends=tuple(each.name for each in backends)),),
        host=form.host,
        port=form.port,
        workers=form.workers,
        admin_host=form.admin.host,
        admin_port=form.admin.port,
        admin_secret_env=form.admin.secret_env,
        keys=None if form.keys is None else _placed(directory, form.keys),
        experiments=tuple(_experiment(each) for each in form.experiments),
        limits=Limits(
            body_bytes=form.limits.body,
            header_bytes=form.limits.headers,
            json_depth=form.limits.json_depth,
            connections=form.limits.connections,
            streams_per_key=form.limits.streams_per_key,
            read_s=form.limits.read,
            idle_s=form.limits.idle,
            write_s=form.limits.write,
            response_bytes=form.limits.response,
            drain_s=form.limits.drain,
        ),
        log=LogPlan(
            directory=None if form.log.directory is None else _placed(directory, form.log.directory),
            rotate_bytes=form.log.rotate,
            keep=form.log.keep,
            prompts=form.log.prompts,
        ),
        redis=None
        if form.redis is None
        else Redis(url_env=form.redis.url_env, prefix=form.redis.prefix, timeout_s=form.redis.timeout),
        otel=form.otel,
        memory_bytes=form.memory,
        minimum_dwell_s=form.minimum_dwell,
        maximum_wait_s=form.maximum_wait,
    )
    return check_plan(plan, where, environ)


def _backend(place: str, form: BackendForm, directory: Path) -> BackendPlan:
    local = None if form.local is None else _local(f"{place}.local", form.local, directory)
    model = local.model if local else form.model and model_named(f"{place}.model", form.model, directory)
    if form.format is not None:
        check_format(f"{place}.format", form.format)
    price = None if form.price is None else pricing_of(form.price)
    hosted = isinstance(price, Api)
    usual: Location = "edge" if local else "cloud" if isinstance(price, Api | Rented) else "on-premise"
    location: Location = form.location or usual
    if hosted and location != "cloud":
        raise UserError(f"{place}.location: found {location!r}, it must be cloud: a hosted model runs elsewhere")
    return BackendPlan(
        name=form.name,
        url=form.url,
        local=local,
        served_model=form.served_model,
        api_key_env=form.api_key_env,
        key_header=form.key_header,
        kind=form.kind or _kind(f"{place}.local.model" if local else f"{place}.model", model),
        place=location,
        model=model,
        machine=_machine(f"{place}.machine", form, directory),
        engine=local.engine if local else form.engine,
        format=local.format if local else form.format,
        devices=form.devices,
        slots=local.slots if local else form.slots,
        speed=None
        if form.speed is None
        else ApiSpeed(ttft_s=form.speed.ttft, tokens_per_s=form.speed.tokens_per_s, source=form.speed.source),
        price=price,
        quality=form.quality,
        limit=form.limit,
        context=local.context if local else form.context,
        endpoints=tuple(dict.fromkeys(form.endpoints or (LOCAL_ENDPOINTS if local else USUAL_ENDPOINTS))),
        replica_of=form.replica_of,
        poll=not hosted if form.poll is None else form.poll,
        allow_link_local=form.allow_link_local,
        ca_file=None if form.ca_file is None else existing(f"{place}.ca_file", directory, form.ca_file),
        timeouts=Timeouts(
            connect_s=form.timeouts.connect,
            first_byte_s=form.timeouts.first_byte,
            idle_s=form.timeouts.idle,
            total_s=form.timeouts.total,
        ),
    )


def _local(place: str, form: LocalForm, directory: Path) -> LocalPlan:
    if form.model.startswith(("http://", "https://")):
        raise UserError(f"{place}.model: found {form.model!r}, which runs already; give it as `url:` instead of local")
    if form.format is not None:
        check_format(f"{place}.format", form.format)
    return LocalPlan(
        model=model_named(f"{place}.model", form.model, directory),
        engine=form.engine,
        format=form.format,
        context=form.context,
        slots=form.slots,
        threads=form.threads,
        pinned=form.pinned,
    )


def _machine(place: str, form: BackendForm, directory: Path) -> str | None:
    """As written; for what is started here this machine, once it was calibrated for that engine."""
    if form.machine is not None:
        return machine_named(place, form.machine, directory)
    if form.local is None or form.speed is not None:
        return None
    from breakeven.forecast.profiles import THIS, profile_named

    try:
        profile_named(THIS, form.local.engine, form.devices, form.local.format)
    except UserError:
        return None
    return THIS


def _kind(place: str, model: str | None) -> Kind:
    """From the model's own shape. A hub id is not asked for, since reading a file must not use the network."""
    if model is None or (Path(model).suffix not in _SPEC_FILES and "/" in model):
        return "unknown"
    from breakeven.model.resolve import resolve_spec

    try:
        return "moe" if resolve_spec(model).is_moe else "dense"
    except NotSupportedError:
        return "unknown"  # an engine may run a family of which no shape is known here
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _policy(form: PolicyForm, backends: tuple[BackendPlan, ...]) -> PolicyPlan:
    names = tuple(each.name for each in backends) if form.backends is None else tuple(form.backends)
    near = [each.name for each in backends if each.name in names and (each.local is not None or each.place == "edge")]
    return PolicyPlan(
        model=form.model,
        backends=names,
        policy=form.policy,
        slo=Slo(ttft_s=form.slo.ttft, tpot_s=form.slo.tpot),
        max_usd=form.max_usd,
        quality_floor=form.quality_floor,
        weights=form.weights,
        # Where one backend alone is on the device, it is the edge.
        first=near[0] if form.first is None and form.policy == "edge-first" and len(near) == 1 else form.first,
        longest_tokens=form.longest_tokens,
        explore=form.explore,
        shed=form.shed,
        queue_s=form.queue,
        queue_size=form.queue_size,
        attempts=form.attempts,
        hedge=None if form.hedge is None else HedgePlan(share=form.hedge.share, backends=tuple(form.hedge.backends)),
    )


def _experiment(form: ExperimentForm) -> ExperimentPlan:
    return ExperimentPlan(
        name=form.name,
        kind=form.kind,
        model=form.model,
        control=form.control,
        treatment=form.treatment,
        share=form.share,
        sticky_by=form.sticky_by.lower(),
        metric=form.metric,
        confidence=form.confidence,
        least=form.least,
        most=form.most,
        steps=tuple(form.steps),
        hold=form.hold,
        tolerance=form.tolerance,
        repeats=form.repeats,
    )


def _placed(directory: Path, text: str) -> Path:
    return (directory / Path(text).expanduser()).resolve()
