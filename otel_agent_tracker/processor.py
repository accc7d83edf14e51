"""`SessionSpanProcessor`: event spans keep the map of live sessions."""

from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from otel_agent_tracker import semconv
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
        attributes = span.attributes or {}
        session_id = attributes.get(semconv.SESSION_ID)
        if not isinstance(session_id, str):
            return
        match attributes.get(semconv.EVENT):
            case Event.CONVERSATION_START:
                self._open(session_id, span)
            case Event.CONVERSATION_TURN:
                self._turn(session_id, span)
            case Event.CONVERSATION:
                end_us = (span.end_time or 0) // 1000
                self._sessions.take(session_id, started_by_us=end_us, ended_at_us=end_us)
            case _:
                self._sessions.touch(session_id)

    def _open(self, session_id: str, span: ReadableSpan) -> None:
        attributes = span.attributes or {}
        user_id = attributes.get(semconv.USER_ID)
        self._sessions.open(
            session_id,
            str(attributes.get(semconv.GEN_AI_AGENT_ID, "")),
            user_id=user_id if isinstance(user_id, str) else None,
            origin=Origin(str(attributes.get(semconv.ORIGIN, Origin.CALL))),
            start_us=(span.start_time or 0) // 1000,
        )

    def _turn(self, session_id: str, span: ReadableSpan) -> None:
        attributes = span.attributes or {}
        start_us, end_us = (span.start_time or 0) // 1000, (span.end_time or 0) // 1000
        status = TurnStatus(str(attributes.get(semconv.TURN_STATUS, TurnStatus.OK)))
        self._sessions.turn(
            session_id,
            turn_id=str(attributes.get(semconv.TURN_ID, "")),
            seconds=max(0, end_us - start_us) / 1e6,
            status=status,
            end_us=end_us,
            error_type=_text(attributes.get(semconv.ERROR_TYPE)),
            error_message=_text(attributes.get(semconv.ERROR_MESSAGE)),
            input_tokens=_int(attributes.get(semconv.GEN_AI_INPUT_TOKENS)),
            output_tokens=_int(attributes.get(semconv.GEN_AI_OUTPUT_TOKENS)),
        )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _int(value: object) -> int | None:
    return value if isinstance(value, int) else None
