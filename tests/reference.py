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

__all__ = ["DOCS", "PAGES", "commands", "settings"]

DOCS = Path(__file__).parent.parent / "docs"


def settings() -> list[str]:
    """The names of all settings, without prefix."""
    return [*config.Options.__annotations__, "url", "api_key"]


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
    return "\n".join([_CONFIGURATION, "| variable | default | meaning |", "|---|---|---|", *rows, ""])


def command_page() -> str:
    """Every command with its arguments and options."""
    sections = [_command_section(words, command) for words, command in commands()]
    return "\n".join([_COMMAND_LINE, *sections])


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

Of OpenTelemetry's own variables `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SDK_DISABLED`,
`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_HEADERS` and
`OTEL_EXPORTER_OTLP_TRACES_HEADERS` are honoured.

This table is written by `make docs`.
"""

_COMMAND_LINE = """# Commands

Every command answers `-h` and `--help`. Exit codes: 0 all is well, 1 it is not, 2 wrong use, 130 interrupted.
A command whose extra is missing ends with 2 and the line that installs it.

This page is written by `make docs`.
"""

_MEANINGS: Mapping[str, str] = {
    "url": "The tracker. Without it nothing is kept or sent, and everything else works.",
    "api_key": "The tracker's key; as an argument also a callable, which is asked for each request.",
    "api_key_file": "A file that holds the key; it is read for each request, so the key may rotate.",
    "enabled": "Whether anything is kept and sent.",
    "session_ttl_hours": "How long a session lives after its last access; then it expires.",
    "cleanup_interval_minutes": "How often expired sessions are looked for.",
    "idle_minutes": "After how long a silence a session that nobody started by a call is over.",
    "max_sessions": "How many sessions are kept; beyond it the idlest ends as evicted.",
    "state_dir": "Where accepted events wait, each destination in a folder of its own below it.",
    "durability": "`disk`: accepted events survive the process; `memory`: nothing is written.",
    "outbox_max_mb": "How large the state folder may grow before events are refused, the least important first.",
    "timeout_seconds": "The deadline of a whole request, and of a question to the tracker.",
    "flush_timeout_seconds": "How long the end of the process waits for delivery.",
    "agent_id": "The agent where none is said; by default the service's name.",
    "ungrouped": "What spans without any conversation id are taken for: `turns`, `all` or `ignore`."
    " Nothing reads it yet.",
    "id_precedence": "Attributes to look for a conversation id in, separated by commas. Nothing reads it yet.",
    "user_id": "What becomes of user ids: `keep`, `hash` or `drop`.",
    "otlp": "Whether events also go to an OTLP endpoint as spans; without a URL, only there.",
    "otlp_content": "Whether these copies carry free text: feedback, errors, metadata.",
    "propagate": "Whether session ids travel in baggage. Nothing reads it yet.",
    "redact": "Whether secrets are taken out of metadata, feedback and errors.",
    "trust_env": "Whether the proxy variables of the environment are used.",
    "allow_insecure": "Whether a key may go over plain http to a public host.",
}

PAGES = {DOCS / "configuration.md": configuration_page, DOCS / "cli.md": command_page}

if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8")
