"""Files that mean harm: one line, exit 2, within seconds and little memory, and no control character on a terminal.

Each runs in a process of its own, under a limit on memory. Time is the processor's, so that a busy machine does not
count against it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import load_log_fixtures
import msgspec
import pytest
from families_fixtures import SMALL, small_config
from load_report_fixtures import served
from report_fixtures import two_models

from breakeven.errors import BreakevenError, UserError
from breakeven.measure import events
from breakeven.model.layouts.derive import spec_from_config
from breakeven.model.summary import detail
from breakeven.runs.recompute import recompute
from tests.pace_fixtures import paced

MOST_CPU_S = 5.0
"""Of which Python, typer and the readers' imports take one."""
MOST_BYTES = 300_000_000
_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in what `getrusage` counts memory in."""


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


_MEASURED = """
import json, os, resource, sys
pid = os.fork()
if not pid:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (240, 240))
    os.execv(sys.executable, [sys.executable, "-m", "breakeven.cli", *sys.argv[2:]])
_, status, used = os.wait4(pid, 0)
with open(sys.argv[1], "w") as file:
    json.dump([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss], file)
"""
"""Runs a command under limits and writes what it took. A small process does it: a child's peak begins at its parent's
size, and these tests' own may be large."""


def run(*words: str | Path) -> Ended:
    """`breakeven WORDS`, and that it took little of the machine."""
    with tempfile.NamedTemporaryFile() as told:
        command = [sys.executable, "-c", _MEASURED, told.name, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        status, cpu_s, peak = json.load(told)
    ended = Ended(status, done.stdout, done.stderr)
    assert cpu_s < paced(MOST_CPU_S), ended
    assert peak * _UNIT < MOST_BYTES, ended
    return ended


def refused(*words: str | Path) -> str:
    """The one plain line with which `breakeven WORDS` ends."""
    ended = run(*words)
    assert (ended.status, ended.out) == (2, ""), ended
    assert ended.err.startswith("breakeven: ")
    assert ended.err.count("\n") == 1
    assert ended.err.rstrip("\n").isprintable()
    return ended.err


def _gguf(keys: int, tensors: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _key(name: bytes, kind: int, value: bytes) -> bytes:
    return _text(name) + struct.pack("<I", kind) + value


_LLAMA = _key(b"general.architecture", 8, _text(b"llama"))
_GGUF = {
    "counts of 2^63": (_gguf(2**63, 2**63), 0, "truncated"),
    "a string of 2^62": (_gguf(1, 0, struct.pack("<Q", 2**62) + b"x"), 0, "truncated"),
    "a string of 3 GB": (_gguf(1, 0, struct.pack("<Q", 3 * 10**9)), 4 * 10**9, "goes on past 64 MiB"),
    "a list of 3e9 numbers": (_gguf(1, 0, _key(b"k", 9, struct.pack("<IQ", 0, 3 * 10**9))), 4 * 10**9, "a list of 3,0"),
    "a list of 2^61 numbers": (_gguf(1, 0, _key(b"k", 9, struct.pack("<IQ", 12, 2**61))), 0, "truncated"),
    "3e8 empty strings": (_gguf(1, 0, _key(b"k", 9, struct.pack("<IQ", 8, 3 * 10**8))), 4 * 10**9, "a list of 300,0"),
    "lists in lists": (_gguf(1, 0, _key(b"k", 9, struct.pack("<IQ", 9, 1) * 100)), 0, "a value of type 9"),
    "2^20 lists of lists": (_gguf(1, 0, _key(b"k", 9, struct.pack("<IQ", 9, 1 << 20))), 10**8, "a list of 1,0"),
    "2^15 lists of lists": (_gguf(1, 0, _key(b"k", 9, struct.pack("<IQ", 9, 1 << 15))), 10**8, "m.gguf"),
    "2^21 strings": (_gguf(1, 0, _key(b"k", 9, struct.pack("<IQ", 8, 1 << 21))), 10**8, "m.gguf"),
    "1e8 keys": (_gguf(10**8, 0), 4 * 10**9, "100,000,000 keys"),
    "1e8 tensors": (_gguf(0, 10**8), 4 * 10**9, "100,000,000 tensors"),
    "alignment of 2^60": (
        _gguf(1, 0, _key(b"general.alignment", 10, struct.pack("<Q", 2**60))),
        200,
        "general.architecture",
    ),
    "escapes in an architecture": (
        _gguf(1, 0, _key(b"general.architecture", 8, _text(b"\x1b[31mZ\x9b0m\x07"))),
        200,
        "m.gguf",
    ),
    "escapes in a tensor": (_gguf(1, 1, _LLAMA + _text(b"\x1b]0;t\x07") + struct.pack("<I", 9)), 200, "9 dimensions"),
    "2^31 layers": (_gguf(2, 0, _LLAMA + _key(b"llama.block_count", 4, struct.pack("<I", 2**31))), 200, "m.gguf"),
    "sizes of 2^64": (
        _gguf(1, 1, _LLAMA + _text(b"x") + struct.pack("<I", 4) + b"\xff" * 32 + struct.pack("<IQ", 0, 2**64 - 1)),
        300,
        "truncated",
    ),
}


@pytest.mark.parametrize("name", _GGUF)
def test_a_hostile_gguf_is_refused(name: str, tmp_path: Path) -> None:
    """Padded with a hole to so many bytes, which takes no room on the disk."""
    head, size, told = _GGUF[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(head)
    os.truncate(path, max(size, len(head)))
    assert told in refused("models", path)


_CONFIG: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, it must be at most 512"),
        ({"hidden_size": 10**300}, "..., it must be at most 1,000,000,000,000"),
        ({"rope_theta": 10**400}, "it must be a number"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan, it must be a number"),
        ({"num_attention_heads": "\x1b[31m" * 10**5}, "it must be a positive whole number"),
        ({"model_type": "\x1b[31mZ"}, "config.json"),
    ],
)
def test_a_hostile_configuration_is_refused(changed: dict[str, object], told: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(_CONFIG | changed))
    assert told in refused("models", path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a":' * 100_000, "not JSON (it is nested too deeply)"),
        ('{"hidden_size":' + "9" * 10_000 + "}", "not JSON (a number has too many digits)"),
        ("[" + "[]," * 1_100_000 + "[]]", "not JSON (it holds more than 1,000,000 values)"),
        ("x" * 5_000_000, "larger than 4 MB"),
        ("[]", "it must be a JSON object"),
    ],
)
def test_json_that_is_no_configuration_is_refused(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    assert told in refused("models", path)


def _row(**changed: object) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changed}).encode()


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (_row(shape=[10**18] * 6), "has no shape"),
        (_row(shape=[2] * 10**5), "has no shape"),
        (b'{"\\u001b[31mZ": {"shape": 3}}', "has no shape"),
        (b"{" + b"," * 2_000_000 + b"}", "holds more than 1,000,000 values"),
        (None, "not a safetensors file"),
        (b"{}", "hold no tensors"),
    ],
)
def test_a_hostile_safetensors_header_is_refused(header: bytes | None, told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_CONFIG))
    size = 2**62 if header is None else len(header)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", size) + (header or b""))
    assert told in refused("models", tmp_path)


def test_what_a_file_calls_itself_does_not_drive_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(_CONFIG | {"_name_or_path": "\x1b[31mZ\x1b]0;t\x07\x9b\u202e"}))
    for words in (["models"], ["models", "--json"], ["predict", "--machine", "rtx-4090"]):
        ended = run(words[0], path, *words[1:])
        assert ended.status == 0, ended
        assert "?[31mZ" in ended.out or words[0] == "predict"  # which calls it by its directory
        assert all(line.isprintable() for line in ended.out.split("\n"))


_SMALL = "hidden: 64\nvocab: 100\ncontext: 64\nheads: 4\nffn_width: 128\n"


def _folds(line: str) -> str:
    """Nine times a letter's value in each next letter's."""
    letters = "abcdefghi"
    return "".join(
        line.format(next=after, folded=",".join([f"*{before}"] * 9)) + "\n"
        for before, after in itertools.pairwise(letters)
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &a [x]\n" + _folds("{next}: &{next} [{folded}]"), "aliases unfold to more than 100,000 values"),
        ("a: &a {k: 1}\n" + _folds("{next}: &{next} {{<<: [{folded}]}}"), "aliases unfold to more than 100,000 values"),
        (_SMALL + "n_layers: 1000000000\n", "n_layers: found 1000000000, it must be less than or equal to 512"),
        (_SMALL + "layers: [{repeat: 1000000000}]\n", "layers.0.repeat: found 1000000000"),
        (_SMALL + "layers: [{repeat: 500, pattern: [{repeat: 500}]}]\n", "repeat: makes more than 512 layers"),
        (_SMALL + "n_layers: 2\nhidden2: " + "9" * 5000, "a number has too many digits"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "{a: " * 5000, "nested too deeply"),
        ("- " * 5000, "nested too deeply"),
        ("x: 1\n" * 20_000, "larger than 0.064 MB"),
        ('from: "\\e[31mZ\\u009b"\n', "no model is called"),
        ('"\\e[31mZ": 1\n', "no such key"),
        (_SMALL + 'n_layers: 2\nfamily: "\\e[31mZ"\n', "family: found"),
        ("from: m.yaml\n", "leads back to this file"),
    ],
)
def test_a_hostile_yaml_is_refused(text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert told in refused("models", "m.yaml")


def _log(requests: Sequence[events.Event]) -> list[dict[str, Any]]:
    opening = events.LoadStudyStarted(
        kind="bench",
        fingerprint="f",
        version="0.1",
        started_at="2026-01-01T00:00:00Z",
        command="c",
        seed=1,
        machine=two_models().machine,
        models=[served("a")],
        workload=load_log_fixtures.POISSON,
    )
    whole = [opening, *load_log_fixtures.run(requests, to_s=2.0), events.StudyStopped(because="budget", measured_s=3.0)]
    return [json.loads(msgspec.json.encode(event)) for event in whole]


def _write_log(directory: Path, lines: Iterable[object]) -> Path:
    (directory / "events.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return directory


def test_no_number_in_an_event_log_is_a_crash(tmp_path: Path) -> None:
    log = _log([load_log_fixtures.request(i, due_s=0.1 * i) for i in range(6)])
    recompute(_write_log(tmp_path, log))
    for position, event in enumerate(log[1:5], start=1):
        for key, value in event.items():
            if not isinstance(value, int | float | list):
                continue
            for strange in (2**63 - 1, -(2**62), 2**31, 10**400, -1, 0, 1e308, None, "x", [2**62]):
                changed = [*log[:position], {**event, key: strange}, *log[position + 1 :]]
                with contextlib.suppress(BreakevenError):
                    recompute(_write_log(tmp_path, changed))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"event":"study_started","x":' + b"[" * 100_000, "line 1: not an event"),
        (b'{"event":"study_started","seed":' + b"9" * 10_000 + b"}", "line 1: not an event"),
        (b'{"event":"\x1b[31mZ"}', "line 1: not an event"),
        (b'{"event":"\\u001b[31mZ"}', "line 1: not an event"),
        (b"\x00" * 100, "line 1: not an event"),
    ],
)
@pytest.mark.parametrize("verb", ["report", "check"])
def test_a_hostile_event_log_is_refused(line: bytes, told: str, verb: str, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(line + b"\n")
    os.truncate(tmp_path / "events.jsonl", 3 * 10**9)
    (tmp_path / "result.json").write_bytes(line)
    if verb == "report":
        assert told in refused("report", tmp_path)
    else:
        assert "result.json" in refused("check", tmp_path, tmp_path)


def test_a_log_without_a_line_of_ours_is_refused_however_large(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").touch()
    os.truncate(tmp_path / "events.jsonl", 3 * 10**9)
    assert "line 1: not an event" in refused("report", tmp_path)


_VALUES: list[object] = [
    10**400,
    -1,
    0,
    2.5,
    math.nan,
    math.inf,
    1e308,
    "x",
    "",
    True,
    None,
    [],
    [[]],
    {},
    {"a": {}},
    [None],
]


@pytest.mark.parametrize("family", sorted(SMALL))
def test_no_value_of_a_configuration_is_a_crash(family: str) -> None:
    """Each key of a small configuration, and those that many know, with everything that a value may be."""
    config = small_config(family)
    known = {"rope_scaling", "rope_parameters", "quantization_config", "text_config", "layer_types", "sliding_window"}
    known |= {"head_dim", "num_nextn_predict_layers", "tie_word_embeddings", "hidden_act", "norm_topk_prob"}
    for key in sorted(config.keys() | known):
        for value in _VALUES:
            try:
                spec = spec_from_config(config | {key: value}, "n", "config.json")
                detail("n", spec)
            except UserError as error:
                assert len(str(error)) < 1000  # noqa: PT017
