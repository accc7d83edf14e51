"""`AgentOperationsTracker`: which agents are up and what they are doing; and its asyncio twin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otel_agent_tracker import arguments, queries
from otel_agent_tracker.holder import Asynchronous, Synchronous
from otel_agent_tracker.pipeline import Pipeline
from otel_agent_tracker.semconv import AgentStatus

__all__ = ["AgentOperationsTracker", "AsyncAgentOperationsTracker"]

Json = dict[str, Any]


class _Agents:
    """Everything about agents that is accepted here; nothing of it waits for the network."""

    _pipeline: Pipeline

    def _register_agent(
        self, agent_id: str, sdk_version: str | None, metadata: Mapping[str, Any] | None
    ) -> None:
        self._pipeline.events.register(
            arguments.identifier("agent_id", agent_id),
            sdk_version=None if sdk_version is None else arguments.text("sdk_version", sdk_version),
            metadata=arguments.mapping("metadata", metadata),
        )

    def _update_agent_status(
        self,
        agent_id: str,
        status: AgentStatus | str,
        previous_status: AgentStatus | str | None,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        before = previous_status
        self._pipeline.events.status(
            arguments.identifier("agent_id", agent_id),
            arguments.member("status", status, AgentStatus),
            previous_status=None
            if before is None
            else arguments.member("previous_status", before, AgentStatus),
            metadata=arguments.mapping("metadata", metadata),
        )

    def _log_activity(self, agent_id: str, action: str, details: object, duration: float | None) -> None:
        self._pipeline.events.activity(
            arguments.identifier("agent_id", agent_id),
            arguments.text("action", action),
            details,
            duration=None if duration is None else arguments.seconds("duration", duration),
        )

    def _heartbeat(self, agent_id: str) -> None:
        self._pipeline.heartbeat(arguments.identifier("agent_id", agent_id))


class AgentOperationsTracker(_Agents, Synchronous):
    """Tracks agents: registration, status, activity, life signs.

    Arguments, promises and errors are those of `AgentPerformanceTracker`; both share the pipeline of their
    destination, which sends a heartbeat every minute for each agent seen in this process.
    """

    def register_agent(
        self, agent_id: str, sdk_version: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """The agent is there."""
        self._register_agent(agent_id, sdk_version, metadata)

    def update_agent_status(
        self,
        agent_id: str,
        status: AgentStatus | str,
        previous_status: AgentStatus | str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """The agent's status is now active, idle, busy, error, offline or initializing."""
        self._update_agent_status(agent_id, status, previous_status, metadata)

    def log_activity(
        self, agent_id: str, action: str, details: object = None, duration: float | None = None
    ) -> None:
        """The agent did something outside a conversation, for `duration` seconds until now."""
        self._log_activity(agent_id, action, details, duration)

    def heartbeat(self, agent_id: str) -> None:
        """The agent is alive: said at once, if the tracker can be reached and takes heartbeats; never kept."""
        self._heartbeat(agent_id)

    def get_active_agents(self) -> Json:
        """The agents that are not offline (remote; raises TrackerUnavailable)."""
        return self._ask(queries.active_agents()) or {}

    def get_agent_status(self, agent_id: str) -> Json | None:
        """One agent with its instances (remote); None if the tracker knows none."""
        return self._ask(queries.agent_status(agent_id))

    def get_recent_activity(self, limit: int = 50, agent_id: str | None = None) -> Json:
        """The newest activities (remote)."""
        return self._ask(queries.activity(limit, agent_id)) or {}

    def get_operations_overview(self) -> Json:
        """All agents at a glance (remote)."""
        return self._ask(queries.overview()) or {}


class AsyncAgentOperationsTracker(_Agents, Asynchronous):
    """`AgentOperationsTracker` for asyncio: the same methods, all awaitable; none blocks the loop."""

    async def register_agent(
        self, agent_id: str, sdk_version: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """See `AgentOperationsTracker.register_agent`."""
        self._register_agent(agent_id, sdk_version, metadata)

    async def update_agent_status(
        self,
        agent_id: str,
        status: AgentStatus | str,
        previous_status: AgentStatus | str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """See `AgentOperationsTracker.update_agent_status`."""
        self._update_agent_status(agent_id, status, previous_status, metadata)

    async def log_activity(
        self, agent_id: str, action: str, details: object = None, duration: float | None = None
    ) -> None:
        """See `AgentOperationsTracker.log_activity`."""
        self._log_activity(agent_id, action, details, duration)

    async def heartbeat(self, agent_id: str) -> None:
        """See `AgentOperationsTracker.heartbeat`."""
        self._heartbeat(agent_id)

    async def get_active_agents(self) -> Json:
        """See `AgentOperationsTracker.get_active_agents`."""
        return await self._ask(queries.active_agents()) or {}

    async def get_agent_status(self, agent_id: str) -> Json | None:
        """See `AgentOperationsTracker.get_agent_status`."""
        return await self._ask(queries.agent_status(agent_id))

    async def get_recent_activity(self, limit: int = 50, agent_id: str | None = None) -> Json:
        """See `AgentOperationsTracker.get_recent_activity`."""
        return await self._ask(queries.activity(limit, agent_id)) or {}

    async def get_operations_overview(self) -> Json:
        """See `AgentOperationsTracker.get_operations_overview`."""
        return await self._ask(queries.overview()) or {}
