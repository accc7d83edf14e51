"""`otel-agent-tracker outbox retry` and `purge`: what becomes of events that the tracker has refused."""

from __future__ import annotations

from typing import Any

import click

from otel_agent_tracker.cli.commands import examples
from otel_agent_tracker.cli.options import WholeNumber, configured
from otel_agent_tracker.cli.outbox.choice import chosen, on_a_folder, opened
from otel_agent_tracker.config import Config

__all__ = ["purge", "retry"]

_event_or_all = click.argument("event", metavar="[ID]", type=WholeNumber(1), required=False)
_all = click.option("--all", "every", is_flag=True, help="All dead letters.")


@click.command(
    "retry", epilog=examples("otel-agent-tracker outbox retry 17", "otel-agent-tracker outbox retry --all")
)
@_event_or_all
@_all
@on_a_folder
def retry(event: int | None, every: bool, folder: str | None, **given: Any) -> None:
    """Make the dead letter ID, or all of them, pending again.

    A running application sends them within a second or so; else `outbox drain` does.
    """
    _one_or_all(event, every)
    with opened(configured(**given), folder) as state, state.transaction():
        number = state.revive(event)
    _require_found(event, number)
    click.echo(f"{_dead_letters(number)} pending again.")


@click.command(
    "purge",
    short_help="Delete a dead letter, or all of them, for ever.",
    epilog=examples("otel-agent-tracker outbox purge 17", "otel-agent-tracker outbox purge --all --yes"),
)
@_event_or_all
@_all
@click.option("--yes", is_flag=True, help="Do not ask.")
@on_a_folder
def purge(event: int | None, every: bool, yes: bool, folder: str | None, **given: Any) -> None:
    """Delete the dead letter ID, or all of them, for ever; they count as dropped."""
    _one_or_all(event, every)
    config = configured(**given)
    if every and not _dead_letters_in(config, folder):
        click.echo("There are no dead letters.")
        return
    if not yes:
        what = "all dead letters" if every else f"the dead letter {event}"
        click.confirm(f"Delete {what} in {chosen(config, folder).path} for ever?", abort=True, err=True)
    with opened(config, folder) as state, state.transaction():
        number = state.purge(event)
    _require_found(event, number)
    click.echo(f"{_dead_letters(number)} deleted.")


def _dead_letters_in(config: Config, folder: str | None) -> int:
    with opened(config, folder) as state:
        return state.counts().dead_lettered


def _one_or_all(event: int | None, every: bool) -> None:
    if (event is None) is not every:
        raise click.UsageError(
            "Give either the ID of a dead letter, which `outbox list --dead` shows, or --all."
        )


def _require_found(event: int | None, number: int) -> None:
    if event is not None and not number:
        raise click.ClickException(
            f"There is no dead letter {event}; `outbox list --dead` shows those there are."
        )


def _dead_letters(number: int) -> str:
    return "1 dead letter is" if number == 1 else f"{number} dead letters are"
