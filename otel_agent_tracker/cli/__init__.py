"""The command line. A command parses, builds and calls; it is imported when it is asked for."""

from __future__ import annotations

import logging

import click

from otel_agent_tracker.cli.commands import Commands, examples
from otel_agent_tracker.semconv import VERSION

__all__ = ["main"]


@click.command(
    "otel-agent-tracker",
    cls=Commands,
    modules=("serve", "run", "bridge", "demo", "conversations", "outbox", "keys", "doctor"),
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog=examples(
        "otel-agent-tracker serve",
        "otel-agent-tracker run -- python app.py",
        "otel-agent-tracker bridge --url https://tracker.example.com",
        "AGENT_TRACKER_URL=http://localhost:8700 otel-agent-tracker doctor",
        "otel-agent-tracker conversations list --active",
        "otel-agent-tracker outbox status",
    ),
)
@click.version_option(VERSION, "--version", prog_name="otel-agent-tracker", message="%(prog)s %(version)s")
def main() -> None:
    """Track the conversations of AI agents: run a tracker, ask it, and look after delivery to it.

    Settings come from options, else from AGENT_TRACKER_… variables, else from defaults; `doctor` shows each
    and where it came from. Exit codes: 0 all is well, 1 it is not, 2 wrong use, 130 interrupted.
    """
    logging.basicConfig(format="%(message)s")  # a command is the application: its warnings are for people
