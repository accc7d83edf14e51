"""The clients against a server that misbehaves in every way of the answers table."""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from urllib.parse import unquote

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from otel_agent_tracker.client import (
    ApiKey,
    AsyncTrackerClient,
    Delivered,
    Misconfigured,
    NotOffered,
    Refused,
    Result,
    Retry,
    TrackerClient,
)
from otel_agent_tracker.client.answers import retry_after_seconds
from otel_agent_tracker.client.calls import Call, Tracker
from otel_agent_tracker.exceptions import TrackerUnavailable
from otel_agent_tracker.queries import path_segment
from otel_agent_tracker.semconv import VERSION
from otel_agent_tracker.wire import Capabilities
from tests.scripted_server import (
    Action,
    Connection,
    ReceivedRequest,
    ScriptedServer,
    disconnect,
    drip,
    flood,
    hang,
    html,
    json_reply,
    lie,
    raw,
    reply,
    reset,
    reset_unread,
    respond,
)

START = "/conversations/start"
KEY = "s3cret-key-of-project-one"
NOW = 1_700_000_000.0
MEBIBYTE = 1024 * 1024


def send_once(*actions: Action, timeout_seconds: float = 5.0, api_key: ApiKey = KEY) -> Result:
    """The result of one `send` to a server that plays `actions`."""
    with ScriptedServer(*actions) as server, a_client(server.url, timeout_seconds, api_key) as client:
        return client.send(START, b"{}")


@contextmanager
def a_client(url: str, timeout_seconds: float = 5.0, api_key: ApiKey = KEY) -> Iterator[TrackerClient]:
    """A client that is closed in the end."""
    client = TrackerClient(url, api_key=api_key, timeout_seconds=timeout_seconds)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Fails if its block takes longer."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds


def unused_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# --- the request ---------------------------------------------------------------------------------------


def test_a_single_request_carries_path_body_key_and_event_id() -> None:
    """A single request is a POST of the body as it is, with bearer key, event id and our name."""
    with ScriptedServer(reply(201)) as server, a_client(server.url) as client:
        result = client.send(START, b'{"session_id":"s"}', event_id="e" * 32)
        [request] = server.requests
    assert result == Delivered()
    assert (request.method, request.target, request.body) == ("POST", START, b'{"session_id":"s"}')
    assert dict(request.headers) == {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": f"otel-agent-tracker/{VERSION}",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "authorization": f"Bearer {KEY}",
        "idempotency-key": "e" * 32,
        "content-length": "18",
    }


@pytest.mark.parametrize("prefix", ["/prefix", "/prefix/", "/a%2Fb"])
def test_paths_are_appended_to_the_base_url_whole(prefix: str) -> None:
    """The base URL's own path stays in front of every path, as it was written."""
    with ScriptedServer(reply(201)) as server, a_client(server.url + prefix) as client:
        client.send(START, b"{}")
        assert server.requests[0].path == prefix.rstrip("/") + START


def test_without_a_key_no_authorization_is_sent() -> None:
    """A tracker without keys gets no Authorization header, nor does a None from a callable make one."""
    for api_key in (None, lambda: None):
        with ScriptedServer(reply(201)) as server, a_client(server.url, api_key=api_key) as client:
            client.send(START, b"{}")
            assert "authorization" not in server.requests[0].headers


def test_a_callable_key_is_asked_at_every_request() -> None:
    """A rotated key works from the next request on."""
    keys = iter(["old", "new"])
    with (
        ScriptedServer(reply(401), reply(201)) as server,
        a_client(server.url, api_key=lambda: next(keys)) as client,
    ):
        results = [client.send(START, b"{}"), client.send(START, b"{}")]
        sent = [request.headers["authorization"] for request in server.requests]
    assert isinstance(results[0], Misconfigured)
    assert (results[1], sent) == (Delivered(), ["Bearer old", "Bearer new"])


def test_a_callable_key_that_raises_is_a_misconfiguration_named_by_class() -> None:
    """The exception's text may hold the key, so only its class is told; nothing is sent."""

    def fail() -> str:
        raise PermissionError(KEY)

    with ScriptedServer(reply(201)) as server, a_client(server.url, api_key=fail) as client:
        assert client.send(START, b"{}") == Misconfigured("the api_key callable raised PermissionError")
        assert server.requests == []


@pytest.mark.parametrize("key", ["", "a\nb", "a b", "clé", "a\x7f", "a\r\nX-Evil: 1"])
def test_a_key_unfit_for_a_header_is_refused_without_showing_it(key: str) -> None:
    """A key with a newline, control or non-ASCII character is refused at once, or at the request."""
    with pytest.raises(ValueError, match="api_key") as caught:
        TrackerClient("http://localhost", api_key=key)
    assert not key or key not in str(caught.value)
    result = send_once(reply(201), api_key=lambda: key)
    assert isinstance(result, Misconfigured)
    assert not key or key not in result.reason


def test_an_event_id_unfit_for_a_header_is_left_out() -> None:
    """Ids of other senders must neither inject headers nor stop the channel."""
    with ScriptedServer(reply(201)) as server, a_client(server.url) as client:
        assert client.send(START, b"{}", event_id="a\r\nX-Evil: 1") == Delivered()
        assert not {"idempotency-key", "x-evil"} & server.requests[0].headers.keys()


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8700",
        "ftp://host",
        "http://",
        "http:///path",
        "http://user:hidden@host",
        "http://user:hidden",
        "http://host?a=hidden",
        "http://host/#hidden",
        "http://host:99999",
        "http://ho st",
        "http://host\nhidden",
        "http://[::1",
        "http://" + "a" * 64,
    ],
)
def test_a_base_url_that_cannot_be_used_is_refused_without_showing_it(url: str) -> None:
    """The base URL needs a scheme and a host and may hold neither user, query nor fragment."""
    with pytest.raises(ValueError, match="base_url") as caught:
        TrackerClient(url)
    assert "hidden" not in str(caught.value)


def test_ipv6_and_default_ports_make_a_proper_host_header() -> None:
    """An IPv6 host keeps its brackets, and a default port is left out."""
    hosts = {"http://[::1]:8700": "[::1]:8700", "https://Tracker.example:443": "tracker.example"}
    for url, host in hosts.items():
        call = Tracker(url, None).call("GET", "/")
        assert isinstance(call, Call)
        assert dict(call.request.headers)[b"Host"].decode() == host


def test_arguments_of_another_type_are_refused() -> None:
    """A TypeError that names the argument, before anything happens."""
    with pytest.raises(TypeError, match="base_url"):
        TrackerClient(b"http://localhost")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="api_key"):
        TrackerClient("http://localhost", api_key=7)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_must_be_a_finite_number_above_zero(timeout: float) -> None:
    """There is no waiting for ever."""
    with pytest.raises(ValueError, match="timeout_seconds"):
        TrackerClient("http://localhost", timeout_seconds=timeout)


# --- the answers table ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action",
    [reply(200), reply(201, '{"a":1}'), reply(202, "ok", headers={"Content-Type": "text/plain"}), reply(204)],
)
def test_any_2xx_but_a_page_acknowledges_a_single_request(action: Action) -> None:
    """Trackers answer a single request with whatever 2xx they like."""
    assert send_once(action) == Delivered()


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_temporary_trouble_is_to_be_retried(status: int) -> None:
    """408, 425, 429 and 5xx say nothing about the event."""
    assert send_once(reply(status)) == Retry(f"status {status}", None)


@pytest.mark.parametrize("status", [401, 403, 300, 301, 302, 303, 304, 307, 308])
def test_a_refused_key_and_redirects_are_misconfigurations(status: int) -> None:
    """No event is at fault, and nothing is followed."""
    with ScriptedServer(reply(201)) as elsewhere:
        moved = reply(status, headers={"Location": elsewhere.url + START})
        assert isinstance(send_once(moved), Misconfigured)
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (402, "the tracker wants to be paid"),
        (407, "a proxy on the way wants a name and a password"),
        (421, "this server does not answer for the host in the URL"),
        (426, "another protocol is wanted"),
        (451, "refused for legal reasons"),
    ],
)
def test_an_answer_about_way_or_account_is_a_misconfiguration(status: int, reason: str) -> None:
    """It says nothing of the event, and what a person has to do."""
    assert send_once(reply(status)) == Misconfigured(f"status {status}: {reason}")


UNEXPECTED = [406, 410, 411, 412, 414, 415, 416, 417, 418, 420, 423, 424, 428, 431, 499]


@pytest.mark.parametrize("status", [404, 405, 501, *UNEXPECTED])
def test_unknown_paths_are_not_offered(status: int) -> None:
    """404, 405 and 501 mean that this tracker does not know the path; a 4xx without a rule of its own is taken for it,
    since what becomes of other events of the path tells whether it is about this one."""
    assert send_once(reply(status)) == NotOffered(status, f"status {status}")


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_an_answer_about_the_content_refuses_this_event(status: int) -> None:
    """The reason is what the tracker said."""
    assert send_once(reply(status, '{"detail":"no"}')) == Refused(status, '{"detail":"no"}')


def test_the_reason_of_a_refusal_is_cut_and_has_no_control_characters() -> None:
    """At most 500 characters of the answer, on one line, fit for a log."""
    assert send_once(reply(422, "bad\r\n\x1b[31m id\x00\u202e" + "x" * 9999)) == Refused(
        422, "bad [31m id" + "x" * 489
    )


@pytest.mark.parametrize(
    "action",
    [
        html(),
        html(201),
        reply(200, "  <HTML>", headers={"Content-Type": "application/json"}),
        reply(200, "\ufeff<!doctype HTML><p>", headers={"Content-Type": "text/plain"}),
        reply(200, headers={"Content-Type": "Text/HTML"}),
    ],
)
def test_a_page_with_a_2xx_is_a_misconfiguration(action: Action) -> None:
    """A captive portal or login page acknowledges nothing, by its type or by its first tag."""
    assert isinstance(send_once(action), Misconfigured)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("1000000000", 3600.0),
        ("9" * 5000, 3600.0),
        ("-5", None),
        ("1.5", None),
        ("abc", None),
        ("", None),
        ("²", None),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW + 90), 90.0),
        (formatdate(NOW + 10**6, usegmt=True), 3600.0),
        (formatdate(NOW - 90, usegmt=True), None),
        ("Mon, 99 Foo 2024 25:61:00 GMT", None),
    ],
)
def test_retry_after_is_read_in_both_forms_and_clamped(value: str, seconds: float | None) -> None:
    """Seconds or a date, at most an hour; malformed, negative and past ones are as none."""
    assert retry_after_seconds(value, NOW) == seconds


@given(st.text())
def test_no_retry_after_raises(value: str) -> None:
    """Whatever a server sends is seconds between 0 and an hour, or none."""
    seconds = retry_after_seconds(value, NOW)
    assert seconds is None or 0 <= seconds <= 3600


def test_a_retry_after_comes_with_the_result() -> None:
    """The first header holds, if there are several."""
    assert send_once(reply(429, headers={"Retry-After": "7", "retry-after": "9"})) == Retry("status 429", 7.0)


# --- faults of the network -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action",
    [
        reset(),
        reset_unread(),
        disconnect(),
        raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
        raw(b"\x00" * 4096),
        raw(b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n123456"),
        raw(b"HTTP/1.1 201 Created\r\nBroken header\r\n\r\n"),
        raw(b"HTTP/1.1 201 Created\r\nContent-Le"),
        raw(b"HTTP/1.1 201 Created\r\nX: " + b"x" * 300_000),
        raw(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
        lie(declared=100, body=b"{}", status=201),
    ],
)
def test_any_trouble_of_the_transport_is_to_be_retried(action: Action) -> None:
    """Resets, closed connections, garbage and lies, after a 2xx too: the event may not be there."""
    assert isinstance(send_once(action), Retry)


def test_after_any_trouble_the_same_client_goes_on() -> None:
    """A broken connection is replaced; the request after it succeeds, with the same event id."""
    with (
        ScriptedServer(reset(), raw(b"garbage\r\n\r\n"), reply(201)) as server,
        a_client(server.url) as client,
    ):
        results = [client.send(START, b"{}", event_id="e1") for _ in range(3)]
        ids = [request.headers["idempotency-key"] for request in server.requests]
    assert [type(result) for result in results] == [Retry, Retry, Delivered]
    assert ids == ["e1"] * 3


def test_nobody_listening_and_an_unknown_host_are_to_be_retried() -> None:
    """A tracker that is down comes back."""
    for url in (f"http://127.0.0.1:{unused_port()}", "http://tracker.invalid"):
        with a_client(url) as client:
            assert isinstance(client.send(START, b"{}"), Retry)


@pytest.mark.parametrize(
    "action",
    [
        hang(),
        drip(b"HTTP/1.1 201 Created\r\nX-Slow: " + b"x" * 99, seconds=0.1),
        drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 9, seconds=0.01),
    ],
)
def test_the_deadline_is_for_the_whole_request(action: Action) -> None:
    """A server that never answers, or one byte at a time, takes no more than the timeout."""
    with ends_within(1.0):
        assert isinstance(send_once(action, timeout_seconds=0.3), Retry)


def test_a_deadline_that_has_passed_is_one() -> None:
    """No step of a request begins after it."""
    result = send_once(reply(201), timeout_seconds=1e-9)
    assert result == Retry("ConnectTimeout: the request's time is over")


def test_the_deadline_holds_in_the_body_too() -> None:
    """A 2xx whose body never ends is no acknowledgement in time."""
    head = b"HTTP/1.1 201 Created\r\nContent-Length: 99\r\n\r\n"

    def answer_then_drip(connection: Connection, request: ReceivedRequest) -> bool:
        connection.send(head)
        return drip(b"x" * 99, seconds=0.1)(connection, request)

    with ends_within(1.0):
        assert send_once(answer_then_drip, timeout_seconds=0.3) == Retry("ReadTimeout: timed out")


def test_the_deadline_holds_for_a_server_that_does_not_read() -> None:
    """A body larger than the buffers, to a server that takes none of it."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        a_client(f"http://127.0.0.1:{listener.getsockname()[1]}", 0.3) as client,
        ends_within(1.0),
    ):
        assert client.send(START, b"x" * 32 * MEBIBYTE) == Retry("WriteTimeout: timed out")


def test_the_deadline_holds_for_the_look_up_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver keeps its own time, and the caller does not wait for it."""
    answered = threading.Event()

    def never(*_: object, **__: object) -> None:
        answered.wait(5)
        raise socket.gaierror("too late")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    with a_client("http://tracker.example", timeout_seconds=0.2) as client, ends_within(1.0):
        assert client.send(START, b"{}") == Retry("ConnectTimeout: the look-up of the host took too long")
    answered.set()


def test_every_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose first address is dead is reached by its second."""
    with ScriptedServer(reply(201)) as server:
        entries = [(socket.AF_INET, 1, 6, "", (ip, server.port)) for ip in ("127.0.0.9", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", fake_look_up(entries, socket.getaddrinfo))
        with a_client(f"http://tracker.example:{server.port}") as client:
            assert client.send(START, b"{}") == Delivered()
            assert server.requests[0].headers["host"] == f"tracker.example:{server.port}"


def test_a_host_without_addresses_is_to_be_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a resolver gives back, nothing is raised."""
    monkeypatch.setattr(socket, "getaddrinfo", fake_look_up([], socket.getaddrinfo))
    with a_client("http://tracker.example") as client:
        assert client.send(START, b"{}") == Retry("ConnectError: the host has no address")


class RefusedThread(threading.Thread):
    """A thread while the interpreter exits."""

    def start(self) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")


def test_while_the_interpreter_exits_hosts_are_looked_up_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread can be started then, and the last events still go out."""
    monkeypatch.setattr("otel_agent_tracker.client.deadline.Thread", RefusedThread)
    assert send_once(reply(201)) == Delivered()


def fake_look_up(entries: object, real: Callable[..., object]) -> Callable[..., object]:
    """A look-up that knows one host, for the rest the real one."""
    return lambda host, *args, **kw: entries if host == "tracker.example" else real(host, *args, **kw)


def test_a_refusal_before_the_body_is_read_is_heard() -> None:
    """A server may answer and close while a large body is still on its way."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        a_client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client,
        ThreadPoolExecutor(1) as threads,
    ):
        result = threads.submit(client.send, START, b"x" * 32 * MEBIBYTE)
        connection, _ = listener.accept()
        with connection:
            connection.recv(1)
            connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        assert result.result() == Refused(413, "big")


@pytest.mark.parametrize("status", [201, 400])
def test_an_endless_answer_is_read_up_to_a_cap(status: int) -> None:
    """Of 1 GB no more than about 1 MiB is taken, and its status counts."""
    with ScriptedServer(flood(10**9, status), reply(201)) as server, a_client(server.url) as client:
        result = client.send(START, b"{}")
        assert client.send(START, b"{}") == Delivered()
        assert server.bytes_sent < 64 * MEBIBYTE  # what the buffers of the kernel took on top
    assert isinstance(result, Delivered if status == 201 else Refused)


def test_an_encoded_answer_is_never_decoded() -> None:
    """A gzip bomb is some bytes that say nothing; only its status counts."""
    bomb = gzip.compress(b" " * 64 * MEBIBYTE)
    encoded = {"Content-Encoding": "gzip"}
    assert send_once(reply(422, bomb, headers=encoded)) == Refused(422, "")
    with (
        ScriptedServer(reply(200, bomb, headers=encoded)) as server,
        a_client(server.url) as client,
        pytest.raises(TrackerUnavailable),
    ):
        client.get("/conversations")


# --- connections ---------------------------------------------------------------------------------------


def test_one_connection_serves_many_requests() -> None:
    """The pool keeps connections alive."""
    with ScriptedServer(reply(201)) as server, a_client(server.url) as client:
        assert [client.send(START, b"{}") for _ in range(5)] == [Delivered()] * 5
        assert server.connection_count == 1


def test_a_connection_that_the_server_closed_while_idle_is_not_used_again() -> None:
    """An answer that said "close" costs the next request nothing."""
    closing = raw(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
    with ScriptedServer(closing) as server, a_client(server.url) as client:
        results = []
        for count in range(1, 4):
            results.append(client.send(START, b"{}"))
            wait_until(lambda count=count: server.closed_count == count)  # type: ignore[misc]  # lambda default
    assert results == [Delivered()] * 3


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll `condition` for a second at most."""
    deadline = time.monotonic() + 1.0
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.005)


def test_eight_threads_may_send_at_once() -> None:
    """Each request of eight threads gets its own answer."""
    echo = respond(lambda request: reply(400, request.body))
    with ScriptedServer(echo) as server, a_client(server.url) as client, ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda n: client.send(START, str(n).encode()), range(80)))
        assert server.connection_count <= 8
    assert results == [Refused(400, str(n)) for n in range(80)]


def test_after_close_nothing_is_sent() -> None:
    """close() may be called twice; afterwards every request is answered "closed" here."""
    with ScriptedServer(reply(201)) as server, a_client(server.url) as client:
        client.send(START, b"{}")
        client.close()
        client.close()
        assert client.send(START, b"{}") == Retry("closed")
        assert client.capabilities() == Retry("closed")
        with pytest.raises(TrackerUnavailable, match="closed"):
            client.get("/conversations")
        assert len(server.requests) == 1


def test_close_ends_what_is_under_way() -> None:
    """A request that waits for its answer ends at once, to be sent again."""
    with (
        ScriptedServer(hang()) as server,
        a_client(server.url) as client,
        ThreadPoolExecutor(1) as threads,
        ends_within(2.0),
    ):
        waiting = threads.submit(client.send, START, b"{}")
        server.wait_for_requests(1)
        client.close()
        assert isinstance(waiting.result(), Retry)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fresh_client_works_after_fork() -> None:
    """The child makes its own client; the parent's connection stays the parent's."""
    program = """
import os, sys
from otel_agent_tracker.client import Delivered, TrackerClient
client = TrackerClient(sys.argv[1])
assert client.send("/parent", b"{}") == Delivered()
if (child := os.fork()) == 0:
    fresh = TrackerClient(sys.argv[1])
    os._exit(fresh.send("/child", b"{}") != Delivered())
assert os.waitpid(child, 0)[1] == 0
assert client.send("/parent", b"{}") == Delivered()
client.close()
"""
    with ScriptedServer(reply(201)) as server:
        subprocess.run([sys.executable, "-c", program, server.url], check=True, timeout=20)
        paths = [request.path for request in server.requests]
    assert (paths, server.connection_count) == (["/parent", "/child", "/parent"], 2)


# --- what is not told ----------------------------------------------------------------------------------


def test_the_key_is_in_no_result_exception_or_repr(caplog: pytest.LogCaptureFixture) -> None:
    """Not even where the server echoes the request, as an answer or as garbage."""
    caplog.set_level(logging.INFO)
    echo = respond(lambda request: reply(400, "you sent " + request.headers["authorization"]))
    garbage = respond(lambda request: raw(request.headers["authorization"].encode() + b"\r\n\r\n"))
    with ScriptedServer(echo, garbage) as server, a_client(server.url) as client:
        results = [client.send(START, b"{}"), client.send(START, b"{}")]
        with pytest.raises(TrackerUnavailable) as caught:
            client.get("/conversations")
        told = [repr(results), repr(client), repr(client.__dict__), str(caught.value), caplog.text]
    assert results[0] == Refused(400, "you sent Bearer ***")
    assert [KEY in text for text in told] == [False] * 5


def test_the_key_is_in_no_debug_line(caplog: pytest.LogCaptureFixture) -> None:
    """The network library's own debug lines show no header of ours."""
    caplog.set_level(logging.DEBUG)
    assert send_once(reply(400)) == Refused(400, "")
    assert caplog.records
    assert KEY not in caplog.text


def test_a_key_at_the_edge_of_the_excerpt_is_masked_whole() -> None:
    """The cut comes after the mask and leaves no half of a key."""
    result = send_once(reply(400, "x" * 490 + KEY))
    assert result == Refused(400, "x" * 490 + "***")


def test_requests_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """At INFO and above nothing is said of a request."""
    caplog.set_level(logging.INFO)
    assert send_once(reply(201)) == Delivered()
    assert caplog.records == []


def test_our_own_traffic_is_not_instrumented() -> None:
    """Instrumented libraries see the suppression during a request, and the caller's context is as before."""
    seen: list[object] = []

    def key() -> str:
        return KEY

    class Watched(TrackerClient):
        def _exchange(self, call):  # type: ignore[no-untyped-def]  # only looks
            seen.append(otel_context.get_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY))
            return super()._exchange(call)

    before = otel_context.get_current()
    with ScriptedServer(reply(201)) as server:
        client = Watched(server.url, api_key=key)
        client.send(START, b"{}")
        client.close()
    assert (seen, otel_context.get_current()) == ([True], before)


def test_proxies_and_netrc_of_the_environment_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By default no proxy sees the key, and no .netrc replaces it."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with ScriptedServer(reply(502)) as proxy, ScriptedServer(reply(201)) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        with a_client(server.url) as client:
            assert client.send(START, b"{}") == Delivered()
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert proxy.requests == []


def test_trust_env_goes_through_the_environments_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """With trust_env the proxy is asked for the whole URL, with its own login; no_proxy holds."""
    with ScriptedServer(reply(201)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//me:p%40ss@"))
        monkeypatch.setenv("no_proxy", "direct.invalid")
        client = TrackerClient("http://tracker.invalid/v1", trust_env=True)
        direct = TrackerClient("http://direct.invalid", trust_env=True)
        assert client.send(START, b"{}") == Delivered()
        assert isinstance(direct.send(START, b"{}"), Retry)
        client.close()
        [request] = proxy.requests
    assert request.target == "http://tracker.invalid/v1" + START
    assert request.headers["proxy-authorization"] == "Basic bWU6cEBzcw=="


@pytest.mark.parametrize(
    "proxy", ["socks5://127.0.0.1:1", "https://127.0.0.1:1", "127.0.0.1:one", "http://:1"]
)
def test_a_proxy_that_we_cannot_use_is_a_misconfiguration(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not be passed by; both clients say so."""
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    client = TrackerClient("http://tracker.invalid", trust_env=True)
    twin = AsyncTrackerClient("http://tracker.invalid", trust_env=True)
    assert isinstance(client.send(START, b"{}"), Misconfigured)
    with pytest.raises(TrackerUnavailable, match="proxy"):
        asyncio.run(twin.get("/conversations"))


# --- TLS -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    extensions = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key", "-out", "certificate"]
    try:
        subprocess.run(
            ["openssl", *arguments.split(), *extensions], cwd=folder, check=True, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    both = folder / "both.pem"
    both.write_text((folder / "certificate").read_text() + (folder / "key").read_text())
    return both


def https_server(certificate: Path, *actions: Action) -> ScriptedServer:
    """A scripted server that shows `certificate`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return ScriptedServer(*actions, tls=context)


def test_tls_fails_closed(certificate: Path) -> None:
    """A certificate that nobody vouches for gets no request, and a person is told."""
    with https_server(certificate, reply(201)) as server, a_client(server.url) as client:
        assert client.send(START, b"{}") == Misconfigured("certificate not accepted: self-signed certificate")
        assert server.requests == []


def test_verify_takes_a_file_a_context_or_false(certificate: Path) -> None:
    """Whom to trust can be said in three ways."""
    context = ssl.create_default_context(cafile=certificate)
    for verify in (certificate, str(certificate), context, False):
        with https_server(certificate, reply(201)) as server:
            client = TrackerClient(server.url, verify=verify)
            assert client.send(START, b"{}") == Delivered()
            client.close()


def test_https_goes_through_a_tunnel_of_the_proxy(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy sees the host, and not the key; without a login it gets none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def tunnel(connection: Connection, request: ReceivedRequest) -> bool:
        connection.send(b"HTTP/1.1 200 Connected\r\n\r\n")
        connection.begin(context)
        return True

    monkeypatch.delenv("no_proxy", raising=False)
    with ScriptedServer(tunnel, reply(201)) as proxy:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.port}")
        client = TrackerClient("https://127.0.0.1:9", api_key=KEY, trust_env=True, verify=certificate)
        assert client.send(START, b"{}") == Delivered()
        client.close()
        connect, post = proxy.requests
    assert (connect.method, connect.target, post.target) == ("CONNECT", "127.0.0.1:9", START)
    assert not {"authorization", "proxy-authorization"} & connect.headers.keys()


def test_verify_takes_a_folder_of_hashed_certificates(certificate: Path, tmp_path: Path) -> None:
    """As OpenSSL reads it: an empty one trusts nobody."""
    with https_server(certificate, reply(201)) as server:
        client = TrackerClient(server.url, verify=tmp_path)
        assert isinstance(client.send(START, b"{}"), Misconfigured)


def test_verify_must_name_certificates(tmp_path: Path) -> None:
    """A path with no certificates is refused at once."""
    (tmp_path / "empty").touch()
    for path in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(ValueError, match="verify names no readable certificates"):
            TrackerClient("https://localhost", verify=path)


def test_the_deadline_holds_within_tls(certificate: Path) -> None:
    """Handshake and encrypted answers keep to it as well."""
    for server in (https_server(certificate, drip(b"HTTP/1.1 201 Created", 0.1)), ScriptedServer(hang())):
        with server, ends_within(1.0):
            client = TrackerClient(
                f"https://127.0.0.1:{server.port}", verify=certificate, timeout_seconds=0.3
            )
            assert isinstance(client.send(START, b"{}"), Retry)
            client.close()


# --- batches -------------------------------------------------------------------------------------------


def send_two(*actions: Action) -> Result | list[Result]:
    """The results of a batch of the events a and b."""
    with ScriptedServer(*actions) as server, a_client(server.url) as client:
        return client.send_batch("/batch", [b'{"event_id":"a"}', b'{"event_id":"b"}'], ["a", "b"])


def test_a_batch_is_one_object_of_its_events() -> None:
    """The encoded events are joined, not encoded again; no Idempotency-Key is for them all."""
    with ScriptedServer(json_reply({})) as server, a_client(server.url) as client:
        client.send_batch("/batch", [b'{"event_id":"a"}', b'{"event_id":"b"}'], ["a", "b"])
        [request] = server.requests
    assert request.json() == {"events": [{"event_id": "a"}, {"event_id": "b"}]}
    assert "idempotency-key" not in request.headers


def test_each_event_of_a_batch_has_its_own_result() -> None:
    """Results are matched by event id, whatever their order."""
    refused = {"event_id": "b", "status": 422, "error": "no\nsuch agent"}
    answer = {"results": [refused, {"event_id": "a", "status": 201}, {"event_id": "c", "status": 201}]}
    assert send_two(json_reply(answer)) == [Delivered(), Refused(422, "no such agent")]


@pytest.mark.parametrize(
    "second",
    [[], [{"event_id": "b"}], [{"event_id": "b", "status": True}], [{"event_id": 7, "status": 201}], [7]],
)
def test_an_event_without_a_result_is_to_be_retried(second: list[object]) -> None:
    """Left out, or answered in no known form: never delivered."""
    results = send_two(json_reply({"results": [{"event_id": "a", "status": 200}, *second]}))
    assert results == [Delivered(), Retry("the answer to the batch has no result for this event")]


@pytest.mark.parametrize(
    "action",
    [
        reply(200),
        reply(204),
        reply(200, "not json"),
        json_reply([]),
        json_reply({"results": 1}),
        json_reply({"results": []}),
        json_reply({"results": [{"event_id": "other", "status": 200}]}),
        flood(2 * MEBIBYTE),
    ],
)
def test_a_2xx_without_our_results_acknowledges_no_batch(action: Action) -> None:
    """Only our event ids with their statuses count."""
    assert send_two(action) == Retry("the answer to the batch has no results for its events")


def test_any_other_answer_is_one_for_the_whole_batch() -> None:
    """It is judged as a single request's."""
    assert send_two(reply(413, "too large")) == Refused(413, "too large")
    assert send_two(reply(503, headers={"Retry-After": "3"})) == Retry("status 503", 3.0)
    assert isinstance(send_two(html()), Misconfigured)
    assert isinstance(send_two(reset()), Retry)


def test_a_batch_needs_an_id_for_each_event() -> None:
    """Results could not be told apart otherwise."""
    with a_client("http://localhost") as client, pytest.raises(ValueError, match="event id for each"):
        client.send_batch("/batch", [b"{}"], [])


# --- capabilities --------------------------------------------------------------------------------------


def capabilities_of(action: Action) -> Capabilities | Retry | Misconfigured:
    """What a tracker that plays `action` is taken to offer."""
    with ScriptedServer(action) as server, a_client(server.url) as client:
        return client.capabilities()


def test_capabilities_are_read() -> None:
    """What is named is offered, the rest is not, and unknown names are ignored."""
    answer = {
        "batch": {"path": "/batch", "max_events": 500},
        "turns": {"path": "/t"},
        "dance": {"path": "/d"},
    }
    assert capabilities_of(json_reply(answer)) == Capabilities(
        batch={"path": "/batch", "max_events": 500}, turns={"path": "/t"}
    )


@pytest.mark.parametrize(
    "action",
    [
        reply(404),
        reply(405),
        reply(501),
        reply(204),
        reply(200, "[]"),
        reply(200, "pong"),
        json_reply({"ok": 1}),
    ],
)
def test_a_tracker_that_does_not_know_the_question_offers_nothing(action: Action) -> None:
    """404, 405, 501, or a 2xx that is no such object."""
    assert capabilities_of(action) == Capabilities()


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "/batch",
        {},
        {"path": 7, "max_events": 5},
        {"path": "batch", "max_events": 5},
        {"path": "/batch?x\r\n", "max_events": 5},
        {"path": "/batch"},
        {"path": "/batch", "max_events": 0},
        {"path": "/batch", "max_events": True},
    ],
)
def test_an_ill_typed_capability_is_not_offered(entry: object) -> None:
    """The others of the same answer are."""
    answer = {"batch": entry, "queries": {"path": "/conversations"}}
    assert capabilities_of(json_reply(answer)) == Capabilities(queries={"path": "/conversations"})


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        (reply(401), Misconfigured),
        (reply(302), Misconfigured),
        (html(), Misconfigured),
        (reply(503), Retry),
        (reply(400), Retry),
        (reply(407), Misconfigured),
        (reply(410), Retry),
        (reply(423), Retry),
        (reset(), Retry),
    ],
)
def test_any_other_answer_leaves_the_question_open(action: Action, kind: type[object]) -> None:
    """It is asked again; nothing is concluded."""
    assert type(capabilities_of(action)) is kind


# --- queries -------------------------------------------------------------------------------------------


def test_a_query_hands_the_trackers_object_on() -> None:
    """Unchanged, unknown fields included; values are escaped and None is left out."""
    answer = {"conversations": [], "x": {"y": [1, None]}}
    query: dict[str, str | int | None] = {"agent_id": "é/&=? 🤖", "limit": 50, "cursor": None}
    with ScriptedServer(json_reply(answer)) as server, a_client(server.url) as client:
        assert client.get("/conversations/active", query) == answer
        [request] = server.requests
    assert (request.method, request.path, request.body) == ("GET", "/conversations/active", b"")
    assert request.query == {"agent_id": ["é/&=? 🤖"], "limit": ["50"]}


def test_a_query_for_the_unknown_is_none() -> None:
    """404 is an answer."""
    with ScriptedServer(reply(404)) as server, a_client(server.url) as client:
        assert client.get("/conversations/x") is None


UNAVAILABLE = [
    reply(200, "[]"),
    reply(200, "{"),
    reply(204),
    html(),
    reply(302),
    reply(400, "bad date"),
    reply(401),
    reply(405),
    reply(503),
    reset(),
    flood(2 * MEBIBYTE),
]


@pytest.mark.parametrize("action", UNAVAILABLE)
def test_a_query_without_an_answer_raises(action: Action) -> None:
    """Everything but an object and a 404 is TrackerUnavailable, for both clients in the same words."""
    with ScriptedServer(action) as server, a_client(server.url) as client:
        with pytest.raises(TrackerUnavailable) as caught:
            client.get("/conversations")
        with pytest.raises(TrackerUnavailable) as caught_by_twin:
            asyncio.run(get_with_twin(server.url))
    if action is not UNAVAILABLE[9]:  # the words of a broken connection are the network library's
        assert str(caught.value) == str(caught_by_twin.value)


@pytest.mark.parametrize(
    ("status", "deleted"), [(204, True), (200, True), (404, False), (405, False), (501, False)]
)
def test_a_deletion_says_whether_it_was_done(status: int, deleted: bool) -> None:
    """A tracker that does not know the session, or offers no deletion, is no trouble."""
    with ScriptedServer(reply(status)) as server, a_client(server.url) as client:
        assert client.delete("/conversations", {"session_id": "a/b"}) is deleted
        [request] = server.requests
    assert (request.method, request.path, request.query) == (
        "DELETE",
        "/conversations",
        {"session_id": ["a/b"]},
    )


@pytest.mark.parametrize(
    "action", [reply(401), reply(302), reply(422), reply(423), reply(503), html(), reset()]
)
def test_a_deletion_without_an_answer_raises(action: Action) -> None:
    """So nobody takes silence for a deletion."""
    with ScriptedServer(action) as server, a_client(server.url) as client, pytest.raises(TrackerUnavailable):
        client.delete("/conversations/x")


async def get_with_twin(url: str, timeout_seconds: float = 5.0) -> dict[str, object] | None:
    """One query of the asynchronous client."""
    client = AsyncTrackerClient(url, api_key=KEY, timeout_seconds=timeout_seconds)
    try:
        return await client.get("/conversations", {"limit": 5})
    finally:
        await client.close()


def test_the_twin_asks_and_answers_alike() -> None:
    """The asynchronous client's request differs in nothing from the synchronous one's."""
    with ScriptedServer(json_reply({"total": 1})) as server, a_client(server.url) as client:
        assert (
            asyncio.run(get_with_twin(server.url))
            == client.get("/conversations", {"limit": 5})
            == {"total": 1}
        )
        assert server.requests[0] == server.requests[1]


@pytest.mark.parametrize("action", [hang(), drip(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 99, 0.1)])
def test_the_twin_keeps_the_deadline(action: Action) -> None:
    """The total deadline holds for the asynchronous client too."""
    with (
        ScriptedServer(action) as server,
        ends_within(1.0),
        pytest.raises(TrackerUnavailable, match="Timeout"),
    ):
        asyncio.run(get_with_twin(server.url, timeout_seconds=0.3))


def test_the_twin_serves_many_tasks_and_then_another_loop() -> None:
    """The client belongs to no event loop."""
    with ScriptedServer(json_reply({})) as server:
        client = AsyncTrackerClient(server.url)

        async def ask_often() -> list[dict[str, object] | None]:
            return list(await asyncio.gather(*(client.get("/conversations") for _ in range(20))))

        assert asyncio.run(ask_often()) == [{}] * 20
        assert asyncio.run(ask_often()) == [{}] * 20
        asyncio.run(client.close())


def test_a_cancelled_query_of_the_twin_ends() -> None:
    """Cancelling is not trouble of the transport, and leaves the client in order."""

    async def cancel_one() -> dict[str, object] | None:
        client = AsyncTrackerClient(server.url)
        waiting = asyncio.create_task(client.get("/conversations"))
        await asyncio.to_thread(server.wait_for_requests, 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        answer = await client.get("/conversations")
        await client.close()
        return answer

    with ScriptedServer(hang(), json_reply({"total": 0})) as server:
        assert asyncio.run(cancel_one()) == {"total": 0}


def test_the_twin_tells_a_failing_key_by_class() -> None:
    """As the synchronous client does."""

    def fail() -> str:
        raise PermissionError(KEY)

    with pytest.raises(TrackerUnavailable, match="callable raised PermissionError"):
        asyncio.run(AsyncTrackerClient("http://localhost", api_key=fail).get("/conversations"))


def test_the_twin_is_closed_for_good() -> None:
    """A query after close raises, and close may be called twice."""

    async def close_twice_and_ask() -> None:
        client = AsyncTrackerClient("http://localhost")
        await client.close()
        await client.close()
        await client.get("/conversations")

    with pytest.raises(TrackerUnavailable, match="closed"):
        asyncio.run(close_twice_and_ask())


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_path_segment_is_given_back_by_starlette(identifier: str) -> None:
    """What path_segment accepts is one segment to a server that unquotes first, and comes back as it was."""
    routing = pytest.importorskip("starlette.routing")
    segment = path_segment(identifier)
    if segment is None:
        assert identifier in (".", "..") or "/" in identifier
        return
    pattern, _, _ = routing.compile_path("/conversations/{session_id}/end")
    match = pattern.match(unquote(f"/conversations/{segment}/end"))
    assert match["session_id"] == identifier
    assert httpcore.URL(f"http://h/conversations/{segment}/end").target.count(b"/") == 3


# --- OTLP ----------------------------------------------------------------------------------------------


def post_otlp(action: Action) -> Result:
    """What becomes of one OTLP export."""
    with ScriptedServer(action) as server, a_client("http://unused.invalid") as client:
        return client.post_otlp(server.url + "/v1/traces", b"spans", {})


def protobuf_reply(rejected: int, message: str = "", status: int = 200) -> Action:
    """An OTLP answer with a partial success."""
    partial = ExportTracePartialSuccess(rejected_spans=rejected, error_message=message)
    body = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
    return reply(status, body, headers={"Content-Type": "application/x-protobuf"})


def test_an_otlp_export_carries_the_given_headers_and_not_our_key() -> None:
    """The URL is used whole; the headers are the exporter's, framing excepted."""
    with ScriptedServer(reply(200)) as server, a_client("http://unused.invalid") as client:
        headers = {"x-tenant": "one", "Content-Length": "99", "content-type": "text/plain"}
        assert client.post_otlp(server.url + "/v1/traces?a=1", b"spans", headers) == Delivered()
        [request] = server.requests
    assert (request.target, request.body) == ("/v1/traces?a=1", b"spans")
    assert request.headers["content-type"] == "application/x-protobuf"
    assert request.headers["x-tenant"] == "one"
    assert "authorization" not in request.headers


@pytest.mark.parametrize(
    ("action", "result"),
    [
        (reply(200), Delivered()),
        (reply(200, "{}"), Delivered()),
        (protobuf_reply(0), Delivered()),
        (protobuf_reply(0, "a warning"), Delivered()),
        (reply(200, b"\xff\xff", headers={"Content-Type": "application/x-protobuf"}), Delivered()),
        (protobuf_reply(3, "too\nold"), Delivered()),
        (reply(429, headers={"Retry-After": "5"}), Retry("status 429", 5.0)),
        (reply(502), Retry("status 502")),
        (reply(503), Retry("status 503")),
        (reply(504), Retry("status 504")),
        (reply(400, "bad"), Refused(400, "bad")),
        (reply(413, "big"), Refused(413, "big")),
        (reply(500, "bug"), Refused(500, "bug")),
        (reply(401), Misconfigured("status 401")),
        (reply(403), Misconfigured("status 403")),
        (reply(404), Misconfigured("status 404")),
        *((reply(status), Misconfigured(f"status {status}")) for status in (402, 407, 408, 501, *UNEXPECTED)),
    ],
)
def test_otlp_answers_are_judged_by_the_otlp_table(action: Action, result: Result) -> None:
    """Only 429, 502, 503 and 504 are temporary; a partial success is final; what is not about spans refuses none."""
    assert post_otlp(action) == result


def test_spans_that_an_otlp_endpoint_rejects_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """How many, and why, on one line; nothing is sent again."""
    assert post_otlp(protobuf_reply(3, "too\nold")) == Delivered()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["the OTLP endpoint rejected 3 spans: too old"]


@pytest.mark.parametrize(
    ("action", "kind"), [(html(), Misconfigured), (reply(307), Misconfigured), (reset(), Retry)]
)
def test_otlp_pages_redirects_and_broken_connections(action: Action, kind: type[object]) -> None:
    """As with the tracker's own requests."""
    assert type(post_otlp(action)) is kind


def test_an_otlp_url_or_header_that_cannot_be_used_is_a_misconfiguration() -> None:
    """They come from the environment, so nothing is raised; no reason shows them."""
    with ScriptedServer(reply(200)) as server, a_client(server.url) as client:
        results = [
            client.post_otlp("collector:4318", b"", {}),
            client.post_otlp("http://me:hidden@collector/v1/traces", b"", {}),
            client.post_otlp(server.url, b"", {"x-key": "hidden\r\nX-Evil: 1"}),
            client.post_otlp(server.url, b"", {"x-key": "hidden\u20ac"}),
        ]
        assert server.requests == []
    assert [type(result) for result in results] == [Misconfigured] * 4
    assert "hidden" not in repr(results)


def test_importing_the_package_imports_no_http_library() -> None:
    """Only the worker's thread pays for it."""
    program = "import sys, otel_agent_tracker; assert not {'httpx', 'httpcore'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
