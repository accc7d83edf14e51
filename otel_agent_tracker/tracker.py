"""`AgentPerformanceTracker`: conversations of agents, from their start to an outcome; and its asyncio twin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from otel_agent_tracker import arguments, queries
from otel_agent_tracker.conversation import Conversation, Turn
from otel_agent_tracker.events import Ending
from otel_agent_tracker.holder import Asynchronous, Synchronous
from otel_agent_tracker.pipeline import Pipeline
from otel_agent_tracker.semconv import ConversationQuality, FeedbackSource, Outcome

__all__ = ["AgentPerformanceTracker", "AsyncAgentPerformanceTracker", "SessionInfo"]

Json = dict[str, Any]
_HOUR = 3600.0
_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A live session as this process knows it; times are UTC, `turns` is their number so far."""

    session_id: str
    agent_id: str
    user_id: str | None
    start_time: datetime
    last_access_time: datetime
    turns: int


class _Conversations:
    """Everything about conversations that this process answers itself; nothing of it waits for the network."""

    _pipeline: Pipeline

    def conversation(
        self, agent_id: str, user_id: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Conversation:
        """A block that starts a conversation and ends it: failed if an exception leaves it, else completed."""
        return Conversation(
            self._pipeline,
            arguments.identifier("agent_id", agent_id),
            arguments.optional_identifier("user_id", user_id),
            arguments.mapping("metadata", metadata),
        )

    def turn(self, session_id: str, *, agent_id: str | None = None, user_id: str | None = None) -> Turn:
        """A block for one turn of a session, for example in a web handler; opens the session if need be."""
        return Turn(
            self._pipeline,
            arguments.session_identifier("session_id", session_id),
            agent_id=arguments.optional_identifier("agent_id", agent_id),
            user_id=arguments.optional_identifier("user_id", user_id),
        )

    def _start_conversation(
        self, agent_id: str, user_id: str | None, metadata: Mapping[str, Any] | None
    ) -> str:
        return self._pipeline.events.start(
            arguments.identifier("agent_id", agent_id),
            user_id=arguments.optional_identifier("user_id", user_id),
            metadata=arguments.mapping("metadata", metadata),
        )

    def _end_conversation(
        self,
        session_id: str,
        quality_score: ConversationQuality | int | None,
        user_feedback: str | None,
        message_count: int | None,
        metadata: Mapping[str, Any] | None,
        agent_id: str | None,
    ) -> bool:
        ending = Ending(
            outcome=Outcome.COMPLETED,
            quality=None if quality_score is None else arguments.quality("quality_score", quality_score),
            feedback=None if user_feedback is None else arguments.text("user_feedback", user_feedback),
            message_count=None if message_count is None else arguments.count("message_count", message_count),
            metadata=arguments.mapping("metadata", metadata),
            agent_id=arguments.optional_identifier("agent_id", agent_id),
        )
        return self._pipeline.events.end(arguments.session_identifier("session_id", session_id), ending)

    def _record_failed_session(
        self,
        session_id: str,
        error_message: str,
        metadata: Mapping[str, Any] | None,
        error_type: str | None,
        agent_id: str | None,
    ) -> bool:
        ending = Ending(
            outcome=Outcome.FAILED,
            error_message=arguments.text("error_message", error_message),
            error_type=None if error_type is None else arguments.text("error_type", error_type),
            metadata=arguments.mapping("metadata", metadata),
            agent_id=arguments.optional_identifier("agent_id", agent_id),
        )
        return self._pipeline.events.end(arguments.session_identifier("session_id", session_id), ending)

    def _record_feedback(
        self,
        session_id: str,
        quality_score: ConversationQuality | int | None,
        user_feedback: str | None,
        thumbs: str | None,
        turn_id: str | None,
        source: FeedbackSource | str,
        name: str | None,
        agent_id: str | None,
    ) -> bool:
        if quality_score is None and user_feedback is None and thumbs is None:
            raise ValueError("feedback needs a quality_score, thumbs or a user_feedback")
        if quality_score is not None and thumbs is not None:
            raise ValueError("feedback takes either a quality_score or thumbs, not both")
        self._pipeline.events.feedback(
            arguments.session_identifier("session_id", session_id),
            source=arguments.member("source", source, FeedbackSource),
            score=None if quality_score is None else arguments.quality("quality_score", quality_score),
            thumbs=None if thumbs is None else arguments.choice("thumbs", thumbs, "up", "down"),
            text=None if user_feedback is None else arguments.text("user_feedback", user_feedback),
            name=None if name is None else arguments.text("name", name),
            turn_id=arguments.optional_identifier("turn_id", turn_id),
            agent_id=arguments.optional_identifier("agent_id", agent_id),
        )
        return True

    def _touch_session(self, session_id: str) -> bool:
        return self._pipeline.sessions.touch(arguments.session_identifier("session_id", session_id))

    def _session_ttl_remaining(self, session_id: str) -> float | None:
        seconds = self._pipeline.sessions.remaining_seconds(
            arguments.session_identifier("session_id", session_id)
        )
        return None if seconds is None else seconds / _HOUR

    def _set_session_ttl(self, hours: float) -> None:
        self._pipeline.sessions.ttl_seconds = arguments.period("hours", hours) * _HOUR

    def _session_stats(self) -> dict[str, Any]:
        sessions = self._pipeline.sessions
        return {
            **sessions.stats(),
            "sliding_ttl_enabled": True,
            "ttl_hours": sessions.ttl_seconds / _HOUR,
            "cleanup_interval_minutes": self._pipeline.cleanup_interval_seconds / _MINUTE,
        }

    def _live_session(self, session_id: str) -> SessionInfo | None:
        session = self._pipeline.sessions.get(arguments.session_identifier("session_id", session_id))
        if session is None:
            return None
        idle_seconds = self._pipeline.clock.monotonic() - session.last_access
        return SessionInfo(
            session_id=session.session_id,
            agent_id=session.agent_id,
            user_id=session.user_id,
            start_time=_utc(session.start_us / 1e6),
            last_access_time=_utc(self._pipeline.clock.time_ns() / 1e9 - idle_seconds),
            turns=session.turns,
        )


class AgentPerformanceTracker(_Conversations, Synchronous):
    """Tracks conversations: starts, turns, outcomes, quality and failures.

    `base_url` and `api_key` (a str, or a callable that is asked for each request) beat ``AGENT_TRACKER_URL`` and
    ``AGENT_TRACKER_API_KEY``; every other setting can be given by keyword. Without a URL nothing is kept or sent,
    and everything else works. The constructor does not touch the network; objects of one destination share a
    pipeline.

    What is accepted is kept: it survives the process and reaches the tracker with effect once. No method but
    those that begin with ``get_`` and say so asks the tracker or waits. After `close` events are not kept.

    Raises ValueError or TypeError for arguments that are not accepted, before anything changes.
    """

    def start_conversation(
        self, agent_id: str, user_id: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> str:
        """Start a conversation; returns its new session id (``{agent_id}_{unix seconds}_{16 hex}``)."""
        return self._start_conversation(agent_id, user_id, metadata)

    def end_conversation(
        self,
        session_id: str,
        quality_score: ConversationQuality | int | None = None,
        user_feedback: str | None = None,
        message_count: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        agent_id: str | None = None,
    ) -> bool:
        """The conversation is completed, with a quality from 1 to 5 if one is known.

        False, and one log line, if it has ended before, or if the session is unknown here, its id is not of our
        form and no `agent_id` is given.
        """
        return self._end_conversation(
            session_id, quality_score, user_feedback, message_count, metadata, agent_id
        )

    def record_failed_session(
        self,
        session_id: str,
        error_message: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        error_type: str | None = None,
        agent_id: str | None = None,
    ) -> bool:
        """The conversation failed. False as `end_conversation` says."""
        return self._record_failed_session(session_id, error_message, metadata, error_type, agent_id)

    def record_feedback(
        self,
        session_id: str,
        quality_score: ConversationQuality | int | None = None,
        user_feedback: str | None = None,
        *,
        thumbs: str | None = None,
        turn_id: str | None = None,
        source: FeedbackSource | str = FeedbackSource.USER,
        name: str | None = None,
        agent_id: str | None = None,
    ) -> bool:
        """Somebody rated or commented a session or one of its turns, before its start, after its end or between.

        `source` is user, operator or evaluator; `thumbs` up counts as 5, down as 1. True: it is accepted.
        """
        return self._record_feedback(
            session_id, quality_score, user_feedback, thumbs, turn_id, source, name, agent_id
        )

    def touch_session(self, session_id: str) -> bool:
        """Reset the session's TTL (local); False if it is not live."""
        return self._touch_session(session_id)

    def is_session_active(self, session_id: str) -> bool:
        """Whether the session is live (local); resets its TTL."""
        return self._touch_session(session_id)

    def get_session_ttl_remaining(self, session_id: str) -> float | None:
        """Hours of TTL that were left before this call, which resets it (local); None if it is not live."""
        return self._session_ttl_remaining(session_id)

    def set_session_ttl(self, hours: float) -> None:
        """The TTL from now on, for sessions that are live already too."""
        self._set_session_ttl(hours)

    def get_session_stats(self) -> dict[str, Any]:
        """How many sessions this process holds and how long they have been idle, in hours (local)."""
        return self._session_stats()

    def get_live_session(self, session_id: str) -> SessionInfo | None:
        """The session as this process knows it (local), without resetting its TTL; None if it is not live."""
        return self._live_session(session_id)

    def get_session_info(self, session_id: str) -> Json | None:
        """What the tracker knows of the session (remote); None if it knows none.

        Like every remote question it waits for at most the timeout and then raises TrackerUnavailable.
        """
        return self._ask(queries.session(session_id))

    def get_active_conversations(self, agent_id: str | None = None) -> Json:
        """The open conversations (remote)."""
        return self._ask(queries.conversations(agent_id)) or {}

    def get_success_rates(
        self,
        agent_id: str | None = None,
        start_date: date | str | None = None,
        end_date: date | str | None = None,
    ) -> Json:
        """Completed, failed and expired conversations and the success rate of a period (remote)."""
        return self._ask(queries.metrics("success-rates", agent_id, start_date, end_date)) or {}

    def get_response_times(
        self,
        agent_id: str | None = None,
        start_date: date | str | None = None,
        end_date: date | str | None = None,
    ) -> Json:
        """Count, mean and percentiles of the turns' durations in seconds (remote)."""
        return self._ask(queries.metrics("response-times", agent_id, start_date, end_date)) or {}

    def get_conversation_quality(
        self,
        agent_id: str | None = None,
        start_date: date | str | None = None,
        end_date: date | str | None = None,
    ) -> Json:
        """Mean quality, share rated and distribution (remote)."""
        return self._ask(queries.metrics("quality", agent_id, start_date, end_date)) or {}

    def get_failed_sessions(
        self,
        agent_id: str | None = None,
        start_date: date | str | None = None,
        end_date: date | str | None = None,
    ) -> Json:
        """Failed conversations with their errors (remote)."""
        return self._ask(queries.metrics("failures", agent_id, start_date, end_date)) or {}

    def get_performance_overview(self, agent_id: str | None = None) -> Json:
        """The four figures by name (remote)."""
        return self._ask(queries.metrics("overview", agent_id)) or {}


class AsyncAgentPerformanceTracker(_Conversations, Asynchronous):
    """`AgentPerformanceTracker` for asyncio: the same methods, all awaitable; none blocks the loop."""

    async def start_conversation(
        self, agent_id: str, user_id: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> str:
        """See `AgentPerformanceTracker.start_conversation`."""
        return self._start_conversation(agent_id, user_id, metadata)

    async def end_conversation(
        self,
        session_id: str,
        quality_score: ConversationQuality | int | None = None,
        user_feedback: str | None = None,
        message_count: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        agent_id: str | None = None,
    ) -> bool:
        """See `AgentPerformanceTracker.end_conversation`."""
        return self._end_conversation(
            session_id, quality_score, user_feedback, message_count, metadata, agent_id
        )

    async def record_failed_session(
        self,
        session_id: str,
        error_message: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        error_type: str | None = None,
        agent_id: str | None = None,
    ) -> bool:
        """See `AgentPerformanceTracker.record_failed_session`."""
        return self._record_failed_session(session_id, error_message, metadata, error_type, agent_id)

    async def record_feedback(
        self,
        session_id: str,
        quality_score: ConversationQuality | int | None = None,
        user_feedback: str | None = None,
        *,
        thumbs: str | None = None,
        turn_id: str | None = None,
        source: FeedbackSource | str = FeedbackSource.USER,
        name: str | None = None,
        agent_id: str | None = None,
    ) -> bool:
        """See `AgentPerformanceTracker.record_feedback`."""
        return self._record_feedback(
            session_id, quality_score, user_feedback, thumbs, turn_id, source, name, agent_id
        )

    async def touch_session(self, session_id: str) -> bool:
        """See `AgentPerformanceTracker.touch_session`."""
        return self._touch_session(session_id)

    async def is_session_active(self, session_id: str) -> bool:
        """See `AgentPerformanceTracker.is_session_active`."""
        return self._touch_session(session_id)

    async def get_session_ttl_remaining(self, session_id: str) -> float | None:
        """See `AgentPerformanceTracker.get_session_ttl_remaining`."""
        return self._session_ttl_remaining(session_id)

    async def set_session_ttl(self, hours: float) -> None:
        """See `AgentPerformanceTracker.set_session_ttl`."""
        self._set_session_ttl(hours)

    async def get_session_stats(self) -> dict[str, Any]:
        """See `AgentPerformanceTracker.get_session_stats`."""
        return self._session_stats()

    async def get_live_session(self, session_id: str) -> SessionInfo | None:
        """See `AgentPerformanceTracker.get_live_session`."""
        return self._live_session(session_id)

    async def get_session_info(self, session_id: str) -> Json | None:
        """See `AgentPerformanceTracker.get_session_info`."""
        return await self._ask(queries.session(session_id))

    async def get_active_conversations(self, agent_id: str | None = None) -> Json:
        """See `AgentPerformanceTracker.get_active_conversations`."""
        return await self._ask(queries.conversations(agent_id)) or {}

    async def get_success_rates(
        self,
        agent_id: str | None = None,
        start_date: date | str | None = None,
        end_date: date | str | None = None,
    ) -> Json:
        """See `AgentPerformanceTracker.get_success_rates`."""
        return await self._ask(queries.metrics("success-rates", agent_id, start_date, end_date)) or {}

    async def get_response_times(
        self,
        agent_id: str | None = None,
        start_date: date | str | None = None,
        end_date: date | str | None = None,
    ) -> Json:
        """See `AgentPerformanceTracker.get_response_times`."""
        return await self._ask(queries.metrics("response-times", agent_id, start_date, end_date)) or {}

    async def get_conversation_quality(
        self,
        agent_id: str | None = None,
        start_date: date | str | None = None,
        end_date: date | str | None = None,
    ) -> Json:
        """See `AgentPerformanceTracker.get_conversation_quality`."""
        return await self._ask(queries.metrics("quality", agent_id, start_date, end_date)) or {}

    async def get_failed_sessions(
        self,
        agent_id: str | None = None,
        start_date: date | str | None = None,
        end_date: date | str | None = None,
    ) -> Json:
        """See `AgentPerformanceTracker.get_failed_sessions`."""
        return await self._ask(queries.metrics("failures", agent_id, start_date, end_date)) or {}

    async def get_performance_overview(self, agent_id: str | None = None) -> Json:
        """See `AgentPerformanceTracker.get_performance_overview`."""
        return await self._ask(queries.metrics("overview", agent_id)) or {}


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
