"""Engine and placement: as typed for all candidates, behind the name of one, in a study's and a gateway's file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from families_fixtures import small_spec

import breakeven
from breakeven.answer.study.load import read_study
from breakeven.answer.study.price import PlacementKeys
from breakeven.engines import start
from breakeven.engines.devices import EngineDevice
from breakeven.engines.kinds import ENGINES, engine_named
from breakeven.engines.source import parse_source, parse_sources
from breakeven.errors import UserError
from breakeven.gateway.plan.load import read_gateway
from breakeven.gateway.plan.write import write_gateway
from breakeven.gateway.serve.run import source_of
from breakeven.hardware.placement import AUTO, Placement, split_served
from breakeven.hardware.reader import read_machine
from breakeven.runs.served import EngineWords, ServedAs, check_fit, read_through, served
from tests.cli_fixtures import run_here
from tests.golden_server import Script, golden_server
from tests.test_compare import write_config
from tests.test_gguf_files import write_split
from tests.vulkan_fixtures import lent_device, llama_server

__all__ = ["lent_device", "llama_server"]


def test_what_stands_behind_the_at_is_the_candidates_own() -> None:
    text = "olmoe-1b-7b:Q8_0@llama-server,gpu-layers=all,cpu-moe=12,device=CUDA0+CUDA1,tensor-split=3/1"
    source = parse_source(text)
    assert (source.name, source.text, source.format_name) == (text, "olmoe-1b-7b:Q8_0", "Q8_0")
    assert source.engine == "llama-server"
    assert EngineWords(cpu_moe=3, gpu_layers=7).placement(source) == Placement(
        gpu_layers="all", cpu_moe=12, devices=("CUDA0", "CUDA1"), tensor_split=(3.0, 1.0)
    )


def test_a_directory_with_weights_is_never_measured_with_made_up_ones(tmp_path: Path) -> None:
    given = Path(write_config(tmp_path, "llama"))
    bare = parse_source(str(given))
    assert {start.format_of(bare, None, engine) for engine in ENGINES.values()}
    (given / "model.onnx").touch()
    for engine in ENGINES.values():
        with pytest.raises(UserError, match=r"an ONNX graph \(model\.onnx\), which no engine here serves"):
            start.format_of(bare, None, engine)
    header = b'{"packed":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (given / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    for text in (str(given), f"{given}:Q8_0"):
        source = parse_source(text)
        for engine in ENGINES.values():
            if engine.reads_gguf:
                with pytest.raises(UserError, match=rf"`breakeven export {given} --to gguf --out llama\.gguf`"):
                    start.weights_of(source, None, 0, None, engine=engine.name)
        if source.format_name is None:
            assert start.format_of(source, None, ENGINES["vllm"]) in ("BF16", "F16")
    shape = parse_source(str(given / "config.json"))
    assert start.format_of(shape, None, ENGINES["llama.cpp"])


def test_what_it_does_not_say_is_as_the_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    own, plain = parse_sources(["olmoe-1b-7b@cpu-moe=2", "llama-3.2-1b"])
    asked = EngineWords(engine="llama.cpp", gpu_layers="all", cpu_moe="auto", flags=("--no-mmap",))
    with started_with(monkeypatch, []):
        ways, said = served(asked, [own, plain], read_machine())
    assert [way.placement for way in ways] == [
        Placement(gpu_layers="all", cpu_moe=2),
        Placement(gpu_layers="all", cpu_moe="auto"),
    ]
    assert all(way.arguments == ("--no-mmap",) for way in ways)
    assert said[-1] == "llama-3.2-1b has no experts; --cpu-moe does nothing for it."
    assert not any("olmoe" in words for words in said)


def test_one_model_in_two_places_is_no_a_a_run_and_twice_the_same_is() -> None:
    two = parse_sources(["olmoe-1b-7b@cpu-moe=2", "olmoe-1b-7b@cpu-moe=4"])
    assert two[0].question != two[1].question
    same = parse_sources(["olmoe-1b-7b@cpu-moe=2", "olmoe-1b-7b@cpu-moe=2"])
    assert same[0].question == same[1].question
    assert [s.name for s in same] == ["olmoe-1b-7b@cpu-moe=2", "olmoe-1b-7b@cpu-moe=2 (again)"]


def test_a_file_with_an_at_in_its_name_is_a_file(tmp_path: Path) -> None:
    directory = Path(write_config(tmp_path, "olmoe")).rename(tmp_path / "a@b")
    assert parse_source(str(directory)).engine is None
    assert split_served("some@where/model") == ("some@where/model", None, {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("olmoe-1b-7b@cpu-moe=many", "--cpu-moe many"),
        ("olmoe-1b-7b@layers=3", "'layers=3' is no engine"),
        ("olmoe-1b-7b@llama.cpp,vllm", "'vllm' is no engine and none of gpu-layers="),
        ("olmoe-1b-7b@", "'' is no engine"),
        ("olmoe-1b-7b@lama.cpp", "did you mean llama.cpp"),
    ],
)
def test_words_that_are_none_are_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        served(EngineWords(), [parse_source(text)], read_machine())


@pytest.mark.parametrize("verb", ["compare", "bench", "capacity"])
def test_the_placement_of_a_server_is_its_own(verb: str, tmp_path: Path) -> None:
    with golden_server(Script(ttft_s=0.0, itl_s=0.0)) as server:
        target = f"{server.url}/v1#golden"
        words = {
            "compare": [target, target],
            "bench": [target, "--rate", "1"],
            "capacity": [target, "--slo", "ttft=1s"],
        }[verb]
        done = run_here(verb, *words, "--gpu-layers", "all", cwd=tmp_path)
    assert done.returncode == 2
    assert "keeps its weights where they lie" in done.stderr


@contextmanager
def started_with(monkeypatch: pytest.MonkeyPatch, seen: list[start.Serving]) -> Iterator[None]:
    """Engines that only say how they would have been started."""

    def note(source: Any, path: Any, serving: start.Serving) -> Any:
        seen.append(serving)
        raise UserError("not started")

    changed = replace(ENGINES["llama.cpp"], server=note, check_placement=lambda placement, flags: None)
    monkeypatch.setitem(ENGINES, "llama.cpp", changed)
    yield


VERBS: dict[str, Callable[[str], list[str]]] = {
    "compare": lambda model: ["compare", model, model],
    "compare under load": lambda model: ["compare", model, model, "--rate", "1"],
    "bench": lambda model: ["bench", model, "--rate", "1"],
    "capacity": lambda model: ["capacity", model, "--slo", "ttft=1s"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_hands_placement_and_flags_to_the_engine(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen: list[start.Serving] = []
    model = write_config(tmp_path, "olmoe")
    words = [
        *("--engine", "llama.cpp", "--gpu-layers", "3", "--cpu-moe", "auto", "--device", "CUDA1", "--quiet"),
        *("--tensor-split", "3,1", "--engine-flag", "-v", "--", "--flash-attn", "on"),
    ]
    with started_with(monkeypatch, seen):
        done = run_here(*VERBS[verb](model), *words, cwd=tmp_path)
    assert "not started" in done.stderr, done.stderr
    asked = Placement(gpu_layers=3, cpu_moe="auto", devices=("CUDA1",), tensor_split=(3.0, 1.0))
    assert (seen[0].placement, seen[0].arguments) == (asked, ("-v", "--flash-attn", "on"))


GIVEN: dict[str, Callable[[str], list[str]]] = {**VERBS, "calibrate": lambda model: ["calibrate", "--budget", "1s"]}
CANNOT_BE = {
    "no GPU": (["--gpu-layers", "all"], "llama.cpp (built in) lists no GPU"),
    "no such device": (["--device", "CUDA7"], "--device CUDA7: the engine has no such device (it lists: none)"),
    "no flags": (["--engine-flag=--no-mmap"], "--no-mmap: the embedded llama.cpp takes no flags"),
    "no placement": (["--engine", "mlx", "--cpu-moe", "2"], "--cpu-moe: MLX has no such setting"),
}


@pytest.mark.parametrize("asked", CANNOT_BE)
@pytest.mark.parametrize("verb", GIVEN)
def test_what_cannot_be_here_is_refused_before_anything_is_written(
    verb: str, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("breakeven.engines.devices.embedded_devices", lambda: ())
    words, says = CANNOT_BE[asked]
    engine = [] if "--engine" in words else ["--engine", "llama.cpp"]
    done = run_here(*GIVEN[verb](write_config(tmp_path, "olmoe")), *engine, *words, "--quiet", cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert not list((tmp_path / "cache").rglob("*.gguf"))
    assert not (tmp_path / "results").exists()


def test_a_device_that_a_real_llama_server_does_not_list_is_refused_before_anything_is_written(
    lent_device: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = write_config(tmp_path, "llama")
    asked = ["--engine", "llama-server", "--device", "RPC1", "--quiet", "--", *lent_device]
    done = run_here("bench", model, "--rate", "1", *asked, cwd=tmp_path)
    assert done.returncode == 2
    assert "--device RPC1: the engine has no such device (it lists: RPC0 (" in done.stderr
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_what_is_said_of_a_run_is_said_once_and_has_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("breakeven.runs.served.RESERVE", 0.0)
    models = [write_config(tmp_path, "llama"), write_config(tmp_path, "olmoe")]
    with started_with(monkeypatch, []):
        done = run_here("compare", *models, "--engine", "llama.cpp", "--cpu-moe", "2", cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert [line for line in lines if "has no experts" in line] == [
        "llama has no experts; --cpu-moe does nothing for it."
    ]
    assert [line for line in lines if "take turns" in line and line.endswith("at 1 GB/s.")]


@pytest.mark.parametrize(
    ("card_gb", "host_gb", "placement", "said"),
    [
        # Experts in host memory, all else on a card that would not hold both models whole.
        (23.0, 64.0, Placement(gpu_layers="all", cpu_moe=99), None),
        # A card that would hold both is of no help to experts that are told to lie in host memory.
        (80.0, 26.0, Placement(gpu_layers="all", cpu_moe=99), "in the 26.0 GB that are free"),
        (80.0, 64.0, AUTO, None),
        # The second would be fitted into what the first has left.
        (23.0, 64.0, AUTO, "on the device"),
        # Half of the layers each: the card holds both halves, and not both models.
        (23.0, 64.0, Placement(gpu_layers=24), None),
        (None, 64.0, AUTO, "on the device"),
    ],
)
def test_what_fits_side_by_side_is_counted_by_place(
    card_gb: float | None, host_gb: float, placement: Placement, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = None if card_gb is None else round(card_gb * 1e9)
    card = EngineDevice(engine="llama.cpp", place="CUDA0", description="a card", free_bytes=free)
    monkeypatch.setattr("breakeven.runs.served.listed", lambda: [card])
    machine: Any = SimpleNamespace(available_memory_bytes=round(host_gb * 1e9))
    sources = parse_sources(["qwen3-30b-a3b", "moonlight-16b-a3b"])
    ways = [ServedAs(engine_named("llama.cpp"), placement)] * 2
    why = check_fit(sources, ways, ["Q4_K_M"] * 2, 4096, 1, machine, "f16")
    if said is None:
        assert why is None
    else:
        assert why is not None
        assert f"do not fit side by side {said} (qwen3-30b-a3b 2" in why


def test_calibrate_hands_them_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("breakeven.runs.calibrate.weights_of", lambda *_, **__: tmp_path)
    seen: list[start.Serving] = []
    with started_with(monkeypatch, seen):
        words = ("--engine", "llama.cpp", "--cpu-moe", "2", "--kv", "q8_0", "--quiet", "--", "-nkvo")
        done = run_here("calibrate", *words, cwd=tmp_path)
    assert "not started" in done.stderr, done.stderr
    assert (seen[0].placement, seen[0].arguments, seen[0].kv) == (Placement(cpu_moe=2), ("-nkvo",), "q8_0")


def test_calibrate_refuses_a_kv_type_that_cannot_be(tmp_path: Path) -> None:
    done = run_here("calibrate", "--engine", "vllm", "--kv", "q8_0", "--list", cwd=tmp_path)
    assert done.returncode == 2
    assert "q8_0" in done.stderr
    done = run_here("calibrate", "http://127.0.0.1:9/v1#x", "--shape", "olmoe-1b-7b", "--kv", "q8_0", cwd=tmp_path)
    assert done.returncode == 2
    assert "leave --engine, --threads, --kv" in done.stderr


def test_python_takes_the_same_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--gpu-layers some"):
        breakeven.compare(["olmoe-1b-7b", "llama-3.2-1b"], gpu_layers="some", out=tmp_path / "out")
    options = breakeven.LoadOptions(cpu_moe="few", out=tmp_path / "out")
    with pytest.raises(UserError, match="--cpu-moe few"):
        breakeven.bench("olmoe-1b-7b", breakeven.Traffic(rate="1"), options=options)
    assert not (tmp_path / "out").exists()


def test_serve_starts_models_as_typed_and_as_their_names_say(monkeypatch: pytest.MonkeyPatch) -> None:
    with started_with(monkeypatch, []):
        read = source_of(
            ["olmoe-1b-7b@cpu-moe=4", "llama-3.2-1b"],
            None,
            engine="llama.cpp",
            placement={"gpu_layers": "all", "cpu_moe": 2, "device": None},
        )
        dense, moe = read().backends
    assert dense.local is not None
    assert moe.local is not None
    assert dense.local.placement == Placement(gpu_layers="all", cpu_moe=2)
    assert (moe.local.placement, moe.local.model) == (Placement(gpu_layers="all", cpu_moe=4), "olmoe-1b-7b")
    plain = source_of(["llama-3.2-1b"], None)().backends[0]
    assert plain.local is not None
    assert (plain.local.engine, plain.local.placement) == ("llama.cpp", None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["llama-3.2-1b", "--gpu-layers", "all"], "llama.cpp (built in) lists no GPU"),
        (["llama-3.2-1b@device=CUDA9"], "--device CUDA9: the engine has no such device"),
        (["llama-3.2-1b", "--engine", "vllm", "--cpu-moe", "2"], "--cpu-moe: vLLM has no such setting"),
        (["llama-3.2-1b", "--engine", "lama.cpp"], "did you mean llama.cpp"),
        (["http://127.0.0.1:9/v1#x", "--cpu-moe", "2"], "keeps its weights where they lie"),
        (["gateway.yaml", "--gpu-layers", "0"], "engine and placement options go with models"),
    ],
)
def test_serve_refuses_what_cannot_be(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("breakeven.engines.devices.embedded_devices", lambda: ())
    (tmp_path / "gateway.yaml").write_text("backends: []\n")
    done = run_here("serve", *words, "--check", cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr


STUDY = {
    "load": {"rate": "2/s", "prompt": 512, "output": 128},
    "slo": {"ttft": "2s"},
    "candidates": [
        {
            "model": "olmoe-1b-7b",
            "machine": "rtx-4090",
            "price": {"rented": {"usd_per_hour": 1}},
            "engine": "llama-server",
            "placement": {"gpu_layers": "all", "cpu_moe": 4, "device": ["CUDA0", "CUDA1"], "tensor_split": [3, 1]},
        }
    ],
}


def written(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_study_carries_the_placement_of_a_candidate(tmp_path: Path) -> None:
    candidate = read_study(written(tmp_path / "study.yaml", STUDY)).candidates[0]
    assert candidate.engine == "llama-server"
    asked = Placement(gpu_layers="all", cpu_moe=4, devices=("CUDA0", "CUDA1"), tensor_split=(3.0, 1.0))
    assert candidate.placement == asked
    assert PlacementKeys.of(asked).placement() == asked


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"cpu_moe": "most"}, "auto, or of how many layers the experts stay"),
        ({"gpu_layer": 3}, "did you mean gpu_layers"),
        ({"tensor_split": "a,b"}, "a share for each device"),
        ({"override_tensor": ["exps"]}, "give PATTERN=PLACE"),
    ],
)
def test_a_placement_that_cannot_be_names_file_and_key(keys: dict[str, object], says: str, tmp_path: Path) -> None:
    wrong = {**STUDY, "candidates": [{**STUDY["candidates"][0], "placement": keys}]}  # type: ignore[dict-item, index]
    with pytest.raises(UserError, match=r"candidates\.0\.placement") as refused:
        read_study(written(tmp_path / "study.yaml", wrong))
    assert says in str(refused.value)


def test_a_gateway_starts_its_engines_where_they_are_to_lie(tmp_path: Path) -> None:
    local = {"model": "olmoe-1b-7b", "placement": {"cpu_moe": "auto"}, "arguments": ["--no-mmap"]}
    file = written(tmp_path / "gateway.yaml", {"backends": [{"name": "moe", "local": local}]})
    plan = read_gateway(file, {})
    assert plan.backends[0].local is not None
    assert plan.backends[0].local.placement == Placement(cpu_moe="auto")
    assert plan.backends[0].local.arguments == ("--no-mmap",)
    again = read_gateway(write_gateway(plan, tmp_path / "again.yaml"), {})
    assert again.backends[0].local == plan.backends[0].local


def test_weights_are_read_before_their_engine_starts_unless_memory_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "model"
    weights.mkdir()
    for name in ("a.safetensors", "config.json"):
        (weights / name).write_bytes(b"x" * 10_000)
    opened: list[str] = []
    real = Path.open

    def seen(path: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(path.name)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", seen)
    assert read_through(weights) > 0
    assert opened == ["a.safetensors"], "what no engine maps is not read"
    opened.clear()
    assert read_through(None) == 0.0
    split = write_split(tmp_path, small_spec("qwen3moe"), 2)
    assert read_through(split[0]) > 0
    assert {path.name for path in split} <= set(opened)
    opened.clear()
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10_000))
    assert read_through(weights) == 0.0
    assert not opened
