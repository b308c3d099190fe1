"""The kernel writes into user pages: copies to a buffer, direct I/O, and other processes' writes.

Models `copy_to_user` with its faults (read of a pipe or a file into a buffer), `bio_iov_iter_get_pages` with
FOLL_WRITE (O_DIRECT reads), `process_vm_writev`, and `access_remote_vm` with FOLL_FORCE (ptrace, /proc/PID/mem) of
Linux 6.1. All of them take a page for writing before a byte moves, so that a page of a write-fenced node has
moved off it, or was copied, by then. Reading a buffer takes nothing. Left out: parts of pages; a debugger's
breakpoints in shared mappings.
"""

from __future__ import annotations

import errno

import numpy as np

from privmem.nodeagent.host import pins
from privmem.nodeagent.host.cram import fence
from privmem.nodeagent.host.fault import copy_on_write, handle_fault
from privmem.nodeagent.host.layout import (
    PG_DIRTY,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_SHIFT,
    PTE_PRESENT,
    PTE_WRITABLE,
    PTE_ZERO,
)
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.task import Task


def copy_to_user(memory: Memory, task: Task, start: int, nr_pages: int) -> int:
    """Data goes into pages [start, start + nr_pages) of a task: how many took it, or a negative errno when the
    first one does not: -EFAULT without the right to write, -ENOMEM. Also `process_vm_writev` into another's.
    """
    for at in range(nr_pages):
        pfn = pins.own_page(memory, task, start + at, write=True)
        if pfn < 0:
            return at or (-errno.EFAULT if pfn == -errno.ENXIO else pfn)
        vma = task.mm.find(start + at)
        assert vma is not None
        memory.page_table.pte[vma.slot_of(start + at)] |= np.uint32(PTE_DIRTY | PTE_ACCESSED)
    return nr_pages


def copy_from_user(memory: Memory, task: Task, start: int, nr_pages: int) -> int:
    """Data comes out of these pages: how many could be read, or -EFAULT, -ENOMEM. They stay where they are."""
    for at in range(nr_pages):
        vma = task.mm.find(start + at)
        if vma is None or not vma.readable:
            return at or -errno.EFAULT
        took = handle_fault(memory, task, start + at, is_write=False)
        if took < 0:
            return at or (-errno.EFAULT if took == -errno.ENXIO else took)
    return nr_pages


def direct_read(memory: Memory, task: Task, start: int, nr_pages: int) -> int:
    """A device writes into these pages: they are pinned for writing meanwhile, and dirty afterwards."""
    error = pins.pin_user_pages(memory, task, start, nr_pages, write=True, longterm=False)
    if error < 0:
        return error
    for vpn in range(start, start + nr_pages):
        vma = task.mm.find(vpn)
        assert vma is not None
        pfn = int(memory.page_table.pte[vma.slot_of(vpn)]) >> PTE_PFN_SHIFT
        memory.frames.flags[pfn] |= np.uint16(PG_DIRTY)
    pins.unpin_user_pages(memory, task, start, nr_pages)
    return nr_pages


def poke(memory: Memory, task: Task, start: int, nr_pages: int) -> int:
    """A debugger writes to pages of a task: how many, or -EIO when the first one cannot be written. A private
    mapping that is read-only gets a copy, and stays read-only.
    """
    for at in range(nr_pages):
        vpn = start + at
        vma = task.mm.find(vpn)
        if vma is not None and vma.writable:
            done = copy_to_user(memory, task, vpn, 1)
        elif vma is not None and vma.private:
            done = _force(memory, task, vpn)
        else:
            done = -errno.EIO
        if done < 0:
            return at or (-errno.EIO if done == -errno.EFAULT else done)
    return nr_pages


def _force(memory: Memory, task: Task, vpn: int) -> int:
    """FOLL_FORCE on a private mapping without the right to write."""
    vma = task.mm.find(vpn)
    assert vma is not None
    slot, pte = vma.slot_of(vpn), memory.page_table.pte
    if not int(pte[slot]) & PTE_PRESENT and int(pte[slot]) != PTE_ZERO:
        took = handle_fault(memory, task, vpn, is_write=False)
        if took < 0:
            return took
    if int(pte[slot]) == PTE_ZERO:
        error = pins.replace_zero_page(memory, task, vma, vpn)
        if error:
            return error
    pfn = int(pte[slot]) >> PTE_PFN_SHIFT
    if memory.is_object_page(pfn) or not memory.mapped_once(pfn):
        took = copy_on_write(memory, task, vma, vpn)
    elif memory.nodes[memory.frames.nid_of(pfn)].fenced:
        took = fence.promote(memory, pfn, task.promotion_context())
    else:
        took = 0
    if took < 0:
        return took
    memory.frames.flags[int(pte[slot]) >> PTE_PFN_SHIFT] |= np.uint16(PG_DIRTY)
    pte[slot] &= np.uint32(0xFFFFFFFF ^ PTE_WRITABLE)
    return 1
