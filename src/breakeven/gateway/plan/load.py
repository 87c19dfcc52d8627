"""From a gateway file to a `GatewayPlan`: paths, and what follows from the rest. `check.py` holds what must agree."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from breakeven.answer.study.load import check_format, check_kv, existing, location_of, machine_named, model_named
from breakeven.answer.study.yaml_file import record_of
from breakeven.errors import NotSupportedError, UserError, expanded
from breakeven.gateway.plan.check import check_plan
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan, LocalPlan, PolicyPlan
from breakeven.gateway.plan.reach import LOCAL_ENDPOINTS, USUAL_ENDPOINTS, Certificate
from breakeven.model.readers.typed import read_mapping
from breakeven.results.decision import Kind

PUBLIC_NAME = "breakeven"
"""The model that clients ask for where the file names none: every backend, by the default policy."""
DOCS = "docs/gateway-yaml.md lists the keys"
_MISSING = {
    "backends": "list who answers, each with a name and a url or a local model",
    "name": "give it a name, by which requests, logs and policies call it",
    "model": "say which model",
    "control": "say which backend most traffic goes to now",
    "treatment": "say which backend is tried",
    "kind": "say what it does: ab, shadow or canary",
    "certificate": "name the PEM file",
}
_SPEC_FILES = (".yaml", ".yml", ".json", ".gguf")


def read_gateway(path: Path, environ: Mapping[str, str] = os.environ) -> GatewayPlan:
    """The gateway in `path`, checked as a whole. Relative paths in it count from its directory.

    Variables that it names must be set in `environ`; their values are looked at and not kept. Raises UserError naming
    file, key, what was found and what would be right.
    """
    path = expanded(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no regular file; reading a pipe or a device could wait for ever")
    found = read_mapping(
        path,
        too_large="give a gateway file, not a log",
        give="give a gateway file such as examples/gateway.yaml",
        keys=f"keys such as `backends:`; {DOCS}",
    )
    return gateway_of(found, path.resolve(), str(path), environ)


def gateway_of(
    found: Mapping[Any, Any], path: Path, where: str, environ: Mapping[str, str] = os.environ
) -> GatewayPlan:
    """`found` in the file `path`, which is called `where` in errors."""
    plan = record_of(GatewayPlan, found, where, DOCS, _MISSING)
    directory = path.parent
    backends = tuple(
        _backend(f"{where}: backends.{i}", each, found["backends"][i], directory)
        for i, each in enumerate(plan.backends)
    )
    policies = tuple(_policy(each, backends) for each in plan.policies)
    whole = replace(
        plan,
        path=path,
        backends=backends,
        policies=policies or (PolicyPlan(model=PUBLIC_NAME, backends=tuple(each.name for each in backends)),),
        keys=_placed(directory, plan.keys),
        budgets=_placed(directory, plan.budgets),
        tls=_certificate(f"{where}: tls", plan.tls, directory),
        experiments=tuple(replace(each, sticky_by=each.sticky_by.lower()) for each in plan.experiments),
        log=replace(plan.log, directory=_placed(directory, plan.log.directory)),
    )
    return check_plan(whole, where, environ)


def _backend(place: str, plan: BackendPlan, typed: Mapping[str, Any], directory: Path) -> BackendPlan:
    """What was not said of a backend, from what was; of what is started here, also beside `local`."""
    local = None if plan.local is None else _local(f"{place}.local", plan.local, directory)
    model = local.model if local else plan.model and model_named(f"{place}.model", plan.model, directory)
    if plan.format is not None:
        check_format(f"{place}.format", plan.format, plan.model)
    if plan.kv is not None:
        check_kv(f"{place}.kv", plan.engine, plan.kv)
    location = location_of(
        f"{place}.location", typed.get("location"), plan.price, "on-premise" if local is None else "edge"
    )
    usual = LOCAL_ENDPOINTS if local else USUAL_ENDPOINTS
    return replace(
        plan,
        local=local,
        kind=typed.get("kind") or _kind(f"{place}.local.model" if local else f"{place}.model", model),
        place=location,
        model=model,
        machine=_machine(f"{place}.machine", plan, directory),
        engine=local.engine if local else plan.engine,
        format=local.format if local else plan.format,
        kv=local.kv if local else plan.kv,
        slots=local.slots if local else plan.slots,
        context=local.context if local else plan.context,
        endpoints=tuple(dict.fromkeys(typed.get("endpoints") or usual)),
        poll=not plan.is_api if typed.get("poll") is None else plan.poll,
        ca=_authorities(place, plan, directory),
        ca_file=None,
        client_certificate=_certificate(f"{place}.client_certificate", plan.client_certificate, directory),
        socket=_placed(directory, plan.socket),
    )


def _authorities(place: str, plan: BackendPlan, directory: Path) -> Path | None:
    """Whichever of its two names it was given by."""
    for key, path in (("ca", plan.ca), ("ca_file", plan.ca_file)):
        if path is not None:
            return existing(f"{place}.{key}", directory, str(path))
    return None


def _certificate(place: str, found: Certificate | None, directory: Path) -> Certificate | None:
    if found is None:
        return None
    return Certificate(
        certificate=existing(f"{place}.certificate", directory, str(found.certificate)),
        key=None if found.key is None else existing(f"{place}.key", directory, str(found.key)),
    )


def _local(place: str, plan: LocalPlan, directory: Path) -> LocalPlan:
    if plan.model.lower().startswith(("http://", "https://")):
        raise UserError(f"{place}.model: found {plan.model!r}, which runs already; give it as `url:` instead of local")
    if plan.format is not None:
        check_format(f"{place}.format", plan.format, plan.model)
    if plan.kv is not None:
        check_kv(f"{place}.kv", plan.engine, plan.kv)
    return replace(plan, model=model_named(f"{place}.model", plan.model, directory))


def _machine(place: str, plan: BackendPlan, directory: Path) -> str | None:
    """As written; for what is started here this machine, once it was calibrated for that engine."""
    if plan.machine is not None:
        return machine_named(place, plan.machine, directory)
    if plan.local is None or plan.speed is not None:
        return None
    from breakeven.forecast.profiles import THIS, profile_named

    try:
        profile_named(THIS, plan.local.engine, plan.devices, plan.local.format)
    except UserError:
        return None
    return THIS


def _kind(place: str, model: str | None) -> Kind:
    """From the model's own shape. A hub id is not asked for, since reading a file must not use the network."""
    from breakeven.model.resolve import resolve_spec, split_format

    name = None if model is None else split_format(model)[0]
    if model is None or name is None or (Path(name).suffix not in _SPEC_FILES and "/" in name):
        return "unknown"

    try:
        return "moe" if resolve_spec(model).is_moe else "dense"
    except NotSupportedError:
        return "unknown"  # an engine may run a family of which no shape is known here
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _policy(plan: PolicyPlan, backends: tuple[BackendPlan, ...]) -> PolicyPlan:
    names = plan.backends or tuple(each.name for each in backends)
    first = plan.first
    if first is None and plan.policy == "edge-first":
        # Where one backend alone is on the device, it is the edge.
        near = [each.name for each in backends if each.name in names and (each.local or each.place == "edge")]
        first = near[0] if len(near) == 1 else None
    return replace(plan, backends=names, first=first)


def _placed(directory: Path, path: Path | None) -> Path | None:
    # Links stay: a file of keys may be one that leads elsewhere tomorrow, as those in a Kubernetes volume do.
    return None if path is None else Path(os.path.normpath(directory / expanded(path)))
