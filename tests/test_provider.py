"""Rules of `provider`: event spans that nothing of the host can change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from threading import Barrier, Thread
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk import trace as sdk_trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from otel_agent_tracker import provider as module
from otel_agent_tracker import sdk_private
from otel_agent_tracker.provider import EventProvider
from otel_agent_tracker.semconv import VERSION
from tests.event_spans import RESOURCE, Kept
from tests.hosts import host_provider
from tests.interrupting import finishes, interrupted_at

FILES = {module.__file__, sdk_trace.__file__}
"""What runs while a span is made."""


@pytest.fixture(name="kept")
def _kept() -> Kept:
    return Kept()


def emit(provider: EventProvider, **options: Any) -> None:
    """An event span of which nothing matters but `options`."""
    provider.emit(
        "event", options.pop("attributes", {}), **{"trace_id": 1, "start_us": 2, "end_us": 3, **options}
    )


def test_a_span_has_the_ids_and_times_it_is_asked_for(kept: Kept) -> None:
    """Trace, span, parent; microseconds become nanoseconds; scope is ours."""
    emit(
        EventProvider([kept], resource=RESOURCE),
        trace_id=5,
        span_id=6,
        parent_span_id=7,
        start_us=8,
        end_us=9,
    )
    (span,) = kept.spans
    assert span.context is not None
    assert span.parent is not None
    assert (span.context.trace_id, span.context.span_id, span.parent.span_id) == (5, 6, 7)
    assert (span.start_time, span.end_time) == (8000, 9000)
    assert span.instrumentation_scope is not None
    assert (span.instrumentation_scope.name, span.instrumentation_scope.version) == (
        "otel_agent_tracker",
        VERSION,
    )


def test_span_ids_are_minted_where_none_is_given(kept: Kept) -> None:
    """No two alike."""
    provider = EventProvider([kept])
    for _ in range(100):
        emit(provider)
    assert len({span.context.span_id for span in kept.spans if span.context}) == 100


def test_an_error_is_a_status(kept: Kept) -> None:
    """With its description, empty too; without one the status is unset."""
    provider = EventProvider([kept])
    for error in ("no route", "", None):
        emit(provider, error=error)
    assert [span.status.status_code for span in kept.spans] == [
        StatusCode.ERROR,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]
    assert kept.spans[0].status.description == "no route"


def test_attributes_are_neither_cut_nor_counted(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says of limits."""
    for variable in ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT"):
        monkeypatch.setenv(variable, "1")
    for variable in ("OTEL_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"):
        monkeypatch.setenv(variable, "1")
    attributes = {f"key {number}": "x" * 1000 for number in range(500)}
    emit(EventProvider([kept]), attributes=attributes)
    assert kept.spans[0].attributes == attributes


@pytest.mark.parametrize("has_private_name", [True, False])
def test_attributes_are_set_with_and_without_the_sdks_private_name(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, has_private_name: bool
) -> None:
    """Each span has its own, and nobody can change them once it has ended."""
    if not has_private_name:
        monkeypatch.setattr(sdk_private, "_dict_behind", lambda span: None)
    provider = EventProvider([kept], resource=RESOURCE)
    given: dict[str, Any] = {"text": "x" * 5000, "number": 7, "many": ("a", "b")}
    emit(provider, attributes=given)
    emit(provider, attributes={"other": True})
    assert [dict(span.attributes or {}) for span in kept.spans] == [given, {"other": True}]
    with pytest.raises(TypeError):
        kept.spans[0].attributes["text"] = ""  # type: ignore[index]  # on purpose


def test_processors_run_in_order_on_the_calling_thread(kept: Kept) -> None:
    """When `emit` returns, each has had the span."""
    second = Kept()
    emit(EventProvider([kept, second]))
    assert len(kept.spans) == len(second.spans) == 1


def test_the_ambient_context_does_not_reach_a_span(kept: Kept) -> None:
    """Neither baggage nor the current span's sampling; the span itself is a link."""
    provider = EventProvider([kept])
    host = TracerProvider(sampler=ALWAYS_OFF)
    token = context.attach(baggage.set_baggage("session.id", "other"))
    with host.get_tracer("host").start_as_current_span("unsampled") as ambient:
        emit(provider)
    context.detach(token)
    (span,) = kept.spans
    assert span.parent is None
    assert span.attributes == {}
    assert [link.context for link in span.links] == [ambient.get_span_context()]
    host.shutdown()


# --- the resource -------------------------------------------------------------------------------------------


@pytest.fixture(name="host")
def _host() -> Iterator[TracerProvider]:
    provider = TracerProvider(resource=Resource({"service.name": "host"}), span_limits=SpanLimits(1, 1, 1))
    yield provider
    provider.shutdown()


def test_the_resource_is_the_hosts_at_the_first_event(kept: Kept, host: TracerProvider) -> None:
    """A provider that is set after ours was made, but before the first event, is in time."""
    provider = EventProvider([kept])
    with host_provider(host):
        emit(provider)
    emit(provider)
    assert [span.resource.attributes["service.name"] for span in kept.spans] == ["host", "host"]


@pytest.mark.parametrize("provider", [trace.NoOpTracerProvider(), trace.ProxyTracerProvider()])
def test_without_the_sdks_provider_the_resource_is_the_environments(
    kept: Kept, provider: trace.TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the SDK itself would make it."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from-environment")
    with host_provider(provider):
        emit(EventProvider([kept]))
    assert kept.spans[0].resource.attributes["service.name"] == "from-environment"


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError, MemoryError, AssertionError])
def test_a_broken_resource_detector_costs_the_resource_and_no_event(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """The environment still names the service."""

    def broken() -> Resource:
        raise error("a detector")

    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=named")
    monkeypatch.setattr(Resource, "create", broken)
    with host_provider(trace.NoOpTracerProvider()):
        emit(EventProvider([kept]))
    assert kept.spans[0].resource.attributes["service.name"] == "named"


# --- life ---------------------------------------------------------------------------------------------------


def test_threads_do_not_mix_ids_up(kept: Kept) -> None:
    """Each thread's spans have the ids that it asked for, the first span of all too."""
    provider, ready = EventProvider([kept]), Barrier(8)

    def run(number: int) -> None:
        ready.wait()
        for span_id in range(1, 200):
            emit(provider, trace_id=number, span_id=span_id, attributes={"ids": f"{number} {span_id}"})

    threads = [Thread(target=run, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept.spans) == 8 * 199
    for span in kept.spans:
        assert span.context is not None
        assert span.attributes == {"ids": f"{span.context.trace_id} {span.context.span_id}"}


class Interrupted(BaseException):
    """What a signal handler raises, as that of Ctrl-C does."""


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_whatever_interrupts_a_span_both_have_their_own_ids(kept: Kept, raises: bool) -> None:
    """A signal handler or a finaliser that tracks, at whichever point, the making of the first span's tracer too."""
    numbers = count(1)

    def emit_numbered(provider: EventProvider) -> None:
        number = next(numbers)
        emit(provider, trace_id=number, span_id=number, attributes={"number": number})

    def handle(provider: EventProvider) -> None:
        emit_numbered(provider)
        if raises:
            raise Interrupted

    def interrupt_everywhere() -> None:
        for point in count():
            provider = EventProvider([kept], resource=RESOURCE)
            interruption = interrupted_at(point, FILES, do=partial(handle, provider))
            with suppress(Interrupted), interruption as was_reached:
                emit_numbered(provider)
            if not was_reached():
                break

    assert finishes(interrupt_everywhere)
    assert len(kept.spans) > 100
    for span in kept.spans:
        assert span.context is not None
        assert span.attributes == {"number": span.context.span_id}
        assert span.context.trace_id == span.context.span_id


def test_shutdown_reaches_every_processor() -> None:
    """Also where no event was ever made."""

    class Counted(Kept):
        stopped = 0

        def shutdown(self) -> None:
            self.stopped += 1

    processors = [Counted(), Counted()]
    EventProvider(processors).shutdown()
    assert [processor.stopped for processor in processors] == [1, 1]


def test_it_works_where_opentelemetry_is_disabled(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SDK_DISABLED silences exporters; sessions are kept all the same."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    emit(EventProvider([kept]))
    assert len(kept.spans) == 1


def test_what_fails_in_the_sdk_never_reaches_the_host(caplog: pytest.LogCaptureFixture) -> None:
    """It is told once a minute, and counted for each event."""

    class Broken(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            raise MemoryError

    failed: list[str] = []
    provider = EventProvider([Broken()], failed=failed.append)
    for _ in range(3):
        provider.emit("conversation", {}, trace_id=1, start_us=1, end_us=2)
    assert failed == ["conversation"] * 3
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [MemoryError]
