"""What users may rely on: the names, the signatures, the two forms of each class, a light import."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest

import otel_agent_tracker
from otel_agent_tracker import (
    AgentOperationsTracker,
    AgentPerformanceTracker,
    AsyncAgentOperationsTracker,
    AsyncAgentPerformanceTracker,
    Conversation,
    Turn,
    testing,
)


def test_the_public_names_are_these() -> None:
    """A name more or less is a decision; the list is sorted."""
    assert otel_agent_tracker.__all__ == [
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
    assert otel_agent_tracker.__all__ == sorted(otel_agent_tracker.__all__)


@pytest.mark.parametrize("module", [otel_agent_tracker, testing], ids=["package", "testing"])
def test_every_public_name_exists_and_says_what_it_is(module: Any) -> None:
    """Each is there, and has a docstring."""
    for name in module.__all__:
        assert name == "__version__" or inspect.getdoc(getattr(module, name)), name


def test_the_names_for_tests_are_these() -> None:
    """What `otel_agent_tracker.testing` offers."""
    assert testing.__all__ == [
        "FakeClock",
        "RecordedConversation",
        "RecordedConversations",
        "RecordedRequest",
        "RecordedTurn",
        "RecordingSender",
        "recorded_conversations",
        "recording",
    ]


PERIOD = "agent_id=None, start_date=None, end_date=None"
PERFORMANCE = {
    "close": "",
    "conversation": "agent_id, user_id=None, metadata=None",
    "delivery_stats": "",
    "end_conversation": "session_id, quality_score=None, user_feedback=None, message_count=None, metadata=None, "
    "*, agent_id=None",
    "flush": "timeout_seconds=10.0",
    "get_active_conversations": "agent_id=None",
    "get_conversation_quality": PERIOD,
    "get_failed_sessions": PERIOD,
    "get_live_session": "session_id",
    "get_performance_overview": "agent_id=None",
    "get_response_times": PERIOD,
    "get_session_info": "session_id",
    "get_session_stats": "",
    "get_session_ttl_remaining": "session_id",
    "get_success_rates": PERIOD,
    "is_session_active": "session_id",
    "record_failed_session": "session_id, error_message, metadata=None, *, error_type=None, agent_id=None",
    "record_feedback": "session_id, quality_score=None, user_feedback=None, *, thumbs=None, turn_id=None, "
    "source='user', name=None, agent_id=None",
    "set_session_ttl": "hours",
    "start_conversation": "agent_id, user_id=None, metadata=None",
    "touch_session": "session_id",
    "turn": "session_id, *, agent_id=None, user_id=None",
}
OPERATIONS = {
    "close": "",
    "delivery_stats": "",
    "flush": "timeout_seconds=10.0",
    "get_active_agents": "",
    "get_agent_status": "agent_id",
    "get_operations_overview": "",
    "get_recent_activity": "limit=50, agent_id=None",
    "heartbeat": "agent_id",
    "log_activity": "agent_id, action, details=None, duration=None",
    "register_agent": "agent_id, sdk_version=None, metadata=None",
    "update_agent_status": "agent_id, status, previous_status=None, metadata=None",
}
MAKING = "base_url=None, api_key=None, **options"


def parameters(function: Any) -> str:
    """The parameters of a method without its types: names, defaults, and what is keyword-only."""
    signature = inspect.signature(function)
    bare = [
        parameter.replace(annotation=parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name != "self"
    ]
    text = str(signature.replace(parameters=bare, return_annotation=signature.empty))[1:-1]
    return text.replace("<FeedbackSource.USER: 'user'>", "'user'")


def public_methods(kind: type[Any]) -> dict[str, str]:
    return {
        name: parameters(member)
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("kind", "methods"),
    [
        (AgentPerformanceTracker, PERFORMANCE),
        (AsyncAgentPerformanceTracker, PERFORMANCE),
        (AgentOperationsTracker, OPERATIONS),
        (AsyncAgentOperationsTracker, OPERATIONS),
        (
            Conversation,
            {
                "fail": "error",
                "rate": "quality_score, feedback=None",
                "set_message_count": "message_count",
                "turn": "",
            },
        ),
        (Turn, {"cancel": "", "fail": "error, *, error_type=None", "stream": "chunks", "wait": ""}),
    ],
)
def test_public_methods_and_their_parameters_are_these(kind: type[Any], methods: dict[str, str]) -> None:
    """The sync and the asyncio form have the same methods with the same parameters and defaults."""
    assert public_methods(kind) == methods


@pytest.mark.parametrize("kind", [AsyncAgentPerformanceTracker, AsyncAgentOperationsTracker])
def test_every_method_of_the_asynchronous_forms_is_awaitable(kind: type[Any]) -> None:
    """But for the blocks, which are entered with `async with`."""
    calls = {name for name in public_methods(kind) if not inspect.iscoroutinefunction(getattr(kind, name))}
    assert calls <= {"conversation", "turn"}


@pytest.mark.parametrize("kind", [AgentPerformanceTracker, AgentOperationsTracker])
def test_no_method_of_the_synchronous_forms_is_awaitable(kind: type[Any]) -> None:
    """Nobody has to await what looks like a call."""
    assert not [name for name in public_methods(kind) if inspect.iscoroutinefunction(getattr(kind, name))]


@pytest.mark.parametrize(
    "kind",
    [
        AgentPerformanceTracker,
        AsyncAgentPerformanceTracker,
        AgentOperationsTracker,
        AsyncAgentOperationsTracker,
    ],
)
def test_all_are_made_alike(kind: type[Any]) -> None:
    """By URL, key and options."""
    assert parameters(kind.__init__) == MAKING


@pytest.mark.parametrize(
    ("kind", "twin"),
    [
        (AgentPerformanceTracker, AsyncAgentPerformanceTracker),
        (AgentOperationsTracker, AsyncAgentOperationsTracker),
    ],
)
def test_the_twins_have_the_same_types(kind: type[Any], twin: type[Any]) -> None:
    """Annotations of parameters and results included."""
    for name in public_methods(kind):
        assert inspect.signature(getattr(kind, name)) == inspect.signature(getattr(twin, name)), name


def test_the_functions_are_those_of_the_installed_tracker() -> None:
    """`record_feedback` and `end_conversation` take what the methods take."""
    for name in ("record_feedback", "end_conversation"):
        assert parameters(getattr(otel_agent_tracker, name)) == PERFORMANCE[name]
    assert parameters(otel_agent_tracker.install) == (
        "tracer_provider=None, *, base_url=None, api_key=None, recognisers=(), redactor=None"
    )
    assert parameters(otel_agent_tracker.session.__init__) == "session_id, user_id=None, agent_id=None"


HEAVY = ("httpx", "httpcore", "sqlite3", "fastapi", "click", "rich", "pytest", "opentelemetry.exporter")


def test_the_import_is_light() -> None:
    """`import otel_agent_tracker` brings no HTTP client, no SQLite, no exporter: they come with their first use."""
    check = (
        "import otel_agent_tracker, sys;"
        f"print([name for name in {HEAVY} if name in sys.modules or "
        "any(module.startswith(name + '.') for module in sys.modules)])"
    )
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_making_a_tracker_object_touches_neither_network_nor_client() -> None:
    """No network in constructors, and nothing heavy on the caller's thread."""
    check = (
        "import sys, otel_agent_tracker, tempfile;"
        "tracker = otel_agent_tracker.AgentPerformanceTracker("
        "'https://tracker.invalid', state_dir=tempfile.mkdtemp());"
        "print('httpcore' in sys.modules, 'sqlite3' in sys.modules); tracker.close()"
    )
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False False"
