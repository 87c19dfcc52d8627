"""What a verdict becomes on Kubernetes: valid by the API's own schemas, whole in itself, and what `deploy/` holds."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from cli_fixtures import run_here
from decision_fixtures import both, exact, full, latency_point, no_difference, nobody
from kubernetes_fixtures import EXAMPLES, MACHINES, ROOT, STUDIES, decided, example, of_names, several_nodes

from breakeven.errors import UserError
from breakeven.gateway.cluster.files import IMAGES, emit_kubernetes, manifests_of
from breakeven.gateway.cluster.pods import ENGINE_KEY, SECRETS
from breakeven.gateway.plan.check import ALL_SET
from breakeven.gateway.plan.load import read_gateway
from breakeven.gateway.plan.model import GatewayPlan
from breakeven.gateway.route.build import speed_of
from breakeven.hardware.placement import HOST, MemoryAt, Placed
from breakeven.model.catalogue import find
from breakeven.results.cost import ENDLESS
from breakeven.results.decision import ABOVE, Day, DayBill, Decision, TrafficShare
from breakeven.results.store import write
from breakeven.stats.estimate import Estimate

VERSION = "1.37"

# Kinds that are no part of Kubernetes, whose schemas no package carries: the keys that we write, as their pages name
# them (prometheus-operator.dev, API reference; lws.sigs.k8s.io, LeaderWorkerSet API; kubectl.docs.kubernetes.io,
# kustomization). Pods inside are checked as pods are. A key that we write by another name than these is found; one that
# these pages name wrongly is not.
OWN_KINDS: dict[str, Any] = {
    "ServiceMonitor": {
        "selector": {"matchLabels": {}},
        "endpoints": [
            {
                "port": str,
                "path": str,
                "interval": str,
                "authorization": {"credentials": {"name": str, "key": str}},
                "metricRelabelings": [
                    {"sourceLabels": [str], "regex": str, "targetLabel": str, "replacement": str, "action": str}
                ],
            }
        ],
    },
    "LeaderWorkerSet": {
        "replicas": int,
        "leaderWorkerTemplate": {
            "size": int,
            "restartPolicy": str,
            "leaderTemplate": {"metadata": {"labels": {}}, "spec": {}},
            "workerTemplate": {"metadata": {"labels": {}}, "spec": {}},
        },
    },
}
API_OF = {
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "LeaderWorkerSet": "leaderworkerset.x-k8s.io/v1",
    "Kustomization": "kustomize.config.k8s.io/v1beta1",
}


def shaped(found: Any, shape: Any, where: str) -> list[str]:
    """Where `found` has a key or a type that `shape` does not."""
    if isinstance(shape, dict):
        if not isinstance(found, dict):
            return [f"{where}: {found!r} is no mapping"]
        if not shape:
            return []
        unknown = [f"{where}.{key} is not known" for key in found if key not in shape]
        known = [key for key in found if key in shape]
        return unknown + [line for key in known for line in shaped(found[key], shape[key], f"{where}.{key}")]
    if isinstance(shape, list):
        if not isinstance(found, list):
            return [f"{where}: {found!r} is no list"]
        return [line for i, each in enumerate(found) for line in shaped(each, shape[0], f"{where}.{i}")]
    return [] if isinstance(found, shape) else [f"{where}: {found!r} is no {shape.__name__}"]


@cache
def by_schema(text: str) -> None:
    """Raise for an object that the API's schema refuses; unknown keys are refused too."""
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (extra test)")
    validator.validate(json.loads(text), VERSION, strict=True)


def check_object(found: dict[str, Any]) -> None:
    """One object, whatever its kind."""
    kind = found["kind"]
    if kind in API_OF:
        assert found["apiVersion"] == API_OF[kind]
    if kind in OWN_KINDS:
        assert shaped(found["spec"], OWN_KINDS[kind], kind) == []
        for template in found["spec"].get("leaderWorkerTemplate", {}).values():
            if isinstance(template, dict):
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", **template["metadata"]}}
                by_schema(json.dumps({**pod, "spec": template["spec"]}, sort_keys=True))
    elif kind != "Kustomization":
        by_schema(json.dumps(found, sort_keys=True))


class Emitted:
    """The manifests of one verdict, read."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files
        names = [name for name in files if name != "gateway.yaml"]
        self.objects = [each for name in names for each in yaml.safe_load_all(files[name])]
        self.kustomization = yaml.safe_load(files["kustomization.yaml"])

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        return [each for each in self.objects if each["kind"] in kinds]

    def pods(self) -> list[dict[str, Any]]:
        """Every template of a pod, with its labels."""
        found = [each["spec"]["template"] for each in self.of("Deployment", "StatefulSet")]
        for group in self.of("LeaderWorkerSet"):
            inner = group["spec"]["leaderWorkerTemplate"]
            found += [inner["leaderTemplate"], inner["workerTemplate"]]
        return found

    def gateway(self, directory: Path) -> GatewayPlan:
        """The gateway's own file, read as a gateway reads it, with addresses filled in."""
        (directory / "keys.json").write_text("{}", encoding="utf-8")
        text = self.files["gateway.yaml"].replace("/run/breakeven/secrets/keys.json", str(directory / "keys.json"))
        text = re.sub(r"^(    url:)\s*$", r"\1 https://elsewhere.example/v1", text, flags=re.MULTILINE)
        (directory / "gateway.yaml").write_text(text, encoding="utf-8")
        return read_gateway(directory / "gateway.yaml", ALL_SET)


def values(found: Any, key: str) -> list[Any]:
    """Everything that stands at `key`, however deep."""
    if isinstance(found, dict):
        return [*([found[key]] if key in found else []), *(v for each in found.values() for v in values(each, key))]
    return [v for each in found for v in values(each, key)] if isinstance(found, list) else []


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def check_whole(decision: Decision, directory: Path) -> Emitted:
    """Every object is valid, and what one names the others have. The gateway's file can be served."""
    emitted = Emitted(manifests_of(decision)[0])
    for each in emitted.objects:
        check_object(each)
    pods, services = emitted.pods(), emitted.of("Service")
    labels = [pod["metadata"]["labels"] for pod in pods]
    # What the list names is there, and all of it is listed.
    assert set(emitted.kustomization["resources"]) == set(emitted.files) - {"kustomization.yaml", "gateway.yaml"}
    assert emitted.kustomization["configMapGenerator"] == [{"name": "breakeven-gateway", "files": ["gateway.yaml"]}]
    images = {container["image"] for pod in pods for container in pod["spec"]["containers"]}
    assert {image["name"] for image in emitted.kustomization["images"]} == images
    # Secrets come from files; the one that is not is vLLM's, which reads none.
    assert {*values(emitted.objects, "secretName")} == {SECRETS}
    for reference in [*values(emitted.objects, "secretKeyRef"), *values(emitted.objects, "credentials")]:
        assert reference["name"] == SECRETS
    claims = {claim["metadata"]["name"] for claim in emitted.of("PersistentVolumeClaim")}
    assert {*values(pods, "claimName")} == claims
    assert {config["name"] for config in values(pods, "configMap")} == {"breakeven-gateway"}
    # Whoever selects pods selects some.
    for found in [*services, *emitted.of("ServiceMonitor")]:
        selector = found["spec"]["selector"]
        among = [each["metadata"]["labels"] for each in services] if "matchLabels" in selector else labels
        if found["metadata"]["name"] == "breakeven-engine" and not emitted.of("StatefulSet", "LeaderWorkerSet"):
            continue
        assert any(selects(selector.get("matchLabels", selector), one) for one in among), found["metadata"]["name"]
    for budget in emitted.of("PodDisruptionBudget"):
        assert any(selects(budget["spec"]["selector"]["matchLabels"], one) for one in labels)
    workloads = emitted.of("Deployment", "StatefulSet", "LeaderWorkerSet")
    there = {(each["apiVersion"], each["kind"], each["metadata"]["name"]) for each in workloads}
    for scaler in emitted.of("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["apiVersion"], target["kind"], target["name"]) in there
        assert scaler["spec"]["minReplicas"] <= scaler["spec"]["maxReplicas"]
    for kept in emitted.of("StatefulSet"):
        headless = next(each for each in services if each["metadata"]["name"] == kept["spec"]["serviceName"])
        assert headless["spec"]["clusterIP"] == "None"
        assert selects(headless["spec"]["selector"], kept["spec"]["template"]["metadata"]["labels"])
    check_gateway(emitted, emitted.gateway(directory))
    return emitted


def check_gateway(emitted: Emitted, plan: GatewayPlan) -> None:
    """The backends of the gateway's file are the replicas that may run, no more and no fewer."""
    scaled = {each["metadata"]["name"]: each["spec"] for each in emitted.of("HorizontalPodAutoscaler")}
    engines = {each["metadata"]["name"] for each in emitted.of("StatefulSet", "LeaderWorkerSet")}
    hosts = {re.sub(r"^http://|:8000/v1$", "", each.url or "") for each in plan.backends if each.replica_of}
    assert hosts == {f"{name}-{i}.{name}" for name in engines for i in range(scaled[name]["maxReplicas"])}
    for backend in plan.backends:
        if backend.replica_of is not None:
            assert backend.api_key_env == ENGINE_KEY
            pods = [
                each["spec"]
                for each in emitted.pods()
                if each["metadata"]["labels"].get("app.kubernetes.io/instance") == backend.replica_of
            ]
            assert backend.served_model in pods[0]["containers"][0]["args"]
    assert plan.redis is not None
    assert (plan.workers, str(plan.budgets)) == (2, "/var/lib/breakeven/keys.budgets.json")
    (policy,) = plan.policies
    assert set(policy.backends) == {each.name for each in plan.backends}


def args_of(emitted: Emitted, kind: str = "StatefulSet") -> list[str]:
    found = next(iter(emitted.of(kind)))
    template = found["spec"]["template"]
    args: list[str] = template["spec"]["containers"][0]["args"]
    return args


def test_there_are_seven_studies() -> None:
    assert len(STUDIES) == 7


@pytest.mark.parametrize(("study", "winner"), of_names())
def test_every_candidate_of_every_study_becomes_valid_manifests(study: str, winner: str, tmp_path: Path) -> None:
    emitted = check_whole(decided(ROOT / "examples" / f"{study}.yaml", winner), tmp_path)
    least = {each["metadata"]["name"]: each["spec"]["minReplicas"] for each in emitted.of("HorizontalPodAutoscaler")}
    for found in emitted.of("StatefulSet"):
        assert least[found["metadata"]["name"]] == MACHINES
        asked = found["spec"]["template"]["spec"]["containers"][0]["resources"]
        assert asked["limits"] == {"nvidia.com/gpu": "1"}


@pytest.mark.parametrize("made", [full, both, no_difference, example, several_nodes], ids=lambda made: made.__name__)
def test_verdicts_of_every_kind_are_valid(made: Any, tmp_path: Path) -> None:
    check_whole(made(), tmp_path)


def test_a_schema_that_is_broken_is_found() -> None:
    pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (extra test)")
    emitted = Emitted(manifests_of(example())[0])
    for kind, at in (("Deployment", "replica"), ("StatefulSet", "serviceNames"), ("NetworkPolicy", "podSelectors")):
        broken = copy.deepcopy(next(iter(emitted.of(kind))))
        broken["spec"][at] = 1
        with pytest.raises(Exception, match=at):
            check_object(broken)
    monitor = copy.deepcopy(emitted.of("ServiceMonitor")[0])
    monitor["spec"]["endpoints"][0]["ports"] = "admin"
    with pytest.raises(AssertionError, match="ports is not known"):
        check_object(monitor)


PUBLIC = ROOT / "examples" / "public-api-service.yaml"


def test_flags_are_those_of_what_was_decided() -> None:
    args = args_of(Emitted(manifests_of(decided(PUBLIC, "Qwen3-30B-A3B on an H100"))[0]))
    assert args[0] == "Qwen/Qwen3-30B-A3B"
    assert args[args.index("--quantization") + 1] == "fp8"
    assert "--tensor-parallel-size" not in args
    published = args_of(Emitted(manifests_of(decided(PUBLIC, "gpt-oss-120b on an H100"))[0]))
    assert published[0] == "openai/gpt-oss-120b"
    assert "--quantization" not in published
    own = ROOT / "examples" / "internal-workflow-bot.yaml"
    files, todo = manifests_of(decided(own, "Qwen3-14B on an RTX 4090"))
    (model, *_) = args_of(Emitted(files))
    assert model.startswith("/models/qwen3-14b-")
    assert any(model in line and line.startswith("engine-") and ": args: " in line for line in todo)


def test_a_context_is_no_longer_than_the_models_own(tmp_path: Path) -> None:
    study = ROOT / "examples" / "multilingual-agents.yaml"
    emitted = check_whole(decided(study, "Qwen3-32B on an H100"), tmp_path)
    args = args_of(emitted)
    assert int(args[args.index("--max-model-len") + 1]) == 40960
    assert {each.context for each in emitted.gateway(tmp_path).backends} == {40960}


def test_a_longest_request_that_has_no_room_does_not_keep_an_engine_from_starting(tmp_path: Path) -> None:
    study, name = ROOT / "examples" / "multilingual-agents.yaml", "Qwen3-32B on an H100"
    for machine, said in (("h100-sxm", "40960"), ("l40s", "auto")):
        made = changed(decided(study, name), name, machine=machine, engine="vllm", format="fp8", kv="f16")
        emitted = check_whole(made, tmp_path)
        args = args_of(emitted)
        assert args[args.index("--max-model-len") + 1] == said
        told = [line for line in manifests_of(made)[1] if "--max-model-len" in line]
        assert len(told) == (said == "auto")
        assert {each.context for each in emitted.gateway(tmp_path).backends} == {
            int(said) if said.isdecimal() else None
        }


def test_a_load_from_a_trace_leaves_the_context_to_the_model(tmp_path: Path) -> None:
    emitted = check_whole(decided(PUBLIC, "Qwen3-14B on an H100"), tmp_path)
    args = args_of(emitted)
    assert args[args.index("--max-model-len") + 1] == "auto", "the model's own length need not fit"
    assert {each.context for each in emitted.gateway(tmp_path).backends} == {None}


def test_of_a_models_checkpoints_the_one_that_answers_is_taken() -> None:
    (model, *_) = args_of(Emitted(manifests_of(decided(PUBLIC, "Llama-3.1-8B on an L40S"))[0]))
    assert model == "meta-llama/Meta-Llama-3.1-8B-Instruct"
    taught = {name: find(name).facts.answers for name in ("mixtral-8x7b", "falcon-h1-7b", "gemma-4-26b-a4b")}
    assert list(taught.values()) == [
        "mistralai/Mixtral-8x7B-Instruct-v0.1", "tiiuae/Falcon-H1-7B-Instruct", "google/gemma-4-26B-A4B-it"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "format_name", "said"),
    [
        ("qwen2.5-32b", "BF16", "Qwen/Qwen2.5-32B is a base model, which was not taught to chat"),
        ("someone/Other-9B-Base", "BF16", "someone/Other-9B-Base is a base model"),
        ("gemma-2-27b", "INT4", "take google/gemma-2-27b-it"),
        ("gemma-2-27b", "BF16", None),  # what is fetched was taught
        ("someone/Other-9B", "BF16", None),
    ],
)
def test_a_base_model_is_told_to_whoever_applies_the_files(model: str, format_name: str, said: str | None) -> None:
    name = "Qwen3-14B on an H100"
    found = decided(PUBLIC, name)
    rows = [
        each if each.name != name else msgspec.structs.replace(each, model=model, format=format_name)
        for each in found.candidates
    ]
    _, todo = manifests_of(msgspec.structs.replace(found, candidates=rows))
    lines = [line for line in todo if "base model" in line]
    if said is None:
        assert not lines
    else:
        (line,) = lines
        assert line.startswith("engine-")
        assert ": args: " in line
        assert said in line


def test_what_no_cluster_runs_stays_a_backend_to_fill_in(tmp_path: Path) -> None:
    files, todo = manifests_of(decided(PUBLIC, "gpt-oss-120b from Groq"))
    emitted = Emitted(files)
    assert emitted.of("StatefulSet", "PersistentVolumeClaim") == []
    assert "external.yaml" in files
    assert todo[0].startswith("gateway.yaml: backends.0.url: gpt-oss-120b-from-groq is hosted")
    assert "GPT_OSS_120B_FROM_GROQ_KEY" in todo[1]
    (tmp_path / "gateway.yaml").write_text(files["gateway.yaml"], encoding="utf-8")
    with pytest.raises(UserError, match=r"backends\.0.*url"):
        read_gateway(tmp_path / "gateway.yaml", ALL_SET)
    for study, name in (("bursty-small-business", "Qwen3-14B on a Mac mini"), ("edge-voice-assistant", None)):
        found = ROOT / "examples" / f"{study}.yaml"
        chosen = name or next(each for where, each in of_names() if where == study)
        assert Emitted(manifests_of(decided(found, chosen))[0]).of("StatefulSet") == []


@pytest.mark.parametrize("engine", ["sglang", "ollama", "mlx"])
def test_no_engine_stands_for_another(engine: str, tmp_path: Path) -> None:
    name = "Qwen3-14B on an H100"
    files, todo = manifests_of(changed(decided(PUBLIC, name), name, engine=engine))
    assert Emitted(files).of("StatefulSet") == []
    (backend,) = Emitted(files).gateway(tmp_path).backends
    assert backend.engine == engine
    assert any(f"runs {engine}, for which no manifest is written" in line for line in todo)
    # Of mlx no data sheet tells the steps, and a gateway that is told to predict them would not start.
    assert (backend.machine, any(".speed: " in line for line in todo)) == (
        (None, True) if engine == "mlx" else ("h100-sxm", False)
    )
    if backend.machine is not None:
        speed_of(backend)


def test_a_mix_has_both_and_each_its_part_of_the_load(tmp_path: Path) -> None:
    names = ("Qwen3-30B-A3B on an H100", "gpt-oss-120b from Groq")
    emitted = check_whole(decided(PUBLIC, *names), tmp_path)
    assert len(emitted.of("StatefulSet")) == 1
    assert "external.yaml" in emitted.files


def test_several_nodes_are_a_group_of_pods() -> None:
    emitted = Emitted(manifests_of(several_nodes())[0])
    (group,) = emitted.of("LeaderWorkerSet")
    inner = group["spec"]["leaderWorkerTemplate"]
    assert inner["size"] == 2
    lead, follow = (inner[f"{who}Template"]["spec"]["containers"][0] for who in ("leader", "worker"))
    for each in (lead, follow):
        assert each["resources"]["limits"] == {"nvidia.com/gpu": "8"}
        args = each["args"]
        assert args[args.index("--tensor-parallel-size") + 1] == "8"
        assert args[args.index("--data-parallel-size") + 1] == "2"
        assert "--enable-expert-parallel" in args
    where = [each["args"][each["args"].index("--data-parallel-address") + 1] for each in (lead, follow)]
    assert where == ["$(VLLM_HOST_IP)", "$(LWS_LEADER_ADDRESS)"], "ZeroMQ listens at no name"
    for each in (lead, follow):
        (own,) = (env for env in each["env"] if env["name"] == "VLLM_HOST_IP")
        assert own["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert "--headless" in follow["args"]
    assert "--headless" not in lead["args"]
    dense = Emitted(manifests_of(several_nodes("dense"))[0])
    inner = dense.of("LeaderWorkerSet")[0]["spec"]["leaderWorkerTemplate"]
    lead, follow = (inner[f"{who}Template"]["spec"]["containers"][0] for who in ("leader", "worker"))
    for each in (lead, follow):
        args = each["args"]
        assert args[args.index("--pipeline-parallel-size") + 1] == args[args.index("--nnodes") + 1] == "2"
        assert args[args.index("--node-rank") + 1] == "$(LWS_WORKER_INDEX)"
        assert args[args.index("--master-addr") + 1] == "$(LWS_LEADER_ADDRESS)"
        assert "--enable-expert-parallel" not in args
        assert not any("ray" in word for word in (*each["command"], *args)), "vLLM's images hold none"
    assert ("--headless" in follow["args"], "--headless" in lead["args"]) == (True, False)


@pytest.mark.parametrize("made", [example, several_nodes], ids=lambda made: made.__name__)
def test_how_many_run_is_the_autoscalers_alone(made: Any) -> None:
    emitted = Emitted(manifests_of(made())[0])
    engines = emitted.of("StatefulSet", "LeaderWorkerSet")
    assert engines
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each in emitted.of("HorizontalPodAutoscaler")}
    assert {each["metadata"]["name"] for each in engines} <= scaled
    assert not any("replicas" in each["spec"] for each in engines), "each `apply` would set it back"


def test_files_in_16_bits_have_room_though_the_engine_makes_them_fp8() -> None:
    def room_bytes(name: str) -> float:
        (claim,) = Emitted(manifests_of(decided(PUBLIC, name))[0]).of("PersistentVolumeClaim")
        return float(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) * 2**30

    made, served = "Qwen3-14B on an H100", "gpt-oss-120b on an H100"
    memory = {each.name: each.memory_bytes or 0.0 for each in decided(PUBLIC, made).candidates}
    assert room_bytes(made) >= 2 * memory[made] > 0
    assert memory[served] <= room_bytes(served) < 2 * memory[served], "published as it is served"


def test_what_lies_in_host_memory_beside_a_device_is_asked_for() -> None:
    decision = decided(PUBLIC, "Qwen3-14B on an H100")
    (found,) = (each for each in decision.candidates if each.name == "Qwen3-14B on an H100")
    placed = Placed(how="predicted", memory=[MemoryAt(place=HOST, weights_bytes=40 * 2**30)])
    beside = msgspec.structs.replace(
        decision,
        candidates=[
            msgspec.structs.replace(each, placed=placed) if each is found else each for each in decision.candidates
        ],
    )
    asked = []
    for each in (decision, beside):
        (engine,) = Emitted(manifests_of(each)[0]).of("StatefulSet")
        memory = engine["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"]
        asked.append(int(memory.removesuffix("Gi")))
    assert asked[1] == asked[0] + 40


def changed(decision: Decision, who: str, /, **changes: Any) -> Decision:
    """A decision with one candidate changed."""
    rows = [msgspec.structs.replace(each, **changes) if each.name == who else each for each in decision.candidates]
    assert [each.name for each in decision.candidates if each.name == who]
    return msgspec.structs.replace(decision, candidates=rows)


def shared_out(decision: Decision, parts: dict[str, tuple[str, float]]) -> Decision:
    """A verdict that gives `parts` of the traffic, by their names, to a candidate and a share each."""
    shares = [TrafficShare(candidate=who, traffic=part, share=share) for part, (who, share) in parts.items()]
    verdict = msgspec.structs.replace(decision.verdict, outcome="both", winner=None, shares=shares)
    return msgspec.structs.replace(decision, verdict=verdict)


def models_of(files: dict[str, str], directory: Path) -> dict[str, tuple[str, ...]]:
    return {each.model: each.backends for each in Emitted(files).gateway(directory).policies}


def test_a_part_that_only_some_may_serve_is_asked_for_by_its_own_name(tmp_path: Path) -> None:
    study = ROOT / "examples" / "edge-voice-assistant.yaml"
    board, away = "Llama-3.2-1B on the board", "gpt-oss-120b from Groq"
    made = shared_out(decided(study, board), {"commands": (board, 0.8), "open questions": (away, 0.2)})
    made = changed(changed(made, board, barred_from=["open questions"]), away, barred_from=["commands"])
    files, todo = manifests_of(made)
    assert models_of(files, tmp_path) == {
        "commands": ("llama-3-2-1b-on-the-board",),
        "open-questions": ("gpt-oss-120b-from-groq",),
    }, "no request for the light may be sent away"
    assert "# The part 'commands': 80% of the requests" in files["gateway.yaml"]
    assert any(line.endswith("by its name: commands, open-questions") for line in todo)


def test_who_may_serve_all_is_asked_for_all_beside_the_parts(tmp_path: Path) -> None:
    ours, away = "Qwen3-14B on an H100", "gpt-oss-120b from Groq"
    made = shared_out(decided(PUBLIC, ours), {"ours": (ours, 0.5), "breakeven": (away, 0.5)})
    files, _ = manifests_of(changed(made, away, barred_from=["ours"]))
    own = tuple(f"qwen3-14b-on-an-h100-{i}" for i in range(len(models_of(files, tmp_path)["ours"])))
    assert models_of(files, tmp_path) == {"ours": own, "breakeven-2": ("gpt-oss-120b-from-groq",), "breakeven": own}


def test_whom_the_floor_of_a_part_lets_in_gets_its_part(tmp_path: Path) -> None:
    large, small = "Qwen3-30B-A3B on an H100", "Llama-3.1-8B on an L40S"
    made = shared_out(decided(PUBLIC, large, machines=4), {"hard": (large, 0.25), "easy": (small, 0.75)})
    files, _ = manifests_of(changed(made, small, ruled_out=["scores 0.4, the study asks for 0.6"]))
    found = models_of(files, tmp_path)
    assert set(found["easy"]) == {f"llama-3-1-8b-on-an-l40s-{i}" for i in range(len(found["easy"]))} != set()
    assert found["breakeven"] == found["hard"]


def test_a_split_by_amount_is_one_model_with_as_many_machines_as_it_fills(tmp_path: Path) -> None:
    base, rest = "Qwen3-14B on an H100", "gpt-oss-120b from Groq"
    made = decided(PUBLIC, base, machines=4)
    one = next(each for each in made.candidates if each.name == base).capacity_per_s
    assert one is not None
    part = one.value / made.load_per_s
    made = shared_out(made, {"up to 1.57 requests/s": (base, part), ABOVE: (rest, 1 - part)})
    files, _ = manifests_of(made)
    emitted = Emitted(files)
    (policy,) = emitted.gateway(tmp_path).policies
    assert (policy.model, policy.policy, policy.first) == ("breakeven", "spill", "qwen3-14b-on-an-h100")
    assert policy.backends[0] == "qwen3-14b-on-an-h100-0"
    assert policy.backends[-1] == "gpt-oss-120b-from-groq"
    (scaler,) = (each for each in emitted.of("HorizontalPodAutoscaler") if each["metadata"]["name"] != "breakeven")
    assert scaler["spec"]["minReplicas"] == 1, "the bill of the whole load has 4"


def test_a_model_that_the_gateways_pod_cannot_read_is_not_named_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "Qwen3-14B on an H100"
    latency = [latency_point(8.0, 1.0, 0.01)]
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for model, loaded in (("someone/Other-9B", "someone/Other-9B"), ("models/mine", "/models/models-mine-fp8")):
        files, todo = manifests_of(changed(decided(PUBLIC, name), name, model=model, latency=latency))
        assert str(tmp_path) not in "".join(files.values()) + "".join(todo)
        for backend in Emitted(files).gateway(tmp_path).backends:
            assert (backend.model, backend.machine) == (None, None), "it would look on a hub, or for a file"
            assert backend.speed is not None
            assert backend.speed.ttft_s == latency[0].ttft_p50_s.value
        args = args_of(Emitted(files))
        assert args[0] == loaded
        assert args[args.index("--max-model-len") + 1] == "auto"
        assert any(".speed: the gateway's pod has no step model of" in line for line in todo)
        quantized = [line for line in todo if "leave --quantization out" in line]
        assert len(quantized) == ("--quantization" in args) == (model == "someone/Other-9B")


def test_names_of_replicas_and_of_what_else_is_there_are_nobody_elses(tmp_path: Path) -> None:
    ours, away = "Qwen3-14B on an H100", "gpt-oss-120b from Groq"
    for names in (
        ("Qwen 1", "Qwen"),
        ("Qwen", "Qwen 1"),
        ("a", "Breakeven Valkey"),
        ("a", "breakeven"),
        ("q" * 90, "q" * 91),
        ("red \x1b[31m", "two\x85lines\x07"),
    ):
        made = changed(changed(decided(PUBLIC, away, ours), ours, name=names[1]), away, name=names[0])
        made = shared_out(made, {"a": (names[0], 0.5), "b": (names[1], 0.5)})
        emitted = check_whole(made, tmp_path)
        objects = [(each["kind"], each["metadata"]["name"]) for each in emitted.objects if "metadata" in each]
        assert len(set(objects)) == len(objects)


def test_two_files_of_one_name_are_two_in_the_volume() -> None:
    one, two = "Qwen3-14B on an H100", "Qwen3-30B-A3B on an H100"
    long = "/data/Llama-3.1-Nemotron-Nano-8B-v1-Instruct-finetuned-on-our-tickets"
    for first, second in (
        ("/data/a/model.gguf", "/data/b/model.gguf"),
        ("/data/a/gguf/model.gguf", "/data/b/gguf/model.gguf"),
        (f"{long}-Q4_K_M.gguf", f"{long}-Q8_0.gguf"),
        (f"{long * 2}-Q4_K_M.gguf", f"{long * 2}-Q8_0.gguf"),
    ):
        made = decided(PUBLIC, one, two)
        for name, model in ((one, first), (two, second)):
            made = changed(made, name, model=model, engine="llama.cpp", format="as stored", machine="rtx-4090")
        paths = [
            each["spec"]["template"]["spec"]["containers"][0]["args"][1]
            for each in Emitted(manifests_of(made)[0]).of("StatefulSet")
        ]
        assert len(set(paths)) == 2
        assert all(re.fullmatch(r"/models/[a-z0-9-]+\.gguf", path) for path in paths)


def test_every_image_is_one_build() -> None:
    assert [name for name, (_, tag) in IMAGES.items() if not re.search(r"\d", tag)] == []


@pytest.mark.parametrize("made", [example, several_nodes], ids=lambda made: made.__name__)
def test_an_engine_that_is_told_to_end_finishes_its_answers_first(made: Any) -> None:
    for pod in Emitted(manifests_of(made())[0]).pods():
        args = pod["spec"]["containers"][0].get("args", [])
        if "--served-model-name" in args:
            assert 30 <= int(args[args.index("--shutdown-timeout") + 1]) < pod["spec"]["terminationGracePeriodSeconds"]


def test_no_two_groups_are_disturbed_at_once_by_any_of_their_pods() -> None:
    emitted = Emitted(manifests_of(several_nodes())[0])
    budgets = [each["spec"]["selector"]["matchLabels"] for each in emitted.of("PodDisruptionBudget")]
    for pod in emitted.pods():
        labels = pod["metadata"]["labels"]
        if labels["app.kubernetes.io/component"] == "engine":
            assert sum(selects(budget, labels) for budget in budgets) == 1


def test_a_bill_without_an_upper_end_lists_no_hundreds() -> None:
    name = "Qwen3-14B on an H100"
    made = decided(PUBLIC, name)
    (row,) = (each for each in made.candidates if each.name == name)
    (point,) = row.cost
    wide = msgspec.structs.replace(point, replicas=Estimate(value=2.0, low=2.0, high=200.0))
    files, todo = manifests_of(changed(made, name, cost=[wide], notes=[f"{ENDLESS}: at the low end ..."]))
    (scaler,) = (
        each for each in Emitted(files).of("HorizontalPodAutoscaler") if each["metadata"]["name"] != "breakeven"
    )
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (2, 3)
    assert any(": maxReplicas: " in line for line in todo)


def test_what_a_decision_does_not_say_of_its_machines_is_told() -> None:
    name = "Qwen3-14B on an H100"
    files, todo = manifests_of(changed(decided(PUBLIC, name), name, cost=[], capacity_per_s=None))
    assert Emitted(files).of("StatefulSet")
    assert any("minReplicas: how many carry the load is not in the decision" in line for line in todo)
    day = Day(hours_per_s=[1.0] * 24, bills=[DayBill(candidate=name, usd_per_day=exact(9.0), machines=[1] * 23 + [2],
              utilisation=None, off_peak_hours=None, starts=1)])  # fmt: skip
    _, todo = manifests_of(msgspec.structs.replace(decided(PUBLIC, name), day=day))
    assert any("minReplicas: 2 is for the busiest hour" in line and "has 1 in its quietest" in line for line in todo)


def test_a_trace_on_llama_cpp_leaves_its_context_to_whoever_has_the_trace() -> None:
    name = "Qwen3-14B on an H100"
    made = changed(decided(PUBLIC, name), name, engine="llama.cpp", format="Q4_K_M", machine="rtx-4090")
    files, todo = manifests_of(made)
    assert "--ctx-size" not in args_of(Emitted(files))
    assert any(": args: --ctx-size: " in line and "4 times the longest request" in line for line in todo)


def test_nothing_is_emitted_of_no_answer() -> None:
    with pytest.raises(UserError, match="no answer"):
        manifests_of(nobody())


@pytest.mark.parametrize("directory", EXAMPLES, ids=lambda directory: directory.name)
def test_what_deploy_holds_is_what_is_emitted(directory: Path) -> None:
    files = manifests_of(EXAMPLES[directory]())[0]
    there = {path.name: path.read_text("utf-8") for path in directory.iterdir() if path.is_file()}
    assert there == files, "write it anew: .venv/bin/python tests/kubernetes_fixtures.py"


def test_the_verb_writes_a_directory_once(tmp_path: Path) -> None:
    write(decided(PUBLIC, "gpt-oss-120b from Groq"), tmp_path / "result.json")
    done = run_here("serve", "--from", str(tmp_path / "result.json"), "--emit", "kubernetes")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "kubernetes"
    assert "gateway.yaml: backends.0.url: " in done.stdout
    assert f"kubectl apply -k {out}" in done.stdout
    assert (out / "kustomization.yaml").is_file()
    again = run_here("serve", "--from", str(tmp_path), "--emit", "kubernetes")
    assert again.returncode == 2
    assert "is there already" in again.stderr
    assert emit_kubernetes(tmp_path, tmp_path / "other").directory.is_dir()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["--from", "x.json", "--emit", "helm"], "there is kubernetes"),
        (["--emit", "kubernetes"], "give --from"),
        (["x.yaml", "--emit", "kubernetes"], "give --from"),
        (["x.yaml", "--out", "there"], "give both, or neither"),
        (["--from", "x.json", "--emit", "kubernetes", "--port", "1"], "in the files that it writes"),
        (["--from", "x.json", "--emit", "kubernetes"], "cannot be read"),
    ],
)
def test_what_the_verb_refuses(words: list[str], right: str, tmp_path: Path) -> None:
    done = run_here("serve", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert right in done.stderr
    assert list(tmp_path.iterdir()) == []
