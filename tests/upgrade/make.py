"""Writes the state folder that a killed process of this release leaves, for later releases to drain.

``python -m tests.upgrade.make`` writes ``tests/upgrade/<version>``, once for each release: ``state`` is what was on
disk, ``expected.json`` what is true of it. A first process tells a tracker that takes no turns, and refuses what
speaks of `REFUSED`; a second one's tracker is down, and it is killed while its worker cannot store.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from otel_agent_tracker import AgentOperationsTracker, AgentPerformanceTracker, AgentStatus
from otel_agent_tracker.segment import SUFFIX
from otel_agent_tracker.semconv import VERSION
from tests.scripted_server import Action, ReceivedRequest, ScriptedServer, json_reply, reply, respond
from tests.waiting import wait_until

__all__ = ["REFUSED", "main"]

REFUSED = "refused-agent"
ROLLED_UP = 3  # turns
UNREAD_BYTES = 64  # of the zeros behind what was written


def answer_first(request: ReceivedRequest) -> Action:
    """A tracker that knows nothing of turns, feedback and batches."""
    if request.path in ("/capabilities", "/conversations/turn", "/conversations/feedback"):
        return reply(404)
    return reply(400) if REFUSED in str(request.json()) else json_reply({}, 201)


def first(url: str, state_dir: str) -> None:
    """Conversations that are told, refused, or told but for their end."""
    with AgentPerformanceTracker(url, state_dir=state_dir) as tracker:
        ended = tracker.start_conversation("bot", "u1")
        tracker.end_conversation(ended, 4)
        tracker.start_conversation(REFUSED)
        rolled_up = tracker.start_conversation("bot", "u2")
        for _ in range(ROLLED_UP):
            with tracker.turn(rolled_up):
                pass
        assert tracker.flush(20)
        _tell({"rolled_up": rolled_up})


def second(url: str, state_dir: str, rolled_up: str) -> None:
    """Events of every kind that is kept, those of the last conversations in the journal only; does not return."""
    tracker = AgentPerformanceTracker(url, state_dir=state_dir)
    operations = AgentOperationsTracker(url, state_dir=state_dir)
    tracker.end_conversation(rolled_up, 5)
    sessions = _conversations(tracker)
    operations.register_agent("bot", sdk_version="1")
    operations.update_agent_status("bot", AgentStatus.BUSY, AgentStatus.IDLE)
    operations.log_activity("bot", "search", "three results", 0.5)
    path = next(Path(state_dir).glob("*/state.sqlite3"))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        wait_until(lambda: _stored(other, "/agents/activity") and _stored(other, "/conversations/end") >= 3)
        wait_until(lambda: other.execute("SELECT count(*) FROM sessions").fetchone()[0] >= 2)
        other.execute("BEGIN IMMEDIATE")
        sessions |= _conversations(tracker)
        completed = [session for session, (status, *_) in sessions.items() if status == "completed"]
        told = {
            "sessions": {rolled_up: ["completed", "call", 5], **sessions},
            "turns": {rolled_up: ROLLED_UP, **dict.fromkeys(sessions, 1)},
            "thumbs_up": completed,
            "dead_lettered": 1,
        }
        _tell(told)
        os.kill(os.getpid(), signal.SIGKILL)


def _conversations(tracker: AgentPerformanceTracker) -> dict[str, list[Any]]:
    """Status, who ended it and quality of each, as a tracker tells them once all is known."""
    done, failed, left_open = (tracker.start_conversation("bot", user) for user in ("u3", "u4", None))
    for session in (done, failed, left_open):
        with tracker.turn(session):
            pass
    tracker.record_feedback(done, thumbs="up")
    tracker.end_conversation(done, 3, metadata={"topic": "cats"})
    tracker.record_failed_session(failed, "the model was away")
    return {
        done: ["completed", "call", 3],
        failed: ["failed", "call", None],
        left_open: ["expired", "ttl", None],
    }


def _stored(connection: sqlite3.Connection, path: str) -> int:
    return int(connection.execute("SELECT count(*) FROM outbox WHERE path = ?", (path,)).fetchone()[0])


def _tell(value: dict[str, Any]) -> None:
    os.write(1, json.dumps(value).encode())


def shorten(segment: Path) -> None:
    """Cut off the preallocated rest; a segment that was never written to goes."""
    written = segment.read_bytes().rstrip(b"\0")
    if written:
        os.truncate(segment, len(written) + UNREAD_BYTES)
    else:
        segment.unlink()


def _lives(server: ScriptedServer, state_dir: str) -> Iterator[dict[str, Any]]:
    rolled_up: list[str] = []
    for life in ("first", "second"):
        command = [sys.executable, "-m", "tests.upgrade.make", life, server.url, state_dir, *rolled_up]
        told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=life == "first").stdout)
        rolled_up = [told.get("rolled_up", "")]
        yield told


def main() -> None:
    """Write the folder of this release anew."""
    folder = Path(__file__).parent / VERSION
    shutil.rmtree(folder, ignore_errors=True)
    is_down = False
    server = ScriptedServer(respond(lambda request: reply(503) if is_down else answer_first(request)))
    with tempfile.TemporaryDirectory() as state_dir, server:
        lives = _lives(server, state_dir)
        next(lives)
        is_down = True
        told = next(lives)
        left = next(Path(state_dir).iterdir())
        for segment in left.glob(f"*{SUFFIX}"):
            shorten(segment)
        shutil.copytree(left, folder / "state", ignore=shutil.ignore_patterns("*-shm", "*lock*"))
    (folder / "expected.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    socket.gethostname = lambda: "host"  # nothing of this machine is kept
    if sys.argv[1:]:
        (first if sys.argv[1] == "first" else second)(*sys.argv[2:])
    else:
        main()
