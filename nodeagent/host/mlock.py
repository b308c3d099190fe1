"""mlock, mlock2, munlock, mlockall and munlockall.

Models mm/mlock.c of Linux 6.1 for a task with CAP_IPC_LOCK: no limit is looked at. Locked memory is faulted
in (populate.py), and its pages go to the unevictable list (mlocked.py). Calls return 0 or a negative errno.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from privmem.nodeagent.host import hugetlb_map, mlocked
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT, PTE_PRESENT
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.mm import Vma
from privmem.nodeagent.host.populate import mm_populate
from privmem.nodeagent.host.task import Task

MLOCK_ONFAULT = 1
MCL_CURRENT = 1
MCL_FUTURE = 2
MCL_ONFAULT = 4


def mlock(memory: Memory, task: Task, start: int, nr_pages: int, flags: int = 0) -> int:
    """`do_mlock`, with mlock2's flags: -EINVAL, -ENOMEM for a hole (what lies before it is locked) or a page
    that cannot be had, -EAGAIN when memory ran out.
    """
    if flags & ~MLOCK_ONFAULT:
        return -errno.EINVAL
    error = _apply(memory, task, start, nr_pages, True, bool(flags & MLOCK_ONFAULT))
    return error or posix_error(mm_populate(memory, task, start, nr_pages, ignore_errors=False))


def munlock(memory: Memory, task: Task, start: int, nr_pages: int) -> int:
    """`munlock`: -ENOMEM for a hole; what lies before it is unlocked."""
    return _apply(memory, task, start, nr_pages, False, False)


def mlockall(memory: Memory, task: Task, flags: int) -> int:
    """`mlockall`: MCL_CURRENT locks what is mapped, MCL_FUTURE what will be; pages that cannot be had do not
    matter.
    """
    if not flags or flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) or flags == MCL_ONFAULT:
        return -errno.EINVAL
    on_fault = bool(flags & MCL_ONFAULT)
    task.mm.lock_future = 1 + int(on_fault) if flags & MCL_FUTURE else 0
    if flags & MCL_CURRENT:
        for vma in list(task.mm.vmas):
            lock_vma(memory, task, vma, True, on_fault)
        mm_populate(memory, task, 0, task.mm.vmas[-1].end if task.mm.vmas else 0, ignore_errors=True)
    return 0


def munlockall(memory: Memory, task: Task) -> int:
    """`munlockall`: 0."""
    task.mm.lock_future = 0
    for vma in list(task.mm.vmas):
        lock_vma(memory, task, vma, False, False)
    return 0


def posix_error(error: int) -> int:
    """`__mlock_posix_error_return`."""
    return {-errno.EFAULT: -errno.ENOMEM, -errno.ENOMEM: -errno.EAGAIN}.get(error, error)


def _apply(memory: Memory, task: Task, start: int, nr_pages: int, locked: bool, on_fault: bool) -> int:
    """`apply_vma_lock_flags`: VMA by VMA up to the first hole."""
    if nr_pages == 0:
        return 0
    end, vpn = start + nr_pages, start
    for part in task.mm.in_range(start, end):
        if part.start != vpn:
            break
        lock_vma(memory, task, part, locked, on_fault)
        vpn = part.end
    return 0 if vpn == end else -errno.ENOMEM


def lock_vma(memory: Memory, task: Task, part: Vma, locked: bool, on_fault: bool) -> None:
    """`mlock_fixup` of a VMA or a part of one. Huge pages of a pool, and memory of a device, are never
    swapped: their mappings are not marked.
    """
    if hugetlb_map.is_hugetlb(memory, part) or part.device_nid >= 0:
        return
    if (part.locked, part.on_fault) == (locked, on_fault):
        return
    task.mm.replace_range(part.start, part.end, [replace(part, locked=locked, on_fault=on_fault)])
    if part.locked == locked:
        return
    if locked:
        memory.lru_batches.drain(task.cpu)
        memory.locked_slots.add(part.slot, part.nr_pages)
    else:
        memory.locked_slots.remove(part.slot, part.nr_pages)
    for entry in memory.page_table.pte[part.slot : part.slot + part.nr_pages].tolist():
        if entry & PTE_PRESENT:
            mlocked.settle(memory, entry >> PTE_PFN_SHIFT)
