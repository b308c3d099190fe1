"""The memory of page tables: leaf tables of a process, taken when the first page of their reach is touched.

Models `pte_alloc_one` of Linux 6.1 with GFP_PGTABLE_USER: under the policy of the *task*, whatever the VMA's says,
and not movable, so that a bind to movable-only nodes is relaxed (`apply_policy_zone`). One leaf table maps 512
pages, 2 MiB; upper levels are left out (one page in 512 more). Off unless `Memory.account_pagetables`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from privmem.nodeagent.host import kmem
from privmem.scheduler.abi import PAGEBLOCK_ORDER, Reason

if TYPE_CHECKING:
    from privmem.nodeagent.host.memory import Memory
    from privmem.nodeagent.host.task import Task

#: Pages that a leaf table maps, as a shift.
TABLE_SHIFT = PAGEBLOCK_ORDER


def ensure(memory: Memory, task: Task, vpn: int) -> int:
    """A leaf table for a page of the task: 0, or -ENOMEM."""
    key = (task.mm.mm_id, vpn >> TABLE_SHIFT)
    if key in memory.kernel_pages.page_tables:
        return 0
    request, _ = task.policy_request(task.policy, None, movable=False)
    if request.reason is Reason.POLICY:
        request = replace(request, reason=Reason.PAGETABLE)
    pfn = kmem.take_page(memory, request, f"page table of {task.pid}", task.mems_allowed)
    if pfn < 0:
        return pfn
    memory.kernel_pages.page_tables[key] = pfn
    return 0


def release(memory: Memory, task: Task) -> None:
    """`free_pgtables` when the address space goes."""
    mine = [key for key in memory.kernel_pages.page_tables if key[0] == task.mm.mm_id]
    for key in sorted(mine):
        kmem.give_back(memory, memory.kernel_pages.page_tables.pop(key))


def on_node(memory: Memory, nid: int) -> int:
    """NR_PAGETABLE of a node, in pages."""
    return sum(memory.frames.nid_of(pfn) == nid for pfn in memory.kernel_pages.page_tables.values())
