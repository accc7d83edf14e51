"""Processes that share a state folder, die, fork and end: nothing that was accepted is lost or told twice."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from otel_agent_tracker import AgentPerformanceTracker
from otel_agent_tracker.server.run import Server
from tests.conftest import MakeTracker
from tests.waiting import wait_until

HEAD = """
import os, sys, time
from otel_agent_tracker import AgentPerformanceTracker
tracker = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2])
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts Python processes that have a `tracker` on a URL and on the test's state folder."""
    with ExitStack() as stack:

        def start(url: str, script: str, *arguments: str) -> subprocess.Popen[str]:
            quiet = ("-W", "ignore:This process:DeprecationWarning")  # Python 3.12 warns of every fork
            command = [sys.executable, *quiet, "-c", HEAD + script, url, str(tmp_path / "state"), *arguments]
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            return process

        yield start


def finished(process: subprocess.Popen[str], *, complains: bool = False) -> str:
    """What the process wrote, once it has ended well, and silently but for a line on a dead tracker."""
    out, err = process.communicate(timeout=60)
    complaint = "the tracker cannot be reached, events are kept" if complains else ""
    assert (process.returncode, len(err.splitlines()) > complains, complaint in err) == (0, False, True), err
    return out


def status_of(tracker: AgentPerformanceTracker, session: str) -> tuple[Any, ...]:
    info = tracker.get_session_info(session)
    assert info is not None
    return info["status"], info["ended_by"], info["quality_score"], len(info["episodes"]), info["turns"]


# --- sharing ------------------------------------------------------------------------------------------------


def test_a_second_process_continues_and_ends_a_conversation(
    tracker_server: Server, make_tracker: MakeTracker, start: Start
) -> None:
    """It knows only the id: agent, start and user are those of the first process, and both agree on the end."""
    tracker = make_tracker(tracker_server.url)
    session = tracker.start_conversation("bot", "u1", {"channel": "web"})
    with tracker.turn(session):
        pass
    assert tracker.flush(10)
    script = """
    with tracker.turn(sys.argv[3]):
        pass
    print(tracker.end_conversation(sys.argv[3], 4, "thanks"), tracker.flush(10))
    """
    out = finished(start(tracker_server.url, dedent(script), session))
    assert out == "True True\n"
    assert status_of(tracker, session) == ("completed", "call", 4, 1, 2)
    info = tracker.get_session_info(session) or {}
    assert (info["agent_id"], info["user_id"]) == ("bot", "u1")


def test_a_process_learns_that_another_ended_the_session(
    tracker_server: Server, make_tracker: MakeTracker, start: Start
) -> None:
    """Within seconds its own end is False, and nothing expires afterwards."""
    tracker = make_tracker(tracker_server.url)
    session = tracker.start_conversation("bot")
    assert tracker.flush(10)
    assert finished(start(tracker_server.url, "tracker.end_conversation(sys.argv[3], 5)", session)) == ""
    wait_until(lambda: tracker.get_live_session(session) is None)
    assert not tracker.end_conversation(session, 1)
    assert tracker.flush(10)
    assert status_of(tracker, session)[:4] == ("completed", "call", 5, 1)


# --- kill -9 ------------------------------------------------------------------------------------------------

KILLED = """
while True:
    session = tracker.start_conversation("bot")
    if tracker.end_conversation(session, 3):
        sys.stdout.write(session + "\\n")
        sys.stdout.flush()
"""


@pytest.mark.parametrize("calls", [1, 40, 700])
def test_kill_9_right_after_accepted_calls_loses_nothing(
    tracker_database: str, make_tracker: MakeTracker, start: Start, calls: int
) -> None:
    """Accepted by a process that is killed at once, delivered by the next, once."""
    server = Server(port=0, database=tracker_database)  # its socket listens, nobody answers yet
    process = start(server.url, KILLED)
    assert process.stdout is not None
    accepted = [process.stdout.readline().strip() for _ in range(calls)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    accepted += [line.strip() for line in process.stdout if line.endswith("\n")]
    with server:
        tracker = make_tracker(server.url)
        assert tracker.flush(30)
        rates = tracker.get_success_rates("bot")
        assert rates["total"] - rates["active"] == rates["completed"]
        assert len(accepted) <= rates["completed"] <= rates["total"] <= len(accepted) + 1
        for session in {accepted[0], accepted[len(accepted) // 2], accepted[-1]}:
            assert status_of(tracker, session) == ("completed", "call", 3, 1, 0)
        stats = tracker.delivery_stats()
        assert (stats["pending"], stats["dead_lettered"], stats["dropped"]) == (0, 0, 0)


def test_a_killed_process_s_open_session_goes_on_in_the_next(
    tracker_server: Server, make_tracker: MakeTracker, start: Start
) -> None:
    """After a crash open sessions are there: the next process holds them, and ends them once."""
    script = 'print(tracker.start_conversation("bot", "u1"), flush=True); time.sleep(60)'
    process = start(tracker_server.url, script)
    assert process.stdout is not None
    session = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    process.wait()
    tracker = make_tracker(tracker_server.url)
    assert tracker.flush(10)
    info = tracker.get_live_session(session)
    assert info is not None
    assert (info.agent_id, info.user_id) == ("bot", "u1")
    assert tracker.end_conversation(session, 5)
    assert tracker.flush(10)
    assert status_of(tracker, session) == ("completed", "call", 5, 1, 0)


# --- fork ---------------------------------------------------------------------------------------------------

FORKED = """
mine, shared = tracker.start_conversation("parent"), tracker.start_conversation("parent")
print(mine, shared, flush=True)
child = os.fork()
if not child:
    own = tracker.start_conversation("child")
    print(own, tracker.end_conversation(own, 2), tracker.end_conversation(shared, 3), tracker.flush(20), flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(status, tracker.end_conversation(mine, 4), tracker.flush(20), flush=True)
tracker.close()
"""


def test_after_a_fork_both_processes_go_on(
    tracker_server: Server, make_tracker: MakeTracker, start: Start
) -> None:
    """Parent and child start, end and deliver; what the parent had accepted is told once."""
    out = finished(start(tracker_server.url, FORKED))
    (mine, shared), (own, *child), parent = (line.split() for line in out.splitlines())
    assert (child, parent) == (["True", "True", "True"], ["0", "True", "True"])
    tracker = make_tracker(tracker_server.url)
    assert [status_of(tracker, session)[:4] for session in (mine, shared, own)] == [
        ("completed", "call", 4, 1),
        ("completed", "call", 3, 1),
        ("completed", "call", 2, 1),
    ]
    assert tracker.get_success_rates()["total"] == 3


# --- exit ---------------------------------------------------------------------------------------------------

EXITS = {
    "end of the script": "",
    "sys.exit": "sys.exit(0)",
    "os._exit": "os._exit(0)",
    "exception": "raise SystemExit",
}


@contextmanager
def dead_tracker(kind: str) -> Iterator[str]:
    """The URL of a tracker that refuses connections, or takes them and never answers."""
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        if kind == "silent":
            dead.listen(64)
        yield f"http://127.0.0.1:{dead.getsockname()[1]}"


@pytest.mark.parametrize(
    ("kind", "way"), [*(("silent", way) for way in EXITS), ("refusing", "end of the script")]
)
def test_exit_with_a_dead_tracker_takes_three_seconds_at_most_and_loses_nothing(
    tracker_database: str, make_tracker: MakeTracker, start: Start, kind: str, way: str
) -> None:
    """At the end of the interpreter too; the next process delivers what was accepted."""
    script = """
    for _ in range(100):
        tracker.end_conversation(tracker.start_conversation("bot"), 5)
    print(time.time(), flush=True)
    """
    with dead_tracker(kind) as url:
        out = finished(start(url, dedent(script) + EXITS[way]), complains=kind == "refusing")
        took = time.time() - float(out)
    assert took <= 3.0
    with Server(port=int(url.rpartition(":")[2]), database=tracker_database):
        tracker = make_tracker(url)
        assert tracker.flush(20)
        assert tracker.get_success_rates("bot")["completed"] == 100
