"""The tools that ours is measured against, each installed from the package index into its own environment.

``python -m benchmarks.peers`` installs them. What they do is in ``peer_<name>.py``; they send to the sink on
the loopback or to nobody.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["PEERS", "command_of"]

_ROOT = Path(__file__).parent.parent
_EXPORTER = "opentelemetry-exporter-otlp-proto-http"
_OURS = ("orjson", "httpx")  # what our own package needs beside that
_REQUIREMENTS = {
    "langfuse": ("langfuse", *_OURS, _EXPORTER),
    "logfire": ("logfire", *_OURS, _EXPORTER),
    "agentops": ("agentops", *_OURS, f"{_EXPORTER}<1.40"),  # its exporter uses what later ones no longer have
}
PEERS = tuple(_REQUIREMENTS)


def command_of(peer: str, url: str, *arguments: str) -> list[str]:
    """How to run ``benchmarks.peer`` for a peer that sends to `url`."""
    return [str(python_of(peer)), "-m", "benchmarks.peer", peer, url, *arguments]


def python_of(peer: str) -> Path:
    """The interpreter of the peer's environment, made and filled if it is not there."""
    environment = _ROOT / f".venv-bench-{peer}"
    python = environment / "bin" / "python"
    if not (environment / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *_REQUIREMENTS[peer]], check=True)
        (environment / "installed").touch()
    return python


if __name__ == "__main__":
    for name in PEERS:
        print(name, python_of(name))
