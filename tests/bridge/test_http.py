"""What is answered to OTLP over HTTP, as the specification has it."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard

from otel_agent_tracker import semconv
from otel_agent_tracker.bridge.http import Bounds, HttpReceiver
from otel_agent_tracker.bridge.receiver import Receiver
from otel_agent_tracker.bridge.tokens import Tokens
from tests.bridge.world import (
    JSON,
    PROTOBUF,
    Kept,
    answer_of,
    end,
    foreign,
    json_request,
    request,
    start,
    status_of,
)

BODY_BYTES = 100_000
Post = Callable[..., httpx.Response]
BODY = request(start(), end(number=2))


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("old-token\n\nnew-token\n")
    return path


@pytest.fixture
def post(kept: Kept) -> Iterator[Post]:
    """Posts to an application that takes bodies of 100,000 bytes."""
    app = HttpReceiver(Receiver(kept), Tokens(None), bounds())
    yield lambda *arguments, **options: send(app, *arguments, **options)
    app.close()


def bounds(**changed: Any) -> Bounds:
    return Bounds(**{"body_bytes": BODY_BYTES, **changed})


def send(
    app: HttpReceiver,
    content: bytes | AsyncIterator[bytes] = BODY,
    *,
    path: str = "/v1/traces",
    method: str = "POST",
    headers: Any = None,
    **more: str,
) -> httpx.Response:
    named = {"Content-Type": PROTOBUF} | {name.replace("_", "-"): value for name, value in more.items()}

    async def sent() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bridge") as client:
            return await client.request(
                method, path, content=content, headers=named if headers is None else headers
            )

    return asyncio.run(sent())


# --- success ------------------------------------------------------------------------------------------------


def test_a_full_success_says_nothing(post: Post, kept: Kept) -> None:
    """No bytes of protobuf, an empty object of JSON; each in the type of the request, and of nothing else."""
    answer = post()
    assert (answer.status_code, answer.content, answer.headers["Content-Type"]) == (200, b"", PROTOBUF)
    answer = post(json.dumps(json_request(start())).encode(), Content_Type=JSON)
    assert (answer.status_code, answer.content, answer.headers["Content-Type"]) == (200, b"{}", JSON)
    assert [span.name for span in kept.spans] == ["conversation.start", "conversation", "conversation.start"]


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_a_media_type_may_have_parameters(post: Post, media_type: str) -> None:
    """Its answer has none: Collectors compare the type to the letter."""
    answer = post(b"{}", Content_Type=media_type)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, JSON)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("identity", bytes),
        ("gzip", gzip.compress),
        ("GZIP", lambda body: gzip.compress(body[:50]) + gzip.compress(body[50:])),
        ("deflate", zlib.compress),
        ("zstd", zstandard.compress),
        ("zstd", lambda body: zstandard.ZstdCompressor(write_content_size=False).compress(body)),
    ],
)
def test_packed_bodies_are_taken(
    post: Post, kept: Kept, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    """In any case of letters; zstd tells its size or does not."""
    assert post(pack(BODY), Content_Encoding=encoding).status_code == 200
    assert len(kept.spans) == 2


@pytest.mark.parametrize("path", ["/v1/logs", "/v1/metrics"])
def test_other_signals_are_taken_and_hold_nothing_for_us(post: Post, kept: Kept, path: str) -> None:
    """A Collector that sends all it has needs no configuration against refusals."""
    assert post(path=path).status_code == 200
    assert kept.spans == []


def test_bad_spans_are_rejected_and_good_ones_kept(post: Post, kept: Kept) -> None:
    """How many, and why, in either encoding."""
    bad = start(agent_tracker__ttl_seconds=-1.0), foreign({"agent_tracker.event": "nothing"}, 2)
    answer = post(request(bad[0], start(), bad[1]))
    rejected, message = answer_of(answer.content)
    assert (answer.status_code, rejected) == (200, 2)
    assert message.startswith("agent_tracker.ttl_seconds must be a finite number above 0")
    assert "agent_tracker.event must be one of conversation.start, " in message
    answer = post(json.dumps(json_request(*bad)).encode(), Content_Type=JSON)
    assert answer.json() == {"partialSuccess": {"rejectedSpans": "2", "errorMessage": message}}
    assert len(kept.spans) == 1


def test_copies_are_passed_over_unless_they_are_asked_for(post: Post, kept: Kept) -> None:
    """Their tracker has the events; a second one may want them, as events."""
    copies = request(start(agent_tracker__copy=True), end(number=2, agent_tracker__copy=False))
    assert post(copies).content == b""
    assert [span.name for span in kept.spans] == ["conversation"]
    app = HttpReceiver(Receiver(kept, accepts_copies=True), Tokens(None))
    assert send(app, copies).content == b""
    app.close()
    assert [span.name for span in kept.spans[1:]] == ["conversation.start", "conversation"]
    assert not [span for span in kept.spans if semconv.COPY in (span.attributes or {})]


# --- refusals -----------------------------------------------------------------------------------------------


def test_a_refusal_is_a_status_in_the_encoding_of_the_request(post: Post) -> None:
    """google.rpc.Status, in protobuf or as JSON."""
    answer = post(b"\xff")
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, PROTOBUF)
    assert status_of(answer.content) == (3, "the body is no ExportTraceServiceRequest")
    answer = post(b"{", Content_Type=JSON)
    assert (answer.status_code, answer.json()) == (400, {"code": 3, "message": "the body is no JSON"})


@pytest.mark.parametrize(
    ("status", "options"),
    [
        (404, {"path": "/v1/traces/v1/traces"}),
        (405, {"method": "GET"}),
        (405, {"method": "OPTIONS"}),
        (415, {"Content_Type": "application/protobuf"}),
        (415, {"Content_Type": "text/plain"}),
        (415, {"headers": {}}),
        (415, {"Content_Encoding": "br"}),
        (415, {"Content_Encoding": "gzip, gzip"}),
        (400, {"headers": {"Content-Type": PROTOBUF, "Content-Length": "9", "Transfer-Encoding": "chunked"}}),
    ],
)
def test_what_is_not_otlp_is_refused(post: Post, kept: Kept, status: int, options: dict[str, Any]) -> None:
    """And its connection closed, since nobody knows where its body ends."""
    answer = post(**options)
    assert (answer.status_code, answer.headers["Connection"]) == (status, "close")
    assert answer.content
    assert kept.spans == []


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b"no gzip"),
        ("gzip", gzip.compress(BODY)[:-4]),
        ("gzip", gzip.compress(BODY) + b"rest"),
        ("gzip", gzip.compress(gzip.compress(BODY))),
        ("deflate", zlib.compress(BODY)[:-4]),
        ("deflate", zlib.compress(BODY) + b"rest"),
        ("zstd", zstandard.compress(BODY)[:-4]),
        ("zstd", zstandard.compress(BODY) + b"rest"),
        ("zstd", b"no zstd"),
    ],
)
def test_what_cannot_be_unpacked_is_refused(post: Post, kept: Kept, encoding: str, body: bytes) -> None:
    """400, whether it never was packed so, lacks its end, or goes on."""
    answer = post(body, Content_Encoding=encoding)
    assert (answer.status_code, status_of(answer.content)[0]) == (400, 3)
    assert kept.spans == []


async def chunks(total: int) -> AsyncIterator[bytes]:
    """A body whose length nobody said."""
    for _ in range(total // 1000):
        yield bytes(1000)


BOMB = bytes(BODY_BYTES + 1)


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (BOMB, {}),
        (b"{}", {"Content_Length": "9" * 30}),
        (chunks(BODY_BYTES + 1000), {}),
        (gzip.compress(BOMB), {"Content_Encoding": "gzip"}),
        (gzip.compress(BOMB[: BODY_BYTES // 2 + 1]) * 2, {"Content_Encoding": "gzip"}),
        (zlib.compress(BOMB), {"Content_Encoding": "deflate"}),
        (zstandard.compress(BOMB), {"Content_Encoding": "zstd"}),
        (
            zstandard.ZstdCompressor(write_content_size=False).compress(BOMB),
            {"Content_Encoding": "zstd"},
        ),
    ],
)
def test_too_much_is_refused(post: Post, body: Any, options: dict[str, str]) -> None:
    """With and without a length, packed or not."""
    answer = post(body, **options)
    code, message = status_of(answer.content)
    assert (answer.status_code, code) == (413, 8)
    assert message.startswith(f"the body must not be larger than {BODY_BYTES} bytes")


# --- what may be better later -------------------------------------------------------------------------------


def test_what_cannot_be_kept_is_to_be_sent_again(post: Post, kept: Kept) -> None:
    """503 with a Retry-After that an SDK's exporter can wait for."""
    kept.cannot_keep_because = "the disk refuses"
    answer = post()
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert status_of(answer.content) == (14, "the disk refuses")


def test_a_mistake_of_ours_is_no_reason_to_drop_a_request(
    post: Post, kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """503 and not 500, after which senders would drop it; one span that we fail on is rejected alone."""

    def fail(*arguments: object) -> bool:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(kept, "take_in", fail)
    assert answer_of(post().content) == (2, "the span could not be taken in")
    monkeypatch.setattr(Receiver, "traces", fail)
    assert (post().status_code, "a mistake" in caplog.text) == (503, True)


def test_too_many_bytes_at_once_are_to_be_sent_later(kept: Kept) -> None:
    """What all requests hold together is bounded; the room comes back."""
    app = HttpReceiver(Receiver(kept), Tokens(None), bounds(bytes_under_way=len(BODY)))
    for _ in range(2):
        assert send(app, BODY + bytes(1)).status_code == 503
        assert send(app, BODY).status_code == 200
    app.close()


def test_a_body_that_does_not_come_is_not_waited_for(kept: Kept) -> None:
    """The sender may try again."""

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    app = HttpReceiver(Receiver(kept), Tokens(None), bounds(body_seconds=0.01))
    answer = send(app, never())
    assert (answer.status_code, status_of(answer.content)) == (503, (14, "the body did not come in time"))
    app.close()


# --- who may send -------------------------------------------------------------------------------------------

AUTHORIZED = [
    {"Authorization": "Bearer new-token"},
    {"Authorization": "bearer old-token"},
    {"Authorization": "BEARER  new-token "},
]
UNAUTHORIZED: list[list[tuple[str, str | bytes]]] = [
    [],
    [("Authorization", "")],
    [("Authorization", "Bearer")],
    [("Authorization", "Bearer ")],
    [("Authorization", "Bearer wrong-token")],
    [("Authorization", "Bearer new-token,")],
    [("Authorization", "Basic new-token")],
    [("Authorization", "new-token")],
    [("Authorization", "Bearer new-token"), ("Authorization", "Bearer new-token")],
    [("Authorization", "Bearer näw-töken".encode())],
    [("Authorization", "Bearer " + "x" * 1_000_000)],
    [("X-Api-Key", "new-token")],
]


@pytest.mark.parametrize("headers", AUTHORIZED, ids=str)
def test_any_of_the_tokens_opens(kept: Kept, token_file: Path, headers: dict[str, str]) -> None:
    """There are two while one takes the other's place; the scheme's case is nobody's business."""
    app = HttpReceiver(Receiver(kept), Tokens(token_file))
    assert send(app, headers={"Content-Type": PROTOBUF, **headers}).status_code == 200
    app.close()


@pytest.mark.parametrize("headers", UNAUTHORIZED, ids=lambda headers: str(headers)[:60])
def test_nothing_else_opens(kept: Kept, token_file: Path, headers: list[tuple[str, str | bytes]]) -> None:
    """401 with a Status, before the body is read; not even by a key in the path."""
    app = HttpReceiver(Receiver(kept), Tokens(token_file))
    answer = send(app, path="/v1/traces?token=new-token", headers=[("Content-Type", PROTOBUF), *headers])
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert status_of(answer.content) == (16, "the bearer token is missing or wrong")
    assert kept.spans == []
    app.close()


def test_tokens_are_read_again(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one counts soon; a file that is gone, or empty, changes nothing."""
    monkeypatch.setattr("otel_agent_tracker.bridge.tokens.LOOK_AGAIN_SECONDS", 0.0)
    tokens = Tokens(token_file)
    token_file.write_text("third-token")
    assert tokens.admit([b"Bearer third-token"])
    assert not tokens.admit([b"Bearer old-token"])
    token_file.write_text("\n")
    assert tokens.admit([b"Bearer third-token"])
    assert not tokens.admit([b"Bearer "])
    token_file.unlink()
    assert tokens.admit([b"Bearer third-token"])


def test_a_file_without_tokens_opens_to_nobody(tmp_path: Path) -> None:
    """It is refused at the start, as is one that is not there."""
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(ValueError, match="holds no token"):
        Tokens(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        Tokens(tmp_path / "missing")
