"""`Intake`: event spans that other processes made, kept here before their sender is told so.

In an application the map of sessions has changed by the time an event span is made. A received one comes alone, again,
or without what came before it: it changes the map as the event of a dead process does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import orjson
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from otel_agent_tracker import metadata as json_copy
from otel_agent_tracker import semconv
from otel_agent_tracker.entry import Entry
from otel_agent_tracker.exporter import TrackerSpanExporter
from otel_agent_tracker.hot_lock import HotLock
from otel_agent_tracker.redaction import Redactor
from otel_agent_tracker.replay import replay
from otel_agent_tracker.sdk_private import attributes_of
from otel_agent_tracker.sessions import SessionMap

__all__ = ["Intake"]

MOST_KNOWN = 100_000  # event ids; senders repeat a request soon, or when this process is another one


class Intake:
    """Takes event spans in, each event id once; safe from any thread.

    `keep` says whether an entry is kept durably; one that is not leaves no trace here.
    """

    def __init__(self, sessions: SessionMap, keep: Callable[[Entry], bool], redactor: Redactor) -> None:
        self._sessions = sessions
        self._keep = keep
        self._redactor = redactor
        self._exporter = TrackerSpanExporter(self._accept)
        self._known: OrderedDict[str, None] = OrderedDict()
        self._lock = HotLock()

    def take_in(self, span: ReadableSpan) -> bool:
        """Whether the event is kept, now or since before.

        Raises ValueError or TypeError for one that no tracker takes.
        """
        return self._exporter.export((self._redacted(span),)) is SpanExportResult.SUCCESS

    def _accept(self, entry: Entry) -> bool:
        if entry.event_id in self._known:
            return True
        if not self._keep(entry):
            return False
        self._note(entry.event_id)
        replay(entry, self._sessions)
        if entry.session_id is not None:
            self._sessions.touch(entry.session_id)
        return True

    def _note(self, event_id: str) -> None:
        with self._lock:
            self._known[event_id] = None
            if len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)

    def _redacted(self, span: ReadableSpan) -> ReadableSpan:
        """The span with its texts bounded and without secrets, as our library would have made them."""
        attributes = attributes_of(span)
        changed = {
            key: self._json_text(text) if key in _JSON else self._redactor.text(json_copy.copy_text(text))
            for key in _TEXTS
            if (text := attributes.get(key)) is not None
        }
        if all(attributes[key] == text for key, text in changed.items()):
            return span
        return ReadableSpan(
            name=span.name,
            context=span.context,
            resource=span.resource,
            attributes={**attributes, **changed},
            status=span.status,
            start_time=span.start_time,
            end_time=span.end_time,
        )

    def _json_text(self, text: str) -> str:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            value = {"text": text}
        return self._redactor.json_text(json_copy.to_json_text(value))


_JSON = frozenset((semconv.METADATA, semconv.AGENT_DETAILS))
_TEXTS = (
    semconv.METADATA,
    semconv.AGENT_DETAILS,
    semconv.AGENT_ACTION,
    semconv.AGENT_SDK_VERSION,
    semconv.ERROR_MESSAGE,
    semconv.ERROR_TYPE,
    semconv.FEEDBACK,
    semconv.FEEDBACK_NAME,
    semconv.FEEDBACK_TEXT,
)
