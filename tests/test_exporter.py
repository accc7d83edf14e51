"""Rules of `exporter`: event spans in, journal entries out."""

from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from otel_agent_tracker import semconv
from otel_agent_tracker.entry import Entry
from otel_agent_tracker.exporter import TrackerSpanExporter
from otel_agent_tracker.semconv import Event
from tests.event_spans import foreign_span

SESSION = {semconv.SESSION_ID: "thread-7", semconv.GEN_AI_AGENT_ID: "bot"}


def test_events_are_accepted_in_order_and_others_passed_over() -> None:
    """Each event span becomes one entry."""
    accepted: list[Entry] = []
    exporter = TrackerSpanExporter(accepted.append)
    spans = [
        foreign_span(Event.CONVERSATION_START, SESSION),
        foreign_span(None, SESSION),
        foreign_span(Event.CONVERSATION, {**SESSION, semconv.COPY: True}),
        foreign_span(Event.CONVERSATION, SESSION),
    ]
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert [entry.event for entry in accepted] == [Event.CONVERSATION_START, Event.CONVERSATION]
    assert [entry.otlp for entry in accepted] == [b"", b""]


def test_the_encoded_span_goes_along_if_asked_for() -> None:
    """For an OTLP endpoint as the destination; spans that are no events are not even encoded."""
    accepted: list[Entry] = []
    encoded: list[ReadableSpan] = []

    def encode(span: ReadableSpan) -> bytes:
        encoded.append(span)
        return b"encoded"

    span = foreign_span(Event.CONVERSATION_START, SESSION)
    TrackerSpanExporter(accepted.append, encode_otlp=encode).export([foreign_span(None, SESSION), span])
    assert [entry.otlp for entry in accepted] == [b"encoded"]
    assert encoded == [span]


def test_what_is_not_kept_is_a_failure() -> None:
    """Of all spans together; the others are accepted."""
    accepted: list[Entry] = []

    def accept(entry: Entry) -> bool:
        accepted.append(entry)
        return entry.event is Event.CONVERSATION

    spans = [foreign_span(event, SESSION) for event in (Event.CONVERSATION_START, Event.CONVERSATION)]
    assert TrackerSpanExporter(accept).export(spans) is SpanExportResult.FAILURE
    assert len(accepted) == 2
    assert TrackerSpanExporter(accept).export(spans[1:]) is SpanExportResult.SUCCESS


def test_after_shutdown_spans_are_refused() -> None:
    """What was accepted before is its keeper's."""
    accepted: list[Entry] = []
    exporter = TrackerSpanExporter(accepted.append)
    exporter.shutdown()
    assert exporter.export([foreign_span(Event.CONVERSATION, SESSION)]) is SpanExportResult.FAILURE
    assert accepted == []


def test_a_flush_has_nothing_to_wait_for() -> None:
    """A span is accepted when `export` returns."""
    assert TrackerSpanExporter(lambda entry: None).force_flush(0)
