"""Transparent huge pages: a fault that takes 512 pages at once, and what splits them again.

Models `do_huge_pmd_anonymous_page`, `vma_alloc_folio` for a huge page, `copy_huge_pmd`, `do_huge_pmd_wp_page`,
`__split_huge_pmd` and `split_huge_page` of Linux 6.1 for private anonymous memory. The 512 frames of a huge page
are frames like any other, each with its entry and its place on the LRU; what makes them one is a record of the
mapping (high_order.HugeMaps), which goes as soon as a part of it is treated by itself. Left out: huge pages of
files and shared memory, the huge zero page, deferred splitting (a page whose mapping is split is split), smaller
folios (6.8), moving and reclaiming a huge page as one.
"""

from __future__ import annotations

import errno
from dataclasses import replace

import numpy as np

from privmem.nodeagent.host import _lru_kernel as lru_kernel
from privmem.nodeagent.host import hugetlb_map, mlocked
from privmem.nodeagent.host.blocks import Effort, alloc_block
from privmem.nodeagent.host.costs import FAULT_NS, HUGE_CLEAR_NS
from privmem.nodeagent.host.drivers.owner import device_context
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.huge_split import split
from privmem.nodeagent.host.layout import (
    NR_LRU_LISTS,
    PG_EXCLUSIVE,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_SHIFT,
    PTE_PRESENT,
    PTE_WRITABLE,
)
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.migrate import store_content
from privmem.nodeagent.host.mm import VMA_ANON, Vma
from privmem.nodeagent.host.page_alloc import AllocContext
from privmem.nodeagent.host.task import Task
from privmem.scheduler import nodemask
from privmem.scheduler.abi import PAGEBLOCK_ORDER, Mpol

ENABLED = ("always", "madvise", "never")
DEFRAG = ("always", "defer", "defer+madvise", "madvise", "never")


# -- who may have huge pages


def vma_allows(memory: Memory, vma: Vma) -> bool:
    """`hugepage_vma_check` for anonymous memory: the knob, and what madvise said of the VMA."""
    if vma.kind != VMA_ANON or vma.no_huge:
        return False
    enabled = memory.high_order.thp.enabled
    return enabled == "always" or (enabled == "madvise" and vma.huge)


def range_of(vma: Vma, vpn: int) -> int | None:
    """First page of the aligned huge range around `vpn`, if the VMA holds all of it."""
    base = vpn - vpn % HPAGE_PAGES
    return base if vma.start <= base and base + HPAGE_PAGES <= vma.end else None


def _waits(memory: Memory, vma: Vma) -> bool:
    """`vma_thp_gfp_mask`: whether the fault may wait for compaction."""
    defrag = memory.high_order.thp.defrag
    return defrag == "always" or (vma.huge and defrag in ("madvise", "defer+madvise"))


# -- the fault


def fault(memory: Memory, task: Task, vma: Vma, vpn: int, is_write: bool) -> int:
    """`do_huge_pmd_anonymous_page` where no page is mapped. The ns it took; 0: take a single page instead."""
    base = range_of(vma, vpn) if vma_allows(memory, vma) else None
    if base is None:
        return 0
    slot = vma.slot_of(base)
    if memory.page_table.pte[slot : slot + HPAGE_PAGES].any():
        return 0  # there is a table of single entries
    if any(slot <= bad < slot + HPAGE_PAGES for bad in memory.high_order.poison_slots):
        return 0
    pfn = _alloc(memory, task, vma, base)
    if pfn < 0:
        memory.vmstat.add("thp_fault_fallback")
        return 0
    map_huge(memory, slot, pfn, writable=vma.writable)
    if is_write and memory.page_table.pte[slot] & np.uint32(PTE_WRITABLE):
        memory.page_table.pte[vma.slot_of(vpn)] |= np.uint32(PTE_DIRTY)
    memory.lru_batches.drain(task.cpu)  # a large folio does not wait in the batch
    memory.vmstat.add("thp_fault_alloc")
    return FAULT_NS + HUGE_CLEAR_NS


def _alloc(memory: Memory, task: Task, vma: Vma, base: int) -> int:
    """First frame of the block, or -ENOMEM; each context in turn."""
    pfn = -errno.ENOMEM
    for context, effort in _contexts(memory, task, vma, base):
        pfn = alloc_block(memory, context, PAGEBLOCK_ORDER, effort)
        if pfn >= 0:
            break
    return pfn


def _contexts(memory: Memory, task: Task, vma: Vma, base: int) -> list[tuple[AllocContext, Effort]]:
    """`vma_alloc_folio` with `hugepage`: the CPU's own (or the preferred) node alone, if the policy has it, where
    memory is compacted at most; only who may wait goes on to others, and reclaims. Interleaving turns by huge
    pages, and a mask is always kept.
    """
    full = Effort.RECLAIM if _waits(memory, vma) else Effort.LIGHT
    if vma.device_nid >= 0:
        return [(device_context(memory, vma.device_nid, task.pid), full)]
    policy = vma.policy or task.policy
    offset = vma.offset_of(vma.start) // HPAGE_PAGES + (base - vma.start) // HPAGE_PAGES
    request, interleave = task.policy_request(policy, offset)
    if interleave:
        return [(task.context_of(request, interleave), full)]
    if request.retry_unmasked:
        first = task.context_of(replace(request, retry_unmasked=False))
        return [(first, Effort.LIGHT), (task.context_of(request.unmasked()), full)]
    near = task.cpu_nid
    if policy is not None and policy.mode == Mpol.PREFERRED:
        near = nodemask.first(policy.nodes)
    if request.nodemask is not None and not nodemask.has(request.nodemask, near):
        return [(task.context_of(request), full)]
    alone = task.context_of(replace(request, nid=near, nodemask=None, this_node=True))
    if not full:
        return [(alone, full)]
    return [(alone, Effort.COMPACT), (task.context_of(replace(request, nid=near)), full)]


def map_huge(memory: Memory, slot: int, pfn: int, *, writable: bool) -> None:
    """Map the 512 frames from `pfn` on, new and of nobody else, at the 512 slots from `slot` on."""
    table, frames = memory.page_table, memory.frames
    node = memory.nodes[frames.nid_of(pfn)]
    flags = PTE_PRESENT | PTE_ACCESSED | (PTE_WRITABLE if writable and not node.fenced else 0)
    pfns = np.arange(pfn, pfn + HPAGE_PAGES, dtype=np.int32)
    span = slice(slot, slot + HPAGE_PAGES)
    table.pte[span] = pfns.astype(np.uint32) << np.uint32(PTE_PFN_SHIFT) | np.uint32(flags)
    table.rmap_next[span] = 0
    frames.rmap[pfn : pfn + HPAGE_PAGES] = np.arange(slot, slot + HPAGE_PAGES)
    frames.flags[pfn : pfn + HPAGE_PAGES] |= np.uint16(PG_EXCLUSIVE)
    lru_kernel.putback(pfns, HPAGE_PAGES, node.nid * NR_LRU_LISTS, *memory.lru_arrays())
    if memory.locked_slots:
        for locked in pfns.tolist():
            mlocked.settle(memory, locked)
    if node.spec.stores:
        store_content(memory, node, pfns)
    memory.high_order.huge_maps.add(slot)
    if memory.story is not None:
        for offset in range(HPAGE_PAGES):
            memory.story.mapped(slot + offset, pfn + offset)


# -- writing, advice, and looking


def reuse(memory: Memory, slot: int) -> bool:
    """`do_huge_pmd_wp_page`: when nobody else maps any of the huge page around `slot`, all of it becomes
    writable; otherwise its mapping is split, and the write is one to a single page.
    """
    maps = memory.high_order.huge_maps
    found = maps.overlapping(slot) if len(maps) else []
    if not found:
        return False
    span = slice(found[0], found[0] + HPAGE_PAGES)
    pfns = memory.page_table.pte[span] >> np.uint32(PTE_PFN_SHIFT)
    alone = (memory.frames.rmap[pfns] != 0) & (memory.page_table.rmap_next[span] == 0)
    if not bool(alone.all()) or bool(np.any(memory.frames.rmap[pfns] != np.arange(span.start, span.stop))):
        split(memory, slot)
        return False
    memory.page_table.pte[span] |= np.uint32(PTE_WRITABLE)
    memory.frames.flags[pfns] |= np.uint16(PG_EXCLUSIVE)
    memory.page_table.pte[slot] |= np.uint32(PTE_DIRTY | PTE_ACCESSED)
    return True


def madvise(memory: Memory, task: Task, start: int, nr_pages: int, huge: bool) -> int:
    """MADV_HUGEPAGE (`huge`) and MADV_NOHUGEPAGE: later faults; what is mapped stays as it is (`hugepage_madvise`).

    -ENOMEM, after all the work, when part of the range is not mapped; -EINVAL at the first mapping of a huge page
    pool, for which MADV_HUGEPAGE means nothing and whose pages cannot be cut.
    """
    parts = task.mm.in_range(start, start + nr_pages)
    for part in parts:
        pool = hugetlb_map.is_hugetlb(memory, part)
        if pool and (huge or hugetlb_map.cuts_a_page(memory, task, part.start, part.end)):
            return -errno.EINVAL
        split(memory, part.slot, part.nr_pages)
        task.mm.replace_range(part.start, part.end, [replace(part, huge=huge, no_huge=not huge)])
    return 0 if sum(part.nr_pages for part in parts) == nr_pages else -errno.ENOMEM


def anon_huge_pages(memory: Memory, task: Task, vma: Vma | None = None) -> int:
    """`AnonHugePages` of smaps in base pages, for one VMA (or a part) or for the whole task."""
    maps = memory.high_order.huge_maps
    vmas = task.mm.vmas if vma is None else [vma]
    return sum(HPAGE_PAGES * len(maps.overlapping(v.slot, v.nr_pages)) for v in vmas if v.kind == VMA_ANON)


def anon_huge_pages_of(memory: Memory, nid: int) -> int:
    """NR_ANON_THPS of a node, in base pages."""
    node = memory.nodes[nid]
    heads = huge_heads(memory) - node.start_pfn
    return HPAGE_PAGES * int(np.count_nonzero((heads >= 0) & (heads < node.spec.span_pages)))


def huge_heads(memory: Memory) -> np.ndarray:
    """First frames of all huge pages that are mapped as one, ascending."""
    slots = np.array(memory.high_order.huge_maps.slots, dtype=np.int64)
    return np.unique(memory.page_table.pte[slots].astype(np.int64) >> PTE_PFN_SHIFT)
