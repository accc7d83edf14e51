"""`AGENT_TRACKER_OTLP=true`: the same spans to any OpenTelemetry backend, as copies or as the only way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from otel_agent_tracker import AgentOperationsTracker, AgentPerformanceTracker, semconv
from otel_agent_tracker.config import resolve
from otel_agent_tracker.copies import FREE_TEXT as FREE_TEXT_KEYS
from otel_agent_tracker.pipeline import Pipeline, substitute
from tests.hosts import FREE_TEXT, Life, Sent, known_environment, live, tracker_answer
from tests.scripted_server import Action, ReceivedRequest, ScriptedServer, hang, reply, respond

EVENTS = 14
"""Event spans in the life of `tests.hosts`."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    known_environment(monkeypatch)
    monkeypatch.setenv("AGENT_TRACKER_OTLP", "true")


# --- a receiver ---------------------------------------------------------------------------------------------


class Received(NamedTuple):
    """A span as a backend sees it."""

    span: Span
    resource: Resource
    scope: InstrumentationScope

    @property
    def attributes(self) -> dict[str, Any]:
        """Its attributes as Python values."""
        return {pair.key: _value(pair.value) for pair in self.span.attributes}


def otlp_success() -> Action:
    """A backend's full success."""
    body = ExportTraceServiceResponse().SerializeToString()
    return reply(200, body, headers={"Content-Type": "application/x-protobuf"})


@contextmanager
def backend(*actions: Action) -> Iterator[ScriptedServer]:
    """Any OpenTelemetry backend, which takes everything or plays `actions`; the environment names it."""
    with (
        ScriptedServer(*(actions or (otlp_success(),))) as server,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        yield server


def received(requests: Sequence[ReceivedRequest]) -> list[Received]:
    """The spans in these exports, by event id."""
    spans = [span for request in requests for span in _exported(request)]
    return sorted(spans, key=lambda span: span.attributes[semconv.EVENT_ID])


def _exported(request: ReceivedRequest) -> Iterator[Received]:
    assert (request.method, request.path) == ("POST", "/v1/traces")
    assert request.headers["content-type"] == "application/x-protobuf"
    for resource_spans in ExportTraceServiceRequest.FromString(request.body).resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield Received(span, resource_spans.resource, scope_spans.scope)


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def wait_for_spans(server: ScriptedServer, count: int, timeout_seconds: float = 5.0) -> list[Received]:
    """The spans that came, once there are `count`; a batch may hold any number of them."""
    deadline = time.monotonic() + timeout_seconds
    requests = 1
    while True:
        came = server.wait_for_requests(requests, deadline - time.monotonic())
        if len(spans := received(came)) >= count:
            return spans
        requests = len(came) + 1


# --- with a URL: copies -------------------------------------------------------------------------------------


def copies_of_a_life(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Received], Sent]:
    """What a backend and a tracker get of one life."""
    with backend() as server:
        sent = live(state_dir, monkeypatch)
        return received(server.requests), sent


def test_copies_are_marked_and_hold_no_free_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of each event, marked, with nothing that a user wrote."""
    copies, _ = copies_of_a_life(tmp_path, monkeypatch)
    assert len(copies) == EVENTS
    assert all(copy.attributes[semconv.COPY] is True for copy in copies)
    assert not [copy for copy in copies if FREE_TEXT_KEYS & copy.attributes.keys()]
    shown = b"".join(copy.span.SerializeToString() for copy in copies)
    assert not [text for text in FREE_TEXT if text.encode() in shown]


def test_content_can_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AGENT_TRACKER_OTLP_CONTENT=true sends texts too; without it, only they are missing."""
    without, _ = copies_of_a_life(tmp_path / "without", monkeypatch)
    monkeypatch.setenv("AGENT_TRACKER_OTLP_CONTENT", "true")
    copies, _ = copies_of_a_life(tmp_path / "with", monkeypatch)
    shown = b"".join(copy.span.SerializeToString() for copy in copies)
    assert [text for text in FREE_TEXT if text.encode() in shown] == list(FREE_TEXT)
    assert {key for copy in copies for key in copy.attributes} >= FREE_TEXT_KEYS
    by_id = {copy.attributes[semconv.EVENT_ID]: copy for copy in copies}
    for bare in without:
        if bare.attributes[semconv.EVENT] == semconv.Event.CONVERSATION_TURN:
            continue  # its ids differ from run to run
        full = by_id[bare.attributes[semconv.EVENT_ID]]
        assert bare.attributes == {k: v for k, v in full.attributes.items() if k not in FREE_TEXT_KEYS}
        for part in ("name", "kind", "trace_id", "span_id", "parent_span_id", "start_time_unix_nano"):
            assert getattr(bare.span, part) == getattr(full.span, part)
        assert bare.span.status.code == full.span.status.code


@pytest.mark.parametrize("answer", ["takes all", "refuses all", "hangs", "is not there"])
def test_copies_do_not_touch_the_tracker(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tracker gets the same bytes as without copies, whatever becomes of them, and closing does not wait."""
    monkeypatch.setenv("AGENT_TRACKER_OTLP", "false")
    alone = live(tmp_path / "alone", monkeypatch)
    monkeypatch.setenv("AGENT_TRACKER_OTLP", "true")
    monkeypatch.setenv("AGENT_TRACKER_FLUSH_TIMEOUT_SECONDS", "0.4")
    actions: dict[str, Callable[[], Action]] = {
        "takes all": otlp_success,
        "refuses all": lambda: reply(503),
        "hangs": hang,
        "is not there": lambda: reply(500),
    }
    with ScriptedServer(actions[answer]()) as server:
        if answer == "is not there":
            server.close()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        began = time.monotonic()
        assert live(tmp_path / "copied", monkeypatch) == alone
        assert time.monotonic() - began < 3.0


# --- without a URL: the destination -------------------------------------------------------------------------


class AlsoThroughTheSdk(Pipeline):
    """A pipeline whose event spans go through the SDK's own exporter to `endpoint`, too."""

    endpoint = ""

    def _processors(self) -> list[SpanProcessor]:
        return [*super()._processors(), SimpleSpanProcessor(OTLPSpanExporter(endpoint=self.endpoint))]


def test_the_spans_are_those_of_the_sdks_own_exporter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attribute for attribute: names, ids, parents, times, status, links, resource and scope."""
    with backend() as ours, ScriptedServer(otlp_success()) as sdks:
        monkeypatch.setattr(AlsoThroughTheSdk, "endpoint", f"{sdks.url}/v1/traces")
        substitute(AlsoThroughTheSdk(resolve({"state_dir": tmp_path})))
        try:
            with AgentPerformanceTracker() as tracker, AgentOperationsTracker() as operations:
                list(Life(tracker, operations).steps())
                assert tracker.flush(5.0)
        finally:
            substitute(None)
        from_us, from_sdk = received(ours.requests), received(sdks.requests)
    assert len(from_us) == EVENTS
    assert from_us == from_sdk
    shown = b"".join(span.span.SerializeToString() for span in from_us)
    assert [text for text in FREE_TEXT if text.encode() in shown] == list(FREE_TEXT)
    assert not [span for span in from_us if semconv.COPY in span.attributes]
    assert {pair.key: _value(pair.value) for pair in from_us[0].resource.attributes}["service.name"] == "shop"


def test_a_failed_conversation_has_an_error_status(tmp_path: Path) -> None:
    """Status, description and type, as backends show errors."""
    with backend() as server, AgentPerformanceTracker(state_dir=tmp_path) as tracker:
        tracker.record_failed_session(tracker.start_conversation("bot"), "no route", error_type="OSError")
        assert tracker.flush(5.0)
        (failed,) = [span for span in received(server.requests) if span.span.name == "conversation"]
    assert failed.span.status == Status(code=Status.STATUS_CODE_ERROR, message="no route")
    assert failed.attributes[semconv.ERROR_TYPE] == "OSError"


def test_the_traces_own_endpoint_and_headers_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables of OpenTelemetry say where to and with which headers; a tracker's key goes nowhere else."""
    with ScriptedServer(otlp_success()) as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{server.url}/custom/path?tenant=1")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b")
        monkeypatch.setenv("AGENT_TRACKER_API_KEY", "sk-tracker")
        with AgentPerformanceTracker(state_dir=tmp_path) as tracker:
            tracker.start_conversation("bot")
            assert tracker.flush(5.0)
        (request,) = server.requests
    assert request.target == "/custom/path?tenant=1"
    assert request.headers["x-tenant"] == "a b"
    assert "sk-tracker" not in str(request)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_is_refused_for_now_is_sent_again(status: int, tmp_path: Path) -> None:
    """The answers that the OTLP specification calls retryable."""
    refusal = reply(status, headers={"Retry-After": "0"})
    with backend(refusal, otlp_success()) as server, AgentPerformanceTracker(state_dir=tmp_path) as tracker:
        tracker.start_conversation("bot")
        assert tracker.flush(5.0)
        first, second = server.requests
        assert first.body == second.body
        assert tracker.delivery_stats()["delivered"] == 1


def test_what_a_backend_never_took_outlives_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans wait in the state folder while nobody listens, and go, once each, when somebody does."""
    with ScriptedServer(reply(503)) as dead:
        port = dead.port
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    with AgentPerformanceTracker(state_dir=tmp_path, flush_timeout_seconds=0.1) as tracker:
        session = tracker.start_conversation("bot")
        tracker.end_conversation(session, 5, "very good")
    with (
        ScriptedServer(otlp_success(), port=port) as server,
        AgentPerformanceTracker(state_dir=tmp_path) as tracker,
    ):
        assert tracker.flush(5.0)
        spans = wait_for_spans(server, 2)
    assert sorted(span.span.name for span in spans) == ["conversation", "conversation.start"]
    assert {span.attributes[semconv.SESSION_ID] for span in spans} == {session}
    assert "very good" in [span.attributes.get(semconv.FEEDBACK) for span in spans]


def test_one_span_that_a_backend_refuses_does_not_stop_the_others(tmp_path: Path) -> None:
    """The batch is halved until it is alone; it is dead-lettered, the others are delivered."""

    def judge(request: ReceivedRequest) -> Action:
        return reply(400) if b"unlucky" in request.body else otlp_success()

    with backend(respond(judge)), AgentPerformanceTracker(state_dir=tmp_path) as tracker:
        for agent_id in ("a", "unlucky", "b", "c", "d"):
            tracker.start_conversation(agent_id)
        assert tracker.flush(5.0)
        stats = tracker.delivery_stats()
    assert (stats["accepted"], stats["delivered"], stats["dead_lettered"]) == (5, 4, 1)


def test_without_the_switch_nothing_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint for other spans is no leave to send it ours."""
    monkeypatch.delenv("AGENT_TRACKER_OTLP")
    with backend() as server, ScriptedServer(respond(tracker_answer)) as tracker_server:
        with AgentPerformanceTracker(tracker_server.url, state_dir=tmp_path) as tracker:
            tracker.start_conversation("bot")
            assert tracker.flush(5.0)
        with AgentPerformanceTracker(state_dir=tmp_path) as disabled:
            disabled.start_conversation("bot")
        assert server.requests == []
