"""Corners of the host model in which it once went wrong: each test is a fault that was found and mended."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from strict_rack import EPOCH_NS, ListedStream, StrictRack

from privmem.nodeagent.host import filemap, numa_balancing, oom
from privmem.nodeagent.host import move_calls as moves
from privmem.nodeagent.host import numa_syscalls as numa
from privmem.nodeagent.host import syscalls as calls
from privmem.nodeagent.host.layout import PG_ACTIVE, PTE_ACCESSED, PTE_DIRTY, PTE_WRITABLE
from privmem.nodeagent.host.lru_batches import LruBatches
from privmem.nodeagent.host.memory import NUMA_FOREIGN, NUMA_HIT, NUMA_MISS, NumaBalancing
from privmem.nodeagent.host.outgoing import Outgoing
from privmem.nodeagent.host.task import Task
from privmem.scheduler.abi import MPOL_MF_MOVE, MPOL_MF_STRICT, Mpol
from privmem.scheduler.errors import InvariantError

D0, D1, CXL, CRAM, POOL = range(5)
SHAPE = {
    "seed": 1,
    "pages": [64, 8, 64, 64, 256],
    "credit": 64,
    "pool_credit": 1 << 30,
    "extent": 64,
    "pool_extents": 100,
    "refuse": 0,
    "features": [0x86, 0x186],
    "numa_balancing": 0,
    "scan_bytes": 1 << 30,
    "rate_limit": 1 << 36,
    "demotion": True,
    "scale": 10,
    "slice_ns": EPOCH_NS // 4,
}


def writes(pages):
    return [page << 1 | 1 for page in pages]


def build(*streams, policies=None, threads=1, **changes):
    listed = [ListedStream(nr_pages, packed) for nr_pages, packed in streams]
    policies = policies or [[0, 0]] * len(streams)
    programs = [{"cpu": 0, "threads": threads, "think_ns": 0, "policy": p} for p in policies]
    rack = StrictRack(SHAPE | {"programs": programs} | changes, listed)
    rack.tasks.append(Task(100, 0, rack.host.memory.resolver))
    return rack


def run(rack, epochs=20):
    for _ in range(epochs):
        if rack.finished:
            return
        rack.step()
    raise AssertionError("the programs do not come to their end")


def where(rack, start, nr_pages, task=None):
    return moves.query_range(rack.memory, task or rack.tasks[0], start, nr_pages)


def entry(rack, vpn, task=None):
    vma = (task or rack.tasks[0]).mm.find(vpn)
    return int(rack.memory.page_table.pte[vma.slot_of(vpn)])


def test_moved_pages_count_as_allocated():
    rack = build((120, writes(range(120))))
    run(rack)
    vm = rack.memory.vmstat.count
    assert vm["pgdemote_kswapd"] + vm["pgdemote_direct"] > 0
    assert vm["pgalloc"] - vm["pgfree"] == 120


def test_a_program_without_memory_ends_where_there_is_none():
    """Nobody has a page that killing could free: whoever asks goes itself (the OOM loop did not end)."""
    rack = build((4, writes(range(4))), policies=[[int(Mpol.BIND), 1 << POOL]], pool_extents=0)
    run(rack)
    assert rack.memory.vmstat.count["oom_kill"] == 1
    assert rack.host.programs[0].killed


def test_who_has_ended_without_a_page_is_not_killed_again():
    rack = build((4, []), (4, writes(range(4))))
    run(rack)
    oom.kill_largest(rack.memory, rack.host.programs)
    assert [p.killed for p in rack.host.programs] == [False, True]


def test_pages_that_a_bind_moves_are_out_of_reach_of_its_own_reclaim():
    """All public nodes are full: to bring pages to socket 1, reclaim works on socket 0, where they are."""
    rack = build((1, []), features=[0x6, 0x106])
    memory, task = rack.memory, rack.tasks[0]
    calls.mmap_anon(memory, task, 0, 100, 60)
    rack.call(calls.touch, task, 0, 100, True)
    memory.page_table.pte[:] &= np.uint32(0xFFFFFFFF ^ PTE_ACCESSED)
    assert where(rack, 0, 100).count(D0) > 40
    assert memory.vmstat.count["pgdemote_direct"] == 0
    assert rack.call(numa.mbind, task, 0, 100, Mpol.PREFERRED, 1 << D1, MPOL_MF_MOVE) == 0
    assert memory.vmstat.count["pgdemote_direct"] > 0


def test_a_bind_to_a_device_without_room_says_so_and_frees_nothing_there():
    rack = build((1, []), credit=3)
    memory, task = rack.memory, rack.tasks[0]
    calls.mmap_anon(memory, task, 0, 10, 60)
    rack.call(calls.touch, task, 0, 10, True)
    flags = MPOL_MF_MOVE | MPOL_MF_STRICT
    assert rack.call(numa.mbind, task, 0, 10, Mpol.BIND, 1 << CRAM, flags) == -errno.EIO
    assert where(rack, 0, 10).count(CRAM) == 3
    rack.step()  # the device checks what it is told


def test_a_bind_that_waits_for_an_extent_frees_nothing_on_the_device():
    rack = build((1, []), extent=16)
    memory, task = rack.memory, rack.tasks[0]
    calls.mmap_anon(memory, task, 0, 30, 60)
    rack.call(calls.touch, task, 0, 30, True)
    assert rack.call(numa.mbind, task, 0, 30, Mpol.BIND, 1 << POOL, MPOL_MF_MOVE) == 0
    assert where(rack, 0, 30) == [POOL] * 30
    rack.step()


def test_shared_memory_that_is_born_on_a_storing_node_is_stored():
    rack = build((1, []))
    memory, task = rack.memory, rack.tasks[0]
    calls.mmap_shared(memory, task, 0, 8)
    rack.call(numa.mbind, task, 0, 8, Mpol.BIND, 1 << POOL, 0)
    rack.call(calls.touch, task, 0, 8, True)
    rack.step()
    assert len(rack.devices["device/d4"].held) == 8
    calls.munmap(memory, task, 0, 8)
    rack.step()
    assert not rack.devices["device/d4"].held


def test_a_private_store_never_reaches_the_page_cache_by_way_of_a_fenced_node():
    rack = build((1, []))
    memory, task = rack.memory, rack.tasks[0]
    file = memory.page_cache.create_file("f", 4, 300)
    calls.mmap_object(memory, task, 0, 4, file, private=True)
    rack.call(calls.touch, task, 0, 4, False)
    assert rack.call(numa.mbind, task, 0, 4, Mpol.BIND, 1 << CRAM, MPOL_MF_MOVE) == 0
    assert where(rack, 0, 4) == [CRAM] * 4
    rack.call(numa.mbind, task, 0, 4, Mpol.DEFAULT, 0, 0)
    rack.call(calls.touch, task, 0, 4, True)
    cached = {file.pages[index] for index in range(4)}
    assert not cached & {entry(rack, vpn) >> 5 for vpn in range(4)}
    assert all(entry(rack, vpn) & PTE_WRITABLE for vpn in range(4))


def test_touching_ends_when_a_fenced_page_cannot_be_promoted():
    rack = build((1, []), pages=[16, 4, 8, 64, 256], demotion=False)
    memory, task = rack.memory, rack.tasks[0]
    calls.mmap_anon(memory, task, 0, 4, 60)
    rack.call(numa.mbind, task, 0, 4, Mpol.BIND, 1 << CRAM, 0)
    rack.call(calls.touch, task, 0, 4, False)
    calls.mmap_anon(memory, task, 100, 60, 61)
    assert rack.call(calls.touch, task, 100, 60, True) == -errno.ENOMEM
    assert rack.call(calls.touch, task, 0, 4, True) == -errno.ENOMEM


def test_touch_writes_nothing_in_place_on_a_fenced_node():
    """A page that a later fault's reclaim moves to compressed RAM was written before, not there."""
    rack = build((1, []), features=[0x6, 0x106])
    memory, task = rack.memory, rack.tasks[0]
    calls.mmap_anon(memory, task, 0, 160, 60)
    rack.call(calls.touch, task, 0, 160, True)
    fenced = [vpn for vpn, nid in enumerate(where(rack, 0, 160)) if nid == -errno.ENOENT]
    assert fenced
    assert not [vpn for vpn in fenced if entry(rack, vpn) & PTE_DIRTY and not entry(rack, vpn) & PTE_WRITABLE]


def test_a_vma_merged_from_two_mappings_can_go_and_fork():
    rack = build((1, []))
    memory, task = rack.memory, rack.tasks[0]
    calls.mmap_anon(memory, task, 100, 10, 60)
    calls.munmap(memory, task, 100, 5)
    calls.mmap_anon(memory, task, 100, 5, 61)  # takes the slots that were given back
    for mode, nodes in ((Mpol.BIND, 1), (Mpol.DEFAULT, 0)):
        rack.call(numa.mbind, task, 100, 5, mode, nodes, 0)
    assert len(task.mm.vmas) == 1
    child = calls.fork(memory, task, 101)
    slots = np.arange(child.mm.vmas[0].slot, child.mm.vmas[0].slot + 10)
    assert memory.page_table.content_of(slots)[0].tolist() == [61] * 5 + [60] * 5
    assert memory.page_table.content_of(slots)[1].tolist() == [*range(5), *range(5, 10)]
    for who in (child, task):
        calls.exit_task(memory, who)
    assert len(memory.page_table.regions) == 1  # the program's


def test_an_object_may_be_mapped_over_its_own_last_mapping():
    rack = build((1, []))
    memory, task = rack.memory, rack.tasks[0]
    calls.mmap_shared(memory, task, 0, 8)
    (holder,) = memory.page_cache.objects.values()
    assert calls.mmap_object(memory, task, 0, 8, holder, private=False, index=0) == 0
    rack.call(calls.touch, task, 0, 8, True)
    calls.munmap(memory, task, 0, 8)
    assert not memory.page_cache.objects


def test_a_freed_frame_is_held_by_no_batch():
    batches = LruBatches()
    batches.add(0, 7)
    batches.forget(np.array([7], dtype=np.int32))
    assert not batches.held_elsewhere(7, 1)


def test_file_versions_wrap_around_in_silence():
    rack = build((1, []))
    memory, task = rack.memory, rack.tasks[0]
    file = memory.page_cache.create_file("f", 1, 300)
    calls.mmap_object(memory, task, 0, 1, file, private=False)
    rack.call(calls.touch, task, 0, 1, True)
    memory.frames.version[file.pages[0]] = 0xFFFF
    filemap.sync(memory)
    assert memory.frames.version[file.pages[0]] == 0


def test_a_snapshot_of_what_is_to_be_sent_does_not_change_afterwards():
    outgoing = Outgoing()
    outgoing.free("d", np.array([1]))
    taken = outgoing.snapshot()
    outgoing.free("d", np.array([2]))
    assert taken == {"d": [[1, [1], [], [], [], []]]}


def mapped_on_cxl(rack, nr_pages, start=0):
    """Pages of the first task, on CXL without any policy."""
    memory, task = rack.memory, rack.tasks[0]
    calls.mmap_anon(memory, task, start, nr_pages, 60)
    rack.call(calls.touch, task, start, nr_pages, True)
    moved = rack.call(moves.move_pages, task, list(range(start, start + nr_pages)), [CXL] * nr_pages, 2)
    assert moved[0] == 0
    return task


def scan(rack, scan_bytes=1 << 30, **knobs):
    task = rack.tasks[0]
    task.next_scan_ns = 0
    known = rack.memory.vmstat.count["numa_pte_updates"]
    numa_balancing.scan(rack.memory, task, NumaBalancing(scan_size_bytes=scan_bytes, **knobs))
    return rack.memory.vmstat.count["numa_pte_updates"] - known


def test_numa_balancing_leaves_pages_of_a_policy_alone():
    """`vma_policy_mof`: a program bound to CXL is not promoted out of it."""
    hot = [page << 1 for page in range(20)] * 3000
    rack = build((20, writes(range(20)) + hot), policies=[[int(Mpol.BIND), 1 << CXL]], numa_balancing=2)
    run(rack)
    assert rack.memory.vmstat.count["numa_pte_updates"] == 0
    assert rack.memory.vmstat.count["pgpromote_success"] == 0
    rack = build((1, []))
    task = mapped_on_cxl(rack, 8)
    rack.call(numa.mbind, task, 0, 4, Mpol.PREFERRED, 1 << CXL, 0)
    assert scan(rack) == 4


def test_a_policy_set_after_the_scan_keeps_the_page_too():
    rack = build((1, []))
    task = mapped_on_cxl(rack, 4)
    assert scan(rack) == 4
    rack.call(numa.mbind, task, 0, 4, Mpol.BIND, 1 << CXL, 0)
    rack.call(calls.touch, task, 0, 4, True)
    assert where(rack, 0, 4) == [CXL] * 4


def test_the_scanner_begins_anew_when_its_place_was_unmapped():
    rack = build((1, []))
    task = mapped_on_cxl(rack, 30)
    assert scan(rack, 20 << 12) == 20
    calls.munmap(rack.memory, task, 15, 15)
    rack.call(calls.touch, task, 0, 15, False)
    rack.call(moves.move_pages, task, list(range(15)), [CXL] * 15, 2)
    assert scan(rack) == 15


def test_a_scan_passes_quickly_over_what_it_does_not_change():
    rack = build((1, []))
    task = mapped_on_cxl(rack, 10, start=50)
    calls.mmap_anon(rack.memory, task, 0, 40, 61)
    assert scan(rack, 8 << 12) == 8  # 40 pages without an entry are 5 scan sizes; then 8 pages with one
    assert scan(rack, 8 << 12) == 2


def test_pages_shared_by_copy_on_write_and_shared_memory_are_not_scanned():
    rack = build((1, []))
    task = mapped_on_cxl(rack, 6)
    calls.fork(rack.memory, task, 101)
    calls.mmap_shared(rack.memory, task, 100, 5)
    rack.call(calls.touch, task, 100, 5, True)
    assert rack.call(moves.move_pages, task, list(range(100, 105)), [CXL] * 5, 2)[0] == 0
    assert scan(rack) == 0


def test_a_promotion_leaves_the_target_above_its_high_watermark():
    rack = build((1, []))
    task = mapped_on_cxl(rack, 4)
    memory, node = rack.memory, rack.memory.nodes[D0]
    calls.mmap_anon(memory, task, 100, 64, 61)
    rack.call(calls.touch, task, 100, node.free_pages - node.wmark.high_pages - 1, True)
    assert node.free_pages == node.wmark.high_pages + 1
    scan(rack)
    rack.call(calls.touch, task, 0, 4, False)
    assert memory.vmstat.count["pgmigrate_fail"] == 4
    assert node.free_pages == node.wmark.high_pages + 1


def test_the_promotion_rate_limit_is_the_kernel_s():
    """The limit-th candidate of a second is refused already; with room in plenty there is no limit."""
    rack = build((1, []), rate_limit=3 << 12)
    task = mapped_on_cxl(rack, 6)
    scan(rack)
    rack.call(calls.touch, task, 0, 6, False)
    assert rack.memory.vmstat.count["pgpromote_candidate"] == 6
    assert rack.memory.vmstat.count["pgpromote_success"] == 2
    rack = build((1, []), rate_limit=0, pages=[300_000, 8, 64, 64, 256])
    task = mapped_on_cxl(rack, 6)
    scan(rack)
    rack.call(calls.touch, task, 0, 6, False)
    assert rack.memory.vmstat.count["pgpromote_candidate"] == 0
    assert rack.memory.vmstat.count["pgpromote_success"] == 6


def test_a_moved_page_stays_active():
    rack = build((1, []))
    memory, task = rack.memory, rack.tasks[0]
    calls.mmap_anon(memory, task, 0, 1, 60)
    rack.call(calls.touch, task, 0, 1, True)
    pfn = entry(rack, 0) >> 5
    memory.lru_del(pfn)
    memory.frames.flags[pfn] |= np.uint16(PG_ACTIVE)
    memory.lru_add(pfn)
    rack.call(moves.move_pages, task, [0], [CXL], 2)
    assert memory.lru_sizes(CXL)[:2] == [0, 1]


def test_migrations_are_counted_in_numastat():
    rack = build((150, writes(range(150))), features=[0x6, 0x106])
    run(rack)
    memory = rack.memory
    assert memory.vmstat.count["pgmigrate_success"] > 0
    taken = memory.numastat[:, NUMA_HIT] + memory.numastat[:, NUMA_MISS]
    assert taken.sum() == memory.vmstat.count["pgalloc"]
    assert memory.numastat[:, NUMA_MISS].sum() == memory.numastat[:, NUMA_FOREIGN].sum()


def test_what_was_written_through_a_mapping_that_is_gone_is_a_new_version():
    rack = build((1, []))
    memory, task = rack.memory, rack.tasks[0]
    calls.mmap_shared(memory, task, 0, 1)
    (holder,) = memory.page_cache.objects.values()
    calls.mmap_object(memory, task, 10, 1, holder, private=False)
    rack.call(calls.touch, task, 0, 1, True)
    rack.call(calls.touch, task, 10, 1, False)
    calls.munmap(memory, task, 0, 1)
    memory.nodes[POOL].next_sample_ns = 1 << 60  # or the owner brings back at once what was used twice
    rack.call(numa.mbind, task, 10, 1, Mpol.BIND, 1 << POOL, MPOL_MF_MOVE)
    rack.step()
    assert [row[2] for row in rack.devices["device/d4"].held.values()] == [1]


def test_a_written_page_of_a_file_is_not_dropped_before_it_is_clean():
    rack = build((1, []))
    memory, task = rack.memory, rack.tasks[0]
    file = memory.page_cache.create_file("f", 2, 300)
    calls.mmap_object(memory, task, 0, 2, file, private=False)
    rack.call(calls.touch, task, 0, 1, True)
    rack.call(calls.touch, task, 1, 1, False)
    calls.munmap(memory, task, 0, 2)
    assert filemap.drop_caches(memory) == 1
    filemap.sync(memory)
    assert memory.frames.version[file.pages[0]] == 1
    assert filemap.drop_caches(memory) == 1


def test_shared_memory_is_demoted_past_compressed_ram_that_may_not_take_it():
    rack = build((1, []), features=[0x6, 0x106])
    memory, task = rack.memory, rack.tasks[0]
    calls.mmap_shared(memory, task, 0, 200)
    assert rack.call(calls.touch, task, 0, 200, True) == 0
    rack.step()
    assert not rack.devices["device/d3"].held
    assert len(rack.devices["device/d4"].held) > 60


def test_no_extent_is_asked_for_where_the_device_s_promise_is_what_lacks():
    rack = build((160, writes(range(160))), features=[0, 0x106], pool_credit=0)
    for _ in range(10):
        rack.step()
    assert rack.memory.vmstat.count["extents_requested"] == 0


def test_an_access_outside_of_all_mappings_is_an_error_of_the_emulator():
    rack = build((4, writes(range(4))))
    rack.host.programs[0].task.mm.vmas = []
    with pytest.raises(InvariantError, match="p0: an access to page 0 fails with errno 14"):
        rack.step()
