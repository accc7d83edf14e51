"""Sampling in the application hides no agent from us, and changes nothing for its exporters."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

import otel_agent_tracker
from otel_agent_tracker import auto, sdk_private
from otel_agent_tracker.sampling import keep_agents_visible
from otel_agent_tracker.testing import RecordedConversations, recording

WEB = "opentelemetry.instrumentation.asgi"
TASK = "opentelemetry.instrumentation.asyncio"
TURNS = 10
UNSAMPLED = trace.set_span_in_context(
    NonRecordingSpan(SpanContext(1 << 100, 7, is_remote=True, trace_flags=TraceFlags(0))), Context()
)


@pytest.fixture(name="recorded")
def _recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedConversations]:
    monkeypatch.setattr(auto, "_installed", None)
    with recording() as recorded:
        yield recorded
        if auto._installed is not None:
            auto._installed.close()


class Spread(IdGenerator):
    """Ids in the same order each time, spread so that a ratio takes its share of traces."""

    def __init__(self) -> None:
        self._number = 0

    def generate_span_id(self) -> int:
        self._number += 1
        return self._number

    def generate_trace_id(self) -> int:
        self._number += 1
        return (self._number << 64) | (self._number * 0x9E3779B97F4A7C15 % (1 << 64))


def host(sampler: Sampler) -> tuple[TracerProvider, InMemorySpanExporter]:
    """An application that exports what its sampler takes."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler, id_generator=Spread(), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def serve(provider: TracerProvider, above: Context | None = None) -> None:
    """Requests, each with an agent that calls another one in a task, and a model."""
    web, agents, tasks = (provider.get_tracer(name) for name in (WEB, "some-agents", TASK))
    for number in range(TURNS):
        with (
            web.start_as_current_span("POST /chat", above, attributes={"http.request.method": "POST"}),
            agents.start_as_current_span("invoke_agent bot") as span,
        ):
            span.set_attribute("gen_ai.operation.name", "invoke_agent")
            span.set_attribute("gen_ai.conversation.id", f"thread-{number}")
            with (
                tasks.start_as_current_span("asyncio coro-run"),
                agents.start_as_current_span("invoke_agent helper") as helper,
            ):
                helper.set_attribute("gen_ai.operation.name", "invoke_agent")
            with agents.start_as_current_span("chat") as chat:
                chat.set_attribute("gen_ai.operation.name", "chat")
                chat.set_attribute("gen_ai.usage.input_tokens", 5)


def exported(exporter: InMemorySpanExporter) -> list[str]:
    """All that an exporter is given, without the times."""
    return sorted(
        f"{span.name} {span.context} {span.parent} {dict(span.attributes or {})}"
        for span in exporter.get_finished_spans()
    )


SAMPLERS = {
    "ratio 1": (ParentBased(TraceIdRatioBased(1.0)), None, 50),
    "ratio 0.1": (ParentBased(TraceIdRatioBased(0.1)), None, None),
    "ratio 0": (ParentBased(TraceIdRatioBased(0.0)), None, 0),
    "an unsampled remote parent": (ParentBased(ALWAYS_ON), UNSAMPLED, 0),
}


@pytest.mark.parametrize(("sampler", "above", "_count"), SAMPLERS.values(), ids=SAMPLERS)
def test_conversations_are_the_same_under_any_sampler(
    sampler: Sampler, above: Context | None, _count: int | None, recorded: RecordedConversations
) -> None:
    """One turn a request with all its tokens, however few traces the application keeps."""
    provider, _exporter = host(sampler)
    otel_agent_tracker.install(provider, base_url="http://tracker")
    serve(provider, above)
    recorded.settle()
    turns = [body for path, body in recorded.requests if path == "/conversations/turn"]
    told = sorted((turn["session_id"], turn["agent_id"], turn["input_tokens"]) for turn in turns)
    assert told == [(f"thread-{number}", "bot", 5) for number in range(TURNS)]


@pytest.mark.parametrize(("sampler", "above", "count"), SAMPLERS.values(), ids=SAMPLERS)
def test_exporters_of_the_host_get_what_they_got_without_us(
    sampler: Sampler, above: Context | None, count: int | None, recorded: RecordedConversations
) -> None:
    """Nothing more, nothing less, the same ids, and flags that tell other services the same."""
    alone, alone_exported = host(sampler)
    serve(alone, above)
    watched, watched_exported = host(sampler)
    otel_agent_tracker.install(watched, base_url="http://tracker")
    serve(watched, above)
    assert exported(watched_exported) == exported(alone_exported)
    found = len(exported(alone_exported))
    assert found == count if count is not None else 0 < found < 50


def test_spans_that_show_no_agents_are_not_recorded(recorded: RecordedConversations) -> None:
    """Whoever samples requests and queries away to spare the cost is still spared it."""
    provider, _ = host(ParentBased(TraceIdRatioBased(0.0)))
    otel_agent_tracker.install(provider, base_url="http://tracker")
    with provider.get_tracer(WEB).start_as_current_span("POST /chat") as web:
        assert not web.is_recording()
        with provider.get_tracer("some-agents").start_as_current_span("agent") as agent:
            assert agent.is_recording()


def test_tracers_that_are_there_already_are_taken_too() -> None:
    """Libraries make their tracer when they are imported, and keep it; another provider's are left alone."""
    provider, _ = host(ParentBased(TraceIdRatioBased(0.0)))
    other, _ = host(ParentBased(TraceIdRatioBased(0.0)))
    tracer, others = provider.get_tracer("some-agents"), other.get_tracer("some-agents")
    keep_agents_visible(provider)
    keep_agents_visible(provider)
    assert tracer.start_span("agent").is_recording()
    assert not others.start_span("agent").is_recording()


def test_a_provider_goes_when_its_host_lets_go_of_it() -> None:
    """At once, and not when garbage is collected."""
    provider = TracerProvider(shutdown_on_exit=False)
    keep_agents_visible(provider)
    gone = weakref.ref(provider)
    del provider
    assert gone() is None


def test_tracers_are_found_where_the_sdk_keeps_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older releases have none, and a later one may name it otherwise."""
    provider, _ = host(ParentBased(TraceIdRatioBased(0.0)))
    tracer = provider.get_tracer("some-agents")
    monkeypatch.delattr(provider, "_tracers", raising=False)
    assert list(sdk_private.tracers_of(provider)) == [tracer]


def test_a_provider_that_cannot_be_changed_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """It works on, and the log says what is not seen."""
    provider = _Fixed(sampler=ParentBased(TraceIdRatioBased(0.0)), shutdown_on_exit=False)
    provider.is_fixed = True
    keep_agents_visible(provider)
    assert not provider.get_tracer("some-agents").start_span("agent").is_recording()
    assert "stay unseen" in caplog.text


class _Fixed(TracerProvider):
    is_fixed = False

    def __setattr__(self, name: str, value: object) -> None:
        if self.is_fixed:
            raise AttributeError(name)
        super().__setattr__(name, value)


def test_where_nothing_is_sent_the_sampler_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a destination `install` changes nothing."""
    monkeypatch.setattr(auto, "_installed", None)
    provider, _ = host(ParentBased(TraceIdRatioBased(0.0)))
    otel_agent_tracker.install(provider).close()
    assert not provider.get_tracer("some-agents").start_span("agent").is_recording()


class HandingOn(trace.TracerProvider):
    """A provider that is none of the SDK's and hands everything on to one, as logfire's does."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self.add_span_processor = provider.add_span_processor

    def get_tracer(self, *arguments: Any, **options: Any) -> trace.Tracer:
        return self.provider.get_tracer(*arguments, **options)


def test_a_provider_that_hands_on_to_the_sdks_is_as_good(recorded: RecordedConversations) -> None:
    """Its agents are seen whatever the sampler behind it decides, those of tracers made before included."""
    provider, exporter = host(TraceIdRatioBased(0.0))
    outer = HandingOn(provider)
    early = outer.get_tracer("some-agents")
    otel_agent_tracker.install(outer)
    for tracer in (early, outer.get_tracer("other-agents")):
        attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.conversation.id": "thread-1"}
        tracer.start_span("invoke_agent bot", attributes=attributes).end()
    (conversation,) = recorded.conversations
    assert len(conversation.turns) == 2
    assert exporter.get_finished_spans() == ()
