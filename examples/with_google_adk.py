"""Google's Agent Development Kit: conversations out of the spans that it emits by itself.

    pip install otel-agent-tracker google-adk

Start a tracker with `otel-agent-tracker serve`, then run this with AGENT_TRACKER_URL=http://localhost:8700 and
GOOGLE_API_KEY set. The conversation's id is that of the session.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from google.adk.agents import LlmAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.runners import Runner
from google.adk.sessions import InMemorySessionService
from google.genai import types
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import otel_agent_tracker


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}."


memory = InMemorySessionService()


def new_runner() -> Runner:
    """An agent for one run, whose model's client belongs to one event loop; what was said is in the memory."""
    agent = LlmAgent(name="weather_bot", model="gemini-2.5-flash", instruction="Be brief.", tools=[weather])
    return Runner(app_name="weather", agent=agent, session_service=memory, auto_create_session=True)


def said(question: str) -> types.Content:
    """What a turn begins with."""
    return types.Content(role="user", parts=[types.Part(text=question)])


def answer(conversation: str, question: str) -> str:
    """One turn of a conversation."""
    return asyncio.run(answer_async(conversation, question))


async def answer_async(conversation: str, question: str) -> str:
    """The same for asyncio."""
    run = new_runner().run_async(user_id="u1", session_id=conversation, new_message=said(question))
    answers = [event.content async for event in run if event.is_final_response() and event.content]
    return "".join(part.text or "" for content in answers for part in content.parts or ())


async def stream(conversation: str, question: str) -> AsyncIterator[str]:
    """The same in pieces, as they come."""
    run = new_runner().run_async(
        user_id="u1",
        session_id=conversation,
        new_message=said(question),
        run_config=RunConfig(streaming_mode=StreamingMode.SSE),
    )
    async with aclosing(run):
        async for event in run:
            if event.partial and event.content:
                for part in event.content.parts or ():
                    yield part.text or ""


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
