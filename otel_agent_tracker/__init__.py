"""Conversations of AI agents on OpenTelemetry.

    from otel_agent_tracker import AgentPerformanceTracker

    tracker = AgentPerformanceTracker(base_url="http://localhost:8700")
    session_id = tracker.start_conversation("support-bot", user_id="u1")
    tracker.end_conversation(session_id, quality_score=5)

Names are imported when they are first used: a plugin or hook that is loaded into every process costs nothing
where no agent is tracked.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from otel_agent_tracker.semconv import VERSION as __version__  # noqa: N811 - the name that tools look for

if TYPE_CHECKING:
    from otel_agent_tracker.agents import AgentSpanProcessor
    from otel_agent_tracker.auto import end_conversation, install, record_feedback
    from otel_agent_tracker.conversation import Conversation, Turn, session
    from otel_agent_tracker.evaluators import EvaluationLogRecordProcessor
    from otel_agent_tracker.exceptions import AgentTrackerError, TrackerUnavailable
    from otel_agent_tracker.exporter import TrackerSpanExporter
    from otel_agent_tracker.operations import AgentOperationsTracker, AsyncAgentOperationsTracker
    from otel_agent_tracker.processor import SessionSpanProcessor
    from otel_agent_tracker.recognition import Recognised, SpanClass
    from otel_agent_tracker.semconv import AgentStatus, ConversationQuality
    from otel_agent_tracker.tracker import AgentPerformanceTracker, AsyncAgentPerformanceTracker, SessionInfo

__all__ = [
    "AgentOperationsTracker",
    "AgentPerformanceTracker",
    "AgentSpanProcessor",
    "AgentStatus",
    "AgentTrackerError",
    "AsyncAgentOperationsTracker",
    "AsyncAgentPerformanceTracker",
    "Conversation",
    "ConversationQuality",
    "EvaluationLogRecordProcessor",
    "Recognised",
    "SessionInfo",
    "SessionSpanProcessor",
    "SpanClass",
    "TrackerSpanExporter",
    "TrackerUnavailable",
    "Turn",
    "__version__",
    "end_conversation",
    "install",
    "record_feedback",
    "session",
]

_HOMES = {
    "AgentOperationsTracker": "operations",
    "AgentPerformanceTracker": "tracker",
    "AgentSpanProcessor": "agents",
    "AgentStatus": "semconv",
    "AgentTrackerError": "exceptions",
    "AsyncAgentOperationsTracker": "operations",
    "AsyncAgentPerformanceTracker": "tracker",
    "Conversation": "conversation",
    "ConversationQuality": "semconv",
    "EvaluationLogRecordProcessor": "evaluators",
    "Recognised": "recognition",
    "SessionInfo": "tracker",
    "SessionSpanProcessor": "processor",
    "SpanClass": "recognition",
    "TrackerSpanExporter": "exporter",
    "TrackerUnavailable": "exceptions",
    "Turn": "conversation",
    "end_conversation": "auto",
    "install": "auto",
    "record_feedback": "auto",
    "session": "conversation",
}


logging.getLogger(__name__).addHandler(logging.NullHandler())  # whoever wants our log configures logging


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
