"""Which agents are up and what they are doing: registration, status and activity.

Start a tracker with `otel-agent-tracker serve`, then run this with AGENT_TRACKER_URL=http://localhost:8700.
"""

from __future__ import annotations

from time import monotonic

from otel_agent_tracker import AgentOperationsTracker, AgentStatus


def rebuild_index() -> int:
    """Stands for what an agent does when nobody talks to it."""
    return sum(range(100_000))


def main() -> None:
    """Report, and ask for all agents at a glance."""
    with AgentOperationsTracker() as operations:
        operations.register_agent("librarian", sdk_version="1.4.0", metadata={"team": "search"})
        operations.update_agent_status("librarian", AgentStatus.BUSY)
        began = monotonic()
        documents = rebuild_index()
        operations.log_activity("librarian", "index rebuilt", {"documents": documents}, monotonic() - began)
        operations.update_agent_status("librarian", AgentStatus.IDLE, previous_status=AgentStatus.BUSY)
        operations.flush()
        overview = operations.get_operations_overview()
    newest = overview["recent_activity"][0]
    print(f"{newest['agent_id']}: {newest['action']}; {overview['agents_by_status']['idle']} agent idle")


if __name__ == "__main__":
    main()
