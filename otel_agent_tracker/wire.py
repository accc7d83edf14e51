"""Every request and every answer of the REST protocol, as typed values; both sides use them.

Names are the protocol. Times are RFC 3339 strings in UTC with microseconds and ``Z``; inside the program they
are integers of Unix microseconds. Readers ignore fields they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, ClassVar, Literal, Protocol

__all__ = [
    "REQUESTS",
    "Activities",
    "ActivityAnswer",
    "AgentActivity",
    "AgentAnswer",
    "AgentHeartbeat",
    "AgentRegistration",
    "AgentStatusAnswer",
    "AgentStatusReport",
    "Agents",
    "BatchAnswer",
    "BatchEvent",
    "BatchRequest",
    "BatchResult",
    "Capabilities",
    "ConversationAnswer",
    "ConversationEnd",
    "ConversationExpired",
    "ConversationFeedback",
    "ConversationStart",
    "ConversationTurn",
    "Conversations",
    "Episode",
    "Failure",
    "Failures",
    "InstanceAnswer",
    "OperationsOverview",
    "PerformanceOverview",
    "Quality",
    "Request",
    "ResponseTimes",
    "SuccessRates",
    "format_time",
    "parse_time",
    "to_json",
]

Json = dict[str, Any]
AgentStatusName = Literal["active", "idle", "busy", "error", "offline", "initializing"]
OutcomeName = Literal["active", "completed", "failed", "expired"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND_US = 1_000_000
_MICROSECOND = timedelta(microseconds=1)


def format_time(time_us: int) -> str:
    """Unix microseconds as RFC 3339 (``2024-01-19T16:17:36.000000Z``)."""
    seconds, microseconds = divmod(time_us, _SECOND_US)
    return f"{_second_text(seconds)}.{microseconds:06d}Z"


@lru_cache(maxsize=256)  # events come in seconds that are alike, on a caller's thread
def _second_text(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def parse_time(text: str) -> int:
    """RFC 3339 (without a zone: UTC) as Unix microseconds; raises ValueError."""
    time = datetime.fromisoformat(text)
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


class Request(Protocol):
    """A body that is posted to `PATH`."""

    PATH: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


def to_json(value: Any) -> Json:
    """The JSON object of a request: fields that are None are left out."""
    return {name: field for name in value.__slots__ if (field := getattr(value, name)) is not None}


# --- requests -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationStart:
    """A conversation begins."""

    PATH: ClassVar[str] = "/conversations/start"
    session_id: str
    agent_id: str
    start_time: str
    user_id: str | None = None
    metadata: Json | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationEnd:
    """A conversation was completed or failed."""

    PATH: ClassVar[str] = "/conversations/end"
    session_id: str
    agent_id: str
    start_time: str
    end_time: str
    duration_seconds: float
    status: Literal["completed", "failed"]
    quality_score: int | None = None
    user_feedback: str | None = None
    error_message: str | None = None
    message_count: int | None = None
    metadata: Json | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationExpired:
    """A conversation was abandoned; it ended at its last access."""

    PATH: ClassVar[str] = "/conversations/expired"
    session_id: str
    agent_id: str
    start_time: str
    end_time: str
    duration_seconds: float
    status: Literal["expired"] = "expired"
    expiry_reason: Literal["ttl_timeout", "evicted", "server"] = "ttl_timeout"
    metadata: Json | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationTurn:
    """One request to the agent and its answer."""

    PATH: ClassVar[str] = "/conversations/turn"
    turn_id: str
    session_id: str
    agent_id: str
    start_time: str
    end_time: str
    duration_seconds: float
    status: Literal["ok", "failed", "cancelled", "waiting"]
    error_type: str | None = None
    error_message: str | None = None
    time_to_first_token: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    user_id: str | None = None
    service: Json | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationFeedback:
    """A rating or a comment; thumbs up counts as 5, down as 1."""

    PATH: ClassVar[str] = "/conversations/feedback"
    feedback_id: str
    session_id: str
    timestamp: str
    source: Literal["user", "operator", "evaluator"] = "user"
    quality_score: int | None = None
    thumbs: Literal["up", "down"] | None = None
    name: str | None = None
    turn_id: str | None = None
    user_feedback: str | None = None
    agent_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRegistration:
    """An agent is there."""

    PATH: ClassVar[str] = "/agents/register"
    agent_id: str
    registration_time: str
    sdk_version: str | None = None
    metadata: Json | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatusReport:
    """An agent's status changed."""

    PATH: ClassVar[str] = "/agents/status"
    agent_id: str
    status: AgentStatusName
    timestamp: str
    previous_status: AgentStatusName | None = None
    metadata: Json | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentActivity:
    """An agent did something outside a conversation; `duration` is in seconds."""

    PATH: ClassVar[str] = "/agents/activity"
    agent_id: str
    action: str
    timestamp: str
    details: Any = None
    duration: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentHeartbeat:
    """An agent is alive in `instance`, whose delivery counts are `delivery`."""

    PATH: ClassVar[str] = "/agents/heartbeat"
    agent_id: str
    timestamp: str
    instance: str
    delivery: Json
    service: Json | None = None


REQUESTS: Mapping[str, type[Request]] = {
    request.PATH: request
    for request in (
        ConversationStart,
        ConversationEnd,
        ConversationExpired,
        ConversationTurn,
        ConversationFeedback,
        AgentRegistration,
        AgentStatusReport,
        AgentActivity,
        AgentHeartbeat,
    )
}
"""What `POST /batch` may carry, by path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEvent:
    """One request inside a batch."""

    event_id: str
    path: str
    body: Json
    service: Json | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """Many requests at once."""

    PATH: ClassVar[str] = "/batch"
    events: list[BatchEvent]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What became of one event: `status` is what its single request would have been answered."""

    event_id: str
    status: int
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswer:
    """A result for each event of the batch, in its order."""

    results: list[BatchResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a tracker offers beyond the plain protocol; None is not offered.

    `batch` is ``{"path", "max_events"}``, each of the others ``{"path"}``.
    """

    PATH: ClassVar[str] = "/capabilities"
    batch: Json | None = None
    turns: Json | None = None
    feedback: Json | None = None
    heartbeat: Json | None = None
    queries: Json | None = None


# --- answers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One conversation of a session; `quality_score` is the mean where only turns were rated."""

    number: int
    agent_id: str
    user_id: str | None
    start_time: str
    end_time: str | None
    status: OutcomeName
    ended_by: str | None
    quality_score: float | None
    user_feedback: str | None
    error_type: str | None
    error_message: str | None
    message_count: int | None
    turns: int
    last_activity_time: str
    metadata: Json | None
    environment: str | None
    service: str | None
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationAnswer(Episode):
    """A session's newest conversation; `episodes` holds all of them, oldest first."""

    session_id: str
    episodes: list[Episode] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """A page of conversations; `next_cursor` is None on the last."""

    conversations: list[ConversationAnswer]
    total: int
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceAnswer:
    """One process that an agent runs in."""

    instance: str
    last_seen: str
    service: str | None
    version: str | None
    environment: str | None
    delivery: Json | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAnswer:
    """An agent; `silent` is not offline and unheard of for 15 minutes."""

    agent_id: str
    status: str
    last_seen: str
    silent: bool
    sdk_version: str | None
    registration_time: str | None
    metadata: Json | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatusAnswer(AgentAnswer):
    """An agent with the processes it runs in."""

    instances: list[InstanceAnswer] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agents:
    """A list of agents."""

    agents: list[AgentAnswer]
    total: int
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityAnswer:
    """One activity of an agent; `duration` is in seconds."""

    agent_id: str
    action: str
    timestamp: str
    details: Any
    duration: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Activities:
    """A list of activities, newest first."""

    activities: list[ActivityAnswer]
    total: int
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationsOverview:
    """All agents at a glance."""

    agents_by_status: dict[str, int]
    active_conversations: int
    silent_agents: list[str]
    recent_activity: list[ActivityAnswer]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessRates:
    """`success_rate` = completed / (completed + failed); None when none of either.

    `completed` and `failed` count every conversation of that outcome; `idle_ended`, those of them that an
    inference from idleness ended.
    """

    total: int
    completed: int
    failed: int
    expired: int
    idle_ended: int
    active: int
    success_rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseTimes:
    """Durations of turns in seconds, by the turns' ends."""

    count: int
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """`mean` of the rated; `share` = rated / total; `distribution` counts by rounded score, "1" to "5"."""

    rated: int
    total: int
    share: float | None
    mean: float | None
    distribution: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed conversation."""

    session_id: str
    agent_id: str
    end_time: str
    error_type: str | None
    error_message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Failed conversations, newest first; `count` counts all of them, the list may be shorter."""

    count: int
    failures: list[Failure]


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceOverview:
    """The four figures by name."""

    success_rates: SuccessRates
    response_times: ResponseTimes
    quality: Quality
    failures: Failures
