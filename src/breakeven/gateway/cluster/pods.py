"""An engine that a verdict chose, as Kubernetes objects: its pods, their names, how many of them and at most.

Replicas have names of their own (a StatefulSet, not a Deployment), because the gateway predicts each one by its own
queue. An engine of more devices than a node has is a LeaderWorkerSet, a group of pods for each replica.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from breakeven.errors import UserError
from breakeven.forecast.asked import asked_model, model_on, profiles_for
from breakeven.gateway.plan.origins import SLOTS
from breakeven.hardware.placement import HOST
from breakeven.model.catalogue import find, lookup
from breakeven.model.formats.named import default_format, kv_element_bytes
from breakeven.model.resolve import is_catalogued, split_format
from breakeven.results.cost import ENDLESS
from breakeven.results.decision import CandidateResult
from breakeven.stats.estimate import Estimate

Yaml = dict[str, Any]
"""A mapping on its way into YAML."""
SECRETS = "breakeven-secrets"
ENGINE_KEY = "BREAKEVEN_ENGINE_KEY"
PORT = 8000
RESOURCES = {"cuda": "nvidia.com/gpu", "amd": "amd.com/gpu", "intel": "gpu.intel.com/xe", "cpu": ""}
"""By whose kernels a machine runs: what its vendor's device plugin calls a device."""
NODE_DEVICES = 8
"""Devices of one machine at most, as on HGX and MI300X boards; an engine with more stands on several."""
CPUS_PER_DEVICE, MEMORY_PER_DEVICE_GI = 2, 16
"""Asked for of the host, for each device. Judgement: no measurement here is of a host beside a GPU."""
QUEUE = 4
"""Requests that wait in each replica, on average, before another is started. Judgement; docs/kubernetes.md."""
NEAR = 1e-6
"""Loads that differ by less are one."""
LOADING_TRIES = 360
"""Of 10 s: an hour in which weights are fetched and loaded, before a pod counts as one that does not start."""
GRACE_S, DRAIN_S = 60, 45
"""What a pod has to end, and of it what vLLM has for answers under way: else it cuts them off at once. Judgement."""
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterEngine:
    """A candidate on its way into the cluster: `least` replicas carry its load, `most` its pessimistic end.

    `kernels`: a key of `RESOURCES`. `context`: tokens a sequence; None: not known, the engine takes the model's own.
    `sized`: the decision says how many carry the load; else `least` is 1.
    """

    name: str
    found: CandidateResult
    kernels: str
    least: int
    most: int
    context: int | None
    sized: bool = True

    @property
    def per_node(self) -> int:
        """Devices of one node: as many as can be, the same on each."""
        return max(n for n in range(1, NODE_DEVICES + 1) if self.found.devices % n == 0)

    @property
    def nodes(self) -> int:
        """Of one replica."""
        return self.found.devices // self.per_node

    @property
    def machine(self) -> str:
        """The machine's name as the label that its nodes carry."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.found.machine)[:63].strip("-._")

    @property
    def image(self) -> str:
        """The image's name in the manifests, which the kustomization replaces."""
        return "vllm/vllm-openai" if self.found.engine == "vllm" else f"llama-server-{self.kernels}"

    def labels(self, role: str | None = None) -> dict[str, str]:
        """Of its pods; `role`: leader or worker, where a replica is a group of them."""
        labels = {
            "app.kubernetes.io/name": "breakeven",
            "app.kubernetes.io/component": "engine",
            "app.kubernetes.io/instance": self.name,
        }
        return labels if role is None else {**labels, "breakeven/role": role}


def bare(found: CandidateResult) -> str:
    """The model's name without its format."""
    return split_format(found.model)[0]


def replicas_at(found: CandidateResult, rate_per_s: float) -> Estimate | None:
    """Machines that carry a rate; None where the decision does not say.

    A bill lists some loads. Between two of them the number of the one above is sure to do, and so are as many as carry
    it each alone: a fleet carries no less than its machines one by one.
    """
    above = next((p for p in found.cost if p.rate_per_s >= rate_per_s * (1 - NEAR) and p.replicas), None)
    told = None if above is None else above.replicas
    one = found.capacity_per_s
    if one is None or not one.least > 0 or (above is not None and above.rate_per_s <= rate_per_s * (1 + NEAR)):
        return told
    ends = (one.value, one.most, one.least)
    value, low, high = (max(1.0, math.ceil(rate_per_s / each * (1 - NEAR))) for each in ends)
    if told is None:
        return Estimate(value=value, low=low, high=high)
    return Estimate(value=min(value, told.value), low=min(low, told.least), high=min(high, told.most))


def one_fits(found: CandidateResult, context: int) -> bool:
    """Whether keys and values of one sequence so long fit beside the weights, as far as that can be predicted."""
    behind = split_format(found.model)[1]
    try:
        asked = asked_model(found.model, None if behind else found.format)
        profile = profiles_for([asked], found.machine, found.engine, found.devices)[0]
        room = model_on(asked, profile, found.devices, kv=found.kv).kv_tokens(context)
    except UserError:
        return True
    return room is None or room >= context


def boundless(found: CandidateResult) -> bool:
    """Whether the high end of its machines is none that was computed."""
    return any(note.startswith(ENDLESS) for note in found.notes)


def as_label(text: str, most: int = 40) -> str:
    """`text` as a name that Services and pods can carry, with room for a number behind it, or one of up to `most`."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:most].strip("-")
    return name if name[:1].isalpha() else f"engine-{name}".strip("-")


def on_the_hub(model: str) -> bool:
    """Whether engines fetch weights by this name: the catalogue's, or a hub id that is no path here."""
    return is_catalogued(model) or (HUB_ID.fullmatch(model) is not None and not Path(model).exists())


def weights_of(found: CandidateResult) -> tuple[str, str | None, list[str]]:
    """What the engine loads; the same where it is a path at which weights must be put, else None; flags with it.

    vLLM fetches what a publisher published, and makes FP8 of 16 bits as it loads. Whatever else was decided on is a
    file that somebody has: which one, a decision does not know.
    """
    model, wanted = bare(found), found.format.upper()
    catalogued = is_catalogued(model)
    if found.engine == "vllm" and on_the_hub(model):
        hub = find(model).facts.answers if catalogued else model
        own = default_format(lookup(model), "vllm").upper() if catalogued else "BF16"
        of_16_bits = {wanted, own} <= {"BF16", "F16"}
        if wanted in (own, "AS MEASURED") or of_16_bits or (wanted[:3], own[:3]) == ("FP8", "FP8"):
            return hub, None, []
        if wanted == "FP8" and own in ("BF16", "F16"):
            return hub, None, ["--quantization", "fp8"]
    # Many a file is called model.gguf, in many a directory called gguf, and two engines share one volume.
    whole = "-".join(Path(model).parts)
    whole = whole.removesuffix(".gguf") if whole.endswith(".gguf") else f"{whole}-{found.format}"
    stem = as_label(whole[-120:], 120)
    path = f"/models/{stem}{'' if found.engine == 'vllm' else '.gguf'}"
    return path, path, []


def _vllm(engine: ClusterEngine) -> tuple[list[str], list[str]]:
    model, _, flags = weights_of(engine.found)
    kv = engine.found.kv
    return ["vllm", "serve"], [
        model,
        *("--served-model-name", engine.name, "--host", "0.0.0.0", "--port", str(PORT)),
        *("--disable-uvicorn-access-log", "--shutdown-timeout", str(DRAIN_S)),
        *("--max-model-len", "auto" if engine.context is None else str(engine.context)),
        *(("--tensor-parallel-size", str(engine.per_node)) if engine.per_node > 1 else ()),
        *flags,
        *(("--kv-cache-dtype", "bfloat16" if kv == "bf16" else kv) if kv not in (None, "f16") else ()),
    ]


def _llama_cpp(engine: ClusterEngine) -> tuple[list[str], list[str]]:
    kv = engine.found.kv or "f16"
    return ["/app/llama-server"], [
        *("--model", weights_of(engine.found)[0], "--alias", engine.name, "--host", "0.0.0.0", "--port", str(PORT)),
        *("--parallel", str(SLOTS), "--metrics"),
        *(("--ctx-size", str(SLOTS * engine.context)) if engine.context is not None else ()),
        *("--api-key-file", f"/run/breakeven/secrets/{ENGINE_KEY}"),
        *(("--cache-type-k", kv, "--cache-type-v", kv) if kv != "f16" else ()),
        *(("--flash-attn", "on") if kv_element_bytes(kv) < 2 else ()),
    ]


ARGUMENTS: dict[str, Callable[[ClusterEngine], tuple[list[str], list[str]]]] = {
    "vllm": _vllm,
    "llama.cpp": _llama_cpp,
    "llama-server": _llama_cpp,
}
"""By engine: its command and its flags. Without a word on placement llama.cpp fits a model as the decision assumed."""


def objects_of(engine: ClusterEngine) -> list[Yaml]:
    """One engine: its pods, their names, how many are disturbed at once, and what starts more of them."""
    command, args = ARGUMENTS[engine.found.engine](engine)
    several = engine.nodes > 1
    labels = engine.labels("leader" if several else None)
    workload = _group(engine, command, args) if several else _set(engine, command, args)
    # A LeaderWorkerSet makes the Service that names its pods by itself; this one is for Prometheus then.
    service = f"{engine.name}-http" if several else engine.name
    ports = [{"name": "http", "port": PORT, "targetPort": "http"}]
    average = {"type": "AverageValue", "averageValue": str(QUEUE)}
    queue = {"metric": {"name": "breakeven_engine_queue"}, "target": average}
    target = {"apiVersion": workload["apiVersion"], "kind": workload["kind"], "name": engine.name}
    return [
        workload,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": service, "labels": labels},
            "spec": {"clusterIP": "None", "selector": labels, "ports": ports},
        },
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": engine.name},
            # Of a group any pod that goes takes the others with it.
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": engine.labels()}},
        },
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": engine.name},
            "spec": {
                "scaleTargetRef": target,
                "minReplicas": engine.least,
                "maxReplicas": engine.most,
                "metrics": [{"type": "Pods", "pods": queue}],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 900}},
            },
        },
    ]


def _set(engine: ClusterEngine, command: list[str], args: list[str]) -> Yaml:
    """Replicas of one node each. How many is the autoscaler's: a number here would take them away at each `apply`."""
    labels = engine.labels()
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": engine.name, "labels": labels},
        "spec": {
            "serviceName": engine.name,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": _pod(engine, command, args)},
        },
    }


def _group(engine: ClusterEngine, command: list[str], args: list[str]) -> Yaml:
    """Replicas of several nodes each, by the LeaderWorkerSet API.

    A mixture's experts are spread over all devices, its attention over those of a node, each node a part of the batch;
    a dense model is cut by layers across nodes, whose processes vLLM joins by itself: its images hold no Ray.
    """
    if engine.found.kind == "moe":
        spread = [
            *("--enable-expert-parallel", "--data-parallel-size", str(engine.nodes), "--data-parallel-size-local", "1"),
            *("--data-parallel-rpc-port", "13345", "--data-parallel-address"),
        ]
        # The first listens there, for which ZeroMQ takes no name; the others may ask for it by one.
        lead = _pod(engine, command, [*args, *spread, "$(VLLM_HOST_IP)"])
        behind = ["$(LWS_LEADER_ADDRESS)", "--headless", "--data-parallel-start-rank", "$(LWS_WORKER_INDEX)"]
        follow = _pod(engine, command, [*args, *spread, *behind], answers=False)
    else:
        cut = [
            *("--pipeline-parallel-size", str(engine.nodes), "--nnodes", str(engine.nodes)),
            *("--node-rank", "$(LWS_WORKER_INDEX)", "--master-addr", "$(LWS_LEADER_ADDRESS)"),
        ]
        lead = _pod(engine, command, [*args, *cut])
        follow = _pod(engine, command, [*args, *cut, "--headless"], answers=False)
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": engine.name, "labels": engine.labels()},
        "spec": {
            "leaderWorkerTemplate": {
                "size": engine.nodes,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": {"metadata": {"labels": engine.labels("leader")}, "spec": lead},
                "workerTemplate": {"metadata": {"labels": engine.labels("worker")}, "spec": follow},
            },
        },
    }


def _host_bytes(engine: ClusterEngine) -> float:
    """What the decision put in host memory beside a device."""
    lies = engine.found.placed.memory if engine.found.placed is not None else []
    return sum(
        (at.weights_bytes or 0) + (at.kv_bytes or 0) + (at.compute_bytes or 0) for at in lies if at.place == HOST
    )


def _pod(engine: ClusterEngine, command: list[str], args: list[str], *, answers: bool = True) -> Yaml:
    """The pod of one node; `answers`: it has the API, which is asked whether it is well."""
    device, count, is_vllm = RESOURCES[engine.kernels], engine.per_node, engine.found.engine == "vllm"
    container: Yaml = {"name": "engine", "image": engine.image, "command": command, "args": args}
    if is_vllm:
        # vLLM reads its key from the environment alone.
        container["env"] = [
            {"name": "VLLM_API_KEY", "valueFrom": _secret(ENGINE_KEY)},
            {"name": "HF_TOKEN", "valueFrom": _secret("HF_TOKEN", optional=True)},
            {"name": "HF_HOME", "value": "/models/hub"},
            {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
        ]
        if engine.nodes > 1:
            own = {"fieldRef": {"fieldPath": "status.podIP"}}
            container["env"].append({"name": "VLLM_HOST_IP", "valueFrom": own})
    if answers:
        health = {"httpGet": {"path": "/health", "port": "http"}}
        container |= {
            "ports": [{"name": "http", "containerPort": PORT}],
            "startupProbe": {**health, "periodSeconds": 10, "failureThreshold": LOADING_TRIES},
            "livenessProbe": {**health, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
            "readinessProbe": {**health, "periodSeconds": 5, "timeoutSeconds": 2},
        }
    mounts: list[Yaml] = [{"name": "models", "mountPath": "/models"}, {"name": "shm", "mountPath": "/dev/shm"}]
    volumes: list[Yaml] = [
        {"name": "models", "persistentVolumeClaim": {"claimName": "breakeven-models"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{MEMORY_PER_DEVICE_GI}Gi"}},
    ]
    if not is_vllm:
        mounts.append({"name": "secrets", "mountPath": "/run/breakeven/secrets", "readOnly": True})
        items = [{"key": ENGINE_KEY, "path": ENGINE_KEY}]
        volumes.append({"name": "secrets", "secret": {"secretName": SECRETS, "items": items}})
    memory_gi = MEMORY_PER_DEVICE_GI * count
    if device:
        memory_gi += math.ceil(_host_bytes(engine) / 2**30)
    else:  # weights and caches lie in the host's memory
        memory_gi = max(memory_gi, math.ceil((engine.found.memory_bytes or 0.0) / 2**30))
    asked: Yaml = {"requests": {"cpu": str(CPUS_PER_DEVICE * count), "memory": f"{memory_gi}Gi"}}
    if device:
        asked["limits"] = {device: str(count)}
    container |= {
        "resources": asked,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }
    pod: Yaml = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "nodeSelector": {"breakeven/machine": engine.machine},
        "containers": [container],
        "volumes": volumes,
    }
    if device:
        pod["tolerations"] = [{"key": device, "operator": "Exists", "effect": "NoSchedule"}]
    else:
        # What was decided on is the whole machine: two replicas on one would share its memory's rate.
        apart = {
            "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "engine"}},
            "topologyKey": "kubernetes.io/hostname",
        }
        pod["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    return pod


def _secret(key: str, *, optional: bool = False) -> Yaml:
    return {"secretKeyRef": {"name": SECRETS, "key": key, **({"optional": True} if optional else {})}}
