"""Servers that fork their workers, as processes of their own: how each is started, and seen to its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from otel_agent_tracker.server.run import Server

__all__ = ["BROKER", "COMMANDS", "RunServer", "is_alive", "run_server"]

COMMANDS = {
    "gunicorn": ("gunicorn", "--workers", "2", "--threads", "2", "--bind", "fd://{fd}", "application:wsgi"),
    "gunicorn preloaded": (
        *("gunicorn", "--preload", "--workers", "2", "--threads", "2", "--bind", "fd://{fd}"),
        "application:wsgi",
    ),
    "gunicorn on gevent": (
        *("gunicorn", "--worker-class", "gevent", "--workers", "2", "--bind", "fd://{fd}"),
        "application:wsgi",
    ),
    "uvicorn": ("uvicorn", "--workers", "2", "--fd", "{fd}", "application:asgi"),
}
"""What serves the module ``application`` on the socket that is handed to `RunServer`."""

BROKER = """
from celery import Celery
folder = os.environ["BROKER_FOLDER"]
app = Celery("tasks", broker="filesystem://")
app.conf.broker_transport_options = dict(
    data_folder_in=folder, data_folder_out=folder, control_folder=folder + "-control"
)
app.conf.worker_hijack_root_logger = False
"""
"""Celery without a server; it needs ``os``."""

RunServer = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def run_server(tracker_server: Server, tmp_path: Path) -> Iterator[RunServer]:
    """Runs a command, in the folder and with the state folder of the test, and ends it with the test.

    A socket that is given with it is inherited, and its number takes the place of ``{fd}``; environment variables are
    given by name.
    """
    with ExitStack() as stack:

        def run(
            command: Sequence[str], listening: socket.socket | None = None, **environ: str
        ) -> subprocess.Popen[str]:
            inherited = () if listening is None else (listening.fileno(),)
            for fd in inherited:
                os.set_inheritable(fd, True)
            process = subprocess.Popen(
                [each.format(fd=inherited[0]) if inherited else each for each in command],
                env={
                    **os.environ,
                    "AGENT_TRACKER_URL": tracker_server.url,
                    "AGENT_TRACKER_STATE_DIR": str(tmp_path / "state"),
                    "BROKER_FOLDER": str(tmp_path / "broker"),
                    "PYTHONPATH": str(tmp_path),
                    **environ,
                },
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                pass_fds=inherited,
            )
            stack.enter_context(process)
            stack.callback(_kill_group, process.pid)
            return process

        yield run


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _kill_group(pid: int) -> None:
    """The server, and workers that it did not take with it."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
