"""Trackers that answer, but not as one hopes: in part, with a refusal, at another address, as another release."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from otel_agent_tracker import AgentOperationsTracker
from tests.cli.terminal import run_json
from tests.conftest import MakeTracker
from tests.faults.trackers import (
    IN_ORDER,
    Event,
    Scripted,
    books,
    converse,
    events_of,
    is_event,
    on_clock,
    pass_until,
    paths_by_session,
    told,
    well,
)
from tests.hosts import StandingClock
from tests.scripted_server import (
    Action,
    ReceivedRequest,
    ScriptedServer,
    html,
    json_reply,
    reply,
    respond,
)
from tests.waiting import wait_until

START, TURN, END = IN_ORDER


# --- batches ------------------------------------------------------------------------------------------------


def test_fault_09_of_a_batch_accepted_in_part_the_rest_goes_again(tmp_path: Path) -> None:
    """Each event of a batch has its own result: what is taken is delivered, what failed or was left out goes
    again, alone."""
    clock, scripted = StandingClock(), Scripted()
    statuses = {START: 201, TURN: 503, END: None}

    def in_part(request: ReceivedRequest) -> Action | None:
        if not is_event(request) or len(server.requests) > 2:
            return None
        events = events_of(request)
        scripted.accepted += [event for event in events if statuses[event.path] == 201]
        results = [{"event_id": event.event_id, "status": statuses[event.path]} for event in events]
        return json_reply({"results": [one for one in results if one["status"] is not None]})

    scripted.trouble = in_part
    with ScriptedServer(respond(scripted.answer)) as server, on_clock(clock, server.url, tmp_path) as tracker:
        sessions = converse(tracker, 3)
        pass_until(clock, lambda: tracker.flush(0.5))
        assert books(tracker) == (9, 9, 0, 0, 0)
        first, *others = (events_of(request) for request in server.requests if is_event(request))
    assert paths_by_session(scripted.accepted) == dict.fromkeys(sessions, IN_ORDER)
    again = {event.event_id for events in others for event in events}
    assert again.isdisjoint(event.event_id for event in first if event.path == START)


def test_fault_03_09_an_event_that_fails_in_a_batch_slows_nobody(tmp_path: Path) -> None:
    """An event that is answered 503 in a batch of which others are taken waits with its session; all others are
    delivered at once, and so they are after a restart."""
    clock, scripted = StandingClock(), Scripted()

    def fail_one_session(request: ReceivedRequest) -> Action | None:
        if request.path != "/batch":
            return None
        events = events_of(request)
        taken = [event for event in events if event.body["agent_id"] != "ill"]
        scripted.accepted += taken
        results = [{"event_id": e.event_id, "status": 201 if e in taken else 503} for e in events]
        return json_reply({"results": results})

    def is_delivered(count: int) -> bool:
        return books(tracker) == (count + 3, count, 3, 0, 0)

    scripted.trouble = lambda request: reply(503)
    with ScriptedServer(respond(scripted.answer)) as server:
        with on_clock(clock, server.url, tmp_path) as tracker:
            ill = tracker.start_conversation("ill", "u1")
            with tracker.turn(ill):
                pass
            assert tracker.end_conversation(ill, 4)
            sessions = converse(tracker, 3)
            assert not tracker.flush(0.1)
            scripted.trouble = fail_one_session
            pass_until(clock, lambda: is_delivered(9), step_seconds=0.2)
            sessions += converse(tracker, 2)
            wait_until(lambda: is_delivered(15))  # the clock stands still: nobody waits for anything
        with on_clock(clock, server.url, tmp_path) as tracker:
            sessions += converse(tracker, 2)
            pass_until(clock, lambda: is_delivered(21), step_seconds=0.2)
            sessions += converse(tracker, 2)
            wait_until(lambda: is_delivered(27))
            scripted.trouble = well
            pass_until(clock, lambda: tracker.flush(0.5))
            assert books(tracker) == (30, 30, 0, 0, 0)
    assert paths_by_session(scripted.accepted) == dict.fromkeys([ill, *sessions], IN_ORDER)
    assert len(scripted.accepted) == 30


@pytest.mark.parametrize(
    "answer",
    [
        json_reply({}),
        json_reply({"results": []}),
        json_reply([]),
        reply(200, "ok"),
        reply(204),
        reply(202, b"\xff"),
    ],
    ids=["nothing", "no results", "a list", "a word", "204", "bytes"],
)
def test_fault_09_13_a_batch_is_delivered_only_by_results_for_its_events(
    tmp_path: Path, answer: Action
) -> None:
    """A 2xx without results of ours says nothing of any event: all of them go again."""
    clock, scripted = StandingClock(), Scripted()
    scripted.trouble = lambda request: answer if is_event(request) else None
    with ScriptedServer(respond(scripted.answer)) as server, on_clock(clock, server.url, tmp_path) as tracker:
        (session,) = converse(tracker, 1)
        pass_until(clock, lambda: tracker.flush(0.01) or len(server.requests) >= 5)
        assert books(tracker) == (3, 0, 3, 0, 0)
        scripted.trouble = well
        pass_until(clock, lambda: tracker.flush(0.5))
    assert paths_by_session(scripted.accepted) == {session: IN_ORDER}


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("status", [400, 413, 422])
def test_fault_10_a_refused_event_holds_up_none_of_the_others(
    make_tracker: MakeTracker, tmp_path: Path, status: int, batches: bool
) -> None:
    """The event to blame is found, kept as a dead letter with the tracker's reason, and can be looked at; all others
    are delivered."""
    scripted = Scripted(batches=batches)

    def is_poison(event: Event) -> bool:
        return event.body.get("user_feedback") == "poison"

    def refuse(request: ReceivedRequest) -> Action | None:
        poisoned = is_event(request) and any(map(is_poison, events_of(request)))
        return reply(status, '{"detail": "I do not like it"}') if poisoned else None

    scripted.trouble = refuse
    with ScriptedServer(respond(scripted.answer)) as server:
        tracker = make_tracker(server.url)
        sessions = converse(tracker, 30)
        bad = tracker.start_conversation("bot", "u1")
        tracker.end_conversation(bad, 1, "poison")
        sessions += converse(tracker, 30)
        assert tracker.flush(20)
        assert books(tracker) == (182, 181, 0, 1, 0)
        assert len([request for request in server.requests if is_event(request)]) <= (25 if batches else 182)
    assert paths_by_session(scripted.accepted) == dict.fromkeys(sessions, IN_ORDER) | {bad: [START]}
    [dead] = run_json("outbox", "list", "--dead", "--state-dir", tmp_path / "state")["dead_letters"]
    assert dead["reason"] == f'{status} {{"detail": "I do not like it"}}'


def test_fault_10_each_event_of_a_batch_may_be_refused_by_itself(make_tracker: MakeTracker) -> None:
    """Refused events are dead letters, however many there are; the others of their batch are delivered."""
    scripted = Scripted()

    def refuse(request: ReceivedRequest) -> Action | None:
        if not is_event(request):
            return None
        events = events_of(request)
        scripted.accepted += [event for event in events if event.path != TURN]
        statuses = [422 if event.path == TURN else 201 for event in events]
        results = [{"event_id": e.event_id, "status": s} for e, s in zip(events, statuses, strict=True)]
        return json_reply({"results": results})

    scripted.trouble = refuse
    with ScriptedServer(respond(scripted.answer)) as server:
        tracker = make_tracker(server.url)
        sessions = converse(tracker, 50)
        assert tracker.flush(20)
        assert books(tracker) == (150, 100, 0, 50, 0)
    assert paths_by_session(scripted.accepted) == {session: [START, END] for session in sessions}


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("status", [403, 418])
def test_fault_10_11_12_an_event_that_alone_is_answered_so_holds_up_none_of_the_others(
    tmp_path: Path, status: int, batches: bool
) -> None:
    """A filter on the way that dislikes one event may answer anything: all others are delivered within the hour. That
    one is a dead letter if the status might be about it and others of its path were taken, else it is kept."""
    clock, scripted = StandingClock(), Scripted(batches=batches)

    def dislike(request: ReceivedRequest) -> Action | None:
        return reply(status) if is_event(request) and b"poison" in request.body else None

    scripted.trouble = dislike
    with ScriptedServer(respond(scripted.answer)) as server, on_clock(clock, server.url, tmp_path) as tracker:
        bad = tracker.start_conversation("bot", "u1")
        tracker.end_conversation(bad, 1, "poison")
        sessions = list[str]()
        began = clock.time_us
        for _ in range(10):
            sessions += converse(tracker, 20)
            clock.time_us += 60_000_000
            tracker.flush(0.05)
        pass_until(clock, lambda: tracker.flush(0.01) or books(tracker)[2] == 1)
        assert clock.time_us - began <= 3_600_000_000
        assert books(tracker) == (602, 601, *{403: (1, 0), 418: (0, 1)}[status], 0)
    assert paths_by_session(scripted.accepted) == dict.fromkeys(sessions, IN_ORDER) | {bad: [START]}


# --- way and account ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("status", [402, 407, 415, 423])
def test_fault_11_12_an_answer_about_way_or_account_loses_nothing(
    tmp_path: Path, status: int, batches: bool
) -> None:
    """A proxy that wants a password, an account that is not paid for, a filter that refuses all: everything is kept,
    a few events a minute are tried, and all go, once, when the trouble is over; of one session in order, if no path
    is to blame."""
    clock, scripted = StandingClock(), Scripted(batches=batches)
    with ScriptedServer(respond(scripted.answer)) as server, on_clock(clock, server.url, tmp_path) as tracker:
        sessions = converse(tracker, 1)
        pass_until(clock, lambda: tracker.flush(0.5))
        scripted.trouble = lambda request: reply(status)
        sessions += converse(tracker, 3)
        for _ in range(20):
            clock.time_us += 30_000_000
            assert not tracker.flush(0.03)
        assert books(tracker) == (12, 3, 9, 0, 0)
        assert len(told(server.requests)) <= 70
        scripted.trouble = well
        pass_until(clock, lambda: tracker.flush(0.5), step_seconds=61)
        assert books(tracker) == (12, 12, 0, 0, 0)
    came = paths_by_session(scripted.accepted)
    if status in (402, 407):
        assert came == dict.fromkeys(sessions, IN_ORDER)
    assert {session: sorted(paths) for session, paths in came.items()} == dict.fromkeys(
        sessions, sorted(IN_ORDER)
    )


# --- another address ----------------------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> Counter[str]:
    """What was warned of, and how often."""
    return Counter(record.msg for record in caplog.records if record.levelno >= logging.WARNING)


@pytest.mark.parametrize("everything", [True, False], ids=["capabilities too", "posts alone"])
@pytest.mark.parametrize("status", [404, 405, 501])
def test_fault_12_a_wrong_address_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int, everything: bool
) -> None:
    """Where nobody knows our paths everything is kept, a few events a minute are tried, and a line a minute asks
    whether the URL is right."""
    clock, scripted = StandingClock(), Scripted()
    scripted.trouble = lambda request: reply(status) if everything or is_event(request) else None
    rolled_up = 3 if everything else 0  # turns that no tracker takes go with the ends
    with ScriptedServer(respond(scripted.answer)) as server, on_clock(clock, server.url, tmp_path) as tracker:
        sessions = converse(tracker, 3)
        for _ in range(60):
            clock.time_us += 10_000_000
            assert not tracker.flush(0.05)
        assert books(tracker) == (9, rolled_up, 9 - rolled_up, 0, 0)
        assert max(warnings(caplog).values()) <= 11
        assert len([request for request in server.requests if is_event(request)]) <= 50
        scripted.trouble = well
        pass_until(clock, lambda: tracker.flush(0.5), step_seconds=61)
        assert books(tracker) == (9, 9, 0, 0, 0)
    assert turns_by_session(scripted.accepted) == dict.fromkeys(sessions, 1)
    assert len(scripted.accepted) == 9 - rolled_up


def turns_by_session(events: Iterable[Event]) -> dict[str, int]:
    """The turns that came, by themselves or in the roll-up of their session's end."""
    turns = Counter[str]()
    for event in events:
        if event.path == TURN:
            turns[event.session] += 1
        elif event.path == END:
            turns[event.session] += event.body["metadata"]["agent_tracker"].get("turns", 0)
    return dict(turns)


def test_fault_12_a_path_that_is_refused_for_a_while_waits_alone(tmp_path: Path) -> None:
    """Events of one path wait until it is known again, and are delivered then; those of all other paths go on."""
    clock, scripted = StandingClock(), Scripted()

    def refuse_activity(request: ReceivedRequest) -> Action | None:
        if request.path == "/agents/activity":
            return reply(404)
        if request.path != "/batch":
            return None
        events = events_of(request)
        known = [event for event in events if event.path != "/agents/activity"]
        scripted.accepted += known
        results = [{"event_id": event.event_id, "status": 201 if event in known else 404} for event in events]
        return json_reply({"results": results})

    scripted.trouble = refuse_activity
    with ScriptedServer(respond(scripted.answer)) as server, on_clock(clock, server.url, tmp_path) as tracker:
        agents, sessions = AgentOperationsTracker(server.url), []
        for number in range(20):
            agents.log_activity("bot", "look", {"number": number})
            sessions += converse(tracker, 1)
            clock.time_us += 20_000_000
            tracker.flush(0.05)
        pass_until(clock, lambda: tracker.flush(0.01) or len(scripted.accepted) == 60)
        assert books(tracker) == (80, 60, 20, 0, 0)
        scripted.trouble = well
        pass_until(clock, lambda: tracker.flush(0.5), step_seconds=61)
        assert books(tracker) == (80, 80, 0, 0, 0)
        agents.close()
    conversations = [event for event in scripted.accepted if event.path in IN_ORDER]
    assert paths_by_session(conversations) == dict.fromkeys(sessions, IN_ORDER)
    activity = [
        event.body["details"]["number"] for event in scripted.accepted if event.path == "/agents/activity"
    ]
    assert sorted(activity) == list(range(20))  # what is tried is an event that was not refused itself


def test_fault_12_a_tracker_is_upgraded_and_rolled_back_while_events_flow(tmp_path: Path) -> None:
    """A tracker that learns batches and turns is given them, one that has lost them is not: nothing is lost, nothing
    comes twice, nobody restarts."""
    clock, scripted = StandingClock(), Scripted()
    is_new, stopping, sessions = threading.Event(), threading.Event(), list[str]()
    ours = ("/capabilities", "/batch", TURN)

    def old_or_new(request: ReceivedRequest) -> Action | None:
        return reply(404) if request.path in ours and not is_new.is_set() else None

    def talk() -> None:
        while not stopping.is_set():
            sessions.extend(converse(tracker, 1))
            stopping.wait(0.005)

    def seen(path: str, since: int) -> bool:
        return any(request.path == path for request in server.requests[since:])

    scripted.trouble = old_or_new
    with ScriptedServer(respond(scripted.answer)) as server, on_clock(clock, server.url, tmp_path) as tracker:
        talking = threading.Thread(target=talk)
        talking.start()
        server.wait_for_requests(20)
        for _ in range(2):
            upgraded = len(server.requests)
            is_new.set()
            pass_until(clock, lambda since=upgraded: seen("/batch", since), step_seconds=30)  # type: ignore[misc]  # a default binds the loop's value
            rolled_back = len(server.requests)
            is_new.clear()
            pass_until(clock, lambda since=rolled_back: seen(END, since), step_seconds=30)  # type: ignore[misc]  # the same
        stopping.set()
        talking.join()
        pass_until(clock, lambda: tracker.flush(0.5), step_seconds=61)
        number = 3 * len(sessions)
        assert books(tracker) == (number, number, 0, 0, 0)
    assert max(Counter(event.event_id for event in scripted.accepted).values()) == 1
    assert turns_by_session(scripted.accepted) == dict.fromkeys(sessions, 1)
    for path in (START, END):
        assert sorted(event.session for event in scripted.accepted if event.path == path) == sorted(sessions)


# --- somebody else ------------------------------------------------------------------------------------------

OTHERS: dict[str, Action] = {
    "a captive portal": html(),
    "a page without its type": reply(200, "<!DOCTYPE html><p>Please sign in", headers={"Content-Type": ""}),
    "a page as an error": html(503),
}


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_fault_13_a_page_for_people_is_no_tracker(tmp_path: Path, name: str, batches: bool) -> None:
    """A captive portal, a login page or a proxy's page acknowledges nothing, whatever its status: all is kept until a
    tracker answers."""
    clock, scripted = StandingClock(), Scripted(batches=batches)
    scripted.trouble = lambda request: OTHERS[name] if is_event(request) else None
    with ScriptedServer(respond(scripted.answer)) as server, on_clock(clock, server.url, tmp_path) as tracker:
        (session,) = converse(tracker, 1)
        pass_until(clock, lambda: tracker.flush(0.01) or len(server.requests) >= 5, step_seconds=20)
        assert books(tracker) == (3, 0, 3, 0, 0)
        scripted.trouble = well
        pass_until(clock, lambda: tracker.flush(0.5), step_seconds=20)
    assert paths_by_session(scripted.accepted) == {session: IN_ORDER}


@pytest.mark.parametrize("answer", [reply(204), reply(202, "thanks", headers={"Content-Type": "text/plain"})])
def test_fault_13_a_single_event_is_delivered_by_any_success(
    make_tracker: MakeTracker, answer: Action
) -> None:
    """A tracker that knows only the plain protocol may answer 2xx with anything, or with nothing."""
    scripted = Scripted(batches=False)
    scripted.trouble = lambda request: answer if is_event(request) else None
    with ScriptedServer(respond(scripted.answer)) as server:
        tracker = make_tracker(server.url)
        (session,) = converse(tracker, 1)
        assert tracker.flush(20)
        assert books(tracker) == (3, 3, 0, 0, 0)
        assert paths_by_session(told(server.requests)) == {session: IN_ORDER}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_fault_13_a_redirect_is_not_followed(tmp_path: Path, status: int) -> None:
    """Neither key nor events go to where a redirect points; they are kept, and the log says what to do."""
    clock, scripted = StandingClock(), Scripted()
    with ScriptedServer(reply(200)) as other, ScriptedServer(respond(scripted.answer)) as server:
        elsewhere = reply(status, headers={"Location": f"{other.url}/batch"})
        scripted.trouble = lambda request: elsewhere if is_event(request) else None
        with on_clock(clock, server.url, tmp_path, api_key="the-key") as tracker:
            (session,) = converse(tracker, 1)
            pass_until(clock, lambda: tracker.flush(0.01) or len(server.requests) >= 4, step_seconds=20)
            assert books(tracker) == (3, 0, 3, 0, 0)
            scripted.trouble = well
            pass_until(clock, lambda: tracker.flush(0.5), step_seconds=20)
        assert other.connection_count == 0
    assert paths_by_session(scripted.accepted) == {session: IN_ORDER}
