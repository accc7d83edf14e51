"""`otel-agent-tracker keys`: the API keys of one's own tracker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from otel_agent_tracker.cli.commands import Group, examples
from otel_agent_tracker.cli.options import as_json
from otel_agent_tracker.cli.output import print_json

if TYPE_CHECKING:
    from otel_agent_tracker.server.keys import KeyInfo
    from otel_agent_tracker.server.store import Store

__all__ = ["command"]

_database = click.option(
    "--database",
    metavar="URL",
    help="As given to serve.  [default: a SQLite file in the platform's data folder]",
)


@click.group("keys", cls=Group)
def command() -> None:
    """Make, list and revoke the API keys of a tracker.

    From the first key on, a tracker answers nobody without one. A running tracker takes changes in within a
    second.
    """


@command.command("create", epilog=examples("otel-agent-tracker keys create --project shop --name ci > key"))
@click.option("--project", default="default", show_default=True, help="What the key opens; made if need be.")
@click.option("--name", help="A word to know the key by.")
@_database
def create(project: str, name: str | None, database: str | None) -> None:
    """Make a key and show it, this once."""
    with _open(database) as store:
        try:
            key = store.keys.create(project, name)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--project") from error
    click.echo(key)
    click.echo("It is not shown again. Agents find it in AGENT_TRACKER_API_KEY.", err=True)


@command.command("list", epilog=examples("otel-agent-tracker keys list --json"))
@_database
@as_json
def list_keys(database: str | None, as_json: bool) -> None:
    """Show the keys by their first characters, with project, name and use."""
    with _open(database) as store:
        keys = store.keys.list()
    if as_json:
        print_json({"keys": [_told(key) for key in keys]})
        return
    table = Table("Key", "Project", "Name", "Made", "Last used", "Revoked")
    for key in keys:
        table.add_row(*_cells(key))
    Console(highlight=False).print(table if keys else "No key was made yet.")


@command.command("revoke", epilog=examples("otel-agent-tracker keys revoke oat_1a2b3c4d"))
@click.argument("prefix")
@_database
def revoke(prefix: str, database: str | None) -> None:
    """Revoke the key that begins with PREFIX."""
    with _open(database) as store:
        revoked = store.keys.revoke(prefix)
    if not revoked:
        raise click.ClickException("no valid key begins so, or more than one does; `keys list` shows them")
    click.echo("Revoked.")


@contextmanager
def _open(database: str | None) -> Iterator[Store]:
    from otel_agent_tracker.server.database import Database, default_path
    from otel_agent_tracker.server.store import Store

    try:
        store = Store(Database(database or str(default_path())))
    except (ValueError, RuntimeError) as error:
        raise click.BadParameter(str(error), param_hint="--database") from error
    try:
        yield store
    finally:
        store.close()


def _cells(key: KeyInfo) -> list[str]:
    return [
        f"{key.prefix}…",
        key.project,
        key.name or "",
        _time(key.created_us),
        _time(key.used_us),
        _time(key.revoked_us),
    ]


def _told(key: KeyInfo) -> dict[str, str | None]:
    return {
        "prefix": key.prefix,
        "project": key.project,
        "name": key.name,
        "created_time": _wire_time(key.created_us),
        "last_used_time": _wire_time(key.used_us),
        "revoked_time": _wire_time(key.revoked_us),
    }


def _wire_time(time_us: int | None) -> str | None:
    from otel_agent_tracker import wire

    return None if time_us is None else wire.format_time(time_us)


def _time(time_us: int | None) -> str:
    from otel_agent_tracker import wire

    return "" if time_us is None else wire.format_time(time_us)[:19].replace("T", " ")
