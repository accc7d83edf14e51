"""Who may come in."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from otel_agent_tracker.server.app import create_app
from otel_agent_tracker.server.guard import COOKIE, Logins
from otel_agent_tracker.server.store import Store
from tests.server.world import Client, Clock, start


def with_logins(store: Store, runner: asyncio.Runner) -> tuple[Client, Logins]:
    logins = Logins()
    return Client(runner, create_app(store, logins=logins)), logins


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_without_keys_this_machine_may_do_anything(open_client: Client) -> None:
    """The project is the default one."""
    open_client.tell(start("s1"))
    assert open_client.json("/conversations/s1")["status"] == "active"


def test_from_the_first_key_on_a_key_is_needed(open_client: Client, store: Store) -> None:
    """For everything but the two health checks, the way in and its style sheet."""
    open_client.tell(start("s1"))
    key = store.keys.create()
    for path in (
        "/conversations",
        "/capabilities",
        "/",
        "/docs",
        "/openapi.json",
        "/static/reference.js",
        "/nope",
    ):
        answer = open_client.get(path)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), path
    assert open_client.post("/batch", {"events": []}).status_code == 401
    assert [open_client.get(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]
    assert open_client.get("/conversations/s1", headers=bearer(key)).status_code == 200


def test_a_key_made_by_another_process_takes_effect(
    open_client: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a second."""
    from otel_agent_tracker.server import keys

    assert open_client.get("/conversations").status_code == 200
    keys.Keys(store._database, Clock()).create()  # another's, as far as the application knows
    monkeypatch.setattr(keys, "MAX_AGE_SECONDS", 0)
    assert open_client.get("/conversations").status_code == 401


def test_a_key_opens_as_soon_as_another_process_has_made_it(open_client: Client, store: Store) -> None:
    """Its own project, though the keys were read a moment ago, when there were none at all."""
    from otel_agent_tracker.server import keys

    body = {"session_id": "s1", "agent_id": "a", "start_time": "2024-01-19T16:00:00Z"}
    for project in ("shop", "bank"):
        assert open_client.get("/conversations").status_code in (200, 401)
        made = keys.Keys(store._database, Clock()).create(project)
        assert open_client.post("/conversations/start", body, headers=bearer(made)).status_code == 200
        assert open_client.get("/conversations", headers=bearer(made)).json()["conversations"], project


def odd_headers(key: str) -> list[list[tuple[bytes, bytes]]]:
    name, right = b"Authorization", f"Bearer {key}".encode()
    values = [
        *(b"", b"Bearer", b"Bearer ", b"Bearer wrong", b"Basic " + key.encode(), key.encode()),
        *(
            b"Bearer \xff\xfe",
            "Bearer ключ".encode(),
            right + b"x",
            right[:-1],
            b"Bearer " + b"x" * 1_000_000,
        ),
        *(b"Bearer " + key.upper().encode(), b"Bearer " + key.encode() + b" " + key.encode()),
    ]
    return [[], *([(name, value)] for value in values), [(name, right), (name, right)]]


def test_odd_authorizations_are_401(open_client: Client, store: Store) -> None:
    """None, empty, halves, other schemes, no ASCII, two headers, a megabyte: never in, never an error."""
    key = store.keys.create()
    for headers in odd_headers(key):
        answer = open_client.get("/conversations", headers=httpx.Headers(headers))
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), headers


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_the_scheme_is_of_any_case(open_client: Client, store: Store, scheme: str) -> None:
    """As RFC 9110 has it."""
    headers = {"Authorization": f"{scheme} {store.keys.create()}"}
    assert open_client.get("/conversations", headers=headers).status_code == 200


def test_a_key_in_the_query_opens_nothing(open_client: Client, store: Store) -> None:
    """It would end in logs."""
    key = store.keys.create()
    assert open_client.get("/conversations", params={"api_key": key, "token": key}).status_code == 401


def test_a_revoked_key_opens_nothing(open_client: Client, store: Store) -> None:
    """And the last one revoked does not open the door for all."""
    key = store.keys.create()
    assert store.keys.revoke(key[:8])
    assert open_client.get("/conversations", headers=bearer(key)).status_code == 401
    assert open_client.get("/conversations").status_code == 401


def test_a_key_opens_its_project_alone(open_client: Client, store: Store) -> None:
    """Not another's conversations."""
    shop, bank = (bearer(store.keys.create(project)) for project in ("shop", "bank"))
    body = {"session_id": "s1", "agent_id": "a", "start_time": "2024-01-19T16:00:00Z"}
    assert open_client.post("/conversations/start", body, headers=shop).status_code == 200
    assert open_client.get("/conversations/s1", headers=shop).status_code == 200
    assert open_client.get("/conversations/s1", headers=bank).status_code == 404


def test_the_key_is_not_in_the_database(store: Store) -> None:
    """Only its SHA-256 and what shows which it is."""
    key = store.keys.create(name="ci")
    path = store._database.path
    assert path is not None
    stored = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert key.encode() not in stored
    assert key[:12].encode() in stored


def test_keys_tell_when_they_were_used(open_client: Client, store: Store, clock: Clock) -> None:
    """As of the last minute."""
    key = store.keys.create(name="ci")
    clock.advance(5)
    open_client.get("/conversations", headers=bearer(key))
    store.keys.write_usage()
    (info,) = store.keys.list()
    assert (info.prefix, info.name, info.project, info.used_us) == (key[:12], "ci", "default", clock.now_us)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8700", "127.0.0.1.evil.example", "", "localhost.", "é"]
)
def test_an_open_tracker_answers_only_to_its_own_names(open_client: Client, host: str) -> None:
    """A web page that makes its name resolve to 127.0.0.1 is refused."""
    answer = open_client.get("/conversations", headers=httpx.Headers([(b"Host", host.encode())]))
    assert answer.status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8700", "127.0.0.1", "127.0.0.1:1", "[::1]:8700"])
def test_an_open_tracker_answers_to_this_machine(open_client: Client, host: str) -> None:
    """By any port."""
    assert open_client.get("/conversations", headers={"Host": host}).status_code == 200


def test_with_a_key_any_host_name_will_do(open_client: Client, store: Store) -> None:
    """The key is what counts."""
    headers = bearer(store.keys.create()) | {"Host": "tracker.example"}
    assert open_client.get("/conversations", headers=headers).status_code == 200


def test_elsewhere_a_key_is_needed_from_the_start(store: Store, runner: asyncio.Runner) -> None:
    """Where others may reach it, there is no open door."""
    client = Client(runner, create_app(store, open_to=None))
    assert client.get("/conversations").status_code == 401


def test_no_other_site_may_read(open_client: Client) -> None:
    """There is no CORS header, on a preflight neither."""
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for answer in (
        open_client.get("/conversations", headers=headers),
        open_client.request("OPTIONS", "/batch", headers=headers),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_link_opens_the_page_once(store: Store, runner: asyncio.Runner) -> None:
    """For a cookie that scripts cannot read and other sites cannot send; the API stays closed to it."""
    client, logins = with_logins(store, runner)
    store.keys.create()
    token = logins.offer()
    answer = client.get("/login", params={"token": token})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    session = {"Cookie": cookie.partition(";")[0]}
    pages = ("/", "/static/style.css", "/docs", "/openapi.json")
    assert [client.get(path, headers=session).status_code for path in pages] == [200] * 4
    assert client.get("/conversations", headers=session).status_code == 401
    assert client.post("/batch", {"events": []}, headers=session).status_code == 401
    assert client.get("/login", params={"token": token}).status_code == 401


@pytest.mark.parametrize("cookie", [f"{COOKIE}=wrong", f"{COOKIE}=", "=;;=", "\xff=\xff", f"{COOKIE}=\xe9"])
def test_odd_cookies_open_nothing(store: Store, runner: asyncio.Runner, cookie: str) -> None:
    """Wrong, empty or no cookies at all."""
    client, logins = with_logins(store, runner)
    store.keys.create()
    logins.redeem(logins.offer())
    assert client.get("/", headers=httpx.Headers([(b"Cookie", cookie.encode("latin-1"))])).status_code == 401


@pytest.mark.parametrize("token", ["", "wrong", "é", "\ud7ff"])
def test_wrong_tokens_open_nothing(store: Store, runner: asyncio.Runner, token: str) -> None:
    """And use none up."""
    client, logins = with_logins(store, runner)
    good = logins.offer()
    assert client.get("/login", params={"token": token}).status_code == 401
    assert client.get("/login", params={"token": good}).status_code == 303
