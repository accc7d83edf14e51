"""Keys that are refused, rotated and revoked while events flow."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from otel_agent_tracker import AgentPerformanceTracker
from otel_agent_tracker.server.run import Server
from tests.cli.terminal import run
from tests.conftest import MakeTracker
from tests.faults.trackers import (
    IN_ORDER,
    Scripted,
    books,
    converse,
    is_event,
    on_clock,
    pass_until,
    paths_by_session,
    well,
)
from tests.hosts import StandingClock
from tests.scripted_server import ScriptedServer, reply, respond
from tests.waiting import wait_until


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("status", [401, 403])
def test_fault_11_a_refused_key_pauses_everything_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int, batches: bool
) -> None:
    """With a key that is not accepted the tracker is asked once a minute and the log says so once a minute; new
    events are accepted, and all go with the first key that is."""
    clock, scripted = StandingClock(), Scripted(batches=batches)
    scripted.trouble = lambda request: reply(status)
    with (
        ScriptedServer(respond(scripted.answer)) as server,
        on_clock(clock, server.url, tmp_path, api_key="the-key") as tracker,
    ):
        sessions = converse(tracker, 1)
        for _ in range(60):
            clock.time_us += 10_000_000
            assert not tracker.flush(0.03)
        sessions += converse(tracker, 1)
        assert 5 <= len(server.requests) <= 11
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert 5 <= len(lines) <= 11
        assert {f"status {status}: the key is not accepted" in line for line in lines} == {True}
        assert "the-key" not in caplog.text
        assert books(tracker) == (6, 0, 6, 0, 0)
        scripted.trouble = well
        pass_until(clock, lambda: tracker.flush(0.5), step_seconds=30)
        assert books(tracker) == (6, 6, 0, 0, 0)
    assert paths_by_session(scripted.accepted) == dict.fromkeys(sessions, IN_ORDER)


def test_fault_11_a_key_that_loses_its_rights_midway_stops_single_events_in_order(tmp_path: Path) -> None:
    """Requests under way on eight lanes are refused together: each session goes on, later, where it stopped."""
    clock, scripted = StandingClock(), Scripted(batches=False)
    scripted.trouble = lambda request: (
        reply(403) if len(scripted.accepted) >= 20 and is_event(request) else None
    )
    with ScriptedServer(respond(scripted.answer)) as server, on_clock(clock, server.url, tmp_path) as tracker:
        sessions = converse(tracker, 40)
        pass_until(clock, lambda: tracker.flush(0.01) or len(server.requests) > 24, step_seconds=0.1)
        assert len(scripted.accepted) <= 20 + 8
        scripted.trouble = well
        pass_until(clock, lambda: tracker.flush(0.5), step_seconds=30)
        assert books(tracker) == (120, 120, 0, 0, 0)
    assert paths_by_session(scripted.accepted) == dict.fromkeys(sessions, IN_ORDER)


# --- rotation -----------------------------------------------------------------------------------------------


class Keys:
    """The keys of a real tracker, made and revoked as its owner does; `current` is what the application holds."""

    def __init__(self, database: str) -> None:
        self._database = database
        self.current = self.create()

    def create(self) -> str:
        """A new key that works at once."""
        return run("keys", "create", "--database", self._database).stdout.splitlines()[0]

    def revoke(self, key: str) -> None:
        """It opens nothing any more."""
        assert run("keys", "revoke", key[:12], "--database", self._database).exit_code == 0

    def get(self) -> str:
        """What the tracker object asks at every request."""
        return self.current


@contextmanager
def talking(tracker: AgentPerformanceTracker) -> Iterator[list[str]]:
    """Conversations on two threads until the block ends; their sessions."""
    sessions: list[str] = []
    stopping = threading.Event()

    def talk() -> None:
        while not stopping.is_set():
            sessions.extend(converse(tracker, 1))
            stopping.wait(0.01)

    threads = [threading.Thread(target=talk) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield sessions
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def known_to(server: Server, key: str, tmp_path: Path) -> dict[str, Any]:
    """The success rates, as whoever holds the key sees them."""
    with AgentPerformanceTracker(server.url, api_key=key, state_dir=tmp_path / "beside") as beside:
        return beside.get_success_rates()


def from_callable(keys: Keys, path: Path) -> tuple[dict[str, Any], Callable[[str], object]]:
    def hand_out(key: str) -> None:
        keys.current = key

    return {"api_key": keys.get}, hand_out


def from_file(keys: Keys, path: Path) -> tuple[dict[str, Any], Callable[[str], object]]:
    def hand_out(key: str) -> None:
        new = path.with_suffix(".new")
        new.write_text(f"{key}\n")
        new.replace(path)

    hand_out(keys.current)
    return {"api_key_file": path}, hand_out


SOURCES = pytest.mark.parametrize("source", [from_callable, from_file])
Source = Callable[[Keys, Path], tuple[dict[str, Any], Callable[[str], object]]]


@SOURCES
def test_fault_11_a_key_is_rotated_under_load(
    tracker_server: Server, tracker_database: str, make_tracker: MakeTracker, tmp_path: Path, source: Source
) -> None:
    """A key from a callable or a file may change at any time: with the new one handed out when the tracker knows it,
    and before the old one is revoked, nothing pauses, nothing is lost, nobody restarts."""
    keys = Keys(tracker_database)
    options, hand_out = source(keys, tmp_path / "key")
    tracker = make_tracker(tracker_server.url, **options)
    held = keys.current
    with talking(tracker) as sessions:
        for _ in range(3):
            delivered = tracker.delivery_stats()["delivered"]
            wait_until(lambda since=delivered: tracker.delivery_stats()["delivered"] > since, 20)  # type: ignore[misc]  # a default binds the loop's value
            new = keys.create()
            wait_until(lambda key=new: accepts(tracker_server, key))  # type: ignore[misc]  # the same
            hand_out(new)
            assert tracker.flush(20)  # whatever was under way with the old one has been answered
            keys.revoke(held)
            held = new
    assert tracker.flush(20)
    number = 3 * len(sessions)
    assert books(tracker) == (number, number, 0, 0, 0)
    rates = known_to(tracker_server, held, tmp_path)
    assert (rates["total"], rates["completed"]) == (len(sessions), len(sessions))


@SOURCES
def test_fault_11_a_key_revoked_too_early_is_replaced_without_a_restart(
    tracker_server: Server,
    tracker_database: str,
    tmp_path: Path,
    source: Source,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Between the end of the old key and the hand-out of the new one everything is kept, and goes within a minute of
    it."""
    clock, keys = StandingClock(), Keys(tracker_database)
    options, hand_out = source(keys, tmp_path / "key")
    with on_clock(clock, tracker_server.url, tmp_path / "state", **options) as tracker:
        sessions = converse(tracker, 5)
        assert tracker.flush(20)
        keys.revoke(keys.current)
        wait_until(lambda: not accepts(tracker_server, keys.current))
        for _ in range(10):
            sessions += converse(tracker, 1)
            clock.time_us += 20_000_000
            assert not tracker.flush(0.05)
        assert books(tracker) == (45, 15, 30, 0, 0)
        assert 1 <= len([record for record in caplog.records if "events are kept" in record.msg]) <= 5
        new = keys.create()
        hand_out(new)
        pass_until(clock, lambda: tracker.flush(0.5), step_seconds=30)
        assert books(tracker) == (45, 45, 0, 0, 0)
    rates = known_to(tracker_server, new, tmp_path)
    assert (rates["total"], rates["completed"]) == (len(sessions), len(sessions))


def accepts(server: Server, key: str) -> bool:
    """Whether the running tracker has heard of the key; what another process does takes a second."""
    server.store.keys.refresh()
    return server.store.keys.project_of(key.encode()) is not None


@pytest.mark.parametrize("broken", ["missing", "empty", "two lines", "no text"])
def test_fault_11_a_key_file_that_cannot_be_used_is_read_again(tmp_path: Path, broken: str) -> None:
    """Missing, empty or half written: nothing is sent without the key, and the next try reads the file anew."""
    clock, scripted, path = StandingClock(), Scripted(), tmp_path / "key"
    contents = {"empty": b"", "two lines": b"one\ntwo\n", "no text": b"\xff\xfe\x00"}
    if broken in contents:
        path.write_bytes(contents[broken])
    with ScriptedServer(respond(scripted.answer)) as server:
        with on_clock(clock, server.url, tmp_path / "state", api_key_file=path) as tracker:
            (session,) = converse(tracker, 1)
            for _ in range(5):
                clock.time_us += 61_000_000
                assert not tracker.flush(0.03)
            assert server.requests == []
            assert books(tracker) == (3, 0, 3, 0, 0)
            path.write_text("the-key\n")
            pass_until(clock, lambda: tracker.flush(0.5), step_seconds=30)
        assert {request.headers["authorization"] for request in server.requests} == {"Bearer the-key"}
    assert paths_by_session(scripted.accepted) == {session: IN_ORDER}
