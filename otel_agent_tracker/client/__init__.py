"""The clients of a tracker: the only users of the network and of the key.

Requests are built (`calls`) and answers judged (`answers`) without I/O, by functions that both clients
share. They speak through httpcore's connection pools, httpx's own transport, without httpx above them: that
saves a good third of the CPU of a request, and httpx would log every URL.
"""

from otel_agent_tracker.client.answers import Delivered, Misconfigured, NotOffered, Refused, Result, Retry
from otel_agent_tracker.client.calls import ApiKey
from otel_agent_tracker.client.clients import AsyncTrackerClient, TrackerClient
from otel_agent_tracker.client.routes import Verify, tls_context

__all__ = [
    "ApiKey",
    "AsyncTrackerClient",
    "Delivered",
    "Misconfigured",
    "NotOffered",
    "Refused",
    "Result",
    "Retry",
    "TrackerClient",
    "Verify",
    "tls_context",
]
