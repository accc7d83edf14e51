"""Which state folder is meant, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import click

from otel_agent_tracker.cli.options import destination, state_dir
from otel_agent_tracker.config import Config

if TYPE_CHECKING:
    from otel_agent_tracker.cli.folders import StateFolder
    from otel_agent_tracker.state import State

__all__ = ["WHY_REFUSED", "chosen", "configured_name", "on_a_folder", "opened", "readable"]

WHY_REFUSED = "`otel-agent-tracker outbox list --dead` says why, `outbox retry` sends them again."

_Command = TypeVar("_Command", bound=Callable[..., None])

_folder_option = click.option(
    "--folder",
    metavar="NAME",
    help="Which state folder, by its 12 hex digits.  [default: the configured destination's, else the only one]",
)


def on_a_folder(command: _Command) -> _Command:
    """The options that choose a state folder."""
    return destination(state_dir(_folder_option(command)))


def chosen(config: Config, folder: str | None) -> StateFolder:
    """The folder that is meant; a usage error that lists them if that is not clear."""
    from otel_agent_tracker.cli.folders import folders_below

    folders = {each.name: each for each in folders_below(config.state_dir)}
    if folder is not None and folder not in folders:
        raise click.BadParameter(f"there is no {folder!r} {_those(config, folders)}", param_hint="--folder")
    name = folder or configured_name(config)
    if name in folders:
        return folders[name]
    if len(folders) == 1:
        return next(iter(folders.values()))
    if not folders:
        raise click.ClickException(
            f"Nothing was accepted yet: there is no state folder in {config.state_dir}."
        )
    raise click.UsageError(f"Choose a state folder with --folder {_those(config, folders)}.")


def _those(config: Config, folders: dict[str, StateFolder]) -> str:
    return f"(in {config.state_dir}: {', '.join(folders) or 'none'})"


def configured_name(config: Config) -> str | None:
    """The name of the configured destination's folder; None if none is configured."""
    return config.state_folder.name if config.destination else None


@contextmanager
def opened(config: Config, folder: str | None) -> Iterator[State]:
    """The state of the folder that is meant."""
    meant = chosen(config, folder)
    with readable(), meant.state() as state:
        yield state


@contextmanager
def readable() -> Iterator[None]:
    """Trouble with a state file as one line."""
    import sqlite3  # only now: `--help` does without

    try:
        yield
    except (sqlite3.Error, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise click.ClickException(f"The state folder cannot be used: {reason}.") from error
