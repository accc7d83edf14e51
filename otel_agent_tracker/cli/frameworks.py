"""Agent frameworks: which are installed here, and whether their spans can be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

__all__ = ["FRAMEWORKS", "Framework", "Found", "installed_frameworks", "version_of"]


@dataclass(frozen=True, slots=True)
class Framework:
    """A framework and what makes its spans; without `instrumentations` it makes them itself."""

    name: str
    packages: tuple[str, ...]
    instrumentations: tuple[str, ...] = ()
    """Any of them will do; the first is the one to install."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A framework that is installed: what is to be done, "" if nothing is."""

    framework: Framework
    version: str
    instrumentation: str
    advice: str

    def tell(self) -> str:
        """Whether its spans can be seen, in words."""
        name = f"{self.framework.name} {self.version}"
        if self.advice:
            return f"{name} has no instrumentation, and is not seen"
        note = f"; {self.framework.note}" if self.framework.note else ""
        return f"{name} is recognised, by spans of {self.instrumentation}{note}"


FRAMEWORKS = (
    Framework("Pydantic AI", ("pydantic-ai", "pydantic-ai-slim"), note="call Agent.instrument_all() once"),
    Framework(
        "OpenAI Agents SDK",
        ("openai-agents",),
        (
            "opentelemetry-instrumentation-genai-openai-agents",
            "openinference-instrumentation-openai-agents",
            "opentelemetry-instrumentation-openai-agents-v2",
            "opentelemetry-instrumentation-openai-agents",
        ),
        note="a RunConfig's group_id is the conversation",
    ),
    Framework(
        "LangGraph",
        ("langgraph",),
        (
            "opentelemetry-instrumentation-genai-langchain",
            "openinference-instrumentation-langchain",
            "opentelemetry-instrumentation-langchain",
        ),
    ),
    Framework("Google ADK", ("google-adk",)),
    Framework("Strands Agents", ("strands-agents",)),
    Framework(
        "Agno",
        ("agno",),
        ("opentelemetry-instrumentation-genai-agno", "openinference-instrumentation-agno"),
    ),
    Framework(
        "LlamaIndex",
        ("llama-index-core",),
        ("opentelemetry-instrumentation-genai-llama-index", "openinference-instrumentation-llama-index"),
    ),
    Framework(
        "smolagents",
        ("smolagents",),
        ("opentelemetry-instrumentation-genai-smolagents", "openinference-instrumentation-smolagents"),
    ),
    Framework("CrewAI", ("crewai",), ("openinference-instrumentation-crewai",)),
    Framework("Microsoft Agent Framework", ("agent-framework-core",)),
)


def version_of(package: str) -> str | None:
    """The version that is installed, None if none is."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def installed_frameworks(version_of: Callable[[str], str | None] = version_of) -> Iterator[Found]:
    """Each framework that is installed, with what its spans need."""
    for framework in FRAMEWORKS:
        installed = next(filter(None, map(version_of, framework.packages)), None)
        if installed is None:
            continue
        present = next(filter(version_of, framework.instrumentations), "")
        missing = bool(framework.instrumentations) and not present
        advice = f"pip install {framework.instrumentations[0]}" if missing else ""
        yield Found(framework, installed, present or ("" if missing else "its own"), advice)
