"""Batches of pages on their way to the LRU lists."""

import numpy as np

from privmem.nodeagent.host.lru_batches import LruBatches
from privmem.scheduler.versions import LINUX_6_1, KernelVersion


def held(batches, pfns, cpu):
    return [pfn for pfn in pfns if batches.held_elsewhere(pfn, cpu)]


def test_the_fifteenth_page_empties_the_batch():
    batches = LruBatches()
    for pfn in range(LINUX_6_1.folio_batch_pages - 1):
        batches.add(0, pfn)
    assert held(batches, range(20), cpu=1) == list(range(14))
    batches.add(0, 14)
    assert held(batches, range(20), cpu=1) == []


def test_asking_drains_the_own_batch():
    batches = LruBatches()
    batches.add(0, 7)
    batches.add(0, 8)
    assert not batches.held_elsewhere(7, cpu=0)
    assert batches.snapshot() == [[], [], [], []]


def test_asking_for_a_page_that_nobody_holds_drains_nothing():
    batches = LruBatches()
    batches.add(0, 7)
    assert not batches.held_elsewhere(9, cpu=0)
    assert batches.held_elsewhere(7, cpu=1)


def test_a_frame_used_anew_belongs_to_the_later_cpu():
    batches = LruBatches()
    batches.add(0, 7)
    batches.add(1, 7)
    batches.drain(0)
    assert batches.held_elsewhere(7, cpu=0)
    batches.drain(1)
    assert not batches.held_elsewhere(7, cpu=0)


def test_draining_all_and_snapshots():
    batches = LruBatches()
    batches.add(1, 3)
    batches.add(0, 5)
    copy = LruBatches()
    copy.restore(batches.snapshot())
    assert copy.snapshot() == batches.snapshot() == [[[0, [5]], [1, [3]]], [[3, 1], [5, 0]], [], []]
    batches.drain_all()
    assert batches.snapshot() == [[], [], [], []]


def test_the_activate_batch_holds_its_pages_too():
    batches = LruBatches()
    for pfn in range(LINUX_6_1.folio_batch_pages - 1):
        batches.activate(0, pfn)
    batches.activate(1, 99)
    assert [pfn for pfn in (*range(16), 99) if batches.holds(pfn)] == [*range(14), 99]
    for pfn in range(
        20, 20 + LINUX_6_1.folio_batch_pages
    ):  # a full `lru_add` batch leaves the other one alone
        batches.add(0, pfn)
    assert batches.is_activating(3)
    batches.forget(np.array([3]))
    assert not batches.is_activating(3)
    copy = LruBatches()
    copy.restore(batches.snapshot())
    assert copy.snapshot() == batches.snapshot()
    batches.activate(0, 14)  # the fifteenth: a freed page still counts
    assert [pfn for pfn in range(16) if batches.holds(pfn)] == []
    batches.drain(1)
    assert not batches.holds(99)


def test_the_lazyfree_batch_is_not_drained_by_a_write():
    """Its pages are on a list (`do_wp_page` drains only for those that are not)."""
    batches = LruBatches()
    for pfn in range(LINUX_6_1.folio_batch_pages + 2):
        batches.lazyfree(0, pfn)
    assert [pfn for pfn in range(20) if batches.held_elsewhere(pfn, cpu=0)] == [15, 16]
    batches.forget(np.array([15]))
    copy = LruBatches()
    copy.restore(batches.snapshot())
    assert (copy.snapshot(), copy.held_elsewhere(15, 0)) == (batches.snapshot(), False)
    batches.drain(0)
    assert not batches.held_elsewhere(16, cpu=0)


def test_a_batch_of_later_kernels_is_larger():
    older, newer = LruBatches(), LruBatches(KernelVersion(6, 12).folio_batch_pages)
    for pfn in range(30):
        older.add(0, pfn)
        newer.add(0, pfn)
    assert [older.holds(29), newer.holds(0), newer.holds(29)] == [False, True, True]
    newer.add(0, 30)
    assert [newer.holds(0), newer.holds(30)] == [False, False]
