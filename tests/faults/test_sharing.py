"""Processes that share a state folder: one conversation across them, one end, one sender, and nothing lost."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

from otel_agent_tracker import AgentPerformanceTracker
from otel_agent_tracker.server.run import Server
from tests.conftest import MakeTracker
from tests.faults.processes import HEAD, Host, StartHost
from tests.faults.trackers import forward
from tests.scripted_server import Action, ReceivedRequest, ScriptedServer, hang, respond
from tests.waiting import wait_until

# A host that does what it reads: one line, one expression, whose value it says.
OBEYS = """
def turn(session):
    with tracker.turn(session):
        pass
while order := sys.stdin.readline():
    say(eval(order))
"""
IDLES = HEAD.replace(
    ")\ndef say", ", idle_minutes=0.05)\ndef say"
)  # a recognised session is over after three seconds


def asked(host: Host, order: str) -> str:
    """What the host says to an order."""
    host.go_on(order)
    return host.line()


def status_of(tracker: AgentPerformanceTracker, session: str) -> tuple[Any, ...]:
    info = tracker.get_session_info(session)
    assert info is not None
    return info["status"], info["ended_by"], info["quality_score"], len(info["episodes"]), info["turns"]


def test_fault_22_start_turns_and_end_may_come_from_three_processes(
    tracker_server: Server, make_tracker: MakeTracker, start_host: StartHost
) -> None:
    """A conversation may start in one process of a machine, go on in a second and end in a third, at once and
    knowing only its id: it is one conversation, with the agent and user of its start.
    """
    hosts = [start_host(tracker_server.url, OBEYS) for _ in range(4)]
    starts, turns, ends, fourth = hosts
    assert [asked(host, "tracker.get_session_stats()['active_sessions']") for host in hosts] == ["0"] * 4
    session = asked(starts, "tracker.start_conversation('bot', 'u1')")
    for _ in range(3):
        assert asked(turns, f"turn({session!r})") == "None"
    assert asked(ends, f"tracker.end_conversation({session!r}, 4)") == "True"
    for host in hosts:
        assert asked(host, "tracker.flush(20)") == "True"
    tracker = make_tracker(tracker_server.url)
    assert status_of(tracker, session) == ("completed", "call", 4, 1, 3)
    info = tracker.get_session_info(session) or {}
    assert (info["agent_id"], info["user_id"]) == ("bot", "u1")
    wait_until(lambda: asked(fourth, f"tracker.end_conversation({session!r}, 1)") == "False")
    assert tracker.get_success_rates()["total"] == 1


def test_a_process_learns_that_another_ended_the_session(
    tracker_server: Server, make_tracker: MakeTracker, start_host: StartHost
) -> None:
    """Within seconds its own end is False, and nothing expires afterwards."""
    tracker = make_tracker(tracker_server.url)
    session = tracker.start_conversation("bot")
    assert tracker.flush(10)
    start_host(tracker_server.url, f"tracker.end_conversation({session!r}, 5)").end_well()
    wait_until(lambda: tracker.get_live_session(session) is None)
    assert not tracker.end_conversation(session, 1)
    assert tracker.flush(10)
    assert status_of(tracker, session)[:4] == ("completed", "call", 5, 1)


def test_fault_22_a_session_that_is_idle_in_all_processes_ends_once(
    tracker_server: Server, make_tracker: MakeTracker, start_host: StartHost
) -> None:
    """As long as one of four processes sees life in a session it goes on; when all have seen none for the idle
    window, it ends by one inferred end, whoever tells it first.
    """
    hosts = [start_host(tracker_server.url, OBEYS, head=IDLES) for _ in range(4)]
    for host in hosts:
        assert asked(host, "turn('thread-1')") == "None"
    for host in hosts:
        assert asked(host, "tracker.flush(20)") == "True"

    def is_over(host: Host) -> bool:
        asked(host, "tracker.flush(20)")  # sweeps
        return asked(host, "tracker.get_live_session('thread-1')") == "None"

    for host in hosts:
        wait_until(lambda host=host: is_over(host), 30)  # type: ignore[misc]  # a default binds the loop's value
    tracker = make_tracker(tracker_server.url)
    assert tracker.flush(20)
    assert status_of(tracker, "thread-1") == ("completed", "idle", None, 1, 4)
    stats = tracker.delivery_stats()
    assert (stats["dead_lettered"], stats["dropped"]) == (0, 0)


SENDS = """
tracker.end_conversation(tracker.start_conversation("victim"), 5)
sys.stdin.readline()
if not os.fork():
    tracker.start_conversation("child")
    say("child")
    signal.alarm(60)
    sys.stdin.read()
    os._exit(0)
time.sleep(60)
"""


def test_fault_25_28_another_process_takes_over_from_one_that_is_killed_while_it_sends(
    tracker_server: Server, make_tracker: MakeTracker, start_host: StartHost
) -> None:
    """When the process that sends is killed in the middle of a request, another delivers within five seconds what
    both had accepted, once, though a forked child of the dead one lives on.
    """
    posts = count()

    def first_hangs(request: ReceivedRequest) -> Action:
        is_first = request.method == "POST" and next(posts) == 0
        return hang() if is_first else forward(tracker_server.url, request)

    with ScriptedServer(respond(first_hangs)) as proxy:
        victim = start_host(proxy.url, SENDS)
        proxy.wait_for_requests(2)  # it asked what the tracker offers, and sends
        victim.go_on()
        assert victim.line() == "child"
        heir = start_host(proxy.url, OBEYS)
        assert asked(heir, "tracker.end_conversation(tracker.start_conversation('heir'), 5)") == "True"
        victim.kill()
        assert asked(heir, "tracker.flush(5)") == "True"
    rates = make_tracker(tracker_server.url).get_success_rates
    assert [rates(agent)["completed"] for agent in ("victim", "heir")] == [1, 1]
    assert rates()["total"] == 3


def test_two_destinations_of_one_service_share_nothing(
    tracker_server: Server, tmp_path: Path, migrated_database: Path, start_host: StartHost
) -> None:
    """Two trackers in one process, and in two: each hears its own, and a session is known to its own alone."""
    other_database = tmp_path / "other.sqlite3"
    other_database.write_bytes(migrated_database.read_bytes())
    with Server(port=0, database=str(other_database)) as other:
        script = f"""
        other = AgentPerformanceTracker({other.url!r}, state_dir=sys.argv[2])
        here, there = tracker.start_conversation("bot"), other.start_conversation("bot")
        say(tracker.get_live_session(there), other.get_live_session(here))
        say(tracker.end_conversation(here, 5), other.end_conversation(there, 1), tracker.flush(20), other.flush(20))
        """
        for _ in range(2):
            lines = start_host(tracker_server.url, script, OTEL_SERVICE_NAME="shop").end_well()
            assert lines == ["None None", "True True True True"]
        for server, quality in ((tracker_server, 5), (other, 1)):
            with AgentPerformanceTracker(server.url, state_dir=tmp_path / "asks") as tracker:
                assert tracker.get_success_rates("bot")["total"] == 2
                assert tracker.get_conversation_quality("bot")["mean"] == quality
