"""Settings: each as it was resolved, where it came from, and what is doubtful about it."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from enum import Enum
from typing import Any

from otel_agent_tracker.cli.doctor.checks import Check, ok, warning, wrong
from otel_agent_tracker.config import ARGUMENTS_ONLY, PREFIX, Config, Options

__all__ = ["Setting", "check_settings", "masked", "overheard", "settings_of"]

SHOWN_OF_A_KEY = 4
LONG_ENOUGH_TO_SHOW = 12
_SECRET = ("api_key", "otlp_headers")


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting as it may be shown; `source` is argument, environment or default."""

    name: str
    value: str
    source: str


def settings_of(config: Config) -> list[Setting]:
    """All of them, with secrets masked."""
    names = [field.name for field in fields(config) if field.name != "sources"]
    return [Setting(name, _told(config, name), config.sources.get(name, "default")) for name in names]


def _told(config: Config, name: str) -> str:
    value, is_given = getattr(config, name), config.sources.get(name, "default") != "default"
    return "refused, see below" if value is None and is_given else _shown(name, value)


def masked(key: str) -> str:
    """The last 4 characters of a key of at least 12, so that it can be told from another; else none."""
    return f"…{key[-SHOWN_OF_A_KEY:]}" if len(key) >= LONG_ENOUGH_TO_SHOW else "… (hidden)"


def check_settings(
    config: Config, complaints: list[logging.LogRecord], environ: Mapping[str, str]
) -> Iterator[Check]:
    """What was said while they were resolved, misspelt variables, and whether anything is sent at all."""
    for record in complaints:
        kind = wrong if record.levelno >= logging.ERROR else warning
        yield kind("settings", record.getMessage(), "")
    yield from _check_names(environ)
    yield _check_destination(config)
    if config.api_key_file is not None:
        yield _check_key_file(config)


@contextmanager
def overheard() -> Iterator[list[logging.LogRecord]]:
    """What is logged by us meanwhile, instead of being printed."""
    logger, handler = logging.getLogger("otel_agent_tracker"), _Listener()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def _shown(name: str, value: Any) -> str:
    if name in ARGUMENTS_ONLY:
        return "an argument of the application, if any"
    if value is None or value in ("", (), {}):
        return "not set"
    if name == "api_key":
        return masked(value) if isinstance(value, str) else "asked of the application"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={masked(item)}" for key, item in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(value.value if isinstance(value, Enum) else value)


def _check_names(environ: Mapping[str, str]) -> Iterator[Check]:
    """A misspelt variable has no effect, and nobody says so."""
    settings = {"url", "api_key", *Options.__annotations__} - ARGUMENTS_ONLY
    known = [PREFIX + name.upper() for name in sorted(settings)]
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            meant = _meant(name, known)
            advice = f"Is {meant} meant?" if meant else "Unset it."
            yield warning("settings", f"{name} is no setting and has no effect.", advice)


def _meant(name: str, known: list[str]) -> str | None:
    """The one of the known names with the most words of `name` in it, and of these the most alike."""
    words = _words(name)
    most = max(len(words & _words(each)) for each in known)
    candidates = [each for each in known if len(words & _words(each)) == most]
    return next(iter(get_close_matches(name, candidates, n=1, cutoff=0 if most else 0.6)), None)


def _words(name: str) -> set[str]:
    return set(name.removeprefix(PREFIX).split("_"))


def _check_destination(config: Config) -> Check:
    match config.disabled_because:
        case None:
            kind = "OTLP endpoint" if config.to_otlp else "tracker"
            return ok("destination", f"{kind} {config.destination}")
        case reason if config.sdk_disabled or not config.enabled:
            return warning(
                "destination", f"Tracking is off: {reason}.", "Unset it where agents are to be tracked."
            )
        case _:
            advice = f"Set {PREFIX}URL; `otel-agent-tracker serve` runs a tracker on this machine."
            return wrong("destination", "No tracker is configured, so nothing is kept or sent.", advice)


def _check_key_file(config: Config) -> Check:
    path = config.api_key_file
    assert path is not None  # noqa: S101 - the caller looked
    try:
        key, mode = config.key(), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        return wrong(
            "key file", f"{path} cannot be read: {reason}.", "Let this user read it; nothing is sent without."
        )
    if not key:
        return wrong("key file", f"{path} is empty.", "Put the API key into it.")
    if stat.S_IMODE(mode) & 0o077:
        return warning("key file", f"Others may read {path}.", f"chmod 600 {path}")
    return ok("key file", f"{path} holds {masked(key)}")
