"""Rules of `session_record`: what a packed session keeps."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_agent_tracker import session_record
from otel_agent_tracker.semconv import Origin, TurnStatus
from otel_agent_tracker.session_record import ResponseTimeSummary, Session, Turn, add_turn, unpacked

TEXTS = st.text(min_size=1, max_size=256)
TIMES = st.integers(-(2**62), 2**62)


def record_of(
    agent_id: str = "agent",
    user_id: str | None = None,
    origin: Origin = Origin.CALL,
    start_us: int = 1_000,
) -> bytearray:
    """A session without turns."""
    return session_record.packed(
        agent_id=agent_id,
        user_id=user_id,
        origin=origin,
        start_us=start_us,
        last_access=5.0,
        last_activity_us=2_000,
    )


def turn(turn_id: str = "t", **others: object) -> Turn:
    """A turn of one second, but for what is said."""
    values: dict[str, object] = {"seconds": 1.0, "status": TurnStatus.OK, "end_us": 3_000, **others}
    return Turn(turn_id, **values)  # type: ignore[arg-type]  # each test names fields of Turn


def summary_of(seconds: list[float]) -> ResponseTimeSummary:
    """The response times of a session with turns that took `seconds`."""
    record = record_of()
    for number, one in enumerate(seconds):
        assert add_turn(record, turn(str(number), seconds=one))
    summary = unpacked("s", record).response_times
    assert summary is not None
    return summary


def test_a_new_session_holds_what_it_was_opened_with() -> None:
    """Without turns there are neither response times nor an error."""
    assert unpacked("s", record_of(user_id="u", origin=Origin.RECOGNISED)) == Session(
        session_id="s",
        agent_id="agent",
        user_id="u",
        origin=Origin.RECOGNISED,
        start_us=1_000,
        last_access=5.0,
        last_activity_us=2_000,
        waiting=False,
        message_count=None,
        turns=0,
        failed_turns=0,
        last_turn_failed=False,
        error_type=None,
        error_message=None,
        input_tokens=0,
        output_tokens=0,
        response_times=None,
    )


def test_a_session_holds_the_sums_of_its_turns() -> None:
    """Every turn counts, the last decides the error, the latest message count is kept."""
    record = record_of()
    add_turn(record, turn("1", seconds=2.0, input_tokens=10, output_tokens=1, message_count=2))
    failed = turn(
        "2", seconds=2.0, status=TurnStatus.FAILED, input_tokens=5, error_type="E", error_message="m"
    )
    add_turn(record, failed)
    session = unpacked("s", record)
    assert (session.turns, session.failed_turns, session.last_turn_failed) == (2, 1, True)
    assert (session.input_tokens, session.output_tokens, session.message_count) == (15, 1, 2)
    assert (session.error_type, session.error_message) == ("E", "m")
    assert session.response_times == ResponseTimeSummary(count=2, sum=4.0, min=2.0, max=2.0, p50=2.0, p95=2.0)


@given(
    agent_id=TEXTS, user_id=st.none() | TEXTS, start=TIMES, error=st.none() | TEXTS, kind=st.none() | TEXTS
)
def test_any_text_comes_back(
    agent_id: str, user_id: str | None, start: int, error: str | None, kind: str | None
) -> None:
    """Ids and errors are kept as they are, half characters and empty ones included."""
    record = record_of(agent_id, user_id, start_us=start)
    add_turn(record, turn(status=TurnStatus.FAILED, error_type=kind, error_message=error))
    session = unpacked("s", record)
    kept = (session.agent_id, session.user_id, session.start_us, session.error_type, session.error_message)
    assert kept == (agent_id, user_id, start, kind, error)


@pytest.mark.parametrize("with_turn", [False, True])
def test_a_user_is_filled_in_once(with_turn: bool) -> None:
    """A session that has a user keeps it, and its turns stay what they are."""
    record = record_of()
    if with_turn:
        add_turn(record, turn(status=TurnStatus.FAILED, error_message="m"))
    assert session_record.fill_in_user(record, "first")
    assert not session_record.fill_in_user(record, "second")
    session = unpacked("s", record)
    assert (session.user_id, session.turns) == ("first", int(with_turn))
    assert session.error_message == ("m" if with_turn else None)


def test_errors_are_cut_at_500_characters() -> None:
    """Neither text of an error can make a record large."""
    record = record_of()
    add_turn(record, turn(status=TurnStatus.FAILED, error_type="é" * 501, error_message="🤖" * 501))
    session = unpacked("s", record)
    assert (session.error_type, session.error_message) == ("é" * 500, "🤖" * 500)


def test_an_error_is_kept_while_its_turn_is_the_last() -> None:
    """A turn that did not fail takes the error away, whatever text it brings."""
    record = record_of()
    add_turn(record, turn("1", status=TurnStatus.FAILED, error_type="E", error_message="m"))
    add_turn(record, turn("2", status=TurnStatus.CANCELLED, error_message="not an error"))
    session = unpacked("s", record)
    assert (session.last_turn_failed, session.error_type, session.error_message) == (False, None, None)
    assert session.failed_turns == 1


def test_the_turn_that_ended_last_is_the_last() -> None:
    """A turn that arrives late does not say how the session stands."""
    record = record_of()
    add_turn(record, turn("2", end_us=200, status=TurnStatus.WAITING))
    add_turn(record, turn("1", end_us=100, status=TurnStatus.FAILED, error_message="m"))
    session = unpacked("s", record)
    assert (session.turns, session.waiting, session.last_turn_failed) == (2, True, False)


def test_a_turn_is_counted_once() -> None:
    """A turn seen again is refused and changes nothing."""
    record = record_of()
    assert add_turn(record, turn("1"))
    before = record[:]
    assert not add_turn(record, turn("1", status=TurnStatus.FAILED))
    assert record == before


def test_the_last_64_turns_are_remembered() -> None:
    """A repeat is known as long as fewer than 64 other turns came between."""
    record = record_of()
    for number in range(65):
        assert add_turn(record, turn(str(number)))
    assert not add_turn(record, turn("1"))
    assert add_turn(record, turn("0"))


def test_a_turn_is_not_taken_for_an_empty_place() -> None:
    """A turn whose hash is that of a place not yet used counts."""
    record = record_of()
    assert add_turn(record, turn(""))  # its hash is 0
    assert not add_turn(record, turn(""))


def test_impossible_values_are_bounded() -> None:
    """Negative durations and tokens count as 0, sums stop at 63 bits: nothing raises."""
    record = record_of()
    add_turn(record, turn("1", seconds=-1.0, input_tokens=-5, output_tokens=2**80, message_count=2**80))
    add_turn(record, turn("2", seconds=math.nan, output_tokens=1))
    session = unpacked("s", record)
    assert (session.input_tokens, session.output_tokens) == (0, 2**63 - 1)
    assert session.message_count == 2**63 - 1
    assert session.response_times == ResponseTimeSummary(count=2, sum=0.0, min=0.0, max=0.0, p50=0.0, p95=0.0)


@given(st.lists(st.floats(0.01, 600.0), min_size=1, max_size=200))
def test_percentiles_are_within_a_tenth(seconds: list[float]) -> None:
    """From 10 ms to 10 min, p50 and p95 are at most 10 % off the value of their rank."""
    summary, ranked = summary_of(seconds), sorted(seconds)
    for share, estimate in ((0.5, summary.p50), (0.95, summary.p95)):
        exact = ranked[math.ceil(share * len(ranked)) - 1]
        assert abs(estimate - exact) <= 0.1 * exact
    assert (summary.min, summary.max) == (ranked[0], ranked[-1])
    assert summary.sum == pytest.approx(sum(seconds))


def test_beyond_its_range_a_percentile_is_an_extreme() -> None:
    """What is shorter than 10 ms is the minimum, what is longer than 10 min the maximum."""
    summary = summary_of([0.001, 0.002, 0.003, 5_000.0, 7_000.0])
    assert (summary.p50, summary.p95) == (0.001, 7_000.0)


def test_a_full_bucket_halves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """More turns than a bucket can count leave the percentiles where they were."""
    monkeypatch.setattr(session_record, "_FULL", 255)
    summary = summary_of([0.1 if number % 10 else 100.0 for number in range(1_000)])
    assert summary.count == 1_000
    assert summary.p50 == pytest.approx(0.1, rel=0.1)
    assert summary.p95 == pytest.approx(100.0, rel=0.1)


def test_a_dump_is_self_contained() -> None:
    """What is loaded is what was dumped, turn statistics included; the access has become wall time."""
    record = record_of(user_id="u")
    add_turn(record, turn(status=TurnStatus.FAILED, error_message="m"))
    session_record.set_loaded(record)
    copy = session_record.loaded(session_record.dumped(record, 7_000_000.0))
    assert session_record.last_access_us(copy) == 7_000_000
    session_record.set_last_access(copy, 5.0)
    assert unpacked("s", copy) == unpacked("s", record)
    assert copy[session_record.FLAGS_AT] & session_record.LOADED == 0


def test_another_version_is_refused() -> None:
    """A dump of a version that is not known raises, so that it is set aside and not misread."""
    blob = session_record.dumped(record_of(), 0.0)
    for other in (b"", b"\x00" + blob[1:], b"\x02" + blob[1:]):
        with pytest.raises(ValueError, match="format 1"):
            session_record.loaded(other)


@pytest.mark.parametrize("access", [math.nan, math.inf])
def test_an_access_at_no_time_is_refused(access: float) -> None:
    """A damaged access must not make a session that never ends."""
    with pytest.raises(ValueError, match="no time"):
        session_record.loaded(session_record.dumped(record_of(), access))


@given(st.data())
def test_damage_raises_value_error_or_is_read(data: st.DataObject) -> None:
    """Whatever a blob has become, it is refused with ValueError or can be unpacked and used."""
    record = record_of(user_id="ü")
    add_turn(record, turn(status=TurnStatus.FAILED, error_message="m"))
    blob = bytearray(session_record.dumped(record, 1.0))
    for at in data.draw(st.lists(st.integers(0, 60), max_size=3)):
        blob[at] = data.draw(st.integers(0, 255))
    blob = blob[: data.draw(st.integers(len(blob) - 3, len(blob)))]
    try:
        damaged = session_record.loaded(bytes(blob))
    except ValueError:
        return
    assert unpacked("s", damaged).session_id == "s"


def test_a_cut_dump_is_refused() -> None:
    """No part of a dump is taken for the whole."""
    record = record_of(user_id="u")
    add_turn(record, turn())
    blob = session_record.dumped(record, 1.0)
    for end in range(1, len(blob)):
        with pytest.raises(ValueError, match="not whole"):
            session_record.loaded(blob[:end])


def test_the_newer_record_adopts_what_it_lacks() -> None:
    """Of one conversation: the user, a start by call, the turns with their error, the later access."""
    newer, older = record_of(origin=Origin.RECOGNISED), record_of(user_id="u")
    add_turn(older, turn(status=TurnStatus.FAILED, error_message="m", message_count=3))
    session_record.set_last_access(older, 9.0)
    session_record.adopt(newer, older)
    assert unpacked("s", newer) == unpacked("s", older)


def test_the_newer_record_keeps_its_own() -> None:
    """Turns and user of the newer record are not lost to the older one."""
    newer, older = record_of(user_id="new"), record_of(user_id="old", origin=Origin.RECOGNISED)
    for number in range(3):
        add_turn(older, turn(str(number)))
    add_turn(newer, turn("9", seconds=9.0))
    expected = unpacked("s", newer)
    session_record.adopt(newer, older)
    assert unpacked("s", newer) == expected


def test_the_later_turn_counts_whichever_record_is_newer() -> None:
    """A touch makes a record newer, and says nothing of how the last turn went."""
    newer, older = record_of(), record_of()
    add_turn(newer, turn("1", status=TurnStatus.FAILED, error_message="m"))
    add_turn(older, turn("1", status=TurnStatus.FAILED, error_message="m"))
    add_turn(older, turn("2", end_us=4_000))
    session_record.note_activity(newer, 9_000)
    session_record.adopt(newer, older)
    adopted = unpacked("s", newer)
    assert (adopted.turns, adopted.last_turn_failed, adopted.error_message) == (2, False, None)
    assert adopted.last_activity_us == 9_000


def test_two_who_opened_one_conversation_share_its_last_turn() -> None:
    """Neither knew of the other, so each has a start of its own; a turn that ended in the newer one is one of its."""
    newer, older = record_of(start_us=1_000), record_of(start_us=2_000)
    add_turn(older, turn(status=TurnStatus.FAILED))
    session_record.adopt(newer, older)
    assert unpacked("s", newer).last_turn_failed


def test_another_conversation_has_nothing_to_adopt() -> None:
    """A record with another start gives its access at most, and no turn of before."""
    newer, older = record_of(start_us=4_000), record_of(start_us=2, user_id="u")
    add_turn(older, turn())
    session_record.adopt(newer, older)
    assert unpacked("s", newer) == unpacked("s", record_of(start_us=4_000))


def test_a_turn_opens_the_next_conversation_of_a_record() -> None:
    """From the start of the turn that started last, whichever ended last; nobody started it by a call."""
    record = record_of(user_id="u")
    assert session_record.last_turn_start_us(record) is None
    add_turn(record, turn("1", end_us=9_000_000, seconds=8.0))
    add_turn(record, turn("2", end_us=5_000_000, seconds=1.5))
    assert session_record.last_turn_start_us(record) == 3_500_000
    session_record.begin_next(record, 3_500_000)
    begun = unpacked("s", record)
    assert (begun.start_us, begun.origin, begun.user_id) == (3_500_000, Origin.RECOGNISED, "u")
