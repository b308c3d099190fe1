"""Page faults of anonymous memory, and the way to the other kinds.

Models `handle_mm_fault` of Linux 6.1: `do_anonymous_page`, `do_wp_page`, `do_numa_page`. Faults on objects
(files, shared memory) are in filemap.py. A read of untouched anonymous memory maps the zero page, which has
no frame here, or gets a page of its own, as `Sysctl.zero_page` says.
"""

from __future__ import annotations

import errno

import numpy as np

from privmem.nodeagent.host import (
    huge_split,
    hugetlb_map,
    literal,
    mlocked,
    numa_balancing,
    pagetables,
    swap_cache,
    thp,
)
from privmem.nodeagent.host.accessed import mark_accessed
from privmem.nodeagent.host.costs import FAULT_NS, WP_FAULT_NS
from privmem.nodeagent.host.cram import fence
from privmem.nodeagent.host.drivers.owner import device_context
from privmem.nodeagent.host.layout import (
    PG_DIRTY,
    PG_EXCLUSIVE,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_SHIFT,
    PTE_PRESENT,
    PTE_PROTNONE,
    PTE_WRITABLE,
    PTE_ZERO,
)
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.migrate import store_content
from privmem.nodeagent.host.mm import VMA_ANON, Vma
from privmem.nodeagent.host.mmu_gather import MmuGather
from privmem.nodeagent.host.page_alloc import alloc_beside, alloc_page, free_page, free_unused_page
from privmem.nodeagent.host.swap_area import is_swap_entry, swap_entries
from privmem.nodeagent.host.task import Task

#: What a fault that ends in SIGBUS answers; -EFAULT stands for SIGSEGV, -ENOMEM for the OOM killer's turn.
FAULT_SIGBUS = -errno.ENXIO


def handle_fault(memory: Memory, task: Task, vpn: int, is_write: bool) -> int:
    """One fault of a task. Returns the ns that it took, or a negative errno: -EFAULT where nothing is mapped,
    -ENOMEM.

    May raise NeedsExtent, before the fault changed anything; the access is then simply made again.
    """
    vma = task.mm.find(vpn)
    if vma is None or not (vma.writable or (vma.readable and not is_write)):
        return -errno.EFAULT
    hard_before = task.maj_flt
    slot = vma.slot_of(vpn)
    entry = int(memory.page_table.pte[slot])
    if entry == PTE_ZERO and not is_write:
        return 0
    if not vma.anon_vma and vma.private and (is_write or not (vma.kind or memory.knobs.zero_page)):
        vma = task.mm.prepare_anon_vma(vma)
    if memory.story is not None:
        memory.story.fault(task, vma, vpn, is_write)
    if not entry & PTE_PRESENT:
        took = _not_present(memory, task, vma, vpn, is_write)
    elif entry & PTE_PROTNONE:
        took = numa_balancing.hint_fault(memory, task, vma, slot, memory.numa_balancing)
    elif is_write and not entry & PTE_WRITABLE:
        took = write_protect_fault(memory, task, vma, vpn)
    else:
        return 0
    if took >= 0:
        memory.vmstat.add("pgfault")
        task.min_flt += int(task.maj_flt == hard_before)
        took += memory.take_charge()
    if memory.story is not None:
        memory.story.fault_over(task, took)
    return took


def _not_present(memory: Memory, task: Task, vma: Vma, vpn: int, is_write: bool) -> int:
    if memory.account_pagetables and pagetables.ensure(memory, task, vpn) < 0:
        return -errno.ENOMEM
    if vma.slot_of(vpn) in memory.high_order.poison_slots:
        return FAULT_SIGBUS
    if is_swap_entry(int(memory.page_table.pte[vma.slot_of(vpn)])):
        from privmem.nodeagent.host import swap  # likewise

        return swap.swap_fault(memory, task, vma, vpn, is_write)
    if vma.kind != VMA_ANON:
        from privmem.nodeagent.host import filemap  # both need each other, as in the kernel

        return filemap.object_fault(memory, task, vma, vpn, is_write)
    took = thp.fault(memory, task, vma, vpn, is_write)
    if took:
        return took
    if memory.knobs.zero_page and not is_write and vma.device_nid < 0:
        memory.page_table.pte[vma.slot_of(vpn)] = np.uint32(PTE_ZERO)
        return FAULT_NS
    context = (
        task.alloc_context(vma, vpn)
        if vma.device_nid < 0
        else device_context(memory, vma.device_nid, task.pid)
    )
    pfn = alloc_page(memory, context)
    if pfn < 0:
        return pfn
    map_page(memory, vma.slot_of(vpn), pfn, writable=vma.writable, dirty=is_write)
    memory.lru_batches.add(task.cpu, pfn)
    return FAULT_NS


def map_page(memory: Memory, slot: int, pfn: int, *, writable: bool, dirty: bool = False) -> None:
    """Enter a new anonymous page into the page table, the reverse map and the LRU
    (`folio_add_new_anon_rmap`).
    """
    node = memory.nodes[memory.frames.nid_of(pfn)]
    writable = writable and not node.fenced
    flags = PTE_PRESENT | PTE_ACCESSED | (PTE_WRITABLE if writable else 0)
    memory.frames.flags[pfn] |= np.uint16(PG_EXCLUSIVE)
    add_mapping(memory, slot, pfn, flags | (PTE_DIRTY if dirty and writable else 0))
    memory.lru_add(pfn)
    if node.spec.stores:
        store_content(memory, node, np.array([pfn], dtype=np.int32))


def add_mapping(memory: Memory, slot: int, pfn: int, flags: int) -> None:
    """Map one more slot to a frame; `flags` are PTE bits."""
    table = memory.page_table
    if memory.story is not None:
        memory.story.mapped(slot, pfn)
    table.pte[slot] = np.uint32(pfn << PTE_PFN_SHIFT | flags)
    table.rmap_next[slot] = memory.frames.rmap[pfn]
    memory.frames.rmap[pfn] = slot
    if memory.locked_slots and memory.locked_slots.covers(slot):
        mlocked.settle(memory, pfn)


def remove_mapping(memory: Memory, slot: int) -> int:
    """`page_remove_rmap`: empty an entry; returns the frame, which may have other mappings. That it was
    written stays known.
    """
    huge_split.split(memory, slot)
    table, rmap = memory.page_table, memory.frames.rmap
    entry = int(table.pte[slot])
    pfn = entry >> PTE_PFN_SHIFT
    if memory.story is not None:
        memory.story.unmapped(slot, pfn)
    if entry & PTE_DIRTY:
        memory.frames.flags[pfn] |= np.uint16(PG_DIRTY)
    at = int(rmap[pfn])
    if at == slot:
        rmap[pfn] = table.rmap_next[slot]
    else:
        while int(table.rmap_next[at]) != slot:
            at = int(table.rmap_next[at])
        table.rmap_next[at] = table.rmap_next[slot]
    table.pte[slot] = 0
    table.rmap_next[slot] = 0
    if memory.frames.flags[pfn] & np.uint16(PG_UNEVICTABLE) and memory.locked_slots.covers(slot):
        mlocked.settle(memory, pfn)
    return pfn


def write_protect_fault(memory: Memory, task: Task, vma: Vma, vpn: int) -> int:
    """`do_wp_page`: promote from a fenced node; make writable what is mapped once; copy what is shared."""
    slot = vma.slot_of(vpn)
    pfn = int(memory.page_table.pte[slot]) >> PTE_PFN_SHIFT
    if hugetlb_map.is_hugetlb(memory, vma):
        return hugetlb_map.write_fault(memory, task, vma, vpn)
    if memory.nodes[memory.frames.nid_of(pfn)].fenced:
        if fence.copies(memory, vma, pfn):
            return copy_on_write(memory, task, vma, vpn)
        own = not (vma.private and memory.is_object_page(pfn))
        return fence.fence_fault(memory, slot, task.promotion_context(), own)
    if vma.kind != VMA_ANON and not vma.private:
        memory.page_table.pte[slot] |= np.uint32(PTE_WRITABLE | PTE_DIRTY | PTE_ACCESSED)
        return WP_FAULT_NS
    if thp.reuse(memory, slot):
        memory.vmstat.add("pgreuse")
        return WP_FAULT_NS
    if _is_mine(memory, task, pfn):
        memory.frames.flags[pfn] |= np.uint16(PG_EXCLUSIVE)
        memory.page_table.pte[slot] |= np.uint32(PTE_WRITABLE | PTE_DIRTY | PTE_ACCESSED)
        memory.vmstat.add("pgreuse")
        return WP_FAULT_NS
    return copy_on_write(memory, task, vma, vpn)


def _is_mine(memory: Memory, task: Task, pfn: int) -> bool:
    """`do_wp_page`: whether the writer has the only reference to an anonymous page, so that it need not be
    copied.
    """
    if not memory.mapped_once(pfn) or memory.is_object_page(pfn):
        return False
    flags = int(memory.frames.flags[pfn])
    if flags & PG_EXCLUSIVE:
        return True
    if memory.lru_batches.held_elsewhere(pfn, task.cpu):
        return False
    return not flags & PG_SWAPCACHE or swap_cache.free_swap(memory, pfn)


def copy_on_write(memory: Memory, task: Task, vma: Vma, vpn: int) -> int:
    """`wp_page_copy`: the writer gets a copy of its own."""
    slot = vma.slot_of(vpn)
    old = int(memory.page_table.pte[slot]) >> PTE_PFN_SHIFT
    new = alloc_beside(memory, task.alloc_context(vma, vpn), old)
    if new < 0:
        return new
    if not int(memory.page_table.pte[slot]) & PTE_PRESENT:  # the allocation reclaimed the page: fault again
        free_unused_page(memory, new)
        return FAULT_NS
    old = remove_mapping(memory, slot)  # not what it was before the allocation, if that demoted it
    memory.frames.version[new] = memory.frames.version[old]
    literal.copied(memory, old, new)
    map_page(memory, slot, new, writable=True, dirty=True)
    memory.lru_batches.add(task.cpu, new)
    drop_if_unused(memory, old)
    memory.vmstat.add("pgcow")
    return FAULT_NS


def drop_if_unused(memory: Memory, pfn: int) -> None:
    """Free an anonymous frame that nobody maps any more; pages of objects stay with their object, those that
    somebody has on swap in the swap cache (`free_swap_cache`).
    """
    if int(memory.frames.rmap[pfn]) == 0 and not memory.is_object_page(pfn):
        if memory.frames.flags[pfn] & np.uint16(PG_SWAPCACHE) and not swap_cache.free_swap(memory, pfn):
            return
        memory.lru_del(pfn)
        free_page(memory, pfn)


def unmap_range(memory: Memory, vma: Vma, cpu: int = 0, gather: MmuGather | None = None) -> None:
    """`zap_page_range` on a CPU: empty every entry of a VMA (or a part that `Vma.cut` gave). That a page of
    an object was used through its entry stays known.
    """
    huge_split.zap(memory, vma.slot, vma.nr_pages)
    if hugetlb_map.is_hugetlb(memory, vma):
        hugetlb_map.unmap(memory, vma)
        return
    pte = memory.page_table.pte[vma.slot : vma.slot + vma.nr_pages]
    present = np.flatnonzero(pte & np.uint32(PTE_PRESENT))
    if gather is not None:
        entries = pte[present].tolist()
        dirty = [bool(e & PTE_DIRTY) and memory.is_object_page(e >> PTE_PFN_SHIFT) for e in entries]
        gather.add((present + vma.start).tolist(), dirty)
    for offset in present.tolist():
        used = int(pte[offset]) & PTE_ACCESSED
        pfn = remove_mapping(memory, vma.slot + offset)
        if used and memory.is_object_page(pfn):
            mark_accessed(memory, cpu, pfn)
        drop_if_unused(memory, pfn)
    for offset in swap_entries(pte).tolist() if memory.swap.nr_pages else ():
        swap_cache.free_swap_and_cache(memory, int(pte[offset]) >> PTE_PFN_SHIFT)
        pte[offset] = 0
    pte[pte == PTE_ZERO] = 0
    memory.lru_batches.drain(cpu)  # `free_pages_and_swap_cache`
