"""The web page: conversations and agents at a glance, rendered on the server, without scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, select_autoescape
from starlette.staticfiles import StaticFiles

from otel_agent_tracker.semconv import VERSION
from otel_agent_tracker.server.guard import COOKIE, Logins
from otel_agent_tracker.server.selection import Page, Selection
from otel_agent_tracker.server.store import Store

__all__ = ["install"]

SHORT_SECONDS = 0.1
_HERE = Path(__file__).parent
_router = APIRouter(include_in_schema=False)


def install(app: FastAPI) -> None:
    """Add the page, its files and the way in."""
    app.include_router(_router)
    app.mount("/static", StaticFiles(directory=_HERE / "static"))


@_router.head("/")
@_router.get("/")
def show(request: Request, cursor: Annotated[str | None, Query()] = None) -> HTMLResponse:
    """The newest conversations and all agents; times are UTC."""
    store: Store = request.app.state.store
    shown = _gather(store, request.state.project_id, cursor)
    return HTMLResponse(_templates.get_template("dashboard.html").render(version=VERSION, **shown))


@_router.get("/login")
async def log_in(request: Request, token: str = "") -> Response:
    """Trade a one-time token for a session of this browser."""
    logins: Logins = request.app.state.logins
    session = logins.redeem(token)
    if session is None:
        raise HTTPException(401, "this link was used already or is not this tracker's", _CHALLENGE)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        COOKIE, session, httponly=True, samesite="strict", secure=request.url.scheme == "https", path="/"
    )
    return answer


def _gather(store: Store, project_id: int, cursor: str | None) -> dict[str, Any]:
    return {
        "conversations": store.conversations.page(project_id, Selection(), Page(cursor=cursor)),
        "agents": store.agents.active(project_id, Page(limit=500)),
        "rates": store.figures.success_rates(project_id, Selection()),
        "times": store.figures.response_times(project_id, Selection()),
        "quality": store.figures.quality(project_id, Selection()),
    }


def _time(text: str | None) -> str:
    """An RFC 3339 time as people read it."""
    return "" if text is None else text[:19].replace("T", " ")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _seconds(seconds: float | None) -> str:
    """A duration as people read it: short ones in milliseconds."""
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= SHORT_SECONDS else f"{seconds * 1000:.1f} ms"


_templates = Environment(
    loader=FileSystemLoader(_HERE / "templates"), autoescape=select_autoescape(default=True), trim_blocks=True
)
_templates.filters.update(time=_time, percent=_percent, seconds=_seconds)
_CHALLENGE = {"WWW-Authenticate": "Bearer"}
