"""A plan as the YAML that people read and change: what differs from the defaults, with a comment where one helps.

`read_gateway(write_gateway(plan, path))` is `plan`, up to its own path, wherever its backends are complete.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from breakeven.errors import UserError
from breakeven.gateway.plan.model import (
    LOCAL_ENDPOINTS,
    USUAL_ENDPOINTS,
    BackendPlan,
    ExperimentPlan,
    GatewayPlan,
    HedgePlan,
    Limits,
    LogPlan,
    PolicyPlan,
    Redis,
    Timeouts,
)
from breakeven.results.cost import Api, Own, Pricing, Rented

HEAD = "A gateway for `breakeven serve`. docs/gateway-yaml.md explains every key; what is not here has its default."

Yaml = dict[str, Any]
"""A mapping on its way into YAML, which any value may stand in."""


def write_gateway(plan: GatewayPlan, path: Path, *, head: str = HEAD, notes: Mapping[str, str] | None = None) -> Path:
    """Write `plan` to `path`, whole or not at all. Raises UserError when the place cannot be written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(gateway_text(plan, head=head, notes=notes), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    return path


def gateway_text(plan: GatewayPlan, *, head: str = HEAD, notes: Mapping[str, str] | None = None) -> str:
    """`plan` as commented YAML. `notes`: a comment by the name of a backend or a public model.

    A backend with neither url nor local model gets an empty `url:`, which `read_gateway` refuses until it is filled in.
    """
    said = notes or {}
    top: Yaml = {
        **_changed(plan, GatewayPlan, "host", "port", "workers"),
        **_admin(plan),
        **({"keys": str(plan.keys)} if plan.keys else {}),
    }
    lists: list[tuple[str, list[tuple[str | None, Yaml]]]] = [
        ("backends", [(said.get(each.name), _backend(each)) for each in plan.backends]),
        ("policies", [(said.get(each.model), _policy(each)) for each in plan.policies]),
        ("experiments", [(None, _experiment(each)) for each in plan.experiments]),
    ]
    rest: Yaml = {
        "limits": _limits(plan.limits),
        "log": _log(plan.log),
        **({} if plan.redis is None else {"redis": _redis(plan.redis)}),
        **({"otel": True} if plan.otel else {}),
        **({} if plan.memory_bytes is None else {"memory": plan.memory_bytes}),
        **_seconds(plan, GatewayPlan, "minimum_dwell_s", "maximum_wait_s"),
    }
    out = [_comment(head)]
    if top:
        out.append(_dump(top))
    for key, entries in lists:
        if entries:
            out.append(f"{key}:\n" + "\n".join(_entry(note, entry) for note, entry in entries))
    # An empty `redis:` would say none; every other empty mapping says nothing.
    kept = {key: value for key, value in rest.items() if value != {} or key == "redis"}
    return "\n\n".join([*out, *([_dump(kept)] if kept else [])]) + "\n"


def _comment(text: str, indent: str = "") -> str:
    return "\n".join(f"{indent}# {line}".rstrip() for line in text.splitlines())


def _dump(mapping: Yaml) -> str:
    text: str = yaml.dump(_Block(mapping), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, indent=2)
    return text.rstrip("\n")


def _entry(note: str | None, entry: Yaml) -> str:
    lines = _dump(entry).splitlines()
    body = "\n".join(["  - " + lines[0], *("    " + line for line in lines[1:])])
    return body if note is None else f"{_comment(note, '  ')}\n{body}"


class _Block(dict[str, Any]):
    """A mapping that has a line for each key, however small it is."""


class _Dumper(yaml.SafeDumper):
    """Small mappings and lists on one line, as people write them."""

    def ignore_aliases(self, data: object) -> bool:
        """Never anchors: two backends with one price each show it."""
        return True


def _mapping(dumper: yaml.SafeDumper, data: Yaml) -> yaml.MappingNode:
    small = bool(data) and len(data) <= 5 and len(str(data)) < 90
    flat = small and not any(isinstance(value, dict | list) and value for value in data.values())
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=flat)


def _block(dumper: yaml.SafeDumper, data: _Block) -> yaml.MappingNode:
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=False)


def _list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.SequenceNode:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


def _nothing(dumper: yaml.SafeDumper, data: None) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:null", "")


_Dumper.add_representer(dict, _mapping)
_Dumper.add_representer(_Block, _block)
_Dumper.add_representer(list, _list)
_Dumper.add_representer(type(None), _nothing)


def _default(cls: type, name: str) -> object:
    return next(each.default for each in fields(cls) if each.name == name)


def _changed(plan: object, cls: type, *names: str) -> Yaml:
    """Fields whose values are not the default, under their own names."""
    found = ((name, getattr(plan, name)) for name in names)
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in found
        if value != _default(cls, name)
    }


def _seconds(plan: object, cls: type, *names: str) -> Yaml:
    """The same for durations: `idle_s` 2.5 is `idle: 2.5s`."""
    return {name.removesuffix("_s"): f"{value!r}s" for name, value in _changed(plan, cls, *names).items()}


def _bytes(plan: object, cls: type, **names: str) -> Yaml:
    """The same for sizes, with the key that each is called in the file."""
    return {names[name]: value for name, value in _changed(plan, cls, *names).items()}


def _admin(plan: GatewayPlan) -> Yaml:
    if plan.admin_port is None:
        return {"admin": False}
    told = {
        key: getattr(plan, f"admin_{key}")
        for key in ("host", "port", "secret_env")
        if getattr(plan, f"admin_{key}") != _default(GatewayPlan, f"admin_{key}")
    }
    return {"admin": told} if told else {}


def _backend(plan: BackendPlan) -> Yaml:
    entry: Yaml = {"name": plan.name}
    own = ["served_model", "api_key_env", "key_header"]
    if plan.local is not None:
        local = _changed(plan.local, type(plan.local), "engine", "format", "context", "slots", "threads", "pinned")
        entry["local"] = {"model": plan.local.model, **local}
    else:
        entry["url"] = plan.url
        own += ["model", "engine", "format", "slots", "context"]
    entry |= _changed(plan, BackendPlan, *own, "kind", "machine", "devices")
    entry["location"] = plan.place
    if plan.speed is not None:
        speed = plan.speed
        entry["speed"] = {"ttft": f"{speed.ttft_s!r}s", "tokens_per_s": speed.tokens_per_s, "source": speed.source}
    if plan.price is not None:
        entry["price"] = _price(plan.price)
    entry |= _changed(plan, BackendPlan, "quality", "limit", "replica_of")
    usual = LOCAL_ENDPOINTS if plan.local is not None else USUAL_ENDPOINTS
    if plan.endpoints != usual:
        entry["endpoints"] = list(plan.endpoints)
    if plan.poll != (not plan.is_api):
        entry["poll"] = plan.poll
    entry |= _changed(plan, BackendPlan, "allow_link_local")
    if plan.ca_file is not None:
        entry["ca_file"] = str(plan.ca_file)
    timeouts = _seconds(plan.timeouts, Timeouts, "connect_s", "first_byte_s", "idle_s", "total_s")
    return entry | ({"timeouts": timeouts} if timeouts else {})


def _price(price: Pricing) -> Yaml:
    told: Yaml
    if isinstance(price, Own):
        told = {"usd": price.usd, "years": price.life_years, "usd_per_kwh": price.usd_per_kwh}
        told |= {
            key: f"{value!r}W" for key, value in (("idle", price.idle_w), ("busy", price.busy_w)) if value is not None
        }
        told |= {"overhead": price.power_overhead, "upkeep_usd_per_year": price.yearly_upkeep_usd}
        return {"own": told}
    dated = {} if price.date is None else {"date": price.date}
    if isinstance(price, Rented):
        return {"rented": {"usd_per_hour": price.usd_per_hour, **dated}}
    assert isinstance(price, Api)
    told = {"input": price.usd_per_mtok_input, "output": price.usd_per_mtok_output}
    if price.usd_per_mtok_cached_input is not None:
        told["cached_input"] = price.usd_per_mtok_cached_input
    return {"api": {**told, **dated}}


def _policy(plan: PolicyPlan) -> Yaml:
    asked = {"ttft": plan.slo.ttft_s, "tpot": plan.slo.tpot_s}
    slo = {term: f"{value!r}s" for term, value in asked.items() if value is not None}
    return {
        "model": plan.model,
        "policy": plan.policy,
        "backends": list(plan.backends),
        **({"slo": slo} if slo else {}),
        **({"weights": dict(plan.weights)} if plan.weights else {}),
        **_changed(plan, PolicyPlan, "max_usd", "quality_floor", "first", "longest_tokens", "explore", "shed"),
        **_seconds(plan, PolicyPlan, "queue_s"),
        **_changed(plan, PolicyPlan, "queue_size", "attempts"),
        **({} if plan.hedge is None else {"hedge": _hedge(plan.hedge)}),
    }


def _hedge(plan: HedgePlan) -> Yaml:
    return {"share": plan.share, **({"backends": list(plan.backends)} if plan.backends else {})}


def _experiment(plan: ExperimentPlan) -> Yaml:
    needed = {key: getattr(plan, key) for key in ("name", "kind", "model", "control", "treatment")}
    others = [each.name for each in fields(ExperimentPlan) if each.name not in needed]
    return needed | _changed(plan, ExperimentPlan, *others)


def _limits(plan: Limits) -> Yaml:
    return {
        **_bytes(plan, Limits, body_bytes="body", header_bytes="headers", response_bytes="response"),
        **_changed(plan, Limits, "json_depth", "connections", "streams_per_key"),
        **_seconds(plan, Limits, "read_s", "idle_s", "write_s", "drain_s"),
    }


def _log(plan: LogPlan) -> Yaml:
    place = {} if plan.directory is None else {"directory": str(plan.directory)}
    return {**place, **_bytes(plan, LogPlan, rotate_bytes="rotate"), **_changed(plan, LogPlan, "keep", "prompts")}


def _redis(plan: Redis) -> Yaml:
    return {**_changed(plan, Redis, "url_env", "prefix"), **_seconds(plan, Redis, "timeout_s")}
