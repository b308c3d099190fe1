"""Promises to hosts: shared evenly, never taken back, always kept."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privmem.nodeagent.device.credits import UNLIMITED_PAGES, Credits, is_limited
from privmem.scheduler.errors import InvariantError, ProtocolError


@pytest.mark.parametrize(
    ("hosts", "room", "expected"),
    [
        (["a"], 10, {"a": 10}),
        (["b", "a"], 11, {"a": 6, "b": 5}),
        (["c", "a", "b"], 5, {"a": 2, "b": 2, "c": 1}),
        (["a", "b"], 0, {"a": 0, "b": 0}),
        ([], 10, {}),
    ],
)
def test_first_promises_are_even_shares(hosts: list[str], room: int, expected: dict[str, int]) -> None:
    assert Credits(hosts, room, True).promised == expected


@pytest.mark.parametrize(
    ("promised", "room", "expected"),
    [
        ({"a": 5, "b": 0}, 7, {"a": 5, "b": 2}),
        ({"a": 5, "b": 0}, 10, {"a": 5, "b": 5}),
        ({"a": 5, "b": 0}, 13, {"a": 7, "b": 6}),
        ({"a": 3, "b": 1, "c": 0}, 6, {"a": 3, "b": 2, "c": 1}),
        ({"a": 3, "b": 1, "c": 0}, 5, {"a": 3, "b": 1, "c": 1}),
        ({"a": 3, "b": 1, "c": 0}, 4, {"a": 3, "b": 1, "c": 0}),
        ({"a": 3, "b": 1, "c": 0}, 12, {"a": 4, "b": 4, "c": 4}),
    ],
)
def test_room_goes_to_those_who_have_least(
    promised: dict[str, int], room: int, expected: dict[str, int]
) -> None:
    credits_ = Credits(list(promised), 0, True)
    credits_.promised = dict(promised)
    credits_.share_out(room)
    assert credits_.promised == expected
    assert credits_.grown == {host: expected[host] > promised[host] for host in promised}


def test_a_promise_is_not_taken_back_for_a_fairer_share() -> None:
    """What b was promised it may have sent already; a has to live with what is left."""
    credits_ = Credits(["a", "b"], 100, True)
    credits_.take("a", 50)
    credits_.share_out(50)
    assert credits_.promised == {"a": 0, "b": 50}


def test_a_host_that_sends_too_much_is_told() -> None:
    credits_ = Credits(["a", "b"], 9, True)
    credits_.take("a", 5)
    with pytest.raises(ProtocolError, match="a stores 1 pages, its credit is 0"):
        credits_.take("a", 1)
    with pytest.raises(ProtocolError, match="c stores 1 pages, its credit is 0"):
        credits_.take("c", 1)


def test_who_is_told_what_and_when() -> None:
    credits_ = Credits(["a", "b"], 4, True)
    assert credits_.due(with_grown=True) == []
    credits_.take("a", 2)
    credits_.share_out(6)
    assert credits_.due(with_grown=False) == [("a", 2, 3)]
    assert credits_.due(with_grown=True) == [("b", 0, 3)]
    assert credits_.due(with_grown=True) == []


def test_promises_beyond_the_room_are_seen() -> None:
    credits_ = Credits(["a"], 4, True)
    for call in (credits_.share_out, credits_.validate):
        with pytest.raises(InvariantError, match="4 pages promised, room for 3"):
            call(3)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"compression": None, "physical_bytes": 40960, "capacity_pages": 10}, False),
        ({"compression": None, "physical_bytes": 40959, "capacity_pages": 10}, True),
        ({"compression": {"codec": "lz4"}, "physical_bytes": 1 << 30, "capacity_pages": 10}, True),
    ],
)
def test_only_what_can_run_out_is_limited(spec: dict[str, Any], expected: bool) -> None:
    assert is_limited(spec) is expected


def test_without_a_limit_nobody_is_held_back() -> None:
    credits_ = Credits(["a", "b"], 4, False)
    credits_.take("a", 1000)
    credits_.share_out(0)
    assert credits_.due(with_grown=True) == [("a", 1000, UNLIMITED_PAGES)]
    assert credits_.promised == {"a": UNLIMITED_PAGES, "b": UNLIMITED_PAGES}


EVENT = st.tuples(st.sampled_from("abc"), st.sampled_from(["send", "arrive", "free", "tell", "hear"]))


@given(st.lists(st.tuples(EVENT, st.integers(1, 12)), max_size=80), st.integers(0, 40))
@settings(max_examples=80, deadline=None)
def test_a_page_within_credit_always_fits(events: list[tuple[tuple[str, str], int]], physical: int) -> None:
    """Hosts that spend all they were told of, with messages under way in both directions as long as they like."""
    hosts = ["a", "b", "c"]
    credits_ = Credits(hosts, physical, True)
    view = {host: [credits_.promised[host], 0] for host in hosts}  # last credit, not acknowledged
    to_device: dict[str, list[int]] = {host: [] for host in hosts}
    to_host: dict[str, list[tuple[int, int]]] = {host: [] for host in hosts}
    used = 0
    for (host, what), nr in events:
        credit, unacknowledged = view[host]
        if what == "send" and (count := min(nr, credit - unacknowledged)) > 0:
            view[host][1] += count
            to_device[host].append(count)
        elif what == "arrive" and to_device[host]:
            count = to_device[host].pop(0)
            credits_.take(host, count)
            used += count  # none of them compresses
        elif what == "free":
            used -= min(used, nr)
        elif what == "tell":
            credits_.share_out(physical - used)
            for name, count, promise in credits_.due(with_grown=True):
                to_host[name].append((count, promise))
        elif what == "hear" and to_host[host]:
            count, promise = to_host[host].pop(0)
            view[host] = [promise, unacknowledged - count]
        assert used <= physical
        credits_.validate(physical - used)
        copy = Credits(hosts, 0, True)
        copy.restore(credits_.snapshot())
        credits_ = copy
