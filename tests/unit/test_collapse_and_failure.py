"""Collapsing small pages, compaction, and hardware errors on one emulated Linux with private nodes."""

import errno

import pytest
from kernel_box import D0, D1, HUGE, VPN, Box, P, fill_node, hugetlb_mmap

from privmem.nodeagent.host import (
    compaction,
    contig,
    filemap,
    hugetlb,
    khugepaged,
    madvise,
    memory_failure,
    pins,
    syscalls,
    thp,
)
from privmem.nodeagent.host.audit import validate_memory
from privmem.nodeagent.host.fault import FAULT_SIGBUS
from privmem.nodeagent.host.layout import PG_ALLOCATED


@pytest.fixture
def box():
    return Box()


# -- collapsing


def small_pages(box, nr=HUGE, nid=None, at=VPN):
    """Base pages, on a node if it is said."""
    box.map(nr, at)
    if nid is not None:
        assert box.bind(nid, nr, at) == 0
    assert box.touch(nr, at) == 0


def test_madvise_collapse_goes_to_the_node_with_most_pages(box):
    box.map(HUGE)
    assert box.touch(1) == 0  # from now on the parts of the mapping share an anon_vma, and may be one again
    assert (box.bind(D0, 200), box.bind(D1, HUGE - 200, VPN + 200)) == (0, 0)
    assert box.touch(HUGE) == 0
    before = [box.pfn(VPN + n) for n in range(HUGE)]
    # Two VMAs for two policies, and no huge range is inside one: nothing was left undone.
    assert khugepaged.madvise_collapse(box.memory, box.task, VPN, HUGE) == 0
    assert thp.anon_huge_pages(box.memory, box.task) == 0
    assert khugepaged.madvise_collapse(box.memory, box.task, VPN + 1, 5) == -errno.EINVAL
    assert box.bind(D1, 200) == 0
    assert khugepaged.madvise_collapse(box.memory, box.task, VPN, HUGE) == 0
    validate_memory(box.memory)
    assert box.nids(HUGE) == [D1] * HUGE
    assert thp.anon_huge_pages(box.memory, box.task) == HUGE
    assert [bool(box.memory.frames.flags[pfn] & PG_ALLOCATED) for pfn in before].count(True) == 0
    assert box.count("thp_collapse_alloc", "pgmigrate_success") == [1, 0]
    assert khugepaged.madvise_collapse(box.memory, box.task, VPN, HUGE) == 0  # it is one already
    assert box.count("thp_collapse_alloc") == [1]


@pytest.mark.parametrize("design_wish", [None])
def test_pages_of_a_private_node_are_never_collapsed_under_f1(box, design_wish):
    small_pages(box, 2 * HUGE, P)
    assert khugepaged.madvise_collapse(box.memory, box.task, VPN, 2 * HUGE) == -errno.EINVAL
    box.memory.high_order.thp.enabled = "always"
    assert khugepaged.khugepaged(box.memory, [box.task]) == 0
    assert thp.anon_huge_pages(box.memory, box.task) == 0
    assert box.nids(2 * HUGE) == [P] * 2 * HUGE
    assert box.count("thp_collapse_alloc", "thp_collapse_alloc_failed") == [0, 0]


def test_the_daemon_works_through_its_pages_in_turns(box):
    small_pages(box, 3 * HUGE)
    daemon = lambda pages: khugepaged.khugepaged(box.memory, [box.task], pages)  # noqa: E731
    assert daemon(HUGE) == 0  # not madvised
    assert box.memory.high_order.khugepaged_at == [0, 0]
    thp.madvise(box.memory, box.task, VPN, 3 * HUGE, huge=True)
    assert daemon(HUGE) == 1
    assert box.memory.high_order.khugepaged_at == [box.task.pid, VPN + HUGE]
    box.round_trip()
    assert daemon(HUGE) == 1
    assert daemon(2 * HUGE) == 1
    validate_memory(box.memory)
    assert thp.anon_huge_pages(box.memory, box.task) == 3 * HUGE
    assert box.memory.high_order.khugepaged_at == [0, 0]


def test_limits_of_the_daemon_do_not_bind_the_call(box):
    box.map(HUGE)
    assert box.touch(1) == 0
    thp.madvise(box.memory, box.task, VPN, HUGE, huge=True)
    box.memory.high_order.thp.max_ptes_none = HUGE - 2
    assert khugepaged.khugepaged(box.memory, [box.task]) == 0
    assert khugepaged.madvise_collapse(box.memory, box.task, VPN, HUGE) == 0
    validate_memory(box.memory)
    assert box.nids(HUGE) == [D0] * HUGE


def test_what_cannot_be_collapsed(box):
    small_pages(box)
    assert pins.pin_user_pages(box.memory, box.task, VPN + 5, 1) == 1
    call = lambda nr=HUGE: khugepaged.madvise_collapse(box.memory, box.task, VPN, nr)  # noqa: E731
    assert call() == -errno.EAGAIN
    assert pins.unpin_user_pages(box.memory, box.task) == 1
    child = syscalls.fork(box.memory, box.task, 77)
    assert call() == -errno.EINVAL  # nothing writable
    assert box.touch(1) == 0
    assert call() == 0
    validate_memory(box.memory)
    assert box.pfn(VPN + 1) != box.pfn(VPN + 1, child)
    thp.madvise(box.memory, box.task, VPN, HUGE, huge=False)
    assert call() == -errno.EINVAL
    assert call(2 * HUGE) == -errno.EINVAL
    assert khugepaged.madvise_collapse(box.memory, box.task, VPN + 10 * HUGE, HUGE) == -errno.ENOMEM


# -- compaction


def scatter(box, nid):
    """Pages in every other frame of most of a node; its fill."""
    node = box.memory.nodes[nid]
    nr = node.free_pages - node.wmark.min_pages - 8
    at = fill_node(box, nid, nr)
    for vpn in range(at, at + nr, 2):
        assert madvise.madvise_dontneed(box.memory, box.task, vpn, 1) == 0
    return at, nr


def test_writing_compact_makes_blocks(box):
    at, nr = scatter(box, P)
    node = box.memory.nodes[P]
    assert not compaction.has_block(node, 9)
    assert compaction.fragmentation_index(node, 9) > 500
    assert compaction.unusable_index(node, 9) == 1000
    reasons = box.memory.frames.reason[[box.pfn(at + 1), box.pfn(at + nr - 1)]].tolist()
    assert compaction.compact_node(box.memory, P) == 0
    validate_memory(box.memory)
    assert compaction.has_block(node, 9)
    assert compaction.fragmentation_index(node, 9) == -1000
    assert set(box.nids(nr, at)[1::2]) == {P}
    assert box.memory.frames.reason[[box.pfn(at + 1), box.pfn(at + nr - 1)]].tolist() == reasons
    used = [box.pfn(vpn) - node.start_pfn for vpn in range(at + 1, at + nr, 2)]
    assert min(used) >= 4 * HUGE - 2 * len(used)  # they are at the top


def test_a_private_node_without_the_right_is_not_compacted():
    from privmem.scheduler.abi import Feature

    box = Box(wish=Feature.USER_NUMA | Feature.USER_WRITE)
    scatter(box, P)
    assert compaction.compact_node(box.memory, P) == -errno.EINVAL
    assert compaction.compact_memory(box.memory) == 0
    assert box.count("compact_isolated", "pgmigrate_success") == [0, 0]
    assert compaction.compact_node(box.memory, 63) == -errno.EINVAL


def test_what_is_held_stays_where_it_is(box):
    at, _ = scatter(box, P)
    assert pins.pin_user_pages(box.memory, box.task, at + 1, 1, longterm=False) == 1
    pfn = box.pfn(at + 1)
    compaction.compact_node(box.memory, P)
    validate_memory(box.memory)
    assert box.pfn(at + 1) == pfn


def test_a_madvised_fault_compacts(box):
    scatter(box, D0)
    assert not compaction.has_block(box.memory.nodes[D0], 9)
    box.map(HUGE, huge=True)
    assert box.touch(1) == 0
    assert box.nids(HUGE) == [D0] * HUGE
    assert box.count("compact_stall", "compact_success", "compact_fail") == [1, 1, 0]


# -- hardware errors


def fail(box, pfn, owner="driver"):
    failure = memory_failure.memory_failure(box.memory, pfn, owner)
    validate_memory(box.memory)
    return failure.error, failure.kind, failure.users, failure.told


def test_a_free_frame_is_never_used_again(box):
    node = box.memory.nodes[P]
    assert fail(box, node.start_pfn + 7) == (0, "free", (), "driver")
    assert node.free_pages == 4 * HUGE - 1
    assert fail(box, node.start_pfn + 7) == (-133, "", (), "")
    assert fail(box, box.memory.nodes[D1].start_pfn + 100) == (0, "free", (), "")
    assert fail(box, box.memory.frames.nr_frames) == (-errno.ENXIO, "", (), "")
    assert fail(box, node.start_pfn + node.spec.span_pages) == (-errno.ENXIO, "", (), "")
    box.round_trip()


def test_users_of_a_lost_page_get_sigbus_until_they_map_anew(box):
    small_pages(box, 4, P)
    child = syscalls.fork(box.memory, box.task, 77)
    pfn = box.pfn(VPN + 1)
    assert fail(box, pfn) == (0, "anonymous", (box.task.pid, 77), "driver")
    assert box.touch(4) == FAULT_SIGBUS
    assert box.touch(1, VPN + 1, task=child) == FAULT_SIGBUS
    assert box.touch(1) == 0
    box.round_trip()
    assert madvise.madvise_dontneed(box.memory, box.task, VPN, 4) == 0
    assert box.touch(4) == 0
    assert box.touch(1, VPN + 1, task=child) == FAULT_SIGBUS
    assert pfn not in [box.pfn(VPN + n) for n in range(4)]


def test_a_huge_page_loses_one_page_only(box):
    box.map(HUGE, huge=True)
    assert box.touch(1) == 0
    assert fail(box, box.pfn(VPN + 9))[1] == "anonymous"
    assert box.count("thp_split_page") == [1]
    assert [n for n, nid in enumerate(box.nids(HUGE)) if nid is None] == [9]


def test_pages_of_files(box):
    file = box.kernel.create_file("f", 8)
    assert syscalls.mmap_object(box.memory, box.task, VPN, 8, file, private=False) == 0
    assert box.touch(2, write=False) == 0
    assert fail(box, box.pfn(VPN)) == (0, "clean file", (), "")
    assert box.touch(1, write=False) == 0  # read again
    assert box.touch(1, VPN + 1) == 0
    assert fail(box, box.pfn(VPN + 1)) == (0, "dirty file", (box.task.pid,), "")
    assert box.touch(1, VPN + 1) == FAULT_SIGBUS
    assert filemap.read_pages(box.memory, box.task, file, 1, 1) == 1


def test_shared_memory_has_no_other_copy(box):
    assert syscalls.mmap_shared(box.memory, box.task, VPN, 4) == 0
    assert box.touch(4) == 0
    assert fail(box, box.pfn(VPN + 2)) == (0, "shared memory", (box.task.pid,), "")
    assert box.touch(4) == FAULT_SIGBUS
    assert syscalls.munmap(box.memory, box.task, VPN, 4) == 0
    validate_memory(box.memory)
    assert box.memory.nodes[D0].free_pages == box.free_at_boot[D0] - 1


def test_held_frames_are_told_but_not_taken(box):
    first = contig.alloc_contig_pages(box.memory, 16, P, 1 << P, "dax", private=True)
    assert fail(box, first + 3, "dax") == (-errno.EBUSY, "held", (), "dax")


def test_huge_pages_of_a_pool(box):
    hugetlb.write_nr_hugepages(box.memory, 3, nid=D0)
    assert hugetlb_mmap(box, HUGE) == 0
    assert box.touch(1) == 0
    head = box.pfn(VPN)
    free = list(hugetlb.pool_of(box.memory).free[D0])
    assert fail(box, free[0] + 5) == (0, "huge page of a pool", (), "")
    assert (hugetlb.nr_hugepages(box.memory), box.memory.nodes[D0].free_pages) == (
        2,
        box.free_at_boot[D0] - 2 * HUGE - 1,
    )
    assert fail(box, head + 5) == (0, "huge page of a pool", (box.task.pid,), "")
    assert box.touch(1, VPN + 100) == FAULT_SIGBUS
    assert hugetlb.nr_hugepages(box.memory) == 1
    box.round_trip()
    assert syscalls.munmap(box.memory, box.task, VPN, HUGE) == 0
    validate_memory(box.memory)
    assert hugetlb.free_hugepages(box.memory) == 1


def test_pins_of_pool_pages_and_forks(box):
    hugetlb.write_nr_hugepages(box.memory, 1, nid=D0)
    assert hugetlb_mmap(box, HUGE) == 0
    assert pins.pin_user_pages(box.memory, box.task, VPN + 3, 2) == 2
    assert syscalls.munmap(box.memory, box.task, VPN, HUGE) == 0
    validate_memory(box.memory)
    assert hugetlb.free_hugepages(box.memory) == 0
    assert pins.unpin_user_pages(box.memory, box.task) == 2
    validate_memory(box.memory)
    assert hugetlb.free_hugepages(box.memory) == 1


def test_a_fork_copies_what_is_pinned(box):
    box.map(2)
    assert pins.pin_user_pages(box.memory, box.task, VPN, 1) == 1
    assert box.touch(2) == 0
    pfn = box.pfn(VPN)
    child = syscalls.fork(box.memory, box.task, 77)
    validate_memory(box.memory)
    assert box.pfn(VPN, child) != pfn
    assert box.pfn(VPN + 1, child) == box.pfn(VPN + 1)
    assert box.touch(1) == 0
    assert box.pfn(VPN) == pfn
    syscalls.exit_task(box.memory, box.task)
    validate_memory(box.memory)
    assert not box.memory.high_order.pins
