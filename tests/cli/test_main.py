"""The command line as a whole: help, version, wrong use, missing packages, interruption."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from otel_agent_tracker.cli import main
from otel_agent_tracker.semconv import VERSION
from tests.cli.terminal import NOWHERE, leave_in_journal, run, run_process, state_folder
from tests.scripted_server import ScriptedServer, hang, reply
from tests.waiting import wait_until


def walk(command: click.Command, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command and all below it, each with its names."""
    yield names, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk(below, *names, name)


COMMANDS = dict(walk(main))
LEAVES = {names: command for names, command in COMMANDS.items() if not isinstance(command, click.Group)}


def test_the_commands_are_those_of_the_manual() -> None:
    """All of them, and nothing else."""
    assert {" ".join(names) for names in LEAVES} == {
        "serve",
        "run",
        "bridge",
        "demo",
        "conversations list",
        "conversations show",
        "outbox status",
        "outbox list",
        "outbox show",
        "outbox retry",
        "outbox purge",
        "outbox drain",
        "keys create",
        "keys list",
        "keys revoke",
        "doctor",
    }


def test_the_version_is_told() -> None:
    """By the console script's function and by ``python -m``."""
    assert run("--version").stdout == f"otel-agent-tracker {VERSION}\n"
    assert run_process("--version").stdout == f"otel-agent-tracker {VERSION}\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_every_command_has_help(names: tuple[str, ...], flag: str) -> None:
    """It answers to both flags, within 80 columns but for examples."""
    result = run(*names, flag)
    assert (result.exit_code, result.stderr) == (0, "")
    text, _, shown = result.stdout.partition("Examples:\n")
    assert all(len(line) <= 80 and not re.search(r"-$|[^\]]\.\.\.$", line) for line in text.splitlines())
    assert "Usage: " in text
    assert shown or names in (("conversations",), ("outbox",), ("keys",))


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_every_option_is_explained(names: tuple[str, ...]) -> None:
    """With words, and with its default where it has one."""
    for option in LEAVES[names].params:
        if isinstance(option, click.Option):
            assert option.help, option.name
    text = run(*names, "-h").stdout
    defaults = [each for each in LEAVES[names].params if isinstance(each.default, int | float)]
    for option in defaults:
        if isinstance(option, click.Option) and not option.is_flag:
            assert re.search(rf"default:\s+{option.default}", text), option.name


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_every_example_could_be_typed(names: tuple[str, ...]) -> None:
    """Each names a command and options that there are."""
    for line in run(*names, "-h").stdout.partition("Examples:\n")[2].splitlines():
        words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
        assert words.pop(0) == "otel-agent-tracker"
        command: click.Command = main
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None, line
            command = found
        words = words[: words.index("--")] if "--" in words else words  # what follows is another program's
        known = {name for option in command.params for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_no_option_takes_a_key() -> None:
    """Everyone on the machine sees a command line."""
    names = {name for command in LEAVES.values() for option in command.params for name in option.opts}
    assert names.isdisjoint({"--api-key", "--key", "--token"})
    assert "--api-key-file" in names


def test_what_lists_or_shows_speaks_json() -> None:
    """For machines."""
    for names, command in LEAVES.items():
        if names[-1] in ("list", "show", "status", "doctor"):
            assert any("--json" in option.opts for option in command.params), names


@pytest.mark.parametrize(
    ("arguments", "accepted"),
    [
        (["nope"], "serve, run, bridge, demo, conversations, outbox, keys, doctor"),
        (["outbox", "nope"], "status, list, show, retry, purge, drain"),
        (["conversations", "nope"], "list, show"),
        (["keys", "nope"], "create, list, revoke"),
    ],
)
def test_an_unknown_command_is_answered_with_the_known(arguments: list[str], accepted: str) -> None:
    """Exit code 2, as for any wrong use."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert f"Commands: {accepted}." in result.stderr


def test_an_unknown_option_is_wrong_use() -> None:
    """At the top as below."""
    assert run("--nope").exit_code == 2
    assert run("doctor", "--nope").exit_code == 2


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from otel_agent_tracker.cli import main
main({arguments!r}, prog_name="otel-agent-tracker")
"""


def without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line where `module` is not installed."""
    code = BLOCKED.format(module=module, arguments=list(arguments))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("fastapi", ["serve", "--port", "0"], "server"),
        ("uvicorn", ["serve", "--port", "0"], "server"),
        ("sqlalchemy", ["keys", "list"], "server"),
        ("uvicorn", ["bridge", "--url", "http://127.0.0.1:9"], "bridge"),
        ("zstandard", ["bridge", "--url", "http://127.0.0.1:9"], "bridge"),
        ("pydantic_ai", ["demo", "--exit"], "demo,server"),
        ("fastapi", ["demo", "--exit"], "demo,server"),
    ],
)
def test_a_missing_extra_is_named(module: str, arguments: list[str], extra: str) -> None:
    """Exit code 2 and the line that installs it; no traceback."""
    result = without(module, *arguments)
    assert result.returncode == 2
    assert f"pip install 'otel-agent-tracker[{extra}]'" in result.stderr
    assert module in result.stderr
    assert "Traceback" not in result.stderr


def test_help_works_without_extras() -> None:
    """It names every command all the same."""
    result = without("fastapi", "--help")
    assert result.returncode == 0
    assert "serve" in result.stdout


def test_a_missing_module_of_no_extra_is_shown_as_it_is() -> None:
    """Nobody can install it, so the traceback is of use."""
    result = without("sqlite3", "outbox", "show", "1")
    assert result.returncode == 1
    assert "ModuleNotFoundError" in result.stderr


def test_help_imports_neither_server_nor_client_nor_sqlite() -> None:
    """So it is there at once."""
    code = (
        "import sys\n"
        "from otel_agent_tracker.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "heavy = {'fastapi', 'sqlalchemy', 'httpcore', 'sqlite3', 'uvicorn', 'pydantic_ai'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_tracker_that_does_not_answer_is_one_line() -> None:
    """And exit code 1."""
    with ScriptedServer(reply(503)) as server:
        result = run_process("conversations", "list", "--url", server.url)
    assert result.returncode == 1
    assert result.stderr == "Error: The tracker did not answer: status 503\n"


def test_a_command_prints_what_is_logged(tmp_path: Path) -> None:
    """A library keeps its log to itself unless the host wants it; a command has nobody else to tell it to."""
    result = run_process(
        "outbox", "status", AGENT_TRACKER_STATE_DIR=str(tmp_path), AGENT_TRACKER_TIMEOUT_SECONDS="soon"
    )
    assert len([line for line in result.stderr.splitlines() if "AGENT_TRACKER_TIMEOUT_SECONDS" in line]) == 1


def test_an_interrupted_command_leaves_quietly() -> None:
    """Exit code 130, no traceback."""
    with ScriptedServer(hang()) as server:
        process = start("conversations", "list", "--url", server.url)
        wait_until(lambda: server.requests, 20)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "Interrupted.\n")


def test_an_interrupted_question_leaves_quietly(tmp_path: Path) -> None:
    """As any other command."""
    leave_in_journal(state_folder(tmp_path, NOWHERE), 1)
    process = start("outbox", "purge", "1", "--state-dir", str(tmp_path))
    assert process.stderr is not None
    asked = process.stderr.read(len("Delete the dead letter"))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert asked == "Delete the dead letter"
    assert process.returncode == 130
    assert "Traceback" not in errors


def start(*arguments: str) -> subprocess.Popen[str]:
    """A command that goes on."""
    return subprocess.Popen(
        [sys.executable, "-m", "otel_agent_tracker", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
