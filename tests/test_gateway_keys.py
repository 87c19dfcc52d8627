"""Keys on disk, checking one, and the command that makes them. The fourth security property stands here."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import math
import multiprocessing
import os
import shutil
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.api.gateway import expiry
from breakeven.cli.main import dispatch
from breakeven.errors import UserError
from breakeven.gateway.keys import store
from breakeven.gateway.keys.entry import (
    LONGEST_S,
    MOST_AMOUNT,
    KeyEntry,
    KeyLimit,
    Keys,
    limit_text,
    parse_limit,
    stamped,
)
from breakeven.gateway.keys.store import follow
from breakeven.gateway.plan.load import read_gateway
from breakeven.traffic.workload import Slo


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_secret_is_shown_once_and_only_its_digest_is_kept(path: Path) -> None:
    secret = store.create(path, "anna")
    assert secret.startswith("bek-")
    assert len(secret) == 4 + math.ceil(32 * 8 / 6), "256 bits in base64"
    kept = path.read_text()
    assert secret not in kept
    assert secret.removeprefix("bek-") not in kept
    assert hashlib.sha256(secret.encode()).hexdigest() in kept
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret != store.create(path, "bert")


def test_the_file_is_0600_whatever_the_umask(path: Path) -> None:
    old = os.umask(0)
    try:
        store.create(path, "anna")
        store.revoke(path, "anna")
    finally:
        os.umask(old)
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}


def test_everything_said_of_a_key_is_kept(path: Path) -> None:
    limits = (parse_limit("1000 requests/min"), parse_limit("2.5 usd/day"))
    store.create(
        path,
        "anna",
        models=("a", "b"),
        admin=True,
        limits=limits,
        slo=Slo(ttft_s=0.5),
        priority=-2,
        expires=4e9,
    )
    (entry,) = store.load(path)
    assert (entry.name, entry.models, entry.admin, entry.priority) == ("anna", ("a", "b"), True, -2)
    assert (entry.slo, entry.expires_s, entry.revoked_s) == (Slo(ttft_s=0.5), 4e9, None)
    assert [limit_text(limit) for limit in entry.limits] == ["1000 requests/min", "2.5 usd/day"]
    assert all(limit.stamp for limit in entry.limits)
    assert entry.may("a")
    assert not entry.may("c")


def test_a_revoked_key_is_listed_and_not_loaded(path: Path) -> None:
    store.create(path, "anna")
    store.create(path, "bert")
    before = store.file_stamp(path)
    store.revoke(path, "anna")
    assert store.file_stamp(path) != before
    assert [entry.name for entry in store.load(path)] == ["bert"]
    assert [entry.revoked_s is None for entry in store.listing(path)] == [False, True]
    first = store.listing(path)[0].revoked_s
    store.revoke(path, "anna")
    assert store.listing(path)[0].revoked_s == first
    with pytest.raises(UserError, match="anna already"):
        store.create(path, "anna")
    assert store.file_stamp(path.with_name("absent")) == (0, 0, 0)


def _create_some(path: Path, who: int) -> None:
    for k in range(5):
        store.create(path, f"w{who}-{k}")


def test_writers_at_once_lose_nothing(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_create_some, args=(path, who)) for who in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert len(store.load(path)) == 20
    assert sorted(each.name for each in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]


def test_a_write_that_fails_leaves_the_old_file_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create(path, "anna")
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        store.create(path, "bert")
    assert path.read_bytes() == before
    assert sorted(each.name for each in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]


@pytest.mark.parametrize("name", ["", "a b", "ä", "../x", "a" * 65, "-a", 'a"', "a\n"])
def test_names_that_would_not_fit_a_label_are_refused(path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no name for a key"):
        store.create(path, name)
    assert not path.exists()


def test_too_many_or_double_limits_are_refused(path: Path) -> None:
    with pytest.raises(UserError, match="9 limits"):
        store.create(path, "anna", limits=[KeyLimit("requests", 1, 60.0 * (k + 1)) for k in range(9)])
    with pytest.raises(UserError, match="same thing"):
        store.create(path, "anna", limits=[parse_limit("1 requests/min"), parse_limit("2 requests/60s")])


def _rewrite(path: Path, **fields: object) -> None:
    content = json.loads(path.read_text())
    content["keys"][0].update(fields)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"digest": "sha256:12"}, "key anna: digest"),
        ({"limits": ["often"]}, "key anna: limits: 'often'"),
        ({"limits": ["1 usd/day"] * 9}, "key anna: it has 9 limits"),
        ({"limits": ["1 usd/day", "2 usd/24h"]}, "key anna: two limits"),
        ({"priority": "high"}, r"priority"),
        ({"limit": []}, r"unknown field `limit`"),
        ({"name": "a b"}, "no name for a key"),
    ],
)
def test_a_damaged_file_is_refused_by_file_key_and_field(path: Path, fields: dict[str, object], says: str) -> None:
    store.create(path, "anna")
    _rewrite(path, **fields)
    with pytest.raises(UserError, match=says) as caught:
        store.load(path)
    assert str(path) in str(caught.value)


def test_other_reasons_to_refuse_a_file(path: Path) -> None:
    with pytest.raises(UserError, match="keys create"):
        store.load(path)
    store.create(path, "anna")
    path.chmod(0o660)
    with pytest.raises(UserError, match="chmod 600"):
        store.load(path)
    path.chmod(0o440)
    assert len(store.load(path)) == 1, "a mounted secret that others may read"
    path.chmod(0o600)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "keys": content["keys"] * 2}))
    with pytest.raises(UserError, match="two keys have the name anna"):
        store.load(path)
    path.write_text(json.dumps({**content, "schema": "breakeven.key_file/9"}))
    with pytest.raises(UserError, match="key_file/9"):
        store.load(path)
    path.write_bytes(b"\xff\x00 not json")
    with pytest.raises(UserError, match="no file of keys"):
        store.load(path)


# Checking a key.


def entry_of(secret: str, **fields: object) -> KeyEntry:
    digest = hashlib.sha256(secret.encode()).digest()
    return KeyEntry(name=secret, id=secret, digest=digest, **fields)  # type: ignore[arg-type]


def test_found_by_either_header() -> None:
    keys = Keys([entry_of("bek-anna"), entry_of("bek-bert")])
    assert len(keys) == 2
    for authorization in (b"Bearer bek-anna", b"bearer bek-anna", b"BEARER  bek-anna "):
        found = keys.find(authorization)
        assert found is not None
        assert found.name == "bek-anna"
    found = keys.find(None, b"bek-bert")
    assert found is not None
    assert found.name == "bek-bert"
    assert keys.find(b"Bearer wrong", b"bek-bert") is None, "one header decides"


WRONG = {
    "none": None,
    "empty": b"",
    "no secret": b"Bearer ",
    "unknown": b"Bearer bek-nobody",
    "revoked": b"Bearer bek-revoked",
    "expired": b"Bearer bek-expired",
    "another scheme": b"Basic bek-anna",
    "no scheme": b"bek-anna",
    "a part": b"Bearer bek-ann",
    "more": b"Bearer bek-annaa",
    "the digest": b"Bearer " + hashlib.sha256(b"bek-anna").hexdigest().encode(),
    "not text": b"Bearer \xff\xfe\x00",
    "long": b"Bearer " + b"x" * 60_000,
}


@pytest.mark.parametrize("what", WRONG)
def test_all_wrong_keys_are_answered_alike(what: str) -> None:
    keys = Keys([entry_of("bek-anna"), entry_of("bek-revoked", revoked_s=1.0), entry_of("bek-expired", expires_s=5.0)])
    assert keys.find(WRONG[what], unix_s=10.0) is None
    assert keys.find(None, (WRONG[what] or b"").removeprefix(b"Bearer ") + b"?", unix_s=10.0) is None


def test_every_key_is_compared_once_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys([entry_of("bek-anna"), entry_of("bek-expired", expires_s=5.0)])
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    for value in [b"Bearer bek-anna", *WRONG.values()]:
        compared.clear()
        keys.find(value, unix_s=10.0)
        assert compared == [(32, 32)]


def test_no_secret_is_no_key_even_where_a_file_has_its_digest() -> None:
    keys = Keys([entry_of("")])
    for authorization, api_key in ((b"Bearer ", None), (b"", None), (None, b""), (None, None), (b"Basic x", None)):
        assert keys.find(authorization, api_key) is None


def test_an_expired_key_ends_while_the_gateway_runs() -> None:
    keys = Keys([entry_of("bek-anna", expires_s=100.0)])
    assert keys.find(b"Bearer bek-anna", unix_s=99.9)
    assert keys.find(b"Bearer bek-anna", unix_s=100.0) is None
    assert keys.find(b"Bearer bek-anna") is None


def test_revoking_takes_keys_from_a_running_worker_and_adds_none() -> None:
    anna, bert, cleo = (entry_of(f"bek-{name}") for name in ("anna", "bert", "cleo"))
    keys = Keys([anna, bert])
    keys.only([entry_of("bek-anna", revoked_s=1.0), bert, cleo])
    assert keys.find(b"Bearer bek-anna") is None
    assert keys.find(b"Bearer bek-bert") is bert
    assert keys.find(b"Bearer bek-cleo") is None


def test_a_worker_follows_the_file(path: Path) -> None:
    secrets = {name: f"Bearer {store.create(path, name)}".encode() for name in ("anna", "bert", "cleo")}
    keys, seen = Keys(store.load(path)), store.file_stamp(path)
    assert follow(keys, path, seen) == seen
    store.revoke(path, "anna")
    after = follow(keys, path, seen)
    assert after != seen
    assert keys.find(secrets["anna"]) is None
    assert keys.find(secrets["bert"]) is not None
    whole = path.read_bytes()
    path.write_bytes(b"{")
    torn = follow(keys, path, after)
    assert keys.find(secrets["bert"]) is not None, "a wrong file changes nothing"
    path.write_bytes(whole)
    store.revoke(path, "bert")
    follow(keys, path, torn)
    assert keys.find(secrets["bert"]) is None
    path.unlink()
    assert follow(keys, path, torn) == (0, 0, 0)
    assert keys.find(secrets["cleo"]) is not None


def test_a_file_that_is_swapped_as_kubernetes_swaps_it_is_followed(tmp_path: Path) -> None:
    """A volume's file is a link into `..data`, itself a link to a directory that is another after a change."""
    first, second, volume = tmp_path / "..1", tmp_path / "..2", tmp_path / "volume"
    for each in (first, second, volume):
        each.mkdir()
    secret = f"Bearer {store.create(first / 'keys.json', 'anna')}".encode()
    (second / "keys.json").write_bytes((first / "keys.json").read_bytes())
    store.revoke(second / "keys.json", "anna")
    for path in (first, second):
        (path / "keys.json").chmod(0o440)
    (volume / "..data").symlink_to(first)
    (volume / "keys.json").symlink_to("..data/keys.json")
    plan_file = tmp_path / "gateway.yaml"
    plan_file.write_text("keys: volume/keys.json\nbackends: [{name: a, url: 'http://127.0.0.1:1/v1'}]\n")
    path = read_gateway(plan_file, {}).keys
    assert path is not None
    keys, seen = Keys(store.load(path)), store.file_stamp(path)
    assert keys.find(secret) is not None
    (volume / "..new").symlink_to(second)
    (volume / "..new").replace(volume / "..data")
    shutil.rmtree(first)
    follow(keys, path, seen)
    assert keys.find(secret) is None


def test_a_file_that_cannot_be_used_is_told_and_still_revokes(path: Path) -> None:
    names = ("anna", "bert", "cleo")
    secrets = {name: f"Bearer {store.create(path, name)}".encode() for name in names}
    keys, said = Keys(store.load(path)), []
    seen = follow(keys, path, (-1, 0, 0), said.append)
    assert said == [""], "nothing is wrong yet"

    def there() -> list[str]:
        return [name for name in names if keys.find(secrets[name]) is not None]

    store.revoke(path, "anna")
    path.chmod(0o664)
    seen = follow(keys, path, seen, said.append)
    assert "can be written by other users" in said[-1]
    assert there() == ["bert", "cleo"]
    path.chmod(0o600)
    seen = follow(keys, path, seen, said.append)
    assert said[-1] == "", "a mode that was put right is seen"
    # One key's entry is wrong: what another's says is taken, and who is missing stays.
    file = json.loads(path.read_bytes())
    file["keys"] = [{**file["keys"][0], "limits": ["lots"]}, {**file["keys"][1], "revoked_s": 5.0}]
    path.write_text(json.dumps(file))
    seen = follow(keys, path, seen, said.append)
    assert "key anna: limits" in said[-1]
    assert there() == ["cleo"]
    for content in (b"", b"{", b"[]", b'{"keys": 5}', b'{"keys": [5, {"digest": 5, "revoked_s": 1}]}'):
        path.write_bytes(content)
        seen = follow(keys, path, seen, said.append)
        assert "is no file of keys" in said[-1]
    path.unlink()
    seen = follow(keys, path, seen, said.append)
    assert "is not there" in said[-1]
    os.mkfifo(path)
    follow(keys, path, seen, said.append)
    assert "no regular file" in said[-1], "and nobody waits for a writer"
    assert there() == ["cleo"]


@given(st.binary(max_size=80), st.none() | st.binary(max_size=80))
def test_no_bytes_find_a_key_or_crash(authorization: bytes, api_key: bytes | None) -> None:
    keys = Keys([entry_of("bek-anna")])
    assert keys.find(authorization, api_key) is None


def test_a_made_key_opens_and_a_revoked_one_does_not(path: Path) -> None:
    secret = store.create(path, "anna").encode()
    assert Keys(store.load(path)).find(b"Bearer " + secret)
    store.revoke(path, "anna")
    assert Keys(store.load(path)).find(b"Bearer " + secret) is None
    assert Keys(store.listing(path)).find(b"Bearer " + secret) is None


# Limits in words.


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("1000 requests/min", KeyLimit("requests", 1000, 60.0)),
        ("1 req/s", KeyLimit("requests", 1, 1.0)),
        ("200k tokens/hour", KeyLimit("tokens", 200_000, 3600.0)),
        ("1.5M tokens / day", KeyLimit("tokens", 1_500_000, 86400.0)),
        ("5 usd/day", KeyLimit("usd", 5 * 10**9, 86400.0)),
        ("$0.001 usd/week", KeyLimit("usd", 10**6, 604800.0)),
        ("100 requests/10min", KeyLimit("requests", 100, 600.0)),
        ("9 dollars/2 months", KeyLimit("usd", 9 * 10**9, 60 * 86400.0)),
    ],
)
def test_limits_in_words(text: str, limit: KeyLimit) -> None:
    assert parse_limit(text) == limit
    assert parse_limit(limit_text(limit)) == limit


@pytest.mark.parametrize(
    "text",
    [
        "", "1000", "1000 requests", "requests/min", "-1 requests/min", "0 requests/min", "0.4 requests/min",
        "1 cows/min", "1 requests/fortnight", "1 requests/0min", "1 requests/400d", "nan usd/day", "1e9 tokens/day",
        "2000000 usd/day", "9999999999999999 tokens/day", "1 requests/min;", "١ requests/min",
    ],
)  # fmt: skip
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(UserError, match="limit"):
        parse_limit(text)


@given(
    what=st.sampled_from(["requests", "tokens", "usd"]),
    amount=st.integers(1, MOST_AMOUNT),
    window_s=st.integers(1, int(LONGEST_S)),
)
def test_limits_are_written_as_they_are_read(what: str, amount: int, window_s: int) -> None:
    limit = KeyLimit(what, amount, float(window_s))  # type: ignore[arg-type]
    read = parse_limit(limit_text(limit))
    assert (read.what, read.window_s) == (limit.what, limit.window_s)
    assert read.amount == amount


@given(st.text(max_size=40))
@settings(max_examples=200)
def test_any_text_is_a_limit_or_a_plain_complaint(text: str) -> None:
    with contextlib.suppress(UserError):
        assert parse_limit(text).amount >= 1


def test_stamps_tell_keys_and_limits_apart() -> None:
    limits = [parse_limit(text) for text in ("1 requests/min", "1 requests/hour", "1 tokens/min")]
    stamps = {stamped(limit, key).stamp for limit in limits for key in ("a", "b")}
    assert len(stamps) == 6
    assert all(0 < stamp < 2**63 for stamp in stamps)
    assert stamped(parse_limit("2 requests/min"), "a").stamp in stamps, "another amount goes on with what was counted"


# The command.


def test_create_list_revoke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["create", "anna", "--limit", "1000 requests/min", "--usd", "5/day", "--models", "a, b", "--slo", "ttft=1s"]
    assert dispatch(["keys", *words, "--expires", "30d", "--priority", "2", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["schema"] == "breakeven.keys/1"
    assert Keys(store.load(tmp_path / "keys.json")).find(f"Bearer {made['secret']}".encode())
    assert dispatch(["keys", "create", "bert"]) == 0
    out = capsys.readouterr()
    assert out.out.startswith("bek-")
    assert out.out.count("\n") == 1, "so that SECRET=$(breakeven keys create bert) works"
    assert "bert" in out.err
    assert dispatch(["keys", "revoke", "bert"]) == 0
    capsys.readouterr()
    assert dispatch(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert "1000 requests/min; 5 usd/day" in listed
    assert dispatch(["keys", "list", "--json"]) == 0
    shown = capsys.readouterr().out
    assert [key["state"] for key in json.loads(shown)["keys"]] == ["live", "revoked"]
    for text in (listed, shown):
        assert "bek-" not in text
        assert "sha256" not in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--limit", "often"], "no limit"),
        (["--usd", "5"], "no window"),
        (["--expires", "soon"], "--expires"),
        (["--expires", "2001-01-01"], "not in the future"),
        (["--expires", "0d"], "not in the future"),
        (["--slo", "e2e=1s"], "ttft and tpot"),
        (["--slo", "fast"], "ttft=1s"),
    ],
)
def test_wrong_words_make_no_key(tmp_path: Path, words: list[str], says: str) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(UserError, match=says):
        dispatch(["keys", "create", "anna", "--file", str(path), *words])
    assert not path.exists()


def test_expiry() -> None:
    assert expiry("", 1000.0) is None
    assert expiry("30d", 1000.0) == 1000.0 + 30 * 86400
    assert expiry("90min", 0.0) == 5400.0
    assert expiry("1970-01-02", 0.0) == 86400.0
    later = expiry("12h")
    assert later is not None
    assert 43000 < later - time.time() < 43201


def test_a_file_of_many_keys_is_read_in_time_that_grows_with_it(tmp_path: Path) -> None:
    def key(k: int) -> dict[str, object]:
        return {"name": f"n{k}", "id": f"{k:016x}", "digest": f"sha256:{k:064x}", "created_s": 1.0}

    path = tmp_path / "keys.json"
    path.touch(mode=0o600)

    def taken_s(count: int) -> float:
        path.write_text(json.dumps({"schema": store.SCHEMA, "keys": [key(k) for k in range(count)]}))
        start_s = time.process_time()
        assert len(store.load(path)) == count
        return time.process_time() - start_s

    few_s = max(taken_s(1500) for _ in range(3))
    # Ten times as many take ten times as long; looked through once for each, it would be a hundred times.
    many_s = min(taken_s(15_000) for _ in range(3))
    assert many_s < 40 * few_s, "a worker reads it between two requests"
