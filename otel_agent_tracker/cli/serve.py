"""`otel-agent-tracker serve`: a tracker of one's own."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape

from otel_agent_tracker.cli.commands import examples
from otel_agent_tracker.cli.options import WholeNumber

if TYPE_CHECKING:
    from otel_agent_tracker.server.run import Server

__all__ = ["command"]


@click.command(
    "serve",
    short_help="Run a tracker: REST API and web page.",
    epilog=examples(
        "otel-agent-tracker serve",
        "otel-agent-tracker serve --port 0 --database ./tracker.sqlite3",
        "otel-agent-tracker serve --host 0.0.0.0 --database postgresql://tracker@db/tracker",
    ),
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8700, show_default=True, type=WholeNumber(0, 65535), help="0 takes a free one."
)
@click.option(
    "--database",
    metavar="URL",
    help="Path of a SQLite file, or a URL such as postgresql://user@host/name."
    "  [default: a SQLite file in the platform's data folder]",
)
@click.option("--rebuild", is_flag=True, help="Count again what figures are added up from, then serve.")
def command(host: str, port: int, database: str | None, rebuild: bool) -> None:
    """Serve a tracker: the REST API that agents report to, and a web page.

    On this machine alone it needs no API key until one is made with `keys create`. On any other address keys
    are needed; if there is none yet, one is made and stored beside the database.
    """
    click.echo("Starting a tracker …")  # what is imported now takes its time
    from otel_agent_tracker.server.run import Server

    try:
        server = Server(host=host, port=port, database=database, rebuild=rebuild)
    except OSError as error:
        raise click.ClickException(_explain(error, host, port)) from error
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--database") from error
    except RuntimeError as error:
        raise click.ClickException(f"--database {error}") from error
    _tell(server, Console(highlight=False, soft_wrap=True))
    try:
        server.run()
    except KeyboardInterrupt:
        click.echo("Stopped.")


def _tell(server: Server, console: Console) -> None:
    from otel_agent_tracker.server.run import spoken

    lines = [
        ("Tracker", spoken(server.page_url())),
        ("Database", server.database),
        ("Send", f"AGENT_TRACKER_URL={spoken(server.url)}"),
    ]
    if server.key_file is not None:
        lines += [
            ("API key", f"made and stored in {server.key_file}"),
            ("Send", f"AGENT_TRACKER_API_KEY_FILE={server.key_file}"),
        ]
    for name, value in lines:
        console.print(f"[bold]{name:9}[/] {escape(value)}")
    console.print("[dim]Ctrl-C stops it.[/]")


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken; choose another with --port, or 0 for a free one"
    return f"cannot listen on {host} port {port}: {error.strerror or error}; see --host and --port"
