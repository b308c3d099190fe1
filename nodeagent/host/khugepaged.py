"""khugepaged and MADV_COLLAPSE: 512 small pages become one huge page.

Models `hpage_collapse_scan_pmd`, `collapse_huge_page`, `hpage_collapse_find_target_node`,
`khugepaged_scan_mm_slot` and `madvise_collapse` (mm/khugepaged.c) of Linux 6.1 for private anonymous memory. The
new page comes from the node that holds most of the old ones (any of those that hold as many); holes become zero
pages. A page of a private node takes part only with the service's leave (KHUGEPAGED for the daemon, COLLAPSE for
the call); else its range is passed over. Left out: files and shared memory, userfaultfd, node_reclaim_mode.
"""

from __future__ import annotations

import errno
from enum import IntEnum

import numpy as np

from privmem.nodeagent.host import literal, thp
from privmem.nodeagent.host.blocks import Effort, alloc_block, free_block
from privmem.nodeagent.host.fault import drop_if_unused, handle_fault, remove_mapping
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import (
    PG_DIRTY,
    PG_LRU,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_SHIFT,
    PTE_PRESENT,
    PTE_WRITABLE,
    PTE_ZERO,
)
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.mm import VMA_ANON, Vma
from privmem.nodeagent.host.page_alloc import AllocContext
from privmem.nodeagent.host.swap_area import swap_entries
from privmem.nodeagent.host.task import Task
from privmem.scheduler import nodemask
from privmem.scheduler.abi import PAGEBLOCK_ORDER, Reason
from privmem.scheduler.isolation import Service
from privmem.scheduler.zonelist import AllocRequest


class Scan(IntEnum):
    """Outcome of a look at one huge range (`enum scan_result`, those that can happen here)."""

    SUCCEED = 1
    PMD_MAPPED = 2
    FAIL = 3
    EXCEED_NONE_PTE = 4
    EXCEED_SHARED_PTE = 5
    PAGE_RO = 6
    LACK_REFERENCED_PAGE = 7
    PAGE_NULL = 8  # here also: a page of a private node that takes no part
    PAGE_COUNT = 9
    PAGE_LRU = 10
    ALLOC_HUGE_PAGE_FAIL = 11


#: `madvise_collapse_errno`; -EINVAL for the others.
_ERRNO = {
    Scan.ALLOC_HUGE_PAGE_FAIL: -errno.ENOMEM,
    Scan.PAGE_COUNT: -errno.EAGAIN,
    Scan.PAGE_LRU: -errno.EAGAIN,
}
#: After these MADV_COLLAPSE goes on with the next range.
_GO_ON = (Scan.PAGE_RO, Scan.LACK_REFERENCED_PAGE, Scan.PAGE_NULL, Scan.PAGE_COUNT, Scan.PAGE_LRU)


# -- the system call


def madvise_collapse(memory: Memory, task: Task, start: int, nr_pages: int) -> int:
    """MADV_COLLAPSE of [start, start + nr_pages): 0 when every huge range inside is one afterwards, else the errno
    of the last failure. The knobs of sysfs do not matter, MADV_NOHUGEPAGE does.
    """
    end = start + nr_pages
    mapped = 0
    for part in task.mm.in_range(start, end):
        vma = task.mm.find(part.start)
        assert vma is not None  # the part was cut from it
        error = _collapse_part(memory, task, vma, part.start, part.end)
        if error:
            return error
        mapped += part.nr_pages
    return 0 if mapped == nr_pages else -errno.ENOMEM


def _collapse_part(memory: Memory, task: Task, vma: Vma, start: int, end: int) -> int:
    """`madvise_collapse` of one VMA."""
    if vma.kind != VMA_ANON or vma.no_huge:
        return -errno.EINVAL
    memory.lru_batches.drain_all()
    first = -(-start // HPAGE_PAGES) * HPAGE_PAGES
    last = end // HPAGE_PAGES * HPAGE_PAGES
    failure = Scan.FAIL
    done = 0
    for base in range(first, last, HPAGE_PAGES):
        result = collapse(memory, task, vma, base, daemon=False)
        if result in (Scan.SUCCEED, Scan.PMD_MAPPED):
            done += 1
            continue
        failure = result
        if result not in _GO_ON:
            break
    return 0 if done == (last - first) // HPAGE_PAGES else _ERRNO.get(failure, -errno.EINVAL)


# -- the daemon


def khugepaged(memory: Memory, tasks: list[Task], pages_to_scan: int | None = None) -> int:
    """`khugepaged_do_scan`: look at the next `pages_to_scan` pages of these tasks, from where the last scan ended.
    How many huge pages it made.
    """
    high = memory.high_order
    left = high.thp.pages_to_scan if pages_to_scan is None else pages_to_scan
    pid, vpn = high.khugepaged_at
    by_pid = sorted(tasks, key=lambda task: task.pid)
    order = [t for t in by_pid if t.pid >= pid] + [t for t in by_pid if t.pid < pid]
    made = 0
    memory.lru_batches.drain_all()
    for task in order:
        start = vpn if task.pid == pid else 0
        for vma, base in _ranges(memory, task, start):
            if left < HPAGE_PAGES:
                high.khugepaged_at = [task.pid, base]
                return made
            left -= HPAGE_PAGES
            made += collapse(memory, task, vma, base, daemon=True) is Scan.SUCCEED
    high.khugepaged_at = [0, 0]
    return made


def _ranges(memory: Memory, task: Task, start: int) -> list[tuple[Vma, int]]:
    """Huge ranges of a task from page `start` on, where huge pages are allowed."""
    found = []
    for vma in task.mm.vmas:
        if thp.vma_allows(memory, vma):
            first = -(-max(vma.start, start) // HPAGE_PAGES) * HPAGE_PAGES
            found += [(vma, base) for base in range(first, vma.end - HPAGE_PAGES + 1, HPAGE_PAGES)]
    return found


# -- one range


def collapse(memory: Memory, task: Task, vma: Vma, base: int, daemon: bool) -> Scan:
    """`hpage_collapse_scan_pmd` and `collapse_huge_page` of the huge range at page `base`."""
    slot = vma.slot_of(base)
    if slot in memory.high_order.huge_maps.overlapping(slot):
        return Scan.PMD_MAPPED
    if not _swap_in(memory, task, base, slot):
        return Scan.FAIL
    result, load = _scan(memory, vma, slot, daemon)
    if result is not Scan.SUCCEED:
        return result
    head = _alloc(memory, task, load, daemon)
    if head < 0:
        memory.vmstat.add("thp_collapse_alloc_failed")
        return Scan.ALLOC_HUGE_PAGE_FAIL
    memory.vmstat.add("thp_collapse_alloc")
    if len(swap_entries(memory.page_table.pte[slot : slot + HPAGE_PAGES])):  # by the reclaim for the block
        free_block(memory, head, HPAGE_PAGES)
        return Scan.FAIL
    _copy(memory, vma, slot, head)
    return Scan.SUCCEED


def _swap_in(memory: Memory, task: Task, base: int, slot: int) -> bool:
    """`__collapse_huge_page_swapin`: pages whose entry says where they are come back first."""
    entries = memory.page_table.pte[slot : slot + HPAGE_PAGES]
    elsewhere = (entries != 0) & (entries != PTE_ZERO) & (entries & np.uint32(PTE_PRESENT) == 0)
    for offset in np.flatnonzero(elsewhere).tolist():
        if handle_fault(memory, task, base + offset, is_write=False) < 0:
            return False
    return True


def _scan(memory: Memory, vma: Vma, slot: int, daemon: bool) -> tuple[Scan, dict[int, int]]:
    """What keeps the range from being collapsed, if anything; and how many of its pages each node holds."""
    frames, knobs = memory.frames, memory.high_order.thp
    entries = memory.page_table.pte[slot : slot + HPAGE_PAGES]
    present = np.flatnonzero(entries & np.uint32(PTE_PRESENT))
    pfns = (entries[present] >> np.uint32(PTE_PFN_SHIFT)).astype(np.int64)
    load: dict[int, int] = {}
    service = Service.KHUGEPAGED if daemon else Service.COLLAPSE
    shared = 0
    for pfn in pfns.tolist():
        nid = frames.nid_of(pfn)
        if not memory.resolver.allows(service, nid) or memory.nodes[nid].spec.stores:
            return Scan.PAGE_NULL, load
        load[nid] = load.get(nid, 0) + 1
        shared += not memory.mapped_once(pfn)
        if pfn in memory.high_order.pins:
            return Scan.PAGE_COUNT, load
        if not frames.flags[pfn] & PG_LRU:
            return Scan.PAGE_LRU, load
    if daemon and HPAGE_PAGES - len(present) > knobs.max_ptes_none:
        return Scan.EXCEED_NONE_PTE, load
    if daemon and shared > knobs.max_ptes_shared:
        return Scan.EXCEED_SHARED_PTE, load
    if not np.any(entries[present] & np.uint32(PTE_WRITABLE)):
        return Scan.PAGE_RO, load
    if daemon and not np.any(entries[present] & np.uint32(PTE_ACCESSED)):
        return Scan.LACK_REFERENCED_PAGE, load
    return Scan.SUCCEED, load


def _alloc(memory: Memory, task: Task, load: dict[int, int], daemon: bool) -> int:
    """`alloc_charge_hpage`: the node with most pages, lowest id first, then the others that have as many."""
    most = max(load.values())
    target = min(nid for nid in load if load[nid] == most)
    nodes = nodemask.of(nid for nid in load if load[nid] == most)
    private = nodemask.has(memory.topology.private, target)
    request = AllocRequest(target, nodes, Reason.COLLAPSE, private=private)
    resolution = memory.resolver.resolve(request, None if daemon else task.mems_allowed)
    if not resolution.zones:
        return -errno.ENOMEM
    context = AllocContext(
        resolution.zones,
        Reason.COLLAPSE,
        cpu_nid=task.cpu_nid,
        owner=task.pid,
        uninvited=resolution.uninvited,
        request=request,
    )
    waits = not daemon or memory.high_order.thp.khugepaged_defrag
    return alloc_block(memory, context, PAGEBLOCK_ORDER, Effort.RECLAIM if waits else Effort.LIGHT)


def _copy(memory: Memory, vma: Vma, slot: int, head: int) -> None:
    """`__collapse_huge_page_copy`: the pages move into the block; nobody maps the old ones here any more."""
    frames, pte = memory.frames, memory.page_table.pte
    for offset in range(HPAGE_PAGES):
        entry = int(pte[slot + offset])
        if not entry & PTE_PRESENT:
            continue
        old = remove_mapping(memory, slot + offset)
        frames.version[head + offset] = frames.version[old]
        literal.copied(memory, old, head + offset)
        if entry & PTE_DIRTY or frames.flags[old] & PG_DIRTY:
            frames.flags[head + offset] |= np.uint16(PG_DIRTY)
        drop_if_unused(memory, old)
    thp.map_huge(memory, slot, head, writable=vma.writable)
