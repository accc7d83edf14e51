"""Whatever a sender of OTLP does to a bridge, it gets a clear answer, and the bridge serves the next one."""

from __future__ import annotations

import gzip
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import orjson
import pytest
import zstandard
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.bridge.world import (
    JSON,
    PROTOBUF,
    BridgeProcess,
    answer_of,
    bridging,
    foreign,
    json_request,
    request,
    start,
    status_of,
)
from tests.cli.terminal import run
from tests.hosts import tracker_answer
from tests.scripted_server import ScriptedServer, respond
from tests.waiting import wait_until

TRACES = "/v1/traces"
LIMIT = 64 * 1024 * 1024


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    """A bridge for all tests of this file that leave it alive."""
    with (
        ScriptedServer(respond(tracker_answer)) as tracker,
        bridging("--url", tracker.url, "--state-dir", tmp_path_factory.mktemp("state")) as process,
    ):
        yield process


@pytest.fixture(autouse=True)
def _serves_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each of these tests the bridge takes a good request."""
    yield
    if "bridge" in request.fixturenames:
        serving: BridgeProcess = request.getfixturevalue("bridge")
        assert send(serving, good()).status_code == 200


def good() -> bytes:
    return request(start("good"))


def send(bridge: BridgeProcess, body: bytes, media_type: str = PROTOBUF, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(
        bridge.url + TRACES, content=body, headers={"Content-Type": media_type, **named}, timeout=30
    )


def connect(bridge: BridgeProcess, sent: bytes) -> socket.socket:
    address = urlsplit(bridge.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=30)
    connection.sendall(sent)
    return connection


def most_memory(bridge: BridgeProcess) -> int:
    """The most bytes that the process ever had in memory."""
    status = Path(f"/proc/{bridge.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"no protobuf", PROTOBUF),
        (good()[:-3], PROTOBUF),
        (orjson.dumps(json_request(start())), PROTOBUF),
        (good(), JSON),
        (b'{"resourceSpans": [', JSON),
    ],
    ids=["garbage", "cut off", "JSON as protobuf", "protobuf as JSON", "half of JSON"],
)
def test_fault_49_what_cannot_be_read_is_refused(bridge: BridgeProcess, body: bytes, media_type: str) -> None:
    """A request that cannot be read is answered 400, with a reason in its own encoding."""
    answer = send(bridge, body, media_type)
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, media_type)
    assert answer.json()["message"] if media_type == JSON else status_of(answer.content)[1]


def test_fault_49_bad_spans_cost_no_good_ones(bridge: BridgeProcess) -> None:
    """Spans with ids of zeros, in base64 or cut short, without times, or that end before they start are rejected with a
    reason; the others of their request are kept."""
    spans = [start(f"s{number}", number=number) for number in range(1, 7)]
    spans[0].trace_id, spans[1].span_id, spans[2].trace_id = bytes(16), b"\x01", b"x" * 24
    spans[3].end_time_unix_nano = spans[3].start_time_unix_nano - 1
    spans[4].start_time_unix_nano = 0
    rejected, message = answer_of(send(bridge, request(*spans)).content)
    assert rejected == 5
    assert "a trace id must have 16 bytes that are not all zero" in message
    body = json_request(*spans)
    body["resourceSpans"][0]["unknown"] = {"to": ["be", "ignored"]}
    answer = send(bridge, orjson.dumps(body), JSON)
    assert answer.json()["partialSuccess"]["rejectedSpans"] == "5"


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (gzip.compress(bytes(LIMIT + 1)), "gzip", 413),
        (gzip.compress(bytes(LIMIT // 2 + 1)) * 2, "gzip", 413),
        (zstandard.compress(bytes(LIMIT + 1)), "zstd", 413),
        (gzip.compress(good())[:-1], "gzip", 400),
        (zstandard.compress(good())[:-1], "zstd", 400),
        (gzip.compress(gzip.compress(good())), "gzip", 400),
        (b"not packed", "deflate", 400),
        (good(), "br", 415),
    ],
    ids=[
        "bomb",
        "bomb of two",
        "zstd bomb",
        "cut off",
        "zstd cut off",
        "packed twice",
        "not packed",
        "unknown",
    ],
)
def test_fault_50_bombs_unpack_to_the_limit_and_no_further(
    bridge: BridgeProcess, body: bytes, encoding: str, status: int
) -> None:
    """What unpacks to more than 64 MiB is answered 413, what cannot be unpacked 400, an unknown encoding 415."""
    assert send(bridge, body, Content_Encoding=encoding).status_code == status
    assert most_memory(bridge) < 600_000_000


@pytest.mark.parametrize(
    ("body", "media_type", "status"),
    [
        (request(*[Span()] * 1_000_000), PROTOBUF, 413),
        (b"[" * 1_000_000, JSON, 400),
        (b'{"resourceSpans":[' + b"{}," * 2_000_000 + b"{}]}", JSON, 413),
        (request(*[foreign({})] * 200_000), PROTOBUF, 200),
        (request(start(agent_tracker__metadata="x" * 2_000_000)), PROTOBUF, 200),
    ],
    ids=["many empty spans", "depth", "many parts", "many spans", "a huge event"],
)
def test_fault_51_a_little_that_becomes_much_is_bounded(
    bridge: BridgeProcess, body: bytes, media_type: str, status: int
) -> None:
    """A small body of a million empty spans, endless depth or millions of parts is refused before it takes memory."""
    packed = gzip.compress(body, 1)
    assert send(bridge, packed, media_type, Content_Encoding="gzip").status_code == status
    assert most_memory(bridge) < 600_000_000


HEAD = b"POST /v1/traces HTTP/1.1\r\nHost: bridge\r\nContent-Type: application/x-protobuf\r\n"


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (HEAD + b"Content-Length: 99999999999\r\n\r\n", b"HTTP/1.1 413 "),
        (HEAD + b"X: " + b"x" * 200_000 + b"\r\n\r\n", b"HTTP/1.1 400 "),
        (HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"HTTP/1.1 400 "),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"HTTP/1.1 400 "),
    ],
    ids=["length", "header", "length in two ways", "two lengths"],
)
def test_fault_52_what_is_too_large_or_unclear_is_refused(
    bridge: BridgeProcess, sent: bytes, answered: bytes
) -> None:
    """A body that says it is too large is not read, a head that is too large or tells two lengths is refused, and the
    connection closed."""
    answer = b""
    try:
        with connect(bridge, sent) as connection:
            while part := connection.recv(65536):
                answer += part
    except ConnectionError:  # it was closed while we were still sending
        pass
    assert answer.startswith(answered) or not answer


def test_fault_52_a_body_without_a_length_is_read_to_the_limit(bridge: BridgeProcess) -> None:
    """A body that never says how long it is gets 413 when it is too long."""

    def chunks() -> Iterator[bytes]:
        for _ in range(LIMIT // 1_000_000 + 2):
            yield bytes(1_000_000)

    try:
        answer = httpx.post(
            bridge.url + TRACES, content=chunks(), headers={"Content-Type": PROTOBUF}, timeout=30
        )
    except httpx.TransportError:  # it was closed while we were still sending
        return
    assert answer.status_code == 413


def test_fault_53_half_open_connections_hold_up_nobody(tmp_path: Path) -> None:
    """With hundreds of connections that stop in the middle of a head or a body, others are answered, and the bridge
    ends when it is told to."""
    with (
        ScriptedServer(respond(tracker_answer)) as tracker,
        bridging("--url", tracker.url, "--state-dir", tmp_path) as bridge,
        ExitStack() as stack,
    ):
        for number in range(300):
            part = (b"", HEAD, HEAD + b"Content-Length: 9\r\n\r\nx")[number % 3]
            stack.enter_context(connect(bridge, part))
        assert send(bridge, good()).status_code == 200
        bridge.process.send_signal(signal.SIGTERM)
        bridge.process.communicate(timeout=20)
        assert bridge.process.returncode == 0


def test_fault_54_what_cannot_be_kept_is_to_be_sent_again(tmp_path: Path) -> None:
    """While the disk refuses, the answer is 503 with a short Retry-After, never 200 or 500, and the bridge is not
    ready; when the disk is back, what is sent again is told once."""
    in_the_way = tmp_path / "folder"
    in_the_way.write_text("no folder")
    with (
        ScriptedServer(respond(tracker_answer)) as tracker,
        bridging("--url", tracker.url, "--state-dir", in_the_way / "state") as bridge,
    ):
        wait_until(lambda: httpx.get(f"{bridge.admin_url}/readyz").status_code == 503)
        refused = send(bridge, good())
        assert (refused.status_code, refused.headers["Content-Type"]) == (503, PROTOBUF)
        assert 1 <= int(refused.headers["Retry-After"]) <= 5
        assert status_of(refused.content)[0] == 14
        in_the_way.unlink()
        wait_until(lambda: httpx.get(f"{bridge.admin_url}/readyz").status_code == 200)
        assert [each.path for each in tracker.requests if each.method == "POST"] == []
        assert send(bridge, good()).status_code == 200
        tracker.wait_for_requests(2)
        assert [each.path for each in tracker.requests if each.method == "POST"] == ["/conversations/start"]


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer wrong", "right", "Basic right", "Bearer " + "x" * 10_000],
)
def test_fault_56_only_the_token_opens(authorization: str, token_bridge: BridgeProcess) -> None:
    """Without the right bearer token the answer is 401; digests are compared, and an empty token is never right."""
    refused = send(token_bridge, good(), Authorization=authorization)
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert httpx.post(f"{token_bridge.url}{TRACES}?token=right", content=b"").status_code in (401, 415)
    assert send(token_bridge, good(), Authorization="Bearer right").status_code == 200


@pytest.fixture(scope="module")
def token_bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    """A bridge that only senders with a token may use."""
    folder = tmp_path_factory.mktemp("with a token")
    (folder / "token").write_text("right\n")
    with (
        ScriptedServer(respond(tracker_answer)) as tracker,
        bridging(
            "--url", tracker.url, "--state-dir", folder, "--ingest-token-file", folder / "token"
        ) as process,
    ):
        yield process


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_fault_57_other_machines_need_a_token(host: str, tmp_path: Path) -> None:
    """A bridge that others can reach does not start without a file of tokens."""
    ports = [word for kind in ("http", "grpc", "admin") for word in (f"--{kind}-port", "0")]
    result = run("bridge", "--url", "http://127.0.0.1:9", *ports, "--host", host, "--state-dir", tmp_path)
    assert (result.exit_code, "--ingest-token-file is needed" in result.stderr) == (2, True)
