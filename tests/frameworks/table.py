"""The frameworks that are tested live, each with one instrumentation, in the versions that are known to work.

This is the one place that names versions. What a row says is shown of a framework, and what the commands say of its
conversations, is checked by `live.py` in either direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from otel_agent_tracker.cli.frameworks import FRAMEWORKS, Instrumentation
from otel_agent_tracker.semconv import TurnStatus

__all__ = ["AS_OF", "PAIRS", "Pair"]

AS_OF = "2026-11-25"
"""What these packages need in turn is taken as it was released by that day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A framework, what emits its spans, and what these show beside turns, tokens and failures."""

    name: str
    framework: str
    packages: tuple[str, ...]
    """The framework first; each with the version that is known to work."""
    example: str
    names_agent: bool = True
    abandoned: TurnStatus = TurnStatus.OK
    """How a turn ends whose stream nobody reads to its end."""

    @property
    def names(self) -> tuple[str, ...]:
        """The packages without versions."""
        return tuple(each.partition("==")[0] for each in self.packages)

    @property
    def instrumentation(self) -> Instrumentation:
        """What the commands know of it."""
        known = next(each.instrumentations for each in FRAMEWORKS if each.name == self.framework)
        return next(each for each in known if not each.package or each.package in self.names)

    @property
    def shows_conversation(self) -> bool:
        """Whether the id that a caller passes is shown."""
        return bool(self.instrumentation.conversation)


_OPENAI_AGENTS = "openai-agents==0.24.0"
_GENAI_OPENAI = "opentelemetry-instrumentation-genai-openai==1.3b0"
_LANGGRAPH = ("langgraph==1.2.24", "langchain==1.5.2", "langchain-openai==1.7.4")
_AGNO = ("agno==3.1.10", "openai==3.57.0")

PAIRS = (
    Pair(
        name="pydantic-ai",
        framework="Pydantic AI",
        packages=("pydantic-ai-slim[openai]==2.68.0",),
        example="with_pydantic_ai",
    ),
    Pair(
        name="openai-agents-official",
        framework="OpenAI Agents SDK",
        packages=(
            _OPENAI_AGENTS,
            "opentelemetry-instrumentation-genai-openai-agents==1.3b0",
            _GENAI_OPENAI,
        ),
        example="with_openai_agents",
        names_agent=False,
    ),
    Pair(
        name="openai-agents-v2",
        framework="OpenAI Agents SDK",
        packages=(_OPENAI_AGENTS, "opentelemetry-instrumentation-openai-agents-v2==0.1.0"),
        example="with_openai_agents",
        names_agent=False,
    ),
    Pair(
        name="openai-agents-openinference",
        framework="OpenAI Agents SDK",
        packages=(_OPENAI_AGENTS, "openinference-instrumentation-openai-agents==2.6.0"),
        example="with_openai_agents",
        names_agent=False,
    ),
    Pair(
        name="langgraph-official",
        framework="LangGraph",
        packages=(*_LANGGRAPH, "opentelemetry-instrumentation-genai-langchain==1.3b0"),
        example="with_langgraph",
        abandoned=TurnStatus.CANCELLED,
    ),
    Pair(
        name="langgraph-openinference",
        framework="LangGraph",
        packages=(*_LANGGRAPH, "openinference-instrumentation-langchain==0.1.80"),
        example="with_langgraph",
        abandoned=TurnStatus.CANCELLED,
    ),
    Pair(
        name="google-adk",
        framework="Google ADK",
        packages=("google-adk==2.13.0",),
        example="with_google_adk",
    ),
    Pair(
        name="strands",
        framework="Strands Agents",
        packages=("strands-agents[openai]==1.62.0",),
        example="with_strands",
    ),
    Pair(
        name="agno-official",
        framework="Agno",
        packages=(*_AGNO, "opentelemetry-instrumentation-genai-agno==1.3b0", _GENAI_OPENAI),
        example="with_agno",
    ),
    Pair(
        name="agno-openinference",
        framework="Agno",
        packages=(*_AGNO, "openinference-instrumentation-agno==1.0.15"),
        example="with_agno",
    ),
)
"""In the order of the documentation's table."""
