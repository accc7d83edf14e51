"""Configuration: argument beats environment beats default, resolved once into a frozen `Config`.

A wrong argument raises. A wrong environment value is logged as one ERROR that names the variable and what is
accepted, and the default stands: a typo in a deployment must not stop the host.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from hashlib import sha256
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import unquote, urlsplit

from otel_agent_tracker import arguments
from otel_agent_tracker.log import Log

__all__ = [
    "ARGUMENTS_ONLY",
    "PREFIX",
    "ApiKey",
    "Config",
    "Durability",
    "Options",
    "Redact",
    "UserIdPolicy",
    "resolve",
]

PREFIX = "AGENT_TRACKER_"
DEFAULT_OTLP_ENDPOINT = "http://localhost:4318/v1/traces"
ARGUMENTS_ONLY = frozenset({"redactor"})  # what no variable can hold
ApiKey = str | Callable[[], str]
Redact = Callable[[str], str]

_logger = Log(__name__)


class Durability(StrEnum):
    """Where accepted events wait: on disk, or in memory only."""

    DISK = "disk"
    MEMORY = "memory"


class UserIdPolicy(StrEnum):
    """What becomes of user ids: kept, replaced by a hash, or dropped."""

    KEEP = "keep"
    HASH = "hash"
    DROP = "drop"


class Options(TypedDict, total=False):
    """What a tracker object takes beside URL and key; each beats its ``AGENT_TRACKER_`` variable.

    `redactor`, which has none, gets every text that is to leave and returns what may; see docs/privacy.md.
    """

    api_key_file: str | os.PathLike[str]
    enabled: bool
    session_ttl_hours: float
    cleanup_interval_minutes: float
    idle_minutes: float
    max_sessions: int
    state_dir: str | os.PathLike[str]
    durability: str
    outbox_max_mb: float
    timeout_seconds: float
    flush_timeout_seconds: float
    agent_id: str
    ungrouped: str
    id_precedence: Sequence[str]
    user_id: str
    otlp: bool
    otlp_content: bool
    propagate: bool
    redact: bool
    redactor: Redact
    trust_env: bool
    allow_insecure: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting, resolved. `sources` tells for each where it came from.

    Raises nothing; `resolve` makes it.
    """

    url: str | None = None
    api_key: ApiKey | None = field(default=None, repr=False)
    api_key_file: Path | None = None
    enabled: bool = True
    session_ttl_hours: float = 10.0
    cleanup_interval_minutes: float = 30.0
    idle_minutes: float = 30.0
    max_sessions: int = 100_000
    state_dir: Path = Path()
    durability: Durability = Durability.DISK
    outbox_max_mb: float = 1024.0
    timeout_seconds: float = 10.0
    flush_timeout_seconds: float = 2.0
    agent_id: str | None = None
    ungrouped: str = "turns"
    id_precedence: tuple[str, ...] = ()
    user_id: UserIdPolicy = UserIdPolicy.KEEP
    otlp: bool = False
    otlp_content: bool = False
    propagate: bool = False
    redact: bool = True
    redactor: Redact | None = field(default=None, compare=False, repr=False)
    trust_env: bool = False
    allow_insecure: bool = False
    otlp_endpoint: str = DEFAULT_OTLP_ENDPOINT
    otlp_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    service_name: str = "unknown_service"
    service_namespace: str = ""
    sdk_disabled: bool = False
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def disabled_because(self) -> str | None:
        """Why nothing is kept or sent, or None when something is."""
        if self.sdk_disabled:
            return "OTEL_SDK_DISABLED is true"
        if not self.enabled:
            return f"{PREFIX}ENABLED is false"
        if self.url is None and not self.otlp:
            return f"no tracker is configured (set {PREFIX}URL or pass base_url)"
        return None

    @property
    def to_otlp(self) -> bool:
        """Whether an OTLP endpoint is the destination, instead of a tracker."""
        return self.url is None and self.otlp

    @property
    def destination(self) -> str:
        """The URL that events go to; empty when disabled."""
        return self.url or (self.otlp_endpoint if self.otlp else "")

    @property
    def key_identity(self) -> str:
        """What stands for the key in the state folder's name; the same for ever where the key may rotate."""
        if self.api_key_file is not None:
            return f"file {self.api_key_file}"
        if self.api_key is None:
            return ""
        if callable(self.api_key):
            kind = type(self.api_key)
            name = getattr(self.api_key, "__qualname__", kind.__qualname__)
            return f"callable {getattr(self.api_key, '__module__', kind.__module__)}.{name}"
        return sha256(self.api_key.encode()).hexdigest()

    @property
    def state_folder(self) -> Path:
        """The folder of this destination below `state_dir`."""
        identity = (self.destination, self.key_identity, self.service_namespace, self.service_name)
        return self.state_dir / sha256("\n".join(identity).encode()).hexdigest()[:12]

    def key(self) -> str | None:
        """The API key of this moment. Raises what the callable raises, or OSError from the key file."""
        if callable(self.api_key):
            return self.api_key()
        if self.api_key_file is not None:
            return self.api_key_file.read_text(encoding="utf-8").strip()
        return self.api_key


def resolve(arguments_given: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Config:
    """The settings of `arguments_given` (None is unset) over those of `environ` over the defaults.

    Raises TypeError or ValueError for an argument that is not accepted.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if unknown := arguments_given.keys() - _SETTINGS.keys():
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}; accepted: {_accepted_names()}")
    for name, parse in _SETTINGS.items():
        if (argument := arguments_given.get(name)) is not None:
            values[name], sources[name] = parse(_ARGUMENT_NAMES.get(name, name), argument), "argument"
        elif name in ARGUMENTS_ONLY:
            continue
        elif text := environ.get(variable := PREFIX + name.upper(), "").strip():
            try:
                values[name], sources[name] = parse(variable, _from_text(name, text)), "environment"
            except ValueError as error:
                _logger.error("%s; the default is used", error)  # noqa: TRY400 - no traceback for a typo
    if sources.get("api_key") == "argument" and sources.get("api_key_file") == "environment":
        del values["api_key_file"], sources["api_key_file"]
    if "state_dir" not in values:
        values |= _default_state(environ)
    unset, theirs = _open_telemetry({}), _open_telemetry(environ)
    values |= theirs
    sources |= {name: "environment" for name in theirs if theirs[name] != unset[name]}
    if values.get("otlp"):
        values["otlp_endpoint"], sources["otlp_endpoint"] = _otlp_endpoint(environ)
    _refuse_exposed_key(values, sources)
    return Config(**values, sources={f.name: sources.get(f.name, "default") for f in fields(Config)})


def _default_state(environ: Mapping[str, str]) -> dict[str, Any]:
    """The platform's state folder; where a container's user has no home, events are kept in memory."""
    try:
        return {"state_dir": _platform_state_dir(environ)}
    except RuntimeError:
        _logger.warning(
            "there is no home folder: accepted events are kept in memory only; %sSTATE_DIR names a folder",
            PREFIX,
        )
        return {"state_dir": Path("otel-agent-tracker").absolute(), "durability": Durability.MEMORY}


def _accepted_names() -> str:
    return ", ".join(sorted(_ARGUMENT_NAMES.get(name, name) for name in _SETTINGS))


def _refuse_exposed_key(values: dict[str, Any], sources: dict[str, str]) -> None:
    """A key over plain http is refused for public hosts, and warned of for others but loopback."""
    url = urlsplit(values.get("url") or "")
    has_key = values.get("api_key") is not None or values.get("api_key_file") is not None
    if (
        url.scheme != "http"
        or not has_key
        or values.get("allow_insecure")
        or _is_loopback(url.hostname or "")
    ):
        return
    if _is_private(url.hostname or ""):
        _logger.warning("the API key is sent over plain http to %s; use https", url.hostname)
        return
    problem = (
        f"an API key must not be sent over plain http to the public host {url.hostname}: use https, or set "
        f"{PREFIX}ALLOW_INSECURE=true if you know that the way there is safe"
    )
    if "argument" in (sources.get("url"), sources.get("api_key")):
        raise ValueError(problem)
    _logger.error("%s; nothing is sent", problem)
    values["url"] = None


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_private(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".svc", ".local", ".internal", ".svc.cluster.local"))


def _open_telemetry(environ: Mapping[str, str]) -> dict[str, Any]:
    """What OpenTelemetry's own variables say of headers, service and the SDK."""
    resource = _pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    headers = environ.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS") or environ.get(
        "OTEL_EXPORTER_OTLP_HEADERS", ""
    )
    return {
        "otlp_headers": _pairs(headers),
        "service_name": environ.get("OTEL_SERVICE_NAME") or resource.get("service.name", "unknown_service"),
        "service_namespace": resource.get("service.namespace", ""),
        "sdk_disabled": environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true",
    }


def _otlp_endpoint(environ: Mapping[str, str]) -> tuple[str, str]:
    """The traces' own endpoint as it is, else the common one with their path; and its source."""
    for variable, path in (
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", ""),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "/v1/traces"),
    ):
        if text := environ.get(variable, "").strip():
            try:
                return _absolute_url(variable, text.rstrip("/") + path if path else text), "environment"
            except ValueError as error:
                _logger.error("%s; the default is used", error)  # noqa: TRY400 - no traceback for a typo
                break
    return DEFAULT_OTLP_ENDPOINT, "default"


def _pairs(text: str) -> dict[str, str]:
    """``key1=value1,key2=value2`` with percent-encoding, as OpenTelemetry writes lists in variables."""
    pairs = (pair.partition("=") for pair in text.split(",") if "=" in pair)
    return {unquote(key).strip(): unquote(value).strip() for key, _, value in pairs}


def _platform_state_dir(environ: Mapping[str, str]) -> Path:
    if sys.platform == "win32":
        base = Path(environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "otel-agent-tracker"


# --- one parser a setting: (name for messages, value) -> finished value, or ValueError / TypeError ----------


def _url(name: str, value: object) -> str:
    url = _absolute_url(name, value)
    if "?" in url:
        raise ValueError(f"{name} must be a URL without query, fragment or spaces")
    return url.rstrip("/")


def _absolute_url(name: str, value: object) -> str:
    """No message shows the URL: a key may be in it, or in its place."""
    url = arguments.text(name, value).strip()
    an_url = f"{name} must be a URL such as https://tracker.example.com"
    try:
        parts = urlsplit(url)
        _ = parts.port  # is read when asked for
    except ValueError:
        raise ValueError(f"{an_url}; its host or port cannot be read") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{name} must not hold a user name or password; pass an API key instead")
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{an_url}; it does not begin with https:// or http://")
    if not parts.hostname:
        raise ValueError(f"{an_url}; it has no host")
    if "#" in url or not url.isprintable() or " " in url:
        raise ValueError(f"{name} must be a URL without query, fragment or spaces")
    if not _can_be_looked_up(parts.hostname):
        raise ValueError(f"{an_url}; each part of its host has 1 to 63 characters")
    return url


def _can_be_looked_up(host: str) -> bool:
    if host.isascii():  # so that the codec is loaded by those alone who need it
        return all(0 < len(label) < 64 for label in host.removesuffix(".").split("."))
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def _api_key(name: str, value: object) -> ApiKey:
    if callable(value) and not iscoroutinefunction(value):
        return value
    if not isinstance(value, str):
        kind = "an async function" if callable(value) else type(value).__name__
        raise TypeError(f"{name} must be a str, or a function that returns one, not {kind}")
    key = str.__str__(value)
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"{name} must be printable ASCII without spaces or newlines (the value is not shown)"
        )
    return key


def _redactor(name: str, value: object) -> Redact:
    if not callable(value) or iscoroutinefunction(value):
        raise TypeError(f"{name} must be a function that takes a str and returns one, and is not async")
    return value


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and (flag := _FLAGS.get(str.lower(value))) is not None:
        return flag
    raise arguments.type_or_value(name, value, "true or false")


def _path(name: str, value: object) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, not {type(value).__name__}")
    if not os.fspath(value) or "\0" in (path := Path(value)).as_posix():
        raise ValueError(f"{name} must be a path, which is not empty and has no NUL in it")
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"{name} must not begin with the home folder of a user who has none here") from None


def _choice(*choices: str) -> Callable[[str, object], str]:
    return lambda name, value: arguments.choice(name, value, *choices)


def _positive_count(name: str, value: object) -> int:
    number = arguments.count(name, value)
    if number == 0:
        raise ValueError(f"{name} must be above 0")
    return number


def _names(name: str, value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(item, str) for item in names):
        raise TypeError(f"{name} must be attribute names, as a list or separated by commas")
    return tuple(item.strip() for item in names if item.strip())


def _durability(name: str, value: object) -> Durability:
    return arguments.member(name, value, Durability)


def _user_id_policy(name: str, value: object) -> UserIdPolicy:
    return arguments.member(name, value, UserIdPolicy)


def _from_text(name: str, text: str) -> object:
    """A variable's text as the type its parser expects; a text that is no number stays for its message."""
    convert: type[int] | type[float] | None = _NUMBERS.get(name)
    if convert is None:
        return text
    try:
        return convert(text)
    except ValueError:
        raise ValueError(f"{PREFIX}{name.upper()} must be {_KINDS[convert]}, not {text!r}") from None


_FLAGS = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}

_KINDS: dict[type, str] = {int: "a whole number", float: "a number"}

_ARGUMENT_NAMES = {"url": "base_url"}

_SETTINGS: dict[str, Callable[[str, object], Any]] = {
    "url": _url,
    "api_key": _api_key,
    "api_key_file": _path,
    "enabled": _flag,
    "session_ttl_hours": arguments.period,
    "cleanup_interval_minutes": arguments.period,
    "idle_minutes": arguments.period,
    "max_sessions": _positive_count,
    "state_dir": _path,
    "durability": _durability,
    "outbox_max_mb": arguments.positive_number,
    "timeout_seconds": arguments.period,
    "flush_timeout_seconds": arguments.period,
    "agent_id": arguments.identifier,
    "ungrouped": _choice("turns", "all", "ignore"),
    "id_precedence": _names,
    "user_id": _user_id_policy,
    "otlp": _flag,
    "otlp_content": _flag,
    "propagate": _flag,
    "redact": _flag,
    "redactor": _redactor,
    "trust_env": _flag,
    "allow_insecure": _flag,
}

_NUMBERS: dict[str, type[int] | type[float]] = {
    "session_ttl_hours": float,
    "cleanup_interval_minutes": float,
    "idle_minutes": float,
    "max_sessions": int,
    "outbox_max_mb": float,
    "timeout_seconds": float,
    "flush_timeout_seconds": float,
}
