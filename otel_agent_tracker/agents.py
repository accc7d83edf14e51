"""`AgentSpanProcessor`: on the host's provider it stamps session ids and recognises turns in other people's spans."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from opentelemetry import baggage, trace
from opentelemetry.context import Context, get_current
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import StatusCode

from otel_agent_tracker import recognition, semconv
from otel_agent_tracker.assembly import MAX_SCOPES, Assembly, Ended, Summary
from otel_agent_tracker.evaluation import Evaluation
from otel_agent_tracker.log import Log
from otel_agent_tracker.recognition import NO_IDS, Ids, Reader, Seen, SpanClass
from otel_agent_tracker.scope import current_scope
from otel_agent_tracker.sdk_private import attributes_of
from otel_agent_tracker.semconv import TurnStatus
from otel_agent_tracker.turns import Observed, observed_in

__all__ = [
    "AgentSpanProcessor",
    "Reporter",
    "add_toucher",
    "current_reporter",
    "is_seen_in_process",
    "release",
    "remove_toucher",
    "report_to",
    "seen_at_end",
    "stop_reporting",
    "tick",
    "watch",
]

Touch = Callable[[str], object]

_logger = Log(__name__)


class Reporter(Protocol):
    """Who is told of the turns that other people's spans show."""

    reader: Reader
    reads_baggage: bool

    def monotonic(self) -> float:
        """The clock by which turns wait."""

    def expect_tick(self) -> None:
        """A turn waits: call `tick` once in a while."""

    def report(self, turn: Summary) -> None:
        """A turn has ended."""

    def evaluate(self, evaluation: Evaluation) -> None:
        """An evaluator has spoken."""


class AgentSpanProcessor(SpanProcessor):
    """Stamps `session.id` on spans that start inside our blocks, and recognises what spans show of agents.

    What is below a turn of ours is told to that turn; other turns go to whoever asked for them by `report_to`. A
    span that ends with a session's id touches that session. It starts no span of the host's, raises never, keeps
    no content, and costs a span that is no agent's a few look-ups.
    """

    def __init__(self) -> None:
        self._assembly = Assembly(_monotonic)
        self._open_spans = self._assembly.open_spans
        with _lock:
            _processors.add(self)

    def after_fork_in_child(self) -> None:
        """Make the lock new: a thread of the parent may have held it."""
        self._assembly.after_fork_in_child()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Stamp the span, and remember it if it may be an agent's."""
        values = get_current() if parent_context is None else parent_context
        if _reporter is None and not values:
            return
        try:
            self._start(span, values)
        except Exception as error:  # noqa: BLE001 - called at the start of any span of the host, which must not notice
            _logger.warn_once("a span could not be read: %r", error)

    def on_end(self, span: ReadableSpan) -> None:
        """Touch the span's session, and tell whom it concerns what the span shows."""
        try:
            attributes = attributes_of(span)
            if _touchers and (sessions := _reader().carried(attributes)):
                _touch_sessions(sessions)
            if (context := span.context) is not None and context.span_id in self._open_spans:
                self._end(span, attributes)
        except Exception as error:  # noqa: BLE001 - called at the end of any span of the host, which must not notice
            _logger.warn_once("a span could not be read: %r", error)

    def tick(self) -> None:
        """Report the turns that have waited long enough."""
        self._tell(self._assembly.tick())

    def release(self) -> None:
        """Report the turns that wait: nothing more will end."""
        self._tell(self._assembly.release())

    def _start(self, span: Span, values: Context) -> None:
        has_more = len(values) > 1  # than the current span: `scope.py` puts two values into it
        scope = current_scope(values) if has_more else None
        attributes = attributes_of(span)
        if scope is not None and semconv.SESSION_ID not in attributes:
            span.set_attribute(semconv.SESSION_ID, scope.session_id)
        observed = observed_in(values) if has_more else None
        if _reporter is None and observed is None:
            return
        parent = span.parent
        instrumentation = span.instrumentation_scope
        library = instrumentation.name if instrumentation else ""
        if _is_foreign(library) or recognition.is_foreign(attributes):
            if parent is not None:
                self._assembly.start_foreign(span.get_span_context().span_id, parent.span_id)
            return
        turns = self._assembly.start(
            span.get_span_context().span_id,
            None if parent is None else parent.span_id,
            start_ns=span.start_time or 0,
            name=span.name,
            scope=library,
            span_class=recognition.classify(span.name, attributes)
            if attributes and observed is None
            else SpanClass.OTHER,
            said=NO_IDS if scope is None else Ids(scope.session_id, scope.user_id, scope.agent_id),
            ids=_ids_at_start(attributes, values) if observed is None else NO_IDS,
            owner=observed,
        )
        if turns:
            self._tell(turns)

    def _end(self, span: ReadableSpan, attributes: Mapping[str, Any]) -> None:
        context, reader = span.context, _reader()
        span_class = reader.plain_class(span.name, attributes)
        owner = None if span_class is SpanClass.OTHER else self._assembly.owner(context.span_id)
        if isinstance(owner, Observed):
            owner.add_piece((context.span_id, recognition.response_id(attributes)))
        if span_class is SpanClass.OTHER:
            turns = self._assembly.end(context.span_id, reader.other(attributes), _NOWHERE)
        elif (
            span_class is SpanClass.LLM
            and span.status.status_code is not StatusCode.ERROR
            and owner is not None
        ):
            turns = self._assembly.end(
                context.span_id, Seen(SpanClass.LLM, tokens=recognition.tokens(attributes)), _NOWHERE
            )
        else:
            turns = self._assembly.end(context.span_id, seen_at_end(reader, span, attributes), _ended(span))
        if turns:
            self._tell(turns)
        if self._assembly.is_holding and _reporter is not None:
            self._tell(self._assembly.tick())
            _reporter.expect_tick()

    def _tell(self, turns: list[Summary]) -> None:
        for turn in turns:
            if isinstance(turn.owner, Observed):
                _tell_owner(turn.owner, turn)
            elif _reporter is not None:
                _reporter.report(turn)


def report_to(reporter: Reporter) -> None:
    """Tell `reporter`, and nobody else from now on, of the turns that spans of watched providers show."""
    global _reporter
    _reporter = reporter


def stop_reporting(reporter: Reporter) -> None:
    """Tell `reporter` no more; nothing happens if another one has taken its place."""
    global _reporter
    if _reporter is reporter:
        _reporter = None


def current_reporter() -> Reporter | None:
    """Who is told of turns, if anybody is."""
    return _reporter


def tick(reporter: Reporter) -> None:
    """Report the turns that have waited long enough, if it is `reporter` who is told."""
    if _reporter is reporter:
        _for_each(AgentSpanProcessor.tick)


def release(reporter: Reporter) -> None:
    """Report the turns that still wait, if it is `reporter` who is told: nothing more will end."""
    if _reporter is reporter:
        _for_each(AgentSpanProcessor.release)


def _for_each(do: Callable[[AgentSpanProcessor], None]) -> None:
    with _lock:
        processors = tuple(_processors)
    for processor in processors:
        try:
            do(processor)
        except Exception as error:  # noqa: BLE001 - the worker, or the end of the process, must go on
            _logger.warn_once("turns that waited could not be told: %r", error)


def watch(provider: trace.TracerProvider | None = None) -> None:
    """Put one `AgentSpanProcessor` on `provider` (the global one, if None) if it is the SDK's; idempotent.

    A provider that raises is left alone, and the log says so once.
    """
    try:
        _watch(trace.get_tracer_provider() if provider is None else provider)
    except Exception as error:  # noqa: BLE001 - the host's own code runs here, and its mistakes stay there
        _logger.warn_once("the host's tracer provider takes no span processor: %r", error)


def is_seen_in_process() -> bool:
    """Whether the turns that spans of the global provider show are reported while these end."""
    return _reporter is not None and bool(getattr(trace.get_tracer_provider(), _MARK, False))


def seen_at_end(reader: Reader, span: ReadableSpan, attributes: Mapping[str, Any]) -> Seen:
    """All that is kept of a span that has ended and has these attributes."""
    return reader.read(
        span.name,
        attributes,
        failed=span.status.status_code is StatusCode.ERROR,
        description=span.status.description,
        events=[(event.name, event.attributes or {}) for event in span.events] if span.events else (),
    )


def add_toucher(touch: Touch) -> None:
    """Call `touch` with the id of each session that a span of a watched provider carries at its end."""
    global _touchers
    with _lock:
        if touch not in _touchers:
            _touchers = (*_touchers, touch)


def remove_toucher(touch: Touch) -> None:
    """Call `touch` no more; nothing happens if it was not added."""
    global _touchers
    with _lock:
        _touchers = tuple(each for each in _touchers if each != touch)


def _watch(provider: trace.TracerProvider) -> None:
    add = getattr(provider, "add_span_processor", None)
    if add is None or getattr(provider, _MARK, False):
        return
    with _lock:
        if getattr(provider, _MARK, False):
            return
        setattr(provider, _MARK, True)  # first: whoever interrupts us here must not add a second one
        try:
            add(AgentSpanProcessor())
        except BaseException:
            setattr(provider, _MARK, False)
            raise


def _touch_sessions(sessions: set[str]) -> None:
    try:
        for session in sessions:
            for touch in _touchers:
                touch(session)
    except Exception as error:  # noqa: BLE001 - the rest of the span is worth reading all the same
        _logger.warn_once("the session of a span could not be touched: %r", error)


def _ended(span: ReadableSpan) -> Ended:
    service = span.resource.attributes.get(semconv.SERVICE_NAME)
    return Ended(
        span.context.trace_id,
        span.start_time or 0,
        span.end_time or 0,
        service if isinstance(service, str) else None,
        span.instrumentation_scope.name if span.instrumentation_scope else "",
    )


def _tell_owner(owner: Observed, below: Summary) -> None:
    """Tokens of a model call, or the failure of an agent directly below the turn."""
    if below.span_class is SpanClass.LLM:
        owner.add_tokens(*below.tokens)
    elif below.outcome is not None and below.outcome.status is TurnStatus.FAILED:
        owner.fail(below.outcome.error_type, below.outcome.error_message)


def _ids_at_start(attributes: Mapping[str, Any], values: Context) -> Ids:
    """What the span shows at its start, else what libraries keep in its Context, else in its baggage."""
    reader = _reader()
    ids = reader.ids(attributes) if attributes else NO_IDS
    if ids.conversation is not None or not values:
        return ids
    found = reader.ids_in_context(values)
    if found.conversation is None and _reporter is not None and _reporter.reads_baggage:
        found = reader.ids_in_baggage(baggage.get_all(values))
    return Ids(found.conversation, ids.user or found.user)


def _is_foreign(library: str) -> bool:
    known = _foreign.get(library)
    if known is None:
        known = recognition.is_foreign_scope(library)
        if len(_foreign) < MAX_SCOPES:
            _foreign[library] = known
    return known


def _reader() -> Reader:
    return _READER if _reporter is None else _reporter.reader


def _monotonic() -> float:
    return time.monotonic() if _reporter is None else _reporter.monotonic()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    for processor in tuple(_processors):
        processor.after_fork_in_child()


_MARK = "_otel_agent_tracker_watched"
_READER = Reader()
_NOWHERE = Ended(0, 0, 0)  # of a span whose times nobody looks at
_lock = threading.RLock()
_processors: weakref.WeakSet[AgentSpanProcessor] = weakref.WeakSet()
_touchers: tuple[Touch, ...] = ()
_foreign: dict[str, bool] = {}
_reporter: Reporter | None = None

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
