"""Who may come in: an API key, a page's session cookie, or anyone on this machine while no key was ever made.

While it is open, requests must name this machine as their host: else any web page could reach it through a
name that it makes resolve to 127.0.0.1.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hmac import compare_digest
from http.cookies import CookieError, SimpleCookie
from threading import Lock
from time import monotonic

from sqlalchemy.exc import OperationalError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from otel_agent_tracker.server.keys import Keys, digest_of, looks_like_key
from otel_agent_tracker.server.rendering import render

__all__ = ["COOKIE", "Guard", "Logins", "demand_key", "unavailable"]

COOKIE = "otel_agent_tracker"
# The style sheet is in the package for all to read, and the form for a key needs it.
_OPEN_PATHS = frozenset({"/healthz", "/readyz", "/login", "/static/style.css"})
_PAGE_PATHS = ("/static/", "/docs", "/openapi.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A browser's session: of the key with this digest, or of a one-time token."""

    key_digest: bytes | None


class Logins:
    """One-time tokens, each good for one session, and the sessions of browsers; all die with the process."""

    def __init__(self) -> None:
        self._tokens: set[str] = set()
        self._sessions: dict[str, Session] = {}
        self._lock = Lock()

    def offer(self) -> str:
        """A new token for a link to the page."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._tokens.add(token)
        return token

    def redeem(self, token: str) -> str | None:
        """The session that a token opens; None if it is unknown or was used."""
        with self._lock:
            known = _find(self._tokens, token)
            if known is None:
                return None
            self._tokens.discard(known)
        return self._open(Session(key_digest=None))

    def open(self, key: bytes) -> str:
        """A session for whoever has this key, which the caller has checked."""
        return self._open(Session(key_digest=digest_of(key)))

    def find(self, session: str) -> Session | None:
        """The session that was opened under this name."""
        with self._lock:
            known = _find(self._sessions, session)
            return None if known is None else self._sessions[known]

    def _open(self, session: Session) -> str:
        name = secrets.token_urlsafe(32)
        with self._lock:
            self._sessions[name] = session
        return name


class Guard:
    """ASGI middleware which lets a request in with its project, or answers it.

    `open_to` are the hosts that a request may name while no key was ever made; None: a key is always needed.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        logins: Logins,
        default_project: int,
        open_to: frozenset[str] | None,
    ) -> None:
        self._app = app
        self._keys = keys
        self._logins = logins
        self._default_project = default_project
        self._open_to = open_to

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            admitted = await self._admit(scope)
        except OperationalError:
            admitted = unavailable()
        if isinstance(admitted, Response):
            await admitted(scope, receive, send)
        else:
            scope.setdefault("state", {})["project_id"] = admitted
            await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> int | Response:
        """The project that the request may use, or why it may not."""
        came, key = monotonic(), _given_key(scope)
        if self._keys.is_stale:
            await run_in_threadpool(self._keys.refresh)
        project_id = None if key is None else self._keys.project_of(key)
        if project_id is None and key is not None and looks_like_key(key):  # just made, maybe
            await run_in_threadpool(self._keys.refresh, came)
            project_id = self._keys.project_of(key)
        if self._open_to is not None and not self._keys.in_force:
            named = _headers(scope, b"host")
            return self._default_project if _is_one_of(named, self._open_to) else _refuse_host()
        if project_id is None and _is_page(scope):
            project_id = self._project_of_session(scope)
        return demand_key(scope) if project_id is None else project_id

    def _project_of_session(self, scope: Scope) -> int | None:
        """A link shows the default project, a key its own for as long as it is valid."""
        session = self._session(scope)
        if session is None:
            return None
        digest = session.key_digest
        return self._default_project if digest is None else self._keys.project_of_digest(digest)

    def _session(self, scope: Scope) -> Session | None:
        cookies: SimpleCookie = SimpleCookie()
        try:
            for header in _headers(scope, b"cookie"):
                cookies.load(header.decode("latin-1"))
        except CookieError:
            return None
        return self._logins.find(cookies[COOKIE].value) if COOKIE in cookies else None


def unavailable() -> Response:
    """The database cannot answer at the moment; the same request may succeed in a second."""
    return JSONResponse({"detail": "the database is busy or away"}, 503, _TRY_AGAIN)


def demand_key(scope: Scope, reason: str = "an API key is needed") -> Response:
    """401: a form for a key where a browser asks for a page, else JSON."""
    if _is_for_people(scope):
        return render("login.html", 401, dict(_CHALLENGE), reason=reason)
    return JSONResponse({"detail": reason}, 401, _CHALLENGE)


def _given_key(scope: Scope) -> bytes | None:
    given = _headers(scope, b"authorization")
    if len(given) != 1:
        return None
    scheme, _, key = given[0].partition(b" ")
    key = key.strip(b" ")
    return key if scheme.lower() == b"bearer" and key else None


def _headers(scope: Scope, name: bytes) -> list[bytes]:
    return [value for header, value in scope["headers"] if header == name]


def _is_page(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD") and (
        scope["path"] == "/" or scope["path"].startswith(_PAGE_PATHS)
    )


def _is_for_people(scope: Scope) -> bool:
    accepted = b",".join(_headers(scope, b"accept"))
    return b"text/html" in accepted and (scope["path"] == "/login" or _is_page(scope))


def _is_one_of(named: list[bytes], accepted: frozenset[str]) -> bool:
    return len(named) == 1 and _host_name(named[0].decode("latin-1")) in accepted


def _host_name(host: str) -> str:
    """A Host header without its port."""
    name = host.lower()
    return name[: name.index("]") + 1] if name.startswith("[") and "]" in name else name.partition(":")[0]


def _refuse_host() -> Response:
    return JSONResponse({"detail": "this host name is not this tracker's"}, 421)


def _find(known: Collection[str], given: str) -> str | None:
    """The equal one; the time it takes tells nothing of how near the others are."""
    found = None
    for each in known:
        if compare_digest(each.encode(), given.encode("utf-8", "surrogatepass")):
            found = each
    return found


_CHALLENGE: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}
_TRY_AGAIN: Mapping[str, str] = {"Retry-After": "1"}
