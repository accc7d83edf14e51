"""What many commands take: the destination, the state folder and JSON; and what is built from it.

Never a key: a command line is seen by everyone on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from otel_agent_tracker.config import Config, resolve

if TYPE_CHECKING:
    from otel_agent_tracker.client import TrackerClient

__all__ = ["WholeNumber", "as_json", "configured", "connected", "destination", "state_dir", "usable_key"]

_Command = TypeVar("_Command", bound=Callable[..., None])


class WholeNumber(click.IntRange):
    """A whole number within bounds, and a complaint that says which."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; BadParameter with the bounds if it is none, or lies outside."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            bounds = f"from {self.min}" + ("" if self.max is None else f" to {self.max}")
            raise click.BadParameter(f"{value!r} is not a whole number {bounds}.", ctx, param) from error


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines; times are UTC.")

state_dir = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where accepted events wait.  [default: AGENT_TRACKER_STATE_DIR, else the platform's state folder]",
)

_url = click.option("--url", metavar="URL", help="The tracker.  [default: AGENT_TRACKER_URL]")
_api_key_file = click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, readable=True),
    metavar="FILE",
    help="A file that holds the API key.  [default: AGENT_TRACKER_API_KEY_FILE, else AGENT_TRACKER_API_KEY]",
)


def destination(command: _Command) -> _Command:
    """The options `--url` and `--api-key-file`."""
    return _url(_api_key_file(command))


def configured(
    *, url: str | None = None, api_key_file: Path | None = None, state_dir: Path | None = None
) -> Config:
    """The settings, options before environment before defaults; a wrong option is a usage error."""
    try:
        return resolve({"url": url, "api_key_file": api_key_file, "state_dir": state_dir})
    except ValueError as error:
        raise click.UsageError(str(error).replace("base_url", "--url")) from error


@contextmanager
def connected(config: Config) -> Iterator[TrackerClient]:
    """A client of the configured tracker; a usage error if none is configured or its key cannot be read."""
    from otel_agent_tracker.client import TrackerClient  # brings what `--help` does without

    if config.url is None:
        raise click.UsageError("No tracker is configured: give --url, or set AGENT_TRACKER_URL.")
    usable_key(config)
    client = TrackerClient(
        config.url,
        api_key=config.key,
        timeout_seconds=config.timeout_seconds,
        trust_env=config.trust_env,
    )
    try:
        yield client
    finally:
        client.close()


def usable_key(config: Config) -> str | None:
    """The key of this moment; a usage error if its file cannot be read."""
    try:
        return config.key()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise click.UsageError(f"The API key file {config.api_key_file} cannot be read: {reason}.") from error
