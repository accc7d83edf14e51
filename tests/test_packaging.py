"""What is built: a wheel with all that the installed package reads, and a source archive that builds the same."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

from otel_agent_tracker.semconv import VERSION

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "otel_agent_tracker"
DIST_INFO = f"otel_agent_tracker-{VERSION}.dist-info"


def build(target: str, source: Path, folder: Path) -> Path:
    """Build `source` into `folder`, with the build backend that is installed and no network."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=60)
    assert built.returncode == 0, built.stderr
    (found,) = folder.iterdir()
    return found


def files(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def read(wheel: Path, name: str) -> str:
    with ZipFile(wheel) as archive:
        return archive.read(f"{DIST_INFO}/{name}").decode()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_is_the_package_and_nothing_else(wheel: Path) -> None:
    """Every file of the package, its licence and its metadata; no tests, no benchmarks, nothing cached."""
    package = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    assert files(wheel) == package | {f"{DIST_INFO}/{name}" for name in about}


@pytest.mark.parametrize(
    "name",
    [
        "py.typed",
        "server/migrations/env.py",
        "server/migrations/script.py.mako",
        "server/migrations/versions/0001_first.py",
        "server/static/style.css",
        "server/templates/dashboard.html",
    ],
)
def test_what_is_read_as_a_file_is_in_the_wheel(wheel: Path, name: str) -> None:
    """Type checkers, Alembic and the page look for it; no import would miss it."""
    assert f"otel_agent_tracker/{name}" in files(wheel)


def test_the_wheel_brings_the_command_and_the_fixture(wheel: Path) -> None:
    """And names no entry point that is not there."""
    assert read(wheel, "entry_points.txt").split() == [
        *("[console_scripts]", "otel-agent-tracker", "=", "otel_agent_tracker.cli:main"),
        *("[opentelemetry_pre_instrument]", "otel_agent_tracker", "=", "otel_agent_tracker.hook:begin"),
        *("[opentelemetry_traces_exporter]", "agent_tracker", "="),
        "otel_agent_tracker.trace_exporter:AgentTrackerSpanExporter",
        *("[pytest11]", "otel_agent_tracker", "=", "otel_agent_tracker.testing"),
    ]


def test_the_metadata_name_version_python_and_extras(wheel: Path) -> None:
    """As pip reads them."""
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    assert (metadata["Name"], metadata["Version"]) == ("otel-agent-tracker", VERSION)
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "all",
        "auto",
        "bridge",
        "demo",
        "postgres",
        "server",
    }


def test_the_source_archive_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """Whoever packages for a distribution gets what pip installs."""
    archive = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(archive) as source:
        source.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 brought it
        source.extractall(tmp_path)
    again = build("wheel", tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path / "wheel")
    assert again.read_bytes() == wheel.read_bytes()
