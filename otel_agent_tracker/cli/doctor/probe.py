"""The probe: a conversation sent the whole way, seen in the tracker, and removed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from otel_agent_tracker import AgentPerformanceTracker, queries
from otel_agent_tracker.cli.doctor.checks import Check, ok, warning, wrong
from otel_agent_tracker.cli.options import connected
from otel_agent_tracker.config import Config, Options
from otel_agent_tracker.exceptions import TrackerUnavailable
from otel_agent_tracker.semconv import Outcome

if TYPE_CHECKING:
    from otel_agent_tracker.client import TrackerClient

__all__ = ["AGENT", "send_probe"]

AGENT = "otel-agent-tracker-doctor"
VISIBLE_WITHIN = 15.0  # seconds
_POLL_SECONDS = 0.05


def send_probe(config: Config, visible_within: float = VISIBLE_WITHIN) -> Iterator[Check]:
    """Start and end a conversation, wait until the tracker shows it, and have it removed.

    It takes a state folder of its own, so that nothing of it waits among the application's events.
    """
    with TemporaryDirectory(prefix="otel-agent-tracker-doctor-") as folder, connected(config) as client:
        with _library(config, folder) as library:
            session_id = library.start_conversation(AGENT)
            library.end_conversation(session_id)
            seconds = _seconds_until_visible(client, session_id, visible_within)
            was_delivered = library.flush(1.0) and not library.delivery_stats()["dead_lettered"]
        yield _check_seen(session_id, seconds, was_delivered)
        if was_delivered:
            yield _check_removed(client, session_id)


def _library(config: Config, folder: str) -> AgentPerformanceTracker:
    options: Options = {
        "state_dir": folder,
        "timeout_seconds": config.timeout_seconds,
        "flush_timeout_seconds": 1.0,
        "trust_env": config.trust_env,
        "allow_insecure": config.allow_insecure,
        "durability": "disk",
        "otlp": False,
    }
    if config.api_key_file is not None:
        options["api_key_file"] = config.api_key_file
    return AgentPerformanceTracker(config.url, config.api_key, **options)


def _seconds_until_visible(client: TrackerClient, session_id: str, limit: float) -> float | None:
    """How long the tracker took to show the conversation ended; None if it did not."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < limit:
        if _status(client, session_id) == Outcome.COMPLETED:
            return time.monotonic() - began
        time.sleep(min(_POLL_SECONDS, limit - waited))
    return None


def _status(client: TrackerClient, session_id: str) -> object:
    query = queries.session(session_id)
    try:
        return (client.get(query.path, query.query) or {}).get("status")
    except TrackerUnavailable:
        return None


def _check_seen(session_id: str, seconds: float | None, was_delivered: bool) -> Check:
    if seconds is not None:
        return ok("probe", f"{session_id} was visible {seconds:.2f} s after its end")
    if was_delivered:
        advice = "Does GET /conversations/{session_id} go to the same tracker as what is posted?"
        return wrong("probe", f"{session_id} was taken, but is not shown as completed.", advice)
    return wrong("probe", f"{session_id} was not taken.", "See the warnings above, and the tracker's log.")


def _check_removed(client: TrackerClient, session_id: str) -> Check:
    query = queries.session(session_id)
    advice = f"Remove it there by hand if it disturbs: agent {AGENT}."
    try:
        if client.delete(query.path, query.query):
            return ok("removal", "the probe is removed")
    except TrackerUnavailable as error:
        return warning("removal", f"The probe stays as {session_id}: {error}.", advice)
    return warning("removal", f"This tracker removes nothing; the probe stays as {session_id}.", advice)
