"""The frameworks that are tested live, each with one instrumentation, in the versions that are known to work.

This is the one place that names versions. What a row says is shown of a framework is checked by `live.py` in either
direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from otel_agent_tracker.semconv import TurnStatus

__all__ = ["AS_OF", "PAIRS", "Pair"]

AS_OF = "2026-11-25"
"""What these packages need in turn is taken as it was released by that day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A framework, what emits its spans, and what these show."""

    name: str
    framework: str
    instrumentation: str
    packages: tuple[str, ...]
    """The framework first; each with the version that is known to work."""
    example: str
    conversation_id: str | None
    """What a caller passes and the spans show; None if they show nothing that a caller can pass."""
    shows_tokens: bool = True
    shows_failure: bool = True
    names_agent: bool = True
    abandoned: TurnStatus = TurnStatus.OK
    """How a turn ends whose stream nobody reads to its end."""
    note: str = ""
    """What else the user must know or do."""

    @property
    def names(self) -> tuple[str, ...]:
        """The packages without versions."""
        return tuple(each.partition("==")[0] for each in self.packages)


_OPENAI_AGENTS = "openai-agents==0.24.0"
_GENAI_OPENAI = "opentelemetry-instrumentation-genai-openai==1.3b0"
_LANGGRAPH = ("langgraph==1.2.24", "langchain==1.5.2", "langchain-openai==1.7.4")
_AGNO = ("agno==3.1.10", "openai==3.57.0")

PAIRS = (
    Pair(
        name="pydantic-ai",
        framework="Pydantic AI",
        instrumentation="its own",
        packages=("pydantic-ai-slim[openai]==2.68.0",),
        example="with_pydantic_ai",
        conversation_id="`conversation_id=` of a run",
        note="call `Agent.instrument_all()`",
    ),
    Pair(
        name="openai-agents-official",
        framework="OpenAI Agents SDK",
        instrumentation="OpenTelemetry",
        packages=(
            _OPENAI_AGENTS,
            "opentelemetry-instrumentation-genai-openai-agents==1.3b0",
            _GENAI_OPENAI,
        ),
        example="with_openai_agents",
        conversation_id="`RunConfig(group_id=…)`",
        names_agent=False,
        note="a `SQLiteSession` alone is not shown",
    ),
    Pair(
        name="openai-agents-v2",
        framework="OpenAI Agents SDK",
        instrumentation="OpenTelemetry, the older package",
        packages=(_OPENAI_AGENTS, "opentelemetry-instrumentation-openai-agents-v2==0.1.0"),
        example="with_openai_agents",
        conversation_id=None,
        names_agent=False,
    ),
    Pair(
        name="openai-agents-openinference",
        framework="OpenAI Agents SDK",
        instrumentation="OpenInference",
        packages=(_OPENAI_AGENTS, "openinference-instrumentation-openai-agents==2.6.0"),
        example="with_openai_agents",
        conversation_id=None,
        names_agent=False,
    ),
    Pair(
        name="langgraph-official",
        framework="LangGraph",
        instrumentation="OpenTelemetry",
        packages=(*_LANGGRAPH, "opentelemetry-instrumentation-genai-langchain==1.3b0"),
        example="with_langgraph",
        conversation_id="`thread_id` of the configuration",
        abandoned=TurnStatus.CANCELLED,
    ),
    Pair(
        name="langgraph-openinference",
        framework="LangGraph",
        instrumentation="OpenInference",
        packages=(*_LANGGRAPH, "openinference-instrumentation-langchain==0.1.80"),
        example="with_langgraph",
        conversation_id="`thread_id` of the configuration",
        abandoned=TurnStatus.CANCELLED,
    ),
    Pair(
        name="google-adk",
        framework="Google ADK",
        instrumentation="its own",
        packages=("google-adk==2.13.0",),
        example="with_google_adk",
        conversation_id="the id of the session",
    ),
    Pair(
        name="strands",
        framework="Strands Agents",
        instrumentation="its own",
        packages=("strands-agents[openai]==1.62.0",),
        example="with_strands",
        conversation_id="`session.id` among the `trace_attributes=` of an agent",
        note="a session manager's id is not shown",
    ),
    Pair(
        name="agno-official",
        framework="Agno",
        instrumentation="OpenTelemetry",
        packages=(*_AGNO, "opentelemetry-instrumentation-genai-agno==1.3b0", _GENAI_OPENAI),
        example="with_agno",
        conversation_id="`session_id=` of a run",
    ),
    Pair(
        name="agno-openinference",
        framework="Agno",
        instrumentation="OpenInference",
        packages=(*_AGNO, "openinference-instrumentation-agno==1.0.15"),
        example="with_agno",
        conversation_id="`session_id=` of a run",
    ),
)
"""In the order of the documentation's table."""
