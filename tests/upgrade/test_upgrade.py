"""What a killed process of an earlier release left is drained by this one."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from otel_agent_tracker import AgentPerformanceTracker
from otel_agent_tracker.config import resolve
from otel_agent_tracker.frames import MAGIC
from otel_agent_tracker.semconv import VERSION
from otel_agent_tracker.server.run import Server
from tests.conftest import MakeTracker
from tests.faults.trackers import Scripted
from tests.scripted_server import ScriptedServer, respond
from tests.waiting import wait_until

RELEASES = sorted(path.parent for path in Path(__file__).parent.glob("*/expected.json"))
TTL_HOURS = 0.5 / 3600  # what is open expires in the test, whenever the folder was written
LATER_FORMAT = 99

pytestmark = pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)


def leave(release: Path, url: str, state_dir: Path) -> Path:
    """The state folder of a tracker object for `url`, with what the release left."""
    folder = resolve({"url": url, "state_dir": state_dir}).state_folder
    shutil.copytree(release / "state", folder)
    return folder


def drain(make_tracker: MakeTracker, url: str, state_dir: Path) -> AgentPerformanceTracker:
    """A tracker object that has told the tracker all that was left."""
    tracker = make_tracker(url, state_dir=state_dir, session_ttl_hours=TTL_HOURS)
    assert tracker.flush(30)
    wait_until(lambda: tracker.get_session_stats()["active_sessions"] == 0)
    assert tracker.flush(30)  # brings the ends of those that have expired meanwhile
    return tracker


def expected(release: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((release / "expected.json").read_text())
    return found


def outcomes(tracker: AgentPerformanceTracker, sessions: Iterable[str]) -> dict[str, list[Any] | None]:
    return {session: outcome(tracker.get_session_info(session)) for session in sessions}


def outcome(info: dict[str, Any] | None) -> list[Any] | None:
    return None if info is None else [info["status"], info["ended_by"], info["quality_score"]]


def add_up(stats: dict[str, Any]) -> bool:
    parts = ("delivered", "pending", "dead_lettered", "dropped")
    return bool(stats["accepted"] == sum(stats[part] for part in parts))


def test_this_release_has_left_a_folder(release: Path) -> None:
    """Each release adds its own: ``python -m tests.upgrade.make``."""
    assert VERSION in {each.name for each in RELEASES}
    assert {path.name for path in (release / "state").iterdir()} >= {"state.sqlite3", "state.sqlite3-wal"}


def test_what_a_release_left_is_told_with_its_outcome(
    release: Path, tracker_server: Server, make_tracker: MakeTracker, tmp_path: Path
) -> None:
    """Outbox, journal, open sessions and dead letters of the killed process: all that it accepted is somewhere."""
    leave(release, tracker_server.url, tmp_path / "left")
    tracker = drain(make_tracker, tracker_server.url, tmp_path / "left")
    told = expected(release)
    assert outcomes(tracker, told["sessions"]) == told["sessions"]
    stats = tracker.delivery_stats()
    assert add_up(stats)
    assert (stats["dead_lettered"], stats["pending"]) == (told["dead_lettered"], 0)
    assert stats["dropped_by_kind"] == {}


def test_turns_and_feedback_that_a_release_left_are_told_once(
    release: Path, make_tracker: MakeTracker, tmp_path: Path
) -> None:
    """Each turn, by itself or in the summary that its session's end carries; each rating."""
    scripted = Scripted()
    with ScriptedServer(respond(scripted.answer)) as server:
        leave(release, server.url, tmp_path / "left")
        drain(make_tracker, server.url, tmp_path / "left")
    told, turns = expected(release), Counter[str]()
    for event in scripted.accepted:
        if event.path == "/conversations/turn":
            turns[event.session] += 1
        elif event.path == "/conversations/end":
            turns[event.session] += event.body["metadata"]["agent_tracker"].get("turns", 0)
    assert turns == told["turns"]
    given = [event for event in scripted.accepted if event.path == "/conversations/feedback"]
    assert sorted(event.session for event in given) == sorted(told["thumbs_up"])
    assert {event.body["thumbs"] for event in given} == {"up"}


@pytest.mark.parametrize("garbage", [b"x" * 5000, MAGIC * 2000, struct.pack("<I", 1 << 31) * 100])
def test_garbage_among_the_segments_holds_nothing_up(
    release: Path, tracker_server: Server, make_tracker: MakeTracker, tmp_path: Path, garbage: bytes
) -> None:
    """A segment that cannot be read goes, and what is beside it is told."""
    folder = leave(release, tracker_server.url, tmp_path / "left")
    unreadable = folder / "0000000000000000-1-0000000000000000-00000000.journal-1"
    unreadable.write_bytes(garbage)
    tracker = drain(make_tracker, tracker_server.url, tmp_path / "left")
    told = expected(release)
    assert outcomes(tracker, told["sessions"]) == told["sessions"]
    assert add_up(tracker.delivery_stats())
    assert not unreadable.exists()


def test_a_segment_of_a_later_format_is_left_alone(
    release: Path, tracker_server: Server, make_tracker: MakeTracker, tmp_path: Path
) -> None:
    """It is for the release that wrote it."""
    folder = leave(release, tracker_server.url, tmp_path / "left")
    later = folder / f"0000000000000000-1-0000000000000000-00000000.journal-{LATER_FORMAT}"
    later.write_bytes(b"what a later release writes")
    drain(make_tracker, tracker_server.url, tmp_path / "left")
    assert later.read_bytes() == b"what a later release writes"


def test_a_state_file_of_a_later_format_is_left_alone(
    release: Path,
    tracker_server: Server,
    make_tracker: MakeTracker,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After a downgrade by several releases events are kept in memory, and a warning says why."""
    folder = leave(release, tracker_server.url, tmp_path / "left")
    with closing(sqlite3.connect(folder / "state.sqlite3", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA user_version = {LATER_FORMAT}")
        rows = connection.execute("SELECT count(*) FROM outbox").fetchall()
    tracker = make_tracker(tracker_server.url, state_dir=tmp_path / "left")
    session = tracker.start_conversation("bot")
    assert tracker.end_conversation(session, 5)
    assert tracker.flush(30)
    assert outcome(tracker.get_session_info(session)) == ["completed", "call", 5]
    tracker.close()
    with closing(sqlite3.connect(folder / "state.sqlite3")) as connection:
        assert connection.execute("SELECT count(*) FROM outbox").fetchall() == rows
        assert connection.execute("PRAGMA user_version").fetchone() == (LATER_FORMAT,)
    assert f"state file format {LATER_FORMAT} is newer" in caplog.text
