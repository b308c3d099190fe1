"""Pinned pages: `pin_user_pages` for devices that reach a page by its frame, so that it must not move.

Models `pin_user_pages` with FOLL_LONGTERM of Linux 6.1: each page is faulted in and made the task's own; one that
may not be pinned where it is (movable zone, CMA area, a private node without the right) is moved first, and where
that is not allowed or fails the call says -ENOMEM and pins nothing (`check_and_migrate_movable_pages`). A pinned
page is held (PG_HELD): it does not move, is not reclaimed, and stays allocated when its last mapping goes, until
it is unpinned. Unlike in Linux it is on no LRU list meanwhile.
"""

from __future__ import annotations

import errno

import numpy as np

from privmem.nodeagent.host import hugetlb_map, hugetlb_move, literal
from privmem.nodeagent.host.cram import fence
from privmem.nodeagent.host.fault import drop_if_unused, handle_fault, map_page, remove_mapping
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import (
    PG_ALLOCATED,
    PG_EXCLUSIVE,
    PG_HELD,
    PG_LRU,
    PTE_PFN_SHIFT,
    PTE_PRESENT,
    PTE_PROTNONE,
    PTE_WRITABLE,
    PTE_ZERO,
)
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.migrate import move_to_frames
from privmem.nodeagent.host.mm import Vma
from privmem.nodeagent.host.page_alloc import NeedsExtent, alloc_page, free_unused_page
from privmem.nodeagent.host.task import Task
from privmem.scheduler import nodemask
from privmem.scheduler.abi import Reason
from privmem.scheduler.isolation import Service
from privmem.scheduler.zonelist import AllocRequest


def pin_user_pages(
    memory: Memory, task: Task, start: int, nr_pages: int, write: bool = True, longterm: bool = True
) -> int:
    """Pin pages [start, start + nr_pages). `nr_pages`, or a negative errno with nothing pinned: -EFAULT where
    nothing may be mapped, -ENOMEM for a page that may not be pinned where it is and cannot leave.
    """
    if nr_pages <= 0:
        return -errno.EINVAL
    pinned: list[int] = []
    for vpn in range(start, start + nr_pages):
        try:
            pfn = own_page(memory, task, vpn, write)
            if pfn >= 0 and longterm:
                pfn = _pinnable(memory, task, pfn)
        except NeedsExtent:
            for done in reversed(pinned):
                _unpin(memory, done)
            raise
        if pfn < 0:
            for done in reversed(pinned):
                _unpin(memory, done)
            return -errno.EFAULT if pfn == -errno.ENXIO else pfn
        _pin(memory, pfn)
        pinned.append(pfn)
        if memory.story is not None:
            memory.story.pinned(pfn, longterm)
    memory.high_order.pins_of.setdefault(task.pid, []).extend(pinned)
    memory.vmstat.add("nr_foll_pin_acquired", nr_pages)
    return nr_pages


def unpin_user_pages(memory: Memory, task: Task, start: int | None = None, nr_pages: int = 0) -> int:
    """Undo pins of the task: the last ones of these pages as they are mapped now, or all. How many were undone."""
    held = memory.high_order.pins_of.get(task.pid, [])
    if start is None:
        chosen = list(held)
    else:
        mapped = [_entry(memory, task, vpn) >> PTE_PFN_SHIFT for vpn in range(start, start + nr_pages)]
        chosen = [pfn for pfn in mapped if pfn in held]
    for pfn in chosen:
        held.remove(pfn)
        _unpin(memory, pfn)
    if not held:
        memory.high_order.pins_of.pop(task.pid, None)
    memory.vmstat.add("nr_foll_pin_released", len(chosen))
    return len(chosen)


def is_pinned(memory: Memory, pfn: int) -> bool:
    """`folio_maybe_dma_pinned`, exactly."""
    return pfn in memory.high_order.pins


def copy_at_fork(memory: Memory, child: Task, vma: Vma, child_slot: int) -> None:
    """`copy_present_page`: the child gets copies of pinned private pages at once, and the parent keeps its right to
    write them: else a later write would leave the pin behind. Without memory for a copy the page stays shared.
    """
    pins = memory.high_order.pins
    if not pins or not vma.private:
        return
    pte = memory.page_table.pte
    for offset in np.flatnonzero(pte[vma.slot : vma.slot + vma.nr_pages] & np.uint32(PTE_PRESENT)).tolist():
        pfn = int(pte[vma.slot + offset]) >> PTE_PFN_SHIFT
        if pfn not in pins or memory.is_object_page(pfn) or memory.frames.reason[pfn] == Reason.HUGETLB:
            continue
        try:
            new = alloc_page(memory, child.alloc_context(vma, vma.start + offset))
        except NeedsExtent:
            continue
        if new < 0:
            continue
        memory.frames.version[new] = memory.frames.version[pfn]
        literal.copied(memory, pfn, new)
        remove_mapping(memory, child_slot + offset)
        map_page(memory, child_slot + offset, new, writable=vma.writable)
        memory.frames.flags[pfn] |= np.uint16(PG_EXCLUSIVE)  # a pinned page is never shared
        if vma.writable and not memory.nodes[memory.frames.nid_of(pfn)].fenced:
            pte[vma.slot + offset] |= np.uint32(PTE_WRITABLE)


def _entry(memory: Memory, task: Task, vpn: int) -> int:
    vma = task.mm.find(vpn)
    return int(memory.page_table.pte[vma.slot_of(vpn)]) if vma else 0


def own_page(memory: Memory, task: Task, vpn: int, write: bool) -> int:
    """Fault a page in as its later user will find it, or a negative errno. An anonymous page that others map too
    is unshared first, also for reading (`gup_must_unshare`).
    """
    fails = memory.vmstat.count["pgpromote_fence_fail"]
    while True:
        vma = task.mm.find(vpn)
        if vma is None or (write and not vma.writable):
            return -errno.EFAULT
        if not vma.readable and not vma.writable:
            return -errno.EFAULT
        entry = int(memory.page_table.pte[vma.slot_of(vpn)])
        pfn = entry >> PTE_PFN_SHIFT
        ready = bool(entry & PTE_PRESENT) and not entry & PTE_PROTNONE
        alone = ready and (memory.is_object_page(pfn) or memory.mapped_once(pfn) or not vma.writable)
        if ready and alone and (entry & PTE_WRITABLE or not write):
            return pfn
        if entry == PTE_ZERO:
            took = replace_zero_page(memory, task, vma, vpn)
        else:
            took = handle_fault(memory, task, vpn, is_write=write or (ready and not alone))
        if took < 0:
            return took
        if memory.vmstat.count["pgpromote_fence_fail"] > fails:
            return fence.why_not(memory, vma.slot_of(vpn))


def replace_zero_page(memory: Memory, task: Task, vma: Vma, vpn: int) -> int:
    """The zero page has no frame that could be pinned: the task gets a page of its own, as since Linux 6.2."""
    pfn = alloc_page(memory, task.alloc_context(vma, vpn))
    if pfn >= 0:
        map_page(memory, vma.slot_of(vpn), pfn, writable=vma.writable)
    return min(pfn, 0)


def _pinnable(memory: Memory, task: Task, pfn: int) -> int:
    """`is_longterm_pinnable_page`, and what follows if not: the frame in which the page is then, or -ENOMEM."""
    nid = memory.frames.nid_of(pfn)
    allows = memory.resolver.allows
    if nodemask.has(memory.topology.private, nid):
        if allows(Service.LONGTERM_PIN, nid):
            return pfn
        if allows(Service.PIN_MIGRATE, nid):
            return _move_off(memory, task, pfn)
        if memory.story is not None:
            design = memory.resolver.design.name
            memory.story.stayed(pfn, f"{design}: neither pinned here for long nor moved off to be pinned")
        return -errno.ENOMEM
    if nodemask.has(memory.topology.normal_zone, nid) and not _in_cma(memory, pfn):
        return pfn
    return _move_off(memory, task, pfn)


def _in_cma(memory: Memory, pfn: int) -> bool:
    return any(area.first <= pfn < area.first + area.nr_pages for area in memory.high_order.cma)


def _move_off(memory: Memory, task: Task, pfn: int) -> int:
    """`migrate_longterm_unpinnable_pages`: unmovable memory near where the page is; the new frame or -ENOMEM."""
    request = AllocRequest(memory.frames.nid_of(pfn), None, Reason.USER_MOVE, movable=False)
    if hugetlb_move.is_pool_page(memory, pfn):
        part = pfn % HPAGE_PAGES
        if not hugetlb_move.may_isolate(memory, pfn - part):
            return -errno.ENOMEM
        head = hugetlb_move.move(memory, pfn - part, task.context_of(request).zones, Reason.USER_MOVE)
        return head + part if head >= 0 else head
    if not memory.frames.flags[pfn] & PG_LRU:
        return -errno.ENOMEM
    memory.lru_del(pfn)
    try:
        new = (
            alloc_page(memory, task.context_of(request)) if task.context_of(request).zones else -errno.ENOMEM
        )
    finally:
        memory.lru_add(pfn)
    if new < 0:
        return new
    if _in_cma(memory, new):
        free_unused_page(memory, new)
        return -errno.ENOMEM
    memory.lru_del(pfn)
    pair = np.array([pfn, new], dtype=np.int32)
    move_to_frames(memory, pair[:1], pair[1:], Reason.USER_MOVE)
    return new


def _pin(memory: Memory, pfn: int) -> None:
    pins = memory.high_order.pins
    if pfn not in pins and memory.frames.flags[pfn] & PG_LRU:
        memory.lru_del(pfn)
    if pfn not in pins:
        memory.frames.flags[pfn] |= np.uint16(PG_HELD)
    pins[pfn] = pins.get(pfn, 0) + 1


def _unpin(memory: Memory, pfn: int) -> None:
    pins = memory.high_order.pins
    pins[pfn] -= 1
    if pins[pfn]:
        return
    del pins[pfn]
    frames = memory.frames
    if frames.reason[pfn] == Reason.HUGETLB:  # the pool's, who holds it anyway
        hugetlb_map.unpinned(memory, pfn)
        return
    frames.flags[pfn] &= np.uint16(0xFFFF ^ PG_HELD)
    drop_if_unused(memory, pfn)
    if frames.flags[pfn] & np.uint16(PG_ALLOCATED):  # it is mapped, or an object or the swap cache has it
        memory.lru_add(pfn)
