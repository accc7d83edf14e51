"""Whoever sets up OpenTelemetry, and whatever its sampler decides: the same conversations, under either command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_agent_tracker.server.run import Server
from tests.conftest import MakeTracker

BIN = Path(sys.executable).parent
RUNNERS: dict[str, list[str]] = {
    "nothing": [],
    "opentelemetry-instrument": [str(BIN / "opentelemetry-instrument")],
    "run": [str(BIN / "otel-agent-tracker"), "run", "--quiet", "--"],
}
QUIET = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
NO_PARENT = "{}"
UNSAMPLED = "{'traceparent': f'00-{number + 1:032x}-00000000000000ab-00'}"
SAMPLED = "{'traceparent': f'00-{number + 1:032x}-00000000000000ab-01'}"

AGENT = """
from opentelemetry import propagate, trace
web, agents = trace.get_tracer("opentelemetry.instrumentation.asgi"), trace.get_tracer("some-agents")

def answer(number, headers):
    with web.start_as_current_span("POST /chat", propagate.extract(headers)):
        with agents.start_as_current_span("invoke_agent bot") as agent:
            agent.set_attribute("gen_ai.operation.name", "invoke_agent")
            agent.set_attribute("gen_ai.agent.name", "bot")
            agent.set_attribute("gen_ai.conversation.id", f"chat-{number % 2}")
            with agents.start_as_current_span("chat model") as model:
                model.set_attribute("gen_ai.operation.name", "chat")
                model.set_attribute("gen_ai.usage.input_tokens", 7)
"""
REQUESTS = 6
EXPECTED = {
    "chat-0": {"turns": 3, "agent_id": "bot", "status": "active"},
    "chat-1": {"turns": 3, "agent_id": "bot", "status": "active"},
}

Run = Callable[..., str]


@pytest.fixture
def run(tracker_server: Server, tmp_path: Path) -> Run:
    """Runs a script under a command, to its good end; what it printed."""
    path = tmp_path / "app.py"

    def run(script: str, runner: str = "opentelemetry-instrument", **environ: str) -> str:
        path.write_text(script, encoding="utf-8")
        known = {
            "AGENT_TRACKER_URL": tracker_server.url,
            "AGENT_TRACKER_STATE_DIR": str(tmp_path / "state"),
        }
        ran = subprocess.run(
            [*RUNNERS[runner], sys.executable, str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **known, **QUIET, **environ},
            cwd=tmp_path,
        )
        assert ran.returncode == 0, ran.stderr
        assert "Traceback" not in ran.stderr
        assert "agents are not seen" not in ran.stderr
        return ran.stdout

    return run


def answers(headers: str) -> str:
    """A script of the application that answers all requests."""
    return f"{AGENT}\nfor number in range({REQUESTS}):\n    answer(number, {headers})\n"


def conversations(make_tracker: MakeTracker, server: Server) -> dict[str, dict[str, object]]:
    """What the tracker knows of both, once all has arrived, but for times."""
    tracker = make_tracker(server.url)
    assert tracker.flush(20)
    assert tracker.get_success_rates("bot")["total"] == len(EXPECTED)
    assert tracker.get_response_times("bot")["count"] == REQUESTS
    known = {session: tracker.get_session_info(session) or {} for session in EXPECTED}
    return {session: {key: info.get(key) for key in EXPECTED[session]} for session, info in known.items()}


@pytest.mark.parametrize(
    ("sampler", "argument", "parent"),
    [
        ("always_on", "", NO_PARENT),
        ("traceidratio", "0", NO_PARENT),
        ("traceidratio", "0.1", NO_PARENT),
        ("traceidratio", "0", SAMPLED),
        ("parentbased_traceidratio", "1", UNSAMPLED),
    ],
    ids=["all", "nothing", "a tenth", "nothing of a sampled parent", "an unsampled parent"],
)
def test_no_sampler_and_no_parent_changes_what_the_tracker_knows(
    run: Run, tracker_server: Server, make_tracker: MakeTracker, sampler: str, argument: str, parent: str
) -> None:
    """Neither one that keeps a part, nor the decision that a caller in another process has made."""
    run(answers(parent), OTEL_TRACES_SAMPLER=sampler, OTEL_TRACES_SAMPLER_ARG=argument)
    assert conversations(make_tracker, tracker_server) == EXPECTED


def test_the_host_exports_what_its_sampler_keeps(
    run: Run, tracker_server: Server, make_tracker: MakeTracker
) -> None:
    """Spans that we see because we record them reach no exporter of the host's: it pays for none of them."""
    told = run(answers(NO_PARENT), OTEL_TRACES_EXPORTER="console", OTEL_TRACES_SAMPLER="always_off")
    assert told == ""
    assert conversations(make_tracker, tracker_server) == EXPECTED


DISTRO = """
from opentelemetry import trace
from opentelemetry.instrumentation.distro import BaseDistro
from opentelemetry.sdk._configuration import _BaseConfigurator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

class Distro(BaseDistro):
    def _configure(self, **options):
        print("distro", flush=True)

class Configurator(_BaseConfigurator):
    def _configure(self, **options):
        print("configurator", flush=True)
        trace.set_tracer_provider(TracerProvider(sampler=ALWAYS_OFF))
"""


@pytest.fixture
def vendor(tmp_path: Path) -> Path:
    """Another distro and its configurator, installed in a folder."""
    folder = tmp_path / "packages"
    information = folder / "vendor-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / "vendor.py").write_text(DISTRO, encoding="utf-8")
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vendor\nVersion: 1.0\n", encoding="utf-8"
    )
    (information / "entry_points.txt").write_text(
        "[opentelemetry_distro]\nvendor = vendor:Distro\n"
        "[opentelemetry_configurator]\nvendor = vendor:Configurator\n",
        encoding="utf-8",
    )
    return folder


@pytest.mark.parametrize("runner", ["opentelemetry-instrument", "run"])
def test_another_distro_is_as_good(
    run: Run, tracker_server: Server, make_tracker: MakeTracker, vendor: Path, runner: str
) -> None:
    """With its configurator, provider and sampler; we register none that could come in its way."""
    chosen = {"OTEL_PYTHON_DISTRO": "vendor", "OTEL_PYTHON_CONFIGURATOR": "vendor"}
    told = run(answers(NO_PARENT), runner, PYTHONPATH=str(vendor), **chosen)
    assert told == "distro\nconfigurator\n"
    assert conversations(make_tracker, tracker_server) == EXPECTED


OWN_PROVIDER = """
{imports}
import otel_agent_tracker
tracker = otel_agent_tracker.install()
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
{set}(TracerProvider(sampler=ALWAYS_OFF))
"""


@pytest.mark.parametrize("set_by", ["trace.set_tracer_provider", "set_tracer_provider"])
def test_install_need_not_wait_for_the_provider(
    run: Run, tracker_server: Server, make_tracker: MakeTracker, set_by: str
) -> None:
    """An application may call it first, and whichever way it has imported what sets its provider."""
    imports = "from opentelemetry import trace\nfrom opentelemetry.trace import set_tracer_provider"
    run(OWN_PROVIDER.format(imports=imports, set=set_by) + answers(NO_PARENT), "nothing")
    assert conversations(make_tracker, tracker_server) == EXPECTED
