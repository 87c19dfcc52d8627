"""Decision records as OpenTelemetry spans and metrics, under the GenAI semantic conventions' names (`gen_ai.*`).

For the watching process, which reads the log: nothing here runs beside a request. Exporting has its own thread.
OpenTelemetry's own environment variables, such as OTEL_EXPORTER_OTLP_ENDPOINT, say where to. Prompts and answers are
never in it, whether the log stores them or not. Needs the extra `otel`.

Every record is exported once, from the moment on in which this begins.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from breakeven.errors import UserError
from breakeven.gateway.plan.model import GatewayPlan
from breakeven.gateway.seen.read_log import Follower
from breakeven.gateway.seen.record import DecisionRecord
from breakeven.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.util.types import AttributeValue

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
}
OTHER = "other"
"""For a model's name that is not in the plan: a label's values must not be a client's to choose."""
# Bucket bounds as the conventions advise for each metric.
DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TPOT_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(float(4**power) for power in range(14))
_NS = 1_000_000_000


class Telemetry:
    """Holds OpenTelemetry's own threads. `add` each record once it has ended; `close` sends what is left."""

    def __init__(
        self, plan: GatewayPlan, *, processor: SpanProcessor | None = None, reader: MetricReader | None = None
    ) -> None:
        """Without arguments: OTLP over HTTP. To be made after a fork. Raises UserError without the extra."""
        try:
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
        except ImportError as error:
            raise UserError(
                "otel: true needs OpenTelemetry; install the extra `otel` (how: docs/metrics-gateway.md)"
            ) from error
        resource = Resource.create({"service.name": "breakeven", "service.version": __version__})
        self._named = {policy.model for policy in plan.policies} | {backend.name for backend in plan.backends}
        self._served = {each.name: each.served_model or each.name for each in plan.backends}
        self._spans = TracerProvider(resource=resource)
        self._spans.add_span_processor(processor or _usual_processor())
        self._metrics = MeterProvider([reader or _usual_reader()], resource=resource)
        self._tracer = self._spans.get_tracer("breakeven.gateway", __version__)
        meter = self._metrics.get_meter("breakeven.gateway", __version__)

        def histogram(name: str, unit: str, text: str, bounds: tuple[float, ...]) -> Any:
            return meter.create_histogram(name, unit, text, explicit_bucket_boundaries_advisory=bounds)

        self._duration = histogram(
            "gen_ai.server.request.duration", "s", "From a request's arrival to its end.", DURATION_S
        )
        self._ttft = histogram(
            "gen_ai.server.time_to_first_token", "s", "From a request's arrival to its first token.", TTFT_S
        )
        self._tpot = histogram("gen_ai.server.time_per_output_token", "s", "Time a token after the first.", TPOT_S)
        self._tokens = histogram("gen_ai.client.token.usage", "{token}", "Tokens read and written.", TOKENS)

    def add(self, record: DecisionRecord) -> None:
        """One span with a child for each backend asked, and one observation in each metric that applies."""
        from opentelemetry import trace

        operation = OPERATIONS.get(record.endpoint, record.endpoint)
        model = record.model if record.model in self._named else OTHER
        attributes = self._attributes(record, operation)
        start_ns = round(record.time_s * _NS)
        span = self._tracer.start_span(
            f"{operation} {model}", kind=trace.SpanKind.SERVER, attributes=attributes, start_time=start_ns
        )
        inside = trace.set_span_in_context(span)
        for attempt in record.attempts:
            began_ns = start_ns + round(attempt.start_s * _NS)
            child = self._tracer.start_span(
                f"{operation} {attempt.backend}",
                context=inside,
                kind=trace.SpanKind.CLIENT,
                attributes={
                    "breakeven.backend": attempt.backend,
                    "breakeven.outcome": attempt.outcome,
                    "breakeven.hedge": attempt.hedge,
                },
                start_time=began_ns,
            )
            if attempt.outcome not in ("answered", "cancelled", "hedge_lost"):
                child.set_status(trace.StatusCode.ERROR)
                child.set_attribute("error.type", attempt.outcome)
            child.end(began_ns + round(attempt.seconds * _NS))
        if error := _error_of(record):
            span.set_status(trace.StatusCode.ERROR)
            span.set_attribute("error.type", error)
        span.end(start_ns + round((record.e2e_s or 0.0) * _NS))
        self._measure(record, operation, model)

    def close(self) -> None:
        """Send what is left and end the threads."""
        self._spans.shutdown()
        self._metrics.shutdown()

    def _measure(self, record: DecisionRecord, operation: str, model: str) -> None:
        labels: dict[str, AttributeValue] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": _provider_of(record),
            "gen_ai.request.model": model,
            "gen_ai.response.model": self._served.get(record.backend, OTHER),
        }
        if error := _error_of(record):
            labels["error.type"] = error
        for instrument, value in (
            (self._duration, record.e2e_s),
            (self._ttft, record.ttft_s),
            (self._tpot, record.tpot_s),
        ):
            if value is not None:
                instrument.record(value, labels)
        for kind, tokens in (("input", record.prompt_tokens), ("output", record.output_tokens)):
            if tokens is not None:
                self._tokens.record(tokens, {**labels, "gen_ai.token.type": kind})

    def _attributes(self, record: DecisionRecord, operation: str) -> dict[str, AttributeValue]:
        """The conventions' names where they have one, else our own, `breakeven.`; what is not known is left out."""
        found: dict[str, AttributeValue | None] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": _provider_of(record),
            "gen_ai.request.model": record.model,
            "gen_ai.request.stream": record.stream,
            "gen_ai.response.model": self._served.get(record.backend),
            "gen_ai.response.finish_reasons": [record.finish] if record.finish else None,
            "gen_ai.response.time_to_first_chunk": record.ttft_s if record.stream else None,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
            "gen_ai.usage.output_tokens": record.output_tokens,
            "http.response.status_code": record.status or None,
            "breakeven.request.id": record.id,
            "breakeven.backend": record.backend or None,
            "breakeven.policy": record.policy,
            "breakeven.reason": record.reason,
            "breakeven.explored": record.explored,
            "breakeven.key": record.key or None,
            "breakeven.queue_s": record.queue_s,
            "breakeven.ttft_s": record.ttft_s,
            "breakeven.tpot_s": record.tpot_s,
            "breakeven.predicted_ttft_s": record.predicted_ttft_s,
            "breakeven.predicted_tpot_s": record.predicted_tpot_s,
            "breakeven.usd": record.usd,
            "breakeven.usd_elsewhere": record.usd_elsewhere,
            "breakeven.experiment": record.experiment or None,
            "breakeven.arm": record.arm or None,
            "breakeven.shadow_of": record.shadow_of or None,
        }
        return {name: value for name, value in found.items() if value is not None}


def _provider_of(record: DecisionRecord) -> str:
    """Whose interface was spoken; which software answered behind it is not known."""
    return "anthropic" if record.endpoint == "/v1/messages" else "openai"


def _error_of(record: DecisionRecord) -> str:
    """A word from a short list, for a label: "cut", or the status that the client got; empty when it went well."""
    if record.finish == "cut":
        return "cut"
    return str(record.status) if record.status >= 400 else ""


def _usual_processor() -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter())


def _usual_reader() -> MetricReader:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    return PeriodicExportingMetricReader(OTLPMetricExporter())


class Export:
    """Raises UserError without the extra `otel`."""

    def __init__(self, plan: GatewayPlan, directory: Path) -> None:
        self._telemetry = Telemetry(plan)
        self._follower = Follower(directory)
        self._follower.skip()

    def step(self) -> None:
        """Send on what is new."""
        for record in self._follower.new():
            self._telemetry.add(record)

    def close(self) -> None:
        """The rest, and what is still on its way."""
        self.step()
        self._telemetry.close()
