"""Connections that drip, hang, break, lie or are not there at all."""

from __future__ import annotations

import gzip
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from otel_agent_tracker import AgentPerformanceTracker
from otel_agent_tracker.server.run import Server
from tests.conftest import MakeTracker
from tests.faults.trackers import (
    IN_ORDER,
    Event,
    Scripted,
    books,
    converse,
    events_of,
    forward,
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
    Connection,
    ReceivedRequest,
    ScriptedServer,
    disconnect,
    drip,
    flood,
    hang,
    lie,
    raw,
    reply,
    reset,
    reset_unread,
    respond,
)

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


# --- slow ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [True, False])
def test_fault_05_a_dripping_answer_is_given_up_and_asked_for_again(tmp_path: Path, batches: bool) -> None:
    """A request as a whole has a deadline: an answer that comes byte by byte holds delivery up for no longer than one
    that does not come."""
    clock, scripted, began = StandingClock(), Scripted(batches=batches), list[float]()

    def trouble(request: ReceivedRequest) -> Action | None:
        if not is_event(request):
            return None
        began.append(time.monotonic())
        return drip(ANSWER, 0.2) if len(began) == 1 else None

    scripted.trouble = trouble
    with (
        ScriptedServer(respond(scripted.answer)) as server,
        on_clock(clock, server.url, tmp_path, timeout_seconds=0.5) as tracker,
    ):
        (session,) = converse(tracker, 1)
        pass_until(clock, lambda: tracker.flush(0.5))
        requests = [request for request in server.requests if is_event(request)]
    assert began[1] - began[0] < len(ANSWER) * 0.2 / 2
    assert events_of(requests[0])[0] == events_of(requests[1])[0]
    assert paths_by_session(scripted.accepted) == {session: IN_ORDER}


def test_fault_06_an_endpoint_that_never_answers_holds_nobody_up(make_tracker: MakeTracker) -> None:
    """Calls are accepted, `flush` keeps its time and `close` returns within three seconds; all is kept, and delivered
    when somebody answers."""
    scripted = Scripted(trouble=lambda request: hang())
    with ScriptedServer(respond(scripted.answer)) as server:
        tracker = make_tracker(server.url, flush_timeout_seconds=2.0)
        sessions = converse(tracker, 1)
        server.wait_for_requests(1)
        calls = []
        for _ in range(100):
            began = time.perf_counter()
            sessions += converse(tracker, 1)
            calls.append(time.perf_counter() - began)
        assert sorted(calls)[50] < 0.05
        began = time.perf_counter()
        assert not tracker.flush(0.2)
        flushed, began = time.perf_counter() - began, time.perf_counter()
        tracker.close()
        assert (flushed < 1.2, time.perf_counter() - began < 3.5) == (True, True)
        scripted.trouble = well
        tracker = make_tracker(server.url)
        assert tracker.flush(20)
        assert books(tracker) == (303, 303, 0, 0, 0)
    assert paths_by_session(scripted.accepted) == dict.fromkeys(sessions, IN_ORDER)


# --- broken -------------------------------------------------------------------------------------------------


def reset_in_the_middle(connection: Connection, request: ReceivedRequest) -> bool:
    connection.send(b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{")
    connection.reset()
    return False


BREAKS: dict[str, tuple[Action, bool]] = {
    "reset before it is read": (reset_unread(), False),
    "closed before the commit": (disconnect(), False),
    "reset before the commit": (reset(), False),
    "closed after the commit": (disconnect(), True),
    "reset after the commit": (reset(), True),
    "closed in the middle of the answer": (lie(999, b'{"results": [', status=201), True),
    "reset in the middle of the answer": (reset_in_the_middle, True),
}


def episode(tracker: AgentPerformanceTracker, session: str) -> dict[str, Any]:
    """What the tracker knows of the session's only conversation."""
    info = tracker.get_session_info(session)
    assert info is not None
    assert len(info["episodes"]) == 1
    return {name: info[name] for name in ("status", "ended_by", "quality_score", "turns", "user_id")}


AS_IT_WAS = {"status": "completed", "ended_by": "call", "quality_score": 4, "turns": 1, "user_id": "u1"}


@pytest.mark.parametrize("name", BREAKS)
def test_fault_07_a_broken_connection_neither_loses_nor_doubles(
    tracker_server: Server, make_tracker: MakeTracker, name: str
) -> None:
    """Nobody can know whether the tracker had done what it was asked for: the same event goes again, under the same
    id, and the tracker keeps it once."""
    action, committed = BREAKS[name]

    def pass_on(request: ReceivedRequest) -> Action:
        return forward(tracker_server.url, request)

    def break_off(connection: Connection, request: ReceivedRequest) -> bool:
        if committed:
            pass_on(request)
        return action(connection, request)

    broken = action if action is reset_unread() else break_off
    with ScriptedServer(respond(pass_on), broken, broken, respond(pass_on)) as proxy:
        tracker = make_tracker(proxy.url)
        (session,) = converse(tracker, 1)
        assert tracker.flush(20)
        times = Counter(event.event_id for event in told(proxy.requests))
        assert (len(times), max(times.values())) == (3, 1 if action is reset_unread() else 3)
        assert books(tracker) == (3, 3, 0, 0, 0)
        assert episode(tracker, session) == AS_IT_WAS
        assert tracker.get_success_rates()["total"] == 1


KILLED = """
import sys, time
from otel_agent_tracker import AgentPerformanceTracker
tracker = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2])
session = tracker.start_conversation("bot", "u1")
with tracker.turn(session):
    pass
tracker.end_conversation(session, 4)
print(session, flush=True)
time.sleep(60)
"""


def test_fault_07_08_an_answer_that_dies_with_the_process_has_no_second_effect(
    tracker_server: Server, make_tracker: MakeTracker, tmp_path: Path
) -> None:
    """The tracker commits, and the process is killed before it hears of it: the next process delivers again, and
    nothing changes at the tracker."""
    accepted, committed, lost = threading.Event(), threading.Event(), list[Event]()

    def commit_in_silence(request: ReceivedRequest) -> Action:
        accepted.wait(20)
        answer = forward(tracker_server.url, request)
        if not is_event(request):
            return answer
        lost.extend(events_of(request))
        committed.set()
        return hang()

    def look() -> tuple[object, ...]:
        return episode(beside, session), beside.get_performance_overview(), beside.get_active_conversations()

    beside = make_tracker(tracker_server.url, state_dir=tmp_path / "beside")
    with ScriptedServer(respond(commit_in_silence)) as proxy:
        port = proxy.port
        command = [sys.executable, "-c", KILLED, proxy.url, str(tmp_path / "state")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            session = process.stdout.readline().strip()
            accepted.set()
            assert committed.wait(20)
            process.send_signal(signal.SIGKILL)
    before = look()
    with ScriptedServer(respond(lambda request: forward(tracker_server.url, request)), port=port) as proxy:
        tracker = make_tracker(proxy.url)
        assert tracker.flush(20)
        assert books(tracker) == (3, 3, 0, 0, 0)
        again = {event.event_id for event in told(proxy.requests)}
    assert len(lost) == 3
    assert {event.event_id for event in lost} == again
    assert look() == before
    assert before[0] == AS_IT_WAS


# --- too much, and garbage ----------------------------------------------------------------------------------


FLOODED = """
import resource, sys
from otel_agent_tracker import AgentPerformanceTracker
tracker = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2])
tracker.start_conversation("bot")
assert not tracker.flush(0.001)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert tracker.flush(50)
print(tracker.delivery_stats()["delivered"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def bomb(request: ReceivedRequest) -> Action:
    """A mebibyte that unpacks to a gibibyte."""
    packed = gzip.compress(bytes(64 * 1024 * 1024)) * 16
    return reply(200, packed, headers={"Content-Encoding": "gzip"})


@pytest.mark.parametrize(
    "answer", [flood(10**9), flood(10**9, 503), respond(bomb)], ids=["1 GB", "503 of 1 GB", "gzip"]
)
def test_fault_14_an_endless_answer_fills_no_memory(tmp_path: Path, answer: Action) -> None:
    """Of an answer one mebibyte is read at most, and nothing is unpacked; the events go again."""
    scripted = Scripted()
    capabilities = respond(scripted.answer)
    with ScriptedServer(capabilities, answer, answer, capabilities) as server:
        command = [sys.executable, "-c", FLOODED, server.url, str(tmp_path)]
        child = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        delivered, grown = map(int, child.stdout.split())
        assert len(server.requests) == 4
        assert server.bytes_sent < 2 * 16 * 1024 * 1024  # what sockets hold included
    assert delivered == len(scripted.accepted) == 1
    assert grown * (1 if sys.platform == "darwin" else 1024) < 64 * 1024 * 1024


GARBAGE: dict[str, Action] = {
    "noise": raw(b"\x00\x01 garbage \xff\r\n\r\n"),
    "another protocol": raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "HTTP/2": raw(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80"),
    "a status that is none": raw(b"HTTP/1.1 twohundred OK\r\n\r\n"),
    "two lengths": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
    "chunks that are none": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"),
    "a header without end": raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_fault_15_garbage_in_place_of_http_is_trouble_that_passes(tmp_path: Path, name: str) -> None:
    """Whatever comes that is not HTTP loses nothing, and the next connection is a new one."""
    clock, scripted = StandingClock(), Scripted()
    scripted.trouble = lambda request: (
        GARBAGE[name] if is_event(request) and len(server.requests) < 4 else None
    )
    with ScriptedServer(respond(scripted.answer)) as server, on_clock(clock, server.url, tmp_path) as tracker:
        (session,) = converse(tracker, 1)
        pass_until(clock, lambda: tracker.flush(0.5))
        assert books(tracker) == (3, 3, 0, 0, 0)
    assert paths_by_session(scripted.accepted) == {session: IN_ORDER}


@pytest.mark.parametrize("batches", [True, False])
def test_fault_15_a_server_that_closes_after_some_requests_gets_new_connections(
    make_tracker: MakeTracker, batches: bool
) -> None:
    """A connection that ends after its third answer, without a word, costs at most a repetition."""
    scripted, answered = Scripted(batches=batches, max_events=10), Counter[Connection]()

    def third_is_last(connection: Connection, request: ReceivedRequest) -> bool:
        answered[connection] += 1
        return scripted.answer(request)(connection, request) and answered[connection] < 3

    with ScriptedServer(third_is_last) as server:
        tracker = make_tracker(server.url)
        sessions = converse(tracker, 40)
        assert tracker.flush(30)
        assert books(tracker) == (120, 120, 0, 0, 0)
        assert server.connection_count >= len(server.requests) / 3
    first = {event.event_id: event for event in scripted.accepted}
    assert paths_by_session(first.values()) == dict.fromkeys(sessions, IN_ORDER)


# --- ways to the tracker ------------------------------------------------------------------------------------


def test_fault_16_a_name_that_does_not_resolve_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that nobody knows, and a resolver that hangs, are a tracker that is away: when the name is known, all
    arrives."""
    clock, scripted = StandingClock(), Scripted()
    look_up, looked_up = socket.getaddrinfo, list[str]()
    answered, known = threading.Event(), False

    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> Any:
        if host != "tracker.internal":
            return look_up(host, *arguments, **options)
        looked_up.append(host)
        if known:
            return look_up("127.0.0.1", *arguments, **options)
        if len(looked_up) == 1:
            answered.wait(20)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with ScriptedServer(respond(scripted.answer)) as server:
        url = f"http://tracker.internal:{server.port}"
        with on_clock(clock, url, tmp_path, timeout_seconds=0.3) as tracker:
            (session,) = converse(tracker, 1)
            pass_until(clock, lambda: tracker.flush(0.01) or len(looked_up) >= 5)
            assert books(tracker) == (3, 0, 3, 0, 0)
            known = True
            answered.set()
            pass_until(clock, lambda: tracker.flush(0.5))
    assert paths_by_session(scripted.accepted) == {session: IN_ORDER}


def addresses() -> list[str]:
    """The loopback addresses that this machine has."""
    found = ["127.0.0.1"]
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return found
    return [*found, "::1"]


@pytest.mark.parametrize("host", addresses())
def test_fault_16_a_tracker_is_reached_by_either_protocol(
    tracker_database: str, make_tracker: MakeTracker, host: str
) -> None:
    """A tracker is reached over IPv4 and over IPv6, also where it has an address of one kind alone."""
    with Server(host=host, port=0, database=tracker_database) as server:
        tracker = make_tracker(server.url)
        (session,) = converse(tracker, 1)
        assert tracker.flush(20)
        assert episode(tracker, session) == AS_IT_WAS


NETRC = "machine 127.0.0.1 login somebody password of-another-service\n"


@pytest.mark.parametrize("trust_env", [False, True])
def test_fault_16_proxies_of_the_environment_are_used_only_if_trusted(
    make_tracker: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust_env: bool
) -> None:
    """Key and events go to no proxy that the environment happens to name, unless `AGENT_TRACKER_TRUST_ENV` says so; a
    `.netrc` never replaces the key."""
    (tmp_path / ".netrc").write_text(NETRC)
    (tmp_path / ".netrc").chmod(0o600)
    direct, through = Scripted(), Scripted()
    with ScriptedServer(respond(direct.answer)) as server, ScriptedServer(respond(through.answer)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        if trust_env:
            monkeypatch.setenv("AGENT_TRACKER_TRUST_ENV", "true")
        tracker = make_tracker(server.url, api_key="the-key")
        (session,) = converse(tracker, 1)
        assert tracker.flush(20)
        used, unused = (proxy, server) if trust_env else (server, proxy)
        assert unused.requests == []
        assert {request.headers.get("authorization") for request in used.requests} == {"Bearer the-key"}
        assert all(request.target.startswith("http://") == trust_env for request in used.requests)
    assert paths_by_session((through if trust_env else direct).accepted) == {session: IN_ORDER}
