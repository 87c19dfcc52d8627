"""Calibrating servers that run elsewhere: known shapes at URLs, what they cannot tell, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from golden_server import _tokenize

from breakeven.cli.main import dispatch
from breakeven.engines.openai_url import connect
from breakeven.errors import BreakevenError, UserError
from breakeven.forecast.calibration.fit import ALONE_WIDTH
from breakeven.forecast.calibration.probes import ProbeLoad
from breakeven.forecast.predict import predict
from breakeven.forecast.profiles import load_profile
from breakeven.measure.events import EventWriter, StudyStopped, read_events
from breakeven.measure.probe import ProbeRun
from breakeven.measure.runner import Candidate
from breakeven.model.arithmetic import file_bytes, total_params
from breakeven.model.resolve import resolve_spec
from breakeven.pages.calibration import calibration_lines
from breakeven.runs.calibrate import Calibration, calibrate
from breakeven.runs.observed import observations_of
from breakeven.runs.probed import CalibrateOptions
from breakeven.wire.behaviours import whole
from breakeven.wire.completions import ScriptedRequest
from breakeven.wire.scripted import Page, ScriptedServer, Step

LOADS = (ProbeLoad(1, 32, 10), ProbeLoad(2, 32, 10), ProbeLoad(1, 256, 6))
STEP_S, PROMPT_S = 0.03, 0.06
DENSE, MOE = "llama-3.2-1b", "olmoe-1b-7b"


@contextmanager
def serving(
    step_s: float = STEP_S, meta: dict[str, Any] | None = None, owned_by: str = "llamacpp", **settings: Any
) -> Iterator[ScriptedServer]:
    """A server that takes `step_s` for a token; `meta` is what it says of its model, as llama.cpp's does."""

    def script(question: ScriptedRequest) -> Step:
        return {"do": "ok", "first_s": PROMPT_S, "chunk_s": step_s, "end_s": 0.0, "usage_always": True}

    entry = {"id": "served", "object": "model", "owned_by": owned_by, **({"meta": meta} if meta else {})}
    pages: dict[str, Page] = {
        "/tokenize": _tokenize,
        "/v1/models": whole(json.dumps({"object": "list", "data": [entry]}).encode()),
    }
    with ScriptedServer(settings.pop("script", script), models=["served"], pages=pages, **settings) as server:
        yield server


def meta_of(name: str, format_name: str = "Q4_K_M", **other: float) -> dict[str, float]:
    spec = resolve_spec(name)
    told = {"n_vocab": spec.vocab, "n_embd": spec.hidden, "n_params": total_params(spec)}
    return {**told, "size": file_bytes(spec, format_name), **other}


def options(directory: Path, servers: Sequence[ScriptedServer], shapes: Sequence[str], **more: Any) -> CalibrateOptions:
    urls = tuple(f"{server.url}/v1#served" for server in servers)
    out = directory / "there.json"
    return CalibrateOptions(out=out, budget_s=0.01, loads=LOADS, urls=urls, shapes=tuple(shapes), **more)


def steps_seen(found: Calibration, names: Sequence[str]) -> list[float]:
    """What one sequence's step took by the log, of each model: the machine may have been slower than the script."""
    seen = observations_of(read_events(found.log_path), {name: resolve_spec(name) for name in names}, "Q4_K_M")
    alone = {
        each.model: each.seconds
        for each in seen
        if each.phase == "decode" and each.sequences == 1 and each.tokens < 100
    }
    return [alone[resolve_spec(name).name] for name in names]


def test_one_server_tells_its_step_and_what_it_cannot_tell(tmp_path: Path) -> None:
    with serving(meta=meta_of(DENSE)) as server:
        found = calibrate(options(tmp_path, [server], [f"{DENSE}:Q4_K_M"]))
        name = server.url.partition("://")[2]
    profile = load_profile(tmp_path / "there.json")
    assert profile == found.profile
    assert (profile.name, profile.machine, profile.memory_bytes) == (name, None, None)
    assert (profile.engine, profile.origin.engine) == ("llama.cpp", "llama.cpp")
    assert profile.origin.sources == [f"http://{name}/v1#served"]
    assert {"layer_s", "step_s", "overlap", "element_s", "routing_alpha"} <= set(profile.origin.at_prior)
    assert set(profile.origin.spread) <= {"weight_bytes_per_s", "kv_bytes_per_s", "decode_flops_per_s"} | {
        "prefill_flops_per_s",
        "sequence_s",
    }
    assert all(error.n == 0 and error.log_half_width >= ALONE_WIDTH for error in profile.errors)
    text = "\n".join(calibration_lines(found))
    assert "What was measured cannot tell:" in text
    assert "one shape cannot part them" in text
    assert "no model that was measured routes" in text
    assert "how much memory the machine has" in text
    assert f"--machine {tmp_path / 'there.json'}" in text
    # The server's own step comes back as it was seen, whatever the constants behind it.
    (point,) = predict([f"{DENSE}:Q4_K_M"], [str(tmp_path / "there.json")], contexts=(40,)).points
    (seen,) = steps_seen(found, [DENSE])
    assert seen > 0.9 * STEP_S
    assert point.step_s.value == pytest.approx(seen, rel=0.3)
    assert point.step_s.low < seen


def test_two_servers_of_two_kinds_tell_more(tmp_path: Path) -> None:
    with serving(meta=meta_of(DENSE)) as one, serving(meta=meta_of(MOE)) as other:
        found = calibrate(options(tmp_path, [one, other], [DENSE, MOE], format_name="Q4_K_M"))
    origin = found.profile.origin
    assert {each.seen.kind for each in found.left_out} == {"dense", "moe"}
    assert any("two shapes cannot part them" in words for words in origin.unknown)
    assert not any("routes" in words for words in origin.unknown)
    points = predict([DENSE, MOE], [str(found.path)], contexts=(40,), format_name="Q4_K_M").points
    # Both read about as many bytes for a token.
    assert [point.step_s.value for point in points] == pytest.approx(steps_seen(found, [DENSE, MOE]), rel=0.4)


@pytest.mark.parametrize(("ours", "slots"), [(True, {0, 1, 2}), (False, {None})])
def test_streams_of_a_probe_are_in_adjacent_slots_of_an_engine_of_ours(
    ours: bool, slots: set[int | None], tmp_path: Path
) -> None:
    """Others llama.cpp would not compute together; whose slots somebody else uses are left to the server."""
    with serving(0.001, meta=meta_of(DENSE)) as server, EventWriter(tmp_path / "log") as log:
        candidate = Candidate(
            "served", replace(connect(f"{server.url}/v1#served"), pid=os.getpid() if ours else None), lambda: None
        )
        ProbeRun(candidate, log, []).block(3, 32, 4, 0)
        asked = [json.loads(body) for body in server.seen.bodies if b"max_tokens" in body]
    assert {body.get("id_slot") for body in asked if body["max_tokens"] == 4} == slots


@pytest.mark.parametrize(
    ("told", "shape", "says"),
    [
        (meta_of(DENSE, n_vocab=32000), DENSE, "32,000 tokens in its vocabulary"),
        (meta_of(DENSE, n_embd=4096), DENSE, "4,096 wide"),
        (meta_of(DENSE, n_params=8e9), DENSE, "8 billion parameters"),
        (meta_of(DENSE, "Q8_0"), f"{DENSE}:Q4_K_M", "--format"),
        (meta_of(MOE), DENSE, "--shape"),
        (None, "llama-3.2-1c", "llama-3.2-1b"),
    ],
)
def test_a_shape_that_is_not_what_is_served_is_refused(
    told: dict[str, float] | None, shape: str, says: str, tmp_path: Path
) -> None:
    with serving(meta=told) as server, pytest.raises(UserError) as caught:
        calibrate(options(tmp_path, [server], [shape]))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_asked_is_one_line(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1#served"
    for words, says in (
        ([url], "--shape"),
        (["--shape", DENSE], "URLs given: 0, shapes: 1"),
        (["olmoe-1b-7b", "--shape", MOE], "is no URL"),
        ([url, "--shape", DENSE], "cannot be reached"),
        ([url, "--shape", DENSE, "--gpu-layers", "all"], "as it was started"),
    ):
        with pytest.raises(UserError) as caught:
            dispatch(["calibrate", *words, "--quiet", "--out", str(tmp_path / "there.json")])
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_server_that_dies_in_the_middle_leaves_what_was_measured(tmp_path: Path) -> None:
    asked: list[int] = []

    def script(question: ScriptedRequest) -> Step:
        asked.append(question.number)
        if len(asked) > 4 and not revived:
            return "500"
        return {"do": "ok", "first_s": PROMPT_S, "chunk_s": STEP_S, "end_s": 0.0, "usage_always": True}

    revived = False
    with serving(meta=meta_of(DENSE), script=script) as server:
        with pytest.raises(BreakevenError):
            calibrate(options(tmp_path, [server], [f"{DENSE}:Q4_K_M"]))
        log = read_events(tmp_path / "there-calibration" / "events.jsonl")
        assert isinstance(log[-1], StudyStopped)
        assert log[-1].because == "failed"
        assert not (tmp_path / "there.json").exists()
        revived = True
        found = calibrate(options(tmp_path, [server], [f"{DENSE}:Q4_K_M"], resume=True))
    assert found.profile.origin.points >= len(LOADS)
