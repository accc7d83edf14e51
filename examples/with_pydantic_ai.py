"""Pydantic AI: conversations with turns, tokens and failures, out of the spans that it emits by itself.

    pip install otel-agent-tracker 'pydantic-ai-slim[openai]'

Start a tracker with `otel-agent-tracker serve`, then run this with AGENT_TRACKER_URL=http://localhost:8700 and
OPENAI_API_KEY set.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from pydantic_ai import Agent, ModelMessage

import otel_agent_tracker

Agent.instrument_all()  # Pydantic AI makes spans when it is told to


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}."


agent = Agent("openai-chat:gpt-4o-mini", name="weather_bot", instructions="Be brief.", tools=[weather])
history: dict[str, list[ModelMessage]] = {}


def answer(conversation: str, question: str) -> str:
    """One turn of a conversation."""
    run = agent.run_sync(question, message_history=history.get(conversation), conversation_id=conversation)
    history[conversation] = run.all_messages()
    return run.output


async def answer_async(conversation: str, question: str) -> str:
    """The same for asyncio."""
    run = await agent.run(question, message_history=history.get(conversation), conversation_id=conversation)
    history[conversation] = run.all_messages()
    return run.output


async def stream(conversation: str, question: str) -> AsyncIterator[str]:
    """The same in pieces, as they come."""
    async with agent.run_stream(
        question, message_history=history.get(conversation), conversation_id=conversation
    ) as run:
        async for piece in run.stream_text(delta=True):
            yield piece
        history[conversation] = run.all_messages()


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
