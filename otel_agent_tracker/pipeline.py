"""The pipeline: one per destination and process. It builds the parts, owns them, and outlives forks.

Every tracker object, the hook and `install` share the pipeline of their destination; it closes with its last
holder, or when the interpreter ends.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from opentelemetry.context import attach, detach, get_current, set_value
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter

from otel_agent_tracker import agents, metrics, sdk_private
from otel_agent_tracker.agents import add_toucher, remove_toucher
from otel_agent_tracker.clock import SYSTEM_CLOCK, Clock
from otel_agent_tracker.config import Config, Durability, Redact
from otel_agent_tracker.entry import Entry
from otel_agent_tracker.events import Events
from otel_agent_tracker.exporter import TrackerSpanExporter
from otel_agent_tracker.handle import WorkerHandle
from otel_agent_tracker.intake import Intake
from otel_agent_tracker.journal import DISK_SUPPORTED, Journal, MemoryJournal
from otel_agent_tracker.log import Log
from otel_agent_tracker.metrics import Counted, FolderNow
from otel_agent_tracker.processor import SessionSpanProcessor
from otel_agent_tracker.provider import EventProvider
from otel_agent_tracker.recent import RecentTurns
from otel_agent_tracker.recognition import Reader, Recogniser
from otel_agent_tracker.redaction import Redactor
from otel_agent_tracker.reporting import GatheredTurns, TurnCounts, TurnReporter
from otel_agent_tracker.semconv import Event
from otel_agent_tracker.sender_lock import SenderLock
from otel_agent_tracker.sessions import SessionMap

if TYPE_CHECKING:
    from otel_agent_tracker.delivery import Sender

__all__ = ["Pipeline", "acquire", "is_substituted", "substitute"]

_logger = Log(__name__)
_Key = tuple[str, str, str, str]

LEAST_LIMIT = 4 * 1024 * 1024  # bytes; on a disk that is full already, the disk itself refuses
LONGEST_PAUSE_SECONDS = 1.0
FIRST_LOOK_SECONDS = 2.0
LONGEST_IMPORT_SECONDS = 5.0


class Pipeline:
    """Session map, journal and worker of one destination, and the events that go through them.

    `sender` None means a client of the configured tracker or OTLP endpoint, made by the worker.
    """

    def __init__(self, config: Config, *, clock: Clock = SYSTEM_CLOCK, sender: Sender | None = None) -> None:
        self.config = config
        self.clock = clock
        self.sessions = SessionMap(
            ttl_seconds=config.session_ttl_hours * 3600,
            idle_seconds=config.idle_minutes * 60,
            max_sessions=config.max_sessions,
            clock=clock,
        )
        self.cleanup_interval_seconds = config.cleanup_interval_minutes * 60
        self._sender = sender
        self.holders = 0
        self._stop_by = float("inf")
        self._is_paused = True
        self._folder_unusable: str | None = None
        self._copying: SpanProcessor | None = None
        self._reporter: TurnReporter | None = None
        self._gathered: GatheredTurns | None = None
        self._turn_counts = TurnCounts()
        self._enabled = sender is not None or config.disabled_because is None
        self._journal = self._make_journal()
        self._sender_lock = self._make_sender_lock()
        self._handle = WorkerHandle(self._make_work, self._journal.wake)
        self._provider = EventProvider(self._processors(), failed=self._journal.refuse)
        self._redactor = Redactor(enabled=config.redact, extra=config.redactor)
        self.events = Events(
            self._provider,
            self.sessions,
            clock,
            self._redactor,
            user_id_policy=config.user_id,
            default_agent_id=config.agent_id or config.service_name,
        )
        self._intake = Intake(self.sessions, self._persist, self._redactor)
        add_toucher(self.sessions.touch)
        _pipelines.add(self)
        if self._enabled:
            metrics.observe(self)

    @property
    def redactor(self) -> Redact | None:
        """The user's function that every text goes through, whenever it is set."""
        return self._redactor.extra

    @redactor.setter
    def redactor(self, redactor: Redact) -> None:
        self._redactor.extra = redactor

    def recognise(self, recognisers: Iterable[Recogniser] = ()) -> None:
        """Report the turns that other people's spans show; the last pipeline that is told to gets them all."""
        if not self._enabled:
            return
        self._reporter = self._make_reporter(recognisers)
        agents.report_to(self._reporter)

    def gather(self) -> GatheredTurns:
        """Report the turns that spans show which are handed to what is returned when they have ended."""
        if self._gathered is None:
            self._gathered = GatheredTurns(self._make_reporter(()), touch=self.sessions.touch)
        return self._gathered

    def _make_reporter(self, recognisers: Iterable[Recogniser]) -> TurnReporter:
        config = self.config
        if self.events.recent is None:
            self.events.recent = RecentTurns(self.clock.monotonic)
        return TurnReporter(
            self.events,
            Reader(config.id_precedence, recognisers),
            self.clock,
            agent_id=config.agent_id,
            service_name=config.service_name,
            ungrouped=config.ungrouped,
            reads_baggage=config.propagate,
            expect_tick=lambda: self._handle.start(),  # not the handle of now: a forked child has its own
            counts=self._turn_counts,
        )

    @property
    def is_reporting(self) -> bool:
        """Whether it was told to report other people's turns, and is not disabled."""
        return self._reporter is not None

    def take_in(self, span: ReadableSpan) -> bool:
        """Keep an event that another process made; False: it is not kept, and its sender must send it again.

        Raises ValueError or TypeError for one that no tracker would take.
        """
        return self._intake.take_in(span)

    @property
    def cannot_keep_because(self) -> str | None:
        """Why nothing that `take_in` gets is kept at present, or None if it is."""
        if self._handle.stopping.is_set():
            return "it is stopping"
        if (refusal := self._journal.refusal) is not None:
            return f"the disk refuses: {refusal.strerror or refusal}"
        if (snapshot := self._handle.snapshot) is not None and snapshot.pressure >= 1.0:
            return "the state folder is as large as it may be"
        return None

    def start(self) -> None:
        """Start the worker now, and not with the first event."""
        if self._enabled:
            self._handle.start()

    def start_if_pending(self) -> None:
        """Start the worker if an earlier process left events in the state folder."""
        with suppress(OSError):  # a folder that cannot be looked at has nothing for this process
            if self._enabled and isinstance(self._journal, Journal) and self.config.state_folder.is_dir():
                self._handle.start()

    def heartbeat(self, agent_id: str) -> None:
        """Send a heartbeat of the agent soon, if the tracker takes any."""
        if self._enabled:
            self._handle.heartbeat(agent_id)

    def flush(self, timeout_seconds: float) -> bool:
        """Whether everything pending at the call was delivered or dead-lettered in `timeout_seconds`."""
        return self._handle.flush(timeout_seconds) if self._enabled else True

    def delivery_stats(self) -> dict[str, Any]:
        """The books of the state folder, with what this process has accepted and its worker not yet seen."""
        snapshot = self._handle.seen(FIRST_LOOK_SECONDS) if self._enabled else None
        counters = self._journal.counters
        unseen, unbooked, by_kind = counters.appended, counters.lost(), Counter[str]()
        accepted = delivered = pending = dead_lettered = 0
        oldest_us = None
        if snapshot is not None:
            counts = snapshot.counts
            unseen -= snapshot.absorbed
            unbooked -= Counter(snapshot.booked)
            by_kind += Counter(counts.dropped_by_kind)
            accepted, delivered, pending = counts.accepted, counts.delivered, counts.pending
            dead_lettered, oldest_us = counts.dead_lettered, counts.oldest_pending_us
        by_kind += unbooked
        now_us = self.clock.time_ns() // 1000
        return {
            "accepted": accepted + unseen + unbooked.total(),
            "delivered": delivered,
            "pending": pending + unseen,
            "dead_lettered": dead_lettered,
            "dropped": by_kind.total(),
            "dropped_by_kind": dict(by_kind),
            "oldest_pending_seconds": 0.0 if oldest_us is None else max(0.0, (now_us - oldest_us) / 1e6),
            "skipped_bytes": counters.skipped_bytes,
        }

    @property
    def destination(self) -> str:
        """The URL that events go to."""
        return self.config.destination

    def counted(self) -> Counted:
        """What this process alone has accepted, delivered, lost and ended, for metrics; nothing is waited for."""
        counters, tally = self._journal.counters, dict(self._handle.tally)
        lost = counters.lost()
        return Counted(
            accepted=counters.appended + lost.total(),
            delivered=tally.get("delivered", 0),
            rejected=tally.get("dead_lettered", 0),
            dropped=+lost + Counter(unreadable=tally.get("dropped.unreadable", 0)),
            ended={_way(name): number for name, number in tally.items() if name.startswith("ended.")},
            turns=self._turn_counts.read(),
            evaluations={} if self.events.recent is None else self.events.recent.counts,
        )

    def folder_now(self) -> FolderNow | None:
        """The state folder as the worker last saw it, for metrics; nothing is waited for."""
        snapshot = self._handle.snapshot
        if snapshot is None:
            return None
        counts, on_disk = snapshot.counts, isinstance(self._journal, Journal)
        since_us = self.clock.time_ns() // 1000 - (counts.oldest_pending_us or 0)
        return FolderNow(
            name=f"{self.config.state_folder.name if on_disk else 'memory'}-{counts.identity:016x}",
            pending=counts.pending + self._journal.counters.appended - snapshot.absorbed,
            dead_letters=counts.dead_lettered,
            oldest_pending_age=0.0 if counts.oldest_pending_us is None else max(0.0, since_us / 1e6),
            live_sessions=self.sessions.count_live(),
        )

    def release(self) -> None:
        """One holder less; with the last one the pipeline closes."""
        with _registry_lock:
            self.holders -= 1
            for key, pipeline in list(_registry.items()):
                if pipeline is self and self.holders <= 0:  # who interrupts us may have taken hold of it
                    del _registry[key]
            if self.holders > 0:
                return
        self.close()

    def close(self) -> None:
        """Flush for a moment and stop; what is not delivered stays on disk. Idempotent."""
        self.stop()
        if self._reporter is not None:
            agents.stop_reporting(self._reporter)
        remove_toucher(self.sessions.touch)
        self._provider.shutdown()
        metrics.forget(self)
        self._journal.close()

    def begin_to_stop(self) -> None:
        """Tell the worker to deliver what it can and end; `stop` waits for that."""
        if self._reporter is not None:
            agents.release(self._reporter)
        if self._gathered is not None:
            self._gathered.release()
        self._stop_by = min(self._stop_by, time.monotonic() + self.config.flush_timeout_seconds + 0.5)
        self._handle.stopping.set()
        self._handle.wake()

    def stop(self) -> None:
        """End the worker and the copies; what is accepted from now on stays in the journal."""
        self.begin_to_stop()
        self._handle.stop(max(0.0, self._stop_by - time.monotonic()))
        if self._copying is not None:
            self._copying.shutdown()

    def before_fork(self) -> None:
        """Have the worker close the state file, and wait until the fork is over."""
        self._is_paused = self._handle.pause_for_fork(LONGEST_PAUSE_SECONDS)

    def after_fork_in_parent(self) -> None:
        """Let the worker go on."""
        self._handle.resume_after_fork()

    def after_fork_in_child(self) -> None:
        """Make everything of this process's own again; what waited is the parent's to deliver.

        SQLite keeps what it has locked for the whole process: a child that was forked in the middle of a write would
        take its parent's locks for its own, so it must not open the state file.
        """
        if not self._is_paused:
            self._folder_unusable = "this process was forked while its parent wrote to the state file"
        self._journal.after_fork_in_child()
        if self._sender_lock is not None:
            self._sender_lock.release()
        self.sessions.after_fork_in_child()
        self._provider.after_fork_in_child()
        self.events.after_fork_in_child()
        if self._gathered is not None:
            self._gathered.after_fork_in_child()
        self._turn_counts.after_fork_in_child()
        self._stop_by = float("inf")
        self._handle = WorkerHandle(self._make_work, self._journal.wake)

    # --- building -------------------------------------------------------------------------------------------

    def _make_journal(self) -> MemoryJournal:
        if self.config.durability is Durability.MEMORY or not self._enabled:
            return MemoryJournal()
        if not DISK_SUPPORTED:
            _logger.warning("this platform has no flock or mmap: accepted events are kept in memory only")
            return MemoryJournal()
        return Journal(self.config.state_folder)

    def _make_sender_lock(self) -> SenderLock | None:
        on_disk = isinstance(self._journal, Journal)
        return SenderLock(self.config.state_folder / "sender.lock") if on_disk else None

    def _processors(self) -> list[SpanProcessor]:
        keeps_sessions = SessionSpanProcessor(self.sessions)
        if not self._enabled:
            return [keeps_sessions]
        encode = _otlp_encoder() if self.config.to_otlp else None
        processors: list[SpanProcessor] = [
            keeps_sessions,
            _ExportAtOnce(TrackerSpanExporter(self._accept, encode_otlp=encode)),
        ]
        if self.config.otlp and not self.config.to_otlp:
            from otel_agent_tracker.copies import copying_processor  # its exporter takes its time to import

            self._copying = copying_processor(self.config)
            processors.append(self._copying)
        return processors

    def _accept(self, entry: Entry) -> None:
        """Keep the entry; beyond the limit of the state folder the least important kinds are refused first."""
        if self._has_no_room(entry):
            self._journal.refuse(entry.event)
            return
        self._journal.append(entry.encode())
        if not self._handle.started:
            self._handle.start()

    def _persist(self, entry: Entry) -> bool:
        """Keep an entry that its sender keeps too: what finds no room now may come again, so it is not counted."""
        if self._has_no_room(entry) or self._handle.stopping.is_set():
            return False
        kept = self._journal.persist(entry.encode())
        if not self._handle.started:
            self._handle.start()
        return kept

    def _has_no_room(self, entry: Entry) -> bool:
        snapshot = self._handle.snapshot
        return snapshot is not None and snapshot.pressure >= _REFUSED_AT.get(entry.event, 1.0)

    def _make_work(self, handle: WorkerHandle) -> Callable[[], None]:
        """What the worker's thread runs, made there; nothing that it sends is instrumented."""
        with handle.stepping:
            self._journal.prepare()  # first: beside a thread that computes, the imports take seconds
        with _importing:
            from otel_agent_tracker.worker import Worker  # brings SQLite and the client, on this thread

            sender = self._sender or self._make_sender()
        worker = Worker(
            handle,
            self._journal,
            self.sessions,
            self.events.expire,
            sender,
            self.clock,
            self._sender_lock,
            folder=self.config.state_folder if isinstance(self._journal, Journal) else None,
            otlp=self.config.to_otlp,
            limit_bytes=self._limit_bytes,
            cleanup_interval=lambda: self.cleanup_interval_seconds,
            exit_flush_seconds=self.config.flush_timeout_seconds,
            tick=self._tick,
            folder_unusable=self._folder_unusable,
        )
        return lambda: _run_uninstrumented(worker.run)

    def _tick(self) -> None:
        if self._reporter is not None:
            agents.tick(self._reporter)
        if self._gathered is not None:
            self._gathered.tick()

    def _limit_bytes(self, used: int) -> int:
        """How large a state file of `used` bytes may become: as configured, but by at most a tenth of the free disk."""
        limit = int(self.config.outbox_max_mb * 1024 * 1024)
        with suppress(OSError):
            return max(LEAST_LIMIT, min(limit, used + self._free_bytes() // 10))
        return limit  # a disk that cannot be asked says by itself when it is full

    def _free_bytes(self) -> int:
        existing = next(
            path for path in (self.config.state_folder, *self.config.state_folder.parents) if path.exists()
        )
        return shutil.disk_usage(existing).free

    def _make_sender(self) -> Sender:
        from otel_agent_tracker.client import TrackerClient
        from otel_agent_tracker.delivery import OtlpSender

        config = self.config
        client = TrackerClient(
            config.url or config.otlp_endpoint.partition("?")[0],
            api_key=None if config.to_otlp else config.key,
            timeout_seconds=config.timeout_seconds,
            trust_env=config.trust_env,
        )
        client.prepare()
        if not config.to_otlp:
            return client
        return OtlpSender(
            lambda body: client.post_otlp(config.otlp_endpoint, body, config.otlp_headers), client.close
        )


def acquire(config: Config, *, delivers_what_was_left: bool = True) -> Pipeline:
    """The pipeline of this destination, made if there is none; the caller holds it until `release`.

    What earlier processes left is delivered at once, or when this one has events of its own: a short-lived helper
    that has none must not wait at its end for others' events.
    """
    key = (config.destination, config.key_identity, str(config.state_folder), config.durability)
    with _registry_lock:
        pipeline = _hold(key, config)
        try:
            if pipeline is not _substitute:
                _compare(pipeline.config, config)
                _compare_redactors(pipeline.redactor, config.redactor)
        except BaseException:
            pipeline.release()
            raise
        if config.redactor is not None:
            pipeline.redactor = config.redactor
    if delivers_what_was_left:
        pipeline.start_if_pending()
    return pipeline


def _hold(key: _Key, config: Config) -> Pipeline:
    """The pipeline there is, or a new one, with one holder more: from then on nobody else's `release` closes it."""
    while True:
        pipeline = _substitute or _registry.get(key) or _made(key, config)
        pipeline.holders += 1
        if pipeline is _substitute or _registry.get(key) is pipeline:
            return pipeline  # else who interrupted us let go of it, the last one to do so


def _made(key: _Key, config: Config) -> Pipeline:
    """A new pipeline, or the one that was made by whoever interrupted this."""
    made = Pipeline(config)
    kept = _registry.setdefault(key, made)
    if kept is made:
        _announce(config)
    else:
        made.close()
    return kept


def substitute(pipeline: Pipeline | None) -> None:
    """Give `pipeline` to everyone who asks for any, until None is set: for users' tests."""
    global _substitute
    _substitute = pipeline


def is_substituted() -> bool:
    """Whether everyone is given the pipeline of a test; then no tracker is asked anything either."""
    return _substitute is not None


def _compare(held: Config, asked: Config) -> None:
    """A destination has one configuration in a process: the first. Another's key must not be taken for it."""
    if callable(asked.api_key) and asked.api_key != held.api_key:
        raise ValueError(
            "another api_key callable of the same name is in use for this tracker: give each a name of its own, "
            "or pass the same one"
        )
    differing = [
        f.name for f in fields(Config) if f.compare and getattr(held, f.name) != getattr(asked, f.name)
    ]
    if differing:
        _logger.warning(
            "a tracker object for %s is there already, and its settings hold: %s",
            held.destination,
            ", ".join(differing),
        )


def _compare_redactors(held: Redact | None, asked: Redact | None) -> None:
    """Whoever asks for one must have it, and nobody's may be left out; who asks for none gets the one there is."""
    if held is not None and asked is not None and asked != held:
        raise ValueError(
            "another redactor is in use for this tracker: pass the same function everywhere, or one that calls both"
        )


def _announce(config: Config) -> None:
    reason = config.disabled_because
    if reason is None:
        return
    level = logging.WARNING if config.sdk_disabled and config.url else logging.INFO
    _logger.log(level, "agent tracking is off: %s", reason)


def _way(name: str) -> tuple[str, str]:
    """Who ended a conversation, and its outcome, from the name that the tally has for both."""
    _, ended_by, outcome = name.split(".")
    return ended_by, outcome


class _ExportAtOnce(SpanProcessor):
    """Hands each span to the exporter on the thread that ends it: accepted when the call returns."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def on_end(self, span: ReadableSpan) -> None:
        self._exporter.export((span,))

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _run_uninstrumented(work: Callable[[], None]) -> None:
    token = attach(set_value(sdk_private.SUPPRESS_INSTRUMENTATION_KEY, True, get_current()))
    try:
        work()
    finally:
        detach(token)


def _otlp_encoder() -> Callable[[ReadableSpan], bytes]:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    return lambda span: encode_spans((span,)).SerializeToString()


def _before_fork() -> None:
    """Let workers come to a point where a child can do without them.

    A child would find modules half made, and nobody to finish them; and it would take SQLite's locks, which it
    inherits as what SQLite knows of the process, for its own.
    """
    global _is_held_for_fork
    if _importing.acquire(timeout=LONGEST_IMPORT_SECONDS):
        _is_held_for_fork = True
    for pipeline in _pipelines:
        pipeline.before_fork()


def _after_fork_in_parent() -> None:
    global _is_held_for_fork
    for pipeline in _pipelines:
        pipeline.after_fork_in_parent()
    if _is_held_for_fork:
        _is_held_for_fork = False
        _importing.release()


def _after_fork_in_child() -> None:
    global _registry_lock, _importing, _is_held_for_fork
    _registry_lock, _importing, _is_held_for_fork = threading.RLock(), threading.Lock(), False
    for pipeline in _pipelines:
        pipeline.after_fork_in_child()


def _at_exit() -> None:
    """Give all workers one and the same moment to deliver.

    Journals stay open: what other threads and exit handlers still say is kept, for the next process to deliver.
    """
    pipelines = list(_pipelines)
    for pipeline in pipelines:
        pipeline.begin_to_stop()
    for pipeline in pipelines:
        pipeline.stop()
    _stay_interrupted()


def _stay_interrupted() -> None:
    """Let a process that Ctrl-C ended say so by its exit code.

    CPython forgets it when text is compiled, as imports on the worker's thread have it do, and is reminded when an
    interruption leaves compiled text. A prompt remembers what was interrupted long ago: it is left alone.
    """
    if getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1"):
        with suppress(KeyboardInterrupt):
            eval("interrupt()", {"interrupt": _interrupt})  # noqa: S307 - a constant


def _interrupt() -> None:
    raise KeyboardInterrupt


_REFUSED_AT = {
    Event.AGENT_ACTIVITY: 0.85,
    Event.CONVERSATION_TURN: 0.90,
    Event.CONVERSATION_START: 0.95,
}
"""From which share of the state folder's limit a kind of event is refused; the others at the limit."""

_registry: dict[_Key, Pipeline] = {}
_registry_lock = threading.RLock()  # a signal handler or a finaliser may make and close tracker objects
_pipelines: weakref.WeakSet[Pipeline] = weakref.WeakSet()
_substitute: Pipeline | None = None
_importing = threading.Lock()
_is_held_for_fork = False

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
atexit.register(_at_exit)
