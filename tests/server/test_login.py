"""How people come to the page where keys are in force."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from otel_agent_tracker.server.app import create_app
from otel_agent_tracker.server.guard import Logins
from otel_agent_tracker.server.store import Store
from tests.server.world import Client, start

BROWSER = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}
HOST = "http://127.0.0.1:8700"


def give(client: Client, key: str, **headers: str) -> httpx.Response:
    return client.request("POST", "/login", data={"key": key}, headers=BROWSER | headers)


def session_of(answer: httpx.Response) -> dict[str, str]:
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    return BROWSER | {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}


def assert_asks(answer: httpx.Response, reason: str) -> None:
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "form-action 'self'" in answer.headers["Content-Security-Policy"]
    for told in (reason, '<form method="post" action="/login">', 'name="key"', "serve"):
        assert told in answer.text


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_browser_is_asked_for_a_key(open_client: Client, store: Store, path: str) -> None:
    """On a page with a form, whose style it may read; other clients are told in JSON."""
    store.keys.create()
    assert_asks(open_client.get(path, headers=BROWSER), "An API key is needed.")
    assert open_client.get("/static/style.css").status_code == 200
    assert open_client.get(path).json() == {"detail": "an API key is needed"}
    assert open_client.get("/conversations", headers=BROWSER).json() == {"detail": "an API key is needed"}


def test_a_used_link_asks_for_a_key(store: Store, runner: asyncio.Runner) -> None:
    """And says that it was used."""
    logins = Logins()
    client = Client(runner, create_app(store, logins=logins))
    store.keys.create()
    link = {"token": logins.offer()}
    assert client.get("/login", params=link, headers=BROWSER).status_code == 303
    assert_asks(client.get("/login", params=link, headers=BROWSER), "This link was used already")
    assert "used already" in client.get("/login", params=link).json()["detail"]


def test_a_key_opens_the_page_of_its_project(open_client: Client, store: Store) -> None:
    """For a cookie that scripts cannot read and other sites cannot send; the API stays closed to it."""
    key = store.keys.create("shop")
    theirs = {"Authorization": f"Bearer {store.keys.create()}"}
    for session_id, headers in (("ours", {"Authorization": f"Bearer {key}"}), ("theirs", theirs)):
        Client(open_client.runner, open_client.app, headers).tell(start(session_id))
    answer = give(open_client, key, Origin=HOST)
    cookie = answer.headers["Set-Cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert key.lower() not in cookie
    session = session_of(answer)
    page = open_client.get("/", headers=session)
    assert page.status_code == 200
    assert ">ours<" in page.text
    assert ">theirs<" not in page.text
    assert open_client.get("/conversations", headers=session).status_code == 401


def test_a_session_ends_with_its_key(open_client: Client, store: Store) -> None:
    """Whoever revokes a key means the pages that it opened, too."""
    key = store.keys.create()
    session = session_of(give(open_client, key))
    assert open_client.get("/", headers=session).status_code == 200
    assert store.keys.revoke(key)
    assert_asks(open_client.get("/", headers=session), "An API key is needed.")


@pytest.mark.parametrize("form", [b"", b"key=", b"key=wrong", b"token=x", b"\xff", b"key=%ff%00", b"a&" * 99])
def test_a_wrong_key_opens_nothing(open_client: Client, store: Store, form: bytes) -> None:
    """Wrong, empty, twice or no form at all: asked again, without a cookie."""
    key = store.keys.create().encode()
    for content in (form, form + b"&key=" + key + b"&key=" + key):
        answer = open_client.request("POST", "/login", content=content, headers=BROWSER)
        assert_asks(answer, "This key is not valid here.")
        assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8701"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": HOST},
    ],
)
def test_no_other_site_may_log_in(open_client: Client, store: Store, headers: dict[str, str]) -> None:
    """Even with a key that is valid."""
    answer = give(open_client, store.keys.create(), **headers)
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("headers", [{}, {"Origin": HOST}, {"Sec-Fetch-Site": "same-origin"}])
def test_the_page_s_own_form_may_log_in(open_client: Client, store: Store, headers: dict[str, str]) -> None:
    """Browsers say where a form came from, because the page's policy lets them tell itself."""
    key = store.keys.create()
    assert give(open_client, key, **headers).status_code == 303
    policy = open_client.get("/", headers=BROWSER).headers["Referrer-Policy"]
    assert policy == "same-origin"


def test_the_form_is_small(open_client: Client, store: Store) -> None:
    """Anyone may send it, so nobody may fill the memory with it."""
    store.keys.create()
    assert give(open_client, "x" * 5000).status_code == 413
