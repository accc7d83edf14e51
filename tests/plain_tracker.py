"""A tracker that knows only the plain protocol, as trackers in the field do, and answers 404 to all else."""

from __future__ import annotations

import re
from typing import Any

from tests.scripted_server import Action, ReceivedRequest, ScriptedServer, json_reply, reply, respond

__all__ = ["END", "EXPIRED", "POSTS", "START", "plain_tracker", "told"]

START, END, EXPIRED = "/conversations/start", "/conversations/end", "/conversations/expired"
POSTS = (START, END, EXPIRED, "/agents/register", "/agents/status", "/agents/activity")
Json = dict[str, Any]


def plain_tracker() -> ScriptedServer:
    """One that takes the six posts, answers each question with what was asked, but for ``nobody``."""
    return ScriptedServer(respond(_answer))


def told(server: ScriptedServer) -> list[tuple[str, Json]]:
    """The posts that came, as path and body; nothing was ever posted to a path that is not plain."""
    posts = [request for request in server.requests if request.method == "POST"]
    assert {request.path for request in posts} <= set(POSTS)
    bodies = [request.json() for request in posts]
    return [(post.path, body) for post, body in zip(posts, bodies, strict=True) if isinstance(body, dict)]


def _answer(request: ReceivedRequest) -> Action:
    if request.method == "POST":
        return json_reply({}, 201) if request.path in POSTS else reply(404)
    if request.method == "GET" and _QUESTIONS.fullmatch(request.path) and "nobody" not in request.path:
        return json_reply({"asked": request.target})
    return reply(404)


_QUESTIONS = re.compile(
    r"/conversations/[^/]+|/agents/(active|activity|[^/]+/status|[^/]+/activity)|/operations/overview"
    r"|/metrics/(success-rates|response-times|quality|failures|overview)"
)
