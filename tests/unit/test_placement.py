"""The scheduler participant: who gets an extent, in which order, and what it remembers."""

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privmem.scheduler import plain
from privmem.scheduler.errors import ProtocolError
from privmem.scheduler.messages import (
    AllocExtent,
    ExtentGranted,
    ExtentRefused,
    ExtentReleased,
    Message,
    RequestExtent,
    Sample,
    Traffic,
)
from privmem.scheduler.participant import Clock
from privmem.scheduler.placement import Scheduler

H0, H1 = "host/h0", "host/h1"


def make(capacity=512, quota=None, granted=None, pooled=True):
    device = {"capacity_pages": capacity, "extent_pages": 256, "pooled": pooled}
    device |= {"quota_pages": quota or {}, "granted": granted or {}}
    return Scheduler({"name": "scheduler", "hosts": [H0, H1], "devices": {"pool": device}})


def clock(horizon, epoch=0):
    return Clock(epoch, epoch * 1000, (epoch + 1) * 1000, horizon)


def ask(time_ns, host, seq=0, pages=256, device="device/pool"):
    return Message(time_ns, host, seq, "scheduler", RequestExtent(device, 3, pages))


def device_says(time_ns, seq, body):
    return Message(time_ns, "device/pool", seq, "scheduler", body)


def sent(outbox):
    return [(m.time_ns, m.to, m.body) for m in outbox.messages]


def test_admits_while_there_is_room_and_then_refuses():
    s = make(capacity=512)
    out = s.step([ask(5, H0), ask(6, H1), ask(7, H0, 1)], clock(10))
    assert sent(out) == [
        (5, "device/pool", AllocExtent(H0, 3, 256)),
        (6, "device/pool", AllocExtent(H1, 3, 256)),
        (7, H0, ExtentRefused("device/pool", H0, 3, errno.ENOMEM)),
    ]
    assert not out.waits_for_horizon
    s.validate()


def test_waits_for_the_horizon_and_settles_by_time_not_by_arrival():
    s = make(capacity=256)
    late = s.step([ask(9, H0)], clock(4))
    assert (sent(late), late.waits_for_horizon) == ([], True)
    out = s.step([ask(5, H1)], clock(9))
    assert sent(out) == [
        (5, "device/pool", AllocExtent(H1, 3, 256)),
        (9, H0, ExtentRefused("device/pool", H0, 3, errno.ENOMEM)),
    ]


def test_equal_times_go_by_sender():
    s = make(capacity=256)
    s.step([ask(5, H1)], clock(0))
    out = s.step([ask(5, H0)], clock(5))
    assert [type(m.body).__name__ + m.body.host for m in out.messages] == [
        "AllocExtenthost/h0",
        "ExtentRefusedhost/h1",
    ]


def test_quota():
    s = make(capacity=4096, quota={H0: 256})
    out = s.step([ask(1, H0), ask(2, H0, 1), ask(3, H1), ask(4, H1, 1)], clock(9))
    assert [m.body for m in out.messages if isinstance(m.body, ExtentRefused)] == [
        ExtentRefused("device/pool", H0, 3, errno.EDQUOT)
    ]


def test_dedicated_device_is_for_its_members():
    s = make(granted={H0: 256}, pooled=False)
    out = s.step([ask(1, H0), ask(2, H1)], clock(9))
    assert [m.body for m in out.messages] == [
        AllocExtent(H0, 3, 256),
        ExtentRefused("device/pool", H1, 3, errno.EPERM),
    ]


def test_requests_are_rounded_up_to_extents_and_nonsense_is_refused():
    s = make(capacity=1024)
    out = s.step([ask(1, H0, pages=257), ask(2, H1, pages=0)], clock(9))
    assert [m.body for m in out.messages] == [
        AllocExtent(H0, 3, 512),
        ExtentRefused("device/pool", H1, 3, errno.EINVAL),
    ]


def test_accounts_follow_the_devices_answers():
    s = make(capacity=768, granted={H1: 256})
    s.step([ask(1, H0), ask(2, H0, 1)], clock(9))
    s.step(
        [
            device_says(1, 0, ExtentGranted("device/pool", H0, 3, 256, 256)),
            device_says(2, 1, ExtentRefused("device/pool", H0, 3, errno.ENOMEM)),
        ],
        clock(9),
    )
    assert s.counters() == {
        "seq": 2,
        "queued": 0,
        "requests": 2,
        "granted_pages": 512,
        "promised_pages": 0,
        "released_pages": 0,
        "refused": 1,
    }
    out = s.step([device_says(10, 2, ExtentReleased("device/pool", H1, 256)), ask(11, H0, 2)], clock(20))
    assert sent(out) == [(11, "device/pool", AllocExtent(H0, 3, 256))]
    s.validate()
    assert s.summary() == {
        "requests": 3,
        "devices": {
            "pool": {
                "capacity_pages": 768,
                "granted_pages": {H0: 256, H1: 0},
                "granted_since_boot_pages": 256,
                "released_pages": 256,
                "refused": {H0: 1, H1: 0},
                "entitled_pages": {H0: 512, H1: 0},
                "unallocated_pages": 256,
                "partial_grants": 0,
                "reclaims": 0,
                "reclaimed_pages": 0,
                "kept_pages": 0,
                "lost_pages": 0,
                "peak_pages": {H0: 256, H1: 256},
                "peak_total_pages": 512,
                "saved_pages": 0,
            }
        },
    }


def test_a_return_counts_from_its_time_on():
    s = make(capacity=256, granted={H1: 256})
    out = s.step([ask(5, H0), device_says(6, 0, ExtentReleased("device/pool", H1, 256))], clock(9))
    assert [type(m.body) for m in out.messages] == [ExtentRefused]
    assert s.counters()["granted_pages"] == 0


def test_sample_once_an_epoch():
    s = make(granted={H0: 256})
    assert s.step([], clock(0)).messages == []
    assert s.step([], clock(999)).messages == []
    (message,) = s.step([], clock(1000)).messages
    assert (message.to, message.time_ns) == ("results", 1000)
    row = {
        "epoch": 0,
        "time_ns": 1000,
        "device": "pool",
        "refused": 0,
        "wanted_pages": 0,
        "asked_back_pages": 0,
    }
    h0 = {"host": H0, "granted_pages": 256, "entitled_pages": 256, "peak_pages": 256}
    h1 = {"host": H1, "granted_pages": 0, "entitled_pages": 0, "peak_pages": 0}
    assert message.body == Sample("scheduler", [row | h0, row | h1])
    assert s.step([], clock(1000)).messages == []


@pytest.mark.parametrize(
    "message",
    [
        ask(1, H0, device="device/nowhere"),
        device_says(1, 0, ExtentGranted("device/pool", H0, 3, 0, 256)),
        device_says(1, 0, ExtentReleased("device/pool", H0, 256)),
        Message(1, H0, 0, "scheduler", Traffic(0, 1, 1)),
    ],
)
def test_protocol_errors(message):
    with pytest.raises(ProtocolError):
        make().step([message], clock(9))


requests = st.lists(
    st.tuples(st.integers(0, 50), st.sampled_from([H0, H1]), st.integers(1, 600)), min_size=1, max_size=12
)


@settings(max_examples=40)
@given(requests, st.integers(1, 8))
def test_answers_do_not_depend_on_the_rounds(rows, rounds):
    """The same requests, in one step or spread over several rounds by arrival, get the same answers."""
    messages = [ask(t, h, seq, pages) for seq, (t, h, pages) in enumerate(rows)]
    at_once = make(capacity=1024, quota={H0: 768})
    expected = sent(at_once.step(sorted(messages, key=lambda m: (m.time_ns, m.sender, m.seq)), clock(100)))
    spread = make(capacity=1024, quota={H0: 768})
    answers = []
    for start in range(rounds):
        inbox = sorted(messages[start::rounds], key=lambda m: (m.time_ns, m.sender, m.seq))
        answers += sent(spread.step(inbox, clock(-1)))
        copy = make(capacity=1024, quota={H0: 768})
        copy.restore(plain.unpack(*plain.pack(spread.snapshot())))
        assert copy.snapshot() == spread.snapshot()
        spread = copy
    answers += sent(spread.step([], clock(100)))
    assert answers == expected
    assert spread.snapshot() == at_once.snapshot()
    spread.validate()
