"""The capacity search from end to end, against a server whose capacity is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from capacity_fixtures import queue_server, virtual_time
from load_log_fixtures import POISSON, request, run
from report_fixtures import MACHINE

from breakeven.cli.main import dispatch
from breakeven.errors import BreakevenError, UserError
from breakeven.measure.events import Event, EventWriter, LoadStudyStarted, StudyStopped, iter_events
from breakeven.results.load import LoadModel
from breakeven.results.store import RESULT
from breakeven.runs.capacity import CapacityOptions, capacity, run_s
from breakeven.runs.capacity_search import Search, SearchPlan, Tried
from breakeven.runs.capacity_study import RATE, USERS, capacity_study, name_of, outcomes, rate_sentence, users_sentence
from breakeven.runs.load import LoadOptions
from breakeven.traffic.workload import Length, Slo
from breakeven.wire.behaviours import whole
from breakeven.wire.completions import ScriptedRequest
from breakeven.wire.scripted import ScriptedServer, Step

SHORT = {"prompt": Length(mean=8), "output": Length(mean=4)}


def test_users_who_wait_for_slots_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slots of 0.1 s, 0.2 s of thought: six users keep both slots busy, each one more waits 0.05 s longer.

    The first token comes 0.025 s after a slot is free; within 0.2 s that leaves 0.175 s to wait, so 9 users meet it and
    10 do not. The search may stop a user or two below, and never above.
    """
    with queue_server(slots=2, service_s=0.1) as server:
        virtual_time(monkeypatch, server)
        study, directory = capacity(
            server.url,
            Slo(ttft_s=0.2),
            CapacityOptions(think_s=0.2, precision=0.2, target_share=0.7, axes=(USERS,), budget_s=200, **SHORT),  # type: ignore[arg-type]
            LoadOptions(out=tmp_path / "out", processes=1),
        )
    limit = study.users
    assert study.stopped_because == "finished"
    assert study.rate is None
    assert limit is not None
    assert limit.low is not None
    assert limit.high is not None
    assert 5 <= limit.low <= 9
    assert limit.low < limit.high <= 12
    assert limit.monotone
    assert study.headline == limit.sentence
    assert "people can talk to this at once" in limit.sentence
    # Every number can be had again from the log alone.
    assert capacity_study(directory / "events.jsonl") == study
    assert json.loads((directory / RESULT).read_text())["users"]["value"] == limit.value


def test_a_rate_is_found_below_what_the_slots_can_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "--slo",
        "ttft=100ms",  # so short that a rate above what the slots can do misses it within any run
        "--only",
        "rate",
        "--prompt",
        "8",
        "--output",
        "4",
        "--precision",
        "20%",
        "--share",
        "70%",
    ]
    out = tmp_path / "out"
    with queue_server(slots=2, service_s=0.05) as server:
        virtual_time(monkeypatch, server)
        assert dispatch(["capacity", server.url, *words, "--out", str(out), "--processes", "1", "--json"]) == 0
    study = json.loads(capsys.readouterr().out)
    assert study["schema"] == "breakeven.capacity/1"
    assert study["users"] is None
    rate = study["rate"]
    assert 10 < rate["low"] <= 40  # 2 / 0.05 s
    assert rate["high"] is None or rate["high"] > rate["low"]
    assert rate["sentence"] in study["headline"]
    assert {t["meets"] for t in rate["trials"]} >= {True, False}


def test_a_server_that_is_too_slow_for_anyone_is_not_searched(tmp_path: Path) -> None:
    with queue_server(slots=2, service_s=0.2) as server:
        study, _ = capacity(
            server.url,
            Slo(ttft_s=0.01),
            CapacityOptions(**SHORT),
            LoadOptions(out=tmp_path / "o", processes=1),  # type: ignore[arg-type]
        )
        assert server.answered < 25
    assert study.rate is not None
    assert study.rate.value is None
    assert study.rate.high is not None
    assert study.headline.startswith("Not even one request at a time")


def test_the_client_s_limit_is_told_by_the_answers_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that drives 500,000 events a second is itself measured beyond 250 answers a second of 1,000 tokens."""
    with queue_server(slots=64, service_s=0.1) as server:
        virtual_time(monkeypatch, server)
        study, _ = capacity(
            server.url,
            Slo(ttft_s=0.3),
            CapacityOptions(
                prompt=Length(mean=8),
                output=Length(kind="uniform", low=1000, high=1000),
                precision=1.0,
                target_share=0.7,
                axes=(RATE,),
                budget_s=200,
            ),
            LoadOptions(out=tmp_path / "out", processes=1),
        )
    assert study.rate is not None
    assert study.rate.high is None
    assert max(trial.load for trial in study.rate.trials) == 250


def test_a_server_that_refuses_everything_is_told_in_its_own_words(tmp_path: Path) -> None:
    def step(question: ScriptedRequest) -> Step:
        refusal = b'{"error": {"message": "not for you"}}'
        return whole(refusal, status=403) if question.fields.get("max_tokens") == 4 else "ok"

    with (
        ScriptedServer(step, models=["m"], owned_by="somebody") as server,
        pytest.raises(BreakevenError, match=r"not one request was answered; the first one: http_403, .*not for you"),
    ):
        capacity(f"{server.url}/v1#m", Slo(ttft_s=1.0), CapacityOptions(**SHORT), LoadOptions(out=tmp_path / "o"))  # type: ignore[arg-type]


def test_the_budget_ends_the_search_with_what_there_is(tmp_path: Path) -> None:
    with queue_server(slots=2, service_s=0.05) as server:
        study, _ = capacity(
            server.url,
            Slo(ttft_s=1.0),
            CapacityOptions(axes=(RATE,), budget_s=3.0, **SHORT),  # type: ignore[arg-type]
            LoadOptions(out=tmp_path / "o", processes=1),
        )
    assert study.stopped_because == "budget"
    assert study.rate is not None
    assert len(study.rate.trials) == 1


def test_an_interrupted_search_is_saved_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out, seen = tmp_path / "o", []
    options = CapacityOptions(axes=(USERS,), think_s=0.1, most_users=4, **SHORT)  # type: ignore[arg-type]

    def stop(state: object) -> None:
        seen.append(state)
        if getattr(state, "load", "").endswith("users"):
            raise KeyboardInterrupt

    with queue_server(slots=8, service_s=0.02) as server:
        with pytest.raises(KeyboardInterrupt):
            capacity(server.url, Slo(ttft_s=5.0), options, LoadOptions(out=out, processes=1), on_state=stop)
        saved = json.loads((out / RESULT).read_text())
        assert saved["stopped_because"] == "interrupted"
        study, _ = capacity(server.url, Slo(ttft_s=5.0), options, LoadOptions(out=out, processes=1, resume=True))
    assert study.users is not None
    assert study.users.low == 4
    assert study.users.high is None
    assert study.headline.startswith("At least 4 people")
    probes = [e for e in iter_events(out / "events.jsonl") if getattr(e, "load", "") == "one at a time"]
    assert len(probes) == 1  # not played again


def search_of(*tried: tuple[float, bool | None]) -> Search:
    plan = SearchPlan(start=1, lowest=1, highest=100, whole=True)
    return Search(plan, tuple(Tried(load=load, looks=1, requests=100, good=90, meets=meets) for load, meets in tried))


@pytest.mark.parametrize(
    ("tried", "says"),
    [
        ([(24, True), (25, False)], "24 people can talk to this at once; the 25th makes everyone wait."),
        ([(1, True), (2, False)], "1 person can talk to this at once; the 2nd makes both wait."),
        ([(22, True), (25, False)], "22 people can talk to this at once; with 25 everyone waits."),
        ([(10, True), (11, False)], "10 people can talk to this at once; the 11th makes everyone wait."),
        ([(64, True)], "At least 64 people can talk to this at once; more were not tried or not decided."),
        ([(1, False)], "Not even one person can talk to this: alone, they already wait too long."),
        ([(8, False)], "Fewer than 8 people can talk to this at once; how many was not decided."),
        ([(8, None)], "How many people can talk to this at once was not decided."),
    ],
)
def test_users_in_plain_words(tried: list[tuple[float, bool | None]], says: str) -> None:
    assert users_sentence(search_of(*tried), "x") == says


def test_a_limit_that_means_little_says_so() -> None:
    assert users_sentence(search_of((4, True), (5, False), (8, True)), "x").endswith(
        "But 8 met it again, so this limit means little."
    )
    assert rate_sentence(search_of((4, True), (5, False)), "T") == "Up to 4 requests/s, T; at 5 no longer."
    assert rate_sentence(search_of((4, False)), "T") == "Not even at 4 requests/s is it so that T."


def test_the_log_says_what_came_of_every_load() -> None:
    def runs(load: str, bad: int, round: int) -> list[Event]:
        rows = [request(i, due_s=i / 10, ttft_s=2.0 if i < bad else 0.1, block=f"{load}{round}") for i in range(100)]
        return run(rows, to_s=10, load=load, round=round, block=f"{load}{round}")

    log = [*runs("2 req/s", 0, 0), *runs("4 req/s", 50, 0), *runs("4 req/s", 0, 1)]
    first, second = outcomes(log, Slo(ttft_s=1.0))
    assert (first.name, first.requests, first.good, first.spread) == ("2 req/s", 100, 100, 1.0)
    assert (second.name, second.requests, second.good) == ("4 req/s", 200, 150)
    assert second.spread > 3  # the bad ones stand together
    assert first.seconds == pytest.approx(0.3)


def test_what_an_interruption_cancelled_is_no_load_that_failed(tmp_path: Path) -> None:
    slo = Slo(ttft_s=1.0)
    opening = LoadStudyStarted(
        kind="capacity",
        fingerprint="f",
        version="0.1",
        started_at="2026-01-01T00:00:00Z",
        command="breakeven capacity",
        seed=1,
        machine=MACHINE,
        models=[LoadModel(name="a", source="http://127.0.0.1:8000/v1", synthetic=False, moe=None)],
        workload=POISSON,
        slo=slo,
        target_share=0.9,
        confidence=0.95,
    )
    met = [request(i, due_s=i / 2, block="b2") for i in range(200)]
    cut = [request(i, due_s=i / 4, error="cancelled", block="b4") for i in range(12)]
    log: list[Event] = [
        opening,
        *run(met, to_s=100, load="2 req/s", block="b2"),
        *run(cut, to_s=3, load="4 req/s", block="b4", ok=False),
        StudyStopped(because="interrupted", measured_s=0.0),
    ]
    with EventWriter(tmp_path / "events.jsonl") as file:
        for event in log:
            file.append(event)
    study = capacity_study(tmp_path / "events.jsonl")
    assert study.stopped_because == "interrupted"
    assert study.rate is not None
    assert [(trial.load, trial.meets) for trial in study.rate.trials] == [(2.0, True)]
    assert (study.rate.low, study.rate.high) == (2.0, None)
    assert outcomes(log[-15:], slo) == []


@pytest.mark.parametrize(
    ("axis", "load", "attempt"), [(RATE, 4.204, 1), (RATE, 1234.0, 2), (USERS, 1, 1), (USERS, 24, 2)]
)
def test_the_name_of_a_trial_says_all_of_it(axis: str, load: float, attempt: int) -> None:
    from breakeven.runs.capacity_study import _NAME

    match = _NAME.fullmatch(name_of(axis, load, attempt))
    assert match is not None
    assert float(match["load"]) == load
    assert bool(match["again"]) == (attempt == 2)


def test_a_run_outlasts_the_growth_of_a_queue() -> None:
    assert run_s(Slo(ttft_s=1.0), 0.1, 600) == pytest.approx(20)
    assert run_s(Slo(ttft_s=1.0, e2e_s=0.5), 0.1, 600) == pytest.approx(10)
    assert run_s(Slo(e2e_s=30.0), 0.1, 600) == pytest.approx(60)  # a tenth of the budget
    assert run_s(Slo(tpot_s=0.1), 0.1, 600) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--slo", "ttft=1s", "--only", "both"], "--only"),
        (["--slo", "ttft=1s", "--share", "100%"], "--share"),
        (["--slo", "ttft=1s", "--precision", "0%"], "--precision"),
        (["--slo", "ttft=1s", "--budget", "soon"], "--budget"),
        (["--slo", "ttft=soon"], "ttft"),
        (["--slo", "ttft=1s", "--max-users", "0"], "--max-users"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_line(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        dispatch(["capacity", "http://127.0.0.1:1/v1#m", *words])
