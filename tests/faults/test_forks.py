"""Forks: parent and child both go on, each tells its own, and no lock of a thread that is not there holds either."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from otel_agent_tracker import AgentPerformanceTracker
from otel_agent_tracker.server.run import Server
from tests.conftest import MakeTracker
from tests.faults.processes import StartHost

FORK = """
def child():
    own = tracker.start_conversation("child")
    with tracker.turn(own):
        pass
    say("child", tracker.end_conversation(own, 2), *[tracker.end_conversation(one, 3) for one in shared[1:]])
    say("child flushed", sys.argv[3] == "nobody answers" or tracker.flush(20))
def fork():
    pid = os.fork()
    if not pid:
        child()
        os._exit(0)
    say("fork", os.waitpid(pid, 0)[1])
"""

MOMENTS = {
    "before the first event": "shared = []\nfork()\nshared = [tracker.start_conversation('parent')]\n",
    "after it": "shared = [tracker.start_conversation('parent') for _ in range(2)]\ntracker.flush(20)\nfork()\n",
    "right after it": "shared = [tracker.start_conversation('parent') for _ in range(2)]\nfork()\n",
    "in a thread": (
        "shared = [tracker.start_conversation('parent') for _ in range(2)]\n"
        "thread = threading.Thread(target=fork)\nthread.start()\nthread.join()\n"
    ),
    "after close": (
        "shared = [tracker.start_conversation('parent') for _ in range(2)]\ntracker.close()\n"
        "tracker = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2])\nfork()\n"
    ),
}

PARENT = "say('parent', tracker.end_conversation(shared[0], 4), tracker.flush(20))\n"


def outcomes(tracker: AgentPerformanceTracker) -> dict[str, tuple[int, int, Any]]:
    """Of each agent: conversations, those completed, and their mean quality."""
    found = {}
    for agent in ("parent", "child"):
        rates, quality = tracker.get_success_rates(agent), tracker.get_conversation_quality(agent)
        found[agent] = rates["total"], rates["completed"], quality["mean"]
    return found


@pytest.mark.parametrize("moment", MOMENTS)
def test_fault_28_after_a_fork_both_go_on(
    tracker_server: Server, make_tracker: MakeTracker, start_host: StartHost, moment: str
) -> None:
    """A process may fork at any moment, in any thread: parent and child both start, end and deliver, each can end
    what was begun before, and nothing is told twice.
    """
    lines = start_host(tracker_server.url, FORK + MOMENTS[moment] + PARENT, moment).end_well()
    is_shared = moment != "before the first event"
    assert lines == [
        "child True True" if is_shared else "child True",
        "child flushed True",
        "fork 0",
        "parent True True",
    ]
    parent = (2, 2, 3.5) if is_shared else (1, 1, 4.0)
    assert outcomes(make_tracker(tracker_server.url)) == {"parent": parent, "child": (1, 1, 2.0)}


def test_fault_28_parent_and_child_are_told_apart(
    tracker_server: Server, tracker_database: str, make_tracker: MakeTracker, start_host: StartHost
) -> None:
    """Where the resource does not name the process, as with older SDKs, each tells its own instance."""
    script = (
        "from opentelemetry import trace\nfrom opentelemetry.sdk.resources import Resource\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "trace.set_tracer_provider(TracerProvider(resource=Resource({'service.name': 'shop'})))\n"
        f"{FORK}{MOMENTS['after it']}{PARENT}"
    )
    start_host(tracker_server.url, script, "somebody answers").end_well()
    assert make_tracker(tracker_server.url).flush(20)
    with closing(sqlite3.connect(tracker_database)) as connection:
        query = "SELECT agent_id, count(DISTINCT instance) FROM events WHERE path LIKE '%start' GROUP BY 1"
        assert connection.execute(query).fetchall() == [("child", 1), ("parent", 1)]
        assert connection.execute("SELECT count(DISTINCT instance) FROM events").fetchall() == [(2,)]


def test_fault_28_a_fork_with_events_queued_sends_them_once(
    tracker_database: str, make_tracker: MakeTracker, start_host: StartHost
) -> None:
    """What the parent had accepted and not delivered is the parent's to deliver, or of whoever comes after it."""
    moment = (
        "shared = [tracker.start_conversation('parent') for _ in range(2)]\n"
        "for _ in range(100):\n    tracker.end_conversation(tracker.start_conversation('parent'), 5)\n"
        "tracker.flush(0.2)\nfork()\nsay('parent', tracker.end_conversation(shared[0], 4))\n"
    )
    server = Server(port=0, database=tracker_database)  # listens, and does not answer yet
    lines = start_host(server.url, FORK + moment, "nobody answers").end_well()
    assert lines == ["child True True", "child flushed True", "fork 0", "parent True"]
    with server:
        tracker = make_tracker(server.url)
        assert tracker.flush(20)
        assert outcomes(tracker) == {"parent": (102, 102, 507 / 102), "child": (1, 1, 2.0)}


LOCKED = """
stop = threading.Event()
def track_for_ever(number):
    said = []
    while not stop.is_set():
        session = tracker.start_conversation("thread")
        with tracker.turn(session):
            pass
        tracker.end_conversation(session, 5)
        said.append(session)
        time.sleep(0.001)
    counts[number] = len(said)
counts = [0] * 8
threads = [threading.Thread(target=track_for_ever, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
codes = set()
for _ in range(int(sys.argv[3])):
    pid = os.fork()
    if not pid:
        signal.alarm(20)  # a child that waits for a lock is dead, and is seen to be
        session = tracker.start_conversation("child")
        with tracker.turn(session):
            pass
        os._exit(not tracker.end_conversation(session, 5))
    codes.add(os.waitpid(pid, 0)[1])
stop.set()
for thread in threads:
    thread.join()
say(codes, sum(counts))
"""


def test_fault_28_a_fork_while_other_threads_hold_our_locks_hangs_nobody(
    tracker_server: Server, make_tracker: MakeTracker, start_host: StartHost
) -> None:
    """A child that is forked while eight threads are in the middle of our calls tracks like any other process, and
    what it accepts before it ends is delivered.
    """
    forks = 15
    (line,) = start_host(tracker_server.url, LOCKED, str(forks)).end_well()
    codes, _, threads = line.rpartition(" ")
    assert codes == "{0}"
    tracker = make_tracker(tracker_server.url)
    assert tracker.flush(30)
    for agent, number in (("child", forks), ("thread", int(threads))):
        rates = tracker.get_success_rates(agent)
        assert (rates["total"], rates["completed"]) == (number, number)
        assert tracker.get_response_times(agent)["count"] == number


IMPORTS = """
from otel_agent_tracker import pipeline
imported = []
def note(event, arguments):
    if event == "import" and threading.current_thread() is not threading.main_thread():
        if not pipeline._importing.locked():
            imported.append(arguments[0])
sys.addaudithook(note)
session = tracker.start_conversation("bot")
with tracker.turn(session):
    pass
say(tracker.end_conversation(session, 5), tracker.flush(20), imported)
"""


def test_fault_28_the_worker_imports_nothing_once_it_runs(
    tracker_server: Server, start_host: StartHost
) -> None:
    """A fork in the middle of an import leaves the child half a module, and nobody to finish it: the worker imports
    all it needs at its start, while no fork can happen.
    """
    assert start_host(tracker_server.url, IMPORTS).end_well() == ["True True []"]


IN_A_WRITE = """
from otel_agent_tracker.state import State
writing, stuck = threading.Event(), threading.Event()
accept = State.accept
def accept_slowly(*arguments):
    writing.set()
    stuck.wait(20)
    return accept(*arguments)
shared = [tracker.start_conversation("parent") for _ in range(2)]
tracker.flush(20)
State.accept = accept_slowly
tracker.touch_session(shared[0])
own = tracker.start_conversation("parent")
writing.wait(20)
pid = os.fork()
if not pid:
    stuck.set()
    session = tracker.start_conversation("child")
    with tracker.turn(session):
        pass
    said = tracker.end_conversation(session, 2), tracker.end_conversation(shared[1], 3)
    say("child", *said, tracker.flush(20), tracker.delivery_stats()["pending"])
    os._exit(0)
say("fork", os.waitpid(pid, 0)[1])
stuck.set()
say("parent", tracker.end_conversation(shared[0], 4), tracker.end_conversation(own, 4), tracker.flush(20))
"""


def test_fault_28_a_fork_in_the_middle_of_a_long_write_leaves_the_file_to_the_parent(
    tracker_server: Server, make_tracker: MakeTracker, start_host: StartHost
) -> None:
    """SQLite would take its parent's locks for the child's: the child goes on without the file, in its journal and in
    memory, and delivers all the same.
    """
    ended = start_host(tracker_server.url, IN_A_WRITE).end()
    assert ended.code == 0
    assert ended.lines == ["child True True True 0", "fork 0", "parent True True True"]
    assert outcomes(make_tracker(tracker_server.url)) == {"parent": (3, 3, 11 / 3), "child": (1, 1, 2.0)}
