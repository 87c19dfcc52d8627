"""What must agree inside a plan, wherever it came from: a file, a decision, a command line, a reload.

A gateway never starts half configured: the first thing that is wrong is told, with its key and what would be right.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from breakeven.errors import UserError
from breakeven.gateway.plan.experts import (
    LOOKED_INTO,
    RETURN_FLAG,
    RETURNING,
    SILENT,
    ExpertsPlan,
    known_spec,
    routing_layers,
)
from breakeven.gateway.plan.limits import ANY_PAGE
from breakeven.gateway.plan.model import BackendPlan, ExperimentPlan, GatewayPlan, PolicyPlan
from breakeven.gateway.plan.reach import USUAL_ENDPOINTS, value_of
from breakeven.wire.dialects import at_odds

POLICY_NAMES = ("breakeven", "fastest", "cheapest", "spill", "weighted", "edge-first")
"""Routing policies that a plan may name; `gateway.route.policies.POLICIES` holds them."""
METADATA_HOSTS = ("169.254.169.254", "fd00:ec2::254", "100.100.100.200")
"""Addresses at which clouds hand out the credentials of a machine."""


class _AllSet(Mapping[str, str]):
    def __getitem__(self, name: str) -> str:
        return "set"

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


ALL_SET = _AllSet()
"""An environment for whoever only looks at a plan: no variable that it names is missed."""


def check_plan(plan: GatewayPlan, where: str, environ: Mapping[str, str] = os.environ) -> GatewayPlan:
    """`plan` itself. Raises UserError that begins with `where` and the key for whatever does not agree."""
    if not plan.backends:
        raise UserError(f"{where}: backends: found none; list at least one")
    _unique(where, "backends", "name", [each.name for each in plan.backends])
    _unique(where, "policies", "model", [each.model for each in plan.policies])
    _unique(where, "experiments", "name", [each.name for each in plan.experiments])
    for i, backend in enumerate(plan.backends):
        _check_backend(f"{where}: backends.{i}", backend, environ)
    backends = {each.name: each for each in plan.backends}
    for i, policy in enumerate(plan.policies):
        _check_policy(f"{where}: policies.{i}", policy, backends)
    for i, experiment in enumerate(plan.experiments):
        _check_experiment(f"{where}: experiments.{i}", experiment, plan)
    _check_exposure(where, plan, environ)
    if plan.log.directory is None and (plan.experiments or plan.otel):
        key = "experiments" if plan.experiments else "otel"
        raise UserError(
            f"{where}: {key}: found without a decision log, from which it works; add log: {{directory: logs}}"
        )
    if plan.redis is not None:
        _variable(f"{where}: redis.url_env", plan.redis.url_env, environ, "the address of Redis")
    return plan


def with_options(
    plan: GatewayPlan, *, host: str | None, port: int | None, workers: int | None, admin_port: int | None
) -> GatewayPlan:
    """`plan` with what a command line says instead; None: as the plan has it. Not checked yet."""
    said = {"host": host, "port": port, "workers": workers}
    given: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    if admin_port is not None:
        given["admin"] = replace(plan.admin, port=admin_port)
    return replace(plan, **given)


def check_reload(old: GatewayPlan, new: GatewayPlan, where: str) -> GatewayPlan:
    """`new`, where it may take the place of `old` without a restart. Raises UserError otherwise.

    Sockets and processes stay, so their settings must; and authentication never gets weaker while clients talk.
    """
    if old.keys is not None and new.keys is None:
        raise UserError(f"{where}: keys: missing, but keys are asked for now; restart to run without them")
    if old.tls is not None and new.tls is None:
        raise UserError(f"{where}: tls: missing, but clients speak it now; restart to run without it")
    fixed = (
        ("host", old.host, new.host),
        ("port", old.port, new.port),
        ("workers", old.workers, new.workers),
        ("admin.host", old.admin_host, new.admin_host),
        ("admin.port", old.admin_port, new.admin_port),
        ("admin.secret_env", old.admin_secret_env, new.admin_secret_env),
    )
    for key, was, found in fixed:
        if was != found:
            raise UserError(f"{where}: {key}: found {found!r}, it is {was!r} now and changes only with a restart")
    return new


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener at `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_backend(place: str, plan: BackendPlan, environ: Mapping[str, str]) -> None:
    if (plan.url is None) == (plan.local is None):
        raise UserError(f"{place}.url: missing; give a server's base URL, or a model to start here as `local:`")
    if plan.api_key_env is not None:
        _variable(f"{place}.api_key_env", plan.api_key_env, environ, f"the key of {plan.name}")
    if plan.url is not None and not plan.allow_link_local and plan.socket is None and _is_link_local(plan.url):
        raise UserError(
            f"{place}.url: found {plan.url!r}, an address that machines keep for themselves; set allow_link_local: "
            "true if it is meant"
        )
    if (wrong := at_odds(plan.spoken)) is not None:
        raise UserError(f"{place}.{wrong[0]}: {wrong[1]}")
    if plan.body and not set(plan.endpoints) & set(USUAL_ENDPOINTS):
        raise UserError(
            f"{place}.body: is for {' and '.join(USUAL_ENDPOINTS)}, and its endpoints have neither, so nothing would "
            "come of it; leave it out"
        )
    _check_way(place, plan)
    if plan.experts is not None:
        _check_experts(place, plan, plan.experts)
    if plan.machine == "this":
        from breakeven.forecast.profiles import profile_named

        try:
            profile_named(plan.machine, plan.engine, plan.devices, plan.format)
        except UserError as error:
            raise UserError(
                f"{place}.machine: {error}; or leave machine out, and speed is learned as it runs"
            ) from None


def _check_way(place: str, plan: BackendPlan) -> None:
    """Keys, certificates and proxies fit how it is reached."""
    parts = urlsplit(plan.url or "")
    secure = parts.scheme == "https"
    for key in ("ca", "client_certificate", "proxy"):
        if getattr(plan, key) is not None and not secure:
            raise UserError(f"{place}.{key}: only for a url that begins with https://; leave it out, or change the url")
    host = parts.hostname or ""
    here = plan.socket is not None or is_loopback(host)
    if plan.api_key_env is not None and not secure and not plan.key_over_http and not here:
        raise UserError(
            f"{place}.url: found {plan.url!r}, so the key in {plan.api_key_env} would cross the network in clear; use "
            "https, or set key_over_http: true if that is meant"
        )
    if plan.proxy is not None and plan.socket is not None:
        raise UserError(f"{place}.socket: found beside proxy, which leads to another place; keep one of them")
    if plan.proxy is not None and not plan.allow_link_local and _is_link_local(plan.proxy):
        raise UserError(
            f"{place}.proxy: found {plan.proxy!r}, an address that machines keep for themselves; set allow_link_local: "
            "true if it is meant"
        )


def _check_experts(place: str, plan: BackendPlan, experts: ExpertsPlan) -> None:
    """What is to be seen of its experts can be seen there."""
    engine = (plan.local.engine if plan.local is not None else plan.engine or plan.dialect) or ""
    place = f"{place}.experts"
    if plan.is_api:
        raise UserError(f"{place}: found beside an API's price, and hosts tell nothing of their experts; leave it out")
    if plan.kind == "dense":
        named = f" ({plan.model})" if plan.model else ""
        raise UserError(f"{place}: found beside a dense model{named}, which routes nothing; leave it out")
    if any(each.zero_experts for each in routing_layers(known_spec(plan.model))):
        raise UserError(
            f"{place}: found beside {plan.model}, whose router may choose nothing in place of an expert (LongCat), "
            "which engines do not tell from experts; leave it out"
        )
    if engine in SILENT:
        raise UserError(
            f"{place}: found beside {engine}, which tells nothing of its experts; leave it out, or serve the model by "
            "llama.cpp, vllm or sglang"
        )
    if experts.observe is None:
        if engine in LOOKED_INTO:
            raise UserError(f"{place}.observe: missing; {engine} counts nothing by expert, so say observe: 1%")
        if not plan.poll:
            raise UserError(f"{place}.observe: missing beside poll: false, so nothing would be seen; say observe: 1%")
        return
    if engine not in LOOKED_INTO | RETURNING:
        raise UserError(
            f"{place}.observe: found beside no engine whose requests can be looked at; say engine: vllm or sglang, or "
            "start a llama.cpp here by local:"
        )
    if engine in LOOKED_INTO and plan.local is None:
        raise UserError(
            f"{place}.observe: found beside a {engine} at a url, whose weights are not known here; start it here by "
            "local:, or leave observe out"
        )
    if plan.local is not None and engine in RETURNING and RETURN_FLAG not in plan.local.arguments:
        raise UserError(
            f"{place}.observe: found, but {engine} returns no experts unless it is told to; add "
            f"arguments: [{RETURN_FLAG}] to local"
        )
    if not set(USUAL_ENDPOINTS) & set(plan.endpoints):
        raise UserError(f"{place}.observe: found, but only {' and '.join(USUAL_ENDPOINTS)} can be looked at")


def _check_policy(place: str, plan: PolicyPlan, backends: Mapping[str, BackendPlan]) -> None:
    if plan.model in backends and plan.backends != (plan.model,):
        raise UserError(
            f"{place}.model: found {plan.model!r}, which is a backend's name and reaches it alone; choose another"
        )
    if plan.policy not in POLICY_NAMES:
        raise UserError(f"{place}.policy: found {plan.policy!r}, it must be one of {', '.join(POLICY_NAMES)}")
    _unique(place, "", "backends", list(plan.backends))
    _known(f"{place}.backends", plan.backends, backends)
    _known(f"{place}.weights", plan.weights, plan.backends)
    if plan.weights and not sum(plan.weights.values()) > 0:
        raise UserError(
            f"{place}.weights: found only zeros; give each backend its share, such as {plan.backends[0]}: 1"
        )
    members = [backends[name] for name in plan.backends]
    if plan.first is not None:
        _known(f"{place}.first", [plan.first], dict.fromkeys([*plan.backends, *filter(None, map(_group, members))]))
    elif plan.policy == "edge-first" and not any(each.place == "edge" for each in members):
        raise UserError(
            f"{place}.first: missing; name the backend on this device, or give it location: edge "
            f"({', '.join(plan.backends)})"
        )
    if plan.hedge is not None:
        _known(f"{place}.hedge.backends", plan.hedge.backends, plan.backends)
    floor = plan.quality_floor
    if floor is not None and not any((backends[name].quality or 0.0) >= floor for name in plan.backends):
        raise UserError(
            f"{place}.quality_floor: found {floor:g}, which no backend's quality reaches; give backends a quality, or "
            "lower it"
        )


def _check_experiment(place: str, plan: ExperimentPlan, gateway: GatewayPlan) -> None:
    policy = next((each for each in gateway.policies if each.model == plan.model), None)
    if policy is None:
        _known(f"{place}.model", [plan.model], [each.model for each in gateway.policies])
        return
    _known(f"{place}.control", [plan.control], policy.backends)
    # A shadow's answers reach nobody, so any backend will do.
    allowed = [each.name for each in gateway.backends] if plan.kind == "shadow" else policy.backends
    _known(f"{place}.treatment", [plan.treatment], allowed)
    if plan.control == plan.treatment:
        raise UserError(f"{place}.treatment: found {plan.treatment!r}, which is the control; name another backend")
    if list(plan.steps) != sorted(set(plan.steps)) or (plan.steps and plan.steps[0] <= 0):
        raise UserError(f"{place}.steps: found {list(plan.steps)}, they must rise from above 0, such as 1%, 5%, 25%")
    if plan.least > plan.most:
        raise UserError(f"{place}.least: found {plan.least}, it must be at most {plan.most}, which is `most`")


def _check_exposure(where: str, plan: GatewayPlan, environ: Mapping[str, str]) -> None:
    if plan.keys is None and not is_loopback(plan.host):
        raise UserError(
            f"{where}: host: found {plan.host!r}, which others can reach, and no keys; add `keys: keys.json` (made by "
            "breakeven keys create), or use 127.0.0.1"
        )
    if plan.keys is not None and not plan.keys.is_file():
        raise UserError(
            f"{where}: keys: found {str(plan.keys)!r}, which does not exist; breakeven keys create makes it"
        )
    if plan.keys is None and ANY_PAGE in plan.cors:
        raise UserError(
            f"{where}: cors: found {ANY_PAGE!r} and no keys, so that every page of the web could ask here; name the "
            "pages' origins, or add `keys: keys.json` (made by breakeven keys create)"
        )
    if plan.admin_port is None:
        return
    if not is_loopback(plan.admin_host) and not value_of(plan.admin_secret_env, environ):
        raise UserError(
            f"{where}: admin.host: found {plan.admin_host!r}, which others can reach, and no secret; set the "
            f"environment variable {plan.admin_secret_env}, or use 127.0.0.1"
        )
    if plan.admin_port == plan.port != 0 and plan.admin_host == plan.host:
        raise UserError(f"{where}: admin.port: found {plan.admin_port}, which clients use; choose another")


def _group(plan: BackendPlan) -> str | None:
    return plan.replica_of


def _is_link_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any(each.is_link_local or str(each) in METADATA_HOSTS for each in (address, mapped) if each is not None)


def _variable(place: str, name: str, environ: Mapping[str, str], what: str) -> None:
    value = value_of(name, environ)
    if not value:
        raise UserError(f"{place}: the environment variable {name} is not set; it must hold {what}")
    if not value.isprintable() or not value.isascii():
        raise UserError(f"{place}: the environment variable {name} holds line breaks or letters no header can carry")


def _unique(where: str, table: str, key: str, names: list[str]) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            place = f"{where}: {table}.{i}.{key}" if table else f"{where}.{key}.{i}"
            raise UserError(f"{place}: found {name!r} a second time; each stands once")


def _known(place: str, found: Iterable[str], names: Iterable[str]) -> None:
    there = list(names)
    for name in found:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {near[0]}? There are" if near else "it must be one of"
            listed = ", ".join(there[:12]) + (f" and {len(there) - 12} more" if len(there) > 12 else "")
            raise UserError(f"{place}: found {name!r}, {hint} {listed}")
