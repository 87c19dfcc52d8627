"""A person's own prompts, and conversations that an engine keeps, through a real llama.cpp."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import yaml
from simulate_fixtures import TINY_POLICY, model

from breakeven.forecast.simulated import simulate_schedule
from breakeven.forecast.simulator.policy import Fleet
from breakeven.measure.events import RequestDone, iter_events
from breakeven.results.load import LoadStudy
from breakeven.traffic.prompt_file import read_prompts
from breakeven.traffic.schedule_file import load_schedule
from tests.cli_fixtures import run_here

PROMPTS: list[dict[str, object]] = [
    {"prompt": "How do tides work?", "output_tokens": 4},
    {"prompt": "Write a haiku about rain in the mountains.", "output_tokens": 6},
    {"prompt": "Name three rivers."},
]


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    told = yaml.safe_load((Path("examples") / "tiny-dense.yaml").read_text())
    (tmp_path / "tiny-dense.yaml").write_text(yaml.safe_dump({**told, "n_layers": 1, "context": 2048}))
    return "tiny-dense.yaml"


def test_own_prompts_are_what_a_server_is_asked(tmp_path: Path, tiny: str) -> None:
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    done = run_here(
        *("bench", tiny, "--prompts", "own.jsonl", "--concurrency", "2", "--requests", "6", "--warm-up", "0s"),
        *("--quiet", "--json", "--out", "out"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    study = msgspec.json.decode(done.stdout.encode(), type=LoadStudy)
    (point,) = study.points
    assert (point.requests, point.answered) == (6, 6)
    assert study.workload.prompts == msgspec.structs.replace(
        read_prompts(tmp_path / "own.jsonl").source, file="own.jsonl"
    )
    assert any("own.jsonl: 3 prompts, sent as they are; 1 do not say" in caveat for caveat in study.caveats)
    plan = load_schedule(next((tmp_path / "out").glob("schedule-*.jsonl")))
    assert plan.asked_N is not None
    answers = [event for event in iter_events(tmp_path / "out" / "events.jsonl") if isinstance(event, RequestDone)]
    for event in answers:
        row = PROMPTS[int(plan.asked_N[event.stream % len(plan)])]
        # Made-up weights read a byte as a token.
        assert abs(event.prompt_tokens - len(str(row["prompt"]))) <= 1
        assert event.output_tokens == row.get("output_tokens", 128)


def test_what_llama_cpp_kept_of_conversations_is_what_was_predicted(tmp_path: Path, tiny: str) -> None:
    done = run_here(
        *("bench", tiny, "--concurrency", "1", "--requests", "9", "--turns", "3", "--prompt", "192", "--output", "16"),
        *("--slots", "1", "--warm-up", "0s", "--quiet", "--json", "--out", "out"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (point,) = msgspec.json.decode(done.stdout.encode(), type=LoadStudy).points
    assert point.answered == 9
    plan = load_schedule(next((tmp_path / "out").glob("schedule-*.jsonl")))
    policy = replace(TINY_POLICY, slot_caching=True, max_sequences=1)
    run, _ = simulate_schedule(plan, model("llama-3.2-1b"), policy, Fleet())
    predicted = run.cached_tokens_N.sum() / run.requests.prompt_tokens_N.sum()
    assert predicted > 0.4
    assert point.cached_prompt_share is not None
    # Chunks of 64 tokens keep it a little below.
    assert point.cached_prompt_share == pytest.approx(predicted, rel=0.1)
