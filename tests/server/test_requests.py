"""Every request and what it makes of the answers."""

from __future__ import annotations

import pytest

from otel_agent_tracker import wire
from otel_agent_tracker.session_id import turn_event_id
from tests.server.world import Client, Json, at, batch_event, end, expired, feedback, start, turn

SERVICE = {"name": "shop", "version": "1.2", "environment": "prod", "instance": "pod-1"}


def test_a_started_conversation_is_active(client: Client) -> None:
    """A start alone: the conversation has no outcome, and the answer has every field."""
    client.tell(start("s1", user_id="u1", metadata={"plan": "pro", "agent_tracker": {"service": SERVICE}}))
    episode = {
        "number": 1,
        "agent_id": "support-bot",
        "user_id": "u1",
        "start_time": at(0),
        "end_time": None,
        "status": "active",
        "ended_by": None,
        "quality_score": None,
        "user_feedback": None,
        "error_type": None,
        "error_message": None,
        "message_count": None,
        "turns": 0,
        "last_activity_time": at(0),
        "metadata": {"plan": "pro"},
        "environment": "prod",
        "service": "shop",
        "version": "1.2",
    }
    assert client.json("/conversations/s1") == episode | {"session_id": "s1", "episodes": [episode]}


def test_an_end_completes_a_conversation(client: Client) -> None:
    """Outcome, quality, feedback and message count are those of the end."""
    client.tell(
        start("s1"),
        turn("s1", 1),
        end("s1", 60, quality_score=4, user_feedback="fine", message_count=2, metadata={"tier": 1}),
    )
    answer = client.json("/conversations/s1")
    told = {name: answer[name] for name in ("status", "ended_by", "end_time", "turns", "message_count")}
    assert told == {
        "status": "completed",
        "ended_by": "call",
        "end_time": at(60),
        "turns": 1,
        "message_count": 2,
    }
    assert (answer["quality_score"], answer["user_feedback"], answer["metadata"]) == (
        4.0,
        "fine",
        {"tier": 1},
    )


def test_an_end_fails_a_conversation(client: Client) -> None:
    """A failed end brings its error."""
    ours = {"agent_tracker": {"error_type": "TimeoutError"}}
    client.tell(start("s1"), end("s1", 60, status="failed", error_message="too late", metadata=ours))
    answer = client.json("/conversations/s1")
    assert (answer["status"], answer["error_type"], answer["error_message"]) == (
        "failed",
        "TimeoutError",
        "too late",
    )


def test_an_expired_conversation_ended_by_its_time_to_live(client: Client) -> None:
    """An expiry without the fields of ours ended by ttl at its end_time."""
    client.tell(start("s1"), expired("s1", 60))
    answer = client.json("/conversations/s1")
    assert (answer["status"], answer["ended_by"], answer["end_time"]) == ("expired", "ttl", at(60))


def test_feedback_rates_a_conversation(client: Client) -> None:
    """Feedback may come before the start, and thumbs up count as 5."""
    client.tell(feedback("s1", 5, thumbs="up", user_feedback="great"), start("s1"))
    answer = client.json("/conversations/s1")
    assert (answer["quality_score"], answer["user_feedback"]) == (5.0, "great")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "feedback needs a quality_score, thumbs (up or down) or a user_feedback"),
        ({"name": "helpfulness"}, "feedback needs a quality_score, thumbs (up or down) or a user_feedback"),
        ({"quality_score": 4, "thumbs": "up"}, "feedback takes either a quality_score or thumbs, not both"),
    ],
)
def test_feedback_says_one_thing(client: Client, said: Json, reason: str) -> None:
    """Nothing, or two ratings, is refused with what is accepted, alone and in a batch."""
    wrong = feedback("s1", 5, **said)
    alone = client.post(wrong.PATH, wire.to_json(wrong))
    assert (alone.status_code, alone.json()) == (422, {"detail": reason})
    right = batch_event(feedback("s1", 6, user_feedback="fine"), "e2")
    results = client.post("/batch", {"events": [batch_event(wrong, "e1"), right]}).json()["results"]
    assert results == [
        {"event_id": "e1", "status": 422, "error": reason},
        {"event_id": "e2", "status": 200},
    ]


@pytest.mark.parametrize("score", [0, 6])
@pytest.mark.parametrize("request_", [end("s1", 5), feedback("s1", 5)])
def test_a_refused_quality_is_told_in_the_protocol_s_words(
    client: Client, request_: wire.Request, score: int
) -> None:
    """Whoever posts JSON knows whole numbers, not this library's types."""
    answer = client.post(request_.PATH, wire.to_json(request_) | {"quality_score": score})
    assert answer.status_code == 422
    assert answer.json() == {"detail": f"quality_score must be a whole number from 1 to 5, not {score}"}


def test_feedback_alone_makes_no_conversation(client: Client) -> None:
    """It is kept, and the session is unknown until something else tells of it."""
    client.tell(feedback("s1", 5, thumbs="up"))
    assert client.get("/conversations/s1").status_code == 404


def test_a_start_after_an_end_opens_the_next_episode(client: Client) -> None:
    """The answer is the newest conversation; all are its episodes, oldest first."""
    client.tell(start("s1"), end("s1", 60), start("s1", 90))
    answer = client.json("/conversations/s1")
    assert (answer["number"], answer["status"]) == (2, "active")
    assert [(each["number"], each["status"]) for each in answer["episodes"]] == [
        (1, "completed"),
        (2, "active"),
    ]


def test_episodes_that_a_late_event_joins_become_one(client: Client) -> None:
    """An inferred end that a turn refutes later no longer divides the session."""
    client.tell(start("s1"), expired("s1", 60), start("s1", 4000))
    assert len(client.json("/conversations/s1")["episodes"]) == 2
    client.tell(turn("s1", 50, seconds=100))
    assert [each["number"] for each in client.json("/conversations/s1")["episodes"]] == [1]


def test_a_turn_names_the_process_that_took_it(client: Client) -> None:
    """The newest event that names a service decides the conversation's."""
    client.tell(
        start("s1"), turn("s1", 1, service=SERVICE), turn("s1", 5, service=SERVICE | {"version": "1.3"})
    )
    answer = client.json("/conversations/s1")
    assert (answer["service"], answer["version"], answer["environment"]) == ("shop", "1.3", "prod")


def test_an_unknown_session_is_404(client: Client) -> None:
    """By path and by query."""
    assert client.get("/conversations/nope").status_code == 404
    assert client.get("/conversations", params={"session_id": "nope"}).status_code == 404


def test_unknown_fields_are_ignored(client: Client) -> None:
    """A newer client may say more."""
    body = wire.to_json(start("s1")) | {"mood": "sunny"}
    assert client.post("/conversations/start", body).status_code == 200


def test_an_answer_names_the_event(client: Client) -> None:
    """The header's id, else the one in the metadata, else one derived from the event."""
    body = wire.to_json(start("s1", metadata={"agent_tracker": {"event_id": "from-metadata"}}))
    headers = {"Idempotency-Key": "from-header"}
    assert client.post("/conversations/start", body, headers=headers).json()["event_id"] == "from-header"
    assert client.post("/conversations/start", body).json() == {"event_id": "from-metadata", "status": 200}
    derived = client.post("/conversations/turn", wire.to_json(turn("s1", 1, turn_id="t1"))).json()
    assert derived["event_id"] == turn_event_id("t1")


GOOD = wire.to_json(end("s1", 60))


@pytest.mark.parametrize(
    "wrong",
    [
        {"session_id": ""},
        {"session_id": "a\nb"},
        {"session_id": "x" * 321},
        {"session_id": 5},
        {"agent_id": None},
        {"start_time": "yesterday"},
        {"end_time": "1969-12-31T23:59:59Z"},
        {"end_time": "9999-12-31T23:59:59-14:00"},
        {"duration_seconds": -1},
        {"duration_seconds": "long"},
        {"status": "expired"},
        {"quality_score": 0},
        {"quality_score": 6},
        {"message_count": -1},
        {"message_count": 2**63},
        {"metadata": []},
        {"metadata": {"agent_tracker": {"event_id": "\x00"}}},
    ],
)
def test_what_is_wrong_is_refused(client: Client, wrong: Json) -> None:
    """Wrong types, ids, times, numbers and words are 422 with the reason, and nothing is kept."""
    answer = client.post("/conversations/end", GOOD | wrong)
    assert answer.status_code == 422
    assert answer.json()["detail"]
    assert client.json("/conversations")["total"] == 0


def test_metadata_that_could_not_be_written_out_again_is_refused(client: Client) -> None:
    """Nested too deep."""
    deep: Json = {}
    for _ in range(300):
        deep = {"deeper": deep}
    assert client.post("/conversations/end", GOOD | {"metadata": deep}).status_code == 422


@pytest.mark.parametrize("body", [b"", b"[]", b"5", b"{", b'{"x": NaN}', b'"\\ud800"', b"\xff", b"[" * 5000])
@pytest.mark.parametrize("path", ["/conversations/start", "/batch"])
def test_a_body_that_is_no_object_is_refused(client: Client, path: str, body: bytes) -> None:
    """Whatever comes, the answer is 422 with a reason."""
    answer = client.request("POST", path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"]


def test_json_under_another_content_type_is_refused(client: Client) -> None:
    """A form or script of another site can send text, but not JSON, without asking first."""
    body = b'{"events": []}'
    assert client.request("POST", "/batch", content=body).status_code == 422
    headers = {"Content-Type": "text/plain"}
    assert client.request("POST", "/batch", content=body, headers=headers).status_code == 422


@pytest.mark.parametrize(
    "odd", ["a/b", "..", ".", "é🤖", "\u202ertl\u202c", "%2e", "a b", "a/", "/a", "a?b#c", "active"]
)
def test_odd_ids_come_back_as_they_went(client: Client, odd: str) -> None:
    """Any id can be asked for by query, and nothing is mistaken for another."""
    client.tell(start(odd, agent_id=odd, user_id=odd), start("other"))
    answer = client.json("/conversations", session_id=odd)
    assert (answer["session_id"], answer["agent_id"], answer["user_id"]) == (odd, odd, odd)
    assert [each["session_id"] for each in client.json("/conversations", agent_id=odd)["conversations"]] == [
        odd
    ]
    assert client.json("/agents/status", agent_id=odd)["agent_id"] == odd


@pytest.mark.parametrize(
    ("odd", "path"), [("a/b", "a%2Fb"), ("é🤖", "%C3%A9%F0%9F%A4%96"), ("%2e", "%252e"), ("a/", "a/")]
)
def test_odd_ids_in_paths(client: Client, odd: str, path: str) -> None:
    """An id with a slash can stand in a path, too."""
    client.tell(start(odd, agent_id=odd))
    assert client.json(f"/conversations/{path}")["session_id"] == odd
    assert client.json(f"/agents/{path}/status")["agent_id"] == odd


def test_the_capabilities_are_those_of_the_protocol(client: Client) -> None:
    """Each is offered at a path that exists."""
    assert client.json("/capabilities") == {
        "batch": {"path": "/batch", "max_events": 500},
        "turns": {"path": "/conversations/turn"},
        "feedback": {"path": "/conversations/feedback"},
        "heartbeat": {"path": "/agents/heartbeat"},
        "queries": {"path": "/conversations"},
    }


def test_openapi_lists_every_path(client: Client) -> None:
    """Requests, queries and answers, each with its schema."""
    document = client.json("/openapi.json")
    queries = {
        *("/conversations", "/conversations/{session_id}", "/conversations/active", "/capabilities"),
        *(
            "/agents/active",
            "/agents/{agent_id}/status",
            "/agents/{agent_id}/activity",
            "/operations/overview",
        ),
        *(
            f"/metrics/{name}"
            for name in ("success-rates", "response-times", "quality", "failures", "overview")
        ),
        *("/healthz", "/readyz"),
    }
    assert document["paths"].keys() == queries | wire.REQUESTS.keys() | {"/batch"}
    named = {type_.__name__ for type_ in wire.REQUESTS.values()} | {
        "BatchRequest",
        "ConversationAnswer",
        "Failures",
    }
    assert named <= document["components"]["schemas"].keys()


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
def test_probes_may_ask_without_a_body(client: Client, path: str) -> None:
    """HEAD is answered as GET is."""
    assert client.request("HEAD", path).status_code == 200
