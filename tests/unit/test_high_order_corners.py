"""Borders, turns, promises and content of huge pages, pools, ranges and pins."""

import errno

import numpy as np
import pytest
from kernel_box import D0, D1, HUGE, VPN, Box, P, fill_node, hugetlb_mmap

from privmem.nodeagent.host import (
    compaction,
    contig,
    filemap,
    hugetlb,
    hugetlb_map,
    khugepaged,
    numa_syscalls,
    pins,
    syscalls,
    thp,
)
from privmem.nodeagent.host.audit import validate_memory
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.layout import PG_DIRTY, PG_UNINVITED, PTE_DIRTY
from privmem.scheduler.abi import Feature, Mpol, Reason


@pytest.fixture
def box():
    return Box()


# -- huge pages


def test_no_huge_page_beyond_the_end_of_the_vma(box):
    box.map(HUGE + 100, huge=True)
    assert box.touch(1, VPN + HUGE) == 0
    assert thp.anon_huge_pages(box.memory, box.task) == 0
    assert box.touch(1) == 0
    assert thp.anon_huge_pages(box.memory, box.task) == HUGE


def test_interleaving_turns_by_huge_pages(box):
    box.map(4 * HUGE, VPN + 100, huge=True)
    numa_syscalls.set_mempolicy(box.task, Mpol.INTERLEAVE, 0b11)
    assert box.touch(4 * HUGE - 100, VPN + 100) == 0
    found = box.nids(4 * HUGE - 100, VPN + 100)[HUGE - 100 :: HUGE]
    # The kernel adds the VMA's number of huge pages and the offset in it, both rounded down.
    assert found == [D0, D1, D0]


def test_a_preferred_node_is_tried_alone(box):
    box.map(HUGE, huge=True)
    box.memory.high_order.thp.defrag = "never"
    numa_syscalls.set_mempolicy(box.task, Mpol.PREFERRED, 1 << D1)
    assert box.touch(1) == 0
    assert box.nids(HUGE) == [D1] * HUGE
    assert box.memory.numastat[D1, 0] > 0


def test_one_allocation_is_one_hit(box):
    before = box.memory.numastat.copy()
    box.map(HUGE, huge=True)
    assert box.touch(1) == 0
    assert (box.memory.numastat - before)[D0].tolist() == [1, 0, 0, 0, 1, 0]


def test_a_block_leaves_the_watermark(box):
    node = box.memory.nodes[P]
    box.map(4 * HUGE, huge=True)
    assert box.bind(P, 4 * HUGE) == 0
    for n in range(4):
        assert box.touch(1, VPN + n * HUGE) == 0
    assert box.count("thp_fault_alloc", "thp_fault_fallback") == [3, 1]
    assert node.free_pages > node.wmark.min_pages


def test_a_huge_fault_empties_the_cpus_batch(box):
    box.map(4 * HUGE, huge=True)
    thp.madvise(box.memory, box.task, VPN, HUGE, huge=False)
    assert box.touch(2) == 0
    held = box.pfn(VPN)
    assert box.memory.lru_batches.holds(held)
    assert box.touch(1, VPN + HUGE) == 0
    assert not box.memory.lru_batches.holds(held)


def test_a_write_to_a_shared_huge_page_splits_it(box):
    box.map(HUGE, huge=True)
    assert box.touch(1) == 0
    child = syscalls.fork(box.memory, box.task, 77)
    old = box.pfn(VPN + 1)
    assert box.touch(1, VPN + 1) == 0
    assert box.pfn(VPN + 1) != old
    assert thp.anon_huge_pages(box.memory, box.task) == 0
    assert thp.anon_huge_pages(box.memory, child) == HUGE


def test_a_fork_remembers_lost_pages(box):
    box.map(4)
    assert box.touch(4) == 0
    box.kernel.memory_failure(box.pfn(VPN))
    child = syscalls.fork(box.memory, box.task, 77)
    assert box.touch(1, task=child) == hugetlb_map.FAULT_SIGBUS
    syscalls.exit_task(box.memory, box.task)
    syscalls.exit_task(box.memory, child)
    assert not box.memory.high_order.poison_slots


# -- collapsing


def test_what_pages_hold_is_kept(box):
    box.map(HUGE)
    assert box.touch(300) == 0
    frames = box.memory.frames
    for n in range(300):
        frames.version[box.pfn(VPN + n)] = n
    pte = box.memory.page_table.pte
    pte[box.task.mm.find(VPN).slot_of(VPN + 5)] &= np.uint32(0xFFFFFFFF ^ PTE_DIRTY)
    frames.flags[box.pfn(VPN + 5)] &= np.uint16(0xFFFF ^ PG_DIRTY)
    assert khugepaged.madvise_collapse(box.memory, box.task, VPN, HUGE) == 0
    versions = [int(frames.version[box.pfn(VPN + n)]) for n in range(HUGE)]
    assert versions == [*range(300), *([0] * 212)]
    dirty = [bool(frames.flags[box.pfn(VPN + n)] & PG_DIRTY) for n in range(HUGE)]
    assert dirty == [n < 300 and n != 5 for n in range(HUGE)]


def test_the_daemon_wants_few_shared_pages_and_one_that_was_used(box):
    box.map(HUGE)
    assert box.touch(HUGE) == 0
    thp.madvise(box.memory, box.task, VPN, HUGE, huge=True)
    child = syscalls.fork(box.memory, box.task, 77)
    assert box.touch(200) == 0  # 312 are still shared
    assert box.kernel.khugepaged() == 0
    assert box.touch(100, VPN + 200) == 0
    vma = box.task.mm.find(VPN)
    box.memory.page_table.pte[vma.slot : vma.slot + HUGE] &= np.uint32(0xFFFFFFFF ^ 4)  # nothing accessed
    assert khugepaged.khugepaged(box.memory, [box.task]) == 0
    assert box.touch(1, VPN + 3) == 0
    assert khugepaged.khugepaged(box.memory, [box.task]) == 1
    validate_memory(box.memory)
    assert box.pfn(VPN + 400, child) != box.pfn(VPN + 400)


# -- hugetlb


def test_copies_of_pool_pages_hold_the_same(box):
    hugetlb.write_nr_hugepages(box.memory, 2, nid=D0)
    assert hugetlb_mmap(box, HUGE) == 0
    assert box.touch(1) == 0
    box.memory.frames.version[box.pfn(VPN) : box.pfn(VPN) + HUGE] = 9
    child = syscalls.fork(box.memory, box.task, 77)
    assert box.touch(1, task=child) == 0
    assert int(box.memory.frames.version[box.pfn(VPN + 100, child)]) == 9


def test_promises_hold_against_others(box):
    memory = box.memory
    hugetlb.write_nr_hugepages(memory, 2, nid=D0)
    assert hugetlb_mmap(box, 2 * HUGE) == 0
    other = box.kernel.spawn().task
    loose = hugetlb_map.create(memory, other, HUGE, private=True, noreserve=True)
    assert syscalls.mmap_object(memory, other, VPN, HUGE, loose, private=True) == 0
    assert box.touch(1, task=other) == hugetlb_map.FAULT_SIGBUS
    child = syscalls.fork(memory, box.task, 77)
    assert box.touch(1, task=child) == hugetlb_map.FAULT_SIGBUS  # the promise was to the parent
    assert box.touch(2 * HUGE) == 0
    assert hugetlb.dissolve_free_pages(memory, 0, 1 << 30) == 0


def test_a_promise_keeps_a_pool_page_from_hotplug(box):
    memory = box.memory
    hugetlb.write_nr_hugepages(memory, 1, nid=P)
    box.task.policy = None
    assert hugetlb_mmap(box, HUGE) == 0
    assert box.kernel.offline(P) == -errno.EBUSY
    assert syscalls.munmap(memory, box.task, VPN, HUGE) == 0
    assert box.kernel.offline(P) == 0


def test_only_pages_of_a_binds_nodes_are_promised(box):
    hugetlb.write_nr_hugepages(box.memory, 2, nid=D0)
    numa_syscalls.set_mempolicy(box.task, Mpol.BIND, 1 << D1)
    assert hugetlb_mmap(box, HUGE) == -errno.ENOMEM
    hugetlb.write_nr_hugepages(box.memory, 1, nid=D1)
    assert hugetlb_mmap(box, HUGE) == 0
    assert hugetlb_mmap(box, 2 * HUGE, at=VPN + 8 * HUGE) == -errno.ENOMEM
    assert hugetlb.pool_of(box.memory).reserved == 1


def test_a_read_of_a_private_mapping_is_not_writable(box):
    hugetlb.write_nr_hugepages(box.memory, 1, nid=D0)
    assert hugetlb_mmap(box, HUGE) == 0
    assert box.touch(1, write=False) == 0
    faults = box.count("pgfault")[0]
    assert box.touch(1) == 0
    assert box.count("pgfault") == [faults + 1]


def test_surplus_becomes_wanted_again(box):
    memory = box.memory
    hugetlb.write_nr_hugepages(memory, 2, nid=D0)
    hugetlb_mmap(box, 2 * HUGE)
    assert box.touch(2 * HUGE) == 0
    hugetlb.write_nr_hugepages(memory, 0)
    hugetlb.write_nr_hugepages(memory, 3)
    pool = hugetlb.pool_of(memory)
    assert (pool.total, pool.total_surplus, pool.total_free) == (3, 0, 1)
    validate_memory(memory)


def test_a_nodes_file_counts_that_node_only(box):
    hugetlb.write_nr_hugepages(box.memory, 2, nid=D0)
    hugetlb.write_nr_hugepages(box.memory, 1, nid=D1)
    assert [hugetlb.nr_hugepages(box.memory, nid) for nid in (D0, D1)] == [2, 1]
    hugetlb.write_nr_hugepages(box.memory, 1, nid=D0)
    assert [hugetlb.nr_hugepages(box.memory, nid) for nid in (D0, D1)] == [1, 1]


@pytest.mark.parametrize("cma", [True, False])
def test_gigantic_pages(cma):
    order, nr = hugetlb.GIGANTIC_ORDER, 1 << hugetlb.GIGANTIC_ORDER
    kernel = Kernel([NodeBoot(0, 3 * nr, cpus=(0,))], ((10,),))
    memory = kernel.memory
    if cma:
        assert contig.reserve_cma(memory, "camera", 0, nr, dma=True) == 0
        assert contig.reserve_cma(memory, "hugetlb", 0, nr, dma=False) == 0
    assert hugetlb.write_nr_hugepages(memory, 1, order=order) == 0
    head = hugetlb.pool_of(memory, order).free[0][0]
    assert head == (nr if cma else 0)  # areas are taken from the top, a search begins at the bottom
    assert memory.nodes[0].free_pages == 2 * nr
    kernel.validate()
    assert hugetlb.write_nr_hugepages(memory, 0, order=order) == 0
    kernel.validate()
    assert memory.nodes[0].free_pages == 3 * nr
    assert memory.vmstat.count["cma_alloc_success"] == int(cma)


# -- ranges, compaction, pins


def test_areas_do_not_overlap(box):
    for name in ("a", "b"):
        assert contig.reserve_cma(box.memory, name, D1, 2 * HUGE, dma=True) == 0
    first, second = box.memory.high_order.cma
    assert second.first + second.nr_pages == first.first
    assert contig.reserve_cma(box.memory, "c", D1, 32 * HUGE, dma=True) == -errno.ENOMEM
    assert contig.reserve_cma(box.memory, "c", 63, HUGE, dma=True) == -errno.ENODEV


def test_a_displaced_page_that_stays_on_its_node_keeps_its_reason(box):
    at = fill_node(box, D0, HUGE)
    first = box.pfn(at + 300) // 64 * 64
    assert contig.alloc_contig_range(box.memory, first, 64, "camera") == 0
    validate_memory(box.memory)
    assert set(box.nids(HUGE, at)) == {D0}
    reasons = {int(box.memory.frames.reason[box.pfn(at + n)]) for n in range(HUGE)}
    assert reasons == {int(Reason.POLICY)}


def test_a_long_pin_leaves_a_cma_area(box):
    memory = box.memory
    nr = memory.nodes[D1].free_pages
    assert contig.reserve_cma(memory, "camera", D1, 4 * HUGE, dma=True) == 0
    area = memory.high_order.cma[0]
    at = fill_node(box, D1, nr - 400)
    inside = next(
        v for v in range(at, at + nr - 400) if area.first <= box.pfn(v) < area.first + area.nr_pages
    )
    outside = next(v for v in range(at, at + nr - 400) if box.pfn(v) < area.first)
    pfn = box.pfn(outside)
    assert pins.pin_user_pages(memory, box.task, outside, 1) == 1
    assert box.pfn(outside) == pfn
    answer = pins.pin_user_pages(memory, box.task, inside, 1)
    left = not area.first <= box.pfn(inside) < area.first + area.nr_pages
    assert (answer, left) in ((1, True), (-errno.ENOMEM, False))


def test_a_pin_that_fails_half_way_pins_nothing(box):
    box.map(2)
    assert pins.pin_user_pages(box.memory, box.task, VPN, 3) == -errno.EFAULT
    assert not box.memory.high_order.pins
    validate_memory(box.memory)
    assert box.count("nr_foll_pin_acquired") == [0]


def test_a_fork_does_not_copy_pinned_pool_pages(box):
    hugetlb.write_nr_hugepages(box.memory, 1, nid=D0)
    assert hugetlb_mmap(box, HUGE) == 0
    assert pins.pin_user_pages(box.memory, box.task, VPN, 1) == 1
    child = syscalls.fork(box.memory, box.task, 77)
    validate_memory(box.memory)
    assert box.pfn(VPN, child) == box.pfn(VPN)


def test_compaction_leaves_free_blocks_and_huge_pages_alone(box):
    node = box.memory.nodes[P]
    box.map(3 * HUGE, huge=True)
    assert box.bind(P, 3 * HUGE) == 0
    assert box.touch(1) == 0  # a huge page
    thp.madvise(box.memory, box.task, VPN + HUGE, 2 * HUGE, huge=False)
    assert box.touch(8, VPN + HUGE) == 0
    blocks = node.buddy.free_blocks_by_order()
    before = [box.pfn(VPN + n) for n in (0, 511)]
    assert compaction.compact_node(box.memory, P) == 0
    validate_memory(box.memory)
    assert [box.pfn(VPN + n) for n in (0, 511)] == before
    assert node.buddy.free_blocks_by_order()[9:] == blocks[9:]


def test_compaction_keeps_marks_of_leaks():
    box = Box(design="no-fallback", wish=Box.EVERYTHING)
    memory = box.memory
    first = contig.alloc_contig_pages(memory, 4, P, None, "tracer", this_node=True)
    assert memory.frames.flags[first] & PG_UNINVITED
    at = 1 << 30
    box.map(64, at)
    assert box.bind(P, 64, at) == 0
    assert box.touch(64, at) == 0
    memory.frames.flags[box.pfn(at)] |= np.uint16(PG_UNINVITED)
    contig.free_contig_range(memory, first)
    assert compaction.compact_node(memory, P) == 0
    assert memory.frames.flags[box.pfn(at)] & PG_UNINVITED


def scatter(box, nid):
    """Every other page of a node."""
    node = box.memory.nodes[nid]
    nr = node.free_pages - node.wmark.min_pages - 8
    at = fill_node(box, nid, nr)
    for vpn in range(at, at + nr, 2):
        assert syscalls.munmap(box.memory, box.task, vpn, 1) == 0


def test_an_allocation_compacts_only_where_it_may():
    box = Box(wish=Box.EVERYTHING & ~(Feature.RECLAIM | Feature.DEMOTION))
    scatter(box, P)
    box.map(HUGE, huge=True)
    assert box.bind(P, HUGE) == 0
    assert box.touch(1) == 0
    assert box.nids(2) == [P, None]
    assert box.count("compact_stall", "compact_fail", "compact_isolated") == [2, 2, 0]


def test_fragmentation_index_by_hand(box):
    scatter(box, P)
    node = box.memory.nodes[P]
    blocks, free = sum(node.buddy.free_blocks_by_order()), node.free_pages
    assert compaction.fragmentation_index(node, 9) == 1000 - (1000 + free * 1000 // 512) // blocks
    assert compaction.fragmentation_index(node, 0) == -1000
    usable = sum(n << k for k, n in enumerate(node.buddy.free_blocks_by_order()) if k >= 1)
    assert compaction.unusable_index(node, 1) == (free - usable) * 1000 // free


@pytest.mark.parametrize(("defrag", "huge", "stalls"), [("madvise", HUGE, True), ("never", 0, False)])
def test_a_huge_fault_reclaims_when_it_may_wait(box, defrag, huge, stalls):
    box.memory.high_order.thp.defrag = defrag
    file = box.kernel.create_file("f", 16 * HUGE)
    filemap.read_pages(box.memory, box.task, file, 0, 16 * HUGE)  # clean pages everywhere
    assert box.memory.nodes[D0].free_pages < HUGE
    box.map(HUGE, huge=True)
    assert box.bind(D0, HUGE) == 0
    stalled = box.count("allocstall")[0]
    assert box.touch(1) == 0
    assert thp.anon_huge_pages(box.memory, box.task) == huge
    assert (box.count("allocstall")[0] > stalled) == stalls


def test_a_pool_reclaims_for_its_pages(box):
    file = box.kernel.create_file("f", 16 * HUGE)
    filemap.read_pages(box.memory, box.task, file, 0, 16 * HUGE)
    assert hugetlb.write_nr_hugepages(box.memory, 12, nid=D0) == 0
    validate_memory(box.memory)
    assert hugetlb.nr_hugepages(box.memory, D0) > 8
