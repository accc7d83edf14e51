"""LangGraph: conversations out of the spans of whichever instrumentation of LangChain is installed.

    pip install otel-agent-tracker langchain langgraph langchain-openai opentelemetry-instrumentation-genai-langchain

Start a tracker with `otel-agent-tracker serve`, then run this with AGENT_TRACKER_URL=http://localhost:8700 and
OPENAI_API_KEY set. The conversation's id is the `thread_id` of the configuration.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from importlib.metadata import entry_points

from langchain.agents import create_agent
from langchain_core.runnables import RunnableConfig
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import otel_agent_tracker


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}."


agent = create_agent(
    ChatOpenAI(model="gpt-4o-mini", stream_usage=True),
    name="weather_bot",
    system_prompt="Be brief.",
    tools=[weather],
    checkpointer=InMemorySaver(),
)


def asked(question: str) -> dict[str, list[tuple[str, str]]]:
    """What a turn begins with."""
    return {"messages": [("user", question)]}


def thread(conversation: str) -> RunnableConfig:
    """Where the checkpointer keeps what was said in the conversation."""
    return {"configurable": {"thread_id": conversation}}


def answer(conversation: str, question: str) -> str:
    """One turn of a conversation."""
    return str(agent.invoke(asked(question), thread(conversation))["messages"][-1].text)


async def answer_async(conversation: str, question: str) -> str:
    """The same for asyncio."""
    state = await agent.ainvoke(asked(question), thread(conversation))
    return str(state["messages"][-1].text)


async def stream(conversation: str, question: str) -> AsyncIterator[str]:
    """The same in pieces, as they come."""
    pieces = agent.astream(asked(question), thread(conversation), stream_mode="messages")
    async with aclosing(pieces):
        async for message, where in pieces:
            if where["langgraph_node"] == "model" and message.text:
                yield message.text


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
