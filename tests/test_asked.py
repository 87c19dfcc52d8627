"""A format for each model, a type of keys and values, and caches made for more than is in use."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.answer.cost import CostOptions, cost
from breakeven.engines.kinds import ENGINES
from breakeven.engines.memory import need_of
from breakeven.engines.source import assumed_caveats, parse_source, parse_sources, weight_format
from breakeven.engines.start import format_of, kv_type, start
from breakeven.engines.synthesis.write import synthesise
from breakeven.errors import UserError
from breakeven.forecast.asked import asked_model, profiles_for
from breakeven.forecast.predict import predict
from breakeven.forecast.profiles import engine_of_format, save_profile
from breakeven.hardware.reader import read_machine
from breakeven.model.arithmetic import file_bytes, kv_bytes
from breakeven.model.catalogue import lookup, names
from breakeven.model.formats.named import FORMATS, GPU_FORMATS, KV_TYPES, kv_element_bytes, kv_for
from breakeven.model.layouts.derive import assuming
from breakeven.model.resolve import resolve_spec, split_format
from breakeven.results.cost import Rented
from breakeven.traffic.workload import Arrivals, Length, Workload
from tests.cli_fixtures import run_here
from tests.predict_fixtures import profile
from tests.small_models import BASE, small

FORMAT_NAMES = sorted({*FORMATS, *GPU_FORMATS})
PAIR = ["gpt-oss-120b:MXFP4", "qwen3-32b:Q4_K_M"]


@pytest.fixture(autouse=True)
def _data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def q8_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesise(small("qwen3moe"), "Q8_0", tmp_path_factory.mktemp("files") / "small-Q8_0.gguf")


# --- names with a format ---------------------------------------------------------------------------------------------


@given(st.sampled_from(names()), st.sampled_from(FORMAT_NAMES), st.booleans())
def test_a_format_behind_a_name_is_its_own(name: str, format_name: str, small_letters: bool) -> None:
    behind = format_name.lower() if small_letters else format_name
    assert split_format(f"{name}:{behind}") == (name, format_name)
    assert split_format(name) == (name, None)


@given(st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=40))
def test_what_is_split_is_put_together_again(text: str) -> None:
    head, format_name = split_format(text)
    if format_name is None:
        assert head == text
    else:
        assert text.startswith(f"{head}:")
        assert split_format(f"{head}:{format_name}") == (head, format_name)


@given(st.sampled_from(["http", "https"]), st.from_regex(r"[a-z0-9.]{1,12}(:[0-9]{1,5})?/v1", fullmatch=True))
def test_an_address_stays_one(scheme: str, rest: str) -> None:
    for text in (f"{scheme}://{rest}", f"{scheme}://{rest}#qwen3-32b:Q4_K_M", f"{scheme}://{rest}:F16"):
        assert split_format(text) == (text, None)


@pytest.mark.parametrize(
    "text",
    [
        *("llama3:8b", "qwen3:q4_k_m", "qwen2.5:7b-instruct-q4_K_M", "llama3:latest", "localhost:8080", "qwen3-4b:"),
        *("C:Q4_K_M", r"C:\models\qwen3-4b.gguf", "C:/models/qwen3-4b.gguf", r"D:\Q8_0", ":Q4_K_M", "qwen3-4b::F16"),
    ],
)
def test_other_colons_are_no_formats(text: str) -> None:
    assert split_format(text) == (text, None)


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("Qwen/Qwen3-4B:Q8_0", "Qwen/Qwen3-4B"),
        ("hf.co/unsloth/Qwen3-8B-GGUF:q8_0", "hf.co/unsloth/Qwen3-8B-GGUF"),
        (r"C:\models\qwen3.gguf:Q8_0", r"C:\models\qwen3.gguf"),
        ("./models/a:b/config.json:Q8_0", "./models/a:b/config.json"),
        ("model.yaml:Q8_0", "model.yaml"),
    ],
)
def test_paths_and_hub_ids_may_have_one(text: str, head: str) -> None:
    assert split_format(text) == (head, "Q8_0")


def test_a_name_with_a_format_is_the_same_model() -> None:
    assert resolve_spec("qwen3-32b:fp8") is resolve_spec("qwen3-32b")
    with pytest.raises(UserError, match=r"no weight format is called 'Q4_KM'.*or write qwen3-32b alone"):
        resolve_spec("qwen3-32b:Q4_KM")


# --- predictions -----------------------------------------------------------------------------------------------------


def test_each_model_is_predicted_in_its_own_format() -> None:
    both = predict(PAIR, ["rtx-3090"])
    alone = {
        name: predict([name], ["rtx-3090"], format_name=format_name).points[0]
        for name, format_name in (("gpt-oss-120b", "MXFP4"), ("qwen3-32b", "Q4_K_M"))
    }
    assert [(p.model, p.format) for p in both.points] == list(zip(PAIR, ("MXFP4", "Q4_K_M"), strict=True))
    for point in both.points:
        assert point.step_s == alone[point.model.partition(":")[0]].step_s
        assert point.memory_bytes == alone[point.model.partition(":")[0]].memory_bytes


def test_the_option_is_for_the_rest() -> None:
    found = predict(["qwen3-32b:Q8_0", "qwen3-14b"], ["rtx-3090"], format_name="q4_0")
    assert [point.format for point in found.points] == ["Q8_0", "Q4_0"]


def test_what_is_compared_runs_in_one_engine() -> None:
    def engines(*models: str, machine: str = "h100-sxm") -> list[tuple[str, str]]:
        return [(p.engine, p.format) for p in predict(models, [machine]).points]

    assert engines("qwen3-32b") == [("vllm", "BF16")]
    assert engines("qwen3-32b:Q4_K_M", "qwen3-14b") == [("llama.cpp", "Q4_K_M")] * 2
    assert engines("qwen3-14b", "qwen3-32b:fp8", machine="rtx-4090") == [("vllm", "BF16"), ("vllm", "FP8")]
    # Two that no engine has in common run in two, and who leaves it open in the usual one.
    assert engines("qwen3-32b:Q4_K_M", "qwen3-32b:fp8") == [("llama.cpp", "Q4_K_M"), ("vllm", "FP8")]
    assert engines("gpt-oss-120b:MXFP4", "qwen3-32b:Q4_K_M") == [("llama.cpp", "MXFP4"), ("llama.cpp", "Q4_K_M")]


def test_two_engines_share_no_error() -> None:
    found = predict(["qwen3-32b:Q4_K_M", "qwen3-32b:fp8", "qwen3-14b:Q4_K_M"], ["h100-sxm"])
    other, same = found.ratios
    assert other.decode.most / other.decode.least > same.decode.most / same.decode.least


def test_published_formats_are_the_default() -> None:
    assert [p.format for p in predict(["gpt-oss-20b", "qwen3-14b"], ["rtx-3090"]).points] == ["MXFP4", "Q4_K_M"]
    assert predict(["gpt-oss-20b"], ["rtx-3090"], format_name="Q8_0").points[0].format == "Q8_0"
    formats = {
        machine: (point.engine, point.format)
        for machine in ("h100-sxm", "rtx-4090", "apple-m3-ultra")
        for point in predict(["deepseek-v3"], [machine]).points
    }
    assert formats == {
        "h100-sxm": ("vllm", "FP8_BLOCK"),
        "rtx-4090": ("llama.cpp", "Q4_K_M"),
        "apple-m3-ultra": ("llama.cpp", "Q4_K_M"),
    }


def test_a_configuration_is_taken_as_it_says(tmp_path: Path) -> None:
    said = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps({**BASE, "model_type": "llama", "quantization_config": said}))
    path = str(tmp_path / "config.json")
    for machine in ("h100-sxm", "rtx-4090"):
        by_file, other = predict([path, "qwen3-14b"], [machine]).points
        assert (by_file.engine, by_file.format) == ("vllm", "FP8_BLOCK")
        assert (other.engine, other.format) == ("vllm", "BF16")
    assert predict([f"{path}:Q4_K_M"], ["rtx-4090"]).points[0].engine == "llama.cpp"


def test_what_was_probed_is_the_default_here() -> None:
    here = read_machine()
    for date, format_name in (("2026-03-01", "Q8_0"), ("2026-01-01", "Q4_0")):
        save_profile(profile(machine=here, date=date, format_name=format_name))
    asked = [asked_model(text) for text in ("qwen3-0.6b", "qwen3-1.7b:Q4_0", "gpt-oss-20b")]
    found = profiles_for(asked, "this")
    assert len({each.origin.date for each in found}) == 1  # errors cancel only under one profile
    assert [a.format_under(p) for a, p in zip(asked, found, strict=True)] == ["Q4_0", "Q4_0", "MXFP4"]


def test_the_table_says_each_format() -> None:
    done = run_here("predict", *PAIR, "--machine", "rtx-3090", columns=160)
    assert done.returncode == 0, done.stderr
    head, names_, first, second, *_ = done.stdout.splitlines()
    assert head == "rtx-3090, llama.cpp: predicted, not measured"
    assert names_.split()[:2] == ["Model", "Format"]
    assert [line.split()[:2] for line in (first, second)] == [[text, text.partition(":")[2]] for text in PAIR]


# --- keys and values, and what is reserved ---------------------------------------------------------------------------


@pytest.mark.parametrize("kv", [name for name in KV_TYPES if name != "fp8"])
def test_a_cache_has_the_bytes_of_its_type(kv: str) -> None:
    def memory(kv: str | None) -> float:
        return predict(["qwen3-32b"], ["rtx-3090"], contexts=(32_768,), kv=kv).points[0].memory["kv"]

    spec = lookup("qwen3-32b")
    change = kv_bytes(spec, 32_768, kv_element_bytes(kv)) - kv_bytes(spec, 32_768)
    assert memory(kv) - memory(None) == pytest.approx(change, abs=1)


def test_a_long_context_fits_with_narrower_keys_and_values() -> None:
    asked = {"format_name": "IQ4_XS", "contexts": (215_000,)}
    wide, narrow = (predict(["qwen3.5-27b"], ["rtx-3090"], kv=kv, **asked).points[0] for kv in ("f16", "q8_0"))  # type: ignore[arg-type]
    assert (wide.fits, narrow.fits) == (False, True)
    assert narrow.kv == "q8_0"
    assert narrow.bytes_read < wide.bytes_read
    assert narrow.step_s.value < wide.step_s.value
    assert any("unpacking" in note for note in narrow.notes)


def test_an_engine_is_asked_for_what_it_keeps() -> None:
    assert (kv_for("llama.cpp", "Q8_0"), kv_for("vllm", "fp8")) == ("q8_0", "fp8")
    for engine, kv, other in (("vllm", "q8_0", "llama.cpp"), ("llama.cpp", "fp8", "vllm")):
        with pytest.raises(UserError, match=rf"{engine} keeps no {kv} .* or give --engine {other}"):
            predict(["qwen3-32b"], ["rtx-4090"], engine=engine, kv=kv)
    with pytest.raises(UserError, match="choose one of"):
        predict(["qwen3-32b"], ["rtx-4090"], kv="q3_k")


def test_heads_that_are_no_whole_blocks_are_refused() -> None:
    spec = small("llama", head_dim=40)
    with pytest.raises(UserError, match="heads of 40 elements in q8_0"):
        kv_for("llama.cpp", "q8_0", spec)
    assert kv_for("llama.cpp", "bf16", spec) == "bf16"


def test_what_is_reserved_takes_memory_and_no_time() -> None:
    def point(context: int, **asked: int) -> tuple[float, float, float, bool]:
        found = predict(["gemma-2-9b"], ["rtx-3090"], contexts=(context,), format_name="Q4_K_M", **asked).points[0]
        assert found.reserve == asked.get("reserve", context)
        return found.step_s.value, found.prefill_s.value, found.memory_bytes, found.fits

    few, many, apart = point(100), point(4096), point(100, reserve=4096)
    assert apart[:2] == few[:2]
    assert apart[2:] == many[2:]
    assert few[0] < many[0]
    assert few[2] < many[2]


def test_what_llama_cpp_leaves_free_decides_on_what_fits() -> None:
    """On 8 GB gemma-2-9b with 4,096 tokens reserved was measured not to fit, with few of them in use."""
    point = predict(["gemma-2-9b"], ["rtx-2080"], contexts=(64,), format_name="Q4_K_M", reserve=4096).points[0]
    assert not point.fits
    assert point.parts_s["host"] > 0


def test_a_reserve_decides_on_what_leaves_the_device() -> None:
    few, apart = (
        predict(["qwen3-14b"], ["rtx-2080"], contexts=(100,), format_name="Q4_K_M", reserve=reserve).points[0]
        for reserve in (None, 20_000)
    )
    assert few.parts_s.get("host", 0.0) < apart.parts_s["host"]
    # Keys and values of layers that left are read where those lie, as many of them.
    assert few.parts_s["kv"] > apart.parts_s["kv"]
    assert few.bytes_read == apart.bytes_read


def test_the_prompt_is_as_long_as_it_is_said_to_be() -> None:
    long, other = (
        predict(["qwen3-14b"], ["rtx-3090"], contexts=(4096,), prompt=prompt).points[0] for prompt in (None, 64)
    )
    short = predict(["qwen3-14b"], ["rtx-3090"], contexts=(64,)).points[0]
    assert (long.prompt, other.prompt) == (4096, 64)
    assert other.prefill_s == short.prefill_s
    assert other.step_s == long.step_s


def test_a_reserve_below_what_is_in_use_is_refused() -> None:
    done = run_here("predict", "qwen3-14b", "--machine", "rtx-3090", "--context", "512,4096", "--reserve", "2048")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--reserve 2048 is less than the 4096 tokens of --context" in done.stderr


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["rtx-3090", "rtx-a6000", "h100-sxm", "apple-m2-pro"])
def test_a_file_is_predicted_as_it_is(q8_file: Path, machine: str) -> None:
    point = predict([str(q8_file)], [machine]).points[0]
    assert (point.engine, point.format) == ("llama.cpp", "Q8_0")
    wider = predict([f"{q8_file}:F16"], [machine], engine="llama.cpp").points[0]
    assert wider.memory_bytes - point.memory_bytes == pytest.approx(
        file_bytes(resolve_spec(str(q8_file)), "F16") - file_bytes(resolve_spec(str(q8_file)), "file"), abs=1
    )


def test_a_file_and_its_model_by_name_are_equal(tmp_path: Path) -> None:
    file = synthesise(lookup("smollm2-135m"), "Q4_K_M", tmp_path / "smollm2.gguf")
    for machine in ("rtx-3090", "rtx-a6000"):
        by_file, by_name = predict([str(file), "smollm2-135m"], [machine]).points
        assert by_file.engine == by_name.engine == "llama.cpp"
        assert by_file.memory_bytes == pytest.approx(by_name.memory_bytes, rel=1e-3)
        assert by_file.step_s.value == pytest.approx(by_name.step_s.value, rel=1e-3)


def test_a_file_is_no_business_of_vllms(q8_file: Path) -> None:
    with pytest.raises(UserError, match="does not run a GGUF file as it is"):
        predict([str(q8_file)], ["h100-sxm"], engine="vllm")


def test_a_file_is_priced_as_it_is(q8_file: Path) -> None:
    workload = Workload(
        arrivals=Arrivals(process="poisson", rate_per_s=1.0),
        prompt=Length(mean=64),
        output=Length(mean=16),
        requests=50,
    )
    found = cost(
        [str(q8_file), f"{q8_file}:F16@rtx-3090"],
        CostOptions(workload=workload, machine="rtx-a6000", kv="q8_0", pricing=Rented(usd_per_hour=1.0), rates=(1.0,)),
    )
    assert any(f"{q8_file}: Q8_0, q8_0 keys and values, on rtx-a6000 with llama.cpp" in note for note in found.notes)
    assert any(f"{q8_file}:F16@rtx-3090: F16, q8_0 keys" in note for note in found.notes)


def test_a_bill_of_what_does_not_start_says_so() -> None:
    """vLLM gives each device as many heads: 32 are not parted among 3."""
    workload = Workload(
        arrivals=Arrivals(process="poisson", rate_per_s=1.0),
        prompt=Length(mean=64),
        output=Length(mean=16),
        requests=50,
    )
    for devices, told in ((3, True), (4, False)):
        asked = CostOptions(
            workload=workload,
            machine="h100-sxm",
            devices=devices,
            format_name="FP8",
            pricing=Rented(usd_per_hour=1.0),
            rates=(1.0,),
        )
        notes = cost(["qwen3-30b-a3b"], asked).notes
        assert any("does not start it: it does not part its heads among 3 devices" in note for note in notes) == told


# --- engines ---------------------------------------------------------------------------------------------------------


def test_candidates_are_written_each_in_its_own_format() -> None:
    sources = parse_sources(["smollm2-135m:Q8_0", "smollm2-135m:q4_0", "smollm2-135m", "gpt-oss-20b"])
    assert [source.name for source in sources] == [
        "smollm2-135m:Q8_0",
        "smollm2-135m:q4_0",
        "smollm2-135m",
        "gpt-oss-20b",
    ]
    assert [weight_format(s, None, "llama.cpp") for s in sources] == ["Q8_0", "Q4_0", "Q4_K_M", "MXFP4"]
    assert [weight_format(s, "Q6_K", "llama.cpp") for s in sources] == ["Q8_0", "Q4_0", "Q6_K", "Q6_K"]
    assert format_of(sources[3], None, ENGINES["vllm"]) == "BF16"  # it cannot be drawn in the format it is published in
    needs = [need_of(source, None, 1024, 1) for source in sources]
    assert needs[0] > needs[2] > needs[1]
    assert need_of(sources[0], None, 1024, 1, "q4_0") < needs[0]


def test_a_file_runs_as_it_is_or_not_at_all(q8_file: Path) -> None:
    with pytest.raises(UserError, match="runs in its own types; leave :Q4_0 out"):
        parse_source(f"{q8_file}:Q4_0")


def test_a_server_keeps_what_it_was_started_with() -> None:
    url = parse_source("http://localhost:9/v1#qwen3-32b:Q4_K_M")
    assert (url.name, url.format_name) == ("qwen3-32b:Q4_K_M", None)
    assert kv_type([url], "llama.cpp", None) == "f16"
    with pytest.raises(UserError, match="leave --kv out"):
        kv_type([url], "llama.cpp", "q8_0")


def test_llama_cpp_starts_with_the_keys_and_values_asked_for(tmp_path: Path, smollm2_gguf: Path) -> None:
    source = parse_source(str(smollm2_gguf))
    with ExitStack() as stack:
        kv = kv_type([source], "llama.cpp", "Q8_0")
        running = start(
            stack,
            source,
            smollm2_gguf,
            context=256,
            slots=1,
            log=tmp_path / "log",
            threads=2,
            kv=kv,
        )
        assert running.backend.settings["kv_type"] == "q8_0"
        assert running.backend.settings["flash_attention"] == "on"
        body = json.dumps({"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}).encode()
        asked = Request(
            f"{running.backend.url}/v1/completions", body, headers={"content-type": "application/json"}, method="POST"
        )
        with urlopen(asked, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 4


def test_what_is_not_known_is_read_past_when_told_to(tmp_path: Path) -> None:
    config = {"model_type": "llama", **BASE, "attention_stride_of_heads": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = str(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"attention_stride_of_heads.*--assume"):
        parse_source(path)
    verbs: dict[str, tuple[str, ...]] = {
        "predict": (),
        "simulate": ("--rate", "1", "--requests", "20"),
        "cost": ("--rate", "1", "--usd-per-hour", "1"),
    }
    for verb, options in verbs.items():
        refused = run_here(verb, path, "--machine", "rtx-3090", *options)
        assert refused.returncode == 2
        done = run_here(verb, path, "--machine", "rtx-3090", *options, "--assume", columns=300)
        assert done.returncode == 0, done.stderr
        assert "read on past attention_stride_of_heads, which is not known here" in done.stdout
    with assuming():
        (caveat,) = assumed_caveats([parse_source(path)])
    assert "attention_stride_of_heads" in caveat


def test_json_only_gains() -> None:
    done = run_here("predict", "qwen3-14b", "--machine", "rtx-3090", "--kv", "q4_0", "--json")
    (point,) = json.loads(done.stdout)["points"]
    assert {"format", "prompt", "reserve", "kv"} <= set(point)
    assert (point["kv"], point["reserve"], point["prompt"]) == ("q4_0", 512, 512)


def test_engines_of_formats() -> None:
    assert [engine_of_format(name) for name in ("Q4_K_M", "file", "fp8", "BF16", "MXFP4", "MLX4")] == [
        *("llama.cpp", "llama.cpp", "vllm", None, None, None)
    ]
