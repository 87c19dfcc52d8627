"""`breakeven serve` from its arguments to its exit status."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from breakeven.errors import UserError, complain, one_line, printable, word_of
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan
from breakeven.hardware.system import spreads_connections

if TYPE_CHECKING:
    from breakeven.gateway.serve.loading import ServedPlan

MOST_TOLD = 40
"""Backends that `--check` tells of, so that a screen is enough."""
_OUTERMOST = re.compile(r"""[{"']*([A-Za-z_]+)["']?\s*:(?:\s|$)""")
"""A key of a YAML file at the beginning of a line."""


def source_of(
    what: Sequence[str],
    decision: Path | None,
    *,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    admin_port: int | None = None,
    kv: str | None = None,
    engine: str | None = None,
    placement: Mapping[str, str | int | None] | None = None,
) -> Callable[[], GatewayPlan]:
    """How to read the plan, now and at every reload: a gateway file, a decision, or models. Raises UserError.

    What is given beside it replaces what it says; `kv`, `engine` and `placement` are of models alone.
    """
    if decision is not None and decision.exists() and not (decision.is_file() or decision.is_dir()):
        raise UserError(f"{decision}: is no regular file; give the result.json of a decision")
    if (decision is None) == (not what):
        raise UserError("give a gateway file such as examples/gateway.yaml, or models, or --from a saved decision")
    files = [one for one in what if one.endswith((".yaml", ".yml")) and _is_gateway(Path(one))]
    is_file = bool(files)
    if is_file and len(what) > 1:
        raise UserError(f"{files[0]}: a gateway's file stands alone; give one, or models")
    if kv is not None and (is_file or decision is not None):
        raise UserError("--kv goes with models; in a gateway's file write `kv:` beside the model")
    words = {name: word for name, word in (placement or {}).items() if word is not None}
    if (engine is not None or words) and (is_file or decision is not None):
        raise UserError(
            "engine and placement options go with models; in a gateway's file write `engine:` and `placement:` "
            "beside the model"
        )

    def read() -> GatewayPlan:
        if decision is not None:
            from breakeven.gateway.plan.origins import plan_of_decision

            plan = plan_of_decision(decision)
        elif is_file:
            from breakeven.gateway.plan.load import read_gateway

            plan = read_gateway(Path(what[0]))
        else:
            from breakeven.gateway.plan.origins import plan_of_models

            plan = plan_of_models(what, engine=engine or "llama.cpp", placement=words, kv=kv)
        from breakeven.gateway.plan.check import check_plan, with_options

        plan = with_options(plan, host=host, port=port, workers=workers, admin_port=admin_port)
        return check_plan(plan, str(plan.path or "command line"))

    return read


def run(read: Callable[[], GatewayPlan], *, check_only: bool = False) -> int:
    """Serve until told to end. Raises UserError for a plan that cannot be served, and on Windows."""
    from breakeven.gateway.serve.loading import START_S, PlanReading
    from breakeven.hardware.system import ServiceManager

    reading = PlanReading(read)
    if check_only:
        plan = reading.result(START_S).plan
        backends, models = _counted(len(plan.backends), "backend"), _counted(len(plan.policies), "public model")
        print(f"{backends}, {models}: it can be served.")
        for backend in plan.backends[:MOST_TOLD]:
            print(_told(backend))
        if len(plan.backends) > MOST_TOLD:
            print(f"and {len(plan.backends) - MOST_TOLD} more")
        return 0
    if sys.platform != "win32":
        # Read over there while this process gets ready here.
        from breakeven.gateway.serve.supervisor import Supervisor

        manager = ServiceManager()

        loaded = reading.result(START_S)
        took_s = time.monotonic() - reading.began_s
        if loaded.plan.workers > 1 and not spreads_connections():
            raise UserError("workers: this system does not spread connections over processes; set it to 1")
        supervisor = Supervisor(loaded, read, complain, manager, took_s)
        doors = supervisor.doors
        return supervisor.run(lambda: _greet(supervisor.loaded, doors.host, doors.port, doors.admin_port))
    raise UserError("the gateway runs on Linux and macOS; on Windows run it inside WSL")


def _told(plan: BackendPlan) -> str:
    """A backend in one line: where it is asked, in which dialect, where its key goes, and what it is not sent."""
    from breakeven.gateway.serve.speech import CHAT, remembered
    from breakeven.wire.target import endpoint_at, split_base

    if plan.url is None:
        return f"{plan.name}: started here"
    spoken = plan.spoken
    root, under = split_base(plan.url)
    endpoint = CHAT if CHAT in plan.endpoints else plan.endpoints[0]
    where = f"{root}{endpoint_at(under, endpoint, spoken.query_at(urlsplit(root).path))}"
    parts = [f"{plan.name}: POST {where}", *([f"through {plan.socket}"] if plan.socket else [])]
    parts.append(f"as {plan.dialect_name}" if plan.dialect_name else "in no dialect that is known")
    if plan.api_key_env is not None:
        parts.append(f"{plan.api_key_env} in {spoken.key_header.lower()}")
    parts += [f"{name}: {value}" for name, value in spoken.headers.items()]
    for name, action in spoken.body.items():
        if action == "drop":
            parts.append(f"no {name}")
        elif "rename" in action:
            parts.append(f"{name} as {action['rename']}")
        else:
            parts.append(f"{name} {msgspec.json.encode(action['add']).decode()} added")
    parts += [f"learned: {lesson}" for lesson in remembered(plan)]
    return ", ".join(parts)


def emitted(target: str, what: Sequence[str], decision: Path | None, out: Path | None) -> int:
    """Write the files that serve a saved decision elsewhere, and say what is left to do. Raises UserError."""
    if target != "kubernetes":
        raise UserError(f"--emit {target}: there is kubernetes")
    if decision is None or what:
        raise UserError("--emit writes what serves a saved decision; give --from and its result.json, and no more")
    from breakeven.gateway.cluster.files import emit_kubernetes

    made = emit_kubernetes(decision, out)
    print(f"Written to {made.directory}: {', '.join(made.files)}")
    for line in made.todo:
        print(f"  {printable(line)}")
    print("  kustomization.yaml: images: build breakeven (deploy/Containerfile), and name the registry of each image")
    print(f"Make the secrets (docs/kubernetes.md), then: kubectl apply -k {word_of(made.directory)}")
    return 0


def _greet(loaded: ServedPlan, host: str, port: int, admin_port: int | None) -> None:
    with suppress(OSError):  # a full disk or a reader that left: it serves all the same
        _say_where(loaded, host, port, admin_port)


def _say_where(loaded: ServedPlan, host: str, port: int, admin_port: int | None) -> None:
    from breakeven.gateway.plan.check import is_loopback

    plan = loaded.plan
    shown = f"[{host}]" if ":" in host else host
    models = one_line(", ".join(policy.model for policy in plan.policies))
    print(f"Serving {models} at {'http' if plan.tls is None else 'https'}://{shown}:{port}/v1")
    if admin_port is not None:
        print(f"Live page at http://{plan.admin_host}:{admin_port}/")
    if loaded.keys is None:
        print("No key is asked: only this machine can reach it. `breakeven keys create` makes one.")
    elif plan.tls is None and not is_loopback(host):
        print("Keys come in clear: give `tls` a certificate, or put a proxy that speaks TLS in front.")
    sys.stdout.flush()


def _is_gateway(path: Path) -> bool:
    """Whether a YAML file describes a gateway rather than one model's shape; a missing one is taken for a gateway's.

    So is one with a gateway's key, or a mistyped `backends`, or no key at all: what is wrong in it is then told in a
    gateway's words. Raises UserError for a study, and for a pipe or a device, whose reading might never end.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no regular file; give a gateway file such as examples/gateway.yaml")
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    if any(line.startswith("candidates:") for line in lines):
        raise UserError(
            f"{path} is a study; run `breakeven decide {path}`, then `breakeven serve --from` its result.json"
        )
    from breakeven.answer.study.values import keys_of

    found = [word[1] for line in lines if (word := _OUTERMOST.match(line)) is not None]
    return not found or any(key in keys_of(GatewayPlan) or get_close_matches(key, ["backends"]) for key in found)


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
