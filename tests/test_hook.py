"""Zero code: applications as processes of their own, under `opentelemetry-instrument`, unchanged."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_agent_tracker.server.run import Server
from tests.conftest import MakeTracker

TURNS = 3
AGENT = """
import logging, os, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
def talk(tracer):
    for number in range(3):
        with tracer.start_as_current_span("invoke_agent bot") as span:
            span.set_attribute("gen_ai.operation.name", "invoke_agent")
            span.set_attribute("gen_ai.agent.name", "bot")
            span.set_attribute("gen_ai.conversation.id", "thread-1")
"""
TALKS = AGENT + "talk(trace.get_tracer('some-agents'))\n"
OWN_PROVIDER = AGENT + "provider = TracerProvider()\ntrace.set_tracer_provider(provider)\n"
QUIET = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
NO_SDK = {"OTEL_PYTHON_CONFIGURATOR": "none"}  # none is of that name, and the SDK stays unconfigured

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a script under `opentelemetry-instrument`, to its good end; what it printed."""
    path = tmp_path / "app.py"

    def run(script: str, **environ: str) -> str:
        path.write_text(script, encoding="utf-8")
        command = [str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable, str(path)]
        settings = QUIET | {"AGENT_TRACKER_STATE_DIR": str(tmp_path / "state")} | environ
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env={**os.environ, **settings}
        )
        assert ran.returncode == 0, ran.stderr
        assert "agents are not seen" not in ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    return run


def turns_told(make_tracker: MakeTracker, server: Server) -> int | None:
    """How many turns of the conversation the tracker knows, once all has arrived; None without it."""
    tracker = make_tracker(server.url)
    assert tracker.flush(20)
    info = tracker.get_session_info("thread-1")
    return None if info is None else int(info["turns"])


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"},
        {"OTEL_TRACES_SAMPLER": "always_off"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"},
    ],
    ids=["plain", "no instrumentations", "nothing sampled", "a tenth sampled"],
)
def test_an_unchanged_application_is_seen(
    run: Run, tracker_server: Server, make_tracker: MakeTracker, environ: dict[str, str]
) -> None:
    """Its conversation is in the tracker, with its agent and each of its turns."""
    run(TALKS, AGENT_TRACKER_URL=tracker_server.url, **environ)
    assert turns_told(make_tracker, tracker_server) == TURNS


@pytest.mark.parametrize("environ", [{}, NO_SDK], ids=["too late", "the first"])
@pytest.mark.parametrize("tracer", ["provider", "trace"])
def test_a_provider_that_the_application_makes_is_seen_too(
    run: Run, tracker_server: Server, make_tracker: MakeTracker, environ: dict[str, str], tracer: str
) -> None:
    """Whether it becomes the global one or is refused, and whichever tracer the agent has."""
    script = f"{OWN_PROVIDER}talk({tracer}.get_tracer('some-agents'))\n"
    run(script, AGENT_TRACKER_URL=tracker_server.url, **environ)
    assert turns_told(make_tracker, tracker_server) == TURNS


@pytest.mark.parametrize("has_provider", [False, True])
def test_whoever_has_no_provider_is_told_what_to_do(
    run: Run, tracker_server: Server, has_provider: bool
) -> None:
    """One line, for those who log at that level; nothing where agents are seen already."""
    script = f"{OWN_PROVIDER if has_provider else AGENT}from otel_agent_tracker import hook\nhook.begin()\n"
    told = run(script, AGENT_TRACKER_URL=tracker_server.url, **NO_SDK)
    assert told.count("no tracer provider of the SDK yet") == (not has_provider)


def test_tracker_objects_and_install_beside_the_hook_tell_nothing_twice(
    run: Run, tracker_server: Server, make_tracker: MakeTracker
) -> None:
    """Whoever adds the library to an application that runs under `opentelemetry-instrument` has each turn once."""
    run(
        AGENT
        + """
import otel_agent_tracker
tracker = otel_agent_tracker.install()
other = otel_agent_tracker.AgentPerformanceTracker()
talk(trace.get_tracer('some-agents'))
with tracker.conversation("by-hand") as conversation:
    with conversation.turn():
        talk(trace.get_tracer('some-agents'))
print("by hand", conversation.session_id)
""",
        AGENT_TRACKER_URL=tracker_server.url,
    )
    tracker = make_tracker(tracker_server.url)
    assert tracker.flush(20)
    rates = tracker.get_success_rates()
    assert rates["total"] == 2
    assert turns_told(make_tracker, tracker_server) == TURNS


@pytest.mark.parametrize(
    "environ",
    [{}, {"AGENT_TRACKER_ENABLED": "false"}, {"OTEL_SDK_DISABLED": "true"}],
    ids=["no destination", "disabled", "no SDK"],
)
def test_whoever_asks_for_nothing_gets_nothing(
    run: Run, tracker_server: Server, tmp_path: Path, environ: dict[str, str]
) -> None:
    """No processor, no wrapper, no thread, no folder, no line."""
    url = {} if not environ else {"AGENT_TRACKER_URL": tracker_server.url}
    told = run(
        TALKS
        + """
import threading
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
assert trace._set_tracer_provider.__code__.co_filename == trace.__file__
assert not hasattr(trace.get_tracer_provider(), "_otel_agent_tracker_watched")
if not os.environ.get("AGENT_TRACKER_URL"):
    assert "otel_agent_tracker.pipeline" not in sys.modules
""",
        **environ,
        **url,
    )
    assert "tracker" not in told
    assert not (tmp_path / "state").exists()


def test_a_mistake_of_ours_does_not_stop_the_application(
    run: Run, tracker_server: Server, tmp_path: Path
) -> None:
    """It runs as if nothing were, and OpenTelemetry, which would give up preparing it, hears nothing of it."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "orjson.py").write_text(
        "import sys\nprint('broken', file=sys.stderr)\nraise RuntimeError\n", encoding="utf-8"
    )
    script = AGENT + "print('runs on')\n"
    path = tmp_path / "app.py"
    path.write_text(script, encoding="utf-8")
    command = [str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable, str(path)]
    environ = QUIET | {"AGENT_TRACKER_URL": tracker_server.url, "PYTHONPATH": str(blocked)}
    environ["AGENT_TRACKER_STATE_DIR"] = str(tmp_path / "state")
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environ})
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "runs on\n", "broken\n")


EVALUATES = """
import opentelemetry._logs as logs
from opentelemetry.sdk._logs import LoggerProvider
def evaluate():
    logs.get_logger("evaluator").emit(logs.LogRecord(event_name="gen_ai.evaluation.result", attributes={
        "gen_ai.evaluation.name": "Safety", "gen_ai.evaluation.score.label": "pass",
        "gen_ai.conversation.id": "thread-1",
    }))
"""


@pytest.mark.parametrize(
    "begin", ["", "logs.set_logger_provider(LoggerProvider())\n"], ids=["there", "set later"]
)
def test_evaluators_are_heard(
    run: Run, tracker_server: Server, make_tracker: MakeTracker, begin: str
) -> None:
    """On the logger provider that there is, and on one that the application sets."""
    environ = NO_SDK if begin else {}
    script = (
        f"{OWN_PROVIDER if begin else AGENT}{EVALUATES}{begin}talk(trace.get_tracer('agents'))\nevaluate()\n"
    )
    run(script, AGENT_TRACKER_URL=tracker_server.url, **environ)
    tracker = make_tracker(tracker_server.url)
    assert tracker.flush(20)
    told = tracker.get_session_info("thread-1")
    assert told is not None
    assert told["quality_score"] == 5


def test_installing_is_listening(run: Run, tracker_server: Server, make_tracker: MakeTracker) -> None:
    """To the global logger provider, where there is no hook."""
    path = "from otel_agent_tracker import install\n"
    script = f"{OWN_PROVIDER}{EVALUATES}{path}logs.set_logger_provider(LoggerProvider())\n"
    script += (
        f"install(provider, base_url={tracker_server.url!r})\ntalk(trace.get_tracer('agents'))\nevaluate()\n"
    )
    run(script, **NO_SDK)
    tracker = make_tracker(tracker_server.url)
    assert tracker.flush(20)
    told = tracker.get_session_info("thread-1")
    assert told is not None
    assert told["quality_score"] == 5
