"""`AgentSpanProcessor`: on the host's provider it stamps session ids and tells open turns what is below them."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import StatusCode

from otel_agent_tracker import recognition, semconv
from otel_agent_tracker.recognition import SpanClass
from otel_agent_tracker.scope import current_scope
from otel_agent_tracker.sdk_private import attributes_of
from otel_agent_tracker.turns import Observed, observed_in

__all__ = ["AgentSpanProcessor", "add_toucher", "remove_toucher", "watch"]

MAX_OPEN_SPANS = 10_000

Touch = Callable[[str], object]

_logger = logging.getLogger(__name__)


class _Below(NamedTuple):
    """An open span below a turn."""

    observed: Observed
    parent_span_id: int | None


class AgentSpanProcessor(SpanProcessor):
    """Stamps `session.id` on spans that start inside our blocks, and reads tokens and failures below turns.

    A span that ends with a session's id touches that session. It starts no span, raises never, and costs a
    span outside our blocks two look-ups in its Context and two among its attributes.
    """

    def __init__(self) -> None:
        self._below: OrderedDict[int, _Below] = OrderedDict()
        self._counted: OrderedDict[int, bool] = OrderedDict()
        self._lock = threading.RLock()  # a signal handler or a finaliser that makes a span may interrupt us
        _processors.add(self)

    def after_fork_in_child(self) -> None:
        """Make the lock new: a thread of the parent may have held it."""
        self._lock = threading.RLock()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Stamp the span, and remember it if a turn is open above it."""
        scope = current_scope(parent_context)
        if scope is not None and semconv.SESSION_ID not in (span.attributes or {}):
            span.set_attribute(semconv.SESSION_ID, scope.session_id)
        observed = observed_in(parent_context)
        if observed is not None:
            parent = span.parent.span_id if span.parent else None
            with self._lock:
                _remember(self._below, span.get_span_context().span_id, _Below(observed, parent))

    def on_end(self, span: ReadableSpan) -> None:
        """Touch the span's session, and tell the turn above the span what the span shows."""
        if _touchers:
            _touch_sessions_of(span)
        if not self._below or span.context is None:
            return
        with self._lock:
            below = self._below.pop(span.context.span_id, None)
        if below is None:
            return
        try:
            self._tell(below, span)
        except Exception:
            _logger.exception("a span could not be read")

    def _tell(self, below: _Below, span: ReadableSpan) -> None:
        attributes = attributes_of(span)
        has_counted = self._has_counted_below(span)
        match recognition.classify(span.name, attributes):
            case SpanClass.LLM if not has_counted:
                counts = recognition.tokens(attributes)
                below.observed.add_tokens(*counts)
                has_counted = counts != (None, None)
            case SpanClass.AGENT if self._is_directly_below(below):
                if span.status.status_code is StatusCode.ERROR:
                    below.observed.fail(attributes.get(semconv.ERROR_TYPE), span.status.description)
        if has_counted:
            self._note_counted(below.parent_span_id)

    def _has_counted_below(self, span: ReadableSpan) -> bool:
        """Whether tokens were counted below the span: a model call around others repeats theirs."""
        with self._lock:
            return span.context is not None and self._counted.pop(span.context.span_id, False)

    def _note_counted(self, parent_span_id: int | None) -> None:
        with self._lock:
            if parent_span_id is not None and parent_span_id in self._below:
                _remember(self._counted, parent_span_id, True)

    def _is_directly_below(self, below: _Below) -> bool:
        """Whether no span that is still open stands between it and the turn's own."""
        with self._lock:
            return below.parent_span_id not in self._below


def watch(provider: trace.TracerProvider | None = None) -> None:
    """Put one `AgentSpanProcessor` on `provider` (the global one, if None) if it is the SDK's; idempotent.

    A provider that raises is left alone, and the log says so once.
    """
    try:
        _watch(trace.get_tracer_provider() if provider is None else provider)
    except Exception as error:  # noqa: BLE001 - the host's own code runs here, and its mistakes stay there
        _tell_once("the host's tracer provider takes no span processor: %r", error)


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


def _touch_sessions_of(span: ReadableSpan) -> None:
    try:
        for session in _sessions_in(attributes_of(span)):
            for touch in _touchers:
                touch(session)
    except Exception as error:  # noqa: BLE001 - called at the end of any span of the host, which must not notice
        _tell_once("the session of a span could not be touched: %r", error)


def _sessions_in(attributes: Mapping[str, Any]) -> set[str]:
    session = attributes.get(semconv.SESSION_ID)
    conversation = attributes.get(semconv.GEN_AI_CONVERSATION_ID)
    if session is None and conversation is None:
        return _NONE
    return {found for found in (session, conversation) if isinstance(found, str)}


def _tell_once(text: str, error: Exception) -> None:
    if text not in _told:
        _told.add(text)
        _logger.warning(text, error, exc_info=error)


def _remember(table: OrderedDict[int, Any], span_id: int, value: Any) -> None:
    table[span_id] = value
    if len(table) > MAX_OPEN_SPANS:
        table.popitem(last=False)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    for processor in _processors:
        processor.after_fork_in_child()


_MARK = "_otel_agent_tracker_watched"
_NONE: set[str] = set()
_lock = threading.RLock()
_processors: weakref.WeakSet[AgentSpanProcessor] = weakref.WeakSet()
_touchers: tuple[Touch, ...] = ()
_told: set[str] = set()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
