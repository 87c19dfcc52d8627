"""A decision told again from the log: the words, and whether the rules give the same backend."""

from __future__ import annotations

import json
from io import StringIO
from math import inf
from pathlib import Path
from random import Random

import msgspec
from gateway_route_fixtures import ask, policy, record, view
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from breakeven.cli.explain import app
from breakeven.gateway.keys.entry import KeyEntry
from breakeven.gateway.plan.model import LogPlan
from breakeven.gateway.route.choose import choose
from breakeven.gateway.route.replay import chosen, could_choose, explain
from breakeven.gateway.route.view import Score
from breakeven.gateway.seen.log import DecisionLog
from breakeven.gateway.seen.record import Attempt
from breakeven.gateway.seen.snapshot import ArmState, Difference, ExperimentState
from breakeven.pages.gateway import keys_table, print_experiments


def test_the_story_says_what_was_asked_predicted_and_what_happened() -> None:
    text = explain(record())
    assert "TTFT 300 ms, TPOT 50 ms; about 500 tokens in, 200 expected out" in text
    assert "Sent to moe (policy breakeven): the cheapest that is predicted to keep" in text
    assert "what was asked for with room to spare." in text
    assert "misses: TTFT 200 % over" in text
    assert "keeps it (2.50 times what is needed)" in text
    assert "The rules on these numbers give moe again." in text
    assert "first token after 120 ms (predicted 100 ms, actual / predicted 1.20)" in text
    assert "TTFT kept, TPOT kept, it cost $0.0021, $0.001 at the best of the other architecture" in text
    table = [line for line in text.splitlines() if line.startswith(("*", " ")) and "running" not in line]
    assert [line.split()[0] for line in table] == ["dense", "*"]


def test_other_stories() -> None:
    late = record(ttft_s=0.6)
    assert "TTFT missed by 100 %" in explain(late)
    failed = record(
        backend="dense",
        attempts=[
            Attempt(backend="moe", outcome="reset", start_s=0.0, seconds=0.01),
            Attempt(backend="dense", outcome="answered", start_s=0.01, seconds=3.0, hedge=True),
        ],
    )
    text = explain(failed)
    assert chosen(failed) == "moe"
    assert "Tried moe after 0 ms: reset, 10 ms." in text
    assert "Tried dense as a hedge after 10 ms: answered, 3.00 s." in text
    assert "answered by dense" in text
    refused = record(backend="", reason="shed", attempts=[], status=429, ttft_s=None, tpot_s=None, usd=None)
    assert "Sent nowhere (policy breakeven): nobody would serve it in time." in explain(refused)
    assert could_choose(refused) == []
    cannot = Score(backend="x", ttft_s=1, tpot_s=1, usd=0, headroom=inf, running=0, why_not="does not serve it")
    assert "cannot: does not serve it" in explain(record(scores=[cannot, *record().scores]))
    other = record(attempts=[Attempt(backend="dense", outcome="answered", start_s=0, seconds=1)], backend="dense")
    assert "give moe, not dense" in explain(other)
    assert could_choose(record(reason="explored")) is None
    assert could_choose(record(policy="weighted")) is None


@given(
    st.sampled_from(["breakeven", "fastest", "cheapest"]),
    st.lists(
        st.tuples(
            st.floats(0.01, 5), st.floats(0.001, 0.2), st.floats(0, 30), st.sampled_from([0, 1e-4, 1e-3]), st.booleans()
        ),
        min_size=1,
        max_size=6,
    ),
    st.one_of(st.none(), st.floats(0.01, 5)),
    st.integers(0, 2**32),
)
@settings(max_examples=120, deadline=None)
def test_the_rules_applied_again_allow_what_was_chosen(
    name: str, there: list[tuple[float, float, float, float, bool]], ttft: float | None, seed: int
) -> None:
    views = [
        view(i, f"b{i}", ttft=t, tpot=p, running=r, usd_per_s=usd, open=is_open)
        for i, (t, p, r, usd, is_open) in enumerate(there)
    ]
    asked = ask(ttft_s=ttft)
    choice = choose(policy(name), asked, views, Random(seed))
    assert choice.order
    logged = record(
        policy=name,
        reason=choice.reason,
        scores=msgspec.json.decode(msgspec.json.encode(choice.scores).replace(b"null", b"1e308"), type=list[Score]),
        backend=f"b{choice.order[0]}",
        attempts=[],
        asked_ttft_s=ttft,
        asked_tpot_s=None,
        predicted_output_tokens=asked.output_tokens,
    )
    for found, score in zip(logged.scores, choice.scores, strict=True):
        found.headroom = score.headroom
    could = could_choose(logged)
    assert could is not None
    assert logged.backend in could
    assert explain(logged)


def test_the_command_finds_a_request_in_rotated_files(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, 1, LogPlan(directory=tmp_path, rotate_bytes=20_000, keep=50))
    for i in range(200):
        log.add(record(id=f"r{i}"))
    log.close()
    assert len(list(tmp_path.iterdir())) > 1
    run = CliRunner().invoke(app, ["r3", "--log", str(tmp_path)])
    assert run.exit_code == 0
    assert run.output.startswith("r3: /v1/chat/completions for 'chat'")
    run = CliRunner().invoke(app, ["r150", "--log", str(tmp_path), "--json"])
    told = json.loads(run.output)
    assert told["schema"] == "breakeven.explain/1"
    assert (told["chosen"], told["could_choose"], told["record"]["id"]) == ("moe", ["moe"], "r150")


def test_nothing_in_a_record_drives_the_terminal() -> None:
    escape = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\nroot# "
    strange = record(model=escape, finish=escape + "A" * 3_000_000, error=escape, key=escape, reason=escape)
    strange.attempts = [Attempt(backend=escape, outcome=escape, start_s=0.0, seconds=1.0)] * 2
    lines = explain(strange).split("\n")
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("root#") for line in lines)
    assert max(map(len, lines)) <= 1000


def test_experiments_and_keys_from_files_drive_no_terminal_either() -> None:
    escape = "\x1b]0;owned\x07\x9b2J\n\u202e" + "A" * 9000
    arms = [ArmState(name=name, backend=escape, requests=1, means={escape: 1.0}) for name in ("control", "treatment")]
    state = ExperimentState(
        name=escape,
        kind=escape,
        model=escape,
        state=escape,
        share=0.5,
        winner=escape,
        reason=escape,
        arms=arms,
        differences=[Difference(metric=escape, ratio=1.0, low=1.0, high=1.0)],
    )
    out = StringIO()
    print_experiments([state], Console(file=out, width=200))
    assert all(line.isprintable() for line in out.getvalue().splitlines())
    assert len(out.getvalue()) < 12_000
    key = KeyEntry(name="anna", id="1", digest=b"", models=(escape,))
    assert all(line.isprintable() for line in keys_table([key]).splitlines())


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    for arguments, said in (
        (["r1"], "give --log DIR"),
        (["r1", "--log", str(tmp_path / "none")], "no such directory"),
        (["r1", "--log", str(tmp_path)], "holds no request r1"),
    ):
        assert said in str(CliRunner().invoke(app, arguments).exception)
