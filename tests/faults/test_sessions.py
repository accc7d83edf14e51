"""Sessions in masses, in races, in the wrong order, and those that nobody started or ended."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_agent_tracker import AgentPerformanceTracker, wire
from otel_agent_tracker.server import arrivals
from otel_agent_tracker.server.database import Database
from otel_agent_tracker.server.run import Server
from otel_agent_tracker.server.store import Store
from otel_agent_tracker.sessions import SessionMap
from otel_agent_tracker.testing import RecordedConversations, RecordingSender, recording
from tests.conftest import MakeTracker
from tests.faults.lives import Clocks, Life, killed, on_one_thread
from tests.hosts import host_provider
from tests.server import world

END, EXPIRED = "/conversations/end", "/conversations/expired"
HOUR = 3600.0

MakeTracer = Callable[..., trace.Tracer]


@pytest.fixture
def tracker(recorded_conversations: RecordedConversations) -> AgentPerformanceTracker:
    """A tracker whose requests are recorded."""
    return AgentPerformanceTracker()


# --- masses -------------------------------------------------------------------------------------------------


def test_fault_38_many_sessions_that_are_over_at_once_are_ended_in_small_portions(
    tracker: AgentPerformanceTracker,
    recorded_conversations: RecordedConversations,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many sessions are over at one moment, nobody waits for more than 500 of them: the map is free again
    after each portion. Each session is told once, and the others live on."""
    over = {tracker.start_conversation("bot") for _ in range(2_000)}
    recorded_conversations.clock.advance(hours=6)
    live = [f"thread-{number}" for number in range(4_000)]
    for each in live:
        tracker._pipeline.sessions.open(each, "bot", start_us=1)
    assert tracker.flush(60)
    portions = list[int]()
    sweep_chunk = SessionMap._sweep_chunk

    def counted(sessions: SessionMap, *arguments: Any) -> Any:
        assert not sessions._lock._is_owned()  # type: ignore[attr-defined]  # an RLock says who has it
        swept = sweep_chunk(sessions, *arguments)
        portions.append(len(swept))
        return swept

    monkeypatch.setattr(SessionMap, "_sweep_chunk", counted)
    recorded_conversations.clock.advance(hours=5)
    told = [body["session_id"] for path, body in recorded_conversations.requests if path == EXPIRED]
    assert (len(told), set(told)) == (2_000, over)
    assert (max(portions), sum(portions)) == (500, 2_000)
    assert tracker.get_session_stats()["active_sessions"] == 4_000
    assert all(map(tracker.is_session_active, live))


def test_fault_39_session_ids_without_bound_evict_the_idlest(
    make_tracker: MakeTracker, tracker_server: Server
) -> None:
    """A new session id for each request cannot fill the memory: beyond the bound the idlest session makes room. It
    is counted, and told as expired with the reason; if it goes on within its TTL, that end does not count."""
    tracker = make_tracker(tracker_server.url, max_sessions=50)
    for number in range(200):
        with tracker.turn(f"thread-{number}", agent_id="bot"):
            pass
    stats = tracker.get_session_stats()
    assert (stats["active_sessions"], stats["evicted_sessions"]) == (50, 150)
    assert tracker.flush(30)
    with tracker.turn("thread-0", agent_id="bot"):
        pass
    assert tracker.flush(30)
    rates = tracker.get_success_rates("bot")
    assert (rates["total"], rates["expired"], rates["active"]) == (200, 150, 50)
    expired, again = (tracker.get_session_info(f"thread-{number}") or {} for number in (1, 0))
    assert (expired["status"], expired["ended_by"]) == ("expired", "evicted")
    assert (again["status"], len(again["episodes"]), again["turns"]) == ("active", 1, 2)


# --- races --------------------------------------------------------------------------------------------------


@pytest.fixture
def _hasty_threads() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_hasty_threads")
def test_fault_40_of_touch_expiry_and_end_at_one_moment_one_wins(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """Many threads touch, end and fail the same sessions at the moment at which these expire. Each has one end: of
    all the calls one was told that it ended the session, or none was, and it expired."""
    sessions = [tracker.start_conversation("bot") for _ in range(300)]
    recorded_conversations.clock.advance(hours=9)
    true_ends = list[list[str]]()
    begin = threading.Barrier(7)

    def work(act: Callable[[str], bool], *, ends: bool, backwards: bool) -> None:
        begin.wait()
        acted = [each for each in (reversed(sessions) if backwards else sessions) if act(each)]
        if ends:
            true_ends.append(acted)

    def expire() -> None:
        begin.wait()
        for _ in range(10):
            recorded_conversations.clock.advance(minutes=7)

    def fail(each: str) -> bool:
        return tracker.record_failed_session(each, "boom")

    threads = [threading.Thread(target=expire)]
    for backwards in (False, True):
        for act, ends in ((tracker.touch_session, False), (tracker.end_conversation, True), (fail, True)):
            options = {"ends": ends, "backwards": backwards}
            threads.append(threading.Thread(target=work, args=(act,), kwargs=options))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorded_conversations.clock.advance(hours=20)
    told = Counter((body["session_id"], path) for path, body in recorded_conversations.requests)
    by_call = Counter(each for acted in true_ends for each in acted)
    assert set(by_call.values()) <= {1}
    for each in sessions:
        assert (told[each, END], told[each, EXPIRED]) == (by_call[each], 1 - by_call[each])
    assert len(recorded_conversations.conversations) == len(sessions)


def test_fault_40_a_turn_that_takes_longer_than_the_window_keeps_its_conversation(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """An agent that works for an hour on one answer is not idle. Whatever was inferred meanwhile does not count: the
    conversation goes on with the turn, and ends once, half an hour after it."""
    with tracker.turn("thread-7", agent_id="bot"):
        pass
    with tracker.turn("thread-7"):
        recorded_conversations.clock.advance(minutes=60)
    (conversation,) = recorded_conversations.conversations
    assert (conversation.outcome, len(conversation.turns)) == ("active", 2)
    assert tracker.is_session_active("thread-7")
    recorded_conversations.clock.advance(minutes=31)
    (conversation,) = recorded_conversations.conversations
    assert (conversation.outcome, conversation.ended_by) == ("completed", "idle")
    assert conversation.end_time is not None
    assert (
        timedelta(hours=1) <= conversation.end_time - conversation.turns[1].start_time < timedelta(hours=1.1)
    )


@pytest.fixture
def life(tmp_path: Path) -> Iterator[tuple[Life, Clocks, RecordingSender]]:
    """A process whose worker takes a step when it is told to."""
    with on_one_thread():
        clocks, sender = Clocks(), RecordingSender()
        life = Life(tmp_path / "state", clocks, sender)
        yield life, clocks, sender
        life.bury()


def test_fault_40_a_turn_just_after_the_ttl_ends_the_old_conversation_and_opens_the_next(
    life: tuple[Life, Clocks, RecordingSender],
) -> None:
    """A user who comes back when the TTL is over, but before anybody has looked, begins another conversation; the
    one before is told to have expired all the same."""
    process, clocks, sender = life
    tracker = process.tracker
    session_id = tracker.start_conversation("bot")
    process.step()
    clocks.advance(10 * HOUR + 1)
    with tracker.turn(session_id):
        pass
    for _ in range(3):
        process.step()
    told = [(path, body["session_id"]) for path, body in sender.requests]
    assert told.count((EXPIRED, session_id)) == 1
    assert tracker.end_conversation(session_id)


@pytest.mark.parametrize("stored", [True, False], ids=["stored before", "not stored before"])
def test_fault_36_40_a_turn_after_an_idle_window_opens_the_next_conversation_wherever_the_process_dies(
    tmp_path: Path, stored: bool
) -> None:
    """A user who comes back when the conversation was idle for too long, but before anybody has looked, begins
    another one. The process is killed at any point of storing that: two conversations are told all the same, and
    each ends once."""
    with on_one_thread():
        point, died = 1, True
        while died:
            clocks, sender = Clocks(), RecordingSender()
            life, left_in = Life(tmp_path / f"{point}", clocks, sender), tmp_path / f"{point}-after"
            turn_of_thread(life)
            if stored:
                life.step()
            clocks.advance(0.51 * HOUR)
            turn_of_thread(life)
            died = killed(life, point, left_in, life.step)
            life = Life(left_in, clocks, sender)
            for _ in range(3):
                life.step()
                clocks.advance(0.51 * HOUR)
            ends = {(body["start_time"], body["end_time"]) for path, body in sender.requests if path == END}
            assert len(ends) == len({start for start, _ in ends}) == 2, point
            life.bury()
            point += 37
        assert point > 250


def test_fault_36_40_a_conversation_that_is_over_before_it_is_stored_ends_wherever_the_process_dies(
    tmp_path: Path,
) -> None:
    """A process whose worker comes late stores a conversation when that is over already, and is killed at any point
    of it: whoever goes on tells its end, once."""
    with on_one_thread():
        point, died = 1, True
        while died:
            clocks, sender = Clocks(), RecordingSender()
            life, left_in = Life(tmp_path / f"{point}", clocks, sender), tmp_path / f"{point}-after"
            turn_of_thread(life)
            clocks.advance(0.51 * HOUR)
            died = killed(life, point, left_in, life.step)
            life = Life(left_in, clocks, sender)
            for _ in range(3):
                life.step()
                clocks.advance(0.51 * HOUR)
            assert len({body["end_time"] for path, body in sender.requests if path == END}) == 1, point
            life.bury()
            point += 37
        assert point > 250


def turn_of_thread(life: Life) -> None:
    with life.tracker.turn("thread-1", agent_id="bot"):
        pass


# --- in every order -----------------------------------------------------------------------------------------

ACTS: dict[str, Callable[[AgentPerformanceTracker, RecordedConversations, str], object]] = {
    "end": lambda tracker, _, each: tracker.end_conversation(each, 4),
    "end again": lambda tracker, _, each: tracker.end_conversation(each, 1),
    "fail": lambda tracker, _, each: tracker.record_failed_session(each, "boom"),
    "expire": lambda _, recorded, each: recorded.clock.advance(hours=11),
    "touch": lambda tracker, _, each: tracker.touch_session(each),
}
OUTCOMES = {
    "end": ("completed", 4),
    "end again": ("completed", 1),
    "fail": ("failed", None),
    "expire": ("expired", None),
}


def test_fault_41_the_first_end_wins_in_every_order_of_calls() -> None:
    """End, end again, fail, expire, touch: in each of 120 orders the first end is the outcome. The later ones are
    answered with False, change nothing and send nothing."""
    with recording() as recorded:
        tracker = AgentPerformanceTracker()
        expected = []
        for order in permutations(ACTS):
            session_id = tracker.start_conversation("bot")
            answers = [ACTS[act](tracker, recorded, session_id) for act in order]
            first = next(act for act in order if act != "touch")
            expected.append((session_id, *OUTCOMES[first]))
            assert [act for act, yes in zip(order, answers, strict=True) if yes and act != "touch"] == (
                [first] if first != "expire" else []
            )
        told = [(each.session_id, each.outcome, each.quality) for each in recorded.conversations]
        ends = Counter(body["session_id"] for path, body in recorded.requests if path in (END, EXPIRED))
    assert told == expected
    assert set(ends.values()) == {1}


@pytest.fixture
def store(tracker_database: str) -> Iterator[Store]:
    store = Store(Database(tracker_database))
    yield store
    store.close()


def the_log(session_id: str) -> list[wire.Request]:
    """All that is known of a session of two conversations, told by several that did not know of each other."""
    last = {"ended_by": "ttl", "last_activity_time": world.at(20), "idle_seconds": 30.0}
    return [
        world.start(session_id, 0, user_id="u1"),
        world.turn(session_id, 10),
        world.expired(session_id, 20, metadata={"agent_tracker": last}),
        world.end(session_id, 60, quality_score=4),
        world.end(session_id, 70, status="failed", error_message="too late"),
    ]


def test_fault_41_42_the_tracker_tells_the_same_in_whatever_order_events_arrive(store: Store) -> None:
    """An end or an activity of a session that nobody has started is kept, and what arrives later fills in the rest.
    All 120 orders of a start, a turn and three ends that contradict each other come to one story; the first end by
    call is the outcome, also over an expiry that was told before."""
    logs = {
        f"s{number}": [arrivals.arrive(the_log(f"s{number}")[each], None) for each in order]
        for number, order in enumerate(permutations(range(5)))
    }
    for at in range(5):  # each in a transaction of its own, after which all is derived anew
        assert set(store.ingest(1, [log[at] for log in logs.values()])) == {None}
    answers = {session_id: store.conversations.get(1, session_id) for session_id in logs}
    stories = {repr(answer).replace(f"'{session_id}'", "'s'") for session_id, answer in answers.items()}
    (story,) = stories
    answer = answers["s0"]
    assert answer is not None
    assert (answer.status, answer.ended_by, answer.user_id) == ("completed", "call", "u1"), story
    assert (answer.turns, answer.quality_score, len(answer.episodes)) == (1, 4, 1)


@pytest.mark.parametrize("act", ["end", "fail", "rate", "turn"])
def test_fault_42_what_is_said_of_an_unknown_session_is_kept(
    make_tracker: MakeTracker, tracker_server: Server, act: str
) -> None:
    """An end, a failure, a rating or a turn of a session that this process has not seen is accepted and reaches the
    tracker, with the agent and start that its id tells."""
    tracker = make_tracker(tracker_server.url)
    unknown = "support_bot_1705662000_abababababababab"
    match act:
        case "end":
            assert tracker.end_conversation(unknown, 5)
        case "fail":
            assert tracker.record_failed_session(unknown, "boom")
        case "rate":
            assert tracker.record_feedback(unknown, 5)
            assert tracker.end_conversation(unknown)
        case "turn":
            with tracker.turn(unknown):
                pass
    assert tracker.flush(10)
    told = tracker.get_session_info(unknown) or {}
    status = {"end": "completed", "fail": "failed", "rate": "completed", "turn": "active"}[act]
    assert (told["agent_id"], told["status"], told["turns"]) == ("support_bot", status, act == "turn")
    assert told["quality_score"] == (5 if act in ("end", "rate") else None)


# --- spans that say too little ------------------------------------------------------------------------------


@pytest.fixture
def tracer() -> Iterator[MakeTracer]:
    """A tracer of the host's, whose provider is made with some options."""
    with ExitStack() as stack:

        def make(**options: Any) -> trace.Tracer:
            provider = TracerProvider(shutdown_on_exit=False, **options)
            stack.enter_context(host_provider(provider))
            return provider.get_tracer("host")

        yield make


def test_fault_43_a_span_is_its_sessions_only_if_it_says_so_when_it_ends(
    tracer: MakeTracer, recorded_conversations: RecordedConversations
) -> None:
    """A span keeps its session alive if it carries the id when it ends, though it was set late. A span without an id,
    one that never ends, and one that has lost its id to the limit of attributes keep nothing alive: nobody guesses."""
    host = tracer(span_limits=SpanLimits(max_span_attributes=128))
    tracker = AgentPerformanceTracker()
    late, without, unended, lost = (tracker.start_conversation("bot") for _ in range(4))
    recorded_conversations.clock.advance(hours=9)
    with host.start_as_current_span("late") as span:
        span.set_attribute("session.id", late)
    with host.start_as_current_span("without"):
        pass
    never_ended = host.start_span("unended", attributes={"session.id": unended})
    with host.start_as_current_span("lost", attributes={"session.id": lost}) as span:
        for number in range(128):
            span.set_attribute(f"key-{number}", number)
    recorded_conversations.clock.advance(hours=2)
    live = [tracker.get_live_session(each) is not None for each in (late, without, unended, lost)]
    assert live == [True, False, False, False]
    assert never_ended.is_recording()


def test_fault_43_turns_are_told_whatever_becomes_of_their_spans(
    tracer: MakeTracer, recorded_conversations: RecordedConversations
) -> None:
    """Where the host records no span, or so few attributes that ours are lost, a turn is told with all that belongs
    to it. Spans inside it are its session's."""
    for options in ({"sampler": ALWAYS_OFF}, {"span_limits": SpanLimits(max_span_attributes=1)}):
        host = tracer(**options)
        tracker = AgentPerformanceTracker()
        session_id = tracker.start_conversation("bot", "u1")
        with pytest.raises(OSError, match="disk"), tracker.turn(session_id), host.start_as_current_span("x"):
            raise OSError("no disk")
        tracker.end_conversation(session_id, 3)
    told = recorded_conversations.conversations
    assert [(each.outcome, each.quality, each.user_id) for each in told] == [("completed", 3, "u1")] * 2
    assert [[(turn.status, turn.error_type) for turn in each.turns] for each in told] == [
        [("failed", "OSError")]
    ] * 2


def test_fault_43_a_child_process_keeps_the_session_alive_in_all(tmp_path: Path) -> None:
    """What a child process does for a session counts for its parent too, as soon as both have looked into the state
    folder: the session ends when it is idle in both, once."""
    with on_one_thread():
        clocks, sender = Clocks(), RecordingSender()
        parent, child = (Life(tmp_path / "state", clocks, sender) for _ in range(2))
        session_id = parent.tracker.start_conversation("bot")
        for life in (parent, child):
            life.step()
        clocks.advance(9 * HOUR)
        assert child.tracker.is_session_active(session_id)
        for life in (child, parent):
            life.step()
        clocks.advance(9 * HOUR)
        assert parent.tracker.get_live_session(session_id) is not None
        clocks.advance(2 * HOUR)
        for life in (parent, child, parent):
            life.step()
        assert [path for path, _ in sender.requests].count(EXPIRED) == 1
        for life in (parent, child):
            life.let_go()
