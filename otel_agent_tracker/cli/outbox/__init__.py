"""`otel-agent-tracker outbox`: what waits for delivery, and what the tracker has refused."""

from __future__ import annotations

import click

from otel_agent_tracker.cli.commands import Group
from otel_agent_tracker.cli.outbox.dead_letters import purge, retry
from otel_agent_tracker.cli.outbox.drain import drain
from otel_agent_tracker.cli.outbox.events import list_events, show
from otel_agent_tracker.cli.outbox.status import status

__all__ = ["command"]


@click.group("outbox", cls=Group)
def command() -> None:
    """Look after the events that wait for delivery.

    All of it works while the application runs. Each destination (tracker, key and service) has a state folder
    of its own.
    """


for _command in (status, list_events, show, retry, purge, drain):
    command.add_command(_command)
