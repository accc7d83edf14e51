"""From an application through the bridge to a tracker: the same requests as without it, each once, whatever dies."""

from __future__ import annotations

import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import orjson
import pytest

from tests.bridge.world import (
    JSON,
    PROTOBUF,
    bridging,
    end,
    foreign,
    json_request,
    request,
    span,
    start,
)
from tests.hosts import known_environment, live, tracker_answer
from tests.scripted_server import ReceivedRequest, ScriptedServer, reply, respond
from tests.waiting import wait_until

TRACES = "/v1/traces"


def posted(server: ScriptedServer) -> list[ReceivedRequest]:
    """The requests that tell something."""
    return [each for each in server.requests if each.method == "POST"]


def export(url: str, body: bytes, media_type: str = PROTOBUF) -> httpx.Response:
    return httpx.post(url + TRACES, content=body, headers={"Content-Type": media_type}, timeout=10)


def test_a_library_app_is_told_of_as_if_it_called_the_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Path, event id and body of every request, byte for byte."""
    known_environment(monkeypatch)
    direct = live(tmp_path / "direct", monkeypatch)

    @contextmanager
    def through_a_bridge(url: str) -> Iterator[dict[str, str]]:
        with (
            bridging("--url", url, "--state-dir", tmp_path / "bridge") as bridge,
            pytest.MonkeyPatch.context() as environment,
        ):
            environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", bridge.url)
            environment.setenv("AGENT_TRACKER_OTLP", "true")
            yield {}

    bridged = live(tmp_path / "bridged", monkeypatch, way=through_a_bridge, least=len(direct) + 1)
    assert bridged == direct


def test_a_sender_without_our_library_needs_only_names(tmp_path: Path) -> None:
    """Start, turn, feedback and end as plain JSON; what it does not say is filled in."""
    turn = span("conversation.turn", "thread-7", {"gen_ai.usage.input_tokens": 12}, 2)
    rating = span("conversation.feedback", "thread-7", {"agent_tracker.feedback.thumbs": "up"}, 3)
    body = json_request(start(), turn, rating, end(agent_tracker__quality__score=5.0, number=4))
    with (
        ScriptedServer(respond(tracker_answer)) as tracker,
        bridging("--url", tracker.url, "--state-dir", tmp_path) as bridge,
    ):
        answer = httpx.post(bridge.url + TRACES, json=body)
        assert (answer.status_code, answer.json()) == (200, {})
        tracker.wait_for_requests(5)
        told = {request.path: cast("dict[str, Any]", request.json()) for request in posted(tracker)}
    assert {path: (body["session_id"], body["agent_id"]) for path, body in told.items()} == dict.fromkeys(
        ("/conversations/start", "/conversations/turn", "/conversations/feedback", "/conversations/end"),
        ("thread-7", "support-bot"),
    )
    assert told["/conversations/turn"]["input_tokens"] == 12
    assert told["/conversations/turn"]["service"] == {"name": "shop", "version": "2"}
    assert told["/conversations/feedback"]["thumbs"] == "up"
    ended = told["/conversations/end"]
    assert (ended["status"], ended["quality_score"], ended["duration_seconds"]) == ("completed", 5, 2.5)


def test_what_is_sent_twice_is_told_once(tmp_path: Path) -> None:
    """Also by another sender, in another encoding, and after the tracker has it."""
    with (
        ScriptedServer(respond(tracker_answer)) as tracker,
        bridging("--url", tracker.url, "--state-dir", tmp_path) as bridge,
    ):
        for session in ("s1", "s2"):
            for body, media_type in (
                (request(start(session)), PROTOBUF),
                (orjson.dumps(json_request(start(session))), JSON),
                (request(start(session), end(session, number=2)), PROTOBUF),
            ):
                assert export(bridge.url, body, media_type).status_code == 200
        tracker.wait_for_requests(5)
        bridge.process.send_signal(signal.SIGTERM)
        bridge.process.communicate(timeout=30)
        assert sorted(each.path for each in posted(tracker)) == [
            *["/conversations/end"] * 2,
            *["/conversations/start"] * 2,
        ]


def test_an_answer_of_success_outlives_the_bridge(tmp_path: Path) -> None:
    """Whatever was answered before `kill -9` reaches the tracker from the next bridge, once."""
    with ScriptedServer(reply(503)) as dead:
        port = dead.port
        with bridging("--url", dead.url, "--state-dir", tmp_path) as bridge:
            killer = threading.Timer(0.5, bridge.process.kill)
            killer.start()
            taken = list(until_it_dies(bridge.url))
            killer.join()
    assert taken
    with (
        ScriptedServer(respond(tracker_answer), port=port) as tracker,
        bridging("--url", tracker.url, "--state-dir", tmp_path),
    ):
        wait_until(lambda: len(posted(tracker)) >= len(taken), 30)
    told = Counter(cast("dict[str, str]", each.json())["session_id"] for each in posted(tracker))
    assert told.keys() >= set(taken)
    assert told.most_common(1)[0][1] == 1


def until_it_dies(url: str) -> Iterator[str]:
    """The sessions whose start was taken."""
    with httpx.Client(timeout=10) as client, suppress(httpx.TransportError):
        for number in count():
            session = f"session-{number}"
            headers = {"Content-Type": PROTOBUF}
            answer = client.post(
                url + TRACES, content=request(start(session, number=number + 1)), headers=headers
            )
            assert answer.status_code == 200
            yield session


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_when_it_is_asked_to(number: signal.Signals, tmp_path: Path) -> None:
    """Within seconds, though a sender stops in the middle of a body; what was kept is delivered first."""
    with (
        ScriptedServer(respond(tracker_answer)) as tracker,
        bridging("--url", tracker.url, "--state-dir", tmp_path) as bridge,
        socket.create_connection((urlsplit(bridge.url).hostname, urlsplit(bridge.url).port)) as half,
    ):
        half.sendall(
            b"POST /v1/traces HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\n"
            b"Content-Length: 9\r\n\r\n{"
        )
        assert export(bridge.url, request(start())).status_code == 200
        bridge.process.send_signal(number)
        told, _ = bridge.process.communicate(timeout=20)
        assert bridge.process.returncode == 0
        assert told.splitlines()[-1] == "Stopped."
        assert set(told.splitlines()) <= {"Ctrl-C stops it.", "Stopped."}
        assert [each.path for each in posted(tracker)] == ["/conversations/start"]


def test_secrets_of_any_sender_are_redacted_before_the_disk(tmp_path: Path) -> None:
    """The key is in no file of the state folder, and not in what the tracker gets."""
    secret = "sk-" + "a1B2" * 12
    body = request(start(agent_tracker__metadata=f'{{"note":"use {secret}"}}'))
    with (
        ScriptedServer(reply(503)) as tracker,
        bridging("--url", tracker.url, "--state-dir", tmp_path) as bridge,
    ):
        assert export(bridge.url, body).status_code == 200
        wait_until(lambda: posted(tracker) or len(tracker.requests) > 1, 20)
        bridge.process.kill()
        bridge.process.wait()
    held = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"thread-7" in held
    assert secret.encode() not in held


def test_what_it_counts_is_told_on_the_admin_port(tmp_path: Path) -> None:
    """Alive, ready, and the books in Prometheus' format."""
    with (
        ScriptedServer(respond(tracker_answer)) as tracker,
        bridging("--url", tracker.url, "--state-dir", tmp_path) as bridge,
    ):
        export(bridge.url, request(start(), foreign({"http.route": "/"}, 2)))
        export(bridge.url, b"\xff")
        tracker.wait_for_requests(2)
        assert httpx.get(f"{bridge.admin_url}/healthz").text == "ok\n"
        assert httpx.get(f"{bridge.admin_url}/readyz").status_code == 200
        wait_until(lambda: "delivered_total 1" in httpx.get(f"{bridge.admin_url}/metrics").text)
        metrics = httpx.get(f"{bridge.admin_url}/metrics").text.splitlines()
        assert httpx.get(f"{bridge.admin_url}/elsewhere").status_code == 404
    assert 'agent_tracker_bridge_requests_total{answer="http 200"} 1' in metrics
    assert 'agent_tracker_bridge_requests_total{answer="http 400"} 1' in metrics
    assert 'agent_tracker_bridge_spans_total{kind="events"} 1' in metrics
    assert 'agent_tracker_bridge_spans_total{kind="spans"} 2' in metrics
    assert "agent_tracker_events_accepted_total 1" in metrics
