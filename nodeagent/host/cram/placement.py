"""How cold pages come into compressed RAM: the service's own entry, beside the demotion by tiers.

F3: reclaim offers what it would swap out, and the service moves it to the nearest node whose gate is open, by
distance from the page's node, the first to register among equals; there is no second choice. F1: the node is
in a memory tier and reclaim demotes as to any other (reclaim.py); MADV_PAGEOUT comes here too. What may come:
anonymous, swap-backed pages that are not in compressed RAM already. The allocation is movable, for this node
only, without reclaim and without the reserves below the min watermark. A huge page comes as one where there
is a block for it. Clean pages of files may come too in F1, are read in place there, and leave when they are
written (fence.py).
"""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.host import thp_migrate
from privmem.nodeagent.host.blocks import alloc_from, mark_block
from privmem.nodeagent.host.cram.service import Generation
from privmem.nodeagent.host.drivers.owner import owner_request
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import (
    PG_DIRTY,
    PG_FILE,
    PG_LRU,
    PG_OBJECT,
    PG_UNEVICTABLE,
    PG_UNINVITED,
    PTE_DIRTY,
)
from privmem.nodeagent.host.memory import Memory, Node
from privmem.nodeagent.host.migrate import migrate_cost_ns, move_to_frames, room_pages
from privmem.nodeagent.host.page_alloc import AllocContext, zone_statistics
from privmem.scheduler.abi import PAGEBLOCK_ORDER, Reason
from privmem.scheduler.zonelist import AllocRequest


def nearest(memory: Memory, nid: int) -> Node | None:
    """The node for pages of node `nid`: nearest of the usable ones, the first to register among equals."""
    chosen: Node | None = None
    for cram in memory.cram.open_nodes():
        node = memory.nodes[cram.nid]
        if not node.managed_pages or node.migration_blocked or node.no_alloc_owner:
            continue
        if chosen is None or memory.topology.distance(nid, node.nid) < memory.topology.distance(
            nid, chosen.nid
        ):
            chosen = node
    return chosen


def can_take(memory: Memory, nid: int) -> bool:
    """Whether the service itself has room for cold pages of a node that reclaim works on."""
    if memory.cram.generation is not Generation.F3 or memory.is_cram(nid):
        return False
    target = nearest(memory, nid)
    return target is not None and room_pages(target) > 0


def demote_reclaimed(memory: Memory, pfns: list[int]) -> tuple[list[int], int]:
    """`cram_demote_folio` for isolated pages that kswapd, direct reclaim or a limit would take away (F3).
    Those that stay, and the time that it took.
    """
    if memory.cram.generation is not Generation.F3:
        return pfns, 0
    return demote(memory, pfns)


def demote(memory: Memory, pfns: list[int]) -> tuple[list[int], int]:
    """Move isolated pages into compressed RAM: those that found no place, and the time that it took."""
    if not memory.cram.nodes or memory.cram.generation is Generation.V4:
        return pfns, 0
    offered = [pfn for pfn in pfns if eligible(memory, pfn)]
    gone: dict[int, None] = {}
    cost_ns = 0
    for nid in sorted({memory.frames.nid_of(pfn) for pfn in offered}):
        here = [pfn for pfn in offered if memory.frames.nid_of(pfn) == nid]
        target = nearest(memory, nid)
        context = entry_context(memory, target.nid) if target is not None else None
        if target is None or context is None:
            continue
        moved = _move_blocks(memory, here, target, context)
        moved += move_pages(memory, [pfn for pfn in here if pfn not in set(moved)], target, context)
        gone.update(dict.fromkeys(moved))
        cost_ns += len(moved) * migrate_cost_ns(memory.nodes[nid], target)
        cram = memory.cram.nodes[target.nid]
        cram.placed_pages += len(moved)
        cram.refused_pages += len(here) - len(moved)
        memory.vmstat.add("demote_compressed", len(moved))
    return [pfn for pfn in pfns if pfn not in gone], cost_ns


def eligible(memory: Memory, pfn: int) -> bool:
    """Anonymous, swap-backed (not MADV_FREE), not in compressed RAM, held by nobody besides; or a clean page of
    a file (F1).
    """
    flags = int(memory.frames.flags[pfn])
    if flags & PG_UNEVICTABLE or memory.is_cram(memory.frames.nid_of(pfn)):
        return False
    if flags & (PG_FILE | PG_OBJECT) and not is_clean_file_page(memory, pfn):
        return False
    return pfn != memory.in_use and not memory.lru_batches.holds(pfn)


def is_clean_file_page(memory: Memory, pfn: int) -> bool:
    """Whether compressed RAM may hold a page of the page cache, to be read in place (F1; F3 dropped that)."""
    flags = int(memory.frames.flags[pfn])
    if memory.cram.generation is not Generation.F1 or flags & (PG_FILE | PG_OBJECT) != PG_FILE | PG_OBJECT:
        return False
    slot = int(memory.frames.rmap[pfn])
    dirty = bool(flags & PG_DIRTY)
    while slot and not dirty:
        dirty = bool(int(memory.page_table.pte[slot]) & PTE_DIRTY)
        slot = int(memory.page_table.rmap_next[slot])
    return not dirty


def entry_context(memory: Memory, nid: int) -> AllocContext | None:
    """The request by which a page comes in, if the isolation design lets it reach the node."""
    latest = memory.cram.generation is Generation.F3
    request = owner_request(nid) if latest else AllocRequest(nid, None, Reason.DEMOTION, this_node=True)
    resolution = memory.resolver.resolve(request, None)
    if resolution.zones[:1] != (nid,):
        return None
    return AllocContext(
        (nid,), request.reason, uninvited=resolution.uninvited, request=request, may_reclaim=False
    )


def _move_blocks(memory: Memory, pfns: list[int], target: Node, context: AllocContext) -> list[int]:
    """Huge pages of which all parts are offered, each into a block; which frames went."""
    if not len(memory.high_order.huge_maps):
        return []
    offered = dict.fromkeys(pfns)
    moved: list[int] = []
    for pfn in pfns:
        page = thp_migrate.page_of(memory, pfn) if pfn % HPAGE_PAGES == 0 else [pfn]
        if len(page) < HPAGE_PAGES or page[0] != pfn or any(part not in offered for part in page):
            continue
        new = alloc_from(target, PAGEBLOCK_ORDER) if room_pages(target) >= HPAGE_PAGES else -1
        if new < 0:
            continue
        mark_block(memory, context, new, HPAGE_PAGES)
        thp_migrate.move_block(memory, pfn, new, context.reason)
        stored(memory, target.nid, np.arange(new, new + HPAGE_PAGES))
        moved += page
    return moved


def move_pages(memory: Memory, pfns: list[int], target: Node, context: AllocContext) -> list[int]:
    """As many single pages as have room; which frames went."""
    chosen = pfns[: room_pages(target)]
    if not chosen:
        return []
    new = target.buddy.alloc_bulk(len(chosen))
    memory.vmstat.add("pgalloc", len(new))
    source_nid = memory.frames.nid_of(chosen[0])
    zone_statistics(memory, target.nid, target.nid, source_nid, len(new))
    if context.uninvited >> target.nid & 1:
        memory.frames.flags[new] |= np.uint16(PG_UNINVITED)
        memory.vmstat.add("pgleak", len(new))
    if memory.story is not None and context.request is not None:
        memory.story.placed(context.request, new.tolist())
    move_to_frames(memory, np.array(chosen, dtype=np.int32), new, context.reason)
    stored(memory, target.nid, new)
    return chosen


def stored(memory: Memory, nid: int, pfns: np.ndarray) -> None:
    """Pages came into a node. What its device had no room for, and the host did not know, is poisoned: whoever
    touches it gets SIGBUS, and never other bytes.
    """
    from privmem.nodeagent.host.memory_failure import memory_failure  # by way of faults, which reclaim needs

    cram = memory.cram.nodes.get(nid)
    if cram is None or cram.room_pages < 0:
        return
    lost = pfns[cram.room_pages :].tolist()
    cram.room_pages -= len(pfns) - len(lost)
    for pfn in lost:
        memory_failure(memory, pfn, cram.owner)


def put_back(memory: Memory, pfns: list[int]) -> None:
    """Isolated pages go back to their lists."""
    for pfn in pfns:
        if not memory.frames.flags[pfn] & np.uint16(PG_LRU):
            memory.lru_add(pfn)
