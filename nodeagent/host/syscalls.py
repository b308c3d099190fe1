"""System calls and events of one host that shape address spaces: mmap, munmap, fork, exit, touching pages,
cpusets.

Models mm/mmap.c and kernel/fork.c of Linux 6.1 as far as page placement depends on them.
Calls return 0 or a negative errno. Addresses are virtual page numbers, and the caller chooses them
(MAP_FIXED). Left out: protection changes, mremap, huge pages, the memory that the kernel itself takes for
page tables.

Calls may raise NeedsExtent where an allocation can only be served by a pool; made again, they go on.
"""

from __future__ import annotations

import errno
from dataclasses import replace

import numpy as np

from privmem.nodeagent.host import huge_split, hugetlb_map, pagetables, pins
from privmem.nodeagent.host.fault import add_mapping, unmap_range
from privmem.nodeagent.host.filemap import release_all
from privmem.nodeagent.host.layout import (
    PG_EXCLUSIVE,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_FLAGS,
    PTE_PFN_SHIFT,
    PTE_PRESENT,
    PTE_PROTNONE,
    PTE_WRITABLE,
    PTE_ZERO,
)
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.migrate_calls import migrate_phases
from privmem.nodeagent.host.mm import VMA_ANON, VMA_OBJECT, Vma
from privmem.nodeagent.host.pagecache import DEVICE, HUGETLB, SHMEM, MemObject, OpenFile
from privmem.nodeagent.host.populate import until_ready
from privmem.nodeagent.host.swap_area import entry_of, swap_entries
from privmem.nodeagent.host.task import Task
from privmem.scheduler import cpuset
from privmem.scheduler.cpuset import Cpuset, MemsChange

_NOT_EXCLUSIVE = np.uint16(0xFFFF ^ PG_EXCLUSIVE)
_NOT_WRITABLE = np.uint32(0xFFFFFFFF ^ PTE_WRITABLE)


def mmap_anon(memory: Memory, task: Task, start: int, nr_pages: int, source: int = 0, index: int = 0) -> int:
    """MAP_PRIVATE | MAP_ANONYMOUS. `source`, `index`: what its pages hold (see `mm.Region`)."""
    error = _make_room(memory, task, start, nr_pages)
    if error:
        return error
    slot = memory.page_table.take(nr_pages, task.mm.mm_id, start, source, index)
    task.mm.insert(Vma(start, start + nr_pages, slot))
    return 0


def mmap_shared(memory: Memory, task: Task, start: int, nr_pages: int) -> int:
    """MAP_SHARED | MAP_ANONYMOUS: a new shared-memory object, mapped from its start (`shmem_zero_setup`)."""
    error = _make_room(memory, task, start, nr_pages)
    if error:
        return error
    holder = memory.page_cache.create_shmem("dev/zero", nr_pages, task.cpu)
    return mmap_object(memory, task, start, nr_pages, holder, private=False)


def mmap_object(
    memory: Memory, task: Task, start: int, nr_pages: int, holder: MemObject, private: bool, index: int = 0
) -> int:
    """MAP_SHARED or MAP_PRIVATE of pages [index, index + nr_pages) of an object, or of a file by the open
    file that those use who did not open it.
    """
    return _map_object(memory, task, Vma(start, start + nr_pages, 0, private=private, index=index), holder)


def mmap_file(
    memory: Memory, task: Task, start: int, nr_pages: int, file: OpenFile, private: bool, index: int = 0
) -> int:
    """`mmap_object` of an open file, whose readahead state the mapping's faults go by."""
    vma = Vma(start, start + nr_pages, 0, private=private, index=index, file_id=file.file_id)
    return _map_object(memory, task, vma, memory.page_cache.of(file.object_id))


def _map_object(memory: Memory, task: Task, vma: Vma, holder: MemObject) -> int:
    start, nr_pages = vma.start, vma.nr_pages
    if nr_pages <= 0 or hugetlb_map.cuts_a_page(memory, task, start, vma.end):
        return -errno.EINVAL
    file_id = vma.file_id or holder.file_id
    vma = replace(vma, kind=VMA_OBJECT, object_id=holder.object_id, file_id=file_id)
    # Before the room is made: what goes there may be the object's last other mapping.
    count_mapping(memory, vma, nr_pages)
    _make_room(memory, task, start, nr_pages)
    slot = memory.page_table.take(nr_pages, task.mm.mm_id, start, holder.source, vma.index)
    task.mm.insert(replace(vma, slot=slot))
    return 0


def count_mapping(memory: Memory, vma: Vma, nr_pages: int) -> None:
    """`get_file` and `i_mmap`: the object and the open file of a VMA have so many mapped pages more."""
    if vma.kind == VMA_OBJECT:
        memory.page_cache.of(vma.object_id).vma_pages += nr_pages
    if vma.file_id:
        memory.page_cache.open_files[vma.file_id].vma_pages += nr_pages


def _make_room(memory: Memory, task: Task, start: int, nr_pages: int) -> int:
    if nr_pages <= 0:
        return -errno.EINVAL
    return munmap(memory, task, start, nr_pages)


def munmap(memory: Memory, task: Task, start: int, nr_pages: int) -> int:
    """`do_munmap`: whatever was mapped there goes; holes do not matter."""
    if nr_pages <= 0:
        return -errno.EINVAL
    parts = task.mm.in_range(start, start + nr_pages)
    if not parts:
        return 0
    if hugetlb_map.cuts_a_page(memory, task, start, start + nr_pages):
        return -errno.EINVAL
    memory.lru_batches.drain(task.cpu)
    task.mm.replace_range(start, start + nr_pages, [])
    gather = task.gather()
    for part in parts:
        unmap_range(memory, part, task.cpu, gather)
        memory.locked_slots.remove(part.slot, part.nr_pages)
        memory.page_table.give_back(part.slot, part.nr_pages)
        if part.kind == VMA_OBJECT:
            _unmap_object(memory, task, part)
    task.finish(gather)
    return 0


def _unmap_object(memory: Memory, task: Task, part: Vma) -> None:
    holder = memory.page_cache.of(part.object_id)
    holder.vma_pages -= part.nr_pages
    if part.file_id:
        memory.page_cache.unmapped(memory.page_cache.open_files[part.file_id], part.nr_pages)
    if holder.kind == HUGETLB:
        hugetlb_map.unreserve(memory, task, part)
        if holder.vma_pages == 0:
            hugetlb_map.release(memory, holder)
    if holder.kind in (SHMEM, DEVICE) and holder.vma_pages == 0:
        release_all(memory, holder)


def touch(memory: Memory, task: Task, start: int, nr_pages: int, is_write: bool) -> int:
    """Access each page in order. 0, or the errno of the first fault that failed (-EFAULT stands for a
    signal).
    """
    end = start + nr_pages
    vpn = start
    for part in task.mm.in_range(start, end):
        if part.start != vpn:
            return -errno.EFAULT
        error = _touch_part(memory, task, part, is_write)
        if error:
            return error
        vpn = part.end
    return 0 if vpn == end else -errno.EFAULT


def _touch_part(memory: Memory, task: Task, part: Vma, is_write: bool) -> int:
    if not (part.writable or (part.readable and not is_write)):
        return -errno.EFAULT
    used = PTE_ACCESSED | (PTE_DIRTY if is_write else 0)
    wanted = np.uint32(PTE_PRESENT | (PTE_WRITABLE if is_write else 0))
    entries = memory.page_table.pte[part.slot : part.slot + part.nr_pages]
    unready = (entries & wanted != wanted) | (entries & np.uint32(PTE_PROTNONE) != 0)
    # Those that need no fault come first: the reclaim that a fault starts may move them.
    entries[~unready] |= np.uint32(used)
    for offset in np.flatnonzero(unready).tolist():
        slot = part.slot + offset
        error = until_ready(memory, task, part.start + offset, slot, is_write)
        if error:
            return error
        memory.page_table.pte[slot] |= np.uint32(used)
    return 0


def fork(memory: Memory, parent: Task, pid: int) -> Task:
    """`dup_mm` and `copy_process`: a child with the same policies, cpuset, CPU and memory; private pages
    become shared.

    Mappings of objects are not copied unless they hold private pages (`vma_needs_copy`): the child faults
    them in.
    """
    child = Task(pid, parent.cpu, parent.resolver)
    child.root, child.cpus_allowed = parent.root, parent.cpus_allowed
    child.policy, child.mems_allowed = parent.policy, parent.mems_allowed
    child.il_prev, child.il_weight = parent.il_prev, parent.il_weight
    child.oom_score_adj = parent.oom_score_adj
    memory.memcg.forked(parent.pid, pid)
    table = memory.page_table
    for number, vma in enumerate(parent.mm.vmas, 1):
        slot = table.take_copy(vma.slot, vma.nr_pages, child.mm.mm_id, vma.start)
        anon_vma = -number if vma.anon_vma else 0  # one of its own for each VMA (`anon_vma_fork`)
        child.mm.insert(
            replace(vma, slot=slot, locked=False, on_fault=False, anon_vma=anon_vma)
        )  # and no locks
        count_mapping(memory, vma, vma.nr_pages)
        if _needs_copy(memory, vma):
            _copy_entries(memory, vma, slot)
            pins.copy_at_fork(memory, child, vma, slot)
    return child


def _needs_copy(memory: Memory, vma: Vma) -> bool:
    if vma.kind == VMA_ANON:
        return True
    entries = memory.page_table.pte[vma.slot : vma.slot + vma.nr_pages]
    present = entries[entries & np.uint32(PTE_PRESENT) != 0] >> np.uint32(PTE_PFN_SHIFT)
    return len(swap_entries(entries)) > 0 or any(not memory.is_object_page(pfn) for pfn in present.tolist())


def _copy_entries(memory: Memory, vma: Vma, child_slot: int) -> None:
    """`copy_present_pte` for each page: both sides lose the right to write, the child's entry is old."""
    pte = memory.page_table.pte
    huge_split.copy_maps(memory, vma.slot, vma.nr_pages, child_slot)
    view = pte[vma.slot : vma.slot + vma.nr_pages]
    pte[child_slot : child_slot + vma.nr_pages][view == PTE_ZERO] = PTE_ZERO
    present = np.flatnonzero(view & np.uint32(PTE_PRESENT))
    if memory.swap.nr_pages:
        _copy_swap_entries(memory, vma, child_slot)
    if vma.private:
        memory.frames.flags[view[present] >> np.uint32(PTE_PFN_SHIFT)] &= _NOT_EXCLUSIVE
        view[present] &= _NOT_WRITABLE
    for offset in present.tolist():
        entry = int(view[offset])
        flags = entry & PTE_FLAGS & ~PTE_ACCESSED
        add_mapping(memory, child_slot + offset, entry >> PTE_PFN_SHIFT, flags)


def _copy_swap_entries(memory: Memory, vma: Vma, child_slot: int) -> None:
    """`copy_nonpresent_pte`: both have the page on swap from now on, none for itself."""
    pte = memory.page_table.pte
    for offset in swap_entries(pte[vma.slot : vma.slot + vma.nr_pages]).tolist():
        swap = int(pte[vma.slot + offset]) >> PTE_PFN_SHIFT
        memory.swap.duplicate(swap)
        pte[vma.slot + offset] = pte[child_slot + offset] = entry_of(swap, exclusive=False)


def exit_task(memory: Memory, task: Task) -> None:
    """`exit_mm`: all its mappings go, and the pins of its files."""
    pins.unpin_user_pages(memory, task)
    for vma in list(task.mm.vmas):
        munmap(memory, task, vma.start, vma.nr_pages)
    pagetables.release(memory, task)


def write_cpuset_mems(
    memory: Memory, tasks: list[Task], group: Cpuset, requested: int, parent_effective: int
) -> MemsChange:
    """Write `cpuset.mems` of the cgroup of `tasks`: policies are rebound, and pages move along (v2 always
    migrates).
    """
    if not tasks:
        raise ValueError("a cpuset without tasks has no pages to move: use scheduler.cpuset.write_mems")
    rules = tasks[0].resolver
    change = cpuset.write_mems(group, requested, parent_effective, rules.cpuset_nodes, populated=True)
    if change.error or not change.rebinds:
        return change
    apply_mems(memory, tasks, change)
    return change


def apply_mems(memory: Memory, tasks: list[Task], change: MemsChange) -> None:
    """`update_tasks_nodemask`: tasks of a cpuset take its new mems, and their pages follow, private ones
    apart.
    """
    rebind_tasks(tasks, change)
    moved = memory.resolver.cpuset_nodes.migrates
    old, new = change.old_effective & moved, change.cpuset.effective & moved
    for task in tasks:
        migrate_phases(memory, task, old, new, True, None)
    for task in tasks:  # not before all are done: the call that follows NeedsExtent goes over all of them
        task.migrating = None


def rebind_tasks(tasks: list[Task], change: MemsChange) -> None:
    """`cpuset_change_task_nodemask`, `mpol_rebind_mm`: tasks of a cpuset take its new mems."""
    for task in tasks:
        rules = task.resolver.policy_nodes
        task.policy = cpuset.rebind_task(task.policy, change, rules)
        task.mems_allowed = change.cpuset.effective
        task.mm.vmas = [
            replace(vma, policy=cpuset.rebind_vma(vma.policy, change, rules)) for vma in task.mm.vmas
        ]
