"""The way to the page for people: a link that works once, or a key in a form; both open a session."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from otel_agent_tracker.server.guard import COOKIE, Logins, demand_key
from otel_agent_tracker.server.store import Store

__all__ = ["install"]

_router = APIRouter(include_in_schema=False)


def install(app: FastAPI) -> None:
    """Add both ways in."""
    app.include_router(_router)


@_router.get("/login")
async def redeem_link(request: Request, token: str = "") -> Response:
    """Trade a one-time token for a session of this browser."""
    logins: Logins = request.app.state.logins
    session = logins.redeem(token)
    if session is None:
        return demand_key(request.scope, "this link was used already or is not this tracker's")
    return _enter(request, session)


@_router.post("/login")
async def give_key(request: Request) -> Response:
    """Trade a key for a session of this browser, which ends when the key is revoked."""
    if not _is_own_form(request):
        raise HTTPException(403, "the form of another site cannot log in here")
    store: Store = request.app.state.store
    logins: Logins = request.app.state.logins
    key = _read_key(await request.body())
    await run_in_threadpool(store.keys.refresh)
    if store.keys.project_of(key) is None:
        return demand_key(request.scope, "this key is not valid here")
    return _enter(request, logins.open(key))


def _enter(request: Request, session: str) -> Response:
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        COOKIE, session, httponly=True, samesite="strict", secure=request.url.scheme == "https", path="/"
    )
    return answer


def _is_own_form(request: Request) -> bool:
    """Whether this tracker's page sent it, or no browser at all; plain HTTP has only Origin to tell by."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("Host")


def _read_key(form: bytes) -> bytes:
    """The field `key` of a form; empty if it has none or more than one."""
    try:
        given = parse_qs(form.decode("ascii"), max_num_fields=4).get("key", [])
    except ValueError:
        return b""
    return given[0].strip().encode() if len(given) == 1 else b""
