"""What the tests of the command line share: running a command here or as a process, and folders to look at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from otel_agent_tracker.cli import main
from otel_agent_tracker.config import resolve
from otel_agent_tracker.entry import Entry
from otel_agent_tracker.journal import Journal
from otel_agent_tracker.semconv import Event

Json = dict[str, Any]
NOWHERE = "http://127.0.0.1:9"


def run(*arguments: object, typed: str | None = None) -> Result:
    """Run a command in this process, on 80 columns; what it raises that it should not is raised here."""
    runner = CliRunner(env={"COLUMNS": "80"}, **_APART)
    result = runner.invoke(main, [str(each) for each in arguments], input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_on_terminal(*arguments: object) -> Result:
    """Run a command as on a terminal of 80 columns that knows no colours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        patch.setenv("TERM", "dumb")
        return run(*arguments)


def run_json(*arguments: object) -> Json:
    """Run a command that succeeds, with `--json`."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: Json = json.loads(result.stdout)
    return found


def run_process(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "otel_agent_tracker", *map(str, arguments)],
        env={**os.environ, "COLUMNS": "80", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def state_folder(state_dir: Path, url: str) -> Path:
    """The folder of a destination without a key."""
    return resolve({"url": url, "state_dir": state_dir}).state_folder


def leave_in_journal(folder: Path, count: int) -> None:
    """What a process leaves that was killed before its worker took anything in."""
    journal = Journal(folder)
    for number in range(count):
        assert journal.append(_activity(number).encode())
    journal.close()


def _activity(number: int) -> Entry:
    body = {
        "agent_id": "bot",
        "action": f"step {number}",
        "timestamp": "2026-01-31T12:00:00.000000Z",
        "details": None,
    }
    return Entry(
        event=Event.AGENT_ACTIVITY,
        event_id=f"{number:032x}",
        path="/agents/activity",
        body=body,
        agent_id="bot",
        time_us=1_769_860_800_000_000 + number,
        service={"name": "shop"},
    )


_APART: Json = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}
"""What click 8.1 needs to be told to keep standard error apart, as later ones always do."""
