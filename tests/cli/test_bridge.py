"""`otel-agent-tracker bridge`, as it is typed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.cli.terminal import run

ANYWHERE = ("--http-port", "0", "--grpc-port", "0", "--admin-port", "0", "--url", "http://127.0.0.1:9")


def test_it_needs_a_tracker() -> None:
    """Exit code 2, and how to name one."""
    result = run("bridge")
    assert result.exit_code == 2
    assert "give --url, or set AGENT_TRACKER_URL" in result.stderr


def test_it_does_not_run_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bridge that is switched off would answer success and keep nothing."""
    monkeypatch.setenv("AGENT_TRACKER_ENABLED", "false")
    result = run("bridge", *ANYWHERE)
    assert (result.exit_code, "AGENT_TRACKER_ENABLED is false" in result.stderr) == (2, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_others_need_a_token(host: str, tmp_path: Path) -> None:
    """Any address but this machine's is refused without one, and with an empty file too."""
    result = run("bridge", *ANYWHERE, "--host", host, "--state-dir", tmp_path)
    assert (result.exit_code, "--ingest-token-file is needed" in result.stderr) == (2, True)
    (tmp_path / "empty").write_text("\n")
    result = run("bridge", *ANYWHERE, "--host", host, "--ingest-token-file", tmp_path / "empty")
    assert (result.exit_code, "holds no token" in result.stderr) == (2, True)


@pytest.mark.parametrize("option", ["--http-port", "--grpc-port", "--admin-port"])
def test_a_port_that_is_taken_is_named(option: str, tmp_path: Path) -> None:
    """With the options that choose another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("bridge", *ANYWHERE, option, port, "--state-dir", tmp_path)
    assert result.exit_code == 1
    assert str(port) in result.stderr
    assert option in result.stderr


def test_an_address_that_is_not_ours_is_told(tmp_path: Path) -> None:
    """With the option that names it."""
    result = run("bridge", *ANYWHERE, "--host", "192.0.2.1", "--state-dir", tmp_path)
    assert (result.exit_code, "--host" in result.stderr) == (1, True)


def test_certificate_and_key_go_together(tmp_path: Path) -> None:
    """Either alone is refused, and so is what is none."""
    (tmp_path / "pem").write_text("no certificate")
    alone = run("bridge", *ANYWHERE, "--tls-cert", tmp_path / "pem")
    assert (alone.exit_code, "go together" in alone.stderr) == (2, True)
    both = run("bridge", *ANYWHERE, "--tls-cert", tmp_path / "pem", "--tls-key", tmp_path / "pem")
    assert (both.exit_code, "--tls-cert and --tls-key cannot be used" in both.stderr) == (1, True)
