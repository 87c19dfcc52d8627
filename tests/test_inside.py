"""The look inside, on real files: routing, time by kind, refusals, and a child that never outlives its parent."""

from __future__ import annotations

import ctypes
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inside_fixtures import CODE, PROSE
from rich.console import Console
from small_models import small
from typer.testing import CliRunner

import breakeven
from breakeven.cli.profile import app as profile_app
from breakeven.cli.trace import app as trace_app
from breakeven.engines.inside import layout, summary
from breakeven.engines.inside.child import Time, Timed
from breakeven.engines.inside.client import Inside, TooLongError, bare_decode_rate, profile, router_share, trace
from breakeven.engines.inside.observe import (
    ATTENTION,
    COMBINATION,
    DENSE,
    EXPERTS,
    HEAD,
    KINDS,
    REST,
    ROUTER,
    kind_of,
    run_ends,
)
from breakeven.engines.source import parse_source
from breakeven.engines.start import gguf_of
from breakeven.engines.synthesis.write import synthesise
from breakeven.errors import EngineError, NotSupportedError, UserError
from breakeven.hardware.reader import read_machine
from breakeven.lab.surgery.experts import split
from breakeven.measure.events import BackendReady
from breakeven.measure.paired.plan import Plan
from breakeven.measure.progress import ProgressState
from breakeven.model.architecture import MoeFfn
from breakeven.pages.progress import Progress
from breakeven.runs.result import CompareFacts, look_inside
from tests.cli_fixtures import run_here
from tests.test_compare import write_config

runner = CliRunner()


@pytest.fixture(scope="module")
def moe_gguf(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 cut into 8 experts of which a seeded random router picks 2."""
    out = tmp_path_factory.mktemp("inside") / "moe.gguf"
    split(smollm2_gguf, out, 8, 2)
    return out


def test_a_trace_gives_every_layers_experts_for_every_token(moe_gguf: Path) -> None:
    traced = trace(moe_gguf, {"prose": PROSE * 4, "code": CODE})
    assert traced.layers == tuple(range(30))
    with Inside(moe_gguf) as inside:
        lengths = {"prose": len(inside.tokenize(PROSE * 4)), "code": len(inside.tokenize(CODE))}
    assert lengths["prose"] > 64, "the text must span more than one batch"
    for label, ids in traced.ids.items():
        assert ids.shape == (30, lengths[label], 2)
        assert ids.min() >= 0
        assert ids.max() < 8
        assert (ids[..., 0] != ids[..., 1]).all(), "top-k picks different experts"
    kept = traced.routing()
    assert kept.tokens == sum(lengths.values())
    assert np.allclose(np.sum(kept.frequencies, axis=1), 2)


def test_traced_experts_are_those_the_router_weights_choose(smollm2_gguf: Path, tmp_path: Path) -> None:
    # With a router of zeros every expert is equal; using all of them must name each exactly once.
    split(smollm2_gguf, tmp_path / "all.gguf", 4)
    ids = trace(tmp_path / "all.gguf", {"prose": PROSE}).ids["prose"]
    assert (np.sort(ids, axis=2) == np.arange(4)).all()


def test_token_ids_and_a_limit_are_taken(moe_gguf: Path) -> None:
    traced = trace(moe_gguf, {"long": list(range(100, 140)), "short": [5, 6]}, max_tokens=30)
    assert [ids.shape[1] for ids in traced.ids.values()] == [30, 2]
    assert traced.truncated == ("long",)


def test_prompts_of_one_file_are_sequences_of_their_own_told_together(moe_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text(f"{CODE.splitlines()[0]}\n{CODE.splitlines()[0]}\n")
    together = breakeven.trace(str(moe_gguf), prompts=tmp_path / "own.txt", engine=None)
    (text,) = together.texts
    assert text.label == "own.txt"
    alone = trace(moe_gguf, {"one": CODE.splitlines()[0]}).ids["one"]
    twice = trace(moe_gguf, {"own": [CODE.splitlines()[0]] * 2}).ids["own"]
    # The second begins anew: it is routed as the first was.
    assert np.array_equal(twice, np.concatenate([alone, alone], axis=1))
    assert together.tokens == twice.shape[1]
    cut = trace(moe_gguf, {"own": [CODE.splitlines()[0]] * 2}, max_tokens=alone.shape[1] + 1)
    assert cut.ids["own"].shape[1] == alone.shape[1] + 1
    assert cut.truncated == ("own",)


def test_a_dense_model_has_no_routing_to_trace(smollm2_gguf: Path) -> None:
    with pytest.raises(NotSupportedError, match=r"dense.*breakeven profile"):
        trace(smollm2_gguf, {"prose": PROSE})


def test_a_profile_names_the_parts_of_a_dense_and_of_a_moe_step(smollm2_gguf: Path, moe_gguf: Path) -> None:
    dense = profile(smollm2_gguf, prompt_tokens=16, steps=4)
    assert {node.kind for node in dense.nodes} == {ATTENTION, DENSE, HEAD, REST}
    assert dense.router_share_of_moe_block is None
    moe = profile(moe_gguf, phase="prefill", prompt_tokens=16, steps=2)
    assert {node.kind for node in moe.nodes} == set(KINDS) - {DENSE}
    assert moe.tokens == 16
    assert all(node.seconds > 0 for node in moe.nodes)
    assert moe.router_share_of_moe_block is not None
    assert 0 < moe.router_share_of_moe_block < 1
    kinds: dict[str, float] = {}
    for node in moe.nodes:
        kinds[node.kind] = kinds.get(node.kind, 0.0) + node.seconds
    block = kinds[ROUTER] + kinds[EXPERTS] + kinds[COMBINATION]
    assert moe.router_share_of_moe_block == pytest.approx(kinds[ROUTER] / block)


def test_a_bare_loop_decodes(smollm2_gguf: Path) -> None:
    assert bare_decode_rate(smollm2_gguf, prompt_tokens=4, output_tokens=4) > 0


@pytest.mark.parametrize("shift", [4, 8])
def test_a_library_with_another_layout_is_refused(shift: int) -> None:
    known = layout.ContextParams()
    for name, value in layout.CONTEXT_DEFAULTS.items():
        setattr(known, name, value)
    layout.verify(known, layout.CONTEXT_DEFAULTS)
    # The same bytes as a build with one more field in front of n_seq_max would lay them out.
    raw = bytes(known)
    other = layout.ContextParams.from_buffer_copy((raw[:12] + bytes(shift) + raw[12:])[: ctypes.sizeof(known)])
    with pytest.raises(NotSupportedError, match="memory layout is not the one known"):
        layout.verify(other, layout.CONTEXT_DEFAULTS)


def test_a_dead_child_is_an_error_with_its_last_lines(smollm2_gguf: Path) -> None:
    with Inside(smollm2_gguf) as inside:
        (inside.folder / "stderr").write_text("first\nggml: assertion failed\n")
        os.kill(inside.pid, signal.SIGSEGV)
        with pytest.raises(EngineError, match=r"signal 11.*assertion failed"):
            inside.tokenize("hello")


def test_a_killed_parent_takes_its_child_along(smollm2_gguf: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from breakeven.engines.inside.client import Inside\n"
        "inside = Inside(Path(sys.argv[1])); print(inside.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(smollm2_gguf)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_files_that_cannot_be_looked_into(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text("hello")
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match="not a GGUF"):
        Inside(tmp_path / "a.gguf")
    with pytest.raises(EngineError, match="cannot load"):
        Inside(tmp_path / "b.gguf")
    with pytest.raises(UserError, match="cannot be read"):
        Inside(tmp_path / "none.gguf")


# Nodes as build 11549 prints them, with the sources that decide; `previous` is what stood before.
@pytest.mark.parametrize(
    ("name", "operation", "sources", "previous", "kind"),
    [
        ("Qcur-0", "MUL_MAT", ["blk.0.attn_q.weight", "attn_norm-0"], REST, ATTENTION),
        ("Qcur-0", "ADD", ["Qcur-0", "blk.0.attn_q.bias"], ATTENTION, ATTENTION),
        ("attn_norm-0", "MUL", ["norm-0", "blk.0.attn_norm.weight"], REST, REST),
        ("norm-0", "RMS_NORM", ["Qcur-0"], ATTENTION, REST),
        ("cache_k_l0 (view)", "SET_ROWS", ["Kcur-0 (view)"], ATTENTION, ATTENTION),
        ("Qcur-0 (view)", "VIEW", ["Qcur-0"], ATTENTION, None),
        ("node_24", "FLASH_ATTN_EXT", ["Qcur-0 (view) (permuted)"], ATTENTION, ATTENTION),
        ("attn_out-0", "MUL_MAT", ["blk.0.attn_output.weight", "kqv_out-0"], ATTENTION, ATTENTION),
        ("ffn_inp-0", "ADD", ["attn_out-0", "embd"], ATTENTION, REST),
        ("kv_cmpr_pe-1", "MUL_MAT", ["blk.1.attn_kv_a_mqa.weight", "attn_norm-1"], REST, ATTENTION),
        ("q_pe-1", "ROPE", ["q_pe-1"], ATTENTION, ATTENTION),
        ("sa_out-0", "ADD", ["attn_post_norm-0", "embd"], REST, REST),
        ("ffn_moe_logits-2", "MUL_MAT", ["blk.2.ffn_gate_inp.weight", "ffn_norm-2"], REST, ROUTER),
        ("ffn_moe_argsort-2", "ARGSORT", ["ffn_moe_probs-2"], ROUTER, ROUTER),
        ("ffn_moe_weights-2", "GET_ROWS", ["ffn_moe_probs-2 (reshaped)"], ROUTER, COMBINATION),
        ("ffn_moe_up-2", "MUL_MAT_ID", ["blk.2.ffn_up_exps.weight", "ffn_norm-2 (reshaped)"], COMBINATION, EXPERTS),
        ("ffn_moe_gate_biased-2", "ADD_ID", ["ffn_moe_gate-2", "blk.2.ffn_gate_exps.bias"], EXPERTS, EXPERTS),
        ("ffn_moe_swiglu-2", "GLU", ["ffn_moe_gate-2", "ffn_moe_up-2"], EXPERTS, EXPERTS),
        ("ffn_moe_weighted-2", "MUL", ["ffn_moe_down-2", "ffn_moe_weights-2"], EXPERTS, COMBINATION),
        ("node_77", "ADD", [" (view)", " (view)"], COMBINATION, COMBINATION),
        ("ffn_shexp-2", "MUL_MAT", ["blk.2.ffn_down_shexp.weight", "ffn_swiglu-2"], COMBINATION, EXPERTS),
        ("shared_expert_gate-2", "MUL_MAT", ["blk.2.ffn_gate_inp_shexp.weight", "x"], COMBINATION, EXPERTS),
        ("ffn_out-2", "ADD", ["ffn_moe_out-2", "ffn_shexp-2"], EXPERTS, COMBINATION),
        ("ffn_swiglu-2", "GLU", ["ffn_gate-2", "ffn_up-2"], EXPERTS, EXPERTS),
        ("ffn_swiglu-0", "GLU", ["ffn_gate-0", "ffn_up-0"], DENSE, DENSE),
        ("ffn_out-0", "MUL_MAT", ["blk.0.ffn_down.weight", "ffn_swiglu-0"], DENSE, DENSE),
        ("ffn_post_norm-0", "MUL", ["norm-0", "blk.0.post_ffw_norm.weight"], REST, REST),
        ("l_out-0", "ADD", ["ffn_out-0", "ffn_inp-0"], DENSE, REST),
        ("embd", "GET_ROWS", ["token_embd.weight", "inp_tokens"], REST, REST),
        ("result_output", "MUL_MAT", ["token_embd.weight", "result_norm"], REST, HEAD),
        ("result_output", "SCALE", ["node_900"], HEAD, HEAD),
    ],
)
def test_nodes_are_placed(name: str, operation: str, sources: list[str], previous: str, kind: str | None) -> None:
    assert kind_of(name, operation, sources, previous) == kind


def test_runs_end_where_the_kind_changes_and_nowhere_else() -> None:
    kinds = [REST, None, REST, ROUTER, None, ROUTER, None, HEAD, None]
    assert run_ends(kinds) == [None, None, REST, None, None, ROUTER, None, HEAD, None]


def test_router_share_counts_only_the_moe_block() -> None:
    seconds = {ROUTER: 1.0, EXPERTS: 6.0, COMBINATION: 1.0, ATTENTION: 92.0}
    assert router_share(seconds) == pytest.approx(1 / 8)


@settings(max_examples=50, deadline=None)
@given(e=st.integers(2, 16), k_share=st.floats(0.05, 1), tokens=st.integers(1, 30), seed=st.integers(0, 99))
def test_statistics_of_any_routing_are_within_their_bounds(e: int, k_share: float, tokens: int, seed: int) -> None:
    k = max(1, int(e * k_share))
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((3, tokens, e)), axis=2)[..., :k].astype(np.int32)
    loads = summary.frequencies(ids, e)
    assert np.allclose(loads.sum(axis=1), k)
    assert (summary.max_over_mean(loads) <= e / k + 1e-9).all()
    assert ((summary.entropy(loads) >= -1e-9) & (summary.entropy(loads) <= 1 + 1e-9)).all()
    distinct = summary.distinct(ids, tokens, 1, rng)
    assert distinct.tolist() == [len(np.unique(layer)) for layer in ids]
    assert np.allclose(summary.specialisation([loads, summary.frequencies(ids[:, :1], e)]).sum(axis=(0, 2)), 0)


def test_statistics_of_a_known_routing() -> None:
    ids = np.array([[[0, 1], [0, 2], [0, 1], [0, 2]]], np.int32)
    loads = summary.frequencies(ids, 4)
    assert loads.tolist() == [[1.0, 0.5, 0.5, 0.0]]
    assert summary.max_over_mean(loads).tolist() == [2.0]
    assert summary.variation(loads)[0] == pytest.approx(np.sqrt(0.125) / 0.5)
    assert summary.entropy(loads)[0] == pytest.approx(1.5 / 2)
    assert summary.dead_experts(loads) == [(0, 3)]
    assert summary.entropy(np.ones((1, 4)))[0] == pytest.approx(1)


def test_uniform_expectation_is_the_mean_over_all_choices() -> None:
    pairs = list(itertools.combinations(range(5), 2))
    steps = [len(set(a + b)) for a in pairs for b in pairs]
    assert summary.uniform_distinct(5, 2, 2) == pytest.approx(np.mean(steps))


def test_trace_prints_a_sentence_tables_and_json(moe_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "prose.txt").write_text(PROSE)
    (tmp_path / "code.py").write_text(CODE)
    arguments = [str(moe_gguf), "--text", str(tmp_path / "prose.txt"), "--text", str(tmp_path / "code.py")]
    shown = runner.invoke(trace_app, arguments)
    assert shown.exit_code == 0
    assert shown.stdout.startswith("moe routed ")
    assert "if uniform" in shown.stdout
    told = json.loads(runner.invoke(trace_app, [*arguments, "--json"]).output)
    assert told["schema"] == "breakeven.trace/1"
    assert [text["label"] for text in told["texts"]] == ["prose.txt", "code.py"]
    assert np.shape(told["texts"][0]["specialisation"]) == (30, 8)
    assert told["steps"][0]["distinct"] == told["steps"][0]["uniform"] == 2


def test_what_is_under_way_is_told_once_a_second(smollm2_gguf: Path) -> None:
    said: list[tuple[float, str, float]] = []
    with Inside(smollm2_gguf, 1, on_step=lambda what, share: said.append((time.monotonic(), what, share))) as inside:
        inside.ask(Time(phase="decode", tokens=[5] * 35, steps=32), Timed)
    assert said
    assert {what for _, what, _ in said} <= {"loading", "decode"}
    assert all(0 <= share <= 1 for *_, share in said)
    assert len(said) <= said[-1][0] - said[0][0] + 2
    out = io.StringIO()
    with Progress(Console(file=out, width=80)) as progress:
        progress.update(ProgressState("routing", 3.0, subject="moe", share=0.25))
    assert out.getvalue() == "routing moe: 25 %, 3 s\n"


def test_synthetic_weights_are_written_before_a_look_with_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said: list[ProgressState] = []
    breakeven.profile(write_config(tmp_path, "llama"), prompt_tokens=4, steps=1, on_progress=said.append)
    assert said[0].phase == "writing weights"
    assert said[0].total_bytes


def test_a_look_ends_at_its_limit_and_leaves_no_child(smollm2_gguf: Path) -> None:
    began = time.monotonic()
    with pytest.raises(TooLongError, match="took longer than 2 s"), Inside(smollm2_gguf, limit_s=2.0) as inside:
        inside.greedy([5], 100_000)
    assert time.monotonic() - began < 300, "all of it takes an hour"
    with pytest.raises(TooLongError):
        Inside(smollm2_gguf, limit_s=0.0)
    assert not [child for child in psutil.Process().children() if "inside.child" in " ".join(child.cmdline())]


def test_a_comparison_goes_on_where_looking_inside_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sources = [parse_source(write_config(tmp_path, name)) for name in ("llama", "olmoe")]
    paths = [gguf_of(source) for source in sources]
    plan = Plan(streams=(1,), prompt_tokens=4, output_tokens=4)
    asked = CompareFacts(plan, sources, ["Q4_K_M", "Q4_K_M"], paths, read_machine(), False, [])
    ready = [BackendReady(model=source.name, settings={"engine": "llama.cpp"}) for source in sources]
    said: list[str] = []
    monkeypatch.setattr("breakeven.runs.result.INSIDE_S", 0.0)
    found = look_inside(asked, ready, 1, lambda what, subject, share: said.append(f"{what} {subject}".strip()))
    assert not found.profiles
    late = "took too long (more than 0 s); run `breakeven profile` for it."
    assert found.caveats == [f"Looking inside llama {late}", f"Looking inside olmoe {late}"]
    assert said == ["looking inside llama", found.caveats[0], "looking inside olmoe", found.caveats[1]]
    monkeypatch.setattr("breakeven.runs.result.INSIDE_S", 500.0)
    found = look_inside(asked, ready, 1, lambda what, subject, share: None)
    assert [(each.model, each.phase) for each in found.profiles] == [
        (source.name, phase) for source in sources for phase in ("decode", "prefill")
    ]
    assert len(found.routings) == 1
    assert not found.caveats


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--engine", "vllm"], "--engine vllm: only the built-in llama.cpp can be looked into"),
        (["--cpu-moe", "2"], "--cpu-moe: the look inside has no such setting; it takes --gpu-layers alone"),
        (["--cpu-moe", "auto"], "--cpu-moe: the look inside has no such setting"),
        (["--device", "CUDA0"], "--device: the look inside has no such setting"),
        (["--tensor-split", "1,1"], "--tensor-split: the look inside has no such setting"),
        (["--gpu-layers", "3"], "llama.cpp (built in) lists no GPU"),
        (["--gpu-layers", "some"], "--gpu-layers some: give auto, all"),
    ],
)
@pytest.mark.parametrize("verb", ["trace", "profile"])
def test_placements_that_a_look_does_not_know_are_refused(
    verb: str, words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("breakeven.engines.devices.embedded_devices", lambda: ())
    (tmp_path / "x").write_text(PROSE)
    given = ["--text", str(tmp_path / "x")] if verb == "trace" else []
    done = run_here(verb, write_config(tmp_path, "olmoe"), *given, *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_what_stands_behind_a_models_at_is_refused_too(tmp_path: Path) -> None:
    done = run_here("profile", write_config(tmp_path, "olmoe") + "@llama-server,cpu-moe=2")
    assert done.returncode == 2
    assert "--engine llama-server: only the built-in llama.cpp" in done.stderr


def test_a_look_may_be_told_to_leave_a_gpu_alone(moe_gguf: Path) -> None:
    with Inside(moe_gguf) as usual, Inside(moe_gguf, gpu_layers=0) as on_cpu:
        assert on_cpu.greedy([5, 6, 7], 4) == usual.greedy([5, 6, 7], 4)


def test_profile_prints_json(smollm2_gguf: Path) -> None:
    done = runner.invoke(profile_app, [str(smollm2_gguf), "--prompt", "8", "--steps", "2", "--json"])
    told = json.loads(done.output)
    assert told["schema"] == "breakeven.profile/1"
    assert [each["phase"] for each in told["profiles"]] == ["decode", "prefill"]


def test_a_text_that_is_not_text_is_refused(moe_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    done = runner.invoke(trace_app, [str(moe_gguf), "--text", str(tmp_path / "x")])
    assert isinstance(done.exception, UserError)


@pytest.mark.parametrize(
    ("family", "absent"),
    [
        ("gemma2", {ROUTER, EXPERTS, COMBINATION}),
        ("phimoe", {DENSE}),
        ("gpt-oss", {DENSE}),
        ("deepseek2", set()),
        ("lfm2moe", set()),
    ],
)
def test_every_family_shows_its_parts(family: str, absent: set[str], tmp_path: Path) -> None:
    spec = small(family)
    path = synthesise(spec, "F16", tmp_path / "small.gguf")
    kinds = {node.kind for node in profile(path, prompt_tokens=8, steps=1).nodes}
    assert kinds == set(KINDS) - absent
    routing_layers = tuple(i for i, layer in enumerate(spec.layers) if isinstance(layer.ffn, MoeFfn))
    if routing_layers:
        assert trace(path, {"prose": PROSE}).layers == routing_layers
