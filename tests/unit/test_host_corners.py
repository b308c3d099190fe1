"""Corners of the host model in which it once went wrong: each test is a fault that was found and mended."""

from __future__ import annotations

import errno

import numpy as np
from strict_rack import EPOCH_NS, ListedStream, StrictRack

from privmem.nodeagent.host import filemap, oom
from privmem.nodeagent.host import numa_syscalls as numa
from privmem.nodeagent.host import syscalls as calls
from privmem.nodeagent.host.layout import PTE_ACCESSED, PTE_DIRTY, PTE_WRITABLE
from privmem.nodeagent.host.lru_batches import LruBatches
from privmem.nodeagent.host.outgoing import Outgoing
from privmem.nodeagent.host.task import Task
from privmem.scheduler.abi import MPOL_MF_MOVE, MPOL_MF_STRICT, Mpol

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
    rack.tasks.append(Task(100, 0, rack.host.resolver))
    return rack


def run(rack, epochs=20):
    for _ in range(epochs):
        if rack.finished:
            return
        rack.step()
    raise AssertionError("the programs do not come to their end")


def where(rack, start, nr_pages, task=None):
    return numa.query_range(rack.memory, task or rack.tasks[0], start, nr_pages)


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
    rack.call(numa.mbind, task, 500, 1, Mpol.DEFAULT, 0, 0)
    task.mm.replace_range(0, 0, [])
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
    assert taken == {"d": [[1, [1], [], [], []]]}
