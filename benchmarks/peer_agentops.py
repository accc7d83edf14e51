"""agentops: a trace, ended with success."""

from __future__ import annotations

import os

import agentops  # type: ignore[import-not-found]  # lives in an environment of its own
from opentelemetry import trace

__all__ = ["Peer"]


class Peer:
    """What stands for start and end of a conversation."""

    def __init__(self, url: str) -> None:
        os.environ["HTTPS_PROXY"] = url  # its metrics have an address of their own, and nothing may go there
        agentops.init(
            api_key="00000000-0000-4000-8000-000000000000",
            endpoint=url,
            exporter_endpoint=f"{url}/v1/traces",
            auto_start_session=False,
            instrument_llm_calls=False,
            log_level="CRITICAL",
            log_session_replay_url=False,
        )

    def call(self) -> None:
        """Start and end."""
        agentops.end_trace(agentops.start_trace("conversation", tags=["support-bot"]), "Success")

    def settle(self) -> None:
        """Wait until all is sent."""
        trace.get_tracer_provider().force_flush()  # type: ignore[attr-defined]  # the SDK's has it
