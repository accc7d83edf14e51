"""logfire: a span with the attributes of a conversation, sent to its backend's address."""

from __future__ import annotations

import logfire  # type: ignore[import-not-found]  # lives in an environment of its own

__all__ = ["Peer"]


class Peer:
    """What stands for start and end of a conversation."""

    def __init__(self, url: str) -> None:
        logfire.configure(
            token="pylf_v1_local_benchmark",
            console=False,
            metrics=False,
            inspect_arguments=False,
            advanced=logfire.AdvancedOptions(base_url=url),
        )

    def call(self) -> None:
        """Start, end and rate."""
        with logfire.span(
            "conversation",
            session_id="support-bot_1674123456_a1b2c3d4e5f60718",
            agent_id="support-bot",
            user_id="user-000000000000001",
        ) as span:
            span.set_attribute("quality", 4)

    def settle(self) -> None:
        """Wait until all is sent."""
        logfire.force_flush()
