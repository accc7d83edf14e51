"""Groups of commands that are imported when they are asked for, and that say plainly what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from otel_agent_tracker.exceptions import TrackerUnavailable

__all__ = ["Commands", "Group", "examples"]

INTERRUPTED = 130


class Group(click.Group):
    """A group that lists its commands in their order, and to whoever names none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As in any group, but an unknown command is answered with those that there are."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.UsageError(
                f"There is no command {name!r}. Commands: {', '.join(self.list_commands(ctx))}.", ctx
            )
        return super().resolve_command(ctx, args)


class Commands(Group):
    """The commands of `modules`, modules of this package, each of which names its own `command`.

    It is the boundary of the process: trouble that is no mistake of ours becomes one line and an exit code.
    """

    def __init__(self, *arguments: Any, modules: Sequence[str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order of `modules`."""
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None if there is no such command."""
        if cmd_name not in self._modules:
            return None
        command: click.Command = import_module(f"{__package__}.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except TrackerUnavailable as error:
            raise click.ClickException(f"The tracker did not answer: {error}") from error
        except ModuleNotFoundError as error:
            raise _MissingExtra.of(error, ctx.invoked_subcommand) from error
        except KeyboardInterrupt:
            _leave_interrupted(ctx)
        except click.Abort as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # at a question of click's
                _leave_interrupted(ctx)
            raise


class _MissingExtra(click.ClickException):
    """A command needs packages that an extra brings."""

    exit_code = 2

    @classmethod
    def of(cls, error: ModuleNotFoundError, command: str | None) -> Exception:
        """What to say of a module that is not there; the error itself if it is of no extra."""
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRA_OF:
            return error
        extra = _EXTRA_OF_COMMAND.get(command or "", _EXTRA_OF[module])
        return cls(f"`{command}` needs {module}: pip install 'otel-agent-tracker[{extra}]'")


def examples(*lines: str) -> str:
    """The end of a help text: command lines to copy, as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _leave_interrupted(ctx: click.Context) -> None:
    click.echo("Interrupted.", err=True)
    ctx.exit(INTERRUPTED)


_EXTRA_OF_COMMAND = {  # whichever of several packages is missed first
    "bridge": "bridge",
    "demo": "demo,server",
}

_EXTRA_OF = {
    "alembic": "server",
    "fastapi": "server",
    "grpc": "bridge",
    "jinja2": "server",
    "sqlalchemy": "server",
    "starlette": "server",
    "uvicorn": "server",
    "zstandard": "bridge",
    "psycopg": "postgres",
    "pydantic_ai": "demo",
}
