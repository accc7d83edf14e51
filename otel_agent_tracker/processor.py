"""`SessionSpanProcessor`: event spans keep the map of live sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from otel_agent_tracker import semconv
from otel_agent_tracker.sdk_private import attributes_of
from otel_agent_tracker.semconv import Event, Origin, TurnStatus
from otel_agent_tracker.sessions import SessionMap

__all__ = ["SessionSpanProcessor"]


class SessionSpanProcessor(SpanProcessor):
    """Opens a session with its start, counts its turns, lets go with its end; any other span touches it.

    It holds no thread and nothing of its own: after `shutdown` it goes on to keep the map.
    """

    def __init__(self, sessions: SessionMap) -> None:
        self._sessions = sessions

    def on_end(self, span: ReadableSpan) -> None:
        """Change the map as the event span `span` tells; spans that carry no session are passed over."""
        attributes = attributes_of(span)
        session_id = attributes.get(semconv.SESSION_ID)
        if not isinstance(session_id, str):
            return
        match attributes.get(semconv.EVENT):
            case Event.CONVERSATION_START:
                self._open(session_id, span, attributes)
            case Event.CONVERSATION:
                self._close(session_id, span)
            case Event.CONVERSATION_TURN:
                self._turn(session_id, span, attributes)
            case _:
                self._sessions.touch(session_id)

    def _open(self, session_id: str, span: ReadableSpan, attributes: Mapping[str, Any]) -> None:
        self._sessions.open(
            session_id,
            attributes.get(semconv.GEN_AI_AGENT_ID) or "",
            user_id=attributes.get(semconv.USER_ID),
            origin=_ORIGINS.get(attributes.get(semconv.ORIGIN, ""), Origin.CALL),
            start_us=(span.start_time or 0) // 1000,
        )

    def _close(self, session_id: str, span: ReadableSpan) -> None:
        """Whoever ended the session here has taken it out already; an end from elsewhere does it now."""
        if session_id in self._sessions:
            end_us = (span.end_time or 0) // 1000
            self._sessions.take(session_id, started_by_us=end_us, ended_at_us=end_us)

    def _turn(self, session_id: str, span: ReadableSpan, attributes: Mapping[str, Any]) -> None:
        start_us, end_us = (span.start_time or 0) // 1000, (span.end_time or 0) // 1000
        self._sessions.turn(
            session_id,
            turn_id=attributes.get(semconv.TURN_ID) or "",
            seconds=max(0, end_us - start_us) / 1e6,
            status=TurnStatus(attributes.get(semconv.TURN_STATUS) or TurnStatus.OK),
            end_us=end_us,
            error_type=attributes.get(semconv.ERROR_TYPE),
            error_message=attributes.get(semconv.ERROR_MESSAGE),
            input_tokens=attributes.get(semconv.GEN_AI_INPUT_TOKENS),
            output_tokens=attributes.get(semconv.GEN_AI_OUTPUT_TOKENS),
        )


_ORIGINS = {str(origin): origin for origin in Origin}
