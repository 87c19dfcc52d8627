"""Traces: every format is read exactly, told apart, and refused with file, line and column when it is wrong."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.traffic.draw import draw
from breakeven.traffic.schedule import DEPENDS, Schedule
from breakeven.traffic.traces.cells import keys_of
from breakeven.traffic.traces.lines import LINES, trace_parts
from breakeven.traffic.traces.read import TRACES, line_format, read_trace
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Arrivals, Length, Workload

DATA = Path(__file__).parent / "data" / "traces"
PUBLISHED = Path(__file__).parents[2] / "shared" / "traces"
"""Traces as they were published, where somebody put them beside the checkout."""


def replay(trace: TraceRows, **more: Any) -> Schedule:
    return draw(Workload(arrivals=Arrivals(process="trace", trace=trace.name, **more)), trace)


# --- each format ---------------------------------------------------------------------------------------------------


def test_azure() -> None:
    trace = read_trace(DATA / "azure.csv")
    assert trace.format == "azure"
    assert trace.at_ns.tolist() == [0, 4_314_579_000, 4_541_877_100, 4_541_877_100]
    assert trace.prompt.tolist() == [374, 396, 879, 91]
    assert trace.output.tolist() == [44, 109, 55, 16]
    assert trace.session is None


def test_azure_as_published_in_2024(tmp_path: Path) -> None:
    path = tmp_path / "week.csv"
    path.write_text(
        "\ufeffTIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2024-05-12 23:59:59.999999+00:00,10,2\r\n2024-05-13 00:00:00+00:00,11,3\r\n"
    )
    assert read_trace(path).at_ns.tolist() == [0, 1_000]


def test_times_of_several_zones_are_the_moments_they_name(tmp_path: Path) -> None:
    """As tools write them where clocks are put back: the hour after 01:59:59 summer time is 01:00:00 winter time."""
    path = tmp_path / "zones.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-10-27 02:59:59+02:00,1,2\n2024-10-27T02:00:00.5+01:00,3,4\n"
        "2024-10-26 20:30:02-0430,5,6\n2024-10-27 01:00:03 UTC,7,8\n2024-10-27 01:00:04,9,1\n"
    )
    trace = read_trace(path)
    assert trace.at_ns.tolist() == [0, 1_500_000_000, 3_000_000_000, 4_000_000_000, 5_000_000_000]
    assert trace.out_of_order == 0


def test_mooncake_without_ids(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text(MOONCAKE.replace("[0]", "null") + MOONCAKE.replace('"timestamp": 0', '"timestamp": 9'))
    assert read_trace(path).blocks == ((), (0,))


def test_mooncake() -> None:
    trace = read_trace(DATA / "mooncake.jsonl")
    assert trace.format == "mooncake"
    assert trace.at_ns.tolist() == [0, 3_000_000_000, 3_000_000_000]
    assert trace.blocks == ((0, 1, 2), (0, 1, 3), (9,))
    assert trace.block_tokens == 512


def test_simple_csv_with_conversations() -> None:
    trace = read_trace(DATA / "simple.csv")
    assert trace.format == "simple"
    assert trace.at_ns.tolist() == [0, 500_000_000, 2_000_000_001, 2_250_000_000, 9_000_000_000]
    assert trace.out_of_order == 1
    assert trace.session is not None
    assert trace.session.tolist() == [0, -1, 1, 0, 0]
    drawn = replay(trace)
    assert drawn.prompt_N.tolist() == [120, 30, 25, 300, 90]
    assert drawn.turn_N.tolist() == [0, 1, 2, 0, 0]
    assert drawn.due_ns_N.tolist() == [0, DEPENDS, DEPENDS, 500_000_000, 2_000_000_001]
    # Recorded where it was, else the gap between the turns.
    assert drawn.think_ns_N.tolist() == [0, 1_500_000_000, 6_750_000_000, 0, 0]
    assert drawn.context_tokens(2) == 120 + 40 + 30 + 50 + 25


def test_simple_json_lines() -> None:
    trace = read_trace(DATA / "simple.jsonl")
    assert trace.format == "simple"
    assert trace.at_ns.tolist() == [0, 850_000_000]
    assert trace.session is None


def test_guidellm() -> None:
    trace = read_trace(DATA / "guidellm.json")
    assert trace.format == "guidellm"
    assert trace.prompt.tolist() == [16] * 4
    assert trace.output.tolist() == [8] * 4
    rows = json.loads((DATA / "guidellm.json").read_text())["benchmarks"][0]["requests"]["successful"]
    starts = sorted(row["info"]["timings"]["targeted_start"] for row in rows)
    assert (trace.at_ns / 1e9).tolist() == pytest.approx([start - starts[0] for start in starts], abs=1e-6)
    assert trace.session is None


def test_guidellm_conversations_and_several_benchmarks(tmp_path: Path) -> None:
    report = json.loads((DATA / "guidellm.json").read_text())
    rows = report["benchmarks"][0]["requests"]["successful"]
    for k, row in enumerate(rows[:3]):
        row["info"].update(conversation_id="one", turn_index=k, history_len=2 * k)
        row["info"]["timings"].update(targeted_start=100.0 + 10 * k, predecessor_completed=98.0 + 10 * k if k else None)
        row.update(prompt_tokens=20 + 30 * k)
    rows[3]["output_tokens"] = None
    rows[3]["output_metrics"]["text_tokens"] = None
    report["benchmarks"].append({"requests": {"successful": [], "errored": [], "incomplete": [], "total": None}})
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps(report, indent=2))
    with pytest.raises(UserError, match="2 benchmarks; say which"):
        read_trace(path)
    with pytest.raises(UserError, match="no benchmark 3"):
        read_trace(path, "guidellm:3")
    with pytest.raises(UserError, match="no request"):
        read_trace(path, "guidellm:2")
    trace = read_trace(path, "guidellm:1")
    assert trace.skipped == 1
    # What is new in each turn: 50 - 20 - 8, 80 - 50 - 8.
    assert trace.prompt.tolist() == [20, 22, 22]
    drawn = replay(trace)
    assert drawn.context_tokens(2) == 80
    assert drawn.think_ns_N.tolist() == [0, 2_000_000_000, 2_000_000_000]


def guidellm_rows(tmp_path: Path, changes: list[dict[str, Any]]) -> Path:
    """The first rows of the published result with other keys; a dictionary within a row is changed key by key."""
    report = json.loads((DATA / "guidellm.json").read_text())
    rows = report["benchmarks"][0]["requests"]["successful"][: len(changes)]
    for row, change in zip(rows, changes, strict=True):
        row["info"]["timings"].update(change.pop("timings"))
        row["info"].update(change.pop("info"))
        row["input_metrics"]["text_tokens"] = row["output_metrics"]["text_tokens"] = None
        row.update(change)
    report["benchmarks"][0]["requests"]["successful"] = rows
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps(report))
    return path


def test_a_turn_after_one_without_counts_is_told_by_the_last_that_has_them(tmp_path: Path) -> None:
    made = (8, None, 8)
    changes = [
        {
            "info": {"conversation_id": "one", "turn_index": k, "history_len": 2 * k},
            "timings": {"targeted_start": 100.0 + 10 * k, "predecessor_completed": None, "request_end": 101.0 + 10 * k},
            "prompt_tokens": 20 + 30 * k,
            "output_tokens": made[k],
        }
        for k in range(3)
    ]
    trace = read_trace(guidellm_rows(tmp_path, changes))
    assert (trace.skipped, trace.anew) == (1, 0)
    # 80 of context less the 20 asked and the 8 answered two turns before.
    assert trace.prompt.tolist() == [20, 52]
    drawn = replay(trace)
    assert drawn.context_tokens(1) == 80
    assert drawn.think_ns_N.tolist() == [0, 19_000_000_000]


def test_guidellm_subagents_are_conversations_of_their_own(tmp_path: Path) -> None:
    def row(
        node: str, turn: int, history: int, parents: list[str], tokens: tuple[int, int], at: float
    ) -> dict[str, Any]:
        agent = node.split("_")[0]
        info = {"conversation_id": "graph", "node_id": node, "agent_id": agent, "parent_node_ids": parents}
        return {
            "info": info | {"turn_index": turn, "history_len": history},
            "timings": {"targeted_start": at, "predecessor_completed": at - 1, "request_end": at + 2},
            "prompt_tokens": tokens[0],
            "output_tokens": tokens[1],
        }

    changes = [
        row("main_0", 0, 0, [], (1000, 100), 100.0),
        row("branch_0", 0, 0, ["main_0"], (500, 50), 105.0),
        row("main_1", 1, 4, ["branch_0", "main_0"], (1250, 30), 108.0),
    ]
    trace = read_trace(guidellm_rows(tmp_path, changes))
    assert trace.anew == 0
    drawn = replay(trace)
    assert drawn.prompt_N.tolist() == [1000, 150, 500]
    assert drawn.turn_N.tolist() == [0, 1, 0]
    assert drawn.due_ns_N.tolist() == [0, DEPENDS, 5_000_000_000]
    assert [drawn.context_tokens(i) for i in range(3)] == [1000, 1250, 500]
    # From the answer of its own agent, at 102 s, and not from that of the subagent.
    assert drawn.think_ns_N.tolist() == [0, 6_000_000_000, 0]


@pytest.mark.parametrize("of_03", [False, True])
def test_a_sample_of_guidellm_s_requests_is_no_trace(tmp_path: Path, of_03: bool) -> None:
    report = json.loads((DATA / "guidellm.json").read_text())
    benchmark = report["benchmarks"][0]
    totals = {"successful": 1000, "incomplete": 0, "errored": 0, "total": 1000}
    benchmark |= {"request_totals": totals} if of_03 else {"metrics": {"request_totals": totals}}
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps(report))
    # Twenty of a thousand requests would be a fiftieth of the load that was measured.
    with pytest.raises(UserError, match=r"requests\.successful: holds 4 of 1,000 requests.*sample_size"):
        read_trace(path)
    totals["successful"] = 3  # those of the measured part; the warm-up is listed too
    path.write_text(json.dumps(report))
    assert len(read_trace(path)) == 4


def test_answers_that_were_cut_off_are_said(tmp_path: Path) -> None:
    report = json.loads((DATA / "guidellm.json").read_text())
    requests = report["benchmarks"][0]["requests"]
    requests["incomplete"] = [requests["successful"].pop()]
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps(report))
    trace = read_trace(path)
    assert (len(trace), trace.cut) == (4, 1)
    assert "1 cut off when they were recorded" in trace.reading


def test_guidellm_before_it_had_info(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.json"
    rows = [
        {
            "scheduler_info": {"targeted_start_time": at},
            "start_time": start,
            "prompt_tokens": asked,
            "output_tokens": made,
        }
        for at, start, asked, made in [(100.0, 100.5, 120, 40), (-1, 103.0, 80, 20)]
    ]
    found = {"successful": rows, "errored": [], "incomplete": [], "total": None}
    path.write_text(json.dumps({"benchmarks": [{"type_": "generative_benchmark", "requests": found}]}))
    trace = read_trace(path)
    assert trace.at_ns.tolist() == [0, 3_000_000_000]
    assert (trace.prompt.tolist(), trace.output.tolist()) == ([120, 80], [40, 20])
    path.write_text(json.dumps({"benchmarks": [{"results": rows}]}))
    with pytest.raises(UserError, match=r"is not a GuideLLM result.*requests.*docs/traffic\.md") as caught:
        read_trace(path)
    assert "give it whole" not in str(caught.value)


def test_aiperf(tmp_path: Path) -> None:
    trace = read_trace(DATA / "aiperf.jsonl")
    assert trace.format == "aiperf"
    assert trace.prompt.tolist() == [16] * 4
    assert trace.output.tolist() == [8] * 4
    records = [json.loads(line) for line in (DATA / "aiperf.jsonl").read_text().splitlines()]
    issued = sorted(record["metadata"]["credit_issued_ns"] for record in records)
    assert trace.at_ns.tolist() == [at - issued[0] for at in issued]

    for k, record in enumerate(records):
        meta = record["metadata"]
        meta.update(
            x_correlation_id="one" if k < 2 else None, conversation_id=None, turn_index=min(k, 1) if k < 2 else 0
        )
        meta.update(credit_issued_ns=k * 10**9, request_end_ns=k * 10**9 + 4 * 10**8)
    records[1]["metrics"]["input_sequence_length"]["value"] = 50
    records[2]["metadata"]["benchmark_phase"] = "warmup"
    del records[3]["metrics"]["output_sequence_length"]
    path = tmp_path / "profile_export.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    trace = read_trace(path)
    assert trace.skipped == 1
    assert trace.prompt.tolist() == [16, 50 - 16 - 8]
    assert replay(trace).think_ns_N.tolist() == [0, 600_000_000]


def test_a_context_that_cannot_hold_what_was_said_begins_a_conversation(tmp_path: Path) -> None:
    records = [json.loads(line) for line in (DATA / "aiperf.jsonl").read_text().splitlines()]
    for k, (asked, made) in enumerate([(100, 10), (150, 20), (120, 5), (200, 3)]):
        times = {"credit_issued_ns": k * 10**9, "request_end_ns": k * 10**9 + 4 * 10**8}
        records[k]["metadata"].update(times, x_correlation_id="one", turn_index=k)
        records[k]["metrics"]["input_sequence_length"]["value"] = asked
        records[k]["metrics"]["output_sequence_length"]["value"] = made
    path = tmp_path / "profile_export.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    trace = read_trace(path)
    assert trace.prompt.tolist() == [100, 150 - 110, 120, 200 - 125]
    assert trace.anew == 1
    assert "1 with no more context than was said before" in trace.reading
    drawn = replay(trace)
    assert drawn.turn_N.tolist() == [0, 1, 0, 1]
    assert [drawn.context_tokens(i) for i in range(4)] == [100, 150, 120, 200]
    assert drawn.think_ns_N.tolist() == [0, 600_000_000, 0, 600_000_000]


# --- windows, scaling ------------------------------------------------------------------------------------------------


def test_window_then_scale() -> None:
    trace = read_trace(DATA / "azure.csv")
    drawn = replay(trace, start_s=4.0, end_s=4.5, rate_scale=0.5)
    assert drawn.due_ns_N.tolist() == [round((4_314_579_000 - 4_000_000_000) / 0.5)]
    assert replay(trace, rate_scale=2.0).due_ns_N.tolist() == [0, 2_157_289_500, 2_270_938_550, 2_270_938_550]
    with pytest.raises(UserError, match=r"spans 0 s to 4\.5 s"):
        replay(trace, start_s=100.0)
    with pytest.raises(UserError, match="factor above 0"):
        replay(trace, rate_scale=0.0)


def test_a_window_may_begin_inside_a_conversation() -> None:
    drawn = replay(read_trace(DATA / "simple.csv"), start_s=2.0)
    assert drawn.turn_N.tolist() == [0, 0, 1]
    assert drawn.due_ns_N.tolist() == [1, 250_000_000, DEPENDS]
    # Ann's first turn lies before: 120 asked and 40 answered, which her second brings along.
    assert drawn.prompt_N.tolist() == [90, 190, 25]
    assert [drawn.context_tokens(i) for i in range(3)] == [90, 190, 265]


def test_a_turn_that_a_window_begins_with_has_the_blocks_of_its_whole_context() -> None:
    drawn = replay(read_trace(DATA / "bailian.jsonl"), start_s=30.0)
    assert drawn.turn_N.tolist() == [0, 0]
    assert drawn.prompt_N.tolist() == [70, 33]
    assert drawn.blocks == ((0, 1, 2, 5, 6), (7, 8, 9))


def test_a_turn_missing_in_the_window_is_told_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    # The second turn was recorded as if it had come first, so that the window has the turns around it alone.
    path.write_text("at_s,prompt_tokens,output_tokens,session,turn\n5,10,1,a,0\n1,20,2,a,1\n6,30,3,a,2\n")
    drawn = replay(read_trace(path), start_s=2.0)
    assert drawn.turn_N.tolist() == [0, 1]
    assert drawn.prompt_N.tolist() == [10, 20 + 2 + 30]
    assert drawn.context_tokens(1) == 10 + 1 + 20 + 2 + 30


def test_a_trace_obeys_the_rest_of_the_workload() -> None:
    trace = read_trace(DATA / "mooncake.jsonl")
    arrivals = Arrivals(process="trace")
    assert len(draw(Workload(arrivals=arrivals, requests=2), trace)) == 2
    assert len(draw(Workload(arrivals=arrivals, duration_s=2.0), trace)) == 1
    warm = draw(Workload(arrivals=arrivals, warm_up_s=1.0), trace)
    assert warm.warm_N.tolist() == [True, False, False]
    assert warm.blocks == trace.blocks
    own = draw(Workload(arrivals=arrivals, prompt=Length(mean=7)), trace)
    assert own.prompt_N.tolist() == [7, 7, 7]
    assert own.blocks == ()
    with pytest.raises(UserError, match="own conversations"):
        draw(Workload(arrivals=arrivals, turns=2), trace)
    with pytest.raises(UserError, match="own arrivals"):
        draw(Workload(arrivals=Arrivals(process="poisson", rate_per_s=1.0)), trace)


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 10**12), st.integers(1, 10**6), st.integers(1, 10**5), st.integers(0, 3)), min_size=1
    ),
    as_csv=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(
    rows: list[tuple[int, int, int, int]], as_csv: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("simple") / "trace"
    sessions = [None if session == 0 else f"s{session}" for *_, session in rows]
    if as_csv:
        lines = ["session,at_s,output_tokens,prompt_tokens"]
        lines += [
            f"{session or ''},{at // 10**9}.{at % 10**9:09d},{output},{prompt}"
            for (at, prompt, output, _), session in zip(rows, sessions, strict=True)
        ]
    else:
        lines = [
            json.dumps({"at_s": at / 10**9, "prompt_tokens": prompt, "output_tokens": output, "session": session})
            for (at, prompt, output, _), session in zip(rows, sessions, strict=True)
        ]
    path.write_text("\n".join(lines) + "\n\n")
    trace = read_trace(path)
    expected = sorted(range(len(rows)), key=lambda k: rows[k][0])
    first = rows[expected[0]][0]
    assert trace.at_ns.tolist() == [rows[k][0] - first for k in expected]
    assert trace.prompt.tolist() == [rows[k][1] for k in expected]
    assert trace.output.tolist() == [rows[k][2] for k in expected]
    drawn = draw(Workload(arrivals=Arrivals(process="trace")), trace)
    assert sorted(drawn.prompt_N.tolist()) == sorted(row[1] for row in rows)
    starts = drawn.due_ns_N[drawn.due_ns_N != DEPENDS]
    assert (np.diff(starts) >= 0).all()
    for k in range(len(drawn)):
        if drawn.turn_N[k]:
            assert drawn.session_N[k] == drawn.session_N[k - 1]
            assert drawn.turn_N[k] == drawn.turn_N[k - 1] + 1


# --- what is wrong ---------------------------------------------------------------------------------------------------

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
MOONCAKE = '{"timestamp": 0, "input_length": 10, "output_length": 2, "hash_ids": [0]}\n'
SIMPLE = "at_s,prompt_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ["is empty"]),
        ("\n \n", ["is empty"]),
        ("when,what\n1,2\n", ["line 1", "no trace format", "at_s,prompt_tokens,output_tokens"]),
        ("TIMESTAMP,ContextTokens\n", ["line 1", "lacks GeneratedTokens"]),
        (AZURE.splitlines()[0], ["no request"]),
        (AZURE + "2023-11-16 18:15:47,-3,44\n", ["line 3", "column ContextTokens", "'-3'"]),
        (AZURE + "2023-11-16 18:15:47,3,4.5\n", ["line 3", "column GeneratedTokens", "'4.5'"]),
        (AZURE + "2023-11-16 18:15:47,3,nan\n", ["line 3", "column GeneratedTokens", "'nan'"]),
        (AZURE + "2023-11-16 18:15:47,3,1e9999999\n", ["line 3", "column GeneratedTokens", "'1e9999999'"]),
        (AZURE + "2023-11-16 18:15:47,3,\n", ["line 3", "column GeneratedTokens", "found nothing"]),
        (AZURE + "2023-13-16 18:15:47,3,4\n", ["line 3", "column TIMESTAMP"]),
        (AZURE + "2023-11-16 18:15", ["line 3", "column 2", "cut off"]),
        (AZURE + "2023-11-16 18:15:47,3,99999999999\n", ["line 3", "100,000,000"]),
        (MOONCAKE + '{"timestamp": 0, "input_le', ["line 2", "not a JSON object"]),
        (MOONCAKE + '{"timestamp": 0, "output_length": 2}\n', ["line 2", "column input_length", "nothing"]),
        (MOONCAKE + '{"timestamp": "x", "input_length": 1, "output_length": 2}\n', ["line 2", "column timestamp"]),
        (MOONCAKE + '{"timestamp": 1, "input_length": true, "output_length": 2}\n', ["line 2", "input_length", "True"]),
        (MOONCAKE.replace("[0]", "[-1]"), ["line 1", "column hash_ids"]),
        (MOONCAKE.replace("[0]", "7"), ["line 1", "column hash_ids", "a list"]),
        (SIMPLE + "nan,1,2\n", ["line 2", "column at_s", "'nan'"]),
        (SIMPLE + "1e30,1,2\n", ["line 2", "column at_s"]),
        (SIMPLE + "1e9999999,1,2\n", ["line 2", "column at_s", "'1e9999999'"]),
        ("at_s,prompt_tokens\n1,2\n", ["line 1", "lacks output_tokens"]),
        ("at_s,prompt_tokens,output_tokens,user\n1,2,3,4\n", ["line 2", "'user' is not known", "session"]),
        ("at_s,prompt_tokens,output_tokens,session,turn\n1,2,3,a,x\n", ["line 2", "column turn"]),
        ("at_s,prompt_tokens,output_tokens,session,turn\n1,2,3,a,1.5\n", ["line 2", "column turn", "'1.5'"]),
        (
            "at_s,prompt_tokens,output_tokens,session,turn\n1,2,3,a,0\n2,2,3,a,1\n3,2,3,b,1\n4,2,3,a,1\n",
            ["line 5", "column turn", "'a'", "turn 1 in line 3"],
        ),
        (
            "at_s,prompt_tokens,output_tokens,session,turn\n1,2,3,a,5000000000\n",
            ["line 2", "column turn", "100,000,000"],
        ),
        (SIMPLE + "9900000000,1,2\n", ["line 2", "column at_s"]),
        (SIMPLE + f'1,2,"{"9" * 140_000}"\n', ["line 2", "no line of a CSV file"]),
        ("at_s,prompt_tokens,output_tokens,think_s\n1,2,3,-4\n", ["line 2", "column think_s"]),
        ('{"metadata": {"request_start_ns": 1}}\n', ["line 1", "profile_export.jsonl"]),
        ('{"metadata": {"guidellm_version": "0.8.1"}, "benchmarks": [', ["not a GuideLLM result"]),
        ('{"metadata": {"guidellm_version": "0.8.1"}, "benchmarks": []}', ["holds 0 benchmarks"]),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, says: list[str]) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_trace(path)
    for part in (*says, "trace.txt"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_counts_may_be_written_with_a_point(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,2.0,374.0,44.0\n")
    trace = read_trace(path)
    assert trace.images is not None
    assert (trace.prompt.tolist(), trace.output.tolist(), trace.images.tolist()) == ([374], [44], [2])


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(AZURE.encode() + b"2023-11-16 18:15:47,3,\xff\n")
    with pytest.raises(UserError, match=r"line 3, column 23: is not UTF-8"):
        read_trace(path)
    path.write_bytes(b"at_s,prompt_tokens,output_tokens\r1,2,3\r")
    with pytest.raises(UserError, match="line 1: is no line of a CSV file"):
        read_trace(path)
    path.write_bytes(b'{\n"benchmarks": "\xff"\n}')
    with pytest.raises(UserError, match=r"trace\.csv"):
        read_trace(path)
    path.write_bytes(b"\x1f\x8b\x08\x00abc")
    with pytest.raises(UserError, match="unpack it first"):
        read_trace(path)
    with pytest.raises(UserError, match="cannot read"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(UserError, match=", ".join(TRACES)):
        read_trace(DATA / "azure.csv", "parquet")
    with pytest.raises(UserError, match="lacks TIMESTAMP"):
        read_trace(DATA / "simple.csv", "azure")


def test_every_format_knows_its_own_files_only() -> None:
    for name in TRACES:
        [path] = DATA.glob(f"{name}.csv" if name in ("azure", "burstgpt") else f"{name}.json*")
        found = [other for other, known in TRACES.items() if known.needs <= keys_of(path)]
        # What Bailian adds to the keys it shares with Mooncake tells it, so it is asked first.
        assert found[0] == name
        assert found[1:] == (["mooncake"] if name == "bailian" else [])
        assert read_trace(path).format == name


# --- as published ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "rows", "minutes", "prompt", "output"),
    [
        ("azure_llm_2023/AzureLLMInferenceTrace_conv.csv", 19_366, 58, 1_155, 211),
        ("azure_llm_2023/AzureLLMInferenceTrace_code.csv", 8_819, 57, 2_048, 28),
        ("mooncake_fast25/conversation_trace.jsonl", 12_031, 59, 12_035, 343),
        ("mooncake_fast25/synthetic_trace.jsonl", 3_993, 17, 15_325, 149),
    ],
)
def test_published_traces(file: str, rows: int, minutes: int, prompt: int, output: int) -> None:
    if not (PUBLISHED / file).is_file():
        pytest.skip("the published traces do not lie beside this checkout")
    trace = read_trace(PUBLISHED / file)
    assert len(trace) == rows
    assert abs(trace.at_ns[-1] / 60e9 - minutes) < 1
    assert round(trace.prompt.mean()) == prompt
    assert round(trace.output.mean()) == output
    drawn = replay(trace, end_s=600.0, rate_scale=0.5)
    assert drawn.due_ns_N[-1] <= 1_200_000_000_000
    inside = trace.at_ns < 600_000_000_000
    assert np.array_equal(drawn.due_ns_N, trace.at_ns[inside] * 2)
    if trace.blocks:
        assert all(
            len(blocks) == -(-n // trace.block_tokens)
            for blocks, n in zip(trace.blocks, trace.prompt.tolist(), strict=True)
        )


# --- what the page says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TRACES))
def test_the_page_shows_every_format(name: str, tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "traffic.md").read_text()
    found = re.search(rf"^### {name}\n.*?```\n(.*?)```", page, flags=re.DOTALL | re.MULTILINE)
    assert found is not None, f"docs/traffic.md shows no {name} trace"
    path = tmp_path / "example"
    path.write_text(found[1])
    trace = read_trace(path)
    assert trace.format == name
    assert len(replay(trace)) == len(trace)


# --- what is told from rows, and what is asked -----------------------------------------------------------------------


def test_burstgpt() -> None:
    trace = read_trace(DATA / "burstgpt.csv")
    assert trace.format == "burstgpt"
    assert trace.at_ns.tolist() == [0, 38_000_000_000, 94_500_000_000]
    assert trace.prompt.tolist() == [310, 980, 150]
    assert trace.output.tolist() == [22, 150, 0]
    assert replay(trace).output_N.tolist() == [22, 150, 1]
    for said in ("read as burstgpt (seconds): 3 requests in 94.5 s", "1 without an answer's tokens", "Model"):
        assert said in trace.reading


def test_bailian_has_seconds_small_blocks_and_conversations() -> None:
    trace = read_trace(DATA / "bailian.jsonl")
    assert trace.format == "bailian"
    assert trace.at_ns.tolist() == [0, 20_500_000_000, 61_114_000_000, 7_199_250_000_000]
    assert trace.block_tokens == 16
    # 70 tokens of context less the 40 asked and the 12 answered before.
    assert trace.prompt.tolist() == [40, 48, 18, 33]
    drawn = replay(trace)
    assert drawn.turn_N.tolist() == [0, 1, 0, 0]
    assert drawn.context_tokens(1) == 70
    assert len(replay(trace, end_s=30.0)) == 2
    assert "bailian (seconds, blocks of 16 tokens)" in trace.reading


def test_a_conversation_that_is_forked_goes_on_once(tmp_path: Path) -> None:
    rows = [
        {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 10, "output_length": 5, "turn": 1},
        {"chat_id": 2, "parent_chat_id": 1, "timestamp": 9.0, "input_length": 25, "output_length": 5, "turn": 2},
        {"chat_id": 3, "parent_chat_id": 1, "timestamp": 9.5, "input_length": 27, "output_length": 5, "turn": 2},
        {"chat_id": 4, "parent_chat_id": 99, "timestamp": 9.7, "input_length": 80, "output_length": 5, "turn": 7},
    ]
    path = tmp_path / "fork.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = replay(read_trace(path))
    assert drawn.turn_N.tolist() == [0, 1, 0, 0]
    assert [drawn.context_tokens(i) for i in range(4)] == [10, 25, 27, 80]


def test_a_child_whose_context_lacks_the_answer_before_begins_a_conversation(tmp_path: Path) -> None:
    keys = ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length")
    rows = [(159, -1, 0.0, 521, 132), (160, 159, 9.0, 400, 80), (161, 160, 20.0, 500, 5), (162, 159, 30.0, 700, 1)]
    path = tmp_path / "cut.jsonl"
    path.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    trace = read_trace(path)
    assert "1 with no more context than was said before" in trace.reading
    drawn = replay(trace)
    # 162 goes on with 159, whom 160 did not: 700 less 521 and 132. 161 goes on with 160: 500 less 400 and 80.
    assert drawn.prompt_N.tolist() == [521, 47, 400, 20]
    assert drawn.turn_N.tolist() == [0, 1, 0, 1]
    assert [drawn.context_tokens(i) for i in range(4)] == [521, 700, 400, 500]


def test_rows_without_a_prompt_are_said(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(SIMPLE + "0,0,2\n1,5,0\n")
    said = read_trace(path).reading
    assert "1 without a prompt's tokens and played with one" in said
    assert "1 without an answer's tokens and played with one" in said


def test_times_that_stand_for_no_time_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    for year in ("0001", "9999"):
        path.write_text(AZURE + f"{year}-01-01 00:00:00,3,4\n")
        with pytest.raises(UserError, match="line 3, column TIMESTAMP"):
            read_trace(path)


def test_a_session_called_none_is_no_conversation_of_strangers(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("at_s,prompt_tokens,output_tokens,session\n0,10,2,nan\n1,10,2,nan\n")
    with pytest.raises(UserError, match=r"line 2, column session: .nan. .*leave it empty"):
        read_trace(path)


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("at_s,prompt_tokens,output_tokens,prompt_tokens\n0,10,2,999\n")
    with pytest.raises(UserError, match="line 1: has two columns prompt_tokens"):
        read_trace(path)


def test_a_pipe_is_refused_because_its_beginning_would_be_lost(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR)  # both ends, so that nobody waits for anybody
    try:
        os.write(pipe, (MOONCAKE * 2).encode())
        with pytest.raises(UserError, match=r"is no file but a pipe.*save what it gives"):
            read_trace(path)
    finally:
        os.close(pipe)


def test_azure_counts_images_and_takes_quotes(tmp_path: Path) -> None:
    path = tmp_path / "week.csv"
    path.write_text(
        '"TIMESTAMP","NumImages","ContextTokens","GeneratedTokens"\n'
        '"2024-10-15 00:00:00.000000+00:00","2","1200","40"\n"2024-10-15 00:00:02.500000+00:00","0","90","30"\n'
    )
    trace = read_trace(path)
    assert trace.format == "azure"
    assert trace.at_ns.tolist() == [0, 2_500_000_000]
    assert trace.images is not None
    assert trace.images.tolist() == [2, 0]
    assert "2 images, in 1 of them, are counted, not sent" in trace.reading


def test_vllm() -> None:
    trace = read_trace(DATA / "vllm.json")
    assert trace.format == "vllm"
    assert trace.at_ns.tolist() == [0, 400_000_000, 1_200_000_000]
    assert trace.prompt.tolist() == [100, 200, 50]
    assert trace.output.tolist() == [10, 20, 5]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"start_times": None}, ["key start_times", "--save-detailed"]),
        ({"start_times": [1.0]}, ["key start_times", "expected 3 values", "found 1"]),
        ({"output_lens": [1, 2, -3]}, ["output_lens[2]", "'-3'"]),
        ({"input_lens": "many"}, ["is not a result of vllm bench", "input_lens"]),
    ],
)
def test_a_vllm_result_that_tells_too_little(tmp_path: Path, change: dict[str, object], says: list[str]) -> None:
    result = json.loads((DATA / "vllm.json").read_text()) | change
    path = tmp_path / "result.json"
    path.write_text(json.dumps({key: value for key, value in result.items() if value is not None}))
    with pytest.raises(UserError) as caught:
        read_trace(path)
    for part in (*says, "result.json"):
        assert part.replace("'", "") in str(caught.value).replace("'", "")


def test_a_vllm_result_may_be_indented_but_not_be_two(tmp_path: Path) -> None:
    result = json.loads((DATA / "vllm.json").read_text())
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result, indent=2))
    assert read_trace(path).prompt.tolist() == [100, 200, 50]
    path.write_text("\n".join([json.dumps(result)] * 2))
    with pytest.raises(UserError, match=r"result\.json, line 2: a second result .*--append-result.*keep one line"):
        read_trace(path)


def test_inference_perf() -> None:
    trace = read_trace(DATA / "inference-perf.json")
    assert trace.format == "inference-perf"
    assert trace.at_ns.tolist() == [0, 500_000_000]
    assert trace.prompt.tolist() == [120, 80]
    assert trace.output.tolist() == [16, 32]
    assert trace.skipped == 1
    assert trace.session is None


def test_inference_perf_counts_prompts_where_it_will(tmp_path: Path) -> None:
    rows = [
        {
            "start_time": 10.0 + k,
            "end_time": 11.0 + k,
            "info": {"request_metrics": {"text": {"input_tokens": 120}}, "response_metrics": {"output_tokens": 16}},
            "error": error,
        }
        for k, error in enumerate([None, {"error_type": "TimeoutError", "error_msg": "cut"}])
    ]
    path = tmp_path / "per_request_lifecycle_metrics.json"
    path.write_text(json.dumps(rows))
    trace = read_trace(path)
    assert (trace.prompt.tolist(), trace.output.tolist()) == ([120, 120], [16, 16])
    assert (trace.skipped, trace.cut) == (0, 1)


def test_inference_perf_sessions_are_conversations_where_one_request_follows_another(tmp_path: Path) -> None:
    spans = [(100, 101, 100, 10), (103, 104, 150, 20), (103.5, 105, 500, 5), (106, 107, 90, 4), (108, 109, 200, 3)]
    rows = [
        {
            "session_id": "a",
            "start_time": start,
            "end_time": end,
            "info": {"input_tokens": asked, "output_tokens": made},
        }
        for start, end, asked, made in spans
    ]
    path = tmp_path / "lifecycle.json"
    path.write_text(json.dumps(rows))
    trace = read_trace(path)
    # The third runs beside the second. The fourth has less context than the 170 tokens said before it.
    assert trace.anew == 1
    drawn = replay(trace)
    assert drawn.prompt_N.tolist() == [100, 150 - 110, 500, 90, 200 - 94]
    assert drawn.turn_N.tolist() == [0, 1, 0, 0, 1]
    assert drawn.due_ns_N.tolist() == [0, DEPENDS, 3_500_000_000, 6_000_000_000, DEPENDS]
    assert drawn.think_ns_N.tolist() == [0, 2_000_000_000, 0, 0, 1_000_000_000]


SECONDS = [(0.0, 40, [0, 1, 2]), (20.5, 48, [0, 3, 4]), (61.114, 70, [0, 1, 2, 5, 6])]


def in_rows(path: Path, rows: list[tuple[float, int, list[int]]]) -> Path:
    keys = ("timestamp", "input_length", "hash_ids")
    path.write_text(
        "".join(json.dumps(dict(zip(keys, row, strict=True)) | {"output_length": 4}) + "\n" for row in rows)
    )
    return path


def test_a_unit_is_asked_for_where_mooncake_s_cannot_be_meant(tmp_path: Path) -> None:
    path = in_rows(tmp_path / "synthetic.jsonl", [(at, prompt, []) for at, prompt, _ in SECONDS])
    with pytest.raises(UserError, match=r"synthetic\.jsonl, line 2, column timestamp: 20\.5 is no .*--trace-format"):
        read_trace(path)
    path = in_rows(tmp_path / "blocks.jsonl", [(0, 40, [0, 1, 2]), (7_000, 48, [0, 3, 4])])
    with pytest.raises(UserError, match=r"line 1, column hash_ids: 3 ids for 40 tokens .*mooncake:s:16"):
        read_trace(path)
    assert read_trace(path, "mooncake:ms:16").at_ns.tolist() == [0, 7_000_000_000]
    path = in_rows(tmp_path / "seconds.jsonl", SECONDS)
    trace = read_trace(path, "mooncake:s:16")
    assert trace.at_ns.tolist() == [0, 20_500_000_000, 61_114_000_000]
    assert trace.block_tokens == 16
    for word in ("mooncake:h:16", "mooncake:s:0", "mooncake:s:x", "azure:s"):
        with pytest.raises(UserError, match="is not known"):
            read_trace(path, word)


@pytest.mark.parametrize(
    ("times", "line"),
    [
        # One row, the last of several, and a row that is the odd one the other way round.
        ([0.0, 20.5, 61_114, 7_199.25], 3),
        ([0.5, 20.5, 61_114, 62_000, 70.5], 4),
        ([1_000, 41_000, 42, 43_000], 3),
        # From one row on.
        ([1.0, 2.5, 3.0, 4.5, 5.5, 5_950, 7_100, 8_300, 9_000, 10_100], 6),
    ],
)
def test_times_of_two_units_are_told(tmp_path: Path, times: list[float], line: int) -> None:
    path = tmp_path / "mixed.csv"
    path.write_text("Timestamp,Request tokens,Response tokens\n" + "".join(f"{at},10,2\n" for at in times))
    says = rf"mixed\.csv, line {line + 1}, column Timestamp: .*mixes units"
    with pytest.raises(UserError, match=says):
        read_trace(path)
    # Two rows at a time, so that what is wrong lies across parts.
    with pytest.raises(UserError, match=says):
        list(trace_parts(path, 2))


@given(
    gaps=st.lists(st.floats(0.001, 100.0), min_size=2, max_size=60),
    jitter=st.lists(st.floats(0.0, 0.2), min_size=60, max_size=60),
)
@settings(max_examples=100, deadline=None)
def test_times_of_one_unit_are_believed(
    gaps: list[float], jitter: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Recorders write rows when they end, so a little out of order."""
    times = 10.0 + np.cumsum(gaps)
    times = times + np.array(jitter[: len(times)]) * times
    path = tmp_path_factory.mktemp("burst") / "trace.csv"
    path.write_text("Timestamp,Request tokens,Response tokens\n" + "".join(f"{at:.3f},10,2\n" for at in times))
    assert len(read_trace(path)) == len(times)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"prompt": "Explain how tides work.", "output_tokens": 64}\n', "prompt"),
        ('[{"id": "a1", "conversations": [{"from": "human", "value": "How tall?"}]}]', "conversations"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}\n', "messages"),
        ('{"conversation": [{"role": "user", "content": "Hi"}]}\n', "conversation"),
    ],
)
def test_prompts_are_no_trace_and_say_where_they_go(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"asked\.jsonl, line 1, key {key}: .*--prompts"):
        read_trace(path)


@pytest.mark.parametrize("name", ["azure", "burstgpt", "mooncake"])
def test_a_part_at_a_time_reads_the_same(name: str) -> None:
    [path] = DATA.glob(f"{name}.*")
    whole = read_trace(path)
    parts = list(trace_parts(path, 2))
    assert np.concatenate([part.at_ns for part in parts]).tolist() == whole.at_ns.tolist()
    assert np.concatenate([part.prompt for part in parts]).tolist() == whole.prompt.tolist()
    assert {part.format for part in parts} == {name}
    assert parts[0].unit == LINES[name].unit


def test_a_long_trace_of_conversations_is_refused_and_units_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bailian\.jsonl, line 3: a trace of conversations"):
        list(trace_parts(DATA / "bailian.jsonl", 2))
    path = in_rows(tmp_path / "seconds.jsonl", SECONDS)
    form = line_format("mooncake:s:16")
    assert form is not None
    assert [part.at_ns.tolist() for part in trace_parts(path, 2, form)] == [[0, 20_500_000_000], [61_114_000_000]]
