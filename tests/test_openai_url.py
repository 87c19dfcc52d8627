"""A URL as a candidate: what is wrong with it is said in one line, and the key never is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from golden_server import Script, golden_server

from breakeven.cli.words import target
from breakeven.engines.backend import KEY_VARIABLES
from breakeven.engines.openai_url import connect, is_url, parse_url
from breakeven.errors import UserError
from breakeven.measure.runner import CompletionRequest, run_block
from breakeven.wire.behaviours import whole

SECRET = "sk-very-secret"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "url", "model"),
    [
        ("http://host/v1#m", "http://host", "m"),
        ("https://host:8443/v1/#org/model-7B", "https://host:8443", "org/model-7B"),
        ("HTTP://10.0.0.1:80/base/v1#a%20b", "http://10.0.0.1:80/base", "a b"),
        ("http://[::1]:8000/v1#m", "http://[::1]:8000", "m"),
        ("https://h/api/paas/v4#m", "https://h/api/paas/v4", "m"),
        ("https://h#m@gemini", "https://h", "m"),
        ("https://h/v1#@cf/meta/llama", "https://h", "@cf/meta/llama"),
    ],
)
def test_the_parts_of_a_url(text: str, url: str, model: str) -> None:
    backend = parse_url(text)
    assert is_url(text)
    assert (backend.url, backend.model, backend.pid, backend.load_s) == (url, model, None, None)
    assert backend.api_key_env is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("http://host/v1", "names no model"),
        ("http:///v1#m", "is not a URL"),
        ("ftp://host/v1#m", "is not a URL"),
        ("http://host:port/v1#m", "not valid"),
        ("http://host/ü/v1#m", "percent-encoded"),
        ("http://bücher.example/v1#m", "as xn--"),
        ("http://host/a b/v1#m", "percent-encoded"),
        ("http://host/v1?key=1#m", "has key in its query part"),
        ("http://host/v1?api_key=1#m", "has api_key in its query part"),
        ("http://host/v1#m@none.yaml", "none.yaml: cannot be read"),
        (f"http://user:{SECRET}@host/v1#m", "user or password"),
        (f"http://{SECRET}@host/v1#m", "user or password"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        parse_url(text)
    assert SECRET not in str(caught.value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("text", ["http://host/v1", "HTTP://HOST/v1", "Https://host/v1"])
def test_a_server_is_one_however_its_scheme_is_written(text: str) -> None:
    assert target(text, "ü m") == f"{text}#ü m"
    backend = parse_url(target(text, "ü m"))
    assert (backend.url, backend.model) == (f"{text.partition(':')[0].lower()}://host", "ü m")


def test_a_good_server_is_ready_to_be_measured() -> None:
    with golden_server(owned_by="vllm") as server:
        backend = connect(f"{server.url}/v1#other")
    assert (backend.engine, backend.model, backend.takes_token_ids) == ("vllm", "other", True)
    assert backend.settings["url"] == f"{server.url}/v1"
    assert backend.memory() is None
    assert backend.peak_rss_bytes() is None
    assert backend.tokenize("text") is None


async def test_a_server_that_takes_only_openai_fields_is_found_out_and_still_measured() -> None:
    with golden_server(Script(), refuse_extra_fields=True) as server:
        backend = connect(f"{server.url}/v1#golden")
        request = CompletionRequest(block="b", stream=0, prompt="hi", prompt_tokens=1, max_tokens=4)
        (done,) = await run_block(backend, [request])
    assert backend.settings["extra_fields"] == "refused"
    assert done.error is None


async def test_a_server_with_nothing_but_chat_is_talked_to() -> None:
    with golden_server(Script(), chat_only=True, owned_by="vllm", refuse_extra_fields=True) as server:
        backend = connect(f"{server.url}/v1#golden")
        request = CompletionRequest(block="b", stream=0, prompt="hi", prompt_tokens=1, max_tokens=4)
        (done,) = await run_block(backend, [request])
    assert (backend.chat_only, backend.takes_token_ids, backend.takes_extra_fields) == (True, False, False)
    assert done.error is None
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "hi"}]


async def test_a_study_may_call_the_model_something_else() -> None:
    with golden_server(Script()) as server:
        backend = replace(connect(f"{server.url}/v1#golden"), model="golden (2)")
        (done,) = await run_block(
            backend, [CompletionRequest(block="b", stream=0, prompt="a", prompt_tokens=1, max_tokens=2)]
        )
    assert (done.error, done.model) == (None, "golden (2)")
    assert server.bodies[-1]["model"] == "golden"


def test_nobody_there() -> None:
    with golden_server() as server:
        url = server.url
    with pytest.raises(UserError, match="cannot be reached"):
        connect(f"{url}/v1#golden")


def test_a_wrong_path_and_something_that_is_no_such_server() -> None:
    with golden_server() as server, pytest.raises(UserError, match=r"does not exist \(404\)"):
        connect(f"{server.url}/nowhere/v1#golden")


def test_a_wrong_model_name_brings_the_list() -> None:
    with golden_server() as server, pytest.raises(UserError, match=r"has no model goldne; it has golden"):
        connect(f"{server.url}/v1#goldne")


def test_a_missing_key_and_a_wrong_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with golden_server(key=SECRET) as server:
        with pytest.raises(UserError, match=r"wants a key \(401\).*BREAKEVEN_API_KEY"):
            connect(f"{server.url}/v1#golden")
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
        with pytest.raises(
            UserError, match=r"wants a key .*BREAKEVEN_API_KEY \(OPENAI_API_KEY goes to api\.openai\.com"
        ):
            connect(f"{server.url}/v1#golden")
        monkeypatch.setenv("BREAKEVEN_API_KEY", "sk-wrong-secret")
        with pytest.raises(UserError, match="does not accept the key in BREAKEVEN_API_KEY") as caught:
            connect(f"{server.url}/v1#golden")
        assert "secret" not in str(caught.value)
        monkeypatch.setenv("BREAKEVEN_API_KEY", SECRET)
        backend = connect(f"{server.url}/v1#golden")
    assert backend.api_key_env == "BREAKEVEN_API_KEY"
    assert SECRET not in repr(backend)


@pytest.mark.parametrize(
    ("url", "openai", "own"),
    [
        ("https://api.openai.com/v1#m", "OPENAI_API_KEY", "OPENAI_API_KEY"),
        ("https://API.OpenAI.com./v1#m", "OPENAI_API_KEY", "OPENAI_API_KEY"),
        ("https://api.openai.com.example.org/v1#m", None, "BREAKEVEN_API_KEY"),
        ("https://example.org/api.openai.com/v1#m", None, "BREAKEVEN_API_KEY"),
        ("https://eu.api.openai.com.evil/v1#m", None, "BREAKEVEN_API_KEY"),
        ("http://127.0.0.1:8000/v1#m", None, "BREAKEVEN_API_KEY"),
        ("http://[::1]:8000/v1#m", None, "BREAKEVEN_API_KEY"),
        ("http://localhost:8000/v1#m", None, "BREAKEVEN_API_KEY"),
    ],
)
def test_each_key_goes_where_it_belongs(
    url: str, openai: str | None, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert parse_url(url).api_key_env == openai
    monkeypatch.setenv("BREAKEVEN_API_KEY", SECRET)
    assert parse_url(url).api_key_env == own


def test_no_key_crosses_a_network_in_clear_unless_its_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    far = "http://10.0.0.5:8000/v1#m"
    assert parse_url(far).api_key_env is None
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with pytest.raises(UserError, match=r"http://api\.openai\.com would get the key in OPENAI_API_KEY in clear"):
        parse_url("http://api.openai.com/v1#m")
    monkeypatch.setenv("BREAKEVEN_API_KEY", SECRET)
    with pytest.raises(UserError, match=r"in clear.*allow it with BREAKEVEN_KEY_OVER_HTTP=10\.0\.0\.5") as caught:
        parse_url(far)
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("BREAKEVEN_KEY_OVER_HTTP", "gpu-1, 10.0.0.5")
    assert parse_url(far).api_key_env == "BREAKEVEN_API_KEY"
    with pytest.raises(UserError, match="in clear"):
        parse_url("http://10.0.0.6/v1#m")


@pytest.mark.parametrize("key", [f"{SECRET}\n", f"{SECRET}\r\nx: y", f"{SECRET}\u00e9"])
def test_a_key_that_no_header_can_hold_is_named_and_not_sent(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREAKEVEN_API_KEY", key)
    with golden_server() as server:
        with pytest.raises(UserError, match="the key in BREAKEVEN_API_KEY holds a line break or another") as caught:
            connect(f"{server.url}/v1#golden")
        assert (server.seen.polls, server.seen.requests) == (0, 0)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_without_its_tag_is_the_latest_one() -> None:
    with golden_server(owned_by="library") as server:
        server.models = ["llama3.2:latest", "llama3.2:1b"]
        backend = connect(f"{server.url}/v1#llama3.2")
        with pytest.raises(UserError, match=r"has no model llama3; it has llama3\.2"):
            connect(f"{server.url}/v1#llama3")
    assert (backend.engine, backend.served_model) == ("ollama", "llama3.2")


def test_a_key_that_may_not_list_models_may_complete() -> None:
    refusal = whole(b'{"error": {"message": "Missing scopes: api.model.read"}}', status=403)
    with golden_server() as server:
        server.pages["/v1/models"] = refusal
        assert connect(f"{server.url}/v1#golden").model == "golden"
        server.script = lambda asked: refusal
        with pytest.raises(UserError, match="completions wants a key"):
            connect(f"{server.url}/v1#golden")
