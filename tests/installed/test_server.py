"""The wheel with ``[server]`` and nothing else: it serves, and an application beside it can speak to it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from otel_agent_tracker.semconv import VERSION
from tests.test_packaging import ROOT, build

APPLICATION = """
import sys
from otel_agent_tracker import AgentPerformanceTracker, __file__
assert __file__.startswith(sys.prefix), __file__
with AgentPerformanceTracker(sys.argv[1]) as tracker:
    session = tracker.start_conversation("bot")
    tracker.end_conversation(session, 5)
    assert tracker.flush(30)
    print(tracker.get_session_info(session)["status"])
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment into which pip has put the wheel of this tree, with the extra."""
    folder = tmp_path_factory.mktemp("installed")
    wheel = build("wheel", ROOT, folder / "wheel")
    venv.create(folder / "environment", with_pip=False)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        str(folder / "environment"),
    ]
    command = [*pip, "install", "--quiet", f"{wheel}[server]"]
    installed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return folder / "environment"


def settings(home: Path) -> dict[str, str]:
    """The variables of a user who has nothing but a home; nothing of this tree can be imported."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}


def run(environment: Path, home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment to its end."""
    return subprocess.run(
        [environment / "bin" / command[0], *command[1:]],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=home,
        env=settings(home),
    )


@contextmanager
def serving(environment: Path, home: Path) -> Iterator[str]:
    """The URL of a tracker that the installed command serves."""
    command = [str(environment / "bin" / "otel-agent-tracker"), "serve", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home, env=settings(home)
    ) as process:
        assert process.stdout is not None
        try:
            told = "".join(line for line, _ in zip(process.stdout, range(4), strict=False))
            url = re.search(r"AGENT_TRACKER_URL=(\S+)", told)
            assert url is not None, told
            yield url[1]
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=30)
    assert errors == ""


def test_it_serves_and_answers(environment: Path, tmp_path: Path) -> None:
    """Page, reference and REST API are there, and the library in the same environment is heard."""
    with serving(environment, tmp_path) as url, httpx.Client(base_url=url, timeout=30) as client:
        for path in ("/healthz", "/readyz", "/", "/docs", "/openapi.json", "/static/style.css"):
            assert client.get(path).status_code == 200, path
        application = run(environment, tmp_path, "python", "-c", APPLICATION, url)
        assert (application.stdout, application.stderr) == ("completed\n", "")
        assert client.get("/metrics/success-rates").json()["completed"] == 1
        listed = run(environment, tmp_path, "otel-agent-tracker", "conversations", "list", "--url", url)
        assert listed.returncode == 0, listed.stderr
        assert "bot" in listed.stdout


def test_what_needs_another_extra_says_which(environment: Path, tmp_path: Path) -> None:
    """With the line for pip, and exit code 2."""
    told = run(environment, tmp_path, "otel-agent-tracker", "demo", "--exit")
    assert told.returncode == 2
    assert "pip install 'otel-agent-tracker[demo,server]'" in told.stderr
    version = run(environment, tmp_path, "otel-agent-tracker", "--version")
    assert VERSION in version.stdout
