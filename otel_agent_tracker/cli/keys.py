"""`otel-agent-tracker keys`: the API keys of one's own tracker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import click

from otel_agent_tracker.cli.commands import Group, examples
from otel_agent_tracker.cli.options import as_json
from otel_agent_tracker.cli.output import plain, print_json, print_table, table

if TYPE_CHECKING:
    from otel_agent_tracker.server.keys import KeyInfo
    from otel_agent_tracker.server.store import Store

__all__ = ["command"]

LEAST_OF_A_KEY = 6  # characters, below which a slip would find some key

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
    with _opened(database, make=True) as (store, shown):
        try:
            key = store.keys.create(project, name)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--project") from error
    click.echo(key)
    click.echo(f"Made in {shown}. It is not shown again; agents find it in AGENT_TRACKER_API_KEY.", err=True)


@command.command(
    "list",
    short_help="Show the keys by their first characters.",
    epilog=examples("otel-agent-tracker keys list --json"),
)
@_database
@as_json
def list_keys(database: str | None, as_json: bool) -> None:
    """Show the keys by their first characters, with project, name and use."""
    with _opened(database) as (store, _):
        keys = store.keys.list()
    if as_json:
        print_json({"keys": [_told(key) for key in keys]})
    elif not keys:
        click.echo("No key was made yet.")
    else:
        shown = table("Key", "Project", "Name", "Made", "Last used", "Revoked")
        for key in keys:
            shown.add_row(*map(plain, _cells(key)))
        print_table(shown)


@command.command("revoke", epilog=examples("otel-agent-tracker keys revoke oat_1a2b3c4d"))
@click.argument("prefix")
@_database
def revoke(prefix: str, database: str | None) -> None:
    """Revoke the key that begins with PREFIX, of at least 6 characters."""
    if len(prefix) < LEAST_OF_A_KEY:
        raise click.BadParameter(
            f"{prefix!r} is too short: give at least {LEAST_OF_A_KEY} characters of the key, as `keys list` "
            "shows it.",
            param_hint="PREFIX",
        )
    with _opened(database) as (store, _):
        key = _only_key(store.keys.list(), prefix)
        is_revoked = store.keys.revoke(key.prefix)
    if not is_revoked:
        raise click.ClickException(f"{key.prefix}… was revoked meanwhile.")
    name = f" ({key.name})" if key.name else ""
    click.echo(f"Revoked {key.prefix}…{name} of project {key.project}.")


@contextmanager
def _opened(database: str | None, *, make: bool = False) -> Iterator[tuple[Store, str]]:
    """The store of the database and how the database may be shown; `make` allows a new one."""
    from otel_agent_tracker.server.database import Database, default_path
    from otel_agent_tracker.server.opening import usable
    from otel_agent_tracker.server.store import Store

    try:
        opened = Database(database or str(default_path()))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--database") from error
    try:
        with usable(opened), closing(opened):
            if not make and opened.path is not None:
                opened.path.stat()  # a missing file is an error here, and no reason to make one
            yield Store(opened), opened.shown
    except RuntimeError as error:
        raise click.ClickException(f"--database {error}") from error


def _only_key(keys: list[KeyInfo], prefix: str) -> KeyInfo:
    """The valid key that begins so; ClickException if none does, or several do."""
    found = [key for key in keys if _begins(key, prefix)]
    valid = [key for key in found if key.revoked_us is None]
    if len(valid) == 1:
        return valid[0]
    if valid:
        raise click.ClickException(
            f"{len(valid)} keys begin with {prefix!r}: {', '.join(key.prefix for key in valid)}; give more of it."
        )
    if found:
        raise click.ClickException(f"The key that begins with {prefix!r} is revoked already.")
    raise click.ClickException(f"No key begins with {prefix!r}; `keys list` shows those there are.")


def _begins(key: KeyInfo, prefix: str) -> bool:
    """Whether the key begins so, as far as its beginning is known; `prefix` may be the whole key."""
    return key.prefix.startswith(prefix[: len(key.prefix)])


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
