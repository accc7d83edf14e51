"""`otel-agent-tracker demo` as it is typed: it serves its page until Ctrl-C, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.cli.terminal import Json
from tests.waiting import wait_until

PATIENCE = 60.0  # seconds, on a machine that has other things to do


class Playing:
    """`otel-agent-tracker demo` in a process of its own, whose temporary files lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error::ResourceWarning", "-m", "otel_agent_tracker", "demo"],
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a terminal's Ctrl-C goes to all of a group
        )

    def read_to(self, heading: str) -> str:
        """What is said under `heading`, once it is; what was said before is read."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(heading):
                return line.removeprefix(heading).strip()
        raise EOFError(f"nothing is said under {heading}")

    def interrupt(self) -> tuple[int, str]:
        """Press Ctrl-C; exit code and errors."""
        os.killpg(self.process.pid, signal.SIGINT)
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors

    def others(self) -> list[int]:
        """The processes that it has started and that still run."""
        return [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if int(path.parent.name) != self.process.pid and str(self._folder) in _read(path)
        ]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended meanwhile
        return ""


@pytest.fixture
def playing(tmp_path: Path) -> Iterator[Playing]:
    playing = Playing(tmp_path)
    yield playing
    playing.process.kill()
    playing.process.communicate()


def figures(address: str) -> Json:
    """What the tracker there says of all conversations."""
    found: Json = httpx.get(f"{address}/metrics/success-rates", timeout=PATIENCE).json()
    return found


def assert_nothing_is_left(playing: Playing, folder: Path, address: str) -> None:
    """No file, no process, nobody at the address."""
    assert list(folder.iterdir()) == []
    assert playing.others() == []
    url = urlsplit(address)
    with pytest.raises(ConnectionRefusedError), socket.create_connection((url.hostname, url.port)):
        pass


def test_the_page_is_served_until_ctrl_c(playing: Playing, tmp_path: Path) -> None:
    """At the address that is printed; it shows the agents and what became of their conversations."""
    address = re.sub(r" .*", "", playing.read_to("Page"))
    page = httpx.get(address, timeout=PATIENCE)
    assert page.status_code == 200
    assert [name in page.text for name in ("support-bot", "travel-desk", "museum-guide")] == [True] * 3
    assert figures(address)["total"] >= 12

    assert playing.interrupt() == (0, "")
    assert_nothing_is_left(playing, tmp_path, address)


@pytest.mark.parametrize("while_second_process_runs", [False, True])
def test_ctrl_c_ends_the_demo_at_any_time(
    playing: Playing, tmp_path: Path, while_second_process_runs: bool
) -> None:
    """With one word in place of a traceback; the second process ends with it."""
    address = playing.read_to("Tracker")
    has_begun = playing.others if while_second_process_runs else lambda: figures(address)["total"]
    wait_until(has_begun, PATIENCE)
    assert playing.interrupt() == (130, "Interrupted.\n")
    assert_nothing_is_left(playing, tmp_path, address)
