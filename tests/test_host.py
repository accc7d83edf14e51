"""No sampler, limit, scrubber, raising processor or shutdown of the host's provider loses or alters an event."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags

from otel_agent_tracker import AgentPerformanceTracker, semconv, session_id
from otel_agent_tracker import conversation as conversation_module
from tests.hosts import FREE_TEXT, LONG, Sent, host_provider, known_environment, live, tracker_answer
from tests.scripted_server import ScriptedServer, respond

MIDDLE = 6
"""The step of the life before which hosts change their mind: sessions are open, turns yet to come."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    known_environment(monkeypatch)


@pytest.fixture(scope="module", name="undisturbed")
def _undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Sent:
    """What arrives from an application that has no provider."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        known_environment(monkeypatch)
        return live(tmp_path_factory.mktemp("undisturbed"), monkeypatch)


# --- hosts --------------------------------------------------------------------------------------------------


@dataclass
class Host:
    """An application's tracing: its provider, the span that is current, and what happens before a step."""

    provider: trace.TracerProvider
    ambient: trace.Span | None = None
    disturb: Callable[[int], None] = lambda _: None
    environ: dict[str, str] = field(default_factory=dict)


class Raising(SpanProcessor):
    """A processor with a mistake in `method`."""

    def __init__(self, method: str) -> None:
        self._method = method

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self._method == "on_start":
            raise RuntimeError("a mistake of the host")

    def on_end(self, span: ReadableSpan) -> None:
        if self._method == "on_end":
            raise RuntimeError("a mistake of the host")


class Scrubber(SpanProcessor):
    """Hides whatever looks like a person's: session and user ids, when spans start and while they end."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        for key in (semconv.SESSION_ID, semconv.USER_ID, semconv.GEN_AI_CONVERSATION_ID, semconv.EVENT_ID):
            span.set_attribute(key, "[scrubbed]")

    def _on_ending(self, span: Span) -> None:
        self.on_start(span)


class ScrubbingExporter(SpanExporter):
    """Rewrites the spans that it is given before it passes them on."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            span._attributes = dict.fromkeys(span.attributes or {}, "[scrubbed]")
        return self._exporter.export(spans)

    def shutdown(self) -> None:
        self._exporter.shutdown()


class BrokenProvider(trace.TracerProvider):
    """A provider that gives no tracer."""

    def get_tracer(self, *args: object, **kwargs: object) -> trace.Tracer:
        raise RuntimeError("a mistake of the host")


def _host_shut_down_in_the_middle() -> Host:
    provider = TracerProvider()
    return Host(provider, disturb=lambda step: provider.shutdown() if step == MIDDLE else None)


def _host_replaced_in_the_middle() -> Host:
    other = TracerProvider(sampler=ALWAYS_OFF, span_limits=SpanLimits(max_span_attribute_length=3))

    def disturb(step: int) -> None:
        if step == MIDDLE:
            provider.shutdown()
            trace._TRACER_PROVIDER = other

    provider = TracerProvider()
    return Host(provider, disturb=disturb)


def _host_shut_down() -> Host:
    provider = TracerProvider()
    provider.shutdown()
    return Host(provider)


def _host_with(*processors: SpanProcessor) -> Host:
    provider = TracerProvider()
    for processor in processors:
        provider.add_span_processor(processor)
    return Host(provider)


def _unsampled_remote_parent() -> trace.Span:
    return NonRecordingSpan(SpanContext(1 << 100, 1 << 50, is_remote=True, trace_flags=TraceFlags(0)))


LIMITS = SpanLimits(
    max_attributes=1,
    max_events=1,
    max_links=1,
    max_span_attributes=1,
    max_attribute_length=64,
    max_span_attribute_length=64,
)

HOSTS: dict[str, Callable[[], Host]] = {
    "plain": lambda: Host(TracerProvider()),
    "always_off": lambda: Host(TracerProvider(sampler=ALWAYS_OFF)),
    "ratio 0": lambda: Host(TracerProvider(sampler=ParentBased(TraceIdRatioBased(0)))),
    "unsampled remote parent": lambda: Host(
        TracerProvider(sampler=ParentBased(ALWAYS_ON)), ambient=_unsampled_remote_parent()
    ),
    "limits": lambda: Host(TracerProvider(span_limits=LIMITS)),
    "scrubbing processor": lambda: _host_with(Scrubber()),
    "scrubbing exporter": lambda: _host_with(SimpleSpanProcessor(ScrubbingExporter(InMemorySpanExporter()))),
    "processor that raises in on_start": lambda: _host_with(Raising("on_start")),
    "processor that raises in on_end": lambda: _host_with(Raising("on_end")),
    "shut down": _host_shut_down,
    "shut down in the middle": _host_shut_down_in_the_middle,
    "replaced in the middle": _host_replaced_in_the_middle,
    "provider that is not the SDK's": lambda: Host(trace.NoOpTracerProvider()),
    "provider that raises": lambda: Host(BrokenProvider()),
}

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "sampler always_off": {"OTEL_TRACES_SAMPLER": "always_off"},
    "sampler ratio 0": {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"},
    "value length limit": {"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "64"},
    "span value length limit": {"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "64"},
    "count limits": {
        "OTEL_ATTRIBUTE_COUNT_LIMIT": "1",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "1",
        "OTEL_SPAN_EVENT_COUNT_LIMIT": "1",
        "OTEL_SPAN_LINK_COUNT_LIMIT": "1",
        "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": "1",
        "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": "1",
    },
}


def live_in(host: Host, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What arrives from the application `host`."""
    with ExitStack() as stack:
        stack.enter_context(host_provider(host.provider))
        if host.ambient is not None:
            stack.enter_context(trace.use_span(host.ambient))
        sent = live(state_dir, monkeypatch, disturb=host.disturb)
    if isinstance(host.provider, TracerProvider):
        host.provider.shutdown()
    return sent


@pytest.mark.parametrize("name", HOSTS)
def test_no_host_loses_or_alters_an_event(
    name: str, undisturbed: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every event arrives, byte by byte as from an application without a provider."""
    assert live_in(HOSTS[name](), tmp_path, monkeypatch) == undisturbed


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_no_variable_of_opentelemetry_loses_or_alters_an_event(
    name: str, undisturbed: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where samplers and limits come from the environment, for the host's provider and ours."""
    for variable, value in ENVIRONMENTS[name].items():
        monkeypatch.setenv(variable, value)
    assert live_in(Host(TracerProvider()), tmp_path, monkeypatch) == undisturbed


def test_the_life_of_these_tests_has_every_event(undisturbed: Sent) -> None:
    """Else the comparisons above would say little: each request is there, and the two long ids differ."""
    paths = [path for path, _, _ in undisturbed]
    assert {path: paths.count(path) for path in sorted(set(paths))} == {
        "/agents/activity": 1,
        "/agents/register": 1,
        "/agents/status": 1,
        "/conversations/end": 4,
        "/conversations/feedback": 1,
        "/conversations/start": 4,
        "/conversations/turn": 2,
    }
    bodies = b"".join(body for _, _, body in undisturbed)
    assert bodies.count(f'"{LONG}1"'.encode()) == bodies.count(f'"{LONG}2"'.encode()) == 3
    assert all(text.encode() in bodies for text in FREE_TEXT)


# --- what a host gets ---------------------------------------------------------------------------------------


@pytest.fixture(name="exported")
def _exported() -> Iterator[InMemorySpanExporter]:
    """What a trace vendor gets who is attached to the global provider."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with host_provider(provider):
        yield exporter
    provider.shutdown()


def test_nothing_of_our_events_reaches_the_hosts_exporters(
    exported: InMemorySpanExporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the spans of turns do, without a word of what users wrote."""
    live(tmp_path, monkeypatch)
    spans = exported.get_finished_spans()
    assert [span.name for span in spans] == ["invoke_agent support_bot"] * 2
    shown = "".join(span.to_json() for span in spans)
    assert not [text for text in FREE_TEXT if text in shown]
    assert semconv.EVENT not in shown


def test_a_turn_is_a_span_of_the_host(exported: InMemorySpanExporter, tmp_path: Path) -> None:
    """It is current in its block, linked to the conversation, and says how the turn failed."""
    with (
        ScriptedServer(respond(tracker_answer)) as server,
        AgentPerformanceTracker(server.url, state_dir=tmp_path) as tracker,
        tracker.conversation("bot") as conversation,
        pytest.raises(OSError, match="no route"),
        conversation.turn() as turn,
        trace.get_tracer("framework").start_as_current_span("inside"),
    ):
        raise OSError("no route")
    inside, span = exported.get_finished_spans()
    assert inside.parent == span.context
    assert span.name == "invoke_agent bot"
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes[semconv.TURN_ID] == turn.turn_id
    assert span.attributes[semconv.SESSION_ID] == conversation.session_id
    assert span.context is not None
    assert turn.turn_id == f"{span.context.trace_id:032x}-{span.context.span_id:016x}"
    (link,) = span.links
    assert link.context.trace_id == session_id.trace_id(conversation.session_id)


def test_a_mistake_of_the_host_is_told_and_raises_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn whose span cannot be made is a turn all the same; the log says once why it is not seen."""
    monkeypatch.setattr(conversation_module._logger, "said", set())
    provider = TracerProvider()
    provider.add_span_processor(Raising("on_start"))
    with (
        host_provider(provider),
        ScriptedServer(respond(tracker_answer)) as server,
        AgentPerformanceTracker(server.url, state_dir=tmp_path) as tracker,
    ):
        for _ in range(2):
            with tracker.turn("thread-7", agent_id="bot") as turn:
                assert turn.turn_id
        assert tracker.flush(5.0)
        assert [r.path for r in server.requests].count("/conversations/turn") == 2
    assert [r.levelno for r in caplog.records if "mistake of the host" in r.getMessage()] == [logging.WARNING]
