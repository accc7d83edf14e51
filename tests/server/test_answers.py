"""Every answer to the letter, field by field: other trackers and other people's clients rely on it."""

from __future__ import annotations

import pytest

from otel_agent_tracker import wire
from tests.server.world import Client, Json, at, batch_event, end, expired, feedback, start, turn

SERVICE = {"name": "shop", "version": "1.2", "environment": "prod", "instance": "pod-1"}
OURS = {"agent_tracker": {"service": SERVICE, "error_type": "ValueError"}}


@pytest.fixture
def knowing(client: Client) -> Client:
    """A client of a tracker that knows of a session with two conversations, a failure, an expiry and an agent."""
    client.tell(
        start("s1", user_id="u1", metadata={"plan": "pro"} | OURS),
        turn("s1", 1, 2.0),
        turn("s1", 5, 1.0, status="failed", error_type="Timeout", error_message="late"),
        feedback("s1", 7, quality_score=2, source="evaluator"),
        end("s1", 60, quality_score=4, user_feedback="fine", message_count=2),
        start("s1", 100),
        start("s2", 10, agent_id="bot"),
        end("s2", 30, 10, agent_id="bot", status="failed", error_message="boom", metadata=OURS),
        start("s3", 20),
        expired("s3", 40, 20),
        wire.AgentRegistration(
            agent_id="bot", registration_time=at(0), sdk_version="1.0", metadata={"team": "x"} | OURS
        ),
        wire.AgentStatusReport(
            agent_id="bot", status="busy", timestamp=at(2), previous_status="active", metadata=OURS
        ),
        wire.AgentActivity(
            agent_id="bot", action="deploy", timestamp=at(3), details={"hosts": 7}, duration=1.5
        ),
        wire.AgentHeartbeat(
            agent_id="bot", timestamp=at(4), instance="pod-1", delivery={"accepted": 3}, service=SERVICE
        ),
    )
    return client


# --- what is known ------------------------------------------------------------------------------------------

FIRST: Json = {
    "number": 1,
    "agent_id": "support-bot",
    "user_id": "u1",
    "start_time": at(0),
    "end_time": at(60),
    "status": "completed",
    "ended_by": "call",
    "quality_score": 4.0,
    "user_feedback": "fine",
    "error_type": None,
    "error_message": None,
    "message_count": 2,
    "turns": 2,
    "last_activity_time": at(60),
    "metadata": {"plan": "pro"},
    "environment": "prod",
    "service": "shop",
    "version": "1.2",
}
NOTHING: Json = {
    "user_id": None,
    "end_time": None,
    "ended_by": None,
    "quality_score": None,
    "user_feedback": None,
    "error_type": None,
    "error_message": None,
    "message_count": None,
    "turns": 0,
    "metadata": None,
    "environment": None,
    "service": None,
    "version": None,
}
SECOND = NOTHING | {
    "number": 2,
    "agent_id": "support-bot",
    "start_time": at(100),
    "status": "active",
    "last_activity_time": at(100),
}
FAILED = NOTHING | {
    "number": 1,
    "agent_id": "bot",
    "start_time": at(10),
    "end_time": at(30),
    "status": "failed",
    "ended_by": "call",
    "error_type": "ValueError",
    "error_message": "boom",
    "last_activity_time": at(30),
    "environment": "prod",
    "service": "shop",
    "version": "1.2",
}
EXPIRED = NOTHING | {
    "number": 1,
    "agent_id": "support-bot",
    "start_time": at(20),
    "end_time": at(40),
    "status": "expired",
    "ended_by": "ttl",
    "last_activity_time": at(40),
}
SESSION = SECOND | {"session_id": "s1", "episodes": [FIRST, SECOND]}
LISTED = [
    SECOND | {"session_id": "s1", "episodes": []},
    EXPIRED | {"session_id": "s3", "episodes": []},
    FAILED | {"session_id": "s2", "episodes": []},
    FIRST | {"session_id": "s1", "episodes": []},
]
BOT: Json = {
    "agent_id": "bot",
    "status": "busy",
    "last_seen": at(30),
    "silent": False,
    "sdk_version": "1.0",
    "registration_time": at(0),
    "metadata": {"team": "x"},
}
SUPPORT_BOT: Json = {
    "agent_id": "support-bot",
    "status": "active",
    "last_seen": at(100),
    "silent": False,
    "sdk_version": None,
    "registration_time": None,
    "metadata": None,
}
INSTANCE: Json = {
    "instance": "pod-1",
    "last_seen": at(4),
    "service": "shop",
    "version": "1.2",
    "environment": "prod",
    "delivery": {"accepted": 3},
}
ACTIVITY: Json = {
    "agent_id": "bot",
    "action": "deploy",
    "timestamp": at(3),
    "details": {"hosts": 7},
    "duration": 1.5,
}
SUCCESS_RATES: Json = {
    "total": 4,
    "completed": 1,
    "failed": 1,
    "expired": 1,
    "idle_ended": 0,
    "active": 1,
    "success_rate": 0.5,
}
RESPONSE_TIMES: Json = {"count": 2, "mean": 1.5, "p50": 1.0, "p95": 2.0, "p99": 2.0}
QUALITY: Json = {
    "rated": 1,
    "total": 4,
    "share": 0.25,
    "mean": 4.0,
    "distribution": {"1": 0, "2": 0, "3": 0, "4": 1, "5": 0},
}
FAILURE: Json = {
    "session_id": "s2",
    "agent_id": "bot",
    "end_time": at(30),
    "error_type": "ValueError",
    "error_message": "boom",
}
FAILURES: Json = {"count": 1, "failures": [FAILURE]}

ANSWERS: dict[str, Json] = {
    "/conversations/s1": SESSION,
    "/conversations?session_id=s1": SESSION,
    "/conversations": {"conversations": LISTED, "total": 4, "next_cursor": None},
    "/conversations/active": {"conversations": LISTED[:1], "total": 1, "next_cursor": None},
    "/agents/active": {"agents": [SUPPORT_BOT, BOT], "total": 2, "next_cursor": None},
    "/agents/bot/status": BOT | {"instances": [INSTANCE]},
    "/agents/status?agent_id=bot": BOT | {"instances": [INSTANCE]},
    "/agents/bot/activity": {"activities": [ACTIVITY], "total": 1, "next_cursor": None},
    "/agents/activity": {"activities": [ACTIVITY], "total": 1, "next_cursor": None},
    "/operations/overview": {
        "agents_by_status": {
            "active": 1,
            "idle": 0,
            "busy": 1,
            "error": 0,
            "offline": 0,
            "initializing": 0,
        },
        "active_conversations": 1,
        "silent_agents": [],
        "recent_activity": [ACTIVITY],
    },
    "/metrics/success-rates": SUCCESS_RATES,
    "/metrics/response-times": RESPONSE_TIMES,
    "/metrics/quality": QUALITY,
    "/metrics/failures": FAILURES,
    "/metrics/overview": {
        "success_rates": SUCCESS_RATES,
        "response_times": RESPONSE_TIMES,
        "quality": QUALITY,
        "failures": FAILURES,
    },
    "/capabilities": {
        "batch": {"path": "/batch", "max_events": 500},
        "turns": {"path": "/conversations/turn"},
        "feedback": {"path": "/conversations/feedback"},
        "heartbeat": {"path": "/agents/heartbeat"},
        "queries": {"path": "/conversations"},
    },
    "/healthz": {"status": "up"},
    "/readyz": {"status": "ready"},
}


@pytest.mark.parametrize("question", ANSWERS)
def test_a_question_is_answered_to_the_letter(knowing: Client, question: str) -> None:
    """Every field, and no other."""
    answer = knowing.get(question)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == ANSWERS[question]


def test_every_question_is_asked_here(client: Client) -> None:
    """All that the tracker's own description lists; by a query too, for ids that no path can carry."""
    paths = client.json("/openapi.json")["paths"]
    asked = {question.partition("?")[0] for question in ANSWERS}
    names = {"{session_id}": "s1", "{agent_id}": "bot"}
    described = {path for path, methods in paths.items() if "get" in methods}
    for name, value in names.items():
        described = {path.replace(name, value) for path in described}
    assert described - asked == set()


def test_pages_are_told_apart_by_a_cursor(knowing: Client) -> None:
    """Every page says how many there are, and the last that there is no next one."""
    first = knowing.json("/conversations", limit=3)
    last = knowing.json("/conversations", limit=3, cursor=first["next_cursor"])
    assert isinstance(first["next_cursor"], str)
    assert first == {"conversations": LISTED[:3], "total": 4, "next_cursor": first["next_cursor"]}
    assert last == {"conversations": LISTED[3:], "total": 4, "next_cursor": None}


# --- what is posted, and what goes wrong --------------------------------------------------------------------

POSTED = (
    start("s1"),
    turn("s1", 1),
    feedback("s1", 2, thumbs="up"),
    end("s1", 3),
    expired("s2", 1),
    wire.AgentRegistration(agent_id="bot", registration_time=at(0)),
    wire.AgentStatusReport(agent_id="bot", status="idle", timestamp=at(0)),
    wire.AgentActivity(agent_id="bot", action="deploy", timestamp=at(0), details={}),
    wire.AgentHeartbeat(agent_id="bot", timestamp=at(0), instance="pod-1", delivery={}),
)


@pytest.mark.parametrize("request_", POSTED, ids=lambda request: request.PATH)
def test_a_post_is_answered_to_the_letter(client: Client, request_: wire.Request) -> None:
    """With its event's id, however often it comes."""
    for _ in range(2):
        answer = client.post(
            request_.PATH, wire.to_json(request_), headers={"Idempotency-Key": f"event at {request_.PATH}"}
        )
        assert answer.status_code == 200
        assert answer.json() == {"event_id": f"event at {request_.PATH}", "status": 200}


def test_every_request_is_posted_here() -> None:
    """Each of the protocol."""
    assert {request.PATH for request in POSTED} == wire.REQUESTS.keys()


def test_a_batch_is_answered_to_the_letter(client: Client) -> None:
    """A result for each event, in order; one that is refused says why."""
    events = [
        batch_event(start("s1"), "e1"),
        {"event_id": "e2", "path": "/nowhere", "body": {}},
        {"event_id": "e3", "path": "/conversations/start", "body": {"session_id": "s2"}},
    ]
    assert client.post("/batch", {"events": events}).json() == {
        "results": [
            {"event_id": "e1", "status": 200},
            {"event_id": "e2", "status": 404, "error": "unknown path '/nowhere'"},
            {
                "event_id": "e3",
                "status": 422,
                "error": "agent_id: Field required; start_time: Field required",
            },
        ]
    }


@pytest.mark.parametrize("path", ["/conversations/s1", "/conversations?session_id=s1"])
def test_a_deletion_is_answered_by_nothing(knowing: Client, path: str) -> None:
    """204 once, then 404 as for what never was."""
    answers = [knowing.request("DELETE", path) for _ in range(2)]
    assert [(each.status_code, each.content) for each in answers] == [
        (204, b""),
        (404, b'{"detail":"unknown session_id"}'),
    ]


@pytest.mark.parametrize(
    ("question", "status", "detail"),
    [
        ("/conversations/none", 404, "unknown session_id"),
        ("/conversations?session_id=none", 404, "unknown session_id"),
        ("/agents/none/status", 404, "unknown agent_id"),
        ("/agents/status?agent_id=none", 404, "unknown agent_id"),
        ("/conversations?cursor=x", 422, "cursor must be a next_cursor that an answer to this query gave"),
    ],
)
def test_a_question_without_an_answer_says_why(
    client: Client, question: str, status: int, detail: str
) -> None:
    """In `detail`."""
    answer = client.get(question)
    assert (answer.status_code, answer.json()) == (status, {"detail": detail})


def test_without_a_key_nothing_is_answered(client: Client) -> None:
    """401, the scheme that is asked for, and why."""
    answer = Client(client.runner, client.app).get("/conversations")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.json() == {"detail": "an API key is needed"}
