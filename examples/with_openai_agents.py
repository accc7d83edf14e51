"""The OpenAI Agents SDK: conversations out of the spans of whichever instrumentation is installed.

    pip install otel-agent-tracker openai-agents \
        opentelemetry-instrumentation-genai-openai-agents opentelemetry-instrumentation-genai-openai

Start a tracker with `otel-agent-tracker serve`, then run this with AGENT_TRACKER_URL=http://localhost:8700 and
OPENAI_API_KEY set. The conversation's id is the `group_id`; a session of the SDK is not shown in any span. For
instrumentations that do not show the `group_id` either, put `with otel_agent_tracker.session(conversation):` around
each run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib.metadata import entry_points

from agents import Agent, RunConfig, Runner, SQLiteSession, function_tool, set_trace_processors
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import otel_agent_tracker


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}."


agent = Agent(
    name="weather_bot", instructions="Be brief.", model="gpt-4o-mini", tools=[function_tool(weather)]
)
sessions: dict[str, SQLiteSession] = {}


def memory(conversation: str) -> SQLiteSession:
    """What was said in the conversation."""
    return sessions.setdefault(conversation, SQLiteSession(conversation))


def answer(conversation: str, question: str) -> str:
    """One turn of a conversation."""
    configuration = RunConfig(group_id=conversation)
    run = Runner.run_sync(agent, question, session=memory(conversation), run_config=configuration)
    return str(run.final_output)


async def answer_async(conversation: str, question: str) -> str:
    """The same for asyncio."""
    configuration = RunConfig(group_id=conversation)
    run = await Runner.run(agent, question, session=memory(conversation), run_config=configuration)
    return str(run.final_output)


async def stream(conversation: str, question: str) -> AsyncIterator[str]:
    """The same in pieces, as they come."""
    configuration = RunConfig(group_id=conversation)
    run = Runner.run_streamed(agent, question, session=memory(conversation), run_config=configuration)
    async for event in run.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            yield event.data.delta


async def main() -> None:
    """A conversation of three turns."""
    print(await answer_async("chat-42", "What is the weather in Paris?"))
    print(await answer_async("chat-42", "And what do I wear?"))
    async for piece in stream("chat-42", "Tell me more."):
        print(piece, end="", flush=True)
    print()


def observe() -> otel_agent_tracker.AgentPerformanceTracker:
    """Make a provider and have its spans read; `otel-agent-tracker run` does that with no code."""
    set_trace_processors([])  # the SDK would send its traces to OpenAI as well
    provider = TracerProvider()
    trace.set_tracer_provider(provider)
    for instrumentation in entry_points(group="opentelemetry_instrumentor"):
        instrumentation.load()().instrument(tracer_provider=provider)
    return otel_agent_tracker.install(provider)


if __name__ == "__main__":
    tracker = observe()
    asyncio.run(main())
    tracker.flush()
