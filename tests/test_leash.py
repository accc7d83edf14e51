"""Processes of the command line that tests start."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from socket import create_connection
from urllib.parse import urlsplit

from tests.waiting import wait_until

KILLED = """
import os, signal, sys
from tests.bridge.world import bridging
with bridging("--url", "http://127.0.0.1:9", "--state-dir", sys.argv[1]) as bridge:
    print(bridge.url, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_bridge_does_not_outlive_the_tests(tmp_path: Path) -> None:
    """It goes with the process that started it, though that was killed and could end nothing."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=False
    )
    parts = urlsplit(killed.stdout.strip())
    wait_until(lambda: not listens(parts.hostname, parts.port))


def listens(host: str | None, port: int | None) -> bool:
    """Whether somebody takes connections there."""
    assert host is not None
    assert port is not None
    try:
        with closing(create_connection((host, port))):
            return True
    except ConnectionRefusedError:
        return False
