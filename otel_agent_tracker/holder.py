"""What every tracker object has: its configuration, its hold on a pipeline, and a way to ask the tracker."""

from __future__ import annotations

from typing import Any

from otel_agent_tracker.config import Config
from otel_agent_tracker.exceptions import TrackerUnavailable
from otel_agent_tracker.pipeline import Pipeline, acquire, is_substituted

__all__ = ["AsyncQuestions", "Holder", "Questions"]

Json = dict[str, Any]


class Holder:
    """Holds the shared pipeline of a destination until `release`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.pipeline: Pipeline = acquire(config)
        self._held = True

    def release(self) -> None:
        """Let go; idempotent. The pipeline closes with its last holder."""
        if self._held:
            self._held = False
            self.pipeline.release()


class Questions:
    """Asks the tracker; the client is made with the first question.

    Raises TrackerUnavailable where no tracker answers as one.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._client: Any = None

    def ask(self, query: Any) -> Json | None:
        """The tracker's JSON object, None on 404."""
        if self._client is None:
            from otel_agent_tracker.client import (
                TrackerClient,
            )  # a caller that never asks does not pay for it

            self._client = TrackerClient(_url(self._config), **_options(self._config))
        found: Json | None = self._client.get(query.path, query.query)
        return found

    def close(self) -> None:
        """Close the connections; a later question raises TrackerUnavailable."""
        if self._client is not None:
            self._client.close()


class AsyncQuestions:
    """`Questions` for asyncio."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._client: Any = None

    async def ask(self, query: Any) -> Json | None:
        """The tracker's JSON object, None on 404."""
        if self._client is None:
            from otel_agent_tracker.client import AsyncTrackerClient

            self._client = AsyncTrackerClient(_url(self._config), **_options(self._config))
        found: Json | None = await self._client.get(query.path, query.query)
        return found

    async def close(self) -> None:
        """Close the connections; a later question raises TrackerUnavailable."""
        if self._client is not None:
            await self._client.close()


def _url(config: Config) -> str:
    if is_substituted():
        raise TrackerUnavailable("events are recorded for a test: there is no tracker that could answer")
    if config.url is None:
        raise TrackerUnavailable("no tracker is configured: set AGENT_TRACKER_URL or pass base_url")
    return config.url


def _options(config: Config) -> dict[str, Any]:
    return {
        "api_key": config.key,
        "timeout_seconds": config.timeout_seconds,
        "trust_env": config.trust_env,
    }
