"""Gateway files: what is read, what is refused and how, what is written, and what a decision becomes."""

from __future__ import annotations

import os
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from decision_fixtures import both, decision, dense, full, hosted, moe, no_difference, nobody
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from breakeven.answer.study.price import OwnPrice, PriceTerms, RentedPrice, TokenPrice
from breakeven.answer.study.values import FilePart, keys_of
from breakeven.answer.study.yaml_file import parts_in
from breakeven.errors import UserError
from breakeven.gateway.plan import check
from breakeven.gateway.plan.check import ALL_SET, check_plan, check_reload, is_loopback
from breakeven.gateway.plan.limits import Limits
from breakeven.gateway.plan.load import PUBLIC_NAME, read_gateway
from breakeven.gateway.plan.model import (
    NAME,
    AdminPlan,
    BackendPlan,
    ExperimentPlan,
    GatewayPlan,
    HedgePlan,
    LocalPlan,
    LogPlan,
    PolicyPlan,
    Redis,
    Timeouts,
)
from breakeven.gateway.plan.origins import plan_of_decision
from breakeven.gateway.plan.reach import ENDPOINTS, LOCAL_ENDPOINTS, USUAL_ENDPOINTS, value_of
from breakeven.gateway.plan.write import gateway_text, write_gateway
from breakeven.gateway.route.policies import POLICIES
from breakeven.gateway.serve.run import source_of
from breakeven.results.cost import Api, Own, Rented
from breakeven.results.decision import ABOVE, Region, TrafficShare, Verdict
from breakeven.results.store import write
from breakeven.traffic.workload import Slo

ROOT = Path(__file__).resolve().parent.parent
SECRET = "sk-canary-5f1d"
ENVIRON = {"KEY_OF_C": SECRET, "BREAKEVEN_REDIS_URL": "redis://10.0.0.9", "BREAKEVEN_ADMIN_SECRET": SECRET}

GATEWAY = """\
backends:
  - name: a
    url: http://10.0.0.1:8000/v1
    model: qwen3-30b-a3b
    machine: h100-sxm
    format: fp8
    price: {rented: {usd_per_hour: 2.99}}
    quality: 78%
  - {name: b, local: {model: qwen3-0.6b, context: 8192, slots: 2}}
  - {name: c, url: "https://api.example.org/api/v1/", api_key_env: KEY_OF_C, price: {api: {input: 0.1, output: 0.4}}}
policies:
  - {model: chat, slo: "ttft=2s,tpot=100ms", backends: [a, c]}
  - {model: both, policy: spill, first: b, queue: 250ms}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def changed(**changes: object) -> str:
    """GATEWAY with keys replaced; `policies__0__model` reaches two levels down, None takes a key away."""
    data: dict[str, Any] = yaml.safe_load(GATEWAY)
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        place: Any = data
        for key in parents:
            place = place[int(key)] if key.isdecimal() else place.setdefault(key, {})
        if value is None:
            del place[last]
        elif isinstance(place, list):
            place.insert(int(last), value)
        else:
            place[last] = value
    return yaml.safe_dump(data)


@pytest.fixture(autouse=True)
def _no_profiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that nobody calibrated, whichever runs the tests."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def test_a_file_gets_its_defaults(tmp_path: Path) -> None:
    plan = read_gateway(written(tmp_path, GATEWAY), ENVIRON)
    a, b, c = plan.backends
    assert (a.kind, a.place, a.quality, a.poll, a.endpoints) == ("moe", "cloud", 0.78, True, USUAL_ENDPOINTS)
    assert b.local == LocalPlan(model="qwen3-0.6b", context=8192, slots=2)
    assert (b.kind, b.place, b.model, b.engine) == ("dense", "edge", "qwen3-0.6b", "llama.cpp")
    assert (b.slots, b.context, b.machine, b.endpoints) == (2, 8192, None, LOCAL_ENDPOINTS)
    assert (c.url, c.is_api, c.poll, c.kind) == ("https://api.example.org/api/v1", True, False, "unknown")
    chat, spill = plan.policies
    assert chat.slo == Slo(ttft_s=2.0, tpot_s=0.1)
    assert (chat.policy, chat.explore, chat.attempts) == ("breakeven", 0.01, 3)
    assert spill.backends == ("a", "b", "c")
    assert spill.queue_s == 0.25
    assert (plan.host, plan.port, plan.admin_port, plan.keys, plan.log.directory) == (
        "127.0.0.1",
        8000,
        8001,
        None,
        None,
    )
    assert plan.path == (tmp_path / "gateway.yaml").resolve()


def test_every_default_of_the_form_is_that_of_the_plan(tmp_path: Path) -> None:
    plan = read_gateway(written(tmp_path, "backends: [{name: x, url: 'http://127.0.0.1:1/v1'}]"), {})
    (backend,) = plan.backends
    assert backend == BackendPlan(name="x", url="http://127.0.0.1:1/v1")
    assert plan == GatewayPlan(
        path=plan.path, backends=(backend,), policies=(PolicyPlan(model=PUBLIC_NAME, backends=("x",)),)
    )


@pytest.mark.parametrize(
    ("changes", "key", "right"),
    [
        ({"polcies": []}, "polcies", "did you mean policies?"),
        ({"backends__0__modle": "x"}, "backends.0.modle", "did you mean model?"),
        ({"backends__1__local__slot": 2}, "backends.1.local.slot", "did you mean slots?"),
        ({"policies__0__bakends": ["a"]}, "policies.0.bakends", "did you mean backends?"),
        ({"limits__bdy": 1}, "limits.bdy", "did you mean body?"),
        ({"backends": None}, "backends", "missing; list who answers"),
        ({"backends": []}, "backends", "found [], it must be a list with at least one backend"),
        ({"backends__0__name": None}, "backends.0.name", "missing; give it a name"),
        ({"backends__0__name": "two words"}, "backends.0.name", "found 'two words', it must be a name of up to 100"),
        ({"backends__0__name": "x\r\ny"}, "backends.0.name", "it must be a name"),
        ({"backends__1__name": "a"}, "backends.1.name", "found 'a' a second time"),
        ({"backends__0__url": None}, "backends.0", "exactly one of url"),
        ({"backends__1__url": "http://10.0.0.1/v1"}, "backends.1", "exactly one of url"),
        ({"backends__0__url": "10.0.0.1:8000/v1"}, "backends.0.url", "a server's base URL"),
        ({"backends__0__url": "ftp://10.0.0.1/v1"}, "backends.0.url", "a server's base URL"),
        ({"backends__0__url": "http://10.0.0.1/v1?key=x"}, "backends.0.url", "without what follows its path"),
        ({"backends__0__url": "http://10.0.0.1:99999/v1"}, "backends.0.url", "a server's base URL"),
        ({"backends__0__url": "http://a b/v1"}, "backends.0.url", "a server's base URL"),
        ({"backends__0__url": "http://10.0.0.1/ü/v1"}, "backends.0.url", "other letters percent-encoded"),
        ({"backends__0__url": "http://bücher.example/v1"}, "backends.0.url", "as xn--"),
        ({"backends__0__url": "http://a/v1/chat/completions/"}, "backends.0.url", "without the endpoint"),
        ({"backends__0__url": "http://a/api/messages"}, "backends.0.url", "without the endpoint"),
        ({"backends__0__url": "http://169.254.169.254/v1"}, "backends.0.url", "set allow_link_local: true"),
        ({"backends__0__url": "http://[fe80::1]/v1"}, "backends.0.url", "set allow_link_local: true"),
        ({"backends__0__url": "http://[::ffff:169.254.1.1]/v1"}, "backends.0.url", "set allow_link_local: true"),
        ({"backends__0__url": "http://100.100.100.200/v1"}, "backends.0.url", "set allow_link_local: true"),
        ({"backends__0__model": "qwen4-1t"}, "backends.0.model", "nearest"),
        ({"backends__0__model": None}, "backends.0", "model beside machine"),
        ({"backends__0__machine": "h1000"}, "backends.0.machine", "h1000"),
        ({"backends__0__machine": "this"}, "backends.0.machine", "has not been calibrated"),
        ({"backends__0__format": "q99"}, "backends.0.format", "q99"),
        ({"backends__0__speed": {"ttft": "1s", "tokens_per_s": 9, "source": "x"}}, "backends.0", "but not both"),
        ({"backends__0__dialect": "azur"}, "backends.0.dialect", "one of openai, azure, mistral"),
        ({"backends__0__dialect": ["azure"]}, "backends.0.dialect", "one of openai, azure, mistral"),
        ({"backends__0__dialect": {"like": "azure"}}, "backends.0.dialect", "one of openai, azure, mistral"),
        ({"backends__0__query": ["a"]}, "backends.0.query", "names with values"),
        ({"backends__0__body": {"seed": "remove"}}, "backends.0.body.seed", "found 'remove', it must be drop, {rename"),
        ({"backends__0__body": {"model": "drop"}}, "backends.0.body.model", "which every request says itself"),
        (
            {"backends__0__body": {"seed": "drop"}, "backends__0__endpoints": ["/v1/messages"]},
            "backends.0.body",
            "and its endpoints have neither",
        ),
        ({"backends__0__headers": {"Host": "x"}}, "backends.0.headers.Host", "leave it out"),
        ({"backends__0__headers": {"authorization": "x"}}, "backends.0.headers.authorization", "is where the key goes"),
        ({"backends__0__key_header": "a b"}, "backends.0.key_header", "such as api-key"),
        ({"backends__1__dialect": "azure"}, "backends.1", "dialect only beside a url"),
        ({"backends__2__socket": "s", "backends__2__proxy": "http://p:1"}, "backends.2.socket", "keep one of them"),
        ({"backends__0__endpoints": ["/v1/chat"]}, "backends.0.endpoints.0", "one of /v1/chat/completions"),
        ({"backends__0__ca_file": "none.pem"}, "backends.0.ca_file", "does not exist"),
        ({"backends__0__limit": 0}, "backends.0.limit", "greater than or equal to 1"),
        ({"backends__0__timeouts": {"idle": "1 parsec"}}, "backends.0.timeouts.idle", "a duration such as 90ms"),
        ({"backends__0__price": {}}, "backends.0.price", "exactly one of own, rented and api"),
        ({"backends__1__model": "qwen3-0.6b"}, "backends.1", "model inside local, not beside it"),
        ({"backends__1__kv": "q8_0"}, "backends.1", "kv inside local, not beside it"),
        ({"backends__1__local__model": "no-such-1b"}, "backends.1.local.model", "nearest"),
        ({"backends__1__local__model": "nowhere.gguf"}, "backends.1.local.model", "does not exist"),
        ({"backends__1__local__model": "http://h/v1"}, "backends.1.local.model", "give it as `url:`"),
        ({"backends__2__location": "edge"}, "backends.2.location", "must be cloud"),
        ({"backends__2__machine": "h100-sxm"}, "backends.2", "price: api: only for a hosted model"),
        ({"backends__2__api_key_env": "OTHER"}, "backends.2.api_key_env", "the environment variable OTHER is not set"),
        ({"policies__1__model": "chat"}, "policies.1.model", "found 'chat' a second time"),
        ({"policies__0__model": "a"}, "policies.0.model", "which is a backend's name"),
        ({"policies__0__policy": "spil"}, "policies.0.policy", "one of breakeven, fastest, cheapest, spill"),
        ({"policies__0__backends": ["a", "z"]}, "policies.0.backends", "found 'z', it must be one of a, b, c"),
        ({"policies__0__backends": ["a", "a"]}, "policies.0.backends.1", "a second time"),
        ({"policies__0__backends": []}, "policies.0.backends", "at least 1 item"),
        ({"policies__0__weights": {"b": 1}}, "policies.0.weights", "found 'b', it must be one of a, c"),
        ({"policies__0__weights": {"a": 0}}, "policies.0.weights", "found only zeros"),
        ({"policies__0__first": "b"}, "policies.0.first", "found 'b', it must be one of a, c"),
        ({"policies__0__policy": "edge-first"}, "policies.0.first", "name the backend on this device"),
        ({"policies__0__hedge": {"backends": ["b"]}}, "policies.0.hedge.backends", "found 'b'"),
        ({"policies__0__quality_floor": "90%"}, "policies.0.quality_floor", "which no backend's quality reaches"),
        ({"policies__0__slo": {"itl": "1s"}}, "policies.0.slo.itl", "no such key"),
        ({"policies__0__explore": 2}, "policies.0.explore", "a share such as 95%"),
        ({"host": "0.0.0.0"}, "host", "others can reach, and no keys; add `keys: keys.json`"),
        ({"host": "::"}, "host", "others can reach"),
        ({"host": "gateway.example.org"}, "host", "others can reach"),
        ({"keys": "keys.json"}, "keys", "does not exist; breakeven keys create makes it"),
        ({"port": 70000}, "port", "less than or equal to 65535"),
        ({"admin": {"port": 8000}}, "admin.port", "found 8000, which clients use"),
        ({"workers": 0}, "workers", "greater than or equal to 1"),
        ({"redis": {"url_env": "NOT_SET"}}, "redis.url_env", "the environment variable NOT_SET is not set"),
        ({"limits": 5}, "limits", "found 5, it must be a mapping with keys such as body, headers"),
        ({"admin": True}, "admin", "it must be a mapping with keys such as host, port, secret_env"),
        ({"backends": [7]}, "backends.0", "it must be a mapping with keys such as name, url, local"),
        ({"memory": "12 stone"}, "memory", "a size such as 24GB"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    tmp_path: Path, changes: dict[str, object], key: str, right: str
) -> None:
    path = written(tmp_path, changed(**changes))
    with pytest.raises(UserError) as error:
        read_gateway(path, ENVIRON)
    text = str(error.value)
    assert text.startswith(f"{path}: {key}")
    assert right in text
    assert SECRET not in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("entry", "key", "right"),
    [
        ({"model": "chta"}, "model", "did you mean chat?"),
        ({"control": "b"}, "control", "found 'b'"),
        ({"treatment": "a"}, "treatment", "which is the control"),
        ({"treatment": "b"}, "treatment", "found 'b'"),
        ({"kind": "abc"}, "kind", "found 'abc'"),
        ({"steps": ["5%", "1%"]}, "steps", "they must rise"),
        ({"least": 10, "most": 5}, "least", "it must be at most 5"),
        ({"confidence": 1}, "confidence", "found 1"),
        ({"sticky_by": "a b"}, "sticky_by", "found 'a b'"),
    ],
)
def test_experiments_are_checked(tmp_path: Path, entry: dict[str, object], key: str, right: str) -> None:
    usual = {"name": "x", "kind": "ab", "model": "chat", "control": "a", "treatment": "c"}
    path = written(tmp_path, changed(experiments=[usual | entry], log={"directory": "logs"}))
    with pytest.raises(UserError, match=re.escape(f"experiments.0.{key}")) as error:
        read_gateway(path, ENVIRON)
    assert right in str(error.value)


def test_a_shadow_may_go_to_any_backend(tmp_path: Path) -> None:
    entry = {"name": "x", "kind": "shadow", "model": "chat", "control": "a", "treatment": "b", "sticky_by": "X-User"}
    plan = read_gateway(written(tmp_path, changed(experiments=[entry], log={"directory": "logs"})), ENVIRON)
    assert plan.experiments[0].treatment == "b"
    assert plan.experiments[0].sticky_by == "x-user"


def test_what_works_from_the_decision_log_is_refused_without_one(tmp_path: Path) -> None:
    entry = {"name": "x", "kind": "ab", "model": "chat", "control": "a", "treatment": "c"}
    changes: tuple[dict[str, object], ...] = ({"experiments": [entry]}, {"otel": True})
    for change in changes:
        with pytest.raises(UserError, match=r"without a decision log.*add log: \{directory"):
            read_gateway(written(tmp_path, changed(**change)), ENVIRON)


def test_a_file_that_is_only_looked_at_needs_no_variable(tmp_path: Path) -> None:
    path = written(tmp_path, changed(backends__0__url="https://a/v1", backends__0__api_key_env="NOT_SET_ANYWHERE"))
    with pytest.raises(UserError, match="NOT_SET_ANYWHERE is not set"):
        read_gateway(path, {})
    assert read_gateway(path, ALL_SET).backends[0].api_key_env == "NOT_SET_ANYWHERE"


@pytest.mark.parametrize("text", ["backend:\n  - name: a\n", "bakends: []\n", "host: 0.0.0.0\n", "# later\n"])
def test_a_mistyped_gateway_is_told_so_in_a_gateways_words(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"backends.*docs/gateway-yaml\.md"):
        source_of([str(written(tmp_path, text))], None)()


def test_a_models_description_is_none(tmp_path: Path) -> None:
    one, two = (str(ROOT / "examples" / name) for name in ("tiny-moe.yaml", "tiny-dense.yaml"))
    assert len(source_of([one, two], None)().backends) == 2
    with pytest.raises(UserError, match="a gateway's file stands alone"):
        source_of([one, str(written(tmp_path, changed()))], None)


def test_a_variable_that_is_not_set_is_read_from_the_directory_of_credentials(tmp_path: Path) -> None:
    there = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    text = changed(backends__2__api_key_env="KEY_OF_C")
    with pytest.raises(UserError, match="KEY_OF_C is not set"):
        read_gateway(written(tmp_path, text), there)
    (tmp_path / "KEY_OF_C").write_text(f"{SECRET}\n", encoding="utf-8")
    assert value_of("KEY_OF_C", there) == SECRET
    assert value_of("KEY_OF_C", {**there, "KEY_OF_C": "set"}) == "set"
    assert value_of("KEY_OF_C", {}) == ""
    assert read_gateway(written(tmp_path, text), there).backends[2].api_key_env == "KEY_OF_C"
    (tmp_path / "KEY_OF_C").write_text(f"{SECRET}\nmore", encoding="utf-8")
    with pytest.raises(UserError, match="line breaks") as caught:
        read_gateway(written(tmp_path, text), there)
    assert SECRET not in str(caught.value)
    (tmp_path / "KEY_OF_C").unlink()
    os.mkfifo(tmp_path / "KEY_OF_C")
    assert value_of("KEY_OF_C", there) == "", "and nobody waits for a writer"


def test_a_file_of_keys_that_is_a_link_to_itself_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "keys.json").symlink_to("keys.json")
    with pytest.raises(UserError, match=r"keys: found .*keys.json', which does not exist"):
        read_gateway(written(tmp_path, changed(keys="keys.json")), ENVIRON)


@pytest.mark.parametrize("typed", [SECRET, f"{SECRET} ", f"Bearer {SECRET}", [SECRET]])
def test_a_key_typed_where_its_name_belongs_is_not_repeated(tmp_path: Path, typed: object) -> None:
    path = written(tmp_path, changed(backends__2__api_key_env=typed))
    with pytest.raises(UserError, match="name of an environment variable") as error:
        read_gateway(path, ENVIRON)
    assert SECRET not in str(error.value)
    assert error.value.__cause__ is None


def test_a_key_inside_a_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    path = written(tmp_path, changed(backends__0__url=f"http://user:{SECRET}@10.0.0.1/v1"))
    with pytest.raises(UserError, match="without a user or password") as error:
        read_gateway(path, ENVIRON)
    assert SECRET not in str(error.value)


def test_a_variable_that_no_header_can_carry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds line breaks") as error:
        read_gateway(written(tmp_path, GATEWAY), {"KEY_OF_C": f"{SECRET}\r\nx-evil: 1"})
    assert SECRET not in str(error.value)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(0, 3), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(part: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a nested value."""
    inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


def test_a_key_that_is_no_word_is_told_in_one_line(tmp_path: Path) -> None:
    content = yaml.safe_load(GATEWAY)
    content["backends"][0] = {"\n\x1b[2J": None}
    with pytest.raises(UserError, match=r"backends\.0\..*: no such key") as error:
        read_gateway(written(tmp_path, yaml.safe_dump(content)), ENVIRON)
    assert str(error.value).isprintable()


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_stands_anywhere_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = yaml.safe_load(GATEWAY)
    usual = {"name": "x", "kind": "ab", "model": "chat", "control": "a", "treatment": "c", "steps": [0.1, 0.2]}
    content |= {"experiments": [usual], "limits": {"body": 9}, "log": {"keep": 2}, "redis": {"prefix": "p"}}
    content |= {"admin": {"port": 5}, "host": "127.0.0.1", "keys": None}
    *parents, last = data.draw(st.sampled_from(places(content)[1:]))
    place = content
    for key in parents:
        place = place[key]
    place[last] = data.draw(ANYTHING)
    path = written(tmp_path, yaml.safe_dump(content))
    said = f"{path}: "
    try:
        read_gateway(path, ENVIRON)
    except UserError as error:
        said = str(error)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "right"),
    [
        (b"", "holds None, it must hold keys such as `backends:`"),
        (b"- a", "it must hold keys"),
        (b"backends: [", "not YAML"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"port: 1\nport: 2\n", "key 'port' is written twice"),
        (b"x: " + b"[" * 2000, "not YAML"),
    ],
)
def test_what_is_no_gateway_file(tmp_path: Path, content: bytes, right: str) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(right)):
        read_gateway(path, ENVIRON)


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("examples/gateway.yaml")):
        read_gateway(tmp_path / "none.yaml", ENVIRON)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "10.0.0.1", "127.0.0.1.evil.org", "localhost.evil.org", "*", "1"]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_others_may_come_with_keys_and_see_the_admin_pages_with_a_secret(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{}", encoding="utf-8")
    text = changed(host="0.0.0.0", keys="keys.json", admin={"host": "0.0.0.0"})
    assert read_gateway(written(tmp_path, text), ENVIRON).keys == (tmp_path / "keys.json").resolve()
    without = {key: value for key, value in ENVIRON.items() if key != "BREAKEVEN_ADMIN_SECRET"}
    with pytest.raises(UserError, match=r"admin\.host: found '0\.0\.0\.0'.*BREAKEVEN_ADMIN_SECRET"):
        read_gateway(written(tmp_path, text), without)
    off = changed(host="0.0.0.0", keys="keys.json", admin=False)
    assert read_gateway(written(tmp_path, off), without).admin_port is None


def test_a_command_line_cannot_open_what_a_file_could_not(tmp_path: Path) -> None:
    plan = read_gateway(written(tmp_path, GATEWAY), ENVIRON)
    with pytest.raises(UserError, match="no keys"):
        check_plan(replace(plan, host="0.0.0.0"), "--host", ENVIRON)


def test_a_reload_keeps_sockets_and_never_drops_keys(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{}", encoding="utf-8")
    old = read_gateway(written(tmp_path, changed(keys="keys.json")), ENVIRON)
    new = replace(old, policies=old.policies[:1])
    assert check_reload(old, new, "f") is new
    with pytest.raises(UserError, match="f: keys: missing"):
        check_reload(old, replace(old, keys=None), "f")
    closed, elsewhere = AdminPlan(port=None), AdminPlan(host="::1")
    for field, value in (("host", "::1"), ("port", 1), ("workers", 2), ("admin", closed), ("admin", elsewhere)):
        with pytest.raises(UserError, match="changes only with a restart"):
            check_reload(old, replace(old, **{field: value}), "f")  # type: ignore[arg-type]


def test_edge_first_finds_the_only_one_on_the_device(tmp_path: Path) -> None:
    text = changed(policies__1={"model": "near", "policy": "edge-first"})
    plan = read_gateway(written(tmp_path, text), ENVIRON)
    assert {each.model: each.first for each in plan.policies}["near"] == "b"


def test_first_may_name_a_group(tmp_path: Path) -> None:
    plan = read_gateway(written(tmp_path, changed(backends__0__replica_of="g", policies__0__first="g")), ENVIRON)
    assert plan.policies[0].first == "g"


def test_names_of_policies_are_those_there_are() -> None:
    assert set(check.POLICY_NAMES) == set(POLICIES)


def test_a_hub_id_is_taken_without_the_network(tmp_path: Path) -> None:
    plan = read_gateway(written(tmp_path, changed(backends__0__model="some/model", backends__0__machine=None)), ENVIRON)
    assert (plan.backends[0].model, plan.backends[0].kind) == ("some/model", "unknown")


def test_every_key_is_explained() -> None:
    page = (ROOT / "docs" / "gateway-yaml.md").read_text(encoding="utf-8")
    shared = {"ttft", "tpot", "usd_per_hour", "own", "rented", "api", "source", "tokens_per_s"}
    priced = {OwnPrice, RentedPrice, TokenPrice, PriceTerms}
    keys = {key for each in parts_in(GatewayPlan) - priced for key in keys_of(each)} - shared
    assert [key for key in sorted(keys) if not re.search(rf"`[^`\n]*\b{key}\b[^`\n]*`", page)] == []


SECTIONS: dict[str, type[FilePart]] = {
    "At the top": GatewayPlan,
    "backends": BackendPlan,
    "policies": PolicyPlan,
    "experiments": ExperimentPlan,
    "limits": Limits,
    "log": LogPlan,
    "redis": Redis,
}


def rows_of_keys() -> list[tuple[type[FilePart], list[str], str]]:
    """The record, the keys and what holds when they are not given, of every row of the page's tables."""
    page = (ROOT / "docs" / "gateway-yaml.md").read_text(encoding="utf-8")
    found = []
    for section in page.split("\n## ")[1:]:
        for row in re.findall(r"^\| (`.*?) \|.*\| (.*?) ?\|$", section, re.MULTILINE):
            part = row[0].rpartition(": ")[0].lstrip("`") or section.partition("\n")[0]
            found.append((SECTIONS[part], re.findall(r"`(?:\w+: )?(\w+)`", row[0]), row[1]))
    return found


def spelled(name: str, value: object) -> set[str]:
    """How a page may write a default."""
    if isinstance(value, bool):
        return {str(value).lower()}
    if isinstance(value, tuple):
        return {", ".join(f"{each:.0%}" for each in value)} if name == "steps" else set()
    if isinstance(value, int | float):
        sizes = {f"{value / 2**20:g} MiB", f"{value / 2**10:g} KiB"} if name.endswith("_bytes") else set()
        times = {f"{value:g}s", f"{value * 1000:g}ms"} if name.endswith("_s") else set()
        return sizes or times or {str(value), f"{value:.0%}"}
    return {value} if isinstance(value, str) else set()


def test_the_page_names_no_other_key_and_every_default_as_it_is() -> None:
    """Against the records: a key that is not there any more, and a default that has changed, are found here."""
    wrong = []
    for part, keys, cell in rows_of_keys():
        assert keys
        for key in keys:
            name = keys_of(part).get(key)
            default = next((each.default for each in fields(part) if each.name == name), None)  # type: ignore[arg-type]
            texts = spelled(name or "", default)
            if name is None or (texts and not any(text in cell for text in texts) and key not in WORKED_OUT):
                wrong.append((key, cell, sorted(texts)))
    assert wrong == []


WORKED_OUT = {"kind", "location", "policies"}
"""What follows from other keys; the page says from which."""


def test_every_key_has_a_row() -> None:
    told = {(part, key) for part, keys, _ in rows_of_keys() for key in keys}
    prose = {(ExperimentPlan, key) for key in ("name", "kind", "model", "control", "treatment")}
    assert {(part, key) for part in SECTIONS.values() for key in keys_of(part)} - told == prose


def test_the_pages_files_are_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "gateway-yaml.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert read_gateway(written(tmp_path, block), ENVIRON).backends


def test_the_example_is_read_with_and_without_what_it_comments_out(tmp_path: Path) -> None:
    plan = read_gateway(ROOT / "examples" / "gateway.yaml", {})
    assert [(each.name, each.kind) for each in plan.backends] == [("tiny-dense", "dense"), ("tiny-moe", "moe")]
    text = (ROOT / "examples" / "gateway.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^( *)# ((?: {2})*(?:- )?[a-z_]+: \S.*|experiments:)$", r"\1\2", text, flags=re.MULTILINE)
    for name in ("tiny-dense.yaml", "tiny-moe.yaml"):
        (tmp_path / name).write_bytes((ROOT / "examples" / name).read_bytes())
    (tmp_path / "keys.json").write_text("{}", encoding="utf-8")
    plan = read_gateway(written(tmp_path, text), {"OPENROUTER_API_KEY": SECRET})
    assert len(plan.backends) == 5
    assert [each.model for each in plan.policies] == ["chat", "careful"]
    assert (plan.host, plan.workers, len(plan.experiments)) == ("0.0.0.0", 2, 1)


# Writing.

NAMES = st.from_regex(NAME, fullmatch=True).filter(lambda name: name != PUBLIC_NAME)
SECONDS = st.floats(1e-3, 1e6)
PRICES = st.one_of(
    st.none(),
    st.builds(
        Own,
        usd=st.floats(0, 1e6),
        life_years=st.floats(0.1, 50),
        usd_per_kwh=st.floats(0, 10),
        idle_w=st.none() | st.floats(1, 100),
        busy_w=st.none() | st.floats(100, 1e4),
        power_overhead=st.floats(1, 3),
        yearly_upkeep_usd=st.floats(0, 1e5),
    ),
    st.builds(Rented, usd_per_hour=st.floats(0, 1e3), date=st.sampled_from([None, "2026", "2026-03", "2026-03-09"])),
    st.builds(Api, usd_per_mtok_input=st.floats(0, 99), usd_per_mtok_output=st.floats(0, 99)),
)


@st.composite
def plans(draw: st.DrawFn) -> GatewayPlan:
    names = draw(st.lists(NAMES, min_size=2, max_size=4, unique=True))
    backends = []
    for name in names:
        price = draw(PRICES)
        hosted = isinstance(price, Api)
        local = draw(st.booleans()) and not hosted
        url = None if local else draw(st.sampled_from(["http://10.0.0.1:8000/v1", "https://h.example/x/v1"]))
        far = url is not None and url.startswith("https")
        plan = BackendPlan(
            name=name,
            url=url,
            key_over_http=url is not None and not far,
            proxy=draw(st.sampled_from([None, "http://proxy.example:3128"])) if far else None,
            local=LocalPlan(model="qwen3-0.6b", context=draw(st.integers(1, 9999)), pinned=draw(st.booleans()))
            if local
            else None,
            kind=draw(st.sampled_from(["dense", "moe"])),
            place="cloud" if hosted else draw(st.sampled_from(["edge", "on-premise", "cloud"])),
            price=price,
            quality=draw(st.none() | st.floats(0, 1)),
            limit=draw(st.integers(1, 10_000)),
            max_output=draw(st.none() | st.integers(1, 99_999)),
            poll=draw(st.booleans()),
            replica_of=draw(st.none() | NAMES),
            timeouts=Timeouts(idle_s=draw(SECONDS)),
            endpoints=draw(st.sampled_from([ENDPOINTS, USUAL_ENDPOINTS, LOCAL_ENDPOINTS])),
            api_key_env=None if local else draw(st.sampled_from([None, "KEY_OF_C"])),
            key_header="authorization" if local else draw(st.sampled_from(["authorization", "x-api-key"])),
        )
        if plan.local is not None:
            plan = replace(plan, model="qwen3-0.6b", engine="llama.cpp", slots=4, context=plan.local.context)
        backends.append(plan)
    public = draw(NAMES.filter(lambda name: name not in names))
    policy = PolicyPlan(
        model=public,
        backends=tuple(names),
        policy="weighted",
        weights={names[0]: draw(st.floats(0.1, 9))},
        slo=Slo(ttft_s=draw(st.none() | SECONDS), tpot_s=draw(st.none() | SECONDS)),
        hedge=draw(st.none() | st.just(HedgePlan(share=0.02, backends=(names[1],)))),
        queue_s=draw(SECONDS),
        shed=draw(st.booleans()),
        explore=draw(st.floats(0, 1)),
    )
    return GatewayPlan(
        path=None,
        backends=tuple(backends),
        policies=(policy,),
        port=draw(st.integers(0, 65535)),
        admin=AdminPlan(port=draw(st.sampled_from([None, 8001])) if draw(st.booleans()) else 9),
        experiments=(
            ExperimentPlan(name="x", kind="canary", model=public, control=names[0], treatment=names[1], hold=7),
        ),
        limits=Limits(body_bytes=draw(st.integers(1, 2**33)), idle_s=draw(SECONDS)),
        log=LogPlan(directory=Path("/tmp/log"), keep=draw(st.integers(1, 20)), prompts=draw(st.booleans())),
        redis=draw(st.sampled_from([None, Redis(), Redis(prefix="p:", timeout_s=1.0)])),
        otel=draw(st.booleans()),
        memory_bytes=draw(st.none() | st.integers(1, 2**40)),
        maximum_wait_s=draw(SECONDS),
    )


@given(plan=plans())
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_what_is_written_is_read_back(tmp_path: Path, plan: GatewayPlan) -> None:
    if plan.admin_port == plan.port:
        plan = replace(plan, admin=AdminPlan(port=None))
    file = write_gateway(plan, tmp_path / "sub" / "gateway.yaml", notes={plan.backends[0].name: "two\nlines # : -"})
    assert replace(read_gateway(file, ENVIRON), path=None) == plan
    assert "  # two\n  # lines" in file.read_text(encoding="utf-8")


def test_a_backend_without_a_place_is_refused_until_it_has_one(tmp_path: Path) -> None:
    plan = GatewayPlan(path=None, backends=(BackendPlan(name="x"),), policies=(PolicyPlan(model="m", backends=("x",)),))
    text = gateway_text(plan)
    with pytest.raises(UserError, match=r"backends\.0: it must give exactly one of url"):
        read_gateway(written(tmp_path, text), {})
    assert read_gateway(written(tmp_path, text.replace("url:", "url: http://10.0.0.1/v1")), {}).backends[0].url


# From a decision.


def test_a_decision_becomes_a_file_to_complete(tmp_path: Path) -> None:
    write(full(), tmp_path / "result.json")
    with pytest.raises(UserError, match=r"fill in the url of hosted-moe, llama-3\.1-8b, qwen3-30b-a3b"):
        plan_of_decision(tmp_path, {})
    file = tmp_path / "gateway.yaml"
    text = file.read_text(encoding="utf-8")
    assert "Pay by the token for hosted-moe" in text
    assert "mixtral" not in text  # ruled out
    file.write_text(text.replace("url:", "url: http://10.0.0.1:8000/v1"), encoding="utf-8")
    plan = plan_of_decision(tmp_path / "result.json", {})
    assert [each.name for each in plan.backends] == ["hosted-moe", "llama-3.1-8b", "qwen3-30b-a3b"]
    assert [each.machine for each in plan.backends] == [None, "l40s", "h100-sxm"]
    assert plan.backends[0].is_api
    assert plan.policies[0].slo == Slo(ttft_s=2.0, tpot_s=0.08)
    assert plan.policies[0].policy == "breakeven"  # three winners


def test_a_base_model_is_told_beside_its_backend(tmp_path: Path) -> None:
    named = {"first": "qwen2.5-32b:Q4_K_M", "second": "mixtral-8x7b", "third": "qwen3-8b", "fourth": "qwen2.5-72b"}
    rows = [(hosted if name == "fourth" else dense)(name, model=model) for name, model in named.items()]
    write(decision(rows, regions=[]), tmp_path / "result.json")
    with pytest.raises(UserError, match="fill in the url"):
        plan_of_decision(tmp_path, {})
    text = " ".join((tmp_path / "gateway.yaml").read_text(encoding="utf-8").replace("#", " ").split())
    assert "Qwen/Qwen2.5-32B is a base model, which was not taught to chat" in text
    assert "mistralai/Mixtral-8x7B-v0.1 is a base model" in text
    assert "take mistralai/Mixtral-8x7B-Instruct-v0.1" in text
    assert text.count("is a base model") == 2, "of what a provider hosts nothing is known"


def region(low: float, high: float | None, winner: str | None) -> Region:
    return Region(low_per_s=low, high_per_s=high, winner=winner, runner_up=None, margin=None, certain=True)


def test_one_flip_between_machines_is_a_spill(tmp_path: Path) -> None:
    found = decision(
        [dense(), moe()],
        regions=[region(0.1, 2, "llama-3.1-8b"), region(2, 3, None), region(3, None, "qwen3-30b-a3b")],
    )
    write(found, tmp_path / "result.json")
    with pytest.raises(UserError, match="fill in the url"):
        plan_of_decision(tmp_path, {})
    file = tmp_path / "gateway.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("url:", "url: http://10.0.0.1/v1"), encoding="utf-8")
    (policy,) = plan_of_decision(tmp_path, {}).policies
    assert (policy.policy, policy.first) == ("spill", "llama-3.1-8b")
    assert policy.backends == ("llama-3.1-8b", "qwen3-30b-a3b")


@pytest.mark.parametrize("make", [no_difference, both])
def test_every_verdict_gives_a_gateway(tmp_path: Path, make: Any) -> None:
    write(make(), tmp_path / "result.json")
    with pytest.raises(UserError, match="fill in the url"):
        plan_of_decision(tmp_path, {})
    file = tmp_path / "gateway.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("url:", "url: http://10.0.0.1/v1"), encoding="utf-8")
    assert len(plan_of_decision(tmp_path, {}).backends) == 2


def test_parts_of_the_traffic_are_models_of_their_own(tmp_path: Path) -> None:
    shares = [
        TrafficShare(candidate="llama-3.1-8b", traffic="commands", share=0.8),
        TrafficShare(candidate="hosted-moe", traffic="open questions", share=0.2),
    ]
    ours, away = dense(barred_from=["open questions"]), hosted(barred_from=["commands"])
    neither = moe(barred_from=["commands"])  # best at some load, were it allowed
    verdict = Verdict(outcome="both", winner=None, sentence="Both.", because=[], shares=shares)
    found = decision([ours, away, neither], verdict=verdict, regions=[region(0.1, None, "qwen3-30b-a3b")])
    write(found, tmp_path / "result.json")
    with pytest.raises(UserError, match=r"fill in the url of llama-3\.1-8b, hosted-moe \("):
        plan_of_decision(tmp_path, {})
    file = tmp_path / "gateway.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("url:", "url: http://10.0.0.1/v1"), encoding="utf-8")
    plan = plan_of_decision(tmp_path, {})
    models = {each.model: each.backends for each in plan.policies}
    assert models == {"commands": ("llama-3.1-8b",), "open-questions": ("hosted-moe",)}
    assert {each.slo for each in plan.policies} == {Slo(ttft_s=2.0, tpot_s=0.08)}


def test_machines_that_a_verdict_fills_are_filled_first(tmp_path: Path) -> None:
    shares = [
        TrafficShare(candidate="llama-3.1-8b", traffic="up to 9 requests/s", share=0.7),
        TrafficShare(candidate="hosted-moe", traffic=ABOVE, share=0.3),
    ]
    verdict = Verdict(outcome="both", winner=None, sentence="Both.", because=[], shares=shares)
    write(decision([hosted(), dense()], verdict=verdict), tmp_path / "result.json")
    with pytest.raises(UserError, match="fill in the url"):
        plan_of_decision(tmp_path, {})
    file = tmp_path / "gateway.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("url:", "url: http://10.0.0.1/v1"), encoding="utf-8")
    (policy,) = plan_of_decision(tmp_path, {}).policies
    assert (policy.model, policy.policy, policy.first) == ("breakeven", "spill", "llama-3.1-8b")
    assert policy.backends == ("llama-3.1-8b", "hosted-moe")


def test_who_may_not_serve_all_serves_nothing_that_is_not_shared_out(tmp_path: Path) -> None:
    ours, away = dense(), hosted(barred_from=["secrets"])
    regions = [region(0.1, 2, "hosted-moe"), region(2, None, "llama-3.1-8b")]
    write(decision([ours, away], regions=regions), tmp_path / "result.json")
    with pytest.raises(UserError, match=r"fill in the url of llama-3\.1-8b \("):
        plan_of_decision(tmp_path, {})
    other = tmp_path / "other"
    other.mkdir()
    write(decision([away], regions=[]), other / "result.json")
    with pytest.raises(UserError, match="nobody may serve all parts of the traffic"):
        plan_of_decision(other, {})


def test_a_decision_that_rules_everybody_out_gives_none(tmp_path: Path) -> None:
    write(nobody(), tmp_path / "result.json")
    with pytest.raises(UserError, match="rules every candidate out"):
        plan_of_decision(tmp_path, {})
    assert not (tmp_path / "gateway.yaml").exists()


def test_a_candidate_on_this_machine_is_started_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    from breakeven.forecast.profiles import profile_named, save_profile
    from breakeven.hardware.reader import read_machine

    profile = msgspec.structs.replace(
        profile_named("apple-m4-pro", "llama.cpp"), name="my box", machine=read_machine(), chip=None
    )
    save_profile(profile)
    here = {"machine": "my box", "engine": "llama.cpp", "format": "Q4_K_M", "location": "on-premise"}
    write(decision([dense(**here), moe("olmoe-1b-7b", **{**here, "kind": "moe"})]), tmp_path / "result.json")
    plan = plan_of_decision(tmp_path, {})
    assert [each.local.model for each in plan.backends if each.local] == ["llama-3.1-8b", "olmoe-1b-7b"]
    assert [(each.machine, each.kind) for each in plan.backends] == [("this", "dense"), ("this", "moe")]
    assert plan.backends[0].context == 16384  # prompts of at most 8,000 tokens, and answers
    assert plan.path == (tmp_path / "gateway.yaml").resolve()


def test_a_candidate_that_was_only_measured_here_is_started_here(tmp_path: Path) -> None:
    from breakeven.hardware.machine import machine_text
    from breakeven.hardware.reader import read_machine

    model = str(tmp_path / "small.gguf")
    place = {"machine": machine_text(read_machine()), "engine": "llama.cpp", "location": "on-premise"}
    found = dense(**place, model=model, format="as measured")
    write(decision([found, moe("far", machine="http://10.0.0.7:8000/v1")]), tmp_path / "result.json")
    with pytest.raises(UserError, match="fill in the url of far"):
        plan_of_decision(tmp_path, {})
    text = (tmp_path / "gateway.yaml").read_text(encoding="utf-8")
    assert f"model: {model}" in text
    assert "as measured" not in text
    assert "machine: this" not in text, "its speed is learned where nothing was calibrated"


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"schema": "breakeven.decision/9"}', b"\xff"])
def test_what_is_no_decision(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(UserError, match="is no decision"):
        plan_of_decision(tmp_path, {})


def test_a_missing_decision_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="breakeven decide wrote"):
        plan_of_decision(tmp_path, {})
