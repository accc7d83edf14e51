"""Agent frameworks: which are installed here, and whether their spans can be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

__all__ = ["FRAMEWORKS", "Framework", "Found", "installed_frameworks", "version_of"]


@dataclass(frozen=True, slots=True)
class Instrumentation:
    """What makes spans of a framework's agents; `package` is "" where the framework does it itself."""

    package: str = ""
    conversation: str = ""
    """What the caller passes and the spans show as the conversation's id; "" if they show none."""
    of_models: str = ""
    """The package whose spans show the calls of models where these do not: without it no tokens are known."""
    note: str = ""
    """What else is to be done, or to be known."""

    @property
    def packages(self) -> tuple[str, ...]:
        """What is to be installed."""
        return tuple(filter(None, (self.package, self.of_models)))


@dataclass(frozen=True, slots=True)
class Framework:
    """A framework under the names of its packages, and what makes its spans; the first is the one to install."""

    name: str
    packages: tuple[str, ...]
    instrumentations: tuple[Instrumentation, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A framework that is installed, and what makes its spans, None if nothing does.

    `advice` is the line that installs what is missing, "" if nothing is.
    """

    framework: Framework
    version: str
    instrumentation: Instrumentation | None
    advice: str

    def tell(self) -> str:
        """Whether its spans can be seen, and what else is to be known of them, in words."""
        name = f"{self.framework.name} {self.version}"
        if self.instrumentation is None:
            return f"{name} has no instrumentation, and is not seen"
        by = self.instrumentation.package or "its own"
        seen = f"{name} is recognised, by spans of {by}{', but no tokens are' if self.advice else ''}"
        shown = self.instrumentation.conversation
        whose = f"the conversation is {shown}" if shown else NO_ID
        return "; ".join(filter(None, (seen, whose, self.instrumentation.note)))


NO_ID = "no conversation id is shown, so put otel_agent_tracker.session(...) around each run"
_GENAI = "opentelemetry-instrumentation-genai-"
_OPENINFERENCE = "openinference-instrumentation-"
_THREAD = "the thread_id of the configuration"
_SESSION_OF_RUN = "the session_id= of a run"

FRAMEWORKS = (
    Framework(
        "Pydantic AI",
        ("pydantic-ai", "pydantic-ai-slim"),
        (
            Instrumentation(
                conversation="the conversation_id= of a run", note="call Agent.instrument_all() once"
            ),
        ),
    ),
    Framework(
        "OpenAI Agents SDK",
        ("openai-agents",),
        (
            Instrumentation(
                f"{_GENAI}openai-agents",
                conversation="the group_id= of a RunConfig",
                of_models=f"{_GENAI}openai",
                note="a session of the SDK is not shown",
            ),
            Instrumentation(f"{_OPENINFERENCE}openai-agents"),
            Instrumentation("opentelemetry-instrumentation-openai-agents-v2"),
            Instrumentation("opentelemetry-instrumentation-openai-agents"),
        ),
    ),
    Framework(
        "LangGraph",
        ("langgraph",),
        (
            Instrumentation(f"{_GENAI}langchain", conversation=_THREAD),
            Instrumentation(f"{_OPENINFERENCE}langchain", conversation=_THREAD),
            Instrumentation("opentelemetry-instrumentation-langchain", conversation=_THREAD),
        ),
    ),
    Framework("Google ADK", ("google-adk",), (Instrumentation(conversation="the id of the session"),)),
    Framework(
        "Strands Agents",
        ("strands-agents",),
        (
            Instrumentation(
                conversation="session.id of the trace_attributes= of an agent",
                note="a session manager's id is not shown",
            ),
        ),
    ),
    Framework(
        "Agno",
        ("agno",),
        (
            Instrumentation(f"{_OPENINFERENCE}agno", conversation=_SESSION_OF_RUN),
            Instrumentation(
                f"{_GENAI}agno",
                conversation=_SESSION_OF_RUN,
                note="tokens and failures need the instrumentation of the model's client, too",
            ),
        ),
    ),
    Framework(
        "LlamaIndex",
        ("llama-index-core",),
        (Instrumentation(f"{_OPENINFERENCE}llama-index"), Instrumentation(f"{_GENAI}llama-index")),
    ),
    Framework(
        "smolagents",
        ("smolagents",),
        (Instrumentation(f"{_OPENINFERENCE}smolagents"), Instrumentation(f"{_GENAI}smolagents")),
    ),
    Framework("CrewAI", ("crewai",), (Instrumentation(f"{_OPENINFERENCE}crewai"),)),
    Framework("Microsoft Agent Framework", ("agent-framework-core",), (Instrumentation(),)),
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
        known = framework.instrumentations
        present = next((each for each in known if not each.package or version_of(each.package)), None)
        missing = [each for each in (present or known[0]).packages if not version_of(each)]
        yield Found(framework, installed, present, f"pip install {' '.join(missing)}" if missing else "")
