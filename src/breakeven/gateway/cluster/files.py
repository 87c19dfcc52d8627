"""A verdict as a kustomize directory: the gateway, and the engines that the verdict chose, on Kubernetes.

What is the same for every verdict (the gateway's pods, Valkey, who may speak to whom) lies in `manifests/`, with
comments, and is copied as it is. Made here: the gateway's own file, a file for each engine, and the list of them all.
A candidate that no cluster runs (an API, a board, a Mac) stays a backend whose address is to be filled in, and is told.
docs/kubernetes.md explains the files.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import yaml

from breakeven.errors import UserError
from breakeven.gateway.cluster.pods import (
    ARGUMENTS,
    ENGINE_KEY,
    NODE_DEVICES,
    PORT,
    RESOURCES,
    SECRETS,
    ClusterEngine,
    Yaml,
    as_label,
    bare,
    objects_of,
    weights_of,
)
from breakeven.gateway.plan.load import PUBLIC_NAME
from breakeven.gateway.plan.model import AdminPlan, BackendPlan, GatewayPlan, LogPlan, PolicyPlan, Redis
from breakeven.gateway.plan.origins import backend_of, candidates_of, context_of, read_decision
from breakeven.gateway.plan.write import gateway_text
from breakeven.hardware.chips import backend_of as kernels_of
from breakeven.hardware.described import machine_named
from breakeven.model.catalogue import base_words, lookup
from breakeven.model.resolve import is_catalogued
from breakeven.results.cost import Api
from breakeven.results.decision import CandidateResult, Decision
from breakeven.results.store import RESULT
from breakeven.traffic.workload import Slo
from breakeven.version import __version__

SAME = ("namespace", "gateway-pods", "network", "valkey", "monitoring")
"""Files of `manifests/` that every verdict gets; `external` goes with what stands outside the cluster."""
STATE = Path("/var/lib/breakeven")
IMAGES = {
    "breakeven": ("breakeven", __version__),
    "valkey/valkey": ("valkey/valkey", "8.1"),
    "vllm/vllm-openai": ("vllm/vllm-openai", "v0.32.0"),
    "llama-server-cuda": ("ggml-org/llama.cpp", "server-cuda"),
    "llama-server-amd": ("ggml-org/llama.cpp", "server-rocm"),
    "llama-server-intel": ("ggml-org/llama.cpp", "server-intel"),
    "llama-server-cpu": ("ggml-org/llama.cpp", "server"),
}
"""By the name in a manifest: repository and tag. vLLM's is the version that docs/vllm.md tells of."""
MODELS_HEAD = """Weights, shared by all engines. As large as their memory together, twice that of 16 bits made FP8.
Without a storage class that lets several nodes write, give each engine a claim of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmittedFiles:
    """What was written where, and what is left to do by hand: one line each, with file and key."""

    directory: Path
    files: tuple[str, ...]
    todo: tuple[str, ...]


def emit_kubernetes(decision: Path, out: Path | None = None) -> EmittedFiles:
    """Write the manifests of a saved decision (its `result.json`, or the directory of it) into a new directory `out`.

    `out` None: `kubernetes` beside the decision. Raises UserError for a decision without an answer, and where something
    lies at `out` already.
    """
    result = decision / RESULT if decision.is_dir() else decision
    directory = result.with_name("kubernetes") if out is None else out
    if directory.exists():
        raise UserError(f"{directory}: is there already, perhaps with your changes; give another --out, or remove it")
    files, todo = manifests_of(read_decision(result))
    partial = directory.with_name(f".{directory.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")
        partial.rename(directory)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{directory}: cannot be written ({error.strerror}); choose another place") from error
    return EmittedFiles(directory=directory, files=tuple(sorted(files)), todo=tuple(todo))


def manifests_of(decision: Decision) -> tuple[dict[str, str], list[str]]:
    """The files of a decision by name, and what is left to do. Raises UserError for a decision without an answer."""
    backends: list[BackendPlan] = []
    engines: list[ClusterEngine] = []
    notes: dict[str, str] = {}
    todo: list[str] = []
    for found, rate_per_s in _serving(decision):
        name = _name(found.name, [*(each.name for each in engines), *(each.name for each in backends)])
        backend = backend_of(name, found, decision, elsewhere=True)
        why = _not_here(found)
        if why is None:
            engines.append(_engine(name, found, rate_per_s, decision))
            notes[f"{name}-0"] = f"{found.name}: decided on {found.machine} with {found.engine}."
            backends.extend(_replica(backend, engines[-1], i) for i in range(engines[-1].most))
            continue
        notes[name] = f"{found.name}: {why}. Fill in where it listens, ending in /v1, and what it calls its model."
        todo.append(f"gateway.yaml: backends.{len(backends)}.url: {name} {why}; fill in where it listens")
        if isinstance(found.pricing, Api):
            variable = f"{re.sub(r'[^A-Z0-9]+', '_', name.upper())}_KEY"
            todo.append(f"gateway.yaml: backends.{len(backends)}.api_key_env: add its key to {SECRETS} as {variable}")
            backend = replace(backend, api_key_env=variable)
        backends.append(backend)
    todo += [line for engine in engines for line in _left(engine)]
    files = {f"{name}.yaml": _fixed(name) for name in (*SAME, *(["external"] if len(notes) > len(engines) else []))}
    files |= {f"engine-{each.name}.yaml": _documents(_head_of(each), objects_of(each)) for each in engines}
    if engines:
        files["models.yaml"] = _documents(MODELS_HEAD, [_volume(engines)])
    files["gateway.yaml"] = gateway_text(_plan(decision, backends), head=_head(decision), notes=notes)
    files["kustomization.yaml"] = _kustomization(decision, files, engines)
    return files, todo


def _serving(decision: Decision) -> list[tuple[CandidateResult, float]]:
    """Whom the verdict serves the study's load with, and how many requests/s of it each gets."""
    if decision.verdict.outcome == "none":
        raise UserError(f"{decision.name}: the decision has no answer to serve; change the study and decide again")
    able, load = {each.name: each for each in candidates_of(decision)}, decision.load_per_s
    shares: dict[str, float] = {}
    for part in decision.verdict.shares:
        shares[part.candidate] = shares.get(part.candidate, 0.0) + part.share
    if chosen := [(able[name], load * share) for name, share in shares.items() if name in able and share > 0]:
        return chosen
    winner = able.get(decision.verdict.winner or "")
    if winner is None:  # no difference worth anyone's time: the cheapest all the same
        winner = min(able.values(), key=lambda each: _usd_per_hour(each, load))
    return [(winner, load)]


def _usd_per_hour(found: CandidateResult, rate_per_s: float) -> float:
    return next((p.usd_per_hour.value for p in found.cost if p.rate_per_s >= rate_per_s), math.inf)


def _not_here(found: CandidateResult) -> str | None:
    """Why no pod of ours runs a candidate, in words; None: one does."""
    if isinstance(found.pricing, Api):
        return "is hosted"
    if found.location == "edge":
        return f"runs on the device itself ({found.machine})"
    if found.engine not in ARGUMENTS:
        return f"runs {found.engine}, for which no manifest is written"
    kernels = _kernels(found)
    if kernels not in RESOURCES:
        return f"runs on {found.machine}, which no cluster is known to lend"
    if found.engine == "vllm" and kernels != "cuda":
        return f"runs vLLM on {found.machine}, with an image of its vendor's"
    if found.engine != "vllm" and found.devices > NODE_DEVICES:
        return f"runs {found.engine} on {found.devices} devices, more than one node has"
    return None


def _kernels(found: CandidateResult) -> str:
    """Whose kernels its machine runs; empty where the machine is none that words describe."""
    try:
        return kernels_of(machine_named(found.machine).devices[0])
    except UserError:
        return ""


MOST_LISTED_CONTEXT = 1 << 24
"""What a load draws is served whole: only the model's own context bounds it."""


def _engine(name: str, found: CandidateResult, rate_per_s: float, decision: Decision) -> ClusterEngine:
    """As many replicas as its part of the load takes; at most what the interval's high end takes, and one to spare."""
    needed = next((p.replicas for p in found.cost if p.rate_per_s >= rate_per_s * (1 - 1e-9) and p.replicas), None)
    least = 1 if needed is None else max(1, math.ceil(needed.value))
    # Lengths of a trace lie in its file, which need not be here.
    lengths = decision.workload.prompt is not None and decision.workload.output is not None
    context = context_of(decision.workload, MOST_LISTED_CONTEXT) if lengths else None
    if context is not None and is_catalogued(bare(found)):
        context = min(context, lookup(bare(found)).context)
    return ClusterEngine(
        name=name,
        found=found,
        kernels=_kernels(found),
        least=least,
        most=max(least + 1, 0 if needed is None else math.ceil(needed.most)),
        context=context,
    )


def _name(text: str, taken: Sequence[str]) -> str:
    stem = name = as_label(text)
    number = 2
    while name in taken or name == PUBLIC_NAME:
        name, number = f"{stem}-{number}", number + 1
    return name


def _left(engine: ClusterEngine) -> list[str]:
    """What its nodes and its volume need."""
    file, found = f"engine-{engine.name}.yaml", engine.found
    lines = [f"{file}: nodeSelector: kubectl label node NODE breakeven/machine={engine.machine}"]
    loaded, path, _ = weights_of(found)
    if path is not None:
        lines.append(f"{file}: args: put {found.model} in {found.format} into the volume breakeven-models, as {path}")
    # What is fetched by its id is already the checkpoint that was taught, where one is known.
    if (said := base_words(loaded if path is None else bare(found))) is not None:
        lines.append(f"{file}: args: {said}")
    return lines


def _replica(backend: BackendPlan, engine: ClusterEngine, i: int) -> BackendPlan:
    """One replica by its own name, alike to its fellows. Its key crosses the pods' network without TLS."""
    return replace(
        backend,
        name=f"{engine.name}-{i}",
        url=f"http://{engine.name}-{i}.{engine.name}:{PORT}/v1",
        served_model=engine.name,
        api_key_env=ENGINE_KEY,
        key_over_http=True,
        context=engine.context,
        replica_of=engine.name,
    )


def _plan(decision: Decision, backends: Sequence[BackendPlan]) -> GatewayPlan:
    slo = Slo(ttft_s=decision.slo.ttft_s, tpot_s=decision.slo.tpot_s)
    policy = PolicyPlan(model=PUBLIC_NAME, backends=tuple(each.name for each in backends), slo=slo)
    return GatewayPlan(
        path=None,
        host="0.0.0.0",
        workers=2,
        admin=AdminPlan(host="0.0.0.0"),
        keys=Path("/run/breakeven/secrets/keys.json"),
        budgets=STATE / "keys.budgets.json",
        backends=tuple(backends),
        policies=(policy,),
        log=LogPlan(directory=STATE),
        redis=Redis(),
    )


def _head(decision: Decision) -> str:
    return (
        f"The gateway's file, from the decision {decision.name!r}.\n{' '.join(decision.verdict.sentence.split())}\n"
        "docs/gateway-yaml.md explains every key; what is not here has its default."
    )


def _head_of(engine: ClusterEngine) -> str:
    found, devices = engine.found, f"{engine.found.devices} device{'' if engine.found.devices == 1 else 's'}"
    return (
        f"{found.name}: {found.model} in {found.format} with {found.engine} on {found.machine}, {devices} a replica.\n"
        f"{engine.least} for the study's load, {engine.most} at most: gateway.yaml lists as many."
    )


def _stored_bytes(found: CandidateResult) -> float:
    """About what its files take, and no less: what is made FP8 as it is loaded is stored in 16 bits."""
    return (found.memory_bytes or 0.0) * (2.0 if "--quantization" in weights_of(found)[2] else 1.0)


def _volume(engines: Iterable[ClusterEngine]) -> Yaml:
    tens_of_gib = math.ceil(sum(_stored_bytes(engine.found) for engine in engines) / (10 * 2**30))
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "breakeven-models"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": f"{10 * max(1, tens_of_gib)}Gi"}},
        },
    }


def _kustomization(decision: Decision, files: Iterable[str], engines: Iterable[ClusterEngine]) -> str:
    used = ["breakeven", "valkey/valkey", *dict.fromkeys(engine.image for engine in engines)]
    flips = [f"{flip.meaning}." for flip in decision.flips if flip.quantity == "load" and flip.at is not None]
    head = [
        f"From the decision {decision.name!r}, by `breakeven serve --from ... --emit kubernetes` (docs/kubernetes.md).",
        " ".join(decision.verdict.sentence.split()),
        *(["Decide and emit again when the load gets there:", *flips] if flips else []),
        f"The Secret {SECRETS} must be there first. Names of images want the registry that has them before them.",
    ]
    whole: Yaml = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "breakeven",
        "resources": sorted(name for name in files if name != "gateway.yaml"),
        "configMapGenerator": [{"name": "breakeven-gateway", "files": ["gateway.yaml"]}],
        "images": [{"name": name, "newName": IMAGES[name][0], "newTag": IMAGES[name][1]} for name in used],
    }
    return _documents("\n".join(head), [whole])


def _fixed(name: str) -> str:
    files = resources.files("breakeven.gateway.cluster")
    return files.joinpath("manifests", f"{name}.yaml").read_text(encoding="utf-8")


class _Plain(yaml.SafeDumper):
    """Never anchors: two pods that are alike each show it."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _documents(head: str, found: Iterable[Yaml]) -> str:
    comment = "".join(f"# {line}".rstrip() + "\n" for line in head.splitlines())
    return comment + "---\n".join(yaml.dump(each, Dumper=_Plain, sort_keys=False, width=110) for each in found)
