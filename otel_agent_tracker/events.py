"""What can happen to agents and conversations, each as one event span.

Exactly one end: whoever takes a session out of the map ends it; everybody else is told that it has ended. One
path for every end, by call or inferred.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar, cast

from otel_agent_tracker import metadata as json_copy
from otel_agent_tracker import semconv, session_id
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.config import UserIdPolicy
from otel_agent_tracker.evaluation import Evaluation
from otel_agent_tracker.hot_lock import HotLock
from otel_agent_tracker.log import Log, SparingLog
from otel_agent_tracker.provider import EventProvider
from otel_agent_tracker.recent import RecentTurns, Target
from otel_agent_tracker.redaction import Redactor
from otel_agent_tracker.semconv import (
    AgentStatus,
    ConversationQuality,
    EndedBy,
    Event,
    ExpiryReason,
    FeedbackSource,
    Origin,
    Outcome,
    TurnStatus,
)
from otel_agent_tracker.sessions import Expired, Session, SessionMap
from otel_agent_tracker.turns import Piece

__all__ = ["Ending", "Events", "TurnReport"]


_Method = TypeVar("_Method", bound=Callable[..., Any])

_logger = Log(__name__)


class Ending(NamedTuple):
    """What a caller says of the end of a conversation."""

    outcome: Outcome
    quality: int | None = None
    feedback: str | None = None
    message_count: int | None = None
    metadata: Mapping[str, Any] | None = None
    error_message: str | None = None
    error_type: str | None = None
    agent_id: str | None = None


class TurnReport(NamedTuple):
    """What is known of a turn when it has ended; times are Unix microseconds, the first token's seconds."""

    turn_id: str
    start_us: int
    end_us: int
    status: TurnStatus = TurnStatus.OK
    error_type: str | None = None
    error_message: str | None = None
    time_to_first_token: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    agent_id: str | None = None
    user_id: str | None = None
    pieces: Sequence[Piece] = ()


def _guarded(event: Event, otherwise: Callable[..., object]) -> Callable[[_Method], _Method]:
    """The boundary at which a mistake of ours ends: the event is lost, counted and logged, and `otherwise` answers."""

    def decorated(method: _Method) -> _Method:
        @functools.wraps(method)
        def guarded(self: Events, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except Exception:  # noqa: BLE001 - it is called by the host's threads, which must not notice
                self._provider.tell_failure(event)
                return otherwise(*args, **kwargs)

        return cast("_Method", guarded)

    return decorated


def _nothing(*args: object, **kwargs: object) -> None:
    return None


def _false(*args: object, **kwargs: object) -> bool:
    return False


def _last_resort_id(agent_id: str, **kwargs: object) -> str:
    """The host gets a session id all the same, and may go on with it."""
    return session_id.mint(agent_id, int(time.time()))


class Events:
    """Makes the event spans of one pipeline; safe from any thread, never waits, raises nothing."""

    def __init__(
        self,
        provider: EventProvider,
        sessions: SessionMap,
        clock: Clock,
        redactor: Redactor,
        *,
        user_id_policy: UserIdPolicy,
        default_agent_id: str,
    ) -> None:
        self._provider = provider
        self._sessions = sessions
        self._clock = clock
        self._redactor = redactor
        self._user_id_policy = user_id_policy
        self._default_agent_id = default_agent_id
        self.recent: RecentTurns | None = None
        """Where evaluations find their turns, if anybody listens to evaluators."""
        self._ending_unknown = HotLock()
        self._log = SparingLog(_logger)

    def after_fork_in_child(self) -> None:
        """Replace the locks, which other threads may have held in the parent."""
        self._ending_unknown = HotLock()
        if self.recent is not None:
            self.recent.after_fork_in_child()

    # --- conversations --------------------------------------------------------------------------------------

    @_guarded(Event.CONVERSATION_START, _last_resort_id)
    def start(self, agent_id: str, *, user_id: str | None, metadata: Mapping[str, Any] | None) -> str:
        """Start a conversation by call; returns its new session id."""
        now_us = self._now_us()
        session = session_id.mint(agent_id, now_us // 1_000_000)
        self._start(session, agent_id, now_us, user_id=user_id, metadata=metadata, origin=Origin.CALL)
        return session

    @_guarded(Event.CONVERSATION_TURN, _nothing)
    def turn(self, session: str, report: TurnReport) -> None:
        """A turn of `session` has ended; opens the session, or its next conversation, if it is not open."""
        agent_id = self._open_for_turn(session, report)
        message = self.text(report.error_message)
        attributes = {
            semconv.TURN_ID: report.turn_id,
            semconv.TURN_STATUS: report.status,
            semconv.USER_ID: self._user_id(report.user_id),
            semconv.ERROR_TYPE: self.text(report.error_type),
            semconv.ERROR_MESSAGE: message,
            semconv.TIME_TO_FIRST_TOKEN: report.time_to_first_token,
            semconv.GEN_AI_INPUT_TOKENS: report.input_tokens,
            semconv.GEN_AI_OUTPUT_TOKENS: report.output_tokens,
        }
        self._emit(
            Event.CONVERSATION_TURN,
            attributes,
            session=session,
            agent_id=agent_id,
            event_id=session_id.turn_event_id(report.turn_id),
            start_us=report.start_us,
            end_us=max(report.end_us, report.start_us),
            error=(message or "") if report.status is TurnStatus.FAILED else None,
        )
        if self.recent is not None:
            target = Target(session, report.turn_id)
            for evaluation in self.recent.add(target, report.pieces):
                self._evaluated(target, evaluation)

    @_guarded(Event.CONVERSATION, _nothing)
    def turn_alone(self, report: TurnReport) -> None:
        """A turn of no known session: a conversation of its own, which ends with it."""
        session, end_us = report.turn_id, max(report.end_us, report.start_us)
        self.turn(session, report)
        live = self._sessions.take(session, ended_at_us=end_us)
        failed = report.status is TurnStatus.FAILED
        attributes: dict[str, Any] = {
            semconv.OUTCOME: Outcome.FAILED if failed else Outcome.COMPLETED,
            semconv.ENDED_BY: EndedBy.TURN,
            semconv.LAST_ACTIVITY_TIME: end_us * 1000,
            semconv.IDLE_SECONDS: 0.0,
            semconv.UNGROUPED: True,
            semconv.ORIGIN: Origin.RECOGNISED,
            semconv.USER_ID: self._user_id(report.user_id),
        }
        if failed:
            attributes |= self._error(report.error_type, report.error_message)
        self._emit_end(
            session,
            attributes,
            agent_id=live.agent_id if live else report.agent_id or self._default_agent_id,
            start_us=report.start_us,
            end_us=end_us,
            event_id=session_id.derived_event_id(Event.CONVERSATION, session, end_us),
        )

    @_guarded(Event.CONVERSATION, _false)
    def end(self, session: str, ending: Ending) -> bool:
        """End `session` by call; False if it has ended before, or is unknown and not of our form."""
        live = self._sessions.take(session)
        if live is not None:
            self._end_by_call(session, ending, agent_id=live.agent_id, start_us=live.start_us, live=live)
            return True
        if self._sessions.ended(session) or session in self._sessions:
            self._warn("the conversation of session %s has ended already; nothing is changed", session)
            return False
        return self._end_unknown(session, ending)

    def expire(self, expired: Expired) -> None:
        """End the session that the sweep has taken out of the map."""
        session = expired.session
        ended_us = max(session.last_activity_us, session.start_us)
        attributes = {
            **self._inferred_outcome(expired.ended_by, session),
            semconv.ENDED_BY: expired.ended_by,
            semconv.LAST_ACTIVITY_TIME: ended_us * 1000,
            semconv.IDLE_SECONDS: float(expired.window_seconds),
            semconv.ORIGIN: _unless_call(session.origin),
            semconv.MESSAGE_COUNT: session.message_count,
            semconv.USER_ID: session.user_id,
        }
        self._emit_end(
            session.session_id,
            attributes,
            agent_id=session.agent_id,
            start_us=session.start_us,
            end_us=ended_us,
            event_id=session_id.derived_event_id(Event.CONVERSATION, session.session_id, ended_us),
        )

    @_guarded(Event.CONVERSATION_FEEDBACK, _nothing)
    def feedback(
        self,
        session: str,
        *,
        source: FeedbackSource,
        score: int | None,
        thumbs: str | None,
        text: str | None,
        name: str | None,
        turn_id: str | None,
        agent_id: str | None,
        feedback_id: str | None = None,
    ) -> None:
        """Somebody rated or commented `session`, whatever its state; `feedback_id` is minted if None."""
        live = self._sessions.get(session)
        now_us = self._now_us()
        event_id = feedback_id or session_id.mint_event_id()
        attributes = {
            semconv.FEEDBACK_ID: event_id,
            semconv.FEEDBACK_SOURCE: source,
            semconv.FEEDBACK_SCORE: score,
            semconv.FEEDBACK_THUMBS: thumbs,
            semconv.FEEDBACK_NAME: self.text(name),
            semconv.FEEDBACK_TEXT: self.text(text),
            semconv.FEEDBACK_TURN_ID: turn_id,
        }
        self._emit(
            Event.CONVERSATION_FEEDBACK,
            attributes,
            session=session,
            agent_id=agent_id or (live.agent_id if live else self._agent_from_id(session)),
            event_id=event_id,
            start_us=now_us,
            end_us=now_us,
        )

    @_guarded(Event.CONVERSATION_FEEDBACK, _nothing)
    def evaluate(self, evaluation: Evaluation) -> None:
        """An evaluator has spoken; it may be of a turn that has not ended yet."""
        target = None if self.recent is None else self.recent.find(evaluation)
        if target is not None:
            self._evaluated(target, evaluation)

    def _evaluated(self, target: Target, evaluation: Evaluation) -> None:
        self.feedback(
            target.session,
            source=FeedbackSource.EVALUATOR,
            score=evaluation.score,
            thumbs=None,
            text=evaluation.explanation,
            name=evaluation.name,
            turn_id=target.turn_id,
            agent_id=None,
            feedback_id=evaluation.feedback_id(target.session),
        )

    # --- agents ---------------------------------------------------------------------------------------------

    @_guarded(Event.AGENT_REGISTER, _nothing)
    def register(self, agent_id: str, *, sdk_version: str | None, metadata: Mapping[str, Any] | None) -> None:
        """An agent is there."""
        self._emit_agent(
            Event.AGENT_REGISTER,
            agent_id,
            {semconv.AGENT_SDK_VERSION: self.text(sdk_version), semconv.METADATA: self._metadata(metadata)},
        )

    @_guarded(Event.AGENT_STATUS, _nothing)
    def status(
        self,
        agent_id: str,
        status: AgentStatus,
        *,
        previous_status: AgentStatus | None,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        """An agent's status changed."""
        self._emit_agent(
            Event.AGENT_STATUS,
            agent_id,
            {
                semconv.AGENT_STATUS: status,
                semconv.AGENT_PREVIOUS_STATUS: previous_status,
                semconv.METADATA: self._metadata(metadata),
            },
        )

    @_guarded(Event.AGENT_ACTIVITY, _nothing)
    def activity(self, agent_id: str, action: str, details: object, *, duration: float | None) -> None:
        """An agent did something outside a conversation, for `duration` seconds until now."""
        attributes = {
            semconv.AGENT_ACTION: self.text(action),
            semconv.AGENT_DETAILS: self._json(details),
        }
        self._emit_agent(Event.AGENT_ACTIVITY, agent_id, attributes, duration=duration or 0.0)

    def text(self, text: str | None) -> str | None:
        """Free text as events carry it: bounded, and without secrets."""
        return None if text is None else self._clean(lambda: self._redactor.text(json_copy.copy_text(text)))

    # --- how ------------------------------------------------------------------------------------------------

    def _start(
        self,
        session: str,
        agent_id: str,
        start_us: int,
        *,
        user_id: str | None,
        metadata: Mapping[str, Any] | None,
        origin: Origin,
        event_id: str | None = None,
    ) -> None:
        attributes = {
            semconv.ORIGIN: _unless_call(origin),
            semconv.USER_ID: self._user_id(user_id),
            semconv.METADATA: self._metadata(metadata),
            semconv.TTL_SECONDS: self._sessions.ttl_seconds,
        }
        self._emit(
            Event.CONVERSATION_START,
            attributes,
            session=session,
            agent_id=agent_id,
            event_id=event_id or session_id.mint_event_id(),
            start_us=start_us,
            end_us=start_us,
            conversation_start_us=start_us,
        )

    def _open_for_turn(self, session: str, report: TurnReport) -> str:
        """The agent of `session`, which is open when this returns."""
        live = self._sessions.get(session) or self._sessions.resume(session, turn_start_us=report.start_us)
        if live is not None:
            return live.agent_id
        parsed = session_id.parse(session)
        agent_id = report.agent_id or (parsed.agent_id if parsed else self._default_agent_id)
        if self._sessions.belongs_to_ended(session, report.start_us):
            return agent_id
        if parsed and not self._sessions.ended(session) and session not in self._sessions:
            # an id of ours that is unknown here was started by call in another process
            start_us = min(parsed.start_seconds * 1_000_000, report.start_us)
            user_id = self._user_id(report.user_id)
            self._sessions.open(session, agent_id, user_id=user_id, origin=Origin.CALL, start_us=start_us)
            return agent_id
        start_us = report.start_us
        self._start(
            session,
            agent_id,
            start_us,
            user_id=report.user_id,
            metadata=None,
            origin=self._sessions.origin_of_next(session),
            event_id=session_id.derived_event_id(Event.CONVERSATION_START, session, start_us),
        )
        return agent_id

    def _end_unknown(self, session: str, ending: Ending) -> bool:
        """An end for a session that this process never saw: accepted if an agent is known at all."""
        parsed = session_id.parse(session)
        agent_id = ending.agent_id or (parsed.agent_id if parsed else None)
        if agent_id is None:
            self._warn(
                "session %s is unknown, its id not of the form agent_seconds_hex; pass agent_id=", session
            )
            return False
        now_us = self._now_us()
        start_us = min(parsed.start_seconds * 1_000_000, now_us) if parsed else now_us
        lacks = ("start_time",) if ending.agent_id else ("start_time", "agent_id")
        with self._ending_unknown:
            if self._sessions.ended(session):  # another thread was faster
                return False
            self._sessions.forget(session, ended_at_us=now_us)
        self._end_by_call(session, ending, agent_id=agent_id, start_us=start_us, lacks=lacks)
        return True

    def _end_by_call(
        self,
        session: str,
        ending: Ending,
        *,
        agent_id: str,
        start_us: int,
        live: Session | None = None,
        lacks: tuple[str, ...] = (),
    ) -> None:
        # a wall clock that was set back must not put the end before what belongs to the conversation
        now_us = max(self._now_us(), start_us, live.last_activity_us if live else 0)
        attributes: dict[str, Any] = {
            semconv.OUTCOME: ending.outcome,
            semconv.ENDED_BY: EndedBy.CALL,
            semconv.LAST_ACTIVITY_TIME: (live.last_activity_us if live else now_us) * 1000,
            semconv.FEEDBACK: self.text(ending.feedback),
            semconv.MESSAGE_COUNT: ending.message_count,
            semconv.METADATA: self._metadata(ending.metadata),
            semconv.LACKS: lacks or None,
        }
        if ending.quality is not None:
            attributes[semconv.QUALITY_SCORE] = ending.quality
            attributes[semconv.QUALITY_LABEL] = _QUALITY_LABELS[ending.quality]
        if live is not None:
            attributes[semconv.ORIGIN] = _unless_call(live.origin)
            attributes[semconv.USER_ID] = live.user_id
        if ending.outcome is Outcome.FAILED:
            attributes |= self._error(ending.error_type, ending.error_message)
        self._emit_end(session, attributes, agent_id=agent_id, start_us=start_us, end_us=now_us)

    def _inferred_outcome(self, ended_by: EndedBy, session: Session) -> dict[str, Any]:
        if ended_by is EndedBy.IDLE:
            if not session.last_turn_failed:
                return {semconv.OUTCOME: Outcome.COMPLETED}
            return {
                semconv.OUTCOME: Outcome.FAILED,
                semconv.ERROR_TYPE: session.error_type,  # these came with a turn: a redactor has seen them
                semconv.ERROR_MESSAGE: session.error_message or "",
            }
        evicted = ended_by is EndedBy.EVICTED
        reason = ExpiryReason.EVICTED if evicted else ExpiryReason.TTL_TIMEOUT
        return {semconv.OUTCOME: Outcome.EXPIRED, semconv.EXPIRY_REASON: reason}

    def _error(self, error_type: str | None, message: str | None) -> dict[str, Any]:
        return {semconv.ERROR_TYPE: self.text(error_type), semconv.ERROR_MESSAGE: self.text(message) or ""}

    def _emit_end(
        self,
        session: str,
        attributes: dict[str, Any],
        *,
        agent_id: str,
        start_us: int,
        end_us: int,
        event_id: str | None = None,
    ) -> None:
        self._emit(
            Event.CONVERSATION,
            attributes,
            session=session,
            agent_id=agent_id,
            event_id=event_id or session_id.mint_event_id(),
            start_us=start_us,
            end_us=end_us,
            error=attributes.get(semconv.ERROR_MESSAGE),
        )

    def _emit(
        self,
        event: Event,
        attributes: Mapping[str, Any],
        *,
        session: str,
        agent_id: str | None,
        event_id: str,
        start_us: int,
        end_us: int,
        error: str | None = None,
        conversation_start_us: int | None = None,
    ) -> None:
        is_conversation = event is Event.CONVERSATION
        span_id = session_id.conversation_span_id(session, start_us) if is_conversation else None
        parent = None if is_conversation else self._parent(session, conversation_start_us)
        self._provider.emit(
            event,
            _event_attributes(event, event_id, agent_id, session, attributes),
            trace_id=session_id.trace_id(session),
            span_id=span_id,
            parent_span_id=parent,
            start_us=start_us,
            end_us=end_us,
            error=error,
        )

    def _parent(self, session: str, conversation_start_us: int | None) -> int:
        """The span id of the conversation; without its start the link dangles, which nothing depends on."""
        if conversation_start_us is None:
            live = self._sessions.get(session)
            conversation_start_us = live.start_us if live else 0
        return session_id.conversation_span_id(session, conversation_start_us)

    def _emit_agent(
        self, event: Event, agent_id: str, attributes: Mapping[str, Any], *, duration: float = 0.0
    ) -> None:
        now_us = self._now_us()
        event_id = session_id.mint_event_id()
        self._provider.emit(
            event,
            _event_attributes(event, event_id, agent_id, None, attributes),
            trace_id=int.from_bytes(sha256(event_id.encode()).digest()[:16], "big"),
            start_us=now_us - int(duration * 1_000_000),
            end_us=now_us,
        )

    def _warn(self, message: str, detail: str) -> None:
        self._log.warning(self._clock.monotonic(), message, detail)

    def _now_us(self) -> int:
        return self._clock.time_ns() // 1000

    def _agent_from_id(self, session: str) -> str | None:
        parsed = session_id.parse(session)
        return parsed.agent_id if parsed else None

    def _metadata(self, metadata: Mapping[str, Any] | None) -> str | None:
        return None if metadata is None else self._json(metadata)

    def _json(self, value: object) -> str | None:
        """What a user handed in as events carry it: bounded, and without secrets."""
        return self._clean(lambda: json_copy.fitted(self._redactor.json_text(json_copy.to_json_text(value))))

    def _clean(self, clean: Callable[[], str]) -> str | None:
        """What `clean` returns; if it fails, the event goes without, since a secret may be in it."""
        try:
            return clean()
        except Exception as error:  # noqa: BLE001 - the event matters more than its text
            self._warn("a text could not be searched for secrets and is left out: %s", type(error).__name__)
            return None

    def _user_id(self, user_id: str | None) -> str | None:
        if user_id is None or self._user_id_policy is UserIdPolicy.KEEP:
            return user_id
        return (
            None if self._user_id_policy is UserIdPolicy.DROP else sha256(user_id.encode()).hexdigest()[:32]
        )


def _unless_call(origin: Origin) -> Origin | None:
    """An origin as attribute: a start by call is what is meant where nothing is said."""
    return None if origin is Origin.CALL else origin


_QUALITY_LABELS = {quality.value: quality.name for quality in ConversationQuality}


def _event_attributes(
    event: Event, event_id: str, agent_id: str | None, session: str | None, more: Mapping[str, Any]
) -> dict[str, Any]:
    """What every event span carries, and what is known of `more`."""
    attributes: dict[str, Any] = {semconv.EVENT: event, semconv.EVENT_ID: event_id}
    if session is not None:
        attributes[semconv.SESSION_ID] = attributes[semconv.GEN_AI_CONVERSATION_ID] = session
    if agent_id is not None:
        attributes[semconv.GEN_AI_AGENT_ID] = agent_id
    for key, value in more.items():
        if value is not None:
            attributes[key] = value
    return attributes
