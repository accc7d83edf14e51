"""Agno: conversations out of the spans of whichever instrumentation is installed.

    pip install otel-agent-tracker agno openai openinference-instrumentation-agno

Start a tracker with `otel-agent-tracker serve`, then run this with AGENT_TRACKER_URL=http://localhost:8700 and
OPENAI_API_KEY set. The conversation's id is the `session_id` of a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from importlib.metadata import entry_points

from agno.agent import Agent, RunContentEvent
from agno.db.in_memory import InMemoryDb
from agno.models.openai import OpenAIChat
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import otel_agent_tracker


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}."


memory = InMemoryDb()


def new_agent() -> Agent:
    """An agent for one run; what was said is in the memory."""
    return Agent(
        name="weather_bot",
        model=OpenAIChat(id="gpt-4o-mini"),
        instructions="Be brief.",
        tools=[weather],
        db=memory,
        add_history_to_context=True,
        telemetry=False,
    )


def answer(conversation: str, question: str) -> str:
    """One turn of a conversation."""
    return str(new_agent().run(question, session_id=conversation).content)


async def answer_async(conversation: str, question: str) -> str:
    """The same for asyncio."""
    run = await new_agent().arun(question, session_id=conversation)
    return str(run.content)


async def stream(conversation: str, question: str) -> AsyncIterator[str]:
    """The same in pieces, as they come."""
    async with aclosing(new_agent().arun(question, session_id=conversation, stream=True)) as events:
        async for event in events:
            if isinstance(event, RunContentEvent):
                yield str(event.content)


async def main() -> None:
    """A conversation of three turns."""
    print(await answer_async("chat-42", "What is the weather in Paris?"))
    print(await answer_async("chat-42", "And what do I wear?"))
    async for piece in stream("chat-42", "Tell me more."):
        print(piece, end="", flush=True)
    print()


def observe() -> otel_agent_tracker.AgentPerformanceTracker:
    """Make a provider and have its spans read; `otel-agent-tracker run` does that with no code."""
    provider = TracerProvider()
    trace.set_tracer_provider(provider)
    for instrumentation in entry_points(group="opentelemetry_instrumentor"):
        instrumentation.load()().instrument(tracer_provider=provider)
    return otel_agent_tracker.install(provider)


if __name__ == "__main__":
    tracker = observe()
    asyncio.run(main())
    tracker.flush()
