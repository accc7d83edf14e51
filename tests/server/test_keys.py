"""How keys are compared: the time that it takes tells nothing of them."""

from __future__ import annotations

import asyncio
import hmac
from typing import Any

import pytest

from otel_agent_tracker.server import guard, keys
from otel_agent_tracker.server.app import create_app
from otel_agent_tracker.server.guard import COOKIE, Logins
from otel_agent_tracker.server.keys import digest_of
from otel_agent_tracker.server.store import Store
from tests.server.world import Client


class Comparisons(list[tuple[Any, Any]]):
    """What was compared, by the function that takes as long whatever the content."""

    def __call__(self, known: Any, given: Any) -> bool:
        self.append((known, given))
        return hmac.compare_digest(known, given)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Comparisons:
    """The comparisons of the test; outside of it `hmac.compare_digest` makes them."""
    compared = Comparisons()
    for module in (keys, guard):
        assert vars(module)["compare_digest"] is hmac.compare_digest
        monkeypatch.setattr(module, "compare_digest", compared)
    return compared


def near(key: str) -> str:
    """A key that differs in its last character alone."""
    return key[:-1] + ("a" if key[-1] != "a" else "b")


def test_a_key_is_compared_with_each_whichever_it_is(
    store: Store, runner: asyncio.Runner, compared: Comparisons
) -> None:
    """Over REST: the first key, the last, one that is nearly right and one that is nothing like any are compared
    with all that are valid, as digests of one length, and no comparison follows from another's result."""
    made = [store.keys.create(f"project-{number}") for number in range(5)]
    digests = [digest_of(key.encode()) for key in made]
    client = Client(runner, create_app(store))
    assert client.get("/agents/active", headers={"Authorization": f"Bearer {made[0]}"}).status_code == 200
    for given, status in [
        (made[0], 200),
        (made[4], 200),
        (near(made[2]), 401),
        (near(made[0]), 401),
        ("x", 401),
    ]:
        compared.clear()
        answer = client.get("/agents/active", headers={"Authorization": f"Bearer {given}"})
        assert answer.status_code == status
        digest = digest_of(given.encode())
        once = [(known, digest) for known in digests]
        looks = 2 if status == 401 and given.startswith("oat_") else 1  # the keys are read anew in between
        assert compared == once * looks


def test_a_revoked_key_is_compared_with_no_more(
    store: Store, runner: asyncio.Runner, compared: Comparisons
) -> None:
    """It is as if it had never been."""
    revoked, valid = store.keys.create(), store.keys.create()
    assert store.keys.revoke(revoked)
    store.keys.refresh()
    assert store.keys.project_of(revoked.encode()) is None
    assert compared == [(digest_of(valid.encode()), digest_of(revoked.encode()))]


def test_links_and_cookies_are_compared_so_too(
    store: Store, runner: asyncio.Runner, compared: Comparisons
) -> None:
    """Each is compared with all that are open."""
    store.keys.create()
    logins = Logins()
    tokens = [logins.offer() for _ in range(3)]
    client = Client(runner, create_app(store, logins=logins))
    for given in (near(tokens[1]), tokens[0]):
        compared.clear()
        client.get("/login", params={"token": given})
        assert sorted(known for known, _ in compared) == sorted(token.encode() for token in tokens)
    compared.clear()
    client.get("/", headers={"Cookie": f"{COOKIE}=nothing"})
    assert [given for _, given in compared] == [b"nothing"]
