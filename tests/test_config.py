"""Rules of `config`: argument beats environment beats default; what is wrong is named."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from otel_agent_tracker import config as config_module
from otel_agent_tracker.config import (
    ARGUMENTS_ONLY,
    PREFIX,
    Config,
    Durability,
    Options,
    UserIdPolicy,
    resolve,
)

PUBLIC = "http://tracker.example.com"
KEY = "sk-secret-1234"

SETTINGS: dict[str, tuple[str, object]] = {
    "url": ("https://tracker.example.com/prefix/", "https://tracker.example.com/prefix"),
    "api_key": (KEY, KEY),
    "api_key_file": ("/run/key", Path("/run/key")),
    "enabled": ("false", False),
    "session_ttl_hours": ("0.5", 0.5),
    "cleanup_interval_minutes": ("7", 7.0),
    "idle_minutes": ("12.5", 12.5),
    "max_sessions": ("77", 77),
    "state_dir": ("/var/state", Path("/var/state")),
    "durability": ("memory", Durability.MEMORY),
    "outbox_max_mb": ("64", 64.0),
    "timeout_seconds": ("3", 3.0),
    "flush_timeout_seconds": ("0.25", 0.25),
    "agent_id": ("bot", "bot"),
    "ungrouped": ("all", "all"),
    "id_precedence": ("langgraph.thread_id, session.id,", ("langgraph.thread_id", "session.id")),
    "user_id": ("hash", UserIdPolicy.HASH),
    "otlp": ("TRUE", True),
    "otlp_content": ("yes", True),
    "propagate": ("on", True),
    "redact": ("0", False),
    "trust_env": ("1", True),
    "allow_insecure": ("True", True),
}
"""Every setting: the text of its variable, and what becomes of it."""

WRONG: dict[str, tuple[str, str]] = {
    "url": ("tracker.example.com:8700", "a URL such as https://tracker.example.com"),
    "api_key": ("two words", "printable ASCII"),
    "enabled": ("maybe", "true or false"),
    "session_ttl_hours": ("0", "a finite number above 0"),
    "cleanup_interval_minutes": ("-1", "a finite number above 0"),
    "idle_minutes": ("nan", "a finite number above 0"),
    "max_sessions": ("1.5", "a whole number"),
    "state_dir": ("~no-such-user/state", "not begin with the home folder of a user who has none"),
    "api_key_file": ("~no-such-user/key", "not begin with the home folder of a user who has none"),
    "durability": ("tape", "one of disk, memory"),
    "outbox_max_mb": ("inf", "a finite number above 0"),
    "timeout_seconds": ("soon", "a number"),
    "flush_timeout_seconds": ("1e300", "at most 10000000"),
    "agent_id": ("a\x07b", "control characters"),
    "ungrouped": ("some", "one of turns, all, ignore"),
    "user_id": ("erase", "one of keep, hash, drop"),
    "otlp": ("2", "true or false"),
    "otlp_content": ("-", "true or false"),
    "propagate": ("nope", "true or false"),
    "redact": ("ja", "true or false"),
    "trust_env": ("ok", "true or false"),
    "allow_insecure": ("!", "true or false"),
}
"""A wrong text for each variable that has any, and what the message says is accepted."""


def environ_of(**settings: str) -> dict[str, str]:
    """An environment with these settings."""
    return {PREFIX + name.upper(): text for name, text in settings.items()}


def from_environ(**settings: str) -> Config:
    """The configuration of such an environment."""
    return resolve({}, environ_of(**settings))


# --- precedence ---------------------------------------------------------------------------------------------


def test_every_setting_is_covered_here() -> None:
    """Settings, fields, keyword options and the tables of these tests know the same names."""
    settings = set(config_module._SETTINGS)
    assert settings - ARGUMENTS_ONLY == set(SETTINGS)
    assert SETTINGS.keys() - WRONG.keys() == {"id_precedence"}  # any text is fit
    assert settings - {"url", "api_key"} == Options.__annotations__.keys()
    assert settings < {field.name for field in fields(Config)}


def test_the_defaults_are_those_of_the_design() -> None:
    """Without arguments and environment."""
    config = resolve({}, {"XDG_STATE_HOME": "/state"})
    assert (config.url, config.api_key, config.enabled) == (None, None, True)
    assert (config.session_ttl_hours, config.cleanup_interval_minutes, config.idle_minutes) == (10, 30, 30)
    assert (config.max_sessions, config.durability, config.outbox_max_mb) == (100_000, "disk", 1024)
    assert (config.timeout_seconds, config.flush_timeout_seconds) == (10, 2)
    assert (config.agent_id, config.ungrouped, config.id_precedence) == (None, "turns", ())
    assert (config.user_id, config.otlp, config.otlp_content) == ("keep", False, False)
    assert (config.propagate, config.redact, config.trust_env) == (False, True, False)
    assert config.allow_insecure is False
    assert set(config.sources.values()) == {"default"}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_variable_is_read(name: str) -> None:
    """Each setting can be given by the environment, which is then told as its source."""
    text, value = SETTINGS[name]
    config = from_environ(**{name: f" {text} "})
    assert getattr(config, name) == value
    assert config.sources[name] == "environment"


@pytest.mark.parametrize("name", SETTINGS)
def test_an_argument_beats_the_environment(name: str) -> None:
    """The variable is not even looked at: a wrong one says nothing."""
    text, value = SETTINGS[name]
    wrong = WRONG.get(name, ("ignored", ""))[0]
    argument = text if not isinstance(value, int | float) or isinstance(value, bool) else value
    config = resolve({name: argument}, environ_of(**{name: wrong}))
    assert getattr(config, name) == value
    assert config.sources[name] == "argument"


def test_none_and_blank_are_unset() -> None:
    """An argument of None leaves it to the environment, a blank variable to the default."""
    assert resolve({"idle_minutes": None}, environ_of(idle_minutes="5")).idle_minutes == 5
    assert from_environ(idle_minutes="  ").idle_minutes == 30


def test_the_process_environment_is_the_default_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who hands in no environment gets the process's."""
    monkeypatch.setenv("AGENT_TRACKER_MAX_SESSIONS", "5")
    assert resolve({}).max_sessions == 5


def test_a_config_is_frozen() -> None:
    """Nobody can change what was resolved."""
    with pytest.raises(FrozenInstanceError):
        resolve({}, {}).url = PUBLIC  # type: ignore[misc]  # what is tested


# --- what is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_variable_is_one_error_and_the_default_stands(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The line names the variable and what is accepted; nothing raises."""
    text, accepted = WRONG[name]
    config = from_environ(**{name: text})
    assert getattr(config, name) == getattr(from_environ(), name)
    assert config.sources[name] == "default"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(f"AGENT_TRACKER_{name.upper()} must ")
    assert accepted in record.getMessage()
    assert record.exc_info is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"url": "tracker"}, ValueError, "https://tracker.example.com; it does not begin with https://"),
        (
            {"url": "https://"},
            ValueError,
            "base_url must be a URL such as https://tracker.example.com; it has no host",
        ),
        ({"url": "ftp://tracker"}, ValueError, "base_url must be a URL such as"),
        ({"url": "http://[::1"}, ValueError, "base_url must be a URL such as"),
        ({"url": "http://host:port"}, ValueError, "its host or port cannot be read"),
        ({"url": "https://u:p@host"}, ValueError, "base_url must not hold a user name or password"),
        ({"url": "https://host/?a=1"}, ValueError, "base_url must be a URL without query"),
        ({"url": "https://host/a b"}, ValueError, "base_url must be a URL without query, fragment or spaces"),
        ({"url": "https://ho\x00st"}, ValueError, "base_url must be a URL without"),
        ({"url": 7}, TypeError, "base_url must be a str, not int"),
        ({"api_key": 7}, TypeError, "api_key must be a str, or a function that returns one, not int"),
        ({"session_ttl_hours": "10"}, TypeError, "session_ttl_hours must be a number, not str"),
        ({"session_ttl_hours": math.nan}, ValueError, "session_ttl_hours must be a finite number above 0"),
        ({"session_ttl_hours": 1e308}, ValueError, "session_ttl_hours must be at most 10000000, not 1e+308"),
        ({"max_sessions": 0}, ValueError, "max_sessions must be above 0"),
        ({"max_sessions": 1.0}, TypeError, "max_sessions must be an int, not float"),
        ({"enabled": 1}, ValueError, "enabled must be true or false, not 1"),
        ({"state_dir": 7}, TypeError, "state_dir must be a path, not int"),
        ({"durability": "tape"}, ValueError, "durability must be one of disk, memory, not 'tape'"),
        ({"id_precedence": [1]}, TypeError, "id_precedence must be attribute names"),
        ({"id_precedence": 1}, TypeError, "id_precedence must be attribute names"),
        ({"tiemout": 1}, TypeError, "unknown option tiemout; accepted: agent_id, allow_insecure"),
    ],
)
def test_a_wrong_argument_raises(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """With its name, what is accepted and what came."""
    with pytest.raises(error) as raised:
        resolve(options, {})
    assert message in str(raised.value)


@pytest.mark.parametrize("key", ["sk\nX-Admin: 1", "clé-secrète", "", "a b", "\x7fsecret"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(key: str, caplog: pytest.LogCaptureFixture) -> None:
    """The message does not hold the key, neither in what is raised nor in the log."""
    with pytest.raises(ValueError, match="api_key must be printable ASCII") as raised:
        resolve({"api_key": key}, {})
    from_environ(api_key=key)
    assert not key or key not in str(raised.value) + caplog.text


def test_a_key_is_in_no_repr() -> None:
    """Neither the key nor OTLP headers, which may hold one."""
    environ = environ_of(api_key=KEY, url="https://host") | {
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={KEY}"
    }
    assert KEY not in repr(resolve({}, environ))


# --- keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "app.localhost", "[::1]", "127.8.8.8:8700", "LOCALHOST"]
)
def test_a_key_over_plain_http_is_fine_on_loopback(host: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is said."""
    assert resolve({"url": f"http://{host}", "api_key": KEY}, {}).url == f"http://{host}"
    assert not caplog.records


@pytest.mark.parametrize(
    "host",
    [
        "10.1.2.3",
        "192.168.0.9:8700",
        "[fd00::1]",
        "tracker",
        "t.ns.svc",
        "t.ns.svc.cluster.local",
        "nas.local",
    ],
)
def test_a_key_over_plain_http_to_a_private_host_is_warned_of_once(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One line, without the key; it is sent."""
    assert resolve({"url": f"http://{host}", "api_key": KEY}, {}).disabled_because is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "plain http" in record.getMessage()
    assert KEY not in record.getMessage()


@pytest.mark.parametrize(
    "host", ["tracker.example.com", "8.8.8.8", "[2001:4860:4860::8888]", "t.internal.com"]
)
@pytest.mark.parametrize(
    "options", [{"api_key": KEY}, {"api_key": lambda: KEY}, {"api_key_file": "/run/key"}], ids=str
)
def test_a_key_over_plain_http_to_a_public_host_is_refused(host: str, options: Mapping[str, Any]) -> None:
    """Whether the key is a text, comes from a callable or from a file."""
    with pytest.raises(ValueError, match="must not be sent over plain http to the public host"):
        resolve({"url": f"http://{host}", **options}, {})


def test_an_exposed_key_of_the_environment_stops_sending_and_not_the_host(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One ERROR; nothing is sent."""
    config = from_environ(url=PUBLIC, api_key=KEY)
    assert config.url is None
    assert config.disabled_because is not None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert KEY not in record.getMessage()


def test_exposing_a_key_can_be_allowed(caplog: pytest.LogCaptureFixture) -> None:
    """By who knows that the way is safe; https, or no key, needs no leave."""
    assert resolve({"url": PUBLIC, "api_key": KEY, "allow_insecure": True}, {}).url == PUBLIC
    assert resolve({"url": PUBLIC}, {}).url == PUBLIC
    assert resolve({"url": "https://tracker.example.com", "api_key": KEY}, {}).key() == KEY
    assert not caplog.records


def test_a_key_file_is_read_at_each_use(tmp_path: Path) -> None:
    """So that a key can be rotated; the newline that editors add is no part of it."""
    file = tmp_path / "key"
    config = from_environ(api_key_file=str(file))
    file.write_text("first\n")
    assert config.key() == "first"
    file.write_text("second")
    assert config.key() == "second"


def test_a_callable_is_asked_at_each_use() -> None:
    """A key that rotates comes from a callable."""
    keys = iter(["first", "second"])
    config = resolve({"api_key": lambda: next(keys)}, {})
    assert [config.key(), config.key()] == ["first", "second"]


def test_a_key_argument_beats_the_file_of_the_environment() -> None:
    """The argument is the whole answer to where the key comes from."""
    config = resolve({"api_key": KEY}, environ_of(api_key_file="/run/key"))
    assert (config.api_key_file, config.key()) == (None, KEY)


# --- where events go and wait -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({}, "no tracker is configured (set AGENT_TRACKER_URL or pass base_url)"),
        (environ_of(url="https://host", enabled="false"), "AGENT_TRACKER_ENABLED is false"),
        (environ_of(url="https://host") | {"OTEL_SDK_DISABLED": " TRUE "}, "OTEL_SDK_DISABLED is true"),
        (environ_of(url="https://host") | {"OTEL_SDK_DISABLED": "1"}, None),
        (environ_of(url="https://host"), None),
        (environ_of(otlp="true"), None),
    ],
)
def test_what_disables(environ: dict[str, str], reason: str | None) -> None:
    """No destination, the switch, or OpenTelemetry's own switch, which only true turns."""
    assert resolve({}, environ).disabled_because == reason


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({}, "http://localhost:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c:1/p/"}, "https://c:1/p/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, "http://localhost:4318/v1/traces"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b/x"},
            "http://b/x",
        ),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://b/x?tenant=1"}, "https://b/x?tenant=1"),
    ],
)
def test_the_otlp_endpoint_is_that_of_opentelemetry(environ: dict[str, str], endpoint: str) -> None:
    """The traces' own endpoint as it is, else the common one with its path; empty is unset."""
    config = resolve({}, environ | environ_of(otlp="true"))
    assert config.to_otlp
    assert config.otlp_endpoint == config.destination == endpoint


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_a_wrong_otlp_endpoint_is_one_error_and_the_default_stands(
    variable: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A host without a scheme is a common mistake; without AGENT_TRACKER_OTLP it is none of our business."""
    environ = {variable: "collector:4317"}
    assert resolve({}, environ).otlp_endpoint == "http://localhost:4318/v1/traces"
    assert not caplog.records
    assert resolve({}, environ | environ_of(otlp="true")).otlp_endpoint == "http://localhost:4318/v1/traces"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(f"{variable} must be a URL such as")


def test_otlp_headers_are_those_of_opentelemetry() -> None:
    """The traces' own beat the common ones; values are percent-encoded."""
    environ = {"OTEL_EXPORTER_OTLP_HEADERS": "a=1", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "b=2%203, c = x=y"}
    assert resolve({}, environ).otlp_headers == {"b": "2 3", "c": "x=y"}
    del environ["OTEL_EXPORTER_OTLP_TRACES_HEADERS"]
    assert resolve({}, environ).otlp_headers == {"a": "1"}


def test_the_service_is_that_of_opentelemetry() -> None:
    """OTEL_SERVICE_NAME beats the resource attributes."""
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,service.namespace=shop,other"}
    assert (resolve({}, environ).service_name, resolve({}, environ).service_namespace) == ("a", "shop")
    assert resolve({}, environ | {"OTEL_SERVICE_NAME": "b"}).service_name == "b"


def test_with_a_url_a_tracker_is_the_destination() -> None:
    """OTLP then only adds copies."""
    config = from_environ(url="https://host", otlp="true")
    assert not config.to_otlp
    assert config.destination == "https://host"


def test_a_state_folder_has_one_destination() -> None:
    """Another URL, key, namespace or service waits in another folder; everything else changes nothing."""

    def folder(**environ: str) -> Path:
        return resolve({}, environ_of(url="https://host", state_dir="/state") | environ).state_folder

    base = folder()
    others = [
        folder(AGENT_TRACKER_URL="https://other"),
        folder(AGENT_TRACKER_API_KEY=KEY),
        folder(AGENT_TRACKER_API_KEY="another"),
        folder(AGENT_TRACKER_API_KEY_FILE="/run/key"),
        folder(OTEL_SERVICE_NAME="shop"),
        folder(OTEL_RESOURCE_ATTRIBUTES="service.namespace=shop"),
    ]
    assert len({base, *others}) == 1 + len(others)
    assert folder(AGENT_TRACKER_SESSION_TTL_HOURS="1") == folder(AGENT_TRACKER_URL="https://host/") == base
    assert base.parent == Path("/state")
    assert len(base.name) == 12
    int(base.name, 16)


def test_a_rotating_key_keeps_its_folder(tmp_path: Path) -> None:
    """What waits must be found again after a rotation: the file's name stands for its content."""
    file = tmp_path / "key"
    file.write_text("first")
    config = from_environ(api_key_file=str(file), state_dir=str(tmp_path))
    before = config.state_folder
    file.write_text("second")
    assert config.state_folder == before
    callables = [resolve({"api_key": lambda: KEY, "state_dir": "/s"}, {}) for _ in range(2)]
    assert callables[0].state_folder == callables[1].state_folder


@pytest.mark.parametrize(
    ("platform", "environ", "folder"),
    [
        ("linux", {"XDG_STATE_HOME": "/xdg"}, "/xdg/otel-agent-tracker"),
        ("linux", {}, "~/.local/state/otel-agent-tracker"),
        ("darwin", {}, "~/Library/Application Support/otel-agent-tracker"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/otel-agent-tracker"),
        ("win32", {}, "~/AppData/Local/otel-agent-tracker"),
    ],
)
def test_the_state_folder_is_the_platforms(
    monkeypatch: pytest.MonkeyPatch, platform: str, environ: dict[str, str], folder: str
) -> None:
    """Each platform has a place for state."""
    monkeypatch.setattr("sys.platform", platform)
    assert resolve({}, environ).state_dir == Path(folder).expanduser()


def test_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host that changes its folder later does not lose its events."""
    monkeypatch.chdir(tmp_path)
    assert resolve({"state_dir": "state"}, {}).state_dir == Path(os.fspath(tmp_path)) / "state"
    assert resolve({"state_dir": "~/state"}, {}).state_dir == Path.home() / "state"
