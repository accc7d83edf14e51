"""Servers that fork their workers: gunicorn, uvicorn and celery, with an application of ours, really run."""

from __future__ import annotations

import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from otel_agent_tracker.server.run import Server
from tests.conftest import MakeTracker
from tests.serving import BROKER, COMMANDS, RunServer, is_alive
from tests.waiting import wait_until

APPLICATION = """
import os
from otel_agent_tracker import AgentPerformanceTracker

tracker = AgentPerformanceTracker()

def answer(path):
    step, _, session = path.strip("/").partition("/")
    match step:
        case "start":
            session = tracker.start_conversation("web")
        case "turn":
            with tracker.turn(session):
                pass
        case "end":
            tracker.end_conversation(session, 5)
    return f"{os.getpid()} {session}".encode()

def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer(environ["PATH_INFO"])]

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer(scope["path"])})
"""

TASKS = f"""
import os
from celery.signals import worker_ready
from otel_agent_tracker import AgentPerformanceTracker

tracker = AgentPerformanceTracker()
{BROKER}seed = tracker.start_conversation("parent")

@app.task
def work(number):
    session = tracker.start_conversation("task")
    with tracker.turn(session):
        pass
    tracker.end_conversation(session, 5)
    os.write(1, f"{{os.getpid()}} {{session}}\\n".encode())

@worker_ready.connect
def ask(**_):
    for number in range(12):
        work.delay(number)
"""


@pytest.mark.parametrize("kind", COMMANDS)
def test_fault_29_a_web_server_with_forked_workers_tells_each_conversation_once(
    tracker_server: Server, make_tracker: MakeTracker, run_server: RunServer, tmp_path: Path, kind: str
) -> None:
    """Under gunicorn, preloaded, on gevent or neither, and uvicorn, requests of one conversation may come to any
    worker; a worker that is killed is replaced, and the server is stopped: every conversation arrives, whole and
    once.
    """
    (tmp_path / "application.py").write_text(APPLICATION)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = COMMANDS[kind]
        server = run_server([sys.executable, "-m", *command], listening)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"

        def ask(path: str) -> tuple[int, str]:
            pid, _, session = client.get(path).text.partition(" ")
            return int(pid), session

        def converse(_: int) -> tuple[set[int], str]:
            first, session = ask("/start")
            return {
                first,
                ask(f"/turn/{session}")[0],
                ask(f"/turn/{session}")[0],
                ask(f"/end/{session}")[0],
            }, session

        with (
            httpx.Client(base_url=url, headers={"Connection": "close"}, verify=False, timeout=30) as client,
            ThreadPoolExecutor(8) as pool,
        ):
            early = list(pool.map(converse, range(12)))
            victim = next(iter(early[0][0]))
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: not is_alive(victim), 30)
            late = list(pool.map(converse, range(12)))
            first = set().union(*(pids for pids, _ in early))
            # a worker of gunicorn that is still starting misses SIGTERM, and is waited for, for half a minute
            wait_until(lambda: ask("/nothing")[0] not in first, 30)
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=60)
    workers = set().union(*(pids for pids, _ in early + late))
    assert len(workers) > 1
    assert server.pid not in workers
    assert "Traceback" not in errors
    tracker = make_tracker(tracker_server.url)
    assert tracker.flush(20)
    rates = tracker.get_success_rates("web")
    assert (rates["total"], rates["completed"]) == (24, 24)
    assert tracker.get_response_times("web")["count"] == 48


def test_fault_29_celery_workers_that_are_replaced_lose_nothing(
    tracker_server: Server, make_tracker: MakeTracker, run_server: RunServer, tmp_path: Path
) -> None:
    """Celery's pool forks its workers and replaces each after a few tasks: what a task told arrives, once, and so
    does what was told before the first fork.
    """
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "broker").mkdir()
    command = "-A tasks worker --pool prefork --concurrency 2 --max-tasks-per-child 3 --loglevel CRITICAL"
    celery = [sys.executable, "-m", "celery", *command.split(), "--without-gossip", "--without-mingle"]
    worker = run_server(celery)
    assert worker.stdout is not None
    lines: list[str] = []
    while len(lines) < 12:
        line = worker.stdout.readline()
        assert line, "the worker has ended"
        lines += [line] if "task_" in line else []
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=60)
    assert len({line.split()[0] for line in lines}) >= 4
    tracker = make_tracker(tracker_server.url)
    assert tracker.flush(20)
    rates = tracker.get_success_rates("task")
    assert (rates["total"], rates["completed"]) == (12, 12)
    assert tracker.get_response_times("task")["count"] == 12
    assert tracker.get_success_rates("parent")["total"] == 1
