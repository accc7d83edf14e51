"""Servers that fork or spawn their workers, under `opentelemetry-instrument` and `run`, unchanged."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest

from otel_agent_tracker import AgentPerformanceTracker
from otel_agent_tracker.server.run import Server
from tests.conftest import MakeTracker
from tests.serving import BROKER, COMMANDS, RunServer
from tests.waiting import wait_until

BIN = Path(sys.executable).parent
RUNNERS = {
    "opentelemetry-instrument": [str(BIN / "opentelemetry-instrument")],
    "run": [str(BIN / "otel-agent-tracker"), "run", "--quiet", "--"],
}
QUIET = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}

AGENT = """
import os
from opentelemetry import trace

def answer(session):
    tracer = trace.get_tracer("some-agents")
    with tracer.start_as_current_span("invoke_agent bot") as span:
        span.set_attribute("gen_ai.operation.name", "invoke_agent")
        span.set_attribute("gen_ai.agent.name", "bot")
        span.set_attribute("gen_ai.conversation.id", session)
    return str(os.getpid())
"""
APPLICATION = """
from agent import answer

def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer(environ["PATH_INFO"].strip("/")).encode()]

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer(scope["path"].strip("/")).encode()})
"""
TASKS = f"""
import os
from celery.signals import worker_ready
from agent import answer
{BROKER}
@app.task
def work(session):
    os.write(1, f"done by {{answer(session)}}\\n".encode())

@worker_ready.connect
def ask(**_):
    for number in range(12):
        work.delay(f"task-{{number}}")
"""
CONVERSATIONS = [f"chat-{number}" for number in range(8)]
TURNS = 3
SPAWNED = pytest.mark.skipif(
    int(version("opentelemetry-instrumentation").partition("b")[0].split(".")[1]) < 63,
    reason="before 0.63b0 opentelemetry-instrumentation does not reach processes that a process spawns",
)


@pytest.fixture(autouse=True)
def application(tmp_path: Path) -> None:
    """The application, in the folder of the test."""
    for name, text in (("agent", AGENT), ("application", APPLICATION), ("tasks", TASKS)):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")


def started_by(runner: str, command: Sequence[str]) -> list[str]:
    """The command with what makes its agents seen before it; its program lies beside this Python."""
    return [*RUNNERS[runner], str(BIN / command[0]), *command[1:]]


@contextmanager
def client_of(listening: socket.socket) -> Iterator[httpx.Client]:
    """Asks the server that listens there, over a new connection each time: any worker may answer."""
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with httpx.Client(base_url=url, headers={"Connection": "close"}, verify=False, timeout=30) as client:
        yield client


def turns_of(tracker: AgentPerformanceTracker, sessions: list[str]) -> list[int]:
    """How many turns of each the tracker knows."""
    found = map(tracker.get_session_info, sessions)
    return [0 if info is None else int(info["turns"]) for info in found]


def stop(server: subprocess.Popen[str]) -> str:
    """Stop it as an operator does; what it wrote to stderr."""
    server.send_signal(signal.SIGTERM)
    return server.communicate(timeout=60)[1]


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=SPAWNED if kind == "uvicorn" else ()) for kind in COMMANDS]
)
def test_a_web_servers_agents_are_seen(
    tracker_server: Server, make_tracker: MakeTracker, run_server: RunServer, kind: str, runner: str
) -> None:
    """Whichever worker answers a turn, each conversation is one, and it is there while the server runs."""
    with socket.create_server(("127.0.0.1", 0)) as listening, client_of(listening) as client:
        server = run_server(started_by(runner, COMMANDS[kind]), listening, **QUIET)
        with ThreadPoolExecutor(8) as pool:
            pids = set(pool.map(lambda session: client.get(session).text, CONVERSATIONS * TURNS))
        tracker = make_tracker(tracker_server.url)
        wait_until(lambda: turns_of(tracker, CONVERSATIONS) == [TURNS] * len(CONVERSATIONS), 30)
        errors = stop(server)
    assert str(server.pid) not in pids
    assert "Traceback" not in errors
    assert "agents are not seen" not in errors
    assert tracker.flush(20)
    assert tracker.get_success_rates("bot")["total"] == len(CONVERSATIONS)
    assert tracker.get_response_times("bot")["count"] == TURNS * len(CONVERSATIONS)


@SPAWNED
@pytest.mark.parametrize("runner", RUNNERS)
def test_a_server_that_reloads_is_seen_before_and_after(
    tracker_server: Server, make_tracker: MakeTracker, run_server: RunServer, tmp_path: Path, runner: str
) -> None:
    """`uvicorn --reload` answers from a new process after each change of a file."""
    tracker = make_tracker(tracker_server.url)
    command = ["uvicorn", "--reload", "--fd", "{fd}", "application:asgi"]
    with socket.create_server(("127.0.0.1", 0)) as listening, client_of(listening) as client:
        server = run_server(started_by(runner, command), listening, **QUIET)
        first = client.get("chat-0").text
        wait_until(lambda: turns_of(tracker, ["chat-0"]) == [1], 30)
        (tmp_path / "application.py").write_text(APPLICATION + "\n# changed\n", encoding="utf-8")
        wait_until(lambda: client.get("chat-1").text != first, 30)
        wait_until(lambda: turns_of(tracker, ["chat-1"]) != [0], 30)
        errors = stop(server)
    assert "Traceback" not in errors


@pytest.mark.parametrize("runner", RUNNERS)
def test_celerys_workers_are_seen(
    tracker_server: Server, make_tracker: MakeTracker, run_server: RunServer, tmp_path: Path, runner: str
) -> None:
    """Its pool forks its workers and replaces each after a few tasks: each task's conversation arrives, once."""
    (tmp_path / "broker").mkdir()
    arguments = "-A tasks worker --pool prefork --concurrency 2 --max-tasks-per-child 3 --loglevel CRITICAL"
    celery = ["celery", *arguments.split(), "--without-gossip", "--without-mingle"]
    worker = run_server(started_by(runner, celery), **QUIET)
    assert worker.stdout is not None
    pids: list[str] = []
    while len(pids) < 12:
        line = worker.stdout.readline()
        assert line, "the worker has ended"
        pids += [line] if line.startswith("done by") else []
    assert len(set(pids)) >= 4
    errors = stop(worker)
    tracker = make_tracker(tracker_server.url)
    assert tracker.flush(20)
    assert turns_of(tracker, [f"task-{number}" for number in range(12)]) == [1] * 12
    assert tracker.get_success_rates("bot")["total"] == 12
    assert "Traceback" not in errors
