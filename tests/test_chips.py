"""The catalogue of chips, and chips that users describe."""

from __future__ import annotations

import json
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.hardware.chip_file import read_chip
from breakeven.hardware.chips import Chip, backend_of, chip_named, chips, slug_of
from breakeven.hardware.described import machine_named
from tests.cli_fixtures import run_here

SLUGS = [chip.slug for chip in chips()]


def run(*args: str, columns: int = 100) -> subprocess.CompletedProcess[str]:
    return run_here("machines", *args, columns=columns)


def test_every_chip_has_a_slug_of_its_own_a_source_and_plausible_figures() -> None:
    assert len(set(SLUGS)) == len(SLUGS)
    for chip in chips():
        assert chip.slug == slug_of(chip.slug)
        assert chip.source
        assert 5e9 < chip.bandwidth_bytes_per_s < 2e13, chip.slug
        assert chip.memory_bytes is None or chip.memory_bytes >= 4 * 2**30, chip.slug
        assert chip.tdp_w is None or 5 <= chip.tdp_w <= 2000, chip.slug
        assert set(chip.peak_flops) <= {"bf16", "fp16", "fp8", "fp4", "int8"}, chip.slug
        assert all(re.fullmatch(r"20\d\d-\d\d", price.date) and price.source for price in chip.prices), chip.slug


def test_narrower_number_types_are_never_slower() -> None:
    for chip in chips():
        peaks = [chip.peak_flops[kind] for kind in ("fp16", "fp8", "fp4") if kind in chip.peak_flops]
        assert peaks == sorted(peaks), chip.slug


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("h100", "h100-sxm"),
        ("NVIDIA H100 SXM", "h100-sxm"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("4090", "rtx-4090"),
        ("RTX4090", "rtx-4090"),
        ("rtx 3090ti", "rtx-3090-ti"),
        ("7900xtx", "rx-7900-xtx"),
        ("a100_80gb_pcie", "a100-80gb-pcie"),
        ("Apple M2 Pro", "apple-m2-pro"),
        ("m4 max", "apple-m4-max"),
        ("Jetson Orin Nano", "jetson-orin-nano-8gb"),
        ("Strix Halo", "ryzen-ai-max-395"),
        ("AMD Ryzen AI Max+ 395", "ryzen-ai-max-395"),
        ("AMD Radeon RX 7900 XTX", "rx-7900-xtx"),
        ("GB10", "dgx-spark"),
        ("Raspberry Pi 5", "raspberry-pi-5"),
        # As drivers spell them.
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb-sxm"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb-pcie"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("Tesla V100-SXM2-16GB", "v100-16gb-sxm"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", "rtx-3060-laptop"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000-blackwell"),
    ],
)
def test_common_names_find_their_chip(text: str, slug: str) -> None:
    assert chip_named(text).slug == slug


@given(st.sampled_from(SLUGS), st.sampled_from([str.upper, str.title, lambda s: s.replace("-", " ")]))
def test_a_slug_is_found_however_it_is_typed(slug: str, typed: object) -> None:
    assert callable(typed)
    assert chip_named(typed(slug)).slug == slug


@pytest.mark.parametrize(
    ("text", "slug", "count"),
    [("7900xtx", "rx-7900-xtx", 1), ("2x7900xtx", "rx-7900-xtx", 2), ("2xRTX3090", "rtx-3090", 2)],
)
def test_a_number_before_an_x_may_be_the_chips_own(text: str, slug: str, count: int) -> None:
    assert [chip.slug for chip in machine_named(text).devices] == [slug] * count


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("NVIDIA GeForce RTX 5070", "cuda"),
        ("NVIDIA Mystery 9", "cuda"),
        ("AMD Radeon RX 9999", "amd"),
        ("Intel Arc B999", "intel"),
        ("My Intel NUC with RTX 3060", "cuda"),
        ("RTX 4090 laptop, Ryzen 9", "cuda"),
        ("Intel Gaudi 4", "gaudi"),
        ("Google TPU v7", "tpu"),
        ("A card", ""),
    ],
)
def test_a_makers_name_says_whose_kernels_run(tmp_path: Path, name: str, kernels: str) -> None:
    path = written(tmp_path, f"name: {name}\nclass: consumer\nbandwidth_gb_per_s: 500\n")
    assert backend_of(read_chip(path)) == kernels


def test_a_size_may_follow_where_memory_is_sold_in_sizes() -> None:
    assert chip_named("RTX 4090 24GB") is chip_named("rtx-4090")
    half = chip_named("Apple M2 Max 32GB")
    assert (half.memory_bytes, half.bandwidth_bytes_per_s) == (32 * 2**30, 400e9)
    assert chip_named(half.slug) == half
    assert chip_named("Apple M4 Max 36 GB").bandwidth_bytes_per_s == 410e9  # sold with the smaller GPU alone
    for wrong in ("rtx-4090-48gb", "apple-m2-max-512gb", "apple-m2-max-0gb"):
        with pytest.raises(UserError, match="no chip is called"):
            chip_named(wrong)


def test_an_unknown_chip_is_answered_with_the_nearest_and_a_way_out() -> None:
    with pytest.raises(UserError, match=r"'rtx-4095'; nearest: rtx-4090.*describe yours in a YAML file"):
        chip_named("rtx-4095")


def written(directory: Path, text: str, name: str = "board.yaml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_a_described_chip_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "name: My Board 2\nclass: sbc\nbandwidth_gb_per_s: 34.1\nmemory_gb: 16\npeak_tflops: {fp16: 0.5}\n"
        "prices:\n  - {kind: purchase, usd: 120, date: 2026-04}\n",
    )
    chip = read_chip(path)
    assert (chip.slug, chip.chip_class, chip.memory_bytes) == ("my-board-2", "sbc", 16 * 2**30)
    assert chip.bandwidth_bytes_per_s == pytest.approx(34.1e9)
    assert chip.peak_flops == {"fp16": pytest.approx(0.5e12)}
    assert (chip.prices[0].usd, chip.prices[0].date) == (120, "2026-04")
    as_json = written(tmp_path, json.dumps({"name": "B", "class": "cpu", "bandwidth_gb_per_s": 50}), "b.json")
    assert read_chip(as_json).chip_class == "cpu"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: B\nclass: sbc\n", r"board.yaml: bandwidth_gb_per_s is missing; give the nominal"),
        ("name: B\nclass: phone\nbandwidth_gb_per_s: 50\n", r"class: found 'phone'; right is one of datacenter"),
        ("name: B\nclass: sbc\nbandwidth_gb_per_s: fast\n", r"bandwidth_gb_per_s: found 'fast'; right is"),
        ("name: B\nclass: sbc\nbandwidth_gb_per_s: -3\n", r"bandwidth_gb_per_s: found -3; right is"),
        ("name: B\nclass: sbc\nbandwidth_gb_per_s: .inf\n", r"bandwidth_gb_per_s: found inf; right is"),
        ("name: B\nclass: sbc\nbandwith: 50\n", r"'bandwith'|bandwidth_gb_per_s is missing"),
        ("name: B\nclass: sbc\nbandwidth_gb_per_s: 5\nspeed: 3\n", r"no key is called 'speed'; the keys are name, "),
        (
            "name: B\nclass: sbc\nbandwidth_gb_per_s: 5\nprices: [{kind: hour, usd: -1, date: 2026-04}]\n",
            r"prices.0.usd: found -1; right is a list",
        ),
        ("- a\n- b\n", r"found \['a', 'b'\] where keys were expected"),
        ("name: [\n", r"not well-formed"),
    ],
)
def test_what_is_wrong_with_a_description_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_chip(written(tmp_path, text))


@given(
    st.dictionaries(
        st.text(string.ascii_lowercase, max_size=6) | st.sampled_from(["name", "class", "bandwidth_gb_per_s"]),
        st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2),
    )
)
def test_any_description_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content))
    try:
        said = f"any.json: {read_chip(path).bandwidth_bytes_per_s:.0f} B/s"
    except UserError as error:
        said = str(error)
    assert "any.json: " in said
    assert "\n" not in said


def test_the_verb_lists_shows_and_refuses() -> None:
    listed = run("--full")
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()[1 : len(SLUGS) + 1]] == SLUGS
    shown = run("rtx-4090", "--json")
    machine = json.loads(shown.stdout)
    assert machine["schema"] == "breakeven.machines/1"
    assert machine["machine"]["bandwidth_bytes_per_s"] == 1008e9
    assert len(json.loads(run("--json").stdout)["machines"]) == len(SLUGS)
    refused = run("rtx-4095")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("columns", [40, 80])
def test_narrow_terminals_lose_columns_not_names(columns: int) -> None:
    assert max(map(len, run(columns=columns).stdout.splitlines())) <= columns
    lines = run("--full", columns=columns).stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert [line.split()[0] for line in lines[1 : len(SLUGS) + 1]] == SLUGS


PAGE = Path(__file__).parent.parent / "docs" / "machines.md"


def test_the_page_shows_a_description_that_can_be_read(tmp_path: Path) -> None:
    shown = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert shown is not None
    chip = read_chip(written(tmp_path, shown[1]))
    assert (chip.name, chip.tdp_w, chip.link_bytes_per_s) == ("My board", 12, 1.2e9)


def test_the_page_names_every_field() -> None:
    listed = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    assert set(Chip.__struct_fields__) <= listed


def test_looking_a_chip_up_by_name_needs_no_library_that_reads_files() -> None:
    code = (
        "import sys; from breakeven.forecast import profiles, predict; from breakeven.hardware.chips import chip_named;"
        "chip_named('h100'); sys.exit('pydantic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
