"""set_mempolicy, get_mempolicy and mbind.

Models `do_set_mempolicy`, `do_get_mempolicy` and `do_mbind` (mm/mempolicy.c) of Linux 6.1. Calls return 0 or
a negative errno. Which private nodes may be named is the isolation design's answer. Moving pages is in
user_moves.py, migrate_calls.py and move_calls.py; home nodes and weights in policy_calls.py.

A page's new place under mbind is worked out for the address at which it was queued; the kernel looks for
the first VMA at or after the range's start that maps it, which is the same one unless the range maps an
object twice.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from privmem.nodeagent.host import huge_split, hugetlb_map
from privmem.nodeagent.host.fault import handle_fault
from privmem.nodeagent.host.filemap import vma_policy, vma_request
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT, PTE_PRESENT, PTE_ZERO
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.mm import VMA_OBJECT
from privmem.nodeagent.host.page_alloc import AllocContext
from privmem.nodeagent.host.pagecache import SHMEM
from privmem.nodeagent.host.policy_calls import replace_policy
from privmem.nodeagent.host.task import Task
from privmem.nodeagent.host.user_moves import MF_MOVES, MF_VALID, Queued, migrate, queue_pages
from privmem.scheduler import mempolicy, nodemask
from privmem.scheduler.abi import (
    MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT,
    Mpol,
    Reason,
)
from privmem.scheduler.mempolicy import IL_PREV_NONE, Mempolicy

MPOL_F_NODE = 1
MPOL_F_ADDR = 2
MPOL_F_MEMS_ALLOWED = 4


def set_mempolicy(task: Task, mode_arg: int, user_nodes: int) -> int:
    """`do_set_mempolicy`."""
    rules = task.resolver.policy_nodes
    error, policy = mempolicy.new_policy(mode_arg, user_nodes, task.mems_allowed, rules)
    if error:
        return error
    task.policy = policy
    if policy is not None and policy.mode in mempolicy.INTERLEAVES:
        task.il_prev, task.il_weight = IL_PREV_NONE, 0
    return 0


def get_mempolicy(memory: Memory, task: Task, vpn: int | None = None, flags: int = 0) -> tuple[int, int, int]:
    """`do_get_mempolicy`: (errno, mode or node, node mask). An address goes with MPOL_F_ADDR."""
    refused = (-errno.EINVAL, 0, 0)
    if flags & ~(MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED):
        return refused
    if flags & MPOL_F_MEMS_ALLOWED:
        shown = task.resolver.policy_nodes.shown_mems(task.mems_allowed)
        return refused if flags != MPOL_F_MEMS_ALLOWED else (0, 0, shown)
    if vpn is not None and not flags & MPOL_F_ADDR:
        return refused
    if vpn is None and flags & MPOL_F_ADDR:
        return -errno.EFAULT, 0, 0  # nothing is mapped at address 0
    policy = task.policy
    if vpn is not None:
        vma = task.mm.find(vpn)
        if vma is None:
            return -errno.EFAULT, 0, 0
        policy = vma_policy(memory, vma, vpn)
    word = mempolicy.shown_mode(policy)
    if flags & MPOL_F_NODE:
        if vpn is not None:
            word = _node_at(memory, task, vpn)
        elif policy is not None and policy.mode == Mpol.INTERLEAVE:
            word = nodemask.next_in(task.il_prev, policy.nodes)
        elif policy is not None and policy.mode == Mpol.WEIGHTED_INTERLEAVE:
            word = task.il_prev if task.il_weight else nodemask.next_in(task.il_prev, policy.nodes)
        else:
            return refused
        if word < 0:
            return word, 0, 0
    return 0, word, mempolicy.shown_nodes(policy)


def _node_at(memory: Memory, task: Task, vpn: int) -> int:
    """`lookup_node`: the node of the page at an address; it is faulted in."""
    while True:
        vma = task.mm.find(vpn)
        if vma is None:
            return -errno.EFAULT
        entry = int(memory.page_table.pte[vma.slot_of(vpn)])
        if entry & PTE_PRESENT:
            return memory.frames.nid_of(entry >> PTE_PFN_SHIFT)
        if entry == PTE_ZERO:  # part of the kernel's image
            return nodemask.first(memory.topology.public)
        took = handle_fault(memory, task, vpn, is_write=False)
        if took < 0:
            return took


# -- mbind


def mbind(
    memory: Memory, task: Task, start: int, nr_pages: int, mode_arg: int, user_nodes: int, flags: int
) -> int:
    """`do_mbind` over pages [start, start + nr_pages)."""
    weighted = task.resolver.policy_nodes.weighted
    error, mode, mode_flags = mempolicy.sanitize_mode(mode_arg, weighted)
    if error or flags & ~MF_VALID:
        return -errno.EINVAL
    if flags & MPOL_MF_MOVE_ALL and not task.root:
        return -errno.EPERM
    if mode == Mpol.DEFAULT:
        flags &= ~MPOL_MF_STRICT
    if nr_pages == 0:
        return 0
    error, policy = mempolicy.mpol_new(mode, mode_flags, user_nodes)
    if error:
        return error
    if flags & MF_MOVES:
        memory.lru_batches.drain_all()
    if policy is not None:
        rules = task.resolver.policy_nodes
        error, policy = mempolicy.set_nodemask(policy, user_nodes, task.mems_allowed, rules)
        if error:
            return error
    end = start + nr_pages
    # The mask as the user gave it says which pages are misplaced, even when the policy reads it as positions.
    wrong = ~user_nodes
    found, queued = queue_pages(memory, task, start, end, wrong, flags, holes=policy is None)
    if found < 0:
        return found
    error = _bind_range(memory, task, start, end, policy)
    if error:
        return error
    base = _first_turn(memory, task, queued)
    contexts = [_policy_context(memory, task, vpn, base) for _, vpn in queued]
    failed = migrate(memory, [pfn for pfn, _ in queued], contexts)
    return -errno.EIO if (found or failed) and flags & MPOL_MF_STRICT else 0


def _bind_range(memory: Memory, task: Task, start: int, end: int, policy: Mempolicy | None) -> int:
    """`mbind_range`: VMAs that have an equal policy stay as they are, shared policies of their objects
    included. -EINVAL at the first huge page of a pool that would be cut; VMAs before it are done.
    """
    parts = []
    error = 0
    for part in task.mm.in_range(start, end):
        if not error and not _equal(part.policy, policy):
            if hugetlb_map.cuts_a_page(memory, task, part.start, part.end):
                error = -errno.EINVAL
                parts.append(part)
                continue
            huge_split.split(memory, part.slot, part.nr_pages)
            part = replace_policy(memory, part, policy)
        parts.append(part)
    task.mm.replace_range(start, end, parts)
    return error


def _equal(one: Mempolicy | None, other: Mempolicy | None) -> bool:
    """`__mpol_equal`: the stored user mask counts, the cpuset's mems do not."""
    if one is None or other is None:
        return one is other
    if (one.mode, one.flags, one.home_node) != (other.mode, other.flags, other.home_node):
        return False
    return (not one.stores_user_nodemask or one.w == other.w) and one.nodes == other.nodes


def _first_turn(memory: Memory, task: Task, queued: Queued) -> int:
    """Where turns of interleaving begin for pages that mbind moves: with the inode number of the shared
    memory that the first page belongs to, and for pages behind it as well (6.7); 6.1 forgets it.
    """
    vma = task.mm.find(queued[0][1]) if queued and task.resolver.linux.folio_mempolicy else None
    if vma is None or vma.kind != VMA_OBJECT:
        return 0
    holder = memory.page_cache.of(vma.object_id)
    return holder.ino if holder.kind == SHMEM else 0


def _policy_context(memory: Memory, task: Task, vpn: int, first_turn: int) -> AllocContext:
    """`new_page`: where the policy in force at an address wants the page."""
    vma = task.mm.find(vpn)
    assert vma is not None  # it was queued from there
    if hugetlb_map.is_hugetlb(memory, vma):
        request, interleave = hugetlb_map.policy_request(task, vma, vma.offset_of(vpn) // HPAGE_PAGES)
    else:
        request, interleave = vma_request(memory, task, vma, vpn, first_turn)
    return task.context_of(replace(request, reason=Reason.USER_MOVE), interleave)
