"""The tracker as an ASGI application: a function of its parts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.concurrency import run_in_threadpool

from otel_agent_tracker.log import Log, SparingLog
from otel_agent_tracker.semconv import VERSION
from otel_agent_tracker.server import dashboard, login, reference, routes
from otel_agent_tracker.server.guard import Guard, Logins, unavailable
from otel_agent_tracker.server.limits import BodyLimit, SecurityHeaders
from otel_agent_tracker.server.selection import InvalidCursor
from otel_agent_tracker.server.store import Store

__all__ = ["LOOPBACK_HOSTS", "create_app"]

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
SWEEP_INTERVAL_SECONDS = 60.0
_logger = logging.getLogger(__name__)


def create_app(
    store: Store,
    *,
    logins: Logins | None = None,
    open_to: frozenset[str] | None = LOOPBACK_HOSTS,
    sweep_interval_seconds: float = SWEEP_INTERVAL_SECONDS,
) -> FastAPI:
    """The REST API and the page over `store`, which the caller closes.

    While no key was ever made, whoever names one of the hosts `open_to` may do anything; None: keys always.
    """
    logins = logins or Logins()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with _in_background(lambda: _keep_house(store, sweep_interval_seconds)):
            yield

    app = FastAPI(
        title="otel-agent-tracker",
        version=VERSION,
        summary="Conversations of AI agents: which are open, how each ended, how fast agents answer.",
        openapi_tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
        lifespan=lifespan,
        redirect_slashes=False,  # an id may end with a slash
        docs_url=None,  # the framework's own page loads its scripts from other hosts
        redoc_url=None,
    )
    app.state.store = store
    app.state.logins = logins
    app.state.log = SparingLog(Log(__name__))
    app.include_router(routes.router)
    dashboard.install(app)
    login.install(app)
    reference.install(app)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(InvalidCursor, _answer_invalid_cursor)
    app.add_exception_handler(OperationalError, _answer_unavailable)
    app.add_middleware(BodyLimit)
    app.add_middleware(
        Guard, keys=store.keys, logins=logins, default_project=store.default_project, open_to=open_to
    )
    app.add_middleware(SecurityHeaders)
    return app


async def _answer_invalid(_: Request, error: Exception) -> Response:
    """What was wrong where; not what was sent, which may be large and nobody else's business."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    told = ("type", "loc", "msg")
    return JSONResponse(
        {"detail": [{name: each[name] for name in told} for each in error.errors()[:20]]}, 422
    )


async def _answer_invalid_cursor(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 422)


async def _answer_unavailable(request: Request, error: Exception) -> Response:
    log: SparingLog = request.app.state.log
    log.warning(time.monotonic(), "the database cannot answer: %s", getattr(error, "orig", error))
    return unavailable()


@asynccontextmanager
async def _in_background(work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _keep_house(store: Store, interval_seconds: float) -> None:
    """End what is silent and note which keys were used, now and every minute."""
    while True:
        try:
            await run_in_threadpool(store.end_silent)
            await run_in_threadpool(store.keys.write_usage)
        except OperationalError as error:
            _logger.warning("silent conversations stay open for now: %s", error.orig)
        await asyncio.sleep(interval_seconds)


_TAGS = {
    "conversations": "What is reported and known of conversations.",
    "agents": "What is reported and known of agents.",
    "metrics": "Figures over conversations and turns.",
    "operations": "All agents at a glance.",
    "system": "The tracker itself, and many requests at once.",
}
