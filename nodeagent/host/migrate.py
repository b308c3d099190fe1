"""Moving pages between nodes: mappings, identity, content, and what the move costs.

Models `migrate_pages` of Linux 6.1 for order-0 folios that can always be unmapped. A page that lands on a
storing device goes out as content (messages.StorePages); one that leaves it is freed there.
"""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.host import _lru_kernel as lru_kernel
from privmem.nodeagent.host import huge_split, literal, mlocked, node_callbacks, written
from privmem.nodeagent.host.costs import ACCESS_BYTES, COPY_LINES_IN_FLIGHT, MIGRATE_NS
from privmem.nodeagent.host.layout import NR_LRU_LISTS, PG_OBJECT, PG_SWAPCACHE, PG_UNINVITED
from privmem.nodeagent.host.memory import Memory, Node
from privmem.nodeagent.host.page_alloc import release_frames, zone_statistics
from privmem.scheduler.abi import PAGE_SIZE, Reason
from privmem.scheduler.errors import InvariantError
from privmem.scheduler.zonelist import AllocRequest


def room_pages(target: Node) -> int:
    """How many pages may move onto a node now: down to its min watermark, and no more than its device surely
    takes.
    """
    if target.no_alloc_owner:
        return 0
    room = target.free_pages - target.wmark.min_pages
    if target.spec.stores:
        room = min(room, target.store_room_pages)
    return max(0, room)


def migrate_cost_ns(source: Node, target: Node) -> int:
    """Time of one page's move: kernel work, and the copy with several cache lines in flight."""
    lines = PAGE_SIZE // ACCESS_BYTES
    return MIGRATE_NS + (source.read_ns + target.write_ns) * lines // COPY_LINES_IN_FLIGHT


def migrate_isolated(
    memory: Memory,
    pfns: np.ndarray,
    source: Node,
    target: Node,
    reason: Reason,
    preferred_nid: int,
    cpu_nid: int,
) -> np.ndarray:
    """Move isolated frames (allocated, on no list, all of `source`) onto `target`, which has room. Returns
    the new frames.

    `preferred_nid`: the node that was asked first; `cpu_nid`: that of the CPU that moves the pages.
    """
    if len(pfns) > room_pages(target):
        raise InvariantError(f"{len(pfns)} pages do not fit into node {target.nid}")
    new = target.buddy.alloc_bulk(len(pfns))
    memory.vmstat.add("pgalloc", len(pfns))
    zone_statistics(memory, preferred_nid, target.nid, cpu_nid, len(pfns))
    request = AllocRequest(target.nid, None, reason, this_node=True)
    if target.private and not memory.resolver.design.invited(request, memory.topology.node(target.nid)):
        memory.frames.flags[new] |= np.uint16(PG_UNINVITED)
        memory.vmstat.add("pgleak", len(new))
    if memory.story is not None:
        memory.story.placed(request, new.tolist())
    move_to_frames(memory, pfns, new, reason)
    return new


def move_to_frames(memory: Memory, pfns: np.ndarray, new: np.ndarray, reason: Reason) -> None:
    """`migrate_folio_move`: pages in isolated frames of one node go into frames just allocated on another
    node.

    The new frames go to the head of the list that their flags name; the old ones are freed. Every page
    remembers `reason` as why it is where it is now, and keeps the node of its origin.
    """
    huge_split.split_frames(memory, pfns)
    carry_over(memory, pfns, new, reason)
    source = memory.nodes[memory.frames.nid_of(int(pfns[0]))]
    target = memory.nodes[memory.frames.nid_of(int(new[0]))]
    release_frames(memory, source, pfns)
    lru_kernel.putback(new, len(new), target.nid * NR_LRU_LISTS, *memory.lru_arrays())
    if memory.locked_slots:  # the nodes may differ in whether mlock is for them
        for pfn in new.tolist():
            mlocked.settle(memory, pfn)


def carry_over(memory: Memory, pfns: np.ndarray, new: np.ndarray, reason: Reason) -> None:
    """Mappings, identity and content of frames of one node into those of another; what becomes of the old frames,
    and on which list the new ones go, is the caller's.
    """
    source = memory.nodes[memory.frames.nid_of(int(pfns[0]))]
    target = memory.nodes[memory.frames.nid_of(int(new[0]))]
    nr = len(pfns)
    frames = memory.frames
    if target.spec.stores or target.fenced:  # there the entries lose their dirty bits
        _advance_written(memory, pfns)
    if node_callbacks.asks_folio_migrate(memory, source):
        _tell_owner(memory, pfns, new)
    leaked = frames.flags[new] & np.uint16(PG_UNINVITED)
    lru_kernel.move_frames(
        pfns,
        new,
        nr,
        target.fenced,
        frames.flags,
        *memory.rmap_arrays(),
        frames.version,
        frames.scan_ms,
        frames.reason,
        frames.origin_nid,
        frames.owner,
        frames.object_id,
        frames.object_index,
    )
    frames.reason[new] = int(reason)
    frames.flags[new] = frames.flags[new] & np.uint16(0xFFFF ^ PG_UNINVITED) | leaked
    for at in np.flatnonzero(frames.flags[new] & (PG_OBJECT | PG_SWAPCACHE)).tolist():
        if frames.flags[new[at]] & np.uint16(PG_OBJECT):
            memory.object_moved(int(pfns[at]), int(new[at]))
        else:
            memory.swap.moved(int(pfns[at]), int(new[at]))
    literal.ask_back(memory, source, pfns)
    memory.literal.moved(pfns, new)
    if target.spec.stores:
        store_content(memory, target, new)
    if memory.story is not None:
        for old, fresh in zip(pfns.tolist(), new.tolist(), strict=True):
            memory.story.moved(old, fresh, reason)
    if memory.memcg.active:
        memory.memcg.moved(pfns, new)
    source.migrated_read_bytes += nr * PAGE_SIZE
    target.migrated_write_bytes += nr * PAGE_SIZE
    memory.vmstat.add("pgmigrate_success", nr)


def _tell_owner(memory: Memory, pfns: np.ndarray, new: np.ndarray) -> None:
    """`folio_migrate` of the owner that pages leave: migration entries stand for their mappings, the content is in
    both, and both are locked (`migrate_folio_move`, between `folio_copy` and `remove_migration_ptes`).
    """
    frames, locked = memory.frames, memory.callbacks.locked
    mappings = frames.rmap[pfns].copy()
    frames.rmap[pfns] = 0
    for column in (frames.version, frames.owner, frames.object_id, frames.object_index):
        column[new] = column[pfns]
    locked.update(pfns.tolist(), new.tolist())
    node_callbacks.folio_migrate(memory, pfns, new)
    locked.clear()
    frames.rmap[pfns] = mappings


def store_content(memory: Memory, target: Node, pfns: np.ndarray) -> None:
    """Queue the content of frames of a storing node for its device; counts against the device's credit."""
    frames = memory.frames
    source, index = literal.described(memory, pfns)
    version = frames.version[pfns]
    bodies = literal.to_send(memory, pfns, source, index, version)
    memory.outgoing.store(target.spec.device, pfns - target.start_pfn, source, index, version, bodies)
    memory.block_caches.forget(target.nid, pfns)
    target.unacknowledged_pages += len(pfns)


def _advance_written(memory: Memory, pfns: np.ndarray) -> None:
    """Pages written since somebody last looked at their content move on to their next version."""
    dirty = np.zeros(len(pfns), dtype=np.uint16)
    lru_kernel.collect_dirty(pfns, len(pfns), dirty, memory.frames.flags, *memory.rmap_arrays())
    written.advance(memory, pfns, dirty)
