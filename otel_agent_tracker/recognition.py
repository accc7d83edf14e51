"""What a span of another library is, told from its attributes; pure tables, one row a convention."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from otel_agent_tracker import semconv

__all__ = ["SpanClass", "classify", "tokens"]


class SpanClass(StrEnum):
    """What a span shows."""

    AGENT = "agent"
    LLM = "llm"
    OTHER = "other"


def classify(name: str, attributes: Mapping[str, Any]) -> SpanClass:
    """The class of a span, by the first convention that says anything of it."""
    for key, classes in _CLASSES:
        value = attributes.get(key)
        found = classes.get(value.lower()) if isinstance(value, str) else None
        if found is SpanClass.LLM and name.startswith("invoke_agent"):
            return SpanClass.AGENT
        if found is not None:
            return found
    return SpanClass.OTHER


def tokens(attributes: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Input and output tokens of a model call."""
    return _first_int(attributes, _INPUT_TOKENS), _first_int(attributes, _OUTPUT_TOKENS)


def _first_int(attributes: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    values = (attributes.get(key) for key in keys)
    return next((value for value in values if isinstance(value, int)), None)


_CLASSES: tuple[tuple[str, Mapping[str, SpanClass]], ...] = (
    (
        semconv.GEN_AI_OPERATION_NAME,
        {
            "invoke_agent": SpanClass.AGENT,
            "invoke_workflow": SpanClass.AGENT,
            "invoke_graph": SpanClass.AGENT,
            "invoke_swarm": SpanClass.AGENT,
            "chat": SpanClass.LLM,
            "generate_content": SpanClass.LLM,
            "text_completion": SpanClass.LLM,
        },
    ),
    ("openinference.span.kind", {"agent": SpanClass.AGENT, "llm": SpanClass.LLM}),
    ("traceloop.span.kind", {"workflow": SpanClass.AGENT, "agent": SpanClass.AGENT}),
    ("langfuse.observation.type", {"agent": SpanClass.AGENT, "generation": SpanClass.LLM}),
    ("langsmith.span.kind", {"chain": SpanClass.AGENT, "llm": SpanClass.LLM}),
)

_INPUT_TOKENS = (semconv.GEN_AI_INPUT_TOKENS, "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
_OUTPUT_TOKENS = (
    semconv.GEN_AI_OUTPUT_TOKENS,
    "gen_ai.usage.completion_tokens",
    "llm.token_count.completion",
)
