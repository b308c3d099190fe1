"""Pages of a hugetlb pool that are in use move by the NUMA calls, hotplug and pins; the pool's counts go along."""

import errno

from kernel_box import D0, D1, HUGE, USER, VPN, Box, P, fill_node, hugetlb_mmap

from privmem.nodeagent.host import hugetlb, migrate_calls, move_calls, numa_syscalls, pins, syscalls
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.scheduler.abi import MPOL_F_RELATIVE_NODES, MPOL_MF_MOVE, MPOL_MF_STRICT, Feature, Mpol


def pooled(on_d0=1, on_d1=0, mapped=1, **how):
    """A box with a pool and a mapping of so many touched huge pages."""
    box = Box(**how)
    hugetlb.write_nr_hugepages(box.memory, on_d0, nid=D0)
    hugetlb.write_nr_hugepages(box.memory, on_d1, nid=D1)
    assert not mapped or hugetlb_mmap(box, mapped * HUGE) == 0
    for page in range(mapped):
        assert box.touch(1, VPN + page * HUGE) == 0
    return box


def counts(box):
    """(pages, free pages, surplus pages) of D0 and D1."""
    pool = hugetlb.pool_of(box.memory)
    return [(pool.nr.get(n, 0), len(pool.free.get(n, ())), pool.surplus.get(n, 0)) for n in (D0, D1)]


def move(box, vpns, nid, flags=MPOL_MF_MOVE):
    return move_calls.move_pages(box.memory, box.task, vpns, [nid] * len(vpns), flags)


def test_a_page_moves_into_a_fresh_one_which_takes_its_place_in_the_pool():
    box = pooled()
    free = {n: box.memory.nodes[n].free_pages for n in (D0, D1)}
    assert move(box, [VPN], D1) == (0, [D1])
    box.touch(HUGE)
    assert (box.nids(HUGE), counts(box)) == ([D1] * HUGE, [(0, 0, 0), (1, 0, 0)])
    assert [box.memory.nodes[n].free_pages - free[n] for n in (D0, D1)] == [HUGE, -HUGE]
    assert box.count("pgmigrate_success", "pgfault") == [HUGE, 1]
    box.round_trip()
    syscalls.munmap(box.memory, box.task, VPN, HUGE)
    box.touch(0)
    assert counts(box) == [(0, 0, 0), (1, 1, 0)]


def test_a_free_page_of_the_pool_is_taken_first_and_the_old_one_stays_in_the_pool():
    box = pooled(1, 1)
    assert move(box, [VPN], D1) == (0, [D1])
    assert counts(box) == [(1, 1, 0), (1, 0, 0)]


def test_promised_pages_of_the_pool_are_not_taken():
    box = pooled(1, 1)
    assert hugetlb_mmap(box, HUGE, at=VPN + 8 * HUGE) == 0
    assert move(box, [VPN], D1) == (0, [D1])
    assert counts(box) == [(0, 0, 0), (2, 1, 0)]


def test_surplus_goes_along():
    box = pooled()
    hugetlb.write_nr_hugepages(box.memory, 0)
    assert counts(box) == [(1, 0, 1), (0, 0, 0)]
    assert move(box, [VPN], D1) == (0, [D1])
    assert counts(box) == [(0, 0, 0), (1, 0, 1)]


def test_a_node_without_a_block_refuses():
    box = pooled()
    fill_node(box, D1, box.memory.nodes[D1].free_pages - 300)
    assert move(box, [VPN], D1) == (-errno.ENOMEM, [move_calls.STATUS_UNSET])
    assert (box.nids(1), counts(box)) == ([D0], [(1, 0, 0), (0, 0, 0)])


def test_parts_and_pinned_pages():
    box = pooled()
    assert move(box, [VPN, VPN + 1, VPN], D1) == (0, [D1, -errno.EACCES, D1])
    assert pins.pin_user_pages(box.memory, box.task, VPN + 7, 1) == 1
    assert move(box, [VPN], D0) == (0, [-errno.EBUSY])


def test_mbind_and_migrate_pages():
    box = pooled(mapped=1)
    flags = MPOL_MF_MOVE | MPOL_MF_STRICT
    assert numa_syscalls.mbind(box.memory, box.task, VPN, HUGE, Mpol.BIND, 1 << D1, flags) == 0
    assert box.nids(2) == [D1, D1]
    assert migrate_calls.migrate_pages(box.memory, box.task, 1 << D1, 1 << D0) == 0
    assert (box.nids(2), counts(box)) == ([D0, D0], [(1, 0, 0), (0, 0, 0)])


def test_interleaving_goes_by_the_number_of_the_huge_page():
    box = pooled(4, 4, mapped=0)
    assert hugetlb_mmap(box, 4 * HUGE) == 0
    assert numa_syscalls.mbind(box.memory, box.task, VPN, 4 * HUGE, Mpol.BIND, 1 << D1, 0) == 0
    for page in range(4):
        assert box.touch(1, VPN + page * HUGE) == 0
    # Only misplaced pages move, so the mask must leave out where they are; positions make it both nodes again.
    relative = Mpol.INTERLEAVE | MPOL_F_RELATIVE_NODES
    assert (
        numa_syscalls.mbind(box.memory, box.task, VPN, 4 * HUGE, relative, 1 << 3 | 1 << 4, MPOL_MF_MOVE) == 0
    )
    moved = box.nids(4 * HUGE)[::HUGE]
    assert sorted(moved) == [D0, D0, D1, D1]
    assert moved[0] == moved[2] != moved[1] == moved[3]


def test_a_private_node_gives_no_page_that_its_design_keeps_from_pools():
    box = pooled(design="caps")
    assert move(box, [VPN], P) == (-errno.ENOMEM, [move_calls.STATUS_UNSET])
    assert (box.nids(1), counts(box)) == ([D0], [(1, 0, 0), (0, 0, 0)])


def on_private(box):
    """A huge page of the pool of P is mapped; another one there is free."""
    assert hugetlb.write_nr_hugepages(box.memory, 2, nid=P) == 0
    assert hugetlb_mmap(box, HUGE) == 0
    assert box.bind(P, HUGE) == 0
    assert box.touch(1) == 0
    assert box.nids(1) == [P]
    return hugetlb.pool_of(box.memory)


def test_offline_moves_them_out_and_frees_their_pages():
    box = Box()
    pool = on_private(box)
    assert box.kernel.hotplug.offline(P) == 0
    box.touch(HUGE)
    assert box.nids(HUGE) == [D0] * HUGE
    assert (pool.nr, pool.total_free, box.memory.nodes[P].managed_pages) == ({D0: 1}, 0, 0)


def test_a_pinned_page_keeps_memory_online():
    box = Box(design="caps", wish=USER | Feature.LONGTERM_PIN | Feature.HUGETLB)
    pool = on_private(box)
    assert pins.pin_user_pages(box.memory, box.task, VPN + 3, 1) == 1
    assert box.kernel.hotplug.offline(P) == -errno.EBUSY
    assert (box.nids(1), pool.nr) == ([P], {P: 2})


def test_a_long_term_pin_moves_the_whole_page_to_where_it_may_stay():
    box = Box()
    box.kernel = Kernel(
        [NodeBoot(D0, 8 * HUGE, cpus=(0,)), NodeBoot(D1, 8 * HUGE, zone="movable")], ((10, 20), (20, 10))
    )
    box.memory, box.task = box.kernel.memory, box.kernel.spawn(0).task
    hugetlb.write_nr_hugepages(box.memory, 2, nid=D1)
    assert hugetlb_mmap(box, HUGE) == 0
    assert box.bind(D1, HUGE) == 0
    assert box.touch(1) == 0
    assert (box.nids(1), box.memory.topology.node(D1).zone) == ([D1], "movable")
    assert pins.pin_user_pages(box.memory, box.task, VPN + 3, 1, longterm=False) == 1
    assert box.nids(1) == [D1]
    pins.unpin_user_pages(box.memory, box.task)
    assert pins.pin_user_pages(box.memory, box.task, VPN + 3, 1) == 1
    box.touch(HUGE)
    assert (box.nids(HUGE), counts(box)) == ([D0] * HUGE, [(1, 0, 0), (1, 1, 0)])
