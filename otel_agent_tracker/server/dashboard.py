"""The web page: conversations and agents at a glance, rendered on the server, without scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from otel_agent_tracker.semconv import VERSION
from otel_agent_tracker.server.rendering import render
from otel_agent_tracker.server.selection import Page, Selection
from otel_agent_tracker.server.store import Store

__all__ = ["install"]

_router = APIRouter(include_in_schema=False)


def install(app: FastAPI) -> None:
    """Add the page and its files."""
    app.include_router(_router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))


@_router.head("/")
@_router.get("/")
def show(request: Request, cursor: Annotated[str | None, Query()] = None) -> HTMLResponse:
    """The newest conversations and all agents; times are UTC."""
    store: Store = request.app.state.store
    return render("dashboard.html", version=VERSION, **_gather(store, request.state.project_id, cursor))


def _gather(store: Store, project_id: int, cursor: str | None) -> dict[str, Any]:
    return {
        "conversations": store.conversations.page(project_id, Selection(), Page(cursor=cursor)),
        "agents": store.agents.active(project_id, Page(limit=500)),
        "rates": store.figures.success_rates(project_id, Selection()),
        "times": store.figures.response_times(project_id, Selection()),
        "quality": store.figures.quality(project_id, Selection()),
    }
