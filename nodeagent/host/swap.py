"""Pages that come back from swap, and which others come with them.

Models `swapon`, `do_swap_page` (mm/memory.c), `shmem_swapin_folio` (mm/shmem.c), and the two kinds of readahead
of mm/swap_state.c, Linux 6.1: around the address for anonymous memory (`swap_vma_readahead`, as on an SSD),
around the slot for shared memory (`swap_cluster_readahead`). A page comes back where the policy of the faulting
address wants it, not where it was, and what is read ahead goes by the same policy. Left out: several areas,
swapoff, rotating disks, workingset refaults of anonymous pages.
"""

from __future__ import annotations

import errno
from dataclasses import replace

import numpy as np

from privmem.nodeagent.host import swap_cache
from privmem.nodeagent.host.costs import FAULT_NS
from privmem.nodeagent.host.fault import add_mapping, write_protect_fault
from privmem.nodeagent.host.layout import (
    PG_EXCLUSIVE,
    PG_OBJECT,
    PG_SWAPCACHE,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_SHIFT,
    PTE_PRESENT,
    PTE_SWP_EXCLUSIVE,
    PTE_WRITABLE,
)
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.migrate import store_content
from privmem.nodeagent.host.mm import Vma
from privmem.nodeagent.host.page_alloc import AllocContext, alloc_page
from privmem.nodeagent.host.pagecache import MemObject
from privmem.nodeagent.host.swap_area import SLOTS_MAX, is_swap_entry, swap_entries
from privmem.nodeagent.host.task import Task
from privmem.scheduler.abi import Reason
from privmem.scheduler.zonelist import AllocRequest

#: Pages that one page of the page table maps: readahead around an address stays within them.
_PTRS_PER_PTE = 512
#: `SWAP_RA_ORDER_CEILING`, and `SWAP_RA_HITS_MAX`.
_ORDER_CEILING, _HITS_MAX = 5, 63
#: What is known of a VMA in which nothing was read ahead so far: last fault, window, hits.
_NO_INFO = (0, 0, 4)


def swapon(memory: Memory, nr_pages: int, *, synchronous: bool = False, page_cluster: int = 0) -> int:
    """`swapon` of an empty area: 0, -EINVAL, or -EBUSY when there is one.

    `synchronous`: the device answers at once (brd, zram). `page_cluster`: `vm.page_cluster`; Linux has 3.
    """
    if not 0 < nr_pages <= SLOTS_MAX or page_cluster < 0:
        return -errno.EINVAL
    if memory.swap.nr_pages:
        return -errno.EBUSY
    memory.swap.on(nr_pages, synchronous, page_cluster)
    return 0


def swap_fault(memory: Memory, task: Task, vma: Vma, vpn: int, is_write: bool) -> int:
    """`do_swap_page`: the ns that it took, or -ENOMEM."""
    area = memory.swap
    entry = int(memory.page_table.pte[vma.slot_of(vpn)])
    swap, exclusive = entry >> PTE_PFN_SHIFT, bool(entry & PTE_SWP_EXCLUSIVE)
    pfn = area.cache.get(swap, -1)
    fresh = False
    if pfn >= 0:
        _note_hit(memory, vma, vpn, pfn)
    else:
        context = _anon_context(task, vma, vpn)
        if area.synchronous and area.count[swap] == 1:
            pfn = alloc_page(memory, context)
            fresh = exclusive = True
        else:
            pfn = _read_around(memory, task, vma, vpn, swap, context)
        if pfn < 0:
            return pfn
        if fresh:
            swap_cache.read_slot(memory, pfn, swap)
        _count_major(memory, task)
    if is_write and memory.lru_batches.added_on(pfn) is not None:
        memory.lru_batches.drain(task.cpu)
    area.free(swap)
    _try_to_free(memory, vma, pfn, is_write)
    return _map(memory, task, vma, vpn, pfn, is_write, exclusive, fresh)


def _count_major(memory: Memory, task: Task) -> None:
    memory.vmstat.add("pgmajfault")
    task.maj_flt += 1
    memory.charge_ns += swap_cache.read_wait_ns(memory)


def _references(memory: Memory, pfn: int) -> int:
    """References of a page beside the fault's own: mappings (no more than two matter), swap cache, a batch."""
    mappings = 0 if not int(memory.frames.rmap[pfn]) else 1 if memory.mapped_once(pfn) else 2
    cached = bool(memory.frames.flags[pfn] & np.uint16(PG_SWAPCACHE))
    return mappings + cached + memory.lru_batches.holds(pfn)


def _try_to_free(memory: Memory, vma: Vma, pfn: int, is_write: bool) -> None:
    """`should_try_to_free_swap`: a page that will be written needs no copy on swap, nor does a full area."""
    area = memory.swap
    if not memory.frames.flags[pfn] & np.uint16(PG_SWAPCACHE):
        return
    full = area.free_pages * 2 < area.nr_pages
    if full or vma.locked or (is_write and _references(memory, pfn) == 1):
        swap_cache.free_swap(memory, pfn)


def _map(
    memory: Memory, task: Task, vma: Vma, vpn: int, pfn: int, is_write: bool, exclusive: bool, fresh: bool
) -> int:
    """The end of `do_swap_page`: a page of one's own is mapped for writing if it is written, any other one
    read-only.
    """
    frames = memory.frames
    node = memory.nodes[frames.nid_of(pfn)]
    alone = exclusive or (not fresh and _references(memory, pfn) == 0)
    writes = is_write and alone and not node.fenced
    if alone:
        frames.flags[pfn] |= np.uint16(PG_EXCLUSIVE)
    flags = PTE_PRESENT | PTE_ACCESSED | (PTE_WRITABLE | PTE_DIRTY if writes else 0)
    add_mapping(memory, vma.slot_of(vpn), pfn, flags)
    if fresh:
        memory.lru_add(pfn)
        memory.lru_batches.add(task.cpu, pfn)
        if node.spec.stores:
            store_content(memory, node, np.array([pfn], dtype=np.int32))
    if not is_write or writes:
        return FAULT_NS
    took = write_protect_fault(memory, task, vma, vpn)
    return took if took < 0 else took + FAULT_NS


# -- whose policy


def _anon_context(task: Task, vma: Vma, vpn: int) -> AllocContext:
    """The policy of the faulting address, also for what is read ahead."""
    request, interleave = task.policy_request(vma.policy or task.policy, vma.offset_of(vpn))
    return _context(task, request, interleave)


def _context(task: Task, request: AllocRequest, interleave: bool) -> AllocContext:
    return task.context_of(replace(request, reason=Reason.SWAPIN), interleave)


# -- readahead


def window_pages(last: int, here: int, hits: int, most: int, last_window: int) -> int:
    """`__swapin_nr_pages`: how many pages to read, by how many of those read ahead were used."""
    if hits:
        pages = 4
        while pages < hits + 2:
            pages <<= 1
    else:
        pages = 2 if here in (last + 1, last - 1) else 1
    return max(min(pages, most), last_window // 2)


def _read_around(memory: Memory, task: Task, vma: Vma, vpn: int, swap: int, context: AllocContext) -> int:
    """`swap_vma_readahead`: the page of a fault, and those on swap at the addresses around it. Its frame."""
    area = memory.swap
    most = 1 << min(area.page_cluster, _ORDER_CEILING)
    if most > 1:
        last, last_window, hits = area.vma_info.get(vma.slot, _NO_INFO)
        window = window_pages(last, vpn, hits, most, last_window)
        area.vma_info[vma.slot] = (vpn, window, 0)
        if window > 1:
            _read_ahead(memory, task, vma, vpn, _window_at(vma, vpn, last, window), context)
    pfn, _ = swap_cache.read_to_cache(memory, context, swap, task.cpu)
    return pfn


def _window_at(vma: Vma, vpn: int, last: int, window: int) -> range:
    """`swap_ra_info`: ahead of faults that go up, behind those that go down, else around."""
    if vpn == last + 1:
        low, high = vpn, vpn + window
    elif vpn == last - 1:
        low, high = vpn - window + 1, vpn + 1
    else:
        low = vpn - (window - 1) // 2
        high = low + window
    table = vpn - vpn % _PTRS_PER_PTE
    return range(max(low, vma.start, table), min(high, vma.end, table + _PTRS_PER_PTE))


def _read_ahead(memory: Memory, task: Task, vma: Vma, vpn: int, around: range, context: AllocContext) -> None:
    for at in around:
        entry = int(memory.page_table.pte[vma.slot_of(at)])
        if is_swap_entry(entry):
            _read_one(memory, task, entry >> PTE_PFN_SHIFT, context, at != vpn)
    memory.lru_batches.drain(task.cpu)


def _read_one(memory: Memory, task: Task, swap: int, context: AllocContext, ahead: bool) -> None:
    pfn, new = swap_cache.read_to_cache(memory, context, swap, task.cpu)
    if new and ahead:
        memory.swap.ahead[pfn] = None
        memory.vmstat.add("swap_ra")


def _note_hit(memory: Memory, vma: Vma, vpn: int, pfn: int) -> None:
    """`swap_cache_get_folio`: a fault finds its page in the swap cache."""
    area = memory.swap
    ahead = pfn in area.ahead
    _, window, hits = area.vma_info.get(vma.slot, _NO_INFO)
    area.vma_info[vma.slot] = (vpn, window, min(hits + ahead, _HITS_MAX))
    if ahead:
        del area.ahead[pfn]
        memory.vmstat.add("swap_ra_hit")


def _read_cluster(memory: Memory, task: Task, swap: int, context: AllocContext) -> int:
    """`swap_cluster_readahead`: the page of a slot, and those of the aligned slots around it. Its frame."""
    area = memory.swap
    window = 1
    if area.page_cluster:
        last, last_window, hits = area.cluster_info
        window = window_pages(last, swap, hits, 1 << area.page_cluster, last_window)
        area.cluster_info = (last if hits else swap, window, 0)
    if window > 1:
        first = swap & ~(window - 1)
        for at in range(max(first, 1), min(first + window, area.nr_pages + 1)):
            if area.count[at]:
                _read_one(memory, task, at, context, at != swap)
        memory.lru_batches.drain(task.cpu)
    pfn, _ = swap_cache.read_to_cache(memory, context, swap, task.cpu)
    return pfn


# -- shared memory


def shmem_swapin(memory: Memory, task: Task, holder: MemObject, index: int) -> int:
    """`shmem_swapin_folio`: bring a page of shared memory back into its object. Its frame, or -ENOMEM."""
    area = memory.swap
    swap = holder.swapped[index]
    pfn = area.cache.get(swap, -1)
    if pfn >= 0:
        if pfn in area.ahead:
            last, window, hits = area.cluster_info
            area.cluster_info = (last, window, hits + 1)
            del area.ahead[pfn]
            memory.vmstat.add("swap_ra_hit")
    else:
        policy = holder.policy_at(index) or task.policy
        request, interleave = task.policy_request(policy, index + holder.ino)
        pfn = _read_cluster(memory, task, swap, _context(task, request, interleave))
        if pfn < 0:
            return pfn
        _count_major(memory, task)
    frames = memory.frames
    frames.flags[pfn] |= np.uint16(PG_OBJECT)
    frames.object_id[pfn], frames.object_index[pfn] = holder.object_id, index
    holder.pages[index] = pfn
    del holder.swapped[index]
    swap_cache.drop_from_cache(memory, pfn)
    area.free(swap)
    return pfn


# -- MADV_WILLNEED


def willneed_anon(memory: Memory, task: Task, part: Vma) -> None:
    """`swapin_walk_pmd_entry`: what is on swap of a part comes into the swap cache, by the task's policy."""
    entries = memory.page_table.pte[part.slot : part.slot + part.nr_pages]
    for at in swap_entries(entries).tolist():
        _read_for_task(memory, task, int(entries[at]) >> PTE_PFN_SHIFT)
    memory.lru_batches.drain(task.cpu)


def willneed_shmem(memory: Memory, task: Task, holder: MemObject, start: int, end: int) -> None:
    """`shmem_swapin_range` of pages [start, end) of an object."""
    for index in sorted(i for i in holder.swapped if start <= i < end):
        _read_for_task(memory, task, holder.swapped[index])
    memory.lru_batches.drain(task.cpu)


def _read_for_task(memory: Memory, task: Task, swap: int) -> None:
    if swap not in memory.swap.cache:
        request, interleave = task.policy_request(task.policy, None)
        _read_one(memory, task, swap, _context(task, request, interleave), False)
