"""Huge pages, pools, contiguous ranges and pins on one emulated Linux with private nodes."""

import errno
from dataclasses import replace

import numpy as np
import pytest
from kernel_box import D0, D1, HUGE, VPN, Box, P, Q, fill_node, hugetlb_mmap

from privmem.nodeagent.host import (
    contig,
    hugetlb,
    hugetlb_map,
    khugepaged,
    madvise,
    migrate_calls,
    move_calls,
    numa_syscalls,
    pins,
    syscalls,
    thp,
)
from privmem.nodeagent.host.audit import validate_memory
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.layout import PG_HELD, PTE_PFN_SHIFT
from privmem.scheduler import plain
from privmem.scheduler.abi import MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, MPOL_MF_STRICT, Feature, Mpol
from privmem.scheduler.topology import ZONE_NORMAL


@pytest.fixture
def box():
    return Box()


# -- transparent huge pages


@pytest.mark.parametrize(
    ("enabled", "advice", "huge"),
    [
        ("never", True, 0),
        ("madvise", None, 0),
        ("madvise", True, HUGE),
        ("always", None, HUGE),
        ("always", False, 0),
    ],
)
def test_who_gets_a_huge_page(box, enabled, advice, huge):
    box.memory.high_order.thp.enabled = enabled
    box.map(HUGE)
    if advice is not None:
        thp.madvise(box.memory, box.task, VPN, HUGE, huge=advice)
    assert box.touch(1) == 0
    assert thp.anon_huge_pages(box.memory, box.task) == huge
    assert box.count("pgalloc", "thp_fault_alloc") == ([HUGE, 1] if huge else [1, 0])
    box.round_trip()


def test_only_aligned_ranges_inside_the_vma(box):
    box.map(2 * HUGE, VPN + 1, huge=True)
    assert box.touch(1, VPN + 1) == 0
    assert thp.anon_huge_pages(box.memory, box.task) == 0
    assert box.touch(1, VPN + HUGE) == 0
    assert thp.anon_huge_pages(box.memory, box.task) == HUGE
    assert box.nids(2, VPN + HUGE - 1) == [None, D0]


def test_a_table_of_single_entries_stays_one(box):
    box.map(HUGE)
    assert box.touch(1) == 0
    thp.madvise(box.memory, box.task, VPN, HUGE, huge=True)
    assert box.touch(2) == 0
    assert box.count("thp_fault_alloc", "thp_fault_fallback") == [0, 0]


@pytest.mark.parametrize("nid", [D1, P])
def test_a_bound_huge_fault_stays_on_its_node_and_falls_back_there(box, nid):
    nr = box.memory.nodes[nid].managed_pages
    box.map(nr, huge=True)
    assert box.bind(nid, nr) == 0
    assert box.touch(nr - 200) == 0
    assert set(box.nids(nr - 200)) == {nid}
    huge, fallen = box.count("thp_fault_alloc", "thp_fault_fallback")
    assert huge == nr // HUGE - 1
    assert fallen > 0


def test_without_compaction_a_huge_page_comes_from_the_own_node_only(box):
    """Madvised memory goes on to other nodes, `always` does not (`vma_alloc_folio`)."""
    box.memory.high_order.thp.enabled = "always"
    fill = box.memory.nodes[D0].free_pages - HUGE
    box.map(fill, 1 << 30)
    thp.madvise(box.memory, box.task, 1 << 30, fill, huge=False)
    assert box.touch(fill, 1 << 30) == 0
    box.map(HUGE, VPN)
    box.map(HUGE, VPN + HUGE)
    thp.madvise(box.memory, box.task, VPN + HUGE, HUGE, huge=True)
    assert box.touch(1) == 0
    assert (box.nids(2), thp.anon_huge_pages(box.memory, box.task)) == ([D0, None], 0)
    assert box.touch(1, VPN + HUGE) == 0
    assert (set(box.nids(HUGE, VPN + HUGE)), thp.anon_huge_pages(box.memory, box.task)) == ({D1}, HUGE)


def test_parts_split_what_they_cut(box):
    box.map(4 * HUGE, huge=True)
    assert box.touch(4 * HUGE) == 0
    mapped = lambda: thp.anon_huge_pages(box.memory, box.task) // HUGE  # noqa: E731
    assert mapped() == 4
    assert syscalls.munmap(box.memory, box.task, VPN, HUGE) == 0  # a whole one
    assert (mapped(), *box.count("thp_split_pmd")) == (3, 0)
    assert madvise.madvise_dontneed(box.memory, box.task, VPN + HUGE + 3, 1) == 0
    assert (mapped(), *box.count("thp_split_pmd")) == (2, 1)
    assert box.bind(D1, 5, VPN + 2 * HUGE) == 0
    assert (mapped(), *box.count("thp_split_pmd", "thp_split_page")) == (1, 2, 0)
    validate_memory(box.memory)


def test_a_huge_page_moves_as_one_and_falls_apart_where_no_block_is(box):
    box.map(2 * HUGE, huge=True)
    assert box.touch(2 * HUGE) == 0
    events = ("thp_migration_success", "thp_migration_split", "thp_split_page", "pgmigrate_success")
    move = lambda vpn, nid: move_calls.move_pages(box.memory, box.task, [vpn], [nid], MPOL_MF_MOVE)  # noqa: E731
    assert move(VPN + 7, D1) == (0, [D1])
    validate_memory(box.memory)
    assert box.nids(2 * HUGE) == [D1] * HUGE + [D0] * HUGE
    assert thp.anon_huge_pages(box.memory, box.task) == 2 * HUGE
    assert box.count(*events) == [1, 0, 0, HUGE]
    assert migrate_calls.migrate_pages(box.memory, box.task, 1 << D0 | 1 << D1, 1 << P) == 0
    validate_memory(box.memory)
    assert box.nids(2 * HUGE) == [P] * 2 * HUGE
    assert box.count(*events) == [3, 0, 0, 3 * HUGE]
    fill_node(box, P, HUGE)  # leaves one block, and no room above the watermark
    box.map(HUGE, VPN + 4 * HUGE, huge=True)
    assert box.touch(1, VPN + 4 * HUGE) == 0
    assert move(VPN + 4 * HUGE, P)[0] != 0
    validate_memory(box.memory)
    assert thp.anon_huge_pages(box.memory, box.task) == 2 * HUGE
    assert box.count(*events)[:3] == [3, 1, 1]


def test_a_bind_moves_huge_pages_as_one(box):
    box.map(HUGE, huge=True)
    assert box.touch(1) == 0
    child = syscalls.fork(box.memory, box.task, 77)
    assert box.bind(P, HUGE, flags=MPOL_MF_MOVE_ALL) == 0
    validate_memory(box.memory)
    assert box.nids(HUGE) == [P] * HUGE
    assert thp.anon_huge_pages(box.memory, box.task) == thp.anon_huge_pages(box.memory, child) == HUGE


def test_fork_shares_huge_pages_and_a_write_splits_the_writer_only(box):
    box.map(HUGE, huge=True)
    assert box.touch(HUGE) == 0
    child = syscalls.fork(box.memory, box.task, 77)
    validate_memory(box.memory)
    assert thp.anon_huge_pages(box.memory, child) == HUGE
    assert box.touch(1, VPN + 9, task=child) == 0
    assert thp.anon_huge_pages(box.memory, child) == 0
    assert thp.anon_huge_pages(box.memory, box.task) == HUGE
    assert box.pfn(VPN + 9, child) != box.pfn(VPN + 9)
    assert box.pfn(VPN + 8, child) == box.pfn(VPN + 8)
    syscalls.exit_task(box.memory, child)
    faults = box.memory.vmstat.count["pgfault"]
    assert box.touch(HUGE) == 0  # one fault makes all of it writable again
    assert box.memory.vmstat.count["pgfault"] == faults + 1
    assert thp.anon_huge_pages(box.memory, box.task) == HUGE
    box.round_trip()


# -- contiguous ranges


def test_a_free_range_of_a_private_node(box):
    node = box.memory.nodes[P]
    first = node.start_pfn + HUGE
    assert contig.alloc_contig_range(box.memory, first, HUGE, "dax", private=True) == 0
    validate_memory(box.memory)
    assert node.free_pages == 3 * HUGE
    assert not node.buddy.count_free(first, HUGE)
    assert contig.alloc_contig_range(box.memory, first + 1, 2, "dax", private=True) == -errno.EBUSY
    box.round_trip()
    contig.free_contig_range(box.memory, first)
    validate_memory(box.memory)
    assert node.free_pages == 4 * HUGE


def test_residents_are_displaced_to_general_nodes(box):
    at = fill_node(box, P, 4 * HUGE - 200)
    first = box.memory.nodes[P].start_pfn
    assert contig.alloc_contig_range(box.memory, first, 2 * HUGE, "dax", private=True) == 0
    validate_memory(box.memory)
    nids = box.nids(4 * HUGE - 200, at)
    assert {D0: nids.count(D0), P: nids.count(P)} == {
        D0: len(nids) - nids.count(P),
        P: len(nids) - nids.count(D0),
    }
    assert nids.count(D0) >= HUGE
    assert nids.count(Q) == 0
    flags = box.memory.frames.flags[first : first + 2 * HUGE]
    assert np.all(flags & np.uint16(PG_HELD))


def test_residents_without_the_right_to_displace():
    box = Box(wish=Feature.USER_NUMA | Feature.USER_WRITE)
    fill_node(box, P, HUGE)
    first = box.memory.nodes[P].start_pfn
    before = plain.digest(box.memory.snapshot())
    answers = [
        contig.alloc_contig_range(box.memory, first + n, HUGE, "dax", private=True) for n in (0, 3 * HUGE)
    ]
    assert sorted(answers) == [-errno.EPERM, 0] or answers == [-errno.EPERM, -errno.EPERM]
    contig.free_contig_range(box.memory, first + 3 * HUGE)
    after = box.memory.vmstat
    assert after.count["pgmigrate_success"] == 0
    assert before


def test_a_failed_range_leaves_all_as_it_was(box):
    fill_node(box, P, HUGE)
    assert pins.pin_user_pages(box.memory, box.task, 1 << 30, 3, longterm=False) == 3
    node = box.memory.nodes[P]
    pinned = sorted(box.memory.high_order.pins)
    lists = (node.free_pages, box.memory.lru_sizes(P))
    start = pinned[0] // HUGE * HUGE
    assert contig.alloc_contig_range(box.memory, start, HUGE, "dax", private=True) == -errno.EBUSY
    validate_memory(box.memory)
    assert (node.free_pages, box.memory.lru_sizes(P)) == lists


@pytest.mark.parametrize(("private", "on_p"), [(False, False), (True, True)])
def test_a_search_reaches_a_private_node_only_when_it_says_so(box, private, on_p):
    first = contig.alloc_contig_pages(box.memory, HUGE, P, 1 << P, "dax", private=private)
    validate_memory(box.memory)
    assert (first >= 0 and box.memory.frames.nid_of(first) == P) == on_p


def test_a_search_skips_what_is_held(box):
    memory = box.memory
    taken = [contig.alloc_contig_pages(memory, 4 * HUGE, D0, None, "gpu") for _ in range(9)]
    validate_memory(memory)
    by_node = [memory.frames.nid_of(first) for first in taken if first >= 0]
    assert by_node.count(D0) == 3  # the kernel's own pages are in the first range
    assert by_node.count(D1) == 3
    assert taken[6:] == [-errno.ENOMEM] * 3


def test_cma_lends_its_range_to_movable_pages(box):
    memory = box.memory
    assert contig.reserve_cma(memory, "dma", D0, 4 * HUGE, dma=True) == 0
    assert contig.reserve_cma(memory, "hugetlb", D1, HUGE, dma=False) == 0
    assert [contig.has_dma_cma(memory, nid) for nid in (D0, D1)] == [True, False]
    area = memory.high_order.cma[0]
    nr = memory.nodes[D0].free_pages - 2 * HUGE
    fill_node(box, D0, nr)
    used = nr - (12 * HUGE - memory.nodes[D0].buddy.count_free(memory.nodes[D0].start_pfn, 12 * HUGE))
    assert used > 0  # some of it in the area
    first = contig.cma_alloc(memory, area, HUGE, "camera")
    validate_memory(memory)
    assert area.first <= first < area.first + area.nr_pages
    assert box.count("cma_alloc_success", "cma_alloc_fail") == [1, 0]
    box.round_trip()


# -- hugetlb


def test_the_global_pool_takes_turns_and_reaches_an_opted_in_node(box):
    memory = box.memory
    assert hugetlb.write_nr_hugepages(memory, 7) == 0
    validate_memory(memory)
    assert [hugetlb.nr_hugepages(memory, nid) for nid in range(4)] == [3, 2, 2, 0]
    assert hugetlb.write_nr_hugepages(memory, 1) == 0
    validate_memory(memory)
    assert (hugetlb.nr_hugepages(memory), hugetlb.free_hugepages(memory)) == (1, 1)
    box.round_trip()


@pytest.mark.parametrize(("nid", "got"), [(D1, 3), (P, 3), (Q, 0)])
def test_a_nodes_own_pool(box, nid, got):
    assert hugetlb.write_nr_hugepages(box.memory, 3, nid=nid) == 0
    validate_memory(box.memory)
    assert [hugetlb.nr_hugepages(box.memory, n) for n in range(4)] == [got * (n == nid) for n in range(4)]


@pytest.mark.parametrize("private", [True, False])
def test_mappings_are_served_from_the_pool_and_give_back(box, private):
    memory = box.memory
    hugetlb.write_nr_hugepages(memory, 4, nid=D0)
    pool = hugetlb.pool_of(memory)
    assert hugetlb_mmap(box, 5 * HUGE, private) == -errno.ENOMEM
    assert hugetlb_mmap(box, 3 * HUGE, private) == 0
    assert (pool.reserved, pool.total_free) == (3, 4)
    assert hugetlb_mmap(box, 2 * HUGE, private, VPN + 8 * HUGE) == -errno.ENOMEM
    assert box.touch(1) == 0
    assert (pool.reserved, pool.total_free) == (2, 3)
    assert box.nids(HUGE + 1) == [D0] * HUGE + [None]
    assert syscalls.munmap(memory, box.task, VPN, 7) == -errno.EINVAL
    box.round_trip()
    assert syscalls.munmap(memory, box.task, VPN, 3 * HUGE) == 0
    validate_memory(memory)
    pool = hugetlb.pool_of(memory)
    assert (pool.reserved, pool.total_free) == (0, 4)
    assert not memory.page_cache.objects


def test_a_fork_copies_huge_pages_on_write(box):
    memory = box.memory
    hugetlb.write_nr_hugepages(memory, 2, nid=D0)
    assert hugetlb_mmap(box, HUGE) == 0
    assert box.touch(HUGE) == 0
    child = syscalls.fork(memory, box.task, 77)
    validate_memory(memory)
    assert box.touch(1, task=child) == 0
    assert box.pfn(VPN, child) != box.pfn(VPN)
    assert hugetlb.free_hugepages(memory) == 0
    assert box.touch(1) == 0
    syscalls.exit_task(memory, child)
    syscalls.exit_task(memory, box.task)
    validate_memory(memory)
    assert (hugetlb.free_hugepages(memory), hugetlb.pool_of(memory).reserved) == (2, 0)


def test_a_bound_fault_without_a_page_there_is_a_bus_error(box):
    hugetlb.write_nr_hugepages(box.memory, 2, nid=D0)
    assert hugetlb_mmap(box, HUGE) == 0
    assert box.bind(D1, HUGE) == 0
    assert box.touch(1) == hugetlb_map.FAULT_SIGBUS


def test_a_free_surplus_page_that_is_dissolved_is_no_surplus_any_more(box):
    memory = box.memory
    hugetlb.write_nr_hugepages(memory, 1, nid=D0)
    pool = hugetlb.pool_of(memory)
    [(nid, [head])] = [(nid, heads) for nid, heads in pool.free.items() if heads]
    pool.add(pool.surplus, nid, 1)
    assert hugetlb.dissolve_free_page(memory, pool, head)
    assert (pool.total, pool.total_surplus) == (0, 0)


def test_shrinking_a_pool_in_use_leaves_surplus(box):
    memory = box.memory
    hugetlb.write_nr_hugepages(memory, 2, nid=D0)
    hugetlb_mmap(box, 2 * HUGE)
    assert box.touch(2 * HUGE) == 0
    hugetlb.write_nr_hugepages(memory, 0)
    pool = hugetlb.pool_of(memory)
    assert (pool.total, pool.total_surplus, hugetlb.nr_hugepages(memory)) == (2, 2, 0)
    syscalls.exit_task(memory, box.task)
    validate_memory(memory)
    assert (pool.total, pool.total_surplus) == (0, 0)
    assert memory.nodes[D0].free_pages == box.free_at_boot[D0]


# -- pins


def test_a_pin_holds_a_page_in_place(box):
    box.map(4)
    assert pins.pin_user_pages(box.memory, box.task, VPN, 2) == 2
    validate_memory(box.memory)
    error, status = move_calls.move_pages(box.memory, box.task, [VPN, VPN + 1], [D1, D1], MPOL_MF_MOVE)
    assert (error, status) == (0, [-errno.EBUSY, -errno.EBUSY])
    assert box.bind(D1, 2, flags=MPOL_MF_MOVE | MPOL_MF_STRICT) == -errno.EIO
    assert box.kernel.offline(D0) == -errno.EBUSY
    box.round_trip()
    assert pins.unpin_user_pages(box.memory, box.task, VPN, 2) == 2
    validate_memory(box.memory)
    assert box.nids(2) == [D0, D0]


def test_a_pinned_page_outlives_its_mapping(box):
    box.map(2)
    assert pins.pin_user_pages(box.memory, box.task, VPN, 2) == 2
    pinned = [box.pfn(VPN), box.pfn(VPN + 1)]
    free = box.memory.nodes[D0].free_pages
    assert syscalls.munmap(box.memory, box.task, VPN, 2) == 0
    validate_memory(box.memory)
    assert box.memory.nodes[D0].free_pages == free
    assert sorted(box.memory.high_order.pins) == sorted(pinned)
    assert pins.unpin_user_pages(box.memory, box.task) == 2
    validate_memory(box.memory)
    assert box.memory.nodes[D0].free_pages == free + 2


def test_a_long_pin_on_a_private_node_is_refused_without_the_right(box):
    at = fill_node(box, P, 8)
    assert pins.pin_user_pages(box.memory, box.task, at, 8) == -errno.ENOMEM
    assert not box.memory.high_order.pins
    assert box.nids(8, at) == [P] * 8
    assert pins.pin_user_pages(box.memory, box.task, at, 8, longterm=False) == 8
    assert box.nids(8, at) == [P] * 8


def test_a_long_pin_leaves_the_movable_zone_of_a_general_node():
    kernel = Kernel(
        [NodeBoot(0, 256, cpus=(0,), zone=ZONE_NORMAL), NodeBoot(1, 256, zone="movable")],
        ((10, 20), (20, 10)),
    )
    task = kernel.spawn().task
    assert syscalls.mmap_anon(kernel.memory, task, VPN, 4) == 0
    assert numa_syscalls.mbind(kernel.memory, task, VPN, 4, Mpol.BIND, 2, 0) == 0
    assert syscalls.touch(kernel.memory, task, VPN, 4, True) == 0
    assert pins.pin_user_pages(kernel.memory, task, VPN, 2) == 2
    validate_memory(kernel.memory)
    vma = task.mm.find(VPN)
    entries = kernel.memory.page_table.pte[vma.slot : vma.slot + 4] >> PTE_PFN_SHIFT
    assert [kernel.memory.frames.nid_of(int(pfn)) for pfn in entries] == [0, 0, 1, 1]


def test_pins_unshare_what_a_fork_shares(box):
    box.map(1)
    assert box.touch(1) == 0
    child = syscalls.fork(box.memory, box.task, 77)
    assert pins.pin_user_pages(box.memory, box.task, VPN, 1, write=False) == 1
    assert box.pfn(VPN) != box.pfn(VPN, child)
    validate_memory(box.memory)


def test_a_pin_for_reading_replaces_the_zero_page(box):
    box.memory.knobs = replace(box.memory.knobs, zero_page=True)
    box.map(HUGE, huge=True)
    thp.madvise(box.memory, box.task, VPN, HUGE, huge=False)
    assert box.touch(2, write=False) == 0
    assert box.count("pgalloc") == [0]
    assert pins.pin_user_pages(box.memory, box.task, VPN, 1, write=False) == 1
    validate_memory(box.memory)
    assert box.count("pgalloc") == [1]
    thp.madvise(box.memory, box.task, VPN, HUGE, huge=True)
    assert pins.unpin_user_pages(box.memory, box.task) == 1
    assert khugepaged.madvise_collapse(box.memory, box.task, VPN, HUGE) == 0
    validate_memory(box.memory)
    assert thp.anon_huge_pages(box.memory, box.task) == HUGE
