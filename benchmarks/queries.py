"""What is asked of a tracker that knows a million conversations: each page and each query of figures."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["QUERIES"]

_METRICS = ("success-rates", "response-times", "quality", "failures", "overview")

QUERIES: Mapping[str, str] = {
    "the page": "/",
    "conversations": "/conversations",
    "conversations of an agent": "/conversations?agent_id={agent}",
    "conversations that failed": "/conversations?status=failed",
    "conversations of a week": "/conversations?start_date={week}",
    "open conversations": "/conversations/active",
    "a session": "/conversations/{session}",
    "agents": "/agents/active",
    "an agent": "/agents/{agent}/status",
    "activity": "/agents/activity",
    "activity of an agent": "/agents/{agent}/activity",
    "all agents at a glance": "/operations/overview",
    **{f"{name}": f"/metrics/{name}" for name in _METRICS},
    **{f"{name} of an agent": f"/metrics/{name}?agent_id={{agent}}" for name in _METRICS},
    **{f"{name} of a week": f"/metrics/{name}?start_date={{week}}" for name in _METRICS},
}
"""What it is, and its path; `agent`, `session` and `week` (the date a week ago) are filled in."""
