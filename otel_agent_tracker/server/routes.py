"""The REST API: a handler parses, calls one method of the store and answers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import PlainValidator
from sqlalchemy.exc import OperationalError

from otel_agent_tracker import wire
from otel_agent_tracker.server import arrivals
from otel_agent_tracker.server.arrivals import Arrival, UnknownPath
from otel_agent_tracker.server.guard import unavailable
from otel_agent_tracker.server.selection import Page, Period, Selection, read_period
from otel_agent_tracker.server.store import Store

__all__ = ["MAX_BATCH_EVENTS", "router"]

MAX_BATCH_EVENTS = 500
_Found = TypeVar("_Found")


class _JsonRequest(Request):
    """Reads JSON with orjson, which takes only what it can write: no NaN, no lone surrogates."""

    async def json(self) -> Any:
        return orjson.loads(await self.body())


class _JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return handle_json


router = APIRouter(route_class=_JsonRoute)


# --- what handlers are given --------------------------------------------------------------------------------


async def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


async def _project_id(request: Request) -> int:
    project_id: int = request.state.project_id
    return project_id


async def _period(
    start_date: str | None = None, end_date: str | None = None, tz: str | None = None
) -> Period:
    """ISO 8601 dates or times; a date includes that whole day in `tz` (default UTC)."""
    try:
        return read_period(start_date, end_date, tz)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


async def _page(limit: Annotated[int, Query(ge=0)] = 50, cursor: str | None = None) -> Page:
    return Page(limit=limit, cursor=cursor)


TheStore = Annotated[Store, Depends(_store)]
ProjectId = Annotated[int, Depends(_project_id)]
ThePeriod = Annotated[Period, Depends(_period)]
ThePage = Annotated[Page, Depends(_page)]
AgentId = Annotated[str | None, Query(description="only this agent")]


# --- what is posted -----------------------------------------------------------------------------------------


def _endpoint(request_type: type[wire.Request]) -> Callable[..., wire.BatchResult]:
    def post(
        body: Any,
        store: TheStore,
        project_id: ProjectId,
        idempotency_key: Annotated[str | None, Header(description="the event's id")] = None,
    ) -> wire.BatchResult:
        try:
            arrival = arrivals.arrive(body, idempotency_key)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        if refusal := store.ingest(project_id, [arrival])[0]:
            raise HTTPException(422, refusal)
        return wire.BatchResult(event_id=arrival.event_id, status=200)

    post.__annotations__["body"] = request_type
    post.__doc__ = request_type.__doc__
    return post


for _path, _request_type in wire.REQUESTS.items():
    router.post(
        _path,
        name=_request_type.__name__,
        summary=(_request_type.__doc__ or "").partition(".")[0],
        tags=[_path.split("/")[1]],
        response_model_exclude_none=True,
    )(_endpoint(_request_type))


def _read_batch(value: object) -> list[object]:
    """The events of a batch, each to be judged for itself."""
    events = value.get("events") if isinstance(value, dict) else None
    if not isinstance(events, list):
        raise ValueError('a batch must be an object {"events": [...]}')  # noqa: TRY004 - pydantic's protocol
    return events


BatchEvents = Annotated[list[object], PlainValidator(_read_batch, json_schema_input_type=wire.BatchRequest)]


@router.post(
    wire.BatchRequest.PATH,
    response_model=wire.BatchAnswer,
    summary="Post many requests at once",
    tags=["system"],
)
def post_batch(events: BatchEvents, store: TheStore, project_id: ProjectId) -> Response:
    """Many requests at once; each is answered as it would be alone, and none spoils the others."""
    if len(events) > MAX_BATCH_EVENTS:
        raise HTTPException(413, f"a batch must not hold more than {MAX_BATCH_EVENTS} events")
    read = [_read_batch_event(event) for event in events]
    arrived = [each for each in read if isinstance(each, Arrival)]
    refusals = iter(store.ingest(project_id, arrived))
    results = [_result(each, next(refusals)) if isinstance(each, Arrival) else each for each in read]
    # Written here: the framework would check each of the results again, at a third of the whole batch's cost.
    answer = orjson.dumps({"results": [wire.to_json(each) for each in results]})
    return Response(answer, media_type="application/json")


def _read_batch_event(event: object) -> Arrival | wire.BatchResult:
    try:
        return arrivals.read_batch_event(event)
    except ValueError as error:
        given = event.get("event_id") if isinstance(event, dict) else None
        status = 404 if isinstance(error, UnknownPath) else 422
        event_id = given if isinstance(given, str) else ""
        return wire.BatchResult(event_id=event_id, status=status, error=str(error))


def _result(arrival: Arrival, refusal: str | None) -> wire.BatchResult:
    return wire.BatchResult(event_id=arrival.event_id, status=422 if refusal else 200, error=refusal)


# --- conversations ------------------------------------------------------------------------------------------


def _found(value: _Found | None, what: str) -> _Found:
    if value is None:
        raise HTTPException(404, f"unknown {what}")
    return value


@router.get("/conversations", summary="List conversations", tags=["conversations"])
def get_conversations(
    store: TheStore,
    project_id: ProjectId,
    page: ThePage,
    period: ThePeriod,
    agent_id: AgentId = None,
    user_id: str | None = None,
    status: wire.OutcomeName | None = None,
    session_id: Annotated[str | None, Query(description="answers as /conversations/{session_id}")] = None,
) -> wire.Conversations | wire.ConversationAnswer:
    """Conversations by their start, newest first; or one, by an id that no path can carry."""
    if session_id is not None:
        return _found(store.conversations.get(project_id, session_id), "session_id")
    selection = Selection(agent_id=agent_id, user_id=user_id, status=status, period=period)
    return store.conversations.page(project_id, selection, page)


@router.get("/conversations/active", summary="List open conversations", tags=["conversations"])
def get_active_conversations(
    store: TheStore, project_id: ProjectId, page: ThePage, agent_id: AgentId = None
) -> wire.Conversations:
    """Conversations without an outcome, newest first."""
    return store.conversations.active(project_id, agent_id, page)


@router.get("/conversations/{session_id:path}", summary="Get a session", tags=["conversations"])
def get_conversation(session_id: str, store: TheStore, project_id: ProjectId) -> wire.ConversationAnswer:
    """A session's newest conversation, with all of them as its episodes."""
    return _found(store.conversations.get(project_id, session_id), "session_id")


@router.delete("/conversations", status_code=204, summary="Delete a session by query", tags=["conversations"])
def delete_conversations_by_query(session_id: str, store: TheStore, project_id: ProjectId) -> None:
    """Delete a session, by an id that no path can carry."""
    _found(store.erase(project_id, session_id) or None, "session_id")


@router.delete(
    "/conversations/{session_id:path}", status_code=204, summary="Delete a session", tags=["conversations"]
)
def delete_conversations(session_id: str, store: TheStore, project_id: ProjectId) -> None:
    """Delete a session: its conversations, turns and feedback, and what was reported of them."""
    _found(store.erase(project_id, session_id) or None, "session_id")


# --- agents -------------------------------------------------------------------------------------------------


@router.get("/agents/active", summary="List agents that are not offline", tags=["agents"])
def get_active_agents(store: TheStore, project_id: ProjectId, page: ThePage) -> wire.Agents:
    """Agents that are not offline; silent ones are marked."""
    return store.agents.active(project_id, page)


@router.get("/agents/activity", summary="List what all agents did", tags=["agents"])
def get_activity(
    store: TheStore, project_id: ProjectId, page: ThePage, agent_id: AgentId = None
) -> wire.Activities:
    """What agents did outside conversations, newest first."""
    return store.agents.activity(project_id, agent_id, page)


@router.get("/agents/status", summary="Get an agent by query", tags=["agents"])
def get_agent_status_by_query(
    agent_id: str, store: TheStore, project_id: ProjectId
) -> wire.AgentStatusAnswer:
    """An agent and its processes, for an id that no path can carry."""
    return _found(store.agents.status(project_id, agent_id), "agent_id")


@router.get("/agents/{agent_id:path}/status", summary="Get an agent", tags=["agents"])
def get_agent_status(agent_id: str, store: TheStore, project_id: ProjectId) -> wire.AgentStatusAnswer:
    """An agent and the processes it runs in."""
    return _found(store.agents.status(project_id, agent_id), "agent_id")


@router.get("/agents/{agent_id:path}/activity", summary="List what an agent did", tags=["agents"])
def get_agent_activity(
    agent_id: str, store: TheStore, project_id: ProjectId, page: ThePage
) -> wire.Activities:
    """What an agent did outside conversations, newest first."""
    return store.agents.activity(project_id, agent_id, page)


@router.get("/operations/overview", summary="Get all agents at a glance", tags=["operations"])
def get_operations_overview(store: TheStore, project_id: ProjectId) -> wire.OperationsOverview:
    """All agents at a glance."""
    return store.agents.overview(project_id)


# --- figures ------------------------------------------------------------------------------------------------


async def _selection(period: ThePeriod, agent_id: AgentId = None) -> Selection:
    return Selection(agent_id=agent_id, period=period)


TheSelection = Annotated[Selection, Depends(_selection)]


@router.get("/metrics/success-rates", summary="Get success rates", tags=["metrics"])
def get_success_rates(store: TheStore, project_id: ProjectId, selection: TheSelection) -> wire.SuccessRates:
    """How many conversations ended how."""
    return store.figures.success_rates(project_id, selection)


@router.get("/metrics/response-times", summary="Get response times", tags=["metrics"])
def get_response_times(store: TheStore, project_id: ProjectId, selection: TheSelection) -> wire.ResponseTimes:
    """How long turns took, in seconds; percentiles are exact, by nearest rank."""
    return store.figures.response_times(project_id, selection)


@router.get("/metrics/quality", summary="Get quality", tags=["metrics"])
def get_quality(store: TheStore, project_id: ProjectId, selection: TheSelection) -> wire.Quality:
    """How conversations were rated."""
    return store.figures.quality(project_id, selection)


@router.get("/metrics/failures", summary="List failures", tags=["metrics"])
def get_failures(
    store: TheStore, project_id: ProjectId, selection: TheSelection, page: ThePage
) -> wire.Failures:
    """Failed conversations, the last that ended first."""
    return store.figures.failures(project_id, selection, page)


@router.get("/metrics/overview", summary="Get all four figures", tags=["metrics"])
def get_performance_overview(
    store: TheStore, project_id: ProjectId, selection: TheSelection, page: ThePage
) -> wire.PerformanceOverview:
    """The four figures, of one moment."""
    return store.figures.overview(project_id, selection, page)


# --- the tracker itself -------------------------------------------------------------------------------------


@router.get(wire.Capabilities.PATH, summary="Get what this tracker offers", tags=["system"])
async def get_capabilities() -> wire.Capabilities:
    """What this tracker offers beyond the plain protocol."""
    return wire.Capabilities(
        batch={"path": wire.BatchRequest.PATH, "max_events": MAX_BATCH_EVENTS},
        turns={"path": wire.ConversationTurn.PATH},
        feedback={"path": wire.ConversationFeedback.PATH},
        heartbeat={"path": wire.AgentHeartbeat.PATH},
        queries={"path": "/conversations"},
    )


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Check that the process is up", tags=["system"])
async def get_health() -> dict[str, str]:
    """The process is up."""
    return {"status": "up"}


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    responses={503: {"description": "the database does not answer"}},
    summary="Check that the database answers",
    tags=["system"],
)
def get_readiness(store: TheStore) -> Response:
    """The database answers."""
    try:
        store.check()
    except OperationalError:
        return unavailable()
    return JSONResponse({"status": "ready"})
