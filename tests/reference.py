"""The generated parts of the documentation: ``python -m tests.reference`` writes them, a test compares them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from enum import StrEnum
from pathlib import Path

import click

from otel_agent_tracker import config
from otel_agent_tracker.cli import main as command_line
from tests.faults.rows import FAULTS, Shown, shown
from tests.frameworks.page import frameworks_page

__all__ = ["DOCS", "PAGES", "commands", "settings"]

MOST_NAMED_APART = 5  # faults of one test; one that has more is told once, at the end
DOCS = Path(__file__).parent.parent / "docs"


def settings() -> list[str]:
    """The names of all settings that have a variable, without prefix."""
    names = [*config.Options.__annotations__, "url", "api_key"]
    return [name for name in names if name not in config.ARGUMENTS_ONLY]


def commands(
    command: click.Command = command_line, path: tuple[str, ...] = ("otel-agent-tracker",)
) -> Iterator[tuple[str, click.Command]]:
    """Every command with its words, groups before what is in them."""
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))


def configuration_page() -> str:
    """Every variable with its default and meaning."""
    rows = [_setting_row(name) for name in _MEANINGS]
    table = ["| variable | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join([_CONFIGURATION, *table, _ARGUMENTS_ONLY])


def command_page() -> str:
    """Every command with its arguments and options."""
    sections = [_command_section(words, command) for words, command in commands()]
    return "\n".join([_COMMAND_LINE, *sections])


def reliability_page() -> str:
    """Every fault with what is promised under it, and the tests that show so."""
    tests = shown()
    several = {test for shown_by in tests.values() for test in shown_by if test.faults > MOST_NAMED_APART}
    sections = [
        _fault_section(number, fault, [test for test in tests.get(number, []) if test not in several])
        for number, fault in FAULTS.items()
    ]
    at_once = [_promise(test) for test in sorted(several, key=lambda test: test.test)]
    return "\n".join([_RELIABILITY, *sections, "## Many of these at once", "", *at_once, ""])


def _fault_section(number: int, fault: str, tests: list[Shown]) -> str:
    return "\n".join([f"## {number}. {fault}", "", *map(_promise, tests), ""])


def _promise(test: Shown) -> str:
    return f"- {test.promise}\n  [`{test.test}`](../tests/faults/{test.file})"


def _setting_row(name: str) -> str:
    return f"| `{config.PREFIX}{name.upper()}` | {_default(name)} | {_MEANINGS[name]} |"


def _default(name: str) -> str:
    if name == "state_dir":
        return "the platform's state folder"
    (default,) = (each.default for each in fields(config.Config) if each.name == name)
    assert default is not MISSING
    match default:
        case None | ():
            return ""
        case bool():
            return str(default).lower()
        case StrEnum():
            return default.value
        case float():
            return f"{default:g}"
    return str(default)


def _command_section(words: str, command: click.Command) -> str:
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    lines = [f"## {words}", "", text, ""]
    rows = [_parameter_row(each) for each in command.params if not getattr(each, "hidden", False)]
    if rows:
        lines += ["| option | meaning | default |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _parameter_row(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option):
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        meaning, _, default = (parameter.help or "").partition("  [default: ")
        shown = default.rstrip("]") or _shown_default(parameter)
        return f"| {names} | {meaning} | {shown} |".replace("  ", " ")
    return f"| `{parameter.human_readable_name}` | | |"


def _shown_default(option: click.Option) -> str:
    value = option.to_info_dict()["default"]
    return "" if option.is_flag or value is None or callable(value) or value == () else str(value)


_CONFIGURATION = """# Configuration

An argument of a tracker object beats the environment, which beats the default. The keyword of an argument is the
variable's name without prefix, in lower case; only `AGENT_TRACKER_URL` is called `base_url`. Wrong arguments raise;
a wrong value in the environment is logged once, with what is accepted, and the default stands.
`otel-agent-tracker doctor` shows every setting and where it came from.

What is logged goes to the logger `otel_agent_tracker`, and nowhere if your application has not configured `logging`.

Of OpenTelemetry's own variables `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SDK_DISABLED`,
`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_HEADERS` and
`OTEL_EXPORTER_OTLP_TRACES_HEADERS` are honoured. `OTEL_TRACES_EXPORTER` may name `agent_tracker`, beside others after
a comma: agents are then seen in what is exported.

This table is written by `make docs`.
"""

_ARGUMENTS_ONLY = """## Without a variable

`redactor` is an argument only, of tracker objects and of `install`, since no variable can hold a function. It takes
each text that is to leave (metadata, feedback, error messages and types, activities), without the secrets that
`AGENT_TRACKER_REDACT` has found in it, and returns what may leave. Where it raises, or returns anything but a text
that an event can hold, `[redaction failed]` leaves instead. Ids, numbers and the keys of metadata are not texts. It
runs on the calling thread, before anything is made of the text, and holds for all tracker objects of a destination
from the moment it is given: a second, different one is refused.
"""

_COMMAND_LINE = """# Commands

Every command answers `-h` and `--help`. Exit codes: 0 all is well, 1 it is not, 2 wrong use, 130 interrupted.
A command whose extra is missing ends with 2 and the line that installs it.

This page is written by `make docs`.
"""

_RELIABILITY = """# Reliability

Once a call has returned, its event is accepted. It survives the process, reaches the tracker with effect exactly once,
and gives its conversation one outcome; the application neither waits for it nor sees an exception of ours. That holds
under each of these faults, and a test that injects the fault shows it: `make test ARGS=tests/faults` runs them all.

One exception: while the disk refuses, or needs longer for a new file than an application can be made to wait, an event
waits in memory; until it is on disk it does not survive its process.

For each state folder, at any moment, accepted = delivered + pending + dead-lettered + dropped.
`tracker.delivery_stats()` and `otel-agent-tracker outbox status` tell the numbers.

This page is written by `make docs` from the tests.
"""

_MEANINGS: Mapping[str, str] = {
    "url": "The tracker. Without it nothing is kept or sent, and everything else works.",
    "api_key": "The tracker's key; as an argument also a callable, which is asked for each request.",
    "api_key_file": "A file that holds the key; it is read for each request, so the key may rotate.",
    "enabled": "Whether anything is kept and sent.",
    "session_ttl_hours": "How long a session lives after its last access; then it expires.",
    "cleanup_interval_minutes": "How often expired sessions are looked for; idle ones once a minute at least.",
    "idle_minutes": "After how long a silence a session that nobody started by a call is over.",
    "max_sessions": "How many sessions are kept; beyond it the idlest ends as evicted.",
    "state_dir": "Where accepted events wait, each destination in a folder of its own below it.",
    "durability": "`disk`: accepted events survive the process; `memory`: nothing is written.",
    "outbox_max_mb": "How large the state folder may grow before events are refused, the least important first.",
    "timeout_seconds": "The deadline of a whole request, and of a question to the tracker.",
    "flush_timeout_seconds": "How long the end of the process waits for delivery.",
    "agent_id": "The agent of every recognised turn, and where none is said; by default its own name or the service's.",
    "ungrouped": "What recognised turns without a conversation id are: `turns`, an agent's is a conversation of its "
    "own; `all`, a lone model call's too; `ignore`, nothing.",
    "id_precedence": "Attributes to look for a conversation id in before all others, separated by commas.",
    "user_id": "What becomes of user ids: `keep`, `hash` or `drop`.",
    "otlp": "Whether events also go to an OTLP endpoint as spans; without a URL, only there.",
    "otlp_content": "Whether these copies carry free text: feedback, errors, metadata.",
    "propagate": "Whether conversation ids are also read from baggage, which other processes may have set.",
    "redact": "Whether secrets are taken out of metadata, feedback, errors and activities.",
    "trust_env": "Whether the proxy variables of the environment are used.",
    "allow_insecure": "Whether a key may go over plain http to a public host.",
}

PAGES = {
    DOCS / "configuration.md": configuration_page,
    DOCS / "cli.md": command_page,
    DOCS / "frameworks.md": frameworks_page,
    DOCS / "reliability.md": reliability_page,
}

if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8")
