"""From words to traffic, and from traffic to the loads of a study."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from breakeven.errors import UserError
from breakeven.forecast.simulated import load_name
from breakeven.measure.load.compared import axis_value
from breakeven.runs.bench import MIN_TURNS, TURN_WARM_UP_S, NamedLoad, name_of, rate_loads, rounds, trace_turns
from breakeven.traffic.draw import draw
from breakeven.traffic.schedule import DEPENDS, context_of
from breakeven.traffic.traces.read import read_trace
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.words import Words, traffic_of
from breakeven.traffic.workload import Agents, Arrivals, Length, Slo, Workload

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:{k // 60:02d}:{k % 60:02d}.0000000,{10 + k % 7},{3 + k % 5}\n" for k in range(0, 1200, 2)
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "conv.csv"
    path.write_text(AZURE)
    return path


def test_rates_become_one_open_loop_each() -> None:
    traffic = traffic_of(Words(rate="2,5", arrivals="gamma:3", duration="30s", prompt="64", output="8", slo="ttft=1s"))
    assert [w.arrivals for w in traffic.workloads] == [
        Arrivals(process="gamma", rate_per_s=2.0, cv=3.0),
        Arrivals(process="gamma", rate_per_s=5.0, cv=3.0),
    ]
    assert traffic.workloads[0].prompt == Length(mean=64)
    assert traffic.workloads[0].duration_s == 30
    assert 0 < traffic.workloads[0].warm_up_s <= 10
    assert traffic.slo == Slo(ttft_s=1.0)
    assert [name_of(w) for w in traffic.workloads] == ["2 req/s", "5 req/s"]


def test_streams_think_between_requests_and_conversations_between_turns() -> None:
    alone = traffic_of(Words(concurrency="1,8", think="2s")).workloads
    assert [w.arrivals.concurrency for w in alone] == [1, 8]
    assert all(w.arrivals.think_s == 2 for w in alone)
    (talking,) = traffic_of(Words(concurrency="3", think="2s", turns=4)).workloads
    assert (talking.turns, talking.turn_think_s, talking.arrivals.think_s) == (4, 2.0, 0.0)
    assert [name_of(w) for w in alone] == ["1 stream", "8 streams"]


def test_a_trace_brings_lengths_and_its_end(trace: Path) -> None:
    traffic = traffic_of(Words(trace=trace, speed=0.5, window="10s-1m"))
    (workload,) = traffic.workloads
    assert workload.prompt is None
    assert workload.duration_s is None
    assert workload.warm_up_s == 0
    assert (workload.arrivals.start_s, workload.arrivals.end_s, workload.arrivals.rate_scale) == (10, 60, 0.5)
    assert name_of(workload) == "conv x0.5"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (Words(rate="2", concurrency="3"), "--rate and --concurrency"),
        (Words(rate="fast"), "'fast'"),
        (Words(concurrency="0"), "--concurrency"),
        (Words(concurrency="2,2"), "twice"),
        (Words(rate="1", window="0-10s"), "--trace"),
        (Words(rate="1", speed=2.0), "--trace"),
        (Words(rate="1", duration="soon"), "--duration"),
        (Words(rate="1", requests=0), "--requests"),
        (Words(rate="1", turns=0), "--turns"),
        (Words(rate="1", seed=-1), "--seed"),
        (Words(rate="1", slo="ttft=1s,speed=3"), "column 9"),
        (Words(rate="1", prompt="long"), "'long'"),
        (Words(trace=Path("nowhere.csv")), "nowhere.csv"),
        (Words(concurrency="4", arrivals="gamma:3"), "--arrivals gamma:3 goes with --rate"),
        (Words(concurrency="4", arrivals="ramp:1-9"), "--arrivals ramp:1-9 goes with --rate"),
        (Words(arrivals="constant"), "--arrivals constant goes with --rate"),
        (Words(rate="2", think="3s"), "--think"),
    ],
)
def test_words_that_make_no_sense_are_named(words: Words, says: str) -> None:
    with pytest.raises(UserError, match=says):
        traffic_of(words)


@pytest.mark.parametrize("window", ["10s", "1m-10s", "0s-later"])
def test_windows_need_an_end_after_their_start(trace: Path, window: str) -> None:
    with pytest.raises(UserError):
        traffic_of(Words(trace=trace, window=window))


def test_rounds_repeat_a_load_with_other_arrivals() -> None:
    workload = traffic_of(Words(rate="5", duration="10s")).workloads[0]
    first, second = rounds(workload, 2)
    assert first.name == second.name
    assert draw(first.workload).due_ns_N.tolist() != draw(second.workload).due_ns_N.tolist()


def test_rates_are_spread_over_the_whole_run() -> None:
    workloads = traffic_of(Words(rate="1,2", duration="10s")).workloads
    assert [(load.name, load.round) for load in rate_loads(workloads, 2)] == [
        ("1 req/s", 0),
        ("2 req/s", 0),
        ("1 req/s", 1),
        ("2 req/s", 1),
    ]


@pytest.mark.parametrize("speed", [0.5, 1.0, 4.0])
def test_turns_on_a_trace_count_every_request_once(trace: Path, speed: float) -> None:
    traffic = traffic_of(Words(trace=trace, speed=speed, window="0s-10m"))
    rows = read_trace(trace)
    turns = trace_turns(traffic.workloads[0], rows)
    assert len(turns) >= MIN_TURNS
    counted = []
    for turn in turns:
        schedule = draw(turn.workload, rows)
        assert turn.workload.warm_up_s == (0 if turn.round == 0 else TURN_WARM_UP_S)
        counted += schedule.prompt_N[~schedule.warm_N].tolist()
    assert counted == rows.prompt[rows.at_ns < 600e9].tolist()


def counted(turns: list[NamedLoad], rows: TraceRows) -> list[list[int]]:
    """The prompts of every turn that count."""
    schedules = [draw(turn.workload, rows) for turn in turns]
    return [schedule.prompt_N[~schedule.warm_N].tolist() for schedule in schedules]


@pytest.mark.parametrize("speed", ["0.7", "1", "3"])
@pytest.mark.parametrize("gap", [1, 7])
def test_turns_on_a_trace_with_pauses_count_every_request_once(tmp_path: Path, speed: str, gap: int) -> None:
    path = tmp_path / "bursts.csv"
    times = [burst * 1000 + gap * k for burst in (0, 1, 7) for k in range(5)]
    path.write_text("at_s,prompt_tokens,output_tokens\n" + "".join(f"{at},{10 + i},3\n" for i, at in enumerate(times)))
    rows = read_trace(path)
    turns = trace_turns(traffic_of(Words(trace=path, speed=float(speed))).workloads[0], rows)
    found = counted(turns, rows)
    assert all(found)
    assert len(found) > 1
    assert [prompt for turn in found for prompt in turn] == [10 + i for i in range(len(times))]


def test_a_trace_of_one_request_is_one_turn(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text("at_s,prompt_tokens,output_tokens\n5,10,3\n")
    rows = read_trace(path)
    assert counted(trace_turns(traffic_of(Words(trace=path)).workloads[0], rows), rows) == [[10]]
    path.write_text("at_s,prompt_tokens,output_tokens\n0,10,3\n1700000000,11,3\n")  # no clock was set at first
    rows = read_trace(path)
    assert counted(trace_turns(traffic_of(Words(trace=path)).workloads[0], rows), rows) == [[10], [11]]


def test_turns_on_a_trace_obey_warm_up_duration_and_requests(trace: Path) -> None:
    rows = read_trace(trace)
    every = rows.prompt.tolist()  # one every 2 s
    (workload,) = traffic_of(Words(trace=trace, warm_up="30s", duration="200s")).workloads
    turns = trace_turns(workload, rows)
    assert [turn.workload.warm_up_s for turn in turns] == [30.0] * MIN_TURNS
    assert [prompt for turn in counted(turns, rows) for prompt in turn] == every[15:115]
    (workload,) = traffic_of(Words(trace=trace, requests=41)).workloads
    turns = trace_turns(workload, rows)
    assert len(turns) == MIN_TURNS
    assert [prompt for turn in counted(turns, rows) for prompt in turn] == every[:41]


def test_a_trace_of_conversations_is_played_as_one_run_is(tmp_path: Path) -> None:
    path = tmp_path / "talk.csv"
    path.write_text("at_s,prompt_tokens,output_tokens,session\n0,10,3,a\n9,11,3,a\n20,12,3,b\n")
    rows = read_trace(path)
    (workload,) = traffic_of(Words(trace=path, warm_up="10s")).workloads
    (turn,) = trace_turns(workload, rows)
    assert turn.workload == workload


def test_a_rate_of_conversations_is_not_called_one_of_requests() -> None:
    (workload,) = traffic_of(Words(rate="2", turns=3, think="1s")).workloads
    assert name_of(workload) == "2 conversations/s"
    assert axis_value(workload) == ("conversations/s", 2.0)
    assert load_name(draw(workload)) == "2 conversations/s"


def test_an_empty_window_is_refused(trace: Path) -> None:
    traffic = traffic_of(Words(trace=trace, window="2h-"))
    with pytest.raises(UserError, match="empty"):
        trace_turns(traffic.workloads[0], read_trace(trace))


def test_the_context_holds_the_longest_conversation() -> None:
    workload = Workload(
        arrivals=Arrivals(process="poisson", rate_per_s=2.0),
        prompt=Length(kind="uniform", low=5, high=50),
        output=Length(kind="uniform", low=1, high=20),
        duration_s=20.0,
        turns=3,
    )
    for each in (workload, msgspec.structs.replace(workload, turns=1)):
        schedule = draw(each)
        longest = max(schedule.context_tokens(i) + int(schedule.output_N[i]) for i in range(len(schedule)))
        assert context_of([schedule]) == longest


# --- agents ----------------------------------------------------------------------------------------------------------


def test_agents_are_sessions_that_share_a_prefix_and_grow() -> None:
    words = Words(rate="2", arrivals="agents:prefix=640,turns=6,tool=3s,subagents=20%", duration="400s", warm_up="0s")
    (workload,) = traffic_of(words).workloads
    assert workload.sharing
    assert name_of(workload) == "2 sessions/s"
    plan = draw(workload)
    first = plan.turn_N == 0
    assert (plan.due_ns_N[first] >= 0).all()
    assert (np.diff(plan.due_ns_N[first]) >= 0).all()
    assert (plan.due_ns_N[~first] == DEPENDS).all()
    prefixes = {plan.blocks[i] for i in np.flatnonzero(first).tolist()}
    # Sessions share ten blocks of 64, subagents five others.
    assert prefixes == {tuple(range(10)), tuple(range(10, 15))}
    assert all(plan.blocks[i] == () for i in np.flatnonzero(~first).tolist())
    subs = np.array([plan.blocks[i] == tuple(range(10, 15)) for i in np.flatnonzero(first).tolist()])
    assert 700 < (~subs).sum() < 900
    # A subagent for every fifth turn: 6 turns a session, some of them after the end.
    assert 0.9 < subs.sum() / (~subs).sum() < 1.3
    assert (plan.prompt_N[first] >= np.where(subs, 320, 640)).all()
    assert plan.think_ns_N[~first].mean() / 1e9 == pytest.approx(3, rel=0.1)
    assert plan.output_N.mean() == pytest.approx(150, rel=0.1)
    i = int(np.flatnonzero(plan.turn_N == 2)[0])
    assert plan.context_tokens(i) > plan.context_tokens(i - 1) > plan.context_tokens(i - 2)


def test_one_seed_gives_one_crowd_of_agents() -> None:
    words = Words(rate="1", arrivals="agents", requests=50, warm_up="0s", seed=7)
    one, two = (draw(traffic_of(words).workloads[0]) for _ in range(2))
    assert len(one) == 50
    assert one.prompt_N.tolist() == two.prompt_N.tolist()
    assert one.due_ns_N.tolist() == two.due_ns_N.tolist()
    assert one.workload.arrivals.agents == Agents()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (Words(arrivals="agents"), "--rate"),
        (Words(arrivals="agents:tools=3", rate="1"), "'tools=3' is nothing a session has"),
        (Words(arrivals="agents:turns=0", rate="1"), "'turns=0'"),
        (Words(arrivals="agents:turns=2,turns=3", rate="1"), "each once"),
        (Words(arrivals="agents:subagents=200%", rate="1"), "at most 100%"),
        (Words(arrivals="agents:tool=soon", rate="1"), "'soon'"),
        (Words(arrivals="agents", rate="1", output="5"), "--output: agents bring their own"),
        (Words(arrivals="agents", rate="1", turns=3), "--turns: agents bring their own"),
    ],
)
def test_agents_that_make_no_sense(words: Words, message: str) -> None:
    with pytest.raises(UserError, match=message):
        traffic_of(words)


def test_prefixes_that_a_trace_shares_and_a_run_does_not_are_said() -> None:
    path = Path(__file__).parent / "data" / "traces" / "mooncake.jsonl"
    said = "says which prompts begin alike, and none does here: --sharing of bench lets them"
    assert said in traffic_of(Words(trace=path)).notes[-1]
    for words in (Words(trace=path, sharing=True), Words(trace=path, prompt="64")):
        assert said not in " ".join(traffic_of(words).notes)
