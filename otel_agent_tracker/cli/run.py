"""`otel-agent-tracker run`: a program whose agents are seen, and not a line of it is changed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import click

from otel_agent_tracker.cli.commands import examples
from otel_agent_tracker.cli.frameworks import installed_frameworks

__all__ = ["command", "environment"]

LOCAL = "http://127.0.0.1:8700"
_AUTO = "opentelemetry.instrumentation.auto_instrumentation"
_SIGNALS = ("TRACES", "METRICS", "LOGS")


@click.command(
    "run",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog=examples(
        "otel-agent-tracker run -- python app.py",
        "otel-agent-tracker run --url https://tracker.example.com -- gunicorn app:app",
    ),
)
@click.option(
    "--url", metavar="URL", help=f"The tracker.  [default: AGENT_TRACKER_URL, else {LOCAL}, that of serve]"
)
@click.option("--quiet", is_flag=True, help="Say nothing of frameworks.")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED, metavar="PROGRAM [ARGS]...")
def command(url: str | None, quiet: bool, program: tuple[str, ...]) -> None:
    """Run a program whose agents are seen, unchanged.

    The conversations that their spans show are reported. The command does what
    opentelemetry-instrument does, with what a newcomer lacks: a tracker's
    address, and no exporter that fails for want of a backend. What is set
    stays as it is. The program takes the command's place, with its signals
    and its exit code.
    """
    folder = _auto_instrumentation()
    path = _path_of(program[0])
    environ = environment(os.environ, url, folder)
    if not quiet:
        _tell(environ["AGENT_TRACKER_URL"])
    os.execve(path, [path, *program[1:]], environ)  # noqa: S606 - what the user asked for; a shell would split it


def environment(environ: Mapping[str, str], url: str | None, folder: Path) -> dict[str, str]:
    """The variables of a program that is to be seen, from those there are."""
    changed = dict(environ)
    changed["AGENT_TRACKER_URL"] = url or environ.get("AGENT_TRACKER_URL") or LOCAL
    has_backend = any(name.startswith("OTEL_EXPORTER_") and name.endswith("_ENDPOINT") for name in environ)
    if not has_backend and "OTEL_CONFIG_FILE" not in environ:
        for signal in _SIGNALS:
            changed.setdefault(f"OTEL_{signal}_EXPORTER", "none")
    others = [
        each for each in environ.get("PYTHONPATH", "").split(os.pathsep) if each and each != str(folder)
    ]
    changed["PYTHONPATH"] = os.pathsep.join([str(folder), str(Path.cwd()), *others])
    return changed


def _auto_instrumentation() -> Path:
    """The folder whose `sitecustomize` prepares a process."""
    try:
        spec = find_spec("opentelemetry.distro") and find_spec(_AUTO)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise click.ClickException(
            "the auto-instrumentation of OpenTelemetry is not installed: pip install 'otel-agent-tracker[auto]'"
        )
    return Path(spec.origin).parent


def _path_of(name: str) -> str:
    """Where the program is: beside this Python first, whose packages were looked at."""
    beside = Path(sys.executable).parent
    path = None if os.sep in name else shutil.which(name, path=str(beside))
    path = path or shutil.which(name)
    if path is None:
        raise click.UsageError(
            f"There is no program {name!r}. Write it as you would start it: run -- python app.py"
        )
    return path


def _tell(url: str) -> None:
    """One line for each framework, on stderr: stdout is the program's."""
    click.echo(f"conversations go to {url}", err=True)
    found = list(installed_frameworks())
    if not found:
        click.echo("no agent framework that is known is installed beside this command", err=True)
    for each in found:
        click.echo(f"{each.tell()}: {each.advice}" if each.advice else each.tell(), err=True)
