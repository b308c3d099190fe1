"""mprotect: the rights of a range of memory.

Models `do_mprotect_pkey`, `mprotect_fixup`, `change_pte_range` and `can_change_pte_writable` of Linux 6.1.
VMAs are split and merged, entries lose the right to write with their VMA. An entry gets it back in place only
where no fault has anything left to do: in shared memory, for a page of a shared file that is dirty already,
and for a dirty page of private memory that nobody else has; the first write to any other page faults. Never
on a write-fenced node, and not in a huge mapping (6.2 brought that). Left out: protection keys, PROT_EXEC
beside what reading allows.
"""

from __future__ import annotations

import errno
from dataclasses import replace

import numpy as np

from privmem.nodeagent.host import huge_split, hugetlb_map
from privmem.nodeagent.host.layout import (
    PG_EXCLUSIVE,
    PTE_DIRTY,
    PTE_PFN_SHIFT,
    PTE_PRESENT,
    PTE_PROTNONE,
    PTE_WRITABLE,
)
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.mm import VMA_ANON, Vma
from privmem.nodeagent.host.pagecache import FILE
from privmem.nodeagent.host.populate import populate_vma
from privmem.nodeagent.host.task import Task

PROT_NONE = 0
PROT_READ = 1
PROT_WRITE = 2
PROT_EXEC = 4
PROT_SEM = 8
_PROT_VALID = PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM

_PLAIN = np.uint32(0xFFFFFFFF ^ (PTE_WRITABLE | PTE_PROTNONE))


def mprotect(memory: Memory, task: Task, start: int, nr_pages: int, prot: int) -> int:
    """Give pages [start, start + nr_pages) these rights: 0, -EINVAL, -EACCES for a shared mapping of a file
    that is open for reading only, -ENOMEM for a hole; what lies before the VMA that fails is changed.
    """
    if prot & ~_PROT_VALID or hugetlb_map.cuts_a_page(memory, task, start, start + nr_pages):
        return -errno.EINVAL
    if nr_pages == 0:
        return 0
    readable, writable = bool(prot & (PROT_READ | PROT_EXEC)), bool(prot & PROT_WRITE)
    end, vpn = start + nr_pages, start
    for part in task.mm.in_range(start, end):
        if part.start != vpn:
            break
        if writable and not part.may_write:
            return -errno.EACCES
        _fixup(memory, task, part, readable, writable)
        vpn = part.end
    return 0 if vpn == end else -errno.ENOMEM


def _fixup(memory: Memory, task: Task, part: Vma, readable: bool, writable: bool) -> None:
    """`mprotect_fixup` of one VMA or a part of one."""
    if (part.readable, part.writable) == (readable, writable):
        return
    changed = replace(part, readable=readable, writable=writable)
    task.mm.replace_range(part.start, part.end, [changed])
    _change_entries(memory, changed)
    if part.locked and part.private and writable and not part.writable:
        populate_vma(memory, task, changed)  # so that no write to locked memory has to wait for a copy


def _change_entries(memory: Memory, part: Vma) -> None:
    """`change_pte_range`."""
    huge_split.split(memory, part.slot, part.nr_pages)
    entries = memory.page_table.pte[part.slot : part.slot + part.nr_pages]
    present = np.flatnonzero(entries & np.uint32(PTE_PRESENT))
    entries[present] &= _PLAIN
    if not part.writable:
        return
    huge = memory.high_order.huge_maps
    for offset in present.tolist():
        entry, slot = int(entries[offset]), part.slot + offset
        if not (len(huge) and huge.overlapping(slot)) and _writable_in_place(memory, part, entry):
            entries[offset] = np.uint32(entry | PTE_WRITABLE)


def _writable_in_place(memory: Memory, part: Vma, entry: int) -> bool:
    """`can_change_pte_writable`; shared memory that need not hear of the first write is always writable."""
    pfn = entry >> PTE_PFN_SHIFT
    if memory.nodes[memory.frames.nid_of(pfn)].fenced:
        return False
    if part.private:
        if hugetlb_map.is_hugetlb(memory, part):
            return False
        return bool(memory.frames.flags[pfn] & np.uint16(PG_EXCLUSIVE)) and bool(entry & PTE_DIRTY)
    if part.kind != VMA_ANON and memory.page_cache.of(part.object_id).kind == FILE:
        return bool(entry & PTE_DIRTY)
    return True
