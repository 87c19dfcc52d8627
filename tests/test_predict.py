"""`predict` as people meet it: profiles by name, points, notes, the command line."""

from __future__ import annotations

import doctest
import json
import math
import re
import subprocess
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from breakeven.errors import UserError
from breakeven.forecast.constants import Range
from breakeven.forecast.model import step_model
from breakeven.forecast.predict import predict, speed_ratio
from breakeven.forecast.profiles import (
    default_engine,
    load_profile,
    profile_directory,
    profile_named,
    profiles_here,
    save_profile,
)
from breakeven.forecast.routing import read_routing
from breakeven.hardware.chips import chip_named
from breakeven.hardware.placement import Placement
from breakeven.hardware.reader import read_machine
from breakeven.model.architecture import MoeFfn
from breakeven.model.catalogue import lookup
from breakeven.pages.predicted import print_prediction
from breakeven.results.predicted import PredictedPoint, PredictedRatio, Prediction
from breakeven.stats.estimate import Estimate
from tests.cli_fixtures import run_here
from tests.predict_fixtures import CONSTANTS, MACHINE, profile


@pytest.fixture(autouse=True)
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


def run(*args: str, columns: int = 120) -> subprocess.CompletedProcess[str]:
    return run_here("predict", *args, columns=columns)


# --- profiles --------------------------------------------------------------------------------------------------------


def test_a_profile_comes_back_from_its_file(tmp_path: Path) -> None:
    assert load_profile(save_profile(profile(), tmp_path / "here" / "mine.json")) == profile()


def test_profiles_are_kept_in_the_users_data_directory(data_home: Path) -> None:
    path = save_profile(profile())
    assert path.parent == profile_directory() == data_home / "breakeven" / "profiles"
    assert profiles_here(MACHINE) == [profile()]


def test_other_machines_do_not_count() -> None:
    save_profile(profile(machine=msgspec.structs.replace(MACHINE, logical_cores=2)))
    save_profile(profile(machine=None))
    (profile_directory() / "broken.json").write_text("{")
    assert profiles_here(MACHINE) == []


def test_this_is_the_newest_profile_of_the_format() -> None:
    here = read_machine()
    for date, format_name in (("2026-01-01", "Q4_K_M"), ("2026-03-01", "Q8_0"), ("2026-02-01", "Q4_K_M")):
        save_profile(profile(machine=here, date=date, format_name=format_name))
    save_profile(profile(machine=here, date="2026-01-15", engine="vllm", format_name="BF16"))
    assert profile_named("this").origin.date == "2026-03-01"
    assert profile_named("this", "llama.cpp", None, "q4_k_m").origin.date == "2026-02-01"
    assert profile_named("this", "vllm").origin.date == "2026-01-15"
    with pytest.raises(UserError, match="on 2 devices"):
        profile_named("this", None, 2)


def test_without_calibration_the_way_out_is_named() -> None:
    with pytest.raises(UserError, match=r"breakeven calibrate.*breakeven machines"):
        profile_named("this")


def test_a_path_is_a_profile_or_a_chip(tmp_path: Path) -> None:
    path = save_profile(profile(), tmp_path / "mine.json")
    assert profile_named(str(path)) == profile()
    with pytest.raises(UserError, match="leave --engine out"):
        profile_named(str(path), "vllm")
    chip = tmp_path / "board.yaml"
    chip.write_text("name: My board\nclass: sbc\nbandwidth_gb_per_s: 20\nmemory_gb: 8\nsource: data sheet\n")
    found = profile_named(str(chip))
    assert (found.engine, found.origin.how) == ("llama.cpp", "datasheet")
    assert found.chip is not None
    assert found.chip.name == "My board"


@pytest.mark.parametrize("content", ["{", '{"schema": "breakeven.calibration/9", "constants": {}}', "[]"])
def test_what_is_no_profile_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(UserError):
        profile_named(str(path))
    with pytest.raises(UserError, match=r"bad\.json"):
        load_profile(path)


def test_an_edited_profile_is_refused_by_file_and_key(tmp_path: Path) -> None:
    whole = json.loads(msgspec.json.encode(profile()))
    path = tmp_path / "edited.json"

    def refused(key: str, value: object, under: str = "constants") -> None:
        edited = json.loads(json.dumps(whole))
        (edited[under] if under else edited)[key] = value
        path.write_text(json.dumps(edited))
        with pytest.raises(UserError, match=rf"edited\.json: {under}.*{key}"):
            profile_named(str(path))

    for rate in ("weight_bytes_per_s", "kv_bytes_per_s", "decode_flops_per_s", "prefill_flops_per_s", "routing_alpha"):
        refused(rate, 0)
        refused(rate, -1e9)
    for cost in ("step_s", "layer_s", "element_s", "handover_s", "expert_compute"):
        refused(cost, -1e-3)
    refused("overlap", 1.5)
    refused("host_bytes_per_s", 0.0)
    refused("type_cost", {"Q4_K": -1.0})
    refused("expert_tile", 0.0)
    refused("devices", 0, "")
    refused("errors", [], "")
    refused("errors", [e for e in whole["errors"] if e["phase"] == "decode"], "")
    refused("errors", [{**e, "log_half_width": -0.5} for e in whole["errors"]], "")
    refused("errors", [{**e, "log_half_width": 1e6} for e in whole["errors"]], "")
    refused("memory_bytes", -5, "")
    path.write_text(json.dumps(whole))
    assert profile_named(str(path)) == profile()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone"):
        profile_named(str(tmp_path / "gone.json"))


@pytest.mark.parametrize(
    ("chip", "engine"),
    [("h100-sxm", "vllm"), ("l40s", "vllm"), ("apple-m2-pro", "llama.cpp"), ("rtx-4090", "llama.cpp")],
)
def test_every_class_of_machine_has_its_engine(chip: str, engine: str) -> None:
    assert default_engine(chip_named(chip)) == engine
    assert profile_named(chip).engine == engine


@pytest.mark.parametrize(
    ("chip", "format_name", "engine"),
    [
        ("h100-sxm", "q4_k_m", "llama.cpp"),
        ("h100-sxm", "mxfp4", "vllm"),
        ("rtx-4090", "fp8", "vllm"),
        ("rtx-4090", "bf16", "llama.cpp"),
        ("apple-m2-pro", "int4", "llama.cpp"),
    ],
)
def test_a_format_that_one_engine_reads_decides(chip: str, format_name: str, engine: str) -> None:
    assert profile_named(chip, None, None, format_name).engine == engine


def test_a_format_the_engine_cannot_read_is_named() -> None:
    (point,) = predict(["llama-3.2-1b"], ["apple-m2-pro"], format_name="int4").points
    assert any("llama.cpp does not read INT4" in note for note in point.notes)


def test_mxfp4_is_what_the_engine_means_by_it() -> None:
    served, local = (predict(["gpt-oss-20b"], [m], format_name="mxfp4").points[0] for m in ("h100-sxm", "rtx-4090"))
    assert {served.format, local.format} == {"MXFP4"}
    assert served.bytes_read > local.bytes_read  # attention and head in BF16, not Q8_0


def test_an_unknown_chip_offers_the_nearest() -> None:
    with pytest.raises(UserError, match="apple-m2-pro"):
        profile_named("apple-m2-prop")


# --- points ----------------------------------------------------------------------------------------------------------


def saved(tmp_path: Path, **changes: object) -> str:
    return str(save_profile(profile(**changes), tmp_path / "mine.json"))  # type: ignore[arg-type]


def test_points_come_by_machine_model_context_and_batch(tmp_path: Path) -> None:
    here = saved(tmp_path)
    found = predict(["olmoe-1b-7b", "llama-3.2-1b"], [here, "rtx-4090"], batches=(1, 8), contexts=(512, 1024))
    order = [(p.machine, p.model, p.context, p.batch) for p in found.points]
    assert order[:5] == [
        (here, "olmoe-1b-7b", 512, 1),
        (here, "olmoe-1b-7b", 512, 8),
        (here, "olmoe-1b-7b", 1024, 1),
        (here, "olmoe-1b-7b", 1024, 8),
        (here, "llama-3.2-1b", 512, 1),
    ]
    assert len(order) == 16
    assert set(found.profiles) == {here, "rtx-4090"}
    assert "calibrated on 2026-01-01" in found.profiles[here]
    assert "data sheet" in found.profiles["rtx-4090"]
    for point in found.points:
        assert point.step_s.low < point.step_s.value < point.step_s.high
        assert point.decode_tokens_per_s == pytest.approx(point.batch / point.step_s.value)
        assert point.prefill_tokens_per_s == pytest.approx(point.context / point.prefill_s.value)
        assert point.bound == max(point.parts_s, key=lambda part: point.parts_s[part])
    assert {p.kind for p in found.points if p.model == "olmoe-1b-7b"} == {"moe"}


def test_prompts_have_an_interval_and_every_number_says_what_stands_behind_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = predict(["qwen3-30b-a3b:Q4_K_M", "qwen3-14b:Q4_K_M"], ["ryzen-ai-max-395", "jetson-agx-orin-64gb"])
    for point in found.points:
        speed = point.prefill_speed
        assert speed is not None
        assert speed.least < point.prefill_tokens_per_s < speed.most
        said = [reason.partition(":")[0] for reason in point.why]
        assert said == ["decode", "prefill", "records by number type"]
    known, unknown = found.points[0], found.points[3]
    assert re.search(
        r"decode: MoE models on unified machines \(amd\) under llama.cpp, \d+ records of \d+ models", known.why[0]
    )
    assert not any("no published" in note for note in known.notes)
    assert any("no published speed of dense models on jetson machines (cuda)" in note for note in unknown.notes)
    print_prediction(found, Console(width=100), why=True)
    assert "left out of the fit, median" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("machine", ["mi300x", "gaudi3", "tpu-v6e"])
def test_records_of_other_makers_are_not_counted_as_a_chips_own(machine: str) -> None:
    (own,), (other,) = (predict(["qwen3-14b:FP8"], [name], engine="vllm").points for name in ("h200-sxm", machine))
    assert re.search(r"machines \(cuda\) under vllm, \d+ records", own.why[0])
    assert "no record of its own" in other.why[0]
    assert not re.search(r"\d+ records? of", " ".join(other.why))
    assert any("no published speed of dense models on datacenter machines" in note for note in other.notes)
    assert other.step_s.most / other.step_s.value > own.step_s.most / own.step_s.value


def test_an_engine_without_kernels_for_a_chip_is_refused() -> None:
    with pytest.raises(UserError, match=r"no kernels for Intel Gaudi 3; give --engine vllm"):
        predict(["qwen3-14b"], ["gaudi3"], engine="llama.cpp")


def test_a_described_chip_is_the_catalogued_one_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(
        "name: NVIDIA GeForce RTX 5070\nclass: consumer\nbandwidth_gb_per_s: 672\nmemory_gb: 12\n"
        "peak_tflops: {fp16: 61.7}\n"
    )
    listed, described = (predict(["qwen3-8b"], [name]).points[0] for name in ("rtx-5070", str(path)))
    assert described.why == listed.why
    assert described.step_s == listed.step_s


@pytest.mark.parametrize(
    ("machine", "engine", "unseen", "seen"),
    [
        ("radeon-780m", "llama.cpp", "IQ3_XXS", "Q2_K"),
        ("jetson-orin-nano-8gb", "llama.cpp", "IQ3_XXS", "Q2_K"),
        ("a10g", "vllm", "AWQ", "INT4"),
    ],
)
def test_a_format_without_records_is_read_like_its_kin_and_named(
    machine: str, engine: str, unseen: str, seen: str
) -> None:
    new, known = predict([f"qwen3-4b:{unseen}", f"qwen3-4b:{seen}"], [machine], engine=engine).points
    ratio = (new.parts_s["weights"] / known.parts_s["weights"]) / (new.bytes_read / known.bytes_read)
    assert ratio == pytest.approx(1.0, abs=0.03)
    assert any(f"no published speed of {unseen} weights" in note for note in new.notes)
    assert not any("no published speed of" in note and "weights" in note for note in known.notes)
    assert f"{unseen} 0" in new.why[-1]


def test_what_is_read_from_disk_borrows_no_record() -> None:
    (inside, paged) = (predict([m], ["raspberry-pi-5"]).points[0] for m in ("qwen3-8b:Q4_K_M", "llama-3.1-70b:Q4_K_M"))
    assert "records of" in inside.why[0]
    assert "dense models in part read from disk" in paged.why[0]
    assert "no record of its own" in paged.why[0]
    assert paged.step_s.most >= 3 * paged.step_s.value * (1 - 1e-9)
    assert any("in part read from disk" in note for note in paged.notes)


def test_unlike_devices_have_the_widest_of_their_errors_in_any_order() -> None:
    one, other = (predict(["qwen3-8b:Q4_K_M"], [m]).points[0] for m in ("rtx-3090+rx-7900-xtx", "rx-7900-xtx+rtx-3090"))
    alone = [predict(["qwen3-8b:Q4_K_M"], [m]).points[0].step_s for m in ("rtx-3090", "rx-7900-xtx")]
    widest = max(step.most / step.value for step in alone)
    for both in (one, other):
        assert both.step_s.most / both.step_s.value == pytest.approx(widest)
        assert "(cuda)" in both.why[0]
        assert "(amd)" in both.why[0]


def test_devices_that_part_no_heads_are_said_not_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    (three,), (four,) = (predict(["qwen3-30b-a3b:FP8"], ["h100-sxm"], devices=n).points for n in (3, 4))
    assert three.lacking is not None
    assert any("does not start" in note for note in three.notes)
    assert four.lacking is None
    assert not any("does not start" in note for note in four.notes)
    print_prediction(predict(["qwen3-14b:FP8"], ["8xh200-sxm"]), Console(width=120))
    assert "8xh200-sxm, 8 devices, vllm" in capsys.readouterr().out


def test_parting_experts_where_none_are_parted_is_said_and_changes_nothing() -> None:
    for model, machine in (("qwen3-14b:FP8", "h100-sxm"), ("qwen3-30b-a3b:Q4_K_M", "rtx-3090")):
        (apart,), (plain,) = (predict([model], [machine], devices=2, expert_parallel=on).points for on in (True, False))
        assert apart.step_s == plain.step_s
        assert any("--expert-parallel changes nothing" in note for note in apart.notes)
        assert not any("--expert-parallel" in note for note in plain.notes)


def test_a_prompt_longer_than_the_models_own_context_is_named() -> None:
    (point,) = predict(["qwen3-14b:Q4_K_M"], ["rtx-4090"], prompt=100_000).points
    assert any("100,000 tokens are more than the model's own limit" in note for note in point.notes)


def test_the_format_is_the_probed_one_then_the_engines(tmp_path: Path) -> None:
    assert predict(["llama-3.2-1b"], [saved(tmp_path, format_name="Q8_0")]).points[0].format == "Q8_0"
    assert predict(["llama-3.2-1b"], ["h100-sxm"]).points[0].format == "BF16"
    assert predict(["llama-3.2-1b"], ["rtx-4090"]).points[0].format == "Q4_K_M"
    assert predict(["llama-3.2-1b"], ["rtx-4090"], format_name="q4_0").points[0].format == "Q4_0"


def test_a_ratio_is_surer_than_its_speeds(tmp_path: Path) -> None:
    found = predict(["llama-3.2-1b", "llama-3.2-3b"], [saved(tmp_path)])
    one, three = found.points
    (ratio,) = found.ratios
    assert ratio.decode.value == pytest.approx(one.step_s.value / three.step_s.value)
    assert ratio.decode.high / ratio.decode.low < (one.step_s.high * three.step_s.high) / (
        one.step_s.low * three.step_s.low
    )
    back = speed_ratio(*(step_model(lookup(m), profile(), "Q4_K_M") for m in ("llama-3.2-1b", "llama-3.2-3b")), 1, 512)
    assert back.low == pytest.approx(1 / ratio.decode.high)


def test_decode_and_prefill_have_each_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    """A mixture with experts in host memory decodes fast and reads prompts slowly: neither says the other."""
    machine = "rtx-4090+ddr5-6000x2:96GB+pcie3x4"
    found = predict(["qwen3-32b:Q4_K_M", "qwen3-30b-a3b:Q8_0"], [machine], prompt=2048)
    dense, moe = found.points
    (ratio,) = found.ratios
    assert ratio.prefill is not None
    assert ratio.prompt == 2048
    assert ratio.prefill.value == pytest.approx(dense.prefill_s.value / moe.prefill_s.value)
    # Spilled beside whole: nothing cancels.
    width, *both = (math.log(span.most / span.least) for span in (ratio.prefill, dense.prefill_s, moe.prefill_s))
    assert width == pytest.approx(math.hypot(*both))
    print_prediction(found, Console(width=200))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines if " against " in line] == ["Decode", "Prefill"]


def test_a_model_wholly_on_the_card_says_so_beside_a_spilled_one(capsys: pytest.CaptureFixture[str]) -> None:
    found = predict(["gpt-oss-120b:MXFP4", "qwen3-32b:Q4_K_M"], ["rtx-3090+ddr4-3200x2:64GB"])
    moe, dense = found.points
    assert moe.placed is not None
    assert moe.placement == moe.placed.words()
    assert (dense.placed, dense.placement) == (None, "65/65 layers on the GPU")
    print_prediction(found, Console(width=200))
    assert "qwen3-32b:Q4_K_M: 65/65 layers on the GPU" in capsys.readouterr().out
    assert [p.placement for p in predict(["qwen3-32b"], ["apple-m3-ultra"]).points] == [None]


def test_extrapolation_is_named(tmp_path: Path) -> None:
    ranges = [
        Range(quantity="batch", low=1, high=8),
        Range(quantity="context", low=100, high=1000),
        Range(quantity="active_params", low=1e6, high=1e8),
    ]
    costs = msgspec.structs.replace(CONSTANTS, type_cost={"Q6_K": 1.1})
    here = saved(tmp_path, ranges=ranges, constants=costs)
    inside, beyond = predict(["llama-3.2-1b"], [here], batches=(8, 16)).points
    assert [note.split(":")[0] for note in inside.notes] == ["extrapolated"]
    assert "active parameters" in inside.notes[0]
    assert "a batch of 16 lies outside the 1 to 8" in beyond.notes[0]


def test_number_types_that_were_not_probed_are_named(tmp_path: Path) -> None:
    costs = msgspec.structs.replace(CONSTANTS, type_cost={"Q6_K": 1.1})
    (probed,), (other,) = (
        predict(["llama-3.2-1b"], [saved(tmp_path, constants=costs)], format_name=name).points
        for name in ("Q4_K_M", "Q8_0")
    )
    assert probed.notes == []
    assert any("Q8_0 weights, probed with Q4_K_M" in note for note in other.notes)


def test_a_profile_of_another_type_of_keys_and_values_is_said_to_be_one(tmp_path: Path) -> None:
    probed = profile()
    q8 = msgspec.structs.replace(probed, origin=msgspec.structs.replace(probed.origin, kv="q8_0"))
    file = str(save_profile(q8, tmp_path / "q8.json"))
    said = {kv: predict(["llama-3.2-1b"], [file], kv=kv).points[0].notes for kv in ("f16", "q8_0")}
    assert any("measured with q8_0, not f16" in note for note in said["f16"])
    assert not any("q8_0" in note for note in said["q8_0"])


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    small = saved(tmp_path, memory_bytes=3 * 10**9)
    (point,) = predict(["olmoe-1b-7b"], [small]).points
    assert not point.fits
    assert point.bound == "disk"
    assert any("read from disk" in note for note in point.notes)
    (served,) = predict(["llama-3.1-70b"], ["h100-sxm"]).points
    assert not served.fits
    assert any(note.startswith("does not fit") for note in served.notes)


def test_what_lies_in_ram_is_not_called_too_large(capsys: pytest.CaptureFixture[str]) -> None:
    machine = "rtx-3090+ddr4-3200x2:64GB"
    found = predict(["gpt-oss-120b:MXFP4"], [machine])
    (point,) = found.points
    assert (point.fits, point.lacking) == (False, None)
    print_prediction(found, Console(width=160))
    printed = capsys.readouterr().out
    assert "GB in RAM" in printed
    assert "not fit" not in printed


def test_too_little_ram_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    found = predict(["gpt-oss-120b:MXFP4"], ["rtx-3090+ddr4-3200x2:40GB"])
    (point,) = found.points
    assert point.lacking is not None
    assert point.lacking.startswith("needs 39.6 GB of RAM beside the card")
    print_prediction(found, Console(width=160))
    assert "does not fit" in capsys.readouterr().out
    assert any("38.7 of 42.9 GB can be used" in note for note in point.notes)


@pytest.mark.parametrize(
    ("machine", "said"),
    [("rtx-3090", True), ("rtx-3090+ram:64GB", True), ("rtx-3090+ddr4-3200x2:64GB", False)],
)
def test_a_rate_of_ram_that_was_not_said_is_named(machine: str, said: bool) -> None:
    (point,) = predict(["gpt-oss-120b:MXFP4"], [machine]).points
    assert any(re.fullmatch(r"how fast its RAM is was not said; read at \d+ GB/s", n) for n in point.notes) is said


def test_what_cannot_run_is_not_called_faster(capsys: pytest.CaptureFixture[str]) -> None:
    machine = "rtx-3090+ddr4-3200x2:64GB"
    found = predict(["gpt-oss-120b:MXFP4", "qwen3-32b:Q4_K_M"], [machine], placement=Placement(gpu_layers="all"))
    print_prediction(found, Console(width=200))
    assert "gpt-oss-120b:MXFP4 would be faster, but does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "machine"),
    [
        ("gpt-oss-120b:MXFP4", "rtx-3090+ddr4-3200x2:64GB"),
        ("gemma-3-12b:Q4_K_M", "gtx-1060-6gb+ddr4-3200x2:64GB"),  # its tied head has a second copy
        ("qwen3-30b-a3b:Q4_K_M", "2xrtx-3060+ddr4-3200x2:64GB"),
        ("qwen3-next-80b-a3b:Q4_K_M", "rtx-3090+ddr4-3200x2:64GB"),  # with states
    ],
)
def test_memory_is_the_sum_of_its_places(model: str, machine: str) -> None:
    for point in predict([model], [machine], batches=(1, 8), contexts=(512, 32768)).points:
        assert point.placed is not None
        held = [(at.weights_bytes or 0) + (at.kv_bytes or 0) + (at.compute_bytes or 0) for at in point.placed.memory]
        assert sum(held) == pytest.approx(point.memory_bytes, abs=10)
        assert sum(point.memory.values()) == pytest.approx(point.memory_bytes)


def test_several_devices_are_marked_as_an_approximation() -> None:
    (point,) = predict(["llama-3.1-70b"], ["h100-sxm"], devices=4).points
    assert point.fits
    assert point.devices == 4
    assert point.parts_s["link"] > 0
    assert any("first approximation" in note for note in point.notes)


def test_longer_than_the_models_own_context_is_named(tmp_path: Path) -> None:
    (point,) = predict(["olmoe-1b-7b"], [saved(tmp_path)], contexts=(8192,)).points
    assert any("own limit" in note for note in point.notes)


def test_traced_routing_reads_fewer_bytes(tmp_path: Path) -> None:
    layers = [layer.ffn for layer in lookup("olmoe-1b-7b").layers if isinstance(layer.ffn, MoeFfn)]
    rows = [[0.9] * 4 + [(8 - 3.6) / 60] * 60 for _ in layers]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"schema": "breakeven.trace/1", "layers": [{"frequencies": row} for row in rows]}))
    here = saved(tmp_path)
    (even,) = predict(["olmoe-1b-7b"], [here], batches=(8,)).points
    (traced,) = predict(["olmoe-1b-7b"], [here], batches=(8,), frequencies={"olmoe-1b-7b": read_routing(path)}).points
    assert traced.bytes_read < even.bytes_read
    assert any("routing taken as even" in note for note in even.notes)
    assert not any("routing" in note for note in traced.notes)
    path.write_text("{}")
    with pytest.raises(UserError, match="breakeven trace --json"):
        read_routing(path)


def test_code_in_the_page_runs() -> None:
    found = doctest.testfile(str(Path(__file__).parent.parent / "docs" / "predict.md"), module_relative=False)
    assert found.attempted >= 3
    assert found.failed == 0


def test_every_field_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "json.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`.*?\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    for struct in (Prediction, PredictedPoint, PredictedRatio, Estimate):
        for field in msgspec.structs.fields(struct):
            assert f"| `{field.encode_name}` |" in sections[struct.__name__], f"{struct.__name__}.{field.name}"


# --- the command line ------------------------------------------------------------------------------------------------


def test_json_is_the_result(tmp_path: Path) -> None:
    here = saved(tmp_path)
    done = run("olmoe-1b-7b", "llama-3.2-1b", "--machine", here, "--batch", "1,8", "--json")
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout, type=Prediction)
    assert found == predict(["olmoe-1b-7b", "llama-3.2-1b"], [here], batches=(1, 8))
    assert found.schema == "breakeven.predict/1"


def test_no_control_character_of_a_name_is_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "bad\x1b[31m\x07.yaml"
    file.write_text("from: llama-3.2-1b\n")
    print_prediction(predict([str(file)], ["apple-m2-pro"]), Console(width=120))
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_the_table_fits_the_terminal(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = predict(["olmoe-1b-7b", "llama-3.2-1b"], ["apple-m2-pro"], batches=(1, 8))
    print_prediction(found, Console(width=columns))
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= columns
    assert "predicted, not measured" in " ".join(text.split())
    assert "llama-3.2-1b against olmoe-1b-7b" in " ".join(text.split())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["olmoe-1b-7b", "--machine", "h10-sxm"], "h100-sxm"),
        (["olmoe-1b-7c", "--machine", "h100-sxm"], "olmoe-1b-7b"),
        (["olmoe-1b-7b", "--machine", "h100-sxm", "--batch", "0"], "--batch 0"),
        (["olmoe-1b-7b", "--machine", "h100-sxm", "--context", "1k"], "--context 1k"),
        (["olmoe-1b-7b", "--machine", "h100-sxm", "--format", "q9"], "no weight format"),
        (["olmoe-1b-7b", "--machine", "h100-sxm", "--engine", "mlx"], "mlx"),
        (["olmoe-1b-7b", "--machine", "h100-sxm", "--routing", "x=y"], "MODEL=FILE"),
        (["olmoe-1b-7b"], "breakeven calibrate"),
    ],
)
def test_what_cannot_be_used_is_one_line(args: list[str], says: str) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr
