"""Rules of `mapping`: each event to its request, whoever made the span."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import Status, StatusCode

from otel_agent_tracker import mapping, semconv
from otel_agent_tracker.entry import Entry
from otel_agent_tracker.mapping import to_request
from otel_agent_tracker.semconv import Event
from tests.event_spans import RESOURCE, SPAN_ID, TRACE_ID, foreign_span

SESSION = {semconv.SESSION_ID: "thread-7", semconv.GEN_AI_AGENT_ID: "bot"}
START, END = "2024-01-19T16:17:36.000001Z", "2024-01-19T16:17:38.500001Z"
SERVICE = {"name": "shop", "version": "2", "instance": "shop-1"}


def derived_id(event: str) -> str:
    """The event id of a span whose sender minted none, spelt out."""
    return sha256(f"{TRACE_ID:032x}\n{SPAN_ID:016x}\n{event}".encode()).hexdigest()[:32]


def mark_of(event: str, **marks: object) -> dict[str, Any]:
    """The part of the metadata that is ours."""
    return {
        "event_id": derived_id(event),
        "trace_id": f"{TRACE_ID:032x}",
        "origin": "call",
        "service": SERVICE,
        **marks,
    }


def entry_of(event: str, attributes: dict[str, Any], **options: Any) -> Entry:
    """The entry of a span that is an event."""
    entry = to_request(foreign_span(event, attributes, **options))
    assert entry is not None
    return entry


# --- each event -----------------------------------------------------------------------------------------------

ENDED = {
    "session_id": "thread-7",
    "agent_id": "bot",
    "start_time": START,
    "end_time": END,
    "duration_seconds": 2.5,
}

REQUESTS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "start": (
        Event.CONVERSATION_START,
        {**SESSION, semconv.USER_ID: "u1", semconv.METADATA: '{"plan":"gold"}', semconv.TTL_SECONDS: 60.0},
        "/conversations/start",
        {
            "session_id": "thread-7",
            "agent_id": "bot",
            "start_time": START,
            "user_id": "u1",
            "metadata": {
                "plan": "gold",
                "agent_tracker": mark_of(Event.CONVERSATION_START, ttl_seconds=60.0),
            },
        },
    ),
    "bare start": (
        Event.CONVERSATION_START,
        SESSION,
        "/conversations/start",
        {
            "session_id": "thread-7",
            "agent_id": "bot",
            "start_time": START,
            "metadata": {"agent_tracker": mark_of(Event.CONVERSATION_START)},
        },
    ),
    "turn": (
        Event.CONVERSATION_TURN,
        {
            **SESSION,
            semconv.TURN_ID: "t1",
            semconv.TURN_STATUS: "waiting",
            semconv.GEN_AI_INPUT_TOKENS: 3,
            semconv.GEN_AI_OUTPUT_TOKENS: 0,
            semconv.TIME_TO_FIRST_TOKEN: 0.25,
            semconv.USER_ID: "u1",
        },
        "/conversations/turn",
        {
            **ENDED,
            "turn_id": "t1",
            "status": "waiting",
            "input_tokens": 3,
            "output_tokens": 0,
            "time_to_first_token": 0.25,
            "user_id": "u1",
            "service": SERVICE,
        },
    ),
    "bare turn": (
        Event.CONVERSATION_TURN,
        SESSION,
        "/conversations/turn",
        {**ENDED, "turn_id": derived_id(Event.CONVERSATION_TURN), "status": "ok", "service": SERVICE},
    ),
    "completed": (
        Event.CONVERSATION,
        {
            **SESSION,
            semconv.OUTCOME: "completed",
            semconv.QUALITY_SCORE: 5,
            semconv.FEEDBACK: "good",
            semconv.MESSAGE_COUNT: 0,
            semconv.LAST_ACTIVITY_TIME: 1_705_681_057_000_001_999,
        },
        "/conversations/end",
        {
            **ENDED,
            "status": "completed",
            "quality_score": 5,
            "user_feedback": "good",
            "message_count": 0,
            "metadata": {
                "agent_tracker": mark_of(
                    Event.CONVERSATION, ended_by="call", last_activity_time="2024-01-19T16:17:37.000001Z"
                )
            },
        },
    ),
    "ended by idleness": (
        Event.CONVERSATION,
        {
            **SESSION,
            semconv.OUTCOME: "failed",
            semconv.ENDED_BY: "idle",
            semconv.IDLE_SECONDS: 1800.0,
            semconv.ORIGIN: "recognised",
            semconv.ERROR_TYPE: "OSError",
            semconv.ERROR_MESSAGE: "no route",
            semconv.UNGROUPED: True,
        },
        "/conversations/end",
        {
            **ENDED,
            "status": "failed",
            "error_message": "no route",
            "metadata": {
                "agent_tracker": mark_of(
                    Event.CONVERSATION,
                    ended_by="idle",
                    idle_seconds=1800.0,
                    origin="recognised",
                    error_type="OSError",
                    ungrouped=True,
                )
            },
        },
    ),
    "evicted": (
        Event.CONVERSATION,
        {
            **SESSION,
            semconv.OUTCOME: "expired",
            semconv.ENDED_BY: "evicted",
            semconv.EXPIRY_REASON: "evicted",
        },
        "/conversations/expired",
        {
            **ENDED,
            "status": "expired",
            "expiry_reason": "evicted",
            "metadata": {"agent_tracker": mark_of(Event.CONVERSATION, ended_by="evicted")},
        },
    ),
    "rating": (
        Event.CONVERSATION_FEEDBACK,
        {
            semconv.SESSION_ID: "thread-7",
            semconv.FEEDBACK_ID: "f1",
            semconv.FEEDBACK_SOURCE: "evaluator",
            semconv.FEEDBACK_SCORE: 2,
            semconv.FEEDBACK_NAME: "tone",
            semconv.FEEDBACK_TEXT: "rude",
            semconv.FEEDBACK_TURN_ID: "t1",
        },
        "/conversations/feedback",
        {
            "feedback_id": "f1",
            "session_id": "thread-7",
            "timestamp": END,
            "source": "evaluator",
            "quality_score": 2,
            "name": "tone",
            "turn_id": "t1",
            "user_feedback": "rude",
        },
    ),
    "bare thumbs": (
        Event.CONVERSATION_FEEDBACK,
        {semconv.SESSION_ID: "thread-7", semconv.FEEDBACK_THUMBS: "up"},
        "/conversations/feedback",
        {
            "feedback_id": derived_id(Event.CONVERSATION_FEEDBACK),
            "session_id": "thread-7",
            "timestamp": END,
            "source": "user",
            "thumbs": "up",
        },
    ),
    "registration": (
        Event.AGENT_REGISTER,
        {semconv.GEN_AI_AGENT_ID: "bot", semconv.AGENT_SDK_VERSION: "1"},
        "/agents/register",
        {
            "agent_id": "bot",
            "registration_time": END,
            "sdk_version": "1",
            "metadata": {"agent_tracker": mark_of(Event.AGENT_REGISTER)},
        },
    ),
    "status": (
        Event.AGENT_STATUS,
        {
            semconv.GEN_AI_AGENT_ID: "bot",
            semconv.AGENT_STATUS: "busy",
            semconv.AGENT_PREVIOUS_STATUS: "idle",
        },
        "/agents/status",
        {
            "agent_id": "bot",
            "status": "busy",
            "timestamp": END,
            "previous_status": "idle",
            "metadata": {"agent_tracker": mark_of(Event.AGENT_STATUS)},
        },
    ),
    "activity": (
        Event.AGENT_ACTIVITY,
        {semconv.GEN_AI_AGENT_ID: "bot", semconv.AGENT_ACTION: "purr", semconv.AGENT_DETAILS: '["x"]'},
        "/agents/activity",
        {"agent_id": "bot", "action": "purr", "timestamp": END, "details": ["x"], "duration": 2.5},
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_each_event_has_its_request(name: str) -> None:
    """The whole body, from a span of which only the row's attributes are set."""
    event, attributes, path, body = REQUESTS[name]
    entry = entry_of(event, attributes)
    assert (entry.event, entry.path, entry.body) == (event, path, body)
    assert entry.event_id == derived_id(event)
    assert entry.service == SERVICE
    assert entry.lane == attributes.get(semconv.SESSION_ID, "bot")


def test_every_event_is_covered_here() -> None:
    """The table above knows all of them."""
    assert {event for event, _, _, _ in REQUESTS.values()} == set(Event)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_copy_is_no_event(name: str) -> None:
    """A marked copy that comes back, through a Collector for example, is passed over."""
    event, attributes, _, _ = REQUESTS[name]
    assert to_request(foreign_span(event, {**attributes, semconv.COPY: True})) is None


@pytest.mark.parametrize("event", [None, "conversation.end", "", "chat gpt"])
def test_other_spans_are_no_events(event: str | None) -> None:
    """Whatever they are called and whichever session they carry."""
    assert to_request(foreign_span(event, SESSION)) is None


@pytest.mark.parametrize("event", [e for e in Event if e.startswith("conversation")])
def test_an_event_of_a_conversation_needs_a_session(event: Event) -> None:
    """Without one there is nothing to say of whom."""
    assert to_request(foreign_span(event, {semconv.GEN_AI_AGENT_ID: "bot"})) is None


def test_the_conversation_id_stands_in_for_the_session_id() -> None:
    """GenAI instrumentations know the one, sessions the other; ours wins where both are."""
    conversation = {semconv.GEN_AI_CONVERSATION_ID: "c1"}
    assert entry_of(Event.CONVERSATION_START, conversation).session_id == "c1"
    both = conversation | {semconv.SESSION_ID: "s1"}
    assert entry_of(Event.CONVERSATION_START, both).session_id == "s1"


@pytest.mark.parametrize(
    ("session", "agent_id"), [("my_bot_1674123456_a1b2c3d4", "my_bot"), ("thread-7", "shop")]
)
def test_an_agent_that_is_not_named_is_read_from_the_id_or_is_the_service(
    session: str, agent_id: str
) -> None:
    """The best that a sender without our library tells."""
    assert entry_of(Event.CONVERSATION_START, {semconv.SESSION_ID: session}).agent_id == agent_id


def test_a_minted_event_id_is_kept() -> None:
    """It is the span's, in the entry and in the mark."""
    entry = entry_of(Event.CONVERSATION_START, {**SESSION, semconv.EVENT_ID: "e1"})
    assert entry.event_id == entry.body["metadata"]["agent_tracker"]["event_id"] == "e1"


# --- metadata -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [Event.CONVERSATION_START, Event.CONVERSATION, Event.AGENT_REGISTER])
def test_metadata_cannot_overwrite_our_key(event: Event) -> None:
    """A user's key of the same name gives way."""
    forged = {**SESSION, semconv.METADATA: '{"agent_tracker":{"ended_by":"server","event_id":"x"},"a":1}'}
    metadata = entry_of(event, forged).body["metadata"]
    assert metadata["a"] == 1
    assert metadata["agent_tracker"]["event_id"] == derived_id(event)
    assert metadata["agent_tracker"].get("ended_by", "call") == "call"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("not json", {"text": "not json"}), ("[1]", {"value": [1]}), ("null", {"value": None})],
)
def test_metadata_that_is_no_object_is_kept(text: str, shown: dict[str, Any]) -> None:
    """Another sender may write anything."""
    metadata = entry_of(Event.CONVERSATION_START, {**SESSION, semconv.METADATA: text}).body["metadata"]
    assert {key: value for key, value in metadata.items() if key != "agent_tracker"} == shown


# --- status, service ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "name"), [(StatusCode.UNSET, "ok"), (StatusCode.OK, "ok"), (StatusCode.ERROR, "failed")]
)
def test_a_turns_status_is_the_spans_where_nothing_is_said(status: StatusCode, name: str) -> None:
    """And so is the error's text."""
    text = "no route" if status is StatusCode.ERROR else None
    body = entry_of(Event.CONVERSATION_TURN, SESSION, status=Status(status, text)).body
    assert body["status"] == name
    assert body.get("error_message") == text


def test_a_failed_conversation_says_why() -> None:
    """By our attribute, else by the status's description; a completed one says nothing."""
    failed, status = {**SESSION, semconv.OUTCOME: "failed"}, Status(StatusCode.ERROR, "described")
    assert entry_of(Event.CONVERSATION, failed, status=status).body["error_message"] == "described"
    said = {**failed, semconv.ERROR_MESSAGE: "said"}
    assert entry_of(Event.CONVERSATION, said, status=status).body["error_message"] == "said"
    completed = {**said, semconv.OUTCOME: "completed"}
    assert "error_message" not in entry_of(Event.CONVERSATION, completed, status=status).body


@pytest.mark.parametrize("key", ["deployment.environment.name", "deployment.environment"])
def test_the_environment_has_two_names(key: str) -> None:
    """Today's and the one before; values are text."""
    resource = Resource({"service.name": "shop", key: "prod"})
    assert mapping.service_of(resource) == {"name": "shop", "environment": "prod"}


def test_a_service_without_a_name_is_unknown() -> None:
    """And each resource is read once."""
    resource = Resource({})
    assert mapping.service_of(resource) == {"name": "unknown_service"}
    assert mapping.service_of(resource) is mapping.service_of(resource)
    assert mapping.service_of(RESOURCE) == SERVICE


def test_many_resources_are_all_read() -> None:
    """The memory of resources is bounded, and forgetting changes no answer."""
    resources = [Resource({"service.name": f"s{number}"}) for number in range(mapping._MAX_SERVICES + 5)]
    assert [mapping.service_of(resource)["name"] for resource in resources] == [
        f"s{number}" for number in range(len(resources))
    ]
    assert len(mapping._services) <= mapping._MAX_SERVICES


# --- completion -----------------------------------------------------------------------------------------------


def lacking(*names: str) -> Entry:
    """An end whose caller did not know these."""
    return entry_of(Event.CONVERSATION, {**SESSION, semconv.LACKS: names, semconv.OUTCOME: "completed"})


def test_what_a_caller_lacked_is_filled_in() -> None:
    """Agent, start, and the duration that follows from it."""
    entry = mapping.complete(
        lacking("start_time", "agent_id"), agent_id="real", start_us=1_705_681_038_500_001
    )
    assert entry.agent_id == entry.body["agent_id"] == "real"
    assert entry.body["start_time"] == "2024-01-19T16:17:18.500001Z"
    assert entry.body["duration_seconds"] == 20.0
    assert entry.lacks == ()


def test_what_a_caller_knew_stays() -> None:
    """Nothing that is not named as lacking is touched, and what was read is not changed."""
    before = lacking("start_time")
    body = dict(before.body)
    entry = mapping.complete(before, agent_id="other", start_us=1)
    assert entry.body["agent_id"] == "bot"
    assert before.body == body
    assert mapping.complete(lacking(), agent_id="other", start_us=1).body == body


def test_what_nobody_knows_stays_as_it_was() -> None:
    """A state file that does not know the session adds nothing."""
    before = lacking("start_time", "agent_id")
    assert mapping.complete(before, agent_id=None, start_us=None).body == before.body


def test_a_start_after_the_end_is_cut() -> None:
    """Clocks of two hosts may differ: no duration is negative."""
    entry = mapping.complete(lacking("start_time"), agent_id=None, start_us=1_905_681_038_500_001)
    assert (entry.body["start_time"], entry.body["duration_seconds"]) == (END, 0.0)
