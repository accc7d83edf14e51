"""Three real agents with rules in place of a model: they choose among tools, which take their time."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence

from pydantic_ai import Agent, ModelRetry
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

__all__ = ["DemoAgent", "WarehouseError", "agent_id", "museum_guide", "support_bot", "travel_desk"]

DemoAgent = Agent[object, str]
Rule = tuple[str, str]
"""A pattern to find in what the user says, and the tool to call with the pattern's groups."""

WORD_SECONDS = 0.01


class WarehouseError(ConnectionError):
    """The warehouse does not answer."""


def agent_id(agent: DemoAgent) -> str:
    """The agent's name is what it is known by."""
    return agent.name or "unnamed"


def support_bot() -> DemoAgent:
    """Knows orders; the warehouse behind it does not answer for those from 9000 on."""
    rules = [(r"order (?P<number>\d+)", "find_order"), (r"refund (?P<number>\d+)", "refund_order")]
    agent = Agent(FunctionModel(_answers(rules)), name="support-bot")

    @agent.tool_plain
    async def find_order(number: int) -> str:
        """Where an order is."""
        await asyncio.sleep(0.05)
        if number >= 9000:
            raise WarehouseError(f"no answer about order {number}")
        return f"Order {number} left the warehouse and arrives tomorrow."

    @agent.tool_plain
    async def refund_order(number: int) -> str:
        """Give the money back."""
        await asyncio.sleep(0.15)
        return f"The price of order {number} is on its way to your account."

    return agent


def travel_desk() -> DemoAgent:
    """Finds trains and books seats, slowly; nobody can book a seat on the night train."""
    rules = [(r"night train to (?P<city>\w+)", "book_sleeper"), (r"train to (?P<city>\w+)", "find_train")]
    agent = Agent(FunctionModel(_answers(rules)), name="travel-desk")

    @agent.tool_plain
    async def find_train(city: str) -> str:
        """The next train to a city; the farther, the longer the search."""
        await asyncio.sleep(0.1 + 0.05 * len(city))
        return f"The next train to {city} leaves at 9:41."

    @agent.tool_plain
    async def book_sleeper(city: str) -> str:
        """A bed on the night train."""
        await asyncio.sleep(0.05)
        raise ModelRetry(f"the night train to {city} is full, try another one")

    return agent


def museum_guide() -> DemoAgent:
    """Tells about pictures, word by word."""
    rules = [(r"picture (?P<number>\d+)", "describe_picture")]
    agent = Agent(FunctionModel(stream_function=_streams(rules)), name="museum-guide")

    @agent.tool_plain
    async def describe_picture(number: int) -> str:
        """What there is to say about a picture."""
        await asyncio.sleep(0.1)
        return f"Picture {number} shows a harbour at dawn, painted from memory in a single winter."

    return agent


def _decide(rules: Sequence[Rule], messages: Sequence[ModelMessage]) -> TextPart | ToolCallPart:
    """What a model would do next: read out what a tool said, call a tool, or be polite."""
    newest = messages[-1].parts[-1]
    if isinstance(newest, ToolReturnPart) and newest.outcome == "success":
        return TextPart(str(newest.content))
    question = _question(messages)
    for pattern, tool in rules:
        if found := re.search(pattern, question):
            return ToolCallPart(tool, found.groupdict())
    return TextPart("You are welcome.")


def _question(messages: Sequence[ModelMessage]) -> str:
    parts = [part for message in messages for part in message.parts if isinstance(part, UserPromptPart)]
    return str(parts[-1].content)


def _answers(rules: Sequence[Rule]) -> Callable[[list[ModelMessage], AgentInfo], ModelResponse]:
    """A model that answers as a whole."""

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[_decide(rules, messages)])

    return answer


def _streams(
    rules: Sequence[Rule],
) -> Callable[[list[ModelMessage], AgentInfo], AsyncIterator[str | DeltaToolCalls]]:
    """A model that answers in pieces."""

    async def answer(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        part = _decide(rules, messages)
        if isinstance(part, ToolCallPart):
            yield {0: DeltaToolCall(name=part.tool_name, json_args=json.dumps(part.args))}
            return
        for word in part.content.split(" "):
            await asyncio.sleep(WORD_SECONDS)
            yield f"{word} "

    return answer
