"""Hosts as processes of their own: a script that has a `tracker`, started, told to go on, and seen to its end.

`HOST_PYTHON` names the Python that runs them; without it, it is that of the tests.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from textwrap import dedent

import pytest

__all__ = ["HEAD", "PYTHON", "Ended", "Host", "StartHost", "start_host"]

PYTHON = os.environ.get("HOST_PYTHON", sys.executable)
QUIET = (
    "-W",
    "ignore:This process:DeprecationWarning",
)  # since 3.12 Python warns of every fork beside threads
LONGEST = 60.0  # seconds; a host that hangs is a failure, not a test that never ends

HEAD = """
import os, signal, sys, threading, time
from otel_agent_tracker import AgentPerformanceTracker
tracker = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2])
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # whole lines, from whatever thread or child
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a host ended: its exit code, negative for a signal, what it wrote, and when that was seen."""

    code: int
    lines: list[str]
    stderr: str
    at: float


class Host:
    """A running host."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def line(self) -> str:
        """The next line that it writes; nothing beyond it is taken, which `end` would miss."""
        assert self._process.stdout is not None
        line = b""
        while not line.endswith(b"\n") and (byte := os.read(self._process.stdout.fileno(), 1)):
            line += byte
        return line.decode().rstrip("\n")

    def go_on(self, line: str = "") -> None:
        """Let it read a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still lives."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it, and wait until it is dead; its children may live."""
        self._process.kill()
        self._process.wait(LONGEST)

    def end(self) -> Ended:
        """Wait for its end, and for that of all who hold its streams."""
        out, err = self._process.communicate(timeout=LONGEST)
        return Ended(self._process.returncode, out.splitlines(), err, time.time())

    def end_well(self) -> list[str]:
        """The lines of a host that ends with code 0 and nothing on its stderr."""
        ended = self.end()
        assert (ended.code, ended.stderr) == (0, "")
        return ended.lines


StartHost = Callable[..., Host]


@pytest.fixture
def start_host(tmp_path: Path) -> Iterator[StartHost]:
    """Starts hosts: `HEAD`, then the script, on a URL and the state folder of the test; all end with it."""
    numbers = count()
    with ExitStack() as stack:

        def start(url: str, script: str, *arguments: str, head: str = HEAD, **environ: str) -> Host:
            path = tmp_path / f"host_{next(numbers)}.py"
            path.write_text(head + dedent(script), encoding="utf-8")
            process = subprocess.Popen(
                [PYTHON, *QUIET, str(path), url, str(tmp_path / "state"), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **environ},
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return Host(process)

        yield start
