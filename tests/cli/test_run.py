"""`otel-agent-tracker run`: programs as a newcomer starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from otel_agent_tracker.cli.frameworks import FRAMEWORKS, installed_frameworks
from otel_agent_tracker.cli.run import environment
from otel_agent_tracker.server.run import Server
from tests.conftest import MakeTracker
from tests.frameworks.table import PAIRS
from tests.test_hook import TALKS, TURNS, turns_told

COMMAND = [sys.executable, "-m", "otel_agent_tracker", "run"]
BARE = {"PATH": "/usr/bin:/bin"}


def ran(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """What became of the command, with an environment that has none of our Python."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, env=BARE | environ
    )


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "app.py"
    path.write_text(TALKS + "print('done', sys.argv[1:])\nsys.exit(7)\n", encoding="utf-8")
    return path


def test_a_bare_application_is_seen(
    app: Path, tmp_path: Path, tracker_server: Server, make_tracker: MakeTracker
) -> None:
    """With its arguments, output and exit code its own; `python` is the one whose packages were looked at."""
    state = {"AGENT_TRACKER_STATE_DIR": str(tmp_path / "state")}
    done = ran("--url", tracker_server.url, "--", "python", app, "--url", "its own", **state)
    assert (done.returncode, done.stdout) == (7, "done ['--url', 'its own']\n")
    assert f"conversations go to {tracker_server.url}" in done.stderr
    assert "Pydantic AI" in done.stderr
    assert turns_told(make_tracker, tracker_server) == TURNS


def test_quiet_says_nothing(app: Path, tmp_path: Path, tracker_server: Server) -> None:
    """For scripts."""
    state = {"AGENT_TRACKER_STATE_DIR": str(tmp_path / "state")}
    assert ran("--quiet", "--url", tracker_server.url, "python", app, **state).stderr == ""


def test_ctrl_c_is_the_program_s(tmp_path: Path) -> None:
    """It takes the command's place: nobody stands between."""
    app = tmp_path / "app.py"
    app.write_text(
        "import time\ntry:\n    print('up', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('interrupted', flush=True)\n    raise SystemExit(3)\n"
    )
    with subprocess.Popen(
        [*COMMAND, "--quiet", "python", app], stdout=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert process.wait(30) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "PROGRAM"),
        (("no-such-program",), "There is no program 'no-such-program'"),
        (("--", "./app"), "There is no program './app'"),
    ],
)
def test_wrong_use_says_what_is_right(arguments: tuple[str, ...], said: str) -> None:
    done = ran(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


FOLDER = Path("/auto")


def test_what_a_newcomer_lacks_is_set() -> None:
    """A local tracker, and no exporter that would look for a backend."""
    found = environment({}, None, FOLDER)
    assert found["AGENT_TRACKER_URL"] == "http://127.0.0.1:8700"
    assert {name for name, value in found.items() if value == "none"} == {
        "OTEL_TRACES_EXPORTER",
        "OTEL_METRICS_EXPORTER",
        "OTEL_LOGS_EXPORTER",
    }
    assert found["PYTHONPATH"].split(os.pathsep) == [str(FOLDER), str(Path.cwd())]


@pytest.mark.parametrize(
    "given",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"},
        {"OTEL_CONFIG_FILE": "otel.yaml"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_who_has_a_backend_keeps_it(given: dict[str, str]) -> None:
    """Exporters are left to the distro."""
    assert not [name for name in environment(given, None, FOLDER) if name.endswith("_EXPORTER")]


def test_what_is_set_stays() -> None:
    """The option alone is stronger."""
    given = {
        "AGENT_TRACKER_URL": "http://other:1",
        "OTEL_TRACES_EXPORTER": "console",
        "PYTHONPATH": os.pathsep.join(["/lib", str(FOLDER)]),
    }
    found = environment(given, None, FOLDER)
    assert found["AGENT_TRACKER_URL"] == "http://other:1"
    assert found["OTEL_TRACES_EXPORTER"] == "console"
    assert found["PYTHONPATH"].split(os.pathsep) == [str(FOLDER), str(Path.cwd()), "/lib"]
    assert environment(given, "http://mine:1", FOLDER)["AGENT_TRACKER_URL"] == "http://mine:1"


def test_each_framework_says_what_it_needs() -> None:
    """Its own spans, any of its instrumentations, or the line that installs one, and what shows its models."""
    assert list(installed_frameworks(lambda package: None)) == []
    assert [each.advice for each in installed_frameworks(lambda package: "1.0")] == [""] * len(FRAMEWORKS)
    agents, models = (
        f"opentelemetry-instrumentation-genai-{package}" for package in ("openai-agents", "openai")
    )
    told = [
        (each.tell(), each.advice)
        for known in (
            {"openai-agents": "0.24"},
            {"openai-agents": "0.24", agents: "1.3"},
            {"openai-agents": "0.24", "openinference-instrumentation-openai-agents": "2.6"},
            {"google-adk": "2.13"},
        )
        for each in installed_frameworks(known.get)
    ]
    assert told == [
        (
            "OpenAI Agents SDK 0.24 has no instrumentation, and is not seen",
            f"pip install {agents} {models}",
        ),
        (
            (
                f"OpenAI Agents SDK 0.24 is recognised, by spans of {agents}, but no tokens are; the conversation is "
                "the group_id= of a RunConfig; a session of the SDK is not shown"
            ),
            f"pip install {models}",
        ),
        (
            (
                "OpenAI Agents SDK 0.24 is recognised, by spans of openinference-instrumentation-openai-agents; "
                "no conversation id is shown, so put otel_agent_tracker.session(...) around each run"
            ),
            "",
        ),
        (
            "Google ADK 2.13 is recognised, by spans of its own; the conversation is the id of the session",
            "",
        ),
    ]


def test_what_is_advised_is_what_is_tested_live() -> None:
    """The packages of each row, and for each framework that is tested the one that comes first."""
    for pair in PAIRS:
        assert set(pair.instrumentation.packages) <= set(pair.names)
    live = {(pair.framework, pair.instrumentation) for pair in PAIRS}
    tested = {pair.framework for pair in PAIRS}
    advised = {(each.name, each.instrumentations[0]) for each in FRAMEWORKS if each.name in tested}
    assert advised <= live
