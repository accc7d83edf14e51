"""Hosts of every kind, and parts of ours that fail: nothing raises into the host, waits for long or is lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from otel_agent_tracker import (
    AgentOperationsTracker,
    AgentPerformanceTracker,
    AgentStatus,
    mapping,
    session_id,
)
from otel_agent_tracker.pipeline import Pipeline
from otel_agent_tracker.redaction import Redactor
from otel_agent_tracker.server.run import Server
from tests.conftest import MakeTracker
from tests.faults.processes import HEAD, StartHost
from tests.scripted_server import ScriptedServer, hang

WAIT = 0.05  # seconds; what a call of ours may make a thread of the host wait


def counted(tracker: AgentPerformanceTracker, agent: str) -> tuple[Any, ...]:
    """Conversations of the agent, those completed, and turns."""
    rates = tracker.get_success_rates(agent)
    return rates["total"], rates["completed"], tracker.get_response_times(agent)["count"]


# --- a life cycle that is not as it should be ---------------------------------------------------------------


def test_fault_31_made_twice_and_closed_twice_is_one_pipeline(
    tracker_server: Server, make_tracker: MakeTracker
) -> None:
    """Two objects of one destination share what is behind them; it goes on until both are closed, however often
    each is.
    """
    first, second = make_tracker(tracker_server.url), make_tracker(tracker_server.url)
    session = first.start_conversation("bot")
    assert second.get_live_session(session) is not None
    first.close()
    first.close()
    assert second.end_conversation(session, 5)
    assert second.flush(20)
    assert counted(second, "bot") == (1, 1, 0)
    second.close()
    second.close()


def test_fault_31_calls_after_close_return_and_are_counted(
    tracker_server: Server, make_tracker: MakeTracker
) -> None:
    """Whoever goes on with a closed object has his calls return as ever; what they tell is not kept."""
    tracker = make_tracker(tracker_server.url)
    tracker.end_conversation(tracker.start_conversation("bot"), 5)
    assert tracker.flush(20)
    tracker.close()
    session = tracker.start_conversation("late")
    with tracker.turn(session):
        pass
    tracker.end_conversation(session)
    assert tracker.touch_session(session) in (True, False)
    assert not tracker.flush(0.2)
    again = make_tracker(tracker_server.url)
    assert again.flush(20)
    assert (counted(again, "bot"), counted(again, "late")) == ((1, 1, 0), (0, 0, 0))


def test_fault_31_a_flush_keeps_its_timeout(make_tracker: MakeTracker) -> None:
    """Beside a tracker that hangs, `flush` says False when its time is over, not when the request's is; nothing is
    lost by that.
    """
    with ScriptedServer(hang()) as server:
        tracker = make_tracker(server.url)
        tracker.end_conversation(tracker.start_conversation("bot"), 5)
        server.wait_for_requests(1)
        for seconds in (0.01, 0.3):
            began = time.monotonic()
            assert not tracker.flush(seconds)
            assert seconds <= time.monotonic() - began < seconds + 1.0
        assert tracker.delivery_stats()["pending"] == 2


# --- hosts of other kinds -----------------------------------------------------------------------------------


LOOP = """
import asyncio, resource
from contextlib import contextmanager
from otel_agent_tracker import AsyncAgentPerformanceTracker
waits, work = [], []

@contextmanager
def noted():
    given_up = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    began, worked = time.perf_counter(), time.thread_time()
    yield
    work.append(time.thread_time() - worked)
    seconds = time.perf_counter() - began
    given_up -= resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    waits.append(seconds if given_up else 0.0)  # others on the machine may have taken the processor away

async def converse(tracker):
    for _ in range(10):
        with noted():
            session = await tracker.start_conversation("async")
        async with tracker.turn(session):
            await asyncio.sleep(0.005)
        with noted():
            await tracker.end_conversation(session, 5)

async def main():
    async with AsyncAgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2]) as tracker:
        await tracker.start_conversation("warm")  # the first reads the resource, and loads the worker
        say(await tracker.flush(20))
        await asyncio.gather(*(converse(tracker) for _ in range(100)))
        say(await tracker.flush(30))
    say(len(waits), sorted(work)[-3], sorted(waits)[1800])

asyncio.run(main())
"""


def test_fault_32_no_call_blocks_an_event_loop(
    tracker_server: Server, make_tracker: MakeTracker, start_host: StartHost
) -> None:
    """In an asyncio application our calls compute for less than 5 ms each, and wait for neither network nor disk,
    while a thousand conversations of a hundred tasks go on.

    Measured inside. What one call in ten waits for on a machine that is busy elsewhere is the interpreter's lock.
    """
    before, after, told = start_host(tracker_server.url, LOOP).end_well()
    number, *longest = told.split()
    assert (before, after, number) == ("True", "True", "2000")
    assert max(map(float, longest)) < 0.005
    assert counted(make_tracker(tracker_server.url), "async") == (1000, 1000, 1000)


def test_fault_32_two_hundred_threads(tracker_server: Server, make_tracker: MakeTracker) -> None:
    """Conversations of two hundred threads that begin at once all arrive, once."""
    tracker, ready = make_tracker(tracker_server.url), threading.Barrier(200)

    def converse() -> None:
        ready.wait()
        for _ in range(5):
            session = tracker.start_conversation("thread")
            with tracker.turn(session):
                pass
            tracker.end_conversation(session, 5)

    threads = [threading.Thread(target=converse) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tracker.flush(30)
    assert counted(tracker, "thread") == (1000, 1000, 1000)


def test_calls_beside_a_busy_thread_do_not_wait_for_ours(
    tracker_server: Server, make_tracker: MakeTracker
) -> None:
    """A host whose threads compute all the time waits for our calls as long as for its own: 50 ms at most are ours,
    while our worker stores and sends.
    """
    tracker, stop = make_tracker(tracker_server.url), threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    def longest(call: Callable[[], object], times: int) -> float:
        found = 0.0
        for _ in range(times):
            began = time.perf_counter()
            call()
            found = max(found, time.perf_counter() - began)
            time.sleep(0.001)
        return found

    busy = threading.Thread(target=compute)
    busy.start()
    try:
        tracker.start_conversation("warm")
        alone = longest(lambda: sum(range(300)), 500)
        ours = longest(lambda: tracker.end_conversation(tracker.start_conversation("bot")), 500)
    finally:
        stop.set()
        busy.join()
    assert ours <= alone + WAIT


@pytest.mark.parametrize("patched", ["before", "after"])
def test_fault_32_gevent(
    tracker_server: Server, make_tracker: MakeTracker, start_host: StartHost, patched: str
) -> None:
    """In a process that gevent has patched, conversations of a hundred greenlets arrive, nothing of ours stops its
    loop, and the process ends in three seconds. Servers often patch when we are imported already.
    """
    patch = "from gevent import monkey\nmonkey.patch_all()\n"
    script = """
    import gevent
    stalls = [0.0]
    def watch():
        while True:
            began = time.monotonic()
            gevent.sleep(0.01)
            stalls.append(time.monotonic() - began)
    before = tracker._pipeline._journal.counters
    gevent.joinall([gevent.spawn(tracker.start_conversation, "warm") for _ in range(20)])
    say(before.not_durable, before.made_by_callers)
    tracker.flush(20)  # what the worker needs is loaded by now
    watching = gevent.spawn(watch)
    def converse(number):
        session = tracker.start_conversation("gevent")
        with tracker.turn(session):
            gevent.sleep(0.001)
        tracker.end_conversation(session, 5)
    began = time.monotonic()
    gevent.joinall([gevent.spawn(converse, number) for number in range(100)], raise_error=True)
    say(tracker._pipeline._journal.counters.not_durable, time.monotonic() - began < 2.0)
    say(tracker.flush(20))
    gevent.sleep(1.5)  # the worker has nothing to do, and waits
    watching.kill()
    say(max(stalls))
    say(time.time())
    """
    head = patch + HEAD if patched == "before" else HEAD + patch
    host = start_host(tracker_server.url, script, head=head, PYTHONWARNINGS="ignore")
    ended = host.end()
    assert (ended.code, ended.stderr) == (0, "")
    *kept, flushed, stalled, last = ended.lines
    assert kept == ["0 1", "0 True"]  # all on disk, the first by a segment that callers had made
    assert flushed == "True"
    assert float(stalled) < 0.5
    assert ended.at - float(last) < 3.0
    tracker = make_tracker(tracker_server.url)
    assert tracker.flush(20)
    assert counted(tracker, "gevent") == (100, 100, 100)


def test_fault_32_our_own_requests_are_not_instrumented(
    tracker_server: Server, start_host: StartHost
) -> None:
    """With instrumentations for HTTP clients and threads at work, one for the transport that we use among them, no
    span of the host shows our traffic: it would be told to a tracker again, and so on for ever.
    """
    script = """
    import httpcore, httpx
    from opentelemetry import trace
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
    from opentelemetry.instrumentation.threading import ThreadingInstrumentor
    from opentelemetry.instrumentation.utils import is_instrumentation_enabled
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    HTTPXClientInstrumentor().instrument()
    ThreadingInstrumentor().instrument()
    handle = httpcore.ConnectionPool.handle_request
    def instrumented(pool, request):
        if not is_instrumentation_enabled():
            return handle(pool, request)
        with trace.get_tracer("httpcore").start_as_current_span("httpcore " + request.method.decode()):
            return handle(pool, request)
    httpcore.ConnectionPool.handle_request = instrumented
    session = tracker.start_conversation("bot")
    with tracker.turn(session):
        httpx.get(sys.argv[1] + "/capabilities")
    tracker.end_conversation(session, 5)
    say(tracker.flush(20))
    tracker.get_success_rates()
    say(sorted(span.name for span in exporter.get_finished_spans()))
    """
    lines = start_host(tracker_server.url, script).end_well()
    assert lines == ["True", "['GET', 'httpcore GET', 'invoke_agent bot']"]


# --- parts of ours that fail --------------------------------------------------------------------------------


def fails(error: type[Exception]) -> Callable[..., Any]:
    def fail(*args: object, **kwargs: object) -> Any:
        raise error("a part of ours failed")

    return fail


PARTS: dict[str, Callable[[Pipeline], list[tuple[Any, str]]]] = {
    "journal": lambda pipeline: [(pipeline._journal, "append")],
    "session map": lambda pipeline: [(pipeline.sessions, name) for name in ("open", "turn", "take", "touch")],
    "mapping": lambda pipeline: [(mapping, "to_request")],
    "redactor": lambda pipeline: [(Redactor, name) for name in ("text", "json_text")],
    "id generator": lambda pipeline: [(session_id._random, "getrandbits")],
    "clock": lambda pipeline: [(pipeline.events, "_now_us")],
}


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
@pytest.mark.parametrize("part", PARTS)
def test_fault_33_a_part_that_fails_costs_its_event_and_nothing_else(
    tracker_server: Server,
    make_tracker: MakeTracker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    part: str,
    error: type[Exception],
) -> None:
    """Whatever of ours fails, out of memory included, calls of the host return as ever; events that are lost by it
    are counted, the log has a line of it and not one for each, and later ones arrive.
    """
    tracker = make_tracker(tracker_server.url)
    operations = AgentOperationsTracker(
        tracker_server.url, state_dir=tracker._config.state_dir, flush_timeout_seconds=0.1
    )
    open_session = tracker.start_conversation("before")
    assert tracker.flush(20)
    accepted = tracker.delivery_stats()["accepted"]
    with monkeypatch.context() as patch:
        for place, name in PARTS[part](tracker._pipeline):
            patch.setattr(place, name, fails(error))
        for _ in range(3):
            session = tracker.start_conversation("bot", "u1", {"note": "text"})
            assert session.startswith("bot_")
            with tracker.turn(session) as turn:
                turn.fail("a text")
            tracker.record_feedback(session, 4, "a text")
            tracker.end_conversation(session, 5, "a text", metadata={"note": "text"})
        tracker.record_failed_session(open_session, "a text")
        operations.register_agent("bot", metadata={"note": "text"})
        operations.update_agent_status("bot", AgentStatus.BUSY)
        operations.log_activity("bot", "purr", {"note": "text"})
    ours = [record for record in caplog.records if record.name.startswith("otel_agent_tracker")]
    assert len(ours) <= 3
    assert bool(ours) == (part != "id generator")  # the system's takes its place
    session = tracker.start_conversation("after")
    assert tracker.end_conversation(session, 5)
    assert tracker.flush(20)
    operations.close()
    assert counted(tracker, "after") == (1, 1, 0)
    stats = tracker.delivery_stats()
    assert stats["accepted"] - accepted == 2 + 16
    assert (
        stats["accepted"] == stats["delivered"] + stats["pending"] + stats["dead_lettered"] + stats["dropped"]
    )
    assert (stats["dropped"] == 0) == (part in ("redactor", "id generator"))  # these cost a text, or nothing
    assert all(record.levelno >= logging.WARNING for record in ours)
