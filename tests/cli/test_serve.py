"""`otel-agent-tracker serve`, `keys` and `demo`, as they are typed."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.terminal import run, run_json, run_process
from tests.leash import leashed


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A tracker in a process of its own, and its address; ended when the block is left."""
    with leashed("serve", *arguments) as process:
        assert process.stdout is not None
        address = ""
        while not address and (line := process.stdout.readline()):
            found = re.search(r"AGENT_TRACKER_URL=(\S+)", line)
            address = found[1] if found else ""
        assert address
        yield process, address


def test_a_served_tracker_passes_the_doctor(tmp_path: Path) -> None:
    """Two commands, and all is proven; Ctrl-C ends it without a word of trouble."""
    with serving("--port", "0", "--database", str(tmp_path / "tracker.sqlite3")) as (process, address):
        result = run_process("doctor", "--send", "--url", address, "--state-dir", tmp_path / "state")
        assert result.returncode == 0, result.stdout
        assert "the probe is removed" in result.stdout
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=30)
        assert process.returncode == 0
    assert told.splitlines()[-1] == "Stopped."
    assert "Traceback" not in told


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    """With the option that chooses another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--port", port, "--database", tmp_path / "tracker.sqlite3")
    assert result.exit_code == 1
    assert f"port {port}" in result.stderr
    assert "--port" in result.stderr


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_port_must_be_one(command: str, port: str) -> None:
    """Exit code 2, and what is accepted."""
    result = run(command, "--port", port)
    assert result.exit_code == 2
    assert "a whole number from 0 to 65535" in result.stderr


@pytest.mark.parametrize(
    "command", [["serve", "--port", "0"], ["keys", "create"], ["keys", "list"]], ids=" ".join
)
def test_an_unusable_database_is_one_line(command: list[str], tmp_path: Path) -> None:
    """Exit code 1 for one that cannot be used, 2 for one of another kind."""
    (tmp_path / "text").write_text("no database" * 1000)
    for path in (tmp_path, tmp_path / "text", "/dev/null/x.db"):
        result = run(*command, "--database", path)
        assert (result.exit_code, "cannot be used: " in result.stderr) == (1, True), result.stderr
    result = run(*command, "--database", "mysql://u@h/x")
    assert (result.exit_code, "postgresql://" in result.stderr) == (2, True)


@pytest.mark.parametrize("command", [["list"], ["revoke", "oat_abcdef"]], ids=" ".join)
def test_looking_at_keys_makes_no_database(command: list[str], tmp_path: Path) -> None:
    """A misspelt path is said to be one."""
    missing = tmp_path / "missing.db"
    assert run("keys", *command, "--database", missing).exit_code == 1
    assert not missing.exists()
    assert str(missing) in run("keys", "create", "--database", missing).stderr


def test_the_demo_needs_a_port_that_is_free() -> None:
    """One line, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("demo", "--exit", "--port", taken.getsockname()[1])
    assert result.exit_code == 1
    assert "--port" in result.stderr


def test_keys_are_listed_for_machines(tmp_path: Path) -> None:
    """By their first characters, never whole; times are UTC."""
    database = tmp_path / "tracker.sqlite3"
    key = run("keys", "create", "--name", "ci", "--database", database).stdout.strip()
    [listed] = run_json("keys", "list", "--database", database)["keys"]
    assert key.startswith(listed["prefix"])
    assert key != listed["prefix"]
    assert (listed["project"], listed["name"], listed["revoked_time"]) == ("default", "ci", None)
    assert listed["created_time"].endswith("Z")
