"""Mappings of hugetlb pages: reservations, faults from the pool, copies on write.

Models `hugetlb_reserve_pages`, `hugetlb_acct_memory`, `alloc_huge_page`, `hugetlb_no_page` and `hugetlb_wp`
(mm/hugetlb.c) of Linux 6.1, for anonymous MAP_HUGETLB mappings of 2 MiB pages, private and shared. All 512 frames
of a page are mapped and unmapped together. A fault goes by the VMA's policy, then the task's, to the pools of the
nodes of its list in their order; it gets SIGBUS where none has a page. Left out: hugetlbfs files that outlive
their mappings, shared policies, a parent that takes a page back from its child (the writer gets SIGBUS instead).
"""

from __future__ import annotations

import errno

import numpy as np

from privmem.nodeagent.host import hugetlb, literal
from privmem.nodeagent.host.costs import FAULT_NS, HUGE_CLEAR_NS, WP_FAULT_NS
from privmem.nodeagent.host.high_order import HPAGE_PAGES, Reservation
from privmem.nodeagent.host.hugetlb import pool_of, return_page, take_page
from privmem.nodeagent.host.layout import (
    PG_ALLOCATED,
    PG_HELD,
    PG_OBJECT,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_SHIFT,
    PTE_PRESENT,
    PTE_WRITABLE,
)
from privmem.nodeagent.host.memory import Memory, note_origin
from privmem.nodeagent.host.mm import VMA_OBJECT, Vma
from privmem.nodeagent.host.pagecache import HUGETLB, MemObject
from privmem.nodeagent.host.task import Task
from privmem.scheduler import nodemask
from privmem.scheduler.abi import Mpol, Reason
from privmem.scheduler.zonelist import AllocRequest

#: What a fault that ends in SIGBUS answers (`fault.FAULT_SIGBUS`).
FAULT_SIGBUS = -errno.ENXIO


def reserve(memory: Memory, task: Task, nr_pages: int) -> int:
    """`hugetlb_acct_memory`: whether the pool can promise so many huge pages; 0 or -ENOMEM.

    The task must also be able to use as many free ones: its cpuset's, and those of a bind (`allowed_mems_nr`).
    """
    pool = pool_of(memory)
    if pool.reserved + nr_pages > pool.total_free:
        return -errno.ENOMEM
    nodes = task.reach
    if task.policy is not None and task.policy.mode == Mpol.BIND:
        nodes &= task.policy.nodes
    if nr_pages > sum(len(pool.free.get(nid, ())) for nid in nodemask.nodes(nodes)):
        return -errno.ENOMEM
    pool.reserved += nr_pages
    return 0


def create(
    memory: Memory, task: Task, nr_pages: int, private: bool, noreserve: bool = False
) -> MemObject | int:
    """`hugetlb_file_setup`: the object behind an anonymous mapping of `nr_pages` pages, or a negative errno."""
    if nr_pages <= 0 or nr_pages % HPAGE_PAGES:
        return -errno.EINVAL
    huge = nr_pages // HPAGE_PAGES
    if not noreserve:
        error = reserve(memory, task, huge)
        if error:
            return error
    holder = memory.page_cache.create_hugetlb("anon_hugepage", nr_pages)
    if not noreserve:
        mm_id = task.mm.mm_id if private else -1
        memory.high_order.reservations.append(Reservation(holder.object_id, mm_id, list(range(huge))))
    return holder


def mmap_hugetlb(
    memory: Memory, task: Task, start: int, nr_pages: int, private: bool, noreserve: bool = False
) -> int:
    """MAP_ANONYMOUS | MAP_HUGETLB at page `start`: 0, -EINVAL off the borders of huge pages, -ENOMEM when the pool
    cannot promise the pages.
    """
    from privmem.nodeagent.host import syscalls  # both need each other, as in the kernel

    if start % HPAGE_PAGES:
        return -errno.EINVAL
    holder = create(memory, task, nr_pages, private, noreserve)
    if isinstance(holder, int):
        return holder
    return syscalls.mmap_object(memory, task, start, nr_pages, holder, private)


def is_hugetlb(memory: Memory, vma: Vma) -> bool:
    """`is_vm_hugetlb_page`."""
    return vma.kind == VMA_OBJECT and memory.page_cache.of(vma.object_id).kind == HUGETLB


def cuts_a_page(memory: Memory, task: Task, start: int, end: int) -> bool:
    """`hugetlb_vm_op_split`: whether a border of the range would cut a huge page of a mapping; -EINVAL then."""
    for border in (start, end):
        vma = task.mm.find(border)
        if vma is not None and (border - vma.start) % HPAGE_PAGES and is_hugetlb(memory, vma):
            return True
    return False


# -- faults


def fault(memory: Memory, task: Task, vma: Vma, vpn: int, is_write: bool) -> int:
    """`hugetlb_no_page`. The ns it took, or FAULT_SIGBUS."""
    holder = memory.page_cache.of(vma.object_id)
    base = vpn - (vpn - vma.start) % HPAGE_PAGES
    index = vma.index + base - vma.start
    slot = vma.slot_of(base)
    if not vma.private and index in holder.pages:
        head = holder.pages[index]
    else:
        head = _alloc(memory, task, vma, index // HPAGE_PAGES)
        if head < 0:
            return FAULT_SIGBUS
        if not vma.private:
            _enter(memory, holder, head, index)
    writable = vma.writable and (is_write or not vma.private)
    _map(memory, slot, head, PTE_PRESENT | PTE_ACCESSED | (PTE_WRITABLE if writable else 0))
    if is_write and memory.page_table.pte[slot] & np.uint32(PTE_WRITABLE):
        memory.page_table.pte[vma.slot_of(vpn)] |= np.uint32(PTE_DIRTY)
    return FAULT_NS + HUGE_CLEAR_NS


def write_fault(memory: Memory, task: Task, vma: Vma, vpn: int) -> int:
    """`hugetlb_wp`: the only user of a page goes on writing it; others get a copy. The ns, or FAULT_SIGBUS."""
    base = vpn - (vpn - vma.start) % HPAGE_PAGES
    slot = vma.slot_of(base)
    span = slice(slot, slot + HPAGE_PAGES)
    table, frames = memory.page_table, memory.frames
    head = int(table.pte[slot]) >> PTE_PFN_SHIFT
    if not vma.private or (memory.mapped_once(head) and not memory.is_object_page(head)):
        table.pte[span] |= np.uint32(PTE_WRITABLE)
        table.pte[vma.slot_of(vpn)] |= np.uint32(PTE_DIRTY | PTE_ACCESSED)
        return WP_FAULT_NS
    new = _alloc(memory, task, vma, (vma.index + base - vma.start) // HPAGE_PAGES)
    if new < 0:
        return FAULT_SIGBUS
    frames.version[new : new + HPAGE_PAGES] = frames.version[head : head + HPAGE_PAGES]
    for offset in range(HPAGE_PAGES):
        literal.copied(memory, head + offset, new + offset)
    unmap(memory, vma.cut(base, base + HPAGE_PAGES))
    _map(memory, slot, new, PTE_PRESENT | PTE_ACCESSED | PTE_WRITABLE)
    table.pte[vma.slot_of(vpn)] |= np.uint32(PTE_DIRTY)
    memory.vmstat.add("pgcow", HPAGE_PAGES)
    return FAULT_NS + HUGE_CLEAR_NS


def _alloc(memory: Memory, task: Task, vma: Vma, huge_index: int) -> int:
    """`alloc_huge_page`: a page of the pool under the policy, on the mapping's reservation if it has one."""
    pool = pool_of(memory)
    promised = _reservation(memory, vma.object_id, task.mm.mm_id, huge_index)
    if promised is None and pool.total_free <= pool.reserved:
        return -errno.ENOMEM
    context = task.context_of(*policy_request(task, vma, huge_index))
    head = take_page(pool, context.zones)
    if head < 0 and context.retry_zones:
        head = take_page(pool, context.retry_zones)
    if head < 0:
        return head
    if promised is not None:
        promised.remove(huge_index)
        pool.reserved -= 1
    frames = memory.frames
    frames.version[head : head + HPAGE_PAGES] = 0
    literal.released(memory, np.arange(head, head + HPAGE_PAGES))
    for pfn in range(head, head + HPAGE_PAGES):
        note_origin(memory, pfn, Reason.HUGETLB, task.pid)
    return head


def policy_request(task: Task, vma: Vma, huge_index: int) -> tuple[AllocRequest, bool]:
    """`huge_node`: what is asked for under the policy of a mapping, and whether it is a turn of interleaving, which
    goes by the number of the huge page in its object.
    """
    return task.policy_request(vma.policy or task.policy, huge_index)


def _reservation(memory: Memory, object_id: int, mm_id: int, huge_index: int) -> list[int] | None:
    """The reserved numbers of the object that this address space may use, if this one is among them."""
    for r in memory.high_order.reservations:
        if r.object_id == object_id and r.mm_id in (-1, mm_id) and huge_index in r.indices:
            return r.indices
    return None


def _enter(memory: Memory, holder: MemObject, head: int, index: int) -> None:
    """`hugetlb_add_to_page_cache`."""
    frames = memory.frames
    frames.flags[head : head + HPAGE_PAGES] |= np.uint16(PG_OBJECT)
    frames.object_id[head : head + HPAGE_PAGES] = holder.object_id
    frames.object_index[head : head + HPAGE_PAGES] = np.arange(index, index + HPAGE_PAGES)
    for offset in range(HPAGE_PAGES):
        holder.pages[index + offset] = head + offset


def _map(memory: Memory, slot: int, head: int, flags: int) -> None:
    table, frames = memory.page_table, memory.frames
    if memory.nodes[frames.nid_of(head)].fenced:
        flags &= ~PTE_WRITABLE
    pfns = np.arange(head, head + HPAGE_PAGES, dtype=np.uint32)
    span = slice(slot, slot + HPAGE_PAGES)
    table.pte[span] = pfns << np.uint32(PTE_PFN_SHIFT) | np.uint32(flags)
    table.rmap_next[span] = frames.rmap[head : head + HPAGE_PAGES]
    frames.rmap[head : head + HPAGE_PAGES] = np.arange(span.start, span.stop)


# -- the end of pages


def unmap(memory: Memory, part: Vma) -> None:
    """`__unmap_hugepage_range` of whole huge pages: those of nobody else go back to the pool."""
    from privmem.nodeagent.host.fault import remove_mapping  # both need each other, as in the kernel

    for slot in range(part.slot, part.slot + part.nr_pages, HPAGE_PAGES):
        if not memory.page_table.pte[slot] & np.uint32(PTE_PRESENT):
            continue
        head = int(memory.page_table.pte[slot]) >> PTE_PFN_SHIFT
        for offset in range(HPAGE_PAGES):
            remove_mapping(memory, slot + offset)
        if int(memory.frames.rmap[head]) == 0 and not memory.is_object_page(head):
            return_page(memory, pool_of(memory), head)


def unreserve(memory: Memory, task: Task, part: Vma) -> None:
    """`hugetlb_vm_op_close`: what a private mapping was promised for this part and never took."""
    first, last = part.index // HPAGE_PAGES, (part.index + part.nr_pages) // HPAGE_PAGES
    for r in memory.high_order.reservations:
        if r.object_id == part.object_id and r.mm_id == task.mm.mm_id:
            kept = [i for i in r.indices if not first <= i < last]
            gone = len(r.indices) - len(kept)
            r.indices[:] = kept
            hugetlb.unreserve(memory, pool_of(memory), gone)


def release(memory: Memory, holder: MemObject) -> None:
    """`remove_inode_hugepages`: the last mapping of the object is gone, with it its pages and promises."""
    for index in sorted(i for i in holder.pages if i % HPAGE_PAGES == 0):
        head = holder.pages[index]
        memory.frames.flags[head : head + HPAGE_PAGES] &= np.uint16(0xFFFF ^ PG_OBJECT)
        return_page(memory, pool_of(memory), head)
    holder.pages.clear()
    high_order = memory.high_order
    gone = sum(len(r.indices) for r in high_order.reservations if r.object_id == holder.object_id)
    high_order.reservations = [r for r in high_order.reservations if r.object_id != holder.object_id]
    hugetlb.unreserve(memory, pool_of(memory), gone)
    memory.page_cache.forget(holder.object_id)


def lose_page(memory: Memory, head: int) -> None:
    """A page in use had a hardware error: its object forgets it, and its pool counts one page less."""
    frames = memory.frames
    if memory.is_object_page(head):
        holder = memory.page_cache.of(int(frames.object_id[head]))
        index = int(frames.object_index[head])
        for offset in range(HPAGE_PAGES):
            del holder.pages[index + offset]
    frames.flags[head : head + HPAGE_PAGES] = PG_ALLOCATED | PG_HELD
    pool = pool_of(memory)
    pool.add(pool.nr, frames.nid_of(head), -1)


def unpinned(memory: Memory, pfn: int) -> None:
    """The last pin of a frame of a pool's page is gone: the page goes back if nobody else has it."""
    head = pfn - pfn % HPAGE_PAGES
    pool = pool_of(memory)
    free = pool.free.get(memory.frames.nid_of(head), [])
    gone = head in free or head in memory.high_order.poisoned
    if not gone and not int(memory.frames.rmap[head]) and not memory.is_object_page(head):
        return_page(memory, pool, head)
