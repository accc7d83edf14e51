"""How large a body may be."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator

import pytest

from otel_agent_tracker.server.limits import MAX_BODY_BYTES
from tests.server.world import Client, Json, batch_event, start

JSON = {"Content-Type": "application/json"}


async def chunks(total: int) -> AsyncIterator[bytes]:
    """A body whose length nobody said."""
    for _ in range(total // 65_536):
        yield b" " * 65_536


def test_a_body_that_says_it_is_too_large_is_not_read(client: Client) -> None:
    """The length is enough to refuse it."""
    headers = JSON | {"Content-Length": str(MAX_BODY_BYTES + 1)}
    assert client.request("POST", "/batch", content=b"{}", headers=headers).status_code == 413


def test_a_body_without_length_is_read_as_far_as_allowed(client: Client) -> None:
    """Then refused."""
    answer = client.request("POST", "/batch", content=chunks(MAX_BODY_BYTES + 65_536), headers=JSON)
    assert answer.status_code == 413
    assert answer.json()["detail"]


def test_what_gzip_unpacks_to_counts(client: Client) -> None:
    """A small body may hide a large one, in several members too."""
    bomb = gzip.compress(b" " * (MAX_BODY_BYTES // 2 + 1))
    headers = JSON | {"Content-Encoding": "gzip"}
    assert client.request("POST", "/batch", content=bomb, headers=headers).status_code == 422  # all blanks
    assert client.request("POST", "/batch", content=bomb * 2, headers=headers).status_code == 413


@pytest.mark.parametrize(
    "body", [b"no gzip", gzip.compress(b"{}" * 1000)[:-4], gzip.compress(b"{}") + b"rest"]
)
def test_broken_gzip_is_refused(client: Client, body: bytes) -> None:
    """400, whether it never was one, lacks its end or goes on as something else."""
    headers = JSON | {"Content-Encoding": "gzip"}
    assert client.request("POST", "/batch", content=body, headers=headers).status_code == 400


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "zstd", "x"])
def test_other_encodings_are_refused(client: Client, encoding: str) -> None:
    """415 says which are taken."""
    answer = client.request("POST", "/batch", content=b"{}", headers=JSON | {"Content-Encoding": encoding})
    assert answer.status_code == 415
    assert "gzip" in answer.json()["detail"]


@pytest.mark.parametrize("encoding", ["identity", "Identity", "GZIP"])
def test_identity_and_gzip_are_taken(client: Client, encoding: str) -> None:
    """In any case of letters."""
    body = json.dumps({"events": [batch_event(start("s1"), "e1")]}).encode()
    packed = gzip.compress(body) if encoding == "GZIP" else body
    answer = client.request("POST", "/batch", content=packed, headers=JSON | {"Content-Encoding": encoding})
    assert answer.status_code == 200


def test_a_large_batch_within_the_limit_is_taken(client: Client) -> None:
    """Nearly 16 MiB of text in one event."""
    metadata: Json = {"text": "x" * (MAX_BODY_BYTES - 2000)}
    answer = client.post("/batch", {"events": [batch_event(start("s1", metadata=metadata), "e1")]})
    assert answer.status_code == 200
