"""What the gateway shows of itself: metrics, the snapshot, OpenTelemetry. Numbers add up, and no prompt is in any."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from gateway_seen_fixtures import API, DENSE, MOE, Named, World
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from breakeven.gateway.plan.model import BackendPlan
from breakeven.gateway.seen.metrics import (
    COUNTERS,
    LOADS,
    MOST_KEYS,
    OTHER,
    POLLED,
    PREFIX,
    PartState,
    bounded,
    cumulative,
    render,
)
from breakeven.gateway.seen.record import Attempt
from breakeven.gateway.seen.snapshot import snapshot, standing_usd_per_hour
from breakeven.gateway.shared.block import Shape, SharedBlock
from breakeven.gateway.shared.layout import Count, Global, Known, State, UnderWay, Used
from breakeven.results.cost import Own, Rented

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def world() -> World:
    made = World()
    made.pass_s(20, rate=5, share=0.5)
    return made


PARTS = [
    PartState(name="poller", state="running", restarts=0, trouble=""),
    PartState(name="budgets", state="waiting", restarts=3, trouble="no room", next_try_s=2.0),
]


def scrape(world: World) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels, read back by the library that Prometheus' own clients use."""
    text = render(world.block, world.plan, world.rows, PARTS).decode()
    return {
        (sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_worker_and_those_that_ended_are_added_up(world: World) -> None:
    before = scrape(world)
    served = {name: before["requests_total", (("backend", name),)] for name in (DENSE, MOE, API)}
    assert sum(served.values()) == 100
    assert before["key_requests_total", (("key", "team-a"),)] == 50
    assert before["model_tokens_total", (("model", "chat"), ("type", "output"))] == 15000
    assert before["workers", ()] == 2
    world.block.retire(1)
    after = scrape(world)
    assert {name: after["requests_total", (("backend", name),)] for name in served} == served
    assert after["in_flight", (("backend", DENSE),)] == 0
    assert after["workers", ()] == 1


def test_histograms_count_what_was_timed(world: World) -> None:
    samples = scrape(world)
    for name in ("ttft_seconds", "tpot_seconds", "ttft_actual_over_predicted", "tpot_actual_over_predicted"):
        for backend in (DENSE, MOE):
            buckets = [
                (float(dict(labels)["le"]), value)
                for (sample, labels), value in samples.items()
                if sample == f"{name}_bucket" and ("backend", backend) in labels
            ]
            assert buckets == sorted(buckets)
            assert all(one <= other for (_, one), (_, other) in pairwise(buckets))
            requests = samples["requests_total", (("backend", backend),)]
            assert buckets[-1] == (math.inf, requests)
            assert samples[f"{name}_count", (("backend", backend),)] == requests
    seconds = world.block.count.total(0, Count.TTFT_NS) / 1e9
    assert samples["ttft_seconds_sum", (("backend", DENSE),)] == pytest.approx(seconds)


def test_states_of_backends_are_shown(world: World) -> None:
    world.block.load.put(1, 1, UnderWay.BREAKER, 2)
    world.block.known.put(0, 3, Known.STATE, State.LOADING)
    world.block.known.put(0, 3, Known.PROGRESS, 0.4)
    world.block.known.put(0, 0, Known.TTFT_LOG, math.log(2))
    world.block.worker.put(2, 0, 1, 7)
    samples = scrape(world)
    assert samples["breaker", (("backend", MOE),)] == 2
    assert samples["breaker", (("backend", DENSE),)] == 0
    assert samples["engine_state", (("backend", "tiny"), ("state", "loading"))] == 1
    assert samples["engine_state", (("backend", "tiny"), ("state", "ready"))] == 0
    assert samples["load_progress", (("backend", "tiny"),)] == 0.4
    assert samples["ttft_factor", (("backend", DENSE),)] == pytest.approx(2)
    assert samples["log_dropped_total", ()] == 7
    assert ("engine_running", (("backend", API),)) not in samples, "nobody asked it"


def test_label_values_come_from_the_plan_alone(world: World) -> None:
    for i in range(50):
        record = world.request(DENSE, world.now_s)
        record.model, record.error, record.id = f"evil-{i}", f"evil {i}", f"evil-{i}"
    assert b"evil" not in render(world.block, world.plan, world.rows)


def test_parts_and_processes_that_failed_are_seen(world: World) -> None:
    for column, value in ((Global.REPLACED, 5), (Global.HUNG, 2), (Global.MISSING, 1)):
        world.block.everywhere.put(0, 0, column, value)
    samples = scrape(world)
    assert [samples["part_up", (("part", name),)] for name in ("poller", "budgets")] == [1, 0]
    assert samples["part_restarts_total", (("part", "budgets"),)] == 3
    assert samples["processes_replaced_total", (("why", "ended"),)] == 3
    assert samples["processes_replaced_total", (("why", "hung"),)] == 2
    assert samples["processes_missing", ()] == 1
    shown = snapshot(world.plan, world.block, world.rows, parts=PARTS, warnings=["mine"])
    assert (shown.replaced, shown.hung, shown.missing) == (5, 2, 1)
    assert shown.parts == PARTS
    assert [("could not be started" in line) for line in shown.warnings] == [True, False]


@given(st.dictionaries(st.text(max_size=8), st.integers(0, 1000), max_size=3 * MOST_KEYS))
def test_keys_are_bounded_and_nothing_is_lost(requests: dict[str, int]) -> None:
    totals = {name: [float(number)] + [0.0] * (len(Used) - 1) for name, number in requests.items()}
    lines = bounded(totals)
    assert len(lines) <= MOST_KEYS + 1
    assert sum(total[Used.REQUESTS] for _, total in lines) == sum(requests.values())
    if len(requests) > MOST_KEYS:
        assert lines[-1][0] == OTHER
        least = min(total[Used.REQUESTS] for _, total in lines[:-1])
        named = {name for name, _ in lines[:-1]}
        assert all(number <= least for name, number in requests.items() if name not in named)


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=40))
def test_buckets_are_cumulative(counts: list[int]) -> None:
    found = cumulative(counts, [float(i) for i in range(len(counts) - 1)])
    assert [label for label, _ in found][-1] == "+Inf"
    assert found[-1][1] == sum(counts)
    assert [later - sooner for (_, sooner), (_, later) in pairwise(found)] == counts[1:]


def test_every_metric_stands_in_the_docs(world: World) -> None:
    page = (DOCS / "metrics-gateway.md").read_text()
    text = render(world.block, world.plan, world.rows, PARTS).decode()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert len(names) > len(COUNTERS) + len(LOADS) + len(POLLED)
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_metrics_of_hundreds_of_backends_stay_bounded() -> None:
    world = World()
    backends = tuple(BackendPlan(name=f"b{i}", url="http://127.0.0.1:1/v1") for i in range(300))
    world.plan = replace(world.plan, backends=backends)
    world.block = SharedBlock(Shape(workers=3, backends=300, keys=4, models=2, experiments=2))
    world.rows = Named(backends={f"b{i}": i for i in range(300)})
    assert len(render(world.block, world.plan, world.rows)) < 300 * 16_000


def test_snapshot_says_what_the_block_says_and_no_prompt(world: World) -> None:
    world.block.load.put(1, 0, UnderWay.BREAKER, 1)
    world.block.load.put(2, 0, UnderWay.BREAKER, 2)
    world.block.everywhere.put(0, 0, Global.DRAINING, 1)
    world.recent[0].model = "m" * 100_000
    shown = world.snapshot()
    assert [each.state for each in shown.backends] == ["ready", "ready", "ready", "unloaded"]
    assert shown.backends[0].breaker == "open"
    assert shown.draining
    assert shown.uptime_s == 20
    assert sum(each.requests for each in shown.backends) == 100
    assert sum(each.judged for each in shown.backends) == 100
    assert sum(sum(each.ttft_buckets) for each in shown.backends) == 100
    assert [each.usd_per_hour is None for each in shown.backends] == [False, False, True, True]
    assert shown.backends[0].usd_per_hour == pytest.approx(0.8)
    assert sum(shown.backends[1].expert_load or []) == pytest.approx(1)
    assert shown.backends[0].expert_load is None
    assert shown.backends[2].engine_running is None
    text = msgspec.json.encode(shown)
    assert b"SECRET" not in text
    assert len(text) < 400_000
    assert world.recent[0].request_body == "SECRET PROMPT", "the log's own record is left alone"


def test_a_polled_backend_that_does_not_answer_is_away(world: World) -> None:
    world.block.known.put(0, 0, Known.UP, 0)
    world.block.known.put(0, 2, Known.UP, 0)
    states = {each.name: each.state for each in world.snapshot().backends}
    assert states[DENSE] == "away"
    assert states[API] == "ready", "a hosted API is not asked"


@pytest.mark.parametrize(
    ("price", "hourly"),
    [
        (None, None),
        (Rented(usd_per_hour=2.5), 2.5),
        (Own(usd=8766, life_years=1, usd_per_kwh=0.5, idle_w=1000, busy_w=2000), 1.5),
    ],
)
def test_a_machine_costs_while_it_waits(price: Rented | Own | None, hourly: float | None) -> None:
    backend = BackendPlan(name="b", url="http://127.0.0.1:1/v1", price=price, devices=2)
    assert standing_usd_per_hour(backend) == (None if hourly is None else pytest.approx(hourly))


def spans_and_metrics(world: World) -> tuple[SimpleNamespace, list[object]]:
    pytest.importorskip("opentelemetry.sdk", reason="without the extra otel nothing is exported")
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from breakeven.gateway.seen.otel import Telemetry

    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    telemetry = Telemetry(world.plan, processor=SimpleSpanProcessor(spans), reader=reader)
    for record in world.recent:
        telemetry.add(record)
    data = reader.get_metrics_data()
    assert data is not None
    metrics = {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    telemetry.close()
    return SimpleNamespace(**{name.replace(".", "_"): points for name, points in metrics.items()}), list(
        spans.get_finished_spans()
    )


def test_spans_have_the_conventions_names_and_a_child_an_attempt(world: World) -> None:
    world.recent = [world.recent[0]]
    record = world.recent[0]
    record.attempts = [
        Attempt(backend=DENSE, outcome="reset", start_s=0.01, seconds=0.2),
        Attempt(backend=MOE, outcome="answered", start_s=0.21, seconds=1.0),
    ]
    record.stream = True
    metrics, spans = spans_and_metrics(world)
    server = next(span for span in spans if span.kind.name == "SERVER")
    children = [span for span in spans if span.kind.name == "CLIENT"]
    assert server.name == "chat chat"
    assert server.attributes["gen_ai.usage.output_tokens"] == 150
    assert server.attributes["gen_ai.response.time_to_first_chunk"] == record.ttft_s
    assert server.attributes["breakeven.reason"] == record.reason
    assert server.end_time - server.start_time == pytest.approx(record.e2e_s * 1e9, rel=1e-6)
    assert [child.parent.span_id for child in children] == [server.context.span_id] * 2
    assert [child.status.is_ok for child in children] == [False, True]
    assert {point.count for point in metrics.gen_ai_server_request_duration} == {1}
    assert {point.attributes["gen_ai.token.type"]: point.sum for point in metrics.gen_ai_client_token_usage} == {
        "input": 400,
        "output": 150,
    }


def test_our_names_are_those_of_the_installed_conventions(world: World) -> None:
    known = pytest.importorskip("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")
    from opentelemetry.semconv._incubating.metrics import gen_ai_metrics

    metrics, spans = spans_and_metrics(world)
    attributes = {name for span in spans for name in span.attributes if name.startswith("gen_ai.")}
    assert attributes
    assert attributes <= {value for name, value in vars(known).items() if name.startswith("GEN_AI_")}
    named = {str(value).replace(".", "_") for name, value in vars(gen_ai_metrics).items() if name.startswith("GEN_AI_")}
    assert set(vars(metrics)) <= named


def test_traces_hold_no_prompt_and_metrics_no_name_a_client_made_up(world: World) -> None:
    for number, record in enumerate(world.recent[:30]):
        record.model, record.status, record.finish = f"made-up-{number}", 404, ""
    metrics, spans = spans_and_metrics(world)
    assert "SECRET" not in "".join(span.to_json() for span in spans)
    labels = [point.attributes for points in vars(metrics).values() for point in points]
    assert labels
    assert not any("made-up" in str(value) for each in labels for value in each.values())
    assert {each["gen_ai.request.model"] for each in labels} == {"chat", "other"}
    assert any(each.get("error.type") == "404" for each in labels)
