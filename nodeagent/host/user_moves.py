"""Moving pages because a user asks: which pages are taken, where they go, what stays.

Models `queue_pages_range` (mm/mempolicy.c), `isolate_lru_page`, `alloc_migration_target` and `migrate_pages`
(mm/migrate.c) of Linux 6.1, for mbind, migrate_pages, move_pages and cpusets. Whether pages of a private node
may be looked at and moved is the isolation design's answer.
"""

from __future__ import annotations

import errno
from dataclasses import replace

import numpy as np

from privmem.nodeagent.host import hugetlb_map, hugetlb_move, thp_migrate
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import PG_LRU, PTE_PFN_SHIFT, PTE_PRESENT
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.migrate import move_to_frames
from privmem.nodeagent.host.mm import Vma
from privmem.nodeagent.host.page_alloc import AllocContext, alloc_page, free_unused_page
from privmem.nodeagent.host.task import Task
from privmem.scheduler.abi import (
    MAX_NUMNODES,
    MPOL_MF_MOVE,
    MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT,
    SECTION_SHIFT,
    Reason,
)
from privmem.scheduler.isolation import Service
from privmem.scheduler.zonelist import AllocRequest

MF_MOVES = MPOL_MF_MOVE | MPOL_MF_MOVE_ALL
MF_VALID = MPOL_MF_STRICT | MF_MOVES

Queued = list[tuple[int, int]]  # (page frame, virtual page at which it was found)


def queue_pages(
    memory: Memory, task: Task, start: int, end: int, nodes: int, flags: int, holes: bool
) -> tuple[int, Queued]:
    """`queue_pages_range`: pages on `nodes` (a mask, possibly of infinite width), in order of address.

    Returns -EFAULT for a hole (unless `holes`), -EIO for a misplaced page that only STRICT asked about, else how
    many pages cannot be isolated, those that are met a second time included; and the pages to move.
    """
    parts = task.mm.in_range(start, end)
    queued: Queued = []
    if not parts:
        return -errno.EFAULT, queued
    seen: dict[int, int] = {}
    stuck = 0
    vpn = start
    for position, part in enumerate(parts):
        last = position + 1 == len(parts)
        hole_after = part.end != (end if last else parts[position + 1].start)
        if not holes and (part.start != vpn or hole_after):
            return -errno.EFAULT, queued
        vpn = part.end
        if not flags & MF_VALID:
            continue
        for pfn, at in _pages_on(memory, part, nodes):
            if not flags & MF_MOVES:
                return -errno.EIO, queued
            if not (flags & MPOL_MF_MOVE_ALL or memory.mapped_once(pfn)):
                if memory.story is not None:
                    memory.story.stayed(pfn, "mapped more than once, and MPOL_MF_MOVE_ALL was not asked for")
                continue
            if pfn in seen or not may_isolate(memory, task, pfn):
                if memory.story is not None and pfn not in seen:
                    memory.story.stayed(pfn, why_not(memory, task, pfn))
                stuck += 1
                continue
            seen[pfn] = at
            queued.append((pfn, at))
    return stuck, queued


def _pages_on(memory: Memory, part: Vma, nodes: int) -> Queued:
    """Present pages of a VMA part that are on a node of the mask; of a pool's pages the first frames."""
    entries = memory.page_table.pte[part.slot : part.slot + part.nr_pages]
    present = np.flatnonzero(entries & np.uint32(PTE_PRESENT))
    pfns = (entries[present] >> np.uint32(PTE_PFN_SHIFT)).astype(np.int64)
    wanted = np.array([bool(nodes >> nid & 1) for nid in range(MAX_NUMNODES)])
    on = wanted[memory.frames.node_of_section[pfns >> SECTION_SHIFT]]
    if hugetlb_map.is_hugetlb(memory, part):
        on &= pfns % HPAGE_PAGES == 0
    return list(zip(pfns[on].tolist(), (present[on] + part.start).tolist(), strict=True))


def may_isolate(memory: Memory, task: Task, pfn: int) -> bool:
    """`isolate_lru_page` or `isolate_hugetlb`, and the right to move a page off a private node."""
    if hugetlb_move.is_pool_page(memory, pfn):
        return hugetlb_move.may_isolate(memory, pfn) and may_look(memory, task, pfn)
    return bool(memory.frames.flags[pfn] & PG_LRU) and may_look(memory, task, pfn)


def why_not(memory: Memory, task: Task, pfn: int) -> str:
    """Why a page is not isolated, for its story."""
    if not may_look(memory, task, pfn):
        return f"{task.resolver.design.name}: user calls may not handle pages of this private node"
    return "on no LRU list (pinned, held, or in use by the kernel)"


def may_look(memory: Memory, task: Task, pfn: int) -> bool:
    """Whether the user calls may handle pages of the frame's node at all (a private node may withhold
    them).
    """
    node = task.resolver.topology.node(memory.frames.nid_of(pfn))
    return task.resolver.design.allows(Service.USER_MOVE, node)


def migrate(memory: Memory, pfns: list[int], contexts: list[AllocContext]) -> int:
    """`migrate_pages`: each frame to a new one from its context: 0, or -ENOMEM at the first page for which
        there is none. That one and those after it stay.

    The pages are isolated first, out of reach of the reclaim that the allocations may start. On NeedsExtent
    those that have a new frame have moved, and the others are where they were: the call, made again, finds only
    these.
    """
    error, pfns, contexts = hugetlb_move.move_first(memory, pfns, contexts)
    if error:
        return error
    pfns, contexts = thp_migrate.move_whole(memory, pfns, contexts)
    for pfn in pfns:
        memory.lru_del(pfn)
    pairs: list[tuple[int, int]] = []
    taken: dict[int, int] = {}
    try:
        for pfn, context in zip(pfns, contexts, strict=True):
            error = _target_frame(memory, context, taken)
            if error < 0:
                break
            pairs.append((pfn, error))
    finally:
        for pfn in pfns[len(pairs) :]:
            memory.lru_add(pfn)
        _move_pairs(memory, pairs)
    return min(error, 0)


def _move_pairs(memory: Memory, pairs: list[tuple[int, int]]) -> None:
    """Move pages (old frame, new frame) in runs from one node to another."""
    nid_of = memory.frames.nid_of
    run: list[tuple[int, int]] = []
    for pair in pairs:
        if run and (nid_of(run[0][0]), nid_of(run[0][1])) != (nid_of(pair[0]), nid_of(pair[1])):
            _move_run(memory, run)
            run = []
        run.append(pair)
    if run:
        _move_run(memory, run)


def _target_frame(memory: Memory, context: AllocContext, taken: dict[int, int]) -> int:
    """A new frame, or a negative errno; a storing node gives no more than its device surely takes."""
    new = alloc_page(memory, context)
    if new < 0:
        return new
    node = memory.nodes[memory.frames.nid_of(new)]
    if node.spec.stores and taken.get(node.nid, 0) >= node.store_room_pages:
        free_unused_page(memory, new)
        return -errno.ENOMEM
    taken[node.nid] = taken.get(node.nid, 0) + 1
    return new


def _move_run(memory: Memory, run: list[tuple[int, int]]) -> None:
    old = np.array([pfn for pfn, _ in run], dtype=np.int32)
    new = np.array([pfn for _, pfn in run], dtype=np.int32)
    move_to_frames(memory, old, new, Reason.USER_MOVE)


def to_node(task: Task, nid: int, mems: int | None) -> AllocContext:
    """`alloc_migration_target` with THISNODE."""
    request = AllocRequest(nid, None, Reason.USER_MOVE, this_node=True)
    resolution = task.resolver.resolve(request, mems)
    return replace(task.context_of(request), zones=resolution.zones, uninvited=resolution.uninvited)
