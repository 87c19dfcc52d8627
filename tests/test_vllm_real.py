"""The same on a real vLLM, where there is one (docs/vllm.md): two tiny models without weights, dense and routed."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from breakeven.engines import openai_url
from breakeven.engines.backend import Backend
from breakeven.engines.source import parse_source
from breakeven.engines.start import Running, start, weights_of
from breakeven.engines.vllm.server import VllmServer
from breakeven.errors import EngineError
from breakeven.lab.remote import FORMS, Remote
from breakeven.wire.metrics import EngineNumbers, engine_numbers, metric_names, parse_metrics
from tests.vllm_fixtures import DENSE, MOE, real_vllm, write_config

__all__ = ["real_vllm"]

pytestmark = [pytest.mark.vllm, pytest.mark.alone]

CONTEXT = 256


@dataclass
class Up:
    """A candidate that runs, and its processes."""

    running: Running
    processes: list[psutil.Process]

    @property
    def backend(self) -> Backend:
        return self.running.backend


@pytest.fixture(scope="module", params=["dense", "moe"])
def up(request: pytest.FixtureRequest, real_vllm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Each model in turn; when it has been stopped, none of its processes may be left."""
    folder = tmp_path_factory.mktemp("vllm")
    config = {"dense": DENSE, "moe": MOE}[request.param]
    source = parse_source(str(write_config(folder / request.param, config)))
    path = weights_of(source, "BF16", 0, None, engine="vllm")
    with ExitStack() as stack:
        log = folder / f"{request.param}.log"
        running = start(stack, source, path, context=CONTEXT, slots=4, log=log, threads=None, engine="vllm")
        own = psutil.Process(running.backend.pid)
        found = Up(running, [own, *own.children(recursive=True)])
        yield found
    assert len(found.processes) > 1, "vLLM computes in processes of its own"
    assert [p for p in found.processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def post(backend: Backend, path: str, **fields: Any) -> bytes:
    """The body of the answer to a request for this backend's model."""
    body = json.dumps({"model": backend.served_model, **fields}).encode()
    request = urllib.request.Request(f"{backend.url}{path}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return bytes(response.read())


def test_it_runs_as_asked_and_says_so(up: Up) -> None:
    up.running.alive()
    settings = up.backend.settings
    assert settings["engine"] == "vllm"
    assert settings["build"].startswith("vllm ")
    assert settings["build"] != "vllm unknown"
    assert settings["dtype"] == "float32"
    assert settings["max_model_len"] == str(CONTEXT)
    assert settings["prompt_cache"] == "off"
    assert settings["device"] in ("cpu", "cuda")
    assert int(settings["kv_cache_tokens"]) >= 4 * CONTEXT
    memory = up.backend.memory()
    assert memory is not None
    assert memory.peak_rss_bytes > psutil.Process(up.backend.pid).memory_info().rss


def test_it_tokenizes_by_bytes(up: Up) -> None:
    assert up.backend.tokenize("Grüße w5") == list("Grüße w5".encode())


def test_connecting_to_it_by_url_finds_the_same(up: Up) -> None:
    backend = openai_url.connect(f"{up.backend.url}/v1#{up.backend.served_model}")
    assert backend.engine == "vllm"
    assert backend.takes_token_ids
    assert backend.takes_extra_fields
    assert backend.tokenize("é") == [195, 169]


@pytest.mark.parametrize("n", [1, 17])
def test_token_ids_up_to_the_end_of_the_vocabulary_are_taken_and_counts_are_exact(up: Up, n: int) -> None:
    prompt = [0, 300, int(DENSE["vocab_size"]) - 1, 5]  # type: ignore[call-overload]
    answer = json.loads(post(up.backend, "/v1/completions", prompt=prompt, max_tokens=n, ignore_eos=True))
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["completion_tokens"] == n
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("form", FORMS)
def test_its_log_probabilities_of_a_prompt_are_read_in_both_forms(
    up: Up, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, url = "A harbour at night, and rain on its roofs.", f"{up.backend.url}/v1#{up.backend.served_model}"
    monkeypatch.setattr("breakeven.lab.remote.FORMS", {form: FORMS[form]})
    remote = Remote(url)
    assert remote.weighs
    (read,) = remote.read([text])
    assert len(read.nats) + 1 == len(up.backend.tokenize(text) or [])
    assert len(text) - 8 <= read.n_bytes < len(text)
    ((first, second),) = remote.weigh([(text, [" It", " It is"])], lambda what, share: None)
    assert second < first < 0


def test_a_token_beyond_the_vocabulary_is_refused(up: Up) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400"):
        post(up.backend, "/v1/completions", prompt=[DENSE["vocab_size"]], max_tokens=1)
    up.running.alive()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_counts_aloud(up: Up, path: str) -> None:
    prompt: dict[str, Any] = {"prompt": [1, 2, 3]}
    if "chat" in path:
        prompt = {"messages": [{"role": "user", "content": "Hello"}]}
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = post(up.backend, path, **prompt, max_tokens=9, ignore_eos=True, stream=True, stream_options=options)
    lines = [line.removeprefix(b"data: ") for line in stream.splitlines() if line]
    assert lines[-1] == b"[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 9
    assert events[-1]["choices"] == []


def test_its_metrics_have_the_names_that_are_read(up: Up) -> None:
    post(up.backend, "/v1/completions", prompt=[1, 2, 3], max_tokens=2)
    with urllib.request.urlopen(f"{up.backend.url}/metrics", timeout=60) as response:
        text = response.read().decode()
    samples = parse_metrics(text)
    for field, known in metric_names()["vllm"].items():
        assert [name for name in known if name in samples], f"{field}: none of {known} is served"
    assert engine_numbers(text) == EngineNumbers(
        running=0, waiting=0, kv_share=0, preemptions=0, cached_prompt_tokens=0
    )


def test_what_vllm_refuses_is_told_with_its_reason(real_vllm: None, tmp_path: Path) -> None:
    model = write_config(tmp_path / "unknown", {**DENSE, "architectures": ["NoSuchForCausalLM"], "model_type": "nope"})
    server = VllmServer(model, context=64, slots=1, log=tmp_path / "log", load_format="dummy")
    with pytest.raises(EngineError, match=r"vLLM ended while running unknown \(exit status 1\).*nope"):
        server.__enter__()
