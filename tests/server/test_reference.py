"""The API reference."""

from __future__ import annotations

import re

from tests.server.world import Client


def test_the_reference_asks_no_other_host(client: Client) -> None:
    """Everything that the page loads is served by the tracker itself, and its policy allows nothing else."""
    page = client.get("/docs")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 3
    for path in loaded:
        assert path.startswith("/")
        assert client.get(path).status_code == 200
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_every_operation_is_named_for_people(client: Client) -> None:
    """Each has one of the known tags and a summary that was written, not made of its function's name."""
    document = client.json("/openapi.json")
    tags = {tag["name"] for tag in document["tags"]}
    assert tags == {"conversations", "agents", "metrics", "operations", "system"}
    operations = [each for methods in document["paths"].values() for each in methods.values()]
    for operation in operations:
        assert set(operation["tags"]) < tags
        assert operation["summary"] != operation["summary"].title()  # what the framework would make
    assert {operation["tags"][0] for operation in operations} == tags
