"""The answers table, line by line: when the destination may be asked, and what an answer makes of an event."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_agent_tracker.channel import (
    CAPABILITIES_INTERVAL,
    MAX_INTERVAL,
    MOST_SUSPECTS,
    PAUSE,
    Channel,
    Dead,
    Done,
    Later,
    Verdict,
)
from otel_agent_tracker.client import Delivered, Misconfigured, NotOffered, Refused, Result, Retry
from otel_agent_tracker.wire import Capabilities

NOTHING = Capabilities()
BATCHES = Capabilities(batch={"path": "/batch", "max_events": 500})
UNKNOWN = NotOffered(404, "status 404")
PATH = "/conversations/start"


def longest(most: float) -> float:
    return most


@pytest.fixture
def channel() -> Channel:
    """A channel to a tracker that offers nothing, whose back-off is always the longest possible."""
    channel = Channel(jitter=longest)
    channel.answered_capabilities(NOTHING, 0.0)
    return channel


def judge(
    channel: Channel, result: Result, now: float = 0.0, *, event_id: str = "a", path: str = PATH, **more: Any
) -> Verdict:
    return channel.judge(event_id, path, result, now, **{"sent_before": False, **more})


def test_nothing_is_sent_before_the_tracker_said_what_it_offers() -> None:
    """A new channel asks first, and then probes with one event."""
    channel = Channel()
    assert channel.must_ask_capabilities(0.0)
    channel.answered_capabilities(NOTHING, 0.0)
    assert [channel.must_ask_capabilities(0.0), channel.probing, channel.is_open(0.0)] == [False, True, False]


def test_delivered_opens_the_channel(channel: Channel) -> None:
    """2xx: the event is done and the lanes open."""
    assert judge(channel, Delivered()) == Done()
    assert channel.is_open(0.0)


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_a_refused_event_is_dead(channel: Channel, status: int) -> None:
    """400, 409, 413, 422: this event alone is refused, the channel is open."""
    assert judge(channel, Refused(status, "no such agent")) == Dead(f"{status} no such agent")
    assert channel.is_open(0.0)


def test_a_conflict_about_an_event_sent_before_is_a_delivery(channel: Channel) -> None:
    """409 says of an event whose answer was lost that the tracker has it."""
    assert judge(channel, Refused(409, "known"), sent_before=True) == Done()
    assert judge(channel, Refused(400, "bad"), sent_before=True) == Dead("400 bad")


def test_an_event_that_fails_where_others_get_through_waits_by_itself(channel: Channel) -> None:
    """With the back-off of the channel, which stays open; a key or an address that does not suit waits a minute."""
    judge(channel, Delivered())
    delays = [channel.hold_back(Retry("status 503"), attempts, 0.0) for attempts in (0, 1, 2, 6, 2_000)]
    assert delays == [Later("status 503", seconds) for seconds in (1.0, 2.0, 4.0, MAX_INTERVAL, MAX_INTERVAL)]
    assert channel.hold_back(Misconfigured("status 403"), 0, 0.0) == Later("status 403", PAUSE)
    assert channel.is_open(0.0)


def test_temporary_failures_double_the_delay_up_to_a_minute(channel: Channel) -> None:
    """Back-off is exponential from 1 s to 60 s, and success starts it anew."""
    now, delays = 0.0, []
    for _ in range(9):
        judge(channel, Retry("status 503"), now)
        delays.append(channel.seconds_to_wait(now))
        now += delays[-1]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    judge(channel, Delivered(), now)
    judge(channel, Retry("status 503"), now)
    assert channel.seconds_to_wait(now) == 1.0


def test_the_delay_is_anything_from_nothing_to_the_interval() -> None:
    """Full jitter: many processes do not come back at once."""
    asked: list[float] = []
    channel = Channel(jitter=lambda most: asked.append(most) or 0.25)  # type: ignore[func-returns-value]  # append gives None
    channel.answered_capabilities(NOTHING, 0.0)
    judge(channel, Retry("down"))
    assert [asked, channel.seconds_to_wait(0.0)] == [[1.0], 0.25]
    assert 0.0 <= Channel()._jitter(3.0) <= 3.0


def test_failures_of_requests_that_were_under_way_together_are_one(channel: Channel) -> None:
    """Eight lanes that fail at once do not make eight steps of back-off."""
    for _ in range(8):
        judge(channel, Retry("down"), 0.0)
    assert channel.seconds_to_wait(0.0) == 1.0
    judge(channel, Retry("down"), 1.0)
    assert channel.seconds_to_wait(1.0) == 2.0


def test_a_success_that_was_under_way_with_a_failure_does_not_open_the_lanes(channel: Channel) -> None:
    """After a failure one probe goes first, whatever else had been sent before."""
    judge(channel, Delivered())
    judge(channel, Retry("down"))
    judge(channel, Delivered(), event_id="b")
    judge(channel, Refused(400, "bad"), event_id="c")
    assert [channel.probing, channel.is_open(1.0)] == [True, False]
    judge(channel, Delivered(), 1.0)
    assert channel.is_open(1.0)


@pytest.mark.parametrize(("asked", "waits"), [(120.0, 120.0), (3600.0, 3600.0), (1.0, 1.0), (0.0, 1.0)])
def test_retry_after_is_honoured(channel: Channel, asked: float, waits: float) -> None:
    """The tracker's own word on when to come back holds; "at once" is left to the back-off."""
    judge(channel, Retry("status 429", asked))
    assert channel.seconds_to_wait(0.0) == waits


def test_the_longest_wish_of_several_answers_holds(channel: Channel) -> None:
    """Neither a plain failure nor a misconfiguration shortens what the tracker asked for."""
    judge(channel, Retry("status 429", 1800.0))
    judge(channel, Retry("status 503"))
    judge(channel, Misconfigured("status 401"))
    assert channel.seconds_to_wait(0.0) == 1800.0


def test_misconfigured_pauses_for_a_minute(channel: Channel) -> None:
    """401, 403, 3xx, HTML: everything is kept, one try a minute."""
    assert judge(channel, Misconfigured("status 401")) == Later("status 401")
    assert [channel.seconds_to_wait(0.0), channel.seconds_to_wait(PAUSE)] == [PAUSE, 0.0]


def test_an_hour_of_outage_takes_few_requests() -> None:
    """With real jitter: fewer than 200 probes an hour."""
    channel, now, probes = Channel(), 0.0, 0
    while now < 3600.0:
        now += channel.seconds_to_wait(now)
        channel.answered_capabilities(Retry("connection refused"), now)
        probes += 1
    assert probes < 200


@given(st.lists(st.one_of(st.none(), st.floats(0, 3600)), min_size=1, max_size=30))
def test_the_wait_is_never_longer_than_asked_or_a_minute(wishes: list[float | None]) -> None:
    """Whatever the tracker answers, events wait at most a minute, or what it asked for."""
    channel, now = Channel(), 0.0
    for wish in wishes:
        channel.fail(Retry("down", wish), now)
        assert channel.seconds_to_wait(now) <= max(MAX_INTERVAL, wish or 0.0) + 0.001
        now += channel.seconds_to_wait(now)


# --- what is offered ----------------------------------------------------------------------------------------


def test_a_tracker_that_offers_nothing_is_asked_again_every_ten_minutes(channel: Channel) -> None:
    """It may have been upgraded."""
    assert not channel.must_ask_capabilities(CAPABILITIES_INTERVAL - 1)
    assert channel.must_ask_capabilities(CAPABILITIES_INTERVAL)


def test_a_tracker_that_offers_something_is_not_asked_again(channel: Channel) -> None:
    """Until it refuses a path."""
    assert channel.answered_capabilities(BATCHES, 0.0)
    assert not channel.must_ask_capabilities(1e9)
    judge(channel, UNKNOWN)
    assert channel.must_ask_capabilities(0.0)
    assert not channel.answered_capabilities(BATCHES, 0.0)
    assert not channel.must_ask_capabilities(1e9)


@pytest.mark.parametrize(("answer", "waits"), [(Retry("down"), 1.0), (Misconfigured("status 401"), PAUSE)])
def test_capabilities_that_are_not_answered_hold_everything(
    answer: Retry | Misconfigured, waits: float
) -> None:
    """Any other answer is asked again with the channel's back-off."""
    channel = Channel(jitter=longest)
    assert not channel.answered_capabilities(answer, 0.0)
    assert [channel.seconds_to_wait(0.0), channel.must_ask_capabilities(waits)] == [waits, True]


def test_a_refused_batch_path_makes_events_go_singly_for_a_minute(channel: Channel) -> None:
    """The tracker is asked anew what it offers, and nothing waits."""
    channel.answered_capabilities(BATCHES, 0.0)
    assert channel.batch(0.0) == BATCHES.batch
    channel.refuse_batches("/batch", "status 404", 0.0)
    assert [channel.batch(0.0), channel.must_ask_capabilities(0.0), channel.seconds_to_wait(0.0)] == [
        None,
        True,
        0,
    ]
    channel.answered_capabilities(BATCHES, 0.0)
    assert [channel.batch(PAUSE - 1), channel.batch(PAUSE)] == [None, BATCHES.batch]


# --- paths --------------------------------------------------------------------------------------------------


def test_a_refused_path_pauses_alone(channel: Channel) -> None:
    """404, 405, 501: events of other paths go on, those of this one are probed after a minute."""
    assert judge(channel, UNKNOWN) == Later(f"{PATH}: status 404", PAUSE)
    assert [channel.paused_paths(0.0), channel.paused_paths(PAUSE), channel.seconds_to_wait(0.0)] == [
        [PATH],
        [],
        0.0,
    ]
    assert channel.probed_paths() == {PATH}
    judge(channel, Delivered(), PAUSE, event_id="b")
    assert channel.probed_paths() == frozenset()


def test_an_event_is_to_blame_if_others_of_its_path_succeed(channel: Channel) -> None:
    """Its third refusal, with successes of others in between, is its last."""
    verdicts = []
    for now in (0.0, 60.0, 120.0):
        verdicts.append(judge(channel, UNKNOWN, now, event_id="bad"))
        judge(channel, Delivered(), now, event_id=f"good at {now}")
    later = Later(f"{PATH}: status 404", PAUSE)
    assert verdicts == [later, later, Dead(f"{PATH}: status 404")]


def test_of_a_path_that_stays_refused_only_so_many_events_are_known(channel: Channel) -> None:
    """Of those that others have got past none is forgotten, so the third refusal of each is its last."""
    for now in (0.0, PAUSE):
        judge(channel, UNKNOWN, now, event_id="bad")
        judge(channel, Delivered(), now, event_id="good")
    for number in range(MOST_SUSPECTS + 1):
        judge(channel, UNKNOWN, event_id=str(number))
    known = [channel.is_suspect(str(number)) for number in range(MOST_SUSPECTS + 1)]
    assert known == [False, False, *[True] * (MOST_SUSPECTS - 1)]
    assert judge(channel, UNKNOWN, 2 * PAUSE, event_id="bad") == Dead(f"{PATH}: status 404")


def test_no_event_is_to_blame_if_its_path_works_for_none(channel: Channel) -> None:
    """A path that nobody can use is the address's fault, however often it is tried."""
    verdicts = {judge(channel, UNKNOWN, PAUSE * i, event_id="a") for i in range(10)}
    assert verdicts == {Later(f"{PATH}: status 404", PAUSE)}


def test_where_every_path_is_refused_the_channel_pauses(channel: Channel) -> None:
    """A wrong address is asked once a minute, and not once a minute for each path."""
    judge(channel, UNKNOWN, path="/a")
    assert channel.seconds_to_wait(0.0) == 0.0
    judge(channel, UNKNOWN, path="/b")
    assert [channel.seconds_to_wait(0.0), channel.probing] == [PAUSE, True]


def test_a_path_that_works_keeps_the_channel_open(channel: Channel) -> None:
    """Two refused paths do not stop a third."""
    judge(channel, Delivered(), path="/works")
    judge(channel, UNKNOWN, path="/a")
    judge(channel, UNKNOWN, path="/b")
    assert channel.seconds_to_wait(0.0) == 0.0


def test_probes_go_to_the_path_refused_longest_ago(channel: Channel) -> None:
    """So one path that stays refused does not hide that another works again."""
    judge(channel, UNKNOWN, 0.0, path="/a")
    judge(channel, UNKNOWN, 10.0, path="/b")
    assert sorted(["/b", "/a", "/new"], key=channel.refused_until) == ["/new", "/a", "/b"]


def test_other_capabilities_lift_every_pause(channel: Channel) -> None:
    """What was refused may be known now, or is sent in another form."""
    judge(channel, UNKNOWN)
    assert channel.answered_capabilities(BATCHES, 0.0)
    assert [channel.paused_paths(0.0), channel.is_suspect("a")] == [[], False]


# --- warnings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result", [Retry("down"), Misconfigured("status 401"), UNKNOWN, Refused(422, "the secret text")]
)
def test_each_trouble_is_told_once_a_minute(
    channel: Channel, caplog: pytest.LogCaptureFixture, result: Result
) -> None:
    """A line a minute for each kind of trouble, without anything that the tracker repeated of an event."""
    with caplog.at_level(logging.WARNING):
        for now in range(0, 120, 5):
            judge(channel, result, float(now))
    assert [len(caplog.records), "secret" in caplog.text] == [2, False]
