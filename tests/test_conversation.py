"""Rules of `conversation`: blocks, turns and streams, on the requests that they become."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider

from otel_agent_tracker import AgentPerformanceTracker, Turn, semconv, session
from otel_agent_tracker.clock import SYSTEM_CLOCK, Clock
from tests.hosts import host_provider, tracker_answer
from tests.scripted_server import ScriptedServer, respond


class Desk:
    """A tracker object whose requests can be looked at."""

    def __init__(self, server: ScriptedServer, tracker: AgentPerformanceTracker) -> None:
        self._server = server
        self.tracker = tracker

    def turn(self, session_id: str = "thread-7") -> Turn:
        """A turn that begins now."""
        return self.tracker.turn(session_id, agent_id="bot")

    def sent(self, name: str) -> list[dict[str, Any]]:
        """The bodies that went to ``/conversations/{name}``."""
        assert self.tracker.flush(5.0)
        found: list[Any] = [
            request.json() for request in self._server.requests if request.path == f"/conversations/{name}"
        ]
        return found

    def only(self, name: str) -> dict[str, Any]:
        """The only one of them."""
        (body,) = self.sent(name)
        return body


@pytest.fixture(name="desk")
def _desk(tmp_path: Path) -> Iterator[Desk]:
    before = context.get_current()
    with (
        ScriptedServer(respond(tracker_answer)) as server,
        AgentPerformanceTracker(server.url, state_dir=tmp_path) as tracker,
    ):
        yield Desk(server, tracker)
    assert context.get_current() == before


class UnprintableError(Exception):
    """An exception whose text raises."""

    def __str__(self) -> str:
        raise RuntimeError("a mistake of the host")


# --- conversations --------------------------------------------------------------------------------------------


def test_a_block_is_completed(desk: Desk) -> None:
    """With what was said inside."""
    with desk.tracker.conversation("bot", "u1", {"a": 1}) as conversation:
        conversation.rate(3)
        conversation.rate(5, "good")
        conversation.set_message_count(4)
    end = desk.only("end")
    assert (end["session_id"], end["status"]) == (conversation.session_id, "completed")
    assert (end["quality_score"], end["user_feedback"], end["message_count"]) == (5, "good", 4)
    assert desk.only("start")["user_id"] == "u1"


@pytest.mark.parametrize(
    ("error", "error_type", "message"),
    [
        (OSError("no route"), "OSError", "no route"),
        (ValueError(), "ValueError", "ValueError"),
        (UnprintableError(), "tests.test_conversation.UnprintableError", "UnprintableError"),
        (KeyboardInterrupt(), "KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_an_exception_makes_it_failed_and_goes_on(
    desk: Desk, error: BaseException, error_type: str, message: str
) -> None:
    """With the exception's type and text, if it has any."""
    with pytest.raises(type(error)), desk.tracker.conversation("bot"):
        raise error
    end = desk.only("end")
    assert (end["status"], end["error_message"]) == ("failed", message)
    assert end["metadata"]["agent_tracker"]["error_type"] == error_type


def test_it_can_fail_without_an_exception(desk: Desk) -> None:
    """By word."""
    with desk.tracker.conversation("bot") as conversation:
        conversation.fail("out of cats")
    assert desk.only("end")["error_message"] == "out of cats"


def test_a_rating_after_the_end_goes_by_itself(desk: Desk) -> None:
    """The end is not sent again."""
    with desk.tracker.conversation("bot") as conversation:
        pass
    conversation.rate(2, "late")
    feedback = desk.only("feedback")
    assert (feedback["quality_score"], feedback["user_feedback"]) == (2, "late")
    assert "quality_score" not in desk.only("end")


@pytest.mark.parametrize("score", [0, 6, 3.5, "good", True])
def test_a_wrong_rating_raises_and_changes_nothing(desk: Desk, score: Any) -> None:
    """The one before stands."""
    with desk.tracker.conversation("bot") as conversation:
        conversation.rate(4)
        with pytest.raises(ValueError, match="quality_score must be"):
            conversation.rate(score)
    assert desk.only("end")["quality_score"] == 4


# --- turns ----------------------------------------------------------------------------------------------------


def test_a_cancelled_turn_is_no_failure(desk: Desk) -> None:
    """A task that is cancelled, and a word that says so."""

    async def main() -> None:
        async with desk.turn("thread-1"):
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    with desk.turn("thread-2") as turn:
        turn.cancel()
    assert [turn["status"] for turn in desk.sent("turn")] == ["cancelled", "cancelled"]


def test_what_a_turn_says_of_itself(desk: Desk) -> None:
    """Waiting, or failed with a type."""
    with desk.turn("thread-1") as turn:
        turn.wait()
    with desk.turn("thread-1") as turn:
        turn.fail("slow", error_type="Timeout")
    waiting, failed = desk.sent("turn")
    assert waiting["status"] == "waiting"
    assert (failed["status"], failed["error_type"], failed["error_message"]) == ("failed", "Timeout", "slow")


@pytest.mark.parametrize(
    ("around", "told"), [("thread-7", ["bot", "u1"]), ("thread-8", ["unknown_service", None])]
)
def test_a_turn_is_of_the_agent_and_user_of_its_session(
    desk: Desk, around: str, told: list[str | None]
) -> None:
    """As a framework's turn there would be; another session's say nothing of it."""
    with session(around, user_id="u1", agent_id="bot"), desk.tracker.turn("thread-7"):
        pass
    turn, start = desk.only("turn"), desk.only("start")
    assert [turn["agent_id"], turn.get("user_id")] == [start["agent_id"], start.get("user_id")] == told


def test_a_turn_counts_the_tokens_below_it(desk: Desk) -> None:
    """Of other libraries' model calls, on the host's provider."""
    provider = TracerProvider()
    attributes: dict[str, str | int] = {semconv.GEN_AI_OPERATION_NAME: "chat", semconv.GEN_AI_INPUT_TOKENS: 7}
    with host_provider(provider), desk.turn():
        trace.get_tracer("other").start_span("chat", attributes=attributes).end()
    assert desk.only("turn")["input_tokens"] == 7
    provider.shutdown()


# --- streams --------------------------------------------------------------------------------------------------


def chunks(*, error: Exception | None = None) -> Iterator[int]:
    """Three chunks, and then perhaps an error."""
    yield from range(3)
    if error is not None:
        raise error


async def async_chunks(*, error: Exception | None = None) -> AsyncIterator[int]:
    """The same for asyncio."""
    for number in chunks(error=error):
        yield number


def test_a_stream_keeps_the_turn_open(desk: Desk) -> None:
    """It reports when the stream has ended, though the block was left before; once."""
    with desk.turn() as turn:
        stream = turn.stream(chunks())
    assert desk.sent("turn") == []
    assert list(stream) == [0, 1, 2]
    body = desk.only("turn")
    assert body["status"] == "ok"
    assert 0 <= body["time_to_first_token"] <= body["duration_seconds"]


def test_a_stream_that_fails_fails_the_turn(desk: Desk) -> None:
    """With its error, which goes on."""
    with desk.turn() as turn:
        stream = turn.stream(chunks(error=OSError("cut")))
    with pytest.raises(OSError, match="cut"):
        list(stream)
    assert desk.only("turn")["error_message"] == "cut"


def test_a_stream_that_is_closed_cancels_the_turn(desk: Desk) -> None:
    """Nobody wanted the rest; the source is closed, too."""
    source = chunks()
    with desk.turn() as turn:
        stream = turn.stream(source)
        assert next(stream) == 0
        stream.close()  # type: ignore[attr-defined]  # a generator has it
    assert desk.only("turn")["status"] == "cancelled"
    assert list(source) == []


def test_an_asynchronous_stream(desk: Desk) -> None:
    """Read to its end, failing, and closed."""

    async def main() -> None:
        async with desk.turn("thread-1") as turn:
            whole = turn.stream(async_chunks())
        assert [number async for number in whole] == [0, 1, 2]
        async with desk.turn("thread-2") as turn:
            failing = turn.stream(async_chunks(error=OSError("cut")))
        with pytest.raises(OSError, match="cut"):
            assert [number async for number in failing]
        async with desk.turn("thread-3") as turn:
            closed = turn.stream(async_chunks())
            assert await anext(closed) == 0
            await closed.aclose()  # type: ignore[attr-defined]  # a generator has it

    asyncio.run(main())
    statuses = {turn["session_id"]: turn["status"] for turn in desk.sent("turn")}
    assert statuses == {"thread-1": "ok", "thread-2": "failed", "thread-3": "cancelled"}


def test_a_stream_is_read_inside_the_turn(desk: Desk) -> None:
    """The source's spans nest in it, while the reader's do not."""
    provider = TracerProvider()

    def source() -> Iterator[int]:
        yield trace.get_current_span().get_span_context().span_id

    with host_provider(provider):
        with desk.turn() as turn:
            stream = turn.stream(source())
        (inside,) = (f"{span_id:016x}" for span_id in stream)
        assert not trace.get_current_span().get_span_context().is_valid
    assert turn.turn_id.endswith(inside)
    provider.shutdown()


def test_a_span_that_a_source_keeps_open_stays_current_in_it(desk: Desk) -> None:
    """From chunk to chunk, and while it is closed: frameworks hold a span over a whole stream."""
    provider = TracerProvider()
    tracer = provider.get_tracer("framework")
    seen: list[bool] = []

    def source() -> Iterator[int]:
        with tracer.start_as_current_span("run") as run:
            try:
                for number in range(3):
                    seen.append(trace.get_current_span() is run)
                    yield number
            finally:
                seen.append(trace.get_current_span() is run)

    with host_provider(provider):
        with desk.turn() as turn:
            stream = turn.stream(source())
        for _ in zip(range(2), stream, strict=False):
            assert not trace.get_current_span().get_span_context().is_valid
        stream.close()  # type: ignore[attr-defined]  # a generator has it
    assert seen == [True] * 3
    provider.shutdown()


@pytest.mark.parametrize("drop", [False, True])
def test_a_stream_that_is_never_begun_cancels_the_turn(desk: Desk, drop: bool) -> None:
    """Closed or only dropped, before its first chunk; closed, its source is closed, too."""
    source = chunks()
    with desk.turn() as turn:
        stream = turn.stream(source)
    if not drop:
        stream.close()  # type: ignore[attr-defined]  # it has one, like a generator
        assert list(source) == []
        assert list(stream) == []
    del stream
    assert desk.only("turn")["status"] == "cancelled"


@pytest.mark.parametrize("drop", [False, True])
def test_an_asynchronous_stream_that_is_never_begun_cancels_the_turn(desk: Desk, drop: bool) -> None:
    """As without asyncio."""

    async def main() -> None:
        source = async_chunks()
        async with desk.turn() as turn:
            stream = turn.stream(source)
        if not drop:
            await stream.aclose()  # type: ignore[attr-defined]  # it has one, like a generator
            assert [number async for number in source] == []
            assert [number async for number in stream] == []

    asyncio.run(main())
    assert desk.only("turn")["status"] == "cancelled"


def test_what_was_said_of_a_turn_stands_when_its_stream_is_never_begun(desk: Desk) -> None:
    """Only a turn of which nothing is known is cancelled by it."""
    with desk.turn() as turn:
        turn.fail("out of cats")
        turn.stream(chunks())
    assert desk.only("turn")["error_message"] == "out of cats"


def test_a_turn_lasts_until_its_block_is_left_too(desk: Desk) -> None:
    """What is said of it, or raised, after its stream has ended counts; it reports once."""
    with desk.turn("thread-1") as turn:
        assert list(turn.stream(chunks())) == [0, 1, 2]
        turn.fail("bad")

    def raise_after_the_stream() -> None:
        with desk.turn("thread-2") as turn:
            assert list(turn.stream(chunks())) == [0, 1, 2]
            raise OSError("cut")

    with pytest.raises(OSError, match="cut"):
        raise_after_the_stream()
    with desk.turn("thread-3") as turn:
        assert list(turn.stream(chunks())) == list(turn.stream(chunks()))
        assert desk.tracker.delivery_stats()["accepted"] == 4  # two turns, each with a start
    bodies = {body["session_id"]: body for body in desk.sent("turn")}
    assert {name: body["status"] for name, body in bodies.items()} == {
        "thread-1": "failed",
        "thread-2": "failed",
        "thread-3": "ok",
    }
    assert [bodies[name]["error_message"] for name in ("thread-1", "thread-2")] == ["bad", "cut"]
    assert len(desk.sent("turn")) == 3


def test_an_asynchronous_turn_lasts_until_its_block_is_left_too(desk: Desk) -> None:
    """As without asyncio."""

    async def main() -> None:
        async with desk.turn("thread-1") as turn:
            assert [number async for number in turn.stream(async_chunks())] == [0, 1, 2]
            turn.fail("bad")
        async with desk.turn("thread-2") as turn:
            assert [number async for number in turn.stream(async_chunks())] == [0, 1, 2]
            raise OSError("cut")

    with pytest.raises(OSError, match="cut"):
        asyncio.run(main())
    told = {body["session_id"]: (body["status"], body["error_message"]) for body in desk.sent("turn")}
    assert told == {"thread-1": ("failed", "bad"), "thread-2": ("failed", "cut")}


def test_a_clock_that_fails_reaches_nobody_s_turn(desk: Desk) -> None:
    """The turn is timed by the system's clock."""

    def broken() -> int:
        raise OSError("no time")

    assert desk.tracker.flush(5.0)  # the worker has a clock that goes
    desk.tracker._pipeline.clock = Clock(time_ns=broken, monotonic=time.monotonic)
    with desk.turn() as turn:
        assert list(turn.stream(chunks())) == [0, 1, 2]
    desk.tracker._pipeline.clock = SYSTEM_CLOCK
    body = desk.only("turn")
    assert (body["status"], 0 <= body["duration_seconds"] < 60) == ("ok", True)


# --- blocks in the wrong place --------------------------------------------------------------------------------


def test_a_conversation_that_has_not_begun_has_no_turns(desk: Desk) -> None:
    """It has no id yet; the message says what to do."""
    with pytest.raises(RuntimeError, match="inside `with"):
        desk.tracker.conversation("bot").turn()


def test_a_turn_is_entered_once(desk: Desk) -> None:
    """Another request is another turn; the first is reported once."""
    turn = desk.turn()
    with turn:
        pass
    with pytest.raises(RuntimeError, match="make a new one"), turn:
        pass
    assert desk.only("turn")["turn_id"] == turn.turn_id
