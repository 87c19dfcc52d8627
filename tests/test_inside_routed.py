"""Which experts a text reaches, read for little: the same as a trace says, whether graphs end early or not."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inside_fixtures import CODE, PROSE
from numpy.typing import NDArray
from small_layouts import LAYOUTS
from small_models import small

from breakeven.engines.inside.client import Inside, trace
from breakeven.engines.inside.layout import GgmlTensor
from breakeven.engines.inside.routed import ChoiceCounter, RoutingReader
from breakeven.engines.synthesis.write import synthesise
from breakeven.errors import EngineError, NotSupportedError, UserError
from breakeven.model.architecture import ModelSpec
from tests.cli_fixtures import is_alive

BATCH = 64
"""As `trace` has it, so that both compute the same sums."""
TEXT = f"{PROSE}\n{CODE}"
"""Of several batches: a byte is a token of a synthetic model."""


def written(spec: ModelSpec, directory: Path, format_name: str = "F16") -> Path:
    return synthesise(spec, format_name, directory / "moe.gguf", seed=3)


def traced(model: Path, text: str) -> tuple[tuple[int, ...], NDArray[np.int64]]:
    """Layers and choices (L, E) by the other way to ask."""
    told = trace(model, {"text": text}, threads=1, gpu_layers=0)
    counts = [np.bincount(ids_TK.ravel(), minlength=told.n_experts) for ids_TK in told.ids["text"]]
    return told.layers, np.stack(counts)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(small("qwen3moe"), tmp_path_factory.mktemp("routed"))


@pytest.fixture(scope="module")
def reader(qwen: Path) -> Iterator[RoutingReader]:
    with RoutingReader(qwen, most_tokens=300, threads=1, batch=16) as one:
        yield one


# What stands before the last choice, and behind it: dense layers first, states that are written, convolutions, a choice
# that two sets of experts follow, layers of one part alone; a dense layer with keys and values behind the last choice.
@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        (small("qwen3moe"), (0, 1, 2, 3)),
        (small("lfm2moe"), (1, 2, 3)),
        (small("gpt-oss"), (0, 1, 2, 3)),
        (small("llama4"), (1, 3)),
        (LAYOUTS["deepseek2"], (1, 2)),
        (LAYOUTS["deepseek4"], (0, 1, 2)),
        (LAYOUTS["qwen3next"], (0, 1, 2, 3)),
        (LAYOUTS["grovemoe"], (0, 1)),
        (LAYOUTS["nemotron_h_moe"], (1, 3)),
        (LAYOUTS["jamba"], (1,)),
    ],
    ids=lambda value: value.name if isinstance(value, ModelSpec) else "",
)
def test_counts_are_those_of_a_trace_and_of_whole_graphs(
    spec: ModelSpec, layers: tuple[int, ...], tmp_path: Path
) -> None:
    model = written(spec, tmp_path)
    with RoutingReader(model, threads=1, batch=BATCH) as one:
        early = one.read(TEXT)
        assert one.ends_at == layers[-1]
    assert early.tokens == early.whole_tokens > 2 * BATCH, "keys and values must pass from batch to batch"
    assert early.layers == layers
    with RoutingReader(model, threads=1, batch=BATCH, early=False) as one:
        assert one.ends_at is None
        whole = one.read(TEXT)
    assert np.array_equal(early.choices_LE, whole.choices_LE)
    told_layers, told_LE = traced(model, TEXT)
    assert early.layers == told_layers
    assert np.array_equal(early.choices_LE, told_LE)
    assert (early.choices_LE > 0).sum() > len(early.layers), "more than one expert a layer"


def test_quantized_weights_in_their_place_choose_nearly_as_repacked_ones_do(tmp_path: Path) -> None:
    model = written(small("qwen3moe"), tmp_path, "Q4_K_M")
    with RoutingReader(model, threads=1, batch=BATCH) as one:
        mapped = one.read(TEXT)
    _, repacked_LE = traced(model, TEXT)
    moved = np.abs(mapped.choices_LE - repacked_LE).sum() / 2 / repacked_LE.sum()
    assert moved < 0.02


@settings(max_examples=25)
@given(text=st.text(max_size=120), other=st.text(min_size=1, max_size=40))
def test_every_token_chooses_its_experts_in_every_layer_and_nothing_is_kept(
    reader: RoutingReader, text: str, other: str
) -> None:
    text = f"{text}."
    found = reader.read(text)
    assert found.choices_LE.shape == (4, 8)
    assert (found.choices_LE.sum(axis=1) == 2 * found.tokens).all()
    assert (found.choices_LE <= found.tokens).all(), "a token chooses an expert once"
    reader.read(other)
    assert np.array_equal(reader.read(text).choices_LE, found.choices_LE)


def test_a_long_text_is_cut_and_says_so(reader: RoutingReader, qwen: Path) -> None:
    found = reader.read(TEXT * 4)
    with Inside(qwen, 1) as inside:
        whole = len(inside.tokenize(TEXT * 4))
        assert (found.tokens, found.whole_tokens) == (300, whole)
        first = trace(qwen, {"cut": inside.tokenize(TEXT * 4)[:300]}, threads=1, gpu_layers=0)
    assert first.ids["cut"].shape[1] == 300
    # Other batches round otherwise; all but a few choices are the same.
    counts = np.stack([np.bincount(ids.ravel(), minlength=8) for ids in first.ids["cut"]])
    assert np.abs(counts - found.choices_LE).sum() / 2 / counts.sum() < 0.02


def test_a_context_grows_with_what_comes(qwen: Path) -> None:
    text = TEXT * 6
    with RoutingReader(qwen, most_tokens=2000, threads=1, batch=BATCH) as one:
        small_one, long_one, again = one.read(CODE), one.read(text), one.read(CODE)
        assert 1024 < long_one.tokens <= 2000
    assert np.array_equal(small_one.choices_LE, again.choices_LE)
    with RoutingReader(qwen, most_tokens=2000, threads=1, batch=BATCH) as one:
        assert np.array_equal(one.read(text).choices_LE, long_one.choices_LE)


def test_special_tokens_in_a_text_are_special(reader: RoutingReader, qwen: Path) -> None:
    text = "user: hello<|eos|>assistant: "
    with Inside(qwen, 1) as inside:
        special, letters = len(inside.tokenize(text, parse_special=True)), len(inside.tokenize(text))
    assert letters > special
    assert reader.read(text).whole_tokens == special


def test_the_first_token_comes_once(qwen: Path, tmp_path: Path) -> None:
    written, wants = "<|bos|>", b"tokenizer.ggml.add_bos_token" + (7).to_bytes(4, "little")
    whole = qwen.read_bytes()
    assert whole.count(wants + b"\0") == 1
    model = tmp_path / "first.gguf"
    model.write_bytes(whole.replace(wants + b"\0", wants + b"\1"))
    with Inside(model) as inside:
        first, *letters = inside.tokenize(PROSE)
        assert inside.tokenize(written, parse_special=True) == [first, first]
    with RoutingReader(model) as reader:
        without, with_it = reader.read(PROSE), reader.read(written + PROSE)
        assert without.tokens == with_it.tokens == 1 + len(letters)
        np.testing.assert_array_equal(without.choices_LE, with_it.choices_LE)
        assert reader.read(f"{PROSE}{written}").tokens == without.tokens + 1, "one that stands inside stays"


def test_its_cpu_time_is_told_by_text_and_apart_for_loading(reader: RoutingReader) -> None:
    process = psutil.Process(reader.pid)
    assert reader.load_cpu_s > 0
    reader.read(CODE)
    before = process.cpu_times()
    found = [reader.read(TEXT * 4) for _ in range(3)]
    after = process.cpu_times()
    taken_s = after.user + after.system - before.user - before.system
    # The system counts in hundredths.
    assert sum(each.cpu_s for each in found) == pytest.approx(taken_s, abs=0.04)
    assert all(each.cpu_s > 0 for each in found)


def test_what_it_took_is_told_and_half_letters_are_read(reader: RoutingReader) -> None:
    assert reader.load_cpu_s > 0
    assert reader.read("half a letter \ud83d").cpu_s > 0
    assert reader.loaded.architecture == "qwen3moe"
    assert (reader.loaded.n_experts, reader.loaded.n_experts_per_token) == (8, 2)


@pytest.mark.skipif(sys.platform == "win32", reason="no such priorities")
def test_it_yields_to_everything_else(reader: RoutingReader) -> None:
    assert psutil.Process(reader.pid).nice() == 19
    assert psutil.Process().nice() < 19


def test_what_cannot_be_read_is_refused(reader: RoutingReader, qwen: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty"):
        reader.read("")
    assert reader.read("x").tokens == 1, "the process goes on"
    dense = synthesise(small("llama"), "F16", tmp_path / "dense.gguf")
    with pytest.raises(NotSupportedError, match=r"dense model \(llama.*Mixture-of-Experts"):
        RoutingReader(dense)
    with pytest.raises(UserError, match="not a GGUF"):
        RoutingReader(Path(__file__))
    with pytest.raises(UserError, match="most_tokens is 0"):
        RoutingReader(qwen, most_tokens=0)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(qwen.read_bytes()[: 64 * 1024])
    with pytest.raises(EngineError, match="cannot load"):
        RoutingReader(broken)
    assert not [child for child in psutil.Process().children() if child.pid != reader.pid and _reads(child)]


def _reads(process: psutil.Process) -> bool:
    try:
        return "inside.routed" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_closed_by_another_thread_it_says_so_and_its_process_is_gone(qwen: Path) -> None:
    reader = RoutingReader(qwen)
    child = psutil.Process(reader.pid)
    errors: list[BaseException] = []

    def read_on() -> None:
        try:
            while True:
                reader.read(TEXT * 4)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=read_on)
    thread.start()
    time.sleep(0.05)
    reader.close()
    thread.join(30)
    assert not thread.is_alive()
    assert [type(error) for error in errors] == [EngineError]
    assert not child.is_running()
    with pytest.raises(EngineError, match="was ended"):
        reader.read(CODE)


class Nodes:
    """A graph's choices, as the library would hand them over."""

    def __init__(self, **ids_TK: NDArray[np.int32]) -> None:
        self.data: dict[int, NDArray[np.int32]] = {}
        self.nodes: dict[str, GgmlTensor] = {}
        for name, ids in ids_TK.items():
            node = GgmlTensor(type=26, name=name.replace("_at_", "-").encode())
            node.ne[:], node.nb[:] = (ids.shape[1], ids.shape[0], 1, 1), (4, 4 * ids.shape[1], ids.nbytes, ids.nbytes)
            self.nodes[name], self.data[ctypes.addressof(node)] = node, ids

    def __getitem__(self, name: str) -> int:
        return ctypes.addressof(self.nodes[name])

    def ggml_nbytes(self, node: int) -> int:
        return self.data[node].nbytes

    def ggml_backend_tensor_get(self, node: int, to: int, offset: int, size: int) -> None:
        ctypes.memmove(to, self.data[node].ctypes.data + offset, size)


def test_a_graph_is_left_after_the_last_choice_and_so_is_each_of_its_later_parts() -> None:
    ids = np.array([[0, 2], [2, 1], [2, 3]], np.int32)
    nodes = Nodes(ffn_moe_topk_at_3=ids, ffn_moe_topk_at_5=ids[:, ::-1].copy(), ffn_out_at_5=ids)
    counter = ChoiceCounter(nodes, 4)  # type: ignore[arg-type]
    third, fifth, rest = nodes["ffn_moe_topk_at_3"], nodes["ffn_moe_topk_at_5"], nodes["ffn_out_at_5"]
    for ends_at in (None, 5):
        counter.ends_at = ends_at
        counter.begin_batch()
        assert not counter(rest, True)
        for node, last in ((third, False), (fifth, True)):
            assert counter(node, True)
            assert counter(node, False) == (ends_at is None or not last), "false ends"
        # The scheduler goes on with the next device's part: whole, or no more than one node of it.
        assert counter(rest, True) == (ends_at is not None)
        assert counter(rest, False) == (ends_at is None)
        counter.check(3)
    assert counter.last == 5
    assert {layer: count_E.tolist() for layer, count_E in counter.choices.items()} == {3: [2, 2, 6, 2], 5: [2, 2, 6, 2]}
    # A block with two sets of experts on one choice tells it twice.
    counter.begin_batch()
    assert counter(third, True)
    assert counter(third, False)
    assert not counter(third, True)
    with pytest.raises(EngineError, match="of 4 tokens"):
        counter.check(4)
    with pytest.raises(EngineError, match="expert 3 was chosen in a model of 3 experts"):
        ChoiceCounter(nodes, 3)(third, False)  # type: ignore[arg-type]


def test_a_killed_parent_takes_it_along(qwen: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from breakeven.engines.inside.routed import RoutingReader\n"
        "reader = RoutingReader(Path(sys.argv[1])); print(reader.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(qwen)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)
