"""How conversations end, from the public API to what a tracker tells of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from otel_agent_tracker import (
    AgentPerformanceTracker,
    AsyncAgentPerformanceTracker,
    ConversationQuality,
    Turn,
)
from otel_agent_tracker.testing import RecordedConversation, RecordedConversations, RecordedTurn


class ModelError(Exception):
    """What an agent's model may raise."""


@pytest.fixture
def tracker(recorded_conversations: RecordedConversations) -> AgentPerformanceTracker:
    """A tracker whose requests are recorded."""
    return AgentPerformanceTracker("https://tracker.example.com")


def the_only(recorded: RecordedConversations) -> RecordedConversation:
    (conversation,) = recorded.conversations
    return conversation


def the_only_turn(recorded: RecordedConversations) -> RecordedTurn:
    (turn,) = the_only(recorded).turns
    return turn


# --- by call ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [*ConversationQuality, 1, 2, 3, 4, 5])
def test_quality_as_enum_and_number(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations, quality: int
) -> None:
    """A member and its number are the same to the tracker, which gets the number."""
    tracker.end_conversation(tracker.start_conversation("bot"), quality)
    assert recorded_conversations.requests[-1].body["quality_score"] == int(quality)
    assert the_only(recorded_conversations).quality == int(quality)


def test_failure_with_message(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """The error's text and type, and metadata of the end over that of the start."""
    session = tracker.start_conversation("bot", metadata={"channel": "web", "try": 1})
    assert tracker.record_failed_session(session, "no route to model", {"try": 2}, error_type="ConnectError")
    failed = the_only(recorded_conversations)
    assert (failed.outcome, failed.error_message) == ("failed", "no route to model")
    assert (failed.error_type, failed.metadata) == ("ConnectError", {"channel": "web", "try": 2})


def test_message_count_feedback_and_metadata(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """All that an end can say arrives; nothing in user metadata replaces our own key."""
    session = tracker.start_conversation("bot", "u1")
    tracker.end_conversation(session, 4, "quick ✓", 12, {"tags": ["a"], "agent_tracker": {"event_id": "x"}})
    body = recorded_conversations.requests[-1].body
    assert (body["user_feedback"], body["message_count"]) == ("quick ✓", 12)
    assert body["metadata"]["tags"] == ["a"]
    assert body["metadata"]["agent_tracker"]["ended_by"] == "call"
    assert body["metadata"]["agent_tracker"]["event_id"] != "x"


@pytest.mark.parametrize("again", ["end_conversation", "record_failed_session"])
@pytest.mark.parametrize("first", ["end_conversation", "record_failed_session"])
def test_a_second_end_is_false_and_says_so_once(
    tracker: AgentPerformanceTracker,
    recorded_conversations: RecordedConversations,
    caplog: pytest.LogCaptureFixture,
    first: str,
    again: str,
) -> None:
    """Ending twice, failing after the end: False, one log line, no second request."""
    ends: dict[str, Callable[[str], bool]] = {
        "end_conversation": tracker.end_conversation,
        "record_failed_session": lambda session: tracker.record_failed_session(session, "boom"),
    }
    session = tracker.start_conversation("bot")
    assert ends[first](session) is True
    requests = recorded_conversations.requests
    assert ends[again](session) is False
    assert len(caplog.records) == 1
    assert session in caplog.text
    assert recorded_conversations.requests == requests


def test_an_end_after_expiry_changes_nothing(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """The session is gone; whoever wants to rate it can still give feedback."""
    session = tracker.start_conversation("bot")
    recorded_conversations.clock.advance(hours=11)
    assert not tracker.end_conversation(session, 5)
    assert the_only(recorded_conversations).outcome == "expired"


# --- feedback -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before the start", "in between", "after the end", "after expiry"])
def test_feedback_counts_whenever_it_comes(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations, moment: str
) -> None:
    """Before the start, in between, after the end and after expiry: it reaches the conversation."""

    def rate() -> None:
        assert tracker.record_feedback("thread-7", thumbs="up", user_feedback="fine")

    if moment == "before the start":
        rate()
    with tracker.turn("thread-7", agent_id="bot"):
        pass
    if moment == "in between":
        rate()
    if moment == "after expiry":
        tracker.set_session_ttl(0.01)
        recorded_conversations.clock.advance(hours=1)
        rate()
    else:
        tracker.end_conversation("thread-7")
    if moment == "after the end":
        rate()
    rated = the_only(recorded_conversations)
    assert (rated.quality, rated.feedback) == (5, "fine")
    assert rated.outcome == ("expired" if moment == "after expiry" else "completed")


def test_feedback_of_each_source_and_turn_arrives(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """An operator's word outranks a user's; a turn can be rated by its id."""
    session = tracker.start_conversation("bot")
    with tracker.turn(session) as turn:
        pass
    tracker.record_feedback(session, 2, turn_id=turn.turn_id)
    tracker.record_feedback(session, 1, source="evaluator", name="toxicity")
    tracker.record_feedback(session, ConversationQuality.GOOD, "seen", source="operator")
    bodies = [body for path, body in recorded_conversations.requests if path == "/conversations/feedback"]
    assert [body["source"] for body in bodies] == ["user", "evaluator", "operator"]
    assert (bodies[0]["turn_id"], bodies[1]["name"]) == (turn.turn_id, "toxicity")
    assert the_only(recorded_conversations).quality == 4


# --- blocks -------------------------------------------------------------------------------------------------


def test_a_block_completes_with_what_was_said_in_it(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """Quality, feedback and message count go with the end; a rating after it by itself."""
    with tracker.conversation("bot", "u1", {"channel": "web"}) as conversation:
        conversation.rate(3, feedback="so so")
        conversation.set_message_count(2)
        with conversation.turn():
            pass
    told = the_only(recorded_conversations)
    assert (told.outcome, told.quality, told.feedback, told.message_count) == ("completed", 3, "so so", 2)
    assert (told.session_id, told.user_id, len(told.turns)) == (conversation.session_id, "u1", 1)
    conversation.rate(5)
    assert the_only(recorded_conversations).quality == 5


def test_an_exception_inside_the_block_makes_it_failed(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """The exception leaves the block as it was, its type and text go with the end; the turn failed too."""
    with pytest.raises(ModelError), tracker.conversation("bot") as conversation, conversation.turn():
        raise ModelError("out of memory")
    failed = the_only(recorded_conversations)
    assert (failed.outcome, failed.error_message) == ("failed", "out of memory")
    assert failed.error_type == f"{__name__}.ModelError"
    (turn,) = failed.turns
    assert (turn.status, turn.error_type) == ("failed", f"{__name__}.ModelError")


def test_a_failed_turn_alone_does_not_fail_the_block(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """Whoever catches the exception goes on; `fail` says otherwise."""
    with tracker.conversation("bot") as conversation, pytest.raises(ModelError), conversation.turn():
        raise ModelError
    with tracker.conversation("bot") as conversation:
        conversation.fail("gave up")
    assert [each.outcome for each in recorded_conversations.conversations] == ["completed", "failed"]


def test_blocks_work_in_asyncio(recorded_conversations: RecordedConversations) -> None:
    """The same objects as `async with`; an exception fails, a cancellation of the turn does not."""

    async def story() -> None:
        async with AsyncAgentPerformanceTracker() as tracker:
            async with tracker.conversation("bot") as conversation, conversation.turn():
                await asyncio.sleep(0)
            with pytest.raises(ModelError):
                async with tracker.conversation("bot"):
                    raise ModelError("boom")
            async with tracker.conversation("bot") as conversation:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.001), conversation.turn():
                        await asyncio.Event().wait()

    asyncio.run(story())
    fine, failed, cancelled = recorded_conversations.conversations
    assert (fine.outcome, [turn.status for turn in fine.turns]) == ("completed", ["ok"])
    assert (failed.outcome, failed.error_message) == ("failed", "boom")
    assert (cancelled.outcome, [turn.status for turn in cancelled.turns]) == ("completed", ["cancelled"])


@pytest.mark.parametrize(
    ("say", "status", "message"),
    [
        (lambda turn: None, "ok", None),
        (lambda turn: turn.fail("bad answer"), "failed", "bad answer"),
        (lambda turn: turn.fail(ModelError("bad")), "failed", "bad"),
        (Turn.cancel, "cancelled", None),
        (Turn.wait, "waiting", None),
    ],
)
def test_a_turn_says_how_it_went(
    tracker: AgentPerformanceTracker,
    recorded_conversations: RecordedConversations,
    say: Callable[[Turn], None],
    status: str,
    message: str | None,
) -> None:
    """`fail`, `cancel`, `wait`, or nothing; its duration is the response time."""
    with tracker.conversation("bot") as conversation, conversation.turn() as turn:
        recorded_conversations.clock.advance(seconds=1.5)
        say(turn)
    told = the_only_turn(recorded_conversations)
    assert (told.turn_id, told.status, told.error_message) == (turn.turn_id, status, message)
    assert told.duration_seconds == pytest.approx(1.5, abs=0.001)


# --- streams ------------------------------------------------------------------------------------------------

Advance = Callable[[], None]


class Answer:
    """Three chunks, a second apart; it fails before the third if it is to."""

    def __init__(self, advance: Advance, *, fails: bool = False) -> None:
        self._advance = advance
        self._fails = fails
        self.closed = False

    def chunks(self) -> Iterator[str]:
        try:
            for number in range(3):
                self._advance()
                if number == 2 and self._fails:
                    raise ModelError("cut off")
                yield str(number)
        finally:
            self.closed = True

    async def async_chunks(self) -> AsyncIterator[str]:
        for chunk in self.chunks():
            await asyncio.sleep(0)
            yield chunk


def read_sync(stream: Any, most: int) -> list[str]:
    chunks = [chunk for _, chunk in zip(range(most), stream, strict=False)]
    stream.close()
    return chunks


def read_async(stream: Any, most: int) -> list[str]:
    async def read() -> list[str]:
        chunks = []
        async for chunk in stream:
            chunks.append(chunk)
            if len(chunks) == most:
                break
        await stream.aclose()
        return chunks

    return asyncio.run(read())


Read = Callable[[Any, int], list[str]]
Chunks = Callable[[Answer], Any]
STREAMS = pytest.mark.parametrize(
    ("chunks", "read"), [(Answer.chunks, read_sync), (Answer.async_chunks, read_async)], ids=["sync", "async"]
)


@pytest.fixture
def advance(recorded_conversations: RecordedConversations) -> Advance:
    """Lets a second pass."""
    return lambda: recorded_conversations.clock.advance(seconds=1)


@STREAMS
@pytest.mark.parametrize("in_block", [True, False], ids=["in the block", "after the block was left"])
def test_a_streaming_turn_lasts_until_its_stream_ends(
    tracker: AgentPerformanceTracker,
    recorded_conversations: RecordedConversations,
    advance: Advance,
    chunks: Chunks,
    read: Read,
    in_block: bool,
) -> None:
    """Sync and async, also when the block is left before; the first chunk is the first token."""
    session = tracker.start_conversation("bot")
    with tracker.turn(session) as turn:
        stream = turn.stream(chunks(Answer(advance)))
        if in_block:
            assert read(stream, 9) == ["0", "1", "2"]
    if not in_block:
        assert the_only(recorded_conversations).turns == ()
        assert read(stream, 9) == ["0", "1", "2"]
    told = the_only_turn(recorded_conversations)
    assert told.status == "ok"
    assert told.duration_seconds == pytest.approx(3, abs=0.01)
    assert recorded_conversations.requests[-1].body["time_to_first_token"] == pytest.approx(1, abs=0.01)


@STREAMS
def test_an_abandoned_stream_is_a_cancelled_turn(
    tracker: AgentPerformanceTracker,
    recorded_conversations: RecordedConversations,
    advance: Advance,
    chunks: Chunks,
    read: Read,
) -> None:
    """Nobody wanted the rest: that is no failure, and the agent's own stream is closed."""
    session = tracker.start_conversation("bot")
    answer = Answer(advance)
    with tracker.turn(session) as turn:
        assert read(turn.stream(chunks(answer)), 1) == ["0"]
    told = the_only_turn(recorded_conversations)
    assert (told.status, told.error_message) == ("cancelled", None)
    assert told.duration_seconds == pytest.approx(1, abs=0.01)
    assert answer.closed


@STREAMS
def test_a_failing_stream_is_a_failed_turn(
    tracker: AgentPerformanceTracker,
    recorded_conversations: RecordedConversations,
    advance: Advance,
    chunks: Chunks,
    read: Read,
) -> None:
    """The exception reaches the reader, and the turn; it reports itself once."""
    session = tracker.start_conversation("bot")
    with pytest.raises(ModelError), tracker.turn(session) as turn:
        read(turn.stream(chunks(Answer(advance, fails=True))), 9)
    told = the_only_turn(recorded_conversations)
    assert (told.status, told.error_message) == ("failed", "cut off")
    assert [path for path, _ in recorded_conversations.requests].count("/conversations/turn") == 1


# --- by inference -------------------------------------------------------------------------------------------


def take_turn(tracker: AgentPerformanceTracker, say: Callable[[Turn], None] = lambda turn: None) -> None:
    with tracker.turn("thread-7", agent_id="bot") as turn:
        say(turn)


def test_a_session_that_nobody_started_completes_when_idle(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """Thirty minutes after its last turn, at that turn, without a quality."""
    take_turn(tracker)
    recorded_conversations.clock.advance(minutes=29)
    assert the_only(recorded_conversations).outcome == "active"
    recorded_conversations.clock.advance(minutes=1)
    ended = the_only(recorded_conversations)
    assert (ended.outcome, ended.ended_by, ended.quality) == ("completed", "idle", None)
    assert ended.end_time is not None
    assert ended.end_time - ended.turns[-1].start_time < timedelta(seconds=1)
    assert recorded_conversations.requests[-1].body["metadata"]["agent_tracker"]["idle_seconds"] == 1800


def test_it_failed_if_its_last_turn_failed(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """With that turn's error; an earlier failure that was overcome does not count."""
    take_turn(tracker, lambda turn: turn.fail(ModelError("boom")))
    take_turn(tracker)
    recorded_conversations.clock.advance(minutes=30)
    take_turn(tracker, lambda turn: turn.fail(ModelError("boom")))
    recorded_conversations.clock.advance(minutes=30)
    completed, failed = recorded_conversations.conversations
    assert (completed.outcome, completed.error_message) == ("completed", None)
    assert (failed.outcome, failed.ended_by, failed.error_message) == ("failed", "idle", "boom")
    assert failed.error_type == f"{__name__}.ModelError"


def test_a_waiting_turn_suspends_idleness(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """A human is asked: the conversation stays open until the next turn, or the TTL."""
    take_turn(tracker, Turn.wait)
    recorded_conversations.clock.advance(hours=5)
    assert the_only(recorded_conversations).outcome == "active"
    take_turn(tracker)
    recorded_conversations.clock.advance(minutes=30)
    assert the_only(recorded_conversations).ended_by == "idle"
    take_turn(tracker, Turn.wait)
    recorded_conversations.clock.advance(hours=10)
    _, waited = recorded_conversations.conversations
    assert (waited.outcome, waited.ended_by) == ("expired", "ttl")


def test_a_user_who_returns_opens_the_next_conversation(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """The next day, in the same thread: conversation 2, with turns and outcome of its own."""
    take_turn(tracker)
    recorded_conversations.clock.advance(hours=24)
    take_turn(tracker)
    take_turn(tracker)
    tracker.end_conversation("thread-7", 4)
    first, second = recorded_conversations.conversations
    assert (first.number, first.outcome, first.ended_by, len(first.turns)) == (1, "completed", "idle", 1)
    assert (second.number, second.outcome, second.quality, len(second.turns)) == (2, "completed", 4, 2)


def test_a_turn_after_an_end_by_call_opens_the_next_conversation(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """One session with two conversations, also where the first was started by call."""
    session = tracker.start_conversation("bot", "u1")
    tracker.record_failed_session(session, "boom")
    with tracker.turn(session):
        pass
    tracker.end_conversation(session, 5)
    first, second = recorded_conversations.conversations
    assert (first.session_id, first.outcome) == (second.session_id, "failed")
    assert (second.number, second.agent_id, second.outcome, second.quality) == (2, "bot", "completed", 5)


def test_a_session_started_by_call_is_never_idle(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """Somebody said that it began: only a call or the TTL ends it, whatever turns it has."""
    session = tracker.start_conversation("bot")
    with tracker.turn(session):
        pass
    recorded_conversations.clock.advance(hours=9)
    assert the_only(recorded_conversations).outcome == "active"
    recorded_conversations.clock.advance(hours=1)
    assert the_only(recorded_conversations).outcome == "expired"
