"""The processes of a run: the tracker, the workers, and who settles what they leave."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.chaos import worker
from tests.faults.chaos.worker import Duty

__all__ = ["IDLE_SECONDS", "TTL_SECONDS", "WORKERS", "Processes"]

WORKERS = 5  # the last one is on a host of its own
TTL_SECONDS = (6.0, 4.0)  # on either host
IDLE_SECONDS = 3.0
LIMIT_MB = 4  # the least there is
END_SECONDS = 30.0


class Processes:
    """Starts, stops and kills them; `url` is where workers find the tracker. `close` ends all there are."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self._tracker: subprocess.Popen[str] | None = None
        self._workers: dict[int, subprocess.Popen[str]] = {}
        self._started: list[subprocess.Popen[str]] = []
        self._reserved = socket.socket()  # bound, so that the port is ours also while no tracker listens
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.tracker_port: int = self._reserved.getsockname()[1]
        self.state_dirs = [folder / "state", folder / "state of the last"]

    def close(self) -> None:
        """Kill whatever still runs."""
        for process in self._started:
            _kill(process)
        self._reserved.close()

    # --- the tracker ----------------------------------------------------------------------------------------

    def start_tracker(self) -> None:
        """On the same port and database each time; nothing if it is there."""
        if self._tracker is None:
            command = ["-m", "otel_agent_tracker", "serve", "--port", str(self.tracker_port)]
            database = str(self._folder / "tracker.sqlite3")
            self._tracker = self._start([*command, "--database", database], "tracker")

    def tracker_listens(self) -> bool:
        """Whether it takes connections."""
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", self.tracker_port)) == 0

    def kill_tracker(self) -> None:
        """With SIGKILL."""
        if self._tracker is not None:
            _kill(self._tracker)
            self._tracker = None

    def stop_tracker(self) -> int:
        """As an operator does; its exit code."""
        if self._tracker is None:
            raise RuntimeError("the tracker is not there")
        self._tracker.send_signal(signal.SIGINT)
        return self._tracker.wait(END_SECONDS)

    # --- workers --------------------------------------------------------------------------------------------

    def start_worker(self, duty: Duty) -> None:
        """In place of the process before it, which must be gone."""
        command, name = worker.command(duty), f"worker-{duty.worker}"
        self._workers[duty.worker] = self._start(command, name, host=duty.host)

    def kill_worker(self, number: int) -> None:
        """With SIGKILL; nothing if it has ended."""
        if (process := self._workers.pop(number, None)) is not None:
            _kill(process)

    def signal_worker(self, number: int, what: signal.Signals) -> None:
        """Stop it, or let it go on."""
        if (process := self._workers.get(number)) is not None and process.poll() is None:
            process.send_signal(what)

    def ended_workers(self) -> dict[int, int]:
        """The exit codes of those that have ended by themselves since the last time."""
        ended = {
            number: code for number, process in self._workers.items() if (code := process.poll()) is not None
        }
        for number in ended:
            del self._workers[number]
        return ended

    @property
    def working(self) -> int:
        """How many workers there are."""
        return len(self._workers)

    # --- afterwards -----------------------------------------------------------------------------------------

    def settle(self, seconds: float) -> list[dict[str, Any]]:
        """What the last processes tell, one for each state folder, at the same time."""
        command = ["-m", "tests.faults.chaos.settle", str(seconds)]
        started = [self._start(command, "settle", host=host, stdout=subprocess.PIPE) for host in (0, 1)]
        return [json.loads(process.communicate(timeout=4 * seconds)[0] or "{}") for process in started]

    def books(self) -> list[dict[str, Any]]:
        """The books of the state folders, as `outbox status` tells them."""
        command = ["-m", "otel_agent_tracker", "outbox", "status", "--json"]
        found = []
        for host in (0, 1):
            process = self._start(command, "books", host=host, stdout=subprocess.PIPE)
            found += json.loads(process.communicate(timeout=END_SECONDS)[0])["folders"]
        return found

    def _start(
        self, arguments: list[str], name: str, *, host: int = 0, stdout: int | None = None
    ) -> subprocess.Popen[str]:
        """Out of reach of the terminal's Ctrl-C, which is the runner's to answer."""
        with (self._folder / f"{name}.err").open("a", encoding="utf-8") as errors, _undisturbed():
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=self._environment(host=host),
                stdout=stdout or errors,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
            self._started.append(process)
        return process

    def _environment(self, *, host: int) -> Mapping[str, str]:
        ours = ("AGENT_TRACKER_", "OTEL_")
        return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
            "AGENT_TRACKER_URL": self._url,
            "AGENT_TRACKER_STATE_DIR": str(self.state_dirs[host]),
            "AGENT_TRACKER_SESSION_TTL_HOURS": str(TTL_SECONDS[host] / 3600),
            "AGENT_TRACKER_IDLE_MINUTES": str(IDLE_SECONDS / 60),
            "AGENT_TRACKER_CLEANUP_INTERVAL_MINUTES": "0.01",
            "AGENT_TRACKER_OUTBOX_MAX_MB": str(LIMIT_MB),
            "AGENT_TRACKER_TIMEOUT_SECONDS": "1",
            "OTEL_SERVICE_NAME": "chaos",
        }


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits until a process that is being started is among those that will be ended."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
