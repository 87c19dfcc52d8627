"""Synthetic files must load, generate, repeat by seed, and route as asked: in the real engine, not on paper."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

import breakeven
from breakeven.engines import cache
from breakeven.engines.inside.client import trace
from breakeven.engines.llama_cpp.server import LlamaCppServer
from breakeven.engines.synthesis.fill import FLOATS, LAYOUTS, BlockPool
from breakeven.engines.synthesis.routing import ExpertUse, parse_routing
from breakeven.engines.synthesis.write import synthesise, synthesised_bytes
from breakeven.errors import NotSupportedError, UserError
from breakeven.model.catalogue import lookup
from breakeven.model.formats.gguf import FORMATS as FORMAT_TABLE
from breakeven.model.formats.gguf import types_in
from breakeven.model.layouts.registry import FAMILIES
from breakeven.model.readers.gguf import read_gguf
from breakeven.model.tensors import tensors
from tests.small_models import CONFIGS, MOE, small

FORMATS = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M", "Q6_K", "Q2_K", "IQ4_XS", "IQ3_M", "IQ1_M", "TQ2_0")
TOKENS = 1024


def ask(url: str, path: str, **body: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url + path, json.dumps(body).encode(), headers)) as response:
        return json.load(response)


def generate(path: Path, tmp_path: Path) -> Any:
    """Sixteen tokens with the probabilities of the best few, from a server of its own."""
    with LlamaCppServer(path, context=256, slots=1, threads=1, log=tmp_path / "log") as backend:
        return ask(
            backend.url,
            "/completion",
            prompt="Héllo 世界",
            n_predict=16,
            ignore_eos=True,
            temperature=1,
            seed=7,
            n_probs=3,
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_loads_and_generates_finite_numbers(name: str, tmp_path: Path) -> None:
    path = synthesise(small(name), "Q4_K_M", tmp_path / "m.gguf")
    answer = generate(path, tmp_path)
    assert answer["timings"]["predicted_n"] == 16
    assert answer["timings"]["prompt_n"] == len("Héllo 世界".encode())
    chances = [step["logprob"] for step in answer["completion_probabilities"]]
    assert all(math.isfinite(chance) and chance < 0 for chance in chances)
    assert len({step["id"] for step in answer["completion_probabilities"]}) > 4, "it repeats itself"


@pytest.mark.parametrize("name", ["olmoe-1b-7b", "llama-3.2-1b", "qwen2.5-1.5b", "gemma-2-2b"])
def test_the_four_models_of_arxiv_2606_21428_run_at_full_size(name: str, tmp_path: Path) -> None:
    path = synthesise(lookup(name), "Q4_0", tmp_path / "m.gguf")
    answer = generate(path, tmp_path)
    path.unlink()
    assert answer["timings"]["predicted_n"] == 16
    assert all(math.isfinite(step["logprob"]) for step in answer["completion_probabilities"])


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_format_loads_and_generates(format_name: str, tmp_path: Path) -> None:
    path = synthesise(small("olmoe"), format_name, tmp_path / "m.gguf")
    answer = generate(path, tmp_path)
    assert all(math.isfinite(step["logprob"]) for step in answer["completion_probabilities"])


@pytest.mark.parametrize("kind", [*LAYOUTS, GGMLQuantizationType.F16, GGMLQuantizationType.BF16])
def test_random_blocks_of_every_type_have_the_spread_asked_for(kind: GGMLQuantizationType) -> None:
    rng = np.random.Generator(np.random.SFC64(0))
    pool = BlockPool(kind, rng, 1 << 20)
    pool.scale_to(0.05)
    blocks = np.concatenate(list(pool.take(4096, rng)))
    values = dequantize(blocks, kind)
    assert abs(float(values.std()) / 0.05 - 1) < 0.02
    assert abs(float(values.mean())) < 0.015, "codes from -8 to 7 lie half a step low, no more"
    if pool.marks:
        marked = dequantize(pool.mark_first(blocks), kind).reshape(len(blocks), -1)
        assert np.ptp(marked[:, 0]) < 1e-6
        assert marked[0, 0] > 0.05


def test_every_format_of_llama_cpp_can_be_written() -> None:
    spec = small("olmoe")
    kinds = {kind for chosen in FORMAT_TABLE.values() for kind in types_in(spec, chosen).values()}
    able = {kind.name for kind in (*LAYOUTS, *FLOATS, GGMLQuantizationType.MXFP4)}
    assert {str(kind) for kind in kinds} <= able


@pytest.mark.parametrize("name", CONFIGS)
def test_the_file_holds_exactly_the_tensors_of_the_model(name: str, tmp_path: Path) -> None:
    spec = small(name)
    path = synthesise(spec, "Q4_K_M", tmp_path / "m.gguf")
    held = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in GGUFReader(path).tensors}
    assert held == {t.name: t.shape for t in tensors(spec)}
    again = read_gguf(path)
    assert {t.name: t.shape for t in tensors(again)} == held
    assert 0 <= path.stat().st_size - synthesised_bytes(spec, "Q4_K_M") < 100_000


def test_a_skew_is_carried_by_embeddings_of_three_bits_too(tmp_path: Path) -> None:
    path = synthesise(small("qwen3moe"), "IQ3_M", tmp_path / "m.gguf", routing=ExpertUse(1.2))
    ids = np.random.default_rng(0).integers(0, 1024, TOKENS).tolist()
    traced = trace(path, {"tokens": ids}, threads=1).routing()
    assert np.max(traced.frequencies) > 0.6


@pytest.mark.parametrize("name", MOE)
@pytest.mark.parametrize("zipf", [0.0, 1.2])
def test_real_routing_is_the_routing_asked_for(name: str, zipf: float, tmp_path: Path) -> None:
    routing = ExpertUse(zipf)
    path = synthesise(small(name), "Q4_K_M", tmp_path / "m.gguf", routing=routing)
    ids = np.random.default_rng(0).integers(0, 1024, TOKENS).tolist()
    traced = trace(path, {"tokens": ids}, threads=1).routing()
    wanted = routing.frequencies(traced.n_experts, traced.n_experts_per_token)
    seen = np.sort(np.array(traced.frequencies), axis=1)[:, ::-1]
    # Sorting draws the extremes apart: sampling alone gives 4.5 standard errors on the worst of 32 values.
    error = 4.5 * np.sqrt(wanted * (1 - wanted) / TOKENS) + 0.01
    assert np.all(np.abs(seen - wanted) <= error), np.abs(seen - wanted).max()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    spec = small("olmoe")
    one, two, other = (
        synthesise(spec, "Q4_K_M", tmp_path / f"{i}.gguf", seed=seed).read_bytes() for i, seed in enumerate((3, 3, 4))
    )
    assert one == two
    assert one != other
    assert len(one) == len(other)


@given(st.integers(2, 300), st.data())
def test_frequencies_add_up_and_fall_with_rank(n_experts: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n_experts))
    zipf = data.draw(st.sampled_from([0.0, 0.5, 1.2, 3.0]))
    shares = ExpertUse(zipf).frequencies(n_experts, k)
    assert math.isclose(shares.sum(), k, rel_tol=1e-9)
    assert np.all(np.diff(shares) <= 1e-12)
    assert shares.max() <= 1 + 1e-9


@pytest.mark.parametrize("text", ["zipf", "zipf:", "zipf:-1", "zipf:9", "random", "zipf:x"])
def test_a_routing_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="uniform"):
        parse_routing(text)
    assert str(parse_routing("zipf:1.2")) == "zipf:1.2"


def test_what_cannot_be_promised_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dense"):
        synthesise(small("llama"), "Q4_0", tmp_path / "m.gguf", routing=ExpertUse(1.2))
    with pytest.raises(UserError, match="vocabulary"):
        synthesise(small("llama", vocab_size=100), "Q4_0", tmp_path / "m.gguf")
    counted_only = next(name for name, family in FAMILIES.items() if family.gguf_architecture is None)
    import dataclasses

    with pytest.raises(NotSupportedError, match="cannot write weights"):
        synthesise(dataclasses.replace(small("llama"), family=counted_only), "Q4_0", tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


LLAMA = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 1024,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def test_the_model_itself_and_directories_are_never_written_over(tmp_path: Path) -> None:
    """Random numbers in the place of somebody's weights cannot be taken back."""
    weights = synthesise(small("llama"), "Q4_0", tmp_path / "m.gguf")
    before = weights.read_bytes()
    link = tmp_path / "link.gguf"
    link.symlink_to(weights)
    for model, out in ((weights, weights), (weights, link), (link, weights), (f"{weights}:Q8_0", weights)):
        with pytest.raises(UserError, match="is the model itself"):
            breakeven.synth(str(model), out)
    for place in (tmp_path, Path(), Path("/")):
        with pytest.raises(UserError, match="is a directory; give the file to write, such as"):
            breakeven.synth(str(weights), place)
    with pytest.raises(UserError, match=f"such as {tmp_path}/SmolLM2-135M.gguf"):
        breakeven.synth("smollm2-135m", tmp_path)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(UserError, match="is the model itself"):
        breakeven.synth(str(tmp_path / "hub"), tmp_path / "hub" / "config.json")
    assert json.loads((tmp_path / "hub" / "config.json").read_text()) == LLAMA
    shutil.rmtree(tmp_path / "hub")
    assert weights.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [link, weights]


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"free; choose another place"):
        synthesise(small("llama"), "Q4_0", tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
from breakeven.engines.synthesis.write import synthesise
from tests.small_models import small
synthesise(small("llama"), "Q4_0", Path(sys.argv[1]))
"""


def test_a_write_that_fails_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "m.gguf")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        check=False,
    )
    assert run.returncode == 1
    assert "cannot write" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_memory_stays_small_for_a_file_much_larger(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from breakeven.engines.synthesis.write import synthesise\n"
        "from breakeven.model.catalogue import lookup\n"
        "synthesise(lookup('llama-3.2-1b'), 'Q4_K_M', Path(sys.argv[1]))\n"
        # Not ru_maxrss: that starts from the peak of the process that forked this one.
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    out = tmp_path / "m.gguf"
    run = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True)
    assert out.stat().st_size > 750e6
    assert int(run.stdout) * 1024 < 300e6
    out.unlink()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EPERM])
def test_a_cache_that_may_only_be_read_is_used(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = cache.provide(small("llama"), "Q4_0")

    def refused(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "utime", refused)
    assert cache.provide(small("llama"), "Q4_0") == path


def test_a_file_that_another_process_prunes_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept, gone = (cache.provide(small("llama"), "Q4_0", seed=seed) for seed in (0, 1))
    there = Path.stat

    def stat(self: Path, **words: bool) -> os.stat_result:
        if self == gone:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return there(self, **words)

    monkeypatch.setattr(Path, "stat", stat)
    assert [entry.path for entry in cache.entries()] == [kept]


@pytest.mark.skipif(sys.platform == "win32", reason="signals as Windows has them cannot be sent so")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["terminated", "hung up"])
def test_a_synth_that_is_told_to_end_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """It sends the signal to itself where its file is begun."""
    code = (
        "import os\n"
        "from breakeven.cli import main\n"
        "from breakeven.engines.synthesis import write\n"
        f"def told(partial, *_): assert partial.exists(); os.kill(os.getpid(), {int(number)})\n"
        "write._write_tensors = told\n"
        "main.main()\n"
    )
    model = Path(__file__).parent.parent / "examples" / "tiny-moe.yaml"
    words = [sys.executable, "-c", code, "synth", str(model), "--out", str(tmp_path / "m.gguf")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (130, "breakeven: interrupted.\n")
    assert list(tmp_path.iterdir()) == []


def test_the_cache_writes_once_lists_and_prunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = small("llama")
    path = cache.provide(spec, "Q4_0")
    written = path.stat().st_ino
    assert cache.provide(spec, "Q4_0").stat().st_ino == written
    other = cache.provide(spec, "Q4_0", seed=1)
    assert {entry.path for entry in cache.entries()} == {path, other}
    assert cache.prune(unused_for_s=3600) == []
    left_behind = path.with_name(".x.gguf.999999999.partial")
    left_behind.touch()
    assert {entry.path for entry in cache.prune()} == {path, other}
    assert list(cache.cache_directory().iterdir()) == []
