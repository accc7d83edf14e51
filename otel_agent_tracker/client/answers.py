"""What an answer of a tracker means: results as values, and the one table from HTTP to them.

Nothing here does I/O; the synchronous and the asynchronous client judge by the same functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from itertools import islice
from time import monotonic
from typing import Any, TypeAlias

import orjson

from otel_agent_tracker.client.mask import masked
from otel_agent_tracker.exceptions import TrackerUnavailable
from otel_agent_tracker.log import SparingLog
from otel_agent_tracker.wire import Capabilities

__all__ = [
    "Answer",
    "Delivered",
    "Misconfigured",
    "NotOffered",
    "Refused",
    "Result",
    "Retry",
    "batch_results",
    "excerpt",
    "offered_capabilities",
    "otlp_result",
    "query_object",
    "retry_after_seconds",
    "single_result",
]

MAX_RETRY_AFTER_SECONDS = 3600.0
MAX_EXCERPT_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Delivered:
    """The tracker has it."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Trouble that passes: the same request may succeed later, `after_seconds` from now if that is given."""

    reason: str
    after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """Address, key, account or way are not as they must be; no event is at fault, and a person has to act."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotOffered:
    """This path does not take what is posted to it; an event is at fault only if it takes others.

    Mostly the tracker does not know the path, or the address is wrong.
    """

    status: int
    reason: str

    @property
    def is_unknown_path(self) -> bool:
        """Whether the status says that there is no such path, or no such method there."""
        return self.status in _UNKNOWN_PATH


@dataclass(frozen=True, slots=True)
class Refused:
    """The tracker refuses this very request; `reason` holds the beginning of what it said."""

    status: int
    reason: str


Result: TypeAlias = Delivered | Retry | Misconfigured | NotOffered | Refused


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, its body read up to a cap; `secrets` never appear in a result made from it.

    Nor does the body in its `repr`, which tools show that report an exception with all variables.
    """

    status: int
    body: bytes = field(default=b"", repr=False)
    content_type: str = ""
    retry_after: float | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def is_html(self) -> bool:
        """Whether this is a page for people: a login page, a captive portal, somebody's front page."""
        return self.content_type.lower().startswith("text/html") or bool(_HTML.match(self.body))

    def json(self) -> object:
        """The body as JSON; None if it is none."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None

    def text(self) -> str:
        """The beginning of the body, fit for a log line."""
        return excerpt(self.body.decode("utf-8", "replace"), self.secrets)


def single_result(answer: Answer) -> Result:
    """What became of a single request: any 2xx acknowledges it, but a page for people."""
    if answer.is_success and answer.is_html:
        return _answered_with_a_page()
    return _by_status(answer.status, answer.text, answer.retry_after)


def batch_results(answer: Answer, event_ids: Sequence[str]) -> Result | list[Result]:
    """What became of a batch: a result for each event in order, or one for the whole batch.

    A 2xx acknowledges only those events that it names; an event that it leaves out is to be sent again.
    """
    if not answer.is_success or answer.is_html:
        return single_result(answer)
    statuses = _statuses_by_event_id(answer.json())
    if statuses.keys().isdisjoint(event_ids):
        return Retry("the answer to the batch has no results for its events", answer.retry_after)
    return [_event_result(answer, statuses.get(event_id)) for event_id in event_ids]


def otlp_result(answer: Answer, log: SparingLog) -> Result:
    """What became of an OTLP/HTTP export, by the OTLP specification's table.

    A partial success is final: nothing of it may be sent again. Unlike there, a 501 and each 4xx that says nothing
    of the spans blames the address. What was rejected goes to `log`.
    """
    match answer.status:
        case _ if answer.is_success:
            return _answered_with_a_page() if answer.is_html else _partial_success(answer, log)
        case 429 | 502 | 503 | 504:
            return Retry(f"status {answer.status}", answer.retry_after)
        case status if status in _REFUSALS:
            return Refused(status, answer.text())
        case status if 300 <= status < 400:
            return _redirected(status)
        case status if 400 <= status < 500 or status == 501:
            return Misconfigured(f"status {status}")
        case status:
            return Refused(status, answer.text())


def offered_capabilities(answer: Answer) -> Capabilities | Retry | Misconfigured:
    """What the tracker offers; nothing, where it does not know the question."""
    match single_result(answer):
        case Delivered():
            return _capabilities(answer.json())
        case NotOffered() as unknown if unknown.is_unknown_path:
            return Capabilities()
        case Refused(status, _) | NotOffered(status, _):
            return Retry(f"status {status}", answer.retry_after)
        case failure:
            return failure


def query_object(answer: Answer) -> dict[str, Any] | None:
    """The JSON object that answers a query, None on 404; raises TrackerUnavailable for anything else."""
    if answer.status == 404:
        return None
    result = single_result(answer)
    if not isinstance(result, Delivered):
        raise TrackerUnavailable(result.reason)
    content = answer.json()
    if not isinstance(content, dict):
        raise TrackerUnavailable(f"status {answer.status} without a whole JSON object")
    return content


def retry_after_seconds(value: str, now: float) -> float | None:
    """A ``Retry-After`` in seconds, at most an hour; `now` is the Unix time that a date is compared with.

    None, so that the caller's own back-off holds, for what is malformed, negative or past.
    """
    if value.isascii() and value.isdigit():
        return min(float(value), MAX_RETRY_AFTER_SECONDS)
    try:
        date = parsedate_to_datetime(value)
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return min(seconds, MAX_RETRY_AFTER_SECONDS) if seconds >= 0 else None


def excerpt(text: str, secrets: tuple[str, ...] = ()) -> str:
    """The first 500 characters on one line, without control characters and with `secrets` masked."""
    text = masked(" ".join(text.split()), secrets)  # before the cut, which could leave half a secret standing
    return "".join(islice(filter(str.isprintable, text), MAX_EXCERPT_LENGTH))


def _by_status(status: int, text: Callable[[], str], retry_after: float | None) -> Result:
    match status:
        case _ if status in _MISCONFIGURED:
            return Misconfigured(f"status {status}: {_MISCONFIGURED[status]}")
        case _ if status in _REFUSALS:
            return Refused(status, text())
        case 408 | 425 | 429:
            return Retry(f"status {status}", retry_after)
        case _ if 200 <= status < 300:
            return Delivered()
        case _ if 300 <= status < 400:
            return _redirected(status)
        case _ if 400 <= status < 500 or status in _UNKNOWN_PATH:
            return NotOffered(status, f"status {status}")
        case _:
            return Retry(f"status {status}", retry_after)


def _answered_with_a_page() -> Misconfigured:
    return Misconfigured("answered with an HTML page: no tracker is at this address")


def _redirected(status: int) -> Misconfigured:
    return Misconfigured(f"status {status}: redirects are not followed, so the address must be the final one")


def _statuses_by_event_id(content: object) -> dict[str, tuple[int, str]]:
    results = content.get("results") if isinstance(content, dict) else None
    statuses = {}
    for result in results if isinstance(results, list) else ():
        match result:
            case {"event_id": str(event_id), "status": int(status)} if status is not True:
                statuses[event_id] = (status, str(result.get("error") or ""))
    return statuses


def _event_result(answer: Answer, outcome: tuple[int, str] | None) -> Result:
    if outcome is None:
        return Retry("the answer to the batch has no result for this event", answer.retry_after)
    status, error = outcome
    return _by_status(status, lambda: excerpt(error, answer.secrets), answer.retry_after)


def _partial_success(answer: Answer, log: SparingLog) -> Result:
    if not answer.body or not answer.content_type.lower().startswith("application/x-protobuf"):
        return Delivered()
    # only now: the generated code takes its time to import, and answers are mostly empty
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        partial = ExportTraceServiceResponse.FromString(answer.body).partial_success
    except DecodeError:
        return Delivered()
    if partial.rejected_spans > 0:
        reason = excerpt(partial.error_message, answer.secrets)
        log.warning(monotonic(), "the OTLP endpoint rejected %d spans: %s", partial.rejected_spans, reason)
    return Delivered()


def _capabilities(content: object) -> Capabilities:
    if not isinstance(content, dict):
        return Capabilities()
    return Capabilities(**{name: _offer(name, content.get(name)) for name in Capabilities.__slots__})


def _offer(name: str, entry: object) -> dict[str, Any] | None:
    if not isinstance(entry, dict):
        return None
    path, max_events = entry.get("path"), entry.get("max_events")
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        return None
    if name == "batch" and (type(max_events) is not int or max_events < 1):  # JSON's true is an int too
        return None
    return entry


# RFC 9110, section 15.5. Of every other 4xx only what becomes of other events tells whether it is about this one.
_REFUSALS = frozenset((400, 409, 413, 422))
_UNKNOWN_PATH = frozenset((404, 405, 501))
_MISCONFIGURED = {
    401: "the key is not accepted",
    402: "the tracker wants to be paid",
    403: "the key is not accepted",
    407: "a proxy on the way wants a name and a password",
    421: "this server does not answer for the host in the URL",
    426: "another protocol is wanted",
    451: "refused for legal reasons",
}
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html)\b", re.IGNORECASE)
_PATH = re.compile(r"/[\w.~%/-]*", re.ASCII)
