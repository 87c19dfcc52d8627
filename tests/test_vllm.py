"""Starting vLLM: how it is found, what is written for it, and that nothing of it is left, on a stand-in for it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from breakeven.engines import openai_url
from breakeven.engines.backend import Backend, tree_memory
from breakeven.engines.kinds import ENGINES
from breakeven.engines.source import parse_source
from breakeven.engines.start import format_of, start, weights_of
from breakeven.engines.vllm.directory import WRITERS, config_of, provide
from breakeven.engines.vllm.server import VllmServer, find_vllm, last_words
from breakeven.errors import EngineError, NotSupportedError, UserError
from breakeven.model.catalogue import lookup, names
from breakeven.model.layouts.derive import spec_from_config
from tests.vllm_fixtures import DENSE, MOE, fake_vllm, write_config

__all__ = ["fake_vllm"]


def model_directory(tmp_path: Path) -> Path:
    return write_config(tmp_path / "tiny", DENSE)


def server(tmp_path: Path, model: Path) -> VllmServer:
    return VllmServer(model, context=64, slots=2, log=tmp_path / "vllm.log", name="tiny", ready_timeout_s=60.0)


def gone(pid: int) -> bool:
    """True once the process has ended, waiting up to a minute for it."""
    for _ in range(600):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def complete(backend: Backend, max_tokens: int) -> None:
    body = json.dumps({"model": backend.served_model, "prompt": [1], "max_tokens": max_tokens}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{backend.url}/v1/completions", body), timeout=60).read()


def test_a_server_is_up_inside_the_block_and_gone_with_all_its_processes_after(tmp_path: Path, fake_vllm: Path) -> None:
    model = model_directory(tmp_path)
    with server(tmp_path, model) as backend:
        core = int((model / "core.pid").read_text())
        assert backend.engine == "vllm"
        assert backend.model == "tiny"
        assert backend.pid is not None
        assert psutil.Process(core).ppid() == backend.pid
        assert backend.load_s is not None
        assert backend.load_s > 0
        assert backend.settings["build"] == "vllm 9.8.7"
        assert backend.settings["device"] == "cpu"
        assert backend.settings["dtype"] == "float32"
        assert backend.settings["max_model_len"] == "64"
        assert backend.settings["prompt_cache"] == "off"
        assert backend.settings["kv_cache_tokens"] == "2048"
        assert "--max-num-seqs 2" in backend.settings["flags"]
        assert "--no-enable-prefix-caching" in backend.settings["flags"]
        assert backend.takes_token_ids
        assert backend.tokenize("é") == [195, 169]
        both = backend.memory()
        one = tree_memory(core)
        assert both is not None
        assert one is not None
        assert both.peak_rss_bytes > one.peak_rss_bytes
    assert gone(backend.pid)
    assert gone(core), "the engine core ignores SIGTERM and has a session of its own; it must go all the same"


def test_it_asks_for_the_key_it_is_given_and_no_list_of_processes_shows_it(tmp_path: Path, fake_vllm: Path) -> None:
    engine = server(tmp_path, model_directory(tmp_path))
    engine.key = "canary-of-its-own"
    with engine as backend:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            complete(backend, 2)
        assert backend.pid is not None
        assert engine.key not in str([psutil.Process(backend.pid).cmdline(), backend])
    assert stat.S_IMODE(engine.log.stat().st_mode) == 0o600


def test_sharing_prefixes_and_further_flags_are_asked_for(
    tmp_path: Path, fake_vllm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREAKEVEN_VLLM_ARGS", "--dtype float32 --hf-overrides '{\"a\": 1}'")
    shared = VllmServer(
        model_directory(tmp_path), context=64, slots=2, log=tmp_path / "log", threads=3, prefix_caching=True
    )
    with shared as backend:
        assert "--enable-prefix-caching" in backend.settings["flags"].split()
        assert backend.settings["flags"].endswith("--dtype float32 --hf-overrides '{\"a\": 1}'")
        assert "OMP_NUM_THREADS=3" in backend.settings["environment"]


def test_flags_that_cannot_be_read_are_refused(
    tmp_path: Path, fake_vllm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREAKEVEN_VLLM_ARGS", "--name 'half")
    with pytest.raises(UserError, match="BREAKEVEN_VLLM_ARGS cannot be read"), server(tmp_path, tmp_path):
        pass


def test_killing_the_one_who_started_it_leaves_nothing(tmp_path: Path, fake_vllm: Path) -> None:
    model = model_directory(tmp_path)
    script = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from breakeven.engines.vllm.server import VllmServer
        with VllmServer(Path({str(model)!r}), context=64, slots=2, log=Path({str(tmp_path / "log")!r})) as backend:
            print(backend.pid, flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        core = int((model / "core.pid").read_text())
        assert psutil.pid_exists(core)
        parent.send_signal(signal.SIGKILL)
    assert gone(pid)
    assert gone(core)


def test_a_refusal_tells_the_root_cause_and_not_the_last_line(
    tmp_path: Path, fake_vllm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "refuses")
    with pytest.raises(EngineError, match=r"exit status 1.*ValueError: No common block size for 16$") as caught:
        server(tmp_path, model_directory(tmp_path)).__enter__()
    assert "shutdown" not in str(caught.value)


def test_a_death_while_loading_is_told_and_leaves_no_core(
    tmp_path: Path, fake_vllm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "dies while loading")
    model = model_directory(tmp_path)
    with pytest.raises(EngineError, match=r"killed by signal 9.*Illegal instruction.*--dtype float32"):
        server(tmp_path, model).__enter__()
    assert gone(int((model / "core.pid").read_text()))


def test_a_server_that_is_healthy_but_cannot_compute_is_no_backend(
    tmp_path: Path, fake_vllm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "cannot compute")
    model = model_directory(tmp_path)
    with pytest.raises(EngineError, match=r"did not complete a token.*Illegal instruction \| vllm.v1.EngineDeadError"):
        server(tmp_path, model).__enter__()
    assert gone(int((model / "core.pid").read_text()))


def test_a_death_in_mid_run_is_noticed(tmp_path: Path, fake_vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "dies later")
    up = server(tmp_path, model_directory(tmp_path))
    with up as backend:
        up.check_alive()
        with pytest.raises(OSError, match="Remote end closed"):
            complete(backend, max_tokens=1)
        with pytest.raises(EngineError, match=r"ended while running tiny \(exit status 3\)"):
            up.check_alive()


def test_start_takes_the_engine_by_name(tmp_path: Path, fake_vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = parse_source(str(model_directory(tmp_path)))
    path = weights_of(source, "BF16", 0, None, engine="vllm")
    with ExitStack() as stack:
        log = tmp_path / "log"
        up = start(stack, source, path, context=64, slots=2, log=log, threads=None, engine="vllm", share_prefixes=True)
        up.alive()
        assert "--enable-prefix-caching" in up.backend.settings["flags"].split()
        assert up.path is None
        assert "--dtype bfloat16 --load-format dummy" in up.backend.settings["flags"]
        backend = openai_url.connect(f"{up.backend.url}/v1#{source.name}")
        assert backend.engine == "vllm"
        assert backend.tokenize("ab") == [97, 98]
        assert backend.pid is None
    assert gone(up.backend.pid or 0)


def test_an_unknown_engine_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        UserError, match=r"no engine is called 'vlm'; did you mean vllm\? \(there are: llama.cpp, .*vllm"
    ):
        weights_of(parse_source("olmoe-1b-7b"), "BF16", 0, None, engine="vlm")


@pytest.mark.parametrize("name", list(ENGINES))
def test_the_default_format_of_an_engine_is_one_it_takes(name: str) -> None:
    formats = ENGINES[name].formats
    assert formats is None or ENGINES[name].default_format in formats


@pytest.mark.parametrize(
    ("engine", "quantization", "format_name"),
    [
        ("vllm", {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "FP8"),
        ("vllm", {"torch_dtype": "float16"}, "F16"),
        ("vllm", {}, "BF16"),
        ("mlx", {"quantization": {"group_size": 64, "bits": 8}}, "MLX8"),
        ("mlx", {}, "BF16"),
    ],
)
def test_a_directory_with_weights_has_the_format_it_has(
    tmp_path: Path, engine: str, quantization: dict[str, object], format_name: str
) -> None:
    given = write_config(tmp_path / "real", {**DENSE, **quantization})
    (given / "pytorch_model.bin").touch()
    source = parse_source(str(given))
    assert format_of(source, None, ENGINES[engine]).startswith(format_name)
    assert weights_of(source, None, 0, None, engine=engine) == given


class TestFinding:
    def test_a_named_interpreter_runs_the_module(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BREAKEVEN_VLLM", sys.executable)
        assert find_vllm() == [sys.executable, "-m", "vllm.entrypoints.cli.main"]

    def test_what_is_named_must_be_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BREAKEVEN_VLLM", "/nowhere/vllm")
        with pytest.raises(UserError, match="BREAKEVEN_VLLM is /nowhere/vllm, which is no executable"):
            find_vllm()

    def test_the_module_of_this_interpreter_comes_before_the_path(
        self, tmp_path: Path, fake_vllm: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("BREAKEVEN_VLLM")
        monkeypatch.setenv("PATH", str(fake_vllm.parent), prepend=os.pathsep)
        # A folder of that name is no module.
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "vllm").mkdir()
        assert find_vllm() == [str(fake_vllm)]
        (tmp_path / "vllm" / "__init__.py").touch()
        assert find_vllm() == [sys.executable, "-m", "vllm.entrypoints.cli.main"]

    def test_without_any_it_says_how_to_get_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("BREAKEVEN_VLLM", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(UserError, match="pip install vllm"):
            find_vllm()


class TestDirectories:
    def test_a_configuration_goes_through_unchanged_but_for_dtype_and_tokens(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        odd = {**MOE, "dtype": "bfloat16", "something_new": [1, 2]}
        given = write_config(tmp_path / "odd", odd)
        written = json.loads((provide(str(given), None, "BF16") / "config.json").read_text())
        special = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
        assert written == {**{k: v for k, v in odd.items() if k != "dtype"}, "torch_dtype": "bfloat16", **special}

    def test_the_same_model_is_written_once_and_another_dtype_apart(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        given = str(model_directory(tmp_path))
        first = provide(given, None, "BF16")
        assert provide(given, None, "BF16") == first
        assert provide(given, None, "F16") != first
        assert {path.name for path in first.parent.iterdir()} == {first.name, provide(given, None, "F16").name}

    def test_the_byte_tokenizer_encodes_as_synthetic_files_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tokenizers = pytest.importorskip("tokenizers")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        file = provide(str(model_directory(tmp_path)), None, "BF16") / "tokenizer.json"
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
        text = "Grüße, w5 世界\n"
        assert tokenizer.encode(text, add_special_tokens=False).ids == list(text.encode())
        assert tokenizer.decode(list(text.encode())) == text
        assert tokenizer.get_vocab_size() == DENSE["vocab_size"]

    def test_a_tokenizer_beside_the_configuration_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        given = model_directory(tmp_path)
        (given / "tokenizer.json").write_text('{"mine": 1}')
        assert (provide(str(given), None, "BF16") / "tokenizer.json").read_text() == '{"mine": 1}'

    def test_a_directory_with_weights_is_itself_in_any_format(self, tmp_path: Path) -> None:
        given = model_directory(tmp_path)
        (given / "model.safetensors").touch()
        assert provide(str(given), None, "Q4_K_M") == given

    def test_a_gguf_is_refused(self) -> None:
        with pytest.raises(NotSupportedError, match="vLLM gets no GGUF"):
            provide("some.gguf", None, "BF16")

    def test_a_format_of_another_engine_is_refused(self, tmp_path: Path) -> None:
        given = str(model_directory(tmp_path))
        with pytest.raises(NotSupportedError, match=r"Q4_K_M is a format of llama\.cpp.*BF16, F16$"):
            provide(given, None, "Q4_K_M")
        with pytest.raises(NotSupportedError, match=r"FP8 cannot be drawn as dummy weights.*BF16, F16$"):
            provide(given, None, "FP8")


class TestConfigurations:
    @pytest.mark.parametrize("name", [name for name in names() if lookup(name).family in WRITERS])
    def test_what_is_written_for_the_catalogue_reads_back_as_the_same_model(self, name: str) -> None:
        spec = lookup(name)
        config = config_of(spec)
        again = spec_from_config(config, spec.name, spec.source)
        assert again.layers == spec.layers
        assert (again.hidden, again.vocab, again.tied_embeddings) == (spec.hidden, spec.vocab, spec.tied_embeddings)
        assert isinstance(config["architectures"], list)

    def test_every_writer_is_met_by_the_catalogue(self) -> None:
        assert {lookup(name).family for name in names()} >= set(WRITERS)

    def test_a_family_that_is_not_written_says_what_to_give_instead(self) -> None:
        with pytest.raises(NotSupportedError, match=r"no gemma2 model for vLLM, only llama.*directory of its config"):
            config_of(lookup("gemma-2-2b"))

    def test_a_layout_the_form_cannot_say_is_refused_rather_than_bent(self) -> None:
        spec = spec_from_config({**MOE, "model_type": "qwen3"}, "odd", "test")
        spec_moe = spec_from_config(MOE, "odd", "test")
        with pytest.raises(NotSupportedError, match="cannot be said in vLLM's form of llama"):
            # Norms on queries and keys, which no Llama has.
            config_of(type(spec)(**{**_fields(spec), "family": "llama"}))
        mixed = type(spec)(**{**_fields(spec_moe), "layers": (spec_moe.layers[0], spec.layers[0])})
        assert config_of(mixed)["mlp_only_layers"] == [1]


def _fields(spec: object) -> dict[str, object]:
    return {name: getattr(spec, name) for name in spec.__slots__}  # type: ignore[attr-defined]


def test_last_words_of_a_log_that_says_nothing_telling_are_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"(Worker pid=12) INFO 11-22 03:54:01 [cpu.py:224] line {i}\n" for i in range(9)))
    assert last_words(log).endswith("says: line 5 | line 6 | line 7 | line 8")
    log.write_text("")
    assert last_words(log).endswith("is empty")
    assert last_words(tmp_path / "missing").endswith("is empty")
