"""A plan as the YAML that people read and change: what differs from the defaults, with a comment where one helps.

`read_gateway(write_gateway(plan, path))` is `plan`, up to its own path, wherever its backends are complete. Keys and
defaults are those of the records in `model.py`; only what is worked out from other keys is told apart here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from breakeven.answer.study.price import PlacementKeys, PriceTerms
from breakeven.answer.study.values import FilePart, keys_of
from breakeven.errors import UserError, printable
from breakeven.gateway.plan.model import AdminPlan, BackendPlan, GatewayPlan
from breakeven.gateway.plan.reach import LOCAL_ENDPOINTS, USUAL_ENDPOINTS
from breakeven.hardware.placement import Placement
from breakeven.results.cost import Api, Own, Rented
from breakeven.traffic.workload import Slo

HEAD = "A gateway for `breakeven serve`. docs/gateway-yaml.md explains every key; what is not here has its default."

Yaml = dict[str, Any]
"""A mapping on its way into YAML, which any value may stand in."""
_FIRST = {
    "BackendPlan": (
        *("name", "local", "url", "served_model", "api_key_env", "key_header", "dialect", "model", "engine", "format"),
        *(
            "slots",
            "context",
            "kind",
            "machine",
            "devices",
            "location",
            "speed",
            "price",
            "quality",
            "limit",
            "replica_of",
        ),
        *("endpoints", "poll"),
    ),
    "PolicyPlan": ("model", "policy", "backends", "slo", "weights"),
    "Limits": ("body", "headers", "response"),
}
"""Keys in the order in which they are read best, where that is not the record's; the others follow."""
_ALWAYS = {
    "BackendPlan": {"url", "location", "endpoints", "poll"},
    "PolicyPlan": {"model", "policy", "backends"},
    "HedgePlan": {"share"},
    "OwnPrice": {"overhead", "upkeep_usd_per_year"},
}
"""Keys that are written though they hold their default, beside those that have none."""


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
    told = _told(plan)
    first = ("host", "port", "workers", "tls", "admin", "keys", "budgets")
    top: Yaml = {key: told.pop(key) for key in first if key in told}
    lists: dict[str, list[tuple[str | None, Yaml]]] = {
        "backends": [(said.get(each.name), _backend(each)) for each in plan.backends],
        "policies": [(said.get(each.model), _told(each)) for each in plan.policies],
        "experiments": [(None, _told(each)) for each in plan.experiments],
    }
    out = [_comment(head), *([_dump(top)] if top else [])]
    for key, entries in lists.items():
        if entries:
            out.append(f"{key}:\n" + "\n".join(_entry(note, entry) for note, entry in entries))
    rest = {key: value for key, value in told.items() if key not in lists}
    return "\n\n".join([*out, *([_dump(rest)] if rest else [])]) + "\n"


def _comment(text: str, indent: str = "") -> str:
    # YAML takes no control characters, in comments neither, and names may hold any.
    return "\n".join(f"{indent}# {printable(line)}".rstrip() for line in text.splitlines())


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


def _told(part: FilePart) -> Yaml:
    """Each key of `part` that does not hold its default."""
    kind = type(part).__name__
    always = _ALWAYS.get(kind, set())
    usual = {each.name: _default(each) for each in fields(part)}  # type: ignore[arg-type]
    keys = keys_of(type(part))
    order = dict.fromkeys((*_FIRST.get(kind, ()), *keys))
    found = {key: (keys[key], getattr(part, keys[key])) for key in order}
    return {
        key: _value(name, value)
        for key, (name, value) in found.items()
        if key in always or usual[name] is MISSING or value != usual[name]
    }


def _default(each: Any) -> object:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _value(name: str, value: object) -> object:
    """A value as it is typed: `idle_s` 2.5 is `2.5s`."""
    if isinstance(value, AdminPlan) and value.port is None:
        return False
    if isinstance(value, FilePart):
        return _told(value)
    if isinstance(value, Slo):
        terms = {"ttft": value.ttft_s, "tpot": value.tpot_s}
        return {term: f"{seconds!r}s" for term, seconds in terms.items() if seconds is not None}
    if isinstance(value, Placement):
        return _told(PlacementKeys.of(value))
    if isinstance(value, Own | Rented | Api):
        return _told(PriceTerms.of(value))
    if isinstance(value, int | float) and name.endswith(("_s", "_w")) and not name.endswith("_per_s"):
        return f"{value!r}{'s' if name.endswith('_s') else 'W'}"
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _backend(plan: BackendPlan) -> Yaml:
    """Without what `read_gateway` works out from the rest."""
    entry, local = _told(plan), plan.local is not None
    left = {"url", "model", "engine", "format", "kv", "slots", "context"} if local else set()
    if plan.endpoints == (LOCAL_ENDPOINTS if local else USUAL_ENDPOINTS):
        left.add("endpoints")
    if plan.poll != plan.is_api:
        left.add("poll")
    return {key: value for key, value in entry.items() if key not in left}
