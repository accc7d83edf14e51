"""Strands Agents: conversations out of the spans that it emits by itself.

    pip install otel-agent-tracker 'strands-agents[openai]'

Start a tracker with `otel-agent-tracker serve`, then run this with AGENT_TRACKER_URL=http://localhost:8700 and
OPENAI_API_KEY set. The conversation's id is what `trace_attributes` says it is; a session manager's is not shown in
any span.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from strands import Agent, tool
from strands.models.openai import OpenAIModel

import otel_agent_tracker


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}."


agents: dict[str, Agent] = {}


def agent(conversation: str) -> Agent:
    """The conversation's agent, which remembers what was said."""
    if conversation not in agents:
        agents[conversation] = Agent(
            name="weather_bot",
            model=OpenAIModel(model_id="gpt-4o-mini"),
            system_prompt="Be brief.",
            tools=[tool(weather)],
            callback_handler=None,
            trace_attributes={"session.id": conversation},
        )
    return agents[conversation]


def answer(conversation: str, question: str) -> str:
    """One turn of a conversation."""
    return str(agent(conversation)(question))


async def answer_async(conversation: str, question: str) -> str:
    """The same for asyncio."""
    return str(await agent(conversation).invoke_async(question))


async def stream(conversation: str, question: str) -> AsyncIterator[str]:
    """The same in pieces, as they come."""
    async with aclosing(agent(conversation).stream_async(question)) as events:
        async for event in events:
            if "data" in event:
                yield event["data"]


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
    return otel_agent_tracker.install(provider)


if __name__ == "__main__":
    tracker = observe()
    asyncio.run(main())
    tracker.flush()
