"""Verdicts of the studies in `examples/`, and the manifests in `deploy/` that two of them become.

A verdict's candidates are the study's own (machine, engine, format, price); who wins and how many machines that takes
is said here, so that every candidate of every study gets its turn without a simulation. To write `deploy/` anew:

    .venv/bin/python tests/kubernetes_fixtures.py
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
from decision_fixtures import candidate, cost_point, decision, exact

from breakeven.answer.evaluate import model_of
from breakeven.answer.study.load import read_study
from breakeven.answer.study.plan import CandidatePlan
from breakeven.gateway.cluster.files import manifests_of
from breakeven.results.decision import CandidateResult, Decision, Flip, TrafficShare, Verdict
from breakeven.traffic.workload import Slo

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy" / "kubernetes"
STUDIES = sorted(path for path in (ROOT / "examples").glob("*.yaml") if "\ncandidates:" in path.read_text("utf-8"))
MACHINES = 2


def row(plan: CandidatePlan, load_per_s: float, machines: int) -> CandidateResult:
    """A candidate of a study as a decision holds it, `machines` of which carry the load."""
    assert plan.pricing is not None
    capacity = None if plan.is_api else load_per_s / (machines - 0.5)
    where: dict[str, Any] = {"machine": "hosted", "engine": "hosted", "format": "as hosted"}
    if not plan.is_api:
        model = model_of(plan)
        where = {"machine": model.profile.name, "engine": model.profile.engine, "format": model.format_label}
        where |= {"kind": "moe" if model.spec.is_moe else "dense", "kv": model.kv}
    return candidate(
        plan.name,
        plan.pricing,
        capacity,
        **where,
        model=plan.model or plan.name,
        devices=plan.devices,
        location=plan.location,
        latency=[],
        cost=[cost_point(plan.pricing, None if capacity is None else exact(capacity), load_per_s)],
    )


def decided(study: Path, *winners: str, machines: int = MACHINES, sentence: str = "A test said so.") -> Decision:
    """A verdict of `study` for one candidate, or for several, each with an even part of the traffic."""
    plan = read_study(study)
    shares = [TrafficShare(candidate=name, traffic=name, share=1 / len(winners)) for name in winners]
    return decision(
        [row(each, plan.load_per_s, machines) for each in plan.candidates],
        name=plan.name,
        question=plan.question,
        load_per_s=plan.load_per_s,
        workload=plan.workload,
        slo=plan.slo,
        verdict=Verdict(
            outcome="both" if len(winners) > 1 else "dense",
            winner=winners[0] if len(winners) == 1 else None,
            sentence=sentence,
            because=[],
            shares=shares if len(winners) > 1 else [],
        ),
    )


def of_names() -> list[tuple[str, str]]:
    """Every candidate of every study, with its study."""
    return [(path.stem, each.name) for path in STUDIES for each in read_study(path).candidates]


def example() -> Decision:
    """What `breakeven decide examples/public-api-service.yaml` says, as the README shows it."""
    ours, hosted, larger = "Llama-3.1-8B on an L40S", "gpt-oss-120b from Groq", "Qwen3-14B on an H100"
    made = decided(
        ROOT / "examples" / "public-api-service.yaml",
        ours,
        machines=1,
        sentence=f"Probably run {ours} (dense) at 5.5 requests/s: $1.40 ($1.40 to $2.80) an hour.",
    )
    changes = [
        (1.27, hosted, ours, f"above 1.27 requests/s {ours} is the better choice, below it {hosted}"),
        (11.6, ours, larger, f"above 11.6 requests/s {larger} is the better choice, below it {ours}"),
    ]
    flips = [
        Flip(quantity="load", from_=before, to=after, at=exact(at), unit="req/s", meaning=meaning)
        for at, before, after, meaning in changes
    ]
    return msgspec.structs.replace(made, flips=flips)


def several_nodes(kind: str = "moe", devices: int = 16) -> Decision:
    """A model of two machines of eight devices each, which no study of ours has."""
    model = "deepseek-v3" if kind == "moe" else "llama-3.1-405b"
    price = decided(STUDIES[0], read_study(STUDIES[0]).candidates[0].name).candidates[0].pricing
    assert price is not None
    one = candidate(
        f"{model} on {devices} H100", price, 8.0, model=model, kind=kind, machine="h100-sxm", format="fp8",
        devices=devices, memory_bytes=760e9, latency=[], cost=[cost_point(price, exact(8.0), 4.0)],
    )  # fmt: skip
    sentence = f"An example, and no decision: {one.name}."
    verdict = Verdict(outcome="moe", winner=one.name, sentence=sentence, because=[])
    return decision([one], name="several-nodes", verdict=verdict, load_per_s=4.0, slo=Slo(ttft_s=2.0, tpot_s=0.08))


EXAMPLES = {DEPLOY: example, DEPLOY / "several-nodes": several_nodes}


def main() -> None:
    """Write `deploy/kubernetes` anew."""
    shutil.rmtree(DEPLOY, ignore_errors=True)
    for directory, made in EXAMPLES.items():
        directory.mkdir(parents=True)
        for name, text in manifests_of(made())[0].items():
            (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
