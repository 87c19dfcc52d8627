"""What is seen of experts, as people meet it: asked of a scripted admin page, on a terminal, and as metrics."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from cli_fixtures import run_here
from experts_seen_fixtures import backend_seen, seen
from gateway_seen_fixtures import DENSE, MOE, World
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

import breakeven
from breakeven.errors import UserError
from breakeven.gateway.experts import report
from breakeven.gateway.experts.asked import NoAnswerError
from breakeven.gateway.experts.report import ExpertsSeen
from breakeven.gateway.seen.metrics import MOST_LAYERS, MOST_REASONS, PREFIX, render
from breakeven.gateway.seen.snapshot import ExpertsSummary, snapshot
from breakeven.pages import experts_seen
from breakeven.pages.experts_seen import blocks, print_seen
from breakeven.pages.terminal import SCREEN_LINES

DOCS = Path(__file__).parents[1] / "docs"
SECRET = "canary-9f1c-secret"
LARGE, SMALL = backend_seen("qwen", 48, 128, 8), backend_seen("toy", 2, 8, 2)
SIX = tuple(backend_seen(f"b{i}", 24, 64, 8) for i in range(6))


@contextmanager
def admin(status: int = 200, body: bytes = b"", secret: str | None = None) -> Iterator[str]:
    """A page that says one thing, to whoever has the secret; its address."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = status if self.path == "/admin/experts" else 404
            if secret is not None and self.headers.get("authorization") != f"Bearer {secret}":
                told = 401
            self.send_response(told)
            if told == 302:
                self.send_header("location", "http://127.0.0.1:1/elsewhere")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def saying(found: ExpertsSeen) -> bytes:
    return msgspec.json.encode(found)


@pytest.fixture(autouse=True)
def no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BREAKEVEN_ADMIN_SECRET", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def printed(found: ExpertsSeen, width: int = 80, *, full: bool = False, **options: bool) -> list[str]:
    console = Console(width=width, no_color=True, file=io.StringIO())
    with console.capture() as captured:
        print_seen(found, console, full=full, **options)
    return captured.get().splitlines()


# --- on a terminal --------------------------------------------------------------------------------------------------

GOLDEN = """\
toy: layer 1's busiest expert has 1.65 times the mean

  backend  busiest  entropy  dead  hot  drift  requests   tokens     CPU
  toy        1.65x    0.971     0    0  4.1 %       212  181,240  1.02 %

toy, toy.gguf: 2 layers of 8 experts, 2 a token
0 of 16 experts have seen nothing, 0 are above twice the mean by more than
chance.
Drift since last week: 4.1 % (1.2 % by chance).
Looked at by the gateway: 212 requests, 181,240 tokens in 3.2 days; 1 % of the
requests are to be. Looking took 1.02 % of the engine's CPU time.
Not looked at: to keep its share of the CPU (12).

Layers, worst first. A cell is an expert: ▂ the mean, █ 4 times, blank nothing.
  layer     busiest  dead  hot  entropy  drift  experts 0 to 7
  1      1.65x by 0     0    0    0.954  3.1 %  ▃▁▃▁▁▂▂▃
  0      1.33x by 5     0    0    0.989    3 %  ▂▂▃▂▁▃▁▂

By key: share of choices apart from all others
          apart  by chance  requests   tokens
  team-a  6.1 %      1.4 %       150  120,000
  team-b  6.1 %      1.4 %        62   61,240

By language: share of choices apart from all others
            apart  by chance  requests   tokens
  not told   11 %        5 %       200  170,000
  de            -          -        12   11,240

To know of toy
  - Prompts beyond 4,096 tokens are read to there.
"""


def test_a_large_backend_fits_one_screen_with_its_answer_first() -> None:
    lines = printed(seen(LARGE))
    assert len(lines) <= SCREEN_LINES
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Alarm: qwen: imbalance 3.10 of layer 7 is above 3"
    worst = max(LARGE.layers, key=lambda layer: layer.imbalance)
    assert lines[1].startswith(f"qwen: layer {worst.layer}'s busiest expert has ")
    heats = [line for line in lines if re.match(r" +\d+ +\d\.\d\dx by \d+ ", line)]
    assert len(heats) == 12
    order = [layer.layer for layer in sorted(LARGE.layers, key=lambda layer: -layer.imbalance)]
    assert [int(line.split()[0]) for line in heats] == order[:12]
    assert any("36 more layers: --full" in line for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "2 of 6,144 experts have seen nothing" in text
    assert "Drift since last week: 4.1 % (1.2 % by chance)." in text
    assert "Looked at by the gateway: 212 requests, 181,240 tokens in 3.2 days; 1 % of the requests are to be." in text
    assert "Looking took 1.02 % of the engine's CPU time." in text
    assert "Not looked at: to keep its share of the CPU (12)." in text


def test_full_shows_every_layer_and_every_one_has_its_blocks() -> None:
    lines = printed(seen(LARGE), full=True)
    heats = [line for line in lines if re.match(r" +\d+ +\d\.\d\dx by \d+ ", line)]
    assert sorted(int(line.split()[0]) for line in heats) == list(range(48))
    assert all(set(line.split()[-1]) & set("▁▂▃▄▅▆▇█") for line in heats)


@pytest.mark.parametrize("width", [60, 72, 80, 120, 200])
@pytest.mark.parametrize(
    "backends", [(LARGE,), (SMALL,), (LARGE, SMALL), tuple(backend_seen(f"b{i}", 24, 64, 8) for i in range(6))]
)
def test_no_line_is_too_wide_and_no_screen_too_high(width: int, backends: tuple[report.BackendExperts, ...]) -> None:
    lines = printed(seen(*backends), width)
    assert max(map(len, lines)) <= width
    assert len(lines) <= SCREEN_LINES


def test_a_cell_is_as_high_as_the_busiest_of_its_experts() -> None:
    assert blocks([0.25, 0.25, 0.25, 0.25], 1) == "▂▂▂▂"
    assert blocks([0.0, 0.0, 0.001, 0.999], 1) == "  ▁█"
    assert blocks([0.0, 0.0, 0.5, 0.5], 2) == " ▄"
    assert blocks([0.0, 0.0, 0.5, 0.5], 2, plain=True) == " ="
    assert blocks([0.2] * 5, 2) == "▂▂▂"


def test_a_terminal_without_blocks_gets_letters() -> None:
    assert all(line.isascii() for line in printed(seen(SMALL), plain=True))


def test_names_and_reasons_cannot_drive_a_terminal() -> None:
    evil = "\x1b[2J[red]\u202e"
    group = report.GroupSeen(name=evil, requests=1, tokens=1, apart=0.5, apart_by_chance=0.1)
    hostile = msgspec.structs.replace(
        SMALL, backend=evil, model=evil, alarms=[evil], caveats=[evil], skipped={evil: 3}, keys=[group, group]
    )
    text = "".join(printed(seen(hostile), full=True))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]" in text


# --- the verb -------------------------------------------------------------------------------------------------------


def test_the_first_screen_is_this() -> None:
    with admin(body=saying(seen(SMALL))) as url:
        done = run_here("experts", "watch", url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == GOLDEN


def test_json_is_what_the_page_says_and_what_python_gets() -> None:
    found = seen(LARGE, SMALL)
    with admin(body=saying(found)) as url:
        done = run_here("experts", "watch", url, "--json")
        alone = run_here("experts", "watch", f"{url}/admin/experts", "--json", "--backend", "toy")
        assert breakeven.experts.watch(url) == found
    assert msgspec.json.decode(done.stdout) == msgspec.json.decode(saying(found))
    assert msgspec.json.decode(alone.stdout, type=ExpertsSeen) == msgspec.structs.replace(
        found, backends=[SMALL], asked=["toy"]
    )


def test_the_secret_comes_from_the_variable_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with admin(body=saying(seen(SMALL)), secret=SECRET) as url:
        assert "put it into BREAKEVEN_ADMIN_SECRET" in refused("experts", "watch", url)
        monkeypatch.setenv("BREAKEVEN_ADMIN_SECRET", "another-secret")
        assert "refuses the secret in BREAKEVEN_ADMIN_SECRET" in refused("experts", "watch", url)
        monkeypatch.setenv("MY_SECRET", SECRET)
        assert run_here("experts", "watch", url, "--key-env", "MY_SECRET").returncode == 0


def refused(*words: str) -> str:
    """The one line of a command line that cannot be followed."""
    done = run_here(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert SECRET not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (404, b"", "does not exist: either this is not the admin page"),
        (403, b"", "answers its own machine alone"),
        (429, b"", "wait a minute"),
        (302, b"", "answers with status 302"),
        (500, b"", "answers with status 500"),
        (200, b"<html>", "is not what a Breakeven gateway says"),
        (200, b"{}", "is not what a Breakeven gateway says"),
        (200, b'{"schema": "breakeven.experts/1"}', "is not what a Breakeven gateway says"),
        (200, b'{"schema": "breakeven.experts/9"}', "speaks 'breakeven.experts/9'"),
    ],
)
def test_what_is_no_answer_is_one_line_that_says_what_to_do(status: int, body: bytes, told: str) -> None:
    with admin(status, body) as url:
        assert told in refused("experts", "watch", url)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("127.0.0.1:8001", "is no address"),
        ("http://", "is no address"),
        ("http://127.0.0.1:x", "is no address"),
        (f"http://me:{SECRET}@127.0.0.1:1", "an address holds no secret"),
        ("http://127.0.0.1:1/?a=b", "leave out what follows the path"),
        ("http://127.0.0.1:1", "cannot be reached"),
    ],
)
def test_an_address_that_is_none_is_told(url: str, told: str) -> None:
    assert told in refused("experts", "watch", url)


def test_a_secret_crosses_no_network_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREAKEVEN_ADMIN_SECRET", SECRET)
    with pytest.raises(UserError, match="in clear"):
        breakeven.experts.watch("http://192.0.2.1:8001")


def test_nothing_seen_yet_says_what_to_do() -> None:
    with admin(body=saying(seen())) as url:
        assert "put `experts: {observe: 1%}` under a backend" in run_here("experts", "watch", url).stdout
    skipped = msgspec.structs.replace(SMALL, layers=[], skipped={"its answer is packed": 3})
    with admin(body=saying(seen(skipped, asked=("moe",)))) as url:
        said = " ".join(run_here("experts", "watch", url).stdout.split())
        assert "toy: nothing is seen of its experts yet; not looked at: its answer is packed (3)." in said
        assert "moe: nothing is seen of its experts yet; only a part of the requests is looked at" in said
        assert "no experts of 'tpy' are seen" in refused("experts", "watch", url, "--backend", "tpy")


def test_on_a_terminal_it_goes_on_until_ctrl_c_and_outlives_a_gateway_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script: list[ExpertsSeen | Exception] = [seen(SMALL), NoAnswerError("it cannot be reached"), seen(SMALL)]
    slept: list[float] = []

    def look() -> ExpertsSeen:
        found = script.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if not script:
            raise KeyboardInterrupt

    monkeypatch.setattr(experts_seen.time, "sleep", sleep)
    console = Console(width=80, height=24, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        experts_seen.watch(look, console, backend=None, once=False, full=False)
    assert slept == [5.0, 5.0, 5.0]
    assert "it cannot be reached; below is how it was" in captured.get()
    assert "toy: layer" in captured.get()


# --- metrics and state ----------------------------------------------------------------------------------------------


def samples(found: ExpertsSeen | None) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    world = World()
    text = render(world.block, world.plan, world.rows, (), found).decode()
    return {
        (sample.name.removeprefix(f"{PREFIX}experts_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        if family.name.startswith(f"{PREFIX}experts_")
        for sample in family.samples
    }


def test_metrics_are_the_reports_numbers() -> None:
    large = msgspec.structs.replace(LARGE, backend=MOE)
    got = samples(seen(large))
    name = (("backend", MOE),)
    for metric, value in {
        "imbalance": large.imbalance,
        "entropy": large.entropy,
        "dead": 2,
        "hot": large.hot,
        "drift": 0.041,
        "drift_by_chance": 0.012,
        "observed_requests_total": 212,
        "observed_tokens_total": 181_240,
        "cpu_seconds_total": 10.2,
        "engine_cpu_seconds_total": 1000,
    }.items():
        assert got[metric, name] == pytest.approx(value), metric
    assert got["layer_imbalance", (*name, ("layer", "7"))] == pytest.approx(large.layers[7].imbalance)
    assert got["layer_entropy", (*name, ("layer", "47"))] == pytest.approx(large.layers[47].entropy)
    assert got["skipped_total", (*name, ("reason", "to keep its share of the CPU"))] == 12
    assert got["alarm", (*name, ("what", "imbalance"))] == 1
    assert got["alarm", (*name, ("what", "drift"))] == 0


def test_metrics_name_no_expert_few_layers_and_only_backends_of_the_plan() -> None:
    many = msgspec.structs.replace(
        backend_seen("many", MOST_LAYERS + 1, 256, 8),
        backend=MOE,
        skipped={f"reason {number}": number + 1 for number in range(50)},
    )
    got = samples(seen(many, backend_seen("a-stranger", 2, 8, 2)))
    labels = {key for _, pairs in got for key, _ in pairs}
    assert labels == {"backend", "reason", "what"}, "no expert, and no layer of so many"
    assert {value for _, pairs in got for key, value in pairs if key == "backend"} == {MOE}
    reasons = {dict(pairs)["reason"]: value for (metric, pairs), value in got.items() if metric == "skipped_total"}
    assert len(reasons) == MOST_REASONS + 1
    assert sum(reasons.values()) == 50 * 51 / 2
    assert len(samples(seen(msgspec.structs.replace(LARGE, backend=MOE)))) < 2 * 48 + 20


def test_what_is_not_known_is_absent_and_not_zero() -> None:
    assert samples(None) == {}
    counted = msgspec.structs.replace(
        SMALL, backend=DENSE, requests=None, cpu_s=None, engine_cpu_s=None, drift=None, drift_by_chance=None, watched={}
    )
    got = {metric for metric, _ in samples(seen(counted))}
    assert not got & {"observed_requests_total", "cpu_seconds_total", "engine_cpu_seconds_total", "drift", "alarm"}
    assert "imbalance" in got
    nothing = msgspec.structs.replace(SMALL, backend=DENSE, layers=[], requests=0, tokens=0)
    assert not {metric for metric, _ in samples(seen(nothing))} & {"imbalance", "entropy", "dead", "hot"}


def test_the_state_has_a_line_a_backend_from_the_same_report() -> None:
    world = World()
    large = msgspec.structs.replace(LARGE, backend=MOE)
    silent = msgspec.structs.replace(SMALL, backend=DENSE, layers=[])
    shown = snapshot(world.plan, world.block, world.rows, experts=seen(large, silent))
    states = {each.name: each.experts for each in shown.backends}
    assert states[DENSE] is None
    assert states[MOE] == ExpertsSummary(
        source="observed",
        requests=212,
        tokens=181_240,
        imbalance=large.imbalance,
        entropy=large.entropy,
        dead=2,
        hot=large.hot,
        drift=0.041,
        cpu_share=pytest.approx(0.0102),
    )
    assert all(each.experts is None for each in world.snapshot().backends)


def test_every_field_is_documented() -> None:
    section = (DOCS / "json-gateway.md").read_text().partition("\n## breakeven.experts/1\n")[2].partition("\n## ")[0]
    for struct, prefix in (
        (report.ExpertsSeen, ""),
        (report.BackendExperts, "backends[]"),
        (report.LayerSeen, "layers[]"),
        (report.GroupSeen, "keys[]"),
    ):
        for field in msgspec.structs.fields(struct):
            name = f"`{prefix}.{field.name}`" if prefix else f"`{field.name}`"
            assert name in section or f"`.{field.name}`" in section, f"{struct.__name__}.{field.name}"
    page = (DOCS / "json-gateway.md").read_text()
    assert "`backends[].experts`" in page
    assert all(f"`{field.name}`" in page for field in msgspec.structs.fields(ExpertsSummary))
