"""`otel-agent-tracker doctor`: each finding, and what it makes of the exit code."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from otel_agent_tracker.cli.doctor import telemetry
from otel_agent_tracker.cli.doctor.checks import Check, Level
from otel_agent_tracker.cli.doctor.disk import check_file_system, check_space, file_system
from otel_agent_tracker.cli.doctor.probe import AGENT, send_probe
from otel_agent_tracker.cli.doctor.settings import masked
from otel_agent_tracker.cli.doctor.telemetry import check_telemetry
from otel_agent_tracker.cli.frameworks import installed_frameworks
from otel_agent_tracker.config import resolve
from otel_agent_tracker.server.run import Server
from otel_agent_tracker.state import State
from tests.cli.terminal import NOWHERE, Json, leave_in_journal, run, run_on_terminal, state_folder
from tests.conftest import MakeTracker
from tests.scripted_server import (
    Action,
    ReceivedRequest,
    ScriptedServer,
    html,
    json_reply,
    reply,
    reset_unread,
    respond,
)

MIB = 1024 * 1024


class Report:
    """What `doctor --json` found."""

    def __init__(self, *arguments: object) -> None:
        result = run("doctor", "--json", *arguments)
        self.exit_code = result.exit_code
        self.text = result.output
        self.content: Json = json.loads(result.stdout)

    def check(self, name: str) -> Json:
        """The one finding of that name."""
        [found] = [each for each in self.content["checks"] if each["name"] == name]
        assert isinstance(found, dict)
        return found

    def level(self, name: str) -> str:
        """How bad it is."""
        return str(self.check(name)["level"])

    def setting(self, name: str) -> tuple[str, str]:
        """A setting's value and source."""
        [found] = [each for each in self.content["settings"] if each["name"] == name]
        return found["value"], found["source"]


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the environment says that events wait."""
    folder = tmp_path / "state"
    monkeypatch.setenv("AGENT_TRACKER_STATE_DIR", str(folder))
    return folder


@pytest.fixture
def url(tracker_server: Server, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracker that the environment names."""
    monkeypatch.setenv("AGENT_TRACKER_URL", tracker_server.url)
    return tracker_server.url


# --- all of it ------------------------------------------------------------------------------------------


def test_all_is_well(url: str) -> None:
    """Exit code 0; every part was looked at, and nothing was made."""
    report = Report()
    assert (report.exit_code, report.content["ok"]) == (0, True)
    levels = {each["level"] for each in report.content["checks"]}
    assert levels <= {"ok", "warning"}
    sections = [each["section"] for each in report.content["checks"]]
    assert list(dict.fromkeys(sections)) == ["Settings", "State folder", "OpenTelemetry", "Tracker"]


def test_the_report_can_be_read_on_80_columns(url: str) -> None:
    """With marks, and in the end a verdict."""
    result = run_on_terminal("doctor")
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "✓  authorised" in result.stdout
    assert result.stdout.endswith("All is well.\n")


def test_what_is_wrong_comes_with_advice(state_dir: Path) -> None:
    """Exit code 1."""
    result = run("doctor", "--url", NOWHERE)
    assert result.exit_code == 1
    assert "✗  reachable" in result.stdout
    assert "→ Is the URL right" in result.stdout


# --- settings -------------------------------------------------------------------------------------------


def test_every_setting_tells_where_it_came_from(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Argument, environment or default; OpenTelemetry's variables too."""
    monkeypatch.setenv("AGENT_TRACKER_TIMEOUT_SECONDS", "3")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    report = Report("--state-dir", tmp_path / "mine")
    assert report.setting("state_dir") == (str(tmp_path / "mine"), "argument")
    assert report.setting("url") == (url, "environment")
    assert report.setting("timeout_seconds") == ("3.0", "environment")
    assert report.setting("service_name") == ("shop", "environment")
    assert report.setting("session_ttl_hours") == ("10.0", "default")
    assert report.setting("agent_id") == ("not set", "default")


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("oat_0123456789", "…6789"),
        ("012345678901", "…8901"),
        ("01234567890", "… (hidden)"),
        ("", "… (hidden)"),
    ],
)
def test_a_key_is_masked(key: str, shown: str) -> None:
    """Four characters at most, and none of a short one."""
    assert masked(key) == shown


def test_no_key_is_printed(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the tracker nor of an OTLP endpoint, in any form."""
    file = tmp_path / "key"
    file.write_text("secret-of-a-file-1234\n")
    file.chmod(0o600)
    monkeypatch.setenv("AGENT_TRACKER_API_KEY", "secret-of-a-variable-5678")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret-of-a-header-9012")
    for arguments in ([], ["--json"], ["--api-key-file", file]):
        told = run("doctor", *arguments).output
        assert "secret" not in told
        assert "…5678" in told
        assert "authorization=…9012" in told
    assert "…1234" in run("doctor", "--api-key-file", file).stdout


def test_a_wrong_variable_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is wrong, though its default stands."""
    monkeypatch.setenv("AGENT_TRACKER_TIMEOUT_SECONDS", "soon")
    report = Report()
    assert report.exit_code == 1
    assert report.level("settings") == "wrong"
    assert "AGENT_TRACKER_TIMEOUT_SECONDS must be a number" in report.check("settings")["finding"]
    assert report.setting("timeout_seconds") == ("10.0", "default")


def test_a_misspelt_variable_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the one that is meant; it works all the same."""
    monkeypatch.setenv("AGENT_TRACKER_TIMOUT_SECONDS", "3")
    report = Report()
    assert report.exit_code == 0
    assert report.level("settings") == "warning"
    assert "AGENT_TRACKER_TIMEOUT_SECONDS" in report.check("settings")["advice"]


def test_a_variable_with_a_word_of_a_setting_is_taken_for_that(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before one that is only spelt alike."""
    monkeypatch.setenv("AGENT_TRACKER_TTL", "3")
    assert "AGENT_TRACKER_SESSION_TTL_HOURS" in Report().check("settings")["advice"]


def test_a_refused_url_is_not_shown_as_unset(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was set, and the check says why it is not used."""
    monkeypatch.setenv("AGENT_TRACKER_URL", "http://tracker.example.com")
    monkeypatch.setenv("AGENT_TRACKER_API_KEY", "secret")
    assert Report().setting("url") == ("refused, see below", "environment")


def test_no_destination_is_wrong(state_dir: Path) -> None:
    """Whoever asks the doctor wants to be tracked."""
    report = Report()
    assert report.exit_code == 1
    assert "AGENT_TRACKER_URL" in report.check("destination")["advice"]


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("AGENT_TRACKER_ENABLED", "false")]
)
def test_what_is_switched_off_is_no_fault(
    url: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """It is said, and by which variable."""
    monkeypatch.setenv(name, value)
    report = Report()
    assert report.exit_code == 0
    assert report.level("destination") == "warning"
    assert name in report.check("destination")["finding"]


def test_a_key_for_a_public_host_over_http_is_wrong(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent then, and the doctor says why."""
    monkeypatch.setenv("AGENT_TRACKER_URL", "http://tracker.example.com")
    monkeypatch.setenv("AGENT_TRACKER_API_KEY", "0123456789abcdef")
    report = Report()
    assert report.exit_code == 1
    assert "plain http" in report.check("settings")["finding"]


@pytest.mark.parametrize(
    ("mode", "content", "level"),
    [(0o600, "0123456789abcdef", "ok"), (0o644, "0123456789abcdef", "warning"), (0o600, "", "wrong")],
)
def test_the_key_file_is_looked_at(url: str, tmp_path: Path, mode: int, content: str, level: str) -> None:
    """Others must not read it, and a key must be in it."""
    file = tmp_path / "key"
    file.write_text(content)
    file.chmod(mode)
    assert Report("--api-key-file", file).level("key file") == level


def test_a_key_file_that_is_not_there_is_wrong(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be sent without it."""
    monkeypatch.setenv("AGENT_TRACKER_API_KEY_FILE", str(tmp_path / "none"))
    report = Report()
    assert (report.exit_code, report.level("key file")) == (1, "wrong")


# --- the state folder -----------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_made_later(url: str, state_dir: Path) -> None:
    """Not by the doctor."""
    report = Report()
    assert report.level("writable") == "ok"
    assert "at the first event" in report.check("writable")["finding"]
    assert not state_dir.exists()


def test_a_folder_that_others_may_enter_is_doubtful(url: str, state_dir: Path) -> None:
    """The journal closes it when it is used."""
    folder = state_folder(state_dir, url)
    folder.mkdir(parents=True, mode=0o755)
    folder.chmod(0o755)
    assert Report().level("state folder") == "warning"
    folder.chmod(0o700)
    assert Report().level("state folder") == "ok"


def test_a_folder_that_is_a_link_is_wrong(url: str, state_dir: Path, tmp_path: Path) -> None:
    """The journal refuses it."""
    state_dir.mkdir()
    state_folder(state_dir, url).symlink_to(tmp_path)
    report = Report()
    assert (report.exit_code, report.level("state folder")) == (1, "wrong")


def test_a_place_that_takes_no_file_is_wrong(url: str, tmp_path: Path) -> None:
    """Here a file is in its way."""
    (tmp_path / "file").write_text("")
    report = Report("--state-dir", tmp_path / "file" / "state")
    assert (report.exit_code, report.level("writable")) == (1, "wrong")


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("ext4", Level.OK),
        ("overlay", Level.OK),
        (None, Level.OK),
        ("tmpfs", Level.WARNING),
        ("nfs4", Level.WARNING),
        ("fuse.sshfs", Level.WARNING),
    ],
)
def test_the_file_system_is_judged(kind: str | None, level: Level) -> None:
    """What is in memory or on a network is doubtful."""
    assert check_file_system(kind).level is level


def test_the_file_system_is_that_of_the_mount_point_above(tmp_path: Path) -> None:
    """The last one of several on the same point; none where the platform does not tell."""
    place = tmp_path
    while not place.is_mount():
        place = place.parent
    mounts = tmp_path / "mounts"
    mounts.write_text(f"a {place} ext4 rw 0 0\nb /else\\040where nfs rw 0 0\nc {place} xfs rw 0 0\n")
    assert file_system(tmp_path, mounts) == "xfs"
    assert file_system(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(("free_mib", "level"), [(10, Level.WRONG), (500, Level.WARNING), (5000, Level.OK)])
def test_free_space_is_judged(free_mib: int, level: Level) -> None:
    """Against what the outbox may take."""
    assert check_space(free_mib * MIB, 1024).level is level


def test_what_waits_and_what_was_refused_is_told(
    make_tracker: MakeTracker, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead letters are doubtful, and the doctor says what to do."""

    def refuse(request: ReceivedRequest) -> Action:
        return reply(422) if request.path == "/conversations/start" else reply(404)

    with ScriptedServer(respond(refuse)) as server:
        tracker = make_tracker(server.url)
        tracker.start_conversation("bot")
        assert tracker.flush(20)
        tracker.close()
        report = Report("--url", server.url)
    assert report.check("pending")["finding"] == "0 of 1 accepted"
    assert report.level("dead letters") == "warning"
    assert "outbox retry" in report.check("dead letters")["advice"]


def test_what_waits_for_long_is_doubtful(state_dir: Path) -> None:
    """Nobody may be there who sends it."""
    leave_in_journal(state_folder(state_dir, NOWHERE), 2)
    assert run("outbox", "drain", "--url", NOWHERE, "--timeout", 0.3).exit_code == 1
    report = Report("--url", NOWHERE)
    assert report.level("pending") == "warning"
    assert "outbox drain" in report.check("pending")["advice"]


def test_what_waits_for_other_destinations_is_told(url: str, state_dir: Path) -> None:
    """Nobody with these settings sends it."""
    other = state_folder(state_dir, "http://127.0.0.1:10")
    leave_in_journal(other, 3)
    report = Report()
    assert (report.exit_code, report.level("other folders")) == (0, "warning")
    assert f"3 events wait for other destinations ({other.name})" in report.check("other folders")["finding"]


def test_a_damaged_state_file_is_wrong(url: str, state_dir: Path) -> None:
    """It cannot be looked into."""
    folder = state_folder(state_dir, url)
    folder.mkdir(parents=True, mode=0o700)
    (folder / "state.sqlite3").write_bytes(b"no database" * 1000)
    report = Report()
    assert (report.exit_code, report.level("state file")) == (1, "wrong")


def test_memory_is_said_to_be_no_disk(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder is looked at then."""
    monkeypatch.setenv("AGENT_TRACKER_DURABILITY", "memory")
    report = Report()
    assert (report.exit_code, report.level("durability")) == (0, "warning")


# --- OpenTelemetry --------------------------------------------------------------------------------------


def test_opentelemetry_is_told(url: str) -> None:
    """The version, and that the provider is this process's."""
    report = Report()
    assert report.check("SDK")["finding"].startswith("opentelemetry-sdk 1.")
    assert "in this process" in report.check("provider")["finding"]


def test_agent_frameworks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is seen, and one that is not, with what to install; that alone is no fault."""
    versions = {"pydantic-ai": "2.1", "agno": "3.1"}.get
    monkeypatch.setattr(telemetry, "installed_frameworks", lambda: installed_frameworks(versions))
    seen, unseen = [check for check in telemetry.check_telemetry() if check.name == "framework"]
    assert (seen.level, unseen.level) == (Level.OK, Level.WARNING)
    assert seen.finding.startswith("Pydantic AI 2.1 is recognised")
    assert unseen.advice == "pip install openinference-instrumentation-agno"


def test_processors_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an SDK provider, each by its class."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    findings = [check.finding for check in check_telemetry()]
    assert "TracerProvider in this process; processors: SimpleSpanProcessor" in findings


# --- the tracker ----------------------------------------------------------------------------------------


def test_the_tracker_is_asked(url: str) -> None:
    """It answers, takes us, offers what it offers, and knows event ids."""
    report = Report()
    assert report.check("authorised")["finding"] == "without a key"
    assert report.check("capabilities")["finding"] == "batch, turns, feedback, heartbeat, queries"
    assert report.level("exactly once") == "ok"


def test_a_missing_or_wrong_key_is_told(tracker_server: Server, url: str, tmp_path: Path) -> None:
    """With what to do; the right one is taken."""
    key = tracker_server.store.keys.create()
    file = tmp_path / "key"
    file.touch(mode=0o600)
    without = Report()
    assert (without.exit_code, without.level("authorised")) == (1, "wrong")
    assert "AGENT_TRACKER_API_KEY" in without.check("authorised")["advice"]
    file.write_text("oat_of_somebody_else")
    other = Report("--api-key-file", file)
    assert "keys create" in other.check("authorised")["advice"]
    file.write_text(key)
    right = Report("--api-key-file", file)
    assert (right.exit_code, right.check("authorised")["finding"]) == (0, "with the key")
    assert key not in right.text


def plain_tracker(request: ReceivedRequest) -> Action:
    """A tracker of the plain protocol that deletes nothing."""
    if request.path == "/capabilities":
        return reply(404)
    if request.method == "DELETE":
        return reply(405)
    return json_reply({"status": "completed"})


def test_a_tracker_without_event_ids_is_to_be_fed_one_way_only(state_dir: Path) -> None:
    """It works, so it is no fault."""
    with ScriptedServer(respond(plain_tracker)) as server:
        report = Report("--url", server.url)
    assert report.exit_code == 0
    assert report.level("exactly once") == "warning"
    assert "one way only" in report.check("exactly once")["advice"]


@pytest.mark.parametrize("action", [html(), reply(302), reply(503)])
def test_what_is_no_tracker_is_wrong(state_dir: Path, action: Action) -> None:
    """A page for people, a redirection, trouble."""
    with ScriptedServer(action) as server:
        report = Report("--url", server.url)
    assert (report.exit_code, report.level("reachable")) == (1, "wrong")


def test_a_wrong_path_is_wrong(state_dir: Path) -> None:
    """Every request is answered with 404 there."""
    with ScriptedServer(reply(404)) as server:
        report = Report("--url", f"{server.url}/somewhere")
    assert (report.exit_code, report.level("authorised")) == (1, "wrong")
    assert "prefix" in report.check("authorised")["advice"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, good for 90 days, with its key in one file."""
    folder = tmp_path_factory.mktemp("tls")
    subject = ["-subj", "/O=Test Authority/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "90", "-keyout", "key", "-out", "certificate"]
    subprocess.run(["openssl", "req", *made, *subject], cwd=folder, check=True, capture_output=True)
    both = folder / "both"
    both.write_text((folder / "certificate").read_text() + (folder / "key").read_text())
    return both


def test_tls_is_looked_at(certificate: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version, authority and last day; a certificate that nobody vouches for is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with ScriptedServer(respond(plain_tracker), tls=context) as server:
        unknown = Report("--url", server.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        known = Report("--url", server.url)
    assert (unknown.exit_code, unknown.level("TLS")) == (1, "wrong")
    assert "self-signed" in unknown.check("TLS")["finding"]
    assert (known.exit_code, known.level("TLS")) == (0, "ok")
    assert known.check("TLS")["finding"].startswith("TLSv1.3, certificate by Test Authority, until 20")


def test_https_to_a_plain_port_is_wrong(url: str) -> None:
    """And no traceback."""
    report = Report("--url", url.replace("http", "https"))
    assert (report.exit_code, report.level("TLS")) == (1, "wrong")
    assert report.check("TLS")["finding"] == "No: wrong version number."


def test_an_https_port_that_cannot_be_reached_is_wrong(state_dir: Path) -> None:
    """Connections are refused or broken off there."""
    with ScriptedServer(reset_unread()) as server:
        broken = Report("--url", server.url.replace("http", "https"))
    refused = Report("--url", NOWHERE.replace("http", "https"))
    for report in (broken, refused):
        assert (report.exit_code, report.level("reachable")) == (1, "wrong")


@pytest.mark.parametrize(
    ("action", "level"), [(reply(200), "ok"), (reply(401), "wrong"), (reply(500), "wrong")]
)
def test_an_otlp_endpoint_is_asked(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, action: Action, level: str
) -> None:
    """With an export of no spans, where it is the destination."""
    with ScriptedServer(action) as server:
        monkeypatch.setenv("AGENT_TRACKER_OTLP", "true")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        report = Report()
        [request] = server.requests
    assert report.level("reachable") == level
    assert (request.path, request.body) == ("/v1/traces", b"")


# --- the probe ------------------------------------------------------------------------------------------


def test_the_probe_is_seen_and_removed(tracker_server: Server, url: str, state_dir: Path) -> None:
    """Nothing of it stays: no conversation, no agent, no state."""
    report = Report("--send")
    assert report.exit_code == 0
    assert "was visible" in report.check("probe")["finding"]
    assert report.level("removal") == "ok"
    project = tracker_server.store.default_project
    assert tracker_server.store.agents.status(project, AGENT) is None
    assert run("conversations", "list").stdout == "No conversation is like that.\n"
    assert not state_dir.exists()


def test_a_probe_that_stays_is_named(state_dir: Path) -> None:
    """Where the tracker removes nothing."""
    with ScriptedServer(respond(plain_tracker)) as server:
        report = Report("--send", "--url", server.url)
    assert report.exit_code == 0
    assert report.level("removal") == "warning"
    assert f"stays as {AGENT}_" in report.check("removal")["finding"]


def test_a_probe_that_is_never_shown_is_wrong(tmp_path: Path) -> None:
    """Though the tracker took it."""

    def forgetful(request: ReceivedRequest) -> Action:
        return json_reply({}) if request.method == "POST" else reply(404)

    with ScriptedServer(respond(forgetful)) as server:
        checks = probe(server.url, tmp_path)
    assert checks["probe"].level is Level.WRONG
    assert "was taken" in checks["probe"].finding


def test_a_probe_that_is_refused_is_wrong(tmp_path: Path) -> None:
    """Nothing is removed then, for nothing is there."""

    def refusing(request: ReceivedRequest) -> Action:
        return reply(422) if request.method == "POST" else reply(404)

    with ScriptedServer(respond(refusing)) as server:
        checks = probe(server.url, tmp_path)
    assert checks.keys() == {"probe"}
    assert "was not taken" in checks["probe"].finding


def probe(url: str, state_dir: Path) -> dict[str, Check]:
    """What a probe finds that does not wait for long, by name."""
    config = resolve({"url": url, "state_dir": state_dir})
    return {check.name: check for check in send_probe(config, visible_within=0.5)}


def test_no_probe_is_sent_where_something_is_wrong(state_dir: Path) -> None:
    """It would arrive some day."""
    with ScriptedServer(reply(401)) as server:
        report = Report("--send", "--url", server.url)
        methods = {request.method for request in server.requests}
    assert report.exit_code == 1
    assert methods == {"GET"}


# --- rarer ----------------------------------------------------------------------------------------------


def test_a_folder_of_another_user_is_wrong(
    url: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal refuses it; the doctor must run as the application's user."""
    state_folder(state_dir, url).mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    report = Report()
    assert (report.exit_code, report.level("state folder")) == (1, "wrong")


def test_what_was_dropped_is_told(url: str, state_dir: Path) -> None:
    """By kind, here and in the books."""
    folder = state_folder(state_dir, url)
    folder.mkdir(parents=True, mode=0o700)
    state = State(folder / "state.sqlite3", writer="test", max_bytes=1 << 30)
    with state.transaction():
        state.count_dropped({"agent.activity": 3, "conversation.turn": 1})
    state.close()
    report = Report()
    assert report.check("dropped")["finding"] == "4 events: agent.activity 3, conversation.turn 1."
    assert "4 (agent.activity 3, conversation.turn 1)" in run("outbox", "status").stdout


def test_a_neighbour_that_cannot_be_read_is_doubtful(url: str, state_dir: Path) -> None:
    """It is none of this destination's."""
    folder = state_dir / "0123456789ab"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "state.sqlite3").write_bytes(b"no database" * 1000)
    report = Report()
    assert (report.exit_code, report.level("other folders")) == (0, "warning")


def test_the_probe_goes_with_the_key(tracker_server: Server, url: str, tmp_path: Path) -> None:
    """From its file, as everything else."""
    file = tmp_path / "key"
    file.write_text(tracker_server.store.keys.create())
    file.chmod(0o600)
    report = Report("--send", "--api-key-file", file)
    assert (report.exit_code, report.level("removal")) == (0, "ok")


def test_a_probe_that_the_tracker_fails_to_show_or_remove_is_told(tmp_path: Path) -> None:
    """Trouble in between does not end the doctor."""
    asked = []

    def moody(request: ReceivedRequest) -> Action:
        asked.append(request.method)
        if request.method == "DELETE" or (request.path != "/capabilities" and asked.count("GET") == 1):
            return reply(503)
        return plain_tracker(request)

    with ScriptedServer(respond(moody)) as server:
        checks = probe(server.url, tmp_path)
    assert checks["probe"].level is Level.OK
    assert checks["removal"].level is Level.WARNING
    assert "status 503" in checks["removal"].finding


def test_a_key_that_opens_only_a_part_is_wrong(state_dir: Path) -> None:
    """Capabilities may be open where conversations are not."""

    def half_open(request: ReceivedRequest) -> Action:
        return json_reply({}) if request.path == "/capabilities" else reply(403)

    with ScriptedServer(respond(half_open)) as server:
        report = Report("--url", server.url)
    assert (report.exit_code, report.level("authorised")) == (1, "wrong")


def test_tls_is_not_looked_at_through_a_proxy(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client goes by the proxy, and a look would not."""
    monkeypatch.setenv("AGENT_TRACKER_TRUST_ENV", "true")
    report = Report("--url", NOWHERE.replace("http", "https"))
    assert (report.level("TLS"), report.level("reachable")) == ("ok", "wrong")
