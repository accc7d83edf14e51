"""Conversations of AI agents on OpenTelemetry.

from otel_agent_tracker import AgentPerformanceTracker

tracker = AgentPerformanceTracker(base_url="http://localhost:8700")
session_id = tracker.start_conversation("support-bot", user_id="u1")
tracker.end_conversation(session_id, quality_score=5)
"""

from otel_agent_tracker.agents import AgentSpanProcessor
from otel_agent_tracker.auto import end_conversation, install, record_feedback
from otel_agent_tracker.conversation import Conversation, Turn
from otel_agent_tracker.exceptions import AgentTrackerError, TrackerUnavailable
from otel_agent_tracker.exporter import TrackerSpanExporter
from otel_agent_tracker.operations import AgentOperationsTracker, AsyncAgentOperationsTracker
from otel_agent_tracker.processor import SessionSpanProcessor
from otel_agent_tracker.scope import session
from otel_agent_tracker.semconv import VERSION, AgentStatus, ConversationQuality
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
    "SessionInfo",
    "SessionSpanProcessor",
    "TrackerSpanExporter",
    "TrackerUnavailable",
    "Turn",
    "__version__",
    "end_conversation",
    "install",
    "record_feedback",
    "session",
]

__version__ = VERSION
