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
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import yaml

from breakeven.errors import UserError, printable
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
    boundless,
    objects_of,
    one_fits,
    replicas_at,
    weights_of,
)
from breakeven.gateway.plan.load import PUBLIC_NAME
from breakeven.gateway.plan.model import AdminPlan, BackendPlan, GatewayPlan, LogPlan, PolicyPlan, Redis
from breakeven.gateway.plan.origins import SLOTS, backend_of, context_of, read_decision, told_speed
from breakeven.gateway.plan.verdict import candidates_of, policies_of
from breakeven.gateway.plan.write import gateway_text
from breakeven.hardware.chips import backend_of as kernels_of
from breakeven.hardware.described import machine_named
from breakeven.model.catalogue import base_words, lookup
from breakeven.model.resolve import is_catalogued
from breakeven.results.cost import ENDLESS, Api
from breakeven.results.decision import CandidateResult, Decision
from breakeven.results.store import RESULT
from breakeven.traffic.workload import Slo
from breakeven.version import __version__

SAME = ("namespace", "gateway-pods", "network", "valkey", "monitoring")
"""Files of `manifests/` that every verdict gets; `external` goes with what stands outside the cluster."""
STATE = Path("/var/lib/breakeven")
LLAMA_CPP = "b11312"
"""A build whose images are known to be there (Intel's by its neighbours alone). Tags without a build move daily, and
b9282's did not start."""
IMAGES = {
    "breakeven": ("breakeven", __version__),
    "valkey/valkey": ("valkey/valkey", "8.1"),
    "vllm/vllm-openai": ("vllm/vllm-openai", "v0.32.0"),
    "llama-server-cuda": ("ggml-org/llama.cpp", f"server-cuda-{LLAMA_CPP}"),
    "llama-server-amd": ("ggml-org/llama.cpp", f"server-rocm-{LLAMA_CPP}"),
    "llama-server-intel": ("ggml-org/llama.cpp", f"server-intel-{LLAMA_CPP}"),
    "llama-server-cpu": ("ggml-org/llama.cpp", f"server-{LLAMA_CPP}"),
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
    by_candidate: dict[str, list[str]] = {}
    notes: dict[str, str] = {}
    todo: list[str] = []
    taken = {PUBLIC_NAME, f"{PUBLIC_NAME}-valkey"}
    serving = _serving(decision)
    for found, rate_per_s in serving:
        why = _not_here(found)
        sized = None if why is not None else _engine(found, rate_per_s, decision)
        used = _names(found.name, 0 if sized is None else sized.most, taken)
        taken.update(used)
        name, place = used[0], f"gateway.yaml: backends.{len(backends)}"
        backend = _there(backend_of(name, found, decision, elsewhere=True), found)
        if backend.machine is None and not isinstance(found.pricing, Api):
            todo.append(
                f"{place}.speed: the gateway's pod has no step model of {bare(found)} on {found.machine}; what was "
                "decided on stands there where it is known, and is corrected by what is seen"
            )
        if sized is not None:
            engines.append(replace(sized, name=name))
            notes[f"{name}-0"] = f"{found.name}: decided on {found.machine} with {found.engine}."
            made = [_replica(backend, engines[-1], i) for i in range(sized.most)]
        else:
            notes[name] = f"{found.name}: {why}. Fill in where it listens, ending in /v1, and what it calls its model."
            todo.append(f"{place}.url: {name} {why}; fill in where it listens")
            if isinstance(found.pricing, Api):
                variable = f"{re.sub(r'[^A-Z0-9]+', '_', name.upper())}_KEY"
                todo.append(f"{place}.api_key_env: add its key to {SECRETS} as {variable}")
                backend = replace(backend, api_key_env=variable)
            made = [backend]
        by_candidate[found.name] = [each.name for each in made]
        backends += made
    todo += [line for engine in engines for line in _left(engine, decision)]
    plan, told = _plan(decision, [found for found, _ in serving], backends, by_candidate)
    if told:
        todo.append(
            "gateway.yaml: policies: no request says which part of the traffic it is of, so clients ask for each by "
            f"its name: {', '.join(told)}"
        )
    outside = len(by_candidate) > len(engines)
    files = {f"{name}.yaml": _fixed(name) for name in (*SAME, *(["external"] if outside else []))}
    files |= {f"engine-{each.name}.yaml": _documents(_head_of(each), objects_of(each)) for each in engines}
    if engines:
        files["models.yaml"] = _documents(MODELS_HEAD, [_volume(engines)])
    files["gateway.yaml"] = gateway_text(plan, head=_head(decision), notes=notes | told)
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


def _there(backend: BackendPlan, found: CandidateResult) -> BackendPlan:
    """The backend as a pod can read it: a file of this machine, or a hub's, would keep the gateway from starting."""
    known = is_catalogued(bare(found))
    if isinstance(found.pricing, Api) or (known and backend.machine is not None):
        return backend if known else replace(backend, model=None)
    return replace(backend, model=backend.model if known else None, machine=None, speed=told_speed(found))


def _engine(found: CandidateResult, rate_per_s: float, decision: Decision) -> ClusterEngine:
    """As many replicas as its part of the load takes; at most what the interval's high end takes, and one to spare."""
    needed = replicas_at(found, rate_per_s)
    least = 1 if needed is None else max(1, math.ceil(needed.value))
    # A high end that stands for "none" would list hundreds.
    most = least if needed is None or boundless(found) else math.ceil(needed.most)
    # Lengths of a trace lie in its file, which need not be here.
    lengths = decision.workload.prompt is not None and decision.workload.output is not None
    context = context_of(decision.workload, MOST_LISTED_CONTEXT) if lengths else None
    if is_catalogued(bare(found)):
        context = None if context is None else min(context, lookup(bare(found)).context)
    if found.engine == "vllm" and context is not None and not (is_catalogued(bare(found)) and one_fits(found, context)):
        context = None  # it refuses to start with more than the model's own, or than it has room for
    return ClusterEngine(
        name="",
        found=found,
        kernels=_kernels(found),
        least=least,
        most=max(least + 1, most),
        context=context,
        sized=needed is not None,
    )


def _names(text: str, replicas: int, taken: Set[str]) -> list[str]:
    """A name that is free, and those that come with it: of its Service, and of its replicas."""
    stem = name = as_label(text)
    number = 2
    while not taken.isdisjoint(used := _with(name, replicas)):
        name, number = f"{stem}-{number}", number + 1
    return used


def _with(name: str, replicas: int) -> list[str]:
    return [name, *([f"{name}-http"] if replicas else []), *(f"{name}-{i}" for i in range(replicas))]


def _left(engine: ClusterEngine, decision: Decision) -> list[str]:
    """What its nodes and its volume need."""
    file, found = f"engine-{engine.name}.yaml", engine.found
    lines = [f"{file}: nodeSelector: kubectl label node NODE breakeven/machine={engine.machine}"]
    loaded, path, flags = weights_of(found)
    if path is not None:
        lines.append(f"{file}: args: put {found.model} in {found.format} into the volume breakeven-models, as {path}")
    elif not is_catalogued(bare(found)) and "--quantization" in flags:
        lines.append(f"{file}: args: leave --quantization out if {loaded} is published in {found.format} already")
    if engine.context is None and found.engine == "vllm" and decision.workload.prompt is not None:
        lines.append(
            f"{file}: args: --max-model-len: auto may be less than the study's longest request, which may not fit"
        )
    if engine.context is None and found.engine != "vllm":
        lines.append(
            f"{file}: args: --ctx-size: the decision does not hold its trace's lengths; add {SLOTS} times the longest "
            "request, or a request has a part of the model's own context"
        )
    lies = found.placed
    if lies is not None and found.engine != "vllm" and (lies.cpu_moe or (lies.gpu_layers or 0) < (lies.layers or 0)):
        lines.append(f"{file}: args: decided on with {lies.words()}; llama.cpp fits by itself what it finds room for")
    if not engine.sized:
        lines.append(f"{file}: minReplicas: how many carry the load is not in the decision; 1 stands there")
    elif boundless(found):
        lines.append(f"{file}: maxReplicas: {ENDLESS}, so it is one more than predicted; look how it keeps up")
    bill = None if decision.day is None else next((b for b in decision.day.bills if b.candidate == found.name), None)
    if bill is not None and 0 < min(bill.machines) < engine.least:
        lines.append(
            f"{file}: minReplicas: {engine.least} is for the busiest hour, and stays all day; the day's bill has "
            f"{min(bill.machines)} in its quietest"
        )
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


def _plan(
    decision: Decision,
    serving: Sequence[CandidateResult],
    backends: Sequence[BackendPlan],
    by_candidate: Mapping[str, Sequence[str]],
) -> tuple[GatewayPlan, dict[str, str]]:
    """The gateway, and comments on public models that are of a part of the traffic alone."""
    slo = Slo(ttft_s=decision.slo.ttft_s, tpot_s=decision.slo.tpot_s)
    whole = PolicyPlan(model=PUBLIC_NAME, backends=tuple(each.name for each in backends), slo=slo)
    policies, told = policies_of(decision, serving, by_candidate, whole)
    group = {each.name: each.replica_of for each in backends}
    policies = tuple(replace(each, first=group.get(each.first or "") or each.first) for each in policies)
    plan = GatewayPlan(
        path=None,
        host="0.0.0.0",
        workers=2,
        admin=AdminPlan(host="0.0.0.0"),
        keys=Path("/run/breakeven/secrets/keys.json"),
        budgets=STATE / "keys.budgets.json",
        backends=tuple(backends),
        policies=policies,
        log=LogPlan(directory=STATE),
        redis=Redis(),
    )
    return plan, told


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
    comment = "".join(f"# {printable(line)}".rstrip() + "\n" for line in head.splitlines())
    return comment + "---\n".join(yaml.dump(each, Dumper=_Plain, sort_keys=False, width=110) for each in found)
