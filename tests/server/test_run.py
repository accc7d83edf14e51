"""The tracker on a real socket, under uvicorn."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from otel_agent_tracker import wire
from otel_agent_tracker.server import run as server_run
from otel_agent_tracker.server.run import Server
from tests.server.world import Json, batch_event, end, start, turn


def test_it_serves_on_a_free_port(database_path: Path) -> None:
    """Port 0 takes one; it answers as soon as `start` returns, and no more once it is stopped."""
    with Server(port=0, database=str(database_path)) as server:
        assert server.page_url() == server.url == f"http://127.0.0.1:{server.port}"
        body = {"events": [batch_event(start("s1"), "e1"), batch_event(end("s1", 5), "e2")]}
        assert httpx.post(f"{server.url}/batch", json=body).status_code == 200
        assert httpx.get(f"{server.url}/conversations/s1").json()["status"] == "completed"
        assert "<table>" in httpx.get(server.url).text
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def test_figures_are_counted_again_where_asked(database_path: Path) -> None:
    """What went astray in the counts is put right from the conversations and turns."""
    database = str(database_path)
    with Server(port=0, database=database) as server:
        body = {"events": [batch_event(start("s1"), "e1"), batch_event(turn("s1", 1), "e2")]}
        assert httpx.post(f"{server.url}/batch", json=body).status_code == 200
        right = httpx.get(f"{server.url}/metrics/overview").json()
    with closing(sqlite3.connect(database_path)) as connection, connection:
        connection.execute("UPDATE conversation_counts SET total = 7")
        connection.execute("DELETE FROM turn_counts")
    for rebuild in (False, True):
        with Server(port=0, database=database, rebuild=rebuild) as server:
            assert (httpx.get(f"{server.url}/metrics/overview").json() == right) is rebuild


def test_answers_do_not_wait_for_acknowledgements(database_path: Path) -> None:
    """Connections send at once; held back, the second packet of an answer would come 40 ms later."""
    server = Server(port=0, database=str(database_path))
    assert server._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    server.stop()


def test_odd_ids_pass_a_real_server(database_path: Path) -> None:
    """In paths as far as a path can carry them."""
    with Server(port=0, database=str(database_path)) as server:
        for odd, path in (("a/b", "a%2Fb"), ("é🤖", "%C3%A9%F0%9F%A4%96"), ("%2e", "%252e")):
            assert httpx.post(
                server.url + wire.ConversationStart.PATH, json=wire.to_json(start(odd))
            ).is_success
            answer: Json = httpx.get(f"{server.url}/conversations/{path}").json()
            assert answer["session_id"] == odd


def test_a_taken_port_is_an_error(database_path: Path) -> None:
    """Before anything is served."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        Server(port=taken.getsockname()[1], database=str(database_path))


def test_a_bad_database_leaves_no_open_port() -> None:
    """The socket is closed again."""
    with pytest.raises(ValueError, match="must be a file"):
        Server(port=0, database="sqlite://")


def test_it_stops_although_a_body_is_half_sent(database_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that hangs cannot hold it for longer than its grace."""
    monkeypatch.setattr(server_run, "GRACE_SECONDS", 0.2)
    with Server(port=0, database=str(database_path)) as server:
        half = socket.create_connection(("127.0.0.1", server.port))
        half.sendall(b"POST /batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert half.recv(1) in (b"", b"H")
    half.close()


def test_a_body_that_is_too_large_is_refused_while_it_comes(database_path: Path) -> None:
    """The answer does not wait for the rest."""
    with Server(port=0, database=str(database_path)) as server:
        sender = socket.create_connection(("127.0.0.1", server.port))
        sender.sendall(b"POST /batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n")
        assert sender.recv(100).startswith(b"HTTP/1.1 413 ")
        sender.close()


def test_elsewhere_it_makes_a_key(database_path: Path) -> None:
    """Kept beside the database for its owner alone; without it nobody gets in, and the link works once."""
    with Server(host="0.0.0.0", port=0, database=str(database_path)) as server:
        assert server.key_file == database_path.with_suffix(".key")
        assert stat.S_IMODE(server.key_file.stat().st_mode) == 0o600
        headers = {"Authorization": f"Bearer {server.key_file.read_text().strip()}"}
        assert httpx.get(f"{server.url}/conversations").status_code == 401
        assert httpx.get(f"{server.url}/conversations", headers=headers).status_code == 200
        link = server.page_url()
        with httpx.Client(follow_redirects=True) as browser:
            assert browser.get(link).status_code == 200
            assert browser.get(server.url).status_code == 200
        assert httpx.get(link).status_code == 401
    with Server(host="0.0.0.0", port=0, database=str(database_path)) as again:
        assert again.key_file is None
        assert httpx.get(f"{again.url}/conversations", headers=headers).status_code == 200


def serve(*arguments: str) -> subprocess.Popen[str]:
    run = "from otel_agent_tracker.cli.serve import command; command()"
    environment = os.environ | {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", run, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_the_command_serves_until_it_is_stopped(database_path: Path, sent: signal.Signals, code: int) -> None:
    """It says where page and data are and how to send; Ctrl-C and SIGTERM end it without a traceback."""
    process = serve("--port", "0", "--database", str(database_path))
    assert process.stdout is not None
    told = "".join(process.stdout.readline() for _ in range(4))
    url = re.search(r"AGENT_TRACKER_URL=(\S+)", told)
    assert url is not None
    assert str(database_path) in told
    assert httpx.get(f"{url[1]}/readyz", timeout=30).status_code == 200
    process.send_signal(sent)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (code, "")
    assert "Traceback" not in output


def test_the_command_names_the_option_for_a_taken_port(database_path: Path) -> None:
    """Instead of a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = serve("--port", str(taken.getsockname()[1]), "--database", str(database_path))
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "is taken" in errors
    assert "--port" in errors


def test_the_command_never_shows_the_key(database_path: Path) -> None:
    """It names the file that holds it, and a link that works once."""
    process = serve("--host", "0.0.0.0", "--port", "0", "--database", str(database_path))
    assert process.stdout is not None
    told = "".join(process.stdout.readline() for _ in range(6))
    process.terminate()
    output, errors = process.communicate(timeout=30)
    key_file = database_path.with_suffix(".key")
    assert str(key_file) in told
    assert "/login?token=" in told
    assert key_file.read_text().strip() not in told + output + errors
