"""Pages of objects: faults on files and shared memory, reads through the page cache, dropping it.

Models `do_read_fault`, `do_fault_around`, `do_cow_fault`, `do_shared_fault` (mm/memory.c), `filemap_fault`,
`filemap_read`, `filemap_alloc_folio`, `shmem_fault` and `drop_caches` of Linux 6.1, for order-0 folios. Whose
policy places a page: the page cache goes by the *task* that reads, even for a mapping with a policy of its
own (but see `places_by_mapping`); shared memory by the object's shared policy, then the task's; a private
copy by the VMA's. Readahead and fault-around are as `Sysctl` says. Left out: swap of shared memory.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from privmem.nodeagent.host import hugetlb_map, literal, readahead, swap, swap_cache
from privmem.nodeagent.host.accessed import mark_accessed
from privmem.nodeagent.host.costs import FAULT_NS, FILE_READ_NS
from privmem.nodeagent.host.drivers.owner import owner_context
from privmem.nodeagent.host.fault import FAULT_SIGBUS, add_mapping, map_page
from privmem.nodeagent.host.layout import (
    PG_ACTIVE,
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
from privmem.nodeagent.host.page_alloc import (
    AllocContext,
    alloc_beside,
    alloc_page,
    free_page,
    free_unused_page,
)
from privmem.nodeagent.host.pagecache import DEVICE, FILE, HUGETLB, SHMEM, MemObject, OpenFile
from privmem.nodeagent.host.readahead import ReadaheadControl
from privmem.nodeagent.host.task import Task
from privmem.scheduler import nodemask
from privmem.scheduler.abi import Reason
from privmem.scheduler.isolation import Service
from privmem.scheduler.mempolicy import MPOL_F_PRIVATE, Mempolicy
from privmem.scheduler.zonelist import AllocRequest

#: Pages that one page of the page table maps.
PTRS_PER_PTE = 512


def object_fault(memory: Memory, task: Task, vma: Vma, vpn: int, is_write: bool) -> int:
    """A fault where no page is mapped, in a mapping of an object. The ns it took, or a negative errno.

    May raise NeedsExtent; a page that came into the cache before stays there, so that the fault can be made
    again.
    """
    holder = memory.page_cache.of(vma.object_id)
    if holder.kind == HUGETLB:
        return hugetlb_map.fault(memory, task, vma, vpn, is_write)
    index = vma.offset_of(vpn)
    if index >= holder.nr_pages:
        return FAULT_SIGBUS
    if not is_write and _map_around(memory, vma, vpn, holder):
        return FAULT_NS
    if holder.pages.get(index) in memory.high_order.poisoned:
        return FAULT_SIGBUS
    again = _read_ahead(memory, task, vma, vpn, holder) if holder.kind == FILE else False
    pfn = holder.pages[index] if index in holder.pages else fill(memory, task, holder, index, vma)
    if pfn < 0:
        return pfn
    if again:
        # The fault dropped its locks for the disk and is made anew, which counts as a hard one.
        task.maj_flt += 1
        if not is_write and _map_around(memory, vma, vpn, holder):
            return FAULT_NS
    if is_write and vma.private:
        own = alloc_beside(memory, task.context_of(*vma_request(memory, task, vma, vpn)), pfn)
        if own < 0:
            return own
        if index not in holder.pages:  # the allocation reclaimed it: fault again
            free_unused_page(memory, own)
            return FAULT_NS
        pfn = holder.pages[index]  # not what it was before the allocation, if that demoted it
        memory.frames.version[own] = memory.frames.version[pfn]
        literal.copied(memory, pfn, own)
        map_page(memory, vma.slot_of(vpn), own, writable=True, dirty=True)
        memory.lru_batches.add(task.cpu, own)
        return FAULT_NS
    add_mapping(memory, vma.slot_of(vpn), pfn, _entry_flags(memory, vma, holder, pfn, is_write))
    return FAULT_NS


def _read_ahead(memory: Memory, task: Task, vma: Vma, vpn: int, holder: MemObject) -> bool:
    """The part of `filemap_fault` that is about the disk: what it reads for a page that is not cached, or
    ahead of one that is. Whether the fault waited, and is made again.
    """
    index = vma.offset_of(vpn)
    file = memory.page_cache.open_files[vma.file_id]

    def bring(at: int) -> int:
        return fill(memory, task, holder, at, vma)

    linux = memory.knobs.linux
    ractl = ReadaheadControl(holder, file, bring, linux)
    if index in holder.pages:
        return readahead.mmap_hit(ractl, index, random=vma.random) and not linux.file_faults_by_vma
    readahead.mmap_miss(ractl, index, random=vma.random, sequential=vma.sequential)
    if index not in holder.pages and bring(index) < 0:
        return False
    memory.vmstat.add("pgmajfault")
    memory.charge_ns += FILE_READ_NS
    return True


def _map_around(memory: Memory, vma: Vma, vpn: int, holder: MemObject) -> bool:
    """`do_fault_around`, `filemap_map_pages`: map what is cached of the aligned pages around a read fault,
    within the VMA and one page of the page table; not a page with the readahead mark. Whether `vpn` is mapped
    now.
    """
    nr_around = memory.knobs.fault_around_pages
    if nr_around <= 1 or holder.kind not in (FILE, SHMEM):
        return False
    start = max(vpn - vpn % nr_around, vma.start)
    end = min(start + nr_around, vma.end, start - start % PTRS_PER_PTE + PTRS_PER_PTE)
    pte = memory.page_table.pte
    for at in range(start, end):
        index = vma.offset_of(at)
        pfn = holder.pages.get(index)
        if pfn is None or index in holder.ahead or index >= holder.nr_pages:
            continue
        if pfn in memory.high_order.poisoned:
            continue
        if vma.file_id:
            file = memory.page_cache.open_files[vma.file_id]
            file.mmap_miss = max(0, file.mmap_miss - 1)
        if not pte[vma.slot_of(at)]:
            add_mapping(memory, vma.slot_of(at), pfn, _entry_flags(memory, vma, holder, pfn, False))
    return bool(pte[vma.slot_of(vpn)])


def _entry_flags(memory: Memory, vma: Vma, holder: MemObject, pfn: int, is_write: bool) -> int:
    """`do_set_pte`. A file must hear of the first write to a page (page_mkwrite); shared memory need not."""
    flags = PTE_PRESENT | PTE_ACCESSED
    writable = vma.writable and not vma.private and (is_write or holder.kind != FILE)
    if writable and not memory.nodes[memory.frames.nid_of(pfn)].fenced:
        flags |= PTE_WRITABLE | (PTE_DIRTY if is_write else 0)
    return flags


def fill(memory: Memory, task: Task, holder: MemObject, index: int, vma: Vma | None = None) -> int:
    """`filemap_add_folio`, `shmem_alloc_and_acct_folio`: bring page `index` into the cache, for a fault in
    `vma` or for nobody's. Its frame, or -ENOMEM.
    """
    if index in holder.swapped:
        return swap.shmem_swapin(memory, task, holder, index)
    by_mapping = holder.kind == FILE and vma is not None and places_by_mapping(memory, vma)
    if holder.kind == DEVICE:
        context = owner_context(memory, holder.nid)
    elif holder.kind == SHMEM:
        context = _shmem_context(task, holder, index)
    elif by_mapping and vma is not None:
        vpn = vma.start + index - vma.index
        request, interleave = vma_request(memory, task, vma, vpn)
        context = task.context_of(replace(request, reason=Reason.PAGECACHE), interleave)
    else:
        context = _cache_context(task)
    pfn = alloc_page(memory, context)
    if pfn < 0:
        return FAULT_SIGBUS if holder.kind == DEVICE else pfn
    memory.frames.flags[pfn] |= np.uint16(PG_OBJECT | (PG_FILE if holder.kind == FILE else 0))
    memory.frames.object_id[pfn] = holder.object_id
    memory.frames.object_index[pfn] = index
    holder.pages[index] = pfn
    if index in holder.on_disk:
        memory.frames.version[pfn] = holder.on_disk[index]
    literal.read_from_disk(memory, holder.object_id, index, pfn)
    if memory.story is not None:
        memory.story.cached(holder, index, pfn, by_mapping)
    memory.lru_add(pfn)
    node = memory.nodes[memory.frames.nid_of(pfn)]
    if node.spec.stores:
        store_content(memory, node, np.array([pfn], dtype=np.int32))
    memory.lru_batches.add(task.cpu, pfn)
    if index in holder.shadows:
        _refault(memory, task, holder, index, pfn)
    return pfn


def _refault(memory: Memory, task: Task, holder: MemObject, index: int, pfn: int) -> None:
    """`workingset_refault`: a page that reclaim dropped is back; on the active list, if it would not have been
    dropped had the active list been shorter.
    """
    nid, age = holder.shadows.pop(index)
    memory.vmstat.add("workingset_refault_file")
    if nid not in memory.nodes:
        return
    inactive_anon, active_anon, _, active_file = memory.lru_sizes(nid)
    workingset = active_file + (inactive_anon + active_anon if memory.swap.free_pages else 0)
    if int(memory.nonresident_age[nid]) - age > workingset:
        return
    memory.lru_del(pfn)
    memory.frames.flags[pfn] |= np.uint16(PG_ACTIVE)
    memory.lru_add(pfn)
    memory.vmstat.add("workingset_activate_file")


def places_by_mapping(memory: Memory, vma: Vma) -> bool:
    """Whether what a fault brings into the page cache goes by the policy of the mapping: where it names
    private nodes under a design that has it so. Linux itself always goes by the task's
    (`filemap_alloc_folio`).
    """
    if vma.policy is None or not vma.policy.flags & MPOL_F_PRIVATE:
        return False
    named = nodemask.nodes(vma.policy.nodes & memory.topology.private)
    return any(memory.resolver.allows(Service.MAPPED_FILE, nid) for nid in named)


def read_pages(memory: Memory, task: Task, holder: MemObject, start: int, nr_pages: int) -> int:
    """`pread` of one page after the other, through the cache. How many pages were read, or -ENOMEM when the
    first one fails.
    """
    file = memory.page_cache.opened(holder)
    for done in range(nr_pages):
        got = read_cached(memory, task, file, start + done, 1)
        if got <= 0:
            return done or got
    return nr_pages


def read_cached(memory: Memory, task: Task, file: OpenFile, start: int, nr_pages: int) -> int:
    """`filemap_read`: one read of `nr_pages`. How many pages were read, or -ENOMEM when the first one fails."""
    holder = memory.page_cache.of(file.object_id)
    end, index, next_read = start + nr_pages, start, file.next_read
    while index < min(end, holder.nr_pages):
        batch = _get_pages(memory, task, holder, file, index, end)
        if batch < 0:
            file.next_read = next_read
            return index - start or batch
        for at in range(index, index + batch):
            if at in holder.pages and (at > index or at != next_read - 1):
                mark_accessed(memory, task.cpu, holder.pages[at])
            next_read = at + 1
        index += batch
        if not memory.knobs.linux.reads_count_whole:
            file.next_read = next_read
    file.next_read = next_read
    return index - start


def _get_pages(memory: Memory, task: Task, holder: MemObject, file: OpenFile, index: int, end: int) -> int:
    """`filemap_get_pages`: how many cached pages follow from `index` on, at least one, or -ENOMEM."""

    def bring(at: int) -> int:
        return fill(memory, task, holder, at)

    ractl = ReadaheadControl(holder, file, bring, memory.knobs.linux)
    batch = _cached_run(memory, holder, index, end)
    if not batch:
        readahead.sync_readahead(ractl, index, end - index)
        batch = _cached_run(memory, holder, index, end)
    if not batch:
        pfn = bring(index)
        return pfn if pfn < 0 else 1
    last = index + batch - 1
    if last in holder.ahead:
        readahead.async_readahead(ractl, last, end - last)
    return batch


def _cached_run(memory: Memory, holder: MemObject, index: int, end: int) -> int:
    """`filemap_get_read_batch`: a batch ends after a page with the readahead mark, too."""
    most = min(end - index, memory.knobs.linux.folio_batch_pages)
    for nr in range(most):
        if index + nr not in holder.pages:
            return nr
        if index + nr in holder.ahead:
            return nr + 1
    return most


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
    """`vma_alloc_folio`: the request for a page at `vpn`, and whether it is a turn of interleaving; turns
    begin at `first_turn`.
    """
    turn = first_turn + vma.offset_of(vpn)
    return task.policy_request(vma_policy(memory, vma, vpn) or task.policy, turn)


def sync(memory: Memory) -> None:
    """`sync(2)`: written pages of files become clean."""
    for holder in memory.page_cache.files():
        write_back(memory, holder, 0, holder.nr_pages)


def write_back(memory: Memory, holder: MemObject, start: int, end: int) -> None:
    """`filemap_fdatawrite_range` of [start, end): written pages become clean, and read-only where they are
    mapped (`folio_mkclean`).
    """
    pte, rmap_next = memory.page_table.pte, memory.page_table.rmap_next
    for index in sorted(i for i in holder.pages if start <= i < end):
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
        dropped += invalidate(memory, holder, 0, holder.nr_pages)
    return dropped


def invalidate(memory: Memory, holder: MemObject, start: int, end: int) -> int:
    """`invalidate_mapping_pages`: pages of [start, end) that are clean, and nobody's, go. How many went."""
    dropped = 0
    for index in sorted(i for i in holder.pages if start <= i < end):
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
    holder.ahead.pop(index, None)
    version = int(memory.frames.version[pfn])
    if version and holder.kind == FILE:
        holder.on_disk[index] = version
    if memory.story is not None:
        memory.story.dropped(holder, index, pfn)
    memory.lru_del(pfn)
    free_page(memory, pfn)


def release_all(memory: Memory, holder: MemObject) -> None:
    """`shmem_evict_inode`: the last mapping of a shared-memory object is gone."""
    for index in sorted(holder.pages):
        release(memory, holder, index)
    for index in sorted(holder.swapped):
        swap_cache.free_swap_and_cache(memory, holder.swapped.pop(index))
    memory.page_cache.forget(holder.object_id)
