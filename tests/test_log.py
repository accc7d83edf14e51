"""Our loggers: the host's logging gets what we say, and what goes wrong in it stays there."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from otel_agent_tracker.log import INTERVAL, Log, SparingLog

NAME = "otel_agent_tracker.something"


class Raising(logging.Handler):
    """A handler as hosts write them."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("the log server is gone")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What the host's logging writes to."""
    stream, root = io.StringIO(), logging.getLogger()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(filename)s %(funcName)s %(message)s"))
    root.addHandler(handler)
    yield stream
    root.removeHandler(handler)


def test_a_record_names_logger_and_place(stream: io.StringIO) -> None:
    """Hosts filter by name, and look where a line comes from."""
    Log(NAME).warning("a %s", "word")
    Log(NAME).log(logging.ERROR, "another")
    where = f"{NAME} test_log.py test_a_record_names_logger_and_place"
    assert stream.getvalue() == f"WARNING {where} a word\nERROR {where} another\n"


def test_a_message_is_told_once_a_minute_whatever_its_details(stream: io.StringIO) -> None:
    """Each message has a minute of its own; who asks is told whether it was told."""
    log = SparingLog(Log(NAME))
    told = [
        log.warning(0.0, "%s waits", "a"),
        log.warning(INTERVAL - 0.1, "%s waits", "b"),
        log.error(INTERVAL - 0.1, "%s failed", "c"),
        log.warning(INTERVAL, "%s waits", "d"),
    ]
    where = f"{NAME} test_log.py test_a_message_is_told_once_a_minute_whatever_its_details"
    assert told == [True, False, True, True]
    assert stream.getvalue().splitlines() == [
        *(f"WARNING {where} a waits", f"ERROR {where} c failed", f"WARNING {where} d waits")
    ]


def test_a_handler_that_raises_is_the_hosts(stream: io.StringIO) -> None:
    """Its exception does not come to whoever called us."""
    handler = Raising()
    logging.getLogger(NAME).addHandler(handler)
    try:
        Log(NAME).error("a word")
    finally:
        logging.getLogger(NAME).removeHandler(handler)
    assert stream.getvalue() == ""


def test_nothing_is_written_to_a_detached_stream(capsys: pytest.CaptureFixture[str]) -> None:
    """As of `sys.stderr.detach()`: to be asked whether it is closed raises too."""
    stream, root = io.TextIOWrapper(io.BytesIO()), logging.getLogger()
    handler = logging.StreamHandler(stream)
    root.addHandler(handler)
    try:
        stream.detach()
        Log(NAME).error("a word")
        assert SparingLog(Log(NAME)).warning(0.0, "a %s", "word")
    finally:
        root.removeHandler(handler)
    assert capsys.readouterr().err == ""


def test_nothing_is_written_to_a_closed_stream(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python would print a traceback for each line."""
    stream.close()
    Log(NAME).error("a word")
    assert capsys.readouterr().err == ""


def test_a_logger_that_does_not_propagate_is_not_in_the_way(stream: io.StringIO) -> None:
    """Handlers that a record never comes to may be closed."""
    logger, own = logging.getLogger(NAME), io.StringIO()
    handler = logging.StreamHandler(own)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        stream.close()
        Log(NAME).error("a word")
    finally:
        logger.propagate = True
        logger.removeHandler(handler)
    assert own.getvalue() == "a word\n"
