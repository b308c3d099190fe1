"""kswapd and direct reclaim: aging the LRU lists, and demoting what is cold.

Models mm/vmscan.c of Linux 6.1 for anonymous memory without swap: `balance_pgdat`, `shrink_node`,
`inactive_is_low`, `demote_folio_list`. A cold page goes to the first demotion target with room: the preferred
ones of the next tier, then any node of a lower tier (`alloc_demote_page` and its allowed mask). Left out
here: file pages, swap, memory cgroups, boosts.
"""

from __future__ import annotations

from math import isqrt

import numpy as np

from privmem.nodeagent.host import _lru_kernel as lru_kernel
from privmem.nodeagent.host.costs import SCAN_NS
from privmem.nodeagent.host.layout import (
    LRU_ACTIVE_ANON,
    LRU_INACTIVE_ANON,
    NIL,
    NR_LRU_LISTS,
    PG_OBJECT,
)
from privmem.nodeagent.host.memory import Memory, Node
from privmem.nodeagent.host.migrate import migrate_cost_ns, migrate_isolated, room_pages
from privmem.nodeagent.host.page_alloc import NeedsExtent
from privmem.nodeagent.host.pagecache import SHMEM
from privmem.scheduler.abi import PAGE_SHIFT, Reason
from privmem.scheduler.isolation import Service

#: Pages that one round of reclaim is after; Linux `SWAP_CLUSTER_MAX`.
SWAP_CLUSTER_MAX = 32


def may_reclaim(memory: Memory, node: Node) -> bool:
    """Whether generic reclaim works on the node: always on a public one, on a private one when it opted in."""
    return memory.resolver.allows(Service.RECLAIM, node.nid)


def wake_kswapd(memory: Memory, node: Node) -> None:
    """`wakeup_kswapd`; a private node without RECLAIM has none."""
    if may_reclaim(memory, node) and not node.kswapd_awake and node.managed_pages:
        node.kswapd_awake = True
        memory.vmstat.add("kswapd_wake")


def run_kswapd(memory: Memory, node: Node, budget_ns: int) -> int:
    """Let the node's kswapd work until it is balanced, makes no progress, or the time is used up. Returns ns
    used.

    Raises NeedsExtent when a demotion must wait for the pool; calling it again then goes on.
    """
    spent = 0
    fruitless = 0
    while node.kswapd_awake and spent < budget_ns:
        mark = node.wmark.promo_pages if memory.numa_balancing.tiering else node.wmark.high_pages
        if node.free_pages > mark:
            node.kswapd_awake = False
            break
        taken, looked, cost = shrink_node(memory, node, "kswapd")
        spent += cost
        fruitless = 0 if taken else fruitless + looked
        if not looked or fruitless > 2 * sum(memory.lru_sizes(node.nid)):
            node.kswapd_awake = False  # as after MAX_RECLAIM_RETRIES failures: sleeps until woken
    return spent


def direct_reclaim(memory: Memory, zones: tuple[int, ...]) -> int:
    """`try_to_free_pages`: one pass over the candidate nodes; returns pages freed. Charges the caller.

    Looks at every list once at the most, in growing steps, until it has freed SWAP_CLUSTER_MAX pages.
    """
    freed = 0
    for nid in zones:
        node = memory.nodes[nid]
        if not may_reclaim(memory, node):
            continue
        looked_total = 0
        while freed < SWAP_CLUSTER_MAX and looked_total <= sum(memory.lru_sizes(nid)):
            taken, looked, cost = shrink_node(memory, node, "direct")
            memory.charge_ns += cost
            freed += taken
            looked_total += looked
            if not looked:
                break
    return freed


def shrink_node(memory: Memory, node: Node, who: str) -> tuple[int, int, int]:
    """One round on a node's anonymous lists. Returns (pages freed, pages looked at, ns).

    Without a demotion target that has room nothing is scanned: anonymous pages without swap cannot be
    reclaimed.
    """
    targets = _targets_with_room(memory, node)
    if not targets:
        return 0, 0, 0
    if memory.story is not None:
        memory.story.part = f"{who} reclaim of node {node.nid}"
    base = node.nid * NR_LRU_LISTS
    lru, rmap = memory.lru_arrays(), memory.rmap_arrays()
    looked = 0
    if _inactive_is_low(memory, base):
        looked = lru_kernel.shrink_active(base + LRU_ACTIVE_ANON, SWAP_CLUSTER_MAX, *lru, *rmap)
        memory.vmstat.add("pgdeactivate", looked)
    victims = np.empty(SWAP_CLUSTER_MAX, dtype=np.int32)
    scanned, nr, activated = lru_kernel.isolate_inactive(
        base + LRU_INACTIVE_ANON, SWAP_CLUSTER_MAX, victims, SWAP_CLUSTER_MAX, *lru, *rmap
    )
    memory.vmstat.add(f"pgscan_{who}", scanned)
    memory.vmstat.add("pgactivate", activated)
    moved, cost = _demote(memory, node, victims[:nr], targets)
    if memory.story is not None:
        memory.story.part = ""
    memory.vmstat.add(f"pgsteal_{who}", moved)
    memory.vmstat.add(f"pgdemote_{who}", moved)
    return moved, looked + scanned, (looked + scanned) * SCAN_NS + cost


def _inactive_is_low(memory: Memory, base: int) -> bool:
    """`inactive_is_low`: the inactive list should hold at least 1/ratio of the active one, ratio = sqrt(10 *
    GiB).
    """
    inactive = int(memory.lru_size[base + LRU_INACTIVE_ANON])
    active = int(memory.lru_size[base + LRU_ACTIVE_ANON])
    gib = (inactive + active) >> (30 - PAGE_SHIFT)
    ratio = isqrt(10 * gib) if gib else 1
    return inactive * ratio < active


def _targets_with_room(memory: Memory, node: Node) -> list[Node]:
    """Demotion targets that can take at least a round's worth together, in order.

    Raises NeedsExtent when they cannot, and a pooled one could if it grew. Compressed RAM counts only when
    all the next victims may go there.
    """
    if not memory.demotion_enabled:
        return []
    found: list[Node] = []
    room = 0
    objects = _objects_next(memory, node)
    for nid in memory.demotion_targets.get(node.nid, ()):
        target = memory.nodes[nid]
        here = room_pages(target)
        if here + room < SWAP_CLUSTER_MAX and target.can_grow(memory.now_ns) and _short_of_frames(target):
            raise NeedsExtent(nid)
        if here:
            found.append(target)
            room += 0 if objects and target.spec.compressed else here
        else:
            wake_kswapd(memory, target)
        if room >= SWAP_CLUSTER_MAX:
            break
    return found


def _short_of_frames(target: Node) -> bool:
    """Whether it is for want of frames that no more pages may come, rather than of its device's promise."""
    return not target.spec.stores or target.store_room_pages > room_pages(target)


def _objects_next(memory: Memory, node: Node) -> bool:
    """Whether pages of shared memory are among the next victims."""
    if not any(holder.kind == SHMEM and holder.pages for holder in memory.page_cache.objects.values()):
        return False
    pfn = int(memory.lru_tail[node.nid * NR_LRU_LISTS + LRU_INACTIVE_ANON])
    for _ in range(SWAP_CLUSTER_MAX):
        if pfn == NIL:
            return False
        if memory.is_object_page(pfn):
            return True
        pfn = int(memory.frames.prev[pfn])
    return False


def _demote(memory: Memory, node: Node, victims: np.ndarray, targets: list[Node]) -> tuple[int, int]:
    """`demote_folio_list`: victims fill the targets in order; what finds no place goes back. Returns (moved,
    ns).
    """
    moved = cost = 0
    left = victims
    for target in targets:
        if not len(left):
            break
        chosen = np.flatnonzero(_eligible(memory, left, target))[: room_pages(target)]
        if not len(chosen):
            continue
        here = left[chosen]
        first = memory.demotion_targets[node.nid][0]
        migrate_isolated(memory, here, node, target, Reason.DEMOTION, first, node.nid)
        if target.free_pages <= target.wmark.low_pages:
            wake_kswapd(memory, target)
        if target.spec.compressed:
            memory.vmstat.add("demote_compressed", len(here))
        if target.spec.pooled:
            memory.vmstat.add("demote_pooled", len(here))
        moved += len(here)
        cost += len(here) * migrate_cost_ns(node, target)
        left = np.delete(left, chosen)
    if len(left):
        lru_kernel.putback(left, len(left), node.nid * NR_LRU_LISTS, *memory.lru_arrays())
    return moved, cost


def _eligible(memory: Memory, pfns: np.ndarray, target: Node) -> np.ndarray:
    """Compressed RAM takes private anonymous pages only (compressed RAM service, F3: anonymous, swap-backed)."""
    if not target.spec.compressed:
        return np.ones(len(pfns), dtype=bool)
    return (memory.frames.flags[pfns] & PG_OBJECT) == 0
