"""Rules of `events`: what the event spans look like, and that every conversation has one end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

from otel_agent_tracker import semconv, session_id
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.config import UserIdPolicy
from otel_agent_tracker.events import Ending, Events, TurnReport
from otel_agent_tracker.processor import SessionSpanProcessor
from otel_agent_tracker.provider import EventProvider
from otel_agent_tracker.redaction import Redactor
from otel_agent_tracker.semconv import AgentStatus, Event, FeedbackSource, Outcome, TurnStatus
from otel_agent_tracker.sessions import SessionMap
from tests.event_spans import RESOURCE, START_US, Kept

TTL, IDLE = 36_000.0, 1_800.0


class River:
    """Events on a clock that stands, with the map that they keep and the spans that they become."""

    def __init__(self, policy: UserIdPolicy = UserIdPolicy.KEEP, max_sessions: int = 100) -> None:
        self.now_us = START_US
        clock = Clock(time_ns=lambda: self.now_us * 1000 + 999, monotonic=lambda: self.now_us / 1e6)
        self.sessions = SessionMap(ttl_seconds=TTL, idle_seconds=IDLE, max_sessions=max_sessions, clock=clock)
        self.kept = Kept()
        provider = EventProvider([SessionSpanProcessor(self.sessions), self.kept], resource=RESOURCE)
        self.events = Events(
            provider, self.sessions, clock, Redactor(), user_id_policy=policy, default_agent_id="default"
        )

    def step(self, seconds: float) -> None:
        """Let time pass."""
        self.now_us += round(seconds * 1e6)

    def start(self, agent_id: str = "bot", user_id: str | None = None, **metadata: Any) -> str:
        """Start a conversation by call."""
        return self.events.start(agent_id, user_id=user_id, metadata=metadata or None)

    def turn(self, session: str, **report: Any) -> str:
        """A turn of two seconds that ends now; its id."""
        turn_id = session_id.mint_event_id()
        start_us = report.pop("start_us", self.now_us - 2_000_000)
        self.events.turn(
            session, TurnReport(turn_id=turn_id, start_us=start_us, end_us=self.now_us, **report)
        )
        return turn_id

    def sweep(self) -> None:
        """End what is due."""
        for expired in self.sessions.sweep():
            self.events.expire(expired)

    def of(self, event: Event) -> list[ReadableSpan]:
        """The spans of the event so far."""
        return [span for span in self.kept.spans if span.name == event]

    def last(self, event: Event) -> ReadableSpan:
        """The newest of them."""
        return self.of(event)[-1]


@pytest.fixture(name="river")
def _river() -> River:
    return River()


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    """The attributes of a span that has some."""
    assert span.attributes is not None
    return span.attributes


def completed(**ending: Any) -> Ending:
    """A completed end."""
    return Ending(outcome=Outcome.COMPLETED, **ending)


# --- the spans of each event --------------------------------------------------------------------------------


def common(event: Event, session: str, span: ReadableSpan) -> dict[str, Any]:
    """What every event span of a conversation has."""
    return {
        semconv.EVENT: event,
        semconv.EVENT_ID: attributes_of(span)[semconv.EVENT_ID],
        semconv.SESSION_ID: session,
        semconv.GEN_AI_CONVERSATION_ID: session,
        semconv.GEN_AI_AGENT_ID: "bot",
    }


def test_a_start(river: River) -> None:
    """A span without duration, with the metadata as JSON and the TTL of its host."""
    session = river.start(user_id="u1", plan="gold")
    span = river.last(Event.CONVERSATION_START)
    assert attributes_of(span) == {
        **common(Event.CONVERSATION_START, session, span),
        semconv.USER_ID: "u1",
        semconv.METADATA: '{"plan":"gold"}',
        semconv.TTL_SECONDS: TTL,
    }
    assert span.start_time == span.end_time == START_US * 1000
    assert session.startswith(f"bot_{START_US // 1_000_000}_")


def test_a_turn(river: River) -> None:
    """From its start to its end, with tokens and time to first token."""
    session = river.start()
    river.step(3)
    turn_id = river.turn(session, input_tokens=3, output_tokens=0, time_to_first_token=0.5, user_id="u1")
    span = river.last(Event.CONVERSATION_TURN)
    assert attributes_of(span) == {
        **common(Event.CONVERSATION_TURN, session, span),
        semconv.EVENT_ID: session_id.turn_event_id(turn_id),
        semconv.TURN_ID: turn_id,
        semconv.TURN_STATUS: "ok",
        semconv.USER_ID: "u1",
        semconv.GEN_AI_INPUT_TOKENS: 3,
        semconv.GEN_AI_OUTPUT_TOKENS: 0,
        semconv.TIME_TO_FIRST_TOKEN: 0.5,
    }
    assert (span.start_time, span.end_time) == ((river.now_us - 2_000_000) * 1000, river.now_us * 1000)
    assert span.status.status_code is StatusCode.UNSET


def test_a_failed_turn_has_an_error_status(river: River) -> None:
    """With its text, without the secrets in it, and the error's type."""
    session = river.start()
    river.turn(
        session,
        status=TurnStatus.FAILED,
        error_type="OSError",
        error_message="https://u:hunter2@host refused",
    )
    span = river.last(Event.CONVERSATION_TURN)
    assert span.status.status_code is StatusCode.ERROR
    assert attributes_of(span)[semconv.ERROR_TYPE] == "OSError"
    assert attributes_of(span)[semconv.ERROR_MESSAGE] == span.status.description
    assert "hunter2" not in str(span.status.description)
    assert "refused" in str(span.status.description)


def test_a_turn_that_ends_before_it_starts_has_no_duration(river: River) -> None:
    """A clock that was set back makes no negative time."""
    river.turn("thread-7", start_us=river.now_us + 5)
    span = river.last(Event.CONVERSATION_TURN)
    assert span.start_time == span.end_time == (river.now_us + 5) * 1000


def test_a_completed_conversation(river: River) -> None:
    """From the session's start to now, with outcome, quality and what else was said."""
    session = river.start(user_id="u1")
    river.step(60)
    assert river.events.end(
        session, completed(quality=4, feedback="good", message_count=3, metadata={"a": 1})
    )
    span = river.last(Event.CONVERSATION)
    assert attributes_of(span) == {
        **common(Event.CONVERSATION, session, span),
        semconv.OUTCOME: "completed",
        semconv.ENDED_BY: "call",
        semconv.LAST_ACTIVITY_TIME: START_US * 1000,
        semconv.QUALITY_SCORE: 4,
        semconv.QUALITY_LABEL: "GOOD",
        semconv.FEEDBACK: "good",
        semconv.MESSAGE_COUNT: 3,
        semconv.METADATA: '{"a":1}',
        semconv.USER_ID: "u1",
    }
    assert (span.start_time, span.end_time) == (START_US * 1000, (START_US + 60_000_000) * 1000)
    assert span.status.status_code is StatusCode.UNSET


def test_a_failed_conversation(river: River) -> None:
    """An error status with description, type and text."""
    session = river.start()
    river.events.end(session, Ending(outcome=Outcome.FAILED, error_message="no route", error_type="OSError"))
    span = river.last(Event.CONVERSATION)
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "no route")
    assert attributes_of(span)[semconv.OUTCOME] == "failed"
    assert attributes_of(span)[semconv.ERROR_TYPE] == "OSError"
    assert attributes_of(span)[semconv.ERROR_MESSAGE] == "no route"


def test_an_expired_conversation(river: River) -> None:
    """It ends at its last activity, says why, and no status blames anybody."""
    session = river.start()
    river.step(60)
    river.turn(session)
    last_activity_us = river.now_us
    river.step(TTL)
    river.sweep()
    span = river.last(Event.CONVERSATION)
    event_id = sha256(f"conversation\n{session}\n{last_activity_us}".encode()).hexdigest()[:32]
    assert attributes_of(span) == {
        **common(Event.CONVERSATION, session, span),
        semconv.EVENT_ID: event_id,
        semconv.OUTCOME: "expired",
        semconv.EXPIRY_REASON: "ttl_timeout",
        semconv.ENDED_BY: "ttl",
        semconv.LAST_ACTIVITY_TIME: last_activity_us * 1000,
        semconv.IDLE_SECONDS: TTL,
    }
    assert (span.start_time, span.end_time) == (START_US * 1000, last_activity_us * 1000)
    assert span.status.status_code is StatusCode.UNSET


def test_an_evicted_conversation() -> None:
    """The idlest gives way when the map is full; the window it tells is the TTL."""
    river = River(max_sessions=1)
    first = river.start()
    river.step(1)
    river.start()
    river.sweep()
    attributes = attributes_of(river.last(Event.CONVERSATION))
    assert attributes[semconv.SESSION_ID] == first
    assert (attributes[semconv.ENDED_BY], attributes[semconv.EXPIRY_REASON]) == ("evicted", "evicted")
    assert attributes[semconv.IDLE_SECONDS] == TTL


@pytest.mark.parametrize(
    ("status", "outcome", "code"),
    [
        (TurnStatus.OK, "completed", StatusCode.UNSET),
        (TurnStatus.CANCELLED, "completed", StatusCode.UNSET),
        (TurnStatus.FAILED, "failed", StatusCode.ERROR),
    ],
)
def test_an_idle_conversation(river: River, status: TurnStatus, outcome: str, code: StatusCode) -> None:
    """One that nobody started by call ends as its last turn did, never with a quality."""
    river.turn("thread-7", agent_id="bot", status=status, error_type="OSError", error_message="no route")
    river.step(IDLE)
    river.sweep()
    span = river.last(Event.CONVERSATION)
    attributes = attributes_of(span)
    assert (attributes[semconv.OUTCOME], attributes[semconv.ENDED_BY]) == (outcome, "idle")
    assert attributes[semconv.IDLE_SECONDS] == IDLE
    assert attributes[semconv.ORIGIN] == "recognised"
    assert semconv.QUALITY_SCORE not in attributes
    assert span.status.status_code is code
    assert attributes.get(semconv.ERROR_TYPE) == ("OSError" if outcome == "failed" else None)


def test_feedback(river: River) -> None:
    """With an id of its own, which is the event's too."""
    session = river.start()
    river.events.feedback(
        session,
        source=FeedbackSource.OPERATOR,
        score=2,
        thumbs=None,
        text="rude",
        name="tone",
        turn_id="t1",
        agent_id=None,
    )
    span = river.last(Event.CONVERSATION_FEEDBACK)
    assert attributes_of(span) == {
        **common(Event.CONVERSATION_FEEDBACK, session, span),
        semconv.FEEDBACK_ID: attributes_of(span)[semconv.EVENT_ID],
        semconv.FEEDBACK_SOURCE: "operator",
        semconv.FEEDBACK_SCORE: 2,
        semconv.FEEDBACK_NAME: "tone",
        semconv.FEEDBACK_TEXT: "rude",
        semconv.FEEDBACK_TURN_ID: "t1",
    }


def test_agents(river: River) -> None:
    """Registration, status, and an activity that lasts as long as it lasted."""
    river.events.register("bot", sdk_version="1", metadata={"a": 1})
    river.events.status("bot", AgentStatus.BUSY, previous_status=AgentStatus.IDLE, metadata=None)
    river.events.activity("bot", "purr", {"x": [1]}, duration=1.5)
    register, status, activity = river.kept.spans
    assert [span.name for span in river.kept.spans] == ["agent.register", "agent.status", "agent.activity"]
    assert attributes_of(register)[semconv.AGENT_SDK_VERSION] == "1"
    assert attributes_of(register)[semconv.METADATA] == '{"a":1}'
    assert attributes_of(status)[semconv.AGENT_STATUS] == "busy"
    assert attributes_of(status)[semconv.AGENT_PREVIOUS_STATUS] == "idle"
    assert attributes_of(activity)[semconv.AGENT_ACTION] == "purr"
    assert attributes_of(activity)[semconv.AGENT_DETAILS] == '{"x":[1]}'
    assert (activity.start_time, activity.end_time) == ((START_US - 1_500_000) * 1000, START_US * 1000)
    assert {attributes_of(span)[semconv.GEN_AI_AGENT_ID] for span in river.kept.spans} == {"bot"}
    assert len({span.context.trace_id for span in river.kept.spans if span.context}) == 3


# --- ids, parents, links ------------------------------------------------------------------------------------


def test_a_session_is_one_trace_below_its_conversation(river: River) -> None:
    """The trace id follows from the session id, the conversation's span id from session id and start."""
    session = river.start()
    river.step(5)
    river.turn(session)
    river.events.end(session, completed())
    digest = sha256(session.encode()).hexdigest()
    conversation_id = sha256(f"{session}\n{START_US}".encode()).hexdigest()[:16]
    start, turn, conversation = river.kept.spans
    for span in river.kept.spans:
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == digest[:32]
        assert span.context.trace_flags.sampled
        assert span.kind is SpanKind.INTERNAL
        assert span.resource is RESOURCE
    assert conversation.context is not None
    assert f"{conversation.context.span_id:016x}" == conversation_id
    assert conversation.parent is None
    assert start.parent is not None
    assert turn.parent is not None
    assert start.parent.span_id == turn.parent.span_id == conversation.context.span_id


def test_the_ambient_span_is_a_link_and_no_parent(river: River) -> None:
    """An event belongs to the session's trace; where it happened is told by the link."""
    ambient = SpanContext(1 << 100, 1 << 50, is_remote=False, trace_flags=TraceFlags(0))
    with trace.use_span(NonRecordingSpan(ambient)):
        session = river.start()
    river.events.end(session, completed())
    start, end = river.kept.spans
    assert [link.context for link in start.links] == [ambient]
    assert start.context is not None
    assert start.context.trace_id != ambient.trace_id
    assert not end.links


def test_every_event_has_an_id_of_its_own(river: River) -> None:
    """Minted once, 32 hex digits; for turns and for recognised starts derived from what they are."""
    session = river.start()
    river.events.end(session, completed())
    turn_id = river.turn("thread-7")
    ids = [attributes_of(span)[semconv.EVENT_ID] for span in river.kept.spans]
    assert len(set(ids)) == len(ids) == 4
    start_us = START_US - 2_000_000
    assert ids[2] == sha256(f"conversation.start\nthread-7\n{start_us}".encode()).hexdigest()[:32]
    assert ids[3] == sha256(turn_id.encode()).hexdigest()[:32]


def test_times_are_cut_to_microseconds(river: River) -> None:
    """The clock's nanoseconds are dropped when the event is made, so that every sender says the same."""
    session = river.start()
    river.turn(session)
    river.events.end(session, completed())
    assert not [
        span for span in river.kept.spans if (span.start_time or 1) % 1000 or (span.end_time or 1) % 1000
    ]


# --- one end ------------------------------------------------------------------------------------------------


def test_an_end_after_the_end_is_false_and_one_line(river: River, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is sent a second time."""
    session = river.start()
    assert river.events.end(session, completed())
    assert not river.events.end(session, Ending(outcome=Outcome.FAILED, error_message="x"))
    assert len(river.of(Event.CONVERSATION)) == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "has ended already" in record.getMessage()


def test_an_end_after_expiry_is_false_before_the_sweep_too(river: River) -> None:
    """A session past its TTL is expired for everyone; the sweep reports it, once."""
    session = river.start()
    river.step(TTL)
    assert not river.events.end(session, completed())
    river.sweep()
    assert not river.events.end(session, completed())
    (span,) = river.of(Event.CONVERSATION)
    assert attributes_of(span)[semconv.OUTCOME] == "expired"


@pytest.mark.parametrize(
    ("session", "agent_id", "lacks"),
    [
        ("bot_1705681000_a1b2c3d4", None, ("start_time", "agent_id")),
        ("bot_1705681000_a1b2c3d4", "other", ("start_time",)),
        ("thread-7", "other", ("start_time",)),
    ],
)
def test_an_end_of_an_unknown_session_names_what_it_lacks(
    river: River, session: str, agent_id: str | None, lacks: tuple[str, ...]
) -> None:
    """Agent and start come from the id or the caller; the worker fills in what another process knows."""
    assert river.events.end(session, completed(agent_id=agent_id))
    span = river.last(Event.CONVERSATION)
    assert attributes_of(span)[semconv.LACKS] == lacks
    assert attributes_of(span)[semconv.GEN_AI_AGENT_ID] == (agent_id or "bot")
    start_us = 1_705_681_000_000_000 if session.startswith("bot") else START_US
    assert span.start_time == start_us * 1000
    assert not river.events.end(session, completed(agent_id=agent_id))


def test_an_end_of_an_unknown_session_of_another_form_needs_an_agent(
    river: River, caplog: pytest.LogCaptureFixture
) -> None:
    """The log line says what to pass."""
    assert not river.events.end("thread-7", completed())
    assert river.kept.spans == []
    assert "pass agent_id=" in caplog.text


def test_a_start_in_the_future_makes_no_negative_duration(river: River) -> None:
    """An id minted by a host whose clock is ahead."""
    assert river.events.end("bot_1905681000_a1b2c3d4", completed())
    span = river.last(Event.CONVERSATION)
    assert span.start_time == span.end_time == START_US * 1000


# --- turns open sessions ------------------------------------------------------------------------------------


def test_the_first_turn_of_an_unknown_thread_opens_it(river: River) -> None:
    """Its start is the turn's; its agent the turn's or the default."""
    river.turn("thread-7", agent_id="bot")
    river.turn("thread-8")
    first, _, second, _ = river.kept.spans
    assert first.start_time == (START_US - 2_000_000) * 1000
    assert attributes_of(first)[semconv.ORIGIN] == "recognised"
    assert attributes_of(first)[semconv.GEN_AI_AGENT_ID] == "bot"
    assert attributes_of(second)[semconv.GEN_AI_AGENT_ID] == "default"


def test_a_turn_of_an_id_of_ours_starts_nothing(river: River) -> None:
    """Another process started it by call; this one only goes on with it."""
    river.turn("bot_1705681000_a1b2c3d4")
    assert [span.name for span in river.kept.spans] == ["conversation.turn"]
    live = river.sessions.get("bot_1705681000_a1b2c3d4")
    assert live is not None
    assert (live.agent_id, live.origin, live.turns) == ("bot", "call", 1)
    assert live.start_us == 1_705_681_000_000_000


def test_a_turn_after_the_end_opens_the_next_conversation(river: River) -> None:
    """One that began before it belongs to what ended."""
    session = river.start()
    river.step(10)
    river.events.end(session, completed())
    river.step(1)
    river.turn(session)
    assert session not in river.sessions
    river.step(10)
    river.turn(session)
    assert len(river.of(Event.CONVERSATION_START)) == 2
    assert session in river.sessions


def test_a_session_of_ours_goes_on_by_call_after_its_time_to_live(river: River) -> None:
    """Where others saw life in it, it is not over, and an idle end would not count: it ends by call or its TTL."""
    session = river.start()
    river.step(TTL)
    river.turn(session)
    river.step(1)
    river.turn(session)
    assert semconv.ORIGIN not in attributes_of(river.last(Event.CONVERSATION_START))
    river.step(IDLE)
    river.sweep()
    assert session in river.sessions
    river.step(TTL)
    river.sweep()
    assert attributes_of(river.last(Event.CONVERSATION))[semconv.ENDED_BY] == "ttl"


@pytest.mark.parametrize("session", ["thread-7", "bot_1705681000_a1b2c3d4"])
def test_a_turn_that_was_under_way_at_an_inferred_end_reopens_the_session(river: River, session: str) -> None:
    """It refutes that end, so the conversation has yet to end."""
    river.turn(session)
    river.step(TTL)
    river.sweep()
    assert session not in river.sessions
    river.step(1)
    river.turn(session, start_us=river.now_us - 5_000_000)
    assert session in river.sessions
    river.step(TTL)
    river.sweep()
    assert len(river.of(Event.CONVERSATION)) == 2


# --- what users write ---------------------------------------------------------------------------------------


def test_secrets_are_taken_out(river: River) -> None:
    """Of metadata, feedback, errors and activities, before they are anywhere."""
    secret = "sk-ant-api03-abcdefghijklmnopqrstuvwxyz0123456789"
    session = river.start(password="hunter2", note=secret)
    river.events.end(session, completed(feedback=f"my key is {secret}", metadata={"k": secret}))
    river.events.activity("bot", f"used {secret}", {"k": secret}, duration=None)
    shown = "".join(span.to_json() for span in river.kept.spans)
    assert secret not in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (UserIdPolicy.KEEP, "u1"),
        (UserIdPolicy.HASH, sha256(b"u1").hexdigest()[:32]),
        (UserIdPolicy.DROP, None),
    ],
)
def test_user_ids_follow_the_policy(policy: UserIdPolicy, kept: str | None) -> None:
    """On every event span, and in the map, from which ends are made."""
    river = River(policy)
    session = river.start(user_id="u1")
    river.turn(session, user_id="u1")
    river.events.end(session, completed())
    river.turn("bot_1705681000_a1b2c3d4", user_id="u1")
    river.events.end("bot_1705681000_a1b2c3d4", completed())
    assert [attributes_of(span).get(semconv.USER_ID) for span in river.kept.spans] == [kept] * 5
