"""Machines that are described: in words joined by plus signs, and in files."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.hardware.chip_file import read_chip
from breakeven.hardware.chips import chip_named, chips, rate_of, rate_words, size_of, size_words
from breakeven.hardware.described import machine_named
from breakeven.hardware.machine import HostMemory, Machine, assembled, host_of

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "devices", "host"),
    [
        ("rtx-3090", ["rtx-3090"], None),
        ("NVIDIA GeForce RTX 3090", ["rtx-3090"], None),
        ("2xrtx-3090", ["rtx-3090", "rtx-3090"], None),
        ("rtx-3090 + rtx-3060", ["rtx-3090", "rtx-3060"], None),
        ("ryzen-ai-max+-395", ["ryzen-ai-max-395"], None),
        ("rtx-3090+ddr4-3200x2:64GB", ["rtx-3090"], (64, 51.2, None, "ddr4-3200x2")),
        ("rtx-3090+DDR5-6000x2:96 GiB:16 cores", ["rtx-3090"], (96, 96.0, 16, "ddr5-6000x2")),
        ("rtx-3090+ddr5-6000:64GB", ["rtx-3090"], (64, 96.0, None, "ddr5-6000x2, two channels assumed")),
        ("rtx-3090+lpddr5x-8533x4:128GB", ["rtx-3090"], (128, 273.056, None, "lpddr5x-8533x4")),
        ("rtx-3090+ram:64GB", ["rtx-3090"], (64, None, None, None)),
        ("rtx-3090+64GB", ["rtx-3090"], (64, None, None, None)),
        ("rtx-3090+host:64GB@50GB/s", ["rtx-3090"], (64, 50.0, None, None)),
        ("rtx-3090+ryzen-9-5950x+ram:32GB", ["rtx-3090"], (32, 51.2, None, "ryzen-9-5950x")),
        ("xeon-8480++ddr5-4400x8:512GB", ["xeon-8480"], (512, 281.6, None, "ddr5-4400x8")),
    ],
)
def test_what_people_type(
    text: str, devices: list[str], host: tuple[int, float | None, int | None, str | None] | None
) -> None:
    machine = machine_named(text)
    assert [chip.slug for chip in machine.devices] == devices
    if host is None:
        assert machine.host is None
        return
    assert machine.host is not None
    memory, rate, cores, words = host
    assert machine.host.memory_bytes == memory * GIB
    assert machine.host.bandwidth_bytes_per_s == (None if rate is None else pytest.approx(rate * 1e9))
    assert (machine.host.cores, machine.host.words) == (cores, words)


def test_links_and_disks_are_parts_too() -> None:
    machine = machine_named("rtx-3090+ram:64GB+pcie3x4+disk@3.5GB/s")
    assert machine.link_bytes_per_s == pytest.approx(3.94e9)
    assert machine.disk_bytes_per_s == 3.5e9
    assert machine_named("rtx-3090+link@16GB/s").link_bytes_per_s == 16e9


def test_another_size_of_memory_than_is_sold() -> None:
    (card,) = machine_named("rtx-2080-ti:22GB").devices
    assert (card.memory_bytes, card.bandwidth_bytes_per_s) == (22 * GIB, 616e9)


def test_a_chip_that_reads_the_machines_memory_takes_its_size_and_rate() -> None:
    (cpu,) = machine_named("ddr5-4800x12:384GB").devices
    assert (cpu.chip_class, cpu.memory_bytes, cpu.bandwidth_bytes_per_s) == ("cpu", 384 * GIB, 460.8e9)
    (mini,) = machine_named("radeon-780m+ddr5-5600x2:32GB").devices
    assert (mini.slug, mini.memory_bytes, mini.bandwidth_bytes_per_s) == ("radeon-780m", 32 * GIB, 89.6e9)
    sockets = machine_named("2xepyc-9654+ram:768GB").devices
    assert [chip.memory_bytes for chip in sockets] == [384 * GIB] * 2
    assert [chip.bandwidth_bytes_per_s for chip in sockets] == [460.8e9] * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rtx-3091", r"no chip is called 'rtx-3091'; nearest: rtx-3090"),
        ("rtx-3090+", r"nothing stands on one side of a \+"),
        ("", "nothing stands"),
        ("rtx-3090+ddr4-3200xtwo", r"found 'ddr4-3200xtwo'; right is ddr4-3200x2:64GB"),
        ("rtx-3090+ddr4-99999x2", r"found 99999 MT/s in 2 channels"),
        ("rtx-3090+ram:lots", r"'ram:lots': found 'lots'; right is a size with its unit"),
        ("rtx-3090+ram:0GB", r"found '0gb'; right is a size"),
        ("rtx-3090+host", r"'host' says nothing of the host memory"),
        ("rtx-3090+ddr4-3200x2@50GB/s", r"right is one rate"),
        ("rtx-3090+ram:64GB:32GB", r"right is one size"),
        ("rtx-3090+ram:0cores", r"found '0cores'; right is cores once"),
        ("rtx-3090+ram:64GB+64GB", r"'64GB': a machine has one host memory"),
        ("rtx-3090+pcie9x16", r"found no rate of the link; right is link@16GB/s or pcie4x16"),
        ("rtx-3090+disk@fast", r"found no rate of the disk; right is disk@3.5GB/s"),
        ("0xrtx-3090", r"found 0 devices; give 1 to 64"),
        ("99xrtx-3090", r"found 99 devices; give 1 to 64"),
        ("rtx-3090:12", r"found '12' behind rtx-3090; right is a size with its unit"),
        ("disk@3GB/s", r"no device is named"),
        ("ram:64GB", r"say how fast the memory is"),
        ("+" * 500, r"at most 400 letters"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_right(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        machine_named(text)


sizes = st.integers(1, 4096).map(lambda count: f"{count}GB") | st.integers(64, 9000).map(lambda count: f"{count}MB")
rates = st.decimals(min_value=1, max_value=4000, places=2).map(lambda rate: f"{rate}GB/s")
kinds = st.builds(
    lambda kind, rate, channels: f"{kind}-{rate}" + (f"x{channels}" if channels else ""),
    st.sampled_from(["ddr3", "ddr4", "ddr5", "lpddr4x", "lpddr5x"]),
    st.integers(200, 12_000),
    st.none() | st.integers(1, 16),
)
cores = st.just("") | st.integers(1, 512).map(lambda count: f":{count}cores")
hosts = st.builds(lambda kind, size, more: f"{kind}:{size}{more}", kinds, sizes, cores) | st.builds(
    lambda size, rate, more: f"host:{size}@{rate}{more}", sizes, rates, cores
)
devices = st.lists(
    st.builds(
        lambda count, chip: f"{count}x{chip}" if count > 1 else chip,
        st.integers(1, 4),
        st.sampled_from([chip.slug for chip in chips()]),
    ),
    min_size=1,
    max_size=4,
)


@given(devices, st.none() | hosts, st.none() | rates, st.none() | rates)
def test_a_machines_name_reads_back_as_the_machine(
    named: list[str], host: str | None, link: str | None, disk: str | None
) -> None:
    parts = [
        *named,
        *([host] if host else []),
        *([f"link@{link}"] if link else []),
        *([f"disk@{disk}"] if disk else []),
    ]
    machine = machine_named("+".join(filter(None, parts)))
    assert machine_named(machine.name) == machine
    assert machine.devices


@given(sizes, rates)
def test_sizes_and_rates_read_back(size: str, rate: str) -> None:
    assert size_of(size_words(size_of(size))) == size_of(size)
    assert rate_of(rate_words(rate_of(rate))) == rate_of(rate)


typed = st.text(st.sampled_from(string.printable + "\x1b\x00\x9b\u202e+x:@" + "64GBddr"), max_size=40)


@given(typed | st.builds(lambda head, rest: head + rest, st.sampled_from(["rtx-3090+", "ddr4-", "host:", "2x"]), typed))
def test_any_text_is_a_machine_or_one_printable_line(text: str) -> None:
    if text.strip().lower().endswith((".yaml", ".yml", ".json")):
        return
    try:
        said = machine_named(text).name
    except UserError as error:
        said = str(error)
    assert said.isprintable()


def written(directory: Path, text: str, name: str = "pc.yaml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


WHOLE = """\
devices: [rtx-3090, 2xrtx-3060]
host: {memory: 64GB, ddr: ddr4-3200x2, cores: 16}
link: pcie4x16
disk: 3.5GB/s
"""


def test_a_machines_file_holds_what_the_words_hold(tmp_path: Path) -> None:
    machine = machine_named(str(written(tmp_path, WHOLE)))
    assert machine.name == "pc"
    same = machine_named("rtx-3090+2xrtx-3060+ddr4-3200x2:64GB:16cores+pcie4x16+disk@3.5GB/s")
    assert (machine.devices, machine.host) == (same.devices, same.host)
    assert (machine.link_bytes_per_s, machine.disk_bytes_per_s) == (31.504e9, 3.5e9)
    as_json = {"name": "PC", "devices": ["rtx-3090"], "host": {"memory": "64GB", "bandwidth": "50GB/s"}}
    machine = machine_named(str(written(tmp_path, json.dumps(as_json), "pc.json")))
    assert machine.host == HostMemory(memory_bytes=64 * GIB, bandwidth_bytes_per_s=50e9)
    assert machine.name == "PC"
    assert machine_named(str(written(tmp_path, "devices: [rtx-3090]\nhost: ddr4-3200x2:64GB\n"))).host == host_of(
        "ddr4-3200x2:64GB"
    )


def test_a_device_may_be_described_in_place(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "devices:\n  - rtx-3090\n  - {name: My card, class: consumer, bandwidth_gb_per_s: 300, memory_gb: 8}\n",
    )
    assert [chip.slug for chip in machine_named(str(path)).devices] == ["rtx-3090", "my-card"]
    with pytest.raises(UserError, match=r"pc.yaml: describes a machine of 2 devices where one chip is asked for"):
        read_chip(path)


def test_the_old_files_of_one_chip_say_what_stands_beside_it(tmp_path: Path) -> None:
    chip = "name: RTX 3090 PC\nclass: consumer\nbandwidth_gb_per_s: 936\nmemory_gb: 24\n"
    plain = machine_named(str(written(tmp_path, chip)))
    assert plain == Machine(name="RTX 3090 PC", devices=(read_chip(tmp_path / "pc.yaml"),))
    typed_by_people = written(tmp_path, chip + "host_memory_gb: 64\nhost_bandwidth_gb_per_s: 51.2\n")
    machine = machine_named(str(typed_by_people))
    assert machine.host == HostMemory(memory_bytes=64 * GIB, bandwidth_bytes_per_s=51.2e9)
    assert machine.devices == plain.devices
    as_keys = machine_named(str(written(tmp_path, chip + "host: {memory: 64GB, bandwidth: 51.2GB/s}\n")))
    assert (as_keys.devices, as_keys.host) == (machine.devices, machine.host)


def test_host_memory_alone_is_a_cpu(tmp_path: Path) -> None:
    machine = machine_named(str(written(tmp_path, "name: Server\nhost: {memory: 384GB, ddr: ddr5-4800x12}\n")))
    assert [chip.chip_class for chip in machine.devices] == ["cpu"]
    assert machine.devices[0].memory_bytes == 384 * GIB


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("devices: rtx-3090\n", r"devices: found 'rtx-3090'; right is a list of chips"),
        ("devices: []\n", r"pc: no device is named"),
        ("devices: [rtx-3091]\n", r"devices.0: no chip is called 'rtx-3091'; nearest: rtx-3090"),
        ("devices: [rtx-3090, 7]\n", r"devices.1: found 7; right is a chip's name"),
        ("devices: [{name: X, class: consumer}]\n", r"devices.0.bandwidth_gb_per_s is missing; give the nominal"),
        ("devices: [rtx-3090]\nhosts: 3\n", r"no key is called 'hosts'; the keys are name, devices, host, link, disk"),
        ("devices: [rtx-3090]\nhost: 64\n", r"host: found 64; right is what stands beside the devices"),
        ("devices: [rtx-3090]\nhost: {}\n", r"host: found nothing in it"),
        ("devices: [rtx-3090]\nhost: lots\n", r"host: 'lots': found 'lots'; right is a size"),
        ("devices: [rtx-3090]\nhost: {memory: 64}\n", r"host.memory: found 64; right is the size of the host memory"),
        ("devices: [rtx-3090]\nhost: {size: 64GB}\n", r"no key is called 'host.size'; the keys are memory, bandwidth"),
        ("devices: [rtx-3090]\nhost: {ddr: fast}\n", r"host.ddr: found 'fast'; right is the kind, MT/s and channels"),
        ("devices: [rtx-3090]\nhost: {cores: -1}\n", r"host.cores: found -1; right is how many cores"),
        (
            "devices: [rtx-3090]\nhost: {ddr: ddr4-3200x2, bandwidth: 50GB/s}\n",
            r"host: ddr and bandwidth say the same; give one",
        ),
        ("devices: [rtx-3090]\nlink: fast\n", r"link: found 'fast'; right is the rate between host memory"),
        ("devices: [rtx-3090]\ndisk: 3\n", r"disk: found 3; right is the rate of the disk"),
        ("name: A\nclass: cpu\nbandwidth_gb_per_s: 50\nhost_memory_gb: x\n", r"host_memory_gb: found 'x'; right is"),
        (
            "name: A\nclass: cpu\nbandwidth_gb_per_s: 50\nhost_memory_gb: 5\nhost: {cores: 4}\n",
            r"give host alone",
        ),
    ],
)
def test_what_is_wrong_with_a_machines_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=r"pc\.yaml: .*" + said):
        machine_named(str(written(tmp_path, text)))


leaves = st.none() | st.booleans() | st.integers(-5, 2000) | st.floats() | typed | st.sampled_from(["64GB", "rtx-3090"])
keys = st.sampled_from(["memory", "bandwidth", "ddr", "cores", "name", "class", "bandwidth_gb_per_s"]) | typed


@given(
    st.dictionaries(
        st.sampled_from(["devices", "host", "link", "disk", "name", "class", "peak_tflops"]) | typed,
        leaves
        | st.lists(leaves | st.dictionaries(keys, leaves, max_size=3), max_size=3)
        | st.dictionaries(keys, leaves, max_size=4),
        max_size=5,
    )
)
def test_any_machines_file_is_read_or_refused_in_one_printable_line(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-machine.json"
    path.write_text(json.dumps(content))
    try:
        said = machine_named(str(path)).name
    except UserError as error:
        said = str(error)
        assert "any-machine.json: " in said
    assert said.isprintable()


def test_a_missing_file_says_what_to_give() -> None:
    with pytest.raises(UserError, match=r"nowhere.yaml: cannot be read \(No such file or directory\); give a YAML"):
        machine_named("nowhere.yaml")


def test_a_cpu_beside_a_card_is_the_host() -> None:
    machine = assembled(None, [chip_named("rtx-3090"), chip_named("ryzen-9-5950x")], None, None, None)
    assert [chip.slug for chip in machine.devices] == ["rtx-3090"]
    assert machine.host == HostMemory(bandwidth_bytes_per_s=51.2e9, words="ryzen-9-5950x")
