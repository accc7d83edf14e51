"""The words on the wire of telemetry: event names, attribute keys and closed sets of values.

GenAI names are spelt here because no release of the semantic conventions has made them stable, and the
constants of ``opentelemetry.semconv`` for them are deprecated.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

__all__ = [
    "VERSION",
    "AgentStatus",
    "ConversationQuality",
    "EndedBy",
    "Event",
    "ExpiryReason",
    "FeedbackSource",
    "FoundBy",
    "Origin",
    "Outcome",
    "TurnStatus",
]

VERSION = "0.1.0"


class Event(StrEnum):
    """What an event span tells; it is also the span's name."""

    CONVERSATION_START = "conversation.start"
    CONVERSATION_TURN = "conversation.turn"
    CONVERSATION = "conversation"
    CONVERSATION_FEEDBACK = "conversation.feedback"
    AGENT_REGISTER = "agent.register"
    AGENT_STATUS = "agent.status"
    AGENT_ACTIVITY = "agent.activity"


class Outcome(StrEnum):
    """How a conversation ended; ``ACTIVE`` says that it has not."""

    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"


class EndedBy(StrEnum):
    """Who ended a conversation: a call, or an inference of the kind named."""

    CALL = "call"
    TURN = "turn"
    IDLE = "idle"
    TTL = "ttl"
    EVICTED = "evicted"
    SERVER = "server"


class ExpiryReason(StrEnum):
    """Why a conversation expired, as ``POST /conversations/expired`` says it."""

    TTL_TIMEOUT = "ttl_timeout"
    EVICTED = "evicted"
    SERVER = "server"


class Origin(StrEnum):
    """Whether a session was started by a call or recognised in other people's spans."""

    CALL = "call"
    RECOGNISED = "recognised"


class TurnStatus(StrEnum):
    """How a turn ended; ``WAITING`` says that a human was asked and the answer is open."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"
    WAITING = "waiting"


class FeedbackSource(StrEnum):
    """Who rated: an operator's word outranks a user's, a user's an evaluator's."""

    OPERATOR = "operator"
    USER = "user"
    EVALUATOR = "evaluator"


class FoundBy(StrEnum):
    """What told whose a recognised turn is, or of which turn an evaluation."""

    BLOCK = "block"
    """A block of ours around the turn."""
    SPAN = "span"
    START = "start"
    """What the turn's span, its Context or its baggage showed when it started."""
    BELOW = "below"
    """The earliest span below the turn."""
    RESPONSE = "response"
    CONVERSATION = "conversation"
    UNUSABLE = "unusable"
    """An id that cannot name a conversation: nobody's."""
    NOTHING = "nothing"


class ConversationQuality(IntEnum):
    """How good a conversation was."""

    VERY_POOR = 1
    POOR = 2
    AVERAGE = 3
    GOOD = 4
    EXCELLENT = 5


class AgentStatus(StrEnum):
    """What an agent is doing."""

    ACTIVE = "active"
    IDLE = "idle"
    BUSY = "busy"
    ERROR = "error"
    OFFLINE = "offline"
    INITIALIZING = "initializing"


# OpenTelemetry's own names
SESSION_ID = "session.id"
USER_ID = "user.id"
ERROR_TYPE = "error.type"
GEN_AI_CONVERSATION_ID = "gen_ai.conversation.id"
GEN_AI_AGENT_ID = "gen_ai.agent.id"
GEN_AI_AGENT_NAME = "gen_ai.agent.name"
GEN_AI_OPERATION_NAME = "gen_ai.operation.name"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_RESPONSE_ID = "gen_ai.response.id"
EVALUATION_RESULT = "gen_ai.evaluation.result"  # the name of a log event
EVALUATION_NAME = "gen_ai.evaluation.name"
EVALUATION_SCORE_VALUE = "gen_ai.evaluation.score.value"
EVALUATION_SCORE_LABEL = "gen_ai.evaluation.score.label"
EVALUATION_EXPLANATION = "gen_ai.evaluation.explanation"
SERVICE_NAME = "service.name"
SERVICE_NAMESPACE = "service.namespace"
SERVICE_VERSION = "service.version"
SERVICE_INSTANCE_ID = "service.instance.id"
DEPLOYMENT_ENVIRONMENT_NAME = "deployment.environment.name"
DEPLOYMENT_ENVIRONMENT = "deployment.environment"  # its name before semantic conventions 1.27
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"

# Ours
EVENT = "agent_tracker.event"
EVENT_ID = "agent_tracker.event_id"
COPY = "agent_tracker.copy"
ORIGIN = "agent_tracker.origin"
METADATA = "agent_tracker.metadata"
TTL_SECONDS = "agent_tracker.ttl_seconds"
TURN_ID = "agent_tracker.turn_id"
TURN_STATUS = "agent_tracker.turn_status"
TIME_TO_FIRST_TOKEN = "agent_tracker.time_to_first_token"  # noqa: S105 - no password
OUTCOME = "agent_tracker.outcome"
ENDED_BY = "agent_tracker.ended_by"
LAST_ACTIVITY_TIME = "agent_tracker.last_activity_time"
IDLE_SECONDS = "agent_tracker.idle_seconds"
UNGROUPED = "agent_tracker.ungrouped"
LACKS = "agent_tracker.lacks"
QUALITY_SCORE = "agent_tracker.quality.score"
QUALITY_LABEL = "agent_tracker.quality.label"
FEEDBACK = "agent_tracker.feedback"
MESSAGE_COUNT = "agent_tracker.message_count"
ERROR_MESSAGE = "agent_tracker.error_message"
EXPIRY_REASON = "agent_tracker.expiry_reason"
FEEDBACK_ID = "agent_tracker.feedback.id"
FEEDBACK_SOURCE = "agent_tracker.feedback.source"
FEEDBACK_SCORE = "agent_tracker.feedback.score"
FEEDBACK_THUMBS = "agent_tracker.feedback.thumbs"
FEEDBACK_NAME = "agent_tracker.feedback.name"
FEEDBACK_TEXT = "agent_tracker.feedback.text"
FEEDBACK_TURN_ID = "agent_tracker.feedback.turn_id"
AGENT_SDK_VERSION = "agent_tracker.agent.sdk_version"
AGENT_STATUS = "agent_tracker.agent.status"
AGENT_PREVIOUS_STATUS = "agent_tracker.agent.previous_status"
AGENT_ACTION = "agent_tracker.agent.action"
AGENT_DETAILS = "agent_tracker.agent.details"

# Our metrics, and attributes that only they have
METRIC_ACCEPTED = "agent_tracker.events.accepted"
METRIC_DELIVERED = "agent_tracker.events.delivered"
METRIC_REJECTED = "agent_tracker.events.rejected"
METRIC_DROPPED = "agent_tracker.events.dropped"
METRIC_ENDED = "agent_tracker.conversations.ended"
METRIC_TURNS = "agent_tracker.turns.recognised"
METRIC_EVALUATIONS = "agent_tracker.evaluations"
METRIC_PENDING = "agent_tracker.outbox.pending"
METRIC_DEAD_LETTERS = "agent_tracker.outbox.dead_letters"
METRIC_OLDEST_PENDING_AGE = "agent_tracker.outbox.oldest_pending_age"
METRIC_LIVE_SESSIONS = "agent_tracker.sessions.live"
DROP_KIND = "agent_tracker.drop.kind"
FOUND_BY = "agent_tracker.found_by"
STATE_FOLDER = "agent_tracker.state_folder"
