"""`Tokens`: who may send."""

from __future__ import annotations

from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from threading import Lock
from time import monotonic

from otel_agent_tracker.log import Log

__all__ = ["Tokens"]

_logger = Log(__name__)

LOOK_AGAIN_SECONDS = 5.0
_SCHEME = b"bearer "


class Tokens:
    """The bearer tokens in a file, one a line: several while one takes the place of another. None: anybody may send.

    The file is read again when it has changed; while it cannot be read, what it held is in force. Raises OSError or
    ValueError if it cannot be read at first, or holds no token.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lock = Lock()
        self._digests = [] if file is None else _read(file)
        self._look_again_at = monotonic() + LOOK_AGAIN_SECONDS

    def admit(self, authorizations: list[bytes]) -> bool:
        """Whether a request with these Authorization headers may come in.

        How long that takes tells nothing of a token: digests are compared, and all of them.
        """
        if self._file is None:
            return True
        self._refresh(self._file)
        (given,) = authorizations if len(authorizations) == 1 else (b"",)
        is_bearer = given[: len(_SCHEME)].lower() == _SCHEME
        digest = sha256(given[len(_SCHEME) :].strip()).digest()
        return any([compare_digest(digest, known) for known in self._digests]) and is_bearer  # noqa: C419 - all

    def _refresh(self, file: Path) -> None:
        with self._lock:
            if monotonic() < self._look_again_at:
                return
            self._look_again_at = monotonic() + LOOK_AGAIN_SECONDS
            try:
                self._digests = _read(file)
            except (OSError, ValueError) as error:
                _logger.warn_once("the ingest token file cannot be read: %s", error)


def _read(file: Path) -> list[bytes]:
    lines = file.read_text(encoding="utf-8").splitlines()
    digests = [sha256(line.strip().encode()).digest() for line in lines if line.strip()]
    if not digests:
        raise ValueError(f"{file} holds no token")
    return digests
