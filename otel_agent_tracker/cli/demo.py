"""`otel-agent-tracker demo`: a tracker and real agents, on this machine alone."""

from __future__ import annotations

import click

from otel_agent_tracker.cli.commands import examples
from otel_agent_tracker.cli.options import WholeNumber

__all__ = ["command"]


@click.command("demo", epilog=examples("otel-agent-tracker demo", "otel-agent-tracker demo --exit"))
@click.option(
    "--exit", "leave", is_flag=True, help="Leave when all is compared, instead of serving the page."
)
@click.option("--port", default=0, show_default=True, type=WholeNumber(0, 65535), help="0 takes a free one.")
@click.pass_context
def command(context: click.Context, leave: bool, port: int) -> None:
    """Let real agents work, and see them in a tracker.

    A tracker on loopback hears of the conversations that agents hold; what it then says is compared with what
    they did. It needs no API key and no network, and leaves nothing behind. Exit code 1: the two differ.
    """
    click.echo("Starting a tracker and agents …")  # what is imported now takes its time
    from otel_agent_tracker.demo import run

    try:
        context.exit(run(leave=leave, port=port))
    except OSError as error:
        raise click.ClickException(
            f"cannot listen on port {port}: {error.strerror or error}; see --port"
        ) from error
