"""A compressed device that reports its capacity, and what a host's service does with that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from privmem.nodeagent.content import LITERAL, PHASE_SHIFT, ContentTable
from privmem.nodeagent.device.backing import PageStore
from privmem.nodeagent.device.compression import CompressionEngine
from privmem.nodeagent.device.device import Device
from privmem.nodeagent.device.timing import class_timing
from privmem.scheduler import plain
from privmem.scheduler.errors import ProtocolError
from privmem.scheduler.messages import (
    Body,
    CapacityReport,
    FreePages,
    Message,
    PagesRefused,
    PagesStored,
    StorePages,
)
from privmem.scheduler.participant import Clock

EPOCH_NS = 1_000_000
#: 100 random bytes and a line that repeats: three granules. From a time on, nothing compresses: 64 granules.
GENERATOR = {
    "kind": "generator",
    "seed": 1,
    "zero_permille": 0,
    "random_bytes": 100,
    "changed_bytes": 0,
    "phases": [[5, 4096]],
}
LZ4 = {"codec": "lz4", "level": None, "block": 4096, "granule": 64}
PAGE, RAW = 4096, 1 << PHASE_SHIFT


def device() -> Device:
    """64 perceived pages in front of 16; low when less than 4 are free, until more than 8 are."""
    return Device(
        {
            "name": "device/d",
            "device": "d",
            "class": "compressed-ram",
            "capacity_pages": 64,
            "physical_bytes": 16 * PAGE,
            "extent_pages": 64,
            "pooled": False,
            "hosts": ["host/a"],
            "boot_extents": [["host/a", 2, 0, 64]],
            "timing": class_timing("compressed-ram", "lz4"),
            "compression": LZ4,
            "stores": True,
            "content": [GENERATOR],
            "scheduler": "scheduler",
            "sample_every": 1000,
            "thresholds": [4 * PAGE, 8 * PAGE],
        },
        {},
    )


def pages(dpa: list[int], version: int) -> StorePages:
    nr = len(dpa)
    return StorePages(
        np.array(dpa, np.int32),
        np.ones(nr, np.uint16),
        np.array(dpa, np.uint32),
        np.full(nr, version, np.uint16),
        np.zeros((0, PAGE), np.uint8),
    )


class Bench:
    """A device, and the epochs that it goes through."""

    def __init__(self) -> None:
        self.device = device()
        self.epoch = 0

    def close(self, *bodies: Body) -> list[Any]:
        """Messages to the host for what it sent in this epoch, which is over then."""
        start = self.epoch * EPOCH_NS
        clock = Clock(self.epoch, start, start + EPOCH_NS, start + EPOCH_NS)
        inbox = [Message(start, "host/a", n, "device/d", body) for n, body in enumerate(bodies)]
        packets = self.device.step(inbox, clock).messages
        self.epoch += 1
        wanted = (CapacityReport, PagesRefused, PagesStored)
        return [message.body for message in packets if isinstance(message.body, wanted)]


def granules(store: PageStore) -> int:
    return store.used_bytes // 64


def test_a_report_tells_what_fits_at_the_present_ratio() -> None:
    bench = Bench()
    (report,) = bench.close(pages(list(range(10)), 0))
    assert granules(bench.device.store) == 10 * 3
    # 16 pages are 1024 granules, a quarter of which is kept back: the others hold 4096 / 192 times what they are.
    assert report == CapacityReport("d", 0, 10, (1024 - 30) // 64, 64, 21333 * 3 // 4, 30 * 64, False)


def test_nothing_is_told_while_nothing_changes() -> None:
    bench = Bench()
    assert len(bench.close(pages([1, 2], 0))) == 1
    assert bench.close() == []
    (report,) = bench.close(FreePages(np.array([1], np.int32)))
    assert (report.count, report.used_bytes) == (0, 3 * 64)


def test_an_empty_device_reaches_what_it_shows() -> None:
    bench = Bench()
    (report,) = bench.close()
    assert (report.capacity_pages, report.room_pages, report.low) == (64, 16, False)
    assert report.ratio >= 4000


def test_low_from_one_threshold_until_the_other() -> None:
    bench = Bench()
    (report,) = bench.close(pages(list(range(12)), RAW))
    assert (report.low, report.room_pages, report.capacity_pages, report.ratio) == (False, 4, 12, 750)
    (report,) = bench.close(pages([12], RAW))
    assert report.low
    (report,) = bench.close(FreePages(np.arange(8, 13, dtype=np.int32)))  # eight are free: not more
    assert report.low
    (report,) = bench.close(FreePages(np.array([7], np.int32)))
    assert not report.low


def test_a_page_that_grows_where_it_is_may_be_refused() -> None:
    bench = Bench()
    bench.close(pages(list(range(32)), 0))
    refused, report = bench.close(pages(list(range(32)), RAW))
    assert refused.dpa.tolist() == list(range(16, 32))
    assert (report.count, report.room_pages) == (0, 0)  # they were there before
    control = bench.device.control
    assert (control.refused_accepted_pages, control.refused_pages) == (16, 0)
    assert bench.device.store.stored_pages == 16
    bench.device.validate()


def test_a_new_page_without_room_is_refused_too() -> None:
    bench = Bench()
    refused, report = bench.close(pages(list(range(20)), RAW))
    assert (refused.dpa.tolist(), report.count) == ([16, 17, 18, 19], 20)
    assert (bench.device.control.refused_accepted_pages, bench.device.control.refused_pages) == (0, 4)


def test_a_refused_page_may_be_freed_once_and_no_other_one() -> None:
    bench = Bench()
    bench.close(pages(list(range(20)), RAW))
    bench.close(FreePages(np.array([3, 17], np.int32)))
    assert (bench.device.pages_freed, bench.device.store.stored_pages) == (1, 15)
    with pytest.raises(ProtocolError):
        bench.close(FreePages(np.array([17], np.int32)))


def test_a_snapshot_goes_on_alike() -> None:
    bench, other = Bench(), Bench()
    bench.close(pages(list(range(20)), RAW))
    other.device.restore(plain.unpack(*plain.pack(bench.device.snapshot())))
    other.epoch = bench.epoch
    assert plain.digest(other.device.snapshot()) == plain.digest(bench.device.snapshot())
    more = (FreePages(np.array([0, 18], np.int32)), pages([40], 0))
    assert other.close(*more) == bench.close(*more) != []
    assert plain.digest(other.device.snapshot()) == plain.digest(bench.device.snapshot())


def test_literal_pages_are_stored_as_far_as_they_fit() -> None:
    engine = CompressionEngine(LZ4)
    store = PageStore(64, 4 * PAGE, ContentTable([], {}), engine)
    rng = np.random.default_rng(1)
    body = rng.integers(0, 256, (6, PAGE)).astype(np.uint8)
    body[1] = 7  # takes nothing
    columns = (np.full(6, LITERAL, np.uint16), np.zeros(6, np.uint32), np.zeros(6, np.uint16))
    refused = store.store_what_fits(np.arange(6), *columns, body)
    assert refused.tolist() == [False] * 5 + [True]
    assert store.load(np.arange(5))[3].tolist() == body[:5].tolist()
    store.validate()
