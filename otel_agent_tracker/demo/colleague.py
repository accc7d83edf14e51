"""The second process: it goes on with a conversation, ends it and reports."""

from __future__ import annotations

import asyncio
import sys

from otel_agent_tracker import AsyncAgentPerformanceTracker, ConversationQuality
from otel_agent_tracker.demo.agents import travel_desk
from otel_agent_tracker.demo.handover import Report
from otel_agent_tracker.demo.stopwatch import Stopwatch

__all__ = ["go_on"]


async def go_on(url: str, folder: str, session_id: str) -> Report:
    """One more turn of the session, and its end."""
    agent, stopwatch, quality = travel_desk(), Stopwatch(), ConversationQuality.GOOD
    async with AsyncAgentPerformanceTracker(url, state_dir=folder) as tracker:
        async with tracker.turn(session_id):
            stopwatch.enter()
            await agent.run("And a train to Porto, please")
            stopwatch.lap()
        seconds = stopwatch.stop()
        await tracker.end_conversation(session_id, quality)
    return Report(seconds, quality)


if __name__ == "__main__":
    sys.stdout.write(asyncio.run(go_on(*sys.argv[1:])).to_json())
