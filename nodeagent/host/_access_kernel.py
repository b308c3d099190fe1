"""The access loop: what the CPU and its page-table walker do without the kernel's help.

Compiled by numba; the same source runs as plain Python when NUMBA_DISABLE_JIT is set.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from privmem.nodeagent.host.layout import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_SHIFT,
    PTE_PRESENT,
    PTE_PROTNONE,
    PTE_WRITABLE,
    STOP_BUDGET,
    STOP_END,
    STOP_HINT,
    STOP_NOT_PRESENT,
    STOP_WRITE_PROTECT,
)
from privmem.scheduler.abi import SECTION_SHIFT

_SECTION_OF_PTE = PTE_PFN_SHIFT + SECTION_SHIFT
_READ_CHECK = np.uint32(PTE_PRESENT | PTE_PROTNONE)
_WRITE_CHECK = np.uint32(PTE_PRESENT | PTE_PROTNONE | PTE_WRITABLE)
_READ_WANT = np.uint32(PTE_PRESENT)
_WRITE_WANT = np.uint32(PTE_PRESENT | PTE_WRITABLE)
_READ_SET = np.uint32(PTE_ACCESSED)
_WRITE_SET = np.uint32(PTE_ACCESSED | PTE_DIRTY)


@njit(cache=True)
def run_accesses(
    pte,
    batch,
    position,
    end,
    slot_base,
    node_of_section,
    cost_ns,
    budget_ns,
    nr_accesses,
    place,
    tags,
    looked,
):
    """Run batch[position:end] until an access needs the kernel or the time is used up.

    pte              uint32[slots]     page table
    batch            uint32[]          page << 1 | is_write, page relative to `slot_base`
    node_of_section  int64[sections]   see FrameTable
    cost_ns          int64[nodes, 2]   what a read, a write of a page on the node costs
    nr_accesses      int64[nodes, 2]   incremented: reads, writes
    place, tags, looked                see BlockCaches; tags is None without any
    Returns (position of the first access not done, ns spent, why it stopped: STOP_*).
    """
    spent = np.int64(0)
    while position < end:
        if spent >= budget_ns:
            return position, spent, STOP_BUDGET
        access = batch[position]
        is_write = np.int64(access & np.uint32(1))
        slot = slot_base + np.int64(access >> np.uint32(1))
        entry = pte[slot]
        if is_write:
            if entry & _WRITE_CHECK != _WRITE_WANT:
                return position, spent, _why(entry)
            bits = _WRITE_SET
        else:
            if entry & _READ_CHECK != _READ_WANT:
                return position, spent, _why(entry)
            bits = _READ_SET
        if entry & bits != bits:
            pte[slot] = entry | bits
        nid = node_of_section[np.int64(entry) >> _SECTION_OF_PTE]
        nr_accesses[nid, is_write] += 1
        spent += cost_ns[nid, is_write]
        if tags is not None:  # compiled away without a cache
            lines = place[nid, 1]
            if lines:
                pfn = np.int64(entry) >> PTE_PFN_SHIFT
                line = place[nid, 0] + pfn % lines
                miss = np.int64(tags[line] != pfn)
                tags[line] = pfn
                looked[nid, miss] += 1
                spent += miss * place[nid, 2]
        position += 1
    return position, spent, STOP_END


@njit(cache=True)
def _why(entry):
    if not entry & np.uint32(PTE_PRESENT):
        return STOP_NOT_PRESENT
    if entry & np.uint32(PTE_PROTNONE):
        return STOP_HINT
    return STOP_WRITE_PROTECT
