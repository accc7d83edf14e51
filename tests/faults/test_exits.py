"""How processes end: what they accepted is delivered, by them or by the next one, and their end is their own."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pytest

from otel_agent_tracker import AgentPerformanceTracker
from otel_agent_tracker.server.run import Server
from tests.conftest import MakeTracker
from tests.faults.processes import HEAD, Ended, StartHost
from tests.scripted_server import ScriptedServer, hang

CONVERSATIONS = 50
LONGEST_EXIT = 3.0  # seconds from its last line to its end
FLUSHES = 2.0  # seconds of it that we may wait for the tracker; the rest is computing, ours and Python's

TRACKS = f"""
def track(agent, number={CONVERSATIONS}):
    for _ in range(number):
        session = tracker.start_conversation(agent)
        with tracker.turn(session):
            pass
        tracker.end_conversation(session, 5)
"""

ENDS = (
    TRACKS
    + """
track(sys.argv[3])
say("ready")
sys.stdin.readline()
say(time.time())
"""
)

CHILD = (
    TRACKS
    + """
import multiprocessing
def child(agent):
    track(agent)
    say(time.time())
    sys.exit(3)
if __name__ == "__main__":
    track(sys.argv[3], 1)
    say("ready")
    sys.stdin.readline()
    process = multiprocessing.get_context("{}").Process(target=child, args=(sys.argv[3],))
    process.start()
    process.join()
    say(process.exitcode)
    say(time.time())
"""
)

HANDLES_SIGTERM = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))"


def kills_itself(name: str) -> str:
    return f"os.kill(os.getpid(), signal.{name}); time.sleep(60)"


class Way(NamedTuple):
    """A script, the exit code that it must have, and the last line on its stderr, which is the host's own."""

    script: str
    code: int = 0
    last_line: str = ""


WAYS = {
    "end of the script": Way(ENDS),
    "sys.exit": Way(ENDS + "sys.exit(3)", 3),
    "exception": Way(ENDS + "raise ValueError('of the host')", 1, "ValueError: of the host"),
    "KeyboardInterrupt": Way(ENDS + kills_itself("SIGINT"), -signal.SIGINT, "KeyboardInterrupt"),
    "os._exit": Way(ENDS + "os._exit(4)", 4),
    "SIGTERM": Way(ENDS + kills_itself("SIGTERM"), -signal.SIGTERM),
    "SIGTERM, handled": Way(HANDLES_SIGTERM + ENDS + kills_itself("SIGTERM"), 5),
    "SIGKILL": Way(ENDS + kills_itself("SIGKILL"), -signal.SIGKILL),
    "forked child": Way(CHILD.replace("{}", "fork")),
    "spawned child": Way(CHILD.replace("{}", "spawn")),
}


@contextmanager
def nobody() -> Iterator[str]:
    """A URL that refuses connections, and that nobody else gets meanwhile."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unheard.getsockname()[1]}"


def counted(tracker: AgentPerformanceTracker, agent: str) -> tuple[Any, ...]:
    """Conversations of the agent, those completed, and turns."""
    rates = tracker.get_success_rates(agent)
    return rates["total"], rates["completed"], tracker.get_response_times(agent)["count"]


def seconds_to_end(ended: Ended, way: Way) -> float:
    """How long it took from its last line, or a child of it from its own, if that is more; all else is checked."""
    assert ended.code == way.code, ended.stderr
    assert ended.stderr.rpartition("\n")[0].rpartition("\n")[2] == way.last_line
    assert "otel_agent_tracker" not in ended.stderr
    assert ended.stderr.count("Traceback") == bool(way.last_line)
    *of_child, said = map(float, ended.lines)
    if not of_child:
        return ended.at - said
    said_by_child, code_of_child = of_child
    assert code_of_child == 3
    return max(ended.at - said, said - said_by_child)


@pytest.mark.parametrize("way", WAYS)
def test_fault_26_27_every_way_to_end_loses_nothing_and_takes_three_seconds_at_most(
    tracker_database: str, make_tracker: MakeTracker, start_host: StartHost, way: str
) -> None:
    """However a process ends, and be the tracker up, down or hanging, what it had accepted is delivered by it or by
    the next process, once. It is gone three seconds after its own end at the latest, with the exit code and the
    stderr that it has without us.

    Ends: of the script, sys.exit, an exception, Ctrl-C, os._exit, SIGTERM, handled by the host or not, SIGKILL, of
    a child that was forked or spawned by multiprocessing.
    """
    with ExitStack() as stack:
        up, hanging = (Server(port=0, database=tracker_database) for _ in range(2))
        stack.callback(hanging.stop)
        stack.enter_context(up)
        with nobody() as down_url:
            urls = {
                "up": up.url,
                "down": down_url,
                "hanging": hanging.url,
            }  # one listens and does not answer yet
            hosts = [start_host(url, WAYS[way].script, state) for state, url in urls.items()]
            alone = start_host(up.url, WAYS[way].script, "nobody", AGENT_TRACKER_ENABLED="false")
            assert [host.line() for host in (alone, *hosts)] == ["ready"] * 4
            for host in (alone, *hosts):
                host.go_on()
            longest = max(
                LONGEST_EXIT, FLUSHES + 3 * seconds_to_end(alone.end(), WAYS[way])
            )  # on a busy machine
            for host in hosts:
                assert seconds_to_end(host.end(), WAYS[way]) <= longest
        hanging.start()
        stack.enter_context(Server(port=int(down_url.rpartition(":")[2]), database=tracker_database))
        number = CONVERSATIONS + ("child" in way)
        for state, url in urls.items():
            tracker = make_tracker(url)
            assert tracker.flush(20)
            assert (state, *counted(tracker, state)) == (state, number, number, number)
            stats = tracker.delivery_stats()
            assert stats["accepted"] == stats["delivered"] == 3 * number


def test_fault_27_a_frozen_process_goes_on_or_dies_and_loses_nothing(
    tracker_database: str, make_tracker: MakeTracker, start_host: StartHost
) -> None:
    """A process that is frozen in the middle of its requests, as serverless platforms do, goes on when it is thawed;
    killed while it is frozen, it leaves what it had accepted to the next process. Nothing is told twice.
    """
    script = TRACKS + "track(sys.argv[3])\nsay('ready')\nsys.stdin.readline()\nsay(tracker.flush(20))\n"
    with ScriptedServer(hang()) as hanging:
        port, thawed = (
            hanging.port,
            start_host(hanging.url, script, "thawed", AGENT_TRACKER_TIMEOUT_SECONDS="1"),
        )
        killed = start_host(hanging.url, script, "killed", AGENT_TRACKER_TIMEOUT_SECONDS="1")
        for host in (thawed, killed):
            assert host.line() == "ready"
        hanging.wait_for_requests(1)
        for host in (thawed, killed):
            host.send_signal(signal.SIGSTOP)
    with Server(port=port, database=tracker_database) as server:
        killed.kill()
        thawed.send_signal(signal.SIGCONT)
        thawed.go_on()
        assert thawed.end_well() == ["True"]
        tracker = make_tracker(server.url)
        assert tracker.flush(20)
        assert [counted(tracker, agent) for agent in ("thawed", "killed")] == [(CONVERSATIONS,) * 3] * 2


def test_fault_26_we_install_no_signal_handler(start_host: StartHost) -> None:
    """Signals are the host's: none has another handler after we have started, worked and stopped."""
    script = """
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    tracker.end_conversation(tracker.start_conversation("bot"))
    tracker.flush(0.2)
    tracker.close()
    say(before == {number: signal.getsignal(number) for number in signal.valid_signals()})
    """
    with nobody() as url:
        assert start_host(url, script).end_well() == ["True"]


def test_fault_30_a_daemon_thread_tracks_on_while_the_interpreter_ends(
    tracker_server: Server, make_tracker: MakeTracker, start_host: StartHost
) -> None:
    """Threads that the host leaves running at its end disturb nothing: no traceback, no wait, and every call of
    theirs that returned is kept.
    """
    script = """
    def track_for_ever():
        while True:
            session = tracker.start_conversation("daemon")
            tracker.end_conversation(session, 4)
            say(session)
            time.sleep(0.001)
    for _ in range(4):
        threading.Thread(target=track_for_ever, daemon=True).start()
    time.sleep(0.2)
    """
    sessions = start_host(tracker_server.url, script).end_well()
    tracker = make_tracker(tracker_server.url)
    assert tracker.flush(20)
    total, completed, _ = counted(tracker, "daemon")
    assert (
        len(sessions) <= completed <= total <= len(sessions) + 4
    )  # the last of each may not have come to say it
    for session in (sessions[0], sessions[-1]):
        assert (tracker.get_session_info(session) or {})["status"] == "completed"


def test_fault_27_ctrl_c_right_after_the_first_event_is_told_by_the_exit_code(
    tracker_server: Server, make_tracker: MakeTracker, start_host: StartHost
) -> None:
    """A process that is interrupted while our worker is still being loaded ends as an interrupted one does."""
    ended = start_host(tracker_server.url, TRACKS + "track('quick', 1)\n" + kills_itself("SIGINT")).end()
    assert (ended.code, ended.stderr.splitlines()[-1]) == (-signal.SIGINT, "KeyboardInterrupt")
    tracker = make_tracker(tracker_server.url)
    assert tracker.flush(20)
    assert counted(tracker, "quick") == (1, 1, 1)


@pytest.mark.parametrize("kind", ["RuntimeError", "MemoryError"])
def test_fault_30_threads_that_cannot_be_started_cost_nothing_but_time(
    tracker_server: Server, make_tracker: MakeTracker, start_host: StartHost, kind: str
) -> None:
    """Where no thread can be started, calls return as ever and events wait on disk; they are delivered as soon as
    one can be, or by the next process.
    """
    head = f"""
import threading
start = threading.Thread.start
def refuse(self):
    raise {kind}("can't start new thread")
threading.Thread.start = refuse
"""
    script = (
        TRACKS
        + """
track("early")
say(tracker.flush(0.2), tracker.delivery_stats()["pending"], tracker.delivery_stats()["dropped"])
if sys.argv[3] == "thaws":
    threading.Thread.start = start
    track("late")
    say(tracker.flush(20))
"""
    )
    agents = {"early": 2 * CONVERSATIONS, "late": CONVERSATIONS}
    refused = f"False {3 * CONVERSATIONS} 0"
    for after, said in (("refuses", [refused]), ("thaws", [refused, "True"])):
        assert start_host(tracker_server.url, script, after, head=head + HEAD).end_well() == said
    tracker = make_tracker(tracker_server.url)
    assert {agent: counted(tracker, agent) for agent in agents} == {
        agent: (number,) * 3 for agent, number in agents.items()
    }


def test_fault_30_the_first_event_may_come_while_the_interpreter_ends(
    tracker_server: Server, make_tracker: MakeTracker, start_host: StartHost
) -> None:
    """What an exit handler of the host tells is kept, be it the first thing that the process has to tell."""
    script = TRACKS + "import atexit\natexit.register(track, 'at exit', 1)\n"
    assert start_host(tracker_server.url, script).end_well() == []
    tracker = make_tracker(tracker_server.url)
    assert tracker.flush(20)
    assert counted(tracker, "at exit") == (1, 1, 1)


@pytest.mark.parametrize("closed", ["log file", "stderr", "no stderr"])
def test_fault_30_closed_streams_are_not_written_to(
    make_tracker: MakeTracker, start_host: StartHost, closed: str
) -> None:
    """A host whose log or stderr is closed before we have something to say has its calls return, no traceback, and
    its events kept.
    """
    script = """
    import logging
    stream = open(os.devnull, "w") if sys.argv[3] == "log file" else sys.stderr
    logging.basicConfig(stream=stream)
    tracker.end_conversation("unknown")  # is told: once to a stream that is open, then to one that is not
    if sys.argv[3] == "no stderr":
        sys.stderr = None
    else:
        stream.close()
    session = tracker.start_conversation("bot")
    say(tracker.end_conversation(session, 5), tracker.end_conversation(session, 5), tracker.flush(0.5))
    stats = tracker.delivery_stats()
    say(stats["accepted"], stats["pending"], threading.active_count() > 1)
    """
    with nobody() as url:
        host = start_host(url, script, closed)
        ended = host.end()
    assert (ended.code, ended.lines) == (0, ["True False False", "2 2 True"])
    assert "Traceback" not in ended.stderr


def test_a_host_that_configures_logging_is_told_once_of_a_dead_tracker(start_host: StartHost) -> None:
    """Its logger is ours by name; nothing else is written anywhere."""
    script = (
        TRACKS + "import logging\nlogging.basicConfig()\ntrack('bot')\ntracker.flush(0.5)\ntracker.close()\n"
    )
    with nobody() as url:
        ended = start_host(url, script).end()
    (line,) = ended.stderr.splitlines()
    assert line.startswith(
        "WARNING:otel_agent_tracker.channel:the tracker cannot be reached, events are kept: "
    )
