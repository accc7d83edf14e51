"""Connections that uvicorn would keep: slow, half open, too many."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse

from otel_agent_tracker.bridge.serving import HttpServer
from otel_agent_tracker.listening import listen, url_of
from tests.waiting import wait_until

HEAD = b"GET / HTTP/1.1\r\nHost: bridge\r\n\r\n"
Address = tuple[str, int]


@contextmanager
def serving(**bounds: Any) -> Iterator[Address]:
    """A server that says hello, and its address."""
    with listen("127.0.0.1", 0) as listening:
        server = HttpServer(listening, PlainTextResponse("hello"), **bounds)
        server.start()
        try:
            yield listening.getsockname()
        finally:
            server.stop()


def connect(address: Address, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(address, timeout=10)
    connection.sendall(sent)
    return connection


def read_hello(connection: socket.socket) -> None:
    """One answer, whole."""
    answer = b""
    while not answer.endswith(b"hello"):
        part = connection.recv(65536)
        assert part
        answer += part


def read_to_end(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/traces HT", HEAD[:-2]])
def test_a_head_that_does_not_come_is_not_waited_for(sent: bytes) -> None:
    """Whether nothing came, or a part."""
    with serving(head_seconds=0.05) as address, connect(address, sent) as connection:
        assert read_to_end(connection) == b""


def test_a_second_head_is_not_waited_for_either() -> None:
    """A connection that is kept alive may rest, but not in the middle of a head."""
    with serving(head_seconds=0.3) as address, connect(address, HEAD) as connection:
        read_hello(connection)
        connection.sendall(HEAD)
        read_hello(connection)
        connection.sendall(HEAD[:-2])
        assert read_to_end(connection) == b""


def test_a_resting_connection_stays() -> None:
    """Senders keep theirs alive between two exports."""
    with serving(head_seconds=0.05) as address, connect(address, HEAD) as connection:
        read_hello(connection)
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_too_many_connections_are_told_so() -> None:
    """503 with a Retry-After, at once; the others go on, and when one closes there is room."""
    with serving(most_connections=2) as address, ExitStack() as stack:
        first, second = (stack.enter_context(connect(address, HEAD)) for _ in range(2))
        for connection in (first, second):
            read_hello(connection)
        with connect(address) as third:
            assert read_to_end(third).startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n")
        first.close()
        second.sendall(HEAD)
        read_hello(second)
        wait_until(lambda: httpx.get(url_of(address)).status_code == 200)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: b\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: b\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: b\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01 TLS to a plain port\r\n\r\n",
    ],
    ids=["long header", "many headers", "two lengths", "no host", "no HTTP"],
)
def test_a_bad_head_is_refused_and_the_connection_closed(head: bytes) -> None:
    """400, of which the sender may see nothing if it goes on sending."""
    with serving() as address, connect(address) as connection:
        try:
            connection.sendall(head)
            answer = read_to_end(connection)
        except ConnectionError:
            answer = b""
        assert answer.startswith(b"HTTP/1.1 400 ") or not answer
        assert httpx.get(url_of(address)).text == "hello"


def test_old_and_pipelined_requests_are_answered() -> None:
    """HTTP/1.0 closes; two requests at once get two answers."""
    with serving() as address:
        with connect(address, b"GET / HTTP/1.0\r\n\r\n") as connection:
            assert read_to_end(connection).endswith(b"hello")
        with connect(
            address, HEAD + HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        ) as connection:
            assert read_to_end(connection).count(b"hello") == 2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=bridge",
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def test_tls_is_spoken_with_a_certificate(certificate: tuple[Path, Path]) -> None:
    """Senders verify it; plain HTTP gets no answer."""
    cert, key = certificate
    trusting = ssl.create_default_context(cafile=str(cert))
    with serving(tls_cert=cert, tls_key=key) as address:
        assert httpx.get(url_of(address, "https"), verify=trusting).text == "hello"
        with pytest.raises(httpx.TransportError):
            httpx.get(url_of(address))


def test_a_certificate_that_cannot_be_used_is_told_at_once(certificate: tuple[Path, Path]) -> None:
    """Before anything is served."""
    cert, _ = certificate
    with listen("127.0.0.1", 0) as listening, pytest.raises(OSError, match=r"(?i)key|pem"):
        HttpServer(listening, PlainTextResponse("hello"), tls_cert=cert, tls_key=cert)
