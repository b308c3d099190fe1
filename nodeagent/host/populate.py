"""Faulting in a range before it is used: MAP_POPULATE, mlock, mprotect of locked memory, MADV_POPULATE.

Models `__mm_populate` and `populate_vma_page_range` (mm/gup.c, Linux 6.1), and `faultin_vma_page_range` of
MADV_POPULATE_READ and _WRITE. Private writable memory is faulted in for writing, so that no copy is left to
be made; shared and read-only memory for reading.
"""

from __future__ import annotations

import errno

from privmem.nodeagent.host.cram import fence
from privmem.nodeagent.host.fault import FAULT_SIGBUS, handle_fault
from privmem.nodeagent.host.layout import PTE_PRESENT, PTE_PROTNONE, PTE_WRITABLE, PTE_ZERO
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.mm import Vma
from privmem.nodeagent.host.task import Task


def mm_populate(memory: Memory, task: Task, start: int, nr_pages: int, ignore_errors: bool) -> int:
    """Fault in all mapped pages of [start, start + nr_pages): 0, -EFAULT or -ENOMEM at the first page that
    fails; with `ignore_errors` the next VMA comes after it.
    """
    for part in task.mm.in_range(start, start + nr_pages):
        error = populate_vma(memory, task, part)
        if error and not ignore_errors:
            return error
    return 0


def populate_vma(memory: Memory, task: Task, part: Vma) -> int:
    """`populate_vma_page_range` of a VMA, or of a part that `Vma.cut` gave."""
    if part.on_fault:
        return 0
    if not part.accessible:
        return -errno.EFAULT
    return fault_in(memory, task, part, part.writable and part.private)


def fault_in(memory: Memory, task: Task, part: Vma, is_write: bool) -> int:
    """Make each page of a part ready for an access: 0, or the errno of the first fault that failed."""
    for vpn in range(part.start, part.end):
        error = until_ready(memory, task, vpn, part.slot_of(vpn), is_write)
        if error:
            return -errno.EFAULT if error == FAULT_SIGBUS else error
    return 0


def until_ready(memory: Memory, task: Task, vpn: int, slot: int, is_write: bool) -> int:
    """Fault until an access to the page would go on; 0, or the errno of a fault that failed.

    A page of a fenced node for which there is no memory gives -ENOMEM, one that is pinned -EAGAIN: no time passes
    here in which a further try could do better.
    """
    fails = memory.vmstat.count["pgpromote_fence_fail"]
    while not is_ready(int(memory.page_table.pte[slot]), is_write):
        took = handle_fault(memory, task, vpn, is_write)
        if took < 0:
            return took
        if memory.vmstat.count["pgpromote_fence_fail"] > fails:
            return fence.why_not(memory, slot)
    return 0


def is_ready(entry: int, is_write: bool) -> bool:
    """Whether an entry lets the access go on without a fault."""
    wanted = PTE_PRESENT | (PTE_WRITABLE if is_write else 0)
    if entry == PTE_ZERO:
        return not is_write
    return entry & wanted == wanted and not entry & PTE_PROTNONE
