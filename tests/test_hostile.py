"""What a hostile reader found: each was a broken promise once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path

import pytest

from otel_agent_tracker import AgentOperationsTracker, AgentPerformanceTracker
from otel_agent_tracker.config import resolve
from otel_agent_tracker.testing import recording

MakeTracker = Callable[..., AgentPerformanceTracker]
DEAD = "http://127.0.0.1:9"


def key_of_a() -> str:
    return "KEY-A"


def key_of_b() -> str:
    return "KEY-B"


def test_two_keys_share_nothing(tmp_path: Path) -> None:
    """Trackers whose keys come from different callables have folders of their own."""
    folders = {
        resolve({"url": DEAD, "api_key": key, "state_dir": tmp_path}).state_folder
        for key in (key_of_a, key_of_b, "KEY-A", None)
    }
    assert len(folders) == 4


def test_two_keys_of_one_name_are_refused(make_tracker: MakeTracker) -> None:
    """No other process could tell which of them an event is for; the same one twice is one."""

    def make_key(text: str) -> Callable[[], str]:
        return lambda: text

    first = make_key("a")
    make_tracker(DEAD, api_key=first)
    make_tracker(DEAD, api_key=first)
    with pytest.raises(ValueError, match="callable of the same name"):
        make_tracker(DEAD, api_key=make_key("b"))


def test_settings_that_do_not_hold_are_named(
    make_tracker: MakeTracker, caplog: pytest.LogCaptureFixture
) -> None:
    """A destination has one configuration in a process: the first."""
    make_tracker(DEAD)
    make_tracker(DEAD, session_ttl_hours=1, user_id="drop")
    assert [record.getMessage() for record in caplog.records] == [
        f"a tracker object for {DEAD} is there already, and its settings hold: session_ttl_hours, user_id"
    ]


@pytest.mark.parametrize("set_folder", [True, False])
def test_a_user_without_a_home_can_track(
    set_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in many containers: in the folder that is named, else in memory with one warning."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    config = resolve({"url": DEAD, "state_dir": tmp_path if set_folder else None})
    assert (config.durability, len(caplog.records)) == (("disk", 0) if set_folder else ("memory", 1))


def test_what_is_said_while_the_interpreter_ends_is_kept(tmp_path: Path) -> None:
    """An exit handler that was registered before our import runs after ours."""
    program = f"""
import atexit
atexit.register(lambda: print(tracker.end_conversation(session, 5), tracker.delivery_stats()["accepted"]))
from otel_agent_tracker import AgentPerformanceTracker
tracker = AgentPerformanceTracker({DEAD!r}, state_dir={str(tmp_path)!r}, flush_timeout_seconds=0.1)
session = tracker.start_conversation("bot")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.split() == ["True", "2"]
    with AgentPerformanceTracker(DEAD, state_dir=tmp_path, flush_timeout_seconds=0.1) as tracker:
        tracker.flush(0.5)
        assert tracker.delivery_stats()["pending"] == 2


def test_a_clock_set_back_splits_no_conversation() -> None:
    """The end is not put before turns that were reported."""
    with recording() as recorded, AgentPerformanceTracker(DEAD) as tracker:
        session_id = tracker.start_conversation("bot")
        recorded.clock.advance(minutes=10)
        with tracker.turn(session_id):
            pass
        recorded.clock._moved_us -= 3_600_000_000  # the wall clock alone
        tracker.end_conversation(session_id, 5)
        (conversation,) = recorded.conversations
        assert (conversation.outcome, len(conversation.turns)) == ("completed", 1)


def test_the_end_of_an_unknown_session_evicts_nobody() -> None:
    """It enters no session into a full map."""
    with recording(max_sessions=2) as recorded, AgentPerformanceTracker(DEAD) as tracker:
        live = [tracker.start_conversation("bot") for _ in range(2)]
        assert tracker.end_conversation("thread-7", agent_id="bot")
        assert not tracker.end_conversation("thread-7", agent_id="bot")
        assert [tracker.is_session_active(session_id) for session_id in live] == [True, True]
        assert len(recorded.conversations) == 3


def test_an_enums_member_is_the_id_that_it_holds() -> None:
    """Its text is another than its value."""

    class Agents(str, Enum):  # noqa: UP042 - StrEnum has the text that this one lacks
        SUPPORT = "support"

    with recording() as recorded, AgentPerformanceTracker(DEAD) as tracker:
        tracker.end_conversation(tracker.start_conversation(Agents.SUPPORT), 5)
        (conversation,) = recorded.conversations
        assert (conversation.agent_id, conversation.session_id[:8]) == ("support", "support_")


def test_activities_have_details_and_possible_durations() -> None:
    """The field is required; a duration that reaches before all times is no duration."""
    with recording() as recorded, AgentOperationsTracker(DEAD) as operations:
        operations.log_activity("bot", "slept")
        with pytest.raises(ValueError, match="at most"):
            operations.log_activity("bot", "slept", duration=1e303)
        recorded.settle()
        assert [request.body["details"] for request in recorded.requests] == [{}]
