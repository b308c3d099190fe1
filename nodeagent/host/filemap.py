"""Pages of objects: faults on files and shared memory, reads through the page cache, dropping it.

Models `do_read_fault`, `do_cow_fault`, `do_shared_fault` (mm/memory.c), `filemap_fault`,
`filemap_alloc_folio`, `shmem_fault` and `drop_caches` of Linux 6.1, for order-0 folios. Whose policy places
a page: the page cache goes by the *task* that reads, even for a mapping with a policy of its own; shared
memory by the object's shared policy, then the task's; a private copy by the VMA's. Left out: readahead and
fault-around (one access brings one page), write(2), swap of shared memory.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from privmem.nodeagent.host import hugetlb_map
from privmem.nodeagent.host.accessed import mark_accessed
from privmem.nodeagent.host.costs import FAULT_NS
from privmem.nodeagent.host.drivers.owner import owner_context
from privmem.nodeagent.host.fault import FAULT_SIGBUS, add_mapping, map_page
from privmem.nodeagent.host.layout import (
    PG_DIRTY,
    PG_FILE,
    PG_OBJECT,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PRESENT,
    PTE_WRITABLE,
)
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.migrate import store_content
from privmem.nodeagent.host.mm import VMA_ANON, Vma
from privmem.nodeagent.host.page_alloc import AllocContext, alloc_page, free_page
from privmem.nodeagent.host.pagecache import DEVICE, FILE, HUGETLB, SHMEM, MemObject
from privmem.nodeagent.host.task import Task
from privmem.scheduler.abi import Reason
from privmem.scheduler.mempolicy import Mempolicy
from privmem.scheduler.zonelist import AllocRequest


def object_fault(memory: Memory, task: Task, vma: Vma, vpn: int, is_write: bool) -> int:
    """A fault where no page is mapped, in a mapping of an object. The ns it took, or a negative errno.

    May raise NeedsExtent; a page that came into the cache before stays there, so that the fault can be made
    again.
    """
    holder = memory.page_cache.of(vma.object_id)
    if holder.kind == HUGETLB:
        return hugetlb_map.fault(memory, task, vma, vpn, is_write)
    index = vma.index + vpn - vma.start
    if index >= holder.nr_pages:
        return FAULT_SIGBUS
    cached = index in holder.pages
    if cached and holder.pages[index] in memory.high_order.poisoned:
        return FAULT_SIGBUS
    pfn = holder.pages[index] if cached else fill(memory, task, holder, index)
    if pfn < 0:
        return pfn
    if not cached and holder.kind == FILE:
        memory.vmstat.add("pgmajfault")
    slot = vma.slot_of(vpn)
    if is_write and vma.private:
        own = alloc_page(memory, task.context_of(*vma_request(memory, task, vma, vpn)))
        if own < 0:
            return own
        pfn = holder.pages[index]  # not what it was before the allocation, if that reclaimed
        memory.frames.version[own] = memory.frames.version[pfn]
        map_page(memory, slot, own, writable=True, dirty=True)
        memory.lru_batches.add(task.cpu, own)
        return FAULT_NS
    flags = PTE_PRESENT | PTE_ACCESSED
    # A file must hear of the first write to a page (page_mkwrite); shared memory need not.
    writable = vma.writable and not vma.private and (is_write or holder.kind != FILE)
    if writable and not memory.nodes[memory.frames.nid_of(pfn)].fenced:
        flags |= PTE_WRITABLE | (PTE_DIRTY if is_write else 0)
    add_mapping(memory, slot, pfn, flags)
    return FAULT_NS


def fill(memory: Memory, task: Task, holder: MemObject, index: int) -> int:
    """`filemap_add_folio`, `shmem_alloc_and_acct_folio`: bring page `index` into the cache. Its frame, or
    -ENOMEM.
    """
    if holder.kind == DEVICE:
        context = owner_context(memory, holder.nid)
    else:
        context = _shmem_context(task, holder, index) if holder.kind == SHMEM else _cache_context(task)
    pfn = alloc_page(memory, context)
    if pfn < 0:
        return FAULT_SIGBUS if holder.kind == DEVICE else pfn
    memory.frames.flags[pfn] |= np.uint16(PG_OBJECT | (PG_FILE if holder.kind == FILE else 0))
    memory.frames.object_id[pfn] = holder.object_id
    memory.frames.object_index[pfn] = index
    holder.pages[index] = pfn
    memory.lru_add(pfn)
    node = memory.nodes[memory.frames.nid_of(pfn)]
    if node.spec.stores:
        store_content(memory, node, np.array([pfn], dtype=np.int32))
    memory.lru_batches.add(task.cpu, pfn)
    return pfn


def read_pages(memory: Memory, task: Task, holder: MemObject, start: int, nr_pages: int) -> int:
    """`pread`, page by page, through the cache. How many pages were read, or -ENOMEM when the first one
    fails.
    """
    for done in range(nr_pages):
        index = start + done
        if index >= holder.nr_pages:
            return done
        if index not in holder.pages:
            pfn = fill(memory, task, holder, index)
            if pfn < 0:
                return done or pfn
        if index != holder.last_read:
            mark_accessed(memory, task.cpu, holder.pages[index])
        holder.last_read = index
    return nr_pages


def _shmem_context(task: Task, holder: MemObject, index: int) -> AllocContext:
    """`shmem_alloc_folio`: the object's policy for the page, else the task's; interleaving begins at the
    inode number.
    """
    policy = holder.policy_at(index) or task.policy
    return task.context_of(*task.policy_request(policy, index + holder.ino))


def _cache_context(task: Task) -> AllocContext:
    """`filemap_alloc_folio`: the task's policy; interleaving by the task's counter.

    The page cache belongs to nobody, so a policy that names private nodes is cut to general ones here (the
    feature series leaves the case open; see docs/deviations.md).
    """
    request, interleave = task.policy_request(task.policy, None)
    mask = request.nodemask
    if mask is not None:
        mask = mask & ~task.resolver.policy_nodes.bind_only or None
    return task.context_of(replace(request, reason=Reason.PAGECACHE, nodemask=mask), interleave)


def vma_policy(memory: Memory, vma: Vma, vpn: int) -> Mempolicy | None:
    """`__get_vma_policy`: the shared policy of shared memory, else the VMA's own."""
    if vma.kind != VMA_ANON:
        holder = memory.page_cache.of(vma.object_id)
        if holder.kind == SHMEM:
            return holder.policy_at(vma.index + vpn - vma.start)
    return vma.policy


def vma_request(
    memory: Memory, task: Task, vma: Vma, vpn: int, first_turn: int = 0
) -> tuple[AllocRequest, bool]:
    """`vma_alloc_folio`: the request for a page at `vpn`, and whether it is a turn of interleaving; turns begin
    at `first_turn`.
    """
    turn = first_turn + vma.offset_of(vpn)
    return task.policy_request(vma_policy(memory, vma, vpn) or task.policy, turn)


def sync(memory: Memory) -> None:
    """`sync(2)`: written pages of files become clean, and read-only where they are mapped
    (`folio_mkclean`).
    """
    pte, rmap_next = memory.page_table.pte, memory.page_table.rmap_next
    for holder in memory.page_cache.files():
        for index in sorted(holder.pages):
            pfn = holder.pages[index]
            slots = []
            slot = int(memory.frames.rmap[pfn])
            while slot:
                slots.append(slot)
                slot = int(rmap_next[slot])
            written = int(memory.frames.flags[pfn]) & PG_DIRTY
            if not written and not any(int(pte[s]) & PTE_DIRTY for s in slots):
                continue
            memory.frames.flags[pfn] &= np.uint16(0xFFFF ^ PG_DIRTY)
            for s in slots:
                pte[s] &= np.uint32(0xFFFFFFFF ^ (PTE_DIRTY | PTE_WRITABLE))
            memory.frames.version[pfn : pfn + 1] += np.uint16(1)  # an array wraps around, a scalar warns


def drop_caches(memory: Memory, cpu: int | None = None) -> int:
    """`echo 1 > /proc/sys/vm/drop_caches`: forget every page of a file that is clean and not mapped. How
    many went.

    On a given CPU only that one's batch is drained first; pages that the batch of another CPU holds stay
    (`mapping_evict_folio` counts their references). None: all have been drained, for a while has passed.
    """
    dropped = 0
    if cpu is None:
        memory.lru_batches.drain_all()
    else:
        memory.lru_batches.drain(cpu)
    for holder in memory.page_cache.files():
        for index in sorted(holder.pages):
            pfn = holder.pages[index]
            used = int(memory.frames.rmap[pfn]) != 0 or memory.lru_batches.holds(pfn)
            used |= pfn in memory.high_order.pins
            if not used and not int(memory.frames.flags[pfn]) & PG_DIRTY:
                release(memory, holder, index)
                dropped += 1
    return dropped


def release(memory: Memory, holder: MemObject, index: int) -> None:
    """Take an unmapped page out of the cache and free it (`filemap_remove_folio`)."""
    pfn = holder.pages.pop(index)
    memory.lru_del(pfn)
    free_page(memory, pfn)


def release_all(memory: Memory, holder: MemObject) -> None:
    """`shmem_evict_inode`: the last mapping of a shared-memory object is gone."""
    for index in sorted(holder.pages):
        release(memory, holder, index)
    memory.page_cache.forget(holder.object_id)
